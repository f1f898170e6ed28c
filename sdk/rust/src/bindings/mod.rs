//! What `wit-bindgen` makes of `wit/functions.wit`. Not edited by hand: see `tests/bindings.rs`.

// Rust's lints are for our lines.
#![allow(warnings, clippy::all, unsafe_code)]

#[rustfmt::skip]
pub mod capabilities;
#[rustfmt::skip]
pub mod command;
#[rustfmt::skip]
pub mod projection;
