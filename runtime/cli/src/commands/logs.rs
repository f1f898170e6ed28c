//! `ebb logs`: what a node and its modules log.

use crate::args::{Level, Logs};
use crate::client::{Path, Server};
use crate::failure::{Exit, Failure};
use crate::output::{Output, Palette, printable};
use crate::sse;
use serde_json::{Map, Value};

/// Shows what the node remembers, and then what comes.
pub(crate) async fn run(output: Output, args: Logs) -> Result<Exit, Failure> {
    let server = Server::control(&args.plane)?;
    let level = match args.level {
        Level::Trace => "trace",
        Level::Debug => "debug",
        Level::Info => "info",
        Level::Warn => "warn",
        Level::Error => "error",
    };
    let path = Path::new().segment("logs").parameter("level", level);
    let path = match &args.app {
        Some(app) => path.parameter("app", app),
        None => path,
    };
    let show = |line: &Value| {
        if output.json { output.json(line) } else { output.line(render(line, output.style())) }
    };
    if args.no_follow {
        let lines: Value = server.json(server.get(&path)).await?;
        lines.get("lines").and_then(Value::as_array).into_iter().flatten().try_for_each(show)?;
        return Ok(Exit::Done);
    }
    sse::follow(
        output,
        &server,
        |_| server.get(&path),
        |message| serde_json::from_str(&message.data).map_or(Ok(()), |line| show(&line)),
    )
    .await
}

/// One line: time, level, where from, what, and the fields that belong to it.
fn render(line: &Value, style: Palette) -> String {
    let text = |name: &str| line.get(name).and_then(Value::as_str).map_or_else(String::new, printable);
    let time = text("time");
    let level = text("level");
    let level = match level.as_str() {
        "ERROR" => style.error(format_args!("{level:5}")),
        "WARN" => style.warning(format_args!("{level:5}")),
        _ => style.faint(format_args!("{level:5}")),
    };
    let field = |(name, value): (&String, &Value)| {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        format!("  {}={}", style.faint(printable(name)), printable(&value))
    };
    let empty = Map::new();
    let fields: String =
        line.get("fields").and_then(Value::as_object).unwrap_or(&empty).iter().map(field).collect();
    let clock = time.get(11..23).unwrap_or(&time);
    format!("{}  {level}  {}  {}{fields}", style.faint(clock), style.faint(text("target")), text("message"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_line_shows_its_fields_behind_the_message() {
        let line = serde_json::json!({
            "id": 7, "time": "2013-01-01T07:00:00.000001Z", "level": "WARN", "target": "guest",
            "message": "low balance", "fields": { "app": "bank", "function": "aggregate.account" }
        });
        insta::assert_snapshot!(
            render(&line, Palette(false)),
            @"07:00:00.000  WARN   guest  low balance  app=bank  function=aggregate.account"
        );
    }
}
