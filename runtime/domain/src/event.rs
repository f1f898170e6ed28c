//! Events: what happened, where it stands in its stream and in the log, and how it looks from outside.

use crate::commit::{CommandId, CommitHeader};
use crate::name::{AppName, EventType};
use crate::stream::StreamId;
use crate::text::Text;
use crate::topic::{Blob, Envelope};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Number, Value, json};
use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use uuid::Uuid;

/// The media type of event data unless a module says otherwise.
pub const JSON: Text = Text::from_static("application/json");

/// Global place in an app's log: dense, from 1. Zero is "before everything".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Position(pub u64);

impl Position {
    /// Before every event.
    pub const START: Self = Self(0);

    /// The one behind this.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Place in a stream: gapless, from 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(pub u64);

impl Revision {
    /// The revision that the event behind `last` gets; 0 in an empty stream.
    #[must_use]
    pub const fn after(last: Option<Self>) -> Self {
        match last {
            Some(last) => Self(last.0 + 1),
            None => Self(0),
        }
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An event's UUID, derived from its command's id and its index in the commit: a command decided again makes the
/// same ids.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EventId(pub Uuid);

impl EventId {
    /// A version 8 UUID (RFC 9562, section 5.8): the command's, with the index added into its low 32 bits. Two
    /// commands share an event id only if their ids agree in all of their other random bits. Cheap on purpose: it is
    /// computed for every event that is read.
    #[must_use]
    pub fn derive(command: CommandId, index: u32) -> Self {
        let bits = command.0.as_u128();
        let low = (bits as u32).wrapping_add(index);
        let bits = (bits & !0xffff_ffff_u128) | u128::from(low);
        let bits = (bits & !(0xf_u128 << 76)) | (8 << 76);
        Self(Uuid::from_u128(bits))
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An event that was decided and is not in the log yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewEvent {
    /// A type that the manifest declares.
    pub event_type: EventType,
    /// The manifest's version of that type.
    pub schema_version: u32,
    /// Opaque; JSON unless `content_type` says otherwise.
    pub data: Bytes,
    /// Media type of `data`.
    pub content_type: Text,
}

/// An event in the log, with the commit that it belongs to.
#[derive(Clone, Debug)]
pub struct StoredEvent {
    /// Global place.
    pub position: Position,
    /// Place in its stream.
    pub revision: Revision,
    /// A type that the manifest declares.
    pub event_type: EventType,
    /// The manifest's version of that type when it was recorded.
    pub schema_version: u32,
    /// Opaque; JSON unless `content_type` says otherwise.
    pub data: Bytes,
    /// Media type of `data`.
    pub content_type: Text,
    /// Stream, time, actor, and everything else that is the same for all events of a commit.
    pub commit: Arc<CommitHeader>,
}

impl StoredEvent {
    /// Its place among the events of its commit, from 0.
    #[must_use]
    pub fn index_in_commit(&self) -> u32 {
        (self.position.0 - self.commit.first_position.0) as u32
    }

    /// Its UUID.
    #[must_use]
    pub fn id(&self) -> EventId {
        EventId::derive(self.commit.command_id, self.index_in_commit())
    }

    /// Its stream.
    #[must_use]
    pub fn stream(&self) -> &StreamId {
        &self.commit.stream
    }

    /// Bytes it takes in a batch, for bounds; about what it takes in the log.
    #[must_use]
    pub fn weight(&self) -> usize {
        self.data.len() + self.event_type.len() + 64
    }

    /// Data as a JSON value; bytes that are not JSON come as none.
    #[must_use]
    pub fn json(&self) -> Option<Value> {
        serde_json::from_slice(&self.data).ok()
    }

    /// Attributes of the event as a CloudEvent 1.0, all but `datacontenttype`: `source` is the app, `subject` the stream.
    /// An event that is a record of a topic says where it came from; its `subject` is the record's, if it has one.
    #[must_use]
    pub fn attributes(&self, app: &AppName) -> Vec<(&'static str, Cow<'_, str>)> {
        let commit = &self.commit;
        let mut attributes: Vec<(&'static str, Cow<'_, str>)> = vec![
            ("specversion", "1.0".into()),
            ("id", self.id().to_string().into()),
            ("source", format!("urn:ebbtide:{app}").into()),
            ("type", (&*self.event_type).into()),
            ("subject", commit.stream.as_str().into()),
            ("time", commit.recorded_at.to_string().into()),
            ("position", self.position.0.to_string().into()),
            ("sequence", self.revision.0.to_string().into()),
            ("schemaversion", self.schema_version.to_string().into()),
            ("partitionkey", commit.stream.as_str().into()),
            ("commandid", commit.command_id.to_string().into()),
            ("correlationid", (&*commit.correlation_id).into()),
        ];
        if let Some(causation) = &commit.causation_id {
            attributes.push(("causationid", (&**causation).into()));
        }
        if commit.hops > 0 {
            attributes.push(("hops", commit.hops.to_string().into()));
        }
        attributes.push(("actor", (&*commit.actor).into()));
        if let Some(traceparent) = &commit.traceparent {
            attributes.push(("traceparent", (&**traceparent).into()));
        }
        attributes.push(("module", commit.module.to_string().into()));
        if let Some((envelope, origin)) = self.envelope().zip(commit.origin.as_ref()) {
            if let Some(subject) = envelope.attributes.get("subject") {
                attributes[4].1 = subject.clone().into();
            }
            if let Some((source, id)) = envelope.event_id() {
                attributes.push(("originsource", source.to_owned().into()));
                attributes.push(("originid", id.to_owned().into()));
            }
            if let Some(key) = envelope.key.as_ref().and_then(Blob::text) {
                attributes.push(("kafkakey", key.to_string().into()));
            }
            let topic = crate::topic::topic_of(&commit.stream).unwrap_or_default();
            attributes.push(("kafkatopic", topic.into()));
            attributes.push(("kafkapartition", origin.partition.to_string().into()));
            attributes.push(("kafkaoffset", origin.offset.to_string().into()));
        }
        attributes
    }

    /// What stood around the data, if the event is a record of a topic.
    #[must_use]
    pub fn envelope(&self) -> Option<Envelope> {
        let recorded =
            self.commit.command.as_ref().filter(|recorded| recorded.name == crate::topic::READABLE)?;
        if self.stream().category() != &*crate::topic::CATEGORY {
            return None;
        }
        serde_json::from_slice(recorded.data.as_ref()?).ok()
    }

    /// The event as CloudEvents 1.0 JSON (JSON format specification, section 3): `data` where it is JSON, `data_base64`
    /// where it is not.
    #[must_use]
    pub fn cloud_event(&self, app: &AppName) -> Value {
        let mut event = Map::new();
        for (name, value) in self.attributes(app) {
            // Numbers that fit into 32 bits are an integer of CloudEvents; ours may be larger, and JSON has room.
            let number = match name {
                "position" | "sequence" | "schemaversion" | "hops" => {
                    value.parse::<u64>().ok().map(Number::from)
                }
                _ => None,
            };
            event.insert(name.into(), number.map_or_else(|| Value::from(&*value), Value::Number));
        }
        event.insert("datacontenttype".into(), (&*self.content_type).into());
        match self.json().filter(|_| is_json(&self.content_type)) {
            Some(data) => event.insert("data".into(), data),
            None => event.insert("data_base64".into(), json!(crate::text::base64(&self.data))),
        };
        Value::Object(event)
    }
}

/// `application/json` or `+json`, whatever its parameters.
#[must_use]
pub fn is_json(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json") || essence.to_ascii_lowercase().ends_with("+json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_ids_are_version_8_and_differ_within_a_commit() {
        let command = CommandId(Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_ffff_ffff));
        let (first, second) = (EventId::derive(command, 0), EventId::derive(command, 1));
        assert_eq!(first.0.get_version_num(), 8);
        assert_ne!(first, second);
        assert_eq!(first, EventId::derive(command, 0), "a command decided again makes the same ids");
    }

    #[test]
    fn json_is_recognised_by_its_essence() {
        assert!(is_json("application/json; charset=utf-8") && is_json("application/vnd.bank+JSON"));
        assert!(!is_json("text/plain"));
    }
}
