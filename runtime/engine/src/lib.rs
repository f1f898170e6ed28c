//! Guest code: the only crate that knows wasmtime.
//!
//! [`WasmEngine`] implements [`Engine`]: it compiles modules when they are deployed, keeps the machine code on disk,
//! loads it at a function's first call, and runs calls in pooled instances, each within the limits of its function.
//! A module of any quality can be given to it: what is not WebAssembly, of another world, or imports what it is not
//! granted is refused by name; what traps, loops, allocates, prints or returns without end fails its own call with an
//! error that says so, and nobody else's.
//!
//! - `engines` are wasmtime's, of which there are two. `world` reads what a module is and imports, and lifts core modules; `module` compiles and loads; `artefact` is
//!   the folder of machine code.
//! - `function` has what functions of all kinds share; `pool` keeps their instances, `live` is one and its calls.
//!   `commands`, `projections` and `http` are the kinds, `program` is modules of the first two that speak JSON over
//!   stdio. `node` has what all functions share, and takes back what is idle.
//! - `gate` and `turns` are what apps get a fair share of: places for calls, and processors. `budget` is the memory, and
//!   `sweep` gives back what wasmtime keeps of it.
//! - `host` is what guests see; `bindings` are the types of `wit/functions.wit`.

mod artefact;
mod bindings;
mod budget;
mod clock;
mod commands;
mod config;
mod durations;
mod engines;
mod fair;
mod function;
#[cfg(feature = "testing")]
#[doc(hidden)]
pub mod fuzz;
mod gate;
mod host;
mod http;
mod live;
mod meter;
mod module;
mod node;
mod pool;
mod program;
mod projections;
mod status;
mod sweep;
mod ticker;
mod turns;
mod usage;
mod world;

pub use status::{Census, FunctionState, FunctionStatus};
pub use usage::{ErrorCount, FunctionUsage, Histogram, Invocation, Observer, Outcome, Start, Starts};

use artefact::Artefacts;
use budget::Budget;
use bytes::Bytes;
use commands::{CommandHandle, Commands};
use ebb_domain::digest::Digest;
use ebb_domain::limits::{Limits, cap};
use ebb_domain::name::AppName;
use ebb_domain::port::Future;
use ebb_domain::port::guest::{
    CallError, CommandModule, CompileError, Engine, FunctionSpec, HttpFunction, ModuleKind, ProjectionModule,
};
use engines::Engines;
use fair::Apps;
use function::Function;
use http::{Http, HttpInstance};
use live::Live;
use module::{CompileLimits, Modules};
use node::{Node, Parts};
use pool::{InstancePool, Pool};
use projections::Projection;
use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use ticker::Ticker;
use turns::Turns;

/// The module of a digest, if it is there: for compiling it again when its artefact can't be used. Called on a thread
/// that may block.
pub type Fetch = Arc<dyn Fn(&Digest) -> Option<Bytes> + Send + Sync>;

/// Where an engine keeps its artefacts, and how much it does at once.
#[derive(Clone)]
pub struct EngineOptions {
    /// Folder of artefacts. Nobody else should write into it; it can be thrown away.
    pub artefacts: PathBuf,
    /// Key of the artefacts' MAC: what was not written under it is not loaded.
    pub mac_key: [u8; 32],
    /// Where modules are, for when an artefact is missing, damaged or of another version. Without it they must be
    /// deployed again.
    pub fetch: Option<Fetch>,
    /// Calls at once, of all functions together.
    pub concurrency: usize,
    /// Guests that compute at once: as many as there are processors for them.
    pub running: usize,
    /// Weights of apps whose share, where apps compete, is not 1.
    pub weights: BTreeMap<AppName, u32>,
    /// What one function's limits may be at most, whatever its manifest says.
    pub most: Limits,
    /// Slots for instances, of all functions together, and as many for those whose modules have tasks (WASI 0.3); their
    /// address space is reserved beforehand. With 0, memory is mapped for each instance.
    pub instances: u32,
    /// What instances and loaded modules may take together, in bytes. What is idle gives way when there is no more.
    pub memory_bytes: u64,
    /// How long the code of a module that nobody calls stays in memory.
    pub module_idle: Duration,
    /// How large a module may be, in bytes.
    pub module_bytes: u64,
    /// How long a module may take to compile.
    pub compile_time: Duration,
    /// Who follows invocations, if anybody does.
    pub observer: Option<Arc<dyn Observer>>,
}

impl EngineOptions {
    /// Defaults: 512 calls at once, as many guests computing as there are processors, all apps alike, 1,024 instances, 4 GiB of memory, code kept for 10 idle minutes, modules of 32 MiB
    /// and 60 s to compile, no place to fetch from.
    #[must_use]
    pub fn new(artefacts: PathBuf, mac_key: [u8; 32]) -> Self {
        Self {
            artefacts,
            mac_key,
            fetch: None,
            concurrency: 512,
            running: std::thread::available_parallelism().map_or(1, NonZeroUsize::get),
            weights: BTreeMap::new(),
            most: Limits {
                memory_bytes: cap::MEMORY_BYTES,
                cpu: cap::CPU,
                wall: cap::WALL,
                concurrency: NonZeroU32::new(cap::CONCURRENCY).unwrap_or(NonZeroU32::MIN),
            },
            instances: 1024,
            memory_bytes: 4 << 30,
            module_idle: Duration::from_secs(600),
            module_bytes: cap::MODULE_BYTES,
            compile_time: cap::COMPILE,
            observer: None,
        }
    }

    /// Where modules are fetched from when they must be compiled again.
    #[must_use]
    pub fn with_fetch(mut self, fetch: impl Fn(&Digest) -> Option<Bytes> + Send + Sync + 'static) -> Self {
        self.fetch = Some(Arc::new(fetch));
        self
    }
}

/// Why an engine could not be set up.
#[derive(Debug, Error)]
pub enum EngineError {
    /// The folder of artefacts can't be used.
    #[error("the folder of artefacts {folder} can't be used: {error}")]
    Artefacts {
        /// The folder.
        folder: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// The ticker's thread can't be started.
    #[error("a thread can't be started: {0}")]
    Thread(std::io::Error),
    /// wasmtime does not run here.
    #[error("WebAssembly can't be run on this machine: {0}")]
    Unsupported(String),
}

/// Compiles modules and runs them. Its calls want a tokio runtime with time enabled.
pub struct WasmEngine {
    node: Arc<Node>,
    most: Limits,
}

impl WasmEngine {
    /// Sets up an engine; nothing is compiled or loaded yet.
    ///
    /// # Errors
    /// The folder of artefacts can't be used, or wasmtime does not run on this machine.
    pub fn new(options: EngineOptions) -> Result<Self, EngineError> {
        let EngineOptions {
            artefacts: folder,
            mac_key,
            fetch,
            concurrency,
            running,
            weights,
            most,
            instances,
            memory_bytes,
            module_idle,
            module_bytes,
            compile_time,
            observer,
        } = options;
        let unsupported = |error: wasmtime::Error| EngineError::Unsupported(format!("{error:#}"));
        let engines = Arc::new(Engines::new(instances).map_err(unsupported)?);
        let artefacts = Artefacts::open(&folder, config::fingerprint(engines.plain()), mac_key)
            .map_err(|error| EngineError::Artefacts { folder, error })?;
        let turns = Turns::new(running);
        let ticker = Ticker::start(&engines, turns.clone()).map_err(EngineError::Thread)?;
        let limits = CompileLimits { bytes: module_bytes, time: compile_time };
        let budget = Budget::new(memory_bytes);
        let modules = Modules::new(engines, artefacts, limits, fetch, budget.clone()).map_err(unsupported)?;
        let apps = Apps::new(weights);
        let parts = Parts {
            modules,
            ticker,
            budget,
            apps,
            concurrency,
            turns,
            slots: instances,
            module_idle,
            observer,
        };
        Ok(Self { node: Node::new(parts), most })
    }

    /// Every function that is deployed, as it is now.
    #[must_use]
    pub fn status(&self) -> Vec<FunctionStatus> {
        let mut status: Vec<_> = self.node.pools().iter().map(|pool| FunctionStatus::of(&**pool)).collect();
        status.sort_by(|a, b| (&*a.app, &*a.function).cmp(&(&*b.app, &*b.function)));
        status
    }

    /// How many functions are deployed, by state; for a look at ten thousand of them.
    #[must_use]
    pub fn census(&self) -> Census {
        let mut census = Census { memory_bytes: self.memory_bytes(), ..Census::default() };
        self.node.pools().iter().for_each(|pool| census.add(&**pool));
        census
    }

    /// What every function that was ever called used since the engine was set up, whether it is still deployed or not.
    #[must_use]
    pub fn usage(&self) -> Vec<FunctionUsage> {
        let mut usage: Vec<_> = self.node.ledger.accounts().iter().map(|account| account.usage()).collect();
        usage.sort_by(|a, b| (&*a.app, &*a.function).cmp(&(&*b.app, &*b.function)));
        usage
    }

    /// Epoch ticks so far: every 10 ms while a guest runs, more often while guests wait for processors, none while none
    /// runs.
    #[must_use]
    pub fn ticks(&self) -> u64 {
        self.node.ticker.ticks()
    }

    /// What instances and loaded modules take together now, in bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.node.budget.used()
    }

    fn function(&self, mut spec: FunctionSpec, kind: ModuleKind) -> Result<Function, CallError> {
        spec.limits = spec.limits.within(&self.most);
        let module = self.node.modules.get(spec.module, kind)?;
        // Aggregates share instances and take turns in them; every other call has an instance to itself.
        let places = match kind {
            ModuleKind::Command => spec.limits.concurrency,
            ModuleKind::Projection | ModuleKind::Http(_) => spec.limits.concurrency.min(spec.instances.max),
        };
        Ok(Function::new(spec, places.get(), module, self.node.clone()))
    }

    /// The node knows the function's instances from now on, for as long as someone has the function.
    fn add<P: Pool + 'static>(&self, pool: &Arc<P>) {
        let pool: Arc<dyn Pool> = pool.clone();
        self.node.add(Arc::downgrade(&pool));
    }
}

impl Engine for WasmEngine {
    fn compile(&self, wasm: Bytes, kind: ModuleKind) -> Future<'_, Result<Digest, CompileError>> {
        Box::pin(self.node.modules.compile(wasm, kind))
    }

    fn commands(&self, spec: FunctionSpec) -> Result<Arc<dyn CommandModule>, CallError> {
        let commands = Arc::new(Commands::new(self.function(spec, ModuleKind::Command)?));
        self.add(&commands);
        Ok(Arc::new(CommandHandle(commands)))
    }

    fn projection(&self, spec: FunctionSpec) -> Result<Arc<dyn ProjectionModule>, CallError> {
        let pool = InstancePool::<Live>::new(self.function(spec, ModuleKind::Projection)?);
        self.add(&pool);
        Ok(Arc::new(Projection(pool)))
    }

    fn http(&self, spec: FunctionSpec, max_response: u64) -> Result<Arc<dyn HttpFunction>, CallError> {
        let kind = ModuleKind::Http(spec.capabilities.grants());
        let pool = InstancePool::<HttpInstance>::new(self.function(spec, kind)?);
        self.add(&pool);
        Ok(Arc::new(Http::new(pool, max_response)))
    }

    fn forget(&self, app: &AppName) {
        self.node.ledger.forget(app);
    }
}
