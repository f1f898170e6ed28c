//! Fakes of the ports, for tests of the use cases: faithful to what the traits promise, and under the test's control.

mod clock;
mod log;

pub use clock::ManualClock;
pub use log::{MemoryLog, command_id};
