//! Commands: what is answered, what is remembered, what is turned away.

use crate::support::{bank_named, open_account};
use ebb_tests::{App, Client, Node, bank, eventually, guest};
use futures_util::future::join_all;
use serde_json::{Value, json};

async fn events_of(app: &Client, stream: &str) -> Vec<Value> {
    app.get(&format!("/streams/{stream}?limit=1000")).await.ok()["events"].as_array().expect("events").clone()
}

#[tokio::test]
async fn a_command_is_answered_with_its_events_and_they_are_in_the_stream_and_in_the_log() {
    let node = Node::with(&bank()).await;
    let bank = node.app("bank");
    bank.command("account", "a", "open", &json!({ "owner": "Ada" })).await.ok();
    let reply = bank
        .command("account", "a", "deposit", &json!({ "amount": 500 }))
        .header("ebb-correlation-id", "order-7")
        .header("ebb-causation-id", "click-9")
        .header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        .await;
    let body = reply.ok();
    assert_eq!(
        (&body["stream"], &body["revision"], &body["position"]),
        (&json!("account-a"), &json!(1), &json!(2)),
        "{body}"
    );
    assert_eq!(reply.number("ebb-position"), 2);
    assert_eq!(reply.header("ebb-replayed"), None);
    let decided = &body["events"][0];
    assert_eq!(
        (&decided["type"], &decided["data"]),
        (&json!("Deposited"), &json!({ "amount": 500 })),
        "{body}"
    );

    let event = &events_of(&bank, "account-a").await[1];
    assert_eq!(bank.all_events().await[1], *event);
    let expected = json!({
        "specversion": "1.0", "source": "urn:ebbtide:bank", "type": "Deposited", "subject": "account-a",
        "partitionkey": "account-a", "position": 2, "sequence": 1, "schemaversion": 1,
        "id": decided["id"], "data": { "amount": 500 }, "datacontenttype": "application/json",
        "correlationid": "order-7", "causationid": "click-9", "actor": "anonymous",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "commandid": reply.header("ebb-command-id"), "time": event["time"], "module": event["module"],
    });
    assert_eq!(*event, expected);
}

#[tokio::test]
async fn a_key_gets_the_same_answer_again_and_after_a_restart_and_nothing_happens_twice() {
    let mut node = Node::with(&bank()).await;
    open_account(&node.app("bank"), "a", 100).await;
    let withdraw = async |bank: &Client, key: &str, amount: u64| {
        let data = json!({ "amount": amount });
        bank.command("account", "a", "withdraw", &data).header("idempotency-key", key).await
    };
    let (accepted, refused) =
        (withdraw(&node.app("bank"), "k1", 60).await, withdraw(&node.app("bank"), "k2", 60).await);
    accepted.ok();
    refused.refused("insufficient_funds");
    assert_eq!((accepted.header("ebb-replayed"), refused.header("ebb-replayed")), (None, None));
    // Now it could be accepted; the key's answer is the answer all the same.
    node.app("bank").command("account", "a", "deposit", &json!({ "amount": 1000 })).await.ok();
    for restart in [false, true] {
        if restart {
            node.kill().await;
            node.start().await;
        }
        let bank = node.app("bank");
        let (again, no_again) = (withdraw(&bank, "k1", 60).await, withdraw(&bank, "k2", 60).await);
        assert_eq!(again.json(), accepted.json());
        assert_eq!(no_again.json(), refused.json());
        for (first, second) in [(&accepted, &again), (&refused, &no_again)] {
            assert_eq!(second.status, first.status);
            assert_eq!(second.header("ebb-replayed"), Some("true"));
            assert_eq!(second.header("ebb-command-id"), first.header("ebb-command-id"));
        }
        assert_eq!(events_of(&bank, "account-a").await.len(), 4);
        withdraw(&bank, "k1", 61).await.problem(422, "key_reused");
        let elsewhere = bank.command("account", "b", "withdraw", &json!({ "amount": 60 }));
        elsewhere.header("idempotency-key", "k1").await.problem(422, "key_reused");
    }
}

#[tokio::test]
async fn requests_that_never_reached_a_decision_leave_their_key_free() {
    let node = Node::with(&bank()).await;
    let bank = node.app("bank");
    open_account(&bank, "a", 100).await;
    let deposit = |data: Value| bank.command("account", "a", "deposit", &data).header("idempotency-key", "k");
    deposit(json!({ "amount": -1 })).await.problem(422, "schema_violation");
    deposit(json!({ "amount": 1 })).header("if-match", 7).await.problem(409, "revision_conflict");
    deposit(json!({ "amount": 1 })).await.ok();
}

#[tokio::test]
async fn a_key_belongs_to_one_app() {
    let node = Node::with(&bank()).await;
    node.deploy(&bank_named("bank-two")).await;
    for app in ["bank", "bank-two"] {
        let open = node.app(app).command("account", "a", "open", &json!({ "owner": app }));
        let reply = open.header("idempotency-key", "k").await;
        assert_eq!((reply.status, reply.header("ebb-replayed")), (200, None), "{reply:?}");
    }
}

#[tokio::test]
async fn many_at_once_under_one_key_happen_once() {
    let node = Node::with(&bank()).await;
    let bank = node.app("bank");
    open_account(&bank, "a", 1).await;
    let same = (0..32).map(|_| {
        bank.command("account", "a", "deposit", &json!({ "amount": 7 }))
            .header("idempotency-key", "k")
            .into_future()
    });
    let mut first_answers = 0;
    for reply in join_all(same).await {
        if reply.status == 409 {
            reply.problem(409, "key_in_flight");
        } else {
            reply.ok();
            first_answers += u32::from(reply.header("ebb-replayed").is_none());
        }
    }
    assert_eq!(first_answers, 1);
    assert_eq!(events_of(&bank, "account-a").await.len(), 3);
}

#[tokio::test]
async fn a_condition_on_the_revision_holds_or_the_command_is_a_conflict() {
    let node = Node::with(&bank()).await;
    let bank = node.app("bank");
    let open = |id: &str| bank.command("account", id, "open", &json!({ "owner": "Ada" }));
    let deposit = || bank.command("account", "a", "deposit", &json!({ "amount": 1 }));

    let problem = open("a").header("if-match", "*").await.problem(409, "revision_conflict");
    assert_eq!(problem["actual_revision"], Value::Null);
    open("a").header("if-none-match", "*").await.ok();
    open("a").header("if-none-match", "*").await.problem(409, "revision_conflict");
    deposit().header("if-match", 0).await.ok();
    let problem = deposit().header("if-match", 0).await.problem(409, "revision_conflict");
    assert_eq!(problem["actual_revision"], 1);
    deposit().header("if-match", "\"1\"").await.ok();
    deposit().header("if-match", "*").await.ok();

    // Ten at once on one condition: one of them finds it true.
    let at_once = join_all((0..10).map(|_| deposit().header("if-match", 3).into_future())).await;
    assert_eq!(at_once.iter().filter(|reply| reply.status == 200).count(), 1);
    assert_eq!(events_of(&bank, "account-a").await.len(), 5);
}

#[tokio::test]
async fn commands_of_one_stream_are_decided_one_after_another() {
    let node = Node::with(&bank()).await;
    let bank = node.app("bank");
    open_account(&bank, "a", 20).await;
    let withdraw = || bank.command("account", "a", "withdraw", &json!({ "amount": 1 })).into_future();
    let replies = join_all((0..40).map(|_| withdraw())).await;
    let count = |status| replies.iter().filter(|reply| reply.status == status).count();
    assert_eq!((count(200), count(422)), (20, 20), "each saw what the one before had decided");
    let revisions: Vec<_> =
        events_of(&bank, "account-a").await.iter().map(|event| event["sequence"].clone()).collect();
    assert_eq!(revisions, (0..22).map(Value::from).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_stream_with_too_many_waiting_is_told_when_to_come_back_and_nothing_of_it_is_lost() {
    let slow = crate::support::hostile();
    let node = Node::with(&slow).await;
    let app = node.app("hostile");
    // Keeps the stream busy until its CPU is used up; the others come when it has begun.
    let busy = tokio::spawn(app.command("hostile", "a", "spin", &json!({})).into_future());
    eventually("it to have an instance", async || {
        let functions = node.control.get("/functions").await.ok();
        let functions = functions["functions"].as_array()?.clone();
        functions.iter().any(|function| function["instances"].as_u64() > Some(0)).then_some(())
    })
    .await;
    let others = (0..200).map(|_| app.command("hostile", "a", "behave", &json!({})).into_future());
    let replies = join_all(others).await;
    busy.await.expect("an answer").problem(504, "module_out_of_cpu");
    let mut accepted = 0;
    for reply in &replies {
        if reply.status == 200 {
            accepted += 1;
        } else {
            reply.problem(429, "throttled");
            assert!(reply.number("retry-after") >= 1);
        }
    }
    assert!((1..200).contains(&accepted), "{accepted} accepted");
    assert_eq!(events_of(&app, "hostile-a").await.len(), accepted);
}

#[tokio::test]
async fn the_command_log_tells_what_became_of_a_command() {
    let node = Node::with(&bank()).await;
    let bank = node.app("bank");
    let opened = bank.command("account", "a", "open", &json!({ "owner": "Ada" })).await;
    let refused = bank
        .command("account", "a", "withdraw", &json!({ "amount": 5 }))
        .header("idempotency-key", "k")
        .await;
    let id =
        |reply: &ebb_tests::Reply| reply.header("ebb-command-id").expect("a command has an id").to_owned();

    let entry = bank.get(&format!("/command-log/{}", id(&opened))).await.ok();
    let body = opened.ok();
    assert_eq!(
        (&entry["outcome"], &entry["command"], &entry["actor"]),
        (&json!("accepted"), &json!("open"), &json!("anonymous"))
    );
    for member in ["stream", "revision", "position", "events"] {
        assert_eq!(entry[member], body[member], "{member}");
    }
    let entry = bank.get(&format!("/command-log/{}", id(&refused))).await.ok();
    assert_eq!((&entry["outcome"], &entry["code"]), (&json!("refused"), &json!("insufficient_funds")));
    assert_eq!(entry["details"], refused.refused("insufficient_funds")["details"]);

    for unknown in ["0190a0a0-0000-7000-8000-000000000000", "nonsense"] {
        bank.get(&format!("/command-log/{unknown}")).await.problem(404, "no_such_command");
    }
}

#[tokio::test]
async fn a_command_without_events_is_an_answer() {
    let counter = App::new(
        "[app]\nname = \"notes\"\n[aggregate.hostile]\nmodule = \"m.wasm\"\ncommands = { flood = {} }\nevents = { Behaved = {} }\n",
    );
    let node = Node::with(&counter.file("m.wasm", guest("hostile"))).await;
    let reply = node.app("notes").command("hostile", "a", "flood", &json!({ "events": 0 })).await;
    let body = reply.ok();
    assert_eq!(
        (&body["events"], &body["revision"], &body["position"]),
        (&json!([]), &Value::Null, &Value::Null),
        "{body}"
    );
    assert_eq!(reply.header("ebb-position"), None);
}

#[tokio::test]
async fn an_aggregate_is_folded_again_from_its_events_and_snapshots_after_a_restart() {
    let often = bank().edit("snapshot-every = 100", "snapshot-every = 3");
    let mut node = Node::with(&often).await;
    let mut expected = 0;
    for life in 0..3 {
        let bank = node.app("bank");
        if life == 0 {
            open_account(&bank, "a", 1).await;
            expected += 1;
        }
        for amount in 1..=10 {
            bank.command("account", "a", "deposit", &json!({ "amount": amount })).await.ok();
            expected += amount;
        }
        let too_much = bank.command("account", "a", "withdraw", &json!({ "amount": expected + 1 })).await;
        assert_eq!(too_much.refused("insufficient_funds")["details"]["balance"], expected);
        if life == 0 {
            node.kill().await;
        } else {
            assert_eq!(node.stop().await, Some(0));
        }
        node.start().await;
    }
}
