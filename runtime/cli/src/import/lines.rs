//! Reading the file: one command a line, each with the key that makes sending it again harmless.

use bytes::Bytes;
use ebb_domain::digest::Digest;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::io::{self, BufRead, Read as _};

/// Bytes of a line at most: twice the largest body that a node takes unless told otherwise, and a bound on what one
/// line can make this program hold.
pub(super) const MAX_LINE: usize = 4 << 20;

/// A command from the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Job {
    /// Its line, from 1.
    pub(super) number: u64,
    /// Bytes of the file that it stands for, line end included.
    pub(super) width: u64,
    /// The line, without its end.
    pub(super) line: Bytes,
    /// The aggregate's id: lines of one id keep their order.
    pub(super) id: String,
    /// The command's name.
    pub(super) command: String,
    /// The command's data: a part of `line`.
    pub(super) data: Bytes,
    /// 64 hexadecimal digits.
    pub(super) key: String,
}

/// A line that is no command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BadLine {
    /// Its line, from 1.
    pub(super) number: u64,
    /// Bytes of the file that it stands for.
    pub(super) width: u64,
    /// The line; empty if it was too long to keep.
    pub(super) line: Bytes,
    /// What is wrong with it.
    pub(super) problem: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    command: Cow<'a, str>,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
}

/// Reads jobs from a file.
pub(super) struct Lines<R> {
    reader: R,
    import: String,
    number: u64,
    ordinals: Ordinals,
}

impl<R: BufRead> Lines<R> {
    /// Lines of this file, for the import of this name.
    pub(super) fn new(reader: R, import: &str) -> Self {
        Self { reader, import: import.to_owned(), number: 0, ordinals: Ordinals::default() }
    }

    /// The next line that is not blank; none at the end.
    ///
    /// # Errors
    /// The file can't be read.
    pub(super) fn next(&mut self) -> io::Result<Option<Result<Job, BadLine>>> {
        // Blank lines have no job to count their bytes: the next one does.
        let mut width = 0;
        loop {
            let mut line = Vec::with_capacity(256);
            let read = (&mut self.reader).take(MAX_LINE as u64 + 1).read_until(b'\n', &mut line)?;
            if read == 0 {
                return Ok(None);
            }
            self.number += 1;
            width += read as u64;
            if line.len() > MAX_LINE && !line.ends_with(b"\n") {
                width += skip_line(&mut self.reader)?;
                let problem = format!("longer than {} MiB", MAX_LINE >> 20);
                return Ok(Some(Err(BadLine { number: self.number, width, line: Bytes::new(), problem })));
            }
            while line.last().is_some_and(|byte| matches!(byte, b'\n' | b'\r')) {
                line.pop();
            }
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            return Ok(Some(self.job(Bytes::from(line), width)));
        }
    }

    fn job(&mut self, line: Bytes, width: u64) -> Result<Job, BadLine> {
        let number = self.number;
        // Bad lines have an ordinal too: keys must not depend on what this version takes for bad.
        let key = self.ordinals.key(&line, &self.import);
        let written: Written<'_> = match serde_json::from_slice(&line) {
            Ok(written) => written,
            Err(error) => {
                let problem = format!("not {{\"id\", \"command\", \"data\"}}: {error}");
                return Err(BadLine { number, width, line: line.clone(), problem });
            }
        };
        let data = written.data.map_or_else(Bytes::new, |data| line.slice_ref(data.get().as_bytes()));
        let (id, command) = (written.id.into_owned(), written.command.into_owned());
        Ok(Job { number, width, line, id, command, data, key })
    }
}

/// Reads up to the line end, keeping nothing; how many bytes that were.
fn skip_line(reader: &mut impl BufRead) -> io::Result<u64> {
    let mut skipped = 0;
    loop {
        let buffer = reader.fill_buf()?;
        let (used, ended) = match buffer.iter().position(|byte| *byte == b'\n') {
            Some(end) => (end + 1, true),
            None => (buffer.len(), buffer.is_empty()),
        };
        reader.consume(used);
        skipped += used as u64;
        if ended {
            return Ok(skipped);
        }
    }
}

/// How often each line was seen. Keeps 8 bytes of a line's digest, about 16 bytes of memory with what the set adds:
/// the one thing in an import that grows with the file. Two lines that share those 8 bytes are counted together; as
/// the key has the whole digest, and the count comes from the file alone, their keys still differ and stay the same.
#[derive(Default)]
struct Ordinals {
    seen: HashSet<u64>,
    again: HashMap<u64, u64>,
}

impl Ordinals {
    /// The key of the next line: SHA-256 over the line's SHA-256, its ordinal among equal lines (from 0), and the
    /// import's name.
    fn key(&mut self, line: &[u8], import: &str) -> String {
        let digest = Digest::of(line);
        let mut short = [0; 8];
        short.copy_from_slice(&digest.0[..8]);
        let short = u64::from_be_bytes(short);
        let ordinal = if self.seen.insert(short) {
            0
        } else {
            let again = self.again.entry(short).or_default();
            *again += 1;
            *again
        };
        Digest::of_parts([digest.0.as_slice(), &ordinal.to_be_bytes(), import.as_bytes()]).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(file: &str, import: &str) -> Vec<Result<Job, BadLine>> {
        let mut lines = Lines::new(file.as_bytes(), import);
        let mut all = Vec::new();
        while let Some(line) = lines.next().unwrap() {
            all.push(line);
        }
        all
    }

    fn keys(file: &str, import: &str) -> Vec<String> {
        read(file, import).into_iter().map(|line| line.unwrap().key).collect()
    }

    const DEPOSIT: &str = r#"{"id":"1","command":"deposit","data":{"amount":5}}"#;

    #[test]
    fn a_line_is_an_id_a_command_and_its_data() {
        let job = read(&format!("\n{DEPOSIT}\r\n"), "default").remove(0).unwrap();
        assert_eq!(
            (job.number, job.width),
            (2, DEPOSIT.len() as u64 + 3),
            "the blank line counts with the next"
        );
        assert_eq!(
            (job.id.as_str(), job.command.as_str(), &job.data[..]),
            ("1", "deposit", br#"{"amount":5}"#.as_slice())
        );
        assert_eq!(job.line, DEPOSIT);
    }

    #[test]
    fn data_may_be_left_out_and_ids_may_be_escaped() {
        let job = read(r#"{"id":"a\"b","command":"close"}"#, "default").remove(0).unwrap();
        assert_eq!((job.id.as_str(), job.data.len()), ("a\"b", 0));
    }

    #[test]
    fn the_same_import_again_has_the_same_keys() {
        let file = format!("{DEPOSIT}\n{DEPOSIT}\n");
        assert_eq!(keys(&file, "default"), keys(&file, "default"));
    }

    #[test]
    fn equal_lines_are_told_apart_by_their_ordinal_and_imports_by_their_name() {
        let file = format!("{DEPOSIT}\n{DEPOSIT}\n{DEPOSIT}");
        let mut all = keys(&file, "default");
        all.extend(keys(&file, "january"));
        let distinct: HashSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), 6);
    }

    #[test]
    fn a_key_does_not_depend_on_the_lines_around_it() {
        let other = r#"{"id":"2","command":"open"}"#;
        let alone = keys(DEPOSIT, "default");
        assert_eq!(keys(&format!("{other}\n{DEPOSIT}"), "default")[1..], alone);
    }

    #[test]
    fn a_bad_line_is_told_with_its_number_and_the_next_one_goes_on() {
        let all = read(&format!("{{\"id\":1}}\n{DEPOSIT}\n{{\"id\":\"1\",\"comand\":\"x\"}}\n"), "default");
        let numbers: Vec<_> =
            all.iter().map(|line| line.as_ref().map(|job| job.number).map_err(|bad| bad.number)).collect();
        assert_eq!(numbers, [Err(1), Ok(2), Err(3)]);
        assert!(all[2].as_ref().unwrap_err().problem.contains("unknown field `comand`"));
    }

    #[test]
    fn a_line_without_end_is_not_kept() {
        let file = format!("{}\n{DEPOSIT}\n", "x".repeat(MAX_LINE + 10));
        let all = read(&file, "default");
        let bad = all[0].as_ref().unwrap_err();
        assert_eq!((bad.width, bad.line.len()), (MAX_LINE as u64 + 11, 0));
        assert!(all[1].is_ok());
    }
}
