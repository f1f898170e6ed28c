//! What a power cut may leave of files that are not the log: an older index, read models without their last commits.

use ebb_tests::{Dice, copy_folder, files_in, remove_folder};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// What was done to a node's folder while it was down.
pub(super) fn after_power_loss(data: &Path, older_index: &Path, dice: &mut Dice) -> Vec<String> {
    let mut done = Vec::new();
    match dice.roll(0..5) {
        0 if older_index.is_dir() => {
            copy_folder(older_index, &data.join("index"));
            done.push("an older index".to_owned());
        }
        1 => {
            remove_folder(&data.join("index"));
            done.push("no index".to_owned());
        }
        2 => {
            if let Some(bytes) = zero_tail(&data.join("index/db"), dice) {
                done.push(format!("the index without its last {bytes} bytes"));
            }
        }
        _ => {}
    }
    for wal in files_in(data).into_iter().filter(|path| path.to_string_lossy().ends_with(".sqlite-wal")) {
        if dice.once_in(2)
            && let Some(cut) = cut_wal(&wal, dice)
        {
            done.push(format!("read models cut by {cut} bytes"));
        }
    }
    done
}

/// The last bytes of sled's file read as zeros: space that was given to the file, and not written before the power went.
fn zero_tail(path: &Path, dice: &mut Dice) -> Option<u64> {
    let file = OpenOptions::new().write(true).open(path).ok()?;
    let len = file.metadata().expect("a file").len();
    let bytes = dice.roll(1..len.min(64 << 10) + 1);
    file.write_all_at(&vec![0; bytes as usize], len - bytes).expect("a file");
    Some(bytes)
}

/// Takes away what SQLite had not synced: in WAL mode with `synchronous=NORMAL` that is everything behind the frames that
/// a checkpoint began to move into the database, for it syncs the WAL first.
fn cut_wal(wal: &Path, dice: &mut Dice) -> Option<u64> {
    /// Of the WAL's header and of a frame's.
    const HEADER: u64 = 32;
    const FRAME: u64 = 24;
    /// Where the shared memory says how many frames a checkpoint has tried to move.
    const BACKFILL_ATTEMPTED: usize = 128;
    let file = OpenOptions::new().read(true).write(true).open(wal).ok()?;
    let len = file.metadata().expect("a file").len();
    if len <= HEADER {
        return None;
    }
    let mut header = [0; HEADER as usize];
    file.read_exact_at(&mut header, 0).expect("a file");
    let page = u64::from(u32::from_be_bytes(header[8..12].try_into().expect("four bytes")));
    let shared = fs::read(PathBuf::from(wal.to_string_lossy().replace(".sqlite-wal", ".sqlite-shm"))).ok()?;
    let attempted = shared.get(BACKFILL_ATTEMPTED..BACKFILL_ATTEMPTED + 4)?;
    let attempted = u64::from(u32::from_ne_bytes(attempted.try_into().expect("four bytes")));
    let synced = HEADER + attempted * (FRAME + page);
    if synced >= len {
        return None;
    }
    let keep = dice.roll(synced..len);
    file.set_len(keep).expect("a file");
    Some(len - keep)
}
