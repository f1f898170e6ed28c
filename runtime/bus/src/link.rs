//! What a relay publishes by, and where it keeps how far it has got: the last record of the compacted topic `{app}.relay`.

use crate::producer::{Delivery, Producing, Quiet};
use crate::settings::Settings;
use crate::topics::mark_topic;
use crate::{PATIENCE, blocking, error, offsets};
use ebb_domain::name::{AppName, TopicName};
use ebb_domain::port::Future;
use ebb_domain::port::bus::{BusError, BusErrorKind, RelayLink, RelayMark, RelayNeeds};
use ebb_domain::text::Text;
use ebb_domain::topic::{NewRecord, RelayMode};
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::producer::Producer as _;
use rdkafka::{Message, Offset, TopicPartitionList};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Records of the mark's topic that are looked at first, from its end.
const TAIL: i64 = 200;

/// How long a transaction may take to be begun or committed.
const TRANSACTION: Duration = Duration::from_secs(30);

/// A relay's connection.
pub(crate) struct Link {
    settings: Arc<Settings>,
    producing: Option<Arc<Producing>>,
    mode: RelayMode,
    topic: TopicName,
    mark: RelayMark,
    /// The mark that is on its way.
    telling: Option<Arc<Delivery>>,
}

impl Link {
    /// Takes over from whoever relayed before, and finds out how far they got.
    pub(crate) async fn open(settings: Arc<Settings>, needs: RelayNeeds) -> Result<Self, BusError> {
        blocking(move || {
            let most = Some(needs.spec.max_message_bytes);
            let mode = needs.spec.mode;
            let producing = match mode {
                RelayMode::AtLeastOnce => Producing::idempotent(&settings, most)?,
                RelayMode::Transactional => {
                    let producing = Producing::transactional(&settings, most, &transactional_id(&needs.app))?;
                    // Whoever had it before can't commit any more; what they left open is aborted.
                    producing
                        .producer
                        .init_transactions(TRANSACTION)
                        .map_err(|failure| error::of(&settings, "transactions can't be begun", &failure))?;
                    producing
                }
            };
            let topic = mark_topic(&needs.app);
            let mark = read_mark(&settings, &topic)?;
            Ok(Self { settings, producing: Some(Arc::new(producing)), mode, topic, mark, telling: None })
        })
        .await
    }

    fn producing(&self) -> Result<&Arc<Producing>, BusError> {
        let gone = || BusError::new(BusErrorKind::Unavailable, "the relay's connection is closed");
        self.producing.as_ref().ok_or_else(gone)
    }

    fn mark_record(&self, mark: RelayMark) -> NewRecord {
        NewRecord {
            topic: self.topic.clone(),
            key: Some("relay".into()),
            headers: vec![(Text::from_static("content-type"), "application/json".into())],
            value: Some(serde_json::to_vec(&mark).unwrap_or_default().into()),
        }
    }

    async fn told(&mut self) -> Result<(), BusError> {
        match self.telling.take() {
            Some(telling) => self.producing()?.told(&telling).await,
            None => Ok(()),
        }
    }

    async fn publish_at_least_once(
        &mut self,
        records: Vec<NewRecord>,
        mark: RelayMark,
    ) -> Result<(), BusError> {
        let producing = self.producing()?.clone();
        producing.produce(records).await?;
        // Only now, and without waiting: what comes next is published meanwhile. Lost, a few events come again.
        self.told().await?;
        self.telling = Some(producing.send(&self.mark_record(mark))?);
        Ok(())
    }

    async fn publish_in_transaction(
        &mut self,
        mut records: Vec<NewRecord>,
        mark: RelayMark,
    ) -> Result<(), BusError> {
        let producing = self.producing()?.clone();
        records.push(self.mark_record(mark));
        let failed =
            |settings: &Settings, failure: &KafkaError| error::of(settings, "a transaction failed", failure);
        producing.producer.begin_transaction().map_err(|failure| failed(&self.settings, &failure))?;
        let produced = producing.produce(records).await;
        let settings = self.settings.clone();
        blocking(move || {
            let committed = produced.and_then(|()| {
                producing
                    .producer
                    .commit_transaction(TRANSACTION)
                    .map_err(|failure| failed(&settings, &failure))
            });
            if committed.is_err() {
                // If this fails as well, the broker does it when the next one takes over, or in a minute.
                let _ = producing.producer.abort_transaction(TRANSACTION);
            }
            committed
        })
        .await
    }
}

impl RelayLink for Link {
    fn mark(&self) -> RelayMark {
        self.mark
    }

    fn publish(&mut self, records: Vec<NewRecord>, mark: RelayMark) -> Future<'_, Result<(), BusError>> {
        match self.mode {
            RelayMode::AtLeastOnce => Box::pin(self.publish_at_least_once(records, mark)),
            RelayMode::Transactional => Box::pin(self.publish_in_transaction(records, mark)),
        }
    }

    fn close(mut self: Box<Self>) -> Future<'static, Result<(), BusError>> {
        Box::pin(async move {
            let told = tokio::time::timeout(Duration::from_secs(2), self.told()).await;
            drop(self);
            told.unwrap_or_else(|_| {
                Err(BusError::new(BusErrorKind::Unavailable, "the broker did not take the mark"))
            })
        })
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // It waits for threads to end.
        if let Some(producing) = self.producing.take() {
            drop_elsewhere(producing);
        }
    }
}

/// Drops a client where it may take its time.
pub(crate) fn drop_elsewhere(client: impl Send + 'static) {
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) => drop(runtime.spawn_blocking(move || drop(client))),
        Err(_) => drop(client),
    }
}

fn transactional_id(app: &AppName) -> String {
    format!("ebbtide.relay.{app}")
}

/// The last mark that was committed; the beginning, if there is none, and if its topic is not there yet. Blocks.
pub(crate) fn told_mark(settings: &Settings, topic: &TopicName) -> Result<RelayMark, BusError> {
    let asking = offsets::asking(settings, "ebbtide")?;
    match offsets::is_there(settings, &asking, topic)? {
        true => read_mark(settings, topic),
        false => Ok(RelayMark::default()),
    }
}

/// The last mark that was committed; the beginning, if there is none.
fn read_mark(settings: &Settings, topic: &TopicName) -> Result<RelayMark, BusError> {
    let what = format!("topic `{topic}`");
    let failed = |failure: KafkaError| error::of(settings, &what, &failure);
    let mut config = settings.client();
    config
        .set("group.id", format!("{topic}-reader"))
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("isolation.level", "read_committed")
        .set("fetch.wait.max.ms", "50");
    let consumer: BaseConsumer<Quiet> =
        BaseConsumer::from_config_and_context(&config, Quiet::default()).map_err(failed)?;
    let deadline = Instant::now() + PATIENCE * 2;
    let (low, high) = loop {
        match consumer.fetch_watermarks(topic, 0, PATIENCE) {
            Ok(watermarks) => break watermarks,
            // It was made a moment ago, and not every broker has heard of it.
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(100)),
            Err(failure) => return Err(failed(failure)),
        }
    };
    for from in [low.max(high - TAIL), low] {
        if let Some(mark) = last_mark(&consumer, topic, from, deadline, settings)? {
            return Ok(mark);
        }
        if from == low {
            break;
        }
    }
    Ok(RelayMark::default())
}

fn last_mark(
    consumer: &BaseConsumer<Quiet>,
    topic: &TopicName,
    from: i64,
    deadline: Instant,
    settings: &Settings,
) -> Result<Option<RelayMark>, BusError> {
    let failed = |failure: KafkaError| error::of(settings, &format!("topic `{topic}`"), &failure);
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, 0, Offset::Offset(from)).map_err(failed)?;
    consumer.assign(&list).map_err(failed)?;
    let mut last = None;
    loop {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                let mark = serde_json::from_slice(message.payload().unwrap_or_default()).map_err(|problem| {
                    let offset = message.offset();
                    let message = format!(
                        "topic `{topic}` has something at offset {offset} that is not how far a relay has got: {problem}"
                    );
                    BusError::new(BusErrorKind::Refused, message)
                })?;
                last = Some(mark);
            }
            Some(Err(KafkaError::PartitionEOF(_))) => return Ok(last),
            Some(Err(failure)) => return Err(failed(failure)),
            None if Instant::now() >= deadline => {
                return Err(offsets::unreachable(settings, consumer));
            }
            None => {}
        }
    }
}
