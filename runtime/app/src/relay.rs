//! The relay: events of an app's log to Kafka, in order, each at least once or, for those who read committed records, once.
//!
//! How far it has got is kept in Kafka, where the events are. So neither can be lost without the other, and a node that is
//! made anew from its log goes on where its predecessor was.
//!
//! Promises:
//! * Events of a stream are published in their order.
//! * An event is published only when it is durable, and the mark passes it only when the broker has it.
//! * A broker that is away costs nothing but that it lags.

use crate::bus_task::{BusTask, Doing, Stop, StopSignal, Trouble, Work, attempt_until_stopped};
use ebb_domain::event::Position;
use ebb_domain::name::{AppName, TopicName};
use ebb_domain::port::bus::{Bus, BusError, BusErrorKind, Published, RelayLink, RelayMark, RelayNeeds};
use ebb_domain::port::log::{Durable, EventBatch, EventFilter, EventLog, ReadLimits, Records};
use ebb_domain::text::Text;
use ebb_domain::topic::{self, RelaySpec};
use ebb_faults::{Point, crash_point};
use parking_lot::Mutex;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tracing::{Instrument, info, info_span};

/// What is published before the mark is.
const BATCH: ReadLimits = ReadLimits { items: 5000, bytes: 4 << 20 };

/// How long a producer with nothing to do is kept.
const IDLE: Duration = Duration::from_secs(30);

/// What a relay is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum RelayState {
    /// It has published all that is durable, or is about to begin.
    #[default]
    Idle,
    /// It publishes.
    Publishing,
    /// Something failed that passes; it is tried again.
    Retrying {
        /// What.
        error: String,
    },
    /// It goes no further without help.
    Halted {
        /// Why, and what to do.
        reason: String,
    },
    /// It was stopped.
    Stopped,
}

/// How a relay is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RelayStatus {
    /// What it is doing.
    #[serde(flatten)]
    pub state: RelayState,
    /// Everything up to here was published; none while nobody has asked the broker.
    pub mark: Option<Position>,
    /// Positions between the mark and the end of the log.
    pub lag: Option<u64>,
    /// Events published since the app was opened.
    pub events: u64,
}

impl RelayStatus {
    pub(crate) fn doing(&self) -> Doing {
        match &self.state {
            RelayState::Retrying { error: why } | RelayState::Halted { reason: why } => {
                Doing::Trouble(format!("{}: {why}", Publisher::UNDONE))
            }
            _ if self.mark.is_none() => Doing::Beginning,
            _ => Doing::Well,
        }
    }
}

#[derive(Default)]
struct Progress {
    state: RelayState,
    mark: Option<Position>,
    events: u64,
}

/// The relay of an app.
pub(crate) struct Relay {
    app: AppName,
    log: Arc<dyn EventLog>,
    bus: Option<Arc<dyn Bus>>,
    running: Mutex<Option<Running>>,
}

struct Running {
    spec: RelaySpec,
    topics: BTreeMap<Text, TopicName>,
    progress: Arc<Mutex<Progress>>,
    task: BusTask,
}

impl Relay {
    pub(crate) fn new(app: AppName, log: Arc<dyn EventLog>, bus: Option<Arc<dyn Bus>>) -> Self {
        Self { app, log, bus, running: Mutex::default() }
    }

    /// Publishes in this way from now on, or not at all. `topics` are those of the aggregates. `rest` is where it is known
    /// to have got to: nothing is asked of the broker before the log is longer.
    pub(crate) async fn deploy(
        &self,
        spec: Option<RelaySpec>,
        topics: BTreeMap<Text, TopicName>,
        rest: Option<Position>,
    ) {
        let before = self.running.lock().take();
        if let Some(before) = before {
            if Some(&before.spec) == spec.as_ref() && before.topics == topics {
                *self.running.lock() = Some(before);
                return;
            }
            before.task.stopped().await;
        }
        let (Some(spec), Some(bus)) = (spec, self.bus.clone()) else { return };
        let progress = Arc::new(Mutex::new(Progress { mark: rest, ..Progress::default() }));
        let mut publisher = Publisher {
            bus,
            app: self.app.clone(),
            spec: spec.clone(),
            filter: EventFilter {
                categories: Some(topics.keys().cloned().collect()),
                types: None,
                records: Records::None,
            },
            topics: topics.clone(),
            log: self.log.clone(),
            durable: self.log.durable(),
            progress: progress.clone(),
            told: RelayMark::default(),
        };
        let span = info_span!("relay", app = %self.app);
        let task = BusTask::spawn(|stop| {
            let work = async move {
                // Nothing is put right but by time.
                attempt_until_stopped(&mut publisher, &Notify::new(), stop).await;
                publisher.progress.lock().state = RelayState::Stopped;
            };
            work.instrument(span)
        });
        *self.running.lock() = Some(Running { spec, topics, progress, task });
    }

    /// How it is doing; none if nothing is published.
    pub(crate) fn status(&self) -> Option<RelayStatus> {
        let running = self.running.lock();
        let progress = running.as_ref()?.progress.lock();
        let end = self.log.durable().borrow().position;
        Some(RelayStatus {
            state: progress.state.clone(),
            mark: progress.mark,
            lag: progress.mark.map(|mark| end.0.saturating_sub(mark.0)),
            events: progress.events,
        })
    }

    /// Whether everything up to here was published.
    pub(crate) fn is_done(&self, end: Position) -> bool {
        let running = self.running.lock();
        running.as_ref().is_none_or(|running| running.progress.lock().mark.is_some_and(|mark| mark >= end))
    }

    /// Stops it.
    pub(crate) async fn close(&self) {
        let running = self.running.lock().take();
        if let Some(running) = running {
            running.task.stopped().await;
        }
    }
}

struct Publisher {
    bus: Arc<dyn Bus>,
    app: AppName,
    spec: RelaySpec,
    /// The topic of each aggregate.
    topics: BTreeMap<Text, TopicName>,
    filter: EventFilter,
    log: Arc<dyn EventLog>,
    durable: watch::Receiver<Durable>,
    progress: Arc<Mutex<Progress>>,
    /// What the broker was last told of, or said itself.
    told: RelayMark,
}

impl Work for Publisher {
    const UNDONE: &str = "events are not published";

    /// Publishes until nothing has happened for a while.
    async fn attempt(&mut self, stop: &mut StopSignal) -> Result<(), Stop> {
        let known = self.progress.lock().mark;
        if let Some(mark) = known {
            self.until_some_are_wanted(mark, stop).await?;
        }
        // Before anything is taken over: whoever relays another log of this name is not to be disturbed.
        let mark = stop.unless_stopped(self.bus.relayed(&self.app)).await??;
        self.check(&mark).await?;
        let mut topics: Vec<TopicName> = self.topics.values().cloned().collect();
        topics.sort_unstable();
        topics.dedup();
        let needs = RelayNeeds { app: self.app.clone(), spec: self.spec.clone(), topics };
        let mut link = stop.unless_stopped(self.bus.relay(needs)).await??;
        let mark = link.mark();
        self.check(&mark).await?;
        // What was looked at since the broker was told is not looked at again, unless the broker has lost what it was told.
        let scanned = self.progress.lock().mark.filter(|_| mark.position >= self.told.position);
        self.told = mark;
        let mark = scanned.map_or(mark.position, |scanned| scanned.max(mark.position));
        info!(%mark, "publishing");
        self.published(mark, 0);
        let published = self.follow(&mut *link, mark, stop).await;
        // What was published is to be known as far as it can be: it would be published again.
        let closed = link.close().await;
        match published {
            Ok(()) => Ok(closed?),
            Err(stop) => Err(stop),
        }
    }

    fn achieved(&self) -> u64 {
        self.progress.lock().events
    }

    fn troubled(&mut self, trouble: Trouble) {
        self.progress.lock().state = match trouble {
            Trouble::Retrying(error) => RelayState::Retrying { error },
            Trouble::Halted(reason) => RelayState::Halted { reason },
        };
    }
}

impl Publisher {
    async fn follow(
        &mut self,
        link: &mut dyn RelayLink,
        mut mark: Position,
        stop: &mut StopSignal,
    ) -> Result<(), Stop> {
        let mut idle_since = Instant::now();
        let mut ahead: Option<EventBatch> = None;
        loop {
            let batch = match ahead.take() {
                Some(batch) => batch,
                None => self.read(mark).await?,
            };
            if batch.scanned_to <= mark {
                self.progress.lock().state = RelayState::Idle;
                let durable = &mut self.durable;
                tokio::select! {
                    biased;
                    () = stop.stopped() => return Err(Stop::Stopped),
                    grown = durable.wait_for(|durable| durable.position > mark) => {
                        if grown.is_err() {
                            return Err(Stop::Stopped);
                        }
                    }
                    () = tokio::time::sleep_until(idle_since + IDLE) => return Ok(()),
                }
                continue;
            }
            let next = batch.scanned_to;
            let count = batch.events.len() as u64;
            let records = batch.events.iter().filter_map(|event| {
                let topic = self.topics.get(event.stream().category().as_bytes())?;
                Some(topic::record_of(event, &self.app, topic.clone()))
            });
            let records: Vec<_> = records.collect();
            if records.is_empty() {
                // Not worth a record of its own: after a crash the same is looked at again.
                mark = next;
                self.published(mark, 0);
                continue;
            }
            self.progress.lock().state = RelayState::Publishing;
            // The next batch is read while the broker takes this one.
            let last =
                batch.events.last().map(|event| Published { position: event.position, id: event.id() });
            let told = RelayMark { position: next, last };
            let publishing = link.publish(records, told);
            let reading = self.log.read(next, &self.filter, BATCH);
            let both = futures_util::future::join(publishing, reading);
            let (done, read) = stop.unless_stopped(both).await?;
            done?;
            crash_point(Point::RelayAfterPublish);
            self.told = told;
            mark = next;
            self.published(mark, count);
            idle_since = Instant::now();
            ahead = Some(read.map_err(|error| Stop::Log(error.to_string()))?);
        }
    }

    async fn read(&self, after: Position) -> Result<EventBatch, Stop> {
        self.log.read(after, &self.filter, BATCH).await.map_err(|error| Stop::Log(error.to_string()))
    }

    fn published(&self, mark: Position, events: u64) {
        let mut progress = self.progress.lock();
        progress.mark = Some(mark);
        progress.events += events;
    }

    /// Until there is something to publish behind a position. A log may grow for days by what is not published, and nobody
    /// needs a connection for that.
    async fn until_some_are_wanted(&mut self, mut mark: Position, stop: &mut StopSignal) -> Result<(), Stop> {
        {
            let mut progress = self.progress.lock();
            if !matches!(progress.state, RelayState::Retrying { .. } | RelayState::Halted { .. }) {
                progress.state = RelayState::Idle;
            }
        }
        loop {
            // A log that was closed has no more.
            let more = self.durable.wait_for(|durable| durable.position > mark);
            stop.unless_stopped(more).await?.map_err(|_| Stop::Stopped)?;
            let batch = self.read(mark).await?;
            if !batch.events.is_empty() {
                return Ok(());
            }
            mark = batch.scanned_to;
            self.published(mark, 0);
        }
    }

    /// Whether what was published is of this log.
    async fn check(&mut self, mark: &RelayMark) -> Result<(), Stop> {
        let end = self.durable.borrow_and_update().position;
        let remedy = format!(
            "an older copy of the log was put in place, or another app of this name publishes to the same brokers; delete the \
             topic `{}.relay` to publish everything again",
            self.app
        );
        let position = mark.position;
        if position > end {
            let message = format!(
                "the relay has published up to position {position}, and the log ends at {end}: {remedy}"
            );
            return Err(BusError::new(BusErrorKind::Refused, message).into());
        }
        let Some(Published { position, id }) = mark.last else { return Ok(()) };
        let one = ReadLimits { items: 1, bytes: 1 };
        let before = Position(position.0.saturating_sub(1));
        let read = self.log.read(before, &EventFilter::default(), one).await;
        let read = read.map_err(|error| Stop::Log(error.to_string()))?;
        match read.events.first() {
            Some(event) if event.position == position && event.id() == id => Ok(()),
            _ => {
                let message = format!(
                    "the relay has published event {id} as that of position {position}, and the log has another there: {remedy}"
                );
                Err(BusError::new(BusErrorKind::Refused, message).into())
            }
        }
    }
}

#[cfg(test)]
mod tests;
