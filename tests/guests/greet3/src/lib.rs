//! Says hello and does nothing else, as the native handler does beside which it is measured: `wasi:http` 0.3.

use wasip3::exports::http::handler::Guest;
use wasip3::http::types::{ErrorCode, Fields, Request, Response};
use wasip3::{wit_bindgen, wit_future, wit_stream};

wasip3::http::service::export!(Greet);

struct Greet;

impl Guest for Greet {
    async fn handle(_: Request) -> Result<Response, ErrorCode> {
        let headers = Fields::from_list(&[("content-type".to_owned(), b"text/plain".to_vec())]);
        let (mut body, reader) = wit_stream::new();
        // No trailers: what is written when the sender goes.
        let (_trailers, trailers) = wit_future::new(|| Ok(None));
        let (response, _) = Response::new(headers.expect("a good header"), Some(reader), trailers);
        wit_bindgen::spawn_local(async move {
            // What is left unwritten says that nobody reads any more.
            body.write_all(b"hello, stranger".to_vec()).await;
        });
        Ok(response)
    }
}
