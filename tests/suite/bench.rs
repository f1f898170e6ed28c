//! `ebb bench` on the real binary: a machine, an app of one's own, and what it does not pass over.

use crate::support::{open_account, row_after};
use ebb_tests::{Node, bank, command, run};
use serde_json::{Value, json};
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};

fn row<'a>(report: &'a Value, name: &str) -> &'a Value {
    let rows = report["rows"].as_array().expect("rows");
    rows.iter().find(|row| row["name"] == name).unwrap_or_else(|| panic!("no row `{name}` in {report}"))
}

#[tokio::test]
async fn a_machine_is_measured_beside_native_baselines_and_left_as_it_was() {
    let home = tempfile::tempdir().expect("a folder");
    let measured = run(home.path(), &["bench", "--seconds", "1", "--clients", "8", "--json"]).await;
    let report = measured.json();
    for name in [
        "disk: fdatasync of 4 KiB",
        "native: appends to the same log",
        "native: HTTP that just answers",
        "native: HTTP and the same log",
        "commands, durable",
        "commands, one client",
        "reads by key",
        "live: from sending a command to its event",
    ] {
        let row = row(&report, name);
        assert!(row["ok"].as_u64() > Some(0) && row["errors"] == json!({}), "{row}");
        let time = |part: &str| row["latency_us"][part].as_u64().expect("a time");
        let times = [time("p50"), time("p99"), time("p999"), time("max")];
        assert!(times.is_sorted() && times[0] > 0, "{row}");
    }
    let against = &row(&report, "commands, durable")["against"];
    assert_eq!(against["name"], "native: HTTP and the same log");
    assert!(against["ratio"].as_f64() > Some(0.0), "{against}");
    let warnings = report["warnings"].as_array().expect("warnings");
    let is_debug = report["machine"]["profile"] == "debug";
    let warned = warnings.iter().any(|warning| warning.as_str().is_some_and(|text| text.contains("debug")));
    assert_eq!(warned, is_debug, "{report}");
    let left: Vec<_> = std::fs::read_dir(home.path()).expect("a folder").collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn an_app_of_ones_own_is_measured_and_nothing_but_success_counts_as_success() {
    let node = Node::with(&bank()).await;
    let bank = node.app("bank");
    std::fs::write(node.home().join("open.json"), r#"{"owner": "{uuid} {random} {n}"}"#).expect("a file");
    std::fs::write(node.home().join("amount.json"), r#"{"amount": 1000000}"#).expect("a file");
    let bench = async |more: &[&str]| {
        let mut arguments = vec!["bench", "--seconds", "1", "--clients", "4", "--json", "--app", "bank"];
        let server = bank.base().trim_end_matches("/apps/bank").to_owned();
        arguments.extend(["--server", &server]);
        arguments.extend(more);
        run(node.home(), &arguments).await
    };
    let open =
        ["--command", "account", "open", "--id-template", "acct-{uuid}", "--data-template", "open.json"];
    let report = bench(&open).await.json();
    let opened = row(&report, "commands, durable")["ok"].as_u64().expect("a number");
    let events = bank.get("/events?limit=1").await.number("ebb-position");
    assert!((1..=events).contains(&opened), "{opened} answers, {events} events");

    let refused = bench(&open).await;
    refused.ended(2);
    assert!(
        refused.stderr.contains("events already") && refused.stderr.contains("--yes"),
        "{}",
        refused.stderr
    );
    assert_eq!(bank.get("/events?limit=1").await.number("ebb-position"), events, "nothing was sent");

    let opened = open_account(&bank, "poor-0", 1).await;
    row_after(&bank, "balances", "poor-0", opened).await;
    let withdraw = [
        "--command",
        "account",
        "withdraw",
        "--id-template",
        "poor-{n}",
        "--ids",
        "1",
        "--data-template",
        "amount.json",
        "--yes",
    ];
    let withdrawals = bench(&withdraw).await;
    let report: Value = serde_json::from_str(withdrawals.ended(1)).expect("a report");
    let row_of_refusals = row(&report, "commands, durable");
    assert_eq!(row_of_refusals["ok"], 0, "{row_of_refusals}");
    assert!(row_of_refusals["errors"]["insufficient_funds"].as_u64() > Some(0), "{row_of_refusals}");

    let reads = bench(&["--query", "balances", "--id-template", "poor-{n}", "--ids", "1"]).await.json();
    assert!(row(&reads, "reads by key")["ok"].as_u64() > Some(0), "{reads}");
    let missing = bench(&["--query", "balances", "--id-template", "nobody"]).await;
    assert!(missing.ended(1).contains("no_such_row"), "{}", missing.stdout);
    std::fs::write(node.home().join("open.json"), "{\"owner\": {uuid}}").expect("a file");
    bench(&open).await.ended(2);
}

#[tokio::test]
async fn an_interrupted_measurement_prints_what_there_is() {
    let home = tempfile::tempdir().expect("a folder");
    let mut bench = command(home.path(), &["bench", "--seconds", "600", "--clients", "2", "--json"]);
    let mut bench = bench.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("ebb starts");
    let mut notes = BufReader::new(bench.stderr.take().expect("stderr")).lines();
    while let Some(note) = notes.next_line().await.expect("a line") {
        if note.contains("appends to the same log") {
            break;
        }
    }
    let id = bench.id().expect("it runs").to_string();
    let sent = std::process::Command::new("kill").args(["-INT", &id]).status();
    assert!(sent.is_ok_and(|status| status.success()));
    let mut text = String::new();
    bench.stdout.take().expect("stdout").read_to_string(&mut text).await.expect("text");
    assert_eq!(bench.wait().await.expect("an end").code(), Some(130));
    let report: Value = serde_json::from_str(&text).expect("a report");
    assert_eq!(report["interrupted"], true);
    assert!(row(&report, "disk: fdatasync of 4 KiB")["ok"].as_u64() > Some(0));
}
