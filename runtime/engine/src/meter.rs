//! Computing time of calls, measured while the guest runs and not while it waits for its turn.

use crate::turns::Turn;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

/// The computing time of one instance's current call.
#[derive(Debug)]
pub(crate) struct Meter {
    base: Instant,
    /// Nanoseconds in polls that have returned.
    spent: AtomicU64,
    /// When the current poll began, in nanoseconds since `base`.
    since: AtomicU64,
    /// A turn of the call goes on right now.
    in_turn: AtomicBool,
    /// The guest paused at a tick, and wants another turn.
    paused: AtomicBool,
}

impl Default for Meter {
    fn default() -> Self {
        Self {
            base: Instant::now(),
            spent: AtomicU64::new(0),
            since: AtomicU64::new(0),
            in_turn: AtomicBool::new(false),
            paused: AtomicBool::new(false),
        }
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

    /// The guest pauses: whether its turn ends with that, so that its next turn wakes it.
    pub(crate) fn pause(&self) -> bool {
        let in_turn = self.in_turn.load(Ordering::Relaxed);
        if in_turn {
            self.paused.store(true, Ordering::Relaxed);
        }
        in_turn
    }

    /// What the call spent in all, in nanoseconds; for use once it has ended.
    pub(crate) fn total(&self) -> u64 {
        self.spent.load(Ordering::Relaxed)
    }
}

/// A call whose polls are measured, each in a turn of its own.
pub(crate) struct Metered<'a, F> {
    meter: &'a Meter,
    turn: Turn,
    call: Pin<&'a mut F>,
}

impl<'a, F> Metered<'a, F> {
    pub(crate) fn new(meter: &'a Meter, turn: Turn, call: Pin<&'a mut F>) -> Self {
        Self { meter, turn, call }
    }
}

impl<F: Future> Future for Metered<'_, F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        ready!(self.turn.poll_begin(context));
        let meter = self.meter;
        meter.in_turn.store(true, Ordering::Relaxed);
        let began = meter.now();
        meter.since.store(began, Ordering::Relaxed);
        let result = self.call.as_mut().poll(context);
        let spent = meter.now() - began;
        meter.spent.fetch_add(spent, Ordering::Relaxed);
        meter.in_turn.store(false, Ordering::Relaxed);
        let paused = meter.paused.swap(false, Ordering::Relaxed) && result.is_pending();
        self.turn.end(Duration::from_nanos(spent), paused.then_some(&*context));
        result
    }
}
