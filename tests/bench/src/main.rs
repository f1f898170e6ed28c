//! Measures Ebbtide beside native baselines, in one run. `scripts/bench` builds and runs it.
//!
//!     ebb-bench log | appends | open [EVENTS] | commands EBB | all EBB
//!
//! Rates are medians of three runs; percentiles and CPU are of the last, and the rows `alone` and `open` of one. What is compared does the same work as durably: a group is one fsync, and
//! nobody is answered before it.

mod commands;
mod http;
mod log;

use std::time::Duration;

/// How long one measurement runs.
pub const SPAN: Duration = Duration::from_secs(4);
/// Measurements of one figure.
pub const RUNS: usize = 3;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    if arguments.first().is_none_or(|first| first != "write") {
        println!("disk: fdatasync of 4 KiB, p50 {:.0} us", log::fdatasync_p50().as_secs_f64() * 1e6);
    }
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["log"] => log::all(&runtime),
        ["appends"] => log::appends(&runtime),
        ["open"] => log::open_again(&runtime, 10_000_000),
        ["open", events] => log::open_again(&runtime, events.parse().expect("a number")),
        ["write", folder, events] => {
            log::write(&runtime, folder.as_ref(), events.parse().expect("a number"));
        }
        ["commands", ebb] => runtime.block_on(commands::all(ebb)),
        ["all", ebb] => {
            log::all(&runtime);
            log::open_again(&runtime, 1_000_000);
            runtime.block_on(commands::all(ebb));
        }
        _ => eprintln!("usage: ebb-bench log | appends | open [EVENTS] | commands EBB | all EBB"),
    }
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
