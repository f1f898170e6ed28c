//! Calls of functions that are cold: deployed, and not in memory. One at a time, on a node that runs, with the page cache
//! warm.

use crate::functions::{app, module};
use crate::http::{Client, Times};
use crate::node::Server;
use crate::row;
use std::time::{Duration, Instant};

/// Modules of the node, none the same.
const MODULES: usize = 100;
/// How often each is called cold.
const ROUNDS: usize = 30;

pub async fn all(ebb: &str) {
    let bytes = std::fs::read(module("http")).expect("a module");
    println!(
        "\nCold calls: {MODULES} modules of {} KiB, {} calls one at a time",
        bytes.len() >> 10,
        MODULES * ROUNDS
    );
    let folder = tempfile::tempdir_in(".").expect("a folder");
    let mut functions = String::new();
    for number in 0..MODULES {
        functions.push_str(&format!(
            "\n[function.f{number}]\nmodule = \"{number}.wasm\"\ntrigger.http.route = \"/f{number}/{{what}}\"\ninstances.idle = \"1s\"\n"
        ));
    }
    let app = app(folder.path(), "cold", &functions);
    for number in 0..MODULES {
        std::fs::write(app.join(format!("{number}.wasm")), marked(&bytes, number)).expect("a module");
    }
    // Nobody is called twice within it: every call finds its function cold.
    let idle = [("EBB_FUNCTIONS_IDLE", "1s")];
    let node = Server::ebb_with(ebb, &folder.path().join("ebb"), &idle).await;
    node.deploy(ebb, &app).await;
    let mut client = Client::connect(&node.address).await;
    let mut control = Client::connect(&node.control).await;
    let (mut cold, mut warm) = (Times::default(), Times::default());
    for _ in 0..ROUNDS {
        all_cold(&mut control).await;
        for number in 0..MODULES {
            let request = format!("GET /f{number}/hello HTTP/1.1\r\nhost: localhost\r\n\r\n");
            cold.push(call(&mut client, &request).await);
        }
        let request = format!("GET /f{}/hello HTTP/1.1\r\nhost: localhost\r\n\r\n", MODULES - 1);
        for _ in 0..MODULES {
            warm.push(call(&mut client, &request).await);
        }
    }
    let usage = control.json("/usage").await;
    let functions = usage["functions"].as_array().expect("a list").iter();
    let found_cold: u64 = functions.filter_map(|function| function["starts"]["cold"].as_u64()).sum();
    assert_eq!(found_cold, (MODULES * ROUNDS) as u64, "every one of them was cold: {}", usage["total"]);
    let micros = |times: &mut Times, percent| times.percentile(percent).as_secs_f64() * 1e6;
    for (what, times) in [("a warm call", &mut warm), ("a cold call", &mut cold)] {
        let note = format!("p50; p99 {:.0} us, p99.9 {:.0} us", micros(times, 99.0), micros(times, 99.9));
        row(what, micros(times, 50.0), "us", &note);
    }
    let added = micros(&mut cold, 99.0) - micros(&mut warm, 50.0);
    row("p99 of cold calls over the p50 of warm ones", added / 1e3, "ms", "");
    node.kill().await;
}

async fn call(client: &mut Client, request: &str) -> Duration {
    let sent = Instant::now();
    client.exchange(request.as_bytes()).await;
    let took = sent.elapsed();
    assert!(client.is_ok(), "{request}");
    took
}

/// Waits until no function is in memory.
async fn all_cold(control: &mut Client) {
    let began = Instant::now();
    while control.json("/functions?limit=1").await["states"]["cold"] != MODULES {
        assert!(began.elapsed() < Duration::from_secs(60), "functions do not become cold");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The same module with a custom section of its own, so that its digest is another.
fn marked(module: &[u8], number: usize) -> Vec<u8> {
    [module, b"\x00\x0d\x04cold", &(number as u64).to_le_bytes()].concat()
}
