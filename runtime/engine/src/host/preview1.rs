//! WASI preview 1 for programs that are core modules: stdin is the document, stdout the answer, stderr the log, and
//! there are no arguments or files. What the clocks, the random bytes and the variables are is [`World`]'s: as inert as
//! the stand-ins for 0.2 in `wasi`, or, for HTTP functions, real.
//!
//! Such modules are not lifted to components with the usual adapter, because that needs memory of its own in the
//! program's: Go's runtime takes all memory that grows for its heap, and overwrites it.

use super::output::{Output, Stream};
use super::stdio::{Exited, Stdio};
use super::wasi::refused;
use ebb_domain::limits::cap::GUEST_OUTPUT_BYTES;
use std::ops::Range;
use std::time::Duration;
use wasmtime::{Caller, Engine, Extern, FuncType, Linker, Memory, Result, Val, ValType};

/// The module that programs import from.
pub(crate) const MODULE: &str = "wasi_snapshot_preview1";

const SUCCESS: i32 = 0;
const BADF: i32 = 8;
const FAULT: i32 = 21;
const INVAL: i32 = 28;
const NOTSUP: i32 = 58;
const SPIPE: i32 = 70;

/// What such a program finds around it.
pub(crate) trait World: Send + 'static {
    /// Its document and its answer.
    fn stdio(&self) -> Option<&Stdio>;
    /// Its log.
    fn output(&self) -> &Output;
    /// Its variables, `NAME=value`.
    fn environment(&self) -> &[String];
    /// The time, in nanoseconds since 1970.
    fn now(&self) -> u64;
    /// The clock that only tells how much time has passed, in nanoseconds. Never zero, which Go takes for a clock that
    /// is broken.
    fn monotonic(&self) -> u64;
    /// Random bytes.
    ///
    /// # Errors
    /// More than there are at once.
    fn random(&mut self, length: u64) -> Result<Vec<u8>>;
    /// Whether it may wait for a time: not where the clocks stand still.
    fn may_sleep(&self) -> bool;
}

/// Functions that work on files, of which there are none, and what they answer. Parameters are `i` for 32 and `I` for
/// 64 bits.
const ABSENT: &[(&str, &str, i32)] = &[
    ("fd_advise", "iIIi", BADF),
    ("fd_allocate", "iII", BADF),
    ("fd_datasync", "i", BADF),
    ("fd_fdstat_set_rights", "iII", NOTSUP),
    ("fd_filestat_set_size", "iI", BADF),
    ("fd_filestat_set_times", "iIIi", BADF),
    ("fd_pread", "iiiIi", BADF),
    ("fd_prestat_dir_name", "iii", BADF),
    ("fd_prestat_get", "ii", BADF),
    ("fd_pwrite", "iiiIi", BADF),
    ("fd_readdir", "iiiIi", BADF),
    ("fd_renumber", "ii", NOTSUP),
    ("fd_seek", "iIii", SPIPE),
    ("fd_sync", "i", BADF),
    ("fd_tell", "ii", SPIPE),
    ("path_create_directory", "iii", BADF),
    ("path_filestat_get", "iiiii", BADF),
    ("path_filestat_set_times", "iiiiIIi", BADF),
    ("path_link", "iiiiiii", BADF),
    ("path_open", "iiiiiIIii", BADF),
    ("path_readlink", "iiiiii", BADF),
    ("path_remove_directory", "iii", BADF),
    ("path_rename", "iiiiii", BADF),
    ("path_symlink", "iiiii", BADF),
    ("path_unlink_file", "iii", BADF),
    ("proc_raise", "i", NOTSUP),
    ("sched_yield", "", SUCCESS),
];

/// Functions that do something.
const PRESENT: &[&str] = &[
    "args_get",
    "args_sizes_get",
    "clock_res_get",
    "clock_time_get",
    "environ_get",
    "environ_sizes_get",
    "fd_close",
    "fd_fdstat_get",
    "fd_fdstat_set_flags",
    "fd_filestat_get",
    "fd_read",
    "fd_write",
    "poll_oneoff",
    "proc_exit",
    "random_get",
];

/// Whether a program may import this function.
pub(crate) fn offers(name: &str) -> bool {
    PRESENT.contains(&name) || ABSENT.iter().any(|(absent, ..)| *absent == name)
}

/// All that a program that is a core module can import.
pub(crate) fn linker<W: World>(engine: &Engine) -> Result<Linker<W>> {
    let mut linker = Linker::new(engine);
    for (name, parameters, errno) in ABSENT {
        let parameters =
            parameters.bytes().map(|kind| if kind == b'I' { ValType::I64 } else { ValType::I32 });
        let kind = FuncType::new(engine, parameters, [ValType::I32]);
        linker.func_new(MODULE, name, kind, |_, _, results| {
            results[0] = Val::I32(*errno);
            Ok(())
        })?;
    }
    linker.func_wrap(MODULE, "args_sizes_get", |mut guest: Guest<'_, W>, count: u32, bytes: u32| {
        write(&mut guest, count, &[0; 4]).and_then(|()| write(&mut guest, bytes, &[0; 4])).errno()
    })?;
    linker.func_wrap(MODULE, "args_get", |_: u32, _: u32| SUCCESS)?;
    linker.func_wrap(MODULE, "environ_sizes_get", |mut guest: Guest<'_, W>, count: u32, bytes: u32| {
        let variables = guest.data().environment();
        // A zero behind each.
        let sizes = (variables.len(), variables.iter().map(|variable| variable.len() + 1).sum::<usize>());
        write(&mut guest, count, &(sizes.0 as u32).to_le_bytes())
            .and_then(|()| write(&mut guest, bytes, &(sizes.1 as u32).to_le_bytes()))
            .errno()
    })?;
    linker.func_wrap(MODULE, "environ_get", |mut guest: Guest<'_, W>, places: u32, bytes: u32| {
        environ_get(&mut guest, places, bytes).errno()
    })?;
    linker.func_wrap(MODULE, "clock_res_get", |mut guest: Guest<'_, W>, _: u32, at: u32| {
        write(&mut guest, at, &1000_u64.to_le_bytes()).errno()
    })?;
    linker.func_wrap(MODULE, "clock_time_get", |mut guest: Guest<'_, W>, clock: u32, _: u64, at: u32| {
        // Of the computing time of process and thread there is no telling.
        if clock > 1 {
            return INVAL;
        }
        let nanoseconds = match clock {
            0 => guest.data().now(),
            _ => guest.data().monotonic(),
        };
        write(&mut guest, at, &nanoseconds.to_le_bytes()).errno()
    })?;
    linker.func_wrap(MODULE, "fd_close", |fd: u32| stdio(fd).errno())?;
    linker.func_wrap(MODULE, "fd_fdstat_set_flags", |fd: u32, _: u32| stdio(fd).errno())?;
    // Of no type, so that nobody takes it for a terminal and writes it line by line.
    linker.func_wrap(MODULE, "fd_fdstat_get", |mut guest: Guest<'_, W>, fd: u32, at: u32| {
        const READ_AND_WRITE: u64 = 1 << 1 | 1 << 6;
        let mut stat = [0; 24];
        stat[8..16].copy_from_slice(&READ_AND_WRITE.to_le_bytes());
        stdio(fd).and_then(|()| write(&mut guest, at, &stat)).errno()
    })?;
    linker.func_wrap(MODULE, "fd_filestat_get", |mut guest: Guest<'_, W>, fd: u32, at: u32| {
        stdio(fd).and_then(|()| write(&mut guest, at, &[0; 64])).errno()
    })?;
    linker.func_wrap(
        MODULE,
        "fd_read",
        |mut guest: Guest<'_, W>, fd: u32, buffers: u32, count: u32, at: u32| {
            fd_read(&mut guest, fd, buffers, count, at).errno()
        },
    )?;
    linker.func_wrap(
        MODULE,
        "fd_write",
        |mut guest: Guest<'_, W>, fd: u32, buffers: u32, count: u32, at: u32| {
            fd_write(&mut guest, fd, buffers, count, at)
        },
    )?;
    linker.func_wrap_async(
        MODULE,
        "poll_oneoff",
        |mut guest: Guest<'_, W>, (subscriptions, events, count, at): (u32, u32, u32, u32)| {
            Box::new(async move { poll(&mut guest, subscriptions, events, count, at).await })
        },
    )?;
    linker.func_wrap(MODULE, "proc_exit", |status: u32| -> Result<()> { Err(Exited(status == 0).into()) })?;
    linker.func_wrap(
        MODULE,
        "random_get",
        |mut guest: Guest<'_, W>, at: u32, length: u32| -> Result<i32> {
            let bytes = guest.data_mut().random(u64::from(length))?;
            Ok(write(&mut guest, at, &bytes).errno())
        },
    )?;
    Ok(linker)
}

type Guest<'a, W> = Caller<'a, W>;
/// An error is an `errno`.
type Outcome<T> = std::result::Result<T, i32>;

trait Errno {
    fn errno(self) -> i32;
}

impl Errno for Outcome<()> {
    fn errno(self) -> i32 {
        self.err().unwrap_or(SUCCESS)
    }
}

fn stdio(fd: u32) -> Outcome<()> {
    if fd <= 2 { Ok(()) } else { Err(BADF) }
}

fn memory<W: World>(guest: &mut Guest<'_, W>) -> Outcome<Memory> {
    guest.get_export("memory").and_then(Extern::into_memory).ok_or(FAULT)
}

fn range(at: u32, length: usize) -> Range<usize> {
    let at = at as usize;
    at..at.saturating_add(length)
}

fn write<W: World>(guest: &mut Guest<'_, W>, at: u32, bytes: &[u8]) -> Outcome<()> {
    let memory = memory(guest)?;
    let place = memory.data_mut(guest).get_mut(range(at, bytes.len())).ok_or(FAULT)?;
    place.copy_from_slice(bytes);
    Ok(())
}

fn read<const N: usize, W: World>(guest: &mut Guest<'_, W>, at: u32) -> Outcome<[u8; N]> {
    let memory = memory(guest)?;
    let bytes = memory.data(guest).get(range(at, N)).ok_or(FAULT)?;
    bytes.try_into().map_err(|_| FAULT)
}

/// One buffer of a list: its place.
fn buffer<W: World>(guest: &mut Guest<'_, W>, buffers: u32, index: u32) -> Outcome<(u32, usize)> {
    let at = index.checked_mul(8).and_then(|offset| buffers.checked_add(offset)).ok_or(FAULT)?;
    let pair: [u8; 8] = read(guest, at)?;
    let word = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().unwrap_or_default());
    Ok((word(&pair[..4]), word(&pair[4..]) as usize))
}

/// Items of a list that one call takes: POSIX's `IOV_MAX`. A guest may name the same bytes again and again, and until the
/// call is done nobody can end it.
const LISTED: u32 = 1024;

/// Fills the first buffer that has room: who wants more asks again.
fn fd_read<W: World>(guest: &mut Guest<'_, W>, fd: u32, buffers: u32, count: u32, at: u32) -> Outcome<()> {
    if fd != 0 {
        return Err(BADF);
    }
    if count > LISTED {
        return Err(INVAL);
    }
    let mut got = 0;
    for index in 0..count {
        let (to, room) = buffer(guest, buffers, index)?;
        if room == 0 {
            continue;
        }
        let bytes = guest.data().stdio().ok_or(BADF)?.read(room);
        write(guest, to, &bytes)?;
        got = bytes.len() as u32;
        break;
    }
    write(guest, at, &got.to_le_bytes())
}

/// Takes so much at once as a program may write at all: who has more writes again.
fn fd_write<W: World>(guest: &mut Guest<'_, W>, fd: u32, buffers: u32, count: u32, at: u32) -> Result<i32> {
    if fd != 1 && fd != 2 {
        return Ok(BADF);
    }
    if count > LISTED {
        return Ok(INVAL);
    }
    let mut left = GUEST_OUTPUT_BYTES;
    for index in 0..count {
        let place = buffer(guest, buffers, index).and_then(|place| Ok((memory(guest)?, place)));
        let (memory, (from, length)) = match place {
            Ok(place) => place,
            Err(errno) => return Ok(errno),
        };
        let (data, state) = memory.data_and_store_mut(&mut *guest);
        let length = length.min(left);
        let Some(bytes) = data.get(range(from, length)) else { return Ok(FAULT) };
        match state.stdio() {
            Some(stdio) if fd == 1 => stdio.answer().extend(bytes)?,
            _ => state.output().write(Stream::Stderr, bytes),
        }
        left -= length;
        if left == 0 {
            break;
        }
    }
    let written = (GUEST_OUTPUT_BYTES - left) as u32;
    Ok(write(guest, at, &written.to_le_bytes()).errno())
}

/// Pointers to the variables, and the variables themselves.
fn environ_get<W: World>(guest: &mut Guest<'_, W>, places: u32, bytes: u32) -> Outcome<()> {
    let memory = memory(guest)?;
    let (data, world) = memory.data_and_store_mut(guest);
    let (mut place, mut at) = (places, bytes);
    let mut put = |at: &mut u32, bytes: &[u8]| {
        data.get_mut(range(*at, bytes.len())).ok_or(FAULT)?.copy_from_slice(bytes);
        *at = at.checked_add(bytes.len() as u32).ok_or(FAULT)?;
        Outcome::Ok(())
    };
    for variable in world.environment() {
        put(&mut place, &at.to_le_bytes())?;
        put(&mut at, variable.as_bytes())?;
        put(&mut at, &[0])?;
    }
    Ok(())
}

/// Something that a program waits for.
struct Subscription {
    user_data: [u8; 8],
    kind: u8,
    /// In nanoseconds; 0 if it is no clock.
    wait: u64,
}

impl Subscription {
    const BYTES: u32 = 48;
    const CLOCK: u8 = 0;

    fn read<W: World>(guest: &mut Guest<'_, W>, subscriptions: u32, index: u32) -> Outcome<Self> {
        let bytes: [u8; 42] = read(guest, place(subscriptions, index, Self::BYTES)?)?;
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap_or_default());
        let is_absolute = bytes[40] & 1 == 1;
        let wait = match (bytes[8], is_absolute) {
            (Self::CLOCK, false) => word(24),
            (Self::CLOCK, true) => {
                let now = if word(16) as u32 == 0 { guest.data().now() } else { guest.data().monotonic() };
                word(24).saturating_sub(now)
            }
            _ => 0,
        };
        Ok(Self { user_data: word(0).to_le_bytes(), kind: bytes[8], wait })
    }

    fn is_clock(&self) -> bool {
        self.kind == Self::CLOCK
    }
}

/// The place of one of several that lie one behind the other.
fn place(base: u32, index: u32, size: u32) -> Outcome<u32> {
    index.checked_mul(size).and_then(|offset| base.checked_add(offset)).ok_or(FAULT)
}

/// Stdin and stdout are always ready; a clock, where time passes, when it is its time.
async fn poll<W: World>(
    guest: &mut Guest<'_, W>,
    subscriptions: u32,
    events: u32,
    count: u32,
    at: u32,
) -> Result<i32> {
    if count == 0 || count > LISTED {
        return Ok(INVAL);
    }
    let shortest = match shortest_wait(guest, subscriptions, count) {
        Ok(shortest) => shortest,
        Err(errno) => return Ok(errno),
    };
    let mut slept = 0;
    if let Some(wait) = shortest {
        if !guest.data().may_sleep() {
            return Err(refused("`sleep` (`wasi_snapshot_preview1::poll_oneoff`)"));
        }
        tokio::time::sleep(Duration::from_nanos(wait)).await;
        slept = wait;
    }
    let is_ready = |subscription: &Subscription| match shortest {
        Some(_) => subscription.is_clock() && subscription.wait <= slept,
        None => !subscription.is_clock(),
    };
    let mut ready = 0;
    for index in 0..count {
        let written = Subscription::read(guest, subscriptions, index).and_then(|subscription| {
            if is_ready(&subscription) {
                write_event(guest, events, ready, &subscription)?;
                ready += 1;
            }
            Ok(())
        });
        if let Err(errno) = written {
            return Ok(errno);
        }
    }
    Ok(write(guest, at, &ready.to_le_bytes()).errno())
}

/// How long to wait until something is ready; not at all where something is that is no clock.
fn shortest_wait<W: World>(guest: &mut Guest<'_, W>, subscriptions: u32, count: u32) -> Outcome<Option<u64>> {
    let mut shortest = u64::MAX;
    for index in 0..count {
        let subscription = Subscription::read(guest, subscriptions, index)?;
        if !subscription.is_clock() {
            return Ok(None);
        }
        shortest = shortest.min(subscription.wait);
    }
    Ok(Some(shortest))
}

fn write_event<W: World>(
    guest: &mut Guest<'_, W>,
    events: u32,
    index: u32,
    subscription: &Subscription,
) -> Outcome<()> {
    const EVENT: u32 = 32;
    let mut event = [0; EVENT as usize];
    event[..8].copy_from_slice(&subscription.user_data);
    event[10] = subscription.kind;
    event[16..24].copy_from_slice(&1_u64.to_le_bytes());
    write(guest, place(events, index, EVENT)?, &event)
}
