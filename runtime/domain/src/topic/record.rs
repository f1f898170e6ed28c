//! Records, as a broker has them.

use crate::name::TopicName;
use crate::text::{Text, base64, from_base64};
use crate::time::Timestamp;
use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;

/// A record that was consumed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its topic.
    pub topic: TopicName,
    /// Its partition.
    pub partition: u32,
    /// Its place in the partition.
    pub offset: u64,
    /// When it was made, or taken by the broker.
    pub timestamp: Option<Timestamp>,
    /// Its key.
    pub key: Option<Bytes>,
    /// Headers, in order; a name may come more than once.
    pub headers: Vec<(Text, Option<Bytes>)>,
    /// Its value; none in a tombstone.
    pub value: Option<Bytes>,
}

/// A record to produce.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewRecord {
    /// Its topic.
    pub topic: TopicName,
    /// Its key, which decides the partition.
    pub key: Option<Bytes>,
    /// Headers, in order.
    pub headers: Vec<(Text, Bytes)>,
    /// Its value.
    pub value: Option<Bytes>,
}

impl Record {
    /// The header of this name, in any case, whose value is UTF-8; the last, if there are several.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().rev().find(|(key, _)| key.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(found.1.as_deref()?).ok()
    }
}

impl NewRecord {
    /// Bytes that it takes, about, for bounds.
    #[must_use]
    pub fn weight(&self) -> usize {
        let headers: usize = self.headers.iter().map(|(name, value)| name.len() + value.len() + 8).sum();
        self.key.as_ref().map_or(0, Bytes::len) + self.value.as_ref().map_or(0, Bytes::len) + headers + 64
    }
}

/// Bytes in JSON: text where they are UTF-8, `{"base64": "…"}` where they are not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob(pub Bytes);

impl Blob {
    /// As text, if it is some.
    #[must_use]
    pub fn text(&self) -> Option<Text> {
        Text::from_utf8(self.0.clone()).ok()
    }
}

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) => serializer.serialize_str(text),
            Err(_) => BTreeMap::from([("base64", base64(&self.0))]).serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Text(String),
            Base64 { base64: String },
        }
        Ok(Self(match Form::deserialize(deserializer)? {
            Form::Text(text) => text.into_bytes().into(),
            Form::Base64 { base64 } => {
                from_base64(&base64).ok_or_else(|| serde::de::Error::custom("not base64"))?.into()
            }
        }))
    }
}
