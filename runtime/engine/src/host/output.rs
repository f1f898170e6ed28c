//! What a guest prints and logs: cut into lines, bounded, and sent on as structured logs.

use ebb_domain::limits::cap::{LOG_BYTES, LOG_LINE_BYTES};
use ebb_domain::name::AppName;
use ebb_domain::text::Text;
use parking_lot::Mutex;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What of stderr is kept for the message of a trap: panics say there what happened.
const TAIL: usize = 8 << 10;

/// Where a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// How urgent a line is, as the guest says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
}

/// Whose output it is, and how much of it there was.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) app: AppName,
    pub(crate) function: Text,
    /// Bytes that became log lines.
    pub(crate) logged: AtomicU64,
    /// Bytes past the bounds, thrown away.
    pub(crate) dropped: AtomicU64,
}

/// The output of one instance. Shared with the stream resources that the guest holds.
#[derive(Clone)]
pub(crate) struct Output(Arc<Mutex<State>>);

struct State {
    source: Arc<Source>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    /// The last bytes of this call's stderr.
    tail: Vec<u8>,
    /// Bytes that this call may still log.
    left: usize,
    dropped: u64,
}

impl Output {
    pub(crate) fn new(source: Arc<Source>) -> Self {
        let (stdout, stderr, tail) = Default::default();
        Self(Arc::new(Mutex::new(State { source, stdout, stderr, tail, left: LOG_BYTES, dropped: 0 })))
    }

    /// A call begins, with a budget of its own.
    pub(crate) fn begin(&self) {
        let mut state = self.0.lock();
        state.left = LOG_BYTES;
        state.tail.clear();
    }

    /// A call ends: what has no line end yet is a line, and what was dropped is said once.
    pub(crate) fn end(&self) {
        let mut state = self.0.lock();
        state.flush(Stream::Stdout);
        state.flush(Stream::Stderr);
        let dropped = mem::take(&mut state.dropped);
        if dropped > 0 {
            let source = &state.source;
            source.dropped.fetch_add(dropped, Ordering::Relaxed);
            tracing::warn!(
                target: "guest", app = &*source.app, function = &*source.function, dropped,
                "the call logged more than {LOG_BYTES} bytes, or lines of more than {LOG_LINE_BYTES}; the rest was dropped"
            );
        }
    }

    /// Bytes that the guest wrote to a stream.
    pub(crate) fn write(&self, stream: Stream, bytes: &[u8]) {
        let mut state = self.0.lock();
        if stream == Stream::Stderr {
            state.keep_tail(bytes);
        }
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (line, ends) = match piece.split_last() {
                Some((b'\n', line)) => (line, true),
                _ => (piece, false),
            };
            state.extend(stream, line);
            if ends {
                state.flush(stream);
            }
        }
    }

    /// One line through the `log` interface.
    pub(crate) fn log(&self, level: Level, message: &str) {
        let mut state = self.0.lock();
        let take = message.len().min(LOG_LINE_BYTES).min(state.left);
        let take = message.floor_char_boundary(take);
        state.dropped += (message.len() - take) as u64;
        if take > 0 || message.is_empty() {
            state.left -= take;
            state.source.emit(level, "log", &message[..take]);
        }
    }

    /// What this call said on stderr at last: why a program gave up. A stack trace, as Go prints one, stands behind what
    /// matters.
    pub(crate) fn last_words(&self) -> Option<String> {
        let state = self.0.lock();
        let tail = String::from_utf8_lossy(&state.tail);
        let said = |line: &&str| line.starts_with("panic: ") || line.starts_with("fatal error: ");
        let line = tail.lines().find(said).or_else(|| tail.lines().rfind(|line| !line.trim().is_empty()))?;
        Some(line.trim().chars().take(500).collect())
    }

    /// What a panic of this call said, on one line, if it said something.
    pub(crate) fn panic_message(&self) -> Option<String> {
        let state = self.0.lock();
        let tail = String::from_utf8_lossy(&state.tail);
        let (_, message) = tail.split_at(tail.rfind("panicked at ")?);
        let message = message.split("\nnote: run with").next().unwrap_or(message).trim();
        // `panicked at src/lib.rs:10:9:` and the message are lines of their own.
        Some(message.replacen(":\n", ": ", 1))
    }
}

impl State {
    fn buffer(&mut self, stream: Stream) -> &mut Vec<u8> {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }

    fn extend(&mut self, stream: Stream, bytes: &[u8]) {
        let left = self.left;
        let buffer = self.buffer(stream);
        let take = bytes.len().min(LOG_LINE_BYTES.saturating_sub(buffer.len())).min(left);
        buffer.extend_from_slice(&bytes[..take]);
        self.left -= take;
        self.dropped += (bytes.len() - take) as u64;
    }

    fn flush(&mut self, stream: Stream) {
        if self.buffer(stream).is_empty() {
            return;
        }
        let line = mem::take(self.buffer(stream));
        let (level, name) = match stream {
            Stream::Stdout => (Level::Info, "stdout"),
            Stream::Stderr => (Level::Warn, "stderr"),
        };
        self.source.emit(level, name, &String::from_utf8_lossy(&line));
        // The allocation is used again.
        let mut line = line;
        line.clear();
        *self.buffer(stream) = line;
    }

    fn keep_tail(&mut self, bytes: &[u8]) {
        let keep = &bytes[bytes.len().saturating_sub(TAIL)..];
        let excess = (self.tail.len() + keep.len()).saturating_sub(TAIL);
        self.tail.drain(..excess);
        self.tail.extend_from_slice(keep);
    }
}

impl Source {
    fn emit(&self, level: Level, stream: &'static str, line: &str) {
        self.logged.fetch_add(line.len() as u64, Ordering::Relaxed);
        let (app, function) = (&*self.app, &*self.function);
        // A macro because `tracing` wants its level when compiling.
        macro_rules! emit {
            ($level:ident) => {
                tracing::$level!(target: "guest", app, function, stream, "{line}")
            };
        }
        match level {
            Level::Trace => emit!(trace),
            Level::Debug => emit!(debug),
            Level::Info => emit!(info),
            Level::Warn => emit!(warn),
            Level::Error => emit!(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output() -> (Arc<Source>, Output) {
        let source = Arc::new(Source {
            app: AppName::new("bank").unwrap(),
            function: "aggregate.account".into(),
            logged: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        });
        (source.clone(), Output::new(source))
    }

    #[test]
    fn what_exceeds_a_line_or_the_budget_is_counted_and_dropped() {
        let (source, output) = output();
        output.begin();
        let line = vec![b'x'; 100_000];
        for _ in 0..100 {
            output.write(Stream::Stdout, &line);
            output.write(Stream::Stdout, b"\n");
        }
        output.log(Level::Error, "too late");
        output.end();
        assert_eq!(source.logged.load(Ordering::Relaxed), LOG_BYTES as u64);
        assert_eq!(source.dropped.load(Ordering::Relaxed), 100 * 100_000 - LOG_BYTES as u64 + 8);
    }

    #[test]
    fn each_call_has_a_budget_of_its_own() {
        let (source, output) = output();
        for _ in 0..3 {
            output.begin();
            output.write(Stream::Stdout, b"one line without an end");
            output.end();
        }
        assert_eq!(source.logged.load(Ordering::Relaxed), 3 * 23);
        assert_eq!(source.dropped.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_panic_is_one_line() {
        let (_, output) = output();
        output.begin();
        output.write(Stream::Stderr, &[b'.'; 5000]);
        output.write(Stream::Stderr, b"\nthread '<unnamed>' panicked at src/lib.rs:10:9:\nno such account\n");
        output.write(Stream::Stderr, b"note: run with `RUST_BACKTRACE=1` environment variable\n");
        assert_eq!(output.panic_message().unwrap(), "panicked at src/lib.rs:10:9: no such account");
        output.begin();
        assert_eq!(output.panic_message(), None, "another call does not inherit it");
    }

    #[test]
    fn what_a_program_said_at_last_is_the_line_that_says_why() {
        let (_, output) = output();
        let cases = [
            ("", None),
            ("starting\nno such account\n\n", Some("no such account")),
            (
                "panic: no such account\n\ngoroutine 1 [running]:\nmain.main()\n",
                Some("panic: no such account"),
            ),
            ("Traceback (most recent call last):\n  in main\nKeyError: 'name'\n", Some("KeyError: 'name'")),
        ];
        for (printed, words) in cases {
            output.begin();
            output.write(Stream::Stderr, printed.as_bytes());
            assert_eq!(output.last_words().as_deref(), words);
        }
    }
}
