//! Bodies of requests and responses between a caller and a function.

use super::guest::CallError;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use std::pin::Pin;
use std::task::{Context, Poll};
use thiserror::Error;

/// A body: all of it, or data as it comes, and perhaps trailers at its end.
pub enum HttpBody {
    /// All of it, which takes no box. It may be empty.
    Whole(Bytes),
    /// As it comes.
    Streamed(UnsyncBoxBody<Bytes, BodyError>),
}

impl HttpBody {
    /// One that comes piece by piece.
    pub fn stream(body: impl Body<Data = Bytes, Error = BodyError> + Send + 'static) -> Self {
        Self::Streamed(body.boxed_unsync())
    }

    /// One without bytes.
    #[must_use]
    pub const fn empty() -> Self {
        Self::Whole(Bytes::new())
    }
}

impl Body for HttpBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *self {
            Self::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Streamed(body) => Pin::new(body).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_empty(),
            Self::Streamed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Streamed(body) => body.size_hint(),
        }
    }
}

/// Why a body ended before its end.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BodyError {
    /// More bytes than a body may have.
    #[error("the body has more than {limit} bytes")]
    TooLarge {
        /// The limit.
        limit: u64,
    },
    /// The sender went away, or did not keep to the protocol.
    #[error("the body broke off: {0}")]
    Broken(String),
    /// The function failed in the middle of its response.
    #[error(transparent)]
    Call(#[from] CallError),
}
