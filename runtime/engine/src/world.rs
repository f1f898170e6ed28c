//! What a module is and whether it may run: its format, the world it exports, and what it imports. All of it is told
//! from the module's own sections, before a byte of it is compiled.

use crate::config;
use crate::host::wasi;
use ebb_domain::port::guest::{CompileError, ModuleKind};
use std::borrow::Cow;
use wasi_preview1_component_adapter_provider::{
    WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME as PREVIEW1, WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER,
};
use wasmparser::{Parser, Payload, Validator};
use wit_component::ComponentEncoder;

/// Versions of `ebbtide:functions` that this node runs: any patch of it.
const FUNCTIONS_VERSION: &str = "@0.1.";

/// Names and exports that differ from one kind of module to the other.
pub(crate) trait KindExt {
    /// As manifests and errors call it.
    fn name(self) -> &'static str;
    /// The interface it exports, with the version that this node offers.
    fn export(self) -> &'static str;
    /// Our own interfaces that it may import, without version.
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
            Self::Http(_) => "wasi:http/handler@0.3.0",
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

/// A valid component of the right world that imports only what it may; a core module is lifted to one.
pub(crate) fn admit(wasm: &[u8], kind: ModuleKind) -> Result<Cow<'_, [u8]>, CompileError> {
    if Parser::is_component(wasm) {
        check_component(wasm, kind)?;
        return Ok(Cow::Borrowed(wasm));
    }
    if Parser::is_core_wasm(wasm) {
        check_core(wasm, kind)?;
        let component = ComponentEncoder::default()
            .module(wasm)
            .and_then(|encoder| encoder.adapter(PREVIEW1, WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER))
            .and_then(|mut encoder| encoder.encode())
            .map_err(|error| {
                CompileError::NotWasm(format!("it can't be lifted to a component: {error:#}"))
            })?;
        check_component(&component, kind)?;
        return Ok(Cow::Owned(component));
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

fn validate(wasm: &[u8]) -> Result<(), CompileError> {
    Validator::new_with_features(config::features())
        .validate_all(wasm)
        .map(drop)
        .map_err(|error| not_wasm(&error))
}

/// Imports and exports of the component itself; of what is nested in it only validity matters.
fn check_component(wasm: &[u8], kind: ModuleKind) -> Result<(), CompileError> {
    validate(wasm)?;
    let (mut imports, mut exports, mut depth) = (Vec::new(), Vec::new(), 0_u32);
    for payload in Parser::new(0).parse_all(wasm) {
        match payload.map_err(|error| not_wasm(&error))? {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
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
    check_exports(&exports, kind)?;
    match imports.into_iter().find(|import| !granted(import, kind)) {
        Some(import) => Err(CompileError::ForbiddenImport { kind: kind.name(), import }),
        None => Ok(()),
    }
}

fn check_exports(exports: &[String], kind: ModuleKind) -> Result<(), CompileError> {
    let interface = kind.export().split_once('@').map_or(kind.export(), |(interface, _)| interface);
    if exports.iter().any(|export| {
        export.strip_prefix(interface).is_some_and(|version| version.starts_with(FUNCTIONS_VERSION))
    }) {
        return Ok(());
    }
    Err(wrong_world(exports, kind))
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

fn granted(import: &str, kind: ModuleKind) -> bool {
    let Some((interface, _)) = import.split_once('@') else { return false };
    let version = &import[interface.len()..];
    (kind.imports().contains(&interface) && version.starts_with(FUNCTIONS_VERSION))
        || (wasi::INTERFACES.contains(&interface) && version.starts_with("@0.2."))
}

/// What lifting a core module would only report in the toolchain's words.
fn check_core(wasm: &[u8], kind: ModuleKind) -> Result<(), CompileError> {
    validate(wasm)?;
    let (mut exports, mut has_world) = (Vec::new(), false);
    for payload in Parser::new(0).parse_all(wasm) {
        match payload.map_err(|error| not_wasm(&error))? {
            Payload::ImportSection(section) => {
                for import in section.into_imports() {
                    let import = import.map_err(|error| not_wasm(&error))?;
                    if !liftable(import.module, import.name) {
                        let import = format!("{}::{}", import.module, import.name);
                        return Err(CompileError::ForbiddenImport { kind: kind.name(), import });
                    }
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
    if has_world { Ok(()) } else { Err(wrong_world(&exports, kind)) }
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
