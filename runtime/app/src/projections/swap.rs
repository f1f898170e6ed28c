//! How a candidate takes the place of the version that serves.
//!
//! The slot's gate makes that one step for readers: the serving version commits and publishes its progress behind it,
//! and a candidate compares and swaps behind it. So no reader sees a position that the candidate does not have.

use super::projector::{Flow, Projector, Stop};
use ebb_domain::name::{AppName, ProjectionName};
use ebb_domain::port::models::{ModelError, ModelStores};
use ebb_domain::topic::Place;
use std::collections::BTreeMap;
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
        if self.behind_serving() > self.max_events() as u64 {
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
        self.behind_serving() == 0
    }

    /// How far the version that serves is ahead.
    fn behind_serving(&self) -> u64 {
        let (serving, candidate) = (self.slot.serving(), &self.version);
        match (serving.is_direct(), candidate.is_direct()) {
            (false, false) => {
                // If the one that serves is ahead of the log, the end of the log is as far as anyone can get.
                let end = self.log.durable().borrow().position;
                serving.passed().min(end).0.saturating_sub(candidate.passed().0)
            }
            (true, true) => behind(&candidate.body().places.lock(), &serving.body().places.lock()),
            // They have no place in common: what is there now is what readers may have seen.
            (true, false) => candidate.lag(self.log.durable().borrow().position),
            (false, true) => candidate.left().map_or(u64::MAX, |left| {
                // What stands last in a partition may be the end of a transaction, which is no record.
                left.iter().map(|partition| partition.lag.saturating_sub(1)).sum()
            }),
        }
    }

    async fn on_stores(
        &self,
        work: impl FnOnce(&dyn ModelStores, &AppName, &ProjectionName) -> Result<(), ModelError> + Send + 'static,
    ) -> Result<(), ModelError> {
        let (stores, app, name) = (self.deps.stores.clone(), self.app().clone(), self.name().clone());
        super::blocking(move || work(&*stores, &app, &name)).await
    }
}

/// How far those at `places` are behind those at `others`, in the topics that both take.
fn behind(places: &[Place], others: &[Place]) -> u64 {
    let partition = |place: &Place| (place.topic.clone(), place.partition);
    let places: BTreeMap<_, _> = places.iter().map(|place| (partition(place), place)).collect();
    let behind =
        others.iter().filter(|other| places.keys().any(|(topic, _)| *topic == other.topic)).map(|other| {
            match places.get(&partition(other)) {
                Some(place) if place.topic_id == other.topic_id => other.next.saturating_sub(place.next),
                // The other one has gone on to a topic that was made again, or to a partition that is new.
                _ => u64::MAX,
            }
        });
    // Of topics that are all others', nothing is to be caught up on: there is a place for each of its own.
    if places.is_empty() { u64::MAX } else { behind.fold(0, u64::saturating_add) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebb_domain::name::TopicName;
    use uuid::Uuid;

    fn place(topic: &str, id: u128, partition: u32, next: u64) -> Place {
        Place { topic: TopicName::new(topic).unwrap(), topic_id: Uuid::from_u128(id), partition, next }
    }

    #[test]
    fn who_is_ahead_in_one_partition_is_behind_all_the_same_in_another() {
        let serving = [place("a", 1, 0, 10), place("a", 1, 1, 10)];
        assert_eq!(behind(&[place("a", 1, 0, 90), place("a", 1, 1, 7)], &serving), 3);
        assert_eq!(behind(&[place("a", 1, 0, 10), place("a", 1, 1, 11)], &serving), 0);
        assert_eq!(behind(&[], &serving), u64::MAX, "it has not begun");
        assert_eq!(
            behind(&[place("a", 1, 0, 90)], &serving),
            u64::MAX,
            "a partition that it does not know of"
        );
        assert_eq!(
            behind(&[place("a", 2, 0, 90), place("a", 2, 1, 90)], &serving),
            u64::MAX,
            "another topic"
        );
        assert_eq!(behind(&[place("b", 3, 0, 0)], &serving), 0, "it takes other topics from now on");
    }
}
