//! What this machine can do without WebAssembly: baselines, made with the same log and the same HTTP library in this
//! process.

use super::load::{Measured, Stop};
use crate::failure::Failure;
use bytes::Bytes;
use ebb_domain::commit::{CommandId, Expected, NewCommit, Outcome};
use ebb_domain::digest::Digest;
use ebb_domain::event::{JSON, NewEvent};
use ebb_domain::name::{AppName, EventType};
use ebb_domain::port::Clock;
use ebb_domain::port::log::EventLog;
use ebb_domain::port::storage::Storage as _;
use ebb_domain::stream::StreamId;
use ebb_domain::text::Text;
use ebb_domain::time::Timestamp;
use ebb_store::storage::{DiskStorage, StorageOptions};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

struct WallClock;

impl Clock for WallClock {
    fn now(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Timestamp(since.as_micros() as u64)
    }
}

/// Times of `fdatasync` after 4 KiB were written over a file that is there.
pub(super) fn fdatasync(folder: &Path, stop: &Stop) -> Result<Measured, Failure> {
    let path = folder.join("fdatasync");
    let failure = |error| Failure::new(format!("{} can't be written: {error}", path.display()));
    let mut file = File::create(&path).map_err(failure)?;
    file.write_all(&vec![0; 4 << 20]).and_then(|()| file.sync_all()).map_err(failure)?;
    let mut measured = Measured::new();
    let started = Instant::now();
    for index in 0..500 {
        if stop.is_asked() || started.elapsed() > Duration::from_secs(3) {
            break;
        }
        file.write_all_at(&[1; 4096], index * 4096).map_err(failure)?;
        let sync = Instant::now();
        file.sync_data().map_err(failure)?;
        measured.good(sync.elapsed());
    }
    measured.took = started.elapsed();
    Ok(measured)
}

/// A log like a node's.
pub(super) struct Log {
    pub(super) log: Arc<dyn EventLog>,
    _storage: Arc<DiskStorage>,
}

impl Log {
    pub(super) fn open(folder: &Path) -> Result<Self, Failure> {
        let storage = DiskStorage::open(folder, StorageOptions::new(Arc::new(WallClock)))
            .map_err(|error| Failure::new(format!("a log can't be opened: {}", error.0)))?;
        let app = AppName::new("bench").map_err(Failure::new)?;
        let log = storage
            .open_log(&app)
            .map_err(|error| Failure::new(format!("a log can't be opened: {}", error.0)))?;
        Ok(Self { log, _storage: storage })
    }
}

/// Durable appends from so many tasks.
pub(super) async fn append(log: &Log, writers: usize, streams: u64, span: Duration, stop: &Stop) -> Measured {
    let numbers = Arc::new(AtomicU64::new(0));
    let started = Instant::now();
    let mut running = JoinSet::new();
    for _ in 0..writers {
        let (log, numbers, stop) = (log.log.clone(), numbers.clone(), stop.clone());
        running.spawn(async move {
            let mut measured = Measured::new();
            while started.elapsed() < span && !stop.is_asked() {
                let sent = Instant::now();
                let number = numbers.fetch_add(1, Ordering::Relaxed) % streams;
                match append_one(&*log, number, Bytes::from_static(super::BODY.as_bytes())).await {
                    Ok(()) => measured.good(sent.elapsed()),
                    Err(code) => {
                        measured.bad(code);
                        break;
                    }
                }
            }
            measured
        });
    }
    let mut all = Measured::new();
    while let Some(done) = running.join_next().await {
        match done {
            Ok(measured) => all.merge(measured),
            Err(_) => all.bad("writer_panicked"),
        }
    }
    all.took = started.elapsed();
    all
}

async fn append_one(log: &dyn EventLog, number: u64, data: Bytes) -> Result<(), String> {
    let command_id = CommandId(uuid::Uuid::now_v7());
    let commit = NewCommit {
        stream: StreamId::parse(format!("counter-{number}")).map_err(|error| error.to_string())?,
        expected: Expected::Any,
        command_id,
        actor: Text::from_static("anonymous"),
        correlation_id: command_id.to_string().into(),
        causation_id: None,
        hops: 0,
        traceparent: None,
        module: Digest::default(),
        idempotency: None,
        origin: None,
        command: None,
        outcome: Outcome::Events(vec![NewEvent {
            event_type: EventType::new("Counted").map_err(|error| error.to_string())?,
            schema_version: 1,
            data,
            content_type: JSON,
        }]),
    };
    let mut staged = log.append(commit).await.map_err(|error| error.to_string())?;
    staged.settlement.wait().await.map_err(|error| error.to_string())
}

/// An HTTP server in this process; with a log it appends what it gets, without it just answers.
pub(super) struct HttpServer {
    pub(super) base: String,
    task: JoinHandle<()>,
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl HttpServer {
    pub(super) async fn start(log: Option<Arc<dyn EventLog>>) -> Result<Self, Failure> {
        let failure = |error| Failure::new(format!("a port can't be opened: {error}"));
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(failure)?;
        let base = format!("http://{}", listener.local_addr().map_err(failure)?);
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                drop(stream.set_nodelay(true));
                let log = log.clone();
                connections.spawn(async move {
                    let service = service_fn(move |request| answer(log.clone(), request));
                    let http = hyper::server::conn::http1::Builder::new();
                    drop(http.serve_connection(TokioIo::new(stream), service).await);
                });
            }
        });
        Ok(Self { base, task })
    }
}

async fn answer(
    log: Option<Arc<dyn EventLog>>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let number = request.uri().path().trim_start_matches('/').parse().unwrap_or(0);
    let body = request.into_body().collect().await?.to_bytes();
    let failed = match &log {
        Some(log) => append_one(&**log, number, body).await.err(),
        None => None,
    };
    let status = if failed.is_some() { 500 } else { 200 };
    let mut response = Response::new(Full::new(Bytes::from_static(b"{\"revision\":0,\"position\":1}")));
    *response.status_mut() = http::StatusCode::from_u16(status).unwrap_or_default();
    Ok(response)
}
