//! Guest code, as the use cases see it: what a module decides and what it makes of events, without a word of how it
//! is compiled, pooled or limited.

use super::Future;
pub use super::body::{BodyError, HttpBody};
use super::models::Rows;
use super::own_app::OwnApp;
use super::secrets::Secret;
use crate::commit::CommandId;
use crate::commit::Refusal;
use crate::digest::Digest;
use crate::event::StoredEvent;
use crate::limits::{InstancePolicy, Limits};
use crate::manifest::Capabilities;
use crate::manifest::function::Variable;
use crate::name::{AppName, CommandName};
use crate::stream::StreamId;
use crate::text::Text;
use crate::time::Timestamp;
use crate::trace::Trace;
use bytes::Bytes;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use thiserror::Error;

/// What kind of module a function needs: which world it must export.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ModuleKind {
    /// World `command`.
    Command,
    /// World `projection`.
    Projection,
    /// `wasi:http`: `service` of 0.3, or `proxy` of 0.2.
    Http(Grants),
}

/// Interfaces that a function is granted beyond those that every function has. What is not granted is not linked, and
/// a module that imports it is refused at deploy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Grants {
    /// Outgoing requests of `wasi:http`.
    pub outbound_http: bool,
    /// `ebbtide:functions/commands`.
    pub commands: bool,
    /// `ebbtide:functions/models`.
    pub models: bool,
    /// Files, in `/tmp`.
    pub tmp: bool,
}

impl Grants {
    /// As the manifest names them.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        let granted = [
            (self.outbound_http, "outbound-http"),
            (self.commands, "commands"),
            (self.models, "models"),
            (self.tmp, "tmp"),
        ];
        granted.into_iter().filter(|(is_granted, _)| *is_granted).map(|(_, name)| name)
    }
}

/// Why a module was not accepted at deploy.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CompileError {
    /// The bytes are not WebAssembly, or not valid.
    #[error("not a valid WebAssembly module or component: {0}")]
    NotWasm(String),
    /// It exports another world than the manifest says.
    #[error(
        "does not export `{expected}`, which a {kind} module needs unless it is a program (`_start`, `wasi:cli/run`); it exports {found}"
    )]
    WrongWorld {
        /// `command`, `projection` or `http`.
        kind: &'static str,
        /// The missing export, `ebbtide:functions/aggregates@0.1.0`.
        expected: String,
        /// What it does export, for people.
        found: String,
    },
    /// It imports what it is not granted.
    #[error("imports `{import}`, which {kind} modules are not granted")]
    ForbiddenImport {
        /// `command`, `projection` or `http`.
        kind: &'static str,
        /// The import, by its full name.
        import: String,
    },
    /// It is a program, and is granted what programs can't use.
    #[error("is a program (`_start`, `wasi:cli/run`) that can't be granted `{capability}`")]
    NotForPrograms {
        /// The capability, as the manifest names it.
        capability: &'static str,
    },
    /// Larger than a module may be.
    #[error("has {size} bytes, more than the limit of {limit}")]
    TooLarge {
        /// Its size in bytes.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// Compilation took too long.
    #[error("took longer to compile than the limit of {limit:?}")]
    TooSlow {
        /// The limit.
        limit: Duration,
    },
    /// Something on our side.
    #[error("could not be compiled: {0}")]
    Failed(String),
}

/// Why a call into a guest failed. None of these changes what the caller may rely on: nothing was appended.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CallError {
    /// It trapped: a panic, an unreachable instruction, a stack overflow, a broken promise to the host.
    #[error("the module trapped: {0}")]
    Trapped(String),
    /// It wanted more memory than its limit.
    #[error("the module needed more than its memory limit of {limit_bytes} bytes")]
    OutOfMemory {
        /// `limits.memory`.
        limit_bytes: u64,
    },
    /// It computed for longer than its limit.
    #[error("the module used more than its CPU limit of {limit:?}")]
    OutOfCpu {
        /// `limits.cpu`.
        limit: Duration,
    },
    /// It took longer than its wall-clock limit, waiting included.
    #[error("the call took longer than its limit of {limit:?}")]
    OutOfTime {
        /// `limits.wall`.
        limit: Duration,
    },
    /// It returned more than it may.
    #[error("the module returned more than it may: {0}")]
    OutputTooLarge(String),
    /// A program's answer is not the document that was asked for.
    #[error("{0}")]
    BadAnswer(String),
    /// There is not enough of something now, and may be later.
    #[error("too many calls at once: {lack}")]
    Overloaded {
        /// What there is not enough of.
        lack: Lack,
        /// When to try again.
        retry_after: Duration,
    },
    /// The instance that held this aggregate is gone: it trapped in another call, or its slot was reclaimed. Load
    /// the aggregate again.
    #[error("the instance that held the aggregate is gone")]
    InstanceLost,
    /// A snapshot was not accepted by the module. Refold.
    #[error("the module did not accept its snapshot: {0}")]
    BadSnapshot(String),
    /// Something on our side: an artefact that can't be read, say.
    #[error("the module could not be run: {0}")]
    Failed(String),
}

/// What a call that came too many found used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Lack {
    /// The queue before the function is full.
    #[error("{0} calls of the function wait for their turn already")]
    Queue(u32),
    /// The function has as many instances as it may, and all are in use.
    #[error("all {0} instances of the function are in use; `instances.max` in the manifest allows more")]
    Instances(u32),
    /// A program has as many aggregates as its instances could hold.
    #[error("all {0} places of the function for aggregates are taken")]
    Aggregates(u32),
    /// A program's aggregates hold as much memory as its instances could.
    #[error("the function's aggregates hold all of the {0} bytes that they may together")]
    Held(u64),
    /// All slots of the node for instances are in use.
    #[error("all {0} slots of the node for instances are in use")]
    Slots(u32),
    /// What instances and loaded modules of the node may take together.
    #[error("the node's memory for functions is used up; `functions.memory` in its settings is {0} bytes")]
    Memory(u64),
}

/// What calls a function, in the words of OpenTelemetry's `faas.trigger`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TriggerKind {
    /// A request: a command, or one of an HTTP function.
    Http,
    /// Events of a log.
    Datasource,
    /// An operator: a replay, a look at a state.
    Other,
}

impl TriggerKind {
    /// As labels have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Datasource => "datasource",
            Self::Other => "other",
        }
    }
}

/// One deployed function, as the engine needs to know it.
#[derive(Clone, Debug)]
pub struct FunctionSpec {
    /// Its app.
    pub app: AppName,
    /// `aggregate.flight`, `projection.delays`: for logs and metrics.
    pub function: Text,
    /// What calls it.
    pub trigger: TriggerKind,
    /// The module.
    pub module: Digest,
    /// What it may use.
    pub limits: Limits,
    /// How its instances live.
    pub instances: InstancePolicy,
    /// What it may reach: nothing, for command and projection modules.
    pub capabilities: Arc<Capabilities>,
    /// Environment variables that nobody else should see.
    pub secrets: Arc<[(Variable, Secret)]>,
}

/// Compiles modules at deploy, and runs them.
pub trait Engine: Send + Sync + 'static {
    /// Checks a module's world and imports, compiles it in a bounded worker, and keeps the artefact by digest. The
    /// digest is of the bytes as given. A second call for the same bytes costs a look at the artefact.
    fn compile(&self, wasm: Bytes, kind: ModuleKind) -> Future<'_, Result<Digest, CompileError>>;

    /// A compiled command module, ready to be called; nothing is mapped or run before the first call.
    ///
    /// # Errors
    /// No artefact of that digest is there.
    fn commands(&self, spec: FunctionSpec) -> Result<Arc<dyn CommandModule>, CallError>;

    /// A compiled projection module, likewise.
    ///
    /// # Errors
    /// No artefact of that digest is there.
    fn projection(&self, spec: FunctionSpec) -> Result<Arc<dyn ProjectionModule>, CallError>;

    /// A compiled HTTP function, likewise; the body of a response has `max_response` bytes at most.
    ///
    /// # Errors
    /// No artefact of that digest is there.
    fn http(&self, spec: FunctionSpec, max_response: u64) -> Result<Arc<dyn HttpFunction>, CallError>;

    /// An app was removed: what was counted of its functions is forgotten. Nobody calls them any more.
    fn forget(&self, _app: &AppName) {}
}

/// A command, as a guest sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestCommand {
    /// The command's id.
    pub id: CommandId,
    /// Its name.
    pub name: CommandName,
    /// The body.
    pub data: Bytes,
    /// Who sends it.
    pub actor: Text,
    /// When the platform received it.
    pub time: Timestamp,
    /// Ties everything that one outside cause led to.
    pub correlation_id: Text,
    /// The span that deciding it is.
    pub trace: Option<Trace>,
}

/// An event that a guest decided, not yet checked against the manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecidedEvent {
    /// The type, as the guest wrote it.
    pub event_type: Text,
    /// The data.
    pub data: Bytes,
}

/// What a guest decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// These events, perhaps none.
    Events(Vec<DecidedEvent>),
    /// A domain "no".
    Refused(Refusal),
}

/// An event as an aggregate folds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PastEvent {
    /// Its type.
    pub event_type: Text,
    /// The manifest's version of that type when it was recorded.
    pub schema_version: u32,
    /// Place in the stream.
    pub revision: crate::event::Revision,
    /// The data.
    pub data: Bytes,
}

impl From<&StoredEvent> for PastEvent {
    fn from(event: &StoredEvent) -> Self {
        Self {
            event_type: event.event_type.text().clone(),
            schema_version: event.schema_version,
            revision: event.revision,
            data: event.data.clone(),
        }
    }
}

/// A deployed command module: opens aggregates in its pooled instances.
pub trait CommandModule: Send + Sync + 'static {
    /// A fresh aggregate, or one restored from a snapshot, in some instance. Up to
    /// [`InstancePolicy::aggregates`] share an instance.
    fn open<'a>(
        &'a self,
        stream: &'a StreamId,
        snapshot: Option<Bytes>,
    ) -> Future<'a, Result<Box<dyn Aggregate>, CallError>>;
}

/// One aggregate living in an instance. After any error but [`CallError::Overloaded`] it is of no further use.
/// Dropping it frees its slot.
pub trait Aggregate: Send + Sync + 'static {
    /// Folds events, in order of revision.
    fn apply<'a>(&'a mut self, events: &'a [PastEvent]) -> Future<'a, Result<(), CallError>>;

    /// Decides. Changes nothing: what it decides comes back through `apply`.
    fn decide<'a>(&'a mut self, command: &'a GuestCommand) -> Future<'a, Result<Decision, CallError>>;

    /// State as bytes, if the module makes snapshots.
    fn snapshot(&mut self) -> Future<'_, Result<Option<Bytes>, CallError>>;
}

/// How a call of a projection ended, if not well.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ApplyError {
    /// The module says that this event could not be applied; those before it were.
    #[error("event {index} of the batch could not be applied: {message}")]
    Event {
        /// Its index in the batch.
        index: usize,
        /// What the module says.
        message: String,
    },
    /// This event can't ever be applied, so that trying again is of no use; those before it were.
    #[error("event {index} of the batch can't be applied: {message}")]
    Poison {
        /// Its index in the batch.
        index: usize,
        /// Why.
        message: String,
    },
    /// The call failed: which event did it is not known.
    #[error(transparent)]
    Call(#[from] CallError),
}

/// An event that is not to be applied now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldBack {
    /// Its index in the batch.
    pub index: usize,
    /// Why.
    pub reason: String,
    /// When to ask again.
    pub retry_after: Duration,
}

/// Rows that a projection's call works on. Shared, so that the caller has them back when the call is over.
pub type SharedRows = Arc<Mutex<dyn Rows>>;

/// A deployed projection module.
pub trait ProjectionModule: Send + Sync + 'static {
    /// Applies events to rows, in one instance. After an error the instance is dropped, so that the next call starts
    /// from a clean one; what was written to `rows` is the caller's to discard.
    fn apply<'a>(&'a self, events: &'a [StoredEvent], rows: SharedRows)
    -> Future<'a, Result<(), ApplyError>>;

    /// Which of these events is not to be applied now, with those behind it; none: all may be.
    fn held_back(&self, _: &[StoredEvent]) -> Option<HeldBack> {
        None
    }

    /// Commands that were refused, of what sends commands.
    fn refused(&self) -> u64 {
        0
    }
}

/// How headers are called in which an HTTP function is told its route's parameters: this, and the parameter's name.
pub const PARAMETER_HEADER: &str = "ebb-param-";

/// A request for a function, as its guest sees it: nothing in it is hop-by-hop, and what the platform says in headers
/// was said by nobody else.
pub struct HttpCall {
    /// The request. Its URI is absolute. Boxed: it has hundreds of bytes, and goes through a dozen futures.
    pub request: Box<http::Request<HttpBody>>,
    /// The function's app, in the name of who sends the request.
    pub app: Arc<dyn OwnApp>,
}

/// A deployed HTTP function.
pub trait HttpFunction: Send + Sync + 'static {
    /// Answers a request: ready when the guest has given status and headers. The body streams from the instance,
    /// which is in use, within the limits of the function, until the body has ended; dropping the body ends the call.
    /// A response whose body ends in an error must not look complete to the caller.
    fn call(&self, call: HttpCall) -> Future<'_, Result<http::Response<HttpBody>, CallError>>;
}
