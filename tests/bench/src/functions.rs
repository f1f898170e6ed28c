//! HTTP functions on the real binary, beside a native axum handler and `wasmtime serve`, which runs the same components.

use crate::figures::{Figure, measure};
use crate::http::{Load, Requests, always, load};
use crate::node::{Server, repository};
use crate::{RUNS, SPAN, median, row};
use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Keep-alive connections where there are many.
const MANY: usize = 32;
/// Connections of an app that behaves, and of one that does not.
const QUIET: usize = 8;
const FLOOD: usize = 256;
/// More calls than any of them gets in a run: an instance serves them all.
const FOREVER: &str = "4000000000";

pub fn module(name: &str) -> PathBuf {
    repository("guest-examples/target/wasm32-wasip2/release").join(name).with_extension("wasm")
}

/// An app to deploy, made on the spot.
pub fn app(folder: &Path, name: &str, functions: &str) -> PathBuf {
    let app = folder.join(name);
    std::fs::create_dir(&app).expect("a folder");
    for module in ["greet", "greet3", "http"] {
        std::fs::copy(self::module(module), app.join(module).with_extension("wasm")).expect("a module");
    }
    std::fs::write(app.join("ebb.toml"), format!("[app]\nname = \"{name}\"\n{functions}")).expect("a file");
    app
}

/// A function, its instances, and where it answers.
fn function(name: &str, module: &str, instances: &str) -> String {
    format!(
        "\n[function.{name}]\nmodule = \"{module}.wasm\"\ntrigger.http.route = \"/{name}/{{what}}\"\ninstances = {{ {instances} }}\n"
    )
}

fn of(path: &str) -> Requests {
    always(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n"))
}

/// Instances that are there, and an instance for each request: of `wasi:http` 0.2 and 0.3.
pub async fn throughput(ebb: &str, wasmtime: &str) {
    let folder = tempfile::tempdir_in(".").expect("a folder");
    let myself = std::env::current_exe().expect("a path");
    let native = Server::start(myself.to_str().expect("UTF-8"), &["hello"]).await;
    let ours = Server::ebb(ebb, &folder.path().join("ebb")).await;
    let functions = [
        function("warm2", "greet", &format!("reuse = {FOREVER}")),
        function("warm3", "greet3", &format!("reuse = {FOREVER}")),
        function("fresh2", "greet", "reuse = 1"),
        function("fresh3", "greet3", "reuse = 1"),
        // Asks for its path and for a header before it answers.
        function("reads2", "http", &format!("reuse = {FOREVER}")),
    ];
    ours.deploy(ebb, &app(folder.path(), "bench", &functions.concat())).await;
    let (greet, greet3) = (module("greet"), module("greet3"));
    let (reused, single) = (["--max-instance-reuse-count", FOREVER], ["--max-instance-reuse-count", "1"]);
    let pooled = |options: [&'static str; 2]| [options[0], options[1], "-Opooling-allocator"];
    let theirs_warm2 = Server::wasmtime(wasmtime, &pooled(reused), &greet).await;
    let theirs_warm3 = Server::wasmtime(wasmtime, &pooled(reused), &greet3).await;
    let theirs_fresh2 = Server::wasmtime(wasmtime, &pooled(single), &greet).await;
    let theirs_fresh3 = Server::wasmtime(wasmtime, &pooled(single), &greet3).await;
    let hello = of("/hello/hello");
    let [warm2, warm3, fresh2, fresh3, reads2] =
        ["warm2", "warm3", "fresh2", "fresh3", "reads2"].map(|name| of(&format!("/{name}/hello")));
    for clients in [MANY, 1] {
        println!("\nHTTP functions, \"hello\", {clients} keep-alive connections; instances are reused");
        let figure = |what, server, requests| Figure::new(what, server, clients, requests);
        measure(
            "requests/s",
            &mut [
                figure("native axum handler", &native, &hello),
                figure("ebb, wasi:http 0.2", &ours, &warm2).against(0),
                figure("wasmtime serve, wasi:http 0.2, reused", &theirs_warm2, &hello).against(0),
                figure("ebb, wasi:http 0.2, reads its request", &ours, &reads2).against(0),
                figure("ebb, wasi:http 0.3", &ours, &warm3).against(0),
                figure("wasmtime serve, wasi:http 0.3, reused", &theirs_warm3, &hello).against(0),
            ],
        )
        .await;
        println!(
            "\nHTTP functions, \"hello\", {clients} keep-alive connections; an instance for each request"
        );
        measure(
            "requests/s",
            &mut [
                figure("wasmtime serve, wasi:http 0.2, fresh", &theirs_fresh2, &hello),
                figure("ebb, wasi:http 0.2, reuse = 1", &ours, &fresh2).against(0),
                figure("wasmtime serve, wasi:http 0.3, fresh", &theirs_fresh3, &hello),
                figure("ebb, wasi:http 0.3, reuse = 1", &ours, &fresh3).against(2),
            ],
        )
        .await;
    }
    for server in [native, ours, theirs_warm2, theirs_warm3, theirs_fresh2, theirs_fresh3] {
        server.kill().await;
    }
}

/// Serves the baseline until it is killed.
pub async fn native() {
    let hello = || async { ([(CONTENT_TYPE, "text/plain")], "hello, stranger") };
    let router = Router::new().route("/hello/{what}", get(hello));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    println!("http=http://{} ", listener.local_addr().expect("an address"));
    std::io::stdout().flush().expect("stdout");
    let listener = axum::serve::ListenerExt::tap_io(listener, |socket| drop(socket.set_nodelay(true)));
    axum::serve(listener, router).await.expect("it serves");
}

/// What one app's flood leaves to another: of short calls, and of calls that compute.
pub async fn fairness(ebb: &str) {
    let folder = tempfile::tempdir_in(".").expect("a folder");
    let node = Server::ebb(ebb, &folder.path().join("ebb")).await;
    for name in ["quiet", "flood"] {
        let function = function("f", "http", &format!("reuse = {FOREVER}"));
        node.deploy(ebb, &app(folder.path(), name, &function)).await;
    }
    for (what, path) in [("short calls", "f/hello"), ("calls that compute for some 200 us", "f/work?n=100")] {
        println!("\nTwo apps, {what}: {QUIET} connections of one, alone and beside {FLOOD} of the other");
        let requests = |app: &str| of(&format!("/apps/{app}/{path}"));
        let (quiet, flood) = (requests("quiet"), requests("flood"));
        let (mut alone, mut beside, mut floods) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..RUNS {
            alone.push(load(&node.address, QUIET, SPAN, &quiet).await);
            let (one, other) = tokio::join!(
                load(&node.address, QUIET, SPAN, &quiet),
                load(&node.address, FLOOD, SPAN, &flood)
            );
            beside.push(one);
            floods.push(other);
        }
        let failed: u64 = beside.iter().chain(&floods).map(|load| load.failed).sum();
        let shares = beside.iter().zip(&alone).map(|(beside, alone)| beside.rate() / (alone.rate() / 2.0));
        let share = median(shares.collect());
        let rate = |loads: &[Load]| median(loads.iter().map(Load::rate).collect());
        let micros = |loads: &mut [Load], percent| {
            median(loads.iter_mut().map(|load| load.times.percentile(percent).as_secs_f64() * 1e6).collect())
        };
        let line = |what, loads: &mut [Load], more: &str| {
            let (p50, p99) = (micros(loads, 50.0), micros(loads, 99.0));
            row(what, rate(loads), "requests/s", &format!("{more}p50 {p50:.0} us, p99 {p99:.0} us"));
            p99
        };
        let before = line("one app, alone", &mut alone, "");
        let after = line(
            "the same, beside the flood",
            &mut beside,
            &format!("{share:.2} of its fair share, half of what it has alone; "),
        );
        line("the flood", &mut floods, "");
        row("its p99 beside the flood, against alone", after / before, "x", &format!("{failed} not 200"));
    }
    node.kill().await;
}
