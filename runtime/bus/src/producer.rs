//! Producers: idempotent, so that retries inside librdkafka neither double nor reorder records.

use crate::error;
use crate::settings::Settings;
use ebb_domain::port::bus::{BusError, BusErrorKind};
use ebb_domain::topic::NewRecord;
use parking_lot::Mutex;
use rdkafka::ClientContext;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::future_producer::DeliveryFuture;
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tracing::{debug, warn};

/// How long a batch may take until the broker has it: then it is given up, and begun anew.
const DELIVERY: Duration = Duration::from_secs(60);

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

/// A producer.
pub(crate) struct Producing {
    settings: Arc<Settings>,
    pub(crate) producer: FutureProducer<Quiet>,
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
        let producer = FutureProducer::from_config_and_context(&config, heard.clone())
            .map_err(|failure| error::of(settings, "no producer can be made", &failure))?;
        Ok(Self { settings: settings.clone(), producer, heard })
    }

    /// Whether it can still be used.
    pub(crate) fn is_well(&self) -> bool {
        self.producer.client().fatal_error().is_none()
    }

    /// Produces records, in their order for each key, and waits until the broker has all of them.
    pub(crate) async fn produce(&self, records: Vec<NewRecord>) -> Result<(), BusError> {
        let mut under_way = VecDeque::with_capacity(records.len());
        let produced = async {
            for record in records {
                self.enqueue(record, &mut under_way).await?;
            }
            while let Some(delivery) = under_way.pop_front() {
                self.delivered(delivery).await?;
            }
            Ok(())
        };
        match tokio::time::timeout(DELIVERY, produced).await {
            Ok(produced) => produced,
            Err(_) => Err(error::unreachable(&self.settings, &self.heard)),
        }
    }

    /// Hands a record over; where the queue is full, waits for the records before it.
    async fn enqueue(
        &self,
        record: NewRecord,
        under_way: &mut VecDeque<DeliveryFuture>,
    ) -> Result<(), BusError> {
        loop {
            match self.send(&record) {
                Ok(delivery) => {
                    under_way.push_back(delivery);
                    return Ok(());
                }
                Err(KafkaError::MessageProduction(Code::QueueFull)) => match under_way.pop_front() {
                    Some(delivery) => self.delivered(delivery).await?,
                    None => tokio::time::sleep(Duration::from_millis(5)).await,
                },
                Err(failure) => return Err(self.failed(&record, &failure)),
            }
        }
    }

    /// Hands a record over.
    pub(crate) fn send(&self, record: &NewRecord) -> Result<DeliveryFuture, KafkaError> {
        let mut headers = OwnedHeaders::new_with_capacity(record.headers.len());
        for (name, value) in &record.headers {
            headers = headers.insert(Header { key: name, value: Some(&value[..]) });
        }
        let mut sent = FutureRecord::<[u8], [u8]>::to(&record.topic).headers(headers);
        if let Some(key) = &record.key {
            sent = sent.key(key);
        }
        if let Some(value) = &record.value {
            sent = sent.payload(value);
        }
        self.producer.send_result(sent).map_err(|(failure, _)| failure)
    }

    pub(crate) async fn delivered(&self, delivery: DeliveryFuture) -> Result<(), BusError> {
        match delivery.await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err((failure, message))) => {
                let topic = rdkafka::Message::topic(&message).to_owned();
                Err(error::of(&self.settings, &format!("topic `{topic}`"), &failure))
            }
            Err(_) => Err(BusError::new(BusErrorKind::Unavailable, "the producer was dropped")),
        }
    }

    fn failed(&self, record: &NewRecord, failure: &KafkaError) -> BusError {
        error::of(&self.settings, &format!("topic `{}`", record.topic), failure)
    }
}
