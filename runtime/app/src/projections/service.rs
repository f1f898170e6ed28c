//! An app's projections: which there are, which version of each serves, and which one is being built.

use super::effects::{self, Effects};
use super::overlay::Models;
use super::parking::{Command, Retried, Seek, Skipped};
use super::projector::{Projector, Runner};
use super::reader::ModelReader;
use super::status::{ProjectionStatus, State};
use super::topic_feed::Topics;
use super::version::{self, Body, Program, Version};
use crate::app::App;
use ebb_domain::digest::Digest;
use ebb_domain::event::{Position, StoredEvent};
use ebb_domain::manifest::{ProjectionSpec, Source};
use ebb_domain::model::ModelSchema;
use ebb_domain::name::{AppName, ModelName, ProjectionName, TopicName};
use ebb_domain::port::Clock;
use ebb_domain::port::bus::{BusError, BusErrorKind, OptionalBus, Standing};
use ebb_domain::port::guest::{CallError, Engine, FunctionSpec, TriggerKind};
use ebb_domain::port::log::EventLog;
use ebb_domain::port::models::{ModelError, ModelStores, Parked, ProjectionVersion, RowBatch};
use ebb_domain::text::Text;
use ebb_domain::topic::{NewRecord, TopicSpec, Via};
use futures_util::{StreamExt, TryStreamExt, stream};
use parking_lot::{Mutex, RwLock};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Weak};
use thiserror::Error;
use tokio::sync::{oneshot, watch};
use tracing::{info, warn};

/// Projections of one deployment that are opened at the same time: each waits for the disk now and then.
const SIDE_BY_SIDE: usize = 8;

/// What projections are put together from.
#[derive(Clone)]
pub struct ProjectionDeps {
    /// Their app.
    pub app: AppName,
    /// The same, as event functions reach it.
    pub own_app: Weak<App>,
    /// Its log.
    pub log: Arc<dyn EventLog>,
    /// Guest code.
    pub engine: Arc<dyn Engine>,
    /// Rows.
    pub stores: Arc<dyn ModelStores>,
    /// The wall clock, for what people read; waiting goes by tokio's.
    pub clock: Arc<dyn Clock>,
    /// Kafka, where the node has it.
    pub bus: OptionalBus,
}

impl ProjectionDeps {
    /// Produces a record.
    pub(crate) async fn publish(&self, record: NewRecord) -> Result<(), BusError> {
        let none = || BusError::new(BusErrorKind::Denied, "the node has no brokers: set `kafka.brokers`");
        self.bus.as_ref().ok_or_else(none)?.publish(vec![record]).await
    }
}

/// One projection of a deployment.
#[derive(Clone, Debug)]
pub struct ProjectionDeployment {
    /// What the manifest says.
    pub spec: ProjectionSpec,
    /// Its module, compiled already.
    pub module: Digest,
    /// The models that it writes.
    pub models: Vec<ModelSchema>,
    /// How the records are read of topics that it takes them straight from.
    pub topics: BTreeMap<TopicName, TopicSpec>,
    /// For an event function: what it is instead of rows.
    pub effects: Option<Effects>,
}

impl ProjectionDeployment {
    /// Whether it takes records straight from topics.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.spec.source.is_direct()
    }

    /// The topics that it takes records straight from; none if it follows the log.
    pub(super) fn direct(&self) -> Option<Arc<Topics>> {
        match &self.spec.source {
            Source::Topics(source) if source.via == Via::Direct => {
                let topics = source.topics.iter();
                let specs =
                    topics.map(|name| (name.clone(), self.topics.get(name).cloned().unwrap_or_default()));
                Some(Topics::new(self.spec.name.clone(), source.group.clone(), specs.collect()))
            }
            _ => None,
        }
    }
}

/// Why something could not be done with projections.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ProjectionError {
    /// There is no projection of that name.
    #[error("there is no projection `{0}`")]
    Unknown(ProjectionName),
    /// Its module can't be run.
    #[error("projection `{projection}`: {error}")]
    Module {
        /// The projection.
        projection: ProjectionName,
        /// What the engine says.
        error: CallError,
    },
    /// Its rows can't be opened or read.
    #[error(transparent)]
    Store(#[from] ModelError),
    /// Nothing is parked under that key.
    #[error("projection `{projection}` has nothing parked under the key `{key}`")]
    NotParked {
        /// The projection.
        projection: ProjectionName,
        /// The key.
        key: Text,
    },
    /// Another version is being built already.
    #[error("projection `{0}` is being built already; wait until that version serves")]
    Building(ProjectionName),
    /// It does not run now: it is being stopped, or waits for its successor.
    #[error("projection `{0}` does not run now; try again when its version serves")]
    NotRunning(ProjectionName),
    /// It has no rows to build.
    #[error(
        "`{0}` is an event function: what it did can't be undone and done anew; `seek` gives it events again"
    )]
    Function(ProjectionName),
    /// Its rows are a function of all events, from the first on.
    #[error("`{0}` is a projection: it can't leave events out; `rebuild` makes its rows anew")]
    NotFunction(ProjectionName),
    /// Its rows can't be made anew: topics don't hold what they are made of any more.
    #[error(
        "the rows of projection `{projection}` can't be made anew: {reason}; leave it as it is, or give a projection of \
         another name what the topic has"
    )]
    Forgotten {
        /// The projection.
        projection: ProjectionName,
        /// What is not there.
        reason: String,
    },
    /// Events that are queued would be given twice, or out of their order.
    #[error("`{name}` has {count} parked keys; retry or skip them before it goes on elsewhere")]
    Parked {
        /// The function.
        name: ProjectionName,
        /// Parked keys.
        count: u64,
    },
    /// The log does not go so far.
    #[error("there is no position {wanted}: the log ends at {end}")]
    NoPosition {
        /// What was asked for.
        wanted: Position,
        /// The end of the log.
        end: Position,
    },
    /// Something on our side failed; the same may work later.
    #[error("it could not be done now: {0}")]
    Unavailable(String),
}

/// The projections of one app.
pub struct Projections {
    deps: ProjectionDeps,
    slots: RwLock<BTreeMap<ProjectionName, Arc<Slot>>>,
    models: RwLock<Writers>,
    /// Deployments and rebuilds happen one at a time.
    deploying: tokio::sync::Mutex<()>,
}

/// What a deployment makes of one projection.
struct Plan {
    name: ProjectionName,
    serving: Arc<Version>,
    building: Option<Arc<Version>>,
    /// The pointer to the version that serves is not at this one, because there was none that could serve.
    points_anew: bool,
}

/// Which projection writes which model, as the manifest declares them.
type Writers = HashMap<ModelName, (Arc<Slot>, Arc<ModelSchema>)>;

/// One projection, whatever its version.
pub(super) struct Slot {
    pub name: ProjectionName,
    serving: watch::Sender<Arc<Version>>,
    /// Held by the serving version while it makes progress, and by a candidate while it takes its place.
    pub gate: Arc<tokio::sync::Mutex<()>>,
    runners: Mutex<Runners>,
}

#[derive(Default)]
struct Runners {
    serving: Option<Runner>,
    building: Option<(Arc<Version>, Option<Runner>)>,
}

impl Slot {
    fn new(name: ProjectionName, serving: Arc<Version>) -> Arc<Self> {
        let serving = watch::Sender::new(serving);
        Arc::new(Self { name, serving, gate: Arc::default(), runners: Mutex::default() })
    }

    pub(super) fn serving(&self) -> Arc<Version> {
        self.serving.borrow().clone()
    }

    pub(super) fn watch_serving(&self) -> watch::Receiver<Arc<Version>> {
        self.serving.subscribe()
    }

    fn building(&self) -> Option<Arc<Version>> {
        self.runners.lock().building.as_ref().map(|(version, _)| version.clone())
    }

    /// A candidate serves from now on; gives what ran the version before.
    pub(super) fn swap(&self, candidate: Arc<Version>) -> Option<Runner> {
        let mut runners = self.runners.lock();
        let runner = runners.building.take().and_then(|(_, runner)| runner);
        self.serving.send_replace(candidate);
        std::mem::replace(&mut runners.serving, runner)
    }

    /// Runs these versions.
    fn run(self: &Arc<Self>, deps: &ProjectionDeps, serving: &Arc<Version>, building: Option<Arc<Version>>) {
        // Held until both are known: a candidate that has nothing to catch up on swaps at once.
        let mut runners = self.runners.lock();
        self.serving.send_replace(serving.clone());
        runners.serving = Projector::start(deps, self, serving);
        runners.building = building.map(|version| {
            let runner = Projector::start(deps, self, &version);
            (version, runner)
        });
    }

    /// Ends what runs; gives the version that was being built.
    async fn stop(&self) -> Option<Arc<Version>> {
        let Runners { serving, building } = std::mem::take(&mut *self.runners.lock());
        let (candidate, building) = building.unzip();
        for runner in building.flatten().into_iter().chain(serving) {
            runner.stopped().await;
        }
        // It may have taken over while it was told to end.
        candidate.filter(|candidate| !Arc::ptr_eq(candidate, &self.serving()))
    }
}

impl Projections {
    /// No projections yet; [`Projections::deploy`] brings them.
    #[must_use]
    pub fn start(deps: ProjectionDeps) -> Self {
        Self {
            deps,
            slots: RwLock::default(),
            models: RwLock::default(),
            deploying: tokio::sync::Mutex::new(()),
        }
    }

    /// Runs these projections and no others. One whose version (module, source, lanes, models) is unchanged goes on from
    /// its mark with its new settings; a changed one is built beside the version that serves, and takes its place when
    /// it has got as far; a new one serves at once. Rows of projections that are gone are removed.
    ///
    /// # Errors
    /// A module can't be run, or rows can't be opened: then all projections go on as they were, and nothing is changed.
    pub async fn deploy(&self, set: Vec<ProjectionDeployment>) -> Result<(), ProjectionError> {
        let _one_at_a_time = self.deploying.lock().await;
        let programs = set.into_iter().map(|deployment| self.program(deployment));
        let programs = programs.collect::<Result<Vec<_>, _>>()?;
        let known = self.slots.read().clone();

        // Stopped, so that none of them moves while it is planned; queries go on.
        let mut stopped = Vec::new();
        for program in &programs {
            if let Some(slot) = known.get(&program.deployment.spec.name) {
                stopped.push((slot.clone(), slot.stop().await));
            }
        }
        let planned = match self.plan_all(&known, programs).await {
            Ok(planned) => planned,
            Err(error) => {
                for (slot, building) in stopped {
                    slot.run(&self.deps, &slot.serving(), building);
                }
                return Err(error);
            }
        };
        let mut slots = BTreeMap::new();
        for Plan { name, serving, building, .. } in planned {
            let slot = match known.get(&name) {
                Some(slot) => slot.clone(),
                None => Slot::new(name.clone(), serving.clone()),
            };
            if let Some(building) = &building {
                info!(app = %self.deps.app, projection = %name, version = %building.key.short(), "is being built");
            }
            self.retain(&name, &serving, building.as_ref()).await;
            slot.run(&self.deps, &serving, building);
            slots.insert(name, slot);
        }
        *self.slots.write() = slots.clone();
        *self.models.write() = writers(slots.values());
        for (name, slot) in known.iter().filter(|(name, _)| !slots.contains_key(*name)) {
            if let Err(error) = self.remove(slot).await {
                // They are in nobody's way: what reads them is gone.
                warn!(app = %self.deps.app, projection = %name, %error, "its rows could not be removed");
            }
        }
        Ok(())
    }

    /// Plans all projections, and moves the pointers of those that nobody reads yet; or neither.
    async fn plan_all(
        &self,
        known: &BTreeMap<ProjectionName, Arc<Slot>>,
        programs: Vec<Program>,
    ) -> Result<Vec<Plan>, ProjectionError> {
        let plans = stream::iter(programs).map(|program| {
            let serving = known.get(&program.deployment.spec.name).map(|slot| slot.serving());
            self.plan(serving, program)
        });
        let plans: Vec<Plan> = plans.buffer_unordered(SIDE_BY_SIDE).try_collect().await?;
        for plan in plans.iter().filter(|plan| plan.points_anew) {
            let key = plan.serving.key;
            self.on_stores(&plan.name, move |stores, app, name| stores.set_serving(app, name, key)).await?;
        }
        Ok(plans)
    }

    fn program(&self, deployment: ProjectionDeployment) -> Result<Program, ProjectionError> {
        let spec = &deployment.spec;
        let function = FunctionSpec {
            app: self.deps.app.clone(),
            function: crate::deploy::projection_function(&spec.name),
            trigger: TriggerKind::Datasource,
            module: deployment.module,
            limits: spec.limits,
            instances: spec.instances,
            capabilities: Default::default(),
            secrets: Arc::default(),
        };
        let module = match &deployment.effects {
            None => self.deps.engine.projection(function),
            Some(effects) => effects.module(&self.deps, function, spec),
        };
        let module =
            module.map_err(|error| ProjectionError::Module { projection: spec.name.clone(), error })?;
        Ok(Program { deployment: Arc::new(deployment), module })
    }

    /// Decides which version serves and which one is built, and opens both. What runs and what serves stays as it is.
    async fn plan(&self, serving: Option<Arc<Version>>, program: Program) -> Result<Plan, ProjectionError> {
        let name = program.deployment.spec.name.clone();
        let declared = version::declared(&program.deployment);
        let pointed = match &serving {
            Some(serving) => Some(serving.key),
            None => self.on_stores(&name, |stores, app, name| stores.serving(app, name)).await?,
        };
        let mut there = self.on_stores(&name, |stores, app, name| stores.versions(app, name)).await?;
        there.retain(|key| version::is_same(key, &declared));
        let newest = there.into_iter().max_by_key(version::generation);
        let (serving, building) = match pointed {
            Some(key) if version::is_same(&key, &declared) => {
                let serving = match serving {
                    Some(serving) => serving.with(program.clone()),
                    None if program.deployment.effects.is_some() => self.open_function(key, &program).await?,
                    None => self.open(key, &program).await?,
                };
                // A rebuild that was interrupted by a restart goes on.
                let further = newest.filter(|newest| version::generation(newest) > version::generation(&key));
                (Some(serving), further)
            }
            Some(key) => {
                let serving = match serving {
                    Some(serving) => Some(serving),
                    None => self.open_superseded(&name, key).await?,
                };
                (serving, Some(newest.unwrap_or(declared)))
            }
            None => (None, None),
        };
        let points_anew = serving.is_none();
        let (serving, building) = match (serving, building) {
            (Some(serving), Some(key)) => (serving, Some(self.open(key, &program).await?)),
            (Some(serving), None) => (serving, None),
            (None, _) if program.deployment.effects.is_some() => {
                (self.begin(declared, &program).await?, None)
            }
            // There is nothing to wait for: it serves from its first event on.
            (None, key) => (self.open(key.unwrap_or(declared), &program).await?, None),
        };
        Ok(Plan { name, serving, building, points_anew })
    }

    /// Whether what is to be deployed can be: a version that is to be built anew needs records that its topics must still
    /// hold. Asked before anything is recorded; a broker that does not answer is no reason to refuse.
    ///
    /// # Errors
    /// A topic does not hold them, or is another one.
    pub(crate) async fn check(&self, set: &[ProjectionDeployment]) -> Result<(), ProjectionError> {
        for deployment in set {
            let Ok(slot) = self.slot(&deployment.spec.name) else { continue };
            let declared = version::declared(deployment);
            let is_known = |version: Arc<Version>| version::is_same(&version.key, &declared);
            if is_known(slot.serving()) || slot.building().is_some_and(is_known) {
                continue;
            }
            if let Err(error @ ProjectionError::Forgotten { .. }) = self.can_be_made_anew(deployment).await {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Whether topics still hold the records that a projection has begun with.
    async fn can_be_made_anew(&self, deployment: &ProjectionDeployment) -> Result<(), ProjectionError> {
        let (Some(topics), Some(bus)) = (deployment.direct(), &self.deps.bus) else { return Ok(()) };
        let name = &deployment.spec.name;
        let places = self.on_stores(name, |stores, app, name| stores.beginning(app, name)).await?;
        let asked = Standing { topics: topics.starts(), places, accepted: BTreeSet::new() };
        let found = bus.places(&asked).await;
        found.map(drop).map_err(|error| match error.kind {
            BusErrorKind::OutOfRange | BusErrorKind::Recreated => {
                ProjectionError::Forgotten { projection: name.clone(), reason: error.message }
            }
            _ => ProjectionError::Unavailable(error.message),
        })
    }

    /// Removes all versions but these. What could not be removed now is removed by the next deployment.
    async fn retain(&self, name: &ProjectionName, serving: &Version, building: Option<&Arc<Version>>) {
        let kept = [Some(serving.key), building.map(|building| building.key)];
        let kept: Vec<ProjectionVersion> = kept.into_iter().flatten().collect();
        let retained = self.on_stores(name, move |stores, app, name| stores.retain(app, name, &kept)).await;
        if let Err(error) = retained {
            warn!(app = %self.deps.app, projection = %name, %error, "older versions could not be removed");
        }
    }

    async fn open(&self, key: ProjectionVersion, program: &Program) -> Result<Arc<Version>, ProjectionError> {
        let name = program.deployment.spec.name.clone();
        let models = Models::new(program.deployment.models.iter().cloned());
        let schemas = models.clone();
        let open = move |stores: &dyn ModelStores, app: &AppName, name: &ProjectionName| {
            Body::open(stores.open(app, name, key, schemas.all())?)
        };
        let body = self.on_stores(&name, open).await?;
        Ok(Version::new(key, models, Some(program.clone()), body))
    }

    /// An event function that was never deployed: it begins where its manifest says. Where the node ends before the
    /// pointer is set, it begins anew.
    async fn begin(
        &self,
        key: ProjectionVersion,
        program: &Program,
    ) -> Result<Arc<Version>, ProjectionError> {
        let from = program.deployment.effects.as_ref().map(|effects| effects.from);
        let mark = effects::beginning(from.unwrap_or_default(), &*self.deps.log);
        let open = move |stores: &dyn ModelStores, app: &AppName, name: &ProjectionName| {
            let store = stores.open(app, name, key, &[])?;
            store.commit(RowBatch { mark: Some(mark), ..RowBatch::default() })?;
            // Durable before the pointer is: a file that the power took the mark from would begin with all there is.
            store.release();
            Body::open(store)
        };
        let body = self.on_stores(&program.deployment.spec.name, open).await?;
        Ok(Version::new(key, Models::default(), Some(program.clone()), body))
    }

    /// An event function that has begun. If how far it has got is lost, a store of another name stands in, which is
    /// never looked at: see `Projector::load`.
    async fn open_function(
        &self,
        key: ProjectionVersion,
        program: &Program,
    ) -> Result<Arc<Version>, ProjectionError> {
        let open = move |stores: &dyn ModelStores, app: &AppName, name: &ProjectionName| match stores
            .open_existing(app, name, key)?
        {
            Some((store, _)) => Body::open(store),
            None => Body::open(stores.open(app, name, version::rebuilt(&key), &[])?),
        };
        let body = self.on_stores(&program.deployment.spec.name, open).await?;
        Ok(Version::new(key, Models::default(), Some(program.clone()), body))
    }

    /// What served before a restart, whose module is not known any more: its rows serve as they are.
    async fn open_superseded(
        &self,
        name: &ProjectionName,
        key: ProjectionVersion,
    ) -> Result<Option<Arc<Version>>, ProjectionError> {
        let open = move |stores: &dyn ModelStores, app: &AppName, name: &ProjectionName| {
            let Some((store, models)) = stores.open_existing(app, name, key)? else { return Ok(None) };
            Ok(Some((Body::open(store)?, models)))
        };
        let opened = self.on_stores(name, open).await?;
        Ok(opened.map(|(body, models)| Version::new(key, Models::new(models), None, body)))
    }

    async fn on_stores<T: Send + 'static>(
        &self,
        name: &ProjectionName,
        work: impl FnOnce(&dyn ModelStores, &AppName, &ProjectionName) -> Result<T, ModelError> + Send + 'static,
    ) -> Result<T, ModelError> {
        let (stores, app, name) = (self.deps.stores.clone(), self.deps.app.clone(), name.clone());
        super::blocking(move || work(&*stores, &app, &name)).await
    }

    async fn remove(&self, slot: &Slot) -> Result<(), ProjectionError> {
        slot.stop().await;
        self.on_stores(&slot.name, |stores, app, name| stores.retain(app, name, &[])).await?;
        info!(app = %self.deps.app, projection = %slot.name, "removed");
        Ok(())
    }

    /// Builds a projection's rows anew, beside those that serve, which the new ones replace when they have got as far.
    ///
    /// # Errors
    /// There is no such projection, one of its versions is being built already, or the store failed.
    pub async fn rebuild(&self, projection: &ProjectionName) -> Result<(), ProjectionError> {
        let _one_at_a_time = self.deploying.lock().await;
        let slot = self.slot(projection)?;
        if slot.serving().has_effects() {
            return Err(ProjectionError::Function(projection.clone()));
        }
        if let Some(program) = &slot.serving().program {
            self.can_be_made_anew(&program.deployment).await?;
        }
        let building = slot.stop().await;
        let serving = slot.serving();
        let program = match (&building, &serving.program) {
            (None, Some(program)) => program.clone(),
            _ => {
                slot.run(&self.deps, &serving, building);
                return Err(ProjectionError::Building(projection.clone()));
            }
        };
        let serving = serving.with(program.clone());
        let opened = self.open(version::rebuilt(&serving.key), &program).await;
        let (building, result) = match opened {
            Ok(building) => (Some(building), Ok(())),
            Err(error) => (None, Err(error)),
        };
        slot.run(&self.deps, &serving, building);
        result
    }

    /// A reader of a model; none if no projection writes it.
    #[must_use]
    pub fn model(&self, model: &ModelName) -> Option<ModelReader> {
        let (slot, schema) = self.models.read().get(model).cloned()?;
        Some(ModelReader::new(slot, schema, self.deps.log.durable()))
    }

    /// How all projections are doing, by name. Does not wait for any of them.
    #[must_use]
    pub fn status(&self) -> Vec<ProjectionStatus> {
        let end = self.deps.log.durable().borrow().position;
        let status = |slot: &Arc<Slot>| {
            let serving = slot.serving();
            let building = slot.building().filter(|building| !Arc::ptr_eq(building, &serving));
            ProjectionStatus {
                name: slot.name.clone(),
                kind: serving.kind(),
                models: serving.models.all().iter().map(|model| model.name.clone()).collect(),
                serving: serving.status(end),
                building: building.map(|version| version.status(end)),
            }
        };
        self.slots.read().values().map(status).collect()
    }

    /// Goes on with a topic as it is, though it is not what was taken of it before. Whether anything takes its records
    /// straight.
    pub(crate) fn accept(&self, topic: &TopicName) -> bool {
        let slots = self.slots.read();
        let topics = slots.values().filter_map(|slot| slot.serving().topics.clone());
        topics.filter(|topics| topics.accept(topic)).count() > 0
    }

    /// Whether all have read the log up to here, wait for more, and none is being built. One that takes records straight
    /// from topics never has.
    pub(crate) fn are_done(&self, end: Position) -> bool {
        self.slots.read().values().all(|slot| {
            let serving = slot.serving();
            let building = slot.building().filter(|building| !Arc::ptr_eq(building, &serving));
            building.is_none()
                && !serving.is_direct()
                && serving.state() == State::Live
                && serving.passed() == end
        })
    }

    /// Parked keys of the version that serves, in order of key, those behind `after`.
    ///
    /// # Errors
    /// There is no such projection, or the store failed.
    pub async fn parked(
        &self,
        projection: &ProjectionName,
        after: Option<Text>,
        limit: usize,
    ) -> Result<Vec<Parked>, ProjectionError> {
        let serving = self.slot(projection)?.serving();
        serving.touch();
        let store = serving.body().store.clone();
        Ok(super::blocking(move || store.parked(after.as_deref(), limit)).await?)
    }

    /// The event that stands first under a parked key.
    ///
    /// # Errors
    /// There is no such projection, nothing is parked under that key, or something on our side failed.
    pub async fn parked_event(
        &self,
        projection: &ProjectionName,
        key: &Text,
    ) -> Result<StoredEvent, ProjectionError> {
        self.command(projection, |answer| Command::Show { key: key.clone(), answer }).await
    }

    /// Applies a parked key's queue in order, up to the first event that fails again.
    ///
    /// # Errors
    /// There is no such projection, nothing is parked under that key, or something on our side failed.
    pub async fn retry(&self, projection: &ProjectionName, key: &Text) -> Result<Retried, ProjectionError> {
        self.command(projection, |answer| Command::Retry { key: key.clone(), answer }).await
    }

    /// Leaves out the first event of a parked key's queue, or the `whole` queue: the one way in which an event is never
    /// in the rows.
    ///
    /// # Errors
    /// There is no such projection, nothing is parked under that key, or something on our side failed.
    pub async fn skip(
        &self,
        projection: &ProjectionName,
        key: &Text,
        whole: bool,
    ) -> Result<Skipped, ProjectionError> {
        self.command(projection, |answer| Command::Skip { key: key.clone(), whole, answer }).await
    }

    /// Has an event function go on behind another position: a later one leaves events out, an earlier one gives it
    /// events once more.
    ///
    /// # Errors
    /// There is no such function, or it is a projection; something is parked; the log has no such position; or the store
    /// failed.
    pub async fn seek(&self, function: &ProjectionName, to: Seek) -> Result<Position, ProjectionError> {
        if !self.slot(function)?.serving().has_effects() {
            return Err(ProjectionError::NotFunction(function.clone()));
        }
        self.command(function, |answer| Command::Seek { to, answer }).await
    }

    async fn command<T>(
        &self,
        projection: &ProjectionName,
        command: impl FnOnce(oneshot::Sender<Result<T, ProjectionError>>) -> Command,
    ) -> Result<T, ProjectionError> {
        let slot = self.slot(projection)?;
        let commands = slot.runners.lock().serving.as_ref().map(|runner| runner.commands.clone());
        let not_running = || ProjectionError::NotRunning(projection.clone());
        let (answer, answered) = oneshot::channel();
        let commands = commands.ok_or_else(not_running)?;
        commands.send(command(answer)).await.map_err(|_| not_running())?;
        answered.await.map_err(|_| not_running())?
    }

    fn slot(&self, projection: &ProjectionName) -> Result<Arc<Slot>, ProjectionError> {
        self.slots.read().get(projection).cloned().ok_or_else(|| ProjectionError::Unknown(projection.clone()))
    }

    /// Stops all projections: calls of modules are given up, commits are finished. What they have is readable still.
    pub async fn shutdown(&self) {
        let _one_at_a_time = self.deploying.lock().await;
        let slots: Vec<_> = self.slots.read().values().cloned().collect();
        futures_util::future::join_all(slots.iter().map(|slot| slot.stop())).await;
        for slot in slots {
            slot.serving().body().store.release();
        }
    }
}

fn writers<'a>(slots: impl Iterator<Item = &'a Arc<Slot>>) -> Writers {
    let mut models = Writers::new();
    for slot in slots {
        let declared = slot.building().unwrap_or_else(|| slot.serving());
        for schema in declared.models.all() {
            models.insert(schema.name.clone(), (slot.clone(), Arc::new(schema.clone())));
        }
    }
    models
}
