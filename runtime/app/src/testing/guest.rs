//! A projection module that is a closure, an event function that is one, and an engine that knows such modules.

use bytes::Bytes;
use ebb_domain::digest::Digest;
use ebb_domain::event::StoredEvent;
use ebb_domain::port::Future;
use ebb_domain::port::guest::{
    ApplyError, CallError, CommandModule, CompileError, Engine, FunctionSpec, HttpBody, HttpCall,
    HttpFunction, ModuleKind, ProjectionModule, SharedRows,
};
use ebb_domain::port::models::{ModelError, Rows};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use serde_json::Value;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::watch;

/// How a module fails on an event.
pub type Call = Result<(), ApplyError>;

type Apply = dyn Fn(&StoredEvent, &mut dyn Rows) -> Result<(), Fault> + Send + Sync;

/// How a scripted module treats one event that it can't apply.
#[derive(Clone, Debug)]
pub enum Fault {
    /// It returns `failure{index}`.
    Fails(String),
    /// The call ends in this error.
    Ends(CallError),
}

/// What a guest makes of a host function's error: a trap.
impl From<ModelError> for Fault {
    fn from(error: ModelError) -> Self {
        Self::Ends(CallError::Trapped(error.to_string()))
    }
}

/// A projection module whose body is a closure over one event.
pub struct ScriptedProjection {
    apply: Box<Apply>,
    calls: AtomicU64,
    gate: Gate,
}

/// Holds calls of a module back until the test lets them through.
#[derive(Clone)]
pub struct Gate(watch::Sender<bool>);

impl Gate {
    /// Lets calls through, or holds back those that come.
    pub fn set_open(&self, open: bool) {
        self.0.send_replace(open);
    }
}

impl ScriptedProjection {
    /// A module that applies events one by one in this way.
    pub fn new(
        apply: impl Fn(&StoredEvent, &mut dyn Rows) -> Result<(), Fault> + Send + Sync + 'static,
    ) -> Arc<Self> {
        let gate = Gate(watch::Sender::new(true));
        Arc::new(Self { apply: Box::new(apply), calls: AtomicU64::new(0), gate })
    }

    /// Calls so far.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::SeqCst)
    }

    /// What holds calls back; open at first.
    pub fn gate(&self) -> Gate {
        self.gate.clone()
    }
}

impl ProjectionModule for ScriptedProjection {
    fn apply<'a>(&'a self, events: &'a [StoredEvent], rows: SharedRows) -> Future<'a, Call> {
        Box::pin(async move {
            self.calls.fetch_add(1, Ordering::SeqCst);
            let mut open = self.gate.0.subscribe();
            let _ = open.wait_for(|open| *open).await;
            for (index, event) in events.iter().enumerate() {
                let applied = {
                    let mut rows = rows.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    (self.apply)(event, &mut *rows)
                };
                match applied {
                    Ok(()) => {}
                    Err(Fault::Fails(message)) => return Err(ApplyError::Event { index, message }),
                    Err(Fault::Ends(error)) => return Err(error.into()),
                }
                // Lanes are to take turns, as they would on several threads.
                tokio::task::yield_now().await;
            }
            Ok(())
        })
    }
}

type React = dyn Fn(Vec<Value>) -> Result<http::Response<String>, CallError> + Send + Sync;

/// An event function whose body is a closure over a batch of CloudEvents.
pub struct ScriptedFunction {
    react: Box<React>,
    headers: Mutex<http::HeaderMap>,
    gate: Gate,
}

impl ScriptedFunction {
    /// A function that answers batches in this way.
    pub fn new(
        react: impl Fn(Vec<Value>) -> Result<http::Response<String>, CallError> + Send + Sync + 'static,
    ) -> Arc<Self> {
        let gate = Gate(watch::Sender::new(true));
        Arc::new(Self { react: Box::new(react), headers: Mutex::default(), gate })
    }

    /// The headers of the latest call.
    pub fn headers(&self) -> http::HeaderMap {
        self.headers.lock().clone()
    }

    /// What holds calls back, once they have begun; open at first.
    pub fn gate(&self) -> Gate {
        self.gate.clone()
    }
}

impl HttpFunction for ScriptedFunction {
    fn call(&self, call: HttpCall) -> Future<'_, Result<http::Response<HttpBody>, CallError>> {
        Box::pin(async move {
            let (head, body) = call.request.into_parts();
            *self.headers.lock() = head.headers;
            let body = body.collect().await.map_err(|error| CallError::Failed(error.to_string()))?;
            let events = serde_json::from_slice(&body.to_bytes())
                .map_err(|error| CallError::Failed(error.to_string()))?;
            let answer = (self.react)(events)?;
            let mut open = self.gate.0.subscribe();
            let _ = open.wait_for(|open| *open).await;
            Ok(answer.map(|body| HttpBody::Whole(Bytes::from(body))))
        })
    }
}

/// An engine that knows the projection modules and event functions it was given.
#[derive(Default)]
pub struct ProjectionEngine {
    projections: Mutex<HashMap<Digest, Arc<ScriptedProjection>>>,
    functions: Mutex<HashMap<Digest, Arc<ScriptedFunction>>>,
}

impl ProjectionEngine {
    /// Deploys a module under the digest of this name.
    pub fn provide(&self, name: &str, module: Arc<ScriptedProjection>) -> Digest {
        let digest = Digest::of(name.as_bytes());
        self.projections.lock().insert(digest, module);
        digest
    }

    /// Deploys an event function under the digest of this name.
    pub fn provide_function(&self, name: &str, function: Arc<ScriptedFunction>) -> Digest {
        let digest = Digest::of(name.as_bytes());
        self.functions.lock().insert(digest, function);
        digest
    }
}

impl Engine for ProjectionEngine {
    fn compile(&self, wasm: Bytes, _: ModuleKind) -> Future<'_, Result<Digest, CompileError>> {
        Box::pin(std::future::ready(Ok(Digest::of(&wasm))))
    }

    fn commands(&self, spec: FunctionSpec) -> Result<Arc<dyn CommandModule>, CallError> {
        Err(CallError::Failed(format!("`{}` is not a projection", spec.function)))
    }

    fn projection(&self, spec: FunctionSpec) -> Result<Arc<dyn ProjectionModule>, CallError> {
        match self.projections.lock().get(&spec.module) {
            Some(module) => Ok(module.clone()),
            None => Err(CallError::Failed(format!("there is no module {}", spec.module.short()))),
        }
    }

    fn http(&self, spec: FunctionSpec, _: u64) -> Result<Arc<dyn HttpFunction>, CallError> {
        match self.functions.lock().get(&spec.module) {
            Some(function) => Ok(function.clone()),
            None => Err(CallError::Failed(format!("there is no module {}", spec.module.short()))),
        }
    }
}
