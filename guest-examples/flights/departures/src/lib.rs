//! The projection `departures`: how many flights leave an airport in an hour of the day, and how many of them late, in the
//! model `hourly_departures`.

use ebbtide::prelude::*;
use flights_events::FlightEvent::{self, Departed};

const MODEL: &str = "hourly_departures";

/// A row as it begins.
#[derive(Serialize)]
struct Hour<'a> {
    origin: &'a str,
    hour: u8,
    departures: i64,
    delayed: i64,
}

/// Keeps the model `hourly_departures`.
pub struct Departures;

impl Projection for Departures {
    fn apply(event: &Event, rows: &mut Rows) -> Result<(), Failure> {
        let Departed { flight, delay } = event.decode::<FlightEvent>()? else { return Ok(()) };
        let key = format!("{}-{}", flight.origin, flight.hour);
        let delayed = i64::from(delay > 0);
        if rows.get::<Known>(MODEL, &key)?.is_none() {
            let row = Hour { origin: &flight.origin, hour: flight.hour, departures: 1, delayed };
            return rows.put(MODEL, &key, &row);
        }
        rows.add(MODEL, &key, "departures", 1);
        rows.add(MODEL, &key, "delayed", delayed);
        Ok(())
    }
}

/// That a row is there is all that needs to be known of it.
#[derive(Deserialize)]
struct Known {}

ebbtide::export_projection!(Departures);

#[cfg(test)]
mod tests {
    use super::*;
    use ebbtide::test::project;
    use flights_events::Flight;
    use serde_json::json;

    #[test]
    fn departures_are_counted_by_scheduled_hour_and_delayed_ones_beside() {
        let departed = |origin: &str, hour, delay| Departed {
            flight: Flight { carrier: "UA".into(), origin: origin.into(), dest: "IAH".into(), hour },
            delay,
        };
        project::<Departures>([
            ("flight-1", departed("EWR", 5, 2)),
            ("flight-2", departed("EWR", 5, 0)),
            ("flight-3", departed("EWR", 5, -3)),
            ("flight-4", departed("JFK", 17, 61)),
        ])
        .then_rows(
            MODEL,
            json!({
                "EWR-5": { "origin": "EWR", "hour": 5, "departures": 3, "delayed": 1 },
                "JFK-17": { "origin": "JFK", "hour": 17, "departures": 1, "delayed": 1 },
            }),
        );
    }
}
