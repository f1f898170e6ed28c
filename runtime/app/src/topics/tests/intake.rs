//! From topics to the log: once each, durable before the broker is told, and never past a record.

use crate::testing::{ManualClock, MemoryBus, MemoryLog, Step};
use crate::topics::{IntakeState, IntakeStatus, Intakes};
use ebb_domain::event::StoredEvent;
use ebb_domain::name::{AppName, TopicName};
use ebb_domain::port::bus::{Bus, BusErrorKind, Consumer, Done, Subscription};
use ebb_domain::port::log::GroupFailure;
use ebb_domain::text::Text;
use ebb_domain::topic::{Dedupe, Start, TopicSpec, UNREADABLE};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

const GROUP: &str = "shop";
const PARTITIONS: u32 = 3;

/// A shop that takes orders from a topic.
struct Shop {
    log: Arc<MemoryLog>,
    bus: MemoryBus,
    intakes: Intakes,
    topic: TopicName,
    spec: TopicSpec,
}

impl Shop {
    fn new() -> Self {
        let (log, bus) = (Arc::new(MemoryLog::default()), MemoryBus::default());
        let topic = bus.make("orders", PARTITIONS);
        let intakes = intakes(&log, &bus);
        Self { log, bus, intakes, topic, spec: TopicSpec::default() }
    }

    async fn open() -> Self {
        let shop = Self::new();
        shop.deploy().await;
        shop
    }

    async fn deploy(&self) {
        let topics = BTreeMap::from([(self.topic.clone(), self.spec.clone())]);
        self.intakes.deploy(BTreeMap::from([(GROUP.into(), topics)])).await;
    }

    async fn restart(&mut self) {
        self.intakes.close().await;
        self.intakes = intakes(&self.log, &self.bus);
        self.deploy().await;
    }

    fn orders(&self, partition: u32) -> u64 {
        self.bus.given(&self.topic, partition, "order-1", &[], "{}")
    }

    fn status(&self) -> IntakeStatus {
        self.intakes.status().remove(0)
    }

    /// Partition and offset of each record in the log.
    fn taken(&self) -> Vec<(u32, u64)> {
        self.log.events().iter().map(place).collect()
    }

    fn committed(&self, partition: u32) -> u64 {
        self.bus.committed(GROUP, &self.topic, partition).unwrap_or_default()
    }

    async fn until(&self, what: &str, so: impl Fn(&Self) -> bool) {
        for _ in 0..1_000_000 {
            if so(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("never happened: {what}; {:?}; {:?}", self.status(), self.taken());
    }

    /// Waits until the broker knows that everything was dealt with.
    async fn caught_up(&self) {
        self.until("all is consumed", |shop| {
            let counts = shop.bus.records("orders").into_iter().fold(BTreeMap::new(), |mut ends, record| {
                ends.insert(record.partition, record.offset + 1);
                ends
            });
            counts.iter().all(|(partition, end)| shop.committed(*partition) == *end)
        })
        .await;
    }

    async fn halted(&self, why: &str) {
        self.until(why, |shop| match shop.status().state {
            IntakeState::Halted { reason } => reason.contains(why),
            _ => false,
        })
        .await;
    }

    async fn retrying(&self) {
        self.until("it tries again", |shop| matches!(shop.status().state, IntakeState::Retrying { .. }))
            .await;
    }

    async fn stops_at_once(&self) {
        let before = Instant::now();
        self.intakes.close().await;
        assert_eq!(before.elapsed(), Duration::ZERO);
    }
}

fn intakes(log: &Arc<MemoryLog>, bus: &MemoryBus) -> Intakes {
    Intakes::new(AppName::new("shop").unwrap(), log.clone(), Some(Arc::new(bus.clone())))
}

fn place(event: &StoredEvent) -> (u32, u64) {
    let origin = event.commit.origin.as_ref().unwrap();
    (origin.partition, origin.offset)
}

#[tokio::test(start_paused = true)]
async fn each_record_is_an_event_of_its_partition_and_the_broker_is_told_behind_it() {
    let shop = Shop::open().await;
    for partition in [0, 2, 0, 0] {
        shop.orders(partition);
    }
    shop.caught_up().await;
    let mut taken = shop.taken();
    taken.sort_unstable();
    assert_eq!(taken, [(0, 0), (0, 1), (0, 2), (2, 0)]);
    let streams: BTreeSet<_> = shop.log.events().iter().map(|event| event.stream().to_string()).collect();
    assert_eq!(streams, BTreeSet::from(["topic-orders-0".to_owned(), "topic-orders-2".to_owned()]));
    assert_eq!((shop.status().records, shop.status().duplicates), (4, 0));
    assert_eq!(&*shop.log.events()[0].commit.actor, "kafka:orders");
}

#[tokio::test(start_paused = true)]
async fn the_broker_is_told_only_of_what_is_durable() {
    let shop = Shop::open().await;
    shop.log.hold();
    shop.orders(0);
    shop.until("it is appended", |shop| shop.log.staged() == 1).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!((shop.bus.calls(Step::Done), shop.committed(0)), (0, 0));
    shop.log.release();
    shop.caught_up().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_delivered_again_is_in_the_log_once() {
    let mut shop = Shop::open().await;
    for partition in [0, 0, 1] {
        shop.orders(partition);
    }
    shop.caught_up().await;
    for _ in 0..2 {
        for partition in 0..PARTITIONS {
            shop.bus.commit(GROUP, &shop.topic, partition, 0);
        }
        shop.restart().await;
        shop.caught_up().await;
        assert_eq!((shop.status().records, shop.status().duplicates, shop.taken().len()), (0, 3, 3));
    }
}

#[tokio::test(start_paused = true)]
async fn a_group_of_the_log_that_failed_is_appended_again() {
    let shop = Shop::open().await;
    shop.log.fail_next_group(GroupFailure::Rewound("disk full".into()));
    shop.orders(0);
    shop.retrying().await;
    assert_eq!((shop.taken().len(), shop.committed(0)), (0, 0));
    shop.caught_up().await;
    assert_eq!(shop.taken(), [(0, 0)]);
}

#[tokio::test(start_paused = true)]
async fn what_stands_behind_a_lost_record_in_its_partition_does_not_overtake_it() {
    let shop = Shop::new();
    shop.log.fail_next_group(GroupFailure::Rewound("disk full".into()));
    for partition in [0, 0, 0] {
        shop.orders(partition);
    }
    shop.deploy().await;
    shop.caught_up().await;
    assert_eq!(shop.taken(), [(0, 0), (0, 1), (0, 2)]);
}

#[tokio::test(start_paused = true)]
async fn two_groups_of_an_app_take_a_topic_into_the_log_once() {
    let shop = Shop::new();
    let topics = || BTreeMap::from([(shop.topic.clone(), shop.spec.clone())]);
    for partition in [0, 0, 1, 0, 1] {
        shop.orders(partition);
    }
    shop.log.hold();
    shop.intakes.deploy(BTreeMap::from([(GROUP.into(), topics()), ("others".into(), topics())])).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    shop.log.release();
    shop.caught_up().await;
    shop.until("both have", |shop| shop.bus.committed("others", &shop.topic, 0) == Some(3)).await;
    assert_eq!(shop.taken().len(), 5);
}

#[tokio::test(start_paused = true)]
async fn an_outcome_that_is_unknown_is_looked_for_and_not_guessed() {
    for was_written in [false, true] {
        let shop = Shop::open().await;
        shop.log.fail_next_group(GroupFailure::OutcomeUnknown("fsync".into()));
        shop.orders(0);
        shop.retrying().await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(shop.committed(0), 0);
        shop.log.reopen(was_written);
        shop.caught_up().await;
        assert_eq!(shop.taken(), [(0, 0)], "it was written: {was_written}");
        assert_eq!(shop.status().duplicates, u64::from(was_written));
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_is_waited_for() {
    let shop = Shop::open().await;
    shop.log.set_unavailable(Some("disk full"));
    shop.orders(0);
    shop.retrying().await;
    assert!(matches!(shop.status().state, IntakeState::Retrying { error } if error.contains("disk full")));
    shop.log.set_unavailable(None);
    shop.caught_up().await;
}

#[tokio::test(start_paused = true)]
async fn what_can_not_be_read_is_an_event_and_holds_nobody_up() {
    let shop = Shop::open().await;
    let structured = [("content-type", "application/cloudevents+json")];
    shop.bus.given(&shop.topic, 0, "a", &structured, "{broken");
    shop.orders(0);
    shop.caught_up().await;
    let types: Vec<_> = shop.log.events().iter().map(|event| event.event_type.to_string()).collect();
    assert_eq!(types, [UNREADABLE, "Record"]);
}

#[tokio::test(start_paused = true)]
async fn what_a_producer_sends_twice_under_one_id_is_one_record_if_the_manifest_says_so() {
    for (dedupe, wanted) in [(None, 3), (Some(Dedupe::EventId), 2)] {
        let mut shop = Shop::new();
        shop.spec.dedupe = dedupe;
        shop.deploy().await;
        for (partition, id) in [(0, "1"), (1, "1"), (0, "2")] {
            let headers =
                [("ce_specversion", "1.0"), ("ce_id", id), ("ce_source", "urn:s"), ("ce_type", "T")];
            shop.bus.given(&shop.topic, partition, "a", &headers, "{}");
        }
        shop.caught_up().await;
        assert_eq!(shop.taken().len(), wanted, "{dedupe:?}");
        // Delivered again, too.
        for partition in 0..2 {
            shop.bus.commit(GROUP, &shop.topic, partition, 0);
        }
        shop.restart().await;
        shop.caught_up().await;
        assert_eq!(shop.taken().len(), wanted, "{dedupe:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_topic_that_was_made_again_halts_its_group_until_somebody_accepts_it_and_each_time_anew() {
    let mut shop = Shop::open().await;
    shop.orders(1);
    shop.caught_up().await;
    for time in 1..=2 {
        shop.bus.delete(&shop.topic);
        shop.bus.make("orders", PARTITIONS);
        shop.bus.commit(GROUP, &shop.topic, 1, 0);
        shop.bus.fail(Step::Next, BusErrorKind::Unavailable);
        shop.halted("made again").await;
        shop.orders(1);
        shop.restart().await;
        shop.halted("made again").await;
        assert_eq!(shop.taken().len(), time, "nothing is taken meanwhile");
        assert!(!shop.intakes.accept(&TopicName::new("others").unwrap()), "nobody consumes that");
        assert!(shop.intakes.accept(&shop.topic));
        shop.caught_up().await;
        assert_eq!(shop.taken().len(), time + 1, "the offset is the same, the record another");
        shop.restart().await;
        shop.until("it stays accepted", |shop| shop.status().state == IntakeState::Consuming).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_topic_that_is_missing_is_consumed_soon_after_it_is_made() {
    let shop = Shop::new();
    shop.bus.delete(&shop.topic);
    shop.deploy().await;
    shop.halted("not there").await;
    shop.bus.make("orders", PARTITIONS);
    shop.orders(0);
    let before = Instant::now();
    shop.caught_up().await;
    assert!(before.elapsed() < Duration::from_secs(1), "{:?}", before.elapsed());
}

#[tokio::test(start_paused = true)]
async fn records_that_are_gone_halt_the_group_until_somebody_says_where_it_goes_on() {
    let mut shop = Shop::open().await;
    shop.orders(0);
    shop.caught_up().await;
    shop.intakes.close().await;
    for _ in 0..3 {
        shop.orders(0);
    }
    shop.bus.delete_records(&shop.topic, 0, 3);
    shop.restart().await;
    shop.halted("stands at 1").await;
    assert_eq!(shop.taken(), [(0, 0)], "never a jump");
    shop.bus.commit(GROUP, &shop.topic, 0, 3);
    shop.caught_up().await;
    assert_eq!(shop.taken(), [(0, 0), (0, 3)]);
}

#[tokio::test(start_paused = true)]
async fn records_that_go_while_it_waits_for_the_disk_halt_it_as_well() {
    let shop = Shop::open().await;
    shop.log.set_unavailable(Some("disk full"));
    shop.orders(0);
    shop.orders(0);
    shop.retrying().await;
    shop.bus.delete_records(&shop.topic, 0, 1);
    shop.log.set_unavailable(None);
    shop.halted("stands at 0").await;
    assert_eq!(shop.taken(), []);
}

#[tokio::test(start_paused = true)]
async fn what_the_brokers_refuse_halts_it_and_is_looked_at_again() {
    for step in [Step::Cluster, Step::Consume, Step::Next, Step::Done] {
        for kind in [BusErrorKind::Denied, BusErrorKind::Fenced, BusErrorKind::Refused] {
            let shop = Shop::new();
            shop.bus.fail(step, kind);
            shop.orders(0);
            shop.deploy().await;
            shop.halted(&format!("{kind:?}")).await;
            let before = Instant::now();
            shop.caught_up().await;
            assert!(before.elapsed().abs_diff(Duration::from_secs(15)) < Duration::from_millis(50));
            assert_eq!(shop.taken(), [(0, 0)], "{step:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_is_away_for_an_hour_is_caught_up_with() {
    let mut shop = Shop::open().await;
    shop.orders(0);
    shop.caught_up().await;
    shop.bus.set_away(true);
    // It waits where it is, and where it joins.
    tokio::time::sleep(Duration::from_secs(1800)).await;
    shop.restart().await;
    shop.retrying().await;
    tokio::time::sleep(Duration::from_secs(1800)).await;
    for partition in 0..PARTITIONS {
        shop.orders(partition);
    }
    shop.bus.set_away(false);
    shop.caught_up().await;
    assert_eq!(shop.taken().len(), 4);
}

#[tokio::test(start_paused = true)]
async fn it_stops_at_once_whatever_it_waits_for() {
    for step in [Step::Cluster, Step::Consume, Step::Next] {
        let shop = Shop::new();
        shop.bus.hold(step);
        shop.orders(0);
        shop.deploy().await;
        shop.bus.called(step, 1).await;
        shop.stops_at_once().await;
    }
    let appending = Shop::open().await;
    appending.log.hold();
    appending.orders(0);
    appending.until("it is appended", |shop| shop.log.staged() == 1).await;
    appending.stops_at_once().await;
    assert_eq!(appending.committed(0), 0);
    let halted = Shop::new();
    halted.bus.fail(Step::Consume, BusErrorKind::Denied);
    halted.deploy().await;
    halted.halted("Denied").await;
    halted.stops_at_once().await;
    let retrying = Shop::new();
    retrying.bus.set_away(true);
    retrying.deploy().await;
    retrying.retrying().await;
    retrying.stops_at_once().await;
}

#[tokio::test(start_paused = true)]
async fn a_node_without_brokers_says_what_to_set() {
    let shop = Shop::new();
    let shop = Shop { intakes: Intakes::new(AppName::new("shop").unwrap(), shop.log.clone(), None), ..shop };
    shop.deploy().await;
    shop.halted("`kafka.brokers`").await;
    shop.stops_at_once().await;
}

#[tokio::test(start_paused = true)]
async fn a_record_that_was_the_same_as_another_is_known_by_its_place_for_ever() {
    let clock = Arc::new(ManualClock::default());
    let mut shop = Shop { log: Arc::new(MemoryLog::new(clock.clone())), ..Shop::new() };
    shop.intakes = intakes(&shop.log, &shop.bus);
    shop.spec.dedupe = Some(Dedupe::EventId);
    shop.deploy().await;
    let event = [("ce_specversion", "1.0"), ("ce_id", "1"), ("ce_source", "/s"), ("ce_type", "Ordered")];
    for _ in 0..2 {
        shop.bus.given(&shop.topic, 0, "order-1", &event, "{}");
    }
    shop.caught_up().await;
    assert_eq!(shop.taken(), [(0, 0)]);
    // What makes it the same is forgotten by then.
    clock.advance(Duration::from_secs(3 * 24 * 3600));
    shop.bus.commit(GROUP, &shop.topic, 0, 0);
    shop.restart().await;
    shop.caught_up().await;
    assert_eq!((shop.taken(), shop.status().duplicates), (vec![(0, 0)], 2));
}

#[tokio::test(start_paused = true)]
async fn what_was_consumed_into_a_log_that_is_no_more_comes_again_unless_somebody_said_where_to_go_on() {
    let mut shop = Shop::open().await;
    shop.orders(0);
    shop.caught_up().await;
    // Another log takes what comes next, and is lost: an older copy is put in its place.
    let older = std::mem::take(&mut shop.log);
    shop.restart().await;
    shop.orders(0);
    shop.orders(0);
    shop.caught_up().await;
    shop.log = older;
    shop.restart().await;
    shop.until("they come again", |shop| shop.taken().len() == 3).await;
    assert_eq!(shop.taken(), [(0, 0), (0, 1), (0, 2)]);
    shop.caught_up().await;

    shop.bus.commit(GROUP, &shop.topic, 0, 5);
    for _ in 0..4 {
        shop.orders(0);
    }
    shop.restart().await;
    shop.caught_up().await;
    assert_eq!(shop.taken().last(), Some(&(0, 6)), "{:?}", shop.taken());
    assert_eq!(shop.taken().len(), 5, "3 and 4 are left out");
}

#[tokio::test(start_paused = true)]
async fn partitions_that_go_to_another_member_are_not_consumed_here_and_come_back_when_it_leaves() {
    let shop = Shop::open().await;
    shop.until("it consumes", |shop| shop.status().state == IntakeState::Consuming).await;
    let subscription = Subscription {
        group: GROUP.into(),
        member: "another".into(),
        topics: BTreeMap::from([(shop.topic.clone(), Start::Earliest)]),
        known: BTreeMap::new(),
        kept: Vec::new(),
    };
    let mut other = shop.bus.consume(subscription).await.unwrap();
    for partition in 0..PARTITIONS {
        shop.orders(partition);
    }
    let theirs = other.next(10, Duration::ZERO).await.unwrap();
    let theirs: Vec<_> = theirs.iter().map(|record| (record.partition, record.offset)).collect();
    shop.until("it has its own", |shop| shop.taken().len() + theirs.len() == PARTITIONS as usize).await;
    assert!(!theirs.is_empty());
    // The other has done one of its records, and leaves with the rest.
    for partition in 0..PARTITIONS {
        shop.orders(partition);
    }
    let (partition, offset) = theirs[0];
    other.done(&[Done { topic: shop.topic.clone(), partition, next: offset + 1 }]).unwrap();
    other.close().await;
    shop.caught_up().await;
    let mut taken = shop.taken();
    taken.sort_unstable();
    let mut wanted: Vec<_> = (0..PARTITIONS).flat_map(|partition| [(partition, 0), (partition, 1)]).collect();
    wanted.retain(|place| *place != theirs[0]);
    assert_eq!(taken, wanted, "each once, but what the other has done");
}

#[tokio::test(start_paused = true)]
async fn a_deployment_that_consumes_the_same_leaves_it_alone_and_one_that_does_not_leaves_the_group() {
    let mut shop = Shop::open().await;
    shop.orders(0);
    shop.caught_up().await;
    shop.deploy().await;
    assert_eq!((shop.bus.calls(Step::Consume), shop.status().records), (1, 1));
    assert!(shop.intakes.are_any());
    shop.restart().await;
    assert_eq!(shop.bus.calls(Step::Leave), 0, "it comes back");
    shop.until("it consumes", |shop| shop.status().state == IntakeState::Consuming).await;
    shop.intakes.deploy(BTreeMap::new()).await;
    assert_eq!(shop.bus.calls(Step::Leave), 1, "others get its partitions at once");
    assert!(shop.intakes.status().is_empty() && !shop.intakes.are_any());
}

#[tokio::test(start_paused = true)]
async fn a_group_that_begins_with_the_latest_begins_there_after_a_restart_as_well() {
    let mut shop = Shop::new();
    shop.spec.start = Start::Latest;
    shop.orders(0);
    shop.deploy().await;
    shop.until("it consumes", |shop| shop.status().state == IntakeState::Consuming).await;
    shop.intakes.close().await;
    shop.orders(0);
    shop.restart().await;
    shop.caught_up().await;
    assert_eq!(shop.taken(), [(0, 1)]);
}

#[tokio::test(start_paused = true)]
async fn how_much_is_left_is_told_while_nothing_is_taken_and_stands_for_a_while_when_nobody_answers() {
    let shop = Shop::open().await;
    shop.bus.hold(Step::Next);
    for partition in [0, 0, 1] {
        shop.orders(partition);
    }
    shop.until("it is told", |shop| shop.status().lag == Some(3)).await;
    shop.bus.set_away(true);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(shop.status().lag, Some(3));
    assert_eq!(shop.status().partitions.len(), PARTITIONS as usize);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(shop.status().lag, None, "it is no news any more");
    let says =
        matches!(shop.status().state, IntakeState::Retrying { error } if error.contains("have not answered"));
    assert!(says, "and nobody is told that it consumes");
    shop.bus.set_away(false);
    shop.bus.release(Step::Next);
    shop.until("nothing is left", |shop| shop.status().lag == Some(0)).await;
}

#[derive(Clone, Debug)]
enum Trouble {
    Comes(u32),
    Fails(Step),
    LogFails,
    Passes(u16),
    Restarts,
    DeliveredAgain(u32),
    AnotherJoins(bool),
}

fn trouble() -> impl Strategy<Value = Trouble> {
    let step = prop::sample::select(vec![Step::Cluster, Step::Consume, Step::Next, Step::Done]);
    prop_oneof![
        6 => (0..PARTITIONS).prop_map(Trouble::Comes),
        2 => step.prop_map(Trouble::Fails),
        1 => Just(Trouble::LogFails),
        3 => (0..2000u16).prop_map(Trouble::Passes),
        1 => Just(Trouble::Restarts),
        1 => (0..PARTITIONS).prop_map(Trouble::DeliveredAgain),
        1 => any::<bool>().prop_map(Trouble::AnotherJoins),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn whatever_fails_every_record_is_in_the_log_once_and_in_its_partitions_order(
        troubles in prop::collection::vec(trouble(), 1..60),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let mut shop = Shop::open().await;
            let mut another: Option<Box<dyn Consumer>> = None;
            for trouble in troubles {
                match trouble {
                    Trouble::Comes(partition) => drop(shop.orders(partition)),
                    Trouble::Fails(step) => shop.bus.fail(step, BusErrorKind::Unavailable),
                    Trouble::LogFails => shop.log.fail_next_group(GroupFailure::Rewound("disk full".into())),
                    Trouble::Passes(millis) => tokio::time::sleep(Duration::from_millis(millis.into())).await,
                    Trouble::Restarts => shop.restart().await,
                    Trouble::DeliveredAgain(partition) => shop.bus.commit(GROUP, &shop.topic, partition, 0),
                    // It takes partitions away, and does nothing with them.
                    Trouble::AnotherJoins(joins) => {
                        let topics = BTreeMap::from([(shop.topic.clone(), Start::Earliest)]);
                        let (group, member) = (Text::from(GROUP), "another".into());
                        let subscription =
                            Subscription { group, member, topics, known: BTreeMap::new(), kept: Vec::new() };
                        another = if joins { shop.bus.consume(subscription).await.ok() } else { None };
                    }
                }
            }
            drop(another);
            // What was to be delivered again is.
            shop.restart().await;
            shop.caught_up().await;
            let mut next = BTreeMap::<u32, u64>::new();
            for (partition, offset) in shop.taken() {
                let wanted = next.entry(partition).or_default();
                assert_eq!(offset, *wanted, "of partition {partition}");
                *wanted += 1;
            }
            assert_eq!(shop.taken().len(), shop.bus.records("orders").len());
        });
    }
}
