//! Projections that fail: the failing key is parked and nobody else waits; rebuilding while serving.

use crate::support::{notes, row_after};
use ebb_tests::{Client, Node, eventually};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

async fn tell(notes: &Client, id: &str, command: &str) -> u64 {
    let data = if command == "write" { json!({ "text": "text" }) } else { json!({}) };
    notes.command("note", id, command, &data).await.position()
}

async fn parked(node: &Node) -> Vec<Value> {
    let page = node.control.get("/apps/notes/projections/notes/parked").await.ok();
    page["parked"].as_array().expect("parked").clone()
}

async fn status(node: &Node) -> Value {
    let all = node.control.get("/projections").await.ok();
    let all = all["projections"].as_array().expect("projections");
    all.iter().find(|one| one["projection"] == "notes").expect("the projection").clone()
}

async fn act(node: &Node, action: &str, key: &str) -> ebb_tests::Reply {
    node.control.post(&format!("/apps/notes/projections/notes/parked/{action}"), &json!({ "key": key })).await
}

/// Reads a row whatever is parked.
async fn row(notes: &Client, id: &str, after: u64) -> Value {
    let request =
        notes.get(&format!("/models/notes/{id}")).header("ebb-after", after).header("ebb-wait", "20s");
    request.header("ebb-allow-parked", "true").await.ok()
}

#[tokio::test]
async fn a_failing_event_parks_its_key_later_ones_queue_and_everyone_else_goes_on() {
    for harm in ["poison", "explode"] {
        let mut node = Node::with(&notes()).await;
        let app = node.app("notes");
        tell(&app, "good", "write").await;
        let before = tell(&app, "bad", "write").await;
        let failing = tell(&app, "bad", harm).await;
        tell(&app, "bad", "write").await;
        tell(&app, "bad", "write").await;
        let end = tell(&app, "good", "write").await;

        assert_eq!(row(&app, "good", end).await["writes"], 2);
        assert_eq!(
            row(&app, "bad", end).await["writes"],
            1,
            "what came before is kept, what came later waits"
        );
        let behind = app.get("/models/notes/good").header("ebb-after", end).header("ebb-wait", "20s").await;
        assert_eq!(behind.problem(503, "projection_parked")["position"], failing);
        assert!(behind.number("retry-after") >= 1);
        row_after(&app, "notes", "good", before).await;
        let fresh = app.get("/models/notes/good").await;
        assert_eq!((fresh.status, fresh.number("ebb-parked"), fresh.number("ebb-lag")), (200, 1, 0));

        // Parked keys outlive a crash.
        node.kill().await;
        node.start().await;
        let app = node.app("notes");
        let [one] = &parked(&node).await[..] else { panic!("one key is parked") };
        assert_eq!(
            (&one["key"], &one["position"], &one["queued"]),
            (&json!("note-bad"), &json!(failing), &json!(3))
        );
        let reason = one["reason"].as_str().expect("a reason");
        assert!(
            if harm == "poison" { reason.contains("the note is poisoned") } else { !reason.is_empty() },
            "{one}"
        );

        let still = act(&node, "retry", "note-bad").await.ok();
        assert_eq!((&still["applied"], &still["remaining"]), (&json!(0), &json!(3)), "{still}");
        assert!(still["failed"].is_string(), "it says why: {still}");
        let cured = tell(&app, "any", "cure").await;
        row(&app, "good", cured).await;
        let done = act(&node, "retry", "note-bad").await.ok();
        assert_eq!(done, json!({ "applied": 3, "remaining": 0, "failed": null }));
        assert_eq!(parked(&node).await, [] as [Value; 0]);
        let end = tell(&app, "bad", "write").await;
        assert_eq!(row_after(&app, "notes", "bad", end).await["writes"], 4, "what had queued is there, once");
        act(&node, "retry", "note-bad").await.problem(404, "not_parked");
    }
}

#[tokio::test]
async fn a_skipped_event_is_given_up_and_those_behind_it_are_applied() {
    let node = Node::with(&notes()).await;
    let app = node.app("notes");
    tell(&app, "bad", "write").await;
    tell(&app, "bad", "poison").await;
    tell(&app, "bad", "write").await;
    let second = tell(&app, "bad", "poison").await;
    let end = tell(&app, "bad", "write").await;
    row(&app, "bad", end).await;

    let skipped = act(&node, "skip", "note-bad").await.ok();
    let (one, two) = (json!(1), json!(2));
    assert_eq!(
        (&skipped["skipped"], &skipped["applied"], &skipped["remaining"]),
        (&one, &one, &two),
        "{skipped}"
    );
    assert_eq!(row(&app, "bad", end).await["writes"], 2);
    assert_eq!(parked(&node).await[0]["position"], second, "the next failure stands first now");
    let skipped = act(&node, "skip", "note-bad").await.ok();
    assert_eq!((&skipped["skipped"], &skipped["remaining"]), (&one, &json!(0)), "{skipped}");
    assert_eq!(row_after(&app, "notes", "bad", end).await["writes"], 3);
    for action in ["skip", "retry"] {
        act(&node, action, "note-bad").await.problem(404, "not_parked");
        act(&node, action, "").await.problem(404, "not_parked");
        let path = format!("/apps/notes/projections/nobody/parked/{action}");
        node.control.post(&path, &json!({ "key": "note-bad" })).await.problem(404, "unknown_projection");
    }
}

#[tokio::test]
async fn the_command_line_lists_retries_and_skips_what_is_parked() {
    let node = Node::with(&notes()).await;
    let app = node.app("notes");
    tell(&app, "one", "poison").await;
    tell(&app, "two", "poison").await;
    let end = tell(&app, "two", "write").await;
    eventually("both to be parked", async || (parked(&node).await.len() == 2).then_some(())).await;

    let table = node.ebb_control(&["parked", "list", "notes"]).await;
    assert!(
        table.ok().contains("note-one") && table.ok().contains("the note is poisoned"),
        "{}",
        table.stdout
    );
    let listed = node.ebb_control(&["parked", "list", "notes", "--json"]).await;
    let keys: Vec<Value> =
        listed.ok().lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["key"].clone()).collect();
    assert_eq!(keys, ["note-one", "note-two"]);
    node.ebb_control(&["parked", "retry", "notes", "note-one"]).await.ended(1);
    node.ebb_control(&["parked", "skip", "notes", "note-two"]).await.ended(0);
    assert_eq!(row(&app, "two", end).await["writes"], 1);
    let cured = tell(&app, "any", "cure").await;
    row(&app, "two", cured).await;
    node.ebb_control(&["parked", "retry", "notes", "note-one"]).await.ended(0);
    node.ebb_control(&["parked", "retry", "notes", "note-one"]).await.ended(1);
    assert_eq!(node.ebb_control(&["parked", "list", "notes", "--json"]).await.ok(), "");
    let unknown = node.ebb_control(&["parked", "list", "nots"]).await;
    assert!(unknown.stderr.contains("nots"), "{}", unknown.stderr);
    unknown.ended(1);
}

#[tokio::test]
async fn past_its_limit_of_parked_keys_a_projection_halts_and_says_so() {
    let few = notes().edit("retry = {", "max-parked = 3\nretry = {");
    let node = Node::with(&few).await;
    let app = node.app("notes");
    for number in 0..6 {
        tell(&app, &format!("bad-{number}"), "poison").await;
    }
    let halted = eventually("the projection to halt", async || {
        let status = status(&node).await;
        (status["state"] == "halted").then_some(status)
    })
    .await;
    assert_eq!(halted["parked"], 3, "{halted}");
    let reply = app.get("/models/notes").await;
    assert!(reply.number("ebb-lag") >= 1, "a reader sees how far behind it is");
    tell(&app, "good", "write").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_goes_on_beside_what_serves_and_the_mark_never_goes_back() {
    let node = Node::with(&notes()).await;
    let app = node.app("notes");
    let mut end = 0;
    for number in 0..400 {
        end = tell(&app, &format!("n{}", number % 20), "write").await;
    }
    row_after(&app, "notes", "n0", end).await;
    let stop = Arc::new(AtomicBool::new(false));
    let reader = {
        let (app, stop) = (app.clone(), stop.clone());
        tokio::spawn(async move {
            let (mut mark, mut reads) = (end, 0);
            while !stop.load(Ordering::Relaxed) {
                let reply = app.get("/models/notes/n0").await;
                assert!(reply.ok()["writes"].as_u64().unwrap() >= 20, "the rows are all there");
                let now = reply.number("ebb-position");
                assert!(now >= mark, "the mark went from {mark} back to {now}");
                (mark, reads) = (now, reads + 1);
            }
            reads
        })
    };
    for _ in 0..3 {
        let reply = node.control.post("/apps/notes/projections/notes/rebuild", &json!({})).await;
        assert_eq!(reply.status, 202, "{reply:?}");
        end = tell(&app, "n0", "write").await;
        row_after(&app, "notes", "n0", end).await;
        eventually("the rebuild to end", async || status(&node).await["building"].is_null().then_some(()))
            .await;
    }
    stop.store(true, Ordering::Relaxed);
    assert!(reader.await.expect("the reader saw nothing wrong") > 0);
    assert_eq!(row_after(&app, "notes", "n0", end).await["writes"], 23);
    assert_eq!(app.all_rows("notes", end).await.len(), 20);
    let unknown = node.control.post("/apps/notes/projections/nobody/rebuild", &json!({})).await;
    unknown.problem(404, "unknown_projection");
}

#[tokio::test]
async fn lanes_give_the_rows_that_one_lane_gives() {
    let mut models = Vec::new();
    for lanes in [1, 4] {
        let many = notes().edit(
            "retry = {",
            &format!("lanes = {lanes}\nbatch = {{ max-events = 100, max-wait = \"50ms\" }}\nretry = {{"),
        );
        let node = Node::with(&many).await;
        let app = node.app("notes");
        let mut end = 0;
        for round in 0..10 {
            let writes = (0..20).map(|number| {
                let data = json!({ "text": format!("round {round}") });
                let command = if number == 7 { "cure" } else { "write" };
                let data = if number == 7 { json!({}) } else { data };
                app.command("note", &format!("n{number}"), command, &data).into_future()
            });
            let replies = futures_util::future::join_all(writes).await;
            end = replies.iter().map(ebb_tests::Reply::position).max().expect("replies").max(end);
        }
        models.push((app.all_rows("notes", end).await, app.all_rows("cures", end).await));
    }
    assert_eq!(models[0], models[1]);
    assert_eq!(models[0].1, [json!({ "of": "all", "count": 10 })]);
}
