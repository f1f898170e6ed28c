//! What a function may do with its own app: commands that it sends, rows that it reads; and what it may not.

use ebb_tests::{App, Client, Node, Reply, eventually, examples, guest};
use http::Method;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const BOTH: &str = "capabilities = { commands = [\"account\", \"hostile\"], models = [\"balances\"] }";

/// The bank, an aggregate that does harm, and `tests/guests/asker` before them.
fn app() -> App {
    app_granting(BOTH)
}

fn app_granting(capabilities: &str) -> App {
    App::new(&format!(
        r#"[app]
name = "asking"

[function.ask]
module = "asker.wasm"
trigger = {{ http = {{ route = "/ask", methods = ["POST"], max-body = "4MiB" }} }}
limits = {{ wall = "3s", cpu = "3s" }}
{capabilities}

[function.briefly]
module = "asker.wasm"
trigger = {{ http = {{ route = "/briefly", methods = ["POST"] }} }}
limits = {{ wall = "500ms", cpu = "500ms" }}
{capabilities}

[aggregate.account]
module = "account.wasm"
commands = {{ open = {{}}, deposit = "amount.json", withdraw = {{}}, close = {{}} }}
events = {{ Opened = {{}}, Deposited = {{}}, Withdrawn = {{}}, Closed = {{}} }}

[aggregate.hostile]
module = "hostile.wasm"
commands = {{ behave = {{}}, spin = {{}}, trap = {{}} }}
events = {{ Behaved = {{}} }}
limits = {{ cpu = "1s" }}

[aggregate.vault]
module = "account.wasm"
commands = {{ open = {{}} }}
events = {{ Opened = {{}} }}

[model.balances]
key = "account"
columns = {{ account = "text", owner = "text", balance = "integer" }}
indexes = [["balance"]]

[projection.balances]
module = "balances.wasm"
models = ["balances"]
source = {{ aggregates = ["account"] }}
"#
    ))
    .file("asker.wasm", guest("asker"))
    .file("account.wasm", guest("account"))
    .file("hostile.wasm", guest("hostile"))
    .file("balances.wasm", guest("balances"))
    .file("amount.json", r#"{"type": "object", "properties": {"amount": {"type": "integer", "minimum": 1}}}"#)
}

async fn ask(app: &Client, what: &Value) -> Value {
    app.post("/ask", what).await.ok()
}

fn send(key: &str, name: &str, data: &Value) -> Value {
    json!({ "send": { "aggregate": "account", "key": key, "name": name, "data": data } })
}

fn open(key: &str) -> Value {
    send(key, "open", &json!({ "owner": "Ann" }))
}

#[tokio::test]
async fn a_command_that_a_function_sends_is_a_command_like_any_other() {
    let node = Node::with(&app()).await;
    let opened = node.data.post("/ask", &open("a")).header("ebb-correlation-id", "c-7").await.ok();
    assert_eq!((&opened["stream"], &opened["revision"]), (&json!("account-a"), &json!(0)), "{opened}");
    assert_eq!(opened["events"], json!([["Opened", { "owner": "Ann" }]]));
    let event = node.data.get("/streams/account-a").await.ok()["events"][0].clone();
    assert_eq!(event["correlationid"], "c-7");
    assert_eq!(event["causationid"], "function.ask");
    assert_eq!(event["actor"], "anonymous");
    assert_eq!(event["commandid"], opened["command_id"]);
    // Its revision is what a condition is about.
    let late = json!({ "send": { "aggregate": "account", "key": "a", "name": "close", "revision": 7 } });
    let late = ask(&node.data, &late).await;
    assert_eq!((&late["error"], &late["code"]), (&json!("Conflict"), &json!("revision_conflict")), "{late}");
}

#[tokio::test]
async fn a_command_with_a_key_is_decided_once_whoever_sends_it_again() {
    let node = Node::with(&app()).await;
    let mut keyed = open("a");
    keyed["send"]["idempotency"] = json!("k-1");
    let first = ask(&node.data, &keyed).await;
    let second = ask(&node.data, &keyed).await;
    assert_eq!((&first["replayed"], &second["replayed"]), (&json!(false), &json!(true)), "{first} {second}");
    assert_eq!(first["command_id"], second["command_id"]);
    let over_http = node.data.command("account", "a", "open", &json!({ "owner": "Ann" }));
    assert_eq!(over_http.header("idempotency-key", "k-1").await.header("ebb-replayed"), Some("true"));
    keyed["send"]["key"] = json!("b");
    assert_eq!(ask(&node.data, &keyed).await["code"], "key_reused");
    keyed["send"]["idempotency"] = json!("two words");
    assert_eq!(ask(&node.data, &keyed).await["code"], "bad_header");
}

#[tokio::test]
async fn what_is_not_accepted_is_a_value_and_says_what_to_do() {
    let mut node = Node::with(&app()).await;
    let other =
        |aggregate: &str, name: &str| json!({ "send": { "aggregate": aggregate, "key": "a", "name": name } });
    for (what, kind, code) in [
        (send("a", "close", &json!({})), "Refused", "not_open"),
        (send("a", "deposit", &json!({ "amount": 0 })), "Invalid", "schema_violation"),
        (send("a", "fly", &json!({})), "Invalid", "unknown_command"),
        (send("", "open", &json!({})), "Invalid", "invalid_key"),
        (send("a", "open", &json!({ "owner": "x".repeat(1 << 20) })), "Invalid", "body_too_large"),
        (other("vault", "open"), "Denied", "not_granted"),
        (other("nothing", "open"), "Denied", "not_granted"),
        (other("hostile", "trap"), "Failed", "module_trapped"),
        (other("hostile", "spin"), "Failed", "module_out_of_cpu"),
    ] {
        let said = ask(&node.data, &what).await;
        assert_eq!((&said["error"], &said["code"]), (&json!(kind), &json!(code)), "{said}");
    }
    let violation = ask(&node.data, &send("a", "deposit", &json!({ "amount": 0 }))).await;
    assert!(violation["details"][0].to_string().contains("amount"), "{violation}");
    assert!(node.is_running());
    assert!(node.data.all_events().await.is_empty(), "nothing was appended");
}

#[tokio::test]
async fn a_read_sees_what_a_command_has_just_done() {
    let node = Node::with(&app()).await;
    assert_eq!(
        ask(&node.data, &json!({ "get": { "model": "balances", "key": "a" } })).await["row"],
        Value::Null
    );
    for key in ["a", "b", "c", "d", "e"] {
        ask(&node.data, &open(key)).await;
        let paid_in = ask(&node.data, &send(key, "deposit", &json!({ "amount": 10 }))).await;
        let get = json!({ "get": { "model": "balances", "key": key, "at_least": paid_in["position"] } });
        assert_eq!(
            ask(&node.data, &get).await["row"],
            json!({ "account": key, "owner": "Ann", "balance": 10 })
        );
    }
    let find =
        json!({ "find": { "model": "balances", "gt": ["balance", 5], "order": "account", "limit": 2 } });
    let pages = ask(&node.data, &find).await["pages"].clone();
    let keys: Vec<Vec<&str>> = pages
        .as_array()
        .unwrap()
        .iter()
        .map(|page| page.as_array().unwrap().iter().filter_map(|row| row["account"].as_str()).collect())
        .collect();
    assert_eq!(keys, [vec!["e", "d"], vec!["c", "b"], vec!["a"]]);
    for (what, kind, code) in [
        (
            json!({ "get": { "model": "balances", "key": "a", "at_least": 999 } }),
            "Invalid",
            "position_unknown",
        ),
        (json!({ "get": { "model": "cures", "key": "a" } }), "Denied", "not_granted"),
        (json!({ "find": { "model": "balances", "order": "colour" } }), "Invalid", "unknown_column"),
        (json!({ "find": { "model": "balances", "gt": ["owner", 5] } }), "Invalid", "bad_value"),
        (json!({ "find": { "model": "balances", "limit": 5000 } }), "Invalid", "bad_query"),
    ] {
        let said = ask(&node.data, &what).await;
        assert_eq!((&said["error"], &said["code"]), (&json!(kind), &json!(code)), "{said}");
    }
}

#[tokio::test]
async fn a_function_of_0_3_sends_commands_too() {
    let asking = App::new(
        "[app]\nname = \"newer\"\n\n[function.open]\nmodule = \"asker3.wasm\"\n\
         trigger = { http = { route = \"/open/{key}\" } }\ncapabilities = { commands = [\"account\"] }\n\n\
         [aggregate.account]\nmodule = \"account.wasm\"\ncommands = { open = {} }\nevents = { Opened = {} }\n",
    );
    let asking = asking.file("asker3.wasm", guest("asker3")).file("account.wasm", guest("account"));
    let node = Node::with(&asking).await;
    let said = async || String::from_utf8(node.data.get("/open/a").await.body.to_vec()).unwrap();
    assert_eq!(said().await, "account-a at Some(0)");
    assert_eq!(said().await, "Refused: the account is open already (already_open)");
}

#[tokio::test]
async fn an_event_function_sends_commands_in_its_own_name() {
    let welcome = "[function.welcome]\nmodule = \"asker.wasm\"\ncapabilities = { commands = [\"account\"], models = [] }\n\
                   trigger = { events = { types = [\"Opened\"], aggregates = [\"account\"] } }\n\n[aggregate.account]";
    let node = Node::with(&app().edit("[aggregate.account]", welcome)).await;
    ask(&node.data, &open("a")).await;
    let events = eventually("the first cent", async || {
        let events = node.data.get("/streams/account-a").await.ok()["events"].clone();
        events[1].is_object().then_some(events)
    })
    .await;
    assert_eq!((&events[1]["type"], &events[1]["actor"]), (&json!("Deposited"), &json!("function:welcome")));
    assert_eq!(events[1]["causationid"], events[0]["id"]);
    assert_eq!(events[1]["correlationid"], events[0]["correlationid"]);
}

#[tokio::test]
async fn what_is_not_granted_is_not_linked() {
    let node = Node::builder().start().await;
    let problem = async |capabilities: &str| {
        let refused = node.put(&app_granting(capabilities)).await.problem(422, "manifest_invalid");
        refused["problems"].to_string()
    };
    let said = problem("").await;
    assert!(said.contains("ebbtide:functions/commands@0.1.0"), "{said}");
    assert!(said.contains("capabilities = { commands = "), "{said}");
    let said = problem("capabilities = { commands = [\"account\"] }").await;
    assert!(said.contains("ebbtide:functions/models@0.1.0") && said.contains("{ models = "), "{said}");
    let said = problem("capabilities = { commands = [\"acount\"], models = [] }").await;
    assert!(said.contains("did you mean `account`?"), "{said}");
    // A list of nothing grants nothing.
    node.deploy(&app_granting("capabilities = { commands = [], models = [] }")).await;
    assert_eq!(ask(&node.data, &open("a")).await["code"], "not_granted");
    assert_eq!(
        ask(&node.data, &json!({ "get": { "model": "balances", "key": "a" } })).await["code"],
        "not_granted"
    );
}

#[tokio::test]
async fn who_may_not_send_a_command_may_not_have_it_sent() {
    let settings = "[[auth.tokens]]\nactor = \"alice\"\ntoken = \"alice-alice-alice-alice-alice-alice\"\n\
                    [[auth.tokens]]\nactor = \"bob\"\ntoken = \"bob-bob-bob-bob-bob-bob-bob-bob-bob\"\n";
    let node = Node::builder().settings(settings).start().await;
    let closed = "commands = { open = {}, deposit";
    let open_to_alice = format!("allow = [\"alice\"]\n{closed}");
    let app = app()
        .edit(closed, &open_to_alice)
        .edit("key = \"account\"", "key = \"account\"\nallow = [\"alice\"]");
    node.deploy(&app).await;
    let as_who = async |token: &str, what: &Value| node.data.post("/ask", what).token(token).await.ok();
    let (alice, bob) = ("alice-alice-alice-alice-alice-alice", "bob-bob-bob-bob-bob-bob-bob-bob-bob");
    let read = json!({ "get": { "model": "balances", "key": "a" } });
    for what in [open("a"), read.clone()] {
        let said = as_who(bob, &what).await;
        assert_eq!((&said["error"], &said["code"]), (&json!("Denied"), &json!("forbidden")), "{said}");
    }
    assert_eq!(as_who(alice, &open("a")).await["revision"], 0);
    assert!(as_who(alice, &read).await.get("error").is_none());
    let event = node.data.get("/streams/account-a").token(alice).await.ok()["events"][0].clone();
    assert_eq!(event["actor"], "alice");
}

#[tokio::test]
async fn a_node_full_of_functions_that_wait_for_commands_still_decides_them() {
    let node = Node::builder().settings("[functions]\nconcurrency = 3\n").start().await;
    node.deploy(&app()).await;
    // More calls than places, each of which needs another place to go on.
    let calls = (0..12).map(|n| {
        let data = node.data.clone();
        tokio::spawn(async move { ask(&data, &open(&format!("a{n}"))).await["revision"].clone() })
    });
    for call in calls.collect::<Vec<_>>() {
        assert_eq!(call.await.unwrap(), 0);
    }
}

#[tokio::test]
async fn a_busy_stream_is_told_to_who_sends_to_it() {
    let node = Node::with(&app()).await;
    for attempt in 0..10 {
        let stream = format!("a{attempt}");
        // One that takes its time, and behind it more than a stream's mailbox holds.
        let (turned_away, mut first) = tokio::sync::mpsc::unbounded_channel();
        for n in 0..80 {
            let (data, stream, turned_away) = (node.data.clone(), stream.clone(), turned_away.clone());
            tokio::spawn(async move {
                let name = if n == 0 { "spin" } else { "behave" };
                let status = data.command("hostile", &stream, name, &json!({})).await.status;
                let _ = turned_away.send(status);
            });
        }
        let behave = json!({ "send": { "aggregate": "hostile", "key": stream, "name": "behave" } });
        if first.recv().await != Some(429) {
            continue;
        }
        let told = ask(&node.data, &behave).await;
        // The mailbox may have been emptied just now.
        if told["error"].is_string() {
            assert_eq!((&told["error"], &told["code"]), (&json!("Busy"), &json!("throttled")), "{told}");
            assert_eq!(told["retry"], true);
            assert_eq!(ask(&node.data, &open("a")).await["revision"], 0, "other streams are as they were");
            return;
        }
    }
    panic!("the mailbox was never full");
}

#[tokio::test]
async fn the_time_of_a_call_runs_while_it_waits_for_a_command() {
    let mut node = Node::with(&app()).await;
    let started = Instant::now();
    let spin = json!({ "send": { "aggregate": "hostile", "key": "a", "name": "spin" } });
    node.data.post("/briefly", &spin).await.problem(504, "out_of_time");
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    assert!(node.is_running());
    assert_eq!(ask(&node.data, &open("a")).await["revision"], 0);
}

#[tokio::test]
async fn a_function_that_sends_without_end_is_ended_and_its_neighbours_go_on() {
    let node = Node::builder().start().await;
    node.deploy(&app()).await;
    node.deploy(&app().edit("name = \"asking\"", "name = \"neighbour\"")).await;
    let storming = node.app("asking");
    let storm = json!({ "storm": open("same") });
    let storms: Vec<_> = (0..8)
        .map(|_| {
            let (app, storm) = (storming.clone(), storm.clone());
            tokio::spawn(async move { app.post("/ask", &storm).await })
        })
        .collect();
    eventually("a storm", async || (!storming.all_events().await.is_empty()).then_some(())).await;
    let neighbour = node.app("neighbour");
    for n in 0..20 {
        let started = Instant::now();
        assert_eq!(ask(&neighbour, &open(&format!("n{n}"))).await["revision"], 0);
        assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    }
    for storm in storms {
        let reply: Reply = storm.await.unwrap();
        assert_eq!(reply.status, 504, "{reply:?}");
    }
}

#[tokio::test]
async fn a_call_whose_app_is_removed_is_told_so() {
    let node = Node::with(&app()).await;
    ask(&node.data, &open("a")).await;
    let spin = json!({ "send": { "aggregate": "hostile", "key": "a", "name": "spin" } });
    let data = node.data.clone();
    let waiting = tokio::spawn(async move {
        let first = data.post("/ask", &spin).await;
        (first.status, first.status == 200 && first.ok()["error"].is_string())
    });
    let storm = {
        let data = node.data.clone();
        tokio::spawn(async move { data.post("/ask", &json!({ "storm": open("b") })).await.status })
    };
    eventually("the storm to begin", async || {
        node.data.get("/streams/account-b").await.ok()["events"][0].is_object().then_some(())
    })
    .await;
    let removed = node.control.request(Method::DELETE, "/apps/asking").await;
    assert!(removed.status < 300, "{removed:?}");
    let (status, is_error) = waiting.await.unwrap();
    assert!(status == 504 || is_error, "an end or an error as a value: {status}");
    assert_eq!(storm.await.unwrap(), 504, "who sends on is told each time, until its time is up");
    node.data.post("/ask", &open("c")).await.problem(404, "app_required");
}

#[tokio::test]
async fn the_example_moves_money_once() {
    let node = Node::with(&App::in_folder(&examples("teller"))).await;
    for account in ["ann", "bob"] {
        node.data.command("account", account, "open", &json!({ "owner": account })).await.ok();
    }
    node.data.command("account", "ann", "deposit", &json!({ "amount": 50 })).await.ok();
    let transfer = async |id: &str, to: &str| {
        let body = json!({ "from": "ann", "to": to, "amount": 30 }).to_string();
        node.data.request(Method::PUT, &format!("/transfers/{id}")).body("application/json", body).await
    };
    let expected = json!([{ "account": "ann", "balance": 20 }, { "account": "bob", "balance": 30 }]);
    for _ in 0..2 {
        assert_eq!(transfer("t-1", "bob").await.ok()["balances"], expected);
    }
    let refused = transfer("t-2", "bob").await;
    assert_eq!((refused.status, &refused.json()["code"]), (422, &json!("insufficient_funds")));
    node.data.command("account", "ann", "deposit", &json!({ "amount": 10 })).await.ok();
    let nobody = transfer("t-3", "nobody").await;
    assert_eq!((nobody.status, &nobody.json()["code"]), (422, &json!("not_open")));
    let ann = eventually("the money to be back", async || {
        let row = node.data.get("/models/balances/ann").await.ok();
        (row["balance"] == 30).then_some(row)
    })
    .await;
    assert_eq!(ann["account"], "ann");
}
