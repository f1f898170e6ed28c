//! Mailboxes: commands of one stream run one after another, streams side by side.

use ebb_domain::stream::StreamId;
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};

/// Commands that may wait for one stream.
pub const CAPACITY: usize = 64;

/// Enough that two cores rarely want the same one.
const SHARDS: usize = 64;

/// What [`Mailboxes::post`] says.
pub(crate) enum Posted {
    /// Nobody works on this stream: the caller must start a runner for it.
    First,
    /// A runner will come to it.
    Queued,
    /// The mailbox is full.
    Full,
}

/// The mailboxes of one app. A stream has one only while a runner works on it.
pub(crate) struct Mailboxes<Job> {
    shards: Vec<Mutex<HashMap<StreamId, VecDeque<Job>>>>,
    hasher: RandomState,
}

impl<Job> Mailboxes<Job> {
    pub(crate) fn new() -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect(), hasher: RandomState::new() }
    }

    /// Puts a command behind those that wait for its stream.
    pub(crate) fn post(&self, stream: &StreamId, job: Job) -> Posted {
        let mut shard = self.shard(stream).lock();
        match shard.get_mut(stream) {
            Some(waiting) if waiting.len() >= CAPACITY => Posted::Full,
            Some(waiting) => {
                waiting.push_back(job);
                Posted::Queued
            }
            None => {
                shard.insert(stream.clone(), VecDeque::from([job]));
                Posted::First
            }
        }
    }

    /// The next command of a stream. If there is none, `finish` runs and the mailbox is gone, in one step: whoever
    /// posts next starts a new runner, and finds what `finish` left behind.
    pub(crate) fn next(&self, stream: &StreamId, finish: impl FnOnce()) -> Option<Job> {
        let mut shard = self.shard(stream).lock();
        let job = shard.get_mut(stream).and_then(VecDeque::pop_front);
        if job.is_none() {
            finish();
            shard.remove(stream);
        }
        job
    }

    /// Drops a stream's mailbox with all that waits in it.
    pub(crate) fn abandon(&self, stream: &StreamId) {
        let abandoned = self.shard(stream).lock().remove(stream);
        drop(abandoned);
    }

    fn shard(&self, stream: &StreamId) -> &Mutex<HashMap<StreamId, VecDeque<Job>>> {
        &self.shards[self.hasher.hash_one(stream) as usize % SHARDS]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream() -> StreamId {
        StreamId::parse("account-1").unwrap()
    }

    #[test]
    fn the_first_command_of_a_stream_starts_its_runner_and_the_others_queue_in_order() {
        let mailboxes = Mailboxes::new();
        assert!(matches!(mailboxes.post(&stream(), 1), Posted::First));
        assert!(matches!(mailboxes.post(&stream(), 2), Posted::Queued));
        assert_eq!(mailboxes.next(&stream(), || unreachable!()), Some(1));
        assert_eq!(mailboxes.next(&stream(), || unreachable!()), Some(2));
    }

    #[test]
    fn an_empty_mailbox_is_gone_and_the_next_command_starts_a_runner_again() {
        let mailboxes = Mailboxes::new();
        mailboxes.post(&stream(), 1);
        mailboxes.next(&stream(), || unreachable!());
        let mut finished = false;
        assert_eq!(mailboxes.next(&stream(), || finished = true), None);
        assert!(finished);
        assert!(matches!(mailboxes.post(&stream(), 2), Posted::First));
    }

    #[test]
    fn a_full_mailbox_takes_no_more() {
        let mailboxes = Mailboxes::new();
        for job in 0..CAPACITY {
            mailboxes.post(&stream(), job);
        }
        assert!(matches!(mailboxes.post(&stream(), CAPACITY), Posted::Full));
    }
}
