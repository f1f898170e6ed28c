//! A domain "no".

use crate::tagged;
use serde::Serialize;
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::fmt::{self, Display};

/// A domain "no": the command was understood, and what it asks for can't be. An outcome, not a failure: the caller gets
/// 422 with the code, and asking again gets the same answer.
///
/// ```
/// use ebbtide::Refusal;
///
/// let refusal = Refusal::new("insufficient_funds", "30 short of 80").detail("short_by", 30);
/// assert_eq!(refusal.to_string(), "30 short of 80");
/// ```
///
/// Larger aggregates keep their refusals in an enum; [`Refusal::from_enum`] makes the code of its variants' names.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    code: Cow<'static, str>,
    message: String,
    details: Option<Value>,
}

impl Refusal {
    /// A refusal with a stable code for programs, such as `insufficient_funds`, and a message for people.
    #[must_use]
    pub fn new(code: impl Into<Cow<'static, str>>, message: impl Display) -> Self {
        Self { code: code.into(), message: message.to_string(), details: None }
    }

    /// From a variant of an enum: its name in snake case is the code, its text the message, its fields the details.
    ///
    /// ```
    /// use ebbtide::Refusal;
    ///
    /// #[derive(serde::Serialize)]
    /// enum No { InsufficientFunds { short_by: u64 } }
    ///
    /// impl std::fmt::Display for No {
    ///     fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
    ///         match self { Self::InsufficientFunds { short_by } => write!(f, "{short_by} short") }
    ///     }
    /// }
    ///
    /// impl From<No> for Refusal {
    ///     fn from(no: No) -> Self { Refusal::from_enum(&no) }
    /// }
    ///
    /// let refusal = Refusal::from(No::InsufficientFunds { short_by: 30 });
    /// assert_eq!(refusal.code(), "insufficient_funds");
    /// assert_eq!(refusal.details(), Some(&serde_json::json!({ "short_by": 30 })));
    /// ```
    ///
    /// # Panics
    /// `refusal` is not an enum with serde's default representation, or its fields can't be JSON.
    #[must_use]
    pub fn from_enum<T: Serialize + Display>(refusal: &T) -> Self {
        let (name, fields) = match tagged::to_parts(refusal) {
            Ok(parts) => parts,
            Err(error) => panic!("the refusal `{refusal}` could not be written as JSON: {error}"),
        };
        let details =
            serde_json::from_slice(&fields).ok().filter(|details| *details != Value::Object(Map::new()));
        Self { code: snake_case(name).into(), message: refusal.to_string(), details }
    }

    /// Adds one detail for programs, beside those that are there.
    ///
    /// # Panics
    /// The value can't be JSON, such as a map whose keys are not text.
    #[must_use]
    pub fn detail(mut self, name: &str, value: impl Serialize) -> Self {
        let value = match serde_json::to_value(value) {
            Ok(value) => value,
            Err(error) => panic!("the detail `{name}` of refusal `{}` can't be JSON: {error}", self.code),
        };
        match &mut self.details {
            Some(Value::Object(details)) => {
                details.insert(name.to_owned(), value);
            }
            details => *details = Some(Value::Object(Map::from_iter([(name.to_owned(), value)]))),
        }
        self
    }

    /// The stable code.
    #[must_use]
    pub fn code(&self) -> &str {
        &self.code
    }

    /// The message for people.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The details for programs, if there are any.
    #[must_use]
    pub fn details(&self) -> Option<&Value> {
        self.details.as_ref()
    }
}

impl Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Refusal {}

/// `InsufficientFunds` as `insufficient_funds`.
fn snake_case(name: &str) -> String {
    let mut snake = String::with_capacity(name.len() + 4);
    for (at, c) in name.char_indices() {
        if c.is_ascii_uppercase() && at > 0 && !snake.ends_with('_') {
            snake.push('_');
        }
        snake.push(if c == '-' { '_' } else { c.to_ascii_lowercase() });
    }
    snake
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_snake_case_however_the_variant_is_named() {
        assert_eq!(snake_case("InsufficientFunds"), "insufficient_funds");
        assert_eq!(snake_case("already_open"), "already_open");
        assert_eq!(snake_case("not-open"), "not_open");
    }

    #[test]
    fn details_add_up() {
        let refusal = Refusal::new("no", "no").detail("a", 1).detail("b", "x");
        assert_eq!(refusal.details(), Some(&serde_json::json!({ "a": 1, "b": "x" })));
    }
}
