//! One thing that is done for a function, from its beginning to its record.

use super::{Account, Invocation, Outcome, Start, billed_millis};
use crate::function::{Function, overloaded};
use crate::live::explain;
use crate::module::Loaded;
use crate::pool::Pooled;
use crate::turns::Turn;
use ebb_domain::port::guest::{CallError, Lack};
use ebb_domain::trace::Trace;
use parking_lot::Mutex;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use wasmtime::PoolConcurrencyLimitError;

/// What has been used so far. It is written on the way, so that it is known also of a call that is given up in the
/// middle; atomic only because the future that writes it goes from thread to thread.
#[derive(Default)]
pub(crate) struct Tab {
    is_invocation: bool,
    trace: Option<Trace>,
    links: Vec<Trace>,
    /// What opening the aggregate took.
    opening: Duration,
    /// What opening took is another tab's.
    handed_on: AtomicBool,
    waited: AtomicU64,
    init: AtomicU64,
    /// A [`Start`] and one more; 0 before there is an instance.
    start: AtomicU8,
    refused: AtomicBool,
    cpu: AtomicU64,
    memory: AtomicU64,
    /// A turn for the next of its guests' polls.
    turn: Mutex<Option<Turn>>,
}

/// How an aggregate came into its instance, for the record of its first command.
#[derive(Clone, Copy)]
pub(crate) struct Opened {
    start: Start,
    init: Duration,
}

fn nanos(duration: Duration) -> u64 {
    duration.as_nanos() as u64
}

fn read(nanos: &AtomicU64) -> Duration {
    Duration::from_nanos(nanos.load(Ordering::Relaxed))
}

impl Tab {
    /// Of something that a trigger asked for.
    pub(crate) fn invocation() -> Self {
        Self { is_invocation: true, ..Self::default() }
    }

    /// The same, as a span.
    pub(crate) fn traced(trace: Option<Trace>) -> Self {
        Self { trace, ..Self::invocation() }
    }

    /// Of a batch of events that came from those spans.
    pub(crate) fn linked(links: Vec<Trace>) -> Self {
        Self { links, ..Self::invocation() }
    }

    /// Of a command on an aggregate; its first bears what opening it took.
    pub(crate) fn command(trace: Option<Trace>, opened: Option<Opened>) -> Self {
        let mut tab = Self::traced(trace);
        if let Some(Opened { start, init }) = opened {
            tab.started(start);
            tab.opening = init;
        }
        tab
    }

    /// Of something that is needed besides.
    pub(crate) fn upkeep() -> Self {
        Self::default()
    }

    /// The span that it is, or its caller's.
    pub(crate) fn trace(&self) -> Option<&Trace> {
        self.trace.as_ref()
    }

    /// An instance was had. What took longest counts.
    fn started(&self, start: Start) {
        self.start.fetch_max(start as u8 + 1, Ordering::Relaxed);
    }

    /// An instance was there.
    pub(crate) fn found_warm(&self) {
        self.started(Start::Warm);
    }

    /// A decision was a refusal.
    pub(crate) fn refused(&self) {
        self.refused.store(true, Ordering::Relaxed);
    }

    /// A poll of the guest computed for so long, and its memory has so many bytes.
    pub(crate) fn computed(&self, computed: Duration, memory_bytes: u64) {
        self.cpu.fetch_add(nanos(computed), Ordering::Relaxed);
        self.memory.fetch_max(memory_bytes, Ordering::Relaxed);
    }

    fn start(&self) -> Option<Start> {
        match self.start.load(Ordering::Relaxed) {
            0 => None,
            1 => Some(Start::Warm),
            2 => Some(Start::Loaded),
            _ => Some(Start::Cold),
        }
    }

    /// What the aggregate's first command is to bear, which upkeep then does not.
    pub(crate) fn opened(&self) -> Option<Opened> {
        let start = self.start()?;
        self.handed_on.store(true, Ordering::Relaxed);
        Some(Opened { start, init: read(&self.init) })
    }

    /// Waits for a turn at a processor, behind all who are ready to: what is done for this tab begins with it.
    pub(crate) async fn queue(&self, function: &Function) {
        let mut turn = function.turn();
        poll_fn(|context| turn.poll_queue(context)).await;
        self.lend_turn(turn);
    }

    /// A turn that goes on, for whoever computes next.
    pub(crate) fn lend_turn(&self, turn: Turn) {
        *self.turn.lock() = Some(turn);
    }

    pub(crate) fn take_turn(&self) -> Option<Turn> {
        self.turn.lock().take()
    }

    /// Waiting begins, until the result is dropped.
    pub(crate) fn wait(&self) -> Clock<'_> {
        Clock { sum: &self.waited, began: Instant::now() }
    }

    /// Getting ready begins, until the result is dropped.
    fn begin_init(&self) -> Clock<'_> {
        Clock { sum: &self.init, began: Instant::now() }
    }
}

/// Something that is done for a function, with its tab.
#[derive(Clone, Copy)]
pub(crate) struct Work<'a> {
    pub(crate) function: &'a Function,
    pub(crate) tab: &'a Tab,
}

impl Opened {
    /// The aggregate was never sent a command.
    pub(crate) fn in_vain(self, function: &Function) {
        function.account().keep_up(self.init, Duration::ZERO, 0);
    }
}

impl<'a> Work<'a> {
    pub(crate) fn new(function: &'a Function, tab: &'a Tab) -> Self {
        Self { function, tab }
    }

    /// Bounds everything that is waited for and done, and writes the record of it. Pinned by the caller: as an argument it
    /// would have its kilobytes twice in this future, which is made for every call.
    pub(crate) async fn within_wall<T, E>(
        self,
        mut call: Pin<&mut impl Future<Output = Result<T, E>>>,
    ) -> Result<T, E>
    where
        E: From<CallError>,
        for<'e> Outcome: From<&'e E>,
    {
        let limit = self.function.spec.limits.wall;
        let began = Instant::now();
        let mut ending = Ending { work: self, began, outcome: Outcome::Canceled };
        let call = poll_fn(|context| {
            let polled = call.as_mut().poll(context);
            if polled.is_pending() {
                // Others may compute while it waits.
                drop(self.tab.take_turn());
            }
            polled
        });
        let result = match tokio::time::timeout_at((began + limit).into(), call).await {
            Ok(result) => result,
            Err(_) => Err(CallError::OutOfTime { limit }.into()),
        };
        ending.outcome = match &result {
            Ok(_) if self.tab.refused.load(Ordering::Relaxed) => Outcome::Refused,
            Ok(_) => Outcome::Ok,
            Err(error) => error.into(),
        };
        result
    }

    /// The module in memory, loaded now if it is not.
    pub(crate) async fn load(self) -> Result<Arc<Loaded>, CallError> {
        if let Some(loaded) = self.function.module.loaded() {
            return Ok(loaded);
        }
        self.tab.started(Start::Cold);
        let _loading = self.tab.begin_init();
        let began = Instant::now();
        let loaded = Box::pin(self.function.load()).await;
        if let Some(turn) = &mut *self.tab.turn.lock() {
            // It was loaded in place, on a processor that others could have had.
            turn.goes_on(began.elapsed());
        }
        loaded
    }

    /// A new instance, which the node will look after.
    pub(crate) async fn make<I: Pooled>(self) -> Result<I, CallError> {
        self.tab.started(Start::Loaded);
        self.function.expect_instance();
        // Before the clock, since loading has its own.
        let loaded = self.load().await?;
        let _making = self.tab.begin_init();
        let node = &self.function.node;
        let made = match I::instantiate(self, &loaded).await {
            Err(error) if node.made_slot(&error, &loaded.engine) => I::instantiate(self, &loaded).await,
            made => made,
        };
        let instance = made.map_err(|error| match error.is::<PoolConcurrencyLimitError>() {
            true => overloaded(Lack::Slots(node.slots)),
            false => explain(&error, None),
        })?;
        self.function.account().made_instance();
        Ok(instance)
    }

    /// A new instance that nobody has asked for yet.
    pub(crate) async fn make_ready<I: Pooled>(function: &Function) -> Result<I, CallError> {
        let tab = Tab::upkeep();
        let work = Work::new(function, &tab);
        let _ending = Ending { work, began: Instant::now(), outcome: Outcome::Ok };
        work.make().await
    }
}

/// Adds up time until it is dropped, also by who gives up.
pub(crate) struct Clock<'a> {
    sum: &'a AtomicU64,
    began: Instant,
}

impl Drop for Clock<'_> {
    fn drop(&mut self) {
        self.sum.fetch_add(nanos(self.began.elapsed()), Ordering::Relaxed);
    }
}

/// Writes the record, however the work ends.
struct Ending<'a> {
    work: Work<'a>,
    began: Instant,
    outcome: Outcome,
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        let Work { function, tab } = self.work;
        function.used();
        let account: &Account = function.account();
        let (waited, init) = (read(&tab.waited), read(&tab.init));
        let (took, cpu) = (self.began.elapsed(), read(&tab.cpu));
        let memory_bytes = tab.memory.load(Ordering::Relaxed);
        let is_upkeep = match self.outcome {
            Outcome::Overloaded => return account.refuse(self.outcome, took),
            Outcome::Again => true,
            outcome => !tab.is_invocation && !outcome.is_error(),
        };
        if is_upkeep {
            let not_ours = if tab.handed_on.load(Ordering::Relaxed) { init } else { Duration::ZERO };
            return account.keep_up(took.saturating_sub(waited + not_ours), cpu, memory_bytes);
        }
        let Some(start) = tab.start() else { return account.refuse(self.outcome, took) };
        let duration = took.saturating_sub(waited + init);
        let init = init + tab.opening;
        let billed_millis = billed_millis(init, duration);
        let invocation = Invocation {
            app: &function.spec.app,
            function: &function.spec.function,
            trigger: function.spec.trigger,
            start,
            outcome: self.outcome,
            waited,
            init,
            duration,
            cpu,
            billed_millis,
            memory_bytes,
            memory_limit_bytes: function.spec.limits.memory_bytes,
            trace: tab.trace.as_ref(),
            links: &tab.links,
        };
        account.add(&invocation);
        report(&invocation);
        if let Some(observer) = &function.node.observer {
            observer.ended(&invocation);
        }
    }
}

/// A line of the log for those who ask for it: `report=debug` among the log's levels.
fn report(invocation: &Invocation<'_>) {
    // To a microsecond, so that it is short to read.
    let millis = |duration: Duration| duration.as_micros() as f64 / 1e3;
    let Invocation { start, outcome, waited, init, duration, cpu, .. } = *invocation;
    tracing::debug!(
        target: "report",
        app = &**invocation.app,
        function = &**invocation.function,
        trigger = invocation.trigger.name(),
        start = start.name(),
        outcome = outcome.name(),
        duration_ms = millis(duration),
        billed_ms = invocation.billed_millis,
        init_ms = millis(init),
        wait_ms = millis(waited),
        cpu_ms = millis(cpu),
        memory_bytes = invocation.memory_bytes,
        memory_limit_bytes = invocation.memory_limit_bytes,
        trace_id = invocation.trace.map(Trace::trace_id),
        "REPORT"
    );
}
