//! Records of topics, as anybody may produce them.
//!
//! An input is what is said of the topic, how often what follows is repeated, and a message: lines `name:value` that are
//! headers, an empty line, the value. The header named `key` is the record's key.

use bytes::Bytes;
use ebb_domain::limits::cap;
use ebb_domain::name::TopicName;
use ebb_domain::port::bus::RelayMark;
use ebb_domain::text::Text;
use ebb_domain::time::Timestamp;
use ebb_domain::topic::{Dedupe, Envelope, Incoming, Record, Selector, Start, TopicSpec, UNREADABLE};

/// What a text of the log may have at most.
const LONGEST_TEXT: usize = u16::MAX as usize - 1;

/// What a commit has besides the record: names, ids, times.
const AROUND: usize = 4096;

/// Inputs to begin with.
pub(crate) const SEEDS: &[&str] = &[
    "00key:a\n\n{\"x\":1}",
    "00key:a\nce_specversion:1.0\nce_id:1\nce_source:/s\nce_type:T\ncontent-type:application/json\n\n{\"x\":1}",
    "00content-type:application/cloudevents+json\n\n{\"specversion\":\"1.0\",\"id\":\"1\",\"source\":\"/s\",\"type\":\"T\",\"data\":{\"x\":1}}",
    "00content-type:application/cloudevents+json\n\n{\"specversion\":\"1.0\",\"id\":\"1\",\"source\":\"/s\",\"type\":\"T\",\"datacontenttype\":\"text/plain\",\"data_base64\":\"aGk=\"}",
    "00content-type:application/cloudevents-batch+json\n\n[]",
    "!0kind:Paid\n\n{\"data\":{\"x\":1}}",
    "#0\n\n{\"kind\":\"Paid\",\"data\":{\"x\":1}}",
    "p0\n\n",
    "09x:y\n\n\"abc\",",
    "00\n\n{\"position\":42}",
];

/// Whatever comes becomes an event that the log can take, with an envelope that can be read again; and the same one each
/// time, or what is delivered again would be another.
pub(crate) fn read(bytes: &[u8]) {
    let [flags, times, message @ ..] = bytes else { return };
    let spec = spec(*flags);
    let record = record(*flags, 1 << (times % 12), message);
    let incoming = Incoming::read(&record, &spec);
    assert_eq!(incoming, Incoming::read(&record, &spec));
    let envelope = serde_json::to_vec(&incoming.envelope).expect("it can be written");
    let again: Envelope = serde_json::from_slice(&envelope).expect("what is written can be read");
    assert_eq!(again, incoming.envelope);
    let event_type = &incoming.event_type;
    assert!(
        (1..=256).contains(&event_type.len()) && !event_type.chars().any(char::is_control),
        "{event_type}"
    );
    assert!(incoming.data.len() <= cap::EVENT_BYTES, "{} bytes of data", incoming.data.len());
    assert!(incoming.content_type.len() <= LONGEST_TEXT, "{} bytes of type", incoming.content_type.len());
    let whole = envelope.len() + incoming.data.len() + event_type.len() + incoming.content_type.len();
    assert!(whole + AROUND <= cap::COMMIT_BYTES, "{whole} bytes");
    if incoming.envelope.problem.is_some() {
        assert_eq!(&**event_type, UNREADABLE);
    }
    // How far a relay has got stands in a record, too.
    let value = record.value.as_deref().unwrap_or_default();
    if let Ok(mark) = serde_json::from_slice::<RelayMark>(value) {
        let written = serde_json::to_vec(&mark).expect("it can be written");
        assert_eq!(serde_json::from_slice::<RelayMark>(&written).expect("it can be read"), mark);
    }
}

fn spec(flags: u8) -> TopicSpec {
    let event_type = match flags & 3 {
        0 => Selector::Fixed(TopicSpec::DEFAULT_TYPE),
        1 => Selector::Header("kind".into()),
        2 => Selector::Attribute("kind".into()),
        _ => Selector::Field("kind".into()),
    };
    let data = (flags & 0x10 == 0).then(|| "data".to_owned());
    TopicSpec { start: Start::Earliest, event_type, data, dedupe: Some(Dedupe::EventId) }
}

fn record(flags: u8, times: usize, message: &[u8]) -> Record {
    let mut record = Record {
        topic: TopicName::new("orders").expect("a name"),
        partition: 0,
        offset: 7,
        timestamp: (flags & 0x20 != 0).then_some(Timestamp(1)),
        key: None,
        headers: Vec::new(),
        value: None,
    };
    let mut rest = message;
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        let line = &rest[..end];
        rest = &rest[end + 1..];
        if line.is_empty() {
            break;
        }
        let colon = line.iter().position(|byte| *byte == b':');
        let (name, value) = line.split_at(colon.unwrap_or(line.len()));
        let name = Text::from(String::from_utf8_lossy(name).into_owned());
        let value = value.get(1..).map(|value| Bytes::from(value.repeat(times)));
        if &*name == "key" {
            record.key = value;
            continue;
        }
        for _ in 0..times {
            record.headers.push((name.clone(), value.clone()));
            // A broker takes a megabyte or two.
            if record.headers.len() * (name.len() + value.as_ref().map_or(0, Bytes::len) + 2) > 2 << 20 {
                break;
            }
        }
    }
    if flags & 0x40 == 0 {
        record.value = Some(Bytes::from(rest.repeat(times.min((4 << 20) / rest.len().max(1)).max(1))));
    }
    record
}
