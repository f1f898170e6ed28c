//! What was asked for, read from the file whenever it matters, so that a test can change its mind while the node runs.

use crate::Point;
use parking_lot::Mutex;
use std::path::PathBuf;
use std::sync::OnceLock;

/// What the file asks for now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Syncs of the logs fail.
    pub fail_sync: bool,
    /// Files of the logs can't be written.
    pub full: bool,
    /// By how much the clock is ahead.
    pub clock_seconds: i64,
    crash: Option<Crash>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Crash {
    point: String,
    nth: u32,
    power_loss: Option<u64>,
}

/// The crash that is armed, and how often its point was passed since.
static ARMED: Mutex<(Option<Crash>, u32)> = Mutex::new((None, 0));

type Hook = Box<dyn Fn(u64) + Send>;

/// What takes away what was not synced.
static POWER_LOSS: Mutex<Vec<Hook>> = Mutex::new(Vec::new());

fn file() -> Option<&'static PathBuf> {
    static FILE: OnceLock<Option<PathBuf>> = OnceLock::new();
    FILE.get_or_init(|| std::env::var_os("EBB_FAULTS").map(PathBuf::from)).as_ref()
}

/// What is asked for; none if this process was started without a file to ask in.
#[must_use]
pub fn faults() -> Option<Faults> {
    let text = std::fs::read_to_string(file()?).unwrap_or_default();
    Some(parse(&text))
}

/// By how much the clock is ahead, in microseconds.
#[must_use]
pub fn clock_offset_micros() -> i64 {
    faults().map_or(0, |faults| faults.clock_seconds * 1_000_000)
}

/// `hook` is called, with a seed, just before the process dies of a power loss. What it locks it must not give back.
pub fn on_power_loss(hook: impl Fn(u64) + Send + 'static) {
    POWER_LOSS.lock().push(Box::new(hook));
}

fn parse(text: &str) -> Faults {
    let mut faults = Faults::default();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [] => {}
            ["fail-sync"] => faults.fail_sync = true,
            ["full"] => faults.full = true,
            ["clock", seconds] => faults.clock_seconds = number(seconds),
            ["crash", point, nth] => {
                faults.crash = Some(Crash { point: point.to_owned(), nth: number(nth), power_loss: None });
            }
            ["crash", point, nth, "power-loss", seed] => {
                let power_loss = Some(number(seed));
                faults.crash = Some(Crash { point: point.to_owned(), nth: number(nth), power_loss });
            }
            _ => panic!("EBB_FAULTS: `{line}` is no fault"),
        }
    }
    faults
}

fn number<T: std::str::FromStr>(word: &str) -> T {
    word.parse().unwrap_or_else(|_| panic!("EBB_FAULTS: `{word}` is no number"))
}

pub(crate) fn reached(point: Point) {
    let Some(crash) = faults().and_then(|faults| faults.crash) else { return };
    if crash.point != point.name() {
        return;
    }
    let mut armed = ARMED.lock();
    if armed.0.as_ref() != Some(&crash) {
        *armed = (Some(crash.clone()), 0);
    }
    armed.1 += 1;
    if armed.1 == crash.nth {
        // The lock is kept: nobody else gets past a point from here on.
        die(&crash);
    }
}

fn die(crash: &Crash) {
    if let Some(seed) = crash.power_loss {
        POWER_LOSS.lock().iter().for_each(|hook| hook(seed));
    }
    // SIGKILL and not an abort: nothing is unwound, flushed or caught.
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    // The signal is on its way.
    loop {
        std::thread::park();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_asks_for_several_faults() {
        let faults = parse("crash group.after-write 3 power-loss 7\nfail-sync\n\nclock -3600\n");
        let crash = Crash { point: "group.after-write".into(), nth: 3, power_loss: Some(7) };
        let expected = Faults { fail_sync: true, full: false, clock_seconds: -3600, crash: Some(crash) };
        assert_eq!(faults, expected);
    }

    #[test]
    #[should_panic(expected = "`crash sometime` is no fault")]
    fn what_is_not_understood_is_not_passed_over() {
        parse("crash sometime");
    }
}
