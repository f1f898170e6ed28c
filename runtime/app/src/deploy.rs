//! Deployments: from a bundle to functions that serve, by way of one `deployed` commit in the node's own log.
//!
//! Every step before that commit changes nothing that serves; the swap behind it can be made again from the commit
//! alone. So a crash at any step leaves either the old deployment serving or the new one.

use crate::bundle::{Bundle, MANIFEST, normalise};
use crate::commands::{AggregateFunction, DeferredFunction};
use crate::functions::{HttpEndpoint, HttpRoutes};
use crate::projections::{ProjectionDeployment, ProjectionError};
use bytes::Bytes;
use ebb_domain::digest::Digest;
use ebb_domain::manifest::function::Variable;
use ebb_domain::manifest::{
    AggregateSpec, Beginning, FilePurpose, FunctionSpec as FunctionEntry, Manifest, Problem, ProblemKind,
    Problems, ProjectionSpec, Source, Trigger,
};
use ebb_domain::name::{AggregateName, AppName, FunctionName, ModelName, ProjectionName};
use ebb_domain::port::guest::{CompileError, Engine, FunctionSpec, ModuleKind, TriggerKind};
use ebb_domain::port::secrets::{Secret, Secrets};
use ebb_domain::port::storage::{Storage, StorageError};
use ebb_domain::schema::JsonSchema;
use ebb_domain::text::Text;
use ebb_domain::time::Timestamp;
use ebb_domain::topic::{Start, Via};
use serde::{Deserialize, Serialize};
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use thiserror::Error;

/// The app name that stands for the node's own log.
pub const SYSTEM: &str = "system";

/// A deployment, as the node's log has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deployment {
    /// The app.
    pub app: AppName,
    /// Counts the app's deployments, rollbacks and removals from 1; what `If-Match` compares with.
    pub number: u64,
    /// The manifest, by its digest among the kept files.
    pub manifest: Digest,
    /// The files that the manifest refers to, by path.
    pub files: BTreeMap<String, Digest>,
    /// When.
    pub deployed_at: Timestamp,
    /// By whom.
    pub deployed_by: String,
    /// For a rollback: which deployment serves again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback_to: Option<u64>,
    /// What its manifest offers, so that nobody needs to read that to know; none where an earlier version recorded it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offers: Option<Offers>,
}

/// What whoever deploys is told: the deployment, which serves, and what keeps it from being of use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deployed {
    /// The deployment.
    #[serde(flatten)]
    pub deployment: Deployment,
    /// What is wrong around it, for people: topics that are not there, brokers that don't answer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// What a deployment offers, in short.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offers {
    /// Host names that select the app.
    pub hosts: Vec<String>,
    /// Its functions: aggregates, HTTP functions, projections.
    pub functions: Vec<OfferedFunction>,
    /// Some keep instances ready (`warm`), or consume topics, so that the app is open from the start and stays open.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keeps_ready: bool,
    /// Pages of other origins may read what it answers, refusals included (`app.cors`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub has_cors: bool,
}

/// One function of a deployment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfferedFunction {
    /// `aggregate.flight`, `function.hello`, `projection.delays`.
    pub name: Text,
    /// The digest of its module.
    pub module: Digest,
    /// For a projection: the models that it writes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<ModelName>,
    /// It is run by the events of the log: a projection, or an event function.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub follows_log: bool,
}

/// How a function of an aggregate is named.
pub(crate) fn aggregate_function(aggregate: &AggregateName) -> Text {
    format!("aggregate.{aggregate}").into()
}

/// How a function of a projection is named.
pub(crate) fn projection_function(projection: &ProjectionName) -> Text {
    format!("projection.{projection}").into()
}

/// How a function of requests or events is named.
pub(crate) fn called_function(function: &FunctionName) -> Text {
    format!("function.{function}").into()
}

impl Offers {
    /// Names of the functions of one kind, `aggregate`, `function` or `projection`, without the kind.
    pub fn of_kind<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a str> {
        self.functions.iter().filter_map(move |function| function.name.strip_prefix(kind)?.strip_prefix('.'))
    }

    /// The models that its projections write, in order of their names.
    #[must_use]
    pub fn models(&self) -> Vec<&ModelName> {
        let mut models: Vec<_> = self.functions.iter().flat_map(|function| &function.models).collect();
        models.sort_unstable();
        models
    }
}

/// Why a deployment did not happen. The old one serves as before.
#[derive(Debug, Error)]
pub enum DeployError {
    /// The bundle has no manifest, or one that is not UTF-8.
    #[error("the bundle has no readable {MANIFEST}")]
    NoManifest,
    /// Everything that is wrong with manifest, files and modules.
    #[error(transparent)]
    Invalid(#[from] Problems),
    /// The manifest names another app than the request.
    #[error("the manifest is of app `{manifest}`, the request is for `{requested}`")]
    NameMismatch {
        /// As the manifest says.
        manifest: AppName,
        /// As the request says.
        requested: AppName,
    },
    /// A host name belongs to another app.
    #[error("host `{host}` belongs to app `{app}` already")]
    HostTaken {
        /// The host.
        host: String,
        /// Whose it is.
        app: AppName,
    },
    /// The app is not at the deployment that the caller expects.
    #[error("the app is at deployment {}, not where the request expects it", show(.actual))]
    Conflict {
        /// Where it is; none if it is not deployed.
        actual: Option<u64>,
    },
    /// The app is not deployed.
    #[error("no app `{0}` is deployed")]
    UnknownApp(AppName),
    /// No such deployment.
    #[error("{0}")]
    NotFound(String),
    /// A projection would be built anew, and can't be.
    #[error(transparent)]
    Projection(ProjectionError),
    /// The app's log can't be opened: it is damaged, say.
    #[error("the app's log can't be opened: {0}")]
    LogClosed(String),
    /// As many apps are open as may be, and all of them are in use.
    #[error("all {0} places for open apps are taken; `apps.open` in the node's settings allows more")]
    Full(usize),
    /// It is recorded, and could not be put into service.
    #[error("deployment {number} is recorded, and could not be served: {why}")]
    NotServed {
        /// The deployment.
        number: u64,
        /// What stood in the way.
        why: String,
    },
    /// The app is removed, and some of its data could not be.
    #[error("the app is removed, but not all of its data: {0}")]
    NotPurged(String),
    /// The disk or the log would not take it.
    #[error("the deployment could not be stored: {0}")]
    Unavailable(String),
}

fn show(actual: &Option<u64>) -> String {
    actual.map_or_else(|| "none".into(), |number| number.to_string())
}

impl DeployError {
    /// Stable, for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoManifest => "manifest_missing",
            Self::Invalid(_) => "manifest_invalid",
            Self::NameMismatch { .. } => "app_name_mismatch",
            Self::HostTaken { .. } => "host_taken",
            Self::Conflict { .. } => "deployment_conflict",
            Self::UnknownApp(_) => "unknown_app",
            Self::NotFound(_) => "deployment_not_found",
            Self::LogClosed(_) => "app_unavailable",
            Self::Full(_) => "overloaded",
            Self::NotServed { .. } => "deployment_not_served",
            Self::NotPurged(_) => "purge_incomplete",
            Self::Projection(_) => "records_gone",
            Self::Unavailable(_) => "storage_unavailable",
        }
    }
}

impl From<StorageError> for DeployError {
    fn from(error: StorageError) -> Self {
        Self::Unavailable(error.0)
    }
}

/// A bundle that has passed every check, its modules compiled.
pub(crate) struct Checked {
    pub manifest: Manifest,
    pub text: Bytes,
    /// Contents by path as the manifest writes it.
    pub files: BTreeMap<PathBuf, Bytes>,
}

/// Checks a bundle and compiles its modules; says everything that is wrong at once.
pub(crate) async fn check(engine: &Arc<dyn Engine>, bundle: &Bundle) -> Result<Checked, DeployError> {
    let text = bundle.manifest_text().ok_or(DeployError::NoManifest)?;
    let manifest =
        Manifest::parse_with(text, |file| file.inspect(bundle.file(&file.path).map(|contents| &**contents)))?;
    let mut problems = Vec::new();
    let mut files = BTreeMap::new();
    // A hundred functions may share a module.
    let mut compiled: HashMap<(&Path, ModuleKind), Result<Digest, CompileError>> = HashMap::new();
    for file in manifest.files() {
        let Some(contents) = bundle.file(&file.path) else { continue };
        if let FilePurpose::Module(kind) = file.purpose {
            let compiled = match compiled.entry((&file.path, kind)) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(new) => new.insert(engine.compile(contents.clone(), kind).await),
            };
            if let Err(error) = compiled {
                problems.push(file.refused(error));
            }
        }
        files.insert(file.path.clone(), contents.clone());
    }
    match Problems::of(problems) {
        Some(problems) => Err(problems.into()),
        None => Ok(Checked { manifest, text: Bytes::copy_from_slice(text.as_bytes()), files }),
    }
}

/// Every secret that a function names has a value.
pub(crate) fn check_secrets(secrets: &dyn Secrets, manifest: &Manifest) -> Result<(), DeployError> {
    let mut problems = Vec::new();
    for function in manifest.functions.values() {
        for (name, place) in &function.capabilities.secrets {
            if let Err(error) = secrets.get(&manifest.name, name) {
                problems.push(Problem {
                    kind: ProblemKind::Missing,
                    place: place.clone(),
                    key: format!("function.{}.capabilities.secrets", function.name),
                    message: error.problem,
                    hint: Some(error.hint),
                });
            }
        }
    }
    Problems::of(problems).map_or(Ok(()), |problems| Err(problems.into()))
}

/// What needs Kafka has it.
pub(crate) fn check_kafka(manifest: &Manifest, has_brokers: bool) -> Result<(), DeployError> {
    let Some((key, place)) = manifest.needs_kafka().filter(|_| !has_brokers) else { return Ok(()) };
    let problem = Problem {
        kind: ProblemKind::Unavailable,
        place: place.clone(),
        key: key.clone(),
        message: format!("`{key}` needs Kafka, and this node has no brokers"),
        hint: Some("set `kafka.brokers` in the node's settings, or EBB_KAFKA, and start it again".to_owned()),
    };
    Problems::of(vec![problem]).map_or(Ok(()), |problems| Err(problems.into()))
}

/// The values of a function's secrets. One that is gone since the function was deployed is left out, loudly: what else
/// the app does need not suffer.
fn reveal(secrets: &dyn Secrets, app: &AppName, function: &FunctionEntry) -> Arc<[(Variable, Secret)]> {
    let value = |name: &Variable| match secrets.get(app, name) {
        Ok(value) => Some((name.clone(), value)),
        Err(error) => {
            let (function, hint) = (&function.name, &error.hint);
            tracing::error!(%app, %function, secret = %name, %error, hint, "a function has to do without its secret");
            None
        }
    };
    function.capabilities.secrets.keys().filter_map(value).collect()
}

/// The bundle that a deployment came in. Blocks.
pub(crate) fn bundle(storage: &Arc<dyn Storage>, deployment: &Deployment) -> Result<Bundle, DeployError> {
    let mut bundle = Bundle::default();
    bundle.files.insert(MANIFEST.into(), storage.blob(&deployment.manifest)?);
    for (path, digest) in &deployment.files {
        bundle.files.insert(path.clone(), storage.blob(digest)?);
    }
    Ok(bundle)
}

/// A manifest that was checked at deploy, with its files: what functions are made from. Only the manifest is in memory.
#[derive(Clone)]
pub(crate) struct Release {
    pub manifest: Arc<Manifest>,
    files: Files,
}

/// Where the contents of a release's files are.
#[derive(Clone)]
enum Files {
    /// Kept by their digest.
    Kept(Arc<dyn Storage>, Arc<BTreeMap<String, Digest>>),
    /// In a bundle that is not deployed.
    Given(Arc<BTreeMap<PathBuf, Bytes>>),
}

impl Release {
    /// A deployment as it was recorded. It was checked before that, and its files are named by their digests: nothing is
    /// read but the manifest. Blocks.
    pub(crate) fn restore(storage: &Arc<dyn Storage>, deployment: &Deployment) -> Result<Self, DeployError> {
        let text = storage.blob(&deployment.manifest)?;
        let text = std::str::from_utf8(&text).map_err(|_| DeployError::NoManifest)?;
        let manifest = Arc::new(Manifest::parse(text)?);
        Ok(Self { manifest, files: Files::Kept(storage.clone(), Arc::new(deployment.files.clone())) })
    }

    /// A bundle that has just been checked, and whose files have been kept.
    pub(crate) fn kept(
        storage: &Arc<dyn Storage>,
        checked: Checked,
        files: &BTreeMap<String, Digest>,
    ) -> Self {
        let files = Files::Kept(storage.clone(), Arc::new(files.clone()));
        Self { manifest: Arc::new(checked.manifest), files }
    }

    /// A bundle that has just been checked and is not kept.
    pub(crate) fn given(checked: Checked) -> Self {
        Self { manifest: Arc::new(checked.manifest), files: Files::Given(Arc::new(checked.files)) }
    }

    pub(crate) fn offers(&self) -> Offers {
        let aggregates = self.manifest.aggregates.values().map(|spec| OfferedFunction {
            name: aggregate_function(&spec.name),
            module: self.files.digest(&spec.module),
            models: Vec::new(),
            follows_log: false,
        });
        let projections = self.manifest.projections.values().map(|spec| OfferedFunction {
            name: projection_function(&spec.name),
            module: self.files.digest(&spec.module),
            models: spec.models.iter().cloned().collect(),
            follows_log: true,
        });
        let functions = self.manifest.functions.iter().map(|(name, spec)| OfferedFunction {
            name: called_function(name),
            module: self.files.digest(&spec.module),
            models: Vec::new(),
            follows_log: matches!(spec.trigger, Trigger::Events(_)),
        });
        let commands = self.manifest.aggregates.values().filter(|spec| spec.source.is_some());
        let commands = commands.map(|spec| OfferedFunction {
            name: format!("commands.{}", spec.consumer()).into(),
            module: self.files.digest(&spec.module),
            models: Vec::new(),
            follows_log: true,
        });
        let functions = aggregates.chain(functions).chain(projections).chain(commands).collect();
        Offers {
            hosts: self.manifest.hosts.clone(),
            functions,
            keeps_ready: self.keeps_ready(),
            has_cors: self.manifest.cors.is_some(),
        }
    }

    fn keeps_ready(&self) -> bool {
        let Manifest { aggregates, functions, projections, .. } = &*self.manifest;
        let instances = aggregates.values().map(|spec| spec.instances);
        let instances = instances.chain(functions.values().map(|spec| spec.instances));
        instances.chain(projections.values().map(|spec| spec.instances)).any(|instances| instances.warm > 0)
            // Who consumes topics has to ask for more.
            || !self.manifest.consumed().is_empty()
            || self.manifest.has_direct()
    }

    /// Its aggregates' functions, each made when it is first needed.
    pub(crate) fn aggregates(&self, engine: &Arc<dyn Engine>) -> Vec<DeferredFunction> {
        let deferred = |spec: &AggregateSpec| {
            let (release, engine, name) = (self.clone(), engine.clone(), spec.name.clone());
            let make =
                move || release.aggregate(&engine, &name).map(Arc::new).map_err(|error| error.to_string());
            DeferredFunction::new(spec.clone(), Arc::new(make))
        };
        self.manifest.aggregates.values().map(deferred).collect()
    }

    /// Makes the function of an aggregate. Blocks.
    pub(crate) fn aggregate(
        &self,
        engine: &Arc<dyn Engine>,
        aggregate: &AggregateName,
    ) -> Result<AggregateFunction, DeployError> {
        let unavailable = |error: &dyn std::fmt::Display| DeployError::Unavailable(error.to_string());
        let spec = self.manifest.aggregates.get(aggregate);
        let spec = spec.ok_or_else(|| unavailable(&format!("there is no aggregate `{aggregate}`")))?;
        let schema = |path: &Path| {
            JsonSchema::from_slice(&self.files.contents(path)?).map_err(|error| unavailable(&error))
        };
        let mut command_schemas = HashMap::new();
        for (name, command) in &spec.commands {
            if let Some(path) = &command.schema {
                command_schemas.insert(name.clone(), schema(path)?);
            }
        }
        let mut event_schemas = HashMap::new();
        for (event_type, event) in &spec.events {
            if let Some(path) = &event.schema {
                event_schemas.insert(event_type.clone(), schema(path)?);
            }
        }
        let digest = self.files.digest(&spec.module);
        let function = FunctionSpec {
            app: self.manifest.name.clone(),
            function: aggregate_function(&spec.name),
            trigger: TriggerKind::Http,
            module: digest,
            limits: spec.limits,
            instances: spec.instances,
            capabilities: Default::default(),
            secrets: Arc::default(),
        };
        let module = engine.commands(function).map_err(|error| unavailable(&error))?;
        Ok(AggregateFunction { spec: spec.clone(), digest, module, command_schemas, event_schemas })
    }

    pub(crate) fn projections(&self, secrets: &dyn Secrets) -> Vec<ProjectionDeployment> {
        let models = |spec: &ProjectionSpec| {
            let models = spec.models.iter().filter_map(|name| self.manifest.models.get(name));
            models.map(|model| model.schema.clone()).collect()
        };
        let topics = |spec: &ProjectionSpec| match &spec.source {
            Source::Topics(source) if source.via == Via::Direct => {
                let names = source.topics.iter();
                names.map(|topic| (topic.clone(), self.manifest.topic(topic))).collect()
            }
            _ => BTreeMap::new(),
        };
        let deployment = |spec: &ProjectionSpec| ProjectionDeployment {
            spec: spec.clone(),
            module: self.files.digest(&spec.module),
            models: models(spec),
            topics: topics(spec),
            effects: None,
        };
        let event_function = |spec: &FunctionEntry| match &spec.trigger {
            Trigger::Http(_) => None,
            Trigger::Events(trigger) => {
                let (module, capabilities) = (self.files.digest(&spec.module), spec.capabilities.clone());
                let secrets = reveal(secrets, &self.manifest.name, spec);
                Some(ProjectionDeployment::of_function(
                    spec,
                    trigger,
                    module,
                    Arc::new(capabilities),
                    secrets,
                ))
            }
        };
        let projections = self.manifest.projections.values().map(deployment);
        let commands = self.manifest.aggregates.values().filter_map(|spec| {
            let source = spec.source.as_ref()?;
            // What was consumed for others already is a part of the topic too.
            let whole = source.topics.iter().any(|topic| self.manifest.topic(topic).start != Start::Latest);
            let from = if whole { Beginning::Start } else { Beginning::Now };
            Some(ProjectionDeployment::of_commands(spec, source, self.files.digest(&spec.module), from))
        });
        let functions = self.manifest.functions.values().filter_map(event_function);
        projections.chain(functions).chain(commands).collect()
    }

    /// Its HTTP functions, each made when it is first called.
    pub(crate) fn http(&self, engine: &Arc<dyn Engine>, secrets: &Arc<dyn Secrets>) -> HttpRoutes {
        HttpRoutes::new(self.manifest.functions.values().filter_map(|spec| {
            let trigger = match &spec.trigger {
                Trigger::Http(trigger) => trigger,
                Trigger::Events(_) => return None,
            };
            let function = FunctionSpec {
                app: self.manifest.name.clone(),
                function: called_function(&spec.name),
                trigger: TriggerKind::Http,
                module: self.files.digest(&spec.module),
                limits: spec.limits,
                instances: spec.instances,
                capabilities: Arc::new(spec.capabilities.clone()),
                secrets: Arc::default(),
            };
            let (engine, max_response) = (engine.clone(), trigger.max_response);
            let (secrets, entry) = (secrets.clone(), spec.clone());
            let make = move || {
                let secrets = reveal(&*secrets, &function.app, &entry);
                let function = FunctionSpec { secrets, ..function.clone() };
                engine.http(function, max_response).map_err(|error| error.to_string())
            };
            Some(HttpEndpoint::new(spec, trigger.clone(), Arc::new(make)))
        }))
    }

    /// What it offers, as OpenAPI. Blocks.
    pub(crate) fn openapi(&self) -> Result<serde_json::Value, DeployError> {
        Ok(ebb_domain::openapi::openapi(&self.manifest, &self.schemas()?))
    }

    /// What it takes from Kafka and sends there, as AsyncAPI. Blocks.
    pub(crate) fn asyncapi(&self, brokers: bool) -> Result<serde_json::Value, DeployError> {
        Ok(ebb_domain::asyncapi::asyncapi(&self.manifest, &self.schemas()?, brokers))
    }

    fn schemas(&self) -> Result<BTreeMap<PathBuf, serde_json::Value>, DeployError> {
        let mut schemas = BTreeMap::new();
        for file in self.manifest.files().iter().filter(|file| file.purpose == FilePurpose::Schema) {
            let schema = serde_json::from_slice(&self.files.contents(&file.path)?);
            let schema = schema.map_err(|error| DeployError::Unavailable(error.to_string()))?;
            schemas.insert(file.path.clone(), schema);
        }
        Ok(schemas)
    }
}

impl Files {
    /// The digest of a file that the manifest refers to; a bundle without it was not accepted.
    fn digest(&self, path: &Path) -> Digest {
        let found = match self {
            Self::Kept(_, files) => normalise(path).and_then(|path| files.get(&path).copied()),
            Self::Given(files) => files.get(path).map(|contents| Digest::of(contents)),
        };
        found.unwrap_or_default()
    }

    fn contents(&self, path: &Path) -> Result<Bytes, DeployError> {
        let found = match self {
            Self::Kept(storage, _) => Some(storage.blob(&self.digest(path))?),
            Self::Given(files) => files.get(path).cloned(),
        };
        found.ok_or_else(|| DeployError::Unavailable(format!("`{}` is not in the bundle", path.display())))
    }
}
