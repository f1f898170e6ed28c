//! Replay: recorded commands are decided again, by the module that serves or by a candidate, and what differs from
//! history is reported. This is what makes a change provable before it ships.
//!
//! Each recorded decision is made on the recorded history: the aggregate folds the events that were recorded before
//! the command, never what the candidate would have decided instead. So each difference stands for itself.
//!
//! A deterministic module decides the same whoever shares its instance. So each decision is made twice: in an instance
//! of its own ([`Isolation::Fresh`]), and in one instance that many streams share in a shuffled order that no clock
//! and no disk has a part in ([`Isolation::Shared`]). State that leaks from one stream into another shows as a
//! difference between the two, even where a candidate was meant to differ from history.

mod decider;
mod order;
mod report;
#[cfg(test)]
mod tests;

pub use report::{
    CommandSummary, Difference, DifferenceGroup, DifferenceKind, EventView, FieldChange, OutcomeView, Place,
    ReplayReport, Skipped,
};

use crate::app::App;
use crate::bundle::Bundle;
use crate::commands::{AggregateFunction, list};
use crate::deploy::{self, DeployError, Release};
use decider::{Decider, Verdict};
use ebb_domain::commit::{Commit, CommitNumber};
use ebb_domain::digest::Digest;
use ebb_domain::limits::InstancePolicy;
use ebb_domain::name::{AggregateName, AppName};
use ebb_domain::port::guest::{CallError, CommandModule, Engine, FunctionSpec, TriggerKind};
use ebb_domain::port::log::{EventLog, ReadError, ReadLimits};
use ebb_domain::stream::StreamId;
use ebb_domain::text::Text;
use ebb_domain::time::Timestamp;
use report::Collector;
use serde::Serialize;
use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Commits that are read, shuffled and decided at once.
const WINDOW: ReadLimits = ReadLimits { items: 4096, bytes: 4 << 20 };

/// How decisions are isolated from each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Isolation {
    /// In one instance, which streams share in a shuffled order. State that leaks between them shows.
    Shared,
    /// Each decision in an instance of its own, on state folded from the start.
    Fresh,
    /// Each decision in both ways, which must agree.
    #[default]
    Both,
}

/// What to replay, and how.
#[derive(Clone, Debug)]
pub struct ReplayOptions {
    /// Only this aggregate; none: all.
    pub aggregate: Option<AggregateName>,
    /// How decisions are isolated from each other.
    pub isolation: Isolation,
    /// Only commands recorded at this time or later.
    pub since: Option<Timestamp>,
    /// Only commands recorded before this time.
    pub until: Option<Timestamp>,
    /// Only this part of the streams, above 0 and up to 1, chosen by `seed`. A stream is replayed whole or not at all.
    pub sample: f64,
    /// What shuffles and samples: the same seed, the same order.
    pub seed: u64,
    /// Differences reported one by one; the rest is counted.
    pub max_differences: usize,
}

impl Default for ReplayOptions {
    fn default() -> Self {
        Self {
            aggregate: None,
            isolation: Isolation::default(),
            since: None,
            until: None,
            sample: 1.0,
            seed: 1,
            max_differences: 100,
        }
    }
}

impl ReplayOptions {
    fn wants(&self, stream: &StreamId) -> bool {
        if self.sample >= 1.0 {
            return true;
        }
        // A digest and not std's hasher: the same streams with the next release's compiler, too.
        let digest = Digest::of_parts([&self.seed.to_be_bytes()[..], stream.as_str().as_bytes()]);
        let [a, b, c, d, ..] = digest.0;
        f64::from(u32::from_be_bytes([a, b, c, d])) < self.sample * (f64::from(u32::MAX) + 1.0)
    }
}

/// How far a replay has got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ReplayProgress {
    /// Commits looked at.
    pub done: u64,
    /// Commits in all.
    pub total: u64,
    /// Decisions that differ.
    pub differences: u64,
}

/// Why a replay could not be made.
#[derive(Debug, Error)]
pub enum ReplayError {
    /// The candidate is not deployable.
    #[error(transparent)]
    Candidate(#[from] DeployError),
    /// The app has no such aggregate.
    #[error("there is no aggregate `{aggregate}` to replay; there is {known}")]
    UnknownAggregate {
        /// As asked for.
        aggregate: AggregateName,
        /// Those there are, for people.
        known: String,
    },
    /// One replay of an app at a time: each takes what the machine has.
    #[error("another replay of this app is running")]
    Busy,
    /// The log could not be read.
    #[error(transparent)]
    Log(#[from] ReadError),
    /// A module could not be used.
    #[error(transparent)]
    Module(#[from] CallError),
    /// Something on our side.
    #[error("the replay broke off: {0}")]
    Broken(String),
}

impl App {
    /// Decides recorded commands again, with a candidate or with what serves. Changes nothing, and runs in instances of
    /// its own. `progress` is called now and then. Dropping the future ends it.
    ///
    /// # Errors
    /// The candidate is not deployable, another replay is running, or the log could not be read. Differences are not
    /// errors.
    pub async fn replay(
        &self,
        candidate: Option<Bundle>,
        options: ReplayOptions,
        progress: impl FnMut(ReplayProgress) + Send,
    ) -> Result<ReplayReport, ReplayError> {
        let _one_at_a_time = self.replaying().try_lock().map_err(|_| ReplayError::Busy)?;
        let engine = &self.deps().engine;
        let release = match &candidate {
            Some(bundle) => Release::given(deploy::check(engine, bundle).await?),
            None => self.release(),
        };
        let aggregates = &release.manifest.aggregates;
        if let Some(aggregate) = &options.aggregate
            && !aggregates.contains_key(aggregate)
        {
            let known = list(aggregates.keys());
            return Err(ReplayError::UnknownAggregate { aggregate: aggregate.clone(), known });
        }
        let (engine, app) = (engine.clone(), self.name().clone());
        let subjects = tokio::task::spawn_blocking(move || {
            let subject = |aggregate| {
                let subject = Subject::new(&engine, &app, release.aggregate(&engine, aggregate)?)?;
                Ok::<_, ReplayError>((aggregate.text().clone(), Arc::new(subject)))
            };
            release.manifest.aggregates.keys().map(subject).collect::<Result<Subjects, _>>()
        });
        let subjects = subjects.await.map_err(|error| ReplayError::Broken(error.to_string()))??;
        replay(self.log().clone(), subjects, options, progress).await
    }
}

/// An aggregate's function, with modules to decide in.
struct Subject {
    function: AggregateFunction,
    shared: Arc<dyn CommandModule>,
    fresh: Arc<dyn CommandModule>,
}

type Subjects = HashMap<Text, Arc<Subject>>;

impl Subject {
    fn new(
        engine: &Arc<dyn Engine>,
        app: &AppName,
        function: AggregateFunction,
    ) -> Result<Self, ReplayError> {
        let module = |isolation: &str, instances: InstancePolicy| {
            engine.commands(FunctionSpec {
                app: app.clone(),
                function: format!("replay.{isolation}.{}", function.spec.name).into(),
                trigger: TriggerKind::Other,
                module: function.digest,
                limits: function.spec.limits,
                instances: InstancePolicy { idle: Duration::from_secs(1), ..instances },
                capabilities: Default::default(),
                secrets: Arc::default(),
            })
        };
        let own = function.spec.instances;
        // How many aggregates share an instance, and for how long, stays as it is in service: both bound its memory.
        let shared = module("shared", InstancePolicy { max: NonZeroU32::MIN, ..own })?;
        let alone = InstancePolicy { reuse: NonZeroU32::MIN, aggregates: NonZeroU32::MIN, warm: 0, ..own };
        let fresh = module("fresh", alone)?;
        Ok(Self { function, shared, fresh })
    }
}

/// Decides what a log has again.
async fn replay(
    log: Arc<dyn EventLog>,
    subjects: Subjects,
    options: ReplayOptions,
    mut progress: impl FnMut(ReplayProgress) + Send,
) -> Result<ReplayReport, ReplayError> {
    let started = Instant::now();
    let end = log.durable().borrow().commit;
    let (first, last) = range(&*log, &options, end).await?;
    let total = last.0.saturating_sub(first.0);
    let mut deciders = Deciders::new(&log, &subjects, options.isolation);
    let mut collector = Collector::new(&options);
    let mut after = first;
    let mut window_number = 0;
    while after < last {
        let mut commits = log.read_commits(after, WINDOW).await?;
        commits.retain(|commit| commit.header.number <= last);
        let Some(read_to) = commits.last().map(|commit| commit.header.number) else { break };
        commits.retain(|commit| collector.takes(commit, &options));
        let commits: Arc<[Commit]> = commits.into();
        let order = order::shuffled(&commits, active(&subjects), options.seed ^ window_number);
        deciders.decide(&commits, order, &mut collector).await?;
        (after, window_number) = (read_to, window_number + 1);
        let differences = collector.different();
        progress(ReplayProgress { done: after.0 - first.0, total, differences });
    }
    Ok(collector.finish(started.elapsed()))
}

/// Streams that take turns in an instance at a time: half of those that find room in it, so that each is still there
/// when its turn comes.
fn active(subjects: &Subjects) -> usize {
    let room = subjects.values().map(|subject| subject.function.spec.instances.aggregates.get()).min();
    (room.unwrap_or(2) as usize / 2).max(2)
}

/// The commits of a span of time: those behind the first number, up to the second.
async fn range(
    log: &dyn EventLog,
    options: &ReplayOptions,
    end: CommitNumber,
) -> Result<(CommitNumber, CommitNumber), ReplayError> {
    let first = match options.since {
        Some(since) => last_before(log, since, end).await?,
        None => CommitNumber(0),
    };
    let last = match options.until {
        Some(until) => last_before(log, until, end).await?,
        None => end,
    };
    Ok((first, last.max(first)))
}

/// The last commit that was recorded before a time; recorded times never decrease, so it is found by halving.
async fn last_before(
    log: &dyn EventLog,
    time: Timestamp,
    end: CommitNumber,
) -> Result<CommitNumber, ReplayError> {
    let (mut low, mut high) = (0, end.0);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        let commit = log.commit(CommitNumber(middle)).await?;
        let commit = commit.ok_or_else(|| {
            ReadError::Corrupt(format!("commit {middle} is missing, and the log goes on to commit {end}"))
        })?;
        if commit.header.recorded_at < time { low = middle } else { high = middle - 1 }
    }
    Ok(CommitNumber(low))
}

/// One that decides on shared state, and several that don't: fresh decisions have nothing to do with each other.
struct Deciders {
    shared: Option<Decider>,
    fresh: Vec<Decider>,
}

impl Deciders {
    fn new(log: &Arc<dyn EventLog>, subjects: &Subjects, isolation: Isolation) -> Self {
        let decider = |is_fresh| Decider::new(log.clone(), subjects.clone(), is_fresh);
        // A node that serves keeps cores for that.
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let several = (cores / 2).clamp(1, 16);
        Self {
            shared: (isolation != Isolation::Fresh).then(|| decider(false)),
            fresh: match isolation {
                Isolation::Shared => Vec::new(),
                Isolation::Fresh | Isolation::Both => (0..several).map(|_| decider(true)).collect(),
            },
        }
    }

    /// Decides a window of commits, side by side where that changes nothing.
    async fn decide(
        &mut self,
        commits: &Arc<[Commit]>,
        order: Vec<usize>,
        collector: &mut Collector,
    ) -> Result<(), ReplayError> {
        // Ends with this future: what nobody waits for any more is not decided.
        let mut running: JoinSet<Result<Decided, ReplayError>> = JoinSet::new();
        let share = order.len().div_ceil(self.fresh.len().max(1)).max(1);
        let shares: Vec<Vec<usize>> = order.chunks(share).map(<[usize]>::to_vec).collect();
        for (decider, order) in self.fresh.drain(..).zip(shares.into_iter().chain(std::iter::repeat(vec![])))
        {
            running.spawn(decide(decider, commits.clone(), order));
        }
        if let Some(decider) = self.shared.take() {
            running.spawn(decide(decider, commits.clone(), order));
        }
        let (mut shared, mut fresh) = (HashMap::new(), HashMap::new());
        while let Some(decided) = running.join_next().await {
            let (decider, verdicts) = decided.map_err(|error| ReplayError::Broken(error.to_string()))??;
            if decider.is_fresh() {
                fresh.extend(verdicts);
                self.fresh.push(decider);
            } else {
                shared.extend(verdicts);
                self.shared = Some(decider);
            }
        }
        for (index, commit) in commits.iter().enumerate() {
            collector.add(commit, shared.remove(&index), fresh.remove(&index));
        }
        Ok(())
    }
}

type Decided = (Decider, Vec<(usize, Verdict)>);

async fn decide(
    mut decider: Decider,
    commits: Arc<[Commit]>,
    order: Vec<usize>,
) -> Result<Decided, ReplayError> {
    let mut verdicts = Vec::with_capacity(order.len());
    for index in order {
        verdicts.push((index, decider.commit(&commits[index]).await?));
    }
    Ok((decider, verdicts))
}
