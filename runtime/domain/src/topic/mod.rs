//! Kafka topics: records as they come and go, and what of a manifest is about them.
//!
//! A record that comes in becomes an event of the app's log, in stream `topic-{name}-{partition}` ([`incoming`]); from
//! there on it is projected, given to functions and made into commands as any event is. An event that goes out is a
//! CloudEvent in binary mode ([`outgoing`]).

mod incoming;
mod outgoing;
mod record;
mod selector;
mod spec;

pub use incoming::{Attributes, Envelope, Incoming, READABLE, UNREADABLE, actor};
pub use outgoing::{original, record_of};
pub use record::{Blob, KeptRecord, NewRecord, Place, Record, Seen};
pub use selector::Selector;
pub use spec::{
    CommandIdentity, CommandSource, Dedupe, RelayMode, RelaySpec, Start, TopicSource, TopicSpec, Via,
};

use crate::event::StoredEvent;
use crate::name::TopicName;
use crate::stream::StreamId;
use crate::text::Text;

/// The category of streams that hold records of topics.
pub const CATEGORY: Text = Text::from_static("topic");

/// The stream that holds the records of a partition.
#[must_use]
pub fn stream(topic: &TopicName, partition: u32) -> StreamId {
    let stream = StreamId::trusted(format!("{}-{topic}-{partition}", &*CATEGORY).into());
    stream.expect("the category ends at the first dash")
}

/// The topic of a stream's records; none if they are none.
#[must_use]
pub fn topic_of(stream: &StreamId) -> Option<&str> {
    (stream.category() == &*CATEGORY).then(|| stream.key().rsplit_once('-'))?.map(|(topic, _)| topic)
}

/// Whether an event is a record that can't be read as what it says it is: no module will ever make anything of it.
#[must_use]
pub fn is_unreadable(event: &StoredEvent) -> bool {
    &*event.event_type == UNREADABLE && event.stream().category() == &*CATEGORY
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_is_found_again_in_its_streams() {
        let topic = TopicName::new("flights.raw-v2").unwrap();
        let stream = stream(&topic, 12);
        assert_eq!(stream.as_str(), "topic-flights.raw-v2-12");
        assert_eq!(topic_of(&stream), Some("flights.raw-v2"));
        assert_eq!(topic_of(&StreamId::parse("flight-UA-12").unwrap()), None);
    }
}
