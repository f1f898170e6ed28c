//! The command path: from a request to a durable answer.
//!
//! `service` admits a command and waits for the disk; `mailbox` puts the commands of one stream in order; `runner`
//! decides them one after another on `warm` state and stages what was decided; `function` holds a module to what its
//! manifest entry declares, and is made when it is first needed. `state` shows what an aggregate's state was.

mod function;
mod mailbox;
mod request;
mod runner;
mod service;
mod state;
#[cfg(test)]
mod tests;
mod warm;

pub use ebb_domain::commit::Precondition;
pub(crate) use function::list;
pub use function::{AggregateFunction, DeferredFunction};
pub use mailbox::CAPACITY as MAILBOX_CAPACITY;
pub use request::{CommandError, CommandErrorKind, CommandReply, CommandRequest, ReplyEvent};
pub use service::CommandService;
pub(crate) use service::new_command_id;
pub use state::{MAX_EVENTS as STATE_MAX_EVENTS, PastState, StateError};
