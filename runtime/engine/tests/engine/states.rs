//! Cold, loaded, warm, and back: what brings a function's code and instances into memory, and what takes them out.

use super::*;
use ebb_domain::port::guest::{Lack, ProjectionModule};
use ebb_engine::FunctionStatus;
use futures_util::future::join_all;
use std::process::Command;

/// The module of a guest as another module: with a section that says which.
fn variant(guest: Guest, number: u8) -> Bytes {
    let mut wasm = guest.wasm().to_vec();
    // A custom section: id, size, length of the name, name, content.
    wasm.extend([0, 3, 1, b'n', number]);
    wasm.into()
}

impl Bench {
    pub(crate) fn with(change: impl FnOnce(&mut EngineOptions)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut options = options(&folder);
        change(&mut options);
        Self { engine: WasmEngine::new(options).unwrap(), folder }
    }

    pub(crate) async fn projection(
        &self,
        change: impl FnOnce(&mut FunctionSpec),
    ) -> Arc<dyn ProjectionModule> {
        let module = self.compile(Guest::Projection, ModuleKind::Projection).await.unwrap();
        let mut spec = spec(module);
        change(&mut spec);
        self.engine.projection(spec).unwrap()
    }

    async fn variant(&self, number: u8) -> Arc<dyn CommandModule> {
        let module = self.engine.compile(variant(Guest::Command, number), ModuleKind::Command).await.unwrap();
        let function = format!("aggregate.a{number}").as_str().into();
        self.engine.commands(FunctionSpec { function, ..spec(module) }).unwrap()
    }

    fn status(&self) -> FunctionStatus {
        self.engine.status().remove(0)
    }

    /// Waits until the only function is in a state.
    async fn until(&self, wanted: impl Fn(&FunctionStatus) -> bool) {
        while !wanted(&self.status()) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

async fn apply(module: &Arc<dyn ProjectionModule>, types: &[&str]) -> Result<(), ApplyError> {
    module.apply(&events(types), Arc::new(Mutex::new(Counts::default()))).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_calls_to_a_cold_function_load_it_once_and_all_are_answered() {
    let bench = bench();
    let projection = bench.projection(|_| {}).await;
    let calls = (0..1000).map(|_| {
        let projection = projection.clone();
        tokio::spawn(async move { apply(&projection, &["Counted"]).await })
    });
    for answer in join_all(calls).await {
        assert_eq!(answer.unwrap(), Ok(()));
    }
    let status = bench.status();
    assert_eq!((status.loads, status.calls, status.errors), (1, 1000, 0));
    assert!(status.inits <= 16, "{} instances were made, and 16 at most may be", status.inits);
}

#[tokio::test]
async fn code_that_nobody_runs_leaves_memory_and_comes_back_with_the_next_call() {
    let bench = Bench::with(|options| options.module_idle = Duration::from_millis(40));
    let module = bench.commands(|spec| spec.instances.idle = Duration::from_millis(10)).await;
    for loads in 1..=3 {
        assert_eq!(bench.status().state, FunctionState::Cold);
        assert_eq!(bench.engine.memory_bytes(), 0, "all of it was given back");
        let aggregate = open(&module, "a").await.unwrap();
        assert_eq!((bench.status().state, bench.status().loads), (FunctionState::Warm, loads));
        drop(aggregate);
        bench.until(|status| status.state == FunctionState::Loaded).await;
        bench.until(|status| status.state == FunctionState::Cold).await;
    }
}

#[tokio::test]
async fn a_load_that_fails_is_told_to_all_who_wait_and_tried_again_by_the_next() {
    let (all_wait, gate) = std::sync::mpsc::channel();
    let gate = Mutex::new(gate);
    let bench = Bench::with(|options| {
        // The load of a damaged artefact goes on once everybody waits for it, and fails.
        options.fetch = Some(Arc::new(move |_| {
            let _ = gate.lock().unwrap().recv_timeout(Duration::from_secs(10));
            None
        }));
    });
    let projection = bench.projection(|_| {}).await;
    let path = bench.artefact();
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[1..]).unwrap();
    let callers = join_all((0..16).map(|_| apply(&projection, &["Counted"])));
    let (outcomes, ()) = tokio::join!(biased; callers, async { all_wait.send(()).unwrap() });
    for outcome in outcomes {
        assert!(matches!(outcome, Err(ApplyError::Call(CallError::Failed(_)))), "{outcome:?}");
    }
    assert_eq!(bench.status().loads, 1, "not one for each caller");
    std::fs::write(&path, whole).unwrap();
    assert_eq!(apply(&projection, &["Counted"]).await, Ok(()));
}

#[tokio::test]
async fn as_many_instances_as_the_manifest_says_are_kept_ready() {
    let bench = bench();
    let idle = Duration::from_millis(10);
    let projection = bench
        .projection(|spec| {
            spec.instances.idle = idle;
            spec.instances.warm = 3;
        })
        .await;
    bench.until(|status| status.instances == 3).await;
    assert_eq!(bench.status().state, FunctionState::Warm);
    tokio::time::sleep(idle * 5).await;
    assert_eq!(bench.status().instances, 3, "however long nobody calls");
    join_all((0..8).map(|_| apply(&projection, &["Counted"]))).await;
    bench.until(|status| status.instances == 3).await;
    let made = bench.status().inits;
    assert!(apply(&projection, &["Trap"]).await.is_err());
    bench.until(|status| status.instances == 3 && status.inits > made).await;

    drop(projection);
    let another = |spec: &mut FunctionSpec| {
        spec.function = "aggregate.ready".into();
        spec.instances.warm = 2;
    };
    let aggregate = bench.commands(another).await;
    bench.until(|status| status.instances == 2).await;
    trapped(outcome(&aggregate, "trap", "").await);
    bench.until(|status| status.instances == 2 && status.inits == 3).await;
}

#[tokio::test]
async fn when_memory_runs_out_the_function_called_longest_ago_gives_way() {
    // The first tells what one takes.
    let bench = bench();
    let first = bench.variant(0).await;
    assert_eq!(outcome(&first, "count", "").await.unwrap(), "a=0");
    let one = bench.engine.memory_bytes();

    let budget = one * 3 + one / 2;
    let bench = Bench::with(|options| options.memory_bytes = budget);
    let mut functions = Vec::new();
    for number in 0..6 {
        let function = bench.variant(number).await;
        assert_eq!(outcome(&function, "count", "").await.unwrap(), "a=0");
        assert!(bench.engine.memory_bytes() <= budget);
        functions.push(function);
        // Times are kept in milliseconds; and an instance that was just called is not idle yet.
        tokio::time::sleep(Duration::from_millis(12)).await;
    }
    let states: Vec<_> = bench.engine.status().iter().map(|status| status.state as u8).collect();
    assert!(states.is_sorted(), "{states:?}");
    assert_eq!((states[0], states[5]), (FunctionState::Cold as u8, FunctionState::Warm as u8));
    // All of them can be called, if not at once.
    for _ in 0..3 {
        for function in &functions {
            assert_eq!(outcome(function, "count", "").await.unwrap(), "a=0");
            tokio::time::sleep(Duration::from_millis(12)).await;
        }
    }
}

#[tokio::test]
async fn where_all_memory_is_in_use_a_caller_is_told_to_come_again() {
    let budget = 24 << 20;
    let bench = Bench::with(|options| options.memory_bytes = budget);
    let module = bench.commands(|spec| spec.instances.reuse = at_least(1)).await;
    let full = CallError::Overloaded { lack: Lack::Memory(budget), retry_after: Duration::from_secs(1) };
    assert_eq!(outcome(&module, "allocate", "").await, Err(full.clone()), "before its own limit of 64 MiB");
    assert_eq!(
        full.to_string(),
        "too many calls at once: the node's memory for functions is used up; `functions.memory` in its settings \
         is 25165824 bytes"
    );
    assert_eq!(outcome(&module, "count", "").await.unwrap(), "a=0", "and what it took is free again");
}

#[tokio::test]
async fn an_operators_limit_holds_whatever_the_manifest_says() {
    let limit_bytes = 8 << 20;
    let bench = Bench::with(|options| options.most.memory_bytes = limit_bytes);
    let module = bench.commands(|spec| spec.limits.memory_bytes = cap::MEMORY_BYTES).await;
    assert_eq!(outcome(&module, "allocate", "").await, Err(CallError::OutOfMemory { limit_bytes }));
}

/// Bytes of this process that are in memory.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// The child of the test below: prints what was resident before a burst, in it, and after.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures its process, which must be its own"]
async fn a_burst() {
    let idle = Duration::from_millis(500);
    let bench = Bench::with(|options| options.instances = 1024);
    let one = bench.projection(|spec| spec.instances.idle = idle).await;
    apply(&one, &["Counted"]).await.unwrap();
    tokio::time::sleep(idle * 2).await;
    let before = resident();
    let mut most = 0;
    let many = bench
        .projection(|spec| {
            spec.instances.idle = idle;
            spec.instances.max = at_least(200);
            spec.limits.concurrency = at_least(200);
        })
        .await;
    for _ in 0..3 {
        let touch: Vec<_> = (0..200)
            .map(|_| {
                let many = many.clone();
                tokio::spawn(async move { apply(&many, &["Touch"]).await })
            })
            .collect();
        for touched in touch {
            touched.await.unwrap().unwrap();
        }
        most = most.max(resident());
    }
    tokio::time::sleep(idle * 2).await;
    #[expect(clippy::print_stdout, reason = "its parent reads it")]
    {
        println!("resident {before} {most} {}", resident());
    }
}

#[test]
fn after_a_burst_memory_goes_back_within_two_idle_times() {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "states::a_burst", "--nocapture"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let Some((_, figures)) = text.lines().find_map(|line| line.split_once("resident ")) else {
        panic!("{text}\n{}", String::from_utf8_lossy(&output.stderr))
    };
    let figures: Vec<u64> = figures.split(' ').map(|figure| figure.parse().unwrap()).collect();
    let [before, most, after] = figures[..] else { panic!("{text}") };
    let mib = |bytes: u64| bytes >> 20;
    assert!(most > before * 2, "{} MiB before, no more than {} in it", mib(before), mib(most));
    // A fifth of what an empty node takes, which is more than this process.
    let more = (50 << 20) / 5;
    assert!(after <= before + more, "{} MiB before, {} in it, {} after", mib(before), mib(most), mib(after));
}
