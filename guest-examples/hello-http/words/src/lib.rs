//! What the functions say: all that can be said without a host.

use serde::{Deserialize, Serialize};
use serde_json::json;

/// An answer with its body.
#[derive(Debug, PartialEq)]
pub struct Answer {
    pub status: u16,
    pub content_type: &'static str,
    pub body: String,
}

/// `GET /hello/{name}`
pub fn hello(greeting: &str, name: &str) -> Answer {
    let body = format!("{}\n", greet(greeting, name));
    Answer { status: 200, content_type: "text/plain; charset=utf-8", body }
}

/// `POST /greetings`
pub fn greetings(greeting: &str, body: &[u8]) -> Answer {
    #[derive(Deserialize)]
    struct Guests {
        names: Vec<String>,
    }
    #[derive(Serialize)]
    struct Greetings {
        greetings: Vec<String>,
    }
    let Ok(Guests { names }) = serde_json::from_slice(body) else {
        return problem(400, r#"the body must be JSON: {"names": ["…"]}"#);
    };
    let greetings = names.iter().map(|name| greet(greeting, name)).collect();
    let body = serde_json::to_string(&Greetings { greetings }).expect("strings are JSON");
    Answer { status: 200, content_type: "application/json", body }
}

/// `GET /countdown/{from}`: what is sent, one after another.
pub fn countdown(from: &str) -> Result<impl Iterator<Item = String> + use<>, Answer> {
    let from: u64 = from.parse().map_err(|_| problem(400, &format!("`{from}` is not a number")))?;
    Ok((0..=from).rev().map(|number| format!("data: {number}\n\n")))
}

pub fn problem(status: u16, detail: &str) -> Answer {
    let body = json!({ "status": status, "detail": detail }).to_string();
    Answer { status, content_type: "application/problem+json", body }
}

fn greet(greeting: &str, name: &str) -> String {
    format!("{greeting}, {name}!")
}

/// The first segment of a path: which function is asked.
pub fn function(path: &str) -> &str {
    path.trim_start_matches('/').split(['/', '?']).next().unwrap_or_default()
}

/// A route's parameter comes as it stands in the path: percent-encoded.
pub fn decoded(raw: &[u8]) -> String {
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
        assert_eq!(hello("Hello", &decoded(b"J%C3%BCrgen%20%2541")).body, "Hello, Jürgen %41!\n");
        assert_eq!(decoded(b"100%"), "100%");
        assert_eq!(decoded(b"%zz%f"), "%zz%f");
    }

    #[test]
    fn all_are_greeted_or_it_is_said_why_not() {
        let both = greetings("Hi", br#"{"names": ["Ann", "Bob"]}"#);
        assert_eq!((both.status, &*both.body), (200, r#"{"greetings":["Hi, Ann!","Hi, Bob!"]}"#));
        assert_eq!(greetings("Hi", b"Ann and Bob").status, 400);
    }

    #[test]
    fn a_countdown_ends_at_nothing() {
        let events: Vec<_> = countdown("1").unwrap_or_else(|_| panic!("a number")).collect();
        assert_eq!(events, ["data: 1\n\n", "data: 0\n\n"]);
        assert_eq!(countdown("soon").err().map(|answer| answer.status), Some(400));
    }

    #[test]
    fn the_path_says_which_function_is_asked() {
        assert_eq!(function("/hello/Ann?x=1"), "hello");
        assert_eq!(function("/greetings?x=1"), "greetings");
    }
}
