//! Live events: server-sent events straight from the log.
//!
//! A subscriber is a position and nothing more. The next page is read when the socket has taken the one before, so
//! one who reads slowly costs a page of memory, and holds nobody up. Event ids are positions: a client that
//! reconnects sends the last one as `Last-Event-ID`, as browsers do by themselves.

use super::{Call, DataPlane};
use crate::http::problem::{OVERLOADED, Problem};
use crate::http::reply::{Reply, stream};
use crate::metrics::Metrics;
use bytes::Bytes;
use ebb_app::app::App;
use ebb_app::node::Node;
use ebb_domain::event::{Position, StoredEvent};
use ebb_domain::name::AppName;
use ebb_domain::port::log::{Durable, EventFilter, ReadLimits};
use http::header::CACHE_CONTROL;
use http::{HeaderName, HeaderValue};
use std::fmt::Write as _;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::Instant;

/// Silence after which proxies and browsers would give a connection up is longer than this.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// What is read, and held in memory, for one subscriber at once.
const PAGE: ReadLimits = ReadLimits { items: 256, bytes: 256 << 10 };

struct Subscription {
    /// Held, so that nobody closes it for want of use.
    app: Arc<App>,
    filter: EventFilter,
    /// Everything up to here was sent, or is not wanted.
    at: Position,
    durable: watch::Receiver<Durable>,
    stopping: watch::Receiver<bool>,
    is_new: bool,
    node: Weak<Node>,
    _slot: Slot,
}

/// One of the live streams that the node allows.
struct Slot(Arc<Metrics>, #[expect(dead_code, reason = "held until the stream ends")] OwnedSemaphorePermit);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.live_streams.fetch_sub(1, Ordering::Relaxed);
    }
}

impl DataPlane {
    pub(super) fn live_events(
        &self,
        call: &Call<'_>,
        after: Position,
        filter: EventFilter,
    ) -> Result<Reply, Problem> {
        let slot = self.live.clone().try_acquire_owned().map_err(|_| {
            let detail = format!("there are {} live streams already", self.limits.live);
            OVERLOADED.detail(detail).retry_after(Duration::from_secs(5))
        })?;
        self.metrics.live_streams.fetch_add(1, Ordering::Relaxed);
        let subscription = Subscription {
            app: call.app.clone(),
            durable: call.app.log().durable(),
            filter,
            at: after,
            stopping: self.stopping.clone(),
            is_new: true,
            node: Arc::downgrade(&self.node),
            _slot: Slot(self.metrics.clone(), slot),
        };
        let chunks = futures_util::stream::unfold(subscription, |mut subscription| async {
            subscription.next().await.map(|chunk| (chunk, subscription))
        });
        let mut reply = stream("text/event-stream", chunks);
        let headers = reply.headers_mut();
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        // nginx buffers what it proxies unless told otherwise.
        headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
        Ok(reply)
    }
}

impl Subscription {
    /// The next bytes to send; none ends the stream, and the client comes again.
    async fn next(&mut self) -> Option<Bytes> {
        if self.is_new {
            // At once, so that the client knows that it is connected, and from where.
            self.is_new = false;
            return Some(Bytes::from(format!("retry: 1000\n{}", heartbeat(self.at))));
        }
        let silent_until = Instant::now() + HEARTBEAT;
        loop {
            if *self.stopping.borrow() {
                return None;
            }
            let durable = self.durable.borrow_and_update().position;
            if self.at < durable {
                let batch = match self.app.log().read(self.at, &self.filter, PAGE).await {
                    Ok(batch) => batch,
                    Err(error) => {
                        tracing::error!(app = &**self.app.name(), %error, "a live stream ended: the log could not be read");
                        return None;
                    }
                };
                let has_moved = batch.scanned_to > self.at;
                self.at = self.at.max(batch.scanned_to);
                if !batch.events.is_empty() {
                    return Some(frames(self.app.name(), &batch.events));
                }
                if has_moved && Instant::now() < silent_until {
                    // Long stretches of unwanted events, read from memory, must not keep a worker to themselves.
                    tokio::task::yield_now().await;
                    continue;
                }
            }
            tokio::select! {
                changed = self.durable.changed() => changed.ok()?,
                // Looked at by the top of the loop.
                stopping = self.stopping.changed() => stopping.ok()?,
                () = tokio::time::sleep_until(silent_until) => break,
            }
        }
        self.is_served().then(|| Bytes::from(heartbeat(self.at)))
    }

    /// Whether the app is still deployed: a stream must not keep the log of a removed one open.
    fn is_served(&self) -> bool {
        self.node.upgrade().is_some_and(|node| node.serves(&self.app))
    }
}

/// A comment, and an id without data: no event for the client's code, yet it moves what it sends as `Last-Event-ID`,
/// so that a client whose events are rare does not scan the log from its last one.
fn heartbeat(at: Position) -> String {
    format!(": heartbeat\nid: {at}\n\n")
}

fn frames(app: &AppName, events: &[StoredEvent]) -> Bytes {
    let mut text = String::with_capacity(events.len() * 512);
    for event in events {
        // A JSON document without line breaks: one `data` line.
        let _ = write!(text, "id: {}\ndata: {}\n\n", event.position, event.cloud_event(app));
    }
    Bytes::from(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebb_domain::commit::{CommandId, CommitHeader, CommitNumber};
    use ebb_domain::digest::Digest;
    use ebb_domain::event::{JSON, Revision};
    use ebb_domain::name::EventType;
    use ebb_domain::stream::StreamId;
    use ebb_domain::text::Text;
    use ebb_domain::time::Timestamp;

    fn event(data: &'static [u8]) -> StoredEvent {
        let header = CommitHeader {
            number: CommitNumber(1),
            epoch: 1,
            recorded_at: Timestamp(0),
            stream: StreamId::parse("account-1").unwrap(),
            event_count: 1,
            first_position: Position(7),
            first_revision: Revision(0),
            command_id: CommandId(uuid::Uuid::from_u128(1)),
            actor: Text::from("anonymous"),
            correlation_id: Text::from("c"),
            causation_id: None,
            hops: 0,
            traceparent: None,
            module: Digest::default(),
            idempotency: None,
            origin: None,
            command: None,
            refusal: None,
        };
        StoredEvent {
            position: Position(7),
            revision: Revision(0),
            event_type: EventType::new("Opened").unwrap(),
            schema_version: 1,
            data: Bytes::from_static(data),
            content_type: JSON,
            commit: Arc::new(header),
        }
    }

    #[test]
    fn an_event_is_one_frame_with_its_position_as_id_whatever_its_data() {
        let app = AppName::new("bank").unwrap();
        let text = frames(&app, &[event(b"{\n\n  \"owner\": \"a\\nb\"\r\n}")]);
        let text = std::str::from_utf8(&text).unwrap();
        let lines: Vec<_> = text.split('\n').collect();
        assert_eq!((lines[0], lines.len(), text.ends_with("\n\n")), ("id: 7", 4, true), "{text}");
        let data: serde_json::Value = serde_json::from_str(lines[1].strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(data["data"]["owner"], "a\nb");
    }

    #[test]
    fn a_heartbeat_moves_the_last_event_id_without_an_event() {
        assert_eq!(heartbeat(Position(9)), ": heartbeat\nid: 9\n\n");
    }
}
