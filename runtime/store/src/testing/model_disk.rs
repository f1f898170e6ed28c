//! A disk in memory that knows written from durable.

use crate::log::disk::{Disk, LogFile};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What a crash does with one write that was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// It is lost.
    Lose,
    /// It happens to be on the disk.
    Keep,
    /// Only its first bytes are.
    Tear(usize),
}

/// A disk in memory. Clones are the same disk.
#[derive(Clone, Default)]
pub struct ModelDisk(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    names: BTreeMap<PathBuf, Arc<Mutex<File>>>,
    durable_names: BTreeMap<PathBuf, Arc<Mutex<File>>>,
    folders: BTreeSet<PathBuf>,
    /// Bytes that files may still grow by.
    space: Option<u64>,
    /// The longest write that is taken whole.
    longest_write: Option<usize>,
    failing_syncs: u32,
    syncs: u64,
}

#[derive(Default)]
struct File {
    now: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<Change>,
    /// What a failed sync left behind: it reads well, and no later sync writes it, unless it is written to again.
    stuck: Vec<Change>,
}

enum Change {
    Write(u64, Vec<u8>),
    Len(u64),
}

impl Change {
    fn apply(&self, to: &mut Vec<u8>) {
        match self {
            Self::Write(offset, bytes) => put(to, *offset, bytes),
            Self::Len(len) => to.resize(*len as usize, 0),
        }
    }

    fn meets(&self, offset: u64, len: usize) -> bool {
        let Self::Write(start, bytes) = self else { return false };
        *start < offset + len as u64 && offset < start + bytes.len() as u64
    }
}

impl File {
    fn write(&mut self, offset: u64, bytes: &[u8]) {
        put(&mut self.now, offset, bytes);
        let written_again = self.stuck.extract_if(.., |change| change.meets(offset, bytes.len()));
        self.unsynced.extend(written_again);
        self.unsynced.push(Change::Write(offset, bytes.to_vec()));
    }

    fn set_len(&mut self, len: u64) {
        self.now.resize(len as usize, 0);
        self.unsynced.push(Change::Len(len));
    }

    fn sync(&mut self) {
        self.unsynced.drain(..).for_each(|change| change.apply(&mut self.durable));
        // Journalled, so it is there once anything is.
        self.durable.resize(self.now.len(), 0);
    }
}

struct Handle {
    disk: ModelDisk,
    file: Arc<Mutex<File>>,
}

impl ModelDisk {
    /// An empty disk.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets files grow by so many bytes in all and no more; none: without bound.
    pub fn limit_space(&self, bytes: Option<u64>) {
        self.0.lock().space = bytes;
    }

    /// Takes at most so many bytes of each write; none: all.
    pub fn shorten_writes(&self, bytes: Option<usize>) {
        self.0.lock().longest_write = bytes;
    }

    /// Fails the next syncs, of files and of folders.
    pub fn fail_syncs(&self, count: u32) {
        self.0.lock().failing_syncs = count;
    }

    /// How many syncs of files there were.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.0.lock().syncs
    }

    /// The power goes: names and bytes that were not synced meet the fate that `fate` gives them, in the order of writing.
    pub fn crash(&self, mut fate: impl FnMut(&Path, u64, &[u8]) -> Crash) {
        let mut state = self.0.lock();
        state.names = state.durable_names.clone();
        for (path, file) in &state.names {
            let mut file = file.lock();
            let mut changes = std::mem::take(&mut file.stuck);
            changes.append(&mut file.unsynced);
            for change in changes {
                match change {
                    Change::Write(offset, bytes) => {
                        let kept = match fate(path, offset, &bytes) {
                            Crash::Lose => 0,
                            Crash::Keep => bytes.len(),
                            Crash::Tear(at) => at.min(bytes.len()),
                        };
                        put(&mut file.durable, offset, &bytes[..kept]);
                    }
                    Change::Len(len) => {
                        if fate(path, len, &[]) == Crash::Keep {
                            file.durable.resize(len as usize, 0);
                        }
                    }
                }
            }
            file.now = file.durable.clone();
        }
    }

    /// Changes a file's bytes behind the log's back.
    ///
    /// # Panics
    /// The file is not there.
    pub fn tamper(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let file = Arc::clone(&self.0.lock().names[path]);
        let mut file = file.lock();
        change(&mut file.now);
        file.durable = file.now.clone();
        (file.unsynced, file.stuck) = (Vec::new(), Vec::new());
    }

    /// A file's bytes.
    ///
    /// # Panics
    /// The file is not there.
    #[must_use]
    pub fn bytes(&self, path: &Path) -> Vec<u8> {
        let file = Arc::clone(&self.0.lock().names[path]);
        file.lock().now.clone()
    }

    /// All files, in order of name.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        self.0.lock().names.keys().cloned().collect()
    }

    /// A disk with the same files.
    #[must_use]
    pub fn copy(&self) -> Self {
        let copy = Self::new();
        {
            let (from, mut to) = (self.0.lock(), copy.0.lock());
            to.folders = from.folders.clone();
            for (path, file) in &from.names {
                let now = file.lock().now.clone();
                let file = File { durable: now.clone(), now, ..File::default() };
                to.names.insert(path.clone(), Arc::new(Mutex::new(file)));
            }
            to.durable_names = to.names.clone();
        }
        copy
    }

    fn count_sync(&self) -> io::Result<()> {
        let mut state = self.0.lock();
        if state.failing_syncs > 0 {
            state.failing_syncs -= 1;
            return Err(io::Error::other("the disk reports an error"));
        }
        state.syncs += 1;
        Ok(())
    }

    fn grow(&self, by: u64) -> io::Result<()> {
        let mut state = self.0.lock();
        match &mut state.space {
            Some(space) if *space < by => return Err(io::ErrorKind::StorageFull.into()),
            Some(space) => *space -= by,
            None => {}
        }
        Ok(())
    }
}

fn put(data: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let (start, end) = (offset as usize, offset as usize + bytes.len());
    if !bytes.is_empty() {
        data.resize(data.len().max(end), 0);
        data[start..end].copy_from_slice(bytes);
    }
}

fn not_there(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("{} is not there", path.display()))
}

impl LogFile for Handle {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.lock().now.len() as u64)
    }

    fn read_at(&self, offset: u64, len: usize, into: &mut Vec<u8>) -> io::Result<()> {
        let file = self.file.lock();
        let start = (offset as usize).min(file.now.len());
        let end = start.saturating_add(len).min(file.now.len());
        into.extend_from_slice(&file.now[start..end]);
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        let most = self.disk.0.lock().longest_write.unwrap_or(usize::MAX);
        let bytes = &bytes[..bytes.len().min(most)];
        let grown = (offset + bytes.len() as u64).saturating_sub(self.file.lock().now.len() as u64);
        self.disk.grow(grown)?;
        let mut file = self.file.lock();
        file.write(offset, bytes);
        Ok(bytes.len())
    }

    fn sync_data(&self) -> io::Result<()> {
        let synced = self.disk.count_sync();
        let mut file = self.file.lock();
        match synced {
            Ok(()) => file.sync(),
            Err(_) => {
                let unsynced = std::mem::take(&mut file.unsynced);
                file.stuck.extend(unsynced);
            }
        }
        synced
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let held = self.len()?;
        if held < len {
            self.disk.grow(len - held)?;
            self.file.lock().set_len(len);
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let held = self.len()?;
        if len > held {
            self.disk.grow(len - held)?;
        } else if let Some(space) = &mut self.disk.0.lock().space {
            *space += held - len;
        }
        self.file.lock().set_len(len);
        Ok(())
    }
}

impl Disk for ModelDisk {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn LogFile>> {
        let file = self.0.lock().names.get(path).cloned().ok_or_else(|| not_there(path))?;
        Ok(Arc::new(Handle { disk: self.clone(), file }))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn LogFile>> {
        let file = Arc::new(Mutex::new(File::default()));
        self.0.lock().names.insert(path.to_owned(), Arc::clone(&file));
        Ok(Arc::new(Handle { disk: self.clone(), file }))
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        let state = self.0.lock();
        if !state.folders.contains(folder) {
            return Err(not_there(folder));
        }
        let inside = state.names.keys().filter(|path| path.parent() == Some(folder));
        Ok(inside.filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned())).collect())
    }

    fn create_folder(&self, folder: &Path) -> io::Result<()> {
        self.0.lock().folders.insert(folder.to_owned());
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        let file = state.names.remove(from).ok_or_else(|| not_there(from))?;
        state.names.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.0.lock().names.remove(path).map(|_| ()).ok_or_else(|| not_there(path))
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        self.count_sync()?;
        let mut state = self.0.lock();
        let inside = |path: &PathBuf| path.parent() == Some(folder);
        state.durable_names.retain(|path, _| !inside(path));
        let named: Vec<_> = state
            .names
            .iter()
            .filter(|(path, _)| inside(path))
            .map(|(p, f)| (p.clone(), Arc::clone(f)))
            .collect();
        state.durable_names.extend(named);
        Ok(())
    }
}
