//! Projection modules: calls on pooled instances, each with an instance to itself.

use crate::bindings::EventIn;
use crate::function::{Function, Live, Pool};
use ebb_domain::event::StoredEvent;
use ebb_domain::port::Future;
use ebb_domain::port::guest::{ApplyError, CallError, ProjectionModule, SharedRows};
use ebb_domain::time::Timestamp;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;
use tokio::sync::Semaphore;

/// A deployed projection module.
pub(crate) struct Projection {
    function: Function,
    /// Places for instances, in use or idle.
    places: Semaphore,
    idle: Mutex<Vec<(Live, Instant)>>,
    in_use: AtomicUsize,
}

impl Projection {
    pub(crate) fn new(function: Function) -> Self {
        let places = Semaphore::new(function.spec.instances.max.get() as usize);
        Self { function, places, idle: Mutex::default(), in_use: AtomicUsize::new(0) }
    }

    async fn apply(&self, events: &[StoredEvent], rows: SharedRows) -> Result<(), ApplyError> {
        let function = &self.function;
        let _place = self
            .places
            .acquire()
            .await
            .map_err(|_| CallError::Failed("the engine is shutting down".into()))?;
        let _admitted = function.admit().await?;
        let _in_use = InUse::new(&self.in_use);
        // The one used last: its memory is still in the processor's caches, and the others may grow old.
        let idle = self.idle.lock().pop();
        // From here on the instance is this future's own: an error, or the caller going away, drops it.
        let mut live = match idle {
            Some((live, _)) => live,
            None => {
                function.node.instance_made();
                function.instantiate().await?
            }
        };
        let time = events.last().map_or(Timestamp(0), |event| event.commit.recorded_at);
        let applied = {
            let events: Vec<_> = events.iter().map(EventIn::from).collect();
            live.project(function, &events, time, rows).await?
        };
        if let Err(failure) = applied {
            let index = failure.index as usize;
            if index >= events.len() {
                return Err(ApplyError::Call(CallError::Trapped(format!(
                    "it said that event {index} of a batch of {} could not be applied: {}",
                    events.len(),
                    failure.message
                ))));
            }
            return Err(ApplyError::Event { index, message: failure.message });
        }
        if live.calls < function.spec.instances.reuse.get() {
            self.idle.lock().push((live, Instant::now()));
        }
        Ok(())
    }
}

/// An instance that is being made or called.
struct InUse<'a>(&'a AtomicUsize);

impl<'a> InUse<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for InUse<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The handle that callers share.
pub(crate) struct ProjectionHandle(pub(crate) Arc<Projection>);

impl ProjectionModule for ProjectionHandle {
    fn apply<'a>(
        &'a self,
        events: &'a [StoredEvent],
        rows: SharedRows,
    ) -> Future<'a, Result<(), ApplyError>> {
        Box::pin(self.0.function.within_wall(self.0.apply(events, rows)))
    }
}

impl Pool for Projection {
    fn function(&self) -> &Function {
        &self.function
    }

    fn instances(&self) -> usize {
        self.idle.lock().len() + self.in_use.load(Ordering::Relaxed)
    }

    fn reap(&self, now: Instant) {
        let idle = self.function.spec.instances.idle;
        self.idle.lock().retain(|(_, since)| now.saturating_duration_since(*since) < idle);
    }

    fn reclaim(&self) -> bool {
        !std::mem::take(&mut *self.idle.lock()).is_empty()
    }
}
