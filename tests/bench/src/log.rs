//! Durable appends with 64 writers, and reading everything back.

use crate::{RUNS, SPAN, cpu_seconds, median, row};
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
use ebb_store::log::disk::{Disk, LogFile, RealDisk};
use ebb_store::storage::{DiskStorage, StorageOptions};
use std::fs::File;
use std::io::{self, BufRead as _, Write};
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
        hops: 0,
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

/// What one engine did: its rate, and the CPU time of this process for each append.
struct Appends {
    rate: f64,
    cpu_us: f64,
}

impl Appends {
    fn of(run: impl FnOnce() -> (u64, f64)) -> Self {
        let before = cpu_seconds(std::process::id());
        let (appends, seconds) = run();
        let cpu = cpu_seconds(std::process::id()) - before;
        Self { rate: appends as f64 / seconds, cpu_us: cpu * 1e6 / appends as f64 }
    }
}

type Engine<'a> = (&'a str, Box<dyn Fn() -> Appends + 'a>);

/// Measures the engines in turn, several times, so that what else the machine does meets all of them.
fn compare(engines: &[Engine<'_>]) {
    let mut runs: Vec<Vec<Appends>> = engines.iter().map(|_| Vec::new()).collect();
    for _ in 0..RUNS {
        for ((_, engine), runs) in engines.iter().zip(&mut runs) {
            runs.push(engine());
        }
    }
    let ours = median(runs[0].iter().map(|run| run.rate).collect());
    for ((name, _), runs) in engines.iter().zip(&runs) {
        let rate = median(runs.iter().map(|run| run.rate).collect());
        let cpu = median(runs.iter().map(|run| run.cpu_us).collect());
        row(name, rate, "appends/s", &format!("{cpu:.1} us CPU each; ebbtide is {:.2} x", ours / rate));
    }
}

pub fn all(runtime: &Runtime) {
    println!("\nDurable appends, {WRITERS} writers, 300 B of data, {STREAMS} streams");
    compare(&[
        ("ebbtide log", Box::new(|| ebbtide(runtime, Arc::new(RealDisk)))),
        ("tephra", Box::new(|| Appends::of(tephra))),
        ("fjall, insert + SyncAll", Box::new(|| Appends::of(fjall))),
        ("sled, insert + flush: weaker, its flush is no fsync", Box::new(|| Appends::of(sled))),
        ("bare write + fdatasync, groups of 64", Box::new(|| Appends::of(bare))),
    ]);
    println!("\nThe same with 1 ms added to each sync");
    compare(&[("ebbtide log", Box::new(|| ebbtide(runtime, Arc::new(SlowDisk(RealDisk)))))]);
    catch_up(runtime);
}

/// The log alone, for a profile.
pub fn appends(runtime: &Runtime) {
    compare(&[
        ("ebbtide log", Box::new(|| ebbtide(runtime, Arc::new(RealDisk)))),
        ("tephra", Box::new(|| Appends::of(tephra))),
    ]);
}

fn ebbtide(runtime: &Runtime, disk: Arc<dyn Disk>) -> Appends {
    let folder = tempfile::tempdir_in(".").expect("a folder");
    let mut options = StorageOptions::new(Arc::new(WallClock));
    options.disk = disk;
    let storage = DiskStorage::open(folder.path(), options).expect("a storage");
    let log = storage.open_log(&AppName::new("bench").expect("a name")).expect("a log");
    let done = Arc::new(AtomicU64::new(0));
    let data = payload();
    let appends = Appends::of(|| {
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
        (done.load(Ordering::Relaxed), start.elapsed().as_secs_f64())
    });
    drop(log);
    storage.close();
    appends
}

/// The system's files on a disk whose syncs take a millisecond longer.
struct SlowDisk(RealDisk);
struct SlowFile(Arc<dyn LogFile>);

impl LogFile for SlowFile {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn read_at(&self, offset: u64, len: usize, into: &mut Vec<u8>) -> io::Result<()> {
        self.0.read_at(offset, len, into)
    }
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        self.0.write_at(offset, bytes)
    }
    fn sync_data(&self) -> io::Result<()> {
        std::thread::sleep(Duration::from_millis(1));
        self.0.sync_data()
    }
    fn sync_all(&self) -> io::Result<()> {
        std::thread::sleep(Duration::from_millis(1));
        self.0.sync_all()
    }
    fn allocate(&self, len: u64) -> io::Result<()> {
        self.0.allocate(len)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
}

impl Disk for SlowDisk {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn LogFile>> {
        Ok(Arc::new(SlowFile(self.0.open(path)?)))
    }
    fn create(&self, path: &Path) -> io::Result<Arc<dyn LogFile>> {
        Ok(Arc::new(SlowFile(self.0.create(path)?)))
    }
    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        self.0.list(folder)
    }
    fn create_folder(&self, folder: &Path) -> io::Result<()> {
        self.0.create_folder(folder)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.0.remove(path)
    }
    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        self.0.sync_folder(folder)
    }
}

/// Runs writers as threads, as engines that block want it.
fn threads(append: impl Fn(u64) + Send + Sync) -> (u64, f64) {
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
    (done.load(Ordering::Relaxed), start.elapsed().as_secs_f64())
}

fn tephra() -> (u64, f64) {
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

fn fjall() -> (u64, f64) {
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

fn sled() -> (u64, f64) {
    let folder = tempfile::tempdir_in(".").expect("a folder");
    let database = sled::open(folder.path()).expect("a database");
    let data = payload();
    let next = AtomicU64::new(0);
    threads(|number| {
        let key = [number.to_be_bytes(), next.fetch_add(1, Ordering::Relaxed).to_be_bytes()].concat();
        database.insert(key, &data[..]).expect("an insert");
        database.flush().expect("a flush");
    })
}

/// What the disk does with groups of 64 such events, nothing else.
fn bare() -> (u64, f64) {
    let folder = tempfile::tempdir_in(".").expect("a folder");
    let mut file = File::create(folder.path().join("bare")).expect("a file");
    let group = vec![7; 64 * 400];
    let (mut written, start) = (0_u64, Instant::now());
    while start.elapsed() < SPAN {
        file.write_all(&group).and_then(|()| file.sync_data()).expect("a write");
        written += 64;
    }
    (written, start.elapsed().as_secs_f64())
}

/// Fills the log of the app `bench` in a node's data folder.
pub async fn fill(data: &Path, events: u64) {
    let storage = open(data);
    let log = storage.open_log(&AppName::new("bench").expect("a name")).expect("a log");
    append_all(&log, events).await;
    drop(log);
    storage.close();
}

async fn append_all(log: &Arc<dyn EventLog>, events: u64) {
    let data = payload();
    let mut last = None;
    for number in 0..events {
        let stream = StreamId::parse(format!("account-{}", number % STREAMS)).expect("a stream");
        last = Some(log.append(commit(stream, data.clone())).await.expect("staged"));
    }
    last.expect("some").settlement.wait().await.expect("durable");
}

fn catch_up(runtime: &Runtime) {
    const EVENTS: u64 = 1_000_000;
    let folder = tempfile::tempdir_in(".").expect("a folder");
    let storage = open(folder.path());
    let app = AppName::new("bench").expect("a name");
    let log = storage.open_log(&app).expect("a log");
    runtime.block_on(append_all(&log, EVENTS));
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
}

/// How long a log takes to open: after a clean close, and as a killed process leaves it.
pub fn open_again(runtime: &Runtime, events: u64) {
    println!("\nOpening a log of {events} events of 300 B");
    let folder = tempfile::tempdir_in(".").expect("a folder");
    let app = AppName::new("bench").expect("a name");
    let data = payload();
    let time = || {
        let start = Instant::now();
        let storage = open(folder.path());
        let log = storage.open_log(&app).expect("a log");
        (start.elapsed().as_secs_f64() * 1e3, storage, log)
    };
    // A process of its own, so that it can be killed.
    let mut writer = std::process::Command::new(std::env::current_exe().expect("a path"))
        .arg("write")
        .arg(folder.path())
        .arg(events.to_string())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("a process");
    let mut line = String::new();
    io::BufReader::new(writer.stdout.take().expect("stdout")).read_line(&mut line).expect("a line");
    writer.kill().and_then(|()| writer.wait().map(drop)).expect("killed");
    let (killed, storage, log) = time();
    row("after kill -9, while it wrote", killed, "ms", "");
    runtime.block_on(async {
        let stream = StreamId::parse("account-1").expect("a stream");
        let mut staged = log.append(commit(stream, data.clone())).await.expect("staged");
        staged.settlement.wait().await.expect("durable");
        assert!(staged.first_position.0 > events, "what was there is there");
    });
    drop(log);
    storage.close();
    drop(storage);
    let (clean, storage, log) = time();
    row("after a clean close", clean, "ms", "");
    drop(log);
    storage.close();
}

/// Appends so many events, says so, and goes on until it is killed.
pub fn write(runtime: &Runtime, folder: &Path, events: u64) {
    let storage = open(folder);
    let log = storage.open_log(&AppName::new("bench").expect("a name")).expect("a log");
    let data = payload();
    runtime.block_on(async {
        for number in 0_u64.. {
            let stream = StreamId::parse(format!("account-{}", number % STREAMS)).expect("a stream");
            let mut staged = log.append(commit(stream, data.clone())).await.expect("staged");
            if number == events {
                staged.settlement.wait().await.expect("durable");
                println!("{number}");
            }
        }
    });
}
