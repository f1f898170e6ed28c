//! A load generator, and what it finds: clients that each send one request at a time over a connection of their own.

use crate::client::Problem;
use crate::failure::Failure;
use bytes::Bytes;
use hdrhistogram::Histogram;
use http::header::HOST;
use http::{HeaderMap, HeaderValue, Method, Request};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

/// How long one answer may take: longer than a command's own limits.
const ANSWER: Duration = Duration::from_secs(60);
/// Before a client that could not be served tries again: it is to count what is wrong, not to add to it.
const AFTER_FAILURE: Duration = Duration::from_millis(10);
/// Parts of a measurement that are counted apart, to see whether the machine was steady.
const SLICES: usize = 4;

/// Whether the user has had enough.
#[derive(Clone)]
pub(super) struct Stop(watch::Receiver<bool>);

impl Stop {
    /// A stop, and what says so.
    pub(super) fn new() -> (watch::Sender<bool>, Self) {
        let (sender, receiver) = watch::channel(false);
        (sender, Self(receiver))
    }

    pub(super) fn is_asked(&self) -> bool {
        *self.0.borrow()
    }

    /// Returns when it is asked for.
    pub(super) async fn asked(&self) {
        if self.0.clone().wait_for(|asked| *asked).await.is_err() {
            // Nobody is left who could ask.
            std::future::pending::<()>().await;
        }
    }
}

/// One request of many.
pub(super) struct Ask {
    pub(super) method: Method,
    /// Path and query.
    pub(super) path: String,
    pub(super) body: Bytes,
}

/// Where requests go, and what they are: the function gets the request's number, from 0.
pub(super) struct Target {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) headers: HeaderMap,
    pub(super) ask: Box<dyn Fn(u64) -> Ask + Send + Sync>,
}

impl Target {
    /// A server at `base` (`http://host:port`).
    pub(super) fn new(
        base: &str,
        mut headers: HeaderMap,
        ask: impl Fn(u64) -> Ask + Send + Sync + 'static,
    ) -> Result<Self, Failure> {
        let bad = || Failure::new(format!("`{base}` is not the address of a server"));
        let url = reqwest::Url::parse(base).map_err(|_| bad())?;
        let host = url.host_str().ok_or_else(bad)?.trim_matches(['[', ']']).to_owned();
        let port = url.port_or_known_default().ok_or_else(bad)?;
        let authority = base.trim_start_matches("http://").split('/').next().unwrap_or_default();
        headers.insert(HOST, HeaderValue::from_str(authority).map_err(|_| bad())?);
        Ok(Self { host, port, headers, ask: Box::new(ask) })
    }
}

/// What a measurement found.
pub(super) struct Measured {
    /// Answers that were what was asked for.
    pub(super) ok: u64,
    /// Everything else, by code.
    pub(super) errors: BTreeMap<String, u64>,
    /// How long it took.
    pub(super) took: Duration,
    /// Times of the good answers, in microseconds.
    pub(super) times: Histogram<u64>,
    slices: [u64; SLICES],
}

impl Measured {
    pub(super) fn new() -> Self {
        // One microsecond to two minutes, to three digits: some hundred kilobytes, however many answers.
        let times = Histogram::new_with_bounds(1, 120_000_000, 3)
            .unwrap_or_else(|error| unreachable!("fixed bounds: {error}"));
        Self { ok: 0, errors: BTreeMap::new(), took: Duration::ZERO, times, slices: [0; SLICES] }
    }

    pub(super) fn good(&mut self, time: Duration) {
        self.ok += 1;
        self.times.saturating_record(time.as_micros() as u64);
    }

    pub(super) fn bad(&mut self, code: impl Into<String>) {
        *self.errors.entry(code.into()).or_default() += 1;
    }

    pub(super) fn merge(&mut self, other: Self) {
        self.ok += other.ok;
        // The bounds are the same.
        let _ = self.times.add(other.times);
        for (code, count) in other.errors {
            *self.errors.entry(code).or_default() += count;
        }
        for (slice, count) in self.slices.iter_mut().zip(other.slices) {
            *slice += count;
        }
    }

    /// Good answers a second.
    pub(super) fn rate(&self) -> f64 {
        if self.took.is_zero() { 0.0 } else { self.ok as f64 / self.took.as_secs_f64() }
    }

    /// How far its quarters lie apart, as a part of the best one.
    pub(super) fn spread(&self) -> f64 {
        let (least, most) = (self.slices.iter().min(), self.slices.iter().max());
        match (least, most) {
            (Some(least), Some(most)) if *most > 0 => 1.0 - *least as f64 / *most as f64,
            _ => 0.0,
        }
    }
}

/// Sends from so many clients for so long, or until it is stopped.
pub(super) async fn load(
    target: &Arc<Target>,
    numbers: &Arc<AtomicU64>,
    clients: usize,
    span: Duration,
    stop: &Stop,
) -> Measured {
    let started = Instant::now();
    let mut running = JoinSet::new();
    for _ in 0..clients {
        let client = Client { target: target.clone(), open: None };
        let (numbers, stop) = (numbers.clone(), stop.clone());
        running.spawn(client.run(numbers, started, span, stop));
    }
    let mut all = Measured::new();
    while let Some(done) = running.join_next().await {
        match done {
            Ok(measured) => all.merge(measured),
            Err(_) => all.bad("client_panicked"),
        }
    }
    all.took = started.elapsed();
    all
}

struct Client {
    target: Arc<Target>,
    open: Option<SendRequest<Full<Bytes>>>,
}

impl Client {
    async fn run(
        mut self,
        numbers: Arc<AtomicU64>,
        started: Instant,
        span: Duration,
        stop: Stop,
    ) -> Measured {
        let mut measured = Measured::new();
        while started.elapsed() < span && !stop.is_asked() {
            let ask = (self.target.ask)(numbers.fetch_add(1, Ordering::Relaxed));
            let sent = Instant::now();
            let answered = tokio::select! {
                answered = timeout(ANSWER, self.exchange(ask)) => answered,
                () = stop.asked() => break,
            };
            match answered {
                Ok(Ok(None)) => {
                    measured.good(sent.elapsed());
                    let slice = started.elapsed().as_secs_f64() / span.as_secs_f64() * SLICES as f64;
                    measured.slices[(slice as usize).min(SLICES - 1)] += 1;
                    continue;
                }
                Ok(Ok(Some(code))) => measured.bad(code),
                Ok(Err(_)) => measured.bad("connection_failed"),
                Err(_) => {
                    self.open = None;
                    measured.bad("no_answer");
                }
            }
            tokio::time::sleep(AFTER_FAILURE).await;
        }
        measured
    }

    /// One request and its answer: none if it is good, else its code.
    pub(super) async fn exchange(&mut self, ask: Ask) -> Result<Option<String>, Broken> {
        let mut request = Request::new(Full::new(ask.body));
        *request.method_mut() = ask.method;
        *request.uri_mut() = ask.path.parse().map_err(|_| Broken)?;
        self.target.headers.clone_into(request.headers_mut());
        let mut open = match self.open.take() {
            Some(open) => open,
            None => self.connect().await?,
        };
        if open.ready().await.is_err() {
            // The server closed it between two requests, as it may.
            open = self.connect().await?;
        }
        let (head, body) = open.send_request(request).await.map_err(|_| Broken)?.into_parts();
        let body = body.collect().await.map_err(|_| Broken)?.to_bytes();
        self.open = Some(open);
        if head.status.is_success() {
            return Ok(None);
        }
        let problem = Problem::read(head.status.as_u16(), &body);
        Ok(Some(problem.code.unwrap_or_else(|| format!("http_{}", head.status.as_u16()))))
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, Broken> {
        let stream = TcpStream::connect((self.target.host.as_str(), self.target.port)).await;
        let stream = stream.map_err(|_| Broken)?;
        stream.set_nodelay(true).map_err(|_| Broken)?;
        let (open, connection) = handshake(TokioIo::new(stream)).await.map_err(|_| Broken)?;
        tokio::spawn(async move { connection.await.ok() });
        Ok(open)
    }
}

/// The connection, not the answer, was at fault.
struct Broken;

/// One request on a connection of its own.
pub(super) struct Single(Client);

impl Single {
    pub(super) fn new(target: Arc<Target>) -> Self {
        Self(Client { target, open: None })
    }

    /// Sends one, and waits for its answer.
    pub(super) async fn send(&mut self, number: u64) -> Result<(), String> {
        let ask = (self.0.target.ask)(number);
        match timeout(ANSWER, self.0.exchange(ask)).await {
            Ok(Ok(None)) => Ok(()),
            Ok(Ok(Some(code))) => Err(code),
            Ok(Err(Broken)) => Err("connection_failed".into()),
            Err(_) => Err("no_answer".into()),
        }
    }
}
