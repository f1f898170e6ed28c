//! Who runs where. Without `--pin` all share all cores. With it, the load generator has the upper half of them and servers the
//! lower half, so that neither can take what the other is measured with. And the load generator does not sleep then: on one
//! machine it would have the server wake it, which in a virtual machine takes as long as a short request and which no
//! caller on another machine has it do.

use rustix::thread::{CpuSet, sched_setaffinity};
use std::sync::OnceLock;
use tokio::process::Command;
use tokio::task::JoinHandle;

static SERVERS: OnceLock<String> = OnceLock::new();

/// Leaves the lower half of the cores to servers. Before any thread is started: threads inherit it.
pub fn pin() {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    assert!(cores > 1, "--pin needs two cores");
    let half = cores / 2;
    let mut upper = CpuSet::new();
    (half..cores).for_each(|core| upper.set(core));
    sched_setaffinity(None, &upper).expect("affinity");
    SERVERS.get_or_init(|| format!("0-{}", half - 1));
    println!("pinned: servers on cores 0 to {}, the load generator on {half} to {}", half - 1, cores - 1);
}

/// See [`awake`].
pub struct Awake(JoinHandle<()>);

impl Drop for Awake {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Keeps a thread of the load generator awake for as long as the result lives, if it has cores of its own.
pub fn awake() -> Option<Awake> {
    let spin = async {
        loop {
            // Sockets are looked at each time.
            tokio::task::yield_now().await;
        }
    };
    SERVERS.get().map(|_| Awake(tokio::spawn(spin)))
}

/// A command that runs where servers run.
pub fn server_command(program: &str) -> Command {
    match SERVERS.get() {
        Some(cores) => {
            // util-linux's, so that the child has its cores before its first thread.
            let mut command = Command::new("taskset");
            command.args(["-c", cores, program]);
            command
        }
        None => Command::new(program),
    }
}
