//! Commands over HTTP on the real binary, beside a native axum handler that appends the same event through the same log.

use crate::figures::{Figure, measure};
use crate::http::Requests;
use crate::log::{commit, open};
use crate::node::{Server, repository, run};
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

const CLIENTS: usize = 64;
const STREAMS: u64 = 4096;
const BODY: &str = "{\"amount\":1}";

fn deposits(account: impl Fn(usize, u64) -> u64 + Send + Sync + 'static) -> Requests {
    Arc::new(move |client, request| {
        let account = account(client, request);
        Bytes::from(format!(
            "POST /commands/account/{account}/deposit HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{BODY}",
            BODY.len()
        ))
    })
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

    let many = deposits(|client, request| (request * 64 + client as u64) % STREAMS);
    let hot = deposits(|_, _| 7);
    measure(
        "commands/s",
        &mut [
            Figure::new("native axum handler, same log", &native, CLIENTS, &many),
            Figure::new("ebb, wasm command module", &ours, CLIENTS, &many).against(0),
            Figure::new("ebb, one hot stream", &ours, CLIENTS, &hot).against(1),
            Figure::new("native axum handler, alone", &native, 1, &many),
            Figure::new("ebb, alone", &ours, 1, &many).against(3),
        ],
    )
    .await;
    native.kill().await;
    ours.kill().await;
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
