//! Segments: files of one log, in order, of which only the last is written to.

use super::disk::{Disk, LogFile};
use super::format::{self, Footer, HEADER, Malformed, Reached, SPARSE_STRIDE, SegmentHeader, SparseEntry};
use ebb_domain::port::log::ReadError;
use lru::LruCache;
use parking_lot::{Mutex, RwLock};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Files of sealed segments that are kept open: a reader that goes through the log needs one, and reads of streams go
/// back and forth.
const OPEN_FILES: usize = 16;

/// Where a record starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Location {
    pub(crate) segment: u32,
    pub(crate) offset: u32,
}

impl Location {
    pub(crate) fn pack(self) -> u64 {
        u64::from(self.segment) << 32 | u64::from(self.offset)
    }

    pub(crate) fn unpack(packed: u64) -> Self {
        Self { segment: (packed >> 32) as u32, offset: packed as u32 }
    }
}

/// Where in a segment what is; grows while the segment is written.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sparse(pub(crate) Vec<SparseEntry>);

impl Sparse {
    /// Notes a commit if the last one that was noted is far enough away.
    pub(crate) fn note(&mut self, entry: SparseEntry) {
        if self.0.last().is_none_or(|last| entry.offset - last.offset >= SPARSE_STRIDE) {
            self.0.push(entry);
        }
    }

    /// Where to start looking, given that what is looked for stands at or behind the last entry that `before` takes.
    fn start(&self, before: impl Fn(&SparseEntry) -> bool) -> u32 {
        match self.0.partition_point(before).checked_sub(1) {
            Some(at) => self.0[at].offset,
            None => HEADER as u32,
        }
    }
}

/// What a search looks for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    /// The commit with this number.
    Commit(u64),
    /// The commit that holds this position.
    Position(u64),
    /// The first commit at or after this time.
    Time(u64),
}

/// One segment.
pub(crate) struct Segment {
    pub(crate) header: SegmentHeader,
    pub(crate) path: PathBuf,
    /// Bytes of whole, durable groups, header included. Moves only in the last segment.
    end: AtomicU64,
    /// None: sealed, and not looked into since it was opened.
    sparse: RwLock<Option<Sparse>>,
}

impl Segment {
    pub(crate) fn new(header: SegmentHeader, path: PathBuf, end: u64, sparse: Option<Sparse>) -> Self {
        Self { header, path, end: AtomicU64::new(end), sparse: RwLock::new(sparse) }
    }

    pub(crate) fn end(&self) -> u64 {
        self.end.load(Ordering::Acquire)
    }

    /// A group was made durable.
    pub(crate) fn grow(&self, end: u64, entries: impl IntoIterator<Item = SparseEntry>) {
        let mut sparse = self.sparse.write();
        let sparse = sparse.get_or_insert_default();
        entries.into_iter().for_each(|entry| sparse.note(entry));
        self.end.store(end, Ordering::Release);
    }

    fn start_of(&self, target: Target) -> u64 {
        let sparse = self.sparse.read();
        let Some(sparse) = sparse.as_ref() else { return HEADER as u64 };
        u64::from(sparse.start(|entry| match target {
            Target::Commit(number) => entry.commit <= number,
            // A commit without events has the position that its first event would have had, so several commits may
            // share one. The last of them is the one with events.
            Target::Position(position) => entry.position <= position,
            Target::Time(time) => entry.time < time,
        }))
    }

    pub(crate) fn sparse_entries(&self) -> Vec<SparseEntry> {
        self.sparse.read().as_ref().map(|sparse| sparse.0.clone()).unwrap_or_default()
    }

    pub(crate) fn sparse_count(&self) -> usize {
        self.sparse.read().as_ref().map_or(0, |sparse| sparse.0.len())
    }

    /// What to tell about damage at `offset`.
    pub(crate) fn corrupt(&self, offset: u64, what: &impl std::fmt::Display) -> ReadError {
        ReadError::Corrupt(format!("{} at offset {offset}: {what}; {REPAIR_HINT}", self.path.display()))
    }

    pub(crate) fn io(&self, error: &std::io::Error) -> ReadError {
        ReadError::Io(format!("{}: {error}", self.path.display()))
    }
}

/// What to do about damage.
pub(crate) const REPAIR_HINT: &str = "stop the node, run `ebb log verify` to see the extent, and `ebb log repair \
                                      --from BACKUP` to take the intact bytes from a backup";

/// The segments of an open log.
pub(crate) struct SegmentSet {
    disk: Arc<dyn Disk>,
    /// In order of sequence, the first being 1.
    segments: RwLock<Vec<Arc<Segment>>>,
    files: Mutex<LruCache<u32, Arc<dyn LogFile>>>,
}

impl SegmentSet {
    pub(crate) fn new(disk: Arc<dyn Disk>, segments: Vec<Arc<Segment>>) -> Self {
        let files = Mutex::new(LruCache::new(const { NonZeroUsize::new(OPEN_FILES).unwrap() }));
        Self { disk, segments: RwLock::new(segments), files }
    }

    pub(crate) fn push(&self, segment: Arc<Segment>) {
        self.segments.write().push(segment);
    }

    pub(crate) fn get(&self, sequence: u32) -> Option<Arc<Segment>> {
        let at = (sequence as usize).checked_sub(1)?;
        self.segments.read().get(at).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Segment>> {
        self.segments.read().clone()
    }

    /// Closes files that reads have opened.
    pub(crate) fn close_files(&self) {
        self.files.lock().clear();
    }

    pub(crate) fn file(&self, segment: &Segment) -> Result<Arc<dyn LogFile>, ReadError> {
        let mut files = self.files.lock();
        if let Some(file) = files.get(&segment.header.sequence) {
            return Ok(Arc::clone(file));
        }
        let file = self.disk.open(&segment.path).map_err(|error| segment.io(&error))?;
        files.put(segment.header.sequence, Arc::clone(&file));
        Ok(file)
    }

    /// A place at or before what is looked for, with no more than about [`SPARSE_STRIDE`] bytes in between; none in an
    /// empty log.
    pub(crate) fn find(&self, target: Target) -> Result<Option<(Arc<Segment>, u64)>, ReadError> {
        let Some(segment) = self.segment_of(target) else { return Ok(None) };
        self.load_sparse(&segment)?;
        let offset = segment.start_of(target);
        Ok(Some((segment, offset)))
    }

    /// A record's start at or before an offset, with no more than about [`SPARSE_STRIDE`] bytes in between.
    pub(crate) fn before(&self, segment: &Segment, offset: u64) -> Result<u64, ReadError> {
        self.load_sparse(segment)?;
        let sparse = segment.sparse.read();
        let start = sparse.as_ref().map(|sparse| sparse.start(|entry| u64::from(entry.offset) <= offset));
        Ok(start.map_or(HEADER as u64, u64::from))
    }

    /// The same, without looking at the disk: none as well where that would be needed.
    pub(crate) fn find_in_memory(&self, target: Target) -> Option<(Arc<Segment>, u64)> {
        let segment = self.segment_of(target)?;
        segment.sparse.read().as_ref()?;
        let offset = segment.start_of(target);
        Some((segment, offset))
    }

    fn segment_of(&self, target: Target) -> Option<Arc<Segment>> {
        let segments = self.segments.read();
        let before = |segment: &Segment| match target {
            Target::Commit(number) => segment.header.base.commit.0 < number,
            Target::Position(position) => segment.header.base.position.0 < position,
            // Commits of one microsecond may lie on both sides of a segment's start.
            Target::Time(time) => segment.header.base.time.0 < time,
        };
        let at = segments.partition_point(|segment| before(segment)).saturating_sub(1);
        segments.get(at).cloned()
    }

    fn load_sparse(&self, segment: &Segment) -> Result<(), ReadError> {
        if segment.sparse.read().is_some() {
            return Ok(());
        }
        let file = self.file(segment)?;
        let footer = read_footer(&*file, &segment.header).map_err(|error| segment.io(&error))?;
        let footer = footer.map_err(|malformed| segment.corrupt(segment.end(), &malformed))?;
        *segment.sparse.write() = Some(Sparse(footer.1.sparse));
        Ok(())
    }
}

/// The footer at the end of a sealed segment's file, and the offset where it starts.
pub(crate) fn read_footer(
    file: &dyn LogFile,
    header: &SegmentHeader,
) -> std::io::Result<Result<(u64, Footer), Malformed>> {
    const NO_FOOTER: Malformed = Malformed::Damaged("there is no footer at the segment's end");
    /// Most footers are smaller than this, so that one read is enough.
    const GUESS: u64 = 40 << 10;
    let end = file.len()?;
    let mut tail = Vec::new();
    let mut start = end.saturating_sub(GUESS).max(HEADER as u64);
    if end < start + format::FOOTER_FIXED as u64 {
        return Ok(Err(NO_FOOTER));
    }
    file.read_at(start, (end - start) as usize, &mut tail)?;
    if tail.len() < format::FOOTER_FIXED {
        return Ok(Err(NO_FOOTER));
    }
    let len = u64::from(format::u32_at(&tail, tail.len() - 4));
    if len < format::FOOTER_FIXED as u64 || len > end - HEADER as u64 || len > format::MAX_RECORD as u64 {
        return Ok(Err(NO_FOOTER));
    }
    if len > tail.len() as u64 {
        start = end - len;
        tail.clear();
        file.read_at(start, len as usize, &mut tail)?;
    }
    let at = end - len;
    let record = &tail[(at - start) as usize..];
    Ok(format::check(record, header.seed(), at).and_then(|frame| match frame.kind {
        format::Kind::Footer => Ok((at, Footer::decode(record)?)),
        _ => Err(NO_FOOTER),
    }))
}

/// The file of a segment.
pub(crate) fn path_of(folder: &Path, sequence: u32) -> PathBuf {
    folder.join(format!("{sequence:08}.seg"))
}

/// The number in a segment's file name; none for other files.
pub(crate) fn sequence_of(name: &str) -> Option<u32> {
    let digits = name.strip_suffix(".seg")?;
    (digits.len() == 8 && digits.bytes().all(|byte| byte.is_ascii_digit())).then(|| digits.parse().ok())?
}

/// What recovery and the writer know of how far a segment goes.
#[derive(Clone, Debug)]
pub(crate) struct Extent {
    /// Bytes of whole groups, header included.
    pub(crate) end: u64,
    /// How far the log is with them.
    pub(crate) reached: Reached,
    /// Where what is.
    pub(crate) sparse: Sparse,
}
