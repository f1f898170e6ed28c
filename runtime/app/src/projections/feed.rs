//! Where a projector gets its events from: the app's log, or, for a projection that takes them straight, topics.
//!
//! What fails, what is parked and how far it has got is the projector's all the same: a feed gives events at positions that
//! only grow, and says what has to be committed with a mark so that it goes on behind it.

use super::projector::{Flow, Stop};
use super::service::ProjectionDeps;
use super::topic_feed::TopicFeed;
use super::version::Version;
use ebb_domain::event::{Position, StoredEvent};
use ebb_domain::manifest::Source;
use ebb_domain::port::log::{Durable, EventBatch, EventFilter, EventLog, ReadLimits, Records};
use ebb_domain::port::models::{ProjectionStore, RowBatch, Tried};
use ebb_domain::text::Text;
use ebb_domain::topic::{KeptRecord, Place, UNREADABLE};
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use tokio::sync::watch;

/// What a store says of how far its rows have got.
pub(super) struct Standing {
    pub mark: Position,
    pub places: Vec<Place>,
    /// The event that is tried, and the record that it is.
    pub tried: Option<(Tried, Option<KeptRecord>)>,
}

/// See the module.
pub(super) enum Feed {
    Log(LogFeed),
    Topics(Box<TopicFeed>),
}

impl Feed {
    pub(super) fn new(deps: &ProjectionDeps, version: &Version, source: &Source) -> Self {
        match version.topics.clone() {
            Some(topics) => Self::Topics(Box::new(TopicFeed::new(deps, topics, types(source)))),
            None => Self::Log(LogFeed {
                log: deps.log.clone(),
                durable: deps.log.durable(),
                filter: filter(source),
            }),
        }
    }

    /// Everything that is not committed is read again.
    pub(super) fn begin(&mut self, standing: Standing) -> Flow<()> {
        match self {
            Self::Log(_) => Ok(()),
            Self::Topics(feed) => feed.begin(standing),
        }
    }

    /// Sees to it that events can come. What it gives is to be committed before any of them.
    /// `tells`: others are to see where it is.
    pub(super) async fn connect(&mut self, tells: bool) -> Flow<Vec<Place>> {
        match self {
            Self::Log(_) => Ok(Vec::new()),
            Self::Topics(feed) => feed.connect(tells).await,
        }
    }

    /// The last position that there is now.
    pub(super) fn end(&mut self) -> Flow<Position> {
        match self {
            Self::Log(feed) => Ok(feed.durable.borrow_and_update().position),
            Self::Topics(feed) => feed.end(),
        }
    }

    /// Records that were left out since this was asked last, because they had come before.
    pub(super) fn duplicates(&mut self) -> u64 {
        match self {
            Self::Log(_) => 0,
            Self::Topics(feed) => feed.duplicates(),
        }
    }

    /// Waits until there may be more, or something else to look at. A wait that is given up loses nothing.
    pub(super) async fn grown(&mut self) -> Flow<()> {
        match self {
            Self::Log(feed) => feed.durable.changed().await.map_err(|_| Stop::Stopped),
            Self::Topics(feed) => feed.grown().await,
        }
    }

    /// What comes behind `after`, up to where it was read last.
    pub(super) async fn read(
        &mut self,
        store: &dyn ProjectionStore,
        after: Position,
        limits: ReadLimits,
    ) -> Flow<EventBatch> {
        match self {
            Self::Log(feed) => {
                let read = feed.log.read(after, &feed.filter, limits).await;
                read.map_err(|error| Stop::Host(error.to_string()))
            }
            Self::Topics(feed) => feed.read(store, after, limits),
        }
    }

    /// Where the mark has to be for what stands at a position to come first when all is read again; none: it does whatever
    /// the mark is.
    pub(super) fn mark_before(&self, position: Position) -> Option<Position> {
        match self {
            Self::Log(_) => None,
            Self::Topics(feed) => Some(feed.before(position)),
        }
    }

    /// Whether what was looked at is to be committed before there is more.
    pub(super) fn is_full(&self) -> bool {
        match self {
            Self::Log(_) => false,
            Self::Topics(feed) => feed.is_full(),
        }
    }

    /// Adds what has to commit with a batch.
    pub(super) fn complete(&self, batch: &mut RowBatch) {
        if let Self::Topics(feed) = self {
            feed.complete(batch);
        }
    }

    /// Where it would go on behind a mark, of all partitions.
    pub(super) fn places_at(&self, mark: Position) -> Vec<Place> {
        match self {
            Self::Log(_) => Vec::new(),
            Self::Topics(feed) => feed.places_at(mark),
        }
    }

    /// A batch with this mark was committed. `tells`: others are to see how far that is.
    pub(super) fn committed(&mut self, mark: Position, tells: bool) {
        if let Self::Topics(feed) = self {
            feed.committed(mark, tells);
        }
    }

    /// The event at a position that is parked; none if it is not there, which is said.
    pub(super) async fn parked_event(
        &self,
        store: Arc<dyn ProjectionStore>,
        position: Position,
    ) -> Result<StoredEvent, String> {
        match self {
            Self::Log(feed) => feed.event(position).await,
            Self::Topics(feed) => {
                let read = super::blocking(move || store.record(position)).await;
                let record = read.map_err(|error| error.to_string())?;
                let record = record.ok_or_else(|| format!("no record is kept at position {position}"))?;
                Ok(feed.event(&record, position))
            }
        }
    }

    /// Takes no more, once others can see how far it got.
    pub(super) async fn close(&mut self) {
        if let Self::Topics(feed) = self {
            feed.close().await;
        }
    }
}

/// The app's log, from which some events are wanted.
pub(super) struct LogFeed {
    log: Arc<dyn EventLog>,
    durable: watch::Receiver<Durable>,
    filter: EventFilter,
}

impl LogFeed {
    async fn event(&self, position: Position) -> Result<StoredEvent, String> {
        let before = Position(position.0.saturating_sub(1));
        let one = ReadLimits { items: 1, bytes: ReadLimits::PAGE.bytes };
        let read = self.log.read(before, &EventFilter::default(), one).await;
        let events = read.map_err(|error| error.to_string())?.events;
        let found = events.into_iter().next().filter(|event| event.position == position);
        found.ok_or_else(|| format!("the log has no event at position {position}, which is parked"))
    }
}

fn set<N: AsRef<str>>(names: &BTreeSet<N>) -> Option<HashSet<Text>> {
    (!names.is_empty()).then(|| names.iter().map(|name| name.as_ref().into()).collect())
}

/// The types that are wanted; none: all.
fn types(source: &Source) -> Option<HashSet<Text>> {
    match source {
        Source::Log { types, .. } => set(types),
        // Nobody can say of what type it is: everybody is told.
        Source::Topics(source) => {
            set(&source.types).map(|types| types.into_iter().chain([UNREADABLE.into()]).collect())
        }
    }
}

fn filter(source: &Source) -> EventFilter {
    let types = types(source);
    match source {
        Source::Log { aggregates, .. } => {
            EventFilter { categories: set(aggregates), types, records: Records::None }
        }
        Source::Topics(source) => EventFilter {
            categories: None,
            types,
            records: Records::Of(set(&source.topics).unwrap_or_default()),
        },
    }
}
