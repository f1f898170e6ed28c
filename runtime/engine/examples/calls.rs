//! What the engine's part of a call costs, in process: no sockets, no HTTP, one call at a time. `scripts/bench calls`
//! runs it with components of `wasi:http`; an example of this crate and not of `tests/bench`, so that a release build of
//! `ebb` has compiled wasmtime for it already.
//!
//!     calls MODULE.wasm...
#![expect(clippy::print_stdout, reason = "a table is all that it makes")]

use bytes::Bytes;
use ebb_domain::event::Position;
use ebb_domain::limits::{InstancePolicy, Limits};
use ebb_domain::model::AskedQuery;
use ebb_domain::name::AppName;
use ebb_domain::port::Future;
use ebb_domain::port::guest::{
    Engine as _, FunctionSpec, Grants, HttpBody, HttpCall, HttpFunction, ModuleKind, TriggerKind,
};
use ebb_domain::port::own_app::{Accepted, Found, FoundPage, NotDone, NotDoneKind, OwnApp, OwnCommand};
use ebb_engine::{EngineOptions, WasmEngine};
use http_body_util::BodyExt as _;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Instant;

const CALLS: usize = 20_000;

// On one thread, as a connection's task and its call are wherever the other threads have work.
#[tokio::main(flavor = "current_thread")]
async fn main() {
    println!("\nCalls in process, one at a time, {CALLS} each");
    let folder = tempfile::tempdir().expect("a folder");
    let engine = WasmEngine::new(EngineOptions::new(folder.path().to_owned(), [7; 32])).expect("an engine");
    for path in std::env::args().skip(1) {
        let wasm = Bytes::from(std::fs::read(&path).expect("a module"));
        let name = path.rsplit('/').next().unwrap_or_default();
        let kind = ModuleKind::Http(Grants::default());
        let module = engine.compile(wasm, kind).await.expect("it compiles");
        for (what, reuse) in [("an instance for all", u32::MAX), ("an instance for each", 1)] {
            let spec = FunctionSpec {
                app: AppName::new("bench").expect("a name"),
                function: "function.hello".into(),
                trigger: TriggerKind::Http,
                module,
                limits: Limits::HTTP,
                instances: InstancePolicy {
                    reuse: NonZeroU32::new(reuse).expect("a count"),
                    ..InstancePolicy::HTTP
                },
                capabilities: Arc::default(),
                secrets: Arc::default(),
            };
            let function = engine.http(spec, 1 << 20).expect("a function");
            measure(&format!("{name}, {what}"), &*function).await;
        }
    }
}

async fn measure(what: &str, function: &dyn HttpFunction) {
    call(function).await;
    let mut times = Vec::with_capacity(CALLS);
    let cpu = own_cpu();
    for _ in 0..CALLS {
        let began = Instant::now();
        call(function).await;
        times.push(began.elapsed());
    }
    let cpu = (own_cpu() - cpu) * 1e6 / CALLS as f64;
    times.sort_unstable();
    let at = |part: f64| times[(CALLS as f64 * part) as usize].as_secs_f64() * 1e6;
    let (p50, p99, p999) = (at(0.5), at(0.99), at(0.999));
    println!(
        "{what:<58} {p50:>12.1} us p50         p99 {p99:.1} us, p99.9 {p999:.1} us, {cpu:.1} us CPU each"
    );
}

fn own_cpu() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

async fn call(function: &dyn HttpFunction) {
    let request = http::Request::get("http://localhost/hello").body(HttpBody::empty()).expect("a request");
    let call = HttpCall { request: Box::new(request), app: Arc::new(Nobody) };
    let answer = function.call(call).await.expect("an answer");
    answer.into_body().collect().await.expect("a body");
}

/// The app of a function that asks nothing of it.
struct Nobody;

impl Nobody {
    fn refuses<T>(&self) -> Future<'_, Result<T, NotDone>>
    where
        T: Send + 'static,
    {
        Box::pin(async { Err(NotDone::new(NotDoneKind::Denied, "denied", "nobody is there")) })
    }
}

impl OwnApp for Nobody {
    fn send(&self, _: OwnCommand) -> Future<'_, Result<Accepted, NotDone>> {
        self.refuses()
    }

    fn get<'a>(&'a self, _: &'a str, _: &'a str, _: Option<Position>) -> Future<'a, Result<Found, NotDone>> {
        self.refuses()
    }

    fn query<'a>(
        &'a self,
        _: &'a str,
        _: AskedQuery,
        _: Option<Position>,
    ) -> Future<'a, Result<FoundPage, NotDone>> {
        self.refuses()
    }
}
