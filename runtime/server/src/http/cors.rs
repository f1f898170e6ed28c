//! Cross-origin requests from browsers, as an app's manifest allows them.

use super::reply::{EXPOSED, Reply, empty};
use ebb_domain::manifest::Cors;
use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD, ALLOW, HOST,
    ORIGIN, VARY,
};
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, StatusCode, Uri};

/// What a script may send besides what browsers always allow.
const REQUEST_HEADERS: &str = "Authorization, Content-Type, If-Match, If-None-Match, Idempotency-Key, Last-Event-ID, \
                               X-Correlation-Id, Ebb-Correlation-Id, Ebb-Causation-Id, Ebb-After, Ebb-Wait, \
                               Ebb-Allow-Parked, traceparent";

/// Where a request says it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// It does not say: not a browser, or a plain navigation.
    Unsaid,
    /// From a page of this very address.
    Same,
    /// From a page of another origin that may call: the value that the answer names.
    Allowed(HeaderValue),
    /// From a page of another origin that may not call.
    Foreign,
}

impl Origin {
    /// Judges a request's `Origin`.
    pub(crate) fn of(headers: &HeaderMap, uri: &Uri, cors: Option<&Cors>) -> Self {
        let Some(origin) = headers.get(ORIGIN) else { return Self::Unsaid };
        if let (Some(cors), Ok(text)) = (cors, origin.to_str()) {
            if cors.origins.iter().any(|allowed| allowed == "*") {
                return Self::Allowed(HeaderValue::from_static("*"));
            }
            if cors.origins.iter().any(|allowed| allowed.eq_ignore_ascii_case(text)) {
                return Self::Allowed(origin.clone());
            }
        }
        if is_same_origin(origin, headers, uri) { Self::Same } else { Self::Foreign }
    }
}

/// Whether `Origin` names the host and port that the request was sent to. The scheme is not compared: a proxy in
/// front may speak TLS.
pub(crate) fn is_same_origin(origin: &HeaderValue, headers: &HeaderMap, uri: &Uri) -> bool {
    let page = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
    match (page, authority(headers, uri)) {
        (Some((_, page)), Some(host)) => page.eq_ignore_ascii_case(host),
        _ => false,
    }
}

/// `host:port` of a request: from its target in HTTP/2, from `Host` else.
pub(crate) fn authority<'a>(headers: &'a HeaderMap, uri: &'a Uri) -> Option<&'a str> {
    uri.authority().map(Authority::as_str).or_else(|| headers.get(HOST)?.to_str().ok())
}

/// The host of `host:port`, without brackets around an IPv6 address.
pub(crate) fn host_of(authority: &str) -> &str {
    if let Some(bracketed) = authority.strip_prefix('[') {
        return bracketed.split(']').next().unwrap_or_default();
    }
    authority.split(':').next().unwrap_or_default()
}

/// Whether a request is a browser's, asking whether a page may send another (Fetch, section 4.8), and the app leaves
/// the answer to us.
pub(crate) fn is_preflight(headers: &HeaderMap, cors: Option<&Cors>) -> bool {
    cors.is_some() && headers.contains_key(ORIGIN) && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

/// The answer to `OPTIONS`, a browser's preflight or a curious client's: what this path takes, and for how long that
/// holds. A foreign origin gets no permission, and no reason.
pub(crate) fn preflight(origin: &Origin, cors: Option<&Cors>, methods: &str) -> Reply {
    let methods: HeaderValue = methods.parse().expect("methods are tokens");
    let mut reply = empty(StatusCode::NO_CONTENT);
    let headers = reply.headers_mut();
    headers.insert(ALLOW, methods.clone());
    if let (Origin::Allowed(_), Some(cors)) = (origin, cors) {
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, methods);
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(REQUEST_HEADERS));
        headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from(cors.max_age.as_secs()));
    }
    reply
}

/// Adds to any answer, errors included, what lets the page read it.
pub(crate) fn decorate(headers: &mut HeaderMap, origin: &Origin, cors: Option<&Cors>) {
    if cors.is_some() {
        // Also where the origin was refused: a cache must not hand one origin's answer to another.
        headers.append(VARY, HeaderValue::from_static("Origin"));
    }
    if let Origin::Allowed(origin) = origin {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn judge(origin: &str, host: &str, allowed: &[&str]) -> Origin {
        let mut headers = HeaderMap::new();
        headers.insert(ORIGIN, origin.parse().unwrap());
        headers.insert(HOST, host.parse().unwrap());
        let origins = allowed.iter().map(|origin| (*origin).to_owned()).collect();
        let cors = Cors { origins, max_age: Duration::from_secs(60) };
        Origin::of(&headers, &Uri::from_static("/"), Some(&cors))
    }

    #[test]
    fn only_a_listed_origin_is_allowed_and_it_is_named_in_the_answer() {
        assert_eq!(
            judge("https://a.example", "b", &["https://a.example"]),
            Origin::Allowed("https://a.example".parse().unwrap())
        );
        assert_eq!(judge("https://a.example.evil", "b", &["https://a.example"]), Origin::Foreign);
        assert_eq!(judge("null", "b", &["https://a.example"]), Origin::Foreign);
        assert_eq!(judge("https://any", "b", &["*"]), Origin::Allowed("*".parse().unwrap()));
    }

    #[test]
    fn a_page_of_the_server_itself_may_always_call() {
        assert_eq!(judge("http://127.0.0.1:8080", "127.0.0.1:8080", &[]), Origin::Same);
        assert_eq!(judge("http://127.0.0.1:3000", "127.0.0.1:8080", &[]), Origin::Foreign);
    }

    #[test]
    fn a_host_is_what_stands_before_the_port() {
        assert_eq!(host_of("flights.localhost:8080"), "flights.localhost");
        assert_eq!(host_of("[::1]:8080"), "::1");
        assert_eq!(host_of("10.0.0.1"), "10.0.0.1");
    }
}
