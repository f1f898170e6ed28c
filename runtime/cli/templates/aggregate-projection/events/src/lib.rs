//! What can happen to a counter: what both modules know. Names and fields are kept for ever: extend them, do not change
//! them.

use serde::{Deserialize, Serialize};

/// An event of the stream `counter-{id}`.
#[derive(Serialize, Deserialize)]
pub enum CounterEvent {
    Incremented { by: u64 },
    Reset,
}
