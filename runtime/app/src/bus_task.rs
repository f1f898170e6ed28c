//! Tasks that work with the broker until they are told to stop: what fails and passes is tried again, and what does not
//! pass by itself halts them, until it was put right.

use ebb_domain::port::bus::{BusError, BusErrorKind};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tracing::{error, warn};

/// How long after a failure it is tried again, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// How often it is looked whether what halted it was put right.
const HALTED: Duration = Duration::from_secs(15);

/// How long to wait after a failure of the broker, the how manieth in a row.
pub(crate) fn pause(error: &BusError, failures: u32) -> Duration {
    // A topic that is missing is made any moment.
    if !error.passes() && error.kind != BusErrorKind::MissingTopic {
        return HALTED;
    }
    backoff(failures)
}

fn backoff(failures: u32) -> Duration {
    RETRY.0.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(RETRY.1)
}

/// Why work does not go on as it was.
#[derive(Debug)]
pub(crate) enum Stop {
    /// It was told to stop.
    Stopped,
    /// The broker.
    Bus(BusError),
    /// The log, or something else on our side: it passes.
    Log(String),
}

impl From<BusError> for Stop {
    fn from(error: BusError) -> Self {
        Self::Bus(error)
    }
}

/// What came of an attempt that failed.
#[derive(Clone, Debug)]
pub(crate) enum Trouble {
    /// It passes; it is tried again.
    Retrying(String),
    /// It does not pass by itself.
    Halted(String),
}

/// How a task is doing, for whoever has just started it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Doing {
    /// Nothing is known yet.
    Beginning,
    /// It works, or would if there were something to do.
    Well,
    /// It does not, and why.
    Trouble(String),
}

/// A running task.
pub(crate) struct BusTask {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl BusTask {
    /// Starts one, which is told by the signal when to stop.
    pub(crate) fn spawn<F: Future<Output = ()> + Send + 'static>(work: impl FnOnce(StopSignal) -> F) -> Self {
        let (stop, stopped) = watch::channel(false);
        Self { stop, task: tokio::spawn(work(StopSignal(stopped))) }
    }

    /// Tells it to stop, and waits until it has.
    pub(crate) async fn stopped(self) {
        self.stop.send_replace(true);
        if let Err(failure) = self.task.await
            && failure.is_panic()
        {
            error!(%failure, "a task that works with the broker panicked");
        }
    }
}

/// When to stop.
#[derive(Clone)]
pub(crate) struct StopSignal(watch::Receiver<bool>);

impl StopSignal {
    /// Waits until it is time to stop: told so, or left alone.
    pub(crate) async fn stopped(&mut self) {
        let _ = self.0.wait_for(|stop| *stop).await;
    }

    /// Does the work, unless it is time to stop before it is done.
    pub(crate) async fn unless_stopped<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Stop> {
        tokio::select! {
            biased;
            () = self.stopped() => Err(Stop::Stopped),
            done = work => Ok(done),
        }
    }
}

/// Work that is attempted again and again.
pub(crate) trait Work: Send {
    /// Works until something happens that ends the attempt. The next one begins at once after one that ended well.
    fn attempt(&mut self, stop: &mut StopSignal) -> impl Future<Output = Result<(), Stop>> + Send;

    /// Grows with what was achieved: after an attempt that got on, the next failure is a first one.
    fn achieved(&self) -> u64;

    /// What does not happen while an attempt has failed, as people are told.
    const UNDONE: &str;

    /// An attempt failed: to be shown.
    fn troubled(&mut self, trouble: Trouble);
}

/// Attempts the work until it is told to stop. `again` says that what halted it was perhaps put right.
pub(crate) async fn attempt_until_stopped(work: &mut impl Work, again: &Notify, mut stop: StopSignal) {
    let mut failures = 0;
    loop {
        let before = work.achieved();
        let Err(why) = work.attempt(&mut stop).await else { continue };
        failures = if work.achieved() > before { 1 } else { failures + 1 };
        let (wait, trouble) = match why {
            Stop::Stopped => return,
            Stop::Bus(error) if !error.passes() => (pause(&error, failures), Trouble::Halted(error.message)),
            Stop::Bus(BusError { message, .. }) | Stop::Log(message) => {
                (backoff(failures), Trouble::Retrying(message))
            }
        };
        tell(work, trouble);
        tokio::select! {
            biased;
            () = stop.stopped() => return,
            () = again.notified() => failures = 0,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

fn tell<W: Work>(work: &mut W, trouble: Trouble) {
    match &trouble {
        Trouble::Retrying(error) => warn!(%error, "{} for now; trying again", W::UNDONE),
        Trouble::Halted(reason) => error!(%reason, "{}", W::UNDONE),
    }
    work.troubled(trouble);
}
