//! The append-only log of one app: [`DiskLog`].
//!
//! An append is staged under a mutex, at once; a thread of its own ([`syncer`](DiskLog)) takes what is staged, writes it as
//! one group, syncs once, moves the durable mark and settles the group, then takes what was staged meanwhile. So pipelined
//! appends share syncs, and group *n+1* is written only after group *n* is durable. `docs/decisions/0002` says why there is
//! no writer task with a queue.

pub(crate) mod commit_record;
pub mod disk;
mod event_log;
#[cfg(debug_assertions)]
mod faulty_disk;
pub(crate) mod format;
mod group;
pub(crate) mod reader;
pub(crate) mod recovery;
pub mod repair;
pub(crate) mod scan;
pub(crate) mod segment;
mod sequencer;
pub mod verify;
mod writer;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod vectors;

use crate::index::{self, Backlog, Entry, Hash, Index, IndexError, NotInMemory, key_hash};
use crate::worker::{Next, Worker};
use bytes::Bytes;
use disk::Disk;
use ebb_domain::commit::{CommandId, Commit, CommitHeader, CommitNumber, NewCommit};
use ebb_domain::event::{Position, Revision, StoredEvent};
use ebb_domain::port::log::{
    AppendError, Durable, EventBatch, EventFilter, EventLog, Head, KeyMatch, ReadError, ReadLimits, Staged,
};
use ebb_domain::port::storage::StorageError;
use ebb_domain::port::{Clock, Future};
use ebb_domain::stream::StreamId;
use ebb_domain::text::Text;
use ebb_domain::time::Timestamp;
use ebb_faults::{Point, crash_point};
use format::{FLAG_CLOSING, Malformed, Reached};
#[cfg(any(test, feature = "testing"))]
pub(crate) use group::Stage;
use parking_lot::Mutex;
use reader::{Commits, LookedUp, Memory, Places};
use recovery::Recovered;
use segment::{Location, SegmentSet, Target};
use sequencer::{Bounds, NotStaged, Prepared, Sequencer};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore, watch};
use writer::{SegmentWriter, WriteFailure};

/// How far behind a command's own time its commit may be recorded: the longest wall time of a function, and a minute.
const COMMAND_LIFE: Duration = Duration::from_secs(16 * 60);
/// Commits that may wait in memory for the index; more are indexed before the next group is written.
const MAX_BACKLOG: usize = 1 << 16;
/// Bytes to read at the log's end that are not worth another thread: they were just written, and come from memory.
const SMALL_READ: u64 = 128 << 10;

/// How a log works. The defaults are meant for production; tests turn some.
#[derive(Clone, Copy, Debug)]
pub struct LogOptions {
    /// Bytes of a group at which further appends wait.
    pub group_bytes: usize,
    /// Commits of a group at which further appends wait.
    pub group_commits: usize,
    /// How long a log's threads stay without work.
    pub idle: Duration,
    /// Commits that are indexed at once; see also `index_after`.
    pub index_batch: usize,
    /// How long after the last commit the rest is indexed.
    pub index_after: Duration,
    /// How long after a failed write appends are refused at once, before one is let through to try again.
    pub retry_after: Duration,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            group_bytes: 8 << 20,
            group_commits: 8192,
            idle: Duration::from_secs(5),
            index_batch: 1 << 14,
            index_after: Duration::from_millis(200),
            retry_after: Duration::from_millis(250),
        }
    }
}

/// The log of one app, in a folder. Closed by [`DiskLog::close`], or when it is dropped, which then blocks for a sync.
pub struct DiskLog {
    core: Arc<Core>,
    syncer: Arc<Worker>,
    indexer: Arc<Worker>,
    /// Called when the log was closed because nobody holds it any more.
    released: Option<Box<dyn FnOnce() + Send + Sync>>,
}

struct Core {
    name: String,
    options: LogOptions,
    clock: Arc<dyn Clock>,
    sequencer: Mutex<Sequencer>,
    /// Appends that found the open group full queue up here, the first of them waiting for `room`.
    queue: Arc<Semaphore>,
    room: Notify,
    writer: Mutex<SegmentWriter>,
    segments: Arc<SegmentSet>,
    index: Index,
    durable: watch::Sender<Durable>,
    /// Whether the note of a clean end has been written; none: not closed.
    closed: Mutex<Option<bool>>,
}

/// What [`DiskLog::open`] needs.
pub(crate) struct OpenLog<'a> {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) folder: &'a Path,
    pub(crate) name: &'a str,
    pub(crate) db: &'a sled::Db,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) options: LogOptions,
    /// No threads: its holder does the log's work, step by step, as simulations do.
    pub(crate) stepped: bool,
}

impl DiskLog {
    /// Opens the log in `folder`, making it if it is not there, and brings its index up to date. Blocks.
    pub(crate) fn open(open: OpenLog<'_>) -> Result<Self, StorageError> {
        let OpenLog { disk, folder, name, db, clock, options, stepped } = open;
        let recovered = recovery::recover(&disk, folder)?;
        let segments = Arc::new(SegmentSet::new(Arc::clone(&disk), recovered.segments.clone()));
        let Recovered { reached, log, .. } = recovered;
        let mut writer = SegmentWriter::new(disk, folder.to_owned(), Arc::clone(&segments), recovered);
        crash_point(Point::OpenBeforeEpoch);
        announce_epoch(&mut writer, folder)?;
        crash_point(Point::OpenAfterEpoch);

        let index =
            Index::open(db, index_tree(name), log).map_err(|error| StorageError(error.to_string()))?;
        let durable = Durable { commit: reached.commit, position: reached.position };
        catch_up(&index, &segments, durable, writer.log())
            .map_err(|error| StorageError(error.to_string()))?;

        let epoch = writer.epoch();
        let bounds = Bounds { bytes: options.group_bytes.max(1), commits: options.group_commits.max(1) };
        let core = Arc::new(Core {
            name: name.to_owned(),
            options,
            clock,
            sequencer: Mutex::new(Sequencer::new(Reached { epoch, ..reached }, bounds)),
            queue: Arc::new(Semaphore::new(1)),
            room: Notify::new(),
            writer: Mutex::new(writer),
            segments,
            index,
            durable: watch::Sender::new(durable),
            closed: Mutex::new(None),
        });
        let worker = |name, step: Box<dyn Fn() -> Next + Send + Sync>| {
            Arc::new(if stepped { Worker::idle(name) } else { Worker::new(name, options.idle, step) })
        };
        let indexer = {
            let core = Arc::clone(&core);
            worker(format!("index-{name}"), Box::new(move || core.index_some()))
        };
        let syncer = {
            let (core, indexer) = (Arc::clone(&core), Arc::clone(&indexer));
            worker(format!("log-{name}"), Box::new(move || core.sync_group(&indexer)))
        };
        let log = Self { core, syncer, indexer, released: None };
        log.core.wake_indexer(&log.indexer);
        crash_point(Point::OpenDone);
        Ok(log)
    }

    /// Writes what is staged, notes that the log was closed, and brings the index up to date. Later appends are refused.
    /// Gives the end of the log if the note is written, so that nothing is left to be found out. Blocks.
    pub fn close(&self) -> Option<Durable> {
        self.core.sequencer.lock().close();
        self.core.room.notify_one();
        self.syncer.stop();
        while matches!(self.core.sync_group(&self.indexer), Next::Now) {}
        self.indexer.stop();
        self.core.close().then(|| *self.core.durable.borrow())
    }

    /// Whether it has been closed.
    pub(crate) fn is_closed(&self) -> bool {
        self.core.closed.lock().is_some()
    }

    /// Throws the index away and builds it again from the log. Look-ups wait meanwhile.
    ///
    /// # Errors
    /// The log is damaged, or the index can't be written.
    pub fn reindex(&self, progress: &mut dyn FnMut(CommitNumber)) -> Result<(), ReadError> {
        self.core.rebuild_index("it was asked for", progress)
    }

    /// `released` is called when the log was closed because nobody holds it any more.
    pub(crate) fn on_release(mut self, released: impl FnOnce() + Send + Sync + 'static) -> Self {
        self.released = Some(Box::new(released));
        self
    }

    /// Goes one step with the group that is on its way, or takes the next; none: none is staged.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn step_group(&self, stage: Option<Stage>) -> Option<Stage> {
        match stage {
            Some(stage) => self.core.advance(stage, &self.indexer),
            None => self.core.take_group(),
        }
    }

    /// Moves some commits to the index.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn step_index(&self) {
        self.core.index_some();
    }

    #[cfg(test)]
    pub(crate) fn workers(&self) -> [&Worker; 2] {
        [&self.syncer, &self.indexer]
    }

    #[cfg(test)]
    pub(crate) fn index(&self) -> &Index {
        &self.core.index
    }
}

impl Drop for DiskLog {
    fn drop(&mut self) {
        self.close();
        if let Some(released) = self.released.take() {
            released();
        }
    }
}

/// The tree that holds a log's index.
pub(crate) fn index_tree(name: &str) -> String {
    format!("{name}/index")
}

/// The tree that holds the snapshots of an app's streams.
pub(crate) fn snapshot_tree(name: &str) -> String {
    format!("{name}/snapshots")
}

/// Makes this writer's epoch durable, so that no other writer of this log can have had it.
fn announce_epoch(writer: &mut SegmentWriter, folder: &Path) -> Result<(), StorageError> {
    match writer.write_mark(0) {
        Ok(_) => Ok(()),
        // Reading must be possible on a full disk, and the next group that is written carries the epoch as well.
        Err(WriteFailure::NotWritten(error)) => {
            tracing::warn!(log = %folder.display(), %error, "the log takes no writes now");
            Ok(())
        }
        Err(WriteFailure::Poisoned(error) | WriteFailure::Unknown(error)) => {
            Err(StorageError(format!("{}: the log could not be synced: {error}", folder.display())))
        }
    }
}

/// Gives the index what the log has above its mark; builds it again, and says false, if the mark does not belong to this log.
fn catch_up(
    index: &Index,
    segments: &SegmentSet,
    durable: Durable,
    log: uuid::Uuid,
) -> Result<bool, ReadError> {
    let trusted = match index.mark() {
        Ok(None) => durable.commit.0 == 0,
        // What an unfinished generation left in the tree must be of this log as well.
        Ok(Some(mark)) if mark.log == log => {
            is_in_log(segments, mark.complete, durable)? && is_in_log(segments, mark.ahead, durable)?
        }
        Ok(Some(_)) => false,
        Err(error) => {
            tracing::warn!(%error, "the index could not be read");
            false
        }
    };
    if !trusted {
        tracing::warn!(
            commits = durable.commit.0,
            "the index is missing, damaged or of another log; building it again"
        );
        return rebuild(index, segments, Some(durable.commit.0), &mut |_| ()).map(|()| false);
    }
    let mut entries = Vec::new();
    scan(segments, index.indexed(), durable.commit.0, &mut |entry| {
        entries.push(entry);
        if entries.len() >= MAX_BACKLOG {
            index.merge(std::mem::take(&mut entries));
            while index.flush_batch()? {}
        }
        Ok(())
    })?;
    index.merge(entries);
    Ok(true)
}

fn is_in_log(segments: &SegmentSet, reached: index::Reached, durable: Durable) -> Result<bool, ReadError> {
    if reached.commit == 0 || reached.commit > durable.commit.0 {
        return Ok(reached.commit == 0);
    }
    let record = Places::new(segments).record(reached.location)?;
    let raw = record.as_ref().and_then(|record| commit_record::Raw::new(record).ok());
    Ok(raw.is_some_and(|raw| raw.number().0 == reached.commit && raw.recorded_at() == reached.recorded_at))
}

/// Builds the index again: up to a commit, or as far as it was.
fn rebuild(
    index: &Index,
    segments: &SegmentSet,
    to: Option<u64>,
    progress: &mut dyn FnMut(CommitNumber),
) -> Result<(), ReadError> {
    let rebuilt = index.rebuild(|indexed, give| {
        let to = to.unwrap_or(indexed);
        scan(segments, 0, to, &mut |entry| {
            if entry.commit % 4096 == 0 || entry.commit == to {
                progress(CommitNumber(entry.commit));
            }
            give(entry)
        })
    });
    rebuilt.map_err(|Failed(error)| error)
}

/// Index entries of the commits above `after`, up to `last`.
fn scan(
    segments: &SegmentSet,
    after: u64,
    last: u64,
    give: &mut dyn FnMut(Entry) -> Result<(), IndexError>,
) -> Result<(), Failed> {
    if after >= last {
        return Ok(());
    }
    let Some(mut commits) = Commits::from(segments, Target::Commit(after + 1), last, scan::BLOCK)? else {
        return Ok(());
    };
    while let Some(found) = commits.next()? {
        if commits.raw(&found)?.number().0 <= after {
            continue;
        }
        let entry = entry_of(&commits.record(&found), commits.location(&found));
        give(entry.map_err(|malformed| commits.malformed(&found, &malformed))?)?;
    }
    Ok(())
}

fn entry_of(record: &Bytes, location: Location) -> Result<Entry, Malformed> {
    let header = commit_record::decode_header(record)?;
    let (key, origin) = Entry::hashes(header.idempotency.as_ref(), &header.actor, header.origin.as_ref());
    Ok(Entry {
        commit: header.number.0,
        recorded_at: header.recorded_at,
        // Not the block that was read, of which the index would keep all.
        stream: header.stream.text().detached(),
        revision: header.first_revision.0,
        count: header.event_count,
        location,
        key,
        origin,
    })
}

/// A [`ReadError`] that an index error turns into as well.
struct Failed(ReadError);

impl From<ReadError> for Failed {
    fn from(error: ReadError) -> Self {
        Self(error)
    }
}

impl From<Failed> for ReadError {
    fn from(Failed(error): Failed) -> Self {
        error
    }
}

impl From<IndexError> for Failed {
    fn from(error: IndexError) -> Self {
        Self(ReadError::Io(error.to_string()))
    }
}

fn index_failed(error: &IndexError) -> ReadError {
    ReadError::Io(error.to_string())
}

impl Core {
    fn wake_indexer(&self, indexer: &Worker) {
        let Backlog { commits, under_way, .. } = self.index.backlog();
        if commits == 0 && !under_way {
            return;
        }
        // Without a thread the index stays behind, which the next group or the next opening makes good.
        let _ = indexer.wake();
        if commits >= self.options.index_batch {
            indexer.hurry();
        }
        if commits >= MAX_BACKLOG {
            let _ = self.index.flush_batch();
        }
    }

    /// Moves commits to the index when enough have come together, or none come any more.
    fn index_some(&self) -> Next {
        let Backlog { commits, under_way, since } = self.index.backlog();
        if commits == 0 && !under_way {
            // What reads have opened is closed when the log goes idle, some seconds after its last commit.
            self.segments.close_files();
            self.index.forget_recent();
            return Next::Idle;
        }
        if !under_way && commits < self.options.index_batch && since < self.options.index_after {
            return Next::After(self.options.index_after - since);
        }
        match self.index.flush_batch() {
            Ok(_) => Next::Now,
            Err(error) => {
                tracing::warn!(log = self.name, %error, "the index could not be written; trying again");
                Next::After(Duration::from_secs(1))
            }
        }
    }

    /// Whether there is a note of it.
    fn close(&self) -> bool {
        while self.index.flush_batch().unwrap_or_else(|error| {
            tracing::warn!(log = self.name, %error, "the index is behind; the next opening brings it up to date");
            false
        }) {}
        *self.closed.lock().get_or_insert_with(|| self.note_close())
    }

    fn note_close(&self) -> bool {
        if self.sequencer.lock().poisoned() {
            return false;
        }
        crash_point(Point::CloseBeforeNote);
        let written = self.writer.lock().write_mark(FLAG_CLOSING);
        crash_point(Point::CloseAfterNote);
        if let Err(failure) = &written {
            tracing::warn!(log = self.name, ?failure, "the log was closed without a note of it");
        }
        written.is_ok()
    }

    fn rebuild_index(&self, why: &str, progress: &mut dyn FnMut(CommitNumber)) -> Result<(), ReadError> {
        // Nothing more goes to sled first, so that what is to be read again does not grow meanwhile.
        while self.index.flush_batch().unwrap_or(false) {}
        tracing::warn!(log = self.name, why, "building the index again");
        rebuild(&self.index, &self.segments, None, progress)
    }
}
