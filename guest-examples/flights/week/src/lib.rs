//! See `tests/week.rs`.
