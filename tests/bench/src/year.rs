//! The year of flights: reads and live readers while it is imported, rows that are exact afterwards, then projections,
//! opening and replay over what it left.

use crate::http::{Client, Times};
use crate::node::{Server, repository, run};
use crate::subscriber::{Seen, subscribe};
use crate::{cpu_seconds, row};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const SUBSCRIBERS: usize = 4;
/// One of them comes back by `Last-Event-ID` after so many events.
const BREAKS: u64 = 20_000;
/// Readers by key, and how often each of them reads.
const READERS: usize = 4;
const PACE: Duration = Duration::from_millis(8);
const IDLE: Duration = Duration::from_secs(10);
const CARRIERS: [&str; 8] = ["UA", "B6", "EV", "DL", "AA", "MQ", "US", "WN"];
const MODELS: [(&str, &str); 3] =
    [("carrier_delays", "carrier"), ("hourly_departures", "origin_hour"), ("routes", "origin_dest")];

pub async fn all(ebb: &str, commands: &str) {
    let lines = std::fs::read_to_string(commands)
        .expect("the commands: guest-examples/flights/to-commands makes them");
    let count = lines.lines().count();
    println!(
        "\nThe year of flights: {count} commands by `ebb import`, {SUBSCRIBERS} live readers, {READERS} readers by key"
    );
    let folder = tempfile::tempdir_in(".").expect("a folder");
    let data = folder.path().join("data");
    let server = Server::ebb(ebb, &data).await;
    server.deploy(ebb, &repository("guest-examples/flights")).await;

    let end = Arc::new(AtomicU64::new(u64::MAX));
    let at: Vec<Arc<AtomicU64>> = (0..SUBSCRIBERS).map(|_| Arc::default()).collect();
    let subscribers: Vec<_> = (0..SUBSCRIBERS)
        .map(|number| {
            let breaks = (number == 0).then_some(BREAKS);
            tokio::spawn(subscribe(server.address.clone(), breaks, end.clone(), at[number].clone()))
        })
        .collect();

    // Rows to read, before anything is measured. The import sends these lines again, and they are answered again.
    let head = folder.path().join("head.ndjson");
    let first: String = lines.split_inclusive('\n').take(20_000).collect();
    std::fs::write(&head, first).expect("a file");
    import(ebb, &server, head.to_str().expect("UTF-8")).await;
    let position = passed(&server).await;
    assert_eq!(position, 20_000, "each of these commands has one event");

    let idle = reads(&server, &at[1], tokio::time::sleep(IDLE)).await.0;
    idle.show("nothing else going on");
    let (cpu, started) = (cpu_seconds(server.pid), Instant::now());
    let (busy, said) = reads(&server, &at[1], import(ebb, &server, commands)).await;
    let (took, cpu) = (started.elapsed().as_secs_f64(), cpu_seconds(server.pid) - cpu);
    busy.show("during the import");
    row(
        "import",
        count as f64 / took,
        "commands/s",
        &format!(
            "{took:.1} s, {:.1} us CPU of the server each, live readers and projections included; {}",
            cpu * 1e6 / count as f64,
            said.trim()
        ),
    );

    let last = passed(&server).await;
    end.store(last, Ordering::Release);
    let mut seen = Vec::new();
    for subscriber in subscribers {
        let within = tokio::time::timeout(Duration::from_secs(60), subscriber).await;
        seen.push(within.expect("live readers are behind by a minute").expect("a subscriber"));
    }
    assert!(seen.iter().all(|one| *one == seen[0]), "live readers have seen different things: {seen:?}");
    let Seen { events, digest } = seen[0];
    row(
        "live readers, each event once and in order",
        events as f64,
        "events",
        &format!(
            "each of {SUBSCRIBERS} of them, digest {digest:016x}; they had all of it {:.1} s after the import began",
            started.elapsed().as_secs_f64()
        ),
    );
    exact(&server, &lines).await;
    row(
        "memory of the server, at most",
        server.memory("VmHWM"),
        "MiB",
        &format!("{:.1} MiB now", server.memory("VmRSS")),
    );

    for projection in ["delays", "departures", "routes"] {
        let (cpu, took) = server.rebuild("flights", projection).await;
        row(
            &format!("projection {projection}, built again"),
            last as f64 / cpu,
            "events/CPU-s",
            &format!("{:.1} s", took.as_secs_f64()),
        );
    }
    server.kill().await;
    let server = Server::ebb(ebb, &data).await;
    let (opened, started) = (server.ready, Instant::now());
    assert_eq!(passed(&server).await, last);
    row(
        "ready again after kill -9",
        opened.as_secs_f64() * 1e3,
        "ms",
        &format!("first read answered {:.1} ms later", started.elapsed().as_secs_f64() * 1e3),
    );
    for isolation in ["shared", "fresh"] {
        let (cpu, started) = (cpu_seconds(server.pid), Instant::now());
        let control = format!("http://{}", server.control);
        let report = run(ebb, &["replay", "--json", "--isolation", isolation, "--server", &control]).await;
        let (took, cpu) = (started.elapsed().as_secs_f64(), cpu_seconds(server.pid) - cpu);
        row(
            &format!("replay of {count} commands, {isolation} instances"),
            took,
            "s",
            &format!("{cpu:.1} s CPU; {} bytes of report", report.len()),
        );
    }
    server.stop().await;
}

async fn import(ebb: &str, server: &Server, file: &str) -> String {
    run(ebb, &["import", "flight", file, "--server", &format!("http://{}", server.address)]).await
}

/// Waits until all projections have passed the log's end, and tells its position.
async fn passed(server: &Server) -> u64 {
    let mut client = Client::connect(&server.address).await;
    let mut end = 0;
    loop {
        let mut behind = false;
        for (model, _) in MODELS {
            let answer = client.request("GET", &format!("/models/{model}?limit=1"), "").await;
            assert_eq!(answer.status, 200, "{}", answer.body);
            let (position, lag) = (answer.number("ebb-position"), answer.number("ebb-lag"));
            behind |= lag != Some(0);
            end = end.max(position.unwrap_or(0) + lag.unwrap_or(0));
        }
        if !behind {
            return end;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Reads by key: as it is, and not before what a live reader has seen last.
#[derive(Default)]
struct Reads {
    plain: Times,
    after: Times,
    late: u64,
}

impl Reads {
    fn show(mut self, when: &str) {
        let late = self.late;
        for (what, times) in
            [("by key", &mut self.plain), ("by key, Ebb-After what was just seen", &mut self.after)]
        {
            let (p50, p99) = (times.percentile(50.0), times.percentile(99.0));
            let note = format!(
                "us p50; p99 {:.0} us, at most {:.0} us, {} reads, {late} of all answered 503",
                p99.as_secs_f64() * 1e6,
                times.percentile(100.0).as_secs_f64() * 1e6,
                times.len()
            );
            row(&format!("{what}, {when}"), p50.as_secs_f64() * 1e6, "", &note);
        }
    }
}

/// Reads at a fixed pace while something else goes on. A read's time counts from when it was due, so that a stall meets all
/// the reads that it delays.
async fn reads<T>(server: &Server, live: &Arc<AtomicU64>, meanwhile: impl Future<Output = T>) -> (Reads, T) {
    let done = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..READERS)
        .map(|number| tokio::spawn(reader(server.address.clone(), number, live.clone(), done.clone())))
        .collect();
    let result = meanwhile.await;
    done.store(true, Ordering::Release);
    let mut all = Reads::default();
    for reader in readers {
        let Reads { plain, after, late } = reader.await.expect("a reader");
        all.plain.extend(plain);
        all.after.extend(after);
        all.late += late;
    }
    (all, result)
}

async fn reader(address: String, number: usize, live: Arc<AtomicU64>, done: Arc<AtomicBool>) -> Reads {
    let mut client = Client::connect(&address).await;
    let mut reads = Reads::default();
    let mut known: HashMap<&str, (u64, u64)> = HashMap::new();
    let mut due = Instant::now() + PACE * number as u32 / READERS as u32;
    for read in number.. {
        if done.load(Ordering::Acquire) {
            break;
        }
        tokio::time::sleep_until(due.into()).await;
        let carrier = CARRIERS[read % CARRIERS.len()];
        let seen = live.load(Ordering::Acquire);
        let after = read / CARRIERS.len() % 2 == 1;
        let headers = if after { format!("ebb-after: {seen}\r\n") } else { String::new() };
        let answer =
            client.request_with("GET", &format!("/models/carrier_delays/{carrier}"), &headers, "").await;
        let times = if after { &mut reads.after } else { &mut reads.plain };
        times.push(due.elapsed());
        due += PACE;
        if answer.status == 503 && after {
            reads.late += 1;
            continue;
        }
        assert_eq!(answer.status, 200, "{}", answer.body);
        // Neither the mark nor a count that only grows ever goes back, and nothing older than what was asked for is given.
        let position = answer.number("ebb-position").expect("Ebb-Position");
        let row: Value = serde_json::from_str(&answer.body).expect("a row");
        let flights = row["flights"].as_u64().expect("a count");
        assert!(!after || position >= seen, "Ebb-After {seen} was answered from {position}");
        let before = known.insert(carrier, (position, flights)).unwrap_or_default();
        assert!(
            before.0 <= position && before.1 <= flights,
            "{carrier} went back from {before:?} to {:?}",
            (position, flights)
        );
    }
    reads
}

/// Compares all rows with what the commands add up to, computed here.
async fn exact(server: &Server, commands: &str) {
    let expected = expected(commands);
    let mut client = Client::connect(&server.address).await;
    for (model, key) in MODELS {
        let mut rows = BTreeMap::new();
        let mut path = format!("/models/{model}?limit=1000");
        loop {
            let mut page = client.json(&path).await;
            for row in page["items"].as_array_mut().expect("a list") {
                rows.insert(row[key].as_str().expect("a key").to_owned(), row.take());
            }
            let Some(next) = page["next"].as_str() else { break };
            path = format!("/models/{model}?limit=1000&cursor={next}");
        }
        assert_eq!(rows, expected[model], "{model} is not what the commands add up to");
        row(&format!("rows of {model}, all exact"), rows.len() as f64, "rows", "");
    }
}

type Rows = BTreeMap<String, Value>;

fn expected(commands: &str) -> HashMap<&'static str, Rows> {
    let mut models: HashMap<&str, Rows> = MODELS.iter().map(|(model, _)| (*model, Rows::new())).collect();
    let mut schedule: HashMap<String, Value> = HashMap::new();
    for line in commands.lines() {
        let mut line: Value = serde_json::from_str(line).expect("a command");
        let (id, data) = (line["id"].as_str().expect("an id").to_owned(), line["data"].take());
        let command = line["command"].as_str().expect("a name");
        if command == "schedule" {
            schedule.insert(id.clone(), data.clone());
        }
        let flight = &schedule[&id];
        let text = |field: &str| flight[field].as_str().expect("a text").to_owned();
        let (carrier, origin, dest, hour) = (text("carrier"), text("origin"), text("dest"), &flight["hour"]);
        let add = |row: &mut Value, column: &str, delta: i64| {
            row[column] = json!(row[column].as_i64().unwrap_or(0) + delta);
        };
        let mut row = |model: &'static str, key: String, empty: Value, adds: &[(&str, i64)]| {
            let row = models.get_mut(model).expect("a model").entry(key).or_insert(empty);
            adds.iter().for_each(|(column, delta)| add(row, column, *delta));
        };
        let of_carrier =
            json!({ "carrier": carrier, "flights": 0, "cancelled": 0, "arrived": 0, "arr_delay_total": 0 });
        let route = format!("{origin}-{dest}");
        let of_route = json!({ "origin_dest": route, "origin": origin, "dest": dest, "flights": 0, "air_time_total": 0, "air_time_count": 0 });
        match command {
            "schedule" => row("carrier_delays", carrier, of_carrier, &[("flights", 1)]),
            "cancel" => row("carrier_delays", carrier, of_carrier, &[("cancelled", 1)]),
            "arrive" => {
                let delay = data["delay"].as_i64().unwrap_or(0);
                row("carrier_delays", carrier, of_carrier, &[("arrived", 1), ("arr_delay_total", delay)]);
                if let Some(minutes) = data["air_time"].as_i64() {
                    row("routes", route, of_route, &[("air_time_total", minutes), ("air_time_count", 1)]);
                }
            }
            _ => {
                let late = i64::from(data["delay"].as_i64().expect("a delay") > 0);
                let key = format!("{origin}-{hour}");
                let of_hour = json!({ "origin_hour": key, "origin": origin, "hour": hour, "departures": 0, "delayed": 0 });
                row("hourly_departures", key, of_hour, &[("departures", 1), ("delayed", late)]);
                row("routes", route, of_route, &[("flights", 1)]);
            }
        }
    }
    models
}
