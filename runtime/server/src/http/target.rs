//! A request's path and query: taken apart on the raw text, then percent-decoded once, so that `%2F` is a slash
//! *in* a segment and `%252F` is the three characters `%2F`.

use super::problem::{BAD_PATH, BAD_QUERY, Problem};
use std::borrow::Cow;

/// The raw segments of a path. `/models/a%2Fb/` has `models`, `a%2Fb` and an empty one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segments<'a>(Option<&'a str>);

impl<'a> Segments<'a> {
    pub(crate) fn of(path: &'a str) -> Self {
        Self(Some(path.strip_prefix('/').unwrap_or(path)))
    }
}

impl<'a> Iterator for Segments<'a> {
    type Item = &'a str;
    fn next(&mut self) -> Option<&'a str> {
        let rest = self.0?;
        match rest.split_once('/') {
            Some((segment, rest)) => {
                self.0 = Some(rest);
                Some(segment)
            }
            None => self.0.take(),
        }
    }
}

/// A parameter of a query: its name and its value, decoded.
pub(crate) type Parameter<'a> = (Cow<'a, str>, Cow<'a, str>);

/// A path segment, decoded.
pub(crate) fn segment(raw: &str) -> Result<Cow<'_, str>, Problem> {
    decode(raw, false).map_err(|why| BAD_PATH.detail(format!("path segment `{}` {why}", shorten(raw))))
}

/// The parameters of a query, decoded, in their order. `+` is a space, as forms and `URLSearchParams` write it.
pub(crate) fn parameters(query: Option<&str>) -> Result<Vec<Parameter<'_>>, Problem> {
    let pairs = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let bad = |why| BAD_QUERY.detail(format!("query parameter `{}` {why}", shorten(pair)));
            Ok((decode(name, true).map_err(bad)?, decode(value, true).map_err(bad)?))
        })
        .collect()
}

fn decode(raw: &str, plus_is_space: bool) -> Result<Cow<'_, str>, &'static str> {
    if !raw.bytes().any(|byte| byte == b'%' || (plus_is_space && byte == b'+')) {
        return Ok(Cow::Borrowed(raw));
    }
    let mut bytes = raw.bytes();
    let mut decoded = Vec::with_capacity(raw.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let digit = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16));
                let (Some(high), Some(low)) = (digit(bytes.next()), digit(bytes.next())) else {
                    return Err("has a `%` without two hexadecimal digits behind it");
                };
                (high * 16 + low) as u8
            }
            b'+' if plus_is_space => b' ',
            byte => byte,
        });
    }
    String::from_utf8(decoded).map(Cow::Owned).map_err(|_| "is not UTF-8 once decoded")
}

/// What a caller sent, for a message: at most 80 characters, none of them control characters.
pub(crate) fn shorten(text: &str) -> String {
    let mut shown: String =
        text.chars().take(80).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if text.chars().nth(80).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_split_before_it_is_decoded() {
        let raw: Vec<_> = Segments::of("/commands/account/a%2Fb/open").collect();
        assert_eq!(raw, ["commands", "account", "a%2Fb", "open"]);
        assert_eq!(segment(raw[2]).unwrap(), "a/b");
    }

    #[test]
    fn decoding_happens_once() {
        assert_eq!(segment("a%252Fb").unwrap(), "a%2Fb");
    }

    #[test]
    fn a_broken_percent_or_broken_utf8_is_an_error_and_not_a_guess() {
        for raw in ["%", "%4", "%zz", "%+1", "%ff", "a%C3"] {
            assert_eq!(segment(raw).unwrap_err().kind().code, "bad_path", "{raw}");
        }
        assert_eq!(parameters(Some("a=%ff")).unwrap_err().kind().code, "bad_query");
    }

    #[test]
    fn a_plus_is_a_space_in_a_query_and_a_plus_in_a_path() {
        assert_eq!(segment("a+b").unwrap(), "a+b");
        assert_eq!(
            parameters(Some("q=a+b&&x")).unwrap(),
            [("q".into(), "a b".into()), ("x".into(), "".into())]
        );
    }

    #[test]
    fn empty_segments_are_kept() {
        assert_eq!(Segments::of("/").collect::<Vec<_>>(), [""]);
        assert_eq!(Segments::of("/a//b/").collect::<Vec<_>>(), ["a", "", "b", ""]);
    }
}
