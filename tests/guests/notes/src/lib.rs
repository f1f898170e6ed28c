//! A small aggregate: notes that are written over and over, and that can be made hard to project.

use ebbtide::prelude::*;

/// How often the note was written.
#[derive(Default, Serialize, Deserialize)]
pub struct Note {
    writes: u64,
}

/// What it can be asked.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Command {
    /// Writes it.
    Write {
        /// What it says from now on.
        text: String,
    },
    /// Makes the projection fail on this note.
    Poison,
    /// Makes the projection trap on this note.
    Explode,
    /// Makes the projection fail no more.
    Cure,
}

/// What can happen.
#[derive(Serialize, Deserialize)]
pub enum NoteEvent {
    /// It was written.
    Written {
        /// What it says.
        text: String,
        /// How often it was written by now.
        writes: u64,
    },
    /// See [`Command::Poison`].
    Poisoned,
    /// See [`Command::Explode`].
    Exploded,
    /// See [`Command::Cure`].
    Cured,
}

impl Aggregate for Note {
    type Command = Command;
    type Event = NoteEvent;
    type Refusal = Refusal;

    fn decide(&self, command: Command, _: &Context) -> Result<Vec<NoteEvent>, Refusal> {
        match command {
            Command::Write { text } if text.is_empty() => Err(Refusal::new("empty", "a note says something")),
            Command::Write { text } => Ok(vec![NoteEvent::Written { text, writes: self.writes + 1 }]),
            Command::Poison => Ok(vec![NoteEvent::Poisoned]),
            Command::Explode => Ok(vec![NoteEvent::Exploded]),
            Command::Cure => Ok(vec![NoteEvent::Cured]),
        }
    }

    fn apply(&mut self, event: NoteEvent) {
        if let NoteEvent::Written { writes, .. } = event {
            self.writes = writes;
        }
    }
}

ebbtide::export_aggregate!(Note);
