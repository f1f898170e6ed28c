//! The aggregate `counter`: decides what happens.

use ebbtide::prelude::*;
use events::CounterEvent;

/// The state of one counter, folded from its events.
#[derive(Default, Serialize, Deserialize)]
pub struct Counter {
    count: u64,
}

/// What a counter can be asked: `POST /commands/counter/{id}/increment` with the body `{"by": 2}`.
#[derive(Serialize, Deserialize)]
pub enum Command {
    Increment { by: u64 },
    Reset,
}

impl Aggregate for Counter {
    type Command = Command;
    type Event = CounterEvent;
    type Refusal = Refusal;

    /// Decides what happens, or says no. Depends on nothing but the state, the command and the context.
    fn decide(&self, command: Command, _context: &Context) -> Result<Vec<CounterEvent>, Refusal> {
        match command {
            Command::Increment { by: 0 } => Err(Refusal::new("nothing_to_add", "add one or more")),
            Command::Increment { by } if by > LIMIT - self.count => Err(Refusal::new(
                "counter_full",
                format!("a counter counts to {LIMIT}"),
            )
            .detail("count", self.count)),
            Command::Increment { by } => Ok(vec![CounterEvent::Incremented { by }]),
            // Nothing to do is an answer, too.
            Command::Reset if self.count == 0 => Ok(vec![]),
            Command::Reset => Ok(vec![CounterEvent::Reset]),
        }
    }

    /// Folds what has happened into the state. It has happened: there is no way to say no here.
    fn apply(&mut self, event: CounterEvent) {
        match event {
            CounterEvent::Incremented { by } => self.count += by,
            CounterEvent::Reset => self.count = 0,
        }
    }
}

const LIMIT: u64 = 1_000_000;

ebbtide::export_aggregate!(Counter);

#[cfg(test)]
mod tests {
    use super::*;
    use ebbtide::test::given;

    #[test]
    fn a_counter_counts() {
        given::<Counter>([])
            .when(Command::Increment { by: 2 })
            .then([CounterEvent::Incremented { by: 2 }]);
    }

    #[test]
    fn a_full_counter_says_no() {
        given::<Counter>([CounterEvent::Incremented { by: LIMIT }])
            .when(Command::Increment { by: 1 })
            .then_refused("counter_full")
            .detail("count", LIMIT);
    }

    #[test]
    fn resetting_a_fresh_counter_changes_nothing() {
        given::<Counter>([]).when(Command::Reset).then_nothing();
    }
}
