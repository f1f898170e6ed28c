//! Everything that misbehaves, at once and again and again: the right errors in bounded time, bounded memory, and a
//! neighbour who hardly notices. The suite does it for some seconds, `scripts/hostile` for as long as it is told.

use crate::raw;
use crate::support::{hostile, open_account};
use ebb_tests::{App, Client, Node, bank, eventually, guest};
use futures_util::future::join_all;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

/// What the operator lets functions take together.
const BUDGET: u64 = 256 << 20;
/// What a node takes besides, with some hundreds of connections.
const BESIDES: u64 = 256 << 20;
/// Code of modules that were not loaded before, of the node itself that nobody had run, and slots that stay warm.
const MODULES: u64 = 64 << 20;
/// The longest that anything may take: the longest limit of those below, and a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// So that everything is answered in time on whatever is left of a machine that others use.
const LIMITS: &str = "limits = { cpu = \"200ms\", wall = \"5s\" }";
/// Clients who do the same harm at the same time.
const EACH: usize = 2;

/// Commands that do harm, and what they are answered.
const COMMANDS: &[(&str, &str, &[&str])] = &[
    ("spin", "{}", &["module_out_of_cpu"]),
    ("allocate", "{}", &["module_out_of_memory", "module_out_of_cpu"]),
    ("trap", "{}", &["module_trapped"]),
    ("overflow", "{}", &["module_trapped"]),
    ("sleep", "{}", &["module_trapped"]),
    ("surprise", "{}", &["undeclared_event"]),
    ("lie", "{}", &["invalid_event"]),
    ("bloat", r#"{"bytes": 600000}"#, &["module_output_too_large"]),
    (
        "flood",
        r#"{"events": 100000}"#,
        &["module_output_too_large", "module_out_of_memory", "module_out_of_cpu"],
    ),
    ("print", r#"{"bytes": 100000000}"#, &["module_out_of_cpu", ""]),
];

/// Programs that do harm in ways that no compiler of Rust would put down as they are, and what a command of them is
/// answered.
const PROGRAMS: &[(&str, &str, &[&str])] = &[
    ("start", r#"(func $spin (loop br 0)) (start $spin) (func (export "_start"))"#, &["module_out_of_cpu"]),
    (
        "storm",
        r#"(func (export "_start") (loop (drop (call $random_get (i32.const 0) (i32.const 65536))) br 0))"#,
        &["module_out_of_cpu"],
    ),
    (
        "grow",
        r#"(func (export "_start") (loop (drop (memory.grow (i32.const 1))) br 0))"#,
        &["module_out_of_memory", "module_out_of_cpu"],
    ),
    (
        "tables",
        r#"(table 1 funcref)
           (func (export "_start") (loop (drop (table.grow 0 (ref.null func) (i32.const 100))) br 0))"#,
        &["module_out_of_memory", "module_out_of_cpu"],
    ),
    (
        "deep",
        r#"(func $deep (call $deep) (call $deep)) (func (export "_start") (call $deep))"#,
        &["module_trapped"],
    ),
    (
        // A mebibyte of stdout at a time.
        "shout",
        r#"(data (i32.const 0) "\10\00\00\00\00\00\10\00")
           (func (export "_start")
             (drop (memory.grow (i32.const 17)))
             (loop (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))) br 0))"#,
        &["module_output_too_large", "module_out_of_cpu"],
    ),
];

/// Requests of functions that do harm before their headers, and what they are answered.
const REQUESTS: &[(&str, &str)] = &[
    ("/do/trap", "module_trapped"),
    ("/do/silent", "module_trapped"),
    ("/do/spin", "module_out_of_cpu"),
    ("/do/sleep?ms=60000", "out_of_time"),
    ("/do/allocate", "module_out_of_memory"),
    ("/do/leak?n=20000", "module_trapped"),
    ("/do/storm", "module_out_of_cpu"),
    ("/do/deep", "module_trapped"),
    ("/do/shout?n=1000000", "module_trapped"),
    ("/do/many-headers?n=50000", "module_trapped"),
    ("/new/trap", "module_trapped"),
    ("/new/error", "module_trapped"),
    ("/new/never", "out_of_time"),
];

/// What breaks off, or has to be dealt with byte by byte.
const BYTES: &[&str] = &[
    "GET /apps/functions/do/trap-later HTTP/1.1\r\nhost: a\r\n\r\n",
    "GET /apps/functions/do/spin-later HTTP/1.1\r\nhost: a\r\n\r\n",
    "GET /apps/functions/do/never HTTP/1.1\r\nhost: a\r\n\r\n",
    "GET /apps/functions/do/unfinished HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
    "GET /apps/functions/do/promise?n=20 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
    "GET /apps/functions/do/big?n=100000000 HTTP/1.1\r\nhost: a\r\n\r\n",
    "GET /apps/functions/new/trap-later HTTP/1.1\r\nhost: a\r\n\r\n",
    "GET /apps/functions/new/spin-later HTTP/1.1\r\nhost: a\r\n\r\n",
    "POST /apps/functions/do/echo HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\nhalf",
    "POST /apps/functions/do/echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    "POST /apps/functions/do/echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n5\r\nhello\r\n0\r\nx: y\r\n\r\n",
    "POST /apps/functions/do/echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nx-bomb: BOMB\r\n\r\n",
    "POST /apps/functions/new/echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nx-bomb: BOMB\r\n\r\n",
    "POST /apps/functions/do/echo HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
    "GET /apps/functions/do/seen HTTP/1.1\r\nhost: a\r\nx-bomb: BOMB\r\n\r\n",
    "GET /apps/functions/do/seen HTTP/1.1\r\nhost: a\r\nMANY\r\n\r\n",
    // A head that does not end.
    "GET /apps/functions/do/seen HTTP/1.1\r\nhost: a\r\nMANY\r\n",
];

/// How slowly a connection is used up, by its name.
const SLOWLY: &[&str] =
    &["a body that comes byte by byte", "a response that nobody reads", "many requests at once"];

/// Answers that any of them may have when there are too many at once: turned away, or its time was up while it waited
/// for a processor. That of computing too, since its limit counts a poll's time also while the system runs others.
const TOO_MANY: &[&str] = &["overloaded", "mailbox_full", "out_of_time", "module_out_of_cpu"];

fn programs() -> App {
    let mut manifest = "[app]\nname = \"programs\"\n".to_owned();
    for (name, ..) in PROGRAMS {
        let _ = write!(
            manifest,
            "\n[aggregate.{name}]\nmodule = \"{name}.wasm\"\ncommands = {{ go = {{}} }}\nevents = {{ Gone = {{}} }}\n\
             instances = {{ idle = \"1s\" }}\nlimits = {{ cpu = \"200ms\", wall = \"5s\", memory = \"4MiB\" }}\n"
        );
    }
    PROGRAMS.iter().fold(App::new(&manifest), |app, (name, body, _)| {
        let text = format!(
            r#"(module
                (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
                (import "wasi_snapshot_preview1" "random_get" (func $random_get (param i32 i32) (result i32)))
                (memory (export "memory") 1)
                {body})"#
        );
        app.file(&format!("{name}.wasm"), wat::parse_str(text).expect("a module"))
    })
}

fn besieged() -> App {
    App::new(
        r#"[app]
name = "functions"

[function.do]
module = "http.wasm"
trigger = { http = { route = "/do/{what}", max-body = "64KiB", max-response = "1MiB" } }
limits = { cpu = "200ms", wall = "2s", memory = "16MiB" }
instances = { idle = "1s" }

[function.newer]
module = "http3.wasm"
trigger = { http = { route = "/new/{name}", max-response = "1MiB" } }
limits = { cpu = "200ms", wall = "2s" }
instances = { idle = "1s" }
"#,
    )
    .file("http.wasm", guest("http"))
    .file("http3.wasm", guest("http3"))
}

/// Tells how it went: answers by what they are to.
type Tally = BTreeMap<String, u64>;

/// Commands of one kind, each on a stream of its own.
async fn commands(
    app: Client,
    (aggregate, command, data, codes): (&str, &str, &str, &[&str]),
    until: Instant,
) -> Tally {
    let data: Value = serde_json::from_str(data).expect("JSON");
    let mut tally = Tally::new();
    let mut number = 0_u64;
    while Instant::now() < until {
        number += 1;
        let reply = app.command(aggregate, &format!("{command}-{number}"), command, &data);
        let reply = tokio::time::timeout(PATIENCE, reply.into_future()).await;
        let reply =
            reply.unwrap_or_else(|_| panic!("`{aggregate} {command}` was not answered within {PATIENCE:?}"));
        let code = if reply.status == 200 { String::new() } else { text(&reply.json()["code"]) };
        assert!(codes.contains(&&*code) || TOO_MANY.contains(&&*code), "{aggregate} {command}: {reply:?}");
        *tally.entry(format!("{aggregate} {command}: {}", or_done(&code))).or_default() += 1;
    }
    tally
}

async fn requests(app: Client, harm: usize, until: Instant) -> Tally {
    let (path, expected) = REQUESTS[harm];
    let mut tally = Tally::new();
    while Instant::now() < until {
        let reply = tokio::time::timeout(PATIENCE, app.get(path).into_future()).await;
        let reply = reply.unwrap_or_else(|_| panic!("`{path}` was not answered within {PATIENCE:?}"));
        let code = text(&reply.json()["code"]);
        assert!(code == expected || TOO_MANY.contains(&&*code), "{path}: {reply:?}");
        *tally.entry(format!("{path}: {code}")).or_default() += 1;
    }
    tally
}

async fn bytes(address: String, harm: usize, until: Instant) -> Tally {
    let many: String = (0..2000).map(|n| format!("x-{n}: a\r\n")).collect();
    let request = BYTES[harm].replace("BOMB", &"b".repeat(200_000)).replace("MANY\r\n", &many);
    let name = format!("{harm} {}", BYTES[harm].lines().next().unwrap_or_default());
    let mut tally = Tally::new();
    while Instant::now() < until {
        let mut call = raw::Call::to(&address).await;
        // The other end may have had enough before it is all sent.
        let _ = call.try_send(&request).await;
        tokio::time::timeout(PATIENCE, call.closed_or_quiet(Duration::from_secs(3)))
            .await
            .unwrap_or_else(|_| panic!("`{name}` went on for {PATIENCE:?}"));
        let seen = call.seen();
        let status = seen.get(9..12).unwrap_or("no answer").to_owned();
        *tally.entry(format!("{name}: {status}")).or_default() += 1;
    }
    tally
}

/// Connections that are used up slowly, one after another.
async fn slowly(address: String, harm: usize, until: Instant) -> Tally {
    let mut tally = Tally::new();
    while Instant::now() < until {
        let mut call = raw::Call::to(&address).await;
        match harm {
            0 => {
                let head = "POST /apps/functions/do/echo HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\n";
                let mut sent = call.try_send(head).await;
                // It has 2 s as a whole.
                let began = Instant::now();
                while sent.is_ok() && began.elapsed() < PATIENCE {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    sent = call.try_send("x").await;
                }
                assert!(sent.is_err(), "a body that never comes was waited for: {}", call.seen());
            }
            1 => {
                call.send("GET /apps/functions/do/big?n=100000000 HTTP/1.1\r\nhost: a\r\n\r\n").await;
                tokio::time::sleep(Duration::from_secs(3)).await;
                // What was under way, and no end.
                call.closed_or_quiet(Duration::from_secs(1)).await;
                assert!(!call.seen().ends_with("\r\n0\r\n\r\n"), "it looks as if it were whole");
            }
            _ => {
                let one = "GET /apps/functions/do/hello HTTP/1.1\r\nhost: a\r\n\r\n";
                let _ = call.try_send(&one.repeat(500)).await;
                call.closed_or_quiet(Duration::from_secs(1)).await;
            }
        }
        *tally.entry(SLOWLY[harm].to_owned()).or_default() += 1;
    }
    tally
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn or_done(code: &str) -> &str {
    if code.is_empty() { "done" } else { code }
}

/// Deposits one after another, and how long each took, sorted.
async fn deposits(bank: &Client, until: Instant) -> Vec<Duration> {
    let mut took = Vec::new();
    while Instant::now() < until {
        let started = Instant::now();
        bank.command("account", "a", "deposit", &json!({ "amount": 1 })).await.ok();
        took.push(started.elapsed());
    }
    took.sort_unstable();
    took
}

fn quantile(sorted: &[Duration], q: f64) -> Duration {
    sorted[((sorted.len() - 1) as f64 * q) as usize]
}

fn resident(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("the node runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}

/// The largest resident size until then.
async fn watch(process: u32, until: Instant) -> u64 {
    let mut most = 0;
    while Instant::now() < until {
        most = most.max(resident(process));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    most
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::print_stdout, reason = "the record of a longer run")]
async fn a_neighbour_of_all_that_misbehaves_is_served_and_the_nodes_memory_is_bounded() {
    let seconds = std::env::var("EBB_SIEGE_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(8);
    let settings = format!("[functions]\nmemory = \"{}MiB\"\n", BUDGET >> 20);
    let mut node = Node::builder().settings(&settings).env("EBB_LOG", "off").start().await;
    let idle = "commands = { behave";
    let hostile = hostile().edit(idle, &format!("instances = {{ idle = \"1s\" }}\n{LIMITS}\n{idle}"));
    for app in [&besieged(), &hostile, &programs(), &bank()] {
        node.deploy(app).await;
    }
    let neighbour = node.app("bank");
    open_account(&neighbour, "a", 1).await;
    let alone = deposits(&neighbour, Instant::now() + Duration::from_secs(2)).await;
    let before = resident(node.process_id());

    let until = Instant::now() + Duration::from_secs(seconds);
    let address = node.app("functions").base().to_owned();
    let address = address.trim_start_matches("http://").split('/').next().unwrap_or_default().to_owned();
    let mut harm = Vec::new();
    for _ in 0..EACH {
        for &(command, data, codes) in COMMANDS {
            let ask = ("hostile", command, data, codes);
            harm.push(tokio::spawn(commands(node.app("hostile"), ask, until)));
        }
        for &(program, _, codes) in PROGRAMS {
            harm.push(tokio::spawn(commands(node.app("programs"), (program, "go", "{}", codes), until)));
        }
        harm.extend(
            (0..REQUESTS.len()).map(|each| tokio::spawn(requests(node.app("functions"), each, until))),
        );
        harm.extend((0..BYTES.len()).map(|each| tokio::spawn(bytes(address.clone(), each, until))));
        harm.extend((0..SLOWLY.len()).map(|each| tokio::spawn(slowly(address.clone(), each, until))));
    }
    let watching = tokio::spawn(watch(node.process_id(), until));
    let beside = deposits(&neighbour, until).await;
    let most = watching.await.expect("the watch");
    let mut tally = Tally::new();
    for ended in join_all(harm).await {
        for (what, times) in ended.unwrap_or_else(|failure| std::panic::resume_unwind(failure.into_panic())) {
            *tally.entry(what).or_default() += times;
        }
    }

    println!("{seconds} s of it: the node took {} MiB before and {} MiB at most", before >> 20, most >> 20);
    for (name, took) in [("alone", &alone), ("beside it", &beside)] {
        let (half, most) = (quantile(took, 0.5), quantile(took, 0.99));
        println!("the neighbour, {name}: {} deposits, p50 {half:?}, p99 {most:?}", took.len());
    }
    for (what, times) in &tally {
        println!("{times:>8}  {what}");
    }
    assert!(node.is_running());
    assert!(most < BUDGET + BESIDES, "{} MiB", most >> 20);
    assert!(quantile(&beside, 0.99) < Duration::from_secs(2), "p99 {:?}", quantile(&beside, 0.99));
    // What it took goes back: two idle times, and the sweep.
    let most = before * 6 / 5 + MODULES;
    eventually("memory to go back", async || (resident(node.process_id()) < most).then_some(())).await;
}
