use ebbtide::prelude::*;

#[derive(Deserialize)]
enum NoteEvent {
    Written { text: String },
    Poisoned,
    Exploded,
    Cured,
}

#[derive(Serialize, Deserialize)]
struct Row {
    text: Option<String>,
    writes: i64,
    version: i64,
}

/// The projection.
pub struct Notes;

impl Projection for Notes {
    fn apply(event: &Event, rows: &mut Rows) -> Result<(), Failure> {
        let row: Option<Row> = rows.get("notes", event.key())?;
        let mut row = row.unwrap_or(Row { text: None, writes: 0, version: crate::VERSION });
        row.version = crate::VERSION;
        match event.decode()? {
            NoteEvent::Written { text } => {
                row.text = Some(text);
                row.writes += 1;
            }
            NoteEvent::Poisoned if !is_cured(rows)? => return Err(Failure::new("the note is poisoned")),
            NoteEvent::Exploded if !is_cured(rows)? => panic!("the note exploded"),
            NoteEvent::Poisoned | NoteEvent::Exploded => {}
            NoteEvent::Cured => {
                rows.add("cures", "all", "count", 1);
                return Ok(());
            }
        }
        rows.put("notes", event.key(), &row)
    }
}

#[derive(Deserialize)]
struct Cures {}

fn is_cured(rows: &Rows) -> Result<bool, Failure> {
    Ok(rows.get::<Cures>("cures", "all")?.is_some())
}
