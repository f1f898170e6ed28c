//! What functions used: the same in the table, in the answer for programs and on the metrics page.

use crate::support::{hostile, notes, open_account};
use ebb_tests::{App, Node, bank, guest, repository};
use serde_json::{Value, json};
use std::collections::BTreeSet;

fn of<'a>(usage: &'a Value, function: &str) -> &'a Value {
    let functions = usage["functions"].as_array().expect("functions");
    functions
        .iter()
        .find(|used| used["function"] == function)
        .unwrap_or_else(|| panic!("no {function} in {usage}"))
}

async fn metrics(node: &Node) -> String {
    String::from_utf8(node.control.get("/metrics").await.body.to_vec()).expect("text")
}

/// Metrics that a page has, with or without samples.
fn families(page: &str) -> BTreeSet<&str> {
    page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect()
}

#[tokio::test]
async fn the_guide_lists_the_metrics_that_there_are_and_no_others() {
    let node = Node::start_fresh().await;
    let page = metrics(&node).await;
    let guide = std::fs::read_to_string(repository().join("docs/guide/usage.md")).expect("the guide");
    let rows = guide.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    let is_metric =
        |kind: &str| ["counter", "gauge", "histogram"].iter().any(|known| kind.starts_with(known));
    let listed: BTreeSet<&str> = rows.filter(|(_, kind)| is_metric(kind)).map(|(name, _)| name).collect();
    assert_eq!(families(&page), listed);
}

#[tokio::test]
async fn what_functions_used_is_told_in_a_table_to_programs_and_to_prometheus() {
    let node = Node::with(&bank()).await;
    node.deploy(&notes()).await;
    let nothing = node.control.get("/usage").await.ok();
    assert_eq!((&nothing["functions"], &nothing["total"]["invocations"]), (&json!([]), &json!(0)));
    assert!(!metrics(&node).await.contains("faas_name="), "what was never called has no series");

    let bank = node.app("bank");
    let end = open_account(&bank, "ada", 100).await;
    bank.command("account", "ada", "withdraw", &json!({ "amount": 500 })).await.refused("insufficient_funds");
    crate::support::row_after(&bank, "balances", "ada", end).await;

    let usage = node.ebb_control(&["usage", "--json"]).await.json();
    let account = of(&usage, "aggregate.account");
    assert_eq!((&account["invocations"], &account["refused"]), (&json!(3), &json!(1)));
    assert_eq!((&account["errors"], &account["throttled"]), (&json!({}), &json!(0)));
    assert_eq!(account["starts"], json!({ "warm": 2, "loaded": 0, "cold": 1 }));
    for counted in ["billed_millis", "cpu_micros", "init_micros", "duration_micros", "memory_peak_bytes"] {
        assert!(account[counted].as_u64() > Some(0), "no {counted} in {account}");
    }
    assert!(of(&usage, "projection.balances")["invocations"].as_u64() > Some(0));
    assert_eq!((&usage["apps"][0]["app"], &usage["apps"][0]["functions"]), (&json!("bank"), &json!(2)));
    assert_eq!(usage["apps"].as_array().map(Vec::len), Some(1), "notes was never called");
    assert!(usage["since"].as_str().is_some_and(|since| since.ends_with('Z')));

    let page = metrics(&node).await;
    let labels = "app=\"bank\",faas_name=\"aggregate.account\",faas_trigger=\"http\"";
    for sample in [
        format!("faas_invocations_total{{{labels}}} 3"),
        format!("ebbtide_function_refusals_total{{{labels}}} 1"),
        format!("faas_coldstarts_total{{{labels},start=\"cold\"}} 1"),
        format!("faas_invoke_duration_seconds_count{{{labels}}} 3"),
        format!("faas_invoke_duration_seconds_bucket{{{labels},le=\"0.00001\"}}"),
        format!("faas_mem_usage_bytes_bucket{{{labels},le=\"65536\"}} 0"),
        "ebbtide_functions{state=\"cold\"} 2".into(),
        "ebbtide_function_instances{app=\"bank\",faas_name=\"aggregate.account\"} 1".into(),
    ] {
        assert!(page.contains(&sample), "no `{sample}` in\n{page}");
    }

    // A deployment starts no new book.
    node.deploy(&ebb_tests::bank()).await;
    bank.command("account", "ada", "deposit", &json!({ "amount": 1 })).await.ok();
    let usage = node.control.get("/usage?app=bank").await.ok();
    assert_eq!(of(&usage, "aggregate.account")["invocations"], json!(4));
    node.control.get("/usage?of=bank").await.problem(400, "bad_query");

    let shown = node.ebb_control(&["usage"]).await;
    let line =
        shown.ok().lines().find(|line| line.starts_with("aggregate.account")).expect("a line").to_owned();
    assert!(line.contains("bank") && line.contains(" 4 "), "{line}");
    let by_app = node.ebb_control(&["usage", "--by", "app"]).await;
    assert!(by_app.ok().lines().any(|line| line.starts_with("(all)")), "{}", by_app.stdout);
}

#[tokio::test]
async fn failures_are_told_apart() {
    let node = Node::with(&hostile()).await;
    let app = node.app("hostile");
    for (command, status) in [("behave", 200), ("trap", 500), ("allocate", 500), ("spin", 504)] {
        assert_eq!(app.command("hostile", command, command, &json!({})).await.status, status, "{command}");
    }
    let usage = node.control.get("/usage").await.ok();
    let used = of(&usage, "aggregate.hostile");
    assert_eq!(used["errors"], json!({ "trapped": 1, "out_of_memory": 1, "out_of_cpu": 1 }));
    assert!(used["memory_peak_bytes"].as_u64() > Some(32 << 20), "it took what there was: {used}");
    assert!(used["starts"]["loaded"].as_u64() >= Some(1), "instances that failed were made anew: {used}");
    let page = metrics(&node).await;
    assert!(page.contains("faas_trigger=\"http\",error_type=\"out_of_memory\"} 1"), "{page}");
}

/// `tests/guests/http` behind one route.
fn functions() -> App {
    let manifest = r#"[app]
name = "functions"

[function.do]
module = "http.wasm"
trigger = { http = { route = "/do/{what}" } }
"#;
    App::new(manifest).file("http.wasm", guest("http"))
}

#[tokio::test]
async fn a_request_to_an_http_function_is_an_invocation_until_its_end() {
    let node = Node::with(&functions()).await;
    for _ in 0..2 {
        assert_eq!(node.data.get("/do/seen").await.status, 200);
    }
    ebb_tests::eventually("both ended", async || {
        let usage = node.control.get("/usage").await.ok();
        let used = of(&usage, "function.do").clone();
        (used["invocations"] == 2 && used["starts"]["warm"] == 1).then_some(())
    })
    .await;
}
