//! The engine against guests that misbehave in every way we know, and against one that does not.

mod fairness;
#[path = "../guests/mod.rs"]
mod guests;
mod hostile;
mod states;
mod usage;

use bytes::Bytes;
use ebb_domain::commit::{CommandId, CommitHeader, CommitNumber};
use ebb_domain::digest::Digest;
use ebb_domain::event::{Position, Revision, StoredEvent};
use ebb_domain::limits::{InstancePolicy, Limits, cap};
use ebb_domain::model::{ModelSchema, Row, Value};
use ebb_domain::name::{AppName, ColumnName, CommandName, EventType};
use ebb_domain::port::guest::{
    Aggregate, ApplyError, CallError, CommandModule, CompileError, Decision, Engine, FunctionSpec,
    GuestCommand, ModuleKind, PastEvent, TriggerKind,
};
use ebb_domain::port::models::{ModelError, Rows};
use ebb_domain::stream::StreamId;
use ebb_domain::text::Text;
use ebb_domain::time::Timestamp;
use ebb_engine::{EngineOptions, FunctionState, WasmEngine};
use guests::Guest;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;

const KEY: [u8; 32] = [7; 32];

/// An engine in a folder of its own.
struct Bench {
    engine: WasmEngine,
    folder: TempDir,
}

fn options(folder: &TempDir) -> EngineOptions {
    EngineOptions { instances: 64, ..EngineOptions::new(folder.path().to_owned(), KEY) }
}

fn bench() -> Bench {
    let folder = tempfile::tempdir().unwrap();
    Bench { engine: WasmEngine::new(options(&folder)).unwrap(), folder }
}

fn at_least(number: u32) -> NonZeroU32 {
    NonZeroU32::new(number).unwrap()
}

fn spec(module: Digest) -> FunctionSpec {
    FunctionSpec {
        app: AppName::new("tests").unwrap(),
        function: "aggregate.counter".into(),
        trigger: TriggerKind::Http,
        module,
        limits: Limits { cpu: Duration::from_secs(5), ..Limits::COMMAND },
        instances: InstancePolicy::default(),
        capabilities: Default::default(),
        secrets: Arc::default(),
    }
}

impl Bench {
    async fn compile(&self, guest: Guest, kind: ModuleKind) -> Result<Digest, CompileError> {
        self.engine.compile(guest.wasm(), kind).await
    }

    async fn commands(&self, change: impl FnOnce(&mut FunctionSpec)) -> Arc<dyn CommandModule> {
        let module = self.compile(Guest::Command, ModuleKind::Command).await.unwrap();
        let mut spec = spec(module);
        change(&mut spec);
        self.engine.commands(spec).unwrap()
    }

    fn instances(&self) -> usize {
        self.engine.status().iter().map(|status| status.instances).sum()
    }

    fn artefact(&self) -> std::path::PathBuf {
        let folder = std::fs::read_dir(self.folder.path()).unwrap().next().unwrap().unwrap().path();
        std::fs::read_dir(folder).unwrap().next().unwrap().unwrap().path()
    }
}

async fn open(module: &Arc<dyn CommandModule>, key: &str) -> Result<Box<dyn Aggregate>, CallError> {
    module.open(&StreamId::parse(format!("counter-{key}")).unwrap(), None).await
}

#[expect(clippy::needless_pass_by_value, reason = "call sites read better with plain numbers and texts")]
fn command(name: &str, data: impl ToString) -> GuestCommand {
    GuestCommand {
        id: CommandId::new(Timestamp(1), [1; 10]),
        name: CommandName::new(name).unwrap(),
        data: Bytes::from(data.to_string()),
        actor: "anonymous".into(),
        time: Timestamp(1_357_023_600_000_001),
        correlation_id: "c".into(),
        trace: None,
    }
}

async fn decide(
    aggregate: &mut Box<dyn Aggregate>,
    name: &str,
    data: impl ToString,
) -> Result<String, CallError> {
    match aggregate.decide(&command(name, data)).await? {
        Decision::Events(events) => {
            Ok(events.iter().map(|event| String::from_utf8_lossy(&event.data).into_owned()).collect())
        }
        Decision::Refused(refusal) => Ok(format!("refused: {}", refusal.code)),
    }
}

/// What becomes of one command in an aggregate of its own.
async fn outcome(
    module: &Arc<dyn CommandModule>,
    name: &str,
    data: impl ToString,
) -> Result<String, CallError> {
    decide(&mut open(module, "a").await?, name, data).await
}

fn past(revision: u64) -> PastEvent {
    PastEvent {
        event_type: "Counted".into(),
        schema_version: 1,
        revision: Revision(revision),
        data: Bytes::from_static(b"{}"),
    }
}

fn trapped(result: Result<String, CallError>) -> String {
    match result {
        Err(CallError::Trapped(reason)) => reason,
        other => panic!("did not trap: {other:?}"),
    }
}

#[tokio::test]
async fn an_aggregate_folds_decides_and_is_restored() {
    let bench = bench();
    let module = bench.commands(|_| {}).await;
    let mut aggregate = open(&module, "a-b").await.unwrap();
    aggregate.apply(&[past(0), past(1)]).await.unwrap();
    assert_eq!(decide(&mut aggregate, "count", "").await.unwrap(), "a-b=2");
    assert_eq!(decide(&mut aggregate, "refuse", "").await.unwrap(), "refused: no");
    let snapshot = aggregate.snapshot().await.unwrap();
    let stream = StreamId::parse("counter-other").unwrap();
    let mut restored = module.open(&stream, snapshot).await.unwrap();
    restored.apply(&[past(2)]).await.unwrap();
    assert_eq!(decide(&mut restored, "count", "").await.unwrap(), "other=3");
    let refused = module.open(&stream, Some(Bytes::from_static(b"???"))).await.err().unwrap();
    assert_eq!(refused, CallError::BadSnapshot("3 bytes, not 8".into()));
}

#[tokio::test]
async fn a_core_module_is_lifted_and_decides_the_same() {
    let bench = bench();
    let module = bench.compile(Guest::CoreCommand, ModuleKind::Command).await.unwrap();
    let module = bench.engine.commands(spec(module)).unwrap();
    assert_eq!(outcome(&module, "count", "").await.unwrap(), "a=0");
}

#[tokio::test]
async fn what_is_not_wasm_is_refused() {
    let bench = bench();
    let wasm = Guest::Command.wasm();
    let mut garbage = wasm.to_vec();
    garbage[wasm.len() / 2] ^= 0xff;
    garbage.truncate(wasm.len() - 7);
    let inputs: [&[u8]; 5] = [b"", b"#!/bin/sh", b"\0asm", b"\0asm\x0d\0\x01\0\xff\xff", &garbage];
    for input in inputs {
        let refused = bench.engine.compile(Bytes::copy_from_slice(input), ModuleKind::Command).await;
        assert!(matches!(refused, Err(CompileError::NotWasm(_))), "{refused:?}");
    }
}

#[tokio::test]
async fn a_module_of_another_world_is_refused_with_what_it_exports() {
    let bench = bench();
    let refused = bench.compile(Guest::Command, ModuleKind::Projection).await.unwrap_err();
    assert_eq!(
        refused.to_string(),
        "does not export `ebbtide:functions/projections@0.1.0`, which a projection module needs unless it is a \
         program (`_start`, `wasi:cli/run`); it exports `ebbtide:functions/aggregates@0.1.0`"
    );
    for (guest, kind) in [(Guest::Projection, ModuleKind::Command), (Guest::NoWorld, ModuleKind::Command)] {
        let refused = bench.compile(guest, kind).await;
        assert!(matches!(refused, Err(CompileError::WrongWorld { .. })), "{refused:?}");
    }
    let core = wat::parse_str(r#"(module (func (export "_initialize")))"#).unwrap();
    let refused = bench.engine.compile(core.into(), ModuleKind::Command).await.unwrap_err();
    assert!(matches!(refused, CompileError::WrongWorld { found, .. } if found == "`_initialize`"));
}

#[tokio::test]
async fn an_import_that_is_not_granted_is_refused_by_name() {
    let bench = bench();
    match bench.compile(Guest::Sockets, ModuleKind::Command).await {
        Err(CompileError::ForbiddenImport { kind: "command", import }) => {
            assert!(import.starts_with("wasi:sockets/"), "{import}");
        }
        other => panic!("{other:?}"),
    }
    let core = wat::parse_str(r#"(module (import "env" "system" (func)))"#).unwrap();
    let refused = bench.engine.compile(core.into(), ModuleKind::Command).await;
    let import = "env::system".into();
    assert_eq!(refused, Err(CompileError::ForbiddenImport { kind: "command", import }));
}

#[tokio::test]
async fn a_module_larger_than_the_limit_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let engine = WasmEngine::new(EngineOptions { module_bytes: 1000, ..options(&folder) }).unwrap();
    let refused = engine.compile(Bytes::from(vec![0; 1001]), ModuleKind::Command).await;
    assert_eq!(refused, Err(CompileError::TooLarge { size: 1001, limit: 1000 }));
}

#[tokio::test]
async fn a_module_that_compiles_too_long_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let engine =
        WasmEngine::new(EngineOptions { compile_time: Duration::from_micros(1), ..options(&folder) })
            .unwrap();
    let refused = engine.compile(Guest::Command.wasm(), ModuleKind::Command).await;
    assert_eq!(refused, Err(CompileError::TooSlow { limit: Duration::from_micros(1) }));
}

#[tokio::test]
async fn proposals_that_are_off_are_not_compiled() {
    let bench = bench();
    let core = wat::parse_str("(module (memory i64 1))").unwrap();
    let refused = bench.engine.compile(core.into(), ModuleKind::Command).await;
    assert!(
        matches!(&refused, Err(CompileError::NotWasm(reason)) if reason.contains("memory64")),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_loop_without_end_runs_out_of_cpu_and_leaves_the_reactor_free() {
    let bench = bench();
    let cpu = Duration::from_millis(100);
    let module = bench.commands(|spec| spec.limits.cpu = cpu).await;
    let neighbour = bench.commands(|_| {}).await;
    // One thread runs both: if the loop did not yield, the neighbour would not answer while it runs.
    let mut looping = std::pin::pin!(outcome(&module, "loop", ""));
    let answered = tokio::select! {
        biased;
        _ = &mut looping => false,
        answer = outcome(&neighbour, "count", "") => answer.is_ok(),
    };
    assert!(answered);
    assert_eq!(looping.await, Err(CallError::OutOfCpu { limit: cpu }));
    assert!(outcome(&module, "count", "").await.is_ok(), "the next call has an instance of its own");
}

#[tokio::test]
async fn a_call_that_takes_too_long_is_ended() {
    let bench = bench();
    let wall = Duration::from_millis(50);
    let module = bench
        .commands(|spec| {
            spec.limits.wall = wall;
            spec.limits.cpu = Duration::from_secs(60);
        })
        .await;
    let mut aggregate = open(&module, "a").await.unwrap();
    let mut neighbour = open(&module, "b").await.unwrap();
    assert_eq!(decide(&mut aggregate, "loop", "").await, Err(CallError::OutOfTime { limit: wall }));
    assert_eq!(decide(&mut neighbour, "count", "").await, Err(CallError::InstanceLost));
    assert_eq!(bench.instances(), 0);
}

#[tokio::test]
async fn allocating_without_end_hits_the_memory_limit() {
    let bench = bench();
    let limit_bytes = 16 << 20;
    let module = bench.commands(|spec| spec.limits.memory_bytes = limit_bytes).await;
    assert_eq!(outcome(&module, "allocate", "").await, Err(CallError::OutOfMemory { limit_bytes }));
}

#[tokio::test]
async fn memory_is_bounded_when_an_instance_is_made_too() {
    let bench = bench();
    let module = bench.commands(|spec| spec.limits.memory_bytes = 1 << 16).await;
    assert_eq!(outcome(&module, "count", "").await, Err(CallError::OutOfMemory { limit_bytes: 1 << 16 }));
}

#[tokio::test]
async fn a_trap_says_what_happened() {
    let bench = bench();
    let module = bench.commands(|_| {}).await;
    let panic = trapped(outcome(&module, "trap", "1234").await);
    assert!(panic.starts_with("panicked at src/command.rs:"), "{panic}");
    assert!(panic.contains(": asked to, with 4 bytes (wasm trap: "), "{panic}");
    let bare = trapped(outcome(&module, "unreachable", "").await);
    assert_eq!(bare, "wasm trap: wasm `unreachable` instruction executed");
    let stack = trapped(outcome(&module, "overflow", "").await);
    assert_eq!(stack, "it overflowed its stack");
    let stack = trapped(outcome(&module, "overflow-wide", "").await);
    assert_eq!(stack, "wasm trap: out of bounds memory access, or a stack overflow");
    assert!(trapped(outcome(&module, "exit", "").await).contains("`exit`"));
    assert!(trapped(outcome(&module, "sleep", "").await).contains("`sleep`"));
    let opened = open(&module, "trap-on-open").await.err().unwrap();
    assert!(matches!(opened, CallError::Trapped(reason) if reason.contains("opened trap-on-open")));
}

#[tokio::test]
async fn a_trap_ends_its_own_instance_only() {
    let bench = bench();
    let module = bench.commands(|spec| spec.instances.aggregates = at_least(2)).await;
    let mut aggregates = Vec::new();
    for key in ["a", "b", "c", "d"] {
        aggregates.push(open(&module, key).await.unwrap());
    }
    assert_eq!(bench.instances(), 2);
    trapped(decide(&mut aggregates[0], "trap", "").await);
    assert_eq!(decide(&mut aggregates[1], "count", "").await, Err(CallError::InstanceLost));
    assert_eq!(decide(&mut aggregates[2], "count", "").await.unwrap(), "c=0");
    assert_eq!(decide(&mut aggregates[3], "count", "").await.unwrap(), "d=0");
    assert_eq!(outcome(&module, "count", "").await.unwrap(), "a=0", "and it opens again");
}

#[tokio::test]
async fn a_million_events_are_refused() {
    let bench = bench();
    let module = bench.commands(|_| {}).await;
    let refused = |result: Result<String, CallError>| match result {
        Err(CallError::OutputTooLarge(reason)) => reason,
        other => panic!("{other:?}"),
    };
    assert_eq!(
        refused(outcome(&module, "events", cap::COMMIT_EVENTS + 1).await),
        "it decided 1001 events, and a commit holds at most 1000"
    );
    assert!(outcome(&module, "events", cap::COMMIT_EVENTS).await.is_ok());
    assert_eq!(refused(outcome(&module, "events", 1_000_000).await), "more than 8388608 bytes in one call");
    assert_eq!(
        refused(outcome(&module, "bytes", cap::EVENT_BYTES + 1).await),
        "event 0 (`Large`) has 524289 bytes of data, and an event holds at most 524288"
    );
    assert!(outcome(&module, "bytes", cap::EVENT_BYTES).await.is_ok());
    assert_eq!(refused(outcome(&module, "bytes", 9 << 20).await), "more than 8388608 bytes in one call");
}

#[tokio::test]
async fn what_is_printed_past_the_budget_is_counted_and_dropped() {
    let bench = bench();
    let module = bench.commands(|spec| spec.limits.cpu = Duration::from_secs(60)).await;
    let printed = 64 << 20;
    outcome(&module, "print", printed).await.unwrap();
    let status = &bench.engine.status()[0];
    assert_eq!(status.logged_bytes, cap::LOG_BYTES as u64);
    assert_eq!(status.dropped_log_bytes, printed as u64 - cap::LOG_BYTES as u64);
    outcome(&module, "eprint", "").await.unwrap();
    assert_eq!(bench.engine.status()[0].logged_bytes, cap::LOG_BYTES as u64 + 9 + 10);
}

#[tokio::test]
async fn a_gigabyte_is_printed_within_the_limits_of_its_call() {
    let bench = bench();
    let module = bench.commands(|spec| spec.limits.cpu = Duration::from_millis(200)).await;
    let error = outcome(&module, "print", 1_u64 << 30).await;
    assert!(matches!(error, Ok(_) | Err(CallError::OutOfCpu { .. })), "{error:?}");
    assert_eq!(bench.engine.status()[0].logged_bytes, cap::LOG_BYTES as u64);
}

#[tokio::test]
async fn a_guest_sees_its_inputs_and_nothing_else() {
    let bench = bench();
    let shared = bench.commands(|_| {}).await;
    let fresh = bench.commands(|spec| spec.instances.reuse = at_least(1)).await;
    let first = outcome(&shared, "ambient", "").await.unwrap();
    assert!(first.contains("1357023600.000001s 0ns [] [] true "), "{first}");
    for module in [&shared, &fresh, &shared] {
        assert_eq!(outcome(module, "ambient", "").await.unwrap(), first);
    }
}

#[tokio::test]
async fn as_many_aggregates_as_the_policy_says_share_an_instance() {
    let bench = bench();
    let module = bench.commands(|spec| spec.instances.max = at_least(1)).await;
    let mut aggregates = Vec::new();
    for index in 0..256 {
        let mut aggregate = open(&module, &index.to_string()).await.unwrap();
        aggregate.apply(&vec![past(0); index]).await.unwrap();
        aggregates.push(aggregate);
    }
    assert_eq!(bench.instances(), 1);
    assert!(matches!(open(&module, "one more").await.err(), Some(CallError::Overloaded { .. })));
    for (index, aggregate) in aggregates.iter_mut().enumerate() {
        assert_eq!(decide(aggregate, "count", "").await.unwrap(), format!("{index}={index}"));
    }
    aggregates.pop();
    assert!(open(&module, "one more").await.is_ok(), "a dropped aggregate frees its place");
}

#[tokio::test]
async fn with_a_reuse_of_one_every_aggregate_has_an_instance_to_itself() {
    let bench = bench();
    let module = bench
        .commands(|spec| {
            spec.instances.reuse = at_least(1);
            spec.instances.max = at_least(2);
        })
        .await;
    let mut first = open(&module, "a").await.unwrap();
    let mut second = open(&module, "b").await.unwrap();
    assert_eq!(bench.instances(), 2);
    trapped(decide(&mut first, "trap", "").await);
    assert_eq!(decide(&mut second, "count", "").await.unwrap(), "b=0");
    drop((first, second));
    assert_eq!(bench.instances(), 0);
    for key in ["c", "d", "e"] {
        assert_eq!(
            decide(&mut open(&module, key).await.unwrap(), "count", "").await.unwrap(),
            format!("{key}=0")
        );
    }
}

#[tokio::test]
async fn a_destructor_that_traps_is_not_blamed_on_the_next_call() {
    let bench = bench();
    let module = bench.commands(|_| {}).await;
    let mut neighbour = open(&module, "a").await.unwrap();
    drop(open(&module, "trap-on-drop").await.unwrap());
    assert_eq!(decide(&mut neighbour, "count", "").await, Err(CallError::InstanceLost));
    assert_eq!(outcome(&module, "count", "").await.unwrap(), "a=0");
}

#[tokio::test]
async fn a_caller_that_goes_away_takes_its_instance_with_it() {
    let bench = bench();
    let module = bench.commands(|_| {}).await;
    let mut aggregate = open(&module, "a").await.unwrap();
    let mut neighbour = open(&module, "b").await.unwrap();
    tokio::select! {
        biased;
        _ = decide(&mut aggregate, "loop", "") => panic!("it ended"),
        () = tokio::task::yield_now() => {}
    }
    assert_eq!(decide(&mut neighbour, "count", "").await, Err(CallError::InstanceLost));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_aggregates_are_called_at_once() {
    let bench = bench();
    let module = bench.commands(|spec| spec.limits.concurrency = at_least(4)).await;
    let calls = (0..64).map(|index| {
        let module = module.clone();
        tokio::spawn(async move {
            let mut aggregate = open(&module, &index.to_string()).await?;
            for revision in 0..20 {
                aggregate.apply(&[past(revision)]).await?;
            }
            decide(&mut aggregate, "count", "").await
        })
    });
    for (index, call) in calls.collect::<Vec<_>>().into_iter().enumerate() {
        assert_eq!(call.await.unwrap().unwrap(), format!("{index}=20"));
    }
}

#[tokio::test]
async fn a_projection_writes_rows_and_says_which_event_failed() {
    let bench = bench();
    let digest = bench.compile(Guest::Projection, ModuleKind::Projection).await.unwrap();
    let module = bench.engine.projection(spec(digest)).unwrap();
    let rows = Arc::new(Mutex::new(Counts::default()));
    let apply = async |types: &[&str]| module.apply(&events(types), rows.clone()).await;
    apply(&["Counted", "Counted", "Put"]).await.unwrap();
    assert_eq!(
        rows.lock().unwrap().log,
        ["add counter-a count 1", "add counter-a count 1", "put counter-a seen=1 actor"]
    );
    assert_eq!(
        apply(&["Counted", "Fail"]).await,
        Err(ApplyError::Event { index: 1, message: "asked to".into() })
    );
    assert_eq!(bench.instances(), 0, "an instance that failed is dropped");
    let trap = apply(&["Trap"]).await;
    assert!(
        matches!(&trap, Err(ApplyError::Call(CallError::Trapped(reason))) if reason.contains("asked to")),
        "{trap:?}"
    );
    let far = apply(&["FailFar"]).await;
    assert!(
        matches!(&far, Err(ApplyError::Call(CallError::Trapped(reason))) if reason.contains("4294967295")),
        "{far:?}"
    );
    assert_eq!(
        apply(&["Unknown"]).await,
        Err(ApplyError::Call(CallError::Trapped("`nothing` is not a model of this projection".into())))
    );
}

/// Rows that write down what is done to them.
#[derive(Default)]
struct Counts {
    log: Vec<String>,
}

impl Rows for Counts {
    fn model(&self, model: &str) -> Result<&ModelSchema, ModelError> {
        Err(ModelError::UnknownModel(model.into()))
    }
    fn get(&mut self, _: &str, _: &str) -> Result<Option<Row>, ModelError> {
        Ok(Some(Row::from([(ColumnName::new("count").unwrap(), Value::Integer(2))])))
    }
    fn put(&mut self, _: &str, key: &str, columns: Vec<(Text, Value)>) -> Result<(), ModelError> {
        assert_eq!(columns[1].1, Value::Text("anonymous".into()));
        self.log.push(match &columns[0].1 {
            Value::Integer(seen) => format!("put {key} {}={seen} {}", columns[0].0, columns[1].0),
            other => format!("put {other:?}"),
        });
        Ok(())
    }
    fn delete(&mut self, model: &str, _: &str) -> Result<(), ModelError> {
        Err(ModelError::UnknownModel(model.into()))
    }
    fn add(&mut self, _: &str, key: &str, column: &str, delta: i64) -> Result<(), ModelError> {
        self.log.push(format!("add {key} {column} {delta}"));
        Ok(())
    }
}

fn events(types: &[&str]) -> Vec<StoredEvent> {
    let header = Arc::new(CommitHeader {
        number: CommitNumber(1),
        epoch: 1,
        recorded_at: Timestamp(5),
        stream: StreamId::parse("counter-a").unwrap(),
        event_count: types.len() as u32,
        first_position: Position(1),
        first_revision: Revision(0),
        command_id: CommandId::new(Timestamp(1), [1; 10]),
        actor: "anonymous".into(),
        correlation_id: "c".into(),
        causation_id: None,
        hops: 0,
        traceparent: None,
        module: Digest::default(),
        idempotency: None,
        origin: None,
        command: None,
        refusal: None,
    });
    let event = |(index, event_type): (usize, &&str)| StoredEvent {
        position: Position(1 + index as u64),
        revision: Revision(index as u64),
        event_type: EventType::new(*event_type).unwrap(),
        schema_version: 1,
        data: Bytes::from_static(b"{}"),
        content_type: ebb_domain::event::JSON,
        commit: header.clone(),
    };
    types.iter().enumerate().map(event).collect()
}

#[tokio::test]
async fn nothing_is_loaded_before_the_first_call_and_idle_instances_go() {
    let bench = bench();
    let idle = Duration::from_millis(20);
    let module = bench.commands(|spec| spec.instances.idle = idle).await;
    let state = || bench.engine.status()[0].state;
    assert_eq!(state(), FunctionState::Cold);
    let aggregate = open(&module, "a").await.unwrap();
    assert_eq!(state(), FunctionState::Warm);
    drop(aggregate);
    while state() != FunctionState::Loaded {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(outcome(&module, "count", "").await.unwrap(), "a=0");
}

#[tokio::test]
async fn the_ticker_stands_still_while_no_guest_runs() {
    let bench = bench();
    let module = bench.commands(|spec| spec.limits.cpu = Duration::from_millis(50)).await;
    drop(outcome(&module, "loop", "").await);
    assert!(bench.engine.ticks() >= 3, "it ticked while the loop ran");
    // One tick may have begun before the call ended; after that there is none.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let ticks = bench.engine.ticks();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(bench.engine.ticks(), ticks);
}

#[tokio::test]
async fn idle_instances_make_room_when_all_slots_are_taken() {
    let folder = tempfile::tempdir().unwrap();
    let engine = WasmEngine::new(EngineOptions { instances: 2, ..options(&folder) }).unwrap();
    let digest = engine.compile(Guest::Command.wasm(), ModuleKind::Command).await.unwrap();
    let mut modules = Vec::new();
    for _ in 0..3 {
        let module = engine.commands(spec(digest)).unwrap();
        drop(open(&module, "a").await.unwrap());
        tokio::time::sleep(Duration::from_millis(15)).await;
        modules.push(module);
    }
    assert_eq!(outcome(&modules[0], "count", "").await.unwrap(), "a=0");
}

#[tokio::test]
async fn a_damaged_artefact_is_compiled_again_and_never_run() {
    let wasm = Guest::Command.wasm();
    let Bench { engine, folder } = bench();
    let digest = engine.compile(wasm.clone(), ModuleKind::Command).await.unwrap();
    drop(engine);
    let engine = WasmEngine::new(options(&folder)).unwrap();
    let bench = Bench { engine, folder };
    let whole = std::fs::read(bench.artefact()).unwrap();
    for position in [0, whole.len() / 2, whole.len() - 1] {
        let mut damaged = whole.clone();
        damaged[position] ^= 1;
        std::fs::write(bench.artefact(), &damaged).unwrap();
        // Without the module there is nothing to compile it from.
        let engine = WasmEngine::new(options(&bench.folder)).unwrap();
        let error = outcome(&engine.commands(spec(digest)).unwrap(), "count", "").await;
        assert!(
            matches!(&error, Err(CallError::Failed(reason)) if reason.contains("deploy it again")),
            "{error:?}"
        );
        let source = wasm.clone();
        let options =
            options(&bench.folder).with_fetch(move |wanted| (*wanted == digest).then(|| source.clone()));
        let engine = WasmEngine::new(options).unwrap();
        let module = engine.commands(spec(digest)).unwrap();
        assert_eq!(outcome(&module, "count", "").await.unwrap(), "a=0");
        assert!(std::fs::read(bench.artefact()).unwrap() != damaged);
    }
}

#[tokio::test]
async fn an_artefact_under_another_key_is_not_trusted() {
    let Bench { engine, folder } = bench();
    let digest = engine.compile(Guest::Command.wasm(), ModuleKind::Command).await.unwrap();
    let other = WasmEngine::new(EngineOptions { mac_key: [8; 32], ..options(&folder) }).unwrap();
    let error = outcome(&other.commands(spec(digest)).unwrap(), "count", "").await;
    assert!(matches!(error, Err(CallError::Failed(_))), "{error:?}");
}

#[tokio::test]
async fn a_module_that_was_never_compiled_is_not_there() {
    let error = bench().engine.commands(spec(Digest::of(b"?"))).err().unwrap();
    assert!(matches!(error, CallError::Failed(reason) if reason.contains("deploy it again")));
}
