//! What a manifest says about topics.

use super::selector::Selector;
use crate::limits::Limits;
use crate::manifest::{Batch, Retry};
use crate::name::{AggregateName, EventType, TopicName};
use crate::text::Text;
use crate::time::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;

/// `source = { topics = […] }`: records of topics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicSource {
    /// The topics.
    pub topics: BTreeSet<TopicName>,
    /// Only these types; empty: all.
    pub types: BTreeSet<EventType>,
    /// The consumer group, as Kafka's tools see it.
    pub group: Text,
    /// How records come to it.
    pub via: Via,
}

/// How records of topics come to a projection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Via {
    /// By way of the app's log: appended to it once, and read from it as any event is.
    #[default]
    Log,
    /// Straight: nothing of it is in the log, and how far it has got commits with the rows.
    Direct,
}

/// `[topic.NAME]`: how records of a topic are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicSpec {
    /// Where a group begins that has consumed nothing of it.
    pub start: Start,
    /// The type of records that are not CloudEvents; `Record` where nothing stands there.
    pub event_type: Selector,
    /// A top-level field of the JSON value that is the data; none: the whole value is.
    pub data: Option<String>,
    /// Which records are the same one, sent twice.
    pub dedupe: Option<Dedupe>,
}

impl TopicSpec {
    /// The type of records that say nothing about it.
    pub const DEFAULT_TYPE: Text = Text::from_static("Record");
}

impl Default for TopicSpec {
    fn default() -> Self {
        Self {
            start: Start::default(),
            event_type: Selector::Fixed(Self::DEFAULT_TYPE),
            data: None,
            dedupe: None,
        }
    }
}

/// Where a group begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// With the first record that the topic still has.
    #[default]
    Earliest,
    /// With what is produced from now on.
    Latest,
    /// With the first record of this time or later.
    At(Timestamp),
}

/// What makes two records the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dedupe {
    /// CloudEvents `source` and `id`, within a day.
    EventId,
}

/// `[aggregate.NAME] source = { topics = […] }`: records that are commands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandSource {
    /// The topics.
    pub topics: BTreeSet<TopicName>,
    /// The consumer group.
    pub group: Text,
    /// The stream's key.
    pub key: Selector,
    /// The command's name.
    pub command: Selector,
    /// What makes a command the same, however often it comes.
    pub identity: CommandIdentity,
    /// Where outcomes are sent, if anywhere.
    pub reply_to: Option<TopicName>,
    /// How much is taken at once.
    pub batch: Batch,
    /// How often a failing command is tried.
    pub retry: Retry,
    /// Where a record goes that failed for the last time; none: its key is parked.
    pub dead_letter: Option<TopicName>,
    /// Parked keys at which it halts.
    pub max_parked: u64,
    /// What a decision may take.
    pub limits: Limits,
}

/// What makes a command from Kafka the same one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommandIdentity {
    /// The record itself, for ever.
    Record,
    /// CloudEvents `source` and `id`, for a day.
    EventId,
    /// A header, for a day.
    Header(String),
}

/// `app.relay`: events to Kafka.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelaySpec {
    /// How.
    pub mode: RelayMode,
    /// Topics other than `{app}.{aggregate}`.
    pub topics: BTreeMap<AggregateName, TopicName>,
    /// Only these aggregates; empty: all.
    pub aggregates: BTreeSet<AggregateName>,
    /// Partitions of topics that are made.
    pub partitions: NonZeroU32,
    /// Replicas of topics that are made; none: as the broker does.
    pub replication: Option<NonZeroU32>,
    /// `max.message.bytes` of topics that are made.
    pub max_message_bytes: u32,
}

/// How the relay publishes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RelayMode {
    /// Each event at least once: after a crash the last ones come again, with the same ids.
    #[default]
    AtLeastOnce,
    /// Events and how far the relay has got in one transaction: who reads committed records sees each once.
    Transactional,
}

impl RelaySpec {
    /// `partitions` where the manifest does not say.
    pub const DEFAULT_PARTITIONS: NonZeroU32 = NonZeroU32::new(3).unwrap();
    /// `max-message-bytes` where the manifest does not say: what an event's data may be, with room for headers.
    pub const DEFAULT_MAX_MESSAGE: u32 = 1 << 20;
}

impl Default for RelaySpec {
    fn default() -> Self {
        Self {
            mode: RelayMode::default(),
            topics: BTreeMap::new(),
            aggregates: BTreeSet::new(),
            partitions: Self::DEFAULT_PARTITIONS,
            replication: None,
            max_message_bytes: Self::DEFAULT_MAX_MESSAGE,
        }
    }
}
