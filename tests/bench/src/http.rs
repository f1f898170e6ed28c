//! A load generator that costs little: keep-alive HTTP/1.1 over raw sockets, one request at a time on each.

use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Times of all answers, and how long the whole took.
pub struct Load {
    pub times: Vec<Duration>,
    pub took: Duration,
    pub failed: u64,
}

impl Load {
    pub fn rate(&self) -> f64 {
        self.times.len() as f64 / self.took.as_secs_f64()
    }

    pub fn percentile(&mut self, percent: f64) -> Duration {
        self.times.sort_unstable();
        let index = (self.times.len() as f64 * percent / 100.0) as usize;
        self.times.get(index.min(self.times.len().saturating_sub(1))).copied().unwrap_or_default()
    }
}

/// Posts `body` to what `path(client, request)` gives, from so many clients, for so long.
pub async fn load<P>(address: String, clients: usize, span: Duration, body: &'static str, path: P) -> Load
where
    P: Fn(usize, u64) -> String + Clone + Send + 'static,
{
    let start = Instant::now();
    let tasks = (0..clients).map(|client| {
        let (address, path) = (address.clone(), path.clone());
        tokio::spawn(async move {
            let mut socket = TcpStream::connect(&address).await.expect("a connection");
            socket.set_nodelay(true).expect("nodelay");
            let (mut times, mut failed, mut request, mut buffer) = (Vec::new(), 0_u64, 0_u64, Vec::new());
            while start.elapsed() < span {
                let head = format!(
                    "POST {} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                    path(client, request),
                    body.len()
                );
                let sent = Instant::now();
                socket.write_all(head.as_bytes()).await.expect("a write");
                if !answer(&mut socket, &mut buffer).await {
                    failed += 1;
                }
                times.push(sent.elapsed());
                request += 1;
            }
            (times, failed)
        })
    });
    let mut load = Load { times: Vec::new(), took: Duration::ZERO, failed: 0 };
    for task in futures_util::future::join_all(tasks).await {
        let (times, failed) = task.expect("a client");
        load.times.extend(times);
        load.failed += failed;
    }
    load.took = start.elapsed();
    load
}

/// Reads one answer; says whether its status was 200.
async fn answer(socket: &mut TcpStream, buffer: &mut Vec<u8>) -> bool {
    buffer.clear();
    loop {
        if let Some(head) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            let text = String::from_utf8_lossy(&buffer[..head]).to_ascii_lowercase();
            let length = text
                .split("content-length: ")
                .nth(1)
                .and_then(|rest| rest.split("\r\n").next()?.parse().ok());
            if buffer.len() >= head + 4 + length.unwrap_or(0_usize) {
                return buffer.starts_with(b"HTTP/1.1 200");
            }
        }
        if socket.read_buf(buffer).await.expect("an answer") == 0 {
            return false;
        }
    }
}
