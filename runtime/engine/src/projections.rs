//! Projection modules: calls on pooled instances, each with an instance to itself.

use crate::bindings::{EventIn, FailureOut};
use crate::live::Live;
use crate::pool::InstancePool;
use crate::program;
use crate::usage::{Tab, Work, links};
use ebb_domain::event::StoredEvent;
use ebb_domain::port::Future;
use ebb_domain::port::guest::{ApplyError, CallError, ProjectionModule, SharedRows};
use ebb_domain::time::Timestamp;
use std::pin::pin;
use std::sync::Arc;

/// A deployed projection module, for callers to share.
pub(crate) struct Projection(pub(crate) Arc<InstancePool<Live>>);

impl Projection {
    async fn call(&self, work: Work<'_>, events: &[StoredEvent], rows: SharedRows) -> Result<(), ApplyError> {
        if work.load().await?.is_program() {
            return program::project(&self.0, work.tab, events, &rows).await;
        }
        // An error from here on, or the caller going away, ends the instance: `apply` may have stopped half-way.
        let mut live = self.0.take(work.tab).await?;
        let time = events.last().map_or(Timestamp(0), |event| event.commit.recorded_at);
        let applied = {
            let events: Vec<_> = events.iter().map(EventIn::from).collect();
            live.project(work, &events, time, rows).await?
        };
        if let Err(failure) = applied {
            return Err(failed(events, failure));
        }
        live.give_back();
        Ok(())
    }
}

/// The error that a module's own word is, unless no event of the batch can be meant.
pub(crate) fn failed(events: &[StoredEvent], failure: FailureOut) -> ApplyError {
    let index = failure.index as usize;
    if index >= events.len() {
        return ApplyError::Call(CallError::Trapped(format!(
            "it said that event {index} of a batch of {} could not be applied: {}",
            events.len(),
            failure.message
        )));
    }
    ApplyError::Event { index, message: failure.message }
}

impl ProjectionModule for Projection {
    fn apply<'a>(
        &'a self,
        events: &'a [StoredEvent],
        rows: SharedRows,
    ) -> Future<'a, Result<(), ApplyError>> {
        Box::pin(async move {
            let function = self.0.function();
            let tab = match function.node.observer {
                Some(_) => Tab::linked(links(events)),
                None => Tab::invocation(),
            };
            let work = Work::new(function, &tab);
            work.within_wall(pin!(self.call(work, events, rows))).await
        })
    }
}
