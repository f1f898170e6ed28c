//! What functions used, in OpenTelemetry's words (`faas.*`) where it has them.
//!
//! A function that was never called has no series. [`SERIES`] of those that were have their own.

use super::{OTHER, Page, SERIES};
use ebb_engine::{Census, FunctionUsage, Outcome};
use std::collections::BTreeMap;

const NANOS: f64 = 1e9;
const MICROS: f64 = 1e6;

/// A histogram of each function: its family, what it says, which it is, and its unit.
type Distribution = (&'static str, &'static str, fn(&FunctionUsage) -> &ebb_engine::Histogram, f64);

const DISTRIBUTIONS: [Distribution; 4] = [
    (
        "faas_invoke_duration_seconds",
        "Time of invocations, neither waiting for a place nor initialisation included.",
        |usage| &usage.durations,
        NANOS,
    ),
    (
        "faas_init_duration_seconds",
        "Loading the module and making an instance, of invocations that needed it.",
        |usage| &usage.inits,
        NANOS,
    ),
    ("faas_cpu_usage_seconds", "Computing time of invocations.", |usage| &usage.cpu, NANOS),
    (
        "faas_mem_usage_bytes",
        "Memories and tables of the instance at their largest, of invocations.",
        |usage| &usage.memory,
        1.0,
    ),
];

/// A counter of each function: its family, what it says, and what it is.
type Counter = (&'static str, &'static str, fn(&FunctionUsage) -> f64);

const COUNTERS: [Counter; 10] = [
    ("faas_invocations_total", "Invocations that were answered; a refusal is an answer.", |usage| {
        usage.succeeded() as f64
    }),
    ("faas_timeouts_total", "Invocations that reached `limits.wall`.", |usage| {
        let timeouts = usage.errors.iter().find(|error| error.kind == Outcome::OutOfTime);
        timeouts.map_or(0, |error| error.count) as f64
    }),
    ("ebbtide_function_refusals_total", "Commands that the module refused.", |usage| usage.refused as f64),
    ("ebbtide_function_canceled_total", "Invocations whose caller went away.", |usage| usage.canceled as f64),
    ("ebbtide_function_throttled_total", "Calls that found no place, slot or memory.", |usage| {
        usage.throttled as f64
    }),
    ("ebbtide_function_billed_seconds_total", "Billed time.", |usage| usage.billed_millis as f64 / 1e3),
    (
        "ebbtide_function_billed_byte_seconds_total",
        "Billed time, times what the instance had of memory.",
        |usage| usage.gib_seconds * f64::from(1 << 30),
    ),
    ("ebbtide_function_cpu_seconds_total", "Computing time, of upkeep as well.", |usage| {
        usage.cpu_micros as f64 / MICROS
    }),
    ("ebbtide_function_queue_seconds_total", "Time that calls waited for a place.", |usage| {
        usage.waited_micros as f64 / MICROS
    }),
    (
        "ebbtide_function_upkeep_seconds_total",
        "Time for aggregates besides decisions: opening, folding, snapshots; and for instances that are kept ready.",
        |usage| usage.upkeep_micros as f64 / MICROS,
    ),
];

/// Functions as they are listed, with the labels of each.
struct Listed(Vec<FunctionUsage>);

impl Listed {
    /// The first `series` by number, and what the others of each app come to.
    fn of(usage: Vec<FunctionUsage>, series: usize) -> Self {
        let (mut listed, mut others) = (Vec::new(), BTreeMap::<_, FunctionUsage>::new());
        for usage in usage {
            if usage.number < series {
                listed.push(usage);
                continue;
            }
            let of_app = (usage.app.clone(), usage.trigger.name());
            match others.get_mut(&of_app) {
                Some(sum) => sum.add(&usage),
                None => drop(others.insert(of_app, FunctionUsage { function: OTHER.into(), ..usage })),
            }
        }
        listed.extend(others.into_values());
        Self(listed)
    }

    fn each(&self, mut sample: impl FnMut(&FunctionUsage, [(&str, &str); 3])) {
        for usage in &self.0 {
            let trigger = usage.trigger.name();
            let labels = [("app", &*usage.app), ("faas_name", &*usage.function), ("faas_trigger", trigger)];
            sample(usage, labels);
        }
    }
}

impl Page {
    /// What functions used.
    pub(crate) fn functions(&mut self, usage: Vec<FunctionUsage>) {
        let listed = Listed::of(usage, SERIES);
        for (name, help, histogram, unit) in DISTRIBUTIONS {
            self.family(name, "histogram", help);
            listed.each(|usage, labels| self.counted(&labels, histogram(usage), unit));
        }
        for (name, help, count) in COUNTERS {
            self.family(name, "counter", help);
            listed.each(|usage, labels| self.value(&labels, count(usage)));
        }
        self.family("faas_errors_total", "counter", "Invocations that failed, by what they failed of.");
        listed.each(|usage, labels| {
            for error in &usage.errors {
                let [app, name, trigger] = labels;
                self.value(&[app, name, trigger, ("error_type", error.kind.name())], error.count);
            }
        });
        self.family(
            "faas_coldstarts_total",
            "counter",
            "Invocations that needed an instance: of code that was loaded, or with the function still cold.",
        );
        listed.each(|usage, labels| {
            let [app, name, trigger] = labels;
            for (start, count) in [("loaded", usage.starts.loaded), ("cold", usage.starts.cold)] {
                self.value(&[app, name, trigger, ("start", start)], count);
            }
        });
    }

    /// What there is of functions now.
    pub(crate) fn census(&mut self, census: &Census) {
        self.family(
            "ebbtide_functions",
            "gauge",
            "Functions that are deployed, by how much of them is there.",
        );
        for (state, count) in [("cold", census.cold), ("loaded", census.loaded), ("warm", census.warm)] {
            self.value(&[("state", state)], count);
        }
        self.family(
            "ebbtide_function_instances",
            "gauge",
            "Instances, in use or idle, of functions that have any.",
        );
        for (app, function, instances) in &census.instances {
            self.value(&[("app", app), ("faas_name", function)], instances);
        }
        self.family(
            "ebbtide_function_memory_bytes",
            "gauge",
            "What instances and loaded modules take together.",
        );
        self.value(&[], census.memory_bytes);
    }
}
