//! How a candidate takes the place of the version that serves.
//!
//! The slot's gate makes that one step for readers: the serving version commits and publishes its progress behind it,
//! and a candidate compares and swaps behind it. So no reader sees a position that the candidate does not have.

use super::projector::{Flow, Projector, Stop};
use ebb_domain::name::{AppName, ProjectionName};
use ebb_domain::port::models::{ModelError, ModelStores};
use std::sync::Arc;
use tokio::sync::OwnedMutexGuard;
use tracing::{info, warn};

impl Projector {
    pub(super) fn serves(&self) -> bool {
        Arc::ptr_eq(&self.slot.serving(), &self.version)
    }

    /// While a candidate compares itself with the version that serves, that one makes no progress.
    pub(super) async fn gate_before_progress(&mut self) -> Flow<Option<OwnedMutexGuard<()>>> {
        if !self.serves() {
            return Ok(None);
        }
        let gate = self.slot.gate.clone().lock_owned().await;
        // It may have been swapped away, and its files removed, while it waited. An event function never is, and what its
        // last call did is to be remembered.
        let ends = *self.stop.borrow() && !self.version.has_effects();
        if ends || !self.serves() { Err(Stop::Stopped) } else { Ok(Some(gate)) }
    }

    /// A candidate that is nearly there makes its last steps while the version that serves stands still: else it might
    /// follow it for ever. One whose events fail does not: it would hold up the other for as long as its calls take.
    pub(super) async fn gate_before_the_swap(&self) -> Option<OwnedMutexGuard<()>> {
        if self.serves() || !self.front.is_well() {
            return None;
        }
        let behind = self.slot.serving().passed().0.saturating_sub(self.version.passed().0);
        if behind > self.max_events() as u64 {
            return None;
        }
        Some(self.slot.gate.clone().lock_owned().await)
    }

    /// Serves instead of the version before it, if it has got as far.
    pub(super) async fn swap_if_caught_up(&mut self, gate: Option<OwnedMutexGuard<()>>) -> Flow<()> {
        if self.serves() || !self.has_caught_up() {
            return Ok(());
        }
        let gate = match gate {
            Some(gate) => gate,
            None => self.slot.gate.clone().lock_owned().await,
        };
        // It may have been swapped away itself since it looked: who was told to stop serves nothing any more.
        if *self.stop.borrow() {
            return Err(Stop::Stopped);
        }
        // The one that serves may have made progress until now; from here on it makes none.
        if !self.has_caught_up() {
            return Ok(());
        }
        let key = self.version.key;
        self.on_stores(move |stores, app, name| stores.set_serving(app, name, key)).await?;
        let before = self.slot.serving();
        let old = self.slot.swap(self.version.clone());
        if let Some(old) = &old {
            old.stop();
        }
        drop(gate);
        info!(mark = %self.version.passed(), "serves instead of {}", before.key.short());
        if let Some(old) = old {
            old.stopped().await;
        }
        if let Err(error) = self.on_stores(move |stores, app, name| stores.retain(app, name, &[key])).await {
            warn!(%error, "the version before could not be removed; the next deployment tries again");
        }
        Ok(())
    }

    fn has_caught_up(&self) -> bool {
        // If the one that serves is ahead of the log, the end of the log is as far as anyone can get.
        let end = self.log.durable().borrow().position;
        self.version.passed() >= self.slot.serving().passed().min(end)
    }

    async fn on_stores(
        &self,
        work: impl FnOnce(&dyn ModelStores, &AppName, &ProjectionName) -> Result<(), ModelError> + Send + 'static,
    ) -> Result<(), ModelError> {
        let (stores, app, name) = (self.deps.stores.clone(), self.app().clone(), self.name().clone());
        super::blocking(move || work(&*stores, &app, &name)).await
    }
}
