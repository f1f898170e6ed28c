//! An app on a node: how requests find it, who may use it, what it tells about itself.

use crate::support::{bank_named, open_account};
use crate::tokens;
use ebb_tests::{LiveEvents, Node, bank};
use http::Method;
use serde_json::{Value, json};

#[tokio::test]
async fn a_request_finds_its_app_by_prefix_by_host_or_as_the_only_one() {
    let node = Node::start_fresh().await;
    node.data.get("/events").await.problem(404, "app_required");
    node.data.get("/apps/bank/events").await.problem(404, "unknown_app");

    node.deploy(&bank().edit("name = \"bank\"", "name = \"bank\"\nhosts = [\"bank.localhost\"]")).await;
    let position = open_account(&node.app("bank"), "a", 1).await;
    let count = async |path: &str, host: &str| {
        let reply = node.data.get(path).header("host", host).await;
        reply.ok()["events"].as_array().expect("events").len() as u64
    };
    assert_eq!(count("/events", "localhost").await, position, "the only app");

    node.deploy(&bank_named("bank-two")).await;
    open_account(&node.app("bank-two"), "b", 1).await;
    open_account(&node.app("bank-two"), "c", 1).await;
    node.data.get("/events").await.problem(404, "app_required");
    assert_eq!(count("/events", "bank.localhost").await, 2);
    assert_eq!(count("/events", "BANK.localhost:8080").await, 2);
    assert_eq!(count("/apps/bank-two/events", "bank.localhost").await, 4, "the prefix always selects");
    node.data
        .get("/apps/bank-three/events")
        .header("host", "bank.localhost")
        .await
        .problem(404, "unknown_app");

    node.put(&bank_named("bank-three").edit("[build]", "hosts = [\"bank.localhost\"]\n[build]"))
        .await
        .problem(409, "host_taken");
}

#[tokio::test]
async fn two_apps_on_a_node_see_nothing_of_each_other() {
    let node = Node::with(&bank()).await;
    node.deploy(&bank_named("bank-two")).await;
    let (one, two) = (node.app("bank"), node.app("bank-two"));
    let position = open_account(&one, "a", 100).await;
    let command = one.get("/events?limit=1").await.ok()["events"][0]["commandid"].clone();

    assert_eq!(two.get("/events").await.ok(), json!({ "events": [], "next": null }));
    assert_eq!(two.get("/streams/account-a").await.ok()["events"], json!([]));
    two.get("/models/balances/a").await.problem(404, "no_such_row");
    two.get(&format!("/command-log/{}", command.as_str().unwrap())).await.problem(404, "no_such_command");
    two.get("/models/balances").header("ebb-after", position).await.problem(409, "position_unknown");
    two.command("account", "a", "withdraw", &json!({ "amount": 1 })).await.refused("not_open");

    let mut live = LiveEvents::open(two.get("/events")).await;
    one.command("account", "a", "deposit", &json!({ "amount": 1 })).await.ok();
    open_account(&two, "b", 5).await;
    let (id, event) = live.event().await;
    assert_eq!(
        (id, &event["subject"], &event["source"]),
        (1, &json!("account-b"), &json!("urn:ebbtide:bank-two"))
    );

    // A cursor belongs to its app.
    for id in ["c", "d"] {
        open_account(&one, id, 1).await;
    }
    let end = open_account(&one, "e", 1).await;
    let page = one.get("/models/balances?limit=1").header("ebb-after", end).await.ok();
    let cursor = page["next"].as_str().expect("there are more");
    two.get(&format!("/models/balances?limit=1&cursor={cursor}")).await.problem(400, "bad_cursor");
}

#[tokio::test]
async fn an_app_describes_what_it_offers() {
    let node = Node::with(&bank()).await;
    let document = node.app("bank").get("/openapi.json").await.ok();
    assert!(document["openapi"].as_str().is_some_and(|version| version.starts_with("3.")), "{document}");
    let paths: Vec<&String> = document["paths"].as_object().expect("paths").keys().collect();
    for wanted in
        ["/commands/account/{id}/deposit", "/models/balances", "/models/balances/{", "/events", "/streams/"]
    {
        assert!(paths.iter().any(|path| path.contains(wanted)), "no {wanted} in {paths:?}");
    }
    assert!(document.to_string().contains("Whole cents"), "the commands' schemas are in it");
}

#[tokio::test]
async fn an_app_describes_the_topics_that_it_uses() {
    let node = Node::with(&bank()).await;
    let document = node.app("bank").get("/asyncapi.json").await.ok();
    assert_eq!(
        (&document["asyncapi"], &document["channels"]),
        (&json!("3.0.0"), &json!({})),
        "it has no brokers"
    );
}

#[tokio::test]
async fn every_path_says_which_methods_it_takes() {
    let node = Node::with(&bank()).await;
    let bank = node.app("bank");
    open_account(&bank, "a", 1).await;
    for (method, path, allowed) in [
        (Method::GET, "/commands/account/a/deposit", "POST, OPTIONS"),
        (Method::PUT, "/commands/account/a/deposit", "POST, OPTIONS"),
        (Method::POST, "/events", "GET, HEAD, OPTIONS"),
        (Method::DELETE, "/models/balances/a", "GET, HEAD, OPTIONS"),
        (Method::PATCH, "/openapi.json", "GET, HEAD, OPTIONS"),
        (Method::PUT, "/asyncapi.json", "GET, HEAD, OPTIONS"),
    ] {
        let reply = bank.request(method, path).await;
        reply.problem(405, "method_not_allowed");
        assert_eq!(reply.header("allow"), Some(allowed), "{path}");
        let options = bank.request(Method::OPTIONS, path).await;
        assert_eq!(
            (options.status, options.header("allow"), options.body.len()),
            (204, Some(allowed), 0),
            "{path}"
        );
    }
    for path in ["/models/balances", "/events", "/streams/account-a", "/openapi.json"] {
        let (get, head) = (bank.get(path).await, bank.request(Method::HEAD, path).await);
        assert_eq!((head.status, head.body.len()), (200, 0), "{path}");
        assert_eq!(head.header("content-type"), get.header("content-type"), "{path}");
        assert_eq!(head.header("content-length"), Some(get.body.len().to_string().as_str()), "{path}");
    }
    for path in ["/nothing", "/", "/commands/account/a", "/models/balances/a/b", "/graphql"] {
        bank.get(path).await.problem(404, "not_found");
    }
}

#[tokio::test]
async fn pages_of_listed_origins_may_call_and_others_may_not() {
    let cors = "name = \"bank\"\ncors = { origins = [\"https://www.example.org\"], max-age = \"1h\" }";
    let node = Node::with(&bank().edit("name = \"bank\"", cors)).await;
    let bank = node.app("bank");
    let preflight = async |origin: &str| {
        let request = bank.request(Method::OPTIONS, "/commands/account/a/open").header("origin", origin);
        request.header("access-control-request-method", "POST").await
    };
    let allowed = preflight("https://www.example.org").await;
    assert_eq!(allowed.status, 204);
    assert_eq!(allowed.header("access-control-allow-origin"), Some("https://www.example.org"));
    assert_eq!(allowed.header("access-control-max-age"), Some("3600"));
    assert!(allowed.header("access-control-allow-methods").is_some_and(|methods| methods.contains("POST")));
    assert!(
        allowed.header("access-control-allow-headers").is_some_and(|names| names.contains("Idempotency-Key"))
    );
    let foreign = preflight("https://evil.example").await;
    assert_eq!(
        (foreign.header("access-control-allow-origin"), foreign.header("access-control-allow-methods")),
        (None, None)
    );

    let open = |origin: &str| {
        bank.command("account", "a", "open", &json!({ "owner": "Ada" })).header("origin", origin)
    };
    open("https://evil.example").await.problem(403, "origin_not_allowed");
    let reply = open("https://www.example.org").await;
    reply.ok();
    assert_eq!(reply.header("access-control-allow-origin"), Some("https://www.example.org"));
    assert!(
        reply.header("access-control-expose-headers").is_some_and(|names| names.contains("Ebb-Position"))
    );
    let refused = open("https://www.example.org").await;
    refused.refused("already_open");
    assert_eq!(
        refused.header("access-control-allow-origin"),
        Some("https://www.example.org"),
        "errors can be read too"
    );
}

/// Two static tokens and an issuer; nobody comes in without a token.
const AUTH: &str = r#"
[[auth.tokens]]
actor = "teller"
token = "teller-0123456789abcdef"

[[auth.tokens]]
actor = "guest"
token = "guest-0123456789abcdef"

[auth.jwt]
jwks-file = "keys.json"
issuer = "https://issuer.example"
audience = ["ebb"]
"#;

async fn guarded_node() -> Node {
    let node = Node::builder().settings(AUTH).file("keys.json", tokens::KEYS).start().await;
    let app = bank()
        .edit("[aggregate.account]", "[aggregate.account]\nallow = [\"teller\", \"ada\"]")
        .edit("[model.balances]", "[model.balances]\nallow = [\"ada\"]");
    node.deploy(&app).await;
    node
}

#[tokio::test]
async fn a_missing_wrong_or_expired_token_is_turned_away_with_its_code() {
    let node = guarded_node().await;
    let bank = node.app("bank");
    let missing = bank.get("/events").await;
    missing.problem(401, "unauthenticated");
    assert!(missing.header("www-authenticate").is_some_and(|value| value.starts_with("Bearer")));
    for (token, code) in [
        ("nobody-0123456789abcdef", "token_invalid"),
        (tokens::EXPIRED, "token_expired"),
        (tokens::NOT_YET, "token_not_yet_valid"),
        (tokens::FOR_OTHERS, "token_invalid"),
        (&tokens::VALID[..tokens::VALID.len() - 4], "token_invalid"),
    ] {
        for path in ["/events", "/models/balances", "/streams/account-a", "/openapi.json", "/command-log/x"] {
            let reply = bank.get(path).token(token).await;
            reply.problem(401, code);
            assert!(
                reply.header("www-authenticate").is_some_and(|value| value.contains("invalid_token")),
                "{path}"
            );
            assert!(
                !reply.body.windows(16).any(|part| token.as_bytes().starts_with(part)),
                "a token is never repeated"
            );
        }
        let open = bank.command("account", "a", "open", &json!({ "owner": "x" })).token(token).await;
        open.problem(401, code);
    }
    let basic = bank.get("/events").header("authorization", "Basic YTpi").await;
    basic.problem(401, "token_invalid");
}

#[tokio::test]
async fn an_allow_list_says_who_may_and_events_say_who_did() {
    let node = guarded_node().await;
    let bank = node.app("bank");
    let (teller, guest) = ("teller-0123456789abcdef", "guest-0123456789abcdef");
    let open =
        |id: &str, token: &str| bank.command("account", id, "open", &json!({ "owner": "x" })).token(token);
    open("a", guest).await.problem(403, "forbidden");
    open("a", teller).await.ok();
    let position = open("b", tokens::VALID).await.position();

    let events = bank.get("/events").token(teller).await.ok();
    let actors: Vec<&Value> =
        events["events"].as_array().unwrap().iter().map(|event| &event["actor"]).collect();
    assert_eq!(actors, [&json!("teller"), &json!("ada")]);
    assert_eq!(
        bank.get("/events").token(guest).await.ok()["events"],
        json!([]),
        "who may not see an aggregate sees no events of it"
    );
    bank.get("/streams/account-a").token(guest).await.problem(403, "forbidden");
    bank.get("/models/balances").token(teller).await.problem(403, "forbidden");
    let row = bank.get("/models/balances/b").token(tokens::VALID).header("ebb-after", position).await;
    assert_eq!(row.ok()["owner"], "x");

    // Who may deploy a module may read everything; but commands have an actor, and that is none.
    let events = node.control.get("/apps/bank/events").await.ok();
    assert_eq!(events["events"].as_array().map(Vec::len), Some(2), "{events}");
    assert_eq!(node.control.get("/apps/bank/streams/account-a").await.ok()["events"][0]["sequence"], 0);
    assert_eq!(node.control.get("/apps/bank/models/balances/b").await.ok()["owner"], "x");
    let command = node.control.post("/apps/bank/commands/account/a/open", &json!({ "owner": "x" })).await;
    command.problem(404, "not_found");
}

#[tokio::test]
async fn a_key_belongs_to_an_actor() {
    let node = guarded_node().await;
    let bank = node.app("bank");
    let open = |id: &str, token: &str| {
        bank.command("account", id, "open", &json!({ "owner": "x" }))
            .token(token)
            .header("idempotency-key", "k")
    };
    open("a", "teller-0123456789abcdef").await.ok();
    let other = open("b", tokens::VALID).await;
    assert_eq!((other.status, other.header("ebb-replayed")), (200, None));
}

#[tokio::test]
async fn the_control_plane_takes_its_own_token_and_no_names_of_others() {
    let node = Node::builder().env("EBB_CONTROL_TOKEN", "operator-0123456789").start().await;
    let control = &node.control;
    control.get("/readyz").await.ok();
    control.get("/apps").await.problem(401, "unauthenticated");
    control.get("/apps").token("operator-9876543210").await.problem(401, "token_invalid");
    assert_eq!(control.get("/apps").token("operator-0123456789").await.ok(), json!({ "apps": [] }));
    let rebound = control.get("/apps").token("operator-0123456789").header("host", "evil.example");
    rebound.await.problem(403, "host_not_allowed");
    let page = control.get("/apps").token("operator-0123456789").header("origin", "http://evil.example");
    page.await.problem(403, "origin_not_allowed");
    let status = node.ebb_control(&["status", "--json", "--token", "operator-0123456789"]).await;
    assert_eq!(status.json()["apps"], json!([]));
    node.ebb_control(&["status"]).await.ended(1);
}

#[tokio::test]
async fn a_node_with_all_its_live_streams_taken_says_when_to_come_back() {
    let node = Node::builder().settings("[limits]\nlive = 1\n").start().await;
    node.deploy(&bank()).await;
    let live = |request: ebb_tests::Request| request.header("accept", "text/event-stream");
    let mut first = LiveEvents::open(node.app("bank").get("/events")).await;
    first.message().await.expect("the greeting");
    let second = live(node.app("bank").get("/events")).await;
    second.problem(503, "overloaded");
    assert!(second.number("retry-after") >= 1);
}
