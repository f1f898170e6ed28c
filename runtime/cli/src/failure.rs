//! How a command ends: its exit code, and what it says when it could not be carried out.

use std::fmt;
use std::io;
use std::process::ExitCode;

/// Exit codes, as `--help` and `docs/guide/cli.md` promise them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Done, and the answer is good.
    Done,
    /// Carried out, and the answer is "no": problems found, a command refused, differences, lines that failed.
    No,
    /// Could not be carried out: wrong usage, no server, a disk that would not.
    Failed,
    /// Stopped by a signal.
    Interrupted,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Done => 0,
            Exit::No => 1,
            Exit::Failed => 2,
            Exit::Interrupted => 130,
        })
    }
}

/// The table of exit codes that `ebb --help` ends with.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
    0  done
    1  carried out, and the answer is no: problems found, a command refused, differences in a replay, lines that failed
    2  not carried out: wrong usage, no server there, a file that could not be read
  130  interrupted";

/// What went wrong, in one line; what to do about it; and the exit code that says which of the two kinds it is.
#[derive(Debug)]
pub(crate) struct Failure {
    /// What happened, with the value it happened to. Printed behind `error: `.
    pub(crate) message: String,
    /// Further lines, printed as they are: a report that was made elsewhere.
    pub(crate) details: Option<String>,
    /// What to do. Printed behind `hint: `.
    pub(crate) hint: Option<String>,
    /// How the process ends.
    pub(crate) exit: Exit,
}

impl Failure {
    /// It could not be carried out.
    pub(crate) fn new(message: impl fmt::Display) -> Self {
        Self { message: message.to_string(), details: None, hint: None, exit: Exit::Failed }
    }

    /// It was carried out, and the answer is no.
    pub(crate) fn no(message: impl fmt::Display) -> Self {
        Self { exit: Exit::No, ..Self::new(message) }
    }

    /// With what to do.
    pub(crate) fn hint(mut self, hint: impl fmt::Display) -> Self {
        self.hint = Some(hint.to_string());
        self
    }

    /// With further lines.
    pub(crate) fn details(mut self, details: impl fmt::Display) -> Self {
        self.details = Some(details.to_string());
        self
    }

    /// A reader of our output went away (`ebb events | head`): nobody is left to tell, and nothing is wrong.
    pub(crate) fn of_stdout(error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self { message: String::new(), details: None, hint: None, exit: Exit::Done }
        } else {
            Self::new(format!("standard output could not be written: {error}"))
        }
    }

    /// Whether there is nothing to tell.
    pub(crate) fn is_silent(&self) -> bool {
        self.message.is_empty()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if let Some(details) = &self.details {
            write!(f, "\n{details}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\nhint: {hint}")?;
        }
        Ok(())
    }
}
