//! What is asked of a module before it is compiled, and of what a program answers, for fuzzers.

use crate::http;
use crate::world::{self, Admitted, KindExt as _};
use ebb_domain::port::guest::{CallError, ModuleKind};
use wit_component::{ComponentEncoder, StringEncoding, dummy_module, embed_component_metadata};
use wit_parser::{ManglingAndAbi, Resolve};

/// Any bytes are refused with a reason, or are a component of the world that was asked for.
pub fn admit(wasm: &[u8]) {
    for kind in [ModuleKind::Command, ModuleKind::Projection] {
        match world::admit(wasm, kind) {
            Ok(Admitted::Program(module)) => assert!(wasmparser::Parser::is_core_wasm(module)),
            Ok(Admitted::Component(component, _)) => {
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

/// What a program wrote is a response, or is refused with a reason.
pub fn http_answer(written: &[u8]) {
    match http::program::response(written) {
        Ok(response) => {
            assert!((200..600).contains(&response.status().as_u16()));
            assert!(!response.headers().contains_key("content-length"));
            // JSON can't make more of a body than there is of it.
            assert!(response.body().len() <= written.len());
        }
        Err(CallError::BadAnswer(problem)) => {
            assert!(!problem.is_empty() && problem.len() < 8 << 10, "{} bytes", problem.len());
        }
        Err(other) => panic!("{other} is no one's answer"),
    }
}

/// Answers of programs, and modules of both worlds, as small as they can be: core modules, and the components that they become.
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
    let answers = [
        r#"{"status": 303, "headers": {"set-cookie": ["a=1", "b=2"], "location": "/"}}"#,
        r#"{"body_json": {"a": [1.0, null]}, "headers": {"content-type": "application/problem+json"}, "status": 400}"#,
        r#"{"body": "h\u00e9\ud83d\ude00"}"#,
        r#"{"body_base64": "AP8="}"#,
    ];
    seeds.extend(answers.map(|answer| ("http_answer", answer.into())));
    seeds
}
