//! Reads: models by key and by query, how fresh they are, streams, events, live events.

use crate::support::{open_account, row_after};
use ebb_tests::{Client, LiveEvents, Message, Node, bank};
use serde_json::{Value, json};
use std::collections::BTreeSet;

async fn accounts(bank: &Client, count: u64) -> u64 {
    let mut position = 0;
    for number in 0..count {
        // Balances repeat, so that an order needs the key to be one.
        position = open_account(bank, &format!("a{number:03}"), 100 + number % 7).await;
    }
    position
}

fn keys(page: &Value) -> Vec<String> {
    let items = page["items"].as_array().expect("a page has items");
    items.iter().map(|row| row["account"].as_str().expect("a key").to_owned()).collect()
}

#[tokio::test]
async fn a_caller_reads_its_own_write_and_is_told_how_fresh_the_answer_is() {
    let node = Node::with(&bank()).await;
    let bank = node.app("bank");
    for round in 1..=20 {
        let position = if round == 1 {
            open_account(&bank, "a", 1).await
        } else {
            bank.command("account", "a", "deposit", &json!({ "amount": 1 })).await.position()
        };
        let reply = bank.get("/models/balances/a").header("ebb-after", position).await;
        assert_eq!(reply.ok(), json!({ "account": "a", "owner": "owner of a", "balance": round }));
        assert!(reply.number("ebb-position") >= position);
        assert_eq!((reply.number("ebb-lag"), reply.number("ebb-parked")), (0, 0));
        let page = bank.get("/models/balances?owner=owner%20of%20a").header("ebb-after", position).await;
        assert_eq!(page.ok()["items"][0]["balance"], round);
        assert!(page.number("ebb-position") >= position);
    }
}

#[tokio::test]
async fn a_position_that_the_log_never_reached_is_a_conflict_at_once() {
    let node = Node::with(&bank()).await;
    let bank = node.app("bank");
    let end = accounts(&bank, 1).await;
    let started = std::time::Instant::now();
    for path in ["/models/balances/a000", "/models/balances", "/events", "/streams/account-a000"] {
        let problem = bank
            .get(path)
            .header("ebb-after", end + 1)
            .header("ebb-wait", "30s")
            .await
            .problem(409, "position_unknown");
        assert_eq!(problem["position"], end, "{path}");
        bank.get(path).header("ebb-after", "-1").await.problem(400, "bad_header");
        bank.get(path).header("ebb-after", "soon").await.problem(400, "bad_header");
    }
    bank.get(&format!("/events?after={}", end + 1)).await.problem(409, "position_unknown");
    assert!(started.elapsed().as_secs() < 10, "nobody waited");
    bank.get("/models/balances").header("ebb-wait", "forever").await.problem(400, "bad_header");
}

#[tokio::test]
async fn a_row_that_is_not_there_is_not_found_with_its_freshness() {
    let node = Node::with(&bank()).await;
    let bank = node.app("bank");
    let end = accounts(&bank, 1).await;
    let reply = bank.get("/models/balances/nobody").header("ebb-after", end).await;
    reply.problem(404, "no_such_row");
    assert_eq!((reply.number("ebb-position"), reply.number("ebb-lag")), (end, 0));
}

#[tokio::test]
async fn filters_and_orders_select_rows() {
    let node = Node::with(&bank()).await;
    let bank = node.app("bank");
    let end = accounts(&bank, 10).await;
    let select = async |query: &str| {
        keys(&bank.get(&format!("/models/balances?{query}")).header("ebb-after", end).await.ok())
    };
    assert_eq!(select("balance=100").await, ["a000", "a007"]);
    assert_eq!(select("balance.gt=105").await, ["a006"]);
    assert_eq!(select("balance.gte=105&order=-account").await, ["a006", "a005"]);
    assert_eq!(select("balance.lt=101").await, ["a000", "a007"]);
    assert_eq!(select("balance.lte=101&balance.ne=100").await, ["a001", "a008"]);
    assert_eq!(select("owner=owner+of+a003").await, ["a003"]);
    assert_eq!(select("owner.is=null").await, Vec::<String>::new());
    assert_eq!(select("order=-balance,account&limit=3").await, ["a006", "a005", "a004"]);
    assert_eq!(select("order=balance,-account&limit=3").await, ["a007", "a000", "a008"]);
}

#[tokio::test]
async fn paging_visits_every_row_once_also_while_other_rows_change() {
    let node = Node::with(&bank()).await;
    let bank = node.app("bank");
    let end = accounts(&bank, 40).await;
    for query in
        ["limit=7", "limit=7&order=balance", "limit=7&order=-balance", "limit=7&order=-owner&balance.gt=100"]
    {
        let everything = bank.get(&format!("/models/balances?{query}").replace("limit=7", "limit=1000"));
        let everything = keys(&everything.header("ebb-after", end).await.ok());
        let (mut seen, mut next) = (Vec::new(), String::new());
        loop {
            let page = bank.get(&format!("/models/balances?{query}{next}")).await.ok();
            seen.extend(keys(&page));
            let Some(cursor) = page["next"].as_str() else { break };
            next = format!("&cursor={cursor}");
            // A row that is new in the middle of the walk moves none of the others.
            if query == "limit=7" {
                let position = open_account(&bank, &format!("b{:03}", seen.len()), 100).await;
                row_after(&bank, "balances", &format!("b{:03}", seen.len()), position).await;
            }
        }
        let there_before: Vec<String> = seen.iter().filter(|key| key.starts_with('a')).cloned().collect();
        let expected: Vec<String> = everything.into_iter().filter(|key| key.starts_with('a')).collect();
        assert_eq!(there_before, expected, "{query}");
        assert_eq!(seen.iter().collect::<BTreeSet<_>>().len(), seen.len(), "{query}");
    }
}

#[tokio::test]
async fn streams_and_events_are_read_in_pages_and_by_type() {
    let node = Node::with(&bank()).await;
    let bank = node.app("bank");
    accounts(&bank, 5).await;
    for _ in 0..8 {
        bank.command("account", "a000", "deposit", &json!({ "amount": 1 })).await.ok();
    }
    let stream = bank.get("/streams/account-a000?limit=4").await.ok();
    assert_eq!((stream["events"].as_array().unwrap().len(), &stream["next"]), (4, &json!(4)));
    let stream = bank.get("/streams/account-a000?from=4").await.ok();
    assert_eq!((stream["events"].as_array().unwrap().len(), &stream["next"]), (6, &Value::Null));
    assert_eq!(bank.get("/streams/account-nobody").await.ok(), json!({ "events": [], "next": null }));

    let page = bank.get("/events?after=3&limit=2").await.ok();
    let positions: Vec<_> =
        page["events"].as_array().unwrap().iter().map(|event| event["position"].clone()).collect();
    assert_eq!((positions, &page["next"]), (vec![json!(4), json!(5)], &json!(5)));
    let opened = bank.get("/events?types=Opened").await.ok();
    assert_eq!(opened["events"].as_array().unwrap().len(), 5);
    let reply = bank.get("/events?limit=1").await;
    assert_eq!((reply.number("ebb-position"), reply.number("ebb-lag")), (18, 0));
}

#[tokio::test]
async fn live_events_come_once_each_also_to_a_client_that_reconnects() {
    let mut node = Node::with(&bank()).await;
    open_account(&node.app("bank"), "a", 1).await;
    let deposit = async |bank: &Client| {
        bank.command("account", "a", "deposit", &json!({ "amount": 1 })).await.position()
    };

    let mut live = LiveEvents::open(node.app("bank").get("/events")).await;
    let hello = live.message().await;
    assert!(
        matches!(hello, Some(Message { id: Some(0), data: None, .. })),
        "who connects is told from where: {hello:?}"
    );
    let mut seen = vec![live.event().await.0, live.event().await.0];
    let next = deposit(&node.app("bank")).await;
    let (id, event) = live.event().await;
    seen.push(id);
    assert_eq!((id, &event["position"], &event["type"]), (next, &json!(next), &json!("Deposited")));
    drop(live);

    deposit(&node.app("bank")).await;
    let mut live = LiveEvents::open(node.app("bank").get("/events").header("last-event-id", next)).await;
    seen.push(live.event().await.0);
    node.stop().await;
    assert_eq!(live.message().await, None, "a node that stops ends its streams");
    node.start().await;

    let last = *seen.last().unwrap();
    let mut live = LiveEvents::open(node.app("bank").get("/events").header("last-event-id", last)).await;
    deposit(&node.app("bank")).await;
    seen.push(live.event().await.0);
    assert_eq!(seen, (1..=5).collect::<Vec<u64>>());

    node.app("bank")
        .get("/events")
        .header("accept", "text/event-stream")
        .header("last-event-id", "x")
        .await
        .problem(400, "bad_header");
}

#[tokio::test]
async fn a_silent_live_stream_has_a_heartbeat_with_an_id_and_no_data() {
    let node = Node::with(&bank()).await;
    let end = open_account(&node.app("bank"), "a", 1).await;
    let mut live = LiveEvents::open(node.app("bank").get("/events?types=Closed")).await;
    live.message().await.expect("the greeting");
    let heartbeat = live.message().await.expect("a heartbeat");
    assert_eq!(heartbeat, Message { id: Some(end), data: None, comment: Some("heartbeat".into()) });
}
