//! Checks a log from end to end, and changes nothing.

use super::disk::{Disk, LogFile};
use super::format::{HEADER, Malformed, Reached, SegmentHeader};
use super::recovery::{self, Stop, Walk};
use super::segment;
use ebb_domain::port::storage::StorageError;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How far a tool has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that were looked at.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
}

/// What is wrong with a file of a log.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Damage {
    /// The file.
    pub file: PathBuf,
    /// Where in it.
    pub offset: u64,
    /// What is wrong, for people.
    pub problem: String,
}

/// What a check of a log found.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct VerifyReport {
    /// Segments.
    pub segments: u64,
    /// Groups, those of opening and closing included.
    pub groups: u64,
    /// The last commit that everything before is there of.
    pub commits: u64,
    /// The last position that everything before is there of.
    pub position: u64,
    /// Bytes that were checked.
    pub bytes: u64,
    /// Bytes of a group that was being written when the node stopped, and was not acknowledged. Opening the log cuts them.
    pub torn_bytes: u64,
    /// What is wrong; nothing in a log that is well.
    pub damage: Vec<Damage>,
}

/// One segment's file, looked at by itself.
pub(crate) struct Checked {
    pub(crate) header: SegmentHeader,
    pub(crate) walk: Walk,
    /// None if there is nothing wrong; else where, and what.
    pub(crate) damage: Option<(u64, String)>,
    pub(crate) torn_bytes: u64,
}

/// Checks one segment.
pub(crate) fn check_segment(
    file: &Arc<dyn LogFile>,
    is_last: bool,
    progress: &mut dyn FnMut(u64),
) -> io::Result<Result<Checked, Malformed>> {
    let header = match recovery::read_header(&**file)? {
        Ok(header) => header,
        Err(malformed) => return Ok(Err(malformed)),
    };
    let walk = recovery::walk(file, &header, progress)?;
    let mut checked = Checked { header, walk, damage: None, torn_bytes: 0 };
    let len = file.len()?;
    match &checked.walk.stop {
        Stop::Sealed(end) if *end == len => {}
        Stop::Sealed(end) if !is_last => {
            checked.damage = Some((*end, "there is something behind the footer of a sealed segment".into()));
        }
        Stop::Sealed(_) => {}
        Stop::End if is_last => {}
        Stop::End => checked.damage = Some((len, "a segment that is not the last has no footer".into())),
        Stop::Bad { offset, malformed } if !is_last => {
            checked.damage = Some((*offset, malformed.to_string()));
        }
        Stop::Bad { offset, malformed: Malformed::TooNew(text) } => {
            checked.damage = Some((*offset, text.clone()));
        }
        Stop::Bad { offset, malformed } => {
            let behind = recovery::look_behind(&**file, &checked.header, &checked.walk.extent)?;
            match behind.higher {
                Some((at, group)) => {
                    let proof = format!(
                        "{malformed}, but group {group} at offset {at} proves that it was acknowledged"
                    );
                    checked.damage = Some((*offset, proof));
                }
                None => checked.torn_bytes = behind.used.map_or(0, |used| used - checked.walk.extent.end),
            }
        }
    }
    Ok(Ok(checked))
}

/// Names and lengths of a log's segments, in order.
pub(crate) fn segments(disk: &dyn Disk, folder: &Path) -> Result<Vec<(u32, PathBuf, u64)>, StorageError> {
    let io = |error: io::Error| StorageError(format!("{}: {error}", folder.display()));
    let names = disk.list(folder).map_err(io)?;
    let mut segments = Vec::new();
    for sequence in names.iter().filter_map(|name| segment::sequence_of(name)) {
        let path = segment::path_of(folder, sequence);
        let len = disk.open(&path).and_then(|file| file.len()).map_err(io)?;
        segments.push((sequence, path, len));
    }
    segments.sort_unstable();
    Ok(segments)
}

/// Checks every byte of the log in `folder`, which nobody has open.
///
/// # Errors
/// The folder or a file could not be read. Damage is in the report.
pub fn verify(
    disk: &Arc<dyn Disk>,
    folder: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<VerifyReport, StorageError> {
    let segments = segments(&**disk, folder)?;
    let total = segments.iter().map(|(_, _, len)| len).sum();
    let mut report = VerifyReport::default();
    let mut reached = Some(Reached::default());
    let mut log = None;
    let last = segments.last().map_or(0, |(sequence, ..)| *sequence);
    let mut expected = 1;
    for (sequence, path, len) in segments {
        let io = |error: io::Error| StorageError(format!("{}: {error}", path.display()));
        let mut damaged = |offset: u64, problem: String| {
            report.damage.push(Damage { file: path.clone(), offset, problem });
        };
        if sequence != expected {
            let missing = segment::path_of(folder, expected);
            damaged(0, format!("{} is not there", missing.display()));
            reached = None;
        }
        expected = sequence + 1;
        let file = disk.open(&path).map_err(io)?;
        let done = report.bytes;
        let mut on_way = |at: u64| progress(Progress { done: done + at, total });
        match check_segment(&file, sequence == last, &mut on_way).map_err(io)? {
            Err(malformed) => {
                damaged(0, malformed.to_string());
                reached = None;
            }
            Ok(checked) => {
                let follows = reached.is_none_or(|reached| checked.header.base == reached);
                if !follows
                    || checked.header.sequence != sequence
                    || log.is_some_and(|log| log != checked.header.log)
                {
                    damaged(0, "this segment does not follow from the one before".into());
                }
                log = Some(checked.header.log);
                report.groups += checked.walk.groups;
                report.torn_bytes += checked.torn_bytes;
                let whole = reached.is_some();
                reached = Some(checked.walk.extent.reached);
                if let Some((offset, problem)) = checked.damage {
                    report.damage.push(Damage { file: path.clone(), offset, problem });
                    reached = None;
                }
                if whole {
                    report.commits = checked.walk.extent.reached.commit.0;
                    report.position = checked.walk.extent.reached.position.0;
                }
            }
        }
        report.segments += 1;
        report.bytes += len.max(HEADER as u64);
        progress(Progress { done: report.bytes.min(total), total });
    }
    Ok(report)
}
