//! `ebb replay`: what another module would have decided on what has happened.

mod report;

use crate::args::{Isolation, Replay};
use crate::client::{Path, Problem, Server};
use crate::failure::{Exit, Failure};
use crate::output::{Grouped, Output};
use crate::project::{Project, tar};
use bytes::Bytes;
use ebb_app::bundle::{Bundle, normalise};
use ebb_app::replay::ReplayReport;
use ebb_domain::time::Timestamp;
use futures_util::StreamExt as _;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use reqwest::{Method, Response};
use serde::Deserialize;
use std::time::{Duration, SystemTime};

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
        Isolation::Both => "both",
        Isolation::Shared => "shared",
        Isolation::Fresh => "fresh",
    };
    let mut path = Path::new()
        .segment("apps")
        .segment(&app)
        .segment("replay")
        .parameter("isolation", isolation)
        .parameter("seed", args.seed)
        .parameter("sample", args.sample)
        .parameter("differences", args.details);
    let since = args.since.or_else(|| args.last.map(ago));
    for (name, time) in [("since", since), ("until", args.until)] {
        if let Some(time) = time {
            path = path.parameter(name, time);
        }
    }
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
    if report.commands == 0 {
        return Err(nothing(&report));
    }
    if output.json {
        output.json(&report)?;
    } else {
        output.line(report::render(&report, output.style()))?;
    }
    Ok(if report.different == 0 { Exit::Done } else { Exit::No })
}

/// So long before now.
fn ago(span: Duration) -> Timestamp {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp(now.saturating_sub(span).as_micros() as u64)
}

/// A replay of nothing proves nothing: whoever asked in a script is to know.
fn nothing(report: &ReplayReport) -> Failure {
    let failure = Failure::new("nothing was decided again: no recorded command fits the request");
    let why: Vec<String> =
        report::skipped(report).map(|(count, why)| format!("{} commits {why}", Grouped(count))).collect();
    if why.is_empty() { failure } else { failure.details(why.join("\n")) }
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

#[cfg(test)]
mod tests {
    use super::*;

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
