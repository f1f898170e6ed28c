//! Counters and histograms, and their Prometheus text. Names follow OpenTelemetry's semantic conventions in
//! Prometheus spelling where there is one (`http_server_request_duration_seconds`), and start with `ebbtide_` else.
//!
//! Written by hand: what is measured on the command path is a handful of relaxed atomic additions, and labels only
//! take values that the manifest or this file knows, so that no caller can make the registry grow.

mod functions;

use ebb_engine::Histogram as Counted;
use parking_lot::RwLock;
use std::collections::HashMap;
use std::fmt::{Display, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper bounds of the buckets, in seconds: from ten microseconds to ten seconds.
const BOUNDS: [f64; 19] = [
    0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25,
    0.5, 1.0, 2.5, 5.0, 10.0,
];

/// Aggregates and functions that have series of their own, those that were called first; the others of an app are
/// counted together, as [`OTHER`]. A page stays a matter of megabytes, and no series ever changes its meaning.
pub(crate) const SERIES: usize = 500;
/// See [`SERIES`].
const OTHER: &str = "other";

/// A histogram of durations.
#[derive(Default)]
pub(crate) struct Histogram {
    /// One for each bound, and one for what is above them all.
    buckets: [AtomicU64; BOUNDS.len() + 1],
    sum_nanos: AtomicU64,
}

impl Histogram {
    pub(crate) fn observe(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let bucket = BOUNDS.partition_point(|bound| *bound < seconds);
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.sum_nanos.fetch_add(duration.as_nanos() as u64, Relaxed);
    }

    fn is_empty(&self) -> bool {
        self.buckets.iter().all(|bucket| bucket.load(Relaxed) == 0)
    }
}

/// How a command ended, for its label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CommandOutcome {
    Accepted,
    Replayed,
    Refused,
    Conflict,
    Invalid,
    Throttled,
    Failed,
}

impl CommandOutcome {
    const ALL: [(Self, &str); 7] = [
        (Self::Accepted, "accepted"),
        (Self::Replayed, "replayed"),
        (Self::Refused, "refused"),
        (Self::Conflict, "conflict"),
        (Self::Invalid, "invalid"),
        (Self::Throttled, "throttled"),
        (Self::Failed, "failed"),
    ];
}

/// What a request was for, for its label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RouteLabel {
    Commands,
    CommandLog,
    Streams,
    Events,
    Models,
    OpenApi,
    AsyncApi,
    Function,
    Other,
}

impl RouteLabel {
    const ALL: [(Self, &str); 9] = [
        (Self::Commands, "/commands/{aggregate}/{id}/{command}"),
        (Self::CommandLog, "/command-log/{id}"),
        (Self::Streams, "/streams/{stream}"),
        (Self::Events, "/events"),
        (Self::Models, "/models/{model}"),
        (Self::OpenApi, "/openapi.json"),
        (Self::AsyncApi, "/asyncapi.json"),
        (Self::Function, "function"),
        (Self::Other, "other"),
    ];
}

/// 2xx and 3xx, 4xx, 5xx: finer statuses are in the log.
const CLASSES: [&str; 3] = ["2xx", "4xx", "5xx"];

type CommandHistograms = [Histogram; CommandOutcome::ALL.len()];

/// Everything that the edge counts.
#[derive(Default)]
pub(crate) struct Metrics {
    requests: [[Histogram; CLASSES.len()]; RouteLabel::ALL.len()],
    /// By app, then aggregate.
    commands: RwLock<HashMap<String, HashMap<String, Arc<CommandHistograms>>>>,
    pub(crate) live_streams: AtomicU64,
    in_flight: Option<InFlight>,
}

/// Requests that wait for their answers, by app, then function.
#[derive(Default)]
pub(crate) struct InFlight(RwLock<HashMap<String, HashMap<String, Arc<AtomicU64>>>>);

/// One request, until it is dropped.
pub(crate) struct Entered(Arc<AtomicU64>);

impl Drop for Entered {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl InFlight {
    fn enter(&self, app: &str, function: &str) -> Entered {
        let known = self.0.read().get(app).and_then(|app| app.get(function)).cloned();
        let count = known.unwrap_or_else(|| {
            let mut apps = self.0.write();
            apps.entry(app.to_owned()).or_default().entry(function.to_owned()).or_default().clone()
        });
        count.fetch_add(1, Relaxed);
        Entered(count)
    }

    fn count(&self, app: &str, function: Option<&str>) -> u64 {
        let apps = self.0.read();
        let functions = apps.get(app).into_iter().flatten();
        let wanted = functions.filter(|(name, _)| function.is_none_or(|function| function == name.as_str()));
        wanted.map(|(_, count)| count.load(Relaxed)).sum()
    }
}

impl Metrics {
    /// Requests in flight are counted where somebody scales by them.
    pub(crate) fn new(in_flight: Option<InFlight>) -> Self {
        Self { in_flight, ..Self::default() }
    }

    pub(crate) fn request(&self, route: RouteLabel, status: http::StatusCode, took: Duration) {
        let class = match status.as_u16() {
            500.. => 2,
            400.. => 1,
            _ => 0,
        };
        self.requests[route as usize][class].observe(took);
    }

    /// Counts a command. The aggregate must be one that the app has.
    pub(crate) fn command(&self, app: &str, aggregate: &str, outcome: CommandOutcome, took: Duration) {
        if let Some(histograms) = self.commands.read().get(app).and_then(|app| app.get(aggregate)) {
            return histograms[outcome as usize].observe(took);
        }
        let mut commands = self.commands.write();
        let known = commands.values().map(HashMap::len).sum::<usize>();
        let app = commands.entry(app.to_owned()).or_default();
        let aggregate = if known < SERIES { aggregate } else { OTHER };
        app.entry(aggregate.to_owned()).or_default()[outcome as usize].observe(took);
    }

    /// A request begins, and ends when what this gives is dropped. The function must be one that the app has.
    pub(crate) fn enter<N: AsRef<str>>(&self, app: &str, function: impl FnOnce() -> N) -> Option<Entered> {
        self.in_flight.as_ref().map(|in_flight| in_flight.enter(app, function().as_ref()))
    }

    /// Forgets an app that was removed.
    pub(crate) fn forget(&self, app: &str) {
        self.commands.write().remove(app);
        if let Some(in_flight) = &self.in_flight {
            in_flight.0.write().remove(app);
        }
    }

    /// How many there are now, of a function or of the whole app.
    pub(crate) fn in_flight(&self, app: &str, function: Option<&str>) -> u64 {
        self.in_flight.as_ref().map_or(0, |in_flight| in_flight.count(app, function))
    }

    /// Writes what the edge has counted.
    pub(crate) fn write(&self, page: &mut Page) {
        page.family(
            "http_server_request_duration_seconds",
            "histogram",
            "Time from a request's head to its answer's.",
        );
        for ((_, label), classes) in RouteLabel::ALL.iter().zip(&self.requests) {
            for (class, histogram) in CLASSES.iter().zip(classes) {
                page.histogram(&[("http_route", label), ("http_response_status_class", class)], histogram);
            }
        }
        page.family(
            "ebbtide_command_duration_seconds",
            "histogram",
            "Time from a command's head to its durable answer.",
        );
        for (app, aggregates) in &*self.commands.read() {
            for (aggregate, histograms) in aggregates {
                for ((_, outcome), histogram) in CommandOutcome::ALL.iter().zip(&**histograms) {
                    page.histogram(
                        &[("app", app), ("aggregate", aggregate), ("outcome", outcome)],
                        histogram,
                    );
                }
            }
        }
        page.family("ebbtide_live_streams", "gauge", "Live event streams.");
        page.value(&[], self.live_streams.load(Relaxed));
    }
}

/// Prometheus text, version 0.0.4.
#[derive(Default)]
pub(crate) struct Page {
    text: String,
    name: &'static str,
}

impl Page {
    /// Starts a family: what follows are its samples.
    pub(crate) fn family(&mut self, name: &'static str, kind: &str, help: &str) {
        self.name = name;
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// A sample.
    pub(crate) fn value(&mut self, labels: &[(&str, &str)], value: impl Display) {
        self.sample("", labels, None, value);
    }

    /// A histogram's samples; none while it has seen nothing.
    fn histogram(&mut self, labels: &[(&str, &str)], histogram: &Histogram) {
        if histogram.is_empty() {
            return;
        }
        let mut count = 0;
        for (at, bucket) in histogram.buckets.iter().enumerate() {
            count += bucket.load(Relaxed);
            let bound = BOUNDS.get(at).map_or_else(|| "+Inf".to_owned(), ToString::to_string);
            self.sample("_bucket", labels, Some(&bound), count);
        }
        self.sample("_sum", labels, None, histogram.sum_nanos.load(Relaxed) as f64 / 1e9);
        self.sample("_count", labels, None, count);
    }

    /// A histogram's samples in units of `unit`; none while it has seen nothing.
    fn counted(&mut self, labels: &[(&str, &str)], histogram: &Counted, unit: f64) {
        if histogram.count() == 0 {
            return;
        }
        for (bound, count) in histogram.cumulative() {
            self.sample("_bucket", labels, Some(&(bound as f64 / unit).to_string()), count);
        }
        self.sample("_bucket", labels, Some("+Inf"), histogram.count());
        self.sample("_sum", labels, None, histogram.sum() as f64 / unit);
        self.sample("_count", labels, None, histogram.count());
    }

    fn sample(&mut self, suffix: &str, labels: &[(&str, &str)], bound: Option<&str>, value: impl Display) {
        let _ = write!(self.text, "{}{suffix}", self.name);
        let labels = labels.iter().copied().chain(bound.map(|bound| ("le", bound)));
        let mut separator = '{';
        for (name, value) in labels {
            let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.text, "{separator}{name}=\"{value}\"");
            separator = ',';
        }
        if separator == ',' {
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {value}");
    }

    /// Memory and processor time of the process, from the kernel; nothing where there is no `/proc`.
    pub(crate) fn process(&mut self) {
        let Some(process) = Process::read() else { return };
        self.family("process_resident_memory_bytes", "gauge", "Memory that the process has in RAM.");
        self.value(&[], process.resident_bytes);
        self.family("process_cpu_seconds_total", "counter", "Processor time of the process, all threads.");
        self.value(&[], process.cpu_seconds);
        self.family("process_open_fds", "gauge", "Open files and sockets.");
        self.value(&[], process.open_files);
    }

    pub(crate) fn finish(self) -> String {
        self.text
    }
}

struct Process {
    resident_bytes: u64,
    cpu_seconds: f64,
    open_files: usize,
}

impl Process {
    fn read() -> Option<Self> {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        let resident_kib: u64 = resident.trim().trim_end_matches(" kB").trim().parse().ok()?;
        // Clock ticks are 1/100 s on every Linux that user space sees. The second field, the command, may have
        // spaces; what follows its closing parenthesis does not.
        let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
        let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
        let user: u64 = fields.nth(11)?.parse().ok()?;
        let system: u64 = fields.next()?.parse().ok()?;
        Some(Self {
            resident_bytes: resident_kib * 1024,
            cpu_seconds: (user + system) as f64 / 100.0,
            open_files: std::fs::read_dir("/proc/self/fd").ok()?.count(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_counts_what_is_at_most_its_bound() {
        let metrics = Metrics::default();
        metrics.command("flights", "flight", CommandOutcome::Accepted, Duration::from_micros(100));
        metrics.command("flights", "flight", CommandOutcome::Accepted, Duration::from_micros(101));
        metrics.command("flights", "flight", CommandOutcome::Accepted, Duration::from_secs(60));
        let mut page = Page::default();
        metrics.write(&mut page);
        let text = page.finish();
        let sample = |le: &str| {
            let labels =
                format!("{{app=\"flights\",aggregate=\"flight\",outcome=\"accepted\",le=\"{le}\"}} ");
            let line = text.lines().find_map(|line| {
                line.strip_prefix(&format!("ebbtide_command_duration_seconds_bucket{labels}"))
            });
            line.map(str::to_owned)
        };
        assert_eq!(sample("0.0001").as_deref(), Some("1"));
        assert_eq!(sample("10").as_deref(), Some("2"));
        assert_eq!(sample("+Inf").as_deref(), Some("3"));
    }

    #[test]
    fn labels_index_their_own_histograms() {
        for (at, (route, _)) in RouteLabel::ALL.iter().enumerate() {
            assert_eq!(*route as usize, at);
        }
        for (at, (outcome, _)) in CommandOutcome::ALL.iter().enumerate() {
            assert_eq!(*outcome as usize, at);
        }
    }

    #[test]
    fn a_label_can_not_break_out_of_its_quotes() {
        let mut page = Page::default();
        page.family("x", "gauge", "X.");
        page.value(&[("a", "\"}\n\\")], 1);
        assert!(page.finish().ends_with("x{a=\"\\\"}\\n\\\\\"} 1\n"));
    }
}
