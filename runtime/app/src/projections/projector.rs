//! The loop that runs one version of a projection: reads its feed behind its mark, applies batches, commits.
//!
//! It is a task of its own and the only writer of its rows. Reads of committed rows by the module take microseconds and
//! run where the module runs; commits wait for the disk, and run on the pool of threads that may block.

use super::dead_letter;
use super::failure::{Backoff, Front, Next};
use super::feed::{Feed, Standing};
use super::lanes::{Applier, Failed, Splitter, alone, lane_key};
use super::parking::{Command, ParkedKeys};
use super::service::{ProjectionDeps, Slot};
use super::status::State;
use super::version::{Body, Parks, Program, Version};
use super::window::Window;
use crate::bus_task;
use ebb_domain::event::{Position, StoredEvent};
use ebb_domain::manifest::LaneBy;
use ebb_domain::name::{AppName, ProjectionName};
use ebb_domain::port::bus::{BusError, BusErrorKind};
use ebb_domain::port::guest::HeldBack;
use ebb_domain::port::log::{EventLog, ReadLimits};
use ebb_domain::port::models::{ModelError, ParkChange, ProjectionStore, RowBatch, Tried};
use ebb_domain::text::Text;
use ebb_domain::time::Timestamp;
use ebb_domain::topic::Place;
use ebb_faults::{Point, crash_point};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{Instrument, debug, error, info, info_span, warn};

/// Batches that one read is good for.
const READ_AHEAD: usize = 4;

/// Bytes that one read gives, about.
const READ_BYTES: usize = 4 << 20;

/// How far the mark may be behind what was looked at, in events that the projection does not want.
const MARK_EVERY: u64 = 10_000;

/// How long it may be behind.
const MARK_AFTER: Duration = Duration::from_secs(5);

/// How long files that nobody uses stay open.
const RELEASE_AFTER: Duration = Duration::from_secs(30);

/// How long they do if they were opened only to see where the projection stands: a node may start with thousands that
/// have nothing to do.
const RELEASE_AFTER_LOAD: Duration = Duration::from_secs(1);

/// Commands that wait at most.
const COMMANDS: usize = 16;

/// Why the loop does not go on as it was.
#[derive(Debug)]
pub(super) enum Stop {
    /// It was told to end.
    Stopped,
    /// Something on our side failed: after a pause everything is read again.
    Host(String),
    /// It goes on elsewhere: everything is read again from there.
    Moved,
    /// Where its events come from does not give any; what was committed is not in doubt.
    Source(BusError),
}

impl From<ModelError> for Stop {
    fn from(error: ModelError) -> Self {
        Self::Host(error.to_string())
    }
}

/// What is to be done once a step is made.
enum After {
    GoOn,
    /// The first event failed, and is tried again after this time.
    Pause(Duration),
    /// The first event failed for the last time, and no more keys may be parked.
    Halt(Tried),
}

/// What a step came to, if it could be made.
pub(super) type Flow<T> = Result<T, Stop>;

/// A running projector.
pub(super) struct Runner {
    stop: watch::Sender<bool>,
    pub commands: mpsc::Sender<Command>,
    task: JoinHandle<()>,
}

impl Runner {
    /// Tells it to end. A call of the module is given up; a commit is not.
    pub(super) fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Waits for the end.
    pub(super) async fn stopped(self) {
        self.stop();
        if let Err(failure) = self.task.await
            && failure.is_panic()
        {
            error!(%failure, "a projector panicked");
        }
    }
}

/// Runs one version of a projection.
pub(super) struct Projector {
    pub(super) deps: ProjectionDeps,
    pub(super) log: Arc<dyn EventLog>,
    pub(super) slot: Arc<Slot>,
    pub(super) version: Arc<Version>,
    program: Program,
    body: Arc<Body>,
    pub(super) applier: Applier,
    splitter: Splitter,
    backoff: Backoff,
    pub(super) front: Front,
    pub(super) parked: ParkedKeys,
    pub(super) feed: Feed,
    /// How often in a row the feed had nothing to give because it failed.
    feed_failures: u32,
    /// Events that were read, of which those before `next` are done.
    buffer: Vec<StoredEvent>,
    next: usize,
    /// Everything up to here was read.
    scanned: Position,
    /// The mark that is committed.
    committed: Position,
    /// When rows were committed last; a batch that is not full waits for more from then on.
    last_commit: Option<Instant>,
    /// Since when `committed` has been behind what was looked at.
    behind_since: Option<Instant>,
    /// When the store's files are closed, if nobody uses them until then; none: they are.
    release_at: Option<Instant>,
    commands: mpsc::Receiver<Command>,
    pub(super) stop: watch::Receiver<bool>,
}

impl Projector {
    /// Starts one; none for a version whose module is not known.
    pub(super) fn start(deps: &ProjectionDeps, slot: &Arc<Slot>, version: &Arc<Version>) -> Option<Runner> {
        let program = version.program.clone()?;
        let (stop, stopped) = watch::channel(false);
        let (commands, received) = mpsc::channel(COMMANDS);
        let spec = &program.deployment.spec;
        let body = version.body();
        let store = body.store.clone();
        let applier = Applier { module: program.module.clone(), store, models: version.models.clone() };
        let passed = version.passed();
        let projector = Self {
            log: deps.log.clone(),
            deps: deps.clone(),
            slot: slot.clone(),
            version: version.clone(),
            body,
            applier,
            splitter: Splitter::new(program.deployment.lanes()),
            backoff: Backoff::new(&spec.retry, (&*deps.app, &*spec.name)),
            front: Front::new(program.deployment.window().get(), None),
            parked: ParkedKeys::default(),
            feed: Feed::new(deps, version, &spec.source),
            feed_failures: 0,
            buffer: Vec::new(),
            next: 0,
            scanned: passed,
            committed: passed,
            last_commit: None,
            behind_since: None,
            release_at: None,
            commands: received,
            stop: stopped,
            program,
        };
        let span =
            info_span!("projection", app = %deps.app, name = %slot.name, version = %version.key.short());
        let watched = version.topics.clone().zip(deps.bus.clone());
        let work = async move {
            let watching = async move {
                match watched {
                    Some((topics, bus)) => topics.watch(&*bus).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = projector.run() => {}
                () = watching => {}
            }
        };
        let task = tokio::spawn(work.instrument(span));
        Some(Runner { stop, commands, task })
    }

    async fn run(mut self) {
        let mut failures = 0;
        loop {
            let stop = match self.load().await {
                Ok(()) => {
                    let before = self.committed;
                    let Err(stop) = self.project().await;
                    if self.committed > before {
                        failures = 0;
                    }
                    stop
                }
                Err(stop) => stop,
            };
            let reason = match stop {
                Stop::Host(reason) => reason,
                Stop::Source(error) => error.message,
                Stop::Moved => continue,
                Stop::Stopped => break,
            };
            failures += 1;
            warn!(%reason, failures, "can't go on for now");
            self.version.set_state(State::Retrying { position: None, attempts: failures, error: reason });
            let pause = self.backoff.pause(failures);
            if matches!(self.unless_stopped(tokio::time::sleep(pause)).await, Err(Stop::Stopped)) {
                break;
            }
        }
        self.feed.close().await;
        self.version.set_state(State::Stopped);
    }

    /// Reads where it stands. A store that was found damaged is made anew by this, and starts at the beginning; that of
    /// an event function is not, since all of what it did would be done again.
    async fn load(&mut self) -> Flow<()> {
        let (stores, app, name) = (self.deps.stores.clone(), self.deps.app.clone(), self.name().clone());
        let (key, models) = (self.version.key, self.version.models.clone());
        let known = self.version.body();
        let has_effects = self.version.has_effects();
        let loaded = super::blocking(move || {
            let store = if has_effects {
                match stores.open_existing(&app, &name, key)? {
                    Some((store, _)) => store,
                    None => return Ok(None),
                }
            } else {
                stores.open(&app, &name, key, models.all())?
            };
            let same = std::ptr::addr_eq(Arc::as_ptr(&store), Arc::as_ptr(&known.store));
            let body = if same { known } else { Body::open(store)? };
            let store = &*body.store;
            *body.parks.lock() = Parks::of(store)?;
            let tried = store.tried()?;
            let record = tried.as_ref().map(|tried| store.record(tried.position)).transpose()?.flatten();
            let tried = tried.map(|tried| (tried, record));
            let standing = Standing { mark: store.mark()?, places: store.places()?, tried };
            Ok(Some((standing, ParkedKeys::load(store)?, body.clone())))
        });
        let Some((standing, parked, body)) = loaded.await? else { return self.lost().await };
        let (mark, tried) = (standing.mark, standing.tried.as_ref().map(|(tried, _)| tried.clone()));
        self.release_at = Some(Instant::now() + RELEASE_AFTER_LOAD);
        self.version.set_body(body.clone());
        self.applier.store = body.store.clone();
        self.body = body;
        (self.committed, self.parked) = (mark, parked);
        if let Some(tried) = &tried {
            self.version.set_state(State::retrying(tried));
        }
        self.front.reloaded(tried);
        self.buffer.clear();
        self.next = 0;
        self.feed.begin(standing)?;
        if self.version.is_direct() {
            (self.scanned, self.behind_since) = (mark, None);
            return Ok(());
        }
        // What was looked at beyond the mark holds nothing that is wanted.
        self.scanned = mark.max(*self.body.passed.borrow());
        self.behind_since = (self.scanned > mark).then(Instant::now);
        self.check_end().await
    }

    /// Rows that are ahead of the log are rows of events that are no more. That does not pass by itself.
    async fn check_end(&mut self) -> Flow<()> {
        let end = self.log.durable().borrow().position;
        if self.scanned <= end {
            return Ok(());
        }
        let (what, remedy) = match self.version.has_effects() {
            true => ("it is", "say where it goes on, with `ebb seek`"),
            false => ("its rows are", "rebuild the projection"),
        };
        let reason = format!(
            "{what} at position {} and the log ends at {end}: an older copy of the log was put in place; {remedy}",
            self.scanned
        );
        error!(%reason, "the projection is halted");
        self.version.set_state(State::Halted { reason });
        loop {
            self.next_command().await?;
        }
    }

    async fn project(&mut self) -> Result<std::convert::Infallible, Stop> {
        loop {
            match self.turn().await {
                Err(Stop::Source(error)) => self.without_source(error).await?,
                done => done?,
            }
        }
    }

    /// Does what is next.
    async fn turn(&mut self) -> Flow<()> {
        if *self.stop.borrow() {
            return Err(Stop::Stopped);
        }
        while let Ok(command) = self.commands.try_recv() {
            self.handle(command).await?;
        }
        if self.next == self.buffer.len() {
            self.connect().await?;
        }
        let gate = self.gate_before_the_swap().await;
        let more = self.next < self.buffer.len() || self.fill().await?;
        let after = if self.next < self.buffer.len() { self.step().await? } else { After::GoOn };
        self.swap_if_caught_up(gate).await?;
        match after {
            After::Pause(pause) => self.pause(pause).await,
            After::Halt(tried) => self.halt(&tried).await,
            After::GoOn if !more => self.idle().await,
            After::GoOn => Ok(()),
        }
    }

    /// Sees to it that the feed can give events.
    async fn connect(&mut self) -> Flow<()> {
        let (mut stop, tells) = (self.stop.clone(), self.serves());
        let places = tokio::select! {
            biased;
            () = stopped(&mut stop) => return Err(Stop::Stopped),
            places = self.feed.connect(tells) => places?,
        };
        if places.is_empty() {
            return Ok(());
        }
        // With what was looked at and is not committed: where it goes on is behind all that.
        self.commit(RowBatch { places, mark: Some(self.scanned), ..RowBatch::default() }).await
    }

    /// Waits until the feed may give events again.
    async fn without_source(&mut self, error: BusError) -> Flow<()> {
        self.feed_failures += 1;
        let remedy = match error.kind {
            BusErrorKind::OutOfRange | BusErrorKind::Recreated if self.serves() => {
                "; nothing is left out silently: `ebb topics accept` goes on with what the topic has"
            }
            BusErrorKind::OutOfRange | BusErrorKind::Recreated => {
                "; so the rows can't be made anew, and the version before serves on: a projection of another name begins \
                 with what the topic has"
            }
            _ => "",
        };
        let reason = format!("{error}{remedy}");
        let pause = bus_task::pause(&error, self.feed_failures);
        if error.passes() {
            warn!(%reason, "topics give no records for now; trying again");
            let attempts = self.feed_failures;
            self.version.set_state(State::Retrying { position: None, attempts, error: reason });
        } else {
            error!(%reason, "the projection is halted");
            self.version.set_state(State::Halted { reason });
        }
        let version = self.version.clone();
        let again = async {
            match &version.topics {
                Some(topics) => topics.again.notified().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = again => Ok(()),
            paused = self.pause(pause) => paused,
        }
    }

    /// Reads ahead. False: there is nothing new.
    async fn fill(&mut self) -> Flow<bool> {
        let end = self.feed.end()?;
        if self.scanned >= end {
            return Ok(false);
        }
        self.feed_failures = 0;
        self.wait_for_a_full_batch(end).await?;
        let limits = ReadLimits { items: self.max_events() * READ_AHEAD, bytes: READ_BYTES };
        let batch = self.feed.read(&*self.body.store, self.scanned, limits).await?;
        let duplicates = self.feed.duplicates();
        if duplicates > 0 {
            self.version.count(|counters| counters.duplicates += duplicates);
        }
        if batch.scanned_to <= self.scanned {
            return Ok(false);
        }
        self.scanned = batch.scanned_to;
        self.buffer = batch.events;
        self.next = 0;
        if self.buffer.is_empty() {
            self.nothing_wanted().await?;
        }
        Ok(true)
    }

    /// Where there are few events, and rows were just committed, waits for more; not if a reader waits.
    async fn wait_for_a_full_batch(&mut self, end: Position) -> Flow<()> {
        // A candidate is behind anyway, and may hold up the version that serves.
        let Some(last) = self.last_commit.filter(|_| self.serves()) else { return Ok(()) };
        let due = last + self.program.deployment.spec.batch.max_wait;
        let mut waiting = end.0 - self.scanned.0;
        while waiting < self.max_events() as u64
            && Instant::now() < due
            && self.version.waiting.load(Ordering::Relaxed) == 0
        {
            let version = self.version.clone();
            let command = tokio::select! {
                biased;
                () = stopped(&mut self.stop) => return Err(Stop::Stopped),
                command = self.commands.recv() => Some(command.ok_or(Stop::Stopped)?),
                () = version.nudge.notified() => None,
                () = tokio::time::sleep_until(due) => None,
                grown = self.feed.grown() => grown.map(|()| None)?,
            };
            if let Some(command) = command {
                self.handle(command).await?;
            }
            waiting = self.feed.end()?.0 - self.scanned.0;
        }
        Ok(())
    }

    /// Applies the next batch and commits it; or does what its failure asks for.
    async fn step(&mut self) -> Flow<After> {
        let window = &self.buffer[self.next..];
        let window = &window[..window.len().min(self.max_events())];
        let held = self.applier.module.held_back(window);
        let window = match held {
            Some(HeldBack { index: 0, reason, retry_after }) => {
                self.version.set_state(State::HeldBack { reason });
                return Ok(After::Pause(retry_after));
            }
            Some(HeldBack { index, .. }) => &window[..index],
            None => window,
        };
        let lane_by = &self.program.deployment.spec.lane_by;
        // Keys cost a parse where they come from the data; without lanes and parked keys nobody needs them.
        let keyed = !self.parked.is_empty() || self.program.deployment.lanes().get() > 1;
        let keys: Vec<Text> =
            if keyed { window.iter().map(|event| lane_key(lane_by, event)).collect() } else { Vec::new() };
        let batch = Window::new(window, &keys, &self.parked, &self.front);
        let mut events = &window[..batch.len];
        let selected: Vec<StoredEvent>;
        let mut keys = keys;
        if !batch.queued.is_empty() {
            let kept = || (0..batch.len).filter(|index| batch.queued.binary_search(index).is_err());
            selected = kept().map(|index| events[index].clone()).collect();
            keys = kept().map(|index| keys[index].clone()).collect();
            events = &selected;
        }
        let positions: Vec<Position> = events.iter().map(|event| event.position).collect();
        let collisions = self.splitter.collisions;
        let grace = self.program.deployment.grace();
        let applied = tokio::select! {
            biased;
            () = given_up(&mut self.stop, grace) => return Err(Stop::Stopped),
            applied = self.splitter.apply(&self.applier, events, &keys) => applied,
        };
        let collided = self.splitter.collisions - collisions;
        if collided > 0 {
            self.version.count(|counters| counters.collisions += collided);
        }
        match applied {
            Ok(touches) => {
                let parks = batch.parks(window, lane_by);
                self.pass(batch.len, touches.into_changes(), parks, positions.len()).await
            }
            Err(Failed::Module { index: Some(index @ 1..), reason, poison })
                if self.version.has_effects() =>
            {
                // What stands before it was done, and is not to be done again.
                let at = window.iter().position(|event| event.position == positions[index]);
                let done = batch.before(at.unwrap_or(0));
                let parks = done.parks(window, lane_by);
                self.pass(done.len, Vec::new(), parks, index).await?;
                self.failed(Failed::Module { index: Some(0), reason, poison }, &positions[index..]).await
            }
            Err(failed) => self.failed(failed, &positions).await,
        }
    }

    /// Commits what became of the next so many events, and goes behind them.
    async fn pass(
        &mut self,
        len: usize,
        changes: super::overlay::Changes,
        parks: Vec<ParkChange>,
        applied: usize,
    ) -> Flow<After> {
        let end = self.next + len;
        let last = self.buffer[end - 1].position;
        let mark = if end == self.buffer.len() { self.scanned } else { last };
        self.commit(RowBatch { changes, parks, mark: Some(mark), ..RowBatch::default() }).await?;
        self.next = end;
        self.front.passed(last);
        self.version.count(|counters| {
            counters.events += applied as u64;
            counters.batches += 1;
        });
        self.progressing();
        Ok(After::GoOn)
    }

    async fn failed(&mut self, failed: Failed, positions: &[Position]) -> Flow<After> {
        let attempts = self.attempts(positions);
        self.version.count(|counters| counters.failures += 1);
        match self.front.failed(failed, positions, attempts) {
            Next::Fewer => Ok(After::GoOn),
            Next::Wait(reason) => Err(Stop::Host(reason)),
            Next::Again(tried) => {
                warn!(position = %tried.position, attempts = tried.attempts, reason = %tried.reason, "an event failed");
                let pause = self.backoff.pause(tried.attempts);
                self.remember(tried).await?;
                Ok(After::Pause(pause))
            }
            Next::Park(tried) => self.park(tried).await,
        }
    }

    /// How often the first of these events is tried: not again, once it is older than it may be.
    fn attempts(&self, positions: &[Position]) -> u32 {
        let retry = &self.program.deployment.spec.retry;
        let first = self.buffer.iter().find(|event| Some(&event.position) == positions.first());
        let age = first.map(|event| self.now().since(event.commit.recorded_at)).unwrap_or_default();
        if retry.max_age.is_some_and(|most| age > most) { 1 } else { retry.attempts.get() }
    }

    /// Keeps how often the first event was tried.
    async fn remember(&mut self, tried: Tried) -> Flow<()> {
        self.version.set_state(State::retrying(&tried));
        let mark = self.feed.mark_before(tried.position).filter(|mark| *mark > self.committed);
        let mut parks = Vec::new();
        let mut next = self.next;
        if mark.is_some() {
            let before = self.buffer[next..].iter().take_while(|event| event.position < tried.position);
            parks.extend(before.map(|event| queued(&self.program.deployment.spec.lane_by, event)));
            next += parks.len();
        }
        parks.push(ParkChange::Tried(tried));
        self.commit(RowBatch { parks, mark, ..RowBatch::default() }).await?;
        self.next = next;
        Ok(())
    }

    /// Parks the key of the first event that is not queued already, unless there are too many parked keys.
    async fn park(&mut self, tried: Tried) -> Flow<After> {
        if self.parked.len() >= self.max_parked() {
            self.remember(tried.clone()).await?;
            return Ok(After::Halt(tried));
        }
        let events = &self.buffer[self.next..];
        let Some(index) = events.iter().position(|event| event.position == tried.position) else {
            return Err(Stop::Host(format!("the failing event at {} is gone", tried.position)));
        };
        let lane_by = &self.program.deployment.spec.lane_by;
        let mut key = lane_key(lane_by, &events[index]);
        if let Some(topic) = &self.program.deployment.spec.dead_letter {
            // A version that is built beside the one that serves meets again what that one has sent.
            let was_sent = !self.serves()
                && !self.program.deployment.spec.source.is_direct()
                && tried.position <= self.slot.serving().passed();
            if !was_sent {
                // The broker has it before anything here goes on: a crash in between sends it twice, and never not at all.
                let record = dead_letter::record(
                    topic,
                    &self.deps.app,
                    self.name(),
                    &events[index],
                    &tried,
                    self.now(),
                );
                self.unless_stopped(self.deps.publish(record))
                    .await?
                    .map_err(|error| Stop::Host(format!("no dead letter could be sent: {error}")))?;
                crash_point(Point::DeadLetterAfterSend);
            }
            key = alone(&key, tried.position);
        }
        let mut parks: Vec<ParkChange> = events[..index].iter().map(|event| queued(lane_by, event)).collect();
        error!(position = %tried.position, %key, attempts = tried.attempts, reason = %tried.reason, "parked");
        parks.push(ParkChange::Park {
            key: key.detached(),
            position: tried.position,
            reason: tried.reason,
            attempts: tried.attempts,
            at: self.now(),
        });
        let after = self.pass(index + 1, Vec::new(), parks, 0).await?;
        self.parked.insert(&key);
        Ok(after)
    }

    /// Waits until a parked key was retried or skipped.
    async fn halt(&mut self, tried: &Tried) -> Flow<()> {
        let max = self.max_parked();
        let reason = format!(
            "{max} keys are parked, as many as `max-parked` allows, and the event at position {} fails: {}; retry or \
             skip parked keys, or deploy a module that can apply them",
            tried.position, tried.reason
        );
        error!(%reason, "the projection is halted");
        while self.parked.len() >= max {
            self.version.set_state(State::Halted { reason: reason.clone() });
            self.next_command().await?;
        }
        info!("the projection goes on");
        Ok(())
    }

    /// Carries out the next command.
    pub(super) async fn next_command(&mut self) -> Flow<()> {
        let version = self.version.clone();
        let command = tokio::select! {
            biased;
            () = stopped(&mut self.stop) => return Err(Stop::Stopped),
            () = version.doubt.notified() => return Err(unreadable()),
            command = self.commands.recv() => command,
        };
        match command {
            Some(command) => self.handle(command).await,
            None => Err(Stop::Stopped),
        }
    }

    /// Waits, and carries out commands meanwhile.
    async fn pause(&mut self, pause: Duration) -> Flow<()> {
        let until = Instant::now() + pause;
        loop {
            tokio::select! {
                biased;
                () = stopped(&mut self.stop) => return Err(Stop::Stopped),
                command = self.commands.recv() => match command {
                    Some(command) => self.handle(command).await?,
                    None => return Err(Stop::Stopped),
                },
                () = tokio::time::sleep_until(until) => return Ok(()),
            }
        }
    }

    /// There is nothing to do until more comes. Meanwhile the mark is brought up to date, and what is not used is
    /// closed.
    async fn idle(&mut self) -> Flow<()> {
        self.version.set_state(State::Live);
        self.buffer = Vec::new();
        self.next = 0;
        loop {
            let mark_at = self.behind_since.map(|since| since + MARK_AFTER);
            let wake_at = [mark_at, self.release_at].into_iter().flatten().min();
            let version = self.version.clone();
            tokio::select! {
                biased;
                () = stopped(&mut self.stop) => return Err(Stop::Stopped),
                command = self.commands.recv() => match command {
                    Some(command) => self.handle(command).await?,
                    None => return Err(Stop::Stopped),
                },
                () = version.doubt.notified() => return Err(unreadable()),
                grown = self.feed.grown() => return grown,
                () = version.nudge.notified() => if self.release_at.is_none() {
                    self.release_at = Some(Instant::now() + RELEASE_AFTER);
                },
                () = sleep_until(wake_at) => {
                    let now = Instant::now();
                    if mark_at.is_some_and(|at| at <= now) {
                        self.commit_mark().await?;
                    } else if version.was_in_use() {
                        self.release_at = Some(now + RELEASE_AFTER);
                    } else {
                        self.release().await?;
                    }
                }
            }
        }
    }

    async fn release(&mut self) -> Flow<()> {
        debug!("idle; closing its files");
        let store = self.store();
        super::blocking(move || {
            store.release();
            Ok(())
        })
        .await?;
        self.release_at = None;
        Ok(())
    }

    /// Events were looked at and none is wanted: the mark follows in memory at once, and on disk now and then.
    async fn nothing_wanted(&mut self) -> Flow<()> {
        let gate = self.gate_before_progress().await?;
        self.publish(self.scanned, self.feed.places_at(self.scanned));
        drop(gate);
        self.behind_since.get_or_insert_with(Instant::now);
        if self.scanned.0 - self.committed.0 >= MARK_EVERY || self.feed.is_full() {
            self.commit_mark().await?;
        }
        Ok(())
    }

    async fn commit_mark(&mut self) -> Flow<()> {
        self.commit(RowBatch { mark: Some(self.scanned), ..RowBatch::default() }).await
    }

    /// Commits a batch. It is never given up halfway: the next to write must know what is there.
    pub(super) async fn commit(&mut self, mut batch: RowBatch) -> Flow<()> {
        self.feed.complete(&mut batch);
        let gate = self.gate_before_progress().await?;
        let (mark, parks_change) = (batch.mark, !batch.parks.is_empty());
        let store = self.store();
        let committed = super::blocking(move || {
            store.commit(batch)?;
            parks_change.then(|| Parks::of(&*store)).transpose()
        });
        let parks = committed.await?;
        if let Some(parks) = parks {
            *self.body.parks.lock() = parks;
        }
        if let Some(mark) = mark {
            self.committed = mark;
            self.feed.committed(mark, gate.is_some());
            self.publish(mark, self.feed.places_at(mark));
            self.behind_since = None;
        }
        drop(gate);
        let now = Instant::now();
        (self.last_commit, self.release_at) = (Some(now), Some(now + RELEASE_AFTER));
        Ok(())
    }

    fn publish(&self, passed: Position, places: Vec<Place>) {
        *self.body.places.lock() = places;
        self.body.passed.send_if_modified(|known| {
            let moved = passed > *known;
            *known = passed.max(*known);
            moved
        });
    }

    fn progressing(&self) {
        if self.version.state() != State::CatchingUp && self.lag() > self.max_events() as u64 {
            self.version.set_state(State::CatchingUp);
        } else if matches!(
            self.version.state(),
            State::Retrying { .. } | State::HeldBack { .. } | State::Halted { .. }
        ) {
            self.version.set_state(if self.lag() == 0 { State::Live } else { State::CatchingUp });
        }
    }

    fn lag(&self) -> u64 {
        self.version.lag(self.log.durable().borrow().position)
    }

    /// Waits for work that may be given up, unless the projector is to end.
    pub(super) async fn unless_stopped<T>(&self, work: impl Future<Output = T>) -> Flow<T> {
        let mut stop = self.stop.clone();
        tokio::select! {
            biased;
            () = stopped(&mut stop) => Err(Stop::Stopped),
            done = work => Ok(done),
        }
    }

    pub(super) fn store(&self) -> Arc<dyn ProjectionStore> {
        self.body.store.clone()
    }

    pub(super) fn mark(&self) -> Position {
        self.committed
    }

    pub(super) fn max_events(&self) -> usize {
        self.program.deployment.window().get()
    }

    fn max_parked(&self) -> u64 {
        self.program.deployment.spec.max_parked
    }

    pub(super) fn now(&self) -> Timestamp {
        self.deps.clock.now()
    }

    pub(super) fn app(&self) -> &AppName {
        &self.deps.app
    }

    pub(super) fn name(&self) -> &ProjectionName {
        &self.slot.name
    }
}

/// An event of a parked key queues.
fn queued(lane_by: &LaneBy, event: &StoredEvent) -> ParkChange {
    ParkChange::Queue { key: lane_key(lane_by, event), position: event.position }
}

/// Opening the rows again finds out whether they are damaged, and has them built anew if they are.
fn unreadable() -> Stop {
    Stop::Host("a reader could not read the rows; opening them again".into())
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // Whoever could stop it is gone: that is a stop as well.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Until work is given up: so long after it was told to end.
async fn given_up(stop: &mut watch::Receiver<bool>, grace: Duration) {
    stopped(stop).await;
    if !grace.is_zero() {
        tokio::time::sleep(grace).await;
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
