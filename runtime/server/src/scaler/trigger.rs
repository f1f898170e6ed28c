//! What a ScaledObject's trigger asks for: its `metadata`, read once into types, with every problem at once.

use ebb_domain::scaling::{LagRules, RequestRules};
use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU64;

/// Those that KEDA reads itself, and passes on.
const KEDAS: [&str; 6] =
    ["scalerAddress", "enableTLS", "unsafeSsl", "caCert", "tlsClientCert", "tlsClientKey"];
const LAG: [&str; 7] = [
    "app",
    "metric",
    "consumer",
    "lagThreshold",
    "activationLagThreshold",
    "allowIdleConsumers",
    "limitToPartitionsWithLag",
];
const REQUESTS: [&str; 5] = ["app", "metric", "function", "requestsThreshold", "activationRequestsThreshold"];
/// As KEDA's own scaler for Kafka has it.
const LAG_THRESHOLD: NonZeroU64 = NonZeroU64::new(10).unwrap();
/// Somewhat less than the 64 calls that one function has at once unless its manifest says otherwise, so that more workers
/// are there before callers wait.
const REQUESTS_THRESHOLD: NonZeroU64 = NonZeroU64::new(50).unwrap();

/// What is measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Metric {
    Lag { consumer: String, rules: LagRules },
    Requests { function: Option<String>, rules: RequestRules },
}

/// A trigger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trigger {
    pub(super) app: String,
    pub(super) metric: Metric,
}

impl Trigger {
    /// Reads the metadata.
    pub(super) fn read(metadata: &HashMap<String, String>) -> Result<Self, String> {
        let mut reader = Reader { given: BTreeMap::new(), problems: Vec::new() };
        for (key, value) in metadata {
            // What KEDA has looked up in the workload's environment still has the name of its key.
            reader.given.insert(key.strip_suffix("FromEnv").unwrap_or(key), value);
        }
        let app = reader.required("app", "the app's name, as in `ebb status`");
        let metric = match reader.text("metric") {
            None | Some("lag") => {
                reader.only(&LAG);
                Metric::Lag {
                    consumer: reader.required(
                        "consumer",
                        "what has the lag, as in the list of functions: `projection.delays`",
                    ),
                    rules: LagRules {
                        threshold: reader.threshold("lagThreshold", LAG_THRESHOLD),
                        activation: reader.number("activationLagThreshold"),
                        allow_idle: reader.flag("allowIdleConsumers"),
                        only_lagging: reader.flag("limitToPartitionsWithLag"),
                    },
                }
            }
            Some("requests") => {
                reader.only(&REQUESTS);
                Metric::Requests {
                    function: reader.text("function").map(str::to_owned),
                    rules: RequestRules {
                        threshold: reader.threshold("requestsThreshold", REQUESTS_THRESHOLD),
                        activation: reader.number("activationRequestsThreshold"),
                    },
                }
            }
            Some(other) => {
                reader.problem(format!("`metric` is `{other}`; it takes lag or requests"));
                return Err(reader.problems.join("; "));
            }
        };
        if reader.problems.is_empty() { Ok(Self { app, metric }) } else { Err(reader.problems.join("; ")) }
    }

    /// The metric's name. KEDA puts an index before it, and the cluster's API has it in a path.
    pub(super) fn metric_name(&self) -> String {
        let Self { app, metric } = self;
        let name = match metric {
            Metric::Lag { consumer, .. } => format!("ebbtide-lag-{app}-{consumer}"),
            Metric::Requests { function: Some(function), .. } => format!("ebbtide-requests-{app}-{function}"),
            Metric::Requests { function: None, .. } => format!("ebbtide-requests-{app}"),
        };
        name.replace('.', "-")
    }

    /// What one worker may have of it.
    pub(super) fn threshold(&self) -> NonZeroU64 {
        match &self.metric {
            Metric::Lag { rules, .. } => rules.threshold,
            Metric::Requests { rules, .. } => rules.threshold,
        }
    }
}

struct Reader<'a> {
    given: BTreeMap<&'a str, &'a str>,
    problems: Vec<String>,
}

impl<'a> Reader<'a> {
    fn problem(&mut self, problem: String) {
        self.problems.push(problem);
    }

    fn text(&self, key: &str) -> Option<&'a str> {
        self.given.get(key).copied().filter(|value| !value.is_empty())
    }

    fn required(&mut self, key: &str, takes: &str) -> String {
        let given = self.text(key);
        if given.is_none() {
            self.problem(format!("`{key}` is missing: {takes}"));
        }
        given.unwrap_or_default().to_owned()
    }

    /// A key that nobody reads is one that somebody counts on.
    fn only(&mut self, known: &[&str]) {
        let unknown: Vec<_> =
            self.given.keys().filter(|key| !known.contains(key) && !KEDAS.contains(key)).copied().collect();
        for key in unknown {
            self.problem(format!("`{key}` is not for this metric; there are {}", known.join(", ")));
        }
    }

    fn parsed<T: std::str::FromStr>(&mut self, key: &str, takes: &str, default: T) -> T {
        let Some(text) = self.text(key) else { return default };
        text.trim().parse().unwrap_or_else(|_| {
            self.problem(format!("`{key}` is `{text}`; it takes {takes}"));
            default
        })
    }

    fn threshold(&mut self, key: &str, default: NonZeroU64) -> NonZeroU64 {
        // What the old field of the interface holds, too.
        let threshold: NonZeroU64 = self.parsed(key, "a whole number from 1", default);
        if i64::try_from(threshold.get()).is_ok() {
            return threshold;
        }
        self.problem(format!("`{key}` is `{threshold}`; it takes at most {}", i64::MAX));
        default
    }

    fn number(&mut self, key: &str) -> u64 {
        self.parsed(key, "a whole number", 0)
    }

    fn flag(&mut self, key: &str) -> bool {
        self.parsed(key, "true or false", false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(metadata: &[(&str, &str)]) -> Result<Trigger, String> {
        Trigger::read(&metadata.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect())
    }

    #[test]
    fn lag_is_what_is_measured_unless_the_trigger_says_otherwise() {
        let trigger = read(&[
            ("scalerAddress", "ebb.default:8082"),
            ("app", "flights"),
            ("consumer", "projection.delays"),
            ("activationLagThresholdFromEnv", "3"),
        ])
        .unwrap();
        assert_eq!(trigger.metric_name(), "ebbtide-lag-flights-projection-delays");
        assert_eq!(trigger.threshold().get(), 10);
        let Metric::Lag { rules, .. } = trigger.metric else { panic!("{trigger:?}") };
        assert_eq!((rules.activation, rules.allow_idle, rules.only_lagging), (3, false, false));
        let trigger = read(&[("app", "flights"), ("metric", "requests")]).unwrap();
        assert_eq!(
            (trigger.metric_name().as_str(), trigger.threshold().get()),
            ("ebbtide-requests-flights", 50)
        );
    }

    #[test]
    fn every_problem_is_told_at_once() {
        let problems = read(&[("lagThreshold", "0"), ("allowIdleConsumers", "yes"), ("topic", "flights")]);
        insta::assert_snapshot!(problems.unwrap_err().replace("; `", "\n`"), @r"
        `app` is missing: the app's name, as in `ebb status`
        `topic` is not for this metric; there are app, metric, consumer, lagThreshold, activationLagThreshold, allowIdleConsumers, limitToPartitionsWithLag
        `consumer` is missing: what has the lag, as in the list of functions: `projection.delays`
        `lagThreshold` is `0`; it takes a whole number from 1
        `allowIdleConsumers` is `yes`; it takes true or false
        ");
        insta::assert_snapshot!(read(&[("app", "flights"), ("metric", "cpu")]).unwrap_err(), @"`metric` is `cpu`; it takes lag or requests");
    }
}
