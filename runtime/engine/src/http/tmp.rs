//! `/tmp` of an instance: folders and files in memory, gone with the instance, together no larger than the function was
//! granted. What they take is taken of the node's memory.

use crate::budget::Charge;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::Arc;
use std::time::SystemTime;
use wasmtime_wasi::p2::bindings::filesystem::types::ErrorCode;

/// Bytes of a file that are there or not: a hole takes nothing.
const PAGE: u64 = 4096;
/// What a file or folder takes by itself, its name included.
const ENTRY: u64 = 1024;
/// The longest name, as everywhere.
const NAME_BYTES: usize = 255;
const PATH_BYTES: usize = 4096;

type Result<T> = std::result::Result<T, ErrorCode>;
type Id = u64;
/// Of a file, by their place in it.
type Pages = BTreeMap<u64, Box<[u8; PAGE as usize]>>;

/// The folder itself.
const ROOT: Id = 0;

/// All that is in an instance's `/tmp`.
#[derive(Clone)]
pub(super) struct Tmp(Arc<Mutex<Tree>>);

struct Tree {
    entries: HashMap<Id, Entry>,
    next: Id,
    limit: u64,
    taken: Charge,
}

struct Entry {
    content: Content,
    /// The folder that it is in; none once it was removed.
    parent: Option<Id>,
    /// Who has it open: it is there for them, also when it was removed.
    open: u32,
    times: Times,
}

enum Content {
    File { pages: Pages, size: u64 },
    Folder(BTreeMap<String, Id>),
}

/// When something was last read, last written, and last changed in any way.
#[derive(Clone, Copy)]
pub(super) struct Times {
    pub(super) read: SystemTime,
    pub(super) written: SystemTime,
    pub(super) changed: SystemTime,
}

/// What is known of an entry.
pub(super) struct Stat {
    pub(super) id: u64,
    pub(super) is_folder: bool,
    pub(super) size: u64,
    pub(super) times: Times,
}

/// How something is opened.
#[derive(Clone, Copy, Default)]
pub(super) struct Opening {
    /// Made if it is not there.
    pub(super) create: bool,
    /// Only if it is not there.
    pub(super) exclusive: bool,
    /// Emptied.
    pub(super) truncate: bool,
    /// Only a folder.
    pub(super) folder: bool,
    /// To be written to.
    pub(super) write: bool,
}

/// An open file or folder.
pub(super) struct Handle {
    tmp: Tmp,
    id: Id,
    may_write: bool,
}

impl Clone for Handle {
    fn clone(&self) -> Self {
        Handle::new(&self.tmp, &mut self.tmp.0.lock(), self.id, self.may_write)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let mut tree = self.tmp.0.lock();
        if let Some(entry) = tree.entries.get_mut(&self.id) {
            entry.open -= 1;
        }
        tree.forget_unused(self.id);
    }
}

/// Where a path leads: a folder, and a name in it; without one, the folder itself.
struct Place<'p> {
    folder: Id,
    name: Option<&'p str>,
    /// It ends as only a folder's may: with a slash.
    is_folder: bool,
}

impl Tmp {
    /// An empty folder for so many bytes, which are taken of the node's memory as they are used.
    pub(super) fn new(limit: u64, taken: Charge) -> Self {
        let folder = Entry::new(Content::Folder(BTreeMap::new()), None);
        let entries = HashMap::from([(ROOT, folder)]);
        Self(Arc::new(Mutex::new(Tree { entries, next: ROOT + 1, limit, taken })))
    }

    /// The folder, opened.
    pub(super) fn root(&self) -> Handle {
        Handle::new(self, &mut self.0.lock(), ROOT, true)
    }
}

impl Entry {
    fn new(content: Content, parent: Option<Id>) -> Self {
        let now = SystemTime::now();
        Self { content, parent, open: 0, times: Times { read: now, written: now, changed: now } }
    }

    fn was_written(&mut self) {
        let now = SystemTime::now();
        (self.times.written, self.times.changed) = (now, now);
    }

    fn bytes(&self) -> u64 {
        ENTRY
            + match &self.content {
                Content::File { pages, .. } => pages.len() as u64 * PAGE,
                Content::Folder(_) => 0,
            }
    }
}

impl Tree {
    fn take(&mut self, bytes: u64) -> Result<()> {
        if self.taken.bytes().saturating_add(bytes) > self.limit {
            return Err(ErrorCode::InsufficientSpace);
        }
        self.taken.grow(bytes).map_err(|_| ErrorCode::InsufficientSpace)
    }

    fn entry(&mut self, id: Id) -> Result<&mut Entry> {
        self.entries.get_mut(&id).ok_or(ErrorCode::NoEntry)
    }

    fn folder(&mut self, id: Id) -> Result<&mut BTreeMap<String, Id>> {
        match &mut self.entry(id)?.content {
            Content::Folder(names) => Ok(names),
            Content::File { .. } => Err(ErrorCode::NotDirectory),
        }
    }

    fn file(&mut self, id: Id) -> Result<(&mut Pages, &mut u64)> {
        match &mut self.entry(id)?.content {
            Content::File { pages, size } => Ok((pages, size)),
            Content::Folder(_) => Err(ErrorCode::IsDirectory),
        }
    }

    fn is_folder(&mut self, id: Id) -> bool {
        self.folder(id).is_ok()
    }

    /// Where a path leads, from a folder on, and never out of it.
    fn place<'p>(&mut self, from: Id, path: &'p str) -> Result<Place<'p>> {
        if path.is_empty() {
            return Err(ErrorCode::NoEntry);
        }
        if path.starts_with('/') {
            return Err(ErrorCode::NotPermitted);
        }
        if path.len() > PATH_BYTES {
            return Err(ErrorCode::NameTooLong);
        }
        let is_folder = path.ends_with('/') || path.ends_with("/.");
        let (mut above, mut folder, mut name) = (Vec::new(), from, None::<&str>);
        for part in path.split('/').filter(|part| !part.is_empty() && *part != ".") {
            if let Some(name) = name.take() {
                let inner = *self.folder(folder)?.get(name).ok_or(ErrorCode::NoEntry)?;
                above.push(folder);
                folder = inner;
            }
            match part {
                ".." => {
                    self.folder(folder)?;
                    folder = above.pop().ok_or(ErrorCode::NotPermitted)?;
                }
                part if part.len() > NAME_BYTES => return Err(ErrorCode::NameTooLong),
                part => name = Some(part),
            }
        }
        self.folder(folder)?;
        Ok(Place { folder, name, is_folder })
    }

    /// What a place has.
    fn at(&mut self, place: &Place<'_>) -> Result<Id> {
        let Some(name) = place.name else { return Ok(place.folder) };
        let id = *self.folder(place.folder)?.get(name).ok_or(ErrorCode::NoEntry)?;
        if place.is_folder { self.folder(id).map(|_| id) } else { Ok(id) }
    }

    /// Makes something with a name in a folder that does not have it.
    fn make(&mut self, folder: Id, name: &str, content: Content) -> Result<Id> {
        if folder != ROOT && self.entry(folder)?.parent.is_none() {
            // It was removed: nobody could ever find what is put into it.
            return Err(ErrorCode::NoEntry);
        }
        self.take(ENTRY)?;
        let id = self.next;
        self.next += 1;
        self.entries.insert(id, Entry::new(content, Some(folder)));
        self.folder(folder)?.insert(name.to_owned(), id);
        self.entry(folder)?.was_written();
        Ok(id)
    }

    /// Takes an entry out of its folder.
    fn unlink(&mut self, place: &Place<'_>, id: Id) -> Result<()> {
        let name = place.name.ok_or(ErrorCode::Invalid)?;
        self.folder(place.folder)?.remove(name);
        self.entry(place.folder)?.was_written();
        self.entry(id)?.parent = None;
        self.forget_unused(id);
        Ok(())
    }

    /// What is in no folder, and open for nobody, is gone.
    fn forget_unused(&mut self, id: Id) {
        let is_unused = |entry: &Entry| id != ROOT && entry.parent.is_none() && entry.open == 0;
        if self.entries.get(&id).is_some_and(is_unused)
            && let Some(entry) = self.entries.remove(&id)
        {
            self.taken.shrink(entry.bytes());
        }
    }

    /// Whether a folder is another, or somewhere in it.
    fn is_within(&self, mut id: Id, other: Id) -> bool {
        loop {
            if id == other {
                return true;
            }
            match self.entries.get(&id).and_then(|entry| entry.parent) {
                Some(parent) => id = parent,
                None => return false,
            }
        }
    }

    fn resize(&mut self, id: Id, to: u64) -> Result<()> {
        if to > self.limit {
            return Err(ErrorCode::InsufficientSpace);
        }
        let (pages, size) = self.file(id)?;
        let before = pages.len();
        *size = to;
        drop(pages.split_off(&to.div_ceil(PAGE)));
        // What comes behind the end, should the file grow again, is zero.
        if let Some(last) = pages.get_mut(&(to / PAGE)) {
            last[(to % PAGE) as usize..].fill(0);
        }
        let freed = (before - pages.len()) as u64 * PAGE;
        self.taken.shrink(freed);
        self.entry(id)?.was_written();
        Ok(())
    }
}

impl Handle {
    fn new(tmp: &Tmp, tree: &mut Tree, id: Id, may_write: bool) -> Self {
        if let Some(entry) = tree.entries.get_mut(&id) {
            entry.open += 1;
        }
        Self { tmp: tmp.clone(), id, may_write }
    }

    pub(super) fn may_write(&self) -> bool {
        self.may_write
    }

    fn check_write(&self) -> Result<()> {
        if self.may_write { Ok(()) } else { Err(ErrorCode::NotPermitted) }
    }

    /// Whether both are the same file or folder.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.id == other.id && Arc::ptr_eq(&self.tmp.0, &other.tmp.0)
    }

    pub(super) fn stat(&self) -> Result<Stat> {
        self.tmp.0.lock().stat(self.id)
    }

    pub(super) fn stat_at(&self, path: &str) -> Result<Stat> {
        let mut tree = self.tmp.0.lock();
        let place = tree.place(self.id, path)?;
        let id = tree.at(&place)?;
        tree.stat(id)
    }

    pub(super) fn open(&self, path: &str, opening: Opening) -> Result<Self> {
        let changes = opening.write || opening.create || opening.truncate;
        if changes {
            self.check_write()?;
        }
        let mut tree = self.tmp.0.lock();
        let place = tree.place(self.id, path)?;
        let id = match tree.at(&place) {
            Ok(_) if opening.exclusive && opening.create => return Err(ErrorCode::Exist),
            Ok(id) => id,
            Err(ErrorCode::NoEntry) if opening.create && !opening.folder && !place.is_folder => {
                let name = place.name.ok_or(ErrorCode::IsDirectory)?;
                tree.make(place.folder, name, Content::File { pages: BTreeMap::new(), size: 0 })?
            }
            Err(error) => return Err(error),
        };
        let is_folder = tree.is_folder(id);
        if opening.folder && !is_folder {
            return Err(ErrorCode::NotDirectory);
        }
        if opening.truncate {
            tree.resize(id, 0)?;
        }
        // What is made in a folder is asked of the folder that a guest was given.
        let may_write = if is_folder { self.may_write } else { opening.write };
        Ok(Handle::new(&self.tmp, &mut tree, id, may_write))
    }

    pub(super) fn make_folder(&self, path: &str) -> Result<()> {
        self.check_write()?;
        let mut tree = self.tmp.0.lock();
        let place = tree.place(self.id, path)?;
        let Some(name) = place.name else { return Err(ErrorCode::Exist) };
        if tree.folder(place.folder)?.contains_key(name) {
            return Err(ErrorCode::Exist);
        }
        tree.make(place.folder, name, Content::Folder(BTreeMap::new())).map(drop)
    }

    pub(super) fn remove_folder(&self, path: &str) -> Result<()> {
        self.check_write()?;
        let mut tree = self.tmp.0.lock();
        let place = tree.place(self.id, path)?;
        let id = tree.at(&place)?;
        if !tree.folder(id)?.is_empty() {
            return Err(ErrorCode::NotEmpty);
        }
        tree.unlink(&place, id)
    }

    pub(super) fn remove_file(&self, path: &str) -> Result<()> {
        self.check_write()?;
        let mut tree = self.tmp.0.lock();
        let place = tree.place(self.id, path)?;
        let id = tree.at(&place)?;
        tree.file(id)?;
        tree.unlink(&place, id)
    }

    pub(super) fn rename(&self, from: &str, to: &Self, path: &str) -> Result<()> {
        self.check_write()?;
        to.check_write()?;
        if !Arc::ptr_eq(&self.tmp.0, &to.tmp.0) {
            return Err(ErrorCode::NotPermitted);
        }
        let mut tree = self.tmp.0.lock();
        let (from, to) = (tree.place(self.id, from)?, tree.place(to.id, path)?);
        let (Some(old), Some(name)) = (from.name, to.name) else { return Err(ErrorCode::Busy) };
        let id = tree.at(&from)?;
        let is_folder = tree.is_folder(id);
        if to.is_folder && !is_folder {
            return Err(ErrorCode::NotDirectory);
        }
        if is_folder && tree.is_within(to.folder, id) {
            return Err(ErrorCode::Invalid);
        }
        if to.folder != ROOT && tree.entry(to.folder)?.parent.is_none() {
            return Err(ErrorCode::NoEntry);
        }
        if let Some(there) = tree.folder(to.folder)?.get(name).copied() {
            if there == id {
                return Ok(());
            }
            match (is_folder, tree.is_folder(there)) {
                (true, false) => return Err(ErrorCode::NotDirectory),
                (false, true) => return Err(ErrorCode::IsDirectory),
                (true, true) if !tree.folder(there)?.is_empty() => return Err(ErrorCode::NotEmpty),
                _ => tree.unlink(&to, there)?,
            }
        }
        tree.folder(from.folder)?.remove(old);
        tree.entry(from.folder)?.was_written();
        tree.folder(to.folder)?.insert(name.to_owned(), id);
        tree.entry(to.folder)?.was_written();
        tree.entry(id)?.parent = Some(to.folder);
        Ok(())
    }

    /// The name in a folder that comes next after this one, and whether it is a folder's.
    pub(super) fn next_name(&self, after: Option<&str>) -> Result<Option<(String, bool)>> {
        let mut tree = self.tmp.0.lock();
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let next = tree.folder(self.id)?.range::<str, _>((from, Bound::Unbounded)).next();
        let next = next.map(|(name, id)| (name.clone(), *id));
        Ok(next.map(|(name, id)| (name, tree.is_folder(id))))
    }

    /// Bytes from a place on, `most` at most; none at the end.
    pub(super) fn read(&self, at: u64, most: usize) -> Result<Vec<u8>> {
        let mut tree = self.tmp.0.lock();
        let (pages, size) = tree.file(self.id)?;
        let end = at.saturating_add(most as u64).min(*size);
        let mut bytes = Vec::with_capacity(end.saturating_sub(at) as usize);
        let mut at = at;
        while at < end {
            let within = (at % PAGE) as usize;
            let length = (PAGE as usize - within).min((end - at) as usize);
            match pages.get(&(at / PAGE)) {
                Some(page) => bytes.extend_from_slice(&page[within..within + length]),
                None => bytes.resize(bytes.len() + length, 0),
            }
            at += length as u64;
        }
        tree.entry(self.id)?.times.read = SystemTime::now();
        Ok(bytes)
    }

    /// Writes all of the bytes, or none where there is no space for them; behind the end where no place is given.
    pub(super) fn write(&self, at: Option<u64>, bytes: &[u8]) -> Result<()> {
        self.check_write()?;
        let mut tree = self.tmp.0.lock();
        let limit = tree.limit;
        let (pages, size) = tree.file(self.id)?;
        let from = at.unwrap_or(*size);
        let end = from.checked_add(bytes.len() as u64).filter(|end| *end <= limit);
        let end = end.ok_or(ErrorCode::InsufficientSpace)?;
        if bytes.is_empty() {
            return Ok(());
        }
        let touched = from / PAGE..=(end - 1) / PAGE;
        let there = pages.range(touched.clone()).count() as u64;
        let new = (touched.end() - touched.start() + 1 - there) * PAGE;
        tree.take(new)?;
        let (pages, size) = tree.file(self.id)?;
        let (mut at, mut left) = (from, bytes);
        while !left.is_empty() {
            let within = (at % PAGE) as usize;
            let (now, later) = left.split_at(left.len().min(PAGE as usize - within));
            let page = pages.entry(at / PAGE).or_insert_with(|| Box::new([0; PAGE as usize]));
            page[within..within + now.len()].copy_from_slice(now);
            at += now.len() as u64;
            left = later;
        }
        *size = end.max(*size);
        tree.entry(self.id)?.was_written();
        Ok(())
    }

    pub(super) fn set_size(&self, size: u64) -> Result<()> {
        self.check_write()?;
        self.tmp.0.lock().resize(self.id, size)
    }

    /// Sets what is given of when it was last read and written.
    pub(super) fn set_times(&self, read: Option<SystemTime>, written: Option<SystemTime>) -> Result<()> {
        self.check_write()?;
        let mut tree = self.tmp.0.lock();
        tree.entry(self.id)?.set_times(read, written);
        Ok(())
    }

    pub(super) fn set_times_at(
        &self,
        path: &str,
        read: Option<SystemTime>,
        written: Option<SystemTime>,
    ) -> Result<()> {
        self.check_write()?;
        let mut tree = self.tmp.0.lock();
        let place = tree.place(self.id, path)?;
        let id = tree.at(&place)?;
        tree.entry(id)?.set_times(read, written);
        Ok(())
    }
}

impl Entry {
    fn set_times(&mut self, read: Option<SystemTime>, written: Option<SystemTime>) {
        self.times.read = read.unwrap_or(self.times.read);
        self.times.written = written.unwrap_or(self.times.written);
        self.times.changed = SystemTime::now();
    }
}

impl Tree {
    fn stat(&mut self, id: Id) -> Result<Stat> {
        let Entry { content, times, .. } = self.entry(id)?;
        let (is_folder, size) = match content {
            Content::File { size, .. } => (false, *size),
            Content::Folder(_) => (true, 0),
        };
        Ok(Stat { id, is_folder, size, times: *times })
    }
}

#[cfg(test)]
mod tests;
