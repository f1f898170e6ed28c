//! Applications to deploy: a manifest and the files that it names.

use bytes::Bytes;
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

/// A bundle in the making.
#[derive(Clone, Debug)]
pub struct App {
    name: String,
    manifest: String,
    files: BTreeMap<String, Bytes>,
}

impl App {
    /// An app with this manifest, and no files yet.
    ///
    /// # Panics
    /// The manifest has no line `name = "…"`.
    #[must_use]
    pub fn new(manifest: &str) -> Self {
        let name = manifest.lines().find_map(|line| line.strip_prefix("name = \"")?.split('"').next());
        let name = name.expect("a manifest has a name").to_owned();
        Self { name, manifest: manifest.to_owned(), files: BTreeMap::new() }
    }

    /// The app in a folder, with the files that its manifest names.
    ///
    /// # Panics
    /// A file is not there.
    #[must_use]
    pub fn in_folder(folder: &Path) -> Self {
        let read =
            |path: &Path| std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let manifest = String::from_utf8(read(&folder.join("ebb.toml"))).expect("a manifest is UTF-8");
        let mut app = Self::new(&manifest);
        let quoted = manifest.split('"').skip(1).step_by(2);
        for path in quoted.filter(|text| text.ends_with(".wasm") || text.ends_with(".json")) {
            app = app.file(path, read(&folder.join(path)));
        }
        app
    }

    /// With a file, at its path in the manifest.
    #[must_use]
    pub fn file(mut self, path: &str, contents: impl Into<Bytes>) -> Self {
        self.files.insert(path.to_owned(), contents.into());
        self
    }

    /// With every module changed.
    #[must_use]
    pub fn each_module(mut self, change: impl Fn(&[u8]) -> Vec<u8>) -> Self {
        for (path, contents) in &mut self.files {
            if path.ends_with(".wasm") {
                *contents = change(contents).into();
            }
        }
        self
    }

    /// With text of the manifest replaced.
    ///
    /// # Panics
    /// The text is not there.
    #[must_use]
    pub fn edit(mut self, from: &str, to: &str) -> Self {
        assert!(self.manifest.contains(from), "no `{from}` in\n{}", self.manifest);
        let edited = self.manifest.replacen(from, to, 1);
        self.manifest.clone_from(&edited);
        self.name = Self::new(&edited).name;
        self
    }

    /// The app's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The bundle as `PUT /apps/{app}` takes it.
    ///
    /// # Panics
    /// Never: it is written into memory.
    #[must_use]
    pub fn tar(&self) -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        let manifest = Bytes::from(self.manifest.clone());
        for (path, contents) in self.files.iter().chain([(&"ebb.toml".to_owned(), &manifest)]) {
            let mut header = tar::Header::new_gnu();
            header.set_size(contents.len() as u64);
            header.set_mode(0o644);
            archive.append_data(&mut header, entry_name(path), &contents[..]).expect("a tar in memory");
        }
        archive.into_inner().expect("a tar in memory")
    }

    /// Writes the app into a folder of its own, modules named `../…` beside it, and gives back where it is.
    ///
    /// # Panics
    /// The disk says no.
    pub fn write_to(&self, folder: &Path) -> PathBuf {
        let app = folder.join("apps").join(&self.name);
        let manifest = Bytes::from(self.manifest.clone());
        for (path, contents) in self.files.iter().chain([(&"ebb.toml".to_owned(), &manifest)]) {
            let path = app.join(path);
            std::fs::create_dir_all(&app).expect("a folder");
            std::fs::create_dir_all(path.parent().expect("a file is in a folder")).expect("a folder");
            std::fs::write(path, contents).expect("a file");
        }
        app
    }
}

/// `../` can't stand in a tar.
fn entry_name(path: &str) -> String {
    let parts = Path::new(path).components().filter_map(|part| match part {
        Component::ParentDir => Some("__up__"),
        Component::Normal(name) => name.to_str(),
        _ => None,
    });
    parts.collect::<Vec<_>>().join("/")
}
