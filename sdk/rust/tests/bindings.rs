//! `src/bindings` is generated from `/wit` and kept in the repository, so that building a guest needs neither WIT files
//! nor the macro crates that read them. `EBB_BLESS=1 cargo test --test bindings` writes them anew.

use std::path::{Path, PathBuf};
use wit_bindgen_core::wit_parser::Resolve;
use wit_bindgen_core::{Files, WorldGenerator as _};
use wit_bindgen_rust::Opts;

#[test]
fn the_bindings_are_what_the_wit_files_give() {
    // Asked when it runs: clones may share a target folder, and with it a test that another one compiled.
    let here = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    for world in ["capabilities", "command", "projection"] {
        let generated = bindings(&here.join("../../wit"), world);
        let path = here.join("src/bindings").join(format!("{world}.rs"));
        if std::env::var_os("EBB_BLESS").is_some() {
            std::fs::write(&path, &generated).unwrap();
        }
        let kept = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            kept == generated,
            "{} is not what wit/ gives; write it anew with\n    EBB_BLESS=1 cargo test --test bindings",
            path.display()
        );
    }
}

fn bindings(wit: &Path, world: &str) -> String {
    let mut resolve = Resolve::default();
    let (package, _) = resolve.push_path(wit).unwrap();
    let id = resolve.select_world(&[package], Some(world)).unwrap();
    let options = Opts {
        format: true,
        generate_all: true,
        // The macro is called in the guest's crate. It carries the component type of the exports with it, so that a
        // module is only ever said to export the world that it uses the macro of.
        pub_export_macro: true,
        export_macro_name: Some(format!("export_{world}")),
        default_bindings_module: Some(format!("::ebbtide::__private::{world}")),
        runtime_path: Some("::wit_bindgen::rt".to_owned()),
        ..Opts::default()
    };
    let mut files = Files::default();
    options.build().generate(&mut resolve, id, &mut files).unwrap();
    let (_, source) = files.iter().next().expect("one file of bindings");
    String::from_utf8(source.to_vec()).unwrap()
}
