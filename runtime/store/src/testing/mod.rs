//! For tests, here and elsewhere: the [conformance] suite that every [`EventLog`](ebb_domain::port::log::EventLog) passes,
//! that of all [`ModelStores`](ebb_domain::port::models::ModelStores) ([`models`]),
//! a [disk](ModelDisk) that fails on demand and forgets what was not synced, and a [clock](ManualClock) that tests move.

pub mod conformance;
pub mod fuzz;
mod model_disk;
pub mod models;
mod stepped;

pub use model_disk::{Crash, ModelDisk};
pub use stepped::SteppedLog;

use ebb_domain::port::Clock;
use ebb_domain::time::Timestamp;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A clock that stands still until it is moved.
#[derive(Debug)]
pub struct ManualClock(AtomicU64);

impl ManualClock {
    /// A clock that stands at noon of some day.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self(AtomicU64::new(1_700_006_400_000_000)))
    }

    /// Moves it forward.
    pub fn advance(&self, by: Duration) {
        self.0.fetch_add(by.as_micros() as u64, Ordering::SeqCst);
    }

    /// Sets it back, as wall clocks are sometimes.
    pub fn set_back(&self, by: Duration) {
        self.0.fetch_sub(by.as_micros() as u64, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::SeqCst))
    }
}
