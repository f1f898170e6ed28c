//! Goes through the records of one segment, block by block, checking each.

use super::disk::LogFile;
use super::format::{self, FRAME, Frame, Malformed};
use bytes::Bytes;
use std::io;
use std::ops::Range;
use std::sync::Arc;

/// The largest block that is read at once, unless one record is larger.
pub(crate) const BLOCK: usize = 1 << 20;

/// What is at the scan's place.
pub(crate) enum Step {
    /// A record whose checksum is right; see [`Scan::bytes`] and [`Scan::slice`].
    Record { offset: u64, frame: Frame, range: Range<usize> },
    /// The end that the scan was given.
    End,
    /// Something else. The scan stays where it is.
    Bad { offset: u64, malformed: Malformed },
}

/// A scan of a segment from one offset to another.
pub(crate) struct Scan {
    file: Arc<dyn LogFile>,
    seed: u32,
    block: Bytes,
    /// Where in the file `block` starts.
    start: u64,
    at: u64,
    end: u64,
    /// Size of the next block.
    size: usize,
}

impl Scan {
    /// Starts at `from`; `size` is how much the first read should take, the next ones take [`BLOCK`].
    pub(crate) fn new(file: Arc<dyn LogFile>, seed: u32, from: u64, end: u64, size: usize) -> Self {
        Self { file, seed, block: Bytes::new(), start: from, at: from, end, size: size.max(4096) }
    }

    /// Where the next record starts.
    pub(crate) fn offset(&self) -> u64 {
        self.at
    }

    /// Goes on elsewhere; what was read already is used again if it holds that place.
    pub(crate) fn seek(&mut self, offset: u64, size: usize) {
        self.at = offset;
        self.size = size.max(4096);
    }

    pub(crate) fn bytes(&self, range: Range<usize>) -> &[u8] {
        &self.block[range]
    }

    /// The same bytes, sharing the block.
    pub(crate) fn slice(&self, range: Range<usize>) -> Bytes {
        self.block.slice(range)
    }

    /// The next record.
    pub(crate) fn step(&mut self) -> io::Result<Step> {
        let offset = self.at;
        if offset >= self.end {
            return Ok(Step::End);
        }
        self.fill(FRAME)?;
        let bad = |malformed| Ok(Step::Bad { offset, malformed });
        let len = match format::claimed_len(self.rest()) {
            Ok(len) => len,
            Err(malformed) => return bad(malformed),
        };
        if len as u64 > self.end - offset {
            return bad(Malformed::Damaged("a record goes on behind the end"));
        }
        self.fill(len)?;
        match format::check(self.rest(), self.seed, offset) {
            Ok(frame) => {
                let from = (offset - self.start) as usize;
                self.at += frame.len as u64;
                Ok(Step::Record { offset, frame, range: from..from + frame.len })
            }
            Err(malformed) => bad(malformed),
        }
    }

    fn rest(&self) -> &[u8] {
        &self.block[(self.at - self.start) as usize..]
    }

    /// Makes the block hold `len` bytes from here on, if the file has them.
    fn fill(&mut self, len: usize) -> io::Result<()> {
        let held = self.start..self.start + self.block.len() as u64;
        let len = len.min((self.end - self.at) as usize);
        if held.contains(&self.at) && self.at + len as u64 <= held.end {
            return Ok(());
        }
        let size = self.size.max(len).min((self.end - self.at) as usize);
        let mut block = Vec::new();
        self.file.read_at(self.at, size, &mut block)?;
        self.block = block.into();
        self.start = self.at;
        self.size = BLOCK;
        Ok(())
    }
}
