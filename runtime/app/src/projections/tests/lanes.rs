//! Lanes: parallelism inside a batch that nobody can tell from its rows.

use super::*;
use proptest::prelude::*;

fn lanes(lanes: usize) -> impl FnOnce(&mut ProjectionSpec) {
    move |spec| {
        spec.lanes = NonZeroUsize::new(lanes).unwrap();
        spec.batch.max_events = NonZeroUsize::new(40).unwrap();
    }
}

/// Events of one type in so many accounts.
fn in_accounts(bank: &Bank, accounts: usize, event_type: &str) {
    for account in 0..accounts {
        bank.event(&format!("a{account}"), event_type);
    }
}

#[tokio::test(start_paused = true)]
async fn lanes_run_side_by_side_and_their_rows_commit_together() {
    let bank = Bank::open_with(lanes(4));
    in_accounts(&bank, 40, "Doubled");
    let bank = bank.deployed().await;
    bank.caught_up().await;
    assert_eq!(bank.module.calls(), 4);
    assert_eq!(bank.models.commits(), 1);
    assert_eq!(bank.balance("a7"), Some(2));
    assert_eq!(bank.status().serving.counters.collisions, 0);
}

#[tokio::test(start_paused = true)]
async fn lanes_that_add_to_one_row_do_not_collide() {
    let bank = Bank::open_with(lanes(4));
    for account in 0..40 {
        let paid = json!({ "to": "shop", "by": 2 });
        bank.log.given(&format!("account-a{account}"), "Paid", &paid);
    }
    let bank = bank.deployed().await;
    bank.caught_up().await;
    assert_eq!((bank.module.calls(), bank.status().serving.counters.collisions), (4, 0));
    assert_eq!((bank.balance("shop"), bank.balance("a1")), (Some(80), Some(-2)));
}

#[tokio::test(start_paused = true)]
async fn a_batch_whose_lanes_met_runs_again_on_one_lane() {
    let bank = Bank::open_with(lanes(4));
    for account in 0..40 {
        let copied = json!({ "from": format!("a{}", (account + 1) % 40) });
        bank.log.given(&format!("account-a{account}"), "Copied", &copied);
    }
    let bank = bank.deployed().await;
    bank.caught_up().await;
    assert_eq!((bank.module.calls(), bank.status().serving.counters.collisions), (5, 1));
    assert_eq!(bank.balance("a39"), Some(-1), "as the events say in their order: a0 had copied nothing");
}

#[tokio::test(start_paused = true)]
async fn lanes_that_read_what_they_add_to_have_met() {
    let bank = Bank::open_with(lanes(4));
    for account in 0..40 {
        bank.log.given(&format!("account-a{account}"), "Settled", &json!({ "to": "shop", "by": 1 }));
    }
    let bank = bank.deployed().await;
    bank.caught_up().await;
    assert_eq!(bank.status().serving.counters.collisions, 1);
    assert_eq!(
        (bank.balance("shop"), bank.balance("a0"), bank.balance("a39")),
        (Some(40), Some(1), Some(40))
    );
}

#[tokio::test(start_paused = true)]
async fn a_projection_that_keeps_colliding_stays_on_one_lane_for_a_while() {
    let bank = Bank::open_with(lanes(4));
    for _ in 0..20 {
        for account in 0..40 {
            let copied = json!({ "from": format!("a{}", (account + 1) % 40) });
            bank.log.given(&format!("account-a{account}"), "Copied", &copied);
        }
    }
    let bank = bank.deployed().await;
    bank.caught_up().await;
    assert_eq!(bank.status().serving.counters.collisions, 8);
    assert_eq!(bank.module.calls(), 8 * 5 + 12);
}

#[tokio::test(start_paused = true)]
async fn a_failure_on_a_lane_is_dealt_with_as_on_one_lane() {
    let bank = Bank::open_with(lanes(4));
    in_accounts(&bank, 20, "Added");
    bank.event("a5", "Bad");
    in_accounts(&bank, 19, "Added");
    let bank = bank.deployed().await;
    bank.caught_up().await;
    assert_eq!(bank.parked_keys().await, [("account-a5".to_owned(), Position(21), 2)]);
    assert_eq!((bank.balance("a5"), bank.balance("a6")), (Some(1), Some(2)));
}

#[tokio::test(start_paused = true)]
async fn lanes_go_by_what_the_manifest_says() {
    let by_shop = |spec: &mut ProjectionSpec| {
        lanes(4)(spec);
        spec.lane_by = LaneBy::Field("shop".into());
    };
    let bank = Bank::open_with(by_shop);
    for sale in 0..40 {
        bank.log.given(&format!("account-a{sale}"), "Added", &json!({ "by": 1, "shop": "one" }));
    }
    let bank = bank.deployed().await;
    bank.caught_up().await;
    assert_eq!(bank.module.calls(), 1, "all of them are of one lane");
    bank.log.given("account-a1", "Bad", &json!({ "by": 1, "shop": 7 }));
    bank.caught_up().await;
    assert_eq!(bank.parked_keys().await[0].0, "7", "and what is parked is a key of lanes");
}

/// An event of some account: all that a bank can do, to a few accounts, so that lanes meet often.
fn any_event() -> impl Strategy<Value = (u8, &'static str, u8, i64)> {
    let types = prop::sample::select(vec!["Added", "Set", "Doubled", "Closed", "Paid", "Copied", "Settled"]);
    let amount = prop_oneof![4 => -5..50_i64, 1 => Just(i64::MAX), 1 => Just(i64::MIN + 1)];
    (0..6_u8, types, 0..6_u8, amount)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn rows_are_those_of_one_lane_whatever_the_lanes(
        events in prop::collection::vec(any_event(), 1..120),
        count in 2..6_usize,
        batch in 4..60_usize,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let rows = |count: usize| {
            let events = events.clone();
            runtime.block_on(async move {
                let bank = Bank::open_with(|spec| {
                    spec.lanes = NonZeroUsize::new(count).unwrap();
                    spec.batch.max_events = NonZeroUsize::new(batch).unwrap();
                });
                for (account, event_type, other, by) in events {
                    let data = json!({ "by": by, "to": by, "from": format!("a{other}") });
                    let data = if matches!(event_type, "Paid" | "Settled") { json!({ "by": by, "to": format!("a{other}") }) } else { data };
                    bank.log.given(&format!("account-a{account}"), event_type, &data);
                }
                let bank = bank.deployed().await;
                bank.caught_up().await;
                bank.models.rows(&bank.status().serving.version.unwrap())
            })
        };
        prop_assert_eq!(rows(count), rows(1));
    }
}
