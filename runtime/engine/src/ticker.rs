//! The epoch ticker: one thread that lets long calls be interrupted every 10 ms, more often while other guests wait
//! for the processor, and sleeps while nobody calls.

use crate::engines::Engines;
use crate::turns::Turns;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::thread::Thread;
use std::time::Duration;

/// Time between two ticks.
const TICK: Duration = Duration::from_millis(10);
/// Time between two ticks while all processors have guests.
const SHORT_TICK: Duration = Duration::from_millis(1);

#[derive(Default)]
struct Shared {
    running: AtomicUsize,
    ticks: AtomicU64,
    stop: AtomicBool,
}

/// Owner of the thread, which ends with it.
pub(crate) struct Ticker {
    shared: Arc<Shared>,
    thread: Thread,
}

impl Ticker {
    pub(crate) fn start(engines: &Arc<Engines>, turns: Arc<Turns>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let (engines, ours) = (Arc::downgrade(engines), shared.clone());
        let handle = std::thread::Builder::new()
            .name("ebb-epoch".into())
            .stack_size(64 << 10)
            .spawn(move || run(&engines, &ours, &turns))?;
        Ok(Self { shared, thread: handle.thread().clone() })
    }

    /// Ticks for as long as the result lives.
    pub(crate) fn run(&self) -> Running<'_> {
        if self.shared.running.fetch_add(1, Ordering::SeqCst) == 0 {
            // Costs a system call only if the thread has parked, at most once a tick.
            self.thread.unpark();
        }
        Running(&self.shared)
    }

    /// Ticks so far.
    pub(crate) fn ticks(&self) -> u64 {
        self.shared.ticks.load(Ordering::Relaxed)
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.thread.unpark();
    }
}

/// A call in flight.
pub(crate) struct Running<'a>(&'a Shared);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

fn run(engines: &Weak<Engines>, shared: &Shared, turns: &Turns) {
    while !shared.stop.load(Ordering::SeqCst) {
        if shared.running.load(Ordering::SeqCst) == 0 {
            // A call that begins right here has left a token: `park` returns at once.
            std::thread::park();
            continue;
        }
        // Not `park_timeout`: calls that come and go must not cut a tick short.
        std::thread::sleep(if turns.crowded() { SHORT_TICK } else { TICK });
        let Some(engines) = engines.upgrade() else { return };
        shared.ticks.fetch_add(1, Ordering::Relaxed);
        engines.tick();
    }
}
