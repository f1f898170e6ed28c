//! Says hello and does nothing else, as the native handler does beside which it is measured: `wasi:http` 0.2.

use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam};

wasip2::http::proxy::export!(Greet);

struct Greet;

impl Guest for Greet {
    fn handle(_: IncomingRequest, out: ResponseOutparam) {
        let headers = Fields::from_list(&[("content-type".to_owned(), b"text/plain".to_vec())]);
        let response = OutgoingResponse::new(headers.expect("a good header"));
        let body = response.body().expect("asked for once");
        ResponseOutparam::set(out, Ok(response));
        let stream = body.write().expect("asked for once");
        // An error here means that the caller has gone.
        let _ = stream.blocking_write_and_flush(b"hello, stranger");
        drop(stream);
        let _ = OutgoingBody::finish(body, None);
    }
}
