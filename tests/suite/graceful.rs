//! Ends and changes that nobody notices: a node that is told to stop, and deployments under load.

use crate::raw;
use ebb_tests::{App, Node, eventually, guest};
use futures_util::future::join_all;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Functions that stream, and one that says which deployment it is of.
fn app(greeting: &str) -> App {
    App::new(&format!(
        r#"[app]
name = "graceful"

[function.do]
module = "http.wasm"
trigger = {{ http = {{ route = "/do/{{what}}" }} }}
limits = {{ wall = "10min" }}
capabilities = {{ env = {{ GREETING = "{greeting}" }} }}

[function.newer]
module = "http3.wasm"
trigger = {{ http = {{ route = "/new/{{what}}" }} }}
limits = {{ wall = "10min" }}
"#
    ))
    .file("http.wasm", guest("http"))
    .file("http3.wasm", guest("http3"))
}

async fn draining(drain: &str) -> Node {
    let node = Node::builder().settings(&format!("drain = \"{drain}\"\n")).start().await;
    node.deploy(&app("hi")).await;
    node
}

/// A stream that has begun.
async fn streaming(node: &Node, path: &str) -> raw::Call {
    let mut call = raw::Call::open(node).await;
    call.send(&format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n")).await;
    call.until("data: 2\n\n").await;
    call
}

#[tokio::test]
async fn a_node_that_is_told_to_stop_first_says_so_and_lets_responses_come_to_their_end() {
    let mut node = draining("60s").await;
    let mut streams = Vec::new();
    // 20 ms from tick to tick.
    for path in ["/do/ticks?n=150", "/new/ticks?n=150"] {
        streams.push(streaming(&node, path).await);
    }
    assert_eq!(node.control.get("/readyz").await.status, 200);
    node.ask_to_stop();
    eventually("it to be ready no more", async || {
        (node.control.get("/readyz").await.status == 503).then_some(())
    })
    .await;
    assert_eq!(node.control.get("/livez").await.status, 200, "it is not to be killed for it");
    for stream in &mut streams {
        assert!(!stream.seen().contains("data: 149\n"), "there was more to come: {}", stream.seen());
        stream.until("data: 149\n\n").await;
        stream.until("\r\n0\r\n\r\n").await;
    }
    assert_eq!(node.ended().await, Some(0));
}

#[tokio::test]
async fn a_response_that_outlasts_the_deadline_is_broken_off_for_all_to_see() {
    let mut node = draining("1s").await;
    let mut streams = Vec::new();
    for path in ["/do/ticks?n=1000000", "/new/ticks?n=1000000"] {
        streams.push(streaming(&node, path).await);
    }
    let told = Instant::now();
    node.ask_to_stop();
    for stream in &mut streams {
        stream.closed().await;
        assert!(!stream.seen().ends_with("0\r\n\r\n"), "it does not look like the end");
    }
    assert!(told.elapsed() >= Duration::from_secs(1), "it had until the deadline");
    assert_eq!(node.ended().await, Some(0));
}

#[tokio::test]
async fn deployments_under_load_fail_no_request_and_cut_off_nothing() {
    let node = Node::with(&app("0")).await;
    let mut before = streaming(&node, "/do/ticks?n=150").await;
    let done = Arc::new(AtomicBool::new(false));
    let callers = (0..8).map(|_| {
        let (data, done) = (node.data.clone(), done.clone());
        tokio::spawn(async move {
            let (mut calls, mut last) = (0_u32, 0_u32);
            while !done.load(Ordering::Relaxed) {
                let reply = data.get("/do/env").await;
                let said = String::from_utf8_lossy(&reply.body).into_owned();
                let greeting = said.trim().strip_prefix("GREETING=").and_then(|number| number.parse().ok());
                let Some(of) = greeting.filter(|_| reply.status == 200) else { panic!("{reply:?}") };
                assert!(of >= last, "a deployment that was seen to serve goes on: {of} after {last}");
                (calls, last) = (calls + 1, of);
            }
            calls
        })
    });
    let callers: Vec<_> = callers.collect();
    for deployment in 1..=10 {
        node.deploy(&app(&deployment.to_string())).await;
        let reply = node.data.get("/do/env").await;
        assert_eq!(
            reply.body,
            format!("GREETING={deployment}\n").as_bytes(),
            "it serves once it is deployed"
        );
    }
    done.store(true, Ordering::Relaxed);
    for calls in join_all(callers).await {
        assert!(calls.expect("no request fails") > 0);
    }
    before.until("data: 149\n\n").await;
    before.until("\r\n0\r\n\r\n").await;
}
