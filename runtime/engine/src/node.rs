//! What all functions of a node share: modules, places, the ticker, and the reaper of idle instances.

use crate::module::Modules;
use crate::pool::Pool;
use crate::ticker::Ticker;
use parking_lot::Mutex;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

/// Shared by all functions.
pub(crate) struct Node {
    pub(crate) modules: Arc<Modules>,
    pub(crate) ticker: Ticker,
    pub(crate) concurrency: Arc<Semaphore>,
    pools: Mutex<Vec<Weak<dyn Pool>>>,
    /// The task that drops idle instances: there is one only while there are instances.
    reaper: Mutex<Option<JoinHandle<()>>>,
    this: Weak<Self>,
}

impl Node {
    pub(crate) fn new(modules: Arc<Modules>, ticker: Ticker, concurrency: usize) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            modules,
            ticker,
            concurrency: Arc::new(Semaphore::new(concurrency)),
            pools: Mutex::default(),
            reaper: Mutex::default(),
            this: this.clone(),
        })
    }

    pub(crate) fn add(&self, pool: Weak<dyn Pool>) {
        let mut pools = self.pools.lock();
        pools.retain(|pool| pool.strong_count() > 0);
        pools.push(pool);
    }

    /// Pools of all functions that are deployed.
    pub(crate) fn pools(&self) -> Vec<Arc<dyn Pool>> {
        self.pools.lock().iter().filter_map(Weak::upgrade).collect()
    }

    /// Gives back every instance that is idle right now; whether there were any. For when an instance is needed and
    /// all slots are taken: rare, so that there is no point in choosing.
    pub(crate) fn reclaim(&self) -> bool {
        let mut any = false;
        for pool in self.pools() {
            any |= pool.reclaim();
        }
        any
    }

    /// There is an instance, and so there is a reaper.
    pub(crate) fn instance_made(&self) {
        let mut reaper = self.reaper.lock();
        if reaper.as_ref().is_none_or(JoinHandle::is_finished) {
            let this = self.this.clone();
            *reaper = Some(tokio::spawn(async move { reap(this).await }));
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(reaper) = self.reaper.get_mut() {
            reaper.abort();
        }
    }
}

async fn reap(node: Weak<Node>) {
    // A quarter of the shortest idle time: an instance outlives its time by no more than that.
    let mut pause = Duration::from_millis(10);
    loop {
        tokio::time::sleep(pause).await;
        let Some(node) = node.upgrade() else { return };
        let now = Instant::now();
        let mut used = false;
        pause = Duration::from_secs(5);
        for pool in node.pools() {
            pool.reap(now);
            if pool.instances() > 0 {
                used = true;
                pause = pause.min(pool.function().spec.instances.idle / 4);
            }
        }
        pause = pause.max(Duration::from_millis(5));
        if !used {
            // Under the lock, so that an instance made right now starts another.
            let mut reaper = node.reaper.lock();
            if node.pools().iter().all(|pool| pool.instances() == 0) {
                *reaper = None;
                return;
            }
        }
    }
}
