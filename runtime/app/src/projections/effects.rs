//! Event functions: what follows the log to do something, instead of turning it into rows.
//!
//! The projector runs them as it runs a projection that writes nothing: mark, retry, bisecting and parking are its own.
//! Different is this:
//!
//! * An event is given **at least once**. A call that was cut short, or a batch of which something failed, is given again
//!   from the first event on that is not known to be done; the event's id tells the guest which those are.
//! * It is never built anew: whatever changes of it, it goes on where it is.
//! * If how far it had got is lost, it halts until somebody says where it goes on.
//!
//! A function is an HTTP function whose caller is the platform: a `POST` of events in the CloudEvents JSON batch format
//! (HTTP protocol binding 1.0.2, section 3.3). So it is written in any language that HTTP functions are, and tried with
//! curl.

use super::lanes::lane_key;
use super::projector::{Flow, Projector};
use super::service::{ProjectionDeployment, ProjectionDeps};
use super::status::{Kind, State};
use super::version::Body;
use crate::app::App;
use crate::own_app::{CalledApp, Cause};
use crate::topics::Commands;
use bytes::Bytes;
use ebb_domain::digest::Digest;
use ebb_domain::event::{Position, StoredEvent, is_json};
use ebb_domain::manifest::function::Variable;
use ebb_domain::manifest::{
    AggregateSpec, Beginning, Capabilities, EventTrigger, FunctionSpec as Manifested, LaneBy, ProjectionSpec,
    Source,
};
use ebb_domain::name::{AggregateName, AppName, ProjectionName};
use ebb_domain::port::Future;
use ebb_domain::port::guest::{
    ApplyError, CallError, FunctionSpec, HeldBack, HttpBody, HttpCall, HttpFunction, ProjectionModule,
    SharedRows,
};
use ebb_domain::port::log::EventLog;
use ebb_domain::port::models::RowBatch;
use ebb_domain::port::secrets::Secret;
use ebb_domain::text::Text;
use ebb_domain::topic::{CommandSource, TopicSource, Via};
use futures_util::future::join_all;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tracing::error;

/// What events are sent as.
const BATCH: HeaderValue = HeaderValue::from_static("application/cloudevents-batch+json; charset=utf-8");

/// The longest answer.
const MAX_ANSWER: u64 = 1 << 20;

/// What calls that are under way may still take: what they do can't be taken back, and would be done again.
const GRACE: Duration = Duration::from_secs(5);

/// What is quoted of an answer that says why.
const QUOTED: usize = 500;

/// What something has instead of rows.
#[derive(Clone, Debug)]
pub struct Effects {
    /// Where it begins.
    pub from: Beginning,
    /// What becomes of events.
    pub effect: Effect,
}

/// What becomes of events that nobody makes rows of.
#[derive(Clone, Debug)]
pub enum Effect {
    /// A function is given them.
    Function {
        /// What it may reach.
        capabilities: Arc<Capabilities>,
        /// Its secrets.
        secrets: Arc<[(Variable, Secret)]>,
    },
    /// They are records of topics, and commands.
    Commands(AggregateName, Arc<CommandSource>),
}

impl ProjectionDeployment {
    /// An event function, as what follows the log.
    pub(crate) fn of_function(
        function: &Manifested,
        trigger: &EventTrigger,
        module: Digest,
        capabilities: Arc<Capabilities>,
        secrets: Arc<[(Variable, Secret)]>,
    ) -> Self {
        let spec = ProjectionSpec {
            name: (&function.name).into(),
            module: function.module.clone(),
            models: BTreeSet::new(),
            source: trigger.source.clone(),
            batch: trigger.batch,
            lanes: trigger.lanes,
            lane_by: trigger.lane_by.clone(),
            retry: trigger.retry,
            dead_letter: trigger.dead_letter.clone(),
            max_parked: trigger.max_parked,
            limits: function.limits,
            instances: function.instances,
        };
        let effects = Effects { from: trigger.from, effect: Effect::Function { capabilities, secrets } };
        Self { spec, module, models: Vec::new(), topics: BTreeMap::new(), effects: Some(effects) }
    }

    /// What sends the commands that records of topics are.
    pub(crate) fn of_commands(
        aggregate: &AggregateSpec,
        source: &CommandSource,
        module: Digest,
        from: Beginning,
    ) -> Self {
        let spec = ProjectionSpec {
            name: aggregate.consumer(),
            module: aggregate.module.clone(),
            models: BTreeSet::new(),
            source: Source::Topics(TopicSource {
                topics: source.topics.clone(),
                types: BTreeSet::new(),
                group: source.group.clone(),
                via: Via::Log,
            }),
            batch: source.batch,
            lanes: NonZeroUsize::MIN,
            lane_by: LaneBy::Record(source.key.clone()),
            retry: source.retry,
            dead_letter: source.dead_letter.clone(),
            max_parked: source.max_parked,
            limits: aggregate.limits,
            instances: aggregate.instances,
        };
        let effect = Effect::Commands(aggregate.name.clone(), Arc::new(source.clone()));
        let effects = Some(Effects { from, effect });
        Self { spec, module, models: Vec::new(), topics: BTreeMap::new(), effects }
    }

    /// What it is.
    pub(super) fn kind(&self) -> Kind {
        match self.effects.as_ref().map(|effects| &effects.effect) {
            None => Kind::Projection,
            Some(Effect::Function { .. }) => Kind::Function,
            Some(Effect::Commands(..)) => Kind::Commands,
        }
    }

    /// Events that the projector takes at once.
    pub(super) fn window(&self) -> NonZeroUsize {
        match self.effects {
            Some(_) => self.spec.batch.max_events.saturating_mul(self.spec.lanes),
            None => self.spec.batch.max_events,
        }
    }

    /// What a call that is under way may still take when it is told to end.
    pub(super) fn grace(&self) -> Duration {
        if self.effects.is_some() { GRACE } else { Duration::ZERO }
    }

    /// Lanes that the projector splits a batch into. Those of an event function are its own: what one lane did stays
    /// done when another fails.
    pub(super) fn lanes(&self) -> NonZeroUsize {
        if self.effects.is_some() { NonZeroUsize::MIN } else { self.spec.lanes }
    }
}

impl Projector {
    /// How far an event function had got is not known any more: somebody has to say where it goes on.
    pub(super) async fn lost(&mut self) -> Flow<()> {
        let reason =
            "how far it had got is lost, since its file is gone or damaged; say where it goes on, with `ebb seek`"
                .to_owned();
        error!(%reason, "the function is halted");
        self.version.set_state(State::Halted { reason });
        loop {
            self.next_command().await?;
        }
    }

    /// Has an event function go on behind a position. A crash in the middle leaves it where it was or there, or, where
    /// that was lost, to begin as at its first deployment.
    pub(super) async fn go_on_behind(&mut self, mark: Position) -> Flow<()> {
        let (stores, app, name) = (self.deps.stores.clone(), self.deps.app.clone(), self.name().clone());
        let (key, known) = (self.version.key, self.version.body());
        let body = super::blocking(move || {
            let there = stores.open_existing(&app, &name, key)?;
            let store = match there {
                Some((store, _)) => store,
                None => {
                    stores.retain(&app, &name, &[])?;
                    stores.open(&app, &name, key, &[])?
                }
            };
            store.commit(RowBatch { mark: Some(mark), ..RowBatch::default() })?;
            // What was promised to be left out is not to come back with a loss of power.
            store.release();
            stores.set_serving(&app, &name, key)?;
            let same = std::ptr::addr_eq(Arc::as_ptr(&store), Arc::as_ptr(&known.store));
            if same { Ok(known) } else { Body::open(store) }
        });
        let body = body.await?;
        body.passed.send_replace(mark);
        self.version.set_body(body);
        Ok(())
    }
}

/// The position behind which a function begins.
pub(super) fn beginning(from: Beginning, log: &dyn EventLog) -> Position {
    match from {
        Beginning::Now => log.durable().borrow().position,
        Beginning::Start => Position(0),
    }
}

impl Effects {
    /// What is to be called as a projection's module is.
    pub(super) fn module(
        &self,
        deps: &ProjectionDeps,
        function: FunctionSpec,
        spec: &ProjectionSpec,
    ) -> Result<Arc<dyn ProjectionModule>, CallError> {
        let app = function.app.clone();
        let (capabilities, secrets) = match &self.effect {
            Effect::Function { capabilities, secrets } => (capabilities.clone(), secrets.clone()),
            Effect::Commands(aggregate, source) => {
                return Ok(Arc::new(Commands::new(deps, aggregate.clone(), source.clone())));
            }
        };
        let function = FunctionSpec {
            function: format!("function.{}", spec.name).into(),
            capabilities,
            secrets,
            ..function
        };
        Ok(Arc::new(Handler {
            app,
            own_app: deps.own_app.clone(),
            name: spec.name.clone(),
            function: deps.engine.http(function, MAX_ANSWER)?,
            at_once: spec.batch.max_events,
            lanes: spec.lanes,
            lane_by: spec.lane_by.clone(),
        }))
    }
}

/// Gives events to a function.
struct Handler {
    app: AppName,
    own_app: Weak<App>,
    name: ProjectionName,
    function: Arc<dyn HttpFunction>,
    at_once: NonZeroUsize,
    lanes: NonZeroUsize,
    lane_by: LaneBy,
}

/// Where a lane stopped.
struct Stopped {
    /// The first event that is not done, by its index in the batch.
    index: usize,
    /// Whether it is known to be that event that failed.
    named: bool,
    error: CallError,
}

/// What a function may answer: `{"failed": [{"id": "…", "message": "…"}]}`. All others of the call are done.
#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    failed: Vec<FailedEvent>,
}

#[derive(Deserialize)]
struct FailedEvent {
    id: String,
    #[serde(default)]
    message: String,
}

impl Handler {
    async fn handle(&self, events: &[StoredEvent]) -> Result<(), ApplyError> {
        let lanes = self.split(events);
        let ended = join_all(lanes.iter().map(|lane| self.lane(events, lane))).await;
        let stopped = ended.into_iter().filter_map(Result::err);
        // Everything before the first event that is not done is done, on whichever lane.
        let Some(first) = stopped.min_by_key(|stopped| stopped.index) else { return Ok(()) };
        Err(match first.named {
            true => ApplyError::Event { index: first.index, message: first.error.to_string() },
            false => first.error.into(),
        })
    }

    /// Events by their key, in order; keys of a lane share it.
    fn split(&self, events: &[StoredEvent]) -> Vec<Vec<usize>> {
        let lanes = self.lanes.get();
        if lanes == 1 {
            return vec![(0..events.len()).collect()];
        }
        let mut keys: BTreeMap<Text, usize> = BTreeMap::new();
        let mut split = vec![Vec::new(); lanes];
        for (index, event) in events.iter().enumerate() {
            let next = keys.len() % lanes;
            let lane = *keys.entry(lane_key(&self.lane_by, event)).or_insert(next);
            split[lane].push(index);
        }
        split.retain(|lane| !lane.is_empty());
        split
    }

    /// Gives the events of a lane, so many at once, up to the first that fails.
    async fn lane(&self, events: &[StoredEvent], lane: &[usize]) -> Result<(), Stopped> {
        for indexes in lane.chunks(self.at_once.get()) {
            let given: Vec<&StoredEvent> = indexes.iter().map(|index| &events[*index]).collect();
            let failed = match self.give(&given).await {
                Ok(failed) => failed,
                // One event alone is the one that is meant, unless nothing is said about it.
                Err(error) => {
                    let named = indexes.len() == 1 && is_its_own(&error);
                    return Err(Stopped { index: indexes[0], named, error });
                }
            };
            let place =
                |failed: &FailedEvent| given.iter().position(|event| event.id().to_string() == failed.id);
            let Some(first) =
                failed.iter().map(|failed| (place(failed), failed)).min_by_key(|(place, _)| *place)
            else {
                continue;
            };
            return Err(match first {
                (Some(place), failed) => Stopped {
                    index: indexes[place],
                    named: true,
                    error: CallError::BadAnswer(failed.message.clone()),
                },
                (None, failed) => Stopped {
                    index: indexes[0],
                    named: false,
                    error: CallError::BadAnswer(format!(
                        "it said that event `{}` failed, which it was not given",
                        quoted(failed.id.as_bytes())
                    )),
                },
            });
        }
        Ok(())
    }

    /// One call; which events failed.
    async fn give(&self, events: &[&StoredEvent]) -> Result<Vec<FailedEvent>, CallError> {
        let response = self.function.call(self.call(events)?).await?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, MAX_ANSWER as usize).collect().await;
        let body =
            body.map_err(|error| CallError::BadAnswer(format!("its answer broke off: {error}")))?.to_bytes();
        if head.status == StatusCode::TOO_MANY_REQUESTS || head.status == StatusCode::SERVICE_UNAVAILABLE {
            // Not a word about the events: whatever it needs is not there for now.
            return Err(CallError::Failed(format!("it answered {}: {}", head.status, quoted(&body))));
        }
        if !head.status.is_success() {
            return Err(CallError::BadAnswer(format!("it answered {}: {}", head.status, quoted(&body))));
        }
        let kind = head.headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        if body.is_empty() || !kind.is_some_and(is_json) {
            return Ok(Vec::new());
        }
        let answer: Answer = serde_json::from_slice(&body).map_err(|error| {
            let said = quoted(&body);
            CallError::BadAnswer(format!(
                "it answered {said}, and not {{\"failed\": [{{\"id\": …}}]}}: {error}"
            ))
        })?;
        Ok(answer.failed)
    }

    fn call(&self, events: &[&StoredEvent]) -> Result<HttpCall, CallError> {
        let documents: Vec<_> = events.iter().map(|event| event.cloud_event(&self.app)).collect();
        let body = serde_json::to_vec(&documents).map_err(|error| CallError::Failed(error.to_string()))?;
        // What it does belongs to the first of them; one that stands alone is what caused it.
        let first = events.first().map(|event| &event.commit);
        let causation_id = match events {
            [event] => event.id().to_string().into(),
            _ => format!("function.{}", self.name).into(),
        };
        let hops = events.iter().map(|event| event.commit.hops).max().unwrap_or_default();
        let cause = Cause {
            hops: hops.saturating_add(1),
            actor: format!("function:{}", self.name).into(),
            correlation_id: first.map_or_else(Text::default, |commit| commit.correlation_id.clone()),
            causation_id,
        };
        let mut request = Request::post("http://localhost/")
            .header(CONTENT_TYPE, BATCH)
            .header(CONTENT_LENGTH, body.len())
            .header("ebb-actor", &*cause.actor);
        // Any text may correlate; what can't be a header is in the events all the same.
        if let Ok(correlation_id) = HeaderValue::from_str(&cause.correlation_id) {
            request = request.header("ebb-correlation-id", correlation_id);
        }
        if let Some(parent) = first.and_then(|commit| commit.traceparent.as_deref()) {
            request = request.header("traceparent", parent);
        }
        let request = request.body(HttpBody::Whole(Bytes::from(body)));
        let request = request.map_err(|error| CallError::Failed(error.to_string()))?;
        Ok(HttpCall {
            request: Box::new(request),
            app: Arc::new(CalledApp::new(self.own_app.clone(), cause)),
        })
    }
}

impl ProjectionModule for Handler {
    fn apply<'a>(&'a self, events: &'a [StoredEvent], _: SharedRows) -> Future<'a, Result<(), ApplyError>> {
        Box::pin(self.handle(events))
    }

    fn held_back(&self, events: &[StoredEvent]) -> Option<HeldBack> {
        self.own_app.upgrade()?.held_back(events)
    }
}

/// Whether an error says something about the events that were given.
fn is_its_own(error: &CallError) -> bool {
    !matches!(error, CallError::Overloaded { .. } | CallError::Failed(_) | CallError::InstanceLost)
}

/// The beginning of an answer, for people.
fn quoted(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(QUOTED)]);
    let text = text.trim();
    if text.is_empty() { "nothing".to_owned() } else { text.to_owned() }
}
