//! Staging: gives a commit its numbers, or says why not. A short critical section without a wait in it.
//!
//! Commits are staged into the *open* group, while the group before it, *in flight*, is being written. When one group fails,
//! so does the open one, which was decided and numbered on top of it; both are forgotten whole, which is why what they
//! staged lies in maps of their own.

use super::commit_record::{self, Numbers};
use super::format::Reached;
use super::reader::{LookedUp, Memory};
use super::segment::Location;
use crate::index::{Entry, Hash, KEY_LIFE, NotInMemory};
use ebb_domain::commit::{Commit, CommitNumber, Expected, NewCommit, Outcome};
use ebb_domain::digest::Digest;
use ebb_domain::event::{Position, Revision};
use ebb_domain::port::log::{AppendError, GroupSettler, Head, KeyMatch, Settlement, Staged};
use ebb_domain::stream::StreamId;
use ebb_domain::text::Text;
use ebb_domain::time::Timestamp;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

/// A commit with what is known of it before it is staged.
pub(crate) struct Prepared {
    pub(crate) commit: NewCommit,
    pub(crate) key: Option<Hash>,
    pub(crate) origin: Option<(Hash, u64)>,
    /// What durable state said of the key, and of the Kafka record.
    pub(crate) known_key: Option<LookedUp>,
    pub(crate) known_origin: Option<LookedUp>,
}

/// Why a commit was not staged.
pub(crate) enum NotStaged {
    Refused(AppendError),
    /// Something must be looked up first, without the lock.
    LookUp,
}

impl From<AppendError> for NotStaged {
    fn from(error: AppendError) -> Self {
        Self::Refused(error)
    }
}

impl From<NotInMemory> for NotStaged {
    fn from(_: NotInMemory) -> Self {
        Self::LookUp
    }
}

/// The answer from a commit that is durable.
pub(crate) fn durable_match(commit: &Arc<Commit>) -> KeyMatch {
    KeyMatch {
        commit: commit.header.number,
        request: commit.header.idempotency.as_ref().map(|key| key.request).unwrap_or_default(),
        settlement: Settlement::durable(),
        decided: Some(Arc::clone(commit)),
    }
}

impl Prepared {
    pub(crate) fn new(commit: NewCommit) -> Self {
        let (key, origin) = Entry::hashes(commit.idempotency.as_ref(), &commit.actor, commit.origin.as_ref());
        Self { commit, key, origin, known_key: None, known_origin: None }
    }
}

/// What commits of one group have staged, for look-ups.
#[derive(Default)]
pub(crate) struct StagedState {
    heads: HashMap<Text, Revision>,
    keys: HashMap<Hash, StagedKey>,
    origins: HashMap<(Hash, u64), StagedKey>,
}

#[derive(Clone, Copy)]
struct StagedKey {
    commit: CommitNumber,
    request: Digest,
    recorded_at: Timestamp,
}

impl StagedKey {
    fn matched(self, settlement: Settlement) -> KeyMatch {
        KeyMatch { commit: self.commit, request: self.request, settlement, decided: None }
    }
}

/// The group that takes commits.
pub(crate) struct OpenGroup {
    /// Commit records, not sealed yet.
    pub(crate) run: Vec<u8>,
    /// Locations are relative to the run.
    pub(crate) entries: Vec<Entry>,
    state: StagedState,
    settler: GroupSettler,
    settlement: Settlement,
    /// Where the log stood before this group.
    before: Reached,
}

impl OpenGroup {
    fn new(before: Reached, run: Vec<u8>) -> Self {
        let (settler, settlement) = Settlement::pending();
        Self { run, entries: Vec::new(), state: StagedState::default(), settler, settlement, before }
    }
}

/// The group that is being written.
struct InFlight {
    state: StagedState,
    settlement: Settlement,
    before: Reached,
}

/// What the syncer takes away to write.
pub(crate) struct Taken {
    pub(crate) run: Vec<u8>,
    pub(crate) entries: Vec<Entry>,
    pub(crate) settler: GroupSettler,
    /// Where the log stands with this group.
    pub(crate) to: Reached,
}

/// Bounds of a group.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) bytes: usize,
    pub(crate) commits: usize,
}

/// Why nothing is staged now.
enum Blocked {
    No,
    /// The last group could not be written. Until then appends are told so at once, and then one is let through to try.
    Until(Instant, String),
    Poisoned(String),
    Closed,
}

/// Committed and staged state, and the next numbers.
pub(crate) struct Sequencer {
    open: OpenGroup,
    in_flight: Option<InFlight>,
    /// Where the log stands with everything that is staged.
    reached: Reached,
    /// The latest time that anybody was told.
    told: Timestamp,
    bounds: Bounds,
    blocked: Blocked,
    /// Appends that wait for room, in a queue.
    pub(crate) waiting: usize,
    /// A buffer to use again.
    spare: Vec<u8>,
}

impl Sequencer {
    pub(crate) fn new(reached: Reached, bounds: Bounds) -> Self {
        let open = OpenGroup::new(reached, Vec::new());
        let told = reached.time;
        let blocked = Blocked::No;
        Self { open, in_flight: None, reached, told, bounds, blocked, waiting: 0, spare: Vec::new() }
    }

    /// Whether the open group takes no more before it is taken to be written.
    pub(crate) fn is_full(&self) -> bool {
        self.open.entries.len() >= self.bounds.commits || self.open.run.len() >= self.bounds.bytes
    }

    /// The wall clock, or the last time that was given or told, if that is later. What is told is never undercut, though
    /// the clock may be set back: a command is looked for from its own time on.
    pub(crate) fn tell_time(&mut self, clock: Timestamp) -> Timestamp {
        self.told = self.time(clock);
        self.told
    }

    /// The time that a commit would get.
    pub(crate) fn time(&self, clock: Timestamp) -> Timestamp {
        clock.max(self.told).max(self.reached.time)
    }

    pub(crate) fn poisoned(&self) -> bool {
        matches!(self.blocked, Blocked::Poisoned(_))
    }

    fn check_open(&mut self) -> Result<(), AppendError> {
        match &self.blocked {
            Blocked::No => Ok(()),
            Blocked::Until(until, _) if Instant::now() >= *until => {
                self.blocked = Blocked::No;
                Ok(())
            }
            Blocked::Until(_, why) => Err(AppendError::Unavailable(why.clone())),
            Blocked::Poisoned(why) => Err(AppendError::Poisoned(why.clone())),
            Blocked::Closed => Err(AppendError::Unavailable("it was closed".into())),
        }
    }

    /// Checks and stages one commit.
    pub(crate) fn stage(
        &mut self,
        prepared: &Prepared,
        now: Timestamp,
        memory: &impl Memory,
    ) -> Result<Staged, NotStaged> {
        self.check_open()?;
        let Prepared { commit, key, origin, known_key, known_origin } = prepared;
        let recorded_at = self.time(now);

        if let Some(hash) = key
            && let Some(found) = self.find_key(hash, known_key.as_ref(), recorded_at, memory)?
        {
            return Err(AppendError::Duplicate(Box::new(found)).into());
        }
        if let Some(hash) = origin {
            let found = match self.staged(|state| state.origins.get(hash).copied()) {
                Some((staged, settlement)) => Some(staged.matched(settlement)),
                None => LookedUp::check(known_origin.as_ref(), memory.origin(hash))?.map(durable_match),
            };
            if let Some(found) = found {
                return Err(AppendError::Duplicate(Box::new(found)).into());
            }
        }
        let head = self.head(&commit.stream, memory)?.revision;
        if let Expected::Revision(expected) = commit.expected
            && expected != head
        {
            return Err(AppendError::Conflict { actual: head }.into());
        }
        Ok(self.place(prepared, head, recorded_at))
    }

    fn place(&mut self, prepared: &Prepared, head: Option<Revision>, recorded_at: Timestamp) -> Staged {
        let Prepared { commit, key, origin, .. } = prepared;
        let numbers = Numbers {
            number: CommitNumber(self.reached.commit.0 + 1),
            first_position: self.reached.position.next(),
            first_revision: Revision::after(head),
            recorded_at,
            epoch: self.reached.epoch,
        };
        let count = match &commit.outcome {
            Outcome::Events(events) => events.len() as u32,
            Outcome::Refused(_) => 0,
        };
        let open = &mut self.open;
        let offset = open.run.len() as u32;
        commit_record::encode(&mut open.run, commit, &numbers);
        open.entries.push(Entry {
            commit: numbers.number.0,
            recorded_at,
            stream: commit.stream.text().clone(),
            revision: numbers.first_revision.0,
            count,
            location: Location { segment: 0, offset },
            key: *key,
            origin: *origin,
        });
        if count > 0 {
            let last = Revision(numbers.first_revision.0 + u64::from(count) - 1);
            open.state.heads.insert(commit.stream.text().clone(), last);
        }
        let request = commit.idempotency.as_ref().map(|key| key.request).unwrap_or_default();
        let staged = StagedKey { commit: numbers.number, request, recorded_at };
        if let Some(key) = key {
            open.state.keys.insert(*key, staged);
        }
        if let Some(origin) = origin {
            open.state.origins.insert(*origin, staged);
        }
        self.reached.commit = numbers.number;
        self.reached.position = Position(self.reached.position.0 + u64::from(count));
        self.reached.time = recorded_at;
        Staged {
            commit: numbers.number,
            first_position: numbers.first_position,
            first_revision: numbers.first_revision,
            recorded_at,
            settlement: open.settler.settlement(),
        }
    }

    /// Looks in what is staged, the newest first.
    fn staged<T>(&self, find: impl Fn(&StagedState) -> Option<T>) -> Option<(T, Settlement)> {
        if let Some(found) = find(&self.open.state) {
            return Some((found, self.open.settlement.clone()));
        }
        let in_flight = self.in_flight.as_ref()?;
        Some((find(&in_flight.state)?, in_flight.settlement.clone()))
    }

    pub(crate) fn head(&self, stream: &StreamId, memory: &impl Memory) -> Result<Head, NotInMemory> {
        match self.staged(|state| state.heads.get(stream.text().as_bytes()).copied()) {
            Some((revision, settlement)) => Ok(Head { revision: Some(revision), settlement }),
            None => Ok(Head { revision: memory.head(stream.text())?, settlement: Settlement::durable() }),
        }
    }

    /// The commit of a key, if one that is recorded now would be its repetition.
    pub(crate) fn find_key(
        &self,
        hash: &Hash,
        known: Option<&LookedUp>,
        now: Timestamp,
        memory: &impl Memory,
    ) -> Result<Option<KeyMatch>, NotInMemory> {
        let alive = |recorded_at| now.since(recorded_at) < KEY_LIFE;
        if let Some((staged, settlement)) = self.staged(|state| state.keys.get(hash).copied()) {
            return Ok(alive(staged.recorded_at).then(|| staged.matched(settlement)));
        }
        let durable = LookedUp::check(known, memory.key(hash))?;
        Ok(durable.filter(|commit| alive(commit.header.recorded_at)).map(durable_match))
    }

    /// Takes the open group to be written, if it has anything in it and none is being written.
    pub(crate) fn take(&mut self) -> Option<Taken> {
        if self.open.entries.is_empty() || self.in_flight.is_some() {
            return None;
        }
        let next = OpenGroup::new(self.reached, std::mem::take(&mut self.spare));
        let OpenGroup { run, entries, state, settler, settlement, before } =
            std::mem::replace(&mut self.open, next);
        self.in_flight = Some(InFlight { state, settlement, before });
        Some(Taken { run, entries, settler, to: self.reached })
    }

    /// The group in flight is durable and in the index. Gives back its buffer.
    pub(crate) fn settled(&mut self, mut run: Vec<u8>) {
        self.in_flight = None;
        // A burst's buffer is not kept for ever.
        if run.capacity() <= 1 << 20 {
            run.clear();
            self.spare = run;
        }
    }

    /// The group in flight failed: forgets it and the open group, whose numbers are used again. Gives the open group's
    /// settler.
    pub(crate) fn rewind(&mut self) -> GroupSettler {
        let in_flight = self.in_flight.take();
        let before = in_flight.map_or(self.open.before, |group| group.before);
        // Times are not given back: who was told "now" must not be told less.
        self.told = self.told.max(self.reached.time);
        self.reached = before;
        let open = std::mem::replace(&mut self.open, OpenGroup::new(self.reached, Vec::new()));
        open.settler
    }

    pub(crate) fn block_until(&mut self, until: Instant, why: String) {
        // What is closed stays closed.
        if !matches!(self.blocked, Blocked::Closed) {
            self.blocked = Blocked::Until(until, why);
        }
    }

    pub(crate) fn poison(&mut self, why: String) {
        self.blocked = Blocked::Poisoned(why);
    }

    /// Takes no more commits.
    pub(crate) fn close(&mut self) {
        if !self.poisoned() {
            self.blocked = Blocked::Closed;
        }
    }
}
