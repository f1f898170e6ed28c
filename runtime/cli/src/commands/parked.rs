//! `ebb parked`, or `ebb dead-letters`: what could not be dealt with, whatever was to deal with it.

use super::projections::projection;
use super::status::only_app;
use crate::args::{Parked as Args, ParkedKey, ParkedList, ParkedSkip};
use crate::client::{Path, Server};
use crate::failure::{Exit, Failure};
use crate::output::{Align, Grouped, Output, Palette, Table, printable};
use ebb_domain::port::models::Parked;
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

#[derive(Debug, Deserialize, Serialize)]
struct ParkedPage {
    parked: Vec<Parked>,
    next: Option<String>,
}

/// What became of a retry or a skip.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
struct Acted {
    /// Events that are in the rows now.
    #[serde(skip_serializing_if = "Option::is_none")]
    applied: Option<u64>,
    /// Events that will never be.
    #[serde(skip_serializing_if = "Option::is_none")]
    skipped: Option<u64>,
    /// Events that still queue.
    remaining: u64,
    /// Why the first of them fails.
    #[serde(skip_serializing_if = "Option::is_none")]
    failed: Option<String>,
}

/// What is parked, and whose it is.
#[derive(Serialize)]
struct Letter {
    app: String,
    consumer: String,
    kind: String,
    #[serde(flatten)]
    parked: Parked,
}

/// Lists, shows, retries, skips.
pub(crate) async fn run(output: Output, args: Args) -> Result<Exit, Failure> {
    match args {
        Args::List(args) => {
            let server = Server::control(&args.plane)?;
            let letters = letters(&server, &args).await?;
            if output.json {
                letters.iter().try_for_each(|letter| output.json(letter))?;
            } else if letters.is_empty() {
                output.note("nothing is parked");
            } else {
                output.line(render(&letters, output))?;
            }
            Ok(Exit::Done)
        }
        Args::Show(key) => show(output, &key).await,
        Args::Retry(key) => act(output, &key, "retry", json!({ "key": key.key })).await,
        Args::Skip(ParkedSkip { key, whole }) => {
            let body =
                if whole { json!({ "key": key.key, "whole": true }) } else { json!({ "key": key.key }) };
            act(output, &key, "skip", body).await
        }
    }
}

async fn letters(server: &Server, args: &ParkedList) -> Result<Vec<Letter>, Failure> {
    let mut path = Path::new().segment("projections");
    if let Some(app) = &args.app {
        path = path.parameter("app", app);
    }
    let answer: Value = server.json(server.get(&path)).await?;
    let mut consumers = answer["projections"].as_array().cloned().unwrap_or_default();
    if let Some(name) = &args.consumer {
        consumers.retain(|consumer| consumer["projection"] == **name);
        if consumers.is_empty() {
            // Whoever knows what there is says so.
            let path = projection(server, args.app.as_deref(), name).await?.segment("parked");
            parked_of(server, &path).await?;
        }
    }
    let mut letters = Vec::new();
    for consumer in consumers.iter().filter(|consumer| consumer["parked"].as_u64() != Some(0)) {
        let text = |name: &str| consumer[name].as_str().unwrap_or_default().to_owned();
        let (app, name, kind) = (text("app"), text("projection"), text("kind"));
        let path = projection(server, Some(&app), &name).await?.segment("parked");
        let parked = parked_of(server, &path).await?.into_iter();
        letters.extend(parked.map(|parked| Letter {
            app: app.clone(),
            consumer: name.clone(),
            kind: kind.clone(),
            parked,
        }));
    }
    Ok(letters)
}

fn render(letters: &[Letter], output: Output) -> String {
    let mut table = Table::new([
        ("consumer", Align::Left),
        ("app", Align::Left),
        ("key", Align::Left),
        ("position", Align::Right),
        ("queued", Align::Right),
        ("attempts", Align::Right),
        ("since", Align::Left),
        ("reason", Align::Left),
    ]);
    for Letter { app, consumer, parked, .. } in letters {
        table.row([
            consumer.clone(),
            app.clone(),
            parked.key.to_string(),
            parked.position.to_string(),
            parked.queued.to_string(),
            parked.attempts.to_string(),
            parked.since.to_string().get(..19).unwrap_or_default().replace('T', " "),
            parked.reason.clone(),
        ]);
    }
    table.render(output.style())
}

/// A parked key with the event that stands first.
async fn show(output: Output, args: &ParkedKey) -> Result<Exit, Failure> {
    let server = Server::control(&args.plane)?;
    let app = app(&server, args).await?;
    let path = projection(&server, Some(&app), &args.consumer).await?.segment("parked");
    let found = parked_of(&server, &path).await?.into_iter().find(|parked| *parked.key == *args.key);
    let Some(parked) = found else {
        let message =
            format!("`{}` has nothing parked under the key `{}`", args.consumer, printable(&args.key));
        return Err(Failure::no(message).hint("`ebb parked list` shows all there is"));
    };
    let first = path.segment("event").parameter("key", &args.key);
    let event: Value = server.json(server.get(&first)).await?;
    if output.json {
        output.json(&json!({ "parked": parked, "event": event }))?;
        return Ok(Exit::Done);
    }
    let mut lines = vec![
        format!("{}  {}", output.style().strong("reason"), printable(&parked.reason)),
        format!(
            "tried {} times, last at {}; parked since {}",
            parked.attempts, parked.last_attempt, parked.since
        ),
        format!("{} events queue under `{}`", parked.queued, printable(&parked.key)),
        String::new(),
    ];
    let shown = serde_json::to_string_pretty(&event).unwrap_or_default();
    lines.extend(shown.lines().map(printable));
    output.line(lines.join("\n"))?;
    Ok(Exit::Done)
}

async fn app(server: &Server, args: &ParkedKey) -> Result<String, Failure> {
    match &args.app {
        Some(app) => Ok(app.clone()),
        None => only_app(server).await,
    }
}

async fn act(output: Output, args: &ParkedKey, action: &str, body: Value) -> Result<Exit, Failure> {
    let server = Server::control(&args.plane)?;
    let path =
        projection(&server, args.app.as_deref(), &args.consumer).await?.segment("parked").segment(action);
    let acted: Acted = server.json(server.request(Method::POST, &path).json(&body)).await?;
    act_on(output, &args.key, &acted)
}

/// All parked keys of a projection.
async fn parked_of(server: &Server, path: &Path) -> Result<Vec<Parked>, Failure> {
    let mut all: Vec<Parked> = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let page_path = match &after {
            Some(after) => path.clone().parameter("after", after),
            None => path.clone(),
        };
        let page: ParkedPage = server.json(server.get(&page_path)).await?;
        all.extend(page.parked);
        after = page.next;
        if after.is_none() {
            return Ok(all);
        }
    }
}

/// Says what became of a key.
fn act_on(output: Output, key: &str, acted: &Acted) -> Result<Exit, Failure> {
    if output.json {
        output.json(acted)?;
    } else {
        output.line(render_acted(key, acted, output.style()))?;
    }
    Ok(if acted.remaining == 0 { Exit::Done } else { Exit::No })
}

fn render_acted(key: &str, acted: &Acted, style: Palette) -> String {
    let (done, how) = match (acted.applied, acted.skipped) {
        (_, Some(skipped)) => (skipped, "skipped"),
        (applied, None) => (applied.unwrap_or(0), "applied"),
    };
    let key = printable(key);
    let mut text = match acted.remaining {
        0 => format!("{} {key} is no longer parked: {} {how}", style.good("done:"), Grouped(done)),
        remaining => {
            let left = style.warning(format_args!("{} still queue", Grouped(remaining)));
            format!("{key}: {} {how}, {left}", Grouped(done))
        }
    };
    if let Some(failed) = &acted.failed {
        text.push_str(&format!("\n  the first of them fails: {}", printable(failed)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_stays_parked_says_why() {
        let acted =
            Acted { applied: Some(2), remaining: 5, failed: Some("no owner".into()), ..Acted::default() };
        insta::assert_snapshot!(render_acted("account-42", &acted, Palette(false)), @r"
        account-42: 2 applied, 5 still queue
          the first of them fails: no owner
        ");
        let skipped = Acted { skipped: Some(1), ..Acted::default() };
        assert_eq!(
            render_acted("account-42", &skipped, Palette(false)),
            "done: account-42 is no longer parked: 1 skipped"
        );
    }
}
