//! Records in: commands, projections, event functions.

use super::{drained, node, notes, status};
use ebb_tests::{Isolation, Kafka, Record, eventually};
use serde_json::{Value, json};

/// A command as a CloudEvent in binary mode.
fn command(key: &str, name: &str, id: &str, data: &Value) -> Record {
    Record::new(data.to_string())
        .key(key)
        .header("ce_specversion", "1.0")
        .header("ce_id", id)
        .header("ce_source", "urn:test")
        .header("ce_type", name)
        .header("content-type", "application/json")
}

#[tokio::test]
async fn a_record_is_a_command_once_however_often_it_is_delivered() {
    let Some(kafka) = Kafka::shared().await else { return };
    let (name, topic) = (kafka.unique("commands"), kafka.topic("commands", 2).await);
    let mut node = node(kafka).await;
    let source = format!("source = {{ topics = [\"{topic}\"], group = \"{name}\" }}");
    node.deploy(&notes(&name, &source, "relay = \"off\"")).await;
    let records: Vec<_> = (0..20)
        .map(|n| command(&format!("n{}", n % 4), "write", &n.to_string(), &json!({ "text": n.to_string() })))
        .collect();
    kafka.produce(&topic, &records).await;
    drained(&node, &name, 20).await;
    let app = node.app(&name);
    let row = app.get("/models/notes/n3").await.ok();
    assert_eq!((&row["writes"], &row["text"]), (&json!(5), &json!("19")), "in the order of the key");
    let position = node.control.get(&format!("/apps/{name}")).await.ok()["position"].clone();

    // All of it is consumed again.
    node.stop().await;
    for (partition, _) in kafka.ends(&topic).await.iter().enumerate() {
        kafka.commit(&name, &topic, partition as i32, 0).await;
    }
    node.start().await;
    status(&node, &name, "all of it was there", |status| status["groups"][0]["duplicates"] == 20).await;
    assert_eq!(node.control.get(&format!("/apps/{name}")).await.ok()["position"], position);
    let group = status(&node, &name, "the broker knows", |status| status["groups"][0]["lag"] == 0).await;
    assert_eq!(group["groups"][0]["state"], "consuming");
    let committed: i64 = kafka.committed(&name, &topic).await.into_iter().flatten().sum();
    assert_eq!(committed, 20, "Kafka's own tools see it");
}

#[tokio::test]
async fn a_refusal_is_an_outcome_and_whoever_asked_is_told_under_the_correlation_id() {
    let Some(kafka) = Kafka::shared().await else { return };
    let (name, topic, replies) =
        (kafka.unique("replies"), kafka.topic("asked", 1).await, kafka.topic("replies", 1).await);
    let node = node(kafka).await;
    let source = format!("source = {{ topics = [\"{topic}\"], reply-to = \"{replies}\" }}");
    node.deploy(&notes(&name, &source, "relay = \"off\"")).await;
    let with = |record: Record, id: &str| record.header("ce_correlationid", id);
    kafka
        .produce(
            &topic,
            &[
                with(command("a", "write", "1", &json!({ "text": "x" })), "one"),
                with(command("a", "write", "2", &json!({ "text": "" })), "two"),
            ],
        )
        .await;
    let read = kafka.read(&replies, 2, Isolation::Committed).await;
    let told = |index: usize| {
        (read[index].header("ce_type").unwrap(), read[index].header("ce_correlationid").unwrap())
    };
    assert_eq!(told(0), ("ebbtide.command.accepted", "one"));
    assert_eq!(told(1), ("ebbtide.command.refused", "two"));
    assert_eq!(read[1].key_text(), "a");
    assert!(read[1].json()["code"].is_string(), "{}", read[1].json());
    let consumer = eventually("it is counted", async || {
        let all = node.control.get(&format!("/projections?app={name}")).await.ok();
        all["projections"]
            .as_array()?
            .iter()
            .find(|one| one["kind"] == "commands" && one["refused"] == 1)
            .cloned()
    })
    .await;
    assert_eq!((&consumer["parked"], &consumer["failures"]), (&json!(0), &json!(0)), "it is not tried again");
}

#[tokio::test]
async fn what_can_not_be_a_command_is_parked_alone_or_sent_to_the_dead_letter_topic_and_nothing_else_is() {
    let Some(kafka) = Kafka::shared().await else { return };
    let (name, topic, dead) =
        (kafka.unique("poison"), kafka.topic("mixed", 1).await, kafka.topic("dead", 1).await);
    let node = node(kafka).await;
    let source = format!("source = {{ topics = [\"{topic}\"], dead-letter = \"{dead}\" }}");
    node.deploy(&notes(&name, &source, "relay = \"off\"")).await;
    let good = |n: usize| command("a", "write", &n.to_string(), &json!({ "text": n.to_string() }));
    let structured = ("content-type", "application/cloudevents+json");
    kafka
        .produce(
            &topic,
            &[
                good(1),
                Record::new("{not json").key("a").header(structured.0, structured.1),
                good(2),
                command("a", "rite", "3", &json!({})),
                Record::new("{}").header("ce_type", "write"),
                good(4),
                Record::new(vec![b'x'; 600_000]).key("a"),
            ],
        )
        .await;
    drained(&node, &name, 7).await;
    let row = node.app(&name).get("/models/notes/a").await.ok();
    assert_eq!((&row["writes"], &row["text"]), (&json!(3), &json!("4")));
    let letters = kafka.read(&dead, 4, Isolation::Committed).await;
    let offsets: Vec<_> =
        letters.iter().map(|letter| letter.header("ebb-dead-letter-offset").unwrap()).collect();
    assert_eq!(offsets, ["1", "3", "4", "6"], "exactly the poison ones");
    let reason = |index: usize| letters[index].header("ebb-dead-letter-reason").unwrap();
    assert!(reason(0).contains("can't be read"), "{}", reason(0));
    assert!(reason(1).contains("`rite`"), "{}", reason(1));
    assert!(reason(2).contains("is not there"), "{}", reason(2));
    assert!(reason(3).contains("600000 bytes"), "{}", reason(3));
    assert_eq!(letters[0].value.as_deref(), Some(&b"{not json"[..]), "as it came");
    assert_eq!(
        (letters[0].key_text(), letters[0].header("ebb-dead-letter-topic")),
        ("a", Some(topic.as_str()))
    );

    let listed = node.ebb_control(&["dead-letters", "list", "--app", &name, "--json"]).await.ok().to_owned();
    assert_eq!(listed.lines().count(), 4, "{listed}");
    let first: Value = serde_json::from_str(listed.lines().next().unwrap()).unwrap();
    let key = first["key"].as_str().unwrap().to_owned();
    let shown = node
        .ebb_control(&["dead-letters", "show", "note-commands", &key, "--app", &name, "--json"])
        .await
        .json();
    assert_eq!(shown["parked"]["key"], json!(key), "{shown}");
    node.ebb_control(&["dead-letters", "discard", "note-commands", &key, "--app", &name]).await.ok();
    let listed = node.ebb_control(&["dead-letters", "list", "--app", &name, "--json"]).await.ok().to_owned();
    assert_eq!(listed.lines().count(), 3, "{listed}");
}

#[tokio::test]
async fn an_app_that_is_removed_leaves_its_group_at_once_and_a_node_that_stops_does_not() {
    let Some(kafka) = Kafka::shared().await else { return };
    let (name, topic) = (kafka.unique("leaves"), kafka.topic("leaves", 2).await);
    let mut node = node(kafka).await;
    let source = format!("source = {{ topics = [\"{topic}\"], command = \"write\" }}");
    let app = notes(&name, &source, "relay = \"off\"");
    node.deploy(&app).await;
    kafka.produce(&topic, &[Record::new("{\"text\":\"x\"}").key("a")]).await;
    drained(&node, &name, 1).await;
    let members = async || kafka.members(&name).await;
    assert_eq!(members().await, 1);
    // A restart takes no partition from anybody.
    node.stop().await;
    assert_eq!(members().await, 1);
    node.start().await;
    kafka.produce(&topic, &[Record::new("{\"text\":\"y\"}").key("a")]).await;
    drained(&node, &name, 1).await;
    let removed = node.control.request(http::Method::DELETE, &format!("/apps/{name}")).await;
    assert_eq!(removed.status, 204);
    assert_eq!(members().await, 0);
}

#[tokio::test]
async fn a_group_begins_where_the_manifest_says_and_stays_there() {
    let Some(kafka) = Kafka::shared().await else { return };
    let (name, topic) = (kafka.unique("latest"), kafka.topic("latest", 1).await);
    kafka.produce(&topic, &[command("old", "write", "1", &json!({ "text": "x" }))]).await;
    let node = node(kafka).await;
    let source = format!("source = {{ topics = [\"{topic}\"] }}\n\n[topic.{topic}]\nstart = \"latest\"\n");
    node.deploy(&notes(&name, &source, "relay = \"off\"")).await;
    status(&node, &name, "it consumes", |status| status["groups"][0]["state"] == "consuming").await;
    kafka.produce(&topic, &[command("new", "write", "2", &json!({ "text": "x" }))]).await;
    drained(&node, &name, 1).await;
    node.app(&name).get("/models/notes/new").await.ok();
    node.app(&name).get("/models/notes/old").await.problem(404, "no_such_row");
}
