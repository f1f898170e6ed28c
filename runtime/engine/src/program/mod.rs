//! Programs: modules with a `_start` or `wasi:cli/run` that read one JSON document from stdin and write one to stdout.
//!
//! Every run has an instance to itself, so that nothing is left of one call in the next, and a program needs to know
//! nothing of instances. What is kept between two calls, an aggregate's state say, is kept here, and handed in with the
//! next document. HTTP functions have a host of their own, and so theirs are in `http::program`. The documents are the guide's page `docs/guide/programs.md`; decision 0050 says why they are as they
//! are.

mod aggregate;
mod projection;

pub(crate) use aggregate::ProgramAggregate;
pub(crate) use projection::project;

use bytes::Bytes;
use ebb_domain::port::guest::CallError;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::fmt::Display;

/// What is quoted of a document that can't be used, in bytes.
const QUOTED: usize = 200;

/// A document that the host writes: small types of strings and raw JSON, which always can be written.
pub(crate) fn document(input: &impl Serialize) -> Bytes {
    serde_json::to_vec(input).expect("strings and numbers are JSON").into()
}

/// What a program answers with, and how to say so to someone whose program answers with something else.
pub(crate) trait Answer<'a>: Deserialize<'a> {
    /// `kind` of the document that it answers.
    const KIND: &'static str;
    /// An example of each answer that may be given.
    const EXPECTED: &'static str;
}

/// Reads an answer.
pub(crate) fn read<'a, A: Answer<'a>>(written: &'a [u8]) -> Result<A, CallError> {
    // serde would take an array for an object's fields in their order.
    if written.trim_ascii_start().starts_with(b"[") {
        return Err(bad::<A>(written, &"it is an array, not an object"));
    }
    serde_json::from_slice(written).map_err(|error| {
        let several = error.is_syntax() && error.to_string().starts_with("trailing characters");
        match () {
            () if written.trim_ascii().is_empty() => bad::<A>(written, &"it wrote nothing to stdout"),
            () if several => bad::<A>(written, &"it wrote more than one document; logs belong on stderr"),
            () if error.is_data() => bad::<A>(written, &error),
            () => bad::<A>(written, &format_args!("it is not JSON: {error}; logs belong on stderr")),
        }
    })
}

/// An answer that can't be used.
pub(crate) fn bad<'a, A: Answer<'a>>(written: &[u8], problem: &dyn Display) -> CallError {
    // What is wrong may name a field of any length.
    let problem: String = problem.to_string().chars().take(2 * QUOTED).collect();
    let shown = String::from_utf8_lossy(&written[..written.len().min(QUOTED)]);
    let shown = if written.is_empty() { String::new() } else { format!("; it begins `{}`", shown.trim()) };
    CallError::BadAnswer(format!(
        "the answer to `{}`, {} bytes, can't be used: {problem}{shown}; expected {}",
        A::KIND,
        written.len(),
        A::EXPECTED
    ))
}

/// Bytes as JSON, without copying them.
fn raw(bytes: &[u8]) -> Option<&RawValue> {
    serde_json::from_slice(bytes).ok()
}
