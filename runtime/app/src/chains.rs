//! What one cause leads to, so that events that lead to commands that lead to events end somewhere.
//!
//! A *chain* is what has one correlation id. Two bounds hold for the commands of a chain that events led to (and not for
//! those that come from outside): how many functions and topics lie before them, and how many there are within a minute.
//! Past the first a command is refused, for ever. Past the second nothing fails: who follows events is not given those of the chain until
//! it may go on, so that a storm becomes a trickle that somebody sees, and that stops when it is mended.

use crate::commands::CommandErrorKind;
use ebb_domain::manifest::ChainSpec;
use ebb_domain::text::Text;
use parking_lot::Mutex;
use serde::Serialize;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;
use tracing::warn;

/// After this time a chain that nobody has heard of may go on as if it were new.
const MINUTE: Duration = Duration::from_secs(60);

/// Chains that are remembered in each of two halves: the half that was used less recently is forgotten as a whole.
const HALF: usize = 10_000;

/// The chains of one app, and what they may still lead to.
#[derive(Default)]
pub(crate) struct Chains {
    recent: Mutex<Recent>,
    tripped: AtomicU64,
    too_long: AtomicU64,
}

struct Recent {
    young: HashMap<Text, Budget>,
    old: HashMap<Text, Budget>,
    turned: Instant,
}

/// Commands that a chain may lead to now. They come back evenly, and a minute's worth at most.
struct Budget {
    left: f64,
    at: Instant,
    /// It was used up, and has not been whole since.
    tripped: bool,
}

/// How the chains of an app are doing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ChainStatus {
    /// The correlation ids of those that are held back now.
    pub held: Vec<Text>,
    /// How often one had led to as much as it may, since the app was opened.
    pub tripped: u64,
    /// Commands that were refused since their chain was too long.
    pub too_long: u64,
}

impl Default for Recent {
    fn default() -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), turned: Instant::now() }
    }
}

impl Recent {
    /// What a chain has left, brought up to date.
    fn budget(&mut self, chain: &Text, spec: &ChainSpec) -> &mut Budget {
        let (now, whole) = (Instant::now(), f64::from(spec.per_minute.get()));
        if now.duration_since(self.turned) > MINUTE || self.young.len() >= HALF {
            self.turned = now;
            self.old = std::mem::take(&mut self.young);
        }
        let old = self.old.remove(chain.as_bytes());
        let new = Budget { left: whole, at: now, tripped: false };
        let budget = self.young.entry(chain.detached()).or_insert_with(|| old.unwrap_or(new));
        let since = now.duration_since(budget.at).as_secs_f64();
        budget.left = (budget.left + since * whole / MINUTE.as_secs_f64()).min(whole);
        budget.at = now;
        // Half of it has come back: the next time is another.
        budget.tripped &= budget.left < whole / 2.0;
        budget
    }
}

impl Chains {
    /// Counts a command, so many hops behind what began its chain, unless it may not be carried out.
    pub(crate) fn admit(&self, chain: &Text, hops: u16, spec: &ChainSpec) -> Result<(), CommandErrorKind> {
        if hops == 0 {
            return Ok(());
        }
        if hops > spec.hops.get() {
            self.too_long.fetch_add(1, Ordering::Relaxed);
            warn!(correlation_id = %chain, hops, "a command is refused: its chain is too long");
            return Err(CommandErrorKind::ChainTooLong { hops, most: spec.hops.get() });
        }
        let mut recent = self.recent.lock();
        let budget = recent.budget(chain, spec);
        let whole = f64::from(spec.per_minute.get());
        // What was begun may be finished, up to as much again.
        if budget.left <= -whole {
            let retry_after = until(1.0 - whole, budget, whole);
            return Err(CommandErrorKind::ChainHeldBack { per_minute: spec.per_minute.get(), retry_after });
        }
        budget.left -= 1.0;
        if budget.left <= 0.0 && !budget.tripped {
            budget.tripped = true;
            self.tripped.fetch_add(1, Ordering::Relaxed);
            warn!(correlation_id = %chain, per_minute = spec.per_minute, "a chain of events is held back: it leads to too many commands");
        }
        Ok(())
    }

    /// How long events of a chain are held back; none: they are not.
    pub(crate) fn held(&self, chain: &Text, spec: &ChainSpec) -> Option<Duration> {
        let mut recent = self.recent.lock();
        if !recent.young.contains_key(chain.as_bytes()) && !recent.old.contains_key(chain.as_bytes()) {
            return None;
        }
        let budget = recent.budget(chain, spec);
        (budget.left <= 0.0).then(|| until(1.0, budget, f64::from(spec.per_minute.get())))
    }

    /// How they are doing.
    pub(crate) fn status(&self, spec: &ChainSpec) -> ChainStatus {
        let recent = self.recent.lock();
        let whole = f64::from(spec.per_minute.get());
        let now = Instant::now();
        let is_held = |budget: &Budget| {
            let since = now.duration_since(budget.at).as_secs_f64();
            budget.left + since * whole / MINUTE.as_secs_f64() <= 0.0
        };
        let all = recent.young.iter().chain(&recent.old);
        let held = all.filter(|(_, budget)| is_held(budget));
        let mut held: Vec<Text> = held.map(|(chain, _)| chain.clone()).collect();
        held.sort_unstable();
        ChainStatus {
            held,
            tripped: self.tripped.load(Ordering::Relaxed),
            too_long: self.too_long.load(Ordering::Relaxed),
        }
    }
}

/// How long it takes until so much is left.
fn until(wanted: f64, budget: &Budget, whole: f64) -> Duration {
    Duration::from_secs_f64(((wanted - budget.left) / whole * MINUTE.as_secs_f64()).max(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::{NonZeroU16, NonZeroU32};

    const SPEC: ChainSpec =
        ChainSpec { hops: NonZeroU16::new(3).unwrap(), per_minute: NonZeroU32::new(60).unwrap() };

    fn admit(chains: &Chains, chain: &str, times: usize) -> Result<(), CommandErrorKind> {
        (0..times).try_for_each(|_| chains.admit(&chain.into(), 1, &SPEC))
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_from_outside_is_not_counted() {
        let chains = Chains::default();
        for _ in 0..1000 {
            chains.admit(&"import".into(), 0, &SPEC).unwrap();
        }
        assert_eq!(chains.held(&"import".into(), &SPEC), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_chain_ends_behind_its_last_hop() {
        let chains = Chains::default();
        chains.admit(&"a".into(), 3, &SPEC).unwrap();
        let refused = chains.admit(&"a".into(), 4, &SPEC).unwrap_err();
        assert!(matches!(refused, CommandErrorKind::ChainTooLong { hops: 4, most: 3 }));
        assert_eq!(chains.status(&SPEC).too_long, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_chain_that_led_to_too_much_is_held_back_and_goes_on_at_its_rate_while_others_are_free() {
        let chains = Chains::default();
        admit(&chains, "a", 59).unwrap();
        assert_eq!(chains.held(&"a".into(), &SPEC), None);
        admit(&chains, "a", 1).unwrap();
        assert_eq!(chains.held(&"a".into(), &SPEC), Some(Duration::from_secs(1)));
        assert_eq!(chains.held(&"b".into(), &SPEC), None);
        let status = chains.status(&SPEC);
        assert_eq!((status.held, status.tripped), (vec![Text::from("a")], 1));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(chains.held(&"a".into(), &SPEC), None);
        admit(&chains, "a", 1).unwrap();
        assert!(chains.held(&"a".into(), &SPEC).is_some());
        assert_eq!(chains.status(&SPEC).tripped, 1, "it is the same storm");
        tokio::time::advance(MINUTE).await;
        assert_eq!(chains.status(&SPEC).held, [] as [Text; 0]);
        admit(&chains, "a", 60).unwrap();
        assert_eq!(chains.status(&SPEC).tripped, 2, "it is another");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_begun_may_lead_to_as_much_again_and_then_has_to_wait() {
        let chains = Chains::default();
        admit(&chains, "a", 120).unwrap();
        let wait = admit(&chains, "a", 1).unwrap_err().retry_after().unwrap();
        assert_eq!(wait, Duration::from_secs(1));
        tokio::time::advance(wait).await;
        admit(&chains, "a", 1).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_goes_on_is_remembered_among_any_number_that_do_not() {
        let chains = Chains::default();
        admit(&chains, "storm", 100).unwrap();
        for chain in 0..5 * HALF {
            admit(&chains, &format!("chain {chain}"), 1).unwrap();
            if chain % (HALF / 2) == 0 {
                assert!(chains.held(&"storm".into(), &SPEC).is_some());
            }
        }
        let recent = chains.recent.lock();
        assert!(recent.young.len() + recent.old.len() <= 2 * HALF);
    }
}
