//! What tests ask of a broker: topics, records, offsets. Each answers within its time, or fails the test.

use super::{Kafka, PATIENCE};
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{Header, Headers as _, Message as _, OwnedHeaders, OwnedMessage};
use rdkafka::producer::{BaseRecord, FutureProducer, FutureRecord, Producer as _};
use rdkafka::{Offset, TopicPartitionList};
use std::time::{Duration, Instant};

/// How many records wait for their acknowledgement at once; librdkafka's queue takes 100,000.
const IN_FLIGHT: usize = 10_000;

/// A record to be produced.
#[derive(Debug, Clone, Default)]
pub struct Record {
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<(String, Vec<u8>)>,
    partition: Option<i32>,
    timestamp_ms: Option<i64>,
}

impl Record {
    /// With a value.
    #[must_use]
    pub fn new(value: impl Into<Vec<u8>>) -> Self {
        Self { value: Some(value.into()), ..Self::default() }
    }

    /// Without a value.
    #[must_use]
    pub fn tombstone() -> Self {
        Self::default()
    }

    /// With a key.
    #[must_use]
    pub fn key(mut self, key: impl Into<Vec<u8>>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// With a header more.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl Into<Vec<u8>>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// To this partition, whatever its key.
    #[must_use]
    pub fn partition(mut self, partition: i32) -> Self {
        self.partition = Some(partition);
        self
    }

    /// From another time.
    #[must_use]
    pub fn timestamp_ms(mut self, timestamp: i64) -> Self {
        self.timestamp_ms = Some(timestamp);
        self
    }

    fn owned_headers(&self) -> OwnedHeaders {
        self.headers.iter().fold(OwnedHeaders::new(), |headers, (name, value)| {
            headers.insert(Header { key: name, value: Some(value) })
        })
    }
}

/// A record that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// Where it was.
    pub partition: i32,
    /// Where in its partition.
    pub offset: i64,
    /// Since 1970.
    pub timestamp_ms: Option<i64>,
    /// None for a record without one.
    pub key: Option<Vec<u8>>,
    /// None for a tombstone.
    pub value: Option<Vec<u8>>,
    /// In their order; a header without a value has an empty one here.
    pub headers: Vec<(String, Vec<u8>)>,
}

impl Received {
    /// The value of a header, as text.
    ///
    /// # Panics
    /// It is not UTF-8.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(other, _)| other == name)?;
        Some(std::str::from_utf8(value).expect("the header is UTF-8"))
    }

    /// The key, as text.
    ///
    /// # Panics
    /// There is none, or it is not UTF-8.
    #[must_use]
    pub fn key_text(&self) -> &str {
        std::str::from_utf8(self.key.as_deref().expect("the record has a key")).expect("the key is UTF-8")
    }

    /// The value, as JSON.
    ///
    /// # Panics
    /// There is none, or it is not JSON.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        let value = self.value.as_deref().expect("the record has a value");
        serde_json::from_slice(value).expect("the value is JSON")
    }

    fn of(message: &OwnedMessage) -> Self {
        let headers = message.headers().map(|headers| {
            headers
                .iter()
                .map(|header| (header.key.to_owned(), header.value.unwrap_or_default().to_vec()))
                .collect()
        });
        Self {
            partition: message.partition(),
            offset: message.offset(),
            timestamp_ms: message.timestamp().to_millis(),
            key: message.key().map(<[u8]>::to_vec),
            value: message.payload().map(<[u8]>::to_vec),
            headers: headers.unwrap_or_default(),
        }
    }
}

/// Which records a reader sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// Those of transactions only once they are committed.
    Committed,
    /// All, of aborted transactions too.
    Uncommitted,
}

impl Kafka {
    /// What a client of the plain listener is configured with; tests add to it.
    #[must_use]
    pub fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.brokers());
        // A broker that comes back is wanted at once.
        config.set("reconnect.backoff.ms", "20").set("reconnect.backoff.max.ms", "200");
        config
    }

    /// Makes a topic that nobody else has; gives back its name.
    ///
    /// # Panics
    /// The broker does not make it.
    pub async fn topic(&self, word: &str, partitions: i32) -> String {
        let name = self.unique(word);
        self.create_topic(&name, partitions, &[]).await;
        name
    }

    /// Makes a topic.
    ///
    /// # Panics
    /// The broker does not make it.
    pub async fn create_topic(&self, name: &str, partitions: i32, settings: &[(&str, &str)]) {
        // The broker's default replication.
        let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(-1));
        for (name, value) in settings {
            topic = topic.set(name, value);
        }
        let made = self.admin().create_topics([&topic], &patient()).await.expect("the broker answers");
        assert_eq!(made, [Ok(name.to_owned())]);
        // The broker has made it before it tells clients of it.
        self.blocking(
            move |config, name| {
                let consumer: BaseConsumer = config.create()?;
                let started = Instant::now();
                while partitions_of(&consumer, &name)?.len() != partitions as usize {
                    assert!(started.elapsed() < PATIENCE, "the broker does not tell of {name}");
                    std::thread::sleep(Duration::from_millis(10));
                }
                Ok(())
            },
            name,
        )
        .await;
    }

    /// Takes a topic away.
    ///
    /// # Panics
    /// The broker does not do so.
    pub async fn delete_topic(&self, name: &str) {
        let gone = self.admin().delete_topics(&[name], &patient()).await.expect("the broker answers");
        assert_eq!(gone, [Ok(name.to_owned())]);
    }

    /// Changes a topic's settings; those that are not named go back to the broker's.
    ///
    /// # Panics
    /// The broker does not take them.
    pub async fn alter_topic(&self, name: &str, settings: &[(&str, &str)]) {
        let mut change = AlterConfig::new(ResourceSpecifier::Topic(name));
        for (name, value) in settings {
            change = change.set(name, value);
        }
        let done = self.admin().alter_configs([&change], &patient()).await.expect("the broker answers");
        assert!(done.iter().all(Result::is_ok), "{done:?}");
    }

    /// A topic's setting.
    ///
    /// # Panics
    /// The broker does not tell.
    pub async fn topic_setting(&self, topic: &str, name: &str) -> Option<String> {
        let topic = ResourceSpecifier::Topic(topic);
        let told = self.admin().describe_configs([&topic], &patient()).await.expect("the broker answers");
        let told = told.first().expect("an answer for each").as_ref().expect("the topic is known");
        told.get(name)?.value.clone()
    }

    /// Forgets a partition's records below this offset.
    ///
    /// # Panics
    /// The broker does not do so.
    pub async fn delete_records(&self, topic: &str, partition: i32, before: i64) {
        let mut offsets = TopicPartitionList::new();
        offsets.add_partition_offset(topic, partition, Offset::Offset(before)).expect("an offset");
        let done = self.admin().delete_records(&offsets, &patient()).await.expect("the broker answers");
        for element in done.elements() {
            element.error().expect("the records are deleted");
        }
    }

    /// Produces records, in order, and gives back where each is once all are acknowledged: partition and offset. Keys go
    /// to the partitions that Java's clients would choose.
    ///
    /// # Panics
    /// A record is not acknowledged.
    pub async fn produce(&self, topic: &str, records: &[Record]) -> Vec<(i32, i64)> {
        let mut config = self.client();
        config.set("enable.idempotence", "true").set("partitioner", "murmur2_random").set("linger.ms", "1");
        config.set("message.timeout.ms", PATIENCE.as_millis().to_string());
        let producer: FutureProducer = config.create().expect("a producer");
        let mut places = Vec::with_capacity(records.len());
        for some in records.chunks(IN_FLIGHT) {
            let sent: Vec<_> = some.iter().map(|record| send(&producer, topic, record)).collect();
            for delivery in sent {
                let delivered = delivery.await.expect("the producer is there");
                let delivered = delivered.unwrap_or_else(|(error, _)| panic!("{topic}: {error}"));
                places.push((delivered.partition, delivered.offset));
            }
        }
        places
    }

    /// Produces records in one transaction, and commits or aborts it.
    ///
    /// # Panics
    /// The broker does not do so.
    pub async fn produce_in_transaction(&self, topic: &str, records: &[Record], commit: bool) {
        let (id, records) = (self.unique("transaction"), records.to_vec());
        self.blocking(
            move |mut config, topic| {
                config.set("transactional.id", id).set("partitioner", "murmur2_random");
                let producer: rdkafka::producer::BaseProducer = config.create()?;
                producer.init_transactions(PATIENCE)?;
                producer.begin_transaction()?;
                for record in &records {
                    let mut base: BaseRecord<'_, [u8], [u8]> =
                        BaseRecord::to(&topic).headers(record.owned_headers());
                    base.key = record.key.as_deref();
                    base.payload = record.value.as_deref();
                    base.partition = record.partition;
                    producer.send(base).map_err(|(error, _)| error)?;
                }
                // Written, so that an abort leaves something behind.
                producer.flush(PATIENCE)?;
                if commit {
                    producer.commit_transaction(PATIENCE)
                } else {
                    producer.abort_transaction(PATIENCE)
                }
            },
            topic,
        )
        .await;
    }

    /// The first records of a topic, by partition and offset, once there are so many.
    ///
    /// # Panics
    /// There are not so many in time.
    pub async fn read(&self, topic: &str, count: usize, isolation: Isolation) -> Vec<Received> {
        self.read_until(topic, isolation, move |read, _| read >= count).await
    }

    /// All records that a topic has now, by partition and offset.
    ///
    /// # Panics
    /// They can't be read in time.
    pub async fn read_all(&self, topic: &str, isolation: Isolation) -> Vec<Received> {
        self.read_until(topic, isolation, |_, at_end| at_end).await
    }

    /// Where each partition's next record goes.
    ///
    /// # Panics
    /// The broker does not tell.
    pub async fn ends(&self, topic: &str) -> Vec<i64> {
        self.watermarks(topic).await.into_iter().map(|(_, end)| end).collect()
    }

    /// Where each partition's first record is.
    ///
    /// # Panics
    /// The broker does not tell.
    pub async fn starts(&self, topic: &str) -> Vec<i64> {
        self.watermarks(topic).await.into_iter().map(|(start, _)| start).collect()
    }

    /// What a group has committed, for each partition.
    ///
    /// # Panics
    /// The broker does not tell.
    pub async fn committed(&self, group: &str, topic: &str) -> Vec<Option<i64>> {
        let group = group.to_owned();
        self.blocking(
            move |mut config, topic| {
                config.set("group.id", group);
                let consumer: BaseConsumer = config.create()?;
                let mut asked = TopicPartitionList::new();
                for partition in partitions_of(&consumer, &topic)? {
                    asked.add_partition(&topic, partition);
                }
                let told = consumer.committed_offsets(asked, PATIENCE)?;
                Ok(told
                    .elements()
                    .iter()
                    .map(|element| element.offset().to_raw().filter(|offset| *offset >= 0))
                    .collect())
            },
            topic,
        )
        .await
    }

    /// How many members a group has.
    ///
    /// # Panics
    /// The broker does not tell.
    pub async fn members(&self, group: &str) -> usize {
        self.blocking(
            |config, group| {
                let consumer: BaseConsumer = config.create()?;
                let groups = consumer.fetch_group_list(Some(&group), PATIENCE)?;
                Ok(groups.groups().iter().map(|group| group.members().len()).sum())
            },
            group,
        )
        .await
    }

    /// Moves a group's committed offset, as `kafka-consumer-groups --reset-offsets` does; the group has no member then.
    ///
    /// # Panics
    /// The broker does not take it.
    pub async fn commit(&self, group: &str, topic: &str, partition: i32, offset: i64) {
        let group = group.to_owned();
        self.blocking(
            move |mut config, topic| {
                config.set("group.id", group);
                let consumer: BaseConsumer = config.create()?;
                let mut offsets = TopicPartitionList::new();
                offsets.add_partition_offset(&topic, partition, Offset::Offset(offset))?;
                let started = Instant::now();
                loop {
                    // A static member that ended is one until its session is over.
                    match consumer.commit(&offsets, CommitMode::Sync) {
                        Err(error)
                            if error.rdkafka_error_code() == Some(RDKafkaErrorCode::UnknownMemberId)
                                && started.elapsed() < PATIENCE =>
                        {
                            std::thread::sleep(Duration::from_millis(200));
                        }
                        done => return done,
                    }
                }
            },
            topic,
        )
        .await;
    }

    /// Waits until clients get an answer.
    pub(super) async fn ready(&self) -> Result<(), String> {
        let config = self.client();
        let asked = tokio::task::spawn_blocking(move || {
            let consumer: BaseConsumer = config.create()?;
            let started = Instant::now();
            loop {
                match consumer.fetch_metadata(None, Duration::from_millis(200)) {
                    Ok(metadata) if !metadata.brokers().is_empty() => return Ok(()),
                    Err(error) if started.elapsed() > PATIENCE => return Err(error),
                    _ => {}
                }
            }
        });
        let asked: KafkaResult<()> = asked.await.expect("asking does not panic");
        asked.map_err(|error| format!("{}: no answer within {PATIENCE:?}: {error}", self.brokers()))
    }

    async fn watermarks(&self, topic: &str) -> Vec<(i64, i64)> {
        self.blocking(
            |config, topic| {
                let consumer: BaseConsumer = config.create()?;
                let partitions = partitions_of(&consumer, &topic)?;
                partitions
                    .into_iter()
                    .map(|partition| consumer.fetch_watermarks(&topic, partition, PATIENCE))
                    .collect()
            },
            topic,
        )
        .await
    }

    /// Reads every partition from its beginning until `enough` says so of the number of records that were read, and of
    /// whether all partitions' ends were reached.
    async fn read_until(
        &self,
        topic: &str,
        isolation: Isolation,
        enough: impl Fn(usize, bool) -> bool + Send + 'static,
    ) -> Vec<Received> {
        self.blocking(
            move |mut config, topic| {
                // It commits nothing, and so needs no group of its own.
                config
                    .set("group.id", "tests")
                    .set("enable.auto.commit", "false")
                    .set("enable.partition.eof", "true");
                let level =
                    if isolation == Isolation::Committed { "read_committed" } else { "read_uncommitted" };
                config.set("isolation.level", level).set("check.crcs", "true");
                let consumer: BaseConsumer = config.create()?;
                let mut assigned = TopicPartitionList::new();
                let partitions = partitions_of(&consumer, &topic)?;
                for partition in &partitions {
                    assigned.add_partition_offset(&topic, *partition, Offset::Beginning)?;
                }
                consumer.assign(&assigned)?;
                let (started, mut read) = (Instant::now(), Vec::new());
                let mut ended = std::collections::BTreeSet::new();
                while !enough(read.len(), ended.len() == partitions.len()) {
                    match consumer.poll(Duration::from_millis(100)) {
                        Some(Ok(message)) => read.push(Received::of(&message.detach())),
                        Some(Err(KafkaError::PartitionEOF(partition))) => {
                            ended.insert(partition);
                        }
                        // Gone for a moment, which librdkafka sees to by itself.
                        Some(Err(_)) | None => {}
                    }
                    assert!(
                        started.elapsed() < PATIENCE,
                        "{topic}: {} records, and no more in time",
                        read.len()
                    );
                }
                read.sort_by_key(|record| (record.partition, record.offset));
                Ok(read)
            },
            topic,
        )
        .await
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        self.client().create().expect("an admin client")
    }

    /// Where librdkafka's blocking calls do no harm.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(ClientConfig, String) -> KafkaResult<T> + Send + 'static,
        topic: &str,
    ) -> T {
        let (config, topic) = (self.client(), topic.to_owned());
        let about = topic.clone();
        let done = tokio::task::spawn_blocking(move || work(config, topic)).await;
        done.expect("no panic").unwrap_or_else(|error| panic!("{about}: {error}"))
    }
}

fn send(producer: &FutureProducer, topic: &str, record: &Record) -> rdkafka::producer::DeliveryFuture {
    let mut future: FutureRecord<'_, [u8], [u8]> = FutureRecord::to(topic).headers(record.owned_headers());
    future.key = record.key.as_deref();
    future.payload = record.value.as_deref();
    future.partition = record.partition;
    future.timestamp = record.timestamp_ms;
    producer.send_result(future).unwrap_or_else(|(error, _)| panic!("{topic}: {error}"))
}

fn partitions_of(consumer: &BaseConsumer, topic: &str) -> KafkaResult<Vec<i32>> {
    let metadata = consumer.fetch_metadata(Some(topic), PATIENCE)?;
    let about = metadata.topics().iter().find(|about| about.name() == topic);
    let mut partitions: Vec<i32> =
        about.into_iter().flat_map(|about| about.partitions()).map(|partition| partition.id()).collect();
    partitions.sort_unstable();
    Ok(partitions)
}

fn patient() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(PATIENCE)).request_timeout(Some(PATIENCE))
}
