//! Every parser of foreign bytes, and what it promises of any bytes. A target is a function that panics when the
//! promise is broken: libFuzzer calls it with what it makes up (`scripts/fuzz`), and the suite with the corpus and with
//! every input that has ever broken one.

use ebb_domain::manifest::Manifest;
use ebb_domain::quantity::{parse_bytes, parse_duration};
use ebb_domain::schema::{InvalidBody, JsonSchema};
use ebb_domain::stream::{StreamId, StreamKey};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

/// The import's reader of lines: the file itself, because `ebb` is a program and no library.
#[path = "../../../runtime/cli/src/import/lines.rs"]
mod lines;

mod record;

/// A target: its name, and what it does with bytes.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: &[Target] = &[
    ("log_segment", ebb_store::testing::fuzz::segment),
    ("log_records", ebb_store::testing::fuzz::records),
    ("log_damage", ebb_store::testing::fuzz::damage),
    ("log_torn", ebb_store::testing::fuzz::torn),
    ("index_values", ebb_store::testing::fuzz::index),
    ("manifest", manifest),
    ("settings", ebb_server::fuzz::settings),
    ("stream_key", stream_key),
    ("request_target", ebb_server::fuzz::target),
    ("query", ebb_server::fuzz::query),
    ("cursor", ebb_server::fuzz::cursor),
    ("headers", ebb_server::fuzz::headers),
    ("bundle", ebb_server::fuzz::bundle),
    ("json_schema", json_schema),
    ("import_lines", import_lines),
    ("component", ebb_engine::fuzz::admit),
    ("http_answer", ebb_engine::fuzz::http_answer),
    ("record", record::read),
];

/// Runs the target of this name.
///
/// # Panics
/// It broke its promise, or there is no such target.
pub fn run(name: &str, bytes: &[u8]) {
    let (_, target) = TARGETS.iter().find(|(of, _)| *of == name).expect("a target of that name");
    target(bytes);
}

/// A manifest is read, or every problem with it has a place in the text and a sentence.
fn manifest(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match Manifest::parse(text) {
        Ok(manifest) => {
            let again = Manifest::parse(text).expect("it was read a moment ago");
            assert_eq!(manifest.name, again.name);
            assert!(manifest.projections.values().all(|projection| {
                projection.models.iter().all(|model| manifest.models.contains_key(model))
            }));
        }
        Err(problems) => {
            let lines = text.split('\n').count();
            assert!(!problems.as_slice().is_empty() && problems.as_slice().len() <= 100);
            for problem in problems.as_slice() {
                assert!(!problem.message.is_empty() && problem.message.len() < 4096, "{problem:?}");
                assert!((1..=lines).contains(&problem.place.line), "{problem:?}");
                assert!(!problem.place.source.chars().any(char::is_control), "{problem:?}");
            }
            // What people see.
            let _ = problems.to_string();
        }
    }
}

/// A key that is taken names one stream, and its parts are what they were.
fn stream_key(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(key) = StreamKey::new(text) {
        assert_eq!(key.as_str(), text);
        let stream = StreamId::parse(format!("account-{text}")).expect("a key that is taken makes a stream");
        assert_eq!((stream.category(), stream.key()), ("account", text));
        let encoded = utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        assert_eq!(ebb_server::fuzz::segment(&encoded).as_deref(), Some(text), "encoded once, decoded once");
    }
    if let Ok(stream) = StreamId::parse(text) {
        let trusted = StreamId::trusted(text.into()).expect("what is parsed is kept");
        assert_eq!((stream.category(), stream.key()), (trusted.category(), trusted.key()));
        assert_eq!(format!("{}-{}", stream.category(), stream.key()), text);
    }
    let _ = (parse_duration(text), parse_bytes(text));
}

/// A schema is compiled or refused, and a body is checked against it, within a bounded time. The body begins behind the
/// first line end.
fn json_schema(bytes: &[u8]) {
    let end = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    let (schema, body) = bytes.split_at(end);
    let Ok(schema) = JsonSchema::from_slice(schema) else { return };
    match schema.validate(body) {
        Ok(value) => {
            let again = serde_json::to_vec(&value).expect("a value can be written");
            assert!(schema.validate(&again).is_ok(), "what fits goes on fitting when it is written again");
        }
        Err(InvalidBody::Violations(violations)) => {
            assert!(!violations.is_empty() && violations.len() <= 100);
        }
        Err(_) => {}
    }
}

/// Every byte of a file belongs to one line, and a line's key depends on nothing but the lines before it.
fn import_lines(bytes: &[u8]) {
    let read = |bytes: &[u8]| {
        let mut lines = lines::Lines::new(bytes, "default");
        let (mut all, mut width, mut keys) = (0, 0, Vec::new());
        while let Some(line) = lines.next().expect("memory can be read") {
            all += 1;
            width += match line {
                Ok(job) => {
                    assert!(job.line.len() as u64 <= job.width && job.key.len() == 64);
                    keys.push(job.key);
                    job.width
                }
                Err(bad) => bad.width,
            };
        }
        (all, width, keys)
    };
    let (lines, width, keys) = read(bytes);
    assert!(width <= bytes.len() as u64);
    let blank = |bytes: &[u8]| bytes.iter().all(u8::is_ascii_whitespace);
    if !bytes.split(|byte| *byte == b'\n').next_back().is_none_or(blank) {
        assert_eq!(width, bytes.len() as u64, "nothing is skipped");
    }
    let unique: std::collections::HashSet<_> = keys.iter().collect();
    assert_eq!(unique.len(), keys.len(), "no two lines share a key");
    if bytes.ends_with(b"\n") {
        let mut twice = bytes.to_vec();
        twice.extend_from_slice(bytes);
        let (all, _, again) = read(&twice);
        assert_eq!((all, &again[..keys.len()]), (lines * 2, &keys[..]));
    }
}

/// Inputs to begin with, by target.
#[must_use]
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let mut seeds = ebb_store::testing::fuzz::seeds();
    seeds.extend(ebb_server::fuzz::seeds());
    seeds.extend(ebb_engine::fuzz::seeds());
    seeds.extend(record::SEEDS.iter().map(|seed| ("record", seed.as_bytes().to_vec())));
    let manifests = [
        include_str!("../../../guest-examples/bank/ebb.toml"),
        include_str!("../../../guest-examples/flights/ebb.toml"),
    ];
    seeds.extend(manifests.map(|text| ("manifest", text.as_bytes().to_vec())));
    let schema = br##"{"type":"object","properties":{"a":{"type":"integer","minimum":1},"b":{"$ref":"#/$defs/b"}},"required":["a"],"additionalProperties":false,"$defs":{"b":{"type":"array","items":{"anyOf":[{"type":"string","pattern":"^a+$"},{"const":null}]}}}}"##;
    seeds.push(("json_schema", [&schema[..], b"\n{\"a\":2,\"b\":[\"aa\",null]}"].concat()));
    seeds.push(("stream_key", "account-a/b%2F\u{e4}".into()));
    let line = "{\"id\":\"a\",\"command\":\"open\",\"data\":{\"owner\":\"x\"}}\n";
    seeds.push(("import_lines", format!("{line}\n{line}nonsense\n").into()));
    seeds
}
