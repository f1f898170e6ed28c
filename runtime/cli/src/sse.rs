//! Server-sent events: reading the stream, and making a lost connection again behind the last event.

use crate::client::Server;
use crate::failure::{Exit, Failure};
use crate::output::Output;
use futures_util::StreamExt as _;
use reqwest::RequestBuilder;
use std::time::Duration;

/// Before a lost connection is made again.
const RECONNECT: Duration = Duration::from_secs(1);

/// Bytes of one message at most: far above what a node sends, and a bound on what a broken peer can make us hold.
const MAX_MESSAGE: usize = 16 << 20;

/// A message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Message {
    /// Its data, lines joined.
    pub(crate) data: String,
}

/// Takes the stream's bytes as they come, and gives messages as they end.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    buffer: Vec<u8>,
    data: Option<String>,
    /// The last `id:`, of a message or of a heartbeat.
    pub(crate) last_id: Option<String>,
}

impl Parser {
    /// More bytes; the messages that end within them.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Vec<Message> {
        self.buffer.extend_from_slice(bytes);
        let mut messages = Vec::new();
        let mut start = 0;
        while let Some(length) = self.buffer[start..].iter().position(|byte| *byte == b'\n') {
            let line = String::from_utf8_lossy(&self.buffer[start..start + length]).into_owned();
            start += length + 1;
            self.line(line.trim_end_matches('\r'), &mut messages);
        }
        self.buffer.drain(..start);
        messages
    }

    fn line(&mut self, line: &str, messages: &mut Vec<Message>) {
        if line.is_empty() {
            messages.extend(self.data.take().map(|data| Message { data }));
            return;
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "data" => match &mut self.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                None => self.data = Some(value.to_owned()),
            },
            "id" => self.last_id = Some(value.to_owned()),
            // Comments (an empty field), `event`, `retry`: nothing of ours depends on them.
            _ => {}
        }
    }

    fn is_too_long(&self) -> bool {
        self.buffer.len() + self.data.as_ref().map_or(0, String::len) > MAX_MESSAGE
    }
}

/// Follows a stream until it is interrupted, which is how following ends. `request` makes the request, `Last-Event-ID`
/// is added; a server that can't be reached at first is a failure, one that is lost later is waited for.
///
/// # Errors
/// The first connection failed, the server refuses, or `show` failed.
pub(crate) async fn follow(
    output: Output,
    server: &Server,
    request: impl Fn(Option<&str>) -> RequestBuilder,
    mut show: impl FnMut(&Message) -> Result<(), Failure>,
) -> Result<Exit, Failure> {
    let following = async {
        let mut parser = Parser::default();
        let mut was_connected = false;
        loop {
            let last = parser.last_id.clone();
            let mut attempt = request(last.as_deref()).header("accept", "text/event-stream");
            if let Some(last) = &last {
                attempt = attempt.header("last-event-id", last);
            }
            match server.send(attempt).await {
                Ok(response) => {
                    if was_connected {
                        output.note("connected again");
                    }
                    was_connected = true;
                    // What was half read when the connection broke comes again as a whole.
                    parser = Parser { last_id: last, ..Parser::default() };
                    let mut chunks = response.bytes_stream();
                    while let Some(Ok(chunk)) = chunks.next().await {
                        parser.feed(&chunk).iter().try_for_each(&mut show)?;
                        if parser.is_too_long() {
                            return Err(Failure::new(format!(
                                "{} sent a message without end",
                                server.base()
                            )));
                        }
                    }
                    output.note(format_args!("{} closed the connection; waiting for it", server.base()));
                }
                Err(failure) if !was_connected || failure.exit == Exit::No => return Err(failure),
                Err(_) => {}
            }
            tokio::time::sleep(RECONNECT).await;
        }
    };
    tokio::select! {
        ended = following => ended,
        _ = tokio::signal::ctrl_c() => Ok(Exit::Done),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STREAM: &str = "retry: 1000\n: heartbeat\nid: 3\n\nid: 4\ndata: {\"a\":1}\n\nid: 5\r\ndata: x\r\ndata: y\r\n\r\n: heartbeat\nid: 9\n\n";

    #[test]
    fn a_heartbeat_moves_the_id_and_is_no_message() {
        let mut parser = Parser::default();
        let messages: Vec<_> =
            parser.feed(STREAM.as_bytes()).into_iter().map(|message| message.data).collect();
        assert_eq!(messages, ["{\"a\":1}", "x\ny"]);
        assert_eq!(parser.last_id.as_deref(), Some("9"));
    }

    proptest! {
        #[test]
        fn it_does_not_matter_how_the_bytes_are_cut(cuts in prop::collection::vec(1_usize..20, 1..40)) {
            let mut whole = Parser::default();
            let expected = whole.feed(STREAM.as_bytes());
            let (mut parser, mut messages, mut rest) = (Parser::default(), Vec::new(), STREAM.as_bytes());
            for cut in cuts {
                let (chunk, behind) = rest.split_at(cut.min(rest.len()));
                messages.extend(parser.feed(chunk));
                rest = behind;
            }
            messages.extend(parser.feed(rest));
            prop_assert_eq!(messages, expected);
        }
    }
}
