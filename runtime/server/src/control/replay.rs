//! `POST /apps/{app}/replay`: decides recorded commands again, and answers while it does: one JSON object a line,
//! `{"progress": …}` now and again, and at the end `{"report": …}` or `{"problem": …}`.

use super::ControlPlane;
use super::apps::deploy_problem;
use crate::http::body::RequestBody;
use crate::http::problem::{BAD_QUERY, INTERNAL, OVERLOADED, Problem, UNKNOWN_AGGREGATE};
use crate::http::reply::{Reply, stream};
use crate::http::target::{parameters, shorten};
use bytes::Bytes;
use ebb_app::replay::{Isolation, ReplayError, ReplayOptions, ReplayProgress};
use ebb_domain::name::AggregateName;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::request::Parts;
use serde_json::json;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Differences that a report lists at most.
const MAX_DIFFERENCES: usize = 10_000;
/// Lines that may wait for a slow reader. Progress that finds no room is left out: the next line tells more.
const LINES: usize = 16;
/// When to try again while another replay runs.
const BUSY: Duration = Duration::from_secs(10);
const TIME: &str = "a time as in `2026-01-31T12:00:00Z`";

/// Stops when its reader hangs up.
struct Run(JoinHandle<()>);

impl Drop for Run {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl ControlPlane {
    pub(super) async fn replay(&self, app: &str, parts: &Parts, body: RequestBody) -> Result<Reply, Problem> {
        let options = options(parts)?;
        let app = self.open(app).await?;
        let has_candidate = parts.headers.contains_key(CONTENT_TYPE)
            || parts.headers.get(CONTENT_LENGTH).is_some_and(|length| length != "0")
            || !body.is_end_stream();
        let candidate =
            if has_candidate { Some(self.read_bundle(&parts.headers, body).await?) } else { None };
        let (sender, receiver) = mpsc::channel::<Bytes>(LINES);
        let run = Run(tokio::spawn(async move {
            let progress = |progress: ReplayProgress| {
                let line = json!({ "progress": progress });
                let _ = sender.try_send(Bytes::from(format!("{line}\n")));
            };
            let last = match app.replay(candidate, options, progress).await {
                Ok(report) => json!({ "report": report }),
                Err(error) => json!({ "problem": problem(error).document() }),
            };
            let _ = sender.send(Bytes::from(format!("{last}\n"))).await;
        }));
        let lines = futures_util::stream::unfold((receiver, run), |(mut receiver, run)| async {
            receiver.recv().await.map(|line| (line, (receiver, run)))
        });
        Ok(stream("application/x-ndjson", lines))
    }
}

fn options(parts: &Parts) -> Result<ReplayOptions, Problem> {
    let mut options = ReplayOptions::default();
    for (name, value) in parameters(parts.uri.query())? {
        let wrong =
            |takes: &str| BAD_QUERY.detail(format!("`{name}` is `{}`; it takes {takes}", shorten(&value)));
        match &*name {
            "aggregate" => {
                options.aggregate =
                    Some(AggregateName::new(&*value).map_err(|_| wrong("an aggregate's name"))?);
            }
            "isolation" => {
                options.isolation = match &*value {
                    "both" => Isolation::Both,
                    "shared" => Isolation::Shared,
                    "fresh" => Isolation::Fresh,
                    _ => return Err(wrong("`both`, `shared` or `fresh`")),
                }
            }
            "since" => options.since = Some(value.parse().map_err(|_| wrong(TIME))?),
            "until" => options.until = Some(value.parse().map_err(|_| wrong(TIME))?),
            "sample" => {
                let sample = value.parse().ok().filter(|sample| *sample > 0.0 && *sample <= 1.0);
                options.sample = sample.ok_or_else(|| wrong("a number above 0 and up to 1"))?;
            }
            "seed" => options.seed = value.parse().map_err(|_| wrong("a whole number"))?,
            "differences" => {
                let count = value.parse().ok().filter(|count| *count <= MAX_DIFFERENCES);
                options.max_differences = count.ok_or_else(|| wrong("a number up to 10000"))?;
            }
            _ => {
                let detail = format!(
                    "there is no parameter `{}` here; there are aggregate, isolation, since, until, sample, seed and differences",
                    shorten(&name)
                );
                return Err(BAD_QUERY.detail(detail));
            }
        }
    }
    Ok(options)
}

fn problem(error: ReplayError) -> Problem {
    let detail = error.to_string();
    match error {
        ReplayError::Candidate(error) => deploy_problem(error),
        ReplayError::UnknownAggregate { .. } => UNKNOWN_AGGREGATE.detail(detail),
        ReplayError::Busy => OVERLOADED.detail(detail).retry_after(BUSY),
        ReplayError::Broken(cause) => INTERNAL.detail("the replay broke off").cause(cause),
        ReplayError::Log(cause) => INTERNAL.detail("the log could not be read").cause(cause),
        ReplayError::Module(cause) => INTERNAL.detail("a module could not be run").cause(cause),
    }
}
