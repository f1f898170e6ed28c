//! Stream index values: runs of commits of one stream, packed.

use crate::log::segment::Location;
use ebb_domain::event::Revision;

/// One commit of a stream, and where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// Revision of its first event.
    pub(crate) revision: u64,
    /// Its events: at least one.
    pub(crate) count: u32,
    pub(crate) commit: u64,
    pub(crate) location: Location,
}

impl Span {
    pub(crate) fn last_revision(&self) -> Revision {
        Revision(self.revision + u64::from(self.count) - 1)
    }
}

/// Appends a span to a packed block: four variable-length integers, about 12 bytes.
pub(crate) fn push(block: &mut Vec<u8>, span: &Span) {
    varint(block, span.revision);
    varint(block, u64::from(span.count));
    varint(block, span.commit);
    varint(block, u64::from(span.location.segment));
    varint(block, u64::from(span.location.offset) / 8);
}

/// The spans of a block; none for bytes that are not a block.
pub(crate) fn unpack(mut bytes: &[u8]) -> Option<Vec<Span>> {
    let mut spans = Vec::new();
    while !bytes.is_empty() {
        let revision = take(&mut bytes)?;
        let count = u32::try_from(take(&mut bytes)?).ok().filter(|count| *count > 0)?;
        let commit = take(&mut bytes)?;
        let segment = u32::try_from(take(&mut bytes)?).ok()?;
        let offset = u32::try_from(take(&mut bytes)?.checked_mul(8)?).ok()?;
        revision.checked_add(u64::from(count))?;
        spans.push(Span { revision, count, commit, location: Location { segment, offset } });
    }
    (!spans.is_empty()).then_some(spans)
}

fn varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn take(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn unpacking_gives_back_what_was_packed(
            spans in proptest::collection::vec((0..u64::MAX / 2, 1..u32::MAX, any::<u64>(), any::<u32>(), 0..u32::MAX / 8), 1..20)
        ) {
            let spans: Vec<Span> = spans.into_iter().map(|(revision, count, commit, segment, offset)| {
                Span { revision, count, commit, location: Location { segment, offset: offset * 8 } }
            }).collect();
            let mut block = Vec::new();
            spans.iter().for_each(|span| push(&mut block, span));
            prop_assert_eq!(unpack(&block), Some(spans));
        }

        #[test]
        fn bytes_that_are_no_block_are_told_apart_or_unpack_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = unpack(&bytes);
        }
    }
}
