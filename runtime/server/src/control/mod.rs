//! The control plane: deploying and looking after apps, probes and metrics.

mod apps;
pub(crate) mod bundle;
mod functions;
mod guard;
mod kafka;
mod page;
mod projections;
mod reads;
mod replay;
mod status;
mod usage;

use crate::config::ControlConfig;
use crate::data::DataPlane;
use crate::http::body::RequestBody;
use crate::http::problem::{BAD_QUERY, METHOD_NOT_ALLOWED, NOT_FOUND, Problem, UNSUPPORTED_MEDIA_TYPE};
use crate::http::reply::{Reply, empty};
use crate::http::target::{Segments, parameters, segment, shorten};
use crate::metrics::Metrics;
use crate::serve::{Plane, PortCounts};
use crate::traces::TraceCounts;
use ebb_app::node::Node;
use ebb_domain::event::is_json;
use ebb_domain::time::Timestamp;
use ebb_engine::{Census, FunctionStatus, FunctionUsage};
use guard::Guard;
use http::header::{ALLOW, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use std::borrow::Cow;
use std::sync::Arc;
use tokio::sync::watch;

/// What functions there are, how they do and what they used: the rest of the engine is the composition root's.
pub(crate) struct Functions {
    pub(crate) status: Box<dyn Fn() -> Vec<FunctionStatus> + Send + Sync>,
    pub(crate) usage: Box<dyn Fn() -> Vec<FunctionUsage> + Send + Sync>,
    pub(crate) census: Box<dyn Fn() -> Census + Send + Sync>,
    /// Since when usage is counted.
    pub(crate) since: Timestamp,
    pub(crate) traces: Arc<TraceCounts>,
}

/// Everything that the control plane answers from.
pub(crate) struct ControlPlane {
    node: Arc<Node>,
    /// Reads the apps' events and rows.
    data: Arc<DataPlane>,
    guard: Guard,
    metrics: Arc<Metrics>,
    counts: Arc<PortCounts>,
    functions: Functions,
    stopping: watch::Receiver<bool>,
}

impl ControlPlane {
    pub(crate) fn new(
        node: Arc<Node>,
        data: Arc<DataPlane>,
        config: &ControlConfig,
        metrics: Arc<Metrics>,
        counts: Arc<PortCounts>,
        functions: Functions,
        stopping: watch::Receiver<bool>,
    ) -> Self {
        let guard = Guard::new(config.auth.clone(), config.hosts.clone());
        Self { node, data, guard, metrics, counts, functions, stopping }
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
        self.guard.check_source(&parts)?;
        match segments[..] {
            [""] if is_read(&parts.method) => return page::file(&[], &parts.headers),
            ["ui", ref path @ ..] if is_read(&parts.method) => return page::file(path, &parts.headers),
            _ => {}
        }
        let actor = self.guard.authenticate(&parts)?;
        if parts.method == Method::OPTIONS {
            let mut reply = empty(StatusCode::NO_CONTENT);
            reply.headers_mut().insert(ALLOW, HeaderValue::from_static(methods));
            return Ok(reply);
        }
        let method = if parts.method == Method::HEAD { "GET" } else { parts.method.as_str() };
        match (method, &segments[..]) {
            ("GET", ["metrics"]) => Ok(self.metrics_page()),
            ("GET", ["functions"]) => self.function_status(&parts),
            ("GET", ["usage"]) => self.usage(&parts),
            ("GET", ["logs"]) => crate::logs::answer(&parts, self.stopping.clone()),
            ("GET", ["projections"]) => self.projection_status(&parts),
            ("GET", ["kafka"]) => self.kafka_status(&parts),
            ("GET", ["apps"]) => Ok(self.apps(&parts)),
            ("GET", ["apps", app]) => self.app_summary(app),
            ("PUT", ["apps", app]) => self.deploy(app, &parts, body, actor).await,
            ("DELETE", ["apps", app]) => self.remove(app, &parts, actor).await,
            ("GET", ["apps", app, "deployments"]) => self.deployments(app).await,
            ("GET", ["apps", app, "streams", stream, "state"]) => self.state(app, stream, &parts).await,
            ("GET", ["apps", app, "events" | "streams" | "models" | "command-log", ..]) => {
                self.read(app, &parts, actor).await
            }
            ("POST", ["apps", app, "check"]) => self.check(app, &parts, body).await,
            ("POST", ["apps", app, "rollback"]) => self.rollback(app, &parts, body, actor).await,
            ("POST", ["apps", app, "replay"]) => self.replay(app, &parts, body).await,
            ("POST", ["apps", app, "topics", topic, "accept"]) => self.accept_topic(app, topic).await,
            ("POST", ["apps", app, "projections", name, "rebuild"]) => self.rebuild(app, name).await,
            ("POST", ["apps", app, "projections", name, "seek"]) => self.seek(app, name, &parts, body).await,
            ("GET", ["apps", app, "projections", name, "parked"]) => self.parked(app, name, &parts).await,
            ("GET", ["apps", app, "projections", name, "parked", "event"]) => {
                self.parked_event(app, name, &parts).await
            }
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
        [
            "livez" | "readyz" | "metrics" | "functions" | "usage" | "projections" | "kafka" | "apps"
            | "logs",
        ] => "GET, HEAD, OPTIONS",
        ["apps", _] => "GET, HEAD, PUT, DELETE, OPTIONS",
        [""] | ["ui", _, ..] | ["apps", _, "events"] => "GET, HEAD, OPTIONS",
        ["apps", _, "streams" | "models" | "command-log", _]
        | ["apps", _, "models", _, _]
        | ["apps", _, "streams", _, "state"] => "GET, HEAD, OPTIONS",
        ["apps", _, "deployments"]
        | ["apps", _, "projections", _, "parked"]
        | ["apps", _, "projections", _, "parked", "event"] => "GET, HEAD, OPTIONS",
        ["apps", _, "check" | "rollback" | "replay"]
        | ["apps", _, "topics", _, "accept"]
        | ["apps", _, "projections", _, "rebuild" | "seek"]
        | ["apps", _, "projections", _, "parked", "retry" | "skip"] => "POST, OPTIONS",
        _ => return None,
    })
}

/// `app`, where it is the only parameter that there is.
fn app_parameter(parts: &Parts) -> Result<Option<String>, Problem> {
    let mut app = None;
    for (name, value) in parameters(parts.uri.query())? {
        if name != "app" {
            let detail = format!("there is no parameter `{}` here; there is app", shorten(&name));
            return Err(BAD_QUERY.detail(detail));
        }
        app = Some(value.into_owned());
    }
    Ok(app)
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
