//! One deployed function, whatever its kind: its module, its admission, its counts, and how a call of it is bounded.

use crate::fair::App;
use crate::gate::{Gate, Place};
use crate::host::output::Source;
use crate::module::{Loaded, Module};
use crate::node::Node;
use crate::turns::Turn;
use crate::usage::{Account, Tab};
use ebb_domain::port::guest::{CallError, FunctionSpec, Lack};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
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
    /// Opened with the first call.
    account: OnceLock<Arc<Account>>,
}

/// A call that may run: it has a place of its function and one of the node.
pub(crate) struct Admitted {
    _function: OwnedSemaphorePermit,
    pub(crate) node: Arc<NodePlace>,
}

/// A call's place of the node.
pub(crate) struct NodePlace {
    gate: Arc<Gate>,
    app: App,
    /// None while the call does without.
    place: Mutex<Option<Place>>,
}

impl NodePlace {
    /// Waits for something that may need a place of the node itself: gives this one up, and waits for one again.
    pub(crate) async fn without<T>(&self, waited_for: impl Future<Output = T>) -> T {
        drop(self.place.lock().take());
        let done = waited_for.await;
        let place = match self.gate.try_enter(self.app) {
            Some(place) => place,
            None => self.gate.enter(self.app).await,
        };
        *self.place.lock() = Some(place);
        done
    }
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
            account: OnceLock::new(),
            app: node.apps.get(&spec.app),
            spec,
            module,
            node,
            source,
        }
    }

    /// Waits for a place of the function, in a queue that is bounded, then for one of the node. In this order a
    /// function with many callers holds, and waits for, no more of the node's places than its own limit.
    pub(crate) async fn admit(&self, tab: &Tab) -> Result<Admitted, CallError> {
        let _function = match self.places.clone().try_acquire_owned() {
            Ok(place) => place,
            Err(_) => {
                let _waiting = (Waiting::enter(&self.waiting)?, tab.wait());
                let closed = |_| CallError::Failed("the engine is shutting down".into());
                self.places.clone().acquire_owned().await.map_err(closed)?
            }
        };
        let gate = &self.node.gate;
        let place = match gate.try_enter(self.app) {
            Some(place) => place,
            None => {
                let _waiting = tab.wait();
                gate.enter(self.app).await
            }
        };
        let node = NodePlace { gate: gate.clone(), app: self.app, place: Mutex::new(Some(place)) };
        Ok(Admitted { _function, node: Arc::new(node) })
    }

    /// A call begins: whether no other app has called just now, so that nothing has to be shared.
    pub(crate) fn has_node_to_itself(&self) -> bool {
        self.node.solo.calls(self.app, self.node.millis())
    }

    /// Turns at the processors, for one call.
    pub(crate) fn turn(&self) -> Turn {
        Turn::new(self.node.turns.clone(), self.app)
    }

    /// It is used, now.
    pub(crate) fn used(&self) {
        let now = self.node.millis();
        self.used_at.store(now, Ordering::Relaxed);
        self.module.used(now);
    }

    /// An instance is about to be made, which the node will look after.
    pub(crate) fn expect_instance(&self) {
        self.used();
        self.node.watch(self.spec.instances.idle);
    }

    /// What it used so far.
    pub(crate) fn account(&self) -> &Arc<Account> {
        let open = || self.node.ledger.open(&self.spec.app, &self.spec.function, self.spec.trigger);
        self.account.get_or_init(open)
    }

    /// Its account, if there is one.
    pub(crate) fn used_before(&self) -> Option<Arc<Account>> {
        let find = || self.node.ledger.get(&self.spec.app, &self.spec.function);
        self.account.get().cloned().or_else(find)
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
