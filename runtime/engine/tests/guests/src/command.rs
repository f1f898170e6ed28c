use std::cell::RefCell;
use std::fmt::Write as _;
use std::hint::black_box;

wit_bindgen::generate!({ path: "../../../../wit", world: "command" });

use exports::ebbtide::functions::aggregates::{
    Aggregate, Command, Guest, GuestAggregate, NewEvent, PastEvent, Refusal,
};

struct Module;

export!(Module);

impl Guest for Module {
    type Aggregate = Counter;
}

/// Counts the events it has seen.
struct Counter {
    key: String,
    events: RefCell<u64>,
}

impl Drop for Counter {
    fn drop(&mut self) {
        assert_ne!(self.key, "trap-on-drop", "dropped");
    }
}

impl GuestAggregate for Counter {
    fn new(key: String) -> Self {
        if key == "trap-on-open" {
            panic!("opened {key}");
        }
        Self { key, events: RefCell::new(0) }
    }

    fn restore(key: String, snapshot: Vec<u8>) -> Result<Aggregate, String> {
        let events =
            <[u8; 8]>::try_from(snapshot).map_err(|bytes| format!("{} bytes, not 8", bytes.len()))?;
        Ok(Aggregate::new(Self { key, events: RefCell::new(u64::from_le_bytes(events)) }))
    }

    fn apply(&self, events: Vec<PastEvent>) {
        *self.events.borrow_mut() += events.len() as u64;
    }

    fn decide(&self, command: Command) -> Result<Vec<NewEvent>, Refusal> {
        let size = || String::from_utf8_lossy(&command.data).parse::<usize>().unwrap_or(0);
        match command.name.as_str() {
            "count" => Ok(vec![event(format!("{}={}", self.key, self.events.borrow()))]),
            "echo" => Ok(vec![NewEvent { event_type: "Echoed".into(), data: command.data }]),
            "refuse" => {
                Err(Refusal { code: "no".into(), message: "never".into(), details: Some(b"{}".to_vec()) })
            }
            "loop" => loop {
                black_box(());
            },
            "allocate" => {
                let mut all = Vec::new();
                loop {
                    all.push(black_box(vec![1_u8; 1 << 20]));
                }
            }
            "trap" => panic!("asked to, with {} bytes", command.data.len()),
            "unreachable" => core::arch::wasm32::unreachable(),
            "overflow" => Ok(vec![event(deep(1).to_string())]),
            "overflow-wide" => Ok(vec![event(deep_and_wide(1).to_string())]),
            "exit" => std::process::exit(3),
            "sleep" => {
                std::thread::sleep(std::time::Duration::from_secs(1));
                Ok(vec![])
            }
            "events" => Ok((0..size()).map(|_| event(String::new())).collect()),
            "bytes" => Ok(vec![NewEvent { event_type: "Large".into(), data: vec![b'x'; size()] }]),
            "print" => {
                let line = "x".repeat(64 << 10);
                for _ in 0..size() / line.len() {
                    println!("{line}");
                }
                Ok(vec![])
            }
            "eprint" => {
                eprintln!("to stderr");
                ebbtide::functions::log::write(ebbtide::functions::log::Level::Info, "to the log");
                Ok(vec![])
            }
            // Everything that could differ between two machines, or two instances.
            "ambient" => {
                let mut seen = String::new();
                let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
                let (first, second) = (std::time::Instant::now(), std::time::Instant::now());
                write!(seen, "{} ", random()).unwrap();
                write!(seen, "{:?} {:?} ", now, second - first).unwrap();
                write!(
                    seen,
                    "{:?} {:?} ",
                    std::env::args().collect::<Vec<_>>(),
                    std::env::vars().collect::<Vec<_>>()
                )
                .unwrap();
                write!(seen, "{:?} {:?}", std::fs::read("/etc/hostname").is_err(), std::env::current_dir())
                    .unwrap();
                Ok(vec![event(seen)])
            }
            #[cfg(feature = "sockets")]
            "connect" => Ok(vec![event(format!("{:?}", std::net::TcpStream::connect("127.0.0.1:80")))]),
            other => panic!("unknown command {other}"),
        }
    }

    fn snapshot(&self) -> Option<Vec<u8>> {
        Some(self.events.borrow().to_le_bytes().to_vec())
    }
}

fn event(data: String) -> NewEvent {
    NewEvent { event_type: "Counted".into(), data: data.into_bytes() }
}

/// Made of what std seeds its maps with. Kept, as std keeps its seed: a new `RandomState` differs from the last.
fn random() -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    std::thread_local!(static SEED: u64 = RandomState::new().hash_one(1));
    SEED.with(|seed| *seed)
}

/// Small frames: the machine's stack ends first.
#[expect(unconditional_recursion, reason = "that is the point")]
fn deep(depth: u64) -> u64 {
    black_box(depth) + deep(depth + 1)
}

/// Large frames: the stack in linear memory ends first.
#[expect(unconditional_recursion, reason = "that is the point")]
fn deep_and_wide(depth: u64) -> u64 {
    let frame = black_box([depth; 512]);
    deep_and_wide(depth + 1) + frame[depth as usize % 512]
}
