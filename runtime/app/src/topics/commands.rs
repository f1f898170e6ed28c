//! Commands that come as records: an event function of the platform's own, which sends each to its stream.
//!
//! It is run by a projector, whose retrying, bisecting and parking are its as well. A refusal is an outcome: it is recorded
//! like an accepted command, counted, told to whoever wants to know, and never tried again. A record that can't be a command
//! of this app, whatever happens, is poison.

use crate::app::App;
use crate::commands::{CommandError, CommandErrorKind, CommandReply, CommandRequest};
use crate::projections::ProjectionDeps;
use ebb_domain::commit::{CommandId, IdempotencyKey, KafkaOrigin};
use ebb_domain::digest::Digest;
use ebb_domain::event::StoredEvent;
use ebb_domain::name::{AggregateName, AppName, TopicName};
use ebb_domain::port::Future;
use ebb_domain::port::bus::OptionalBus;
use ebb_domain::port::guest::{ApplyError, CallError, HeldBack, ProjectionModule, SharedRows};
use ebb_domain::text::Text;
use ebb_domain::topic::{self, CommandIdentity, CommandSource, Envelope, NewRecord};
use ebb_domain::trace::Trace;
use ebb_faults::{Point, crash_point};
use futures_util::future::join_all;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use uuid::Uuid;

/// What a command's place in the app's own log is called, where a record's place in a topic stands otherwise.
const CLUSTER: Text = Text::from_static("ebbtide");

/// Sends commands.
pub(crate) struct Commands {
    app: AppName,
    own_app: Weak<App>,
    bus: OptionalBus,
    aggregate: AggregateName,
    source: Arc<CommandSource>,
    /// What stands for a topic's id in what identifies its commands.
    identity: Uuid,
    refused: AtomicU64,
}

/// What became of a command.
enum Outcome {
    Accepted(CommandReply),
    Refused(CommandError),
}

/// Why it has none yet.
enum Failure {
    /// It will never have one.
    Poison(String),
    /// It failed, and may not if it is tried again.
    Failed(String),
    /// It was not looked at: something on our side.
    Host(String),
}

impl Commands {
    pub(crate) fn new(deps: &ProjectionDeps, aggregate: AggregateName, source: Arc<CommandSource>) -> Self {
        let name = format!("{}/{aggregate}", deps.app);
        Self {
            app: deps.app.clone(),
            own_app: deps.own_app.clone(),
            bus: deps.bus.clone(),
            aggregate,
            source,
            identity: Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes()),
            refused: AtomicU64::new(0),
        }
    }

    async fn carry_out(&self, events: &[StoredEvent]) -> Result<(), ApplyError> {
        let Some(app) = self.own_app.upgrade() else {
            return Err(CallError::Failed("the app is not served any more".into()).into());
        };
        let mut failures: Vec<(usize, Failure)> = Vec::new();
        let mut chains: BTreeMap<String, Vec<(usize, CommandRequest)>> = BTreeMap::new();
        for (index, event) in events.iter().enumerate() {
            match self.request(event) {
                Ok(request) => chains.entry(request.key.clone()).or_default().push((index, request)),
                Err(poison) => failures.push((index, Failure::Poison(poison))),
            }
        }
        // What stands behind a failure may be done as well: done again, it is the same command.
        let ended = join_all(chains.into_values().map(|chain| self.chain(&app, events, chain))).await;
        failures.extend(ended.into_iter().filter_map(Result::err));
        let Some((index, failure)) = failures.into_iter().min_by_key(|(index, _)| *index) else {
            return Ok(());
        };
        Err(match failure {
            Failure::Poison(message) => ApplyError::Poison { index, message },
            Failure::Failed(message) => ApplyError::Event { index, message },
            // What stands before it is done, and known to be if it comes again.
            Failure::Host(message) => CallError::Failed(message).into(),
        })
    }

    /// Sends the commands of one stream, each when the one before it has its outcome.
    async fn chain(
        &self,
        app: &App,
        events: &[StoredEvent],
        chain: Vec<(usize, CommandRequest)>,
    ) -> Result<(), (usize, Failure)> {
        for (index, request) in chain {
            let at = |failure| (index, failure);
            let outcome = match app.command(request).await {
                Ok(reply) => Outcome::Accepted(reply),
                Err(error) if matches!(error.kind, CommandErrorKind::Refused(_)) => Outcome::Refused(error),
                Err(error) => return Err(at(failure(&error.kind))),
            };
            if matches!(outcome, Outcome::Refused(_)) {
                self.refused.fetch_add(1, Ordering::Relaxed);
            }
            if let Some(topic) = &self.source.reply_to {
                self.reply(topic, &events[index], &outcome).await.map_err(at)?;
            }
        }
        Ok(())
    }

    /// The command that a record is.
    fn request(&self, event: &StoredEvent) -> Result<CommandRequest, String> {
        let envelope = event.envelope().unwrap_or_default();
        // Where the data is only a part of the value, the rest of it says what is said about it.
        let data = || match &envelope.value {
            Some(whole) => serde_json::from_slice(&whole.0).unwrap_or_default(),
            None => event.json().unwrap_or_default(),
        };
        let key = self.source.key.select(&envelope, data).ok_or_else(|| {
            format!("{} is to be the stream's key, and is not there", self.source.key.describe())
        })?;
        let command = self.source.command.select(&envelope, data).ok_or_else(|| {
            format!("{} is to be the command's name, and is not there", self.source.command.describe())
        })?;
        let place =
            KafkaOrigin { cluster: CLUSTER, topic: self.identity, partition: 0, offset: event.position.0 };
        Ok(CommandRequest {
            aggregate: self.aggregate.to_string(),
            key: key.to_string(),
            command: command.to_string(),
            data: event.data.clone(),
            actor: event.commit.actor.clone(),
            precondition: None,
            idempotency: self.idempotency(event, &envelope, &key, &command)?,
            correlation_id: Some(event.commit.correlation_id.clone()),
            causation_id: Some(event.id().to_string().into()),
            hops: event.commit.hops,
            trace: event.commit.traceparent.as_deref().and_then(|parent| Trace::parse(parent, None)),
            origin: Some(place),
        })
    }

    fn idempotency(
        &self,
        event: &StoredEvent,
        envelope: &Envelope,
        key: &str,
        command: &str,
    ) -> Result<Option<IdempotencyKey>, String> {
        let same = match &self.source.identity {
            CommandIdentity::Record => return Ok(None),
            CommandIdentity::EventId => {
                let (source, id) =
                    envelope.event_id().ok_or("it is not a CloudEvent, and its id is to identify it")?;
                format!("ce:{}", Digest::of_parts([source.as_bytes(), id.as_bytes()])).into()
            }
            CommandIdentity::Header(name) => {
                let header = envelope.header(name);
                header.ok_or_else(|| format!("the header `{name}` is to identify it, and is not there"))?
            }
        };
        if !IdempotencyKey::is_valid(same.as_bytes()) {
            return Err(format!("`{same}` can't identify it: 1 to 255 visible ASCII characters do"));
        }
        Ok(Some(IdempotencyKey::new(same, &self.aggregate, key, command, &event.data)))
    }

    /// Tells what became of a command, once that is durable. After a crash it is told again, under the same id.
    async fn reply(&self, topic: &TopicName, event: &StoredEvent, outcome: &Outcome) -> Result<(), Failure> {
        let (kind, id, data) = match outcome {
            Outcome::Accepted(reply) => ("accepted", Some(reply.command_id), accepted(reply)),
            Outcome::Refused(error) => ("refused", error.command_id, refused(error)),
        };
        let envelope = event.envelope().unwrap_or_default();
        let id = id.map_or_else(|| event.id().to_string(), |CommandId(id)| id.to_string());
        let mut headers: Vec<(Text, bytes::Bytes)> = vec![("content-type".into(), "application/json".into())];
        let attributes = [
            ("specversion", "1.0".to_owned()),
            ("id", id.clone()),
            ("source", format!("urn:ebbtide:{}", self.app)),
            ("type", format!("ebbtide.command.{kind}")),
            ("subject", event.stream().to_string()),
            ("correlationid", event.commit.correlation_id.to_string()),
            ("causationid", event.id().to_string()),
            ("commandid", id),
        ];
        for (name, value) in attributes {
            headers.push((format!("ce_{name}").into(), value.into()));
        }
        headers.push(("correlation-id".into(), event.commit.correlation_id.clone().into_bytes()));
        if let Some(origin) = &event.commit.origin {
            let place = format!(
                "{}-{}@{}",
                topic::topic_of(event.stream()).unwrap_or_default(),
                origin.partition,
                origin.offset
            );
            headers.push(("in-reply-to".into(), place.into()));
        }
        let key = envelope.key.map(|key| key.0);
        let record = NewRecord {
            topic: topic.clone(),
            key,
            headers,
            value: Some(data.to_string().into_bytes().into()),
        };
        let Some(bus) = &self.bus else {
            return Err(Failure::Host("the node has no brokers to reply by".into()));
        };
        bus.publish(vec![record])
            .await
            .map_err(|error| Failure::Host(format!("no reply could be sent: {error}")))?;
        crash_point(Point::ReplyAfterSend);
        Ok(())
    }
}

fn accepted(reply: &CommandReply) -> serde_json::Value {
    let event = |event: &crate::commands::ReplyEvent| json!({ "id": event.id.to_string(), "type": &*event.event_type, "revision": event.revision, "position": event.position });
    json!({
        "outcome": "accepted",
        "stream": reply.stream.as_str(),
        "revision": reply.revision,
        "position": reply.position,
        "events": reply.events.iter().map(event).collect::<Vec<_>>(),
    })
}

fn refused(error: &CommandError) -> serde_json::Value {
    let CommandErrorKind::Refused(refusal) = &error.kind else { return json!({ "outcome": "refused" }) };
    let details = refusal.details.as_ref().and_then(|details| serde_json::from_slice(details).ok());
    let details: Option<serde_json::Value> = details;
    json!({
        "outcome": "refused",
        "code": &*refusal.code,
        "message": &*refusal.message,
        "details": details,
    })
}

/// What is to be done about a command that has no outcome.
fn failure(kind: &CommandErrorKind) -> Failure {
    use CommandErrorKind as K;
    let why = kind.to_string();
    match kind {
        K::UnknownAggregate { .. }
        | K::UnknownCommand { .. }
        | K::InvalidKey(_)
        | K::Forbidden { .. }
        | K::NotJson(_)
        | K::SchemaViolation(_)
        | K::ChainTooLong { .. }
        | K::KeyReused => Failure::Poison(format!("{}: {why}", kind.code())),
        K::Module(CallError::Overloaded { .. } | CallError::InstanceLost | CallError::Failed(_))
        | K::Throttled { .. }
        | K::ChainHeldBack { .. }
        | K::KeyInFlight
        | K::OutOfTime(_)
        | K::Unavailable(_)
        | K::OutcomeUnknown(_)
        | K::ShuttingDown
        | K::Internal(_) => Failure::Host(why),
        K::Refused(_) | K::Conflict { .. } => Failure::Failed(why),
        K::Module(_) | K::UndeclaredEvent { .. } | K::InvalidEvent { .. } | K::OutputTooLarge(_) => {
            Failure::Failed(why)
        }
    }
}

impl ProjectionModule for Commands {
    fn apply<'a>(&'a self, events: &'a [StoredEvent], _: SharedRows) -> Future<'a, Result<(), ApplyError>> {
        Box::pin(self.carry_out(events))
    }

    fn held_back(&self, events: &[StoredEvent]) -> Option<HeldBack> {
        self.own_app.upgrade()?.held_back(events)
    }

    fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}
