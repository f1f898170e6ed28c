//! The keys of each section; the published schema for editors has the same ones, which a test checks.

pub(in crate::manifest) const ROOT: &[&str] =
    &["app", "build", "aggregate", "model", "projection", "function", "topic"];
pub(in crate::manifest) const APP: &[&str] = &["name", "hosts", "cors", "relay", "chains"];
pub(in crate::manifest) const CHAINS: &[&str] = &["hops", "per-minute"];
pub(in crate::manifest) const CORS: &[&str] = &["origins", "max-age"];
pub(in crate::manifest) const BUILD: &[&str] = &["command", "watch"];
pub(in crate::manifest) const AGGREGATE: &[&str] = &[
    "module",
    "commands",
    "events",
    "snapshot-every",
    "state-version",
    "record-commands",
    "allow",
    "limits",
    "instances",
    "source",
];
pub(in crate::manifest) const COMMAND: &[&str] = &["schema"];
pub(in crate::manifest) const EVENT: &[&str] = &["version", "schema"];
pub(in crate::manifest) const MODEL: &[&str] = &["key", "columns", "indexes", "allow"];
pub(in crate::manifest) const PROJECTION: &[&str] = &[
    "module",
    "models",
    "source",
    "batch",
    "lanes",
    "lane-by",
    "retry",
    "dead-letter",
    "max-parked",
    "limits",
    "instances",
];
pub(in crate::manifest) const SOURCE: &[&str] = &["aggregates", "types", "topics", "group", "via"];
pub(in crate::manifest) const BATCH: &[&str] = &["max-events", "max-wait"];
pub(in crate::manifest) const LANE_BY: &[&str] = &["field"];
pub(in crate::manifest) const RETRY: &[&str] = &["attempts", "backoff", "max-backoff", "max-age"];
pub(in crate::manifest) const LIMITS: &[&str] = &["memory", "cpu", "wall", "concurrency"];
pub(in crate::manifest) const INSTANCES: &[&str] = &["reuse", "max", "idle", "aggregates", "warm"];
pub(in crate::manifest) const FUNCTION: &[&str] =
    &["module", "trigger", "allow", "capabilities", "limits", "instances"];
pub(in crate::manifest) const TRIGGER: &[&str] = &["http", "events"];
pub(in crate::manifest) const EVENTS: &[&str] = &[
    "aggregates",
    "types",
    "topics",
    "group",
    "via",
    "from",
    "batch",
    "lanes",
    "lane-by",
    "retry",
    "dead-letter",
    "max-parked",
];
pub(in crate::manifest) const TOPIC: &[&str] = &["start", "type", "data", "dedupe"];
pub(in crate::manifest) const SELECTOR: &[&str] = &["header", "attribute", "field"];
pub(in crate::manifest) const FIELD: &[&str] = &["field"];
pub(in crate::manifest) const HEADER: &[&str] = &["header"];
pub(in crate::manifest) const COMMAND_SOURCE: &[&str] = &[
    "topics",
    "group",
    "key",
    "command",
    "identity",
    "reply-to",
    "batch",
    "retry",
    "dead-letter",
    "max-parked",
];
pub(in crate::manifest) const RELAY: &[&str] =
    &["mode", "aggregates", "topics", "partitions", "replication", "max-message"];
pub(in crate::manifest) const HTTP: &[&str] = &["route", "methods", "max-body", "max-response"];
pub(in crate::manifest) const CAPABILITIES: &[&str] =
    &["outbound-http", "commands", "models", "env", "secrets", "tmp"];
