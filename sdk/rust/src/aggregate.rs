//! Aggregates: state folded from events, and the decisions made on it.

use crate::tagged::{self, Names};
use crate::{Id, Refusal, Timestamp};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::borrow::Cow;

/// One kind of aggregate. The value itself is the state: [`Default`] before the first event, then folded by
/// [`apply`](Self::apply).
///
/// Both methods must be functions of what they are given, and nothing else: no clock but [`Context::time`], no random
/// numbers, no maps whose order differs from run to run (the [prelude](crate::prelude) has ordered ones). The platform
/// relies on it: it folds events again after a restart, and can decide recorded commands again to show what a change
/// would have done.
///
/// ```
/// use ebbtide::prelude::*;
///
/// #[derive(Default, Serialize, Deserialize)]
/// struct Counter { count: u64 }
///
/// #[derive(Serialize, Deserialize)]
/// enum Command { Increment { by: u64 } }
///
/// #[derive(Serialize, Deserialize)]
/// enum Event { Incremented { by: u64 } }
///
/// impl Aggregate for Counter {
///     type Command = Command;
///     type Event = Event;
///     type Refusal = Refusal;
///
///     fn decide(&self, command: Command, _: &Context) -> Result<Vec<Event>, Refusal> {
///         let Command::Increment { by } = command;
///         if self.count.checked_add(by).is_none() {
///             return Err(Refusal::new("counter_full", "the counter can't count that far"));
///         }
///         Ok(vec![Event::Incremented { by }])
///     }
///
///     fn apply(&mut self, event: Event) {
///         let Event::Incremented { by } = event;
///         self.count += by;
///     }
/// }
///
/// ebbtide::export_aggregate!(Counter);
/// ```
///
/// The state is serde data, because snapshots are made of it (in JSON: the keys of its maps must be text or numbers).
pub trait Aggregate: Default + Serialize + DeserializeOwned + 'static {
    /// What it can be asked: an enum. The variant `CloseAccount { reason }` is the command `close-account` (or
    /// `close_account`) with the body `{"reason": …}`; a variant without fields needs no body.
    type Command: DeserializeOwned;

    /// What can happen to it: an enum. The variant `Deposited { amount }` is the event type `Deposited` with the data
    /// `{"amount": …}`.
    type Event: Serialize + DeserializeOwned;

    /// How it says no: [`Refusal`], or an enum of your own that becomes one.
    type Refusal: Into<Refusal>;

    /// Whether there are snapshots of the state. The platform keeps one every `snapshot-every` events, so streams that stay
    /// shorter cost nothing; and it shows the state as one, to whoever asks with `ebb state` or on the node's page. Say
    /// `false` where the state is not to be kept or shown.
    const SNAPSHOTS: bool = true;

    /// Decides what happens. Changes nothing: the events come back through [`apply`](Self::apply) once they are
    /// appended. No events at all is an answer too.
    ///
    /// # Errors
    /// The domain says no.
    fn decide(&self, command: Self::Command, context: &Context) -> Result<Vec<Self::Event>, Self::Refusal>;

    /// Folds one event into the state. It has happened: this can't fail.
    fn apply(&mut self, event: Self::Event);

    /// Brings an event up to date that was recorded under an older schema version, before it is parsed. Additions need
    /// none of this: `#[serde(default)]` and `#[serde(alias = "…")]` do.
    fn upcast(event: &mut Recorded<'_>) {
        let _ = event;
    }
}

/// What a decision may depend on beside state and command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    pub(crate) key: String,
    pub(crate) actor: String,
    pub(crate) time: Timestamp,
    pub(crate) command_id: Id,
    pub(crate) correlation_id: String,
}

impl Context {
    /// The aggregate's id: the stream's key, without the category.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Who sends the command: a token's subject, or `anonymous`.
    #[must_use]
    pub fn actor(&self) -> &str {
        &self.actor
    }

    /// When the platform received the command. The only clock there is.
    #[must_use]
    pub fn time(&self) -> Timestamp {
        self.time
    }

    /// The command's id. Unique, and the same when the command is decided again: make ids of your own from it.
    #[must_use]
    pub fn command_id(&self) -> Id {
        self.command_id
    }

    /// Ties together everything that one outside cause led to.
    #[must_use]
    pub fn correlation_id(&self) -> &str {
        &self.correlation_id
    }
}

/// An event as it was recorded, before it is parsed: for [`Aggregate::upcast`] and
/// [`Event::decode_with`](crate::Event::decode_with).
///
/// ```
/// use ebbtide::Recorded;
///
/// // Version 1 counted whole dollars.
/// fn upcast(event: &mut Recorded<'_>) {
///     if event.event_type() == "Deposited" && event.schema_version() == 1 {
///         event.edit(|data| data["amount"] = (data["amount"].as_u64().unwrap_or(0) * 100).into());
///     }
/// }
///
/// let mut event = Recorded::new("Deposited", 1, br#"{"amount":3}"#);
/// upcast(&mut event);
/// assert_eq!(event.data(), br#"{"amount":300}"#);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded<'a> {
    event_type: Cow<'a, str>,
    schema_version: u32,
    data: Cow<'a, [u8]>,
}

impl<'a> Recorded<'a> {
    /// An event of this type, recorded when the manifest had this version of it.
    #[must_use]
    pub fn new(event_type: &'a str, schema_version: u32, data: &'a [u8]) -> Self {
        Self { event_type: event_type.into(), schema_version, data: data.into() }
    }

    /// Its type: the name of the variant it becomes.
    #[must_use]
    pub fn event_type(&self) -> &str {
        &self.event_type
    }

    /// The manifest's version of its type when it was recorded.
    #[must_use]
    pub fn schema_version(&self) -> u32 {
        self.schema_version
    }

    /// Its data, JSON.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// Makes it an event of another type.
    pub fn rename(&mut self, event_type: impl Into<String>) {
        self.event_type = event_type.into().into();
    }

    /// Changes its data.
    ///
    /// # Panics
    /// The data is not JSON: it was not written by this SDK.
    pub fn edit(&mut self, change: impl FnOnce(&mut Value)) {
        let mut data = match serde_json::from_slice(&self.data) {
            Ok(data) => data,
            Err(error) => panic!("the data of a recorded `{}` is not JSON: {error}", self.event_type),
        };
        change(&mut data);
        self.data = data.to_string().into_bytes().into();
    }

    pub(crate) fn decode<E: DeserializeOwned>(&self) -> Result<E, serde_json::Error> {
        tagged::from_parts(&self.event_type, &self.data, Names::Exact)
    }
}

/// Decides a command as it comes from the platform, for the platform: names and bytes.
pub(crate) fn decide<A: Aggregate>(
    state: &A,
    name: &str,
    body: &[u8],
    context: &Context,
) -> Result<Vec<(&'static str, Vec<u8>)>, Refusal> {
    // What does not parse is the caller's mistake, not ours.
    let command = tagged::from_parts(name, body, Names::Loose)
        .map_err(|error| Refusal::new("invalid_command", format!("`{name}`: {error}")))?;
    let events = state.decide(command, context).map_err(Into::into)?;
    Ok(events.iter().map(written::<A>).collect())
}

/// An event as the platform keeps it.
pub(crate) fn written<A: Aggregate>(event: &A::Event) -> (&'static str, Vec<u8>) {
    match tagged::to_parts(event) {
        Ok(parts) => parts,
        Err(error) => panic!("a decided event could not be written as JSON: {error}"),
    }
}

/// Folds an event as it comes from the platform. One that does not parse would leave a wrong state behind, and decisions
/// made on it, so it stops the module instead.
pub(crate) fn apply<A: Aggregate>(state: &mut A, mut event: Recorded<'_>, revision: u64) {
    A::upcast(&mut event);
    match event.decode() {
        Ok(event) => state.apply(event),
        Err(error) => panic!(
            "the event `{}` (schema version {}) at revision {revision} could not be read: {error}; \
             give new fields a #[serde(default)], or bring old versions up to date in `upcast`",
            event.event_type, event.schema_version
        ),
    }
}
