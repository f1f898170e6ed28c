//! Dependencies point one way: `domain <- app`, `domain <- store | engine`, and only `server` knows them all.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// What each crate may know of ours; whoever is not here may know everything.
const MAY_KNOW: [(&str, &[&str]); 6] = [
    ("ebb-faults", &[]),
    ("ebb-domain", &[]),
    ("ebb-app", &["ebb-domain", "ebb-faults"]),
    ("ebb-store", &["ebb-domain", "ebb-faults"]),
    ("ebb-bus", &["ebb-domain", "ebb-faults"]),
    ("ebb-engine", &["ebb-domain", "ebb-faults"]),
];

/// Crates that one crate alone may name.
const FENCED: [(&str, &str); 5] = [
    ("rdkafka", "ebb-bus"),
    ("wasmtime", "ebb-engine"),
    ("sled", "ebb-store"),
    ("rusqlite", "ebb-store"),
    ("hyper-util", "ebb-server"),
];

#[test]
fn dependencies_point_one_way() {
    let graph = normal_dependencies();
    assert!(graph.contains_key("ebb-domain"), "the graph was read: {:?}", graph.keys());
    for (name, known) in MAY_KNOW {
        let Some(dependencies) = graph.get(name) else { continue };
        let ours: BTreeSet<_> = dependencies.iter().filter(|name| name.starts_with("ebb-")).collect();
        let wrong: Vec<_> = ours.iter().filter(|name| !known.contains(&name.as_str())).collect();
        assert!(wrong.is_empty(), "{name} must not depend on {wrong:?}");
    }
}

#[test]
fn heavy_libraries_are_fenced_off() {
    let graph = normal_dependencies();
    for (library, home) in FENCED {
        assert!(graph[home].contains(library), "{home} uses {library}");
        for (name, dependencies) in &graph {
            // The binary imports over raw connections: the client half of the same library.
            let imports = library == "hyper-util" && name == "ebb";
            // The simulation hands the store an index that loses what a crash would take.
            let simulates = library == "sled" && name == "ebb-sim";
            // The fixture is a client of the broker, like the foreign ones.
            let produces = library == "rdkafka" && name == "ebb-tests";
            let may = name == home || imports || simulates || produces;
            assert!(may || !dependencies.contains(library), "{name} must not depend on {library}");
        }
    }
}

/// What each crate of the workspace depends on, without what only its tests and builds need.
fn normal_dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--offline", "--no-deps", "--format-version", "1", "--manifest-path", manifest])
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON");
    let packages = metadata["packages"].as_array().expect("packages").iter();
    packages
        .map(|package| {
            let dependencies = package["dependencies"].as_array().expect("dependencies").iter();
            let normal = dependencies.filter(|dependency| dependency["kind"].is_null());
            let names = normal.map(|dependency| text(&dependency["name"])).collect();
            (text(&package["name"]), names)
        })
        .collect()
}

fn text(value: &Value) -> String {
    value.as_str().expect("text").to_owned()
}
