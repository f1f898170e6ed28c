//! Projections: events in, rows of read models out.

use crate::aggregate::Recorded;
use crate::{Id, Rows, Timestamp};
use serde::de::DeserializeOwned;
use std::fmt::{self, Display};

/// Keeps read models. A projection has no state of its own: what it knows is in its rows, which commit together with how
/// far it has got, so that every event counts exactly once.
///
/// ```
/// use ebbtide::prelude::*;
///
/// #[derive(Deserialize)]
/// enum AccountEvent {
///     Opened { owner: String },
///     Deposited { amount: i64 },
///     /// Events that this projection has no use for.
///     #[serde(other)]
///     Other,
/// }
///
/// #[derive(Serialize)]
/// struct Balance { owner: String, balance: i64 }
///
/// struct Balances;
///
/// impl Projection for Balances {
///     fn apply(event: &Event, rows: &mut Rows) -> Result<(), Failure> {
///         match event.decode()? {
///             AccountEvent::Opened { owner } => rows.put("balances", event.key(), &Balance { owner, balance: 0 })?,
///             AccountEvent::Deposited { amount } => rows.add("balances", event.key(), "balance", amount),
///             AccountEvent::Other => {}
///         }
///         Ok(())
///     }
/// }
///
/// ebbtide::export_projection!(Balances);
/// ```
///
/// Like an [`Aggregate`](crate::Aggregate), it must be a function of the event and the rows it reads.
pub trait Projection: 'static {
    /// Applies one event.
    ///
    /// # Errors
    /// This event can't be applied. What earlier events wrote is kept; this one is tried again, and then its stream is
    /// parked, until someone deploys a module that can apply it or skips it.
    fn apply(event: &Event, rows: &mut Rows) -> Result<(), Failure>;
}

/// An event in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub(crate) id: Id,
    pub(crate) stream: String,
    pub(crate) event_type: String,
    pub(crate) schema_version: u32,
    pub(crate) revision: u64,
    pub(crate) position: u64,
    pub(crate) data: Vec<u8>,
    pub(crate) content_type: String,
    pub(crate) recorded_at: Timestamp,
    pub(crate) command_id: Id,
    pub(crate) correlation_id: String,
    pub(crate) causation_id: Option<String>,
    pub(crate) actor: String,
}

impl Event {
    /// The event as a variant of an enum like [`Aggregate::Event`](crate::Aggregate::Event): the aggregate's own, or one
    /// that names only what this projection needs, with a unit variant marked `#[serde(other)]` for the rest.
    ///
    /// # Errors
    /// No variant has its type, or its data does not fit.
    pub fn decode<E: DeserializeOwned>(&self) -> Result<E, Failure> {
        self.decode_with(|_| {})
    }

    /// [`decode`](Self::decode) after the aggregate's own `upcast`: `event.decode_with(Account::upcast)`.
    ///
    /// # Errors
    /// No variant has its type, or its data does not fit.
    pub fn decode_with<E: DeserializeOwned>(
        &self,
        upcast: impl FnOnce(&mut Recorded<'_>),
    ) -> Result<E, Failure> {
        let mut recorded = Recorded::new(&self.event_type, self.schema_version, &self.data);
        upcast(&mut recorded);
        recorded.decode().map_err(|error| {
            Failure::new(format_args!(
                "the event `{}` (schema version {}) of stream `{}` could not be read: {error}",
                self.event_type, self.schema_version, self.stream
            ))
        })
    }

    /// Its UUID: the same every time it is seen.
    #[must_use]
    pub fn id(&self) -> Id {
        self.id
    }

    /// Its stream, `category-key`.
    #[must_use]
    pub fn stream(&self) -> &str {
        &self.stream
    }

    /// The aggregate's name: what stands before the stream's first dash.
    #[must_use]
    pub fn category(&self) -> &str {
        self.stream.split_once('-').map_or(&*self.stream, |(category, _)| category)
    }

    /// The aggregate's id: what stands behind the stream's first dash.
    #[must_use]
    pub fn key(&self) -> &str {
        self.stream.split_once('-').map_or("", |(_, key)| key)
    }

    /// Its type, such as `Deposited`.
    #[must_use]
    pub fn event_type(&self) -> &str {
        &self.event_type
    }

    /// The manifest's version of its type when it was recorded.
    #[must_use]
    pub fn schema_version(&self) -> u32 {
        self.schema_version
    }

    /// Its place in its stream, from 0, without gaps.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Its place in the app's log, from 1, without gaps.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Its data as it was recorded; see [`decode`](Self::decode).
    #[must_use]
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// The media type of its data: `application/json` for what this SDK wrote.
    #[must_use]
    pub fn content_type(&self) -> &str {
        &self.content_type
    }

    /// When it was recorded. Never decreases along the log.
    #[must_use]
    pub fn recorded_at(&self) -> Timestamp {
        self.recorded_at
    }

    /// The command that it was decided on.
    #[must_use]
    pub fn command_id(&self) -> Id {
        self.command_id
    }

    /// Ties together everything that one outside cause led to.
    #[must_use]
    pub fn correlation_id(&self) -> &str {
        &self.correlation_id
    }

    /// What led to it, if it was not an outside caller.
    #[must_use]
    pub fn causation_id(&self) -> Option<&str> {
        self.causation_id.as_deref()
    }

    /// Who sent the command.
    #[must_use]
    pub fn actor(&self) -> &str {
        &self.actor
    }
}

/// Why an event can't be applied. Any error becomes one with `?`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    message: String,
}

impl Failure {
    /// A failure with a message for the operator who looks at the parked stream.
    #[must_use]
    pub fn new(message: impl Display) -> Self {
        Self { message: message.to_string() }
    }

    /// The message.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

// Not an `Error` itself, so that every error can become one.
impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::new(error)
    }
}

/// Applies events in order, up to the first that fails.
pub(crate) fn apply<P: Projection>(
    events: impl IntoIterator<Item = Event>,
    rows: &mut Rows,
) -> Result<(), (u32, Failure)> {
    for (index, event) in (0..).zip(events) {
        P::apply(&event, rows).map_err(|failure| (index, failure))?;
    }
    Ok(())
}
