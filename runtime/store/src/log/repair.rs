//! Mends a damaged log from a backup: bytes that are damaged here and intact there, in the segment with the same id and at
//! the same place. Nothing is invented, and what was damaged is kept aside.

use super::disk::{self, Disk, LogFile};
use super::format::{self, Footer, HEADER, Kind, MARKER, SegmentHeader};
use super::recovery::{self, Stop};
use super::segment;
use super::verify::{Progress, check_segment, segments, verify};
use ebb_domain::port::storage::StorageError;
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What a repair did.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct RepairReport {
    /// What was mended, in order.
    pub mended: Vec<Mended>,
    /// The last commit of the log now.
    pub commits: u64,
    /// The last position of the log now.
    pub position: u64,
}

/// One segment that was mended.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Mended {
    /// The segment's file.
    pub file: PathBuf,
    /// Where the damaged file is kept; none if there was no file.
    pub kept_as: Option<PathBuf>,
    /// Bytes that were taken from the backup.
    pub bytes: u64,
}

/// Mends the log in `folder`, which nobody has open, from the log folder `backup`.
///
/// # Errors
/// The backup has not what is damaged here, or belongs to another log: nothing has changed then. Or the disk refused, or the
/// log is still damaged after what could be mended was, which the text says.
pub fn repair(
    disk: &Arc<dyn Disk>,
    folder: &Path,
    backup: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<RepairReport, StorageError> {
    let ours: Vec<_> = segments(&**disk, folder)?;
    let theirs: Vec<_> = segments(&**disk, backup)?;
    let total: u64 = ours.iter().map(|(_, _, len)| len).sum();
    let here: BTreeSet<u32> = ours.iter().map(|(sequence, ..)| *sequence).collect();
    let there: BTreeSet<u32> = theirs.iter().map(|(sequence, ..)| *sequence).collect();
    let last = here.union(&there).last().copied().unwrap_or_default();

    // All new files are made before the first is put in place.
    let mut made = Vec::new();
    let mut done = 0;
    for sequence in 1..=last {
        let path = segment::path_of(folder, sequence);
        let from = segment::path_of(backup, sequence);
        let new = match (here.contains(&sequence), there.contains(&sequence)) {
            (true, with_backup) => {
                let file = open(disk, &path)?;
                let mut on_way = |at: u64| progress(Progress { done: done + at, total });
                let checked =
                    check_segment(&file, sequence == last, &mut on_way).map_err(|e| failed(&path, &e))?;
                done += file.len().map_err(|e| failed(&path, &e))?;
                if checked.is_ok_and(|checked| checked.damage.is_none()) {
                    continue;
                }
                let theirs = with_backup.then(|| open(disk, &from)).transpose()?;
                merge(&path, &file, &from, theirs.as_ref())?
            }
            (false, true) => {
                let bytes = read_all(&*open(disk, &from)?).map_err(|error| failed(&from, &error))?;
                Merged { taken: bytes.len() as u64, bytes }
            }
            (false, false) => {
                return Err(StorageError(format!("{} is missing here and in the backup", path.display())));
            }
        };
        let unfinished = path.with_extension("new");
        write(disk, &unfinished, &new.bytes)?;
        if sequence < last {
            seal_again(disk, &unfinished).map_err(|error| failed(&unfinished, &error))?;
        }
        // A copy, so that at no moment there is no segment of this name: a repair that is cut short is done again, and
        // must find what this one found.
        let kept_as = here.contains(&sequence).then(|| aside(&**disk, &path));
        if let Some(aside) = &kept_as {
            let damaged = read_all(&*open(disk, &path)?).map_err(|error| failed(&path, &error))?;
            write(disk, aside, &damaged)?;
        }
        made.push((unfinished, Mended { file: path, kept_as, bytes: new.taken }));
    }
    disk.sync_folder(folder).map_err(|error| failed(folder, &error))?;
    let mut report = RepairReport::default();
    for (unfinished, mended) in made {
        disk.rename(&unfinished, &mended.file).map_err(|error| failed(&mended.file, &error))?;
        report.mended.push(mended);
    }
    disk.sync_folder(folder).map_err(|error| failed(folder, &error))?;

    let verified = verify(disk, folder, &mut |_| ())?;
    if let Some(damage) = verified.damage.first() {
        return Err(StorageError(format!(
            "{} segments were mended, and {} is still damaged at offset {}: {}; try another backup",
            report.mended.len(),
            damage.file.display(),
            damage.offset,
            damage.problem
        )));
    }
    report.commits = verified.commits;
    report.position = verified.position;
    Ok(report)
}

struct Merged {
    bytes: Vec<u8>,
    /// Bytes that came from the backup.
    taken: u64,
}

/// Puts one segment together from two copies: record by record, ours where it is intact, else the backup's.
fn merge(
    path: &Path,
    ours: &Arc<dyn LogFile>,
    from: &Path,
    theirs: Option<&Arc<dyn LogFile>>,
) -> Result<Merged, StorageError> {
    let ours = read_all(&**ours).map_err(|error| failed(path, &error))?;
    let (there, theirs) = match theirs {
        Some(theirs) => (true, read_all(&**theirs).map_err(|error| failed(from, &error))?),
        None => (false, Vec::new()),
    };
    let (our_header, their_header) = (SegmentHeader::decode(&ours), SegmentHeader::decode(&theirs));
    let header = match (our_header, their_header) {
        (Ok(ours), Ok(theirs)) if ours != theirs => {
            return Err(StorageError(format!(
                "{} is not a copy of {}: it has another id; was it written after the log was restored?",
                from.display(),
                path.display()
            )));
        }
        (Ok(header), _) | (Err(_), Ok(header)) => header,
        (Err(malformed), Err(_)) => {
            let header =
                format!("the header of {} is damaged here and in the backup: {malformed}", path.display());
            return Err(StorageError(header));
        }
    };
    let seed = header.seed();
    let mut merged = Merged { bytes: header.encode().to_vec(), taken: 0 };
    if ours.get(..HEADER) != Some(&merged.bytes[..]) {
        merged.taken += HEADER as u64;
    }
    let mut at = HEADER;
    loop {
        let intact = |copy: &[u8]| {
            let rest = copy.get(at..)?;
            format::check(rest, seed, at as u64).ok().map(|frame| rest[..frame.len].to_vec())
        };
        let record = match intact(&ours) {
            Some(record) => record,
            None => match intact(&theirs) {
                Some(record) => {
                    merged.taken += record.len() as u64;
                    record
                }
                None => break,
            },
        };
        at += record.len();
        merged.bytes.extend_from_slice(&record);
    }
    // Both copies end here. That is the end of the log, unless ours goes on behind the damage.
    if ours.get(at..).is_some_and(|rest| goes_on(rest, seed, at)) {
        let what = if there { "is not intact there, or ends before it" } else { "lacks it" };
        return Err(StorageError(format!(
            "{} is damaged at offset {at}, and the backup {what}; try another backup",
            path.display()
        )));
    }
    Ok(merged)
}

/// Whether there is the end of a group, or of a segment, in what lies at and behind an offset.
fn goes_on(rest: &[u8], seed: u32, at: usize) -> bool {
    (0..(rest.len() + 1).saturating_sub(MARKER)).step_by(8).any(|start| {
        let record = &rest[start..];
        let (kind, len) = (record[8], format::u32_at(record, 4) as usize);
        // Of other records the checksum would be computed over whatever length they claim.
        let may_be = (kind == Kind::Group as u8 && len == MARKER)
            || (kind == Kind::Footer as u8 && len == record.len());
        may_be && format::check(record, seed, (at + start) as u64).is_ok()
    })
}

/// Gives a segment that others follow the footer that it has lost; all that stands in it is what the groups say.
fn seal_again(disk: &Arc<dyn Disk>, path: &Path) -> io::Result<()> {
    let file = disk.open(path)?;
    let Ok(header) = recovery::read_header(&*file)? else { return Ok(()) };
    let walk = recovery::walk(&file, &header, |_| ())?;
    // Bytes behind the last group are for the check of the whole log to tell of.
    if walk.stop != Stop::End || walk.extent.end != file.len()? {
        return Ok(());
    }
    let mut footer = Vec::new();
    Footer { reached: walk.extent.reached, sparse: walk.extent.sparse.0 }.encode(&mut footer);
    format::seal(&mut footer, header.seed(), walk.extent.end);
    disk::write_all(&*file, walk.extent.end, &footer)?;
    file.sync_all()
}

/// A name under which a damaged file is kept.
fn aside(disk: &dyn Disk, path: &Path) -> PathBuf {
    let name = |number: u32| path.with_extension(format!("seg.damaged-{number}"));
    (1..).map(name).find(|name| disk.open(name).is_err()).unwrap_or_else(|| name(0))
}

fn open(disk: &Arc<dyn Disk>, path: &Path) -> Result<Arc<dyn LogFile>, StorageError> {
    disk.open(path).map_err(|error| failed(path, &error))
}

fn read_all(file: &dyn LogFile) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.read_at(0, file.len()? as usize, &mut bytes)?;
    Ok(bytes)
}

fn write(disk: &Arc<dyn Disk>, path: &Path, bytes: &[u8]) -> Result<(), StorageError> {
    let written = disk.create(path).and_then(|file| {
        disk::write_all(&*file, 0, bytes)?;
        file.sync_all()
    });
    written.map_err(|error| failed(path, &error))
}

fn failed(path: &Path, error: &io::Error) -> StorageError {
    StorageError(format!("{}: {error}", path.display()))
}
