//! Projections through wasm: a counter per key, and a row per event, over the same events.

use crate::log;
use crate::node::{Server, repository};
use crate::{RUNS, median, row};
use std::time::Instant;

pub async fn all(ebb: &str, events: u64) {
    println!("\nProjections over {events} events of 4,096 accounts, built again {RUNS} times each");
    let folder = tempfile::tempdir_in(".").expect("a folder");
    let server = Server::ebb(ebb, folder.path()).await;
    server.deploy(ebb, &repository("tests/bench/app")).await;
    server.stop().await;
    log::fill(folder.path(), events).await;
    let (server, started) = (Server::ebb(ebb, folder.path()).await, Instant::now());
    let mut client = crate::http::Client::connect(&server.address).await;
    // Each of them has read it once before anything is measured.
    for model in ["balances", "ledger"] {
        while client.request("GET", &format!("/models/{model}?limit=1"), "").await.number("ebb-position")
            != Some(events)
        {
            assert!(started.elapsed().as_secs() < 300, "{model} does not get there");
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    }
    for (what, projection) in [("a counter per key", "balances"), ("a row per event", "ledger")] {
        let (mut rates, mut walls) = (Vec::new(), Vec::new());
        for _ in 0..RUNS {
            let (cpu, took) = server.rebuild("bench", projection).await;
            rates.push(events as f64 / cpu);
            walls.push(events as f64 / took.as_secs_f64());
        }
        row(
            what,
            median(rates),
            "events/CPU-s",
            &format!("{:.0} events/s, CPU of the whole process", median(walls)),
        );
    }
    server.stop().await;
}
