//! Servers under load: each figure's runs in turn with the others', so that what else the machine does meets all of
//! them, and set against another's.

use crate::http::{Load, Requests, load};
use crate::node::Server;
use crate::{RUNS, SPAN, cpu_seconds, median, row};
use std::time::Duration;

/// A line of the table.
pub struct Figure<'a> {
    what: &'static str,
    server: &'a Server,
    clients: usize,
    requests: &'a Requests,
    /// The figure that it is set against, by its place in the table.
    against: Option<usize>,
    runs: Vec<Run>,
}

/// Microseconds, but for the rate and the count.
struct Run {
    rate: f64,
    p50: f64,
    p99: f64,
    p999: f64,
    /// Of the server, for each request.
    cpu: f64,
}

impl<'a> Figure<'a> {
    pub fn new(what: &'static str, server: &'a Server, clients: usize, requests: &'a Requests) -> Self {
        Self { what, server, clients, requests, against: None, runs: Vec::new() }
    }

    pub fn against(self, other: usize) -> Self {
        Self { against: Some(other), ..self }
    }

    async fn run(&self, span: Duration) -> Run {
        let before = cpu_seconds(self.server.pid);
        let load = load(&self.server.address, self.clients, span, self.requests).await;
        Run::of(load, cpu_seconds(self.server.pid) - before)
    }

    fn median(&self, value: fn(&Run) -> f64) -> f64 {
        median(self.runs.iter().map(value).collect())
    }
}

impl Run {
    fn of(mut load: Load, cpu: f64) -> Self {
        // A server that answers quickly that it does not is not quick.
        assert_eq!(load.failed, 0, "answers that are not 200 count for nothing");
        let mut at = |percent| load.times.percentile(percent).as_secs_f64() * 1e6;
        let (p50, p99, p999) = (at(50.0), at(99.0), at(99.9));
        Self { rate: load.rate(), p50, p99, p999, cpu: cpu * 1e6 / load.times.len() as f64 }
    }
}

/// Measures them all, and writes the table.
pub async fn measure(unit: &str, figures: &mut [Figure<'_>]) {
    for figure in &*figures {
        figure.run(Duration::from_secs(1)).await;
    }
    for _ in 0..RUNS {
        for figure in &mut *figures {
            let run = figure.run(SPAN).await;
            figure.runs.push(run);
        }
    }
    for figure in &*figures {
        let against = figure.against.map_or_else(String::new, |other| {
            let other = &figures[other];
            let ratios = figure.runs.iter().zip(&other.runs).map(|(run, other)| run.rate / other.rate);
            format!("{:.2} x `{}`; ", median(ratios.collect()), other.what)
        });
        let note = format!(
            "{against}p50 {:.0} us, p99 {:.0} us, p99.9 {:.0} us, {:.1} us CPU of the server each",
            figure.median(|run| run.p50),
            figure.median(|run| run.p99),
            figure.median(|run| run.p999),
            figure.median(|run| run.cpu),
        );
        row(figure.what, figure.median(|run| run.rate), unit, &note);
    }
}
