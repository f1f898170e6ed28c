//! Guests of the simulation: an aggregate that counts its events and tells so in each one that it decides, and a
//! projection that writes down which events it was given.

use crate::dice::Dice;
use bytes::Bytes;
use ebb_app::testing::{Fault, ScriptedProjection};
use ebb_domain::commit::Refusal;
use ebb_domain::event::StoredEvent;
use ebb_domain::model::{ColumnType, ModelSchema, Value};
use ebb_domain::name::{ColumnName, ModelName};
use ebb_domain::port::Future;
use ebb_domain::port::guest::{
    Aggregate, CallError, CommandModule, DecidedEvent, Decision, GuestCommand, Lack, PastEvent,
};
use ebb_domain::port::models::Rows;
use ebb_domain::stream::StreamId;
use serde_json::{Value as Json, json};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The manifest of the simulated app.
pub(crate) const MANIFEST: &str = r#"
[app]
name = "sim"

[aggregate.account]
module = "account.wasm"
commands = { put = {}, pair = {}, refuse = {}, least = {}, nothing = {}, trap = {} }
events = { Put = {} }
snapshot-every = 5
"#;

/// The model, a row a stream; and the row of all streams.
pub(crate) const MODEL: &str = "rows";
pub(crate) const ALL: &str = "*";

/// An aggregate module that is slow, lost or crowded out now and then.
pub(crate) struct Counters(pub(crate) Dice);

struct Counter {
    dice: Dice,
    folded: u64,
    chain: u64,
}

/// The state behind an event: as many numbers fold to it as there are histories, so that a wrong one shows.
pub(crate) fn fold(chain: u64, token: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (chain, token).hash(&mut hasher);
    hasher.finish()
}

async fn dawdle(dice: &Dice) {
    if dice.chance(30) {
        tokio::time::sleep(Duration::from_millis(dice.roll(0..4))).await;
    }
}

impl CommandModule for Counters {
    fn open<'a>(
        &'a self,
        _: &'a StreamId,
        snapshot: Option<Bytes>,
    ) -> Future<'a, Result<Box<dyn Aggregate>, CallError>> {
        Box::pin(async move {
            dawdle(&self.0).await;
            if self.0.chance(1) {
                return Err(CallError::Overloaded {
                    lack: Lack::Slots(1),
                    retry_after: Duration::from_secs(1),
                });
            }
            let state = snapshot.map_or(Ok((0, 0)), |bytes| serde_json::from_slice(&bytes));
            let (folded, chain) = state.map_err(|error| CallError::BadSnapshot(error.to_string()))?;
            Ok(Box::new(Counter { dice: self.0.clone(), folded, chain }) as Box<dyn Aggregate>)
        })
    }
}

impl Aggregate for Counter {
    fn apply<'a>(&'a mut self, events: &'a [PastEvent]) -> Future<'a, Result<(), CallError>> {
        Box::pin(async move {
            dawdle(&self.dice).await;
            if self.dice.chance(1) {
                return Err(CallError::InstanceLost);
            }
            for event in events {
                let data: Json = serde_json::from_slice(&event.data).expect("the simulation writes JSON");
                self.chain = fold(self.chain, data["token"].as_str().unwrap_or_default());
                self.folded += 1;
            }
            Ok(())
        })
    }

    fn decide<'a>(&'a mut self, command: &'a GuestCommand) -> Future<'a, Result<Decision, CallError>> {
        Box::pin(async move {
            dawdle(&self.dice).await;
            if self.dice.chance(1) {
                return Err(CallError::InstanceLost);
            }
            let asked: Json = serde_json::from_slice(&command.data).expect("the simulation sends JSON");
            let events = |count: u64| {
                let mut chain = self.chain;
                let event = |on: u64| {
                    let before = chain;
                    chain = fold(chain, asked["token"].as_str().unwrap_or_default());
                    let pad = "x".repeat(asked["pad"].as_u64().unwrap_or_default() as usize);
                    let (token, bad) = (&asked["token"], &asked["bad"]);
                    let data = json!({ "token": token, "on": on, "chain": before, "bad": bad, "pad": pad });
                    DecidedEvent { event_type: "Put".into(), data: data.to_string().into() }
                };
                Ok(Decision::Events((self.folded..self.folded + count).map(event).collect()))
            };
            let refuse = |code: &str| {
                let message = format!("after {} events", self.folded).as_str().into();
                let details = Some(self.folded.to_string().into());
                Ok(Decision::Refused(Refusal { code: code.into(), message, details }))
            };
            match &*command.name {
                "pair" => events(2),
                "refuse" => refuse("never"),
                "least" if self.folded < 5 => refuse("too_few"),
                "nothing" => events(0),
                "trap" => Err(CallError::Trapped("as asked".into())),
                _ => events(1),
            }
        })
    }

    fn snapshot(&mut self) -> Future<'_, Result<Option<Bytes>, CallError>> {
        Box::pin(async move { Ok(Some(json!([self.folded, self.chain]).to_string().into())) })
    }
}

fn column(name: &str) -> ColumnName {
    ColumnName::new(name).expect("a name")
}

/// The model's schema.
pub(crate) fn model() -> ModelSchema {
    let columns =
        [("stream", ColumnType::Text), ("positions", ColumnType::Text), ("count", ColumnType::Integer)];
    ModelSchema {
        name: ModelName::new(MODEL).expect("a name"),
        key: column("stream"),
        columns: columns.map(|(name, of)| (column(name), of)).into(),
        indexes: Vec::new(),
    }
}

/// Positions in a row's column, as the projection writes them.
pub(crate) fn positions(row: &ebb_domain::model::Row) -> Vec<u64> {
    match row.get(&column("positions")) {
        Some(Value::Text(text)) => text.split(' ').filter_map(|position| position.parse().ok()).collect(),
        _ => Vec::new(),
    }
}

/// The count in the row of all streams.
pub(crate) fn count(row: &ebb_domain::model::Row) -> u64 {
    match row.get(&column("count")) {
        Some(Value::Integer(count)) => *count as u64,
        _ => 0,
    }
}

/// A projection that fails on events marked `bad` while `broken`, and for no reason now and then while `shaky`.
pub(crate) fn projection(
    dice: Dice,
    broken: Arc<AtomicBool>,
    shaky: Arc<AtomicBool>,
) -> Arc<ScriptedProjection> {
    ScriptedProjection::new(move |event: &StoredEvent, rows: &mut dyn Rows| {
        if shaky.load(Ordering::SeqCst) && dice.chance(2) {
            return Err(Fault::Ends(match dice.roll(0..3) {
                0 => CallError::Trapped("for no reason".into()),
                1 => CallError::Overloaded { lack: Lack::Slots(1), retry_after: Duration::from_millis(5) },
                _ => CallError::InstanceLost,
            }));
        }
        let data: Json = serde_json::from_slice(&event.data).expect("the simulation writes JSON");
        let key = event.stream().key().to_owned();
        let before = match rows.get(MODEL, &key)? {
            Some(row) => row.get(&column("positions")).cloned(),
            None => None,
        };
        let text = match before {
            Some(Value::Text(text)) => format!("{text} {}", event.position),
            _ => event.position.to_string(),
        };
        rows.put(MODEL, &key, vec![("positions".into(), Value::Text(text.as_str().into()))])?;
        rows.add(MODEL, ALL, "count", 1)?;
        // Behind its writes: what it wrote before it failed must not stay.
        if data["bad"] == true && broken.load(Ordering::SeqCst) {
            return Err(Fault::Fails("bad, and not mended yet".into()));
        }
        Ok(())
    })
}
