//! Reading the log: one stream, or all events in order of position, as pages of CloudEvents.

use super::commands::one;
use super::query::{default_limit, parse_limit};
use super::{Call, DataPlane};
use crate::http::problem::{
    BAD_HEADER, BAD_QUERY, INTERNAL, INVALID_KEY, LOG_DAMAGED, POSITION_UNKNOWN, Problem, UNKNOWN_AGGREGATE,
};
use crate::http::reply::{EBB_LAG, EBB_POSITION, Reply, json, number};
use crate::http::target::{parameters, segment, shorten};
use ebb_domain::event::{Position, Revision, StoredEvent};
use ebb_domain::name::{AppName, EventType};
use ebb_domain::port::log::{EventFilter, ReadError, ReadLimits};
use ebb_domain::stream::StreamId;
use ebb_domain::text::Text;
use http::header::ACCEPT;
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use std::collections::HashSet;

/// Bytes of event data of a page, about: with its JSON around it that stays well below a response's 10 MiB.
const PAGE_BYTES: usize = 2 << 20;
/// Reads of a page at most, where a filter finds little: then the page ends early, and says where to go on.
const MAX_SCANS: usize = 32;

impl DataPlane {
    pub(super) async fn stream(&self, call: &Call<'_>, raw: &str) -> Result<Reply, Problem> {
        let text = segment(raw)?;
        let stream = StreamId::parse(&*text).map_err(|error| INVALID_KEY.detail(error.to_string()))?;
        authorize_category(call, stream.category())?;
        let (mut from, mut limit) = (None, None);
        for (name, value) in parameters(call.parts.uri.query())? {
            match &*name {
                "from" => set(&mut from, "from", whole("from", &value)?)?,
                "limit" => set(&mut limit, "limit", parse_limit(&value)?)?,
                _ => return Err(unknown_parameter(&name, "from and limit")),
            }
        }
        let position = known_position(call)?;
        let limits = ReadLimits { items: limit.unwrap_or_else(default_limit), bytes: PAGE_BYTES };
        let log = call.app.log();
        let events =
            log.read_stream(&stream, Revision(from.unwrap_or(0)), limits).await.map_err(unreadable)?;
        let next = match events.last() {
            None => None,
            Some(last) => {
                let behind = Revision::after(Some(last.revision));
                let one_more = ReadLimits { items: 1, ..limits };
                let more = log.read_stream(&stream, behind, one_more).await.map_err(unreadable)?;
                (!more.is_empty()).then_some(behind.0)
            }
        };
        let aggregate_is_known = call.manifest.aggregates.keys().any(|name| **name == *stream.category());
        if events.is_empty() && !aggregate_is_known {
            let known: Vec<&str> = call.manifest.aggregates.keys().map(|name| &**name).collect();
            let detail = format!(
                "this app has no aggregate `{}`; it has {}",
                shorten(stream.category()),
                known.join(", ")
            );
            return Err(UNKNOWN_AGGREGATE.detail(detail));
        }
        Ok(page(call.app.name(), &events, next, position))
    }

    pub(super) async fn events(&self, call: &Call<'_>) -> Result<Reply, Problem> {
        let (mut after, mut limit, mut types) = (None, None, None);
        for (name, value) in parameters(call.parts.uri.query())? {
            match &*name {
                "after" => set(&mut after, "after", whole("after", &value)?)?,
                "limit" => set(&mut limit, "limit", parse_limit(&value)?)?,
                "types" => set(&mut types, "types", event_types(&value)?)?,
                _ => return Err(unknown_parameter(&name, "after, limit and types")),
            }
        }
        let filter = EventFilter { categories: permitted_categories(call), types, ..EventFilter::default() };
        let mut after = Position(after.unwrap_or(0));
        let is_live = wants_event_stream(&call.parts.headers);
        if is_live && let Some(id) = one(&call.parts.headers, "last-event-id")? {
            let id = id.to_str().ok().and_then(|id| whole("Last-Event-ID", id).ok());
            let id = id.ok_or_else(|| BAD_HEADER.detail("`Last-Event-ID` takes the position of an event"))?;
            after = Position(id);
        }
        let durable = known_position(call)?;
        if after > durable {
            return Err(unknown_position(after, durable));
        }
        if is_live {
            return self.live_events(call, after, filter);
        }
        let limit = limit.unwrap_or_else(default_limit);
        let mut events = Vec::new();
        let mut bytes = 0;
        for _ in 0..MAX_SCANS {
            let limits = ReadLimits { items: limit - events.len(), bytes: PAGE_BYTES - bytes };
            let batch = call.app.log().read(after, &filter, limits).await.map_err(unreadable)?;
            let has_moved = batch.scanned_to > after;
            after = batch.scanned_to;
            bytes += batch.events.iter().map(StoredEvent::weight).sum::<usize>();
            events.extend(batch.events);
            if !has_moved || after >= durable || events.len() >= limit || bytes >= PAGE_BYTES {
                break;
            }
        }
        let next = (after < durable).then_some(after.0);
        Ok(page(call.app.name(), &events, next, durable))
    }
}

/// A page of events. `next` is where to go on, null at the end; a poller goes on after `Ebb-Position`.
fn page(app: &AppName, events: &[StoredEvent], next: Option<u64>, position: Position) -> Reply {
    let events: Vec<Value> = events.iter().map(|event| event.cloud_event(app)).collect();
    let mut reply = json(StatusCode::OK, &json!({ "events": events, "next": next }));
    reply.headers_mut().insert(EBB_POSITION, number(position.0));
    // Events are read from the log itself.
    reply.headers_mut().insert(EBB_LAG, number(0));
    reply
}

/// The durable mark, once it is known that `Ebb-After`, if there, lies not behind it.
fn known_position(call: &Call<'_>) -> Result<Position, Problem> {
    let durable = call.app.log().durable().borrow().position;
    match super::freshness::after(&call.parts.headers)? {
        Some(after) if after > durable => Err(unknown_position(after, durable)),
        _ => Ok(durable),
    }
}

pub(super) fn unknown_position(asked: Position, durable: Position) -> Problem {
    let detail = format!("position {asked} was asked for, and the log has only reached {durable}");
    POSITION_UNKNOWN.detail(detail).with("position", durable.0)
}

/// An aggregate's `allow` list covers its commands and its events. Events of an aggregate that is no longer in the
/// manifest have no list.
pub(super) fn authorize_category(call: &Call<'_>, category: &str) -> Result<(), Problem> {
    match call.manifest.aggregates.values().find(|spec| *spec.name == *category) {
        Some(spec) => call.authorize(&spec.allow, || format!("aggregate {category}")),
        None => Ok(()),
    }
}

/// The aggregates whose events this actor may see; none where that is all. With any denied, events of aggregates
/// that are no longer in the manifest are left out too.
fn permitted_categories(call: &Call<'_>) -> Option<HashSet<Text>> {
    let aggregates = call.manifest.aggregates.values();
    if aggregates.clone().all(|spec| call.is_permitted(&spec.allow)) {
        return None;
    }
    let permitted = aggregates.filter(|spec| call.is_permitted(&spec.allow));
    Some(permitted.map(|spec| spec.name.text().clone()).collect())
}

fn event_types(text: &str) -> Result<HashSet<Text>, Problem> {
    let read = |name| EventType::new(name).map(|name| name.text().clone());
    let types: Result<HashSet<Text>, _> = text.split(',').map(read).collect();
    types.map_err(|error| {
        BAD_QUERY.detail(format!("`types` takes event types with commas in between: {error}"))
    })
}

fn wants_event_stream(headers: &HeaderMap) -> bool {
    let ranges = headers
        .get_all(ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(','));
    ranges.into_iter().any(|range| {
        let essence = range.split(';').next().unwrap_or_default().trim();
        essence.eq_ignore_ascii_case("text/event-stream")
    })
}

pub(super) fn whole(name: &str, text: &str) -> Result<u64, Problem> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten().ok_or_else(|| {
        BAD_QUERY.detail(format!("`{name}` is `{}`; it takes a whole number from 0", shorten(text)))
    })
}

fn set<T>(slot: &mut Option<T>, name: &str, value: T) -> Result<(), Problem> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(BAD_QUERY.detail(format!("`{name}` is there twice"))),
    }
}

fn unknown_parameter(name: &str, known: &str) -> Problem {
    BAD_QUERY.detail(format!("there is no parameter `{}` here; there are {known}", shorten(name)))
}

pub(super) fn unreadable(error: ReadError) -> Problem {
    match error {
        ReadError::Corrupt(_) => LOG_DAMAGED.detail("what was asked for is damaged").cause(error),
        ReadError::Io(_) => INTERNAL.detail("the log could not be read").cause(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_stream_is_asked_for_by_its_media_type() {
        let accepts =
            |value: &str| wants_event_stream(&HeaderMap::from_iter([(ACCEPT, value.parse().unwrap())]));
        assert!(accepts("text/event-stream"));
        assert!(accepts("application/json;q=0.5, Text/Event-Stream;q=1"));
        assert!(!accepts("*/*"), "curl sends that");
    }

    #[test]
    fn a_position_is_a_whole_number_from_0() {
        assert_eq!(whole("after", "0").unwrap(), 0);
        for wrong in ["", "-1", "+1", "1.0", "x", "99999999999999999999"] {
            assert_eq!(whole("after", wrong).unwrap_err().kind().code, "bad_query", "{wrong}");
        }
    }

    #[test]
    fn event_types_are_checked_before_they_are_looked_for() {
        assert_eq!(event_types("Opened,Closed").unwrap().len(), 2);
        assert!(event_types("").is_err());
        assert!(event_types("Opened,,Closed").is_err());
    }
}
