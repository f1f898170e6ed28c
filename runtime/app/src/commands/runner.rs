//! The runner of one stream: takes its commands one after another, decides them on warm state, and stages what was
//! decided. It never waits for the disk, so decisions of one stream pipeline: the answers wait instead (see
//! [`super::service`]).

use super::function::AggregateFunction;
use super::request::{CommandErrorKind, CommandReply, ReplyEvent};
use super::service::AggregateSlot;
use super::warm::Warm;
use bytes::Bytes;
use ebb_domain::commit::Precondition;
use ebb_domain::commit::{
    CommandId, Expected, IdempotencyKey, KafkaOrigin, NewCommit, Outcome, RecordedCommand,
};
use ebb_domain::event::{EventId, Position, Revision};
use ebb_domain::name::CommandName;
use ebb_domain::port::guest::{CallError, GuestCommand, PastEvent};
use ebb_domain::port::log::{
    AppendError, EventLog, GroupFailure, KeyMatch, ReadError, ReadLimits, Settlement, Staged,
};
use ebb_domain::port::storage::{Snapshot, Snapshots};
use ebb_domain::stream::StreamId;
use ebb_domain::text::Text;
use ebb_domain::time::Timestamp;
use ebb_domain::trace::Trace;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tracing::{debug, error, warn};

/// How often a decision is made again after its state turned out to be gone or rewound.
const ATTEMPTS: u32 = 4;

/// Warm aggregates dropped at most to make room for one more.
const EVICTIONS: u32 = 4;

/// A validated command on its way to its stream.
#[derive(Clone)]
pub(crate) struct Command {
    pub id: CommandId,
    pub stream: StreamId,
    /// The version that validated it; another one validates again.
    pub function: Arc<AggregateFunction>,
    pub name: CommandName,
    pub data: Bytes,
    pub actor: Text,
    pub time: Timestamp,
    pub precondition: Option<Precondition>,
    pub idempotency: Option<IdempotencyKey>,
    pub correlation_id: Text,
    pub causation_id: Option<Text>,
    pub hops: u16,
    pub trace: Option<Trace>,
    pub origin: Option<KafkaOrigin>,
    pub deadline: Instant,
    pub patience: Duration,
}

/// What became of a command; true only once its settlement is kept.
pub(crate) enum Decided {
    Accepted(CommandReply, Settlement),
    Failed(CommandErrorKind, Settlement),
    /// The log has it already.
    Earlier(KeyMatch),
}

impl Decided {
    /// A failure that depends on nothing that is still being written.
    fn failed(kind: impl Into<CommandErrorKind>) -> Self {
        Self::Failed(kind.into(), Settlement::durable())
    }
}

/// What a runner works with.
pub(crate) struct Runner<'a> {
    pub log: &'a Arc<dyn EventLog>,
    pub snapshots: &'a Arc<dyn Snapshots>,
    pub slot: &'a Arc<AggregateSlot>,
    pub stream: &'a StreamId,
}

/// Why a decision must be made again, or what it came to.
enum Step {
    Again,
    Done(Decided),
}

impl Runner<'_> {
    /// Decides one command. `warm` is the stream's state, if there is any, and is left as the next command needs it.
    pub(crate) async fn decide(&self, command: &Command, warm: &mut Option<Warm>) -> Decided {
        if Instant::now() > command.deadline {
            return Decided::failed(CommandErrorKind::OutOfTime(command.patience));
        }
        for _ in 0..ATTEMPTS {
            let function = match self.slot.function().await {
                Ok(function) => function,
                Err(kind) => return Decided::failed(kind),
            };
            if warm.as_ref().is_some_and(|warm| !warm.is_good(&function)) {
                *warm = None;
            }
            if !Arc::ptr_eq(&function, &command.function)
                && let Err(kind) = function.validate(&command.name, command.data.clone())
            {
                return Decided::failed(kind);
            }
            let mut state = match warm.take() {
                Some(state) => state,
                None => match self.load(&function).await {
                    Ok(state) => state,
                    Err(CommandErrorKind::Module(CallError::InstanceLost)) => continue,
                    Err(kind) => return Decided::failed(kind),
                },
            };
            match self.decide_on(&mut state, command).await {
                Step::Again => {}
                Step::Done(decided) => {
                    if !state.spoiled && survives(&decided) {
                        *warm = Some(state);
                    }
                    return decided;
                }
            }
        }
        Decided::failed(CommandErrorKind::Internal(format!(
            "{} could not be decided: its state was lost {ATTEMPTS} times in a row",
            self.stream
        )))
    }

    async fn decide_on(&self, state: &mut Warm, command: &Command) -> Step {
        if let Some(precondition) = command.precondition
            && !precondition.holds(state.revision)
        {
            let conflict = CommandErrorKind::Conflict { actual: state.revision };
            return Step::Done(Decided::Failed(conflict, state.settlement.clone()));
        }
        let guest_command = GuestCommand {
            id: command.id,
            name: command.name.clone(),
            data: command.data.clone(),
            actor: command.actor.clone(),
            time: command.time,
            correlation_id: command.correlation_id.clone(),
            trace: command.trace.clone(),
        };
        let decision = match state.aggregate.decide(&guest_command).await {
            Ok(decision) => decision,
            Err(CallError::InstanceLost) => return Step::Again,
            Err(error) => return Step::Done(Decided::failed(error)),
        };
        let outcome = match state.function.outcome(decision) {
            Ok(outcome) => outcome,
            Err(kind) => return Step::Done(Decided::Failed(kind, state.settlement.clone())),
        };
        if command.idempotency.is_none() && command.origin.is_none() {
            match outcome {
                Outcome::Refused(refusal) => {
                    let refused = CommandErrorKind::Refused(refusal);
                    return Step::Done(Decided::Failed(refused, state.settlement.clone()));
                }
                Outcome::Events(events) if events.is_empty() => {
                    let reply = reply(command, state.revision, None, Vec::new());
                    return Step::Done(Decided::Accepted(reply, state.settlement.clone()));
                }
                outcome => return self.append(state, command, outcome).await,
            }
        }
        self.append(state, command, outcome).await
    }

    /// Stages the outcome and folds it into the state.
    async fn append(&self, state: &mut Warm, command: &Command, outcome: Outcome) -> Step {
        let commit = NewCommit {
            stream: self.stream.clone(),
            expected: Expected::Revision(state.revision),
            command_id: command.id,
            actor: command.actor.clone(),
            correlation_id: command.correlation_id.clone(),
            causation_id: command.causation_id.clone(),
            hops: command.hops,
            traceparent: command.trace.as_ref().map(|trace| trace.to_string().into()),
            module: state.function.digest,
            idempotency: command.idempotency.clone(),
            origin: command.origin.clone(),
            command: Some(RecordedCommand {
                name: command.name.text().clone(),
                time: command.time,
                data: state.function.spec.record_commands.then(|| command.data.clone()),
            }),
            outcome: outcome.clone(),
        };
        let staged = match self.log.append(commit).await {
            Ok(staged) => staged,
            // Someone rewound what this state was folded from, or the state is wrong: fold again.
            Err(AppendError::Conflict { .. }) => return Step::Again,
            Err(AppendError::Duplicate(earlier)) => return Step::Done(Decided::Earlier(*earlier)),
            Err(error) => return Step::Done(Decided::Failed(append_error(error), state.settlement.clone())),
        };
        state.settlement = staged.settlement.clone();
        let decided = match outcome {
            Outcome::Refused(refusal) => {
                Decided::Failed(CommandErrorKind::Refused(refusal), staged.settlement.clone())
            }
            Outcome::Events(events) => {
                let reply = accepted(command, &staged, &events, state.revision);
                if !events.is_empty() {
                    self.fold(state, command.id, &staged, &events).await;
                }
                Decided::Accepted(reply, staged.settlement)
            }
        };
        Step::Done(decided)
    }

    /// Folds what was staged, so that the next command of the stream is decided on it. What is staged stays staged: an
    /// aggregate that can't fold its own events is dropped, and whoever needs it next is told.
    async fn fold(
        &self,
        state: &mut Warm,
        command: CommandId,
        staged: &Staged,
        events: &[ebb_domain::event::NewEvent],
    ) {
        let past: Vec<PastEvent> = events
            .iter()
            .zip(staged.first_revision.0..)
            .map(|(event, revision)| PastEvent {
                event_type: event.event_type.text().clone(),
                schema_version: event.schema_version,
                revision: Revision(revision),
                data: event.data.clone(),
            })
            .collect();
        state.revision = past.last().map(|event| event.revision);
        state.last = (past.len() as u32).checked_sub(1).map(|index| EventId::derive(command, index));
        state.unsnapshotted += past.len() as u32;
        if let Err(error) = state.aggregate.apply(&past).await {
            if error != CallError::InstanceLost {
                error!(stream = %self.stream, %error, "the module can't fold the events that it decided itself");
            }
            state.spoiled = true;
            return;
        }
        if state.unsnapshotted >= state.function.spec.snapshot_every.get() {
            self.snapshot(state).await;
        }
    }

    /// Takes a snapshot, and keeps it once what it was folded from is durable.
    async fn snapshot(&self, state: &mut Warm) {
        state.unsnapshotted = 0;
        let (Some(revision), Some(event)) = (state.revision, state.last) else { return };
        match state.aggregate.snapshot().await {
            Ok(Some(data)) => {
                let snapshot = Snapshot {
                    revision,
                    event,
                    module: state.function.digest,
                    state_version: state.function.spec.state_version,
                    data,
                };
                let (snapshots, stream) = (self.snapshots.clone(), self.stream.detached());
                let mut settlement = state.settlement.clone();
                tokio::spawn(async move {
                    if settlement.wait().await.is_ok() {
                        snapshots.put(&stream, snapshot);
                    }
                });
            }
            Ok(None) => {}
            Err(error) => {
                warn!(stream = %self.stream, %error, "no snapshot");
                state.spoiled = true;
            }
        }
    }

    /// The stream's state from its last snapshot and the events behind it, or from its events alone.
    async fn load(&self, function: &Arc<AggregateFunction>) -> Result<Warm, CommandErrorKind> {
        let head = self.settled_head().await?;
        let snapshot = match head {
            Some(head) => self.snapshot_below(head, function).await?,
            None => None,
        };
        let folded = snapshot.as_ref().map(|snapshot| (snapshot.revision, snapshot.event));
        let mut warm = match self.open(function, snapshot).await {
            Err(CallError::BadSnapshot(problem)) => {
                warn!(stream = %self.stream, %problem, "a snapshot was not accepted; refolding the stream");
                let aggregate = self.open(function, None).await?;
                self.warm(function, aggregate, None)
            }
            opened => self.warm(function, opened?, folded),
        };
        self.catch_up(&mut warm, head).await?;
        Ok(warm)
    }

    /// The stream's snapshot, if this version understands it and it is of the events that the log has.
    async fn snapshot_below(
        &self,
        head: Revision,
        function: &AggregateFunction,
    ) -> Result<Option<Snapshot>, CommandErrorKind> {
        let found = self.snapshots.get(self.stream);
        let Some(snapshot) =
            found.filter(|snapshot| snapshot.revision <= head && function.understands(snapshot))
        else {
            return Ok(None);
        };
        let one = ReadLimits { items: 1, bytes: 1 };
        let read = self.log.read_stream(self.stream, snapshot.revision, one).await;
        let events = read.map_err(|error| read_error(&error))?;
        if events.first().is_some_and(|event| event.id() == snapshot.event) {
            return Ok(Some(snapshot));
        }
        let revision = snapshot.revision;
        warn!(stream = %self.stream, %revision, "a snapshot is of events that the log does not have; refolding the stream");
        Ok(None)
    }

    fn warm(
        &self,
        function: &Arc<AggregateFunction>,
        aggregate: Box<dyn ebb_domain::port::guest::Aggregate>,
        folded: Option<(Revision, EventId)>,
    ) -> Warm {
        let (revision, last) = folded.unzip();
        Warm {
            function: function.clone(),
            aggregate,
            revision,
            last,
            settlement: Settlement::durable(),
            unsnapshotted: 0,
            spoiled: false,
        }
    }

    /// The end of the stream once nothing of it is in flight.
    async fn settled_head(&self) -> Result<Option<Revision>, CommandErrorKind> {
        loop {
            let mut head = self.log.head(self.stream).map_err(|error| read_error(&error))?;
            match head.settlement.wait().await {
                Ok(()) => return Ok(head.revision),
                // What was staged is gone; the head is another one now.
                Err(GroupFailure::Rewound(_)) => {}
                Err(GroupFailure::OutcomeUnknown(why)) => return Err(CommandErrorKind::Unavailable(why)),
            }
        }
    }

    /// Opens the aggregate in an instance; where all slots are taken, drops warm aggregates that nobody is using.
    async fn open(
        &self,
        function: &Arc<AggregateFunction>,
        snapshot: Option<Snapshot>,
    ) -> Result<Box<dyn ebb_domain::port::guest::Aggregate>, CallError> {
        let mut evictions = 0;
        loop {
            let data = snapshot.as_ref().map(|snapshot| snapshot.data.clone());
            match function.module.open(self.stream, data).await {
                Err(CallError::Overloaded { .. }) if evictions < EVICTIONS && self.slot.warm.evict_one() => {
                    evictions += 1;
                }
                opened => return opened,
            }
        }
    }

    /// Folds the stream's events behind the state, page by page.
    async fn catch_up(&self, warm: &mut Warm, head: Option<Revision>) -> Result<(), CommandErrorKind> {
        while warm.revision < head {
            let from = Revision::after(warm.revision);
            let events = self
                .log
                .read_stream(self.stream, from, ReadLimits::PAGE)
                .await
                .map_err(|error| read_error(&error))?;
            let Some((revision, last)) = events.last().map(|event| (event.revision, event.id())) else {
                return Err(CommandErrorKind::Internal(format!(
                    "{} should reach revision {head:?} and ends before {from}",
                    self.stream
                )));
            };
            let past: Vec<PastEvent> = events.iter().map(PastEvent::from).collect();
            warm.aggregate.apply(&past).await?;
            (warm.revision, warm.last) = (Some(revision), Some(last));
            warm.unsnapshotted = warm.unsnapshotted.saturating_add(past.len() as u32);
        }
        debug!(stream = %self.stream, revision = ?warm.revision, "loaded");
        Ok(())
    }
}

/// Whether the state may serve the next command: after a failed call its instance is gone.
fn survives(decided: &Decided) -> bool {
    match decided {
        Decided::Failed(CommandErrorKind::Module(error), _) => matches!(error, CallError::Overloaded { .. }),
        _ => true,
    }
}

fn accepted(
    command: &Command,
    staged: &Staged,
    events: &[ebb_domain::event::NewEvent],
    before: Option<Revision>,
) -> CommandReply {
    let events: Vec<ReplyEvent> = events
        .iter()
        .zip(0..)
        .map(|(event, index)| ReplyEvent {
            id: EventId::derive(command.id, index),
            event_type: event.event_type.clone(),
            revision: Revision(staged.first_revision.0 + u64::from(index)),
            position: Position(staged.first_position.0 + u64::from(index)),
            data: event.data.clone(),
        })
        .collect();
    let revision = events.last().map_or(before, |event| Some(event.revision));
    let position = events.last().map(|event| event.position);
    reply(command, revision, position, events)
}

fn reply(
    command: &Command,
    revision: Option<Revision>,
    position: Option<Position>,
    events: Vec<ReplyEvent>,
) -> CommandReply {
    CommandReply {
        command_id: command.id,
        stream: command.stream.clone(),
        revision,
        position,
        events,
        replayed: false,
    }
}

fn append_error(error: AppendError) -> CommandErrorKind {
    match error {
        AppendError::TooLarge(what) => CommandErrorKind::OutputTooLarge(what),
        AppendError::Unavailable(why) | AppendError::Poisoned(why) => CommandErrorKind::Unavailable(why),
        error @ (AppendError::Conflict { .. } | AppendError::Duplicate(_)) => {
            CommandErrorKind::Internal(error.to_string())
        }
    }
}

fn read_error(error: &ReadError) -> CommandErrorKind {
    CommandErrorKind::Internal(error.to_string())
}
