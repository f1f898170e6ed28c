//! A load generator that costs little: keep-alive HTTP/1.1 over raw sockets, one request at a time on each.

use serde_json::Value;
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
        self.socket.write_all(head.as_bytes()).await.expect("a write");
        self.buffer.clear();
        loop {
            if let Some(head) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                let text = String::from_utf8_lossy(&self.buffer[..head]).to_ascii_lowercase();
                let length = header(&text, "content-length").and_then(|length| length.parse().ok());
                if self.buffer.len() >= head + 4 + length.unwrap_or(0_usize) {
                    return head + 4;
                }
            }
            let read = self.socket.read_buf(&mut self.buffer).await.expect("an answer");
            assert!(
                read > 0,
                "the connection ended within an answer: {}",
                String::from_utf8_lossy(&self.buffer)
            );
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

/// Posts `body` to what `path(client, request)` gives, from so many clients, for so long.
pub async fn load<P>(address: &str, clients: usize, span: Duration, body: &'static str, path: P) -> Load
where
    P: Fn(usize, u64) -> String + Copy + Send + 'static,
{
    let start = Instant::now();
    let tasks = (0..clients).map(|number| {
        let address = address.to_owned();
        tokio::spawn(async move {
            let mut client = Client::connect(&address).await;
            let (mut times, mut failed, mut request) = (Times::default(), 0_u64, 0_u64);
            while start.elapsed() < span {
                let path = path(number, request);
                let sent = Instant::now();
                client.send("POST", &path, "", body).await;
                if !client.buffer.starts_with(b"HTTP/1.1 200") {
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
