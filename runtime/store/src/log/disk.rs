//! The file layer under the log: few calls, behind a trait, so that tests can hand in a disk that is full, that fails to
//! sync, or that forgets what was not synced.

use rustix::fs::FallocateFlags;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;
use std::sync::Arc;

/// A file that is read and written at offsets.
pub trait LogFile: Send + Sync {
    /// The file's length in bytes, preallocated space included.
    ///
    /// # Errors
    /// The disk would not tell.
    fn len(&self) -> io::Result<u64>;

    /// Whether the file has no bytes.
    ///
    /// # Errors
    /// The disk would not tell.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Appends up to `len` bytes, found at `offset`, to `into`. Fewer only at the end of the file.
    ///
    /// # Errors
    /// The disk would not give them.
    fn read_at(&self, offset: u64, len: usize, into: &mut Vec<u8>) -> io::Result<()>;

    /// Writes some of `bytes` at `offset` and tells how many: at least one.
    ///
    /// # Errors
    /// None were written.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<usize>;

    /// Makes the file's data durable, and its length if that changed.
    ///
    /// # Errors
    /// What was written since the last sync may or may not be durable, and a further sync would not tell.
    fn sync_data(&self) -> io::Result<()>;

    /// Makes data and all metadata durable.
    ///
    /// # Errors
    /// As for [`LogFile::sync_data`].
    fn sync_all(&self) -> io::Result<()>;

    /// Gets the file space up to `len` bytes, which read as zeros.
    ///
    /// # Errors
    /// There is not so much space.
    fn allocate(&self, len: u64) -> io::Result<()>;

    /// Cuts the file, or extends it with zeros.
    ///
    /// # Errors
    /// The disk refused.
    fn set_len(&self, len: u64) -> io::Result<()>;
}

/// Folders and names.
pub trait Disk: Send + Sync + 'static {
    /// Opens a file that is there, to read and to write.
    ///
    /// # Errors
    /// It is not there, or may not be opened.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn LogFile>>;

    /// Makes a file; one that is there is emptied.
    ///
    /// # Errors
    /// The disk refused.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn LogFile>>;

    /// Names of the files in a folder, in no order.
    ///
    /// # Errors
    /// The folder is not there, or may not be read.
    fn list(&self, folder: &Path) -> io::Result<Vec<String>>;

    /// Makes a folder durably, with the folders above it.
    ///
    /// # Errors
    /// The disk refused.
    fn create_folder(&self, folder: &Path) -> io::Result<()>;

    /// Gives a file another name in the same folder, in place of any file of that name. Durable after
    /// [`Disk::sync_folder`].
    ///
    /// # Errors
    /// The disk refused.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file. Durable after [`Disk::sync_folder`].
    ///
    /// # Errors
    /// The disk refused.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes the names in a folder durable.
    ///
    /// # Errors
    /// The disk refused.
    fn sync_folder(&self, folder: &Path) -> io::Result<()>;
}

/// Writes all of `bytes` at `offset`.
///
/// # Errors
/// Some may have been written.
pub(crate) fn write_all(file: &dyn LogFile, mut offset: u64, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write_at(offset, bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                offset += written as u64;
                bytes = &bytes[written..];
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The disk that a node works on: the operating system's files. A test may have asked for faults on top.
#[must_use]
pub fn system_disk() -> Arc<dyn Disk> {
    #[cfg(debug_assertions)]
    if ebb_faults::faults().is_some() {
        return Arc::new(super::faulty_disk::FaultyDisk::new());
    }
    Arc::new(RealDisk)
}

/// The operating system's files.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

struct RealFile(File);

impl LogFile for RealFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, offset: u64, len: usize, into: &mut Vec<u8>) -> io::Result<()> {
        let wanted = into.len() + len;
        // Exact, and into spare capacity: a block is neither zeroed first nor larger than what was asked for.
        into.reserve_exact(len);
        while into.len() < wanted {
            let at = offset + (len - (wanted - into.len())) as u64;
            let before = into.len();
            // The capacity may be a little more than was asked for; what is read too much is cut off below.
            match rustix::io::pread(&self.0, rustix::buffer::spare_capacity(into), at) {
                Ok(_) if into.len() == before => break,
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        into.truncate(wanted);
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        std::os::unix::fs::FileExt::write_at(&self.0, bytes, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.0.sync_all()
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        match rustix::fs::fallocate(&self.0, FallocateFlags::empty(), 0, len) {
            // A file system without preallocation, such as NFS: a full disk then shows up as a failed write.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {
                if self.len()? < len {
                    self.0.set_len(len)?;
                }
                Ok(())
            }
            other => Ok(other?),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
}

impl Disk for RealDisk {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn LogFile>> {
        Ok(Arc::new(RealFile(OpenOptions::new().read(true).write(true).open(path)?)))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn LogFile>> {
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
        Ok(Arc::new(RealFile(options)))
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        std::fs::read_dir(folder)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect()
    }

    fn create_folder(&self, folder: &Path) -> io::Result<()> {
        let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty());
        if folder.is_dir() {
            // Whoever made it may have ended before its name was durable. Those above were, before this one was made.
            return match parent.map(|parent| self.sync_folder(parent)) {
                // Then it was not made by us.
                Some(Err(error)) if error.kind() != io::ErrorKind::PermissionDenied => Err(error),
                _ => Ok(()),
            };
        }
        if let Some(parent) = parent {
            self.create_folder(parent)?;
            match std::fs::create_dir(folder) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            return self.sync_folder(parent);
        }
        std::fs::create_dir_all(folder)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        File::open(folder)?.sync_all()
    }
}
