//! Records of Kafka topics: how they come into the app's log, and how those that are commands are carried out.
//!
//! One member of a consumer group ([`intake`]) appends each record to the log, once, as an event of stream
//! `topic-{name}-{partition}`, and tells the broker how far it has got once that is durable. From there on records are
//! events: projections and event functions follow them as they do others, and [`Commands`] sends those that are commands.
//! So retrying, bisecting, parking, dead letters and lag are the projector's, whatever the events come from.
//!
//! Promise: a record is in the log once, however often it is consumed, and is acknowledged only when it is durable there.

mod commands;
mod intake;

pub(crate) use commands::Commands;
pub(crate) use intake::Intakes;
pub use intake::{IntakeState, IntakeStatus};

#[cfg(test)]
mod tests;
