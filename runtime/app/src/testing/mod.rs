//! Fakes of the ports, for tests of the use cases: faithful to what the traits promise, and under the test's control.

mod bus;
mod clock;
mod guest;
mod log;
mod models;
mod secrets;
mod storage;

pub use bus::{MemoryBus, Step};
pub use clock::ManualClock;
pub use guest::{Call, Fault, Gate, ProjectionEngine, ScriptedFunction, ScriptedProjection};
pub use log::{MemoryLog, command_id};
pub use models::MemoryModels;
pub use secrets::NoSecrets;
pub use storage::MemoryStorage;
