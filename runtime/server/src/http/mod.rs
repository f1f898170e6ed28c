//! What both planes share: reading requests, writing answers, naming errors.

pub(crate) mod body;
pub(crate) mod cors;
pub mod problem;
pub(crate) mod reply;
pub(crate) mod target;
