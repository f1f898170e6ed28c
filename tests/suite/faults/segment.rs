//! Segments, read by what `docs/log-format.md` says of them and by nothing else.

use std::path::Path;

/// Bytes of a segment's header.
const HEADER: u64 = 128;
/// Bytes of a commit record before its texts.
pub(super) const COMMIT_FIXED: u64 = 128;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Commit,
    Group,
    Footer,
}

/// A record: where it is, and how long.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record {
    pub(super) kind: Kind,
    pub(super) offset: u64,
    pub(super) len: u64,
}

impl Record {
    pub(super) fn end(&self) -> u64 {
        self.offset + self.len
    }
}

/// All records of a segment that is intact.
pub(super) fn records(path: &Path) -> Vec<Record> {
    let bytes = std::fs::read(path).expect("a segment");
    let mut records = Vec::new();
    let mut at = HEADER as usize;
    while let Some(frame) = bytes.get(at..at + 16) {
        let len = u32::from_le_bytes(frame[4..8].try_into().expect("four bytes"));
        let kind = match (len, frame[8]) {
            (0, _) => break,
            (_, 1) => Kind::Commit,
            (_, 2) => Kind::Group,
            (_, 3) => Kind::Footer,
            (_, kind) => panic!("{} has a record of kind {kind} at {at}", path.display()),
        };
        records.push(Record { kind, offset: at as u64, len: u64::from(len) });
        at += len as usize;
    }
    records
}

/// A record of a kind in the middle of the others.
pub(super) fn inner(records: &[Record], kind: Kind) -> Record {
    let of_kind: Vec<Record> = records.iter().copied().filter(|record| record.kind == kind).collect();
    of_kind[of_kind.len() / 2]
}
