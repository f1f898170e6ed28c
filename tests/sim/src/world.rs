//! What outlives a node: its disk, its clients, its readers, what they have been told, and what has happened.

use crate::dice::Dice;
use crate::invariants::{Seen, Told, Try};
use ebb_app::testing::{ManualClock, MemoryModels};
use ebb_domain::event::Position;
use ebb_domain::port::storage::{Snapshot, Snapshots};
use ebb_domain::stream::StreamId;
use ebb_store::testing::ModelDisk;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// How often what happened.
pub type Stats = BTreeMap<&'static str, u64>;

/// What a client wants done, whatever becomes of its first tries.
#[derive(Clone, Debug)]
pub(crate) struct Intent {
    pub(crate) token: String,
    pub(crate) stream: u64,
    pub(crate) key: Option<String>,
    pub(crate) if_revision: Option<Option<u64>>,
    pub(crate) command: &'static str,
    pub(crate) data: String,
}

/// A client: it remembers what it does not know the outcome of.
#[derive(Default)]
pub(crate) struct Client {
    pub(crate) commands: u64,
    pub(crate) open: Vec<Intent>,
    pub(crate) answered: Vec<Intent>,
    pub(crate) revisions: BTreeMap<u64, u64>,
}

pub(crate) struct World {
    pub(crate) dice: Dice,
    pub(crate) disk: ModelDisk,
    pub(crate) models: Arc<MemoryModels>,
    pub(crate) snapshots: Arc<KeptSnapshots>,
    pub(crate) clock: Arc<ManualClock>,
    /// Whether the projection fails on bad events, and for no reason.
    pub(crate) broken: Arc<AtomicBool>,
    pub(crate) shaky: Arc<AtomicBool>,
    pub(crate) clients: Vec<Mutex<Client>>,
    pub(crate) readers: Vec<Mutex<Vec<Seen>>>,
    pub(crate) tries: Mutex<Vec<Try>>,
    pub(crate) skipped: Mutex<BTreeSet<u64>>,
    pub(crate) violations: Mutex<Vec<String>>,
    pub(crate) stats: Mutex<Stats>,
    trace: Mutex<DefaultHasher>,
    /// Of this seed: how many streams, how large events are.
    pub(crate) streams: u64,
    pub(crate) padding: u64,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let dice = Dice::new(seed);
        let (clients, readers) = (dice.roll(2..7), dice.roll(1..3));
        Self {
            disk: ModelDisk::new(),
            models: Arc::default(),
            snapshots: Arc::default(),
            clock: Arc::default(),
            broken: Arc::new(AtomicBool::new(dice.chance(50))),
            shaky: Arc::new(AtomicBool::new(dice.chance(50))),
            clients: (0..clients).map(|_| Mutex::default()).collect(),
            readers: (0..readers).map(|_| Mutex::default()).collect(),
            tries: Mutex::default(),
            skipped: Mutex::default(),
            violations: Mutex::default(),
            stats: Mutex::default(),
            trace: Mutex::default(),
            streams: dice.roll(1..6),
            // Some worlds fill segments.
            padding: if dice.chance(15) { 30_000 } else { 20 },
            dice,
        }
    }

    pub(crate) fn count(&self, what: &'static str) {
        *self.stats.lock().entry(what).or_default() += 1;
        what.hash(&mut *self.trace.lock());
    }

    /// Something that a run of the same seed must repeat.
    pub(crate) fn trace(&self, what: impl std::hash::Hash) {
        what.hash(&mut *self.trace.lock());
    }

    pub(crate) fn traced(&self) -> u64 {
        self.trace.lock().finish()
    }

    pub(crate) fn violation(&self, what: String) {
        self.violations.lock().push(what);
    }

    /// Notes a try before it is made: without an answer its outcome is unknown.
    pub(crate) fn asks(&self, intent: &Intent) -> usize {
        let mut tries = self.tries.lock();
        tries.push(Try {
            token: intent.token.clone(),
            stream: format!("account-{}", intent.stream),
            key: intent.key.clone(),
            if_revision: intent.if_revision,
            told: Told::Unknown,
            premise: None,
        });
        tries.len() - 1
    }

    pub(crate) fn told(&self, attempt: usize, told: &Told, premise: Option<u64>) {
        self.count(match told {
            Told::Accepted { .. } => "answers: accepted",
            Told::Refused { .. } => "answers: refused",
            Told::Conflict => "answers: conflict",
            Told::KeyReused => "answers: key reused",
            Told::NothingDone => "answers: nothing done",
            Told::Unknown => "answers: outcome unknown",
        });
        let attempt = &mut self.tries.lock()[attempt];
        (attempt.told, attempt.premise) = (told.clone(), premise);
    }

    pub(crate) fn seen(&self, reader: usize, position: Position, id: String) {
        self.readers[reader].lock().push(Seen { position: position.0, id });
    }
}

/// Snapshots that a crash may lose.
#[derive(Default)]
pub(crate) struct KeptSnapshots(Mutex<BTreeMap<String, Snapshot>>);

impl KeptSnapshots {
    pub(crate) fn lose(&self) {
        self.0.lock().clear();
    }
}

impl Snapshots for KeptSnapshots {
    fn get(&self, stream: &StreamId) -> Option<Snapshot> {
        self.0.lock().get(stream.as_str()).cloned()
    }

    fn put(&self, stream: &StreamId, snapshot: Snapshot) {
        self.0.lock().insert(stream.as_str().to_owned(), snapshot);
    }
}
