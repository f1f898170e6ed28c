//! Ebbtide's use cases, over the ports of `ebb-domain`: deciding commands, projecting events, deploying apps.
//! Knows neither wasmtime nor sockets nor files; its tests use fakes.

pub mod app;
pub mod bundle;
mod bus_task;
pub mod chains;
pub mod commands;
mod deferred;
pub mod deploy;
pub mod functions;
pub mod node;
pub mod own_app;
pub mod projections;
pub mod relay;
pub mod replay;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod topics;
