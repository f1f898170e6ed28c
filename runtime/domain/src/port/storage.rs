//! What a node keeps besides rows: logs by app, snapshots, modules by digest.

use super::log::{Durable, EventLog};
use crate::digest::Digest;
use crate::event::{EventId, Revision};
use crate::name::AppName;
use crate::stream::StreamId;
use bytes::Bytes;
use std::sync::Arc;
use thiserror::Error;

/// Why something kept could not be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct StorageError(pub String);

/// An aggregate's state as its module wrote it. A shortcut: it can be refolded from the log at any time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The last event it has folded.
    pub revision: Revision,
    /// That event's id. In another history of the stream (the app was purged and deployed again, or an older copy of its
    /// log put in place) another event has the revision, and the state is of no use.
    pub event: EventId,
    /// The module that wrote it.
    pub module: Digest,
    /// The `state-version` that the manifest declared for it; modules that declare the same one understand it.
    pub state_version: Option<u32>,
    /// The state.
    pub data: Bytes,
}

/// Snapshots of one app. Losing any of them costs time, not truth.
pub trait Snapshots: Send + Sync + 'static {
    /// The snapshot of a stream. Whether it is of the log that there is now, is for the caller to see.
    fn get(&self, stream: &StreamId) -> Option<Snapshot>;

    /// Keeps a snapshot instead of the one that there is.
    fn put(&self, stream: &StreamId, snapshot: Snapshot);
}

/// Opens what belongs to apps, and keeps modules.
pub trait Storage: Send + Sync + 'static {
    /// Opens an app's log, making it if it is not there. Blocks; recovery may read the last segment. The same app
    /// again gives the same log, as long as someone holds it.
    ///
    /// # Errors
    /// The log is damaged, or locked by another process, which the text names.
    fn open_log(&self, app: &AppName) -> Result<Arc<dyn EventLog>, StorageError>;

    /// Where an app's log ended when the app was put to rest: closed in order, every projection at that end, nothing
    /// parked. None: there may be something to do that nobody has to ask for.
    ///
    /// # Errors
    /// The note could not be read.
    fn rest(&self, app: &AppName) -> Result<Option<Durable>, StorageError>;

    /// Notes that an app is at rest, or, durably and before it is opened, that it is not. A note that is lost costs an
    /// opening at the next start. Blocks.
    ///
    /// # Errors
    /// The disk would not take it.
    fn note_rest(&self, app: &AppName, rest: Option<Durable>) -> Result<(), StorageError>;

    /// Snapshots of an app.
    ///
    /// # Errors
    /// The index could not be opened.
    fn snapshots(&self, app: &AppName) -> Result<Arc<dyn Snapshots>, StorageError>;

    /// Removes an app's log, indexes and snapshots for good. Whoever still holds the log can't append any more, and may
    /// fail to read; the next opening makes a new log. Does nothing if nothing is there, so it can be tried again.
    /// Blocks.
    ///
    /// # Errors
    /// A file could not be removed. Some may have been: try again.
    fn remove_app(&self, app: &AppName) -> Result<(), StorageError>;

    /// Keeps a file by its digest, durably: modules, schemas, manifests.
    ///
    /// # Errors
    /// The disk would not take it.
    fn put_blob(&self, bytes: &[u8]) -> Result<Digest, StorageError>;

    /// A kept file.
    ///
    /// # Errors
    /// It is not there, or its bytes no longer have this digest.
    fn blob(&self, digest: &Digest) -> Result<Bytes, StorageError>;
}
