//! What can be wrong about Kafka: a clear error each, never a silent stall.

use super::{node, notes, status};
use ebb_tests::{Kafka, KafkaOptions, Node, PASSWORD, Record, eventually};
use serde_json::json;

#[tokio::test]
async fn a_manifest_with_topics_is_refused_by_a_node_without_brokers() {
    let node = Node::start_fresh().await;
    let app = notes("topicless", "source = { topics = [\"orders\"] }", "");
    let problem = node.put(&app).await.problem(422, "manifest_invalid");
    let text = problem.to_string();
    assert!(text.contains("needs Kafka") && text.contains("EBB_KAFKA"), "{text}");
}

#[tokio::test]
async fn no_broker_at_the_address_is_said_and_commands_go_on() {
    let node = Node::builder().env("EBB_KAFKA", "127.0.0.1:1").start().await;
    let deployed = node.put(&notes("nobody", "source = { topics = [\"orders\"] }", "")).await.ok();
    let warnings = deployed["warnings"].as_array().unwrap();
    assert_eq!(warnings.len(), 2, "{deployed}");
    for (warning, what) in
        warnings.iter().zip(["events are not published", "group `nobody` does not consume"])
    {
        let warning = warning.as_str().unwrap();
        assert!(warning.contains(what) && warning.contains("127.0.0.1:1"), "{warning}");
    }
    node.app("nobody").command("note", "a", "write", &json!({ "text": "x" })).await.ok();
    let said = status(&node, "nobody", "both say so", |status| {
        let says = |what: &serde_json::Value| {
            what["state"] == "retrying"
                && what["error"].as_str().is_some_and(|error| error.contains("127.0.0.1:1"))
        };
        says(&status["relay"]) && says(&status["groups"][0])
    });
    said.await;
    let shown = node.ebb_control(&["status"]).await.ok().to_owned();
    assert!(shown.contains("127.0.0.1:1"), "{shown}");
}

#[tokio::test]
async fn credentials_and_grants_that_are_wrong_are_named_and_never_shown() {
    let Some(kafka) = Kafka::start(KafkaOptions::default().secure()).await else { return };
    let with = async |user: &str, password: &str| {
        let node = Node::builder()
            .env("EBB_KAFKA", &kafka.sasl())
            .env("EBB_KAFKA_SASL", "SCRAM-SHA-256")
            .env("EBB_KAFKA_USERNAME", user)
            .env("EBB_KAFKA_PASSWORD", password)
            .start()
            .await;
        let deployed = node.put(&notes("secured", "", "")).await.ok();
        node.app("secured").command("note", "a", "write", &json!({ "text": "x" })).await.ok();
        (node, deployed["warnings"].to_string())
    };
    let (wrong, warnings) = with("app", "guess-that-is-wrong").await;
    assert!(warnings.contains("credentials") && !warnings.contains("guess-that-is-wrong"), "{warnings}");
    let said =
        status(&wrong, "secured", "it is refused", |status| status["relay"]["state"] == "halted").await;
    let reason = said["relay"]["reason"].as_str().unwrap();
    assert!(reason.contains("credentials") && !reason.contains("guess-that-is-wrong"), "{reason}");
    let log = std::fs::read_to_string(wrong.log_path()).unwrap();
    assert!(!log.contains("guess-that-is-wrong"), "{log}");

    let (denied, warnings) = with("guest", PASSWORD).await;
    assert!(warnings.contains("don't let `guest` do this"), "{warnings}");
    let said =
        status(&denied, "secured", "it is denied", |status| status["relay"]["state"] == "halted").await;
    assert!(said["relay"]["reason"].as_str().unwrap().contains("`guest`"), "{said}");

    let (right, warnings) = with("app", PASSWORD).await;
    assert_eq!(warnings, "null", "nothing is wrong");
    status(&right, "secured", "it is published", |status| status["relay"]["lag"] == 0).await;
}

#[tokio::test]
async fn tls_is_checked_against_the_authority_that_the_operator_names() {
    let Some(kafka) = Kafka::start(KafkaOptions::default().secure()).await else { return };
    let ca = kafka.ca();
    let node = Node::builder()
        .env("EBB_KAFKA", &kafka.sasl_tls())
        .env("EBB_KAFKA_TLS", "on")
        .env("EBB_KAFKA_CA", ca.to_str().unwrap())
        .env("EBB_KAFKA_SASL", "PLAIN")
        .env("EBB_KAFKA_USERNAME", "app")
        .env("EBB_KAFKA_PASSWORD", PASSWORD)
        .start()
        .await;
    node.deploy(&notes("encrypted", "", "")).await;
    node.app("encrypted").command("note", "a", "write", &json!({ "text": "x" })).await.ok();
    status(&node, "encrypted", "it is published", |status| status["relay"]["lag"] == 0).await;

    let stranger = Node::builder().env("EBB_KAFKA", &kafka.tls()).env("EBB_KAFKA_TLS", "on").start().await;
    stranger.deploy(&notes("stranger", "", "")).await;
    stranger.app("stranger").command("note", "a", "write", &json!({ "text": "x" })).await.ok();
    status(&stranger, "stranger", "the certificate is not trusted", |status| {
        status["relay"].to_string().contains("kafka.tls")
    })
    .await;
}

#[tokio::test]
async fn a_topic_that_is_missing_is_waited_for_by_name() {
    let Some(kafka) = Kafka::shared().await else { return };
    let (name, topic) = (kafka.unique("missing"), kafka.unique("missing"));
    let node = node(kafka).await;
    let source = format!("source = {{ topics = [\"{topic}\"], key = \"key\", command = \"write\" }}");
    let folder = notes(&name, &source, "relay = \"off\"").write_to(node.home());
    let deployed = node.ebb_control(&["deploy", folder.to_str().unwrap()]).await;
    deployed.ok();
    assert!(deployed.stderr.contains("warning:") && deployed.stderr.contains(&topic), "{}", deployed.stderr);
    let said = status(&node, &name, "it is said", |status| status["groups"][0]["state"] == "halted").await;
    assert!(said["groups"][0]["reason"].as_str().unwrap().contains(&topic), "{said}");
    kafka.create_topic(&topic, 1, &[]).await;
    kafka.produce(&topic, &[Record::new("{\"text\":\"x\"}").key("a")]).await;
    super::drained(&node, &name, 1).await;
}

#[tokio::test]
async fn an_offset_that_is_gone_halts_the_group_until_somebody_says_where_it_goes_on() {
    let Some(kafka) = Kafka::shared().await else { return };
    let (name, topic) = (kafka.unique("gone"), kafka.topic("gone", 1).await);
    let mut node = node(kafka).await;
    let source = format!("source = {{ topics = [\"{topic}\"], group = \"{name}\", command = \"write\" }}");
    node.deploy(&notes(&name, &source, "relay = \"off\"")).await;
    let record = |n: usize| Record::new(json!({ "text": n.to_string() }).to_string()).key("a");
    kafka.produce(&topic, &(0..5).map(record).collect::<Vec<_>>()).await;
    super::drained(&node, &name, 5).await;
    node.stop().await;
    kafka.produce(&topic, &(5..10).map(record).collect::<Vec<_>>()).await;
    kafka.delete_records(&topic, 0, 8).await;
    node.start().await;
    let said = status(&node, &name, "it halts", |status| status["groups"][0]["state"] == "halted").await;
    let reason = said["groups"][0]["reason"].as_str().unwrap();
    assert!(
        reason.contains("offset 5") && reason.contains("begins at 8") && reason.contains("reset-offsets"),
        "{reason}"
    );
    kafka.commit(&name, &topic, 0, 8).await;
    eventually("it goes on", async || {
        let status = node.control.get(&format!("/kafka?app={name}")).await.ok();
        (status["kafka"][0]["groups"][0]["records"] == 2).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_topic_that_was_made_again_halts_the_group_until_the_new_one_is_accepted() {
    let Some(kafka) = Kafka::shared().await else { return };
    let (name, topic) = (kafka.unique("again"), kafka.topic("again", 1).await);
    let mut node = node(kafka).await;
    let source = format!("source = {{ topics = [\"{topic}\"], command = \"write\" }}");
    node.deploy(&notes(&name, &source, "relay = \"off\"")).await;
    let record = |n: usize| Record::new(json!({ "text": n.to_string() }).to_string()).key("a");
    kafka.produce(&topic, &[record(0)]).await;
    super::drained(&node, &name, 1).await;
    node.stop().await;
    kafka.delete_topic(&topic).await;
    eventually("it is gone", async || {
        kafka.topic_setting(&topic, "retention.ms").await.is_none().then_some(())
    })
    .await;
    kafka.create_topic(&topic, 1, &[]).await;
    kafka.produce(&topic, &[record(1)]).await;
    node.start().await;
    let said = status(&node, &name, "it halts", |status| status["groups"][0]["state"] == "halted").await;
    assert!(said["groups"][0]["reason"].as_str().unwrap().contains("deleted and made again"), "{said}");
    node.ebb_control(&["topics", "accept", &topic, "--app", &name]).await.ok();
    super::drained(&node, &name, 1).await;
    assert_eq!(node.app(&name).get("/models/notes/a").await.ok()["writes"], 2);
}

#[tokio::test]
async fn a_topic_that_takes_less_than_events_may_have_is_refused_by_the_relay() {
    let Some(kafka) = Kafka::shared().await else { return };
    let name = kafka.unique("small");
    kafka.create_topic(&format!("{name}.note"), 1, &[("max.message.bytes", "1000")]).await;
    let node = node(kafka).await;
    node.deploy(&notes(&name, "", "")).await;
    node.app(&name).command("note", "a", "write", &json!({ "text": "x" })).await.ok();
    let said = status(&node, &name, "it is said", |status| status["relay"]["state"] == "halted").await;
    let reason = said["relay"]["reason"].as_str().unwrap();
    assert!(reason.contains("1000 bytes") && reason.contains("max.message.bytes"), "{reason}");
}
