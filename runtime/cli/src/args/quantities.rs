//! Times and parts as people write them on a command line.

use ebb_domain::quantity::parse_duration;
use ebb_domain::time::Timestamp;
use std::time::Duration;

const DAY: u64 = 24 * 60 * 60;

/// RFC 3339, or a day, which begins at midnight UTC.
pub(super) fn time(text: &str) -> Result<Timestamp, String> {
    let is_day = text.len() == 10 && !text.contains('T');
    let whole = if is_day { format!("{text}T00:00:00Z") } else { text.to_owned() };
    whole.parse().map_err(|_| "write a day, `2026-01-31`, or a time, `2026-01-31T12:00:00Z`".to_owned())
}

/// A span of time: what settings take, and days and weeks.
pub(super) fn span(text: &str) -> Result<Duration, String> {
    let of_days = |days: u64| {
        let number = text[..text.len() - 1].parse::<u64>().ok()?;
        Some(Duration::from_secs(number.checked_mul(days)?.checked_mul(DAY)?))
    };
    let span = match text.as_bytes().last() {
        Some(b'd') => of_days(1),
        Some(b'w') => of_days(7),
        _ => parse_duration(text).ok(),
    };
    span.filter(|span| !span.is_zero()).ok_or_else(|| "write `30d`, `12h` or `90min`".to_owned())
}

/// `10%` or `0.1`: above nothing, up to everything.
pub(super) fn part(text: &str) -> Result<f64, String> {
    let part = match text.strip_suffix('%') {
        Some(percent) => percent.parse::<f64>().map(|percent| percent / 100.0),
        None => text.parse(),
    };
    part.ok()
        .filter(|part| *part > 0.0 && *part <= 1.0)
        .ok_or_else(|| "write a part above 0% and up to 100%, `10%` or `0.1`".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_spans_and_parts_are_read_as_people_write_them() {
        assert_eq!(time("1970-01-02"), Ok(Timestamp(86_400_000_000)));
        assert_eq!(time("1970-01-01T01:00:00+01:00"), Ok(Timestamp(0)));
        assert_eq!(span("30d"), Ok(Duration::from_secs(30 * DAY)));
        assert_eq!(span("2w"), span("14d"));
        assert_eq!(span("90min"), Ok(Duration::from_secs(5400)));
        assert_eq!((part("10%"), part("0.1"), part("100%")), (Ok(0.1), Ok(0.1), Ok(1.0)));
        for wrong in ["", "yesterday", "1969-12-31", "2026-02-30"] {
            assert!(time(wrong).is_err(), "{wrong}");
        }
        for wrong in ["", "d", "0d", "-1d", "30", "99999999999999999w"] {
            assert!(span(wrong).is_err(), "{wrong}");
        }
        for wrong in ["", "%", "0", "101%", "-1", "NaN"] {
            assert!(part(wrong).is_err(), "{wrong}");
        }
    }
}
