//! The aggregate `flight`: scheduled, then departed, then arrived; or cancelled before it departs.

mod flight;

pub use flight::{Command, State};

ebbtide::export_aggregate!(State);

#[cfg(test)]
mod tests;
