//! The instances of one function, for triggers of every kind: a call takes one, uses it, and gives it back.
//!
//! [`InstancePool::take`] admits the call (a place of its function, a place of the node; a bounded queue before them)
//! and hands it an instance as a [`Lease`]: an idle one, or a new one. A call that ended well gives it back; a lease
//! that is dropped without that, as a trap, a time-out and a caller that goes away all do, ends its instance and no
//! other. So nobody ever meets an instance whose last call ended otherwise than well.
//!
//! What an instance is, is the trigger's business: [`Pooled`] says how one is made. Aggregates live in instances for
//! longer than a call and share them; they have a pool of their own in `commands`, with the same admission.

use crate::function::{Admitted, Function};
use ebb_domain::port::guest::CallError;
use parking_lot::Mutex;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// What the node sees of a function's instances.
pub(crate) trait Pool: Send + Sync {
    fn function(&self) -> &Function;

    /// Instances there are, in use or idle.
    fn instances(&self) -> usize;

    /// Drops instances that have had no work for longer than their function's idle time.
    fn reap(&self, now: Instant);

    /// Drops instances that are idle right now, to make room; whether there were any.
    fn reclaim(&self) -> bool;
}

/// What a pool keeps.
pub(crate) trait Pooled: Send + Sized + 'static {
    /// A new one. Dropped in the middle, it leaves nothing behind.
    fn make(function: &Function) -> impl Future<Output = Result<Self, CallError>> + Send;

    /// Calls that it has had.
    fn calls(&self) -> u32;
}

/// A function whose calls have an instance to themselves, each for as long as it takes.
pub(crate) struct InstancePool<I> {
    function: Function,
    /// The one used last is at the end.
    idle: Mutex<Vec<(I, Instant)>>,
    leased: AtomicUsize,
}

impl<I: Pooled> InstancePool<I> {
    /// The pool of a function, which has as many places as there may be instances.
    pub(crate) fn new(function: Function) -> Arc<Self> {
        Arc::new(Self { function, idle: Mutex::default(), leased: AtomicUsize::new(0) })
    }

    pub(crate) fn function(&self) -> &Function {
        &self.function
    }

    /// Waits for the call's turn, and for an instance.
    ///
    /// # Errors
    /// The queue is full, or no instance could be made.
    pub(crate) async fn take(self: &Arc<Self>) -> Result<Lease<I>, CallError> {
        let admitted = self.function.admit().await?;
        let leased = Leased::new(self.clone());
        // The one used last: its memory is still in the processor's caches, and the others may grow old.
        let idle = self.idle.lock().pop();
        if let Some((instance, _)) = idle {
            return Ok(Lease { instance, leased, _admitted: admitted });
        }
        let instance = self.function.make().await?;
        Ok(Lease { instance, leased, _admitted: admitted })
    }
}

impl<I: Pooled> Pool for InstancePool<I> {
    fn function(&self) -> &Function {
        &self.function
    }

    fn instances(&self) -> usize {
        self.idle.lock().len() + self.leased.load(Ordering::Relaxed)
    }

    fn reap(&self, now: Instant) {
        let idle = self.function.spec.instances.idle;
        self.idle.lock().retain(|(_, since)| now.saturating_duration_since(*since) < idle);
    }

    fn reclaim(&self) -> bool {
        !std::mem::take(&mut *self.idle.lock()).is_empty()
    }
}

/// An instance that belongs to one call, with the call's places. Dropping it ends the instance.
pub(crate) struct Lease<I: Pooled> {
    // Dropped in this order: the slot of an instance is free before another call may want one.
    instance: I,
    leased: Leased<I>,
    _admitted: Admitted,
}

impl<I: Pooled> Lease<I> {
    /// The call ended well: the instance may serve another, unless it has had its share of calls.
    pub(crate) fn give_back(self) {
        let Self { instance, leased, _admitted } = self;
        let pool = &leased.0;
        if instance.calls() < pool.function.spec.instances.reuse.get() {
            pool.idle.lock().push((instance, Instant::now()));
        }
    }
}

impl<I: Pooled> Deref for Lease<I> {
    type Target = I;

    fn deref(&self) -> &I {
        &self.instance
    }
}

impl<I: Pooled> DerefMut for Lease<I> {
    fn deref_mut(&mut self) -> &mut I {
        &mut self.instance
    }
}

/// Counts one instance that is being made or used.
struct Leased<I>(Arc<InstancePool<I>>);

impl<I> Leased<I> {
    fn new(pool: Arc<InstancePool<I>>) -> Self {
        pool.leased.fetch_add(1, Ordering::Relaxed);
        Self(pool)
    }
}

impl<I> Drop for Leased<I> {
    fn drop(&mut self) {
        self.0.leased.fetch_sub(1, Ordering::Relaxed);
    }
}
