//! One deployed version of an aggregate: its manifest entry, its module, its schemas.

use super::request::CommandErrorKind;
use crate::deferred::{Deferred, Make};
use bytes::Bytes;
use ebb_domain::commit::{Outcome, Refusal};
use ebb_domain::digest::Digest;
use ebb_domain::event::{self, NewEvent};
use ebb_domain::limits::cap;
use ebb_domain::manifest::AggregateSpec;
use ebb_domain::name::{CommandName, EventType};
use ebb_domain::port::guest::{CommandModule, DecidedEvent, Decision};
use ebb_domain::port::storage::Snapshot;
use ebb_domain::schema::{InvalidBody, JsonSchema, Violation};
use std::collections::HashMap;
use std::sync::Arc;

/// A deployed version of an aggregate. A new deployment makes a new one; what was warm in the old is dropped.
pub struct AggregateFunction {
    /// Its manifest entry.
    pub spec: AggregateSpec,
    /// The digest of its module.
    pub digest: Digest,
    /// The module.
    pub module: Arc<dyn CommandModule>,
    /// Compiled schemas of command bodies, by command.
    pub command_schemas: HashMap<CommandName, JsonSchema>,
    /// Compiled schemas of event data, by type.
    pub event_schemas: HashMap<EventType, JsonSchema>,
}

/// A version of an aggregate whose module and schemas may not have been looked at yet.
pub struct DeferredFunction {
    spec: AggregateSpec,
    function: Deferred<Arc<AggregateFunction>>,
}

impl DeferredFunction {
    pub(crate) fn new(spec: AggregateSpec, make: Make<Arc<AggregateFunction>>) -> Self {
        Self { spec, function: Deferred::new(make) }
    }

    /// Its manifest entry.
    pub(crate) fn spec(&self) -> &AggregateSpec {
        &self.spec
    }

    /// The function, if it has been made.
    pub(crate) fn made(&self) -> Option<&Arc<AggregateFunction>> {
        self.function.made()
    }

    /// The function, made now if it was not.
    pub(crate) async fn get(&self) -> Result<Arc<AggregateFunction>, CommandErrorKind> {
        self.function.get().await.map_err(CommandErrorKind::Unavailable)
    }
}

impl From<AggregateFunction> for DeferredFunction {
    fn from(function: AggregateFunction) -> Self {
        Self { spec: function.spec.clone(), function: Deferred::of(Arc::new(function)) }
    }
}

/// The empty body.
const EMPTY_OBJECT: Bytes = Bytes::from_static(b"{}");

impl AggregateFunction {
    /// Checks a command's name and body against the manifest; gives the body that the module gets.
    ///
    /// # Errors
    /// No such command, not JSON, or not what the schema wants.
    pub fn validate(&self, command: &str, data: Bytes) -> Result<(CommandName, Bytes), CommandErrorKind> {
        let Some((name, _)) = self.spec.commands.get_key_value(command.as_bytes()) else {
            return Err(CommandErrorKind::UnknownCommand {
                aggregate: self.spec.name.to_string(),
                command: command.chars().take(80).collect(),
                known: list(self.spec.commands.keys()),
            });
        };
        let data = if data.is_empty() { EMPTY_OBJECT } else { data };
        match self.command_schemas.get(name) {
            Some(schema) => drop(schema.validate(&data).map_err(body_error)?),
            None => {
                serde_json::from_slice::<serde::de::IgnoredAny>(&data)
                    .map_err(|error| CommandErrorKind::NotJson(error.to_string()))?;
            }
        }
        Ok((name.clone(), data))
    }

    /// Turns what the module decided into an outcome, holding it to what the manifest declares.
    ///
    /// # Errors
    /// An undeclared type, data that is not what was declared, or too much of it.
    pub fn outcome(&self, decision: Decision) -> Result<Outcome, CommandErrorKind> {
        match decision {
            Decision::Refused(refusal) => Ok(Outcome::Refused(bounded(refusal))),
            Decision::Events(events) => {
                check_size(&events)?;
                events
                    .into_iter()
                    .map(|event| self.new_event(event))
                    .collect::<Result<_, _>>()
                    .map(Outcome::Events)
            }
        }
    }

    fn new_event(&self, decided: DecidedEvent) -> Result<NewEvent, CommandErrorKind> {
        let declared = self.spec.events.get_key_value(decided.event_type.as_bytes());
        let Some((event_type, spec)) = declared else {
            return Err(CommandErrorKind::UndeclaredEvent {
                event_type: decided.event_type.chars().take(80).collect(),
                aggregate: self.spec.name.to_string(),
            });
        };
        let checked = match self.event_schemas.get(event_type) {
            Some(schema) => schema.validate(&decided.data).map(drop).map_err(|problem| problem.to_string()),
            None => serde_json::from_slice::<serde::de::IgnoredAny>(&decided.data)
                .map(drop)
                .map_err(|error| format!("not JSON: {error}")),
        };
        checked.map_err(|problem| CommandErrorKind::InvalidEvent {
            event_type: event_type.to_string(),
            problem,
        })?;
        Ok(NewEvent {
            event_type: event_type.clone(),
            schema_version: spec.version,
            data: decided.data,
            content_type: event::JSON,
        })
    }

    /// Whether this version understands a snapshot: its own, or one of the same declared `state-version`.
    #[must_use]
    pub fn understands(&self, snapshot: &Snapshot) -> bool {
        snapshot.module == self.digest
            || (self.spec.state_version.is_some() && snapshot.state_version == self.spec.state_version)
    }
}

/// Names as people read them: `open, deposit`.
pub(crate) fn list<T: AsRef<str>>(names: impl Iterator<Item = T>) -> String {
    let names: Vec<_> = names.map(|name| name.as_ref().to_owned()).collect();
    if names.is_empty() { "none".into() } else { names.join(", ") }
}

fn body_error(problem: InvalidBody) -> CommandErrorKind {
    match problem {
        InvalidBody::NotJson(why) => CommandErrorKind::NotJson(why),
        InvalidBody::Violations(violations) => CommandErrorKind::SchemaViolation(violations),
        problem @ InvalidBody::TooComplex { .. } => {
            let message = problem.to_string();
            CommandErrorKind::SchemaViolation(vec![Violation { pointer: String::new(), message }])
        }
    }
}

fn check_size(events: &[DecidedEvent]) -> Result<(), CommandErrorKind> {
    if events.len() > cap::COMMIT_EVENTS {
        return Err(too_large(format!("{} events, the limit is {}", events.len(), cap::COMMIT_EVENTS)));
    }
    if let Some(event) = events.iter().find(|event| event.data.len() > cap::EVENT_BYTES) {
        let (kind, size) = (&event.event_type, event.data.len());
        return Err(too_large(format!(
            "a `{kind}` event of {size} bytes, the limit is {}",
            cap::EVENT_BYTES
        )));
    }
    let total: usize = events.iter().map(|event| event.data.len()).sum();
    if total > cap::COMMIT_BYTES {
        return Err(too_large(format!("{total} bytes of events, the limit is {}", cap::COMMIT_BYTES)));
    }
    Ok(())
}

fn too_large(what: String) -> CommandErrorKind {
    CommandErrorKind::OutputTooLarge(what)
}

/// A refusal is kept with its commit and goes out in headers and logs: its texts are cut where they are absurd.
fn bounded(refusal: Refusal) -> Refusal {
    let cut = |text: ebb_domain::text::Text, limit: usize| match text.char_indices().nth(limit) {
        Some((end, _)) => text[..end].into(),
        None => text,
    };
    Refusal {
        code: cut(refusal.code, 128),
        message: cut(refusal.message, 4096),
        details: refusal.details.filter(|details| {
            details.len() <= 64 << 10 && serde_json::from_slice::<serde::de::IgnoredAny>(details).is_ok()
        }),
    }
}
