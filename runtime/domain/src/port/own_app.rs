//! What a function may do with its own app while it is called, of what it was granted: send commands, read rows. Errors
//! are values that a guest is handed, not failures of its call.

use super::Future;
use crate::commit::{CommandId, Precondition};
use crate::event::{EventId, Position, Revision};
use crate::model::{AskedQuery, Row, Value};
use crate::text::Text;
use crate::trace::Trace;
use bytes::Bytes;
use std::time::Duration;

/// An app, to a function of it that is called: in the name of whoever called, and tied to what the call is tied to.
/// Whether the function was granted what it asks for is looked at before.
pub trait OwnApp: Send + Sync + 'static {
    /// Decides a command; ready when the outcome is durable.
    fn send(&self, command: OwnCommand) -> Future<'_, Result<Accepted, NotDone>>;

    /// The row of a key, once the projection has passed a position.
    fn get<'a>(
        &'a self,
        model: &'a str,
        key: &'a str,
        at_least: Option<Position>,
    ) -> Future<'a, Result<Found, NotDone>>;

    /// Rows of a query, likewise.
    fn query<'a>(
        &'a self,
        model: &'a str,
        query: AskedQuery,
        at_least: Option<Position>,
    ) -> Future<'a, Result<FoundPage, NotDone>>;
}

/// A command that a function sends. Nothing in it is checked yet, but that the aggregate is granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnCommand {
    /// The aggregate's name.
    pub aggregate: String,
    /// The stream's key.
    pub key: String,
    /// The command's name.
    pub name: String,
    /// Its data, JSON; empty stands for `{}`.
    pub data: Bytes,
    /// What makes it the same as an earlier one.
    pub idempotency_key: Option<String>,
    /// What must be true of the stream.
    pub precondition: Option<Precondition>,
    /// The span that deciding it will be, or that of the call's caller.
    pub trace: Option<Trace>,
}

/// What came of an accepted command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// The command's id.
    pub command_id: CommandId,
    /// The stream.
    pub stream: Text,
    /// Revision of the stream's last event.
    pub revision: Option<Revision>,
    /// Position of the command's last event.
    pub position: Option<Position>,
    /// Its events.
    pub events: Vec<AcceptedEvent>,
    /// Whether this is the remembered answer to an earlier command.
    pub replayed: bool,
}

/// An event of an accepted command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcceptedEvent {
    /// Its id.
    pub id: EventId,
    /// Its type.
    pub event_type: Text,
    /// Place in the stream.
    pub revision: Revision,
    /// Place in the log.
    pub position: Position,
    /// Its data.
    pub data: Bytes,
}

/// A row that was asked for by its key.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// The row, or none.
    pub row: Option<Row>,
    /// How far the projection had got.
    pub position: Position,
}

/// Rows that were asked for by a query.
#[derive(Clone, Debug, PartialEq)]
pub struct FoundPage {
    /// The rows.
    pub rows: Vec<Row>,
    /// How far the projection had got.
    pub position: Position,
    /// Where the next page begins, if there is one.
    pub next: Option<Vec<Value>>,
}

/// What is to be done about something that was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotDoneKind {
    /// The module said no.
    Refused,
    /// The stream or the key is not as was expected.
    Conflict,
    /// It can't be right.
    Invalid,
    /// It is not granted, or not allowed.
    Denied,
    /// Not now.
    Busy,
    /// Whether it was done is not known.
    Unknown,
    /// The module or the platform failed.
    Failed,
}

/// Why something was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotDone {
    /// What is to be done about it.
    pub kind: NotDoneKind,
    /// Stable, for programs: as over HTTP.
    pub code: Text,
    /// For people.
    pub message: String,
    /// More for programs, JSON.
    pub details: Option<Bytes>,
    /// When to try again, if that is of use.
    pub retry_after: Option<Duration>,
}

impl NotDone {
    /// One without details.
    #[must_use]
    pub fn new(kind: NotDoneKind, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            kind,
            code: Text::from_static(code),
            message: message.into(),
            details: None,
            retry_after: None,
        }
    }

    /// The same, worth trying again after a while.
    #[must_use]
    pub fn retry_after(self, delay: Duration) -> Self {
        Self { retry_after: Some(delay), ..self }
    }
}
