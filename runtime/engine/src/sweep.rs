//! Gives memory back that slots keep for their next instance, and the allocator for its next caller.
//!
//! A slot of the pool keeps some of its pages when its instance ends (decision 0041 says what that is good for), and
//! wasmtime 48 has no call that makes it let go: after a thousand instances at once, a thousand slots hold on to theirs
//! for ever. So a sweep takes the unused slots itself, for instances of a module that has a memory and nothing else,
//! and returns the pages of each to the system while the slot is its own.
//!
//! From version 50 on wasmtime can do this itself (`Engine::release_idle_pool_memory`), and this file can go.

use rustix::mm::{Advice, madvise};
use std::sync::atomic::{AtomicUsize, Ordering};
use wasmtime::{Engine, Instance, Module, Store};

/// What unused slots may keep before it is worth a sweep.
const WORTH_IT: usize = 8 << 20;

/// `(module (memory (export "m") 0))`
const BROOM: &[u8] = b"\0asm\x01\0\0\0\x05\x03\x01\0\0\x07\x05\x01\x01m\x02\0";

/// Whether unused slots keep much.
pub(crate) fn is_due(engine: &Engine) -> bool {
    let metrics = engine.pooling_allocator_metrics();
    metrics.is_some_and(|metrics| metrics.unused_memory_bytes_resident() > WORTH_IT)
}

/// Makes unused slots give their pages back, but for the few that stay warm. Takes milliseconds, and the slots for as
/// long.
pub(crate) fn sweep(engine: &Engine) {
    // Slots are divided among as many lists as there are processors, sixteen at most, and a thread takes from a list
    // of its own: new threads from each in turn.
    let lists = std::thread::available_parallelism().map_or(1, usize::from).min(16);
    for _ in 0..lists {
        let swept = std::thread::scope(|scope| {
            let sweeper = std::thread::Builder::new().name("ebb-sweep".into());
            let sweeper = sweeper.spawn_scoped(scope, || sweep_list(engine));
            sweeper.map(|sweeper| sweeper.join())
        });
        match swept {
            Ok(Ok(Ok(slots))) => tracing::debug!(slots, "swept"),
            Ok(Ok(Err(error))) => tracing::warn!(%error, "memory of unused slots can't be given back"),
            Ok(Err(_)) => tracing::warn!("memory of unused slots can't be given back: a panic"),
            Err(error) => tracing::warn!(%error, "memory of unused slots can't be given back"),
        }
    }
}

/// What the allocator keeps of a burst: some 50 KB for each call that was under way, and more where calls were large.
///
/// It can't be asked for: what the allocator counts as free is also what it gave back. But what is free now and was not
/// at some time since the last trim has been written since. And where nobody looked at that time, the process itself
/// has grown.
#[derive(Debug)]
pub(crate) struct Heap {
    /// The fewest bytes that were free in it, since it was last trimmed.
    least_free: AtomicUsize,
    /// The fewest bytes of this process that were in memory, and in no file, since then.
    least_resident: AtomicUsize,
}

impl Heap {
    /// The allocator, as calls need it: without a list of small pieces that are free and not put together with their
    /// neighbours yet. It puts all of them together whenever somebody asks for more than a kilobyte, as every call does:
    /// a tenth of what a short one took.
    pub(crate) fn settled() -> Self {
        heap::keep_together();
        Self { least_free: AtomicUsize::new(0), least_resident: AtomicUsize::new(0) }
    }

    /// Makes the allocator give free pages back, if many were written since it last did. Takes milliseconds.
    pub(crate) fn trim_if_worth_it(&self) {
        let many_more =
            |now: usize, least: &AtomicUsize| now > least.fetch_min(now, Ordering::Relaxed) + WORTH_IT;
        // Both, so that both are noted.
        if many_more(heap::free(), &self.least_free) | many_more(heap::resident(), &self.least_resident) {
            heap::trim();
            self.least_free.store(heap::free(), Ordering::Relaxed);
            self.least_resident.store(heap::resident(), Ordering::Relaxed);
        }
    }
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "no other way to ask the allocator of the C library")]
mod heap {
    pub(super) fn free() -> usize {
        // SAFETY: it may be called at any time, by any thread: it takes the locks of the arenas, and only counts.
        unsafe { libc::mallinfo2() }.fordblks
    }

    /// None of it where the system does not say.
    pub(super) fn resident() -> usize {
        // Pages: all, in memory, of these those of files, and more.
        let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
        let mut pages = text.split(' ').skip(1).map_while(|pages| pages.parse::<usize>().ok());
        let (resident, of_files) = (pages.next().unwrap_or(0), pages.next().unwrap_or(0));
        resident.saturating_sub(of_files) * rustix::param::page_size()
    }

    /// Has free pieces put together as they become free; small ones that a thread frees are its own as before.
    pub(super) fn keep_together() {
        // SAFETY: likewise; no piece is too small, so that there is no such list.
        unsafe { libc::mallopt(libc::M_MXFAST, 0) };
    }

    pub(super) fn trim() {
        // SAFETY: likewise; it gives back pages that hold nothing.
        unsafe { libc::malloc_trim(0) };
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
mod heap {
    pub(super) fn free() -> usize {
        0
    }

    pub(super) fn resident() -> usize {
        0
    }

    pub(super) fn keep_together() {}

    pub(super) fn trim() {}
}

/// Sweeps the unused slots of this thread's list; how many.
fn sweep_list(engine: &Engine) -> wasmtime::Result<usize> {
    let Some(metrics) = engine.pooling_allocator_metrics() else { return Ok(0) };
    // A new module each time: slots remember whose they were, and would be the first to be taken again.
    let broom = Module::new(engine, BROOM)?;
    // Kept until the end, so that each is another slot.
    let mut stores = Vec::new();
    loop {
        let unused = metrics.unused_warm_memories();
        let mut store = Store::new(engine, ());
        let Ok(instance) = Instance::new(&mut store, &broom, &[]) else { break };
        if metrics.unused_warm_memories() >= unused {
            // A slot that was never used: those that are left stay warm.
            break;
        }
        let Some(memory) = instance.get_memory(&mut store, "m") else { break };
        let_go(memory.data_ptr(&store))?;
        stores.push(store);
    }
    Ok(stores.len())
}

/// Returns a slot's pages to the system.
#[expect(unsafe_code, reason = "wasmtime 48 has no call for it")]
fn let_go(slot: *mut u8) -> rustix::io::Result<()> {
    let length = ebb_domain::limits::cap::MEMORY_BYTES as usize;
    // SAFETY: a slot reserves `MEMORY_RESERVATION` of address space, which is more than `length`, all of it private
    // and anonymous since the instance in it has no image. That instance is ours, its memory has a size of zero and
    // nobody reads or writes it. Pages that are given back are zero when they are next touched, and so they are when
    // they are not: every slot is all zeroes at this point.
    unsafe { madvise(slot.cast(), length, Advice::LinuxDontNeed) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many pieces that only an arena holds, each of a page, written.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    fn burst() {
        let pieces: Vec<_> = (0..32 << 10).map(|_| Box::new([1_u8; 4 << 10])).collect();
        // What is left at the end keeps the arena from shrinking by itself.
        let last = pieces.into_iter().next_back();
        std::mem::forget(last);
    }

    #[test]
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    fn the_heap_goes_back_after_each_of_several_bursts() {
        let heap = Heap::settled();
        heap.trim_if_worth_it();
        let before = heap::resident();
        for number in 1..=3 {
            burst();
            let kept = heap::resident();
            assert!(kept > before + (64 << 20), "burst {number} leaves nothing: {kept}");
            heap.trim_if_worth_it();
            let after = heap::resident();
            assert!(
                after < before + (32 << 20),
                "burst {number}: {before} before, {kept} kept, {after} after"
            );
        }
    }

    #[test]
    fn the_broom_is_a_module_with_a_memory_and_nothing_else() {
        let text = wat::parse_str(r#"(module (memory (export "m") 0))"#).unwrap();
        assert_eq!(text, BROOM);
    }
}
