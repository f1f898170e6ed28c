//! One batch, applied to rows: on one lane, or on several side by side.
//!
//! Lanes run against the same committed rows, each with its own overlay. Where two of them met on a row, or one of them
//! failed, the batch runs again on one lane: so the result is always that of one lane, and one place knows about
//! failures (see `failure`).

use super::overlay::{Models, Overlay, Touches};
use ebb_domain::event::{Position, StoredEvent};
use ebb_domain::manifest::LaneBy;
use ebb_domain::port::guest::{ApplyError, CallError, ProjectionModule};
use ebb_domain::port::models::{ModelError, ProjectionStore};
use ebb_domain::text::Text;
use ebb_domain::topic;
use futures_util::FutureExt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::num::NonZeroUsize;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::task::JoinSet;
use tracing::Instrument;

/// Collisions in a row after which a projection stays on one lane for a while.
const COLLISIONS: u32 = 8;

/// Batches that it then stays there.
const STAY: u32 = 256;

/// The longest lane key, in bytes; what is longer goes by its digest.
const MAX_KEY_BYTES: usize = 512;

/// What splits a batch, and what is parked when an event fails.
pub(super) fn lane_key(lane_by: &LaneBy, event: &StoredEvent) -> Text {
    match lane_by {
        LaneBy::Stream => event.stream().text().clone(),
        LaneBy::Correlation => bounded(event.commit.correlation_id.clone()),
        LaneBy::Field(field) => field_of(event, field).map_or_else(|| event.stream().text().clone(), bounded),
        // What nobody can read is in nobody's way.
        LaneBy::Record(_) if topic::is_unreadable(event) => alone(event.stream().text(), event.position),
        LaneBy::Record(selector) => {
            let select =
                |envelope: topic::Envelope| selector.select(&envelope, || event.json().unwrap_or_default());
            let key = event.envelope().and_then(select);
            key.map_or_else(|| event.stream().text().clone(), bounded)
        }
    }
}

/// The key of one event that is parked without holding up others.
pub(super) fn alone(key: &str, position: Position) -> Text {
    bounded(format!("{key}@{position}").into())
}

/// A top-level text or number of the event's JSON data.
fn field_of(event: &StoredEvent, field: &str) -> Option<Text> {
    match event.json()?.get(field)? {
        serde_json::Value::String(text) => Some(text.as_str().into()),
        serde_json::Value::Number(number) => Some(number.to_string().into()),
        _ => None,
    }
}

fn bounded(key: Text) -> Text {
    if key.len() <= MAX_KEY_BYTES {
        return key;
    }
    format!("sha256:{}", ebb_domain::digest::Digest::of(key.as_bytes())).into()
}

/// Why events could not be applied.
#[derive(Debug)]
pub(super) enum Failed {
    /// The module failed on one of them, or on none that it names.
    Module {
        /// The index of the event that failed; those before it could be applied.
        index: Option<usize>,
        reason: String,
        /// Trying again is of no use.
        poison: bool,
    },
    /// Something on our side: no instance free, an artefact that can't be read, the store. It says nothing about the
    /// events, and passes.
    Host(String),
}

impl From<ApplyError> for Failed {
    fn from(error: ApplyError) -> Self {
        match error {
            ApplyError::Event { index, message } => {
                Self::Module { index: Some(index), reason: message, poison: false }
            }
            ApplyError::Poison { index, message } => {
                Self::Module { index: Some(index), reason: message, poison: true }
            }
            ApplyError::Call(
                error @ (CallError::Overloaded { .. }
                | CallError::Failed(_)
                | CallError::InstanceLost
                | CallError::BadSnapshot(_)),
            ) => Self::Host(error.to_string()),
            ApplyError::Call(error) => Self::Module { index: None, reason: error.to_string(), poison: false },
        }
    }
}

impl From<ModelError> for Failed {
    fn from(error: ModelError) -> Self {
        Self::Host(error.to_string())
    }
}

/// A module and the committed rows that it works on.
#[derive(Clone)]
pub(super) struct Applier {
    pub module: Arc<dyn ProjectionModule>,
    pub store: Arc<dyn ProjectionStore>,
    pub models: Models,
}

impl Applier {
    /// Applies events in order, in one call, up to the first that is a record nobody can read.
    pub(super) async fn apply(&self, events: &[StoredEvent]) -> Result<Touches, Failed> {
        let Some(index) = events.iter().position(topic::is_unreadable) else {
            return self.apply_readable(events).await;
        };
        let touches = self.apply_readable(&events[..index]).await?;
        drop(touches);
        let problem = events[index].envelope().and_then(|envelope| envelope.problem);
        let reason = format!("the record can't be read: {}", problem.unwrap_or_default());
        Err(Failed::Module { index: Some(index), reason, poison: true })
    }

    async fn apply_readable(&self, events: &[StoredEvent]) -> Result<Touches, Failed> {
        if events.is_empty() {
            return Ok(Touches::none());
        }
        let overlay = Arc::new(Mutex::new(Overlay::new(self.store.clone(), self.models.clone())));
        // A bug in the engine is to be seen, and is no reason to stop for ever.
        let applied = AssertUnwindSafe(self.module.apply(events, overlay.clone())).catch_unwind().await;
        // Whatever the module made of a store that failed, the batch is not to be trusted.
        let touches = overlay.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        match applied.map_err(|_| Failed::Host("the engine panicked".into()))? {
            Ok(()) => Ok(touches),
            Err(ApplyError::Event { index, message }) if index >= events.len() => {
                let reason =
                    format!("the module says that event {index} of {} failed: {message}", events.len());
                Err(Failed::Module { index: None, reason, poison: false })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Applies the lanes of a batch side by side. None: run it on one lane instead.
    async fn apply_lanes(&self, lanes: Vec<Vec<StoredEvent>>) -> Lanes {
        let mut running = JoinSet::new();
        for events in lanes {
            let applier = self.clone();
            running.spawn(async move { applier.apply(&events).await }.in_current_span());
        }
        let mut done = Vec::new();
        // Dropping the set, when a lane failed or the projection is stopped, stops the others.
        while let Some(lane) = running.join_next().await {
            match lane {
                Ok(Ok(touches)) => done.push(touches),
                _ => return Lanes::Failed,
            }
        }
        Touches::join(done).map_or(Lanes::Collided, Lanes::Apart)
    }
}

enum Lanes {
    Apart(Touches),
    Collided,
    Failed,
}

/// Decides whether a batch is split, and learns from collisions.
#[derive(Debug)]
pub(super) struct Splitter {
    lanes: NonZeroUsize,
    /// Collisions in a row.
    streak: u32,
    /// Batches still to run on one lane.
    staying: u32,
    /// Collisions in all.
    pub collisions: u64,
}

impl Splitter {
    pub(super) fn new(lanes: NonZeroUsize) -> Self {
        Self { lanes, streak: 0, staying: 0, collisions: 0 }
    }

    /// Applies a batch: on several lanes where that pays, else, and after a collision or a failure, on one.
    /// `keys` are the lane keys of `events`.
    pub(super) async fn apply(
        &mut self,
        applier: &Applier,
        events: &[StoredEvent],
        keys: &[Text],
    ) -> Result<Touches, Failed> {
        if let Some(lanes) = self.split(events, keys) {
            match applier.apply_lanes(lanes).await {
                Lanes::Apart(touches) => {
                    self.streak = 0;
                    return Ok(touches);
                }
                Lanes::Collided => self.collided(),
                Lanes::Failed => {}
            }
        }
        applier.apply(events).await
    }

    fn collided(&mut self) {
        self.collisions += 1;
        self.streak += 1;
        if self.streak >= COLLISIONS {
            (self.streak, self.staying) = (0, STAY);
        }
    }

    /// The events of each lane that has any, in order; none if one lane does.
    fn split(&mut self, events: &[StoredEvent], keys: &[Text]) -> Option<Vec<Vec<StoredEvent>>> {
        let lanes = self.lanes.get();
        // A lane costs a call; for a handful of events it gives nothing back.
        if lanes == 1 || events.len() < 2 * lanes {
            return None;
        }
        if self.staying > 0 {
            self.staying -= 1;
            return None;
        }
        let mut split = vec![Vec::new(); lanes];
        for (event, key) in events.iter().zip(keys) {
            split[lane_of(key, lanes)].push(event.clone());
        }
        split.retain(|lane| !lane.is_empty());
        (split.len() > 1).then_some(split)
    }
}

fn lane_of(key: &Text, lanes: usize) -> usize {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    (hasher.finish() % lanes as u64) as usize
}
