//! Commands over HTTP on the real binary, beside a native axum handler that appends the same event through the same log.

use crate::http::{Load, load};
use crate::log::{commit, open};
use crate::node::{Server, repository, run};
use crate::{RUNS, SPAN, cpu_seconds, median, row};
use axum::Router;
use axum::extract::{Path, State};
use axum::routing::post;
use bytes::Bytes;
use ebb_domain::name::AppName;
use ebb_domain::port::log::EventLog;
use ebb_domain::port::storage::Storage;
use ebb_domain::stream::StreamId;
use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

const CLIENTS: usize = 64;
const STREAMS: u64 = 4096;
const BODY: &str = "{\"amount\":1}";

/// A figure of the table, and what its runs gave.
struct Figure<'a> {
    what: &'static str,
    server: &'a Server,
    clients: usize,
    path: fn(usize, u64) -> String,
    /// The figure that it is set against, by its place in the table.
    against: Option<usize>,
    runs: Vec<Run>,
}

struct Run {
    rate: f64,
    p50: f64,
    p99: f64,
    cpu: f64,
    failed: u64,
}

fn many(client: usize, request: u64) -> String {
    format!("/commands/account/{}/deposit", (request * 64 + client as u64) % STREAMS)
}

fn hot(_: usize, _: u64) -> String {
    "/commands/account/7/deposit".into()
}

pub async fn all(ebb: &str) {
    println!("\nCommands over HTTP, durable: deposit on {STREAMS} accounts, {CLIENTS} keep-alive clients");
    let folder = tempfile::tempdir_in(".").expect("a folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
    let myself = std::env::current_exe().expect("a path");
    let native = Server::start(myself.to_str().expect("UTF-8"), &["native", &path("native")]).await;
    let ours = Server::ebb(ebb, path("ebb").as_ref()).await;
    ours.deploy(ebb, &repository("guest-examples/bank")).await;
    open_accounts(ebb, &ours, &path("open.ndjson")).await;

    let figure =
        |what, server, clients, path, against| Figure { what, server, clients, path, against, runs: vec![] };
    let mut figures: [Figure<'_>; 5] = [
        figure("native axum handler, same log", &native, CLIENTS, many, None),
        figure("ebb, wasm command module", &ours, CLIENTS, many, Some(0)),
        figure("ebb, one hot stream", &ours, CLIENTS, hot, Some(1)),
        figure("native axum handler, alone", &native, 1, many, None),
        figure("ebb, alone", &ours, 1, many, Some(3)),
    ];
    for figure in &figures {
        load(&figure.server.address, figure.clients, Duration::from_secs(1), BODY, figure.path).await;
    }
    // In turn, so that what else the machine does meets all of them.
    for _ in 0..RUNS {
        for figure in &mut figures {
            let before = cpu_seconds(figure.server.pid);
            let run = load(&figure.server.address, figure.clients, SPAN, BODY, figure.path).await;
            let cpu = cpu_seconds(figure.server.pid) - before;
            figure.runs.push(Run::of(run, cpu));
        }
    }
    let of = |figure: &Figure<'_>, value: fn(&Run) -> f64| median(figure.runs.iter().map(value).collect());
    for figure in &figures {
        let rate = of(figure, |run| run.rate);
        let against = figure.against.map_or_else(String::new, |other| {
            let other = &figures[other];
            let ratios = figure.runs.iter().zip(&other.runs).map(|(run, other)| run.rate / other.rate);
            format!("{:.2} x `{}`; ", median(ratios.collect()), other.what)
        });
        let (p50, p99) = (of(figure, |run| run.p50), of(figure, |run| run.p99));
        let (cpu, failed) =
            (of(figure, |run| run.cpu), figure.runs.iter().map(|run| run.failed).sum::<u64>());
        row(
            figure.what,
            rate,
            "commands/s",
            &format!(
                "{against}p50 {p50:.0} us, p99 {p99:.0} us, {cpu:.1} us CPU of the server each, {failed} not 200"
            ),
        );
    }
    native.kill().await;
    ours.kill().await;
}

impl Run {
    fn of(mut load: Load, cpu: f64) -> Self {
        Self {
            rate: load.rate(),
            p50: load.times.percentile(50.0).as_secs_f64() * 1e6,
            p99: load.times.percentile(99.0).as_secs_f64() * 1e6,
            cpu: cpu * 1e6 / load.times.len() as f64,
            failed: load.failed,
        }
    }
}

/// Accounts are opened before anything is measured.
async fn open_accounts(ebb: &str, server: &Server, file: &str) {
    let lines: String = (0..STREAMS)
        .map(|id| format!("{{\"id\":\"{id}\",\"command\":\"open\",\"data\":{{\"owner\":\"bench\"}}}}\n"))
        .collect();
    std::fs::write(file, lines).expect("a file");
    run(ebb, &["import", "account", file, "--server", &format!("http://{}", server.address)]).await;
}

/// Serves the baseline until it is killed.
pub async fn native(folder: &std::path::Path) {
    let storage = open(folder);
    let log = storage.open_log(&AppName::new("bench").expect("a name")).expect("a log");
    let router = Router::new().route("/commands/account/{id}/deposit", post(deposit)).with_state(log);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    println!("http=http://{} ", listener.local_addr().expect("an address"));
    std::io::stdout().flush().expect("stdout");
    let listener = axum::serve::ListenerExt::tap_io(listener, |socket| drop(socket.set_nodelay(true)));
    axum::serve(listener, router).await.expect("it serves");
}

async fn deposit(State(log): State<Arc<dyn EventLog>>, Path(id): Path<String>, body: Bytes) -> String {
    let stream = StreamId::parse(format!("account-{id}")).expect("a stream");
    serde_json::from_slice::<serde_json::Value>(&body).expect("JSON");
    let mut staged = log.append(commit(stream, body)).await.expect("staged");
    staged.settlement.wait().await.expect("durable");
    format!("{{\"revision\":{},\"position\":{}}}", staged.first_revision, staged.first_position)
}
