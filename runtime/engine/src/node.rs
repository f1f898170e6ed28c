//! What all functions of a node share: modules, places, memory, the ticker, and what takes back what is idle.
//!
//! Functions go from warm to loaded to cold in two ways. The *reaper* drops instances, and the code of modules, that
//! nobody has used for their idle time. And where memory or slots run out, [`Node::make_room`] takes from the function
//! that was called longest ago first: its idle instances, then its code.

use crate::budget::Budget;
use crate::clock::Clock;
use crate::fair::{Apps, Solo};
use crate::gate::Gate;
use crate::module::Modules;
use crate::pool::Pool;
use crate::sweep::{self, Heap};
use crate::ticker::Ticker;
use crate::turns::Turns;
use crate::usage::{Ledger, Observer};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use wasmtime::{Engine, PoolConcurrencyLimitError};

/// The reaper looks no less often than this while there is something.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
const SHORTEST_PAUSE: Duration = Duration::from_millis(5);
/// It looks for memory to give back no more often than this.
const SWEEP_EVERY: Duration = Duration::from_millis(100);

/// Shared by all functions.
pub(crate) struct Node {
    pub(crate) modules: Arc<Modules>,
    pub(crate) ticker: Ticker,
    pub(crate) apps: Apps,
    pub(crate) gate: Arc<Gate>,
    pub(crate) solo: Solo,
    pub(crate) turns: Arc<Turns>,
    pub(crate) budget: Arc<Budget>,
    pub(crate) ledger: Ledger,
    pub(crate) observer: Option<Arc<dyn Observer>>,
    /// What the allocator keeps.
    heap: Arc<Heap>,
    /// When it was last looked for memory to give back, in milliseconds of the node.
    swept_at: AtomicU64,
    /// Slots for instances of each engine.
    pub(crate) slots: u32,
    /// How long code that nobody runs stays in memory.
    module_idle: Duration,
    pools: Mutex<Vec<Weak<dyn Pool>>>,
    reaper: Reaper,
    /// What times are kept by.
    clock: Clock,
    this: Weak<Self>,
}

/// The task that takes back what is idle: there is one only while there is something to take.
#[derive(Default)]
struct Reaper {
    task: Mutex<Option<JoinHandle<()>>>,
    /// How long it sleeps now, in milliseconds.
    pause: AtomicU64,
    hurry: Arc<Notify>,
}

/// What a node is made of.
pub(crate) struct Parts {
    pub(crate) modules: Arc<Modules>,
    pub(crate) ticker: Ticker,
    pub(crate) budget: Arc<Budget>,
    pub(crate) apps: Apps,
    pub(crate) concurrency: usize,
    pub(crate) turns: Arc<Turns>,
    pub(crate) slots: u32,
    pub(crate) module_idle: Duration,
    pub(crate) observer: Option<Arc<dyn Observer>>,
}

impl Node {
    pub(crate) fn new(parts: Parts) -> Arc<Self> {
        let Parts { modules, ticker, budget, apps, concurrency, turns, slots, module_idle, observer } = parts;
        let node = Arc::new_cyclic(|this| Self {
            modules,
            ticker,
            apps,
            gate: Gate::new(concurrency),
            solo: Solo::default(),
            turns,
            budget,
            ledger: Ledger::default(),
            observer,
            heap: Arc::new(Heap::settled()),
            swept_at: AtomicU64::new(0),
            slots,
            module_idle,
            pools: Mutex::default(),
            reaper: Reaper::default(),
            clock: Clock::new(),
            this: this.clone(),
        });
        let this = node.this.clone();
        node.budget.ask_for_room(Box::new(move |bytes| {
            if let Some(node) = this.upgrade() {
                node.make_room(|_| true, |_| node.budget.is_roomy(bytes));
            }
        }));
        node
    }

    /// Whether something could not be made for want of a slot, and can be now, since idle instances have given theirs
    /// back to this engine: worth one more try.
    pub(crate) fn made_slot(&self, error: &wasmtime::Error, engine: &Engine) -> bool {
        error.is::<PoolConcurrencyLimitError>() && {
            // More than one, so that not every new instance has to look through all functions.
            let wanted = (self.slots as usize / 16).max(1);
            let has_some = |pool: &dyn Pool| {
                let loaded = pool.function().module.loaded();
                loaded.is_some_and(|loaded| Engine::same(&loaded.engine, engine))
            };
            self.make_room(has_some, |gone| gone >= wanted)
        }
    }

    /// This moment, in milliseconds of the node.
    pub(crate) fn millis(&self) -> u64 {
        self.clock.millis()
    }

    pub(crate) fn add(&self, pool: Weak<dyn Pool>) {
        let ready = pool.upgrade().filter(|pool| pool.function().spec.instances.warm > 0);
        let mut pools = self.pools.lock();
        // Looked through only as often as it has doubled: a node starts with ten thousand of them.
        if pools.len() == pools.capacity() {
            pools.retain(|pool| pool.strong_count() > 0);
        }
        pools.push(pool);
        drop(pools);
        if let Some(pool) = ready {
            self.watch(pool.function().spec.instances.idle);
            self.hurry();
        }
    }

    /// Pools of all functions that are deployed.
    pub(crate) fn pools(&self) -> Vec<Arc<dyn Pool>> {
        self.pools.lock().iter().filter_map(Weak::upgrade).collect()
    }

    /// Takes back what is idle `of` some functions, from the one that was called longest ago on, until so many instances
    /// as `enough` wants are gone; whether anything was taken. Instances that a manifest wants to be ready go last.
    pub(crate) fn make_room(&self, of: impl Fn(&dyn Pool) -> bool, enough: impl Fn(usize) -> bool) -> bool {
        let mut pools = self.pools();
        pools.retain(|pool| (pool.instances() > 0 || pool.function().module.is_loaded()) && of(&**pool));
        pools.sort_by_cached_key(|pool| pool.function().used_at.load(Ordering::Relaxed));
        let (mut instances, mut unloaded) = (0, false);
        for ready_too in [false, true] {
            for pool in &pools {
                instances += pool.reclaim(ready_too);
                if instances > 0 && enough(instances) {
                    return true;
                }
                if pool.function().module.unload() {
                    unloaded = true;
                    if enough(instances) {
                        return true;
                    }
                }
            }
        }
        instances > 0 || unloaded
    }

    /// There is an instance, or soon will be, and so there is a reaper. The first time that it looks is soon enough
    /// for something that may be idle for `idle`.
    pub(crate) fn watch(&self, idle: Duration) {
        let mut task = self.reaper.task.lock();
        if task.as_ref().is_none_or(JoinHandle::is_finished) {
            *task = Some(tokio::spawn(reap(self.this.clone(), self.reaper.hurry.clone(), pause_for(idle))));
        } else if self.reaper.pause.load(Ordering::Relaxed) > pause_for(idle).as_millis() as u64 {
            self.reaper.hurry.notify_one();
        }
    }

    /// The reaper looks at once.
    pub(crate) fn hurry(&self) {
        self.reaper.hurry.notify_one();
    }

    /// Takes back what has been idle for too long; when to look again, if anything is left.
    fn reap(&self) -> Option<Duration> {
        let now = self.millis();
        let mut pause = None::<Duration>;
        let mut next = |idle: Duration| pause = Some(pause.unwrap_or(LONGEST_PAUSE).min(pause_for(idle)));
        for pool in self.pools() {
            pool.reap(now);
            let policy = &pool.function().spec.instances;
            let instances = pool.instances();
            if instances > 0 || policy.warm > 0 {
                next(policy.idle);
            }
            if instances < policy.warm as usize && pool.function().begin_making() {
                tokio::spawn(make_ready(pool));
            }
        }
        if now.saturating_sub(self.swept_at.load(Ordering::Relaxed)) >= SWEEP_EVERY.as_millis() as u64 {
            self.swept_at.store(now, Ordering::Relaxed);
            let (engines, heap) = (self.modules.engines().clone(), self.heap.clone());
            tokio::task::spawn_blocking(move || {
                engines.all().filter(|engine| sweep::is_due(engine)).for_each(sweep::sweep);
                heap.trim_if_worth_it();
            });
        }
        let long_ago = now.checked_sub(self.module_idle.as_millis() as u64);
        if self.modules.unload_unused(long_ago) > 0 {
            next(self.module_idle);
        }
        pause
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(task) = self.reaper.task.get_mut() {
            task.abort();
        }
    }
}

/// One at a time for each function.
async fn make_ready(pool: Arc<dyn Pool>) {
    let making = Making(pool);
    making.0.clone().make_ready().await;
}

/// Someone who makes instances ready.
struct Making(Arc<dyn Pool>);

impl Drop for Making {
    fn drop(&mut self) {
        self.0.function().end_making();
    }
}

/// A quarter of an idle time: nothing outlives its time by more than that.
fn pause_for(idle: Duration) -> Duration {
    (idle / 4).clamp(SHORTEST_PAUSE, LONGEST_PAUSE)
}

async fn reap(node: Weak<Node>, hurry: Arc<Notify>, mut pause: Duration) {
    loop {
        match node.upgrade() {
            Some(node) => node.reaper.pause.store(pause.as_millis() as u64, Ordering::Relaxed),
            None => return,
        }
        // Without holding the node, which could then never end.
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = hurry.notified() => {}
        }
        let Some(node) = node.upgrade() else { return };
        if let Some(next) = node.reap() {
            pause = next;
            continue;
        }
        // Once more under the lock, so that an instance made right now either is seen or starts another reaper.
        let mut task = node.reaper.task.lock();
        match node.reap() {
            Some(next) => pause = next,
            None => {
                *task = None;
                return;
            }
        }
    }
}
