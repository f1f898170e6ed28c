//! Crashes and faults that tests ask a node for. All of it is there with debug assertions only: a release build has
//! neither the points nor a way to ask.
//!
//! A test names a file in `EBB_FAULTS` and writes into it, while the node runs or before, what is to go wrong; a fault
//! a line:
//!
//! | line | what happens |
//! |---|---|
//! | `crash POINT NTH` | the process kills itself when it passes the point for the nth time from then on |
//! | `crash POINT NTH power-loss SEED` | and what its logs had not synced is lost, kept or torn, as the seed wants it |
//! | `fail-sync` | syncs of the logs fail |
//! | `full` | files of the logs can't grow, nor be written |
//! | `clock SECONDS` | the clock is so far ahead, or behind if negative |

mod point;

#[cfg(debug_assertions)]
mod asked;

#[cfg(debug_assertions)]
pub use asked::{Faults, clock_offset_micros, faults, on_power_loss};
pub use point::Point;

/// Says that the process has come to a point where a test may want it to crash.
#[inline]
pub fn crash_point(point: Point) {
    #[cfg(debug_assertions)]
    asked::reached(point);
    #[cfg(not(debug_assertions))]
    let _ = point;
}
