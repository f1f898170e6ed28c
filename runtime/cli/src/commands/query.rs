//! `ebb query`: a read model, by key or by conditions.

use crate::args;
use crate::client::{Path, Server};
use crate::failure::{Exit, Failure};
use crate::output::{Align, Output, Table};
use reqwest::header::HeaderMap;
use serde::Deserialize;
use serde_json::{Map, Value};

/// Rows of a page at most, as the data plane has it.
const PAGE: usize = 1000;

/// Rows where nobody says.
const DEFAULT_LIMIT: usize = 100;

type Row = Map<String, Value>;

#[derive(Debug, Deserialize)]
struct Page {
    items: Vec<Row>,
    next: Option<String>,
}

/// Asks, and shows.
pub(crate) async fn run(output: Output, args: args::Query) -> Result<Exit, Failure> {
    let server = Server::data(&args.plane)?;
    let path = Path::of_app(args.plane.app.as_deref()).segment("models").segment(&args.model);
    let ask = |path: &Path| {
        let mut request = server.get(path);
        if let Some(position) = args.after {
            request = request.header("ebb-after", position);
        }
        if let Some(seconds) = args.wait {
            request = request.header("ebb-wait", format!("{seconds}s"));
        }
        request
    };
    if let Some(key) = &args.key {
        let response = server.send(ask(&path.segment(key))).await?;
        freshness(output, response.headers());
        let row: Row = response.json().await.map_err(|error| server.broken_off(&error))?;
        if output.json {
            output.json(&row)?;
        } else {
            output.line(render_row(&row, output))?;
        }
        return Ok(Exit::Done);
    }

    let path = args.conditions.iter().try_fold(path, |path, condition| {
        let (name, value) = parse_condition(condition)?;
        Ok::<_, Failure>(path.parameter(&name, value))
    })?;
    let path = if args.order.is_empty() { path } else { path.parameter("order", args.order.join(",")) };
    let wanted = match args.limit.unwrap_or(DEFAULT_LIMIT) {
        0 => usize::MAX,
        limit => limit,
    };
    let mut rows: Vec<Row> = Vec::new();
    let mut cursor: Option<String> = None;
    let more = loop {
        let page_path = path.clone().parameter("limit", (wanted - rows.len()).min(PAGE));
        let page_path = match &cursor {
            Some(cursor) => page_path.parameter("cursor", cursor),
            None => page_path,
        };
        let response = server.send(ask(&page_path)).await?;
        if cursor.is_none() {
            freshness(output, response.headers());
        }
        let page: Page = response.json().await.map_err(|error| server.broken_off(&error))?;
        if output.json {
            // A row a line, as it comes: the whole of a large model need not fit into memory.
            page.items.iter().try_for_each(|row| output.json(row))?;
        }
        let count = page.items.len();
        if output.json {
            rows.resize(rows.len() + count, Row::new());
        } else {
            rows.extend(page.items);
        }
        match page.next {
            Some(next) if rows.len() < wanted && count > 0 => cursor = Some(next),
            next => break next.is_some(),
        }
    };
    if output.json {
        return Ok(Exit::Done);
    }
    if rows.is_empty() {
        output.note("no rows");
        return Ok(Exit::Done);
    }
    output.line(render_rows(&rows, output))?;
    if more {
        output.note(format_args!("there are more rows; show all with --limit 0"));
    }
    Ok(Exit::Done)
}

/// Says when rows are not all that the log would make of them.
fn freshness(output: Output, headers: &HeaderMap) {
    let number =
        |name: &str| headers.get(name)?.to_str().ok()?.parse::<u64>().ok().filter(|number| *number > 0);
    if let Some(lag) = number("ebb-lag") {
        output.note(format_args!(
            "{} the model is {lag} events behind the log",
            output.note_style().warning("note:")
        ));
    }
    if let Some(parked) = number("ebb-parked") {
        output.note(format_args!(
            "{} {parked} keys are parked: their rows lack events; see `ebb status`",
            output.note_style().warning("note:")
        ));
    }
}

/// `column>=5` as a parameter of the data plane: `column.gte`, `5`.
fn parse_condition(text: &str) -> Result<(String, &str), Failure> {
    const OPERATORS: [(&str, &str); 6] =
        [("!=", "ne"), (">=", "gte"), ("<=", "lte"), ("=", "eq"), (">", "gt"), ("<", "lt")];
    let at = text.find(['!', '=', '<', '>']).unwrap_or(text.len());
    let (column, rest) = text.split_at(at);
    let operator = OPERATORS.iter().find_map(|(sign, name)| Some((*name, rest.strip_prefix(sign)?)));
    match (column.trim(), operator) {
        ("", _) | (_, None) => Err(Failure::new(format!("`{text}` is not a condition"))
            .hint("write column=value, or !=, >, >=, <, <= in the place of =; =null asks for empty columns")),
        (column, Some((operator @ ("eq" | "ne"), value))) if value.trim() == "null" => {
            Ok((format!("{column}.is"), if operator == "eq" { "null" } else { "not-null" }))
        }
        (column, Some((operator, value))) => Ok((format!("{column}.{operator}"), value.trim())),
    }
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

pub(super) fn render_row(row: &Row, output: Output) -> String {
    let width = row.keys().map(String::len).max().unwrap_or(0);
    let line = |(name, value): (&String, &Value)| {
        format!(
            "{}  {}",
            output.style().strong(format_args!("{name:width$}")),
            crate::output::printable(&cell(value))
        )
    };
    row.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn render_rows(rows: &[Row], output: Output) -> String {
    // Columns are the same in every row; a server that leaves empty ones out is shown all the same.
    let mut columns: Vec<&str> = Vec::new();
    for name in rows.iter().flat_map(Map::keys) {
        if !columns.contains(&name.as_str()) {
            columns.push(name);
        }
    }
    let align = |name: &&str| {
        let number =
            rows.iter().filter_map(|row| row.get(*name)).all(|value| value.is_number() || value.is_null());
        if number { Align::Right } else { Align::Left }
    };
    let mut table = Table::new(columns.iter().map(|name| (*name, align(name))));
    for row in rows {
        table.row(columns.iter().map(|name| row.get(*name).map_or_else(String::new, cell)));
    }
    table.render(output.style())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_written_as_people_write_them() {
        let parsed = |text| parse_condition(text).map(|(name, value)| format!("{name}={value}")).unwrap();
        assert_eq!(parsed("carrier=UA"), "carrier.eq=UA");
        assert_eq!(parsed("flights >= 100"), "flights.gte=100");
        assert_eq!(parsed("delay!=0"), "delay.ne=0");
        assert_eq!(parsed("note=a=b>c"), "note.eq=a=b>c", "only the first operator counts");
        assert_eq!(parsed("late=null"), "late.is=null");
        assert_eq!(parsed("late!=null"), "late.is=not-null");
        for wrong in ["carrier", "=5", "a!5"] {
            assert!(parse_condition(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn numbers_stand_right_and_text_stands_left() {
        let row = |text: &str| serde_json::from_str(text).unwrap();
        let rows = [
            row(r#"{"carrier":"UA","flights":1021,"note":null}"#),
            row(r#"{"carrier":"B6","flights":7,"note":"x"}"#),
        ];
        insta::assert_snapshot!(render_rows(&rows, Output::plain()), @r"
        carrier  flights  note
        UA          1021
        B6             7  x
        ");
    }
}
