//! Randomness that can be had again.

use std::ops::Range;
use std::time::{SystemTime, UNIX_EPOCH};

/// A generator whose seed is printed, so that a failed run can be run again with `EBB_TEST_SEED`.
#[derive(Debug)]
pub struct Dice {
    state: u64,
}

impl Dice {
    /// Seeded from `EBB_TEST_SEED`, or else from the clock.
    ///
    /// # Panics
    /// `EBB_TEST_SEED` is not a number.
    #[must_use]
    #[expect(clippy::print_stderr, reason = "shown by the test harness if the test fails")]
    pub fn seeded() -> Self {
        let seed = match std::env::var("EBB_TEST_SEED") {
            Ok(seed) => seed.parse().expect("EBB_TEST_SEED is a number"),
            Err(_) => SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_nanos() as u64),
        };
        eprintln!("EBB_TEST_SEED={seed} repeats this run");
        Self::new(seed)
    }

    /// Seeded by another one.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// Whether something that happens once in so many times happens now.
    pub fn once_in(&mut self, times: u64) -> bool {
        self.roll(0..times) == 0
    }

    /// One of them.
    ///
    /// # Panics
    /// There is none.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.roll(0..from.len() as u64) as usize]
    }

    /// Shuffles (Fisher-Yates).
    pub fn shuffle<T>(&mut self, what: &mut [T]) {
        for last in (1..what.len()).rev() {
            what.swap(last, self.roll(0..last as u64 + 1) as usize);
        }
    }

    /// The next number, anywhere in the range (SplitMix64; the bias of the remainder does not matter here).
    pub fn roll(&mut self, range: Range<u64>) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        range.start + (mixed ^ (mixed >> 31)) % (range.end - range.start)
    }
}
