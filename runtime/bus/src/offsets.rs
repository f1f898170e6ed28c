//! Where a group stands in its topics, where it begins, and how much is left for it.

use crate::producer::Quiet;
use crate::settings::Settings;
use crate::{PATIENCE, error, topic_ids};
use ebb_domain::name::TopicName;
use ebb_domain::port::bus::{BusError, BusErrorKind, PartitionLag, Subscription};
use ebb_domain::topic::Start;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::{Offset, TopicPartitionList};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tracing::info;
use uuid::Uuid;

/// Errors that are listened to, of a client that could not reach anybody.
const TOLD: usize = 50;

/// A client that asks on behalf of a group, and is no member of it.
pub(crate) fn asking(settings: &Settings, group: &str) -> Result<BaseConsumer<Quiet>, BusError> {
    let mut config = settings.client();
    config.set("group.id", group).set("enable.auto.commit", "false").set("isolation.level", "read_committed");
    BaseConsumer::from_config_and_context(&config, Quiet::default())
        .map_err(|failure| error::of(settings, "no client can be made", &failure))
}

/// Nobody answered: what the client was told meanwhile says why. It is told when it is polled.
pub(crate) fn unreachable(settings: &Settings, consumer: &BaseConsumer<Quiet>) -> BusError {
    // What it has to tell comes with what it logs, one at a time.
    for _ in 0..TOLD {
        if let Some(Err(failure)) = consumer.poll(Duration::from_millis(5)) {
            consumer.context().hear(&failure, &failure.to_string());
        }
    }
    error::unreachable(settings, consumer.context())
}

/// A partition of a topic, as a group finds it.
struct Place {
    topic: TopicName,
    partition: i32,
    low: i64,
    high: i64,
    committed: Option<i64>,
}

/// Where a group stands in all partitions of its topics.
fn places(
    settings: &Settings,
    consumer: &BaseConsumer<Quiet>,
    topics: &BTreeMap<TopicName, Start>,
) -> Result<Vec<Place>, BusError> {
    let mut list = TopicPartitionList::new();
    for topic in topics.keys() {
        let what = format!("topic `{topic}`");
        let metadata = consumer.fetch_metadata(Some(topic), PATIENCE).map_err(|failure| {
            match failure.rdkafka_error_code() {
                Some(rdkafka::error::RDKafkaErrorCode::BrokerTransportFailure) | None => {
                    unreachable(settings, consumer)
                }
                Some(_) => error::of(settings, &what, &failure),
            }
        })?;
        let found = metadata.topics().iter().find(|found| found.name() == &**topic);
        if let Some(code) = found.and_then(rdkafka::metadata::MetadataTopic::error) {
            return Err(error::of_code(settings, &what, code.into()));
        }
        let partitions = found.map(|found| found.partitions()).unwrap_or_default();
        if partitions.is_empty() {
            return Err(error::of_code(settings, &what, rdkafka::error::RDKafkaErrorCode::UnknownTopic));
        }
        for partition in partitions {
            list.add_partition(topic, partition.id());
        }
    }
    let group = "the group's offsets";
    let committed =
        consumer.committed_offsets(list, PATIENCE).map_err(|failure| error::of(settings, group, &failure))?;
    let mut places = Vec::new();
    for element in committed.elements() {
        let topic = TopicName::trusted(element.topic().into());
        let watermarks = consumer.fetch_watermarks(&topic, element.partition(), PATIENCE);
        let (low, high) =
            watermarks.map_err(|failure| error::of(settings, &format!("topic `{topic}`"), &failure))?;
        let committed = match element.offset() {
            Offset::Offset(offset) => Some(offset),
            _ => None,
        };
        places.push(Place { topic, partition: element.partition(), low, high, committed });
    }
    Ok(places)
}

/// Sees to it that a group that is about to consume stands somewhere in each partition, and nowhere that is not there any
/// more. Gives the ids of its topics.
pub(crate) fn prepare(
    settings: &Settings,
    subscription: &Subscription,
) -> Result<BTreeMap<TopicName, Uuid>, BusError> {
    let group = &subscription.group;
    let consumer = asking(settings, group)?;
    let places = places(settings, &consumer, &subscription.topics)?;
    let ids = topic_ids::of(settings, consumer.client(), subscription.topics.keys(), PATIENCE)?;
    for (topic, known) in &subscription.known {
        if let Some(now) = ids.get(topic).filter(|now| *now != known) {
            return Err(BusError::new(
                BusErrorKind::Recreated,
                format!(
                    "topic `{topic}` was deleted and made again (its id was {known} and is {now}): records of the new one \
                     are others, and some of the old one may never have been consumed; `ebb topics accept` goes on with \
                     the new one"
                ),
            ));
        }
    }
    let begun: BTreeSet<&TopicName> =
        places.iter().filter(|place| place.committed.is_some()).map(|place| &place.topic).collect();
    let mut first = TopicPartitionList::new();
    let mut at_time = TopicPartitionList::new();
    for place in &places {
        let Place { topic, partition, low, high, committed } = place;
        match committed {
            Some(committed) if committed < low || committed > high => {
                let gone = match committed < low {
                    true => {
                        format!("which begins at {low} now: records were deleted before they were consumed")
                    }
                    false => format!("which ends at {high}"),
                };
                return Err(BusError::new(
                    BusErrorKind::OutOfRange,
                    format!(
                        "group `{group}` stands at offset {committed} of partition {partition} of topic `{topic}`, {gone}; \
                         nothing is left out silently: set the group's offsets with Kafka's own tools \
                         (kafka-consumer-groups --reset-offsets) to say where it goes on"
                    ),
                ));
            }
            Some(_) => {}
            None => {
                // A partition that was added to a topic holds nothing that was there before.
                let start = match begun.contains(topic) {
                    true => Start::Earliest,
                    false => subscription.topics.get(topic).copied().unwrap_or_default(),
                };
                let failed = |failure| error::of(settings, &format!("topic `{topic}`"), &failure);
                match start {
                    Start::Earliest => {
                        first
                            .add_partition_offset(topic, *partition, Offset::Offset(*low))
                            .map_err(failed)?;
                    }
                    Start::Latest => {
                        first
                            .add_partition_offset(topic, *partition, Offset::Offset(*high))
                            .map_err(failed)?;
                    }
                    Start::At(time) => {
                        let millis = i64::try_from(time.0 / 1000).unwrap_or(i64::MAX);
                        at_time
                            .add_partition_offset(topic, *partition, Offset::Offset(millis))
                            .map_err(failed)?;
                    }
                }
            }
        }
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
    if first.count() > 0 {
        info!(partitions = first.count(), "a group begins");
        // Where it begins is kept before anything is consumed: "latest" is not to be another place after a restart.
        consumer
            .commit(&first, CommitMode::Sync)
            .map_err(|failure| error::of(settings, &format!("group `{group}`"), &failure))?;
    }
    Ok(ids)
}

/// How much is left for a group.
pub(crate) fn lag(
    settings: &Settings,
    consumer: &BaseConsumer<Quiet>,
    topics: &BTreeMap<TopicName, Start>,
) -> Result<Vec<PartitionLag>, BusError> {
    let number = |offset: i64| u64::try_from(offset).unwrap_or_default();
    let lag = places(settings, consumer, topics)?.into_iter().map(|place| {
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
            topic: place.topic,
        }
    });
    Ok(lag.collect())
}
