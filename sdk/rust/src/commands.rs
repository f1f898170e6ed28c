//! Commands that a function sends to aggregates of its own app: those that its manifest grants,
//! `capabilities = { commands = ["account"] }`.
//!
//! ```no_run
//! use ebbtide::commands::{Command, ErrorKind};
//! use serde_json::json;
//!
//! # fn pay_in(request_id: &str) -> Result<(), ebbtide::commands::Error> {
//! let deposit = Command::new("account", "ann", "deposit").data(json!({ "amount": 5 })).idempotency_key(request_id);
//! match deposit.send() {
//!     Ok(accepted) => ebbtide::log::info!("at position {:?}", accepted.position),
//!     Err(error) if error.kind == ErrorKind::Refused => ebbtide::log::info!("no: {error}"),
//!     Err(error) => return Err(error),
//! }
//! # Ok(())
//! # }
//! ```
//!
//! They are sent in the name of whoever called the function, and belong to what the call belongs to (its correlation
//! id). Natively there is no app but a test's: [`test::App`](crate::test::App).

use crate::Id;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value as Json;
use std::fmt::{self, Display};
use std::time::Duration;

/// A command, to be sent.
#[derive(Clone, PartialEq)]
pub struct Command {
    pub(crate) aggregate: String,
    pub(crate) key: String,
    pub(crate) name: String,
    pub(crate) data: Vec<u8>,
    pub(crate) idempotency_key: Option<String>,
    pub(crate) precondition: Option<Precondition>,
}

/// What must be true of the stream for a command to be decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precondition {
    /// Its last event has this revision.
    Revision(u64),
    /// It has events.
    Exists,
    /// It has none.
    Absent,
}

impl Command {
    /// The command `name` of the manifest, for the aggregate's stream of this key, without data.
    #[must_use]
    pub fn new(aggregate: impl Into<String>, key: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            aggregate: aggregate.into(),
            key: key.into(),
            name: name.into(),
            data: Vec::new(),
            idempotency_key: None,
            precondition: None,
        }
    }

    /// Its data, as JSON.
    ///
    /// # Panics
    /// The value can't be JSON, such as a map whose keys are not text.
    #[must_use]
    pub fn data(self, data: impl Serialize) -> Self {
        match serde_json::to_vec(&data) {
            Ok(data) => Self { data, ..self },
            Err(error) => panic!("the data of command `{}` can't be JSON: {error}", self.name),
        }
    }

    /// Makes a resend of the same command recognisable: it gets the same answer, and is not decided again. 1 to 255
    /// visible ASCII characters, remembered for a day. Give one whenever a caller may try again.
    #[must_use]
    pub fn idempotency_key(self, key: impl Into<String>) -> Self {
        Self { idempotency_key: Some(key.into()), ..self }
    }

    /// Only if this is true of the stream.
    #[must_use]
    pub fn only_if(self, precondition: Precondition) -> Self {
        Self { precondition: Some(precondition), ..self }
    }

    /// The aggregate that it is for.
    #[must_use]
    pub fn aggregate(&self) -> &str {
        &self.aggregate
    }

    /// The key of its stream.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sends it, and waits until it is decided and durable.
    ///
    /// # Errors
    /// It was not accepted; [`Error::kind`] says what is to be done about it.
    ///
    /// # Panics
    /// Natively, outside of a test's app.
    pub fn send(self) -> Result<Accepted, Error> {
        #[cfg(target_family = "wasm")]
        return crate::own_app::send(self);
        #[cfg(not(target_family = "wasm"))]
        return crate::test::app::send(self);
    }
}

/// As a test that fails shows it: with its data as text.
impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Command")
            .field("aggregate", &self.aggregate)
            .field("key", &self.key)
            .field("name", &self.name)
            .field("data", &String::from_utf8_lossy(&self.data))
            .field("idempotency_key", &self.idempotency_key)
            .field("precondition", &self.precondition)
            .finish()
    }
}

/// What came of a command that was accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// The command's id.
    pub command_id: Id,
    /// The stream, `account-ann`.
    pub stream: String,
    /// Revision of the stream's last event; none if it has no events.
    pub revision: Option<u64>,
    /// Position of the command's last event, for [reads that should see it](crate::models::Query::at_least); none if
    /// it decided none.
    pub position: Option<u64>,
    /// Its events.
    pub events: Vec<Event>,
    /// Whether this is the remembered answer to an earlier command with the same idempotency key.
    pub replayed: bool,
}

/// An event that a command decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its id.
    pub id: Id,
    /// Its type.
    pub event_type: String,
    /// Place in the stream.
    pub revision: u64,
    /// Place in the app's log.
    pub position: u64,
    /// Its data, JSON.
    pub data: Vec<u8>,
}

impl Event {
    /// Its data as a type of yours.
    ///
    /// # Errors
    /// The data does not fit `T`.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_slice(&self.data)
    }
}

/// What is to be done about a command that was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The aggregate says no. Sent again it gets the same answer.
    Refused,
    /// The stream, or the idempotency key, is not as the command expects it.
    Conflict,
    /// The command can't be right: no such aggregate, data that does not fit its schema.
    Invalid,
    /// The manifest does not grant the aggregate, or the caller may not use it.
    Denied,
    /// Not now; the same may be accepted later.
    Busy,
    /// Whether it was appended is not known. Sending it again under the same idempotency key tells.
    Unknown,
    /// The aggregate's module or the platform failed.
    Failed,
}

/// Why a command was not accepted. Nothing was appended, unless the kind says that this is not known.
#[derive(Clone, Debug, PartialEq)]
pub struct Error {
    /// What is to be done about it.
    pub kind: ErrorKind,
    /// Stable, for programs: a refusal's own, `insufficient_funds`, or as the HTTP interface has it, `throttled`.
    pub code: String,
    /// For people.
    pub message: String,
    /// More for programs.
    pub details: Option<Json>,
    /// When it is worth trying again, if it is.
    pub retry_after: Option<Duration>,
}

impl Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.code)
    }
}

impl std::error::Error for Error {}
