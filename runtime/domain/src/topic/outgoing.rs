//! Events that go out: CloudEvents in binary mode (Kafka protocol binding 1.0.2, section 3.2).

use super::record::{Blob, NewRecord};
use crate::event::StoredEvent;
use crate::name::{AppName, TopicName};
use crate::text::Text;
use bytes::Bytes;

/// The record of an event: key = stream, attributes as `ce_` headers, and its data as the value. The `traceparent` header
/// is that of this hop, the attribute that of where it began (distributed tracing extension).
#[must_use]
pub fn record_of(event: &StoredEvent, app: &AppName, topic: TopicName) -> NewRecord {
    let mut headers = Vec::with_capacity(18);
    headers.push((Text::from_static("content-type"), event.content_type.clone().into_bytes()));
    for (name, value) in event.attributes(app) {
        headers.push((header_of(name), Bytes::from(value.into_owned())));
    }
    if let Some(trace) = &event.commit.traceparent {
        headers.push((Text::from_static("traceparent"), trace.clone().into_bytes()));
    }
    NewRecord {
        topic,
        key: Some(event.stream().text().clone().into_bytes()),
        headers,
        value: Some(event.data.clone()),
    }
}

/// The header of an attribute. Those that every event has cost nothing: the relay writes them for each.
fn header_of(attribute: &'static str) -> Text {
    Text::from_static(match attribute {
        "specversion" => "ce_specversion",
        "id" => "ce_id",
        "source" => "ce_source",
        "type" => "ce_type",
        "subject" => "ce_subject",
        "time" => "ce_time",
        "position" => "ce_position",
        "sequence" => "ce_sequence",
        "schemaversion" => "ce_schemaversion",
        "partitionkey" => "ce_partitionkey",
        "commandid" => "ce_commandid",
        "correlationid" => "ce_correlationid",
        "causationid" => "ce_causationid",
        "actor" => "ce_actor",
        "module" => "ce_module",
        other => return format!("ce_{other}").into(),
    })
}

/// The record that an event is, as it came; of an event that is none, what the relay would publish.
#[must_use]
pub fn original(event: &StoredEvent, app: &AppName, topic: TopicName) -> NewRecord {
    let Some(envelope) = event.envelope() else { return record_of(event, app, topic) };
    let header = |(name, value): (Text, Option<Blob>)| (name, value.map_or_else(Bytes::new, |value| value.0));
    let mut headers: Vec<_> = envelope.headers.into_iter().map(header).collect();
    let value = match envelope.value {
        Some(value) => Some(value.0),
        None if envelope.tombstone => None,
        // A CloudEvent in structured mode is one in binary mode as well.
        None => {
            if !envelope.attributes.is_empty() {
                headers.retain(|(name, _)| !name.eq_ignore_ascii_case("content-type"));
                headers.push((Text::from_static("content-type"), event.content_type.clone().into_bytes()));
            }
            let attributes = envelope.attributes.into_iter().filter(|(name, _)| name != "datacontenttype");
            headers.extend(attributes.map(|(name, value)| (format!("ce_{name}").into(), Bytes::from(value))));
            Some(event.data.clone())
        }
    };
    NewRecord { topic, key: envelope.key.map(|key| key.0), headers, value }
}
