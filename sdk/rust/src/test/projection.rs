//! Events in, rows out.

use super::diff;
use crate::projection;
use crate::{Event, Failure, Id, Projection, Rows, Timestamp, tagged};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Applies events to empty models. An event is a stream and what happened, or a [`TestEvent`]; positions count from 1,
/// revisions in each stream from 0.
///
/// ```
/// use ebbtide::prelude::*;
/// use ebbtide::test::project;
/// use serde_json::json;
///
/// #[derive(Serialize, Deserialize)]
/// enum Happened { Deposited { amount: i64 } }
///
/// struct Balances;
///
/// impl Projection for Balances {
///     fn apply(event: &Event, rows: &mut Rows) -> Result<(), Failure> {
///         let Happened::Deposited { amount } = event.decode()?;
///         rows.add("balances", event.key(), "balance", amount);
///         Ok(())
///     }
/// }
///
/// project::<Balances>([
///     ("account-1", Happened::Deposited { amount: 20 }),
///     ("account-2", Happened::Deposited { amount: 5 }),
///     ("account-1", Happened::Deposited { amount: 10 }),
/// ])
/// .then_rows("balances", json!({ "1": { "balance": 30 }, "2": { "balance": 5 } }));
/// ```
#[must_use = "look at its rows"]
pub fn project<P: Projection>(events: impl IntoIterator<Item = impl Into<TestEvent>>) -> Projected {
    let mut revisions = BTreeMap::<String, u64>::new();
    let events = events.into_iter().zip(1..).map(|(event, position)| {
        let event = event.into().0;
        let next = revisions.entry(event.stream.clone()).or_default();
        let revision = *next;
        *next += 1;
        Event { revision, position, id: Id::from_u128(position.into()), ..event }
    });
    let mut rows = Rows::default();
    let failure = projection::apply::<P>(events, &mut rows).err();
    Projected { rows, failure }
}

/// An event to project.
#[derive(Clone, Debug)]
pub struct TestEvent(Event);

impl TestEvent {
    /// What happened in this stream, `category-key`.
    ///
    /// # Panics
    /// `event` is not an enum with serde's default representation.
    #[track_caller]
    #[must_use]
    pub fn new(stream: impl Into<String>, event: &impl Serialize) -> Self {
        let (event_type, data) = match tagged::to_parts(event) {
            Ok(parts) => parts,
            Err(error) => panic!("the event could not be written as JSON: {error}"),
        };
        Self(Self::written(stream.into(), event_type, data))
    }

    pub(super) fn written(stream: String, event_type: &str, data: Vec<u8>) -> Event {
        Event {
            id: Id::default(),
            stream,
            event_type: event_type.to_owned(),
            schema_version: 1,
            revision: 0,
            position: 0,
            data,
            content_type: "application/json".to_owned(),
            recorded_at: Timestamp::from_micros(1_000_000_000_000_000),
            command_id: Id::default(),
            correlation_id: "test".to_owned(),
            causation_id: None,
            actor: "anonymous".to_owned(),
        }
    }

    /// As it was recorded, with this type, schema version and data: to test what becomes of old events.
    #[must_use]
    #[expect(clippy::needless_pass_by_value, reason = "reads best with json!")]
    pub fn recorded(stream: impl Into<String>, event_type: &str, schema_version: u32, data: Value) -> Self {
        let event = Self::written(stream.into(), event_type, data.to_string().into_bytes());
        Self(Event { schema_version, ..event })
    }

    pub(super) fn into_event(self) -> Event {
        self.0
    }

    /// Recorded at this time.
    #[must_use]
    pub fn at(mut self, time: Timestamp) -> Self {
        self.0.recorded_at = time;
        self
    }

    /// Caused by this actor's command.
    #[must_use]
    pub fn actor(mut self, actor: impl Into<String>) -> Self {
        self.0.actor = actor.into();
        self
    }
}

impl<S: Into<String>, E: Serialize> From<(S, E)> for TestEvent {
    #[track_caller]
    fn from((stream, event): (S, E)) -> Self {
        Self::new(stream, &event)
    }
}

/// What a projection made of its events.
#[derive(Debug)]
pub struct Projected {
    rows: Rows,
    failure: Option<(u32, Failure)>,
}

impl Projected {
    /// The rows of a model by key, as JSON objects of the columns that are not null. The key column is not among them
    /// unless the projection wrote it: on the platform the platform does.
    ///
    /// # Panics
    /// An event failed.
    #[track_caller]
    #[must_use]
    pub fn rows(&self, model: &str) -> Map<String, Value> {
        self.expect_success();
        let rows = self.rows.backend.models.get(model).into_iter().flatten();
        rows.map(|(key, row)| {
            let columns =
                row.iter().filter_map(|(name, value)| Some((name.clone(), value.clone().into_json()?)));
            (key.clone(), Value::Object(columns.collect()))
        })
        .collect()
    }

    /// One row, or none.
    ///
    /// # Panics
    /// An event failed, or the row does not fit `T`.
    #[track_caller]
    #[must_use]
    pub fn row<T: DeserializeOwned>(&self, model: &str, key: &str) -> Option<T> {
        self.expect_success();
        match self.rows.get(model, key) {
            Ok(row) => row,
            Err(failure) => panic!("{failure}"),
        }
    }

    /// The model has these rows, by key, and no others.
    ///
    /// # Panics
    /// It has others, or an event failed.
    #[track_caller]
    #[expect(clippy::needless_pass_by_value, reason = "reads best with json!")]
    pub fn then_rows(self, model: &str, rows: Value) -> Self {
        let actual = Value::Object(self.rows(model));
        diff::assert_same(
            &format!("the rows of model `{model}`"),
            &diff::lines(&rows),
            &diff::lines(&actual),
        );
        self
    }

    /// The event with this index, from 0, could not be applied. What comes back is why.
    ///
    /// # Panics
    /// Another failed, or none.
    #[track_caller]
    pub fn then_failed(self, index: u32) -> Failure {
        match self.failure {
            Some((failed, failure)) if failed == index => failure,
            Some((failed, failure)) => panic!("event {failed} failed instead of {index}: {failure}"),
            None => panic!("event {index} was applied instead of failing"),
        }
    }

    #[track_caller]
    fn expect_success(&self) {
        if let Some((index, failure)) = &self.failure {
            panic!("event {index} could not be applied: {failure}");
        }
    }
}
