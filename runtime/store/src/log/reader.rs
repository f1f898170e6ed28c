//! Reads: of durable commits only, over blocks that decoded texts and data share.

use super::commit_record::{self, Events, Raw};
use super::disk::LogFile;
use super::format::{Frame, Kind, Malformed};
use super::scan::{BLOCK, Scan, Step};
use super::segment::{Location, Segment, SegmentSet, Target};
use crate::index::{Hash, NotInMemory};
use bytes::Bytes;
use ebb_domain::commit::{Commit, CommitHeader};
use ebb_domain::event::{Revision, StoredEvent};
use ebb_domain::port::log::ReadError;
use ebb_domain::text::Text;
use std::ops::Range;
use std::sync::Arc;

/// What staging asks of durable state: of memory only, because the sequencer is locked meanwhile.
pub(crate) trait Memory {
    fn head(&self, stream: &Text) -> Result<Option<Revision>, NotInMemory>;
    fn key(&self, hash: &Hash) -> Result<Location, NotInMemory>;
    fn origin(&self, hash: &(Hash, u64)) -> Result<Location, NotInMemory>;
}

/// What durable state said of a key, or of a Kafka record, before the sequencer was locked.
#[derive(Clone, Debug)]
pub(crate) struct LookedUp {
    pub(crate) settlings: u64,
    /// The commit, and where it lies.
    pub(crate) found: Option<(Location, Arc<Commit>)>,
}

impl LookedUp {
    /// The commit, unless another one may have come since.
    pub(crate) fn check(
        looked_up: Option<&Self>,
        memory: Result<Location, NotInMemory>,
    ) -> Result<Option<&Arc<Commit>>, NotInMemory> {
        let settlings = match memory {
            Ok(_) => 0,
            Err(not) => not.settlings,
        };
        let looked_up = looked_up.ok_or(NotInMemory { settlings })?;
        let found = looked_up.found.as_ref();
        let holds = match memory {
            Ok(location) => found.is_some_and(|(found, _)| *found == location),
            Err(not) => looked_up.settlings == not.settlings,
        };
        if holds { Ok(found.map(|(_, commit)| commit)) } else { Err(NotInMemory { settlings }) }
    }
}

/// Goes through the commit records of a log, in order, up to one commit.
pub(crate) struct Commits<'a> {
    set: &'a SegmentSet,
    segment: Arc<Segment>,
    scan: Scan,
    /// The last commit that may be seen.
    last: u64,
}

/// A commit record that was found, not decoded.
pub(crate) struct Found {
    pub(crate) offset: u64,
    range: Range<usize>,
}

impl<'a> Commits<'a> {
    /// Starts at or a little before `target`. `size` is how many bytes the first read should take.
    pub(crate) fn from(
        set: &'a SegmentSet,
        target: Target,
        last: u64,
        size: usize,
    ) -> Result<Option<Self>, ReadError> {
        let Some((segment, offset)) = set.find(target)? else { return Ok(None) };
        let scan = Self::scan(set, &segment, offset, size)?;
        Ok(Some(Self { set, segment, scan, last }))
    }

    fn scan(set: &SegmentSet, segment: &Segment, offset: u64, size: usize) -> Result<Scan, ReadError> {
        let file: Arc<dyn LogFile> = set.file(segment)?;
        Ok(Scan::new(file, segment.header.seed(), offset, segment.end(), size))
    }

    pub(crate) fn next(&mut self) -> Result<Option<Found>, ReadError> {
        loop {
            match self.scan.step().map_err(|error| self.segment.io(&error))? {
                Step::Record { offset, frame: Frame { kind: Kind::Commit, .. }, range } => {
                    let found = Found { offset, range };
                    let number = self.raw(&found)?.number().0;
                    return Ok((number <= self.last).then_some(found));
                }
                Step::Record { .. } => {}
                Step::End => {
                    let Some(next) = self.set.get(self.segment.header.sequence + 1) else { return Ok(None) };
                    self.scan = Self::scan(self.set, &next, super::format::HEADER as u64, BLOCK)?;
                    self.segment = next;
                }
                Step::Bad { offset, malformed } => return Err(self.segment.corrupt(offset, &malformed)),
            }
        }
    }

    pub(crate) fn raw(&self, found: &Found) -> Result<Raw<'_>, ReadError> {
        Raw::new(self.scan.bytes(found.range.clone())).map_err(|malformed| self.malformed(found, &malformed))
    }

    /// The record, sharing the block.
    pub(crate) fn record(&self, found: &Found) -> Bytes {
        self.scan.slice(found.range.clone())
    }

    pub(crate) fn location(&self, found: &Found) -> Location {
        Location { segment: self.segment.header.sequence, offset: found.offset as u32 }
    }

    pub(crate) fn malformed(&self, found: &Found, malformed: &Malformed) -> ReadError {
        self.segment.corrupt(found.offset, malformed)
    }
}

/// Reads records at known places; what lies close together is read at once.
pub(crate) struct Places<'a> {
    set: &'a SegmentSet,
    open: Option<(Arc<Segment>, Scan)>,
}

/// Bytes that are read at a place: most records fit, and the next one of a busy stream is often in it too.
const PLACE: usize = 16 << 10;

impl<'a> Places<'a> {
    pub(crate) fn new(set: &'a SegmentSet) -> Self {
        Self { set, open: None }
    }

    /// The commit record at a place; none if there is something else, so that the index that pointed there is wrong.
    /// Where it is the log that is damaged, that is an error: another index would point there as well.
    pub(crate) fn record(&mut self, location: Location) -> Result<Option<Bytes>, ReadError> {
        let offset = u64::from(location.offset);
        if self.open.as_ref().is_none_or(|(segment, _)| segment.header.sequence != location.segment) {
            let Some(segment) = self.set.get(location.segment) else { return Ok(None) };
            let file = self.set.file(&segment)?;
            let scan = Scan::new(file, segment.header.seed(), offset, segment.end(), PLACE);
            self.open = Some((segment, scan));
        }
        let Some((segment, scan)) = &mut self.open else { return Ok(None) };
        if scan.offset() != offset {
            scan.seek(offset, PLACE);
        }
        match scan.step().map_err(|error| segment.io(&error))? {
            Step::Record { frame: Frame { kind: Kind::Commit, .. }, range, .. } => {
                Ok(Some(scan.slice(range)))
            }
            Step::Bad { .. } => check_around(self.set, segment, offset).map(|()| None),
            _ => Ok(None),
        }
    }
}

/// Fails if the log is damaged at a place, or shortly before it.
fn check_around(set: &SegmentSet, segment: &Segment, offset: u64) -> Result<(), ReadError> {
    let start = set.before(segment, offset)?;
    let mut scan = Scan::new(set.file(segment)?, segment.header.seed(), start, segment.end(), BLOCK);
    while scan.offset() <= offset {
        match scan.step().map_err(|error| segment.io(&error))? {
            Step::Record { .. } => {}
            Step::End => break,
            Step::Bad { offset, malformed } => return Err(segment.corrupt(offset, &malformed)),
        }
    }
    Ok(())
}

/// Decodes a whole commit.
pub(crate) fn commit(record: &Bytes) -> Result<Commit, Malformed> {
    let header = Arc::new(commit_record::decode_header(record)?);
    let mut events = Vec::with_capacity(header.event_count as usize);
    append_events(record, &header, |_, _| true, &mut events)?;
    Ok(Commit { header, events })
}

/// Decodes the wanted events of a commit whose header is decoded.
pub(crate) fn append_events(
    record: &Bytes,
    header: &Arc<CommitHeader>,
    wanted: impl Fn(u32, &[u8]) -> bool,
    into: &mut Vec<StoredEvent>,
) -> Result<(), Malformed> {
    let mut events = Events::new(record)?;
    while let Some(event) = events.next(&wanted, || Ok(Arc::clone(header)))? {
        into.push(event);
    }
    Ok(())
}
