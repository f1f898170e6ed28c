//! What comes into the command path, and what goes out.

use bytes::Bytes;
use ebb_domain::commit::{CommandId, Commit, IdempotencyKey, KafkaOrigin, Precondition, Refusal};
use ebb_domain::event::{EventId, Position, Revision};
use ebb_domain::name::EventType;
use ebb_domain::port::guest::CallError;
use ebb_domain::schema::Violation;
use ebb_domain::stream::{InvalidStream, StreamId};
use ebb_domain::text::Text;
use ebb_domain::trace::Trace;
use std::time::Duration;
use thiserror::Error;

/// A command as the edge hands it over: parsed and authenticated, not yet checked against the manifest.
#[derive(Clone, Debug)]
pub struct CommandRequest {
    /// The aggregate's name.
    pub aggregate: String,
    /// The stream's key, percent-decoded once.
    pub key: String,
    /// The command's name.
    pub command: String,
    /// The body, JSON; empty stands for `{}`.
    pub data: Bytes,
    /// Who sends it.
    pub actor: Text,
    /// What the caller wants to be true of the stream.
    pub precondition: Option<Precondition>,
    /// What makes it the same as an earlier request.
    pub idempotency: Option<IdempotencyKey>,
    /// Ties everything that one outside cause led to; the command's id if the caller gives none.
    pub correlation_id: Option<Text>,
    /// What directly caused it.
    pub causation_id: Option<Text>,
    /// Functions and topics between it and what began its chain: zero for one that comes from outside.
    pub hops: u16,
    /// The span that deciding it is, or the caller's.
    pub trace: Option<Trace>,
    /// The record that it is, if it came from a topic: the same record is the same command, for ever.
    pub origin: Option<KafkaOrigin>,
}

/// An accepted command: durable, with everything that it was decided on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandReply {
    /// The command's id.
    pub command_id: CommandId,
    /// The stream.
    pub stream: StreamId,
    /// Revision of the stream's last event; none if it has no events.
    pub revision: Option<Revision>,
    /// Position of the last event of this command; none if it decided none.
    pub position: Option<Position>,
    /// The events.
    pub events: Vec<ReplyEvent>,
    /// Whether this is the remembered answer to an earlier request with the same key.
    pub replayed: bool,
}

/// An event in a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplyEvent {
    /// Its id.
    pub id: EventId,
    /// Its type.
    pub event_type: EventType,
    /// Place in the stream.
    pub revision: Revision,
    /// Place in the log.
    pub position: Position,
    /// Its data, JSON.
    pub data: Bytes,
}

impl CommandReply {
    /// The answer that a commit stands for: what a retry gets.
    ///
    /// # Errors
    /// The commit is a refusal.
    pub fn from_commit(commit: &Commit, replayed: bool) -> Result<Self, Refusal> {
        let header = &commit.header;
        if let Some(refusal) = &header.refusal {
            return Err(refusal.clone());
        }
        let events = commit.events.iter().map(|event| ReplyEvent {
            id: event.id(),
            event_type: event.event_type.clone(),
            revision: event.revision,
            position: event.position,
            data: event.data.clone(),
        });
        Ok(Self {
            command_id: header.command_id,
            stream: header.stream.clone(),
            revision: header.last_revision(),
            position: (header.event_count > 0).then(|| header.last_position()),
            events: events.collect(),
            replayed,
        })
    }
}

/// A command that was not accepted, with its id if it got as far as having one.
#[derive(Clone, Debug, Error)]
#[error("{kind}")]
pub struct CommandError {
    /// The id under which `command-log` knows it; none if nothing was decided.
    pub command_id: Option<CommandId>,
    /// What happened.
    pub kind: CommandErrorKind,
    /// Whether this is the remembered answer to an earlier request with the same key.
    pub replayed: bool,
}

impl From<CommandErrorKind> for CommandError {
    fn from(kind: CommandErrorKind) -> Self {
        Self { command_id: None, kind, replayed: false }
    }
}

impl CommandErrorKind {
    /// The error of a command that had its id already.
    #[must_use]
    pub fn of(self, command_id: CommandId) -> CommandError {
        CommandError { command_id: Some(command_id), kind: self, replayed: false }
    }
}

/// Why a command was not accepted. Nothing was appended, unless it says that the outcome is unknown.
#[derive(Clone, Debug, Error)]
pub enum CommandErrorKind {
    /// The manifest has no such aggregate.
    #[error("this app has no aggregate `{aggregate}`; it has {known}")]
    UnknownAggregate {
        /// As asked for.
        aggregate: String,
        /// Those there are, for people.
        known: String,
    },
    /// The aggregate has no such command.
    #[error("aggregate `{aggregate}` has no command `{command}`; it has {known}")]
    UnknownCommand {
        /// The aggregate.
        aggregate: String,
        /// As asked for.
        command: String,
        /// Those there are, for people.
        known: String,
    },
    /// The key can't name a stream.
    #[error(transparent)]
    InvalidKey(#[from] InvalidStream),
    /// The actor is not on the aggregate's `allow` list.
    #[error("`{actor}` may not send commands to `{aggregate}`")]
    Forbidden {
        /// Who asked.
        actor: Text,
        /// For what.
        aggregate: String,
    },
    /// The body is not JSON.
    #[error("the body is not JSON: {0}")]
    NotJson(String),
    /// The body does not fit the command's schema.
    #[error("the body does not fit the command's schema: {}", first_violation(.0))]
    SchemaViolation(Vec<Violation>),
    /// The caller's precondition does not hold.
    #[error("the stream is {}, not as the request expects it", show(.actual))]
    Conflict {
        /// Revision of the stream's last event; none if it has none.
        actual: Option<Revision>,
    },
    /// The same key is being decided right now.
    #[error("a request with this idempotency key is being decided")]
    KeyInFlight,
    /// The key was used for another request.
    #[error("this idempotency key was used for another request")]
    KeyReused,
    /// The module says no.
    #[error("{}", .0.message)]
    Refused(Refusal),
    /// The stream's mailbox is full.
    #[error("too many commands wait for this stream")]
    Throttled {
        /// When to try again.
        retry_after: Duration,
    },
    /// Too many functions and topics lie between it and what began its chain.
    #[error(
        "{hops} functions and topics lie between this command and what began its chain, and the app allows {most} \
         (`chains.hops`): do events and commands lead to each other without an end?"
    )]
    ChainTooLong {
        /// As many as lie there.
        hops: u16,
        /// As many as may be.
        most: u16,
    },
    /// What caused it has led to too much just now.
    #[error(
        "what led to this command led to more than {} others within a minute, twice what the app allows \
         (`chains.per-minute`)",
        2 * u64::from(*.per_minute)
    )]
    ChainHeldBack {
        /// Commands that a chain may lead to within a minute.
        per_minute: u32,
        /// When to try again.
        retry_after: Duration,
    },
    /// The module failed.
    #[error(transparent)]
    Module(#[from] CallError),
    /// The module decided an event that the manifest does not declare.
    #[error(
        "the module decided an event of type `{event_type}`, which aggregate `{aggregate}` does not declare"
    )]
    UndeclaredEvent {
        /// The type.
        event_type: String,
        /// The aggregate.
        aggregate: String,
    },
    /// The module decided an event whose data is not what the manifest declares.
    #[error("the module decided a `{event_type}` event with bad data: {problem}")]
    InvalidEvent {
        /// The type.
        event_type: String,
        /// What is wrong.
        problem: String,
    },
    /// The module decided more than a commit may hold.
    #[error("the module decided too much: {0}")]
    OutputTooLarge(String),
    /// It waited too long to be decided; it was not, and will not be.
    #[error("the command waited for longer than {0:?} and was not decided")]
    OutOfTime(Duration),
    /// The log takes no writes now.
    #[error("the log takes no writes now: {0}")]
    Unavailable(String),
    /// The log failed while it was being written: it may or may not be there.
    #[error("the outcome is unknown: {0}")]
    OutcomeUnknown(String),
    /// The node is going down.
    #[error("the node is shutting down")]
    ShuttingDown,
    /// Something on our side.
    #[error("{0}")]
    Internal(String),
}

fn first_violation(violations: &[Violation]) -> String {
    violations.first().map_or_else(String::new, ToString::to_string)
}

fn show(actual: &Option<Revision>) -> String {
    actual.map_or_else(|| "empty".into(), |revision| format!("at revision {revision}"))
}

impl CommandErrorKind {
    /// Stable, for programs; a refusal's is its module's.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::UnknownAggregate { .. } => "unknown_aggregate",
            Self::UnknownCommand { .. } => "unknown_command",
            Self::InvalidKey(_) => "invalid_key",
            Self::Forbidden { .. } => "forbidden",
            Self::NotJson(_) => "not_json",
            Self::SchemaViolation(_) => "schema_violation",
            Self::Conflict { .. } => "revision_conflict",
            Self::KeyInFlight => "key_in_flight",
            Self::KeyReused => "key_reused",
            Self::Refused(_) => "refused",
            Self::Throttled { .. } => "throttled",
            Self::ChainTooLong { .. } => "chain_too_long",
            Self::ChainHeldBack { .. } => "chain_held_back",
            Self::Module(error) => match error {
                CallError::Trapped(_) => "module_trapped",
                CallError::BadAnswer(_) => "module_bad_answer",
                CallError::OutOfMemory { .. } => "module_out_of_memory",
                CallError::OutOfCpu { .. } => "module_out_of_cpu",
                CallError::OutOfTime { .. } => "out_of_time",
                CallError::OutputTooLarge(_) => "module_output_too_large",
                CallError::Overloaded { .. } => "overloaded",
                CallError::InstanceLost | CallError::BadSnapshot(_) | CallError::Failed(_) => "internal",
            },
            Self::UndeclaredEvent { .. } => "undeclared_event",
            Self::InvalidEvent { .. } => "invalid_event",
            Self::OutputTooLarge(_) => "module_output_too_large",
            Self::OutOfTime(_) => "out_of_time",
            Self::Unavailable(_) => "unavailable",
            Self::OutcomeUnknown(_) => "outcome_unknown",
            Self::ShuttingDown => "shutting_down",
            Self::Internal(_) => "internal",
        }
    }

    /// When it is worth trying again, if it is.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Throttled { retry_after }
            | Self::ChainHeldBack { retry_after, .. }
            | Self::Module(CallError::Overloaded { retry_after, .. }) => Some(*retry_after),
            Self::Unavailable(_) | Self::OutcomeUnknown(_) | Self::ShuttingDown | Self::KeyInFlight => {
                Some(Duration::from_secs(1))
            }
            _ => None,
        }
    }
}
