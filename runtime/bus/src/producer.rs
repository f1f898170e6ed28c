//! Producers: idempotent, so that retries inside librdkafka neither double nor reorder records.

use crate::error;
use crate::settings::Settings;
use ebb_domain::port::bus::BusError;
use ebb_domain::topic::NewRecord;
use parking_lot::Mutex;
use rdkafka::ClientContext;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer as _, ProducerContext, ThreadedProducer};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use tracing::{debug, warn};

/// How long a batch may take until the broker has it: then it is given up, and begun anew.
const DELIVERY: Duration = Duration::from_secs(60);

/// How long it is waited for room where the queue is full.
const FULL: Duration = Duration::from_millis(1);

/// Hears what a client says of itself. Errors of connections come again and again while a broker is away: whoever waits tells
/// of them once.
#[derive(Clone, Default)]
pub(crate) struct Quiet(Arc<Mutex<Option<(Code, String)>>>);

impl Quiet {
    /// What was heard last.
    pub(crate) fn last(&self) -> Option<(Code, String)> {
        self.0.lock().clone()
    }

    /// Keeps an error. That none of the brokers is up, or that a connection broke, follows from what is wrong with it, which
    /// says more.
    pub(crate) fn hear(&self, error: &KafkaError, reason: &str) {
        let Some(code) = error.rdkafka_error_code() else { return };
        let follows = matches!(code, Code::AllBrokersDown | Code::BrokerTransportFailure);
        let mut heard = self.0.lock();
        if !follows || heard.is_none() {
            *heard = Some((code, reason.to_owned()));
        }
    }

    /// What was heard since this was asked last.
    pub(crate) fn take(&self) -> Option<(Code, String)> {
        self.0.lock().take()
    }
}

impl ClientContext for Quiet {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
                warn!(facility, message, "librdkafka");
            }
            _ => debug!(facility, message, "librdkafka"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        debug!(%error, reason, "librdkafka");
        self.hear(&error, reason);
    }
}

impl ConsumerContext for Quiet {}

impl ProducerContext for Quiet {
    type DeliveryOpaque = Arc<Delivery>;

    fn delivery(&self, result: &DeliveryResult<'_>, delivery: Arc<Delivery>) {
        if let Err((failure, message)) = result {
            let topic = || rdkafka::Message::topic(message).to_owned();
            delivery.failed.lock().get_or_insert_with(|| (failure.clone(), topic()));
        }
        delivery.one_less();
    }
}

/// Records that are on their way together: one word for all of them, where each with a future of its own would cost more than
/// the record.
pub(crate) struct Delivery {
    /// Those that the broker has not taken yet, and one while more are handed over.
    left: AtomicUsize,
    /// The first that it did not take, and its topic.
    failed: Mutex<Option<(KafkaError, String)>>,
    arrived: Notify,
}

impl Delivery {
    fn new() -> Arc<Self> {
        Arc::new(Self { left: AtomicUsize::new(1), failed: Mutex::default(), arrived: Notify::new() })
    }

    fn one_less(&self) {
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.arrived.notify_one();
        }
    }
}

/// A producer.
pub(crate) struct Producing {
    settings: Arc<Settings>,
    pub(crate) producer: ThreadedProducer<Quiet>,
    heard: Quiet,
}

impl Producing {
    /// One that retries by itself without doubling or reordering. `most` is the largest record.
    pub(crate) fn idempotent(settings: &Arc<Settings>, most: Option<u32>) -> Result<Self, BusError> {
        Self::new(settings, most, None)
    }

    /// One whose records are seen together or not at all.
    pub(crate) fn transactional(
        settings: &Arc<Settings>,
        most: Option<u32>,
        id: &str,
    ) -> Result<Self, BusError> {
        Self::new(settings, most, Some(id))
    }

    fn new(
        settings: &Arc<Settings>,
        most: Option<u32>,
        transactional: Option<&str>,
    ) -> Result<Self, BusError> {
        let mut config = settings.client();
        config
            .set("enable.idempotence", "true")
            .set("linger.ms", "1")
            .set("compression.type", "lz4")
            // As Java's producers do, so that a key is in the same partition whoever produces it.
            .set("partitioner", "murmur2_random")
            .set("queue.buffering.max.messages", "20000")
            .set("queue.buffering.max.kbytes", "32768");
        if let Some(most) = most {
            // Headers and framing come on top of what a topic counts.
            config.set("message.max.bytes", (u64::from(most) + (64 << 10)).to_string());
        }
        match transactional {
            // Given up one by one, later records would be there before earlier ones; the batch is given up as a whole.
            None => config.set("message.timeout.ms", "0"),
            Some(id) => config.set("transactional.id", id).set("transaction.timeout.ms", "60000"),
        };
        let heard = Quiet::default();
        let producer = ThreadedProducer::from_config_and_context(&config, heard.clone())
            .map_err(|failure| error::of(settings, "no producer can be made", &failure))?;
        Ok(Self { settings: settings.clone(), producer, heard })
    }

    /// Whether it can still be used.
    pub(crate) fn is_well(&self) -> bool {
        self.producer.client().fatal_error().is_none()
    }

    /// Produces records, in their order for each key, and waits until the broker has all of them.
    pub(crate) async fn produce(&self, records: Vec<NewRecord>) -> Result<(), BusError> {
        let produced = async {
            let delivery = Delivery::new();
            for record in &records {
                while !self.enqueue(record, &delivery)? {
                    tokio::time::sleep(FULL).await;
                }
            }
            delivery.one_less();
            self.delivered(&delivery).await
        };
        match tokio::time::timeout(DELIVERY, produced).await {
            Ok(Ok(())) => {
                // What was wrong before is not why something fails later.
                self.heard.take();
                Ok(())
            }
            Ok(failed) => failed,
            Err(_) => Err(error::unreachable(&self.settings, &self.heard)),
        }
    }

    /// Hands a record over, without waiting for the broker.
    pub(crate) fn send(&self, record: &NewRecord) -> Result<Arc<Delivery>, BusError> {
        let delivery = Delivery::new();
        if !self.enqueue(record, &delivery)? {
            return Err(self.failed(record, &KafkaError::MessageProduction(Code::QueueFull)));
        }
        delivery.one_less();
        Ok(delivery)
    }

    /// Hands a record over. False: the queue is full.
    fn enqueue(&self, record: &NewRecord, delivery: &Arc<Delivery>) -> Result<bool, BusError> {
        let mut headers = OwnedHeaders::new_with_capacity(record.headers.len());
        for (name, value) in &record.headers {
            headers = headers.insert(Header { key: name, value: Some(&value[..]) });
        }
        let mut sent =
            BaseRecord::<[u8], [u8], _>::with_opaque_to(&record.topic, delivery.clone()).headers(headers);
        sent.key = record.key.as_deref();
        sent.payload = record.value.as_deref();
        delivery.left.fetch_add(1, Ordering::Relaxed);
        let failure = match self.producer.send(sent) {
            Ok(()) => return Ok(true),
            Err((failure, _)) => failure,
        };
        delivery.one_less();
        match failure {
            KafkaError::MessageProduction(Code::QueueFull) => Ok(false),
            failure => Err(self.failed(record, &failure)),
        }
    }

    /// Waits until the broker has all of them, no longer than may be.
    pub(crate) async fn told(&self, delivery: &Delivery) -> Result<(), BusError> {
        match tokio::time::timeout(DELIVERY, self.delivered(delivery)).await {
            Ok(delivered) => delivered,
            Err(_) => Err(error::unreachable(&self.settings, &self.heard)),
        }
    }

    /// Waits until the broker has all of them.
    pub(crate) async fn delivered(&self, delivery: &Delivery) -> Result<(), BusError> {
        while delivery.left.load(Ordering::Acquire) > 0 {
            delivery.arrived.notified().await;
        }
        match delivery.failed.lock().take() {
            None => Ok(()),
            Some((failure, topic)) => Err(error::of(&self.settings, &format!("topic `{topic}`"), &failure)),
        }
    }

    fn failed(&self, record: &NewRecord, failure: &KafkaError) -> BusError {
        error::of(&self.settings, &format!("topic `{}`", record.topic), failure)
    }
}
