//! What the index keeps in memory: durable commits on their way to sled, and what was looked up there lately.
//!
//! Commits come together in a *generation*. When it is large enough it is closed and goes to sled, while the next one fills;
//! then it stays for as long again, for streams and keys that are used often. A stream's commits of one generation are one
//! entry in sled: that is why a generation is thousands of commits and not hundreds.

use super::block::{self, Span};
use super::{Entry, Hash, KeyPlace, key_key, origin_key, stream_key};
use crate::index::day;
use crate::log::segment::Location;
use ebb_domain::event::Revision;
use ebb_domain::text::Text;
use ebb_domain::time::Timestamp;
use lru::LruCache;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

/// Ends of streams that are remembered from sled.
const RECENT_STREAMS: usize = 8192;

/// Commits that follow one another in the log.
#[derive(Default)]
pub(super) struct Generation {
    streams: HashMap<Text, Vec<Span>>,
    keys: HashMap<Hash, KeyPlace>,
    origins: HashMap<(Hash, u64), Location>,
    pub(super) commits: usize,
    pub(super) last: Option<Last>,
}

/// The last commit of a generation.
#[derive(Clone, Copy)]
pub(super) struct Last {
    pub(super) commit: u64,
    pub(super) location: Location,
    pub(super) recorded_at: Timestamp,
}

impl Generation {
    pub(super) fn add(&mut self, entry: Entry) {
        let Entry { commit, recorded_at, stream, revision, count, location, key, origin } = entry;
        if count > 0 {
            self.streams.entry(stream).or_default().push(Span { revision, count, commit, location });
        }
        if let Some(key) = key {
            self.keys.insert(key, KeyPlace { location, recorded_at });
        }
        if let Some(origin) = origin {
            self.origins.insert(origin, location);
        }
        self.commits += 1;
        self.last = Some(Last { commit, location, recorded_at });
    }

    /// What goes to sled for it, in the order of the keys, which is what a tree takes best.
    pub(super) fn entries(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut entries = Vec::with_capacity(self.streams.len() + self.keys.len() + self.origins.len());
        for (stream, spans) in &self.streams {
            let Some(first) = spans.first() else { continue };
            let mut packed = Vec::with_capacity(spans.len() * 14);
            spans.iter().for_each(|span| block::push(&mut packed, span));
            entries.push((stream_key(stream, first.revision), packed));
        }
        for (key, place) in &self.keys {
            let mut value = Vec::with_capacity(16);
            value.extend_from_slice(&place.location.pack().to_be_bytes());
            value.extend_from_slice(&place.recorded_at.0.to_be_bytes());
            entries.push((key_key(day(place.recorded_at), key).to_vec(), value));
        }
        for ((partition, offset), location) in &self.origins {
            let value = location.pack().to_be_bytes().to_vec();
            entries.push((origin_key(partition, *offset).to_vec(), value));
        }
        entries.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        entries
    }

    fn head(&self, stream: &Text) -> Option<Revision> {
        self.streams.get(stream.as_bytes())?.last().map(Span::last_revision)
    }
}

/// The generations in memory.
pub(super) struct Pending {
    /// Takes commits.
    fresh: Generation,
    /// Goes to sled.
    closed: Option<Arc<Generation>>,
    /// Is in sled, all of it.
    settled: Option<Arc<Generation>>,
    /// Ends of streams as sled has them, none of which was written since: what is written is in a generation, which is
    /// asked first, and this is emptied when one goes. None: there is no such stream.
    recent: LruCache<Text, Option<Revision>>,
    /// Generations that went to sled. What was looked up there holds as long as this does not change, together with what
    /// memory has.
    pub(super) settlings: u64,
    pub(super) last_merge: Instant,
}

impl Pending {
    pub(super) fn new() -> Self {
        Self {
            fresh: Generation::default(),
            closed: None,
            settled: None,
            recent: LruCache::unbounded(),
            settlings: 0,
            last_merge: Instant::now(),
        }
    }

    pub(super) fn merge(&mut self, entries: Vec<Entry>) {
        self.last_merge = Instant::now();
        entries.into_iter().for_each(|entry| self.fresh.add(entry));
    }

    /// Commits that are not on their way to sled yet, and whether others are.
    pub(super) fn backlog(&self) -> (usize, bool) {
        (self.fresh.commits, self.closed.is_some())
    }

    /// Closes the generation that took commits; none if it is empty. The one before is settled.
    pub(super) fn close(&mut self) -> Option<Arc<Generation>> {
        if self.fresh.commits == 0 {
            return None;
        }
        let generation = Arc::new(std::mem::take(&mut self.fresh));
        self.closed = Some(Arc::clone(&generation));
        Some(generation)
    }

    /// The closed generation is in sled. Gives what is no longer needed, to be dropped outside of the lock.
    pub(super) fn settle(&mut self) -> impl Sized + use<> {
        self.settlings += 1;
        let recent = std::mem::replace(&mut self.recent, LruCache::unbounded());
        let settled = std::mem::replace(&mut self.settled, self.closed.take());
        (recent, settled)
    }

    /// Forgets what sled has.
    pub(super) fn forget(&mut self) -> impl Sized + use<> {
        self.settlings += 1;
        (std::mem::replace(&mut self.recent, LruCache::unbounded()), self.settled.take())
    }

    fn newest_first(&self) -> impl Iterator<Item = &Generation> {
        [Some(&self.fresh), self.closed.as_deref(), self.settled.as_deref()].into_iter().flatten()
    }

    /// A stream's end, if memory knows it: the inner none is a stream that is not there.
    pub(super) fn head(&mut self, stream: &Text) -> Option<Option<Revision>> {
        let written = self.newest_first().find_map(|generation| generation.head(stream));
        match written {
            Some(revision) => Some(Some(revision)),
            None => self.recent.get(stream.as_bytes()).copied(),
        }
    }

    /// Remembers what sled said of a stream's end after so many settlings.
    pub(super) fn remember(&mut self, stream: &Text, head: Option<Revision>, settlings: u64) {
        if self.settlings == settlings {
            self.recent.put(stream.detached(), head);
            if self.recent.len() > RECENT_STREAMS {
                self.recent.pop_lru();
            }
        }
    }

    pub(super) fn key(&self, key: &Hash) -> Option<KeyPlace> {
        self.newest_first().find_map(|generation| generation.keys.get(key).copied())
    }

    pub(super) fn origin(&self, origin: &(Hash, u64)) -> Option<Location> {
        self.newest_first().find_map(|generation| generation.origins.get(origin).copied())
    }

    /// Spans of a stream from the one that holds `from` on, oldest first.
    pub(super) fn spans(&self, stream: &Text, from: Revision, most: usize) -> Vec<Span> {
        let mut generations: Vec<&Generation> = self.newest_first().collect();
        generations.reverse();
        let mut found: Vec<Span> = Vec::new();
        for generation in generations {
            let Some(spans) = generation.streams.get(stream.as_bytes()) else { continue };
            let start = spans.partition_point(|span| span.last_revision() < from);
            found.extend(spans[start..].iter().take(most - found.len()));
        }
        found
    }
}
