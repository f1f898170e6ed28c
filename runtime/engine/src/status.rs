//! What `GET /functions` tells about a function.

use crate::pool::Pool;
use crate::usage::FunctionUsage;
use ebb_domain::digest::Digest;
use ebb_domain::name::AppName;
use ebb_domain::text::Text;
use serde::Serialize;
use std::sync::atomic::{AtomicU64, Ordering};

/// How much of a function is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FunctionState {
    /// On disk only.
    Cold,
    /// Its code is in memory.
    Loaded,
    /// It has instances.
    Warm,
}

/// How many functions there are of each state, without a word on each of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// On disk only.
    pub cold: usize,
    /// Their code is in memory.
    pub loaded: usize,
    /// They have instances.
    pub warm: usize,
    /// Those that have instances, and how many.
    pub instances: Vec<(AppName, Text, usize)>,
    /// What instances and loaded modules take together, in bytes.
    pub memory_bytes: u64,
}

impl Census {
    pub(crate) fn add(&mut self, pool: &dyn Pool) {
        let instances = pool.instances();
        match FunctionState::of(pool, instances) {
            FunctionState::Cold => self.cold += 1,
            FunctionState::Loaded => self.loaded += 1,
            FunctionState::Warm => {
                let spec = &pool.function().spec;
                self.warm += 1;
                self.instances.push((spec.app.clone(), spec.function.clone(), instances));
            }
        }
    }
}

impl FunctionState {
    fn of(pool: &dyn Pool, instances: usize) -> Self {
        match (pool.function().module.is_loaded(), instances) {
            (false, _) => Self::Cold,
            (true, 0) => Self::Loaded,
            (true, _) => Self::Warm,
        }
    }
}

/// One function, as it is now. Counts are since the node began, whatever was deployed meanwhile; those of loads and of
/// log lines are of this deployment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FunctionStatus {
    /// Its app.
    pub app: AppName,
    /// `aggregate.flight`, `projection.delays`.
    pub function: Text,
    /// Digest of its module.
    pub module: Digest,
    /// How much of it is there.
    pub state: FunctionState,
    /// How often its module was loaded, for whichever function.
    pub loads: u64,
    /// Instances it has, in use or idle.
    pub instances: usize,
    /// Instances that were made for it.
    pub inits: u64,
    /// Time that calls waited for them to be made, in microseconds, loading included.
    pub init_micros: u64,
    /// Invocations that have ended, in whatever way, and calls that found no place.
    pub calls: u64,
    /// Those that ended with an error, or found no place. A refusal is no error.
    pub errors: u64,
    /// How long half of its calls took at most, waiting included, in microseconds and to an eighth of itself; none
    /// before the first.
    pub p50_micros: Option<u64>,
    /// The same of 99 in 100 calls.
    pub p99_micros: Option<u64>,
    /// Computing time, in microseconds.
    pub cpu_micros: u64,
    /// Billed milliseconds.
    pub billed_millis: u64,
    /// The most that one of its instances had of memory.
    pub memory_peak_bytes: u64,
    /// Bytes of output that became log lines.
    pub logged_bytes: u64,
    /// Bytes of output past the bounds, thrown away.
    pub dropped_log_bytes: u64,
}

impl FunctionStatus {
    /// One that the engine has not made: nobody has called it since its app was opened. `usage` is of before.
    #[must_use]
    pub fn cold(app: AppName, function: Text, module: Digest, usage: Option<&FunctionUsage>) -> Self {
        let of = |what: fn(&FunctionUsage) -> u64| usage.map_or(0, what);
        Self {
            app,
            function,
            module,
            state: FunctionState::Cold,
            loads: 0,
            instances: 0,
            inits: of(|usage| usage.instances),
            init_micros: of(|usage| usage.init_micros),
            calls: of(|usage| usage.invocations + usage.throttled),
            errors: of(|usage| usage.failed() + usage.throttled),
            p50_micros: usage.and_then(|usage| usage.p50_micros),
            p99_micros: usage.and_then(|usage| usage.p99_micros),
            cpu_micros: of(|usage| usage.cpu_micros),
            billed_millis: of(|usage| usage.billed_millis),
            memory_peak_bytes: of(|usage| usage.memory_peak_bytes),
            logged_bytes: 0,
            dropped_log_bytes: 0,
        }
    }

    pub(crate) fn of(pool: &dyn Pool) -> Self {
        let function = pool.function();
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let instances = pool.instances();
        let usage = function.used_before().map(|account| account.usage());
        let spec = &function.spec;
        Self {
            state: FunctionState::of(pool, instances),
            instances,
            loads: function.module.loads(),
            logged_bytes: count(&function.source.logged),
            dropped_log_bytes: count(&function.source.dropped),
            ..Self::cold(spec.app.clone(), spec.function.clone(), function.module.digest(), usage.as_ref())
        }
    }
}
