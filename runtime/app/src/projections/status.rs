//! What a projection tells about itself.

use ebb_domain::event::Position;
use ebb_domain::name::{ModelName, ProjectionName, TopicName};
use ebb_domain::port::bus::PartitionLag;
use ebb_domain::port::models::{ProjectionVersion, Tried};
use ebb_domain::text::Text;
use serde::Serialize;

/// What a version of a projection is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum State {
    /// It reads what the log has had for some time.
    #[default]
    CatchingUp,
    /// It has read all that is durable, and waits for more.
    Live,
    /// An event failed, or something on our side did; it is tried again.
    Retrying {
        /// The event that stands at the front, if it is the event that fails.
        position: Option<Position>,
        /// How often it was tried.
        attempts: u32,
        /// Why it failed last.
        error: String,
    },
    /// The events that come next belong to a chain that has led to too much: they are given to it later.
    HeldBack {
        /// Which chain, and to how much.
        reason: String,
    },
    /// It goes no further without help: a key was to be parked past `max-parked`, or its rows are ahead of the log.
    Halted {
        /// Why, and what to do.
        reason: String,
    },
    /// It had read all that is durable when its app was closed, of which nothing is open since.
    Idle,
    /// Its module is not known any more; it serves what it has until its successor has caught up.
    Superseded,
    /// It was stopped.
    Stopped,
}

impl State {
    /// Its name: `catching-up`, `live`, `retrying`, `held-back`, `halted`, `idle`, `superseded`, `stopped`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::CatchingUp => "catching-up",
            Self::Live => "live",
            Self::Retrying { .. } => "retrying",
            Self::HeldBack { .. } => "held-back",
            Self::Halted { .. } => "halted",
            Self::Idle => "idle",
            Self::Superseded => "superseded",
            Self::Stopped => "stopped",
        }
    }

    pub(super) fn retrying(tried: &Tried) -> Self {
        Self::Retrying {
            position: Some(tried.position),
            attempts: tried.attempts,
            error: tried.reason.clone(),
        }
    }
}

/// What a version has done since its app was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Events applied.
    pub events: u64,
    /// Batches committed.
    pub batches: u64,
    /// Batches that ran again on one lane, because their lanes met on a row.
    pub collisions: u64,
    /// Calls of the module that failed.
    pub failures: u64,
    /// Commands of topics that were refused.
    pub refused: u64,
    /// Records of topics that had come before, and are not taken twice.
    pub duplicates: u64,
}

/// A version of a projection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VersionStatus {
    /// Its name; none while nobody had to look for it.
    pub version: Option<ProjectionVersion>,
    /// What it is doing.
    #[serde(flatten)]
    pub state: State,
    /// How far it has got: everything up to here is in its rows, or parked.
    pub mark: Position,
    /// Positions between the mark and the end of the log; of one that takes records straight from topics, records that it
    /// has still to take, as far as that is known.
    pub lag: u64,
    /// The topics that it takes records straight from, if it does: then its mark is no position of the log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topics: Option<TopicsStatus>,
    /// Parked keys.
    pub parked: u64,
    /// What it has done since its app was opened.
    #[serde(flatten)]
    pub counters: Counters,
    /// What went wrong last, if anything did.
    pub last_error: Option<String>,
    /// Bytes on disk; none while nobody had to look.
    pub size_bytes: Option<u64>,
}

/// Topics that a version takes records straight from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TopicsStatus {
    /// The consumer group under which Kafka's tools see how far it is.
    pub group: Text,
    /// The topics.
    pub topics: Vec<TopicName>,
    /// What is left of each partition, as the broker said last; none while it has not said.
    pub partitions: Option<Vec<PartitionLag>>,
}

/// What follows the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Turns events into rows.
    Projection,
    /// An event function: reacts to events.
    Function,
    /// Sends the commands that records of topics are.
    Commands,
}

/// A projection, or an event function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProjectionStatus {
    /// Its name.
    pub name: ProjectionName,
    /// Which of both it is.
    pub kind: Kind,
    /// The models that it writes.
    pub models: Vec<ModelName>,
    /// The version that serves queries.
    pub serving: VersionStatus,
    /// The version that is being built to take its place.
    pub building: Option<VersionStatus>,
}

impl ProjectionStatus {
    /// One of which only its app's rest is known: it has read everything up to there, and nothing is parked.
    pub(crate) fn resting(name: ProjectionName, kind: Kind, models: Vec<ModelName>, rest: Position) -> Self {
        let serving = VersionStatus {
            version: None,
            state: State::Idle,
            mark: rest,
            lag: 0,
            topics: None,
            parked: 0,
            counters: Counters::default(),
            last_error: None,
            size_bytes: None,
        };
        Self { name, kind, models, serving, building: None }
    }

    /// Whether people should look: halted, or trying again, or with parked keys.
    #[must_use]
    pub fn needs_attention(&self) -> bool {
        let worried = |version: &VersionStatus| {
            version.parked > 0 || matches!(version.state, State::Halted { .. } | State::Retrying { .. })
        };
        worried(&self.serving) || self.building.as_ref().is_some_and(worried)
    }
}
