//! HTTP to a node, and what its `application/problem+json` answers mean to people.

use crate::args::{ControlPlane, DataPlane};
use crate::failure::{Exit, Failure};
use crate::output::printable;
use ebb_domain::manifest::Problems;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, RequestBuilder, Response};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::fmt::Write as _;
use std::time::Duration;

/// What RFC 3986 leaves unreserved stands as it is in a path segment or a query value.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// How long a connection may take to open.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Text for one path segment or one query value.
pub(crate) fn encoded(text: &str) -> String {
    match text {
        // URL parsers take these away as steps within the path.
        "." => "%2E".to_owned(),
        ".." => "%2E%2E".to_owned(),
        _ => utf8_percent_encode(text, RESERVED).to_string(),
    }
}

/// A path and a query that are put together from checked pieces.
#[derive(Clone, Debug, Default)]
pub(crate) struct Path {
    text: String,
    has_query: bool,
}

impl Path {
    /// The root.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// The root of an app's paths: `/apps/NAME`, or the root if no app is named.
    pub(crate) fn of_app(app: Option<&str>) -> Self {
        app.map_or_else(Self::new, |app| Self::new().segment("apps").segment(app))
    }

    /// One segment more.
    pub(crate) fn segment(mut self, segment: &str) -> Self {
        self.text.push('/');
        self.text.push_str(&encoded(segment));
        self
    }

    /// One query parameter more.
    #[expect(clippy::needless_pass_by_value, reason = "numbers as well as texts")]
    pub(crate) fn parameter(mut self, name: &str, value: impl ToString) -> Self {
        self.text.push(if self.has_query { '&' } else { '?' });
        self.has_query = true;
        // Writing to a string does not fail.
        let _ = write!(self.text, "{}={}", encoded(name), encoded(&value.to_string()));
        self
    }

    /// The text, beginning with a slash.
    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }
}

/// Which of a node's two addresses is meant; it decides what a failure suggests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plane {
    Data,
    Control,
}

/// One address of a node.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    /// `http://host:port`, no slash at the end.
    base: String,
    plane: Plane,
    http: reqwest::Client,
}

impl Server {
    /// The data plane.
    ///
    /// # Errors
    /// The address or the token can't be used.
    pub(crate) fn data(args: &DataPlane) -> Result<Self, Failure> {
        Self::new(&args.server, args.token.as_deref(), Plane::Data)
    }

    /// The control plane.
    ///
    /// # Errors
    /// The address or the token can't be used.
    pub(crate) fn control(args: &ControlPlane) -> Result<Self, Failure> {
        Self::new(&args.server, args.token.as_deref(), Plane::Control)
    }

    fn new(server: &str, token: Option<&str>, plane: Plane) -> Result<Self, Failure> {
        let base = base_url(server)?;
        let mut headers = HeaderMap::new();
        if let Some(bearer) = bearer(token)? {
            headers.insert(AUTHORIZATION, bearer);
        }
        let http = reqwest::Client::builder()
            .default_headers(headers)
            .user_agent(concat!("ebb/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .build()
            .map_err(|error| Failure::new(format!("the HTTP client could not be set up: {error}")))?;
        Ok(Self { base, plane, http })
    }

    /// `http://host:port`.
    pub(crate) fn base(&self) -> &str {
        &self.base
    }

    /// A request to this address.
    pub(crate) fn request(&self, method: Method, path: &Path) -> RequestBuilder {
        self.http.request(method, format!("{}{}", self.base, path.as_str()))
    }

    /// A GET to this address.
    pub(crate) fn get(&self, path: &Path) -> RequestBuilder {
        self.request(Method::GET, path)
    }

    /// Sends, and takes nothing but success.
    ///
    /// # Errors
    /// No server answers, or it answers with an error, which the failure tells.
    pub(crate) async fn send(&self, request: RequestBuilder) -> Result<Response, Failure> {
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status().as_u16();
        let body = response.bytes().await.map_err(|error| self.broken_off(&error))?;
        Err(self.refused(status, &body))
    }

    /// Sends, and reads the answer's JSON.
    ///
    /// # Errors
    /// As for [`Server::send`], or the answer is not the JSON that it should be.
    pub(crate) async fn json<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, Failure> {
        let body = self.send(request).await?.bytes().await.map_err(|error| self.broken_off(&error))?;
        serde_json::from_slice(&body).map_err(|error| {
            Failure::new(format!("{} answered with something unexpected: {error}", self.base))
                .hint("are node and `ebb` of the same version? see `ebb version` and `ebb status`")
        })
    }

    /// A connection that failed.
    fn unreachable(&self, error: &reqwest::Error) -> Failure {
        if error.is_timeout() && !error.is_connect() {
            return Failure::new(format!("{} did not answer in time", self.base));
        }
        let hint = match self.plane {
            Plane::Data => {
                "start a node with `ebb serve` or `ebb dev`, or name another with --server (or EBB_HTTP)"
            }
            Plane::Control => {
                "start a node with `ebb serve` or `ebb dev`, or name another's control plane with --server (or EBB_CONTROL)"
            }
        };
        Failure::new(format!("no server answers at {}: {}", self.base, root_cause(error))).hint(hint)
    }

    /// An answer that ended before its end.
    pub(crate) fn broken_off(&self, error: &reqwest::Error) -> Failure {
        Failure::new(format!("{} broke off in the middle of its answer: {}", self.base, root_cause(error)))
    }

    /// An answer that is an error.
    fn refused(&self, status: u16, body: &[u8]) -> Failure {
        let failure = Problem::read(status, body).into_failure();
        if status == 404 && failure.hint.is_none() && serde_json::from_slice::<Value>(body).is_err() {
            let hint = match self.plane {
                Plane::Data => "is that a node's data plane? the control plane has an address of its own",
                Plane::Control => "is that a node's control plane? the data plane has an address of its own",
            };
            return failure.hint(hint);
        }
        failure
    }
}

/// `Authorization` for a token.
///
/// # Errors
/// The token has characters that a header can't carry.
pub(crate) fn bearer(token: Option<&str>) -> Result<Option<HeaderValue>, Failure> {
    let Some(token) = token.filter(|token| !token.is_empty()) else { return Ok(None) };
    let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
        .map_err(|_| Failure::new("the token has characters that an HTTP header can't carry"))?;
    value.set_sensitive(true);
    Ok(Some(value))
}

/// The address of a server as people write it: `http://host:port`, `host:port`, or what `EBB_HTTP` tells a server to
/// bind, so that one environment does for both sides.
///
/// # Errors
/// It is not an address that can be connected to.
pub(crate) fn base_url(server: &str) -> Result<String, Failure> {
    let text = server.trim();
    let rest = match text.split_once("://") {
        None => text,
        Some(("http", rest)) => rest,
        Some(("https", _)) => {
            return Err(Failure::new(format!("`{text}`: ebb speaks plain HTTP only"))
                .hint("reach a node behind TLS through a tunnel, `ssh -L 8080:127.0.0.1:8080 HOST`"));
        }
        Some((scheme, _)) => {
            return Err(Failure::new(format!("`{text}`: `{scheme}` is not a scheme that ebb knows")));
        }
    };
    let rest = rest.trim_end_matches('/').replacen("0.0.0.0", "127.0.0.1", 1).replacen("[::]", "[::1]", 1);
    let url = format!("http://{rest}");
    let parsed =
        reqwest::Url::parse(&url).ok().filter(|parsed| parsed.has_host() && parsed.query().is_none());
    match parsed {
        None => Err(Failure::new(format!("`{server}` is not the address of a server"))
            .hint("write it as http://127.0.0.1:8080")),
        Some(parsed) if parsed.port() == Some(0) => {
            Err(Failure::new(format!("`{server}`: port 0 names no server"))
                .hint("give --server the address from the server's ready line"))
        }
        Some(_) => Ok(url),
    }
}

/// The innermost cause: `Connection refused (os error 111)` rather than the layers around it.
fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// An RFC 9457 problem, as a node answers it.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct Problem {
    #[serde(default, rename = "type")]
    kind: Option<String>,
    /// The HTTP status.
    #[serde(default)]
    pub(crate) status: u16,
    #[serde(default)]
    title: Option<String>,
    #[serde(default)]
    detail: Option<String>,
    /// Stable, for programs.
    #[serde(default)]
    pub(crate) code: Option<String>,
    #[serde(default)]
    hint: Option<String>,
    #[serde(flatten)]
    extensions: Map<String, Value>,
}

impl Problem {
    /// The problem in an answer's body, or one made from the status if the body has none.
    pub(crate) fn read(status: u16, body: &[u8]) -> Self {
        let mut problem = serde_json::from_slice::<Self>(body).unwrap_or_else(|_| {
            let text = String::from_utf8_lossy(body);
            let detail = text.trim().lines().next().filter(|line| !line.is_empty() && line.len() < 200);
            Self { detail: detail.map(str::to_owned), ..Self::default() }
        });
        problem.status = status;
        problem
    }

    /// What happened, in one line.
    pub(crate) fn message(&self) -> String {
        let told = self.detail.as_deref().or(self.title.as_deref());
        let told = told.map_or_else(|| "the server answered with an error".to_owned(), printable);
        match &self.code {
            Some(code) => format!("{told} ({} {})", self.status, printable(code)),
            None => format!("{told} ({})", self.status),
        }
    }

    /// Whether it is a domain "no", with the module's own code, rather than an error of the platform.
    pub(crate) fn is_refusal(&self) -> bool {
        self.kind.as_deref() == Some("urn:ebbtide:error:refused")
    }

    /// The problem as the end of a command. An answer of the 4xx kind is a "no" (exit code 1); 429 and 5xx mean that
    /// it was not carried out (2).
    pub(crate) fn into_failure(self) -> Failure {
        let exit =
            if (400..500).contains(&self.status) && self.status != 429 { Exit::No } else { Exit::Failed };
        let mut failure = Failure { exit, ..Failure::new(self.message()) };
        failure.details = self.details();
        failure.hint = self.hint.map(|hint| printable(&hint));
        failure
    }

    /// What belongs to the problem and takes more than a line: a manifest's problems, a schema's violations.
    fn details(&self) -> Option<String> {
        if let Some(problems) = self.extensions.get("problems") {
            if let Ok(problems) = serde_json::from_value::<Problems>(problems.clone()) {
                return Some(problems.to_string());
            }
            return Some(list(problems));
        }
        self.extensions.get("violations").or_else(|| self.extensions.get("errors")).map(list)
    }
}

/// A JSON list as lines: texts as they are, objects by what they say.
fn list(value: &Value) -> String {
    let entry = |value: &Value| match value {
        Value::String(text) => printable(text),
        Value::Object(members) => {
            let text = |name: &str| members.get(name).and_then(Value::as_str);
            let place = text("path").or_else(|| text("pointer")).or_else(|| text("at")).unwrap_or_default();
            match text("message").or_else(|| text("detail")) {
                Some(message) if place.is_empty() => printable(message),
                Some(message) => format!("{}: {}", printable(place), printable(message)),
                None => printable(&value.to_string()),
            }
        }
        other => printable(&other.to_string()),
    };
    match value {
        Value::Array(entries) => {
            entries.iter().map(|value| format!("  - {}", entry(value))).collect::<Vec<_>>().join("\n")
        }
        other => format!("  - {}", entry(other)),
    }
}

/// A body of JSON.
pub(crate) fn json_body(request: RequestBuilder, body: Vec<u8>) -> RequestBuilder {
    request.header(CONTENT_TYPE, "application/json").body(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_environment_does_for_server_and_client() {
        assert_eq!(base_url("127.0.0.1:9000").unwrap(), "http://127.0.0.1:9000");
        assert_eq!(base_url("0.0.0.0:9000").unwrap(), "http://127.0.0.1:9000");
        assert_eq!(base_url("http://flights.localhost:8080/").unwrap(), "http://flights.localhost:8080");
        assert!(base_url("127.0.0.1:0").unwrap_err().message.contains("port 0"));
        assert!(base_url("https://example.org").unwrap_err().message.contains("plain HTTP"));
        assert!(base_url("http://").is_err());
    }

    #[test]
    fn an_id_with_slashes_is_one_segment() {
        let path = Path::of_app(Some("bank")).segment("commands").segment("a/b ü").segment("..");
        assert_eq!(path.as_str(), "/apps/bank/commands/a%2Fb%20%C3%BC/%2E%2E");
        let path = Path::new().segment("models").parameter("a.gt", "5").parameter("order", "-x&y");
        assert_eq!(path.as_str(), "/models?a.gt=5&order=-x%26y");
    }

    #[test]
    fn a_problem_tells_detail_code_and_hint() {
        let body = br#"{"type":"about:blank","title":"Unprocessable Content","status":422,"code":"insufficient_funds",
            "detail":"short by 30","hint":"deposit first"}"#;
        insta::assert_snapshot!(Problem::read(422, body).into_failure(), @r"
        short by 30 (422 insufficient_funds)
        hint: deposit first
        ");
    }

    #[test]
    fn a_schema_violation_lists_where_and_what() {
        let body = br#"{"code":"schema_violation","detail":"the body does not fit",
            "violations":[{"path":"/amount","message":"-3 is less than the minimum of 1"}]}"#;
        let failure = Problem::read(422, body).into_failure();
        assert_eq!(failure.exit, Exit::No);
        insta::assert_snapshot!(failure, @r"
        the body does not fit (422 schema_violation)
          - /amount: -3 is less than the minimum of 1
        ");
    }

    #[test]
    fn an_answer_that_is_no_problem_document_still_says_something() {
        let failure = Problem::read(502, b"<html>").into_failure();
        assert_eq!((failure.message.as_str(), failure.exit), ("<html> (502)", Exit::Failed));
        assert_eq!(Problem::read(500, b"").message(), "the server answered with an error (500)");
    }
}
