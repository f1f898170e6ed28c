//! Greets whom the route names.

use wasip2::cli::environment::get_environment;
use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam};

// Natively, for tests, there is nobody to export to.
#[cfg(target_arch = "wasm32")]
wasip2::http::proxy::export!(Hello);

#[cfg_attr(not(target_arch = "wasm32"), allow(dead_code))]
struct Hello;

impl Guest for Hello {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let name = request.headers().get("ebb-param-name").into_iter().next().unwrap_or_default();
        let greeting = get_environment().into_iter().find(|(variable, _)| variable == "GREETING");
        let text = greet(greeting.as_ref().map_or("Hi", |(_, value)| value), &decoded(&name));

        let headers = Fields::new();
        headers.append("content-type", b"text/plain; charset=utf-8").expect("a good header");
        let response = OutgoingResponse::new(headers);
        let body = response.body().expect("asked for once");
        ResponseOutparam::set(out, Ok(response));
        let stream = body.write().expect("asked for once");
        // An error here means that the caller has gone.
        let _ = stream.blocking_write_and_flush(text.as_bytes());
        drop(stream);
        let _ = OutgoingBody::finish(body, None);
    }
}

fn greet(greeting: &str, name: &str) -> String {
    if name.is_empty() { format!("{greeting}!\n") } else { format!("{greeting}, {name}!\n") }
}

/// A route's parameter comes as it stands in the path: percent-encoded.
fn decoded(raw: &[u8]) -> String {
    let mut bytes = Vec::with_capacity(raw.len());
    let mut rest = raw;
    while let [first, behind @ ..] = rest {
        rest = behind;
        let code = behind.get(..2).and_then(|code| std::str::from_utf8(code).ok());
        match code.and_then(|code| u8::from_str_radix(code, 16).ok()).filter(|_| *first == b'%') {
            Some(byte) => {
                bytes.push(byte);
                rest = &behind[2..];
            }
            None => bytes.push(*first),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_decoded_once() {
        assert_eq!(greet("Hello", &decoded(b"J%C3%BCrgen%20%2541")), "Hello, Jürgen %41!\n");
        assert_eq!(decoded(b"100%"), "100%");
        assert_eq!(decoded(b"%zz%f"), "%zz%f");
    }

    #[test]
    fn nobody_is_greeted_too() {
        assert_eq!(greet("Hi", ""), "Hi!\n");
    }
}
