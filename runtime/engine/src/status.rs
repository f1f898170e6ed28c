//! What `GET /functions` tells about a function.

use crate::pool::Pool;
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

/// One function, as it is now. Counts are since it was deployed on this node, and start from zero with it.
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
    /// Time that making them took, in microseconds, loading included.
    pub init_micros: u64,
    /// Calls that have ended, in whatever way.
    pub calls: u64,
    /// Calls that ended with an error. A refusal is none.
    pub errors: u64,
    /// How long half of its calls took at most, waiting included, in microseconds and to an eighth of itself; none
    /// before the first.
    pub p50_micros: Option<u64>,
    /// The same of 99 in 100 calls.
    pub p99_micros: Option<u64>,
    /// Computing time of its calls, in microseconds.
    pub cpu_micros: u64,
    /// Bytes of output that became log lines.
    pub logged_bytes: u64,
    /// Bytes of output past the bounds, thrown away.
    pub dropped_log_bytes: u64,
}

impl FunctionStatus {
    pub(crate) fn of(pool: &dyn Pool) -> Self {
        let function = pool.function();
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let instances = pool.instances();
        let state = match (function.module.is_loaded(), instances) {
            (false, _) => FunctionState::Cold,
            (true, 0) => FunctionState::Loaded,
            (true, _) => FunctionState::Warm,
        };
        Self {
            app: function.spec.app.clone(),
            function: function.spec.function.clone(),
            module: function.module.digest(),
            state,
            instances,
            loads: function.module.loads(),
            inits: count(&function.inits),
            init_micros: count(&function.init_nanos) / 1000,
            calls: count(&function.calls),
            errors: count(&function.errors),
            p50_micros: function.durations.quantile(0.5),
            p99_micros: function.durations.quantile(0.99),
            cpu_micros: count(&function.cpu_nanos) / 1000,
            logged_bytes: count(&function.source.logged),
            dropped_log_bytes: count(&function.source.dropped),
        }
    }
}
