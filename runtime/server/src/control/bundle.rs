//! Bundles on the wire: an uncompressed tar, so that what a bundle may take is known before it is read.

use crate::http::problem::{BAD_BUNDLE, Problem};
use crate::http::target::shorten;
use bytes::Bytes;
use ebb_app::bundle::{Bundle, from_entry_name};
use std::collections::BTreeMap;
use std::io::Read as _;

/// Files of a bundle at most.
const MAX_FILES: usize = 10_000;

/// Reads a bundle. Only plain files with plain paths: what a link or a device would mean is nobody's business.
pub(crate) fn read(tar: &Bytes) -> Result<Bundle, Problem> {
    let mut files = BTreeMap::new();
    let mut archive = tar::Archive::new(&**tar);
    let entries = archive.entries().map_err(|error| bad(&error))?;
    for entry in entries {
        let mut entry = entry.map_err(|error| bad(&error))?;
        let kind = entry.header().entry_type();
        if kind.is_dir() || kind.is_pax_global_extensions() {
            continue;
        }
        let name = entry.path_bytes().into_owned();
        let name =
            String::from_utf8(name).map_err(|_| BAD_BUNDLE.detail("the name of an entry is not UTF-8"))?;
        if !kind.is_file() {
            return Err(BAD_BUNDLE.detail(format!("entry `{}` is not a plain file", shorten(&name))));
        }
        let Some(path) = from_entry_name(&name) else {
            return Err(BAD_BUNDLE.detail(format!("entry `{}` leaves the bundle", shorten(&name))));
        };
        // The header's size is only what it claims.
        let mut data = Vec::with_capacity(entry.size().min(tar.len() as u64) as usize);
        entry.read_to_end(&mut data).map_err(|error| bad(&error))?;
        if files.insert(path, Bytes::from(data)).is_some() {
            return Err(BAD_BUNDLE.detail(format!("entry `{}` is there twice", shorten(&name))));
        }
        if files.len() > MAX_FILES {
            return Err(BAD_BUNDLE.detail(format!("the bundle has more than {MAX_FILES} files")));
        }
    }
    if files.is_empty() {
        return Err(BAD_BUNDLE.detail("the bundle has no files"));
    }
    Ok(Bundle { files })
}

fn bad(error: &std::io::Error) -> Problem {
    BAD_BUNDLE.detail(format!("the body is not a tar archive: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tar(entries: &[(&str, &str)]) -> Bytes {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, text) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, name, text.as_bytes()).unwrap();
        }
        builder.into_inner().unwrap().into()
    }

    #[test]
    fn files_come_by_their_path_in_the_manifest() {
        let bundle = read(&tar(&[("ebb.toml", "x"), ("__up__/shared/a.wasm", "y")])).unwrap();
        let names: Vec<_> = bundle.files.keys().map(String::as_str).collect();
        assert_eq!(names, ["../shared/a.wasm", "ebb.toml"]);
    }

    #[test]
    fn what_is_not_a_tar_of_plain_files_is_refused() {
        let twice = tar(&[("ebb.toml", "x"), ("ebb.toml", "y")]);
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        builder.append_link(&mut header, "ebb.toml", "/etc/passwd").unwrap();
        let link = builder.into_inner().unwrap().into();
        for body in [Bytes::new(), Bytes::from_static(&[7; 700]), twice, link] {
            assert_eq!(read(&body).unwrap_err().kind().code, "bad_bundle");
        }
    }
}
