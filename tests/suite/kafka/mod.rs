//! Kafka both ways, on a real broker.

mod fixture;
