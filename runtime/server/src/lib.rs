//! Ebbtide's edges: the data plane and the control plane over HTTP, the operator's settings, telemetry, and the
//! composition root that puts a node together.
//!
//! [`Server`] is the whole of it: `ebb serve`, `ebb dev` and tests start one and shut it down.

pub mod auth;
mod compose;
pub mod config;
mod control;
mod data;
#[cfg(feature = "testing")]
#[doc(hidden)]
pub mod fuzz;
mod http;
mod logs;
mod metrics;
mod scaler;
mod secrets;
mod serve;
pub mod telemetry;
mod traces;

pub use compose::{Server, StartError, SystemClock};
pub use config::Config;
pub use http::problem;
