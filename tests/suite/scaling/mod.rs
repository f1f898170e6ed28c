//! KEDA asks how many workers are wanted, and is told so that they come and go.

mod kafka;
mod keda;

use crate::effects::{Collector, telling};
use crate::functions;
use crate::support::open_account;
use ebb_tests::{Node, eventually};
use keda::{Keda, failure};
use serde_json::json;
use std::time::Duration;
use tonic::Code;

const METRIC: &str = "ebbtide-lag-bank-function-tell";
const PATIENCE: Duration = Duration::from_secs(30);

async fn node() -> Node {
    Node::builder().env("EBB_SCALER", "127.0.0.1:0").start().await
}

/// Waits until KEDA would decide so.
async fn is_active(keda: &Keda, wanted: bool) {
    eventually("the trigger to become so", async || {
        (keda.is_active().await.unwrap() == wanted).then_some(())
    })
    .await;
}

#[tokio::test]
async fn workers_are_woken_by_lag_and_let_go_when_it_is_gone() {
    let collector = Collector::open().await;
    let node = node().await;
    node.deploy(&telling(&collector)).await;
    let scaler = node.scaler();
    let keda =
        Keda::connect(&scaler, &[("app", "bank"), ("consumer", "function.tell"), ("lagThreshold", "1")])
            .await;
    let spec = keda.spec().await.unwrap();
    assert_eq!((&*spec.metric_specs[0].metric_name, spec.metric_specs[0].target_size), (METRIC, 1));
    assert_eq!(spec.metric_specs[0].target_size_float, 1.0);
    let mut specs = keda.specs().await;
    assert_eq!(specs.message().await.unwrap().as_ref(), Some(&spec), "the current one comes at once");
    is_active(&keda, false).await;
    assert_eq!(keda.value(METRIC).await.unwrap(), 0.0);

    // 0 -> lag, pushed without being asked for.
    let mut activity = keda.activity().await;
    collector.answers("account-ann", 503);
    open_account(&node.app("bank"), "ann", 5).await;
    for amount in 1..20 {
        node.app("bank").command("account", "ann", "deposit", &json!({ "amount": amount })).await.ok();
    }
    let pushed = tokio::time::timeout(PATIENCE, activity.message()).await.expect("a push").unwrap();
    assert!(pushed.expect("the stream goes on").result);
    is_active(&keda, true).await;
    // The log is one partition: one worker, however much there is to do.
    assert_eq!(keda.value(METRIC).await.unwrap(), 1.0);
    let patient = [("app", "bank"), ("consumer", "function.tell"), ("activationLagThreshold", "1000")];
    assert!(!Keda::connect(&scaler, &patient).await.is_active().await.unwrap());
    let many = [
        ("app", "bank"),
        ("consumer", "function.tell"),
        ("lagThreshold", "5"),
        ("allowIdleConsumers", "true"),
    ];
    let many = Keda::connect(&scaler, &many).await.value(METRIC).await.unwrap();
    assert!((15.0..=25.0).contains(&many), "{many}");

    // Drained -> 0. That is not pushed, and what follows is the next edge.
    collector.is_mended();
    is_active(&keda, false).await;
    assert_eq!(keda.value(METRIC).await.unwrap(), 0.0);
    collector.answers("account-bob", 503);
    // Longer than it takes to be seen to be drained.
    assert!(tokio::time::timeout(Duration::from_millis(600), activity.message()).await.is_err());
    open_account(&node.app("bank"), "bob", 5).await;
    let pushed = tokio::time::timeout(PATIENCE, activity.message()).await.expect("a push").unwrap();
    assert!(pushed.expect("the stream goes on").result, "only `true` is ever pushed");
}

#[tokio::test]
async fn workers_are_woken_by_requests_that_wait() {
    let node = node().await;
    node.deploy(&functions::app()).await;
    let of = async |metadata: &[(&str, &str)]| {
        let mut all = vec![("app", "functions"), ("metric", "requests"), ("requestsThreshold", "1")];
        all.extend_from_slice(metadata);
        Keda::connect(&node.scaler(), &all).await
    };
    let (every, one, other) = (
        of(&[]).await,
        of(&[("function", "function.do")]).await,
        of(&[("function", "function.hello")]).await,
    );
    assert!(!every.is_active().await.unwrap());
    let app = node.app("functions");
    let slow = tokio::spawn(async move { app.get("/do/sleep?ms=1900").await.status });
    is_active(&every, true).await;
    assert!(one.is_active().await.unwrap() && !other.is_active().await.unwrap());
    assert_eq!(one.value("ebbtide-requests-functions-function-do").await.unwrap(), 1.0);
    slow.await.unwrap();
    is_active(&every, false).await;
}

#[tokio::test]
async fn a_trigger_that_asks_for_what_is_not_there_is_told_what_is() {
    let collector = Collector::open().await;
    let mut node = node().await;
    node.deploy(&telling(&collector)).await;
    let scaler = node.scaler();
    let ask =
        async |metadata: &[(&str, &str)]| failure(Keda::connect(&scaler, metadata).await.is_active().await);
    let (code, message) = ask(&[("app", "bank"), ("consumer", "function.tells")]).await;
    assert_eq!(code, Code::NotFound);
    let there = message.split_once("there are ").map(|(_, there)| there.split(", ").collect::<Vec<_>>());
    let mut there = there.unwrap_or_else(|| panic!("{message}"));
    there.sort_unstable();
    assert_eq!(there, ["function.tell", "projection.balances"]);
    let (code, message) = ask(&[("app", "shop"), ("consumer", "function.tell")]).await;
    assert_eq!((code, &*message), (Code::NotFound, "no app `shop` is deployed"));
    let (code, message) = ask(&[("app", "bank"), ("lagThreshold", "0"), ("topic", "flights")]).await;
    assert_eq!(code, Code::InvalidArgument);
    for part in
        ["ScaledObject shop/workers", "`consumer` is missing", "`lagThreshold` is `0`", "`topic` is not"]
    {
        assert!(message.contains(part), "{message}");
    }
    let keda = Keda::connect(&scaler, &[("app", "bank"), ("consumer", "function.tell")]).await;
    let (code, message) = failure(keda.value("s0-other").await);
    assert!(code == Code::NotFound && message.contains(METRIC), "{message}");

    // A stream does not keep the node from stopping.
    let mut activity = keda.activity().await;
    assert_eq!(node.stop().await, Some(0));
    assert!(!matches!(activity.message().await, Ok(Some(_))));
}
