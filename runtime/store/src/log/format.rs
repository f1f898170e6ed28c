//! The byte format of a segment: its header, the frame that every record has, group markers and footers. What a commit
//! record holds is in [`super::commit_record`]. Described, with test vectors, in `docs/log-format.md`.
//!
//! All integers are little-endian, and every record starts at a multiple of 8. A record's checksum is seeded with the
//! random id of its segment and covers the place it was written to, so that bytes left over from another file, or copied
//! from another place, never validate.

use ebb_domain::commit::CommitNumber;
use ebb_domain::event::Position;
use ebb_domain::time::Timestamp;
use uuid::Uuid;

/// The first bytes of a segment. `\r\n` shows up a transfer that changed line ends.
pub(crate) const MAGIC: [u8; 8] = *b"EBBLOG\r\n";
/// The version of the segment header, and of everything in it.
pub(crate) const SEGMENT_VERSION: u16 = 1;
/// Bytes of a segment's header.
pub(crate) const HEADER: usize = 128;
/// Bytes of a record's frame, at its start.
pub(crate) const FRAME: usize = 16;
/// Bytes of a group marker, frame included.
pub(crate) const MARKER: usize = 72;
/// No record is longer: a commit is at most 4 MiB, and a footer far less. A longer length is damage, not data.
pub(crate) const MAX_RECORD: usize = 8 << 20;
/// Flags that a reader may ignore.
pub(crate) const OPTIONAL_FLAGS: u16 = 0x00ff;
/// Set on the empty group that a clean shutdown leaves.
pub(crate) const FLAG_CLOSING: u16 = 0x0001;

/// What a record is. Reserved: 4 for tombstones (data removed on purpose), 5 for data under a key of its own, which can be
/// destroyed. A reader that does not know a kind refuses the log, so giving them a meaning later is safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// One command's outcome.
    Commit = 1,
    /// The end of a group: everything before it, up to the marker before, is one write and one sync.
    Group = 2,
    /// The end of a sealed segment: what it holds, and where.
    Footer = 3,
}

impl Kind {
    fn known(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Commit),
            2 => Some(Self::Group),
            3 => Some(Self::Footer),
            _ => None,
        }
    }
}

/// How far a log has come at some place in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reached {
    /// The last group.
    pub(crate) group: u64,
    /// The last commit.
    pub(crate) commit: CommitNumber,
    /// The last event.
    pub(crate) position: Position,
    /// The last recorded time.
    pub(crate) time: Timestamp,
    /// The last writer's epoch.
    pub(crate) epoch: u64,
}

/// A segment's first [`HEADER`] bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    /// The segment's own random id, which seeds its checksums.
    pub(crate) id: Uuid,
    /// The log's random id, the same in all of its segments.
    pub(crate) log: Uuid,
    /// The segment's number, from 1 without gaps; also its file's name.
    pub(crate) sequence: u32,
    /// How far the log had come when this segment was made.
    pub(crate) base: Reached,
}

/// Why bytes are not what they should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    /// They are not what was written here: torn, damaged, or never written.
    #[error("{0}")]
    Damaged(&'static str),
    /// They are intact, and this program is too old for them.
    #[error("{0}; it was written by a newer version of ebb: use that version or a later one")]
    TooNew(String),
}

impl SegmentHeader {
    pub(crate) fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[0..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&SEGMENT_VERSION.to_le_bytes());
        // 10..12 flags, all required; none is defined yet.
        bytes[12..16].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[16..32].copy_from_slice(self.id.as_bytes());
        bytes[32..48].copy_from_slice(self.log.as_bytes());
        bytes[48..88].copy_from_slice(&self.base.encode());
        let crc = crc32c::crc32c(&bytes[..HEADER - 4]);
        bytes[HEADER - 4..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let Some(bytes) = bytes.get(..HEADER) else {
            return Err(Malformed::Damaged("the file is too short"));
        };
        if bytes[..8] != MAGIC {
            return Err(Malformed::Damaged("this is not a segment of a log: the first 8 bytes differ"));
        }
        if crc32c::crc32c(&bytes[..HEADER - 4]) != u32_at(bytes, HEADER - 4) {
            return Err(Malformed::Damaged("the segment header's checksum is wrong"));
        }
        let (version, flags) = (u16_at(bytes, 8), u16_at(bytes, 10));
        if version != SEGMENT_VERSION || flags != 0 {
            return Err(Malformed::TooNew(format!(
                "segment format {version} with flags {flags:#06x} is unknown"
            )));
        }
        Ok(Self {
            sequence: u32_at(bytes, 12),
            id: Uuid::from_bytes(array(bytes, 16)),
            log: Uuid::from_bytes(array(bytes, 32)),
            base: Reached::decode(&bytes[48..88]),
        })
    }

    /// What this segment's checksums start from.
    pub(crate) fn seed(&self) -> u32 {
        crc32c::crc32c(self.id.as_bytes())
    }
}

impl Reached {
    fn encode(self) -> [u8; 40] {
        let mut bytes = [0; 40];
        for (at, number) in
            [self.group, self.commit.0, self.position.0, self.time.0, self.epoch].into_iter().enumerate()
        {
            bytes[at * 8..at * 8 + 8].copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    fn decode(bytes: &[u8]) -> Self {
        Self {
            group: u64_at(bytes, 0),
            commit: CommitNumber(u64_at(bytes, 8)),
            position: Position(u64_at(bytes, 16)),
            time: Timestamp(u64_at(bytes, 24)),
            epoch: u64_at(bytes, 32),
        }
    }
}

/// The frame of a record whose checksum was right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: Kind,
    pub(crate) flags: u16,
    /// With frame and padding; a multiple of 8.
    pub(crate) len: usize,
}

/// Starts a record at the end of `out`; [`finish_frame`] gives it its length, and [`seal`] its place and checksum.
pub(crate) fn start_frame(out: &mut Vec<u8>, kind: Kind, flags: u16) -> usize {
    let start = out.len();
    out.extend_from_slice(&[0; FRAME]);
    out[start + 8] = kind as u8;
    out[start + 9] = 1;
    out[start + 10..start + 12].copy_from_slice(&flags.to_le_bytes());
    start
}

/// Pads the record that starts at `start` and notes its length.
pub(crate) fn finish_frame(out: &mut Vec<u8>, start: usize) {
    let len = (out.len() - start).next_multiple_of(8);
    out.resize(start + len, 0);
    out[start + 4..start + 8].copy_from_slice(&(len as u32).to_le_bytes());
}

/// Gives every record in `run` its place and checksum; `offset` is where in the segment the run will be written.
pub(crate) fn seal(run: &mut [u8], seed: u32, offset: u64) {
    let mut at = 0;
    while at < run.len() {
        let len = u32_at(run, at + 4) as usize;
        let record = &mut run[at..at + len];
        let place = (offset + at as u64) / 8;
        record[12..16].copy_from_slice(&(place as u32).to_le_bytes());
        let crc = crc32c::crc32c_append(seed, &record[4..]);
        record[..4].copy_from_slice(&crc.to_le_bytes());
        at += len;
    }
}

/// The length that the frame at the start of `bytes` claims. It is a claim until [`check`] has seen the whole record.
pub(crate) fn claimed_len(bytes: &[u8]) -> Result<usize, Malformed> {
    if bytes.len() < FRAME {
        return Err(Malformed::Damaged("the file ends within a record"));
    }
    let len = u32_at(bytes, 4) as usize;
    // Zeros are what preallocated space reads as, so a zero length is never a record.
    if !(FRAME..=MAX_RECORD).contains(&len) || !len.is_multiple_of(8) {
        return Err(Malformed::Damaged(if len == 0 {
            "there is no record"
        } else {
            "a record's length is impossible"
        }));
    }
    Ok(len)
}

/// Checks the record at the start of `bytes`, which lies at `offset` of the segment.
pub(crate) fn check(bytes: &[u8], seed: u32, offset: u64) -> Result<Frame, Malformed> {
    let len = claimed_len(bytes)?;
    let Some(record) = bytes.get(..len) else {
        return Err(Malformed::Damaged("the file ends within a record"));
    };
    if crc32c::crc32c_append(seed, &record[4..]) != u32_at(record, 0) {
        return Err(Malformed::Damaged("a record's checksum is wrong"));
    }
    if u32_at(record, 12) != (offset / 8) as u32 {
        return Err(Malformed::Damaged("a record was written for another place"));
    }
    let (kind, version, flags) = (record[8], record[9], u16_at(record, 10));
    match Kind::known(kind) {
        Some(kind) if version == 1 && flags & !OPTIONAL_FLAGS == 0 => Ok(Frame { kind, flags, len }),
        _ => Err(Malformed::TooNew(format!(
            "the record at offset {offset} has kind {kind}, version {version} and flags {flags:#06x}, which are unknown"
        ))),
    }
}

/// The end of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Marker {
    /// How far the log is with this group.
    pub(crate) reached: Reached,
    /// Commits in the group; none in the markers of opening and closing.
    pub(crate) commits: u32,
    /// Bytes of the group before its marker.
    pub(crate) bytes: u32,
}

impl Marker {
    pub(crate) fn encode(&self, out: &mut Vec<u8>, flags: u16) {
        let start = start_frame(out, Kind::Group, flags);
        out.extend_from_slice(&self.reached.encode());
        out.extend_from_slice(&self.commits.to_le_bytes());
        out.extend_from_slice(&self.bytes.to_le_bytes());
        out.extend_from_slice(&[0; 8]);
        finish_frame(out, start);
        debug_assert_eq!(out.len() - start, MARKER);
    }

    pub(crate) fn decode(record: &[u8]) -> Result<Self, Malformed> {
        if record.len() != MARKER {
            return Err(Malformed::Damaged("a group marker has the wrong length"));
        }
        Ok(Self {
            reached: Reached::decode(&record[FRAME..FRAME + 40]),
            commits: u32_at(record, FRAME + 40),
            bytes: u32_at(record, FRAME + 44),
        })
    }
}

/// Where a commit lies within a segment: one entry for every [`SPARSE_STRIDE`] bytes or so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SparseEntry {
    /// Number of the commit at `offset`.
    pub(crate) commit: u64,
    /// Position of its first event, or the one that event would have had.
    pub(crate) position: u64,
    /// When it was recorded.
    pub(crate) time: u64,
    /// Where its record starts in the segment.
    pub(crate) offset: u32,
}

/// Bytes between two sparse entries: a search reads about this much too much.
pub(crate) const SPARSE_STRIDE: u32 = 64 << 10;
/// Bytes of a sparse entry in a footer.
pub(crate) const SPARSE_ENTRY: usize = 32;
/// Bytes of a footer without its sparse entries: frame, what was reached, the count, and the length at the end.
pub(crate) const FOOTER_FIXED: usize = FRAME + 40 + 8 + 8;

/// The last record of a sealed segment. Its own length stands in its last 4 bytes, so that it is found from the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Footer {
    /// How far the log is with this segment.
    pub(crate) reached: Reached,
    /// Where in the segment what is.
    pub(crate) sparse: Vec<SparseEntry>,
}

impl Footer {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let start = start_frame(out, Kind::Footer, 0);
        out.extend_from_slice(&self.reached.encode());
        out.extend_from_slice(&(self.sparse.len() as u64).to_le_bytes());
        for entry in &self.sparse {
            out.extend_from_slice(&entry.commit.to_le_bytes());
            out.extend_from_slice(&entry.position.to_le_bytes());
            out.extend_from_slice(&entry.time.to_le_bytes());
            out.extend_from_slice(&u64::from(entry.offset).to_le_bytes());
        }
        let len = FOOTER_FIXED + self.sparse.len() * SPARSE_ENTRY;
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&(len as u32).to_le_bytes());
        finish_frame(out, start);
        debug_assert_eq!(out.len() - start, len);
    }

    pub(crate) fn decode(record: &[u8]) -> Result<Self, Malformed> {
        let entries = record.len().checked_sub(FOOTER_FIXED).filter(|bytes| bytes % SPARSE_ENTRY == 0);
        let entries = entries.map(|bytes| bytes / SPARSE_ENTRY);
        let at = FRAME + 40;
        if entries.is_none_or(|entries| u64_at(record, at) != entries as u64) {
            return Err(Malformed::Damaged("a footer has the wrong length"));
        }
        let sparse = record[at + 8..record.len() - 8].chunks_exact(SPARSE_ENTRY).map(|entry| SparseEntry {
            commit: u64_at(entry, 0),
            position: u64_at(entry, 8),
            time: u64_at(entry, 16),
            offset: u64_at(entry, 24) as u32,
        });
        Ok(Self { reached: Reached::decode(&record[FRAME..at]), sparse: sparse.collect() })
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array(bytes, at))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}
