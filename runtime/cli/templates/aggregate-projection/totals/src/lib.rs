//! The projection `totals`: keeps the model that `GET /models/totals` queries.

use ebbtide::prelude::*;
use events::CounterEvent;

/// A row of the model. The platform fills in its key, the column `counter`.
#[derive(Serialize, Deserialize, Default)]
#[serde(default)]
struct Total {
    count: i64,
    resets: i64,
}

pub struct Totals;

impl Projection for Totals {
    /// Applies one event. Rows and how far the projection has got commit together: every event counts exactly once.
    fn apply(event: &Event, rows: &mut Rows) -> Result<(), Failure> {
        let counter = event.key();
        match event.decode()? {
            CounterEvent::Incremented { by } => {
                rows.add("totals", counter, "count", i64::try_from(by)?)
            }
            CounterEvent::Reset => {
                let total: Total = rows.get("totals", counter)?.unwrap_or_default();
                rows.put(
                    "totals",
                    counter,
                    &Total {
                        count: 0,
                        resets: total.resets + 1,
                    },
                )?;
            }
        }
        Ok(())
    }
}

ebbtide::export_projection!(Totals);

#[cfg(test)]
mod tests {
    use super::*;
    use ebbtide::test::project;

    #[test]
    fn a_reset_starts_again_and_is_counted() {
        let projected = project::<Totals>([
            ("counter-1", CounterEvent::Incremented { by: 2 }),
            ("counter-1", CounterEvent::Reset),
            ("counter-1", CounterEvent::Incremented { by: 3 }),
        ]);
        let total: Total = projected.row("totals", "1").unwrap();
        assert_eq!((total.count, total.resets), (3, 1));
    }
}
