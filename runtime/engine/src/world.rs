//! What a module is and whether it may run: its format, the world it exports, and what it imports. All of it is told
//! from the module's own sections, before a byte of it is compiled.

use crate::config;
use crate::engines::Tasks;
use crate::host::{preview1, wasi};
use crate::http;
use ebb_domain::port::guest::{CompileError, ModuleKind};
use std::borrow::Cow;
use wasi_preview1_component_adapter_provider::{
    WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME as PREVIEW1, WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER,
};
use wasmparser::{Parser, Payload, Validator};
use wit_component::ComponentEncoder;

/// Versions of `ebbtide:functions` that this node runs: any patch of it.
const FUNCTIONS_VERSION: &str = "@0.1.";

/// What a program exports, in any version of 0.2. It may stand in for a module of any kind.
pub(crate) const PROGRAM: &str = "wasi:cli/run@0.2.0";
/// What a core module exports that is a program.
const START: &str = "_start";

/// The capability that has `/tmp`. Our own preview 1 has no files.
const TMP: &str = "tmp";

/// Interfaces that nobody is granted.
pub(crate) const SOCKETS: &str = "wasi:sockets/";
/// What a shared library imports. A component that is linked of such has all of libc in it, as Python's have: that it
/// imports sockets says nothing about whether it uses them. They are linked to traps that name them.
const SHARED_LIBRARY: (&str, &str) = ("env", "__memory_base");

/// Names and exports that differ from one kind of module to the other.
pub(crate) trait KindExt {
    /// As manifests and errors call it.
    fn name(self) -> &'static str;
    /// The interface it exports, with the version that this node offers.
    fn export(self) -> &'static str;
    /// Interfaces of which it must export one, each with the beginning of the versions that are run.
    fn exports(self) -> &'static [(&'static str, &'static str)];
    /// Our own interfaces that a deterministic module may import, without version.
    fn imports(self) -> &'static [&'static str];
}

impl KindExt for ModuleKind {
    fn name(self) -> &'static str {
        match self {
            Self::Command => "command",
            Self::Projection => "projection",
            Self::Http(_) => "http",
        }
    }

    fn export(self) -> &'static str {
        match self {
            Self::Command => "ebbtide:functions/aggregates@0.1.0",
            Self::Projection => "ebbtide:functions/projections@0.1.0",
            Self::Http(_) => "wasi:http/incoming-handler@0.2.0",
        }
    }

    fn exports(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Command => &[("ebbtide:functions/aggregates", FUNCTIONS_VERSION)],
            Self::Projection => &[("ebbtide:functions/projections", FUNCTIONS_VERSION)],
            Self::Http(_) => &[("wasi:http/handler", "@0.3."), ("wasi:http/incoming-handler", "@0.2.")],
        }
    }

    fn imports(self) -> &'static [&'static str] {
        match self {
            Self::Command => &["ebbtide:functions/log"],
            Self::Projection => &["ebbtide:functions/log", "ebbtide:functions/rows"],
            Self::Http(_) => &["ebbtide:functions/log"],
        }
    }
}

/// How a module is called.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Through the interface of its kind.
    Interface,
    /// As a program, with a document on stdin.
    Program,
}

/// A module that may run, in the form in which it is compiled.
pub(crate) enum Admitted<'a> {
    Component(Cow<'a, [u8]>, Tasks),
    /// A core module with a `_start`, which is run as it is. It has no tasks.
    Program(&'a [u8]),
}

/// A valid component of the right world that imports only what it may. A core module is lifted to one, unless it is a
/// program.
pub(crate) fn admit(wasm: &[u8], kind: ModuleKind) -> Result<Admitted<'_>, CompileError> {
    if Parser::is_component(wasm) {
        let tasks = check_component(wasm, kind)?;
        return Ok(Admitted::Component(Cow::Borrowed(wasm), tasks));
    }
    if Parser::is_core_wasm(wasm) {
        if check_core(wasm, kind)? == Form::Program {
            return Ok(Admitted::Program(wasm));
        }
        let component = ComponentEncoder::default()
            .module(wasm)
            .and_then(|encoder| encoder.adapter(PREVIEW1, WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER))
            .and_then(|mut encoder| encoder.encode())
            .map_err(|error| {
                CompileError::NotWasm(format!("it can't be lifted to a component: {error:#}"))
            })?;
        let tasks = check_component(&component, kind)?;
        return Ok(Admitted::Component(Cow::Owned(component), tasks));
    }
    let begins = wasm.iter().take(8).map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ");
    Err(CompileError::NotWasm(if wasm.is_empty() {
        "there are no bytes".into()
    } else {
        format!("it begins with the bytes {begins}, not with `00 61 73 6d`")
    }))
}

fn not_wasm(error: &wasmparser::BinaryReaderError) -> CompileError {
    CompileError::NotWasm(error.to_string())
}

/// Checks that a module is valid; whether it can't do without tasks, which only HTTP functions may have.
fn validate(wasm: &[u8], kind: ModuleKind) -> Result<Tasks, CompileError> {
    let validated =
        |tasks| Validator::new_with_features(config::features(tasks)).validate_all(wasm).map(|_| tasks);
    let valid = match (validated(Tasks::Without), kind) {
        (Err(_), ModuleKind::Http(_)) => validated(Tasks::With),
        (valid, _) => valid,
    };
    valid.map_err(|error| not_wasm(&error))
}

/// Imports and exports of the component itself; of what is nested in it only validity matters.
fn check_component(wasm: &[u8], kind: ModuleKind) -> Result<Tasks, CompileError> {
    let tasks = validate(wasm, kind)?;
    let (mut imports, mut exports, mut depth) = (Vec::new(), Vec::new(), 0_u32);
    let mut has_shared_libraries = false;
    for payload in Parser::new(0).parse_all(wasm) {
        match payload.map_err(|error| not_wasm(&error))? {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::ImportSection(section) => {
                for import in section.into_imports() {
                    let import = import.map_err(|error| not_wasm(&error))?;
                    has_shared_libraries |= (import.module, import.name) == SHARED_LIBRARY;
                }
            }
            // Ends of nested parts, and of the component itself.
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::ComponentImportSection(section) if depth == 0 => {
                for import in section {
                    imports.push(import.map_err(|error| not_wasm(&error))?.name.name.to_string());
                }
            }
            Payload::ComponentExportSection(section) if depth == 0 => {
                for export in section {
                    exports.push(export.map_err(|error| not_wasm(&error))?.name.name.to_string());
                }
            }
            _ => {}
        }
    }
    let form = form_of(&exports, kind)?;
    if form == Form::Program {
        check_grants(kind, |capability| capability == TMP)?;
    }
    let stands_for_nothing = |import: &str| has_shared_libraries && import.starts_with(SOCKETS);
    match imports.into_iter().find(|import| !granted(import, kind, form) && !stands_for_nothing(import)) {
        Some(import) => Err(CompileError::ForbiddenImport { kind: kind.name(), import }),
        None => Ok(tasks),
    }
}

/// A module that has both is called through its interface: that is faster.
fn form_of(exports: &[String], kind: ModuleKind) -> Result<Form, CompileError> {
    let has = |interface: &str, versions: &str| {
        let is_it = |export: &String| {
            export.strip_prefix(interface).is_some_and(|version| version.starts_with(versions))
        };
        exports.iter().any(is_it)
    };
    match kind {
        _ if kind.exports().iter().any(|(interface, versions)| has(interface, versions)) => {
            Ok(Form::Interface)
        }
        _ if has("wasi:cli/run", "@0.2.") => Ok(Form::Program),
        _ => Err(wrong_world(exports, kind)),
    }
}

/// A program has its document and its environment, files if it is a component, and reaches nothing else.
fn check_grants(kind: ModuleKind, may: impl Fn(&str) -> bool) -> Result<(), CompileError> {
    let ModuleKind::Http(grants) = kind else { return Ok(()) };
    match grants.names().find(|capability| !may(capability)) {
        Some(capability) => Err(CompileError::NotForPrograms { capability }),
        None => Ok(()),
    }
}

fn wrong_world(exports: &[String], kind: ModuleKind) -> CompileError {
    const SHOWN: usize = 8;
    let mut found =
        exports.iter().take(SHOWN).map(|export| format!("`{export}`")).collect::<Vec<_>>().join(", ");
    if exports.is_empty() {
        found.push_str("nothing");
    } else if exports.len() > SHOWN {
        found.push_str(&format!(" and {} more", exports.len() - SHOWN));
    }
    CompileError::WrongWorld { kind: kind.name(), expected: kind.export().into(), found }
}

fn granted(import: &str, kind: ModuleKind, form: Form) -> bool {
    let Some((interface, _)) = import.split_once('@') else { return false };
    let version = &import[interface.len()..];
    if let ModuleKind::Http(grants) = kind {
        let versions: &[&str] = match interface {
            ours if ours.starts_with("ebbtide:functions/") => &[FUNCTIONS_VERSION],
            _ => &["@0.2.", "@0.3."],
        };
        return http::interfaces(interface, grants)
            && versions.iter().any(|versions| version.starts_with(versions));
    }
    (form == Form::Interface && kind.imports().contains(&interface) && version.starts_with(FUNCTIONS_VERSION))
        || (wasi::INTERFACES.contains(&interface) && version.starts_with("@0.2."))
}

/// What lifting a core module would only report in the toolchain's words.
fn check_core(wasm: &[u8], kind: ModuleKind) -> Result<Form, CompileError> {
    validate(wasm, kind)?;
    let (mut imports, mut exports, mut has_world) = (Vec::new(), Vec::new(), false);
    for payload in Parser::new(0).parse_all(wasm) {
        match payload.map_err(|error| not_wasm(&error))? {
            Payload::ImportSection(section) => {
                for import in section.into_imports() {
                    let import = import.map_err(|error| not_wasm(&error))?;
                    imports.push((import.module, import.name));
                }
            }
            Payload::ExportSection(section) => {
                for export in section {
                    exports.push(export.map_err(|error| not_wasm(&error))?.name.to_owned());
                }
            }
            Payload::CustomSection(section) if section.name().starts_with("component-type") => {
                has_world = true;
            }
            _ => {}
        }
    }
    let form = match () {
        () if has_world => Form::Interface,
        () if exports.iter().any(|export| export == START) => Form::Program,
        // What it imports may say more about what it is than what it exports.
        () => match imports.iter().find(|(module, name)| !liftable(module, name)) {
            Some(import) => return Err(forbidden(import, kind)),
            None => return Err(wrong_world(&exports, kind)),
        },
    };
    let may = |(module, name): &(&str, &str)| match form {
        Form::Interface => liftable(module, name),
        Form::Program => *module == preview1::MODULE && preview1::offers(name),
    };
    match imports.iter().find(|import| !may(import)) {
        Some(import) => Err(forbidden(import, kind)),
        None if form == Form::Program => check_grants(kind, |_| false).map(|()| form),
        None => Ok(form),
    }
}

fn forbidden((module, name): &(&str, &str), kind: ModuleKind) -> CompileError {
    CompileError::ForbiddenImport { kind: kind.name(), import: format!("{module}::{name}") }
}

/// Whether a core import is one that lifting turns into an import of an interface, which is then checked by name.
fn liftable(module: &str, name: &str) -> bool {
    match module {
        // The adapter would link these to traps: better refused at deploy than found out at a call.
        PREVIEW1 => !name.starts_with("sock_"),
        "$root" | "[export]$root" => true,
        // `ebbtide:functions/log@0.1.0`, `[export]ebbtide:functions/aggregates@0.1.0`, `cm32p2|wasi:io/poll@0.2`
        interface => interface.contains(':') && interface.contains('/'),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebb_domain::port::guest::Grants;

    #[test]
    fn only_what_has_tasks_is_for_the_concurrent_engine_and_only_http_functions_may_have_some() {
        let http = ModuleKind::Http(Grants::default());
        let plain = wat::parse_str(r#"(component (import "f" (func)))"#).unwrap();
        let tasks = wat::parse_str(r#"(component (import "f" (func async)))"#).unwrap();
        assert_eq!(validate(&plain, http), Ok(Tasks::Without));
        assert_eq!(validate(&plain, ModuleKind::Command), Ok(Tasks::Without));
        assert_eq!(validate(&tasks, http), Ok(Tasks::With));
        assert!(validate(&tasks, ModuleKind::Command).is_err());
    }
}
