//! An event function that posts each event to the URL in `COLLECTOR`, and tells which were turned away. Where the
//! collector is busy (503) or not there, it is busy itself.

use serde::Deserialize;
use serde_json::{Value, json};
use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::outgoing_handler;
use wasip2::http::types::{
    ErrorCode, Fields, IncomingRequest, Method, OutgoingBody, OutgoingRequest, OutgoingResponse,
    ResponseOutparam, Scheme,
};
use wasip2::io::streams::{InputStream, StreamError};

wasip2::http::proxy::export!(Function);

struct Function;

#[derive(Deserialize)]
struct Event {
    id: String,
    #[serde(flatten)]
    rest: Value,
}

impl Guest for Function {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let body = request.consume().expect("a body");
        let bytes = read(&body.stream().expect("a stream"));
        let events: Vec<Event> = serde_json::from_slice(&bytes).expect("a batch of CloudEvents");
        let (status, answer) = deliver(&events);
        let headers =
            Fields::from_list(&[("content-type".into(), b"application/json".to_vec())]).expect("headers");
        let response = OutgoingResponse::new(headers);
        response.set_status_code(status).expect("a status");
        let body = response.body().expect("a body");
        ResponseOutparam::set(out, Ok(response));
        let stream = body.write().expect("a stream");
        stream.blocking_write_and_flush(answer.to_string().as_bytes()).expect("a short answer");
        drop(stream);
        OutgoingBody::finish(body, None).expect("the end");
    }
}

fn deliver(events: &[Event]) -> (u16, Value) {
    let url = std::env::var("COLLECTOR").expect("a collector");
    let mut failed = Vec::new();
    for event in events {
        let mut document = event.rest.clone();
        document["id"] = event.id.clone().into();
        match post(&url, &document.to_string()) {
            Ok(200..=299) => {}
            Ok(418) => unreachable!("a teapot"),
            Ok(503) => return (503, json!("the collector is busy")),
            Ok(status) => {
                failed.push(json!({ "id": event.id, "message": format!("the collector says {status}") }))
            }
            Err(error) => return (503, json!(format!("{error:?}"))),
        }
    }
    (200, json!({ "failed": failed }))
}

fn post(url: &str, text: &str) -> Result<u16, ErrorCode> {
    let authority = url.strip_prefix("http://").expect("http");
    let headers = Fields::from_list(&[("content-type".into(), b"application/cloudevents+json".to_vec())]);
    let request = OutgoingRequest::new(headers.expect("headers"));
    request.set_method(&Method::Post).expect("a method");
    request.set_scheme(Some(&Scheme::Http)).expect("a scheme");
    request.set_authority(Some(authority)).expect("an authority");
    request.set_path_with_query(Some("/")).expect("a path");
    let body = request.body().expect("a body");
    let pending = outgoing_handler::handle(request, None)?;
    let stream = body.write().expect("a stream");
    for piece in text.as_bytes().chunks(4096) {
        if stream.blocking_write_and_flush(piece).is_err() {
            break;
        }
    }
    drop(stream);
    OutgoingBody::finish(body, None)?;
    pending.subscribe().block();
    let response = pending.get().expect("it is ready").expect("it is the first time")?;
    Ok(response.status())
}

fn read(stream: &InputStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        match stream.blocking_read(64 << 10) {
            Ok(more) => bytes.extend(more),
            Err(StreamError::Closed) => return bytes,
            Err(StreamError::LastOperationFailed(error)) => panic!("{}", error.to_debug_string()),
        }
    }
}
