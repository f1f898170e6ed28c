//! Modules: compiled at deploy in a bounded worker, loaded from their artefact when a function is first called.

use crate::Fetch;
use crate::artefact::{Artefact, Artefacts};
use crate::budget::{Budget, Charge};
use crate::engines::{Engines, Tasks};
use crate::host::{self, State};
use crate::http;
use crate::world::{self, Admitted, KindExt};
use bytes::Bytes;
use ebb_domain::digest::Digest;
use ebb_domain::port::guest::{CallError, CompileError, Grants, ModuleKind};
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use parking_lot::Mutex;
use std::any::Any;
use std::collections::HashMap;
use std::io;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::Semaphore;
use wasmtime::component::{Component, ComponentExportIndex, InstancePre, Linker};
use wasmtime::{Engine, InstancePre as CoreInstancePre, Linker as CoreLinker};
use wasmtime_wasi_http::handler::ProxyPre;

/// Compilations at once: each takes a thread and perhaps hundreds of megabytes.
const COMPILERS: usize = 2;

type HttpLinkers = HashMap<(Grants, Tasks), Arc<Linker<http::State>>>;

/// All modules of a node.
pub(crate) struct Modules {
    engines: Arc<Engines>,
    linker: Linker<State>,
    programs: CoreLinker<State>,
    http_programs: CoreLinker<http::State>,
    /// Of HTTP functions, made when the first of its grants is linked.
    http_linkers: Mutex<HttpLinkers>,
    artefacts: Artefacts,
    compilers: Arc<Semaphore>,
    limits: CompileLimits,
    fetch: Option<Fetch>,
    budget: Arc<Budget>,
    /// Loaded or not, shared by every function of the same module for as long as one of them is deployed.
    known: Mutex<HashMap<(Digest, ModuleKind), Weak<Module>>>,
}

/// Bounds of compiling.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CompileLimits {
    pub(crate) bytes: u64,
    pub(crate) time: Duration,
}

/// One module, perhaps loaded.
pub(crate) struct Module {
    digest: Digest,
    kind: ModuleKind,
    code: Mutex<Code>,
    /// How often it was loaded for a call.
    loads: AtomicU64,
    /// When a function of it was called last, in milliseconds of the node.
    used_at: AtomicU64,
}

/// Where the code of a module is.
enum Code {
    /// On disk only.
    Cold,
    /// On its way, for all who wait for it.
    Loading(Loading),
    /// In memory.
    Loaded(Arc<Loaded>),
}

type Loading = Shared<BoxFuture<'static, Result<Arc<Loaded>, CallError>>>;

/// A module that can be instantiated. Every instance holds it, so that nothing but the module itself does when there
/// are none.
pub(crate) struct Loaded {
    pub(crate) engine: Engine,
    pub(crate) form: Form,
    _memory: Charge,
}

/// How a module is instantiated.
pub(crate) enum Form {
    Component {
        pre: InstancePre<State>,
        exports: ExportIndices,
    },
    /// A core module with a `_start`.
    Program(CoreInstancePre<State>),
    /// An HTTP function, of any form.
    Http(HttpForm),
}

/// How an HTTP function is instantiated.
pub(crate) enum HttpForm {
    /// A component of `wasi:http`.
    Proxy(ProxyPre<http::State>),
    /// A program that is a component.
    Run { pre: InstancePre<http::State>, run: ComponentExportIndex },
    /// A program that is a core module.
    Start(CoreInstancePre<http::State>),
}

/// Where the functions are among a component's exports.
pub(crate) enum ExportIndices {
    Command {
        constructor: ComponentExportIndex,
        restore: ComponentExportIndex,
        apply: ComponentExportIndex,
        decide: ComponentExportIndex,
        snapshot: ComponentExportIndex,
    },
    Projection {
        apply: ComponentExportIndex,
    },
    /// Of any kind: a program's kind is in the documents that it reads and writes.
    Program {
        run: ComponentExportIndex,
    },
}

impl Loaded {
    pub(crate) fn is_program(&self) -> bool {
        match &self.form {
            Form::Component { exports, .. } => matches!(exports, ExportIndices::Program { .. }),
            Form::Http(form) => !matches!(form, HttpForm::Proxy(_)),
            Form::Program(_) => true,
        }
    }
}

impl Modules {
    pub(crate) fn new(
        engines: Arc<Engines>,
        artefacts: Artefacts,
        limits: CompileLimits,
        fetch: Option<Fetch>,
        budget: Arc<Budget>,
    ) -> wasmtime::Result<Arc<Self>> {
        let linker = host::linker(engines.plain())?;
        let programs = host::preview1::linker(engines.plain())?;
        let http_programs = host::preview1::linker(engines.plain())?;
        let compilers = Arc::new(Semaphore::new(COMPILERS));
        Ok(Arc::new(Self {
            engines,
            linker,
            programs,
            http_programs,
            http_linkers: Mutex::default(),
            artefacts,
            compilers,
            limits,
            fetch,
            budget,
            known: Mutex::default(),
        }))
    }

    pub(crate) fn engines(&self) -> &Arc<Engines> {
        &self.engines
    }

    /// Checks, compiles and keeps a module.
    pub(crate) async fn compile(
        self: &Arc<Self>,
        wasm: Bytes,
        kind: ModuleKind,
    ) -> Result<Digest, CompileError> {
        let (size, limit) = (wasm.len() as u64, self.limits.bytes);
        if size > limit {
            return Err(CompileError::TooLarge { size, limit });
        }
        let ours = self.clone();
        let bytes = wasm.clone();
        let (digest, there) = blocking(move || {
            // What a function is granted is not the artefact's business: it is looked at each time.
            if let ModuleKind::Http(_) = kind {
                world::admit(&bytes, kind)?;
            }
            let digest = Digest::of(&bytes);
            Ok::<_, CompileError>((digest, ours.artefacts.load(&ours.engines, &digest, kind).is_some()))
        })
        .await
        .map_err(CompileError::Failed)??;
        if !there {
            self.compile_bounded(wasm, digest, kind).await?;
        }
        Ok(digest)
    }

    /// Compiles off the reactor, at most [`COMPILERS`] at once and each for a bounded time. A thread can't be stopped:
    /// past its time it is left to itself, and keeps its place until it is done, so that modules which compile for
    /// ever take no more than the places there are. Who finds none within the same time is told to try again.
    async fn compile_bounded(
        self: &Arc<Self>,
        wasm: Bytes,
        digest: Digest,
        kind: ModuleKind,
    ) -> Result<(), CompileError> {
        let limit = self.limits.time;
        let place = tokio::time::timeout(limit, self.compilers.clone().acquire_owned())
            .await
            .map_err(|_| {
                CompileError::Failed(
                    "other modules are being compiled, and take long; try again later".into(),
                )
            })?
            .expect("the semaphore is never closed");
        let ours = self.clone();
        let work = blocking(move || {
            let _place = place;
            ours.compile_now(&wasm, &digest, kind)
        });
        match tokio::time::timeout(limit, work).await {
            Ok(done) => done.map_err(CompileError::Failed)?,
            Err(_) => Err(CompileError::TooSlow { limit }),
        }
    }

    fn compile_now(&self, wasm: &[u8], digest: &Digest, kind: ModuleKind) -> Result<(), CompileError> {
        let admitted = world::admit(wasm, kind)?;
        let failed = |error: &dyn std::fmt::Display| CompileError::Failed(error.to_string());
        let (code, tasks) = match admitted {
            Admitted::Component(component, tasks) => {
                let engine = self.engines.get(tasks);
                (engine.and_then(|engine| engine.precompile_component(&component)), tasks)
            }
            Admitted::Program(module) => (self.engines.plain().precompile_module(module), Tasks::Without),
        };
        let code = code.map_err(|error| failed(&format!("{error:#}")))?;
        self.artefacts
            .save(digest, kind, code, tasks)
            .map_err(|error| failed(&format!("its artefact can't be written: {error}; is the disk full?")))?;
        // Linked once now, so that what only linking finds is found at deploy.
        let code = self
            .artefacts
            .load(&self.engines, digest, kind)
            .ok_or_else(|| failed(&"its artefact can't be read back; the log says why"))?;
        self.link(&code, kind).map(drop).map_err(|error| {
            self.artefacts.remove(digest, kind);
            failed(&format!("{error:#}"))
        })
    }

    fn link(&self, artefact: &Artefact, kind: ModuleKind) -> wasmtime::Result<Form> {
        let component = match (artefact, kind) {
            (Artefact::Component(component), _) => component,
            (Artefact::Program(module), ModuleKind::Http(_)) => {
                return Ok(Form::Http(HttpForm::Start(self.http_programs.instantiate_pre(module)?)));
            }
            (Artefact::Program(module), _) => {
                return Ok(Form::Program(self.programs.instantiate_pre(module)?));
            }
        };
        if let ModuleKind::Http(grants) = kind {
            let pre = self.http_linker(grants, component.engine())?.instantiate_pre(component)?;
            // One that is both is called through its interface, as everywhere.
            let form = match (http::proxy(pre.clone()), program_run(component)) {
                (Ok(proxy), _) => HttpForm::Proxy(proxy),
                (Err(_), Some(run)) => HttpForm::Run { pre, run },
                (Err(error), None) => return Err(error),
            };
            return Ok(Form::Http(form));
        }
        let exports = export_indices(component, kind)?;
        let pre = match host::linker_with_sockets(&self.linker, self.engines.plain(), component)? {
            Some(linker) => linker.instantiate_pre(component)?,
            None => self.linker.instantiate_pre(component)?,
        };
        Ok(Form::Component { pre, exports })
    }

    fn http_linker(&self, grants: Grants, engine: &Engine) -> wasmtime::Result<Arc<Linker<http::State>>> {
        let tasks = if Engine::same(engine, self.engines.plain()) { Tasks::Without } else { Tasks::With };
        if let Some(linker) = self.http_linkers.lock().get(&(grants, tasks)) {
            return Ok(linker.clone());
        }
        let linker = Arc::new(http::linker(engine, grants, tasks)?);
        self.http_linkers.lock().insert((grants, tasks), linker.clone());
        Ok(linker)
    }

    /// The module of a digest, not loaded yet.
    pub(crate) fn get(&self, digest: Digest, kind: ModuleKind) -> Result<Arc<Module>, CallError> {
        let mut known = self.known.lock();
        if let Some(module) = known.get(&(digest, kind)).and_then(Weak::upgrade) {
            return Ok(module);
        }
        let there = self.artefacts.contains(&digest, kind)
            || self.fetch.as_ref().is_some_and(|fetch| fetch(&digest).is_some());
        if !there {
            return Err(CallError::Failed(format!(
                "there is no compiled {} module {}; deploy it again",
                kind.name(),
                digest.short()
            )));
        }
        known.retain(|_, module| module.strong_count() > 0);
        let module = Arc::new(Module {
            digest,
            kind,
            code: Mutex::new(Code::Cold),
            loads: AtomicU64::new(0),
            used_at: AtomicU64::new(0),
        });
        known.insert((digest, kind), Arc::downgrade(&module));
        Ok(module)
    }

    /// Loads a module unless it is loaded; callers that come meanwhile wait for the same load, and share what becomes
    /// of it. A damaged or missing artefact is compiled again from the module itself.
    pub(crate) async fn load(self: &Arc<Self>, module: &Arc<Module>) -> Result<Arc<Loaded>, CallError> {
        let loading = {
            let mut code = module.code.lock();
            match &*code {
                Code::Loaded(loaded) => return Ok(loaded.clone()),
                Code::Loading(loading) => loading.clone(),
                Code::Cold => {
                    let loading = self.clone().load_for(module);
                    *code = Code::Loading(loading.clone());
                    loading
                }
            }
        };
        loading.await
    }

    fn load_for(self: Arc<Self>, module: &Arc<Module>) -> Loading {
        let (digest, kind) = (module.digest, module.kind);
        // Weakly, because the module holds this future.
        let module = Arc::downgrade(module);
        let load = async move {
            let result = self.load_now(digest, kind).await;
            if let Some(module) = module.upgrade() {
                module.loads.fetch_add(1, Ordering::Relaxed);
                *module.code.lock() = match &result {
                    Ok(loaded) => Code::Loaded(loaded.clone()),
                    // Who comes later tries again.
                    Err(_) => Code::Cold,
                };
            }
            result
        };
        load.boxed().shared()
    }

    /// Drops the code of modules that have no instance, and were last called before `long_ago`, in milliseconds of the
    /// node; how many are loaded after that.
    pub(crate) fn unload_unused(&self, long_ago: Option<u64>) -> usize {
        let known: Vec<_> = self.known.lock().values().filter_map(Weak::upgrade).collect();
        let stays = |module: &Arc<Module>| {
            let unused = long_ago.is_some_and(|long_ago| module.used_at.load(Ordering::Relaxed) <= long_ago);
            module.is_loaded() && !(unused && module.unload())
        };
        known.into_iter().filter(stays).count()
    }

    async fn load_now(self: &Arc<Self>, digest: Digest, kind: ModuleKind) -> Result<Arc<Loaded>, CallError> {
        if let Some(loaded) = self.load_artefact(digest, kind).await? {
            return Ok(loaded);
        }
        let ours = self.clone();
        let wasm = blocking(move || ours.fetch.as_ref().and_then(|fetch| fetch(&digest)))
            .await
            .map_err(CallError::Failed)?
            .filter(|wasm| Digest::of(wasm) == digest)
            .ok_or_else(|| {
                CallError::Failed(format!(
                    "the artefact of module {} can't be used, and the module itself is not there to compile it again; \
                     deploy it again",
                    digest.short()
                ))
            })?;
        self.compile_bounded(wasm, digest, kind)
            .await
            .map_err(|error| CallError::Failed(error.to_string()))?;
        self.load_artefact(digest, kind).await?.ok_or_else(|| {
            CallError::Failed(format!("the artefact of module {} can't be read back", digest.short()))
        })
    }

    async fn load_artefact(
        self: &Arc<Self>,
        digest: Digest,
        kind: ModuleKind,
    ) -> Result<Option<Arc<Loaded>>, CallError> {
        let loaded = move |ours: &Self, artefact: Artefact| ours.loaded(&artefact, kind).map(Arc::new);
        // Here, since it takes less than the way to another thread and back may. No longer than a guest may take that is
        // called in this task.
        let at_once = caught(|| {
            let artefact = self.artefacts.load_at_once(&self.engines, &digest, kind)?;
            Ok::<_, io::Error>(artefact.map(|artefact| loaded(self, artefact)))
        });
        if let Ok(done) = at_once.map_err(CallError::Failed)? {
            return done.transpose();
        }
        let ours = self.clone();
        blocking(move || {
            let artefact = ours.artefacts.load(&ours.engines, &digest, kind)?;
            Some(loaded(&ours, artefact))
        })
        .await
        .map_err(CallError::Failed)?
        .transpose()
    }

    fn loaded(&self, artefact: &Artefact, kind: ModuleKind) -> Result<Loaded, CallError> {
        let bytes = artefact.image_bytes();
        let mut memory = Charge::new(self.budget.clone());
        memory.grow(bytes)?;
        let form = self.link(artefact, kind).map_err(|error| CallError::Failed(format!("{error:#}")))?;
        Ok(Loaded { engine: artefact.engine().clone(), form, _memory: memory })
    }
}

impl Module {
    pub(crate) fn digest(&self) -> Digest {
        self.digest
    }

    pub(crate) fn is_loaded(&self) -> bool {
        matches!(*self.code.lock(), Code::Loaded(_))
    }

    /// The code, if it is in memory.
    pub(crate) fn loaded(&self) -> Option<Arc<Loaded>> {
        match &*self.code.lock() {
            Code::Loaded(loaded) => Some(loaded.clone()),
            Code::Loading(_) | Code::Cold => None,
        }
    }

    /// How often it was loaded.
    pub(crate) fn loads(&self) -> u64 {
        self.loads.load(Ordering::Relaxed)
    }

    /// A function of it is called, now.
    pub(crate) fn used(&self, now: u64) {
        self.used_at.store(now, Ordering::Relaxed);
    }

    /// Drops the code unless an instance runs it, or is being made; whether it did.
    pub(crate) fn unload(&self) -> bool {
        let mut code = self.code.lock();
        // Under the lock nobody else can take hold of it: what is counted here can only become less.
        let unused = matches!(&*code, Code::Loaded(loaded) if Arc::strong_count(loaded) == 1);
        if unused {
            let code = mem::replace(&mut *code, Code::Cold);
            tracing::debug!(module = %self.digest.short(), "unloaded");
            drop(code);
        }
        unused
    }
}

/// What a component exports that is a program.
fn program_run(component: &Component) -> Option<ComponentExportIndex> {
    let interface = component.get_export_index(None, world::PROGRAM)?;
    component.get_export_index(Some(&interface), "run")
}

fn export_indices(component: &Component, kind: ModuleKind) -> wasmtime::Result<ExportIndices> {
    let missing = |name: &str| wasmtime::format_err!("does not export `{name}` of `{}`", kind.export());
    let Some(interface) = component.get_export_index(None, kind.export()) else {
        let run = program_run(component).ok_or_else(|| missing("the interface"))?;
        return Ok(ExportIndices::Program { run });
    };
    let function =
        |name: &str| component.get_export_index(Some(&interface), name).ok_or_else(|| missing(name));
    Ok(match kind {
        ModuleKind::Command => ExportIndices::Command {
            constructor: function("[constructor]aggregate")?,
            restore: function("[static]aggregate.restore")?,
            apply: function("[method]aggregate.apply")?,
            decide: function("[method]aggregate.decide")?,
            snapshot: function("[method]aggregate.snapshot")?,
        },
        ModuleKind::Projection => ExportIndices::Projection { apply: function("apply")? },
        ModuleKind::Http(_) => return Err(wasmtime::format_err!("has no exports to look up")),
    })
}

/// Work that takes long, on a thread for that.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    match tokio::task::spawn_blocking(|| caught(work)).await {
        Ok(done) => done,
        Err(error) => Err(error.to_string()),
    }
}

/// A panic, of wasmtime on a module made to make it panic, say, ends as an error.
fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| format!("a panic: {}", panic_text(&*panic)))
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message")
}
