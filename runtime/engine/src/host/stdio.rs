//! Stdin and stdout of a program: one document in, one out, both in memory.

use bytes::Bytes;
use ebb_domain::limits::cap::GUEST_OUTPUT_BYTES;
use ebb_domain::port::guest::CallError;
use parking_lot::Mutex;
use std::mem;
use std::sync::Arc;
use thiserror::Error;
use wasmtime_wasi::p2::pipe::MemoryInputPipe;
use wasmtime_wasi::p2::{
    DynInputStream, DynOutputStream, InputStream, OutputStream, Pollable, StreamError, StreamResult,
};

/// The program's `exit`, on its way out of the guest: whether its status was 0.
#[derive(Debug, Error)]
#[error("the program exited")]
pub(crate) struct Exited(pub(crate) bool);

/// Both ends.
pub(crate) struct Stdio {
    /// Its copies share what has been read of it, as those who open stdin twice expect.
    input: MemoryInputPipe,
    answer: Answer,
}

impl Stdio {
    pub(crate) fn new(input: Bytes) -> Self {
        Self { input: MemoryInputPipe::new(input), answer: Answer::default() }
    }

    /// As much of the input as there is room for; nothing at its end.
    pub(crate) fn read(&self, room: usize) -> Bytes {
        // Its only error is that it has ended.
        self.input.clone().read(room).unwrap_or_default()
    }

    pub(crate) fn stdin(&self) -> DynInputStream {
        Box::new(self.input.clone())
    }

    pub(crate) fn stdout(&self) -> DynOutputStream {
        Box::new(self.answer.clone())
    }

    pub(crate) fn answer(&self) -> Answer {
        self.answer.clone()
    }
}

/// What a program has written to stdout, at most [`GUEST_OUTPUT_BYTES`].
#[derive(Clone, Default)]
pub(crate) struct Answer(Arc<Mutex<Vec<u8>>>);

impl Answer {
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
impl Pollable for Answer {
    async fn ready(&mut self) {}
}

#[wasmtime_wasi::async_trait]
impl OutputStream for Answer {
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
