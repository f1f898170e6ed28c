//! A version of a projection: its name, its rows, and how far they have got.

use super::overlay::Models;
use super::service::ProjectionDeployment;
use super::status::{Counters, Kind, State, TopicsStatus, VersionStatus};
use super::topic_feed::Topics;
use ebb_domain::digest::Digest;
use ebb_domain::event::Position;
use ebb_domain::manifest::{LaneBy, Source};
use ebb_domain::port::bus::PartitionLag;
use ebb_domain::port::guest::ProjectionModule;
use ebb_domain::port::models::{ModelError, ProjectionStore, ProjectionVersion};
use ebb_domain::topic::{Place, TopicSpec};
use parking_lot::{Mutex, RwLock};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use tokio::sync::{Notify, watch};

/// Bytes of a version's name that count its rebuilds.
const GENERATION_BYTES: usize = 8;

/// The name of a version: a digest of what its rows are a function of (module, source, lanes, models), whose last
/// eight bytes count the times that the same version was built again. Bounds and batch sizes are not part of it.
pub(super) fn declared(deployment: &ProjectionDeployment) -> ProjectionVersion {
    if deployment.effects.is_some() {
        // Whatever changes, it goes on where it is: what it did can't be undone and done anew.
        return generation_zero(Digest::of(b"ebbtide event function 1"));
    }
    let mut parts: Vec<Vec<u8>> = vec![b"ebbtide projection 1".to_vec(), deployment.module.0.to_vec()];
    let list = |names: Vec<&str>| names.join("\n").into_bytes();
    match &deployment.spec.source {
        Source::Log { aggregates, types } => {
            parts.push(list(aggregates.iter().map(|name| &**name).collect()));
            parts.push(list(types.iter().map(|name| &**name).collect()));
        }
        Source::Topics(source) => {
            parts.push(b"topics".to_vec());
            parts.push(list(source.topics.iter().map(|name| &**name).collect()));
            parts.push(list(source.types.iter().map(|name| &**name).collect()));
        }
    }
    if deployment.is_direct() {
        parts.push(b"direct".to_vec());
        // What comes by way of the log has been read when it was appended.
        for TopicSpec { event_type, data, dedupe, start: _ } in deployment.topics.values() {
            parts.push(format!("{} {data:?} {dedupe:?}", event_type.describe()).into_bytes());
        }
    }
    parts.push(match &deployment.spec.lane_by {
        LaneBy::Stream => b"stream".to_vec(),
        LaneBy::Correlation => b"correlation".to_vec(),
        LaneBy::Field(field) => format!("field {field}").into_bytes(),
        LaneBy::Record(selector) => format!("record {}", selector.describe()).into_bytes(),
    });
    let mut models: Vec<_> = deployment.models.iter().collect();
    models.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    parts.extend(models.into_iter().map(|model| serde_json::to_vec(model).unwrap_or_default()));
    generation_zero(Digest::of_parts(parts.iter().map(Vec::as_slice)))
}

fn generation_zero(mut digest: Digest) -> ProjectionVersion {
    digest.0[32 - GENERATION_BYTES..].fill(0);
    digest
}

/// Whether two names are of the same version, built perhaps more than once.
pub(super) fn is_same(a: &ProjectionVersion, b: &ProjectionVersion) -> bool {
    a.0[..32 - GENERATION_BYTES] == b.0[..32 - GENERATION_BYTES]
}

/// How often the version was built again.
pub(super) fn generation(version: &ProjectionVersion) -> u64 {
    version.0[32 - GENERATION_BYTES..].iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// The name of the same version, built once more.
pub(super) fn rebuilt(version: &ProjectionVersion) -> ProjectionVersion {
    let mut next = *version;
    next.0[32 - GENERATION_BYTES..].copy_from_slice(&(generation(version) + 1).to_be_bytes());
    next
}

/// What runs a version.
#[derive(Clone)]
pub(super) struct Program {
    pub deployment: Arc<ProjectionDeployment>,
    pub module: Arc<dyn ProjectionModule>,
}

/// A version that serves, or is being built.
pub(super) struct Version {
    pub key: ProjectionVersion,
    pub models: Models,
    /// None: it was deployed before the node was restarted, and only its rows are left.
    pub program: Option<Program>,
    /// The topics that it takes records straight from, if it does.
    pub topics: Option<Arc<Topics>>,
    body: RwLock<Arc<Body>>,
    progress: Arc<Mutex<Progress>>,
    /// Readers that wait for it to pass a position: then it does not wait for batches to fill up.
    pub waiting: AtomicUsize,
    /// Wakes its projector: a reader waits, or has opened files.
    pub nudge: Notify,
    /// Makes its projector open the rows again: a reader could not read them.
    pub doubt: Notify,
    in_use: AtomicBool,
}

/// Rows and how far they have got: of one file, so that what is known of a damaged one is never said of its successor.
pub(super) struct Body {
    pub store: Arc<dyn ProjectionStore>,
    /// How far the projection has got. Behind the store's mark it has seen only events that it does not want, so this
    /// is where its rows stand. It never goes back.
    pub passed: watch::Sender<Position>,
    pub parks: Mutex<Parks>,
    /// Where that is in each partition, for a version that takes records straight from topics.
    pub places: Mutex<Vec<Place>>,
}

/// What is parked, in short. Never behind `passed`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Parks {
    pub count: u64,
    pub first: Option<Position>,
}

impl Parks {
    pub(super) fn of(store: &dyn ProjectionStore) -> Result<Self, ModelError> {
        Ok(Self { count: store.parked_count()?, first: store.first_parked()? })
    }
}

#[derive(Clone, Debug, Default)]
struct Progress {
    state: State,
    counters: Counters,
    last_error: Option<String>,
}

impl Body {
    /// What a store says of itself. Blocks.
    pub(super) fn open(store: Arc<dyn ProjectionStore>) -> Result<Arc<Self>, ModelError> {
        let passed = watch::Sender::new(store.mark()?);
        let parks = Mutex::new(Parks::of(&*store)?);
        let places = Mutex::new(store.places()?);
        Ok(Arc::new(Self { store, passed, parks, places }))
    }
}

impl Version {
    pub(super) fn new(
        key: ProjectionVersion,
        models: Models,
        program: Option<Program>,
        body: Arc<Body>,
    ) -> Arc<Self> {
        let state = if program.is_some() { State::CatchingUp } else { State::Superseded };
        Arc::new(Self {
            key,
            models,
            topics: program.as_ref().and_then(|program| program.deployment.direct()),
            program,
            body: RwLock::new(body),
            progress: Arc::new(Mutex::new(Progress { state, ..Progress::default() })),
            waiting: AtomicUsize::new(0),
            nudge: Notify::new(),
            doubt: Notify::new(),
            in_use: AtomicBool::new(false),
        })
    }

    /// The same version, with the same rows, run with other settings.
    pub(super) fn with(&self, program: Program) -> Arc<Self> {
        let progress = self.progress.clone();
        progress.lock().state = State::CatchingUp;
        Arc::new(Self {
            key: self.key,
            models: self.models.clone(),
            topics: program.deployment.direct(),
            program: Some(program),
            body: RwLock::new(self.body()),
            progress,
            waiting: AtomicUsize::new(0),
            nudge: Notify::new(),
            doubt: Notify::new(),
            in_use: AtomicBool::new(false),
        })
    }

    /// What it is a version of.
    pub(super) fn kind(&self) -> Kind {
        self.program.as_ref().map_or(Kind::Projection, |program| program.deployment.kind())
    }

    /// Whether it is an event function's.
    pub(super) fn has_effects(&self) -> bool {
        self.program.as_ref().is_some_and(|program| program.deployment.effects.is_some())
    }

    /// Whether it takes records straight from topics.
    pub(super) fn is_direct(&self) -> bool {
        // One whose module is not known any more stands somewhere still.
        self.topics.is_some() || (self.program.is_none() && !self.body().places.lock().is_empty())
    }

    /// What it has not seen yet of a log that ends there, or of its topics, as far as that is known.
    pub(super) fn lag(&self, end: Position) -> u64 {
        match &self.topics {
            Some(_) => self.left().into_iter().flatten().map(|partition| partition.lag).sum(),
            // Its module is not known any more, nor what is left for it.
            None if self.is_direct() => 0,
            None => end.0.saturating_sub(self.passed().0),
        }
    }

    /// What is left of the partitions that it takes records straight from; none while that is not known.
    pub(super) fn left(&self) -> Option<Vec<PartitionLag>> {
        self.topics.as_ref()?.left(&self.body().places.lock())
    }

    pub(super) fn body(&self) -> Arc<Body> {
        self.body.read().clone()
    }

    pub(super) fn set_body(&self, body: Arc<Body>) {
        *self.body.write() = body;
    }

    pub(super) fn passed(&self) -> Position {
        *self.body.read().passed.borrow()
    }

    /// A reader is about to use the store; its files will be closed when nobody has for a while.
    pub(super) fn touch(&self) {
        if !self.in_use.load(Ordering::Relaxed) && !self.in_use.swap(true, Ordering::Relaxed) {
            self.nudge.notify_one();
        }
    }

    /// Whether a reader has used the store since this was asked last.
    pub(super) fn was_in_use(&self) -> bool {
        self.in_use.swap(false, Ordering::Relaxed)
    }

    pub(super) fn set_state(&self, state: State) {
        let mut progress = self.progress.lock();
        if let State::Retrying { error, .. }
        | State::HeldBack { reason: error }
        | State::Halted { reason: error } = &state
        {
            progress.last_error = Some(error.clone());
        }
        progress.state = state;
    }

    pub(super) fn state(&self) -> State {
        self.progress.lock().state.clone()
    }

    pub(super) fn count(&self, count: impl FnOnce(&mut Counters)) {
        count(&mut self.progress.lock().counters);
    }

    pub(super) fn status(&self, end: Position) -> VersionStatus {
        let body = self.body();
        let progress = self.progress.lock().clone();
        let mark = *body.passed.borrow();
        let parked = body.parks.lock().count;
        VersionStatus {
            version: Some(self.key),
            state: progress.state,
            mark,
            lag: self.lag(end),
            topics: self.topics.as_ref().map(|topics| TopicsStatus {
                group: topics.group.clone(),
                topics: topics.specs.keys().cloned().collect(),
                partitions: self.left(),
            }),
            parked,
            counters: Counters {
                refused: self.program.as_ref().map_or(0, |program| program.module.refused()),
                ..progress.counters
            },
            last_error: progress.last_error,
            size_bytes: Some(body.store.size_bytes()),
        }
    }
}
