//! What every [`EventLog`] must do, as functions over a fresh, empty log. [`event_log_tests!`](crate::event_log_tests) makes
//! a test of each.

use super::ManualClock;
use bytes::Bytes;
use ebb_domain::commit::{
    CommandId, CommitNumber, Expected, IdempotencyKey, KafkaOrigin, NewCommit, Outcome, RecordedCommand,
    Refusal,
};
use ebb_domain::digest::Digest;
use ebb_domain::event::{JSON, NewEvent, Position, Revision};
use ebb_domain::limits::cap;
use ebb_domain::name::EventType;
use ebb_domain::port::Clock as _;
use ebb_domain::port::log::{AppendError, EventFilter, EventLog, ReadLimits, Staged};
use ebb_domain::stream::StreamId;
use ebb_domain::text::Text;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use uuid::Uuid;

/// A log to be tested, and the clock that it was given.
pub struct Subject {
    /// The log, empty.
    pub log: Arc<dyn EventLog>,
    /// Its clock.
    pub clock: Arc<ManualClock>,
    /// What must outlive the log: its folder, say.
    pub keep: Option<Box<dyn std::any::Any>>,
}

/// Makes a test of every function of this module. `$subject` is an expression that makes a [`Subject`]; the crate needs
/// `tokio` with `macros` and `rt-multi-thread`.
#[macro_export]
macro_rules! event_log_tests {
    ($subject:expr) => {
        $crate::event_log_tests!(@each $subject;
            numbers_are_dense_and_revisions_gapless,
            staged_commits_are_invisible_to_readers_until_the_mark_covers_them,
            an_expectation_that_staged_state_breaks_is_a_conflict,
            a_key_is_looked_up_before_the_expectation,
            a_key_expires_by_recorded_time,
            a_kafka_record_is_never_taken_twice,
            refusals_have_a_number_and_no_position,
            everything_about_a_commit_is_read_back,
            filters_skip_and_still_tell_how_far_they_looked,
            limits_bound_a_read_and_let_one_item_through,
            a_stream_is_read_in_pages_from_any_revision,
            recorded_time_never_decreases,
            no_commit_is_recorded_before_a_time_that_was_told,
            a_command_is_found_by_its_id,
            what_is_too_large_is_refused_whole,
        );
    };
    (@each $subject:expr; $($name:ident,)*) => {
        $(
            #[tokio::test]
            async fn $name() {
                $crate::testing::conformance::$name(&$subject).await;
            }
        )*
    };
}

/// A stream.
///
/// # Panics
/// The text is no stream.
#[must_use]
pub fn stream(text: &str) -> StreamId {
    StreamId::parse(text).unwrap()
}

/// An event of this type with this data.
///
/// # Panics
/// The type is no event type.
#[must_use]
pub fn event(event_type: &str, data: &str) -> NewEvent {
    let data = Bytes::copy_from_slice(data.as_bytes());
    NewEvent { event_type: EventType::new(event_type).unwrap(), schema_version: 1, data, content_type: JSON }
}

/// A commit of these events by `anonymous`, without key or expectation.
#[must_use]
pub fn commit(stream_id: &str, events: Vec<NewEvent>) -> NewCommit {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    NewCommit {
        stream: stream(stream_id),
        expected: Expected::Any,
        command_id: CommandId(Uuid::from_u128(u128::from(number))),
        actor: "anonymous".into(),
        correlation_id: "correlation".into(),
        causation_id: None,
        hops: 0,
        traceparent: None,
        module: Digest::default(),
        idempotency: None,
        origin: None,
        command: None,
        outcome: Outcome::Events(events),
    }
}

/// The same commit under an idempotency key.
#[must_use]
pub fn with_key(commit: NewCommit, key: &str) -> NewCommit {
    let idempotency = Some(IdempotencyKey { key: key.into(), request: Digest::of(key.as_bytes()) });
    NewCommit { idempotency, ..commit }
}

/// The same commit, expecting this of its stream.
#[must_use]
pub fn expecting(commit: NewCommit, revision: Option<u64>) -> NewCommit {
    NewCommit { expected: Expected::Revision(revision.map(Revision)), ..commit }
}

/// Appends and waits until it is durable.
///
/// # Panics
/// It was not staged, or did not become durable.
pub async fn append(log: &dyn EventLog, commit: NewCommit) -> Staged {
    let mut staged = log.append(commit).await.unwrap();
    staged.settlement.wait().await.unwrap();
    staged
}

/// All events' data as text, in order.
///
/// # Panics
/// They can't be read.
pub async fn all_data(log: &dyn EventLog) -> Vec<String> {
    let (mut after, mut data) = (Position::START, Vec::new());
    loop {
        let batch = log.read(after, &EventFilter::default(), ReadLimits::PAGE).await.unwrap();
        if batch.scanned_to == after {
            return data;
        }
        for event in batch.events {
            data.push(String::from_utf8(event.data.to_vec()).unwrap());
        }
        after = batch.scanned_to;
    }
}

/// Commits are numbered from 1, positions from 1, revisions from 0 in each stream.
pub async fn numbers_are_dense_and_revisions_gapless(subject: &Subject) {
    let log = &*subject.log;
    let first = append(log, commit("account-1", vec![event("Opened", "1"), event("Deposited", "2")])).await;
    let second = append(log, commit("account-2", vec![event("Opened", "3")])).await;
    let third = append(log, commit("account-1", vec![event("Closed", "4")])).await;
    let numbers = [first, second, third].map(|s| (s.commit.0, s.first_position.0, s.first_revision.0));
    assert_eq!(numbers, [(1, 1, 0), (2, 3, 0), (3, 4, 2)]);

    let durable = *log.durable().borrow();
    assert_eq!((durable.commit.0, durable.position.0), (3, 4));
    let batch = log.read(Position::START, &EventFilter::default(), ReadLimits::PAGE).await.unwrap();
    assert_eq!(batch.events.iter().map(|event| event.position.0).collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert_eq!(batch.events.iter().map(|event| event.revision.0).collect::<Vec<_>>(), [0, 1, 0, 2]);
    assert_eq!(log.head(&stream("account-1")).unwrap().revision, Some(Revision(2)));
    assert_eq!(log.head(&stream("account-3")).unwrap().revision, None);
}

/// Readers see nothing above the durable mark, and everything up to it.
pub async fn staged_commits_are_invisible_to_readers_until_the_mark_covers_them(subject: &Subject) {
    let log = &*subject.log;
    let mut settlements = Vec::new();
    for number in 0..50 {
        settlements.push(
            log.append(commit("account-1", vec![event("Deposited", &number.to_string())])).await.unwrap(),
        );
        let durable = *log.durable().borrow();
        let batch = log.read(Position::START, &EventFilter::default(), ReadLimits::PAGE).await.unwrap();
        assert!(batch.scanned_to >= durable.position);
        let mark = *log.durable().borrow();
        assert!(batch.events.len() as u64 <= mark.position.0, "nothing above the mark");
    }
    assert_eq!(
        log.head(&stream("account-1")).unwrap().revision,
        Some(Revision(49)),
        "staged commits included"
    );
    for staged in &mut settlements {
        staged.settlement.wait().await.unwrap();
        assert!(log.durable().borrow().commit >= staged.commit, "the mark moves before anyone is told");
    }
    assert_eq!(all_data(log).await.len(), 50);
}

/// The second of two commits that expect the same revision is refused, though the first is not durable yet.
pub async fn an_expectation_that_staged_state_breaks_is_a_conflict(subject: &Subject) {
    let log = &*subject.log;
    let mut first =
        log.append(expecting(commit("account-1", vec![event("Opened", "1")]), None)).await.unwrap();
    let second = log.append(expecting(commit("account-1", vec![event("Opened", "2")]), None)).await;
    let Err(AppendError::Conflict { actual }) = second else { panic!("{second:?}") };
    assert_eq!(actual, Some(Revision(0)));
    first.settlement.wait().await.unwrap();
    append(log, expecting(commit("account-1", vec![event("Deposited", "3")]), Some(0))).await;
    let late = log.append(expecting(commit("account-1", vec![event("Deposited", "4")]), Some(0))).await;
    assert!(matches!(late, Err(AppendError::Conflict { actual: Some(Revision(1)) })), "{late:?}");
}

/// A repetition is told so even where its expectation no longer holds, staged or durable.
pub async fn a_key_is_looked_up_before_the_expectation(subject: &Subject) {
    let log = &*subject.log;
    let keyed = || expecting(with_key(commit("account-1", vec![event("Opened", "1")]), "key"), None);
    let mut first = log.append(keyed()).await.unwrap();
    for durable in [false, true] {
        let Err(AppendError::Duplicate(found)) = log.append(keyed()).await else { panic!("not a duplicate") };
        assert_eq!((found.commit, found.request), (first.commit, Digest::of(b"key")));
        assert_eq!(log.find_key("anonymous", "key").unwrap().unwrap().commit, first.commit);
        if !durable {
            first.settlement.wait().await.unwrap();
        }
    }
    let other = NewCommit { actor: "alice".into(), ..with_key(commit("account-2", vec![]), "key") };
    append(log, other).await;
    assert!(log.find_key("anonymous", "other").unwrap().is_none());
}

/// 24 hours after it was recorded a key may be used again.
pub async fn a_key_expires_by_recorded_time(subject: &Subject) {
    let log = &*subject.log;
    let keyed = || with_key(commit("account-1", vec![event("Deposited", "1")]), "key");
    let first = append(log, keyed()).await;
    subject.clock.advance(Duration::from_secs(24 * 3600 - 1));
    let Err(AppendError::Duplicate(found)) = log.append(keyed()).await else { panic!("not a duplicate") };
    assert_eq!(found.commit, first.commit);
    subject.clock.advance(Duration::from_secs(1));
    assert!(log.find_key("anonymous", "key").unwrap().is_none());
    let second = append(log, keyed()).await;
    let Err(AppendError::Duplicate(found)) = log.append(keyed()).await else { panic!("not a duplicate") };
    assert_eq!(found.commit, second.commit);
}

/// However late it is redelivered.
pub async fn a_kafka_record_is_never_taken_twice(subject: &Subject) {
    let log = &*subject.log;
    let from = |partition: u32, offset: u64| {
        let origin = KafkaOrigin { cluster: "cluster".into(), topic: Uuid::from_u128(7), partition, offset };
        NewCommit { origin: Some(origin), ..commit("account-1", vec![event("Deposited", "1")]) }
    };
    let first = append(log, from(0, 5)).await;
    append(log, from(0, 6)).await;
    append(log, from(1, 5)).await;
    subject.clock.advance(Duration::from_secs(365 * 24 * 3600));
    append(log, commit("account-1", vec![])).await;
    let Err(AppendError::Duplicate(found)) = log.append(from(0, 5)).await else { panic!("not a duplicate") };
    assert_eq!(found.commit, first.commit);
    append(log, from(0, 4)).await;
}

/// A refusal is a commit like any other, but for its events.
pub async fn refusals_have_a_number_and_no_position(subject: &Subject) {
    let log = &*subject.log;
    append(log, commit("account-1", vec![event("Opened", "1")])).await;
    let refusal = Refusal { code: "closed".into(), message: "it is closed".into(), details: None };
    let refused = NewCommit {
        outcome: Outcome::Refused(refusal.clone()),
        ..with_key(commit("account-1", vec![]), "key")
    };
    let staged = append(log, refused).await;
    assert_eq!((staged.commit.0, staged.first_position.0, staged.first_revision.0), (2, 2, 1));
    let last = append(log, commit("account-1", vec![event("Deposited", "2")])).await;
    assert_eq!((last.commit.0, last.first_position.0, last.first_revision.0), (3, 2, 1));

    let read = log.commit(CommitNumber(2)).await.unwrap().unwrap();
    assert_eq!((read.header.refusal.as_ref(), read.events.len()), (Some(&refusal), 0));
    assert_eq!(all_data(log).await, ["1", "2"]);
    assert!(log.commit(CommitNumber(4)).await.unwrap().is_none());
    assert!(log.commit(CommitNumber(0)).await.unwrap().is_none());
}

/// Every field of a commit and of its events.
pub async fn everything_about_a_commit_is_read_back(subject: &Subject) {
    let log = &*subject.log;
    let binary = NewEvent {
        schema_version: 7,
        data: Bytes::from_static(&[0, 255, 1]),
        content_type: "application/x-thing".into(),
        ..event("Photo.Taken", "")
    };
    let time = subject.clock.now();
    let new = NewCommit {
        command_id: CommandId::new(time, [3; 10]),
        actor: "alice".into(),
        correlation_id: "corr".into(),
        causation_id: Some("cause".into()),
        hops: 7,
        traceparent: Some("00-1-2-01".into()),
        module: Digest::of(b"module"),
        idempotency: Some(IdempotencyKey { key: "k".into(), request: Digest::of(b"body") }),
        origin: Some(KafkaOrigin {
            cluster: "c".into(),
            topic: Uuid::from_u128(9),
            partition: 3,
            offset: 1 << 40,
        }),
        command: Some(RecordedCommand { name: "take".into(), time, data: Some(Bytes::from_static(b"{}")) }),
        ..commit("album-ü/東京", vec![binary.clone(), event("Filed", "{}")])
    };
    let staged = append(log, new.clone()).await;
    let read = log.read_commits(CommitNumber(0), ReadLimits::PAGE).await.unwrap().remove(0);
    let header = &*read.header;
    assert_eq!(
        (header.number, header.recorded_at, header.event_count),
        (staged.commit, staged.recorded_at, 2)
    );
    assert_eq!((&header.stream, header.command_id, &header.actor), (&new.stream, new.command_id, &new.actor));
    assert_eq!((&header.correlation_id, &header.causation_id), (&new.correlation_id, &new.causation_id));
    assert_eq!(header.hops, 7);
    assert_eq!((&header.traceparent, header.module), (&new.traceparent, new.module));
    assert_eq!((&header.idempotency, &header.origin), (&new.idempotency, &new.origin));
    assert_eq!((&header.command, &header.refusal), (&new.command, &None));
    assert!(header.epoch > 0);
    let first = &read.events[0];
    assert_eq!((&first.event_type, first.schema_version), (&binary.event_type, 7));
    assert_eq!((&first.data, &first.content_type), (&binary.data, &binary.content_type));
    assert_eq!((first.position.0, read.events[1].position.0), (1, 2));
    assert_eq!((&read.events[1].content_type, read.events[1].revision.0), (&JSON, 1));
}

/// By category and by type.
pub async fn filters_skip_and_still_tell_how_far_they_looked(subject: &Subject) {
    let log = &*subject.log;
    for number in 0..10 {
        let name = if number % 2 == 0 { "account-1" } else { "flight-1" };
        append(log, commit(name, vec![event("Opened", &number.to_string()), event("Closed", "x")])).await;
    }
    let some = |texts: &[&'static str]| Some(texts.iter().copied().map(Text::from).collect());
    let filter =
        EventFilter { categories: some(&["flight"]), types: some(&["Opened"]), ..EventFilter::default() };
    let batch = log.read(Position(4), &filter, ReadLimits::PAGE).await.unwrap();
    let data: Vec<_> = batch.events.iter().map(|event| event.data.clone()).collect();
    assert_eq!(data, ["3", "5", "7", "9"].map(Bytes::from));
    assert_eq!(batch.scanned_to, Position(20));
    let none = EventFilter { categories: some(&["nobody"]), ..EventFilter::default() };
    let batch = log.read(Position::START, &none, ReadLimits::PAGE).await.unwrap();
    assert_eq!((batch.events.len(), batch.scanned_to), (0, Position(20)));
    let behind = log.read(Position(20), &none, ReadLimits::PAGE).await.unwrap();
    assert_eq!(behind.scanned_to, Position(20));
}

/// Items and bytes bound what is read, within commits too.
pub async fn limits_bound_a_read_and_let_one_item_through(subject: &Subject) {
    let log = &*subject.log;
    let large = "x".repeat(100_000);
    append(log, commit("account-1", (0..10).map(|_| event("Deposited", &large)).collect())).await;
    let all = EventFilter::default();
    let one = log.read(Position(3), &all, ReadLimits { items: 100, bytes: 1 }).await.unwrap();
    assert_eq!((one.events.len(), one.scanned_to), (1, Position(4)));
    let three = log.read(Position(3), &all, ReadLimits { items: 3, bytes: 1 << 30 }).await.unwrap();
    assert_eq!((three.events.len(), three.scanned_to), (3, Position(6)));
    let stream = stream("account-1");
    let one = log.read_stream(&stream, Revision(2), ReadLimits { items: 100, bytes: 1 }).await.unwrap();
    assert_eq!(one.iter().map(|event| event.revision.0).collect::<Vec<_>>(), [2]);
    let two = log.read_stream(&stream, Revision(2), ReadLimits { items: 2, bytes: 1 << 30 }).await.unwrap();
    assert_eq!(two.iter().map(|event| event.revision.0).collect::<Vec<_>>(), [2, 3]);
    let commits = log.read_commits(CommitNumber(0), ReadLimits { items: 10, bytes: 1 }).await.unwrap();
    assert_eq!(commits.len(), 1);
}

/// Streams whose names start alike are kept apart.
pub async fn a_stream_is_read_in_pages_from_any_revision(subject: &Subject) {
    let log = &*subject.log;
    let mut last = None;
    for number in 0..300 {
        for name in ["account-1", "account-11", "account-1/x"] {
            let events = vec![event("Deposited", &format!("{name} {number}")), event("Noted", "x")];
            last = Some(log.append(commit(name, events)).await.unwrap());
        }
    }
    last.unwrap().settlement.wait().await.unwrap();
    let name = stream("account-1");
    let mut revisions = Vec::new();
    let mut from = Revision(101);
    loop {
        let page = log.read_stream(&name, from, ReadLimits { items: 70, bytes: 1 << 20 }).await.unwrap();
        assert!(page.iter().all(|event| *event.stream() == name));
        revisions.extend(page.iter().map(|event| event.revision.0));
        let Some(event) = page.last() else { break };
        from = Revision(event.revision.0 + 1);
    }
    assert_eq!(revisions, (101..600).collect::<Vec<_>>());
}

/// Though the wall clock may.
pub async fn recorded_time_never_decreases(subject: &Subject) {
    let log = &*subject.log;
    let first = append(log, commit("account-1", vec![event("Opened", "1")])).await;
    subject.clock.set_back(Duration::from_secs(60));
    assert!(log.now() >= first.recorded_at);
    let second = append(log, commit("account-1", vec![event("Deposited", "2")])).await;
    assert!(second.recorded_at >= first.recorded_at);
}

/// A command has its time when it comes in; the clock may be set back before it is decided.
pub async fn no_commit_is_recorded_before_a_time_that_was_told(subject: &Subject) {
    let log = &*subject.log;
    append(log, commit("account-1", vec![event("Opened", "1")])).await;
    subject.clock.advance(Duration::from_secs(60));
    let told = log.now();
    subject.clock.set_back(Duration::from_secs(60));
    assert!(log.now() >= told);
    let late = append(log, commit("account-1", vec![event("Deposited", "2")])).await;
    assert!(late.recorded_at >= told);
}

/// Long after it was recorded, among many others.
pub async fn a_command_is_found_by_its_id(subject: &Subject) {
    let log = &*subject.log;
    let mut ids = Vec::new();
    let mut last = None;
    for number in 0..200_u8 {
        let id = CommandId::new(log.now(), [number; 10]);
        ids.push(id);
        // Decided some time after the command came in.
        subject.clock.advance(Duration::from_millis(300));
        let new = NewCommit { command_id: id, ..commit("account-1", vec![event("Deposited", "1")]) };
        last = Some(log.append(new).await.unwrap());
    }
    last.unwrap().settlement.wait().await.unwrap();
    for (id, number) in ids.iter().zip(1..) {
        assert_eq!(log.find_command(*id).await.unwrap().unwrap().header.number.0, number);
    }
    let unknown = CommandId::new(log.now(), [222; 10]);
    assert!(log.find_command(unknown).await.unwrap().is_none());
    assert!(log.find_command(CommandId(Uuid::nil())).await.unwrap().is_none());
}

/// Data, number of events, bytes of a commit.
pub async fn what_is_too_large_is_refused_whole(subject: &Subject) {
    let log = &*subject.log;
    let large = event("Deposited", &"x".repeat(cap::EVENT_BYTES));
    let too_large = [
        vec![event("Deposited", &"x".repeat(cap::EVENT_BYTES + 1))],
        vec![event("Deposited", "1"); cap::COMMIT_EVENTS + 1],
        vec![large.clone(); cap::COMMIT_BYTES / cap::EVENT_BYTES],
    ];
    for events in too_large {
        let refused = log.append(commit("account-1", events)).await;
        assert!(matches!(refused, Err(AppendError::TooLarge(_))), "{refused:?}");
    }
    let staged = append(log, commit("account-1", vec![large; 7])).await;
    assert_eq!(staged.first_position, Position(1));
    append(log, commit("account-1", vec![event("Deposited", "1"); cap::COMMIT_EVENTS])).await;
}
