//! How long until a row is there: after a command's answer, after a record, and where the module has to wake up for it.

use super::broker::Sent;
use super::{Bench, account, app, tallies};
use crate::http::{Client, Times};
use crate::node::Server;
use crate::row;
use std::time::{Duration, Instant};

const ROWS: usize = 3000;
const CHAINS: usize = 500;
const WAKES: usize = 20;
/// How often it is asked whether a row is there, where nothing tells.
const ASK: Duration = Duration::from_micros(500);
const PATIENCE: Duration = Duration::from_secs(30);

fn show(what: &str, times: &mut Times, against: Option<&mut Times>) {
    let mut at = |percent| times.percentile(percent).as_secs_f64() * 1e3;
    let (p50, p90, p99) = (at(50.0), at(90.0), at(99.0));
    let against = against.map_or_else(String::new, |other| {
        let mut native = |percent| other.percentile(percent).as_secs_f64() * 1e3;
        format!("; {:.2} x native at p50, {:.2} x at p99", native(50.0) / p50, native(99.0) / p99)
    });
    row(what, p50, "ms p50", &format!("p90 {p90:.2} ms, p99 {p99:.2} ms{against}"));
}

async fn command(client: &mut Client, id: &str, command: &str, data: &str) -> u64 {
    let path = format!("/apps/bank/commands/account/{id}/{command}");
    let answer = client.request("POST", &path, data).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let answer: serde_json::Value = serde_json::from_str(&answer.body).expect("JSON");
    answer["position"].as_u64().expect("a position")
}

/// From the answer to a command to the answer that has its row.
pub async fn visible(bench: &Bench) {
    println!("\nA command's answer, until its row is read: {ROWS} commands one at a time, `Ebb-After`");
    let folder = tempfile::tempdir_in(".").expect("a folder");
    let native = bench.native("rows", &folder.path().join("native"), "none").await;
    let mut baseline = shown(&native).await;
    show("native", &mut baseline, None);
    native.kill().await;
    for (what, batch) in [("ebb", ""), ("ebb, `max-wait = \"0ms\"`", "batch = { max-wait = \"0ms\" }")] {
        let node = bench.node(&folder.path().join(batch.len().to_string())).await;
        let projection = format!(
            r#"
[model.balances]
key = "account"
columns = {{ account = "text", owner = "text", balance = "integer" }}

[projection.balances]
module = "balances.wasm"
models = ["balances"]
source = {{ aggregates = ["account"] }}
{batch}
"#
        );
        let manifest = account("name = \"bank\"\nrelay = \"off\"", &projection);
        node.deploy(&bench.ebb, &app(folder.path(), "bank", &manifest)).await;
        let mut ours = shown(&node).await;
        show(what, &mut ours, Some(&mut baseline));
        node.kill().await;
    }
}

async fn shown(server: &Server) -> Times {
    let mut client = Client::connect(&server.address).await;
    let mut times = Times::default();
    for id in 0..64 {
        command(&mut client, &id.to_string(), "open", "{\"owner\":\"bench\"}").await;
    }
    for number in 0..ROWS {
        let id = (number % 64).to_string();
        let position = command(&mut client, &id, "deposit", "{\"amount\":1}").await;
        let acked = Instant::now();
        let path = format!("/apps/bank/models/balances/{id}");
        let answer = client.request_with("GET", &path, &format!("ebb-after: {position}\r\n"), "").await;
        times.push(acked.elapsed());
        assert_eq!(answer.status, 200, "{}", answer.body);
    }
    times
}

/// Asks for a row until it is there.
async fn until_there(client: &mut Client, path: &str) {
    let asked = Instant::now();
    while client.request("GET", path, "").await.status != 200 {
        assert!(asked.elapsed() < PATIENCE, "{path} does not come");
        tokio::time::sleep(ASK).await;
    }
}

/// From a command's answer, by the relay and a topic, to another app's row.
pub async fn chain(bench: &Bench) {
    println!(
        "\nA command's answer, until another app has its row by way of a topic: {CHAINS} commands one at a time"
    );
    let folder = tempfile::tempdir_in(".").expect("a folder");
    let topic = bench.broker.topic("chain").await;
    bench.broker.make(&format!("{topic}.mark")).await;
    let native = bench.native("chain", &folder.path().join("native"), &topic).await;
    let mut baseline = chained(&native).await;
    show("native, no log behind the topic", &mut baseline, None);
    native.kill().await;
    for via in super::throughput::VIAS {
        let data = folder.path().join(via);
        let node = bench.node(&data).await;
        let topic = bench.broker.topic("chain").await;
        let relay = format!("name = \"bank\"\nrelay = {{ topics = {{ account = \"{topic}\" }} }}");
        node.deploy(&bench.ebb, &app(folder.path(), "bank", &account(&relay, ""))).await;
        node.deploy(&bench.ebb, &app(folder.path(), "tally", &tallies("tally", &topic, via))).await;
        let mut ours = chained(&node).await;
        show(&format!("ebb, via = \"{via}\""), &mut ours, Some(&mut baseline));
        node.kill().await;
        bench.broker.delete(&["bank.relay"]).await;
    }
}

async fn chained(server: &Server) -> Times {
    let mut client = Client::connect(&server.address).await;
    let mut times = Times::default();
    for number in 0..CHAINS + 20 {
        let id = format!("chain-{number}");
        command(&mut client, &id, "open", &format!("{{\"owner\":\"{id}\"}}")).await;
        let acked = Instant::now();
        until_there(&mut client, &format!("/apps/tally/models/tallies/{id}")).await;
        // The first ones join groups and make producers.
        if number >= 20 {
            times.push(acked.elapsed());
        }
    }
    times
}

/// From a record that the broker has to its row, where the module is in memory, and where it is not.
pub async fn waking(bench: &Bench) {
    println!("\nA record that the broker has acknowledged, until its row is there: {WAKES} of each");
    let folder = tempfile::tempdir_in(".").expect("a folder");
    let producer = bench.broker.producer();
    let topic = bench.broker.topic("waking").await;
    let native = bench.native("direct", &folder.path().join("native"), &topic).await;
    let mut client = Client::connect(&native.address).await;
    let mut number = 0;
    let mut one = async |client: &mut Client, topic: &str| {
        number += 1;
        let id = format!("wake-{number}");
        let value = format!("{{\"account\":\"{id}\",\"amount\":1}}");
        let record = Sent { key: &id, kind: "Deposited", value: &value, partition: None };
        producer.send_event(topic, number, &record);
        producer.wait();
        let acked = Instant::now();
        until_there(client, &format!("/apps/tally/models/tallies/{id}")).await;
        acked.elapsed()
    };
    let mut baseline = Times::default();
    for number in 0..=WAKES {
        let took = one(&mut client, &topic).await;
        if number > 0 {
            baseline.push(took);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    show("native, which never sleeps", &mut baseline, None);
    native.kill().await;
    for via in super::throughput::VIAS {
        let topic = bench.broker.topic("waking").await;
        let node = bench.node(&folder.path().join(via)).await;
        node.deploy(&bench.ebb, &app(folder.path(), "tally", &tallies("tally", &topic, via))).await;
        let mut client = Client::connect(&node.address).await;
        let mut control = Client::connect(&node.control).await;
        one(&mut client, &topic).await;
        let (mut warm, mut cold) = (Times::default(), Times::default());
        for _ in 0..WAKES {
            let asked = Instant::now();
            while control.json("/functions?limit=1").await["states"]["cold"] != 1 {
                assert!(asked.elapsed() < PATIENCE, "the module does not become cold");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            cold.push(one(&mut client, &topic).await);
            tokio::time::sleep(Duration::from_millis(50)).await;
            warm.push(one(&mut client, &topic).await);
        }
        show(&format!("ebb, via = \"{via}\", warm"), &mut warm, Some(&mut baseline));
        show(&format!("ebb, via = \"{via}\", cold"), &mut cold, Some(&mut baseline));
        node.kill().await;
    }
}
