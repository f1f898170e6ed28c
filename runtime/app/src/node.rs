//! A node: the apps that are deployed on it. Its own log, `system`, says which; everything here can be made again
//! from that log and the kept files.

#[cfg(test)]
mod tests;

use crate::app::{App, Prepared};
use crate::bundle::{Bundle, normalise};
use crate::deploy::{self, Checked, DeployError, Deployment, SYSTEM};
use ebb_domain::commit::{CommandId, Expected, NewCommit, Outcome};
use ebb_domain::digest::Digest;
use ebb_domain::event::{JSON, NewEvent, Position, Revision, StoredEvent};
use ebb_domain::manifest::Manifest;
use ebb_domain::name::{AggregateName, AppName, EventType};
use ebb_domain::port::Clock;
use ebb_domain::port::guest::Engine;
use ebb_domain::port::log::{AppendError, EventFilter, EventLog, ReadLimits};
use ebb_domain::port::models::ModelStores;
use ebb_domain::port::storage::{Storage, StorageError};
use ebb_domain::stream::{StreamId, StreamKey};
use ebb_domain::text::Text;
use ebb_faults::{Point, crash_point};
use parking_lot::RwLock;
use std::collections::BTreeMap;
use std::sync::Arc;
use thiserror::Error;
use tokio::sync::Mutex;
use tracing::{error, info};
use uuid::Uuid;

/// The stream category of deployments in the node's log.
const DEPLOYMENTS: &str = "deployment";
const DEPLOYED: &str = "Deployed";
const REMOVED: &str = "Removed";

/// What a node is put together from.
#[derive(Clone)]
pub struct NodeDeps {
    /// Logs, snapshots, kept files.
    pub storage: Arc<dyn Storage>,
    /// Read models.
    pub models: Arc<dyn ModelStores>,
    /// Guest code.
    pub engine: Arc<dyn Engine>,
    /// The wall clock.
    pub clock: Arc<dyn Clock>,
}

/// Why a node could not be opened.
#[derive(Debug, Error)]
pub enum NodeError {
    /// Its storage.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// Its own log.
    #[error("the node's own log could not be read: {0}")]
    Log(String),
}

/// The apps of a node.
pub struct Node {
    deps: NodeDeps,
    system: Arc<dyn EventLog>,
    apps: RwLock<BTreeMap<Text, Arc<App>>>,
    /// Apps that are deployed and could not be opened, and why.
    closed: RwLock<BTreeMap<Text, String>>,
    /// Deployments happen one at a time.
    deploying: Mutex<()>,
}

impl Node {
    /// Reads the node's log and opens every app that it says is deployed. An app that can't be opened (its log is
    /// damaged, say) is left out, loudly: the others serve.
    ///
    /// # Errors
    /// The node's own log can't be opened.
    pub async fn open(deps: NodeDeps) -> Result<Arc<Self>, NodeError> {
        let name = AppName::trusted(Text::from_static(SYSTEM));
        let storage = deps.storage.clone();
        let system = tokio::task::spawn_blocking(move || storage.open_log(&name))
            .await
            .map_err(|error| NodeError::Log(error.to_string()))??;
        let node = Self {
            deps,
            system,
            apps: RwLock::default(),
            closed: RwLock::default(),
            deploying: Mutex::new(()),
        };
        for (app, history) in node.histories().await? {
            let Some(deployment) = current(&history) else {
                if matches!(history.last(), Some(Entry::Removed { purge: true }))
                    && let Err(error) = node.purge(&AppName::trusted(app.clone())).await
                {
                    error!(%app, %error, "the next start tries again");
                }
                continue;
            };
            let app = deployment.app.clone();
            match node.start(deployment).await {
                Ok(started) => {
                    info!(%app, deployment = started.deployment().number, "app opened");
                    node.apps.write().insert(app.text().clone(), started);
                }
                Err(error) => {
                    error!(%app, %error, "app not opened; the others are served");
                    node.closed.write().insert(app.text().clone(), error.to_string());
                }
            }
        }
        Ok(Arc::new(node))
    }

    async fn start(&self, deployment: Deployment) -> Result<Arc<App>, DeployError> {
        let checked = deploy::restore(&self.deps.engine, &self.deps.storage, &deployment).await?;
        let prepared = Prepared::new(&self.deps, &deployment.app, &checked).await?;
        App::open(self.deps.clone(), deployment, &checked, prepared).await
    }

    /// An app by its name.
    #[must_use]
    pub fn app(&self, name: &str) -> Option<Arc<App>> {
        self.apps.read().get(name.as_bytes()).cloned()
    }

    /// The app that a host name selects.
    #[must_use]
    pub fn app_for_host(&self, host: &str) -> Option<Arc<App>> {
        self.apps.read().values().find(|app| app.has_host(host)).cloned()
    }

    /// The app, if the node has exactly one.
    #[must_use]
    pub fn only_app(&self) -> Option<Arc<App>> {
        let apps = self.apps.read();
        apps.values().next().filter(|_| apps.len() == 1).cloned()
    }

    /// Why an app is not served although it is deployed; none for one that is served, and for one that is not there.
    #[must_use]
    pub fn why_closed(&self, name: &str) -> Option<String> {
        self.closed.read().get(name.as_bytes()).cloned()
    }

    /// Apps that are deployed and could not be opened, and why.
    #[must_use]
    pub fn closed_apps(&self) -> Vec<(String, String)> {
        self.closed.read().iter().map(|(app, why)| (app.to_string(), why.clone())).collect()
    }

    /// All apps that are served, by name.
    #[must_use]
    pub fn apps(&self) -> Vec<Arc<App>> {
        self.apps.read().values().cloned().collect()
    }

    /// Checks a bundle and compiles its modules; changes nothing.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub async fn check(&self, bundle: &Bundle) -> Result<Manifest, DeployError> {
        deploy::check(&self.deps.engine, bundle).await.map(|checked| checked.manifest)
    }

    /// Deploys a bundle: checks everything, compiles, keeps the files, commits, swaps. `guard` is the number of the
    /// deployment that the caller expects to replace, 0 for none.
    ///
    /// # Errors
    /// Nothing changed, or what [`DeployError::NotServed`] says.
    pub async fn deploy(
        &self,
        app: &AppName,
        bundle: Bundle,
        guard: Option<u64>,
        actor: &str,
    ) -> Result<Deployment, DeployError> {
        let checked = deploy::check(&self.deps.engine, &bundle).await?;
        self.check_names(app, &checked.manifest)?;
        let storage = self.deps.storage.clone();
        let (text, contents) = (checked.text.clone(), checked.files.clone());
        let (manifest, files) = tokio::task::spawn_blocking(move || {
            let manifest = storage.put_blob(&text)?;
            let mut files = BTreeMap::new();
            for (path, bytes) in &contents {
                let path = normalise(path).unwrap_or_default();
                files.insert(path, storage.put_blob(bytes)?);
            }
            Ok::<_, StorageError>((manifest, files))
        })
        .await
        .map_err(|error| DeployError::Unavailable(error.to_string()))??;
        let _one_at_a_time = self.deploying.lock().await;
        // Again: another deployment may have taken a host meanwhile.
        self.check_names(app, &checked.manifest)?;
        let deployment = Deployment {
            app: app.clone(),
            number: 0,
            manifest,
            files,
            deployed_at: self.deps.clock.now(),
            deployed_by: actor.to_owned(),
            rollback_to: None,
        };
        self.commit_and_swap(deployment, &checked, guard).await
    }

    fn check_names(&self, app: &AppName, manifest: &Manifest) -> Result<(), DeployError> {
        if manifest.name != *app {
            return Err(DeployError::NameMismatch {
                manifest: manifest.name.clone(),
                requested: app.clone(),
            });
        }
        for host in &manifest.hosts {
            if let Some(owner) = self.app_for_host(host).filter(|owner| owner.name() != app) {
                return Err(DeployError::HostTaken { host: host.clone(), app: owner.name().clone() });
            }
        }
        Ok(())
    }

    /// Serves an earlier deployment again; it becomes a new one with the same files.
    ///
    /// # Errors
    /// As [`Node::deploy`].
    pub async fn rollback(
        &self,
        app: &AppName,
        to: u64,
        guard: Option<u64>,
        actor: &str,
    ) -> Result<Deployment, DeployError> {
        let _one_at_a_time = self.deploying.lock().await;
        let history = self.history(app).await?;
        let earlier = history.iter().find_map(|entry| match entry {
            Entry::Deployed(deployment) if deployment.number == to => Some(deployment),
            _ => None,
        });
        let Some(earlier) = earlier else {
            return Err(DeployError::NotFound(format!("app `{app}` has no deployment {to}")));
        };
        let checked = deploy::restore(&self.deps.engine, &self.deps.storage, earlier).await?;
        self.check_names(app, &checked.manifest)?;
        let deployment = Deployment {
            number: 0,
            deployed_at: self.deps.clock.now(),
            deployed_by: actor.to_owned(),
            rollback_to: Some(to),
            ..earlier.clone()
        };
        self.commit_and_swap(deployment, &checked, guard).await
    }

    /// Stops serving an app. Its events stay, and a later deployment finds them, unless `purge` removes them for good:
    /// also those of an app that was removed without it before.
    ///
    /// # Errors
    /// Nothing changed, or what [`DeployError::NotPurged`] says; then it can be tried again, and is, at the next start
    /// and before the next deployment.
    pub async fn remove(
        &self,
        app: &AppName,
        purge: bool,
        guard: Option<u64>,
        actor: &str,
    ) -> Result<(), DeployError> {
        let _one_at_a_time = self.deploying.lock().await;
        let history = self.history(app).await?;
        match history.last() {
            Some(Entry::Deployed(_)) => {}
            Some(Entry::Removed { .. }) if purge => {}
            _ => return Err(DeployError::UnknownApp(app.clone())),
        }
        if !matches!(history.last(), Some(Entry::Removed { purge: true })) {
            let data = serde_json::json!({ "by": actor, "purge": purge });
            self.record(app, &history, guard, REMOVED, &data).await?;
        }
        crash_point(Point::RemoveAfterCommit);
        self.closed.write().remove(app.as_bytes());
        let removed = self.apps.write().remove(app.as_bytes());
        if let Some(removed) = removed {
            removed.close().await;
        }
        if purge {
            self.purge(app).await?;
        }
        Ok(())
    }

    /// Removes all that an app has kept. Rows first: without the log they would be rows of nothing.
    async fn purge(&self, app: &AppName) -> Result<(), DeployError> {
        let (deps, app) = (self.deps.clone(), app.clone());
        let purged = tokio::task::spawn_blocking(move || {
            crash_point(Point::PurgeBeforeRows);
            deps.models.remove_app(&app).map_err(|error| error.to_string())?;
            crash_point(Point::PurgeAfterRows);
            deps.storage.remove_app(&app).map_err(|error| error.to_string())?;
            crash_point(Point::PurgeDone);
            Ok(())
        });
        match purged.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(why)) => Err(DeployError::NotPurged(why)),
            Err(error) => Err(DeployError::NotPurged(error.to_string())),
        }
    }

    /// An app's deployments, the oldest first.
    ///
    /// # Errors
    /// The node's log can't be read.
    pub async fn deployments(&self, app: &AppName) -> Result<Vec<Deployment>, NodeError> {
        let history = self.history(app).await.map_err(|error| NodeError::Log(error.to_string()))?;
        Ok(history
            .into_iter()
            .filter_map(|entry| match entry {
                Entry::Deployed(deployment) => Some(deployment),
                Entry::Removed { .. } => None,
            })
            .collect())
    }

    /// Finishes commands under way and stops every projection.
    pub async fn shutdown(&self) {
        let apps = std::mem::take(&mut *self.apps.write());
        for app in apps.into_values() {
            app.close().await;
        }
    }

    async fn commit_and_swap(
        &self,
        mut deployment: Deployment,
        checked: &Checked,
        guard: Option<u64>,
    ) -> Result<Deployment, DeployError> {
        let app = deployment.app.clone();
        let history = self.history(&app).await?;
        deployment.number = history.len() as u64 + 1;
        if matches!(history.last(), Some(Entry::Removed { purge: true })) {
            self.purge(&app).await?;
        }
        // What may fail comes before anything is recorded.
        let prepared = Prepared::new(&self.deps, &app, checked).await?;
        let data =
            serde_json::to_value(&deployment).map_err(|error| DeployError::Unavailable(error.to_string()))?;
        crash_point(Point::DeployBeforeCommit);
        self.record(&app, &history, guard, DEPLOYED, &data).await?;
        crash_point(Point::DeployAfterCommit);
        let served = match self.app(&app) {
            Some(running) => {
                running.swap(Arc::new(deployment.clone()), checked, prepared.functions).await.map(|()| None)
            }
            None => App::open(self.deps.clone(), deployment.clone(), checked, prepared).await.map(Some),
        };
        match served {
            Ok(Some(started)) => {
                self.apps.write().insert(app.text().clone(), started);
                self.closed.write().remove(app.as_bytes());
            }
            Ok(None) => {}
            Err(error) => {
                let (number, why) = (deployment.number, error.to_string());
                error!(%app, deployment = number, why, "recorded, and not served; what served before serves on");
                if self.app(&app).is_none() {
                    self.closed.write().insert(app.text().clone(), why.clone());
                }
                return Err(DeployError::NotServed { number, why });
            }
        }
        crash_point(Point::DeployAfterSwap);
        info!(%app, deployment = deployment.number, "deployed");
        Ok(deployment)
    }

    /// Appends one event to an app's deployment stream, and waits until it is durable.
    async fn record(
        &self,
        app: &AppName,
        history: &[Entry],
        guard: Option<u64>,
        event_type: &'static str,
        data: &serde_json::Value,
    ) -> Result<(), DeployError> {
        let actual = current(history).map(|deployment| deployment.number);
        if guard.is_some_and(|guard| guard != actual.unwrap_or(0)) {
            return Err(DeployError::Conflict { actual });
        }
        let command_id = CommandId(Uuid::now_v7());
        let commit = NewCommit {
            stream: stream(app)?,
            expected: Expected::Revision((history.len() as u64).checked_sub(1).map(Revision)),
            command_id,
            actor: data["deployed_by"].as_str().or(data["by"].as_str()).unwrap_or("operator").into(),
            correlation_id: command_id.to_string().into(),
            causation_id: None,
            traceparent: None,
            module: Digest::default(),
            idempotency: None,
            origin: None,
            command: None,
            outcome: Outcome::Events(vec![NewEvent {
                event_type: EventType::trusted(Text::from_static(event_type)),
                schema_version: 1,
                data: data.to_string().into_bytes().into(),
                content_type: JSON,
            }]),
        };
        let unavailable = |error: &dyn std::fmt::Display| DeployError::Unavailable(error.to_string());
        let mut staged = self.system.append(commit).await.map_err(|error| match error {
            AppendError::Conflict { .. } => DeployError::Conflict { actual },
            error => unavailable(&error),
        })?;
        staged.settlement.wait().await.map_err(|error| unavailable(&error))
    }

    async fn history(&self, app: &AppName) -> Result<Vec<Entry>, DeployError> {
        let stream = stream(app)?;
        let mut history = Vec::new();
        loop {
            let from = Revision(history.len() as u64);
            let events = self
                .system
                .read_stream(&stream, from, ReadLimits::PAGE)
                .await
                .map_err(|error| DeployError::Unavailable(error.to_string()))?;
            if events.is_empty() {
                return Ok(history);
            }
            for event in &events {
                history.push(Entry::read(event).map_err(DeployError::Unavailable)?);
            }
        }
    }

    /// Deployment streams by app.
    async fn histories(&self) -> Result<BTreeMap<Text, Vec<Entry>>, NodeError> {
        let mut histories: BTreeMap<Text, Vec<Entry>> = BTreeMap::new();
        let filter = EventFilter {
            categories: Some(std::iter::once(Text::from_static(DEPLOYMENTS)).collect()),
            types: None,
        };
        let mut after = Position::START;
        loop {
            let batch = self
                .system
                .read(after, &filter, ReadLimits::PAGE)
                .await
                .map_err(|error| NodeError::Log(error.to_string()))?;
            for event in &batch.events {
                let entry = Entry::read(event).map_err(NodeError::Log)?;
                histories.entry(event.stream().key().into()).or_default().push(entry);
            }
            if batch.scanned_to == after {
                return Ok(histories);
            }
            after = batch.scanned_to;
        }
    }
}

/// What stands in a deployment stream.
enum Entry {
    Deployed(Deployment),
    Removed { purge: bool },
}

impl Entry {
    fn read(event: &StoredEvent) -> Result<Self, String> {
        match &*event.event_type {
            DEPLOYED => serde_json::from_slice(&event.data).map(Self::Deployed).map_err(|error| {
                format!("the deployment at position {} can't be read: {error}", event.position)
            }),
            REMOVED => {
                let data: serde_json::Value = serde_json::from_slice(&event.data).unwrap_or_default();
                Ok(Self::Removed { purge: data["purge"] == true })
            }
            other => Err(format!(
                "an event of type `{other}` at position {} is not of this version",
                event.position
            )),
        }
    }
}

/// The deployment that serves, if the app was not removed since.
fn current(history: &[Entry]) -> Option<Deployment> {
    match history.last()? {
        Entry::Deployed(deployment) => Some(deployment.clone()),
        Entry::Removed { .. } => None,
    }
}

fn stream(app: &AppName) -> Result<StreamId, DeployError> {
    let key = StreamKey::new(app.text().clone()).map_err(|error| DeployError::NotFound(error.to_string()))?;
    Ok(StreamId::new(&AggregateName::trusted(Text::from_static(DEPLOYMENTS)), &key))
}
