//! `ebb export`: events as CloudEvents, one a line, to stdout or into a file that a later export goes on with.

use super::events::Page;
use crate::args::Export;
use crate::client::{Path, Server};
use crate::failure::{Exit, Failure};
use crate::output::{Grouped, Output};
use serde_json::Value;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, BufWriter, Read as _, Seek as _, SeekFrom, Write as _};

/// Events of a page at most, as the data plane has it.
const PAGE: usize = 1000;

/// Where events go.
enum Sink {
    Stdout(Output),
    File(BufWriter<File>, String),
}

impl Sink {
    fn write(&mut self, lines: &[u8]) -> Result<(), Failure> {
        match self {
            Self::Stdout(output) => output.raw(lines),
            Self::File(file, path) => file.write_all(lines).map_err(|error| unwritable(path, &error)),
        }
    }

    /// Makes a file's lines durable: what is said to be exported has been.
    fn finish(self) -> Result<(), Failure> {
        match self {
            Self::Stdout(_) => Ok(()),
            Self::File(mut file, path) => {
                let synced = file.flush().and_then(|()| file.get_ref().sync_all());
                synced.map_err(|error| unwritable(&path, &error))
            }
        }
    }
}

/// Exports everything up to the end that the log has when it gets there.
pub(crate) async fn run(output: Output, args: Export) -> Result<Exit, Failure> {
    let server = Server::data(&args.plane)?;
    let (mut sink, mut after) = match &args.output {
        None => (Sink::Stdout(output), args.after),
        Some(path) => {
            let shown = path.display().to_string();
            let opened =
                OpenOptions::new().read(true).write(true).create(true).truncate(!args.resume).open(path);
            let mut file = opened.map_err(|error| unwritable(&shown, &error))?;
            let after = if args.resume {
                let (position, end) = last_position(&mut file, &shown)?;
                file.set_len(end)
                    .and_then(|()| file.seek(SeekFrom::Start(end)))
                    .map_err(|error| unwritable(&shown, &error))?;
                position.unwrap_or(0)
            } else {
                args.after
            };
            (Sink::File(BufWriter::with_capacity(1 << 18, file), shown), after)
        }
    };
    let path = Path::of_app(args.plane.app.as_deref()).segment("events").parameter("limit", PAGE);
    let path = if args.types.is_empty() { path } else { path.parameter("types", args.types.join(",")) };
    let mut count = 0;
    let bar = output.shows_bars().then(indicatif::ProgressBar::new_spinner);
    loop {
        let page: Page = server.json(server.get(&path.clone().parameter("after", after))).await?;
        let mut lines = Vec::new();
        for event in &page.events {
            serde_json::to_writer(&mut lines, event).map_err(Failure::new)?;
            lines.push(b'\n');
        }
        sink.write(&lines)?;
        count += page.events.len() as u64;
        after = page.events.last().and_then(position).unwrap_or(after);
        if let Some(bar) = &bar {
            bar.set_message(format!("{} events", Grouped(count)));
            bar.tick();
        }
        match page.next {
            Some(next) => after = next,
            None => break,
        }
    }
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    sink.finish()?;
    output.note(format_args!("{} events exported; go on with --after {after}", Grouped(count)));
    Ok(Exit::Done)
}

fn position(event: &Value) -> Option<u64> {
    event.get("position")?.as_u64()
}

fn unwritable(path: &str, error: &io::Error) -> Failure {
    Failure::new(format!("{path} can't be written: {error}"))
}

/// The position of the last whole line, and where that line ends: an export that was killed may have left half a line
/// behind it.
fn last_position(file: &mut File, path: &str) -> Result<(Option<u64>, u64), Failure> {
    let unreadable = |error: io::Error| Failure::new(format!("{path} can't be read: {error}"));
    let (mut end, mut last) = (0, None);
    let mut line = Vec::new();
    let mut reader = BufReader::with_capacity(1 << 18, file);
    loop {
        line.clear();
        let read = reader.by_ref().read_until(b'\n', &mut line).map_err(unreadable)?;
        if !line.ends_with(b"\n") {
            break;
        }
        end += read as u64;
        std::mem::swap(last.get_or_insert_with(Vec::new), &mut line);
    }
    let Some(last) = last else { return Ok((None, end)) };
    match serde_json::from_slice::<Value>(&last).ok().as_ref().and_then(position) {
        Some(position) => Ok((Some(position), end)),
        None => Err(Failure::new(format!("{path} does not end in an exported event"))
            .hint("export into a new file, or name the position with --after")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resume(contents: &str) -> Result<(Option<u64>, u64), Failure> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(contents.as_bytes()).unwrap();
        file.rewind().unwrap();
        last_position(&mut file, "events.ndjson")
    }

    #[test]
    fn an_export_goes_on_behind_its_last_whole_line() {
        let whole = "{\"position\":1}\n{\"position\":7}\n";
        assert_eq!(resume(whole).unwrap(), (Some(7), whole.len() as u64));
        assert_eq!(resume(&format!("{whole}{{\"posi")).unwrap(), (Some(7), whole.len() as u64));
        assert_eq!(resume("").unwrap(), (None, 0));
    }

    #[test]
    fn a_file_that_is_no_export_is_left_alone() {
        assert!(resume("hello\n").unwrap_err().message.contains("does not end in an exported event"));
    }
}
