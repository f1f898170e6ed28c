//! One deployed function, whatever its kind: its module, its admission, its counts, and how a call of it is bounded.

use crate::bindings::{CommandIn, EventIn, FailureOut, NewEventOut, PastEventIn, RefusalOut};
use crate::host::output::Source;
use crate::host::{self, State};
use crate::meter::Metered;
use crate::module::{ExportIndices, Loaded, Module};
use crate::node::Node;
use ebb_domain::limits::cap;
use ebb_domain::port::guest::{CallError, FunctionSpec, SharedRows};
use ebb_domain::time::Timestamp;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, SemaphorePermit};
use wasmtime::component::{Func, ResourceAny};
use wasmtime::{PoolConcurrencyLimitError, Store, Trap};

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
    concurrency: Semaphore,
    waiting: AtomicUsize,
    pub(crate) calls: AtomicU64,
    pub(crate) errors: AtomicU64,
    pub(crate) cpu_nanos: AtomicU64,
}

/// A call that may run: it has a place of its function and one of the node.
pub(crate) struct Admitted<'a> {
    _function: SemaphorePermit<'a>,
    _node: SemaphorePermit<'a>,
}

impl Function {
    pub(crate) fn new(spec: FunctionSpec, module: Arc<Module>, node: Arc<Node>) -> Self {
        let source = Arc::new(Source {
            app: spec.app.clone(),
            function: spec.function.clone(),
            logged: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        });
        Self {
            concurrency: Semaphore::new(spec.limits.concurrency.get() as usize),
            waiting: AtomicUsize::new(0),
            calls: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            cpu_nanos: AtomicU64::new(0),
            spec,
            module,
            node,
            source,
        }
    }

    /// Waits for a place of the function, then for one of the node, in a queue that is bounded. In this order a
    /// function with many callers holds no more of the node's places than its own limit.
    pub(crate) async fn admit(&self) -> Result<Admitted<'_>, CallError> {
        if let (Ok(_function), Ok(_node)) =
            (self.concurrency.try_acquire(), self.node.concurrency.try_acquire())
        {
            return Ok(Admitted { _function, _node });
        }
        let _waiting = Waiting::enter(&self.waiting)?;
        let closed = |_| CallError::Failed("the engine is shutting down".into());
        let _function = self.concurrency.acquire().await.map_err(closed)?;
        let _node = self.node.concurrency.acquire().await.map_err(closed)?;
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

    /// A new instance. Where all slots of the node are taken, idle instances make room first.
    pub(crate) async fn instantiate(&self) -> Result<Live, CallError> {
        let loaded = self.node.modules.load(&self.module).await?;
        match self.instantiate_once(&loaded).await {
            Err(Instantiation::NoSlot) if self.node.reclaim() => {}
            Err(Instantiation::NoSlot) => return Err(CallError::Overloaded { retry_after: RETRY_AFTER }),
            Err(Instantiation::Failed(error)) => return Err(error),
            Ok(live) => return Ok(live),
        }
        self.instantiate_once(&loaded).await.map_err(|error| match error {
            Instantiation::NoSlot => CallError::Overloaded { retry_after: RETRY_AFTER },
            Instantiation::Failed(error) => error,
        })
    }

    async fn instantiate_once(&self, loaded: &Loaded) -> Result<Live, Instantiation> {
        let store = host::store(self.node.modules.engine(), &self.spec.limits, &self.source);
        let mut live = Live { store, exports: Exports::None, calls: 0 };
        live.begin(Timestamp(0), None);
        let instance = live.metered(self, async |store| loaded.pre.instantiate_async(store).await).await;
        match instance {
            Ok(instance) => {
                live.exports = Exports::look_up(&mut live.store, &instance, &loaded.exports)
                    .ok_or_else(|| Instantiation::Failed(CallError::Failed("an export is missing".into())))?;
                Ok(live)
            }
            Err(error) if error.is::<PoolConcurrencyLimitError>() => Err(Instantiation::NoSlot),
            Err(error) => Err(Instantiation::Failed(live.explain(&error))),
        }
    }
}

enum Instantiation {
    NoSlot,
    Failed(CallError),
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

/// An instance that can be called.
pub(crate) struct Live {
    store: Store<State>,
    exports: Exports,
    /// Calls so far, of any function.
    pub(crate) calls: u32,
}

/// Functions of an instance, looked up once.
#[derive(Clone, Copy)]
enum Exports {
    /// Still being instantiated.
    None,
    Command {
        constructor: Func,
        restore: Func,
        apply: Func,
        decide: Func,
        snapshot: Func,
    },
    Projection {
        apply: Func,
    },
}

impl Exports {
    fn look_up(
        store: &mut Store<State>,
        instance: &wasmtime::component::Instance,
        indices: &ExportIndices,
    ) -> Option<Self> {
        let mut function = |index| instance.get_func(&mut *store, index);
        Some(match indices {
            ExportIndices::Command { constructor, restore, apply, decide, snapshot } => Self::Command {
                constructor: function(constructor)?,
                restore: function(restore)?,
                apply: function(apply)?,
                decide: function(decide)?,
                snapshot: function(snapshot)?,
            },
            ExportIndices::Projection { apply } => Self::Projection { apply: function(apply)? },
        })
    }
}

/// A call on an instance whose module is of another kind: a mistake of ours.
fn wrong_kind() -> wasmtime::Error {
    CallError::Failed("the module is of another kind".into()).into()
}

impl Live {
    fn begin(&mut self, time: Timestamp, rows: Option<SharedRows>) {
        self.store.data_mut().begin(time, rows);
        self.store.set_epoch_deadline(1);
    }

    /// Runs guest code, ticking and measured.
    async fn metered<T>(
        &mut self,
        function: &Function,
        call: impl AsyncFnOnce(&mut Store<State>) -> wasmtime::Result<T>,
    ) -> wasmtime::Result<T> {
        let meter = self.store.data().meter.clone();
        let result = {
            let _ticking = function.node.ticker.run();
            let call = pin!(call(&mut self.store));
            Metered::new(&meter, call).await
        };
        self.store.data_mut().end();
        function.cpu_nanos.fetch_add(meter.total(), Ordering::Relaxed);
        result
    }

    /// One call of the guest: the guest's clock says `time`. After an error the instance is of no further use.
    async fn call<T>(
        &mut self,
        function: &Function,
        time: Timestamp,
        rows: Option<SharedRows>,
        call: impl AsyncFnOnce(&mut Store<State>, Exports) -> wasmtime::Result<T>,
    ) -> Result<T, CallError> {
        self.begin(time, rows);
        self.calls = self.calls.saturating_add(1);
        let exports = self.exports;
        self.metered(function, async |store| call(store, exports).await)
            .await
            .map_err(|error| self.explain(&error))
    }

    fn explain(&self, error: &wasmtime::Error) -> CallError {
        tracing::debug!(error = %format!("{error:?}"), "a call into a guest failed");
        if let Some(error) = error.downcast_ref::<CallError>() {
            return error.clone();
        }
        let reason = match error.downcast_ref::<Trap>() {
            Some(Trap::StackOverflow) => "it overflowed its stack".into(),
            // The stack that compilers keep in linear memory lies at its beginning, so that it overflows into nothing.
            Some(trap @ Trap::MemoryOutOfBounds) => format!("{trap}, or a stack overflow"),
            Some(trap) => trap.to_string(),
            None => error.root_cause().to_string(),
        };
        // wasmtime does not export this error's type.
        if reason.contains("fuel allocated for hostcalls") {
            return CallError::OutputTooLarge(format!(
                "more than {} bytes in one call",
                cap::GUEST_OUTPUT_BYTES
            ));
        }
        CallError::Trapped(match self.store.data().panic_message() {
            Some(panic) => format!("{panic} ({reason})"),
            None => reason,
        })
    }

    /// Frees resources whose owners are gone.
    pub(crate) async fn drop_resources(
        &mut self,
        function: &Function,
        resources: Vec<ResourceAny>,
    ) -> Result<(), CallError> {
        self.call(function, Timestamp(0), None, async |store, _| {
            for resource in resources {
                resource.resource_drop_async(&mut *store).await?;
            }
            Ok(())
        })
        .await
    }

    /// `aggregate.constructor`
    pub(crate) async fn construct(
        &mut self,
        function: &Function,
        key: &str,
    ) -> Result<ResourceAny, CallError> {
        self.call(function, Timestamp(0), None, async |store, exports| {
            let Exports::Command { constructor, .. } = exports else { return Err(wrong_kind()) };
            let constructor = constructor.typed::<(&str,), (ResourceAny,)>(&store)?;
            Ok(constructor.call_async(store, (key,)).await?.0)
        })
        .await
    }

    /// `aggregate.restore`
    pub(crate) async fn restore(
        &mut self,
        function: &Function,
        key: &str,
        snapshot: &[u8],
    ) -> Result<Result<ResourceAny, String>, CallError> {
        self.call(function, Timestamp(0), None, async |store, exports| {
            let Exports::Command { restore, .. } = exports else { return Err(wrong_kind()) };
            let restore = restore.typed::<(&str, &[u8]), (Result<ResourceAny, String>,)>(&store)?;
            Ok(restore.call_async(store, (key, snapshot)).await?.0)
        })
        .await
    }

    /// `aggregate.apply`
    pub(crate) async fn apply(
        &mut self,
        function: &Function,
        aggregate: ResourceAny,
        events: &[PastEventIn<'_>],
    ) -> Result<(), CallError> {
        self.call(function, Timestamp(0), None, async |store, exports| {
            let Exports::Command { apply, .. } = exports else { return Err(wrong_kind()) };
            let apply = apply.typed::<(ResourceAny, &[PastEventIn<'_>]), ()>(&store)?;
            apply.call_async(store, (aggregate, events)).await
        })
        .await
    }

    /// `aggregate.decide`
    pub(crate) async fn decide(
        &mut self,
        function: &Function,
        aggregate: ResourceAny,
        command: CommandIn<'_>,
    ) -> Result<Result<Vec<NewEventOut>, RefusalOut>, CallError> {
        self.call(function, Timestamp(command.time), None, async |store, exports| {
            let Exports::Command { decide, .. } = exports else { return Err(wrong_kind()) };
            let decide = decide
                .typed::<(ResourceAny, CommandIn<'_>), (Result<Vec<NewEventOut>, RefusalOut>,)>(&store)?;
            Ok(decide.call_async(store, (aggregate, command)).await?.0)
        })
        .await
    }

    /// `aggregate.snapshot`
    pub(crate) async fn snapshot(
        &mut self,
        function: &Function,
        aggregate: ResourceAny,
    ) -> Result<Option<Vec<u8>>, CallError> {
        self.call(function, Timestamp(0), None, async |store, exports| {
            let Exports::Command { snapshot, .. } = exports else { return Err(wrong_kind()) };
            let snapshot = snapshot.typed::<(ResourceAny,), (Option<Vec<u8>>,)>(&store)?;
            Ok(snapshot.call_async(store, (aggregate,)).await?.0)
        })
        .await
    }

    /// `projections.apply`
    pub(crate) async fn project(
        &mut self,
        function: &Function,
        events: &[EventIn<'_>],
        time: Timestamp,
        rows: SharedRows,
    ) -> Result<Result<(), FailureOut>, CallError> {
        self.call(function, time, Some(rows), async |store, exports| {
            let Exports::Projection { apply } = exports else { return Err(wrong_kind()) };
            let apply = apply.typed::<(&[EventIn<'_>],), (Result<(), FailureOut>,)>(&store)?;
            Ok(apply.call_async(store, (events,)).await?.0)
        })
        .await
    }
}

/// What keeps instances: the node asks it to give some back.
pub(crate) trait Pool: Send + Sync {
    fn function(&self) -> &Function;

    /// Instances there are.
    fn instances(&self) -> usize;

    /// Drops instances that have had no work since `now - idle`.
    fn reap(&self, now: Instant);

    /// Drops instances that are idle right now, to make room; whether there were any.
    fn reclaim(&self) -> bool;
}
