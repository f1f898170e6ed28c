//! `ebb replay` on the real binary: what would have come out otherwise, and modules that are not deterministic.

use ebb_tests::{App, Node, guest};
use serde_json::{Value, json};

const GUESTS: u64 = 40;

/// `tests/guests/leaky`.
fn leaky() -> App {
    let manifest = r#"[app]
name = "leaky"

[aggregate.guest]
module = "leaky.wasm"
commands = { name = {}, greet = {} }
events = { Named = {}, Greeted = {} }
"#;
    App::new(manifest).file("leaky.wasm", guest("leaky"))
}

/// A node where guests were named and greeted one after another, so that nobody noticed the leak.
async fn greeted() -> Node {
    let node = Node::with(&leaky()).await;
    let app = node.app("leaky");
    for number in 0..GUESTS {
        let id = number.to_string();
        let name = format!("guest {number}");
        app.command("guest", &id, "name", &json!({ "name": name })).await.ok();
        let reply = app.command("guest", &id, "greet", &json!({})).await.ok();
        assert_eq!(reply["events"][0]["data"]["name"], name);
    }
    node
}

#[tokio::test]
async fn a_module_that_keeps_state_across_streams_is_found_in_shuffled_company_and_not_alone() {
    let node = greeted().await;
    let alone = node.ebb_control(&["replay", "--isolation", "fresh", "--json"]).await.json();
    assert_eq!((&alone["commands"], &alone["different"]), (&json!(2 * GUESTS), &json!(0)));

    for isolation in ["both", "shared"] {
        let replay = ["replay", "--json", "--isolation", isolation, "--details", "1000"];
        let report: Value = serde_json::from_str(node.ebb_control(&replay).await.ended(1)).expect("a report");
        assert!(report["different"].as_u64() > Some(GUESTS / 4), "{report}");
        for difference in report["differences"].as_array().expect("differences") {
            assert_eq!(difference["kind"], "not_deterministic", "{difference}");
            assert_eq!(difference["command"], "greet", "{difference}");
            assert_eq!(difference["changes"][0]["path"], "/name", "{difference}");
            if isolation == "both" {
                assert_eq!(difference["replayed_alone"], difference["recorded"], "{difference}");
            }
        }
    }
    let shown = node.ebb_control(&["replay"]).await;
    let text = shown.ended(1);
    assert!(text.contains("guest/greet") && text.contains("not deterministic"), "{text}");
}

#[tokio::test]
async fn a_part_of_history_can_be_replayed_and_a_replay_of_nothing_is_no_success() {
    let node = greeted().await;
    let fresh = |more: &[&'static str]| [&["replay", "--json", "--isolation", "fresh"], more].concat();
    let all = node.ebb_control(&fresh(&["--last", "1h", "--aggregate", "guest"])).await.json();
    assert_eq!(all["commands"], 2 * GUESTS);
    let some = node.ebb_control(&fresh(&["--sample", "50%"])).await.json();
    let commands = some["commands"].as_u64().expect("a number");
    assert!(commands % 2 == 0 && (1..2 * GUESTS).contains(&commands), "whole streams, and not all: {some}");
    assert_eq!(some["skipped"]["not_sampled"], 2 * GUESTS - commands);

    node.ebb_control(&fresh(&["--until", "2020-01-01"])).await.ended(2);
    let unknown = node.ebb_control(&fresh(&["--aggregate", "ghost"])).await;
    unknown.ended(2);
    assert!(unknown.stderr.contains("guest"), "{}", unknown.stderr);
    for wrong in [["--last", "soon"], ["--sample", "0%"], ["--since", "tomorrow"]] {
        node.ebb_control(&fresh(&wrong)).await.ended(2);
    }
    let wrong = node.control.post("/apps/leaky/replay?sample=2", &Value::Null).await;
    wrong.problem(400, "bad_query");
}

#[tokio::test]
async fn a_command_that_the_candidate_takes_no_more_is_a_difference() {
    let node = greeted().await;
    let candidate = leaky().edit("commands = { name = {}, greet = {} }", "commands = { name = {} }");
    let folder = candidate.write_to(node.home());
    let report = node
        .ebb_control(&[
            "replay",
            "--module",
            folder.to_str().expect("UTF-8"),
            "--isolation",
            "fresh",
            "--json",
        ])
        .await;
    let report: Value = serde_json::from_str(report.ended(1)).expect("a report");
    let group = &report["summary"][0];
    let expected = (&json!("rejected"), &json!("greet"), &json!(GUESTS));
    assert_eq!((&group["kind"], &group["command"], &group["count"]), expected, "{report}");
}
