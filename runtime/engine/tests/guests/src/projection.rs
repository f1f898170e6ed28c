wit_bindgen::generate!({ path: "../../../../wit", world: "projection" });

use ebbtide::functions::rows::{self, Column, Value};
use exports::ebbtide::functions::projections::{Event, Failure, Guest};

struct Module;

export!(Module);

impl Guest for Module {
    /// Counts events by stream in model `counts`; an event's type may say otherwise.
    fn apply(events: Vec<Event>) -> Result<(), Failure> {
        for (index, event) in events.into_iter().enumerate() {
            match event.event_type.as_str() {
                "Fail" => return Err(Failure { index: index as u32, message: "asked to".into() }),
                "FailFar" => return Err(Failure { index: u32::MAX, message: "asked to".into() }),
                "Trap" => panic!("asked to"),
                // A megabyte of memory, all of it touched, and kept.
                "Touch" => std::mem::forget(std::hint::black_box(vec![1_u8; 1 << 20])),
                "Unknown" => rows::delete("nothing", "key"),
                "Put" => {
                    let seen = rows::get("counts", &event.stream).map_or(0, |columns| columns.len() as i64);
                    rows::put(
                        "counts",
                        &event.stream,
                        &[
                            Column { name: "seen".into(), value: Value::Integer(seen) },
                            Column { name: "actor".into(), value: Value::Text(event.actor) },
                        ],
                    );
                }
                _ => rows::add("counts", &event.stream, "count", 1),
            }
        }
        Ok(())
    }
}
