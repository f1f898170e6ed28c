//! `ebb command`: one command, and what became of it.

use crate::args::SendCommand;
use crate::client::{Path, Server, json_body};
use crate::failure::{Exit, Failure};
use crate::output::{Output, Palette, printable};
use reqwest::Method;
use serde::Deserialize;
use serde_json::Value;
use std::io::Read as _;

/// An accepted command, as the data plane answers it.
#[derive(Debug, Deserialize)]
struct Reply {
    stream: String,
    revision: Option<u64>,
    position: Option<u64>,
    events: Vec<Event>,
}

#[derive(Debug, Deserialize)]
struct Event {
    #[serde(rename = "type")]
    event_type: String,
    revision: u64,
    position: u64,
    data: Value,
}

/// Sends the command.
pub(crate) async fn run(output: Output, args: SendCommand) -> Result<Exit, Failure> {
    let data = read_data(args.data.as_deref())?;
    let server = Server::data(&args.plane)?;
    let path = Path::of_app(args.plane.app.as_deref())
        .segment("commands")
        .segment(&args.aggregate)
        .segment(&args.id)
        .segment(&args.command);
    let mut request = json_body(server.request(Method::POST, &path), data);
    if let Some(key) = &args.idempotency_key {
        request = request.header("idempotency-key", key);
    }
    if let Some(revision) = &args.if_match {
        request = request.header("if-match", revision);
    }
    if args.if_absent {
        request = request.header("if-none-match", "*");
    }
    let response = server.send(request).await?;
    let replayed = response.headers().get("ebb-replayed").is_some_and(|value| value == "true");
    let body = response.bytes().await.map_err(|error| server.broken_off(&error))?;
    if output.json {
        output.raw(&body)?;
        if !body.ends_with(b"\n") {
            output.raw(b"\n")?;
        }
        return Ok(Exit::Done);
    }
    let reply: Reply = serde_json::from_slice(&body).map_err(|error| {
        Failure::new(format!("{} answered with something unexpected: {error}", server.base()))
    })?;
    output.line(render(&reply, replayed, output.style()))?;
    Ok(Exit::Done)
}

/// The body: JSON as given, from a file, or from stdin. Checked here, where a message can name the argument.
fn read_data(data: Option<&str>) -> Result<Vec<u8>, Failure> {
    let (text, whence) = match data {
        None => return Ok(Vec::new()),
        Some("-") => {
            let mut text = String::new();
            let read = std::io::stdin().read_to_string(&mut text);
            read.map_err(|error| Failure::new(format!("stdin can't be read: {error}")))?;
            (text, "stdin")
        }
        Some(file) if file.starts_with('@') => {
            let path = &file[1..];
            let text = std::fs::read_to_string(path);
            (text.map_err(|error| Failure::new(format!("{path} can't be read: {error}")))?, path)
        }
        Some(text) => (text.to_owned(), "the command's data"),
    };
    match serde_json::from_str::<serde::de::IgnoredAny>(&text) {
        Ok(_) => Ok(text.into_bytes()),
        Err(error) => Err(Failure::new(format!("{whence} is not JSON: {error}"))
            .hint("quote it for the shell: ebb command account 1 deposit '{\"amount\": 500}'")),
    }
}

fn render(reply: &Reply, replayed: bool, style: Palette) -> String {
    let stream = style.strong(printable(&reply.stream));
    let mut text = match (reply.events.is_empty(), reply.revision) {
        (true, Some(revision)) => format!("{stream} has nothing to add; it is at revision {revision}"),
        (true, None) => format!("{stream} has nothing to add; it has no events"),
        (false, _) => stream,
    };
    if replayed {
        text.push_str(&style.faint("  (remembered: this key was used before)"));
    }
    for event in &reply.events {
        let name = style.good(printable(&event.event_type));
        let place = style.faint(format_args!("revision {}  position {}", event.revision, event.position));
        text.push_str(&format!("\n  {name}  {}  {place}", printable(&event.data.to_string())));
    }
    if let (Some(position), false) = (reply.position, reply.events.is_empty()) {
        text.push_str(&format!(
            "\n{}",
            style.faint(format_args!("read your write: ebb query MODEL --after {position}"))
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_shows_its_events() {
        let reply = serde_json::from_str(
            r#"{"stream":"account-1","revision":1,"position":7,
                "events":[{"id":"x","type":"Deposited","revision":1,"position":7,"data":{"amount":500}}]}"#,
        );
        insta::assert_snapshot!(render(&reply.unwrap(), false, Palette(false)), @r#"
        account-1
          Deposited  {"amount":500}  revision 1  position 7
        read your write: ebb query MODEL --after 7
        "#);
    }

    #[test]
    fn a_decision_without_events_says_so() {
        let reply =
            serde_json::from_str(r#"{"stream":"account-1","revision":3,"position":null,"events":[]}"#);
        assert_eq!(
            render(&reply.unwrap(), false, Palette(false)),
            "account-1 has nothing to add; it is at revision 3"
        );
    }

    #[test]
    fn data_that_is_not_json_is_found_before_it_is_sent() {
        assert_eq!(read_data(None).unwrap(), b"");
        assert_eq!(read_data(Some("{\"amount\": 5}")).unwrap(), b"{\"amount\": 5}");
        assert!(read_data(Some("{amount: 5}")).unwrap_err().message.contains("is not JSON"));
        assert!(read_data(Some("@/nowhere.json")).unwrap_err().message.contains("/nowhere.json"));
    }
}
