//! Given events, when a command, then events or a refusal.

use super::diff;
use crate::aggregate::{self, Recorded};
use crate::tagged;
use crate::{Aggregate, Context, Id, Refusal, Timestamp};
use serde::Serialize;
use serde_json::Value;

/// An aggregate to which these events have happened; `given::<Account>([])` is a fresh one.
#[track_caller]
pub fn given<A: Aggregate>(events: impl IntoIterator<Item = A::Event>) -> Given<A> {
    let fresh = Given {
        folded: A::default(),
        restored: A::default(),
        revision: 0,
        commands: 0,
        context: Context {
            key: "test".to_owned(),
            actor: "anonymous".to_owned(),
            // A round moment that nobody takes for "now".
            time: Timestamp::from_micros(1_000_000_000_000_000),
            command_id: Id::default(),
            correlation_id: "test".to_owned(),
        },
    };
    fresh.events(events)
}

/// An aggregate to which these commands were sent; none may be refused.
#[track_caller]
pub fn given_commands<A>(commands: impl IntoIterator<Item = A::Command>) -> Given<A>
where
    A: Aggregate<Command: Serialize>,
{
    given::<A>([]).commands(commands)
}

/// An aggregate and what the next command will see: the start of a story, and what every step of it leaves.
pub struct Given<A> {
    /// Folded from all events in one go.
    folded: A,
    /// Went through a snapshot behind every event.
    restored: A,
    revision: u64,
    commands: u128,
    context: Context,
}

impl<A: Aggregate> Given<A> {
    /// These events have happened, too.
    #[track_caller]
    #[must_use]
    pub fn events(mut self, events: impl IntoIterator<Item = A::Event>) -> Self {
        for event in events {
            let (event_type, data) = aggregate::written::<A>(&event);
            self.apply(event_type, &data);
        }
        self
    }

    /// This event has happened, too, recorded with this type, schema version and data: to test what became of old ones.
    #[track_caller]
    #[must_use]
    pub fn recorded(mut self, event_type: &str, schema_version: u32, data: &Value) -> Self {
        self.apply_recorded(event_type, schema_version, data.to_string().as_bytes());
        self
    }

    /// These commands were sent, too; none may be refused.
    #[track_caller]
    #[must_use]
    pub fn commands(mut self, commands: impl IntoIterator<Item = A::Command>) -> Self
    where
        A::Command: Serialize,
    {
        for command in commands {
            let outcome = self.when(command);
            if let Err(refusal) = &outcome.decision {
                panic!("`{}`, which the test is given, was refused: {}", outcome.command, shown(refusal));
            }
            self = outcome.settle();
        }
        self
    }

    /// The aggregate's id, as [`Context::key`] tells it; `test` unless set.
    #[must_use]
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.context.key = key.into();
        self
    }

    /// Who sends the next commands; `anonymous` unless set.
    #[must_use]
    pub fn actor(mut self, actor: impl Into<String>) -> Self {
        self.context.actor = actor.into();
        self
    }

    /// When the next commands are received.
    #[must_use]
    pub fn at(mut self, time: Timestamp) -> Self {
        self.context.time = time;
        self
    }

    /// The state as it is now.
    #[must_use]
    pub fn state(&self) -> &A {
        &self.folded
    }

    /// Sends a command.
    ///
    /// # Panics
    /// The command can't be JSON, or the module is not a function of what it is given: deciding it again, on a state
    /// that went through a snapshot, had another outcome.
    #[track_caller]
    #[must_use = "say what should come of it: `then`, `then_refused` or `then_nothing`"]
    pub fn when(self, command: A::Command) -> Outcome<A>
    where
        A::Command: Serialize,
    {
        match tagged::to_parts(&command) {
            Ok((name, body)) => self.decide(name, &body),
            Err(error) => panic!("the command could not be written as JSON: {error}"),
        }
    }

    /// Sends a command by its name with this body, as a caller would.
    #[track_caller]
    #[must_use = "say what should come of it: `then`, `then_refused` or `then_nothing`"]
    #[expect(clippy::needless_pass_by_value, reason = "reads best with json!")]
    pub fn when_json(self, name: &str, body: Value) -> Outcome<A> {
        self.decide(name, body.to_string().as_bytes())
    }

    #[track_caller]
    fn decide(mut self, name: &str, body: &[u8]) -> Outcome<A> {
        self.commands += 1;
        self.context.command_id = Id::from_u128(self.commands);
        let decision = aggregate::decide(&self.folded, name, body, &self.context);
        let again = aggregate::decide(&self.restored, name, body, &self.context);
        let what = format!("`{name}` is decided differently on a state that went through a snapshot");
        diff::assert_same(&what, &decision_lines(&decision), &decision_lines(&again));
        Outcome { given: self, command: name.to_owned(), decision }
    }

    #[track_caller]
    fn apply(&mut self, event_type: &str, data: &[u8]) {
        self.apply_recorded(event_type, 1, data);
    }

    #[track_caller]
    fn apply_recorded(&mut self, event_type: &str, schema_version: u32, data: &[u8]) {
        for state in [&mut self.folded, &mut self.restored] {
            aggregate::apply(state, Recorded::new(event_type, schema_version, data), self.revision);
        }
        self.revision += 1;
        if !A::SNAPSHOTS {
            return;
        }
        let snapshot = match serde_json::to_vec(&self.restored) {
            Ok(snapshot) => snapshot,
            Err(error) => panic!("the state behind `{event_type}` can't be a snapshot: {error}"),
        };
        self.restored = match serde_json::from_slice(&snapshot) {
            Ok(state) => state,
            Err(error) => panic!(
                "the snapshot behind `{event_type}` can't be restored: {error}\n{}",
                String::from_utf8_lossy(&snapshot)
            ),
        };
    }
}

impl<A> std::fmt::Debug for Given<A> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Given")
            .field("revision", &self.revision)
            .field("context", &self.context)
            .finish_non_exhaustive()
    }
}

/// What came of a command.
#[must_use = "say what should come of it: `then`, `then_refused` or `then_nothing`"]
pub struct Outcome<A> {
    given: Given<A>,
    command: String,
    decision: Result<Vec<(&'static str, Vec<u8>)>, Refusal>,
}

impl<A: Aggregate> Outcome<A> {
    /// These events happen, in this order, and no others. What comes back is the aggregate they happened to.
    ///
    /// # Panics
    /// Something else came of it.
    #[track_caller]
    pub fn then(self, events: impl IntoIterator<Item = A::Event>) -> Given<A> {
        let expected = Ok(events.into_iter().map(|event| aggregate::written::<A>(&event)).collect());
        let what = format!("`{}` did not lead to the expected events", self.command);
        diff::assert_same(&what, &decision_lines(&expected), &decision_lines(&self.decision));
        self.settle()
    }

    /// Nothing happens, and nothing is refused.
    ///
    /// # Panics
    /// Something else came of it.
    #[track_caller]
    pub fn then_nothing(self) -> Given<A> {
        self.then([])
    }

    /// It is refused, with this code. What comes back can check the message and the details, and goes on.
    ///
    /// # Panics
    /// It was not refused, or with another code.
    #[track_caller]
    pub fn then_refused(self, code: &str) -> Refused<A> {
        match self.decision {
            Err(refusal) if refusal.code() == code => Refused { given: self.given, refusal },
            Err(refusal) => {
                panic!("`{}` was refused with another code than `{code}`: {}", self.command, shown(&refusal))
            }
            Ok(_) => panic!(
                "`{}` was not refused with `{code}`; it led to\n  {}",
                self.command,
                decision_lines(&self.decision).join("\n  ")
            ),
        }
    }

    /// What was decided, for checks of your own; [`settle`](Self::settle) goes on from there.
    ///
    /// # Errors
    /// It was refused.
    ///
    /// # Panics
    /// An event can't be read back from the JSON that was written of it.
    #[track_caller]
    pub fn decided(&self) -> Result<Vec<A::Event>, &Refusal> {
        let read = |(event_type, data): &(&'static str, Vec<u8>)| match Recorded::new(event_type, 1, data)
            .decode()
        {
            Ok(event) => event,
            Err(error) => panic!("the event `{event_type}` can't be read back: {error}"),
        };
        self.decision.as_ref().map(|events| events.iter().map(read).collect())
    }

    /// Whatever came of it: the aggregate with the decided events applied, or as it was before if it was refused.
    #[track_caller]
    #[must_use]
    pub fn settle(mut self) -> Given<A> {
        for (event_type, data) in self.decision.unwrap_or_default() {
            self.given.apply(event_type, &data);
        }
        self.given
    }
}

impl<A> std::fmt::Debug for Outcome<A> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outcome").field("command", &self.command).field("decision", &self.decision).finish()
    }
}

/// A refusal that was expected; it changed nothing.
#[derive(Debug)]
pub struct Refused<A> {
    given: Given<A>,
    refusal: Refusal,
}

impl<A: Aggregate> Refused<A> {
    /// Its message is this.
    ///
    /// # Panics
    /// It is another.
    #[track_caller]
    pub fn message(self, message: &str) -> Self {
        diff::assert_same(
            "the refusal's message",
            &[message.to_owned()],
            &[self.refusal.message().to_owned()],
        );
        self
    }

    /// It has this detail.
    ///
    /// # Panics
    /// It has not, or the detail has another value.
    #[track_caller]
    pub fn detail(self, name: &str, value: impl Into<Value>) -> Self {
        let (expected, details) = (value.into(), self.refusal.details());
        match details.and_then(|details| details.get(name)) {
            Some(actual) => {
                diff::assert_same(
                    &format!("the refusal's detail `{name}`"),
                    &diff::lines(&expected),
                    &diff::lines(actual),
                );
            }
            None => panic!("the refusal has no detail `{name}`: {}", shown(&self.refusal)),
        }
        self
    }

    /// Sends the next command; see [`Given::when`].
    #[track_caller]
    #[must_use = "say what should come of it: `then`, `then_refused` or `then_nothing`"]
    pub fn when(self, command: A::Command) -> Outcome<A>
    where
        A::Command: Serialize,
    {
        self.given.when(command)
    }

    /// The aggregate, as it was before.
    #[must_use]
    pub fn unchanged(self) -> Given<A> {
        self.given
    }
}

fn shown(refusal: &Refusal) -> String {
    let details = refusal.details().map(|details| format!(" {details}")).unwrap_or_default();
    format!("{} ({}){details}", refusal.code(), refusal.message())
}

fn decision_lines(decision: &Result<Vec<(&'static str, Vec<u8>)>, Refusal>) -> Vec<String> {
    match decision {
        Ok(events) => {
            events.iter().map(|(name, data)| format!("{name} {}", String::from_utf8_lossy(data))).collect()
        }
        Err(refusal) => vec![format!("refused: {}", shown(refusal))],
    }
}
