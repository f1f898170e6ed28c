//! The one place that says how wasmtime is configured. What modules may rely on, how they are interrupted and where
//! their memory comes from is decided here and nowhere else; decision 0010 gives the reasons.

use crate::engines::Tasks;
use std::hash::{Hash, Hasher};
use wasmtime::{
    Config, Enabled, Engine, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig, Strategy,
};

/// Stack that guest code itself may use, in bytes.
const WASM_STACK: usize = 256 << 10;
/// Stack of a call, guest and host functions together, in bytes.
const CALL_STACK: usize = 512 << 10;
/// Address space for one linear memory, in bytes: all that a 32-bit guest can name, so that loads and stores need no
/// bounds checks. It is reserved, not used: only what a guest touches costs memory.
const MEMORY_RESERVATION: u64 = 4 << 30;
/// Bytes of a memory slot that are reset in place, and stay, rather than given back to the system after use: with
/// `pagemap_scan` only those that the guest has written, which is cheaper than the page faults that come with fresh
/// pages. Small guests write no more than this. Decision 0041 has the figures.
const KEEP_RESIDENT: usize = 128 << 10;
/// Bytes of a call's stack that are zeroed in place, and stay; what lies below goes back to the system. Calls of usual
/// depth use no more, and a fresh instance takes 0.7 us longer for it. Without it, whatever once recursed keeps its
/// 256 KiB for ever, in each of a thousand stacks. Decision 0072 has the figures.
const STACK_RESIDENT: usize = 16 << 10;
/// Slots beyond those in use that keep the mapping of their last module, and their pages, for as long as the node
/// runs: 2 MiB at most. What other slots keep, [`sweep`](crate::sweep) gives back.
const WARM_SLOTS: u32 = 16;

/// An engine that takes instances from a pool of `instances` slots where this process may reserve the address space
/// for it, and maps memory for each instance otherwise (in containers with a limit on address space, say).
pub(crate) fn engine(instances: u32, tasks: Tasks) -> wasmtime::Result<Engine> {
    if instances > 0 {
        // Making the pool is the probe: it reserves the address space of all slots at once, and fails if it can't.
        match Engine::new(&config(Some(instances), tasks)) {
            Ok(engine) => return Ok(engine),
            Err(error) => tracing::warn!(
                instances,
                error = %format!("{error:#}"),
                "address space for pooled instances can't be reserved: memory is mapped for each instance, which is slower"
            ),
        }
    }
    Engine::new(&config(None, tasks))
}

/// The only constructor of a [`Config`].
fn config(pooled_instances: Option<u32>, tasks: Tasks) -> Config {
    let mut config = Config::new();
    config
        .strategy(Strategy::Cranelift)
        .cranelift_opt_level(OptLevel::Speed)
        // Two compilations at a time, on a thread each, leave the other cores to calls.
        .parallel_compilation(false);

    // Same inputs, same bits, on every machine: that is what replay rests on.
    config.cranelift_nan_canonicalization(true).relaxed_simd_deterministic(true);

    // Proposals that no supported toolchain needs are surface without use. They are switched off here and not by
    // cargo features: builds without those features are the less tested ones.
    config
        .wasm_gc(false)
        .wasm_function_references(false)
        .wasm_exceptions(false)
        .wasm_threads(false)
        .wasm_shared_everything_threads(false)
        .wasm_memory64(false)
        .wasm_multi_memory(false)
        .wasm_tail_call(false)
        .wasm_stack_switching(false)
        .wasm_custom_page_sizes(false)
        .wasm_wide_arithmetic(false)
        .wasm_component_model(true)
        // Only HTTP functions may use tasks: `features` refuses modules of the deterministic worlds that do.
        .wasm_component_model_async(tasks == Tasks::With)
        .concurrency_support(tasks == Tasks::With);

    config
        .epoch_interruption(true)
        .max_wasm_stack(WASM_STACK)
        .async_stack_size(CALL_STACK)
        .async_stack_zeroing(true);
    config.memory_init_cow(true);
    // For native debuggers and profilers; wasmtime's own backtraces and traps do without it, and every load of a module would
    // read, copy and register it.
    config.native_unwind_info(false);
    match pooled_instances {
        Some(instances) => {
            config.memory_reservation(MEMORY_RESERVATION);
            config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool(instances)));
        }
        None => {
            // Address space is what is scarce here.
            config.memory_reservation(0).memory_reservation_for_growth(1 << 20).memory_guard_size(64 << 10);
            config.allocation_strategy(InstanceAllocationStrategy::OnDemand);
        }
    }
    config
}

fn pool(instances: u32) -> PoolingAllocationConfig {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(instances)
        // A module lifted by a toolchain is its own core instance, an adapter and two shims.
        .total_core_instances(instances * 4)
        .total_memories(instances * 2)
        .total_tables(instances * 4)
        // An instance keeps the stack of its last call.
        .total_stacks(instances)
        .max_core_instances_per_component(50)
        .max_memories_per_component(8)
        .max_tables_per_component(16)
        .table_elements(20_000)
        .max_memory_size(ebb_domain::limits::cap::MEMORY_BYTES as usize)
        .max_unused_warm_slots(WARM_SLOTS)
        .linear_memory_keep_resident(KEEP_RESIDENT)
        .pagemap_scan(Enabled::Auto)
        .table_keep_resident(64 << 10)
        .async_stack_keep_resident(STACK_RESIDENT);
    pool
}

/// What an artefact depends on besides its module: wasmtime's version, its settings, and the processor it was
/// compiled for.
pub(crate) fn fingerprint(engine: &Engine) -> String {
    let mut hasher = std::hash::DefaultHasher::new();
    engine.precompile_compatibility_hash().hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// Proposals as [`config`] has them, for validation before compiling.
pub(crate) fn features(tasks: Tasks) -> wasmparser::WasmFeatures {
    use wasmparser::WasmFeatures as F;
    let features = F::default()
        - F::GC
        - F::FUNCTION_REFERENCES
        - F::EXCEPTIONS
        - F::THREADS
        - F::MEMORY64
        - F::MULTI_MEMORY
        - F::TAIL_CALL
        - F::CM_ASYNC;
    match tasks {
        Tasks::Without => features,
        Tasks::With => features | F::CM_ASYNC,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_pool_memory_is_mapped_on_demand() {
        engine(0, Tasks::Without).expect("needs no address space beforehand");
    }

    #[test]
    fn a_pool_that_does_not_fit_into_the_address_space_is_done_without() {
        // Three million slots of 4 GiB are more than 47 bits can name.
        let fallen_back = fingerprint(&engine(3_000_000, Tasks::Without).expect("falls back"));
        assert_eq!(fallen_back, fingerprint(&engine(0, Tasks::Without).unwrap()));
    }

    #[test]
    fn pooled_and_mapped_memory_have_artefacts_of_their_own() {
        assert_ne!(
            fingerprint(&engine(4, Tasks::Without).unwrap()),
            fingerprint(&engine(0, Tasks::Without).unwrap())
        );
    }
}
