//! Computing time of calls, measured while the guest runs and not while it waits for its turn.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// The computing time of one instance's current call.
#[derive(Debug)]
pub(crate) struct Meter {
    base: Instant,
    /// Nanoseconds in polls that have returned.
    spent: AtomicU64,
    /// When the current poll began, in nanoseconds since `base`.
    since: AtomicU64,
}

impl Default for Meter {
    fn default() -> Self {
        Self { base: Instant::now(), spent: AtomicU64::new(0), since: AtomicU64::new(0) }
    }
}

impl Meter {
    fn now(&self) -> u64 {
        self.base.elapsed().as_nanos() as u64
    }

    /// A call begins.
    pub(crate) fn begin(&self) {
        self.spent.store(0, Ordering::Relaxed);
    }

    /// What the call has spent; for use while it runs.
    pub(crate) fn spent(&self) -> Duration {
        let current = self.now().saturating_sub(self.since.load(Ordering::Relaxed));
        Duration::from_nanos(self.spent.load(Ordering::Relaxed) + current)
    }

    /// What the call spent in all, in nanoseconds; for use once it has ended.
    pub(crate) fn total(&self) -> u64 {
        self.spent.load(Ordering::Relaxed)
    }
}

/// A call whose polls are measured.
pub(crate) struct Metered<'a, F> {
    meter: &'a Meter,
    call: Pin<&'a mut F>,
}

impl<'a, F> Metered<'a, F> {
    pub(crate) fn new(meter: &'a Meter, call: Pin<&'a mut F>) -> Self {
        Self { meter, call }
    }
}

impl<F: Future> Future for Metered<'_, F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let began = self.meter.now();
        self.meter.since.store(began, Ordering::Relaxed);
        let result = self.call.as_mut().poll(context);
        self.meter.spent.fetch_add(self.meter.now() - began, Ordering::Relaxed);
        result
    }
}
