//! A live instance, and the calls of it: each ticking, measured, and within the limits of its function.

use crate::bindings::{CommandIn, EventIn, FailureOut, NewEventOut, PastEventIn, RefusalOut};
use crate::host::stdio::{ended_badly, ended_well};
use crate::host::{self, State};
use crate::meter::Metered;
use crate::module::{ExportIndices, Form, Loaded};
use crate::pool::Pooled;
use crate::usage::Work;
use bytes::Bytes;
use ebb_domain::limits::cap;
use ebb_domain::port::guest::{CallError, SharedRows};
use ebb_domain::time::Timestamp;
use std::pin::pin;
use std::sync::Arc;
use wasmtime::component::{Func, ResourceAny};
use wasmtime::{Func as CoreFunc, PoolConcurrencyLimitError, Store, Trap};

/// An instance that can be called.
pub(crate) struct Live {
    store: Store<State>,
    exports: Exports,
    /// Keeps the code in memory.
    _loaded: Arc<Loaded>,
    /// Calls so far, of any of its exports.
    calls: u32,
}

/// Functions of an instance, looked up once.
#[derive(Clone, Copy)]
enum Exports {
    /// Still being instantiated.
    None,
    Command {
        constructor: Func,
        restore: Func,
        apply: Func,
        decide: Func,
        snapshot: Func,
    },
    Projection {
        apply: Func,
    },
    Program {
        run: Func,
    },
    /// `_start` of a core module.
    Start(CoreFunc),
}

impl Exports {
    /// Makes an instance; gives what can be called of it.
    async fn of(store: &mut Store<State>, loaded: &Loaded) -> wasmtime::Result<Self> {
        let exports = match &loaded.form {
            Form::Component { pre, exports } => {
                let instance = pre.instantiate_async(&mut *store).await?;
                Self::look_up(store, &instance, exports)
            }
            Form::Program(pre) => {
                let instance = pre.instantiate_async(&mut *store).await?;
                instance.get_func(store, "_start").map(Self::Start)
            }
            Form::Http(_) => return Err(wrong_kind()),
        };
        exports.ok_or_else(|| CallError::Failed("an export is missing".into()).into())
    }

    fn look_up(
        store: &mut Store<State>,
        instance: &wasmtime::component::Instance,
        indices: &ExportIndices,
    ) -> Option<Self> {
        let mut function = |index| instance.get_func(&mut *store, index);
        Some(match indices {
            ExportIndices::Command { constructor, restore, apply, decide, snapshot } => Self::Command {
                constructor: function(constructor)?,
                restore: function(restore)?,
                apply: function(apply)?,
                decide: function(decide)?,
                snapshot: function(snapshot)?,
            },
            ExportIndices::Projection { apply } => Self::Projection { apply: function(apply)? },
            ExportIndices::Program { run } => Self::Program { run: function(run)? },
        })
    }
}

/// A call on an instance whose module is of another kind: a mistake of ours.
fn wrong_kind() -> wasmtime::Error {
    CallError::Failed("the module is of another kind".into()).into()
}

impl Pooled for Live {
    async fn instantiate(work: Work<'_>, loaded: &Arc<Loaded>) -> wasmtime::Result<Self> {
        let store = host::store(work.function);
        let mut live = Self { store, exports: Exports::None, _loaded: loaded.clone(), calls: 0 };
        live.begin(Timestamp(0), None);
        let exports = live.metered(work, async |store| Exports::of(store, loaded).await).await;
        match exports {
            Ok(exports) => {
                live.exports = exports;
                Ok(live)
            }
            Err(error) if error.is::<PoolConcurrencyLimitError>() => Err(error),
            Err(error) => Err(live.explain(&error).into()),
        }
    }

    fn calls(&self) -> u32 {
        self.calls
    }
}

impl Live {
    fn begin(&mut self, time: Timestamp, rows: Option<SharedRows>) {
        self.store.data_mut().begin(time, rows);
        self.store.set_epoch_deadline(1);
    }

    /// Runs guest code, ticking and measured.
    async fn metered<T>(
        &mut self,
        work: Work<'_>,
        call: impl AsyncFnOnce(&mut Store<State>) -> wasmtime::Result<T>,
    ) -> wasmtime::Result<T> {
        let meter = self.store.data().meter.clone();
        let result = {
            let _ticking = work.function.node.ticker.run();
            let call = pin!(call(&mut self.store));
            Metered::new(&meter, work, call).await
        };
        self.store.data_mut().end();
        result
    }

    /// One call of the guest: the guest's clock says `time`. After an error the instance is of no further use.
    async fn call<T>(
        &mut self,
        work: Work<'_>,
        time: Timestamp,
        rows: Option<SharedRows>,
        call: impl AsyncFnOnce(&mut Store<State>, Exports) -> wasmtime::Result<T>,
    ) -> Result<T, CallError> {
        self.begin(time, rows);
        self.calls = self.calls.saturating_add(1);
        let exports = self.exports;
        self.metered(work, async |store| call(store, exports).await)
            .await
            .map_err(|error| self.explain(&error))
    }

    fn explain(&self, error: &wasmtime::Error) -> CallError {
        explain(error, self.store.data().panic_message())
    }

    /// Frees resources whose owners are gone.
    pub(crate) async fn drop_resources(
        &mut self,
        work: Work<'_>,
        resources: Vec<ResourceAny>,
    ) -> Result<(), CallError> {
        self.call(work, Timestamp(0), None, async |store, _| {
            for resource in resources {
                resource.resource_drop_async(&mut *store).await?;
            }
            Ok(())
        })
        .await
    }

    /// `aggregate.constructor`
    pub(crate) async fn construct(&mut self, work: Work<'_>, key: &str) -> Result<ResourceAny, CallError> {
        self.call(work, Timestamp(0), None, async |store, exports| {
            let Exports::Command { constructor, .. } = exports else { return Err(wrong_kind()) };
            let constructor = constructor.typed::<(&str,), (ResourceAny,)>(&store)?;
            Ok(constructor.call_async(store, (key,)).await?.0)
        })
        .await
    }

    /// `aggregate.restore`
    pub(crate) async fn restore(
        &mut self,
        work: Work<'_>,
        key: &str,
        snapshot: &[u8],
    ) -> Result<Result<ResourceAny, String>, CallError> {
        self.call(work, Timestamp(0), None, async |store, exports| {
            let Exports::Command { restore, .. } = exports else { return Err(wrong_kind()) };
            let restore = restore.typed::<(&str, &[u8]), (Result<ResourceAny, String>,)>(&store)?;
            Ok(restore.call_async(store, (key, snapshot)).await?.0)
        })
        .await
    }

    /// `aggregate.apply`
    pub(crate) async fn apply(
        &mut self,
        work: Work<'_>,
        aggregate: ResourceAny,
        events: &[PastEventIn<'_>],
    ) -> Result<(), CallError> {
        self.call(work, Timestamp(0), None, async |store, exports| {
            let Exports::Command { apply, .. } = exports else { return Err(wrong_kind()) };
            let apply = apply.typed::<(ResourceAny, &[PastEventIn<'_>]), ()>(&store)?;
            apply.call_async(store, (aggregate, events)).await
        })
        .await
    }

    /// `aggregate.decide`
    pub(crate) async fn decide(
        &mut self,
        work: Work<'_>,
        aggregate: ResourceAny,
        command: CommandIn<'_>,
    ) -> Result<Result<Vec<NewEventOut>, RefusalOut>, CallError> {
        self.call(work, Timestamp(command.time), None, async |store, exports| {
            let Exports::Command { decide, .. } = exports else { return Err(wrong_kind()) };
            let decide = decide
                .typed::<(ResourceAny, CommandIn<'_>), (Result<Vec<NewEventOut>, RefusalOut>,)>(&store)?;
            Ok(decide.call_async(store, (aggregate, command)).await?.0)
        })
        .await
    }

    /// `aggregate.snapshot`
    pub(crate) async fn snapshot(
        &mut self,
        work: Work<'_>,
        aggregate: ResourceAny,
    ) -> Result<Option<Vec<u8>>, CallError> {
        self.call(work, Timestamp(0), None, async |store, exports| {
            let Exports::Command { snapshot, .. } = exports else { return Err(wrong_kind()) };
            let snapshot = snapshot.typed::<(ResourceAny,), (Option<Vec<u8>>,)>(&store)?;
            Ok(snapshot.call_async(store, (aggregate,)).await?.0)
        })
        .await
    }

    /// `projections.apply`
    pub(crate) async fn project(
        &mut self,
        work: Work<'_>,
        events: &[EventIn<'_>],
        time: Timestamp,
        rows: SharedRows,
    ) -> Result<Result<(), FailureOut>, CallError> {
        self.call(work, time, Some(rows), async |store, exports| {
            let Exports::Projection { apply } = exports else { return Err(wrong_kind()) };
            let apply = apply.typed::<(&[EventIn<'_>],), (Result<(), FailureOut>,)>(&store)?;
            Ok(apply.call_async(store, (events,)).await?.0)
        })
        .await
    }

    /// `run`: what the program wrote to stdout. It can't be run twice.
    pub(crate) async fn run(
        &mut self,
        work: Work<'_>,
        time: Timestamp,
        input: Bytes,
    ) -> Result<Vec<u8>, CallError> {
        let answer = self.store.data_mut().connect(input);
        let exited_well = self
            .call(work, time, None, async |store, exports| {
                let returned = match exports {
                    Exports::Program { run } => {
                        let run = run.typed::<(), (Result<(), ()>,)>(&store)?;
                        run.call_async(store, ()).await.map(|(returned,)| returned.is_ok())
                    }
                    Exports::Start(start) => {
                        let start = start.typed::<(), ()>(&store)?;
                        start.call_async(store, ()).await.map(|()| true)
                    }
                    _ => return Err(wrong_kind()),
                };
                ended_well(returned)
            })
            .await?;
        if exited_well {
            return Ok(answer.take());
        }
        Err(ended_badly(self.store.data().panic_message()))
    }
}

/// What a caller is told about a call that failed; `panic` is what the guest itself said.
pub(crate) fn explain(error: &wasmtime::Error, panic: Option<String>) -> CallError {
    tracing::debug!(error = %format!("{error:?}"), "a call into a guest failed");
    if let Some(error) = error.downcast_ref::<CallError>() {
        return error.clone();
    }
    let reason = match error.downcast_ref::<Trap>() {
        Some(Trap::StackOverflow) => "it overflowed its stack".into(),
        // The stack that compilers keep in linear memory lies at its beginning, so that it overflows into nothing.
        Some(trap @ Trap::MemoryOutOfBounds) => format!("{trap}, or a stack overflow"),
        Some(trap) => trap.to_string(),
        None => error.root_cause().to_string(),
    };
    // wasmtime does not export this error's type.
    if reason.contains("fuel allocated for hostcalls") {
        return CallError::OutputTooLarge(format!("more than {} bytes in one call", cap::GUEST_OUTPUT_BYTES));
    }
    CallError::Trapped(match panic {
        Some(panic) => format!("{panic} ({reason})"),
        None => reason,
    })
}
