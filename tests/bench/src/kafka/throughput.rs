//! Units a second: events published, records projected, commands carried out.

use super::broker::{PARTITIONS, Sent};
use super::{Bench, Pace, Progress, account, app, group, tallies};
use crate::http::Client;
use crate::node::Server;
use crate::{RUNS, log, median, row};

const EVENTS: u64 = 300_000;
const RECORDS: u64 = 300_000;
const COMMANDS: u64 = 100_000;
const ACCOUNTS: u64 = 4096;

/// How projections take records, in a node and in the programs that it is set against.
pub const VIAS: [&str; 2] = ["log", "direct"];

/// A line of the table, and the one that it is set against.
struct Line {
    what: String,
    runs: Vec<Pace>,
    against: Option<usize>,
}

impl Line {
    fn new(what: &str, against: Option<usize>) -> Self {
        Self { what: what.to_owned(), runs: Vec::new(), against }
    }
}

fn show(unit: &str, lines: &[Line]) {
    for line in lines {
        let against = line.against.map_or_else(String::new, |other| {
            let other = &lines[other];
            let ratio = |value: fn(&Pace) -> f64| {
                median(
                    line.runs.iter().zip(&other.runs).map(|(run, other)| value(run) / value(other)).collect(),
                )
            };
            format!(
                "{:.2} x `{}`, {:.2} x its CPU; ",
                ratio(|pace| pace.rate),
                other.what,
                ratio(|pace| pace.cpu)
            )
        });
        let middle = |value: fn(&Pace) -> f64| median(line.runs.iter().map(value).collect());
        let note = format!("{against}{:.1} us CPU of the server each", middle(|pace| pace.cpu));
        row(&line.what, middle(|pace| pace.rate), unit, &note);
    }
}

/// The log to topics.
pub async fn relay(bench: &Bench) {
    println!(
        "\nRelay: {EVENTS} events of 300 B of {ACCOUNTS} accounts that are in the log, until the broker has them"
    );
    let mut lines = [
        Line::new("native, at least once", None),
        Line::new("ebb, at least once", Some(0)),
        Line::new("native, transactional", None),
        Line::new("ebb, transactional", Some(2)),
    ];
    let folder = tempfile::tempdir_in(".").expect("a folder");
    let broker = &bench.broker;
    broker.delete(&["bench.account", "bench.relay"]).await;
    let modes = [("relay", ""), ("relay-transactional", "relay = \"transactional\"")];
    for (index, (_, relay)) in modes.iter().enumerate() {
        let data = folder.path().join(index.to_string());
        let node = bench.node(&data).await;
        let app = app(folder.path(), "bench", &account(&format!("name = \"bench\"\n{relay}"), ""));
        node.deploy(&bench.ebb, &app).await;
        node.kill().await;
        log::fill(&data, EVENTS).await;
    }
    for _ in 0..RUNS {
        for (index, (program, _)) in modes.iter().enumerate() {
            let data = folder.path().join(index.to_string());
            let topic = broker.topic("native").await;
            broker.make(&format!("{topic}.mark")).await;
            let native = bench.native(program, &data, &topic).await;
            let done = async || Progress::of(broker.count(&topic).await, EVENTS);
            lines[index * 2].runs.push(Pace::of(&native, EVENTS, done).await);
            native.kill().await;
            broker.delete(&[&topic, "bench.account", "bench.relay"]).await;

            let node = bench.node(&data).await;
            let done = async || Progress::of(broker.count("bench.account").await, EVENTS);
            lines[index * 2 + 1].runs.push(Pace::of(&node, EVENTS, done).await);
            node.kill().await;
            broker.delete(&["bench.account", "bench.relay"]).await;
        }
    }
    show("events/s", &lines);
}

/// Topics to rows.
pub async fn projections(bench: &Bench) {
    println!(
        "\nTopic projection: {RECORDS} records of {ACCOUNTS} accounts, a counter for each, in batches of up to 500"
    );
    let topic = bench.broker.topic("amounts").await;
    let accounts: Vec<String> = (0..ACCOUNTS).map(|account| account.to_string()).collect();
    let values: Vec<String> =
        accounts.iter().map(|account| format!("{{\"account\":\"{account}\",\"amount\":1}}")).collect();
    let many = (0..RECORDS as usize).map(|number| {
        let account = number % ACCOUNTS as usize;
        Sent { key: &accounts[account], kind: "Deposited", value: &values[account], partition: None }
    });
    bench.broker.produce(&topic, many);
    // The last of each partition.
    let last: Vec<_> = (0..PARTITIONS)
        .map(|partition| (partition, format!("{{\"account\":\"last-{partition}\",\"amount\":1}}")))
        .collect();
    let ends = last.iter().map(|(partition, value)| Sent {
        key: "last",
        kind: "Deposited",
        value,
        partition: Some(*partition),
    });
    bench.broker.produce(&topic, ends);

    let mut lines: Vec<Line> = Vec::new();
    for (index, via) in VIAS.iter().enumerate() {
        lines.push(Line::new(&format!("native, via = \"{via}\""), None));
        lines.push(Line::new(&format!("ebb, via = \"{via}\""), Some(index * 2)));
    }
    for _ in 0..RUNS {
        for (index, via) in VIAS.iter().enumerate() {
            let folder = tempfile::tempdir_in(".").expect("a folder");
            let native = bench.native(via, &folder.path().join("native"), &topic).await;
            lines[index * 2].runs.push(native_pace(&native, RECORDS + PARTITIONS as u64).await);
            native.kill().await;
            let node = bench.node(&folder.path().join("ebb")).await;
            let app = app(folder.path(), "tally", &tallies("tally", &topic, via));
            node.deploy(&bench.ebb, &app).await;
            lines[index * 2 + 1].runs.push(tallied(&node).await);
            let mut client = Client::connect(&node.address).await;
            let some = client.json("/models/tallies/7").await;
            let expected = RECORDS / ACCOUNTS + u64::from(7 < RECORDS % ACCOUNTS);
            assert_eq!(some["amount"], expected, "each record counts once");
            node.kill().await;
        }
    }
    show("records/s", &lines);
}

/// From the first record that is in the log, or in a row, to the last row of every partition.
async fn tallied(node: &Server) -> Pace {
    let mut control = Client::connect(&node.control).await;
    let mut client = Client::connect(&node.address).await;
    let mut left = PARTITIONS;
    let progress = async || {
        while left > 0 {
            let row = client.request("GET", &format!("/models/tallies/last-{}", left - 1), "").await;
            if row.status != 200 {
                let position = control.json("/apps/tally").await["position"].as_u64();
                let none = position == Some(0)
                    && client
                        .request("GET", "/models/tallies?limit=1", "")
                        .await
                        .body
                        .contains("\"items\":[]");
                return if none { Progress::None } else { Progress::Some };
            }
            left -= 1;
        }
        Progress::Done
    };
    Pace::of(node, RECORDS, progress).await
}

async fn native_pace(native: &Server, total: u64) -> Pace {
    let mut client = Client::connect(&native.address).await;
    let done = async || {
        Progress::of(client.request("GET", "/done", "").await.body.parse().expect("a number"), total)
    };
    Pace::of(native, total, done).await
}

/// Topics to decisions.
pub async fn commands(bench: &Bench) {
    println!(
        "\nCommands from a topic: {ACCOUNTS} accounts opened, then {COMMANDS} deposits on them, until the last event is durable"
    );
    let topic = bench.broker.topic("commands").await;
    let accounts: Vec<String> = (0..ACCOUNTS).map(|account| account.to_string()).collect();
    let opens = accounts.iter().map(|key| Sent {
        key,
        kind: "open",
        value: "{\"owner\":\"bench\"}",
        partition: None,
    });
    bench.broker.produce(&topic, opens);
    let deposits = (0..COMMANDS as usize).map(|number| Sent {
        key: &accounts[number % ACCOUNTS as usize],
        kind: "deposit",
        value: "{\"amount\":1}",
        partition: None,
    });
    bench.broker.produce(&topic, deposits);
    let total = COMMANDS + ACCOUNTS;
    let mut lines = [Line::new("native", None), Line::new("ebb, wasm command module", Some(0))];
    for _ in 0..RUNS {
        let folder = tempfile::tempdir_in(".").expect("a folder");
        let native = bench.native("commands", &folder.path().join("native"), &topic).await;
        lines[0].runs.push(native_pace(&native, total).await);
        native.kill().await;

        let node = bench.node(&folder.path().join("ebb")).await;
        let source = format!("source = {{ topics = [\"{topic}\"], group = \"{}\" }}", group());
        let app = app(folder.path(), "bank", &account("name = \"bank\"\nrelay = \"off\"", &source));
        node.deploy(&bench.ebb, &app).await;
        let mut control = Client::connect(&node.control).await;
        // Each record is an event, and so is what each leads to.
        let done = async || {
            Progress::of(control.json("/apps/bank").await["position"].as_u64().unwrap_or(0), 2 * total)
        };
        lines[1].runs.push(Pace::of(&node, total, done).await);
        node.kill().await;
    }
    show("commands/s", &lines);
}
