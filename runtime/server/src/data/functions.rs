//! HTTP functions: a request on its way to a guest, and the guest's response on its way out.
//!
//! What a guest is told by the platform is said in headers that nobody else can set: `Ebb-Actor`,
//! `Ebb-Correlation-Id`, and `Ebb-Param-…` for each parameter of its route.

use super::DataPlane;
use super::commands::{correlation_id, module_problem};
use crate::auth::{AuthError, authorize};
use crate::http::body::{Overrun, RequestBody};
use crate::http::cors::{Origin, authority};
use crate::http::problem::{BAD_PATH, METHOD_NOT_ALLOWED, ORIGIN_NOT_ALLOWED, Problem};
use crate::http::reply::{Reply, streamed};
use crate::metrics::Entered;
use bytes::Bytes;
use ebb_app::app::App;
use ebb_app::functions::{HttpEndpoint, Routed};
use ebb_app::own_app::{CalledApp, Cause};
use ebb_domain::manifest::function::{HttpMethod, Taken};
use ebb_domain::port::guest::{BodyError, CallError, HttpBody, HttpCall, PARAMETER_HEADER};
use ebb_domain::text::Text;
use http::header::{AUTHORIZATION, CONNECTION, EXPECT, HOST, HeaderName, TE, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Method, Request, Uri};
use hyper::body::{Body, Frame, SizeHint};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

const EBB_ACTOR: HeaderName = HeaderName::from_static("ebb-actor");
const EBB_CORRELATION_ID: HeaderName = HeaderName::from_static("ebb-correlation-id");
const X_FORWARDED_PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");

/// What a connection's two ends say to each other and nobody else (RFC 9110, section 7.6.1).
const HOP_BY_HOP: [HeaderName; 8] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("proxy-authorization"),
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
    EXPECT,
];

/// `GET, HEAD, OPTIONS`, for `Allow`.
pub(super) fn allow(methods: &[HttpMethod]) -> String {
    let options = (!methods.contains(&HttpMethod::Options)).then_some(HttpMethod::Options);
    methods.iter().copied().chain(options).map(HttpMethod::as_str).collect::<Vec<_>>().join(", ")
}

impl DataPlane {
    /// Answers with a function, if one has the path.
    pub(super) async fn function(
        &self,
        app: &Arc<App>,
        (path, routed): (&str, Routed<'_>),
        parts: &mut Parts,
        body: RequestBody,
        origin: &Origin,
        caller: Result<Text, AuthError>,
    ) -> Result<Reply, Problem> {
        let (endpoint, taken, parameters) = match routed {
            Routed::Nothing => return Err(super::nothing_there(path)),
            Routed::OtherMethods(methods) => {
                let detail = format!("{} is not for this path", parts.method);
                return Err(METHOD_NOT_ALLOWED.detail(detail).allow(allow(&methods)));
            }
            Routed::Function { endpoint, taken, parameters } => (endpoint, taken, parameters),
        };
        let safe = matches!(parts.method, Method::GET | Method::HEAD | Method::OPTIONS);
        if *origin == Origin::Foreign && !safe {
            return Err(ORIGIN_NOT_ALLOWED.detail("this is not taken from pages of this origin"));
        }
        let actor = caller?;
        authorize(&endpoint.allow, &actor, || format!("function {}", endpoint.name))?;
        let correlation_id =
            correlation_id(&parts.headers)?.unwrap_or_else(|| Text::from(uuid::Uuid::now_v7().to_string()));
        let (body, overrun) = body.into_stream(endpoint.trigger.max_body)?;
        let head = parts.method == Method::HEAD;
        if taken == Taken::AsGet {
            parts.method = Method::GET;
        }
        let mut request = Box::new(Request::new(body));
        *request.method_mut() = parts.method.clone();
        *request.uri_mut() = uri(parts, path)?;
        let headers = std::mem::take(&mut parts.headers);
        let told = Told {
            actor: &actor,
            correlation_id: &correlation_id,
            endpoint: &endpoint,
            parameters: &parameters,
        };
        *request.headers_mut() = told.headers(headers, parts.uri.path(), path, self.auth.is_configured());
        let cause = Cause { actor, correlation_id, causation_id: endpoint.qualified_name.clone(), hops: 0 };
        let entered = self.metrics.enter(app.name(), || &*endpoint.qualified_name);
        let call = HttpCall { request, app: Arc::new(CalledApp::new(Arc::downgrade(app), cause)) };
        let answered = match endpoint.function().await {
            Ok(function) => function.call(call).await,
            Err(error) => Err(error),
        };
        let answered =
            answered.map(|response| response.map(|body| KeepsOpen::until_sent(body, app, entered)));
        finish(answered, &overrun, &endpoint, head)
    }
}

/// A response's body as it comes, which uses its app, and is in flight, to its end.
struct KeepsOpen {
    body: HttpBody,
    _app: Arc<App>,
    _entered: Option<Entered>,
}

impl KeepsOpen {
    fn until_sent(body: HttpBody, app: &Arc<App>, entered: Option<Entered>) -> HttpBody {
        match body {
            // Its call has ended.
            HttpBody::Whole(_) => body,
            HttpBody::Streamed(_) => HttpBody::stream(Self { body, _app: app.clone(), _entered: entered }),
        }
    }
}

impl Body for KeepsOpen {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The guest's response, or what is said instead of it.
fn finish(
    answered: Result<http::Response<HttpBody>, CallError>,
    overrun: &Overrun,
    endpoint: &HttpEndpoint,
    head: bool,
) -> Result<Reply, Problem> {
    // Whatever the guest made of half a body.
    if let Some(too_large) = overrun.problem() {
        return Err(too_large);
    }
    match answered {
        Ok(response) => Ok(streamed(response, head)),
        Err(error @ CallError::Overloaded { retry_after, .. }) => {
            Err(module_problem(error, "request").retry_after(retry_after))
        }
        Err(error) => Err(module_problem(error, "request").with("function", &*endpoint.name)),
    }
}

/// Where the request goes, as the guest sees it: without the prefix that selects the app, absolute.
fn uri(parts: &Parts, path: &str) -> Result<Uri, Problem> {
    let target = match (parts.uri.path_and_query(), parts.uri.query()) {
        (Some(sent), _) if sent.path() == path => Ok(sent.clone()),
        (_, Some(query)) => PathAndQuery::try_from(format!("{}?{query}", non_empty(path))),
        (_, None) => PathAndQuery::try_from(non_empty(path)),
    };
    let host = authority(&parts.headers, &parts.uri).unwrap_or_default();
    let mut uri = http::uri::Parts::default();
    uri.path_and_query = Some(target.map_err(|error| BAD_PATH.detail(error.to_string()))?);
    // HTTP/1.0 knows no `Host`, and a guest may count on one.
    uri.authority = Some(host.parse().unwrap_or_else(|_| Authority::from_static("localhost")));
    uri.scheme = Some(Scheme::HTTP);
    Uri::from_parts(uri).map_err(|error| BAD_PATH.detail(error.to_string()))
}

fn non_empty(path: &str) -> &str {
    if path.is_empty() { "/" } else { path }
}

/// What the platform tells a guest about a request.
struct Told<'a> {
    actor: &'a Text,
    correlation_id: &'a Text,
    endpoint: &'a HttpEndpoint,
    parameters: &'a [&'a str],
}

impl Told<'_> {
    /// The caller's headers without what is not for the guest, and with what the platform says.
    fn headers(&self, mut headers: HeaderMap, sent: &str, path: &str, tokens: bool) -> HeaderMap {
        let named: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|name| name.trim().parse().ok())
            .collect();
        let is_for_guest = |name: &HeaderName| {
            !(named.contains(name)
                || HOP_BY_HOP.contains(name)
                // The guest has the request's authority for it.
                || *name == HOST
                // A token for this node is not for its functions: who has it could call anything in its owner's name.
                || (tokens && *name == AUTHORIZATION)
                // Forged.
                || name.as_str().starts_with(PARAMETER_HEADER))
        };
        // Looked for among those that are there, which are few.
        let removed: Vec<HeaderName> = headers.keys().filter(|name| !is_for_guest(name)).cloned().collect();
        for name in removed {
            headers.remove(name);
        }
        // Actors and ids are visible ASCII; should one ever not be, none is better than the caller's own.
        let mut say = |name: HeaderName, value: &str| match HeaderValue::from_str(value) {
            Ok(value) => drop(headers.insert(name, value)),
            Err(_) => drop(headers.remove(name)),
        };
        say(EBB_ACTOR, self.actor);
        say(EBB_CORRELATION_ID, self.correlation_id);
        for (name, value) in self.endpoint.parameter_headers.iter().zip(self.parameters) {
            say(name.clone(), value);
        }
        match sent.strip_suffix(path).filter(|prefix| !prefix.is_empty()) {
            Some(prefix) => say(X_FORWARDED_PREFIX, prefix),
            None => drop(headers.remove(X_FORWARDED_PREFIX)),
        }
        headers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(target: &str, headers: &[(&'static str, &str)]) -> Parts {
        let mut request = Request::builder().uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn a_guest_sees_the_path_within_its_app_and_the_host_that_was_called() {
        let parts = parts("/apps/shop/hello/a%2Fb?x=1&y=%20", &[("host", "shop.example:8080")]);
        assert_eq!(uri(&parts, "/hello/a%2Fb").unwrap(), "http://shop.example:8080/hello/a%2Fb?x=1&y=%20");
    }

    #[test]
    fn a_request_without_a_usable_host_still_has_one() {
        assert_eq!(uri(&parts("/", &[]), "").unwrap(), "http://localhost/");
        assert_eq!(uri(&parts("/", &[("host", "a b")]), "/").unwrap(), "http://localhost/");
    }
}
