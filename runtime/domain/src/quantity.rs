//! Durations and sizes as people write them in settings: `"500ms"`, `"15min"`, `"64MiB"`.

use serde::{Deserialize, Deserializer};
use std::time::Duration;
use thiserror::Error;

/// Why a text is not a quantity.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("\"{value}\" is not {what}: {hint}")]
pub struct InvalidQuantity {
    /// The text that was offered, cut to 80 characters.
    pub value: String,
    /// What it should have been, with article: `a duration`.
    pub what: &'static str,
    /// What to write instead.
    pub hint: String,
}

/// Reads a duration: a whole number of `ms`, `s`, `min` or `h`.
///
/// # Errors
/// The text is something else; the error says what to write.
pub fn parse_duration(text: &str) -> Result<Duration, InvalidQuantity> {
    TIMES.parse(text).map(Duration::from_millis)
}

/// Reads a size in bytes: a whole number of `B`, `KiB`, `MiB` or `GiB`.
///
/// # Errors
/// The text is something else; the error says what to write.
pub fn parse_bytes(text: &str) -> Result<u64, InvalidQuantity> {
    SIZES.parse(text)
}

/// For `#[serde(deserialize_with)]`: a duration with its unit.
///
/// # Errors
/// As for [`parse_duration`].
pub fn deserialize_duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    parse_duration(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
}

/// For `#[serde(deserialize_with)]`: a size in bytes with its unit.
///
/// # Errors
/// As for [`parse_bytes`].
pub fn deserialize_bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    parse_bytes(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
}

/// Units of one kind of quantity.
#[derive(Debug)]
pub(crate) struct Units {
    pub(crate) what: &'static str,
    /// What a number without a unit probably meant.
    pub(crate) usual: &'static str,
    /// Names and how many of the smallest unit they are, ascending.
    pub(crate) names: [(&'static str, u64); 4],
    /// What people write instead, in lower case.
    aliases: &'static [(&'static str, &'static str)],
}

pub(crate) const TIMES: Units = Units {
    what: "a duration",
    usual: "ms",
    names: [("ms", 1), ("s", 1000), ("min", 60_000), ("h", 3_600_000)],
    aliases: &[
        ("ms", "ms"),
        ("msec", "ms"),
        ("millis", "ms"),
        ("milliseconds", "ms"),
        ("s", "s"),
        ("sec", "s"),
        ("secs", "s"),
        ("second", "s"),
        ("seconds", "s"),
        ("m", "min"),
        ("min", "min"),
        ("mins", "min"),
        ("minute", "min"),
        ("minutes", "min"),
        ("h", "h"),
        ("hr", "h"),
        ("hour", "h"),
        ("hours", "h"),
    ],
};

pub(crate) const SIZES: Units = Units {
    what: "a size",
    usual: "MiB",
    names: [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)],
    aliases: &[
        ("b", "B"),
        ("bytes", "B"),
        ("k", "KiB"),
        ("kb", "KiB"),
        ("kib", "KiB"),
        ("m", "MiB"),
        ("mb", "MiB"),
        ("mib", "MiB"),
        ("g", "GiB"),
        ("gb", "GiB"),
        ("gib", "GiB"),
    ],
};

impl Units {
    /// Digits, and how many of the smallest unit each of what they count is.
    fn split<'t>(&self, text: &'t str) -> Option<(&'t str, u64)> {
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, unit) = text.split_at(digits);
        let (_, factor) = self.names.iter().find(|(name, _)| *name == unit)?;
        (!number.is_empty()).then_some((number, *factor))
    }

    pub(crate) fn read(&self, text: &str) -> Option<u64> {
        let (number, factor) = self.split(text)?;
        number.parse::<u64>().ok()?.checked_mul(factor)
    }

    /// The same for who compares it with bounds: more than can be counted is the most that can be.
    pub(crate) fn read_capped(&self, text: &str) -> Option<u64> {
        let (number, factor) = self.split(text)?;
        Some(number.parse::<u64>().map_or(u64::MAX, |number| number.saturating_mul(factor)))
    }

    /// What was probably meant: the same number with the unit's right name.
    pub(crate) fn guess(&self, text: &str) -> Option<String> {
        let text = text.trim();
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, unit) = text.split_at(digits);
        let unit = unit.trim().to_lowercase();
        let (_, name) = self.aliases.iter().find(|(alias, _)| *alias == unit)?;
        number.parse::<u64>().ok().map(|number| format!("{number}{name}"))
    }

    /// What to write instead, for people.
    pub(crate) fn hint(&self, text: &str) -> String {
        let meant = self.guess(text).map(|meant| format!("write \"{meant}\": ")).unwrap_or_default();
        let [one, two, three, four] = self.names.map(|(name, _)| name);
        format!("{meant}a whole number and, without a space, one of `{one}`, `{two}`, `{three}` and `{four}`")
    }

    fn parse(&self, text: &str) -> Result<u64, InvalidQuantity> {
        let invalid = || InvalidQuantity {
            value: text.chars().take(80).collect(),
            what: self.what,
            hint: self.hint(text),
        };
        self.read(text).ok_or_else(invalid)
    }

    /// In the largest unit that needs no fraction.
    pub(crate) fn write(&self, quantity: u64) -> String {
        let whole = |(_, factor): &&(&str, u64)| quantity >= *factor && quantity.is_multiple_of(*factor);
        match self.names.iter().rev().find(whole) {
            Some((name, factor)) => format!("{}{name}", quantity / factor),
            None => format!("{quantity}{}", self.names[0].0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_whole_numbers_with_their_unit() {
        assert_eq!(SIZES.read("64MiB"), Some(64 << 20));
        assert_eq!(TIMES.read("15min"), Some(900_000));
        for wrong in ["64", "MiB", "64MB", "64 MiB", "-1MiB", "1.5GiB", "", "99999999999999999999GiB", "1mib"]
        {
            assert_eq!(SIZES.read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_is_too_large_to_count_is_still_a_size() {
        for large in ["99999999999999999999GiB", "17179869184GiB"] {
            assert_eq!((SIZES.read(large), SIZES.read_capped(large)), (None, Some(u64::MAX)));
        }
        assert_eq!(SIZES.read_capped("GiB"), None);
    }

    #[test]
    fn a_wrong_unit_is_answered_with_the_right_one() {
        assert_eq!(SIZES.guess("64 mb").as_deref(), Some("64MiB"));
        assert_eq!(TIMES.guess("5m").as_deref(), Some("5min"));
        assert_eq!(TIMES.guess("5 fortnights"), None);
    }

    #[test]
    fn bounds_are_written_in_the_largest_whole_unit() {
        assert_eq!((SIZES.write(1 << 30), TIMES.write(90_000)), ("1GiB".to_owned(), "90s".to_owned()));
        assert_eq!(TIMES.write(0), "0ms");
    }
}
