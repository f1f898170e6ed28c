//! The append-only log of one app, as the use cases see it. File offsets never cross it.

use super::Future;
use crate::commit::{CommandId, Commit, CommitNumber, NewCommit};
use crate::digest::Digest;
use crate::event::{Position, Revision, StoredEvent};
use crate::stream::StreamId;
use crate::text::Text;
use crate::time::Timestamp;
use crate::topic;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::sync::Arc;
use thiserror::Error;
use tokio::sync::watch;

/// How far the log is on disk. Readers see nothing above it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Durable {
    /// The last durable commit.
    pub commit: CommitNumber,
    /// The last durable event.
    pub position: Position,
}

/// Why a group of commits did not become durable.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum GroupFailure {
    /// It was rewound: none of it is in the log, and none of it ever will be. Deciding again is safe.
    #[error("not written: {0}")]
    Rewound(String),
    /// The sync failed: it may or may not be there when the log is opened again.
    #[error("the log could not be synced, the outcome is unknown: {0}")]
    OutcomeUnknown(String),
}

/// A promise about a staged commit: kept when the group that holds it is durable. Cloning it is cheap.
#[derive(Clone, Debug)]
pub struct Settlement(Option<watch::Receiver<GroupState>>);

/// The other end of a [`Settlement`], held by whoever syncs.
#[derive(Debug)]
pub struct GroupSettler(watch::Sender<GroupState>);

#[derive(Clone, Debug)]
enum GroupState {
    Pending,
    Durable,
    Failed(GroupFailure),
}

impl Settlement {
    /// A pending settlement and the handle that settles it.
    #[must_use]
    pub fn pending() -> (GroupSettler, Self) {
        let (sender, receiver) = watch::channel(GroupState::Pending);
        (GroupSettler(sender), Self(Some(receiver)))
    }

    /// A settlement that has been kept already.
    #[must_use]
    pub const fn durable() -> Self {
        Self(None)
    }

    /// Whether it has been kept; false while pending, and after a failure.
    #[must_use]
    pub fn is_durable(&self) -> bool {
        self.0.as_ref().is_none_or(|state| matches!(*state.borrow(), GroupState::Durable))
    }

    /// The failure, if it has failed.
    #[must_use]
    pub fn failure(&self) -> Option<GroupFailure> {
        match &*self.0.as_ref()?.borrow() {
            GroupState::Failed(failure) => Some(failure.clone()),
            _ => None,
        }
    }

    /// Waits until the group is durable or has failed.
    ///
    /// # Errors
    /// The group failed. A writer that went away without a word counts as an unknown outcome.
    pub async fn wait(&mut self) -> Result<(), GroupFailure> {
        let Some(receiver) = &mut self.0 else { return Ok(()) };
        let state =
            receiver.wait_for(|state| !matches!(state, GroupState::Pending)).await.map(|state| state.clone());
        match state {
            Ok(GroupState::Failed(failure)) => Err(failure),
            Ok(_) => {
                self.0 = None;
                Ok(())
            }
            Err(_) => Err(GroupFailure::OutcomeUnknown("the log was closed".into())),
        }
    }
}

impl GroupSettler {
    /// A further settlement of the same group.
    #[must_use]
    pub fn settlement(&self) -> Settlement {
        Settlement(Some(self.0.subscribe()))
    }

    /// The group is on disk.
    pub fn durable(self) {
        self.0.send_replace(GroupState::Durable);
    }

    /// The group failed.
    pub fn failed(self, failure: GroupFailure) {
        self.0.send_replace(GroupState::Failed(failure));
    }
}

/// A commit that has its numbers and its place in a group, and is not durable yet.
#[derive(Clone, Debug)]
pub struct Staged {
    /// Its number.
    pub commit: CommitNumber,
    /// Position of its first event, or the one that event would have had.
    pub first_position: Position,
    /// Revision of its first event, or the one that event would have had.
    pub first_revision: Revision,
    /// The time it was given.
    pub recorded_at: Timestamp,
    /// Wait for this before telling anyone.
    pub settlement: Settlement,
}

/// Why an append was not staged.
#[derive(Clone, Debug, Error)]
pub enum AppendError {
    /// The stream is not where the commit expects it.
    #[error("the stream is at {}, not where the command expected it", show_revision(.actual))]
    Conflict {
        /// Revision of the stream's last event, staged ones included; none if it has no events.
        actual: Option<Revision>,
    },
    /// The key, or the Kafka record, was seen before.
    #[error("the same command was recorded as commit {}", .0.commit)]
    Duplicate(Box<KeyMatch>),
    /// More events or bytes than a commit may have.
    #[error("{0}")]
    TooLarge(String),
    /// The log takes no writes: the disk is full, say. Nothing was written; the same append may work later.
    #[error("the log takes no writes now: {0}")]
    Unavailable(String),
    /// A sync failed earlier; the log takes no writes until it is opened again.
    #[error("the log takes no writes until it is reopened: {0}")]
    Poisoned(String),
}

fn show_revision(revision: &Option<Revision>) -> String {
    revision.map_or_else(|| "no revision yet".into(), |revision| format!("revision {revision}"))
}

/// An earlier commit with the same idempotency key or Kafka coordinates.
#[derive(Clone, Debug)]
pub struct KeyMatch {
    /// The commit.
    pub commit: CommitNumber,
    /// Digest of the request that it answered; compare before answering from it.
    pub request: Digest,
    /// Wait for this before reading the commit.
    pub settlement: Settlement,
    /// The commit itself, where finding it meant reading it.
    pub decided: Option<Arc<Commit>>,
}

/// A stream's end, staged commits included.
#[derive(Clone, Debug)]
pub struct Head {
    /// Revision of the last event; none if the stream has no events.
    pub revision: Option<Revision>,
    /// Kept when all of the stream's staged commits are durable.
    pub settlement: Settlement,
}

/// Which events a reader wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventFilter {
    /// Categories (aggregate names); none: all of them.
    pub categories: Option<HashSet<Text>>,
    /// Event types; none: all of them.
    pub types: Option<HashSet<Text>>,
    /// Which of those events that are records of topics.
    pub records: Records,
}

/// Which records of topics a reader wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Records {
    /// All of them, as any event.
    #[default]
    All,
    /// None.
    None,
    /// Those of these topics, and no other events.
    Of(HashSet<Text>),
}

impl EventFilter {
    /// Whether an event of this stream and type is wanted.
    #[must_use]
    pub fn wants(&self, stream: &StreamId, event_type: &str) -> bool {
        self.wants_stream(stream.as_str())
            && self.types.as_ref().is_none_or(|types| types.contains(event_type.as_bytes()))
    }

    /// Whether any event of this stream, `category-key`, can be wanted.
    #[must_use]
    pub fn wants_stream(&self, stream: &str) -> bool {
        let (category, key) = stream.split_once('-').unwrap_or((stream, ""));
        let is_record = category == &*topic::CATEGORY;
        let wanted = match &self.records {
            Records::All => true,
            Records::None => !is_record,
            Records::Of(topics) => {
                let topic = key.rsplit_once('-').map_or(key, |(topic, _)| topic);
                is_record && topics.contains(topic.as_bytes())
            }
        };
        wanted && self.categories.as_ref().is_none_or(|categories| categories.contains(category.as_bytes()))
    }
}

/// Bounds of one read. At least one item is returned where there is one, however large.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadLimits {
    /// Items at most.
    pub items: usize,
    /// Bytes at most, about.
    pub bytes: usize,
}

impl ReadLimits {
    /// A page for a caller that works on what it gets: 1,000 items, 1 MiB.
    pub const PAGE: Self = Self { items: 1000, bytes: 1 << 20 };
}

/// Events in order of position.
#[derive(Clone, Debug, Default)]
pub struct EventBatch {
    /// The wanted events, in order.
    pub events: Vec<StoredEvent>,
    /// Everything up to here was looked at, wanted or not: ask for what is after it next.
    pub scanned_to: Position,
}

/// Why a read failed.
#[derive(Clone, Debug, Error)]
pub enum ReadError {
    /// Bytes that were acknowledged are damaged.
    #[error("the log is damaged: {0}")]
    Corrupt(String),
    /// The disk would not give them.
    #[error("the log could not be read: {0}")]
    Io(String),
}

/// The append-only log of one app. Everything but `append` looks at durable data only, unless it says otherwise.
pub trait EventLog: Send + Sync + 'static {
    /// Checks the commit against committed and staged state, and stages it. Resolves at once unless the bounded
    /// staging buffer is full. Appends to one stream are staged in the order in which they are called.
    ///
    /// Checked in this order: the idempotency key or Kafka coordinates (expiry of keys is judged against the time
    /// that this commit would get), then the expected revision.
    fn append(&self, commit: NewCommit) -> Future<'_, Result<Staged, AppendError>>;

    /// The durable mark, as it moves.
    fn durable(&self) -> watch::Receiver<Durable>;

    /// The wall clock, or the last time that was recorded or told, if that is later. No later commit is recorded before
    /// it, though the clock may be set back: so a command is found by its time.
    fn now(&self) -> Timestamp;

    /// The end of a stream, staged commits included.
    ///
    /// # Errors
    /// The index could not be read.
    fn head(&self, stream: &StreamId) -> Result<Head, ReadError>;

    /// The commit remembered for this actor's key, staged ones included; none if there is none or it has expired.
    ///
    /// # Errors
    /// The index could not be read.
    fn find_key(&self, actor: &str, key: &str) -> Result<Option<KeyMatch>, ReadError>;

    /// Wanted events behind `after`, in order of position.
    fn read<'a>(
        &'a self,
        after: Position,
        filter: &'a EventFilter,
        limits: ReadLimits,
    ) -> Future<'a, Result<EventBatch, ReadError>>;

    /// Events of one stream from `from` on, in order of revision. Fewer than the limits allow means: the end.
    fn read_stream<'a>(
        &'a self,
        stream: &'a StreamId,
        from: Revision,
        limits: ReadLimits,
    ) -> Future<'a, Result<Vec<StoredEvent>, ReadError>>;

    /// Commits behind `after`, in order of number, refusals included.
    fn read_commits(
        &self,
        after: CommitNumber,
        limits: ReadLimits,
    ) -> Future<'_, Result<Vec<Commit>, ReadError>>;

    /// One commit; none above the durable mark.
    fn commit(&self, number: CommitNumber) -> Future<'_, Result<Option<Commit>, ReadError>>;

    /// The commit of one command; none if it left none.
    fn find_command(&self, command: CommandId) -> Future<'_, Result<Option<Commit>, ReadError>>;

    /// Writes what is staged, and closes: later appends are refused, and reads go on. Gives the log's end if all of it is
    /// durable and the log says so itself; none where only opening it again can tell. Blocks.
    fn close(&self) -> Option<Durable>;
}
