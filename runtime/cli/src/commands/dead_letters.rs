//! `ebb dead-letters` and `ebb topics`: what could not be dealt with, whatever it came from, and topics that were made again.

use super::projections::{Acted, act_on, parked_of, projection};
use super::status::only_app;
use crate::args::{AcceptTopic, DeadLetter, DeadLetters as Args, Topics};
use crate::client::{Path, Server};
use crate::failure::{Exit, Failure};
use crate::output::{Align, Output, Table, printable};
use ebb_domain::port::models::Parked;
use reqwest::Method;
use serde::Serialize;
use serde_json::{Value, json};

/// A dead letter, and whose it is.
#[derive(Serialize)]
struct Letter {
    app: String,
    consumer: String,
    kind: String,
    #[serde(flatten)]
    parked: Parked,
}

/// Lists, shows, retries, discards.
pub(crate) async fn run(output: Output, args: Args) -> Result<Exit, Failure> {
    match args {
        Args::List(args) => {
            let server = Server::control(&args.plane)?;
            let letters = letters(&server, args.app.as_deref()).await?;
            if output.json {
                letters.iter().try_for_each(|letter| output.json(letter))?;
            } else if letters.is_empty() {
                output.note("there are no dead letters");
            } else {
                output.line(render(&letters, output))?;
            }
            Ok(Exit::Done)
        }
        Args::Show(letter) => show(output, &letter).await,
        Args::Retry(letter) => act(output, &letter, "retry", json!({ "key": letter.key })).await,
        Args::Discard(letter) => act(output, &letter, "skip", json!({ "key": letter.key })).await,
    }
}

async fn letters(server: &Server, app: Option<&str>) -> Result<Vec<Letter>, Failure> {
    let mut path = Path::new().segment("projections");
    if let Some(app) = app {
        path = path.parameter("app", app);
    }
    let answer: Value = server.json(server.get(&path)).await?;
    let consumers = answer["projections"].as_array().cloned().unwrap_or_default();
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

/// The dead letter with the event that stands first, as it is in the log.
async fn show(output: Output, args: &DeadLetter) -> Result<Exit, Failure> {
    let server = Server::control(&args.plane)?;
    let app = app(&server, args).await?;
    let path = projection(&server, Some(&app), &args.consumer).await?.segment("parked");
    let found = parked_of(&server, &path).await?.into_iter().find(|parked| *parked.key == *args.key);
    let Some(parked) = found else {
        let message =
            format!("`{}` has no dead letter under the key `{}`", args.consumer, printable(&args.key));
        return Err(Failure::no(message).hint("`ebb dead-letters list` shows them all"));
    };
    let before = parked.position.0.saturating_sub(1).to_string();
    let events = Path::new().segment("apps").segment(&app).segment("events");
    let events = events.parameter("after", &before).parameter("limit", "1");
    let page: Value = server.json(server.get(&events)).await?;
    let event = page["events"][0].clone();
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

async fn app(server: &Server, args: &DeadLetter) -> Result<String, Failure> {
    match &args.app {
        Some(app) => Ok(app.clone()),
        None => only_app(server).await,
    }
}

async fn act(output: Output, args: &DeadLetter, action: &str, body: Value) -> Result<Exit, Failure> {
    let server = Server::control(&args.plane)?;
    let path =
        projection(&server, args.app.as_deref(), &args.consumer).await?.segment("parked").segment(action);
    let acted: Acted = server.json(server.request(Method::POST, &path).json(&body)).await?;
    act_on(output, &args.key, &acted)
}

/// `ebb topics accept`.
pub(crate) async fn topics(output: Output, args: Topics) -> Result<Exit, Failure> {
    let Topics::Accept(AcceptTopic { topic, app, plane }) = args;
    let server = Server::control(&plane)?;
    let app = match app {
        Some(app) => app,
        None => only_app(&server).await?,
    };
    let path = Path::new().segment("apps").segment(&app).segment("topics").segment(&topic).segment("accept");
    let answer: Value = server.json(server.request(Method::POST, &path)).await?;
    if output.json {
        output.json(&answer)?;
    } else {
        output.line(format_args!(
            "{} {app} goes on with `{}` as it is now",
            output.style().good("done"),
            printable(&topic)
        ))?;
    }
    Ok(Exit::Done)
}
