//! Puts what `ebb new` unpacks into the binary: the templates, and the SDK's manifest and sources. A list of files made
//! here, rather than a whole folder taken as it is, so that a developer's `target` folder never ends up in a release.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

fn main() {
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let mut listing = String::new();
    for (name, folder) in [
        ("AGGREGATE", "templates/aggregate"),
        ("AGGREGATE_PROJECTION", "templates/aggregate-projection"),
        ("HTTP", "templates/http"),
    ] {
        list(&mut listing, name, &here.join(folder), &[]);
    }
    list(&mut listing, "SDK", &here.join("../../sdk/rust"), &["Cargo.toml", "src"]);
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("embedded.rs");
    fs::write(out, listing).expect("OUT_DIR takes files");
    println!("cargo:rerun-if-changed=build.rs");
}

/// One constant: `(path, contents)` of every file below `root`, of these entries only if any are named.
fn list(listing: &mut String, name: &str, root: &Path, only: &[&str]) {
    let mut files = Vec::new();
    if only.is_empty() {
        collect(root, &mut files);
    } else {
        only.iter().for_each(|entry| collect(&root.join(entry), &mut files));
    }
    files.sort();
    writeln!(listing, "pub(crate) const {name}: &[(&str, &[u8])] = &[").expect("memory takes it");
    for file in files {
        let path = file.strip_prefix(root).expect("below the root").to_str().expect("our paths are UTF-8");
        let whole = file.to_str().expect("our paths are UTF-8");
        writeln!(listing, "    ({path:?}, include_bytes!({whole:?})),").expect("memory takes it");
    }
    listing.push_str("];\n");
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) {
    // A folder's own time changes when entries come and go; a file's when it is edited.
    println!("cargo:rerun-if-changed={}", path.display());
    if path.is_file() {
        files.push(path.to_owned());
        return;
    }
    let entries = fs::read_dir(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    for entry in entries {
        let entry = entry.expect("the folder can be listed").path();
        if !entry.ends_with("target") && !entry.ends_with("Cargo.lock") {
            collect(&entry, files);
        }
    }
}
