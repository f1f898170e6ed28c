//! What happens to a flight. `flight` decides these; the projections read them.
//!
//! A projection sees one event at a time, so each event says everything that a reader needs to count it.

use serde::{Deserialize, Serialize};

/// An event of the stream `flight-{date}-{carrier}{number}-{origin}`, such as `flight-2013-01-01-UA1545-EWR`.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub enum FlightEvent {
    /// The flight was put on the schedule.
    Scheduled(Flight),
    /// It left the gate.
    Departed {
        /// Which flight.
        #[serde(flatten)]
        flight: Flight,
        /// Minutes behind schedule; below zero, ahead of it.
        delay: i64,
    },
    /// It arrived.
    Arrived {
        /// Which flight.
        #[serde(flatten)]
        flight: Flight,
        /// Minutes behind schedule; none if it was diverted on its way.
        delay: Option<i64>,
        /// Minutes in the air; none if it was diverted on its way.
        air_time: Option<i64>,
    },
    /// It will not depart.
    Cancelled {
        /// Which flight.
        #[serde(flatten)]
        flight: Flight,
    },
}

/// What is known of a flight from its schedule.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Flight {
    /// The airline's IATA code: `UA`.
    pub carrier: String,
    /// The airport it leaves from, its IATA code: `EWR`.
    pub origin: String,
    /// The airport it is bound for: `IAH`.
    pub dest: String,
    /// The hour of its scheduled departure, local time: 0 to 23.
    pub hour: u8,
}
