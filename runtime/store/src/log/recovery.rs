//! Opening: finds out how far the log goes, and whether what it acknowledged is all there.
//!
//! A group is written only after the group before it was synced. So at the end of the log at most one group can be
//! incomplete, and nothing of it was acknowledged: such a torn tail is cut. A group marker further on that is higher than
//! that group proves that the bytes were acknowledged once: then the log is damaged, and stays closed.

use super::commit_record::Raw;
use super::disk::{Disk, LogFile};
use super::format::{
    self, Footer, HEADER, Kind, MARKER, Malformed, Marker, Reached, SegmentHeader, SparseEntry,
};
use super::scan::{BLOCK, Scan, Step};
use super::segment::{self, Extent, REPAIR_HINT, Segment, Sparse};
use ebb_domain::event::Position;
use ebb_domain::port::storage::StorageError;
use ebb_faults::{Point, crash_point};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use uuid::Uuid;

/// The segment that goes on being written.
pub(crate) struct Tail {
    pub(crate) segment: Arc<Segment>,
    pub(crate) file: Arc<dyn LogFile>,
    /// Bytes it may grow to.
    pub(crate) capacity: u64,
    /// Up to here, what lies behind the log's end has been written before, as zeros.
    pub(crate) zeroed: u64,
}

/// A log as it was found.
pub(crate) struct Recovered {
    pub(crate) log: Uuid,
    pub(crate) segments: Vec<Arc<Segment>>,
    /// None: the next group starts a new segment.
    pub(crate) tail: Option<Tail>,
    pub(crate) reached: Reached,
    /// Where the last segment without a footer stopped making sense, and why: at its end, or before it.
    unsure: Option<(PathBuf, u64, Malformed)>,
}

/// How a walk through a segment ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// At its footer, which ends at this offset.
    Sealed(u64),
    /// At the end of the file.
    End,
    /// At bytes that are no record, or not the one that should follow.
    Bad { offset: u64, malformed: Malformed },
}

/// What a walk through a segment found.
pub(crate) struct Walk {
    pub(crate) extent: Extent,
    pub(crate) stop: Stop,
    /// Where the last whole group starts.
    pub(crate) last_group: u64,
    pub(crate) groups: u64,
}

/// Goes through all groups of a segment, checking every record and that each follows from the one before.
pub(crate) fn walk(
    file: &Arc<dyn LogFile>,
    header: &SegmentHeader,
    mut progress: impl FnMut(u64),
) -> io::Result<Walk> {
    let len = file.len()?;
    let mut scan = Scan::new(Arc::clone(file), header.seed(), HEADER as u64, len, BLOCK);
    let extent = Extent { end: HEADER as u64, reached: header.base, sparse: Sparse::default() };
    let mut walk = Walk { extent, stop: Stop::End, last_group: HEADER as u64, groups: 0 };
    // The group that is being read.
    let mut reached = header.base;
    let (mut commits, mut entries) = (0_u32, Vec::new());
    loop {
        let (offset, frame, range) = match scan.step()? {
            Step::Record { offset, frame, range } => (offset, frame, range),
            Step::End => return Ok(walk),
            Step::Bad { offset, malformed } => {
                walk.stop = Stop::Bad { offset, malformed };
                return Ok(walk);
            }
        };
        let record = scan.bytes(range);
        let follows = match frame.kind {
            Kind::Commit => Raw::new(record).and_then(|raw| {
                entries.push(sparse_entry(raw, offset));
                commits += 1;
                follow(&mut reached, raw)
            }),
            Kind::Group => Marker::decode(record).and_then(|marker| {
                let bytes = (offset - walk.extent.end) as u32;
                end_group(&mut reached, &marker, commits, bytes)?;
                walk.last_group = walk.extent.end;
                walk.extent.end = offset + MARKER as u64;
                walk.extent.reached = reached;
                walk.groups += 1;
                entries.drain(..).for_each(|entry| walk.extent.sparse.note(entry));
                commits = 0;
                progress(walk.extent.end);
                Ok(())
            }),
            Kind::Footer => Footer::decode(record).and_then(|footer| {
                if commits > 0 || footer.reached != walk.extent.reached {
                    return Err(Malformed::Damaged("a footer does not agree with what is before it"));
                }
                walk.stop = Stop::Sealed(offset + frame.len as u64);
                Ok(())
            }),
        };
        if let Err(malformed) = follows {
            walk.stop = Stop::Bad { offset, malformed };
            return Ok(walk);
        }
        if matches!(walk.stop, Stop::Sealed(_)) {
            return Ok(walk);
        }
    }
}

pub(crate) fn sparse_entry(raw: Raw<'_>, offset: u64) -> SparseEntry {
    SparseEntry {
        commit: raw.number().0,
        position: raw.first_position().0,
        time: raw.recorded_at().0,
        offset: offset as u32,
    }
}

fn follow(reached: &mut Reached, raw: Raw<'_>) -> Result<(), Malformed> {
    if raw.number().0 != reached.commit.0 + 1 || raw.first_position() != reached.position.next() {
        return Err(Malformed::Damaged("a commit does not follow from the one before"));
    }
    if raw.recorded_at() < reached.time {
        return Err(Malformed::Damaged("a commit is older than the one before"));
    }
    reached.commit = raw.number();
    reached.position = Position(reached.position.0 + u64::from(raw.event_count()));
    reached.time = raw.recorded_at();
    Ok(())
}

fn end_group(reached: &mut Reached, marker: &Marker, commits: u32, bytes: u32) -> Result<(), Malformed> {
    let next = Reached { group: reached.group + 1, epoch: marker.reached.epoch, ..*reached };
    if marker.reached != next || marker.reached.epoch < reached.epoch {
        return Err(Malformed::Damaged("a group does not follow from the one before"));
    }
    if marker.commits != commits || marker.bytes != bytes {
        return Err(Malformed::Damaged("a group does not hold what its marker says"));
    }
    *reached = next;
    Ok(())
}

/// What lies behind the last whole group of an unsealed segment.
#[derive(Debug, Default)]
pub(crate) struct Behind {
    /// Offset just behind the last byte that is not zero; none if there are only zeros.
    pub(crate) used: Option<u64>,
    /// A valid marker of a higher group than the one that may be torn: where, and which group.
    pub(crate) higher: Option<(u64, u64)>,
}

/// Looks for proof that bytes behind the last whole group were acknowledged.
pub(crate) fn look_behind(file: &dyn LogFile, header: &SegmentHeader, extent: &Extent) -> io::Result<Behind> {
    let (len, seed) = (file.len()?, header.seed());
    let mut behind = Behind::default();
    // A footer is written when all groups before it are durable.
    if let Ok((offset, footer)) = segment::read_footer(file, header)?
        && offset >= extent.end
        && footer.reached.group > extent.reached.group
    {
        behind.higher = Some((offset, footer.reached.group));
    }
    let torn = extent.reached.group + 1;
    let mut at = extent.end;
    let mut block = Vec::new();
    while at < len {
        block.clear();
        // Blocks overlap, so that a marker on the border is seen whole.
        file.read_at(at, BLOCK + MARKER, &mut block)?;
        if block.is_empty() {
            break;
        }
        if let Some(last) = block.iter().rposition(|byte| *byte != 0) {
            behind.used = Some(at + last as u64 + 1);
            for start in (0..block.len().min(BLOCK)).step_by(8) {
                let Some(record) = block.get(start..start + MARKER) else { break };
                if record[8] != Kind::Group as u8 || format::u32_at(record, 4) != MARKER as u32 {
                    continue;
                }
                let offset = at + start as u64;
                let marker = format::check(record, seed, offset).and_then(|_| Marker::decode(record));
                if let Ok(marker) = marker
                    && marker.reached.group > torn
                    && behind.higher.is_none()
                {
                    behind.higher = Some((offset, marker.reached.group));
                }
            }
        }
        at += BLOCK as u64;
    }
    Ok(behind)
}

/// Opens the log in `folder`, making the folder if it is not there.
pub(crate) fn recover(disk: &Arc<dyn Disk>, folder: &Path) -> Result<Recovered, StorageError> {
    let io = |error: io::Error| StorageError(format!("{}: {error}", folder.display()));
    disk.create_folder(folder).map_err(io)?;
    let sequences = sequences(&**disk, folder)?;
    let last = sequences.len();
    let mut recovered = Recovered {
        log: Uuid::new_v4(),
        segments: Vec::with_capacity(last),
        tail: None,
        reached: Reached::default(),
        unsure: None,
    };
    for sequence in sequences {
        let path = segment::path_of(folder, sequence);
        let io = |error: io::Error| StorageError(format!("{}: {error}", path.display()));
        let file = disk.open(&path).map_err(io)?;
        let header = read_header(&*file).map_err(io)?.map_err(|malformed| closed(&path, &malformed))?;
        if sequence == 1 {
            recovered.log = header.log;
        }
        if let Some((path, offset, malformed)) = recovered.unsure.take()
            && header.base != recovered.reached
        {
            return Err(damaged(&path, offset, &malformed));
        }
        if header.sequence != sequence || header.log != recovered.log || header.base != recovered.reached {
            let what = "this segment does not follow from the one before: it belongs to another log, or one of the two \
                        was changed";
            return Err(damaged(&path, 0, &what));
        }
        let opened = if sequence as usize == last {
            // The process may have ended between making this name and making it durable.
            disk.sync_folder(folder).map_err(io)?;
            open_last(&header, &path, &file, &mut recovered)?
        } else {
            open_sealed(&header, &path, &file, &mut recovered)?
        };
        recovered.segments.push(Arc::clone(&opened));
        if let Some(tail) = &mut recovered.tail {
            tail.segment = opened;
        }
    }
    Ok(recovered)
}

/// Numbers of the segments in a folder, which are 1, 2, 3 and so on. Removes what a crash left half made.
fn sequences(disk: &dyn Disk, folder: &Path) -> Result<Vec<u32>, StorageError> {
    let io = |error: io::Error| StorageError(format!("{}: {error}", folder.display()));
    let names = disk.list(folder).map_err(io)?;
    for name in names.iter().filter(|name| name.ends_with(".new")) {
        tracing::info!(file = %folder.join(name).display(), "removed a segment that was not finished");
        disk.remove(&folder.join(name)).map_err(io)?;
    }
    let mut sequences: Vec<u32> = names.iter().filter_map(|name| segment::sequence_of(name)).collect();
    sequences.sort_unstable();
    match sequences.iter().zip(1..).find(|(found, expected)| **found != *expected) {
        Some((_, missing)) => {
            Err(damaged(&segment::path_of(folder, missing), 0, &"this segment of the log is not there"))
        }
        None => Ok(sequences),
    }
}

pub(crate) fn read_header(file: &dyn LogFile) -> io::Result<Result<SegmentHeader, Malformed>> {
    let mut bytes = Vec::new();
    file.read_at(0, HEADER, &mut bytes)?;
    Ok(SegmentHeader::decode(&bytes))
}

/// Why a file as a whole keeps the log closed.
fn closed(path: &Path, malformed: &Malformed) -> StorageError {
    match malformed {
        Malformed::Damaged(what) => damaged(path, 0, what),
        // Nothing is wrong with it, so there is nothing to repair.
        Malformed::TooNew(_) => StorageError(format!("{}: {malformed}", path.display())),
    }
}

fn damaged(path: &Path, offset: u64, what: &dyn std::fmt::Display) -> StorageError {
    StorageError(format!("the log is damaged: {} at offset {offset}: {what}; {REPAIR_HINT}", path.display()))
}

fn open_sealed(
    header: &SegmentHeader,
    path: &Path,
    file: &Arc<dyn LogFile>,
    recovered: &mut Recovered,
) -> Result<Arc<Segment>, StorageError> {
    let io = |error: io::Error| StorageError(format!("{}: {error}", path.display()));
    match segment::read_footer(&**file, header).map_err(io)? {
        Ok((end, footer)) => {
            recovered.reached = footer.reached;
            Ok(Arc::new(Segment::new(header.clone(), path.to_owned(), end, None)))
        }
        Err(malformed @ Malformed::TooNew(_)) => Err(closed(path, &malformed)),
        Err(malformed @ Malformed::Damaged(_)) => {
            // The footer only repeats what the groups say, so without it the groups are read. Whether they are all there
            // is checked against the next segment, which says where this one must end.
            tracing::warn!(file = %path.display(), %malformed, "a sealed segment has no valid footer; reading all of it");
            let walk = walk(file, header, |_| ()).map_err(io)?;
            recovered.reached = walk.extent.reached;
            if let Stop::Bad { offset, malformed } = walk.stop {
                recovered.unsure = Some((path.to_owned(), offset, malformed));
            }
            let (end, sparse) = (walk.extent.end, Some(walk.extent.sparse));
            Ok(Arc::new(Segment::new(header.clone(), path.to_owned(), end, sparse)))
        }
    }
}

fn open_last(
    header: &SegmentHeader,
    path: &Path,
    file: &Arc<dyn LogFile>,
    recovered: &mut Recovered,
) -> Result<Arc<Segment>, StorageError> {
    let io = |error: io::Error| StorageError(format!("{}: {error}", path.display()));
    let len = file.len().map_err(io)?;
    let walk = walk(file, header, |_| ()).map_err(io)?;
    let extent = &walk.extent;
    if let Stop::Bad { malformed: malformed @ Malformed::TooNew(_), .. } = &walk.stop {
        return Err(closed(path, malformed));
    }
    let mut capacity = Some(len);
    match &walk.stop {
        Stop::Sealed(end) => {
            capacity = None;
            if *end < len {
                file.set_len(*end).map_err(io)?;
            }
        }
        Stop::End => {}
        Stop::Bad { offset, malformed } => {
            let behind = look_behind(&**file, header, extent).map_err(io)?;
            if let Some((higher_at, group)) = behind.higher {
                let what = format!(
                    "{malformed}, but group {group} at offset {higher_at} proves that this was acknowledged"
                );
                return Err(damaged(path, *offset, &what));
            }
            if let Some(used) = behind.used {
                tracing::warn!(
                    file = %path.display(), offset = extent.end, bytes = used - extent.end, reason = %malformed,
                    "cut a torn tail: a group that was being written when the node stopped, and was not acknowledged"
                );
                // Cut, and preallocated again: what is left of the torn group must not stand behind later groups.
                file.set_len(extent.end).map_err(io)?;
                if let Err(error) = file.allocate(len) {
                    tracing::warn!(file = %path.display(), %error, "could not preallocate; going on in a new segment");
                    capacity = Some(extent.end);
                }
            }
        }
    }
    // Also the note that the log was closed: it may be what could not be synced.
    make_durable(&**file, &walk, len).map_err(io)?;
    recovered.reached = extent.reached;
    let segment = Segment::new(header.clone(), path.to_owned(), extent.end, Some(extent.sparse.clone()));
    let segment = Arc::new(segment);
    recovered.tail = capacity.map(|capacity| Tail {
        zeroed: segment.end(),
        segment: Arc::clone(&segment),
        file: Arc::clone(file),
        capacity,
    });
    Ok(segment)
}

/// The last group may have been written and not synced, or its sync may have failed: the system then takes its pages for
/// clean and would never write them, though they read well until they are dropped. So they are written again.
fn make_durable(file: &dyn LogFile, walk: &Walk, len: u64) -> io::Result<()> {
    let end = match walk.stop {
        Stop::Sealed(end) => end,
        _ => walk.extent.end,
    };
    let mut bytes = Vec::new();
    file.read_at(walk.last_group, (end.min(len) - walk.last_group) as usize, &mut bytes)?;
    super::disk::write_all(file, walk.last_group, &bytes)?;
    crash_point(Point::OpenAfterRewrite);
    file.sync_all()
}
