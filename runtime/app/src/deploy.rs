//! Deployments: from a bundle to functions that serve, by way of one `deployed` commit in the node's own log.
//!
//! Every step before that commit changes nothing that serves; the swap behind it can be made again from the commit
//! alone. So a crash at any step leaves either the old deployment serving or the new one.

use crate::bundle::{Bundle, MANIFEST};
use crate::commands::AggregateFunction;
use crate::functions::{HttpEndpoint, HttpRoutes};
use crate::projections::ProjectionDeployment;
use bytes::Bytes;
use ebb_domain::digest::Digest;
use ebb_domain::manifest::{FilePurpose, FileRef, Manifest, Problems, Trigger};
use ebb_domain::name::AppName;
use ebb_domain::port::guest::{Engine, FunctionSpec, TriggerKind};
use ebb_domain::port::storage::{Storage, StorageError};
use ebb_domain::schema::JsonSchema;
use ebb_domain::time::Timestamp;
use serde::{Deserialize, Serialize};
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
    /// The app's log can't be opened: it is damaged, say.
    #[error("the app's log can't be opened: {0}")]
    LogClosed(String),
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
            Self::NotServed { .. } => "deployment_not_served",
            Self::NotPurged(_) => "purge_incomplete",
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

impl Checked {
    pub(crate) fn digests(&self) -> BTreeMap<PathBuf, Digest> {
        self.files.iter().map(|(path, bytes)| (path.clone(), Digest::of(bytes))).collect()
    }
}

/// Checks a bundle and compiles its modules; says everything that is wrong at once.
pub(crate) async fn check(engine: &Arc<dyn Engine>, bundle: &Bundle) -> Result<Checked, DeployError> {
    let text = bundle.manifest_text().ok_or(DeployError::NoManifest)?;
    let manifest =
        Manifest::parse_with(text, |file| file.inspect(bundle.file(&file.path).map(|contents| &**contents)))?;
    let mut problems = Vec::new();
    let mut files = BTreeMap::new();
    for file in manifest.files() {
        let Some(contents) = bundle.file(&file.path) else { continue };
        if let FilePurpose::Module(kind) = file.purpose
            && let Err(error) = engine.compile(contents.clone(), kind).await
        {
            problems.push(file.refused(&error));
        }
        files.insert(file.path.clone(), contents.clone());
    }
    match Problems::of(problems) {
        Some(problems) => Err(problems.into()),
        None => Ok(Checked { manifest, text: Bytes::copy_from_slice(text.as_bytes()), files }),
    }
}

/// Reads a deployment's files back, and makes sure that its modules are compiled for this node's engine.
pub(crate) async fn restore(
    engine: &Arc<dyn Engine>,
    storage: &Arc<dyn Storage>,
    deployment: &Deployment,
) -> Result<Checked, DeployError> {
    let mut bundle = Bundle::default();
    bundle.files.insert(MANIFEST.into(), storage.blob(&deployment.manifest)?);
    for (path, digest) in &deployment.files {
        bundle.files.insert(path.clone(), storage.blob(digest)?);
    }
    check(engine, &bundle).await
}

/// A deployment's functions, ready to be swapped in.
pub(crate) struct Functions {
    pub aggregates: Vec<AggregateFunction>,
    pub projections: Vec<ProjectionDeployment>,
    pub http: HttpRoutes,
    pub openapi: serde_json::Value,
}

/// Makes the functions of a checked bundle.
pub(crate) fn functions(engine: &Arc<dyn Engine>, checked: &Checked) -> Result<Functions, DeployError> {
    let digests = checked.digests();
    let app = &checked.manifest.name;
    let digest = |path: &Path| digests.get(path).copied().unwrap_or_default();
    let schema = |path: &Path| {
        let contents = checked.files.get(path).map_or(&[][..], |contents| contents);
        JsonSchema::from_slice(contents).map_err(|error| DeployError::Unavailable(error.to_string()))
    };
    let mut aggregates = Vec::new();
    for spec in checked.manifest.aggregates.values() {
        let module = digest(&spec.module);
        let function = FunctionSpec {
            app: app.clone(),
            function: format!("aggregate.{}", spec.name).into(),
            trigger: TriggerKind::Http,
            module,
            limits: spec.limits,
            instances: spec.instances,
            capabilities: Default::default(),
        };
        let commands =
            engine.commands(function).map_err(|error| DeployError::Unavailable(error.to_string()))?;
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
        aggregates.push(AggregateFunction {
            spec: spec.clone(),
            digest: module,
            module: commands,
            command_schemas,
            event_schemas,
        });
    }
    let mut projections: Vec<_> = (checked.manifest.projections.values())
        .map(|spec| ProjectionDeployment {
            spec: spec.clone(),
            module: digest(&spec.module),
            models: spec
                .models
                .iter()
                .filter_map(|name| checked.manifest.models.get(name))
                .map(|model| model.schema.clone())
                .collect(),
            effects: None,
        })
        .collect();
    let mut endpoints = Vec::new();
    for spec in checked.manifest.functions.values() {
        let capabilities = Arc::new(spec.capabilities.clone());
        let trigger = match &spec.trigger {
            Trigger::Http(trigger) => trigger,
            Trigger::Events(trigger) => {
                projections.push(ProjectionDeployment::of_function(
                    spec,
                    trigger,
                    digest(&spec.module),
                    capabilities,
                ));
                continue;
            }
        };
        let function = FunctionSpec {
            app: app.clone(),
            function: format!("function.{}", spec.name).into(),
            trigger: TriggerKind::Http,
            module: digest(&spec.module),
            limits: spec.limits,
            instances: spec.instances,
            capabilities,
        };
        let function = engine
            .http(function, trigger.max_response)
            .map_err(|error| DeployError::Unavailable(error.to_string()))?;
        endpoints.push(HttpEndpoint {
            name: spec.name.clone(),
            trigger: trigger.clone(),
            allow: spec.allow.clone(),
            function,
        });
    }
    let http = HttpRoutes::new(endpoints);
    Ok(Functions { aggregates, projections, http, openapi: openapi(checked) })
}

fn openapi(checked: &Checked) -> serde_json::Value {
    let schemas = checked.manifest.files().iter().filter(|file| is_schema(file)).filter_map(|file| {
        let contents = checked.files.get(&file.path)?;
        Some((file.path.clone(), serde_json::from_slice(contents).ok()?))
    });
    ebb_domain::openapi::openapi(&checked.manifest, &schemas.collect())
}

fn is_schema(file: &FileRef) -> bool {
    matches!(file.purpose, FilePurpose::Schema)
}
