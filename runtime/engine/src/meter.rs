//! Computing time of calls, measured while the guest runs and not while it waits for its turn.
//!
//! A limit is a protection: for it counts the time that polls take, which is at hand at every tick. The record is a
//! bill: in it is only time on a processor.

use crate::turns::Turn;
use crate::usage::Work;
use rustix::time::{ClockId, clock_gettime};
use std::cell::Cell;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

/// The computing time of one instance's current call, and what its memory has.
#[derive(Debug)]
pub(crate) struct Meter {
    base: Instant,
    /// Nanoseconds in polls that have returned.
    spent: AtomicU64,
    /// When the current poll began, in nanoseconds since `base`.
    since: AtomicU64,
    /// Bytes of the instance's memories and tables.
    memory: AtomicU64,
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
            memory: AtomicU64::new(0),
            in_turn: AtomicBool::new(false),
            paused: AtomicBool::new(false),
        }
    }
}

impl Meter {
    fn since_base(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.base).as_nanos() as u64
    }

    /// A call begins.
    pub(crate) fn begin(&self) {
        self.spent.store(0, Ordering::Relaxed);
    }

    /// What the call has spent; for use while it runs.
    pub(crate) fn spent(&self) -> Duration {
        let now = self.since_base(Instant::now());
        let current = now.saturating_sub(self.since.load(Ordering::Relaxed));
        Duration::from_nanos(self.spent.load(Ordering::Relaxed) + current)
    }

    /// The instance's memory has grown to this.
    pub(crate) fn has_memory(&self, bytes: u64) {
        self.memory.store(bytes, Ordering::Relaxed);
    }

    /// The guest pauses: whether its turn ends with that, so that its next turn wakes it.
    pub(crate) fn pause(&self) -> bool {
        let in_turn = self.in_turn.load(Ordering::Relaxed);
        if in_turn {
            self.paused.store(true, Ordering::Relaxed);
        }
        in_turn
    }
}

/// A call whose polls are measured, each in a turn of its own; the first in one that there is for it already, perhaps.
pub(crate) struct Metered<'a, F> {
    meter: &'a Meter,
    work: Work<'a>,
    /// None before the first poll, and once it has been given back.
    turn: Option<Turn>,
    /// It is the tab's, which gets it back if the call does not wait for anything.
    is_lent: bool,
    call: Pin<&'a mut F>,
}

impl<'a, F> Metered<'a, F> {
    pub(crate) fn new(meter: &'a Meter, work: Work<'a>, call: Pin<&'a mut F>) -> Self {
        let turn = work.tab.take_turn();
        Self { meter, work, is_lent: turn.is_some(), turn, call }
    }
}

impl<F: Future> Future for Metered<'_, F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let (meter, work) = (self.meter, self.work);
        let turn = self.turn.get_or_insert_with(|| work.function.turn());
        ready!(turn.poll_begin(context));
        meter.in_turn.store(true, Ordering::Relaxed);
        let began = Computing::begin();
        meter.since.store(meter.since_base(began.0), Ordering::Relaxed);
        let result = self.call.as_mut().poll(context);
        let (took, computed) = began.end();
        meter.spent.fetch_add(took.as_nanos() as u64, Ordering::Relaxed);
        work.tab.computed(computed, meter.memory.load(Ordering::Relaxed));
        meter.in_turn.store(false, Ordering::Relaxed);
        let paused = meter.paused.swap(false, Ordering::Relaxed) && result.is_pending();
        // A turn is a processor that others can't have: also while its thread does not run.
        match self.turn.take() {
            Some(mut turn) if self.is_lent && result.is_ready() => {
                turn.goes_on(took);
                work.tab.lend_turn(turn);
            }
            Some(mut turn) => {
                turn.end(took, paused.then_some(&*context));
                self.turn = Some(turn);
            }
            None => {}
        }
        result
    }
}

/// How old a reading of the thread's clock may be when a poll begins, and how long a poll may take before it is read
/// at its end.
const FRESH: Duration = Duration::from_micros(500);

thread_local! {
    /// The thread's computing time, and when it was read.
    static READING: Cell<Option<(Instant, Duration)>> = const { Cell::new(None) };
}

/// A stretch of computing on one thread. The thread's own clock tells time on a processor from time without one, and
/// takes a system call, 20 times what the wall's takes: as long as a short call of a guest. So it is read at the
/// beginning only where the last reading is half a millisecond old, and at the end of a stretch that took longer than
/// that: a short stretch is taken for computing (the scheduler's own slices are longer), and a long one for no more
/// than the thread has computed since the reading.
struct Computing(Instant);

impl Computing {
    fn begin() -> Self {
        let now = Instant::now();
        let is_fresh = |(read, _): (Instant, _)| now.duration_since(read) < FRESH;
        if !READING.get().is_some_and(is_fresh) {
            READING.set(Some((now, thread_time())));
        }
        Self(now)
    }

    /// What it took, and how much of that was computing.
    fn end(self) -> (Duration, Duration) {
        let took = self.0.elapsed();
        match READING.get() {
            Some((_, before)) if took >= FRESH => (took, took.min(thread_time().saturating_sub(before))),
            _ => (took, took),
        }
    }
}

fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_is_kept_off_the_processor_does_not_compute() {
        let long = FRESH * 40;
        let began = Computing::begin();
        std::thread::sleep(long);
        let (took, computed) = began.end();
        assert!(took >= long && computed < took / 2, "{computed:?} of {took:?}");

        let began = Computing::begin();
        let until = thread_time() + long;
        while thread_time() < until {}
        let (took, computed) = began.end();
        assert!(computed <= took && computed >= long, "{computed:?} of {took:?}");
    }
}
