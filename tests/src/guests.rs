//! Modules to deploy, built once for wasm32-wasip2 by the scripts that users have too.

use crate::app::App;
use bytes::Bytes;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The repository.
///
/// # Panics
///
/// Outside of it.
#[must_use]
pub fn repository() -> &'static Path {
    static REPOSITORY: OnceLock<PathBuf> = OnceLock::new();
    REPOSITORY.get_or_init(|| {
        // Asked when it runs: clones may share a target folder, and with it a binary that another one compiled.
        let here =
            std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        let mut above = Path::new(&here).ancestors();
        above.find(|folder| folder.join("wit").is_dir()).expect("a folder of the repository").to_owned()
    })
}

/// The folder of an example that was built: `flights`, `bank`, `hello-http`, `teller`.
#[must_use]
pub fn examples(name: &str) -> PathBuf {
    modules();
    repository().join("guest-examples").join(name)
}

/// A module by its file's name, without `.wasm`: of an example, or of `tests/guests`.
///
/// # Panics
/// There is none.
#[must_use]
pub fn guest(name: &str) -> Bytes {
    let path = modules().join(name).with_extension("wasm");
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).into()
}

/// The example `bank`, as it is.
#[must_use]
pub fn bank() -> App {
    App::in_folder(&examples("bank"))
}

/// The example `flights`, as it is.
#[must_use]
pub fn flights() -> App {
    App::in_folder(&examples("flights"))
}

/// An example in a language other than Rust, built by the script that installs what that needs.
///
/// # Panics
/// It can't be built.
#[must_use]
pub fn language(name: &str, example: &str) -> App {
    let folder = repository().join("guest-examples").join(example);
    let mut build = Command::new(repository().join("scripts/build-language"));
    run(build.arg(name).arg(&folder), &folder);
    App::in_folder(&folder)
}

/// Puts the programs of the guide into a folder, one for each language.
///
/// # Panics
/// They can't be built.
pub fn counters(folder: &Path) {
    run(Command::new(repository().join("scripts/build-counters")).arg(folder), folder);
}

/// Builds everything that is deployed, once a process; cargo sees to the rest. All go into one folder, because they
/// share nearly everything that they are compiled from.
fn modules() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let examples = repository().join("guest-examples");
        for example in ["bank", "flights", "hello-http", "teller"] {
            build(&examples.join(example), &[]);
        }
        let target = examples.join("target");
        let shared = target.to_str().expect("the repository's path is UTF-8");
        let cargo = ["cargo", "build", "--release", "--target", "wasm32-wasip2", "--target-dir", shared];
        build(&repository().join("tests/guests"), &cargo);
        target.join("wasm32-wasip2/release")
    })
}

fn build(folder: &Path, command: &[&str]) {
    let script = repository().join("scripts/build-guest");
    let mut build = Command::new(script);
    build.arg(folder).args(command);
    // What cargo tells the test about its own build is not about guests.
    for (name, _) in std::env::vars_os() {
        let is_cargos = name.to_str().is_some_and(|name| {
            name.starts_with("CARGO_PKG") || name.starts_with("CARGO_MANIFEST") || name == "CARGO_TARGET_DIR"
        });
        if is_cargos || name == "RUSTFLAGS" {
            build.env_remove(name);
        }
    }
    run(&mut build, folder);
}

fn run(build: &mut Command, folder: &Path) {
    let output = build.output().expect("the script can be run");
    assert!(
        output.status.success(),
        "the modules of {} could not be built:\n{}",
        folder.display(),
        String::from_utf8_lossy(&output.stderr)
    );
}
