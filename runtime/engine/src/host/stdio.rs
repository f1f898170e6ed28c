//! Stdin and stdout of a program: one document in, one out, both in memory.

use bytes::Bytes;
use ebb_domain::limits::cap::GUEST_OUTPUT_BYTES;
use ebb_domain::port::guest::CallError;
use parking_lot::Mutex;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use wasmtime_wasi::I32Exit;
use wasmtime_wasi::cli::{IsTerminal, StdinStream, StdoutStream};
use wasmtime_wasi::p2::{InputStream, OutputStream, Pollable, StreamError, StreamResult};

/// The program's `exit`, on its way out of the guest: whether its status was 0.
#[derive(Debug, Error)]
#[error("the program exited")]
pub(crate) struct Exited(pub(crate) bool);

/// Whether a program that came back in this way ended well: by returning, or by an `exit` of status 0.
///
/// # Errors
/// It did neither.
pub(crate) fn ended_well(returned: wasmtime::Result<bool>) -> wasmtime::Result<bool> {
    returned.or_else(|error| {
        if let Some(Exited(well)) = error.downcast_ref() {
            return Ok(*well);
        }
        match error.downcast_ref() {
            Some(I32Exit(status)) => Ok(*status == 0),
            None => Err(error),
        }
    })
}

/// What is said of a program that did not end well, with its last words.
pub(crate) fn ended_badly(words: Option<String>) -> CallError {
    CallError::Trapped(match words {
        Some(words) => format!("the program failed, and said at last: {words}"),
        None => "the program failed, and said nothing on stderr".into(),
    })
}

/// Both ends.
#[derive(Clone, Default)]
pub(crate) struct Stdio {
    input: Input,
    answer: Stdout,
}

impl Stdio {
    pub(crate) fn new(input: Bytes) -> Self {
        let stdio = Self::default();
        stdio.give(input);
        stdio
    }

    /// What the program will read.
    pub(crate) fn give(&self, input: Bytes) {
        *self.input.0.lock() = input;
    }

    /// As much of the input as there is room for; nothing at its end.
    pub(crate) fn read(&self, room: usize) -> Bytes {
        self.input.take(room)
    }

    pub(crate) fn stdin(&self) -> Input {
        self.input.clone()
    }

    pub(crate) fn answer(&self) -> Stdout {
        self.answer.clone()
    }
}

/// What a program has not read yet of its stdin. Its copies share that, as those who open stdin twice expect.
#[derive(Clone, Default)]
pub(crate) struct Input(Arc<Mutex<Bytes>>);

impl Input {
    fn take(&self, room: usize) -> Bytes {
        let mut left = self.0.lock();
        let length = room.min(left.len());
        left.split_to(length)
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Input {
    async fn ready(&mut self) {}
}

#[wasmtime_wasi::async_trait]
impl InputStream for Input {
    fn read(&mut self, room: usize) -> StreamResult<Bytes> {
        match self.take(room) {
            end if end.is_empty() && room > 0 => Err(StreamError::Closed),
            bytes => Ok(bytes),
        }
    }
}

impl AsyncRead for Input {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        buffer.put_slice(&self.take(buffer.remaining()));
        Poll::Ready(Ok(()))
    }
}

impl IsTerminal for Input {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdinStream for Input {
    fn async_stream(&self) -> Box<dyn AsyncRead + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn InputStream> {
        Box::new(self.clone())
    }
}

/// What a program has written to stdout, at most [`GUEST_OUTPUT_BYTES`].
#[derive(Clone, Default)]
pub(crate) struct Stdout(Arc<Mutex<Vec<u8>>>);

impl Stdout {
    pub(crate) fn take(&self) -> Vec<u8> {
        mem::take(&mut *self.0.lock())
    }

    pub(crate) fn extend(&self, bytes: &[u8]) -> Result<(), CallError> {
        let mut answer = self.0.lock();
        if answer.len() + bytes.len() > GUEST_OUTPUT_BYTES {
            return Err(CallError::OutputTooLarge(format!("more than {GUEST_OUTPUT_BYTES} bytes on stdout")));
        }
        answer.extend_from_slice(bytes);
        Ok(())
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Stdout {
    async fn ready(&mut self) {}
}

#[wasmtime_wasi::async_trait]
impl OutputStream for Stdout {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.extend(&bytes).map_err(|error| StreamError::Trap(error.into()))
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(super::wasi::WRITE_BYTES)
    }
}

impl AsyncWrite for Stdout {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        let written = self.extend(bytes).map_err(std::io::Error::other);
        Poll::Ready(written.map(|()| bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl IsTerminal for Stdout {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Stdout {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}
