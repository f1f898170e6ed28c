//! The only place that writes to stdout and stderr. Results go to stdout; progress, hints and errors go to stderr, so
//! that a pipe carries results alone. Colour appears on terminals only.

use crate::args::{ColorChoice, OutputArgs};
use crate::failure::Failure;
use serde::Serialize;
use std::fmt::{self, Display, Write as _};
use std::io::{self, IsTerminal, Write as _};
use unicode_width::UnicodeWidthStr;

/// Where results and notes go, and how they look.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    /// Results are for programs: JSON.
    pub(crate) json: bool,
    /// Nothing on stderr but errors.
    pub(crate) quiet: bool,
    stdout: Palette,
    stderr: Palette,
    stderr_is_terminal: bool,
}

impl Output {
    /// Looks at the terminal and the environment once.
    pub(crate) fn new(args: &OutputArgs) -> Self {
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let palette = |is_terminal: bool| {
            Palette(match args.color {
                ColorChoice::Always => true,
                ColorChoice::Never => false,
                ColorChoice::Auto => is_terminal && !no_color,
            })
        };
        let stderr_is_terminal = io::stderr().is_terminal();
        Self {
            json: args.json,
            quiet: args.quiet,
            stdout: palette(io::stdout().is_terminal()),
            stderr: palette(stderr_is_terminal),
            stderr_is_terminal,
        }
    }

    /// Plain output: no colour, no terminal. For tests.
    #[cfg(test)]
    pub(crate) const fn plain() -> Self {
        Self {
            json: false,
            quiet: true,
            stdout: Palette(false),
            stderr: Palette(false),
            stderr_is_terminal: false,
        }
    }

    /// Colours for text that goes to stdout.
    pub(crate) const fn style(&self) -> Palette {
        self.stdout
    }

    /// Colours for text that goes to stderr.
    pub(crate) const fn note_style(&self) -> Palette {
        self.stderr
    }

    /// Whether progress bars make sense.
    pub(crate) const fn shows_bars(&self) -> bool {
        self.stderr_is_terminal && !self.quiet
    }

    /// One line of result.
    ///
    /// # Errors
    /// Nobody reads any more, or the disk behind stdout is full.
    pub(crate) fn line(&self, line: impl Display) -> Result<(), Failure> {
        writeln!(io::stdout().lock(), "{line}").map_err(|error| Failure::of_stdout(&error))
    }

    /// Bytes of result as they are, for output that is made in large pieces.
    ///
    /// # Errors
    /// As for [`Output::line`].
    pub(crate) fn raw(&self, bytes: &[u8]) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(|error| Failure::of_stdout(&error))
    }

    /// A result for programs: one JSON document, indented on a terminal's behalf never, so that a line is a document.
    ///
    /// # Errors
    /// As for [`Output::line`].
    pub(crate) fn json(&self, value: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string(value)
            .map_err(|error| Failure::new(format!("the result could not be written as JSON: {error}")))?;
        self.line(text)
    }

    /// A note on stderr: what is going on. A note that can't be written is dropped.
    pub(crate) fn note(&self, line: impl Display) {
        if !self.quiet {
            self.always(line);
        }
    }

    /// A line on stderr that `--quiet` does not drop.
    pub(crate) fn always(&self, line: impl Display) {
        // The note is a courtesy: when stderr is gone there is nowhere left to say so.
        drop(writeln!(io::stderr().lock(), "{line}"));
    }

    /// A failure on stderr: `error: …`, its details, `hint: …`.
    pub(crate) fn failure(&self, failure: &Failure) {
        if failure.is_silent() {
            return;
        }
        if self.json {
            let report = serde_json::json!({ "error": failure.message, "details": failure.details, "hint": failure.hint });
            return self.always(report);
        }
        self.always(render_failure(failure, self.stderr));
    }
}

/// A failure as people see it.
pub(crate) fn render_failure(failure: &Failure, style: Palette) -> String {
    let mut text = format!("{} {}", style.error("error:"), failure.message);
    if let Some(details) = &failure.details {
        text.push('\n');
        text.push_str(details.trim_end());
    }
    if let Some(hint) = &failure.hint {
        text.push('\n');
        text.push_str(&style.hint("hint:"));
        text.push(' ');
        text.push_str(hint);
    }
    text
}

/// Colours, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Palette(pub(crate) bool);

impl Palette {
    fn paint(self, code: &str, text: impl Display) -> String {
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_string() }
    }

    /// Something failed.
    pub(crate) fn error(self, text: impl Display) -> String {
        self.paint("1;31", text)
    }

    /// Something wants attention.
    pub(crate) fn warning(self, text: impl Display) -> String {
        self.paint("1;33", text)
    }

    /// Something went well.
    pub(crate) fn good(self, text: impl Display) -> String {
        self.paint("1;32", text)
    }

    /// What to do.
    pub(crate) fn hint(self, text: impl Display) -> String {
        self.paint("1;36", text)
    }

    /// A heading, a name.
    pub(crate) fn strong(self, text: impl Display) -> String {
        self.paint("1", text)
    }

    /// What matters less.
    pub(crate) fn faint(self, text: impl Display) -> String {
        self.paint("2", text)
    }
}

/// Text from a server or a guest, fit for a terminal: control characters (an escape sequence begins with one) are
/// shown, not sent.
pub(crate) fn printable(text: &str) -> String {
    if !text.chars().any(char::is_control) {
        return text.to_owned();
    }
    text.chars().fold(String::with_capacity(text.len() + 8), |mut shown, c| {
        if c.is_control() {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
        shown
    })
}

/// How a column stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// A table for people.
#[derive(Debug)]
pub(crate) struct Table {
    head: Vec<(String, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table with these columns.
    pub(crate) fn new<'a>(columns: impl IntoIterator<Item = (&'a str, Align)>) -> Self {
        Self {
            head: columns.into_iter().map(|(name, align)| (printable(name), align)).collect(),
            rows: Vec::new(),
        }
    }

    /// One more row: a cell a column.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let mut cells: Vec<String> = cells.into_iter().map(|cell| printable(&cell)).collect();
        cells.resize(self.head.len(), String::new());
        self.rows.push(cells);
    }

    /// The table as text, without a line end behind the last line.
    pub(crate) fn render(&self, style: Palette) -> String {
        let widths: Vec<usize> = (0..self.head.len())
            .map(|column| {
                let cells = self.rows.iter().map(|row| row[column].as_str());
                cells.chain([self.head[column].0.as_str()]).map(UnicodeWidthStr::width).max().unwrap_or(0)
            })
            .collect();
        let line = |cells: &mut dyn Iterator<Item = &str>| {
            let mut line = String::new();
            for (column, cell) in cells.enumerate() {
                let gap = " ".repeat(widths[column].saturating_sub(cell.width()));
                let separator = if column == 0 { "" } else { "  " };
                // Writing to a string does not fail.
                let _ = match self.head[column].1 {
                    Align::Left => write!(line, "{separator}{cell}{gap}"),
                    Align::Right => write!(line, "{separator}{gap}{cell}"),
                };
            }
            line.trim_end().to_owned()
        };
        let head = line(&mut self.head.iter().map(|(name, _)| name.as_str()));
        let mut text = style.strong(head);
        for row in &self.rows {
            text.push('\n');
            text.push_str(&line(&mut row.iter().map(String::as_str)));
        }
        text
    }
}

/// A number with thousands separated: `1,234,567`.
pub(crate) struct Grouped(pub(crate) u64);

impl Display for Grouped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        for (index, digit) in digits.char_indices() {
            if index > 0 && (digits.len() - index).is_multiple_of(3) {
                f.write_char(',')?;
            }
            f.write_char(digit)?;
        }
        Ok(())
    }
}

/// A duration for people: `350 ms`, `2.4 s`, `3 min 12 s`.
pub(crate) struct Elapsed(pub(crate) std::time::Duration);

impl Display for Elapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        match seconds {
            0 => write!(f, "{} ms", self.0.as_millis()),
            1..60 => write!(f, "{:.1} s", self.0.as_secs_f64()),
            60..3600 => write!(f, "{} min {} s", seconds / 60, seconds % 60),
            _ => write!(f, "{} h {} min", seconds / 3600, seconds / 60 % 60),
        }
    }
}

/// A size in bytes for people.
pub(crate) struct Size(pub(crate) u64);

impl Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
        if self.0 < 1024 {
            return write!(f, "{} B", self.0);
        }
        let mut amount = self.0 as f64 / 1024.0;
        let mut unit = 0;
        while amount >= 1024.0 && unit + 1 < UNITS.len() {
            amount /= 1024.0;
            unit += 1;
        }
        write!(f, "{amount:.1} {}", UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_table_aligns_by_what_the_eye_sees() {
        let mut table = Table::new([("carrier", Align::Left), ("flights", Align::Right)]);
        table.row(["UA".into(), "1,021".into()]);
        table.row(["東京".into(), "7".into()]);
        insta::assert_snapshot!(table.render(Palette(false)), @r"
        carrier  flights
        UA         1,021
        東京           7
        ");
    }

    #[test]
    fn a_row_never_sends_an_escape_sequence_to_the_terminal() {
        let mut table = Table::new([("owner", Align::Left)]);
        table.row(["\u{1b}[31mred\n".into()]);
        assert_eq!(table.render(Palette(false)), "owner\n\\u{1b}[31mred\\n");
    }

    #[test]
    fn a_failure_says_what_happened_then_what_to_do() {
        let failure =
            Failure::new("no server answers at http://127.0.0.1:8080").hint("start one with `ebb serve`");
        insta::assert_snapshot!(render_failure(&failure, Palette(false)), @r"
        error: no server answers at http://127.0.0.1:8080
        hint: start one with `ebb serve`
        ");
    }

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!(Grouped(999).to_string(), "999");
        assert_eq!(Grouped(1_234_567).to_string(), "1,234,567");
        assert_eq!(Elapsed(Duration::from_millis(2_440)).to_string(), "2.4 s");
        assert_eq!(Elapsed(Duration::from_secs(192)).to_string(), "3 min 12 s");
        assert_eq!(Size(1536).to_string(), "1.5 KiB");
    }
}
