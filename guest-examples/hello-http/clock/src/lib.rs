//! Server-sent events: the time, once a second, for as long as someone listens.

use wasip3::clocks::{monotonic_clock, system_clock};
use wasip3::exports::http::handler::Guest;
use wasip3::http::types::{ErrorCode, Fields, Request, Response};
use wasip3::{wit_bindgen, wit_future, wit_stream};

// Natively, for tests, there is nobody to export to.
#[cfg(target_arch = "wasm32")]
wasip3::http::service::export!(Clock);

#[cfg_attr(not(target_arch = "wasm32"), allow(dead_code))]
struct Clock;

const SECOND: u64 = 1_000_000_000;

impl Guest for Clock {
    async fn handle(_: Request) -> Result<Response, ErrorCode> {
        let headers = Fields::new();
        headers.append("content-type", b"text/event-stream").expect("a good header");
        let (mut body, reader) = wit_stream::new();
        // No trailers: what is written when the sender goes.
        let (_trailers, trailers) = wit_future::new(|| Ok(None));
        let (response, _) = Response::new(headers, Some(reader), trailers);
        wit_bindgen::spawn_local(async move {
            // What is left unwritten says that nobody reads any more.
            while body.write_all(event(system_clock::now().seconds).into_bytes()).await.is_empty() {
                monotonic_clock::wait_for(SECOND).await;
            }
        });
        Ok(response)
    }
}

fn event(seconds: i64) -> String {
    format!("event: tick\ndata: {seconds}\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_ends_with_an_empty_line() {
        assert_eq!(event(7), "event: tick\ndata: 7\n\n");
    }
}
