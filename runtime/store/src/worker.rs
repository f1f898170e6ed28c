//! A thread that is there while there is work.
//!
//! A node may have a hundred open logs, most of them idle; so their threads end after a while without work and are started
//! again on demand. Both cost tens of microseconds, once in some seconds.

use parking_lot::Mutex;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// What a step of work left behind.
pub(crate) enum Next {
    /// There may be more.
    Now,
    /// There will be more after this time, or when [`Worker::hurry`] is called.
    After(Duration),
    /// Nothing, until [`Worker::wake`] is called.
    Idle,
}

/// Starts, wakes and ends the thread.
pub(crate) struct Worker {
    shared: Arc<Shared>,
    step: Arc<dyn Fn() -> Next + Send + Sync>,
}

struct Shared {
    name: String,
    idle: Duration,
    /// There is never a thread.
    idles: bool,
    /// Set by `wake`, cleared by the thread before it looks for work.
    awake: AtomicBool,
    stop: AtomicBool,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Worker {
    /// `step` does some of the work there is. The thread ends when there was none for `idle`.
    pub(crate) fn new(name: String, idle: Duration, step: impl Fn() -> Next + Send + Sync + 'static) -> Self {
        Self { shared: Arc::new(Shared::new(name, idle, false)), step: Arc::new(step) }
    }

    /// One that never works: others do what is to be done.
    pub(crate) fn idle(name: String) -> Self {
        Self { shared: Arc::new(Shared::new(name, Duration::ZERO, true)), step: Arc::new(|| Next::Idle) }
    }

    /// There is work.
    ///
    /// # Errors
    /// The system would not start a thread.
    pub(crate) fn wake(&self) -> io::Result<()> {
        if self.shared.idles {
            return Ok(());
        }
        if self.shared.awake.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        self.start_or_unpark().inspect_err(|_| self.shared.awake.store(false, Ordering::Release))
    }

    /// What was to be done later is to be done now.
    pub(crate) fn hurry(&self) {
        if let Some(thread) = &*self.shared.thread.lock() {
            thread.thread().unpark();
        }
    }

    fn start_or_unpark(&self) -> io::Result<()> {
        let mut thread = self.shared.thread.lock();
        if let Some(thread) = &*thread {
            thread.thread().unpark();
            return Ok(());
        }
        let (shared, step) = (Arc::clone(&self.shared), Arc::clone(&self.step));
        let started = thread::Builder::new().name(shared.name.clone()).spawn(move || shared.run(&*step))?;
        *thread = Some(started);
        Ok(())
    }

    /// Ends the thread once it has no work left for now, and waits for that.
    pub(crate) fn stop(&self) {
        self.shared.stop.store(true, Ordering::Release);
        let thread = self.shared.thread.lock().take();
        if let Some(thread) = thread
            && thread.thread().id() != thread::current().id()
        {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }

    #[cfg(test)]
    pub(crate) fn is_running(&self) -> bool {
        self.shared.thread.lock().is_some()
    }

    /// Waits for the thread to end by itself.
    #[cfg(test)]
    pub(crate) fn join(&self) {
        while self.is_running() {
            thread::yield_now();
        }
    }
}

impl Shared {
    fn new(name: String, idle: Duration, idles: bool) -> Self {
        let (awake, stop) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { name, idle, idles, awake, stop, thread: Mutex::new(None) }
    }

    fn run(&self, step: &(dyn Fn() -> Next + Send + Sync)) {
        let mut idle_since = Instant::now();
        loop {
            self.awake.store(false, Ordering::Release);
            match step() {
                Next::Now => {
                    idle_since = Instant::now();
                    continue;
                }
                _ if self.stop.load(Ordering::Acquire) => return,
                Next::After(delay) => {
                    // Waking is for work that is not known yet; this is. So `wake` costs its callers nothing meanwhile.
                    self.awake.store(true, Ordering::Release);
                    thread::park_timeout(delay);
                    idle_since = Instant::now();
                    continue;
                }
                Next::Idle => {}
            }
            if self.awake.load(Ordering::Acquire) {
                continue;
            }
            let left = self.idle.saturating_sub(idle_since.elapsed());
            if !left.is_zero() {
                thread::park_timeout(left);
                continue;
            }
            // `wake` sets the flag before it takes the lock: either it is seen here, or it sees that the thread is gone.
            let mut thread = self.thread.lock();
            if !self.awake.load(Ordering::Acquire) {
                *thread = None;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    #[test]
    fn a_worker_without_work_has_no_thread_and_gets_one_back_when_there_is_work() {
        let (todo, done) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let worker = {
            let (todo, done) = (Arc::clone(&todo), Arc::clone(&done));
            Worker::new("test".into(), Duration::ZERO, move || {
                if todo.swap(0, Ordering::SeqCst) == 0 {
                    return Next::Idle;
                }
                done.fetch_add(1, Ordering::SeqCst);
                Next::Now
            })
        };
        assert!(!worker.is_running());
        for round in 1..=3 {
            todo.store(1, Ordering::SeqCst);
            worker.wake().unwrap();
            worker.join();
            assert_eq!(done.load(Ordering::SeqCst), round);
        }
    }
}
