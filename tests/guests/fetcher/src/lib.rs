//! An HTTP function that sends requests: to the URL in the header `x-url`, and answers with what came of it.

use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::outgoing_handler;
use wasip2::http::types::{
    ErrorCode, Fields, IncomingRequest, OutgoingBody, OutgoingRequest, OutgoingResponse, ResponseOutparam,
    Scheme,
};
use wasip2::io::streams::StreamError;

wasip2::http::proxy::export!(Function);

struct Function;

impl Guest for Function {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let url = request.headers().get("x-url").into_iter().next().unwrap_or_default();
        let url = String::from_utf8_lossy(&url).into_owned();
        let said = fetch(&url).unwrap_or_else(|error| format!("{error:?}"));
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

/// Status and body, on a line each.
fn fetch(url: &str) -> Result<String, ErrorCode> {
    let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let request = OutgoingRequest::new(Fields::new());
    let scheme = if scheme == "https" { Scheme::Https } else { Scheme::Http };
    request.set_scheme(Some(&scheme)).expect("a scheme");
    request.set_authority(Some(authority)).map_err(|()| ErrorCode::HttpRequestUriInvalid)?;
    request.set_path_with_query(Some(path)).map_err(|()| ErrorCode::HttpRequestUriInvalid)?;
    let pending = outgoing_handler::handle(request, None)?;
    pending.subscribe().block();
    let response = pending.get().expect("it is ready").expect("it is the first time")?;
    let mut said = format!("{}\n", response.status());
    let body = response.consume().expect("a body");
    let stream = body.stream().expect("a stream");
    loop {
        match stream.blocking_read(64 << 10) {
            Ok(bytes) => said.push_str(&String::from_utf8_lossy(&bytes)),
            Err(StreamError::Closed) => return Ok(said),
            Err(StreamError::LastOperationFailed(_)) => {
                said.push_str(" and then it broke off");
                return Ok(said);
            }
        }
    }
}
