//! The projection `delays`: how punctual carriers are, in the model `carrier_delays`. It only adds, so that its lanes
//! never wait for each other.

use ebbtide::prelude::*;
use flights_events::FlightEvent::{self, Arrived, Cancelled, Departed, Scheduled};

const MODEL: &str = "carrier_delays";

/// Keeps the model `carrier_delays`.
pub struct Delays;

impl Projection for Delays {
    fn apply(event: &Event, rows: &mut Rows) -> Result<(), Failure> {
        match event.decode::<FlightEvent>()? {
            Scheduled(flight) => {
                // Every counter at once: a carrier that never cancelled has cancelled 0 flights, not null.
                for (column, delta) in
                    [("flights", 1), ("cancelled", 0), ("arrived", 0), ("arr_delay_total", 0)]
                {
                    rows.add(MODEL, &flight.carrier, column, delta);
                }
            }
            Departed { .. } => {}
            Arrived { flight, delay, .. } => {
                rows.add(MODEL, &flight.carrier, "arrived", 1);
                rows.add(MODEL, &flight.carrier, "arr_delay_total", delay.unwrap_or(0));
            }
            Cancelled { flight } => rows.add(MODEL, &flight.carrier, "cancelled", 1),
        }
        Ok(())
    }
}

ebbtide::export_projection!(Delays);

#[cfg(test)]
mod tests {
    use super::*;
    use ebbtide::test::project;
    use flights_events::Flight;
    use serde_json::json;

    #[test]
    fn carriers_are_counted_with_their_delays() {
        let of = |carrier: &str| Flight {
            carrier: carrier.into(),
            origin: "EWR".into(),
            dest: "IAH".into(),
            hour: 5,
        };
        project::<Delays>([
            ("flight-1", Scheduled(of("UA"))),
            ("flight-1", Departed { flight: of("UA"), delay: 2 }),
            ("flight-1", Arrived { flight: of("UA"), delay: Some(-11), air_time: Some(227) }),
            ("flight-2", Scheduled(of("UA"))),
            ("flight-2", Departed { flight: of("UA"), delay: 2 }),
            ("flight-2", Arrived { flight: of("UA"), delay: None, air_time: None }),
            ("flight-3", Scheduled(of("B6"))),
            ("flight-3", Cancelled { flight: of("B6") }),
        ])
        .then_rows(
            MODEL,
            json!({
                "UA": { "flights": 2, "cancelled": 0, "arrived": 2, "arr_delay_total": -11 },
                "B6": { "flights": 1, "cancelled": 1, "arrived": 0, "arr_delay_total": 0 },
            }),
        );
    }
}
