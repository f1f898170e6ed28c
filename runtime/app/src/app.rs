//! One deployed app: its log, its command path, its projections, and what is deployed of it.

use crate::commands::{CommandError, CommandReply, CommandRequest, CommandService};
use crate::deploy::{Checked, DeployError, Deployment, functions};
use crate::node::NodeDeps;
use crate::projections::{ProjectionDeps, Projections};
use ebb_domain::manifest::Manifest;
use ebb_domain::name::AppName;
use ebb_domain::port::log::EventLog;
use parking_lot::RwLock;
use std::sync::Arc;

/// One deployed app.
pub struct App {
    name: AppName,
    log: Arc<dyn EventLog>,
    commands: CommandService,
    projections: Projections,
    deps: NodeDeps,
    serving: RwLock<Serving>,
}

/// What changes with a deployment.
#[derive(Clone)]
struct Serving {
    manifest: Arc<Manifest>,
    deployment: Arc<Deployment>,
    openapi: Arc<serde_json::Value>,
}

impl App {
    /// Opens an app's log and serves a deployment of it.
    pub(crate) async fn open(
        deps: NodeDeps,
        deployment: Deployment,
        checked: &Checked,
    ) -> Result<Arc<Self>, DeployError> {
        let name = deployment.app.clone();
        let (storage, app) = (deps.storage.clone(), name.clone());
        let log = tokio::task::spawn_blocking(move || storage.open_log(&app))
            .await
            .map_err(|error| DeployError::Unavailable(error.to_string()))??;
        let snapshots = deps.storage.snapshots(&name)?;
        let commands = CommandService::new(log.clone(), snapshots);
        let projections = Projections::start(ProjectionDeps {
            app: name.clone(),
            log: log.clone(),
            engine: deps.engine.clone(),
            stores: deps.models.clone(),
            clock: deps.clock.clone(),
        });
        let serving = Serving {
            manifest: Arc::new(checked.manifest.clone()),
            deployment: Arc::new(deployment),
            openapi: Arc::default(),
        };
        let app = Self { name, log, commands, projections, deps, serving: RwLock::new(serving) };
        let deployment = app.deployment();
        app.swap(deployment, checked).await?;
        Ok(Arc::new(app))
    }

    /// Serves another deployment from now on. Commands under way finish as they began; a changed projection is built
    /// beside the one that serves.
    pub(crate) async fn swap(
        &self,
        deployment: Arc<Deployment>,
        checked: &Checked,
    ) -> Result<(), DeployError> {
        let functions = functions(&self.deps.engine, checked)?;
        self.projections
            .deploy(functions.projections)
            .await
            .map_err(|error| DeployError::Unavailable(error.to_string()))?;
        self.commands.deploy(functions.aggregates);
        *self.serving.write() = Serving {
            manifest: Arc::new(checked.manifest.clone()),
            deployment,
            openapi: Arc::new(functions.openapi),
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

    /// Finishes commands under way and stops the projections.
    pub(crate) async fn close(&self) {
        self.commands.close().await;
        self.projections.shutdown().await;
    }
}
