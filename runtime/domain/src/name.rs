//! Names that appear in manifests, paths and streams: checked once, then trusted.

use crate::text::Text;
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;
use std::ops::Deref;
use thiserror::Error;

/// Why a name was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{value}` is not {what}: {rule}")]
pub struct InvalidName {
    /// The text that was offered, cut to 80 characters.
    pub value: String,
    /// What it should have been, with article: `an aggregate name`.
    pub what: &'static str,
    /// The rule it broke.
    pub rule: &'static str,
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal, $check:path, $rule:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $type(Text);

        impl $type {
            /// Checks the rule and takes the text.
            ///
            /// # Errors
            /// The text breaks the naming rule, which the error states.
            pub fn new(text: impl Into<Text>) -> Result<Self, InvalidName> {
                let text = text.into();
                if $check(&text) {
                    Ok(Self(text))
                } else {
                    Err(InvalidName { value: text.chars().take(80).collect(), what: $what, rule: $rule })
                }
            }

            /// Takes text that was checked when it was written, such as a name read back from the log.
            #[must_use]
            pub fn trusted(text: Text) -> Self {
                Self(text)
            }

            /// The name as text that shares its buffer.
            #[must_use]
            pub fn text(&self) -> &Text {
                &self.0
            }
        }

        impl Deref for $type {
            type Target = str;
            fn deref(&self) -> &str {
                &self.0
            }
        }

        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl std::borrow::Borrow<[u8]> for $type {
            fn borrow(&self) -> &[u8] {
                self.0.borrow()
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Self::new(Text::deserialize(deserializer)?).map_err(serde::de::Error::custom)
            }
        }
    };
}

fn is_snake(text: &str) -> bool {
    text.len() <= 64
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

fn is_kebab(text: &str) -> bool {
    text.len() <= 64
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-')
}

fn is_event_type(text: &str) -> bool {
    text.len() <= 128
        && text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
}

/// Kafka's own rule (`org.apache.kafka.common.internals.Topic`).
fn is_topic(text: &str) -> bool {
    (1..=249).contains(&text.len())
        && !matches!(text, "." | "..")
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

name!(
    /// A Kafka topic.
    TopicName, "a topic name", is_topic,
    "use 1 to 249 of A-Z, a-z, 0-9, ., _ and -"
);
name!(
    /// An application on a node.
    AppName, "an app name", is_kebab,
    "use 1 to 64 of a-z, 0-9, - and _, starting with a letter"
);
name!(
    /// A kind of aggregate, and the category of its streams. No dash: the first dash of a stream ends its category.
    AggregateName, "an aggregate name", is_snake,
    "use 1 to 64 of a-z, 0-9 and _, starting with a letter (no dash: the first dash of a stream ends its category)"
);
name!(
    /// A command that an aggregate understands.
    CommandName, "a command name", is_kebab,
    "use 1 to 64 of a-z, 0-9, - and _, starting with a letter"
);
name!(
    /// A domain name for what happened: `Deposited`.
    EventType, "an event type", is_event_type,
    "use 1 to 128 of A-Z, a-z, 0-9, _, - and ., starting with a letter"
);
name!(
    /// A read model: a table that one projection writes.
    ModelName, "a model name", is_snake,
    "use 1 to 64 of a-z, 0-9 and _, starting with a letter"
);
name!(
    /// A projection.
    ProjectionName, "a projection name", is_kebab,
    "use 1 to 64 of a-z, 0-9, - and _, starting with a letter"
);
name!(
    /// A function that a trigger calls.
    FunctionName, "a function name", is_kebab,
    "use 1 to 64 of a-z, 0-9, - and _, starting with a letter"
);
impl From<&FunctionName> for ProjectionName {
    /// What follows the log by this name: both have the same rule.
    fn from(function: &FunctionName) -> Self {
        Self(function.0.clone())
    }
}

name!(
    /// A column of a model.
    ColumnName, "a column name", is_snake,
    "use 1 to 64 of a-z, 0-9 and _, starting with a letter"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_aggregate_name_has_no_dash_because_the_first_dash_of_a_stream_ends_its_category() {
        assert!(AggregateName::new("bank_account").is_ok());
        let refused = AggregateName::new("bank-account").unwrap_err();
        assert!(refused.to_string().starts_with("`bank-account` is not an aggregate name"));
    }

    #[test]
    fn names_are_neither_empty_nor_long() {
        assert!(AppName::new("").is_err());
        assert!(AppName::new("a".repeat(65)).is_err());
        assert!(EventType::new("9Lives").is_err());
    }
}
