//! HTTP, as any client would speak it.

use bytes::Bytes;
use http::{HeaderMap, Method};
use serde_json::{Value, json};
use std::fmt;

/// A plane of a node, or an app on it.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    base: String,
}

impl Client {
    /// A client of what is at this URL.
    ///
    /// # Panics
    /// The HTTP library can't be set up.
    #[must_use]
    pub fn new(base: impl Into<String>) -> Self {
        // A node is on this machine; what the environment says about proxies is not about it.
        let http = reqwest::Client::builder().no_proxy().build().expect("an HTTP client");
        Self { http, base: base.into() }
    }

    /// A client of what is below: `/apps/bank`.
    #[must_use]
    pub fn below(&self, path: &str) -> Self {
        Self { http: self.http.clone(), base: format!("{}{path}", self.base) }
    }

    /// The URL that requests begin with.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.base
    }

    /// A request.
    #[must_use]
    pub fn request(&self, method: Method, path: &str) -> Request {
        Request(self.http.request(method, format!("{}{path}", self.base)))
    }

    /// Reads.
    #[must_use]
    pub fn get(&self, path: &str) -> Request {
        self.request(Method::GET, path)
    }

    /// Sends JSON.
    #[must_use]
    pub fn post(&self, path: &str, body: &Value) -> Request {
        self.request(Method::POST, path).body("application/json", body.to_string())
    }

    /// A command; `id` is percent-encoded already.
    #[must_use]
    pub fn command(&self, aggregate: &str, id: &str, command: &str, data: &Value) -> Request {
        self.post(&format!("/commands/{aggregate}/{id}/{command}"), data)
    }

    /// Every event there is, page by page.
    ///
    /// # Panics
    /// A page can't be read.
    pub async fn all_events(&self) -> Vec<Value> {
        let mut all = Vec::new();
        let mut after = 0;
        loop {
            let page = self.get(&format!("/events?limit=1000&after={after}")).await.ok();
            all.extend(page["events"].as_array().expect("a page has events").iter().cloned());
            match page["next"].as_u64() {
                Some(next) => after = next,
                None => return all,
            }
        }
    }

    /// Every row of a model, page by page, once its projection has passed this position.
    ///
    /// # Panics
    /// A page can't be read.
    pub async fn all_rows(&self, model: &str, after: u64) -> Vec<Value> {
        self.rows(model, Some(after)).await
    }

    /// All rows of a model, in order of key, fresh or not.
    ///
    /// # Panics
    /// They can't be read.
    pub async fn all_rows_now(&self, model: &str) -> Vec<Value> {
        self.rows(model, None).await
    }

    async fn rows(&self, model: &str, after: Option<u64>) -> Vec<Value> {
        let mut all = Vec::new();
        let mut cursor = String::new();
        loop {
            let page = self.get(&format!("/models/{model}?limit=1000{cursor}"));
            let page = match after {
                Some(after) => page.header("ebb-after", after).header("ebb-wait", "30s"),
                None => page,
            };
            let page = page.await.ok();
            all.extend(page["items"].as_array().expect("a page has items").iter().cloned());
            match page["next"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return all,
            }
        }
    }
}

/// A request in the making; awaiting it sends it.
pub struct Request(reqwest::RequestBuilder);

impl Request {
    /// With a header.
    #[must_use]
    pub fn header(self, name: &str, value: impl fmt::Display) -> Self {
        Self(self.0.header(name, value.to_string()))
    }

    /// With a bearer token.
    #[must_use]
    pub fn token(self, token: &str) -> Self {
        Self(self.0.bearer_auth(token))
    }

    /// With a body.
    #[must_use]
    pub fn body(self, content_type: &str, body: impl Into<reqwest::Body>) -> Self {
        Self(self.0.header("content-type", content_type).body(body))
    }

    /// Sends it; the error is that there was no answer.
    ///
    /// # Errors
    /// There was no answer, or half of one.
    pub async fn send(self) -> Result<Reply, reqwest::Error> {
        let response = self.0.send().await?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Ok(Reply { status, headers, body: response.bytes().await? })
    }

    /// Sends it, and gives the answer as it comes.
    ///
    /// # Panics
    /// There was no answer.
    pub async fn open(self) -> reqwest::Response {
        self.try_open().await.expect("an answer")
    }

    /// Sends it, and gives the answer as it comes; the error is that there was none.
    ///
    /// # Errors
    /// There was no answer.
    pub async fn try_open(self) -> Result<reqwest::Response, reqwest::Error> {
        self.0.send().await
    }
}

impl IntoFuture for Request {
    type Output = Reply;
    type IntoFuture = futures_util::future::BoxFuture<'static, Reply>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async { self.send().await.expect("an answer") })
    }
}

/// An answer.
#[derive(Debug)]
pub struct Reply {
    /// Its status.
    pub status: u16,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

impl Reply {
    /// The body as JSON.
    ///
    /// # Panics
    /// It is something else.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error} in the answer {} {:?}", self.status, self.body))
    }

    /// The body of a success.
    ///
    /// # Panics
    /// It is none.
    #[track_caller]
    pub fn ok(&self) -> Value {
        assert!((200..300).contains(&self.status), "{} {:?}", self.status, self.body);
        if self.body.is_empty() { Value::Null } else { self.json() }
    }

    /// A header, if it is there.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("headers are text"))
    }

    /// A header that holds a number.
    ///
    /// # Panics
    /// It is not there, or is no number.
    #[must_use]
    pub fn number(&self, name: &str) -> u64 {
        let value =
            self.header(name).unwrap_or_else(|| panic!("no header {name}: {} {:?}", self.status, self.body));
        value.parse().unwrap_or_else(|_| panic!("{name}: {value} is no number"))
    }

    /// The position of an accepted command's last event.
    ///
    /// # Panics
    /// It is none.
    #[must_use]
    #[track_caller]
    pub fn position(&self) -> u64 {
        let body = self.ok();
        body["position"].as_u64().unwrap_or_else(|| panic!("no position in {body}"))
    }

    /// The problem document, once it is known that it is one: RFC 9457, with this status and code.
    ///
    /// # Panics
    /// It is something else.
    #[track_caller]
    pub fn problem(&self, status: u16, code: &str) -> Value {
        assert_eq!(
            (self.status, self.header("content-type")),
            (status, Some("application/problem+json")),
            "{:?}",
            self.body
        );
        let problem = self.json();
        assert_eq!((&problem["status"], &problem["code"]), (&json!(status), &json!(code)), "{problem}");
        for member in ["title", "detail"] {
            assert!(
                problem[member].as_str().is_some_and(|text| !text.is_empty()),
                "no {member} in {problem}"
            );
        }
        let kind = problem["type"].as_str().unwrap_or_default();
        let kinds = [format!("urn:ebbtide:error:{code}"), "urn:ebbtide:error:refused".to_owned()];
        assert!(kinds.iter().any(|known| known == kind), "type {kind} of {problem}");
        problem
    }

    /// The problem document of a refusal: the module's own code.
    ///
    /// # Panics
    /// It is something else.
    #[track_caller]
    pub fn refused(&self, code: &str) -> Value {
        let problem = self.problem(422, code);
        assert_eq!(problem["type"], "urn:ebbtide:error:refused", "{problem}");
        problem
    }
}
