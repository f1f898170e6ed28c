//! The binary `ebb`.

use crate::guests::repository;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command as Blocking, Stdio};
use std::sync::OnceLock;
use std::time::Duration;
use tokio::process::Command;

/// Longer than any command takes, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(120);

/// A command that has ended.
#[derive(Debug)]
pub struct Finished {
    /// Its exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// What it wrote.
    pub stdout: String,
    /// What it said.
    pub stderr: String,
}

impl Finished {
    /// Its stdout, once it is known that it ended as it should.
    ///
    /// # Panics
    /// It did not end with exit code 0.
    #[track_caller]
    pub fn ok(&self) -> &str {
        self.ended(0)
    }

    /// Its stdout, once it is known how it ended.
    ///
    /// # Panics
    /// It did not end with this exit code.
    #[track_caller]
    pub fn ended(&self, code: i32) -> &str {
        assert_eq!(self.code, Some(code), "\n--- stdout\n{}\n--- stderr\n{}", self.stdout, self.stderr);
        &self.stdout
    }

    /// Its stdout as one JSON document.
    ///
    /// # Panics
    /// It did not end with exit code 0, or wrote something else.
    #[must_use]
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        let text = self.ok();
        serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in\n{text}"))
    }
}

/// `ebb` with arguments, to be run in this folder, away from what the environment of the test says about nodes.
#[must_use]
pub fn command<S: AsRef<OsStr>>(folder: &Path, arguments: &[S]) -> Command {
    let mut command = Command::new(ebb());
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("EBB_")) {
            command.env_remove(name);
        }
    }
    command.args(arguments).current_dir(folder).stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Runs `ebb` to its end in this folder.
///
/// # Panics
/// It can't be run, or does not end.
pub async fn run<S: AsRef<OsStr>>(folder: &Path, arguments: &[S]) -> Finished {
    let ended = tokio::time::timeout(PATIENCE, command(folder, arguments).output()).await;
    let ended = ended.unwrap_or_else(|_| {
        let arguments: Vec<_> = arguments.iter().map(AsRef::as_ref).collect();
        panic!("`ebb` with {arguments:?} did not end within {PATIENCE:?}")
    });
    let output = ended.expect("ebb can be run");
    Finished {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Where the binary is: `EBB_BIN`, or beside this test, built once a process so that it is never an old one.
///
/// # Panics
/// It can't be built.
#[must_use]
pub fn ebb() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(path) = std::env::var_os("EBB_BIN") {
            return PathBuf::from(path);
        }
        // target/debug/deps/suite-0123456789abcdef
        let test = std::env::current_exe().expect("a running test has a path");
        let profile = test.parent().and_then(Path::parent).expect("a test is in target/PROFILE/deps");
        let mut build = Blocking::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        build.args(["build", "--package", "ebb", "--bin", "ebb"]).current_dir(repository());
        build.arg("--target-dir").arg(profile.parent().expect("a profile's folder is in a target folder"));
        if profile.ends_with("release") {
            build.arg("--release");
        }
        let output = build.output().expect("cargo can be run");
        assert!(
            output.status.success(),
            "ebb could not be built:\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
        profile.join("ebb")
    })
}
