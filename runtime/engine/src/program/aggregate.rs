//! Aggregates of programs. The host keeps what a component would keep in its memory: the state, as the program last
//! folded it, and the events behind it, which every decision is given.
//!
//! Folding and deciding are runs of their own. A state can so depend on nothing but events: what a decision came to is
//! in it only once it was appended, and came back as an event.

use super::{Answer, bad, document, raw, read};
use crate::bindings::NewEventOut;
use crate::commands::{Commands, Tenancy, bounded};
use crate::usage::{Tab, Work};
use bytes::Bytes;
use ebb_domain::commit::Refusal;
use ebb_domain::port::Future;
use ebb_domain::port::guest::{Aggregate, CallError, Decision, GuestCommand, PastEvent};
use ebb_domain::stream::StreamId;
use ebb_domain::text::Text;
use ebb_domain::time::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::pin::pin;
use std::sync::Arc;

/// Events, or bytes of them, that are folded into the state: until there are so many, every decision is given all of
/// them. A run costs more than reading a few events again, and grows with them.
const FOLD: Bound = Bound { events: 64, bytes: 256 << 10 };
/// What a program that keeps no state can be given.
const STATELESS: Bound = Bound { events: 1000, bytes: 4 << 20 };
/// A state at most, in bytes.
const STATE_BYTES: usize = 1 << 20;

struct Bound {
    events: usize,
    bytes: usize,
}

impl Bound {
    const fn is_reached(&self, events: usize, bytes: usize) -> bool {
        events >= self.events || bytes >= self.bytes
    }
}

/// One aggregate: its state, and the events that are not in it yet.
pub(crate) struct ProgramAggregate {
    commands: Arc<Commands>,
    stream: StreamId,
    /// JSON; none before the first fold.
    state: Option<Bytes>,
    events: Vec<PastEvent>,
    event_bytes: usize,
    /// Set when the program was asked for its state, and said that it has none.
    is_stateless: bool,
    tenancy: Tenancy,
}

/// What is put in, whether to be folded or to be decided on.
#[derive(Serialize)]
struct Input<'a> {
    kind: &'static str,
    stream: &'a str,
    key: &'a str,
    state: Option<&'a RawValue>,
    events: Vec<EventIn<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    command: Option<CommandIn<'a>>,
}

#[derive(Serialize)]
struct EventIn<'a> {
    r#type: &'a str,
    data: &'a RawValue,
    revision: u64,
    schemaversion: u32,
}

#[derive(Serialize)]
struct CommandIn<'a> {
    id: String,
    name: &'a str,
    data: &'a RawValue,
    time: String,
    actor: &'a str,
    correlationid: &'a str,
}

/// The answer to `fold`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Folded<'a> {
    #[serde(borrow, default)]
    state: Option<&'a RawValue>,
}

impl<'a> Answer<'a> for Folded<'a> {
    const KIND: &'static str = "fold";
    const EXPECTED: &'static str = r#"`{"state": …}`, or `{}` from a program that keeps no state"#;
}

/// The answer to `decide`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Decided<'a> {
    #[serde(borrow, default)]
    events: Option<Vec<EventOut<'a>>>,
    #[serde(borrow, default)]
    refusal: Option<RefusalOut<'a>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EventOut<'a> {
    r#type: String,
    #[serde(borrow)]
    data: &'a RawValue,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RefusalOut<'a> {
    code: Text,
    message: Text,
    #[serde(borrow, default)]
    details: Option<&'a RawValue>,
}

impl<'a> Answer<'a> for Decided<'a> {
    const KIND: &'static str = "decide";
    const EXPECTED: &'static str =
        r#"`{"events": [{"type": …, "data": …}]}` or `{"refusal": {"code": …, "message": …}}`"#;
}

impl ProgramAggregate {
    /// An aggregate before its first event, or as a snapshot has it.
    pub(crate) fn open(
        commands: Arc<Commands>,
        stream: &StreamId,
        snapshot: Option<Bytes>,
    ) -> Result<Self, CallError> {
        if let Some(snapshot) = &snapshot
            && raw(snapshot).is_none()
        {
            return Err(CallError::BadSnapshot("it is not JSON".into()));
        }
        let mut tenancy = Tenancy::begin(commands.clone())?;
        tenancy.hold(snapshot.as_ref().map_or(0, Bytes::len))?;
        Ok(Self {
            commands,
            stream: stream.detached(),
            state: snapshot,
            events: Vec::new(),
            event_bytes: 0,
            is_stateless: false,
            tenancy,
        })
    }

    /// One run: to decide, or to fold where there is no command.
    async fn run(&self, tab: &Tab, command: Option<&GuestCommand>) -> Result<Vec<u8>, CallError> {
        let input = document(&self.input(command)?);
        let time = command.map_or(Timestamp(0), |command| command.time);
        self.commands.run_program(tab, time, input).await
    }

    fn input<'a>(&'a self, command: Option<&'a GuestCommand>) -> Result<Input<'a>, CallError> {
        // They were held to be JSON when they came in.
        let json = |bytes: &'a Bytes| {
            raw(bytes).ok_or_else(|| CallError::Failed(format!("what is in {} is not JSON", self.stream)))
        };
        let event = |event: &'a PastEvent| {
            Ok(EventIn {
                r#type: &event.event_type,
                data: json(&event.data)?,
                revision: event.revision.0,
                schemaversion: event.schema_version,
            })
        };
        let command = match command {
            None => None,
            Some(command) => Some(CommandIn {
                id: command.id.to_string(),
                name: &command.name,
                data: json(&command.data)?,
                time: command.time.to_string(),
                actor: &command.actor,
                correlationid: &command.correlation_id,
            }),
        };
        Ok(Input {
            kind: if command.is_some() { Decided::KIND } else { Folded::KIND },
            stream: self.stream.as_str(),
            key: self.stream.key(),
            state: self.state.as_ref().map(json).transpose()?,
            events: self.events.iter().map(event).collect::<Result<_, CallError>>()?,
            command,
        })
    }

    /// Puts the events into the state, if the program keeps one.
    async fn fold(&mut self, tab: &Tab) -> Result<(), CallError> {
        let written = self.run(tab, None).await?;
        let Some(state) = read::<Folded<'_>>(&written)?.state else {
            if self.state.is_some() {
                let problem = "it has no `state`, and the program was given one to fold events into";
                return Err(bad::<Folded<'_>>(&written, &problem));
            }
            self.is_stateless = true;
            return Ok(());
        };
        let state = Bytes::copy_from_slice(state.get().as_bytes());
        if state.len() > STATE_BYTES {
            return Err(CallError::OutputTooLarge(format!(
                "its state has {} bytes, and may have at most {STATE_BYTES}",
                state.len()
            )));
        }
        self.tenancy.hold(state.len())?;
        self.state = Some(state);
        self.events = Vec::new();
        self.event_bytes = 0;
        Ok(())
    }

    async fn take(&mut self, tab: &Tab, events: &[PastEvent]) -> Result<(), CallError> {
        let (count, bytes) = (self.events.len(), self.event_bytes);
        self.events.extend_from_slice(events);
        self.event_bytes += events.iter().map(|event| event.data.len()).sum::<usize>();
        let taken = self.settle(tab).await;
        if taken.is_err() {
            // One that is told to come again gives the same events again.
            self.events.truncate(count);
            self.event_bytes = bytes;
        }
        taken
    }

    /// Holds to bounds what was taken.
    async fn settle(&mut self, tab: &Tab) -> Result<(), CallError> {
        self.tenancy.hold(self.state.as_ref().map_or(0, Bytes::len) + self.event_bytes)?;
        if !self.is_stateless && FOLD.is_reached(self.events.len(), self.event_bytes) {
            self.fold(tab).await?;
        }
        if STATELESS.is_reached(self.events.len(), self.event_bytes) {
            return Err(CallError::BadAnswer(format!(
                "`{}` has {} events of {} bytes, and a program that keeps no state is given all of them, at most {} \
                 of {} bytes: answer `fold` with `state`",
                self.stream,
                self.events.len(),
                self.event_bytes,
                STATELESS.events,
                STATELESS.bytes
            )));
        }
        Ok(())
    }

    async fn decided(&self, tab: &Tab, command: &GuestCommand) -> Result<Decision, CallError> {
        let written = self.run(tab, Some(command)).await?;
        match read::<Decided<'_>>(&written)? {
            Decided { events: Some(events), refusal: None } => {
                let event = |event: EventOut<'_>| NewEventOut {
                    event_type: event.r#type,
                    data: event.data.get().as_bytes().to_vec(),
                };
                bounded(events.into_iter().map(event).collect()).map(Decision::Events)
            }
            Decided { events: None, refusal: Some(refusal) } => {
                tab.refused();
                Ok(Decision::Refused(Refusal {
                    code: refusal.code,
                    message: refusal.message,
                    details: refusal.details.map(|details| Bytes::copy_from_slice(details.get().as_bytes())),
                }))
            }
            Decided { events, .. } => {
                let has = if events.is_some() { "both" } else { "neither" };
                Err(bad::<Decided<'_>>(&written, &format_args!("it has {has} of `events` and `refusal`")))
            }
        }
    }

    /// The state with all events in it; none if the program keeps none.
    async fn folded(&mut self, tab: &Tab) -> Result<Option<Bytes>, CallError> {
        if !self.is_stateless && !self.events.is_empty() {
            self.fold(tab).await?;
        }
        Ok(self.state.clone())
    }
}

impl Aggregate for ProgramAggregate {
    fn apply<'a>(&'a mut self, events: &'a [PastEvent]) -> Future<'a, Result<(), CallError>> {
        Box::pin(async {
            let commands = self.commands.clone();
            let tab = Tab::upkeep();
            Work::new(&commands.function, &tab).within_wall(pin!(self.take(&tab, events))).await
        })
    }

    fn decide<'a>(&'a mut self, command: &'a GuestCommand) -> Future<'a, Result<Decision, CallError>> {
        Box::pin(async move {
            let tab = Tab::traced(command.trace.clone());
            Work::new(&self.commands.function, &tab).within_wall(pin!(self.decided(&tab, command))).await
        })
    }

    fn snapshot(&mut self) -> Future<'_, Result<Option<Bytes>, CallError>> {
        Box::pin(async {
            let commands = self.commands.clone();
            let tab = Tab::upkeep();
            Work::new(&commands.function, &tab).within_wall(pin!(self.folded(&tab))).await
        })
    }
}
