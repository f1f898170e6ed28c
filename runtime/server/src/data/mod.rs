//! The data plane: commands, events, read models, for the app that a request selects.
//!
//! Dispatch is by hand on the raw path: a router that decodes path parameters by itself would make `%2F` in a key a
//! separator or decode it twice, and the six shapes of path need no tree.

pub(crate) mod commands;
pub(crate) mod cursor;
mod events;
pub(crate) mod freshness;
mod functions;
mod live;
mod models;
pub(crate) mod query;

use crate::auth::{AuthError, Authenticator, authorize};
use crate::config::EdgeLimits;
use crate::http::body::RequestBody;
use crate::http::cors::{self, Origin};
use crate::http::problem::{
    APP_REQUIRED, APP_UNAVAILABLE, INTERNAL, METHOD_NOT_ALLOWED, NOT_FOUND, ORIGIN_NOT_ALLOWED, OVERLOADED,
    Problem, SHUTTING_DOWN, UNKNOWN_APP,
};
use crate::http::reply::{Reply, json, without_body};
use crate::http::target::{Segments, segment, shorten};
use crate::metrics::{Metrics, RouteLabel};
use crate::serve::Plane;
use crate::traces::Traces;
use cursor::Sealer;
use ebb_app::app::App;
use ebb_app::functions::Routed;
use ebb_app::node::{DeployedApp, Node, NotServed};
use ebb_domain::manifest::function::HttpMethod;
use ebb_domain::manifest::{Allow, Manifest};
use ebb_domain::text::Text;
use http::request::Parts;
use http::{Method, Request, StatusCode};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, watch};

/// Everything that the data plane answers from.
pub(crate) struct DataPlane {
    node: Arc<Node>,
    auth: Arc<Authenticator>,
    limits: EdgeLimits,
    sealer: Sealer,
    metrics: Arc<Metrics>,
    traces: Option<Arc<Traces>>,
    live: Arc<Semaphore>,
    stopping: watch::Receiver<bool>,
}

/// A request for one app, authenticated.
struct Call<'a> {
    app: &'a Arc<App>,
    manifest: &'a Arc<Manifest>,
    actor: Text,
    /// Whoever has the control plane may deploy what reads everything: `allow` lists are not for them.
    is_operator: bool,
    parts: &'a Parts,
    started: Instant,
}

impl Call<'_> {
    /// Whether an `allow` list lets this caller in.
    fn is_permitted(&self, allow: &Allow) -> bool {
        self.is_operator || allow.permits(&self.actor)
    }

    /// The same as an error that names what was asked for.
    fn authorize(&self, allow: &Allow, what: impl FnOnce() -> String) -> Result<(), Problem> {
        if self.is_operator {
            return Ok(());
        }
        Ok(authorize(allow, &self.actor, what)?)
    }
}

/// What a path means, with its raw segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route<'a> {
    Command { aggregate: &'a str, key: &'a str, command: &'a str },
    CommandLog { id: &'a str },
    Stream { stream: &'a str },
    Events,
    Rows { model: &'a str },
    Row { model: &'a str, key: &'a str },
    OpenApi,
    AsyncApi,
}

impl<'a> Route<'a> {
    fn of(path: &'a str) -> Option<Self> {
        let mut segments = Segments::of(path);
        let first = segments.next()?;
        let rest = [segments.next(), segments.next(), segments.next(), segments.next()];
        Some(match (first, rest) {
            ("commands", [Some(aggregate), Some(key), Some(command), None]) => {
                Self::Command { aggregate, key, command }
            }
            ("command-log", [Some(id), None, ..]) => Self::CommandLog { id },
            ("streams", [Some(stream), None, ..]) => Self::Stream { stream },
            ("events", [None, ..]) => Self::Events,
            ("models", [Some(model), None, ..]) => Self::Rows { model },
            ("models", [Some(model), Some(key), None, _]) => Self::Row { model, key },
            ("openapi.json", [None, ..]) => Self::OpenApi,
            ("asyncapi.json", [None, ..]) => Self::AsyncApi,
            _ => return None,
        })
    }

    fn methods(self) -> &'static str {
        match self {
            Self::Command { .. } => "POST, OPTIONS",
            _ => "GET, HEAD, OPTIONS",
        }
    }

    fn takes(self, method: &Method) -> bool {
        match self {
            Self::Command { .. } => *method == Method::POST,
            _ => *method == Method::GET || *method == Method::HEAD,
        }
    }

    fn label(self) -> RouteLabel {
        match self {
            Self::Command { .. } => RouteLabel::Commands,
            Self::CommandLog { .. } => RouteLabel::CommandLog,
            Self::Stream { .. } => RouteLabel::Streams,
            Self::Events => RouteLabel::Events,
            Self::Rows { .. } | Self::Row { .. } => RouteLabel::Models,
            Self::OpenApi => RouteLabel::OpenApi,
            Self::AsyncApi => RouteLabel::AsyncApi,
        }
    }
}

impl DataPlane {
    pub(crate) fn new(
        node: Arc<Node>,
        auth: Arc<Authenticator>,
        limits: EdgeLimits,
        secret: &[u8],
        metrics: Arc<Metrics>,
        traces: Option<Arc<Traces>>,
        stopping: watch::Receiver<bool>,
    ) -> Self {
        let live = Arc::new(Semaphore::new(limits.live));
        Self { node, auth, limits, sealer: Sealer::new(secret), metrics, traces, live, stopping }
    }

    /// The app that a request is for, opened, what is left of its path, and who asks.
    async fn select<'p>(
        &self,
        parts: &'p Parts,
    ) -> Result<(Arc<App>, &'p str, Result<Text, AuthError>), Problem> {
        let (deployed, rest) = self.find(parts)?;
        let caller = self.auth.authenticate(&parts.headers);
        // Who may call nothing opens nothing. But a page of another origin can read that only as the app allows, and
        // asks that beforehand without saying who it is.
        let is_asked_first = parts.method == Method::OPTIONS || deployed.has_cors();
        if !is_asked_first && deployed.if_open().is_none() {
            caller.as_ref().map_err(Clone::clone)?;
        }
        match deployed.app().await {
            Ok(app) => Ok((app, rest, caller)),
            // Why is the operator's to know.
            Err(NotServed::Unavailable(_)) => {
                Err(APP_UNAVAILABLE.detail(format!("app `{}` can't be opened", deployed.name())))
            }
            Err(NotServed::Full(_)) => {
                let detail = "other apps take all of the node's places for open apps";
                Err(OVERLOADED.detail(detail).retry_after(Duration::from_secs(1)))
            }
            Err(NotServed::Removed) => Err(unknown(deployed.name())),
            Err(NotServed::ShuttingDown) => {
                Err(SHUTTING_DOWN.detail("the node is shutting down").retry_after(Duration::from_secs(1)))
            }
        }
    }

    fn find<'p>(&self, parts: &'p Parts) -> Result<(Arc<DeployedApp>, &'p str), Problem> {
        let path = parts.uri.path();
        if let Some(behind) = path.strip_prefix("/apps/") {
            let at = behind.find('/').unwrap_or(behind.len());
            let (name, rest) = behind.split_at(at);
            let name = segment(name)?;
            let app = self.node.deployed_app(&name).ok_or_else(|| unknown(&name))?;
            return Ok((app, rest));
        }
        let host = cors::authority(&parts.headers, &parts.uri).map(cors::host_of);
        let app = host.and_then(|host| self.node.app_for_host(host)).or_else(|| self.node.only_app());
        let none = || APP_REQUIRED.detail("no app has this host name, and not exactly one app is deployed");
        Ok((app.ok_or_else(none)?, path))
    }

    async fn route(
        &self,
        app: &Arc<App>,
        route: Route<'_>,
        parts: &Parts,
        body: RequestBody,
        origin: &Origin,
        (started, caller): (Instant, Result<Text, AuthError>),
    ) -> Result<Reply, Problem> {
        if !route.takes(&parts.method) {
            let detail = format!("{} is not for this path", parts.method);
            return Err(METHOD_NOT_ALLOWED.detail(detail).allow(route.methods()));
        }
        let actor = caller?;
        let manifest = &app.manifest();
        let call = Call { app, manifest, actor, is_operator: false, parts, started };
        match route {
            Route::Command { aggregate, key, command } => {
                // A page of a foreign origin can send a POST without asking first: CORS only keeps it from reading
                // the answer.
                if *origin == Origin::Foreign {
                    return Err(ORIGIN_NOT_ALLOWED.detail("commands are not taken from pages of this origin"));
                }
                self.command(&call, aggregate, key, command, body).await
            }
            read => self.read(&call, read).await,
        }
    }

    /// A read for the operator, who comes by the control plane: the same paths, bounds and answers as here. None where
    /// there is nothing at the path.
    pub(crate) async fn read_as_operator(
        &self,
        app: &Arc<App>,
        path: &str,
        parts: &Parts,
        actor: Text,
    ) -> Option<Result<Reply, Problem>> {
        let route = Route::of(path)?;
        let manifest = &app.manifest();
        let call = Call { app, manifest, actor, is_operator: true, parts, started: Instant::now() };
        Some(self.read(&call, route).await)
    }

    async fn read(&self, call: &Call<'_>, route: Route<'_>) -> Result<Reply, Problem> {
        match route {
            Route::Command { .. } => {
                Err(METHOD_NOT_ALLOWED.detail("this is no path to read").allow(route.methods()))
            }
            Route::CommandLog { id } => self.command_log(call, id).await,
            Route::Stream { stream } => self.stream(call, stream).await,
            Route::Events => self.events(call).await,
            Route::Rows { model } => self.rows(call, model).await,
            Route::Row { model, key } => self.row(call, model, key).await,
            Route::OpenApi | Route::AsyncApi => {
                let document = match route {
                    Route::AsyncApi => call.app.asyncapi().await,
                    _ => call.app.openapi().await,
                };
                let document =
                    document.map_err(|error| INTERNAL.detail("a schema can't be read").cause(error))?;
                Ok(json(StatusCode::OK, &*document))
            }
        }
    }
}

impl Plane for DataPlane {
    async fn answer(&self, request: Request<RequestBody>) -> Reply {
        let started = Instant::now();
        let (mut parts, body) = request.into_parts();
        let (app, path, caller) = match self.select(&parts).await {
            Ok((app, path, caller)) => (app, path.to_owned(), caller),
            Err(problem) => {
                self.metrics.request(RouteLabel::Other, problem.status(), started.elapsed());
                return problem.into_reply();
            }
        };
        let manifest = app.manifest();
        let cors = manifest.cors.as_ref();
        let origin = Origin::of(&parts.headers, &parts.uri, cors);
        let route = Route::of(&path);
        let mut label = route.map_or(RouteLabel::Other, Route::label);
        let head = parts.method == Method::HEAD;
        let method = parts.method.clone();
        let mut reply = match route {
            None => {
                let routes = app.http_routes();
                let routed = routes.find(method.as_str(), &path);
                if !matches!(routed, Routed::Nothing) {
                    label = RouteLabel::Function;
                }
                let methods = match method {
                    Method::OPTIONS => routes.methods(&path),
                    _ => Vec::new(),
                };
                let asks_us = !methods.is_empty()
                    && (cors::is_preflight(&parts.headers, cors) || !methods.contains(&HttpMethod::Options));
                if asks_us {
                    cors::preflight(&origin, cors, &functions::allow(&methods))
                } else {
                    self.function(&app, (&path, routed), &mut parts, body, &origin, caller)
                        .await
                        .unwrap_or_else(Problem::into_reply)
                }
            }
            Some(route) if parts.method == Method::OPTIONS => cors::preflight(&origin, cors, route.methods()),
            Some(route) => self
                .route(&app, route, &parts, body, &origin, (started, caller))
                .await
                .unwrap_or_else(Problem::into_reply),
        };
        cors::decorate(reply.headers_mut(), &origin, cors);
        // What a function says of its length is its own to say.
        if head && label != RouteLabel::Function {
            reply = without_body(reply);
        }
        tracing::debug!(
            app = &**app.name(),
            %method,
            path,
            status = reply.status().as_u16(),
            micros = started.elapsed().as_micros() as u64,
            "request"
        );
        self.metrics.request(label, reply.status(), started.elapsed());
        reply
    }
}

/// Finds the route of a path, for fuzzers.
#[cfg(feature = "testing")]
pub(crate) fn route_label(path: &str) {
    if let Some(route) = Route::of(path) {
        assert!(route.methods().contains("OPTIONS"));
        let _ = route.label();
    }
}

fn nothing_there(path: &str) -> Problem {
    NOT_FOUND.detail(format!("there is nothing at `{}`", shorten(path)))
}

fn unknown(app: &str) -> Problem {
    UNKNOWN_APP.detail(format!("no app `{}` is deployed", shorten(app)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_mean_what_the_contract_says() {
        let command = Route::Command { aggregate: "account", key: "a%2Fb", command: "open" };
        assert_eq!(Route::of("/commands/account/a%2Fb/open"), Some(command));
        assert_eq!(Route::of("/command-log/7"), Some(Route::CommandLog { id: "7" }));
        assert_eq!(Route::of("/streams/account-1"), Some(Route::Stream { stream: "account-1" }));
        assert_eq!(Route::of("/events"), Some(Route::Events));
        assert_eq!(Route::of("/models/balances"), Some(Route::Rows { model: "balances" }));
        assert_eq!(Route::of("/models/balances/1"), Some(Route::Row { model: "balances", key: "1" }));
        assert_eq!(Route::of("/openapi.json"), Some(Route::OpenApi));
        assert_eq!(Route::of("/asyncapi.json"), Some(Route::AsyncApi));
    }

    #[test]
    fn a_slash_in_a_key_that_is_not_encoded_is_another_path() {
        for path in [
            "",
            "/",
            "/commands/account/a/b/open",
            "/models/balances/a/b",
            "/events/",
            "/commands",
            "/graphql",
        ] {
            assert_eq!(Route::of(path), None, "{path}");
        }
    }
}
