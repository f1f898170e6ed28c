//! Records straight from topics: into rows once each, wherever it was interrupted, and from nowhere but where it was.

use super::*;
use crate::testing::{MemoryBus, Step};
use ebb_domain::name::TopicName;
use ebb_domain::port::bus::BusErrorKind;
use ebb_domain::topic::{Dedupe, Selector, Start, TopicSource, TopicSpec, Via};
use std::collections::BTreeMap;

const GROUP: &str = "bank.balances";

/// A bank whose payments are records of a topic with two partitions.
struct Bank {
    bus: MemoryBus,
    topic: TopicName,
    log: Arc<MemoryLog>,
    models: Arc<MemoryModels>,
    engine: Arc<ProjectionEngine>,
    broken: Arc<AtomicBool>,
    spec: ProjectionSpec,
    start: Start,
    dedupe: Option<Dedupe>,
    projections: Projections,
}

fn projections(
    bus: &MemoryBus,
    log: &Arc<MemoryLog>,
    models: &Arc<MemoryModels>,
    engine: &Arc<ProjectionEngine>,
) -> Projections {
    Projections::start(ProjectionDeps {
        bus: Some(Arc::new(bus.clone())),
        app: AppName::new("bank").unwrap(),
        own_app: std::sync::Weak::new(),
        log: log.clone(),
        engine: engine.clone(),
        stores: models.clone(),
        clock: Arc::new(ManualClock::default()),
    })
}

/// Adds what a record says to the account that its key names; breaks on some while it is told to.
fn module(broken: Arc<AtomicBool>) -> Arc<ScriptedProjection> {
    ScriptedProjection::new(move |event, rows| {
        let account = event.envelope().and_then(|envelope| envelope.key?.text()).unwrap();
        match &*event.event_type {
            "Bad" if broken.load(Ordering::SeqCst) => Err(Fault::Fails("no".into())),
            "Trap" if broken.load(Ordering::SeqCst) => {
                Err(Fault::Ends(CallError::Trapped("unreachable".into())))
            }
            _ => Ok(rows.add(
                "balances",
                &account,
                "balance",
                event.json().unwrap()["by"].as_i64().unwrap(),
            )?),
        }
    })
}

impl Bank {
    fn open() -> Self {
        let broken = Arc::new(AtomicBool::new(true));
        let (log, models, engine) = (
            Arc::new(MemoryLog::default()),
            Arc::<MemoryModels>::default(),
            Arc::<ProjectionEngine>::default(),
        );
        let bus = MemoryBus::default();
        let topic = bus.make("payments", 2);
        for name in ["bank", "changed"] {
            engine.provide(name, module(broken.clone()));
        }
        let source = Source::Topics(TopicSource {
            topics: BTreeSet::from([topic.clone()]),
            types: BTreeSet::new(),
            group: GROUP.into(),
            via: Via::Direct,
        });
        let spec = ProjectionSpec { source, lane_by: LaneBy::Record(Selector::Key), ..spec() };
        let projections = projections(&bus, &log, &models, &engine);
        Self {
            bus,
            topic,
            log,
            models,
            engine,
            broken,
            spec,
            start: Start::Earliest,
            dedupe: None,
            projections,
        }
    }

    async fn deployed(self) -> Self {
        self.deploy("bank").await;
        self
    }

    fn deployment(&self, module: &str) -> ProjectionDeployment {
        let module = ebb_domain::digest::Digest::of(module.as_bytes());
        let event_type = Selector::Header("kind".into());
        let spec = TopicSpec { start: self.start, event_type, dedupe: self.dedupe, ..TopicSpec::default() };
        let topics = BTreeMap::from([(self.topic.clone(), spec)]);
        ProjectionDeployment {
            spec: self.spec.clone(),
            module,
            models: vec![balances()],
            topics,
            effects: None,
        }
    }

    async fn deploy(&self, module: &str) {
        // As a node does that starts: until it can be.
        while self.projections.deploy(vec![self.deployment(module)]).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The process ends and comes back: only rows, modules and what the broker has are left.
    async fn restarted(mut self) -> Self {
        self.projections.shutdown().await;
        self.projections = projections(&self.bus, &self.log, &self.models, &self.engine);
        self
    }

    fn paid(&self, partition: u32, account: &str, by: i64) -> u64 {
        self.record(partition, account, "Paid", by)
    }

    fn record(&self, partition: u32, account: &str, kind: &str, by: i64) -> u64 {
        let value = json!({ "by": by }).to_string();
        self.bus.given(&self.topic, partition, account, &[("kind", kind)], value)
    }

    /// The same, as a CloudEvent.
    fn event(&self, partition: u32, account: &str, id: &str) {
        let headers = [
            ("ce_specversion", "1.0"),
            ("ce_id", id),
            ("ce_source", "urn:shop"),
            ("ce_type", "Paid"),
            ("content-type", "application/json"),
        ];
        self.bus.given(&self.topic, partition, account, &headers, "{\"by\":1}");
    }

    fn balance(&self, account: &str) -> Option<i64> {
        let reader = self.projections.model(&balances().name).unwrap();
        let (_, row) = reader.get_at(account).unwrap();
        match row?.get(&column("balance")) {
            Some(Value::Integer(number)) => Some(*number),
            other => panic!("a balance that is {other:?}"),
        }
    }

    fn status(&self) -> ProjectionStatus {
        self.projections.status().remove(0)
    }

    fn halted(&self) -> Option<String> {
        match self.status().serving.state {
            State::Halted { reason } => Some(reason),
            _ => None,
        }
    }

    /// Waits, in virtual time, until something is so.
    async fn until(&self, what: &str, so: impl Fn(&Self) -> bool) {
        for _ in 0..10_000 {
            if so(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("never happened: {what}; {:#?}", self.projections.status());
    }

    async fn has(&self, account: &str, balance: i64) {
        self.until(&format!("{account} has {balance}"), |bank| bank.balance(account) == Some(balance)).await;
    }

    /// Waits until the projection stands at the end of both partitions.
    async fn drained(&self) {
        let ends: BTreeMap<u32, u64> = self
            .bus
            .records(&self.topic)
            .iter()
            .map(|record| (record.partition, record.offset + 1))
            .collect();
        let stands = |bank: &Self| {
            let partitions = bank.status().serving.topics?.partitions?;
            let at = |partition| partitions.iter().find(|lag| lag.partition == partition)?.committed;
            Some(ends.iter().all(|(partition, end)| at(*partition) >= Some(*end)))
        };
        self.until("all is taken", |bank| stands(bank) == Some(true)).await;
    }

    async fn parked(&self) -> Vec<(String, u64)> {
        let parked = self.projections.parked(&name(), None, 100).await.unwrap();
        parked.into_iter().map(|parked| (parked.key.to_string(), parked.queued)).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn each_record_is_in_the_rows_once_however_often_it_restarts_and_none_in_the_log() {
    let mut bank = Bank::open();
    for round in 1..=5 {
        for count in 0..25 {
            bank.paid(count % 2, "ann", 1);
        }
        bank = bank.deployed().await;
        bank.has("ann", 25 * round).await;
        bank = bank.restarted().await.deployed().await;
        assert_eq!(bank.balance("ann"), Some(25 * round));
    }
    bank.drained().await;
    assert!(bank.log.events().is_empty());
    assert_eq!((bank.status().serving.lag, bank.bus.committed(GROUP, &bank.topic, 0)), (0, Some(65)));
}

#[tokio::test(start_paused = true)]
async fn its_positions_are_none_of_the_log() {
    let bank = Bank::open().deployed().await;
    bank.paid(0, "ann", 1);
    bank.has("ann", 1).await;
    let reader = bank.projections.model(&balances().name).unwrap();
    let fresh = reader.be_fresh(Position(1), Duration::ZERO, false).await;
    assert_eq!((fresh, reader.is_direct()), (Err(NotFresh::Direct { wanted: Position(1) }), true));
}

#[tokio::test(start_paused = true)]
async fn a_record_that_fails_is_parked_with_those_of_its_key_and_the_others_go_on() {
    let bank = Bank::open().deployed().await;
    for (account, kind) in
        [("ann", "Bad"), ("bob", "Paid"), ("ann", "Paid"), ("cid", "Trap"), ("bob", "Paid")]
    {
        bank.record(0, account, kind, 1);
    }
    bank.has("bob", 2).await;
    assert_eq!(bank.parked().await, [("ann".into(), 2), ("cid".into(), 1)]);
    // Whatever the topic remembers.
    bank.bus.delete_records(&bank.topic, 0, 5);
    let bank = bank.restarted().await.deployed().await;
    bank.paid(0, "ann", 10);
    bank.until("queued", |bank| bank.status().serving.mark == Position(6)).await;
    assert_eq!(
        (bank.parked().await, bank.balance("ann")),
        (vec![("ann".into(), 3), ("cid".into(), 1)], None)
    );
    let event = bank.projections.parked_event(&name(), &"ann".into()).await.unwrap();
    assert_eq!((&*event.event_type, event.commit.origin.as_ref().unwrap().offset), ("Bad", 0));
    bank.broken.store(false, Ordering::SeqCst);
    let retried = bank.projections.retry(&name(), &"ann".into()).await.unwrap();
    assert_eq!((retried.applied, bank.balance("ann")), (3, Some(12)));
    bank.projections.skip(&name(), &"cid".into(), true).await.unwrap();
    assert_eq!((bank.parked().await, bank.balance("cid")), (vec![], None));
}

#[tokio::test(start_paused = true)]
async fn what_was_tried_is_first_again_after_a_restart_and_its_tries_count_on() {
    let mut bank = Bank::open();
    bank.spec.retry.attempts = NonZeroU32::new(4).unwrap();
    bank.spec.retry.backoff = Duration::from_secs(3600);
    bank.spec.retry.max_backoff = Duration::from_secs(3600);
    let mut bank = bank.deployed().await;
    // Of the other partition, and of a parked key, before it; and others behind it.
    bank.paid(1, "bob", 1);
    bank.has("bob", 1).await;
    bank.record(1, "ann", "Bad", 1);
    for tries in 1..=3 {
        let tried = |bank: &Bank| matches!(bank.status().serving.state, State::Retrying { attempts, .. } if attempts == tries);
        bank.until("tried", tried).await;
        bank.paid(0, "bob", 10);
        bank = bank.restarted().await.deployed().await;
    }
    bank.has("bob", 31).await;
    assert_eq!(bank.parked().await, [("ann".into(), 1)]);
    let parked = bank.projections.parked(&name(), None, 1).await.unwrap().remove(0);
    assert_eq!((parked.attempts, parked.position), (4, Position(2)));
    bank.drained().await;
}

#[tokio::test(start_paused = true)]
async fn what_stood_before_a_record_that_is_tried_is_dealt_with_by_then() {
    let mut bank = Bank::open();
    bank.spec.retry.attempts = NonZeroU32::new(2).unwrap();
    let mut bank = bank.deployed().await;
    bank.record(0, "zed", "Bad", 1);
    bank.until("parked", |bank| bank.status().serving.parked == 1).await;
    bank.spec.retry.backoff = Duration::from_secs(3600);
    bank.spec.retry.max_backoff = Duration::from_secs(3600);
    bank = bank.restarted().await.deployed().await;
    bank.bus.called(Step::Assign, 2).await;
    // One that only queues, of the other partition, and the one that is tried, at once.
    bank.paid(0, "zed", 1);
    bank.record(1, "ann", "Bad", 1);
    let tried = |bank: &Bank| matches!(bank.status().serving.state, State::Retrying { attempts: 1, .. });
    bank.until("tried", tried).await;
    let bank = bank.restarted().await.deployed().await;
    bank.until("parked", |bank| bank.status().serving.parked == 2).await;
    assert_eq!(bank.parked().await, [("ann".into(), 1), ("zed".into(), 2)]);
    assert_eq!(bank.status().serving.mark, Position(3));
}

#[tokio::test(start_paused = true)]
async fn a_record_that_nobody_can_read_is_parked_alone() {
    let bank = Bank::open().deployed().await;
    let kind = [("content-type", "application/cloudevents+json")];
    bank.bus.given(&bank.topic, 0, "ann", &kind, "{");
    bank.paid(0, "ann", 1);
    bank.has("ann", 1).await;
    let parked = bank.projections.parked(&name(), None, 10).await.unwrap();
    assert_eq!(parked.len(), 1);
    assert!(parked[0].reason.contains("the record can't be read"), "{}", parked[0].reason);
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_topic_is_where_it_was_at_first_whenever_it_restarts() {
    let mut bank = Bank::open();
    bank.start = Start::Latest;
    bank.paid(0, "ann", 1);
    let bank = bank.deployed().await;
    bank.bus.called(Step::Assign, 1).await;
    let bank = bank.restarted().await;
    bank.paid(0, "ann", 10);
    let bank = bank.deployed().await;
    bank.has("ann", 10).await;
    // And for a version that is built anew, or whose rows were lost.
    bank.deploy("changed").await;
    bank.until("swapped", |bank| bank.status().building.is_none()).await;
    bank.paid(1, "ann", 100);
    bank.has("ann", 110).await;
    bank.models.damage();
    let reader = bank.projections.model(&balances().name).unwrap();
    assert!(reader.get_at("ann").is_err());
    let made = || reader.get_at("ann").is_ok_and(|(_, row)| row.is_some());
    bank.until("made anew", |_| made()).await;
    bank.has("ann", 110).await;
}

#[tokio::test(start_paused = true)]
async fn what_a_topic_has_forgotten_halts_it_until_somebody_accepts_that() {
    let bank = Bank::open().deployed().await;
    bank.paid(0, "ann", 1);
    bank.has("ann", 1).await;
    let bank = bank.restarted().await;
    for _ in 0..3 {
        bank.paid(0, "ann", 10);
    }
    bank.bus.delete_records(&bank.topic, 0, 3);
    let bank = bank.deployed().await;
    bank.until("halted", |bank| bank.halted().is_some()).await;
    assert!(bank.halted().unwrap().contains("ebb topics accept"), "{:?}", bank.halted());
    assert_eq!(bank.balance("ann"), Some(1), "it never jumps");
    assert!(bank.projections.accept(&bank.topic));
    bank.has("ann", 11).await;
    bank.until("live", |bank| bank.status().serving.state == State::Live).await;
}

#[tokio::test(start_paused = true)]
async fn a_topic_that_is_made_again_halts_it_until_somebody_accepts_that() {
    let bank = Bank::open().deployed().await;
    bank.paid(0, "ann", 1);
    bank.paid(1, "ann", 1);
    bank.has("ann", 2).await;
    let bank = bank.restarted().await;
    bank.bus.delete(&bank.topic);
    bank.bus.make("payments", 2);
    bank.paid(0, "ann", 10);
    let bank = bank.deployed().await;
    bank.until("halted", |bank| bank.halted().is_some()).await;
    assert!(bank.projections.accept(&bank.topic));
    bank.has("ann", 12).await;
    let bank = bank.restarted().await.deployed().await;
    bank.paid(1, "ann", 10);
    bank.has("ann", 22).await;
    assert_eq!(bank.status().serving.mark, Position(4), "and it counts on");
    let rebuilt = bank.projections.rebuild(&name()).await;
    assert!(matches!(rebuilt, Err(ProjectionError::Forgotten { .. })), "{rebuilt:?}");
}

#[tokio::test(start_paused = true)]
async fn a_partition_that_is_added_is_taken_from_its_first_record() {
    let mut bank = Bank::open();
    bank.start = Start::Latest;
    let bank = bank.deployed().await;
    bank.bus.called(Step::Assign, 1).await;
    bank.bus.grow(&bank.topic);
    bank.paid(2, "ann", 7);
    bank.has("ann", 7).await;
    let bank = bank.restarted().await.deployed().await;
    bank.paid(2, "ann", 7);
    bank.has("ann", 14).await;
}

#[tokio::test(start_paused = true)]
async fn a_version_is_built_from_the_first_record_on_while_the_topic_has_it() {
    let bank = Bank::open().deployed().await;
    for partition in [0, 1, 0, 1] {
        bank.paid(partition, "ann", 1);
    }
    bank.has("ann", 4).await;
    let before = bank.status().serving.version;
    bank.projections.rebuild(&name()).await.unwrap();
    bank.until("swapped", |bank| bank.status().serving.version != before).await;
    assert_eq!(bank.balance("ann"), Some(4));
    bank.projections.check(&[bank.deployment("changed")]).await.unwrap();
    bank.bus.delete_records(&bank.topic, 1, 1);
    let checked = bank.projections.check(&[bank.deployment("changed")]).await;
    assert!(matches!(checked, Err(ProjectionError::Forgotten { .. })), "{checked:?}");
    bank.projections.check(&[bank.deployment("bank")]).await.unwrap();
    let rebuilt = bank.projections.rebuild(&name()).await;
    assert!(matches!(rebuilt, Err(ProjectionError::Forgotten { .. })), "{rebuilt:?}");
    // What was recorded before the topic forgot can't be built, and what serves goes on.
    bank.deploy("changed").await;
    let halted =
        |bank: &Bank| matches!(bank.status().building.map(|one| one.state), Some(State::Halted { .. }));
    bank.until("halted", halted).await;
    bank.paid(1, "ann", 1);
    bank.has("ann", 5).await;
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_is_away_is_waited_for_and_what_is_parked_can_be_dealt_with_meanwhile() {
    let bank = Bank::open().deployed().await;
    bank.record(0, "ann", "Bad", 1);
    bank.paid(0, "bob", 1);
    bank.has("bob", 1).await;
    bank.bus.fail(Step::Next, BusErrorKind::Unavailable);
    bank.bus.set_away(true);
    bank.paid(0, "bob", 1);
    let retrying =
        |bank: &Bank| matches!(bank.status().serving.state, State::Retrying { position: None, .. });
    bank.broken.store(false, Ordering::SeqCst);
    assert_eq!(bank.projections.retry(&name(), &"ann".into()).await.unwrap().applied, 1);
    bank.bus.set_away(false);
    bank.has("bob", 2).await;
    bank.bus.fail(Step::Places, BusErrorKind::Denied);
    let bank = bank.restarted().await.deployed().await;
    bank.until("halted", |bank| bank.halted().is_some()).await;
    bank.until("well", |bank| bank.status().serving.state == State::Live).await;
    assert!(!retrying(&bank));
}

#[tokio::test(start_paused = true)]
async fn records_of_types_that_nobody_wants_are_passed_and_not_kept() {
    let mut bank = Bank::open();
    let Source::Topics(source) = &mut bank.spec.source else { panic!("topics") };
    source.types = BTreeSet::from([ebb_domain::name::EventType::new("Paid").unwrap()]);
    let bank = bank.deployed().await;
    bank.paid(0, "ann", 1);
    bank.has("ann", 1).await;
    let commits = bank.models.commits();
    for _ in 0..60 {
        let large = json!({ "by": 1, "more": "x".repeat(400 << 10) }).to_string();
        bank.bus.given(&bank.topic, 1, "ann", &[("kind", "Other")], large);
    }
    bank.drained().await;
    assert_eq!((bank.status().serving.mark, bank.balance("ann")), (Position(61), Some(1)));
    let early = bank.models.commits() - commits;
    assert!((1..5).contains(&early), "what is held is committed when it is much: {early} commits");
    // What can't be read is everybody's.
    bank.bus.given(&bank.topic, 1, "ann", &[("content-type", "application/cloudevents+json")], "{");
    bank.until("parked", |bank| bank.status().serving.parked == 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_record_that_is_sent_twice_counts_once_in_its_partition_and_in_rows_that_are_made_anew() {
    let mut bank = Bank::open();
    bank.dedupe = Some(Dedupe::EventId);
    let bank = bank.deployed().await;
    let send = |bank: &Bank, partition, id: &str| bank.event(partition, "ann", id);
    // In one batch, in another, and behind a restart.
    for id in ["1", "1", "2"] {
        send(&bank, 0, id);
    }
    bank.has("ann", 2).await;
    send(&bank, 0, "1");
    send(&bank, 1, "1");
    bank.has("ann", 3).await;
    let bank = bank.restarted().await.deployed().await;
    send(&bank, 0, "2");
    send(&bank, 0, "3");
    bank.has("ann", 4).await;
    assert_eq!(bank.status().serving.counters.duplicates, 1);
    bank.drained().await;
    let before = bank.status().serving.version;
    bank.projections.rebuild(&name()).await.unwrap();
    bank.until("swapped", |bank| bank.status().serving.version != before).await;
    assert_eq!((bank.balance("ann"), bank.status().serving.counters.duplicates), (Some(4), 3));
}

#[tokio::test(start_paused = true)]
async fn the_broker_is_told_again_where_it_is_when_it_starts() {
    let bank = Bank::open().deployed().await;
    bank.paid(0, "ann", 1);
    bank.has("ann", 1).await;
    let bank = bank.restarted().await;
    bank.bus.commit(GROUP, &bank.topic, 0, 0);
    let bank = bank.deployed().await;
    bank.until("told", |bank| bank.bus.committed(GROUP, &bank.topic, 0) == Some(1)).await;
    assert_eq!(bank.balance("ann"), Some(1), "what Kafka says of the group is for others");
}

#[tokio::test(start_paused = true)]
async fn a_projection_goes_over_to_the_log_and_back_when_the_other_way_has_caught_up() {
    let mut bank = Bank::open().deployed().await;
    bank.paid(0, "ann", 1);
    bank.has("ann", 1).await;
    let direct = bank.spec.clone();
    let source = Source::Log { aggregates: BTreeSet::new(), types: BTreeSet::new() };
    bank.spec = ProjectionSpec { source, lane_by: LaneBy::Stream, ..direct.clone() };
    bank.engine.provide("by-log", bank_module(bank.broken.clone()));
    let moved = bank.log.given("account-bob", "Added", &json!({ "by": 5 }));
    bank.deploy("by-log").await;
    bank.until("swapped", |bank| bank.status().building.is_none()).await;
    assert_eq!((bank.balance("ann"), bank.balance("bob")), (None, Some(5)));
    let reader = bank.projections.model(&balances().name).unwrap();
    assert_eq!(reader.be_fresh(moved, Duration::ZERO, false).await, Ok(()));
    bank.spec = direct;
    bank.paid(0, "ann", 1);
    bank.deploy("bank").await;
    bank.until("swapped", |bank| bank.status().building.is_none()).await;
    assert_eq!((bank.balance("ann"), bank.balance("bob")), (Some(2), None));
}

#[tokio::test(start_paused = true)]
async fn records_that_are_read_otherwise_are_another_version() {
    let bank = Bank::open();
    let of = |dedupe, data: Option<&str>, start| {
        let mut deployment = bank.deployment("bank");
        let spec = deployment.topics.get_mut(&bank.topic).unwrap();
        (spec.dedupe, spec.data, spec.start) = (dedupe, data.map(str::to_owned), start);
        version::declared(&deployment)
    };
    let plain = of(None, None, Start::Earliest);
    assert_eq!(plain, of(None, None, Start::Latest), "where it began is where it began");
    assert_ne!(plain, of(None, Some("data"), Start::Earliest));
    assert_ne!(plain, of(Some(Dedupe::EventId), None, Start::Earliest));
}

/// Troubles at random: commits that fail, brokers that break off, ends of the process, damaged files, poison, doubles; in the end
/// each record is in the rows once, or parked.
#[tokio::test(start_paused = true)]
async fn whatever_happens_each_record_is_in_the_rows_once() {
    for seed in 0..40_u64 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut dice = move |sides: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % sides
        };
        let mut bank = Bank::open();
        bank.dedupe = Some(Dedupe::EventId);
        bank.spec.retry.backoff = Duration::from_millis(10);
        bank.spec.batch.max_events = NonZeroUsize::new(1 + dice(9) as usize).unwrap();
        bank.spec.lanes = NonZeroUsize::new(1 + dice(3) as usize).unwrap();
        let mut bank = bank.deployed().await;
        let mut expected: BTreeMap<String, i64> = BTreeMap::new();
        let (mut module, mut sent) = (0, BTreeSet::new());
        for _ in 0..40 {
            for _ in 0..dice(12) {
                let key = dice(5);
                let (account, kind) =
                    (format!("a{key}"), ["Paid", "Paid", "Paid", "Paid", "Bad", "Trap"][dice(6) as usize]);
                bank.record((key % 2) as u32, &account, kind, 1);
                *expected.entry(account).or_default() += 1;
            }
            for _ in 0..dice(4) {
                // A producer that sends some of them twice.
                let (key, id) = (dice(5), dice(60).to_string());
                let account = format!("a{key}");
                bank.event((key % 2) as u32, &account, &format!("{account}-{id}"));
                if sent.insert((key, id)) {
                    *expected.entry(account).or_default() += 1;
                }
            }
            match dice(10) {
                0 => bank = bank.restarted().await.deployed().await,
                1 => bank.models.fail_commits(1),
                2 => bank.models.fail_reads(1),
                3 => bank.bus.fail(Step::Next, BusErrorKind::Unavailable),
                4 => bank.bus.fail(Step::Places, BusErrorKind::Unavailable),
                5 if dice(4) == 0 => bank.models.damage(),
                6 if dice(3) == 0 => {
                    module ^= 1;
                    bank.deploy(["bank", "changed"][module]).await;
                }
                7 => {
                    let key = format!("a{}", dice(5));
                    let _ = bank.projections.retry(&name(), &key.as_str().into()).await;
                }
                8 => {
                    // The power goes, and with it what was committed last.
                    bank = bank.restarted().await;
                    bank.models.cut_power(|commits| dice(commits as u64 + 1) as usize);
                    bank = bank.deployed().await;
                    module = 0;
                }
                _ => {}
            }
            if dice(2) == 0 {
                tokio::time::sleep(Duration::from_millis(dice(200))).await;
            }
        }
        bank.models.fail_commits(0);
        bank.models.fail_reads(0);
        bank.until("built", |bank| bank.status().building.is_none()).await;
        bank.drained().await;
        bank.broken.store(false, Ordering::SeqCst);
        bank.until("readable", |bank| bank.projections.model(&balances().name).unwrap().get_at("a0").is_ok())
            .await;
        bank.drained().await;
        for (key, _) in bank.parked().await {
            let retried = bank.projections.retry(&name(), &key.as_str().into()).await.unwrap();
            assert_eq!(retried.failed, None, "seed {seed}");
        }
        for (account, balance) in expected {
            assert_eq!(bank.balance(&account), Some(balance), "{account}, seed {seed}");
        }
        bank.projections.shutdown().await;
    }
}
