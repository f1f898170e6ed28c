//! An aggregate that does whatever harm a command asks for, so that the suite can show whom it hurts.

use ebbtide::prelude::*;
use std::hint::black_box;

/// How often it has behaved.
#[derive(Default, Serialize, Deserialize)]
pub struct Hostile {
    behaved: u64,
}

/// What it can be asked.
#[derive(Serialize, Deserialize)]
pub enum Command {
    /// Does no harm.
    Behave,
    /// Loops for ever.
    Spin,
    /// Allocates without end.
    Allocate,
    /// Panics.
    Trap,
    /// Calls itself without end.
    Overflow,
    /// Decides this many events.
    Flood {
        /// How many.
        events: u64,
    },
    /// Decides one event with this many bytes.
    Bloat {
        /// How many.
        bytes: usize,
    },
    /// Prints this many bytes, and then behaves.
    Print {
        /// How many.
        bytes: u64,
    },
    /// Decides an event that the manifest does not declare.
    Surprise,
    /// Decides an event whose data is not what the manifest declares.
    Lie,
    /// Sleeps, which a module that has no clock but its command's can't.
    Sleep,
}

/// What can happen.
#[derive(Serialize, Deserialize)]
pub enum HostileEvent {
    /// It did no harm.
    Behaved {
        /// How often by now.
        times: u64,
    },
    /// Large.
    Bloated {
        /// The load.
        load: String,
    },
    /// Not in the manifest.
    Surprised,
    /// The manifest wants `truth` to be a boolean.
    Told {
        /// Never one.
        truth: String,
    },
}

impl Aggregate for Hostile {
    type Command = Command;
    type Event = HostileEvent;
    type Refusal = Refusal;

    fn decide(&self, command: Command, _: &Context) -> Result<Vec<HostileEvent>, Refusal> {
        Ok(match command {
            Command::Behave => self.behave(1),
            Command::Spin => loop {
                black_box(self.behaved);
            },
            Command::Allocate => {
                let mut hoard: Vec<Vec<u8>> = Vec::new();
                loop {
                    hoard.push(black_box(vec![1; 1 << 20]));
                }
            }
            Command::Trap => panic!("as I was told"),
            Command::Overflow => vec![HostileEvent::Behaved { times: descend(0) }],
            Command::Flood { events } => self.behave(events),
            Command::Bloat { bytes } => vec![HostileEvent::Bloated { load: "x".repeat(bytes) }],
            Command::Print { bytes } => {
                let line = "spam ".repeat(200);
                for _ in 0..bytes / line.len() as u64 {
                    println!("{line}");
                }
                self.behave(1)
            }
            Command::Surprise => vec![HostileEvent::Surprised],
            Command::Lie => vec![HostileEvent::Told { truth: "no".into() }],
            Command::Sleep => {
                std::thread::sleep(std::time::Duration::from_secs(3600));
                self.behave(1)
            }
        })
    }

    fn apply(&mut self, event: HostileEvent) {
        if let HostileEvent::Behaved { times } = event {
            self.behaved = times;
        }
    }
}

impl Hostile {
    fn behave(&self, times: u64) -> Vec<HostileEvent> {
        (1..=times).map(|more| HostileEvent::Behaved { times: self.behaved + more }).collect()
    }
}

#[expect(unconditional_recursion, reason = "that is what it is for")]
fn descend(depth: u64) -> u64 {
    let here = black_box([depth; 64]);
    descend(here[0] + 1) + black_box(here)[63]
}

ebbtide::export_aggregate!(Hostile);
