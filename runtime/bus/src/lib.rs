//! Kafka, by librdkafka: the only crate that knows it.
//!
//! Nothing is connected before it is needed, and producers that have nothing to do are dropped: librdkafka has some threads
//! for each. What waits for a broker waits on a thread that may block, and within a time limit.
//!
//! Promises:
//! * An offset is committed only when whoever consumed it said so.
//! * Nobody ever begins anywhere but where they stand: records that are gone are an error, not a jump.
//! * Credentials are in no message and no log.

mod consumer;
mod error;
mod headers;
mod link;
mod offsets;
mod producer;
mod settings;
mod topic_ids;
mod topics;

pub use settings::{Sasl, Settings, Tls};

use ebb_domain::name::{AppName, TopicName};
use ebb_domain::port::Future;
use ebb_domain::port::bus::{
    Bus, BusError, BusErrorKind, Consumer, PartitionLag, RelayLink, RelayMark, RelayNeeds, Standing,
    Subscription,
};
use ebb_domain::text::Text;
use ebb_domain::topic::{NewRecord, Place, Start};
use offsets::Asking;
use parking_lot::Mutex;
use producer::Producing;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// How long a broker may take to answer what somebody waits for.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a connection that only asks is kept when nobody asks any more.
const KEPT: Duration = Duration::from_secs(60);

/// A Kafka cluster.
pub struct Kafka {
    settings: Arc<Settings>,
    cluster: OnceLock<Text>,
    /// For replies and dead letters; made when the first is sent.
    producer: Mutex<Option<Arc<Producing>>>,
    /// Connections that ask for a group's offsets, and when each was used last.
    asking: Mutex<HashMap<String, (Arc<Asking>, Instant)>>,
}

impl Kafka {
    /// A cluster that nobody has connected to yet.
    #[must_use]
    pub fn new(settings: Settings) -> Arc<Self> {
        Arc::new(Self {
            settings: Arc::new(settings),
            cluster: OnceLock::new(),
            producer: Mutex::default(),
            asking: Mutex::default(),
        })
    }

    fn producer(&self) -> Result<Arc<Producing>, BusError> {
        let mut producer = self.producer.lock();
        if let Some(producer) = producer.as_ref().filter(|producer| producer.is_well()) {
            return Ok(producer.clone());
        }
        let made = Arc::new(Producing::idempotent(&self.settings, None)?);
        // Dropping the one before it waits for its thread.
        link::drop_elsewhere(producer.replace(made.clone()));
        Ok(made)
    }

    /// Asks on behalf of a group without being a member.
    fn asking(&self, group: &str) -> Result<Arc<Asking>, BusError> {
        let mut asking = self.asking.lock();
        let now = Instant::now();
        let unused = asking.extract_if(|_, (_, used)| now >= *used + KEPT).collect::<Vec<_>>();
        // Closing one waits for its threads.
        link::drop_elsewhere(unused);
        if let Some((consumer, used)) = asking.get_mut(group) {
            *used = now;
            return Ok(consumer.clone());
        }
        let consumer = Arc::new(Asking::new(&self.settings, group)?);
        asking.insert(group.to_owned(), (consumer.clone(), now));
        Ok(consumer)
    }
}

impl Bus for Kafka {
    fn cluster(&self) -> Future<'_, Result<Text, BusError>> {
        Box::pin(async move {
            if let Some(cluster) = self.cluster.get() {
                return Ok(cluster.clone());
            }
            let settings = self.settings.clone();
            let found = blocking(move || {
                let consumer = offsets::asking(&settings, "ebbtide")?;
                let id = |patience| {
                    let id = consumer.client().fetch_cluster_id(patience);
                    id.ok_or(KafkaError::MetadataFetch(RDKafkaErrorCode::OperationTimedOut))
                };
                offsets::ask(&settings, &consumer, id)?
                    .map_err(|failure| error::of(&settings, "the cluster has no id", &failure))
            });
            let cluster = Text::from(found.await?);
            Ok(self.cluster.get_or_init(|| cluster).clone())
        })
    }

    fn relayed<'a>(&'a self, app: &'a AppName) -> Future<'a, Result<RelayMark, BusError>> {
        let (settings, topic) = (self.settings.clone(), topics::mark_topic(app));
        Box::pin(blocking(move || link::told_mark(&settings, &topic)))
    }

    fn relay(&self, needs: RelayNeeds) -> Future<'_, Result<Box<dyn RelayLink>, BusError>> {
        let settings = self.settings.clone();
        Box::pin(async move {
            topics::provide(&settings, &needs).await?;
            let link = link::Link::open(settings, needs).await?;
            Ok(Box::new(link) as Box<dyn RelayLink>)
        })
    }

    fn consume(&self, subscription: Subscription) -> Future<'_, Result<Box<dyn Consumer>, BusError>> {
        let settings = self.settings.clone();
        Box::pin(blocking(move || {
            let consumer = consumer::Member::join(&settings, &subscription)?;
            Ok(Box::new(consumer) as Box<dyn Consumer>)
        }))
    }

    fn places<'a>(&'a self, standing: &'a Standing) -> Future<'a, Result<Vec<Place>, BusError>> {
        let (settings, standing) = (self.settings.clone(), standing.clone());
        Box::pin(blocking(move || offsets::standing(&settings, &standing)))
    }

    fn assign(&self, group: Text, places: Vec<Place>) -> Future<'_, Result<Box<dyn Consumer>, BusError>> {
        let settings = self.settings.clone();
        Box::pin(blocking(move || {
            let consumer = consumer::Member::assign(&settings, &group, &places)?;
            Ok(Box::new(consumer) as Box<dyn Consumer>)
        }))
    }

    fn publish(&self, records: Vec<NewRecord>) -> Future<'_, Result<(), BusError>> {
        Box::pin(async move {
            let producer = self.producer()?;
            producer.produce(records).await
        })
    }

    fn lag<'a>(
        &'a self,
        group: &'a str,
        topics: &'a BTreeMap<TopicName, Start>,
    ) -> Future<'a, Result<Vec<PartitionLag>, BusError>> {
        let (settings, topics) = (self.settings.clone(), topics.clone());
        let asking = self.asking(group);
        Box::pin(async move {
            let consumer = asking?;
            blocking(move || consumer.lag(&settings, &topics)).await
        })
    }
}

/// Runs work that waits for a broker where it may.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BusError> + Send + 'static,
) -> Result<T, BusError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => {
            Err(BusError::new(BusErrorKind::Unavailable, format!("the work was given up: {error}")))
        }
    }
}
