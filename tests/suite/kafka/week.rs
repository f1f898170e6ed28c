//! The flights week by way of Kafka: foreign producers' records are commands, the events they lead to go out, and another
//! app makes read models of those. All of them are what the CSV says.

use super::{drained, node, produce_by_console, status};
use crate::flights::{WEEK, actual, expected, week};
use ebb_tests::{App, Kafka, examples};

#[tokio::test]
async fn the_week_in_by_topic_and_out_by_topic_is_what_the_csv_says_at_both_ends() {
    let Some(kafka) = Kafka::shared().await else { return };
    let mut node = node(kafka).await;
    let (name, mirror, topic) =
        (kafka.unique("flights"), kafka.unique("mirror"), kafka.topic("week", 3).await);

    // Plain JSON, of Kafka's own console producer: the lines of `ebb import` as they are.
    let source = format!(
        "[topic.{topic}]\ndata = {{ field = \"data\" }}\n\n[aggregate.flight]\nsource = {{ topics = [\"{topic}\"], command = \
         {{ header = \"command\" }} }}\n"
    );
    let flights = App::in_folder(&examples("flights"))
        .edit("name = \"flights\"", &format!("name = \"{name}\""))
        .edit("hosts = [\"flights.localhost\"]", "")
        .edit("[aggregate.flight] ", &source);
    node.deploy(&flights).await;
    let lines = std::fs::read_to_string(week(&node)).expect("the week");
    let mut records = String::new();
    for line in lines.lines() {
        let value: serde_json::Value = serde_json::from_str(line).expect("a command a line");
        let (id, command) = (value["id"].as_str().unwrap(), value["command"].as_str().unwrap());
        records.push_str(&format!("command:{command}\t{id}\t{line}\n"));
    }
    produce_by_console(kafka, &topic, &records).await;
    drained(&node, &name, WEEK).await;
    let end = node.control.get(&format!("/apps/{name}")).await.ok()["position"].as_u64().unwrap();
    assert_eq!(end, 2 * WEEK, "each record, and the event that it led to");
    assert_eq!(actual(&node.app(&name), end).await, expected());

    // The events of that app are other apps' records: by way of the log, and straight.
    status(&node, &name, "all is published", |status| status["relay"]["lag"] == 0).await;
    let followers = |app: &str, more: &str| {
        let by_topic = format!("source = {{ topics = [\"{name}.flight\"]{more} }}");
        App::in_folder(&examples("flights"))
            .edit("name = \"flights\"", &format!("name = \"{app}\"\nrelay = \"off\""))
            .edit("hosts = [\"flights.localhost\"]", "")
            .edit("source = { aggregates = [\"flight\"] }", &by_topic)
            .edit("source = { aggregates = [\"flight\"] }", &by_topic)
            .edit("source = { aggregates = [\"flight\"] }", &by_topic)
    };
    node.deploy(&followers(&mirror, "")).await;
    drained(&node, &mirror, WEEK).await;
    assert_eq!(actual(&node.app(&mirror), WEEK).await, expected());

    let straight = kafka.unique("straight");
    node.deploy(&followers(&straight, ", via = \"direct\"")).await;
    // Killed in the middle, and gone on from there.
    status(&node, &straight, "some is taken", |status| applied(status) > WEEK / 2).await;
    node.kill().await;
    node.start().await;
    status(&node, &straight, "all is taken", |status| {
        let groups = status["groups"].as_array().cloned().unwrap_or_default();
        let taken = groups.iter().map(|group| {
            let partitions = group["partitions"].as_array().expect("partitions");
            partitions.iter().filter_map(|one| one["committed"].as_u64()).sum::<u64>()
        });
        taken.collect::<Vec<_>>() == [WEEK; 3]
    })
    .await;
    assert_eq!(actual(&node.app(&straight), None).await, expected());
    assert_eq!(
        node.control.get(&format!("/apps/{straight}")).await.ok()["position"],
        0,
        "nothing is in the log"
    );
}

/// Records that all groups have dealt with since the app was opened.
fn applied(status: &serde_json::Value) -> u64 {
    let groups = status["groups"].as_array().cloned().unwrap_or_default();
    groups.iter().filter_map(|group| group["records"].as_u64()).sum()
}
