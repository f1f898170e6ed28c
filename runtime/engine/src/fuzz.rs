//! What is asked of a module before it is compiled, for fuzzers.

use crate::world::{self, Admitted, KindExt as _};
use ebb_domain::port::guest::ModuleKind;
use wit_component::{ComponentEncoder, StringEncoding, dummy_module, embed_component_metadata};
use wit_parser::{ManglingAndAbi, Resolve};

/// Any bytes are refused with a reason, or are a component of the world that was asked for.
pub fn admit(wasm: &[u8]) {
    for kind in [ModuleKind::Command, ModuleKind::Projection] {
        match world::admit(wasm, kind) {
            Ok(Admitted::Program(module)) => assert!(wasmparser::Parser::is_core_wasm(module)),
            Ok(Admitted::Component(component)) => {
                assert!(wasmparser::Parser::is_component(&component));
                // What was lifted is a component like any other.
                assert!(world::admit(&component, kind).is_ok(), "admitted once, admitted again");
            }
            Err(error) => {
                let shown = error.to_string();
                assert!(!shown.is_empty() && shown.len() < 64 << 10, "{} bytes", shown.len());
            }
        }
    }
}

/// Modules of both worlds, as small as they can be: core modules, and the components that they become.
#[must_use]
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let mut resolve = Resolve::default();
    let wit = include_str!("../../../wit/functions.wit");
    let package = resolve.push_str("functions.wit", wit).expect("our own WIT");
    let mut seeds = vec![("component", b"\0asm\x01\0\0\0".to_vec())];
    for kind in [ModuleKind::Command, ModuleKind::Projection] {
        let world = resolve.select_world(&[package], Some(kind.name())).expect("our own world");
        let mangling = ManglingAndAbi::Legacy(wit_parser::LiftLowerAbi::Sync);
        let mut module = dummy_module(&resolve, world, mangling);
        embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).expect("it fits");
        let encoder = ComponentEncoder::default().module(&module).expect("a module");
        seeds.push(("component", encoder.validate(true).encode().expect("a component")));
        seeds.push(("component", module));
    }
    seeds
}
