//! The rules of projections, told as stories over fakes of the log, the rows and the module.

mod direct;
mod effects;
mod failures;
mod lanes;
mod loops;
mod overlay;
mod versions;

use super::*;
use crate::testing::{Fault, ManualClock, MemoryLog, MemoryModels, ProjectionEngine, ScriptedProjection};
use ebb_domain::event::{Position, StoredEvent};
use ebb_domain::limits::{InstancePolicy, Limits};
use ebb_domain::manifest::{Batch, LaneBy, ProjectionSpec, Retry, Source};
use ebb_domain::model::{ColumnType, ModelSchema, Value};
use ebb_domain::name::{AppName, ColumnName, ModelName, ProjectionName};
use ebb_domain::port::guest::{CallError, Lack};
use ebb_domain::port::models::Rows;
use ebb_domain::text::Text;
use serde_json::json;
use std::collections::BTreeSet;
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const LONG: Duration = Duration::from_secs(3600);

/// A bank: accounts with balances, and a module that breaks on some events while it is told to.
struct Bank {
    log: Arc<MemoryLog>,
    models: Arc<MemoryModels>,
    engine: Arc<ProjectionEngine>,
    module: Arc<ScriptedProjection>,
    /// Whether events of type `Bad` fail, `Trap` trap and `Crowded` find no instance, and `Panics`
    /// meet a bug of ours.
    broken: Arc<AtomicBool>,
    spec: ProjectionSpec,
    projections: Projections,
}

impl Bank {
    fn open() -> Self {
        Self::open_with(|_| {})
    }

    /// A bank whose projection is not deployed yet.
    fn open_with(change: impl FnOnce(&mut ProjectionSpec)) -> Self {
        let broken = Arc::new(AtomicBool::new(true));
        let module = bank_module(broken.clone());
        let (log, models, engine) = (
            Arc::new(MemoryLog::default()),
            Arc::<MemoryModels>::default(),
            Arc::<ProjectionEngine>::default(),
        );
        engine.provide("bank", module.clone());
        let mut spec = spec();
        change(&mut spec);
        let projections = projections(&log, &models, &engine);
        Self { log, models, engine, module, broken, spec, projections }
    }

    async fn deployed(self) -> Self {
        self.deploy("bank").await;
        self
    }

    fn deployment(&self, module: &str) -> ProjectionDeployment {
        let module = ebb_domain::digest::Digest::of(module.as_bytes());
        ProjectionDeployment {
            spec: self.spec.clone(),
            module,
            models: vec![balances()],
            topics: Default::default(),
            effects: None,
        }
    }

    async fn deploy(&self, module: &str) {
        self.projections.deploy(vec![self.deployment(module)]).await.unwrap();
    }

    /// The process ends and comes back: only logs, rows and modules are left.
    async fn restarted(mut self) -> Self {
        self.projections.shutdown().await;
        self.projections = projections(&self.log, &self.models, &self.engine);
        self
    }

    fn fix(&self) {
        self.broken.store(false, Ordering::SeqCst);
    }

    /// Adds to an account.
    fn add(&self, account: &str, by: i64) -> Position {
        self.log.given(&format!("account-{account}"), "Added", &json!({ "by": by }))
    }

    fn event(&self, account: &str, event_type: &str) -> Position {
        self.log.given(&format!("account-{account}"), event_type, &json!({ "by": 1 }))
    }

    fn reader(&self) -> ModelReader {
        self.projections.model(&balances().name).unwrap()
    }

    /// The balance of an account; none if it has no row.
    fn balance(&self, account: &str) -> Option<i64> {
        let (_, row) = self.reader().get_at(account).unwrap();
        match row?.get(&column("balance")) {
            Some(Value::Integer(number)) => Some(*number),
            other => panic!("a balance that is {other:?}"),
        }
    }

    /// Waits until the projection has passed all that is in the log.
    async fn caught_up(&self) {
        let end = self.log.events().last().map_or(Position::START, |event| event.position);
        self.reader().wait_for(end, LONG).await.unwrap();
    }

    fn status(&self) -> ProjectionStatus {
        self.projections.status().remove(0)
    }

    fn state(&self) -> State {
        self.status().serving.state
    }

    /// Waits, in virtual time, until something is so.
    async fn until(&self, what: &str, so: impl Fn(&Self) -> bool) {
        for _ in 0..10_000 {
            if so(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("never happened: {what}; {:#?}", self.projections.status());
    }

    async fn parked_keys(&self) -> Vec<(String, Position, u64)> {
        let parked = self.projections.parked(&name(), None, 100).await.unwrap();
        parked.into_iter().map(|parked| (parked.key.to_string(), parked.position, parked.queued)).collect()
    }
}

fn projections(
    log: &Arc<MemoryLog>,
    models: &Arc<MemoryModels>,
    engine: &Arc<ProjectionEngine>,
) -> Projections {
    Projections::start(ProjectionDeps {
        bus: None,
        app: AppName::new("bank").unwrap(),
        own_app: std::sync::Weak::new(),
        log: log.clone(),
        engine: engine.clone(),
        stores: models.clone(),
        clock: Arc::new(ManualClock::default()),
    })
}

fn name() -> ProjectionName {
    ProjectionName::new("balances").unwrap()
}

fn column(name: &str) -> ColumnName {
    ColumnName::new(name).unwrap()
}

fn balances() -> ModelSchema {
    let columns = [
        ("account", ColumnType::Text),
        ("balance", ColumnType::Integer),
        ("note", ColumnType::Text),
        ("rate", ColumnType::Real),
    ];
    ModelSchema {
        name: ModelName::new("balances").unwrap(),
        key: column("account"),
        columns: columns.map(|(name, kind)| (column(name), kind)).into(),
        indexes: Vec::new(),
    }
}

fn spec() -> ProjectionSpec {
    let retry = Retry {
        attempts: NonZeroU32::new(3).unwrap(),
        backoff: Duration::from_millis(100),
        max_backoff: Duration::from_secs(10),
        max_age: None,
    };
    ProjectionSpec {
        name: name(),
        module: "bank.wasm".into(),
        models: BTreeSet::from([balances().name]),
        source: Source::Log { aggregates: BTreeSet::new(), types: BTreeSet::new() },
        batch: Batch { max_events: NonZeroUsize::new(10).unwrap(), max_wait: Duration::ZERO },
        lanes: NonZeroUsize::MIN,
        lane_by: LaneBy::Stream,
        dead_letter: None,
        retry,
        max_parked: ProjectionSpec::DEFAULT_MAX_PARKED,
        limits: Limits::PROJECTION,
        instances: InstancePolicy::default(),
    }
}

/// `Added {by}` adds, `Set {to}` writes, `Doubled` reads and writes, `Closed` deletes, `Paid {to, by}` adds to two,
/// `Copied {from}` reads one and writes another, `Settled {to, by}` adds to one and writes what it then sees to another.
fn bank_module(broken: Arc<AtomicBool>) -> Arc<ScriptedProjection> {
    ScriptedProjection::new(move |event, rows| {
        let broken = broken.load(Ordering::SeqCst);
        match &*event.event_type {
            // What it wrote before it failed must not stay.
            "Bad" if broken => {
                rows.put(
                    "balances",
                    event.stream().key(),
                    vec![("note".into(), Value::Text("half".into()))],
                )?;
                Err(Fault::Fails(format!("no {}", event.position)))
            }
            "Trap" if broken => {
                Err(Fault::Ends(CallError::Trapped(format!("unreachable at {}", event.position))))
            }
            "Crowded" if broken => Err(Fault::Ends(CallError::Overloaded {
                lack: Lack::Slots(1),
                retry_after: Duration::from_secs(1),
            })),
            "Panics" if broken => panic!("a bug in the engine"),
            _ => apply(event, rows),
        }
    })
}

fn apply(event: &StoredEvent, rows: &mut dyn Rows) -> Result<(), Fault> {
    let key = event.stream().key();
    let data = event.json().unwrap();
    let number = |name: &str| data[name].as_i64().unwrap();
    let balance = |rows: &mut dyn Rows, key: &str| -> Result<Option<i64>, Fault> {
        Ok(rows.get("balances", key)?.map(|row| match row.get(&column("balance")) {
            Some(Value::Integer(number)) => *number,
            _ => 0,
        }))
    };
    let write = |rows: &mut dyn Rows, key: &str, balance: i64| {
        rows.put("balances", key, vec![("balance".into(), Value::Integer(balance))])
    };
    match &*event.event_type {
        "Set" => write(rows, key, number("to"))?,
        "Doubled" => {
            let before = balance(rows, key)?.unwrap_or(1);
            write(rows, key, before.wrapping_mul(2) % 1_000_003)?;
        }
        "Closed" => rows.delete("balances", key)?,
        "Paid" => {
            let to = data["to"].as_str().unwrap();
            rows.add("balances", key, "balance", -number("by"))?;
            rows.add("balances", to, "balance", number("by"))?;
        }
        "Copied" => {
            let from = balance(rows, data["from"].as_str().unwrap())?.unwrap_or(-1);
            write(rows, key, from)?;
        }
        "Settled" => {
            let to = data["to"].as_str().unwrap();
            rows.add("balances", to, "balance", number("by"))?;
            let seen = balance(rows, to)?.unwrap_or(-1);
            write(rows, key, seen)?;
        }
        "Misspelt" => rows.add("balances", key, "balence", 1)?,
        _ => rows.add("balances", key, "balance", number("by"))?,
    }
    Ok(())
}
