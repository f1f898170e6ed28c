//! What guests see of the host: our own interfaces and inert stand-ins for WASI.

pub(crate) mod output;
pub(crate) mod preview1;
mod sockets;
pub(crate) mod stdio;
pub(crate) mod wasi;

use crate::bindings::{Column, GuestLevel};
use crate::budget::Charge;
use crate::function::Function;
use crate::meter::Meter;
use crate::turns;
use bytes::Bytes;
use ebb_domain::port::guest::{CallError, SharedRows};
use ebb_domain::port::models::{ModelError, Rows};
use ebb_domain::text::Text;
use ebb_domain::time::Timestamp;
use output::Output;
use std::sync::Arc;
use std::time::Duration;
use stdio::{Stdio, Stdout};
use wasi::Random;
use wasmtime::component::{Linker, ResourceTable};
use wasmtime::{Engine, ResourceLimiter, Result, Store, StoreContextMut, UpdateDeadline};
use wasmtime_wasi::filesystem::WasiFilesystemCtx;

/// Resources that a guest may hold of the host, streams for example, and handles of its own.
pub(crate) const RESOURCES: usize = 10_000;
/// What an element of a table takes.
const TABLE_ELEMENT_BYTES: usize = size_of::<usize>();

/// What belongs to one instance.
pub(crate) struct State {
    table: ResourceTable,
    files: WasiFilesystemCtx,
    output: Output,
    random: Random,
    /// What a program reads and writes; none for a guest that is called through an interface.
    stdio: Option<Stdio>,
    /// The guest's clock: the command's time or the last event's; zero where a call has neither.
    time: Timestamp,
    /// The rows of this call; none outside a projection's call.
    rows: Option<SharedRows>,
    memory: Memory,
    pub(crate) meter: Arc<Meter>,
}

/// All linear memories and tables together.
pub(crate) struct Memory {
    /// Of the node's memory.
    taken: Charge,
    limit: u64,
    /// Is told how much it is.
    meter: Arc<Meter>,
}

/// A store for one instance, with its limits in force.
pub(crate) fn store(function: &Function) -> Store<State> {
    let limits = &function.spec.limits;
    let mut table = ResourceTable::new();
    table.set_max_capacity(RESOURCES);
    let meter: Arc<Meter> = Arc::default();
    let state = State {
        table,
        files: WasiFilesystemCtx::default(),
        output: Output::new(function.source.clone()),
        random: Random::new(),
        stdio: None,
        time: Timestamp(0),
        rows: None,
        memory: Memory::new(function, meter.clone()),
        meter,
    };
    let mut store = Store::new(function.node.modules.engines().plain(), state);
    store.limiter(|state| &mut state.memory);
    bound(&mut store, limits.cpu, |state| &state.meter);
    store
}

/// Puts bounds on what instances in a store hand to the host and hold of it, and on their computing time.
pub(crate) fn bound<T: 'static>(store: &mut Store<T>, cpu: Duration, meter: fn(&T) -> &Arc<Meter>) {
    store.set_hostcall_fuel(ebb_domain::limits::cap::GUEST_OUTPUT_BYTES);
    store.set_max_component_handles(RESOURCES);
    store.epoch_deadline_callback(move |context| {
        if meter(context.data()).spent() >= cpu {
            return Err(CallError::OutOfCpu { limit: cpu }.into());
        }
        Ok(match meter(context.data()).pause() {
            true => UpdateDeadline::YieldCustom(1, Box::pin(turns::pause())),
            // In nobody's turn, and so woken by nobody else.
            false => UpdateDeadline::Yield(1),
        })
    });
    store.set_epoch_deadline(1);
}

/// The interface `log`, which every module may import.
pub(crate) fn add_log<T: 'static>(linker: &mut Linker<T>, output: fn(&T) -> &Output) -> Result<()> {
    linker.instance("ebbtide:functions/log@0.1.0")?.func_wrap(
        "write",
        move |context: StoreContextMut<'_, T>, (level, message): (GuestLevel, String)| {
            output(context.data()).log(level.into(), &message);
            Ok(())
        },
    )
}

/// Our own interfaces and the stand-ins.
pub(crate) fn linker(engine: &Engine) -> Result<Linker<State>> {
    let mut linker = Linker::new(engine);
    wasi::add_to_linker(&mut linker)?;
    add_log(&mut linker, |state: &State| &state.output)?;
    let mut rows = linker.instance("ebbtide:functions/rows@0.1.0")?;
    rows.func_wrap("get", |context: StoreContextMut<'_, State>, (model, key): (String, String)| {
        let row = context.data().rows(|rows| rows.get(&model, &key))?;
        let columns = row.map(|row| row.into_iter().map(Column::from).collect::<Vec<_>>());
        Ok((columns,))
    })?;
    rows.func_wrap(
        "put",
        |context: StoreContextMut<'_, State>, (model, key, columns): (String, String, Vec<Column>)| {
            let columns =
                columns.into_iter().map(|column| (Text::from(column.name), column.value.into())).collect();
            context.data().rows(|rows| rows.put(&model, &key, columns))
        },
    )?;
    rows.func_wrap("delete", |context: StoreContextMut<'_, State>, (model, key): (String, String)| {
        context.data().rows(|rows| rows.delete(&model, &key))
    })?;
    rows.func_wrap(
        "add",
        |context: StoreContextMut<'_, State>, (model, key, column, delta): (String, String, String, i64)| {
            context.data().rows(|rows| rows.add(&model, &key, &column, delta))
        },
    )?;
    Ok(linker)
}

pub(crate) use sockets::linker_with_sockets;

impl State {
    /// A call begins: nothing of the calls before it shows, but what the guest itself kept.
    pub(crate) fn begin(&mut self, time: Timestamp, rows: Option<SharedRows>) {
        self.time = time;
        self.random = Random::new();
        self.rows = rows;
        self.output.begin();
        self.meter.begin();
    }

    /// A call has ended.
    pub(crate) fn end(&mut self) {
        self.rows = None;
        self.output.end();
    }

    /// Makes the guest a program that finds `input` on stdin; gives what it will write to stdout.
    pub(crate) fn connect(&mut self, input: Bytes) -> Stdout {
        self.stdio.insert(Stdio::new(input)).answer()
    }

    /// What a panic of this call said; of a program, what it said on stderr at last.
    pub(crate) fn panic_message(&self) -> Option<String> {
        let words = || self.stdio.as_ref().and_then(|_| self.output.last_words());
        self.output.panic_message().or_else(words)
    }

    fn rows<T>(&self, work: impl FnOnce(&mut dyn Rows) -> Result<T, ModelError>) -> Result<T> {
        let Some(rows) = &self.rows else {
            return Err(CallError::Trapped("it called `rows` outside `apply`".into()).into());
        };
        let mut rows = rows.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        work(&mut *rows).map_err(|error| match error {
            // Not the module's fault: to be tried again, not parked.
            ModelError::Store(_) => CallError::Failed(error.to_string()).into(),
            error => CallError::Trapped(error.to_string()).into(),
        })
    }
}

impl Memory {
    pub(crate) fn new(function: &Function, meter: Arc<Meter>) -> Self {
        let taken = Charge::new(function.node.budget.clone());
        Self { taken, limit: function.spec.limits.memory_bytes, meter }
    }

    fn grow(&mut self, current: usize, desired: usize) -> Result<bool> {
        let more = desired.saturating_sub(current) as u64;
        if self.taken.bytes().saturating_add(more) > self.limit {
            // An error and not a "no": a guest that is told "no" aborts with a message that hides the reason.
            return Err(CallError::OutOfMemory { limit_bytes: self.limit }.into());
        }
        self.taken.grow(more)?;
        self.meter.has_memory(self.taken.bytes());
        Ok(true)
    }
}

impl ResourceLimiter for Memory {
    fn memory_growing(&mut self, current: usize, desired: usize, _maximum: Option<usize>) -> Result<bool> {
        self.grow(current, desired)
    }

    fn table_growing(&mut self, current: usize, desired: usize, _maximum: Option<usize>) -> Result<bool> {
        self.grow(current.saturating_mul(TABLE_ELEMENT_BYTES), desired.saturating_mul(TABLE_ELEMENT_BYTES))
    }
}
