//! HTTP functions: components of `wasi:http`, 0.3 (`service`) or 0.2 (`proxy`), each call in a pooled instance that
//! it has to itself; or programs, of which `program` tells.
//!
//! A call begins in the task of whoever waits for its response ([`at_once`]). Where it has to wait for something it runs
//! in a task of its own from then on, to the end of the response's body, since both stream. Who waits for the response
//! holds that task by a [`Running`](body::Running), and so does the body: whoever drops it, a caller that hangs up, say,
//! ends the task and the instance in it. What goes wrong after the headers makes the body end in an error, never in
//! what looks like its end.

mod at_once;
mod body;
mod files;
mod link;
mod outgoing;
mod own_app;
pub(crate) mod program;
mod state;
mod tmp;

pub(crate) use link::{interfaces, linker, proxy};
pub(crate) use state::State;

use crate::function::NodePlace;
use crate::host::preview1::World as _;
use crate::host::stdio::{ended_badly, ended_well};
use crate::live::explain;
use crate::meter::Metered;
use crate::module::{Form, HttpForm, Loaded};
use crate::pool::{InstancePool, Pooled};
use crate::usage::{Tab, Work};
use body::Ending;
use bytes::Bytes;
use ebb_domain::port::Future;
use ebb_domain::port::guest::{CallError, HttpBody, HttpCall, HttpFunction};
use ebb_domain::trace::Trace;
use futures_channel::oneshot;
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body_util::BodyExt as _;
use own_app::Calling;
use parking_lot::Mutex;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use wasmtime::component::{Accessor, Func};
use wasmtime::{AsContextMut as _, Func as CoreFunc, PoolConcurrencyLimitError, Store};
use wasmtime_wasi_http::WasiHttpView as _;
use wasmtime_wasi_http::handler::{Prepared, Proxy};
use wasmtime_wasi_http::p2::bindings::http::types::Scheme;
use wasmtime_wasi_http::p2::body::HostOutgoingBody;

/// A response as the guest gave it, or why there is none.
type Answered = Result<http::Response<wasmtime_wasi_http::WasiBody>, wasmtime::Error>;

/// A deployed HTTP function.
pub(crate) struct Http {
    pool: Arc<InstancePool<HttpInstance>>,
    max_response: u64,
}

impl Http {
    pub(crate) fn new(pool: Arc<InstancePool<HttpInstance>>, max_response: u64) -> Self {
        Self { pool, max_response }
    }

    /// The span of a call, which its guest is told instead of its caller's; where nobody observes, it is told that one.
    fn begin_span(&self, headers: &mut HeaderMap) -> Option<Trace> {
        let text = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
        let caller = text(&TRACEPARENT).and_then(|parent| Trace::parse(parent, text(&TRACESTATE)));
        let Some(observer) = &self.pool.function().node.observer else { return caller };
        let span = observer.begin(caller.as_ref());
        propagate(&span, headers);
        Some(span)
    }

    /// The whole call, which sends its response as soon as it has one.
    fn begin(
        &self,
        mut call: HttpCall,
        sender: oneshot::Sender<Answered>,
        ending: Arc<Ending>,
    ) -> at_once::Call {
        let trace = self.begin_span(call.request.headers_mut());
        let (pool, max_response) = (self.pool.clone(), self.max_response);
        let has_competitors = !self.pool.function().has_node_to_itself();
        Box::pin(async move {
            let function = pool.function();
            let tab = Tab::traced(trace);
            if has_competitors {
                ending.queue(tab.queue(function)).await;
            }
            let driven = pin!(async {
                if Work::new(function, &tab).load().await?.is_program() {
                    return Box::pin(run(&pool, &tab, call, max_response, sender)).await;
                }
                drive(&pool, &tab, call, sender, &ending).await
            });
            let ended = Work::new(function, &tab).within_wall(driven).await;
            if let Err(error) = &ended {
                let spec = &function.spec;
                tracing::debug!(app = &*spec.app, function = &*spec.function, %error, "a call failed");
            }
            ended
        })
    }
}

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Says in headers which span somebody is called from.
fn propagate(span: &Trace, headers: &mut HeaderMap) {
    let value = HeaderValue::from_str(&span.to_string());
    headers.insert(TRACEPARENT, value.expect("digits and dashes are a header's value"));
    match span.state.as_deref().map(HeaderValue::from_str) {
        Some(Ok(state)) => drop(headers.insert(TRACESTATE, state)),
        _ => drop(headers.remove(TRACESTATE)),
    }
}

impl HttpFunction for Http {
    fn call(&self, call: HttpCall) -> Future<'_, Result<http::Response<HttpBody>, CallError>> {
        let (sender, receiver) = oneshot::channel();
        let ending = Ending::new(self.pool.function().spec.limits.wall);
        let call = self.begin(call, sender, ending.clone());
        Box::pin(at_once::answer(call, receiver, self.max_response, ending))
    }
}

/// The whole call of a program, which has ended before its response begins.
async fn run(
    pool: &Arc<InstancePool<HttpInstance>>,
    tab: &Tab,
    call: HttpCall,
    max_response: u64,
    sender: oneshot::Sender<Answered>,
) -> Result<(), CallError> {
    let response = program::answer(pool, tab, *call.request, max_response).await?;
    // Nobody to hear it: the call is about to be ended.
    let _ = sender.send(Ok(response.map(|body| body.map_err(|never| match never {}).boxed_unsync())));
    Ok(())
}

/// The whole call. Dropped in the middle, it ends the instance.
async fn drive(
    pool: &Arc<InstancePool<HttpInstance>>,
    tab: &Tab,
    call: HttpCall,
    sender: oneshot::Sender<Answered>,
    ending: &Arc<Ending>,
) -> Result<(), CallError> {
    let mut lease = pool.take(tab).await?;
    // Dropped before the lease, on whatever way out: the body learns of a failure before its other end is gone.
    let unfinished = ending.unless_finished();
    let place = lease.place();
    match lease.call(Work::new(pool.function(), tab), call, place, sender, ending).await {
        Ok(()) => {
            unfinished.finished();
            lease.give_back();
            Ok(())
        }
        Err(error) => {
            ending.fail(error.clone());
            Err(error)
        }
    }
}

/// An instance of an HTTP function.
pub(crate) struct HttpInstance {
    store: Store<State>,
    exports: Exports,
    /// Keeps the code in memory.
    _loaded: Arc<Loaded>,
    calls: u32,
}

/// What is called of it.
enum Exports {
    /// `wasi:http`, of either version.
    Proxy(Proxy),
    /// A program's `run`.
    Run(Func),
    /// A program's `_start`.
    Start(CoreFunc),
}

impl Exports {
    /// Makes an instance; gives what can be called of it.
    async fn of(store: &mut Store<State>, form: &HttpForm) -> wasmtime::Result<Self> {
        let function = match form {
            HttpForm::Proxy(pre) => return Ok(Self::Proxy(pre.instantiate_async(store).await?)),
            HttpForm::Run { pre, run } => {
                let instance = pre.instantiate_async(&mut *store).await?;
                instance.get_func(store, run).map(Self::Run)
            }
            HttpForm::Start(pre) => {
                let instance = pre.instantiate_async(&mut *store).await?;
                instance.get_func(store, "_start").map(Self::Start)
            }
        };
        function.ok_or_else(|| CallError::Failed("an export is missing".into()).into())
    }
}

impl Pooled for HttpInstance {
    async fn instantiate(work: Work<'_>, loaded: &Arc<Loaded>) -> wasmtime::Result<Self> {
        let Form::Http(form) = &loaded.form else { return Err(wrong_kind()) };
        let mut store = state::store(work.function, loaded)?;
        store.data_mut().begin(None, None);
        store.set_epoch_deadline(1);
        let made = metered(work, &mut store, async |store| Exports::of(store, form).await).await;
        match made {
            Ok(exports) => Ok(Self { store, exports, _loaded: loaded.clone(), calls: 0 }),
            Err(error) if error.is::<PoolConcurrencyLimitError>() => Err(error),
            Err(error) => Err(explain(&error, store.data().panic_message()).into()),
        }
    }

    fn calls(&self) -> u32 {
        self.calls
    }
}

impl HttpInstance {
    /// One call, to its very end: also what the guest does after its response.
    async fn call(
        &mut self,
        work: Work<'_>,
        call: HttpCall,
        place: Option<Arc<NodePlace>>,
        sender: oneshot::Sender<Answered>,
        ending: &Ending,
    ) -> Result<(), CallError> {
        self.calls = self.calls.saturating_add(1);
        let HttpCall { request, app } = call;
        let span = work.tab.trace().cloned();
        let observer = work.function.node.observer.clone();
        let calling = place.map(|place| Calling { app, place, span: span.clone(), observer });
        self.store.data_mut().begin(calling, span);
        self.store.set_epoch_deadline(1);
        let request = request.map(body::request);
        let Exports::Proxy(proxy) = &self.exports else {
            return Err(explain(&wrong_kind(), None));
        };
        let called = metered(work, &mut self.store, async |store| match proxy {
            Proxy::P2(guest) => {
                let mut view = store.data_mut().http();
                let request = view.new_incoming_request(Scheme::Http, request)?;
                // A guest may keep what it should answer with, and keep it for as long as the instance lives: what
                // its caller waits for is not left with it.
                let sender = Arc::new(Mutex::new(Some(sender)));
                let theirs = sender.clone();
                let out = view.new_response_outparam_from_callback(move |response| {
                    if let Some(sender) = theirs.lock().take() {
                        // Nobody to hear it: the call is about to be ended.
                        let _ = sender.send(response.map_err(Into::into));
                    }
                })?;
                guest.wasi_http_incoming_handler().call_handle(&mut *store, request, out).await?;
                if sender.lock().take().is_some() {
                    return Err(no_response().into());
                }
                match forgot_a_body(store) {
                    true => Err(unfinished_body().into()),
                    false => Ok(()),
                }
            }
            Proxy::P3(_) => {
                let called = store.run_concurrent(async |accessor| {
                    let prepared = accessor.with(|mut store| {
                        Prepared::new(store.as_context_mut(), proxy, request, State::http_view, sender)
                    })?;
                    prepared.run(accessor, std::future::pending()).await?;
                    rest(accessor, ending).await;
                    Ok(())
                });
                Box::pin(called).await?
            }
        })
        .await;
        called.map_err(|error| explain(&error, self.store.data().panic_message()))
    }
}

impl HttpInstance {
    /// A program's run: what it wrote to stdout. It can't be run twice.
    async fn run(&mut self, work: Work<'_>, input: Bytes) -> Result<Vec<u8>, CallError> {
        self.calls = self.calls.saturating_add(1);
        self.store.data_mut().begin(None, work.tab.trace().cloned());
        self.store.set_epoch_deadline(1);
        let Some(stdio) = self.store.data().stdio().cloned() else {
            return Err(explain(&wrong_kind(), None));
        };
        stdio.give(input);
        let exports = &self.exports;
        let ended = metered(work, &mut self.store, async |store| {
            ended_well(match exports {
                Exports::Run(run) => {
                    let run = run.typed::<(), (Result<(), ()>,)>(&*store)?;
                    run.call_async(store, ()).await.map(|(returned,)| returned.is_ok())
                }
                Exports::Start(start) => {
                    let start = start.typed::<(), ()>(&*store)?;
                    start.call_async(store, ()).await.map(|()| true)
                }
                Exports::Proxy(_) => return Err(wrong_kind()),
            })
        })
        .await;
        let words = || self.store.data().panic_message();
        match ended {
            Ok(true) => Ok(stdio.answer().take()),
            Ok(false) => Err(ended_badly(words())),
            Err(error) => Err(explain(&error, words())),
        }
    }
}

/// A call on an instance whose module is of another kind: a mistake of ours.
fn wrong_kind() -> wasmtime::Error {
    CallError::Failed("the module is of another kind".into()).into()
}

/// A call whose guest came back and had not answered.
fn no_response() -> CallError {
    CallError::Trapped("it ended without a response".into())
}

/// Whether the guest kept a body that it had begun to send. Nobody will ever finish it, and who takes the body apart can't
/// tell its end from that of the instance.
fn forgot_a_body(store: &mut Store<State>) -> bool {
    store.data_mut().http().table.iter_mut().any(|entry| entry.is::<HostOutgoingBody>())
}

fn unfinished_body() -> CallError {
    CallError::Trapped("it ended and had not finished a body".into())
}

/// What is left once the response is there: its body, whose bytes pass through the guest's own tasks, and whatever
/// else those do.
async fn rest(accessor: &Accessor<State>, ending: &Ending) {
    std::future::poll_fn(|context| {
        let tasks = accessor.poll_no_interesting_tasks(context);
        let body = ending.poll_read(context);
        if tasks.is_ready() && body.is_ready() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// Runs guest code, ticking and measured.
async fn metered<T>(
    work: Work<'_>,
    store: &mut Store<State>,
    call: impl AsyncFnOnce(&mut Store<State>) -> wasmtime::Result<T>,
) -> wasmtime::Result<T> {
    let meter = store.data().meter.clone();
    let result = {
        let _ticking = work.function.node.ticker.run();
        let call = pin!(call(store));
        Metered::new(&meter, work, call).await
    };
    store.data_mut().end();
    result
}
