//! One deployed app: its log, its command path, its projections, and what is deployed of it.

use crate::commands::{
    AggregateFunction, CommandError, CommandReply, CommandRequest, CommandService, StateError,
};
use crate::deploy::{Checked, DeployError, Deployment, Functions, functions};
use crate::functions::HttpRoutes;
use crate::node::NodeDeps;
use crate::projections::{ProjectionDeps, Projections};
use ebb_domain::manifest::Manifest;
use ebb_domain::name::AppName;
use ebb_domain::port::log::EventLog;
use ebb_domain::port::storage::Snapshots;
use parking_lot::RwLock;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// States that are folded at once to be looked at: each takes an instance.
const FOLDING: usize = 4;

/// One deployed app.
pub struct App {
    name: AppName,
    log: Arc<dyn EventLog>,
    commands: CommandService,
    projections: Projections,
    deps: NodeDeps,
    serving: RwLock<Serving>,
    replaying: tokio::sync::Mutex<()>,
    folding: Semaphore,
}

/// What a deployment needs, all of which may fail: got before the deployment is recorded.
pub(crate) struct Prepared {
    pub(crate) log: Arc<dyn EventLog>,
    pub(crate) snapshots: Arc<dyn Snapshots>,
    pub(crate) functions: Functions,
}

impl Prepared {
    /// Opens an app's log, and makes the functions of a deployment.
    pub(crate) async fn new(deps: &NodeDeps, app: &AppName, checked: &Checked) -> Result<Self, DeployError> {
        let functions = functions(&deps.engine, checked)?;
        let (storage, app) = (deps.storage.clone(), app.clone());
        let opened = tokio::task::spawn_blocking(move || {
            let log = storage.open_log(&app).map_err(|error| DeployError::LogClosed(error.0))?;
            Ok::<_, DeployError>((log, storage.snapshots(&app)?))
        });
        let (log, snapshots) =
            opened.await.map_err(|error| DeployError::Unavailable(error.to_string()))??;
        Ok(Self { log, snapshots, functions })
    }
}

/// What changes with a deployment.
#[derive(Clone)]
struct Serving {
    manifest: Arc<Manifest>,
    deployment: Arc<Deployment>,
    openapi: Arc<serde_json::Value>,
    http: Arc<HttpRoutes>,
}

impl App {
    /// Serves a deployment of an app.
    pub(crate) async fn open(
        deps: NodeDeps,
        deployment: Deployment,
        checked: &Checked,
        prepared: Prepared,
    ) -> Result<Arc<Self>, DeployError> {
        let name = deployment.app.clone();
        let Prepared { log, snapshots, functions } = prepared;
        let commands = CommandService::new(log.clone(), snapshots);
        let serving = Serving {
            manifest: Arc::new(checked.manifest.clone()),
            deployment: Arc::new(deployment),
            openapi: Arc::default(),
            http: Arc::default(),
        };
        let app = Arc::new_cyclic(|own_app| Self {
            projections: Projections::start(ProjectionDeps {
                app: name.clone(),
                own_app: own_app.clone(),
                log: log.clone(),
                engine: deps.engine.clone(),
                stores: deps.models.clone(),
                clock: deps.clock.clone(),
            }),
            name,
            log,
            commands,
            deps,
            serving: RwLock::new(serving),
            replaying: Default::default(),
            folding: Semaphore::new(FOLDING),
        });
        let deployment = app.deployment();
        app.swap(deployment, checked, functions).await?;
        Ok(app)
    }

    /// Serves another deployment from now on. Commands under way finish as they began; a changed projection is built
    /// beside the one that serves.
    pub(crate) async fn swap(
        &self,
        deployment: Arc<Deployment>,
        checked: &Checked,
        functions: Functions,
    ) -> Result<(), DeployError> {
        self.projections
            .deploy(functions.projections)
            .await
            .map_err(|error| DeployError::Unavailable(error.to_string()))?;
        self.commands.deploy(functions.aggregates);
        *self.serving.write() = Serving {
            manifest: Arc::new(checked.manifest.clone()),
            deployment,
            openapi: Arc::new(functions.openapi),
            http: Arc::new(functions.http),
        };
        Ok(())
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

    /// Whether requests for this host are for this app. Asked for every request without `/apps`.
    pub(crate) fn has_host(&self, host: &str) -> bool {
        self.serving.read().manifest.hosts.iter().any(|own| own.eq_ignore_ascii_case(host))
    }

    /// The deployment that serves.
    #[must_use]
    pub fn deployment(&self) -> Arc<Deployment> {
        self.serving.read().deployment.clone()
    }

    /// What it offers, as OpenAPI.
    #[must_use]
    pub fn openapi(&self) -> Arc<serde_json::Value> {
        self.serving.read().openapi.clone()
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

    /// Its projections.
    #[must_use]
    pub fn projections(&self) -> &Projections {
        &self.projections
    }

    /// Decides a command; see [`CommandService::execute`].
    ///
    /// # Errors
    /// It was not accepted.
    pub async fn command(&self, request: CommandRequest) -> Result<CommandReply, CommandError> {
        self.commands.execute(request).await
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
    pub(crate) fn aggregate(&self, name: &str) -> Result<Arc<AggregateFunction>, StateError> {
        self.commands.aggregate(name)
    }

    /// Finishes commands under way and stops the projections.
    pub(crate) async fn close(&self) {
        self.commands.close().await;
        self.projections.shutdown().await;
    }
}
