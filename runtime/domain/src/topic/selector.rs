//! Where in a record something stands: the stream's key, the command's name.

use super::incoming::Envelope;
use crate::text::Text;
use serde_json::Value;

/// A part of a record, as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    /// The record's key.
    Key,
    /// A header.
    Header(String),
    /// An attribute of a CloudEvent: `subject`, `type`, `partitionkey`.
    Attribute(String),
    /// A top-level text or number of its JSON value.
    Field(String),
    /// The same for all.
    Fixed(Text),
}

impl Selector {
    /// What stands there; none if nothing does, or something that is neither text nor a number.
    #[must_use]
    pub fn select(&self, envelope: &Envelope, data: impl FnOnce() -> Value) -> Option<Text> {
        match self {
            Self::Key => envelope.key.as_ref()?.text(),
            Self::Header(name) => envelope.header(name),
            Self::Attribute(name) => envelope.attributes.get(name).map(|value| value.as_str().into()),
            Self::Field(name) => match data().get(name)? {
                Value::String(text) => Some(text.as_str().into()),
                Value::Number(number) => Some(number.to_string().into()),
                _ => None,
            },
            Self::Fixed(text) => Some(text.clone()),
        }
    }

    /// For people: `header "kind"`.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::Key => "the record's key".to_owned(),
            Self::Header(name) => format!("the header `{name}`"),
            Self::Attribute(name) => format!("the CloudEvents attribute `{name}`"),
            Self::Field(name) => format!("the field `{name}` of its value"),
            Self::Fixed(text) => format!("`{text}`"),
        }
    }
}
