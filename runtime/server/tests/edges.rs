//! Both ports of an embedded node, over real sockets. What needs an app is in the black-box suite.

use ebb_server::{Config, Server};
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

struct Fixture {
    server: Server,
    _data: tempfile::TempDir,
}

async fn start(change: impl FnOnce(&mut Config)) -> Fixture {
    let data = tempfile::tempdir().unwrap();
    let mut config = Config::embedded(data.path());
    change(&mut config);
    Fixture { server: Server::start(config).await.unwrap(), _data: data }
}

/// Sends one request on a connection of its own; gives the status and all of the answer.
async fn send(address: SocketAddr, request: &str) -> (u16, String) {
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    (answer[9..12].parse().unwrap(), answer)
}

fn request(method: &str, path: &str, host: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
}

#[tokio::test]
async fn a_node_without_apps_asks_which_app_is_meant() {
    let node = start(|_| {}).await;
    let http = node.server.http_address();
    for (path, code) in
        [("/events", "app_required"), ("/apps/bank/events", "unknown_app"), ("/apps/%zz/events", "bad_path")]
    {
        let (_, answer) = send(http, &request("GET", path, "localhost")).await;
        assert!(answer.contains("application/problem+json"), "{answer}");
        assert!(answer.contains(&format!("\"code\":\"{code}\"")), "{answer}");
    }
    node.server.shutdown().await;
}

#[tokio::test]
async fn probes_metrics_and_lists_are_on_the_control_port() {
    let node = start(|_| {}).await;
    let control = node.server.control_address();
    for path in ["/livez", "/readyz", "/metrics", "/apps", "/functions", "/projections", "/", "/ui/main.js"] {
        assert_eq!(send(control, &request("GET", path, "localhost")).await.0, 200, "{path}");
    }
    let (status, answer) = send(control, &request("HEAD", "/readyz", "localhost")).await;
    assert_eq!(status, 200);
    assert!(
        answer.contains("content-length: 19\r\n") && answer.ends_with("\r\n\r\n"),
        "a head and no body: {answer}"
    );
    let (status, answer) = send(control, &request("POST", "/apps", "localhost")).await;
    assert_eq!(status, 405);
    assert!(answer.contains("allow: GET, HEAD, OPTIONS"), "{answer}");
    node.server.shutdown().await;
}

#[tokio::test]
async fn the_control_port_answers_no_rebound_name() {
    let node = start(|_| {}).await;
    let control = node.server.control_address();
    let (status, answer) = send(control, &request("GET", "/apps", "evil.example")).await;
    assert_eq!(status, 403);
    assert!(answer.contains("host_not_allowed"), "{answer}");
    node.server.shutdown().await;
}

#[tokio::test]
async fn a_token_guards_all_but_the_probes() {
    let text = "[control]\ntoken = '0123456789abcdef'\n";
    let parsed = Config::parse(Some(("ebbtide.toml".into(), text)), |_| None, &[]).unwrap();
    let node = start(|config| config.control.auth = parsed.control.auth).await;
    let control = node.server.control_address();
    assert_eq!(send(control, &request("GET", "/readyz", "localhost")).await.0, 200);
    let (status, answer) = send(control, &request("GET", "/apps", "localhost")).await;
    assert_eq!(status, 401);
    assert!(answer.to_lowercase().contains("www-authenticate: bearer"), "{answer}");
    let request = "GET /apps HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer 0123456789abcdef\r\nConnection: close\r\n\r\n";
    assert_eq!(send(control, request).await.0, 200);
    node.server.shutdown().await;
}

#[tokio::test]
async fn one_connection_too_many_is_told_so() {
    let node = start(|config| config.limits.connections = 1).await;
    let http = node.server.http_address();
    let mut first = TcpStream::connect(http).await.unwrap();
    first.write_all(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut byte = [0];
    first.read_exact(&mut byte).await.unwrap();
    let mut second = TcpStream::connect(http).await.unwrap();
    let mut answer = String::new();
    second.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("\"code\":\"overloaded\""), "{answer}");
    node.server.shutdown().await;
}

#[tokio::test]
async fn a_head_over_the_limit_is_refused() {
    let node = start(|_| {}).await;
    let long = "x".repeat(40 << 10);
    let request = format!("GET /events HTTP/1.1\r\nHost: localhost\r\nX-Long: {long}\r\n\r\n");
    assert_eq!(send(node.server.http_address(), &request).await.0, 431);
    node.server.shutdown().await;
}

#[tokio::test]
async fn shutdown_closes_idle_connections_and_frees_the_folder() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(Config::embedded(data.path())).await.unwrap();
    let (http, mut idle) = (server.http_address(), TcpStream::connect(server.http_address()).await.unwrap());
    idle.write_all(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut byte = [0];
    idle.read_exact(&mut byte).await.unwrap();
    server.shutdown().await;
    let mut rest = Vec::new();
    idle.read_to_end(&mut rest).await.unwrap();
    assert!(TcpStream::connect(http).await.is_err());
    Server::start(Config::embedded(data.path())).await.unwrap().shutdown().await;
}
