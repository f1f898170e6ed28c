//! A broker in memory: topics with partitions and offsets, groups that share partitions, what relays publish and how far
//! they got.
//!
//! What a broker may do to its clients is the test's to say: [`MemoryBus::fail`] makes a step fail, [`MemoryBus::hold`] lets
//! it wait, and one that is [away](MemoryBus::set_away) answers nobody. A mark is told behind the records that it speaks of,
//! as late as the trait allows, and is lost with a link that is dropped.

use bytes::Bytes;
use ebb_domain::name::{AppName, TopicName};
use ebb_domain::port::Future;
use ebb_domain::port::bus::{
    Bus, BusError, BusErrorKind, Consumer, Done, PartitionLag, RelayLink, RelayMark, RelayNeeds, Standing,
    Subscription,
};
use ebb_domain::text::Text;
use ebb_domain::topic::{self, NewRecord, Record, RelayMode, Start};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::ready;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use uuid::Uuid;

/// How long a client waits for a broker that is away.
const PATIENCE: Duration = Duration::from_secs(10);

/// The ticket of those who are members of nothing.
const ALONE: u64 = 0;

/// What a client asks of a broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Who the cluster is.
    Cluster,
    /// Asking how far a relay has got.
    Relayed,
    /// Taking a relay over.
    Relay,
    /// Publishing events.
    Publish,
    /// Ending a relay's connection, with the mark that is still to be told.
    Close,
    /// Joining a group.
    Consume,
    /// Asking where one stands.
    Places,
    /// Taking partitions for oneself.
    Assign,
    /// Waiting for records.
    Next,
    /// Saying what is done.
    Done,
    /// Leaving a group for good.
    Leave,
    /// Sending a reply or a dead letter.
    Send,
    /// How much is left.
    Lag,
}

/// A [`Bus`] in memory. Clones are the same one.
#[derive(Clone, Default)]
pub struct MemoryBus(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: watch::Sender<()>,
}

#[derive(Default)]
struct State {
    topics: BTreeMap<TopicName, Topic>,
    groups: BTreeMap<Text, Group>,
    relays: BTreeMap<AppName, Relayed>,
    faults: BTreeMap<Step, VecDeque<Fault>>,
    held: BTreeSet<Step>,
    away: bool,
    calls: BTreeMap<Step, u64>,
    next_id: u128,
}

/// A step that is to fail.
struct Fault {
    /// Records that the broker takes all the same.
    taken: usize,
    error: BusError,
}

struct Topic {
    id: Uuid,
    partitions: Vec<Partition>,
}

#[derive(Default)]
struct Partition {
    /// The offset of the first record.
    low: u64,
    records: Vec<Record>,
}

impl Partition {
    fn end(&self) -> u64 {
        self.low + self.records.len() as u64
    }
}

#[derive(Default)]
struct Group {
    committed: BTreeMap<Place, u64>,
    /// Places that a member committed, and not whoever let the group begin or moved it.
    done: BTreeSet<Place>,
    members: Vec<(Text, u64)>,
    generation: u64,
}

type Place = (TopicName, u32);

#[derive(Default)]
struct Relayed {
    mark: RelayMark,
    epoch: u64,
}

impl MemoryBus {
    /// Makes a topic.
    ///
    /// # Panics
    /// The name is not valid: the test is wrong.
    pub fn make(&self, topic: &str, partitions: u32) -> TopicName {
        let name = TopicName::new(topic).expect("a valid topic");
        self.0.change(|state| state.make(name.clone(), partitions));
        name
    }

    /// Adds a partition to a topic.
    pub fn grow(&self, topic: &TopicName) {
        self.0.change(|state| {
            let topic = state.topics.get_mut(topic).expect("the topic is there");
            topic.partitions.push(Partition::default());
        });
    }

    /// Deletes a topic.
    pub fn delete(&self, topic: &TopicName) {
        self.0.change(|state| state.topics.remove(topic));
    }

    /// Deletes the records of a partition below an offset, as retention does.
    pub fn delete_records(&self, topic: &TopicName, partition: u32, below: u64) {
        self.0.change(|state| {
            let partition = state.partition(topic, partition);
            partition.records.drain(..(below - partition.low) as usize);
            partition.low = below;
        });
    }

    /// Produces a record to a partition, and gives its offset.
    pub fn given(
        &self,
        topic: &TopicName,
        partition: u32,
        key: &str,
        headers: &[(&str, &str)],
        value: impl Into<Bytes>,
    ) -> u64 {
        let headers = headers.iter().map(|(name, value)| ((*name).into(), Bytes::from((*value).to_owned())));
        let record = NewRecord {
            topic: topic.clone(),
            key: Some(Bytes::from(key.to_owned())),
            headers: headers.collect(),
            value: Some(value.into()),
        };
        self.0.change(|state| state.append(&record, partition))
    }

    /// The records of a topic, those of a partition behind each other; none if it is not there.
    #[must_use]
    pub fn records(&self, topic: &str) -> Vec<Record> {
        let state = self.0.state.lock();
        let topic = state.topics.iter().find(|(name, _)| ***name == *topic);
        topic.into_iter().flat_map(|(_, topic)| &topic.partitions).flat_map(|p| p.records.clone()).collect()
    }

    /// How far a relay has got, as the broker knows.
    #[must_use]
    pub fn mark(&self, app: &AppName) -> RelayMark {
        self.0.state.lock().relays.get(app).map(|relayed| relayed.mark).unwrap_or_default()
    }

    /// Says how far a relay has got.
    pub fn set_mark(&self, app: &AppName, mark: RelayMark) {
        self.0.change(|state| state.relays.entry(app.clone()).or_default().mark = mark);
    }

    /// Where a group stands in a partition.
    #[must_use]
    pub fn committed(&self, group: &str, topic: &TopicName, partition: u32) -> Option<u64> {
        let state = self.0.state.lock();
        state.groups.get(group.as_bytes())?.committed.get(&(topic.clone(), partition)).copied()
    }

    /// Says where a group stands, as Kafka's own tools do. Whoever has the partition learns of it when it joins again.
    pub fn commit(&self, group: &str, topic: &TopicName, partition: u32, offset: u64) {
        let place = (topic.clone(), partition);
        self.0.change(|state| {
            let group = state.groups.entry(group.into()).or_default();
            group.done.remove(&place);
            group.committed.insert(place, offset);
        });
    }

    /// The next time, this step fails.
    pub fn fail(&self, step: Step, kind: BusErrorKind) {
        self.fail_having_taken(step, 0, kind);
    }

    /// The next time, publishing or sending fails when the broker has taken so many of the records.
    pub fn fail_having_taken(&self, step: Step, taken: usize, kind: BusErrorKind) {
        let error = BusError::new(kind, format!("the test says so ({kind:?})"));
        self.0.change(|state| state.faults.entry(step).or_default().push_back(Fault { taken, error }));
    }

    /// From now on, this step waits until [`MemoryBus::release`].
    pub fn hold(&self, step: Step) {
        self.0.change(|state| state.held.insert(step));
    }

    /// This step waits no longer.
    pub fn release(&self, step: Step) {
        self.0.change(|state| state.held.remove(&step));
    }

    /// Whether it answers.
    pub fn set_away(&self, away: bool) {
        self.0.change(|state| state.away = away);
    }

    /// How often a step was begun.
    #[must_use]
    pub fn calls(&self, step: Step) -> u64 {
        self.0.state.lock().calls.get(&step).copied().unwrap_or_default()
    }

    /// Waits until a step was begun so often.
    pub async fn called(&self, step: Step, times: u64) {
        self.0.until(|state| (*state.calls.get(&step)? >= times).then_some(())).await;
    }
}

impl Shared {
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let done = change(&mut self.state.lock());
        self.changed.send_replace(());
        done
    }

    async fn until<T>(&self, mut look: impl FnMut(&mut State) -> Option<T>) -> T {
        let mut changed = self.changed.subscribe();
        loop {
            changed.borrow_and_update();
            if let Some(found) = look(&mut self.state.lock()) {
                return found;
            }
            changed.changed().await.expect("the sender is ours");
        }
    }

    /// A step of a client's: waits while it is held, and for as long as a client does while the broker is away. Gives what
    /// it is to fail with.
    async fn step(&self, step: Step) -> Option<Fault> {
        self.change(|state| *state.calls.entry(step).or_default() += 1);
        self.until(|state| (!state.held.contains(&step)).then_some(())).await;
        let back = self.until(|state| (!state.away).then_some(()));
        if tokio::time::timeout(PATIENCE, back).await.is_err() {
            let error = BusError::new(BusErrorKind::Unavailable, "the brokers did not answer");
            return Some(Fault { taken: 0, error });
        }
        self.state.lock().fault(step)
    }

    async fn pass(&self, step: Step) -> Result<(), BusError> {
        self.step(step).await.map_or(Ok(()), |fault| Err(fault.error))
    }

    async fn send(&self, step: Step, records: &[NewRecord]) -> Result<(), BusError> {
        let fault = self.step(step).await;
        let taken = fault.as_ref().map_or(records.len(), |fault| fault.taken);
        self.change(|state| records.iter().take(taken).try_for_each(|record| state.publish(record)))?;
        fault.map_or(Ok(()), |fault| Err(fault.error))
    }
}

impl State {
    fn fault(&mut self, step: Step) -> Option<Fault> {
        self.faults.get_mut(&step)?.pop_front()
    }

    fn make(&mut self, topic: TopicName, partitions: u32) {
        self.next_id += 1;
        let partitions = (0..partitions).map(|_| Partition::default()).collect();
        self.topics.insert(topic, Topic { id: Uuid::from_u128(self.next_id), partitions });
    }

    fn topic(&self, topic: &TopicName) -> Result<&Topic, BusError> {
        let missing =
            || BusError::new(BusErrorKind::MissingTopic, format!("topic `{topic}`: the topic is not there"));
        self.topics.get(topic).ok_or_else(missing)
    }

    fn partition(&mut self, topic: &TopicName, partition: u32) -> &mut Partition {
        let topic = self.topics.get_mut(topic).expect("the topic is there");
        &mut topic.partitions[partition as usize]
    }

    /// A key's records are in one partition.
    fn publish(&mut self, record: &NewRecord) -> Result<(), BusError> {
        let count = self.topic(&record.topic)?.partitions.len();
        let sum: usize = record.key.iter().flatten().map(|byte| usize::from(*byte)).sum();
        self.append(record, (sum % count) as u32);
        Ok(())
    }

    fn append(&mut self, record: &NewRecord, number: u32) -> u64 {
        let partition = self.partition(&record.topic, number);
        let offset = partition.end();
        partition.records.push(Record {
            topic: record.topic.clone(),
            partition: number,
            offset,
            timestamp: Some(super::ManualClock::START),
            key: record.key.clone(),
            headers: record.headers.iter().map(|(name, value)| (name.clone(), Some(value.clone()))).collect(),
            value: record.value.clone(),
        });
        offset
    }

    /// The places of all partitions, in order.
    fn places<'a>(
        &self,
        topics: impl IntoIterator<Item = &'a TopicName>,
    ) -> Result<Vec<(Place, u64, u64)>, BusError> {
        let mut places = Vec::new();
        for name in topics {
            let partitions = self.topic(name)?.partitions.iter().zip(0..);
            places.extend(partitions.map(|(found, number)| ((name.clone(), number), found.low, found.end())));
        }
        Ok(places)
    }

    fn standing(&self, standing: &Standing) -> Result<Vec<topic::Place>, BusError> {
        let Standing { topics, places: known, accepted } = standing;
        let mut places = Vec::new();
        for ((name, partition), low, end) in self.places(topics.keys())? {
            let topic_id = self.topic(&name)?.id;
            let begun = known.iter().any(|known| known.topic == name);
            let known = known.iter().find(|known| known.topic == name && known.partition == partition);
            let next = match known {
                Some(known)
                    if accepted.contains(&name) && (known.topic_id != topic_id || known.next < low) =>
                {
                    low
                }
                Some(known) if known.topic_id != topic_id => {
                    let message = format!("topic `{name}` was deleted and made again");
                    return Err(BusError::new(BusErrorKind::Recreated, message));
                }
                Some(known) if known.next < low || known.next > end => {
                    let message = format!("{} of `{name}` comes next, which has {low} to {end}", known.next);
                    return Err(BusError::new(BusErrorKind::OutOfRange, message));
                }
                Some(known) => known.next,
                None if !begun && topics[&name] == Start::Latest => end,
                None => low,
            };
            places.push(topic::Place { topic: name, topic_id, partition, next });
        }
        Ok(places)
    }

    /// Sees to it that a group stands somewhere, and makes someone its member.
    fn join(&mut self, subscription: &Subscription) -> Result<u64, BusError> {
        let places = self.places(subscription.topics.keys())?;
        for (topic, known) in &subscription.known {
            if self.topic(topic)?.id != *known {
                let message = format!("topic `{topic}` was deleted and made again");
                return Err(BusError::new(BusErrorKind::Recreated, message));
            }
        }
        let group = self.groups.entry(subscription.group.clone()).or_default();
        for (place, low, end) in places {
            let start = match subscription.topics[&place.0] {
                Start::Latest => end,
                Start::Earliest | Start::At(_) => low,
            };
            let kept =
                subscription.kept.iter().find(|kept| (&kept.topic, kept.partition) == (&place.0, place.1));
            let kept = kept.map(|kept| kept.next.max(low));
            let committed = group.committed.get(&place).copied();
            let at = match (committed, kept) {
                (Some(committed), _) if !group.done.contains(&place) => committed,
                (Some(committed), Some(kept)) => kept.min(committed),
                (_, kept) => kept.unwrap_or(start),
            };
            group.committed.insert(place.clone(), at);
            if at < low || at > end {
                let message = format!("the group stands at {at} of {place:?}, which has {low} to {end}");
                return Err(BusError::new(BusErrorKind::OutOfRange, message));
            }
        }
        group.generation += 1;
        let ticket = group.generation;
        // Under the same name, the one before is fenced.
        group.members.retain(|(member, _)| *member != subscription.member);
        group.members.push((subscription.member.clone(), ticket));
        Ok(ticket)
    }
}

impl Bus for MemoryBus {
    fn cluster(&self) -> Future<'_, Result<Text, BusError>> {
        Box::pin(async move {
            self.0.pass(Step::Cluster).await?;
            Ok(Text::from_static("memory"))
        })
    }

    fn relayed<'a>(&'a self, app: &'a AppName) -> Future<'a, Result<RelayMark, BusError>> {
        Box::pin(async move {
            self.0.pass(Step::Relayed).await?;
            Ok(self.mark(app))
        })
    }

    fn relay(&self, needs: RelayNeeds) -> Future<'_, Result<Box<dyn RelayLink>, BusError>> {
        Box::pin(async move {
            self.0.pass(Step::Relay).await?;
            let (mark, epoch) = self.0.change(|state| {
                for topic in &needs.topics {
                    if !state.topics.contains_key(topic) {
                        state.make(topic.clone(), needs.spec.partitions.get());
                    }
                }
                let relayed = state.relays.entry(needs.app.clone()).or_default();
                relayed.epoch += 1;
                (relayed.mark, relayed.epoch)
            });
            let bus = self.0.clone();
            let link = Link { bus, app: needs.app, mode: needs.spec.mode, mark, epoch, telling: None };
            Ok(Box::new(link) as Box<dyn RelayLink>)
        })
    }

    fn consume(&self, subscription: Subscription) -> Future<'_, Result<Box<dyn Consumer>, BusError>> {
        Box::pin(async move {
            self.0.pass(Step::Consume).await?;
            let (ticket, topics) = self.0.change(|state| {
                let ticket = state.join(&subscription)?;
                let ids = subscription.topics.keys().map(|topic| Ok((topic.clone(), state.topic(topic)?.id)));
                Ok((ticket, ids.collect::<Result<_, BusError>>()?))
            })?;
            let (bus, group) = (self.0.clone(), subscription.group);
            let member = Member { bus, group, topics, ticket, generation: 0, positions: BTreeMap::new() };
            Ok(Box::new(member) as Box<dyn Consumer>)
        })
    }

    fn places<'a>(&'a self, standing: &'a Standing) -> Future<'a, Result<Vec<topic::Place>, BusError>> {
        Box::pin(async move {
            self.0.pass(Step::Places).await?;
            self.0.state.lock().standing(standing)
        })
    }

    fn assign(
        &self,
        group: Text,
        places: Vec<topic::Place>,
    ) -> Future<'_, Result<Box<dyn Consumer>, BusError>> {
        Box::pin(async move {
            self.0.pass(Step::Assign).await?;
            let topics = places.iter().map(|place| (place.topic.clone(), place.topic_id)).collect();
            let positions =
                places.into_iter().map(|place| ((place.topic, place.partition), place.next)).collect();
            let bus = self.0.clone();
            let member = Member { bus, group, topics, ticket: ALONE, generation: 0, positions };
            Ok(Box::new(member) as Box<dyn Consumer>)
        })
    }

    fn publish(&self, records: Vec<NewRecord>) -> Future<'_, Result<(), BusError>> {
        Box::pin(async move { self.0.send(Step::Send, &records).await })
    }

    fn lag<'a>(
        &'a self,
        group: &'a str,
        topics: &'a BTreeMap<TopicName, Start>,
    ) -> Future<'a, Result<Vec<PartitionLag>, BusError>> {
        Box::pin(async move {
            self.0.pass(Step::Lag).await?;
            let state = self.0.state.lock();
            let known = state.groups.get(group.as_bytes());
            let lag = state.places(topics.keys())?.into_iter().map(|(place, low, end)| {
                let committed = known.and_then(|group| group.committed.get(&place)).copied();
                let start = if topics[&place.0] == Start::Latest { end } else { low };
                let lag = end.saturating_sub(committed.unwrap_or(start).max(low));
                PartitionLag { topic: place.0, partition: place.1, committed, end, lag }
            });
            Ok(lag.collect())
        })
    }
}

struct Link {
    bus: Arc<Shared>,
    app: AppName,
    mode: RelayMode,
    mark: RelayMark,
    epoch: u64,
    telling: Option<RelayMark>,
}

impl Link {
    fn tell(&mut self) {
        let Some(mark) = self.telling.take() else { return };
        self.bus.change(|state| state.relays.entry(self.app.clone()).or_default().mark = mark);
    }

    async fn send(&mut self, records: Vec<NewRecord>, mark: RelayMark) -> Result<(), BusError> {
        let newest = self.bus.state.lock().relays.get(&self.app).map(|relayed| relayed.epoch);
        match self.mode {
            RelayMode::AtLeastOnce => {
                self.bus.send(Step::Publish, &records).await?;
                self.tell();
                self.telling = Some(mark);
            }
            RelayMode::Transactional if newest != Some(self.epoch) => {
                return Err(BusError::new(BusErrorKind::Fenced, "someone else does this now"));
            }
            // What a transaction has taken before it is aborted is seen by nobody.
            RelayMode::Transactional => {
                self.bus.pass(Step::Publish).await?;
                self.bus.change(|state| records.iter().try_for_each(|record| state.publish(record)))?;
                self.telling = Some(mark);
                self.tell();
            }
        }
        Ok(())
    }
}

impl RelayLink for Link {
    fn mark(&self) -> RelayMark {
        self.mark
    }

    fn publish(&mut self, records: Vec<NewRecord>, mark: RelayMark) -> Future<'_, Result<(), BusError>> {
        Box::pin(self.send(records, mark))
    }

    fn close(mut self: Box<Self>) -> Future<'static, Result<(), BusError>> {
        Box::pin(async move {
            self.bus.pass(Step::Close).await?;
            self.tell();
            Ok(())
        })
    }
}

struct Member {
    bus: Arc<Shared>,
    group: Text,
    /// With the ids that they had when it joined.
    topics: BTreeMap<TopicName, Uuid>,
    /// Tells it from others of its name.
    ticket: u64,
    /// The group's when it was told of its partitions.
    generation: u64,
    /// Partitions that it has, and the next record of each.
    positions: BTreeMap<Place, u64>,
}

impl Member {
    /// Learns which partitions it has. Those that it keeps go on where they are.
    fn balance(&mut self, state: &State) -> Result<(), BusError> {
        if self.ticket == ALONE {
            return Ok(());
        }
        let group = &state.groups[&self.group];
        if group.generation == self.generation {
            return Ok(());
        }
        let fenced = || BusError::new(BusErrorKind::Fenced, "another member has this one's name");
        let mine = group.members.iter().position(|(_, ticket)| *ticket == self.ticket).ok_or_else(fenced)?;
        let places = state.places(self.topics.keys())?.into_iter().map(|(place, ..)| place);
        let places = places.enumerate().filter(|(index, _)| index % group.members.len() == mine);
        let positions = places.map(|(_, place)| {
            let at = self.positions.get(&place).or_else(|| group.committed.get(&place)).copied();
            (place, at.unwrap_or_default())
        });
        self.positions = positions.collect();
        self.generation = group.generation;
        Ok(())
    }

    fn take(&mut self, state: &State, most: usize) -> Result<Vec<Record>, BusError> {
        self.balance(state)?;
        let mut records = Vec::new();
        for ((topic, number), next) in &mut self.positions {
            let partition = &state.topic(topic)?.partitions[*number as usize];
            let skip = next.checked_sub(partition.low).ok_or_else(|| {
                BusError::new(BusErrorKind::Unavailable, "a partition has no place for the group")
            })?;
            let left = most - records.len();
            let before = records.len();
            records.extend(partition.records.iter().skip(skip as usize).take(left).cloned());
            *next += (records.len() - before) as u64;
        }
        Ok(records)
    }

    fn leave(&self) {
        if self.ticket == ALONE {
            return;
        }
        self.bus.change(|state| {
            let Some(group) = state.groups.get_mut(&self.group) else { return };
            group.members.retain(|(_, ticket)| *ticket != self.ticket);
            group.generation += 1;
        });
    }
}

impl Consumer for Member {
    fn next(&mut self, most: usize, _: Duration) -> Future<'_, Result<Vec<Record>, BusError>> {
        Box::pin(async move {
            let bus = self.bus.clone();
            bus.change(|state| *state.calls.entry(Step::Next).or_default() += 1);
            // However long a broker is away, a member waits for it.
            bus.until(|state| {
                if state.away || state.held.contains(&Step::Next) {
                    return None;
                }
                if let Some(fault) = state.fault(Step::Next) {
                    return Some(Err(fault.error));
                }
                match self.take(state, most) {
                    Ok(none) if none.is_empty() => None,
                    taken => Some(taken),
                }
            })
            .await
        })
    }

    fn done(&mut self, done: &[Done]) -> Result<(), BusError> {
        self.bus.change(|state| {
            *state.calls.entry(Step::Done).or_default() += 1;
            if let Some(fault) = state.fault(Step::Done) {
                return Err(fault.error);
            }
            let group = state.groups.entry(self.group.clone()).or_default();
            for Done { topic, partition, next } in done {
                let place = (topic.clone(), *partition);
                // What was taken away meanwhile is somebody else's to say.
                let has_it = self.ticket == ALONE || group.generation == self.generation;
                if has_it && self.positions.contains_key(&place) {
                    group.done.insert(place.clone());
                    group.committed.insert(place, *next);
                }
            }
            Ok(())
        })
    }

    fn topic_id(&self, topic: &TopicName) -> Option<Uuid> {
        self.topics.get(topic).copied()
    }

    fn close(self: Box<Self>) -> Future<'static, ()> {
        drop(self);
        Box::pin(ready(()))
    }

    fn leave(self: Box<Self>) -> Future<'static, ()> {
        self.bus.change(|state| *state.calls.entry(Step::Leave).or_default() += 1);
        self.close()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.leave();
    }
}
