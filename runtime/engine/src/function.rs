//! One deployed function, whatever its kind: its module, its admission, its counts, and how a call of it is bounded.

use crate::durations::Durations;
use crate::fair::App;
use crate::gate::Place;
use crate::host::output::Source;
use crate::module::{Loaded, Module};
use crate::node::Node;
use crate::pool::Pooled;
use crate::turns::Turn;
use ebb_domain::port::guest::{CallError, FunctionSpec, Lack};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Calls of one function that may wait for their turn.
const QUEUE: usize = 1024;
/// When a caller that came too many may try again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// A call that came too many.
pub(crate) fn overloaded(lack: Lack) -> CallError {
    CallError::Overloaded { lack, retry_after: RETRY_AFTER }
}

/// What functions of all kinds have.
pub(crate) struct Function {
    pub(crate) spec: FunctionSpec,
    pub(crate) module: Arc<Module>,
    pub(crate) node: Arc<Node>,
    pub(crate) source: Arc<Source>,
    app: App,
    /// Places for calls.
    places: Arc<Semaphore>,
    waiting: AtomicUsize,
    /// Somebody makes instances ready.
    making_ready: AtomicBool,
    /// When it was called last, in milliseconds of the node.
    pub(crate) used_at: AtomicU64,
    pub(crate) calls: AtomicU64,
    pub(crate) errors: AtomicU64,
    pub(crate) durations: Durations,
    pub(crate) cpu_nanos: AtomicU64,
    /// Instances made, and how long making them took.
    pub(crate) inits: AtomicU64,
    pub(crate) init_nanos: AtomicU64,
}

/// A call that may run: it has a place of its function and one of the node.
pub(crate) struct Admitted {
    _function: OwnedSemaphorePermit,
    _node: Place,
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
            making_ready: AtomicBool::new(false),
            used_at: AtomicU64::new(0),
            calls: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            durations: Durations::default(),
            cpu_nanos: AtomicU64::new(0),
            inits: AtomicU64::new(0),
            init_nanos: AtomicU64::new(0),
            app: node.apps.get(&spec.app),
            spec,
            module,
            node,
            source,
        }
    }

    /// Waits for a place of the function, in a queue that is bounded, then for one of the node. In this order a
    /// function with many callers holds, and waits for, no more of the node's places than its own limit.
    pub(crate) async fn admit(&self) -> Result<Admitted, CallError> {
        let _function = match self.places.clone().try_acquire_owned() {
            Ok(place) => place,
            Err(_) => {
                let _waiting = Waiting::enter(&self.waiting)?;
                let closed = |_| CallError::Failed("the engine is shutting down".into());
                self.places.clone().acquire_owned().await.map_err(closed)?
            }
        };
        let gate = &self.node.gate;
        let _node = match gate.try_enter(self.app) {
            Some(place) => place,
            None => gate.enter(self.app).await,
        };
        Ok(Admitted { _function, _node })
    }

    /// Turns at the processors, for one call.
    pub(crate) fn turn(&self) -> Turn {
        Turn::new(self.node.turns.clone(), self.app)
    }

    /// Bounds everything that a call waits for and does.
    pub(crate) async fn within_wall<T, E: From<CallError>>(
        &self,
        call: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let limit = self.spec.limits.wall;
        let began = Instant::now();
        let result = match tokio::time::timeout(limit, call).await {
            Ok(result) => result,
            Err(_) => Err(CallError::OutOfTime { limit }.into()),
        };
        self.used();
        self.durations.observe(began.elapsed());
        self.calls.fetch_add(1, Ordering::Relaxed);
        if result.is_err() {
            self.errors.fetch_add(1, Ordering::Relaxed);
        }
        result
    }

    fn used(&self) {
        let now = self.node.millis(Instant::now());
        self.used_at.store(now, Ordering::Relaxed);
        self.module.used(now);
    }

    /// A new instance, which the node will look after.
    pub(crate) async fn make<I: Pooled>(&self) -> Result<I, CallError> {
        self.used();
        self.node.watch(self.spec.instances.idle);
        let began = Instant::now();
        let instance = I::make(self).await?;
        self.inits.fetch_add(1, Ordering::Relaxed);
        self.init_nanos.fetch_add(began.elapsed().as_nanos() as u64, Ordering::Relaxed);
        Ok(instance)
    }

    /// An instance has ended: where the manifest wants some to be ready, another is made.
    pub(crate) fn ended_one(&self) {
        if self.spec.instances.warm > 0 {
            self.node.hurry();
        }
    }

    /// Whether the caller is now the one who makes instances ready.
    pub(crate) fn begin_making(&self) -> bool {
        !self.making_ready.swap(true, Ordering::AcqRel)
    }

    pub(crate) fn end_making(&self) {
        self.making_ready.store(false, Ordering::Release);
    }

    /// An instance that should be ready can't be made. It will be tried again.
    pub(crate) fn not_ready(&self, error: &CallError) {
        tracing::warn!(
            app = &*self.spec.app, function = &*self.spec.function, warm = self.spec.instances.warm, %error,
            "instances that should be ready can't be made; it is tried again"
        );
    }

    /// The module in memory, loaded now if it is not.
    pub(crate) async fn load(&self) -> Result<Arc<Loaded>, CallError> {
        self.node.modules.load(&self.module).await
    }
}

/// One who waits in a bounded queue.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn enter(waiting: &'a AtomicUsize) -> Result<Self, CallError> {
        if waiting.fetch_add(1, Ordering::Relaxed) >= QUEUE {
            waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(overloaded(Lack::Queue(QUEUE as u32)));
        }
        Ok(Self(waiting))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
