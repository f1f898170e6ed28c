//! Deploying: what serves goes on serving until its successor does, and a crash leaves one of the two.

use crate::support::{bank_named, notes, notes_changed, open_account, row_after};
use ebb_tests::{App, Client, Dice, LiveEvents, Node, bank, eventually};
use http::Method;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

async fn write(notes: &Client, id: &str, text: &str) -> u64 {
    notes.command("note", id, "write", &json!({ "text": text })).await.position()
}

/// Waits until a row says that it was written by this version of the projection.
async fn version_served(notes: &Client, id: &str, version: u64) -> Value {
    eventually("the changed projection to serve", async || {
        let row = notes.get(&format!("/models/notes/{id}")).await.ok();
        (row["version"] == version).then_some(row)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_swap_under_load_loses_no_request_and_no_reader_sees_the_mark_go_back() {
    let node = Arc::new(Node::with(&notes()).await);
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let (notes, stop) = (node.app("notes"), stop.clone());
            tokio::spawn(async move {
                let mut writes = 0;
                while !stop.load(Ordering::Relaxed) {
                    write(&notes, &format!("n{writer}"), &format!("text {writes}")).await;
                    writes += 1;
                }
                writes
            })
        })
        .collect();
    let reader = {
        let (notes, stop) = (node.app("notes"), stop.clone());
        tokio::spawn(async move {
            let mut mark = 0;
            let mut reads = 0;
            while !stop.load(Ordering::Relaxed) {
                let reply = notes.get("/models/notes?order=-writes").await;
                reply.ok();
                let now = reply.number("ebb-position");
                assert!(now >= mark, "the mark went from {mark} back to {now}");
                mark = now;
                reads += 1;
            }
            reads
        })
    };
    for (number, app) in [(2, notes_changed()), (3, notes()), (4, notes_changed())] {
        assert_eq!(node.deploy(&app).await, number);
        // Some of each version's life under load.
        let end = write(&node.app("notes"), "other", &number.to_string()).await;
        row_after(&node.app("notes"), "notes", "other", end).await;
    }
    stop.store(true, Ordering::Relaxed);
    let mut writes = Vec::new();
    for writer in writers {
        writes.push(writer.await.expect("no request failed"));
    }
    assert!(reader.await.expect("no read failed") > 0);
    let notes = node.app("notes");
    let end = write(&notes, "last", "last").await;
    for (writer, writes) in writes.into_iter().enumerate() {
        row_after(&notes, "notes", &format!("n{writer}"), end).await;
        let row = version_served(&notes, &format!("n{writer}"), 2).await;
        assert_eq!(row["writes"], json!(writes), "every write is in the rows once");
    }
}

#[tokio::test]
async fn a_changed_projection_is_built_beside_the_old_one_and_has_all_events() {
    let node = Node::with(&notes()).await;
    let notes_app = node.app("notes");
    let mut end = 0;
    for number in 0..300 {
        end = write(&notes_app, &format!("n{}", number % 10), "text").await;
    }
    assert_eq!(row_after(&notes_app, "notes", "n3", end).await["version"], 1);
    node.deploy(&notes_changed()).await;
    let row = version_served(&notes_app, "n3", 2).await;
    assert_eq!(row["writes"], 30, "the candidate had caught up before it was read");
    assert_eq!(notes_app.all_rows("notes", end).await.len(), 10);
}

#[tokio::test]
async fn a_model_that_got_a_column_is_built_anew() {
    let node = Node::with(&notes()).await;
    let end = write(&node.app("notes"), "a", "text").await;
    row_after(&node.app("notes"), "notes", "a", end).await;
    node.deploy(&notes().edit("version = \"integer\" }", "version = \"integer\", rating = \"real\" }")).await;
    let row = eventually("the new column", async || {
        let row = node.app("notes").get("/models/notes/a").await.ok();
        row.get("rating").is_some().then_some(row)
    })
    .await;
    assert_eq!((&row["rating"], &row["text"]), (&Value::Null, &json!("text")));
    node.app("notes").get("/models/notes?rating.is=null").await.ok();
}

#[tokio::test]
async fn deployments_are_numbered_listed_and_can_be_gone_back_to() {
    let node = Node::with(&notes()).await;
    node.deploy(&notes_changed()).await;
    let end = write(&node.app("notes"), "a", "text").await;
    row_after(&node.app("notes"), "notes", "a", end).await;
    version_served(&node.app("notes"), "a", 2).await;

    let listed = node.control.get("/apps/notes/deployments").await.ok();
    let numbers: Vec<_> =
        listed["deployments"].as_array().unwrap().iter().map(|one| one["number"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [1, 2]);
    let back = node.control.post("/apps/notes/rollback", &json!({ "to": 1 })).await;
    assert_eq!((back.ok()["number"].clone(), back.ok()["rollback_to"].clone()), (json!(3), json!(1)));
    assert_eq!(back.header("etag"), Some("\"3\""));
    version_served(&node.app("notes"), "a", 1).await;
    node.control.post("/apps/notes/rollback", &json!({ "to": 9 })).await.problem(404, "deployment_not_found");
    node.control.post("/apps/notes/rollback", &json!({ "back": 1 })).await.problem(400, "not_json");
}

#[tokio::test]
async fn a_guard_keeps_two_operators_from_overwriting_each_other() {
    let node = Node::start_fresh().await;
    let put = |app: &App, header: &str, value: &str| {
        let request = node.control.request(Method::PUT, "/apps/bank").header(header, value);
        request.body("application/x-tar", app.tar())
    };
    assert_eq!(
        put(&bank(), "if-match", "1").await.problem(409, "deployment_conflict")["actual"],
        Value::Null
    );
    assert_eq!(put(&bank(), "if-none-match", "*").await.ok()["number"], 1);
    assert_eq!(put(&bank(), "if-none-match", "*").await.problem(409, "deployment_conflict")["actual"], 1);
    assert_eq!(node.control.get("/apps/bank").await.header("etag"), Some("\"1\""));
    assert_eq!(put(&bank(), "if-match", "\"1\"").await.ok()["number"], 2);
    assert_eq!(put(&bank(), "if-match", "\"1\"").await.problem(409, "deployment_conflict")["actual"], 2);
    let delete = || node.control.request(Method::DELETE, "/apps/bank");
    delete().header("if-match", "\"1\"").await.problem(409, "deployment_conflict");
    put(&bank(), "if-match", "latest").await.problem(400, "bad_header");
}

#[tokio::test]
async fn a_removed_app_is_gone_and_has_its_events_when_it_is_deployed_again_unless_they_were_purged() {
    let mut node = Node::with(&bank()).await;
    let end = open_account(&node.app("bank"), "a", 7).await;
    let remove = async |node: &Node, query: &str| {
        node.control.request(Method::DELETE, &format!("/apps/bank{query}")).await
    };
    assert_eq!(remove(&node, "").await.status, 204);
    node.app("bank").get("/events").await.problem(404, "unknown_app");
    remove(&node, "").await.problem(404, "unknown_app");
    // Also removed after a restart.
    node.kill().await;
    node.start().await;
    node.app("bank").get("/events").await.problem(404, "unknown_app");

    node.deploy(&bank()).await;
    assert_eq!(row_after(&node.app("bank"), "balances", "a", end).await["balance"], 7);
    node.app("bank").command("account", "a", "withdraw", &json!({ "amount": 7 })).await.ok();

    // Whoever listens does not keep the events from being purged.
    let mut live = LiveEvents::open(node.app("bank").get("/events")).await;
    live.message().await.expect("a heartbeat");
    assert_eq!(remove(&node, "?purge=true").await.status, 204);
    assert_eq!(remove(&node, "?purge=true").await.status, 204, "it can be asked for again");
    node.deploy(&bank()).await;
    assert_eq!(node.app("bank").get("/events").await.ok()["events"], json!([]));
    node.app("bank").get("/models/balances/a").await.problem(404, "no_such_row");
    assert_eq!(open_account(&node.app("bank"), "a", 7).await, 2);

    // Also those of an app that is no longer deployed.
    assert_eq!(remove(&node, "").await.status, 204);
    assert_eq!(remove(&node, "?purge=true").await.status, 204);
    remove(&node, "").await.problem(404, "unknown_app");
    node.deploy(&bank()).await;
    assert_eq!(node.app("bank").get("/events").await.ok()["events"], json!([]));
}

#[tokio::test]
async fn what_is_deployed_is_deployed_after_a_restart() {
    let mut node = Node::with(&notes()).await;
    node.deploy(&bank()).await;
    node.deploy(&notes_changed()).await;
    let end = write(&node.app("notes"), "a", "text").await;
    let before = node.control.get("/apps").await.ok();
    for is_crash in [true, false] {
        if is_crash {
            node.kill().await;
        } else {
            assert_eq!(node.stop().await, Some(0));
        }
        node.start().await;
        // After a crash where a log ends is known when it has been opened, which is soon.
        let after = eventually("apps with positions", async || {
            let after = node.control.get("/apps").await.ok();
            let is_known = after["apps"].as_array().unwrap().iter().all(|app| app["position"].is_u64());
            is_known.then_some(after)
        })
        .await;
        assert_eq!(after["apps"].as_array().unwrap().len(), 2);
        for (was, is) in before["apps"].as_array().unwrap().iter().zip(after["apps"].as_array().unwrap()) {
            assert_eq!(
                (&is["app"], &is["deployment"], &is["position"]),
                (&was["app"], &was["deployment"], &was["position"])
            );
        }
        row_after(&node.app("notes"), "notes", "a", end).await;
        version_served(&node.app("notes"), "a", 2).await;
    }
}

#[tokio::test]
async fn a_power_cut_around_a_deploy_leaves_the_old_one_or_the_new_one_serving() {
    let mut dice = Dice::seeded();
    let mut node = Node::with(&notes()).await;
    let mut end = write(&node.app("notes"), "a", "text").await;
    row_after(&node.app("notes"), "notes", "a", end).await;
    let (mut number, mut writes) = (1, 1);
    for round in 0..8 {
        let next = if round % 2 == 0 { notes_changed() } else { notes() };
        let put = node.control.request(Method::PUT, "/apps/notes").body("application/x-tar", next.tar());
        let put = tokio::spawn(put.send());
        tokio::time::sleep(Duration::from_millis(dice.roll(0..250))).await;
        node.kill().await;
        let answer = put.await.expect("a request");
        node.start().await;

        let served =
            node.control.get("/apps/notes").await.ok()["deployment"]["number"].as_u64().expect("one serves");
        match answer {
            Ok(reply) => assert_eq!(reply.ok()["number"], json!(served), "what was answered is what serves"),
            Err(_) => assert!(served == number || served == number + 1, "{served} serves after {number}"),
        }
        number = served;
        end = write(&node.app("notes"), "a", &format!("round {round}")).await;
        writes += 1;
        let row = row_after(&node.app("notes"), "notes", "a", end).await;
        assert_eq!(row["writes"], writes, "in round {round}");
    }
}

#[tokio::test]
async fn a_bad_deploy_changes_nothing() {
    let node = Node::with(&bank()).await;
    open_account(&node.app("bank"), "a", 1).await;
    let before = node.control.get("/apps").await.ok();
    let bad = [
        bank().edit("commands = {", "comands = {"),
        bank().file("../target/wasm32-wasip2/release/account.wasm", "no"),
        bank().file("schemas/open.json", "{"),
        bank().edit("snapshot-every = 100", "snapshot-every = 0"),
    ];
    for app in bad {
        node.put(&app).await.problem(422, "manifest_invalid");
        let check =
            node.control.request(Method::POST, "/apps/bank/check").body("application/x-tar", app.tar());
        check.await.problem(422, "manifest_invalid");
    }
    assert_eq!(node.control.get("/apps").await.ok(), before);
    node.app("bank").command("account", "a", "deposit", &json!({ "amount": 1 })).await.ok();
    let check = node.control.request(Method::POST, "/apps/bank-two/check");
    assert_eq!(
        check.body("application/x-tar", bank_named("bank-two").tar()).await.ok(),
        json!({ "app": "bank-two", "valid": true })
    );
    node.app("bank-two").get("/events").await.problem(404, "unknown_app");
}

#[tokio::test]
async fn an_event_of_an_aggregate_that_is_gone_from_the_manifest_is_still_there() {
    let node = Node::with(&bank()).await;
    open_account(&node.app("bank"), "a", 1).await;
    let other = notes().edit("name = \"notes\"", "name = \"bank\"");
    node.deploy(&other).await;
    assert_eq!(
        node.app("bank").get("/streams/account-a").await.ok()["events"].as_array().map(Vec::len),
        Some(2)
    );
    node.app("bank")
        .command("account", "a", "deposit", &json!({ "amount": 1 }))
        .await
        .problem(404, "unknown_aggregate");
    assert_eq!(write(&node.app("bank"), "n", "text").await, 3, "positions go on");
}
