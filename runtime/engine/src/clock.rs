//! The node's clock of milliseconds: for what is compared with tenths of seconds, and read several times in a call.

use std::time::{Duration, Instant};

/// Milliseconds since it was made.
///
/// Where the system has one, it reads the clock that is only written at each of the kernel's ticks, every 1 to 10 ms:
/// that takes a tenth of the time, since it is memory and no counter of the processor.
#[derive(Debug)]
pub(crate) struct Clock {
    began: Duration,
    /// The other clock at that time.
    base: Instant,
}

impl Clock {
    pub(crate) fn new() -> Self {
        Self { began: ticks(), base: Instant::now() }
    }

    /// This moment, or one a tick ago.
    pub(crate) fn millis(&self) -> u64 {
        match ticks().checked_sub(self.began) {
            Some(passed) if !self.began.is_zero() => passed.as_millis() as u64,
            _ => self.base.elapsed().as_millis() as u64,
        }
    }
}

#[cfg(target_os = "linux")]
fn ticks() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// None.
#[cfg(not(target_os = "linux"))]
fn ticks() -> Duration {
    Duration::ZERO
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_as_the_other_clock_does() {
        let (clock, began) = (Clock::new(), Instant::now());
        std::thread::sleep(Duration::from_millis(60));
        let (millis, passed) = (clock.millis(), began.elapsed().as_millis() as u64);
        assert!(millis.abs_diff(passed) <= 20, "{millis} of {passed}");
    }
}
