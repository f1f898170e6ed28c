//! A simulation of the parts that keep the promises, in one thread, with every crash and fault from a seed.
//!
//! The command path, the projector, the log and its indexes are the real ones. What is around them is not: a disk that
//! knows written from durable, and loses, tears and reorders what is not; guests that dawdle, get lost and fail; clients
//! that try again, or don't; an operator on whose watch the disk fills up, syncs fail and the clock goes back. Time is
//! virtual. A node lives until its power goes, in the middle of any call of the disk, or until it is told to end; the
//! next one finds what was durable. At the end everything is checked against the [`invariants`].
//!
//! [`run`] of the same seed does the same things; but for one choice that is tokio's, unless it is built as `scripts/simulate`
//! does: in which order those wake up who wait for the same `watch`. So without that a seed that broke a promise may take
//! some runs to break it again.

mod actors;
mod dice;
mod guest;
pub mod invariants;
mod life;
mod power;
mod world;

pub use world::Stats;

use dice::Dice;
use ebb_domain::event::Position;
use ebb_domain::port::log::{EventFilter, ReadLimits};
use ebb_store::testing::{Crash, ModelDisk, SteppedLog};
use invariants::History;
use life::Ending;
use parking_lot::Mutex;
use power::{Power, PoweredDisk};
use std::path::Path;
use std::sync::Arc;
use world::World;

/// Where the log lies on the model disk.
const FOLDER: &str = "log";

/// What became of a seed.
#[derive(Debug)]
pub struct Outcome {
    /// Promises that were broken: none, one hopes.
    pub violations: Vec<String>,
    /// How often what happened.
    pub stats: Stats,
    /// A digest of what happened, in its order.
    pub trace: u64,
}

/// What became of many seeds.
#[derive(Debug, Default)]
pub struct Total {
    /// Seeds that broke a promise.
    pub broken: Vec<u64>,
    /// How often what happened in all of them.
    pub stats: Stats,
}

/// Runs seeds side by side, each in one thread, and tells of those that broke a promise.
///
/// # Panics
/// The simulation itself is wrong.
pub fn run_all(seeds: impl Iterator<Item = u64> + Send, broke: impl Fn(u64, &[String]) + Sync) -> Total {
    let (seeds, total) = (Mutex::new(seeds), Mutex::new(Total::default()));
    let next = || seeds.lock().next();
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(seed) = next() {
                    let outcome = run(seed);
                    if !outcome.violations.is_empty() {
                        broke(seed, &outcome.violations);
                        total.lock().broken.push(seed);
                    }
                    let stats = &mut total.lock().stats;
                    outcome.stats.iter().for_each(|(what, times)| *stats.entry(what).or_default() += times);
                }
            });
        }
    });
    total.into_inner()
}

/// Runs the world of this seed to its end, and checks it.
///
/// # Panics
/// The simulation itself is wrong.
#[must_use]
pub fn run(seed: u64) -> Outcome {
    let world = Arc::new(World::new(seed));
    let mut index = Indexes::new(&world.dice);
    let lives = world.dice.roll(2..6);
    for life in 0..lives {
        world.trace(life);
        match life::live(&world, index.current()) {
            Ending::Stopped => world.count("lives that were told to end"),
            Ending::Crashed => {
                world.count("crashes");
                // Killed alone, or with the machine: the system's cache survives the first.
                if world.dice.chance(25) {
                    world.count("crashes of the process alone");
                } else {
                    crash(&world);
                }
                index.crash();
            }
            Ending::NotOpened(why) => {
                world.count("logs not opened for a sync that failed");
                if why.contains("damaged") {
                    world.violation(format!("the log was not opened: {why}"));
                }
            }
        }
        if world.dice.chance(25) {
            flip_a_bit(&world);
        }
    }
    let history = match life::end(&world, index.current()) {
        Ok(history) => history,
        Err(why) => {
            world.violation(format!("the log was not opened at the end: {why}"));
            History::default()
        }
    };
    let mut violations = std::mem::take(&mut *world.violations.lock());
    if violations.is_empty() {
        violations = invariants::check(&history);
    }
    let mut stats = world.stats.lock().clone();
    stats.insert("events", history.events.len() as u64);
    stats.insert("lives", lives + 1);
    Outcome { violations, stats, trace: world.traced() }
}

/// What a cut of the power leaves.
fn crash(world: &World) {
    let dice = &world.dice;
    // One crash keeps most of what was not synced, another little of it.
    let (keep, tear) = (dice.roll(0..101), dice.roll(0..20));
    let (mut kept, mut lost) = (0, 0);
    world.disk.crash(|_, _, bytes| {
        if dice.chance(tear) {
            lost += 1;
            Crash::Tear(dice.index(bytes.len() + 1))
        } else if dice.chance(keep) {
            kept += 1;
            Crash::Keep
        } else {
            lost += 1;
            Crash::Lose
        }
    });
    match (kept, lost) {
        (0, 0) => {}
        (0, _) => world.count("crashes that lost all that was not synced"),
        (_, 0) => world.count("crashes that kept all that was not synced"),
        _ => world.count("crashes that tore what was not synced"),
    }
    world.models.cut_power(|most| dice.roll(0..most as u64 + 1) as usize);
    if dice.chance(50) {
        world.snapshots.lose();
    }
}

/// Flips a bit in a copy of the log that nobody is writing: it then refuses to open, or to be read, or gives what was
/// there before.
fn flip_a_bit(world: &World) {
    let copy = world.disk.copy();
    // Opening leaves a group behind those with data, and closing another: what is flipped is not the last.
    let Ok(expected) = read_all(&copy) else { return };
    let files = copy.files();
    let Some(path) = files.get(world.dice.index(files.len())) else { return };
    let used = copy.bytes(path).iter().rposition(|byte| *byte != 0).unwrap_or(0);
    let (byte, bit) = (world.dice.index(used + 1), world.dice.roll(0..8));
    copy.tamper(path, |bytes| bytes[byte] ^= 1 << bit);
    match read_all(&copy) {
        Err(_) => world.count("flipped bits that were refused"),
        Ok(read) if read == expected => world.count("flipped bits that changed nothing"),
        Ok(_) => world.violation(format!("bit {bit} of byte {byte} of {} was read as data", path.display())),
    }
}

/// Opens a copy of the log, and reads all of it.
fn read_all(disk: &ModelDisk) -> Result<Vec<(u64, String)>, String> {
    let power = Power::new(None, Dice::new(0));
    let disk = Arc::new(PoweredDisk { disk: disk.clone(), power });
    let clock = Arc::new(ebb_app::testing::ManualClock::default());
    let log = SteppedLog::open(disk, Path::new(FOLDER), &database(), clock, 100).map_err(|error| error.0)?;
    let runtime = life::runtime(&Dice::new(0));
    runtime.block_on(async {
        let (log, mut at, mut all) = (log.log(), Position::START, Vec::new());
        loop {
            let batch = log.read(at, &EventFilter::default(), ReadLimits::PAGE).await;
            let batch = batch.map_err(|error| error.to_string())?;
            if batch.scanned_to == at {
                return Ok(all);
            }
            all.extend(batch.events.iter().map(|event| (event.position.0, event.id().to_string())));
            at = batch.scanned_to;
        }
    })
}

/// Indexes as crashes leave them: as they were, older, or gone.
struct Indexes {
    dice: Dice,
    current: sled::Db,
    older: Option<sled::Db>,
}

impl Indexes {
    fn new(dice: &Dice) -> Self {
        Self { dice: dice.fork(), current: database(), older: None }
    }

    fn current(&self) -> &sled::Db {
        &self.current
    }

    fn crash(&mut self) {
        match self.dice.roll(0..10) {
            0 => self.current = database(),
            1 => {
                if let Some(older) = self.older.take() {
                    self.current = older;
                }
            }
            2 => {
                let copy = database();
                copy.import(self.current.export());
                self.older = Some(copy);
            }
            _ => {}
        }
    }
}

fn database() -> sled::Db {
    let config = sled::Config::new().temporary(true).flush_every_ms(None).cache_capacity(1 << 20);
    config.open().expect("a temporary database")
}
