//! What if crews went home after waiting for four hours? The aggregate `flight` with one more rule, to be replayed
//! against what was recorded: `ebb replay` shows which departures would not have been.

use ebbtide::prelude::*;
use flights_events::FlightEvent;

// The same lines, not the crate: that one exports a module of its own.
#[path = "../../flight/src/flight.rs"]
mod flight;

use flight::{Command, State};

/// Minutes that a crew waits for its departure.
const PATIENCE: i64 = 240;

/// A flight whose crew goes home.
#[derive(Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CrewLimited(State);

impl Aggregate for CrewLimited {
    type Command = Command;
    type Event = FlightEvent;
    type Refusal = Refusal;

    fn decide(&self, command: Command, context: &Context) -> Result<Vec<FlightEvent>, Refusal> {
        match command {
            Command::Depart { delay } if delay > PATIENCE => {
                Err(Refusal::new("crew_went_home", "the crew waited for four hours").detail("delay", delay))
            }
            command => self.0.decide(command, context),
        }
    }

    fn apply(&mut self, event: FlightEvent) {
        self.0.apply(event);
    }
}

ebbtide::export_aggregate!(CrewLimited);

#[cfg(test)]
mod tests {
    use super::*;
    use ebbtide::test::given;
    use flights_events::Flight;

    #[test]
    fn a_crew_waits_for_four_hours_and_no_longer() {
        let flight = Flight { carrier: "UA".into(), origin: "EWR".into(), dest: "IAH".into(), hour: 5 };
        given::<CrewLimited>([FlightEvent::Scheduled(flight.clone())])
            .when(Command::Depart { delay: 241 })
            .then_refused("crew_went_home")
            .when(Command::Depart { delay: 240 })
            .then([FlightEvent::Departed { flight, delay: 240 }]);
    }
}
