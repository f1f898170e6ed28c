//! Read models in SQLite: one file for each version of a projection, rows and mark in one transaction.
//!
//! The log is the truth. A file that is lost or damaged is projected again; what a power cut takes from the end of
//! the write-ahead log is projected again from the mark that was left, which is always that of the rows.

mod file;
mod parks;
mod places;
mod sql;
#[cfg(test)]
mod tests;

use ebb_domain::model::ModelSchema;
use ebb_domain::name::{AppName, ProjectionName};
use ebb_domain::port::models::{ExistingStore, ModelError, ModelStores, ProjectionStore, ProjectionVersion};
use ebb_domain::topic::Place;
use ebb_faults::{Point, crash_point};
use file::{SqliteProjection, read_models, store_error};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use tracing::warn;

const SERVING: &str = "serving";
const BEGINNING: &str = "beginning";
const EXTENSION: &str = "sqlite";

/// The read models of a node: `{folder}/apps/{app}/models/{projection}/{version}.sqlite`.
pub struct SqliteModels {
    folder: PathBuf,
    /// A file has one writer: who opens it again shares it.
    open: Mutex<HashMap<PathBuf, Weak<SqliteProjection>>>,
}

impl SqliteModels {
    /// Read models in a node's data folder. Opens nothing yet.
    #[must_use]
    pub fn new(data: impl Into<PathBuf>) -> Arc<Self> {
        Arc::new(Self { folder: data.into(), open: Mutex::default() })
    }

    fn app(&self, app: &AppName) -> PathBuf {
        self.folder.join("apps").join(&**app).join("models")
    }

    fn projection(&self, app: &AppName, projection: &ProjectionName) -> PathBuf {
        self.app(app).join(&**projection)
    }
}

impl ModelStores for SqliteModels {
    fn open(
        &self,
        app: &AppName,
        projection: &ProjectionName,
        version: ProjectionVersion,
        models: &[ModelSchema],
    ) -> Result<Arc<dyn ProjectionStore>, ModelError> {
        let folder = self.projection(app, projection);
        let path = folder.join(format!("{version}.{EXTENSION}"));
        let mut open = self.open.lock();
        fs::create_dir_all(&folder).map_err(store_error)?;
        if let Some(store) = open.get(&path).and_then(Weak::upgrade) {
            if !store.is_damaged() {
                return Ok(store);
            }
            warn!(file = %path.display(), "a read model was found damaged, or deleted; it is built anew");
            store.release();
            set_aside(&path).map_err(store_error)?;
        }
        let store = match SqliteProjection::open(&path, models) {
            Ok(store) => store,
            Err(damage) if damage.is_damage() => {
                warn!(file = %path.display(), %damage, "a read model is damaged; it is set aside and built anew");
                set_aside(&path).map_err(store_error)?;
                SqliteProjection::open(&path, models).map_err(store_error)?
            }
            Err(error) => return Err(store_error(error)),
        };
        let store = Arc::new(store);
        open.retain(|_, store| store.strong_count() > 0);
        open.insert(path, Arc::downgrade(&store));
        Ok(store)
    }

    fn open_existing(
        &self,
        app: &AppName,
        projection: &ProjectionName,
        version: ProjectionVersion,
    ) -> Result<Option<ExistingStore>, ModelError> {
        let path = self.projection(app, projection).join(format!("{version}.{EXTENSION}"));
        if !path.exists() {
            return Ok(None);
        }
        match read_models(&path) {
            Ok(models) => Ok(Some((self.open(app, projection, version, &models)?, models))),
            Err(damage) => {
                warn!(file = %path.display(), %damage, "a read model can't be read; its successor is being built");
                Ok(None)
            }
        }
    }

    fn versions(
        &self,
        app: &AppName,
        projection: &ProjectionName,
    ) -> Result<Vec<ProjectionVersion>, ModelError> {
        let entries = match fs::read_dir(self.projection(app, projection)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(store_error(error)),
        };
        let mut versions = Vec::new();
        for entry in entries {
            let name = PathBuf::from(entry.map_err(store_error)?.file_name());
            let stem = name.file_stem().and_then(|stem| stem.to_str());
            if name.extension().is_some_and(|extension| extension == EXTENSION) {
                versions.extend(stem.and_then(|stem| stem.parse::<ProjectionVersion>().ok()));
            }
        }
        Ok(versions)
    }

    fn serving(
        &self,
        app: &AppName,
        projection: &ProjectionName,
    ) -> Result<Option<ProjectionVersion>, ModelError> {
        match fs::read_to_string(self.projection(app, projection).join(SERVING)) {
            // A pointer that can't be read points nowhere: the projection is built anew.
            Ok(text) => Ok(text.trim().parse().ok()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(store_error(error)),
        }
    }

    fn set_serving(
        &self,
        app: &AppName,
        projection: &ProjectionName,
        version: ProjectionVersion,
    ) -> Result<(), ModelError> {
        let folder = self.projection(app, projection);
        replace_durably(&folder, SERVING, version.to_string().as_bytes()).map_err(store_error)
    }

    fn beginning(&self, app: &AppName, projection: &ProjectionName) -> Result<Vec<Place>, ModelError> {
        let path = self.projection(app, projection).join(BEGINNING);
        match fs::read(&path) {
            // Unlike a pointer, it can't be found again: what can't be read is not taken for a projection that is new.
            Ok(text) => serde_json::from_slice(&text).map_err(|error| {
                store_error(format!("{} does not say where it began: {error}", path.display()))
            }),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(store_error(error)),
        }
    }

    fn set_beginning(
        &self,
        app: &AppName,
        projection: &ProjectionName,
        beginning: &[Place],
    ) -> Result<(), ModelError> {
        let text = serde_json::to_vec(beginning).map_err(store_error)?;
        replace_durably(&self.projection(app, projection), BEGINNING, &text).map_err(store_error)
    }

    fn retain(
        &self,
        app: &AppName,
        projection: &ProjectionName,
        versions: &[ProjectionVersion],
    ) -> Result<(), ModelError> {
        let folder = self.projection(app, projection);
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(store_error(error)),
        };
        let kept: Vec<String> = versions.iter().map(ToString::to_string).collect();
        for entry in entries {
            let entry = entry.map_err(store_error)?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            // Files that SQLite keeps beside a database begin with its name.
            let is_catalogue = name == SERVING || name == BEGINNING;
            if !is_catalogue && !kept.iter().any(|version| name.starts_with(version.as_str())) {
                crash_point(Point::VersionBeforeRemoval);
                fs::remove_file(entry.path()).map_err(store_error)?;
            }
        }
        if kept.is_empty() {
            fs::remove_dir_all(&folder).map_err(store_error)?;
        }
        Ok(())
    }

    fn remove_app(&self, app: &AppName) -> Result<(), ModelError> {
        let folder = self.app(app);
        // Whoever still reads a file keeps it; whoever opens one from now on gets a new one.
        self.open.lock().retain(|path, _| !path.starts_with(&folder));
        match fs::remove_dir_all(folder) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(store_error(error)),
            _ => Ok(()),
        }
    }
}

/// Keeps a damaged file for whoever wants to look at it; one, the last.
fn set_aside(path: &Path) -> std::io::Result<()> {
    for beside in ["-wal", "-shm"] {
        let mut name = path.as_os_str().to_owned();
        name.push(beside);
        match fs::remove_file(&name) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    match fs::rename(path, path.with_extension("damaged")) {
        // It was taken away while it was in use.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        renamed => renamed,
    }
}

/// Puts a small file in place in one step: whoever reads it finds the old one or the new one, after a power cut too.
fn replace_durably(folder: &Path, name: &str, contents: &[u8]) -> std::io::Result<()> {
    fs::create_dir_all(folder)?;
    let temporary = folder.join(format!("{name}.new"));
    let mut file = fs::File::create(&temporary)?;
    file.write_all(contents)?;
    file.sync_all()?;
    crash_point(Point::ServingBeforeRename);
    fs::rename(&temporary, folder.join(name))?;
    crash_point(Point::ServingAfterRename);
    fs::File::open(folder)?.sync_all()
}
