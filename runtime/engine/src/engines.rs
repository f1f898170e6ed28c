//! The two engines that a node has of wasmtime: *plain*, and *concurrent*, which the component model's tasks, streams and
//! futures need and which WASI 0.3 is made of.
//!
//! wasmtime keeps a record of each task where components may be concurrent, and makes and drops one at every call
//! between guest and host, in either direction. Only modules that use tasks need them, and are few; all others run on the
//! plain engine, where a call takes a third less (decision 0073). Each engine has slots of its own, and the concurrent
//! one is made when the first such module comes.

use crate::config;
use parking_lot::Mutex;
use std::sync::OnceLock;
use wasmtime::{Engine, Result};

/// Which of a node's engines a module is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Tasks {
    /// It has none: the plain engine.
    Without,
    /// It may have some: the concurrent engine.
    With,
}

/// The engines of a node.
pub(crate) struct Engines {
    /// Slots of each for instances.
    slots: u32,
    plain: Engine,
    concurrent: OnceLock<Engine>,
    making: Mutex<()>,
}

impl Engines {
    /// Engines with so many slots each; without any, memory is mapped for each instance.
    pub(crate) fn new(slots: u32) -> Result<Self> {
        let plain = config::engine(slots, Tasks::Without)?;
        Ok(Self { slots, plain, concurrent: OnceLock::new(), making: Mutex::new(()) })
    }

    pub(crate) fn plain(&self) -> &Engine {
        &self.plain
    }

    /// The engine for such modules, made now if it is not there.
    pub(crate) fn get(&self, tasks: Tasks) -> Result<Engine> {
        if tasks == Tasks::Without {
            return Ok(self.plain.clone());
        }
        // Not while the other is made: that takes milliseconds, and ticks read it.
        let _making = self.concurrent.get().is_none().then(|| self.making.lock());
        if let Some(engine) = self.concurrent.get() {
            return Ok(engine.clone());
        }
        let engine = config::engine(self.slots, tasks)?;
        Ok(self.concurrent.get_or_init(|| engine).clone())
    }

    /// Those that are there.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Engine> {
        std::iter::once(&self.plain).chain(self.concurrent.get())
    }

    /// A tick: guests that run pause, or end if they have had their time.
    pub(crate) fn tick(&self) {
        self.all().for_each(Engine::increment_epoch);
    }
}
