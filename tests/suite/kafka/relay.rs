//! Events out.

use super::{node, notes, status};
use ebb_tests::{Isolation, Kafka, KafkaOptions, eventually};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

#[tokio::test]
async fn an_event_is_a_cloud_event_in_binary_mode_with_its_stream_as_the_key() {
    let Some(kafka) = Kafka::shared().await else { return };
    let name = kafka.unique("relay");
    let node = node(kafka).await;
    node.deploy(&notes(&name, "", "")).await;
    let reply = node.app(&name).command("note", "a-ü", "write", &json!({ "text": "x" })).await;
    let event = reply.ok()["events"][0].clone();

    let topic = format!("{name}.note");
    eventually("the topic is there", async || {
        kafka.topic_setting(&topic, "max.message.bytes").await.filter(|most| most == "1048576")
    })
    .await;
    let read = kafka.read(&topic, 1, Isolation::Committed).await;
    let record = &read[0];
    assert_eq!(record.key_text(), "note-a-ü");
    for (header, value) in [
        ("ce_specversion", "1.0"),
        ("ce_id", event["id"].as_str().unwrap()),
        ("ce_source", &format!("urn:ebbtide:{name}")),
        ("ce_type", "Written"),
        ("ce_subject", "note-a-ü"),
        ("ce_partitionkey", "note-a-ü"),
        ("ce_sequence", "0"),
        ("ce_position", "1"),
        ("content-type", "application/json"),
    ] {
        assert_eq!(record.header(header), Some(value), "{header}");
    }
    assert_eq!(record.json()["text"], "x");
    assert_eq!(
        kafka.topic_setting(&format!("{name}.relay"), "cleanup.policy").await.as_deref(),
        Some("compact")
    );
    let relay = status(&node, &name, "the relay is done", |status| status["relay"]["lag"] == 0).await;
    assert_eq!((&relay["relay"]["mark"], &relay["relay"]["events"]), (&json!(1), &json!(1)));
    let metrics = node.control.get("/metrics").await;
    let metrics = String::from_utf8_lossy(&metrics.body).into_owned();
    assert!(metrics.contains(&format!("ebbtide_relay_lag_events{{app=\"{name}\"}} 0")), "{metrics}");
}

#[tokio::test]
async fn the_manifest_says_where_events_go_and_which() {
    let Some(kafka) = Kafka::shared().await else { return };
    let (name, topic) = (kafka.unique("named"), kafka.unique("elsewhere"));
    let node = node(kafka).await;
    let relay =
        format!("relay = {{ topics = {{ note = \"{topic}\" }}, partitions = 2, max-message = \"2MiB\" }}");
    node.deploy(&notes(&name, "", &relay)).await;
    node.app(&name).command("note", "a", "write", &json!({ "text": "x" })).await.ok();
    status(&node, &name, "it is published", |status| status["relay"]["mark"] == 1).await;
    assert_eq!(kafka.ends(&topic).await.len(), 2);
    assert_eq!(kafka.topic_setting(&topic, "max.message.bytes").await.as_deref(), Some("2097152"));

    let silent = kafka.unique("silent");
    node.deploy(&notes(&silent, "", "relay = \"off\"")).await;
    node.app(&silent).command("note", "a", "write", &json!({ "text": "x" })).await.ok();
    let all = node.control.get("/kafka").await.ok();
    let apps: Vec<_> = all["kafka"].as_array().unwrap().iter().map(|app| app["app"].clone()).collect();
    assert_eq!(apps, [json!(name)]);
}

/// Revisions of each stream in the order in which they are in the topic, and how often events are there.
async fn published(
    kafka: &Kafka,
    topic: &str,
    least: usize,
) -> (BTreeMap<String, Vec<u64>>, BTreeMap<String, usize>) {
    let (mut streams, mut ids) = (BTreeMap::<String, Vec<u64>>::new(), BTreeMap::new());
    let records = kafka.read_all(topic, Isolation::Committed).await;
    assert!(records.len() >= least, "{} of {least} records", records.len());
    for record in records {
        let revision = record.header("ce_sequence").unwrap().parse().unwrap();
        streams.entry(record.key_text().to_owned()).or_default().push(revision);
        *ids.entry(record.header("ce_id").unwrap().to_owned()).or_default() += 1;
    }
    (streams, ids)
}

#[tokio::test]
async fn a_broker_that_is_away_holds_up_no_command_and_the_relay_catches_up_in_order() {
    let Some(mut kafka) = Kafka::start(KafkaOptions::default()).await else { return };
    let name = kafka.unique("away");
    let node = node(&kafka).await;
    node.deploy(&notes(&name, "", "")).await;
    let app = node.app(&name);
    let write = async |n: usize| {
        for index in 0..n {
            let id = format!("n{}", index % 5);
            app.command("note", &id, "write", &json!({ "text": index.to_string() })).await.ok();
        }
    };
    write(20).await;
    status(&node, &name, "the first are published", |status| status["relay"]["lag"] == 0).await;
    kafka.kill();
    write(100).await;
    let away = status(&node, &name, "it is seen that the broker is away", |status| {
        status["relay"]["lag"].as_u64().is_some_and(|lag| lag > 0)
    })
    .await;
    assert!(away["relay"]["mark"].as_u64().unwrap() >= 20);
    kafka.restart().await;
    let patience = Duration::from_secs(90);
    let done = ebb_tests::within(patience, "the relay has caught up", async || {
        let status = node.control.get(&format!("/kafka?app={name}")).await.ok();
        (status["kafka"][0]["relay"]["lag"] == 0).then_some(())
    });
    done.await;
    let (streams, ids) = published(&kafka, &format!("{name}.note"), 120).await;
    assert_eq!(ids.len(), 120, "nothing is lost");
    for (stream, revisions) in streams {
        let mut first = BTreeSet::new();
        let order: Vec<u64> = revisions.iter().copied().filter(|revision| first.insert(*revision)).collect();
        assert_eq!(order, (0..24).collect::<Vec<_>>(), "{stream}: {revisions:?}");
    }
}

#[tokio::test]
async fn with_transactions_a_foreign_consumer_sees_each_event_once_over_twenty_crashes() {
    let Some(kafka) = Kafka::shared().await else { return };
    let name = kafka.unique("once");
    let mut node = node(kafka).await;
    node.deploy(&notes(&name, "", "relay = \"transactional\"")).await;
    let mut written = 0;
    for crash in 0..20 {
        let app = node.app(&name);
        for index in 0..15 {
            let id = format!("n{}", index % 3);
            app.command("note", &id, "write", &json!({ "text": format!("{crash}/{index}") })).await.ok();
            written += 1;
        }
        node.kill().await;
        node.start().await;
    }
    status(&node, &name, "all is published", |status| status["relay"]["lag"] == 0).await;
    let (streams, ids) = published(kafka, &format!("{name}.note"), written).await;
    let twice: Vec<_> = ids.iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty(), "seen more than once: {twice:?}");
    assert_eq!(ids.len(), written);
    for (stream, revisions) in streams {
        assert_eq!(revisions, (0..100).collect::<Vec<_>>(), "{stream}");
    }
}
