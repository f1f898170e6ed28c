//! Ebbtide's edges: the data plane and the control plane over HTTP, the operator's settings, telemetry, and the
//! composition root that puts a node together.

pub mod auth;
pub mod config;
mod http;
mod metrics;
mod serve;
pub mod telemetry;

pub use http::problem;
