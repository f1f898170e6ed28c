//! `ebb replay`: what another module would have decided on what has happened.

use crate::args::{Isolation, Replay};
use crate::client::{Path, Problem, Server};
use crate::failure::{Exit, Failure};
use crate::output::{Align, Elapsed, Grouped, Output, Palette, Table, printable};
use crate::project::{Project, tar};
use bytes::Bytes;
use ebb_app::bundle::{Bundle, normalise};
use ebb_app::replay::{Difference, OutcomeView, ReplayReport};
use futures_util::StreamExt as _;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use reqwest::{Method, Response};
use serde::Deserialize;
use std::time::Duration;

/// A line of the answer.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Line {
    Progress { done: u64, total: u64, differences: u64 },
    Report(ReplayReport),
    Problem(serde_json::Value),
}

/// Replays, and reports.
pub(crate) async fn run(output: Output, args: Replay) -> Result<Exit, Failure> {
    let server = Server::control(&args.plane)?;
    let candidate = match &args.module {
        Some(path) => Some(candidate(path, &args.dir, args.aggregate.as_deref())?),
        None => None,
    };
    let app = match (&args.app, &candidate) {
        (Some(app), _) => app.clone(),
        (None, Some(candidate)) => candidate.app.clone(),
        (None, None) => super::status::only_app(&server).await?,
    };
    let isolation = match args.isolation {
        Isolation::Fresh => "fresh",
        Isolation::Shared => "shared",
    };
    let mut path = Path::new()
        .segment("apps")
        .segment(&app)
        .segment("replay")
        .parameter("isolation", isolation)
        .parameter("differences", args.details);
    let aggregate = args.aggregate.or_else(|| candidate.as_ref()?.aggregate.clone());
    if let Some(aggregate) = aggregate {
        path = path.parameter("aggregate", aggregate);
    }
    let request = server.request(Method::POST, &path);
    let request = match &candidate {
        Some(candidate) => request.header("content-type", "application/x-tar").body(tar(&candidate.bundle)?),
        None => request,
    };
    let report = watch(output, &server, server.send(request).await?).await?;
    if output.json {
        output.json(&report)?;
    } else {
        output.line(render(&report, output.style()))?;
    }
    Ok(if report.different == 0 { Exit::Done } else { Exit::No })
}

/// What is replayed with, and what it says about the rest.
struct Candidate {
    app: String,
    /// The only aggregate that it can differ in.
    aggregate: Option<String>,
    bundle: Bundle,
}

/// A folder is its own bundle. A module alone takes the place of an aggregate's module in the bundle of `dir`.
fn candidate(
    path: &std::path::Path,
    dir: &std::path::Path,
    aggregate: Option<&str>,
) -> Result<Candidate, Failure> {
    if path.is_dir() {
        let project = Project::open(path)?;
        let app = project.inspected()?.name.to_string();
        return Ok(Candidate { app, aggregate: None, bundle: project.bundle() });
    }
    let module = std::fs::read(path)
        .map_err(|error| Failure::new(format!("{} can't be read: {error}", path.display())))?;
    let project = Project::open(dir).map_err(|failure| {
        failure
            .hint("a module alone needs the manifest that it is a candidate for: name its folder with --dir")
    })?;
    let manifest = project.manifest()?;
    let names: Vec<&str> = manifest.aggregates.keys().map(|name| &**name).collect();
    let name = match (aggregate, &names[..]) {
        (Some(name), _) => name,
        (None, [only]) => only,
        (None, _) => {
            return Err(Failure::new(format!(
                "{} may stand for any of: {}",
                path.display(),
                names.join(", ")
            ))
            .hint("say which with --aggregate"));
        }
    };
    let Some(spec) = manifest.aggregates.values().find(|spec| *spec.name == *name) else {
        return Err(Failure::new(format!(
            "the manifest has no aggregate `{name}`; it has {}",
            names.join(", ")
        )));
    };
    let mut bundle = project.bundle();
    let place = normalise(&spec.module).unwrap_or_default();
    bundle.files.insert(place, Bytes::from(module));
    Ok(Candidate { app: manifest.name.to_string(), aggregate: Some(name.to_owned()), bundle })
}

/// Follows the answer to its last line.
async fn watch(output: Output, server: &Server, response: Response) -> Result<ReplayReport, Failure> {
    let bar = if output.shows_bars() { bar() } else { ProgressBar::hidden() };
    let mut chunks = response.bytes_stream();
    let mut buffer: Vec<u8> = Vec::new();
    while let Some(chunk) = chunks.next().await {
        buffer.extend_from_slice(&chunk.map_err(|error| server.broken_off(&error))?);
        while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = buffer.drain(..=end).collect();
            let line = serde_json::from_slice(&line).map_err(|error| {
                Failure::new(format!("{} answered with something unexpected: {error}", server.base()))
            })?;
            match line {
                Line::Progress { done, total, differences } => {
                    bar.set_length(total);
                    bar.set_position(done);
                    bar.set_message(format!("{} differences", Grouped(differences)));
                }
                Line::Report(report) => {
                    bar.finish_and_clear();
                    return Ok(report);
                }
                Line::Problem(problem) => {
                    bar.finish_and_clear();
                    let text = problem.to_string();
                    let status = problem.get("status").and_then(serde_json::Value::as_u64).unwrap_or(500);
                    // A replay that could not be made is no difference: exit code 2, whatever the status.
                    let failure =
                        Problem::read(u16::try_from(status).unwrap_or(500), text.as_bytes()).into_failure();
                    return Err(Failure { exit: Exit::Failed, ..failure });
                }
            }
        }
    }
    Err(Failure::new(format!("{} broke off before the replay was done", server.base())))
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(10));
    let template = "{bar:32.cyan/blue} {percent:>3}%  {human_pos} of {human_len} commits  {per_sec}  {msg}";
    bar.with_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn render(report: &ReplayReport, style: Palette) -> String {
    let elapsed = Elapsed(Duration::from_millis(report.elapsed_ms));
    let mut table =
        Table::new([("command", Align::Left), ("decided again", Align::Right), ("different", Align::Right)]);
    for (command, summary) in &report.by_command {
        table.row([
            command.clone(),
            Grouped(summary.commands).to_string(),
            Grouped(summary.different).to_string(),
        ]);
    }
    let mut parts = Vec::new();
    if !table.is_empty() {
        parts.push(table.render(style));
    }
    let shown = report.differences.len() as u64;
    parts.extend(report.differences.iter().map(|difference| render_difference(difference, style)));
    if shown > 0 && report.different > shown {
        let rest = Grouped(report.different - shown);
        parts.push(style.faint(format_args!("{rest} more differences; --details N shows more")));
    }
    let commands = Grouped(report.commands);
    let verdict = if report.different == 0 {
        style.good(format_args!("no differences"))
    } else {
        let (different, streams) = (Grouped(report.different), Grouped(report.streams_affected));
        style.warning(format_args!("{different} different, in {streams} streams"))
    };
    let mut last = format!("{commands} commands decided again in {elapsed}: {verdict}");
    if report.skipped > 0 {
        last.push_str(&format!(" ({} commits skipped)", Grouped(report.skipped)));
    }
    parts.push(last);
    parts.join("\n\n")
}

fn render_difference(difference: &Difference, style: Palette) -> String {
    let place = match difference.revision {
        Some(revision) => format!("at revision {revision}"),
        None => "in an empty stream".to_owned(),
    };
    format!(
        "{}  {} {}  {}\n  {} {}\n  {} {}",
        style.strong(printable(&difference.stream)),
        printable(&difference.command),
        printable(&difference.data.to_string()),
        style.faint(format_args!("commit {}, {place}", difference.commit)),
        style.error("- recorded:"),
        outcome(&difference.recorded),
        style.good("+ replayed:"),
        outcome(&difference.replayed)
    )
}

fn outcome(outcome: &OutcomeView) -> String {
    match outcome {
        OutcomeView::Events(events) if events.is_empty() => "nothing".to_owned(),
        OutcomeView::Events(events) => {
            let event = |event: &ebb_app::replay::EventView| {
                format!("{} {}", printable(&event.event_type), printable(&event.data.to_string()))
            };
            events.iter().map(event).collect::<Vec<_>>().join(", ")
        }
        OutcomeView::Refused { code, message } => {
            format!("refused, {}: {}", printable(code), printable(message))
        }
        OutcomeView::Failed(why) => format!("failed: {}", printable(why)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> ReplayReport {
        serde_json::from_value(serde_json::json!({
            "commands": 18259, "skipped": 0, "identical": 18241, "different": 18, "streams_affected": 18, "elapsed_ms": 412,
            "by_command": {
                "flight/depart": { "commands": 6064, "different": 18 },
                "flight/schedule": { "commands": 6099, "different": 0 }
            },
            "differences": [{
                "stream": "flight-2013-01-01-MQ3944-JFK", "commit": 4101, "revision": 0, "command": "depart",
                "command_id": "0190a0a0-0000-7000-8000-000000000000", "data": { "delay": 853 },
                "recorded": { "events": [{ "type": "Departed", "data": { "delay": 853 } }] },
                "replayed": { "refused": { "code": "crew_went_home", "message": "after 240 minutes" } }
            }]
        }))
        .unwrap()
    }

    #[test]
    fn a_report_shows_the_summary_then_the_exact_differences() {
        insta::assert_snapshot!(render(&report(), Palette(false)), @r#"
        command          decided again  different
        flight/depart            6,064         18
        flight/schedule          6,099          0

        flight-2013-01-01-MQ3944-JFK  depart {"delay":853}  commit 4101, at revision 0
          - recorded: Departed {"delay":853}
          + replayed: refused, crew_went_home: after 240 minutes

        17 more differences; --details N shows more

        18,259 commands decided again in 412 ms: 18 different, in 18 streams
        "#);
    }

    #[test]
    fn a_module_alone_takes_the_place_of_the_aggregates_module() {
        let folder = tempfile::tempdir().unwrap();
        let manifest = "[app]\nname = \"bank\"\n[aggregate.account]\nmodule = \"account.wasm\"\ncommands = { open = {} }\nevents = { Opened = {} }\n";
        std::fs::write(folder.path().join("ebb.toml"), manifest).unwrap();
        std::fs::write(folder.path().join("account.wasm"), b"\0asm old").unwrap();
        let new = folder.path().join("new.wasm");
        std::fs::write(&new, b"\0asm new").unwrap();

        let candidate = candidate(&new, folder.path(), None).unwrap();
        assert_eq!((candidate.app.as_str(), candidate.aggregate.as_deref()), ("bank", Some("account")));
        assert_eq!(candidate.bundle.files["account.wasm"], b"\0asm new".as_slice());
        assert!(super::candidate(&new, folder.path(), Some("flight")).is_err());
    }
}
