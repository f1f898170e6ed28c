//! The beginning of a call, in the task of whoever waits for its response.
//!
//! Most calls never wait for anything: their guest reads, computes, answers and is done. A task of its own, and the way
//! from one task to the other and back, would take as long as such a call. So a call begins where it was asked for, and
//! what is there of its response is taken together, until either of them has to wait; only then does the call get
//! the task that it needs to go on, whoever reads.
//!
//! Where more than one app calls, each call queues for its turn first, in the task of whoever waits ([`Turn`](crate::turns::Turn)
//! says why).

use super::Answered;
use super::body::{Ending, ResponseBody, Running};
use crate::live::explain;
use bytes::{Bytes, BytesMut};
use ebb_domain::port::guest::{BodyError, CallError, HttpBody};
use futures_channel::oneshot;
use futures_util::future::BoxFuture;
use http_body::{Body, Frame, SizeHint};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// A call, to its very end.
pub(super) type Call = BoxFuture<'static, Result<(), CallError>>;

/// How often guest and reader take turns before they part, and how many bytes are taken before that.
const ROUNDS: usize = 4;
const TAKEN: usize = 64 << 10;

/// The response of a call, as soon as there is one.
pub(super) async fn answer(
    mut call: Call,
    mut response: oneshot::Receiver<Answered>,
    limit: u64,
    ending: Arc<Ending>,
) -> Result<http::Response<HttpBody>, CallError> {
    let ended = poll_fn(|context| match call.as_mut().poll(context) {
        Poll::Ready(ended) => Poll::Ready(Some(ended)),
        Poll::Pending if ending.queues() => Poll::Pending,
        Poll::Pending => Poll::Ready(None),
    })
    .await;
    match (response.try_recv(), ended) {
        (Ok(Some(answered)), ended) => {
            let (head, body) = answered.map_err(|error| explain(&error, None))?.into_parts();
            let body = ResponseBody::new(body, limit, ending, Running::none());
            let call = ended.is_none().then_some(call);
            let mut begun = Begun { call, body, taken: VecDeque::new(), bytes: 0 };
            poll_fn(|context| {
                begun.go_on(context);
                Poll::Ready(())
            })
            .await;
            Ok(http::Response::from_parts(head, begun.into_body()))
        }
        (_, Some(ended)) => Err(ended.err().unwrap_or_else(super::no_response)),
        (_, None) => {
            let running = Running::new(tokio::spawn(call));
            match response.await {
                Ok(Ok(response)) => {
                    Ok(response.map(|body| HttpBody::stream(ResponseBody::new(body, limit, ending, running))))
                }
                Ok(Err(error)) => Err(explain(&error, None)),
                // The call has ended, or is about to.
                Err(oneshot::Canceled) => Err(match running.join().await {
                    Ok(()) => super::no_response(),
                    Err(error) => error,
                }),
            }
        }
    }
}

/// A call that has answered.
struct Begun {
    /// None once it has ended.
    call: Option<Call>,
    body: ResponseBody,
    taken: VecDeque<Frame<Bytes>>,
    bytes: usize,
}

impl Begun {
    /// Guest and reader go on in turn, for as long as either gets anywhere.
    fn go_on(&mut self, context: &mut Context<'_>) {
        for _ in 0..ROUNDS {
            if !self.take(context) {
                return;
            }
            if let Some(call) = &mut self.call
                && call.as_mut().poll(context).is_ready()
            {
                self.call = None;
            }
        }
    }

    /// Takes what has come of the body; whether anything has.
    fn take(&mut self, context: &mut Context<'_>) -> bool {
        let mut came = false;
        // What is large already is as well sent from where it is: a program's response counts as memory of the node.
        if self.body.size_hint().exact().is_some_and(|bytes| bytes > TAKEN as u64) {
            return false;
        }
        while self.bytes < TAKEN && !self.body.is_end_stream() && !self.body.is_broken() {
            match Pin::new(&mut self.body).poll_frame(context) {
                Poll::Ready(Some(Ok(frame))) => {
                    came = true;
                    self.bytes += frame.data_ref().map_or(0, Bytes::len);
                    self.taken.push_back(frame);
                }
                Poll::Ready(None) => return true,
                // An error is said where the body is sent.
                Poll::Ready(Some(Err(_))) | Poll::Pending => break,
            }
        }
        came
    }

    fn into_body(mut self) -> HttpBody {
        let is_whole = self.body.is_end_stream();
        // A call whose body is broken ends here. What a guest does once its body is whole it does by itself.
        match self.call.filter(|_| !self.body.is_broken()) {
            Some(call) if is_whole => drop(tokio::spawn(call)),
            Some(call) => self.body.is_driven_by(Running::new(tokio::spawn(call))),
            None => {}
        }
        self.body.pause_again();
        let rest = (!is_whole).then_some(self.body);
        join(&mut self.taken);
        if rest.is_none() && self.taken.len() <= 1 && self.taken.iter().all(Frame::is_data) {
            let data = self.taken.pop_front().and_then(|frame| frame.into_data().ok());
            return HttpBody::Whole(data.unwrap_or_default());
        }
        HttpBody::stream(Taken { taken: self.taken, rest })
    }
}

/// Makes one piece of data of all that are before the trailers: they go out in one write.
fn join(frames: &mut VecDeque<Frame<Bytes>>) {
    let pieces = frames.iter().take_while(|frame| frame.is_data()).count();
    if pieces > 1 {
        let mut all = BytesMut::new();
        frames
            .drain(..pieces)
            .filter_map(|frame| frame.into_data().ok())
            .for_each(|data| all.extend_from_slice(&data));
        frames.push_front(Frame::data(all.freeze()));
    }
}

/// A body of which something was taken already.
struct Taken {
    taken: VecDeque<Frame<Bytes>>,
    rest: Option<ResponseBody>,
}

impl Body for Taken {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match (self.taken.pop_front(), &mut self.rest) {
            (Some(frame), _) => Poll::Ready(Some(Ok(frame))),
            (None, Some(rest)) => Pin::new(rest).poll_frame(context),
            (None, None) => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.taken.is_empty() && self.rest.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        match &self.rest {
            Some(rest) if self.taken.is_empty() => rest.size_hint(),
            // Trailers follow only a body of no stated length.
            _ => SizeHint::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_channel::mpsc;
    use http::HeaderMap;
    use http_body_util::{BodyExt as _, StreamBody};
    use std::time::Duration;
    use wasmtime_wasi_http::{Error, WasiBody};

    type Frames = mpsc::UnboundedSender<Result<Frame<Bytes>, Error>>;

    const LIMIT: u64 = 10;

    /// What a guest has of its call.
    struct Guest {
        response: oneshot::Sender<Answered>,
        frames: Frames,
        body: WasiBody,
        ending: Arc<Ending>,
    }

    impl Guest {
        fn respond(self) -> Frames {
            assert!(self.response.send(Ok(http::Response::new(self.body))).is_ok());
            self.frames
        }
    }

    fn data(text: &'static str) -> Result<Frame<Bytes>, Error> {
        Ok(Frame::data(Bytes::from_static(text.as_bytes())))
    }

    async fn called<F>(guest: impl FnOnce(Guest) -> F) -> Result<HttpBody, CallError>
    where
        F: Future<Output = Result<(), CallError>> + Send + 'static,
    {
        let (response, receiver) = oneshot::channel();
        let (frames, stream) = mpsc::unbounded();
        let ending = Ending::new(Duration::from_secs(1));
        let guest = guest(Guest {
            response,
            frames,
            body: StreamBody::new(stream).boxed_unsync(),
            ending: ending.clone(),
        });
        let response = answer(Box::pin(guest), receiver, LIMIT, ending).await?;
        Ok(response.into_body())
    }

    /// Data, and how it ended.
    async fn read(body: &mut HttpBody) -> (String, Option<Result<HeaderMap, BodyError>>) {
        let mut text = String::new();
        loop {
            match body.frame().await {
                None => return (text, None),
                Some(Err(error)) => return (text, Some(Err(error))),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => text.push_str(std::str::from_utf8(&data).unwrap()),
                    Err(frame) => return (text, frame.into_trailers().ok().map(Ok)),
                },
            }
        }
    }

    fn too_large() -> BodyError {
        CallError::OutputTooLarge("a response body of more than 10 bytes".into()).into()
    }

    #[tokio::test]
    async fn a_call_that_waits_for_nothing_gives_its_response_whole() {
        let body = called(async |guest| {
            let frames = guest.respond();
            frames.unbounded_send(data("one ")).unwrap();
            frames.unbounded_send(data("two")).unwrap();
            Ok(())
        });
        let mut body = body.await.unwrap();
        assert_eq!(body.size_hint().exact(), Some(7), "its length is known");
        let frame = body.frame().await.unwrap().unwrap();
        assert_eq!(&**frame.data_ref().unwrap(), b"one two", "in one piece");
        assert!(body.is_end_stream());
    }

    #[tokio::test]
    async fn one_that_has_to_queue_begins_in_the_same_task() {
        let (turn, its_turn) = oneshot::channel();
        let mine = tokio::spawn(async {
            let (tell, told) = oneshot::channel();
            let body = called(async move |guest: Guest| {
                guest.ending.queue(async { its_turn.await.unwrap() }).await;
                tell.send(tokio::task::id()).unwrap();
                guest.respond().unbounded_send(data("one")).unwrap();
                Ok(())
            });
            assert_eq!(read(&mut body.await.unwrap()).await, ("one".into(), None));
            assert_eq!(told.await.unwrap(), tokio::task::id());
        });
        tokio::task::yield_now().await;
        turn.send(()).unwrap();
        mine.await.unwrap();
    }

    #[tokio::test]
    async fn trailers_come_behind_it() {
        let trailers = HeaderMap::from_iter([(http::header::ETAG, http::HeaderValue::from_static("x"))]);
        let sent = trailers.clone();
        let body = called(async |guest| {
            let frames = guest.respond();
            frames.unbounded_send(data("one")).unwrap();
            frames.unbounded_send(Ok(Frame::trailers(sent))).unwrap();
            Ok(())
        });
        let mut body = body.await.unwrap();
        assert_eq!(body.size_hint().exact(), None);
        assert_eq!(read(&mut body).await, ("one".into(), Some(Ok(trailers))));
    }

    #[tokio::test]
    async fn a_call_that_waits_goes_on_by_itself_and_its_body_follows() {
        let (go, gone) = oneshot::channel();
        let body = called(async |guest| {
            let frames = guest.respond();
            frames.unbounded_send(data("one ")).unwrap();
            gone.await.unwrap();
            frames.unbounded_send(data("two")).unwrap();
            Ok(())
        });
        let mut body = body.await.unwrap();
        assert_eq!(body.size_hint().exact(), None);
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "one ");
        go.send(()).unwrap();
        assert_eq!(read(&mut body).await, ("two".into(), None));
    }

    #[tokio::test]
    async fn a_call_that_answers_and_goes_on_is_not_waited_for() {
        let (go, gone) = oneshot::channel();
        let (tell, told) = oneshot::channel();
        let body = called(async |guest| {
            drop(guest.respond());
            gone.await.unwrap();
            tell.send(()).unwrap();
            Ok(())
        });
        let body = body.await.unwrap();
        assert!(body.is_end_stream());
        drop(body);
        go.send(()).unwrap();
        assert_eq!(told.await, Ok(()), "nor ended with its response");
    }

    #[tokio::test]
    async fn a_caller_who_hangs_up_ends_a_call_that_still_sends() {
        let (tell, told) = oneshot::channel::<()>();
        let body = called(async |guest| {
            let _frames = guest.respond();
            let _tell = tell;
            std::future::pending().await
        });
        drop(body.await.unwrap());
        assert_eq!(told.await, Err(oneshot::Canceled));
    }

    #[tokio::test]
    async fn a_call_may_wait_before_it_answers() {
        let body = called(async |guest| {
            tokio::task::yield_now().await;
            guest.respond().unbounded_send(data("late")).unwrap();
            Ok(())
        });
        assert_eq!(read(&mut body.await.unwrap()).await, ("late".into(), None));
    }

    #[tokio::test]
    async fn what_breaks_off_says_so_once_the_rest_has_been_sent() {
        let error = CallError::Trapped("unreachable".into());
        let (failure, expected) = (error.clone(), BodyError::from(error));
        let body = called(async move |guest: Guest| {
            let ending = guest.ending.clone();
            guest.respond().unbounded_send(data("one")).unwrap();
            ending.fail(failure.clone());
            Err(failure)
        });
        let mut body = body.await.unwrap();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "one");
        let mut pauses = 0;
        let error = poll_fn(|context| {
            let polled = Pin::new(&mut body).poll_frame(context);
            pauses += u32::from(polled.is_pending());
            polled
        });
        assert_eq!(error.await.unwrap().unwrap_err(), expected);
        assert_eq!(pauses, 1, "in which what came before goes out");
    }

    #[tokio::test]
    async fn more_than_its_limit_ends_it() {
        let body = called(async |guest| {
            let frames = guest.respond();
            frames.unbounded_send(data("12345678")).unwrap();
            frames.unbounded_send(data("12345678")).unwrap();
            Ok(())
        });
        assert_eq!(read(&mut body.await.unwrap()).await, ("12345678".into(), Some(Err(too_large()))));
    }

    #[tokio::test]
    async fn a_call_that_fails_before_it_answers_is_an_error() {
        let error = CallError::Trapped("unreachable".into());
        let failure = error.clone();
        let failed = called(async move |_| Err(failure)).await;
        assert_eq!(failed.err(), Some(error));
        let silent = called(async move |_| Ok(())).await;
        assert_eq!(silent.err(), Some(crate::http::no_response()));
    }
}
