//! The disk as one life of a node sees it. Writes reach it sector by sector, each with a fate of its own. At a moment
//! that the seed chose the node ends, in the middle of a write or of a sync, and from then on nothing works.

use crate::dice::Dice;
use ebb_store::log::disk::{Disk, LogFile};
use ebb_store::testing::ModelDisk;
use parking_lot::Mutex;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use tokio::sync::Notify;

/// What a disk writes whole or not at all.
const SECTOR: u64 = 512;

/// Whether there is power.
#[derive(Clone)]
pub(crate) struct Power(Arc<State>);

struct State {
    off: AtomicBool,
    gone: Notify,
    /// Changes of the disk until it goes; none: it does not go by itself.
    left: Mutex<Option<u64>>,
    /// Writes that find the disk full.
    full: AtomicU32,
    dice: Dice,
    trace: Mutex<DefaultHasher>,
}

impl Power {
    pub(crate) fn new(calls: Option<u64>, dice: Dice) -> Self {
        let state = State {
            off: AtomicBool::new(false),
            gone: Notify::new(),
            left: Mutex::new(calls),
            full: AtomicU32::new(0),
            dice,
            trace: Mutex::default(),
        };
        Self(Arc::new(state))
    }

    /// The next so many writes find the disk full, each in its middle.
    pub(crate) fn fill_up(&self, writes: u32) {
        self.0.full.store(writes, Ordering::SeqCst);
    }

    /// A digest of all that the disk was asked to do.
    pub(crate) fn traced(&self) -> u64 {
        self.0.trace.lock().finish()
    }

    pub(crate) fn is_off(&self) -> bool {
        self.0.off.load(Ordering::SeqCst)
    }

    pub(crate) fn cut(&self) {
        self.0.off.store(true, Ordering::SeqCst);
        self.0.gone.notify_waiters();
    }

    pub(crate) async fn gone(&self) {
        let gone = self.0.gone.notified();
        if !self.is_off() {
            gone.await;
        }
    }

    /// A call that changes nothing.
    fn look(&self, what: &str, place: u64) -> io::Result<()> {
        (what, place).hash(&mut *self.0.trace.lock());
        if self.is_off() { Err(no_power()) } else { Ok(()) }
    }

    /// A call that changes the disk: true if it is the one in which the power goes.
    fn call(&self, what: &str, place: u64) -> io::Result<bool> {
        self.look(what, place)?;
        let mut left = self.0.left.lock();
        let Some(calls) = left.as_mut() else { return Ok(false) };
        if *calls > 0 {
            *calls -= 1;
            return Ok(false);
        }
        drop(left);
        self.cut();
        Ok(true)
    }

    /// A call that is done or not when the power goes in it.
    fn whole<T>(&self, what: &str, call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        if self.call(what, 0)? {
            if self.0.dice.chance(50) {
                let _ = call();
            }
            return Err(no_power());
        }
        call()
    }

    /// Whether this write finds the disk full.
    fn is_full(&self) -> bool {
        let less = |writes: u32| writes.checked_sub(1);
        self.0.full.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).is_ok()
    }
}

fn no_power() -> io::Error {
    io::Error::other("there is no power")
}

/// The disk with its power.
pub(crate) struct PoweredDisk {
    pub(crate) disk: ModelDisk,
    pub(crate) power: Power,
}

struct PoweredFile {
    file: Arc<dyn LogFile>,
    power: Power,
}

impl PoweredDisk {
    fn file(&self, file: Arc<dyn LogFile>) -> Arc<dyn LogFile> {
        Arc::new(PoweredFile { file, power: self.power.clone() })
    }
}

impl Disk for PoweredDisk {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn LogFile>> {
        self.power.look("open", 0)?;
        Ok(self.file(self.disk.open(path)?))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn LogFile>> {
        self.power.whole("create", || self.disk.create(path)).map(|file| self.file(file))
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        self.power.look("list", 0)?;
        self.disk.list(folder)
    }

    fn create_folder(&self, folder: &Path) -> io::Result<()> {
        self.power.whole("create_folder", || self.disk.create_folder(folder))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.power.whole("rename", || self.disk.rename(from, to))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.power.whole("remove", || self.disk.remove(path))
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        self.power.whole("sync_folder", || self.disk.sync_folder(folder))
    }
}

impl LogFile for PoweredFile {
    fn len(&self) -> io::Result<u64> {
        self.power.look("len", 0)?;
        self.file.len()
    }

    fn read_at(&self, offset: u64, len: usize, into: &mut Vec<u8>) -> io::Result<()> {
        self.power.look("read", offset)?;
        self.file.read_at(offset, len, into)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        let goes = self.power.call("write", offset)?;
        let full = self.power.is_full();
        let most = if goes || full { self.power.0.dice.index(bytes.len() + 1) } else { bytes.len() };
        let mut written = 0;
        while written < most {
            let at = offset + written as u64;
            let len = ((SECTOR - at % SECTOR) as usize).min(most - written);
            let taken = self.file.write_at(at, &bytes[written..written + len])?;
            written += taken;
            if taken < len {
                break;
            }
        }
        match (goes, full) {
            (true, _) => Err(no_power()),
            (_, true) => Err(io::ErrorKind::StorageFull.into()),
            _ => Ok(written),
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        self.power.whole("sync_data", || self.file.sync_data())
    }

    fn sync_all(&self) -> io::Result<()> {
        self.power.whole("sync_all", || self.file.sync_all())
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.power.whole("allocate", || self.file.allocate(len))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.power.whole("set_len", || self.file.set_len(len))
    }
}
