//! Measures Ebbtide beside native baselines, in one run. `scripts/bench` builds and runs it.
//!
//!     ebb-bench [--pin] WHAT EBB
//!
//! where WHAT is `log`, `appends`, `open [EVENTS]`, `commands`, `functions WASMTIME`, `cold`, `fairness`,
//! `projections [EVENTS]`, `kafka BROKERS [PART]`, `year FILE.ndjson`, `empty`, or `all`.
//!
//! Rates and percentiles are medians of three runs, of what is compared in turn; the rows of `open`, `year` and `empty` are of one. What is
//! compared does the same work as durably: a group is one fsync, and nobody is answered before it.

mod cold;
mod commands;
mod cores;
mod figures;
mod functions;
mod http;
mod kafka;
mod log;
mod node;
mod projections;
mod subscriber;
mod year;

use std::time::Duration;

/// How long one measurement runs.
pub const SPAN: Duration = Duration::from_secs(4);
/// Measurements of one figure.
pub const RUNS: usize = 3;
const USAGE: &str = "usage: ebb-bench [--pin] log | appends | open [EVENTS] | commands | functions WASMTIME | cold | fairness | projections [EVENTS] | kafka BROKERS [PART] | year FILE.ndjson | empty | all EBB";

fn main() {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "--pin") {
        arguments.remove(0);
        cores::pin();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let number = |text: &str| text.parse().expect("a number");
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        // What the measurements below start.
        ["write", folder, events] => return log::write(&runtime, folder.as_ref(), number(events)),
        ["hello"] => return runtime.block_on(functions::native()),
        ["native-kafka", what, folder, brokers, topic] => {
            return runtime.block_on(kafka::native::serve(what, folder, brokers, topic));
        }
        ["native", folder] => return runtime.block_on(commands::native(folder.as_ref())),
        what => {
            machine();
            match what {
                ["log", _] => log::all(&runtime),
                ["appends", _] => log::appends(&runtime),
                ["open", _] => log::open_again(&runtime, 10_000_000),
                ["open", events, _] => log::open_again(&runtime, number(events)),
                ["commands", ebb] => runtime.block_on(commands::all(ebb)),
                ["functions", wasmtime, ebb] => runtime.block_on(functions::throughput(ebb, wasmtime)),
                ["cold", ebb] => runtime.block_on(cold::all(ebb)),
                ["fairness", ebb] => runtime.block_on(functions::fairness(ebb)),
                ["projections", ebb] => runtime.block_on(projections::all(ebb, 1_000_000)),
                ["projections", events, ebb] => runtime.block_on(projections::all(ebb, number(events))),
                ["kafka", brokers, ebb] => runtime.block_on(kafka::all(ebb, brokers, None)),
                ["kafka", brokers, part, ebb] => runtime.block_on(kafka::all(ebb, brokers, Some(part))),
                ["year", commands, ebb] => runtime.block_on(year::all(ebb, commands)),
                ["empty", ebb] => runtime.block_on(empty(ebb)),
                ["all", ebb] => {
                    log::all(&runtime);
                    log::open_again(&runtime, 1_000_000);
                    runtime.block_on(async {
                        commands::all(ebb).await;
                        projections::all(ebb, 1_000_000).await;
                        empty(ebb).await;
                    });
                }
                _ => eprintln!("{USAGE}"),
            }
        }
    }
    machine();
}

/// What else the machine does.
fn machine() {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.rsplitn(3, ' ').last().unwrap_or_default().to_owned();
    println!(
        "fdatasync of 4 KiB: p50 {:.0} us; load average {load}",
        log::fdatasync_p50().as_secs_f64() * 1e6
    );
}

/// What a node costs that has nothing to do.
async fn empty(ebb: &str) {
    let folder = tempfile::tempdir_in(".").expect("a folder");
    let server = node::Server::ebb(ebb, folder.path()).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let note = format!("ready after {:.0} ms", server.ready.as_secs_f64() * 1e3);
    println!("\nAn empty node");
    row("memory", server.memory("VmRSS"), "MiB", &note);
    let before = cpu_seconds(server.pid);
    tokio::time::sleep(Duration::from_secs(10)).await;
    row("CPU in ten seconds", (cpu_seconds(server.pid) - before) * 1e3, "ms", "");
    server.stop().await;
}

/// The median of several runs.
pub fn median(mut runs: Vec<f64>) -> f64 {
    runs.sort_by(f64::total_cmp);
    runs[runs.len() / 2]
}

/// One line of the table.
pub fn row(what: &str, value: f64, unit: &str, note: &str) {
    println!("{what:<58} {value:>12.1} {unit:<14} {note}");
}

/// CPU time that a process has used, all of its threads, in seconds.
pub fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    // Fields 14 and 15 of proc(5), counted behind the name; a tick is 10 ms on Linux.
    (ticks(11) + ticks(12)) / 100.0
}
