//! The broker that the other tests rely on does what they think it does.

use ebb_tests::{Isolation, Kafka, KafkaOptions, PASSWORD, Record};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use std::time::{Duration, Instant};

#[tokio::test]
async fn records_come_back_as_they_were_produced() {
    let Some(kafka) = Kafka::shared().await else { return };
    let topic = kafka.topic("as-produced", 3).await;
    let records = [
        Record::new("{}").key("a").header("ce_id", "1").header("ce_id", "again").timestamp_ms(1_000),
        Record::tombstone().key("b").partition(2),
        Record::new([0xff, 0x00]),
    ];
    let places = kafka.produce(&topic, &records).await;
    let read = kafka.read_all(&topic, Isolation::Committed).await;
    let at = |index: usize| {
        let found = read.iter().find(|record| (record.partition, record.offset) == places[index]);
        found.unwrap_or_else(|| panic!("{:?} is not in {read:?}", places[index]))
    };
    assert_eq!(read.len(), 3);
    assert_eq!((at(0).key_text(), at(0).value.as_deref()), ("a", Some(&b"{}"[..])));
    let headers = at(0).headers.iter().map(|(name, value)| (name.as_str(), value.as_slice()));
    assert_eq!(headers.collect::<Vec<_>>(), [("ce_id", &b"1"[..]), ("ce_id", b"again")]);
    assert_eq!(at(0).timestamp_ms, Some(1_000));
    assert_eq!((at(1).partition, at(1).key_text(), at(1).value.as_ref()), (2, "b", None));
    assert_eq!((at(2).key.as_ref(), at(2).value.as_deref()), (None, Some(&[0xff, 0x00][..])));
}

#[tokio::test]
async fn what_a_transaction_aborted_is_seen_only_by_who_asks_for_it() {
    let Some(kafka) = Kafka::shared().await else { return };
    let topic = kafka.topic("transactions", 1).await;
    kafka.produce_in_transaction(&topic, &[Record::new("aborted")], false).await;
    kafka.produce_in_transaction(&topic, &[Record::new("committed")], true).await;
    let values = async |isolation| {
        let read = kafka.read_all(&topic, isolation).await;
        read.into_iter()
            .map(|record| String::from_utf8(record.value.expect("a value")).expect("UTF-8"))
            .collect()
    };
    let (committed, all): (Vec<_>, Vec<_>) =
        (values(Isolation::Committed).await, values(Isolation::Uncommitted).await);
    assert_eq!(committed, ["committed"]);
    assert_eq!(all, ["aborted", "committed"]);
}

#[tokio::test]
async fn offsets_settings_and_records_are_the_tests_to_change() {
    let Some(kafka) = Kafka::shared().await else { return };
    let (topic, group) = (kafka.topic("offsets", 2).await, kafka.unique("group"));
    let records: Vec<_> = (0..5).map(|value: u8| Record::new([value]).partition(0)).collect();
    kafka.produce(&topic, &records).await;
    assert_eq!(kafka.committed(&group, &topic).await, [None, None]);
    kafka.commit(&group, &topic, 0, 4).await;
    assert_eq!(kafka.committed(&group, &topic).await, [Some(4), None]);
    kafka.commit(&group, &topic, 0, 1).await;
    assert_eq!(kafka.committed(&group, &topic).await, [Some(1), None]);
    kafka.delete_records(&topic, 0, 3).await;
    assert_eq!((kafka.starts(&topic).await, kafka.ends(&topic).await), (vec![3, 0], vec![5, 0]));
    kafka.alter_topic(&topic, &[("max.message.bytes", "2000")]).await;
    assert_eq!(kafka.topic_setting(&topic, "max.message.bytes").await.as_deref(), Some("2000"));
    kafka.delete_topic(&topic).await;
}

#[tokio::test]
async fn kafkas_own_console_producer_is_understood() {
    let Some(kafka) = Kafka::shared().await else { return };
    let topic = kafka.topic("console", 1).await;
    super::produce_by_console(kafka, &topic, "ce_type:Opened,ce_id:7\tacc-1\t{\"owner\":\"ada\"}\n").await;
    let read = kafka.read(&topic, 1, Isolation::Committed).await;
    assert_eq!(
        (read[0].key_text(), read[0].header("ce_type"), read[0].header("ce_id")),
        ("acc-1", Some("Opened"), Some("7"))
    );
    assert_eq!(read[0].json()["owner"], "ada");
}

#[tokio::test]
async fn a_broker_that_was_killed_comes_back_with_its_data_and_asks_for_passwords() {
    let started = Instant::now();
    let Some(mut kafka) = Kafka::start(KafkaOptions::default().secure()).await else { return };
    let start = started.elapsed();
    let topic = kafka.topic("killed", 1).await;
    kafka.produce(&topic, &[Record::new("before")]).await;
    kafka.kill();
    let killed = Instant::now();
    kafka.restart().await;
    #[expect(clippy::print_stderr, reason = "a figure for whoever reads the test's output")]
    {
        eprintln!("kafka: started in {start:?}, started again in {:?}", killed.elapsed());
    }
    kafka.produce(&topic, &[Record::new("after")]).await;
    kafka.stop().await;
    kafka.restart().await;
    assert_eq!(kafka.read_all(&topic, Isolation::Committed).await.len(), 2);

    for (listener, protocol) in
        [(kafka.sasl(), "sasl_plaintext"), (kafka.tls(), "ssl"), (kafka.sasl_tls(), "sasl_ssl")]
    {
        for mechanism in ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] {
            let mut config = kafka.client();
            config.set("bootstrap.servers", &listener).set("security.protocol", protocol);
            config.set("ssl.ca.location", kafka.ca().to_str().expect("the path is UTF-8"));
            config.set("sasl.mechanism", mechanism).set("sasl.username", "app");
            let asked = |password: &str, patience: u64| {
                let mut config = config.clone();
                let consumer: BaseConsumer =
                    config.set("sasl.password", password).create().expect("a client");
                let patience = Duration::from_secs(patience);
                tokio::task::spawn_blocking(move || consumer.fetch_metadata(None, patience).map(|_| ()))
            };
            asked(PASSWORD, 20).await.expect("no panic").unwrap_or_else(|error| {
                panic!("{protocol} {mechanism}: {error}");
            });
            if protocol == "sasl_plaintext" && mechanism == "PLAIN" {
                let refused = asked("guessed", 1).await.expect("no panic");
                assert!(refused.is_err(), "a wrong password is taken");
            }
        }
    }
}
