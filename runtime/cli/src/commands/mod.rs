//! One file a command.

pub(crate) mod build;
pub(crate) mod check;
pub(crate) mod command;
pub(crate) mod deploy;
pub(crate) mod dev;
pub(crate) mod events;
pub(crate) mod export;
pub(crate) mod log;
pub(crate) mod logs;
pub(crate) mod new;
pub(crate) mod parked;
pub(crate) mod projections;
pub(crate) mod query;
pub(crate) mod replay;
pub(crate) mod serve;
pub(crate) mod state;
pub(crate) mod status;
pub(crate) mod topics;
pub(crate) mod usage;
