//! Modules that misbehave: the caller is told what happened, in bounded time, and everyone else's work goes on.

use crate::support::{hostile, open_account};
use ebb_tests::{Client, Node, bank};
use futures_util::future::join_all;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// A node with the misbehaving app beside a bank.
async fn node() -> Node {
    let node = Node::with(&hostile()).await;
    node.deploy(&bank()).await;
    open_account(&node.app("bank"), "a", 1).await;
    node
}

async fn ask(app: &Client, command: &str, data: Value) -> ebb_tests::Reply {
    app.command("hostile", "a", command, &data).await
}

/// The misbehaving stream, and everyone else's, are as they were.
async fn all_is_well(node: &mut Node) {
    assert!(node.is_running());
    ask(&node.app("hostile"), "behave", json!({})).await.ok();
    node.app("bank").command("account", "a", "deposit", &json!({ "amount": 1 })).await.ok();
}

async fn harm(command: &str, data: Value, status: u16, code: &str) {
    let mut node = node().await;
    ask(&node.app("hostile"), "behave", json!({})).await.ok();
    let started = Instant::now();
    let reply = ask(&node.app("hostile"), command, data).await;
    let problem = reply.problem(status, code);
    assert!(started.elapsed() < Duration::from_secs(10), "{command} took {:?}", started.elapsed());
    assert!(reply.header("ebb-command-id").is_some(), "its caller can look it up: {reply:?}");
    if status >= 500 {
        assert!(problem["request_id"].is_string(), "the log has the cause under it: {problem}");
    }
    all_is_well(&mut node).await;
    let events = node.app("hostile").get("/streams/hostile-a").await.ok();
    let types: Vec<&Value> =
        events["events"].as_array().unwrap().iter().map(|event| &event["data"]["times"]).collect();
    assert_eq!(types, [&json!(1), &json!(2)], "nothing of it was recorded, and the state is as before");
}

#[tokio::test]
async fn a_module_that_loops_for_ever_is_out_of_cpu() {
    harm("spin", json!({}), 504, "module_out_of_cpu").await;
}

#[tokio::test]
async fn a_module_that_allocates_without_end_is_out_of_memory() {
    harm("allocate", json!({}), 500, "module_out_of_memory").await;
}

#[tokio::test]
async fn a_module_that_panics_has_trapped() {
    harm("trap", json!({}), 500, "module_trapped").await;
}

#[tokio::test]
async fn a_module_that_overflows_its_stack_has_trapped() {
    harm("overflow", json!({}), 500, "module_trapped").await;
}

#[tokio::test]
async fn a_module_that_sleeps_has_trapped() {
    harm("sleep", json!({}), 500, "module_trapped").await;
}

#[tokio::test]
async fn an_event_that_the_manifest_does_not_declare_is_refused() {
    harm("surprise", json!({}), 500, "undeclared_event").await;
}

#[tokio::test]
async fn an_event_that_does_not_fit_its_schema_is_refused() {
    harm("lie", json!({}), 500, "invalid_event").await;
}

#[tokio::test]
async fn an_event_over_the_limit_is_refused() {
    harm("bloat", json!({ "bytes": 600_000 }), 500, "module_output_too_large").await;
}

#[tokio::test]
async fn one_event_more_than_a_commit_holds_is_refused_and_none_more_is_fine() {
    harm("flood", json!({ "events": 1001 }), 500, "module_output_too_large").await;
    let node = node().await;
    let full = ask(&node.app("hostile"), "flood", json!({ "events": 1000 })).await.ok();
    assert_eq!(full["events"].as_array().map(Vec::len), Some(1000));
}

#[tokio::test]
async fn a_module_that_returns_a_million_events_is_stopped() {
    let mut node = node().await;
    let started = Instant::now();
    let reply = ask(&node.app("hostile"), "flood", json!({ "events": 1_000_000 })).await;
    // Whichever bound it meets first: its memory, its time, or what it may return.
    let code = reply.json()["code"].as_str().unwrap_or_default().to_owned();
    assert!(
        ["module_output_too_large", "module_out_of_memory", "module_out_of_cpu"].contains(&code.as_str()),
        "{reply:?}"
    );
    reply.problem(if code == "module_out_of_cpu" { 504 } else { 500 }, &code);
    assert!(started.elapsed() < Duration::from_secs(10), "took {:?}", started.elapsed());
    all_is_well(&mut node).await;
}

#[tokio::test]
async fn a_module_that_prints_a_gigabyte_is_heard_a_little_and_fills_no_disk() {
    let mut node = node().await;
    let started = Instant::now();
    let reply = ask(&node.app("hostile"), "print", json!({ "bytes": 1_u64 << 30 })).await;
    // Printing costs the module its time, as anything else does.
    if reply.status != 200 {
        reply.problem(504, "module_out_of_cpu");
    }
    assert!(started.elapsed() < Duration::from_secs(20), "took {:?}", started.elapsed());
    let log = std::fs::read_to_string(node.log_path()).expect("the node's log");
    assert!(log.contains("spam spam"), "what it prints is in the node's log");
    assert!(log.len() < 1 << 20, "the log has {} bytes", log.len());
    all_is_well(&mut node).await;
}

#[tokio::test]
async fn while_one_app_burns_its_time_another_one_is_served() {
    let mut node = node().await;
    let (hostile, bank) = (node.app("hostile"), node.app("bank"));
    let burning = (0..16).map(|number| {
        hostile.command("hostile", &format!("burn-{number}"), "spin", &json!({})).into_future()
    });
    let burning = tokio::spawn(join_all(burning));
    let mut slowest = Duration::ZERO;
    let mut served = 0;
    while !burning.is_finished() {
        let started = Instant::now();
        bank.command("account", "a", "deposit", &json!({ "amount": 1 })).await.ok();
        slowest = slowest.max(started.elapsed());
        served += 1;
    }
    for reply in burning.await.expect("requests") {
        assert!(matches!(reply.status, 504 | 503), "{reply:?}");
    }
    assert!(served > 10, "{served} served");
    assert!(slowest < Duration::from_secs(2), "the slowest took {slowest:?}");
    all_is_well(&mut node).await;
}
