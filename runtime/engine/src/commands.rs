//! Command modules: aggregates that live in pooled instances.
//!
//! An instance hosts up to [`InstancePolicy::aggregates`] aggregates, and runs one call at a time. A trap, too much
//! memory, CPU or time, and a caller that goes away in the middle of a call, end the instance: what the guest would
//! do after that is anybody's guess. The other aggregates in it learn it as [`CallError::InstanceLost`].
//!
//! An instance that has had [`InstancePolicy::reuse`] calls is *retired*: it takes no new aggregates, and goes with
//! its last one, or when its place is needed. With a reuse of 1 every aggregate has an instance to itself.
//!
//! [`InstancePolicy::aggregates`]: ebb_domain::limits::InstancePolicy::aggregates
//! [`InstancePolicy::reuse`]: ebb_domain::limits::InstancePolicy::reuse

use crate::bindings::{NewEventOut, PastEventIn};
use crate::budget::Charge;
use crate::function::{Admitted, Function, overloaded};
use crate::live::Live;
use crate::pool::Pool;
use crate::program::ProgramAggregate;
use crate::usage::{Opened, Tab, Work};
use bytes::Bytes;
use ebb_domain::commit::Refusal;
use ebb_domain::limits::cap;
use ebb_domain::port::Future;
use ebb_domain::port::guest::{
    Aggregate, CallError, CommandModule, DecidedEvent, Decision, GuestCommand, Lack, PastEvent,
};
use ebb_domain::stream::StreamId;
use ebb_domain::time::Timestamp;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use std::mem;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{Mutex as AsyncMutex, MutexGuard};
use wasmtime::component::ResourceAny;

/// A retired instance gives its place away only after it has not been called for so long: its aggregates are loaded
/// again elsewhere, which must not happen between two calls of one command.
const QUIET: Duration = Duration::from_millis(10);
/// How often `open` tries another instance when one was lost under it.
const ATTEMPTS: u32 = 3;

/// A deployed command module.
pub(crate) struct Commands {
    pub(crate) function: Function,
    pool: Mutex<Vec<Arc<Instance>>>,
    /// Of aggregates of programs, which live here and not in an instance.
    tenants: AtomicU32,
    /// Bytes that they hold.
    held: AtomicU64,
    /// Runs of programs, each in an instance.
    running: AtomicUsize,
}

/// One instance, or the place of one that its first caller is about to make.
struct Instance {
    live: AsyncMutex<Option<Live>>,
    /// Gone, or as good as gone; never taken back.
    lost: AtomicBool,
    /// Aggregates in it; changed under the pool's lock.
    aggregates: AtomicU32,
    /// Calls that run in it or wait for it.
    callers: AtomicU32,
    calls: AtomicU32,
    used_at: AtomicU64,
    /// Aggregates whose owners are gone, freed with the next call.
    orphans: Mutex<Vec<ResourceAny>>,
}

impl Instance {
    fn new(live: Option<Live>, now: u64) -> Self {
        Self {
            live: AsyncMutex::new(live),
            lost: AtomicBool::new(false),
            aggregates: AtomicU32::new(0),
            callers: AtomicU32::new(0),
            calls: AtomicU32::new(0),
            used_at: AtomicU64::new(now),
            orphans: Mutex::default(),
        }
    }

    fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    fn callers(&self) -> u32 {
        self.callers.load(Ordering::Acquire)
    }
}

impl Commands {
    pub(crate) fn new(function: Function) -> Self {
        Self {
            function,
            pool: Mutex::default(),
            tenants: AtomicU32::new(0),
            held: AtomicU64::new(0),
            running: AtomicUsize::new(0),
        }
    }

    fn retired(&self, instance: &Instance) -> bool {
        instance.calls.load(Ordering::Relaxed) >= self.function.spec.instances.reuse.get()
    }

    /// A place for an aggregate: in an instance that nobody is calling, else in a new one, else in the one with the
    /// fewest callers.
    fn reserve(self: &Arc<Self>) -> Result<Place, CallError> {
        let policy = &self.function.spec.instances;
        let max = policy.max.get() as usize;
        let mut pool = self.pool.lock();
        let best = pool
            .iter()
            .filter(|instance| !instance.is_lost() && !self.retired(instance))
            .filter(|instance| instance.aggregates.load(Ordering::Relaxed) < policy.aggregates.get())
            .min_by_key(|instance| instance.callers())
            .cloned();
        if best.is_none() && pool.len() >= max {
            self.give_way(&mut pool);
        }
        let instance = match best {
            Some(free) if free.callers() == 0 => free,
            best if pool.len() >= max => best.ok_or(overloaded(Lack::Instances(policy.max.get())))?,
            _ => {
                let instance = Arc::new(Instance::new(None, self.function.node.millis()));
                pool.push(instance.clone());
                instance
            }
        };
        instance.aggregates.fetch_add(1, Ordering::Relaxed);
        // Opening is a call, counted here so that the last call of an instance is promised to one aggregate only.
        instance.calls.fetch_add(1, Ordering::Relaxed);
        Ok(Place { commands: self.clone(), instance })
    }

    /// Drops the retired instance that was called longest ago.
    fn give_way(&self, pool: &mut Vec<Arc<Instance>>) {
        let quiet = self.function.node.millis().saturating_sub(QUIET.as_millis() as u64);
        let victim = pool
            .iter()
            .enumerate()
            .filter(|(_, instance)| self.retired(instance) && instance.callers() == 0)
            .filter(|(_, instance)| instance.used_at.load(Ordering::Relaxed) < quiet)
            .min_by_key(|(_, instance)| instance.used_at.load(Ordering::Relaxed))
            .map(|(index, _)| index);
        if let Some(index) = victim
            && pool[index].end_if_idle().is_some()
        {
            pool.swap_remove(index);
        }
    }

    /// Waits for an instance, and for its turn.
    async fn enter<'a>(&'a self, tab: &Tab, instance: &'a Arc<Instance>) -> Result<Entered<'a>, CallError> {
        let caller = Caller::new(self, instance);
        let live = match instance.live.try_lock() {
            Ok(live) => live,
            Err(_) => {
                let _waiting = tab.wait();
                instance.live.lock().await
            }
        };
        if instance.is_lost() {
            return Err(CallError::InstanceLost);
        }
        let admitted = self.function.admit(tab).await?;
        Ok(Entered { commands: self, instance, live, sound: false, _admitted: admitted, _caller: caller })
    }

    async fn open(
        self: &Arc<Self>,
        tab: &Tab,
        stream: &StreamId,
        snapshot: Option<Bytes>,
    ) -> Result<Box<dyn Aggregate>, CallError> {
        let mut attempts = ATTEMPTS;
        loop {
            let place = self.reserve()?;
            match self.open_in(tab, &place, stream, snapshot.as_ref()).await {
                // Another call of the same instance ended it meanwhile.
                Err(CallError::InstanceLost) if attempts > 1 => attempts -= 1,
                Err(CallError::InstanceLost) => {
                    return Err(overloaded(Lack::Instances(self.function.spec.instances.max.get())));
                }
                Err(error) => return Err(error),
                Ok(resource) => return Ok(Box::new(Resident { place, resource, opened: tab.opened() })),
            }
        }
    }

    async fn open_in(
        &self,
        tab: &Tab,
        place: &Place,
        stream: &StreamId,
        snapshot: Option<&Bytes>,
    ) -> Result<ResourceAny, CallError> {
        let work = Work::new(&self.function, tab);
        let mut entered = self.enter(tab, &place.instance).await?;
        let live = match &mut *entered.live {
            Some(live) => {
                tab.found_warm();
                live
            }
            empty => empty.insert(work.make().await?),
        };
        place.instance.free_orphans(live, work).await?;
        let opened = match snapshot {
            None => Ok(live.construct(work, stream.key()).await?),
            Some(snapshot) => live.restore(work, stream.key(), snapshot).await?,
        };
        entered.sound = true;
        opened.map_err(CallError::BadSnapshot)
    }

    fn remove(&self, instance: &Arc<Instance>) {
        self.pool.lock().retain(|other| !Arc::ptr_eq(other, instance));
        self.function.ended_one();
    }

    /// Ends instances that nobody is calling, but for the last `ready` of all; how many.
    fn end_idle(&self, ready: u32, choose: impl Fn(&Instance) -> bool) -> usize {
        let mut ended = Vec::new();
        {
            let mut pool = self.pool.lock();
            let mut spare = pool.len().saturating_sub(ready as usize);
            pool.retain(|instance| {
                let idle = spare > 0 && instance.callers() == 0 && choose(instance);
                let Some(live) = idle.then(|| instance.end_if_idle()).flatten() else { return true };
                ended.push(live);
                spare -= 1;
                false
            });
        }
        // Dropped only here: giving memory back takes a while.
        ended.len()
    }
}

/// What an aggregate of a program holds of its function: a place among as many as there could be in instances, and
/// bytes of as much memory as those could have.
pub(crate) struct Tenancy {
    commands: Arc<Commands>,
    /// Of the node's memory.
    taken: Charge,
}

impl Tenancy {
    pub(crate) fn begin(commands: Arc<Commands>) -> Result<Self, CallError> {
        let policy = &commands.function.spec.instances;
        let places = policy.max.get().saturating_mul(policy.aggregates.get());
        let tenants = commands.tenants.fetch_add(1, Ordering::Relaxed);
        let taken = Charge::new(commands.function.node.budget.clone());
        let tenancy = Self { commands, taken };
        if tenants >= places {
            return Err(overloaded(Lack::Aggregates(places)));
        }
        Ok(tenancy)
    }

    /// The aggregate now holds so many bytes; where there are not so many, it holds what it held before.
    pub(crate) fn hold(&mut self, bytes: usize) -> Result<(), CallError> {
        let (before, bytes) = (self.taken.bytes(), bytes as u64);
        let held = &self.commands.held;
        if bytes <= before {
            held.fetch_sub(before - bytes, Ordering::Relaxed);
            self.taken.shrink(before - bytes);
            return Ok(());
        }
        let more = bytes - before;
        let spec = &self.commands.function.spec;
        let limit = spec.limits.memory_bytes.saturating_mul(u64::from(spec.instances.max.get()));
        let taken = match held.fetch_add(more, Ordering::Relaxed).saturating_add(more) > limit {
            true => Err(overloaded(Lack::Held(limit))),
            false => self.taken.grow(more),
        };
        if taken.is_err() {
            held.fetch_sub(more, Ordering::Relaxed);
        }
        taken
    }
}

impl Drop for Tenancy {
    fn drop(&mut self) {
        self.commands.held.fetch_sub(self.taken.bytes(), Ordering::Relaxed);
        self.commands.tenants.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A run of a program, counted among the instances.
struct Running<'a>(&'a AtomicUsize);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Commands {
    /// Runs the module, which is a program, when it is its turn: what it wrote to stdout.
    pub(crate) async fn run_program(
        &self,
        tab: &Tab,
        time: Timestamp,
        input: Bytes,
    ) -> Result<Vec<u8>, CallError> {
        let _admitted = self.function.admit(tab).await?;
        let work = Work::new(&self.function, tab);
        self.running.fetch_add(1, Ordering::Relaxed);
        let _running = Running(&self.running);
        let mut live: Live = work.make().await?;
        live.run(work, time, input).await
    }
}

impl Instance {
    /// Ends the instance unless someone is about to call it: what there is of it, for dropping.
    fn end_if_idle(&self) -> Option<Option<Live>> {
        let mut live = self.live.try_lock().ok()?;
        self.lost.store(true, Ordering::Release);
        Some(live.take())
    }

    async fn free_orphans(&self, live: &mut Live, work: Work<'_>) -> Result<(), CallError> {
        let orphans = mem::take(&mut *self.orphans.lock());
        if orphans.is_empty() {
            return Ok(());
        }
        // A destructor that fails is not the fault of the aggregate that is called now.
        live.drop_resources(work, orphans).await.map_err(|error| {
            let spec = &work.function.spec;
            tracing::warn!(app = &*spec.app, function = &*spec.function, %error, "a dropped aggregate took its instance with it");
            CallError::InstanceLost
        })
    }
}

/// Someone who calls an instance, or waits to.
struct Caller<'a> {
    commands: &'a Commands,
    instance: &'a Instance,
}

impl<'a> Caller<'a> {
    fn new(commands: &'a Commands, instance: &'a Instance) -> Self {
        instance.callers.fetch_add(1, Ordering::AcqRel);
        Self { commands, instance }
    }
}

impl Drop for Caller<'_> {
    fn drop(&mut self) {
        self.instance.used_at.store(self.commands.function.node.millis(), Ordering::Relaxed);
        self.instance.callers.fetch_sub(1, Ordering::AcqRel);
    }
}

/// An instance to oneself, for one call. Unless the call ends well, and says so in `sound`, the instance ends with
/// it: also when the caller's future is dropped in the middle, as a time-out does.
struct Entered<'a> {
    commands: &'a Commands,
    instance: &'a Arc<Instance>,
    live: MutexGuard<'a, Option<Live>>,
    sound: bool,
    _admitted: Admitted,
    _caller: Caller<'a>,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        if !self.sound {
            self.instance.lost.store(true, Ordering::Release);
            *self.live = None;
            self.commands.remove(self.instance);
        }
    }
}

/// A place in an instance.
struct Place {
    commands: Arc<Commands>,
    instance: Arc<Instance>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut pool = self.commands.pool.lock();
        let left = self.instance.aggregates.fetch_sub(1, Ordering::Relaxed) - 1;
        if self.instance.is_lost() || (left == 0 && self.commands.retired(&self.instance)) {
            pool.retain(|other| !Arc::ptr_eq(other, &self.instance));
            self.commands.function.ended_one();
        }
    }
}

/// An aggregate in its place.
struct Resident {
    place: Place,
    resource: ResourceAny,
    /// For the first command's record.
    opened: Option<Opened>,
}

impl Drop for Resident {
    fn drop(&mut self) {
        if let Some(opened) = self.opened {
            opened.in_vain(&self.place.commands.function);
        }
        if !self.place.instance.is_lost() {
            self.place.instance.orphans.lock().push(self.resource);
        }
    }
}

impl Resident {
    async fn call<T>(
        &self,
        work: Work<'_>,
        call: impl AsyncFnOnce(&mut Live, ResourceAny) -> Result<T, CallError>,
    ) -> Result<T, CallError> {
        let Place { commands, instance } = &self.place;
        let mut entered = commands.enter(work.tab, instance).await?;
        let live = entered.live.as_mut().ok_or(CallError::InstanceLost)?;
        work.tab.found_warm();
        instance.calls.fetch_add(1, Ordering::Relaxed);
        instance.free_orphans(live, work).await?;
        let result = call(live, self.resource).await?;
        entered.sound = true;
        Ok(result)
    }
}

impl Aggregate for Resident {
    fn apply<'a>(&'a mut self, events: &'a [PastEvent]) -> Future<'a, Result<(), CallError>> {
        Box::pin(async move {
            let tab = Tab::upkeep();
            let work = Work::new(&self.place.commands.function, &tab);
            let events: Vec<_> = events.iter().map(PastEventIn::from).collect();
            let apply = async |live: &mut Live, resource| live.apply(work, resource, &events).await;
            work.within_wall(pin!(self.call(work, apply))).await
        })
    }

    fn decide<'a>(&'a mut self, command: &'a GuestCommand) -> Future<'a, Result<Decision, CallError>> {
        Box::pin(async move {
            let tab = Tab::command(command.trace.clone(), self.opened.take());
            let work = Work::new(&self.place.commands.function, &tab);
            let decide = async |live: &mut Live, resource| live.decide(work, resource, command.into()).await;
            let decided = pin!(async {
                match self.call(work, decide).await? {
                    Ok(events) => bounded(events).map(Decision::Events),
                    Err(refusal) => {
                        tab.refused();
                        Ok(Decision::Refused(Refusal {
                            code: refusal.code.into(),
                            message: refusal.message.into(),
                            details: refusal.details.map(Bytes::from),
                        }))
                    }
                }
            });
            work.within_wall(decided).await
        })
    }

    fn snapshot(&mut self) -> Future<'_, Result<Option<Bytes>, CallError>> {
        Box::pin(async move {
            let tab = Tab::upkeep();
            let work = Work::new(&self.place.commands.function, &tab);
            let snapshot = async |live: &mut Live, resource| live.snapshot(work, resource).await;
            Ok(work.within_wall(pin!(self.call(work, snapshot))).await?.map(Bytes::from))
        })
    }
}

/// Events as they were decided, unless a commit can't hold them.
pub(crate) fn bounded(events: Vec<NewEventOut>) -> Result<Vec<DecidedEvent>, CallError> {
    if events.len() > cap::COMMIT_EVENTS {
        return Err(CallError::OutputTooLarge(format!(
            "it decided {} events, and a commit holds at most {}",
            events.len(),
            cap::COMMIT_EVENTS
        )));
    }
    if let Some((index, event)) =
        events.iter().enumerate().find(|(_, event)| event.data.len() > cap::EVENT_BYTES)
    {
        return Err(CallError::OutputTooLarge(format!(
            "event {index} (`{}`) has {} bytes of data, and an event holds at most {}",
            event.event_type.chars().take(80).collect::<String>(),
            event.data.len(),
            cap::EVENT_BYTES
        )));
    }
    let bytes: usize = events.iter().map(|event| event.data.len() + event.event_type.len()).sum();
    if bytes > cap::COMMIT_BYTES {
        return Err(CallError::OutputTooLarge(format!(
            "its {} events have {bytes} bytes together, and a commit holds at most {}",
            events.len(),
            cap::COMMIT_BYTES
        )));
    }
    Ok(events.into_iter().map(DecidedEvent::from).collect())
}

/// The handle that callers share.
pub(crate) struct CommandHandle(pub(crate) Arc<Commands>);

impl CommandModule for CommandHandle {
    fn open<'a>(
        &'a self,
        stream: &'a StreamId,
        snapshot: Option<Bytes>,
    ) -> Future<'a, Result<Box<dyn Aggregate>, CallError>> {
        Box::pin(async move {
            let tab = Tab::upkeep();
            let work = Work::new(&self.0.function, &tab);
            let open = pin!(async {
                if work.load().await?.is_program() {
                    let aggregate = ProgramAggregate::open(self.0.clone(), stream, snapshot)?;
                    return Ok(Box::new(aggregate) as Box<dyn Aggregate>);
                }
                self.0.open(&tab, stream, snapshot).await
            });
            work.within_wall(open).await
        })
    }
}

impl Pool for Commands {
    fn function(&self) -> &Function {
        &self.function
    }

    fn instances(&self) -> usize {
        self.pool.lock().len() + self.running.load(Ordering::Relaxed)
    }

    fn reap(&self, now: u64) {
        let policy = &self.function.spec.instances;
        let long_ago = now.saturating_sub(policy.idle.as_millis() as u64);
        self.end_idle(policy.warm, |instance| {
            instance.aggregates.load(Ordering::Relaxed) == 0
                && instance.used_at.load(Ordering::Relaxed) <= long_ago
        });
    }

    fn reclaim(&self, ready_too: bool) -> usize {
        let quiet = self.function.node.millis().saturating_sub(QUIET.as_millis() as u64);
        let ready = if ready_too { 0 } else { self.function.spec.instances.warm };
        self.end_idle(ready, |instance| instance.used_at.load(Ordering::Relaxed) <= quiet)
    }

    fn make_ready(self: Arc<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            while self.instances() < self.function.spec.instances.warm as usize {
                match Work::make_ready(&self.function).await {
                    Ok(live) => {
                        let instance = Instance::new(Some(live), self.function.node.millis());
                        let mut pool = self.pool.lock();
                        if pool.len() < self.function.spec.instances.max.get() as usize {
                            pool.push(Arc::new(instance));
                        }
                    }
                    Err(error) => return self.function.not_ready(&error),
                }
            }
        })
    }
}
