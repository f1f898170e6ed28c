//! Bodies on their way: into the guest, and out of it within bounds, until their end or that of the call.

use bytes::Bytes;
use ebb_domain::port::guest::{BodyError, CallError, HttpBody};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt as _, Empty};
use parking_lot::Mutex;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;
use tokio::task::JoinHandle;
use wasmtime_wasi_http::{Error, WasiBody};

/// A request's body, as the guest's side takes it.
pub(super) fn request(body: HttpBody) -> WasiBody {
    if body.is_end_stream() {
        return Empty::new().map_err(|never| match never {}).boxed_unsync();
    }
    body.map_err(|error| match error {
        BodyError::TooLarge { limit } => Error::HttpRequestBodySize(Some(limit)),
        BodyError::Broken(_) | BodyError::Call(_) => Error::ConnectionTerminated,
    })
    .boxed_unsync()
}

/// What the two ends of a call tell each other: the body whether all of it was read, the call whether it failed.
pub(super) struct Ending {
    state: Mutex<EndingState>,
    /// The call waits for its first turn.
    queues: AtomicBool,
}

struct EndingState {
    failure: Option<CallError>,
    /// Nobody waits for more of the body.
    read: bool,
    waiting: Option<Waker>,
    wall: Duration,
}

impl Ending {
    pub(super) fn new(wall: Duration) -> Arc<Self> {
        let state = EndingState { failure: None, read: false, waiting: None, wall };
        Arc::new(Self { state: Mutex::new(state), queues: AtomicBool::new(false) })
    }

    /// What the call waits for before it begins.
    pub(super) async fn queue(&self, turn: impl Future<Output = ()>) {
        self.queues.store(true, Ordering::Relaxed);
        turn.await;
        self.queues.store(false, Ordering::Relaxed);
    }

    /// Whether the call waits for its first turn, and for nothing else.
    pub(super) fn queues(&self) -> bool {
        self.queues.load(Ordering::Relaxed)
    }

    /// The call failed. What is said first stays.
    pub(super) fn fail(&self, error: CallError) {
        self.state.lock().failure.get_or_insert(error);
    }

    fn failure(&self) -> Option<CallError> {
        self.state.lock().failure.clone()
    }

    fn set_read(&self) {
        let mut state = self.state.lock();
        state.read = true;
        if let Some(waker) = state.waiting.take() {
            waker.wake();
        }
    }

    /// Ready once the body has been read, or dropped.
    pub(super) fn poll_read(&self, context: &Context<'_>) -> Poll<()> {
        let mut state = self.state.lock();
        if state.read {
            return Poll::Ready(());
        }
        state.waiting = Some(context.waker().clone());
        Poll::Pending
    }

    /// A guard that calls this a failure, unless it is told otherwise.
    pub(super) fn unless_finished(self: &Arc<Self>) -> Unfinished {
        Unfinished(Some(self.clone()))
    }
}

/// See [`Ending::unless_finished`].
pub(super) struct Unfinished(Option<Arc<Ending>>);

impl Unfinished {
    pub(super) fn finished(mut self) {
        self.0 = None;
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(ending) = &self.0 {
            // Given up in the middle: by its wall-clock limit, since otherwise nobody is left to read this.
            let limit = ending.state.lock().wall;
            ending.fail(CallError::OutOfTime { limit });
        }
    }
}

/// The task of a call. Dropping it ends the call.
pub(super) struct Running(Option<JoinHandle<Result<(), CallError>>>);

impl Running {
    pub(super) fn new(task: JoinHandle<Result<(), CallError>>) -> Self {
        Self(Some(task))
    }

    /// No task.
    pub(super) fn none() -> Self {
        Self(None)
    }

    /// How the call ends.
    pub(super) async fn join(mut self) -> Result<(), CallError> {
        let Some(task) = self.0.as_mut() else { return Ok(()) };
        task.await.unwrap_or_else(|error| Err(CallError::Failed(error.to_string())))
    }

    /// The call may go on by itself.
    fn release(&mut self) {
        self.0 = None;
    }

    fn stop(&mut self) {
        if let Some(task) = self.0.take() {
            task.abort();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A response's body, out of the guest.
pub(super) struct ResponseBody {
    inner: WasiBody,
    left: u64,
    limit: u64,
    ending: Arc<Ending>,
    running: Running,
    over: bool,
    /// It broke off, which is said when what came before has been sent: after a pause.
    broken: Option<BodyError>,
    has_paused: bool,
}

impl ResponseBody {
    pub(super) fn new(inner: WasiBody, limit: u64, ending: Arc<Ending>, running: Running) -> Self {
        let mut body =
            Self { inner, left: limit, limit, ending, running, over: false, broken: None, has_paused: false };
        // Hyper does not ask a body that says so for its end.
        if body.inner.is_end_stream() {
            body.end();
        }
        body
    }

    /// The call goes on in this task.
    pub(super) fn is_driven_by(&mut self, running: Running) {
        self.running = running;
    }

    /// Whether it broke off, which nobody has been told yet.
    pub(super) fn is_broken(&self) -> bool {
        self.broken.is_some()
    }

    /// What came before it broke off is sent only now.
    pub(super) fn pause_again(&mut self) {
        self.has_paused = false;
    }

    /// The guest's side is over in the way that it should be; what the guest still does is its own business.
    fn end(&mut self) {
        self.over = true;
        self.ending.set_read();
        self.running.release();
    }

    /// An error makes hyper drop the connection with all that it has not sent yet, be it the headers themselves: a
    /// caller to whom nothing came takes the connection for one that was closed while idle, and sends its request again.
    /// So the body pauses once, which is when hyper sends what it has.
    fn fail<T>(&mut self, context: &Context<'_>, error: BodyError) -> Poll<T> {
        self.running.stop();
        self.broken = Some(error);
        self.pause(context)
    }

    fn pause<T>(&mut self, context: &Context<'_>) -> Poll<T> {
        self.has_paused = true;
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.over {
            return Poll::Ready(None);
        }
        if self.broken.is_some() && !self.has_paused {
            return self.pause(context);
        }
        if let Some(error) = self.broken.take() {
            self.over = true;
            return Poll::Ready(Some(Err(error)));
        }
        loop {
            let frame = ready!(Pin::new(&mut self.inner).poll_frame(context));
            // An end that the call's own end made is none.
            return Poll::Ready(match frame {
                None => match self.ending.failure() {
                    None => {
                        self.end();
                        None
                    }
                    Some(error) => return self.fail(context, error.into()),
                },
                Some(Err(error)) => {
                    let error = match self.ending.failure() {
                        Some(error) => error.into(),
                        None => BodyError::Broken(error.to_string()),
                    };
                    return self.fail(context, error);
                }
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        // Frames of nothing would pile up in front of an HTTP/2 client that gives no window.
                        if data.is_empty() {
                            continue;
                        }
                        let Some(left) = self.left.checked_sub(data.len() as u64) else {
                            let message = format!("a response body of more than {} bytes", self.limit);
                            let error = CallError::OutputTooLarge(message);
                            self.ending.fail(error.clone());
                            return self.fail(context, error.into());
                        };
                        self.left = left;
                    } else {
                        self.end();
                    }
                    Some(Ok(frame))
                }
            });
        }
    }

    fn is_end_stream(&self) -> bool {
        self.over
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        self.ending.set_read();
    }
}
