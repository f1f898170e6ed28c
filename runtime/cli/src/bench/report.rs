//! What was measured, as a table and as JSON.

use super::load::Measured;
use crate::output::{Align, Grouped, Palette, Table};
use serde::Serialize;
use std::collections::BTreeMap;

/// A quarter that is so far behind the best one says that something else was going on.
const UNSTEADY: f64 = 0.3;

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) machine: Machine,
    pub(super) rows: Vec<Row>,
    pub(super) warnings: Vec<String>,
    /// Measurements whose quarters lie far apart: something else was going on.
    unsteady: Vec<&'static str>,
    /// It was ended before its end.
    pub(super) interrupted: bool,
}

/// What it was measured on.
#[derive(Debug, Serialize)]
pub(super) struct Machine {
    pub(super) cores: usize,
    pub(super) load: Option<f64>,
    pub(super) profile: &'static str,
    pub(super) version: &'static str,
    /// Where the data was, or which server was asked.
    pub(super) place: String,
    pub(super) clients: usize,
    pub(super) seconds: u64,
}

/// One figure.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) per_second: f64,
    pub(super) latency_us: Latency,
    pub(super) ok: u64,
    pub(super) errors: BTreeMap<String, u64>,
    /// What it is measured against, and the part of its rate that it reaches.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) against: Option<Against>,
}

/// Times in microseconds.
#[derive(Debug, Serialize)]
pub(super) struct Latency {
    p50: u64,
    p99: u64,
    p999: u64,
    max: u64,
}

/// A baseline.
#[derive(Debug, Serialize)]
pub(super) struct Against {
    name: &'static str,
    ratio: f64,
}

impl Report {
    pub(super) fn new(machine: Machine) -> Self {
        let mut warnings = Vec::new();
        if machine.profile == "debug" {
            warnings.push("this is a debug build: its figures say nothing about a release".to_owned());
        }
        if let Some(load) = machine.load.filter(|load| *load > machine.cores as f64 * 0.25) {
            warnings
                .push(format!("the machine is busy already: a load of {load:.1} on {} cores", machine.cores));
        }
        Self { machine, rows: Vec::new(), warnings, unsteady: Vec::new(), interrupted: false }
    }

    /// One figure more; `against` names a row that is there.
    pub(super) fn add(&mut self, name: &'static str, measured: &Measured, against: Option<&'static str>) {
        let quantile = |part| measured.times.value_at_quantile(part);
        let latency_us = Latency {
            p50: quantile(0.5),
            p99: quantile(0.99),
            p999: quantile(0.999),
            max: if measured.ok == 0 { 0 } else { measured.times.max() },
        };
        let per_second = measured.rate();
        let against = against.and_then(|name| {
            let baseline = self.rows.iter().find(|row| row.name == name)?;
            (baseline.per_second > 0.0).then(|| Against { name, ratio: per_second / baseline.per_second })
        });
        if measured.spread() > UNSTEADY {
            self.unsteady.push(name);
        }
        let (ok, errors) = (measured.ok, measured.errors.clone());
        self.rows.push(Row { name, per_second, latency_us, ok, errors, against });
    }

    pub(super) fn has_errors(&self) -> bool {
        self.rows.iter().any(|row| !row.errors.is_empty())
    }

    pub(super) fn render(&self, style: Palette) -> String {
        let machine = &self.machine;
        let mut table = Table::new([
            ("", Align::Left),
            ("per second", Align::Right),
            ("p50", Align::Right),
            ("p99", Align::Right),
            ("p99.9", Align::Right),
            ("errors", Align::Right),
            ("of its baseline", Align::Left),
        ]);
        for row in &self.rows {
            let errors: u64 = row.errors.values().sum();
            let against = row.against.as_ref();
            table.row([
                row.name.to_owned(),
                Grouped(row.per_second.round() as u64).to_string(),
                time(row.latency_us.p50),
                time(row.latency_us.p99),
                time(row.latency_us.p999),
                if errors == 0 { "-".to_owned() } else { Grouped(errors).to_string() },
                against
                    .map_or_else(String::new, |against| format!("{:.2} x {}", against.ratio, against.name)),
            ]);
        }
        let mut parts = vec![
            format!(
                "{}: {} clients, {} s each; {} cores; ebb {} ({})",
                machine.place,
                machine.clients,
                machine.seconds,
                machine.cores,
                machine.version,
                machine.profile
            ),
            table.render(style),
        ];
        let errors = self.rows.iter().filter(|row| !row.errors.is_empty()).map(|row| {
            let codes = row.errors.iter().map(|(code, count)| format!("{} {code}", Grouped(*count)));
            format!("{} {}: {}", style.error("errors"), row.name, codes.collect::<Vec<_>>().join(", "))
        });
        let warnings = self.warnings.iter().map(|warning| format!("{} {warning}", style.warning("warning:")));
        let notes: Vec<String> = errors.chain(warnings).collect();
        if !notes.is_empty() {
            parts.push(notes.join("\n"));
        }
        if self.interrupted {
            parts.push(style.faint("interrupted: what was measured until then"));
        }
        parts.join("\n\n")
    }
}

/// `87 us`, `1.42 ms`, `2.31 s`.
fn time(micros: u64) -> String {
    match micros {
        0 => "-".to_owned(),
        1..1_000 => format!("{micros} us"),
        1_000..1_000_000 => format!("{:.2} ms", micros as f64 / 1e3),
        _ => format!("{:.2} s", micros as f64 / 1e6),
    }
}

/// The load of the last minute, where the system tells.
pub(super) fn load_average() -> Option<f64> {
    std::fs::read_to_string("/proc/loadavg").ok()?.split(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn machine(profile: &'static str, load: f64) -> Machine {
        let place = "in a folder of /data".to_owned();
        Machine { cores: 2, load: Some(load), profile, version: "1.0.0", place, clients: 64, seconds: 3 }
    }

    #[test]
    fn a_report_names_baselines_errors_and_what_to_doubt() {
        let mut report = Report::new(machine("debug", 1.5));
        let mut native = Measured::new();
        native.took = Duration::from_secs(2);
        (0..100).for_each(|_| native.good(Duration::from_micros(1500)));
        report.add("native", &native, None);
        native.bad("overloaded");
        native.took = Duration::from_secs(4);
        report.add("commands", &native, Some("native"));
        assert!(report.has_errors());
        insta::assert_snapshot!(report.render(Palette(false)), @r"
        in a folder of /data: 64 clients, 3 s each; 2 cores; ebb 1.0.0 (debug)

                  per second      p50      p99    p99.9  errors  of its baseline
        native            50  1.50 ms  1.50 ms  1.50 ms       -
        commands          25  1.50 ms  1.50 ms  1.50 ms       1  0.50 x native

        errors commands: 1 overloaded
        warning: this is a debug build: its figures say nothing about a release
        warning: the machine is busy already: a load of 1.5 on 2 cores
        ");
    }
}
