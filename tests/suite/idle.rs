//! What an app costs that nobody uses: nothing of it is open, and its next use finds everything.

use crate::support::{bank_named, open_account, row_after};
use ebb_tests::{App, LiveEvents, Node, bank, eventually, guest};
use serde_json::{Value, json};

async fn state(node: &Node, app: &str) -> Value {
    node.control.get(&format!("/apps/{app}")).await.ok()["state"].clone()
}

/// Open files of the node below its apps' folders.
fn open_files(node: &Node) -> usize {
    let folder = format!("/proc/{}/fd", node.process_id());
    let files = std::fs::read_dir(folder).expect("the node runs").filter_map(Result::ok);
    let targets = files.filter_map(|file| std::fs::read_link(file.path()).ok());
    targets.filter(|target| target.starts_with(node.data_folder().join("apps"))).count()
}

#[tokio::test]
async fn an_app_that_nobody_uses_is_closed_and_its_next_use_finds_everything() {
    let node = Node::builder().env("EBB_APPS_IDLE", "200ms").start().await;
    node.deploy(&bank()).await;
    let app = node.app("bank");
    for round in 0..3 {
        let end = open_account(&app, &round.to_string(), 5).await;
        assert_eq!(row_after(&app, "balances", &round.to_string(), end).await["balance"], 5);
        eventually("an idle app", async || (state(&node, "bank").await == "idle").then_some(())).await;
        assert_eq!(open_files(&node), 0);
        let summary = node.control.get("/apps/bank").await.ok();
        assert_eq!(summary["position"], end);
        let projections = node.control.get("/projections").await.ok();
        let balances = &projections["projections"][0];
        assert_eq!(
            (&balances["state"], &balances["mark"], &balances["lag"]),
            (&json!("idle"), &json!(end), &json!(0))
        );
        assert!(node.ebb_control(&["status"]).await.ok().contains("idle"));
        assert_eq!(state(&node, "bank").await, "idle", "looking opens nothing");
    }
}

#[tokio::test]
async fn a_start_after_an_orderly_end_opens_no_app_and_one_after_a_crash_finishes_what_was_left() {
    let mut node = Node::start_fresh().await;
    node.deploy(&bank()).await;
    node.deploy(&bank_named("bank-two")).await;
    let end = open_account(&node.app("bank"), "a", 5).await;
    row_after(&node.app("bank"), "balances", "a", end).await;
    assert_eq!(node.stop().await, Some(0));
    node.start().await;
    assert_eq!((state(&node, "bank").await, state(&node, "bank-two").await), (json!("idle"), json!("idle")));
    assert_eq!(open_files(&node), 0);

    let end = open_account(&node.app("bank"), "b", 7).await;
    node.kill().await;
    node.start().await;
    let mark = async || node.control.get("/projections").await.ok()["projections"][0]["mark"].clone();
    eventually("a projection at the end", async || (mark().await == end).then_some(())).await;
    assert_eq!(state(&node, "bank-two").await, "idle", "it was at rest");
}

/// An app of functions alone.
fn functions() -> App {
    App::new(
        r#"[app]
name = "functions"

[function.do]
module = "http.wasm"
trigger = { http = { route = "/do/{what}" } }

[function.other]
module = "http.wasm"
trigger = { http = { route = "/other/{what}" } }
"#,
    )
    .file("http.wasm", guest("http"))
}

#[tokio::test]
async fn a_request_opens_its_app_and_a_response_that_goes_on_keeps_it_open() {
    let mut node = Node::builder().env("EBB_APPS_IDLE", "100ms").start().await;
    node.deploy(&functions()).await;
    let app = node.app("functions");
    eventually("an idle app", async || (state(&node, "functions").await == "idle").then_some(())).await;
    node.control.get("/apps/functions/deployments").await.ok();
    let known = node.control.get("/functions").await.ok();
    assert_eq!((&known["total"], &known["states"]["cold"]), (&json!(2), &json!(2)), "told, and not opened");
    assert_eq!(state(&node, "functions").await, "idle");

    let mut ticks = LiveEvents::open(app.get("/do/ticks?n=40")).await;
    let mut seen = 0;
    while ticks.message().await.is_some() {
        // The end of the response is seen later than it happens.
        if seen < 38 {
            assert_eq!(state(&node, "functions").await, "open", "at tick {seen}");
        }
        seen += 1;
    }
    assert_eq!(seen, 40);
    eventually("an idle app", async || (state(&node, "functions").await == "idle").then_some(())).await;
    assert_eq!(app.get("/do/count").await.status, 200);

    assert_eq!(node.stop().await, Some(0));
    node.start().await;
    assert_eq!(state(&node, "functions").await, "idle");
    assert_eq!(node.app("functions").get("/other/count").await.status, 200);
}

#[tokio::test]
async fn live_events_keep_their_app_open() {
    let node = Node::builder().env("EBB_APPS_IDLE", "100ms").start().await;
    node.deploy(&bank()).await;
    let app = node.app("bank");
    let mut live = LiveEvents::open(app.get("/events")).await;
    live.message().await.expect("a first word");
    let looked_at = std::time::Instant::now();
    while looked_at.elapsed() < std::time::Duration::from_millis(600) {
        assert_eq!(state(&node, "bank").await, "open");
    }
    open_account(&app, "a", 5).await;
    assert_eq!(live.event().await.0, 1);
    drop(live);
    eventually("an idle app", async || (state(&node, "bank").await == "idle").then_some(())).await;
}

#[tokio::test]
async fn no_more_apps_are_open_than_the_settings_say_and_all_can_be_used() {
    let node = Node::builder().env("EBB_APPS_OPEN", "2").start().await;
    let names = ["bank-one", "bank-two", "bank-three"];
    for name in names {
        node.deploy(&bank_named(name)).await;
    }
    for round in 0..3 {
        for name in names {
            open_account(&node.app(name), &round.to_string(), 5).await;
            let apps = node.control.get("/apps").await.ok();
            let apps = apps["apps"].as_array().expect("apps");
            let open = apps.iter().filter(|app| app["state"] == "open").count();
            assert!(open <= 2, "{apps:?}");
        }
    }
    // Those that are in use keep their places.
    let mut live = [
        LiveEvents::open(node.app("bank-one").get("/events")).await,
        LiveEvents::open(node.app("bank-two").get("/events")).await,
    ];
    for live in &mut live {
        live.message().await.expect("a first word");
    }
    let refused = node.app("bank-three").get("/events").await;
    assert_eq!(refused.header("retry-after"), Some("1"));
    refused.problem(503, "overloaded");
    let [one, _two] = live;
    drop(one);
    eventually("a place", async || (node.app("bank-three").get("/events").await.status == 200).then_some(()))
        .await;
}

#[tokio::test]
async fn who_may_call_nothing_opens_nothing() {
    let settings = "[apps]\nidle = \"100ms\"\n[[auth.tokens]]\nactor = \"alice\"\ntoken = \"alice-alice-alice-alice-alice-alice\"\n";
    let node = Node::builder().settings(settings).start().await;
    node.deploy(&functions()).await;
    eventually("an idle app", async || (state(&node, "functions").await == "idle").then_some(())).await;
    let app = node.app("functions");
    for path in ["/do/count", "/events", "/nowhere"] {
        app.get(path).await.problem(401, "unauthenticated");
        app.get(path).token("bob-bob-bob-bob-bob-bob-bob-bob-bob").await.problem(401, "token_invalid");
        assert_eq!(state(&node, "functions").await, "idle", "{path}");
    }
    assert_eq!(app.get("/do/count").token("alice-alice-alice-alice-alice-alice").await.status, 200);
}
