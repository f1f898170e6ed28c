use ebbtide::prelude::*;
use flights_events::Flight;
use flights_events::FlightEvent::{self, Arrived, Cancelled, Departed, Scheduled};

/// How far a flight has come.
#[derive(Default, Serialize, Deserialize)]
pub enum State {
    /// Not scheduled yet.
    #[default]
    Unknown,
    /// At the gate.
    Scheduled(Flight),
    /// In the air.
    Departed(Flight),
    /// Done.
    Arrived,
    /// Off.
    Cancelled,
}

/// What can be reported of a flight.
#[derive(Serialize, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub enum Command {
    /// Puts it on the schedule.
    Schedule(Flight),
    /// It left the gate.
    Depart {
        /// Minutes behind schedule; below zero, ahead of it.
        delay: i64,
    },
    /// It arrived.
    Arrive {
        /// Minutes behind schedule; none if it was diverted on its way.
        #[serde(default)]
        delay: Option<i64>,
        /// Minutes in the air; none if it was diverted on its way.
        #[serde(default)]
        air_time: Option<i64>,
    },
    /// It will not depart.
    Cancel,
}

impl Aggregate for State {
    type Command = Command;
    type Event = FlightEvent;
    type Refusal = Refusal;

    fn decide(&self, command: Command, _: &Context) -> Result<Vec<FlightEvent>, Refusal> {
        let event = match (self, command) {
            (Self::Unknown, Command::Schedule(flight)) => Scheduled(checked(flight)?),
            (Self::Unknown, _) => return refuse("not_scheduled", "the flight is not on the schedule"),
            (Self::Cancelled, _) => return refuse("cancelled", "the flight was cancelled"),
            (_, Command::Schedule(_)) => {
                return refuse("already_scheduled", "the flight is on the schedule already");
            }

            (Self::Scheduled(flight), Command::Depart { delay }) => {
                Departed { flight: flight.clone(), delay }
            }
            (Self::Scheduled(_), Command::Arrive { .. }) => {
                return refuse("not_departed", "the flight has not departed");
            }
            (Self::Scheduled(flight), Command::Cancel) => Cancelled { flight: flight.clone() },

            (Self::Departed(flight), Command::Arrive { delay, air_time }) => {
                Arrived { flight: flight.clone(), delay, air_time: in_the_air(air_time)? }
            }
            (Self::Arrived, Command::Arrive { .. }) => {
                return refuse("already_arrived", "the flight arrived already");
            }
            (Self::Departed(_) | Self::Arrived, Command::Depart { .. } | Command::Cancel) => {
                return refuse("already_departed", "the flight departed already");
            }
        };
        Ok(vec![event])
    }

    fn apply(&mut self, event: FlightEvent) {
        *self = match event {
            Scheduled(flight) => Self::Scheduled(flight),
            Departed { flight, .. } => Self::Departed(flight),
            Arrived { .. } => Self::Arrived,
            Cancelled { .. } => Self::Cancelled,
        }
    }
}

fn refuse<T>(code: &'static str, message: &str) -> Result<T, Refusal> {
    Err(Refusal::new(code, message))
}

fn checked(flight: Flight) -> Result<Flight, Refusal> {
    if flight.hour > 23 {
        return Err(Refusal::new("no_such_hour", "a day has the hours 0 to 23").detail("hour", flight.hour));
    }
    Ok(flight)
}

fn in_the_air(minutes: Option<i64>) -> Result<Option<i64>, Refusal> {
    match minutes {
        Some(minutes) if minutes < 0 => {
            Err(Refusal::new("negative_air_time", "nothing is in the air for less than no time")
                .detail("air_time", minutes))
        }
        minutes => Ok(minutes),
    }
}
