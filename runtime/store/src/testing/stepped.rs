//! A log without threads, for simulations.

use crate::log::disk::Disk;
use crate::log::{DiskLog, LogOptions, OpenLog, Stage};
use ebb_domain::port::Clock;
use ebb_domain::port::log::EventLog;
use ebb_domain::port::storage::StorageError;
use parking_lot::Mutex;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// The log as a node has it, whose work is done when its holder says so.
pub struct SteppedLog {
    log: Arc<DiskLog>,
    /// The group that is on its way.
    stage: Mutex<Option<Stage>>,
}

impl SteppedLog {
    /// Opens the log in a folder of this disk. `group_commits`: commits of a group at which further appends wait.
    ///
    /// # Errors
    /// The log is damaged, or the disk fails.
    pub fn open(
        disk: Arc<dyn Disk>,
        folder: &Path,
        db: &sled::Db,
        clock: Arc<dyn Clock>,
        group_commits: usize,
    ) -> Result<Self, StorageError> {
        let options = LogOptions {
            group_commits,
            // No time passes that is not the simulation's.
            index_batch: 1,
            index_after: Duration::ZERO,
            retry_after: Duration::ZERO,
            ..LogOptions::default()
        };
        let log = DiskLog::open(OpenLog { disk, folder, name: "sim", db, clock, options, stepped: true })?;
        Ok(Self { log: Arc::new(log), stage: Mutex::new(None) })
    }

    /// The log.
    #[must_use]
    pub fn log(&self) -> Arc<dyn EventLog> {
        Arc::clone(&self.log) as Arc<dyn EventLog>
    }

    /// Goes one step with the group that is being written, or takes what is staged as the next one. False: there is
    /// nothing to do.
    pub fn step(&self) -> bool {
        let mut stage = self.stage.lock();
        let is_new = stage.is_none();
        *stage = self.log.step_group(stage.take());
        stage.is_some() || !is_new
    }

    /// Moves what is durable to the index.
    pub fn index(&self) {
        self.log.step_index();
    }

    /// Closes it, as a node does that is told to end.
    pub fn close(&self) {
        while self.stage.lock().is_some() {
            self.step();
        }
        self.log.close();
    }
}
