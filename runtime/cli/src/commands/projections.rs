//! `ebb rebuild`, `ebb seek` and `ebb parked`: looking after what follows the log.

use super::status::only_app;
use crate::args::{Parked as Args, ParkedKey, ParkedSkip, Rebuild, Seek};
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
pub(super) struct Acted {
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

pub(super) async fn projection(
    server: &Server,
    app: Option<&str>,
    projection: &str,
) -> Result<Path, Failure> {
    let app = match app {
        Some(app) => app.to_owned(),
        None => only_app(server).await?,
    };
    Ok(Path::new().segment("apps").segment(&app).segment("projections").segment(projection))
}

/// Asks the node to build a projection's rows again.
pub(crate) async fn rebuild(output: Output, args: Rebuild) -> Result<Exit, Failure> {
    let server = Server::control(&args.plane)?;
    let path = projection(&server, args.app.as_deref(), &args.projection).await?.segment("rebuild");
    let answer: Value = server.json(server.request(Method::POST, &path)).await?;
    if output.json {
        output.json(&answer)?;
    } else {
        output.line(format_args!("{} {}", output.style().good("rebuilding"), args.projection))?;
        output.note("the rows that serve are swapped when the new ones have caught up; see `ebb status`");
    }
    Ok(Exit::Done)
}

/// Has an event function go on elsewhere.
pub(crate) async fn seek(output: Output, args: Seek) -> Result<Exit, Failure> {
    let server = Server::control(&args.plane)?;
    let path = projection(&server, args.app.as_deref(), &args.function).await?.segment("seek");
    let request = server.request(Method::POST, &path).json(&json!({ "to": args.to }));
    let answer: Value = server.json(request).await?;
    if output.json {
        output.json(&answer)?;
    } else {
        let style = output.style();
        output.line(format_args!(
            "{} {} goes on behind position {}",
            style.good("done"),
            args.function,
            answer["position"]
        ))?;
    }
    Ok(Exit::Done)
}

/// Lists, retries, skips.
pub(crate) async fn parked(output: Output, args: Args) -> Result<Exit, Failure> {
    match args {
        Args::List(args) => {
            let server = Server::control(&args.plane)?;
            let path = projection(&server, args.app.as_deref(), &args.projection).await?.segment("parked");
            list(output, &server, &path).await
        }
        Args::Retry(key) => act(output, &key, "retry", json!({ "key": key.key })).await,
        Args::Skip(ParkedSkip { key, whole }) => {
            let body =
                if whole { json!({ "key": key.key, "whole": true }) } else { json!({ "key": key.key }) };
            act(output, &key, "skip", body).await
        }
    }
}

/// All parked keys of a projection.
pub(super) async fn parked_of(server: &Server, path: &Path) -> Result<Vec<Parked>, Failure> {
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

async fn list(output: Output, server: &Server, path: &Path) -> Result<Exit, Failure> {
    let all = parked_of(server, path).await?;
    if output.json {
        all.iter().try_for_each(|parked| output.json(parked))?;
    } else if all.is_empty() {
        output.note("nothing is parked");
    } else {
        output.line(render(&all, output))?;
    }
    Ok(Exit::Done)
}

fn render(all: &[Parked], output: Output) -> String {
    let mut table = Table::new([
        ("key", Align::Left),
        ("position", Align::Right),
        ("queued", Align::Right),
        ("attempts", Align::Right),
        ("since", Align::Left),
        ("reason", Align::Left),
    ]);
    for parked in all {
        table.row([
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

async fn act(output: Output, args: &ParkedKey, action: &str, body: Value) -> Result<Exit, Failure> {
    let server = Server::control(&args.plane)?;
    let path =
        projection(&server, args.app.as_deref(), &args.projection).await?.segment("parked").segment(action);
    let acted: Acted = server.json(server.request(Method::POST, &path).json(&body)).await?;
    act_on(output, &args.key, &acted)
}

/// Says what became of a key.
pub(super) fn act_on(output: Output, key: &str, acted: &Acted) -> Result<Exit, Failure> {
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
