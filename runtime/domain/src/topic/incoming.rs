//! Records that come in: what of them is data, and what is said about it.
//!
//! A record is a CloudEvent in binary or structured mode (Kafka protocol binding 1.0.2, section 3), or neither: then its
//! value is the data. Nothing here fails: what can't be read as what it says it is becomes an event all the same, of a
//! type of its own, so that it is seen, listed and never in the way of others.

use super::record::{Blob, KeptRecord, Record};
use super::spec::{Dedupe, TopicSpec};
use crate::commit::{CommandId, CommitHeader, CommitNumber, KafkaOrigin, RecordedCommand};
use crate::digest::Digest;
use crate::event::{JSON, Position, Revision, StoredEvent, is_json};
use crate::name::{EventType, TopicName};
use crate::text::{Text, from_base64};
use crate::time::Timestamp;
use crate::trace::Trace;
use bytes::Bytes;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::sync::Arc;
use uuid::Uuid;

/// The name under which a record is recorded with its event; what came before it in other events is a command.
pub const READABLE: &str = "record";

/// The type of an event that is a record which can't be read.
pub const UNREADABLE: &str = "ebbtide.Unreadable";

/// The media type of what says nothing about itself.
const BINARY: Text = Text::from_static("application/octet-stream");

/// The longest event type, in bytes.
const MAX_TYPE: usize = 256;

/// The largest data of an event: 512 KiB.
const MAX_DATA: usize = 512 << 10;

/// The most that key, headers and attributes may take together: 64 KiB.
const MAX_ENVELOPE: usize = 64 << 10;

/// What the `source` of events begins with that apps send.
const SOURCE: &str = "urn:ebbtide:";

/// The longest id that ties events together, in bytes.
const MAX_ID: usize = 256;

/// The largest value that is kept beside the data, where that is only a part of it: 1 MiB.
const MAX_VALUE: usize = 1 << 20;

/// What a header or an attribute takes besides its name and its value, at most: producers may send a million empty ones.
const ENTRY: usize = 16;

/// The longest reason why a record can't be read, in bytes: some quote it.
const MAX_PROBLEM: usize = 1024;

/// Attributes of a CloudEvent, by name.
pub type Attributes = BTreeMap<String, String>;

/// What stands around the data of a record. Kept with its event, as JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// The record's key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Blob>,
    /// Its headers, without those that are attributes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<(Text, Option<Blob>)>,
    /// Attributes of a CloudEvent; empty if it is none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: Attributes,
    /// Its value, where the data is only a part of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Blob>,
    /// It had no value.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tombstone: bool,
    /// Why it can't be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

impl Envelope {
    /// The header of this name, in any case, if its value is text; the last, if there are several.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<Text> {
        let attribute = name.strip_prefix("ce_").and_then(|name| self.attributes.get(name));
        if let Some(attribute) = attribute {
            return Some(attribute.as_str().into());
        }
        let found = self.headers.iter().rev().find(|(key, _)| key.eq_ignore_ascii_case(name))?;
        found.1.as_ref()?.text()
    }

    /// CloudEvents `source` and `id`: together they name an event.
    #[must_use]
    pub fn event_id(&self) -> Option<(&str, &str)> {
        Some((self.attributes.get("source")?, self.attributes.get("id")?))
    }

    /// Functions and topics between the record and what began its chain, this topic included if an app sent the record;
    /// none for what comes from outside.
    #[must_use]
    pub fn hops(&self) -> u16 {
        let hops = self.attributes.get("hops").and_then(|hops| hops.parse::<u16>().ok());
        let is_an_apps = || self.attributes.get("source").is_some_and(|source| source.starts_with(SOURCE));
        match hops {
            Some(hops) => hops.saturating_add(1),
            None => u16::from(is_an_apps()),
        }
    }
}

/// A record, as an event of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incoming {
    /// Its type.
    pub event_type: Text,
    /// Its data.
    pub data: Bytes,
    /// The data's media type.
    pub content_type: Text,
    /// The rest.
    pub envelope: Envelope,
    /// When it was produced.
    pub produced_at: Option<Timestamp>,
}

impl Incoming {
    /// Reads a record.
    #[must_use]
    pub fn read(record: &Record, spec: &TopicSpec) -> Self {
        let kind = record.header("content-type").map(str::to_ascii_lowercase).unwrap_or_default();
        let mut incoming = Self {
            event_type: TopicSpec::DEFAULT_TYPE,
            data: record.value.clone().unwrap_or_default(),
            content_type: Text::default(),
            envelope: Envelope {
                key: record.key.clone().map(Blob),
                tombstone: record.value.is_none(),
                ..Envelope::default()
            },
            produced_at: record.timestamp,
        };
        let read = if kind.starts_with("application/cloudevents") {
            incoming.keep_headers(record, false);
            incoming.structured(&kind)
        } else if record.header("ce_specversion").is_some() {
            incoming.keep_headers(record, true);
            incoming.binary(record)
        } else {
            incoming.keep_headers(record, false);
            incoming.plain(record, spec)
        };
        let read = read.and_then(|()| incoming.check());
        if let Err(problem) = read {
            incoming.unreadable(problem);
        }
        incoming
    }

    /// What ties it to what it was produced for, if the record says so.
    #[must_use]
    pub fn correlation_id(&self) -> Option<Text> {
        let said = self.attribute("correlationid").or_else(|| self.envelope.header("correlation-id"));
        said.filter(|text| (1..=MAX_ID).contains(&text.len()))
    }

    /// What caused it: the id of the CloudEvent that it is.
    #[must_use]
    pub fn causation_id(&self) -> Option<Text> {
        self.attribute("id").filter(|text| text.len() <= MAX_ID)
    }

    /// W3C trace context, if it is valid.
    #[must_use]
    pub fn traceparent(&self) -> Option<Text> {
        let said = self.envelope.header("traceparent").or_else(|| self.attribute("traceparent"));
        said.filter(|parent| Trace::parse(parent, None).is_some())
    }

    /// What is the same of records that are the same one, sent twice.
    #[must_use]
    pub fn same(&self, dedupe: Option<Dedupe>) -> Option<Digest> {
        let Dedupe::EventId = dedupe?;
        let (source, id) = self.envelope.event_id()?;
        Some(Digest::of_parts([source.as_bytes(), id.as_bytes()]))
    }

    /// What is recorded beside its event: the envelope, and when it was produced.
    #[must_use]
    pub fn recorded(&self) -> RecordedCommand {
        RecordedCommand {
            name: Text::from_static(READABLE),
            time: self.produced_at.unwrap_or_default(),
            data: Some(serde_json::to_vec(&self.envelope).unwrap_or_default().into()),
        }
    }

    /// The event of a record that is in no log. Its id is derived from where the record stands, so that it is the same
    /// event however often it is read; its revision is the record's offset; `position` is where it stands for whoever
    /// takes it.
    #[must_use]
    pub fn into_event(self, record: &KeptRecord, position: Position) -> StoredEvent {
        let Record { topic, partition, offset, .. } = &record.record;
        let id = Uuid::new_v5(&record.topic_id, format!("{partition}/{offset}").as_bytes());
        let command_id = CommandId(id);
        let commit = CommitHeader {
            number: CommitNumber(0),
            epoch: 0,
            recorded_at: self.produced_at.unwrap_or_default(),
            stream: super::stream(topic, *partition),
            event_count: 1,
            first_position: position,
            first_revision: Revision(*offset),
            command_id,
            actor: actor(topic),
            correlation_id: self.correlation_id().unwrap_or_else(|| id.to_string().into()),
            hops: self.envelope.hops(),
            causation_id: self.causation_id(),
            traceparent: self.traceparent(),
            module: Digest::default(),
            idempotency: None,
            origin: Some(KafkaOrigin {
                cluster: record.cluster.clone(),
                topic: record.topic_id,
                partition: *partition,
                offset: *offset,
            }),
            command: Some(self.recorded()),
            refusal: None,
        };
        StoredEvent {
            position,
            revision: Revision(*offset),
            event_type: EventType::trusted(self.event_type),
            schema_version: 1,
            data: self.data,
            content_type: self.content_type,
            commit: Arc::new(commit),
        }
    }

    fn attribute(&self, name: &str) -> Option<Text> {
        self.envelope.attributes.get(name).map(|text| text.as_str().into())
    }

    fn keep_headers(&mut self, record: &Record, binary: bool) {
        let attribute = |name: &str| binary && name.starts_with("ce_");
        let kept = record.headers.iter().filter(|(name, _)| !attribute(name));
        self.envelope.headers =
            kept.map(|(name, value)| (name.detached(), value.clone().map(Blob))).collect();
    }

    fn binary(&mut self, record: &Record) -> Result<(), String> {
        for (name, value) in &record.headers {
            let Some(attribute) = name.strip_prefix("ce_") else { continue };
            let value = value.as_deref().unwrap_or_default();
            let value = std::str::from_utf8(value)
                .map_err(|_| format!("its header `{}` is not UTF-8", short(name)))?;
            self.envelope.attributes.insert(attribute.to_owned(), value.to_owned());
        }
        self.content_type = match record.header("content-type") {
            Some(kind) => kind.into(),
            None => guessed(&self.data),
        };
        self.cloud_event()
    }

    fn structured(&mut self, kind: &str) -> Result<(), String> {
        if kind.starts_with("application/cloudevents-batch") {
            return Err("a record holds one CloudEvent; batches are for HTTP".to_owned());
        }
        if !is_json(kind) {
            return Err(format!(
                "`{}` is not a format of CloudEvents that is read here; JSON is",
                short(kind)
            ));
        }
        let mut document: BTreeMap<String, Box<RawValue>> =
            serde_json::from_slice(&self.data).map_err(|error| {
                format!("its value is not the JSON object that `{}` promises: {error}", short(kind))
            })?;
        let data = (document.remove("data"), document.remove("data_base64"));
        for (name, value) in document {
            let value = match serde_json::from_str(value.get()) {
                Ok(Value::String(text)) => text,
                Ok(Value::Null) => continue,
                Ok(value @ (Value::Bool(_) | Value::Number(_))) => value.to_string(),
                _ => {
                    return Err(format!(
                        "its attribute `{}` is neither text nor a number nor a truth",
                        short(&name)
                    ));
                }
            };
            self.envelope.attributes.insert(name, value);
        }
        let kind = self.envelope.attributes.get("datacontenttype");
        let data = match data {
            (Some(_), Some(_)) => return Err("it has both `data` and `data_base64`".to_owned()),
            (_, Some(text)) => {
                let text: Option<String> = serde_json::from_str(text.get()).ok();
                let bytes = text.and_then(|text| from_base64(&text));
                bytes.ok_or("its `data_base64` is not base64")?.into()
            }
            (Some(data), None) => match serde_json::from_str::<String>(data.get()) {
                // Text that is not JSON is data as it stands (JSON event format 1.0.2, section 3.1.1).
                Ok(text) if kind.is_some_and(|kind| !is_json(kind)) => Bytes::from(text),
                _ => Bytes::copy_from_slice(data.get().as_bytes()),
            },
            (None, None) => Bytes::new(),
        };
        self.data = data;
        self.content_type =
            self.envelope.attributes.get("datacontenttype").map_or(JSON, |kind| kind.as_str().into());
        self.cloud_event()
    }

    fn cloud_event(&mut self) -> Result<(), String> {
        let attributes = &self.envelope.attributes;
        match attributes.get("specversion").map(String::as_str) {
            Some("1.0") => {}
            Some(other) => {
                return Err(format!("it is a CloudEvent of version `{}`; 1.0 is read here", short(other)));
            }
            None => return Err("it has no `specversion`, which every CloudEvent has".to_owned()),
        }
        for required in ["id", "source", "type"] {
            if attributes.get(required).is_none_or(String::is_empty) {
                return Err(format!("it has no `{required}`, which every CloudEvent has"));
            }
        }
        self.event_type = attributes["type"].as_str().into();
        Ok(())
    }

    fn plain(&mut self, record: &Record, spec: &TopicSpec) -> Result<(), String> {
        let kind = record.header("content-type");
        let is_document = serde_json::from_slice::<IgnoredAny>(&self.data);
        self.content_type = match kind {
            Some(kind) => kind.into(),
            None if is_document.is_ok() => JSON,
            None => BINARY,
        };
        if let Err(error) = is_document
            && kind.is_some_and(is_json)
            && !self.envelope.tombstone
        {
            return Err(format!("its value is not the JSON that its content type promises: {error}"));
        }
        let value = || serde_json::from_slice(&self.data).unwrap_or_default();
        if let Some(event_type) = spec.event_type.select(&self.envelope, value) {
            self.event_type = event_type;
        }
        if let Some(field) = &spec.data {
            let fields: Option<BTreeMap<String, Box<RawValue>>> = serde_json::from_slice(&self.data).ok();
            let Some(data) = fields.and_then(|mut fields| fields.remove(field)) else {
                return Err(format!("it has no field `{}`, where its data is to be", short(field)));
            };
            let whole = std::mem::replace(&mut self.data, Bytes::copy_from_slice(data.get().as_bytes()));
            self.envelope.value = Some(Blob(whole));
            self.content_type = JSON;
        }
        Ok(())
    }

    /// What an event of the log can't be.
    fn check(&self) -> Result<(), String> {
        let event_type = &self.event_type;
        if event_type.is_empty() || event_type.len() > MAX_TYPE || event_type.chars().any(char::is_control) {
            return Err(format!(
                "its type `{}` is not 1 to {MAX_TYPE} bytes without control characters",
                short(event_type)
            ));
        }
        if self.data.len() > MAX_DATA {
            return Err(format!("its data has {} bytes, and an event at most {MAX_DATA}", self.data.len()));
        }
        if let Some(Blob(value)) = self.envelope.value.as_ref().filter(|value| value.0.len() > MAX_VALUE) {
            let size = value.len();
            return Err(format!(
                "its value has {size} bytes, and one with data in a field at most {MAX_VALUE}"
            ));
        }
        let size = self.envelope.size();
        if size > MAX_ENVELOPE {
            return Err(format!("its key and headers have {size} bytes, and may have {MAX_ENVELOPE}"));
        }
        Ok(())
    }

    /// An event that says what is wrong, with as much of the record as an event can hold.
    fn unreadable(&mut self, mut problem: String) {
        self.event_type = Text::from_static(UNREADABLE);
        // The whole value is what can't be read.
        if let Some(Blob(value)) = self.envelope.value.take() {
            self.data = value;
        }
        if self.data.len() > MAX_DATA {
            self.data = Bytes::new();
        }
        self.content_type = BINARY;
        if self.envelope.size() > MAX_ENVELOPE {
            let key = self.envelope.key.take().filter(|key| key.0.len() <= 1024);
            self.envelope = Envelope { key, tombstone: self.envelope.tombstone, ..Envelope::default() };
        }
        problem.truncate(problem.floor_char_boundary(MAX_PROBLEM));
        self.envelope.problem = Some(problem);
    }
}

/// Who sends the records of a topic.
#[must_use]
pub fn actor(topic: &TopicName) -> Text {
    format!("kafka:{topic}").into()
}

impl Envelope {
    fn size(&self) -> usize {
        let blob = |blob: &Option<Blob>| blob.as_ref().map_or(0, |blob| blob.0.len());
        let headers = self.headers.iter().map(|(name, value)| name.len() + blob(value) + ENTRY);
        let attributes = self.attributes.iter().map(|(name, value)| name.len() + value.len() + ENTRY);
        let (headers, attributes): (usize, usize) = (headers.sum(), attributes.sum());
        blob(&self.key) + headers + attributes
    }
}

/// The media type of data that came without one.
fn guessed(data: &[u8]) -> Text {
    if serde_json::from_slice::<IgnoredAny>(data).is_ok() { JSON } else { BINARY }
}

fn short(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topic::Selector;
    use proptest::prelude::*;

    fn record(headers: &[(&str, &str)], value: &str) -> Record {
        Record {
            topic: TopicName::new("orders").unwrap(),
            partition: 0,
            offset: 7,
            timestamp: Some(Timestamp(1)),
            key: Some(Bytes::from_static(b"order-1")),
            headers: headers
                .iter()
                .map(|(name, value)| ((*name).into(), Some(Bytes::copy_from_slice(value.as_bytes()))))
                .collect(),
            value: Some(Bytes::copy_from_slice(value.as_bytes())),
        }
    }

    fn read(headers: &[(&str, &str)], value: &str) -> Incoming {
        Incoming::read(&record(headers, value), &TopicSpec::default())
    }

    fn problem(headers: &[(&str, &str)], value: &str) -> String {
        let incoming = read(headers, value);
        assert_eq!(&*incoming.event_type, UNREADABLE);
        incoming.envelope.problem.unwrap()
    }

    const BINARY: &[(&str, &str)] = &[
        ("ce_specversion", "1.0"),
        ("ce_id", "1"),
        ("ce_source", "urn:shop"),
        ("ce_type", "Ordered"),
        ("content-type", "application/json"),
        ("trace", "x"),
    ];

    #[test]
    fn hops_are_counted_from_what_comes_from_outside() {
        let hops = |attributes: &[(&str, &str)]| {
            let attributes = attributes.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            Envelope { attributes: attributes.collect(), ..Envelope::default() }.hops()
        };
        assert_eq!(hops(&[]), 0);
        assert_eq!(hops(&[("source", "urn:example:shop")]), 0);
        assert_eq!(hops(&[("source", "urn:ebbtide:shop")]), 1, "the topic");
        assert_eq!(hops(&[("source", "urn:ebbtide:shop"), ("hops", "4")]), 5);
        assert_eq!(hops(&[("hops", "4")]), 5, "whoever passes it on under a name of its own");
        assert_eq!(hops(&[("hops", "65535")]), 65535);
        assert_eq!(hops(&[("hops", "many")]), 0);
    }

    #[test]
    fn a_binary_cloud_event_is_its_value_and_its_attributes() {
        let incoming = read(BINARY, r#"{"total":3}"#);
        assert_eq!((&*incoming.event_type, &*incoming.data), ("Ordered", &br#"{"total":3}"#[..]));
        assert_eq!(incoming.envelope.event_id(), Some(("urn:shop", "1")));
        assert_eq!(incoming.envelope.header("Trace").as_deref(), Some("x"));
        assert_eq!(incoming.envelope.header("ce_type").as_deref(), Some("Ordered"));
        assert_eq!(incoming.envelope.headers.len(), 2, "attributes are kept once");
    }

    #[test]
    fn a_structured_cloud_event_is_taken_apart() {
        let kind = [("Content-Type", "application/cloudevents+json; charset=UTF-8")];
        let incoming = read(
            &kind,
            r#"{"specversion":"1.0","id":"1","source":"/s","type":"Ordered","sequence":7,"data":{"total":3}}"#,
        );
        assert_eq!((&*incoming.event_type, &*incoming.data), ("Ordered", &br#"{"total":3}"#[..]));
        assert_eq!(incoming.envelope.attributes["sequence"], "7");
        let binary = read(
            &kind,
            r#"{"specversion":"1.0","id":"1","source":"/s","type":"T","datacontenttype":"text/plain","data_base64":"aGk="}"#,
        );
        assert_eq!((&*binary.data, &*binary.content_type), (&b"hi"[..], "text/plain"));
        let text = read(
            &kind,
            r#"{"specversion":"1.0","id":"1","source":"/s","type":"T","datacontenttype":"text/plain","data":"hi"}"#,
        );
        assert_eq!(&*text.data, b"hi");
    }

    #[test]
    fn anything_else_is_its_value() {
        let json = read(&[], r#"{"a":1}"#);
        assert_eq!((&*json.event_type, &*json.content_type), ("Record", "application/json"));
        assert_eq!(&*read(&[], "plain").content_type, "application/octet-stream");
        let spec = TopicSpec {
            event_type: Selector::Field("kind".into()),
            data: Some("data".into()),
            ..TopicSpec::default()
        };
        let picked = Incoming::read(&record(&[], r#"{"kind":"Paid","data":{"x":[1]}}"#), &spec);
        assert_eq!((&*picked.event_type, &*picked.data), ("Paid", &br#"{"x":[1]}"#[..]));
        let without = Incoming::read(&record(&[], r#"{"kind":"Paid"}"#), &spec);
        assert!(without.envelope.problem.unwrap().contains("no field `data`"));
    }

    #[test]
    fn what_is_not_what_it_says_is_unreadable_and_says_why() {
        let kind = "content-type";
        assert!(problem(&[(kind, "application/cloudevents+json")], "{").contains("not the JSON"));
        assert!(problem(&[(kind, "application/cloudevents-batch+json")], "[]").contains("batches"));
        assert!(problem(&[(kind, "application/cloudevents+avro")], "x").contains("not a format"));
        assert!(problem(&[(kind, "application/json")], "{oops").contains("promises"));
        assert!(problem(&[("ce_specversion", "0.3"), ("ce_id", "1")], "").contains("`0.3`"));
        assert!(problem(&[("ce_specversion", "1.0"), ("ce_id", "1")], "").contains("no `source`"));
        let long = "t".repeat(300);
        let attributes =
            [("ce_specversion", "1.0"), ("ce_id", "1"), ("ce_source", "s"), ("ce_type", long.as_str())];
        assert!(problem(&attributes, "").contains("its type"));
    }

    #[test]
    fn what_is_too_large_for_an_event_leaves_its_data_behind() {
        let incoming = read(&[], &"x".repeat(MAX_DATA + 1));
        assert!(incoming.data.is_empty() && incoming.envelope.problem.unwrap().contains("524289 bytes"));
        let long = "h".repeat(MAX_ENVELOPE);
        let incoming = read(&[("big", &long)], "{}");
        assert!(incoming.envelope.headers.is_empty() && incoming.envelope.key.is_some());
    }

    /// What it takes in the log, besides what every commit has.
    fn size(incoming: &Incoming) -> usize {
        serde_json::to_vec(&incoming.envelope).unwrap().len() + incoming.data.len()
    }

    #[test]
    fn nothing_that_a_broker_takes_is_too_large_for_a_commit() {
        let spec = TopicSpec { data: Some("data".into()), ..TopicSpec::default() };
        let padded = format!(r#"{{"data":1,"rest":"{}"}}"#, "\\\"".repeat(1 << 20));
        let beside = Incoming::read(&record(&[], &padded), &spec);
        assert!(beside.envelope.problem.as_ref().is_some_and(|problem| problem.contains("its value has")));
        let empty = Record { headers: vec![("".into(), None); 500_000], ..record(&[], "{}") };
        let quoted =
            read(&[("content-type", &format!("application/cloudevents+{}", "x".repeat(5 << 20)))], "{}");
        assert!(quoted.envelope.problem.as_ref().is_some_and(|problem| problem.contains("not a format")));
        for incoming in [beside, Incoming::read(&empty, &spec), quoted] {
            assert!(size(&incoming) < crate::limits::cap::COMMIT_BYTES / 2, "{}", size(&incoming));
            assert_eq!(&*incoming.event_type, UNREADABLE);
        }
    }

    #[test]
    fn a_tombstone_is_a_record_without_data() {
        let incoming = Incoming::read(&Record { value: None, ..record(&[], "") }, &TopicSpec::default());
        assert!(
            incoming.envelope.tombstone && incoming.data.is_empty() && incoming.envelope.problem.is_none()
        );
    }

    proptest! {
        #[test]
        fn whatever_comes_becomes_an_event_whose_envelope_is_kept_whole(
            key in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..20)),
            kind in "(application/(cloudevents)?(-batch)?(\\+json)?|\\PC{0,10})",
            headers in proptest::collection::vec(("(ce_)?[a-z]{0,8}", proptest::collection::vec(any::<u8>(), 0..12)), 0..6),
            value in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..60)),
        ) {
            let mut record = record(&[("content-type", &kind)], "");
            record.key = key.map(Bytes::from);
            record.value = value.map(Bytes::from);
            record.headers.extend(headers.into_iter().map(|(name, value)| (Text::from(name), Some(Bytes::from(value)))));
            let incoming = Incoming::read(&record, &TopicSpec::default());
            let kept = serde_json::to_vec(&incoming.envelope).unwrap();
            prop_assert_eq!(serde_json::from_slice::<Envelope>(&kept).unwrap(), incoming.envelope);
        }
    }
}
