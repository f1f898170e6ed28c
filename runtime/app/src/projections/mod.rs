//! Projections: from events to rows.
//!
//! [`Projections`] holds an app's projections and swaps their versions; a `projector` runs one version: it reads its `feed`
//! (the log, or topics) behind its mark, has each batch applied (`lanes`, over an `overlay` of the committed rows), and commits
//! rows and mark in one transaction; a version that is built beside another takes its place by `swap`. `failure` decides what
//! becomes of events that fail, `parking` holds what was parked and carries out commands about it, and `reader` reads models
//! from the version that serves. `lazy` starts them all when they are first needed.
//!
//! An event function is run by the same parts: it follows the log as a projection without rows does, and `effects` says
//! how it differs.
//!
//! Promises:
//! * Rows and mark commit together, so each event is in the rows once.
//! * Rows are those of applying the events in order, on however many lanes they ran.
//! * No event is skipped but by command: it is applied, parked, or the projection stands still and says so.
//! * A reader never sees the mark go back: a version serves once it has got as far as the one before it.

mod dead_letter;
mod effects;
mod failure;
mod feed;
mod lanes;
mod lazy;
mod overlay;
mod parking;
mod projector;
mod reader;
mod service;
mod status;
mod swap;
#[cfg(test)]
mod tests;
mod topic_feed;
mod version;
mod window;

pub use effects::{Effect, Effects};
pub(crate) use lazy::LazyProjections;
pub use parking::{Retried, Seek, Skipped};
pub use reader::{ModelReader, NotFresh, Waited};
pub use service::{ProjectionDeployment, ProjectionDeps, ProjectionError, Projections};
pub use status::{Counters, Kind, ProjectionStatus, State, TopicsStatus, VersionStatus};

use ebb_domain::port::models::ModelError;
use tokio::runtime::{Handle, RuntimeFlavor};

/// Runs work on rows where it may wait for the disk.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ModelError> + Send + 'static,
) -> Result<T, ModelError> {
    // A runtime of one thread is a test's, which wants the same order of things each time.
    if Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread {
        return work();
    }
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(ModelError::Store(format!("the work was given up: {error}"))),
    }
}
