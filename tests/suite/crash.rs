//! Power cuts: SIGKILL at moments that nobody chose.

mod damage;
mod invariants;
mod points;
mod workload;

use crate::flights::{WEEK, actual, expected, week};
use ebb_tests::{Client, Dice, Node, NodeBuilder, command, eventually, flights};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const KILLS: u32 = 20;

/// What a client that trusts nobody has written down about its own commands.
#[derive(Debug, PartialEq)]
struct Acknowledged {
    command: String,
    position: u64,
}

/// Puts flights on the schedule one after another, each under a key of its own, and goes on only when the answer is on
/// its disk. Without an answer it asks again.
async fn witness(flights: Client, file: PathBuf, stop: Arc<AtomicBool>) -> u64 {
    let mut file = File::create(file).expect("a file");
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        let flight = json!({ "carrier": "ZZ", "origin": "EWR", "dest": "IAH", "hour": 5 });
        let id = format!("witness-{number}");
        let reply = loop {
            let request = flights.command("flight", &id, "schedule", &flight).header("idempotency-key", &id);
            match request.send().await {
                Ok(reply) if reply.status == 200 => break reply,
                Ok(reply) => assert_eq!(reply.status, 503, "{reply:?}"),
                // The node is down, or went down with the request: the sleep keeps a core free for its start.
                Err(_) => {}
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        let (command, position) =
            (reply.header("ebb-command-id").expect("a command has an id"), reply.position());
        writeln!(file, "{command} {position}").expect("the witness's disk");
        file.sync_data().expect("the witness's disk");
        number += 1;
    }
    number
}

fn read_witness(file: &Path) -> Vec<Acknowledged> {
    let text = std::fs::read_to_string(file).expect("the witness's file");
    let line = |line: &str| {
        let (command, position) = line.split_once(' ').expect("two words");
        Acknowledged { command: command.to_owned(), position: position.parse().expect("a number") }
    };
    text.lines().map(line).collect()
}

async fn position(node: &Node) -> u64 {
    // Where a log ends after a crash is known when it has been opened.
    eventually("a position", async || node.control.get("/apps/flights").await.ok()["position"].as_u64()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_power_cuts_during_an_import_lose_nothing_double_nothing_and_leave_no_gap() {
    let mut dice = Dice::seeded();
    let mut node = NodeBuilder::default().lasting_addresses().start().await;
    node.deploy(&flights()).await;
    let week = week(&node);
    let base = node.data.base().to_owned();
    let import =
        ["import", "flight", week.to_str().unwrap(), "--json", "--retry-for", "300", "--server", &base];

    let (stop, file) = (Arc::new(AtomicBool::new(false)), node.home().join("witness"));
    let witness = tokio::spawn(witness(node.app("flights"), file.clone(), stop.clone()));
    let mut running =
        command(node.home(), &import).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let mut during_import = 0;
    for _ in 0..KILLS {
        // Some way into each life, so that the import lasts longer than the kills.
        let until = position(&node).await + dice.roll(1..WEEK / u64::from(KILLS));
        eventually("the import to go on", async || {
            (position(&node).await >= until || is_over(&mut running)).then_some(())
        })
        .await;
        tokio::time::sleep(Duration::from_micros(dice.roll(0..20_000))).await;
        during_import += u32::from(!is_over(&mut running));
        node.kill().await;
        if dice.roll(0..4) == 0 {
            // The client is cut off as well now and again; started anew it goes on where the log says.
            let _ = running.kill().await;
            running =
                command(node.home(), &import).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        }
        node.start().await;
    }
    assert!(during_import >= KILLS / 2, "only {during_import} kills hit the import");
    let _ = running.wait().await;
    let finished = node.ebb(&import[..4]).await.json();
    assert_eq!((&finished["refused"], &finished["failed"]), (&json!(0), &json!(0)), "{finished}");
    stop.store(true, Ordering::Relaxed);
    let scheduled = witness.await.expect("the witness lives");

    let flights = node.app("flights");
    let events = flights.all_events().await;
    let positions: Vec<u64> = events.iter().map(|event| event["position"].as_u64().unwrap()).collect();
    assert!(
        positions.iter().copied().eq(1..=WEEK + scheduled),
        "positions are dense, and there is one a command"
    );
    let mut revisions = BTreeMap::<&str, u64>::new();
    for event in &events {
        let next = revisions.entry(event["subject"].as_str().unwrap()).or_default();
        assert_eq!(event["sequence"].as_u64(), Some(*next), "{event}");
        *next += 1;
    }
    let commands: BTreeSet<&str> = events.iter().map(|event| event["commandid"].as_str().unwrap()).collect();
    assert_eq!(commands.len(), events.len(), "no command is there twice");

    let acknowledged = read_witness(&file);
    assert_eq!(acknowledged.len() as u64, scheduled);
    for Acknowledged { command, position } in &acknowledged {
        let event = &events[*position as usize - 1];
        assert_eq!(event["commandid"], json!(command), "{event}");
    }
    let Acknowledged { command, position } =
        acknowledged.last().expect("the witness was answered at least once");
    let entry = flights.get(&format!("/command-log/{command}")).await.ok();
    assert_eq!((&entry["outcome"], &entry["position"]), (&json!("accepted"), &json!(position)));

    let mut expected = expected();
    expected.get_mut("carrier_delays").unwrap().insert(
        "ZZ".into(),
        json!({ "carrier": "ZZ", "flights": scheduled, "cancelled": 0, "arrived": 0, "arr_delay_total": 0 }),
    );
    assert_eq!(actual(&flights, WEEK + scheduled).await, expected);

    node.stop().await;
    let data = node.data_folder();
    ebb_tests::run(node.home(), &["log", "verify", "--data", data.to_str().unwrap()]).await.ended(0);
}

fn is_over(child: &mut tokio::process::Child) -> bool {
    child.try_wait().expect("a child").is_some()
}
