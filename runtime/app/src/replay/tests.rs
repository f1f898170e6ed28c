//! What a replay promises, on a log in memory and a counter written in Rust that can be made to misbehave.

use super::*;
use crate::testing::{ManualClock, MemoryLog, command_id};
use bytes::Bytes;
use ebb_domain::commit::{Expected, NewCommit, Outcome, RecordedCommand, Refusal};
use ebb_domain::event::{JSON, NewEvent};
use ebb_domain::manifest::Manifest;
use ebb_domain::name::EventType;
use ebb_domain::port::Future;
use ebb_domain::port::guest::{Aggregate, DecidedEvent, Decision, GuestCommand, Lack, PastEvent};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicU64, Ordering};

const MANIFEST: &str = r#"
[app]
name = "counters"

[aggregate.counter]
module = "counter.wasm"
commands = { count = {} }
events = { Counted = {}, Other = {} }
"#;

/// How the module of a test decides; it gets the count so far, and a number that all its aggregates share.
type Rule = fn(u64, &AtomicU64) -> Result<Decision, CallError>;

struct Counters {
    rule: Rule,
    /// What leaks from one aggregate into another: made anew for each instance.
    shared: Arc<AtomicU64>,
    is_fresh: bool,
    /// Calls of `open` that find no place.
    overloaded: AtomicU64,
}

struct Counter {
    count: u64,
    rule: Rule,
    shared: Arc<AtomicU64>,
}

impl CommandModule for Counters {
    fn open<'a>(
        &'a self,
        _: &'a StreamId,
        _: Option<Bytes>,
    ) -> Future<'a, Result<Box<dyn Aggregate>, CallError>> {
        Box::pin(async move {
            if self.overloaded.load(Ordering::Relaxed) > 0 {
                self.overloaded.fetch_sub(1, Ordering::Relaxed);
                return Err(CallError::Overloaded {
                    lack: Lack::Slots(1),
                    retry_after: Duration::from_millis(1),
                });
            }
            let shared = if self.is_fresh { Arc::default() } else { self.shared.clone() };
            Ok(Box::new(Counter { count: 0, rule: self.rule, shared }) as Box<dyn Aggregate>)
        })
    }
}

impl Aggregate for Counter {
    fn apply<'a>(&'a mut self, events: &'a [PastEvent]) -> Future<'a, Result<(), CallError>> {
        Box::pin(async move {
            for event in events {
                if event.data == "\"unheard of\"" {
                    return Err(CallError::Trapped("unheard of".into()));
                }
                self.count += 1;
            }
            Ok(())
        })
    }

    fn decide<'a>(&'a mut self, _: &'a GuestCommand) -> Future<'a, Result<Decision, CallError>> {
        Box::pin(async move { (self.rule)(self.count, &self.shared) })
    }

    fn snapshot(&mut self) -> Future<'_, Result<Option<Bytes>, CallError>> {
        Box::pin(async { Ok(None) })
    }
}

fn counted(data: &Value) -> Decision {
    Decision::Events(vec![DecidedEvent { event_type: "Counted".into(), data: data.to_string().into() }])
}

fn refusal(details: &'static str) -> Refusal {
    Refusal { code: "full".into(), message: "no more".into(), details: Some(details.into()) }
}

/// The rule that the histories of these tests were decided by.
const HONEST: Rule = |count, _| Ok(counted(&json!({ "count": count + 1 })));

fn subjects(rule: Rule, manifest: &str) -> Subjects {
    let manifest = Manifest::parse(manifest).unwrap();
    let spec = manifest.aggregates.values().next().unwrap().clone();
    let module = |is_fresh| {
        Arc::new(Counters { rule, shared: Arc::default(), is_fresh, overloaded: AtomicU64::new(3) })
            as Arc<dyn CommandModule>
    };
    let name = spec.name.text().clone();
    let function = AggregateFunction {
        spec,
        digest: Digest::of(b"candidate"),
        module: module(false),
        command_schemas: HashMap::new(),
        event_schemas: HashMap::new(),
    };
    HashMap::from([(name, Arc::new(Subject { function, shared: module(false), fresh: module(true) }))])
}

#[derive(Default)]
struct History {
    log: Arc<MemoryLog>,
    commands: u64,
}

impl History {
    async fn record(&mut self, stream: &str, outcome: Outcome) {
        self.record_as(stream, outcome, Digest::of(b"then")).await;
    }

    async fn record_as(&mut self, stream: &str, outcome: Outcome, module: Digest) {
        self.commands += 1;
        let command_id = command_id(self.commands);
        let commit = NewCommit {
            stream: StreamId::parse(stream).unwrap(),
            expected: Expected::Any,
            command_id,
            actor: Text::from_static("ann"),
            correlation_id: Text::from_static("c"),
            causation_id: None,
            hops: 0,
            traceparent: None,
            module,
            idempotency: None,
            origin: None,
            command: Some(RecordedCommand {
                name: Text::from_static("count"),
                time: ManualClock::START,
                data: Some(Bytes::from_static(b"{}")),
            }),
            outcome,
        };
        self.log.append(commit).await.unwrap().settlement.wait().await.unwrap();
    }

    /// So many streams that count to three, one after another.
    async fn counting(streams: u64) -> Self {
        let mut history = Self::default();
        for stream in 0..streams {
            for count in 1..=3 {
                history.record(&format!("counter-{stream}"), event(&json!({ "count": count }))).await;
            }
        }
        history
    }

    async fn replay_with(&self, subjects: Subjects, options: ReplayOptions) -> ReplayReport {
        replay(self.log.clone(), subjects, options, |_| {}).await.unwrap()
    }

    async fn replay(&self, rule: Rule) -> ReplayReport {
        self.replay_with(subjects(rule, MANIFEST), ReplayOptions::default()).await
    }
}

fn event(data: &Value) -> Outcome {
    raw_event(data.to_string())
}

fn raw_event(data: String) -> Outcome {
    Outcome::Events(vec![NewEvent {
        event_type: EventType::new("Counted").unwrap(),
        schema_version: 1,
        data: data.into(),
        content_type: JSON,
    }])
}

/// The only group of a report: its kind, what it is called, and how often it was seen.
fn only_group(report: &ReplayReport) -> (DifferenceKind, &str, u64) {
    let [group] = &report.summary[..] else { panic!("{:#?}", report.summary) };
    (group.kind, &group.what, group.count)
}

#[tokio::test]
async fn a_deterministic_module_decides_as_it_did_in_whatever_company() {
    let history = History::counting(40).await;
    for isolation in [Isolation::Both, Isolation::Shared, Isolation::Fresh] {
        let options = ReplayOptions { isolation, ..ReplayOptions::default() };
        let report = history.replay_with(subjects(HONEST, MANIFEST), options).await;
        assert_eq!((report.commands, report.identical, report.different), (120, 120, 0), "{isolation:?}");
    }
}

/// Decides well while commands come as they were recorded, one stream after another: the number that is kept starts
/// again with each stream's first command.
const LEAKY: Rule = |count, shared| {
    if count == 0 {
        shared.store(0, Ordering::Relaxed);
    }
    let kept = shared.fetch_add(1, Ordering::Relaxed);
    Ok(counted(&json!({ "count": kept.max(count) + 1 })))
};

#[tokio::test]
async fn state_that_streams_share_is_found_by_shuffling_them_and_by_nothing_less() {
    let history = History::counting(40).await;
    let alone = ReplayOptions { isolation: Isolation::Fresh, ..ReplayOptions::default() };
    assert_eq!(history.replay_with(subjects(LEAKY, MANIFEST), alone).await.different, 0);

    let report = history.replay(LEAKY).await;
    assert!(report.different > 0);
    assert!(report.summary.iter().all(|group| group.kind == DifferenceKind::NotDeterministic), "{report:#?}");
    let first = &report.differences[0];
    assert_eq!(first.replayed_alone.as_ref(), Some(&first.recorded), "alone it decides as it did");
    assert_ne!(first.replayed, first.recorded);

    let again = history.replay(LEAKY).await;
    assert_eq!(again.differences, report.differences, "the same seed, the same findings");
}

#[tokio::test]
async fn a_candidate_that_leaks_is_found_even_where_it_means_to_differ() {
    let history = History::counting(40).await;
    let report = history
        .replay(|_, shared| Ok(counted(&json!({ "calls": shared.fetch_add(1, Ordering::Relaxed) }))))
        .await;
    let leaks = report.summary.iter().filter(|group| group.kind == DifferenceKind::NotDeterministic);
    assert!(leaks.map(|group| group.count).sum::<u64>() > 100, "{:#?}", report.summary);
}

#[tokio::test]
async fn the_module_that_decided_then_has_no_excuse_for_deciding_otherwise() {
    let mut history = History::default();
    history.record_as("counter-a", event(&json!({ "count": 7 })), Digest::of(b"candidate")).await;
    let report = history.replay(HONEST).await;
    assert_eq!(only_group(&report), (DifferenceKind::NotDeterministic, "Counted/count", 1));
}

#[tokio::test]
async fn differences_are_told_by_kind_with_first_and_last_and_field_by_field() {
    let mut history = History::counting(2).await;
    let candidate: Rule = |count, _| match count {
        2 => Ok(counted(&json!({ "count": 4, "legs": [{ "a/b": 1 }] }))),
        count => HONEST(count, &AtomicU64::new(0)),
    };
    let report = history.replay(candidate).await;
    assert_eq!(only_group(&report), (DifferenceKind::OtherData, "Counted/count, Counted/legs", 2));
    let group = &report.summary[0];
    assert_eq!((group.first.commit, group.last.commit, &*group.last.stream), (3, 6, "counter-1"));
    let change = |path: &str, recorded, replayed| FieldChange {
        event: Some(0),
        path: path.into(),
        recorded,
        replayed,
    };
    let legs = Some(json!([{ "a/b": 1 }]));
    let expected = [change("/count", Some(json!(3)), Some(json!(4))), change("/legs", None, legs)];
    assert_eq!(report.differences[0].changes, expected);
    assert_eq!((report.streams_affected, report.by_command["counter/count"].different), (2, 2));

    history.record("counter-a", Outcome::Refused(refusal("{\"at\":1}"))).await;
    let report = history.replay(|_, _| Ok(Decision::Refused(refusal("{\"at\":2}")))).await;
    let kinds: Vec<_> = report.summary.iter().map(|group| (group.kind, &*group.what, group.count)).collect();
    let refused = (DifferenceKind::NowRefused, "Counted -> refused full", 6);
    assert_eq!(kinds, [refused, (DifferenceKind::OtherRefusal, "details/at", 1)]);
    let last = &report.differences[6];
    assert_ne!(last.recorded, last.replayed, "a difference in nothing but its details can be seen");
}

#[tokio::test]
async fn the_same_json_in_other_bytes_is_a_difference_of_its_own() {
    let mut history = History::default();
    history.record("counter-a", raw_event("{ \"count\": 1 }".into())).await;
    assert_eq!(only_group(&history.replay(HONEST).await), (DifferenceKind::OtherBytes, "Counted", 1));
}

#[tokio::test]
async fn a_module_that_fails_or_cannot_fold_what_was_recorded_is_a_difference() {
    let mut history = History::default();
    history.record("counter-a", event(&json!({ "count": 1 }))).await;
    let report = history.replay(|_, _| Err(CallError::Trapped("boom".into()))).await;
    assert_eq!(only_group(&report), (DifferenceKind::Failed, "the module trapped: boom", 1));

    // It decides the same, and could not go on from there: the last event of a stream shows it, too.
    let mut history = History::default();
    history.record("counter-a", event(&json!("unheard of"))).await;
    let report = history.replay(|_, _| Ok(counted(&json!("unheard of")))).await;
    let (kind, what, count) = only_group(&report);
    assert_eq!((kind, count), (DifferenceKind::Failed, 1));
    assert!(what.contains("can't fold"), "{what}");
}

#[tokio::test]
async fn a_command_that_the_manifest_takes_no_more_is_a_difference_and_not_passed_over() {
    let history = History::counting(1).await;
    for manifest in [
        MANIFEST.replace("count = {}", "add = {}"),
        MANIFEST.replace("aggregate.counter", "aggregate.abacus"),
    ] {
        let report = history.replay_with(subjects(HONEST, &manifest), ReplayOptions::default()).await;
        assert_eq!((report.summary[0].kind, report.different), (DifferenceKind::Rejected, 3), "{manifest}");
    }
}

#[tokio::test]
async fn a_sample_takes_whole_streams_and_the_same_ones_for_the_same_seed() {
    let history = History::counting(100).await;
    let sampled = async |seed| {
        let options = ReplayOptions { sample: 0.25, seed, ..ReplayOptions::default() };
        history.replay_with(subjects(HONEST, MANIFEST), options).await
    };
    let (one, again, other) = (sampled(1).await, sampled(1).await, sampled(2).await);
    assert_eq!((one.commands % 3, one.commands), (0, again.commands));
    assert!((30..120).contains(&one.commands), "{} of 300", one.commands);
    assert_eq!(one.commands + one.skipped.not_sampled, 300);
    assert_eq!(other.different, 0);
}

#[tokio::test]
async fn a_report_is_bounded_whatever_was_decided() {
    let mut history = History::default();
    for stream in 0..4 {
        let long = format!("\"{}\"", "x".repeat(400_000));
        history.record(&format!("counter-{stream}"), raw_event(long)).await;
    }
    let options = ReplayOptions { max_differences: 3, ..ReplayOptions::default() };
    let report = history.replay_with(subjects(HONEST, MANIFEST), options).await;
    assert_eq!((report.different, report.differences.len()), (4, 3));
    let text = serde_json::to_string(&report).unwrap();
    assert!(text.len() < 200_000, "{} bytes", text.len());
    assert!(text.contains("(400002 bytes)"));
}

#[tokio::test]
async fn a_span_of_time_takes_what_was_recorded_in_it() {
    let clock = Arc::new(ManualClock::default());
    let mut history = History { log: Arc::new(MemoryLog::new(clock.clone())), commands: 0 };
    for stream in 0..10 {
        history.record(&format!("counter-{stream}"), event(&json!({ "count": 1 }))).await;
        clock.advance(Duration::from_secs(60));
    }
    let at = |minute: u64| ManualClock::START.plus(Duration::from_secs(60 * minute));
    let count = async |since, until| {
        let options = ReplayOptions { since, until, ..ReplayOptions::default() };
        history.replay_with(subjects(HONEST, MANIFEST), options).await.commands
    };
    assert_eq!(count(None, None).await, 10);
    assert_eq!(count(Some(at(3)), None).await, 7);
    assert_eq!(count(None, Some(at(3))).await, 3);
    assert_eq!(count(Some(at(3)), Some(at(5))).await, 2);
    assert_eq!(count(Some(at(5)), Some(at(3))).await, 0);
    assert_eq!(count(Some(at(99)), None).await, 0);
}

#[tokio::test]
async fn shuffling_keeps_the_order_within_each_stream_and_leaves_nothing_out() {
    let history = History::counting(30).await;
    let commits = history.log.commits();
    for seed in 0..50 {
        let order = order::shuffled(&commits, 8, seed);
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..commits.len()).collect::<Vec<_>>(), "seed {seed}");
        let mut last: HashMap<&StreamId, usize> = HashMap::new();
        for index in order {
            let before = last.insert(&commits[index].header.stream, index);
            assert!(before.is_none_or(|before| before < index), "seed {seed}");
        }
    }
    assert_ne!(order::shuffled(&commits, 8, 1), order::shuffled(&commits, 8, 2));
}
