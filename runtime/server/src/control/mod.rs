//! The control plane: deploying and looking after apps, probes and metrics.

mod apps;
pub(crate) mod bundle;
mod guard;
mod projections;
mod replay;
mod status;

use crate::config::ControlConfig;
use crate::http::body::RequestBody;
use crate::http::problem::{METHOD_NOT_ALLOWED, NOT_FOUND, Problem, UNSUPPORTED_MEDIA_TYPE};
use crate::http::reply::{Reply, empty};
use crate::http::target::{Segments, segment, shorten};
use crate::metrics::Metrics;
use crate::serve::{Plane, PortCounts};
use ebb_app::node::Node;
use ebb_domain::event::is_json;
use guard::Guard;
use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use serde_json::Value;
use std::borrow::Cow;
use std::sync::Arc;
use tokio::sync::watch;

/// What functions there are and how they do, as JSON: the engine is the composition root's to know.
pub(crate) type FunctionStatus = Arc<dyn Fn() -> Value + Send + Sync>;

/// Everything that the control plane answers from.
pub(crate) struct ControlPlane {
    node: Arc<Node>,
    guard: Guard,
    metrics: Arc<Metrics>,
    counts: Arc<PortCounts>,
    functions: FunctionStatus,
    stopping: watch::Receiver<bool>,
}

impl ControlPlane {
    pub(crate) fn new(
        node: Arc<Node>,
        config: &ControlConfig,
        metrics: Arc<Metrics>,
        counts: Arc<PortCounts>,
        functions: FunctionStatus,
        stopping: watch::Receiver<bool>,
    ) -> Self {
        let guard = Guard::new(config.auth.clone(), config.hosts.clone());
        Self { node, guard, metrics, counts, functions, stopping }
    }

    async fn route(&self, request: Request<RequestBody>) -> Result<Reply, Problem> {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path();
        let segments = Segments::of(path).map(segment).collect::<Result<Vec<Cow<'_, str>>, _>>()?;
        let segments: Vec<&str> = segments.iter().map(|segment| &**segment).collect();
        let Some(methods) = methods(&segments) else {
            return Err(NOT_FOUND.detail(format!("there is nothing at `{}`", shorten(path))));
        };
        // Probes carry no token, and tell nothing.
        match segments[..] {
            ["livez"] if is_read(&parts.method) => return Ok(status::live()),
            ["readyz"] if is_read(&parts.method) => return Ok(self.ready()),
            _ => {}
        }
        let actor = self.guard.admit(&parts)?;
        if parts.method == Method::OPTIONS {
            let mut reply = empty(StatusCode::NO_CONTENT);
            reply.headers_mut().insert(ALLOW, HeaderValue::from_static(methods));
            return Ok(reply);
        }
        let method = if parts.method == Method::HEAD { "GET" } else { parts.method.as_str() };
        match (method, &segments[..]) {
            ("GET", ["metrics"]) => Ok(self.metrics_page()),
            ("GET", ["functions"]) => Ok(self.function_status()),
            ("GET", ["logs"]) => crate::logs::answer(&parts, self.stopping.clone()),
            ("GET", ["projections"]) => Ok(self.projection_status()),
            ("GET", ["apps"]) => Ok(self.apps()),
            ("GET", ["apps", app]) => self.app_summary(app),
            ("PUT", ["apps", app]) => self.deploy(app, &parts, body, actor).await,
            ("DELETE", ["apps", app]) => self.remove(app, &parts, actor).await,
            ("GET", ["apps", app, "deployments"]) => self.deployments(app).await,
            ("POST", ["apps", app, "check"]) => self.check(app, &parts, body).await,
            ("POST", ["apps", app, "rollback"]) => self.rollback(app, &parts, body, actor).await,
            ("POST", ["apps", app, "replay"]) => self.replay(app, &parts, body).await,
            ("POST", ["apps", app, "projections", name, "rebuild"]) => self.rebuild(app, name).await,
            ("GET", ["apps", app, "projections", name, "parked"]) => self.parked(app, name, &parts).await,
            ("POST", ["apps", app, "projections", name, "parked", "retry"]) => {
                self.retry_parked(app, name, &parts, body).await
            }
            ("POST", ["apps", app, "projections", name, "parked", "skip"]) => {
                self.skip_parked(app, name, &parts, body).await
            }
            _ => {
                let detail = format!("{} is not for this path", parts.method);
                Err(METHOD_NOT_ALLOWED.detail(detail).allow(methods))
            }
        }
    }
}

impl Plane for ControlPlane {
    async fn answer(&self, request: Request<RequestBody>) -> Reply {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let reply = self.route(request).await.unwrap_or_else(Problem::into_reply);
        tracing::debug!(%method, path, status = reply.status().as_u16(), "control request");
        if method == Method::HEAD { crate::http::reply::without_body(reply) } else { reply }
    }
}

/// The methods of a path; none where there is nothing.
fn methods(segments: &[&str]) -> Option<&'static str> {
    Some(match segments {
        ["livez" | "readyz" | "metrics" | "functions" | "projections" | "apps" | "logs"] => {
            "GET, HEAD, OPTIONS"
        }
        ["apps", _] => "GET, HEAD, PUT, DELETE, OPTIONS",
        ["apps", _, "deployments"] | ["apps", _, "projections", _, "parked"] => "GET, HEAD, OPTIONS",
        ["apps", _, "check" | "rollback" | "replay"]
        | ["apps", _, "projections", _, "rebuild"]
        | ["apps", _, "projections", _, "parked", "retry" | "skip"] => "POST, OPTIONS",
        _ => return None,
    })
}

fn is_read(method: &Method) -> bool {
    *method == Method::GET || *method == Method::HEAD
}

fn require_json(headers: &HeaderMap) -> Result<(), Problem> {
    let Some(media_type) = headers.get(CONTENT_TYPE) else { return Ok(()) };
    if media_type.to_str().is_ok_and(is_json) {
        return Ok(());
    }
    let shown = shorten(&String::from_utf8_lossy(media_type.as_bytes()));
    Err(UNSUPPORTED_MEDIA_TYPE.detail(format!("the body is `{shown}`; this path takes `application/json`")))
}
