//! The command path of one app, from a request to a durable answer.
//!
//! Promise: an answer is given only when the commit it tells of, and every commit that was decided on, is durable.
//! Runners stage without waiting (`runner`); the waiting happens here, in the caller's own task.

use super::function::{AggregateFunction, DeferredFunction, list};
use super::mailbox::{Mailboxes, Posted};
use super::request::{CommandError, CommandErrorKind, CommandReply, CommandRequest};
use super::runner::{Command, Decided, Runner};
use super::state::StateError;
use super::warm::WarmCache;
use ebb_domain::commit::{CommandId, Expected, IdempotencyKey, NewCommit, Outcome};
use ebb_domain::digest::Digest;
use ebb_domain::port::guest::CallError;
use ebb_domain::port::log::{AppendError, EventLog, GroupFailure, KeyMatch, ReadError, Settlement};
use ebb_domain::port::storage::Snapshots;
use ebb_domain::stream::{StreamId, StreamKey};
use ebb_domain::text::Text;
use parking_lot::{Mutex, RwLock};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use uuid::Uuid;

/// How often a command is decided anew because its group was rewound.
const REWINDS: u32 = 3;

/// How long a caller should leave a full mailbox alone.
const MAILBOX_RETRY: Duration = Duration::from_secs(1);

/// The command path of one app.
pub struct CommandService {
    inner: Arc<Inner>,
}

struct Inner {
    log: Arc<dyn EventLog>,
    snapshots: Arc<dyn Snapshots>,
    slots: RwLock<HashMap<Text, Arc<AggregateSlot>>>,
    mailboxes: Mailboxes<Job>,
    /// Keys that are being decided, by actor and key.
    in_flight: Mutex<HashMap<(Text, Text), Digest>>,
    runners: Arc<Runners>,
    closing: AtomicBool,
}

/// A command and whoever waits for it.
struct Job {
    command: Arc<Command>,
    slot: Arc<AggregateSlot>,
    answer: oneshot::Sender<Decided>,
    /// Frees the idempotency key when the job is done: from then on the log knows it.
    _key: Option<KeyGuard>,
}

/// An aggregate's current version, and what is warm of it.
pub(crate) struct AggregateSlot {
    current: RwLock<Arc<DeferredFunction>>,
    pub(crate) warm: WarmCache,
    reaping: AtomicBool,
}

impl AggregateSlot {
    fn new(function: Arc<DeferredFunction>) -> Self {
        Self { current: RwLock::new(function), warm: WarmCache::new(), reaping: AtomicBool::new(false) }
    }

    /// The version that serves, made if it was not yet.
    pub(crate) async fn function(&self) -> Result<Arc<AggregateFunction>, CommandErrorKind> {
        if let Some(made) = self.current.read().made() {
            return Ok(made.clone());
        }
        let deferred = self.current.read().clone();
        deferred.get().await
    }

    fn swap(&self, function: Arc<DeferredFunction>) {
        *self.current.write() = function;
        self.warm.clear();
    }

    /// Warm aggregates that the function's instances can hold.
    fn capacity(&self) -> usize {
        let instances = self.current.read().spec().instances;
        instances.max.get() as usize * instances.aggregates.get() as usize
    }

    /// Drops warm aggregates that nobody has used for the function's idle time. The task lives only as long as there
    /// are any.
    fn reap_when_idle(self: &Arc<Self>) {
        if self.reaping.swap(true, Ordering::AcqRel) {
            return;
        }
        let slot = Arc::downgrade(self);
        let idle = self.current.read().spec().instances.idle.max(Duration::from_millis(10));
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(idle / 2).await;
                let Some(slot) = slot.upgrade() else { return };
                let Some(since) = Instant::now().checked_sub(idle) else { continue };
                if !slot.warm.evict_older_than(since) {
                    slot.reaping.store(false, Ordering::Release);
                    return;
                }
            }
        });
    }
}

impl CommandService {
    /// The command path over a log; it knows no aggregates yet.
    #[must_use]
    pub fn new(log: Arc<dyn EventLog>, snapshots: Arc<dyn Snapshots>) -> Self {
        Self {
            inner: Arc::new(Inner {
                log,
                snapshots,
                slots: RwLock::default(),
                mailboxes: Mailboxes::new(),
                in_flight: Mutex::default(),
                runners: Arc::default(),
                closing: AtomicBool::new(false),
            }),
        }
    }

    /// Puts these versions in the place of those there are. Commands under way finish with the version that they
    /// started with; those that wait are decided by the new one.
    pub fn deploy(&self, functions: Vec<impl Into<DeferredFunction>>) {
        let mut slots = self.inner.slots.write();
        let mut next = HashMap::with_capacity(functions.len());
        for function in functions {
            let function: Arc<DeferredFunction> = Arc::new(function.into());
            let name = function.spec().name.text().clone();
            let slot = match slots.remove(name.as_bytes()) {
                Some(slot) => {
                    slot.swap(function);
                    slot
                }
                None => Arc::new(AggregateSlot::new(function)),
            };
            next.insert(name, slot);
        }
        *slots = next;
    }

    /// The versions that serve and keep instances ready.
    pub(crate) fn kept_ready(&self) -> Vec<Arc<DeferredFunction>> {
        let slots = self.inner.slots.read();
        let functions = slots.values().map(|slot| slot.current.read().clone());
        functions.filter(|function| function.spec().instances.warm > 0).collect()
    }

    /// Decides a command, and answers when that is durable.
    ///
    /// A caller that goes away leaves the command to its fate: if it was not decided yet, it is not.
    ///
    /// # Errors
    /// It was not accepted: see [`CommandErrorKind`].
    pub async fn execute(&self, request: CommandRequest) -> Result<CommandReply, CommandError> {
        let inner = &self.inner;
        let (slot, command) = inner.admit(request).await?;
        let (id, command) = (command.id, Arc::new(command));
        for _ in 0..REWINDS {
            if let Ok(answer) = inner.attempt(&slot, &command).await {
                return answer;
            }
        }
        Err(CommandErrorKind::Unavailable("what was written had to be rewound, several times".into()).of(id))
    }

    /// The version of an aggregate that serves.
    pub(crate) async fn aggregate(&self, name: &str) -> Result<Arc<AggregateFunction>, StateError> {
        let slot = self.inner.slots.read().get(name.as_bytes()).cloned();
        let slot = slot.ok_or_else(|| StateError::UnknownAggregate {
            aggregate: name.chars().take(80).collect(),
            known: list(self.inner.slots.read().keys()),
        })?;
        slot.function().await.map_err(|error| StateError::Module(CallError::Failed(error.to_string())))
    }

    /// Whether no command is being decided.
    pub(crate) fn is_idle(&self) -> bool {
        self.inner.runners.count.load(Ordering::SeqCst) == 0
    }

    /// Takes no more commands, and waits until those under way are staged.
    pub async fn close(&self) {
        self.inner.closing.store(true, Ordering::SeqCst);
        let runners = &self.inner.runners;
        loop {
            let none_left = runners.none_left.notified();
            if runners.count.load(Ordering::SeqCst) == 0 {
                break;
            }
            none_left.await;
        }
        for slot in self.inner.slots.read().values() {
            slot.warm.clear();
        }
    }

    #[cfg(test)]
    pub(crate) fn warm_aggregates(&self, aggregate: &str) -> usize {
        self.inner.slots.read().get(aggregate.as_bytes()).map_or(0, |slot| slot.warm.len())
    }
}

/// The group that a command was decided in was rewound: it may be decided again.
struct Rewound;

type Answer = Result<CommandReply, CommandError>;

impl Inner {
    /// Everything that can be said without looking at the stream.
    async fn admit(&self, request: CommandRequest) -> Result<(Arc<AggregateSlot>, Command), CommandError> {
        if self.closing.load(Ordering::Acquire) {
            return Err(CommandErrorKind::ShuttingDown.into());
        }
        let slot = self.slots.read().get(request.aggregate.as_bytes()).cloned();
        let Some(slot) = slot else {
            return Err(CommandErrorKind::UnknownAggregate {
                aggregate: request.aggregate.chars().take(80).collect(),
                known: list(self.slots.read().keys()),
            }
            .into());
        };
        let function = slot.function().await?;
        if !function.spec.allow.permits(&request.actor) {
            let aggregate = function.spec.name.to_string();
            return Err(CommandErrorKind::Forbidden { actor: request.actor, aggregate }.into());
        }
        let key = StreamKey::new(request.key).map_err(CommandErrorKind::from)?;
        let (name, data) = function.validate(&request.command, request.data)?;
        let time = self.log.now();
        let id = new_command_id(time);
        let patience = function.spec.limits.wall;
        let command = Command {
            id,
            stream: StreamId::new(&function.spec.name, &key),
            name,
            data,
            actor: request.actor,
            time,
            precondition: request.precondition,
            idempotency: request.idempotency,
            correlation_id: request.correlation_id.unwrap_or_else(|| id.to_string().into()),
            causation_id: request.causation_id,
            hops: request.hops,
            trace: request.trace,
            origin: request.origin,
            deadline: Instant::now() + patience,
            patience,
            function,
        };
        Ok((slot, command))
    }

    /// Keeps where a command came from that is the same as an earlier one: its key is known for a day, and its origin for
    /// ever.
    async fn keep_origin(&self, command: &Command) -> Result<(), CommandErrorKind> {
        if command.origin.is_none() {
            return Ok(());
        }
        let commit = NewCommit {
            stream: command.stream.clone(),
            expected: Expected::Any,
            command_id: command.id,
            actor: command.actor.clone(),
            correlation_id: command.correlation_id.clone(),
            causation_id: command.causation_id.clone(),
            hops: command.hops,
            traceparent: None,
            module: Digest::default(),
            idempotency: None,
            origin: command.origin.clone(),
            command: None,
            outcome: Outcome::Events(Vec::new()),
        };
        let mut settlement = match self.log.append(commit).await {
            Ok(staged) => staged.settlement,
            Err(AppendError::Duplicate(earlier)) => earlier.settlement,
            Err(error) => return Err(CommandErrorKind::Unavailable(error.to_string())),
        };
        settlement.wait().await.map_err(|failure| CommandErrorKind::Unavailable(failure.to_string()))
    }

    /// One try: the key, the mailbox, the decision, the disk.
    async fn attempt(
        self: &Arc<Self>,
        slot: &Arc<AggregateSlot>,
        command: &Arc<Command>,
    ) -> Result<Answer, Rewound> {
        let key = match &command.idempotency {
            Some(key) => match KeyGuard::take(self, &command.actor, key) {
                Ok(guard) => {
                    match self.log.find_key(&command.actor, &key.key) {
                        Ok(None) => {}
                        Ok(Some(earlier)) => {
                            // It was decided: nothing is in flight, and a second retry gets the same answer.
                            drop(guard);
                            if let Err(kind) = self.keep_origin(command).await {
                                return Ok(Err(kind.of(command.id)));
                            }
                            return self.answer_earlier(command, earlier).await;
                        }
                        Err(error) => return Ok(Err(internal(&error).of(command.id))),
                    }
                    Some(guard)
                }
                Err(kind) => return Ok(Err(kind.into())),
            },
            None => None,
        };
        let decided = match self.submit(slot, command, key) {
            Ok(decided) => decided.await,
            Err(kind) => return Ok(Err(kind.into())),
        };
        match decided {
            Ok(Decided::Accepted(reply, settlement)) => {
                self.settle(command.id, settlement).await.map(|settled| settled.map(|()| reply))
            }
            Ok(Decided::Failed(kind, settlement)) => {
                let settled = self.settle(command.id, settlement).await?;
                Ok(settled.and(Err(kind.of(command.id))))
            }
            Ok(Decided::Earlier(earlier)) => self.answer_earlier(command, earlier).await,
            Err(_) => {
                Ok(Err(CommandErrorKind::Internal("the command's runner is gone".into()).of(command.id)))
            }
        }
    }

    async fn settle(
        &self,
        id: CommandId,
        mut settlement: Settlement,
    ) -> Result<Result<(), CommandError>, Rewound> {
        match settlement.wait().await {
            Ok(()) => Ok(Ok(())),
            Err(GroupFailure::Rewound(_)) => Err(Rewound),
            Err(GroupFailure::OutcomeUnknown(why)) => Ok(Err(CommandErrorKind::OutcomeUnknown(why).of(id))),
        }
    }

    /// The same answer as the first time, once that is durable.
    async fn answer_earlier(&self, command: &Command, earlier: KeyMatch) -> Result<Answer, Rewound> {
        if command.idempotency.as_ref().is_some_and(|key| key.request != earlier.request) {
            return Ok(Err(CommandErrorKind::KeyReused.into()));
        }
        if let Err(error) = self.settle(command.id, earlier.settlement).await? {
            return Ok(Err(error));
        }
        let commit = match earlier.decided {
            Some(commit) => commit,
            None => match self.log.commit(earlier.commit).await {
                Ok(Some(commit)) => Arc::new(commit),
                Ok(None) => return Err(Rewound),
                Err(error) => return Ok(Err(internal(&error).into())),
            },
        };
        Ok(CommandReply::from_commit(&commit, true).map_err(|refusal| CommandError {
            command_id: Some(commit.header.command_id),
            kind: CommandErrorKind::Refused(refusal),
            replayed: true,
        }))
    }

    /// Puts the command into its stream's mailbox, and starts a runner if there is none.
    fn submit(
        self: &Arc<Self>,
        slot: &Arc<AggregateSlot>,
        command: &Arc<Command>,
        key: Option<KeyGuard>,
    ) -> Result<oneshot::Receiver<Decided>, CommandErrorKind> {
        // Counted before `closing` is looked at: closing either sees this one and waits, or is seen.
        let guard = RunnerGuard::new(self);
        if self.closing.load(Ordering::SeqCst) {
            return Err(CommandErrorKind::ShuttingDown);
        }
        let (answer, decided) = oneshot::channel();
        let job = Job { command: command.clone(), slot: slot.clone(), answer, _key: key };
        match self.mailboxes.post(&command.stream, job) {
            Posted::Queued => {}
            Posted::Full => return Err(CommandErrorKind::Throttled { retry_after: MAILBOX_RETRY }),
            Posted::First => {
                let stream = command.stream.clone();
                run_here_first(Box::pin(async move {
                    // All of it, and not only the field that is named.
                    let guard = guard;
                    guard.inner.run(stream).await;
                }));
            }
        }
        Ok(decided)
    }

    /// Works through a stream's mailbox until it is empty.
    async fn run(&self, stream: StreamId) {
        let mut warm = None;
        let mut slot: Option<Arc<AggregateSlot>> = None;
        let abandoned = MailboxGuard { mailboxes: &self.mailboxes, stream: &stream };
        loop {
            let job = self.mailboxes.next(&stream, || {
                if let (Some(slot), Some(warm)) = (&slot, warm.take()) {
                    slot.warm.put(stream.detached(), warm, slot.capacity());
                }
            });
            let Some(Job { command, slot: job_slot, answer, _key: key }) = job else { break };
            // A caller who left before the decision does not need it.
            if answer.is_closed() {
                continue;
            }
            if slot.as_ref().is_none_or(|slot| !Arc::ptr_eq(slot, &job_slot)) {
                warm = job_slot.warm.take(&stream);
                slot = Some(job_slot.clone());
            }
            let runner =
                Runner { log: &self.log, snapshots: &self.snapshots, slot: &job_slot, stream: &stream };
            let decided = runner.decide(&command, &mut warm).await;
            drop(key);
            // The caller may be gone by now; the commit stands all the same.
            drop(answer.send(decided));
            tokio::task::consume_budget().await;
        }
        std::mem::forget(abandoned);
        if let Some(slot) = slot {
            slot.reap_when_idle();
        }
    }
}

/// Runs a runner up to its first wait in the caller's own task, and goes on in a task of its own only if there is one: what
/// is warm is decided without any, and then a task, its queue and its wake-up would cost as much as the decision. What the
/// caller gives up when it goes away is therefore never a runner.
fn run_here_first(mut runner: Pin<Box<impl Future<Output = ()> + Send + 'static>>) {
    let polled = catch_unwind(AssertUnwindSafe(|| {
        // Nobody needs to be woken: whatever waits is polled again, by its own task, at once.
        runner.as_mut().poll(&mut Context::from_waker(Waker::noop()))
    }));
    match polled {
        Ok(Poll::Ready(())) => {}
        Ok(Poll::Pending) => drop(tokio::spawn(runner)),
        // As in a task of its own: it is told to those who wait, when what the runner holds is dropped.
        Err(_) => drop(runner),
    }
}

/// What a runner holds for as long as it lives. It lets go of the command path, and so of the log, before it is counted
/// out: who has waited for the last runner shares the log with none.
struct RunnerGuard {
    inner: Arc<Inner>,
    _counted: Counted,
}

struct Counted(Arc<Runners>);

/// Runners that live.
#[derive(Default)]
struct Runners {
    count: AtomicUsize,
    none_left: Notify,
}

impl RunnerGuard {
    fn new(inner: &Arc<Inner>) -> Self {
        inner.runners.count.fetch_add(1, Ordering::SeqCst);
        Self { inner: inner.clone(), _counted: Counted(inner.runners.clone()) }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.none_left.notify_waiters();
        }
    }
}

/// Takes the mailbox of a runner that panics along, so that the stream is not stuck behind it: those who wait are told
/// that their runner is gone, and the next command starts another.
struct MailboxGuard<'a> {
    mailboxes: &'a Mailboxes<Job>,
    stream: &'a StreamId,
}

impl Drop for MailboxGuard<'_> {
    fn drop(&mut self) {
        self.mailboxes.abandon(self.stream);
    }
}

/// Holds an idempotency key while its command is being decided.
struct KeyGuard {
    inner: Arc<Inner>,
    key: (Text, Text),
}

impl KeyGuard {
    fn take(inner: &Arc<Inner>, actor: &Text, key: &IdempotencyKey) -> Result<Self, CommandErrorKind> {
        let scoped = (actor.clone(), key.key.clone());
        match inner.in_flight.lock().entry(scoped.clone()) {
            Entry::Occupied(other) if *other.get() != key.request => Err(CommandErrorKind::KeyReused),
            Entry::Occupied(_) => Err(CommandErrorKind::KeyInFlight),
            Entry::Vacant(free) => {
                free.insert(key.request);
                Ok(Self { inner: inner.clone(), key: scoped })
            }
        }
    }
}

impl Drop for KeyGuard {
    fn drop(&mut self) {
        self.inner.in_flight.lock().remove(&self.key);
    }
}

pub(crate) fn new_command_id(time: ebb_domain::time::Timestamp) -> CommandId {
    let random = Uuid::new_v4().into_bytes();
    let mut ten = [0; 10];
    // Bytes 6 and 8 of a version 4 UUID have fixed bits: take the others.
    ten[..6].copy_from_slice(&random[..6]);
    ten[6..].copy_from_slice(&random[9..13]);
    CommandId::new(time, ten)
}

fn internal(error: &ReadError) -> CommandErrorKind {
    CommandErrorKind::Internal(error.to_string())
}
