//! What functions used: a record of each invocation, and sums of them since the node began.
//!
//! An *invocation* is what a trigger asked for: one command that was decided, one lane of a projection's batch, one
//! request of an HTTP function, one call of an event function. What an aggregate needs besides (being opened, folding events, snapshots, instances made
//! before anybody calls) is *upkeep*: its time counts, and it is no invocation, unless it fails: then it is the one that
//! failed.
//!
//! `work` follows one of them and writes its record; `ledger` adds them up.

mod histogram;
mod ledger;
mod work;

pub use histogram::Histogram;
pub(crate) use ledger::{Account, Ledger};
pub use ledger::{ErrorCount, FunctionUsage, Starts};
pub(crate) use work::{Opened, Tab, Work};

use ebb_domain::event::StoredEvent;
use ebb_domain::name::AppName;
use ebb_domain::port::guest::{ApplyError, CallError, TriggerKind};
use ebb_domain::text::Text;
use ebb_domain::trace::Trace;
use serde::Serialize;
use std::time::Duration;

/// What an invocation found of its function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Start {
    /// An instance that was there.
    Warm,
    /// Its code in memory: an instance was made.
    Loaded,
    /// Nothing but the artefact on disk.
    Cold,
}

impl Start {
    /// As labels and log lines have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Warm => "warm",
            Self::Loaded => "loaded",
            Self::Cold => "cold",
        }
    }
}

/// How an invocation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Well.
    Ok,
    /// With a domain "no", which is an answer.
    Refused,
    /// The caller went away.
    Canceled,
    /// It found no place, slot or memory. It counts as throttled, not as an invocation.
    Overloaded,
    /// [`CallError::InstanceLost`] and [`CallError::BadSnapshot`]: it is done again, and that counts.
    Again,
    /// The module says that an event could not be applied.
    EventFailed,
    /// [`CallError::Trapped`].
    Trapped,
    /// [`CallError::OutOfMemory`].
    OutOfMemory,
    /// [`CallError::OutOfCpu`].
    OutOfCpu,
    /// [`CallError::OutOfTime`].
    OutOfTime,
    /// [`CallError::OutputTooLarge`].
    OutputTooLarge,
    /// [`CallError::BadAnswer`].
    BadAnswer,
    /// [`CallError::Failed`].
    Failed,
}

impl Outcome {
    /// Those that are errors of the function.
    pub const ERRORS: [Self; 8] = [
        Self::EventFailed,
        Self::Trapped,
        Self::OutOfMemory,
        Self::OutOfCpu,
        Self::OutOfTime,
        Self::OutputTooLarge,
        Self::BadAnswer,
        Self::Failed,
    ];

    /// As labels and log lines have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Refused => "refused",
            Self::Canceled => "canceled",
            Self::Overloaded => "overloaded",
            Self::Again => "again",
            Self::EventFailed => "event_failed",
            Self::Trapped => "trapped",
            Self::OutOfMemory => "out_of_memory",
            Self::OutOfCpu => "out_of_cpu",
            Self::OutOfTime => "out_of_time",
            Self::OutputTooLarge => "output_too_large",
            Self::BadAnswer => "bad_answer",
            Self::Failed => "failed",
        }
    }

    /// Whether it is an error of the function.
    #[must_use]
    pub fn is_error(self) -> bool {
        Self::ERRORS.contains(&self)
    }
}

impl From<&CallError> for Outcome {
    fn from(error: &CallError) -> Self {
        match error {
            CallError::Trapped(_) => Self::Trapped,
            CallError::OutOfMemory { .. } => Self::OutOfMemory,
            CallError::OutOfCpu { .. } => Self::OutOfCpu,
            CallError::OutOfTime { .. } => Self::OutOfTime,
            CallError::OutputTooLarge(_) => Self::OutputTooLarge,
            CallError::BadAnswer(_) => Self::BadAnswer,
            CallError::Overloaded { .. } => Self::Overloaded,
            CallError::InstanceLost | CallError::BadSnapshot(_) => Self::Again,
            CallError::Failed(_) => Self::Failed,
        }
    }
}

impl From<&ApplyError> for Outcome {
    fn from(error: &ApplyError) -> Self {
        match error {
            ApplyError::Event { .. } | ApplyError::Poison { .. } => Self::EventFailed,
            ApplyError::Call(error) => error.into(),
        }
    }
}

/// What one invocation came to.
#[derive(Clone, Debug)]
pub struct Invocation<'a> {
    /// The app.
    pub app: &'a AppName,
    /// `aggregate.flight`, `projection.delays`, `function.hello`.
    pub function: &'a Text,
    /// What called it.
    pub trigger: TriggerKind,
    /// What it found.
    pub start: Start,
    /// How it ended.
    pub outcome: Outcome,
    /// Waiting for a place.
    pub waited: Duration,
    /// Loading the module and making instances, where that was needed.
    pub init: Duration,
    /// The rest of its time.
    pub duration: Duration,
    /// Computing time.
    pub cpu: Duration,
    /// What it is billed for.
    pub billed_millis: u64,
    /// Memories and tables of its instance at their largest.
    pub memory_bytes: u64,
    /// What they may have.
    pub memory_limit_bytes: u64,
    /// The span that it is, or its caller's where nobody observes.
    pub trace: Option<&'a Trace>,
    /// Spans that the events of a batch came from.
    pub links: &'a [Trace],
}

/// Follows invocations, for traces. On the path of every call: it must not wait.
pub trait Observer: Send + Sync + 'static {
    /// An invocation begins; the span that it is, below its caller's or the first of a trace.
    fn begin(&self, caller: Option<&Trace>) -> Trace;

    /// An invocation has ended, just now.
    fn ended(&self, invocation: &Invocation<'_>);
}

/// Spans that one batch is linked to at most.
const LINKS: usize = 32;

/// The spans that events came from, each once.
pub(crate) fn links(events: &[StoredEvent]) -> Vec<Trace> {
    let mut links: Vec<Trace> = Vec::new();
    for parent in events.iter().filter_map(|event| event.commit.traceparent.as_deref()) {
        if let Some(trace) = Trace::parse(parent, None)
            && !links.contains(&trace)
        {
            links.push(trace);
            if links.len() == LINKS {
                break;
            }
        }
    }
    links
}

/// Milliseconds that are billed for an invocation: its initialisation and its duration, each begun one whole.
pub(crate) fn billed_millis(init: Duration, duration: Duration) -> u64 {
    ((init + duration).as_nanos().div_ceil(1_000_000) as u64).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_millisecond_that_was_begun_is_billed_and_initialisation_is_as_well() {
        let micros = Duration::from_micros;
        for (init, duration, billed) in [(0, 0, 1), (0, 1, 1), (0, 1000, 1), (0, 1001, 2), (600, 600, 2)] {
            assert_eq!(billed_millis(micros(init), micros(duration)), billed, "{init} + {duration} us");
        }
    }
}
