//! Writes groups, one after another, each with one sync.

use super::disk::{self, Disk};
use super::format::{
    self, FOOTER_FIXED, Footer, HEADER, MARKER, Marker, Reached, SPARSE_ENTRY, SPARSE_STRIDE, SegmentHeader,
    SparseEntry,
};
use super::recovery::{Recovered, Tail};
use super::segment::{self, Location, Segment, SegmentSet, Sparse};
use ebb_faults::{Point, crash_point};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use uuid::Uuid;

/// The first segment's size; each further one has twice the size of the one before, up to the largest.
const FIRST_SEGMENT: u64 = 1 << 20;
/// The largest size of a segment, unless one group is larger.
const LARGEST_SEGMENT: u64 = 64 << 20;

/// Bytes behind the log's end that are written as zeros at once, at most.
const AHEAD: u64 = 512 << 10;
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Why a group was not written.
#[derive(Debug)]
pub(crate) enum WriteFailure {
    /// None of it is in the log; a later group may succeed.
    NotWritten(io::Error),
    /// A sync failed before any of it was written; the log can't go on.
    Poisoned(io::Error),
    /// Its own sync failed: it may be there when the log is opened again. The log can't go on.
    Unknown(io::Error),
}

/// The log's end.
pub(crate) struct SegmentWriter {
    disk: Arc<dyn Disk>,
    folder: PathBuf,
    set: Arc<SegmentSet>,
    log: Uuid,
    reached: Reached,
    tail: Option<Tail>,
    /// This writer's epoch; written with every group.
    epoch: u64,
    /// Bytes that this writer has written.
    written: u64,
}

impl SegmentWriter {
    /// Goes on behind what was recovered, under the next epoch.
    pub(crate) fn new(
        disk: Arc<dyn Disk>,
        folder: PathBuf,
        set: Arc<SegmentSet>,
        recovered: Recovered,
    ) -> Self {
        let Recovered { log, tail, reached, .. } = recovered;
        Self { disk, folder, set, log, reached, tail, epoch: reached.epoch + 1, written: 0 }
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(crate) fn log(&self) -> Uuid {
        self.log
    }

    /// Writes and syncs the commit records in `run` as one group that takes the log to `to`; group number and epoch are
    /// filled in. Tells where the run starts. On failure nothing but leftovers behind the last group has changed.
    pub(crate) fn write_group(
        &mut self,
        run: &mut Vec<u8>,
        commits: u32,
        to: Reached,
        entries: impl Iterator<Item = SparseEntry>,
        flags: u16,
    ) -> Result<Location, WriteFailure> {
        let reached = Reached { group: self.reached.group + 1, epoch: self.epoch, ..to };
        let bytes = run.len();
        Marker { reached, commits, bytes: bytes as u32 }.encode(run, flags);
        let tail = match self.tail.take() {
            Some(tail) if has_room(&tail, run.len()) => tail,
            full => self.roll(full, run.len())?,
        };
        let tail = self.tail.insert(tail);
        let start = tail.segment.end();
        format::seal(run, tail.segment.header.seed(), start);
        self.written += run.len() as u64;
        tail.write_ahead(start + run.len() as u64, self.written.min(AHEAD));
        crash_point(Point::GroupBeforeWrite);
        disk::write_all(&*tail.file, start, run).map_err(WriteFailure::NotWritten)?;
        crash_point(Point::GroupAfterWrite);
        tail.file.sync_data().map_err(WriteFailure::Unknown)?;
        tail.segment.grow(
            start + run.len() as u64,
            entries.map(|entry| SparseEntry { offset: entry.offset + start as u32, ..entry }),
        );
        self.reached = reached;
        Ok(Location { segment: tail.segment.header.sequence, offset: start as u32 })
    }

    /// Writes and syncs a group without commits: it says that a writer has begun, or ended.
    pub(crate) fn write_mark(&mut self, flags: u16) -> Result<Location, WriteFailure> {
        self.write_group(&mut Vec::new(), 0, self.reached, std::iter::empty(), flags)
    }

    /// Seals the segment that has no room, and starts one that has. A group never lies in two segments.
    fn roll(&mut self, full: Option<Tail>, group: usize) -> Result<Tail, WriteFailure> {
        crash_point(Point::RollBeforeSeal);
        if let Some(full) = full
            && let Err((failure, full)) = self.seal(full)
        {
            self.tail = Some(full);
            return Err(failure);
        }
        crash_point(Point::RollAfterSeal);
        // From here on there is no segment to write to until a new one is made; the next group tries again.
        let sequence = self.set.all().len() as u32 + 1;
        let header = SegmentHeader { id: Uuid::new_v4(), log: self.log, sequence, base: self.reached };
        let scheduled = (FIRST_SEGMENT << (sequence - 1).min(16)).min(LARGEST_SEGMENT);
        let needed = (HEADER + group + FOOTER_FIXED) as u64 + footer_room(0, group);
        let capacity = scheduled.max(needed.next_multiple_of(FIRST_SEGMENT));

        let path = segment::path_of(&self.folder, sequence);
        let unfinished = path.with_extension("new");
        // The name appears when everything behind it is durable, so a segment file always has a valid header.
        let made = (|| {
            let file = self.disk.create(&unfinished).map_err(WriteFailure::NotWritten)?;
            file.allocate(capacity).map_err(WriteFailure::NotWritten)?;
            disk::write_all(&*file, 0, &header.encode()).map_err(WriteFailure::NotWritten)?;
            crash_point(Point::RollAfterCreate);
            file.sync_all().map_err(WriteFailure::Poisoned)?;
            self.disk.rename(&unfinished, &path).map_err(WriteFailure::NotWritten)?;
            crash_point(Point::RollAfterRename);
            self.disk.sync_folder(&self.folder).map_err(WriteFailure::Poisoned)?;
            Ok(file)
        })();
        let file = made.inspect_err(|_| {
            // What can't be removed now is removed when the log is opened.
            let _ = self.disk.remove(&unfinished);
        })?;
        let segment = Arc::new(Segment::new(header, path, HEADER as u64, Some(Sparse::default())));
        self.set.push(Arc::clone(&segment));
        crash_point(Point::RollDone);
        Ok(Tail { segment, file, capacity, zeroed: HEADER as u64 })
    }

    fn seal(&self, full: Tail) -> Result<(), (WriteFailure, Tail)> {
        let start = full.segment.end();
        let mut footer = Vec::new();
        Footer { reached: self.reached, sparse: full.segment.sparse_entries() }.encode(&mut footer);
        format::seal(&mut footer, full.segment.header.seed(), start);
        let end = start + footer.len() as u64;
        let written = disk::write_all(&*full.file, start, &footer).and_then(|()| full.file.set_len(end));
        if let Err(error) = written {
            return Err((WriteFailure::NotWritten(error), full));
        }
        crash_point(Point::RollAfterFooter);
        full.file.sync_all().map_err(|error| (WriteFailure::Poisoned(error), full))
    }
}

impl Tail {
    /// Writes `ahead` zeros behind `end`, where the next groups go, unless there are some already. Space that is only
    /// allocated reads as zeros as well, but the first write to it changes what the file system knows of the file, so that
    /// the sync commits a journal too and takes up to twice as long.
    fn write_ahead(&mut self, end: u64, ahead: u64) {
        if end <= self.zeroed {
            return;
        }
        let mut at = end;
        self.zeroed = (end + ahead).next_multiple_of(4096).min(self.capacity);
        while at < self.zeroed {
            let len = (self.zeroed - at).min(ZEROS.len() as u64);
            // Nothing depends on it. A disk that is full or broken says so to the group as well.
            if disk::write_all(&*self.file, at, &ZEROS[..len as usize]).is_err() {
                return;
            }
            at += len;
        }
    }
}

fn footer_room(entries: usize, group: usize) -> u64 {
    let more = group / SPARSE_STRIDE as usize + 2;
    (FOOTER_FIXED + (entries + more) * SPARSE_ENTRY) as u64
}

fn has_room(tail: &Tail, group: usize) -> bool {
    let footer = footer_room(tail.segment.sparse_count(), group);
    tail.segment.end() + group as u64 + footer <= tail.capacity
}

const _: () = assert!(MARKER.is_multiple_of(8) && HEADER.is_multiple_of(8));
