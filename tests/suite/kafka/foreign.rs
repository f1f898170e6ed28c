//! What other people's clients produce: the first flights of the week, each in another form, lead to the read models that
//! the CSV says.

use super::{drained, node};
use crate::flights::{actual, commands_of, expected_of};
use ebb_tests::{App, Isolation, Kafka, Record, examples, repository};
use serde_json::json;
use std::process::Stdio;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

/// Lines of the CSV that are produced, its head among them.
const LINES: usize = 601;

/// Runs a client, as `scripts/lib/kafka-clients.sh` installs it, with this on its stdin. None where it can't be installed:
/// that is said, and with `CI` set it is a failure.
#[expect(clippy::print_stderr, reason = "shown by the test harness")]
async fn client(name: &str, line: &str, arguments: &[&str], stdin: &[u8]) -> Option<()> {
    const MISSING: i32 = 90;
    let script =
        format!(". scripts/lib/kafka-clients.sh && ensure_kafka_client {name} || exit {MISSING}; {line}");
    let mut bash = Command::new("bash");
    bash.args(["-c", &script, name]).args(arguments).current_dir(repository());
    bash.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = bash.spawn().expect("bash can be run");
    let mut input = child.stdin.take().expect("stdin is a pipe");
    let stdin = stdin.to_vec();
    let writing = tokio::spawn(async move {
        // One that fails before it has read everything says why.
        let _ = input.write_all(&stdin).await;
    });
    let output = child.wait_with_output().await.expect("a child can be waited for");
    writing.await.expect("writing does not panic");
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(MISSING) {
        assert!(std::env::var_os("CI").is_none(), "there is no {name}, and it can't be installed:\n{said}");
        eprintln!("NOT TESTED: there is no {name}, and it can't be installed:\n{said}");
        return None;
    }
    assert!(output.status.success(), "{name}: {}\n{said}", output.status);
    Some(())
}

/// The flights app, whose commands come from a topic, read in this way.
fn flights(name: &str, topic: &str, spec: &str, source: &str) -> App {
    let source = format!(
        "[topic.{topic}]\n{spec}\n[aggregate.flight]\nsource = {{ topics = [\"{topic}\"]{source} }}\n"
    );
    App::in_folder(&examples("flights"))
        .edit("name = \"flights\"", &format!("name = \"{name}\"\nrelay = \"off\""))
        .edit("hosts = [\"flights.localhost\"]", "")
        .edit("[aggregate.flight] ", &source)
}

async fn produced_by(
    client_name: &str,
    line: &str,
    spec: &str,
    source: &str,
    in_lines: impl Fn(&str) -> String,
) {
    let Some(kafka) = Kafka::shared().await else { return };
    let (name, topic) = (kafka.unique(client_name), kafka.topic(client_name, 3).await);
    let node = node(kafka).await;
    let commands = commands_of(LINES);
    let stdin: String = commands.lines().map(in_lines).collect();
    let Some(()) = client(client_name, line, &[kafka.brokers(), &topic], stdin.as_bytes()).await else {
        return;
    };
    node.deploy(&flights(&name, &topic, spec, source)).await;
    let count = commands.lines().count() as u64;
    drained(&node, &name, count).await;
    let end = node.control.get(&format!("/apps/{name}")).await.ok()["position"].as_u64().unwrap();
    assert_eq!(end, 2 * count, "each record, and the event that it led to");
    assert_eq!(actual(&node.app(&name), end).await, expected_of(LINES));
}

#[tokio::test]
async fn plain_json_by_kcat_leads_to_what_the_csv_says() {
    let line = "kcat -P -b \"$1\" -t \"$2\" -K '\t' -X acks=all -X enable.idempotence=true -X partitioner=murmur2_random";
    let key = |line: &str| {
        let value: serde_json::Value = serde_json::from_str(line).expect("a command a line");
        format!("{}\t{line}\n", value["id"].as_str().unwrap())
    };
    let source = ", key = { field = \"id\" }, command = { field = \"command\" }";
    produced_by("kcat", line, "data = { field = \"data\" }\n", source, key).await;
}

#[tokio::test]
async fn cloud_events_in_binary_mode_by_kafkajs_lead_to_what_the_csv_says() {
    produced_by("kafkajs", "node tests/kafka/produce.js \"$@\"", "", "", |line| format!("{line}\n")).await;
}

#[tokio::test]
async fn cloud_events_in_structured_mode_by_confluent_kafka_lead_to_what_the_csv_says() {
    let line = "\"$KAFKA_PYTHON\" tests/kafka/produce.py \"$@\"";
    produced_by("confluent", line, "", "", |line| format!("{line}\n")).await;
}

#[tokio::test]
async fn a_header_whose_name_is_no_text_holds_nobody_up() {
    let Some(kafka) = Kafka::shared().await else { return };
    let (name, topic) = (kafka.unique("header"), kafka.topic("header", 1).await);
    let line = "kcat -P -b \"$1\" -t \"$2\" -K : -H $'\\xff\\xfe=x'";
    let Some(()) = client("kcat", line, &[kafka.brokers(), &topic], b"a:{\"text\":\"1\"}\n").await else {
        return;
    };
    kafka.produce(&topic, &[Record::new(json!({ "text": "2" }).to_string()).key("a")]).await;
    let node = node(kafka).await;
    let dead = kafka.topic("header-dead", 1).await;
    let source = format!(
        "source = {{ topics = [\"{topic}\"], command = {{ header = \"command\" }}, dead-letter = \"{dead}\" }}"
    );
    node.deploy(&super::notes(&name, &source, "relay = \"off\"")).await;
    drained(&node, &name, 2).await;
    let letters = kafka.read(&dead, 2, Isolation::Committed).await;
    assert!(
        letters[0].headers.iter().any(|(name, _)| name == "\u{fffd}\u{fffd}"),
        "{:?}",
        letters[0].headers
    );
}
