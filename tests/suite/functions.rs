//! HTTP functions: routes, what a guest is told, streams both ways, and what becomes of those who misbehave.

use crate::raw;
use ebb_tests::{App, Client, Node, Reply, eventually, examples, guest, within};
use http::Method;
use std::time::{Duration, Instant};

/// `tests/guests/http` and `http3` behind routes of every kind.
pub(crate) fn app() -> App {
    App::new(
        r#"[app]
name = "functions"

[function.hello]
module = "http.wasm"
trigger = { http = { route = "/hello/{name}", methods = ["GET"] } }

[function.do]
module = "http.wasm"
trigger = { http = { route = "/do/{what}", max-body = "64KiB", max-response = "1MiB" } }
limits = { cpu = "200ms", wall = "2s", memory = "16MiB" }
capabilities = { env = { GREETING = "hi" } }

[function.echo]
module = "http.wasm"
trigger = { http = { route = "/large/{what}", max-body = "64MiB", max-response = "64MiB" } }

[function.once]
module = "http.wasm"
trigger = { http = { route = "/once/count" } }
instances = { reuse = 1 }

[function.newer]
module = "http3.wasm"
trigger = { http = { route = "/new/{name}", max-response = "1MiB" } }
limits = { cpu = "200ms", wall = "2s" }

[function.write]
module = "http.wasm"
trigger = { http = { route = "/notes/{id}", methods = ["POST"] } }
allow = ["alice"]

[function.files]
module = "http.wasm"
trigger = { http = { route = "/files/{path...}", methods = ["GET", "HEAD", "OPTIONS"] } }
"#,
    )
    .file("http.wasm", guest("http"))
    .file("http3.wasm", guest("http3"))
}

async fn node() -> Node {
    Node::with(&app()).await
}

async fn text(app: &Client, path: &str) -> String {
    let reply = app.get(path).await;
    assert_eq!(reply.status, 200, "{path}: {reply:?}");
    body_text(&reply)
}

fn body_text(reply: &Reply) -> String {
    String::from_utf8_lossy(&reply.body).into_owned()
}

/// Everyone else's work goes on.
async fn all_is_well(node: &mut Node) {
    assert!(node.is_running());
    assert_eq!(text(&node.app("functions"), "/hello/neighbour").await, "hello, neighbour");
}

#[tokio::test]
async fn a_function_answers_its_route_on_every_way_to_the_app() {
    let node = node().await;
    assert_eq!(text(&node.data, "/hello/world").await, "hello, world");
    assert_eq!(text(&node.app("functions"), "/hello/world").await, "hello, world");
    assert_eq!(text(&node.data, "/new/world").await, "hello, world", "0.3 as 0.2");
    node.data.get("/hello").await.problem(404, "not_found");
    node.data.get("/hello/a/b").await.problem(404, "not_found");
    let openapi = node.data.get("/openapi.json").await.ok();
    assert_eq!(openapi["paths"]["/hello/{name}"]["get"]["operationId"], "function.hello.get");
    assert_eq!(openapi["paths"]["/files/{path}"]["head"]["operationId"], "function.files.head");
}

#[tokio::test]
async fn a_method_that_no_function_takes_is_answered_with_those_that_are_taken() {
    let node = node().await;
    let reply = node.data.request(Method::POST, "/hello/world").await;
    assert_eq!(reply.header("allow"), Some("GET, HEAD, OPTIONS"));
    reply.problem(405, "method_not_allowed");
    let options = node.data.request(Method::OPTIONS, "/hello/world").await;
    assert_eq!((options.status, options.header("allow")), (204, Some("GET, HEAD, OPTIONS")));
    let own = node.data.request(Method::OPTIONS, "/files/seen").await;
    assert!(
        body_text(&own).starts_with("OPTIONS /files/seen at "),
        "a function that lists OPTIONS answers it: {own:?}"
    );
}

#[tokio::test]
async fn head_is_get_without_its_body_where_only_get_is_listed() {
    let node = node().await;
    let reply = node.data.request(Method::HEAD, "/hello/world").await;
    assert_eq!((reply.status, body_text(&reply).as_str()), (200, ""));
    assert_eq!((reply.header("content-type"), reply.header("content-length")), (Some("text/plain"), None));
    assert_eq!(node.data.request(Method::HEAD, "/files/teapot").await.status, 418);
}

#[tokio::test]
async fn a_guest_is_told_who_calls_and_nobody_else_can_tell_it() {
    let node = node().await;
    let request = node.data.get("/apps/functions/files/a%2Fb/seen?x=%20y");
    let reply = request
        .header("ebb-actor", "root")
        .header("ebb-param-path", "forged")
        .header("ebb-param-other", "forged")
        .header("x-forwarded-prefix", "/forged")
        .header("connection", "x-secret-hop")
        .header("x-secret-hop", "1")
        .header("te", "trailers")
        .header("x-correlation-id", "c-7")
        .header("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
        .await;
    let seen = body_text(&reply);
    assert!(seen.starts_with("GET /files/a%2Fb/seen?x=%20y at 127.0.0.1:"), "{seen}");
    for line in [
        "ebb-actor: anonymous",
        "ebb-param-path: a%2Fb/seen",
        "x-forwarded-prefix: /apps/functions",
        "ebb-correlation-id: c-7",
        "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    ] {
        assert!(seen.lines().any(|seen| seen == line), "no `{line}` in\n{seen}");
    }
    for hidden in ["root", "forged", "x-secret-hop", "connection", "\nte: ", "\nhost: "] {
        assert!(!seen.contains(hidden), "`{hidden}` in\n{seen}");
    }
}

#[tokio::test]
async fn who_may_call_a_function_is_its_manifests_to_say_and_its_token_stays_with_the_node() {
    let settings = "[[auth.tokens]]\nactor = \"alice\"\ntoken = \"alice-alice-alice-alice-alice-alice\"\n\
                    [[auth.tokens]]\nactor = \"bob\"\ntoken = \"bob-bob-bob-bob-bob-bob-bob-bob-bob\"\n";
    let node = Node::builder().settings(settings).start().await;
    node.deploy(&app()).await;
    let post = |token: &'static str| node.data.request(Method::POST, "/notes/seen").token(token);
    let seen = body_text(&post("alice-alice-alice-alice-alice-alice").await);
    assert!(seen.contains("ebb-actor: alice\n") && !seen.contains("authorization"), "{seen}");
    post("bob-bob-bob-bob-bob-bob-bob-bob-bob").await.problem(403, "forbidden");
    node.data.get("/hello/world").await.problem(401, "unauthenticated");
}

#[tokio::test]
async fn the_environment_of_a_guest_is_what_its_manifest_says_and_nothing_of_the_nodes() {
    let node = Node::builder().env("EBB_TEST_SECRET", "s3cret").start().await;
    node.deploy(&app()).await;
    assert_eq!(text(&node.data, "/do/env").await, "GREETING=hi\n");
}

#[tokio::test]
async fn an_instance_is_used_again_unless_each_call_wants_its_own() {
    let node = node().await;
    assert_eq!(text(&node.data, "/do/count").await, "1");
    assert_eq!(text(&node.data, "/do/count").await, "2");
    assert_eq!(text(&node.data, "/once/count").await, "1");
    assert_eq!(text(&node.data, "/once/count").await, "1");
}

#[tokio::test]
async fn a_body_streams_through_while_it_is_still_being_sent() {
    let node = node().await;
    for path in ["/do/echo", "/new/echo"] {
        let mut call = raw::Call::open(&node).await;
        call.send(&format!(
            "POST {path} HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\nte: trailers\r\n\r\n"
        ))
        .await;
        call.send("4\r\nping\r\n").await;
        call.until("ping").await;
        call.send("4\r\npong\r\n").await;
        call.until("pong").await;
        call.send("0\r\n\r\n").await;
        call.until("\r\n0\r\n\r\n").await;
    }
}

#[tokio::test]
async fn server_sent_events_arrive_one_by_one() {
    let node = node().await;
    for path in ["/do/ticks?n=3", "/new/ticks?n=3"] {
        let mut call = raw::Call::open(&node).await;
        call.send(&format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n")).await;
        for tick in 0..3 {
            call.until(&format!("data: {tick}\n\n")).await;
            assert!(
                !call.seen().contains(&format!("data: {}", tick + 1)),
                "nothing is held back to be sent at once"
            );
        }
        call.until("\r\n0\r\n\r\n").await;
    }
}

#[tokio::test]
async fn a_large_body_comes_back_whole() {
    let node = node().await;
    let body: Vec<u8> = (0..8_u32 << 20).map(|n| (n ^ (n >> 9)) as u8).collect();
    let reply =
        node.data.request(Method::POST, "/large/echo").body("application/octet-stream", body.clone()).await;
    assert!(reply.status == 200 && reply.body == body, "{}", reply.status);
}

#[tokio::test]
async fn a_request_body_over_its_bound_is_refused_before_or_while_it_is_sent() {
    let mut node = node().await;
    let reply =
        node.data.request(Method::POST, "/do/echo").body("text/plain", vec![b'x'; (64 << 10) + 1]).await;
    assert_eq!(reply.problem(413, "body_too_large")["limit"], 64 << 10);
    // Unannounced, and the guest has not answered yet.
    let mut call = raw::Call::open(&node).await;
    call.send("POST /do/echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n").await;
    for _ in 0..17 {
        call.send(&format!("1000\r\n{}\r\n", "y".repeat(4096))).await;
    }
    call.closed().await;
    assert!(!call.seen().ends_with("0\r\n\r\n"), "half an echo does not end as a whole one does");
    all_is_well(&mut node).await;
}

#[tokio::test]
async fn a_response_over_its_bound_is_broken_off() {
    let mut node = node().await;
    for path in ["/do/big", "/new/big"] {
        assert_eq!(text(&node.data, &format!("{path}?n=1048576")).await.len(), 1 << 20);
        let mut call = raw::Call::open(&node).await;
        call.send(&format!("GET {path}?n=1048577 HTTP/1.1\r\nhost: a\r\n\r\n")).await;
        call.closed().await;
        assert!(call.seen().starts_with("HTTP/1.1 200") && !call.seen().ends_with("0\r\n\r\n"));
    }
    all_is_well(&mut node).await;
}

#[tokio::test]
async fn trailers_reach_who_asks_for_them() {
    let node = node().await;
    for path in ["/do/trailers", "/new/trailers"] {
        let mut call = raw::Call::open(&node).await;
        call.send(&format!("GET {path} HTTP/1.1\r\nhost: a\r\nte: trailers\r\nconnection: te\r\n\r\n")).await;
        call.until("see below").await;
        call.until("\r\n0\r\n").await;
    }
}

#[tokio::test]
async fn what_goes_wrong_before_the_headers_is_a_problem() {
    let mut node = node().await;
    for (path, status, code) in [
        ("/do/trap", 500, "module_trapped"),
        ("/do/silent", 500, "module_trapped"),
        ("/do/forgetful", 500, "module_trapped"),
        ("/do/spin", 504, "module_out_of_cpu"),
        ("/do/sleep?ms=60000", 504, "out_of_time"),
        ("/do/allocate", 500, "module_out_of_memory"),
        ("/do/leak?n=20000", 500, "module_trapped"),
        ("/new/trap", 500, "module_trapped"),
        ("/new/error", 500, "module_trapped"),
        ("/new/never", 504, "out_of_time"),
    ] {
        let started = Instant::now();
        let problem = node.data.get(path).await.problem(status, code);
        assert!(problem["request_id"].is_string(), "{path}: the log has the cause under it: {problem}");
        assert!(
            !problem["detail"].to_string().contains("asked to"),
            "{path}: what it said is its author's: {problem}"
        );
        assert!(started.elapsed() < Duration::from_secs(10), "{path} took {:?}", started.elapsed());
        all_is_well(&mut node).await;
    }
}

#[tokio::test]
async fn what_goes_wrong_after_the_headers_never_looks_like_the_end() {
    let mut node = node().await;
    for path in [
        "/do/trap-later",
        "/do/spin-later",
        "/do/never",
        "/do/unfinished",
        "/do/forget-body",
        "/do/promise?n=20",
        "/new/trap-later",
        "/new/spin-later",
    ] {
        let started = Instant::now();
        let mut call = raw::Call::open(&node).await;
        call.send(&format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n")).await;
        call.closed().await;
        let seen = call.seen();
        assert!(seen.starts_with("HTTP/1.1 200"), "{path}: what came before reaches the caller: {seen}");
        assert!(!seen.ends_with("0\r\n\r\n"), "{path}: {seen}");
        assert!(started.elapsed() < Duration::from_secs(10), "{path} took {:?}", started.elapsed());
    }
    all_is_well(&mut node).await;
}

#[tokio::test]
async fn more_than_was_promised_is_not_sent() {
    let mut node = node().await;
    let mut call = raw::Call::open(&node).await;
    call.send("GET /do/promise?n=5 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    call.closed().await;
    let body = call.seen().split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
    assert!(body.len() <= 5, "{body}");
    all_is_well(&mut node).await;
}

#[tokio::test]
async fn a_guest_does_not_frame_messages() {
    let node = node().await;
    assert_eq!(text(&node.data, "/do/forbidden").await, "refused");
    // The client of these tests reads a hundred, the node's own among them.
    let many = node.data.get("/do/many-headers?n=80").await;
    assert_eq!((many.status, many.header("x-79")), (200, Some("value")));
    node.data.get("/do/many-headers?n=50000").await.problem(500, "module_trapped");
}

#[tokio::test]
async fn who_reads_nothing_of_what_is_sent_is_hung_up_on() {
    let node = Node::builder().settings("[limits]\nheader-timeout = \"1s\"\n").start().await;
    node.deploy(&app()).await;
    let mut call = raw::Call::open(&node).await;
    call.send(&format!("GET /large/big?n={} HTTP/1.1\r\nhost: a\r\n\r\n", 60 << 20)).await;
    let open = async || {
        let page = node.control.get("/metrics").await;
        let page = String::from_utf8_lossy(&page.body).into_owned();
        page.lines().any(|line| line == "http_server_active_connections 1").then_some(())
    };
    eventually("it is open", open).await;
    // Well before the call's own time is up.
    within(Duration::from_secs(10), "it is closed", async || open().await.is_none().then_some(())).await;
    assert!(node.data.get("/hello/world").await.status == 200);
}

#[tokio::test]
async fn who_hangs_up_ends_the_call_and_frees_its_place() {
    let node = Node::with(&app().edit(
        "limits = { cpu = \"200ms\", wall = \"2s\", memory = \"16MiB\" }",
        "limits = { wall = \"10min\", concurrency = 1 }",
    ))
    .await;
    for path in ["/do/never", "/do/sleep?ms=600000"] {
        let mut call = raw::Call::open(&node).await;
        call.send(&format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n")).await;
        if path.ends_with("never") {
            call.until("so far so good").await;
        } else {
            eventually("the call to run", async || (busy(&node).await == 1).then_some(())).await;
        }
        drop(call);
        // There is one place only.
        assert_eq!(text(&node.data, "/do/env").await, "GREETING=hi\n");
    }
}

/// Instances of the function `do`.
async fn busy(node: &Node) -> u64 {
    let functions = node.control.get("/functions").await.ok();
    let list = functions["functions"].as_array().into_iter().flatten();
    list.into_iter()
        .find(|function| function["function"] == "function.do")
        .map_or(0, |function| function["instances"].as_u64().unwrap_or(0))
}

#[tokio::test]
async fn slow_and_broken_requests_cost_their_own_call_only() {
    let mut node = node().await;
    // A body that never comes: the call's time is up.
    let mut slow = raw::Call::open(&node).await;
    slow.send("POST /do/echo HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\nhalf").await;
    // A head without end.
    let mut bomb = raw::Call::open(&node).await;
    let _ = bomb
        .try_send(&format!("GET /do/seen HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "z".repeat(100 << 10)))
        .await;
    bomb.closed().await;
    assert!(!bomb.seen().starts_with("HTTP/1.1 200"), "{}", bomb.seen());
    // A body that ends before its time.
    let mut cut = raw::Call::open(&node).await;
    cut.send(
        "POST /do/echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n4\r\nping\r\nnonsense\r\n",
    )
    .await;
    cut.closed().await;
    assert!(!cut.seen().ends_with("0\r\n\r\n"), "{}", cut.seen());
    all_is_well(&mut node).await;
    slow.closed().await;
    assert!(!slow.seen().ends_with("0\r\n\r\n"), "{}", slow.seen());
}

#[tokio::test]
async fn a_module_that_imports_what_it_is_not_granted_is_not_deployed() {
    let fetching = |capabilities: &str| {
        App::new(&format!(
            "[app]\nname = \"fetching\"\n\n[function.fetch]\nmodule = \"fetcher.wasm\"\n\
             trigger = {{ http = {{ route = \"/fetch\" }} }}\n{capabilities}\n"
        ))
        .file("fetcher.wasm", guest("fetcher"))
    };
    let node = Node::builder().start().await;
    let refused = node.put(&fetching("")).await.problem(422, "manifest_invalid");
    let said = refused["problems"][0].to_string();
    assert!(said.contains("wasi:http/outgoing-handler@0.2") && said.contains("outbound-http"), "{said}");
    node.deploy(&fetching("capabilities = { outbound-http = [] }")).await;
    // What it was granted counts each time, though its module is compiled already.
    node.put(&fetching("")).await.problem(422, "manifest_invalid");
    let fetch = async |url: &str| body_text(&node.data.get("/fetch").header("x-url", url).await);
    assert!(
        fetch("http://127.0.0.1:1/").await.contains("HttpRequestDenied"),
        "a list of nothing grants nothing"
    );
}

#[tokio::test]
async fn a_function_reaches_what_it_is_granted_and_no_private_address_by_another_name() {
    let node = node().await;
    let address = node.data.base().trim_start_matches("http://").to_owned();
    let port = address.rsplit(':').next().unwrap_or_default().to_owned();
    let app = |grants: &str| {
        App::new(&format!(
            "[app]\nname = \"fetching\"\n\n[function.fetch]\nmodule = \"fetcher.wasm\"\n\
             trigger = {{ http = {{ route = \"/fetch\" }} }}\ncapabilities = {{ outbound-http = [{grants}] }}\n"
        ))
        .file("fetcher.wasm", guest("fetcher"))
    };
    let fetch = async |host: &str| {
        let url = format!("http://{host}:{port}/apps/functions/hello/neighbour");
        body_text(&node.app("fetching").get("/fetch").header("x-url", url).await)
    };
    node.deploy(&app(&format!("\"127.0.0.1:{port}\""))).await;
    assert_eq!(fetch("127.0.0.1").await, "200\nhello, neighbour");
    assert!(fetch("localhost").await.contains("HttpRequestDenied"), "another name");
    assert!(fetch("127.0.0.2").await.contains("HttpRequestDenied"), "another address");
    node.deploy(&app(&format!("\"localhost:{port}\", \"*:{port}\""))).await;
    for host in ["localhost", "127.0.0.1", "127.1", "2130706433", "[::ffff:127.0.0.1]", "0.0.0.0"] {
        let said = fetch(host).await;
        assert!(said.contains("DestinationIpProhibited") || said.contains("DnsError"), "{host}: {said}");
    }
    node.deploy(&app(&format!("\"localhost:{port}\", \"private\""))).await;
    assert_eq!(fetch("localhost").await, "200\nhello, neighbour");
}

#[tokio::test]
async fn files_are_in_tmp_within_what_was_granted_and_gone_with_the_instance() {
    let app = App::new(
        r#"[app]
name = "files"

[function.kept]
module = "http.wasm"
trigger = { http = { route = "/kept/{what}" } }
capabilities = { tmp = "1MiB" }

[function.once]
module = "http.wasm"
trigger = { http = { route = "/once/{what}" } }
instances = { reuse = 1 }
capabilities = { tmp = "1MiB" }

[function.none]
module = "http.wasm"
trigger = { http = { route = "/none/{what}" } }
"#,
    )
    .file("http.wasm", guest("http"));
    let node = Node::with(&app).await;
    let expected = |written: &str, call: u32| {
        format!(r#"hello, files; hello; ["b", "text"]; outside: NotFound; {written}; 1 left, call {call}"#)
    };
    let outside = async |path: &str| text(&node.data, path).await.replace("PermissionDenied", "NotFound");
    assert_eq!(outside("/kept/files?n=1000000").await, expected("1000000", 1));
    assert_eq!(outside("/kept/files?n=2000000").await, expected("full", 2));
    assert_eq!(outside("/kept/files?n=1000000").await, expected("1000000", 3), "what was removed makes room");
    for _ in 0..2 {
        assert_eq!(outside("/once/files?n=1000").await, expected("1000", 1));
    }
    let none = text(&node.data, "/none/files?n=1").await;
    assert!(
        none.contains("failed to find a pre-opened file descriptor") || none.contains("No such"),
        "{none}"
    );
}

#[tokio::test]
async fn the_example_greets_and_streams() {
    let node = Node::with(&App::in_folder(&examples("hello-http"))).await;
    assert_eq!(text(&node.data, "/hello/J%C3%BCrgen").await, "Hello, Jürgen!\n");
    let mut clock = raw::Call::open(&node).await;
    clock.send("GET /clock HTTP/1.1\r\nhost: a\r\n\r\n").await;
    clock.until("event: tick").await;
}
