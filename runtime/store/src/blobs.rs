//! Files by their SHA-256: modules, schemas, manifests.

use crate::log::disk::{Disk as _, RealDisk};
use bytes::Bytes;
use ebb_domain::digest::Digest;
use ebb_domain::port::storage::StorageError;
use ebb_faults::{Point, crash_point};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// A folder of files, each named by its digest.
#[derive(Debug)]
pub(crate) struct Blobs {
    folder: PathBuf,
    next: AtomicU64,
}

impl Blobs {
    /// Opens the folder, making it if it is not there, and removes what a crash left half written.
    pub(crate) fn open(folder: PathBuf) -> io::Result<Self> {
        RealDisk.create_folder(&folder)?;
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "new") {
                fs::remove_file(path)?;
            }
        }
        Ok(Self { folder, next: AtomicU64::new(0) })
    }

    pub(crate) fn put(&self, bytes: &[u8]) -> Result<Digest, StorageError> {
        let digest = Digest::of(bytes);
        if self.get(&digest).is_ok() {
            return Ok(digest);
        }
        let path = self.path(&digest);
        // A name of its own, because two deploys may bring the same module at once.
        let unfinished = path.with_extension(format!("{}.new", self.next.fetch_add(1, Ordering::Relaxed)));
        let written = (|| {
            let mut file = File::create(&unfinished)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            crash_point(Point::BlobBeforeRename);
            fs::rename(&unfinished, &path)?;
            crash_point(Point::BlobAfterRename);
            File::open(&self.folder)?.sync_all()
        })();
        written.map_err(|error| {
            let _ = fs::remove_file(&unfinished);
            StorageError(format!("{}: {error}", path.display()))
        })?;
        Ok(digest)
    }

    pub(crate) fn get(&self, digest: &Digest) -> Result<Bytes, StorageError> {
        let path = self.path(digest);
        let bytes = fs::read(&path).map_err(|error| StorageError(format!("{}: {error}", path.display())))?;
        if Digest::of(&bytes) != *digest {
            return Err(StorageError(format!(
                "{} is damaged: its bytes no longer have the digest that is its name; deploy the app again, or restore \
                 the file from a backup",
                path.display()
            )));
        }
        Ok(bytes.into())
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.folder.join(digest.to_string())
    }
}

/// Writes a file so that after a crash it is there whole or not at all.
pub(crate) fn write_durably(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let unfinished = path.with_extension("new");
    let mut file =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&unfinished)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&unfinished, path)?;
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_file_is_found_by_its_digest_until_its_bytes_change() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(folder.path().join("blobs")).unwrap();
        let digest = blobs.put(b"module").unwrap();
        assert_eq!(blobs.put(b"module").unwrap(), digest);
        assert_eq!(blobs.get(&digest).unwrap(), "module");
        assert!(blobs.get(&Digest::of(b"other")).is_err());

        fs::write(blobs.path(&digest), b"modulf").unwrap();
        assert!(blobs.get(&digest).unwrap_err().to_string().contains("damaged"));
        blobs.put(b"module").unwrap();
        assert_eq!(blobs.get(&digest).unwrap(), "module", "deploying again mends it");
    }
}
