//! Reading a request's body, bounded in size and time.

use super::problem::{BAD_BODY, BODY_TOO_LARGE, Problem, REQUEST_TIMEOUT};
use bytes::Bytes;
use futures_util::FutureExt as _;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::{Body as _, Incoming};
use std::pin::pin;
use std::time::Duration;

/// The whole body. More than `limit` bytes are refused as soon as that is known: from `Content-Length`, or while
/// they come in.
pub(crate) async fn read(body: Incoming, limit: usize, patience: Duration) -> Result<Bytes, Problem> {
    if body.is_end_stream() {
        return Ok(Bytes::new());
    }
    if body.size_hint().lower() > limit as u64 {
        return Err(too_large(limit));
    }
    let mut reading = pin!(Limited::new(body, limit).collect());
    // A small body has mostly arrived with its head: no timer for those.
    let read = match (&mut reading).now_or_never() {
        Some(read) => read,
        None => match tokio::time::timeout(patience, reading).await {
            Ok(read) => read,
            Err(_) => {
                let detail = format!("the body did not arrive within {} s", patience.as_secs());
                return Err(REQUEST_TIMEOUT.detail(detail));
            }
        },
    };
    match read {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(too_large(limit)),
        Err(error) => Err(BAD_BODY.detail("the body ended early or its framing is wrong").cause(error)),
    }
}

fn too_large(limit: usize) -> Problem {
    BODY_TOO_LARGE
        .detail(format!("the body has more than the {limit} bytes that are allowed"))
        .with("limit", limit)
}
