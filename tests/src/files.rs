//! Folders and files of a node that is down.

use std::fs;
use std::path::{Path, PathBuf};

/// Copies a folder with everything in it, in place of what is there.
///
/// # Panics
/// The disk says no.
pub fn copy_folder(from: &Path, to: &Path) {
    remove_folder(to);
    for path in files_in(from) {
        let copy = to.join(path.strip_prefix(from).expect("a path inside"));
        fs::create_dir_all(copy.parent().expect("a file is in a folder")).expect("a folder");
        fs::copy(path, copy).expect("a file");
    }
}

/// Removes a folder, if it is there.
///
/// # Panics
/// The disk says no.
pub fn remove_folder(folder: &Path) {
    if folder.exists() {
        fs::remove_dir_all(folder).expect("a folder");
    }
}

/// All files in a folder and below, by name; none if there is no such folder.
///
/// # Panics
/// The disk says no.
#[must_use]
pub fn files_in(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry.expect("an entry").path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files.sort();
    files
}
