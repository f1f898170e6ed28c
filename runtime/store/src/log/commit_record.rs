//! What a commit record holds, behind the frame of [`super::format`].
//!
//! Encoding writes straight into the group's buffer, and decoding slices the block that was read: neither allocates per
//! event. What a filter looks at (stream, positions, types) lies where it is found without decoding the rest.

use super::format::{FRAME, Kind, Malformed, finish_frame, start_frame, u16_at, u32_at, u64_at};
use bytes::Bytes;
use ebb_domain::commit::{
    CommandId, CommitHeader, CommitNumber, IdempotencyKey, KafkaOrigin, NewCommit, Outcome, RecordedCommand,
    Refusal,
};
use ebb_domain::digest::Digest;
use ebb_domain::event::{JSON, Position, Revision, StoredEvent};
use ebb_domain::limits::cap;
use ebb_domain::name::EventType;
use ebb_domain::stream::StreamId;
use ebb_domain::text::Text;
use ebb_domain::time::Timestamp;
use std::sync::Arc;
use uuid::Uuid;

/// Bytes before the first text.
const FIXED: usize = 128;
/// The length of a text that is not there.
const ABSENT: u16 = u16::MAX;
/// Bytes of an event before its texts and data.
const EVENT_FIXED: usize = 12;

// What follows the texts, in this order.
const HAS_KEY: u16 = 1;
const HAS_ORIGIN: u16 = 2;
const HAS_COMMAND: u16 = 4;
const HAS_COMMAND_DATA: u16 = 8;
const HAS_REFUSAL: u16 = 16;
const HAS_REFUSAL_DETAILS: u16 = 32;
const KNOWN_PARTS: u16 = 63;

/// What the log gives a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Numbers {
    pub(crate) number: CommitNumber,
    pub(crate) first_position: Position,
    pub(crate) first_revision: Revision,
    pub(crate) recorded_at: Timestamp,
    pub(crate) epoch: u64,
}

/// Checks a commit against the limits, before it is given any number.
pub(crate) fn check_size(commit: &NewCommit) -> Result<(), String> {
    let optional = |text: &Option<Text>| text.as_ref().map_or(0, |text| text.len());
    let mut texts = [
        ("stream", commit.stream.as_str().len()),
        ("actor", commit.actor.len()),
        ("correlation id", commit.correlation_id.len()),
        ("causation id", optional(&commit.causation_id)),
        ("traceparent", optional(&commit.traceparent)),
        ("idempotency key", commit.idempotency.as_ref().map_or(0, |key| key.key.len())),
        ("Kafka cluster id", commit.origin.as_ref().map_or(0, |origin| origin.cluster.len())),
        ("command name", commit.command.as_ref().map_or(0, |command| command.name.len())),
        ("refusal code", 0),
        ("longest event type or content type", 0),
    ];
    let mut total =
        FIXED + commit.command.as_ref().and_then(|command| command.data.as_ref()).map_or(0, Bytes::len);
    match &commit.outcome {
        Outcome::Refused(refusal) => {
            texts[8].1 = refusal.code.len();
            total += refusal.message.len() + refusal.details.as_ref().map_or(0, Bytes::len);
        }
        Outcome::Events(events) => {
            if events.len() > cap::COMMIT_EVENTS {
                return Err(format!(
                    "a commit has at most {} events; this one has {}",
                    cap::COMMIT_EVENTS,
                    events.len()
                ));
            }
            for event in events {
                if event.data.len() > cap::EVENT_BYTES {
                    let (limit, len) = (cap::EVENT_BYTES, event.data.len());
                    return Err(format!(
                        "an event's data is at most {limit} bytes; `{}` has {len}",
                        event.event_type
                    ));
                }
                texts[9].1 = texts[9].1.max(event.event_type.len()).max(event.content_type.len());
                total += EVENT_FIXED + event.event_type.len() + event.content_type.len() + event.data.len();
            }
        }
    }
    if let Some((what, len)) = texts.iter().find(|(_, len)| *len >= usize::from(ABSENT)) {
        return Err(format!("the {what} has {len} bytes; a text in the log has at most {}", ABSENT - 1));
    }
    total += texts.iter().map(|(_, len)| len).sum::<usize>();
    if total > cap::COMMIT_BYTES {
        return Err(format!("a commit has at most {} bytes; this one has {total}", cap::COMMIT_BYTES));
    }
    Ok(())
}

/// Appends the commit's record to `out`; [`super::format::seal`] finishes it. The commit has passed [`check_size`].
pub(crate) fn encode(out: &mut Vec<u8>, commit: &NewCommit, numbers: &Numbers) {
    let start = start_frame(out, Kind::Commit, 0);
    let events: &[_] = match &commit.outcome {
        Outcome::Events(events) => events,
        Outcome::Refused(_) => &[],
    };
    let optional = |text: &Option<Text>| text.as_ref().map_or(ABSENT, |text| text.len() as u16);

    let mut fixed = [0; FIXED - FRAME];
    let mut at = 0;
    let mut put = |bytes: &[u8]| {
        fixed[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    };
    put(&numbers.number.0.to_le_bytes());
    put(&numbers.first_position.0.to_le_bytes());
    put(&numbers.first_revision.0.to_le_bytes());
    put(&numbers.recorded_at.0.to_le_bytes());
    put(&numbers.epoch.to_le_bytes());
    put(commit.command_id.0.as_bytes());
    put(&commit.module.0);
    put(&(events.len() as u32).to_le_bytes());
    put(&[0; 4]); // where the events start, below
    put(&(commit.stream.as_str().len() as u16).to_le_bytes());
    put(&(commit.actor.len() as u16).to_le_bytes());
    put(&(commit.correlation_id.len() as u16).to_le_bytes());
    put(&optional(&commit.causation_id).to_le_bytes());
    put(&optional(&commit.traceparent).to_le_bytes());
    put(&parts_of(commit).to_le_bytes());
    put(&commit.hops.to_le_bytes());
    out.extend_from_slice(&fixed);

    out.extend_from_slice(commit.stream.as_str().as_bytes());
    out.extend_from_slice(commit.actor.as_bytes());
    out.extend_from_slice(commit.correlation_id.as_bytes());
    for text in [&commit.causation_id, &commit.traceparent].into_iter().flatten() {
        out.extend_from_slice(text.as_bytes());
    }
    encode_parts(out, commit);

    let events_at = (out.len() - start) as u32;
    out[start + EVENTS_AT..start + EVENTS_AT + 4].copy_from_slice(&events_at.to_le_bytes());
    for event in events {
        let content_type = if event.content_type == JSON { "" } else { event.content_type.as_str() };
        out.extend_from_slice(&(event.data.len() as u32).to_le_bytes());
        out.extend_from_slice(&event.schema_version.to_le_bytes());
        out.extend_from_slice(&(event.event_type.len() as u16).to_le_bytes());
        out.extend_from_slice(&(content_type.len() as u16).to_le_bytes());
        out.extend_from_slice(event.event_type.as_bytes());
        out.extend_from_slice(content_type.as_bytes());
        out.extend_from_slice(&event.data);
    }
    finish_frame(out, start);
}

// Offsets of what is read without decoding the rest.
const NUMBER: usize = FRAME;
const FIRST_POSITION: usize = FRAME + 8;
const FIRST_REVISION: usize = FRAME + 16;
const RECORDED_AT: usize = FRAME + 24;
const EPOCH: usize = FRAME + 32;
const COMMAND: usize = FRAME + 40;
const MODULE: usize = FRAME + 56;
const EVENT_COUNT: usize = FRAME + 88;
const EVENTS_AT: usize = FRAME + 92;
const TEXTS: usize = FRAME + 96;
const PARTS: usize = FRAME + 106;
/// Zero in what was written before there was such a number.
const HOPS: usize = FRAME + 108;
const _: () = assert!(HOPS + 2 <= FIXED);

fn parts_of(commit: &NewCommit) -> u16 {
    let mut parts = 0;
    let mut set = |there: bool, part: u16| parts |= if there { part } else { 0 };
    set(commit.idempotency.is_some(), HAS_KEY);
    set(commit.origin.is_some(), HAS_ORIGIN);
    set(commit.command.is_some(), HAS_COMMAND);
    set(commit.command.as_ref().is_some_and(|command| command.data.is_some()), HAS_COMMAND_DATA);
    if let Outcome::Refused(refusal) = &commit.outcome {
        set(true, HAS_REFUSAL);
        set(refusal.details.is_some(), HAS_REFUSAL_DETAILS);
    }
    parts
}

fn encode_parts(out: &mut Vec<u8>, commit: &NewCommit) {
    fn short(out: &mut Vec<u8>, text: &str) {
        out.extend_from_slice(&(text.len() as u16).to_le_bytes());
        out.extend_from_slice(text.as_bytes());
    }
    fn long(out: &mut Vec<u8>, bytes: &[u8]) {
        out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        out.extend_from_slice(bytes);
    }
    if let Some(IdempotencyKey { key, request }) = &commit.idempotency {
        short(out, key);
        out.extend_from_slice(&request.0);
    }
    if let Some(origin) = &commit.origin {
        short(out, &origin.cluster);
        out.extend_from_slice(origin.topic.as_bytes());
        out.extend_from_slice(&origin.partition.to_le_bytes());
        out.extend_from_slice(&origin.offset.to_le_bytes());
    }
    if let Some(command) = &commit.command {
        out.extend_from_slice(&command.time.0.to_le_bytes());
        short(out, &command.name);
        if let Some(data) = &command.data {
            long(out, data);
        }
    }
    if let Outcome::Refused(refusal) = &commit.outcome {
        short(out, &refusal.code);
        long(out, refusal.message.as_bytes());
        if let Some(details) = &refusal.details {
            long(out, details);
        }
    }
}

const SHORT: Malformed = Malformed::Damaged("a commit record is shorter than what it says it holds");
const NOT_TEXT: Malformed = Malformed::Damaged("a commit record has a text that is not UTF-8");

/// A commit record whose checksum was right, not decoded yet.
#[derive(Clone, Copy)]
pub(crate) struct Raw<'a>(&'a [u8]);

impl<'a> Raw<'a> {
    pub(crate) fn new(record: &'a [u8]) -> Result<Self, Malformed> {
        let raw = Self(record);
        if record.len() < FIXED || record.len() < FIXED + raw.stream_len() {
            return Err(SHORT);
        }
        // Whoever makes room for the events, or counts on from the first, relies on these.
        let count = u64::from(raw.event_count());
        if count > (record.len() / EVENT_FIXED) as u64 {
            return Err(SHORT);
        }
        let last = raw.first_position().0.checked_add(count).and(raw.first_revision().0.checked_add(count));
        if last.is_none() {
            Err(Malformed::Damaged("a commit record has impossible numbers"))
        } else {
            Ok(raw)
        }
    }

    fn stream_len(self) -> usize {
        usize::from(u16_at(self.0, TEXTS))
    }

    pub(crate) fn number(self) -> CommitNumber {
        CommitNumber(u64_at(self.0, NUMBER))
    }

    pub(crate) fn first_position(self) -> Position {
        Position(u64_at(self.0, FIRST_POSITION))
    }

    pub(crate) fn first_revision(self) -> Revision {
        Revision(u64_at(self.0, FIRST_REVISION))
    }

    pub(crate) fn recorded_at(self) -> Timestamp {
        Timestamp(u64_at(self.0, RECORDED_AT))
    }

    pub(crate) fn event_count(self) -> u32 {
        u32_at(self.0, EVENT_COUNT)
    }

    pub(crate) fn command_id(self) -> CommandId {
        CommandId(uuid_at(self.0, COMMAND))
    }

    /// The log's highest position once this commit is in.
    pub(crate) fn last_position(self) -> Position {
        Position((self.first_position().0 + u64::from(self.event_count())).saturating_sub(1))
    }

    pub(crate) fn stream(self) -> &'a [u8] {
        &self.0[FIXED..FIXED + self.stream_len()]
    }

    /// The stream, for a filter.
    pub(crate) fn stream_text(self) -> &'a str {
        std::str::from_utf8(self.stream()).unwrap_or_default()
    }
}

/// Takes slices off a record, in order.
struct Cursor<'a> {
    record: &'a Bytes,
    at: usize,
}

impl Cursor<'_> {
    fn bytes(&mut self, len: usize) -> Result<Bytes, Malformed> {
        let end = self.at.checked_add(len).filter(|end| *end <= self.record.len()).ok_or(SHORT)?;
        let bytes = self.record.slice(self.at..end);
        self.at = end;
        Ok(bytes)
    }

    fn raw(&mut self, len: usize) -> Result<&[u8], Malformed> {
        let start = self.at;
        let bytes = self.record.get(start..start.saturating_add(len)).ok_or(SHORT)?;
        self.at = start + len;
        Ok(bytes)
    }

    fn text(&mut self, len: usize) -> Result<Text, Malformed> {
        Text::from_utf8(self.bytes(len)?).map_err(|_| NOT_TEXT)
    }

    fn optional_text(&mut self, len: u16) -> Result<Option<Text>, Malformed> {
        if len == ABSENT { Ok(None) } else { self.text(usize::from(len)).map(Some) }
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        Ok(u16_at(self.raw(2)?, 0))
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32_at(self.raw(4)?, 0))
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64_at(self.raw(8)?, 0))
    }

    fn short(&mut self) -> Result<Text, Malformed> {
        let len = self.u16()?;
        self.text(usize::from(len))
    }

    fn long(&mut self) -> Result<Bytes, Malformed> {
        let len = self.u32()?;
        self.bytes(len as usize)
    }

    fn uuid(&mut self) -> Result<Uuid, Malformed> {
        Ok(uuid_at(self.raw(16)?, 0))
    }
}

fn uuid_at(bytes: &[u8], at: usize) -> Uuid {
    let mut id = [0; 16];
    id.copy_from_slice(&bytes[at..at + 16]);
    Uuid::from_bytes(id)
}

fn digest_at(bytes: &[u8], at: usize) -> Digest {
    let mut digest = [0; 32];
    digest.copy_from_slice(&bytes[at..at + 32]);
    Digest(digest)
}

/// Everything but the events. Texts and data share the record's buffer.
pub(crate) fn decode_header(record: &Bytes) -> Result<CommitHeader, Malformed> {
    let raw = Raw::new(record)?;
    let lens: [u16; 5] = std::array::from_fn(|at| u16_at(record, TEXTS + at * 2));
    let parts = u16_at(record, PARTS);
    if parts & !KNOWN_PARTS != 0 {
        return Err(Malformed::TooNew(format!(
            "commit {} has parts {parts:#06x}, which are unknown",
            raw.number()
        )));
    }
    let mut cursor = Cursor { record, at: FIXED };
    let stream = StreamId::trusted(cursor.text(usize::from(lens[0]))?)
        .map_err(|_| Malformed::Damaged("a commit record has no valid stream"))?;
    let actor = cursor.text(usize::from(lens[1]))?;
    let correlation_id = cursor.text(usize::from(lens[2]))?;
    let causation_id = cursor.optional_text(lens[3])?;
    let traceparent = cursor.optional_text(lens[4])?;
    let has = |part: u16| parts & part != 0;

    let mut idempotency = None;
    if has(HAS_KEY) {
        let key = cursor.short()?;
        idempotency = Some(IdempotencyKey { key, request: digest_at(cursor.raw(32)?, 0) });
    }
    let mut origin = None;
    if has(HAS_ORIGIN) {
        let cluster = cursor.short()?;
        let topic = cursor.uuid()?;
        origin = Some(KafkaOrigin { cluster, topic, partition: cursor.u32()?, offset: cursor.u64()? });
    }
    let mut command = None;
    if has(HAS_COMMAND) {
        let time = Timestamp(cursor.u64()?);
        let name = cursor.short()?;
        let data = if has(HAS_COMMAND_DATA) { Some(cursor.long()?) } else { None };
        command = Some(RecordedCommand { name, time, data });
    }
    let mut refusal = None;
    if has(HAS_REFUSAL) {
        let code = cursor.short()?;
        let message = Text::from_utf8(cursor.long()?).map_err(|_| NOT_TEXT)?;
        let details = if has(HAS_REFUSAL_DETAILS) { Some(cursor.long()?) } else { None };
        refusal = Some(Refusal { code, message, details });
    }
    Ok(CommitHeader {
        number: raw.number(),
        epoch: u64_at(record, EPOCH),
        recorded_at: raw.recorded_at(),
        stream,
        event_count: raw.event_count(),
        first_position: raw.first_position(),
        first_revision: raw.first_revision(),
        command_id: raw.command_id(),
        actor,
        correlation_id,
        causation_id,
        hops: u16_at(record, HOPS),
        traceparent,
        module: digest_at(record, MODULE),
        idempotency,
        origin,
        command,
        refusal,
    })
}

/// The events of a record, decoded one by one; those whose type is not wanted are stepped over undecoded.
pub(crate) struct Events<'a> {
    cursor: Cursor<'a>,
    index: u32,
    count: u32,
}

impl<'a> Events<'a> {
    pub(crate) fn new(record: &'a Bytes) -> Result<Self, Malformed> {
        let raw = Raw::new(record)?;
        Ok(Self {
            cursor: Cursor { record, at: u32_at(record, EVENTS_AT) as usize },
            index: 0,
            count: raw.event_count(),
        })
    }

    /// The next event that `wanted` (its index in the commit, its type) takes; `header` is called when there is one.
    pub(crate) fn next(
        &mut self,
        wanted: impl Fn(u32, &[u8]) -> bool,
        header: impl FnOnce() -> Result<Arc<CommitHeader>, Malformed>,
    ) -> Result<Option<StoredEvent>, Malformed> {
        while self.index < self.count {
            let index = self.index;
            let fixed = self.cursor.raw(EVENT_FIXED)?;
            let (data_len, schema_version) = (u32_at(fixed, 0) as usize, u32_at(fixed, 4));
            let (type_len, content_len) = (usize::from(u16_at(fixed, 8)), usize::from(u16_at(fixed, 10)));
            let event_type =
                self.cursor.record.get(self.cursor.at..self.cursor.at + type_len).ok_or(SHORT)?;
            self.index += 1;
            if !wanted(index, event_type) {
                self.cursor.raw(type_len + content_len + data_len)?;
                continue;
            }
            let event_type = EventType::trusted(self.cursor.text(type_len)?);
            let content_type = if content_len == 0 { JSON } else { self.cursor.text(content_len)? };
            let data = self.cursor.bytes(data_len)?;
            let commit = header()?;
            return Ok(Some(StoredEvent {
                position: Position(commit.first_position.0 + u64::from(index)),
                revision: Revision(commit.first_revision.0 + u64::from(index)),
                event_type,
                schema_version,
                data,
                content_type,
                commit,
            }));
        }
        Ok(None)
    }
}
