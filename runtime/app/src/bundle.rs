//! Bundles: what a deployment is made of. `ebb.toml`, and the files it refers to by the paths that it uses.

use bytes::Bytes;
use ebb_domain::digest::Digest;
use std::collections::BTreeMap;
use std::path::Path;

/// The manifest's name in a bundle.
pub const MANIFEST: &str = "ebb.toml";

/// Stands for `..` in the name of a tar entry, where `..` itself would be refused by careful tools.
const UP: &str = "__up__";

/// The files of a deployment, by their path relative to the manifest.
#[derive(Clone, Debug, Default)]
pub struct Bundle {
    /// `ebb.toml` and everything that it refers to.
    pub files: BTreeMap<String, Bytes>,
}

impl Bundle {
    /// Bytes of a bundle at most: room for a few of the largest modules.
    pub const MAX_BYTES: u64 = 256 << 20;

    /// The manifest's text; none if there is none or it is not UTF-8.
    #[must_use]
    pub fn manifest_text(&self) -> Option<&str> {
        std::str::from_utf8(self.files.get(MANIFEST)?).ok()
    }

    /// A file by its path as the manifest writes it.
    #[must_use]
    pub fn file(&self, path: &Path) -> Option<&Bytes> {
        self.files.get(&normalise(path)?)
    }

    /// The digest of everything in it.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of_parts(self.files.iter().flat_map(|(path, bytes)| [path.as_bytes(), bytes]))
    }
}

/// A relative path with `/` between its parts and `.` taken out; `..` stays only in front. None for an absolute path
/// or one that is not UTF-8.
#[must_use]
pub fn normalise(path: &Path) -> Option<String> {
    use std::path::Component;
    let mut parts: Vec<&str> = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => parts.push(part.to_str()?),
            Component::CurDir => {}
            Component::ParentDir if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            Component::ParentDir => parts.push(".."),
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

/// The name of a file's entry in a bundle's tar: each leading `..` becomes `__up__`.
#[must_use]
pub fn to_entry_name(path: &str) -> String {
    let parts = path.split('/').map(|part| if part == ".." { UP } else { part });
    parts.collect::<Vec<_>>().join("/")
}

/// The path that an entry's name stands for; none for a name that no path of a manifest has.
#[must_use]
pub fn from_entry_name(name: &str) -> Option<String> {
    let name = name.strip_prefix("./").unwrap_or(name);
    let mut parts = Vec::new();
    for part in name.split('/') {
        match part {
            UP if parts.iter().all(|part| *part == "..") => parts.push(".."),
            "" | "." | ".." | UP => return None,
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_the_same_file_however_they_are_written() {
        assert_eq!(normalise(Path::new("./schemas/../schemas/a.json")).as_deref(), Some("schemas/a.json"));
        assert_eq!(normalise(Path::new("../target/x.wasm")).as_deref(), Some("../target/x.wasm"));
        assert_eq!(normalise(Path::new("/etc/passwd")), None);
    }

    #[test]
    fn entry_names_carry_paths_that_climb_out_of_the_folder() {
        for path in ["ebb.toml", "../target/a.wasm", "../../x/y.json"] {
            assert_eq!(from_entry_name(&to_entry_name(path)).as_deref(), Some(path));
        }
    }

    #[test]
    fn names_that_no_manifest_has_are_refused() {
        for name in ["/etc/passwd", "a/../b", "a//b", "a/__up__/b", ""] {
            assert_eq!(from_entry_name(name), None, "{name}");
        }
    }
}
