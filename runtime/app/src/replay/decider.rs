//! Decides one recorded command again, on the history that it was decided on.

use super::report::{DifferenceKind, bounded_view, digest_of, view_of_commit};
use super::{OutcomeView, ReplayError, Subject, Subjects};
use ebb_domain::commit::{Commit, Outcome};
use ebb_domain::digest::Digest;
use ebb_domain::event::Revision;
use ebb_domain::name::CommandName;
use ebb_domain::port::guest::{Aggregate, CallError, GuestCommand, PastEvent};
use ebb_domain::port::log::{EventLog, ReadError, ReadLimits};
use ebb_domain::stream::StreamId;
use ebb_domain::text::Text;
use lru::LruCache;
use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

/// How often a decision is tried that failed for a reason that passes: an instance that was lost, a busy machine.
const ATTEMPTS: u32 = 3;
/// How long a place in the engine is waited for, while the node serves its callers.
const PATIENCE: Duration = Duration::from_secs(60);

/// Makes a call again while the node has no place for it: its callers come first, and that is no fault of the module.
/// A macro, because a future that is made by a closure over references is not provably `Send`.
macro_rules! when_admitted {
    ($call:expr) => {{
        let since = tokio::time::Instant::now();
        loop {
            match $call.await {
                Err(CallError::Overloaded { retry_after, .. }) if since.elapsed() < PATIENCE => {
                    tokio::time::sleep(retry_after.min(Duration::from_millis(100))).await;
                }
                result => break result,
            }
        }
    }};
}

/// What became of one decision.
#[derive(Debug)]
pub(super) enum Verdict {
    /// The same, byte for byte.
    Same,
    /// Something else.
    Other(Box<Other>),
}

/// A decision that differs.
#[derive(Debug)]
pub(super) struct Other {
    pub kind: DifferenceKind,
    /// Of the whole outcome, for comparing it with that of another isolation.
    pub digest: Digest,
    /// Bounded, as reports are.
    pub recorded: OutcomeView,
    pub replayed: OutcomeView,
}

/// What a module made of a command.
enum Attempt {
    Decided(Outcome),
    /// The platform would not have taken the command.
    Rejected(String),
    /// The module failed, or decided what the manifest does not allow.
    Failed(String),
}

/// Decides commands in one kind of isolation.
pub(super) struct Decider {
    log: Arc<dyn EventLog>,
    subjects: Subjects,
    is_fresh: bool,
    /// Aggregates kept folded, by category: as many as share an instance in service.
    warm: HashMap<Text, LruCache<StreamId, Folded>>,
}

/// An aggregate folded from what was recorded, up to a revision.
struct Folded {
    aggregate: Box<dyn Aggregate>,
    revision: Option<Revision>,
}

impl Decider {
    pub(super) fn new(log: Arc<dyn EventLog>, subjects: Subjects, is_fresh: bool) -> Self {
        let warm = subjects.iter().map(|(category, subject)| {
            let room = NonZeroUsize::try_from(subject.function.spec.instances.aggregates);
            (category.clone(), LruCache::new(room.unwrap_or(NonZeroUsize::MIN)))
        });
        let warm = warm.collect();
        Self { log, subjects, is_fresh, warm }
    }

    pub(super) fn is_fresh(&self) -> bool {
        self.is_fresh
    }

    /// Decides what a commit's command comes to now, and folds what was recorded, whatever is decided now.
    pub(super) async fn commit(&mut self, commit: &Commit) -> Result<Verdict, ReplayError> {
        let header = &commit.header;
        let Some((name, time, data)) = header
            .command
            .as_ref()
            .and_then(|command| Some((command.name.clone(), command.time, command.data.clone()?)))
        else {
            return Ok(Verdict::Same);
        };
        let Some(subject) = self.subjects.get(header.stream.category().as_bytes()).cloned() else {
            let why = format!("the manifest has no aggregate `{}`", header.stream.category());
            return Ok(other(commit, None, &Attempt::Rejected(why)));
        };
        let command = GuestCommand {
            id: header.command_id,
            name: CommandName::trusted(name),
            data,
            actor: header.actor.clone(),
            time,
            correlation_id: header.correlation_id.clone(),
            trace: None,
        };
        if let Err(kind) = subject.function.validate(&command.name, command.data.clone()) {
            return Ok(other(commit, Some(&subject), &Attempt::Rejected(kind.to_string())));
        }
        let before = header.first_revision.0.checked_sub(1).map(Revision);
        let (attempt, folded) = self.decide(&subject, &header.stream, before, &command).await?;
        let is_same = matches!(&attempt, Attempt::Decided(outcome) if is_same(commit, outcome));
        let fold = self.fold(commit, folded).await;
        Ok(match fold {
            _ if !is_same => other(commit, Some(&subject), &attempt),
            // What was recorded, it would decide again; and then it could not go on from there.
            Err(error) => {
                let why = format!("it can't fold what was recorded: {error}");
                other(commit, Some(&subject), &Attempt::Failed(why))
            }
            Ok(()) => Verdict::Same,
        })
    }

    /// What is decided now, on the history before the command.
    async fn decide(
        &mut self,
        subject: &Subject,
        stream: &StreamId,
        before: Option<Revision>,
        command: &GuestCommand,
    ) -> Result<(Attempt, Option<Folded>), ReplayError> {
        let mut attempt = 1;
        loop {
            let (error, folded) = match self.state(subject, stream, before).await? {
                Ok(mut folded) => match when_admitted!(folded.aggregate.decide(command)) {
                    Ok(decision) => {
                        let attempt = match subject.function.outcome(decision) {
                            Ok(outcome) => Attempt::Decided(outcome),
                            Err(kind) => Attempt::Failed(kind.to_string()),
                        };
                        return Ok((attempt, Some(folded)));
                    }
                    Err(error) => (error, Some(folded)),
                },
                Err(error) => (error, None),
            };
            drop(folded);
            match error {
                // It says nothing about the module.
                error @ (CallError::Failed(_) | CallError::Overloaded { .. }) => return Err(error.into()),
                // It may, or the machine was busy: seen once more, it does.
                CallError::InstanceLost | CallError::OutOfTime { .. } | CallError::OutOfCpu { .. }
                    if attempt < ATTEMPTS =>
                {
                    attempt += 1;
                }
                error => return Ok((Attempt::Failed(error.to_string()), None)),
            }
        }
    }

    /// The stream's aggregate as it was: kept since its last command, or folded from the start.
    async fn state(
        &mut self,
        subject: &Subject,
        stream: &StreamId,
        to: Option<Revision>,
    ) -> Result<Result<Folded, CallError>, ReplayError> {
        if let Some(warm) = self.warm.get_mut(stream.category().as_bytes())
            && let Some(folded) = warm.pop(stream).filter(|folded| folded.revision == to)
        {
            return Ok(Ok(folded));
        }
        let module = if self.is_fresh { &subject.fresh } else { &subject.shared };
        let warm = self.warm.get_mut(stream.category().as_bytes());
        let aggregate = match open(&**module, stream, warm).await {
            Ok(aggregate) => aggregate,
            Err(error) => return Ok(Err(error)),
        };
        let mut folded = Folded { aggregate, revision: None };
        while folded.revision < to {
            let from = Revision::after(folded.revision);
            let mut events = self.log.read_stream(stream, from, ReadLimits::PAGE).await?;
            events.retain(|event| Some(event.revision) <= to);
            let Some(last) = events.last().map(|event| event.revision) else {
                let end = to.map_or(0, |revision| revision.0);
                return Err(ReadError::Corrupt(format!(
                    "{stream} should reach revision {end} and ends before revision {from}"
                ))
                .into());
            };
            let past: Vec<PastEvent> = events.iter().map(PastEvent::from).collect();
            if let Err(error) = when_admitted!(folded.aggregate.apply(&past)) {
                return Ok(Err(error));
            }
            folded.revision = Some(last);
        }
        Ok(Ok(folded))
    }

    /// Folds what was recorded, and keeps the state for the stream's next command.
    async fn fold(&mut self, commit: &Commit, folded: Option<Folded>) -> Result<(), CallError> {
        let Some(mut folded) = folded else { return Ok(()) };
        if let Some(last) = commit.events.last().map(|event| event.revision) {
            let past: Vec<PastEvent> = commit.events.iter().map(PastEvent::from).collect();
            match when_admitted!(folded.aggregate.apply(&past)) {
                Ok(()) => folded.revision = Some(last),
                // Whoever needs it next folds it again.
                Err(CallError::InstanceLost) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        if !self.is_fresh
            && let Some(warm) = self.warm.get_mut(commit.header.stream.category().as_bytes())
        {
            warm.put(commit.header.stream.detached(), folded);
        }
        Ok(())
    }
}

/// Opens an aggregate; where all places are taken, those of warm aggregates are given back first.
async fn open(
    module: &dyn ebb_domain::port::guest::CommandModule,
    stream: &StreamId,
    mut warm: Option<&mut LruCache<StreamId, Folded>>,
) -> Result<Box<dyn Aggregate>, CallError> {
    loop {
        match module.open(stream, None).await {
            Err(CallError::Overloaded { .. }) if warm.as_mut().and_then(|warm| warm.pop_lru()).is_some() => {}
            Err(CallError::Overloaded { .. }) => {
                return when_admitted!(module.open(stream, None));
            }
            opened => return opened,
        }
    }
}

/// Byte for byte: types, data, and the whole refusal.
fn is_same(commit: &Commit, decided: &Outcome) -> bool {
    match (&commit.header.refusal, decided) {
        (Some(recorded), Outcome::Refused(refusal)) => recorded == refusal,
        (None, Outcome::Events(events)) => {
            commit.events.len() == events.len()
                && commit
                    .events
                    .iter()
                    .zip(events)
                    .all(|(then, now)| then.event_type == now.event_type && then.data == now.data)
        }
        _ => false,
    }
}

fn other(commit: &Commit, subject: Option<&Subject>, attempt: &Attempt) -> Verdict {
    let by_the_same_module = subject.is_some_and(|subject| subject.function.digest == commit.header.module);
    let refused = commit.header.refusal.is_some();
    let kind = match attempt {
        Attempt::Rejected(_) => DifferenceKind::Rejected,
        Attempt::Failed(_) => DifferenceKind::Failed,
        // The same bytes decided then: nothing but a leak explains it.
        Attempt::Decided(_) if by_the_same_module => DifferenceKind::NotDeterministic,
        Attempt::Decided(Outcome::Refused(_)) if refused => DifferenceKind::OtherRefusal,
        Attempt::Decided(Outcome::Refused(_)) => DifferenceKind::NowRefused,
        Attempt::Decided(Outcome::Events(_)) if refused => DifferenceKind::NowAccepted,
        Attempt::Decided(Outcome::Events(events)) => DifferenceKind::of_events(&commit.events, events),
    };
    let (digest, replayed) = match attempt {
        Attempt::Decided(outcome) => (digest_of(outcome), bounded_view(outcome)),
        Attempt::Rejected(why) => (Digest::of(why.as_bytes()), OutcomeView::Rejected(why.clone())),
        Attempt::Failed(why) => (Digest::of(why.as_bytes()), OutcomeView::Failed(why.clone())),
    };
    Verdict::Other(Box::new(Other { kind, digest, recorded: view_of_commit(commit), replayed }))
}
