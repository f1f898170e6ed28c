//! What is dealt with next of the events that were read.

use super::failure::Front;
use super::lanes::lane_key;
use super::parking::ParkedKeys;
use ebb_domain::event::{Position, StoredEvent};
use ebb_domain::manifest::LaneBy;
use ebb_domain::port::models::ParkChange;
use ebb_domain::text::Text;

/// How many events are dealt with next, and which of them only queue.
pub(super) struct Window {
    pub len: usize,
    /// Indexes of events whose key is parked, ascending.
    pub queued: Vec<usize>,
}

impl Window {
    pub(super) fn new(events: &[StoredEvent], keys: &[Text], parked: &ParkedKeys, front: &Front) -> Self {
        if parked.is_empty() {
            let positions: Vec<Position> = events.iter().map(|event| event.position).collect();
            return Self { len: front.size(&positions), queued: Vec::new() };
        }
        let (mut queued, mut free) = (Vec::new(), Vec::new());
        for (index, key) in keys.iter().enumerate() {
            if parked.contains(key) {
                queued.push(index);
            } else {
                free.push(index);
            }
        }
        let positions: Vec<Position> = free.iter().map(|index| events[*index].position).collect();
        let size = if positions.is_empty() { 0 } else { front.size(&positions) };
        // Events that queue cost nothing: those up to the first one that has to wait come along.
        let len = free.get(size).copied().unwrap_or(events.len());
        queued.retain(|index| *index < len);
        Self { len, queued }
    }

    /// Those before an event of the window.
    pub(super) fn before(&self, index: usize) -> Self {
        Self { len: index, queued: self.queued.iter().copied().filter(|queued| *queued < index).collect() }
    }

    /// The changes that queue them.
    pub(super) fn parks(&self, events: &[StoredEvent], lane_by: &LaneBy) -> Vec<ParkChange> {
        let queue = |index: &usize| {
            let event = &events[*index];
            ParkChange::Queue { key: lane_key(lane_by, event), position: event.position }
        };
        self.queued.iter().map(queue).collect()
    }
}
