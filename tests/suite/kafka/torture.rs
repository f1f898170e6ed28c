//! All that goes wrong between a broker and a node, at once: totals stay exact, order is kept, and dead letters are exactly
//! the poison ones.

use super::{drained, node, notes};
use ebb_tests::{Dice, Isolation, Kafka, KafkaOptions, Record};
use serde_json::json;
use std::collections::BTreeMap;

const NOTES: usize = 12;
const ROUNDS: usize = 8;
const RECORDS: usize = 120;

#[tokio::test]
async fn totals_are_exact_whatever_dies_in_between() {
    let Some(mut kafka) = Kafka::start(KafkaOptions::default()).await else { return };
    let mut dice = Dice::seeded();
    let name = kafka.unique("torture");
    let (topic, dead) = (kafka.topic("torture", 4).await, kafka.topic("torture-dead", 1).await);
    let mut node = node(&kafka).await;
    let source = format!(
        "source = {{ topics = [\"{topic}\"], group = \"{name}\", command = \"write\", dead-letter = \"{dead}\" }}\n\n\
         [topic.{topic}]\ndedupe = \"event-id\"\n"
    );
    node.deploy(&notes(&name, &source, "relay = \"transactional\"")).await;

    let (mut wanted, mut poison, mut number) = (BTreeMap::<String, u64>::new(), 0, 0);
    for round in 0..ROUNDS {
        let mut records = Vec::new();
        for _ in 0..RECORDS {
            number += 1;
            let id = format!("n{}", dice.roll(0..NOTES as u64));
            if dice.once_in(20) {
                poison += 1;
                records.push(Record::new("{broken").key(id).header("content-type", "application/json"));
                continue;
            }
            *wanted.entry(id.clone()).or_default() += 1;
            let record = Record::new(json!({ "text": number.to_string() }).to_string())
                .key(id)
                .header("ce_specversion", "1.0")
                .header("ce_id", number.to_string())
                .header("ce_source", "urn:torture")
                .header("ce_type", "anything")
                .header("content-type", "application/json");
            // A producer that sends twice, with equal ids.
            if dice.once_in(10) {
                records.push(record.clone());
            }
            records.push(record);
        }
        let (first, second) = records.split_at(records.len() / 2);
        kafka.produce(&topic, first).await;
        let mut stranger = None;
        match round % 4 {
            0 => node.kill().await,
            1 => {
                kafka.kill();
                kafka.restart().await;
            }
            // Another member takes partitions, keeps what is in them to itself, and goes.
            2 => stranger = Some(kafka.stranger(&name, &topic).await),
            _ => {
                // All of it is delivered again.
                node.stop().await;
                for partition in 0..4 {
                    kafka.commit(&name, &topic, partition, 0).await;
                }
            }
        }
        kafka.produce(&topic, second).await;
        if let Some(stranger) = stranger {
            stranger.leave().await;
        }
        if matches!(round % 4, 0 | 3) {
            node.start().await;
        }
    }
    drained(&node, &name, 0).await;
    let total: u64 = wanted.values().sum();
    let app = node.app(&name);
    ebb_tests::within(std::time::Duration::from_secs(90), "every command is done", async || {
        let rows = app.get("/models/notes?limit=100").await.ok();
        let done: u64 = rows["items"].as_array()?.iter().filter_map(|row| row["writes"].as_u64()).sum();
        (done >= total).then_some(())
    })
    .await;
    drained(&node, &name, 0).await;
    let rows = app.get("/models/notes?limit=100").await.ok();
    let counted: BTreeMap<String, u64> = rows["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| (row["note"].as_str().unwrap().to_owned(), row["writes"].as_u64().unwrap()))
        .collect();
    assert_eq!(counted, wanted);
    // Each poison record is a dead letter; after a crash perhaps twice, under the same event.
    let letters = kafka.read_all(&dead, Isolation::Committed).await;
    let mut places: Vec<_> = letters
        .iter()
        .map(|letter| {
            let header = |name: &str| letter.header(name).unwrap().to_owned();
            assert_eq!(letter.value.as_deref(), Some(&b"{broken"[..]));
            (header("ebb-dead-letter-partition"), header("ebb-dead-letter-offset"))
        })
        .collect();
    places.sort();
    places.dedup();
    assert_eq!(places.len(), poison, "exactly the poison ones");
    // Per key, in the order of production: what the events say.
    let mut last = BTreeMap::<String, u64>::new();
    for event in app.all_events().await.iter().filter(|event| event["type"] == "Written") {
        let (note, text) = (event["subject"].as_str().unwrap(), event["data"]["text"].as_str().unwrap());
        let number: u64 = text.parse().unwrap();
        let before = last.insert(note.to_owned(), number).unwrap_or(0);
        assert!(before < number, "{note}: {number} came behind {before}");
    }
    // And what came of it went out once.
    super::status(&node, &name, "all is published", |status| status["relay"]["lag"] == 0).await;
    let out = kafka.read_all(&format!("{name}.note"), Isolation::Committed).await;
    assert_eq!(out.len() as u64, total);
}
