//! Durable appends with 64 writers, and reading everything back.

use crate::{RUNS, SPAN, median, row};
use bytes::Bytes;
use ebb_domain::commit::{CommandId, Expected, NewCommit, Outcome};
use ebb_domain::digest::Digest;
use ebb_domain::event::{JSON, NewEvent, Position};
use ebb_domain::name::{AppName, EventType};
use ebb_domain::port::Clock;
use ebb_domain::port::log::{EventFilter, EventLog, ReadLimits};
use ebb_domain::port::storage::Storage;
use ebb_domain::stream::StreamId;
use ebb_domain::text::Text;
use ebb_domain::time::Timestamp;
use ebb_store::storage::{DiskStorage, StorageOptions};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};
use tokio::runtime::Runtime;

const WRITERS: u64 = 64;
const STREAMS: u64 = 4096;

pub struct WallClock;

impl Clock for WallClock {
    fn now(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Timestamp(since.as_micros() as u64)
    }
}

/// Opens a storage in a folder.
pub fn open(folder: &Path) -> Arc<DiskStorage> {
    DiskStorage::open(folder, StorageOptions::new(Arc::new(WallClock))).expect("a storage")
}

/// An event of about 300 bytes with its envelope, as a deposit would be.
pub fn commit(stream: StreamId, data: Bytes) -> NewCommit {
    let command_id = CommandId(uuid::Uuid::now_v7());
    NewCommit {
        stream,
        expected: Expected::Any,
        command_id,
        actor: Text::from_static("anonymous"),
        correlation_id: command_id.to_string().into(),
        causation_id: None,
        traceparent: None,
        module: Digest::default(),
        idempotency: None,
        origin: None,
        command: None,
        outcome: Outcome::Events(vec![NewEvent {
            event_type: EventType::new("Deposited").expect("a name"),
            schema_version: 1,
            data,
            content_type: JSON,
        }]),
    }
}

pub fn payload() -> Bytes {
    Bytes::from(format!("{{\"amount\":1,\"note\":\"{}\"}}", "x".repeat(277)))
}

pub fn fdatasync_p50() -> Duration {
    let folder = tempfile::tempdir_in(".").expect("a folder");
    let mut file = File::create(folder.path().join("probe")).expect("a file");
    file.write_all(&vec![0; 4 << 20]).and_then(|()| file.sync_all()).expect("a write");
    let mut times: Vec<Duration> = (0..200)
        .map(|index| {
            file.write_all_at(&[1; 4096], index * 4096).expect("a write");
            let start = Instant::now();
            file.sync_data().expect("a sync");
            start.elapsed()
        })
        .collect();
    times.sort();
    times[100]
}

pub fn all(runtime: &Runtime) {
    println!("\nDurable appends, {WRITERS} writers, 300 B of data, {STREAMS} streams");
    let ours = median((0..RUNS).map(|_| ebbtide(runtime)).collect());
    let tephra = median((0..RUNS).map(|_| tephra()).collect());
    let fjall = median((0..RUNS).map(|_| fjall()).collect());
    let bare = median((0..RUNS).map(|_| bare()).collect());
    row("ebbtide log", ours, "appends/s", "");
    row("tephra", tephra, "appends/s", &format!("ebbtide is {:.2} x", ours / tephra));
    row("fjall, insert + SyncAll", fjall, "appends/s", &format!("ebbtide is {:.2} x", ours / fjall));
    row(
        "bare write + fdatasync, groups of 64",
        bare,
        "appends/s",
        &format!("ebbtide is {:.2} x", ours / bare),
    );
    catch_up(runtime);
}

fn ebbtide(runtime: &Runtime) -> f64 {
    let folder = tempfile::tempdir_in(".").expect("a folder");
    let storage = open(folder.path());
    let log = storage.open_log(&AppName::new("bench").expect("a name")).expect("a log");
    let done = Arc::new(AtomicU64::new(0));
    let data = payload();
    let start = Instant::now();
    runtime.block_on(async {
        let writers = (0..WRITERS).map(|writer| {
            let (log, done, data) = (log.clone(), done.clone(), data.clone());
            tokio::spawn(async move {
                let mut number = writer;
                while start.elapsed() < SPAN {
                    number = (number + WRITERS) % STREAMS;
                    let stream = StreamId::parse(format!("account-{number}")).expect("a stream");
                    let mut staged = log.append(commit(stream, data.clone())).await.expect("staged");
                    staged.settlement.wait().await.expect("durable");
                    done.fetch_add(1, Ordering::Relaxed);
                }
            })
        });
        futures_util::future::join_all(writers).await;
    });
    let rate = done.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64();
    drop(log);
    storage.close();
    rate
}

/// Runs writers as threads, as engines that block want it.
fn threads(append: impl Fn(u64) + Send + Sync) -> f64 {
    let done = AtomicU64::new(0);
    let start = Instant::now();
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (append, done) = (&append, &done);
            scope.spawn(move || {
                let mut number = writer;
                while start.elapsed() < SPAN {
                    number = (number + WRITERS) % STREAMS;
                    append(number);
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    done.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64()
}

fn tephra() -> f64 {
    use tephra::{Event, EventType, SegmentConfig, SegmentSet, Tag, Tags, WriteCoordinator, WriterConfig};
    let folder = tempfile::tempdir_in(".").expect("a folder");
    let set = SegmentSet::open(folder.path(), SegmentConfig::new(64 << 20)).expect("segments");
    let (coordinator, handle) = WriteCoordinator::start(set, WriterConfig::default()).expect("a writer");
    let data = payload();
    let event_type = EventType::new("Deposited").expect("a type");
    let rate = threads(|number| {
        let tag = Tag::new(format!("account:{number}")).expect("a tag");
        let tags = Tags::new([tag]).expect("tags");
        let event = Event::new(&event_type, &tags, &data).expect("an event");
        handle.append(vec![event], None).expect("an append");
    });
    coordinator.shutdown();
    rate
}

fn fjall() -> f64 {
    use fjall::{Database, KeyspaceCreateOptions, PersistMode};
    let folder = tempfile::tempdir_in(".").expect("a folder");
    let database = Database::builder(folder.path()).open().expect("a database");
    let events = database.keyspace("events", KeyspaceCreateOptions::default).expect("a keyspace");
    let data = payload();
    let next = AtomicU64::new(0);
    threads(|number| {
        let key = [number.to_be_bytes(), next.fetch_add(1, Ordering::Relaxed).to_be_bytes()].concat();
        events.insert(key, &data[..]).expect("an insert");
        database.persist(PersistMode::SyncAll).expect("a sync");
    })
}

/// What the disk does with groups of 64 such events, nothing else.
fn bare() -> f64 {
    let folder = tempfile::tempdir_in(".").expect("a folder");
    let mut file = File::create(folder.path().join("bare")).expect("a file");
    let group = vec![7; 64 * 400];
    let (mut written, start) = (0_u64, Instant::now());
    while start.elapsed() < SPAN {
        file.write_all(&group).and_then(|()| file.sync_data()).expect("a write");
        written += 64;
    }
    written as f64 / start.elapsed().as_secs_f64()
}

fn catch_up(runtime: &Runtime) {
    const EVENTS: u64 = 1_000_000;
    let folder = tempfile::tempdir_in(".").expect("a folder");
    let storage = open(folder.path());
    let app = AppName::new("bench").expect("a name");
    let log = storage.open_log(&app).expect("a log");
    let data = payload();
    runtime.block_on(async {
        let mut last = None;
        for number in 0..EVENTS {
            let stream = StreamId::parse(format!("account-{}", number % STREAMS)).expect("a stream");
            last = Some(log.append(commit(stream, data.clone())).await.expect("staged"));
        }
        last.expect("some").settlement.wait().await.expect("durable");
    });
    let rates = (0..RUNS).map(|_| {
        runtime.block_on(async {
            let (mut after, mut events, start) = (Position::START, 0_u64, Instant::now());
            let limits = ReadLimits { items: 10_000, bytes: 4 << 20 };
            while events < EVENTS {
                let batch = log.read(after, &EventFilter::default(), limits).await.expect("a batch");
                events += batch.events.len() as u64;
                after = batch.scanned_to;
            }
            events as f64 / start.elapsed().as_secs_f64()
        })
    });
    let rate = median(rates.collect());
    println!("\nCatch-up read in process, {EVENTS} events of 300 B, CRC checked, decoded");
    row("ebbtide log", rate, "events/s", "");
    drop(log);
    storage.close();
    drop(storage);
    let start = Instant::now();
    let storage = open(folder.path());
    drop(storage.open_log(&app).expect("a log"));
    row("open again, 1 million events", start.elapsed().as_secs_f64() * 1e3, "ms", "after a clean close");
    storage.close();
}
