//! Indexes over a log: streams, idempotency keys, Kafka origins. All of it can be rebuilt by a scan of the log, and is,
//! whenever it is missing, damaged, or does not belong to the log.
//!
//! Commits that are durable and not in sled yet are kept in memory ([`pending`]) and go to sled a generation at a time, so that
//! an append pays for no insert. One tree holds everything. Its mark says what commit the tree is complete up to, and what
//! commit the generation goes up to of which it may hold a part: a generation goes in in batches, each of them atomic, the
//! first of which announces it and the last of which completes it. After a crash in between the same entries are made again,
//! under the same keys, because the next generation begins behind the mark as well.
//!
//! Keys of the tree, by first byte: `0` the mark; `1` Kafka origins; `2` idempotency keys by day; a letter: streams.

pub(crate) mod block;
mod pending;
pub(crate) mod snapshots;

use crate::log::segment::Location;
use block::Span;
use ebb_domain::commit::{IdempotencyKey, KafkaOrigin};
use ebb_domain::event::Revision;
use ebb_domain::text::Text;
use ebb_domain::time::Timestamp;
use ebb_faults::{Point, crash_point};
use parking_lot::{Mutex, RwLock};
use pending::{Generation, Pending};
use sha2::{Digest as _, Sha256};
use sled::Batch;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;
use uuid::Uuid;

/// How long an idempotency key is remembered.
pub(crate) const KEY_LIFE: Duration = Duration::from_secs(24 * 60 * 60);
/// Entries in one batch, about. sled holds a lock of the whole process while it applies one, so batches are short.
const BATCH: usize = 256;
/// Commits that a rebuild puts into one generation.
const REBUILD: usize = 1 << 16;
/// Expired keys that one batch removes.
const SWEEP: usize = 2 * BATCH;

const MARK: &[u8] = &[0];
const ORIGIN: u8 = 1;
const KEY: u8 = 2;

/// The first half of a SHA-256: enough that nobody finds two of the same.
pub(crate) type Hash = [u8; 16];

/// The hash under which an actor's key is kept.
pub(crate) fn key_hash(actor: &str, key: &str) -> Hash {
    let mut hash = Sha256::new();
    hash.update((actor.len() as u64).to_le_bytes());
    hash.update(actor);
    hash.update(key);
    half(hash)
}

/// The hash of a Kafka partition, under which its offsets are kept.
pub(crate) fn partition_hash(origin: &KafkaOrigin) -> Hash {
    let mut hash = Sha256::new();
    hash.update(origin.topic.as_bytes());
    hash.update(origin.partition.to_le_bytes());
    hash.update(&*origin.cluster);
    half(hash)
}

fn half(hash: Sha256) -> Hash {
    let mut half = [0; 16];
    half.copy_from_slice(&hash.finalize()[..16]);
    half
}

/// What the index needs to know of a commit.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) commit: u64,
    pub(crate) recorded_at: Timestamp,
    pub(crate) stream: Text,
    /// Revision of its first event, and how many it has.
    pub(crate) revision: u64,
    pub(crate) count: u32,
    pub(crate) location: Location,
    pub(crate) key: Option<Hash>,
    pub(crate) origin: Option<(Hash, u64)>,
}

impl Entry {
    pub(crate) fn hashes(
        idempotency: Option<&IdempotencyKey>,
        actor: &str,
        origin: Option<&KafkaOrigin>,
    ) -> (Option<Hash>, Option<(Hash, u64)>) {
        (
            idempotency.map(|key| key_hash(actor, &key.key)),
            origin.map(|origin| (partition_hash(origin), origin.offset)),
        )
    }
}

/// Where a key was used, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KeyPlace {
    pub(crate) location: Location,
    pub(crate) recorded_at: Timestamp,
}

/// Why the index could not answer. It can be rebuilt.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the index could not be used: {0}")]
pub(crate) struct IndexError(pub(crate) String);

impl From<sled::Error> for IndexError {
    fn from(error: sled::Error) -> Self {
        Self(error.to_string())
    }
}

/// A commit that a tree holds. Where it lies and when it was recorded tells it from one that has its number in another
/// history: of a log that was set back to an older copy of itself, and written again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reached {
    pub(crate) commit: u64,
    pub(crate) location: Location,
    pub(crate) recorded_at: Timestamp,
}

/// How far a tree is complete, and of which log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) log: Uuid,
    /// The last commit that the tree is complete up to; number 0 for none.
    pub(crate) complete: Reached,
    /// The last commit that the tree may hold something of.
    pub(crate) ahead: Reached,
}

impl Reached {
    const BYTES: usize = 24;

    fn encode(self, into: &mut Vec<u8>) {
        for number in [self.commit, self.location.pack(), self.recorded_at.0] {
            into.extend_from_slice(&number.to_be_bytes());
        }
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let number = |at: usize| Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        let (commit, location) = (number(0)?, Location::unpack(number(8)?));
        Some(Self { commit, location, recorded_at: Timestamp(number(16)?) })
    }
}

/// A commit that memory does not know a stream's end of, or a key, so that it must be looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotInMemory {
    /// What was looked up before holds if it was looked up under the same number.
    pub(crate) settlings: u64,
}

/// A generation on its way to sled.
struct Flush {
    generation: Arc<Generation>,
    entries: Vec<(Vec<u8>, Vec<u8>)>,
    /// Entries that are in sled.
    done: usize,
    /// So is the mark that says so. A generation may have no entries at all.
    completed: bool,
}

/// What waits for sled.
pub(crate) struct Backlog {
    /// Commits that are not on their way yet.
    pub(crate) commits: usize,
    /// Others are.
    pub(crate) under_way: bool,
    /// How long ago the last commit came.
    pub(crate) since: Duration,
}

/// The index of one log.
pub(crate) struct Index {
    db: sled::Db,
    name: String,
    log: Uuid,
    /// Replaced when the index is rebuilt.
    tree: RwLock<sled::Tree>,
    pending: Mutex<Pending>,
    /// The commit that the tree is complete up to.
    indexed: AtomicU64,
    /// A rebuild did not come to its end.
    broken: AtomicBool,
    /// Days below this have no keys left.
    swept: AtomicU32,
    /// Held while a batch goes to sled.
    flush: Mutex<Option<Flush>>,
}

impl Index {
    pub(crate) fn open(db: &sled::Db, name: String, log: Uuid) -> Result<Self, IndexError> {
        let tree = db.open_tree(&name)?;
        let index = Self {
            db: db.clone(),
            name,
            log,
            tree: RwLock::new(tree),
            pending: Mutex::new(Pending::new()),
            indexed: AtomicU64::new(0),
            broken: AtomicBool::new(false),
            swept: AtomicU32::new(0),
            flush: Mutex::new(None),
        };
        let commit = index.mark()?.map_or(0, |mark| mark.complete.commit);
        index.indexed.store(commit, Ordering::Release);
        Ok(index)
    }

    /// The tree's mark; none in an empty tree, or if it is not readable.
    pub(crate) fn mark(&self) -> Result<Option<Mark>, IndexError> {
        Self::mark_of(&*self.tree()?)
    }

    fn mark_of(tree: &sled::Tree) -> Result<Option<Mark>, IndexError> {
        let Some(value) = tree.get(MARK)? else { return Ok(None) };
        let mark = || {
            let (log, commits) = value.split_at_checked(16)?;
            let (complete, ahead) = commits.split_at_checked(Reached::BYTES)?;
            let (complete, ahead) = (Reached::decode(complete)?, Reached::decode(ahead)?);
            Some(Mark { log: Uuid::from_slice(log).ok()?, complete, ahead })
        };
        Ok(mark())
    }

    /// The commit that the tree is complete up to.
    pub(crate) fn indexed(&self) -> u64 {
        self.indexed.load(Ordering::Acquire)
    }

    /// Throws the tree away and fills it again; `fill` gives it, in order, every commit up to the one it is told, which
    /// the tree was complete up to. It is told only here: a flush between asking and the lock would move commits out of
    /// memory into the tree that is thrown away, and they would be in neither.
    /// Look-ups wait meanwhile, and fail from then on if this fails.
    pub(crate) fn rebuild<E: From<IndexError>>(
        &self,
        fill: impl FnOnce(u64, &mut dyn FnMut(Entry) -> Result<(), IndexError>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut flush = self.flush.lock();
        if let Some(flush) = &mut *flush {
            // What is in the tree of it goes with the tree.
            (flush.done, flush.completed) = (0, false);
        }
        let indexed = self.indexed();
        let mut tree = self.tree.write();
        self.broken.store(true, Ordering::Release);
        drop(self.pending.lock().forget());
        self.db.drop_tree(&self.name).map_err(IndexError::from)?;
        *tree = self.db.open_tree(&self.name).map_err(IndexError::from)?;
        self.swept.store(0, Ordering::Relaxed);
        self.indexed.store(0, Ordering::Release);
        let mut generation = Generation::default();
        let apply_all = |generation: Generation| {
            let mut flush = Flush::of(Arc::new(generation));
            while !flush.is_done() {
                self.apply_batch(&tree, &mut flush)?;
            }
            Ok::<_, IndexError>(())
        };
        fill(indexed, &mut |entry| {
            generation.add(entry);
            if generation.commits == REBUILD {
                apply_all(std::mem::take(&mut generation))?;
            }
            Ok(())
        })?;
        crash_point(Point::IndexRebuild);
        apply_all(generation)?;
        self.broken.store(false, Ordering::Release);
        Ok(())
    }

    /// The tree, unless a rebuild failed and left a part of it out.
    fn tree(&self) -> Result<parking_lot::RwLockReadGuard<'_, sled::Tree>, IndexError> {
        let tree = self.tree.read();
        if self.broken.load(Ordering::Acquire) {
            return Err(IndexError(
                "its rebuild failed; open the log again, or run `ebb log reindex`".into(),
            ));
        }
        Ok(tree)
    }

    /// Takes in commits that have become durable, in order.
    pub(crate) fn merge(&self, entries: Vec<Entry>) {
        self.pending.lock().merge(entries);
    }

    /// What waits for sled.
    pub(crate) fn backlog(&self) -> Backlog {
        let pending = self.pending.lock();
        let (commits, under_way) = pending.backlog();
        Backlog { commits, under_way, since: pending.last_merge.elapsed() }
    }

    /// Forgets what sled knows.
    pub(crate) fn forget_recent(&self) {
        let forgotten = self.pending.lock().forget();
        drop(forgotten);
    }

    /// Moves one batch to sled; false if there was nothing to move.
    pub(crate) fn flush_batch(&self) -> Result<bool, IndexError> {
        let mut under_way = self.flush.lock();
        let flush = match &mut *under_way {
            Some(flush) => flush,
            None => {
                let Some(generation) = self.pending.lock().close() else { return Ok(false) };
                under_way.insert(Flush::of(generation))
            }
        };
        crash_point(Point::IndexBeforeBatch);
        self.apply_batch(&*self.tree()?, flush)?;
        crash_point(Point::IndexAfterBatch);
        if flush.is_done() {
            // Only now: who looks into memory first and into the tree next finds each commit in one of them at least.
            let old = self.pending.lock().settle();
            drop((under_way.take(), old));
        }
        Ok(true)
    }

    fn apply_batch(&self, tree: &sled::Tree, flush: &mut Flush) -> Result<(), IndexError> {
        let Some(last) = flush.generation.last else { return Ok(()) };
        let end = (flush.done + BATCH).min(flush.entries.len());
        let mut batch = Batch::default();
        for (key, value) in &flush.entries[flush.done..end] {
            batch.insert(&key[..], &value[..]);
        }
        let today = day(last.recorded_at);
        if self.swept.load(Ordering::Relaxed) + 1 < today {
            let expired = key_key(0, &[0; 16])..key_key(today - 1, &[0; 16]);
            let mut left = 0;
            for key in tree.range(expired).keys().take(SWEEP) {
                batch.remove(key?);
                left += 1;
            }
            if left < SWEEP {
                self.swept.store(today - 1, Ordering::Relaxed);
            }
        }
        let ahead = Reached { commit: last.commit, location: last.location, recorded_at: last.recorded_at };
        let complete = end == flush.entries.len();
        if complete {
            batch.insert(MARK, self.encode_mark(ahead, ahead));
        } else if flush.done == 0 {
            // An empty tree is complete up to nothing, wherever that lies.
            let before = Self::mark_of(tree)?.map_or(Reached { commit: 0, ..ahead }, |mark| mark.complete);
            batch.insert(MARK, self.encode_mark(before, ahead));
        }
        tree.apply_batch(batch)?;
        flush.done = end;
        flush.completed = complete;
        if complete {
            self.indexed.store(last.commit, Ordering::Release);
        }
        Ok(())
    }

    fn encode_mark(&self, complete: Reached, ahead: Reached) -> Vec<u8> {
        let mut mark = self.log.as_bytes().to_vec();
        complete.encode(&mut mark);
        ahead.encode(&mut mark);
        mark
    }

    /// Revision of a stream's last durable event, if memory knows it. Of a stream of which nothing is staged, while nothing
    /// can be: the caller holds the sequencer.
    pub(crate) fn head_in_memory(&self, stream: &Text) -> Result<Option<Revision>, NotInMemory> {
        let mut pending = self.pending.lock();
        pending.head(stream).ok_or(NotInMemory { settlings: pending.settlings })
    }

    /// Looks a stream's end up in sled, and remembers it.
    pub(crate) fn fetch_head(&self, stream: &Text) -> Result<(), IndexError> {
        let settlings = {
            let mut pending = self.pending.lock();
            if pending.head(stream).is_some() {
                return Ok(());
            }
            pending.settlings
        };
        let (start, end) = (stream_key(stream, 0), stream_end(stream));
        let last = self.tree()?.range(start..end).next_back().transpose()?;
        let head = match last {
            Some((_, block)) => unpack(&block)?.last().map(Span::last_revision),
            None => None,
        };
        self.pending.lock().remember(stream, head, settlings);
        Ok(())
    }

    /// Durable commits of a stream that hold revision `from` or later ones, in order; `most` at most. The flag says
    /// whether all of them are in memory, which a caller that must not block asks for with `only_memory`.
    pub(crate) fn spans(
        &self,
        stream: &Text,
        from: Revision,
        most: usize,
        only_memory: bool,
    ) -> Result<Option<Vec<Span>>, IndexError> {
        // Memory first: a span that moves to sled meanwhile is then seen twice, never not at all.
        let fresh = self.pending.lock().spans(stream, from, most);
        if fresh.first().is_some_and(|span| span.revision <= from.0) {
            return Ok(Some(fresh));
        }
        if only_memory {
            return Ok(None);
        }
        let mut spans = Vec::new();
        let tree = self.tree()?;
        let (start, end) = (stream_key(stream, 0), stream_end(stream));
        // The block that holds `from` starts at or before it.
        let first = tree.range(start..=stream_key(stream, from.0)).next_back().transpose()?;
        let first = first.map_or_else(|| stream_key(stream, 0), |(key, _)| key.to_vec());
        for block in tree.range(first..end) {
            let block = unpack(&block?.1)?;
            spans.extend(block.into_iter().filter(|span| span.last_revision() >= from));
            if spans.len() >= most {
                spans.truncate(most);
                return Ok(Some(spans));
            }
        }
        let known = spans.last().map(|span| span.revision);
        spans.extend(fresh.into_iter().filter(|span| known.is_none_or(|known| span.revision > known)));
        spans.truncate(most);
        Ok(Some(spans))
    }

    /// Where a key was last used, if memory knows it.
    pub(crate) fn key_in_memory(&self, key: &Hash) -> Result<Location, NotInMemory> {
        let pending = self.pending.lock();
        let place = pending.key(key).ok_or(NotInMemory { settlings: pending.settlings })?;
        Ok(place.location)
    }

    /// Where the commit of a Kafka record lies, if memory knows it.
    pub(crate) fn origin_in_memory(&self, origin: &(Hash, u64)) -> Result<Location, NotInMemory> {
        let pending = self.pending.lock();
        pending.origin(origin).ok_or(NotInMemory { settlings: pending.settlings })
    }

    /// Where a key was last used within the last two days.
    pub(crate) fn find_key(&self, key: &Hash, now: Timestamp) -> Result<Option<KeyPlace>, IndexError> {
        if let Some(place) = self.pending.lock().key(key) {
            return Ok(Some(place));
        }
        let tree = self.tree()?;
        let today = day(now);
        for day in [Some(today), today.checked_sub(1)].into_iter().flatten() {
            let Some(value) = tree.get(&key_key(day, key)[..])? else { continue };
            let parts = value.split_at_checked(8).and_then(|(place, time)| {
                Some((u64::from_be_bytes(place.try_into().ok()?), u64::from_be_bytes(time.try_into().ok()?)))
            });
            let Some((location, time)) = parts else { return Err(malformed("an idempotency key")) };
            return Ok(Some(KeyPlace { location: Location::unpack(location), recorded_at: Timestamp(time) }));
        }
        Ok(None)
    }

    /// Where the commit of a Kafka record lies.
    pub(crate) fn find_origin(&self, origin: &(Hash, u64)) -> Result<Option<Location>, IndexError> {
        if let Some(location) = self.pending.lock().origin(origin) {
            return Ok(Some(location));
        }
        let Some(value) = self.tree()?.get(&origin_key(&origin.0, origin.1)[..])? else { return Ok(None) };
        let packed = value.as_ref().try_into().map_err(|_| malformed("a Kafka origin"))?;
        Ok(Some(Location::unpack(u64::from_be_bytes(packed))))
    }

    /// How many generations went to sled; see [`NotInMemory`].
    pub(crate) fn settlings(&self) -> u64 {
        self.pending.lock().settlings
    }
}

impl Flush {
    fn of(generation: Arc<Generation>) -> Self {
        let entries = generation.entries();
        Self { generation, entries, done: 0, completed: false }
    }

    fn is_done(&self) -> bool {
        self.completed || self.generation.last.is_none()
    }
}

fn malformed(what: &str) -> IndexError {
    IndexError(format!("the entry of {what} is malformed"))
}

fn unpack(block: &[u8]) -> Result<Vec<Span>, IndexError> {
    block::unpack(block).ok_or_else(|| malformed("a stream"))
}

/// Days since 1970.
fn day(time: Timestamp) -> u32 {
    (time.0 / KEY_LIFE.as_micros() as u64) as u32
}

fn key_key(day: u32, key: &Hash) -> [u8; 21] {
    let mut bytes = [0; 21];
    bytes[0] = KEY;
    bytes[1..5].copy_from_slice(&day.to_be_bytes());
    bytes[5..].copy_from_slice(key);
    bytes
}

fn origin_key(partition: &Hash, offset: u64) -> [u8; 25] {
    let mut bytes = [0; 25];
    bytes[0] = ORIGIN;
    bytes[1..17].copy_from_slice(partition);
    bytes[17..].copy_from_slice(&offset.to_be_bytes());
    bytes
}

// A stream has no control characters, so the zero ends it: no stream's keys lie between another's.
fn stream_key(stream: &Text, revision: u64) -> Vec<u8> {
    let mut key = Vec::with_capacity(stream.len() + 9);
    key.extend_from_slice(stream.as_bytes());
    key.push(0);
    key.extend_from_slice(&revision.to_be_bytes());
    key
}

fn stream_end(stream: &Text) -> Vec<u8> {
    let mut key = stream.as_bytes().to_vec();
    key.push(1);
    key
}
