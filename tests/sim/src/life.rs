//! One life of a node, from opening its log to its end.

use crate::FOLDER;
use crate::actors::{Node, model_name, projection_name};
use crate::dice::Dice;
use crate::guest::{self, ALL, Counters, MANIFEST};
use crate::invariants::{Event, History, Projection, Recorded, Told};
use crate::power::{Power, PoweredDisk};
use crate::world::World;
use ebb_app::commands::{AggregateFunction, CommandService};
use ebb_app::projections::{ProjectionDeployment, ProjectionDeps, Projections};
use ebb_app::testing::ProjectionEngine;
use ebb_domain::commit::CommandId;
use ebb_domain::digest::Digest;
use ebb_domain::event::{Position, StoredEvent};
use ebb_domain::limits::{InstancePolicy, Limits};
use ebb_domain::manifest::{Batch, LaneBy, Manifest, ProjectionSpec, Retry, Source};
use ebb_domain::name::AppName;
use ebb_domain::port::log::{EventFilter, ReadLimits};
use ebb_store::testing::SteppedLog;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::task::JoinHandle;

/// How a life ended.
pub(crate) enum Ending {
    Crashed,
    Stopped,
    /// The log could not be opened, with the power on.
    NotOpened(String),
}

/// Long enough for everything to be done, in virtual time.
const LONG: Duration = Duration::from_secs(3600);

/// One thread, and time that passes when nobody has anything to do.
///
/// tokio wakes those who wait for one `watch` in an order of its own, which a seed decides only where it is built with its
/// unstable options: `scripts/simulate` does that, the suite does not.
pub(crate) fn runtime(dice: &Dice) -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let seed = dice.roll(0..u64::MAX);
    #[cfg(tokio_unstable)]
    builder.rng_seed(tokio::runtime::RngSeed::from_bytes(&seed.to_le_bytes()));
    let _ = seed;
    builder.enable_time().start_paused(true).build().expect("a runtime")
}

/// Lives until the power goes, or the node is told to end.
pub(crate) fn live(world: &Arc<World>, db: &sled::Db) -> Ending {
    let dice = world.dice.fork();
    // The first changes are those of opening, where crashes are as likely as later.
    let most = if dice.chance(25) { 12 } else { 250 };
    let calls = dice.chance(60).then(|| dice.roll(0..most));
    let power = Power::new(calls, dice.fork());
    let runtime = runtime(&dice);
    let ending = runtime.block_on(async {
        let (log, node) = match start(world, db, &power) {
            Ok(started) => started,
            Err(_) if power.is_off() => return Ending::Crashed,
            Err(why) => return Ending::NotOpened(why),
        };
        let syncer = sync(&log, &node, &dice);
        let deployed = node.projections.deploy(vec![(node.deployment)("one")]).await;
        if let Err(error) = deployed
            && !power.is_off()
        {
            world.violation(format!("a projection was not deployed: {error}"));
        }
        let clients: Vec<_> =
            (0..world.clients.len()).map(|at| tokio::spawn(node.clone().client(at, dice.fork()))).collect();
        for at in 0..world.readers.len() {
            tokio::spawn(node.clone().reader(at, dice.fork()));
        }
        tokio::spawn(node.clone().model_reader(dice.fork()));
        tokio::spawn(node.clone().watch());
        let operator = tokio::spawn(node.clone().operator(dice.fork()));
        let life = Duration::from_millis(dice.roll(50..1500));
        tokio::select! {
            biased;
            () = power.gone() => return Ending::Crashed,
            () = tokio::time::sleep(life) => {}
        }
        if dice.chance(30) {
            world.count("crashes between two calls of the disk");
            power.cut();
            return Ending::Crashed;
        }
        let stopped = stop(&node, &log, clients, operator, &syncer);
        tokio::select! {
            biased;
            () = power.gone() => Ending::Crashed,
            stopped = tokio::time::timeout(LONG, stopped) => {
                if stopped.is_err() {
                    world.violation("a node that was told to end never did".into());
                }
                if power.is_off() { Ending::Crashed } else { Ending::Stopped }
            }
        }
    });
    // What the node held goes with it; its disk answers no more, or has been closed.
    if matches!(ending, Ending::Crashed) {
        power.cut();
    }
    drop(runtime);
    world.trace(power.traced());
    world.disk.limit_space(None);
    world.disk.shorten_writes(None);
    world.disk.fail_syncs(0);
    world.models.fail_commits(0);
    ending
}

async fn stop(
    node: &Node,
    log: &Arc<SteppedLog>,
    clients: Vec<JoinHandle<()>>,
    operator: JoinHandle<()>,
    syncer: &JoinHandle<()>,
) {
    node.stopping.store(true, Ordering::SeqCst);
    let _ = operator.await;
    for client in clients {
        let _ = client.await;
    }
    node.commands.close().await;
    node.projections.shutdown().await;
    syncer.abort();
    log.close();
}

/// Writes groups and moves commits to the index, at moments of its own.
fn sync(log: &Arc<SteppedLog>, node: &Node, dice: &Dice) -> JoinHandle<()> {
    let (log, power, dice) = (log.clone(), node.power.clone(), dice.fork());
    tokio::spawn(async move {
        loop {
            // One step, or some without anything between them.
            tokio::time::sleep(Duration::from_millis(dice.roll(0..3))).await;
            for _ in 0..dice.roll(1..6) {
                if power.is_off() || !log.step() {
                    break;
                }
            }
            if dice.chance(40) {
                log.index();
            }
        }
    })
}

fn start(world: &Arc<World>, db: &sled::Db, power: &Power) -> Result<(Arc<SteppedLog>, Node), String> {
    let dice = &world.dice;
    let disk = Arc::new(PoweredDisk { disk: world.disk.clone(), power: power.clone() });
    let group = dice.roll(1..12) as usize;
    let opened = SteppedLog::open(disk, Path::new(FOLDER), db, world.clock.clone(), group);
    let log = Arc::new(opened.map_err(|error| error.0)?);
    if power.is_off() {
        return Err("no power".into());
    }
    let commands = CommandService::new(log.log(), world.snapshots.clone());
    let manifest = Manifest::parse(MANIFEST).expect("the simulation's manifest");
    let spec = manifest.aggregates.values().next().expect("one aggregate").clone();
    commands.deploy(vec![AggregateFunction {
        spec,
        digest: Digest::of(b"account"),
        module: Arc::new(Counters(dice.fork())),
        command_schemas: HashMap::new(),
        event_schemas: HashMap::new(),
    }]);
    let engine = Arc::<ProjectionEngine>::default();
    for version in ["one", "two"] {
        let module = guest::projection(dice.fork(), world.broken.clone(), world.shaky.clone());
        engine.provide(version, module);
    }
    let projections = Projections::start(ProjectionDeps {
        bus: None,
        app: AppName::new("sim").expect("a name"),
        own_app: std::sync::Weak::new(),
        log: log.log(),
        engine,
        stores: world.models.clone(),
        clock: world.clock.clone(),
    });
    let spec = spec_of_projection(dice.roll(1..4) as usize, dice.roll(1..20) as usize);
    let deployment = move |version: &str| ProjectionDeployment {
        spec: spec.clone(),
        module: Digest::of(version.as_bytes()),
        models: vec![guest::model()],
        topics: Default::default(),
        effects: None,
    };
    let node = Node {
        world: world.clone(),
        power: power.clone(),
        log: log.log(),
        commands: Arc::new(commands),
        projections: Arc::new(projections),
        deployment: Arc::new(deployment),
        stopping: Arc::new(AtomicBool::new(false)),
    };
    Ok((log, node))
}

fn spec_of_projection(lanes: usize, batch: usize) -> ProjectionSpec {
    ProjectionSpec {
        name: projection_name(),
        module: "rows.wasm".into(),
        models: BTreeSet::from([model_name()]),
        source: Source::Log { aggregates: BTreeSet::new(), types: BTreeSet::new() },
        batch: Batch {
            max_events: NonZeroUsize::new(batch).unwrap_or(NonZeroUsize::MIN),
            max_wait: Duration::from_millis(5),
        },
        lanes: NonZeroUsize::new(lanes).unwrap_or(NonZeroUsize::MIN),
        lane_by: LaneBy::Stream,
        retry: Retry {
            attempts: NonZeroU32::MIN.saturating_add(2),
            backoff: Duration::from_millis(5),
            max_backoff: Duration::from_millis(50),
            max_age: None,
        },
        dead_letter: None,
        max_parked: 2,
        limits: Limits::PROJECTION,
        instances: InstancePolicy::default(),
    }
}

/// The last life, in which nothing goes wrong any more: every client learns what became of its commands, what is parked
/// is applied, and everything is read.
pub(crate) fn end(world: &Arc<World>, db: &sled::Db) -> Result<History, String> {
    world.broken.store(false, Ordering::SeqCst);
    world.shaky.store(false, Ordering::SeqCst);
    let power = Power::new(None, world.dice.fork());
    let runtime = runtime(&world.dice);
    runtime.block_on(async {
        let (log, node) = start(world, db, &power)?;
        let dice = world.dice.fork();
        let syncer = sync(&log, &node, &dice);
        node.projections.deploy(vec![(node.deployment)("one")]).await.map_err(|error| error.to_string())?;
        for at in 0..world.clients.len() {
            node.settle(at).await;
        }
        for at in 0..world.readers.len() {
            tokio::spawn(node.clone().reader(at, dice.fork()));
        }
        caught_up(&node).await;
        let history = look(&node).await;
        node.stopping.store(true, Ordering::SeqCst);
        node.commands.close().await;
        node.projections.shutdown().await;
        syncer.abort();
        log.close();
        history
    })
}

/// Waits until the projection has passed everything, with nothing parked, and readers have all.
async fn caught_up(node: &Node) {
    let world = &node.world;
    for _ in 0..5000 {
        let status = node.projections.status();
        let status = status.first().expect("one projection");
        let end = node.log.durable().borrow().position;
        let read =
            world.readers.iter().all(|seen| seen.lock().last().map_or(0, |seen| seen.position) == end.0);
        if status.building.is_none() && status.serving.lag == 0 && status.serving.parked == 0 && read {
            return;
        }
        if let Ok(parked) = node.projections.parked(&projection_name(), None, 10).await {
            for parked in parked {
                let _ = node.projections.retry(&projection_name(), &parked.key).await;
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    world.violation(format!("the projection or a reader never caught up: {:?}", node.projections.status()));
}

async fn look(node: &Node) -> Result<History, String> {
    let world = &node.world;
    let (mut at, mut events) = (Position::START, Vec::new());
    let mut chains = BTreeMap::<String, u64>::new();
    loop {
        let batch = node.log.read(at, &EventFilter::default(), ReadLimits::PAGE).await;
        let batch = batch.map_err(|error| error.to_string())?;
        if batch.scanned_to == at {
            break;
        }
        for stored in &batch.events {
            let data: serde_json::Value = stored.json().expect("the simulation writes JSON");
            let chain = chains.entry(stored.stream().to_string()).or_default();
            if data["chain"] != *chain {
                world.violation(format!("position {} was decided on another history", stored.position));
            }
            *chain = guest::fold(*chain, data["token"].as_str().unwrap_or_default());
            events.push(event(stored));
        }
        at = batch.scanned_to;
    }
    let tries = world.tries.lock().clone();
    let mut commands = BTreeMap::new();
    for attempt in &tries {
        let (Told::Accepted { command_id, .. } | Told::Refused { command_id, .. }) = &attempt.told else {
            continue;
        };
        let Ok(id) = command_id.parse().map(CommandId) else { continue };
        match node.log.find_command(id).await.map_err(|error| error.to_string())? {
            Some(commit) => {
                let recorded = match &commit.header.refusal {
                    Some(refusal) => Recorded::Refused(refusal.code.to_string()),
                    None => {
                        Recorded::Accepted(commit.events.iter().map(|event| event.id().to_string()).collect())
                    }
                };
                commands.insert(command_id.clone(), recorded);
            }
            // Only what left nothing behind is not there: a refusal without a key, or nothing without a key.
            None if attempt.key.is_none() => {}
            None => {
                world.violation(format!("`{}` was answered, and the log does not know it", attempt.token));
            }
        }
    }
    let status = node.projections.status();
    let serving = &status.first().expect("one projection").serving;
    let rows = world.models.rows(&serving.version.expect("it runs"));
    let mut streams = BTreeMap::new();
    let (mut applied, mut all) = (0, 0);
    for ((_, key), row) in &rows {
        if &**key == ALL {
            all = guest::count(row);
            continue;
        }
        let positions = guest::positions(row);
        applied += positions.len() as u64;
        streams.insert(format!("account-{key}"), positions);
    }
    if applied != all {
        world.violation(format!("the streams' rows have {applied} events, and the row of all has {all}"));
    }
    Ok(History {
        tries,
        events,
        commands,
        readers: world.readers.iter().map(|seen| seen.lock().clone()).collect(),
        projections: vec![Projection {
            name: "rows".into(),
            mark: serving.mark.0,
            rows: streams,
            parked: BTreeMap::new(),
            may_be_skipped: world.skipped.lock().clone(),
            is_caught_up: serving.lag == 0,
        }],
    })
}

fn event(event: &StoredEvent) -> Event {
    let data: serde_json::Value = serde_json::from_slice(&event.data).expect("the simulation writes JSON");
    Event {
        position: event.position.0,
        stream: event.stream().to_string(),
        revision: event.revision.0,
        id: event.id().to_string(),
        command_id: event.commit.command_id.to_string(),
        token: data["token"].as_str().unwrap_or_default().to_owned(),
        decided_on: data["on"].as_u64(),
        recorded_at: format!("{:020}", event.commit.recorded_at.0),
    }
}
