//! What a function may use, and how its instances live: defaults and bounds.

use serde::Serialize;
use std::num::NonZeroU32;
use std::time::Duration;

/// Bounds of one function. All are above zero, and none is above what the operator allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// All linear memories and tables of an instance together, in bytes.
    pub memory_bytes: u64,
    /// Computing time of a call, measured in ticks of 10 ms while the guest runs.
    pub cpu: Duration,
    /// Time of a call with all its waiting.
    pub wall: Duration,
    /// Calls at once.
    pub concurrency: NonZeroU32,
}

/// What a limit may be at most, whatever the manifest says.
pub mod cap {
    use std::time::Duration;
    /// Memory of an instance: 1 GiB.
    pub const MEMORY_BYTES: u64 = 1 << 30;
    /// Computing time of a call.
    pub const CPU: Duration = Duration::from_secs(15 * 60);
    /// Time of a call with all its waiting.
    pub const WALL: Duration = Duration::from_secs(15 * 60);
    /// Calls of a function at once.
    pub const CONCURRENCY: u32 = 512;
    /// Size of a module, 32 MiB.
    pub const MODULE_BYTES: u64 = 32 << 20;
    /// Time to compile a module.
    pub const COMPILE: Duration = Duration::from_secs(60);
    /// Data of one event, 512 KiB.
    pub const EVENT_BYTES: usize = 512 << 10;
    /// Events of one commit.
    pub const COMMIT_EVENTS: usize = 1000;
    /// Bytes of one commit, 4 MiB.
    pub const COMMIT_BYTES: usize = 4 << 20;
    /// Bytes that a guest may hand to the host in one call, 8 MiB.
    pub const GUEST_OUTPUT_BYTES: usize = 8 << 20;
    /// One line of a guest's log, 8 KiB.
    pub const LOG_LINE_BYTES: usize = 8 << 10;
    /// A guest's log in one call, 256 KiB.
    pub const LOG_BYTES: usize = 256 << 10;
    /// A request's body, 1 MiB.
    pub const BODY_BYTES: usize = 1 << 20;
}

impl Limits {
    /// Defaults of a command module.
    pub const COMMAND: Self = Self {
        memory_bytes: 64 << 20,
        cpu: Duration::from_millis(500),
        wall: Duration::from_secs(30),
        concurrency: NonZeroU32::new(64).unwrap(),
    };

    /// The same where it is within what an operator allows, and the most that is allowed where it is not.
    #[must_use]
    pub fn within(self, most: &Self) -> Self {
        Self {
            memory_bytes: self.memory_bytes.min(most.memory_bytes),
            cpu: self.cpu.min(most.cpu),
            wall: self.wall.min(most.wall),
            concurrency: self.concurrency.min(most.concurrency),
        }
    }

    /// Defaults of a projection module.
    pub const PROJECTION: Self = Self { cpu: Duration::from_secs(5), ..Self::COMMAND };

    /// Defaults of an HTTP function.
    pub const HTTP: Self = Self { cpu: Duration::from_secs(30), ..Self::COMMAND };
}

/// How long instances live and how many there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct InstancePolicy {
    /// Calls after which an instance is replaced; 1 is full isolation of each call.
    pub reuse: NonZeroU32,
    /// Instances of a function at most.
    pub max: NonZeroU32,
    /// How long an instance without work is kept.
    pub idle: Duration,
    /// Aggregates that share an instance.
    pub aggregates: NonZeroU32,
    /// Instances that are kept ready, however long nobody calls.
    pub warm: u32,
}

impl InstancePolicy {
    /// Defaults of command and projection modules.
    pub const DETERMINISTIC: Self = Self {
        reuse: NonZeroU32::new(100_000).unwrap(),
        max: NonZeroU32::new(16).unwrap(),
        idle: Duration::from_secs(60),
        aggregates: NonZeroU32::new(256).unwrap(),
        warm: 0,
    };

    /// Defaults of an HTTP function: as many instances as calls, since each call has one to itself and may wait for
    /// others; and a younger end, since what a guest of any toolchain leaves behind from call to call adds up.
    pub const HTTP: Self =
        Self { reuse: NonZeroU32::new(1000).unwrap(), max: Limits::HTTP.concurrency, ..Self::DETERMINISTIC };
}

impl Default for InstancePolicy {
    fn default() -> Self {
        Self::DETERMINISTIC
    }
}
