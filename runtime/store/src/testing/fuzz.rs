//! What the log's and the index's parsers promise of any bytes, for fuzzers: nothing panics, and nothing that was not
//! written is ever read.

use super::conformance::{commit, event};
use super::{Crash, ModelDisk};
use crate::index::{block, snapshots};
use crate::log::commit_record::{self, Numbers};
use crate::log::disk::{Disk, write_all};
use crate::log::format::{self, FRAME, Footer, HEADER, Marker, Reached, SegmentHeader};
use crate::log::reader::{self, Commits};
use crate::log::segment::{SegmentSet, Target};
use crate::log::{recovery, scan, verify};
use bytes::Bytes;
use ebb_domain::commit::{Commit, IdempotencyKey, NewCommit, Outcome, Refusal};
use ebb_domain::digest::Digest;
use ebb_domain::event::{Position, Revision};
use ebb_domain::time::Timestamp;
use std::path::Path;
use std::sync::Arc;
use uuid::Uuid;

const FOLDER: &str = "log";
const FIRST: &str = "log/00000001.seg";
const TIME: u64 = 1_700_006_400_000_000;

fn header() -> SegmentHeader {
    SegmentHeader { id: Uuid::from_u128(1), log: Uuid::from_u128(2), sequence: 1, base: Reached::default() }
}

/// A disk whose log is this one segment, all of it durable.
fn disk(segment: &[u8]) -> ModelDisk {
    let disk = ModelDisk::new();
    disk.create_folder(Path::new(FOLDER)).unwrap();
    let file = disk.create(Path::new(FIRST)).unwrap();
    write_all(&*file, 0, segment).unwrap();
    disk.sync_folder(Path::new(FOLDER)).unwrap();
    file.sync_all().unwrap();
    disk
}

/// Opens the log as a node would, and reads all of it: none if it refuses to open.
fn recover(disk: &ModelDisk) -> Option<Vec<Commit>> {
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    // The tool and the opening look at the same bytes; neither may panic.
    let report = verify::verify(&shared, Path::new(FOLDER), &mut |_| ());
    let recovered = recovery::recover(&shared, Path::new(FOLDER)).ok()?;
    assert!(report.is_ok_and(|report| report.damage.is_empty()), "what opens is well");
    let last = recovered.reached.commit.0;
    let segments = SegmentSet::new(shared, recovered.segments);
    let mut commits = Vec::new();
    if last == 0 {
        return Some(commits);
    }
    let mut found = Commits::from(&segments, Target::Commit(1), last, scan::BLOCK).ok()??;
    while let Ok(Some(at)) = found.next() {
        // A record with a right checksum whose inside makes no sense is damage, not a panic.
        match reader::commit(&found.record(&at)) {
            Ok(commit) => commits.push(commit),
            Err(_) => return Some(commits),
        }
    }
    assert!(commits.iter().map(|commit| commit.header.number.0).eq(1..=last), "all commits, once each");
    Some(commits)
}

/// Commits whose parts the bytes choose.
fn chosen(choices: &[u8]) -> Vec<NewCommit> {
    let text = |at: usize| "x".repeat(usize::from(choices.get(at).copied().unwrap_or(1) % 40));
    let commits = choices.chunks(4).take(6).enumerate().map(|(at, choice)| {
        let pick = choice[0];
        let mut next = commit(
            &format!("account-{}{}", pick % 3, text(at)),
            (0..pick % 4).map(|_| event("Opened", &text(at + 1))).collect(),
        );
        next.command_id = ebb_domain::commit::CommandId(Uuid::from_u128(at as u128));
        if pick & 16 != 0 {
            let request = Digest::of(choice);
            next.idempotency = Some(IdempotencyKey { key: format!("k{at}").into(), request });
        }
        if pick & 32 != 0 {
            let details = (pick & 64 != 0).then(|| Bytes::from_static(b"{}"));
            next.outcome =
                Outcome::Refused(Refusal { code: "no".into(), message: text(at + 2).into(), details });
        }
        next
    });
    commits.collect()
}

/// A segment with these commits in groups of `group`; sealed if asked.
fn written(commits: &[NewCommit], group: usize, sealed: bool) -> Vec<u8> {
    let header = header();
    let mut segment = header.encode().to_vec();
    let mut reached = header.base;
    for group in commits.chunks(group.max(1)) {
        let mut run = Vec::new();
        for commit in group {
            let events = match &commit.outcome {
                Outcome::Events(events) => events.len() as u64,
                Outcome::Refused(_) => 0,
            };
            reached.commit.0 += 1;
            reached.time = Timestamp(TIME + reached.commit.0);
            let numbers = Numbers {
                number: reached.commit,
                first_position: reached.position.next(),
                first_revision: Revision(0),
                recorded_at: reached.time,
                epoch: 1,
            };
            commit_record::encode(&mut run, commit, &numbers);
            reached.position = Position(reached.position.0 + events);
        }
        reached.group += 1;
        reached.epoch = 1;
        Marker { reached, commits: group.len() as u32, bytes: run.len() as u32 }.encode(&mut run, 0);
        format::seal(&mut run, header.seed(), segment.len() as u64);
        segment.extend(run);
    }
    if sealed {
        let mut run = Vec::new();
        Footer { reached, sparse: Vec::new() }.encode(&mut run);
        format::seal(&mut run, header.seed(), segment.len() as u64);
        segment.extend(run);
    }
    segment
}

/// Any bytes as a segment's file.
pub fn segment(bytes: &[u8]) {
    recover(&disk(bytes));
}

/// Any bytes as records whose frames and checksums are right, so that what is behind the checksum is reached as well.
pub fn records(bytes: &[u8]) {
    let header = header();
    let mut run = bytes.to_vec();
    run.truncate(64 << 10);
    let mut at = 0;
    while run.len() >= at + FRAME {
        let claimed = format::u32_at(&run, at + 4) as usize;
        let len = claimed.clamp(FRAME, run.len() - at) / 8 * 8;
        run[at + 4..at + 8].copy_from_slice(&(len as u32).to_le_bytes());
        run[at + 8] = 1 + run[at + 8] % 4;
        run[at + 9] = 1;
        run[at + 11] = 0;
        at += len;
    }
    run.truncate(at);
    format::seal(&mut run, header.seed(), HEADER as u64);
    let mut segment = header.encode().to_vec();
    segment.extend(&run);
    recover(&disk(&segment));
    // Each record by itself too, though none follows from the one before.
    let mut at = 0;
    while at < run.len() {
        let len = format::u32_at(&run, at + 4) as usize;
        let _ = reader::commit(&Bytes::copy_from_slice(&run[at..at + len]));
        at += len;
    }
}

/// What was written is read back; with one bit wrong, or cut anywhere, it is refused, or a part of it from the start is
/// there as it was: never anything else.
pub fn damage(choices: &[u8]) {
    let [kind, place @ .., bit] = choices.first_chunk::<6>().copied().unwrap_or_default();
    let commits = chosen(choices.get(6..).unwrap_or_default());
    let mut segment = written(&commits, usize::from(kind % 3) + 1, kind & 4 != 0);
    let whole = recover(&disk(&segment)).expect("what was written opens");
    assert_eq!(whole.len(), commits.len());
    let place = u32::from_le_bytes(place) as usize % segment.len();
    if kind & 8 == 0 {
        segment[place] ^= 1 << (bit % 8);
    } else {
        segment.truncate(place);
    }
    if let Some(left) = recover(&disk(&segment)) {
        let same = left.iter().zip(&whole).all(|(left, whole)| format!("{left:?}") == format!("{whole:?}"));
        assert!(left.len() <= whole.len() && same, "nothing that was not written");
    }
}

/// A group that was being written when the power went: everything before it is there, and it is there whole or not at all.
pub fn torn(choices: &[u8]) {
    let [kind, fate @ ..] = choices.first_chunk::<4>().copied().unwrap_or_default();
    let commits = chosen(choices.get(4..).unwrap_or_default());
    let group = usize::from(kind % 3) + 1;
    let durable = commits.len().saturating_sub(1) / group * group;
    let (before, all) = (written(&commits[..durable], group, false), written(&commits, group, false));
    let disk = disk(&before);
    let file = disk.open(Path::new(FIRST)).unwrap();
    // Page by page, as a system writes it.
    for (at, page) in all[before.len()..].chunks(64).enumerate() {
        write_all(&*file, (before.len() + at * 64) as u64, page).unwrap();
    }
    let mut at = 0;
    disk.crash(|_, _, bytes| {
        at += 1;
        match fate[at % fate.len()].rotate_left(at as u32) % 4 {
            0 => Crash::Lose,
            1 => Crash::Tear(bytes.len() / 2),
            _ => Crash::Keep,
        }
    });
    let left = recover(&disk).expect("a torn tail never keeps a log closed");
    assert!(left.len() == durable || left.len() == commits.len(), "{} of {durable}", left.len());
}

/// Values of the index, and snapshots.
pub fn index(bytes: &[u8]) {
    if let Some(spans) = block::unpack(bytes) {
        let mut packed = Vec::new();
        spans.iter().for_each(|span| block::push(&mut packed, span));
        assert_eq!(block::unpack(&packed), Some(spans));
    }
    let mut sealed = bytes.to_vec();
    if sealed.len() >= 4 {
        let crc = crc32c::crc32c(&sealed[4..]);
        sealed[..4].copy_from_slice(&crc.to_le_bytes());
    }
    for bytes in [bytes, &sealed] {
        if let Some(snapshot) = snapshots::decode(bytes) {
            assert_eq!(snapshots::decode(&snapshots::encode(&snapshot)), Some(snapshot));
        }
    }
}

/// Inputs to begin with, by target.
#[must_use]
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let choices = [35_u8, 1, 2, 3, 50, 3, 9, 9, 115, 4, 4, 4, 19, 2, 2, 2];
    let segment = written(&chosen(&choices), 2, true);
    let mut damage = vec![5, 200, 0, 0, 0, 3];
    damage.extend(choices);
    let mut block = Vec::new();
    let location = crate::log::segment::Location { segment: 1, offset: 128 };
    block::push(&mut block, &block::Span { revision: 3, count: 2, commit: 9, location });
    vec![
        ("log_segment", segment.clone()),
        ("log_segment", written(&chosen(&choices), 1, false)),
        ("log_records", segment[HEADER..].to_vec()),
        ("log_damage", damage.clone()),
        ("log_torn", damage),
        ("index_values", block),
    ]
}
