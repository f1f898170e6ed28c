//! What an import has done so far, and how that is shown: a bar on a terminal, a line now and then elsewhere.

use super::lines::{BadLine, Job};
use crate::client::Problem;
use crate::failure::Failure;
use crate::output::{Elapsed, Grouped, Output, printable};
use bytes::Bytes;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use serde_json::value::RawValue;
use std::convert::Infallible;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Between two lines of progress where there is no terminal.
const PLAIN_INTERVAL: Duration = Duration::from_secs(5);

/// Refusals, and failures, that are shown one by one; the rest is counted, and written to `--rejects`.
const SHOWN: u64 = 5;

/// Counts, and where they are shown.
pub(super) struct Tally {
    output: Output,
    started: Instant,
    bar: Option<ProgressBar>,
    total_bytes: Option<u64>,
    bytes: AtomicU64,
    accepted: AtomicU64,
    refused: AtomicU64,
    replayed: AtomicU64,
    failed: AtomicU64,
    retries: AtomicU64,
    position: AtomicU64,
    rejects: Option<Mutex<BufWriter<File>>>,
}

/// The counts at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Counts {
    /// Lines that were answered, or found to be bad.
    pub(super) lines: u64,
    /// Commands that are in the log.
    pub(super) accepted: u64,
    /// Commands that the module refused.
    pub(super) refused: u64,
    /// Of those two, the ones that an earlier run had done.
    pub(super) already_done: u64,
    /// Lines that were neither accepted nor refused.
    pub(super) failed: u64,
    /// Attempts beyond the first.
    pub(super) retries: u64,
    /// The highest position among the answers.
    pub(super) position: u64,
}

#[derive(Serialize)]
struct Reject<'a> {
    line: u64,
    outcome: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'a str>,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    input: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
}

impl Tally {
    /// Begins to count, towards this many bytes if that is known.
    pub(super) fn new(
        output: Output,
        total_bytes: Option<u64>,
        rejects: Option<&Path>,
    ) -> Result<Self, Failure> {
        let rejects = match rejects {
            Some(path) => {
                let file = File::create(path)
                    .map_err(|error| Failure::new(format!("{} can't be written: {error}", path.display())))?;
                Some(Mutex::new(BufWriter::new(file)))
            }
            None => None,
        };
        let bar = output.shows_bars().then(|| bar(total_bytes));
        let zero = || AtomicU64::new(0);
        Ok(Self {
            output,
            started: Instant::now(),
            bar,
            total_bytes,
            bytes: zero(),
            accepted: zero(),
            refused: zero(),
            replayed: zero(),
            failed: zero(),
            retries: zero(),
            position: zero(),
            rejects,
        })
    }

    /// A command is in the log.
    pub(super) fn accepted(&self, job: &Job, replayed: bool, position: Option<u64>) {
        self.accepted.fetch_add(1, Ordering::Relaxed);
        self.replayed.fetch_add(u64::from(replayed), Ordering::Relaxed);
        self.bytes.fetch_add(job.width, Ordering::Relaxed);
        if let Some(position) = position {
            self.position.fetch_max(position, Ordering::Relaxed);
        }
    }

    /// The module said no.
    pub(super) fn refused(&self, job: &Job, replayed: bool, problem: &Problem) -> Result<(), Failure> {
        let before = self.refused.fetch_add(1, Ordering::Relaxed);
        self.replayed.fetch_add(u64::from(replayed), Ordering::Relaxed);
        self.bytes.fetch_add(job.width, Ordering::Relaxed);
        let message = problem.message();
        self.show(before, "refused", job.number, &message);
        let code = problem.code.as_deref();
        self.reject("refused", job.number, &job.line, Some(problem.status), code, &message)
    }

    /// A command was not carried out. Gives back how many lines have failed.
    pub(super) fn failed(&self, job: &Job, problem: &Problem) -> Result<u64, Failure> {
        let before = self.failed.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(job.width, Ordering::Relaxed);
        let message = problem.message();
        self.show(before, "failed", job.number, &message);
        let code = problem.code.as_deref();
        self.reject("failed", job.number, &job.line, Some(problem.status), code, &message)?;
        Ok(before + 1)
    }

    /// A line is no command. Gives back how many lines have failed.
    pub(super) fn bad_line(&self, bad: &BadLine) -> Result<u64, Failure> {
        let before = self.failed.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bad.width, Ordering::Relaxed);
        self.show(before, "failed", bad.number, &bad.problem);
        self.reject("failed", bad.number, &bad.line, None, None, &bad.problem)?;
        Ok(before + 1)
    }

    /// A command is sent again.
    pub(super) fn retried(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    /// The counts now.
    pub(super) fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (accepted, refused, failed) = (read(&self.accepted), read(&self.refused), read(&self.failed));
        Counts {
            lines: accepted + refused + failed,
            accepted,
            refused,
            already_done: read(&self.replayed),
            failed,
            retries: read(&self.retries),
            position: read(&self.position),
        }
    }

    /// Shows progress until it is dropped.
    pub(super) async fn watch(&self) -> Infallible {
        let interval = if self.bar.is_some() { Duration::from_millis(100) } else { PLAIN_INTERVAL };
        let (mut last_lines, mut last_time) = (0, Instant::now());
        loop {
            tokio::time::sleep(interval).await;
            let (counts, now) = (self.counts(), Instant::now());
            let rate = (counts.lines - last_lines) as f64 / (now - last_time).as_secs_f64();
            match &self.bar {
                Some(bar) => {
                    bar.set_position(self.bytes.load(Ordering::Relaxed));
                    // A rate over the last 100 ms jumps about; the average is what tells how long it will take.
                    bar.set_message(describe(&counts, self.average()));
                }
                None => {
                    let part =
                        self.total_bytes.filter(|total| *total > 0).map_or_else(String::new, |total| {
                            format!("{:3}%  ", self.bytes.load(Ordering::Relaxed) * 100 / total)
                        });
                    self.output.note(format_args!("{part}{}", describe(&counts, rate as u64)));
                    (last_lines, last_time) = (counts.lines, now);
                }
            }
        }
    }

    /// The end: the bar goes, what was counted is told.
    pub(super) fn finish(&self) -> Result<Counts, Failure> {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        if let Some(rejects) = &self.rejects {
            let mut rejects = rejects.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            rejects
                .flush()
                .map_err(|error| Failure::new(format!("the file of rejects can't be written: {error}")))?;
        }
        let counts = self.counts();
        let elapsed = self.started.elapsed();
        if self.output.json {
            let mut report = serde_json::to_value(counts).unwrap_or_default();
            report["seconds"] = elapsed.as_secs_f64().into();
            report["lines_per_second"] = self.average().into();
            self.output.json(&report)?;
        } else {
            self.output.line(summary(&counts, elapsed, self.average()))?;
        }
        Ok(counts)
    }

    fn average(&self) -> u64 {
        (self.counts().lines as f64 / self.started.elapsed().as_secs_f64().max(0.001)) as u64
    }

    fn show(&self, before: u64, what: &str, number: u64, message: &str) {
        if before > SHOWN {
            return;
        }
        let style = self.output.note_style();
        let text = if before == SHOWN {
            let where_else = if self.rejects.is_some() {
                "see the file of rejects"
            } else {
                "--rejects FILE keeps all of them"
            };
            style.faint(format_args!("more lines were {what}; {where_else}"))
        } else {
            format!("{} line {number}: {}", style.warning(what), printable(message))
        };
        match &self.bar {
            Some(bar) => bar.suspend(|| self.output.note(text)),
            None => self.output.note(text),
        }
    }

    fn reject(
        &self,
        outcome: &str,
        line: u64,
        bytes: &Bytes,
        status: Option<u16>,
        code: Option<&str>,
        message: &str,
    ) -> Result<(), Failure> {
        let Some(rejects) = &self.rejects else { return Ok(()) };
        let input = serde_json::from_slice(bytes).ok();
        let text = input.is_none().then(|| String::from_utf8_lossy(bytes).into_owned());
        let reject = Reject { line, outcome, status, code, message, input, text };
        let mut rejects = rejects.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let written = serde_json::to_writer(&mut *rejects, &reject).map_err(Into::into);
        written.and_then(|()| rejects.write_all(b"\n")).map_err(|error: std::io::Error| {
            Failure::new(format!("the file of rejects can't be written: {error}"))
        })
    }
}

fn bar(total_bytes: Option<u64>) -> ProgressBar {
    let (bar, template) = match total_bytes {
        Some(total) => (ProgressBar::new(total), "{bar:32.cyan/blue} {percent:>3}%  {msg}  ({eta} left)"),
        None => (ProgressBar::new_spinner(), "{spinner} {msg}  ({elapsed})"),
    };
    // Ten times a second, whatever the counters do.
    bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(10));
    bar.with_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn describe(counts: &Counts, rate: u64) -> String {
    let mut text = format!("{} lines  {}/s", Grouped(counts.lines), Grouped(rate));
    let extras = [
        ("already done", counts.already_done),
        ("refused", counts.refused),
        ("failed", counts.failed),
        ("retries", counts.retries),
    ];
    for (name, count) in extras {
        if count > 0 {
            text.push_str(&format!("  {} {name}", Grouped(count)));
        }
    }
    text
}

fn summary(counts: &Counts, elapsed: Duration, rate: u64) -> String {
    let mut text = format!(
        "{} lines in {} ({}/s): {} accepted, {} refused, {} failed",
        Grouped(counts.lines),
        Elapsed(elapsed),
        Grouped(rate),
        Grouped(counts.accepted),
        Grouped(counts.refused),
        Grouped(counts.failed)
    );
    if counts.already_done > 0 {
        text.push_str(&format!("\n{} of them were done by an earlier run", Grouped(counts.already_done)));
    }
    if counts.retries > 0 {
        text.push_str(&format!("\n{} attempts were repeated", Grouped(counts.retries)));
    }
    if counts.position > 0 {
        text.push_str(&format!("\nlast position {}", counts.position));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_tells_what_an_earlier_run_had_done() {
        let counts = Counts {
            lines: 12_098,
            accepted: 12_090,
            refused: 8,
            already_done: 6_000,
            failed: 0,
            retries: 3,
            position: 12_163,
        };
        insta::assert_snapshot!(summary(&counts, Duration::from_millis(612), 19_767), @r"
        12,098 lines in 612 ms (19,767/s): 12,090 accepted, 8 refused, 0 failed
        6,000 of them were done by an earlier run
        3 attempts were repeated
        last position 12163
        ");
    }

    #[test]
    fn rejects_keep_the_line_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rejects.ndjson");
        let tally = Tally::new(Output::plain(), None, Some(&path)).unwrap();
        let bad = |text: &'static str| BadLine {
            number: 3,
            width: 9,
            line: Bytes::from(text),
            problem: "no".into(),
        };
        assert_eq!(tally.bad_line(&bad(r#"{"id": 1}"#)).unwrap(), 1);
        assert_eq!(tally.bad_line(&bad("hello")).unwrap(), 2);
        drop(tally);
        assert_eq!(
            std::fs::read_to_string(path).unwrap(),
            "{\"line\":3,\"outcome\":\"failed\",\"message\":\"no\",\"input\":{\"id\": 1}}\n\
             {\"line\":3,\"outcome\":\"failed\",\"message\":\"no\",\"text\":\"hello\"}\n"
        );
    }
}
