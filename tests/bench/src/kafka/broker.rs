//! What the measurements ask of the broker itself.

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer as _, ProducerContext, ThreadedProducer};
use rdkafka::{ClientConfig, ClientContext, error::KafkaError, types::RDKafkaErrorCode};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

pub const PATIENCE: Duration = Duration::from_secs(30);
/// Partitions of topics, as the relay makes them.
pub const PARTITIONS: i32 = 3;

pub struct Broker {
    brokers: String,
    asking: Arc<BaseConsumer>,
}

/// A record to produce.
pub struct Sent<'a> {
    pub key: &'a str,
    pub kind: &'a str,
    pub value: &'a str,
    pub partition: Option<i32>,
}

impl Broker {
    pub fn new(brokers: &str) -> Self {
        let asking = client(brokers).set("group.id", "bench").create().expect("a client");
        Self { brokers: brokers.to_owned(), asking: Arc::new(asking) }
    }

    pub fn brokers(&self) -> &str {
        &self.brokers
    }

    /// A topic that nobody else has.
    pub async fn topic(&self, word: &str) -> String {
        let name = format!("{word}-{}", uuid::Uuid::now_v7().simple());
        self.make(&name).await;
        name
    }

    pub async fn make(&self, name: &str) {
        let topic = NewTopic::new(name, PARTITIONS, TopicReplication::Fixed(1));
        let made = self.admin().create_topics([&topic], &AdminOptions::new()).await.expect("an answer");
        assert!(made[0].is_ok(), "{made:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }

    /// Takes topics away, those that are there.
    pub async fn delete(&self, names: &[&str]) {
        self.admin().delete_topics(names, &AdminOptions::new()).await.expect("an answer");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }

    /// Offsets that were given out, of all partitions: of a topic that is not there, none.
    pub async fn count(&self, topic: &str) -> u64 {
        let (asking, topic) = (self.asking.clone(), topic.to_owned());
        let asked = tokio::task::spawn_blocking(move || {
            // Told that a topic is not there, it would not ask again for a while.
            let known = asking.fetch_metadata(Some(&topic), PATIENCE).expect("an answer");
            if known.topics().iter().all(|topic| topic.partitions().is_empty()) {
                return 0;
            }
            let end =
                |partition| asking.fetch_watermarks(&topic, partition, PATIENCE).map_or(0, |(_, end)| end);
            (0..PARTITIONS).map(end).sum::<i64>()
        });
        asked.await.expect("no panic") as u64
    }

    /// Produces records as CloudEvents in binary mode, and waits until the broker has them.
    pub fn produce<'a>(&self, topic: &str, records: impl Iterator<Item = Sent<'a>>) {
        let producer = self.producer();
        for (number, record) in records.enumerate() {
            producer.send_event(topic, number, &record);
        }
        producer.wait();
    }

    pub fn producer(&self) -> Producer {
        Producer::new(&self.brokers, None)
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        client(&self.brokers).create().expect("a client")
    }
}

/// An idempotent producer, as a node's is set up, that knows when all it was given has arrived.
pub struct Producer(pub ThreadedProducer<Acks>);

/// What has not arrived yet.
#[derive(Default)]
pub struct Acks {
    left: Mutex<usize>,
    arrived: Condvar,
}

impl ClientContext for Acks {}

impl ProducerContext for Acks {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        assert!(result.is_ok(), "a record was not taken");
        let mut left = self.left.lock().expect("no panic");
        *left -= 1;
        if *left == 0 {
            self.arrived.notify_all();
        }
    }
}

impl Producer {
    pub fn new(brokers: &str, transactional: Option<&str>) -> Self {
        let mut config = client(brokers);
        config
            .set("enable.idempotence", "true")
            .set("compression.type", "lz4")
            .set("linger.ms", "1")
            .set("partitioner", "murmur2_random");
        if let Some(id) = transactional {
            config.set("transactional.id", id);
        }
        Self(config.create_with_context(Acks::default()).expect("a producer"))
    }

    pub fn send(&self, mut record: BaseRecord<'_, str, [u8]>) {
        *self.0.context().left.lock().expect("no panic") += 1;
        loop {
            match self.0.send(record) {
                Ok(()) => return,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    record = back;
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err((error, _)) => panic!("{error}"),
            }
        }
    }

    pub fn send_event(&self, topic: &str, number: usize, record: &Sent<'_>) {
        let id = number.to_string();
        let attributes = [
            ("ce_specversion", "1.0"),
            ("ce_id", &id),
            ("ce_source", "urn:bench"),
            ("ce_type", record.kind),
            ("content-type", "application/json"),
        ];
        let headers = attributes.iter().fold(OwnedHeaders::new(), |headers, (key, value)| {
            headers.insert(Header { key, value: Some(*value) })
        });
        let mut sent =
            BaseRecord::to(topic).key(record.key).payload(record.value.as_bytes()).headers(headers);
        sent.partition = record.partition;
        self.send(sent);
    }

    /// Waits until all of it has arrived. `flush` would take the thread's events from it, and wait for them for 100 ms.
    pub fn wait(&self) {
        let acks = self.0.context();
        let left = acks.left.lock().expect("no panic");
        let (left, _) = acks.arrived.wait_timeout_while(left, PATIENCE, |left| *left > 0).expect("no panic");
        assert_eq!(*left, 0, "the broker does not answer");
    }
}

fn client(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers);
    config
}
