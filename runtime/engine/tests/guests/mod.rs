//! The guests of these tests, compiled once.

use bytes::Bytes;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

/// A module made from `tests/guests`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Guest {
    /// World `command`, as a component.
    Command,
    /// World `command`, as a core module.
    CoreCommand,
    /// World `projection`.
    Projection,
    /// World `command`, with `wasi:sockets`.
    Sockets,
    /// A component that exports nothing.
    NoWorld,
}

static BUILT: LazyLock<[Bytes; 5]> = LazyLock::new(|| {
    [
        build("wasm32-wasip2", "command"),
        build("wasm32-wasip1", "command"),
        build("wasm32-wasip2", "projection"),
        build("wasm32-wasip2", "sockets"),
        build("wasm32-wasip2", ""),
    ]
});

impl Guest {
    pub(crate) fn wasm(self) -> Bytes {
        BUILT[self as usize].clone()
    }
}

fn build(target: &str, features: &str) -> Bytes {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target_folder = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| root.join("../../target"), PathBuf::from)
        .join("guest");
    let status = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--release", "--locked", "--target", target, "--features", features])
        .arg("--manifest-path")
        .arg(root.join("tests/guests/Cargo.toml"))
        .arg("--target-dir")
        .arg(&target_folder)
        // Meant for the host.
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .status()
        .expect("cargo can be run");
    assert!(status.success(), "`rustup target add {target}` may be what is missing");
    let wasm = target_folder.join(target).join("release/hostile_guests.wasm");
    Bytes::from(std::fs::read(&wasm).unwrap_or_else(|error| panic!("{}: {error}", wasm.display())))
}
