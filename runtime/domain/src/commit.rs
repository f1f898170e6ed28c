//! Commits: one command's outcome, the unit of the log.

use crate::digest::Digest;
use crate::event::{NewEvent, Position, Revision, StoredEvent};
use crate::stream::StreamId;
use crate::text::Text;
use crate::time::Timestamp;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;
use uuid::Uuid;

/// A commit's number: dense, from 1. Zero is "before everything". Refusals and empty decisions that are remembered
/// have one too, and no position.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CommitNumber(pub u64);

impl fmt::Display for CommitNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A command's UUID (version 7, made by the platform from the same clock that `recorded_at` never runs behind of, so
/// that a command is found again by its time).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CommandId(pub Uuid);

impl CommandId {
    /// A version 7 UUID (RFC 9562, section 5.7) from a time and 80 random bits.
    #[must_use]
    pub fn new(time: Timestamp, random: [u8; 10]) -> Self {
        Self(uuid::Builder::from_unix_timestamp_millis(time.0 / 1000, &random).into_uuid())
    }

    /// The millisecond that is part of it; none for an id that is not a version 7 UUID.
    #[must_use]
    pub fn time(self) -> Option<Timestamp> {
        let (seconds, nanos) = self.0.get_timestamp().filter(|_| self.0.get_version_num() == 7)?.to_unix();
        Some(Timestamp(seconds * 1_000_000 + u64::from(nanos) / 1000))
    }
}

impl fmt::Display for CommandId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for CommandId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A domain "no": an outcome, not a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Stable, for programs: `insufficient_funds`.
    pub code: Text,
    /// For people.
    pub message: Text,
    /// More for programs: a JSON document.
    pub details: Option<Bytes>,
}

/// What a caller said makes this command the same as an earlier one. Its scope is the app and the actor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// The `Idempotency-Key` header, 1 to 255 visible ASCII characters.
    pub key: Text,
    /// SHA-256 of method, path and body: another request under the same key is an error.
    pub request: Digest,
}

/// A caller's condition on the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precondition {
    /// Its last event has this revision (`If-Match: 3`).
    Revision(Revision),
    /// It has events (`If-Match: *`).
    Exists,
    /// It has none (`If-None-Match: *`).
    Absent,
}

impl Precondition {
    /// Whether it holds for a stream whose last event is `actual`.
    #[must_use]
    pub fn holds(self, actual: Option<Revision>) -> bool {
        match self {
            Self::Revision(revision) => actual == Some(revision),
            Self::Exists => actual.is_some(),
            Self::Absent => actual.is_none(),
        }
    }
}

impl IdempotencyKey {
    /// The key of a command. Over what the command means and not how it came, so that the same one is the same under the
    /// app's host name, under `/apps/{app}`, and sent by a function.
    #[must_use]
    pub fn new(key: Text, aggregate: &str, stream_key: &str, command: &str, data: &[u8]) -> Self {
        let parts = [&b"POST"[..], aggregate.as_bytes(), stream_key.as_bytes(), command.as_bytes(), data];
        Self { key, request: Digest::of_parts(parts) }
    }

    /// Whether a text may be one: 1 to 255 visible ASCII characters.
    #[must_use]
    pub fn is_valid(text: &[u8]) -> bool {
        (1..=255).contains(&text.len()) && text.iter().all(u8::is_ascii_graphic)
    }
}

/// Where on Kafka a command came from; its identity, however often and late it is redelivered.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KafkaOrigin {
    /// The cluster's id.
    pub cluster: Text,
    /// The topic's id, which a topic deleted and made again does not share.
    pub topic: Uuid,
    /// The partition.
    pub partition: u32,
    /// The offset.
    pub offset: u64,
}

/// The command as it was decided, so that it can be decided again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedCommand {
    /// Its name in the manifest.
    pub name: Text,
    /// When the platform received it: the guest's clock.
    pub time: Timestamp,
    /// The body; none where the manifest says `record-commands = false`.
    pub data: Option<Bytes>,
}

/// Everything about a commit but its events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitHeader {
    /// Its number.
    pub number: CommitNumber,
    /// The epoch of the writer that wrote it: a writer that was replaced has a lower one.
    pub epoch: u64,
    /// When it was recorded; never decreases along the log.
    pub recorded_at: Timestamp,
    /// The stream it belongs to. A refusal belongs to the stream it was decided on.
    pub stream: StreamId,
    /// How many events it has.
    pub event_count: u32,
    /// Position of its first event, or the one its first event would have had.
    pub first_position: Position,
    /// Revision of its first event, or the one its first event would have had.
    pub first_revision: Revision,
    /// The command.
    pub command_id: CommandId,
    /// Who sent it.
    pub actor: Text,
    /// Ties everything that one outside cause led to.
    pub correlation_id: Text,
    /// The id of the event or command that directly caused this command, if one did.
    pub causation_id: Option<Text>,
    /// Functions and topics between it and what began its chain: zero for what comes from outside.
    pub hops: u16,
    /// W3C trace context.
    pub traceparent: Option<Text>,
    /// Digest of the module that decided it; zero if the platform did.
    pub module: Digest,
    /// The caller's key, if there was one.
    pub idempotency: Option<IdempotencyKey>,
    /// Where on Kafka it came from, if it did.
    pub origin: Option<KafkaOrigin>,
    /// The command; none for what the platform itself records.
    pub command: Option<RecordedCommand>,
    /// The refusal, if it is one: then there are no events.
    pub refusal: Option<Refusal>,
}

impl CommitHeader {
    /// Revision of the stream's last event once this commit is in; none if the stream has no events.
    #[must_use]
    pub fn last_revision(&self) -> Option<Revision> {
        (self.first_revision.0 + u64::from(self.event_count)).checked_sub(1).map(Revision)
    }

    /// The log's highest position once this commit is in.
    #[must_use]
    pub fn last_position(&self) -> Position {
        Position(self.first_position.0 + u64::from(self.event_count) - 1)
    }
}

/// A commit read back from the log.
#[derive(Clone, Debug)]
pub struct Commit {
    /// All but the events.
    pub header: Arc<CommitHeader>,
    /// Its events, in order; none in a refusal or an empty decision.
    pub events: Vec<StoredEvent>,
}

/// What was decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// These events, perhaps none.
    Events(Vec<NewEvent>),
    /// A domain "no".
    Refused(Refusal),
}

/// What a commit asks of its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Nothing.
    Any,
    /// That its last event has this revision; none: that it has no events.
    Revision(Option<Revision>),
}

/// A commit to append. The log gives it number, epoch, time, positions and revisions.
#[derive(Clone, Debug)]
pub struct NewCommit {
    /// The stream.
    pub stream: StreamId,
    /// What must be true of the stream.
    pub expected: Expected,
    /// The command.
    pub command_id: CommandId,
    /// Who sent it.
    pub actor: Text,
    /// Ties everything that one outside cause led to.
    pub correlation_id: Text,
    /// What directly caused this command.
    pub causation_id: Option<Text>,
    /// Functions and topics between it and what began its chain: zero for what comes from outside.
    pub hops: u16,
    /// W3C trace context.
    pub traceparent: Option<Text>,
    /// The module that decided it.
    pub module: Digest,
    /// The caller's key.
    pub idempotency: Option<IdempotencyKey>,
    /// Where on Kafka it came from.
    pub origin: Option<KafkaOrigin>,
    /// The command.
    pub command: Option<RecordedCommand>,
    /// What was decided.
    pub outcome: Outcome,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_id_keeps_its_millisecond() {
        let id = CommandId::new(Timestamp(1_700_000_000_123_456), [7; 10]);
        assert_eq!(id.time(), Some(Timestamp(1_700_000_000_123_000)));
        assert_eq!(CommandId(Uuid::nil()).time(), None);
    }
}
