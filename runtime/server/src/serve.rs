//! Listening sockets and connections: HTTP/1.1 and HTTP/2 without TLS on one port, bounded in number, drained at
//! shutdown.

mod timer;

use crate::http::body::RequestBody;
use crate::http::problem::{INTERNAL, OVERLOADED};
use crate::http::reply::Reply;
use futures_util::FutureExt as _;
use http::Request;
use http::header::EXPECT;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use std::convert::Infallible;
use std::future::Future;
use std::future::poll_fn;
use std::io;
use std::mem;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use timer::HeadTimer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};

/// A request's head at most: what HTTP/1 may buffer of it, and what HTTP/2 allows as header list.
const HEAD_BYTES: usize = 32 << 10;

/// Answers that are written as one piece, in bytes.
const SMALL: usize = 1 << 10;

/// What answers the requests of a port.
pub(crate) trait Plane: Send + Sync + 'static {
    /// Answers one request. Never fails: an error is an answer too.
    fn answer(&self, request: Request<RequestBody>) -> impl Future<Output = Reply> + Send;
}

/// Bounds of a port.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PortLimits {
    /// Open connections.
    pub(crate) connections: usize,
    /// How long a connection may be idle, a head may take, and what was sent may be left unread.
    pub(crate) header_timeout: Duration,
}

/// What a port counts.
#[derive(Debug, Default)]
pub(crate) struct PortCounts {
    pub(crate) open: AtomicU64,
    pub(crate) refused: AtomicU64,
}

/// A port that is being served. Dropping it aborts its connections.
pub(crate) struct Port {
    pub(crate) address: SocketAddr,
    stop: watch::Sender<bool>,
    task: JoinHandle<JoinSet<()>>,
}

impl Port {
    /// Starts to accept.
    pub(crate) fn serve<P: Plane>(
        listener: TcpListener,
        plane: Arc<P>,
        limits: PortLimits,
        counts: Arc<PortCounts>,
    ) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let (stop, stopping) = watch::channel(false);
        let task = tokio::spawn(accept(listener, plane, limits, counts, stopping));
        Ok(Self { address, stop, task })
    }

    /// Accepts no more, lets requests in flight finish until the deadline, and then closes what is left.
    pub(crate) async fn drain(self, deadline: tokio::time::Instant) {
        self.stop.send_replace(true);
        let Ok(mut connections) = self.task.await else { return };
        let all = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout_at(deadline, all).await.is_err() {
            tracing::warn!(address = %self.address, open = connections.len(), "connections closed before their requests were done");
            connections.shutdown().await;
        }
    }
}

async fn accept<P: Plane>(
    listener: TcpListener,
    plane: Arc<P>,
    limits: PortLimits,
    counts: Arc<PortCounts>,
    mut stopping: watch::Receiver<bool>,
) -> JoinSet<()> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().header_read_timeout(limits.header_timeout).max_buf_size(HEAD_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(HEAD_BYTES as u32)
        .keep_alive_interval(limits.header_timeout)
        .keep_alive_timeout(limits.header_timeout);
    let builder = Arc::new(builder);
    let slots = Arc::new(Semaphore::new(limits.connections));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopping.wait_for(|stop| *stop) => return connections,
            // Finished connections are let go of as they finish, not all at the end.
            Some(_) = connections.join_next() => continue,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, most likely: the connection stays in the backlog, and would be reported
                // again at once.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Ok(slot) = slots.clone().try_acquire_owned() else {
            counts.refused.fetch_add(1, Ordering::Relaxed);
            refuse(&stream);
            continue;
        };
        // An answer is one write; Nagle's algorithm would hold it back for a delayed acknowledgement, up to 40 ms.
        let _ = stream.set_nodelay(true);
        let (plane, builder, counts, stopping) =
            (plane.clone(), builder.clone(), counts.clone(), stopping.clone());
        connections.spawn(async move {
            counts.open.fetch_add(1, Ordering::Relaxed);
            connection(stream, plane, &builder, limits.header_timeout, stopping).await;
            counts.open.fetch_sub(1, Ordering::Relaxed);
            drop(slot);
        });
    }
}

async fn connection<P: Plane>(
    stream: TcpStream,
    plane: Arc<P>,
    builder: &auto::Builder<TokioExecutor>,
    patience: Duration,
    mut stopping: watch::Receiver<bool>,
) {
    // Telling HTTP/1 from HTTP/2 takes the first bytes, and nothing in there has a time limit.
    tokio::select! {
        readable = tokio::time::timeout(patience, stream.readable()) => if !matches!(readable, Ok(Ok(()))) { return },
        _ = stopping.wait_for(|stop| *stop) => return,
    }
    let service = service_fn(move |request| {
        let plane = plane.clone();
        async move { Ok::<_, Infallible>(guarded(&*plane, request).await) }
    });
    let mut builder = builder.clone();
    builder.http1().timer(HeadTimer::default());
    let mut serving = pin!(builder.serve_connection(TokioIo::new(Patient::new(stream, patience)), service));
    let mut asked = false;
    let seen = stopping.clone();
    let mut stopped = pin!(stopping.wait_for(|stop| *stop));
    let ended = poll_fn(|context| {
        if let Poll::Ready(ended) = serving.as_mut().poll(context) {
            return Poll::Ready(Some(ended));
        }
        // Asked once, it wakes this task when there is news: until then a look at the version does.
        if mem::replace(&mut asked, true) && matches!(seen.has_changed(), Ok(false)) {
            return Poll::Pending;
        }
        stopped.as_mut().poll(context).map(|_| None)
    })
    .await;
    let ended = match ended {
        Some(ended) => ended,
        None => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error, "a connection ended early");
    }
}

/// A connection that ends when nothing of what is sent is taken for so long: whoever does not read would hold what it was
/// sent in memory, and its app open.
struct Patient {
    stream: TcpStream,
    patience: Duration,
    /// Since the last write that had to wait.
    stalled: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl Patient {
    fn new(stream: TcpStream, patience: Duration) -> Self {
        Self { stream, patience, stalled: None }
    }

    fn unless_stalled<T>(
        &mut self,
        context: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut TcpStream>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let written = write(Pin::new(&mut self.stream), context);
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let patience = self.patience;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        ready!(stalled.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "what was sent is not read")))
    }
}

impl AsyncRead for Patient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Patient {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.unless_stalled(context, |stream, context| stream.poll_write(context, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // Copied where that is less than what the kernel has to look at for a list of pieces: a head and a small body,
        // which most answers are.
        let length: usize = slices.iter().map(|slice| slice.len()).sum();
        if slices.len() > 1 && length <= SMALL {
            let mut bytes = [0; SMALL];
            let mut end = 0;
            for slice in slices {
                bytes[end..end + slice.len()].copy_from_slice(slice);
                end += slice.len();
            }
            return self.unless_stalled(context, |stream, context| stream.poll_write(context, &bytes[..end]));
        }
        self.unless_stalled(context, |stream, context| stream.poll_write_vectored(context, slices))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// A fault in this program costs one request, not every stream of an HTTP/2 connection.
async fn guarded<P: Plane>(plane: &P, request: Request<Incoming>) -> Reply {
    let expects_continue = request.headers().contains_key(EXPECT);
    let request = request.map(|incoming| RequestBody::new(incoming, expects_continue));
    let answer = AssertUnwindSafe(plane.answer(request)).catch_unwind().await;
    answer.unwrap_or_else(|panic| {
        let message = panic.downcast_ref::<&str>().map(ToString::to_string);
        let message = message.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
        INTERNAL.detail("a fault in the server").cause(message).into_reply()
    })
}

/// Says why, in the little that a fresh socket's buffer takes for sure, and hangs up. Whoever does not read it sees
/// a closed connection.
fn refuse(stream: &TcpStream) {
    let body = format!(
        "{{\"type\":\"{}\",\"title\":\"{}\",\"status\":503,\"detail\":\"too many connections\",\"code\":\"{}\"}}",
        OVERLOADED.uri(),
        OVERLOADED.title,
        OVERLOADED.code
    );
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\nretry-after: 1\r\n\
         connection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let _ = stream.try_write(answer.as_bytes());
}
