//! What belongs to one instance of an HTTP function.

use super::files::Files;
use super::outgoing::Outgoing;
use super::own_app::Calling;
use super::tmp::Tmp;
use crate::budget::Charge;
use crate::function::Function;
use crate::host::output::{Output, Stream};
use crate::host::preview1::World;
use crate::host::stdio::Stdio;
use crate::host::wasi::Lines;
use crate::host::{self, Memory, RESOURCES};
use crate::meter::Meter;
use crate::module::Loaded;
use ebb_domain::manifest::Capabilities;
use ebb_domain::trace::Trace;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use tokio::io::AsyncWrite;
use wasmtime::component::ResourceTable;
use wasmtime::{Result, Store};
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::OutputStream;
use wasmtime_wasi::p2::bindings::random::random::Host as _;
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

/// Most random bytes in one call of `get-random-bytes`.
const RANDOM_BYTES: u64 = 64 << 10;

/// What belongs to one instance.
pub(crate) struct State {
    table: ResourceTable,
    wasi: WasiCtx,
    tmp: Option<Tmp>,
    http: WasiHttpCtx,
    outgoing: Outgoing,
    capabilities: Arc<Capabilities>,
    /// None while the instance is being made, and between calls.
    calling: Option<Calling>,
    output: Output,
    /// Of a program, which has no other way to hear and to be heard.
    program: Option<Program>,
    memory: Memory,
    pub(super) meter: Arc<Meter>,
}

/// What a program has around it.
struct Program {
    stdio: Stdio,
    /// `NAME=value`, for those that are core modules.
    environment: Vec<String>,
    began: Instant,
}

/// A store for one instance, with its limits in force.
pub(super) fn store(function: &Function, loaded: &Loaded) -> Result<Store<State>> {
    let (spec, source) = (&function.spec, &function.source);
    let output = Output::new(source.clone());
    let mut wasi = WasiCtx::builder();
    wasi.stdout(Log { output: output.clone(), stream: Stream::Stdout })
        .stderr(Log { output: output.clone(), stream: Stream::Stderr })
        .max_random_size(RANDOM_BYTES);
    let granted = spec.capabilities.env.iter().map(|(name, value)| (name.as_str(), &**value));
    let secrets = spec.secrets.iter().map(|(name, secret)| (name.as_str(), secret.reveal()));
    let environment: Vec<_> = granted.chain(secrets).collect();
    for (name, value) in &environment {
        wasi.env(name, value);
    }
    let program = loaded.is_program().then(|| Program {
        stdio: Stdio::default(),
        environment: environment.iter().map(|(name, value)| format!("{name}={value}")).collect(),
        began: Instant::now(),
    });
    if let Some(Program { stdio, .. }) = &program {
        wasi.stdin(stdio.stdin()).stdout(stdio.answer());
    }
    let mut table = ResourceTable::new();
    table.set_max_capacity(RESOURCES);
    let meter: Arc<Meter> = Arc::default();
    let state = State {
        table,
        wasi: wasi.build(),
        tmp: spec.capabilities.tmp.map(|bytes| Tmp::new(bytes, Charge::new(function.node.budget.clone()))),
        http: WasiHttpCtx::new(),
        outgoing: Outgoing::new(spec.capabilities.clone()),
        capabilities: spec.capabilities.clone(),
        calling: None,
        output,
        program,
        memory: Memory::new(function, meter.clone()),
        meter,
    };
    let mut store = Store::new(&loaded.engine, state);
    store.limiter(|state| &mut state.memory);
    host::bound(&mut store, spec.limits.cpu, |state| &state.meter);
    Ok(store)
}

impl State {
    /// A call begins, as this span.
    pub(super) fn begin(&mut self, calling: Option<Calling>, span: Option<Trace>) {
        self.calling = calling;
        self.outgoing.begin(span);
        self.output.begin();
        self.meter.begin();
    }

    /// A call has ended.
    pub(super) fn end(&mut self) {
        self.calling = None;
        self.output.end();
    }

    /// What its function was granted.
    pub(super) fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// The call that runs.
    pub(super) fn calling(&self) -> Option<&Calling> {
        self.calling.as_ref()
    }

    /// What a panic of this call said; of a program, what it said on stderr at last.
    pub(super) fn panic_message(&self) -> Option<String> {
        let words = || self.program.as_ref().and_then(|_| self.output.last_words());
        self.output.panic_message().or_else(words)
    }

    pub(super) fn output(&self) -> &Output {
        &self.output
    }

    /// Its files, where it was granted some.
    pub(super) fn files(&mut self) -> Files<'_> {
        Files { table: &mut self.table, tmp: self.tmp.as_ref() }
    }

    /// As a plain function, for those who want a pointer to one.
    pub(super) fn http_view(&mut self) -> WasiHttpCtxView<'_> {
        self.http()
    }
}

impl World for State {
    fn stdio(&self) -> Option<&Stdio> {
        self.program.as_ref().map(|program| &program.stdio)
    }

    fn output(&self) -> &Output {
        &self.output
    }

    fn environment(&self) -> &[String] {
        self.program.as_ref().map_or(&[], |program| &program.environment)
    }

    fn now(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
    }

    fn monotonic(&self) -> u64 {
        let passed = self.program.as_ref().map_or(0, |program| program.began.elapsed().as_nanos() as u64);
        passed.max(1)
    }

    fn random(&mut self, length: u64) -> Result<Vec<u8>> {
        self.ctx().ctx.random().get_random_bytes(length)
    }

    fn may_sleep(&self) -> bool {
        true
    }
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiHttpView for State {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { hooks: &mut self.outgoing, table: &mut self.table, ctx: &mut self.http }
    }
}

/// Stdout or stderr, as log lines.
struct Log {
    output: Output,
    stream: Stream,
}

impl IsTerminal for Log {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Log {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(Self { output: self.output.clone(), stream: self.stream })
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(Lines { output: self.output.clone(), stream: self.stream })
    }
}

impl AsyncWrite for Log {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        self.output.write(self.stream, bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
