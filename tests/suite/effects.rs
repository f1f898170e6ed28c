//! Event functions: what happens is told to the world outside, at least once, and what fails is parked.

use crate::support::open_account;
use ebb_tests::{App, Node, bank, eventually, guest};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Somebody else's server, which takes events.
pub(crate) struct Collector {
    address: String,
    taken: Arc<Mutex<Vec<Value>>>,
    /// What is answered about a stream, where it is not 200.
    moods: Arc<Mutex<HashMap<String, u16>>>,
}

impl Collector {
    pub(crate) async fn open() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (taken, moods) =
            (Arc::<Mutex<Vec<Value>>>::default(), Arc::<Mutex<HashMap<String, u16>>>::default());
        let (its_taken, its_moods) = (taken.clone(), moods.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, its_taken.clone(), its_moods.clone()));
            }
        });
        Self { address, taken, moods }
    }

    pub(crate) fn answers(&self, stream: &str, status: u16) {
        self.moods.lock().unwrap().insert(stream.to_owned(), status);
    }

    pub(crate) fn is_mended(&self) {
        self.moods.lock().unwrap().clear();
    }

    /// Types and subjects of the events that were taken, in their order.
    fn taken(&self) -> Vec<String> {
        let taken = self.taken.lock().unwrap();
        taken.iter().map(|event| format!("{} {}", text(&event["type"]), text(&event["subject"]))).collect()
    }

    async fn has(&self, count: usize) {
        eventually("the collector to have them", async || {
            (self.taken.lock().unwrap().len() >= count).then_some(())
        })
        .await;
    }
}

fn text(value: &Value) -> &str {
    value.as_str().expect("text")
}

async fn serve(
    mut stream: TcpStream,
    taken: Arc<Mutex<Vec<Value>>>,
    moods: Arc<Mutex<HashMap<String, u16>>>,
) {
    let mut bytes = Vec::new();
    let event: Value = loop {
        if stream.read_buf(&mut bytes).await.unwrap_or_default() == 0 {
            return;
        }
        // Sent in chunks or not: the event is the one JSON object in it.
        let from = bytes.iter().position(|byte| *byte == b'{');
        let to = bytes.iter().rposition(|byte| *byte == b'}');
        if let (Some(from), Some(to)) = (from, to)
            && let Ok(event) = serde_json::from_slice(&bytes[from..=to])
        {
            break event;
        }
    };
    let status = moods.lock().unwrap().get(text(&event["subject"])).copied().unwrap_or(200);
    if status == 200 {
        taken.lock().unwrap().push(event);
    }
    let answer = format!("HTTP/1.1 {status} So\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    let _ = stream.write_all(answer.as_bytes()).await;
    let _ = stream.shutdown().await;
}

/// The bank, with a function that tells the collector of deposits and withdrawals.
pub(crate) fn telling(collector: &Collector) -> App {
    let address = &collector.address;
    let function = format!(
        r#"[function.tell]
module = "courier.wasm"
trigger = {{ events = {{ types = ["Deposited", "Withdrawn"], retry = {{ attempts = 2, backoff = "10ms", max-backoff = "20ms" }} }} }}
capabilities = {{ outbound-http = ["{address}"], env = {{ COLLECTOR = "http://{address}" }} }}

[aggregate.account]"#
    );
    bank().edit("[aggregate.account]", &function).file("courier.wasm", guest("courier"))
}

async fn parked(node: &Node) -> Vec<Value> {
    let page = node.control.get("/apps/bank/projections/tell/parked").await.ok();
    page["parked"].as_array().expect("parked").clone()
}

async fn status(node: &Node) -> Value {
    let all = node.control.get("/projections").await.ok();
    let all = all["projections"].as_array().expect("projections");
    all.iter().find(|one| one["projection"] == "tell").expect("the function").clone()
}

#[tokio::test]
async fn what_happens_is_told_once_it_is_durable_and_only_what_was_asked_for() {
    let collector = Collector::open().await;
    let mut node = Node::with(&bank()).await;
    open_account(&node.app("bank"), "before", 1).await;
    node.deploy(&telling(&collector)).await;
    let position = open_account(&node.app("bank"), "ann", 5).await;
    collector.has(1).await;
    let event = collector.taken.lock().unwrap()[0].clone();
    assert_eq!(
        (&event["subject"], &event["data"]["amount"], &event["position"], &event["source"]),
        (&json!("account-ann"), &json!(5), &json!(position), &json!("urn:ebbtide:bank")),
        "what happened before the first deployment is not told: {event}"
    );

    // A restart and another deployment go on where it was.
    eventually("its mark to be there", async || (status(&node).await["mark"] == position).then_some(()))
        .await;
    assert_eq!(node.stop().await, Some(0));
    node.start().await;
    open_account(&node.app("bank"), "bob", 5).await;
    collector.has(2).await;
    node.deploy(&telling(&collector).edit("attempts = 2", "attempts = 3")).await;
    open_account(&node.app("bank"), "eve", 5).await;
    collector.has(3).await;
    assert_eq!(
        collector.taken(),
        ["Deposited account-ann", "Deposited account-bob", "Deposited account-eve"]
    );
    assert_eq!(status(&node).await["kind"], "function");
}

#[tokio::test]
async fn an_event_that_fails_is_parked_with_those_behind_it_and_told_when_it_is_retried() {
    // It answers which event failed, or it traps.
    for mood in [400, 418] {
        let collector = Collector::open().await;
        let mut node = Node::with(&telling(&collector)).await;
        collector.answers("account-bad", mood);
        let bank = node.app("bank");
        open_account(&bank, "bad", 5).await;
        open_account(&bank, "good", 5).await;
        collector.has(1).await;
        bank.command("account", "bad", "deposit", &json!({ "amount": 6 })).await.ok();
        eventually("both to be queued", async || (parked(&node).await.first()?["queued"] == 2).then_some(()))
            .await;
        let one = &parked(&node).await[0];
        let reason = text(&one["reason"]).to_owned();
        let expected = if mood == 400 { "the collector says 400" } else { "a teapot" };
        assert!(one["key"] == "account-bad" && reason.contains(expected), "{one}");

        node.kill().await;
        node.start().await;
        collector.is_mended();
        let retry = json!({ "key": "account-bad" });
        let done = node.control.post("/apps/bank/projections/tell/parked/retry", &retry).await.ok();
        assert_eq!((&done["applied"], &done["remaining"]), (&json!(2), &json!(0)));
        let taken = collector.taken();
        assert_eq!(taken.first().map(String::as_str), Some("Deposited account-good"));
        assert_eq!(taken[taken.len() - 2..], ["Deposited account-bad", "Deposited account-bad"]);
    }
}

#[tokio::test]
async fn a_collector_that_is_away_is_waited_for_and_nothing_is_parked() {
    let collector = Collector::open().await;
    collector.answers("account-ann", 503);
    let node = Node::with(&telling(&collector)).await;
    open_account(&node.app("bank"), "ann", 5).await;
    eventually("it to be tried again", async || {
        let status = status(&node).await;
        (status["state"] == "retrying" && status["attempts"].as_u64() > Some(3)).then_some(())
    })
    .await;
    let said = status(&node).await;
    assert!(text(&said["error"]).contains("the collector is busy"), "{said}");
    assert_eq!(parked(&node).await, [] as [Value; 0]);
    collector.is_mended();
    collector.has(1).await;
}

#[tokio::test]
async fn a_crash_gives_again_what_is_not_known_to_be_done_and_loses_nothing() {
    let collector = Collector::open().await;
    let mut node = Node::with(&telling(&collector)).await;
    for account in 0..40 {
        open_account(&node.app("bank"), &format!("a{account}"), 5).await;
        if account % 10 == 9 {
            node.kill().await;
            node.start().await;
        }
    }
    let all: Vec<String> = (0..40).map(|account| format!("Deposited account-a{account}")).collect();
    eventually("all to be told", async || {
        let taken = collector.taken();
        all.iter().all(|one| taken.contains(one)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_command_line_has_it_go_on_elsewhere_and_does_not_rebuild_it() {
    let collector = Collector::open().await;
    let node = Node::with(&telling(&collector)).await;
    open_account(&node.app("bank"), "ann", 5).await;
    collector.has(1).await;
    let moved = node.ebb_control(&["seek", "tell", "--to", "start"]).await;
    assert_eq!(moved.ok(), "done tell goes on behind position 0\n");
    collector.has(2).await;
    assert_eq!(collector.taken(), ["Deposited account-ann", "Deposited account-ann"]);
    let refused = node.ebb_control(&["rebuild", "tell"]).await;
    assert!(refused.stderr.contains("what it did can't be undone"), "{}", refused.stderr);
    let nowhere = node.ebb_control(&["seek", "tell", "--to", "99"]).await;
    assert!(nowhere.stderr.contains("the log ends at 2"), "{}", nowhere.stderr);
    let projection = node.ebb_control(&["seek", "balances", "--to", "now"]).await;
    assert!(projection.stderr.contains("`balances` is a projection"), "{}", projection.stderr);
    node.ebb_control(&["seek", "tell", "--to", "then"]).await.ended(2);
}

#[tokio::test]
async fn a_manifest_that_can_not_be_meant_is_refused() {
    let collector = Collector::open().await;
    let node = Node::start_fresh().await;
    let refused = async |from: &str, to: &str, why: &str| {
        let reply = node.put(&telling(&collector).edit(from, to)).await;
        let problem = reply.problem(422, "manifest_invalid");
        assert!(problem.to_string().contains(why), "{problem}");
    };
    refused("types = [", "typos = [", "typos").await;
    refused("\"Withdrawn\"]", "\"Stolen\"]", "Stolen").await;
    refused("[function.tell]", "[function.balances]", "there is a projection `balances` as well").await;
    refused("trigger = { events", "trigger = { http = { route = \"/a\" }, events", "has two triggers").await;
    refused("module = \"courier.wasm\"", "allow = [\"ann\"]\nmodule = \"courier.wasm\"", "events call").await;
    refused("retry = {", "from = \"then\", retry = {", "no place to begin").await;
    refused("retry = {", "lanes = 64, batch = { max-events = 1000 }, retry = {", "64000 events at once")
        .await;
}

/// A program that logs what it was given, and answers 500 where `account-bad` is in it.
const PROGRAM: &str = r#"(module
    (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 40)
    (data (i32.const 1024) "account-bad")
    (data (i32.const 2048) "{}{\"status\": 500}")
    (func $write (param $fd i32) (param $at i32) (param $length i32)
        (i32.store (i32.const 0) (local.get $at))
        (i32.store (i32.const 4) (local.get $length))
        (drop (call $fd_write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8))))
    (func $is_bad (param $at i32) (result i32)
        (i32.and
            (i64.eq (i64.load (local.get $at)) (i64.load (i32.const 1024)))
            (i32.eq (i32.load offset=7 (local.get $at)) (i32.load offset=7 (i32.const 1024)))))
    (func (export "_start") (local $end i32) (local $at i32)
        (local.set $end (i32.const 65536))
        (loop $more
            (i32.store (i32.const 0) (local.get $end))
            (i32.store (i32.const 4) (i32.const 65536))
            (drop (call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
            (local.set $end (i32.add (local.get $end) (i32.load (i32.const 8))))
            (br_if $more (i32.load (i32.const 8))))
        (call $write (i32.const 2) (i32.const 65536) (i32.sub (local.get $end) (i32.const 65536)))
        (local.set $at (i32.const 65536))
        (loop $on
            (if (call $is_bad (local.get $at)) (then
                (call $write (i32.const 1) (i32.const 2050) (i32.const 15))
                (return)))
            (local.set $at (i32.add (local.get $at) (i32.const 1)))
            (br_if $on (i32.lt_u (local.get $at) (local.get $end))))
        (call $write (i32.const 1) (i32.const 2048) (i32.const 2))))"#;

#[tokio::test]
async fn a_program_is_told_of_events_as_any_function_is() {
    let function = r#"[function.tell]
module = "tell.wasm"
trigger = { events = { types = ["Deposited"], retry = { attempts = 2, backoff = "10ms", max-backoff = "20ms" } } }

[aggregate.account]"#;
    let module = wat::parse_str(PROGRAM).expect("a module");
    let node = Node::with(&bank().edit("[aggregate.account]", function).file("tell.wasm", module)).await;
    let bank = node.app("bank");
    open_account(&bank, "bad", 5).await;
    let position = open_account(&bank, "good", 5).await;
    eventually("the other to be told of", async || (status(&node).await["mark"] == position).then_some(()))
        .await;
    let parked = parked(&node).await;
    assert!(parked.len() == 1 && parked[0]["key"] == "account-bad", "{parked:?}");
    let logged = node.control.get("/logs?app=bank").await;
    let logged = String::from_utf8_lossy(&logged.body).into_owned();
    assert!(logged.contains("account-good") && logged.contains("cloudevents-batch+json"), "{logged}");
}
