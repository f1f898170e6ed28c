//! W3C Trace Context: which trace something belongs to, and where in it.

use crate::text::Text;
use std::fmt::{self, Display, Write as _};

/// `traceparent` at most; that of another version may be longer than ours.
const MAX_PARENT_BYTES: usize = 256;
/// `tracestate` at most (section 3.3.1.5: at least 512 must be passed on).
const MAX_STATE_BYTES: usize = 512;
/// The flag of a trace that is being recorded.
const SAMPLED: u8 = 1;

/// A place in a trace: a span, by its id. Displays as `traceparent`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// The trace.
    pub trace_id: [u8; 16],
    /// The span.
    pub span_id: [u8; 8],
    /// The span that this one is a child of, where it is known.
    pub parent_id: Option<[u8; 8]>,
    /// `trace-flags`.
    pub flags: u8,
    /// `tracestate`: what tracing systems tell each other, as it came.
    pub state: Option<Text>,
}

impl Trace {
    /// Reads `traceparent`, of version 00 or a later one, and `tracestate`. What is not well formed is none, as the
    /// standard says (section 4.3): it must never fail a request.
    #[must_use]
    pub fn parse(parent: &str, state: Option<&str>) -> Option<Self> {
        let fields: Vec<&str> = parent.split('-').collect();
        let [version, trace_id, span_id, flags, ..] = fields[..] else { return None };
        let [version] = hex(version)?;
        let known =
            version != 0xff && (version != 0 || fields.len() == 4) && parent.len() <= MAX_PARENT_BYTES;
        let (trace_id, span_id): ([u8; 16], [u8; 8]) = (hex(trace_id)?, hex(span_id)?);
        let [flags] = hex(flags)?;
        let state = state.filter(|state| !state.is_empty() && state.len() <= MAX_STATE_BYTES).map(Text::from);
        (known && trace_id != [0; 16] && span_id != [0; 8]).then_some(Self {
            trace_id,
            span_id,
            parent_id: None,
            // Later versions may give meaning to the other bits.
            flags: flags & SAMPLED,
            state,
        })
    }

    /// The first span of a trace.
    #[must_use]
    pub fn root(trace_id: [u8; 16], span_id: [u8; 8], sampled: bool) -> Self {
        Self { trace_id, span_id, parent_id: None, flags: if sampled { SAMPLED } else { 0 }, state: None }
    }

    /// A span of the same trace under this one.
    #[must_use]
    pub fn child(&self, span_id: [u8; 8]) -> Self {
        Self { span_id, parent_id: Some(self.span_id), ..self.clone() }
    }

    /// Whether the trace is being recorded.
    #[must_use]
    pub fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }

    /// The trace's id, in hexadecimal digits.
    #[must_use]
    pub fn trace_id(&self) -> String {
        let mut text = String::with_capacity(32);
        for byte in self.trace_id {
            let _ = write!(text, "{byte:02x}");
        }
        text
    }
}

impl Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("00-")?;
        self.trace_id.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_char('-')?;
        self.span_id.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        write!(f, "-{:02x}", self.flags)
    }
}

/// So many bytes, in lower-case digits.
fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    if text.len() != 2 * N {
        return None;
    }
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = digit(digits[0])? << 4 | digit(digits[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_context_is_read_and_written() {
        let trace = Trace::parse(GOOD, Some("rojo=00f067aa0ba902b7")).unwrap();
        assert_eq!((trace.to_string().as_str(), trace.is_sampled()), (GOOD, true));
        assert_eq!(trace.state.as_deref(), Some("rojo=00f067aa0ba902b7"));
        let child = trace.child([1; 8]);
        assert_eq!(child.to_string(), "00-4bf92f3577b34da6a3ce929d0e0e4736-0101010101010101-01");
        assert_eq!((child.parent_id, &child.state), (Some(trace.span_id), &trace.state));
        assert_eq!(trace.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
    }

    #[test]
    fn a_later_version_is_read_as_far_as_it_is_known() {
        let trace = Trace::parse(&GOOD.replacen("00", "cc", 1).replace("-01", "-09-more"), None).unwrap();
        assert_eq!((trace.to_string().as_str(), trace.flags), (GOOD, 1));
    }

    #[test]
    fn a_broken_context_is_left_out() {
        for wrong in [
            "",
            "00",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            &format!("{GOOD}-x"),
            &GOOD.to_uppercase(),
        ] {
            assert_eq!(Trace::parse(wrong, None), None, "{wrong}");
        }
        assert_eq!(Trace::parse(GOOD, Some(&"x".repeat(600))).unwrap().state, None, "the state alone");
    }
}
