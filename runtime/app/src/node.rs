//! A node: the apps that are deployed on it. Its own log, `system`, says which; everything here can be made again
//! from that log and the kept files.
//!
//! A start reads that log and nothing else. An app is opened by its first use ([`deployed`]); one that may have something
//! to do that nobody asks for, because it was not put to rest, is opened soon after the start.

mod deployed;
mod places;
#[cfg(test)]
mod tests;

pub use deployed::{AppState, AppStatus, DeployedApp, NotServed};

use crate::app::{App, Opened};
use crate::bundle::{Bundle, normalise};
use crate::deploy::{self, Checked, DeployError, Deployment, Release, SYSTEM};
use ebb_domain::commit::{CommandId, Expected, NewCommit, Outcome};
use ebb_domain::digest::Digest;
use ebb_domain::event::{JSON, NewEvent, Position, Revision, StoredEvent};
use ebb_domain::manifest::Manifest;
use ebb_domain::name::{AggregateName, AppName, EventType};
use ebb_domain::port::Clock;
use ebb_domain::port::bus::OptionalBus;
use ebb_domain::port::guest::Engine;
use ebb_domain::port::log::{AppendError, Durable, EventFilter, EventLog, ReadLimits};
use ebb_domain::port::models::ModelStores;
use ebb_domain::port::secrets::Secrets;
use ebb_domain::port::storage::{Storage, StorageError};
use ebb_domain::stream::{StreamId, StreamKey};
use ebb_domain::text::Text;
use ebb_faults::{Point, crash_point};
use futures_util::{StreamExt, stream};
use parking_lot::RwLock;
use places::Places;
use std::collections::{BTreeMap, HashMap};
use std::future::ready;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;
use thiserror::Error;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tracing::{error, info, warn};
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
    /// Secrets of the apps.
    pub secrets: Arc<dyn Secrets>,
    /// The wall clock.
    pub clock: Arc<dyn Clock>,
    /// Kafka, where the node has it.
    pub bus: OptionalBus,
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

/// Apps that a start opens at the same time.
const OPENED_SIDE_BY_SIDE: usize = 4;

/// How often a start tries to open an app that can't be opened, and how long it pauses at most.
const TRIES: usize = 5;
const LONGEST_PAUSE: Duration = Duration::from_secs(16);

/// Apps that a shutdown closes at the same time.
const CLOSED_SIDE_BY_SIDE: usize = 16;

/// How a node treats its apps.
#[derive(Clone, Copy, Debug)]
pub struct NodeOptions {
    /// How long an app stays open without being used.
    pub idle: Duration,
    /// Apps that may be open at the same time.
    pub open: usize,
}

impl Default for NodeOptions {
    fn default() -> Self {
        Self { idle: Duration::from_secs(600), open: 256 }
    }
}

/// The apps of a node.
pub struct Node {
    deps: NodeDeps,
    system: Arc<dyn EventLog>,
    catalogue: RwLock<Catalogue>,
    places: Arc<Places>,
    /// Deployments happen one at a time.
    deploying: Mutex<()>,
    /// Nothing is opened any more.
    stopping: Arc<AtomicBool>,
    tasks: parking_lot::Mutex<Vec<JoinHandle<()>>>,
}

/// The deployed apps.
#[derive(Default)]
struct Catalogue {
    apps: BTreeMap<Text, Arc<DeployedApp>>,
    /// By host name, lower case.
    hosts: HashMap<String, Arc<DeployedApp>>,
}

impl Catalogue {
    fn insert(&mut self, app: Arc<DeployedApp>) {
        self.apps.insert(app.name().text().clone(), app);
        self.index_hosts();
    }

    fn remove(&mut self, name: &AppName) -> Option<Arc<DeployedApp>> {
        let removed = self.apps.remove(name.as_bytes());
        self.index_hosts();
        removed
    }

    fn index_hosts(&mut self) {
        self.hosts.clear();
        for app in self.apps.values() {
            let deployment = app.recorded();
            let hosts = deployment.offers.iter().flat_map(|offers| &offers.hosts);
            self.hosts.extend(hosts.map(|host| (host.clone(), app.clone())));
        }
    }
}

impl Node {
    /// Reads the node's log. Apps are opened by their first use, or soon if they may have something to do.
    ///
    /// # Errors
    /// The node's own log can't be opened or read.
    pub async fn open(deps: NodeDeps, options: NodeOptions) -> Result<Arc<Self>, NodeError> {
        let name = AppName::trusted(Text::from_static(SYSTEM));
        let storage = deps.storage.clone();
        let system = tokio::task::spawn_blocking(move || storage.open_log(&name))
            .await
            .map_err(|error| NodeError::Log(error.to_string()))??;
        let node = Arc::new(Self {
            deps,
            system,
            catalogue: RwLock::default(),
            places: Places::new(options.open),
            deploying: Mutex::new(()),
            stopping: Arc::default(),
            tasks: parking_lot::Mutex::default(),
        });
        let mut deployments = Vec::new();
        for (app, mut history) in node.histories().await? {
            match history.pop() {
                Some(Entry::Deployed(deployment)) => deployments.push(deployment),
                Some(Entry::Removed { purge: true }) => {
                    if let Err(error) = node.purge(&AppName::trusted(app.clone())).await {
                        error!(%app, %error, "the next start tries again");
                    }
                }
                Some(Entry::Removed { purge: false }) | None => {}
            }
        }
        let this = node.clone();
        let catalogue = tokio::task::spawn_blocking(move || this.catalogued(deployments));
        *node.catalogue.write() = catalogue.await.map_err(|error| NodeError::Log(error.to_string()))?;
        let opening = tokio::spawn(open_unfinished(Arc::downgrade(&node)));
        let closing = tokio::spawn(close_idle(Arc::downgrade(&node), options.idle));
        *node.tasks.lock() = vec![opening, closing];
        Ok(node)
    }

    /// The deployments that serve, with what is known of their apps. Blocks.
    fn catalogued(&self, deployments: Vec<Deployment>) -> Catalogue {
        let mut catalogue = Catalogue::default();
        for mut deployment in deployments {
            let app = deployment.app.clone();
            if deployment.offers.is_none() {
                // Recorded by an earlier version: the manifest says it.
                match Release::restore(&self.deps.storage, &deployment) {
                    Ok(release) => deployment.offers = Some(release.offers()),
                    Err(error) => error!(%app, %error, "its manifest can't be read"),
                }
            }
            let rest = self.deps.storage.rest(&app).unwrap_or_else(|error| {
                warn!(%app, %error, "taken as not at rest");
                None
            });
            catalogue.apps.insert(app.text().clone(), self.deployed(deployment, rest));
        }
        catalogue.index_hosts();
        catalogue
    }

    fn deployed(&self, deployment: Deployment, rest: Option<Durable>) -> Arc<DeployedApp> {
        DeployedApp::new(self.deps.clone(), self.places.clone(), self.stopping.clone(), deployment, rest)
    }

    /// A deployed app by its name.
    #[must_use]
    pub fn deployed_app(&self, name: &str) -> Option<Arc<DeployedApp>> {
        self.catalogue.read().apps.get(name.as_bytes()).cloned()
    }

    /// The deployed app that a host name selects.
    #[must_use]
    pub fn app_for_host(&self, host: &str) -> Option<Arc<DeployedApp>> {
        let catalogue = self.catalogue.read();
        if catalogue.hosts.is_empty() {
            return None;
        }
        match host.bytes().any(|byte| byte.is_ascii_uppercase()) {
            true => catalogue.hosts.get(&host.to_ascii_lowercase()).cloned(),
            false => catalogue.hosts.get(host).cloned(),
        }
    }

    /// The deployed app, if the node has exactly one.
    #[must_use]
    pub fn only_app(&self) -> Option<Arc<DeployedApp>> {
        let catalogue = self.catalogue.read();
        catalogue.apps.values().next().filter(|_| catalogue.apps.len() == 1).cloned()
    }

    /// All deployed apps, by name.
    #[must_use]
    pub fn apps(&self) -> Vec<Arc<DeployedApp>> {
        self.catalogue.read().apps.values().cloned().collect()
    }

    /// Whether this open app is the one that serves under its name.
    #[must_use]
    pub fn serves(&self, app: &Arc<App>) -> bool {
        let deployed = self.deployed_app(app.name());
        deployed.and_then(|deployed| deployed.if_open()).is_some_and(|open| Arc::ptr_eq(&open, app))
    }

    /// Checks a bundle and compiles its modules; changes nothing.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub async fn check(&self, bundle: &Bundle) -> Result<Manifest, DeployError> {
        self.checked(bundle).await.map(|checked| checked.manifest)
    }

    /// All that can be said against a bundle without looking at what else is deployed.
    async fn checked(&self, bundle: &Bundle) -> Result<Checked, DeployError> {
        let checked = deploy::check(&self.deps.engine, bundle).await?;
        deploy::check_secrets(&*self.deps.secrets, &checked.manifest)?;
        deploy::check_kafka(&checked.manifest, self.deps.bus.is_some())?;
        Ok(checked)
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
        let checked = self.checked(&bundle).await?;
        drop(bundle);
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
        let release = Release::kept(&self.deps.storage, checked, &files);
        let _one_at_a_time = self.deploying.lock().await;
        // Again: another deployment may have taken a host meanwhile.
        self.check_names(app, &release.manifest)?;
        let deployment = Deployment {
            app: app.clone(),
            number: 0,
            manifest,
            files,
            deployed_at: self.deps.clock.now(),
            deployed_by: actor.to_owned(),
            rollback_to: None,
            offers: Some(release.offers()),
        };
        self.commit_and_swap(deployment, release, guard).await
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
        // Checked again: neither the engine nor the node's settings may be those that accepted it.
        let (storage, kept) = (self.deps.storage.clone(), earlier.clone());
        let bundle = tokio::task::spawn_blocking(move || deploy::bundle(&storage, &kept)).await;
        let bundle = bundle.map_err(|error| DeployError::Unavailable(error.to_string()))??;
        let checked = self.checked(&bundle).await?;
        self.check_names(app, &checked.manifest)?;
        let release = Release::kept(&self.deps.storage, checked, &earlier.files);
        let deployment = Deployment {
            number: 0,
            deployed_at: self.deps.clock.now(),
            deployed_by: actor.to_owned(),
            rollback_to: Some(to),
            offers: Some(release.offers()),
            ..earlier.clone()
        };
        self.commit_and_swap(deployment, release, guard).await
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
        let removed = self.catalogue.write().remove(app);
        if let Some(removed) = removed {
            let _turn = removed.turn().await;
            if let Some(app) = removed.if_open() {
                app.leave_topics().await;
            }
            removed.remove().await;
        }
        self.deps.engine.forget(app);
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

    /// Opens nothing any more, finishes commands under way, stops every projection and closes every log.
    pub async fn shutdown(&self) {
        self.stopping.store(true, Ordering::Release);
        for task in std::mem::take(&mut *self.tasks.lock()) {
            task.abort();
        }
        let closing = self.apps().into_iter().map(async |app| {
            let _turn = app.turn().await;
            app.shut().await;
        });
        stream::iter(closing).buffer_unordered(CLOSED_SIDE_BY_SIDE).collect::<()>().await;
    }

    async fn commit_and_swap(
        &self,
        mut deployment: Deployment,
        release: Release,
        guard: Option<u64>,
    ) -> Result<Deployment, DeployError> {
        let app = deployment.app.clone();
        let history = self.history(&app).await?;
        check_guard(&history, guard)?;
        deployment.number = history.len() as u64 + 1;
        if matches!(history.last(), Some(Entry::Removed { purge: true })) {
            self.purge(&app).await?;
        }
        let known = self.deployed_app(&app);
        let place = known.clone().unwrap_or_else(|| self.deployed(deployment.clone(), None));
        let _turn = place.turn().await;
        if self.stopping.load(Ordering::Acquire) {
            return Err(DeployError::Unavailable("the node is shutting down".into()));
        }
        let running = place.if_open();
        if let Some(running) = &running {
            running.check(&release).await?;
        }
        // What may fail comes before anything is recorded.
        let opened = match &running {
            Some(_) => None,
            None => {
                let free = self.places.take().await.map_err(DeployError::Full)?;
                Some((Opened::open(&self.deps, &app).await?, free))
            }
        };
        let data =
            serde_json::to_value(&deployment).map_err(|error| DeployError::Unavailable(error.to_string()))?;
        crash_point(Point::DeployBeforeCommit);
        if let Err(error) = self.record(&app, &history, guard, DEPLOYED, &data).await {
            if let Some((opened, _place)) = opened {
                opened.close(&self.deps, &app).await;
            }
            return Err(error);
        }
        crash_point(Point::DeployAfterCommit);
        let recorded = Arc::new(deployment.clone());
        place.record(recorded.clone());
        let served = match (running, opened) {
            (Some(running), _) => running.swap(recorded, release).await,
            (None, Some((opened, free))) => {
                let served = App::deploy(self.deps.clone(), recorded, release, opened).await;
                served.map(|app| place.serve(app, free))
            }
            (None, None) => Err(DeployError::Unavailable("the app is neither open nor opened".into())),
        };
        self.catalogue.write().insert(place.clone());
        if let Err(error) = served {
            let (number, why) = (deployment.number, error.to_string());
            error!(%app, deployment = number, why, "recorded, and not served; what served before serves on");
            place.failed(why.clone());
            return Err(DeployError::NotServed { number, why });
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
        check_guard(history, guard)?;
        let command_id = CommandId(Uuid::now_v7());
        let commit = NewCommit {
            stream: stream(app)?,
            expected: Expected::Revision((history.len() as u64).checked_sub(1).map(Revision)),
            command_id,
            actor: data["deployed_by"].as_str().or(data["by"].as_str()).unwrap_or("operator").into(),
            correlation_id: command_id.to_string().into(),
            causation_id: None,
            hops: 0,
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
            AppendError::Conflict { .. } => DeployError::Conflict { actual: current(history) },
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
            ..EventFilter::default()
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

/// The number of the deployment that serves, if the app was not removed since.
fn current(history: &[Entry]) -> Option<u64> {
    match history.last()? {
        Entry::Deployed(deployment) => Some(deployment.number),
        Entry::Removed { .. } => None,
    }
}

/// Whether the app is where the caller expects it.
fn check_guard(history: &[Entry], guard: Option<u64>) -> Result<(), DeployError> {
    let actual = current(history);
    match guard {
        Some(guard) if guard != actual.unwrap_or(0) => Err(DeployError::Conflict { actual }),
        _ => Ok(()),
    }
}

fn stream(app: &AppName) -> Result<StreamId, DeployError> {
    let key = StreamKey::new(app.text().clone()).map_err(|error| DeployError::NotFound(error.to_string()))?;
    Ok(StreamId::new(&AggregateName::trusted(Text::from_static(DEPLOYMENTS)), &key))
}

/// Opens the apps that were not put to rest: a crash, say, left them with something to do that nobody may ask for.
async fn open_unfinished(node: Weak<Node>) {
    let Some(apps) = node.upgrade().map(|node| node.apps()) else { return };
    let mut left: Vec<_> = apps.into_iter().filter(|app| app.needs_opening()).collect();
    let (mut pause, mut tries) = (Duration::from_secs(1), 0);
    while !left.is_empty() && tries < TRIES {
        let tried = left.into_iter().map(async |app| app.app().await.err().map(|error| (app, error)));
        let failed: Vec<_> =
            stream::iter(tried).buffer_unordered(OPENED_SIDE_BY_SIDE).filter_map(ready).collect().await;
        // What stood in the way may pass: too many open files, say. What does not is met by the next use. Who finds no
        // place waits for one, however long the others take.
        let waits = failed.iter().any(|(_, error)| matches!(error, NotServed::Full(_)));
        tries += usize::from(!waits);
        left = failed.into_iter().map(|(app, _)| app).collect();
        if !left.is_empty() {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// Closes apps that nobody uses, for as long as there is a node.
async fn close_idle(node: Weak<Node>, idle: Duration) {
    let pause = (idle / 4).clamp(Duration::from_millis(5), Duration::from_secs(30));
    loop {
        tokio::time::sleep(pause).await;
        let Some(apps) = node.upgrade().map(|node| node.apps()) else { return };
        for app in apps {
            app.close_if_idle(idle);
        }
    }
}
