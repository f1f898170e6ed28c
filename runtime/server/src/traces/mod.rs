//! A span for each invocation, sent to a collector (OTLP over HTTP, protobuf). Nothing of this runs where no endpoint
//! is set.
//!
//! On the path of a call is the making of a span and a place in a bounded queue: where that is full, because the
//! collector is slow or gone, the span is dropped and counted. One task takes spans in batches and sends them.

mod otlp;

use crate::config::TracesConfig;
use bytes::Bytes;
use ebb_domain::trace::Trace;
use ebb_engine::{Invocation, Observer};
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use otlp::Span;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Spans that may wait to be sent.
const QUEUE: usize = 8192;
/// Spans of a request.
const BATCH: usize = 512;
/// How long a span waits for others at most.
const DELAY: Duration = Duration::from_secs(1);
/// How long a collector may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How often a batch is sent at most, with a pause between, where the collector says that it is busy or says nothing.
const ATTEMPTS: u32 = 3;
const PAUSE: Duration = Duration::from_secs(1);
/// What is read of an answer.
const MAX_ANSWER: usize = 64 << 10;

type HttpsClient = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// What became of spans.
#[derive(Debug, Default)]
pub(crate) struct TraceCounts {
    pub(crate) exported: AtomicU64,
    pub(crate) dropped: AtomicU64,
}

/// Makes spans and sends them.
pub(crate) struct Traces {
    queue: mpsc::Sender<Span>,
    /// Of traces that begin here, those are recorded whose last eight bytes are below this, as OpenTelemetry's
    /// `TraceIdRatioBased` has it.
    threshold: u64,
    counts: Arc<TraceCounts>,
    stop: watch::Sender<bool>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Traces {
    /// Starts to send to the endpoint that is set.
    ///
    /// # Errors
    /// The machine's certificates could not be read.
    pub(crate) fn start(config: &TracesConfig, counts: Arc<TraceCounts>) -> Result<Arc<Self>, String> {
        let connector = HttpsConnectorBuilder::new()
            .with_provider_and_native_roots(rustls::crypto::ring::default_provider())
            .map_err(|error| format!("the machine's certificates could not be read: {error}"))?
            .https_or_http()
            .enable_http1()
            .build();
        let (queue, spans) = mpsc::channel(QUEUE);
        let (stop, stopping) = watch::channel(false);
        let sender = Sender {
            config: config.clone(),
            client: Client::builder(TokioExecutor::new()).build(connector),
            counts: counts.clone(),
            complained: None,
        };
        let task = tokio::spawn(sender.run(spans, stopping));
        let threshold = (config.sample * u64::MAX as f64) as u64;
        Ok(Arc::new(Self { queue, threshold, counts, stop, task: Mutex::new(Some(task)) }))
    }

    /// Sends what is queued, as far as it goes until then.
    pub(crate) async fn shutdown(&self, deadline: Instant) {
        self.stop.send_replace(true);
        let task = self.task.lock().take();
        if let Some(task) = task
            && tokio::time::timeout_at(deadline, task).await.is_err()
        {
            tracing::warn!("the collector of traces is slow: the last spans are not sent");
        }
    }

    fn is_sampled(&self, trace_id: [u8; 16]) -> bool {
        let [.., a, b, c, d, e, f, g, h] = trace_id;
        u64::from_be_bytes([a, b, c, d, e, f, g, h]) <= self.threshold
    }
}

fn trace_id() -> [u8; 16] {
    let mut bytes = uuid::Uuid::new_v4().into_bytes();
    // Where a UUID says which version it is, the part that is to be random begins.
    let other = uuid::Uuid::new_v4().into_bytes();
    bytes[8] = other[0];
    bytes
}

fn span_id() -> [u8; 8] {
    let [a, b, c, d, e, f, .., g, h] = uuid::Uuid::new_v4().into_bytes();
    match [a, b, c, d, e, f, g, h] {
        [0, 0, 0, 0, 0, 0, 0, 0] => [1; 8],
        id => id,
    }
}

impl Observer for Traces {
    fn begin(&self, caller: Option<&Trace>) -> Trace {
        match caller {
            Some(caller) => caller.child(span_id()),
            None => {
                let trace_id = trace_id();
                Trace::root(trace_id, span_id(), self.is_sampled(trace_id))
            }
        }
    }

    fn ended(&self, invocation: &Invocation<'_>) {
        let span = match invocation.trace {
            Some(trace) if trace.is_sampled() => Span::of(invocation, trace.clone()),
            // A batch belongs to no trace of its events: it is one of its own, linked to them, if one is recorded.
            None if invocation.links.iter().any(Trace::is_sampled) => {
                Span::of(invocation, Trace::root(trace_id(), span_id(), true))
            }
            _ => return,
        };
        if self.queue.try_send(span).is_err() {
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

struct Sender {
    config: TracesConfig,
    client: HttpsClient,
    counts: Arc<TraceCounts>,
    /// When it was said last that the collector does not take spans.
    complained: Option<Instant>,
}

impl Sender {
    async fn run(mut self, mut spans: mpsc::Receiver<Span>, mut stopping: watch::Receiver<bool>) {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let stop = tokio::select! {
                first = spans.recv() => match first {
                    Some(span) => { batch.push(span); false }
                    None => return,
                },
                _ = stopping.wait_for(|stop| *stop) => true,
            };
            let full = Instant::now() + DELAY;
            while batch.len() < BATCH && !stop {
                tokio::select! {
                    span = tokio::time::timeout_at(full, spans.recv()) => match span {
                        Ok(Some(span)) => batch.push(span),
                        _ => break,
                    },
                    _ = stopping.wait_for(|stop| *stop) => break,
                }
            }
            if stop {
                while let Ok(span) = spans.try_recv() {
                    batch.push(span);
                    if batch.len() == BATCH {
                        self.send(&mut batch, 1).await;
                    }
                }
                if !batch.is_empty() {
                    self.send(&mut batch, 1).await;
                }
                return;
            }
            self.send(&mut batch, ATTEMPTS).await;
        }
    }

    async fn send(&mut self, batch: &mut Vec<Span>, attempts: u32) {
        let body = Bytes::from(otlp::request(&self.config.service, batch));
        let spans = batch.len() as u64;
        batch.clear();
        let mut tried = 0;
        let error = loop {
            tried += 1;
            match self.post(body.clone()).await {
                Ok(()) => {
                    self.counts.exported.fetch_add(spans, Ordering::Relaxed);
                    return;
                }
                Err((error, again)) if !again || tried == attempts => break error,
                Err(_) => tokio::time::sleep(PAUSE * tried).await,
            }
        };
        self.counts.dropped.fetch_add(spans, Ordering::Relaxed);
        let quiet = self.complained.is_some_and(|at| at.elapsed() < Duration::from_secs(60));
        if !quiet {
            self.complained = Some(Instant::now());
            tracing::warn!(endpoint = %self.config.endpoint_shown(), %error, spans, "the collector of traces takes no spans; this is said once a minute");
        }
    }

    /// One request; an error says whether another may do better.
    async fn post(&self, body: Bytes) -> Result<(), (String, bool)> {
        let mut request = Request::post(&self.config.endpoint)
            .header(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        for (name, value) in &self.config.headers {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(body)).map_err(|error| (error.to_string(), false))?;
        let answered = tokio::time::timeout(TIMEOUT, self.client.request(request)).await;
        let answer = match answered {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err((error.to_string(), true)),
            Err(_) => return Err((format!("no answer within {TIMEOUT:?}"), true)),
        };
        let status = answer.status();
        // Read to its end, so that the connection serves the next.
        let _ = tokio::time::timeout(TIMEOUT, Limited::new(answer.into_body(), MAX_ANSWER).collect()).await;
        let busy = matches!(
            status,
            StatusCode::TOO_MANY_REQUESTS
                | StatusCode::BAD_GATEWAY
                | StatusCode::SERVICE_UNAVAILABLE
                | StatusCode::GATEWAY_TIMEOUT
        );
        if status.is_success() { Ok(()) } else { Err((format!("it answers {status}"), busy)) }
    }
}
