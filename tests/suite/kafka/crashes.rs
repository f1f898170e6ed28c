//! Kills at the named points between a broker and the log: what was consumed and published is what it would have been.

use super::{drained, notes, status};
use ebb_faults::Point;
use ebb_tests::{Dice, Isolation, Kafka, Node, Record};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// The points, and how often a node passes each at least.
const POINTS: [(Point, u64); 5] = [
    (Point::IntakeAfterAppend, 1),
    (Point::IntakeAfterDone, 1),
    (Point::RelayAfterPublish, 1),
    (Point::DeadLetterAfterSend, 2),
    (Point::ReplyAfterSend, 8),
];

const RECORDS: usize = 20;
const PATIENCE: Duration = Duration::from_secs(30);
const SIGKILL: i32 = 9;

#[tokio::test]
async fn a_crash_at_any_point_between_broker_and_log_leaves_totals_orders_and_dead_letters_exact() {
    let Some(kafka) = Kafka::shared().await else { return };
    let mut dice = Dice::seeded();
    let name = kafka.unique("crashes");
    let (topic, dead, replies) =
        (kafka.topic("crashes", 2).await, kafka.topic("dead", 1).await, kafka.topic("replies", 1).await);
    let mut node = Node::builder().env("EBB_KAFKA", kafka.brokers()).faults().start().await;
    let source = format!(
        "source = {{ topics = [\"{topic}\"], command = \"write\", dead-letter = \"{dead}\", reply-to = \"{replies}\" }}"
    );
    node.deploy(&notes(&name, &source, "")).await;

    let (mut wanted, mut poison, mut number) = (BTreeMap::<String, u64>::new(), BTreeSet::new(), 0);
    for (point, often) in POINTS {
        let loss =
            if dice.once_in(2) { format!(" power-loss {}", dice.roll(0..u64::MAX)) } else { String::new() };
        node.fault(&format!("crash {point} {}{loss}\n", dice.roll(1..often + 1)));
        let mut records = Vec::new();
        for index in 0..RECORDS {
            number += 1;
            let id = format!("n{}", dice.roll(0..4));
            if index % 8 == 1 {
                records.push(Record::new("{broken").key(id).header("content-type", "application/json"));
                continue;
            }
            *wanted.entry(id.clone()).or_default() += 1;
            records.push(Record::new(json!({ "text": number.to_string() }).to_string()).key(id));
        }
        let places = kafka.produce(&topic, &records).await;
        let broken = places.iter().skip(1).step_by(8);
        poison.extend(broken.map(|(partition, offset)| (partition.to_string(), offset.to_string())));
        assert_eq!(node.died(PATIENCE).await, Some(SIGKILL), "{point} is passed");
        node.fault("");
        node.start().await;
        drained(&node, &name, 0).await;
    }
    let total: u64 = wanted.values().sum();
    let app = node.app(&name);
    ebb_tests::within(PATIENCE, "every command is done", async || {
        let rows = app.get("/models/notes").await.ok();
        let counted = rows["items"].as_array()?.iter().map(|row| {
            (row["note"].as_str().expect("a key").to_owned(), row["writes"].as_u64().expect("a count"))
        });
        let counted: BTreeMap<_, _> = counted.collect();
        assert!(counted.values().sum::<u64>() <= total, "{counted:?} of {wanted:?}");
        (counted == wanted).then_some(())
    })
    .await;
    drained(&node, &name, 0).await;
    let letters = kafka.read_all(&dead, Isolation::Committed).await;
    let header = |record: &ebb_tests::Received, name: &str| record.header(name).expect("a header").to_owned();
    let dead: BTreeSet<_> = letters
        .iter()
        .map(|letter| (header(letter, "ebb-dead-letter-partition"), header(letter, "ebb-dead-letter-offset")))
        .collect();
    assert_eq!(dead, poison, "exactly the poison ones");
    let answered: BTreeSet<_> = kafka
        .read_all(&replies, Isolation::Committed)
        .await
        .iter()
        .map(|reply| header(reply, "ce_id"))
        .collect();
    assert_eq!(answered.len() as u64, total, "each command is answered, again under the same id");
    // What comes again was there before: first appearances are all events, in the order of their stream.
    status(&node, &name, "all is published", |status| status["relay"]["lag"] == 0).await;
    let out = kafka.read_all(&format!("{name}.note"), Isolation::Committed).await;
    let (mut ids, mut last) = (BTreeSet::new(), BTreeMap::<String, u64>::new());
    for event in out.iter().filter(|event| ids.insert(header(event, "ce_id"))) {
        let revision: u64 = header(event, "ce_sequence").parse().expect("a number");
        let before = last.insert(event.key_text().to_owned(), revision);
        assert_eq!(before.map_or(0, |before| before + 1), revision, "{}", event.key_text());
    }
    assert_eq!(ids.len() as u64, total);
}
