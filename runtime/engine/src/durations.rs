//! How long calls took: counts in log-linear buckets, so that a quantile is right to an eighth of itself whatever its
//! size, in memory that does not grow.

use std::time::Duration;

/// Buckets of each power of two, as a power of two itself.
const SPLIT: u32 = 3;
/// Up to 2^32 microseconds, more than an hour: what takes longer counts as that.
const BUCKETS: usize = (32 - SPLIT as usize + 1) << SPLIT;

/// Counted durations.
pub(crate) struct Durations([u64; BUCKETS]);

impl Default for Durations {
    fn default() -> Self {
        Self([0; BUCKETS])
    }
}

impl Durations {
    pub(crate) fn observe(&mut self, took: Duration) {
        let micros = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        self.0[bucket_of(micros)] += 1;
    }

    /// What this part of all calls took at most, in microseconds; none before the first call.
    pub(crate) fn quantile(&self, part: f64) -> Option<u64> {
        let total: u64 = self.0.iter().sum();
        let rank = ((total as f64 * part).ceil() as u64).max(1);
        let mut seen = 0;
        let bucket = self.0.iter().position(|count| {
            seen += count;
            seen >= rank
        })?;
        Some(last_of(bucket))
    }
}

fn bucket_of(micros: u32) -> usize {
    let power = micros.max(1).ilog2();
    if power < SPLIT {
        return micros as usize;
    }
    let within = (micros >> (power - SPLIT)) & ((1 << SPLIT) - 1);
    (((power - SPLIT + 1) << SPLIT) + within) as usize
}

/// The longest duration that a bucket counts.
fn last_of(bucket: usize) -> u64 {
    let (octave, within) = (bucket >> SPLIT, (bucket & ((1 << SPLIT) - 1)) as u64);
    match octave.checked_sub(1) {
        None => within,
        Some(shift) => ((within + 1 + (1 << SPLIT)) << shift) - 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_an_eighth_of_its_power_of_two_and_they_leave_no_gap() {
        let mut before = None;
        for bucket in 0..BUCKETS {
            let last = last_of(bucket);
            let first = before.map_or(0, |before: u64| before + 1);
            assert_eq!((bucket_of(first as u32), bucket_of(last as u32)), (bucket, bucket));
            assert!(last - first <= first / 8, "{first} to {last}");
            before = Some(last);
        }
        assert_eq!(before, Some(u64::from(u32::MAX)));
    }

    #[test]
    fn a_quantile_is_what_that_part_of_the_calls_took_at_most() {
        let mut durations = Durations::default();
        assert_eq!(durations.quantile(0.5), None);
        for millis in 1..=100 {
            durations.observe(Duration::from_millis(millis));
        }
        for (part, micros) in [(0.5, 50_000), (0.99, 99_000), (1.0, 100_000)] {
            let found = durations.quantile(part).unwrap();
            assert!(found >= micros && found <= micros + micros / 8, "{part}: {found}");
        }
        durations.observe(Duration::from_secs(100_000));
        assert_eq!(durations.quantile(1.0), Some(u64::from(u32::MAX)), "longer than any bucket");
    }
}
