//! Greets whom the route or the body names, and counts down: `wasi:http` 0.3.

use wasip3::cli::environment::get_environment;
use wasip3::clocks::monotonic_clock::wait_for;
use wasip3::exports::http::handler::Guest;
use wasip3::http::types::{ErrorCode, Fields, Request, Response};
use wasip3::{wit_bindgen, wit_future, wit_stream};
use words::{Answer, countdown, decoded, function, greetings, hello, problem};

// Natively, for tests, there is nobody to export to.
#[cfg(target_arch = "wasm32")]
wasip3::http::service::export!(Hello);

#[cfg_attr(not(target_arch = "wasm32"), allow(dead_code))]
struct Hello;

const TICK: u64 = 50_000_000;

impl Guest for Hello {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        let parameter = |name: &str| {
            let values = request.get_headers().get(&format!("ebb-param-{name}"));
            decoded(&values.into_iter().next().unwrap_or_default())
        };
        let greeting = get_environment().into_iter().find(|(variable, _)| variable == "GREETING");
        let greeting = greeting.as_ref().map_or("Hi", |(_, value)| value);
        Ok(match function(&request.get_path_with_query().unwrap_or_default()) {
            "hello" => say(hello(greeting, &parameter("name"))),
            "greetings" => say(match body(request).await {
                Ok(body) => greetings(greeting, &body),
                Err(_) => problem(400, "the body broke off"),
            }),
            "countdown" => match countdown(&parameter("from")) {
                Ok(events) => respond(200, "text/event-stream", events, TICK),
                Err(answer) => say(answer),
            },
            _ => say(problem(404, "there is no such path")),
        })
    }
}

fn say(answer: Answer) -> Response {
    respond(answer.status, answer.content_type, [answer.body].into_iter(), 0)
}

/// Sends pieces as they come, with a pause behind each.
fn respond(
    status: u16,
    content_type: &str,
    pieces: impl Iterator<Item = String> + 'static,
    pause: u64,
) -> Response {
    let headers = Fields::new();
    headers.append("content-type", content_type.as_bytes()).expect("a good header");
    let (mut body, reader) = wit_stream::new();
    // No trailers: what is written when the sender goes.
    let (_trailers, trailers) = wit_future::new(|| Ok(None));
    let (response, _) = Response::new(headers, Some(reader), trailers);
    response.set_status_code(status).expect("a good status");
    wit_bindgen::spawn_local(async move {
        for piece in pieces {
            // What is left unwritten says that nobody reads any more.
            if !body.write_all(piece.into_bytes()).await.is_empty() {
                return;
            }
            if pause > 0 {
                wait_for(pause).await;
            }
        }
    });
    response
}

async fn body(request: Request) -> Result<Vec<u8>, ErrorCode> {
    let (_done, processed) = wit_future::new(|| Ok(()));
    let (body, trailers) = Request::consume_body(request, processed);
    let bytes = body.collect().await;
    // It ends well only if its trailers do, be there any or not.
    trailers.await.map(|_| bytes)
}
