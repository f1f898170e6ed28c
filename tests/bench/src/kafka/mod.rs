//! Kafka both ways, on a real broker: events out, records in, how long that takes, and what wakes up for it; each beside a
//! program that does the same without wasm ([`native`]).

mod broker;
mod latency;
pub mod native;
mod throughput;

use crate::cpu_seconds;
use crate::node::Server;
use broker::Broker;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often it is asked how far something is.
const ASK: Duration = Duration::from_millis(10);
/// Nothing that is measured takes so long.
const PATIENCE: Duration = Duration::from_secs(180);

/// All of it, or a part: `relay`, `projections`, `commands`, `latency`, `waking`.
pub async fn all(ebb: &str, brokers: &str, part: Option<&str>) {
    let bench = Bench { ebb: ebb.to_owned(), broker: Broker::new(brokers) };
    let wanted = |name: &str| part.is_none_or(|part| part == name);
    if wanted("relay") {
        throughput::relay(&bench).await;
    }
    if wanted("projections") {
        throughput::projections(&bench).await;
    }
    if wanted("commands") {
        throughput::commands(&bench).await;
    }
    if wanted("latency") {
        latency::visible(&bench).await;
        latency::chain(&bench).await;
    }
    if wanted("waking") {
        latency::waking(&bench).await;
    }
}

struct Bench {
    ebb: String,
    broker: Broker,
}

impl Bench {
    async fn node(&self, data: &Path) -> Server {
        // What is idle for a second is cold: no run is so idle while it is measured.
        let env = [("EBB_KAFKA", self.broker.brokers()), ("EBB_FUNCTIONS_IDLE", "1s")];
        Server::ebb_with(&self.ebb, data, &env).await
    }

    async fn native(&self, what: &str, folder: &Path, topic: &str) -> Server {
        let myself = std::env::current_exe().expect("a path");
        let folder = folder.to_str().expect("UTF-8");
        let arguments = ["native-kafka", what, folder, self.broker.brokers(), topic];
        Server::start(myself.to_str().expect("UTF-8"), &arguments).await
    }
}

/// How far something is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    None,
    Some,
    Done,
}

impl Progress {
    fn of(done: u64, total: u64) -> Self {
        match done {
            0 => Self::None,
            done if done < total => Self::Some,
            _ => Self::Done,
        }
    }
}

/// Units a second, and microseconds of the server's CPU for each: from the first that was seen to the last.
struct Pace {
    rate: f64,
    cpu: f64,
}

impl Pace {
    async fn of(server: &Server, total: u64, mut progress: impl AsyncFnMut() -> Progress) -> Self {
        let asked = Instant::now();
        let mut began = None;
        loop {
            let now = progress().await;
            if now != Progress::None && began.is_none() {
                began = Some((Instant::now(), cpu_seconds(server.pid)));
            }
            if let (Progress::Done, Some((began, cpu))) = (now, began) {
                let cpu = cpu_seconds(server.pid) - cpu;
                let took = began.elapsed().as_secs_f64();
                return Self { rate: total as f64 / took, cpu: cpu * 1e6 / total as f64 };
            }
            assert!(asked.elapsed() < PATIENCE, "it does not get there");
            tokio::time::sleep(ASK).await;
        }
    }
}

/// An app's folder with this manifest.
fn app(folder: &Path, name: &str, manifest: &str) -> PathBuf {
    let app = folder.join(name);
    std::fs::create_dir_all(&app).expect("a folder");
    for module in ["account", "balances", "tally"] {
        std::fs::copy(crate::functions::module(module), app.join(module).with_extension("wasm"))
            .expect("a module");
    }
    std::fs::write(app.join("ebb.toml"), manifest).expect("a file");
    app
}

/// An account, as `bank` has it, with this in its entry.
fn account(app: &str, source: &str) -> String {
    format!(
        r#"[app]
{app}

[aggregate.account]
module = "account.wasm"
commands = {{ open = {{}}, deposit = {{}}, withdraw = {{}}, close = {{}} }}
events = {{ Opened = {{}}, Deposited = {{}}, Withdrawn = {{}}, Closed = {{}} }}
{source}
"#
    )
}

/// A group that has consumed nothing, and nobody is a member of.
fn group() -> String {
    format!("bench-{}", uuid::Uuid::now_v7().simple())
}

/// A counter for each account, over records of a topic.
fn tallies(name: &str, topic: &str, via: &str) -> String {
    let group = group();
    format!(
        r#"[app]
name = "{name}"
relay = "off"

[model.tallies]
key = "account"
columns = {{ account = "text", amount = "integer" }}

[projection.tallies]
module = "tally.wasm"
models = ["tallies"]
source = {{ topics = ["{topic}"], group = "{group}", via = "{via}" }}
instances = {{ idle = "1s" }}
"#
    )
}
