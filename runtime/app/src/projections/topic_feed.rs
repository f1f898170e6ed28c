//! Records straight from topics.
//!
//! A projection takes all partitions of its topics itself, since its rows are this node's: it is no member of a group, and
//! shares with nobody. The position of a record is how many offsets the projection has gone past once it is dealt with, of
//! all partitions together. So positions only grow, and are the same for who goes on from the same places in the same order;
//! between partitions that order may be another after a restart. What outlives a restart by its position (a record that is
//! tried, parked or queued) is therefore kept with the rows.
//!
//! Promises:
//! * The place in each partition commits with the rows, so each record is in them once.
//! * It goes on nowhere but there: what is not there any more halts it.
//! * Where it began is durable before a record is taken: `latest` is not another place after a restart, and a version that
//!   is built anew begins there as well.

use super::feed::Standing;
use super::projector::{Flow, Stop};
use super::service::ProjectionDeps;
use ebb_domain::digest::Digest;
use ebb_domain::event::{Position, StoredEvent};
use ebb_domain::name::{AppName, ProjectionName, TopicName};
use ebb_domain::port::bus::{
    Bus, BusError, BusErrorKind, Consumer, Done, OptionalBus, PartitionLag, Standing as Known,
};
use ebb_domain::port::log::{EventBatch, ReadLimits};
use ebb_domain::port::models::{ModelStores, ParkChange, ProjectionStore, RowBatch, Tried};
use ebb_domain::text::Text;
use ebb_domain::topic::{Incoming, KeptRecord, Place, Record, Seen, Start, TopicSpec};
use futures_util::FutureExt as _;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tracing::{debug, info};

/// Records that are taken from the broker's client at once.
const TAKEN: usize = 10_000;

/// Bytes of records that are not committed at which no more are taken.
const HELD_BYTES: usize = 16 << 20;

/// How often the broker is asked how much is left, and whether there are more partitions.
const ASK_ENDS: Duration = Duration::from_secs(2);

/// How long it may take to tell the broker how far it got, when it ends.
const CLOSING: Duration = Duration::from_secs(2);

/// The topics of one version: what is known of them outside of its projector.
pub(super) struct Topics {
    pub projection: ProjectionName,
    pub group: Text,
    pub specs: BTreeMap<TopicName, TopicSpec>,
    /// How far each partition goes, as the broker said last; none while it has not said.
    ends: Mutex<Option<Vec<PartitionLag>>>,
    /// The broker has said.
    said: Notify,
    /// Topics whose records somebody has accepted as they are.
    accepted: Mutex<BTreeSet<TopicName>>,
    /// What halted it was perhaps put right.
    pub again: Notify,
}

impl Topics {
    pub(super) fn new(
        projection: ProjectionName,
        group: Text,
        specs: BTreeMap<TopicName, TopicSpec>,
    ) -> Arc<Self> {
        let (ends, said) = (Mutex::default(), Notify::new());
        Arc::new(Self {
            projection,
            group,
            specs,
            ends,
            said,
            accepted: Mutex::default(),
            again: Notify::new(),
        })
    }

    /// Goes on with what a topic has. Whether it takes records of it.
    pub(super) fn accept(&self, topic: &TopicName) -> bool {
        let takes = self.specs.contains_key(topic);
        if takes {
            self.accepted.lock().insert(topic.clone());
            self.again.notify_one();
        }
        takes
    }

    /// What is left of each partition for who stands at these places; none while the broker has not said.
    pub(super) fn left(&self, places: &[Place]) -> Option<Vec<PartitionLag>> {
        let mut left = self.ends.lock().clone()?;
        for lag in &mut left {
            let place =
                places.iter().find(|place| (&place.topic, place.partition) == (&lag.topic, lag.partition));
            let Some(place) = place else {
                lag.committed = None;
                continue;
            };
            // Where the broker knows the same place, it also knows how many of the offsets left are no records.
            if lag.committed != Some(place.next) {
                lag.lag = lag.end.saturating_sub(place.next);
            }
            lag.committed = Some(place.next);
        }
        Some(left)
    }

    /// Where it begins where nothing is known.
    pub(super) fn starts(&self) -> BTreeMap<TopicName, Start> {
        self.specs.iter().map(|(topic, spec)| (topic.clone(), spec.start)).collect()
    }

    /// Asks the broker now and then how much is left, for ever. An answer that does not come leaves the last one standing.
    pub(super) async fn watch(&self, bus: &dyn Bus) {
        let starts = self.starts();
        loop {
            match bus.lag(&self.group, &starts).await {
                Ok(ends) => {
                    *self.ends.lock() = Some(ends);
                    self.said.notify_one();
                }
                Err(error) => debug!(%error, "how much is left is not known"),
            }
            tokio::time::sleep(ASK_ENDS).await;
        }
    }
}

type Partition = (TopicName, u32);
type Places = BTreeMap<Partition, Place>;

/// A record that is not committed.
struct Received {
    position: Position,
    record: KeptRecord,
    verdict: Verdict,
}

/// Whether a record is taken.
#[derive(Default)]
enum Verdict {
    /// Nobody has looked.
    #[default]
    Open,
    /// It is; what it is remembered by, if by anything.
    New(Option<Seen>),
    /// It came before.
    Duplicate,
}

/// See the module.
pub(super) struct TopicFeed {
    app: AppName,
    bus: OptionalBus,
    stores: Arc<dyn ModelStores>,
    topics: Arc<Topics>,
    types: Option<HashSet<Text>>,
    cluster: Text,
    consumer: Option<Box<dyn Consumer>>,
    /// Why there is none, if it failed behind what was received.
    failure: Option<BusError>,
    /// Where it stands, as committed, and the mark of that.
    stored: Places,
    mark: Position,
    /// Where it stands once all that was received is dealt with, and the position of that.
    received: Places,
    end: Position,
    /// What was received and is not committed, in order; so many of these were given.
    records: VecDeque<Received>,
    given: usize,
    /// What these take, about.
    bytes: usize,
    /// What those of them are remembered by that were given.
    seen: HashMap<(Partition, Digest), Seen>,
    duplicates: u64,
}

impl TopicFeed {
    pub(super) fn new(deps: &ProjectionDeps, topics: Arc<Topics>, types: Option<HashSet<Text>>) -> Self {
        Self {
            app: deps.app.clone(),
            bus: deps.bus.clone(),
            stores: deps.stores.clone(),
            topics,
            types,
            cluster: Text::default(),
            consumer: None,
            failure: None,
            stored: Places::new(),
            mark: Position::START,
            received: Places::new(),
            end: Position::START,
            records: VecDeque::new(),
            given: 0,
            bytes: 0,
            seen: HashMap::new(),
            duplicates: 0,
        }
    }

    pub(super) fn duplicates(&mut self) -> u64 {
        std::mem::take(&mut self.duplicates)
    }

    /// Whether something is to be committed before more is taken.
    pub(super) fn is_full(&self) -> bool {
        self.bytes >= HELD_BYTES
    }

    pub(super) fn begin(&mut self, standing: Standing) -> Flow<()> {
        let Standing { mark, places, tried } = standing;
        let stored = by_partition(places);
        self.given = 0;
        if (mark, &stored) == (self.mark, &self.stored) {
            // Nothing was committed that is not known here: what was received stands at the same positions.
            return Ok(());
        }
        self.consumer = None;
        self.records.clear();
        self.seen.clear();
        self.bytes = 0;
        (self.mark, self.end) = (mark, mark);
        (self.received, self.stored) = (stored.clone(), stored);
        match tried {
            // It comes first again, and not once more when the broker gives it.
            Some((_, Some(tried))) => self.receive(tried),
            _ => Ok(()),
        }
    }

    pub(super) async fn connect(&mut self, tells: bool) -> Flow<Vec<Place>> {
        if self.given < self.records.len() || (self.consumer.is_some() && !self.has_grown()) {
            return Ok(Vec::new());
        }
        if let Some(failure) = self.failure.take() {
            return Err(Stop::Source(failure));
        }
        let none = || BusError::new(BusErrorKind::Denied, "the node has no brokers: set `kafka.brokers`");
        let bus = self.bus.clone().ok_or_else(none).map_err(Stop::Source)?;
        self.close().await;
        self.cluster = bus.cluster().await.map_err(Stop::Source)?;
        let (stores, app, name) = (self.stores.clone(), self.app.clone(), self.topics.projection.clone());
        let began = super::blocking(move || stores.beginning(&app, &name)).await?;
        let accepted = self.topics.accepted.lock().clone();
        let mut known = by_partition(began.clone());
        known.extend(self.received.clone());
        let asked = Known {
            topics: self.topics.starts(),
            places: known.values().cloned().collect(),
            accepted: accepted.clone(),
        };
        let places = bus.places(&asked).await.map_err(Stop::Source)?;
        let new = places.iter().filter(|place| !known.contains_key(&partition(place)));
        let new: Vec<Place> = new.cloned().collect();
        if !new.is_empty() {
            info!(partitions = new.len(), "begins");
            let (stores, app, name) = (self.stores.clone(), self.app.clone(), self.topics.projection.clone());
            let began: Vec<Place> = began.into_iter().chain(new).collect();
            super::blocking(move || stores.set_beginning(&app, &name, &began)).await?;
        }
        let consumer = bus.assign(self.topics.group.clone(), places.clone()).await.map_err(Stop::Source)?;
        self.consumer = Some(consumer);
        if tells {
            // A crash may have come between the rows' commit and the broker's.
            self.tell(places.iter().cloned());
        }
        // Made again once more, it is to be accepted once more.
        self.topics.accepted.lock().retain(|topic| !accepted.contains(topic));
        let places = by_partition(places);
        let changed = places.iter().filter(|(partition, place)| self.received.get(*partition) != Some(place));
        let changed: Vec<Place> = changed.map(|(_, place)| place.clone()).collect();
        self.received.extend(places);
        Ok(changed)
    }

    /// Whether a topic has more partitions than are taken.
    fn has_grown(&self) -> bool {
        let ends = self.topics.ends.lock();
        let mut there = ends.iter().flatten();
        there.any(|lag| !self.received.contains_key(&(lag.topic.clone(), lag.partition)))
    }

    pub(super) fn end(&mut self) -> Flow<Position> {
        if self.given == self.records.len()
            && let Some(consumer) = &mut self.consumer
            && let Some(taken) = consumer.next(TAKEN, Duration::ZERO).now_or_never()
        {
            self.take(taken)?;
        }
        Ok(self.end)
    }

    pub(super) async fn grown(&mut self) -> Flow<()> {
        if self.is_full() && self.given < self.records.len() {
            std::future::pending::<()>().await;
        }
        let topics = self.topics.clone();
        let Some(consumer) = &mut self.consumer else {
            // What was received comes first; then it is connected again.
            if self.given < self.records.len() {
                std::future::pending::<()>().await;
            }
            return Ok(());
        };
        let taken = tokio::select! {
            biased;
            taken = consumer.next(TAKEN, Duration::ZERO) => taken,
            () = topics.said.notified() => return Ok(()),
        };
        self.take(taken)
    }

    fn take(&mut self, taken: Result<Vec<Record>, BusError>) -> Flow<()> {
        let Some(consumer) = &self.consumer else { return Ok(()) };
        let records = match taken {
            Ok(records) => records,
            // What came before it is dealt with first.
            Err(error) => {
                (self.consumer, self.failure) = (None, Some(error));
                return Ok(());
            }
        };
        let keep = |record: Record| {
            let topic_id = consumer.topic_id(&record.topic)?;
            Some(KeptRecord { cluster: self.cluster.clone(), topic_id, record })
        };
        let kept: Option<Vec<KeptRecord>> = records.into_iter().map(keep).collect();
        let kept =
            kept.ok_or_else(|| Stop::Host("a record of a topic came that was not asked for".into()))?;
        kept.into_iter().try_for_each(|record| self.receive(record))
    }

    fn receive(&mut self, record: KeptRecord) -> Flow<()> {
        let behind = record.behind();
        let Some(place) = self.received.get_mut(&partition(&behind)) else {
            let (topic, partition) = (behind.topic, behind.partition);
            return Err(Stop::Host(format!("a record of partition {partition} of `{topic}` came unasked")));
        };
        if behind.next > place.next {
            self.end = Position(self.end.0 + (behind.next - place.next));
            *place = behind;
            self.bytes += record.record.weight();
            self.records.push_back(Received { position: self.end, record, verdict: Verdict::Open });
        }
        Ok(())
    }

    pub(super) fn read(
        &mut self,
        store: &dyn ProjectionStore,
        after: Position,
        limits: ReadLimits,
    ) -> Flow<EventBatch> {
        let mut batch = EventBatch { events: Vec::new(), scanned_to: after };
        let mut bytes = 0;
        for _ in 0..limits.items {
            let Some(Received { position, record, verdict }) =
                self.records.get_mut(self.given).filter(|_| bytes < limits.bytes)
            else {
                break;
            };
            let spec = self.topics.specs.get(&record.record.topic);
            let incoming = read(record, spec);
            if matches!(verdict, Verdict::Open) {
                let seen = seen(&incoming, record, spec);
                *verdict = judge(&mut self.seen, store, seen)?;
                self.duplicates += u64::from(matches!(verdict, Verdict::Duplicate));
            }
            batch.scanned_to = *position;
            self.given += 1;
            let types = self.types.as_ref();
            let wanted = types.is_none_or(|types| types.contains(incoming.event_type.as_bytes()));
            if wanted && !matches!(verdict, Verdict::Duplicate) {
                let event = incoming.into_event(record, *position);
                bytes += event.weight();
                batch.events.push(event);
            }
        }
        Ok(batch)
    }

    /// The event that a record is.
    pub(super) fn event(&self, record: &KeptRecord, position: Position) -> StoredEvent {
        read(record, self.topics.specs.get(&record.record.topic)).into_event(record, position)
    }

    pub(super) fn before(&self, position: Position) -> Position {
        let before =
            self.records.iter().map(|received| received.position).take_while(|known| *known < position);
        before.last().unwrap_or(self.mark)
    }

    fn through(&self, mark: Position) -> impl Iterator<Item = &Received> {
        self.records.iter().take_while(move |received| received.position <= mark)
    }

    pub(super) fn complete(&self, batch: &mut RowBatch) {
        if let Some(mark) = batch.mark {
            let mut places: Places =
                self.through(mark).map(|received| received.record.behind()).map(by_its_partition).collect();
            // What it was told to go on with is not where it has been.
            places.extend(std::mem::take(&mut batch.places).into_iter().map(by_its_partition));
            batch.places = places.into_values().collect();
            batch.seen.extend(self.through(mark).filter_map(|received| match &received.verdict {
                Verdict::New(seen) => seen.clone(),
                Verdict::Open | Verdict::Duplicate => None,
            }));
        }
        for change in &batch.parks {
            let (ParkChange::Park { position, .. }
            | ParkChange::Queue { position, .. }
            | ParkChange::Tried(Tried { position, .. })) = change
            else {
                continue;
            };
            if let Ok(index) = self.records.binary_search_by_key(position, |received| received.position) {
                batch.records.push((*position, self.records[index].record.clone()));
            }
        }
    }

    pub(super) fn places_at(&self, mark: Position) -> Vec<Place> {
        let mut places = self.stored.clone();
        places.extend(self.through(mark).map(|received| by_its_partition(received.record.behind())));
        places.into_values().collect()
    }

    pub(super) fn committed(&mut self, mark: Position, tells: bool) {
        let done = self.through(mark).count();
        let mut places = Places::new();
        for Received { record, verdict, .. } in self.records.drain(..done) {
            self.bytes -= record.record.weight();
            if let Verdict::New(Some(seen)) = verdict {
                let key = ((seen.topic.clone(), seen.partition), seen.same);
                // One that came behind it, too late to be the same, is remembered still.
                if self.seen.get(&key) == Some(&seen) {
                    self.seen.remove(&key);
                }
            }
            places.extend([by_its_partition(record.behind())]);
        }
        self.given = self.given.saturating_sub(done);
        self.mark = self.mark.max(mark);
        if self.records.is_empty() {
            // And with it what it was told to go on with.
            self.stored = self.received.clone();
        } else {
            self.stored.extend(places.clone());
        }
        if tells {
            self.tell(places.into_values());
        }
    }

    /// Lets others see where it is.
    fn tell(&mut self, places: impl Iterator<Item = Place>) {
        let done = places.map(|Place { topic, partition, next, .. }| Done { topic, partition, next });
        let done: Vec<Done> = done.collect();
        if let Some(consumer) = self.consumer.as_mut().filter(|_| !done.is_empty())
            && let Err(error) = consumer.done(&done)
        {
            // What counts stands with the rows.
            debug!(%error, "the broker could not be told how far this is");
        }
    }

    pub(super) async fn close(&mut self) {
        if let Some(consumer) = self.consumer.take() {
            let _ = tokio::time::timeout(CLOSING, consumer.close()).await;
        }
    }
}

fn read(record: &KeptRecord, spec: Option<&TopicSpec>) -> Incoming {
    match spec {
        Some(spec) => Incoming::read(&record.record, spec),
        None => Incoming::read(&record.record, &TopicSpec::default()),
    }
}

/// What a record is remembered by, if by anything.
fn seen(incoming: &Incoming, record: &KeptRecord, spec: Option<&TopicSpec>) -> Option<Seen> {
    let same = incoming.same(spec?.dedupe)?;
    let Record { topic, partition, offset, .. } = &record.record;
    let at = incoming.produced_at.unwrap_or_default();
    Some(Seen { topic: topic.clone(), partition: *partition, same, offset: *offset, at })
}

/// Whether a record came before: among those that are not committed, or in the store.
fn judge(
    held: &mut HashMap<(Partition, Digest), Seen>,
    store: &dyn ProjectionStore,
    seen: Option<Seen>,
) -> Flow<Verdict> {
    let Some(seen) = seen else { return Ok(Verdict::New(None)) };
    let key = ((seen.topic.clone(), seen.partition), seen.same);
    let before = match held.get(&key) {
        Some(before) => Some(before.clone()),
        None => store.seen(&seen.topic, seen.partition, &seen.same)?,
    };
    if before.is_some_and(|before| before.comes_again_as(&seen)) {
        return Ok(Verdict::Duplicate);
    }
    held.insert(key, seen.clone());
    Ok(Verdict::New(Some(seen)))
}

fn partition(place: &Place) -> Partition {
    (place.topic.clone(), place.partition)
}

fn by_its_partition(place: Place) -> (Partition, Place) {
    (partition(&place), place)
}

fn by_partition(places: Vec<Place>) -> Places {
    places.into_iter().map(by_its_partition).collect()
}
