//! An app's manifest, `ebb.toml`: parsed once into types, or every problem at once.
//!
//! Nothing here opens a file: what the manifest refers to is listed by [`Manifest::files`], and a caller who has the
//! files at hand lets [`Manifest::parse_with`] look at them, so that one report has everything.

mod files;
pub mod function;
mod parse;
mod problem;
mod reader;
#[cfg(test)]
mod tests;

pub use files::{FilePurpose, FileRef};
pub use function::{Beginning, Capabilities, EventTrigger, FunctionSpec, HttpTrigger, Trigger};
pub use problem::{FILE_NAME, Place, Problem, ProblemKind, Problems};

use crate::limits::{InstancePolicy, Limits};
use crate::model::ModelSchema;
use crate::name::{
    AggregateName, AppName, CommandName, EventType, FunctionName, ModelName, ProjectionName, TopicName,
};
use crate::text::Text;
use crate::topic::{CommandSource, RelaySpec, Selector, TopicSource, TopicSpec, Via};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::num::{NonZeroU16, NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

/// A checked manifest.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// The app's name.
    pub name: AppName,
    /// Host names that select this app, lower case, without port.
    pub hosts: Vec<String>,
    /// How `ebb build` builds it.
    pub build: Option<Build>,
    /// Origins that browsers may call from; see [`Cors`].
    pub cors: Option<Cors>,
    /// Aggregates by name.
    pub aggregates: BTreeMap<AggregateName, AggregateSpec>,
    /// Models by name. Each is written by exactly one projection.
    pub models: BTreeMap<ModelName, ModelSpec>,
    /// Projections by name.
    pub projections: BTreeMap<ProjectionName, ProjectionSpec>,
    /// Functions by name.
    pub functions: BTreeMap<FunctionName, FunctionSpec>,
    /// How records of topics are read, by topic. Topics that are not here are read by the defaults.
    pub topics: BTreeMap<TopicName, TopicSpec>,
    /// How events go to Kafka.
    pub relay: Relay,
    /// What one cause may lead to.
    pub chains: ChainSpec,
    needs_kafka: Option<(String, Place)>,
    files: Vec<FileRef>,
}

/// `app.relay`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Relay {
    /// Nothing is said: events go to Kafka if the node has brokers.
    #[default]
    Default,
    /// They don't.
    Off,
    /// They do, in this way.
    On(RelaySpec),
}

impl Manifest {
    /// Reads a manifest.
    ///
    /// # Errors
    /// Everything that is wrong with it, each with its line, what is wrong and what to write instead.
    pub fn parse(text: &str) -> Result<Self, Problems> {
        parse::parse(text, &mut |_| None)
    }

    /// Reads a manifest, and lets `inspect` look at each file that it refers to, so that what is wrong with files is
    /// in the same report. [`FileRef::inspect`] does what is usual.
    ///
    /// # Errors
    /// Everything that is wrong with the manifest and with its files.
    pub fn parse_with(
        text: &str,
        mut inspect: impl FnMut(&FileRef) -> Option<Problem>,
    ) -> Result<Self, Problems> {
        parse::parse(text, &mut inspect)
    }

    /// Every file that the manifest refers to, as often as it does, in the order of its sections.
    #[must_use]
    pub fn files(&self) -> &[FileRef] {
        &self.files
    }

    /// Consumers that bring topics into the log: by group, which topics, and where each of them begins.
    #[must_use]
    pub fn consumed(&self) -> BTreeMap<Text, BTreeMap<TopicName, TopicSpec>> {
        let mut groups: BTreeMap<Text, BTreeMap<TopicName, TopicSpec>> = BTreeMap::new();
        let projections = self.projections.values().map(|projection| &projection.source);
        let functions = self.functions.values().filter_map(|function| match &function.trigger {
            Trigger::Events(trigger) => Some(&trigger.source),
            Trigger::Http(_) => None,
        });
        let sources = projections.chain(functions).filter_map(|source| match source {
            Source::Topics(source) if source.via == Via::Log => Some((&source.group, &source.topics)),
            Source::Topics(_) | Source::Log { .. } => None,
        });
        let commands = self.aggregates.values().filter_map(|aggregate| aggregate.source.as_ref());
        for (group, topics) in sources.chain(commands.map(|source| (&source.group, &source.topics))) {
            let group = groups.entry(group.clone()).or_default();
            group.extend(topics.iter().map(|topic| (topic.clone(), self.topic(topic))));
        }
        groups
    }

    /// Whether a projection takes records straight from topics.
    #[must_use]
    pub fn has_direct(&self) -> bool {
        self.projections.values().any(|projection| projection.source.is_direct())
    }

    /// How records of a topic are read.
    #[must_use]
    pub fn topic(&self, topic: &TopicName) -> TopicSpec {
        self.topics.get(topic).cloned().unwrap_or_default()
    }

    /// How events go to Kafka, if they do; `brokers` says whether the node has some.
    #[must_use]
    pub fn relay(&self, brokers: bool) -> Option<RelaySpec> {
        match &self.relay {
            Relay::On(spec) => Some(spec.clone()),
            Relay::Default if brokers && !self.aggregates.is_empty() => Some(RelaySpec::default()),
            Relay::Default | Relay::Off => None,
        }
    }

    /// The first thing in it that needs Kafka, as its key: `projection.delays.source`; none if nothing does.
    #[must_use]
    pub fn needs_kafka(&self) -> Option<&(String, Place)> {
        self.needs_kafka.as_ref()
    }

    /// The projection that writes a model.
    #[must_use]
    pub fn writer_of(&self, model: &str) -> Option<&ProjectionSpec> {
        self.projections.values().find(|projection| projection.models.iter().any(|name| &**name == model))
    }
}

/// `[build]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Build {
    /// A shell command, run in the manifest's folder.
    pub command: String,
    /// Files and folders, relative to the manifest, whose changes `ebb dev` rebuilds for; default: `src`, `Cargo.toml`,
    /// `ebb.toml` and whatever else is there, without `target` and hidden folders.
    pub watch: Vec<String>,
}

/// `app.chains`: what one cause may lead to, by way of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ChainSpec {
    /// Functions and topics that may lie between a command and what began its chain.
    pub hops: NonZeroU16,
    /// Commands that events of one chain may lead to within a minute.
    pub per_minute: NonZeroU32,
}

impl Default for ChainSpec {
    fn default() -> Self {
        Self { hops: Self::HOPS, per_minute: Self::PER_MINUTE }
    }
}

impl ChainSpec {
    /// `hops` where the manifest does not say.
    pub const HOPS: NonZeroU16 = NonZeroU16::new(16).unwrap();
    /// `per-minute` where the manifest does not say: a hundred a second.
    pub const PER_MINUTE: NonZeroU32 = NonZeroU32::new(6000).unwrap();
}

/// `app.cors`: which browser origins may call the app's data plane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cors {
    /// `https://shop.example`, or `*` alone.
    pub origins: Vec<String>,
    /// How long a browser may remember a preflight answer.
    pub max_age: Duration,
}

impl Cors {
    /// `max-age` where the manifest does not say.
    pub const DEFAULT_MAX_AGE: Duration = Duration::from_secs(600);
}

/// Who may use something: `allow = ["alice", "service:*"]`. None: everyone.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize)]
pub struct Allow(pub Option<BTreeSet<String>>);

impl Allow {
    /// Whether this actor may. An entry that ends in `*` matches by what stands before it.
    #[must_use]
    pub fn permits(&self, actor: &str) -> bool {
        self.0.as_ref().is_none_or(|entries| {
            entries.iter().any(|entry| match entry.strip_suffix('*') {
                Some(prefix) => actor.starts_with(prefix),
                None => entry == actor,
            })
        })
    }
}

/// `[aggregate.NAME]`.
#[derive(Clone, Debug)]
pub struct AggregateSpec {
    /// Its name, and the category of its streams.
    pub name: AggregateName,
    /// The module's file, relative to the manifest.
    pub module: PathBuf,
    /// Commands by name.
    pub commands: BTreeMap<CommandName, CommandSpec>,
    /// Event types by name; a module that decides others is in error.
    pub events: BTreeMap<EventType, EventSpec>,
    /// Events between snapshots of a stream.
    pub snapshot_every: NonZeroU32,
    /// Modules that declare the same one understand each other's snapshots.
    pub state_version: Option<u32>,
    /// Whether the log keeps the bodies of commands, so that they can be decided again.
    pub record_commands: bool,
    /// Who may send commands.
    pub allow: Allow,
    /// Bounds.
    pub limits: Limits,
    /// How its instances live.
    pub instances: InstancePolicy,
    /// Topics whose records are commands.
    pub source: Option<CommandSource>,
}

impl AggregateSpec {
    /// The name by which its commands from topics are consumed, among projections and event functions.
    #[must_use]
    pub fn consumer(&self) -> ProjectionName {
        ProjectionName::trusted(format!("{}-commands", self.name).into())
    }

    /// `snapshot-every` where the manifest does not say.
    pub const DEFAULT_SNAPSHOT_EVERY: NonZeroU32 = NonZeroU32::new(100).unwrap();
}

/// A command that an aggregate understands.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct CommandSpec {
    /// The JSON Schema file of its body, relative to the manifest.
    pub schema: Option<PathBuf>,
}

/// An event type that an aggregate may decide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventSpec {
    /// The version that new events of this type get.
    pub version: u32,
    /// The JSON Schema file of its data, relative to the manifest.
    pub schema: Option<PathBuf>,
}

/// `[model.NAME]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelSpec {
    /// The table.
    pub schema: ModelSchema,
    /// Who may query it.
    pub allow: Allow,
}

impl ModelSpec {
    /// Columns of a model at most.
    pub const MAX_COLUMNS: usize = 200;
    /// Indexes of a model at most.
    pub const MAX_INDEXES: usize = 16;
}

/// `[projection.NAME]`.
#[derive(Clone, Debug)]
pub struct ProjectionSpec {
    /// Its name.
    pub name: ProjectionName,
    /// The module's file, relative to the manifest.
    pub module: PathBuf,
    /// The models it writes.
    pub models: BTreeSet<ModelName>,
    /// Which events it wants.
    pub source: Source,
    /// How much it takes at once.
    pub batch: Batch,
    /// Parts of a batch that run side by side.
    pub lanes: NonZeroUsize,
    /// What splits a batch into lanes, and what is parked when an event fails.
    pub lane_by: LaneBy,
    /// How often a failing event is tried before its key is parked.
    pub retry: Retry,
    /// Where an event goes that failed for the last time, besides being parked alone; none: its key is parked.
    pub dead_letter: Option<TopicName>,
    /// Parked keys at which the projection halts.
    pub max_parked: u64,
    /// Bounds.
    pub limits: Limits,
    /// How its instances live.
    pub instances: InstancePolicy,
}

impl ProjectionSpec {
    /// `max-parked` where the manifest does not say.
    pub const DEFAULT_MAX_PARKED: u64 = 10_000;
}

/// Where a projection's events come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Kafka topics.
    Topics(TopicSource),
    /// The app's log.
    Log {
        /// Only events of these aggregates; empty: of all.
        aggregates: BTreeSet<AggregateName>,
        /// Only these types; empty: all.
        types: BTreeSet<EventType>,
    },
}

impl Source {
    /// The topics that a source names.
    #[must_use]
    pub fn consumed(source: Option<&Self>) -> BTreeSet<TopicName> {
        match source {
            Some(Self::Topics(source)) => source.topics.clone(),
            _ => BTreeSet::new(),
        }
    }

    /// Whether it is of records that come straight from topics.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        matches!(self, Self::Topics(source) if source.via == Via::Direct)
    }
}

/// `batch = { max-events, max-wait }`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Events of a batch at most.
    pub max_events: NonZeroUsize,
    /// How long a batch may wait to fill up once it has an event.
    pub max_wait: Duration,
}

/// What splits a batch into lanes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LaneBy {
    /// The event's stream.
    Stream,
    /// The event's correlation id.
    Correlation,
    /// A top-level text or number of the event's JSON data; events without it go by stream.
    Field(String),
    /// A part of the record that the event is; those without it go by stream.
    Record(Selector),
}

impl LaneBy {
    /// Where the manifest does not say: by stream, and records of topics by their key.
    #[must_use]
    pub fn usual(source: Option<&Source>) -> Self {
        match source {
            Some(Source::Topics(_)) => Self::Record(Selector::Key),
            _ => Self::Stream,
        }
    }
}

/// `retry = { attempts, backoff, max-backoff }`: exponential with jitter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Tries in all.
    pub attempts: NonZeroU32,
    /// Before the second try.
    pub backoff: Duration,
    /// At most.
    pub max_backoff: Duration,
    /// An event that is older than this when it fails is not tried again.
    pub max_age: Option<Duration>,
}

impl Default for Batch {
    fn default() -> Self {
        Self { max_events: NonZeroUsize::new(500).unwrap(), max_wait: Duration::from_millis(20) }
    }
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: NonZeroU32::new(5).unwrap(),
            backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(10),
            max_age: None,
        }
    }
}
