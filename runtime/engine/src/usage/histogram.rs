//! Counts by size, in a few fixed buckets: what metrics show.

/// Bounds in nanoseconds, from ten microseconds to a minute.
pub(super) const TIMES: [u64; 20] = [
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
    60_000_000_000,
];

/// Bounds in bytes, each twice the one before: from a page of WebAssembly to the most that a function may have.
pub(super) const SIZES: [u64; 15] = {
    let mut bounds = [64 << 10; 15];
    let mut at = 1;
    while at < bounds.len() {
        bounds[at] = bounds[at - 1] * 2;
        at += 1;
    }
    bounds
};

/// Buckets at most, with that of what is above all bounds.
const BUCKETS: usize = TIMES.len() + 1;

/// A histogram.
#[derive(Clone, Debug)]
pub struct Histogram {
    bounds: &'static [u64],
    counts: [u64; BUCKETS],
    sum: u64,
}

impl Histogram {
    pub(super) const fn of_times() -> Self {
        Self { bounds: &TIMES, counts: [0; BUCKETS], sum: 0 }
    }

    pub(super) const fn of_sizes() -> Self {
        Self { bounds: &SIZES, counts: [0; BUCKETS], sum: 0 }
    }

    pub(super) fn observe(&mut self, value: u64) {
        self.counts[self.bounds.partition_point(|bound| *bound < value)] += 1;
        self.sum = self.sum.saturating_add(value);
    }

    /// Adds what another one of the same kind has counted.
    pub fn add(&mut self, other: &Self) {
        debug_assert_eq!(self.bounds, other.bounds, "times with times, sizes with sizes");
        for (count, more) in self.counts.iter_mut().zip(other.counts) {
            *count += more;
        }
        self.sum = self.sum.saturating_add(other.sum);
    }

    /// Each upper bound, with how many values are at most that.
    pub fn cumulative(&self) -> impl Iterator<Item = (u64, u64)> {
        let mut count = 0;
        self.bounds.iter().zip(self.counts).map(move |(bound, more)| {
            count += more;
            (*bound, count)
        })
    }

    /// How many values there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// What they are together: nanoseconds, or bytes.
    #[must_use]
    pub const fn sum(&self) -> u64 {
        self.sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_counts_what_is_at_most_its_bound() {
        let mut histogram = Histogram::of_times();
        for nanos in [1, 10_000, 10_001, u64::MAX] {
            histogram.observe(nanos);
        }
        let mut other = Histogram::of_times();
        other.observe(25_000);
        histogram.add(&other);
        let counts: Vec<_> = histogram.cumulative().collect();
        assert_eq!((counts[0], counts[1], counts[19]), ((10_000, 2), (25_000, 4), (60_000_000_000, 4)));
        assert_eq!((histogram.count(), histogram.sum()), (5, u64::MAX));
    }

    #[test]
    fn bounds_rise() {
        assert!(TIMES.is_sorted() && SIZES.len() < BUCKETS);
        assert_eq!((SIZES[0], SIZES[14]), (64 << 10, 1 << 30));
    }
}
