//! From `wasi:http` and back.

use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam};
use wasip2::io::streams::StreamError;

// Natively, for tests, there is nobody to export to.
#[cfg(target_arch = "wasm32")]
wasip2::http::proxy::export!(Function);

#[cfg_attr(not(target_arch = "wasm32"), allow(dead_code))]
struct Function;

impl Guest for Function {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let id = request.headers().get("ebb-param-id").into_iter().next().unwrap_or_default();
        let (status, body) = match read(&request) {
            Some(body) => crate::answer(&String::from_utf8_lossy(&id), &body),
            None => (400, serde_json::json!({ "error": "the body broke off" })),
        };
        let headers = Fields::new();
        headers.append("content-type", b"application/json").expect("a good header");
        let response = OutgoingResponse::new(headers);
        response.set_status_code(status).expect("a good status");
        let outgoing = response.body().expect("asked for once");
        ResponseOutparam::set(out, Ok(response));
        let stream = outgoing.write().expect("asked for once");
        for piece in body.to_string().as_bytes().chunks(4096) {
            if stream.blocking_write_and_flush(piece).is_err() {
                return; // The caller has gone.
            }
        }
        drop(stream);
        let _ = OutgoingBody::finish(outgoing, None);
    }
}

fn read(request: &IncomingRequest) -> Option<Vec<u8>> {
    let body = request.consume().ok()?;
    let stream = body.stream().ok()?;
    let mut bytes = Vec::new();
    loop {
        match stream.blocking_read(64 << 10) {
            Ok(more) => bytes.extend(more),
            Err(StreamError::Closed) => return Some(bytes),
            Err(StreamError::LastOperationFailed(_)) => return None,
        }
    }
}
