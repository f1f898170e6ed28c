//! Programs as HTTP functions: the request as a document on stdin, the response as one on stdout. Both bodies are whole
//! in memory, the request's within `max-body` and what the program's own memory could take.

use super::HttpInstance;
use crate::budget::Charge;
use crate::pool::InstancePool;
use crate::program::{Answer, bad, document, read};
use crate::usage::{Tab, Work};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use ebb_domain::port::guest::{BodyError, CallError, HttpBody, PARAMETER_HEADER};
use ebb_domain::text::base64;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt as _, Full};
use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt::Display;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use wasmtime_wasi_http::DEFAULT_FORBIDDEN_HEADERS;

/// Names and values of a response's headers together: 128 KiB, as components may have.
const MAX_HEADERS: usize = 128 << 10;

/// A request, as the program reads it.
#[derive(Serialize)]
struct Input<'a> {
    kind: &'static str,
    method: &'a str,
    path: &'a str,
    query: &'a str,
    headers: BTreeMap<&'a str, String>,
    parameters: BTreeMap<&'a str, String>,
    /// Text; a body of other bytes is in `body_base64`.
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body_base64: Option<String>,
}

/// A response, as the program writes it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Responded<'a> {
    #[serde(default)]
    status: Option<u16>,
    #[serde(default)]
    headers: BTreeMap<String, Values>,
    #[serde(borrow, default)]
    body: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    body_json: Option<&'a RawValue>,
    #[serde(borrow, default)]
    body_base64: Option<Cow<'a, str>>,
}

/// What a header is set to, once or several times.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a header is a text, or a list of texts")]
enum Values {
    One(String),
    Several(Vec<String>),
}

impl<'a> Answer<'a> for Responded<'a> {
    const KIND: &'static str = "request";
    const EXPECTED: &'static str = r#"`{"status": 200, "headers": {…}, "body": "…"}`, each of which may be left out, with `body_json` or `body_base64` instead of `body`"#;
}

/// One request, by one run.
///
/// Its response counts as memory of the node until it was sent.
pub(super) async fn answer(
    pool: &Arc<InstancePool<HttpInstance>>,
    tab: &Tab,
    request: http::Request<HttpBody>,
    max_response: u64,
) -> Result<http::Response<Charged>, CallError> {
    let function = pool.function();
    let mut memory = Charge::new(function.node.budget.clone());
    let (parts, body) = request.into_parts();
    // Before an instance is taken, which is not for waiting.
    let body = whole(body, function.spec.limits.memory_bytes, &mut memory).await?;
    let input = input(&parts, &body);
    memory.grow(input.len() as u64)?;
    drop(body);
    // Never given back: the next run is to have an instance of its own.
    let written = pool.take(tab).await?.run(Work::new(function, tab), input).await?;
    let response = response(&written)?;
    if response.body().len() as u64 > max_response {
        let message = format!("a response body of more than {max_response} bytes");
        return Err(CallError::OutputTooLarge(message));
    }
    let held = memory.bytes();
    memory.grow(response.body().len() as u64)?;
    memory.shrink(held);
    Ok(response.map(|body| Charged { body: Full::new(body), _memory: memory }))
}

/// A response's body, and the memory that it takes.
pub(super) struct Charged {
    body: Full<Bytes>,
    _memory: Charge,
}

impl Body for Charged {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// All of a body, no more than would fit into the program's memory.
async fn whole(mut body: HttpBody, most: u64, memory: &mut Charge) -> Result<Vec<u8>, CallError> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| match error {
            BodyError::Call(error) => error,
            // The caller is told of the first, and can't be told of the second.
            BodyError::TooLarge { .. } | BodyError::Broken(_) => {
                CallError::Failed(format!("the request's body did not arrive: {error}"))
            }
        })?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() as u64 + data.len() as u64 > most {
            return Err(CallError::OutOfMemory { limit_bytes: most });
        }
        memory.grow(data.len() as u64)?;
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}

fn input(parts: &Parts, body: &[u8]) -> Bytes {
    let text = std::str::from_utf8(body).ok();
    let mut headers = headers(&parts.headers);
    if let Some(authority) = parts.uri.authority() {
        headers.insert(HOST.as_str(), authority.to_string());
    }
    document(&Input {
        kind: Responded::KIND,
        method: parts.method.as_str(),
        path: parts.uri.path(),
        query: parts.uri.query().unwrap_or_default(),
        headers,
        parameters: parameters(&parts.headers),
        body: text,
        body_base64: text.is_none().then(|| base64(body)),
    })
}

/// The route's parameters, decoded once.
fn parameters(headers: &HeaderMap) -> BTreeMap<&str, String> {
    let parameter = |(name, value): (_, &HeaderValue)| {
        let name = HeaderName::as_str(name).strip_prefix(PARAMETER_HEADER)?;
        let value = String::from_utf8_lossy(value.as_bytes());
        Some((name, percent_decode_str(&value).decode_utf8_lossy().into_owned()))
    };
    headers.iter().filter_map(parameter).collect()
}

/// All others; what was sent several times as one, as it may be (RFC 9110, section 5.3).
fn headers(headers: &HeaderMap) -> BTreeMap<&str, String> {
    let others = headers.keys().map(HeaderName::as_str).filter(|name| !name.starts_with(PARAMETER_HEADER));
    let joined = |name| {
        let separator = if name == "cookie" { "; " } else { ", " };
        let values = headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
        (name, values.collect::<Vec<_>>().join(separator))
    };
    others.map(joined).collect()
}

/// The response that a program wrote.
///
/// # Errors
/// It is none, for a reason that is told to who wrote the program.
pub(crate) fn response(written: &[u8]) -> Result<http::Response<Bytes>, CallError> {
    let answer: Responded<'_> = read(written)?;
    let refused = |problem: &dyn Display| bad::<Responded<'_>>(written, problem);
    let status = answer.status.unwrap_or(200);
    let status = StatusCode::from_u16(status).ok().filter(|status| (200..600).contains(&status.as_u16()));
    let status = status.ok_or_else(|| refused(&"`status` is a number from 200 to 599"))?;
    let (body, content_type) = match (answer.body, answer.body_json, answer.body_base64) {
        (None, None, None) => (Bytes::new(), None),
        (Some(text), None, None) => (text.into_owned().into(), Some("text/plain; charset=utf-8")),
        (None, Some(json), None) => (Bytes::copy_from_slice(json.get().as_bytes()), Some("application/json")),
        (None, None, Some(encoded)) => {
            let bytes = STANDARD.decode(&*encoded);
            let bytes =
                bytes.map_err(|error| refused(&format_args!("`body_base64` is not base64: {error}")))?;
            (bytes.into(), Some("application/octet-stream"))
        }
        _ => return Err(refused(&"it has more than one of `body`, `body_json` and `body_base64`")),
    };
    if matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) && !body.is_empty() {
        return Err(refused(&format_args!("an answer of status {} has no body", status.as_u16())));
    }
    let mut response = http::Response::new(body);
    *response.status_mut() = status;
    if let Some(content_type) = content_type {
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    }
    let mut left = MAX_HEADERS;
    for (name, values) in answer.headers {
        let unusable = |problem: &dyn Display| refused(&format_args!("the header `{name}` {problem}"));
        let header = HeaderName::from_bytes(name.as_bytes()).map_err(|_| unusable(&"is no header's name"))?;
        if DEFAULT_FORBIDDEN_HEADERS.contains(&header) || header == CONTENT_LENGTH {
            return Err(unusable(&"is the platform's to set"));
        }
        let values = match values {
            Values::One(value) => vec![value],
            Values::Several(values) => values,
        };
        response.headers_mut().remove(&header);
        for value in values {
            let value =
                HeaderValue::from_str(&value).map_err(|_| unusable(&"has a value that none can have"))?;
            // A header map has room for 32,768, whatever their length.
            let most =
                || refused(&format_args!("its headers have more than {MAX_HEADERS} bytes, or are too many"));
            left = left.checked_sub(header.as_str().len() + value.len()).ok_or_else(most)?;
            response.headers_mut().try_append(header.clone(), value).map_err(|_| most())?;
        }
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    fn answered(text: &str) -> (u16, Vec<(String, String)>, Vec<u8>) {
        let response = response(text.as_bytes()).unwrap();
        let headers = response.headers().iter();
        let headers =
            headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
        (response.status().as_u16(), headers, response.body().to_vec())
    }

    #[test]
    fn an_answer_of_nothing_is_a_response_of_nothing() {
        assert_eq!(answered("{}"), (200, Vec::new(), Vec::new()));
    }

    #[test]
    fn what_a_body_is_says_its_type_unless_the_program_does() {
        let typed = |answer: &str| {
            let (_, headers, body) = answered(answer);
            (headers, body)
        };
        let of = |kind: &str| vec![("content-type".to_owned(), kind.to_owned())];
        assert_eq!(typed(r#"{"body": "h\u00e9"}"#), (of("text/plain; charset=utf-8"), "hé".into()));
        assert_eq!(typed(r#"{"body_json": {"a": 1.0}}"#), (of("application/json"), br#"{"a": 1.0}"#.into()));
        assert_eq!(typed(r#"{"body_base64": "AP8="}"#), (of("application/octet-stream"), vec![0, 255]));
        let own = r#"{"body": "<p>", "headers": {"Content-Type": "text/html"}}"#;
        assert_eq!(typed(own), (of("text/html"), b"<p>".into()));
    }

    #[test]
    fn a_header_may_be_set_several_times() {
        let (status, headers, _) =
            answered(r#"{"status": 303, "headers": {"set-cookie": ["a=1", "b=2"], "location": "/"}}"#);
        let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(status, 303);
        assert_eq!(
            headers,
            [header("location", "/"), header("set-cookie", "a=1"), header("set-cookie", "b=2")]
        );
    }

    #[test]
    fn headers_are_bounded_in_number_and_in_bytes() {
        let headers = |count: usize, value: &str| {
            let headers: Vec<_> = (0..count).map(|at| format!(r#""h{at:05}": "{value}""#)).collect();
            response(format!(r#"{{"headers": {{{}}}}}"#, headers.join(", ")).as_bytes())
        };
        assert_eq!(headers(1000, &"x".repeat(100)).unwrap().headers().len(), 1000);
        for (count, value) in [(30_000, ""), (40_000, ""), (2, &*"x".repeat(MAX_HEADERS / 2))] {
            let refused = headers(count, value).err().map(|error| error.to_string());
            let named = refused.as_ref().is_some_and(|error| error.contains("131072 bytes"));
            assert!(named, "{count}: {:?}", refused.map(|error| error.len()));
        }
    }

    #[test]
    fn what_is_no_response_is_refused_with_what_came_and_why() {
        for (answer, why) in [
            ("", "wrote nothing"),
            ("hello", "not JSON"),
            ("[200]", "an array"),
            ("{} {}", "more than one document"),
            (r#"{"staus": 200}"#, "unknown field `staus`"),
            (r#"{"status": "200"}"#, "invalid type"),
            (r#"{"status": 101}"#, "from 200 to 599"),
            (r#"{"status": 600}"#, "from 200 to 599"),
            (r#"{"status": 204, "body": "x"}"#, "status 204 has no body"),
            (r#"{"body": "x", "body_json": 1}"#, "more than one of"),
            (r#"{"body_base64": "x"}"#, "not base64"),
            (r#"{"body": "\ud800"}"#, "not JSON"),
            (r#"{"headers": {"a b": "x"}}"#, "the header `a b` is no header's name"),
            (r#"{"headers": {"a": "x\ny"}}"#, "has a value that none can have"),
            (r#"{"headers": {"a": 1}}"#, "a text, or a list of texts"),
            (r#"{"headers": {"Content-Length": "1"}}"#, "is the platform's to set"),
            (r#"{"headers": {"transfer-encoding": "chunked"}}"#, "is the platform's to set"),
        ] {
            let error = response(answer.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(why) && error.contains("expected `{\"status\""), "{answer}: {error}");
        }
    }

    #[test]
    fn a_request_is_told_as_it_was_sent_and_its_parameters_decoded() {
        let request = Request::post("http://shop.example/notes/a%2Fb?x=%20y")
            .header("ebb-param-id", "a%2Fb")
            .header("ebb-actor", "alice")
            .header("accept", "text/html")
            .header("accept", "text/plain")
            .header("cookie", "a=1")
            .header("cookie", "b=2");
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let told = |body: &[u8]| serde_json::from_slice::<serde_json::Value>(&input(&parts, body)).unwrap();
        assert_eq!(
            told("hé".as_bytes()),
            serde_json::json!({
                "kind": "request", "method": "POST", "path": "/notes/a%2Fb", "query": "x=%20y",
                "headers": {"accept": "text/html, text/plain", "cookie": "a=1; b=2", "ebb-actor": "alice", "host": "shop.example"},
                "parameters": {"id": "a/b"}, "body": "hé",
            })
        );
        let bytes = told(&[0, 255]);
        assert_eq!((&bytes["body_base64"], bytes.get("body")), (&"AP8=".into(), None));
    }
}
