//! What is counted of calls, whatever becomes of them.

use super::*;
use ebb_domain::port::guest::ProjectionModule;
use ebb_engine::{FunctionUsage, Outcome, Starts};

impl Bench {
    /// Of the only function that was called.
    fn used(&self) -> FunctionUsage {
        let mut all = self.engine.usage();
        assert_eq!(all.len(), 1, "one function was called");
        all.remove(0)
    }
}

fn errors(usage: &FunctionUsage) -> Vec<(Outcome, u64)> {
    usage.errors.iter().map(|error| (error.kind, error.count)).collect()
}

async fn apply(module: &Arc<dyn ProjectionModule>, types: &[&str]) -> Result<(), ApplyError> {
    module.apply(&events(types), Arc::new(Mutex::new(Counts::default()))).await
}

#[tokio::test]
async fn a_function_that_was_never_called_is_not_in_the_books() {
    let bench = bench();
    let _deployed = bench.commands(|_| {}).await;
    assert!(bench.engine.usage().is_empty());
}

#[tokio::test]
async fn a_decision_is_an_invocation_and_what_its_aggregate_needs_besides_is_upkeep() {
    let bench = bench();
    let module = bench.commands(|_| {}).await;
    let mut aggregate = open(&module, "a").await.unwrap();
    assert_eq!(bench.used().invocations, 0, "opening is none");
    decide(&mut aggregate, "count", "").await.unwrap();
    let first = bench.used();
    assert_eq!((first.invocations, first.starts), (1, Starts { cold: 1, ..Starts::default() }));
    assert!(first.init_micros > 0 && first.inits.count() == 1, "its opening made the instance: {first:?}");

    decide(&mut aggregate, "refuse", "").await.unwrap();
    aggregate.apply(&[past(0)]).await.unwrap();
    aggregate.snapshot().await.unwrap();
    drop(aggregate);
    // Another aggregate in the same instance.
    outcome(&module, "count", "").await.unwrap();
    let usage = bench.used();
    assert_eq!((usage.invocations, usage.refused, usage.succeeded(), usage.failed()), (3, 1, 3, 0));
    assert_eq!(usage.starts, Starts { cold: 1, warm: 2, loaded: 0 });
    assert_eq!((usage.instances, usage.init_micros), (1, first.init_micros), "and nobody else waited for it");
    assert!(usage.upkeep_micros > 0 && usage.cpu_micros > 0);
    assert!(usage.billed_millis >= 3, "a millisecond each at least");
    assert!(usage.p50_micros.is_some() && usage.durations.count() == 3);
}

#[tokio::test]
async fn an_invocation_that_fails_is_counted_by_what_it_failed_of() {
    let bench = bench();
    let module = bench
        .commands(|spec| {
            spec.limits.cpu = Duration::from_millis(30);
            spec.limits.memory_bytes = 8 << 20;
        })
        .await;
    for command in ["trap", "loop", "allocate", "unreachable", "count"] {
        let _ = outcome(&module, command, "").await;
    }
    // An aggregate that can't be opened fails its command.
    assert!(open(&module, "trap-on-open").await.is_err());
    let usage = bench.used();
    assert_eq!(
        errors(&usage),
        [(Outcome::Trapped, 3), (Outcome::OutOfMemory, 1), (Outcome::OutOfCpu, 1)],
        "{usage:?}"
    );
    assert_eq!((usage.invocations, usage.succeeded()), (6, 1));
    // Less than the limit: a busy machine keeps it off the processor.
    assert!(usage.cpu_micros >= 1000, "{usage:?}");
    assert!(usage.memory_peak_bytes > 4 << 20 && usage.memory_peak_bytes <= 8 << 20, "{usage:?}");
}

#[tokio::test]
async fn what_a_call_computed_is_counted_also_when_it_is_given_up() {
    let wall = Duration::from_millis(60);
    let bench = bench();
    let module = bench.commands(|spec| spec.limits.wall = wall).await;
    let mut aggregate = open(&module, "a").await.unwrap();
    assert!(decide(&mut aggregate, "loop", "").await.is_err());
    let usage = bench.used();
    assert_eq!(errors(&usage), [(Outcome::OutOfTime, 1)]);
    assert!(usage.cpu_micros >= 1000, "{usage:?}");
    assert!(usage.billed_millis >= 60 && usage.memory_peak_bytes > 0, "{usage:?}");

    let mut aggregate = open(&module, "a").await.unwrap();
    let patience = tokio::time::timeout(wall / 2, decide(&mut aggregate, "loop", "")).await;
    assert!(patience.is_err());
    let usage = bench.used();
    assert_eq!((usage.canceled, usage.invocations, usage.failed()), (1, 2, 1));
}

#[tokio::test]
async fn each_lane_of_a_batch_is_an_invocation_of_a_projection() {
    let bench = bench();
    let projection = bench.projection(|_| {}).await;
    apply(&projection, &["Counted", "Counted"]).await.unwrap();
    assert!(apply(&projection, &["Counted", "Fail"]).await.is_err());
    assert!(apply(&projection, &["Trap"]).await.is_err());
    let usage = bench.used();
    assert_eq!(errors(&usage), [(Outcome::EventFailed, 1), (Outcome::Trapped, 1)]);
    // The second was warm; it failed, so that the third needed another instance of the code that was there.
    assert_eq!((usage.invocations, usage.starts), (3, Starts { cold: 1, warm: 1, loaded: 1 }));
}

#[tokio::test]
async fn calls_that_find_no_place_are_throttled_and_not_invocations() {
    let budget = 24 << 20;
    let bench = Bench::with(|options| options.memory_bytes = budget);
    let module = bench.commands(|_| {}).await;
    assert!(matches!(outcome(&module, "allocate", "").await, Err(CallError::Overloaded { .. })));
    let usage = bench.used();
    assert_eq!((usage.throttled, usage.invocations, usage.failed()), (1, 0, 0));
}

#[tokio::test]
async fn sums_go_on_when_a_function_is_deployed_again() {
    let bench = bench();
    for invocations in 1..=3 {
        let module = bench.commands(|_| {}).await;
        outcome(&module, "count", "").await.unwrap();
        assert_eq!(bench.used().invocations, invocations);
    }
    assert_eq!(bench.used().function.as_ref() as &str, "aggregate.counter");
}

#[tokio::test]
async fn sums_go_with_their_app_and_leave_their_number_to_the_next() {
    let bench = bench();
    let module = bench.commands(|_| {}).await;
    outcome(&module, "count", "").await.unwrap();
    let used = bench.used();
    bench.engine.forget(&AppName::new("another").unwrap());
    assert_eq!(bench.engine.usage().len(), 1);
    bench.engine.forget(&used.app);
    assert_eq!(bench.engine.usage().len(), 0);
    drop(module);
    let module = bench.commands(|_| {}).await;
    outcome(&module, "count", "").await.unwrap();
    assert_eq!((bench.used().invocations, bench.used().number), (1, used.number));
}

#[tokio::test]
async fn waiting_for_a_place_is_neither_duration_nor_billed() {
    let bench = bench();
    let projection = bench.projection(|spec| spec.limits.concurrency = at_least(1)).await;
    apply(&projection, &["Counted"]).await.unwrap();
    // Each of them waits for those before it.
    let many = ["Counted"; 2000];
    futures_util::future::join_all((0..16).map(|_| apply(&projection, &many))).await;
    let usage = bench.used();
    assert!(usage.waited_micros > usage.duration_micros, "{usage:?}");
}
