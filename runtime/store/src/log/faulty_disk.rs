//! The operating system's files, with the faults that a test asks for; in builds with debug assertions only.
//!
//! A process that is killed leaves everything that it wrote in the system's page cache, synced or not. So this layer
//! remembers what was not synced yet, and takes it away again when the crash is to be a power loss: each such write is
//! lost, kept, torn, or scattered over its sectors, each such name is there or not, as a seed says.

use super::disk::{Disk, LogFile, RealDisk};
use parking_lot::{Mutex, MutexGuard};
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What a disk writes whole or not at all.
const SECTOR: usize = 512;

/// The operating system's files, with faults.
#[derive(Clone)]
pub(crate) struct FaultyDisk(Arc<Mutex<Unsynced>>);

/// What a power loss may take away.
#[derive(Default)]
struct Unsynced {
    files: HashMap<Inode, (File, Vec<Change>)>,
    names: Vec<(PathBuf, Name)>,
}

type Inode = (u64, u64);

/// A change of a file.
enum Change {
    Write { offset: u64, before: Vec<u8>, after: Vec<u8>, len_before: u64 },
    Len { before: u64, after: u64, cut: Vec<u8> },
}

/// A change of a folder.
enum Name {
    Made(PathBuf),
    Renamed {
        from: PathBuf,
        to: PathBuf,
    },
    /// With what was in it.
    Removed(PathBuf, Vec<u8>),
}

struct FaultyFile {
    inner: Arc<dyn LogFile>,
    handle: File,
    inode: Inode,
    disk: FaultyDisk,
}

impl FaultyDisk {
    pub(crate) fn new() -> Self {
        let disk = Self(Arc::default());
        let at_crash = disk.clone();
        ebb_faults::on_power_loss(move |seed| {
            let mut unsynced = at_crash.0.lock();
            // Half a restored file would look like corruption: there is no use in going on.
            unsynced.lose(&mut Dice(seed)).expect("what was not synced can be taken away");
            // Kept locked: nothing is written, synced or seen after the power went.
            MutexGuard::leak(unsynced);
        });
        disk
    }

    fn file(&self, path: &Path, inner: Arc<dyn LogFile>) -> io::Result<Arc<dyn LogFile>> {
        let handle = OpenOptions::new().read(true).write(true).open(path)?;
        let metadata = handle.metadata()?;
        let inode = (metadata.dev(), metadata.ino());
        Ok(Arc::new(FaultyFile { inner, handle, inode, disk: self.clone() }))
    }

    fn renamed(
        &self,
        path: &Path,
        change: impl FnOnce(&mut Vec<(PathBuf, Name)>, PathBuf) -> io::Result<()>,
    ) -> io::Result<()> {
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        change(&mut self.0.lock().names, folder)
    }
}

impl Unsynced {
    /// The power goes.
    fn lose(&mut self, dice: &mut Dice) -> io::Result<()> {
        for (_, (file, changes)) in std::mem::take(&mut self.files) {
            for change in changes.iter().rev() {
                change.undo(&file)?;
            }
            for change in &changes {
                change.redo(&file, dice)?;
            }
        }
        // Names become durable in the order of their changes.
        let names = std::mem::take(&mut self.names);
        let kept = dice.below(names.len() as u64 + 1) as usize;
        for (_, name) in names.into_iter().skip(kept).rev() {
            match name {
                Name::Made(path) => std::fs::remove_file(path)?,
                Name::Renamed { from, to } => std::fs::rename(to, from)?,
                Name::Removed(path, contents) => std::fs::write(path, contents)?,
            }
        }
        Ok(())
    }
}

impl Change {
    fn undo(&self, file: &File) -> io::Result<()> {
        match self {
            Self::Write { offset, before, len_before, .. } => {
                file.write_all_at(before, *offset)?;
                if file.metadata()?.len() > *len_before {
                    file.set_len(*len_before)?;
                }
            }
            Self::Len { before, after, cut } => {
                file.set_len(*before)?;
                file.write_all_at(cut, *after)?;
            }
        }
        Ok(())
    }

    fn redo(&self, file: &File, dice: &mut Dice) -> io::Result<()> {
        let fate = dice.below(4);
        match self {
            _ if fate == 0 => Ok(()),
            Self::Write { offset, after, .. } => match fate {
                1 => file.write_all_at(after, *offset),
                2 => file.write_all_at(&after[..dice.below(after.len() as u64 + 1) as usize], *offset),
                _ => scatter(file, *offset, after, dice),
            },
            Self::Len { after, .. } => file.set_len(*after),
        }
    }
}

/// Some of the sectors got to the disk, in no order.
fn scatter(file: &File, offset: u64, bytes: &[u8], dice: &mut Dice) -> io::Result<()> {
    let mut at = 0;
    while at < bytes.len() {
        let sector = SECTOR - (offset as usize + at) % SECTOR;
        let end = bytes.len().min(at + sector);
        if dice.below(2) == 0 {
            file.write_all_at(&bytes[at..end], offset + at as u64)?;
        }
        at = end;
    }
    Ok(())
}

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }
}

fn full() -> io::Result<()> {
    if ebb_faults::faults().is_some_and(|faults| faults.full) {
        return Err(io::ErrorKind::StorageFull.into());
    }
    Ok(())
}

impl FaultyFile {
    /// Makes a change that can be taken back.
    fn change<T>(
        &self,
        change: impl FnOnce() -> io::Result<T>,
        what: impl FnOnce(&T) -> io::Result<Change>,
    ) -> io::Result<T> {
        let mut unsynced = self.disk.0.lock();
        let changed = change()?;
        let change = what(&changed)?;
        if let Some((_, changes)) = unsynced.files.get_mut(&self.inode) {
            changes.push(change);
        } else {
            unsynced.files.insert(self.inode, (self.handle.try_clone()?, vec![change]));
        }
        Ok(changed)
    }

    fn change_len(&self, change: impl FnOnce() -> io::Result<()>, wanted: u64) -> io::Result<()> {
        let before = self.inner.len()?;
        let mut cut = Vec::new();
        if wanted < before {
            self.inner.read_at(wanted, (before - wanted) as usize, &mut cut)?;
        }
        self.change(change, |()| Ok(Change::Len { before, after: self.inner.len()?, cut }))
    }

    fn sync(&self, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let mut unsynced = self.disk.0.lock();
        if ebb_faults::faults().is_some_and(|faults| faults.fail_sync) {
            return Err(io::Error::other("the disk reports an error, as a test asked for"));
        }
        sync()?;
        unsynced.files.remove(&self.inode);
        Ok(())
    }
}

impl LogFile for FaultyFile {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read_at(&self, offset: u64, len: usize, into: &mut Vec<u8>) -> io::Result<()> {
        self.inner.read_at(offset, len, into)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        full()?;
        let len_before = self.inner.len()?;
        let mut before = Vec::new();
        self.inner.read_at(offset, bytes.len(), &mut before)?;
        self.change(
            || self.inner.write_at(offset, bytes),
            |written| Ok(Change::Write { offset, before, after: bytes[..*written].to_vec(), len_before }),
        )
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync(|| self.inner.sync_data())
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync(|| self.inner.sync_all())
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        full()?;
        self.change_len(|| self.inner.allocate(len), u64::MAX)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change_len(|| self.inner.set_len(len), len)
    }
}

impl Disk for FaultyDisk {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn LogFile>> {
        self.file(path, RealDisk.open(path)?)
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn LogFile>> {
        full()?;
        if path.exists() {
            self.remove(path)?;
        }
        let mut made = None;
        self.renamed(path, |names, folder| {
            made = Some(RealDisk.create(path)?);
            names.push((folder, Name::Made(path.to_owned())));
            Ok(())
        })?;
        self.file(path, made.expect("it was made"))
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        RealDisk.list(folder)
    }

    fn create_folder(&self, folder: &Path) -> io::Result<()> {
        RealDisk.create_folder(folder)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        if to.exists() {
            self.remove(to)?;
        }
        self.renamed(from, |names, folder| {
            RealDisk.rename(from, to)?;
            names.push((folder, Name::Renamed { from: from.to_owned(), to: to.to_owned() }));
            Ok(())
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.renamed(path, |names, folder| {
            let contents = std::fs::read(path)?;
            RealDisk.remove(path)?;
            names.push((folder, Name::Removed(path.to_owned(), contents)));
            Ok(())
        })
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        let mut unsynced = self.0.lock();
        RealDisk.sync_folder(folder)?;
        unsynced.names.retain(|(changed, _)| changed != folder);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(file: &dyn LogFile) -> Vec<u8> {
        let mut bytes = Vec::new();
        file.read_at(0, 1 << 20, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_power_loss_takes_only_what_was_not_synced() {
        let (mut lost, mut kept, mut torn) = (0, 0, 0);
        for seed in 0..100 {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("file");
            let disk = FaultyDisk(Arc::default());
            let file = disk.create(&path).unwrap();
            file.allocate(4096).unwrap();
            file.write_at(0, b"durable").unwrap();
            file.sync_data().unwrap();
            disk.sync_folder(folder.path()).unwrap();
            file.write_at(4, &[b'x'; 2000]).unwrap();
            file.write_at(0, b"D").unwrap();
            file.set_len(3000).unwrap();
            disk.create(&folder.path().join("new")).unwrap();

            disk.0.lock().lose(&mut Dice(seed)).unwrap();
            let bytes = read(&*file);
            assert!(bytes.starts_with(b"dura") || bytes.starts_with(b"Dura") || bytes[4] == b'x');
            assert!([3000, 4096].contains(&bytes.len()), "{}", bytes.len());
            assert!(bytes[2004..].iter().all(|byte| *byte == 0));
            let written = bytes[4..2004].iter().filter(|byte| **byte == b'x').count();
            match written {
                0 => lost += 1,
                2000 => kept += 1,
                _ => torn += 1,
            }
            if written == 0 {
                assert_eq!(&bytes[4..7], b"ble", "what lay there before is there again");
            }
        }
        assert!(lost > 0 && kept > 0 && torn > 0, "{lost} lost, {kept} kept, {torn} torn");
    }

    #[test]
    fn names_that_are_not_durable_are_undone_from_the_last_one_on() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..50 {
            let folder = tempfile::tempdir().unwrap();
            let path = |name: &str| folder.path().join(name);
            let disk = FaultyDisk(Arc::default());
            disk.create(&path("old")).unwrap();
            disk.sync_folder(folder.path()).unwrap();
            disk.create(&path("a.new")).unwrap();
            disk.rename(&path("a.new"), &path("a")).unwrap();
            disk.remove(&path("old")).unwrap();
            disk.0.lock().lose(&mut Dice(seed)).unwrap();
            let mut names = disk.list(folder.path()).unwrap();
            names.sort();
            seen.insert(names.join(" "));
        }
        let expected = ["a", "a old", "a.new old", "old"].map(String::from);
        assert_eq!(seen, expected.into());
    }
}
