//! Reading a request's body, bounded in size and time; or streaming it on, bounded in size.

use super::problem::{BAD_BODY, BODY_TOO_LARGE, Problem, REQUEST_TIMEOUT};
use bytes::Bytes;
use ebb_domain::port::guest::{BodyError, HttpBody};
use futures_util::FutureExt as _;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

/// How much of a body that nobody wanted is still taken, and for how long.
const DRAIN_BYTES: usize = 16 << 20;
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// A request's body. What is left of it when it is dropped is read and thrown away, within bounds, beside the answer.
///
/// Closing a connection while bytes are still on their way makes the peer's kernel throw the answer away before it was
/// read (RFC 9112, section 9.6). With the rest taken, the caller gets its answer and the connection stays usable.
pub(crate) struct RequestBody {
    incoming: Option<Incoming>,
    /// The caller sends the body only when asked to, and whoever drains it would ask.
    expects_continue: bool,
}

impl RequestBody {
    pub(crate) fn new(incoming: Incoming, expects_continue: bool) -> Self {
        Self { incoming: Some(incoming), expects_continue }
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        self.incoming.as_ref().is_none_or(|incoming| incoming.is_end_stream())
    }

    /// The body as it comes in. More than `limit` bytes are refused as soon as that is known: here, from
    /// `Content-Length`, or while it is read, as an error and by the [`Overrun`].
    pub(crate) fn into_stream(self, limit: u64) -> Result<(HttpBody, Overrun), Problem> {
        if self.is_end_stream() {
            return Ok((HttpBody::empty(), Overrun { over: None, limit }));
        }
        if self.incoming.as_ref().is_some_and(|incoming| incoming.size_hint().lower() > limit) {
            return Err(body_too_large(limit));
        }
        let over = Arc::<AtomicBool>::default();
        let body = StreamedBody { body: self, left: limit, limit, over: over.clone() };
        Ok((HttpBody::stream(body), Overrun { over: Some(over), limit }))
    }

    /// The whole body. More than `limit` bytes are refused as soon as that is known: from `Content-Length`, or while
    /// they come in.
    pub(crate) async fn read(mut self, limit: usize, patience: Duration) -> Result<Bytes, Problem> {
        let Some(incoming) = self.incoming.as_mut().filter(|incoming| !incoming.is_end_stream()) else {
            return Ok(Bytes::new());
        };
        if incoming.size_hint().lower() > limit as u64 {
            return Err(too_large(limit));
        }
        self.expects_continue = false;
        let bytes = collect(incoming, limit, patience).await?;
        self.incoming = None;
        Ok(bytes)
    }
}

/// Whether a streamed body had more bytes than it may.
pub(crate) struct Overrun {
    /// None for a body of nothing.
    over: Option<Arc<AtomicBool>>,
    limit: u64,
}

impl Overrun {
    /// What the caller is told if it had.
    pub(crate) fn problem(&self) -> Option<Problem> {
        let over = self.over.as_ref().is_some_and(|over| over.load(Ordering::Relaxed));
        over.then(|| body_too_large(self.limit))
    }
}

/// A body as it comes in, bounded. Nothing of it is asked for before someone wants it.
struct StreamedBody {
    body: RequestBody,
    left: u64,
    limit: u64,
    over: Arc<AtomicBool>,
}

impl hyper::body::Body for StreamedBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.body.expects_continue = false;
        let Some(incoming) = self.body.incoming.as_mut() else { return Poll::Ready(None) };
        let Some(frame) = ready!(Pin::new(incoming).poll_frame(context)) else {
            self.body.incoming = None;
            return Poll::Ready(None);
        };
        let frame = match frame {
            Ok(frame) => frame,
            Err(error) => return Poll::Ready(Some(Err(BodyError::Broken(error.to_string())))),
        };
        let bytes = frame.data_ref().map_or(0, Bytes::len) as u64;
        Poll::Ready(Some(match self.left.checked_sub(bytes) {
            Some(left) => {
                self.left = left;
                Ok(frame)
            }
            None => {
                self.left = 0;
                self.over.store(true, Ordering::Relaxed);
                Err(BodyError::TooLarge { limit: self.limit })
            }
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.incoming.as_ref().map_or(SizeHint::with_exact(0), hyper::body::Body::size_hint)
    }
}

async fn collect(incoming: &mut Incoming, limit: usize, patience: Duration) -> Result<Bytes, Problem> {
    let mut reading = pin!(Limited::new(incoming, limit).collect());
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

impl Drop for RequestBody {
    fn drop(&mut self) {
        let Some(incoming) = self.incoming.take() else { return };
        if incoming.is_end_stream() || self.expects_continue {
            return;
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(tokio::time::timeout(DRAIN_TIME, drain(incoming)));
        }
    }
}

async fn drain(mut body: Incoming) {
    let mut left = DRAIN_BYTES;
    while let Some(Ok(frame)) = body.frame().await {
        let taken = frame.data_ref().map_or(0, Bytes::len);
        match left.checked_sub(taken) {
            Some(rest) => left = rest,
            None => return,
        }
    }
}

fn too_large(limit: usize) -> Problem {
    body_too_large(limit as u64)
}

fn body_too_large(limit: u64) -> Problem {
    BODY_TOO_LARGE
        .detail(format!("the body has more than the {limit} bytes that are allowed"))
        .with("limit", limit)
}
