//! `ebb rebuild` and `ebb parked`: looking after projections.

use super::status::only_app;
use crate::args::{Parked as Args, ParkedKey, Rebuild};
use crate::client::{Path, Server};
use crate::failure::{Exit, Failure};
use crate::output::{Align, Output, Table};
use ebb_domain::port::models::Parked;
use reqwest::Method;
use serde::{Deserialize, Serialize};

#[derive(Debug, Deserialize, Serialize)]
struct ParkedPage {
    parked: Vec<Parked>,
    next: Option<String>,
}

/// What is left of a key's queue.
#[derive(Debug, Deserialize, Serialize)]
struct Left {
    parked: Option<Parked>,
}

async fn projection(server: &Server, app: Option<&str>, projection: &str) -> Result<Path, Failure> {
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
    let answer: serde_json::Value = server.json(server.request(Method::POST, &path)).await?;
    if output.json {
        output.json(&answer)?;
    } else {
        output.line(format_args!("{} {}", output.style().good("rebuilding"), args.projection))?;
        output.note("the rows that serve are swapped when the new ones have caught up; see `ebb status`");
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
        Args::Retry(args) => act(output, args, "retry").await,
        Args::Skip(args) => act(output, args, "skip").await,
    }
}

async fn list(output: Output, server: &Server, path: &Path) -> Result<Exit, Failure> {
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
            break;
        }
    }
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

async fn act(output: Output, args: ParkedKey, action: &str) -> Result<Exit, Failure> {
    let server = Server::control(&args.plane)?;
    let path =
        projection(&server, args.app.as_deref(), &args.projection).await?.segment("parked").segment(action);
    let request = server.request(Method::POST, &path).json(&serde_json::json!({ "key": args.key }));
    let left: Left = server.json(request).await?;
    if output.json {
        output.json(&left)?;
    }
    match left.parked {
        None => {
            if !output.json {
                output.line(format_args!(
                    "{} {} is no longer parked",
                    output.style().good("done:"),
                    args.key
                ))?;
            }
            Ok(Exit::Done)
        }
        Some(parked) => {
            if !output.json {
                output.line(format_args!(
                    "{} {} stays parked at position {}: {}",
                    output.style().warning("still failing:"),
                    args.key,
                    parked.position,
                    crate::output::printable(&parked.reason)
                ))?;
            }
            Ok(Exit::No)
        }
    }
}
