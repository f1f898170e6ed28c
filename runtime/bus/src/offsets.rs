//! Where a group stands in its topics, where it begins, and how much is left for it.

use crate::producer::Quiet;
use crate::settings::Settings;
use crate::{PATIENCE, error, topic_ids};
use ebb_domain::name::TopicName;
use ebb_domain::port::bus::{BusError, BusErrorKind, PartitionLag, Standing, Subscription};
use ebb_domain::topic::{self, Start};
use parking_lot::Mutex;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode as Code};
use rdkafka::{Message as _, Offset, TopicPartitionList};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::{Duration, Instant};
use tracing::{debug, info, warn};
use uuid::Uuid;

/// How long it is looked whether there is a record.
const LOOKING: Duration = Duration::from_secs(3);

/// Errors that are listened to, of a client that could not reach anybody.
const TOLD: usize = 50;

/// How long a question waits before it is looked whether there will be an answer.
const ONCE: Duration = Duration::from_millis(250);

/// How long brokers are waited for that can't be connected to: the next attempt finds those that came back.
const CONNECT: Duration = Duration::from_secs(2);

/// A client that asks on behalf of a group, and is no member of it.
pub(crate) fn asking(settings: &Settings, group: &str) -> Result<BaseConsumer<Quiet>, BusError> {
    let mut config = settings.client();
    config.set("group.id", group).set("enable.auto.commit", "false").set("isolation.level", "read_committed");
    BaseConsumer::from_config_and_context(&config, Quiet::default())
        .map_err(|failure| error::of(settings, "no client can be made", &failure))
}

/// Nobody answered: what the client was told meanwhile says why.
pub(crate) fn unreachable(settings: &Settings, consumer: &BaseConsumer<Quiet>) -> BusError {
    listen(consumer, Duration::from_millis(5));
    error::unreachable(settings, consumer.context())
}

/// A client is told what is wrong with its connections when it is polled.
fn listen(consumer: &BaseConsumer<Quiet>, patience: Duration) {
    // What it has to tell comes with what it logs, one at a time.
    for _ in 0..TOLD {
        if let Some(Err(failure)) = consumer.poll(patience) {
            consumer.context().hear(&failure, &failure.to_string());
        }
    }
}

/// Asks the brokers until one answers. A client with the wrong password would try to connect for as long as it may; it is
/// told at once, and so is whoever asks.
pub(crate) fn ask<T>(
    settings: &Settings,
    consumer: &BaseConsumer<Quiet>,
    question: impl Fn(Duration) -> Result<T, KafkaError>,
) -> Result<Result<T, KafkaError>, BusError> {
    let begun = Instant::now();
    loop {
        let failure = match question(ONCE) {
            Ok(answer) => return Ok(Ok(answer)),
            Err(failure) => failure,
        };
        match failure.rdkafka_error_code() {
            None | Some(Code::BrokerTransportFailure | Code::OperationTimedOut | Code::AllBrokersDown) => {}
            Some(_) => return Ok(Err(failure)),
        }
        listen(consumer, Duration::ZERO);
        let heard = consumer.context().last();
        let given_up = match &heard {
            Some((code, _)) => !error::of_code(settings, "", *code).passes() || begun.elapsed() >= CONNECT,
            None => begun.elapsed() >= PATIENCE,
        };
        if given_up {
            return Err(error::unreachable(settings, consumer.context()));
        }
    }
}

/// What is committed with offsets of what this node has done, so that others are told apart: where a group begins, and what
/// another node in the group, or Kafka's own tools, say.
pub(crate) fn signature(settings: &Settings) -> String {
    format!("ebbtide {}", settings.node)
}

/// A partition of a topic, as a group finds it.
struct Place {
    topic: TopicName,
    partition: i32,
    low: i64,
    high: i64,
    committed: Option<i64>,
    /// This node has done what lies before it.
    is_ours: bool,
}

/// Whether a topic is there.
pub(crate) fn is_there(
    settings: &Settings,
    consumer: &BaseConsumer<Quiet>,
    topic: &TopicName,
) -> Result<bool, BusError> {
    match partitions(settings, consumer, [topic]) {
        Ok(_) => Ok(true),
        Err(error) if error.kind == BusErrorKind::MissingTopic => Ok(false),
        Err(error) => Err(error),
    }
}

/// All partitions of topics.
fn partitions<'a>(
    settings: &Settings,
    consumer: &BaseConsumer<Quiet>,
    topics: impl IntoIterator<Item = &'a TopicName>,
) -> Result<TopicPartitionList, BusError> {
    let mut list = TopicPartitionList::new();
    for topic in topics {
        let what = format!("topic `{topic}`");
        let metadata = ask(settings, consumer, |patience| consumer.fetch_metadata(Some(topic), patience))?
            .map_err(|failure| error::of(settings, &what, &failure))?;
        let found = metadata.topics().iter().find(|found| found.name() == &**topic);
        if let Some(code) = found.and_then(rdkafka::metadata::MetadataTopic::error) {
            return Err(error::of_code(settings, &what, code.into()));
        }
        let partitions = found.map(|found| found.partitions()).unwrap_or_default();
        if partitions.is_empty() {
            return Err(error::of_code(settings, &what, Code::UnknownTopic));
        }
        for partition in partitions {
            list.add_partition(topic, partition.id());
        }
    }
    Ok(list)
}

/// What partitions hold, and, where it is told, where someone stands in them.
fn ranges(
    settings: &Settings,
    consumer: &BaseConsumer<Quiet>,
    list: &TopicPartitionList,
) -> Result<Vec<Place>, BusError> {
    let mut places = Vec::new();
    let ours = signature(settings);
    for element in list.elements() {
        let topic = TopicName::trusted(element.topic().into());
        let watermarks = consumer.fetch_watermarks(&topic, element.partition(), PATIENCE);
        let (low, high) =
            watermarks.map_err(|failure| error::of(settings, &format!("topic `{topic}`"), &failure))?;
        let committed = match element.offset() {
            Offset::Offset(offset) => Some(offset),
            _ => None,
        };
        let is_ours = committed.is_some() && element.metadata() == ours;
        places.push(Place { topic, partition: element.partition(), low, high, committed, is_ours });
    }
    Ok(places)
}

/// Where a group stands in all partitions of its topics.
fn places(
    settings: &Settings,
    consumer: &BaseConsumer<Quiet>,
    topics: &BTreeMap<TopicName, Start>,
) -> Result<Vec<Place>, BusError> {
    let list = partitions(settings, consumer, topics.keys())?;
    let group = "the group's offsets";
    let committed =
        consumer.committed_offsets(list, PATIENCE).map_err(|failure| error::of(settings, group, &failure))?;
    ranges(settings, consumer, &committed)
}

/// Where those begin that stand nowhere yet. A partition that was added to a topic holds nothing that was there before.
fn beginnings(
    settings: &Settings,
    consumer: &BaseConsumer<Quiet>,
    places: &[Place],
    topics: &BTreeMap<TopicName, Start>,
) -> Result<TopicPartitionList, BusError> {
    let begun: BTreeSet<&TopicName> =
        places.iter().filter(|place| place.committed.is_some()).map(|place| &place.topic).collect();
    let mut first = TopicPartitionList::new();
    let mut at_time = TopicPartitionList::new();
    for Place { topic, partition, low, high, .. } in places.iter().filter(|place| place.committed.is_none()) {
        let start = match begun.contains(topic) {
            true => Start::Earliest,
            false => topics.get(topic).copied().unwrap_or_default(),
        };
        let (list, offset) = match start {
            Start::Earliest => (&mut first, *low),
            Start::Latest => (&mut first, *high),
            Start::At(time) => (&mut at_time, i64::try_from(time.0 / 1000).unwrap_or(i64::MAX)),
        };
        list.add_partition_offset(topic, *partition, Offset::Offset(offset))
            .map_err(|failure| error::of(settings, &format!("topic `{topic}`"), &failure))?;
    }
    if at_time.count() > 0 {
        let found = consumer
            .offsets_for_times(at_time, PATIENCE)
            .map_err(|failure| error::of(settings, "offsets of a time", &failure))?;
        for element in found.elements() {
            let place = places
                .iter()
                .find(|place| &*place.topic == element.topic() && place.partition == element.partition());
            let offset = match (element.offset(), place) {
                (Offset::Offset(offset), _) => offset,
                (_, Some(place)) => place.high,
                (_, None) => continue,
            };
            first
                .add_partition_offset(element.topic(), element.partition(), Offset::Offset(offset))
                .map_err(|failure| error::of(settings, element.topic(), &failure))?;
        }
    }
    Ok(first)
}

/// What is wrong with where someone stands, if anything is.
fn gone(place: &Place) -> Option<String> {
    let Place { low, high, committed, .. } = place;
    let committed = (*committed)?;
    if committed < *low {
        return Some(format!("which begins at {low} now: records were deleted before they were consumed"));
    }
    (committed > *high).then(|| format!("which ends at {high}"))
}

/// Sees to it that a group that is about to consume stands somewhere in each partition, and nowhere that is not there any
/// more. Gives the ids of its topics.
pub(crate) fn prepare(
    settings: &Settings,
    subscription: &Subscription,
) -> Result<BTreeMap<TopicName, Uuid>, BusError> {
    let group = &subscription.group;
    let consumer = asking(settings, group)?;
    let mut places = places(settings, &consumer, &subscription.topics)?;
    let ids = topic_ids::of(settings, consumer.client(), subscription.topics.keys(), PATIENCE)?;
    for (topic, known) in &subscription.known {
        if let Some(now) = ids.get(topic).filter(|now| *now != known) {
            let message =
                format!("{}; `ebb topics accept` goes on with the new one", recreated(topic, known, now));
            return Err(BusError::new(BusErrorKind::Recreated, message));
        }
    }
    let mut back = TopicPartitionList::new();
    for place in &mut places {
        let kept = as_kept(place, &subscription.kept, &ids);
        if kept == place.committed {
            continue;
        }
        info!(topic = %place.topic, partition = place.partition, committed = ?place.committed, ?kept, "the group goes back to what is kept");
        place.committed = kept;
        if let Some(kept) = kept {
            back.add_partition_offset(&place.topic, place.partition, Offset::Offset(kept))
                .map_err(|failure| error::of(settings, &place.topic, &failure))?;
        }
    }
    for place in &places {
        let (Some(gone), Some(committed)) = (gone(place), place.committed) else { continue };
        let Place { topic, partition, .. } = place;
        return Err(BusError::new(
            BusErrorKind::OutOfRange,
            format!(
                "group `{group}` stands at offset {committed} of partition {partition} of topic `{topic}`, {gone}; \
                 nothing is left out silently: set the group's offsets with Kafka's own tools \
                 (kafka-consumer-groups --reset-offsets) to say where it goes on"
            ),
        ));
    }
    let first = beginnings(settings, &consumer, &places, &subscription.topics)?;
    if first.count() > 0 {
        info!(partitions = first.count(), "a group begins");
    }
    // Where it begins is kept before anything is consumed: "latest" is not to be another place after a restart.
    for list in [&first, &back].into_iter().filter(|list| list.count() > 0) {
        consumer
            .commit(list, CommitMode::Sync)
            .map_err(|failure| error::of(settings, &format!("group `{group}`"), &failure))?;
    }
    Ok(ids)
}

/// Where a group stands, as far as what it has done is kept: it goes back where it is not, unless somebody else put it where
/// it is. Where the topic has let go of what lies in between, it goes on with what there is: perhaps there was nothing that
/// would be kept.
fn as_kept(place: &Place, kept: &[topic::Place], ids: &BTreeMap<TopicName, Uuid>) -> Option<i64> {
    let of_this = |kept: &&topic::Place| {
        kept.topic == place.topic
            && i64::from(kept.partition) == i64::from(place.partition)
            && ids.get(&kept.topic) == Some(&kept.topic_id)
    };
    let next = kept.iter().find(of_this).and_then(|kept| i64::try_from(kept.next).ok());
    let Some(committed) = place.committed else { return next.map(|next| next.max(place.low)) };
    match next {
        _ if !place.is_ours => Some(committed),
        Some(next) if next < place.low && place.low <= committed => {
            warn!(
                topic = %place.topic, partition = place.partition, committed, kept = next, low = place.low,
                "the group stands behind records that are neither kept nor in the topic any more: if an older copy of the log \
                 was put in place, they are lost"
            );
            Some(place.low)
        }
        Some(next) => Some(next.min(committed)),
        // Nothing of what it has done: it begins anew.
        None => None,
    }
}

fn recreated(topic: &TopicName, known: &Uuid, now: &Uuid) -> String {
    format!(
        "topic `{topic}` was deleted and made again (its id was {known} and is {now}): records of the new one are others, \
         and some of the old one may never have been consumed"
    )
}

/// Where someone stands who takes all partitions of its topics; see the port.
pub(crate) fn standing(settings: &Settings, standing: &Standing) -> Result<Vec<topic::Place>, BusError> {
    let Standing { topics, places: known, accepted } = standing;
    // It asks for nobody: no group knows where it stands.
    let consumer = asking(settings, "ebbtide")?;
    let list = partitions(settings, &consumer, topics.keys())?;
    let ids = topic_ids::of(settings, consumer.client(), topics.keys(), PATIENCE)?;
    let mut places = ranges(settings, &consumer, &list)?;
    for place in &mut places {
        let Some(known) = known.iter().find(|known| {
            known.topic == place.topic && i64::from(known.partition) == i64::from(place.partition)
        }) else {
            continue;
        };
        place.committed = Some(i64::try_from(known.next).unwrap_or(i64::MAX));
        let (topic, partition, next) = (&place.topic, place.partition, known.next);
        let is_another = ids.get(topic).filter(|now| **now != known.topic_id);
        let wrong = match (is_another, gone(place)) {
            (Some(now), _) => Some((BusErrorKind::Recreated, recreated(topic, &known.topic_id, now))),
            (None, Some(gone)) => {
                let message =
                    format!("offset {next} of partition {partition} of topic `{topic}` comes next, {gone}");
                Some((BusErrorKind::OutOfRange, message))
            }
            (None, None) => None,
        };
        match wrong {
            // Of a topic that ends earlier than it did, all that is left was taken.
            Some((BusErrorKind::OutOfRange, _)) if accepted.contains(topic) => {
                place.committed = place.committed.map(|next| next.clamp(place.low, place.high));
            }
            Some(_) if accepted.contains(topic) => place.committed = Some(place.low),
            Some((kind, message)) => return Err(BusError::new(kind, message)),
            None => {}
        }
    }
    let first = beginnings(settings, &consumer, &places, topics)?;
    for element in first.elements() {
        let offset = match element.offset() {
            Offset::Offset(offset) => offset,
            _ => continue,
        };
        let place = places
            .iter_mut()
            .find(|place| &*place.topic == element.topic() && place.partition == element.partition());
        if let Some(place) = place {
            place.committed = Some(offset);
        }
    }
    let place = |place: Place| {
        let topic_id = ids.get(&place.topic).copied().ok_or_else(|| {
            let code = rdkafka::error::RDKafkaErrorCode::UnknownTopic;
            error::of_code(settings, &format!("topic `{}`", place.topic), code)
        })?;
        let next = u64::try_from(place.committed.unwrap_or(place.low)).unwrap_or_default();
        let partition = u32::try_from(place.partition).unwrap_or_default();
        Ok(topic::Place { topic: place.topic, topic_id, partition, next })
    };
    places.into_iter().map(place).collect()
}

/// Asks how much is left for a group.
///
/// An offset is not always a record: the end of a transaction has one as well, and so has what was aborted. Who has taken all
/// records of a topic that transactions write would seem to be behind for ever, and keep workers from being let go. So where
/// nothing moves from one question to the next, it is looked whether there is a record at all.
pub(crate) struct Asking {
    consumer: BaseConsumer<Quiet>,
    looked: Mutex<BTreeMap<(TopicName, i32), Looked>>,
}

/// What is known of the offsets that are left of a partition.
struct Looked {
    left: Range<i64>,
    /// Whether none of them is a record; none: nobody has looked.
    is_empty: Option<bool>,
}

impl Asking {
    pub(crate) fn new(settings: &Settings, group: &str) -> Result<Self, BusError> {
        Ok(Self { consumer: asking(settings, group)?, looked: Mutex::default() })
    }

    /// How much is left for the group.
    pub(crate) fn lag(
        &self,
        settings: &Settings,
        topics: &BTreeMap<TopicName, Start>,
    ) -> Result<Vec<PartitionLag>, BusError> {
        let mut looked = self.looked.lock();
        let places = places(settings, &self.consumer, topics)?;
        let mut suspects: BTreeMap<&TopicName, Vec<(i32, Range<i64>)>> = BTreeMap::new();
        for place in &places {
            let Some(left) = left(place).filter(|left| !left.is_empty()) else { continue };
            let key = (place.topic.clone(), place.partition);
            match looked.get(&key).filter(|looked| looked.left == left) {
                Some(Looked { is_empty: Some(_), .. }) => {}
                Some(_) => suspects.entry(&place.topic).or_default().push((place.partition, left)),
                None => {
                    looked.insert(key, Looked { left, is_empty: None });
                }
            }
        }
        for (topic, suspects) in suspects {
            for (partition, is_empty) in look(settings, topic, &suspects) {
                if let Some(looked) = looked.get_mut(&(topic.clone(), partition)) {
                    looked.is_empty = Some(is_empty);
                }
            }
        }
        let mut lag = lag(&places, topics);
        for (place, lag) in places.iter().zip(&mut lag) {
            let known = looked.get(&(place.topic.clone(), place.partition));
            if known.is_some_and(|known| {
                known.is_empty == Some(true) && Some(&known.left) == left(place).as_ref()
            }) {
                lag.lag = 0;
            }
        }
        Ok(lag)
    }
}

/// Which of a topic's partitions have no record in these ranges, and which have. Those of which it can't be told now are left
/// out.
///
/// By a client of its own: one that was told the end of a partition once is not told of it again.
fn look(settings: &Settings, topic: &TopicName, ranges: &[(i32, Range<i64>)]) -> BTreeMap<i32, bool> {
    let mut found = BTreeMap::new();
    let looked = look_into(settings, topic, ranges, &mut found);
    if let Err(error) = looked {
        debug!(%error, %topic, "whether records are left can't be told");
    }
    found
}

fn look_into(
    settings: &Settings,
    topic: &TopicName,
    ranges: &[(i32, Range<i64>)],
    found: &mut BTreeMap<i32, bool>,
) -> KafkaResult<()> {
    let mut config = settings.client();
    config
        .set("group.id", "ebbtide")
        .set("enable.auto.commit", "false")
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "true")
        .set("auto.offset.reset", "error")
        .set("queued.min.messages", "1")
        .set("fetch.wait.max.ms", "50");
    let consumer: BaseConsumer<Quiet> = BaseConsumer::from_config_and_context(&config, Quiet::default())?;
    let mut list = TopicPartitionList::new();
    for (partition, range) in ranges {
        list.add_partition_offset(topic, *partition, Offset::Offset(range.start))?;
    }
    consumer.assign(&list)?;
    let until = Instant::now() + LOOKING;
    while found.len() < ranges.len() && Instant::now() < until {
        match consumer.poll(LOOKING / 20) {
            Some(Ok(message)) => {
                found.insert(message.partition(), false);
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                found.entry(partition).or_insert(true);
            }
            Some(Err(_)) | None => {}
        }
    }
    Ok(())
}

/// What is between where a group stands in a partition and its end.
fn left(place: &Place) -> Option<Range<i64>> {
    place.committed.map(|committed| committed.max(place.low)..place.high)
}

fn lag(places: &[Place], topics: &BTreeMap<TopicName, Start>) -> Vec<PartitionLag> {
    let number = |offset: i64| u64::try_from(offset).unwrap_or_default();
    let lag = places.iter().map(|place| {
        let next = match (place.committed, topics.get(&place.topic)) {
            (Some(committed), _) => committed.max(place.low),
            (None, Some(Start::Latest)) => place.high,
            (None, _) => place.low,
        };
        PartitionLag {
            partition: u32::try_from(place.partition).unwrap_or_default(),
            committed: place.committed.map(number),
            end: number(place.high),
            lag: number(place.high - next),
            topic: place.topic.clone(),
        }
    });
    lag.collect()
}
