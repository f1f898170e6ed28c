//! Records, as a broker has them.

use crate::digest::Digest;
use crate::name::TopicName;
use crate::text::{Text, base64, from_base64};
use crate::time::Timestamp;
use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;
use std::time::Duration;
use uuid::Uuid;

/// A record that was consumed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    #[serde(with = "blobs::one", default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Bytes>,
    /// Headers, in order; a name may come more than once.
    #[serde(with = "blobs::headers", default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<(Text, Option<Bytes>)>,
    /// Its value; none in a tombstone.
    #[serde(with = "blobs::one", default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Bytes>,
}

/// A record that is kept beside the rows that it is to be in, with what tells it from all others: its topic may have
/// forgotten it by the time somebody asks for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptRecord {
    /// The cluster's id.
    pub cluster: Text,
    /// The topic's id.
    pub topic_id: Uuid,
    /// The record.
    pub record: Record,
}

/// Where someone who takes the records of a partition goes on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place {
    /// The topic.
    pub topic: TopicName,
    /// The topic's id, which one that is deleted and made again does not share.
    pub topic_id: Uuid,
    /// The partition.
    pub partition: u32,
    /// The offset of the next record.
    pub next: u64,
}

/// What makes a record the same one as another of its partition, sent twice.
///
/// That is decided within each partition, from what its records say, so that rows which are made anew are the same: a
/// producer that sends a record again sends it to the same partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The topic.
    pub topic: TopicName,
    /// The partition.
    pub partition: u32,
    /// What the two have in common.
    pub same: Digest,
    /// The record's offset.
    pub offset: u64,
    /// The record's time.
    pub at: Timestamp,
}

impl Seen {
    /// Records that lie further apart are not the same.
    pub const WITHIN: Duration = Duration::from_secs(24 * 60 * 60);

    /// Records with more offsets between them are not the same.
    pub const AMONG: u64 = 1_000_000;

    /// Whether a later record that has the same in common is this one, sent again.
    #[must_use]
    pub fn comes_again_as(&self, later: &Self) -> bool {
        let among = later.offset.checked_sub(self.offset).is_some_and(|between| between <= Self::AMONG);
        let apart = self.at.since(later.at).max(later.at.since(self.at));
        among && apart <= Self::WITHIN
    }
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
    /// Bytes that it takes, about, for bounds.
    #[must_use]
    pub fn weight(&self) -> usize {
        let value = |value: &Option<Bytes>| value.as_ref().map_or(0, Bytes::len);
        let headers: usize = self.headers.iter().map(|(name, header)| name.len() + value(header)).sum();
        value(&self.key) + value(&self.value) + headers + 200
    }

    /// The header of this name, in any case, whose value is UTF-8; the last, if there are several.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().rev().find(|(key, _)| key.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(found.1.as_deref()?).ok()
    }
}

impl KeptRecord {
    /// The place behind it.
    #[must_use]
    pub fn behind(&self) -> Place {
        let Record { topic, partition, offset, .. } = &self.record;
        Place { topic: topic.clone(), topic_id: self.topic_id, partition: *partition, next: offset + 1 }
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

/// Bytes of a record, as [`Blob`]s.
mod blobs {
    use super::{Blob, Bytes};

    pub(super) mod one {
        use super::{Blob, Bytes};
        use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

        pub(in super::super) fn serialize<S: Serializer>(
            bytes: &Option<Bytes>,
            serializer: S,
        ) -> Result<S::Ok, S::Error> {
            bytes.clone().map(Blob).serialize(serializer)
        }

        pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
            deserializer: D,
        ) -> Result<Option<Bytes>, D::Error> {
            Ok(Option::<Blob>::deserialize(deserializer)?.map(|blob| blob.0))
        }
    }

    pub(super) mod headers {
        use super::{Blob, Bytes};
        use crate::text::Text;
        use serde::{Deserialize as _, Deserializer, Serializer};

        pub(in super::super) fn serialize<S: Serializer>(
            headers: &[(Text, Option<Bytes>)],
            serializer: S,
        ) -> Result<S::Ok, S::Error> {
            serializer.collect_seq(headers.iter().map(|(name, value)| (name, value.clone().map(Blob))))
        }

        pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
            deserializer: D,
        ) -> Result<Vec<(Text, Option<Bytes>)>, D::Error> {
            let headers = Vec::<(Text, Option<Blob>)>::deserialize(deserializer)?;
            Ok(headers.into_iter().map(|(name, value)| (name, value.map(|blob| blob.0))).collect())
        }
    }
}
