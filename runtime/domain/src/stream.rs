//! Streams: `category-key`, one per aggregate.

use crate::name::AggregateName;
use crate::text::Text;
use serde::{Serialize, Serializer};
use std::fmt;
use thiserror::Error;

/// The longest stream key, in bytes of UTF-8.
pub const MAX_KEY_BYTES: usize = 256;

/// Why a stream key or a stream id was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum InvalidStream {
    /// Nothing there.
    #[error("a stream key must not be empty")]
    EmptyKey,
    /// More than [`MAX_KEY_BYTES`].
    #[error("a stream key is at most {MAX_KEY_BYTES} bytes of UTF-8; this one has {0}")]
    KeyTooLong(usize),
    /// A control character, NUL among them.
    #[error("a stream key has no control characters; this one has U+{0:04X}")]
    ControlCharacter(u32),
    /// No `category-` in front.
    #[error("`{0}` is not a stream: write `category-key`, as in `account-42`")]
    NoCategory(String),
}

/// A stream's key: the aggregate's id, 1 to [`MAX_KEY_BYTES`] bytes without control characters. Slashes and any
/// other character are fine.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(transparent)]
pub struct StreamKey(Text);

impl StreamKey {
    /// Checks the rule and takes the text.
    ///
    /// # Errors
    /// The key is empty, too long, or has a control character.
    pub fn new(text: impl Into<Text>) -> Result<Self, InvalidStream> {
        let text = text.into();
        if text.is_empty() {
            return Err(InvalidStream::EmptyKey);
        }
        if text.len() > MAX_KEY_BYTES {
            return Err(InvalidStream::KeyTooLong(text.len()));
        }
        if let Some(control) = text.chars().find(|c| c.is_control()) {
            return Err(InvalidStream::ControlCharacter(control as u32));
        }
        Ok(Self(text))
    }

    /// The key as a string slice.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for StreamKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A stream: `category-key`, the category being the aggregate's name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId {
    text: Text,
    category_len: u8,
}

impl StreamId {
    /// The stream of one aggregate.
    #[must_use]
    pub fn new(aggregate: &AggregateName, key: &StreamKey) -> Self {
        let text = format!("{aggregate}-{key}");
        // Aggregate names are at most 64 bytes.
        Self { text: Text::from(text), category_len: aggregate.len() as u8 }
    }

    /// Takes apart what [`StreamId::as_str`] gives.
    ///
    /// # Errors
    /// There is no valid category before the first dash, or no valid key behind it.
    pub fn parse(text: impl Into<Text>) -> Result<Self, InvalidStream> {
        let text = text.into();
        let category = text.split_once('-').filter(|(category, _)| AggregateName::new(*category).is_ok());
        let Some((category, key)) = category else {
            return Err(InvalidStream::NoCategory(text.chars().take(80).collect()));
        };
        StreamKey::new(key)?;
        let category_len = category.len() as u8;
        Ok(Self { text, category_len })
    }

    /// Takes text that was checked when it was written: what comes back from the log.
    ///
    /// # Errors
    /// There is no dash within the first 256 bytes.
    pub fn trusted(text: Text) -> Result<Self, InvalidStream> {
        match text.as_bytes().iter().take(256).position(|b| *b == b'-') {
            Some(at) if at > 0 => Ok(Self { category_len: at as u8, text }),
            _ => Err(InvalidStream::NoCategory(text.chars().take(80).collect())),
        }
    }

    /// The aggregate's name.
    #[must_use]
    pub fn category(&self) -> &str {
        &self.text[..usize::from(self.category_len)]
    }

    /// The aggregate's id.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.text[usize::from(self.category_len) + 1..]
    }

    /// `category-key`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// `category-key`, sharing its buffer.
    #[must_use]
    pub fn text(&self) -> &Text {
        &self.text
    }

    /// A copy that does not keep the buffer alive that it was decoded from.
    #[must_use]
    pub fn detached(&self) -> Self {
        Self { text: self.text.detached(), category_len: self.category_len }
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

impl Serialize for StreamId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_first_dash_ends_the_category() {
        let stream = StreamId::parse("flight-2013-01-01-UA1545-EWR").unwrap();
        assert_eq!((stream.category(), stream.key()), ("flight", "2013-01-01-UA1545-EWR"));
    }

    #[test]
    fn a_key_may_hold_slashes_and_any_script_but_no_control_characters() {
        assert!(StreamKey::new("a/b/ü/東京 ").is_ok());
        assert_eq!(StreamKey::new("a\0b"), Err(InvalidStream::ControlCharacter(0)));
        assert_eq!(StreamKey::new("x".repeat(257)), Err(InvalidStream::KeyTooLong(257)));
        assert_eq!(StreamKey::new(""), Err(InvalidStream::EmptyKey));
    }

    proptest! {
        #[test]
        fn parsing_gives_back_what_was_put_together(category in "[a-z][a-z0-9_]{0,63}", key in "\\PC{1,60}") {
            let stream = StreamId::new(&AggregateName::new(category.clone()).unwrap(), &StreamKey::new(key.clone()).unwrap());
            let parsed = StreamId::parse(stream.as_str()).unwrap();
            prop_assert_eq!((parsed.category(), parsed.key()), (category.as_str(), key.as_str()));
        }
    }
}
