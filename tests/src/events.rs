//! Server-sent events.

use crate::client::Request;
use futures_util::StreamExt as _;
use serde_json::Value;
use std::pin::Pin;
use std::time::Duration;

type Chunks = Pin<Box<dyn futures_util::Stream<Item = reqwest::Result<bytes::Bytes>> + Send>>;

/// Longer than between two heartbeats.
const PATIENCE: Duration = Duration::from_secs(25);

/// A live stream of events.
pub struct LiveEvents {
    chunks: Chunks,
    buffer: String,
}

/// One message: everything between two empty lines.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// `id:`.
    pub id: Option<u64>,
    /// `data:`, if there is any.
    pub data: Option<String>,
    /// Lines that begin with a colon.
    pub comment: Option<String>,
}

impl LiveEvents {
    /// Opens the stream.
    ///
    /// # Panics
    /// The answer is not a stream of events.
    pub async fn open(request: Request) -> Self {
        Self::try_open(request).await.expect("an answer")
    }

    /// Opens the stream; the error is that there was no answer.
    ///
    /// # Errors
    /// There was no answer.
    ///
    /// # Panics
    /// The answer is not a stream of events.
    pub async fn try_open(request: Request) -> Result<Self, reqwest::Error> {
        let response = request.header("accept", "text/event-stream").try_open().await?;
        let content_type = response.headers().get("content-type").cloned();
        assert!(
            response.status() == 200 && content_type.is_some_and(|value| value == "text/event-stream"),
            "{response:?}"
        );
        Ok(Self { chunks: Box::pin(response.bytes_stream()), buffer: String::new() })
    }

    /// The next message; none if the stream has ended.
    ///
    /// # Panics
    /// None comes in time, not even a heartbeat.
    pub async fn message(&mut self) -> Option<Message> {
        loop {
            if let Some((text, rest)) = self.buffer.split_once("\n\n") {
                let message = parse(text);
                self.buffer = rest.to_owned();
                return Some(message);
            }
            let next = tokio::time::timeout(PATIENCE, self.chunks.next());
            match next.await.expect("a message or a heartbeat in time") {
                Some(Ok(chunk)) => {
                    self.buffer.push_str(std::str::from_utf8(&chunk).expect("events are UTF-8"));
                }
                Some(Err(_)) | None => return None,
            }
        }
    }

    /// The next event: its id, and what it is.
    ///
    /// # Panics
    /// The stream ends first.
    pub async fn event(&mut self) -> (u64, Value) {
        loop {
            let message = self.message().await.expect("an event before the stream's end");
            if let (Some(id), Some(data)) = (message.id, message.data) {
                return (id, serde_json::from_str(&data).expect("an event is JSON"));
            }
        }
    }
}

fn parse(text: &str) -> Message {
    let mut message = Message::default();
    for line in text.lines() {
        match line.split_once(':') {
            Some(("id", id)) => message.id = id.trim().parse().ok(),
            Some(("data", data)) => message.data = Some(data.trim_start().to_owned()),
            Some(("", comment)) => message.comment = Some(comment.trim().to_owned()),
            _ => {}
        }
    }
    message
}
