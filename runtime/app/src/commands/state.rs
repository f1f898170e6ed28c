//! An aggregate's state as it was: its events folded again, from the first, in an instance of its own. Neither what is
//! warm nor what a snapshot says has a part in it, so that it also shows when one of those is wrong.

use super::AggregateFunction;
use crate::app::App;
use bytes::Bytes;
use ebb_domain::digest::Digest;
use ebb_domain::event::Revision;
use ebb_domain::limits::InstancePolicy;
use ebb_domain::port::guest::{CallError, CommandModule, FunctionSpec, PastEvent, TriggerKind};
use ebb_domain::port::log::{EventLog, ReadError, ReadLimits};
use ebb_domain::stream::StreamId;
use std::num::NonZeroU32;
use std::time::Duration;
use thiserror::Error;

/// Events that are folded for one answer at most.
pub const MAX_EVENTS: u64 = 100_000;
/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is tried again when the instance was lost, as a busy node may do to any.
const ATTEMPTS: u32 = 3;

/// The state of an aggregate after one of its events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PastState {
    /// The last event that is in it.
    pub revision: Revision,
    /// The module that folded, which is the one that serves now.
    pub module: Digest,
    /// Its snapshot: JSON from the SDK, any bytes from others.
    pub data: Bytes,
}

/// Why a state could not be shown.
#[derive(Debug, Error)]
pub enum StateError {
    /// The stream is of no aggregate that is deployed: nobody can fold it.
    #[error("this app has no aggregate `{aggregate}`; it has {known}")]
    UnknownAggregate {
        /// The stream's category.
        aggregate: String,
        /// Those there are, for people.
        known: String,
    },
    /// The stream does not go so far.
    #[error("stream `{stream}` {}", ends_at(*.last))]
    NoSuchRevision {
        /// The stream.
        stream: String,
        /// Its last durable event, if it has any.
        last: Option<Revision>,
    },
    /// More than is folded for one answer.
    #[error("{events} events lead to this revision, and a state is folded from {MAX_EVENTS} at most")]
    TooManyEvents {
        /// How many lead there.
        events: u64,
        /// The stream's last event.
        last: Revision,
    },
    /// The module makes no snapshots, which are the only way to see a state.
    #[error("the module of aggregate `{0}` makes no snapshots")]
    NotShown(String),
    /// It took too long.
    #[error("folding took longer than {PATIENCE:?}")]
    OutOfTime,
    /// As many states as an app folds at once are being folded.
    #[error("several states of this app are being folded already")]
    Busy,
    /// The module failed.
    #[error(transparent)]
    Module(#[from] CallError),
    /// The log could not be read.
    #[error(transparent)]
    Log(#[from] ReadError),
}

fn ends_at(last: Option<Revision>) -> String {
    last.map_or_else(|| "has no events".to_owned(), |last| format!("ends at revision {last}"))
}

impl App {
    /// The state of a stream's aggregate after the event of a revision, or after its last durable event. Changes nothing,
    /// and runs beside what serves. Dropping the future ends it.
    ///
    /// # Errors
    /// There is no such revision, it can't be folded, or not within the bounds.
    pub async fn state_at(
        &self,
        stream: &StreamId,
        revision: Option<Revision>,
    ) -> Result<PastState, StateError> {
        let _place = self.folding().try_acquire().map_err(|_| StateError::Busy)?;
        let function = self.aggregate(stream.category()).await?;
        let own = function.spec.instances;
        let module = self.deps().engine.commands(FunctionSpec {
            app: self.name().clone(),
            function: format!("state.{}", function.spec.name).into(),
            trigger: TriggerKind::Other,
            module: function.digest,
            limits: function.spec.limits,
            capabilities: Default::default(),
            secrets: Default::default(),
            instances: InstancePolicy {
                reuse: NonZeroU32::MIN,
                aggregates: NonZeroU32::MIN,
                warm: 0,
                idle: Duration::from_secs(1),
                ..own
            },
        })?;
        let folding = state_at(&**self.log(), &function, &*module, stream, revision);
        tokio::time::timeout(PATIENCE, folding).await.unwrap_or(Err(StateError::OutOfTime))
    }
}

/// Folds in instances of `module`, a module of `function`'s bytes.
pub(super) async fn state_at(
    log: &dyn EventLog,
    function: &AggregateFunction,
    module: &dyn CommandModule,
    stream: &StreamId,
    revision: Option<Revision>,
) -> Result<PastState, StateError> {
    let no_such_revision = |last| StateError::NoSuchRevision { stream: stream.to_string(), last };
    let head = log.head(stream)?.revision;
    let wanted = match revision {
        Some(wanted) if Some(wanted) > head => return Err(no_such_revision(head)),
        wanted => wanted.or(head).ok_or_else(|| no_such_revision(None))?,
    };
    if wanted.0 >= MAX_EVENTS {
        return Err(StateError::TooManyEvents { events: wanted.0 + 1, last: head.unwrap_or(wanted) });
    }
    let mut attempt = 1;
    loop {
        match fold(log, module, stream, wanted).await {
            // What is staged and not durable is not shown: the head may be further than the log lets anyone read.
            Ok((Some(reached), data)) if reached == wanted || revision.is_none() => {
                let data = data.ok_or_else(|| StateError::NotShown(function.spec.name.to_string()))?;
                return Ok(PastState { revision: reached, module: function.digest, data });
            }
            Ok((reached, _)) => return Err(no_such_revision(reached)),
            Err(StateError::Module(CallError::InstanceLost)) if attempt < ATTEMPTS => attempt += 1,
            Err(error) => return Err(error),
        }
    }
}

async fn fold(
    log: &dyn EventLog,
    module: &dyn CommandModule,
    stream: &StreamId,
    to: Revision,
) -> Result<(Option<Revision>, Option<Bytes>), StateError> {
    let mut aggregate = module.open(stream, None).await?;
    let mut reached = None;
    while reached < Some(to) {
        let mut events = log.read_stream(stream, Revision::after(reached), ReadLimits::PAGE).await?;
        events.retain(|event| event.revision <= to);
        let Some(last) = events.last().map(|event| event.revision) else { break };
        let past: Vec<PastEvent> = events.iter().map(PastEvent::from).collect();
        aggregate.apply(&past).await?;
        reached = Some(last);
    }
    Ok((reached, aggregate.snapshot().await?))
}
