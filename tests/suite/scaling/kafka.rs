//! The lag of a consumer group, as the brokers tell it.

use super::keda::Keda;
use super::{PATIENCE, is_active};
use crate::kafka::{notes, status};
use ebb_tests::{Kafka, KafkaOptions, Node, Record, eventually};
use serde_json::json;
use std::time::{Duration, Instant};

#[tokio::test]
async fn a_groups_lag_wakes_workers_though_nobody_takes_it_and_counts_while_the_brokers_are_away() {
    let Some(mut kafka) = Kafka::start(KafkaOptions::default()).await else { return };
    let (name, topic) = (kafka.unique("scaled"), kafka.topic("scaled", 4).await);
    let builder = Node::builder().env("EBB_SCALER", "127.0.0.1:0").env("EBB_KAFKA", kafka.brokers());
    let node = builder.faults().start().await;
    let source = format!("source = {{ topics = [\"{topic}\"], command = \"write\" }}");
    node.deploy(&notes(&name, &source, "relay = \"off\"")).await;
    let group = format!("group.{name}");
    let keda =
        Keda::connect(&node.scaler(), &[("app", &name), ("consumer", &group), ("lagThreshold", "10")]).await;
    let metric = keda.spec().await.unwrap().metric_specs[0].metric_name.clone();
    eventually("the brokers have said", async || keda.is_active().await.ok()).await;
    is_active(&keda, false).await;
    assert_eq!(keda.value(&metric).await.unwrap(), 0.0);
    let mut activity = keda.activity().await;

    // 0 -> lag: the disk is full, and nobody takes the records.
    node.fault("full\n");
    let records: Vec<_> = (0..40)
        .map(|n: i32| {
            Record::new(json!({ "text": n.to_string() }).to_string()).key(format!("n{n}")).partition(n % 4)
        })
        .collect();
    kafka.produce(&topic, &records).await;
    let pushed = tokio::time::timeout(PATIENCE, activity.message()).await.expect("a push").unwrap();
    assert!(pushed.expect("the stream goes on").result);
    status(&node, &name, "all of it is seen", |status| status["groups"][0]["lag"] == 40).await;
    let full = keda.value(&metric).await.unwrap();
    assert!(full > 30.0, "more than three workers have to do: {full}");

    // Without brokers, what they said last.
    kafka.kill();
    // Longer than it takes to ask them again, in vain.
    let until = Instant::now() + Duration::from_secs(5);
    while Instant::now() < until {
        assert_eq!((keda.value(&metric).await.unwrap(), keda.is_active().await.unwrap()), (full, true));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    kafka.restart().await;

    // Drained -> 0.
    node.fault("");
    is_active(&keda, false).await;
    assert_eq!(keda.value(&metric).await.unwrap(), 0.0);
    let rows = node.app(&name).get("/models/notes?limit=100").await.ok();
    assert_eq!(rows["items"].as_array().unwrap().len(), 40);
}
