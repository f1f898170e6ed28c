//! One deployed function, whatever its kind: its module, its admission, its counts, and how a call of it is bounded.

use crate::host::output::Source;
use crate::module::{Loaded, Module};
use crate::node::Node;
use crate::pool::Pooled;
use ebb_domain::port::guest::{CallError, FunctionSpec};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use wasmtime::PoolConcurrencyLimitError;

/// Calls of one function that may wait for their turn.
const QUEUE: usize = 1024;
/// When a caller that finds the queue full may try again.
pub(crate) const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What functions of all kinds have.
pub(crate) struct Function {
    pub(crate) spec: FunctionSpec,
    pub(crate) module: Arc<Module>,
    pub(crate) node: Arc<Node>,
    pub(crate) source: Arc<Source>,
    /// Places for calls.
    places: Arc<Semaphore>,
    waiting: AtomicUsize,
    pub(crate) calls: AtomicU64,
    pub(crate) errors: AtomicU64,
    pub(crate) cpu_nanos: AtomicU64,
    /// Instances made, and how long making them took.
    pub(crate) inits: AtomicU64,
    pub(crate) init_nanos: AtomicU64,
}

/// A call that may run: it has a place of its function and one of the node.
pub(crate) struct Admitted {
    _function: OwnedSemaphorePermit,
    _node: OwnedSemaphorePermit,
}

impl Function {
    /// A function with `places` for calls at once.
    pub(crate) fn new(spec: FunctionSpec, places: u32, module: Arc<Module>, node: Arc<Node>) -> Self {
        let source = Arc::new(Source {
            app: spec.app.clone(),
            function: spec.function.clone(),
            logged: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        });
        Self {
            places: Arc::new(Semaphore::new(places as usize)),
            waiting: AtomicUsize::new(0),
            calls: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            cpu_nanos: AtomicU64::new(0),
            inits: AtomicU64::new(0),
            init_nanos: AtomicU64::new(0),
            spec,
            module,
            node,
            source,
        }
    }

    /// Waits for a place of the function, then for one of the node, in a queue that is bounded. In this order a
    /// function with many callers holds no more of the node's places than its own limit.
    pub(crate) async fn admit(&self) -> Result<Admitted, CallError> {
        let node = &self.node.concurrency;
        if let (Ok(_function), Ok(_node)) =
            (self.places.clone().try_acquire_owned(), node.clone().try_acquire_owned())
        {
            return Ok(Admitted { _function, _node });
        }
        let _waiting = Waiting::enter(&self.waiting)?;
        let closed = |_| CallError::Failed("the engine is shutting down".into());
        let _function = self.places.clone().acquire_owned().await.map_err(closed)?;
        let _node = node.clone().acquire_owned().await.map_err(closed)?;
        Ok(Admitted { _function, _node })
    }

    /// Bounds everything that a call waits for and does.
    pub(crate) async fn within_wall<T, E: From<CallError>>(
        &self,
        call: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let limit = self.spec.limits.wall;
        let result = match tokio::time::timeout(limit, call).await {
            Ok(result) => result,
            Err(_) => Err(CallError::OutOfTime { limit }.into()),
        };
        self.calls.fetch_add(1, Ordering::Relaxed);
        if result.is_err() {
            self.errors.fetch_add(1, Ordering::Relaxed);
        }
        result
    }

    /// A new instance, which the node will look after.
    pub(crate) async fn make<I: Pooled>(&self) -> Result<I, CallError> {
        self.node.instance_made();
        let began = Instant::now();
        let instance = I::make(self).await?;
        self.inits.fetch_add(1, Ordering::Relaxed);
        self.init_nanos.fetch_add(began.elapsed().as_nanos() as u64, Ordering::Relaxed);
        Ok(instance)
    }

    /// The module in memory, loaded now if it is not.
    pub(crate) async fn load(&self) -> Result<Arc<Loaded>, CallError> {
        self.node.modules.load(&self.module).await
    }

    /// Whether something could not be made for want of a slot, and can be now, since idle instances have given theirs
    /// back: worth one more try.
    pub(crate) fn made_room(&self, error: &wasmtime::Error) -> bool {
        error.is::<PoolConcurrencyLimitError>() && self.node.reclaim()
    }
}

/// One who waits in a bounded queue.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn enter(waiting: &'a AtomicUsize) -> Result<Self, CallError> {
        if waiting.fetch_add(1, Ordering::Relaxed) >= QUEUE {
            waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(CallError::Overloaded { retry_after: RETRY_AFTER });
        }
        Ok(Self(waiting))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
