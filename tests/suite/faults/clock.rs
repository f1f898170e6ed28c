//! A wall clock that jumps.

use super::write;
use crate::support::notes;
use ebb_tests::{Node, Reply};
use serde_json::{Value, json};

const HOUR: i64 = 3600;

/// Times are RFC 3339 in UTC with six digits: they sort as texts.
fn times(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["time"].as_str().expect("a time")).collect()
}

async fn is_in_the_command_log(node: &Node, reply: &Reply) {
    let command = reply.header("ebb-command-id").expect("a command has an id");
    let entry = node.app("notes").get(&format!("/command-log/{command}")).await.ok();
    assert_eq!((&entry["outcome"], &entry["position"]), (&json!("accepted"), &json!(reply.position())));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_jumps_back_never_makes_time_go_back_and_keys_and_commands_are_found() {
    let mut node = Node::builder().faults().start().await;
    node.deploy(&notes()).await;
    let mut commands = Vec::new();
    for (number, hours) in [0, -48, 1, -1, -1000].into_iter().enumerate() {
        node.fault(&format!("clock {}\n", hours * HOUR));
        if number == 3 {
            // The first thing that a node hears from its clock is that it is early.
            node.kill().await;
            node.start().await;
        }
        let reply = write(&node.app("notes"), &format!("k{number}"), "one", "text").await;
        assert_eq!(reply.position(), number as u64 + 1);
        commands.push(reply);
        for (number, before) in commands.iter().enumerate() {
            is_in_the_command_log(&node, before).await;
            let again = write(&node.app("notes"), &format!("k{number}"), "one", "text").await;
            assert_eq!((again.json(), again.header("ebb-replayed")), (before.json(), Some("true")));
        }
    }
    let events = node.app("notes").all_events().await;
    assert!(times(&events).is_sorted(), "{:?}", times(&events));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_lives_for_24_hours_of_recorded_time_whatever_the_clock_does_then() {
    let mut node = Node::builder().faults().start().await;
    node.deploy(&notes()).await;
    let app = node.app("notes");
    let first = write(&app, "key", "one", "text").await;
    node.fault(&format!("clock {}\n", 23 * HOUR));
    let again = write(&app, "key", "one", "text").await;
    assert_eq!((again.json(), again.header("ebb-replayed")), (first.json(), Some("true")));

    node.fault(&format!("clock {}\n", 25 * HOUR));
    let second = write(&app, "key", "one", "text").await;
    assert_eq!((second.position(), second.header("ebb-replayed")), (2, None), "it was a day ago");
    // Back again: what counts is what was recorded, and that was a day later.
    node.fault("");
    for _ in 0..2 {
        let again = write(&node.app("notes"), "key", "one", "text").await;
        assert_eq!((again.json(), again.header("ebb-replayed")), (second.json(), Some("true")));
        node.kill().await;
        node.start().await;
    }
    is_in_the_command_log(&node, &first).await;
}
