//! One deployed app, open: its log, its command path, its projections, and what is deployed of it.

use crate::bus_task::Doing;
use crate::chains::{ChainStatus, Chains};
use crate::commands::{
    AggregateFunction, CommandError, CommandReply, CommandRequest, CommandService, StateError,
};
use crate::deploy::{DeployError, Deployment, Release};
use crate::functions::HttpRoutes;
use crate::node::NodeDeps;
use crate::projections::{
    LazyProjections, ModelReader, ProjectionDeps, ProjectionError, ProjectionStatus, Projections, State,
};
use crate::relay::{Relay, RelayStatus};
use crate::topics::{IntakeStatus, Intakes};
use ebb_domain::event::{Position, StoredEvent};
use ebb_domain::manifest::Manifest;
use ebb_domain::name::{AggregateName, AppName, ModelName, TopicName};
use ebb_domain::port::guest::HeldBack;
use ebb_domain::port::log::{Durable, EventLog};
use ebb_domain::port::storage::{Snapshots, StorageError};
use ebb_domain::text::Text;
use ebb_domain::topic::RelaySpec;
use parking_lot::RwLock;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OnceCell, Semaphore};
use tokio::time::Instant;
use tracing::{error, warn};

/// States that are folded at once to be looked at: each takes an instance.
const FOLDING: usize = 4;

/// How often it is looked how those do that have just begun to work with the broker.
const ASK: Duration = Duration::from_millis(20);

/// One deployed app that is open. Whoever uses it holds it, and nobody closes it meanwhile unless it is removed or the
/// node shuts down.
pub struct App {
    name: AppName,
    log: Arc<dyn EventLog>,
    commands: CommandService,
    projections: LazyProjections,
    chains: Chains,
    relay: Relay,
    intakes: Intakes,
    deps: NodeDeps,
    serving: RwLock<Serving>,
    replaying: tokio::sync::Mutex<()>,
    folding: Semaphore,
}

/// What of an app is on disk, opened. It may fail, so a deployment gets it before it is recorded.
pub(crate) struct Opened {
    log: Arc<dyn EventLog>,
    snapshots: Arc<dyn Snapshots>,
    /// Where the app was put to rest, if it was, and nothing has happened since.
    rest: Option<Durable>,
}

impl Opened {
    pub(crate) async fn open(deps: &NodeDeps, app: &AppName) -> Result<Self, DeployError> {
        // Both wait for the disk, and not for each other.
        let note = {
            let (storage, app) = (deps.storage.clone(), app.clone());
            tokio::task::spawn_blocking(move || {
                let rest = storage.rest(&app)?;
                if rest.is_some() {
                    // Before anything can be appended: after a crash the app is opened without being asked for.
                    storage.note_rest(&app, None)?;
                }
                Ok::<_, StorageError>(rest)
            })
        };
        let log = {
            let (storage, app) = (deps.storage.clone(), app.clone());
            tokio::task::spawn_blocking(move || {
                let log = storage.open_log(&app).map_err(|error| DeployError::LogClosed(error.0))?;
                Ok::<_, DeployError>((log, storage.snapshots(&app)?))
            })
        };
        let failed = |error: tokio::task::JoinError| DeployError::Unavailable(error.to_string());
        let (note, log) = tokio::join!(note, log);
        let (log, snapshots) = log.map_err(failed)??;
        let rest = note.map_err(failed)??.filter(|rest| *rest == *log.durable().borrow());
        Ok(Self { log, snapshots, rest })
    }

    /// Closes it as it was found.
    pub(crate) async fn close(self, deps: &NodeDeps, app: &AppName) {
        let (storage, app) = (deps.storage.clone(), app.clone());
        let closed = tokio::task::spawn_blocking(move || {
            if self.log.close().is_some() && self.rest.is_some() {
                storage.note_rest(&app, self.rest)?;
            }
            Ok::<_, StorageError>(())
        });
        if let Ok(Err(error)) = closed.await {
            warn!(%error, "not noted as at rest; the next start opens it");
        }
    }
}

/// What changes with a deployment.
#[derive(Clone)]
struct Serving {
    manifest: Arc<Manifest>,
    deployment: Arc<Deployment>,
    openapi: Arc<OnceCell<Arc<serde_json::Value>>>,
    asyncapi: Arc<OnceCell<Arc<serde_json::Value>>>,
    http: Arc<HttpRoutes>,
    release: Release,
}

impl Serving {
    fn new(deployment: Arc<Deployment>, release: Release, deps: &NodeDeps) -> Self {
        let http = Arc::new(release.http(&deps.engine, &deps.secrets));
        Self {
            manifest: release.manifest.clone(),
            deployment,
            openapi: Arc::default(),
            asyncapi: Arc::default(),
            http,
            release,
        }
    }
}

/// How an app was left when it was closed.
pub(crate) struct Left {
    /// The log's end, if nothing is in doubt.
    pub end: Option<Durable>,
    /// How its projections were doing.
    pub projections: Vec<ProjectionStatus>,
    /// Nothing is left to do that nobody has to ask for.
    pub is_at_rest: bool,
}

impl App {
    /// Serves a deployment that is new: when this returns, its projections run.
    pub(crate) async fn deploy(
        deps: NodeDeps,
        deployment: Arc<Deployment>,
        release: Release,
        opened: Opened,
    ) -> Result<Arc<Self>, DeployError> {
        let app = Self::new(deps, deployment.clone(), release.clone(), opened);
        match app.swap(deployment, release).await {
            Ok(()) => Ok(app),
            Err(error) => {
                app.close().await;
                Err(error)
            }
        }
    }

    /// Serves a deployment again: its commands at once, its projections from when they are needed.
    pub(crate) async fn open(
        deps: NodeDeps,
        deployment: Arc<Deployment>,
        release: Release,
        opened: Opened,
    ) -> Arc<Self> {
        let projections = release.projections(&*deps.secrets);
        let keep_ready = projections.iter().any(|projection| projection.spec.instances.warm > 0);
        let opened_at_rest = opened.rest.map(|rest| rest.position);
        let rest = opened_at_rest.filter(|_| !keep_ready);
        let app = Self::new(deps, deployment, release.clone(), opened);
        app.commands.deploy(release.aggregates(&app.deps.engine));
        app.make_ready();
        app.projections.deploy_later(projections, rest).await;
        app.follow_kafka(&release.manifest, opened_at_rest).await;
        app
    }

    /// Publishes and consumes what a manifest says.
    async fn follow_kafka(&self, manifest: &Manifest, rest: Option<Position>) {
        let spec = manifest.relay(self.deps.bus.is_some());
        let topics = spec.as_ref().map(|spec| relayed(manifest, spec)).unwrap_or_default();
        self.relay.deploy(spec, topics, rest).await;
        self.intakes.deploy(manifest.consumed()).await;
    }

    fn new(deps: NodeDeps, deployment: Arc<Deployment>, release: Release, opened: Opened) -> Arc<Self> {
        let Opened { log, snapshots, .. } = opened;
        let name = deployment.app.clone();
        let commands = CommandService::new(log.clone(), snapshots);
        let serving = RwLock::new(Serving::new(deployment, release, &deps));
        Arc::new_cyclic(|own_app| Self {
            projections: LazyProjections::new(ProjectionDeps {
                app: name.clone(),
                own_app: own_app.clone(),
                log: log.clone(),
                engine: deps.engine.clone(),
                stores: deps.models.clone(),
                clock: deps.clock.clone(),
                bus: deps.bus.clone(),
            }),
            chains: Chains::default(),
            relay: Relay::new(name.clone(), log.clone(), deps.bus.clone()),
            intakes: Intakes::new(name.clone(), log.clone(), deps.bus.clone()),
            name,
            log,
            commands,
            deps,
            serving,
            replaying: Default::default(),
            folding: Semaphore::new(FOLDING),
        })
    }

    /// Serves another deployment from now on. Commands under way finish as they began; a changed projection is built
    /// beside the one that serves.
    pub(crate) async fn swap(
        &self,
        deployment: Arc<Deployment>,
        release: Release,
    ) -> Result<(), DeployError> {
        self.projections
            .deploy(release.projections(&*self.deps.secrets))
            .await
            .map_err(|error| DeployError::Unavailable(error.to_string()))?;
        self.commands.deploy(release.aggregates(&self.deps.engine));
        let manifest = release.manifest.clone();
        *self.serving.write() = Serving::new(deployment, release, &self.deps);
        self.make_ready();
        // Behind the projections: those that begin with what comes from now on are to see it.
        self.follow_kafka(&manifest, None).await;
        Ok(())
    }

    /// Whether another release could serve. Asked before it is recorded.
    pub(crate) async fn check(&self, release: &Release) -> Result<(), DeployError> {
        let set = release.projections(&*self.deps.secrets);
        self.projections.check(&set).await.map_err(DeployError::Projection)
    }

    /// Makes the functions that keep instances ready, which others are by their first call. The engine does the rest.
    fn make_ready(&self) {
        let told =
            |error: &dyn std::fmt::Display| warn!(%error, "not made ready; its first call tries again");
        for function in self.commands.kept_ready() {
            tokio::spawn(async move { function.get().await.inspect_err(|error| told(error)) });
        }
        for endpoint in self.http_routes().kept_ready() {
            let endpoint = endpoint.clone();
            tokio::spawn(async move { endpoint.function().await.inspect_err(|error| told(error)) });
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &AppName {
        &self.name
    }

    /// The manifest that serves.
    #[must_use]
    pub fn manifest(&self) -> Arc<Manifest> {
        self.serving.read().manifest.clone()
    }

    /// The deployment that serves.
    #[must_use]
    pub fn deployment(&self) -> Arc<Deployment> {
        self.serving.read().deployment.clone()
    }

    pub(crate) fn release(&self) -> Release {
        self.serving.read().release.clone()
    }

    /// What it offers, as OpenAPI.
    ///
    /// # Errors
    /// A file of the deployment can't be read.
    pub async fn openapi(&self) -> Result<Arc<serde_json::Value>, DeployError> {
        let Serving { openapi, release, .. } = self.serving.read().clone();
        let make = async || {
            let made = tokio::task::spawn_blocking(move || release.openapi()).await;
            made.map_err(|error| DeployError::Unavailable(error.to_string()))?.map(Arc::new)
        };
        openapi.get_or_try_init(make).await.cloned()
    }

    /// What it takes from Kafka and sends there, as AsyncAPI.
    ///
    /// # Errors
    /// A file of the deployment can't be read.
    pub async fn asyncapi(&self) -> Result<Arc<serde_json::Value>, DeployError> {
        let Serving { asyncapi, release, .. } = self.serving.read().clone();
        let brokers = self.deps.bus.is_some();
        let make = async || {
            let made = tokio::task::spawn_blocking(move || release.asyncapi(brokers)).await;
            made.map_err(|error| DeployError::Unavailable(error.to_string()))?.map(Arc::new)
        };
        asyncapi.get_or_try_init(make).await.cloned()
    }

    /// Its HTTP functions. Requests under way finish with the deployment that they began with.
    #[must_use]
    pub fn http_routes(&self) -> Arc<HttpRoutes> {
        self.serving.read().http.clone()
    }

    /// Its log.
    #[must_use]
    pub fn log(&self) -> &Arc<dyn EventLog> {
        &self.log
    }

    /// Its projections, running.
    ///
    /// # Errors
    /// They can't be started now.
    pub async fn projections(&self) -> Result<&Projections, ProjectionError> {
        self.projections.running().await
    }

    /// How its projections are doing, by name. Starts none, and waits for none.
    #[must_use]
    pub fn projection_status(&self) -> Vec<ProjectionStatus> {
        self.projections.status()
    }

    /// How its relay is doing; none if it publishes nothing.
    #[must_use]
    pub fn relay_status(&self) -> Option<RelayStatus> {
        self.relay.status()
    }

    /// How its consumer groups are doing.
    #[must_use]
    pub fn intake_status(&self) -> Vec<IntakeStatus> {
        let direct = self.projections.status().into_iter().filter_map(|status| IntakeStatus::direct(&status));
        self.intakes.status().into_iter().chain(direct).collect()
    }

    /// Goes on with a topic that was deleted and made again. Whether it consumes that topic.
    #[must_use]
    pub fn accept_topic(&self, topic: &TopicName) -> bool {
        // Both are asked: it may be consumed either way.
        self.intakes.accept(topic) | self.projections.accept(topic)
    }

    /// A reader of a model; none if no projection writes it.
    ///
    /// # Errors
    /// The projections can't be started now.
    pub async fn model(&self, model: &ModelName) -> Result<Option<ModelReader>, ProjectionError> {
        self.projections.model(model).await
    }

    /// Decides a command, unless its chain has led to too much; see [`CommandService::execute`].
    ///
    /// # Errors
    /// It was not accepted.
    pub async fn command(&self, request: CommandRequest) -> Result<CommandReply, CommandError> {
        if request.hops > 0 {
            let chain = request.correlation_id.clone().unwrap_or_default();
            self.chains.admit(&chain, request.hops, &self.manifest().chains)?;
        }
        self.commands.execute(request).await
    }

    /// The first of these events that is not to be given to anybody now, since its chain has led to too much.
    pub(crate) fn held_back(&self, events: &[StoredEvent]) -> Option<HeldBack> {
        let spec = self.manifest().chains;
        let held = events.iter().enumerate().filter(|(_, event)| event.commit.hops > 0);
        let mut held = held.filter_map(|(index, event)| {
            let chain = &event.commit.correlation_id;
            Some((index, chain, self.chains.held(chain, &spec)?))
        });
        let (index, chain, retry_after) = held.next()?;
        let reason = format!(
            "events of the chain `{chain}` are held back: it has led to {} commands within a minute, as many as the app \
             allows (`chains.per-minute`)",
            spec.per_minute
        );
        Some(HeldBack { index, reason, retry_after })
    }

    /// What causes lead to.
    #[must_use]
    pub fn chain_status(&self) -> ChainStatus {
        self.chains.status(&self.manifest().chains)
    }

    pub(crate) fn deps(&self) -> &NodeDeps {
        &self.deps
    }

    /// Held by the replay that runs.
    pub(crate) fn replaying(&self) -> &tokio::sync::Mutex<()> {
        &self.replaying
    }

    /// Held by those who fold a state to look at it.
    pub(crate) fn folding(&self) -> &Semaphore {
        &self.folding
    }

    /// The version of an aggregate that serves.
    pub(crate) async fn aggregate(&self, name: &str) -> Result<Arc<AggregateFunction>, StateError> {
        self.commands.aggregate(name).await
    }

    /// Whether nothing would be left undone if it were closed now.
    pub(crate) fn is_idle(&self) -> bool {
        let end = self.end();
        !self.intakes.are_any()
            && !self.manifest().has_direct()
            && self.commands.is_idle()
            && self.projections.are_done(end)
            && self.relay.is_done(end)
    }

    fn end(&self) -> Position {
        self.log.durable().borrow().position
    }

    /// Takes no records of topics any more, and is no member of any group.
    pub(crate) async fn leave_topics(&self) {
        self.intakes.deploy(BTreeMap::new()).await;
    }

    /// What keeps it from publishing or consuming, as far as that is known within this time.
    pub async fn kafka_problems(&self, patience: Duration) -> Vec<String> {
        let until = Instant::now() + patience;
        loop {
            let relay = self.relay_status().map(|relay| relay.doing());
            let groups = self.intake_status().into_iter().map(|group| group.doing());
            let all: Vec<Doing> = relay.into_iter().chain(groups).collect();
            if all.contains(&Doing::Beginning) && Instant::now() < until {
                tokio::time::sleep(ASK).await;
                continue;
            }
            let problem = |doing| match doing {
                Doing::Well => None,
                Doing::Trouble(problem) => Some(problem),
                Doing::Beginning => Some(format!(
                    "Kafka has not answered within {} s; `ebb status` says how it goes on",
                    patience.as_secs()
                )),
            };
            let mut problems: Vec<String> = all.into_iter().filter_map(problem).collect();
            problems.dedup();
            return problems;
        }
    }

    /// Finishes commands under way, stops the projections and closes the log. Then notes whether it is at rest.
    pub(crate) async fn close(&self) -> Left {
        self.intakes.close().await;
        self.commands.close().await;
        let mut projections = self.projections.status();
        let were_done = self.projections.are_done(self.end()) && self.relay.is_done(self.end());
        self.relay.close().await;
        self.projections.close().await;
        let stopped = self.projections.status();
        let (log, storage, name) = (self.log.clone(), self.deps.storage.clone(), self.name.clone());
        let marks: Vec<Position> = stopped.iter().map(|status| status.serving.mark).collect();
        let nothing_parked = stopped.iter().all(|status| status.serving.parked == 0);
        let closed = tokio::task::spawn_blocking(move || {
            let end = log.close();
            // What was staged last has become durable only now.
            let at_end = end.filter(|end| marks.iter().all(|mark| *mark == end.position));
            let rest = at_end.filter(|_| were_done && nothing_parked);
            if let Some(rest) = rest
                && let Err(error) = storage.note_rest(&name, Some(rest))
            {
                warn!(app = %name, %error, "not noted as at rest; the next start opens it");
            }
            (end, rest.is_some())
        });
        let (end, is_at_rest) = closed.await.unwrap_or_else(|error| {
            error!(app = %self.name, %error, "the log was not closed");
            (None, false)
        });
        for status in &mut projections {
            if matches!(status.serving.state, State::Live) {
                status.serving.state = State::Idle;
            }
        }
        Left { end, projections, is_at_rest }
    }
}

/// Where events of each aggregate are published.
fn relayed(manifest: &Manifest, spec: &RelaySpec) -> BTreeMap<Text, TopicName> {
    let aggregates = manifest.aggregates.keys();
    let wanted = aggregates.filter(|name| spec.aggregates.is_empty() || spec.aggregates.contains(*name));
    let topic = |name: &AggregateName| match spec.topics.get(name) {
        Some(topic) => topic.clone(),
        // Both names together are shorter than a topic's may be, and of the same characters.
        None => TopicName::trusted(format!("{}.{name}", manifest.name).into()),
    };
    wanted.map(|name| (name.text().clone(), topic(name))).collect()
}
