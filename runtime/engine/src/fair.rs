//! Queues, one for each app, and the apps' weights: what [`gate`](crate::gate) and [`turns`](crate::turns) share.

use ebb_domain::name::AppName;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// An app, as a small number. Numbers are not given out again: there are as many as names were ever deployed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct App {
    pub(crate) index: usize,
    /// Its share among those who want something: twice the weight, twice the share.
    pub(crate) weight: u32,
}

/// All apps of a node.
pub(crate) struct Apps {
    weights: BTreeMap<AppName, u32>,
    known: Mutex<HashMap<AppName, App>>,
}

impl Apps {
    /// Apps that are not named have a weight of 1.
    pub(crate) fn new(weights: BTreeMap<AppName, u32>) -> Self {
        Self { weights, known: Mutex::default() }
    }

    pub(crate) fn get(&self, name: &AppName) -> App {
        let mut known = self.known.lock();
        let next = known.len();
        let weight = || self.weights.get(name).copied().unwrap_or(1).max(1);
        *known.entry(name.clone()).or_insert_with(|| App { index: next, weight: weight() })
    }
}

/// How long an app that called is reckoned with.
const RECENT_MILLIS: u64 = 50;

/// Whether one app has the node to itself.
#[derive(Default)]
pub(crate) struct Solo {
    /// Whose the last call was, and one more; 0 before there was any.
    last: AtomicUsize,
    /// Until when more than one is reckoned with, in milliseconds of the node.
    shared_until: AtomicU64,
}

impl Solo {
    /// An app calls, at a time in milliseconds of the node: whether no other has called just now.
    pub(crate) fn calls(&self, app: App, now: u64) -> bool {
        let app = app.index + 1;
        let last = self.last.load(Ordering::Relaxed);
        // Written only when it changes: every processor reads it for every call.
        if last != app {
            self.last.store(app, Ordering::Relaxed);
            if last != 0 {
                self.shared_until.store(now + RECENT_MILLIS, Ordering::Relaxed);
            }
        }
        now >= self.shared_until.load(Ordering::Relaxed)
    }
}

/// Who waits, by app and in the order they came.
pub(crate) struct Queues<T> {
    queues: Vec<VecDeque<T>>,
    /// Apps of which somebody waits.
    waiting: Vec<App>,
}

impl<T> Queues<T> {
    pub(crate) fn new() -> Self {
        Self { queues: Vec::new(), waiting: Vec::new() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(crate) fn push(&mut self, app: App, waiter: T) {
        if self.queues.len() <= app.index {
            self.queues.resize_with(app.index + 1, VecDeque::new);
        }
        let queue = &mut self.queues[app.index];
        if queue.is_empty() {
            self.waiting.push(app);
        }
        queue.push_back(waiter);
    }

    /// Forgets those of an app who are gone.
    pub(crate) fn retain(&mut self, app: App, stays: impl FnMut(&T) -> bool) {
        let Some(queue) = self.queues.get_mut(app.index) else { return };
        queue.retain(stays);
        if queue.is_empty() {
            self.waiting.retain(|waiting| *waiting != app);
        }
    }

    /// Takes who has waited longest of the app for which `rank` is least, among those for which there is one.
    pub(crate) fn pop_least<R: Ord>(&mut self, rank: impl Fn(App) -> Option<R>) -> Option<(App, T)> {
        let ranked = self.waiting.iter().enumerate().filter_map(|(place, app)| Some((rank(*app)?, place)));
        let (_, place) = ranked.min()?;
        let app = self.waiting[place];
        let queue = &mut self.queues[app.index];
        let waiter = queue.pop_front()?;
        if queue.is_empty() {
            // In order, so that among equals nobody is passed over for ever.
            self.waiting.remove(place);
        } else {
            self.waiting[place..].rotate_left(1);
        }
        Some((app, waiter))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_app_is_alone_until_another_calls_and_some_time_after_that() {
        let (one, other) = (App { index: 0, weight: 1 }, App { index: 1, weight: 1 });
        let solo = Solo::default();
        assert!(solo.calls(one, 0) && solo.calls(one, 1), "from its first call on");
        assert!(!solo.calls(other, 2) && !solo.calls(one, 3) && !solo.calls(one, 3 + RECENT_MILLIS - 1));
        assert!(solo.calls(one, 3 + RECENT_MILLIS));
    }
}
