//! Randomness that comes from a seed alone.

use parking_lot::Mutex;
use std::ops::Range;
use std::sync::Arc;

/// A generator. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Dice(Arc<Mutex<u64>>);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(seed)))
    }

    /// Another generator, whose numbers do not depend on how often this one is asked later.
    pub(crate) fn fork(&self) -> Self {
        Self::new(self.next())
    }

    /// SplitMix64.
    fn next(&self) -> u64 {
        let mut state = self.0.lock();
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = *state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number in the range; its first, if it is empty.
    pub(crate) fn roll(&self, range: Range<u64>) -> u64 {
        range.start + self.next() % range.end.saturating_sub(range.start).max(1)
    }

    pub(crate) fn index(&self, len: usize) -> usize {
        self.roll(0..len as u64) as usize
    }

    /// True so many times in a hundred.
    pub(crate) fn chance(&self, percent: u64) -> bool {
        self.roll(0..100) < percent
    }
}
