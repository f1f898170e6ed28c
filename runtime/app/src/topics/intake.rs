//! From topics to the log: one task for each consumer group of an app.
//!
//! What fails here says nothing about a record: records that can't be read become events all the same. So it is tried
//! again for as long as it takes, or, where going on would leave records out, halted until somebody has decided.

use crate::bus_task::{BusTask, Doing, Stop, StopSignal, Trouble, Work, attempt_until_stopped};
use crate::commands::new_command_id;
use crate::projections::{ProjectionStatus, State, TopicsStatus};
use ebb_domain::commit::{Expected, IdempotencyKey, KafkaOrigin, NewCommit, Outcome};
use ebb_domain::digest::Digest;
use ebb_domain::event::{NewEvent, Revision};
use ebb_domain::name::{AppName, EventType, ProjectionName, TopicName};
use ebb_domain::port::bus::{Bus, Consumer, Done, PartitionLag, Subscription};
use ebb_domain::port::log::{AppendError, EventLog, GroupFailure, ReadError, ReadLimits, Settlement};
use ebb_domain::stream::StreamId;
use ebb_domain::text::Text;
use ebb_domain::topic::{self, Incoming, Place, Record, Start, TopicSpec};
use ebb_faults::{Point, crash_point};
use futures_util::future::join_all;
use parking_lot::Mutex;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::{Instrument, debug, error, info, info_span};
use uuid::Uuid;

/// Records that are appended before the broker is told.
const BATCH: usize = 1000;

/// How long a batch waits to fill up once it has a record: not at all. While one is made durable, the next one gathers.
const WAIT: Duration = Duration::ZERO;

/// Partitions of a topic that are looked at for what the log has of them. What a group has done of those behind is consumed
/// once more after each start, and known by its coordinates.
const PARTITIONS: u32 = 1000;

/// How often the broker is asked how much is left.
const ASK_LAG: Duration = Duration::from_secs(2);

/// How long its answer counts.
const LAG_COUNTS: Duration = Duration::from_secs(10);

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

/// A consumer group of an app.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct IntakeStatus {
    /// Its name.
    pub group: Text,
    /// The projection whose rows its records go straight into; none: they come into the log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub projection: Option<ProjectionName>,
    /// What it consumes.
    pub topics: Vec<TopicName>,
    /// What it is doing.
    #[serde(flatten)]
    pub state: IntakeState,
    /// Records appended to the log since the app was opened, or applied to rows.
    pub records: u64,
    /// Records that were in the log already.
    pub duplicates: u64,
    /// Records that the group has still to consume; none where the broker has not said so lately.
    pub lag: Option<u64>,
    /// The same, of each partition.
    pub partitions: Vec<PartitionLag>,
}

impl IntakeStatus {
    /// That of a projection that takes records straight from topics; none for one that follows the log.
    pub(crate) fn direct(status: &ProjectionStatus) -> Option<Self> {
        let version = &status.serving;
        let TopicsStatus { group, topics, partitions } = version.topics.clone()?;
        let state = match &version.state {
            State::CatchingUp | State::Live | State::HeldBack { .. } | State::Idle | State::Superseded => {
                IntakeState::Consuming
            }
            State::Retrying { error, .. } => IntakeState::Retrying { error: error.clone() },
            State::Halted { reason } => IntakeState::Halted { reason: reason.clone() },
            State::Stopped => IntakeState::Stopped,
        };
        Some(Self {
            group,
            projection: Some(status.name.clone()),
            topics,
            state,
            records: version.counters.events,
            duplicates: version.counters.duplicates,
            lag: partitions.as_ref().map(|_| version.lag),
            partitions: partitions.unwrap_or_default(),
        })
    }

    pub(crate) fn doing(&self) -> Doing {
        match &self.state {
            IntakeState::Retrying { error: why } | IntakeState::Halted { reason: why } => {
                Doing::Trouble(format!("group `{}` does not consume: {why}", self.group))
            }
            IntakeState::Joining => Doing::Beginning,
            IntakeState::Consuming | IntakeState::Stopped => Doing::Well,
        }
    }
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
    topics: Arc<BTreeMap<TopicName, TopicSpec>>,
    progress: Arc<Mutex<Progress>>,
    /// What halted it was put right.
    again: Arc<Notify>,
    /// When it stops, it does so for good.
    leaves: Arc<AtomicBool>,
    task: BusTask,
}

#[derive(Default)]
struct Progress {
    state: IntakeState,
    records: u64,
    duplicates: u64,
    /// What the broker said last, and when.
    lag: Option<(Instant, Vec<PartitionLag>)>,
    /// Topics whose new incarnation somebody has accepted.
    accepted: BTreeSet<TopicName>,
}

impl Progress {
    /// What it is doing, as far as that can be told: a member that waits for records does not notice by itself that nobody is
    /// there who could have some.
    fn shown(&self) -> IntakeState {
        let silent = self.lag.as_ref().map(|(at, _)| at.elapsed()).filter(|silent| *silent >= LAG_COUNTS);
        match (&self.state, silent) {
            (IntakeState::Consuming, Some(silent)) => {
                let error = format!("the brokers have not answered for {} s", silent.as_secs());
                IntakeState::Retrying { error }
            }
            (state, _) => state.clone(),
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
            .partition(|running| wanted.get(running.group.as_bytes()) == Some(&*running.topics));
        for running in &gone {
            let goes_on = wanted.contains_key(running.group.as_bytes());
            running.leaves.store(!goes_on, Ordering::Relaxed);
        }
        // Side by side: with the broker away each takes its time.
        join_all(gone.into_iter().map(|running| running.task.stopped())).await;
        for running in &kept {
            wanted.remove(running.group.as_bytes());
        }
        let started = wanted.into_iter().map(|(group, topics)| self.start(group, topics));
        let running: Vec<_> = kept.into_iter().chain(started).collect();
        *self.running.lock() = running;
    }

    fn start(&self, group: Text, topics: BTreeMap<TopicName, TopicSpec>) -> Running {
        let progress = Arc::new(Mutex::new(Progress::default()));
        let (again, leaves) = (Arc::new(Notify::new()), Arc::<AtomicBool>::default());
        let topics = Arc::new(topics);
        let span = info_span!("topics", app = %self.app, %group);
        let work = |stop| {
            let (bus, set, again) = (self.bus.clone(), progress.clone(), again.clone());
            let intake = bus.map(|bus| Intake {
                bus,
                app: self.app.clone(),
                group: group.clone(),
                topics: topics.clone(),
                log: self.log.clone(),
                progress: progress.clone(),
                leaves: leaves.clone(),
                cluster: Text::default(),
                consumed: BTreeMap::new(),
            });
            let work = async move {
                match intake {
                    Some(intake) => intake.run(&again, stop).await,
                    None => without_brokers(&set, stop).await,
                }
                set.lock().state = IntakeState::Stopped;
            };
            work.instrument(span)
        };
        let task = BusTask::spawn(work);
        Running { group, topics, progress, again, leaves, task }
    }

    /// How all of them are doing.
    pub(crate) fn status(&self) -> Vec<IntakeStatus> {
        let running = self.running.lock();
        let status = running.iter().map(|running| {
            let progress = running.progress.lock();
            let lag = progress.lag.as_ref().filter(|(at, _)| at.elapsed() < LAG_COUNTS).map(|(_, lag)| lag);
            IntakeStatus {
                group: running.group.clone(),
                projection: None,
                topics: running.topics.keys().cloned().collect(),
                state: progress.shown(),
                records: progress.records,
                duplicates: progress.duplicates,
                lag: lag.map(|lag| lag.iter().map(|partition| partition.lag).sum()),
                partitions: lag.cloned().unwrap_or_default(),
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
        join_all(running.into_iter().map(|running| running.task.stopped())).await;
    }
}

fn starts(topics: &BTreeMap<TopicName, TopicSpec>) -> BTreeMap<TopicName, Start> {
    topics.iter().map(|(topic, spec)| (topic.clone(), spec.start)).collect()
}

async fn without_brokers(progress: &Mutex<Progress>, mut stop: StopSignal) {
    let reason = "the node has no brokers: set `kafka.brokers` in its settings".to_owned();
    error!(%reason, "{}", Intake::UNDONE);
    progress.lock().state = IntakeState::Halted { reason };
    stop.stopped().await;
}

/// One group.
struct Intake {
    bus: Arc<dyn Bus>,
    app: AppName,
    group: Text,
    topics: Arc<BTreeMap<TopicName, TopicSpec>>,
    log: Arc<dyn EventLog>,
    progress: Arc<Mutex<Progress>>,
    leaves: Arc<AtomicBool>,
    cluster: Text,
    /// The ids of topics that were consumed since the app was opened: perhaps no record of them has come yet.
    consumed: BTreeMap<TopicName, Uuid>,
}

impl Work for Intake {
    const UNDONE: &str = "topics are not consumed";

    async fn attempt(&mut self, stop: &mut StopSignal) -> Result<(), Stop> {
        let mut consumer = stop.unless_stopped(self.join()).await??;
        info!("consuming");
        self.progress.lock().state = IntakeState::Consuming;
        let Err(ended) = self.consume(&mut *consumer, stop).await;
        match self.leaves.load(Ordering::Relaxed) {
            true => consumer.leave().await,
            false => consumer.close().await,
        }
        Err(ended)
    }

    fn achieved(&self) -> u64 {
        self.progress.lock().records
    }

    fn troubled(&mut self, trouble: Trouble) {
        self.progress.lock().state = match trouble {
            Trouble::Retrying(error) => IntakeState::Retrying { error },
            Trouble::Halted(reason) => IntakeState::Halted { reason },
        };
    }
}

impl Intake {
    async fn run(mut self, again: &Notify, stop: StopSignal) {
        let (bus, group, topics) = (self.bus.clone(), self.group.clone(), starts(&self.topics));
        let watching = watch_lag(&*bus, &group, topics, self.progress.clone());
        tokio::select! {
            () = attempt_until_stopped(&mut self, again, stop) => {}
            () = watching => {}
        }
    }

    async fn join(&mut self) -> Result<Box<dyn Consumer>, Stop> {
        self.cluster = self.bus.cluster().await?;
        let accepted = self.progress.lock().accepted.clone();
        let (mut known, kept) = self.known().await?;
        known.retain(|topic, _| !accepted.contains(topic));
        let subscription = Subscription {
            group: self.group.clone(),
            member: format!("{}-{}", self.app, self.group).into(),
            topics: starts(&self.topics),
            known,
            kept,
        };
        let consumer = self.bus.consume(subscription).await?;
        let ids = self.topics.keys().filter_map(|topic| Some((topic.clone(), consumer.topic_id(topic)?)));
        self.consumed.extend(ids);
        // Made again once more, it is to be accepted once more.
        self.progress.lock().accepted.retain(|topic| !accepted.contains(topic));
        Ok(consumer)
    }

    async fn consume(&self, consumer: &mut dyn Consumer, stop: &mut StopSignal) -> Result<Infallible, Stop> {
        loop {
            // What was consumed and not appended is consumed again.
            let records = stop.unless_stopped(consumer.next(BATCH, WAIT)).await??;
            let done = stop.unless_stopped(self.take(consumer, records)).await??;
            crash_point(Point::IntakeAfterAppend);
            consumer.done(&done)?;
            crash_point(Point::IntakeAfterDone);
        }
    }

    /// The ids of the topics that were consumed last, since the app was opened or else as the log says, and the places behind
    /// the last records that it has.
    async fn known(&self) -> Result<(BTreeMap<TopicName, Uuid>, Vec<Place>), Stop> {
        let log = |error: ReadError| Stop::Log(error.to_string());
        let (mut known, mut kept) = (BTreeMap::new(), Vec::new());
        for topic in self.topics.keys() {
            let mut newest = None;
            for partition in 0..PARTITIONS {
                let stream = topic::stream(topic, partition);
                let Some(last) = self.log.head(&stream).map_err(log)?.revision else { continue };
                let one = ReadLimits { items: 1, bytes: 1 };
                let events = self.log.read_stream(&stream, last, one).await.map_err(log)?;
                let Some(event) = events.first() else { continue };
                let Some(KafkaOrigin { topic: topic_id, offset, .. }) = event.commit.origin else { continue };
                newest = newest.max(Some((event.position, topic_id)));
                kept.push(Place { topic: topic.clone(), topic_id, partition, next: offset + 1 });
            }
            known.extend(newest.map(|(_, id)| (topic.clone(), id)));
        }
        known.extend(self.consumed.clone());
        Ok((known, kept))
    }

    /// Appends records, and waits until all of them are durable; gives the places behind them.
    ///
    /// A record is staged on the one before it in its partition: if that is lost with its group, those behind it must not
    /// be there when it comes again.
    async fn take(&self, consumer: &dyn Consumer, records: Vec<Record>) -> Result<Vec<Done>, Stop> {
        let mut done: BTreeMap<(TopicName, u32), u64> = BTreeMap::new();
        let mut last: BTreeMap<StreamId, Revision> = BTreeMap::new();
        let mut settlements: Vec<Settlement> = Vec::new();
        let (mut taken, mut duplicates) = (0, 0);
        for record in records {
            let Some(topic) = consumer.topic_id(&record.topic) else {
                return Err(Stop::Log(format!("the id of topic `{}` is not known", record.topic)));
            };
            let Some(spec) = self.topics.get(&record.topic) else {
                return Err(Stop::Log(format!("topic `{}` was not asked for", record.topic)));
            };
            done.insert((record.topic.clone(), record.partition), record.offset + 1);
            let mut commit = self.commit(&record, topic, spec);
            let stream = commit.stream.clone();
            commit.expected = last.get(&stream).map_or(Expected::Any, |last| Expected::Revision(Some(*last)));
            let mut appended = self.log.append(commit).await;
            if let Err(AppendError::Conflict { .. }) = appended {
                // The one before it is lost, which is told here, or another group of the app consumes the same topic.
                durable(&mut settlements).await?;
                appended = self.log.append(self.commit(&record, topic, spec)).await;
            }
            match appended {
                Ok(staged) => {
                    taken += 1;
                    last.insert(stream, staged.first_revision);
                    settlements.push(staged.settlement);
                }
                Err(AppendError::Duplicate(earlier)) => {
                    duplicates += 1;
                    // Nothing is staged on it that would be lost with it.
                    durable(&mut vec![earlier.settlement]).await?;
                    settlements.extend(self.keep_place(&record, topic, spec).await?);
                }
                Err(error) => return Err(Stop::Log(error.to_string())),
            }
        }
        durable(&mut settlements).await?;
        let mut progress = self.progress.lock();
        progress.records += taken;
        progress.duplicates += duplicates;
        progress.state = IntakeState::Consuming;
        Ok(done.into_iter().map(|((topic, partition), next)| Done { topic, partition, next }).collect())
    }

    /// Keeps where a record stands that is the same as an earlier one: for a day it is known by what makes it the same, and
    /// for ever by its place.
    async fn keep_place(
        &self,
        record: &Record,
        topic: Uuid,
        spec: &TopicSpec,
    ) -> Result<Option<Settlement>, Stop> {
        if spec.dedupe.is_none() {
            return Ok(None);
        }
        let place = NewCommit {
            idempotency: None,
            command: None,
            outcome: Outcome::Events(Vec::new()),
            ..self.commit(record, topic, spec)
        };
        match self.log.append(place).await {
            Ok(staged) => Ok(Some(staged.settlement)),
            Err(AppendError::Duplicate(_)) => Ok(None),
            Err(error) => Err(Stop::Log(error.to_string())),
        }
    }

    /// The commit of a record.
    fn commit(&self, record: &Record, topic: Uuid, spec: &TopicSpec) -> NewCommit {
        let incoming = Incoming::read(record, spec);
        let id = new_command_id(self.log.now());
        let same = incoming.same(spec.dedupe);
        NewCommit {
            stream: topic::stream(&record.topic, record.partition),
            expected: Expected::Any,
            command_id: id,
            actor: topic::actor(&record.topic),
            correlation_id: incoming.correlation_id().unwrap_or_else(|| id.to_string().into()),
            hops: incoming.envelope.hops(),
            causation_id: incoming.causation_id(),
            traceparent: incoming.traceparent(),
            module: Digest::default(),
            idempotency: same
                .map(|digest| IdempotencyKey { key: format!("ce:{digest}").into(), request: digest }),
            origin: Some(KafkaOrigin {
                cluster: self.cluster.clone(),
                topic,
                partition: record.partition,
                offset: record.offset,
            }),
            command: Some(incoming.recorded()),
            outcome: Outcome::Events(vec![NewEvent {
                event_type: EventType::trusted(incoming.event_type),
                schema_version: 1,
                data: incoming.data,
                content_type: incoming.content_type,
            }]),
        }
    }
}

/// Waits until all of these are durable.
async fn durable(settlements: &mut Vec<Settlement>) -> Result<(), Stop> {
    for mut settlement in settlements.drain(..) {
        if settlement.is_durable() {
            continue;
        }
        settlement.wait().await.map_err(|failure| match failure {
            GroupFailure::Rewound(why) | GroupFailure::OutcomeUnknown(why) => Stop::Log(why),
        })?;
    }
    Ok(())
}

/// Asks the broker now and then how much is left. An answer that does not come leaves the last one standing for a while.
async fn watch_lag(
    bus: &dyn Bus,
    group: &str,
    topics: BTreeMap<TopicName, Start>,
    progress: Arc<Mutex<Progress>>,
) {
    loop {
        match bus.lag(group, &topics).await {
            Ok(lag) => progress.lock().lag = Some((Instant::now(), lag)),
            Err(error) => debug!(%error, "how much is left is not known"),
        }
        tokio::time::sleep(ASK_LAG).await;
    }
}
