//! A clock that stands still until it is moved.

use ebb_domain::port::Clock;
use ebb_domain::time::Timestamp;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A wall clock under the test's control.
#[derive(Debug)]
pub struct ManualClock(AtomicU64);

impl ManualClock {
    /// Where a new one stands: 2013-01-01T00:00:00Z.
    pub const START: Timestamp = Timestamp(1_356_998_400_000_000);

    /// Moves it forward.
    pub fn advance(&self, by: Duration) {
        self.0.fetch_add(by.as_micros() as u64, Ordering::SeqCst);
    }

    /// Moves it anywhere, back too.
    pub fn set(&self, to: Timestamp) {
        self.0.store(to.0, Ordering::SeqCst);
    }
}

impl Default for ManualClock {
    fn default() -> Self {
        Self(AtomicU64::new(Self::START.0))
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::SeqCst))
    }
}
