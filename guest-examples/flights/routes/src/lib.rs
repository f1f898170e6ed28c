//! The projection `routes`: how often each route is flown, and how long it takes, in the model `routes`.

use ebbtide::prelude::*;
use flights_events::FlightEvent::{self, Arrived, Departed};

const MODEL: &str = "routes";

/// A row as it begins.
#[derive(Serialize)]
struct Route<'a> {
    origin: &'a str,
    dest: &'a str,
    flights: i64,
    air_time_total: i64,
    air_time_count: i64,
}

/// Keeps the model `routes`.
pub struct Routes;

impl Projection for Routes {
    fn apply(event: &Event, rows: &mut Rows) -> Result<(), Failure> {
        match event.decode::<FlightEvent>()? {
            Departed { flight, .. } => {
                let key = format!("{}-{}", flight.origin, flight.dest);
                if rows.get::<Known>(MODEL, &key)?.is_some() {
                    rows.add(MODEL, &key, "flights", 1);
                } else {
                    let (origin, dest) = (&flight.origin, &flight.dest);
                    rows.put(
                        MODEL,
                        &key,
                        &Route { origin, dest, flights: 1, air_time_total: 0, air_time_count: 0 },
                    )?;
                }
            }
            Arrived { flight, air_time: Some(minutes), .. } => {
                let key = format!("{}-{}", flight.origin, flight.dest);
                rows.add(MODEL, &key, "air_time_total", minutes);
                rows.add(MODEL, &key, "air_time_count", 1);
            }
            _ => {}
        }
        Ok(())
    }
}

/// That a row is there is all that needs to be known of it.
#[derive(Deserialize)]
struct Known {}

ebbtide::export_projection!(Routes);

#[cfg(test)]
mod tests {
    use super::*;
    use ebbtide::test::project;
    use flights_events::Flight;
    use serde_json::json;

    #[test]
    fn a_route_counts_its_departures_and_the_flights_whose_air_time_is_known() {
        let flight = || Flight { carrier: "UA".into(), origin: "EWR".into(), dest: "IAH".into(), hour: 5 };
        project::<Routes>([
            ("flight-1", Departed { flight: flight(), delay: 2 }),
            ("flight-1", Arrived { flight: flight(), delay: Some(11), air_time: Some(227) }),
            ("flight-2", Departed { flight: flight(), delay: 2 }),
            ("flight-2", Arrived { flight: flight(), delay: None, air_time: None }),
        ])
        .then_rows(
            MODEL,
            json!({
                "EWR-IAH": {
                    "origin": "EWR", "dest": "IAH", "flights": 2, "air_time_total": 227, "air_time_count": 1
                },
            }),
        );
    }
}
