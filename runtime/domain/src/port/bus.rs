//! A message broker, as the use cases see it: where events go, and where records come from.

use super::Future;
use crate::event::{EventId, Position};
use crate::name::{AppName, TopicName};
use crate::text::Text;
use crate::topic::{NewRecord, Place, Record, RelaySpec, Start};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use uuid::Uuid;

/// Why something could not be done with the broker.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{message}")]
pub struct BusError {
    /// What is to be done about it.
    pub kind: BusErrorKind,
    /// What happened, for people.
    pub message: String,
}

/// What is to be done about a failure of the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BusErrorKind {
    /// It can't be reached, or not now: the same works later.
    Unavailable,
    /// It does not know who we are, or does not let us do this.
    Denied,
    /// A topic is not there.
    MissingTopic,
    /// What was consumed last is not in the topic any more, or not yet: going on anywhere else would leave records out.
    OutOfRange,
    /// A topic was deleted and made again: its records are others.
    Recreated,
    /// Someone else has taken over.
    Fenced,
    /// A topic is not as it should be, a record is too large: it stays so until someone changes it.
    Refused,
}

impl BusError {
    /// One of this kind.
    #[must_use]
    pub fn new(kind: BusErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// Whether it may pass by itself.
    #[must_use]
    pub fn passes(&self) -> bool {
        matches!(self.kind, BusErrorKind::Unavailable)
    }
}

/// Where a relay has got to, as it is kept in Kafka.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayMark {
    /// Every event up to here was published, or is of no aggregate that is.
    pub position: Position,
    /// The last event that was: another log may well have as many events, and has not this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<Published>,
}

/// An event that was published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// Where it is in the log.
    pub position: Position,
    /// Its id.
    pub id: EventId,
}

/// What a relay needs of the broker.
#[derive(Clone, Debug)]
pub struct RelayNeeds {
    /// The app.
    pub app: AppName,
    /// How it publishes.
    pub spec: RelaySpec,
    /// Topics that it publishes to.
    pub topics: Vec<TopicName>,
}

/// What consumes topics together.
#[derive(Clone, Debug)]
pub struct Subscription {
    /// The consumer group.
    pub group: Text,
    /// Names this consumer among its group's, so that a restart makes no rebalance.
    pub member: Text,
    /// Topics, and where to begin where the group has consumed nothing.
    pub topics: BTreeMap<TopicName, Start>,
    /// The ids of the topics that records were consumed of before.
    pub known: BTreeMap<TopicName, Uuid>,
    /// The places behind the last records that are kept. The group begins no further on, unless somebody else moved it: what
    /// was done and is not kept any more, because an older copy of the log was put in place, say, is to come again.
    pub kept: Vec<Place>,
}

/// What is known of where someone stands who takes all records of some topics, whatever others of a group take.
#[derive(Clone, Debug, Default)]
pub struct Standing {
    /// Topics, and where to begin where nothing is known of one.
    pub topics: BTreeMap<TopicName, Start>,
    /// Where it stands.
    pub places: Vec<Place>,
    /// Topics of which it goes on with what they have, though that is not what it had before it.
    pub accepted: BTreeSet<TopicName>,
}

/// The place behind a record that was dealt with.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Done {
    /// The topic.
    pub topic: TopicName,
    /// The partition.
    pub partition: u32,
    /// The offset of the next record.
    pub next: u64,
}

/// How much of a partition is left for a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PartitionLag {
    /// The topic.
    pub topic: TopicName,
    /// The partition.
    pub partition: u32,
    /// The offset of the next record that the group takes; none: it has taken none yet.
    pub committed: Option<u64>,
    /// The offset that the next record produced will have.
    pub end: u64,
    /// Records in between that the group will take.
    pub lag: u64,
}

/// A broker.
pub trait Bus: Send + Sync + 'static {
    /// The cluster's id, once it was reached.
    fn cluster(&self) -> Future<'_, Result<Text, BusError>>;

    /// How far the relay of an app has got, as far as it has told; the beginning, if it has told nothing. Takes nothing over.
    fn relayed<'a>(&'a self, app: &'a AppName) -> Future<'a, Result<RelayMark, BusError>>;

    /// Makes the topics that a relay needs, or checks those that are there, and takes over from whoever relayed before.
    fn relay(&self, needs: RelayNeeds) -> Future<'_, Result<Box<dyn RelayLink>, BusError>>;

    /// Consumes topics in a group. What was committed before must be there still; topics must be those that are known.
    fn consume(&self, subscription: Subscription) -> Future<'_, Result<Box<dyn Consumer>, BusError>>;

    /// Where someone stands in every partition of its topics. One that was added to a topic is taken from its first record.
    /// Topics must be those that are known, and hold what comes next of each partition. Of those that were accepted the
    /// next record is taken that they have; all of them, if they are others.
    fn places<'a>(&'a self, standing: &'a Standing) -> Future<'a, Result<Vec<Place>, BusError>>;

    /// Takes the records of partitions from these places on, alone. What is done is committed for a group, for others to
    /// see.
    fn assign(&self, group: Text, places: Vec<Place>) -> Future<'_, Result<Box<dyn Consumer>, BusError>>;

    /// Produces records and waits until the broker has them.
    fn publish(&self, records: Vec<NewRecord>) -> Future<'_, Result<(), BusError>>;

    /// How much is left for a group, of each partition of these topics. Needs nobody to consume.
    fn lag<'a>(
        &'a self,
        group: &'a str,
        topics: &'a BTreeMap<TopicName, Start>,
    ) -> Future<'a, Result<Vec<PartitionLag>, BusError>>;
}

/// A broker that may not be there: a node without one has none.
pub type OptionalBus = Option<Arc<dyn Bus>>;

/// Publishes the events of one app.
pub trait RelayLink: Send {
    /// Where the relay before this one had got to.
    fn mark(&self) -> RelayMark;

    /// Publishes records, in order for each key, and then, or with them, how far that is. When this returns the broker has
    /// the records; where it fails, it may have some of them.
    fn publish(&mut self, records: Vec<NewRecord>, mark: RelayMark) -> Future<'_, Result<(), BusError>>;

    /// Waits until the broker has the mark as well.
    fn close(self: Box<Self>) -> Future<'static, Result<(), BusError>>;
}

/// Records of some topics, as one member of a group gets them.
pub trait Consumer: Send + Sync {
    /// The next records, in order within each partition, with the id of each topic that they are of; waits for the first of
    /// them, and, up to `wait`, until there are so many. What is not taken is not fetched without bounds. A wait that is given
    /// up loses nothing: the next one begins with what it had.
    fn next(&mut self, most: usize, wait: Duration) -> Future<'_, Result<Vec<Record>, BusError>>;

    /// Everything before these places has been dealt with.
    fn done(&mut self, done: &[Done]) -> Result<(), BusError>;

    /// The id of a topic that it consumes.
    fn topic_id(&self, topic: &TopicName) -> Option<Uuid>;

    /// Ends, once the broker knows what was dealt with. It is known by its name: for a while nobody else gets its
    /// partitions, and it may come back to them.
    fn close(self: Box<Self>) -> Future<'static, ()>;

    /// The same, for good: others get its partitions at once.
    fn leave(self: Box<Self>) -> Future<'static, ()>;
}
