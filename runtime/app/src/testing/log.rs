//! An event log in memory: staging, settlement, conflicts, duplicates and the durable mark as the trait promises them.
//!
//! It settles each append at once; [`MemoryLog::hold`] makes it collect appends in a group until the test says
//! [`MemoryLog::settle`], and [`MemoryLog::fail_next_group`] makes the next group fail as a disk would.

use super::ManualClock;
use ebb_domain::commit::{
    CommandId, Commit, CommitHeader, CommitNumber, Expected, KafkaOrigin, NewCommit, Outcome,
};
use ebb_domain::digest::Digest;
use ebb_domain::event::{JSON, NewEvent, Position, Revision, StoredEvent};
use ebb_domain::limits::cap;
use ebb_domain::name::EventType;
use ebb_domain::port::log::{
    AppendError, Durable, EventBatch, EventFilter, EventLog, GroupFailure, GroupSettler, Head, KeyMatch,
    ReadError, ReadLimits, Settlement, Staged,
};
use ebb_domain::port::{Clock, Future};
use ebb_domain::stream::StreamId;
use ebb_domain::text::Text;
use ebb_domain::time::Timestamp;
use parking_lot::Mutex;
use std::future::ready;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How long idempotency keys are remembered.
const KEYS_KEPT: Duration = Duration::from_secs(24 * 60 * 60);

/// An [`EventLog`] in memory.
pub struct MemoryLog {
    state: Mutex<State>,
    durable: watch::Sender<Durable>,
    clock: Arc<dyn Clock>,
}

#[derive(Default)]
struct State {
    /// All commits by number, staged ones last.
    commits: Vec<Commit>,
    /// How many of them are durable.
    durable: usize,
    /// The group that staged commits belong to, if there are any.
    group: Option<GroupSettler>,
    /// Whether groups wait for [`MemoryLog::settle`].
    held: bool,
    next_failure: Option<GroupFailure>,
    /// What an unknown outcome left behind: commits that may or may not be there when the log is opened again.
    limbo: Vec<Commit>,
    poisoned: Option<String>,
    unavailable: Option<String>,
    closed: bool,
    failing_reads: u32,
    reads: u64,
    /// The latest time that anybody was told.
    told: Timestamp,
}

impl Default for MemoryLog {
    fn default() -> Self {
        Self::new(Arc::new(ManualClock::default()))
    }
}

impl MemoryLog {
    /// An empty log with this clock.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { state: Mutex::default(), durable: watch::Sender::default(), clock }
    }

    /// From now on appends stay staged until [`MemoryLog::settle`].
    pub fn hold(&self) {
        self.state.lock().held = true;
    }

    /// Settles what is staged, and from now on each append at once.
    pub fn release(&self) {
        self.state.lock().held = false;
        self.settle();
    }

    /// Settles the group of all staged commits: they become durable, or fail as [`MemoryLog::fail_next_group`] said.
    pub fn settle(&self) {
        let mut state = self.state.lock();
        let durable = state.settle();
        drop(state);
        if let Some(durable) = durable {
            self.durable.send_replace(durable);
        }
    }

    /// The next group that is settled fails. An unknown outcome poisons the log until [`MemoryLog::reopen`].
    pub fn fail_next_group(&self, failure: GroupFailure) {
        self.state.lock().next_failure = Some(failure);
    }

    /// Refuses appends as [`AppendError::Unavailable`], as on a full disk, or takes them again.
    pub fn set_unavailable(&self, why: Option<&str>) {
        self.state.lock().unavailable = why.map(str::to_owned);
    }

    /// The next so many reads fail with an I/O error.
    pub fn fail_reads(&self, count: u32) {
        self.state.lock().failing_reads = count;
    }

    /// Reads of events by position so far.
    #[must_use]
    pub fn reads(&self) -> u64 {
        self.state.lock().reads
    }

    /// Whether it was closed, and not opened again since.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    /// Takes appends again after it was closed, as a log that is opened again.
    pub(super) fn open_again(&self) {
        self.state.lock().closed = false;
    }

    /// Opens a poisoned log again, with or without the commits whose outcome was unknown.
    pub fn reopen(&self, with_unknown: bool) {
        let mut state = self.state.lock();
        state.poisoned = None;
        let limbo = std::mem::take(&mut state.limbo);
        if with_unknown {
            state.commits.extend(limbo);
            state.durable = state.commits.len();
        }
        let durable = state.durable_mark();
        drop(state);
        self.durable.send_replace(durable);
    }

    /// All durable commits.
    #[must_use]
    pub fn commits(&self) -> Vec<Commit> {
        let state = self.state.lock();
        state.commits[..state.durable].to_vec()
    }

    /// How many commits there are, staged ones included.
    #[must_use]
    pub fn staged(&self) -> usize {
        self.state.lock().commits.len()
    }

    /// All durable events.
    #[must_use]
    pub fn events(&self) -> Vec<StoredEvent> {
        self.commits().into_iter().flat_map(|commit| commit.events).collect()
    }

    /// Appends one JSON event to a stream, and gives its position.
    ///
    /// # Panics
    /// The names are not valid, or the log takes no appends: the test is wrong.
    pub fn given(&self, stream: &str, event_type: &str, data: &serde_json::Value) -> Position {
        let number = self.state.lock().commits.len() as u64 + 1;
        self.given_for(&number.to_string(), stream, event_type, data)
    }

    /// The same, with what it belongs to.
    pub fn given_for(
        &self,
        correlation_id: &str,
        stream: &str,
        event_type: &str,
        data: &serde_json::Value,
    ) -> Position {
        let event = NewEvent {
            event_type: EventType::new(event_type).expect("a valid event type"),
            schema_version: 1,
            data: data.to_string().into(),
            content_type: JSON,
        };
        let number = self.state.lock().commits.len() as u64 + 1;
        let commit = NewCommit {
            stream: StreamId::parse(stream).expect("a valid stream"),
            expected: Expected::Any,
            command_id: command_id(number),
            actor: Text::from_static("anonymous"),
            correlation_id: Text::from(correlation_id),
            causation_id: None,
            hops: 0,
            traceparent: None,
            module: Digest::default(),
            idempotency: None,
            origin: None,
            command: None,
            outcome: Outcome::Events(vec![event]),
        };
        self.stage(commit).expect("the log takes appends").first_position
    }

    fn stage(&self, commit: NewCommit) -> Result<Staged, AppendError> {
        let mut state = self.state.lock();
        let staged = state.stage(commit, self.clock.now())?;
        let durable = if state.held { None } else { state.settle() };
        drop(state);
        if let Some(durable) = durable {
            self.durable.send_replace(durable);
        }
        Ok(staged)
    }

    /// Reads durable commits.
    fn look<T>(&self, read: impl FnOnce(&[Commit]) -> T) -> Result<T, ReadError> {
        let mut state = self.state.lock();
        if state.failing_reads > 0 {
            state.failing_reads -= 1;
            return Err(ReadError::Io("the test says so".into()));
        }
        Ok(read(&state.commits[..state.durable]))
    }
}

/// A command id that is a function of a number.
#[must_use]
pub fn command_id(number: u64) -> CommandId {
    let mut random = [0; 10];
    random[2..].copy_from_slice(&number.to_be_bytes());
    CommandId::new(ManualClock::START, random)
}

impl State {
    fn stage(&mut self, commit: NewCommit, now: Timestamp) -> Result<Staged, AppendError> {
        if let Some(why) = &self.poisoned {
            return Err(AppendError::Poisoned(why.clone()));
        }
        if self.closed {
            return Err(AppendError::Unavailable("it was closed".into()));
        }
        if let Some(why) = &self.unavailable {
            return Err(AppendError::Unavailable(why.clone()));
        }
        check_size(&commit)?;
        let now = now.max(self.last_time());
        if let Some(earlier) = self.find_duplicate(&commit, now) {
            return Err(AppendError::Duplicate(Box::new(earlier)));
        }
        let actual = self.revision(&commit.stream);
        if let Expected::Revision(expected) = commit.expected
            && expected != actual
        {
            return Err(AppendError::Conflict { actual });
        }
        let number = CommitNumber(self.commits.len() as u64 + 1);
        let first_position = self.last_position(self.commits.len()).next();
        let first_revision = Revision::after(actual);
        let built = build(commit, number, now, first_position, first_revision);
        self.commits.push(built);
        let group = self.group.get_or_insert_with(|| Settlement::pending().0);
        let settlement = group.settlement();
        Ok(Staged { commit: number, first_position, first_revision, recorded_at: now, settlement })
    }

    /// Settles the group; gives the durable mark if it has moved.
    fn settle(&mut self) -> Option<Durable> {
        let group = self.group.take()?;
        match self.next_failure.take() {
            None => {
                self.durable = self.commits.len();
                group.durable();
                Some(self.durable_mark())
            }
            Some(failure) => {
                let lost = self.commits.split_off(self.durable);
                if let GroupFailure::OutcomeUnknown(why) = &failure {
                    self.poisoned = Some(why.clone());
                    self.limbo = lost;
                }
                group.failed(failure);
                None
            }
        }
    }

    fn durable_mark(&self) -> Durable {
        Durable { commit: CommitNumber(self.durable as u64), position: self.last_position(self.durable) }
    }

    /// Position of the last event of the first so many commits.
    fn last_position(&self, commits: usize) -> Position {
        self.commits[..commits].last().map_or(Position::START, |commit| commit.header.last_position())
    }

    fn last_time(&self) -> Timestamp {
        self.commits.last().map_or(self.told, |commit| commit.header.recorded_at.max(self.told))
    }

    fn revision(&self, stream: &StreamId) -> Option<Revision> {
        let last = self.commits.iter().rev().find(|commit| commit.header.stream == *stream)?;
        last.header.last_revision()
    }

    fn find_duplicate(&self, commit: &NewCommit, now: Timestamp) -> Option<KeyMatch> {
        let by_key = commit.idempotency.as_ref().and_then(|key| self.find_key(&commit.actor, &key.key, now));
        by_key.or_else(|| commit.origin.as_ref().and_then(|origin| self.find_origin(origin)))
    }

    fn find_key(&self, actor: &str, key: &str, now: Timestamp) -> Option<KeyMatch> {
        let found = self.commits.iter().rev().find(|commit| {
            let header = &commit.header;
            let same = header.idempotency.as_ref().is_some_and(|known| *known.key == *key);
            same && *header.actor == *actor && now.since(header.recorded_at) < KEYS_KEPT
        })?;
        Some(self.key_match(found))
    }

    fn find_origin(&self, origin: &KafkaOrigin) -> Option<KeyMatch> {
        let found = self.commits.iter().find(|commit| commit.header.origin.as_ref() == Some(origin))?;
        Some(self.key_match(found))
    }

    fn key_match(&self, found: &Commit) -> KeyMatch {
        let header = &found.header;
        KeyMatch {
            commit: header.number,
            request: header.idempotency.as_ref().map(|key| key.request).unwrap_or_default(),
            settlement: self.settlement(header.number),
            decided: None,
        }
    }

    fn settlement(&self, number: CommitNumber) -> Settlement {
        match &self.group {
            Some(group) if number.0 as usize > self.durable => group.settlement(),
            _ => Settlement::durable(),
        }
    }
}

fn check_size(commit: &NewCommit) -> Result<(), AppendError> {
    let Outcome::Events(events) = &commit.outcome else { return Ok(()) };
    if events.len() > cap::COMMIT_EVENTS {
        return Err(AppendError::TooLarge(format!("{} events in one commit", events.len())));
    }
    // With what a record says besides, about.
    let bytes: usize =
        128 + events.iter().map(|event| 12 + event.event_type.len() + event.data.len()).sum::<usize>();
    let largest = events.iter().map(|event| event.data.len()).max().unwrap_or(0);
    if bytes > cap::COMMIT_BYTES || largest > cap::EVENT_BYTES {
        return Err(AppendError::TooLarge(format!(
            "{bytes} bytes in one commit, {largest} in its largest event"
        )));
    }
    Ok(())
}

fn build(
    commit: NewCommit,
    number: CommitNumber,
    recorded_at: Timestamp,
    first_position: Position,
    first_revision: Revision,
) -> Commit {
    let (events, refusal) = match commit.outcome {
        Outcome::Events(events) => (events, None),
        Outcome::Refused(refusal) => (Vec::new(), Some(refusal)),
    };
    let header = Arc::new(CommitHeader {
        number,
        epoch: 1,
        recorded_at,
        stream: commit.stream,
        event_count: events.len() as u32,
        first_position,
        first_revision,
        command_id: commit.command_id,
        actor: commit.actor,
        correlation_id: commit.correlation_id,
        causation_id: commit.causation_id,
        hops: commit.hops,
        traceparent: commit.traceparent,
        module: commit.module,
        idempotency: commit.idempotency,
        origin: commit.origin,
        command: commit.command,
        refusal,
    });
    let events = events.into_iter().zip(0..).map(|(event, index)| StoredEvent {
        position: Position(first_position.0 + index),
        revision: Revision(first_revision.0 + index),
        event_type: event.event_type,
        schema_version: event.schema_version,
        data: event.data,
        content_type: event.content_type,
        commit: header.clone(),
    });
    Commit { events: events.collect(), header }
}

/// As many items as the limits allow, and one at least; whether that was all.
fn take<T>(
    items: impl Iterator<Item = T>,
    limits: ReadLimits,
    weight: impl Fn(&T) -> usize,
) -> (Vec<T>, bool) {
    let (mut taken, mut bytes) = (Vec::new(), 0);
    for item in items {
        if !taken.is_empty() && (taken.len() >= limits.items || bytes >= limits.bytes) {
            return (taken, false);
        }
        bytes += weight(&item);
        taken.push(item);
    }
    (taken, true)
}

impl EventLog for MemoryLog {
    fn append(&self, commit: NewCommit) -> Future<'_, Result<Staged, AppendError>> {
        Box::pin(ready(self.stage(commit)))
    }

    fn durable(&self) -> watch::Receiver<Durable> {
        self.durable.subscribe()
    }

    fn now(&self) -> Timestamp {
        let mut state = self.state.lock();
        state.told = self.clock.now().max(state.last_time());
        state.told
    }

    fn head(&self, stream: &StreamId) -> Result<Head, ReadError> {
        let state = self.state.lock();
        let staged = state.commits[state.durable..].iter().rev();
        let staged = staged.map(|commit| &commit.header).find(|header| header.stream == *stream);
        let settlement = staged.map_or(Settlement::durable(), |header| state.settlement(header.number));
        Ok(Head { revision: state.revision(stream), settlement })
    }

    fn find_key(&self, actor: &str, key: &str) -> Result<Option<KeyMatch>, ReadError> {
        let state = self.state.lock();
        let now = self.clock.now().max(state.last_time());
        Ok(state.find_key(actor, key, now))
    }

    fn read<'a>(
        &'a self,
        after: Position,
        filter: &'a EventFilter,
        limits: ReadLimits,
    ) -> Future<'a, Result<EventBatch, ReadError>> {
        self.state.lock().reads += 1;
        let read = self.look(|commits| {
            let first = commits.partition_point(|commit| commit.header.last_position() <= after);
            let events = commits[first..].iter().flat_map(|commit| &commit.events);
            let wanted = events
                .filter(|event| event.position > after && filter.wants(event.stream(), &event.event_type));
            let (events, all) = take(wanted.cloned(), limits, StoredEvent::weight);
            let end = commits.last().map_or(Position::START, |commit| commit.header.last_position());
            let scanned_to = match events.last() {
                Some(last) if !all => last.position,
                _ => end.max(after),
            };
            EventBatch { events, scanned_to }
        });
        Box::pin(ready(read))
    }

    fn read_stream<'a>(
        &'a self,
        stream: &'a StreamId,
        from: Revision,
        limits: ReadLimits,
    ) -> Future<'a, Result<Vec<StoredEvent>, ReadError>> {
        Box::pin(ready(self.look(|commits| {
            let commits = commits.iter().filter(|commit| commit.header.stream == *stream);
            let events = commits.flat_map(|commit| &commit.events).filter(|event| event.revision >= from);
            take(events.cloned(), limits, StoredEvent::weight).0
        })))
    }

    fn read_commits(
        &self,
        after: CommitNumber,
        limits: ReadLimits,
    ) -> Future<'_, Result<Vec<Commit>, ReadError>> {
        Box::pin(ready(self.look(|commits| {
            let behind = commits.iter().skip(after.0 as usize).cloned();
            take(behind, limits, |commit| commit.events.iter().map(StoredEvent::weight).sum::<usize>() + 64).0
        })))
    }

    fn commit(&self, number: CommitNumber) -> Future<'_, Result<Option<Commit>, ReadError>> {
        Box::pin(ready(self.look(|commits| commits.get((number.0 as usize).wrapping_sub(1)).cloned())))
    }

    fn find_command(&self, command: CommandId) -> Future<'_, Result<Option<Commit>, ReadError>> {
        Box::pin(ready(
            self.look(|commits| commits.iter().find(|commit| commit.header.command_id == command).cloned()),
        ))
    }

    fn close(&self) -> Option<Durable> {
        self.settle();
        let mut state = self.state.lock();
        state.closed = true;
        state.poisoned.is_none().then(|| state.durable_mark())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebb_domain::commit::IdempotencyKey;
    use serde_json::json;
    use uuid::Uuid;

    fn commit(stream: &str, expected: Expected, key: Option<&str>) -> NewCommit {
        let key = key.map(|key| IdempotencyKey { key: key.into(), request: Digest::of(b"request") });
        NewCommit {
            stream: StreamId::parse(stream).unwrap(),
            expected,
            command_id: CommandId(Uuid::from_u128(7)),
            actor: Text::from_static("alice"),
            correlation_id: Text::from_static("c"),
            causation_id: None,
            hops: 0,
            traceparent: None,
            module: Digest::default(),
            idempotency: key,
            origin: None,
            command: None,
            outcome: Outcome::Events(vec![NewEvent {
                event_type: EventType::new("Opened").unwrap(),
                schema_version: 1,
                data: "{}".into(),
                content_type: JSON,
            }]),
        }
    }

    #[tokio::test]
    async fn readers_see_nothing_that_is_only_staged() {
        let log = MemoryLog::default();
        log.hold();
        log.given("account-1", "Opened", &json!({}));
        assert!(log.events().is_empty());
        assert_eq!(log.head(&StreamId::parse("account-1").unwrap()).unwrap().revision, Some(Revision(0)));
        log.settle();
        assert_eq!(log.events().len(), 1);
        assert_eq!(log.durable().borrow().position, Position(1));
    }

    #[tokio::test]
    async fn a_rewound_group_leaves_no_trace_and_an_unknown_outcome_poisons() {
        let log = MemoryLog::default();
        log.fail_next_group(GroupFailure::Rewound("disk full".into()));
        let mut staged = log.append(commit("account-1", Expected::Revision(None), None)).await.unwrap();
        assert!(matches!(staged.settlement.wait().await, Err(GroupFailure::Rewound(_))));
        log.fail_next_group(GroupFailure::OutcomeUnknown("fsync".into()));
        let mut staged = log.append(commit("account-1", Expected::Revision(None), None)).await.unwrap();
        assert!(matches!(staged.settlement.wait().await, Err(GroupFailure::OutcomeUnknown(_))));
        let refused = log.append(commit("account-1", Expected::Any, None)).await;
        assert!(matches!(refused, Err(AppendError::Poisoned(_))));
        log.reopen(true);
        let found = log.find_command(CommandId(Uuid::from_u128(7))).await.unwrap();
        assert_eq!(found.unwrap().header.first_position, Position(1));
    }

    #[tokio::test]
    async fn the_key_is_looked_at_before_the_revision() {
        let log = MemoryLog::default();
        log.append(commit("account-1", Expected::Revision(None), Some("k"))).await.unwrap();
        let again = log.append(commit("account-1", Expected::Revision(None), Some("k"))).await;
        assert!(matches!(again, Err(AppendError::Duplicate(earlier)) if earlier.commit == CommitNumber(1)));
        let conflict = log.append(commit("account-1", Expected::Revision(None), Some("l"))).await;
        assert!(matches!(conflict, Err(AppendError::Conflict { actual: Some(Revision(0)) })));
    }

    #[tokio::test]
    async fn a_read_says_how_far_it_has_looked() {
        let log = MemoryLog::default();
        for stream in ["account-1", "flight-1", "account-2", "flight-2"] {
            log.given(stream, "Opened", &json!({}));
        }
        let accounts =
            EventFilter { categories: Some([Text::from_static("account")].into()), ..EventFilter::default() };
        let one = ReadLimits { items: 1, bytes: 1 << 20 };
        let read = log.read(Position::START, &accounts, one).await.unwrap();
        assert_eq!((read.events.len(), read.scanned_to), (1, Position(1)));
        let read = log.read(read.scanned_to, &accounts, one).await.unwrap();
        assert_eq!((read.events[0].position, read.scanned_to), (Position(3), Position(4)));
    }
}
