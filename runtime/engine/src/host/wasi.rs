//! Inert stand-ins for what Rust's std and other toolchains import of WASI 0.2. They answer the same on every machine
//! and at every replay: time is the command's or the event's, random bytes come from one constant stream that starts
//! anew with each call, there are no arguments, variables, files or sockets, and output becomes logs; a program's stdin and stdout are its call.

use super::output::{Output, Stream};
use super::stdio::{Exited, Stdio};
use super::{State, preview1};
use bytes::Bytes;
use ebb_domain::port::guest::CallError;
use std::time::Duration;
use wasmtime::Result;
use wasmtime::component::{HasData, HasSelf, Linker, Resource, ResourceTable};
use wasmtime_wasi::filesystem::{WasiFilesystem, WasiFilesystemCtxView};
use wasmtime_wasi::p2::bindings::cli::terminal_output::TerminalOutput;
use wasmtime_wasi::p2::bindings::{cli, clocks, filesystem, io, random};
use wasmtime_wasi::p2::{DynInputStream, DynOutputStream, DynPollable, OutputStream, Pollable, StreamResult};
use wasmtime_wasi::p2::{bindings::cli::terminal_input::TerminalInput, pipe::ClosedInputStream};

/// Most random bytes in one call of `get-random-bytes`.
const RANDOM_BYTES: u64 = 64 << 10;
/// What a stream takes in one write.
pub(crate) const WRITE_BYTES: usize = 64 << 10;

/// Interfaces that are linked; [`crate::world`] refuses all others by name.
pub(crate) const INTERFACES: &[&str] = &[
    "wasi:cli/environment",
    "wasi:cli/exit",
    "wasi:cli/stderr",
    "wasi:cli/stdin",
    "wasi:cli/stdout",
    "wasi:cli/terminal-input",
    "wasi:cli/terminal-output",
    "wasi:cli/terminal-stderr",
    "wasi:cli/terminal-stdin",
    "wasi:cli/terminal-stdout",
    "wasi:clocks/monotonic-clock",
    "wasi:clocks/wall-clock",
    "wasi:filesystem/preopens",
    "wasi:filesystem/types",
    "wasi:io/error",
    "wasi:io/poll",
    "wasi:io/streams",
    "wasi:random/insecure",
    "wasi:random/insecure-seed",
    "wasi:random/random",
];

struct HasIo;

impl HasData for HasIo {
    type Data<'a> = &'a mut ResourceTable;
}

/// Links every one of [`INTERFACES`].
pub(crate) fn add_to_linker(linker: &mut Linker<State>) -> Result<()> {
    type Own = HasSelf<State>;
    fn own(state: &mut State) -> &mut State {
        state
    }
    fn table(state: &mut State) -> &mut ResourceTable {
        &mut state.table
    }
    // Without a preopened folder no descriptor ever exists, so that the functions on descriptors can't be reached.
    fn files(state: &mut State) -> WasiFilesystemCtxView<'_> {
        WasiFilesystemCtxView { ctx: &mut state.files, table: &mut state.table }
    }
    cli::environment::add_to_linker::<_, Own>(linker, own)?;
    cli::exit::add_to_linker::<_, Own>(linker, own)?;
    cli::stdin::add_to_linker::<_, Own>(linker, own)?;
    cli::stdout::add_to_linker::<_, Own>(linker, own)?;
    cli::stderr::add_to_linker::<_, Own>(linker, own)?;
    cli::terminal_input::add_to_linker::<_, Own>(linker, own)?;
    cli::terminal_output::add_to_linker::<_, Own>(linker, own)?;
    cli::terminal_stdin::add_to_linker::<_, Own>(linker, own)?;
    cli::terminal_stdout::add_to_linker::<_, Own>(linker, own)?;
    cli::terminal_stderr::add_to_linker::<_, Own>(linker, own)?;
    clocks::monotonic_clock::add_to_linker::<_, Own>(linker, own)?;
    clocks::wall_clock::add_to_linker::<_, Own>(linker, own)?;
    random::random::add_to_linker::<_, Own>(linker, own)?;
    random::insecure::add_to_linker::<_, Own>(linker, own)?;
    random::insecure_seed::add_to_linker::<_, Own>(linker, own)?;
    io::error::add_to_linker::<_, HasIo>(linker, table)?;
    io::poll::add_to_linker::<_, HasIo>(linker, table)?;
    io::streams::add_to_linker::<_, HasIo>(linker, table)?;
    filesystem::types::add_to_linker::<_, WasiFilesystem>(linker, files)?;
    filesystem::preopens::add_to_linker::<_, WasiFilesystem>(linker, files)?;
    Ok(())
}

pub(super) fn refused(what: &str) -> wasmtime::Error {
    CallError::Trapped(format!("it called {what}, which a deterministic module can't use")).into()
}

impl cli::environment::Host for State {
    fn get_environment(&mut self) -> Result<Vec<(String, String)>> {
        Ok(Vec::new())
    }
    fn get_arguments(&mut self) -> Result<Vec<String>> {
        Ok(Vec::new())
    }
    fn initial_cwd(&mut self) -> Result<Option<String>> {
        Ok(None)
    }
}

impl cli::exit::Host for State {
    fn exit(&mut self, status: Result<(), ()>) -> Result<()> {
        // A program may end in this way; an instance that serves other calls may not.
        Err(if self.stdio.is_some() { Exited(status.is_ok()).into() } else { refused("`exit`") })
    }
    fn exit_with_code(&mut self, code: u8) -> Result<()> {
        self.exit(if code == 0 { Ok(()) } else { Err(()) })
    }
}

impl cli::stdin::Host for State {
    fn get_stdin(&mut self) -> Result<Resource<DynInputStream>> {
        let closed = || -> DynInputStream { Box::new(ClosedInputStream) };
        let stream = self.stdio.as_ref().map_or_else(closed, |stdio| Box::new(stdio.stdin()));
        Ok(self.table.push(stream)?)
    }
}

impl cli::stdout::Host for State {
    fn get_stdout(&mut self) -> Result<Resource<DynOutputStream>> {
        let stream: DynOutputStream = match &self.stdio {
            Some(stdio) => Box::new(stdio.answer()),
            None => Box::new(Lines { output: self.output.clone(), stream: Stream::Stdout }),
        };
        Ok(self.table.push(stream)?)
    }
}

impl cli::stderr::Host for State {
    fn get_stderr(&mut self) -> Result<Resource<DynOutputStream>> {
        let stream: DynOutputStream = Box::new(Lines { output: self.output.clone(), stream: Stream::Stderr });
        Ok(self.table.push(stream)?)
    }
}

impl cli::terminal_input::Host for State {}
impl cli::terminal_input::HostTerminalInput for State {
    fn drop(&mut self, terminal: Resource<TerminalInput>) -> Result<()> {
        self.table.delete(terminal)?;
        Ok(())
    }
}
impl cli::terminal_output::Host for State {}
impl cli::terminal_output::HostTerminalOutput for State {
    fn drop(&mut self, terminal: Resource<TerminalOutput>) -> Result<()> {
        self.table.delete(terminal)?;
        Ok(())
    }
}
impl cli::terminal_stdin::Host for State {
    fn get_terminal_stdin(&mut self) -> Result<Option<Resource<TerminalInput>>> {
        Ok(None)
    }
}
impl cli::terminal_stdout::Host for State {
    fn get_terminal_stdout(&mut self) -> Result<Option<Resource<TerminalOutput>>> {
        Ok(None)
    }
}
impl cli::terminal_stderr::Host for State {
    fn get_terminal_stderr(&mut self) -> Result<Option<Resource<TerminalOutput>>> {
        Ok(None)
    }
}

impl clocks::wall_clock::Host for State {
    fn now(&mut self) -> Result<clocks::wall_clock::Datetime> {
        let time = Duration::from_micros(self.time.0);
        Ok(clocks::wall_clock::Datetime { seconds: time.as_secs(), nanoseconds: time.subsec_nanos() })
    }
    fn resolution(&mut self) -> Result<clocks::wall_clock::Datetime> {
        Ok(clocks::wall_clock::Datetime { seconds: 0, nanoseconds: 1000 })
    }
}

impl preview1::World for State {
    fn stdio(&self) -> Option<&Stdio> {
        self.stdio.as_ref()
    }
    fn output(&self) -> &Output {
        &self.output
    }
    fn environment(&self) -> &[String] {
        &[]
    }
    fn now(&self) -> u64 {
        self.time.0.saturating_mul(1000)
    }
    fn monotonic(&self) -> u64 {
        preview1::World::now(self).max(1)
    }
    fn random(&mut self, length: u64) -> Result<Vec<u8>> {
        self.random.bytes(length)
    }
    fn may_sleep(&self) -> bool {
        false
    }
}

impl clocks::monotonic_clock::Host for State {
    fn now(&mut self) -> Result<u64> {
        Ok(preview1::World::monotonic(self))
    }
    fn resolution(&mut self) -> Result<u64> {
        Ok(1000)
    }
    fn subscribe_instant(&mut self, _: u64) -> Result<Resource<DynPollable>> {
        Err(refused("`sleep` (`wasi:clocks/monotonic-clock#subscribe-instant`)"))
    }
    fn subscribe_duration(&mut self, _: u64) -> Result<Resource<DynPollable>> {
        Err(refused("`sleep` (`wasi:clocks/monotonic-clock#subscribe-duration`)"))
    }
}

impl random::random::Host for State {
    fn get_random_bytes(&mut self, len: u64) -> Result<Vec<u8>> {
        self.random.bytes(len)
    }
    fn get_random_u64(&mut self) -> Result<u64> {
        Ok(self.random.next())
    }
}

impl random::insecure::Host for State {
    fn get_insecure_random_bytes(&mut self, len: u64) -> Result<Vec<u8>> {
        self.random.bytes(len)
    }
    fn get_insecure_random_u64(&mut self) -> Result<u64> {
        Ok(self.random.next())
    }
}

impl random::insecure_seed::Host for State {
    fn insecure_seed(&mut self) -> Result<(u64, u64)> {
        Ok((Random::SEED, !Random::SEED))
    }
}

/// The constant stream: SplitMix64 from a fixed seed, begun anew with each call, so that what a call sees does not
/// depend on the calls before it.
pub(crate) struct Random(u64);

impl Random {
    const SEED: u64 = 0x6562_6274_6964_6521;

    pub(crate) const fn new() -> Self {
        Self(Self::SEED)
    }

    const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn bytes(&mut self, len: u64) -> Result<Vec<u8>> {
        if len > RANDOM_BYTES {
            return Err(CallError::Trapped(format!(
                "it asked for {len} random bytes at once; {RANDOM_BYTES} is the most there is"
            ))
            .into());
        }
        let mut bytes = Vec::with_capacity(len as usize + 8);
        while bytes.len() < len as usize {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(len as usize);
        Ok(bytes)
    }
}

/// Stdout or stderr.
pub(crate) struct Lines {
    pub(crate) output: Output,
    pub(crate) stream: Stream,
}

#[wasmtime_wasi::async_trait]
impl Pollable for Lines {
    async fn ready(&mut self) {}
}

#[wasmtime_wasi::async_trait]
impl OutputStream for Lines {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.output.write(self.stream, &bytes);
        Ok(())
    }
    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }
    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(WRITE_BYTES)
    }
}
