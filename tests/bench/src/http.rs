//! A load generator that costs little: keep-alive HTTP/1.1 over raw sockets, one request at a time on each.

use crate::cores;
use bytes::Bytes;
use serde_json::Value;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// One connection.
pub struct Client {
    socket: TcpStream,
    buffer: Vec<u8>,
}

/// An answer.
pub struct Answer {
    pub status: u16,
    head: String,
    pub body: String,
}

impl Answer {
    /// A header that is a number.
    pub fn number(&self, name: &str) -> Option<u64> {
        header(&self.head, name)?.parse().ok()
    }
}

/// The value of a header in a head in lower case.
fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

impl Client {
    pub async fn connect(address: &str) -> Self {
        let socket = TcpStream::connect(address).await.expect("a connection");
        socket.set_nodelay(true).expect("nodelay");
        Self { socket, buffer: Vec::new() }
    }

    /// Sends a request with a JSON body, and reads the answer, which must have a content-length.
    pub async fn request(&mut self, method: &str, path: &str, body: &str) -> Answer {
        self.request_with(method, path, "", body).await
    }

    /// The same with further header lines.
    pub async fn request_with(&mut self, method: &str, path: &str, headers: &str, body: &str) -> Answer {
        let length = self.send(method, path, headers, body).await;
        let head = String::from_utf8_lossy(&self.buffer[..length]).to_ascii_lowercase();
        let body = String::from_utf8_lossy(&self.buffer[length..]).into_owned();
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        Answer { status, head, body }
    }

    /// A document.
    pub async fn json(&mut self, path: &str) -> Value {
        let answer = self.request("GET", path, "").await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        serde_json::from_str(&answer.body).expect("JSON")
    }

    /// The answer is in the buffer then; tells the length of its head.
    async fn send(&mut self, method: &str, path: &str, headers: &str, body: &str) -> usize {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\n{headers}content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        self.exchange(head.as_bytes()).await
    }

    /// Sends a request as it is, and reads its answer to the end; tells the length of its head.
    pub async fn exchange(&mut self, request: &[u8]) -> usize {
        self.socket.write_all(request).await.expect("a write");
        self.buffer.clear();
        let mut framing = None;
        loop {
            if framing.is_none()
                && let Some(head) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n")
            {
                framing = Some((head + 4, Framing::of(&self.buffer[..head])));
            }
            if let Some((head, framing)) = framing
                && framing.is_whole(&self.buffer[head..])
            {
                return head;
            }
            let read = self.socket.read_buf(&mut self.buffer).await.expect("an answer");
            assert!(
                read > 0,
                "the connection ended within an answer: {}",
                String::from_utf8_lossy(&self.buffer)
            );
        }
    }

    /// Whether the last answer was a 200.
    pub fn is_ok(&self) -> bool {
        self.buffer.starts_with(b"HTTP/1.1 200")
    }
}

/// How an answer says where it ends.
#[derive(Clone, Copy)]
enum Framing {
    Length(usize),
    Chunks,
}

impl Framing {
    fn of(head: &[u8]) -> Self {
        let head = String::from_utf8_lossy(head).to_ascii_lowercase();
        match header(&head, "transfer-encoding") {
            Some(_) => Self::Chunks,
            None => Self::Length(
                header(&head, "content-length").and_then(|length| length.parse().ok()).unwrap_or(0),
            ),
        }
    }

    /// One request at a time is under way: what comes is of its answer.
    fn is_whole(self, body: &[u8]) -> bool {
        match self {
            Self::Length(length) => body.len() >= length,
            Self::Chunks => body == b"0\r\n\r\n" || body.ends_with(b"\r\n0\r\n\r\n"),
        }
    }
}

/// Times of answers.
#[derive(Default)]
pub struct Times(Vec<Duration>);

impl Times {
    pub fn push(&mut self, time: Duration) {
        self.0.push(time);
    }

    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn percentile(&mut self, percent: f64) -> Duration {
        self.0.sort_unstable();
        let index = (self.0.len() as f64 * percent / 100.0) as usize;
        self.0.get(index.min(self.0.len().saturating_sub(1))).copied().unwrap_or_default()
    }
}

/// Times of all answers, and how long the whole took.
pub struct Load {
    pub times: Times,
    pub took: Duration,
    pub failed: u64,
}

impl Load {
    pub fn rate(&self) -> f64 {
        self.times.len() as f64 / self.took.as_secs_f64()
    }
}

/// What a client, of so many, sends as its n-th request.
pub type Requests = Arc<dyn Fn(usize, u64) -> Bytes + Send + Sync>;

/// The same request again and again.
pub fn always(request: impl Into<Bytes>) -> Requests {
    let request = request.into();
    Arc::new(move |_, _| request.clone())
}

/// Sends requests from so many clients, for so long.
pub async fn load(address: &str, clients: usize, span: Duration, requests: &Requests) -> Load {
    let _awake = cores::awake();
    let start = Instant::now();
    let tasks = (0..clients).map(|number| {
        let (address, requests) = (address.to_owned(), requests.clone());
        tokio::spawn(async move {
            let mut client = Client::connect(&address).await;
            let (mut times, mut failed, mut request) = (Times::default(), 0_u64, 0_u64);
            while start.elapsed() < span {
                let bytes = requests(number, request);
                let sent = Instant::now();
                client.exchange(&bytes).await;
                if !client.is_ok() {
                    failed += 1;
                }
                times.push(sent.elapsed());
                request += 1;
            }
            (times, failed)
        })
    });
    let mut load = Load { times: Times::default(), took: Duration::ZERO, failed: 0 };
    for task in futures_util::future::join_all(tasks).await {
        let (times, failed) = task.expect("a client");
        load.times.extend(times);
        load.failed += failed;
    }
    load.took = start.elapsed();
    load
}
