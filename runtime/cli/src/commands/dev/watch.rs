//! Which files an app is made of, and when they change.

use crate::failure::Failure;
use crate::project::Project;
use notify::event::ModifyKind;
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Quiet for this long, and a change is taken for complete: an editor writes, renames and touches within a few
/// milliseconds.
const QUIET: Duration = Duration::from_millis(100);

/// Taken for complete after this long, quiet or not.
const PATIENCE: Duration = Duration::from_secs(1);

/// Folders that hold what builds and tools make.
const IGNORED: [&str; 5] = ["target", ".ebb", ".git", "node_modules", ".jj"];

/// Watches an app's folder.
pub(super) struct Watch {
    dir: PathBuf,
    watcher: RecommendedWatcher,
    changes: mpsc::UnboundedReceiver<PathBuf>,
    watched: BTreeSet<PathBuf>,
    /// Without builds: the modules, which count wherever they are.
    modules: BTreeSet<PathBuf>,
    /// Changed, and not told yet.
    pending: BTreeSet<PathBuf>,
}

impl Watch {
    /// Begins to watch.
    ///
    /// # Errors
    /// The system does not let us; it bounds how many folders may be watched.
    pub(super) fn start(dir: &Path) -> Result<Self, Failure> {
        let dir = dir.canonicalize().map_err(|error| Failure::new(format!("{}: {error}", dir.display())))?;
        let (sender, changes) = mpsc::unbounded_channel();
        let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            let Ok(event) = event else { return };
            if is_change(event.kind) {
                for path in event.paths {
                    // The receiver is gone only when the session is.
                    let _ = sender.send(path);
                }
            }
        });
        let watcher = watcher.map_err(|error| unwatchable(&dir, &error))?;
        let mut watch = Self {
            dir,
            watcher,
            changes,
            watched: BTreeSet::new(),
            modules: BTreeSet::new(),
            pending: BTreeSet::new(),
        };
        watch.add_tree(&watch.dir.clone())?;
        Ok(watch)
    }

    /// Looks for folders that have come, and for what the manifest names.
    pub(super) fn follow(&mut self, project: &Project, build: bool) {
        // A folder that has come is of no use to a build that works; what can't be watched was told at the start.
        let _ = self.add_tree(&self.dir.clone());
        let Ok(manifest) = project.manifest() else { return };
        for path in manifest.build.iter().flat_map(|build| &build.watch) {
            let path = self.dir.join(path);
            if path.is_dir() {
                let _ = self.add_tree(&path);
            } else {
                self.add(&path);
            }
        }
        if !build {
            self.modules = manifest.files().iter().map(|file| normal(&self.dir.join(&file.path))).collect();
            for folder in self.modules.clone().iter().filter_map(|module| module.parent()) {
                self.add(folder);
            }
        }
    }

    /// The files of the next change, once it is complete. Never, without a watch.
    pub(super) async fn next(watch: &mut Option<Self>) -> Vec<PathBuf> {
        let Some(watch) = watch else { return std::future::pending().await };
        while watch.pending.is_empty() {
            match watch.changes.recv().await {
                Some(path) if watch.counts(&path) => {
                    watch.pending.insert(path);
                }
                Some(_) => {}
                None => return std::future::pending().await,
            }
        }
        let more = async {
            while let Ok(Some(path)) = timeout(QUIET, watch.changes.recv()).await {
                if watch.counts(&path) {
                    watch.pending.insert(path);
                }
            }
        };
        // Out of patience is as good as quiet.
        let _ = timeout(PATIENCE, more).await;
        // A folder that has come: what is in it by now is told with it, what comes later must be seen.
        let _ = watch.add_tree(&watch.dir.clone());
        std::mem::take(&mut watch.pending).into_iter().collect()
    }

    /// Keeps what has changed during a build for the next round, but for what the build has changed itself: the first
    /// one writes `Cargo.lock`.
    pub(super) fn after_build(&mut self) {
        while let Ok(path) = self.changes.try_recv() {
            if self.counts(&path) && path.file_name() != Some(OsStr::new("Cargo.lock")) {
                self.pending.insert(path);
            }
        }
    }

    fn counts(&self, path: &Path) -> bool {
        self.modules.contains(path) || !is_ignored(path.strip_prefix(&self.dir).unwrap_or(path))
    }

    /// A folder and those below it, but for those that are ignored: each watched by itself, because watching a tree
    /// would take a build's output with it.
    fn add_tree(&mut self, folder: &Path) -> Result<(), Failure> {
        if !self.watched.contains(folder) {
            self.watcher
                .watch(folder, RecursiveMode::NonRecursive)
                .map_err(|error| unwatchable(folder, &error))?;
            self.watched.insert(folder.to_owned());
        }
        let Ok(entries) = std::fs::read_dir(folder) else { return Ok(()) };
        for entry in entries.flatten() {
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if is_folder && !is_ignored(Path::new(&entry.file_name())) {
                self.add_tree(&entry.path())?;
            }
        }
        Ok(())
    }

    fn add(&mut self, path: &Path) {
        // What is not there yet is looked for again after the next round.
        if !self.watched.contains(path) && self.watcher.watch(path, RecursiveMode::NonRecursive).is_ok() {
            self.watched.insert(path.to_owned());
        }
    }
}

fn unwatchable(path: &Path, error: &notify::Error) -> Failure {
    Failure::new(format!("{} can't be watched: {error}", path.display()))
        .hint("run with --no-watch, or raise the system's bound: sysctl fs.inotify.max_user_watches")
}

/// Whether something is another afterwards. Reading is not, and neither is what a build does to access times.
fn is_change(kind: EventKind) -> bool {
    !matches!(
        kind,
        EventKind::Access(_)
            | EventKind::Modify(ModifyKind::Metadata(notify::event::MetadataKind::AccessTime))
    )
}

/// What builds, tools and editors leave about.
fn is_ignored(path: &Path) -> bool {
    let is_folder_of_tools = |part: &OsStr| IGNORED.iter().any(|ignored| part == *ignored);
    let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
    path.iter().any(is_folder_of_tools)
        || name.ends_with('~')
        || name.starts_with(".#")
        || [".swp", ".swx", ".tmp"].iter().any(|end| name.ends_with(end))
        // vim looks by this name whether it may write.
        || name == "4913"
}

/// A path without `.` and `..`, as the watcher reports it.
fn normal(path: &Path) -> PathBuf {
    let parent = path.parent().and_then(|parent| parent.canonicalize().ok());
    match (parent, path.file_name()) {
        (Some(parent), Some(name)) => parent.join(name),
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_builds_and_editors_leave_about_is_no_change() {
        for path in [
            "target/x.rs",
            ".ebb/data/log",
            ".git/index",
            "a/target/y",
            "src/.#lib.rs",
            "src/lib.rs~",
            "src/4913",
        ] {
            assert!(is_ignored(Path::new(path)), "{path}");
        }
        for path in ["src/lib.rs", "ebb.toml", "schemas/open.json", "targets/lib.rs", ".cargo/config.toml"] {
            assert!(!is_ignored(Path::new(path)), "{path}");
        }
    }

    #[tokio::test]
    async fn a_change_is_told_once_it_is_complete_also_in_a_folder_that_came_later() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("src")).unwrap();
        std::fs::create_dir_all(folder.path().join("target")).unwrap();
        let mut watch = Some(Watch::start(folder.path()).unwrap());

        std::fs::write(folder.path().join("target/out.wasm"), "x").unwrap();
        std::fs::write(folder.path().join("src/lib.rs"), "one").unwrap();
        std::fs::write(folder.path().join("src/lib.rs"), "two").unwrap();
        let changed = Watch::next(&mut watch).await;
        let root = folder.path().canonicalize().unwrap();
        assert_eq!(changed, [root.join("src/lib.rs")]);

        std::fs::create_dir(folder.path().join("schemas")).unwrap();
        assert_eq!(Watch::next(&mut watch).await, [root.join("schemas")]);
        std::fs::write(folder.path().join("schemas/open.json"), "{}").unwrap();
        assert_eq!(Watch::next(&mut watch).await, [root.join("schemas/open.json")]);
    }

    #[tokio::test]
    async fn what_changes_during_a_build_is_not_lost_and_the_builds_own_lock_file_is_no_change() {
        let folder = tempfile::tempdir().unwrap();
        let mut watch = Watch::start(folder.path()).unwrap();
        std::fs::write(folder.path().join("Cargo.lock"), "").unwrap();
        std::fs::write(folder.path().join("ebb.toml"), "").unwrap();
        // As after a build: the watcher has told both.
        let both = [watch.changes.recv().await.unwrap(), watch.changes.recv().await.unwrap()];
        assert!(both.iter().any(|path| path.ends_with("Cargo.lock")));
        watch.pending.insert(folder.path().join("ebb.toml"));
        watch.after_build();
        let changed = Watch::next(&mut Some(watch)).await;
        assert!(changed.iter().all(|path| path.ends_with("ebb.toml")), "{changed:?}");
    }
}
