//! Guests that misbehave on demand: a command's name says how.

#[cfg(feature = "command")]
mod command;
#[cfg(feature = "projection")]
mod projection;
