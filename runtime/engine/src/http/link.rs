//! What an HTTP function is linked to: WASI 0.2 and 0.3 as they are, with real clocks and random bytes, no files but
//! `/tmp` and no sockets; and of what it must be granted, what it was granted.

use super::state::State;
use super::{files, own_app};
use crate::engines::Tasks;
use crate::host;
use ebb_domain::port::guest::Grants;
use wasmtime::component::{InstancePre, Linker};
use wasmtime::{Engine, Result};
use wasmtime_wasi_http::handler::ProxyPre;
use wasmtime_wasi_http::{WasiHttp, WasiHttpView as _, p2, p3};

/// Packages of WASI whose every interface is linked. `sockets` is: the standard libraries of some languages import all
/// of it, used or not, and here each address that they would reach is denied.
const PACKAGES: &[&str] =
    &["wasi:cli/", "wasi:clocks/", "wasi:filesystem/", "wasi:io/", "wasi:random/", "wasi:sockets/"];

/// Whether an interface, without its version, is linked for a function with these grants.
pub(crate) fn interfaces(interface: &str, grants: Grants) -> bool {
    match interface {
        "wasi:http/types" | "ebbtide:functions/log" => true,
        "ebbtide:functions/commands" => grants.commands,
        "ebbtide:functions/models" => grants.models,
        "wasi:http/outgoing-handler" | "wasi:http/client" => grants.outbound_http,
        other => PACKAGES.iter().any(|package| other.starts_with(package)),
    }
}

/// Everything that a function with these grants may import; of WASI 0.3, which is made of tasks, where it may have some.
pub(crate) fn linker(engine: &Engine, grants: Grants, tasks: Tasks) -> Result<Linker<State>> {
    let mut linker = Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    let options = p2::bindings::LinkOptions::default();
    p2::bindings::http::types::add_to_linker::<_, WasiHttp>(&mut linker, &(&options).into(), State::http)?;
    if tasks == Tasks::With {
        wasmtime_wasi::p3::add_to_linker(&mut linker)?;
        p3::bindings::http::types::add_to_linker::<_, WasiHttp>(&mut linker, State::http)?;
        if grants.outbound_http {
            p3::bindings::http::client::add_to_linker::<_, WasiHttp>(&mut linker, State::http)?;
        }
    }
    if grants.tmp {
        files::add_to_linker(&mut linker)?;
    }
    if grants.outbound_http {
        p2::bindings::http::outgoing_handler::add_to_linker::<_, WasiHttp>(&mut linker, State::http)?;
    }
    if grants.commands {
        own_app::add_commands(&mut linker)?;
    }
    if grants.models {
        own_app::add_models(&mut linker)?;
    }
    host::add_log(&mut linker, State::output)?;
    Ok(linker)
}

/// Whichever version the component exports.
pub(crate) fn proxy(pre: InstancePre<State>) -> Result<ProxyPre<State>> {
    match p3::bindings::ServicePre::new(pre.clone()) {
        Ok(service) => Ok(ProxyPre::P3(service)),
        Err(_) => Ok(ProxyPre::P2(p2::bindings::ProxyPre::new(pre)?)),
    }
}
