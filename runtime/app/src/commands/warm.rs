//! Warm aggregates: state that lives on in an instance between commands.

use super::function::AggregateFunction;
use ebb_domain::event::{EventId, Revision};
use ebb_domain::port::guest::Aggregate;
use ebb_domain::port::log::Settlement;
use ebb_domain::stream::StreamId;
use lru::LruCache;
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::time::Instant;

/// An aggregate in an instance, folded up to `revision`, staged commits included.
pub(crate) struct Warm {
    /// The version that it runs in.
    pub function: Arc<AggregateFunction>,
    /// The aggregate.
    pub aggregate: Box<dyn Aggregate>,
    /// Revision of the last event that it has folded.
    pub revision: Option<Revision>,
    /// That event.
    pub last: Option<EventId>,
    /// Kept when every commit that it has folded is durable.
    pub settlement: Settlement,
    /// Events folded since the last snapshot.
    pub unsnapshotted: u32,
    /// A call failed after the last commit was staged: the instance is gone.
    pub spoiled: bool,
}

/// Warm aggregates that no command is working on, the least recently used first to go.
pub(crate) struct WarmCache {
    idle: Mutex<LruCache<StreamId, (Instant, Warm)>>,
}

impl WarmCache {
    pub(crate) fn new() -> Self {
        // Bounded by `put`, by what the functions' instances can hold.
        Self { idle: Mutex::new(LruCache::unbounded()) }
    }

    /// Takes a stream's warm aggregate, if it has one: good or not is the taker's to see.
    pub(crate) fn take(&self, stream: &StreamId) -> Option<Warm> {
        self.idle.lock().pop(stream).map(|(_, warm)| warm)
    }

    /// Keeps an aggregate warm; makes room for it where its function has no more slots.
    pub(crate) fn put(&self, stream: StreamId, warm: Warm, capacity: usize) {
        let mut evicted = Vec::new();
        {
            let mut idle = self.idle.lock();
            idle.put(stream, (Instant::now(), warm));
            while idle.len() > capacity {
                evicted.extend(idle.pop_lru());
            }
        }
        // Dropped outside the lock: dropping an aggregate talks to its instance.
        drop(evicted);
    }

    /// Drops the least recently used aggregate, to free its slot.
    pub(crate) fn evict_one(&self) -> bool {
        let evicted = self.idle.lock().pop_lru();
        evicted.is_some()
    }

    /// Drops what was last used before `since`; says whether anything is left.
    pub(crate) fn evict_older_than(&self, since: Instant) -> bool {
        let mut evicted = Vec::new();
        let mut idle = self.idle.lock();
        while idle.peek_lru().is_some_and(|(_, (used, _))| *used < since) {
            evicted.extend(idle.pop_lru());
        }
        let left = !idle.is_empty();
        drop(idle);
        drop(evicted);
        left
    }

    /// Drops everything.
    pub(crate) fn clear(&self) {
        let all = std::mem::replace(&mut *self.idle.lock(), LruCache::unbounded());
        drop(all);
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.idle.lock().len()
    }
}

impl Warm {
    /// Whether it may decide for this version: its own, and nothing that it was folded from was rewound.
    pub(crate) fn is_good(&self, function: &Arc<AggregateFunction>) -> bool {
        Arc::ptr_eq(&self.function, function) && self.settlement.failure().is_none()
    }
}
