//! Indexes over a log: streams, idempotency keys, Kafka origins. All of it can be rebuilt by a scan of the log, and is,
//! whenever it is missing, damaged, or does not belong to the log.
//!
//! Commits that are durable and not in sled yet are kept in memory ([`Pending`]) and go to sled in batches, so that an
//! append pays for no insert. One tree holds everything, and each batch carries the mark (the commit that the tree is
//! complete up to): a tree is complete up to its mark whatever a crash took, because a batch is atomic.
//!
//! Keys of the tree, by first byte: `0` the mark; `1` Kafka origins; `2` idempotency keys by day; a letter: streams.

pub(crate) mod block;
pub(crate) mod snapshots;

use crate::log::segment::Location;
use block::Span;
use ebb_domain::commit::{IdempotencyKey, KafkaOrigin};
use ebb_domain::event::Revision;
use ebb_domain::text::Text;
use ebb_domain::time::Timestamp;
use ebb_faults::{Point, crash_point};
use lru::LruCache;
use parking_lot::{Mutex, RwLock};
use sha2::{Digest as _, Sha256};
use sled::Batch;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// How long an idempotency key is remembered.
pub(crate) const KEY_LIFE: Duration = Duration::from_secs(24 * 60 * 60);
/// Streams whose end is kept in memory after it went to sled.
const RECENT_STREAMS: usize = 8192;
/// Entries in one batch, about. sled holds a lock of the whole process while it applies one, so batches are short.
const BATCH: usize = 256;
/// Commits in one batch. A stream's commits in a batch are one entry, so busy streams cost sled next to nothing. A rebuild
/// takes as many whatever their entries, because look-ups wait for it anyway.
const BATCH_COMMITS: usize = 2048;
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

/// How far a tree is complete, and of which log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) log: Uuid,
    pub(crate) commit: u64,
    /// Where that commit lies: another log, or one that was set back and written again, has something else there.
    pub(crate) location: Location,
}

/// Durable commits that are not in sled yet, and the ends of streams that were written lately.
struct Pending {
    queue: VecDeque<Entry>,
    streams: HashMap<Text, Vec<Span>>,
    keys: HashMap<Hash, (u64, KeyPlace)>,
    origins: HashMap<(Hash, u64), (u64, Location)>,
    recent: LruCache<Text, Revision>,
    last_merge: Instant,
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
    flushing: Mutex<()>,
}

impl Index {
    pub(crate) fn open(db: &sled::Db, name: String, log: Uuid) -> Result<Self, IndexError> {
        let tree = db.open_tree(&name)?;
        let pending = Pending {
            queue: VecDeque::new(),
            streams: HashMap::new(),
            keys: HashMap::new(),
            origins: HashMap::new(),
            recent: LruCache::unbounded(),
            last_merge: Instant::now(),
        };
        let index = Self {
            db: db.clone(),
            name,
            log,
            tree: RwLock::new(tree),
            pending: Mutex::new(pending),
            indexed: AtomicU64::new(0),
            broken: AtomicBool::new(false),
            swept: AtomicU32::new(0),
            flushing: Mutex::new(()),
        };
        let commit = index.mark()?.map_or(0, |mark| mark.commit);
        index.indexed.store(commit, Ordering::Release);
        Ok(index)
    }

    /// The tree's mark; none in an empty tree, or if it is not readable.
    pub(crate) fn mark(&self) -> Result<Option<Mark>, IndexError> {
        let Some(value) = self.tree()?.get(MARK)? else { return Ok(None) };
        let bytes = |from: usize| value.get(from..from + 8).and_then(|bytes| bytes.try_into().ok());
        let log = value.get(..16).and_then(|bytes| Uuid::from_slice(bytes).ok());
        let (Some(log), Some(commit), Some(location)) = (log, bytes(16), bytes(24)) else { return Ok(None) };
        let location = Location::unpack(u64::from_be_bytes(location));
        Ok(Some(Mark { log, commit: u64::from_be_bytes(commit), location }))
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
        let _flushing = self.flushing.lock();
        let indexed = self.indexed();
        let mut tree = self.tree.write();
        self.broken.store(true, Ordering::Release);
        self.pending.lock().recent.clear();
        self.db.drop_tree(&self.name).map_err(IndexError::from)?;
        *tree = self.db.open_tree(&self.name).map_err(IndexError::from)?;
        self.swept.store(0, Ordering::Relaxed);
        self.indexed.store(0, Ordering::Release);
        let mut batch = Vec::with_capacity(BATCH_COMMITS);
        fill(indexed, &mut |entry| {
            batch.push(entry);
            if batch.len() == BATCH_COMMITS {
                self.apply(&tree, &batch)?;
                batch.clear();
            }
            Ok(())
        })?;
        crash_point(Point::IndexRebuild);
        self.apply(&tree, &batch)?;
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
        let mut pending = self.pending.lock();
        let pending = &mut *pending;
        pending.last_merge = Instant::now();
        for entry in &entries {
            if entry.count > 0 {
                let span = Span {
                    revision: entry.revision,
                    count: entry.count,
                    commit: entry.commit,
                    location: entry.location,
                };
                pending.streams.entry(entry.stream.clone()).or_default().push(span);
                pending.recent.put(entry.stream.clone(), span.last_revision());
                if pending.recent.len() > RECENT_STREAMS {
                    pending.recent.pop_lru();
                }
            }
            if let Some(key) = entry.key {
                let place = KeyPlace { location: entry.location, recorded_at: entry.recorded_at };
                pending.keys.insert(key, (entry.commit, place));
            }
            if let Some(origin) = entry.origin {
                pending.origins.insert(origin, (entry.commit, entry.location));
            }
        }
        pending.queue.extend(entries);
    }

    /// Commits that wait for sled, and for how long the last of them has.
    pub(crate) fn backlog(&self) -> (usize, Duration) {
        let pending = self.pending.lock();
        (pending.queue.len(), pending.last_merge.elapsed())
    }

    /// Forgets the ends of streams that sled knows.
    pub(crate) fn forget_recent(&self) {
        let mut pending = self.pending.lock();
        pending.recent.clear();
        pending.queue.shrink_to_fit();
        pending.streams.shrink_to_fit();
        pending.keys.shrink_to_fit();
        pending.origins.shrink_to_fit();
    }

    /// Moves one batch to sled; false if there was nothing to move.
    pub(crate) fn flush_batch(&self) -> Result<bool, IndexError> {
        let _flushing = self.flushing.lock();
        let batch = next_batch(&self.pending.lock().queue);
        let Some(last) = batch.last() else { return Ok(false) };
        crash_point(Point::IndexBeforeBatch);
        self.apply(&*self.tree()?, &batch)?;
        crash_point(Point::IndexAfterBatch);

        // Only now: who looks into `pending` first and into the tree next finds each commit in one of them at least.
        let mut pending = self.pending.lock();
        pending.queue.drain(..batch.len());
        for entry in &batch {
            if let Some(spans) = pending.streams.get_mut(entry.stream.as_bytes()) {
                let known = spans.partition_point(|span| span.commit <= last.commit);
                spans.drain(..known);
                if spans.is_empty() {
                    pending.streams.remove(entry.stream.as_bytes());
                }
            }
            if let Some(key) = entry.key
                && pending.keys.get(&key).is_some_and(|(commit, _)| *commit <= last.commit)
            {
                pending.keys.remove(&key);
            }
            if let Some(origin) = entry.origin {
                pending.origins.remove(&origin);
            }
        }
        Ok(true)
    }

    fn apply(&self, tree: &sled::Tree, entries: &[Entry]) -> Result<(), IndexError> {
        let Some(last) = entries.last() else { return Ok(()) };
        let mut batch = Batch::default();
        let mut streams: HashMap<&Text, (u64, Vec<u8>)> = HashMap::new();
        for entry in entries {
            if entry.count > 0 {
                let (_, block) = streams.entry(&entry.stream).or_insert((entry.revision, Vec::new()));
                let span = Span {
                    revision: entry.revision,
                    count: entry.count,
                    commit: entry.commit,
                    location: entry.location,
                };
                block::push(block, &span);
            }
            if let Some(key) = &entry.key {
                let mut value = [0; 16];
                value[..8].copy_from_slice(&entry.location.pack().to_be_bytes());
                value[8..].copy_from_slice(&entry.recorded_at.0.to_be_bytes());
                batch.insert(&key_key(day(entry.recorded_at), key)[..], &value);
            }
            if let Some((partition, offset)) = &entry.origin {
                batch.insert(&origin_key(partition, *offset)[..], &entry.location.pack().to_be_bytes());
            }
        }
        for (stream, (revision, block)) in streams {
            batch.insert(stream_key(stream, revision), block);
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
        let mut mark = Vec::with_capacity(32);
        mark.extend_from_slice(self.log.as_bytes());
        mark.extend_from_slice(&last.commit.to_be_bytes());
        mark.extend_from_slice(&last.location.pack().to_be_bytes());
        batch.insert(MARK, mark);
        tree.apply_batch(batch)?;
        self.indexed.store(last.commit, Ordering::Release);
        Ok(())
    }

    /// Revision of a stream's last durable event. The caller holds the sequencer, and nothing of the stream is staged:
    /// so what is found may be remembered.
    pub(crate) fn head(&self, stream: &Text) -> Result<Option<Revision>, IndexError> {
        {
            let mut pending = self.pending.lock();
            if let Some(revision) = pending.recent.get(stream.as_bytes()) {
                return Ok(Some(*revision));
            }
            if let Some(span) = pending.streams.get(stream.as_bytes()).and_then(|spans| spans.last()) {
                return Ok(Some(span.last_revision()));
            }
        }
        let (start, end) = (stream_key(stream, 0), stream_end(stream));
        let Some(last) = self.tree()?.range(start..end).next_back() else { return Ok(None) };
        let revision = unpack(&last?.1)?.last().map(Span::last_revision);
        if let Some(revision) = revision {
            let mut pending = self.pending.lock();
            pending.recent.put(stream.detached(), revision);
            if pending.recent.len() > RECENT_STREAMS {
                pending.recent.pop_lru();
            }
        }
        Ok(revision)
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
        let fresh: Vec<Span> = {
            let pending = self.pending.lock();
            let spans = pending.streams.get(stream.as_bytes()).map_or(&[][..], Vec::as_slice);
            let start = spans.partition_point(|span| span.last_revision() < from);
            spans[start..].iter().take(most).copied().collect()
        };
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

    /// Where a key was last used, if a commit recorded at `now` would still be its repetition.
    pub(crate) fn find_key(&self, key: &Hash, now: Timestamp) -> Result<Option<KeyPlace>, IndexError> {
        let alive = |place: &KeyPlace| now.since(place.recorded_at) < KEY_LIFE;
        if let Some((_, place)) = self.pending.lock().keys.get(key) {
            return Ok(Some(*place).filter(alive));
        }
        let tree = self.tree()?;
        let today = day(now);
        for day in [Some(today), today.checked_sub(1)].into_iter().flatten() {
            let Some(value) = tree.get(&key_key(day, key)[..])? else { continue };
            let parts = value.split_at_checked(8).and_then(|(place, time)| {
                Some((u64::from_be_bytes(place.try_into().ok()?), u64::from_be_bytes(time.try_into().ok()?)))
            });
            let Some((location, time)) = parts else { return Err(malformed("an idempotency key")) };
            let place = KeyPlace { location: Location::unpack(location), recorded_at: Timestamp(time) };
            return Ok(Some(place).filter(alive));
        }
        Ok(None)
    }

    /// Where the commit of a Kafka record lies.
    pub(crate) fn find_origin(&self, origin: &(Hash, u64)) -> Result<Option<Location>, IndexError> {
        if let Some((_, location)) = self.pending.lock().origins.get(origin) {
            return Ok(Some(*location));
        }
        let Some(value) = self.tree()?.get(&origin_key(&origin.0, origin.1)[..])? else { return Ok(None) };
        let packed = value.as_ref().try_into().map_err(|_| malformed("a Kafka origin"))?;
        Ok(Some(Location::unpack(u64::from_be_bytes(packed))))
    }
}

/// Commits from the queue's front that make about [`BATCH`] entries.
fn next_batch(queue: &VecDeque<Entry>) -> Vec<Entry> {
    let (mut streams, mut others, mut batch) = (HashSet::new(), 0, Vec::new());
    for entry in queue.iter().take(BATCH_COMMITS) {
        if streams.len() + others >= BATCH {
            break;
        }
        streams.insert(&entry.stream);
        others += usize::from(entry.key.is_some()) + usize::from(entry.origin.is_some());
        batch.push(entry.clone());
    }
    batch
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
