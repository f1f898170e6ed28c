//! An app as its own functions reach it: the command path and the read models, in the name of whoever called.

use crate::app::App;
use crate::commands::{CommandError, CommandErrorKind, CommandReply, CommandRequest};
use crate::projections::{ModelReader, NotFresh};
use bytes::Bytes;
use ebb_domain::commit::{IdempotencyKey, Refusal};
use ebb_domain::event::Position;
use ebb_domain::limits::cap;
use ebb_domain::model::{AskedQuery, Row, Value};
use ebb_domain::name::ModelName;
use ebb_domain::port::Future;
use ebb_domain::port::guest::CallError;
use ebb_domain::port::models::ModelError;
use ebb_domain::port::own_app::{
    Accepted, AcceptedEvent, Found, FoundPage, NotDone, NotDoneKind, OwnApp, OwnCommand,
};
use ebb_domain::text::Text;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// How long a read waits for its position, as over HTTP where nobody says.
const WAIT: Duration = Duration::from_secs(2);
/// When to try again what the projection is not ready for.
const RETRY: Duration = Duration::from_secs(1);

/// A call of a function, as what it does should show it.
#[derive(Clone, Debug)]
pub struct Cause {
    /// Who called; for a function that nobody calls, the function.
    pub actor: Text,
    /// Ties everything that one outside cause led to.
    pub correlation_id: Text,
    /// The function, `function.transfer`, or the event that it was called with.
    pub causation_id: Text,
    /// Functions and topics between a command that it sends and what began its chain.
    pub hops: u16,
}

/// An app, for one call of one of its functions. A call doesn't keep its app alive: to one that is gone it can say
/// nothing any more.
pub struct CalledApp {
    app: Weak<App>,
    cause: Cause,
}

impl CalledApp {
    /// The app, for a call.
    #[must_use]
    pub fn new(app: Weak<App>, cause: Cause) -> Self {
        Self { app, cause }
    }

    fn app(&self) -> Result<Arc<App>, NotDone> {
        self.app.upgrade().ok_or_else(|| {
            let kind = CommandErrorKind::ShuttingDown;
            NotDone::new(worth(&kind), kind.code(), "the app is not served any more")
        })
    }

    async fn send_now(&self, command: OwnCommand) -> Result<Accepted, NotDone> {
        let OwnCommand { aggregate, key, name, data, idempotency_key, precondition, trace } = command;
        if data.len() > cap::BODY_BYTES {
            let message = format!("the data has {} bytes; {} is the most", data.len(), cap::BODY_BYTES);
            return Err(NotDone::new(NotDoneKind::Invalid, "body_too_large", message));
        }
        let idempotency = match idempotency_key {
            Some(text) if !IdempotencyKey::is_valid(text.as_bytes()) => {
                let message = "an idempotency key has 1 to 255 visible ASCII characters";
                return Err(NotDone::new(NotDoneKind::Invalid, "bad_header", message));
            }
            key_text => key_text.map(|text| IdempotencyKey::new(text.into(), &aggregate, &key, &name, &data)),
        };
        let cause = self.cause.clone();
        let request = CommandRequest {
            aggregate,
            key,
            command: name,
            data,
            actor: cause.actor,
            precondition,
            idempotency,
            correlation_id: Some(cause.correlation_id),
            causation_id: Some(cause.causation_id),
            hops: cause.hops,
            trace,
            origin: None,
        };
        self.app()?.command(request).await.map(accepted).map_err(not_accepted)
    }

    /// A model that the caller may read, fresh.
    async fn reader(&self, model: &str, at_least: Option<Position>) -> Result<ModelReader, NotDone> {
        let app = self.app()?;
        let manifest = app.manifest();
        let name = ModelName::new(model).ok().filter(|name| manifest.models.contains_key(name));
        let Some(name) = name else {
            let message = format!("this app has no model `{}`", shorten(model));
            return Err(NotDone::new(NotDoneKind::Invalid, "unknown_model", message));
        };
        let actor = &self.cause.actor;
        if !manifest.models[&name].allow.permits(actor) {
            let message = format!("`{actor}` may not use model {name}");
            return Err(NotDone::new(NotDoneKind::Denied, "forbidden", message));
        }
        let reader = app.model(&name).await.ok().flatten().ok_or_else(|| {
            let message = format!("the projection that writes `{name}` is not ready");
            NotDone::new(NotDoneKind::Busy, "projection_unavailable", message).retry_after(RETRY)
        })?;
        if let Some(position) = at_least {
            reader.be_fresh(position, WAIT, false).await.map_err(stale)?;
        }
        Ok(reader)
    }

    async fn get_now(&self, model: &str, key: &str, at_least: Option<Position>) -> Result<Found, NotDone> {
        let reader = self.reader(model, at_least).await?;
        let (position, row) = reader.get_at(key).map_err(|error| unreadable(&error))?;
        Ok(Found { row, position })
    }

    async fn query_now(
        &self,
        model: &str,
        query: AskedQuery,
        at_least: Option<Position>,
    ) -> Result<FoundPage, NotDone> {
        let reader = self.reader(model, at_least).await?;
        // As it is served: the manifest's may be of a version that is still being built.
        let schema = reader.schema();
        let query =
            query.check(&schema).map_err(|bad| NotDone::new(NotDoneKind::Invalid, bad.code, bad.message))?;
        let (position, page) = reader.query_at(query.clone()).await.map_err(|error| unreadable(&error))?;
        let size: usize = page.rows.iter().map(row_size).sum();
        if size > cap::GUEST_OUTPUT_BYTES {
            let message = format!(
                "the rows have {size} bytes, more than the {} of an answer; ask for fewer",
                cap::GUEST_OUTPUT_BYTES
            );
            return Err(NotDone::new(NotDoneKind::Invalid, "answer_too_large", message));
        }
        let last = page.rows.last().filter(|_| page.more);
        let next = last.map(|row| query.place_of(&schema, row));
        Ok(FoundPage { rows: page.rows, position, next })
    }
}

impl OwnApp for CalledApp {
    fn send(&self, command: OwnCommand) -> Future<'_, Result<Accepted, NotDone>> {
        Box::pin(self.send_now(command))
    }

    fn get<'a>(
        &'a self,
        model: &'a str,
        key: &'a str,
        at_least: Option<Position>,
    ) -> Future<'a, Result<Found, NotDone>> {
        Box::pin(self.get_now(model, key, at_least))
    }

    fn query<'a>(
        &'a self,
        model: &'a str,
        query: AskedQuery,
        at_least: Option<Position>,
    ) -> Future<'a, Result<FoundPage, NotDone>> {
        Box::pin(self.query_now(model, query, at_least))
    }
}

fn shorten(text: &str) -> String {
    text.chars().take(80).collect()
}

fn row_size(row: &Row) -> usize {
    let value = |value: &Value| match value {
        Value::Text(text) | Value::Json(text) => text.len(),
        _ => 8,
    };
    row.iter().map(|(name, of)| name.len() + value(of)).sum()
}

fn accepted(reply: CommandReply) -> Accepted {
    let events = reply.events.into_iter().map(|event| AcceptedEvent {
        id: event.id,
        event_type: event.event_type.text().clone(),
        revision: event.revision,
        position: event.position,
        data: event.data,
    });
    Accepted {
        command_id: reply.command_id,
        stream: reply.stream.as_str().into(),
        revision: reply.revision,
        position: reply.position,
        events: events.collect(),
        replayed: reply.replayed,
    }
}

fn stale(error: NotFresh) -> NotDone {
    let (kind, code) = match error {
        NotFresh::Direct { .. } => (NotDoneKind::Invalid, "bad_header"),
        NotFresh::Unknown { .. } => (NotDoneKind::Invalid, "position_unknown"),
        NotFresh::Behind(_) => (NotDoneKind::Busy, "projection_behind"),
        NotFresh::Parked { .. } => (NotDoneKind::Busy, "projection_parked"),
    };
    let not_done = NotDone::new(kind, code, error.to_string());
    if kind == NotDoneKind::Busy { not_done.retry_after(RETRY) } else { not_done }
}

/// Rows can always be made again from the log: whatever keeps them from being read passes.
fn unreadable(error: &ModelError) -> NotDone {
    tracing::warn!(%error, "a read model that a function asked for can't be read");
    let message = "the read model can't be read now";
    NotDone::new(NotDoneKind::Busy, "projection_unavailable", message).retry_after(RETRY)
}

fn not_accepted(error: CommandError) -> NotDone {
    let kind = error.kind;
    let (retry_after, message) = (kind.retry_after(), kind.to_string());
    let not_done = match kind {
        CommandErrorKind::Refused(Refusal { code, message, details }) => NotDone {
            kind: NotDoneKind::Refused,
            code,
            message: message.to_string(),
            details,
            retry_after: None,
        },
        CommandErrorKind::SchemaViolation(ref violations) => NotDone {
            details: serde_json::to_vec(violations).ok().map(Bytes::from),
            ..NotDone::new(NotDoneKind::Invalid, kind.code(), message)
        },
        CommandErrorKind::Module(ref error) => {
            // What it said when it trapped is in its log.
            let message = match error {
                CallError::Trapped(_) => "the module trapped".to_owned(),
                CallError::Failed(_) | CallError::InstanceLost | CallError::BadSnapshot(_) => {
                    "the module could not be run".to_owned()
                }
                _ => message,
            };
            NotDone::new(worth(&kind), kind.code(), message)
        }
        // The cause has paths of the machine in it, perhaps.
        CommandErrorKind::Internal(ref cause)
        | CommandErrorKind::Unavailable(ref cause)
        | CommandErrorKind::OutcomeUnknown(ref cause) => {
            tracing::warn!(code = kind.code(), cause, "a command that a function sent failed");
            let message = match kind {
                CommandErrorKind::Unavailable(_) => "the log takes no writes now",
                CommandErrorKind::OutcomeUnknown(_) => "the log failed while the command was being recorded",
                _ => "the command could not be decided",
            };
            NotDone::new(worth(&kind), kind.code(), message)
        }
        _ => NotDone::new(worth(&kind), kind.code(), message),
    };
    NotDone { retry_after, ..not_done }
}

/// What is to be done about a command that was not accepted.
fn worth(kind: &CommandErrorKind) -> NotDoneKind {
    use CommandErrorKind as Kind;
    match kind {
        Kind::Refused(_) => NotDoneKind::Refused,
        Kind::Conflict { .. } | Kind::KeyInFlight | Kind::KeyReused => NotDoneKind::Conflict,
        Kind::UnknownAggregate { .. }
        | Kind::UnknownCommand { .. }
        | Kind::InvalidKey(_)
        | Kind::NotJson(_)
        | Kind::SchemaViolation(_) => NotDoneKind::Invalid,
        Kind::Forbidden { .. } | Kind::ChainTooLong { .. } => NotDoneKind::Denied,
        Kind::Throttled { .. }
        | Kind::ChainHeldBack { .. }
        | Kind::Module(CallError::Overloaded { .. })
        | Kind::OutOfTime(_)
        | Kind::Unavailable(_)
        | Kind::ShuttingDown => NotDoneKind::Busy,
        Kind::OutcomeUnknown(_) => NotDoneKind::Unknown,
        Kind::Module(_)
        | Kind::UndeclaredEvent { .. }
        | Kind::InvalidEvent { .. }
        | Kind::OutputTooLarge(_)
        | Kind::Internal(_) => NotDoneKind::Failed,
    }
}
