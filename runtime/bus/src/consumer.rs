//! A consumer: a thread that polls, and a bounded channel to whoever takes the records. It is a member of a group, and has the
//! partitions that the group gives it, or has partitions of its own.
//!
//! It polls whether somebody takes records or not, so that the group does not give it up; when as many wait as may, it takes
//! no more from librdkafka, and pauses its partitions if that lasts.

use crate::producer::Quiet;
use crate::settings::Settings;
use crate::{error, headers, link, offsets};
use bytes::Bytes;
use ebb_domain::name::TopicName;
use ebb_domain::port::Future;
use ebb_domain::port::bus::{BusError, BusErrorKind, Consumer, Done, Subscription};
use ebb_domain::time::Timestamp;
use ebb_domain::topic::{Place, Record};
use rdkafka::client::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext, Rebalance};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode as Code};
use rdkafka::message::BorrowedMessage;
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{debug, info, warn};
use uuid::Uuid;

/// Records that wait to be taken at most.
const WAITING: usize = 10_000;

/// Bytes that they may have together, about.
const WAITING_BYTES: usize = 16 << 20;

/// How long nobody takes any before partitions are paused: a pause throws away what was fetched ahead, and a poll has to come
/// now and then.
const PAUSED_AFTER: Duration = Duration::from_secs(1);

/// How long it is waited for room.
const ROOM: Duration = Duration::from_millis(1);

/// How long one poll waits: what was told to end is noticed after that.
const POLL: Duration = Duration::from_millis(50);

/// How long giving partitions back may take.
const LEAVING: Duration = Duration::from_secs(2);

/// How long leaving the group is waited for.
const CLOSING: Duration = Duration::from_secs(3);

/// What the thread hears and does.
#[derive(Default)]
struct Context {
    quiet: Quiet,
    /// Partitions are paused: those that are assigned now are to be, too.
    paused: AtomicBool,
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.quiet.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.quiet.error(error, reason);
    }
}

impl ConsumerContext for Context {
    fn post_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        match rebalance {
            Rebalance::Assign(partitions) => {
                info!(partitions = partitions.count(), "partitions are assigned");
                // librdkafka remembers that a partition was paused when it had it before; what is so here decides.
                let done = match self.paused.load(Ordering::Relaxed) {
                    true => consumer.pause(partitions),
                    false => consumer.resume(partitions),
                };
                if let Err(error) = done {
                    debug!(%error, "partitions can't be paused or resumed");
                }
            }
            Rebalance::Revoke(partitions) => {
                info!(partitions = partitions.count(), "partitions are taken away");
            }
            Rebalance::Error(error) => warn!(%error, "the group can't share its partitions"),
        }
    }

    fn commit_callback(&self, result: KafkaResult<()>, _: &TopicPartitionList) {
        if let Err(error) = result {
            debug!(%error, "offsets were not committed");
        }
    }
}

type Item = Result<Record, BusError>;

/// See the module.
pub(crate) struct Member {
    consumer: Arc<BaseConsumer<Context>>,
    records: mpsc::Receiver<Item>,
    /// What a wait for more has taken out of these.
    taken: Vec<Record>,
    /// What it met behind those.
    failed: Option<BusError>,
    bytes: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    ids: BTreeMap<TopicName, Uuid>,
    settings: Arc<Settings>,
}

impl Member {
    /// Joins a group. Blocks.
    pub(crate) fn join(settings: &Arc<Settings>, subscription: &Subscription) -> Result<Self, BusError> {
        let ids = offsets::prepare(settings, subscription)?;
        let mut config = config(settings, &subscription.group);
        config
            .set("group.instance.id", format!("{}-{}", settings.node, subscription.member))
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set("session.timeout.ms", "15000");
        let topics: Vec<&str> = subscription.topics.keys().map(|topic| &**topic).collect();
        let what = format!("group `{}` can't be joined", subscription.group);
        Self::start(settings, &config, ids, &what, |consumer| consumer.subscribe(&topics))
    }

    /// Takes partitions for itself. Blocks.
    pub(crate) fn assign(settings: &Arc<Settings>, group: &str, places: &[Place]) -> Result<Self, BusError> {
        let ids = places.iter().map(|place| (place.topic.clone(), place.topic_id)).collect();
        let begin = |consumer: &BaseConsumer<Context>| {
            let mut list = TopicPartitionList::new();
            for Place { topic, partition, next, .. } in places {
                let next = i64::try_from(*next).unwrap_or(i64::MAX);
                list.add_partition_offset(topic, *partition as i32, Offset::Offset(next))?;
            }
            consumer.assign(&list)
        };
        Self::start(settings, &config(settings, group), ids, "partitions can't be taken", begin)
    }

    fn start(
        settings: &Arc<Settings>,
        config: &ClientConfig,
        ids: BTreeMap<TopicName, Uuid>,
        what: &str,
        begin: impl FnOnce(&BaseConsumer<Context>) -> KafkaResult<()>,
    ) -> Result<Self, BusError> {
        let failed = |failure: KafkaError| error::of(settings, what, &failure);
        let consumer: BaseConsumer<Context> =
            BaseConsumer::from_config_and_context(config, Context::default()).map_err(failed)?;
        begin(&consumer).map_err(failed)?;
        let consumer = Arc::new(consumer);
        let (sender, records) = mpsc::channel(WAITING);
        let (stop, bytes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let poller = Poller {
            consumer: consumer.clone(),
            sender,
            bytes: bytes.clone(),
            stop: stop.clone(),
            settings: settings.clone(),
            held: VecDeque::new(),
            full_since: None,
        };
        let thread = std::thread::Builder::new().name("kafka".to_owned()).spawn(move || poller.run());
        let thread = thread.map_err(|error| BusError::new(BusErrorKind::Unavailable, error.to_string()))?;
        let (taken, failed, thread, settings) = (Vec::new(), None, Some(thread), settings.clone());
        Ok(Self { consumer, records, taken, failed, bytes, stop, thread, ids, settings })
    }

    fn put(&mut self, item: Item) {
        match item {
            Ok(record) => {
                self.bytes.fetch_sub(record.weight(), Ordering::Relaxed);
                self.taken.push(record);
            }
            Err(error) => self.failed = Some(error),
        }
    }

    async fn take(&mut self, most: usize, wait: Duration) -> Result<Vec<Record>, BusError> {
        if self.taken.is_empty() && self.failed.is_none() {
            let ended = || BusError::new(BusErrorKind::Unavailable, "the consumer has ended");
            let first = self.records.recv().await.ok_or_else(ended)?;
            self.put(first);
        }
        let until = Instant::now() + wait;
        while self.taken.len() < most && self.failed.is_none() {
            match self.records.try_recv() {
                Ok(next) => self.put(next),
                Err(_) if wait.is_zero() => break,
                Err(_) => match tokio::time::timeout_at(until, self.records.recv()).await {
                    Ok(Some(next)) => self.put(next),
                    Ok(None) | Err(_) => break,
                },
            }
        }
        // What stands before an error is dealt with first.
        if self.taken.is_empty()
            && let Some(error) = self.failed.take()
        {
            return Err(error);
        }
        Ok(std::mem::take(&mut self.taken))
    }
}

/// What every consumer is made with.
fn config(settings: &Settings, group: &str) -> ClientConfig {
    let mut config = settings.client();
    config
        .set("group.id", group)
        .set("isolation.level", "read_committed")
        // What was consumed is told by whoever consumed it, and committed now and then.
        .set("enable.auto.commit", "true")
        .set("auto.commit.interval.ms", "1000")
        .set("enable.auto.offset.store", "false")
        // Never a jump.
        .set("auto.offset.reset", "error")
        .set("queued.min.messages", "10000")
        .set("queued.max.messages.kbytes", "16384")
        .set("fetch.queue.backoff.ms", "10")
        .set("fetch.wait.max.ms", "100");
    config
}

impl Consumer for Member {
    fn next(&mut self, most: usize, wait: Duration) -> Future<'_, Result<Vec<Record>, BusError>> {
        Box::pin(self.take(most, wait))
    }

    fn done(&mut self, done: &[Done]) -> Result<(), BusError> {
        let mut list = TopicPartitionList::new();
        for Done { topic, partition, next } in done {
            let (partition, next) = (*partition as i32, i64::try_from(*next).unwrap_or(i64::MAX));
            list.add_partition_offset(topic, partition, Offset::Offset(next))
                .map_err(|failure| error::of(&self.settings, topic, &failure))?;
            if let Some(mut place) = list.find_partition(topic, partition) {
                place.set_metadata(offsets::signature(&self.settings));
            }
        }
        match self.consumer.store_offsets(&list) {
            Ok(()) => Ok(()),
            // A partition was taken away meanwhile: whoever has it consumes the same again, which is known to be.
            Err(failure) if failure.rdkafka_error_code() == Some(Code::State) => Ok(()),
            Err(failure) => Err(error::of(&self.settings, "offsets can't be kept", &failure)),
        }
    }

    fn topic_id(&self, topic: &TopicName) -> Option<Uuid> {
        self.ids.get(topic).copied()
    }

    fn close(self: Box<Self>) -> Future<'static, ()> {
        self.end(false)
    }

    fn leave(self: Box<Self>) -> Future<'static, ()> {
        self.end(true)
    }
}

impl Member {
    fn end(mut self: Box<Self>, for_good: bool) -> Future<'static, ()> {
        Box::pin(async move {
            self.stop.store(true, Ordering::Relaxed);
            let thread = self.thread.take();
            let consumer = self.consumer.clone();
            drop(self);
            let closed = tokio::task::spawn_blocking(move || {
                if let Some(thread) = thread {
                    let _ = thread.join();
                }
                // Synchronously: who consumes next is to begin behind it.
                if let Err(error) = consumer.commit_consumer_state(CommitMode::Sync) {
                    debug!(%error, "the last offsets were not committed");
                }
                if for_good {
                    take_leave(&consumer);
                }
                drop(consumer);
            });
            // With the broker away it takes as long as a session; what was not committed comes again, and is known.
            let _ = tokio::time::timeout(CLOSING, closed).await;
        })
    }
}

/// A static member that is closed tells nobody, and has its partitions until its session ends (KIP-345). One that
/// subscribes to nothing any more does.
fn take_leave(consumer: &BaseConsumer<Context>) {
    consumer.unsubscribe();
    let until = std::time::Instant::now() + LEAVING;
    // Partitions are given back where it is polled. What was fetched of them before is for others.
    while consumer.assignment().is_ok_and(|partitions| partitions.count() > 0)
        && std::time::Instant::now() < until
    {
        let _ = consumer.poll(POLL);
    }
    let _ = consumer.poll(POLL);
}

impl Drop for Member {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        link::drop_elsewhere(self.consumer.clone());
    }
}

struct Poller {
    consumer: Arc<BaseConsumer<Context>>,
    sender: mpsc::Sender<Item>,
    bytes: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    settings: Arc<Settings>,
    /// What was fetched and found no room.
    held: VecDeque<Item>,
    /// Since when nothing more finds room.
    full_since: Option<std::time::Instant>,
}

impl Poller {
    fn run(mut self) {
        while !self.stop.load(Ordering::Relaxed) && !self.sender.is_closed() {
            if self.has_room() {
                self.fetch(POLL);
            } else if self.full_since.get_or_insert_with(std::time::Instant::now).elapsed() < PAUSED_AFTER {
                // librdkafka bounds what it fetches ahead, and a pause would throw that away.
                std::thread::sleep(ROOM);
            } else {
                self.pause(true);
                // So that the group does not give this member up. There is nothing but what was on its way.
                self.fetch(POLL);
            }
        }
    }

    /// Hands over what is held, as far as there is room. Whether there is for more.
    fn has_room(&mut self) -> bool {
        while let Some(item) = self.held.pop_front() {
            let weight = item.as_ref().map_or(0, Record::weight);
            self.bytes.fetch_add(weight, Ordering::Relaxed);
            if let Err(error) = self.sender.try_send(item) {
                self.bytes.fetch_sub(weight, Ordering::Relaxed);
                // That nobody wants it any more, `run` sees.
                self.held.push_front(error.into_inner());
                return false;
            }
        }
        let bytes = self.bytes.load(Ordering::Relaxed);
        if self.consumer.context().paused.load(Ordering::Relaxed) {
            // What comes back is fetched again: only for more than a little.
            if bytes > WAITING_BYTES / 2 || self.sender.capacity() < WAITING / 2 {
                return false;
            }
            self.pause(false);
        }
        let has_room = bytes <= WAITING_BYTES;
        if has_room {
            self.full_since = None;
        }
        has_room
    }

    fn fetch(&mut self, wait: Duration) {
        match self.consumer.poll(wait) {
            Some(Ok(message)) => self.held.push_back(Ok(owned(&message))),
            Some(Err(failure)) => self.held.extend(self.failure(&failure).map(Err)),
            None => {}
        }
    }

    fn pause(&self, pause: bool) {
        if self.consumer.context().paused.swap(pause, Ordering::Relaxed) == pause {
            return;
        }
        let done = self.consumer.assignment().and_then(|partitions| match pause {
            true => self.consumer.pause(&partitions),
            false => self.consumer.resume(&partitions),
        });
        if let Err(error) = done {
            debug!(%error, "partitions can't be paused or resumed");
        }
    }

    /// What whoever consumes must know of; connections come back by themselves.
    fn failure(&self, failure: &KafkaError) -> Option<BusError> {
        let code = failure.rdkafka_error_code()?;
        match code {
            Code::AutoOffsetReset | Code::OffsetOutOfRange => Some(BusError::new(
                BusErrorKind::Unavailable,
                "a partition has no place for the group, or not any more; looking again",
            )),
            Code::BrokerTransportFailure
            | Code::AllBrokersDown
            | Code::Resolve
            | Code::OperationTimedOut
            | Code::PartitionEOF => {
                debug!(%failure, "consuming");
                self.consumer.context().quiet.take();
                None
            }
            Code::PollExceeded => {
                warn!("the group gave this member up, since it did not poll");
                None
            }
            code => {
                // That something is fatal says nothing yet: that another member has this one's name, say.
                let fatal = self.consumer.client().fatal_error().filter(|_| code == Code::Fatal);
                let code = fatal.map_or(code, |(code, _)| code);
                Some(error::of_code(&self.settings, "topics can't be consumed", code))
            }
        }
    }
}

/// A copy that does not keep the fetched block alive.
fn owned(message: &BorrowedMessage<'_>) -> Record {
    let millis = message.timestamp().to_millis().and_then(|millis| u64::try_from(millis).ok());
    Record {
        topic: TopicName::trusted(message.topic().into()),
        partition: u32::try_from(message.partition()).unwrap_or_default(),
        offset: u64::try_from(message.offset()).unwrap_or_default(),
        timestamp: millis.map(Timestamp::from_millis),
        key: message.key().map(Bytes::copy_from_slice),
        headers: headers::of(message),
        value: message.payload().map(Bytes::copy_from_slice),
    }
}
