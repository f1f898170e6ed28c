//! The instances of one function, for triggers of every kind: a call takes one, uses it, and gives it back.
//!
//! [`InstancePool::take`] admits the call (a place of its function, a place of the node; a bounded queue before them)
//! and hands it an instance as a [`Lease`]: an idle one, or a new one. A call that ended well gives it back; a lease
//! that is dropped without that, as a trap, a time-out and a caller that goes away all do, ends its instance and no
//! other. So nobody ever meets an instance whose last call ended otherwise than well.
//!
//! What an instance is, is the trigger's business: [`Pooled`] says how one is made. Aggregates live in instances for
//! longer than a call and share them; they have a pool of their own in `commands`, with the same admission.

use crate::function::{Admitted, Function, NodePlace};
use crate::module::Loaded;
use crate::usage::{Tab, Work};
use ebb_domain::port::guest::CallError;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

/// What the node sees of a function's instances.
pub(crate) trait Pool: Send + Sync {
    fn function(&self) -> &Function;

    /// Instances there are, in use or idle.
    fn instances(&self) -> usize;

    /// Drops instances that have had no work for longer than their function's idle time; `now` is in milliseconds of
    /// the node.
    fn reap(&self, now: u64);

    /// Drops instances that are idle right now, to make room; those that the manifest wants to be ready only with
    /// `ready_too`. How many there were.
    fn reclaim(&self, ready_too: bool) -> usize;

    /// Makes instances until as many are there as the manifest wants to be ready, or one can't be made.
    fn make_ready(self: Arc<Self>) -> BoxFuture<'static, ()>;
}

/// What a pool keeps.
pub(crate) trait Pooled: Send + Sized + 'static {
    /// One try to make one; fails with wasmtime's own error where all slots are taken. Dropped in the middle, it leaves
    /// nothing behind.
    fn instantiate(
        work: Work<'_>,
        loaded: &Arc<Loaded>,
    ) -> impl Future<Output = wasmtime::Result<Self>> + Send;

    /// Calls that it has had.
    fn calls(&self) -> u32;
}

/// A function whose calls have an instance to themselves, each for as long as it takes.
pub(crate) struct InstancePool<I> {
    function: Function,
    stock: Mutex<Stock<I>>,
}

struct Stock<I> {
    /// With when they were used last, in milliseconds of the node. The one used last of all is at the end.
    idle: Vec<(I, u64)>,
    /// Instances that are being made or used.
    leased: usize,
}

impl<I> Stock<I> {
    fn instances(&self) -> usize {
        self.idle.len() + self.leased
    }

    /// How many of the idle instances are more than `ready` of all.
    fn spare(&self, ready: u32) -> usize {
        self.instances().saturating_sub(ready as usize).min(self.idle.len())
    }
}

impl<I: Pooled> InstancePool<I> {
    /// The pool of a function, which has no more places than there may be instances.
    pub(crate) fn new(function: Function) -> Arc<Self> {
        Arc::new(Self { function, stock: Mutex::new(Stock { idle: Vec::new(), leased: 0 }) })
    }

    pub(crate) fn function(&self) -> &Function {
        &self.function
    }

    /// Waits for the call's turn, and for an instance.
    ///
    /// # Errors
    /// The queue is full, or no instance could be made.
    pub(crate) async fn take(self: &Arc<Self>, tab: &Tab) -> Result<Lease<I>, CallError> {
        let admitted = self.function.admit(tab).await?;
        // The one used last: its memory is still in the processor's caches, and the others may grow old.
        let mut lease = self.lease(Some(admitted), |idle| idle.pop());
        match lease.instance {
            Some(_) => tab.found_warm(),
            // Boxed: it is kilobytes, and every call would have room for them.
            None => lease.instance = Some(Box::pin(Work::new(&self.function, tab).make()).await?),
        }
        Ok(lease)
    }

    /// A lease whose instance is one of those that are idle, if `choose` finds one, and still to be made otherwise.
    fn lease(
        self: &Arc<Self>,
        admitted: Option<Admitted>,
        choose: impl FnOnce(&mut Vec<(I, u64)>) -> Option<(I, u64)>,
    ) -> Lease<I> {
        let mut stock = self.stock.lock();
        stock.leased += 1;
        let instance = choose(&mut stock.idle).map(|(instance, _)| instance);
        Lease { instance, pool: self.clone(), returned: false, admitted }
    }
}

impl<I: Pooled> Pool for InstancePool<I> {
    fn function(&self) -> &Function {
        &self.function
    }

    fn instances(&self) -> usize {
        self.stock.lock().instances()
    }

    fn reap(&self, now: u64) {
        let policy = &self.function.spec.instances;
        let old = |since: &u64| now.saturating_sub(*since) >= policy.idle.as_millis() as u64;
        let dropped: Vec<_> = {
            let mut stock = self.stock.lock();
            let count = stock.idle.iter().take_while(|(_, since)| old(since)).count();
            let count = count.min(stock.spare(policy.warm));
            stock.idle.drain(..count).collect()
        };
        // Giving memory back takes a while: not under the lock.
        drop(dropped);
    }

    fn reclaim(&self, ready_too: bool) -> usize {
        let dropped: Vec<_> = {
            let mut stock = self.stock.lock();
            let count = stock.spare(if ready_too { 0 } else { self.function.spec.instances.warm });
            stock.idle.drain(..count).collect()
        };
        dropped.len()
    }

    fn make_ready(self: Arc<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            while self.instances() < self.function.spec.instances.warm as usize {
                let mut lease = self.lease(None, |_| None);
                match Work::make_ready(&self.function).await {
                    Ok(instance) => lease.instance = Some(instance),
                    Err(error) => return self.function.not_ready(&error),
                }
                lease.give_back();
            }
        })
    }
}

/// An instance that belongs to one call, with the call's places. Dropping it ends the instance.
pub(crate) struct Lease<I: Pooled> {
    /// None only while it is being made, and once it has been given back.
    instance: Option<I>,
    pool: Arc<InstancePool<I>>,
    returned: bool,
    /// None for an instance that is made before anybody calls.
    admitted: Option<Admitted>,
}

impl<I: Pooled> Lease<I> {
    /// The call's place of the node; none for an instance that nobody calls yet.
    pub(crate) fn place(&self) -> Option<Arc<NodePlace>> {
        self.admitted.as_ref().map(|admitted| admitted.node.clone())
    }

    /// The call ended well: the instance may serve another, unless it has had its share of calls.
    pub(crate) fn give_back(mut self) {
        let reuse = self.pool.function.spec.instances.reuse.get();
        if let Some(instance) = self.instance.take_if(|instance| instance.calls() < reuse) {
            let now = self.pool.function.node.millis();
            // Together, so that it is counted once at every moment.
            let mut stock = self.pool.stock.lock();
            stock.idle.push((instance, now));
            stock.leased -= 1;
            self.returned = true;
        }
    }
}

impl<I: Pooled> Deref for Lease<I> {
    type Target = I;

    fn deref(&self) -> &I {
        self.instance.as_ref().expect("a lease that was handed out has its instance")
    }
}

impl<I: Pooled> DerefMut for Lease<I> {
    fn deref_mut(&mut self) -> &mut I {
        self.instance.as_mut().expect("a lease that was handed out has its instance")
    }
}

impl<I: Pooled> Drop for Lease<I> {
    fn drop(&mut self) {
        if self.returned {
            return;
        }
        // First the instance, so that its slot is free before another call may want one.
        drop(self.instance.take());
        self.pool.stock.lock().leased -= 1;
        self.pool.function.ended_one();
    }
}
