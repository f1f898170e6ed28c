//! A node's data folder: [`DiskStorage`].

use crate::blobs::{self, Blobs};
use crate::index::snapshots::SledSnapshots;
use crate::lock::NodeLock;
use crate::log::disk::{Disk, RealDisk, system_disk};
use crate::log::repair::{RepairReport, repair};
use crate::log::verify::{Progress, VerifyReport, verify};
use crate::log::{DiskLog, LogOptions, OpenLog, index_tree, snapshot_tree};
use bytes::Bytes;
use ebb_domain::commit::CommitNumber;
use ebb_domain::digest::Digest;
use ebb_domain::name::AppName;
use ebb_domain::port::Clock;
use ebb_domain::port::log::{Durable, EventLog};
use ebb_domain::port::storage::{Snapshots, Storage, StorageError};
use ebb_domain::text::Text;
use ebb_faults::{Point, crash_point};
use parking_lot::{Condvar, Mutex};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

/// The note that an app is at rest, beside its log.
const REST: &str = "rest.json";

/// The app name whose log is the node's own.
pub const SYSTEM: &str = "system";

/// How a node's storage works.
#[derive(Clone)]
pub struct StorageOptions {
    /// Where times come from.
    pub clock: Arc<dyn Clock>,
    /// Memory for pages of the indexes, in bytes.
    pub index_cache_bytes: u64,
    /// How logs work.
    pub log: LogOptions,
    /// The file layer under the logs.
    pub disk: Arc<dyn Disk>,
}

impl StorageOptions {
    /// The defaults: 32 MiB for index pages, and the system's own files.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, index_cache_bytes: 32 << 20, log: LogOptions::default(), disk: system_disk() }
    }
}

/// Everything a node keeps, in one folder, which one process at a time may open:
///
/// `node.lock` · `secret.key` · `system/log/` and `apps/{app}/log/`: segments · `apps/{app}/rest.json`: a note that the app
/// was closed with nothing left to do · `blobs/`: files by digest · `index/`: sled,
/// which holds only what the logs can rebuild.
pub struct DiskStorage {
    data: PathBuf,
    options: StorageOptions,
    db: sled::Db,
    blobs: Blobs,
    secret: [u8; 32],
    held: Arc<Held>,
}

/// What open logs keep alive: the lock, and the list of who is open.
struct Held {
    _lock: NodeLock,
    logs: Mutex<HashMap<AppName, Slot>>,
    openings: AtomicU64,
    closed: Condvar,
}

enum Slot {
    /// Being opened, or being closed because its last holder let go.
    Busy,
    /// Open, and the how manieth opening that was.
    Open(Weak<DiskLog>, u64),
}

impl DiskStorage {
    /// Opens a data folder, making it if it is not there. Logs are opened one by one, by [`Storage::open_log`].
    ///
    /// # Errors
    /// Another process has it open, which the text names; or the disk refused.
    pub fn open(data: &Path, options: StorageOptions) -> Result<Arc<Self>, StorageError> {
        let io = |error: std::io::Error| StorageError(format!("{}: {error}", data.display()));
        RealDisk.create_folder(data).map_err(io)?;
        let lock = NodeLock::take(data)?;
        let db = open_index(&data.join("index"), options.index_cache_bytes)?;
        let held = Held {
            _lock: lock,
            logs: Mutex::new(HashMap::new()),
            openings: AtomicU64::new(0),
            closed: Condvar::new(),
        };
        Ok(Arc::new(Self {
            data: data.to_owned(),
            options,
            db,
            blobs: Blobs::open(data.join("blobs")).map_err(io)?,
            secret: secret(&data.join("secret.key"))?,
            held: Arc::new(held),
        }))
    }

    /// 32 random bytes that stay the same and never leave the node: the key of its MACs.
    #[must_use]
    pub fn secret(&self) -> &[u8; 32] {
        &self.secret
    }

    /// The data folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.data
    }

    /// Apps that have a log here, `system` among them, in order of name.
    ///
    /// # Errors
    /// A folder could not be read.
    pub fn apps(&self) -> Result<Vec<AppName>, StorageError> {
        let folder = self.data.join("apps");
        let mut apps = Vec::new();
        if folder.is_dir() {
            let names = RealDisk.list(&folder);
            let names = names.map_err(|error| StorageError(format!("{}: {error}", folder.display())))?;
            apps.extend(names.into_iter().filter_map(|name| AppName::new(name).ok()));
        }
        if self.data.join(SYSTEM).is_dir() {
            apps.push(AppName::trusted(Text::from_static(SYSTEM)));
        }
        apps.sort();
        Ok(apps)
    }

    /// The folder with an app's segments.
    #[must_use]
    pub fn log_folder(&self, app: &AppName) -> PathBuf {
        log_folder(&self.data, app)
    }

    /// Closes all logs, so that the next opening knows that nothing is missing, and makes the indexes durable. Whoever
    /// still holds a log can read on, and append no more. Blocks.
    pub fn close(&self) {
        let open: Vec<_> = {
            let logs = self.held.logs.lock();
            logs.values()
                .filter_map(|slot| if let Slot::Open(log, _) = slot { log.upgrade() } else { None })
                .collect()
        };
        for log in &open {
            log.close();
        }
        if let Err(error) = self.db.flush() {
            tracing::warn!(%error, "the indexes were not flushed; the next start brings them up to date");
        }
    }

    /// The log of an app, as the type that this crate knows.
    ///
    /// # Errors
    /// As [`Storage::open_log`].
    pub fn log(&self, app: &AppName) -> Result<Arc<DiskLog>, StorageError> {
        let mut logs = self.held.logs.lock();
        loop {
            match logs.get(app) {
                None => break,
                Some(Slot::Open(log, _)) => match log.upgrade() {
                    // Who still holds it may read on; its place is another's.
                    Some(log) if log.is_closed() => break,
                    Some(log) => return Ok(log),
                    // Its last holder let go, and is about to close it.
                    None => self.held.closed.wait(&mut logs),
                },
                Some(Slot::Busy) => self.held.closed.wait(&mut logs),
            }
        }
        logs.insert(app.clone(), Slot::Busy);
        drop(logs);

        let folder = self.log_folder(app);
        let opening = self.held.openings.fetch_add(1, Ordering::Relaxed);
        let opened = DiskLog::open(OpenLog {
            disk: Arc::clone(&self.options.disk),
            folder: &folder,
            name: app,
            db: &self.db,
            clock: Arc::clone(&self.options.clock),
            options: self.options.log,
            stepped: false,
        });
        let opened = opened.map(|log| {
            let (held, app) = (Arc::clone(&self.held), app.clone());
            Arc::new(log.on_release(move || {
                let mut logs = held.logs.lock();
                // After it was closed, or removed, the slot may be another log's.
                if matches!(logs.get(&app), Some(Slot::Open(_, theirs)) if *theirs == opening) {
                    logs.remove(&app);
                }
                held.closed.notify_all();
            }))
        });
        let mut logs = self.held.logs.lock();
        match &opened {
            Ok(log) => logs.insert(app.clone(), Slot::Open(Arc::downgrade(log), opening)),
            Err(_) => logs.remove(app),
        };
        self.held.closed.notify_all();
        opened
    }

    /// Runs `work` while nobody has the app's log open, nor can open it.
    fn offline<T>(
        &self,
        app: &AppName,
        work: impl FnOnce() -> Result<T, StorageError>,
    ) -> Result<T, StorageError> {
        {
            let mut logs = self.held.logs.lock();
            if logs.contains_key(app) {
                return Err(StorageError(format!("the log of `{app}` is in use; stop what uses it first")));
            }
            logs.insert(app.clone(), Slot::Busy);
        }
        let done = work();
        self.held.logs.lock().remove(app);
        self.held.closed.notify_all();
        done
    }

    fn rest_path(&self, app: &AppName) -> PathBuf {
        self.data.join("apps").join(&**app).join(REST)
    }

    fn remove_files(&self, app: &AppName) -> Result<(), StorageError> {
        for tree in [index_tree(app), snapshot_tree(app)] {
            self.db.drop_tree(tree).map_err(|error| StorageError(error.to_string()))?;
        }
        crash_point(Point::PurgeAfterIndex);
        let apps = self.data.join("apps");
        let folder = apps.join(&**app);
        let io = |error: std::io::Error| StorageError(format!("{}: {error}", folder.display()));
        match std::fs::remove_dir_all(&folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(io)?,
        }
        RealDisk.sync_folder(&apps).map_err(io)
    }

    /// Checks every byte of an app's log, and changes nothing.
    ///
    /// # Errors
    /// The log is in use, or could not be read. Damage is no error here: the report has it.
    pub fn verify(
        &self,
        app: &AppName,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<VerifyReport, StorageError> {
        self.offline(app, || verify(&self.options.disk, &self.log_folder(app), progress))
    }

    /// Throws an app's indexes away and builds them again from the log.
    ///
    /// # Errors
    /// The log is damaged, or the index can't be written.
    pub fn reindex(&self, app: &AppName, progress: &mut dyn FnMut(CommitNumber)) -> Result<(), StorageError> {
        self.log(app)?.reindex(progress).map_err(|error| StorageError(error.to_string()))
    }

    /// Takes what is damaged in an app's log from a backup: a data folder, or the log folder of the app in one. What was
    /// damaged is kept aside.
    ///
    /// # Errors
    /// The log is in use, or the backup lacks what would be needed: nothing has changed then. Or the disk refused.
    pub fn repair(
        &self,
        app: &AppName,
        backup: &Path,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<RepairReport, StorageError> {
        let inside = log_folder(backup, app);
        let backup = if inside.is_dir() { inside } else { backup.to_owned() };
        self.offline(app, || repair(&self.options.disk, &self.log_folder(app), &backup, progress))
    }
}

fn log_folder(data: &Path, app: &AppName) -> PathBuf {
    match &**app {
        SYSTEM => data.join(SYSTEM).join("log"),
        name => data.join("apps").join(name).join("log"),
    }
}

/// Opens sled; what can't be opened is thrown away, because the logs can rebuild it.
fn open_index(folder: &Path, cache_bytes: u64) -> Result<sled::Db, StorageError> {
    let open = || {
        let config = sled::Config::new().path(folder).cache_capacity(cache_bytes);
        // sled panics on some kinds of damage where it should return an error.
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| config.open()))
    };
    let why = match open() {
        Ok(Ok(db)) => return Ok(db),
        Ok(Err(sled::Error::Io(error)))
            if matches!(
                error.kind(),
                std::io::ErrorKind::PermissionDenied
                    | std::io::ErrorKind::StorageFull
                    | std::io::ErrorKind::WouldBlock
                    | std::io::ErrorKind::ReadOnlyFilesystem
            ) =>
        {
            return Err(StorageError(format!("{}: {error}", folder.display())));
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => "sled panicked".to_owned(),
    };
    tracing::warn!(folder = %folder.display(), why, "the indexes are damaged; they are built again from the logs");
    let removed = std::fs::remove_dir_all(folder).or_else(|_| std::fs::remove_file(folder));
    removed.map_err(|error| StorageError(format!("{}: {error}", folder.display())))?;
    match open() {
        Ok(Ok(db)) => Ok(db),
        Ok(Err(error)) => Err(StorageError(format!("{}: {error}", folder.display()))),
        Err(_) => Err(StorageError(format!("{}: sled panicked", folder.display()))),
    }
}

fn secret(path: &Path) -> Result<[u8; 32], StorageError> {
    let io = |error: std::io::Error| StorageError(format!("{}: {error}", path.display()));
    match std::fs::read(path) {
        Ok(bytes) => bytes.try_into().map_err(|_| {
            StorageError(format!("{} has not 32 bytes; remove it to have a new one made", path.display()))
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let mut secret = [0; 32];
            // Version 4 UUIDs come from the system's generator; six bits of each are fixed, so hash more than enough.
            let random: Vec<u8> = (0..4).flat_map(|_| *uuid::Uuid::new_v4().as_bytes()).collect();
            secret.copy_from_slice(&Digest::of(&random).0);
            blobs::write_durably(path, &secret, 0o600).map_err(io)?;
            Ok(secret)
        }
        Err(error) => Err(io(error)),
    }
}

impl Storage for DiskStorage {
    fn open_log(&self, app: &AppName) -> Result<Arc<dyn EventLog>, StorageError> {
        Ok(self.log(app)?)
    }

    fn rest(&self, app: &AppName) -> Result<Option<Durable>, StorageError> {
        let path = self.rest_path(app);
        match std::fs::read(&path) {
            // A note that can't be read is none.
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StorageError(format!("{}: {error}", path.display()))),
        }
    }

    fn note_rest(&self, app: &AppName, rest: Option<Durable>) -> Result<(), StorageError> {
        let path = self.rest_path(app);
        let io = |error: std::io::Error| StorageError(format!("{}: {error}", path.display()));
        if let Some(rest) = rest {
            let note = serde_json::to_vec(&rest).map_err(|error| StorageError(error.to_string()))?;
            crash_point(Point::RestBeforeNote);
            // Not synced: without it the app is opened at the next start, and finds nothing to do.
            let unfinished = path.with_extension("new");
            std::fs::write(&unfinished, note)
                .and_then(|()| std::fs::rename(&unfinished, &path))
                .map_err(io)?;
            crash_point(Point::RestAfterNote);
            return Ok(());
        }
        match std::fs::remove_file(&path) {
            Ok(()) => match path.parent() {
                Some(folder) => RealDisk.sync_folder(folder).map_err(io),
                None => Ok(()),
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(io(error)),
        }
    }

    fn snapshots(&self, app: &AppName) -> Result<Arc<dyn Snapshots>, StorageError> {
        let tree = self.db.open_tree(snapshot_tree(app)).map_err(|error| StorageError(error.to_string()))?;
        Ok(Arc::new(SledSnapshots(tree)))
    }

    fn remove_app(&self, app: &AppName) -> Result<(), StorageError> {
        if &**app == SYSTEM {
            return Err(StorageError(format!("`{SYSTEM}` is the node's own log and can't be removed")));
        }
        // A reader may hold the log for as long as it likes: it is closed, and its slot taken away from it.
        let open = {
            let mut logs = self.held.logs.lock();
            while matches!(logs.get(app), Some(Slot::Busy)) {
                self.held.closed.wait(&mut logs);
            }
            match logs.insert(app.clone(), Slot::Busy) {
                Some(Slot::Open(log, _)) => log.upgrade(),
                _ => None,
            }
        };
        if let Some(log) = &open {
            log.close();
        }
        let removed = self.remove_files(app);
        self.held.logs.lock().remove(app);
        self.held.closed.notify_all();
        drop(open);
        removed
    }

    fn put_blob(&self, bytes: &[u8]) -> Result<Digest, StorageError> {
        self.blobs.put(bytes)
    }

    fn blob(&self, digest: &Digest) -> Result<Bytes, StorageError> {
        self.blobs.get(digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::ManualClock;
    use crate::testing::conformance::{all_data, append, commit, event, stream, with_key};
    use ebb_domain::event::{EventId, Position, Revision};
    use ebb_domain::port::storage::Snapshot;

    fn options() -> StorageOptions {
        StorageOptions::new(ManualClock::new())
    }

    fn app(name: &str) -> AppName {
        AppName::new(name).unwrap()
    }

    #[test]
    fn a_second_opener_of_a_data_folder_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let storage = DiskStorage::open(folder.path(), options()).unwrap();
        assert!(
            DiskStorage::open(folder.path(), options())
                .err()
                .unwrap()
                .to_string()
                .contains("is in use by process")
        );
        let log = storage.open_log(&app("bank")).unwrap();
        drop(storage);
        assert!(DiskStorage::open(folder.path(), options()).is_err(), "a log that is held holds the lock");
        drop(log);
        DiskStorage::open(folder.path(), options()).unwrap();
    }

    #[tokio::test]
    async fn the_same_app_is_the_same_log_as_long_as_someone_holds_it() {
        let folder = tempfile::tempdir().unwrap();
        let storage = DiskStorage::open(folder.path(), options()).unwrap();
        let log = storage.log(&app("bank")).unwrap();
        append(&*log, commit("account-1", vec![event("Opened", "1")])).await;
        assert!(Arc::ptr_eq(&log, &storage.log(&app("bank")).unwrap()));
        drop(log);
        let again = storage.log(&app("bank")).unwrap();
        assert_eq!(all_data(&*again).await, ["1"]);
        assert_eq!(all_data(&*storage.log(&app("other")).unwrap()).await.len(), 0, "apps are kept apart");
    }

    #[tokio::test]
    async fn everything_is_there_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let snapshot = Snapshot {
            revision: Revision(0),
            event: EventId(uuid::Uuid::from_u128(7)),
            module: Digest::of(b"module"),
            state_version: None,
            data: Bytes::from_static(b"state"),
        };
        let (secret, blob) = {
            let storage = DiskStorage::open(folder.path(), options()).unwrap();
            for name in ["bank", SYSTEM] {
                let log = storage.open_log(&app(name)).unwrap();
                append(&*log, with_key(commit("account-1", vec![event("Opened", name)]), "key")).await;
            }
            let log = storage.open_log(&app("bank")).unwrap();
            storage.snapshots(&app("bank")).unwrap().put(&stream("account-1"), snapshot.clone());
            let blob = storage.put_blob(b"module").unwrap();
            storage.close();
            drop(log);
            (*storage.secret(), blob)
        };
        let storage = DiskStorage::open(folder.path(), options()).unwrap();
        assert_eq!(*storage.secret(), secret);
        assert_eq!(storage.blob(&blob).unwrap(), "module");
        assert_eq!(storage.apps().unwrap(), [app("bank"), app(SYSTEM)]);
        let log = storage.open_log(&app("bank")).unwrap();
        assert_eq!(all_data(&*log).await, ["bank"]);
        assert!(log.find_key("anonymous", "key").unwrap().is_some());
        assert_eq!(storage.snapshots(&app("bank")).unwrap().get(&stream("account-1")), Some(snapshot));
        assert_eq!(all_data(&*storage.open_log(&app(SYSTEM)).unwrap()).await, [SYSTEM]);
        assert!(folder.path().join("system/log/00000001.seg").is_file());
    }

    #[tokio::test]
    async fn an_index_folder_that_is_gone_or_full_of_rubbish_is_made_again() {
        let folder = tempfile::tempdir().unwrap();
        for damage in 0..3 {
            {
                let storage = DiskStorage::open(folder.path(), options()).unwrap();
                let log = storage.open_log(&app("bank")).unwrap();
                append(
                    &*log,
                    with_key(commit("account-1", vec![event("Opened", "1")]), &format!("{damage}")),
                )
                .await;
                storage.close();
            }
            let index = folder.path().join("index");
            match damage {
                0 => std::fs::remove_dir_all(&index).unwrap(),
                1 => std::fs::write(index.join("conf"), b"rubbish").unwrap(),
                _ => std::fs::write(index.join("db"), vec![0xaa; 100_000]).unwrap(),
            }
            let storage = DiskStorage::open(folder.path(), options()).unwrap();
            let log = storage.open_log(&app("bank")).unwrap();
            assert_eq!(log.head(&stream("account-1")).unwrap().revision, Some(Revision(damage)));
            assert!(log.find_key("anonymous", &format!("{damage}")).unwrap().is_some(), "damage {damage}");
        }
    }

    #[tokio::test]
    async fn a_removed_app_leaves_nothing_also_while_a_reader_holds_its_log() {
        let folder = tempfile::tempdir().unwrap();
        let storage = DiskStorage::open(folder.path(), options()).unwrap();
        let held = storage.open_log(&app("bank")).unwrap();
        append(&*held, with_key(commit("account-1", vec![event("Opened", "1")]), "key")).await;
        assert!(storage.remove_app(&app(SYSTEM)).is_err());
        storage.remove_app(&app("bank")).unwrap();
        storage.remove_app(&app("bank")).unwrap();
        storage.remove_app(&app("never-there")).unwrap();
        assert_eq!(storage.apps().unwrap(), []);
        assert!(held.append(commit("account-1", vec![event("Opened", "2")])).await.is_err(), "it is closed");

        let log = storage.open_log(&app("bank")).unwrap();
        assert_eq!(log.durable().borrow().commit, CommitNumber(0));
        assert!(log.find_key("anonymous", "key").unwrap().is_none());
        append(&*log, commit("account-1", vec![event("Opened", "new")])).await;
        // Who let go of the removed log does not take the new one's place away.
        drop(held);
        assert!(Arc::ptr_eq(&log, &storage.open_log(&app("bank")).unwrap()));
        assert_eq!(all_data(&*log).await, ["new"]);
    }

    #[tokio::test]
    async fn a_log_that_was_closed_is_opened_again_also_while_a_reader_holds_it() {
        let folder = tempfile::tempdir().unwrap();
        let storage = DiskStorage::open(folder.path(), options()).unwrap();
        let held = storage.open_log(&app("bank")).unwrap();
        append(&*held, commit("account-1", vec![event("Opened", "1")])).await;
        let end = *held.durable().borrow();
        assert_eq!(held.close(), Some(end));
        assert_eq!(held.close(), Some(end), "once is enough");

        let log = storage.open_log(&app("bank")).unwrap();
        append(&*log, commit("account-1", vec![event("Opened", "2")])).await;
        assert_eq!(
            (all_data(&*held).await, all_data(&*log).await),
            (vec!["1".into()], vec!["1".into(), "2".into()])
        );
        drop(held);
        assert!(Arc::ptr_eq(&log, &storage.open_log(&app("bank")).unwrap()));
    }

    #[test]
    fn a_note_that_an_app_is_at_rest_is_there_until_it_is_taken_back() {
        let folder = tempfile::tempdir().unwrap();
        let storage = DiskStorage::open(folder.path(), options()).unwrap();
        let bank = app("bank");
        drop(storage.open_log(&bank).unwrap());
        assert_eq!(storage.rest(&bank).unwrap(), None);
        storage.note_rest(&bank, None).unwrap();
        let end = Durable { commit: CommitNumber(3), position: Position(7) };
        storage.note_rest(&bank, Some(end)).unwrap();
        assert_eq!(storage.rest(&bank).unwrap(), Some(end));
        std::fs::write(storage.rest_path(&bank), "{\"commit\":3").unwrap();
        assert_eq!(storage.rest(&bank).unwrap(), None, "half a note is none");
        storage.note_rest(&bank, Some(end)).unwrap();
        storage.note_rest(&bank, None).unwrap();
        assert_eq!(storage.rest(&bank).unwrap(), None);
        storage.note_rest(&bank, Some(end)).unwrap();
        storage.remove_app(&bank).unwrap();
        assert_eq!(storage.rest(&bank).unwrap(), None, "a removed app leaves nothing");
    }

    #[tokio::test]
    async fn damage_is_verified_and_repaired_from_a_copy_of_the_data_folder() {
        let (folder, backup) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let storage = DiskStorage::open(folder.path(), options()).unwrap();
        append(&*storage.open_log(&app("bank")).unwrap(), commit("account-1", vec![event("Opened", "1")]))
            .await;
        let segment = storage.log_folder(&app("bank")).join("00000001.seg");
        let copy = backup.path().join("apps/bank/log");
        std::fs::create_dir_all(&copy).unwrap();
        std::fs::copy(&segment, copy.join("00000001.seg")).unwrap();

        let mut bytes = std::fs::read(&segment).unwrap();
        bytes[300] ^= 1;
        std::fs::write(&segment, bytes).unwrap();
        assert!(storage.open_log(&app("bank")).err().unwrap().to_string().contains("the log is damaged"));
        assert_eq!(storage.verify(&app("bank"), &mut |_| ()).unwrap().damage.len(), 1);
        let report = storage.repair(&app("bank"), backup.path(), &mut |_| ()).unwrap();
        assert_eq!((report.mended.len(), report.commits), (1, 1));
        assert_eq!(all_data(&*storage.open_log(&app("bank")).unwrap()).await, ["1"]);
    }
}
