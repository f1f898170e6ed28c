//! How fresh a read must be, and how fresh it is: `Ebb-After`, `Ebb-Wait`, `Ebb-Allow-Parked`.

use super::commands::one;
use crate::http::problem::{BAD_HEADER, Problem};
use crate::http::target::shorten;
use ebb_domain::event::Position;
use http::HeaderMap;
use std::time::Duration;

/// How long a read waits for its position where nobody says.
const DEFAULT_WAIT: Duration = Duration::from_secs(2);

/// What a read asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Freshness {
    /// The projection must have passed this.
    pub(super) after: Option<Position>,
    /// How long that may take.
    pub(super) wait: Duration,
    /// Whether events parked at or below `after` don't matter.
    pub(super) allow_parked: bool,
}

impl Freshness {
    /// Reads the three headers; a longer wait than `longest` is cut to that.
    pub(super) fn of(headers: &HeaderMap, longest: Duration) -> Result<Self, Problem> {
        let wait = match text(headers, "ebb-wait")? {
            None => DEFAULT_WAIT,
            Some(value) => wait(value).ok_or_else(|| {
                let detail =
                    format!("`Ebb-Wait` is `{}`; it takes a duration, as in `500ms` or `2s`", shorten(value));
                BAD_HEADER.detail(detail)
            })?,
        };
        let allow_parked = match text(headers, "ebb-allow-parked")? {
            None => false,
            Some(value) if value.eq_ignore_ascii_case("true") => true,
            Some(value) if value.eq_ignore_ascii_case("false") => false,
            Some(_) => return Err(BAD_HEADER.detail("`Ebb-Allow-Parked` takes `true` or `false`")),
        };
        Ok(Self { after: after(headers)?, wait: wait.min(longest), allow_parked })
    }
}

/// Reads how fresh a read must be.
#[cfg(feature = "testing")]
pub(crate) fn fuzz_headers(headers: &HeaderMap) {
    let longest = Duration::from_secs(600);
    match Freshness::of(headers, longest) {
        Ok(freshness) => assert!(freshness.wait <= longest),
        Err(problem) => assert_eq!(problem.status(), 400),
    }
}

/// `Ebb-After`, if it is there.
pub(super) fn after(headers: &HeaderMap) -> Result<Option<Position>, Problem> {
    let Some(value) = text(headers, "ebb-after")? else { return Ok(None) };
    let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
    let position = digits.then(|| value.parse().ok()).flatten().map(Position);
    position.map(Some).ok_or_else(|| {
        BAD_HEADER.detail(format!(
            "`Ebb-After` is `{}`; it takes a position, a whole number from 0",
            shorten(value)
        ))
    })
}

fn text<'h>(headers: &'h HeaderMap, name: &str) -> Result<Option<&'h str>, Problem> {
    let Some(value) = one(headers, name)? else { return Ok(None) };
    let readable = value.to_str().map(|text| Some(text.trim()));
    readable.map_err(|_| BAD_HEADER.detail(format!("`{name}` takes visible ASCII characters")))
}

/// With a unit, or in seconds.
fn wait(text: &str) -> Option<Duration> {
    if let Ok(duration) = ebb_domain::quantity::parse_duration(text) {
        return Some(duration);
    }
    let plain = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let seconds: f64 = plain.then(|| text.parse().ok()).flatten()?;
    Duration::try_from_secs_f64(seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderName;

    fn freshness(pairs: &[(&'static str, &str)]) -> Result<Freshness, Problem> {
        let headers = pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()))
            .collect();
        Freshness::of(&headers, Duration::from_secs(30))
    }

    #[test]
    fn a_read_that_asks_for_nothing_waits_for_nothing() {
        let asked = freshness(&[]).unwrap();
        assert_eq!((asked.after, asked.wait, asked.allow_parked), (None, Duration::from_secs(2), false));
    }

    #[test]
    fn a_wait_has_a_unit_or_is_in_seconds_and_is_capped() {
        let wait = |value| freshness(&[("ebb-wait", value)]).map(|asked| asked.wait);
        assert_eq!(wait("500ms").unwrap(), Duration::from_millis(500));
        assert_eq!(wait("5").unwrap(), Duration::from_secs(5));
        assert_eq!(wait("0.25").unwrap(), Duration::from_millis(250));
        assert_eq!(wait("1h").unwrap(), Duration::from_secs(30));
        for wrong in ["", "-1", "soon", "1e99", "NaN", "inf"] {
            assert_eq!(wait(wrong).unwrap_err().kind().code, "bad_header", "{wrong}");
        }
    }

    #[test]
    fn a_position_that_is_not_a_whole_number_is_refused() {
        assert_eq!(freshness(&[("ebb-after", "7")]).unwrap().after, Some(Position(7)));
        for wrong in ["", "-1", "7.0", "latest"] {
            assert_eq!(freshness(&[("ebb-after", wrong)]).unwrap_err().kind().code, "bad_header", "{wrong}");
        }
    }
}
