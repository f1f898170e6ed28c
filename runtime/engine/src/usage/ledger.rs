//! Sums by function, kept by the node and not by the deployed function: a deployment, or an app that is closed while
//! nobody uses it, loses nothing. They go with the app when it is removed.

use super::{Histogram, Invocation, Outcome, Start};
use crate::durations::Durations;
use ebb_domain::name::AppName;
use ebb_domain::port::guest::TriggerKind;
use ebb_domain::text::Text;
use parking_lot::Mutex;
use serde::Serialize;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// All functions of deployed apps that were ever called: never called, never listed.
#[derive(Default)]
pub(crate) struct Ledger(Mutex<Accounts>);

#[derive(Default)]
struct Accounts {
    by_name: HashMap<(AppName, Text), Arc<Account>>,
    /// Numbers of accounts that are no more.
    free: Vec<usize>,
}

impl Ledger {
    /// The function's account, opened now if there is none.
    pub(crate) fn open(&self, app: &AppName, function: &Text, trigger: TriggerKind) -> Arc<Account> {
        let Accounts { by_name, free } = &mut *self.0.lock();
        let next = by_name.len();
        let account = by_name.entry((app.clone(), function.clone())).or_insert_with(|| {
            // Without free numbers those in use are all below how many there are.
            let number = free.pop().unwrap_or(next);
            let sums = Mutex::new(Sums::default());
            Arc::new(Account { app: app.clone(), function: function.clone(), trigger, number, sums })
        });
        account.clone()
    }

    /// The function's account, if it was ever called.
    pub(crate) fn get(&self, app: &AppName, function: &Text) -> Option<Arc<Account>> {
        self.0.lock().by_name.get(&(app.clone(), function.clone())).cloned()
    }

    /// All accounts, in no order.
    pub(crate) fn accounts(&self) -> Vec<Arc<Account>> {
        self.0.lock().by_name.values().cloned().collect()
    }

    /// Closes the accounts of an app that was removed: else apps that come and go would fill the memory, and take the
    /// places of others in the metrics.
    pub(crate) fn forget(&self, app: &AppName) {
        let Accounts { by_name, free } = &mut *self.0.lock();
        by_name.retain(|(of, _), account| {
            let stays = of != app;
            if !stays {
                free.push(account.number);
            }
            stays
        });
        // The lowest is given out first.
        free.sort_unstable_by(|a, b| b.cmp(a));
    }
}

/// What one function used since the node began.
pub(crate) struct Account {
    app: AppName,
    function: Text,
    trigger: TriggerKind,
    /// The lowest that was free when it was opened.
    number: usize,
    /// Under one lock, held for some additions: cheaper than a dozen atomic ones, and a reader sees whole records.
    sums: Mutex<Sums>,
}

struct Sums {
    /// By outcome.
    outcomes: [u64; Outcome::Failed as usize + 1],
    /// By start.
    starts: [u64; Start::Cold as usize + 1],
    instances: u64,
    billed_millis: u64,
    /// Time of upkeep that has not yet made a whole millisecond.
    unbilled: Duration,
    waited: Duration,
    init: Duration,
    upkeep: Duration,
    upkeep_cpu: Duration,
    /// KiB times milliseconds.
    memory_millis: u64,
    memory_peak: u64,
    latencies: Durations,
    durations: Histogram,
    inits: Histogram,
    cpu: Histogram,
    memory: Histogram,
}

impl Default for Sums {
    fn default() -> Self {
        Self {
            outcomes: Default::default(),
            starts: Default::default(),
            instances: 0,
            billed_millis: 0,
            unbilled: Duration::ZERO,
            waited: Duration::ZERO,
            init: Duration::ZERO,
            upkeep: Duration::ZERO,
            upkeep_cpu: Duration::ZERO,
            memory_millis: 0,
            memory_peak: 0,
            latencies: Durations::default(),
            durations: Histogram::of_times(),
            inits: Histogram::of_times(),
            cpu: Histogram::of_times(),
            memory: Histogram::of_sizes(),
        }
    }
}

impl Sums {
    fn bill(&mut self, millis: u64, memory_bytes: u64) {
        self.billed_millis += millis;
        self.memory_millis = self.memory_millis.saturating_add(millis.saturating_mul(memory_bytes >> 10));
        self.memory_peak = self.memory_peak.max(memory_bytes);
    }
}

impl Account {
    /// An invocation has ended.
    pub(crate) fn add(&self, invocation: &Invocation<'_>) {
        let Invocation { start, outcome, waited, init, duration, cpu, memory_bytes, .. } = *invocation;
        let mut sums = self.sums.lock();
        sums.outcomes[outcome as usize] += 1;
        sums.starts[start as usize] += 1;
        sums.waited += waited;
        sums.latencies.observe(waited + init + duration);
        sums.durations.observe(duration.as_nanos() as u64);
        if start > Start::Warm {
            sums.init += init;
            sums.inits.observe(init.as_nanos() as u64);
        }
        sums.cpu.observe(cpu.as_nanos() as u64);
        sums.memory.observe(memory_bytes);
        sums.bill(invocation.billed_millis, memory_bytes);
    }

    /// One that never ran.
    pub(crate) fn refuse(&self, outcome: Outcome, waited: Duration) {
        let mut sums = self.sums.lock();
        sums.outcomes[outcome as usize] += 1;
        sums.waited += waited;
        sums.latencies.observe(waited);
    }

    /// Something was done that nobody asked for by itself: time is billed for as it adds up.
    pub(crate) fn keep_up(&self, took: Duration, cpu: Duration, memory_bytes: u64) {
        let mut sums = self.sums.lock();
        sums.upkeep += took;
        sums.upkeep_cpu += cpu;
        sums.unbilled += took;
        let millis = sums.unbilled.as_millis() as u64;
        sums.unbilled -= Duration::from_millis(millis);
        sums.bill(millis, memory_bytes);
    }

    /// An instance was made.
    pub(crate) fn made_instance(&self) {
        self.sums.lock().instances += 1;
    }

    pub(crate) fn usage(&self) -> FunctionUsage {
        let sums = self.sums.lock();
        let of = |outcome: Outcome| sums.outcomes[outcome as usize];
        let errors = Outcome::ERRORS.into_iter().filter(|outcome| of(*outcome) > 0);
        let starts = Starts {
            warm: sums.starts[Start::Warm as usize],
            loaded: sums.starts[Start::Loaded as usize],
            cold: sums.starts[Start::Cold as usize],
        };
        FunctionUsage {
            app: self.app.clone(),
            function: self.function.clone(),
            trigger: self.trigger,
            number: self.number,
            invocations: sums.outcomes.iter().sum::<u64>() - of(Outcome::Overloaded),
            refused: of(Outcome::Refused),
            canceled: of(Outcome::Canceled),
            throttled: of(Outcome::Overloaded),
            errors: errors.map(|outcome| ErrorCount { kind: outcome, count: of(outcome) }).collect(),
            starts,
            instances: sums.instances,
            billed_millis: sums.billed_millis,
            duration_micros: sums.durations.sum() / 1000,
            cpu_micros: (sums.cpu.sum() + sums.upkeep_cpu.as_nanos() as u64) / 1000,
            init_micros: sums.init.as_micros() as u64,
            waited_micros: sums.waited.as_micros() as u64,
            upkeep_micros: sums.upkeep.as_micros() as u64,
            gib_seconds: sums.memory_millis as f64 / f64::from(1 << 20) / 1000.0,
            memory_peak_bytes: sums.memory_peak,
            p50_micros: sums.latencies.quantile(0.5),
            p99_micros: sums.latencies.quantile(0.99),
            durations: sums.durations.clone(),
            inits: sums.inits.clone(),
            cpu: sums.cpu.clone(),
            memory: sums.memory.clone(),
        }
    }
}

/// What one function used since the node began, whatever was deployed or closed meanwhile.
#[derive(Clone, Debug, Serialize)]
pub struct FunctionUsage {
    /// Its app.
    pub app: AppName,
    /// `aggregate.flight`, `projection.delays`, `function.hello`.
    pub function: Text,
    /// What calls it.
    pub trigger: TriggerKind,
    /// The lowest, from 0, that no other function had when this one was called for the first time.
    #[serde(skip)]
    pub number: usize,
    /// Invocations that have ended, in whatever way but for want of a place.
    pub invocations: u64,
    /// Those that ended with a domain "no".
    pub refused: u64,
    /// Those whose caller went away.
    pub canceled: u64,
    /// Calls that found no place.
    pub throttled: u64,
    /// Those that failed, by kind.
    #[serde(serialize_with = "by_kind")]
    pub errors: Vec<ErrorCount>,
    /// What they found of the function.
    pub starts: Starts,
    /// Instances that were made.
    pub instances: u64,
    /// Billed milliseconds, of upkeep as well.
    pub billed_millis: u64,
    /// What they took, neither waiting for a place nor initialisation included.
    pub duration_micros: u64,
    /// Computing time, of upkeep as well.
    pub cpu_micros: u64,
    /// Loading the module and making instances, as long as somebody waited for it.
    pub init_micros: u64,
    /// Waiting for a place.
    pub waited_micros: u64,
    /// What was done besides invocations.
    pub upkeep_micros: u64,
    /// Billed time, times what the instance had of memory.
    pub gib_seconds: f64,
    /// The most that an instance had.
    pub memory_peak_bytes: u64,
    /// How long callers of half of them waited at most, to an eighth of itself; none before the first.
    pub p50_micros: Option<u64>,
    /// The same of 99 in 100.
    pub p99_micros: Option<u64>,
    /// Durations, in nanoseconds.
    #[serde(skip)]
    pub durations: Histogram,
    /// Initialisations, in nanoseconds.
    #[serde(skip)]
    pub inits: Histogram,
    /// Computing times of invocations, in nanoseconds.
    #[serde(skip)]
    pub cpu: Histogram,
    /// What their instances had of memory, in bytes.
    #[serde(skip)]
    pub memory: Histogram,
}

impl FunctionUsage {
    /// Invocations that failed.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.errors.iter().map(|error| error.count).sum()
    }

    /// Invocations that were answered.
    #[must_use]
    pub fn succeeded(&self) -> u64 {
        self.invocations - self.failed() - self.canceled
    }

    /// Adds what another function used, for a sum of several. Quantiles can't be added, and are no longer known.
    pub fn add(&mut self, other: &Self) {
        self.invocations += other.invocations;
        self.refused += other.refused;
        self.canceled += other.canceled;
        self.throttled += other.throttled;
        for error in &other.errors {
            match self.errors.iter_mut().find(|ours| ours.kind == error.kind) {
                Some(ours) => ours.count += error.count,
                None => self.errors.push(*error),
            }
        }
        self.starts.warm += other.starts.warm;
        self.starts.loaded += other.starts.loaded;
        self.starts.cold += other.starts.cold;
        self.instances += other.instances;
        self.billed_millis += other.billed_millis;
        self.duration_micros += other.duration_micros;
        self.cpu_micros += other.cpu_micros;
        self.init_micros += other.init_micros;
        self.waited_micros += other.waited_micros;
        self.upkeep_micros += other.upkeep_micros;
        self.gib_seconds += other.gib_seconds;
        self.memory_peak_bytes = self.memory_peak_bytes.max(other.memory_peak_bytes);
        (self.p50_micros, self.p99_micros) = (None, None);
        self.durations.add(&other.durations);
        self.inits.add(&other.inits);
        self.cpu.add(&other.cpu);
        self.memory.add(&other.memory);
    }
}

/// Invocations that failed in one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorCount {
    /// How.
    pub kind: Outcome,
    /// How many.
    pub count: u64,
}

/// `{"trapped": 1}`
fn by_kind<S: serde::Serializer>(errors: &[ErrorCount], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(errors.iter().map(|error| (error.kind.name(), error.count)))
}

/// Invocations by what they found of their function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Starts {
    /// An instance.
    pub warm: u64,
    /// Its code.
    pub loaded: u64,
    /// Neither.
    pub cold: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upkeep_is_billed_by_the_millisecond_as_it_adds_up() {
        let ledger = Ledger::default();
        let (app, function) = (AppName::new("bank").unwrap(), Text::from("aggregate.account"));
        let account = ledger.open(&app, &function, TriggerKind::Http);
        for (micros, billed) in [(600, 0), (600, 1), (700, 1), (100, 2), (3000, 5)] {
            account.keep_up(Duration::from_micros(micros), Duration::ZERO, 0);
            assert_eq!(account.usage().billed_millis, billed);
        }
        assert_eq!((account.usage().upkeep_micros, account.usage().invocations), (5000, 0));
    }

    #[test]
    fn sums_outlive_the_function_that_made_them() {
        let ledger = Ledger::default();
        let app = AppName::new("bank").unwrap();
        for number in 1..=3 {
            let account = ledger.open(&app, &"aggregate.account".into(), TriggerKind::Http);
            account.refuse(Outcome::Overloaded, Duration::ZERO);
            let usage = account.usage();
            assert_eq!((usage.throttled, usage.number, usage.invocations), (number, 0, 0));
        }
        assert_eq!(
            ledger.open(&app, &"projection.balances".into(), TriggerKind::Datasource).usage().number,
            1
        );
        assert_eq!(ledger.accounts().len(), 2);
    }
}
