//! The node's memory for functions: what instances and loaded modules take together, counted as it is taken.

use crate::function::overloaded;
use ebb_domain::port::guest::{CallError, Lack};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// Makes room for so many bytes, if it can.
type MakeRoom = Box<dyn Fn(u64) + Send + Sync>;

/// How much there may be, and how much there is.
pub(crate) struct Budget {
    limit: u64,
    used: AtomicU64,
    make_room: OnceLock<MakeRoom>,
}

impl Budget {
    pub(crate) fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self { limit, used: AtomicU64::new(0), make_room: OnceLock::new() })
    }

    /// Who is asked for room when there is none.
    pub(crate) fn ask_for_room(&self, make_room: MakeRoom) {
        let first = self.make_room.set(make_room);
        debug_assert!(first.is_ok(), "a budget has one owner");
    }

    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether `more` bytes would fit now, and a sixteenth of it all besides: how far those who make room go, so that
    /// they need not come again for every byte.
    pub(crate) fn is_roomy(&self, more: u64) -> bool {
        self.used().saturating_add(more) <= self.limit - self.limit / 16
    }

    fn take(&self, bytes: u64) -> bool {
        self.try_take(bytes)
            || self.make_room.get().is_some_and(|make_room| {
                make_room(bytes);
                self.try_take(bytes)
            })
    }

    fn try_take(&self, bytes: u64) -> bool {
        let fits = |used: u64| used.checked_add(bytes).filter(|used| *used <= self.limit);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok()
    }
}

/// Bytes of a budget that someone has taken; they go back when it is dropped.
pub(crate) struct Charge {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Charge {
    /// Nothing yet.
    pub(crate) fn new(budget: Arc<Budget>) -> Self {
        Self { budget, bytes: 0 }
    }

    /// Takes more.
    ///
    /// # Errors
    /// There is not so much, and none to be had from those who are idle.
    pub(crate) fn grow(&mut self, bytes: u64) -> Result<(), CallError> {
        if !self.budget.take(bytes) {
            return Err(overloaded(Lack::Memory(self.budget.limit)));
        }
        self.bytes += bytes;
        Ok(())
    }

    /// Gives some of it back.
    pub(crate) fn shrink(&mut self, bytes: u64) {
        debug_assert!(bytes <= self.bytes, "no more goes back than was taken");
        self.budget.used.fetch_sub(bytes, Ordering::Relaxed);
        self.bytes -= bytes;
    }

    /// What has been taken.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;

    #[test]
    fn no_more_is_taken_than_there_is_and_all_of_it_goes_back() {
        let budget = Budget::new(100);
        let (mut one, mut other) = (Charge::new(budget.clone()), Charge::new(budget.clone()));
        assert!(one.grow(60).is_ok() && other.grow(40).is_ok());
        assert_eq!(one.grow(1), Err(overloaded(Lack::Memory(100))));
        assert!(other.grow(u64::MAX).is_err());
        assert_eq!((budget.used(), one.bytes()), (100, 60));
        one.shrink(10);
        assert_eq!((budget.used(), one.bytes()), (90, 50));
        drop(one);
        assert!(other.grow(60).is_ok());
        drop(other);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn room_is_made_before_anyone_is_refused() {
        let budget = Budget::new(100);
        let mut idle = Charge::new(budget.clone());
        idle.grow(100).unwrap();
        let idle = Mutex::new(Some(idle));
        budget.ask_for_room(Box::new(move |_| drop(idle.lock().take())));
        let mut other = Charge::new(budget);
        assert!(other.grow(100).is_ok());
        assert!(other.grow(1).is_err(), "and only then");
    }
}
