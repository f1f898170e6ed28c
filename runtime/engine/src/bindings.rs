//! The types of `wit/functions.wit` as wasmtime lowers and lifts them. What goes into a guest is borrowed, so that a
//! batch of events is copied once: into the guest's memory.

pub(crate) mod own_app;

use crate::host::output::Level;
use ebb_domain::event::StoredEvent;
use ebb_domain::model::Value;
use ebb_domain::name::ColumnName;
use ebb_domain::port::guest::{DecidedEvent, GuestCommand, PastEvent};
use ebb_domain::text::Text;
use wasmtime::component::{ComponentType, Lift, Lower};

/// `aggregates.past-event`.
#[derive(ComponentType, Lower)]
#[component(record)]
pub(crate) struct PastEventIn<'a> {
    #[component(name = "event-type")]
    event_type: &'a str,
    #[component(name = "schema-version")]
    schema_version: u32,
    revision: u64,
    data: &'a [u8],
}

impl<'a> From<&'a PastEvent> for PastEventIn<'a> {
    fn from(event: &'a PastEvent) -> Self {
        Self {
            event_type: &event.event_type,
            schema_version: event.schema_version,
            revision: event.revision.0,
            data: &event.data,
        }
    }
}

/// `aggregates.command`.
#[derive(ComponentType, Lower)]
#[component(record)]
pub(crate) struct CommandIn<'a> {
    id: (u64, u64),
    name: &'a str,
    data: &'a [u8],
    actor: &'a str,
    pub(crate) time: u64,
    #[component(name = "correlation-id")]
    correlation_id: &'a str,
}

impl<'a> From<&'a GuestCommand> for CommandIn<'a> {
    fn from(command: &'a GuestCommand) -> Self {
        Self {
            id: command.id.0.as_u64_pair(),
            name: &command.name,
            data: &command.data,
            actor: &command.actor,
            time: command.time.0,
            correlation_id: &command.correlation_id,
        }
    }
}

/// `aggregates.new-event`.
#[derive(ComponentType, Lift)]
#[component(record)]
pub(crate) struct NewEventOut {
    #[component(name = "event-type")]
    pub(crate) event_type: String,
    pub(crate) data: Vec<u8>,
}

impl From<NewEventOut> for DecidedEvent {
    fn from(event: NewEventOut) -> Self {
        Self { event_type: event.event_type.into(), data: event.data.into() }
    }
}

/// `aggregates.refusal`.
#[derive(ComponentType, Lift)]
#[component(record)]
pub(crate) struct RefusalOut {
    pub(crate) code: String,
    pub(crate) message: String,
    pub(crate) details: Option<Vec<u8>>,
}

/// `projections.event`.
#[derive(ComponentType, Lower)]
#[component(record)]
pub(crate) struct EventIn<'a> {
    id: (u64, u64),
    stream: &'a str,
    #[component(name = "event-type")]
    event_type: &'a str,
    #[component(name = "schema-version")]
    schema_version: u32,
    revision: u64,
    position: u64,
    data: &'a [u8],
    #[component(name = "content-type")]
    content_type: &'a str,
    #[component(name = "recorded-at")]
    recorded_at: u64,
    #[component(name = "command-id")]
    command_id: (u64, u64),
    #[component(name = "correlation-id")]
    correlation_id: &'a str,
    #[component(name = "causation-id")]
    causation_id: Option<&'a str>,
    actor: &'a str,
}

impl<'a> From<&'a StoredEvent> for EventIn<'a> {
    fn from(event: &'a StoredEvent) -> Self {
        let commit = &event.commit;
        Self {
            id: event.id().0.as_u64_pair(),
            stream: commit.stream.as_str(),
            event_type: &event.event_type,
            schema_version: event.schema_version,
            revision: event.revision.0,
            position: event.position.0,
            data: &event.data,
            content_type: &event.content_type,
            recorded_at: commit.recorded_at.0,
            command_id: commit.command_id.0.as_u64_pair(),
            correlation_id: &commit.correlation_id,
            causation_id: commit.causation_id.as_deref(),
            actor: &commit.actor,
        }
    }
}

/// `projections.failure`.
#[derive(ComponentType, Lift)]
#[component(record)]
pub(crate) struct FailureOut {
    pub(crate) index: u32,
    pub(crate) message: String,
}

/// `log.level`.
#[derive(Clone, Copy, ComponentType, Lift)]
#[component(enum)]
#[repr(u8)]
#[expect(dead_code, reason = "values are lifted by their discriminant, never written in Rust")]
pub(crate) enum GuestLevel {
    #[component(name = "trace")]
    Trace,
    #[component(name = "debug")]
    Debug,
    #[component(name = "info")]
    Info,
    #[component(name = "warn")]
    Warn,
    #[component(name = "error")]
    Error,
}

impl From<GuestLevel> for Level {
    fn from(level: GuestLevel) -> Self {
        match level {
            GuestLevel::Trace => Self::Trace,
            GuestLevel::Debug => Self::Debug,
            GuestLevel::Info => Self::Info,
            GuestLevel::Warn => Self::Warn,
            GuestLevel::Error => Self::Error,
        }
    }
}

/// `rows.value`.
#[derive(ComponentType, Lift, Lower)]
#[component(variant)]
pub(crate) enum GuestValue {
    #[component(name = "null")]
    Null,
    #[component(name = "text")]
    Text(String),
    #[component(name = "integer")]
    Integer(i64),
    #[component(name = "real")]
    Real(f64),
    #[component(name = "boolean")]
    Boolean(bool),
    #[component(name = "json")]
    Json(String),
}

impl From<GuestValue> for Value {
    fn from(value: GuestValue) -> Self {
        match value {
            GuestValue::Null => Self::Null,
            GuestValue::Text(text) => Self::Text(text.into()),
            GuestValue::Integer(integer) => Self::Integer(integer),
            GuestValue::Real(real) => Self::Real(real),
            GuestValue::Boolean(truth) => Self::Boolean(truth),
            GuestValue::Json(json) => Self::Json(json.into()),
        }
    }
}

impl From<Value> for GuestValue {
    fn from(value: Value) -> Self {
        let owned = |text: Text| text.as_str().to_owned();
        match value {
            Value::Null => Self::Null,
            Value::Text(text) => Self::Text(owned(text)),
            Value::Integer(integer) => Self::Integer(integer),
            Value::Real(real) => Self::Real(real),
            Value::Boolean(truth) => Self::Boolean(truth),
            Value::Json(json) => Self::Json(owned(json)),
        }
    }
}

/// `rows.column`.
#[derive(ComponentType, Lift, Lower)]
#[component(record)]
pub(crate) struct Column {
    pub(crate) name: String,
    pub(crate) value: GuestValue,
}

impl From<(ColumnName, Value)> for Column {
    fn from((name, value): (ColumnName, Value)) -> Self {
        Self { name: name.text().as_str().to_owned(), value: value.into() }
    }
}
