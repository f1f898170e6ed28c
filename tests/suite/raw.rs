//! HTTP/1.1 by hand, for what a proper client would not send, or would not show.

use ebb_tests::Node;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// How long an answer may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// One connection to a node's data plane.
pub(crate) struct Call {
    stream: TcpStream,
    seen: Vec<u8>,
}

impl Call {
    pub(crate) async fn open(node: &Node) -> Self {
        Self::to(node.data.base().trim_start_matches("http://")).await
    }

    /// A connection to this address.
    pub(crate) async fn to(address: &str) -> Self {
        let stream = TcpStream::connect(address).await.expect("it listens");
        Self { stream, seen: Vec::new() }
    }

    pub(crate) async fn send(&mut self, text: &str) {
        self.try_send(text).await.expect("the connection is open");
    }

    /// The other end may have had enough in the middle of it.
    pub(crate) async fn try_send(&mut self, text: &str) -> std::io::Result<()> {
        self.stream.write_all(text.as_bytes()).await
    }

    /// Sends no more, though it may have said that it would.
    pub(crate) async fn hang_up(&mut self) {
        // The other end may be gone already.
        let _ = self.stream.shutdown().await;
    }

    /// Reads until this has come.
    pub(crate) async fn until(&mut self, text: &str) {
        while !self.seen().contains(text) {
            assert!(self.read().await, "closed before `{text}` came: {}", self.seen());
        }
    }

    /// Sends a request on the same connection as those before, and reads until this has come.
    pub(crate) async fn next(&mut self, request: &str, text: &str) {
        self.seen.clear();
        self.send(request).await;
        self.until(text).await;
    }

    /// Reads until the connection is closed.
    pub(crate) async fn closed(&mut self) {
        while self.read().await {}
    }

    /// Reads until the connection is closed, or nothing has come for so long.
    pub(crate) async fn closed_or_quiet(&mut self, quiet: Duration) {
        while let Ok(true) = tokio::time::timeout(quiet, self.read()).await {}
    }

    /// The bytes that have come so far.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.seen
    }

    /// What has come so far.
    pub(crate) fn seen(&self) -> String {
        String::from_utf8_lossy(&self.seen).into_owned()
    }

    /// Whether there was more.
    async fn read(&mut self) -> bool {
        let mut piece = vec![0; 16 << 10];
        match tokio::time::timeout(PATIENCE, self.stream.read(&mut piece)).await {
            Ok(Ok(0) | Err(_)) => false,
            Ok(Ok(read)) => {
                self.seen.extend_from_slice(&piece[..read]);
                true
            }
            Err(_) => panic!("nothing more came within {PATIENCE:?}: {}", self.seen()),
        }
    }
}
