//! Between the bindings and the traits: the only place where the platform's types meet the author's. WebAssembly only.

use crate::aggregate::{self, Aggregate, Context, Recorded};
use crate::bindings::command as command_world;
use crate::bindings::projection as projection_world;
use crate::bindings::projection::ebbtide::functions::rows;
use crate::log::Level;
use crate::projection::{self, Event, Projection};
use crate::rows::{Rows, Value};
use crate::{Id, Timestamp};
use command_world::exports::ebbtide::functions::aggregates as exported_aggregates;
use projection_world::exports::ebbtide::functions::projections as exported_projections;
use std::cell::RefCell;
use std::marker::PhantomData;

/// Either world's `log` is the same import; the command world's is used for both.
pub(crate) fn log(level: Level, message: &str) {
    use command_world::ebbtide::functions::log;
    let level = match level {
        Level::Trace => log::Level::Trace,
        Level::Debug => log::Level::Debug,
        Level::Info => log::Level::Info,
        Level::Warn => log::Level::Warn,
        Level::Error => log::Level::Error,
    };
    log::write(level, message);
}

/// Exports an [`Aggregate`].
#[derive(Debug)]
pub struct AggregateModule<A>(PhantomData<A>);

impl<A: Aggregate> exported_aggregates::Guest for AggregateModule<A> {
    type Aggregate = Hosted<A>;
}

/// One aggregate of an instance.
#[derive(Debug)]
pub struct Hosted<A> {
    key: String,
    // Calls into an instance never overlap; the component model hands out shared references all the same.
    state: RefCell<A>,
}

impl<A: Aggregate> exported_aggregates::GuestAggregate for Hosted<A> {
    fn new(key: String) -> Self {
        Self { key, state: RefCell::default() }
    }

    fn restore(key: String, snapshot: Vec<u8>) -> Result<exported_aggregates::Aggregate, String> {
        let state: A = serde_json::from_slice(&snapshot).map_err(|error| error.to_string())?;
        Ok(exported_aggregates::Aggregate::new(Self { key, state: RefCell::new(state) }))
    }

    fn apply(&self, events: Vec<exported_aggregates::PastEvent>) {
        let mut state = self.state.borrow_mut();
        for event in &events {
            let recorded = Recorded::new(&event.event_type, event.schema_version, &event.data);
            aggregate::apply(&mut *state, recorded, event.revision);
        }
    }

    fn decide(
        &self,
        command: exported_aggregates::Command,
    ) -> Result<Vec<exported_aggregates::NewEvent>, exported_aggregates::Refusal> {
        let context = Context {
            key: self.key.clone(),
            actor: command.actor,
            time: Timestamp::from_micros(command.time),
            command_id: Id::from_halves(command.id),
            correlation_id: command.correlation_id,
        };
        match aggregate::decide(&*self.state.borrow(), &command.name, &command.data, &context) {
            Ok(events) => Ok(events
                .into_iter()
                .map(|(event_type, data)| exported_aggregates::NewEvent {
                    event_type: event_type.to_owned(),
                    data,
                })
                .collect()),
            Err(refusal) => Err(exported_aggregates::Refusal {
                code: refusal.code().to_owned(),
                message: refusal.message().to_owned(),
                details: refusal.details().map(|details| details.to_string().into_bytes()),
            }),
        }
    }

    fn snapshot(&self) -> Option<Vec<u8>> {
        if !A::SNAPSHOTS {
            return None;
        }
        // A snapshot saves work and nothing hangs on it, so state that can't be written is folded again instead.
        serde_json::to_vec(&*self.state.borrow())
            .inspect_err(|error| {
                crate::log::warn!("no snapshot of `{}`: its state can't be JSON: {error}", self.key);
            })
            .ok()
    }
}

/// Exports a [`Projection`].
#[derive(Debug)]
pub struct ProjectionModule<P>(PhantomData<P>);

impl<P: Projection> exported_projections::Guest for ProjectionModule<P> {
    fn apply(events: Vec<exported_projections::Event>) -> Result<(), exported_projections::Failure> {
        let events = events.into_iter().map(|event| Event {
            id: Id::from_halves(event.id),
            stream: event.stream,
            event_type: event.event_type,
            schema_version: event.schema_version,
            revision: event.revision,
            position: event.position,
            data: event.data,
            content_type: event.content_type,
            recorded_at: Timestamp::from_micros(event.recorded_at),
            command_id: Id::from_halves(event.command_id),
            correlation_id: event.correlation_id,
            causation_id: event.causation_id,
            actor: event.actor,
        });
        projection::apply::<P>(events, &mut Rows::default()).map_err(|(index, failure)| {
            exported_projections::Failure { index, message: failure.message().to_owned() }
        })
    }
}

/// Rows kept by the host.
#[derive(Debug, Default)]
pub(crate) struct Backend;

impl Backend {
    pub(crate) fn get(&self, model: &str, key: &str) -> Option<Vec<(String, Value)>> {
        let columns = rows::get(model, key)?;
        Some(columns.into_iter().map(|column| (column.name, column.value.into())).collect())
    }

    pub(crate) fn put(&self, model: &str, key: &str, columns: Vec<(String, Value)>) {
        let columns: Vec<_> =
            columns.into_iter().map(|(name, value)| rows::Column { name, value: value.into() }).collect();
        rows::put(model, key, &columns);
    }

    pub(crate) fn delete(&self, model: &str, key: &str) {
        rows::delete(model, key);
    }

    pub(crate) fn add(&self, model: &str, key: &str, column: &str, delta: i64) {
        rows::add(model, key, column, delta);
    }
}

impl From<rows::Value> for Value {
    fn from(value: rows::Value) -> Self {
        match value {
            rows::Value::Null => Self::Null,
            rows::Value::Text(text) => Self::Text(text),
            rows::Value::Integer(number) => Self::Integer(number),
            rows::Value::Real(number) => Self::Real(number),
            rows::Value::Boolean(truth) => Self::Boolean(truth),
            rows::Value::Json(document) => Self::Json(document),
        }
    }
}

impl From<Value> for rows::Value {
    fn from(value: Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Text(text) => Self::Text(text),
            Value::Integer(number) => Self::Integer(number),
            Value::Real(number) => Self::Real(number),
            Value::Boolean(truth) => Self::Boolean(truth),
            Value::Json(document) => Self::Json(document),
        }
    }
}
