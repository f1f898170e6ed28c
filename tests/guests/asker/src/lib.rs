//! An HTTP function that asks its own app for what the body says, a JSON document, and answers with what came of it:
//!
//! - `{"send": {"aggregate", "key", "name", "data", "idempotency", "revision"}}`
//! - `{"get": {"model", "key", "at_least"}}`
//! - `{"find": {"model", "gt": ["column", 1], "order", "limit", "pages"}}`
//! - `{"storm": {"send": …}}`: the same command again and again, until its time is up.
//! - `{"env": true}`
//! - a list of events: pays a cent into each account that was opened.

use ebbtide::commands::{Command, Precondition};
use ebbtide::models::{self, Query};
use serde_json::{Value, json};
use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam};

wasip2::http::proxy::export!(Function);

struct Function;

impl Guest for Function {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let body = request.consume().expect("a body");
        let stream = body.stream().expect("a stream");
        let mut bytes = Vec::new();
        while let Ok(more) = stream.blocking_read(64 << 10) {
            bytes.extend(more);
        }
        let said = ask(&serde_json::from_slice(&bytes).expect("JSON")).to_string();
        let response = OutgoingResponse::new(Fields::new());
        let body = response.body().expect("a body");
        ResponseOutparam::set(out, Ok(response));
        let stream = body.write().expect("a stream");
        for piece in said.as_bytes().chunks(4096) {
            if stream.blocking_write_and_flush(piece).is_err() {
                return;
            }
        }
        drop(stream);
        OutgoingBody::finish(body, None).expect("the end");
    }
}

fn ask(body: &Value) -> Value {
    for event in body.as_array().into_iter().flatten() {
        let account = text(&event["subject"]).trim_start_matches("account-");
        let paid_in = json!({ "aggregate": "account", "key": account, "name": "deposit", "data": { "amount": 1 }, "idempotency": event["id"] });
        assert!(send(&paid_in)["position"].is_u64(), "it can be paid in");
    }
    if body["send"].is_object() {
        return send(&body["send"]);
    }
    if body["get"].is_object() {
        let it = &body["get"];
        return match models::get_at_least::<Value>(
            text(&it["model"]),
            text(&it["key"]),
            it["at_least"].as_u64(),
        ) {
            Ok(row) => json!({ "row": row }),
            Err(error) => read_error(&error),
        };
    }
    if body["find"].is_object() {
        return find(&body["find"]);
    }
    if body["storm"].is_object() {
        loop {
            send(&body["storm"]["send"]);
        }
    }
    std::env::vars()
        .collect::<std::collections::BTreeMap<_, _>>()
        .into_iter()
        .map(|(k, v)| json!([k, v]))
        .collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn send(it: &Value) -> Value {
    let mut command = Command::new(text(&it["aggregate"]), text(&it["key"]), text(&it["name"]));
    if !it["data"].is_null() {
        command = command.data(&it["data"]);
    }
    if let Some(key) = it["idempotency"].as_str() {
        command = command.idempotency_key(key);
    }
    if let Some(revision) = it["revision"].as_u64() {
        command = command.only_if(Precondition::Revision(revision));
    }
    match command.send() {
        Ok(accepted) => json!({
            "stream": accepted.stream,
            "revision": accepted.revision,
            "position": accepted.position,
            "command_id": accepted.command_id.to_string(),
            "events": accepted.events.iter().map(|event| json!([event.event_type, event.decode::<Value>().ok()])).collect::<Vec<_>>(),
            "replayed": accepted.replayed,
        }),
        Err(error) => json!({
            "error": format!("{:?}", error.kind),
            "code": error.code,
            "message": error.message,
            "details": error.details,
            "retry": error.retry_after.is_some(),
        }),
    }
}

fn read_error(error: &models::Error) -> Value {
    json!({ "error": format!("{:?}", error.kind), "code": error.code, "message": error.message })
}

/// All rows, page by page.
fn find(it: &Value) -> Value {
    let mut query = Query::new(text(&it["model"]));
    if let Some([column, least]) = it["gt"].as_array().map(Vec::as_slice) {
        query = query.gt(text(column), least.as_i64());
    }
    if let Some(column) = it["order"].as_str() {
        query = query.order_desc(column);
    }
    if let Some(limit) = it["limit"].as_u64() {
        query = query.limit(limit as u32);
    }
    query = query.at_least(it["at_least"].as_u64());
    let mut pages = Vec::new();
    let mut next = None;
    loop {
        let page = match next.take() {
            Some(place) => query.clone().after(place),
            None => query.clone(),
        };
        match page.find::<Value>() {
            Ok(page) => {
                pages.push(json!(page.rows));
                match page.next {
                    Some(place) => next = Some(place),
                    None => return json!({ "pages": pages }),
                }
            }
            Err(error) => return read_error(&error),
        }
    }
}
