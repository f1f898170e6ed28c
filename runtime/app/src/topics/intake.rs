//! From topics to the log: one task for each consumer group of an app.
//!
//! What fails here says nothing about a record: records that can't be read become events all the same. So it is tried
//! again for as long as it takes, or, where going on would leave records out, halted until somebody has decided.

use crate::commands::new_command_id;
use ebb_domain::commit::{Expected, IdempotencyKey, KafkaOrigin, NewCommit, Outcome, RecordedCommand};
use ebb_domain::digest::Digest;
use ebb_domain::event::{NewEvent, Revision};
use ebb_domain::name::{AppName, EventType, TopicName};
use ebb_domain::port::bus::{Bus, BusError, BusErrorKind, Consumer, Done, PartitionLag, Subscription};
use ebb_domain::port::log::{AppendError, EventLog, GroupFailure, ReadLimits, Settlement};
use ebb_domain::text::Text;
use ebb_domain::topic::{self, Dedupe, Incoming, READABLE, Record, Start, TopicSpec};
use parking_lot::Mutex;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tracing::{Instrument, debug, error, info, info_span, warn};
use uuid::Uuid;

/// Records that are appended before the broker is told.
const BATCH: usize = 1000;

/// How long a batch waits to fill up once it has a record: appending is cheaper in groups, and the log groups by itself.
const WAIT: Duration = Duration::from_millis(5);

/// How long after a failure it is tried again, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// How often the broker is asked how much is left.
const ASK_LAG: Duration = Duration::from_secs(2);

/// How often it is looked whether what halted it was put right.
const HALTED: Duration = Duration::from_secs(15);

/// What a consumer group of an app is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum IntakeState {
    /// It joins its group.
    #[default]
    Joining,
    /// It consumes.
    Consuming,
    /// Something failed that passes; it is tried again.
    Retrying {
        /// What.
        error: String,
    },
    /// It goes no further without help: going on would leave records out, say.
    Halted {
        /// Why, and what to do.
        reason: String,
    },
    /// It was stopped.
    Stopped,
}

impl IntakeState {
    /// Its name: `joining`, `consuming`, `retrying`, `halted`, `stopped`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Joining => "joining",
            Self::Consuming => "consuming",
            Self::Retrying { .. } => "retrying",
            Self::Halted { .. } => "halted",
            Self::Stopped => "stopped",
        }
    }
}

/// A consumer group of an app.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct IntakeStatus {
    /// Its name.
    pub group: Text,
    /// What it consumes.
    pub topics: Vec<TopicName>,
    /// What it is doing.
    #[serde(flatten)]
    pub state: IntakeState,
    /// Records appended to the log since the app was opened.
    pub records: u64,
    /// Records that were in the log already.
    pub duplicates: u64,
    /// Records that the group has still to consume, as the broker said last; none while it has not said.
    pub lag: Option<u64>,
    /// The same, of each partition.
    pub partitions: Vec<PartitionLag>,
}

/// The consumer groups of an app.
pub(crate) struct Intakes {
    app: AppName,
    log: Arc<dyn EventLog>,
    bus: Option<Arc<dyn Bus>>,
    running: Mutex<Vec<Running>>,
}

struct Running {
    group: Text,
    topics: BTreeMap<TopicName, TopicSpec>,
    progress: Arc<Mutex<Progress>>,
    stop: watch::Sender<bool>,
    /// What halted it was put right.
    again: Arc<Notify>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Progress {
    state: IntakeState,
    records: u64,
    duplicates: u64,
    lag: Option<Vec<PartitionLag>>,
    /// Topics whose new incarnation somebody has accepted.
    accepted: BTreeSet<TopicName>,
}

impl Running {
    async fn stopped(self) {
        self.stop.send_replace(true);
        if let Err(failure) = self.task.await
            && failure.is_panic()
        {
            error!(%failure, "a consumer of topics panicked");
        }
    }
}

impl Intakes {
    pub(crate) fn new(app: AppName, log: Arc<dyn EventLog>, bus: Option<Arc<dyn Bus>>) -> Self {
        Self { app, log, bus, running: Mutex::default() }
    }

    /// Consumes these groups and no others. One that consumes what it did goes on undisturbed.
    pub(crate) async fn deploy(&self, mut wanted: BTreeMap<Text, BTreeMap<TopicName, TopicSpec>>) {
        let (kept, gone): (Vec<_>, Vec<_>) = std::mem::take(&mut *self.running.lock())
            .into_iter()
            .partition(|running| wanted.get(running.group.as_bytes()) == Some(&running.topics));
        for running in gone {
            running.stopped().await;
        }
        for running in &kept {
            wanted.remove(running.group.as_bytes());
        }
        let started = wanted.into_iter().map(|(group, topics)| self.start(group, topics));
        let running: Vec<_> = kept.into_iter().chain(started).collect();
        *self.running.lock() = running;
    }

    fn start(&self, group: Text, topics: BTreeMap<TopicName, TopicSpec>) -> Running {
        let (stop, stopped) = watch::channel(false);
        let progress = Arc::new(Mutex::new(Progress::default()));
        let again = Arc::new(Notify::new());
        let intake = Intake {
            app: self.app.clone(),
            group: group.clone(),
            topics: topics.clone(),
            log: self.log.clone(),
            progress: progress.clone(),
            cluster: Text::default(),
            again: again.clone(),
        };
        let span = info_span!("topics", app = %self.app, %group);
        let bus = self.bus.clone();
        let task = tokio::spawn(
            async move {
                let set = intake.progress.clone();
                match bus {
                    Some(bus) => {
                        let (group, topics) = (intake.group.clone(), starts(&intake.topics));
                        let watching = watch_lag(&*bus, &group, topics, set.clone());
                        tokio::select! {
                            () = intake.run(&*bus, stopped) => {}
                            () = watching => {}
                        }
                    }
                    None => {
                        let reason =
                            "the node has no brokers: set `kafka.brokers` in its settings".to_owned();
                        error!(%reason, "topics are not consumed");
                        set.lock().state = IntakeState::Halted { reason };
                        let mut stopped = stopped;
                        let _ = stopped.wait_for(|stop| *stop).await;
                    }
                }
                set.lock().state = IntakeState::Stopped;
            }
            .instrument(span),
        );
        Running { group, topics, progress, stop, again, task }
    }

    /// How all of them are doing.
    pub(crate) fn status(&self) -> Vec<IntakeStatus> {
        let running = self.running.lock();
        let status = running.iter().map(|running| {
            let progress = running.progress.lock();
            IntakeStatus {
                group: running.group.clone(),
                topics: running.topics.keys().cloned().collect(),
                state: progress.state.clone(),
                records: progress.records,
                duplicates: progress.duplicates,
                lag: progress.lag.as_ref().map(|lag| lag.iter().map(|partition| partition.lag).sum()),
                partitions: progress.lag.clone().unwrap_or_default(),
            }
        });
        status.collect()
    }

    /// Goes on with a topic that was deleted and made again. Whether anything consumes it.
    pub(crate) fn accept(&self, topic: &TopicName) -> bool {
        let running = self.running.lock();
        let consuming = running.iter().filter(|running| running.topics.contains_key(topic));
        let accepted = consuming.map(|running| {
            running.progress.lock().accepted.insert(topic.clone());
            running.again.notify_one();
        });
        accepted.count() > 0
    }

    /// Whether there are some, so that the app has to stay open.
    pub(crate) fn are_any(&self) -> bool {
        !self.running.lock().is_empty()
    }

    /// Stops all of them.
    pub(crate) async fn close(&self) {
        let running = std::mem::take(&mut *self.running.lock());
        for running in running {
            running.stopped().await;
        }
    }
}

fn starts(topics: &BTreeMap<TopicName, TopicSpec>) -> BTreeMap<TopicName, Start> {
    topics.iter().map(|(topic, spec)| (topic.clone(), spec.start)).collect()
}

/// One group.
struct Intake {
    app: AppName,
    group: Text,
    topics: BTreeMap<TopicName, TopicSpec>,
    log: Arc<dyn EventLog>,
    progress: Arc<Mutex<Progress>>,
    cluster: Text,
    again: Arc<Notify>,
}

/// Why it does not go on as it was.
enum Stop {
    Stopped,
    Bus(BusError),
    Log(String),
}

impl From<BusError> for Stop {
    fn from(error: BusError) -> Self {
        Self::Bus(error)
    }
}

impl Intake {
    async fn run(mut self, bus: &dyn Bus, mut stop: watch::Receiver<bool>) {
        let (mut pause, longest) = RETRY;
        loop {
            let before = self.progress.lock().records;
            let Err(why) = self.consume(bus, &mut stop).await;
            if self.progress.lock().records > before {
                pause = RETRY.0;
            }
            let wait = match why {
                Stop::Stopped => return,
                Stop::Bus(error) if error.passes() => {
                    self.retrying(error.to_string());
                    pause
                }
                Stop::Bus(error) => {
                    let reason = error.to_string();
                    error!(%reason, "topics are not consumed");
                    self.progress.lock().state = IntakeState::Halted { reason };
                    // A topic that is missing is made any moment.
                    if error.kind == BusErrorKind::MissingTopic { pause } else { HALTED }
                }
                Stop::Log(error) => {
                    self.retrying(error);
                    pause
                }
            };
            pause = (pause * 2).min(longest);
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return,
                () = self.again.notified() => pause = RETRY.0,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    fn retrying(&self, error: String) {
        warn!(%error, "topics are not consumed for now; trying again");
        self.progress.lock().state = IntakeState::Retrying { error };
    }

    async fn consume(
        &mut self,
        bus: &dyn Bus,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<std::convert::Infallible, Stop> {
        let joined = async {
            self.cluster = bus.cluster().await?;
            let subscription = Subscription {
                group: self.group.clone(),
                member: format!("{}-{}", self.app, self.group).into(),
                topics: starts(&self.topics),
                known: self.known().await?,
            };
            Ok::<_, Stop>(bus.consume(subscription).await?)
        };
        let mut consumer = unless_stopped(stop, joined).await??;
        info!("consuming");
        self.progress.lock().state = IntakeState::Consuming;
        let ended = loop {
            // What was consumed and not appended is consumed again.
            let records = match unless_stopped(stop, consumer.next(BATCH, WAIT)).await {
                Ok(Ok(records)) => records,
                Ok(Err(error)) => break Stop::Bus(error),
                Err(stopped) => break stopped,
            };
            let took = match unless_stopped(stop, self.take(&*consumer, records)).await {
                Ok(Ok(done)) => consumer.done(&done).map_err(Stop::Bus),
                Ok(Err(error)) => Err(error),
                Err(stopped) => Err(stopped),
            };
            if let Err(why) = took {
                break why;
            }
        };
        consumer.close().await;
        Err(ended)
    }

    /// The ids of the topics that the log has records of.
    async fn known(&self) -> Result<BTreeMap<TopicName, Uuid>, Stop> {
        let mut known = BTreeMap::new();
        let accepted = self.progress.lock().accepted.clone();
        for topic in self.topics.keys().filter(|topic| !accepted.contains(*topic)) {
            // Partition 0 is there as long as the topic is; which of them has records is another matter.
            for partition in 0..8 {
                let stream = topic::stream(topic, partition);
                let head = self.log.head(&stream).map_err(|error| Stop::Log(error.to_string()))?;
                let Some(Revision(last)) = head.revision else { continue };
                let one = ReadLimits { items: 1, bytes: 1 };
                let read = self.log.read_stream(&stream, Revision(last), one).await;
                let events = read.map_err(|error| Stop::Log(error.to_string()))?;
                if let Some(origin) = events.first().and_then(|event| event.commit.origin.as_ref()) {
                    known.insert(topic.clone(), origin.topic);
                    break;
                }
            }
        }
        Ok(known)
    }

    /// Appends records, and waits until all of them are durable; gives the places behind them.
    async fn take(&self, consumer: &dyn Consumer, records: Vec<Record>) -> Result<Vec<Done>, Stop> {
        let mut done: BTreeMap<(TopicName, u32), u64> = BTreeMap::new();
        let mut settlements: Vec<Settlement> = Vec::new();
        let (mut taken, mut duplicates) = (0, 0);
        for record in records {
            let Some(topic) = consumer.topic_id(&record.topic) else {
                return Err(Stop::Log(format!("the id of topic `{}` is not known", record.topic)));
            };
            let spec = self.topics.get(&record.topic).cloned().unwrap_or_default();
            done.insert((record.topic.clone(), record.partition), record.offset + 1);
            match self.log.append(self.commit(&record, topic, &spec)).await {
                Ok(staged) => {
                    taken += 1;
                    settlements.push(staged.settlement);
                }
                Err(AppendError::Duplicate(earlier)) => {
                    duplicates += 1;
                    settlements.push(earlier.settlement);
                }
                Err(error) => return Err(Stop::Log(error.to_string())),
            }
        }
        // Groups settle in order, but each has a word of its own: the last of them speaks for those that share its group.
        for mut settlement in settlements {
            if settlement.is_durable() {
                continue;
            }
            settlement.wait().await.map_err(|failure| match failure {
                GroupFailure::Rewound(why) | GroupFailure::OutcomeUnknown(why) => Stop::Log(why),
            })?;
        }
        let mut progress = self.progress.lock();
        progress.records += taken;
        progress.duplicates += duplicates;
        progress.state = IntakeState::Consuming;
        Ok(done.into_iter().map(|((topic, partition), next)| Done { topic, partition, next }).collect())
    }

    /// The commit of a record.
    fn commit(&self, record: &Record, topic: Uuid, spec: &TopicSpec) -> NewCommit {
        let incoming = Incoming::read(record, spec);
        let id = new_command_id(self.log.now());
        let actor = Text::from(format!("kafka:{}", record.topic));
        let attribute =
            |name: &str| incoming.envelope.attributes.get(name).map(|text| Text::from(text.as_str()));
        let idempotency = match (spec.dedupe, incoming.envelope.event_id()) {
            (Some(Dedupe::EventId), Some((source, event))) => {
                let digest = Digest::of_parts([source.as_bytes(), event.as_bytes()]);
                Some(IdempotencyKey { key: format!("ce:{digest}").into(), request: digest })
            }
            _ => None,
        };
        let traceparent = incoming.envelope.header("traceparent").or_else(|| attribute("traceparent"));
        let traceparent =
            traceparent.filter(|parent| ebb_domain::trace::Trace::parse(parent, None).is_some());
        let correlation = attribute("correlationid").or_else(|| incoming.envelope.header("correlation-id"));
        let envelope = serde_json::to_vec(&incoming.envelope).unwrap_or_default();
        NewCommit {
            stream: topic::stream(&record.topic, record.partition),
            expected: Expected::Any,
            command_id: id,
            actor,
            correlation_id: correlation
                .filter(|text| (1..=256).contains(&text.len()))
                .unwrap_or_else(|| id.to_string().into()),
            causation_id: attribute("id").filter(|text| text.len() <= 256),
            traceparent,
            module: Digest::default(),
            idempotency,
            origin: Some(KafkaOrigin {
                cluster: self.cluster.clone(),
                topic,
                partition: record.partition,
                offset: record.offset,
            }),
            command: Some(RecordedCommand {
                name: Text::from_static(READABLE),
                time: incoming.produced_at.unwrap_or_default(),
                data: Some(envelope.into()),
            }),
            outcome: Outcome::Events(vec![NewEvent {
                event_type: EventType::trusted(incoming.event_type),
                schema_version: 1,
                data: incoming.data,
                content_type: incoming.content_type,
            }]),
        }
    }
}

/// Asks the broker now and then how much is left. An answer that does not come leaves the last one standing.
async fn watch_lag(
    bus: &dyn Bus,
    group: &str,
    topics: BTreeMap<TopicName, Start>,
    progress: Arc<Mutex<Progress>>,
) {
    loop {
        match bus.lag(group, &topics).await {
            Ok(lag) => progress.lock().lag = Some(lag),
            Err(error) => debug!(%error, "how much is left is not known"),
        }
        tokio::time::sleep(ASK_LAG).await;
    }
}

async fn unless_stopped<T>(
    stop: &mut watch::Receiver<bool>,
    work: impl Future<Output = T>,
) -> Result<T, Stop> {
    tokio::select! {
        biased;
        _ = stop.wait_for(|stop| *stop) => Err(Stop::Stopped),
        done = work => Ok(done),
    }
}
