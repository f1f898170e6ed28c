//! An app that is deployed on a node, open or not. It is opened by its first use, by one opener for all who ask
//! meanwhile, and closed when nobody has used it for a while and nothing of it is under way.
//!
//! Who uses an app holds an [`Arc`] of it. It is closed only by whoever holds the last one, which was taken out of here
//! under the lock that gives them out: so no use ever sees it closing, and one that comes late waits, and opens it again.

use super::NodeDeps;
use crate::app::{App, Left, Opened};
use crate::deploy::{DeployError, Deployment, Offers, Release};
use crate::projections::{Kind, ProjectionStatus};
use ebb_domain::name::{AppName, ProjectionName};
use ebb_domain::port::log::Durable;
use parking_lot::{Mutex, RwLock};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use thiserror::Error;
use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;
use tracing::{debug, error, info};

/// How long after an app could not be opened the next use tries again. Until then it is told what the last one was told:
/// recovery may read much.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// Why an app can't be used now.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NotServed {
    /// It can't be opened: its log is damaged, say.
    #[error("the app can't be opened: {0}")]
    Unavailable(String),
    /// It was removed meanwhile.
    #[error("the app was removed")]
    Removed,
    /// The node opens nothing any more.
    #[error("the node is shutting down")]
    ShuttingDown,
}

/// How much of an app is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AppState {
    /// Nothing of it is open; the next use opens it.
    Idle,
    /// It is being opened or closed.
    Busy,
    /// It is open.
    Open,
    /// It could not be opened. Its next use tries again.
    Unavailable,
}

impl AppState {
    /// Its name: `idle`, `busy`, `open`, `unavailable`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Busy => "busy",
            Self::Open => "open",
            Self::Unavailable => "unavailable",
        }
    }
}

/// What can be told of an app without opening it.
#[derive(Clone, Debug)]
pub struct AppStatus {
    /// How much of it is there.
    pub state: AppState,
    /// Why it could not be opened.
    pub unavailable: Option<String>,
    /// The end of its log; none while nobody has looked.
    pub end: Option<Durable>,
    /// Its projections; none while nobody has looked.
    pub projections: Vec<ProjectionStatus>,
}

/// A deployed app.
pub struct DeployedApp {
    name: AppName,
    deps: NodeDeps,
    /// The node opens nothing any more.
    stopping: Arc<AtomicBool>,
    deployment: RwLock<Arc<Deployment>>,
    open: RwLock<Option<Arc<App>>>,
    /// Held by whoever opens, closes or deploys it.
    turn: Arc<tokio::sync::Mutex<()>>,
    /// Since it was looked at last.
    used: AtomicBool,
    removed: AtomicBool,
    known: Mutex<Known>,
}

/// What is known of an app that is not open.
#[derive(Default)]
struct Known {
    end: Option<Durable>,
    projections: Vec<ProjectionStatus>,
    is_at_rest: bool,
    failure: Option<(Instant, String)>,
    /// When somebody was seen to use it last.
    last_used: Option<Instant>,
}

impl DeployedApp {
    /// One that is not open. `rest` is where it was put to rest, if it was.
    pub(super) fn new(
        deps: NodeDeps,
        stopping: Arc<AtomicBool>,
        deployment: Deployment,
        rest: Option<Durable>,
    ) -> Arc<Self> {
        let resting = |offers: &Offers, rest: Durable| {
            let following = offers.functions.iter().filter(|function| function.follows_log);
            let statuses = following.filter_map(|function| {
                let (kind, name) = function.name.split_once('.')?;
                let kind = if kind == "projection" { Kind::Projection } else { Kind::Function };
                let name = ProjectionName::new(name).ok()?;
                Some(ProjectionStatus::resting(name, kind, function.models.clone(), rest.position))
            });
            let mut statuses: Vec<_> = statuses.collect();
            statuses.sort_by(|a, b| a.name.cmp(&b.name));
            statuses
        };
        let projections = rest
            .zip(deployment.offers.as_ref())
            .map(|(rest, offers)| resting(offers, rest))
            .unwrap_or_default();
        let known = Known { end: rest, projections, is_at_rest: rest.is_some(), ..Known::default() };
        Arc::new(Self {
            name: deployment.app.clone(),
            deps,
            stopping,
            deployment: RwLock::new(Arc::new(deployment)),
            open: RwLock::default(),
            turn: Arc::default(),
            used: AtomicBool::new(false),
            removed: AtomicBool::new(false),
            known: Mutex::new(known),
        })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &AppName {
        &self.name
    }

    /// The deployment that serves, or will when it is opened.
    #[must_use]
    pub fn deployment(&self) -> Arc<Deployment> {
        match self.if_open() {
            Some(app) => app.deployment(),
            None => self.deployment.read().clone(),
        }
    }

    /// The app, if it is open. Looking does not count as a use.
    #[must_use]
    pub fn if_open(&self) -> Option<Arc<App>> {
        self.open.read().clone()
    }

    /// The app, opened if it is not. Who holds it keeps it open.
    ///
    /// # Errors
    /// It can't be opened now.
    pub async fn app(self: &Arc<Self>) -> Result<Arc<App>, NotServed> {
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
        if let Some(app) = self.if_open() {
            return Ok(app);
        }
        let asked = Instant::now();
        let turn = self.turn().await;
        if let Some(app) = self.if_open() {
            return Ok(app);
        }
        if self.removed.load(Ordering::Acquire) {
            return Err(NotServed::Removed);
        }
        if self.stopping.load(Ordering::Acquire) {
            return Err(NotServed::ShuttingDown);
        }
        if let Some((at, why)) = &self.known.lock().failure
            && asked < *at + TRY_AGAIN
        {
            return Err(NotServed::Unavailable(why.clone()));
        }
        // In a task of its own: a caller who goes away leaves nothing half open, and the others wait for the same.
        let this = self.clone();
        let opening = tokio::spawn(async move {
            let opened = this.open().await;
            drop(turn);
            opened
        });
        opening.await.unwrap_or_else(|error| Err(NotServed::Unavailable(error.to_string())))
    }

    /// The right to open, close or change it.
    pub(super) async fn turn(&self) -> OwnedMutexGuard<()> {
        self.turn.clone().lock_owned().await
    }

    async fn open(&self) -> Result<Arc<App>, NotServed> {
        let started = Instant::now();
        let deployment = self.deployment.read().clone();
        let opened = async {
            let (storage, restored) = (self.deps.storage.clone(), deployment.clone());
            let release = tokio::task::spawn_blocking(move || Release::restore(&storage, &restored));
            let opened = Opened::open(&self.deps, &self.name);
            let (release, opened) = tokio::join!(release, opened);
            let release = release.map_err(|error| DeployError::Unavailable(error.to_string()))?;
            Ok::<_, DeployError>((release?, opened?))
        };
        match opened.await {
            Ok((release, opened)) => {
                let number = deployment.number;
                let app = App::open(self.deps.clone(), deployment, release, opened).await;
                self.serve(app.clone());
                debug!(app = %self.name, deployment = number, micros = started.elapsed().as_micros() as u64, "opened");
                Ok(app)
            }
            Err(error) => {
                error!(app = %self.name, %error, "app not opened; the others are served");
                self.failed(error.to_string());
                Err(NotServed::Unavailable(error.to_string()))
            }
        }
    }

    /// The deployment that was recorded last.
    pub(super) fn recorded(&self) -> Arc<Deployment> {
        self.deployment.read().clone()
    }

    /// The deployment that is recorded from now on; whoever calls has the turn.
    pub(super) fn record(&self, deployment: Arc<Deployment>) {
        *self.deployment.write() = deployment;
    }

    /// It is open from now on; whoever calls has the turn.
    pub(super) fn serve(&self, app: Arc<App>) {
        self.known.lock().failure = None;
        self.used.store(true, Ordering::Relaxed);
        *self.open.write() = Some(app);
    }

    /// It can't be opened; whoever calls has the turn.
    pub(super) fn failed(&self, why: String) {
        self.known.lock().failure = Some((Instant::now(), why));
    }

    /// What can be told of it as it is.
    #[must_use]
    pub fn status(&self) -> AppStatus {
        if let Some(app) = self.if_open() {
            return AppStatus {
                state: AppState::Open,
                unavailable: None,
                end: Some(*app.log().durable().borrow()),
                projections: app.projection_status(),
            };
        }
        let is_busy = self.turn.try_lock().is_err();
        let known = self.known.lock();
        let unavailable = known.failure.as_ref().map(|(_, why)| why.clone());
        let state = match &unavailable {
            _ if is_busy => AppState::Busy,
            Some(_) => AppState::Unavailable,
            None => AppState::Idle,
        };
        AppStatus { state, unavailable, end: known.end, projections: known.projections.clone() }
    }

    /// Whether something may be left to do that nobody has to ask for.
    pub(super) fn needs_opening(&self) -> bool {
        self.keeps_ready() || !self.known.lock().is_at_rest
    }

    fn keeps_ready(&self) -> bool {
        self.deployment.read().offers.as_ref().is_some_and(|offers| offers.keeps_ready)
    }

    /// Closes it if nobody has used it for so long, and nothing of it is under way.
    pub(super) fn close_if_idle(self: &Arc<Self>, idle: Duration) {
        if self.open.read().is_none() || self.keeps_ready() {
            return;
        }
        let Ok(turn) = self.turn.clone().try_lock_owned() else { return };
        let Some(app) = self.take_idle(idle) else { return };
        // In a task of its own: closing comes to its end whatever becomes of whoever asked for it.
        let this = self.clone();
        tokio::spawn(async move {
            this.close(&app).await;
            debug!(app = %this.name, "closed: nobody has used it for a while");
            drop(turn);
        });
    }

    fn take_idle(&self, idle: Duration) -> Option<Arc<App>> {
        let now = Instant::now();
        let mut open = self.open.write();
        let app = open.as_ref()?;
        let mut known = self.known.lock();
        let was_used = self.used.swap(false, Ordering::Relaxed) || Arc::strong_count(app) > 1;
        let last_used = match known.last_used {
            Some(last_used) if !was_used => last_used,
            _ => now,
        };
        known.last_used = Some(last_used);
        // The lock is held: nobody gets hold of it while this looks.
        if now < last_used + idle || !app.is_idle() {
            return None;
        }
        open.take()
    }

    /// Closes it, whoever may be using it; whoever calls has the turn.
    pub(super) async fn shut(&self) {
        let app = self.open.write().take();
        if let Some(app) = app {
            self.close(&app).await;
        }
    }

    /// Closes it for good; whoever calls has the turn.
    pub(super) async fn remove(&self) {
        self.removed.store(true, Ordering::Release);
        self.shut().await;
        info!(app = %self.name, "removed");
    }

    async fn close(&self, app: &App) {
        let Left { end, projections, is_at_rest } = app.close().await;
        let mut known = self.known.lock();
        *known = Known { end, projections, is_at_rest, ..Known::default() };
    }
}
