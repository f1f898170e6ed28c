//! The real application on its real data: the week of 1 to 7 January 2013.

use ebb_tests::{Client, Node, examples};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Commands that the week makes; none is refused.
pub(crate) const WEEK: u64 = 18_259;

/// Rows by model and key.
pub(crate) type Models = BTreeMap<String, BTreeMap<String, Value>>;

/// What a shell line prints, in the folder of the example.
fn shell(line: &str) -> String {
    let output =
        std::process::Command::new("sh").args(["-c", line]).current_dir(examples("flights")).output();
    let output = output.expect("sh can be run");
    assert!(output.status.success(), "`{line}`: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// What a program of the example makes of the CSV's first lines.
fn made_of(lines: usize, program: &str) -> String {
    // Reads to the end: who stops before it breaks the pipe.
    shell(&format!("gzip -dc data/2013-01-week1.csv.gz | awk 'NR <= {lines}' | {program}"))
}

/// Lines of the CSV; there are fewer.
const ALL: usize = 1_000_000;

/// What happens to the flights in the CSV's first lines, as lines for `ebb import`.
pub(crate) fn commands_of(lines: usize) -> String {
    made_of(lines, "./to-commands")
}

/// The week as lines for `ebb import`, in a file beside the node's data.
pub(crate) fn week(node: &Node) -> PathBuf {
    let path = node.home().join("week.ndjson");
    std::fs::write(&path, commands_of(ALL)).expect("a file");
    path
}

/// What the CSV itself says, by a computation that shares nothing with the app.
pub(crate) fn expected() -> Models {
    expected_of(ALL)
}

/// The same, of its first lines.
pub(crate) fn expected_of(lines: usize) -> Models {
    let mut models = Models::new();
    for line in made_of(lines, "./expected").lines() {
        let mut row: Map<String, Value> = serde_json::from_str(line).expect("a row a line");
        let text = |row: &Map<String, Value>, name: &str| row[name].as_str().expect("text").to_owned();
        let (model, key) = (text(&row, "model"), text(&row, "key"));
        models.entry(model).or_default().insert(key, row.remove("row").expect("a row"));
    }
    assert_eq!(models.len(), 3);
    models
}

/// What the node has, once its projections have passed this position, if they are to be waited for.
pub(crate) async fn actual(flights: &Client, position: impl Into<Option<u64>>) -> Models {
    let position = position.into();
    let mut models = Models::new();
    for (model, key) in
        [("carrier_delays", "carrier"), ("hourly_departures", "origin_hour"), ("routes", "origin_dest")]
    {
        let rows = match position {
            Some(position) => flights.all_rows(model, position).await,
            None => flights.all_rows_now(model).await,
        };
        let rows = rows.into_iter();
        let by_key =
            rows.map(|row| (row[key].as_str().expect("a key is text").to_owned(), without_nulls(row)));
        models.insert(model.to_owned(), by_key.collect());
    }
    models
}

/// Columns that nobody has added to yet are null; the computation from the CSV says 0.
fn without_nulls(mut row: Value) -> Value {
    for value in row.as_object_mut().expect("a row is an object").values_mut() {
        if value.is_null() {
            *value = json!(0);
        }
    }
    row
}

#[tokio::test]
async fn the_week_becomes_the_read_models_that_the_csv_says_and_a_second_import_doubles_nothing() {
    let node = Node::start_fresh().await;
    let folder = examples("flights");
    node.ebb_control(&["deploy", folder.to_str().unwrap()]).await.ok();
    let week = week(&node);
    let import = ["import", "flight", week.to_str().unwrap(), "--json"];

    let first = node.ebb(&import).await.json();
    assert_eq!(
        (&first["accepted"], &first["refused"], &first["failed"]),
        (&json!(WEEK), &json!(0), &json!(0)),
        "{first}"
    );
    let flights = node.app("flights");
    assert_eq!(actual(&flights, WEEK).await, expected());

    let again = node.ebb(&import).await.json();
    assert_eq!(again["already_done"], json!(WEEK), "every line was answered from memory: {again}");
    let page = flights.get(&format!("/events?after={}", WEEK - 1)).await;
    assert_eq!(page.number("ebb-position"), WEEK, "the log has not grown");
    assert_eq!(actual(&flights, WEEK).await, expected());
}

/// The departures of the week that `what-if` would refuse, from the commands themselves: stream and delay.
fn long_waits(week: &str) -> BTreeMap<String, i64> {
    let commands = week.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let departures = commands.filter(|command| command["command"] == "depart");
    let waits = departures.map(|command| {
        (
            format!("flight-{}", command["id"].as_str().expect("text")),
            command["data"]["delay"].as_i64().expect("a number"),
        )
    });
    waits.filter(|(_, delay)| *delay > 240).collect()
}

#[tokio::test]
async fn a_replay_shows_exactly_what_another_module_would_have_decided_and_nothing_for_the_same_one() {
    let node = Node::start_fresh().await;
    let folder = examples("flights");
    node.ebb_control(&["deploy", folder.to_str().unwrap()]).await.ok();
    let week = week(&node);
    node.ebb(&["import", "flight", week.to_str().unwrap()]).await.ok();
    let before = node.control.get("/apps/flights").await.ok()["position"].clone();

    let same = node.ebb_control(&["replay", "--json"]).await.json();
    assert_eq!(
        (&same["commands"], &same["identical"], &same["different"]),
        (&json!(WEEK), &json!(WEEK), &json!(0)),
        "{same}"
    );

    let module = folder.join("../target/wasm32-wasip2/release/what_if.wasm");
    let what_if = [
        "replay",
        "--module",
        module.to_str().unwrap(),
        "--dir",
        folder.to_str().unwrap(),
        "--json",
        "--details",
        "1000",
    ];
    let report: Value = serde_json::from_str(node.ebb_control(&what_if).await.ended(1)).expect("a report");
    let expected = long_waits(&std::fs::read_to_string(&week).expect("the week"));
    assert_eq!(expected.len(), 18);
    assert_eq!((&report["different"], &report["streams_affected"]), (&json!(18), &json!(18)), "{report}");
    assert_eq!(report["identical"], json!(WEEK - 18));
    let mut differences = BTreeMap::new();
    for difference in report["differences"].as_array().expect("differences") {
        assert_eq!(difference["command"], "depart", "{difference}");
        assert_eq!(difference["recorded"]["events"][0]["type"], "Departed", "{difference}");
        assert_eq!(difference["replayed"]["refused"]["code"], "crew_went_home", "{difference}");
        let stream = difference["stream"].as_str().expect("a stream").to_owned();
        differences.insert(stream, difference["data"]["delay"].as_i64().expect("a number"));
    }
    assert_eq!(differences, expected);

    let shown = node.ebb_control(&what_if[..5]).await;
    let text = shown.ended(1);
    assert!(text.contains("18 different, in 18 streams") && text.contains("crew_went_home"), "{text}");
    assert_eq!(node.control.get("/apps/flights").await.ok()["position"], before, "a replay changes nothing");
    let nowhere = ["replay", "--module", "/nowhere.wasm", "--dir", folder.to_str().unwrap()];
    node.ebb_control(&nowhere).await.ended(2);
}
