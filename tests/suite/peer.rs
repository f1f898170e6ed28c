//! The same components under `wasmtime serve` and here: the same requests are to have the same answers. Run by
//! `scripts/peer`, which knows where a wasmtime is.

use crate::raw;
use ebb_tests::{App, Node, guest};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};

/// The components: of `wasi:http` 0.2, of 0.3, and one that sends requests.
const GUESTS: [&str; 3] = ["http", "http3", "fetcher"];

/// Headers that say when or where, or that only one side knows of.
const NOT_COMPARED: [&str; 3] = ["date", "connection", "keep-alive"];

/// A request, and what is known to differ.
struct Case {
    guest: &'static str,
    name: &'static str,
    /// The parts that are sent, `HOST` standing for who else listens, each once this has come.
    request: Vec<(String, &'static str)>,
    /// The caller has no more to say, though it promised more.
    hangs_up: bool,
    /// Parts of the answer that differ, and why that is right.
    differs: &'static [(&'static str, &'static str)],
}

fn case(guest: &'static str, name: &'static str, request: impl Into<String>) -> Case {
    Case { guest, name, request: vec![(request.into(), "")], hangs_up: false, differs: &[] }
}

impl Case {
    fn then(self, part: impl Into<String>) -> Self {
        self.once("", part)
    }

    fn once(mut self, seen: &'static str, part: impl Into<String>) -> Self {
        self.request.push((part.into(), seen));
        self
    }

    fn hangs_up(self) -> Self {
        Self { hangs_up: true, ..self }
    }

    fn differs(self, differs: &'static [(&'static str, &'static str)]) -> Self {
        Self { differs, ..self }
    }
}

/// What stands before the headers are given is told as a problem document.
const PROBLEM: &[(&str, &str)] = &[
    ("headers", "what goes wrong before the headers is a problem document, as everywhere in Ebbtide"),
    ("body", "what goes wrong before the headers is a problem document, as everywhere in Ebbtide"),
];

/// The answer is over in the middle, and the peer does not say so, or says nothing at all.
const BROKEN_OFF: &[(&str, &str)] = &[
    ("status", "what was sent before the failure reaches the caller"),
    ("headers", "what was sent before the failure reaches the caller"),
    ("body", "what was sent before the failure reaches the caller"),
    ("end", "a part of a body never looks like the whole"),
];

fn get(path: &str) -> String {
    format!("GET /x/{path} HTTP/1.1\r\nhost: peer.example\r\nconnection: close\r\n\r\n")
}

fn post(path: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "POST /x/{path} HTTP/1.1\r\nhost: peer.example\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}

fn chunked(path: &str, more: &str) -> String {
    format!(
        "POST /x/{path} HTTP/1.1\r\nhost: peer.example\r\nconnection: close\r\ntransfer-encoding: chunked\r\n{more}\r\n"
    )
}

/// The guest is to send a request.
fn fetch(url: &str) -> String {
    get("fetch").replacen("\r\n\r\n", &format!("\r\nx-url: {url}\r\n\r\n"), 1)
}

/// So many headers more, and the end of them.
fn many(headers: usize) -> String {
    (0..headers).fold("\r\n".to_owned(), |all, n| format!("{all}x-{n}: a\r\n")) + "\r\n"
}

/// A header of so many bytes, and the end of them.
fn long(bytes: usize) -> String {
    format!("\r\nx-long: {}\r\n\r\n", "a".repeat(bytes))
}

fn chunk(text: &str) -> String {
    format!("{:x}\r\n{text}\r\n", text.len())
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for guest in ["http", "http3"] {
        let large = "x".repeat(4 << 20);
        let trailers = "te: trailers\r\ntrailer: x-end\r\n";
        cases.extend([
            case(guest, "a greeting", get("hello")),
            case(guest, "HEAD", get("hello").replacen("GET", "HEAD", 1)),
            case(guest, "an echo of nothing", post("echo", "")),
            case(guest, "an echo", post("echo", "hello")),
            case(guest, "an echo of 4 MiB", post("echo", &large)),
            case(guest, "an echo in chunks", chunked("echo", ""))
                .then(chunk("one"))
                .then(chunk("two"))
                .then("0\r\n\r\n"),
            case(guest, "an echo of trailers", chunked("echo", trailers))
                .then(chunk("one"))
                .then("0\r\nx-end: here\r\n\r\n"),
            case(
                guest,
                "trailers for who takes them",
                get("trailers").replacen("\r\n\r\n", "\r\nte: trailers\r\n\r\n", 1),
            ),
            case(guest, "trailers for who does not", get("trailers")),
            case(guest, "4 MiB", get("big?n=4194304")),
            case(guest, "HEAD of 4 MiB", get("big?n=4194304").replacen("GET", "HEAD", 1)),
            case(guest, "server-sent events", get("ticks?n=3")),
            case(guest, "a trap before the headers", get("trap")).differs(PROBLEM),
            case(guest, "a trap in the body", get("trap-later")).differs(BROKEN_OFF),
            case(guest, "an echo that is read while it is sent", chunked("echo", ""))
                .then(chunk("one"))
                .once("one", chunk("two"))
                .once("two", "0\r\n\r\n"),
            case(
                guest,
                "a caller who hangs up in the middle",
                post("echo", "").replace(": 0", ": 10") + "half",
            )
            .hangs_up(),
            case(
                guest,
                "a caller who asks before it sends",
                post("echo", "").replace(": 0", ": 5\r\nexpect: 100-continue"),
            )
            .once("HTTP/1.1 ", "hello"),
            case(guest, "a request with 90 headers", get("hello").replace("\r\n\r\n", &many(90))),
            case(
                guest,
                "a request with a header of 20 KiB",
                get("hello").replace("\r\n\r\n", &long(20 << 10)),
            ),
            case(guest, "an unknown method", get("hello").replacen("GET", "PROPFIND", 1)),
            case(guest, "HTTP/1.0", get("hello").replacen("HTTP/1.1", "HTTP/1.0", 1)),
        ]);
    }
    cases.extend([
        case("http", "a status of its own", get("teapot")),
        case("http", "200 headers", get("many-headers?n=200")),
        case("http", "what comes after the response", get("after")),
        case("http", "less than was promised", get("promise?n=20")).differs(BROKEN_OFF),
        case("http", "more than was promised", get("promise?n=5")),
        case("http", "a body that is not finished", get("unfinished")).differs(BROKEN_OFF),
        case("http", "no response", get("silent")).differs(PROBLEM),
        case("http", "headers of the connection", get("forbidden")),
        case("http", "waiting", get("sleep?n=30")),
        case(
            "http",
            "what a guest is told",
            "GET /x/seen?a=%2F&b HTTP/1.1\r\nhost: peer.example\r\nx-twice: one\r\nx-Twice: two\r\nconnection: close, x-hop\r\n\
             x-hop: 1\r\nupgrade: h2c\r\naccept: */*\r\n\r\n",
        )
        .differs(&[("body", "the guest is told who calls and by which route, and nothing of the connection")]),
        case("http3", "an error instead of a response", get("error")).differs(PROBLEM),
        case("fetcher", "a request of its own", fetch("http://HOST/")),
        case("fetcher", "an answer of 1 MiB", fetch("http://HOST/large")),
        case("fetcher", "an answer in chunks", fetch("http://HOST/chunks")),
        case("fetcher", "an answer that breaks off", fetch("http://HOST/broken")),
        case("fetcher", "an answer that is not HTTP", fetch("http://HOST/noise")),
        case("fetcher", "an authority that is none", fetch("http://a b/")),
        case("fetcher", "nobody there", fetch("http://127.0.0.1:1/")),
    ]);
    cases
}

/// An answer, taken apart.
#[derive(Debug, Default, PartialEq, Eq)]
struct Answer {
    status: String,
    headers: BTreeMap<String, Vec<String>>,
    body: Vec<u8>,
    trailers: BTreeMap<String, Vec<String>>,
    /// Whether it came to its end, as its framing says.
    whole: bool,
}

impl Answer {
    fn of(mut bytes: &[u8], is_head: bool) -> Self {
        while bytes.starts_with(b"HTTP/1.1 1")
            && let Some(end) = find(bytes, b"\r\n\r\n")
        {
            bytes = &bytes[end + 4..];
        }
        let Some(end) = find(bytes, b"\r\n\r\n") else { return Self::default() };
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let (status, fields) = head.split_once("\r\n").unwrap_or((&head, ""));
        let headers = parse(fields);
        let rest = &bytes[end + 4..];
        let mut answer = Self { status: status.get(9..12).unwrap_or_default().to_owned(), ..Self::default() };
        if is_head {
            answer.whole = rest.is_empty();
        } else if headers.contains_key("transfer-encoding") {
            answer.chunks(rest);
        } else if let Some(length) = headers.get("content-length") {
            answer.body = rest.to_vec();
            answer.whole = length[0].parse() == Ok(rest.len());
        } else {
            (answer.body, answer.whole) = (rest.to_vec(), true);
        }
        answer.headers = headers.into_iter().filter(|(name, _)| !NOT_COMPARED.contains(&&**name)).collect();
        answer
    }

    fn chunks(&mut self, mut rest: &[u8]) {
        loop {
            let Some(line) = find(rest, b"\r\n") else { return };
            let Ok(size) = usize::from_str_radix(&String::from_utf8_lossy(&rest[..line]), 16) else { return };
            rest = &rest[line + 2..];
            if size == 0 {
                let Some(end) = find(&[b"\r\n", rest].concat(), b"\r\n\r\n") else { return };
                self.trailers = parse(&String::from_utf8_lossy(&rest[..end.min(rest.len())]));
                self.whole = true;
                return;
            }
            let there = size.min(rest.len());
            self.body.extend_from_slice(&rest[..there]);
            if rest.len() < size + 2 {
                return;
            }
            rest = &rest[size + 2..];
        }
    }

    /// Names of the parts in which two differ.
    fn differences(&self, other: &Self) -> Vec<(&'static str, String)> {
        let mut found = Vec::new();
        let mut compare = |part, here: String, there: String| {
            if here != there {
                found.push((part, format!("{here} here, {there} there")));
            }
        };
        compare("status", self.status.clone(), other.status.clone());
        // How a body is framed is the connection's business, where the function does not say its length: here one that is
        // whole at once has it said.
        let is_told = [self, other].iter().all(|answer| answer.headers.contains_key(CONTENT_LENGTH));
        let headers = |answer: &Self| {
            let framing = |name: &str| !is_told && FRAMING.contains(&name);
            let headers = answer.headers.iter().filter(|(name, _)| !framing(name));
            format!("{:?}", headers.collect::<BTreeMap<_, _>>())
        };
        compare("headers", headers(self), headers(other));
        compare("body", shown(&self.body), shown(&other.body));
        compare("trailers", format!("{:?}", self.trailers), format!("{:?}", other.trailers));
        compare("end", end(self.whole).to_owned(), end(other.whole).to_owned());
        found
    }
}

fn end(whole: bool) -> &'static str {
    if whole { "whole" } else { "broken off" }
}

fn shown(body: &[u8]) -> String {
    match body.len() {
        0..=400 => format!("{:?}", String::from_utf8_lossy(body)),
        length => format!("{length} bytes, {}", digest(body)),
    }
}

fn digest(body: &[u8]) -> u64 {
    use std::hash::{DefaultHasher, Hasher as _};
    let mut hasher = DefaultHasher::new();
    hasher.write(body);
    hasher.finish()
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

fn parse(fields: &str) -> BTreeMap<String, Vec<String>> {
    let mut parsed: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in fields.split("\r\n").filter_map(|line| line.split_once(':')) {
        parsed.entry(name.to_ascii_lowercase()).or_default().push(value.trim().to_owned());
    }
    parsed
}

const CONTENT_LENGTH: &str = "content-length";
const FRAMING: [&str; 2] = [CONTENT_LENGTH, "transfer-encoding"];

/// A `wasmtime serve`.
struct Peer {
    _child: Child,
    address: String,
}

impl Peer {
    async fn serve(wasmtime: &Path, module: &Path) -> Self {
        let mut child = Command::new(wasmtime)
            .args([
                "serve",
                "-Scli,http,p3,inherit-network,allow-ip-name-lookup",
                "-Wcomponent-model-async",
                "--addr",
                "127.0.0.1:0",
            ])
            .arg(module)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("wasmtime runs");
        let mut lines = BufReader::new(child.stderr.take().expect("stderr")).lines();
        let address = loop {
            let line = lines.next_line().await.expect("stderr").expect("it says where it serves");
            if let Some(address) = line.split("http://").nth(1) {
                break address.trim_end_matches('/').to_owned();
            }
        };
        // What guests print is of no use to anybody, and must not stop them.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Self { _child: child, address }
    }
}

/// Somebody whom guests call.
async fn somebody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut bytes = vec![0; 4096];
            let read = stream.read(&mut bytes).await.unwrap_or(0);
            let asked = String::from_utf8_lossy(&bytes[..read]).into_owned();
            let head = |length: usize| {
                format!("HTTP/1.1 203 So\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n")
            };
            let answer = match asked.split(' ').nth(1).unwrap_or_default() {
                "/large" => head(1 << 20) + &"x".repeat(1 << 20),
                "/chunks" => "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\nx-end: here\r\n\r\n".to_owned(),
                "/broken" => head(10) + "half",
                "/noise" => "no such thing\r\n\r\n".to_owned(),
                _ => head(5) + "hello",
            };
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    address
}

async fn ask(address: &str, case: &Case, somebody: &str) -> Answer {
    let mut call = raw::Call::to(address).await;
    for (part, seen) in &case.request {
        call.until(seen).await;
        if call.try_send(&part.replace("HOST", somebody)).await.is_err() {
            break;
        }
    }
    if case.hangs_up {
        call.hang_up().await;
    }
    call.closed().await;
    Answer::of(call.bytes(), case.request[0].0.starts_with("HEAD"))
}

fn app(name: &str, somebody: &str) -> App {
    App::new(&format!(
        "[app]\nname = \"{name}\"\nhosts = [\"{name}.example\"]\n\n[function.all]\nmodule = \"{name}.wasm\"\n\
         trigger = {{ http = {{ route = \"/x/{{path...}}\", max-body = \"64MiB\", max-response = \"64MiB\" }} }}\n\
         capabilities = {{ outbound-http = [\"{somebody}\", \"127.0.0.1:1\"] }}\n"
    ))
    .file(&format!("{name}.wasm"), guest(name))
}

#[tokio::test]
#[ignore = "needs a wasmtime; scripts/peer has one"]
#[expect(clippy::print_stdout, reason = "the record of the run")]
async fn both_answer_alike() {
    let wasmtime = std::env::var_os("EBB_PEER").expect("EBB_PEER is a wasmtime");
    let folder = tempfile::tempdir().expect("a folder");
    let somebody = somebody().await;
    let mut served = BTreeMap::new();
    for name in GUESTS {
        let module = folder.path().join(name).with_extension("wasm");
        std::fs::write(&module, guest(name)).expect("a file");
        let node = Node::with(&app(name, &somebody)).await;
        served.insert(name, (node, Peer::serve(Path::new(&wasmtime), &module).await));
    }
    let (mut table, mut surprises) = (String::new(), String::new());
    for case in cases() {
        let (node, peer) = &served[case.guest];
        let here = ask(node.data.base().trim_start_matches("http://"), &case, &somebody).await;
        let there = ask(&peer.address, &case, &somebody).await;
        let found = here.differences(&there);
        let expected = |part: &str| case.differs.iter().find(|(known, _)| *known == part);
        let told: Vec<String> = found
            .iter()
            .map(|(part, how)| match expected(part) {
                Some((_, why)) => format!("{part}: {why}"),
                None => {
                    let _ = writeln!(surprises, "{} ({}): {part}: {how}", case.name, case.guest);
                    format!("**{part}: {how}**")
                }
            })
            .collect();
        let told = if told.is_empty() { "the same".to_owned() } else { told.join("; ") };
        let _ = writeln!(
            table,
            "| {} | {} | {} {} | {told} |",
            case.guest,
            case.name,
            here.status,
            end(here.whole)
        );
    }
    println!("| component | request | answer | compared with `wasmtime serve` |\n|---|---|---|---|\n{table}");
    assert!(surprises.is_empty(), "not alike:\n{surprises}");
}
