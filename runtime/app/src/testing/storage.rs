//! What a node keeps, in memory: it survives a "restart", which is a new node on the same storage.

use super::MemoryLog;
use bytes::Bytes;
use ebb_domain::digest::Digest;
use ebb_domain::name::AppName;
use ebb_domain::port::Clock;
use ebb_domain::port::log::{Durable, EventLog};
use ebb_domain::port::storage::{Snapshot, Snapshots, Storage, StorageError};
use ebb_domain::stream::StreamId;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// [`Storage`] in memory.
pub struct MemoryStorage {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    logs: BTreeMap<AppName, Arc<MemoryLog>>,
    blobs: HashMap<Digest, Bytes>,
    rests: HashMap<AppName, Durable>,
    openings: HashMap<AppName, u32>,
    blobs_read: u32,
    failing_removals: u32,
    failing_openings: u32,
}

impl MemoryStorage {
    /// An empty storage.
    pub fn new(clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self { clock, state: Mutex::default() })
    }

    /// The next so many removals of apps fail, and remove nothing.
    pub fn fail_removals(&self, count: u32) {
        self.state.lock().failing_removals = count;
    }

    /// The next so many openings of logs fail.
    pub fn fail_openings(&self, count: u32) {
        self.state.lock().failing_openings = count;
    }

    /// The log of an app, if it has one.
    #[must_use]
    pub fn log(&self, app: &AppName) -> Option<Arc<MemoryLog>> {
        self.state.lock().logs.get(app).cloned()
    }

    /// How often an app's log was opened.
    #[must_use]
    pub fn openings(&self, app: &AppName) -> u32 {
        self.state.lock().openings.get(app).copied().unwrap_or_default()
    }

    /// How many kept files were read.
    #[must_use]
    pub fn blobs_read(&self) -> u32 {
        self.state.lock().blobs_read
    }

    /// Apps that have a log, the node's own among them.
    #[must_use]
    pub fn apps(&self) -> Vec<AppName> {
        self.state.lock().logs.keys().cloned().collect()
    }
}

/// Fails as long as the count says.
fn fault(left: &mut u32) -> Result<(), StorageError> {
    match left.checked_sub(1) {
        Some(rest) => {
            *left = rest;
            Err(StorageError("the test says so".into()))
        }
        None => Ok(()),
    }
}

impl Storage for MemoryStorage {
    fn open_log(&self, app: &AppName) -> Result<Arc<dyn EventLog>, StorageError> {
        let mut state = self.state.lock();
        *state.openings.entry(app.clone()).or_default() += 1;
        fault(&mut state.failing_openings)?;
        let log = state.logs.entry(app.clone());
        let log = log.or_insert_with(|| Arc::new(MemoryLog::new(self.clock.clone()))).clone();
        log.open_again();
        Ok(log)
    }

    fn rest(&self, app: &AppName) -> Result<Option<Durable>, StorageError> {
        Ok(self.state.lock().rests.get(app).copied())
    }

    fn note_rest(&self, app: &AppName, rest: Option<Durable>) -> Result<(), StorageError> {
        let mut state = self.state.lock();
        match rest {
            Some(rest) => state.rests.insert(app.clone(), rest),
            None => state.rests.remove(app),
        };
        Ok(())
    }

    fn snapshots(&self, _: &AppName) -> Result<Arc<dyn Snapshots>, StorageError> {
        Ok(Arc::new(NoSnapshots))
    }

    fn remove_app(&self, app: &AppName) -> Result<(), StorageError> {
        let mut state = self.state.lock();
        fault(&mut state.failing_removals)?;
        state.logs.remove(app);
        state.rests.remove(app);
        Ok(())
    }

    fn put_blob(&self, bytes: &[u8]) -> Result<Digest, StorageError> {
        let digest = Digest::of(bytes);
        self.state.lock().blobs.insert(digest, Bytes::copy_from_slice(bytes));
        Ok(digest)
    }

    fn blob(&self, digest: &Digest) -> Result<Bytes, StorageError> {
        let mut state = self.state.lock();
        state.blobs_read += 1;
        let found = state.blobs.get(digest).cloned();
        found.ok_or_else(|| StorageError(format!("there is no file {}", digest.short())))
    }
}

/// Snapshots that are all lost, as any of them may be at any time.
struct NoSnapshots;

impl Snapshots for NoSnapshots {
    fn get(&self, _: &StreamId) -> Option<Snapshot> {
        None
    }

    fn put(&self, _: &StreamId, _: Snapshot) {}
}
