//! `ebb events`: what is in the log, and what happens next.

use crate::args::Events;
use crate::client::{Path, Server};
use crate::failure::{Exit, Failure};
use crate::output::{Output, Palette, printable};
use crate::sse;
use serde::Deserialize;
use serde_json::Value;

/// Events of a page at most, as the data plane has it.
const PAGE: usize = 1000;

/// A page of CloudEvents.
#[derive(Debug, Deserialize)]
pub(super) struct Page {
    /// The events.
    pub(super) events: Vec<Value>,
    /// Where the next page begins: a position to read after, or a revision to read from. None at the end.
    pub(super) next: Option<u64>,
}

/// Shows events.
pub(crate) async fn run(output: Output, args: Events) -> Result<Exit, Failure> {
    let server = Server::data(&args.plane)?;
    let app = Path::of_app(args.plane.app.as_deref());
    let show = |event: &Value| {
        if output.json { output.json(event) } else { output.line(render(event, output.style())) }
    };
    if args.follow {
        return follow(output, &server, app, &args, show).await;
    }
    let (path, start) = match &args.stream {
        Some(stream) => (app.segment("streams").segment(stream), "from"),
        None => (app.segment("events"), "after"),
    };
    let path = if args.types.is_empty() { path } else { path.parameter("types", args.types.join(",")) };
    let (mut next, mut left) = (args.after, args.limit);
    while left > 0 {
        let mut page_path = path.clone().parameter("limit", left.min(PAGE));
        if let Some(next) = next {
            page_path = page_path.parameter(start, next);
        }
        let page: Page = server.json(server.get(&page_path)).await?;
        page.events.iter().try_for_each(show)?;
        left = left.saturating_sub(page.events.len());
        next = page.next;
        if next.is_none() {
            return Ok(Exit::Done);
        }
    }
    output.note(format_args!("there are more events; show them with --after or a larger --limit"));
    Ok(Exit::Done)
}

/// Follows until it is interrupted: that is how following ends, so it ends well. A connection that is lost is made
/// again, and goes on behind the last event.
async fn follow(
    output: Output,
    server: &Server,
    app: Path,
    args: &Events,
    show: impl Fn(&Value) -> Result<(), Failure>,
) -> Result<Exit, Failure> {
    let path = app.segment("events");
    let path = if args.types.is_empty() { path } else { path.parameter("types", args.types.join(",")) };
    let request = |last: Option<&str>| {
        let path = match (last, args.after) {
            (None, Some(after)) => path.clone().parameter("after", after),
            _ => path.clone(),
        };
        server.get(&path)
    };
    sse::follow(output, server, request, |message| match serde_json::from_str(&message.data) {
        Ok(event) => show(&event),
        Err(error) => Err(Failure::new(format!("{} sent an event that is not JSON: {error}", server.base()))),
    })
    .await
}

/// One event on one line.
pub(super) fn render(event: &Value, style: Palette) -> String {
    let text = |name: &str| event.get(name).and_then(Value::as_str).map_or_else(String::new, printable);
    let number = |name: &str| {
        event.get(name).and_then(Value::as_u64).map_or_else(|| "?".to_owned(), |n| n.to_string())
    };
    let data = match (event.get("data"), event.get("data_base64")) {
        (Some(data), _) => printable(&data.to_string()),
        (None, Some(_)) => "(not JSON)".to_owned(),
        (None, None) => String::new(),
    };
    let time = text("time");
    let clock = time.get(..23).unwrap_or(&time).replace('T', " ");
    format!(
        "{}  {}  {}  {}  {data}",
        style.faint(format_args!("{:>8}  {clock}", number("position"))),
        style.strong(text("subject")),
        style.faint(format_args!("#{}", number("sequence"))),
        style.good(text("type"))
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line() {
        let event = serde_json::json!({
            "specversion": "1.0", "type": "Deposited", "subject": "account-1", "time": "2013-01-01T07:00:00.000001Z",
            "position": 42, "sequence": 1, "data": {"amount": 500}
        });
        insta::assert_snapshot!(
            render(&event, Palette(false)),
            @r#"      42  2013-01-01 07:00:00.000  account-1  #1  Deposited  {"amount":500}"#
        );
    }
}
