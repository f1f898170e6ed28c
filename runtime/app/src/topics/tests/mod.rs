//! What is promised of records that come in, over a broker and a log in memory, in virtual time.

mod commands;
mod intake;
