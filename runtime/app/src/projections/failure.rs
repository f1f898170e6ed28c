//! What happens when events fail: the contract of all projections, whatever their source.
//!
//! * The module names the event that failed: what came before it is kept, and the event is tried again by itself.
//! * The call failed as a whole: the batch is halved until a single event stands alone.
//! * An event that stands alone is tried with growing pauses; after `retry.attempts` its key is parked.
//! * Something on our side failed: the same batch is tried again, with growing pauses, for ever. Nothing is parked for
//!   it, and nothing skipped.

use super::lanes::Failed;
use ebb_domain::event::Position;
use ebb_domain::manifest::Retry;
use ebb_domain::port::models::Tried;
use std::hash::{DefaultHasher, Hash, Hasher as _};
use std::time::Duration;

/// Growing pauses between tries.
#[derive(Clone, Copy, Debug)]
pub(super) struct Backoff {
    first: Duration,
    most: Duration,
    /// Differs from projection to projection.
    spread: u64,
}

impl Backoff {
    pub(super) fn new(retry: &Retry, projection: impl Hash) -> Self {
        let mut hasher = DefaultHasher::new();
        projection.hash(&mut hasher);
        // Settings can't be zero, but a hot loop would be too bad to rely on it.
        let first = retry.backoff.max(Duration::from_millis(1));
        Self { first, most: retry.max_backoff, spread: hasher.finish() }
    }

    /// The pause behind so many tries: doubled for each, cut at the most, then between half and all of it, so that
    /// projections that failed together do not come back together.
    pub(super) fn pause(&self, attempts: u32) -> Duration {
        let doublings = attempts.saturating_sub(1).min(30);
        let whole = self.first.saturating_mul(1 << doublings).min(self.most);
        let half = whole / 2;
        // It need not be a surprise: only those that failed together must differ.
        let random = self.spread.wrapping_mul(2 * u64::from(attempts) + 1).rotate_left(17) % 1024;
        half + half.mul_f64(random as f64 / 1024.0)
    }
}

/// How many events to try at once next, and what is known about the one that fails.
#[derive(Debug)]
pub(super) struct Front {
    /// Events of a batch at most.
    most: usize,
    /// Events to try at once.
    size: usize,
    /// The event that failed by itself, or was named by the module.
    tried: Option<Tried>,
}

/// What to do after a failure.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Try fewer events, at once.
    Fewer,
    /// The first event failed: try it again after a pause.
    Again(Tried),
    /// The first event failed for the last time: park its key.
    Park(Tried),
    /// Our side failed: try the same again after a pause.
    Wait(String),
}

impl Front {
    /// `tried` is what was remembered from before a restart.
    pub(super) fn new(most: usize, tried: Option<Tried>) -> Self {
        Self { most, size: most, tried }
    }

    /// How many events to try now, of those that stand at `positions`. One that failed before is tried alone, once
    /// those before it are done.
    pub(super) fn size(&self, positions: &[Position]) -> usize {
        let size = self.size.min(positions.len());
        let Some(tried) = &self.tried else { return size };
        match positions.iter().position(|position| *position >= tried.position) {
            Some(0) if positions[0] == tried.position => 1,
            Some(before) if before > 0 => size.min(before),
            _ => size,
        }
    }

    /// Whether nothing has failed lately.
    pub(super) fn is_well(&self) -> bool {
        self.tried.is_none() && self.size == self.most
    }

    /// What was read again after a failure on our side.
    pub(super) fn reloaded(&mut self, tried: Option<Tried>) {
        self.tried = tried;
    }

    /// So many events were applied, or parked; the last one stands here.
    pub(super) fn passed(&mut self, last: Position) {
        if self.tried.as_ref().is_some_and(|tried| tried.position <= last) {
            self.tried = None;
        }
        self.size = if self.tried.is_some() { self.size } else { (self.size * 2).min(self.most) };
    }

    /// Decides what to do about a failure of events that stand at `positions`.
    pub(super) fn failed(&mut self, failed: Failed, positions: &[Position], attempts: u32) -> Next {
        match failed {
            Failed::Host(reason) => Next::Wait(reason),
            Failed::Module { index: Some(index), reason, poison } => {
                self.event_failed(index, reason, positions, if poison { 1 } else { attempts })
            }
            Failed::Module { index: None, reason, .. } if positions.len() == 1 => {
                self.event_failed(0, reason, positions, attempts)
            }
            Failed::Module { index: None, .. } => {
                self.size = positions.len() / 2;
                Next::Fewer
            }
        }
    }

    fn event_failed(&mut self, index: usize, reason: String, positions: &[Position], attempts: u32) -> Next {
        let position = positions[index];
        let before = self.tried.as_ref().filter(|tried| tried.position == position);
        let tried = Tried { position, reason, attempts: before.map_or(0, |tried| tried.attempts) + 1 };
        self.tried = Some(tried.clone());
        if index > 0 {
            // Those before it are applied first, without what the failing one may have written: see `size`.
            return Next::Fewer;
        }
        if tried.attempts >= attempts { Next::Park(tried) } else { Next::Again(tried) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RETRY: Retry = Retry {
        attempts: std::num::NonZeroU32::new(5).unwrap(),
        backoff: Duration::from_millis(100),
        max_backoff: Duration::from_secs(10),
        max_age: None,
    };

    fn positions(range: std::ops::Range<u64>) -> Vec<Position> {
        range.map(Position).collect()
    }

    fn trap() -> Failed {
        Failed::Module { index: None, reason: "trap".into(), poison: false }
    }

    #[test]
    fn pauses_double_up_to_the_most_and_differ_by_half() {
        let backoff = Backoff::new(&RETRY, "bank/balances");
        for (attempts, whole) in [(1, 100), (2, 200), (4, 800), (8, 10_000), (4_000_000, 10_000)] {
            let pause = backoff.pause(attempts).as_millis();
            assert!((whole / 2..=whole).contains(&pause), "{attempts} tries: {pause} ms");
        }
    }

    #[test]
    fn a_trap_halves_the_batch_until_one_event_stands_alone() {
        let mut front = Front::new(8, None);
        for (size, left) in [(8, 4), (4, 2), (2, 1)] {
            assert_eq!(front.size(&positions(1..9)), size);
            assert_eq!(front.failed(trap(), &positions(1..size as u64 + 1), 2), Next::Fewer);
            assert_eq!(front.size(&positions(1..9)), left);
        }
        assert!(
            matches!(front.failed(trap(), &positions(1..2), 2), Next::Again(tried) if tried.attempts == 1)
        );
        assert!(
            matches!(front.failed(trap(), &positions(1..2), 2), Next::Park(tried) if tried.attempts == 2)
        );
        front.passed(Position(1));
        assert_eq!(front.size(&positions(2..9)), 2, "and grows again behind it");
    }

    #[test]
    fn what_stands_before_a_named_event_is_tried_first_and_then_that_event_alone() {
        let mut front = Front::new(8, None);
        let named = Failed::Module { index: Some(3), reason: "no".into(), poison: false };
        assert_eq!(front.failed(named, &positions(1..9), 5), Next::Fewer);
        assert_eq!(front.size(&positions(1..9)), 3);
        front.passed(Position(3));
        assert_eq!(front.size(&positions(4..9)), 1);
        let alone = Failed::Module { index: Some(0), reason: "no".into(), poison: false };
        assert!(
            matches!(front.failed(alone, &positions(4..5), 5), Next::Again(tried) if tried.attempts == 2)
        );
    }

    #[test]
    fn what_fails_on_our_side_is_never_parked() {
        let mut front = Front::new(8, None);
        for _ in 0..100 {
            let next = front.failed(Failed::Host("no instance".into()), &positions(1..2), 1);
            assert_eq!(next, Next::Wait("no instance".into()));
        }
    }
}
