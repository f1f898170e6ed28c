//! `src/scaler/generated` is generated from `externalscaler.proto` and kept in the repository, so that building a node
//! needs neither protoc nor the crates that stand in for it. `EBB_BLESS=1 cargo test -p ebb-server --test generated`
//! writes it anew.

use std::path::PathBuf;

#[test]
fn the_generated_code_is_what_the_proto_file_gives() {
    // Asked when it runs: clones may share a target folder, and with it a test that another one compiled.
    let here = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("src/scaler");
    let set = protox::compile(["externalscaler.proto"], [&here]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    tonic_prost_build::configure()
        .build_client(false)
        .build_transport(false)
        .out_dir(folder.path())
        .compile_fds(set)
        .unwrap();
    let generated = std::fs::read_to_string(folder.path().join("externalscaler.rs")).unwrap();
    let path = here.join("generated/externalscaler.rs");
    if std::env::var_os("EBB_BLESS").is_some() {
        std::fs::write(&path, &generated).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        kept == generated,
        "{} is not what externalscaler.proto gives; write it anew with\n    EBB_BLESS=1 cargo test -p ebb-server --test generated",
        path.display()
    );
}
