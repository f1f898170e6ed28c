//! The relay's promises, over a log and a broker in memory, in virtual time.

use super::*;
use crate::testing::{MemoryBus, MemoryLog, Step};
use ebb_domain::event::EventId;
use ebb_domain::topic::{Record, RelayMode};
use proptest::prelude::*;
use serde_json::json;
use std::collections::HashSet;

/// A shop whose orders are published; what happens to its carts is not.
struct Shop {
    log: Arc<MemoryLog>,
    bus: MemoryBus,
    relay: Relay,
    spec: RelaySpec,
}

fn app() -> AppName {
    AppName::new("shop").unwrap()
}

fn topics() -> BTreeMap<Text, TopicName> {
    BTreeMap::from([("order".into(), TopicName::new("shop.order").unwrap())])
}

impl Shop {
    fn new(mode: RelayMode) -> Self {
        let (log, bus) = (Arc::new(MemoryLog::default()), MemoryBus::default());
        let relay = relay(&log, &bus);
        Self { log, bus, relay, spec: RelaySpec { mode, ..RelaySpec::default() } }
    }

    async fn open() -> Self {
        let shop = Self::new(RelayMode::AtLeastOnce);
        shop.deploy(None).await;
        shop
    }

    async fn deploy(&self, rest: Option<Position>) {
        self.relay.deploy(Some(self.spec.clone()), topics(), rest).await;
    }

    /// The process ends, in order or without having told how far it has got, and comes back.
    async fn restart(&mut self, in_order: bool) {
        if !in_order {
            self.bus.fail(Step::Close, BusErrorKind::Unavailable);
        }
        self.relay.close().await;
        self.relay = relay(&self.log, &self.bus);
        self.deploy(None).await;
    }

    fn happens(&self, stream: &str) -> Position {
        self.log.given(stream, "Changed", &json!({}))
    }

    fn status(&self) -> RelayStatus {
        self.relay.status().unwrap()
    }

    /// What the broker has: stream and revision of each event.
    fn out(&self) -> Vec<(String, u64)> {
        self.bus.records("shop.order").iter().map(seen).collect()
    }

    /// Waits, in virtual time, until something is so.
    async fn until(&self, what: &str, so: impl Fn(&RelayStatus) -> bool) {
        for _ in 0..100_000 {
            if so(&self.status()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("never happened: {what}; {:?}", self.status());
    }

    async fn caught_up(&self) {
        let end = self.log.durable().borrow().position;
        self.until("all is published", |status| status.mark == Some(end)).await;
    }
}

fn relay(log: &Arc<MemoryLog>, bus: &MemoryBus) -> Relay {
    Relay::new(app(), log.clone(), Some(Arc::new(bus.clone())))
}

fn seen(record: &Record) -> (String, u64) {
    let revision = record.header("ce_sequence").unwrap().parse().unwrap();
    (record.header("ce_subject").unwrap().to_owned(), revision)
}

fn is_halted(status: &RelayStatus) -> bool {
    matches!(status.state, RelayState::Halted { .. })
}

fn is_retrying(status: &RelayStatus) -> bool {
    matches!(status.state, RelayState::Retrying { .. })
}

fn id(record: &Record) -> String {
    record.header("ce_id").unwrap().to_owned()
}

#[tokio::test(start_paused = true)]
async fn events_go_out_in_the_order_of_their_stream_and_only_those_of_relayed_aggregates() {
    let shop = Shop::open().await;
    for stream in ["order-1", "cart-1", "order-1", "order-1", "cart-2"] {
        shop.happens(stream);
    }
    shop.caught_up().await;
    assert_eq!(shop.out(), [0, 1, 2].map(|revision| ("order-1".to_owned(), revision)));
    assert_eq!((shop.status().events, shop.status().lag), (3, Some(0)));
    shop.relay.close().await;
    assert_eq!(shop.bus.mark(&app()).position, Position(5), "of the end of what was looked at");
}

#[tokio::test(start_paused = true)]
async fn what_is_only_staged_is_not_published() {
    let shop = Shop::open().await;
    shop.log.hold();
    shop.happens("order-1");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(shop.out(), []);
    shop.log.settle();
    shop.caught_up().await;
    assert_eq!(shop.out().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_mark_moves_only_when_the_broker_has_the_events() {
    let shop = Shop::open().await;
    shop.bus.hold(Step::Publish);
    shop.happens("order-1");
    shop.bus.called(Step::Publish, 1).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!((shop.status().mark, shop.status().lag), (Some(Position::START), Some(1)));
    assert_eq!(shop.status().state, RelayState::Publishing);
    shop.bus.release(Step::Publish);
    shop.caught_up().await;
    assert_eq!(shop.bus.mark(&app()), RelayMark::default(), "it is told behind them");
    tokio::time::sleep(IDLE - Duration::from_secs(1)).await;
    assert_eq!(shop.bus.calls(Step::Close), 0, "a slow broker is no idle app");
    shop.relay.close().await;
    assert_eq!(shop.bus.mark(&app()).position, Position(1));
}

#[tokio::test(start_paused = true)]
async fn what_broke_off_comes_again_from_the_mark_on_under_the_same_ids() {
    let shop = Shop::open().await;
    shop.bus.fail_having_taken(Step::Publish, 2, BusErrorKind::Unavailable);
    shop.log.hold();
    for _ in 0..4 {
        shop.happens("order-1");
    }
    shop.log.release();
    shop.caught_up().await;
    let revisions: Vec<_> = shop.out().into_iter().map(|(_, revision)| revision).collect();
    assert_eq!(revisions, [0, 1, 0, 1, 2, 3]);
    let ids: Vec<_> = shop.bus.records("shop.order").iter().map(id).collect();
    assert_eq!(ids[..2], ids[2..4]);
}

#[tokio::test(start_paused = true)]
async fn a_transaction_that_broke_off_was_never_there() {
    let shop = Shop::new(RelayMode::Transactional);
    shop.deploy(None).await;
    shop.bus.fail_having_taken(Step::Publish, 1, BusErrorKind::Unavailable);
    shop.happens("order-1");
    shop.happens("order-1");
    shop.caught_up().await;
    assert_eq!(shop.out(), [("order-1".to_owned(), 0), ("order-1".to_owned(), 1)]);
    assert_eq!(shop.bus.mark(&app()).position, Position(2), "with the events");
}

#[tokio::test(start_paused = true)]
async fn a_second_relay_of_the_same_app_fences_the_first_which_says_so() {
    let shop = Shop::new(RelayMode::Transactional);
    shop.deploy(None).await;
    shop.happens("order-1");
    shop.caught_up().await;
    let second = relay(&shop.log, &shop.bus);
    second.deploy(Some(shop.spec.clone()), topics(), None).await;
    shop.bus.called(Step::Relay, 2).await;
    // The second gets no further than that; the first tries, and is fenced.
    shop.bus.hold(Step::Publish);
    shop.happens("order-1");
    shop.bus.called(Step::Publish, 2).await;
    second.close().await;
    shop.bus.release(Step::Publish);
    shop.until("the first is told", is_halted).await;
    assert_eq!(shop.out().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_mark_ahead_of_the_log_halts_it_until_the_mark_is_gone() {
    let shop = Shop::new(RelayMode::AtLeastOnce);
    shop.happens("order-1");
    shop.bus.set_mark(&app(), RelayMark { position: Position(7), last: None });
    shop.deploy(None).await;
    let says = |status: &RelayStatus| match &status.state {
        RelayState::Halted { reason } => {
            reason.contains("up to position 7")
                && reason.contains("ends at 1")
                && reason.contains("`shop.relay`")
        }
        _ => false,
    };
    shop.until("it halts", says).await;
    assert_eq!(shop.out(), []);
    shop.bus.set_mark(&app(), RelayMark::default());
    shop.caught_up().await;
    assert_eq!(shop.out().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_log_that_has_another_event_where_one_was_published_publishes_nothing_and_takes_nothing_over() {
    let shop = Shop::open().await;
    for _ in 0..3 {
        shop.happens("order-1");
    }
    shop.caught_up().await;
    shop.relay.close().await;
    let mark = shop.bus.mark(&app());
    assert_eq!(mark.last.map(|last| last.position), Some(Position(3)));
    // This log was restored from before that, and has got longer since.
    let other = Published { position: Position(3), id: EventId(uuid::Uuid::from_u128(7)) };
    shop.bus.set_mark(&app(), RelayMark { last: Some(other), ..mark });
    for _ in 0..5 {
        shop.happens("order-1");
    }
    let taken_over = shop.bus.calls(Step::Relay);
    shop.deploy(None).await;
    let says = |status: &RelayStatus| match &status.state {
        RelayState::Halted { reason } => {
            reason.contains("that of position 3") && reason.contains("`shop.relay`")
        }
        _ => false,
    };
    shop.until("it halts", says).await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(says(&shop.status()));
    assert_eq!((shop.out().len(), shop.bus.calls(Step::Relay)), (3, taken_over));
}

#[tokio::test(start_paused = true)]
async fn a_log_that_grows_by_what_nobody_wants_needs_no_connection() {
    let shop = Shop::open().await;
    shop.happens("order-1");
    shop.caught_up().await;
    shop.bus.called(Step::Close, 1).await;
    for _ in 0..60 {
        shop.happens("cart-1");
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
    shop.caught_up().await;
    assert_eq!(shop.bus.calls(Step::Relay), 1);
    shop.happens("order-1");
    shop.caught_up().await;
    assert_eq!((shop.bus.calls(Step::Relay), shop.out().len()), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn it_is_tried_again_with_growing_pauses_and_from_the_shortest_once_something_was_published() {
    let shop = Shop::new(RelayMode::AtLeastOnce);
    for _ in 0..9 {
        shop.bus.fail(Step::Relay, BusErrorKind::Unavailable);
    }
    shop.happens("order-1");
    shop.deploy(None).await;
    let mut pauses = Vec::new();
    shop.bus.called(Step::Relay, 1).await;
    for call in 2..=10 {
        let before = Instant::now();
        shop.bus.called(Step::Relay, call).await;
        pauses.push(before.elapsed().as_millis());
    }
    let doubled = [200, 400, 800, 1600, 3200, 6400, 10_000, 10_000, 10_000];
    // Timers are of milliseconds.
    assert!(pauses.iter().zip(doubled).all(|(pause, wanted)| pause.abs_diff(wanted) <= 2), "{pauses:?}");
    shop.caught_up().await;
    shop.bus.fail(Step::Publish, BusErrorKind::Unavailable);
    let before = Instant::now();
    shop.happens("order-1");
    shop.bus.called(Step::Publish, 3).await;
    assert!(before.elapsed().as_millis().abs_diff(200) <= 2, "{:?}", before.elapsed());
}

#[tokio::test(start_paused = true)]
async fn what_does_not_pass_halts_it_and_is_looked_at_again() {
    let shop = Shop::new(RelayMode::AtLeastOnce);
    shop.bus.fail(Step::Relay, BusErrorKind::Denied);
    shop.happens("order-1");
    shop.deploy(None).await;
    shop.until("it halts", is_halted).await;
    let before = Instant::now();
    shop.caught_up().await;
    assert!(
        before.elapsed().abs_diff(Duration::from_secs(15)) < Duration::from_millis(50),
        "{:?}",
        before.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn it_stops_at_once_whatever_it_waits_for() {
    for step in [Step::Relay, Step::Publish] {
        let shop = Shop::new(RelayMode::AtLeastOnce);
        shop.bus.hold(step);
        shop.happens("order-1");
        shop.deploy(None).await;
        shop.bus.called(step, 1).await;
        stops_at_once(&shop).await;
    }
    let halted = Shop::new(RelayMode::AtLeastOnce);
    halted.bus.fail(Step::Relay, BusErrorKind::Denied);
    halted.deploy(None).await;
    halted.until("it halts", is_halted).await;
    stops_at_once(&halted).await;
    let retrying = Shop::new(RelayMode::AtLeastOnce);
    retrying.bus.set_away(true);
    retrying.deploy(None).await;
    retrying.until("it waits to try again", is_retrying).await;
    stops_at_once(&retrying).await;
    let idle = Shop::open().await;
    idle.caught_up().await;
    stops_at_once(&idle).await;
    // Without a connection, too.
    let long_idle = Shop::open().await;
    long_idle.caught_up().await;
    long_idle.bus.called(Step::Close, 1).await;
    stops_at_once(&long_idle).await;
}

async fn stops_at_once(shop: &Shop) {
    let before = Instant::now();
    shop.relay.close().await;
    assert_eq!(before.elapsed(), Duration::ZERO);
    assert_eq!(shop.relay.status(), None);
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_is_away_for_an_hour_is_caught_up_with_and_nothing_is_lost_or_reordered() {
    let shop = Shop::open().await;
    shop.happens("order-1");
    shop.caught_up().await;
    shop.bus.set_away(true);
    for number in 0..360 {
        shop.happens(&format!("order-{}", number % 7));
        tokio::time::sleep(Duration::from_secs(10)).await;
        let status = shop.status();
        assert!(status.lag.unwrap() >= number, "the lag is seen: {status:?}");
    }
    shop.until("it says so", is_retrying).await;
    shop.bus.set_away(false);
    shop.caught_up().await;
    let ids: HashSet<_> = shop.bus.records("shop.order").iter().map(id).collect();
    assert_eq!(ids.len(), shop.log.events().len());
    in_order_when_first_seen(&shop.bus.records("shop.order"));
}

#[tokio::test(start_paused = true)]
async fn a_connection_with_nothing_to_do_is_given_up_and_made_anew_when_there_is() {
    let shop = Shop::open().await;
    shop.happens("order-1");
    shop.caught_up().await;
    shop.bus.called(Step::Close, 1).await;
    tokio::time::sleep(IDLE * 10).await;
    assert_eq!(shop.bus.calls(Step::Relay), 1);
    shop.happens("order-1");
    shop.caught_up().await;
    assert_eq!((shop.bus.calls(Step::Relay), shop.out().len()), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn an_app_that_was_at_rest_asks_nobody_before_something_happens() {
    let shop = Shop::new(RelayMode::AtLeastOnce);
    let rest = shop.happens("order-1");
    shop.bus.set_mark(&app(), RelayMark { position: rest, last: None });
    shop.deploy(Some(rest)).await;
    assert!(shop.relay.is_done(rest));
    tokio::time::sleep(IDLE * 10).await;
    assert_eq!(shop.bus.calls(Step::Relay), 0);
    shop.happens("order-1");
    shop.caught_up().await;
    assert_eq!(shop.out(), [("order-1".to_owned(), 1)]);
}

#[tokio::test(start_paused = true)]
async fn a_log_that_can_not_be_read_for_now_is_read_again_and_nothing_comes_twice() {
    let shop = Shop::open().await;
    shop.happens("order-1");
    shop.caught_up().await;
    shop.log.fail_reads(3);
    shop.happens("order-1");
    shop.until("it says so", is_retrying).await;
    shop.caught_up().await;
    assert_eq!(shop.out().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_deployment_that_says_the_same_leaves_it_alone_and_another_goes_on_where_it_was() {
    let mut shop = Shop::open().await;
    shop.happens("order-1");
    shop.caught_up().await;
    shop.deploy(None).await;
    assert_eq!(shop.bus.calls(Step::Relay), 1);
    shop.spec.mode = RelayMode::Transactional;
    shop.deploy(None).await;
    shop.happens("order-1");
    shop.caught_up().await;
    assert_eq!((shop.bus.calls(Step::Relay), shop.out().len()), (2, 2));
    shop.relay.deploy(None, BTreeMap::new(), None).await;
    assert_eq!(shop.relay.status(), None);
    assert!(shop.relay.is_done(Position(99)), "what is not published is not waited for");
}

/// Of each stream, what is seen for the first time comes in order and without gaps; what comes again was there.
fn in_order_when_first_seen(records: &[Record]) {
    let (mut ids, mut next) = (HashSet::new(), BTreeMap::<String, u64>::new());
    for record in records.iter().filter(|record| ids.insert(id(record))) {
        let (stream, revision) = seen(record);
        let wanted = next.entry(stream.clone()).or_default();
        assert_eq!(revision, *wanted, "of {stream}");
        *wanted += 1;
    }
}

#[derive(Clone, Debug)]
enum Trouble {
    Happens(u8),
    Fails(Step, usize),
    Passes(u16),
    Restarts { in_order: bool },
}

fn trouble() -> impl Strategy<Value = Trouble> {
    prop_oneof![
        6 => (0..4u8).prop_map(Trouble::Happens),
        2 => (prop_oneof![Just(Step::Relay), Just(Step::Publish), Just(Step::Close)], 0..4usize)
            .prop_map(|(step, taken)| Trouble::Fails(step, taken)),
        3 => (0..2000u16).prop_map(Trouble::Passes),
        1 => any::<bool>().prop_map(|in_order| Trouble::Restarts { in_order }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn whatever_fails_every_event_comes_in_its_order_and_in_transactions_once(
        troubles in prop::collection::vec(trouble(), 1..60),
        transactional in any::<bool>(),
    ) {
        let mode = if transactional { RelayMode::Transactional } else { RelayMode::AtLeastOnce };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let mut shop = Shop::new(mode);
            shop.deploy(None).await;
            for trouble in troubles {
                match trouble {
                    Trouble::Happens(order) => drop(shop.happens(&format!("order-{order}"))),
                    Trouble::Fails(step, taken) => {
                        shop.bus.fail_having_taken(step, taken, BusErrorKind::Unavailable);
                    }
                    Trouble::Passes(millis) => tokio::time::sleep(Duration::from_millis(millis.into())).await,
                    Trouble::Restarts { in_order } => shop.restart(in_order).await,
                }
            }
            shop.caught_up().await;
            let records = shop.bus.records("shop.order");
            in_order_when_first_seen(&records);
            let ids: HashSet<_> = records.iter().map(id).collect();
            assert_eq!(ids.len(), shop.log.events().len(), "all of them");
            if transactional {
                assert_eq!(records.len(), ids.len(), "once");
            }
        });
    }
}
