//! Traces: contexts go through, and invocations are spans at a collector, which may be gone.

use crate::support::open_account;
use ebb_tests::{App, Node, bank, eventually, guest};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;

const CALLER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// A collector: takes OTLP over HTTP, and keeps the spans.
struct Collector {
    endpoint: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

struct Request {
    head: String,
    spans: Vec<Span>,
    service: String,
}

#[derive(Clone, Debug, Default)]
struct Span {
    trace: String,
    id: String,
    parent: String,
    name: String,
    kind: u64,
    began: u64,
    ended: u64,
    attributes: BTreeMap<String, String>,
    links: Vec<String>,
    status: u64,
}

impl Collector {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        let requests: Arc<Mutex<Vec<Request>>> = Arc::default();
        let kept = requests.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let kept = kept.clone();
                tokio::spawn(async move {
                    let mut stream = BufReader::new(stream);
                    while let Some((head, body)) = read(&mut stream).await {
                        kept.lock().unwrap().push(request(head, &body));
                        let answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n";
                        stream.get_mut().write_all(answer).await.expect("an answer");
                    }
                });
            }
        });
        Self { endpoint, requests }
    }

    fn spans(&self) -> Vec<Span> {
        self.requests.lock().unwrap().iter().flat_map(|request| request.spans.clone()).collect()
    }

    async fn span(&self, what: &str, wanted: impl Fn(&Span) -> bool) -> Span {
        eventually(what, async || self.spans().into_iter().find(|span| wanted(span))).await
    }
}

async fn read(stream: &mut BufReader<tokio::net::TcpStream>) -> Option<(String, Vec<u8>)> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).await.ok()? == 0 {
            return None;
        }
    }
    let head = head.to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
    let mut body = vec![0; length.trim().parse().expect("a number")];
    stream.read_exact(&mut body).await.ok()?;
    Some((head, body))
}

/// Fields of a protobuf message, by number: numbers, or bytes.
fn fields(mut bytes: &[u8]) -> Vec<(u64, u64, &[u8])> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let mut number = 0;
        for shift in (0..).step_by(7) {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        number
    }
    fn take<'a>(bytes: &mut &'a [u8], count: usize) -> &'a [u8] {
        let (taken, rest) = bytes.split_at(count);
        *bytes = rest;
        taken
    }
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes);
        let (number, content): (u64, &[u8]) = match tag & 7 {
            0 => (varint(&mut bytes), &[]),
            1 => (u64::from_le_bytes(take(&mut bytes, 8).try_into().unwrap()), &[]),
            2 => {
                let count = varint(&mut bytes) as usize;
                (0, take(&mut bytes, count))
            }
            5 => (u64::from(u32::from_le_bytes(take(&mut bytes, 4).try_into().unwrap())), &[]),
            wire => panic!("wire type {wire}"),
        };
        fields.push((tag >> 3, number, content));
    }
    fields
}

fn children(bytes: &[u8], field: u64) -> impl Iterator<Item = &[u8]> {
    fields(bytes).into_iter().filter(move |(number, ..)| *number == field).map(|(_, _, content)| content)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

fn attribute(bytes: &[u8]) -> (String, String) {
    let key = text(children(bytes, 1).next().expect("a key"));
    let value = fields(children(bytes, 2).next().expect("a value"));
    let (kind, number, content) = value[0];
    let value = match kind {
        1 => text(content),
        2 => (number == 1).to_string(),
        3 => number.to_string(),
        4 => f64::from_bits(number).to_string(),
        kind => panic!("any_value {kind}"),
    };
    (key, value)
}

/// `ExportTraceServiceRequest`, as `trace.proto` of OpenTelemetry has it.
fn request(head: String, body: &[u8]) -> Request {
    let mut spans = Vec::new();
    let mut service = String::new();
    for resource_spans in children(body, 1) {
        for resource in children(resource_spans, 1) {
            let attributes: BTreeMap<_, _> = children(resource, 1).map(attribute).collect();
            service.clone_from(&attributes["service.name"]);
        }
        for scope_spans in children(resource_spans, 2) {
            spans.extend(children(scope_spans, 2).map(span));
        }
    }
    Request { head, spans, service }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn span(bytes: &[u8]) -> Span {
    let mut span = Span::default();
    for (field, number, content) in fields(bytes) {
        match field {
            1 => span.trace = hex(content),
            2 => span.id = hex(content),
            4 => span.parent = hex(content),
            5 => span.name = text(content),
            6 => span.kind = number,
            7 => span.began = number,
            8 => span.ended = number,
            9 => span.attributes.extend([attribute(content)]),
            13 => span.links.push(hex(children(content, 1).next().expect("a trace"))),
            15 => span.status = fields(content).iter().find(|(field, ..)| *field == 3).expect("a code").1,
            3 | 16 => {}
            field => panic!("field {field}"),
        }
    }
    span
}

/// `tests/guests/http`: tells what it was told, or sends a request to the address in `TO` and tells what that answered.
fn functions(to: &str) -> App {
    let manifest = format!(
        r#"[app]
name = "functions"

[function.do]
module = "http.wasm"
trigger = {{ http = {{ route = "/do/{{what}}" }} }}
capabilities = {{ outbound-http = ["{to}"] }}
"#
    );
    App::new(&manifest).file("http.wasm", guest("http"))
}

fn line<'a>(seen: &'a str, header: &str) -> Option<&'a str> {
    seen.lines().find_map(|line| line.strip_prefix(header)?.strip_prefix(": "))
}

#[tokio::test]
async fn every_invocation_is_a_span_below_its_caller_or_linked_to_its_events() {
    let collector = Collector::start().await;
    let node = Node::builder()
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.endpoint)
        .env("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20secret,x-team=a")
        .env("OTEL_SERVICE_NAME", "tests")
        .start()
        .await;
    node.deploy(&bank()).await;
    let bank = node.app("bank");
    let opened = bank
        .command("account", "ada", "open", &json!({ "owner": "Ada" }))
        .header("traceparent", CALLER)
        .await;
    let command = collector.span("the command", |span| span.name == "aggregate.account").await;
    assert_eq!((command.trace.as_str(), command.parent.as_str(), command.kind), (TRACE, PARENT, 2));
    assert!(command.ended > command.began, "{command:?}");
    for (name, value) in [
        ("faas.name", "aggregate.account"),
        ("faas.trigger", "http"),
        ("faas.coldstart", "true"),
        ("ebbtide.app", "bank"),
        ("ebbtide.outcome", "ok"),
    ] {
        assert_eq!(command.attributes.get(name).map(String::as_str), Some(value), "{name} in {command:?}");
    }
    assert_eq!(opened.position(), 1);
    let events = bank.all_events().await;
    assert_eq!(
        events[0]["traceparent"],
        format!("00-{TRACE}-{}-01", command.id),
        "the event is the command's"
    );

    let batch = collector.span("its projection", |span| span.name == "projection.balances").await;
    assert_eq!(
        (batch.links.as_slice(), batch.kind, batch.parent.as_str()),
        ([TRACE.to_owned()].as_slice(), 5, "")
    );
    assert_ne!(batch.trace, TRACE);

    // Nobody's: the first of a trace of its own.
    open_account(&bank, "bob", 5).await;
    let own = collector.span("its own", |span| span.name == "aggregate.account" && span.trace != TRACE).await;
    assert_eq!((own.parent.as_str(), own.trace.len(), own.id.len()), ("", 32, 16));
    // Nobody's wish to record it.
    let unwanted = format!("00-{}-{PARENT}-00", "a".repeat(32));
    bank.command("account", "eve", "open", &json!({ "owner": "Eve" }))
        .header("traceparent", unwanted)
        .await
        .ok();

    let failed = bank.command("account", "bob", "withdraw", &json!({ "amount": 9000 })).await;
    failed.refused("insufficient_funds");
    let refused = collector.span("the refusal", |span| span.attributes["ebbtide.outcome"] == "refused").await;
    assert_eq!(refused.status, 0, "a refusal is no error");
    assert!(collector.spans().iter().all(|span| !span.trace.starts_with("aaaa")));

    let requests = collector.requests.lock().unwrap();
    let Request { head, service, .. } = &requests[0];
    assert!(head.starts_with("post /v1/traces http/1.1\r\n"), "{head}");
    for header in ["content-type: application/x-protobuf", "authorization: bearer secret", "x-team: a"] {
        assert!(head.contains(header), "no {header} in {head}");
    }
    assert_eq!(service, "tests");
}

#[tokio::test]
async fn a_context_goes_through_a_function_to_whom_it_calls() {
    for observed in [false, true] {
        let collector = Collector::start().await;
        let mut builder = Node::builder();
        if observed {
            builder = builder.env("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.endpoint);
        }
        let node = builder.start().await;
        node.deploy(&functions("127.0.0.1:1")).await;
        let reply = node.data.get("/do/seen").header("traceparent", CALLER).header("tracestate", "a=b").await;
        let seen = text(&reply.body);
        assert_eq!(line(&seen, "tracestate"), Some("a=b"));
        let told = line(&seen, "traceparent").expect("a context");
        if !observed {
            assert_eq!(told, CALLER);
            continue;
        }
        let span = collector.span("the request", |span| span.name == "function.do").await;
        assert_eq!(told, format!("00-{TRACE}-{}-01", span.id));
        assert_eq!((span.trace.as_str(), span.parent.as_str()), (TRACE, PARENT));
    }
}

#[tokio::test]
async fn a_collector_that_is_gone_costs_spans_and_nothing_else() {
    // A port that nobody listens on.
    let gone = TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("an address");
    let mut node =
        Node::builder().env("OTEL_EXPORTER_OTLP_ENDPOINT", &format!("http://{gone}")).start().await;
    node.deploy(&bank()).await;
    open_account(&node.app("bank"), "ada", 5).await;
    eventually("spans that were dropped", async || {
        let page = text(&node.control.get("/metrics").await.body);
        let dropped = page.lines().find_map(|line| line.strip_prefix("ebbtide_trace_spans_dropped_total "));
        (dropped?.parse::<u64>().ok()? > 0).then_some(())
    })
    .await;
    assert_eq!(node.stop().await, Some(0));
}

#[tokio::test]
async fn a_line_for_each_invocation_is_there_for_who_asks() {
    for (level, asked) in [("info", false), ("info,report=debug", true)] {
        let node = Node::builder().env("EBB_LOG", level).start().await;
        node.deploy(&bank()).await;
        let ada = json!({ "owner": "Ada" });
        node.app("bank").command("account", "ada", "open", &ada).header("traceparent", CALLER).await.ok();
        let lines = node.control.get("/logs?app=bank").await.ok();
        let lines = lines["lines"].as_array().expect("lines");
        let report = lines.iter().find(|line| line["fields"]["function"] == "aggregate.account");
        assert_eq!(report.is_some(), asked, "{lines:?}");
        let Some(report) = report else { continue };
        assert_eq!((&report["message"], &report["fields"]["start"]), (&json!("REPORT"), &json!("cold")));
        assert_eq!(
            (&report["fields"]["outcome"], &report["fields"]["trace_id"]),
            (&json!("ok"), &json!(TRACE))
        );
        assert!(report["fields"]["billed_ms"].as_u64() >= Some(1), "{report}");
    }
}
