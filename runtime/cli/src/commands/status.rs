//! `ebb status`: what a node has, and how it does.

use crate::args::Status;
use crate::client::{Path, Server};
use crate::failure::{Exit, Failure};
use crate::output::{Align, Grouped, Output, Palette, Table};
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Debug, Deserialize)]
struct Apps {
    apps: Vec<App>,
}

#[derive(Debug, Deserialize)]
struct App {
    app: String,
}

/// The app that is meant where none is named.
///
/// # Errors
/// None is deployed, or several are.
pub(super) async fn only_app(server: &Server) -> Result<String, Failure> {
    let Apps { mut apps } = server.json(server.get(&Path::new().segment("apps"))).await?;
    match (apps.pop(), apps.is_empty()) {
        (Some(only), true) => Ok(only.app),
        (None, _) => {
            Err(Failure::no("no app is deployed on this node").hint("deploy one with `ebb deploy DIR`"))
        }
        (Some(last), false) => {
            let mut names: Vec<String> = apps.into_iter().map(|app| app.app).collect();
            names.push(last.app);
            Err(Failure::new(format!("the node has several apps: {}", names.join(", ")))
                .hint("say which with --app"))
        }
    }
}

/// Asks for apps, projections and functions.
pub(crate) async fn run(output: Output, args: Status) -> Result<Exit, Failure> {
    let server = Server::control(&args.plane)?;
    let ask = async |what: &str| {
        let answer: Value = server.json(server.get(&Path::new().segment(what))).await?;
        Ok::<_, Failure>(answer.get(what).cloned().unwrap_or_default())
    };
    let (apps, projections, functions, kafka) =
        tokio::try_join!(ask("apps"), ask("projections"), ask("functions"), ask("kafka"))?;
    if output.json {
        output.json(
            &json!({ "apps": apps, "projections": projections, "functions": functions, "kafka": kafka }),
        )?;
    } else {
        output.line(render(&apps, &projections, &functions, &kafka, output.style()))?;
    }
    Ok(Exit::Done)
}

/// A column of a table: its heading, and the member of each entry that it shows.
type Column = (&'static str, &'static str, Align);

const APPS: &[Column] = &[
    ("app", "/app", Align::Left),
    ("state", "/state", Align::Left),
    ("deployment", "/deployment/number", Align::Right),
    ("deployed at", "/deployment/deployed_at", Align::Left),
    ("position", "/position", Align::Right),
    ("hosts", "/hosts", Align::Left),
    ("not open because", "/unavailable", Align::Left),
];

const PROJECTIONS: &[Column] = &[
    ("projection", "/projection", Align::Left),
    ("app", "/app", Align::Left),
    ("state", "/state", Align::Left),
    ("position", "/mark", Align::Right),
    ("lag", "/lag", Align::Right),
    ("parked", "/parked", Align::Right),
    ("successor", "/building/state", Align::Left),
    ("at", "/building/mark", Align::Right),
    ("reason", "/reason", Align::Left),
    ("last error", "/last_error", Align::Left),
];

const FUNCTIONS: &[Column] = &[
    ("function", "/function", Align::Left),
    ("app", "/app", Align::Left),
    ("state", "/state", Align::Left),
    ("instances", "/instances", Align::Right),
    ("calls", "/calls", Align::Right),
    ("errors", "/errors", Align::Right),
];

const RELAYS: &[Column] = &[
    ("relay of", "/app", Align::Left),
    ("state", "/relay/state", Align::Left),
    ("position", "/relay/mark", Align::Right),
    ("lag", "/relay/lag", Align::Right),
    ("error", "/relay/error", Align::Left),
    ("reason", "/relay/reason", Align::Left),
];

const GROUPS: &[Column] = &[
    ("group", "/group", Align::Left),
    ("app", "/app", Align::Left),
    ("topics", "/topics", Align::Left),
    ("into", "/projection", Align::Left),
    ("state", "/state", Align::Left),
    ("records", "/records", Align::Right),
    ("lag", "/lag", Align::Right),
    ("error", "/error", Align::Left),
    ("reason", "/reason", Align::Left),
];

/// Relays, and consumer groups, each with its app.
fn kafka_tables(kafka: &Value) -> (Value, Value) {
    let apps = kafka.as_array().into_iter().flatten();
    let relays = apps.clone().filter(|app| app["relay"].is_object()).cloned().collect();
    let groups = apps.flat_map(|app| {
        let groups = app["groups"].as_array().into_iter().flatten();
        groups.map(|group| {
            let mut group = group.clone();
            group["app"] = app["app"].clone();
            group
        })
    });
    (relays, groups.collect())
}

fn render(apps: &Value, projections: &Value, functions: &Value, kafka: &Value, style: Palette) -> String {
    if apps.as_array().is_none_or(Vec::is_empty) {
        return "no app is deployed; deploy one with `ebb deploy DIR`".to_owned();
    }
    let (relays, groups) = kafka_tables(kafka);
    let parts = [
        (apps, APPS),
        (projections, PROJECTIONS),
        (functions, FUNCTIONS),
        (&relays, RELAYS),
        (&groups, GROUPS),
    ];
    let tables = parts.into_iter().filter_map(|(entries, columns)| table(entries, columns));
    tables.map(|table| table.render(style)).collect::<Vec<_>>().join("\n\n")
}

/// A table of those columns that any entry has.
fn table(entries: &Value, columns: &[Column]) -> Option<Table> {
    let entries = entries.as_array().filter(|entries| !entries.is_empty())?;
    let has =
        |path: &str| entries.iter().any(|entry| entry.pointer(path).is_some_and(|value| !value.is_null()));
    let columns: Vec<_> = columns.iter().filter(|(_, path, _)| has(path)).collect();
    let mut table = Table::new(columns.iter().map(|(heading, _, align)| (*heading, *align)));
    for entry in entries {
        table.row(columns.iter().map(|(_, path, _)| entry.pointer(path).map_or_else(String::new, cell)));
    }
    Some(table)
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Number(number) => {
            number.as_u64().map_or_else(|| number.to_string(), |number| Grouped(number).to_string())
        }
        Value::String(text) => match (text.get(..19), text.ends_with('Z')) {
            // A time: to the second is enough here.
            (Some(second), true) if second.as_bytes()[10] == b'T' => second.replace('T', " "),
            _ => text.clone(),
        },
        Value::Array(values) => values.iter().map(cell).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_shows_a_table_for_each_kind_and_leaves_out_what_nobody_has() {
        let apps = json!([{
            "app": "bank", "state": "idle", "hosts": [], "position": 1234,
            "deployment": { "number": 3, "deployed_at": "2013-01-01T07:00:00.000001Z" }
        }]);
        let projections = json!([{
            "app": "bank", "projection": "balances", "building": null,
            "state": "catching-up", "mark": 1230, "lag": 4, "parked": 0, "last_error": null
        }]);
        insta::assert_snapshot!(render(&apps, &projections, &json!([]), &json!([]), Palette(false)), @r"
        app   state  deployment  deployed at          position  hosts
        bank  idle            3  2013-01-01 07:00:00     1,234

        projection  app   state        position  lag  parked
        balances    bank  catching-up     1,230    4       0
        ");
    }
}
