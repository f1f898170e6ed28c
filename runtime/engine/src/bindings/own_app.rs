//! The types of the interfaces `commands` and `models`.

use super::{Column, GuestValue};
use ebb_domain::commit::Precondition;
use ebb_domain::event::{Position, Revision};
use ebb_domain::model::{AskedQuery, Comparison, Row};
use ebb_domain::port::own_app::{
    Accepted, AcceptedEvent, Found, FoundPage, NotDone, NotDoneKind, OwnCommand,
};
use ebb_domain::text::Text;
use std::time::Duration;
use wasmtime::component::{ComponentType, Lift, Lower};

/// `commands.precondition`.
#[derive(ComponentType, Lift)]
#[component(variant)]
pub(crate) enum PreconditionIn {
    #[component(name = "revision")]
    Revision(u64),
    #[component(name = "exists")]
    Exists,
    #[component(name = "absent")]
    Absent,
}

/// `commands.command`.
#[derive(ComponentType, Lift)]
#[component(record)]
pub(crate) struct CommandSent {
    pub(crate) aggregate: String,
    key: String,
    name: String,
    data: Vec<u8>,
    #[component(name = "idempotency-key")]
    idempotency_key: Option<String>,
    precondition: Option<PreconditionIn>,
}

impl From<CommandSent> for OwnCommand {
    fn from(command: CommandSent) -> Self {
        Self {
            aggregate: command.aggregate,
            key: command.key,
            name: command.name,
            data: command.data.into(),
            idempotency_key: command.idempotency_key,
            precondition: command.precondition.map(|precondition| match precondition {
                PreconditionIn::Revision(revision) => Precondition::Revision(Revision(revision)),
                PreconditionIn::Exists => Precondition::Exists,
                PreconditionIn::Absent => Precondition::Absent,
            }),
            trace: None,
        }
    }
}

/// `commands.event`.
#[derive(ComponentType, Lower)]
#[component(record)]
pub(crate) struct EventOut {
    id: (u64, u64),
    #[component(name = "event-type")]
    event_type: String,
    revision: u64,
    position: u64,
    data: Vec<u8>,
}

impl From<AcceptedEvent> for EventOut {
    fn from(event: AcceptedEvent) -> Self {
        Self {
            id: event.id.0.as_u64_pair(),
            event_type: owned(&event.event_type),
            revision: event.revision.0,
            position: event.position.0,
            data: event.data.into(),
        }
    }
}

/// `commands.accepted`.
#[derive(ComponentType, Lower)]
#[component(record)]
pub(crate) struct AcceptedOut {
    #[component(name = "command-id")]
    command_id: (u64, u64),
    stream: String,
    revision: Option<u64>,
    position: Option<u64>,
    events: Vec<EventOut>,
    replayed: bool,
}

impl From<Accepted> for AcceptedOut {
    fn from(accepted: Accepted) -> Self {
        Self {
            command_id: accepted.command_id.0.as_u64_pair(),
            stream: owned(&accepted.stream),
            revision: accepted.revision.map(|revision| revision.0),
            position: accepted.position.map(|position| position.0),
            events: accepted.events.into_iter().map(EventOut::from).collect(),
            replayed: accepted.replayed,
        }
    }
}

/// `commands.error-kind`.
#[derive(Clone, Copy, ComponentType, Lower)]
#[component(enum)]
#[repr(u8)]
pub(crate) enum CommandErrorKind {
    #[component(name = "refused")]
    Refused,
    #[component(name = "conflict")]
    Conflict,
    #[component(name = "invalid")]
    Invalid,
    #[component(name = "denied")]
    Denied,
    #[component(name = "busy")]
    Busy,
    #[component(name = "unknown")]
    Unknown,
    #[component(name = "failed")]
    Failed,
}

/// `commands.error`.
#[derive(ComponentType, Lower)]
#[component(record)]
pub(crate) struct CommandError {
    kind: CommandErrorKind,
    code: String,
    message: String,
    details: Option<Vec<u8>>,
    #[component(name = "retry-after-ms")]
    retry_after_ms: Option<u32>,
}

impl From<NotDone> for CommandError {
    fn from(error: NotDone) -> Self {
        Self {
            kind: match error.kind {
                NotDoneKind::Refused => CommandErrorKind::Refused,
                NotDoneKind::Conflict => CommandErrorKind::Conflict,
                NotDoneKind::Invalid => CommandErrorKind::Invalid,
                NotDoneKind::Denied => CommandErrorKind::Denied,
                NotDoneKind::Busy => CommandErrorKind::Busy,
                NotDoneKind::Unknown => CommandErrorKind::Unknown,
                NotDoneKind::Failed => CommandErrorKind::Failed,
            },
            code: owned(&error.code),
            message: error.message,
            details: error.details.map(Vec::from),
            retry_after_ms: error.retry_after.map(millis),
        }
    }
}

/// `models.comparison`.
#[derive(Clone, Copy, ComponentType, Lift)]
#[component(enum)]
#[repr(u8)]
#[expect(dead_code, reason = "values are lifted by their discriminant, never written in Rust")]
pub(crate) enum ComparisonIn {
    #[component(name = "eq")]
    Eq,
    #[component(name = "ne")]
    Ne,
    #[component(name = "gt")]
    Gt,
    #[component(name = "gte")]
    Gte,
    #[component(name = "lt")]
    Lt,
    #[component(name = "lte")]
    Lte,
}

impl From<ComparisonIn> for Comparison {
    fn from(comparison: ComparisonIn) -> Self {
        match comparison {
            ComparisonIn::Eq => Self::Eq,
            ComparisonIn::Ne => Self::Ne,
            ComparisonIn::Gt => Self::Gt,
            ComparisonIn::Gte => Self::Gte,
            ComparisonIn::Lt => Self::Lt,
            ComparisonIn::Lte => Self::Lte,
        }
    }
}

/// `models.condition`.
#[derive(ComponentType, Lift)]
#[component(record)]
pub(crate) struct ConditionIn {
    column: String,
    comparison: ComparisonIn,
    value: GuestValue,
}

/// `models.order`.
#[derive(ComponentType, Lift)]
#[component(record)]
pub(crate) struct OrderIn {
    column: String,
    descending: bool,
}

/// `models.query`.
#[derive(ComponentType, Lift)]
#[component(record)]
pub(crate) struct QueryIn {
    pub(crate) model: String,
    conditions: Vec<ConditionIn>,
    order: Vec<OrderIn>,
    limit: Option<u32>,
    after: Option<Vec<GuestValue>>,
}

impl QueryIn {
    pub(crate) fn into_query(self) -> AskedQuery {
        let condition = |it: ConditionIn| (it.column, it.comparison.into(), it.value.into());
        AskedQuery {
            conditions: self.conditions.into_iter().map(condition).collect(),
            order: self.order.into_iter().map(|order| (order.column, order.descending)).collect(),
            limit: self.limit,
            after: self.after.map(|values| values.into_iter().map(Into::into).collect()),
        }
    }
}

/// `models.found`.
#[derive(ComponentType, Lower)]
#[component(record)]
pub(crate) struct FoundOut {
    row: Option<Vec<Column>>,
    position: u64,
}

impl From<Found> for FoundOut {
    fn from(found: Found) -> Self {
        Self { row: found.row.map(columns), position: found.position.0 }
    }
}

/// `models.page`.
#[derive(ComponentType, Lower)]
#[component(record)]
pub(crate) struct PageOut {
    rows: Vec<Vec<Column>>,
    position: u64,
    next: Option<Vec<GuestValue>>,
}

impl From<FoundPage> for PageOut {
    fn from(page: FoundPage) -> Self {
        let Position(position) = page.position;
        Self {
            rows: page.rows.into_iter().map(columns).collect(),
            position,
            next: page.next.map(|place| place.into_iter().map(Into::into).collect()),
        }
    }
}

/// `models.error-kind`.
#[derive(Clone, Copy, ComponentType, Lower)]
#[component(enum)]
#[repr(u8)]
pub(crate) enum ReadErrorKind {
    #[component(name = "invalid")]
    Invalid,
    #[component(name = "denied")]
    Denied,
    #[component(name = "busy")]
    Busy,
    #[component(name = "failed")]
    Failed,
}

/// `models.error`.
#[derive(ComponentType, Lower)]
#[component(record)]
pub(crate) struct ReadError {
    kind: ReadErrorKind,
    code: String,
    message: String,
    #[component(name = "retry-after-ms")]
    retry_after_ms: Option<u32>,
}

impl From<NotDone> for ReadError {
    fn from(error: NotDone) -> Self {
        Self {
            kind: match error.kind {
                NotDoneKind::Invalid => ReadErrorKind::Invalid,
                NotDoneKind::Denied => ReadErrorKind::Denied,
                NotDoneKind::Busy => ReadErrorKind::Busy,
                // A read has no other outcomes.
                NotDoneKind::Refused | NotDoneKind::Conflict | NotDoneKind::Unknown | NotDoneKind::Failed => {
                    ReadErrorKind::Failed
                }
            },
            code: owned(&error.code),
            message: error.message,
            retry_after_ms: error.retry_after.map(millis),
        }
    }
}

/// A row, without columns that are null: one never written and one that is null are the same.
fn columns(row: Row) -> Vec<Column> {
    row.into_iter().map(Column::from).filter(|column| !matches!(column.value, GuestValue::Null)).collect()
}

fn owned(text: &Text) -> String {
    text.as_str().to_owned()
}

fn millis(delay: Duration) -> u32 {
    u32::try_from(delay.as_millis()).unwrap_or(u32::MAX)
}
