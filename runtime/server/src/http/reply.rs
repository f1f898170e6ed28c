//! Answers: mostly one buffer with its length known, sometimes a stream.

use bytes::{BufMut, Bytes, BytesMut};
use ebb_domain::port::guest::{BodyError, HttpBody};
use futures_util::Stream;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Either, Full, StreamBody};
use hyper::body::Frame;
use serde::Serialize;

/// The body of an answer. The full one costs no box: it is what nearly every answer is.
pub(crate) type Body = Either<Full<Bytes>, UnsyncBoxBody<Bytes, BodyError>>;
/// An answer.
pub(crate) type Reply = Response<Body>;

pub(crate) const EBB_POSITION: HeaderName = HeaderName::from_static("ebb-position");
pub(crate) const EBB_COMMAND_ID: HeaderName = HeaderName::from_static("ebb-command-id");
pub(crate) const EBB_REPLAYED: HeaderName = HeaderName::from_static("ebb-replayed");
pub(crate) const EBB_LAG: HeaderName = HeaderName::from_static("ebb-lag");
pub(crate) const EBB_PARKED: HeaderName = HeaderName::from_static("ebb-parked");
/// What a browser's script may read of an answer, as one header value.
pub(crate) const EXPOSED: &str =
    "Ebb-Position, Ebb-Command-Id, Ebb-Replayed, Ebb-Lag, Ebb-Parked, Retry-After";

/// An answer with this body and no further headers.
pub(crate) fn full(status: StatusCode, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Either::Left(Full::new(body.into())));
    *reply.status_mut() = status;
    reply
}

/// An answer without a body.
pub(crate) fn empty(status: StatusCode) -> Reply {
    full(status, Bytes::new())
}

/// A JSON answer from bytes that are JSON.
pub(crate) fn json_bytes(status: StatusCode, body: impl Into<Bytes>) -> Reply {
    let mut reply = full(status, body);
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    reply
}

/// A JSON answer.
pub(crate) fn json(status: StatusCode, value: &impl Serialize) -> Reply {
    let mut body = serde_json::to_vec(value).expect("answers are made of maps with text keys");
    body.push(b'\n');
    json_bytes(status, body)
}

/// An answer that is produced while it is sent. The client's socket sets the pace: the stream is polled only when
/// what came before is gone.
pub(crate) fn stream(
    content_type: &'static str,
    chunks: impl Stream<Item = Bytes> + Send + 'static,
) -> Reply {
    use futures_util::StreamExt as _;
    let body = StreamBody::new(chunks.map(|chunk| Ok::<_, BodyError>(Frame::data(chunk))));
    let mut reply = Response::new(Either::Right(body.boxed_unsync()));
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    reply
}

/// A function's response, as it comes. What answers a `HEAD` has its body read and thrown away, so that the function
/// comes to its end.
pub(crate) fn streamed(response: Response<HttpBody>, head: bool) -> Reply {
    let (parts, body) = response.into_parts();
    match body {
        HttpBody::Whole(bytes) if !head => return Reply::from_parts(parts, Either::Left(Full::new(bytes))),
        HttpBody::Streamed(body) if !head => return Reply::from_parts(parts, Either::Right(body)),
        // Its length is the function's to say: whether all of it was there at once is chance.
        HttpBody::Whole(_) => {}
        HttpBody::Streamed(mut body) => {
            tokio::spawn(async move { while let Some(Ok(_)) = body.frame().await {} });
        }
    }
    // Of unknown length: an empty one of known length would have hyper say that there are no bytes.
    let nothing = StreamBody::new(futures_util::stream::empty::<Result<Frame<Bytes>, BodyError>>());
    Reply::from_parts(parts, Either::Right(nothing.boxed_unsync()))
}

/// The answer to HEAD: everything that GET would say, without the body.
pub(crate) fn without_body(reply: Reply) -> Reply {
    let (mut parts, body) = reply.into_parts();
    // Not where it is said already, by a function that was asked for its head only.
    if let Some(length) = hyper::body::Body::size_hint(&body).exact() {
        parts.headers.entry(CONTENT_LENGTH).or_insert(HeaderValue::from(length));
    }
    Reply::from_parts(parts, Either::Left(Full::new(Bytes::new())))
}

/// A number as a header's value, without a `String` in between.
pub(crate) fn number(number: u64) -> HeaderValue {
    HeaderValue::from(number)
}

/// An id as a header's value.
pub(crate) fn uuid_value(id: uuid::Uuid) -> HeaderValue {
    let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
    id.hyphenated().encode_lower(&mut text);
    HeaderValue::from_bytes(&text).expect("a UUID is visible ASCII")
}

/// Writes JSON by hand where building a document first would cost as much as the command did.
pub(crate) struct JsonWriter(BytesMut);

impl JsonWriter {
    pub(crate) fn with_capacity(bytes: usize) -> Self {
        Self(BytesMut::with_capacity(bytes))
    }

    /// JSON as it stands: punctuation, names, or a document that was checked.
    pub(crate) fn raw(&mut self, json: impl AsRef<[u8]>) -> &mut Self {
        self.0.put_slice(json.as_ref());
        self
    }

    /// Text, quoted and escaped.
    pub(crate) fn text(&mut self, text: &str) -> &mut Self {
        serde_json::to_writer((&mut self.0).writer(), text).expect("memory takes it");
        self
    }

    /// An integer, or null.
    pub(crate) fn integer(&mut self, integer: Option<u64>) -> &mut Self {
        match integer {
            Some(integer) => {
                serde_json::to_writer((&mut self.0).writer(), &integer).expect("memory takes it");
            }
            None => self.0.put_slice(b"null"),
        }
        self
    }

    /// An id, quoted.
    pub(crate) fn uuid(&mut self, id: uuid::Uuid) -> &mut Self {
        let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
        self.0.put_u8(b'"');
        self.0.put_slice(id.hyphenated().encode_lower(&mut text).as_bytes());
        self.0.put_u8(b'"');
        self
    }

    pub(crate) fn finish(self) -> Bytes {
        self.0.freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handwritten_json_is_what_serde_would_write() {
        let id = uuid::Uuid::from_u128(7);
        let mut json = JsonWriter::with_capacity(16);
        json.raw("{\"a\":").text("x\"\n").raw(",\"b\":").integer(Some(3)).raw(",\"c\":").integer(None);
        json.raw(",\"d\":").uuid(id).raw("}");
        let value: serde_json::Value = serde_json::from_slice(&json.finish()).unwrap();
        assert_eq!(value, serde_json::json!({ "a": "x\"\n", "b": 3, "c": null, "d": id.to_string() }));
    }
}
