//! Events that lead to commands that lead to events: they end, or are held back where somebody sees it.

use crate::support::open_account;
use ebb_tests::{App, Kafka, Node, bank, eventually, guest, within};
use serde_json::{Value, json};
use std::time::Duration;

/// A bank that pays a cent into an account for every cent that is paid in.
fn endless(chains: &str, source: &str, kafka: &str) -> App {
    let name = format!("name = \"bank\"\nchains = {{ {chains} }}\n{kafka}");
    let function = format!(
        "[function.echo]\nmodule = \"asker.wasm\"\n\
         capabilities = {{ commands = [\"account\"], models = [] }}\ntrigger = {{ events = {{ {source}, retry = {{ attempts = 2, backoff = \"10ms\" }} }} }}\n\n[model"
    );
    bank().edit("name = \"bank\"", &name).edit("[model", &function).file("asker.wasm", guest("asker"))
}

fn of_the_log() -> &'static str {
    "types = [\"Deposited\"], aggregates = [\"account\"]"
}

async fn deposits(node: &Node, account: &str) -> usize {
    let events = node.app("bank").get(&format!("/streams/account-{account}?limit=1000")).await.ok();
    let events = events["events"].as_array().expect("events").iter();
    events.filter(|event| event["type"] == "Deposited").count()
}

async fn echo(node: &Node) -> Value {
    let all = node.control.get("/projections?app=bank").await.ok();
    let all = all["projections"].as_array().expect("a list").clone();
    all.into_iter().find(|one| one["projection"] == "echo").expect("the function")
}

async fn metric(node: &Node, name: &str) -> Option<String> {
    let page = node.control.get("/metrics").await;
    let page = String::from_utf8_lossy(&page.body).into_owned();
    let line = page.lines().find(|line| line.starts_with(&format!("{name}{{")))?;
    line.rsplit(' ').next().map(str::to_owned)
}

async fn pay_in(node: &Node, account: &str) {
    node.app("bank").command("account", account, "deposit", &json!({ "amount": 1 })).await.ok();
}

#[tokio::test]
async fn a_chain_ends_behind_its_last_hop_and_what_would_follow_is_parked() {
    let node = Node::with(&endless("hops = 5", of_the_log(), "")).await;
    open_account(&node.app("bank"), "a", 1).await;
    let parked = eventually("the chain to end", async || {
        let echo = echo(&node).await;
        (echo["parked"] == 1).then_some(echo)
    })
    .await;
    assert_eq!(deposits(&node, "a").await, 6, "the one from outside, and five behind it: {parked}");
    assert_eq!(metric(&node, "ebbtide_chains_too_long_total").await.as_deref(), Some("2"), "tried twice");
    let events = node.app("bank").get("/streams/account-a").await.ok();
    let hops: Vec<_> = events["events"].as_array().unwrap().iter().map(|event| &event["hops"]).collect();
    assert_eq!(hops.last().copied(), Some(&json!(5)), "{hops:?}");
    assert!(hops[1].is_null(), "what comes from outside has none");
}

#[tokio::test]
async fn a_chain_that_leads_to_too_much_is_held_back_in_sight_and_nothing_of_it_is_lost() {
    let node = Node::with(&endless("hops = 1000, per-minute = 60", of_the_log(), "")).await;
    open_account(&node.app("bank"), "a", 1).await;
    let held = eventually("it is held back", async || {
        let echo = echo(&node).await;
        (echo["state"] == "held-back").then_some(echo)
    })
    .await;
    assert!(held["reason"].as_str().unwrap().contains("60 commands within a minute"), "{held}");
    let then = deposits(&node, "a").await;
    assert!((60..=70).contains(&then), "{then}");
    assert_eq!(held["parked"], 0);
    let app = node.control.get("/apps/bank").await.ok();
    assert_eq!(app["chains"]["held"].as_array().map(Vec::len), Some(1), "{app}");
    assert_eq!(metric(&node, "ebbtide_chains_tripped_total").await.as_deref(), Some("1"));
    let status = node.ebb_control(&["status"]).await;
    assert!(
        status.stdout.contains("held-back") && status.stdout.contains("chains.per-minute"),
        "{}",
        status.stdout
    );
    // Callers go on, and the chain does, at the rate that it may have.
    pay_in(&node, "a").await;
    within(Duration::from_secs(20), "a cent a second", async || {
        (deposits(&node, "a").await >= then + 4).then_some(())
    })
    .await;
    // The cure: a manifest that does not have it so. What was held back is given at once to who leads to nothing.
    let cured =
        endless("hops = 1000, per-minute = 60", "types = [\"Closed\"], aggregates = [\"account\"]", "");
    node.deploy(&cured).await;
    eventually("it is over", async || (echo(&node).await["lag"] == 0).then_some(())).await;
}

#[tokio::test]
async fn a_chain_by_way_of_a_topic_ends_as_well() {
    let Some(kafka) = Kafka::shared().await else { return };
    let (topic, group) = (kafka.topic("storm", 1).await, kafka.unique("storm"));
    let relay = format!("relay = {{ topics = {{ account = \"{topic}\" }} }}");
    let source = format!("topics = [\"{topic}\"], group = \"{group}\", types = [\"Deposited\"]");
    let node = crate::kafka::node(kafka).await;
    node.deploy(&endless("hops = 7", &source, &relay)).await;
    open_account(&node.app("bank"), "a", 1).await;
    eventually("the chain to end", async || (echo(&node).await["parked"] == 1).then_some(())).await;
    // Each time around it passes the topic and the function.
    assert_eq!(deposits(&node, "a").await, 4);
}
