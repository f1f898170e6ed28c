//! The black-box suite's tools: the real binary as a child process, HTTP as any client speaks it, applications to deploy.
//!
//! The rules themselves are in `suite/`, one module for each part of the contract. Everything here panics with what
//! happened: whoever calls it is a test.

mod app;
mod binary;
mod client;
mod dice;
mod events;
mod files;
mod guests;
mod kafka;
mod node;
mod wait;

pub use app::App;
pub use binary::{Finished, command, ebb, run};
pub use client::{Client, Reply, Request};
pub use dice::Dice;
pub use events::{LiveEvents, Message};
pub use files::{copy_folder, files_in, remove_folder};
pub use guests::{bank, counters, examples, flights, guest, language, repository};
pub use kafka::{Isolation, Kafka, KafkaOptions, PASSWORD, Received, Record, Stranger};
pub use node::{Node, NodeBuilder};
pub use wait::{eventually, within};
