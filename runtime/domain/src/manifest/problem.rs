//! What is wrong with a manifest: where, what, and what to write instead.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::Range;

/// The manifest's file name, as reports quote it.
pub const FILE_NAME: &str = "ebb.toml";

/// Problems in one report; a file that is wrong in more places than this is wrong as a whole.
const MAX_PROBLEMS: usize = 100;

/// Characters of a line that a report quotes.
const MAX_QUOTED_LINE: usize = 160;

/// What sort of problem it is, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProblemKind {
    /// The text is not TOML.
    Syntax,
    /// A key that does not belong there.
    UnknownKey,
    /// A key that must be there is not.
    Missing,
    /// A number where a list should be, say.
    WrongType,
    /// The right type, but not a value that is allowed.
    BadValue,
    /// A name that is declared nowhere.
    UnknownName,
    /// Two things that want the same name or place.
    Clash,
    /// Something a later version of Ebbtide will know.
    Unavailable,
    /// A file that the manifest refers to is not there.
    MissingFile,
    /// A file that the manifest refers to is there, but not what it should be.
    BadFile,
}

/// A place in the manifest, with the line it is on, so that a report needs no second look at the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The line, from 1.
    pub line: usize,
    /// The first character in that line, from 1.
    pub column: usize,
    /// How many characters of the line are meant.
    pub width: usize,
    /// The line, without control characters, cut to 160 characters.
    pub source: String,
}

impl Place {
    /// The place of a byte range. A range that is not within the text, or not on character boundaries, is moved to
    /// the nearest one that is: parsers report such ranges at the end of broken input.
    pub(super) fn of(text: &str, bytes: Range<usize>) -> Self {
        let start = text.floor_char_boundary(bytes.start.min(text.len()));
        let end = text.ceil_char_boundary(bytes.end.clamp(start, text.len()));
        let line_start = text[..start].rfind('\n').map_or(0, |newline| newline + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |newline| start + newline);
        let line = text[line_start..line_end].trim_end_matches('\r');
        Self {
            line: text[..line_start].matches('\n').count() + 1,
            column: text[line_start..start].chars().count() + 1,
            width: text[start..end.min(line_end)].trim_end().chars().count().max(1),
            // A report goes to terminals: a tab would shift the marker, an escape sequence would do worse.
            source: line
                .chars()
                .take(MAX_QUOTED_LINE)
                .map(|c| if c == '\t' { ' ' } else { c })
                .map(|c| if c.is_control() { '\u{fffd}' } else { c })
                .collect(),
        }
    }
}

/// One thing that is wrong with a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What sort of problem it is.
    pub kind: ProblemKind,
    /// Where.
    #[serde(flatten)]
    pub place: Place,
    /// The key it is about, `aggregate.flight.limits.memory`; empty if it is about the whole text.
    pub key: String,
    /// What is wrong.
    pub message: String,
    /// What to write instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { line, column, width, source } = &self.place;
        writeln!(f, "error: {}", self.message)?;
        let number = line.to_string();
        let margin = " ".repeat(number.len());
        write!(f, "{margin}--> {FILE_NAME}:{line}:{column}")?;
        if !self.key.is_empty() {
            write!(f, " ({})", self.key)?;
        }
        write!(f, "\n{margin} |\n{number} | {source}")?;
        let quoted = source.chars().count();
        if *column <= quoted {
            let indent = " ".repeat(column - 1);
            let marker = "^".repeat((*width).min(quoted - (column - 1)));
            write!(f, "\n{margin} | {indent}{marker}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\n{margin} = {hint}")?;
        }
        Ok(())
    }
}

/// Everything that is wrong with a manifest, in the order of its lines. At least one problem, at most 100.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// Puts problems in order; none if there are none.
    #[must_use]
    pub fn of(mut problems: Vec<Problem>) -> Option<Self> {
        problems.sort_by_key(|problem| (problem.place.line, problem.place.column));
        problems.dedup();
        problems.truncate(MAX_PROBLEMS);
        (!problems.is_empty()).then_some(Self(problems))
    }

    /// The problems, in the order of their lines.
    #[must_use]
    pub fn as_slice(&self) -> &[Problem] {
        &self.0
    }
}

impl<'a> IntoIterator for &'a Problems {
    type Item = &'a Problem;
    type IntoIter = std::slice::Iter<'a, Problem>;
    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Self(vec![problem])
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in self {
            write!(f, "{problem}\n\n")?;
        }
        match self.0.len() {
            1 => write!(f, "{FILE_NAME} has 1 problem"),
            MAX_PROBLEMS => write!(f, "{FILE_NAME} has {MAX_PROBLEMS} problems or more"),
            count => write!(f, "{FILE_NAME} has {count} problems"),
        }
    }
}

impl std::error::Error for Problems {}

/// A value from the manifest, for a message: short, on one line, nothing that a terminal would act on.
pub(super) fn short(text: &str) -> String {
    let mut characters = text.chars().flat_map(char::escape_debug);
    let mut quoted: String = characters.by_ref().take(60).collect();
    if characters.next().is_some() {
        quoted.push('…');
    }
    quoted
}

/// The known name that was probably meant: the nearest one by edits (insert, delete, replace, swap), if it takes at
/// most a third of the letters.
pub(super) fn suggestion<'a>(wrong: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if wrong.len() > 64 {
        return None;
    }
    let allowed = (wrong.chars().count() / 3).max(1);
    known
        .into_iter()
        .map(|name| {
            (edits(&wrong.to_lowercase().replace('_', "-"), &name.to_lowercase().replace('_', "-")), name)
        })
        .filter(|(edits, _)| *edits <= allowed)
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, name)| name)
}

/// Optimal string alignment distance.
fn edits(from: &str, to: &str) -> usize {
    let (from, to): (Vec<char>, Vec<char>) = (from.chars().collect(), to.chars().collect());
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=to.len()).collect();
    for i in 1..=from.len() {
        let mut row = vec![i];
        for j in 1..=to.len() {
            let replace = last[j - 1] + usize::from(from[i - 1] != to[j - 1]);
            let mut best = replace.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && from[i - 1] == to[j - 2] && from[i - 2] == to[j - 1] {
                best = best.min(before_last[j - 2] + 1);
            }
            row.push(best);
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_swapped_or_a_missing_letter_finds_its_name() {
        let known = ["module", "commands", "snapshot-every"];
        assert_eq!(suggestion("modlue", known), Some("module"));
        assert_eq!(suggestion("snapshot_evry", known), Some("snapshot-every"));
        assert_eq!(suggestion("colour", known), None);
    }

    #[test]
    fn a_report_never_carries_what_a_terminal_would_act_on() {
        let place = Place::of("a = \"\u{1b}[31m\"", 4..10);
        assert!(!place.source.contains('\u{1b}'));
        assert_eq!(short("\u{1b}[31m"), "\\u{1b}[31m");
    }

    #[test]
    fn places_are_counted_in_characters_from_one() {
        let place = Place::of("x = 1\r\nü = ö\n", 12..14);
        assert_eq!((place.line, place.column, place.width, &*place.source), (2, 5, 1, "ü = ö"));
    }
}
