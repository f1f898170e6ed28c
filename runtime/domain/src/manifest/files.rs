//! Files that a manifest refers to, and what can be wrong with them.

use super::problem::{Place, Problem, ProblemKind, short};
use crate::limits::cap;
use crate::port::guest::{CompileError, ModuleKind};
use crate::schema::JsonSchema;
use std::path::{Path, PathBuf};

/// What a file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilePurpose {
    /// A module of this kind.
    Module(ModuleKind),
    /// A JSON Schema.
    Schema,
}

/// A file that the manifest refers to, and where it does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileRef {
    /// As written: relative to the manifest's folder, never absolute. It may climb out of the folder with `..`, as
    /// into a workspace's shared target folder; a bundle uses it as a name, and nobody as a path on a server.
    pub path: PathBuf,
    /// What it is for.
    pub purpose: FilePurpose,
    /// The key that refers to it, `aggregate.flight.module`.
    pub key: String,
    /// Where the manifest refers to it.
    pub place: Place,
}

impl FileRef {
    /// What is wrong with the file, as far as a look at its bytes tells; without contents, that it is missing. A
    /// module must begin like WebAssembly and be within its size; a schema must be one.
    #[must_use]
    pub fn inspect(&self, contents: Option<&[u8]>) -> Option<Problem> {
        let Some(contents) = contents else { return Some(self.missing()) };
        match self.purpose {
            FilePurpose::Module(_) => self.inspect_module(contents),
            FilePurpose::Schema => match JsonSchema::from_slice(contents) {
                Ok(_) => None,
                Err(error) => Some(self.bad(&format!("is not a usable JSON Schema: {error}"), None)),
            },
        }
    }

    fn inspect_module(&self, contents: &[u8]) -> Option<Problem> {
        let size = contents.len() as u64;
        if size > cap::MODULE_BYTES {
            return Some(self.refused(&CompileError::TooLarge { size, limit: cap::MODULE_BYTES }));
        }
        if contents.starts_with(b"\0asm") {
            return None;
        }
        let begins = if contents.is_empty() {
            "it is empty".to_owned()
        } else {
            format!(
                "it begins with \"{}\"",
                short(&String::from_utf8_lossy(&contents[..contents.len().min(8)]))
            )
        };
        let hint = "name the `.wasm` file that the build makes";
        Some(self.bad(&format!("is not WebAssembly: {begins}"), Some(hint)))
    }

    /// The file is not there.
    #[must_use]
    pub fn missing(&self) -> Problem {
        let (what, hint) = match self.purpose {
            FilePurpose::Module(_) => ("module", "build it with `ebb build`, or correct the path"),
            FilePurpose::Schema => ("schema", "make it, or correct the path"),
        };
        let message = format!("the {what} {} is not there", quoted(&self.path));
        self.problem(ProblemKind::MissingFile, message, Some(hint))
    }

    /// The file is there and could not be read.
    #[must_use]
    pub fn unreadable(&self, error: &dyn std::fmt::Display) -> Problem {
        self.bad(&format!("could not be read: {error}"), None)
    }

    /// The engine did not accept the module.
    #[must_use]
    pub fn refused(&self, error: &CompileError) -> Problem {
        let hint = match error {
            CompileError::NotWasm(_) => "name the `.wasm` file that the build makes",
            CompileError::WrongWorld { .. } => {
                "export it with the SDK's macro for this kind of module, or move the module to the section it is made for"
            }
            CompileError::ForbiddenImport { kind: "http", import } => granting(import),
            CompileError::ForbiddenImport { .. } => {
                "take out what needs it: command and projection modules have no network, files or real clock"
            }
            CompileError::NotForPrograms { .. } => {
                "take the capability out, or make the module a component of `wasi:http`, which can use it"
            }
            CompileError::TooLarge { .. } => {
                "build with `--release`, strip it, and look for large dependencies"
            }
            CompileError::TooSlow { .. } => {
                "make the module smaller, or ask the node's operator for more time (`functions.compile`)"
            }
            CompileError::Failed(_) => return self.bad(&error.to_string(), None),
        };
        self.bad(&error.to_string(), Some(hint))
    }

    /// The file is there, but not what it should be; `problem` goes on from its name: "is not …".
    #[must_use]
    pub fn bad(&self, problem: &str, hint: Option<&str>) -> Problem {
        self.problem(ProblemKind::BadFile, format!("{} {problem}", quoted(&self.path)), hint)
    }

    fn problem(&self, kind: ProblemKind, message: String, hint: Option<&str>) -> Problem {
        let (place, key) = (self.place.clone(), self.key.clone());
        Problem { kind, place, key, message, hint: hint.map(str::to_owned) }
    }
}

/// What to write so that a function may import this.
fn granting(import: &str) -> &'static str {
    if import.starts_with("ebbtide:functions/commands") {
        "grant the aggregates that it sends commands to: capabilities = { commands = [\"…\"] }"
    } else if import.starts_with("ebbtide:functions/models") {
        "grant the models that it reads: capabilities = { models = [\"…\"] }"
    } else if import.starts_with("wasi:http/") {
        "grant the hosts that it sends requests to: capabilities = { outbound-http = [\"api.example.org:443\"] }; or [], \
         if only its toolchain imports this"
    } else {
        "take out what needs it: a function has WASI 0.2 and 0.3, and of our interfaces `log`, `commands` and `models`"
    }
}

fn quoted(path: &Path) -> String {
    format!("\"{}\"", short(&path.to_string_lossy()))
}
