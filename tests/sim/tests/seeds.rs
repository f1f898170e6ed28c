//! The simulation as part of the suite: some hundreds of new worlds, and every one that ever broke a promise.

use std::ops::Range;

/// Enough for all that is in `docs/runs/simulation.md` to happen; `EBB_SIM_SEEDS=FIRST..LAST` takes others.
const SEEDS: Range<u64> = 0..300;

/// Seeds that broke a promise once.
const KEPT: &str = include_str!("../seeds.txt");

fn seeds() -> Range<u64> {
    let Ok(text) = std::env::var("EBB_SIM_SEEDS") else { return SEEDS };
    let bounds = text.split_once("..").and_then(|(from, to)| Some(from.parse().ok()?..to.parse().ok()?));
    bounds.expect("EBB_SIM_SEEDS is FIRST..LAST, such as 100..400")
}

fn keep_every_promise(seeds: impl Iterator<Item = u64> + Send) {
    let broken = parking_lot::Mutex::new(Vec::new());
    ebb_sim::run_all(seeds, |seed, violations| {
        broken.lock().push(format!("seed {seed}: {}", violations.join("\n    ")));
    });
    let broken = broken.into_inner();
    assert!(
        broken.is_empty(),
        "{}\nrun one with EBB_SIM_SEEDS=SEED..SEED+1, and keep it in seeds.txt",
        broken.join("\n")
    );
}

#[test]
fn no_crash_fault_or_retry_breaks_a_promise() {
    keep_every_promise(seeds());
}

#[test]
fn seeds_that_broke_a_promise_once_keep_it() {
    let seeds = KEPT.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    keep_every_promise(seeds.map(|line| line.split(' ').next().unwrap_or_default().parse().expect("a seed")));
}

/// Only as `scripts/simulate` builds it: see `life::runtime`.
#[cfg(tokio_unstable)]
#[test]
fn a_seed_does_the_same_things_in_the_same_order_each_time() {
    for seed in 0..40 {
        let (one, other) = (ebb_sim::run(seed), ebb_sim::run(seed));
        assert_eq!((one.trace, one.stats), (other.trace, other.stats), "seed {seed}");
    }
}
