//! Greets whom the route or the body names, and counts down: `wasi:http` 0.2.

use wasip2::cli::environment::get_environment;
use wasip2::clocks::monotonic_clock::subscribe_duration;
use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam};
use wasip2::io::streams::StreamError;
use words::{Answer, countdown, decoded, function, greetings, hello, problem};

// Natively, for tests, there is nobody to export to.
#[cfg(target_arch = "wasm32")]
wasip2::http::proxy::export!(Hello);

#[cfg_attr(not(target_arch = "wasm32"), allow(dead_code))]
struct Hello;

const TICK: u64 = 50_000_000;

impl Guest for Hello {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let parameter = |name: &str| {
            decoded(
                &request.headers().get(&format!("ebb-param-{name}")).into_iter().next().unwrap_or_default(),
            )
        };
        let greeting = get_environment().into_iter().find(|(variable, _)| variable == "GREETING");
        let greeting = greeting.as_ref().map_or("Hi", |(_, value)| value);
        match function(&request.path_with_query().unwrap_or_default()) {
            "hello" => say(out, &hello(greeting, &parameter("name"))),
            "greetings" => match body(&request) {
                Ok(body) => say(out, &greetings(greeting, &body)),
                Err(_) => say(out, &problem(400, "the body broke off")),
            },
            "countdown" => match countdown(&parameter("from")) {
                Ok(events) => {
                    respond(out, 200, "text/event-stream", events.map(|event| event.into_bytes()), || {
                        subscribe_duration(TICK).block();
                    });
                }
                Err(answer) => say(out, &answer),
            },
            _ => say(out, &problem(404, "there is no such path")),
        }
    }
}

fn say(out: ResponseOutparam, answer: &Answer) {
    let pieces = answer.body.as_bytes().chunks(4096).map(<[u8]>::to_vec);
    respond(out, answer.status, answer.content_type, pieces, || ());
}

/// Sends pieces as they come, with a pause behind each.
fn respond(
    out: ResponseOutparam,
    status: u16,
    content_type: &str,
    pieces: impl Iterator<Item = Vec<u8>>,
    pause: impl Fn(),
) {
    let headers = Fields::new();
    headers.append("content-type", content_type.as_bytes()).expect("a good header");
    let response = OutgoingResponse::new(headers);
    response.set_status_code(status).expect("a good status");
    let body = response.body().expect("asked for once");
    ResponseOutparam::set(out, Ok(response));
    let stream = body.write().expect("asked for once");
    for piece in pieces {
        // An error here means that the caller has gone.
        if stream.blocking_write_and_flush(&piece).is_err() {
            return;
        }
        pause();
    }
    drop(stream);
    let _ = OutgoingBody::finish(body, None);
}

fn body(request: &IncomingRequest) -> Result<Vec<u8>, StreamError> {
    let body = request.consume().expect("asked for once");
    let stream = body.stream().expect("asked for once");
    let mut bytes = Vec::new();
    loop {
        match stream.blocking_read(64 << 10) {
            Ok(piece) => bytes.extend(piece),
            Err(StreamError::Closed) => return Ok(bytes),
            Err(error) => return Err(error),
        }
    }
}
