//! HTTP functions of one deployment, found by the requests that they answer.

use crate::deferred::{Deferred, Make};
use ebb_domain::manifest::function::{HttpMethod, Taken};
use ebb_domain::manifest::{Allow, FunctionSpec, HttpTrigger};
use ebb_domain::name::FunctionName;
use ebb_domain::port::guest::{CallError, HttpFunction, PARAMETER_HEADER};
use ebb_domain::route::{Route, Routes};
use ebb_domain::text::Text;
use http::HeaderName;
use std::sync::Arc;

/// A function that answers requests. Its module is looked for when it is first called.
pub struct HttpEndpoint {
    /// Its name.
    pub name: FunctionName,
    /// What it answers.
    pub trigger: HttpTrigger,
    /// Who may call it.
    pub allow: Allow,
    /// `function.hello`: what it is called as the cause of something.
    pub qualified_name: Text,
    /// The headers in which its guest is told the parameters of its route, in their order.
    pub parameter_headers: Vec<HeaderName>,
    function: Deferred<Arc<dyn HttpFunction>>,
    keeps_ready: bool,
}

impl HttpEndpoint {
    pub(crate) fn new(spec: &FunctionSpec, trigger: HttpTrigger, make: Make<Arc<dyn HttpFunction>>) -> Self {
        Self {
            name: spec.name.clone(),
            qualified_name: format!("function.{}", spec.name).into(),
            parameter_headers: parameter_headers(&trigger.route),
            trigger,
            allow: spec.allow.clone(),
            function: Deferred::new(make),
            keeps_ready: spec.instances.warm > 0,
        }
    }

    /// Its module, ready to be called.
    ///
    /// # Errors
    /// The module is not there.
    pub async fn function(&self) -> Result<Arc<dyn HttpFunction>, CallError> {
        self.function.get().await.map_err(CallError::Failed)
    }
}

/// The HTTP functions of a deployment.
#[derive(Default)]
pub struct HttpRoutes {
    routes: Routes<Vec<Arc<HttpEndpoint>>>,
    kept_ready: Vec<Arc<HttpEndpoint>>,
}

/// What there is for a request.
pub enum Routed<'p> {
    /// No function has such a route.
    Nothing,
    /// Functions of this route take these methods, and not the request's.
    OtherMethods(Vec<HttpMethod>),
    /// A function.
    Function {
        /// The function.
        endpoint: Arc<HttpEndpoint>,
        /// How it takes the request's method.
        taken: Taken,
        /// What the path has for the parameters of its route, in their order, as it was sent.
        parameters: Vec<&'p str>,
    },
}

impl HttpRoutes {
    pub(crate) fn new(endpoints: impl IntoIterator<Item = HttpEndpoint>) -> Self {
        let (mut routes, mut kept_ready) = (Routes::<Vec<_>>::default(), Vec::new());
        for endpoint in endpoints.into_iter().map(Arc::new) {
            routes.entry(&endpoint.trigger.route).push(endpoint.clone());
            if endpoint.keeps_ready {
                kept_ready.push(endpoint);
            }
        }
        Self { routes, kept_ready }
    }

    /// Those that keep instances ready.
    pub(crate) fn kept_ready(&self) -> &[Arc<HttpEndpoint>] {
        &self.kept_ready
    }

    /// What answers a request: the path picks the route, the method picks the function.
    #[must_use]
    pub fn find<'p>(&self, method: &str, path: &'p str) -> Routed<'p> {
        let Some((endpoints, parameters)) = self.routes.find(path) else { return Routed::Nothing };
        let taking =
            endpoints.iter().filter_map(|endpoint| Some((endpoint.trigger.methods.take(method)?, endpoint)));
        // A `HEAD` that one function lists goes before one that a `GET` implies.
        match taking.min_by_key(|(taken, _)| *taken == Taken::AsGet) {
            Some((taken, endpoint)) => Routed::Function { endpoint: endpoint.clone(), taken, parameters },
            None => Routed::OtherMethods(methods(endpoints)),
        }
    }

    /// The methods that a path takes; none if no function has such a route.
    #[must_use]
    pub fn methods(&self, path: &str) -> Vec<HttpMethod> {
        self.routes.find(path).map(|(endpoints, _)| methods(endpoints)).unwrap_or_default()
    }
}

/// A route's parameters are names as manifests have them, and so are those of headers.
fn parameter_headers(route: &Route) -> Vec<HeaderName> {
    let header = |parameter: &str| format!("{PARAMETER_HEADER}{parameter}").parse();
    route
        .parameters()
        .map(|parameter| header(parameter).expect("a parameter's name fits a header's"))
        .collect()
}

fn methods(endpoints: &[Arc<HttpEndpoint>]) -> Vec<HttpMethod> {
    let takes = |method: &HttpMethod| {
        endpoints.iter().any(|endpoint| endpoint.trigger.methods.take(method.as_str()).is_some())
    };
    HttpMethod::ALL.into_iter().filter(takes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebb_domain::manifest::function::Methods;
    use ebb_domain::port::Future;
    use ebb_domain::port::guest::{HttpBody, HttpCall};

    struct Never;

    impl HttpFunction for Never {
        fn call(&self, _: HttpCall) -> Future<'_, Result<http::Response<HttpBody>, CallError>> {
            Box::pin(std::future::pending())
        }
    }

    fn routes(functions: &[(&str, &str, &[HttpMethod])]) -> HttpRoutes {
        HttpRoutes::new(functions.iter().map(|(name, route, methods)| HttpEndpoint {
            name: FunctionName::new(*name).unwrap(),
            qualified_name: (*name).into(),
            parameter_headers: Vec::new(),
            trigger: HttpTrigger {
                route: Route::parse(route).unwrap(),
                methods: Methods((!methods.is_empty()).then(|| methods.iter().copied().collect())),
                max_body: 1,
                max_response: 1,
            },
            allow: Allow(None),
            function: Deferred::of(Arc::new(Never)),
            keeps_ready: false,
        }))
    }

    fn found(routes: &HttpRoutes, method: &str, path: &str) -> String {
        match routes.find(method, path) {
            Routed::Nothing => "nothing".to_owned(),
            Routed::OtherMethods(methods) => {
                methods.into_iter().map(HttpMethod::as_str).collect::<Vec<_>>().join(" ")
            }
            Routed::Function { endpoint, taken, .. } => format!("{} {taken:?}", endpoint.name),
        }
    }

    #[test]
    fn the_path_picks_the_route_and_the_method_picks_the_function() {
        use HttpMethod::{Delete, Get, Head, Post};
        let routes = routes(&[
            ("read", "/notes/{id}", &[Get]),
            ("write", "/notes/{key}", &[Post, Delete]),
            ("peek", "/seen", &[Head]),
            ("look", "/seen", &[Get]),
            ("rest", "/{path...}", &[]),
        ]);
        assert_eq!(found(&routes, "GET", "/notes/1"), "read AsSent");
        assert_eq!(found(&routes, "HEAD", "/notes/1"), "read AsGet");
        assert_eq!(found(&routes, "DELETE", "/notes/1"), "write AsSent");
        assert_eq!(found(&routes, "PUT", "/notes/1"), "GET HEAD POST DELETE", "not what answers anything");
        assert_eq!(found(&routes, "HEAD", "/seen"), "peek AsSent", "listed goes before implied");
        assert_eq!(found(&routes, "PROPFIND", "/else/where"), "rest AsSent");
    }
}
