//! What an autoscaler is told of a backlog: whether anything is to be done at all, and a number to divide by its target.
//!
//! The autoscaler is Kubernetes' (HPA), fed by KEDA. KEDA alone decides between none and one, from
//! [`Reading::is_active`]; above that the HPA wants `ceil(value / threshold)` workers, and does nothing while
//! `value / (threshold × workers)` is within 10 % of 1. That tolerance is for loads that go up and down by themselves. A
//! backlog over 64 partitions of which the last has no worker does not: it would stay at 63 for ever. So the value is
//! [the least that gets out of the tolerance](clearing) of one worker less than are wanted.

use crate::time::Timestamp;
use std::num::NonZeroU64;

/// Where a consumer begins that has never committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// With what is there.
    Earliest,
    /// With what comes.
    Latest,
}

/// How far a consumer has got in one partition. The log of an app is one partition to those who follow it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partition {
    /// The first record that is still there.
    pub begin: u64,
    /// Where the next record goes.
    pub end: u64,
    /// The next record that the consumer wants; none if it has never said.
    pub committed: Option<u64>,
}

impl Partition {
    /// Records that the consumer has not done.
    #[must_use]
    pub fn lag(self, start: Start) -> u64 {
        match self.committed {
            // What it wanted is gone: it can do no more than what is left.
            Some(committed) => self.end.saturating_sub(committed.max(self.begin)),
            None => match start {
                Start::Earliest => self.end.saturating_sub(self.begin),
                // Until one has run, it is not fixed where "what comes" begins: so one is wanted.
                Start::Latest => 1,
            },
        }
    }
}

/// What a consumer has before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backlog {
    /// Its partitions: more workers than these would find nothing to do.
    pub partitions: Vec<Partition>,
    /// Where it begins.
    pub start: Start,
}

impl Backlog {
    /// Records that are not done, of all partitions.
    #[must_use]
    pub fn lag(&self) -> u64 {
        self.lags().fold(0, u64::saturating_add)
    }

    fn lags(&self) -> impl Iterator<Item = u64> {
        self.partitions.iter().map(|partition| partition.lag(self.start))
    }
}

/// How lag becomes workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LagRules {
    /// What one worker may have before it.
    pub threshold: NonZeroU64,
    /// What there may be without anybody being woken.
    pub activation: u64,
    /// More workers than partitions are wanted: the spare ones wait to take over.
    pub allow_idle: bool,
    /// Partitions without lag need no worker: no more workers than partitions with lag are wanted.
    pub only_lagging: bool,
}

impl LagRules {
    /// What the autoscaler is told.
    #[must_use]
    pub fn read(&self, backlog: &Backlog) -> Reading {
        let lag = backlog.lag();
        let workers = match (self.allow_idle, self.only_lagging) {
            (true, _) => u64::MAX,
            (false, true) => backlog.lags().filter(|lag| *lag > 0).count() as u64,
            (false, false) => backlog.partitions.len() as u64,
        };
        let value = lag.min(workers.saturating_mul(self.threshold.get()));
        Reading { is_active: lag > self.activation, value: clearing(value, self.threshold) }
    }
}

/// How requests in flight become workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestRules {
    /// What one worker may have in flight.
    pub threshold: NonZeroU64,
    /// What may be in flight without anybody being woken.
    pub activation: u64,
}

impl RequestRules {
    /// What the autoscaler is told.
    #[must_use]
    pub fn read(&self, in_flight: u64) -> Reading {
        Reading { is_active: in_flight > self.activation, value: clearing(in_flight, self.threshold) }
    }
}

/// What the autoscaler is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Whether one worker at least is wanted.
    pub is_active: bool,
    /// What it divides by the threshold.
    pub value: u64,
}

/// The value with which an autoscaler that tolerates 10 % goes from any number of workers below to the number that this
/// value wants, `ceil(value / threshold)`. Up to ten workers it then wants exactly those; above, up to a tenth more, which
/// is for `maxReplicaCount` to cut off.
#[must_use]
pub fn clearing(value: u64, threshold: NonZeroU64) -> u64 {
    let wanted = value.div_ceil(threshold.get());
    let one_less = u128::from(wanted.saturating_sub(1)) * u128::from(threshold.get());
    let tolerated = one_less * 11 / 10;
    if one_less == 0 {
        return value;
    }
    value.max(u64::try_from(tolerated).unwrap_or(u64::MAX).saturating_add(1))
}

/// The last answer of a source that may be out of reach, a broker say. An autoscaler that gets an error instead leaves
/// the workers as they are, and does not wake the first one; with what was true a moment ago it can.
#[derive(Debug)]
pub struct LastGood<T> {
    known: Option<(T, Timestamp)>,
}

impl<T> Default for LastGood<T> {
    fn default() -> Self {
        Self { known: None }
    }
}

impl<T: Clone> LastGood<T> {
    /// What to go by: the answer, or the last good one if it is at most `hold` old.
    ///
    /// # Errors
    /// Neither is there: the source's error.
    pub fn settle<E>(&mut self, answer: Result<T, E>, now: Timestamp, hold_micros: u64) -> Result<T, E> {
        match answer {
            Ok(value) => {
                self.known = Some((value.clone(), now));
                Ok(value)
            }
            Err(error) => match &self.known {
                Some((value, at)) if now.0.saturating_sub(at.0) <= hold_micros => Ok(value.clone()),
                _ => Err(error),
            },
        }
    }
}

/// Finds when something becomes active. KEDA ignores a pushed `false`, and takes every `true` for activity that keeps
/// workers from going to none: only the edge is pushed, and polling tells the rest.
#[derive(Debug, Default)]
pub struct RisingEdge {
    was_active: bool,
}

impl RisingEdge {
    /// Whether it has become active since the last look.
    pub fn rises(&mut self, is_active: bool) -> bool {
        !std::mem::replace(&mut self.was_active, is_active) && is_active
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn partition(begin: u64, end: u64, committed: Option<u64>) -> Partition {
        Partition { begin, end, committed }
    }

    fn rules(threshold: u64) -> LagRules {
        let threshold = NonZeroU64::new(threshold).unwrap();
        LagRules { threshold, activation: 0, allow_idle: false, only_lagging: false }
    }

    fn backlog(lags: &[u64]) -> Backlog {
        let partitions = lags.iter().map(|lag| partition(0, *lag, Some(0))).collect();
        Backlog { partitions, start: Start::Earliest }
    }

    /// As kube-controller-manager does with an external metric of the type AverageValue.
    fn autoscaler(current: u64, value: u64, threshold: u64) -> u64 {
        let ratio = (value as f64) / (threshold as f64 * current as f64);
        if (0.9..=1.1).contains(&ratio) { current } else { value.div_ceil(threshold) }
    }

    #[test]
    fn lag_is_what_is_there_and_not_done() {
        for (partition, lag) in [
            (partition(0, 10, Some(4)), 6),
            (partition(0, 10, Some(10)), 0),
            // Retention took some of what was wanted.
            (partition(7, 10, Some(4)), 3),
            // The topic was made again, and is shorter.
            (partition(0, 2, Some(9)), 0),
            (partition(3, 10, None), 7),
        ] {
            assert_eq!(partition.lag(Start::Earliest), lag, "{partition:?}");
        }
        assert_eq!(partition(3, 10, None).lag(Start::Latest), 1, "one has to run for it to begin");
        assert_eq!(partition(3, 10, Some(4)).lag(Start::Latest), 6);
    }

    #[test]
    fn one_record_more_than_the_activation_wakes_a_worker() {
        let activation = |activation| LagRules { activation, ..rules(10) };
        assert!(!activation(0).read(&backlog(&[0, 0])).is_active);
        assert!(activation(0).read(&backlog(&[0, 1])).is_active);
        assert!(!activation(5).read(&backlog(&[3, 2])).is_active);
        assert!(activation(5).read(&backlog(&[3, 3])).is_active);
    }

    #[test]
    fn no_more_workers_are_wanted_than_partitions() {
        assert_eq!(rules(10).read(&backlog(&[500, 0, 0])).value, 30);
        let only_lagging = LagRules { only_lagging: true, ..rules(10) };
        assert_eq!(only_lagging.read(&backlog(&[500, 0, 0])).value, 10);
        let allow_idle = LagRules { allow_idle: true, ..rules(10) };
        assert_eq!(allow_idle.read(&backlog(&[50, 0, 0])).value, 50);
        assert!(rules(10).read(&Backlog { partitions: vec![], start: Start::Latest }).value == 0);
    }

    #[test]
    fn the_last_good_answer_counts_for_a_while() {
        let mut known = LastGood::default();
        let at = |seconds: u64| Timestamp(seconds * 1_000_000);
        let hold = 60_000_000;
        assert_eq!(known.settle(Err("away"), at(0), hold), Err("away"), "nothing is known yet");
        assert_eq!(known.settle(Ok::<_, &str>(7), at(1), hold), Ok(7));
        assert_eq!(known.settle(Err("away"), at(61), hold), Ok(7));
        assert_eq!(known.settle(Err("away"), at(62), hold), Err("away"));
        assert_eq!(known.settle(Ok::<_, &str>(3), at(63), hold), Ok(3));
        assert_eq!(known.settle(Err("away"), at(0), hold), Ok(3), "a clock that jumps back does no harm");
    }

    #[test]
    fn only_the_edge_to_active_counts() {
        let mut edge = RisingEdge::default();
        let rises = [false, true, true, false, true].map(|is_active| edge.rises(is_active));
        assert_eq!(rises, [false, true, false, false, true]);
    }

    proptest! {
        #[test]
        fn from_any_number_of_workers_below_the_autoscaler_goes_to_those_that_are_wanted(
            value in 1_u64..1_000_000, threshold in 1_u64..5_000, below in 0.0..1.0_f64,
        ) {
            let wanted = value.div_ceil(threshold);
            let told = clearing(value, NonZeroU64::new(threshold).unwrap());
            prop_assert!(told >= value);
            let current = ((wanted as f64 * below) as u64).max(1);
            if current < wanted {
                let desired = autoscaler(current, told, threshold);
                // `maxReplicaCount` at what is wanted makes it exactly that.
                prop_assert!(desired >= wanted, "{desired} instead of {wanted} from {current}");
                prop_assert!(desired <= (wanted * 11).div_ceil(10), "{desired} instead of {wanted}");
                prop_assert!(wanted > 10 || desired == wanted, "{desired} instead of {wanted}");
            }
            if wanted > 1 {
                prop_assert!(autoscaler(wanted - 1, told, threshold) >= wanted);
            }
        }

        #[test]
        fn more_lag_never_wants_fewer_workers(a in 0_u64..1_000_000, b in 0_u64..1_000_000, threshold in 1_u64..5_000) {
            let threshold = NonZeroU64::new(threshold).unwrap();
            let (less, more) = (a.min(b), a.max(b));
            prop_assert!(clearing(less, threshold) <= clearing(more, threshold));
        }

        #[test]
        fn no_number_is_too_large(value: u64, threshold in 1_u64.., lags: Vec<u64>) {
            let _ = clearing(value, NonZeroU64::new(threshold).unwrap());
            let reading = rules(threshold).read(&backlog(&lags));
            prop_assert_eq!(reading.is_active, lags.iter().any(|lag| *lag > 0));
        }
    }
}
