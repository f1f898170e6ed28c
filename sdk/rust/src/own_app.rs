//! Between the bindings of `commands` and `models` and what authors see. WebAssembly only.

use crate::Id;
use crate::bindings::capabilities::ebbtide::functions::{commands as host_commands, models as host_models};
use crate::commands::{Accepted, Command, Error, ErrorKind, Event, Precondition};
use crate::models::{self, Columns, Comparison, Query};
use crate::rows::Value;
use std::time::Duration;

pub(crate) fn send(command: Command) -> Result<Accepted, Error> {
    let sent = host_commands::Command {
        aggregate: command.aggregate,
        key: command.key,
        name: command.name,
        data: command.data,
        idempotency_key: command.idempotency_key,
        precondition: command.precondition.map(|precondition| match precondition {
            Precondition::Revision(revision) => host_commands::Precondition::Revision(revision),
            Precondition::Exists => host_commands::Precondition::Exists,
            Precondition::Absent => host_commands::Precondition::Absent,
        }),
    };
    match host_commands::send(&sent) {
        Ok(accepted) => Ok(Accepted {
            command_id: Id::from_halves(accepted.command_id),
            stream: accepted.stream,
            revision: accepted.revision,
            position: accepted.position,
            events: accepted.events.into_iter().map(event).collect(),
            replayed: accepted.replayed,
        }),
        Err(error) => Err(Error {
            kind: match error.kind {
                host_commands::ErrorKind::Refused => ErrorKind::Refused,
                host_commands::ErrorKind::Conflict => ErrorKind::Conflict,
                host_commands::ErrorKind::Invalid => ErrorKind::Invalid,
                host_commands::ErrorKind::Denied => ErrorKind::Denied,
                host_commands::ErrorKind::Busy => ErrorKind::Busy,
                host_commands::ErrorKind::Unknown => ErrorKind::Unknown,
                host_commands::ErrorKind::Failed => ErrorKind::Failed,
            },
            code: error.code,
            message: error.message,
            details: error.details.and_then(|details| serde_json::from_slice(&details).ok()),
            retry_after: error.retry_after_ms.map(millis),
        }),
    }
}

fn event(event: host_commands::Event) -> Event {
    Event {
        id: Id::from_halves(event.id),
        event_type: event.event_type,
        revision: event.revision,
        position: event.position,
        data: event.data,
    }
}

pub(crate) fn get(model: &str, key: &str, at_least: Option<u64>) -> Result<Option<Columns>, models::Error> {
    match host_models::get(model, key, at_least) {
        Ok(found) => Ok(found.row.map(columns)),
        Err(error) => Err(unreadable(error)),
    }
}

type Found = (Vec<Columns>, u64, Option<Vec<Value>>);

pub(crate) fn find(query: Query) -> Result<Found, models::Error> {
    let condition = |(column, comparison, value): (String, Comparison, Value)| host_models::Condition {
        column,
        comparison: match comparison {
            Comparison::Eq => host_models::Comparison::Eq,
            Comparison::Ne => host_models::Comparison::Ne,
            Comparison::Gt => host_models::Comparison::Gt,
            Comparison::Gte => host_models::Comparison::Gte,
            Comparison::Lt => host_models::Comparison::Lt,
            Comparison::Lte => host_models::Comparison::Lte,
        },
        value: value.into(),
    };
    let order = |(column, descending): (String, bool)| host_models::Order { column, descending };
    let asked = host_models::Query {
        model: query.model,
        conditions: query.conditions.into_iter().map(condition).collect(),
        order: query.order.into_iter().map(order).collect(),
        limit: query.limit,
        after: query.after.map(|place| place.into_iter().map(Into::into).collect()),
    };
    match host_models::find(&asked, query.at_least) {
        Ok(page) => {
            let next = page.next.map(|place| place.into_iter().map(Into::into).collect());
            Ok((page.rows.into_iter().map(columns).collect(), page.position, next))
        }
        Err(error) => Err(unreadable(error)),
    }
}

fn columns(row: Vec<host_models::Column>) -> Columns {
    row.into_iter().map(|column| (column.name, column.value.into())).collect()
}

fn unreadable(error: host_models::Error) -> models::Error {
    models::Error {
        kind: match error.kind {
            host_models::ErrorKind::Invalid => models::ErrorKind::Invalid,
            host_models::ErrorKind::Denied => models::ErrorKind::Denied,
            host_models::ErrorKind::Busy => models::ErrorKind::Busy,
            host_models::ErrorKind::Failed => models::ErrorKind::Failed,
        },
        code: error.code,
        message: error.message,
        retry_after: error.retry_after_ms.map(millis),
    }
}

fn millis(delay: u32) -> Duration {
    Duration::from_millis(delay.into())
}

impl From<host_models::Value> for Value {
    fn from(value: host_models::Value) -> Self {
        match value {
            host_models::Value::Null => Self::Null,
            host_models::Value::Text(text) => Self::Text(text),
            host_models::Value::Integer(number) => Self::Integer(number),
            host_models::Value::Real(number) => Self::Real(number),
            host_models::Value::Boolean(truth) => Self::Boolean(truth),
            host_models::Value::Json(document) => Self::Json(document),
        }
    }
}

impl From<Value> for host_models::Value {
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
