//! What is sent to a dead-letter topic: the record as it came, and in headers where it came from and what went wrong.

use ebb_domain::event::StoredEvent;
use ebb_domain::name::{AppName, ProjectionName, TopicName};
use ebb_domain::port::models::Tried;
use ebb_domain::text::Text;
use ebb_domain::time::Timestamp;
use ebb_domain::topic::{self, NewRecord};

/// The longest reason, in bytes.
const MAX_REASON: usize = 1024;

/// The dead letter of an event that failed for the last time.
pub(super) fn record(
    to: &TopicName,
    app: &AppName,
    consumer: &ProjectionName,
    event: &StoredEvent,
    tried: &Tried,
    now: Timestamp,
) -> NewRecord {
    let mut record = topic::original(event, app, to.clone());
    let mut reason = tried.reason.clone();
    reason.truncate(reason.floor_char_boundary(MAX_REASON));
    let mut headers = vec![
        ("app", app.to_string()),
        ("consumer", consumer.to_string()),
        ("event-id", event.id().to_string()),
        ("position", event.position.to_string()),
        ("recorded-at", event.commit.recorded_at.to_string()),
        ("reason", reason),
        ("attempts", tried.attempts.to_string()),
        ("failed-at", now.to_string()),
    ];
    if let Some(origin) = &event.commit.origin {
        headers.push(("topic", topic::topic_of(event.stream()).unwrap_or_default().to_owned()));
        headers.push(("partition", origin.partition.to_string()));
        headers.push(("offset", origin.offset.to_string()));
        if let Some(command) = &event.commit.command {
            headers.push(("timestamp", command.time.to_string()));
        }
    }
    record.headers.extend(
        headers
            .into_iter()
            .map(|(name, value)| (Text::from(format!("ebb-dead-letter-{name}")), value.into())),
    );
    record
}
