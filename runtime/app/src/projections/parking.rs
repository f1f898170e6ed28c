//! Parked keys: known to the projector, so that later events of a key queue behind it; and the commands about them, and
//! about where an event function stands.
//!
//! A command runs between two batches, in the projector's own task: it is the only one that writes.

use super::effects;
use super::failure::{Front, Next};
use super::projector::{Flow, Projector, Stop};
use super::service::ProjectionError;
use ebb_domain::event::{Position, StoredEvent};
use ebb_domain::manifest::Beginning;
use ebb_domain::port::models::{ParkChange, ProjectionStore, RowBatch};
use ebb_domain::text::Text;
use std::collections::HashSet;
use tokio::sync::oneshot;
use tracing::info;

/// What became of a retry.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Retried {
    /// Events of the key's queue that are in the rows now.
    pub applied: u64,
    /// Events that still queue; none: the key is not parked any more.
    pub remaining: u64,
    /// Why the first of them failed again.
    pub failed: Option<String>,
}

/// What became of skipping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Skipped {
    /// Events that will never be in the rows.
    pub skipped: u64,
    /// Events that still queue; none: the key is not parked any more.
    pub remaining: u64,
}

/// Where an event function goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seek {
    /// As at a first deployment: with what happens from now on, or with the first event.
    To(Beginning),
    /// With the first event behind this position.
    Behind(Position),
}

/// What a projector is asked to do between two batches, and whoever waits for what becomes of it.
pub(super) enum Command {
    Seek { to: Seek, answer: oneshot::Sender<Result<Position, ProjectionError>> },
    Show { key: Text, answer: oneshot::Sender<Result<StoredEvent, ProjectionError>> },
    Retry { key: Text, answer: oneshot::Sender<Result<Retried, ProjectionError>> },
    Skip { key: Text, whole: bool, answer: oneshot::Sender<Result<Skipped, ProjectionError>> },
}

/// The keys that are parked.
#[derive(Debug, Default)]
pub(super) struct ParkedKeys(HashSet<Text>);

impl ParkedKeys {
    /// Reads them. Blocks.
    pub(super) fn load(store: &dyn ProjectionStore) -> Result<Self, ebb_domain::port::models::ModelError> {
        const PAGE: usize = 1000;
        let mut keys = HashSet::new();
        let mut after: Option<Text> = None;
        loop {
            let page = store.parked(after.as_deref(), PAGE)?;
            after = page.last().map(|parked| parked.key.clone());
            let full = page.len() == PAGE;
            keys.extend(page.into_iter().map(|parked| parked.key));
            if !full {
                return Ok(Self(keys));
            }
        }
    }

    pub(super) fn contains(&self, key: &Text) -> bool {
        self.0.contains(key)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn len(&self) -> u64 {
        self.0.len() as u64
    }

    /// Follows what was committed.
    pub(super) fn insert(&mut self, key: &Text) {
        self.0.insert(key.detached());
    }

    fn remove(&mut self, key: &Text) {
        self.0.remove(key);
    }
}

impl Projector {
    /// Carries out a command.
    pub(super) async fn handle(&mut self, command: Command) -> Flow<()> {
        match command {
            Command::Seek { to, answer } => {
                let done = self.seek(to).await;
                let moved = done.is_ok();
                answered(answer, done)?;
                // All that was read is read again from there.
                if moved { Err(Stop::Moved) } else { Ok(()) }
            }
            Command::Show { key, answer } => {
                let found = self.first(&key).await;
                answered(answer, found)
            }
            Command::Retry { key, answer } => {
                let done = self.retry(&key).await;
                answered(answer, done)
            }
            Command::Skip { key, whole, answer } => {
                let done = self.skip(&key, whole).await;
                answered(answer, done)
            }
        }
    }

    /// Applies a key's queue in order, up to the first event that fails.
    async fn retry(&mut self, key: &Text) -> Result<Retried, CommandFailure> {
        let mut retried = Retried::default();
        let most = self.max_events();
        let mut front = Front::new(most, None);
        loop {
            let queued = self.queued(key, most).await?;
            if queued.is_empty() {
                if retried.applied == 0 && !self.parked.contains(key) {
                    return Err(self.not_parked(key).into());
                }
                self.parked.remove(key);
                info!(app = %self.app(), projection = %self.name(), %key, applied = retried.applied, "no longer parked");
                return Ok(retried);
            }
            let size = front.size(&queued);
            let queued = &queued[..size];
            let events = self.events_at(queued).await?;
            let last = queued[size - 1];
            match self.unless_stopped(self.applier.apply(&events)).await? {
                Ok(touches) => {
                    let done = ParkChange::Done { key: key.detached(), through: last };
                    let batch = RowBatch {
                        changes: touches.into_changes(),
                        parks: vec![done],
                        ..RowBatch::default()
                    };
                    self.commit(batch).await?;
                    retried.applied += size as u64;
                    self.version.count(|counters| counters.events += size as u64);
                    front.passed(last);
                }
                Err(failed) => match front.failed(failed, queued, 1) {
                    Next::Fewer => {}
                    Next::Again(tried) | Next::Park(tried) => {
                        let at = self.now();
                        let failed =
                            ParkChange::Failed { key: key.detached(), reason: tried.reason.clone(), at };
                        self.commit(RowBatch { parks: vec![failed], ..RowBatch::default() }).await?;
                        retried.failed = Some(tried.reason);
                        retried.remaining = self.remaining(key).await?;
                        return Ok(retried);
                    }
                    Next::Wait(reason) => return Err(ProjectionError::Unavailable(reason).into()),
                },
            }
        }
    }

    /// Leaves out the first event of a key's queue, or all of it.
    async fn skip(&mut self, key: &Text, whole: bool) -> Result<Skipped, CommandFailure> {
        let before = self.remaining(key).await?;
        let Some(first) = self.queued(key, 1).await?.first().copied() else {
            return Err(self.not_parked(key).into());
        };
        let through = if whole { self.mark() } else { first };
        let done = ParkChange::Done { key: key.detached(), through };
        self.commit(RowBatch { parks: vec![done], ..RowBatch::default() }).await?;
        let remaining = self.remaining(key).await?;
        if remaining == 0 {
            self.parked.remove(key);
        }
        let skipped = before.saturating_sub(remaining);
        info!(app = %self.app(), projection = %self.name(), %key, %first, skipped, "skipped by command");
        Ok(Skipped { skipped, remaining })
    }

    /// Goes on elsewhere. Where how far it had got was lost, this is where it begins.
    async fn seek(&mut self, to: Seek) -> Result<Position, CommandFailure> {
        let name = self.name().clone();
        if !self.parked.is_empty() {
            return Err(ProjectionError::Parked { name, count: self.parked.len() }.into());
        }
        let end = self.log.durable().borrow().position;
        let mark = match to {
            Seek::To(from) => effects::beginning(from, &*self.log),
            Seek::Behind(wanted) if wanted > end => {
                return Err(ProjectionError::NoPosition { wanted, end }.into());
            }
            Seek::Behind(position) => position,
        };
        let before = self.mark();
        self.go_on_behind(mark).await?;
        info!(app = %self.app(), function = %name, %before, %mark, "goes on elsewhere by command");
        Ok(mark)
    }

    async fn queued(&self, key: &Text, limit: usize) -> Result<Vec<Position>, CommandFailure> {
        let (store, key) = (self.store(), key.clone());
        Ok(super::blocking(move || store.queued(&key, limit)).await.map_err(ProjectionError::Store)?)
    }

    async fn remaining(&self, key: &Text) -> Result<u64, CommandFailure> {
        let (store, key) = (self.store(), key.clone());
        let parked = super::blocking(move || store.parked_key(&key)).await.map_err(ProjectionError::Store)?;
        Ok(parked.map_or(0, |parked| parked.queued))
    }

    /// The events at these positions, which are parked.
    async fn events_at(&self, positions: &[Position]) -> Result<Vec<StoredEvent>, CommandFailure> {
        let mut events = Vec::with_capacity(positions.len());
        for position in positions {
            let event = self.feed.parked_event(self.store(), *position).await;
            events.push(event.map_err(ProjectionError::Unavailable)?);
        }
        Ok(events)
    }

    /// The event that stands first in a key's queue.
    async fn first(&self, key: &Text) -> Result<StoredEvent, CommandFailure> {
        let first = self.queued(key, 1).await?;
        let event = self.events_at(&first).await?.into_iter().next();
        Ok(event.ok_or_else(|| self.not_parked(key))?)
    }

    fn not_parked(&self, key: &Text) -> ProjectionError {
        ProjectionError::NotParked { projection: self.name().clone(), key: key.clone() }
    }
}

/// Why a command came to nothing: for whoever asked, or for the projector as well.
enum CommandFailure {
    Answer(ProjectionError),
    Stop(Stop),
}

impl From<ProjectionError> for CommandFailure {
    fn from(error: ProjectionError) -> Self {
        Self::Answer(error)
    }
}

impl From<Stop> for CommandFailure {
    fn from(stop: Stop) -> Self {
        Self::Stop(stop)
    }
}

/// Answers whoever asked; they may have gone.
fn answered<T>(
    answer: oneshot::Sender<Result<T, ProjectionError>>,
    done: Result<T, CommandFailure>,
) -> Flow<()> {
    match done {
        Ok(done) => {
            let _ = answer.send(Ok(done));
            Ok(())
        }
        Err(CommandFailure::Answer(error)) => {
            let _ = answer.send(Err(error));
            Ok(())
        }
        Err(CommandFailure::Stop(Stop::Host(reason))) => {
            let _ = answer.send(Err(ProjectionError::Unavailable(reason.clone())));
            Err(Stop::Host(reason))
        }
        Err(CommandFailure::Stop(stop)) => Err(stop),
    }
}
