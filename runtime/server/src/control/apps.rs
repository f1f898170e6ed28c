//! Deploying apps, looking at what is deployed, going back.

use super::page::unless_known;
use super::{ControlPlane, bundle, require_json};
use crate::http::body::RequestBody;
use crate::http::problem::{
    APP_NAME_MISMATCH, APP_UNAVAILABLE, BAD_HEADER, BAD_QUERY, DEPLOYMENT_CONFLICT, DEPLOYMENT_NOT_FOUND,
    DEPLOYMENT_NOT_SERVED, HOST_TAKEN, INTERNAL, MANIFEST_INVALID, MANIFEST_MISSING, NOT_JSON, OVERLOADED,
    PURGE_INCOMPLETE, Problem, RECORDS_GONE, SHUTTING_DOWN, STORAGE_UNAVAILABLE, UNKNOWN_APP,
    UNSUPPORTED_MEDIA_TYPE,
};
use crate::http::reply::{Reply, empty, json};
use crate::http::target::{parameters, shorten};
use bytes::Bytes;
use ebb_app::app::App;
use ebb_app::bundle::Bundle;
use ebb_app::deploy::{DeployError, Deployed, Deployment, Offers};
use ebb_app::node::{DeployedApp, NotServed};
use ebb_domain::name::AppName;
use ebb_domain::text::Text;
use http::header::{CONTENT_TYPE, ETAG, IF_MATCH, IF_NONE_MATCH};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

/// A bundle is tens of megabytes, perhaps over a slow line.
const UPLOAD: Duration = Duration::from_secs(300);
/// Bodies of everything else.
const SMALL: usize = 64 << 10;

/// How long a deployment waits to be told by Kafka's brokers what is wrong.
const KAFKA_PATIENCE: Duration = Duration::from_secs(3);

impl ControlPlane {
    pub(super) fn apps(&self, parts: &Parts) -> Reply {
        let apps: Vec<Value> = self.node.apps().iter().map(|app| summary(app)).collect();
        unless_known(&parts.headers, &json!({ "apps": apps }))
    }

    pub(super) fn app_summary(&self, app: &str) -> Result<Reply, Problem> {
        let app = self.find(app)?;
        let mut reply = json(StatusCode::OK, &summary(&app));
        reply.headers_mut().insert(ETAG, etag(app.deployment().number));
        Ok(reply)
    }

    /// `PUT /apps/{app}`.
    pub(super) async fn deploy(
        &self,
        app: &str,
        parts: &Parts,
        body: RequestBody,
        actor: Text,
    ) -> Result<Reply, Problem> {
        let app = app_name(app)?;
        let guard = guard(&parts.headers)?;
        let bundle = self.read_bundle(&parts.headers, body).await?;
        let node = self.node.clone();
        let deployment = to_the_end(async move { node.deploy(&app, bundle, guard, &actor).await }).await?;
        Ok(self.deployed(deployment.map_err(deploy_problem)?).await)
    }

    /// What a deployment is answered with: itself, and what keeps it from being of use.
    async fn deployed(&self, deployment: Deployment) -> Reply {
        let app = self.node.deployed_app(&deployment.app).and_then(|app| app.if_open());
        let warnings = match app {
            Some(app) => app.kafka_problems(KAFKA_PATIENCE).await,
            None => Vec::new(),
        };
        let number = deployment.number;
        let mut reply = json(StatusCode::OK, &Deployed { deployment, warnings });
        reply.headers_mut().insert(ETAG, etag(number));
        reply
    }

    /// `POST /apps/{app}/check`: what a deploy would say.
    pub(super) async fn check(&self, app: &str, parts: &Parts, body: RequestBody) -> Result<Reply, Problem> {
        let app = app_name(app)?;
        let bundle = self.read_bundle(&parts.headers, body).await?;
        let manifest = self.node.check(&bundle).await.map_err(deploy_problem)?;
        if manifest.name != app {
            let detail = format!("the manifest's app is `{}`, and the path's is `{app}`", manifest.name);
            return Err(APP_NAME_MISMATCH.detail(detail));
        }
        Ok(json(StatusCode::OK, &json!({ "app": manifest.name, "valid": true })))
    }

    pub(super) async fn deployments(&self, app: &str) -> Result<Reply, Problem> {
        let app = app_name(app)?;
        let deployments = self.node.deployments(&app).await;
        let deployments =
            deployments.map_err(|error| INTERNAL.detail("deployments could not be read").cause(error))?;
        if deployments.is_empty() {
            return Err(unknown_app(&app));
        }
        Ok(json(StatusCode::OK, &json!({ "deployments": deployments })))
    }

    /// `POST /apps/{app}/rollback`, `{"to": 3}`.
    pub(super) async fn rollback(
        &self,
        app: &str,
        parts: &Parts,
        body: RequestBody,
        actor: Text,
    ) -> Result<Reply, Problem> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Rollback {
            to: u64,
        }
        let app = app_name(app)?;
        let guard = guard(&parts.headers)?;
        let Rollback { to } = read_json(parts, body, "{\"to\": DEPLOYMENT}").await?;
        let node = self.node.clone();
        let deployment = to_the_end(async move { node.rollback(&app, to, guard, &actor).await }).await?;
        Ok(self.deployed(deployment.map_err(deploy_problem)?).await)
    }

    /// `DELETE /apps/{app}[?purge=true]`.
    pub(super) async fn remove(&self, app: &str, parts: &Parts, actor: Text) -> Result<Reply, Problem> {
        let app = app_name(app)?;
        let mut purge = false;
        for (name, value) in parameters(parts.uri.query())? {
            match (&*name, &*value) {
                ("purge", "true") => purge = true,
                ("purge", "false") => purge = false,
                _ => return Err(BAD_QUERY.detail("this path takes `purge=true` or `purge=false` only")),
            }
        }
        let guard = guard(&parts.headers)?;
        let (node, metrics) = (self.node.clone(), self.metrics.clone());
        let removed = to_the_end(async move {
            let removed = node.remove(&app, purge, guard, &actor).await;
            if removed.is_ok() {
                metrics.forget(&app);
            }
            removed
        });
        removed.await?.map_err(deploy_problem)?;
        Ok(empty(StatusCode::NO_CONTENT))
    }

    fn find(&self, app: &str) -> Result<Arc<DeployedApp>, Problem> {
        self.node.deployed_app(app).ok_or_else(|| unknown_app(app))
    }

    /// An app, opened.
    pub(super) async fn open(&self, app: &str) -> Result<Arc<App>, Problem> {
        self.find(app)?.app().await.map_err(|error| match error {
            NotServed::Unavailable(why) => {
                APP_UNAVAILABLE.detail(format!("app `{app}` can't be opened")).with("reason", why)
            }
            NotServed::Full(_) => OVERLOADED.detail(error.to_string()).retry_after(Duration::from_secs(1)),
            NotServed::Removed => unknown_app(app),
            NotServed::ShuttingDown => {
                SHUTTING_DOWN.detail("the node is shutting down").retry_after(Duration::from_secs(1))
            }
        })
    }

    pub(super) async fn read_bundle(
        &self,
        headers: &HeaderMap,
        body: RequestBody,
    ) -> Result<Bundle, Problem> {
        let media_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        if !media_type.eq_ignore_ascii_case("application/x-tar") {
            let detail = format!("the body is `{}`; a bundle is `application/x-tar`", shorten(media_type));
            return Err(UNSUPPORTED_MEDIA_TYPE.detail(detail));
        }
        let tar = body.read(Bundle::MAX_BYTES as usize, UPLOAD).await?;
        bundle::read(&tar)
    }
}

/// What is told of an app; it is not opened for that.
fn summary(app: &DeployedApp) -> Value {
    let (status, mut deployment) = (app.status(), Deployment::clone(&app.deployment()));
    // Told below.
    let offers = deployment.offers.take();
    let offers = offers.as_ref();
    let of_kind = |kind| offers.map(|offers| offers.of_kind(kind).collect::<Vec<_>>()).unwrap_or_default();
    let mut summary = json!({
        "app": app.name(),
        "state": status.state,
        "hosts": offers.map(|offers| &*offers.hosts).unwrap_or_default(),
        "deployment": deployment,
        "position": status.end.map(|end| end.position),
        "aggregates": of_kind("aggregate"),
        "functions": of_kind("function"),
        "models": offers.map(Offers::models).unwrap_or_default(),
        "projections": of_kind("projection"),
    });
    if let Some(open) = app.if_open() {
        let manifest = open.manifest();
        let keys: BTreeMap<_, _> =
            manifest.models.iter().map(|(name, model)| (name, &model.schema.key)).collect();
        summary["model_keys"] = json!(keys);
        summary["chains"] = json!(open.chain_status());
    }
    if let Some(why) = status.unavailable {
        summary["unavailable"] = why.into();
    }
    summary
}

fn etag(number: u64) -> HeaderValue {
    HeaderValue::try_from(format!("\"{number}\"")).expect("digits in quotes are a header value")
}

/// Runs to its end even if the caller goes away: what is half done is of use to nobody.
async fn to_the_end<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> Result<T, Problem> {
    tokio::spawn(work).await.map_err(|error| INTERNAL.detail("the deployment failed").cause(error))
}

/// `If-Match: 3`: only if that deployment is served; `If-None-Match: *`: only if none is.
fn guard(headers: &HeaderMap) -> Result<Option<u64>, Problem> {
    let text = |name| headers.get(name).map(|value: &HeaderValue| value.to_str().unwrap_or_default());
    match (text(IF_MATCH), text(IF_NONE_MATCH)) {
        (None, None) => Ok(None),
        (None, Some("*")) => Ok(Some(0)),
        (Some(value), None) => {
            let number = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value);
            number.parse().map(Some).map_err(|_| {
                let detail =
                    format!("`If-Match` is `{}`; it takes the number of a deployment", shorten(value));
                BAD_HEADER.detail(detail)
            })
        }
        _ => Err(BAD_HEADER.detail("take either `If-Match: DEPLOYMENT` or `If-None-Match: *`")),
    }
}

pub(super) fn app_name(text: &str) -> Result<AppName, Problem> {
    // No app has a name that is not one.
    AppName::new(text).map_err(|error| UNKNOWN_APP.detail(error.to_string()))
}

pub(super) fn unknown_app(app: &str) -> Problem {
    UNKNOWN_APP.detail(format!("no app `{}` is deployed", shorten(app)))
}

pub(super) async fn read_json<T: serde::de::DeserializeOwned>(
    parts: &Parts,
    body: RequestBody,
    shape: &str,
) -> Result<T, Problem> {
    require_json(&parts.headers)?;
    let bytes: Bytes = body.read(SMALL, Duration::from_secs(30)).await?;
    serde_json::from_slice(&bytes)
        .map_err(|error| NOT_JSON.detail(format!("the body must be `{shape}`: {error}")))
}

pub(super) fn deploy_problem(error: DeployError) -> Problem {
    let detail = error.to_string();
    match error {
        DeployError::NoManifest => MANIFEST_MISSING.detail(detail),
        DeployError::Invalid(problems) => {
            let listed = serde_json::to_value(&problems).unwrap_or_default();
            let count = problems.as_slice().len();
            let detail = format!(
                "there {} wrong",
                if count == 1 { "is 1 thing".into() } else { format!("are {count} things") }
            );
            MANIFEST_INVALID.detail(detail).with("problems", listed)
        }
        DeployError::NameMismatch { .. } => APP_NAME_MISMATCH.detail(detail),
        DeployError::HostTaken { .. } => HOST_TAKEN.detail(detail),
        DeployError::Conflict { actual } => DEPLOYMENT_CONFLICT.detail(detail).with("actual", actual),
        DeployError::UnknownApp(_) => UNKNOWN_APP.detail(detail),
        DeployError::NotFound(_) => DEPLOYMENT_NOT_FOUND.detail(detail),
        DeployError::Projection(_) => RECORDS_GONE.detail(detail),
        DeployError::LogClosed(_) => APP_UNAVAILABLE.detail(detail),
        DeployError::Full(_) => OVERLOADED.detail(detail).retry_after(Duration::from_secs(1)),
        DeployError::NotServed { number, why } => DEPLOYMENT_NOT_SERVED
            .detail(format!("deployment {number} is recorded, and could not be served"))
            .with("number", number)
            .cause(why),
        DeployError::NotPurged(cause) => PURGE_INCOMPLETE
            .detail("the app is removed, but not all of its data")
            .cause(cause)
            .retry_after(Duration::from_secs(1)),
        DeployError::Unavailable(cause) => {
            let problem = STORAGE_UNAVAILABLE.detail("the disk or the log would not take the deployment");
            problem.cause(cause).retry_after(Duration::from_secs(1))
        }
    }
}
