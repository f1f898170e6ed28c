//! The lock on a node's data folder.

use ebb_domain::port::storage::StorageError;
use rustix::fs::FlockOperation;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::Path;

/// Held by the one process that uses a data folder; the system lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub struct NodeLock {
    // Closing it unlocks. The file itself stays: removing it would let two processes lock two files of one name.
    _file: File,
}

impl NodeLock {
    /// Takes the lock of a data folder that is there.
    ///
    /// # Errors
    /// Another process holds it, which the text names; or the file can't be made.
    pub fn take(data: &Path) -> Result<Self, StorageError> {
        let path = data.join("node.lock");
        let io = |error: std::io::Error| StorageError(format!("{}: {error}", path.display()));
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(io)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                let _ = file.read_to_string(&mut holder);
                let holder = match holder.trim() {
                    "" => "another process".to_owned(),
                    holder => holder.to_owned(),
                };
                return Err(StorageError(format!(
                    "the data folder {} is in use by {holder}; stop it first, or use another folder (--data, EBB_DATA)",
                    data.display()
                )));
            }
            Err(error) => return Err(io(error.into())),
        }
        // Program and subcommand only: what follows may hold a token.
        let words = std::env::args_os().map(|arg| arg.to_string_lossy().into_owned());
        let command: Vec<String> = words.take(2).take_while(|word| !word.starts_with('-')).collect();
        let holder = format!("process {} (`{}`)\n", std::process::id(), command.join(" "));
        let noted =
            file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(holder.as_bytes()));
        noted.map_err(io)?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_opener_is_refused_and_told_who_holds_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let lock = NodeLock::take(folder.path()).unwrap();
        let refused = NodeLock::take(folder.path()).unwrap_err().to_string();
        assert!(refused.contains(&format!("in use by process {}", std::process::id())), "{refused}");
        drop(lock);
        NodeLock::take(folder.path()).unwrap();
    }
}
