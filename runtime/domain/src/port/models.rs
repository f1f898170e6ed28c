//! Read models, as the projector and the queries see them: rows, and the mark that commits with them.

use crate::digest::Digest;
use crate::event::Position;
use crate::model::{ModelSchema, Page, Query, Row};
use crate::name::TopicName;
use crate::name::{AppName, ColumnName, ModelName, ProjectionName};
use crate::text::Text;
use crate::time::Timestamp;
use crate::topic::{KeptRecord, Place, Seen};
use std::sync::Arc;
use thiserror::Error;

/// Why rows could not be read or written.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ModelError {
    /// The projection does not declare this model.
    #[error("`{0}` is not a model of this projection")]
    UnknownModel(String),
    /// The model does not have this column, or it has another type.
    #[error("model `{model}`: {problem}")]
    BadColumn {
        /// The model.
        model: String,
        /// What is wrong, for people.
        problem: String,
    },
    /// The store failed; what it held can be rebuilt from the log.
    #[error("the read model could not be used: {0}")]
    Store(String),
}

/// Rows as a guest sees them during one call: reads see the call's own writes. Synchronous, because a guest waits
/// for each of these and they take microseconds.
pub trait Rows: Send {
    /// The model, with its columns.
    ///
    /// # Errors
    /// The model is not the projection's.
    fn model(&self, model: &str) -> Result<&ModelSchema, ModelError>;

    /// The row, or none.
    ///
    /// # Errors
    /// The model is not the projection's, or the store failed.
    fn get(&mut self, model: &str, key: &str) -> Result<Option<Row>, ModelError>;

    /// Writes the whole row. The key column is filled in.
    ///
    /// # Errors
    /// The model is not the projection's, a column is not the model's or has another type, or a bound is reached.
    fn put(
        &mut self,
        model: &str,
        key: &str,
        columns: Vec<(Text, crate::model::Value)>,
    ) -> Result<(), ModelError>;

    /// Removes the row, if there is one.
    ///
    /// # Errors
    /// As for `put`.
    fn delete(&mut self, model: &str, key: &str) -> Result<(), ModelError>;

    /// Adds to an integer column, making the row if there is none.
    ///
    /// # Errors
    /// As for `put`.
    fn add(&mut self, model: &str, key: &str, column: &str, delta: i64) -> Result<(), ModelError>;
}

/// One change to one row; a batch has at most one for a row.
#[derive(Clone, Debug, PartialEq)]
pub enum RowChange {
    /// The whole row, the key column included.
    Put(Row),
    /// No row.
    Delete,
    /// Added to integer columns of the row that is there, or of a new row. Null counts as 0. Overflow saturates.
    Add(Vec<(ColumnName, i64)>),
}

/// A change to what is parked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ParkChange {
    /// Parks a key because this event of it failed; it becomes the first of the key's queue.
    Park {
        /// The lane key: by default the stream.
        key: Text,
        /// The event that failed.
        position: Position,
        /// Why, for people.
        reason: String,
        /// How often it was tried.
        attempts: u32,
        /// When it was parked.
        at: Timestamp,
    },
    /// A later event of a parked key queues behind it.
    Queue {
        /// The key.
        key: Text,
        /// The event.
        position: Position,
    },
    /// The event at the front failed and will be tried again. Remembered, so that a restart does not count from the
    /// beginning, and forgotten when the mark passes it.
    Tried(Tried),
    /// The first of a key's queue was tried again and failed again.
    Failed {
        /// The key.
        key: Text,
        /// Why, for people.
        reason: String,
        /// When.
        at: Timestamp,
    },
    /// The key's queue up to and including this event was applied, or skipped by command; a queue that is empty then
    /// unparks its key.
    Done {
        /// The key.
        key: Text,
        /// The last event that is done.
        through: Position,
    },
}

/// An event that failed, and is not parked yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tried {
    /// The event.
    pub position: Position,
    /// Why it failed last.
    pub reason: String,
    /// How often it was tried.
    pub attempts: u32,
}

/// What one batch changes; all of it commits in one transaction, or none.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RowBatch {
    /// Changes by model and key.
    pub changes: Vec<(ModelName, Text, RowChange)>,
    /// Changes to what is parked, applied in order.
    pub parks: Vec<ParkChange>,
    /// The new mark; none leaves it (a retry of parked events).
    pub mark: Option<Position>,
    /// Where it goes on in these partitions, for a projection that takes records straight from topics.
    pub places: Vec<Place>,
    /// The records that stand at positions which this batch parks, queues or remembers as tried. Each is kept for as long
    /// as its position is one of these.
    pub records: Vec<(Position, KeptRecord)>,
    /// Records that are not to be taken again. Each is kept while it may come again: see [`Seen::comes_again_as`].
    pub seen: Vec<Seen>,
}

/// A parked key.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Parked {
    /// The lane key: by default the stream.
    pub key: Text,
    /// The event that stands first, the one that fails.
    pub position: Position,
    /// How many events queue, that one included.
    pub queued: u64,
    /// Why it failed last.
    pub reason: String,
    /// How often it was tried.
    pub attempts: u32,
    /// When it was parked.
    pub since: Timestamp,
    /// When it was tried last.
    pub last_attempt: Timestamp,
}

/// The name of a projection's version: what its module, models and source make of it. Another version has its own
/// rows.
pub type ProjectionVersion = Digest;

/// Rows of one projection version. Reads come from any thread; one writer commits.
pub trait ProjectionStore: Send + Sync + 'static {
    /// How far it has got.
    ///
    /// # Errors
    /// The store failed.
    fn mark(&self) -> Result<Position, ModelError>;

    /// The committed row, or none.
    ///
    /// # Errors
    /// The model is not the projection's, or the store failed.
    fn get(&self, model: &str, key: &str) -> Result<Option<Row>, ModelError>;

    /// Committed rows.
    ///
    /// # Errors
    /// The model is not the projection's, a column is not the model's, or the store failed.
    fn query(&self, model: &str, query: &Query) -> Result<Page, ModelError>;

    /// The committed row and the mark of the same moment, so that a reader can say how fresh it is.
    ///
    /// # Errors
    /// As for `get`.
    fn get_at(&self, model: &str, key: &str) -> Result<(Position, Option<Row>), ModelError>;

    /// Committed rows and the mark of the same moment.
    ///
    /// # Errors
    /// As for `query`.
    fn query_at(&self, model: &str, query: &Query) -> Result<(Position, Page), ModelError>;

    /// Commits a batch: rows, parks and mark in one transaction.
    ///
    /// # Errors
    /// Nothing was changed.
    fn commit(&self, batch: RowBatch) -> Result<(), ModelError>;

    /// Parked keys in order of key, those behind `after`.
    ///
    /// # Errors
    /// The store failed.
    fn parked(&self, after: Option<&str>, limit: usize) -> Result<Vec<Parked>, ModelError>;

    /// One parked key.
    ///
    /// # Errors
    /// The store failed.
    fn parked_key(&self, key: &str) -> Result<Option<Parked>, ModelError>;

    /// How many keys are parked.
    ///
    /// # Errors
    /// The store failed.
    fn parked_count(&self) -> Result<u64, ModelError>;

    /// The lowest position that is parked; none if nothing is.
    ///
    /// # Errors
    /// The store failed.
    fn first_parked(&self) -> Result<Option<Position>, ModelError>;

    /// Events queued under a key, in order, from its first.
    ///
    /// # Errors
    /// The store failed.
    fn queued(&self, key: &str, limit: usize) -> Result<Vec<Position>, ModelError>;

    /// The event behind the mark that failed and will be tried again, if there is one.
    ///
    /// # Errors
    /// The store failed.
    fn tried(&self) -> Result<Option<Tried>, ModelError>;

    /// Where it goes on in each partition, in order of topic and partition; empty for one that follows the log.
    ///
    /// # Errors
    /// The store failed.
    fn places(&self) -> Result<Vec<Place>, ModelError>;

    /// The record that was kept for this position; none if it is not parked, queued or tried any more.
    ///
    /// # Errors
    /// The store failed.
    fn record(&self, position: Position) -> Result<Option<KeptRecord>, ModelError>;

    /// The last record of a partition that has this in common with others.
    ///
    /// # Errors
    /// The store failed.
    fn seen(&self, topic: &TopicName, partition: u32, same: &Digest) -> Result<Option<Seen>, ModelError>;

    /// Bytes on disk.
    fn size_bytes(&self) -> u64;

    /// Closes what is open and not in use. The next use opens it again.
    fn release(&self);
}

/// A version's rows, and the models that they are rows of.
pub type ExistingStore = (Arc<dyn ProjectionStore>, Vec<ModelSchema>);

/// All projection stores of a node.
pub trait ModelStores: Send + Sync + 'static {
    /// Opens a version's rows, making them if they are not there. A damaged file is set aside and made anew: the log
    /// has everything. A store that finds damage while in use fails from then on, until it is opened again: it never
    /// goes back to the beginning behind its user's back. The same version again gives the same store.
    ///
    /// # Errors
    /// The store failed.
    fn open(
        &self,
        app: &AppName,
        projection: &ProjectionName,
        version: ProjectionVersion,
        models: &[ModelSchema],
    ) -> Result<Arc<dyn ProjectionStore>, ModelError>;

    /// Opens a version that is there already, with the models that it was made for; none if it is not there, or is
    /// damaged. What serves is read in this way while its successor, with other models, is being built.
    ///
    /// # Errors
    /// The store failed.
    fn open_existing(
        &self,
        app: &AppName,
        projection: &ProjectionName,
        version: ProjectionVersion,
    ) -> Result<Option<ExistingStore>, ModelError>;

    /// The versions that are there.
    ///
    /// # Errors
    /// The folder could not be read.
    fn versions(
        &self,
        app: &AppName,
        projection: &ProjectionName,
    ) -> Result<Vec<ProjectionVersion>, ModelError>;

    /// The version that serves queries, if one does.
    ///
    /// # Errors
    /// The catalogue could not be read.
    fn serving(
        &self,
        app: &AppName,
        projection: &ProjectionName,
    ) -> Result<Option<ProjectionVersion>, ModelError>;

    /// Moves the pointer, durably.
    ///
    /// # Errors
    /// The catalogue could not be written; the old version still serves.
    fn set_serving(
        &self,
        app: &AppName,
        projection: &ProjectionName,
        version: ProjectionVersion,
    ) -> Result<(), ModelError>;

    /// Where a projection has begun in each partition of the topics that it takes records straight from, whatever its
    /// version; empty if it has begun nowhere.
    ///
    /// # Errors
    /// The catalogue could not be read.
    fn beginning(&self, app: &AppName, projection: &ProjectionName) -> Result<Vec<Place>, ModelError>;

    /// Keeps that, durably: a version that is built anew begins there as well.
    ///
    /// # Errors
    /// The catalogue could not be written.
    fn set_beginning(
        &self,
        app: &AppName,
        projection: &ProjectionName,
        beginning: &[Place],
    ) -> Result<(), ModelError>;

    /// Removes every version of a projection but these; without any, the pointer and where it began too.
    ///
    /// # Errors
    /// A file could not be removed.
    fn retain(
        &self,
        app: &AppName,
        projection: &ProjectionName,
        versions: &[ProjectionVersion],
    ) -> Result<(), ModelError>;

    /// Removes all read models of an app.
    ///
    /// # Errors
    /// A file could not be removed.
    fn remove_app(&self, app: &AppName) -> Result<(), ModelError>;
}
