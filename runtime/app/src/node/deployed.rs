//! An app that is deployed on a node, open or not. It is opened by its first use, by one opener for all who ask
//! meanwhile, and closed when nobody has used it for a while and nothing of it is under way.
//!
//! Who uses an app holds an [`Arc`] of it. It is closed only by whoever holds the last one, which was taken out of here
//! under the lock that gives them out: so no use ever sees it closing, and one that comes late waits, and opens it again.

use super::NodeDeps;
use super::places::{Place, Places};
use crate::app::{App, Left, Opened};
use crate::deploy::{DeployError, Deployment, Offers, Release};
use crate::projections::{Kind, ProjectionStatus};
use ebb_domain::name::{AppName, ProjectionName};
use ebb_domain::port::log::Durable;
use parking_lot::{Mutex, RwLock};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use thiserror::Error;
use tokio::sync::OwnedMutexGuard;
use tokio::task::JoinHandle;
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
    /// As many apps are open as may be, and all of them are in use.
    #[error("all {0} places for open apps are taken; `apps.open` in the node's settings allows more")]
    Full(usize),
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
    places: Arc<Places>,
    /// The node opens nothing any more.
    stopping: Arc<AtomicBool>,
    deployment: RwLock<Arc<Deployment>>,
    open: RwLock<Option<OpenApp>>,
    /// Held by whoever opens, closes or deploys it.
    turn: Arc<tokio::sync::Mutex<()>>,
    /// When it was used last, in milliseconds of [`Places::millis`].
    used_at: AtomicU64,
    removed: AtomicBool,
    known: Mutex<Known>,
}

/// An app that is open, and the place that it takes.
struct OpenApp {
    app: Arc<App>,
    place: Place,
}

/// What is known of an app that is not open.
#[derive(Default)]
struct Known {
    end: Option<Durable>,
    projections: Vec<ProjectionStatus>,
    is_at_rest: bool,
    failure: Option<(Instant, String)>,
    /// When there was no place for it, and how many there are.
    full: Option<(Instant, usize)>,
}

impl Known {
    /// What who asked at this moment is told without another try.
    fn told(&self, asked: Instant) -> Result<(), NotServed> {
        match (&self.failure, &self.full) {
            (Some((at, why)), _) if asked < *at + TRY_AGAIN => Err(NotServed::Unavailable(why.clone())),
            // Only those who waited for the try that found no place: there may be one by now.
            (_, Some((at, most))) if asked <= *at => Err(NotServed::Full(*most)),
            _ => Ok(()),
        }
    }
}

impl DeployedApp {
    /// One that is not open. `rest` is where it was put to rest, if it was.
    pub(super) fn new(
        deps: NodeDeps,
        places: Arc<Places>,
        stopping: Arc<AtomicBool>,
        deployment: Deployment,
        rest: Option<Durable>,
    ) -> Arc<Self> {
        let resting = |offers: &Offers, rest: Durable| {
            let following = offers.functions.iter().filter(|function| function.follows_log);
            let statuses = following.filter_map(|function| {
                let (kind, name) = function.name.split_once('.')?;
                let kind = match kind {
                    "projection" => Kind::Projection,
                    "commands" => Kind::Commands,
                    _ => Kind::Function,
                };
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
            places,
            stopping,
            deployment: RwLock::new(Arc::new(deployment)),
            open: RwLock::default(),
            turn: Arc::default(),
            used_at: AtomicU64::new(0),
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
        self.open.read().as_ref().map(|open| open.app.clone())
    }

    /// The app, opened if it is not. Who holds it keeps it open.
    ///
    /// # Errors
    /// It can't be opened now.
    pub async fn app(self: &Arc<Self>) -> Result<Arc<App>, NotServed> {
        self.used_at.store(self.places.millis(), Ordering::Relaxed);
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
        self.known.lock().told(asked)?;
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

    async fn open(self: &Arc<Self>) -> Result<Arc<App>, NotServed> {
        let started = Instant::now();
        let place = match self.places.take().await {
            Ok(place) => place,
            Err(most) => {
                self.known.lock().full = Some((Instant::now(), most));
                return Err(NotServed::Full(most));
            }
        };
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
                self.serve(app.clone(), place);
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
    pub(super) fn serve(self: &Arc<Self>, app: Arc<App>, place: Place) {
        self.known.lock().failure = None;
        self.used_at.store(self.places.millis(), Ordering::Relaxed);
        *self.open.write() = Some(OpenApp { app, place });
        self.places.is_open(self);
    }

    /// It can't be opened; whoever calls has the turn.
    pub(super) fn failed(&self, why: String) {
        self.known.lock().failure = Some((Instant::now(), why));
    }

    /// What can be told of it as it is.
    #[must_use]
    pub fn status(&self) -> AppStatus {
        if let Some(app) = self.if_open() {
            // A statement of its own: what it borrows is borrowed again below, and between the two whoever moves the mark may
            // wait for the first, and the second for whoever moves it.
            let end = *app.log().durable().borrow();
            return AppStatus {
                state: AppState::Open,
                unavailable: None,
                end: Some(end),
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

    /// Whether pages of other origins may read what it answers, as far as that is known without opening it.
    #[must_use]
    pub fn has_cors(&self) -> bool {
        self.deployment.read().offers.as_ref().is_none_or(|offers| offers.has_cors)
    }

    fn keeps_ready(&self) -> bool {
        self.deployment.read().offers.as_ref().is_some_and(|offers| offers.keeps_ready)
    }

    /// When it was used last, in milliseconds of [`Places::millis`].
    pub(super) fn used_at(&self) -> u64 {
        self.used_at.load(Ordering::Relaxed)
    }

    /// Closes it if nobody has used it for so long, and nothing of it is under way; the task that does, if one does.
    pub(super) fn close_if_idle(self: &Arc<Self>, idle: Duration) -> Option<JoinHandle<()>> {
        if self.open.read().is_none() || self.keeps_ready() {
            return None;
        }
        let turn = self.turn.clone().try_lock_owned().ok()?;
        let OpenApp { app, place } = self.take_idle(idle)?;
        // In a task of its own: closing comes to its end whatever becomes of whoever asked for it.
        let this = self.clone();
        Some(tokio::spawn(async move {
            this.close(&app).await;
            debug!(app = %this.name, "closed: nobody has used it for a while");
            drop(turn);
            drop(place);
        }))
    }

    fn take_idle(&self, idle: Duration) -> Option<OpenApp> {
        let mut open = self.open.write();
        let app = &open.as_ref()?.app;
        let now = self.places.millis();
        // The lock is held: nobody gets hold of it while this looks.
        if Arc::strong_count(app) > 1 {
            self.used_at.store(now, Ordering::Relaxed);
            return None;
        }
        let unused = Duration::from_millis(now.saturating_sub(self.used_at()));
        if unused < idle || !app.is_idle() {
            return None;
        }
        open.take()
    }

    /// Closes it, whoever may be using it; whoever calls has the turn.
    pub(super) async fn shut(&self) {
        let open = self.open.write().take();
        if let Some(OpenApp { app, place }) = open {
            self.close(&app).await;
            drop(place);
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
