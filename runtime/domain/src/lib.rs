//! Ebbtide's words and rules.
//!
//! Events, streams, commits, manifests, read models and limits as types; and the [ports](port) through which the use
//! cases reach a log, rows and guest code. Nothing here does I/O or reads a clock.

pub mod asyncapi;
pub mod commit;
pub mod digest;
pub mod event;
pub mod limits;
pub mod manifest;
pub mod model;
pub mod name;
pub mod openapi;
pub mod outbound;
pub mod port;
pub mod quantity;
pub mod route;
pub mod scaling;
pub mod schema;
pub mod stream;
pub mod text;
pub mod time;
pub mod topic;
pub mod trace;
