//! `ebb usage`: what functions used since the node began.

use crate::args::{Usage as Args, UsageBy};
use crate::client::{Path, Server};
use crate::failure::{Exit, Failure};
use crate::output::{Align, Grouped, Output, Palette, Size, Table};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;

#[derive(Deserialize)]
struct Usage {
    since: String,
    apps: Vec<Sum>,
    total: Sum,
    functions: Vec<Function>,
}

#[derive(Deserialize)]
struct Sum {
    app: Option<String>,
    functions: u64,
    invocations: u64,
    throttled: u64,
    failed: u64,
    cold_starts: u64,
    billed_millis: u64,
    cpu_micros: u64,
    gib_seconds: f64,
}

#[derive(Deserialize)]
struct Function {
    app: String,
    function: String,
    invocations: u64,
    throttled: u64,
    errors: BTreeMap<String, u64>,
    starts: Starts,
    billed_millis: u64,
    cpu_micros: u64,
    gib_seconds: f64,
    memory_peak_bytes: u64,
    p50_micros: Option<u64>,
    p99_micros: Option<u64>,
}

#[derive(Deserialize)]
struct Starts {
    loaded: u64,
    cold: u64,
}

/// Asks, and shows.
pub(crate) async fn run(output: Output, args: Args) -> Result<Exit, Failure> {
    let server = Server::control(&args.plane)?;
    let path = Path::new().segment("usage");
    let path = match &args.app {
        Some(app) => path.parameter("app", app),
        None => path,
    };
    let answer: Value = server.json(server.get(&path)).await?;
    if output.json {
        output.json(&answer)?;
        return Ok(Exit::Done);
    }
    let usage = Usage::deserialize(answer)
        .map_err(|error| Failure::new(format!("the node's answer is not understood: {error}")))?;
    if usage.functions.is_empty() {
        output.line("no function was called since the node began")?;
        return Ok(Exit::Done);
    }
    output.note(format_args!("since {}", usage.since));
    output.line(render(&usage, args.by, output.style()))?;
    Ok(Exit::Done)
}

fn render(usage: &Usage, by: UsageBy, style: Palette) -> String {
    match by {
        UsageBy::Function => functions(usage).render(style),
        UsageBy::App => apps(usage).render(style),
    }
}

fn functions(usage: &Usage) -> Table {
    use Align::{Left, Right};
    let mut table = Table::new([
        ("function", Left),
        ("app", Left),
        ("calls", Right),
        ("errors", Right),
        ("throttled", Right),
        ("cold", Right),
        ("p50", Right),
        ("p99", Right),
        ("memory", Right),
        ("CPU", Right),
        ("billed", Right),
        ("GiB s", Right),
    ]);
    for used in &usage.functions {
        table.row([
            used.function.clone(),
            used.app.clone(),
            Grouped(used.invocations).to_string(),
            Grouped(used.errors.values().sum()).to_string(),
            Grouped(used.throttled).to_string(),
            Grouped(used.starts.loaded + used.starts.cold).to_string(),
            used.p50_micros.map_or_else(String::new, time),
            used.p99_micros.map_or_else(String::new, time),
            Size(used.memory_peak_bytes).to_string(),
            time(used.cpu_micros),
            time(used.billed_millis * 1000),
            format!("{:.2}", used.gib_seconds),
        ]);
    }
    table
}

fn apps(usage: &Usage) -> Table {
    use Align::{Left, Right};
    let mut table = Table::new([
        ("app", Left),
        ("functions", Right),
        ("calls", Right),
        ("errors", Right),
        ("throttled", Right),
        ("cold", Right),
        ("CPU", Right),
        ("billed", Right),
        ("GiB s", Right),
    ]);
    for sum in usage.apps.iter().chain([&usage.total]) {
        table.row([
            sum.app.clone().unwrap_or_else(|| "(all)".to_owned()),
            Grouped(sum.functions).to_string(),
            Grouped(sum.invocations).to_string(),
            Grouped(sum.failed).to_string(),
            Grouped(sum.throttled).to_string(),
            Grouped(sum.cold_starts).to_string(),
            time(sum.cpu_micros),
            time(sum.billed_millis * 1000),
            format!("{:.2}", sum.gib_seconds),
        ]);
    }
    table
}

/// A time for people, from microseconds on.
fn time(micros: u64) -> String {
    match micros {
        0..1000 => format!("{micros} µs"),
        1000..1_000_000 => format!("{:.1} ms", micros as f64 / 1e3),
        _ => crate::output::Elapsed(Duration::from_micros(micros)).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn usage_is_a_table_by_function_or_by_app() {
        let usage = Usage::deserialize(json!({
            "since": "2013-01-01T07:00:00.000001Z",
            "functions": [{
                "app": "bank", "function": "aggregate.account", "invocations": 12345, "throttled": 2,
                "errors": { "trapped": 1, "out_of_cpu": 2 }, "starts": { "warm": 12300, "loaded": 44, "cold": 1 },
                "billed_millis": 12400, "cpu_micros": 345_678, "gib_seconds": 0.0134,
                "memory_peak_bytes": 1_179_648, "p50_micros": 210, "p99_micros": 3100
            }],
            "apps": [{
                "app": "bank", "functions": 1, "invocations": 12345, "throttled": 2, "failed": 3,
                "cold_starts": 45, "billed_millis": 12400, "cpu_micros": 345_678, "gib_seconds": 0.0134
            }],
            "total": {
                "functions": 1, "invocations": 12345, "throttled": 2, "failed": 3,
                "cold_starts": 45, "billed_millis": 12400, "cpu_micros": 345_678, "gib_seconds": 0.0134
            }
        }))
        .unwrap();
        insta::assert_snapshot!(render(&usage, UsageBy::Function, Palette(false)), @r"
        function           app    calls  errors  throttled  cold     p50     p99   memory       CPU  billed  GiB s
        aggregate.account  bank  12,345       3          2    45  210 µs  3.1 ms  1.1 MiB  345.7 ms  12.4 s   0.01
        ");
        insta::assert_snapshot!(render(&usage, UsageBy::App, Palette(false)), @r"
        app    functions   calls  errors  throttled  cold       CPU  billed  GiB s
        bank           1  12,345       3          2    45  345.7 ms  12.4 s   0.01
        (all)          1  12,345       3          2    45  345.7 ms  12.4 s   0.01
        ");
    }
}
