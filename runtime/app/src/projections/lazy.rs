//! Projections that run from when they are first needed: those of an app that was put to rest have read all of its log,
//! so that none of their files is opened before the log grows, or a reader comes.

use super::reader::ModelReader;
use super::service::{ProjectionDeployment, ProjectionDeps, ProjectionError, Projections};
use super::status::ProjectionStatus;
use ebb_domain::event::Position;
use ebb_domain::name::{AppName, ModelName, TopicName};
use ebb_domain::port::log::Durable;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tracing::{error, warn};

/// How long after a failed start the next is tried, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// How far they are.
enum Phase {
    /// They have read everything up to here, and none of them runs.
    Resting(Position),
    /// They are being opened.
    Starting,
    /// They run.
    Running,
    /// They could not be opened, and are tried again.
    Failed(String),
}

/// The projections of one app.
pub(crate) struct LazyProjections {
    app: AppName,
    projections: Arc<Projections>,
    durable: watch::Receiver<Durable>,
    phase: Arc<watch::Sender<Phase>>,
    wanted: Arc<Notify>,
    /// What there is to tell of those that do not run.
    resting: Mutex<Vec<ProjectionStatus>>,
    /// Starts them. Held by whoever changes what is to run.
    starter: tokio::sync::Mutex<Option<Starter>>,
}

struct Starter {
    end: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Starter {
    /// A start that has begun comes to its end: a projector that is half started would be nobody's.
    async fn ended(self) {
        self.end.send_replace(true);
        if let Err(failure) = self.task.await
            && failure.is_panic()
        {
            error!(%failure, "starting projections panicked");
        }
    }
}

impl LazyProjections {
    pub(crate) fn new(deps: ProjectionDeps) -> Self {
        Self {
            app: deps.app.clone(),
            durable: deps.log.durable(),
            projections: Arc::new(Projections::start(deps)),
            phase: Arc::new(watch::Sender::new(Phase::Starting)),
            wanted: Arc::default(),
            resting: Mutex::default(),
            starter: tokio::sync::Mutex::default(),
        }
    }

    /// Runs these projections and no others, from now on; see [`Projections::deploy`].
    pub(crate) async fn deploy(&self, set: Vec<ProjectionDeployment>) -> Result<(), ProjectionError> {
        let mut starter = self.starter.lock().await;
        if let Some(starter) = starter.take() {
            starter.ended().await;
        }
        let deployed = self.projections.deploy(set.clone()).await;
        match &deployed {
            Ok(()) => {
                self.phase.send_replace(Phase::Running);
            }
            // Those that ran go on; those that never did are to be tried again.
            Err(_) if matches!(*self.phase.borrow(), Phase::Running) => {}
            Err(error) => {
                self.phase.send_replace(Phase::Failed(error.to_string()));
                *starter = Some(self.start(set, None));
            }
        }
        deployed
    }

    /// Runs these projections from when they are needed. `rest` is where they all have got to; none: nobody knows, so
    /// that they are needed now.
    pub(crate) async fn deploy_later(&self, set: Vec<ProjectionDeployment>, rest: Option<Position>) {
        if let Some(rest) = rest {
            let resting = |deployment: &ProjectionDeployment| {
                let models = deployment.spec.models.iter().cloned().collect();
                let kind = deployment.kind();
                ProjectionStatus::resting(deployment.spec.name.clone(), kind, models, rest)
            };
            *self.resting.lock() = set.iter().map(resting).collect();
            self.phase.send_replace(Phase::Resting(rest));
        }
        *self.starter.lock().await = Some(self.start(set, rest));
    }

    fn start(&self, set: Vec<ProjectionDeployment>, rest: Option<Position>) -> Starter {
        let (end, mut ended) = watch::channel(false);
        let (projections, phase, wanted) =
            (self.projections.clone(), self.phase.clone(), self.wanted.clone());
        let (app, mut durable) = (self.app.clone(), self.durable.clone());
        let task = tokio::spawn(async move {
            let mut ended = async move || drop(ended.wait_for(|ended| *ended).await);
            if let Some(rest) = rest {
                tokio::select! {
                    () = ended() => return,
                    grown = durable.wait_for(|durable| durable.position > rest) => if grown.is_err() { return },
                    () = wanted.notified() => {}
                }
                phase.send_replace(Phase::Starting);
            }
            let (mut pause, longest) = RETRY;
            while let Err(error) = projections.deploy(set.clone()).await {
                warn!(%app, %error, "projections could not be started; trying again");
                phase.send_replace(Phase::Failed(error.to_string()));
                tokio::select! {
                    () = ended() => return,
                    () = tokio::time::sleep(pause) => {}
                }
                pause = (pause * 2).min(longest);
            }
            phase.send_replace(Phase::Running);
        });
        Starter { end, task }
    }

    /// The projections, running.
    pub(crate) async fn running(&self) -> Result<&Projections, ProjectionError> {
        if matches!(*self.phase.borrow(), Phase::Running) {
            return Ok(&self.projections);
        }
        self.wanted.notify_one();
        let mut phase = self.phase.subscribe();
        let known = phase.wait_for(|phase| matches!(phase, Phase::Running | Phase::Failed(_))).await;
        match known.as_deref() {
            Ok(Phase::Failed(why)) => Err(ProjectionError::Unavailable(why.clone())),
            _ => Ok(&self.projections),
        }
    }

    /// A reader of a model; none if no projection writes it.
    pub(crate) async fn model(&self, model: &ModelName) -> Result<Option<ModelReader>, ProjectionError> {
        Ok(self.running().await?.model(model))
    }

    /// How all projections are doing, by name. Does not wait for any of them.
    pub(crate) fn status(&self) -> Vec<ProjectionStatus> {
        match &*self.phase.borrow() {
            Phase::Running => self.projections.status(),
            _ => self.resting.lock().clone(),
        }
    }

    /// Whether all have read the log up to here, and wait for more.
    pub(crate) fn are_done(&self, end: Position) -> bool {
        match &*self.phase.borrow() {
            Phase::Resting(rest) => *rest == end,
            Phase::Running => self.projections.are_done(end),
            Phase::Starting | Phase::Failed(_) => false,
        }
    }

    /// Goes on with a topic as it is. Whether anything takes its records straight.
    pub(crate) fn accept(&self, topic: &TopicName) -> bool {
        self.projections.accept(topic)
    }

    /// Whether what is to be deployed can be; see [`Projections::check`].
    pub(crate) async fn check(&self, set: &[ProjectionDeployment]) -> Result<(), ProjectionError> {
        self.projections.check(set).await
    }

    /// Stops all of them. What they have been doing, and what they had to do still, is told afterwards by what
    /// [`LazyProjections::status`] said before and says now.
    pub(crate) async fn close(&self) {
        if let Some(starter) = self.starter.lock().await.take() {
            starter.ended().await;
        }
        self.projections.shutdown().await;
    }
}
