//! How a projection follows its log, and what it costs when there is nothing to do.

use super::*;
use ebb_domain::model::Query;

#[tokio::test(start_paused = true)]
async fn rows_follow_the_log_and_say_how_far() {
    let bank = Bank::open().deployed().await;
    bank.add("ann", 5);
    let last = bank.add("ann", 2);
    bank.caught_up().await;
    let (position, row) = bank.reader().get_at("ann").unwrap();
    assert_eq!((position, row.is_some(), bank.balance("ann")), (last, true, Some(7)));
    let query = Query { limit: 10, ..Query::default() };
    let (position, page) = bank.reader().query_at(query).await.unwrap();
    assert_eq!((position, page.rows.len(), page.more), (last, 1, false));
    assert_eq!(bank.reader().lag(), 0);
}

#[tokio::test(start_paused = true)]
async fn each_event_is_in_the_rows_once_however_often_it_restarts() {
    let mut bank = Bank::open();
    for round in 1..=5 {
        for _ in 0..25 {
            bank.add("ann", 1);
        }
        bank = bank.deployed().await;
        bank.caught_up().await;
        bank = bank.restarted().await.deployed().await;
        assert_eq!(bank.balance("ann"), Some(25 * round));
    }
}

#[tokio::test(start_paused = true)]
async fn events_of_other_aggregates_cost_no_commit_and_are_passed_all_the_same() {
    let bank = Bank::open_with(|spec| {
        let aggregates = BTreeSet::from([ebb_domain::name::AggregateName::new("account").unwrap()]);
        spec.source = Source::Log { aggregates, types: BTreeSet::new() };
    });
    let bank = bank.deployed().await;
    bank.add("ann", 1);
    bank.caught_up().await;
    let commits = bank.models.commits();
    let other = bank.log.given("flight-1", "Added", &json!({ "by": 1 }));
    bank.caught_up().await;
    assert_eq!(bank.models.commits(), commits);
    assert_eq!(bank.reader().get_at("ann").unwrap().0, other, "what is read is as fresh as that");
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(bank.models.commits(), commits + 1, "the mark on disk follows in its own time");
}

#[tokio::test(start_paused = true)]
async fn only_the_types_that_the_source_names_are_applied() {
    let bank = Bank::open_with(|spec| {
        let types = BTreeSet::from([ebb_domain::name::EventType::new("Added").unwrap()]);
        spec.source = Source::Log { aggregates: BTreeSet::new(), types };
    });
    let bank = bank.deployed().await;
    bank.event("ann", "Doubled");
    bank.add("ann", 1);
    bank.event("ann", "Closed");
    bank.caught_up().await;
    assert_eq!(bank.balance("ann"), Some(1));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_projected_that_is_not_durable() {
    let bank = Bank::open().deployed().await;
    bank.log.hold();
    let staged = bank.add("ann", 1);
    let waited = bank.reader().wait_for(staged, Duration::from_secs(2)).await;
    assert_eq!(waited, Err(Waited { mark: Position::START, wanted: staged }));
    bank.log.release();
    bank.caught_up().await;
    assert_eq!(bank.balance("ann"), Some(1));
}

#[tokio::test(start_paused = true)]
async fn few_events_wait_for_more_but_not_if_a_reader_waits() {
    let bank = Bank::open_with(|spec| spec.batch.max_wait = Duration::from_secs(1)).deployed().await;
    bank.add("ann", 1);
    bank.caught_up().await;
    let before = (bank.module.calls(), tokio::time::Instant::now());
    for _ in 0..5 {
        bank.add("ann", 1);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bank.until("applied", |bank| bank.balance("ann") == Some(6)).await;
    assert_eq!(bank.module.calls() - before.0, 1, "one batch of what came within a second");
    let began = tokio::time::Instant::now();
    bank.add("ann", 1);
    bank.caught_up().await;
    assert!(began.elapsed() < Duration::from_millis(500));
}

#[tokio::test(start_paused = true)]
async fn an_idle_projection_closes_its_files_and_comes_back() {
    let bank = Bank::open().deployed().await;
    bank.add("ann", 1);
    bank.caught_up().await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(bank.models.releases(), 1, "once, not every minute");
    assert_eq!(bank.balance("ann"), Some(1));
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(bank.models.releases(), 2, "a reader opened them again");
    bank.add("ann", 1);
    bank.caught_up().await;
    assert_eq!(bank.balance("ann"), Some(2));
}

#[tokio::test(start_paused = true)]
async fn a_projection_that_has_nothing_to_do_closes_its_files_as_soon_as_it_has_looked() {
    let bank = Bank::open().deployed().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(bank.models.releases(), 1);
}

#[tokio::test(start_paused = true)]
async fn damaged_rows_are_made_anew_from_the_first_event() {
    let bank = Bank::open().deployed().await;
    bank.add("ann", 1);
    bank.event("ann", "Doubled");
    bank.caught_up().await;
    bank.models.damage();
    assert!(bank.reader().get_at("ann").is_err(), "what is damaged is not sent");
    let last = bank.event("ann", "Doubled");
    bank.until("made anew", |bank| bank.reader().get_at("ann").is_ok_and(|(at, _)| at == last)).await;
    assert_eq!(bank.balance("ann"), Some(4));
}

#[tokio::test(start_paused = true)]
async fn rows_ahead_of_the_log_halt_the_projection_until_it_is_rebuilt() {
    let mut bank = Bank::open().deployed().await;
    bank.add("ann", 1);
    bank.add("ann", 1);
    bank.caught_up().await;
    bank.projections.shutdown().await;
    bank.log = Arc::new(MemoryLog::default());
    bank.add("ann", 7);
    let bank = bank.restarted().await.deployed().await;
    bank.until("halted", |bank| matches!(bank.state(), State::Halted { .. })).await;
    assert_eq!(bank.balance("ann"), Some(2), "it never jumps");
    bank.projections.rebuild(&name()).await.unwrap();
    bank.until("rebuilt", |bank| bank.balance("ann") == Some(7)).await;
}

#[tokio::test(start_paused = true)]
async fn a_stopped_projection_gives_up_its_call_and_keeps_its_rows_readable() {
    let bank = Bank::open().deployed().await;
    bank.add("ann", 1);
    bank.caught_up().await;
    bank.module.gate().set_open(false);
    bank.add("ann", 1);
    bank.until("called", |bank| bank.module.calls() == 2).await;
    bank.projections.shutdown().await;
    assert_eq!((bank.state(), bank.balance("ann")), (State::Stopped, Some(1)));
    let refused = bank.projections.retry(&name(), &"account-ann".into()).await;
    assert_eq!(refused, Err(ProjectionError::NotRunning(name())));
}
