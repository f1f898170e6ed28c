//! Kafka both ways, on a real broker.

mod bad;
mod crashes;
mod direct;
mod fixture;
mod foreign;
mod relay;
mod topics;
mod torture;
mod week;

use ebb_tests::{App, Kafka, Node, eventually, guest, within};
use serde_json::Value;
use std::time::Duration;

/// A node that has the broker.
pub(crate) async fn node(kafka: &Kafka) -> Node {
    Node::builder().env("EBB_KAFKA", kafka.brokers()).env("EBB_LOG", "info").start().await
}

/// `tests/guests/notes` under a name of its own, with this in its aggregate's entry, and this under `[app]`.
pub(crate) fn notes(name: &str, aggregate: &str, app: &str) -> App {
    App::new(&format!(
        r#"[app]
name = "{name}"
{app}

[aggregate.note]
module = "notes.wasm"
commands = {{ write = {{}}, poison = {{}}, explode = {{}}, cure = {{}} }}
events = {{ Written = {{}}, Poisoned = {{}}, Exploded = {{}}, Cured = {{}} }}
{aggregate}

[model.notes]
key = "note"
columns = {{ note = "text", text = "text", writes = "integer", version = "integer" }}

[model.cures]
key = "of"
columns = {{ of = "text", count = "integer" }}

[projection.notes]
module = "projection.wasm"
models = ["notes", "cures"]
source = {{ aggregates = ["note"] }}
retry = {{ attempts = 2, backoff = "10ms", max-backoff = "20ms" }}
"#
    ))
    .file("notes.wasm", guest("notes"))
    .file("projection.wasm", guest("notes_projection"))
}

/// Produces by Kafka's own console producer: a record a line, `HEADERS TAB KEY TAB VALUE`.
async fn produce_by_console(kafka: &Kafka, topic: &str, lines: &str) {
    let mut arguments = vec!["--bootstrap-server", kafka.brokers(), "--topic", topic];
    for property in ["parse.key=true", "parse.headers=true"] {
        arguments.extend(["--reader-property", property]);
    }
    kafka.tool("org.apache.kafka.tools.ConsoleProducer", &arguments, lines).await;
}

/// What the control plane says of an app and Kafka, once it is so.
pub(crate) async fn status(node: &Node, app: &str, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    let path = format!("/kafka?app={app}");
    let mut last = Value::Null;
    let found = eventually(what, async || {
        last = node.control.get(&path).await.ok()["kafka"][0].clone();
        is_so(&last).then(|| last.clone())
    });
    found.await
}

/// Waits until a consumer has dealt with everything, of Kafka and of the log.
async fn drained(node: &Node, app: &str, records: u64) {
    status(node, app, "all records are in the log", |status| {
        status["groups"].as_array().is_some_and(|groups| {
            groups.iter().map(|group| group["records"].as_u64().unwrap_or(0)).sum::<u64>() >= records
        })
    })
    .await;
    // A week of flights takes its time on a machine that builds meanwhile.
    within(Duration::from_secs(120), "nothing is left to project", async || {
        let end = async || node.control.get(&format!("/apps/{app}")).await.ok()["position"].as_u64();
        let before = end().await?;
        let all = node.control.get(&format!("/projections?app={app}")).await.ok();
        let done = all["projections"].as_array()?.iter().all(|one| one["mark"].as_u64() >= Some(before));
        (done && end().await? == before).then_some(())
    })
    .await;
}
