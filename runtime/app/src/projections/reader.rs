//! Reading a model: from the version that serves, with how fresh it is.

use super::service::Slot;
use super::version::Version;
use ebb_domain::event::Position;
use ebb_domain::model::{ModelSchema, Page, Query, Row};
use ebb_domain::name::{ModelName, ProjectionName};
use ebb_domain::port::log::Durable;
use ebb_domain::port::models::{ModelError, ProjectionStore};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use thiserror::Error;
use tokio::sync::watch;

/// A wait was over before the projection had passed the position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the projection has got to position {mark} and not yet to {wanted}")]
pub struct Waited {
    /// Where it stood when the wait was over.
    pub mark: Position,
    /// What was waited for.
    pub wanted: Position,
}

/// Why a model is not as fresh as a reader wants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NotFresh {
    /// The log has never reached that position.
    #[error("position {wanted} was asked for; the log ends at {end}")]
    Unknown {
        /// What was asked for.
        wanted: Position,
        /// Where the log ends.
        end: Position,
    },
    /// It was waited for, and the wait is over.
    #[error(transparent)]
    Behind(#[from] Waited),
    /// Its rows are of records that come straight from topics: they have no position in the log.
    #[error(
        "position {wanted} was asked for, and the rows are of records that come straight from topics, which have none"
    )]
    Direct {
        /// What was asked for.
        wanted: Position,
    },
    /// The rows may lack what an event at or below the position makes of them.
    #[error("position {wanted} was asked for; an event at {parked} is parked")]
    Parked {
        /// What was asked for.
        wanted: Position,
        /// The first that is parked.
        parked: Position,
    },
}

/// Reads one model, always from the version that serves. Cheap to make.
#[derive(Clone)]
pub struct ModelReader {
    slot: Arc<Slot>,
    schema: Arc<ModelSchema>,
    durable: watch::Receiver<Durable>,
}

impl ModelReader {
    pub(super) fn new(slot: Arc<Slot>, schema: Arc<ModelSchema>, durable: watch::Receiver<Durable>) -> Self {
        Self { slot, schema, durable }
    }

    /// The model's name.
    #[must_use]
    pub fn name(&self) -> &ModelName {
        &self.schema.name
    }

    /// The projection that writes it.
    #[must_use]
    pub fn projection(&self) -> &ProjectionName {
        &self.slot.name
    }

    /// The model as it is served now: while a version with another schema is being built, the old one.
    #[must_use]
    pub fn schema(&self) -> Arc<ModelSchema> {
        let serving = self.slot.serving();
        match serving.models.get(&self.schema.name) {
            Some(served) if *served != *self.schema => Arc::new(served.clone()),
            _ => self.schema.clone(),
        }
    }

    /// The row, and the position that it is true for. Takes microseconds, on the caller's thread.
    ///
    /// # Errors
    /// The store failed, or the model is new and its first rows are still being made.
    pub fn get_at(&self, key: &str) -> Result<(Position, Option<Row>), ModelError> {
        self.read(|store, model| store.get_at(model, key))
    }

    /// Rows, and the position that they are true for. Runs where it may take its time.
    ///
    /// # Errors
    /// A column is not the model's, the store failed, or the model is new and its first rows are still being made.
    pub async fn query_at(&self, query: Query) -> Result<(Position, Page), ModelError> {
        let reader = self.clone();
        let read = move || reader.read(|store, model| store.query_at(model, &query));
        super::blocking(read).await
    }

    fn read<T>(
        &self,
        read: impl Fn(&dyn ProjectionStore, &str) -> Result<(Position, T), ModelError>,
    ) -> Result<(Position, T), ModelError> {
        loop {
            let serving = self.slot.serving();
            if serving.models.get(&self.schema.name).is_none() {
                let building =
                    format!("`{}` is new and its first rows are still being made", self.schema.name);
                return Err(ModelError::Store(building));
            }
            serving.touch();
            let body = serving.body();
            // Taken before the rows are read: between the store's mark and here there is nothing that the projection
            // wants, and if rows were committed since, their mark is beyond it.
            let passed = *body.passed.borrow();
            match read(&*body.store, &self.schema.name) {
                Ok((mark, rows)) => return Ok((mark.max(passed), rows)),
                // It was swapped away, and its file removed, while it was being read.
                Err(ModelError::Store(_)) if !Arc::ptr_eq(&serving, &self.slot.serving()) => {}
                Err(error) => {
                    if let ModelError::Store(_) = &error {
                        serving.doubt.notify_one();
                    }
                    return Err(error);
                }
            }
        }
    }

    /// The end of the log.
    #[must_use]
    pub fn end(&self) -> Position {
        self.durable.borrow().position
    }

    /// Waits until what is read shows every event up to a position.
    ///
    /// # Errors
    /// It does not; see [`NotFresh`].
    pub async fn be_fresh(
        &self,
        wanted: Position,
        patience: Duration,
        allow_parked: bool,
    ) -> Result<(), NotFresh> {
        if self.is_direct() {
            return Err(NotFresh::Direct { wanted });
        }
        let end = self.end();
        if wanted > end {
            return Err(NotFresh::Unknown { wanted, end });
        }
        self.wait_for(wanted, patience).await?;
        match self.first_parked() {
            Some(parked) if parked <= wanted && !allow_parked => Err(NotFresh::Parked { wanted, parked }),
            _ => Ok(()),
        }
    }

    /// Whether its rows are of records that come straight from topics: then what it says of positions is about no log.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.slot.serving().is_direct()
    }

    /// How far the version that serves has got.
    #[must_use]
    pub fn position(&self) -> Position {
        self.slot.serving().passed()
    }

    /// Positions between that and the end of the log; or records that it has still to take from its topics, as far as that
    /// is known.
    #[must_use]
    pub fn lag(&self) -> u64 {
        self.slot.serving().lag(self.end())
    }

    /// How many keys are parked.
    #[must_use]
    pub fn parked_count(&self) -> u64 {
        self.slot.serving().body().parks.lock().count
    }

    /// The lowest position that is parked; none if nothing is. Rows may lack what is parked at or below a position
    /// that a reader wants to see.
    #[must_use]
    pub fn first_parked(&self) -> Option<Position> {
        self.slot.serving().body().parks.lock().first
    }

    /// Waits until the projection has passed a position, whatever becomes of its versions meanwhile.
    ///
    /// # Errors
    /// It had not when the time was over.
    pub async fn wait_for(&self, position: Position, patience: Duration) -> Result<(), Waited> {
        if self.position() >= position {
            return Ok(());
        }
        let waited = tokio::time::timeout(patience, self.wait(position)).await;
        waited.map_err(|_| Waited { mark: self.position(), wanted: position })
    }

    async fn wait(&self, position: Position) {
        let mut serving = self.slot.watch_serving();
        loop {
            let version = serving.borrow_and_update().clone();
            let _waiting = Waiting::on(version.clone());
            let mut passed = version.body().passed.subscribe();
            let reached = async { passed.wait_for(|passed| *passed >= position).await.is_ok() };
            tokio::select! {
                biased;
                reached = reached => match reached {
                    true => return,
                    // The rows are being made anew.
                    false => tokio::task::yield_now().await,
                },
                changed = serving.changed() => if changed.is_err() {
                    // The projection is gone; the wait ends with its time.
                    std::future::pending::<()>().await;
                },
            }
        }
    }
}

/// Counts a waiting reader, so that the projector does not wait for its batches to fill up.
struct Waiting(Arc<Version>);

impl Waiting {
    fn on(version: Arc<Version>) -> Self {
        version.waiting.fetch_add(1, Ordering::Relaxed);
        version.nudge.notify_one();
        Self(version)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}
