//! A live reader of `/events` that believes nothing: it checks that it sees every event once, in order.

use std::hash::{DefaultHasher, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// What a subscriber has seen when it has seen everything.
#[derive(Debug, PartialEq, Eq)]
pub struct Seen {
    pub events: u64,
    /// Of all events' documents, in order: two subscribers who saw the same have the same.
    pub digest: u64,
}

/// Reads until `last` says that there are no more. Gives up its connection after every `breaks` events, and comes back
/// behind the last that it saw. `at` is where it has got.
pub async fn subscribe(
    address: String,
    breaks: Option<u64>,
    last: Arc<AtomicU64>,
    at: Arc<AtomicU64>,
) -> Seen {
    let (mut seen, mut digest) = (0, DefaultHasher::new());
    while seen < last.load(Ordering::Acquire) {
        let until = breaks.map_or(u64::MAX, |breaks| seen + breaks);
        let mut lines = connect(&address, seen).await;
        let (mut line, mut id) = (String::new(), 0);
        while seen < until.min(last.load(Ordering::Acquire)) {
            line.clear();
            if lines.read_line(&mut line).await.expect("a line") == 0 {
                panic!("the stream ended behind event {seen}");
            }
            if let Some(number) = line.strip_prefix("id: ") {
                id = number.trim_end().parse().expect("a position");
            } else if let Some(event) = line.strip_prefix("data: ") {
                assert_eq!(id, seen + 1, "the event behind {seen} has the position {id}");
                assert!(
                    event.contains(&format!("\"position\":{id}")),
                    "event {id} says something else: {event}"
                );
                digest.write(event.as_bytes());
                seen = id;
                at.store(seen, Ordering::Release);
            }
        }
    }
    Seen { events: seen, digest: digest.finish() }
}

async fn connect(address: &str, behind: u64) -> BufReader<TcpStream> {
    let mut socket = TcpStream::connect(address).await.expect("a connection");
    // HTTP/1.0, so that the stream comes as it is and not in chunks.
    let head = format!(
        "GET /events HTTP/1.0\r\nhost: localhost\r\naccept: text/event-stream\r\nlast-event-id: {behind}\r\n\r\n"
    );
    socket.write_all(head.as_bytes()).await.expect("a write");
    let mut lines = BufReader::with_capacity(64 << 10, socket);
    let mut line = String::new();
    lines.read_line(&mut line).await.expect("a status");
    assert!(line.contains(" 200 "), "{line}");
    lines
}
