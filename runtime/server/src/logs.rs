//! The node's latest log lines, kept in memory: what `ebb logs` shows. `GET /logs` of the control plane answers those
//! that are kept, or, with `Accept: text/event-stream`, those and what follows.

use crate::http::problem::{BAD_QUERY, Problem};
use crate::http::reply::{Reply, json, stream};
use crate::http::target::{parameters, shorten};
use bytes::Bytes;
use ebb_domain::port::Clock as _;
use ebb_domain::time::Timestamp;
use http::header::ACCEPT;
use http::request::Parts;
use http::{HeaderMap, StatusCode};
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, LazyLock};
use std::time::Duration;
use tokio::sync::watch;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// Lines that are kept.
const KEPT: usize = 1000;
/// Bytes of a text in a line, the message or a field: what a guest's line may have.
const MAX_TEXT: usize = 8 << 10;
/// Fields of a line.
const MAX_FIELDS: usize = 32;
/// A quiet stream says this often that it is alive.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// One for the process, as logging is.
static RECENT: LazyLock<Recent> = LazyLock::new(Recent::new);

/// A log line.
#[derive(Clone, Debug, Serialize)]
struct Line {
    /// Counts the lines of this process from 1.
    id: u64,
    time: Timestamp,
    level: &'static str,
    target: String,
    message: String,
    #[serde(skip_serializing_if = "Map::is_empty")]
    fields: Map<String, Value>,
    #[serde(skip)]
    severity: Level,
}

/// The latest lines, and a mark that moves with each.
struct Recent {
    lines: Mutex<VecDeque<Arc<Line>>>,
    last: watch::Sender<u64>,
}

impl Recent {
    fn new() -> Self {
        Self { lines: Mutex::default(), last: watch::Sender::new(0) }
    }

    fn push(&self, mut line: Line) {
        let mut lines = self.lines.lock();
        line.id = lines.back().map_or(0, |line| line.id) + 1;
        let id = line.id;
        if lines.len() == KEPT {
            lines.pop_front();
        }
        lines.push_back(Arc::new(line));
        drop(lines);
        self.last.send_replace(id);
    }

    /// Kept lines behind `after` that are wanted.
    fn behind(&self, after: u64, wanted: &Wanted) -> Vec<Arc<Line>> {
        let lines = self.lines.lock();
        lines.iter().filter(|line| line.id > after && wanted.takes(line)).cloned().collect()
    }
}

/// Keeps what is logged.
pub(crate) struct Keep;

impl<S: Subscriber> Layer<S> for Keep {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        let mut line = Line {
            id: 0,
            time: crate::SystemClock.now(),
            level: metadata.level().as_str(),
            target: metadata.target().to_owned(),
            message: String::new(),
            fields: Map::new(),
            severity: *metadata.level(),
        };
        event.record(&mut Fields(&mut line));
        RECENT.push(line);
    }
}

struct Fields<'a>(&'a mut Line);

impl Fields<'_> {
    fn put(&mut self, field: &Field, value: Value) {
        if self.0.fields.len() < MAX_FIELDS {
            self.0.fields.insert(field.name().to_owned(), value);
        }
    }

    fn text(&mut self, field: &Field, mut text: String) {
        text.truncate(text.floor_char_boundary(MAX_TEXT));
        if field.name() == "message" { self.0.message = text } else { self.put(field, text.into()) }
    }
}

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.text(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field, value.to_owned());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }
}

/// Which lines a caller wants.
struct Wanted {
    level: Level,
    app: Option<String>,
}

impl Wanted {
    fn takes(&self, line: &Line) -> bool {
        let is_of_app = |app: &str| line.fields.get("app").and_then(Value::as_str) == Some(app);
        line.severity <= self.level && self.app.as_deref().is_none_or(is_of_app)
    }
}

/// `GET /logs?level=&app=&after=`.
pub(crate) fn answer(parts: &Parts, stopping: watch::Receiver<bool>) -> Result<Reply, Problem> {
    let mut wanted = Wanted { level: Level::TRACE, app: None };
    let mut after = 0;
    for (name, value) in parameters(parts.uri.query())? {
        let wrong =
            |takes: &str| BAD_QUERY.detail(format!("`{name}` is `{}`; it takes {takes}", shorten(&value)));
        match &*name {
            "level" => {
                wanted.level = value.parse().map_err(|_| wrong("trace, debug, info, warn or error"))?;
            }
            "app" => wanted.app = Some(value.into_owned()),
            "after" => after = value.parse().map_err(|_| wrong("the id of a line"))?,
            _ => {
                let detail = format!(
                    "there is no parameter `{}` here; there are level, app and after",
                    shorten(&name)
                );
                return Err(BAD_QUERY.detail(detail));
            }
        }
    }
    if !wants_stream(&parts.headers) {
        let lines = RECENT.behind(after, &wanted);
        let lines: Vec<&Line> = lines.iter().map(|line| &**line).collect();
        return Ok(json(StatusCode::OK, &serde_json::json!({ "lines": lines })));
    }
    let last_seen = parts.headers.get("last-event-id").and_then(|id| id.to_str().ok()?.parse().ok());
    let live = Live { wanted, after: last_seen.unwrap_or(after), last: RECENT.last.subscribe(), stopping };
    Ok(stream("text/event-stream", futures_util::stream::unfold(live, Live::next)))
}

fn wants_stream(headers: &HeaderMap) -> bool {
    headers.get(ACCEPT).is_some_and(|accept| accept.as_bytes().starts_with(b"text/event-stream"))
}

/// A stream of lines. A reader that is slower than a thousand lines misses some, and can tell by the ids.
struct Live {
    wanted: Wanted,
    after: u64,
    last: watch::Receiver<u64>,
    stopping: watch::Receiver<bool>,
}

impl Live {
    async fn next(mut self) -> Option<(Bytes, Self)> {
        loop {
            let last = *self.last.borrow_and_update();
            let lines = RECENT.behind(self.after, &self.wanted);
            // Lines that are not wanted are looked at once.
            self.after = self.after.max(last);
            if !lines.is_empty() {
                self.after = lines.last().map_or(self.after, |line| self.after.max(line.id));
                let message = |line: &Arc<Line>| {
                    let data = serde_json::to_string(&**line).expect("lines are made of text and numbers");
                    format!("id: {}\ndata: {data}\n\n", line.id)
                };
                let messages: String = lines.iter().map(message).collect();
                return Some((Bytes::from(messages), self));
            }
            tokio::select! {
                changed = self.last.changed() => if changed.is_err() { return None },
                stopping = self.stopping.changed() => if stopping.is_err() || *self.stopping.borrow() { return None },
                () = tokio::time::sleep(HEARTBEAT) => {
                    let heartbeat = format!(": heartbeat\nid: {}\n\n", self.after);
                    return Some((Bytes::from(heartbeat), self));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing_subscriber::layer::SubscriberExt as _;

    fn kept(wanted: &Wanted, after: u64) -> Vec<Arc<Line>> {
        RECENT.behind(after, wanted)
    }

    // One test: the lines are the process's.
    #[test]
    fn lines_are_kept_with_their_fields_cut_to_size_and_found_by_level_and_app() {
        let subscriber = tracing_subscriber::registry().with(Keep);
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(app = "bank", count = 3_u64, "low {}", "balance");
            tracing::debug!(app = "flights", "{}", "ü".repeat(MAX_TEXT));
        });
        let of_bank = Wanted { level: Level::TRACE, app: Some("bank".into()) };
        let lines = kept(&of_bank, 0);
        assert_eq!((lines.len(), lines[0].message.as_str(), lines[0].level), (1, "low balance", "WARN"));
        assert_eq!(
            serde_json::to_value(&lines[0].fields).unwrap(),
            serde_json::json!({ "app": "bank", "count": 3 })
        );
        assert!(kept(&of_bank, lines[0].id).is_empty(), "what was seen is not told again");

        let of_flights = |level| Wanted { level, app: Some("flights".into()) };
        assert_eq!(kept(&of_flights(Level::DEBUG), 0)[0].message.len(), MAX_TEXT);
        assert!(kept(&of_flights(Level::INFO), 0).is_empty(), "a debug line is below info");

        let many = tracing_subscriber::registry().with(Keep);
        tracing::subscriber::with_default(many, || {
            (0..KEPT).for_each(|_| tracing::info!(app = "later", "x"));
        });
        assert!(kept(&of_bank, 0).is_empty(), "a thousand lines later it is gone");
    }
}
