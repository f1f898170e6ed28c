//! Bad input: each kind has its status and code, and hurts nobody.

use crate::support::{open_account, row_after, string_of};
use ebb_tests::{App, Client, Node, Reply, bank, guest};
use serde_json::{Value, json};

/// Checks that the node is as well as before.
async fn still_serves(bank: &Client) {
    bank.get("/events?limit=1").await.ok();
}

fn codes(problem: &Value) -> Vec<String> {
    let problems = problem["problems"].as_array().expect("problems");
    problems.iter().map(ToString::to_string).collect()
}

#[tokio::test]
async fn a_body_that_is_not_what_the_command_takes_is_refused() {
    let node = Node::builder().settings("[limits]\nbody = \"64KiB\"\n").start().await;
    node.deploy(&bank()).await;
    let bank = node.app("bank");
    open_account(&bank, "a", 1).await;
    let deposit = |content_type: &str, body: &[u8]| {
        bank.request(http::Method::POST, "/commands/account/a/deposit").body(content_type, body.to_vec())
    };
    for body in ["{", "{\"amount\": 1} trailing", "amount=1", "\u{feff}{\"amount\": 1}", "{\"amount\": 01}"] {
        deposit("application/json", body.as_bytes()).await.problem(400, "not_json");
    }
    deposit("application/json", b"{\"amount\": \"\xff\"}").await.problem(400, "not_json");
    for body in [
        "{}",
        "[]",
        "null",
        "1",
        "{\"amount\": 0}",
        "{\"amount\": 1.5}",
        "{\"amount\": \"1\"}",
        "{\"amount\": 1, \"more\": 1}",
    ] {
        let problem = deposit("application/json", body.as_bytes()).await.problem(422, "schema_violation");
        assert!(
            problem["violations"].as_array().is_some_and(|violations| !violations.is_empty()),
            "{problem}"
        );
    }
    deposit("application/json", b"").await.problem(422, "schema_violation");
    for content_type in ["text/plain", "application/x-www-form-urlencoded", "application/jsonp"] {
        deposit(content_type, b"{\"amount\": 1}").await.problem(415, "unsupported_media_type");
    }
    deposit("application/json; charset=utf-8", b"{\"amount\": 1}").await.ok();
    deposit("application/json", &[b'['; 60_000]).await;
    still_serves(&bank).await;
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_with_or_without_a_length() {
    let node = Node::builder().settings("[limits]\nbody = \"64KiB\"\n").start().await;
    node.deploy(&bank()).await;
    let bank = node.app("bank");
    let open = |length: usize| format!("{{\"owner\":{}}}", string_of(length - 10));
    let request = || bank.request(http::Method::POST, "/commands/account/a/open");
    request().body("application/json", open(65_537)).await.problem(413, "body_too_large");
    // Chunked: nobody said how long it would be.
    let chunks = |length: usize| {
        let body = open(length).into_bytes();
        let pieces: Vec<_> = body.chunks(1000).map(|piece| Ok::<_, std::io::Error>(piece.to_vec())).collect();
        reqwest::Body::wrap_stream(futures_util::stream::iter(pieces))
    };
    request().body("application/json", chunks(70_000)).await.problem(413, "body_too_large");
    request().body("application/json", chunks(65_536)).await.ok();
}

#[tokio::test]
async fn names_that_nobody_has_are_not_found() {
    let node = Node::with(&bank()).await;
    let bank = node.app("bank");
    open_account(&bank, "a", 1).await;
    let data = json!({ "amount": 1 });
    bank.command("acount", "a", "deposit", &data).await.problem(404, "unknown_aggregate");
    let problem = bank.command("account", "a", "deposits", &data).await.problem(404, "unknown_command");
    assert!(
        problem["detail"].as_str().unwrap().contains("deposit"),
        "the detail lists what there is: {problem}"
    );
    bank.get("/models/balance").await.problem(404, "unknown_model");
    bank.get("/models/balance/a").await.problem(404, "unknown_model");
    bank.get("/streams/acount-a").await.problem(404, "unknown_aggregate");
    node.app("bonk").get("/events").await.problem(404, "unknown_app");
    node.app("%20").get("/events").await.problem(404, "unknown_app");
    node.control.get("/apps/bonk").await.problem(404, "unknown_app");
}

#[tokio::test]
async fn a_query_that_can_not_be_meant_is_refused() {
    let node = Node::with(&bank()).await;
    let bank = node.app("bank");
    for id in ["a", "b", "c"] {
        open_account(&bank, id, 1).await;
    }
    let end = open_account(&bank, "d", 1).await;
    let page = bank.get("/models/balances?limit=1&order=balance").header("ebb-after", end).await.ok();
    let cursor = page["next"].as_str().expect("there are more").to_owned();
    let mut forged = cursor.clone().into_bytes();
    forged[0] = if forged[0] == b'A' { b'B' } else { b'A' };
    let forged = String::from_utf8(forged).unwrap();
    for (query, status, code) in [
        ("colour=red".to_owned(), 400, "unknown_column"),
        ("order=colour".to_owned(), 400, "unknown_column"),
        ("balance=many".to_owned(), 400, "bad_value"),
        ("balance=99999999999999999999".to_owned(), 400, "bad_value"),
        ("balance.like=1".to_owned(), 400, "bad_query"),
        ("limit=0".to_owned(), 400, "bad_query"),
        ("limit=-1".to_owned(), 400, "bad_query"),
        ("limit=1&limit=2".to_owned(), 400, "bad_query"),
        ("owner=%ff".to_owned(), 400, "bad_query"),
        ("cursor=nonsense".to_owned(), 400, "bad_cursor"),
        ("cursor=".to_owned(), 400, "bad_cursor"),
        (format!("limit=1&order=balance&cursor={forged}"), 400, "bad_cursor"),
        (format!("limit=1&order=-balance&cursor={cursor}"), 400, "bad_cursor"),
        (format!("limit=1&order=balance&balance=1&cursor={cursor}"), 400, "bad_cursor"),
    ] {
        bank.get(&format!("/models/balances?{query}")).await.problem(status, code);
    }
    let sqlish = bank.get("/models/balances?owner=%27%3B%20DROP%20TABLE%20balances%3B--").await;
    assert_eq!(sqlish.ok()["items"], json!([]));
    bank.get(&format!("/models/balances?limit=2&order=balance&cursor={cursor}")).await.ok();
}

#[tokio::test]
async fn revisions_and_positions_are_whole_numbers_from_0() {
    let node = Node::with(&bank()).await;
    let bank = node.app("bank");
    open_account(&bank, "a", 1).await;
    for wrong in ["-1", "1.5", "", "one", "99999999999999999999", "%00"] {
        for path in ["/streams/account-a?from=", "/events?after=", "/events?limit="] {
            bank.get(&format!("{path}{wrong}")).await.problem(400, "bad_query");
        }
    }
    for wrong in ["-1", "\"-1\"", "1.5", "one", "\"\"", "W/\"1\""] {
        let deposit =
            bank.command("account", "a", "deposit", &json!({ "amount": 1 })).header("if-match", wrong);
        deposit.await.problem(400, "bad_header");
    }
    bank.get("/events?types=not%20a%20type").await.problem(400, "bad_query");
    assert_eq!(bank.get("/streams/account-a?from=99").await.ok()["events"], json!([]));
}

#[tokio::test]
async fn headers_that_can_not_be_meant_are_refused() {
    let node = Node::with(&bank()).await;
    let bank = node.app("bank");
    let open = || bank.command("account", "a", "open", &json!({ "owner": "Ada" }));
    let long = "k".repeat(256);
    for key in ["", "with space", long.as_str()] {
        open().header("idempotency-key", key).await.problem(400, "bad_header");
    }
    open().header("if-match", 0).header("if-none-match", "*").await.problem(400, "bad_header");
    open().header("ebb-correlation-id", "").await.problem(400, "bad_header");
    for id in ["+7", "-1", "7x", ""] {
        let live = bank.get("/events").header("accept", "text/event-stream").header("last-event-id", id);
        live.await.problem(400, "bad_header");
    }
    // A trace context is somebody else's business: a bad one never fails a request.
    open().header("traceparent", "nonsense").header("idempotency-key", "k".repeat(255)).await.ok();
}

#[tokio::test]
async fn a_key_is_any_text_without_control_characters_up_to_256_bytes() {
    let node = Node::with(&bank()).await;
    let bank = node.app("bank");
    let longest = "é".repeat(128);
    for (written, meant) in [
        ("a%2Fb%2Fc", "a/b/c"),
        ("a%252Fb", "a%2Fb"),
        ("%E5%8F%A3%E5%BA%A7-%F0%9F%8C%8A", "口座-🌊"),
        ("e%CC%81", "e\u{301}"),
        ("..%2F..%2Fetc%2Fpasswd", "../../etc/passwd"),
        ("with%20space%3Fand%23more", "with space?and#more"),
        ("%22quoted%22%5C", "\"quoted\"\\"),
        ("a+b", "a+b"),
        (&longest.replace('é', "%C3%A9"), longest.as_str()),
    ] {
        let position = open_account(&bank, written, 5).await;
        let row = row_after(&bank, "balances", written, position).await;
        assert_eq!((&row["account"], &row["balance"]), (&json!(meant), &json!(5)));
        let stream = bank.get(&format!("/streams/account-{written}")).await.ok();
        assert_eq!(stream["events"][1]["subject"], json!(format!("account-{meant}")));
    }
    for wrong in ["%00", "a%00b", "%0A", "%7F", "%C2%85", &"k".repeat(257), &"k".repeat(1024), ""] {
        let open = bank.command("account", wrong, "open", &json!({ "owner": "x" })).await;
        open.problem(400, "invalid_key");
    }
    for wrong in ["%ff", "%C3", "%zz", "%"] {
        bank.command("account", wrong, "open", &json!({ "owner": "x" })).await.problem(400, "bad_path");
    }
    for wrong in ["account-%00", "account-", "account", "-a", &format!("account-{}", "k".repeat(1024))] {
        bank.get(&format!("/streams/{wrong}")).await.problem(400, "invalid_key");
    }
}

/// One request as bytes on a socket of its own, for what no HTTP library would send.
async fn raw(client: &Client, request: &str) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let address = client.base().strip_prefix("http://").expect("a URL");
    let mut socket = tokio::net::TcpStream::connect(address).await.expect("a connection");
    socket.write_all(request.as_bytes()).await.expect("a request");
    let mut answer = Vec::new();
    let _ = socket.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn what_is_not_http_is_answered_by_the_protocol_and_hurts_nobody() {
    let node = Node::with(&bank()).await;
    for (request, status) in [
        ("nonsense\r\n\r\n".to_owned(), "400"),
        (
            format!(
                "GET /events HTTP/1.1\r\nhost: x\r\nx: {}\r\nconnection: close\r\n\r\n",
                "x".repeat(40 << 10)
            ),
            "431",
        ),
        ("GET /a\u{0}b HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".to_owned(), "400"),
        ("POST /commands/account/a/open HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n".to_owned(), "400"),
    ] {
        let answer = raw(&node.data, &request).await;
        let said = answer.split_whitespace().nth(1).unwrap_or_default();
        assert_eq!(said, status, "{answer}");
    }
    // One that hangs up in the middle of its body.
    raw_half(&node.data).await;
    still_serves(&node.app("bank")).await;
    assert_eq!(node.app("bank").get("/events").await.ok()["events"], json!([]));
}

async fn raw_half(client: &Client) {
    use tokio::io::AsyncWriteExt as _;
    let address = client.base().strip_prefix("http://").expect("a URL");
    let mut socket = tokio::net::TcpStream::connect(address).await.expect("a connection");
    let request =
        "POST /commands/account/a/open HTTP/1.1\r\nhost: x\r\ncontent-length: 15\r\n\r\n{\"owner\":";
    socket.write_all(request.as_bytes()).await.expect("a request");
}

#[tokio::test]
async fn a_manifest_with_five_mistakes_has_all_five_reported_at_once() {
    let node = Node::start_fresh().await;
    let mistakes = App::new(
        r#"[app]
name = "bank"
host = ["bank.localhost"]

[aggregate.account]
module = "missing.wasm"
commands = { open = {} }
events = { Opened = {} }
limits = { memory = "64MB" }

[model.balances]
key = "acount"
columns = { account = "text" }

[projection.balances]
module = "text.wasm"
models = ["balances"]
source = { aggregates = ["acount"] }
"#,
    );
    let problem = node.put(&mistakes.file("text.wasm", "not wasm")).await.problem(422, "manifest_invalid");
    let reported = codes(&problem);
    for mistake in
        ["app.host", "missing.wasm", "64MB", "model.balances.key", "text.wasm", "projection.balances.source"]
    {
        assert!(reported.iter().any(|text| text.contains(mistake)), "no {mistake} in {reported:#?}");
    }
    assert_eq!(reported.len(), 6, "{reported:#?}");
    for problem in problem["problems"].as_array().unwrap() {
        assert!(problem.to_string().contains("line"), "each has its line: {problem}");
    }
    node.control.get("/apps/bank").await.problem(404, "unknown_app");
}

/// The bank with another module as its aggregate's.
async fn with_module(node: &Node, module: impl Into<bytes::Bytes>) -> Reply {
    node.put(&bank().file("../target/wasm32-wasip2/release/account.wasm", module)).await
}

#[tokio::test]
async fn a_module_that_is_not_what_the_manifest_says_is_refused_at_deploy_by_name() {
    let node = Node::start_fresh().await;
    let refused = async |reply: Reply, texts: &[&str]| {
        let reported = codes(&reply.problem(422, "manifest_invalid"));
        assert_eq!(reported.len(), 1, "{reported:#?}");
        for text in texts {
            assert!(reported[0].contains(text), "no `{text}` in {}", reported[0]);
        }
    };
    refused(with_module(&node, "hello").await, &["account.wasm", "is not WebAssembly"]).await;
    refused(with_module(&node, "").await, &["account.wasm", "empty"]).await;
    let mut cut = guest("account").to_vec();
    cut.truncate(cut.len() / 2);
    refused(with_module(&node, cut).await, &["account.wasm"]).await;
    refused(with_module(&node, b"\0asm\x01\0\0\0".to_vec()).await, &["account.wasm"]).await;
    refused(with_module(&node, guest("balances")).await, &["ebbtide:functions/aggregates"]).await;
    refused(with_module(&node, guest("dialler")).await, &["wasi:sockets/"]).await;
    let swapped = bank().file("../target/wasm32-wasip2/release/balances.wasm", guest("account"));
    refused(node.put(&swapped).await, &["ebbtide:functions/projections"]).await;
    assert_eq!(node.control.get("/apps").await.ok()["apps"], json!([]));
    node.deploy(&bank()).await;
}

#[tokio::test]
async fn a_bundle_that_can_not_be_read_is_refused() {
    let node = Node::start_fresh().await;
    let put = |name: &str| node.control.request(http::Method::PUT, &format!("/apps/{name}"));
    put("bank").body("application/x-tar", "no tar").await.problem(400, "bad_bundle");
    put("bank").body("application/x-tar", "").await.problem(400, "bad_bundle");
    put("bank").body("application/zip", bank().tar()).await.problem(415, "unsupported_media_type");
    put("other").body("application/x-tar", bank().tar()).await.problem(422, "app_name_mismatch");
    put("no%20name").body("application/x-tar", bank().tar()).await.problem(404, "unknown_app");
    put("system")
        .body("application/x-tar", App::new("[app]\nname = \"system\"\n").tar())
        .await
        .problem(422, "manifest_invalid");
    let mut cut = bank().tar();
    cut.truncate(700);
    put("bank").body("application/x-tar", cut).await.problem(400, "bad_bundle");
    assert_eq!(node.control.get("/apps").await.ok()["apps"], json!([]));
}

#[tokio::test]
async fn an_answer_given_before_the_body_was_sent_reaches_the_caller_and_the_connection_lives_on() {
    use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
    let node = Node::builder().settings("[limits]\nbody = \"64KiB\"\n").start().await;
    node.deploy(&bank()).await;
    let address = node.data.base().strip_prefix("http://").expect("a URL");
    let mut socket = BufReader::new(tokio::net::TcpStream::connect(address).await.expect("a connection"));
    // More than sockets buffer, sent whole before anything is read: as simple clients do.
    let body = vec![b' '; 8 << 20];
    for (path, status) in [("/commands/account/a/open", "413"), ("/apps/nobody/events", "404")] {
        let head =
            format!("POST {path} HTTP/1.1\r\nhost: bank.localhost\r\ncontent-length: {}\r\n\r\n", body.len());
        socket.write_all(head.as_bytes()).await.expect("a head is sent");
        socket.write_all(&body).await.expect("the body is taken");
        let mut length = 0;
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            socket.read_line(&mut line).await.expect("an answer");
            if line.trim().is_empty() {
                break;
            }
            if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().expect("a length");
            }
            lines.push(line);
        }
        assert_eq!(lines.first().and_then(|line| line.split(' ').nth(1)), Some(status), "{lines:?}");
        socket.read_exact(&mut vec![0; length]).await.expect("the answer's body");
    }
    still_serves(&node.app("bank")).await;
}
