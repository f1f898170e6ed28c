//! Ebbtide's use cases, over the ports of `ebb-domain`: deciding commands, projecting events, deploying apps.
//! Knows neither wasmtime nor sockets nor files; its tests use fakes.

pub mod commands;
pub mod projections;
