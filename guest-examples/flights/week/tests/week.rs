//! The week of 1 to 7 January 2013, from the data set's CSV through the aggregate and the projections, natively. What comes
//! out must be what `expected` computes straight from the CSV.

use ebbtide::test::{Given, Projected, given, project};
use flight::State;
use flights_events::FlightEvent;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::process::Command;

/// What a shell line in the folder of the application prints.
fn run(line: &str) -> String {
    // Asked when it runs: clones may share a target folder, and with it a test that another one compiled.
    let folder = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it") + "/..";
    let output = Command::new("sh").args(["-c", line]).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "`{line}` failed: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn commands() -> impl Iterator<Item = (String, String, Value)> {
    let lines = run("gzip -dc data/2013-01-week1.csv.gz | ./to-commands");
    let parse = |line: &str| {
        let command: Value = serde_json::from_str(line).unwrap();
        let text = |name: &str| command[name].as_str().unwrap().to_owned();
        (text("id"), text("command"), command["data"].clone())
    };
    lines.lines().map(parse).collect::<Vec<_>>().into_iter()
}

/// The events of the week; no command may be refused.
fn events() -> Vec<(String, FlightEvent)> {
    let mut flights = HashMap::<String, Given<State>>::new();
    let mut events = Vec::new();
    for (id, command, data) in commands() {
        let flight = flights.remove(&id).unwrap_or_else(|| given::<State>([]));
        let outcome = flight.when_json(&command, data);
        let decided =
            outcome.decided().unwrap_or_else(|refusal| panic!("`{command}` of {id} was refused: {refusal}"));
        events.extend(decided.into_iter().map(|event| (format!("flight-{id}"), event)));
        flights.insert(id, outcome.settle());
    }
    events
}

/// The rows of a model with its key column, which the platform fills in.
fn rows(projected: &Projected, model: &str, key_column: &str) -> BTreeMap<String, Value> {
    let with_key = |(key, mut row): (String, Value)| {
        row[key_column] = json!(key);
        (key, row)
    };
    projected.rows(model).into_iter().map(with_key).collect()
}

#[test]
fn every_flight_of_the_week_is_there_once() {
    let of = |name: &str| {
        commands().filter(|(_, command, _)| command == name).map(|(id, ..)| id).collect::<Vec<_>>()
    };
    let scheduled = of("schedule");
    assert_eq!(
        (scheduled.len(), of("cancel").len(), of("depart").len(), of("arrive").len()),
        (6_099, 35, 6_064, 6_061)
    );
    assert_eq!(scheduled.iter().collect::<BTreeSet<_>>().len(), 6_099, "keys are unique");
}

#[test]
fn the_read_models_are_what_the_csv_says() {
    let mut expected = BTreeMap::<String, BTreeMap<String, Value>>::new();
    for line in run("gzip -dc data/2013-01-week1.csv.gz | ./expected").lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        let text = |name: &str| row[name].as_str().unwrap().to_owned();
        expected.entry(text("model")).or_default().insert(text("key"), row["row"].clone());
    }
    assert_eq!(expected.len(), 3);

    let events = events();
    let delays = project::<delays::Delays>(events.iter().map(|(stream, event)| (stream, event)));
    assert_eq!(rows(&delays, "carrier_delays", "carrier"), expected["carrier_delays"]);
    let departures = project::<departures::Departures>(events.iter().map(|(stream, event)| (stream, event)));
    assert_eq!(rows(&departures, "hourly_departures", "origin_hour"), expected["hourly_departures"]);
    let routes = project::<routes::Routes>(events.iter().map(|(stream, event)| (stream, event)));
    assert_eq!(rows(&routes, "routes", "origin_dest"), expected["routes"]);
}
