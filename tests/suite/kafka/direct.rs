//! Records straight from topics into rows: nothing of them is in the log, each is in the rows once, and what is not there any
//! more is never left out silently.

use super::{node, notes, status};
use ebb_tests::{App, Dice, Kafka, Node, Record, eventually, guest};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

/// Notes whose projection takes records straight from a topic; `more` is about the topic.
fn straight(name: &str, topic: &str, more: &str) -> App {
    let about = format!("\n[topic.{topic}]\ntype = {{ header = \"kind\" }}\n{more}\n");
    let source = format!("source = {{ topics = [\"{topic}\"], via = \"direct\" }}");
    notes(name, &about, "relay = \"off\"").edit("source = { aggregates = [\"note\"] }", &source)
}

fn record(partition: i32, key: &str, kind: &str) -> Record {
    Record::new(json!({ "text": key }).to_string()).key(key).header("kind", kind).partition(partition)
}

/// Waits until the projection stands at the ends of the topic, as the node and as Kafka's own tools see it.
async fn taken(kafka: &Kafka, node: &Node, app: &str, topic: &str) {
    let ends = kafka.ends(topic).await;
    status(node, app, "all is taken", |status| {
        let partitions = status["groups"][0]["partitions"].as_array().cloned().unwrap_or_default();
        let at = |index: usize| partitions.iter().find(|one| one["partition"] == index);
        ends.iter().enumerate().all(|(index, end)| at(index).is_some_and(|one| one["committed"] == *end))
    })
    .await;
    eventually("the broker knows", async || {
        let committed = kafka.committed(&format!("{app}.notes"), topic).await;
        let all = committed.iter().zip(&ends).all(|(committed, end)| committed.unwrap_or(0) == *end);
        all.then_some(())
    })
    .await;
}

/// Records that are in the rows of each partition.
async fn writes(node: &Node, app: &str, topic: &str) -> BTreeMap<u64, u64> {
    let page = node.app(app).get("/models/notes?limit=100").await;
    assert!(page.header("ebb-position").is_none(), "where it stands is no position of the log");
    let rows = page.ok()["items"].as_array().unwrap().clone();
    let partition = |row: &Value| {
        let key = row["note"].as_str().unwrap().strip_prefix(&format!("{topic}-")).unwrap();
        (key.parse().unwrap(), row["writes"].as_u64().unwrap())
    };
    rows.iter().map(partition).collect()
}

#[tokio::test]
async fn rows_are_exact_whatever_dies_in_between_and_poison_is_parked_while_others_go_on() {
    let Some(kafka) = Kafka::shared().await else { return };
    let mut dice = Dice::seeded();
    let (name, topic) = (kafka.unique("straight"), kafka.topic("straight", 3).await);
    let mut node = Node::builder().env("EBB_KAFKA", kafka.brokers()).faults().start().await;
    node.deploy(&straight(&name, &topic, "dedupe = \"event-id\"")).await;
    let (mut wanted, mut poison) = (BTreeMap::<u64, u64>::new(), 0);
    for round in 0..4 {
        let mut records = Vec::new();
        for number in 0..1500 {
            let partition = dice.roll(0..3);
            if dice.once_in(100) {
                poison += 1;
                // Of a key of its own: nobody queues behind it.
                records.push(record(partition as i32, &format!("p{round}-{number}"), "Poisoned"));
                continue;
            }
            *wanted.entry(partition).or_default() += 1;
            let written = record(partition as i32, &format!("k{}", dice.roll(0..50)), "Written")
                .header("ce_specversion", "1.0")
                .header("ce_id", format!("{round}-{number}"))
                .header("ce_source", "urn:straight")
                .header("ce_type", "Written");
            // A producer that sends twice, with equal ids.
            if dice.once_in(10) {
                records.push(written.clone());
            }
            records.push(written);
        }
        let (first, second) = records.split_at(dice.roll(100..1400) as usize);
        let point = ["rows.before-commit", "rows.after-commit"].get(round);
        if let Some(point) = point {
            node.fault(&format!("crash {point} {}\n", dice.roll(1..4)));
        }
        kafka.produce(&topic, first).await;
        match point {
            Some(_) => assert_eq!(node.died(Duration::from_secs(60)).await, Some(9)),
            None => node.kill().await,
        }
        node.fault("");
        kafka.produce(&topic, second).await;
        node.start().await;
    }
    taken(kafka, &node, &name, &topic).await;
    assert_eq!(writes(&node, &name, &topic).await, wanted);
    let end = node.control.get(&format!("/apps/{name}")).await.ok()["position"].clone();
    assert_eq!(end, 0, "nothing is in the log");
    let letters = node.ebb_control(&["dead-letters", "list", "--app", &name, "--json"]).await.ok().to_owned();
    assert_eq!(letters.lines().count(), poison, "exactly the poison ones");

    // They are kept with the rows, whatever the topic remembers.
    for (partition, end) in kafka.ends(&topic).await.into_iter().enumerate() {
        kafka.delete_records(&topic, partition as i32, end).await;
    }
    let first: Value = serde_json::from_str(letters.lines().next().unwrap()).unwrap();
    let key = first["key"].as_str().unwrap().to_owned();
    let on = ["notes", &key, "--app", &name, "--json"];
    let shown = node.ebb_control(&[&["dead-letters", "show"], &on[..]].concat()).await.json();
    assert_eq!((&shown["event"]["type"], &shown["event"]["kafkatopic"]), (&json!("Poisoned"), &json!(topic)));
    kafka.produce(&topic, &[record(0, "cure", "Cured")]).await;
    taken(kafka, &node, &name, &topic).await;
    node.ebb_control(&[&["dead-letters", "retry"], &on[..]].concat()).await.ok();
    let after = writes(&node, &name, &topic).await;
    assert_eq!(after.values().sum::<u64>(), wanted.values().sum::<u64>());
    let left = node.ebb_control(&["dead-letters", "list", "--app", &name, "--json"]).await.ok().to_owned();
    assert_eq!(left.lines().count(), poison - 1);
    node.app(&name).get("/models/notes").header("ebb-after", 1).await.problem(400, "bad_header");
}

#[tokio::test]
async fn where_it_begins_is_durable_before_anything_is_taken() {
    let Some(kafka) = Kafka::shared().await else { return };
    let (name, topic) = (kafka.unique("begins"), kafka.unique("begins"));
    let mut node = Node::builder().env("EBB_KAFKA", kafka.brokers()).faults().start().await;
    node.deploy(&straight(&name, &topic, "start = \"latest\"")).await;
    status(&node, &name, "it waits", |status| status["groups"][0]["state"] == "halted").await;
    node.fault("crash serving.after-rename 1\n");
    kafka.create_topic(&topic, 1, &[]).await;
    assert_eq!(node.died(Duration::from_secs(60)).await, Some(9), "it has just kept where it begins");
    node.fault("");
    kafka.produce(&topic, &[record(0, "a", "Written")]).await;
    node.start().await;
    taken(kafka, &node, &name, &topic).await;
    assert_eq!(writes(&node, &name, &topic).await, [(0, 1)].into());
}

#[tokio::test]
async fn a_version_is_built_from_what_the_topic_has_and_refused_when_that_is_gone() {
    let Some(kafka) = Kafka::shared().await else { return };
    let (name, topic) = (kafka.unique("rebuilt"), kafka.topic("rebuilt", 2).await);
    let node = node(kafka).await;
    kafka.produce(&topic, &[record(0, "old", "Written")]).await;
    node.deploy(&straight(&name, &topic, "start = \"latest\"")).await;
    status(&node, &name, "it has begun", |status| status["groups"][0]["partitions"][1]["committed"] == 0)
        .await;
    let records: Vec<_> = (0..200).map(|n| record(n % 2, "a", "Written")).collect();
    kafka.produce(&topic, &records).await;
    taken(kafka, &node, &name, &topic).await;
    let changed =
        straight(&name, &topic, "start = \"latest\"").file("projection.wasm", guest("notes_projection_2"));
    node.deploy(&changed).await;
    eventually("the changed one serves", async || {
        let rows = node.app(&name).get("/models/notes").await.ok();
        (rows["items"][0]["version"] == 2 && rows["items"][1]["version"] == 2).then_some(())
    })
    .await;
    assert_eq!(writes(&node, &name, &topic).await, [(0, 100), (1, 100)].into(), "from where it began");
    node.control.post(&format!("/apps/{name}/projections/notes/rebuild"), &json!({})).await.ok();
    eventually("it is rebuilt", async || {
        let all = node.control.get(&format!("/projections?app={name}")).await.ok();
        all["projections"][0]["building"].is_null().then_some(())
    })
    .await;
    assert_eq!(writes(&node, &name, &topic).await, [(0, 100), (1, 100)].into());

    kafka.delete_records(&topic, 1, 7).await;
    let rebuilt = node.control.post(&format!("/apps/{name}/projections/notes/rebuild"), &json!({})).await;
    rebuilt.problem(409, "records_gone");
    let refused = node.put(&straight(&name, &topic, "start = \"latest\"")).await;
    refused.problem(409, "records_gone");
    kafka.produce(&topic, &[record(1, "a", "Written")]).await;
    taken(kafka, &node, &name, &topic).await;
    assert_eq!(writes(&node, &name, &topic).await, [(0, 100), (1, 101)].into(), "what serves goes on");
}

#[tokio::test]
async fn who_has_taken_all_records_of_a_topic_that_transactions_write_is_not_behind() {
    let Some(kafka) = Kafka::shared().await else { return };
    let (name, by_log) = (kafka.unique("straight"), kafka.unique("by-log"));
    let topic = kafka.topic("transactions", 2).await;
    let node = node(kafka).await;
    node.deploy(&straight(&name, &topic, "")).await;
    let source = format!("source = {{ topics = [\"{topic}\"], command = \"write\" }}");
    node.deploy(&notes(&by_log, &source, "relay = \"off\"")).await;
    for round in 0..3 {
        let records: Vec<_> = (0..20).map(|n| record(n % 2, &format!("{round}-{n}"), "Written")).collect();
        kafka.produce_in_transaction(&topic, &records, true).await;
        kafka.produce_in_transaction(&topic, &records, false).await;
    }
    for app in [&name, &by_log] {
        let groups = status(&node, app, "nothing is left", |status| {
            status["groups"][0]["records"] == 60 && status["groups"][0]["lag"] == 0
        });
        groups.await;
    }
    assert_eq!(
        writes(&node, &name, &topic).await,
        [(0, 30), (1, 30)].into(),
        "what was aborted is in no row"
    );
}

#[tokio::test]
async fn what_is_gone_and_what_was_made_again_halts_it_until_somebody_accepts_that() {
    let Some(kafka) = Kafka::shared().await else { return };
    let (name, topic) = (kafka.unique("halted"), kafka.topic("halted", 1).await);
    let mut node = node(kafka).await;
    node.deploy(&straight(&name, &topic, "")).await;
    kafka.produce(&topic, &[record(0, "a", "Written")]).await;
    taken(kafka, &node, &name, &topic).await;
    let halts = async |node: &Node, why: &str| {
        let said = status(node, &name, "it halts", |status| status["groups"][0]["state"] == "halted").await;
        let reason = said["groups"][0]["reason"].as_str().unwrap().to_owned();
        assert!(reason.contains(why) && reason.contains("ebb topics accept"), "{reason}");
        assert!(node.ebb_control(&["status"]).await.ok().contains(why));
        node.ebb_control(&["topics", "accept", &topic, "--app", &name]).await.ok();
    };

    node.stop().await;
    kafka.produce(&topic, &vec![record(0, "a", "Written"); 4]).await;
    kafka.delete_records(&topic, 0, 3).await;
    node.start().await;
    halts(&node, "begins at 3").await;
    taken(kafka, &node, &name, &topic).await;
    assert_eq!(writes(&node, &name, &topic).await, [(0, 3)].into());

    node.stop().await;
    kafka.delete_topic(&topic).await;
    eventually("it is gone", async || {
        kafka.topic_setting(&topic, "retention.ms").await.is_none().then_some(())
    })
    .await;
    kafka.create_topic(&topic, 1, &[]).await;
    kafka.produce(&topic, &[record(0, "a", "Written")]).await;
    node.start().await;
    halts(&node, "deleted and made again").await;
    taken(kafka, &node, &name, &topic).await;
    assert_eq!(writes(&node, &name, &topic).await, [(0, 4)].into());
}
