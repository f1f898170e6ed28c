//! What becomes of events that fail, and of failures that are not theirs.

use super::*;
use proptest::prelude::*;

#[tokio::test(start_paused = true)]
async fn what_came_before_a_failing_event_is_kept_and_its_key_is_parked() {
    let bank = Bank::open();
    bank.add("ann", 5);
    bank.add("bob", 7);
    let bad = bank.event("ann", "Bad");
    bank.add("bob", 1);
    let queued = bank.add("ann", 100);
    let bank = bank.deployed().await;
    bank.caught_up().await;
    assert_eq!(bank.balance("ann"), Some(5), "nothing of the failing event, nor of what came behind it");
    assert_eq!(bank.balance("bob"), Some(8), "other keys go on");
    let parked = bank.projections.parked(&name(), None, 10).await.unwrap().remove(0);
    assert_eq!((&*parked.key, parked.position, parked.queued), ("account-ann", bad, 2));
    assert_eq!((parked.attempts, &*parked.reason), (3, "no 3"));
    assert_eq!(bank.reader().first_parked(), Some(bad));
    assert_eq!(bank.reader().parked_count(), 1);
    assert!(queued > bad);
}

#[tokio::test(start_paused = true)]
async fn a_trap_is_bisected_down_to_its_event() {
    let bank = Bank::open();
    for account in ["a", "b", "c", "d", "e", "f"] {
        bank.add(account, 1);
    }
    let trap = bank.event("g", "Trap");
    for account in ["a", "b", "c"] {
        bank.add(account, 1);
    }
    let bank = bank.deployed().await;
    bank.caught_up().await;
    assert_eq!(bank.parked_keys().await, [("account-g".to_owned(), trap, 1)]);
    assert_eq!((bank.balance("a"), bank.balance("d"), bank.balance("g")), (Some(2), Some(1), None));
}

#[tokio::test(start_paused = true)]
async fn an_event_is_tried_with_growing_pauses_and_goes_on_once_it_works() {
    let bank = Bank::open().deployed().await;
    bank.caught_up().await;
    let began = tokio::time::Instant::now();
    bank.event("ann", "Bad");
    bank.until("two tries", |bank| matches!(bank.state(), State::Retrying { attempts: 2, .. })).await;
    assert!(began.elapsed() >= Duration::from_millis(50), "after the first pause of 50 to 100 ms");
    bank.fix();
    bank.caught_up().await;
    assert!(began.elapsed() >= Duration::from_millis(150), "after the second of 100 to 200 ms");
    assert_eq!((bank.balance("ann"), bank.parked_keys().await), (Some(1), vec![]));
    bank.until("live again", |bank| bank.state() == State::Live).await;
}

#[tokio::test(start_paused = true)]
async fn attempts_survive_a_restart() {
    let bank = Bank::open().deployed().await;
    bank.event("ann", "Bad");
    bank.until("two tries", |bank| matches!(bank.state(), State::Retrying { attempts: 2, .. })).await;
    let bank = bank.restarted().await.deployed().await;
    let before = bank.module.calls();
    bank.caught_up().await;
    assert_eq!(bank.module.calls() - before, 1, "the third try is the last");
    assert_eq!(bank.parked_keys().await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn parked_keys_and_their_queues_survive_a_restart() {
    let bank = Bank::open().deployed().await;
    let bad = bank.event("ann", "Bad");
    bank.caught_up().await;
    let bank = bank.restarted().await.deployed().await;
    bank.add("ann", 1);
    bank.add("bob", 1);
    bank.caught_up().await;
    assert_eq!(bank.parked_keys().await, [("account-ann".to_owned(), bad, 2)]);
    assert_eq!(bank.balance("bob"), Some(1));
}

#[tokio::test(start_paused = true)]
async fn what_fails_on_our_side_is_tried_for_ever_and_seen() {
    let bank = Bank::open().deployed().await;
    bank.event("ann", "Crowded");
    bank.add("bob", 1);
    bank.until("many tries", |bank| {
        matches!(bank.state(), State::Retrying { attempts: 6, position: None, .. })
    })
    .await;
    assert!(bank.status().needs_attention());
    assert_eq!(
        (bank.parked_keys().await, bank.balance("bob")),
        (vec![], None),
        "nothing is parked, nothing skipped"
    );
    bank.fix();
    bank.caught_up().await;
    assert_eq!((bank.balance("ann"), bank.balance("bob")), (Some(1), Some(1)));
}

#[tokio::test(start_paused = true)]
async fn a_panic_on_our_side_is_a_failure_on_our_side() {
    let bank = Bank::open().deployed().await;
    bank.event("ann", "Panics");
    bank.until("seen", |bank| matches!(bank.state(), State::Retrying { position: None, .. })).await;
    assert_eq!(bank.status().serving.last_error.as_deref(), Some("the engine panicked"));
    bank.fix();
    bank.caught_up().await;
    assert_eq!(bank.balance("ann"), Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_costs_time_and_nothing_else() {
    let bank = Bank::open().deployed().await;
    bank.caught_up().await;
    bank.models.fail_commits(3);
    bank.add("ann", 1);
    bank.caught_up().await;
    bank.models.fail_reads(3);
    bank.event("ann", "Doubled");
    bank.log.fail_reads(2);
    bank.until("doubled", |bank| bank.reader().get_at("ann").is_ok_and(|(at, _)| at == Position(2))).await;
    assert_eq!((bank.balance("ann"), bank.parked_keys().await), (Some(2), vec![]));
}

#[tokio::test(start_paused = true)]
async fn a_retry_applies_the_queue_in_order() {
    let bank = Bank::open().deployed().await;
    bank.event("ann", "Bad");
    bank.event("ann", "Doubled");
    bank.add("ann", 3);
    bank.caught_up().await;
    bank.fix();
    let retried = bank.projections.retry(&name(), &"account-ann".into()).await.unwrap();
    assert_eq!(retried, Retried { applied: 3, remaining: 0, failed: None });
    assert_eq!((bank.balance("ann"), bank.reader().first_parked()), (Some(5), None));
    bank.add("ann", 1);
    bank.caught_up().await;
    assert_eq!(bank.balance("ann"), Some(6), "and later events of the key are applied as they come");
}

#[tokio::test(start_paused = true)]
async fn a_retry_stops_at_the_next_failure() {
    let bank = Bank::open().deployed().await;
    bank.event("ann", "Bad");
    bank.add("ann", 3);
    let second = bank.event("ann", "Bad");
    bank.caught_up().await;
    let failed = bank.projections.retry(&name(), &"account-ann".into()).await.unwrap();
    assert_eq!(failed, Retried { applied: 0, remaining: 3, failed: Some("no 1".into()) });
    let parked = bank.projections.parked(&name(), None, 10).await.unwrap().remove(0);
    assert_eq!(parked.attempts, 4);
    let skipped = bank.projections.skip(&name(), &"account-ann".into(), false).await.unwrap();
    assert_eq!(skipped, Skipped { skipped: 1, remaining: 2 });
    let retried = bank.projections.retry(&name(), &"account-ann".into()).await.unwrap();
    assert_eq!(retried, Retried { applied: 1, remaining: 1, failed: Some("no 3".into()) });
    assert_eq!(bank.parked_keys().await, [("account-ann".to_owned(), second, 1)]);
    assert_eq!(bank.balance("ann"), Some(3));
}

#[tokio::test(start_paused = true)]
async fn a_whole_key_is_skipped_and_its_later_events_are_applied_again() {
    let bank = Bank::open().deployed().await;
    bank.event("ann", "Bad");
    bank.add("ann", 3);
    bank.caught_up().await;
    let skipped = bank.projections.skip(&name(), &"account-ann".into(), true).await.unwrap();
    assert_eq!(skipped, Skipped { skipped: 2, remaining: 0 });
    bank.add("ann", 1);
    bank.caught_up().await;
    assert_eq!(bank.balance("ann"), Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_command_names_what_it_does_not_find() {
    let bank = Bank::open().deployed().await;
    let ann = Text::from("account-ann");
    let missing = bank.projections.retry(&name(), &ann).await.unwrap_err();
    assert_eq!(missing.to_string(), "projection `balances` has nothing parked under the key `account-ann`");
    assert_eq!(bank.projections.skip(&name(), &ann, true).await.unwrap_err(), missing);
    let other = ProjectionName::new("other").unwrap();
    assert_eq!(bank.projections.retry(&other, &ann).await, Err(ProjectionError::Unknown(other)));
}

#[tokio::test(start_paused = true)]
async fn a_projection_halts_past_its_bound_of_parked_keys_until_someone_helps() {
    let bank = Bank::open_with(|spec| spec.max_parked = 2).deployed().await;
    for account in ["ann", "bob", "cid"] {
        bank.event(account, "Bad");
    }
    bank.add("dan", 1);
    bank.until("halted", |bank| matches!(bank.state(), State::Halted { .. })).await;
    assert_eq!((bank.parked_keys().await.len(), bank.balance("dan")), (2, None), "never skip silently");
    bank.projections.skip(&name(), &"account-ann".into(), true).await.unwrap();
    bank.caught_up().await;
    assert_eq!(bank.balance("dan"), Some(1));
    let parked: Vec<_> = bank.parked_keys().await.into_iter().map(|(key, ..)| key).collect();
    assert_eq!(parked, ["account-bob", "account-cid"]);
}

#[tokio::test(start_paused = true)]
async fn a_module_that_writes_what_is_not_declared_fails_on_that_event() {
    let bank = Bank::open().deployed().await;
    bank.event("ann", "Misspelt");
    bank.caught_up().await;
    let parked = bank.projections.parked(&name(), None, 10).await.unwrap().remove(0);
    assert!(parked.reason.contains("there is no column `balence`"), "{}", parked.reason);
}

/// What an account comes to if its events are applied in order, and how many queue behind the first that fails.
fn expected(events: &[(u8, &str)], account: u8, broken: bool) -> (Option<i64>, u64) {
    let mut own =
        events.iter().filter(|(of, _)| *of == account).map(|(_, event_type)| *event_type).peekable();
    let mut balance = None;
    while let Some(event_type) = own.next_if(|event_type| !broken || !matches!(*event_type, "Bad" | "Trap")) {
        balance = match event_type {
            "Doubled" => Some(balance.unwrap_or(1) * 2 % 1_000_003),
            _ => Some(balance.unwrap_or(0) + 1),
        };
    }
    (balance, own.count() as u64)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn each_key_stands_at_its_first_failure_and_a_retry_brings_it_to_its_end(
        events in prop::collection::vec(
            (0..5_u8, prop::sample::select(vec!["Added", "Added", "Doubled", "Doubled", "Bad", "Trap"])), 1..80,
        ),
        lanes in 1..4_usize,
        batch in 1..30_usize,
        attempts in 1..3_u32,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let bank = Bank::open_with(|spec| {
                spec.lanes = NonZeroUsize::new(lanes).unwrap();
                spec.batch.max_events = NonZeroUsize::new(batch).unwrap();
                spec.retry.attempts = NonZeroU32::new(attempts).unwrap();
            });
            for (account, event_type) in &events {
                bank.event(&account.to_string(), event_type);
            }
            let bank = bank.deployed().await;
            bank.caught_up().await;
            let accounts = || (0..5_u8).map(|account| (account, account.to_string()));
            for (account, name) in accounts() {
                let (balance, queued) = expected(&events, account, true);
                let parked = bank.parked_keys().await.into_iter().find(|(key, ..)| *key == format!("account-{name}"));
                prop_assert_eq!(bank.balance(&name), balance);
                prop_assert_eq!(parked.map_or(0, |(.., queued)| queued), queued);
            }
            bank.fix();
            for (key, ..) in bank.parked_keys().await {
                bank.projections.retry(&name(), &Text::from(key)).await.unwrap();
            }
            for (account, name) in accounts() {
                prop_assert_eq!(bank.balance(&name), expected(&events, account, false).0);
            }
            prop_assert!(bank.parked_keys().await.is_empty());
            Ok(())
        })?;
    }
}
