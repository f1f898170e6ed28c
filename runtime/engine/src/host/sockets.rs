//! Sockets that are there only by name, for components that import them because all of libc is in them.

use super::State;
use crate::world::SOCKETS;
use ebb_domain::port::guest::CallError;
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, Linker, LinkerInstance, ResourceType};
use wasmtime::{Engine, Result};
use wasmtime_wasi::p2::{DynInputStream, DynOutputStream, DynPollable};

/// What makes a socket.
struct Nothing;

/// A linker in which every function of the sockets that a component imports is a trap that says what was called; none
/// if it imports none, as nearly all do.
pub(crate) fn linker_with_sockets(
    linker: &Linker<State>,
    engine: &Engine,
    component: &Component,
) -> Result<Option<Linker<State>>> {
    let mut with_sockets = None;
    for (interface, import) in component.component_type().imports(engine) {
        if let ComponentItem::ComponentInstance(instance) = import.ty
            && interface.starts_with(SOCKETS)
        {
            let linker = with_sockets.get_or_insert_with(|| linker.clone());
            let mut linked = linker.instance(interface)?;
            for (name, export) in instance.exports(engine) {
                define(&mut linked, interface, name, &export.ty)?;
            }
        }
    }
    Ok(with_sockets)
}

fn define(
    linked: &mut LinkerInstance<'_, State>,
    interface: &str,
    name: &str,
    item: &ComponentItem,
) -> Result<()> {
    match item {
        ComponentItem::ComponentFunc(_) => {
            let function = format!("{interface}#{name}");
            linked.func_new(name, move |_, _, _, _| {
                Err(CallError::Trapped(format!("it called `{function}`, which no function is granted"))
                    .into())
            })
        }
        // Interfaces that use another's type export it again, and it must be that very type.
        ComponentItem::Resource(_) => {
            let kind = match name {
                "pollable" => ResourceType::host::<DynPollable>(),
                "input-stream" => ResourceType::host::<DynInputStream>(),
                "output-stream" => ResourceType::host::<DynOutputStream>(),
                _ => ResourceType::host::<Nothing>(),
            };
            linked.resource(name, kind, |_, _| Ok(()))
        }
        _ => Ok(()),
    }
}
