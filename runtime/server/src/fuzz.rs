//! What the edges' parsers promise of any bytes, for fuzzers.

use crate::data::cursor::Sealer;
use crate::data::query::parse_query;
use crate::http::target::{self, Segments, parameters};
use bytes::Bytes;
use ebb_domain::model::{ColumnType, ModelSchema, Query, Row, Value};
use ebb_domain::name::{AppName, ColumnName, ModelName};
use http::header::HeaderName;
use http::{HeaderMap, HeaderValue};

const COLUMNS: [(&str, ColumnType); 5] = [
    ("carrier", ColumnType::Text),
    ("flights", ColumnType::Integer),
    ("share", ColumnType::Real),
    ("late", ColumnType::Boolean),
    ("extra", ColumnType::Json),
];

fn schema() -> ModelSchema {
    let column = |name: &str| ColumnName::new(name).expect("a name");
    ModelSchema {
        name: ModelName::new("carriers").expect("a name"),
        key: column("carrier"),
        columns: COLUMNS.into_iter().map(|(name, of)| (column(name), of)).collect(),
        indexes: Vec::new(),
    }
}

fn parse(text: &str) -> Option<(Query, Option<String>)> {
    parse_query(&schema(), &parameters(Some(text)).ok()?).ok()
}

/// A path segment, decoded; none if it can't be.
#[must_use]
pub fn segment(raw: &str) -> Option<String> {
    target::segment(raw).ok().map(Into::into)
}

/// An operator's settings are read, or every problem with them is told.
pub fn settings(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let read = crate::Config::parse(Some(("ebbtide.toml".into(), text)), |_| None, &[]);
    if let Err(problems) = read {
        assert!(!problems.to_string().is_empty());
    }
}

/// A path and a query are taken apart without losing a byte; what is decoded is what was encoded.
pub fn target(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let (path, query) = text.split_once('?').unwrap_or((text, ""));
    let segments: Vec<&str> = Segments::of(path).collect();
    assert_eq!(segments.join("/"), path.strip_prefix('/').unwrap_or(path));
    for raw in segments {
        match target::segment(raw) {
            Ok(decoded) => assert!(decoded.len() <= raw.len()),
            Err(problem) => assert_eq!(problem.status(), 400),
        }
    }
    if let Ok(parameters) = parameters(Some(query)) {
        assert!(parameters.len() <= query.len());
    }
    crate::data::route_label(path);
}

/// A query is refused as the caller's mistake, or has bounds and only columns that there are.
pub fn query(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let schema = schema();
    let Ok(parameters) = parameters(Some(text)) else { return };
    match parse_query(&schema, &parameters) {
        Ok((query, _)) => {
            assert!((1..=1000).contains(&query.limit) && query.conditions.len() <= 50);
            assert!(query.conditions.iter().all(|condition| schema.columns.contains_key(&condition.column)));
            assert!(query.order.len() <= schema.columns.len(), "no column twice");
        }
        Err(problem) => assert_eq!(problem.status(), 400),
    }
}

/// No bytes are a cursor but those that this node made; those give back what they were made of. The query comes before
/// the first line end.
pub fn cursor(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let (query, forged) = text.split_once('\n').unwrap_or((text, ""));
    let Some((query, _)) = parse(query) else { return };
    let (sealer, app, schema) = (Sealer::new(b"secret"), AppName::new("flights").expect("a name"), schema());
    assert!(sealer.open(&app, &schema, &query, forged).is_err(), "nobody can make one");
    let row: Row = COLUMNS
        .into_iter()
        .map(|(name, of)| {
            let value = match of {
                ColumnType::Text => Value::Text(forged.into()),
                ColumnType::Integer => Value::Integer(bytes.len() as i64 - 9),
                ColumnType::Real => Value::Real(forged.len() as f64 / 3.0),
                ColumnType::Boolean => Value::Boolean(bytes.len().is_multiple_of(2)),
                ColumnType::Json => Value::Null,
            };
            (ColumnName::new(name).expect("a name"), value)
        })
        .collect();
    let cursor = sealer.seal(&app, &schema, &query, &row);
    let columns = query.order.iter().map(|order| &order.column).chain([&schema.key]);
    let expected: Vec<Value> = columns.map(|column| row[column].clone()).collect();
    assert_eq!(sealer.open(&app, &schema, &query, &cursor).ok(), Some(expected));
    let mut changed = cursor.into_bytes();
    let at = bytes.len() % changed.len();
    changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
    let changed = String::from_utf8(changed).expect("ASCII");
    assert!(sealer.open(&app, &schema, &query, &changed).is_err());
}

/// Headers of a command are read, or refused as the caller's mistake. One a line, `name: value`.
pub fn headers(bytes: &[u8]) {
    let mut headers = HeaderMap::new();
    for line in bytes.split(|byte| *byte == b'\n').take(64) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) =
            (HeaderName::from_bytes(&line[..colon]), HeaderValue::from_bytes(&line[colon + 1..]));
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    crate::data::commands::fuzz_headers(&headers);
    crate::data::freshness::fuzz_headers(&headers);
}

/// A bundle has plain paths that stay inside, or is refused.
pub fn bundle(bytes: &[u8]) {
    match crate::control::bundle::read(&Bytes::copy_from_slice(bytes)) {
        Ok(bundle) => {
            assert!(!bundle.files.is_empty());
            let held: usize = bundle.files.values().map(Bytes::len).sum();
            assert!(held <= bytes.len(), "no more comes out than went in");
            assert!(bundle.files.keys().all(|path| !path.starts_with('/') && !path.contains('\0')));
        }
        Err(problem) => assert_eq!(problem.status(), 400),
    }
}

/// Inputs to begin with, by target.
#[must_use]
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let query = "flights.gte=3&carrier=UA&late.is=null&order=-flights,share&limit=20&cursor=x";
    let settings = "data = \"d\"\n[http]\naddress = \"127.0.0.1:0\"\n[limits]\nbody = \"64KiB\"\n\
                    [auth]\ntokens = [{ token = \"0123456789abcdef0123456789abcdef\", actor = \"ann\" }]\n";
    let headers = "idempotency-key: \"k\"\nif-match: \"3\"\nebb-after: 7\nebb-wait: 2s\nebb-correlation-id: c\n\
                   traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\n";
    let mut tar = tar::Builder::new(Vec::new());
    for name in ["ebb.toml", "__up__/a.wasm"] {
        let mut header = tar::Header::new_gnu();
        header.set_size(1);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, &b"x"[..]).expect("memory takes it");
    }
    vec![
        ("settings", settings.into()),
        ("request_target", "/apps/bank/models/balances/a%2Fb?owner=x+y&limit=%31".into()),
        ("query", query.into()),
        ("cursor", "flights.gt=3&order=-flights,share,late\nAAAA".into()),
        ("headers", headers.into()),
        ("bundle", tar.into_inner().expect("memory takes it")),
    ]
}
