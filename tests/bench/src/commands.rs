//! Commands over HTTP on the real binary, beside a native axum handler that appends the same event through the same log.

use crate::http::load;
use crate::log::{commit, open};
use crate::{RUNS, SPAN, cpu_seconds, median, row};
use axum::Router;
use axum::extract::{Path, State};
use axum::routing::post;
use bytes::Bytes;
use ebb_domain::name::AppName;
use ebb_domain::port::log::EventLog;
use ebb_domain::port::storage::Storage;
use ebb_domain::stream::StreamId;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

const CLIENTS: usize = 64;
const STREAMS: u64 = 4096;
const BODY: &str = "{\"amount\":1}";

/// A server to measure.
struct Server {
    address: String,
    pid: u32,
}

pub async fn all(ebb: &str) {
    println!(
        "\nCommands over HTTP, durable: deposit on {STREAMS} accounts, {CLIENTS} keep-alive clients; the load generator shares the cores"
    );
    let native = native().await;
    let (mut child, ours, _folder) = ebbtide(ebb).await;
    let many = |client: usize, request: u64| {
        format!("/commands/account/{}/deposit", (request * 64 + client as u64) % STREAMS)
    };
    let baseline = measure("native axum handler, same log", &native, CLIENTS, many, None).await;
    let ebbtide = measure("ebb, wasm command module", &ours, CLIENTS, many, Some(baseline)).await;
    measure(
        "ebb, one hot stream",
        &ours,
        CLIENTS,
        |_, _| "/commands/account/7/deposit".into(),
        Some(ebbtide),
    )
    .await;
    alone("native axum handler, alone", &native).await;
    alone("ebb, alone", &ours).await;
    child.start_kill().expect("a kill");
    child.wait().await.expect("an end");
}

async fn measure<P>(what: &str, server: &Server, clients: usize, path: P, against: Option<f64>) -> f64
where
    P: Fn(usize, u64) -> String + Clone + Send + 'static,
{
    load(server.address.clone(), clients, Duration::from_secs(1), BODY, path.clone()).await;
    let (mut rates, mut failed, mut p50, mut p99, mut cpu) = (Vec::new(), 0, 0.0, 0.0, 0.0);
    for _ in 0..RUNS {
        let before = cpu_seconds(server.pid);
        let mut run = load(server.address.clone(), clients, SPAN, BODY, path.clone()).await;
        cpu = (cpu_seconds(server.pid) - before) * 1e6 / run.times.len() as f64;
        rates.push(run.rate());
        failed += run.failed;
        p50 = run.percentile(50.0).as_secs_f64() * 1e3;
        p99 = run.percentile(99.0).as_secs_f64() * 1e3;
    }
    let rate = median(rates);
    let ratio = against.map_or_else(String::new, |against| {
        format!("{:.2} x of the row it is measured against; ", rate / against)
    });
    row(
        what,
        rate,
        "commands/s",
        &format!(
            "{ratio}p50 {p50:.2} ms, p99 {p99:.2} ms, {cpu:.1} us CPU of the process each, {failed} not 200"
        ),
    );
    rate
}

async fn alone(what: &str, server: &Server) {
    let path = |_: usize, request: u64| format!("/commands/account/{}/deposit", request % STREAMS);
    let mut run = load(server.address.clone(), 1, SPAN, BODY, path).await;
    let p50 = run.percentile(50.0).as_secs_f64() * 1e6;
    let p99 = run.percentile(99.0).as_secs_f64() * 1e6;
    row(what, p50, "us p50", &format!("p99 {p99:.0} us, {:.0} commands/s", run.rate()));
}

/// The baseline runs in this process: its CPU figure includes the load generator.
async fn native() -> Server {
    let folder = tempfile::tempdir_in(".").expect("a folder");
    let storage = open(folder.path());
    let log = storage.open_log(&AppName::new("bench").expect("a name")).expect("a log");
    let router = Router::new().route("/commands/account/{id}/deposit", post(deposit)).with_state(log);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    tokio::spawn(async move {
        let _keep = (folder, storage);
        axum::serve(
            axum::serve::ListenerExt::tap_io(listener, |socket| drop(socket.set_nodelay(true))),
            router,
        )
        .await
    });
    Server { address, pid: std::process::id() }
}

async fn deposit(State(log): State<Arc<dyn EventLog>>, Path(id): Path<String>, body: Bytes) -> String {
    let stream = StreamId::parse(format!("account-{id}")).expect("a stream");
    serde_json::from_slice::<serde_json::Value>(&body).expect("JSON");
    let mut staged = log.append(commit(stream, body)).await.expect("staged");
    staged.settlement.wait().await.expect("durable");
    format!("{{\"revision\":{},\"position\":{}}}", staged.first_revision, staged.first_position)
}

async fn ebbtide(ebb: &str) -> (tokio::process::Child, Server, tempfile::TempDir) {
    let folder = tempfile::tempdir_in(".").expect("a folder");
    let mut child = Command::new(ebb)
        .args(["serve", "--http", "127.0.0.1:0", "--control", "127.0.0.1:0", "--data"])
        .arg(folder.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("ebb starts");
    let mut lines = BufReader::new(child.stdout.take().expect("stdout")).lines();
    let ready = lines.next_line().await.expect("a line").expect("the ready line");
    let part = |key: &str| {
        ready
            .split(&format!("{key}=http://"))
            .nth(1)
            .and_then(|rest| rest.split(' ').next())
            .expect("an address")
            .to_owned()
    };
    let (address, control) = (part("http"), part("control"));
    let app = concat!(env!("CARGO_MANIFEST_DIR"), "/../../guest-examples/bank");
    let deployed = Command::new(ebb)
        .args(["deploy", app, "--server"])
        .arg(format!("http://{control}"))
        .output()
        .await
        .expect("ebb deploys");
    assert!(deployed.status.success(), "{}", String::from_utf8_lossy(&deployed.stderr));
    let open = load(address.clone(), 1, Duration::from_secs(0), BODY, |_, _| String::new()).await;
    drop(open);
    // Accounts are opened before anything is measured.
    let lines: String = (0..STREAMS)
        .map(|id| format!("{{\"id\":\"{id}\",\"command\":\"open\",\"data\":{{\"owner\":\"bench\"}}}}\n"))
        .collect();
    let file = folder.path().join("open.ndjson");
    std::fs::write(&file, lines).expect("a file");
    let imported = Command::new(ebb)
        .args(["import", "account"])
        .arg(&file)
        .arg("--server")
        .arg(format!("http://{address}"))
        .output()
        .await
        .expect("ebb imports");
    assert!(imported.status.success(), "{}", String::from_utf8_lossy(&imported.stderr));
    let pid = child.id().expect("a process");
    (child, Server { address, pid }, folder)
}
