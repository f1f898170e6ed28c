//! Replay: recorded commands are decided again, by the module that serves or by a candidate, and what differs from
//! history is reported. This is what makes a change provable before it ships.
//!
//! Each recorded decision is made on the recorded history: the aggregate folds the events that were recorded before
//! the command, never what the candidate would have decided instead. So each difference stands for itself.

use crate::app::App;
use crate::bundle::Bundle;
use crate::commands::{AggregateFunction, list};
use crate::deploy::{self, DeployError, functions};
use ebb_domain::commit::{CommandId, Commit, CommitNumber, Outcome, Refusal};
use ebb_domain::event::Revision;
use ebb_domain::name::{AggregateName, CommandName};
use ebb_domain::port::guest::{Aggregate, CallError, CommandModule, FunctionSpec, GuestCommand, PastEvent};
use ebb_domain::port::log::{ReadError, ReadLimits};
use ebb_domain::stream::StreamId;
use ebb_domain::text::Text;
use lru::LruCache;
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tokio::time::Instant;

/// Commits read at once.
const PAGE: ReadLimits = ReadLimits { items: 4096, bytes: 4 << 20 };

/// Aggregates kept folded at once in shared instances; others are folded again from the log when they come up.
const WARM: NonZeroUsize = NonZeroUsize::new(2048).unwrap();

/// How decisions are isolated from each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Isolation {
    /// As in service: aggregates share instances.
    #[default]
    Shared,
    /// Each decision in an instance of its own, on state folded from the start: what must come out the same if the
    /// module is deterministic.
    Fresh,
}

/// What to replay, and how.
#[derive(Clone, Debug)]
pub struct ReplayOptions {
    /// Only this aggregate; none: all.
    pub aggregate: Option<AggregateName>,
    /// How decisions are isolated from each other.
    pub isolation: Isolation,
    /// Differences reported one by one; the rest is counted.
    pub max_differences: usize,
}

impl Default for ReplayOptions {
    fn default() -> Self {
        Self { aggregate: None, isolation: Isolation::Shared, max_differences: 100 }
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

/// What a replay found.
#[derive(Clone, Debug, Default, Serialize, serde::Deserialize)]
pub struct ReplayReport {
    /// Decisions made again.
    pub commands: u64,
    /// Commits without a recorded command body, or of aggregates that were not asked for.
    pub skipped: u64,
    /// Decisions that came out the same, byte for byte.
    pub identical: u64,
    /// Decisions that did not.
    pub different: u64,
    /// Streams with at least one difference.
    pub streams_affected: u64,
    /// By `aggregate/command`.
    pub by_command: BTreeMap<String, CommandSummary>,
    /// The first differences, in order of commit.
    pub differences: Vec<Difference>,
    /// How long it took, in milliseconds.
    pub elapsed_ms: u64,
}

/// Decisions of one command.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct CommandSummary {
    /// Made again.
    pub commands: u64,
    /// Came out differently.
    pub different: u64,
}

/// One decision that came out differently.
#[derive(Clone, Debug, PartialEq, Serialize, serde::Deserialize)]
pub struct Difference {
    /// The stream.
    pub stream: String,
    /// The commit.
    pub commit: u64,
    /// Where the stream was; none before its first event.
    pub revision: Option<u64>,
    /// The command's name.
    pub command: String,
    /// The command's id.
    pub command_id: CommandId,
    /// The command's body.
    pub data: serde_json::Value,
    /// What was decided then.
    pub recorded: OutcomeView,
    /// What is decided now.
    pub replayed: OutcomeView,
}

/// An outcome, for a report.
#[derive(Clone, Debug, PartialEq, Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutcomeView {
    /// These events.
    Events(Vec<EventView>),
    /// A domain "no".
    Refused {
        /// Its code.
        code: String,
        /// For people.
        message: String,
    },
    /// The module failed, or decided what the manifest does not allow.
    Failed(String),
}

/// An event, for a report.
#[derive(Clone, Debug, PartialEq, Serialize, serde::Deserialize)]
pub struct EventView {
    /// Its type.
    #[serde(rename = "type")]
    pub event_type: String,
    /// Its data; text that is not JSON as a string.
    pub data: serde_json::Value,
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
    /// The log could not be read.
    #[error(transparent)]
    Log(#[from] ReadError),
    /// A module could not be used.
    #[error(transparent)]
    Module(#[from] CallError),
}

impl App {
    /// Decides every recorded command again, with a candidate or with what serves. Changes nothing, and runs in
    /// instances of its own. `progress` is called now and then.
    ///
    /// # Errors
    /// The candidate is not deployable, or the log could not be read. Differences are not errors.
    pub async fn replay(
        &self,
        candidate: Option<Bundle>,
        options: ReplayOptions,
        mut progress: impl FnMut(ReplayProgress) + Send,
    ) -> Result<ReplayReport, ReplayError> {
        let started = Instant::now();
        let engine = &self.deps().engine;
        let checked = match &candidate {
            Some(bundle) => deploy::check(engine, bundle).await?,
            None => deploy::restore(engine, &self.deps().storage, &self.deployment()).await?,
        };
        let mut modules = HashMap::new();
        let all = functions(engine, &checked)?.aggregates;
        let known = list(all.iter().map(|function| function.spec.name.clone()));
        for function in all {
            if options.aggregate.as_ref().is_none_or(|wanted| *wanted == function.spec.name) {
                let module = engine.commands(spec(self.name().clone(), &function, options.isolation))?;
                modules.insert(function.spec.name.text().clone(), (function, module));
            }
        }
        if let (Some(aggregate), true) = (&options.aggregate, modules.is_empty()) {
            return Err(ReplayError::UnknownAggregate { aggregate: aggregate.clone(), known });
        }
        let mut replay = Replay {
            app: self,
            modules,
            options,
            warm: LruCache::new(WARM),
            affected: Default::default(),
            report: ReplayReport::default(),
        };
        let total = self.log().durable().borrow().commit.0;
        let mut after = CommitNumber(0);
        while after.0 < total {
            let commits = self.log().read_commits(after, PAGE).await?;
            let Some(last) = commits.last().map(|commit| commit.header.number) else { break };
            for commit in &commits {
                replay.commit(commit).await?;
            }
            after = last;
            progress(ReplayProgress { done: last.0.min(total), total, differences: replay.report.different });
        }
        let mut report = replay.report;
        report.streams_affected = replay.affected.len() as u64;
        report.elapsed_ms = started.elapsed().as_millis() as u64;
        Ok(report)
    }
}

fn spec(app: ebb_domain::name::AppName, function: &AggregateFunction, isolation: Isolation) -> FunctionSpec {
    let mut instances = function.spec.instances;
    if isolation == Isolation::Fresh {
        instances.reuse = NonZeroU32::MIN;
        instances.aggregates = NonZeroU32::MIN;
    }
    instances.idle = Duration::from_secs(1);
    FunctionSpec {
        app,
        function: format!("replay.{}", function.spec.name).into(),
        module: function.digest,
        limits: function.spec.limits,
        instances,
    }
}

struct Replay<'a> {
    app: &'a App,
    modules: HashMap<Text, (AggregateFunction, Arc<dyn CommandModule>)>,
    options: ReplayOptions,
    warm: LruCache<StreamId, Folded>,
    affected: std::collections::HashSet<StreamId>,
    report: ReplayReport,
}

/// An aggregate folded from what was recorded, up to a revision.
struct Folded {
    aggregate: Box<dyn Aggregate>,
    revision: Option<Revision>,
}

impl Replay<'_> {
    async fn commit(&mut self, commit: &Commit) -> Result<(), ReplayError> {
        let header = &commit.header;
        let recorded = header.command.as_ref().and_then(|command| Some((command, command.data.clone()?)));
        let replayable = self.modules.contains_key(header.stream.category().as_bytes());
        let (Some((command, data)), true) = (recorded, replayable) else {
            self.report.skipped += 1;
            return Ok(());
        };
        let guest_command = GuestCommand {
            id: header.command_id,
            name: CommandName::trusted(command.name.clone()),
            data: data.clone(),
            actor: header.actor.clone(),
            time: command.time,
            correlation_id: header.correlation_id.clone(),
        };
        let recorded = match &header.refusal {
            Some(refusal) => refused(refusal),
            None => {
                let events = commit.events.iter();
                OutcomeView::Events(events.map(|event| view(&event.event_type, &event.data)).collect())
            }
        };
        let before = header.first_revision.0.checked_sub(1).map(Revision);
        let decided = self.decide(&header.stream, before, &guest_command).await?;
        let same = is_same(commit, &decided);
        self.count(commit, command.name.as_str(), same);
        if !same {
            self.affected.insert(header.stream.detached());
            if self.report.differences.len() < self.options.max_differences {
                self.report.differences.push(Difference {
                    stream: header.stream.to_string(),
                    commit: header.number.0,
                    revision: before.map(|revision| revision.0),
                    command: command.name.to_string(),
                    command_id: header.command_id,
                    data: json_or_text(&data),
                    recorded,
                    replayed: decided_view(&decided),
                });
            }
        }
        self.fold(commit).await;
        Ok(())
    }

    fn count(&mut self, commit: &Commit, command: &str, same: bool) {
        let name = format!("{}/{command}", commit.header.stream.category());
        let summary = self.report.by_command.entry(name).or_default();
        summary.commands += 1;
        self.report.commands += 1;
        if same {
            self.report.identical += 1;
        } else {
            self.report.different += 1;
            summary.different += 1;
        }
    }

    /// What is decided now, on the history before the command.
    async fn decide(
        &mut self,
        stream: &StreamId,
        before: Option<Revision>,
        command: &GuestCommand,
    ) -> Result<Result<Outcome, String>, ReplayError> {
        for _ in 0..2 {
            let mut folded = match self.warm.pop(stream).filter(|folded| folded.revision == before) {
                Some(folded) => folded,
                None => match self.load(stream, before).await? {
                    Ok(folded) => folded,
                    Err(error) => return Ok(Err(error.to_string())),
                },
            };
            let (function, _) = &self.modules[stream.category().as_bytes()];
            match folded.aggregate.decide(command).await {
                Ok(decision) => {
                    let outcome = function.outcome(decision).map_err(|kind| kind.to_string());
                    if self.options.isolation == Isolation::Shared {
                        self.warm.put(stream.detached(), folded);
                    }
                    return Ok(outcome);
                }
                Err(CallError::InstanceLost) => {}
                Err(error) => return Ok(Err(error.to_string())),
            }
        }
        Ok(Err(CallError::InstanceLost.to_string()))
    }

    /// Folds a stream up to a revision.
    async fn load(
        &mut self,
        stream: &StreamId,
        to: Option<Revision>,
    ) -> Result<Result<Folded, CallError>, ReplayError> {
        let module = self.modules[stream.category().as_bytes()].1.clone();
        let aggregate = loop {
            match module.open(stream, None).await {
                // Its slots are all ours: let one go.
                Err(CallError::Overloaded { .. }) if self.warm.pop_lru().is_some() => {}
                Ok(aggregate) => break aggregate,
                Err(error) => return Ok(Err(error)),
            }
        };
        let mut folded = Folded { aggregate, revision: None };
        while folded.revision < to {
            let from = Revision::after(folded.revision);
            let mut events = self.app.log().read_stream(stream, from, ReadLimits::PAGE).await?;
            events.retain(|event| Some(event.revision) <= to);
            let Some(last) = events.last().map(|event| event.revision) else { break };
            let past: Vec<PastEvent> = events.iter().map(PastEvent::from).collect();
            if let Err(error) = folded.aggregate.apply(&past).await {
                return Ok(Err(error));
            }
            folded.revision = Some(last);
        }
        Ok(Ok(folded))
    }

    /// Folds what was recorded, whatever was decided now.
    async fn fold(&mut self, commit: &Commit) {
        let stream = &commit.header.stream;
        let Some(last) = commit.events.last().map(|event| event.revision) else { return };
        let Some(mut folded) = self.warm.pop(stream) else { return };
        let past: Vec<PastEvent> = commit.events.iter().map(PastEvent::from).collect();
        // An aggregate that can't fold history is dropped; the next decision of its stream says why.
        if folded.aggregate.apply(&past).await.is_ok() {
            folded.revision = Some(last);
            self.warm.put(stream.detached(), folded);
        }
    }
}

/// Byte for byte: types, data, and the whole refusal.
fn is_same(commit: &Commit, decided: &Result<Outcome, String>) -> bool {
    match (&commit.header.refusal, decided) {
        (Some(recorded), Ok(Outcome::Refused(refusal))) => recorded == refusal,
        (None, Ok(Outcome::Events(events))) => {
            commit.events.len() == events.len()
                && commit
                    .events
                    .iter()
                    .zip(events)
                    .all(|(then, now)| then.event_type == now.event_type && then.data == now.data)
        }
        _ => false,
    }
}

fn decided_view(decided: &Result<Outcome, String>) -> OutcomeView {
    match decided {
        Ok(Outcome::Events(events)) => {
            OutcomeView::Events(events.iter().map(|event| view(&event.event_type, &event.data)).collect())
        }
        Ok(Outcome::Refused(refusal)) => refused(refusal),
        Err(problem) => OutcomeView::Failed(problem.clone()),
    }
}

fn refused(refusal: &Refusal) -> OutcomeView {
    OutcomeView::Refused { code: refusal.code.to_string(), message: refusal.message.to_string() }
}

fn view(event_type: &str, data: &[u8]) -> EventView {
    EventView { event_type: event_type.to_owned(), data: json_or_text(data) }
}

fn json_or_text(data: &[u8]) -> serde_json::Value {
    serde_json::from_slice(data).unwrap_or_else(|_| String::from_utf8_lossy(data).into())
}
