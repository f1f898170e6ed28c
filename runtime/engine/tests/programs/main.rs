//! Programs: what they are given, and what becomes of whatever they answer.

mod http;

use bytes::Bytes;
use ebb_domain::commit::{CommandId, CommitHeader, CommitNumber};
use ebb_domain::digest::Digest;
use ebb_domain::event::{Position, Revision, StoredEvent};
use ebb_domain::limits::{InstancePolicy, Limits};
use ebb_domain::model::{ColumnType, ModelSchema, Row, Value};
use ebb_domain::name::{AppName, ColumnName, CommandName, EventType, ModelName};
use ebb_domain::port::guest::{
    Aggregate, ApplyError, CallError, CommandModule, CompileError, Decision, Engine, FunctionSpec,
    GuestCommand, ModuleKind, PastEvent, ProjectionModule, TriggerKind,
};
use ebb_domain::port::models::{ModelError, Rows};
use ebb_domain::stream::StreamId;
use ebb_domain::text::Text;
use ebb_domain::time::Timestamp;
use ebb_engine::{EngineOptions, WasmEngine};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;

/// A program that answers like this, whatever it is asked.
fn answers(answer: &str) -> Bytes {
    program(answer, "(call $write (i32.const 1) (i32.const 1024) (global.get $length))")
}

/// A program that says on stderr what it was given on stdin, and fails.
fn complains() -> Bytes {
    program("", "(call $write (i32.const 2) (i32.const 65536) (call $read)) (call $exit (i32.const 1))")
}

/// A program that asks for rows until it is given some, and then answers.
fn asks_first(need: &str, answer: &str) -> Bytes {
    // Without rows its input ends with `"rows":{}}`.
    let body = format!(
        r#"(local $end i32)
        (local.set $end (i32.add (i32.const 65536) (call $read)))
        (if (i32.eq (i32.load8_u (i32.sub (local.get $end) (i32.const 3))) (i32.const 123))
            (then (call $write (i32.const 1) (i32.const 1024) (i32.const {need})))
            (else (call $write (i32.const 1) (i32.const {at}) (i32.const {answer}))))"#,
        need = need.len(),
        at = 1024 + need.len(),
        answer = answer.len(),
    );
    program(&format!("{need}{answer}"), &body)
}

fn program(text: &str, body: &str) -> Bytes {
    let data: String = text.bytes().map(|byte| format!("\\{byte:02x}")).collect();
    let wat = format!(
        r#"(module
            (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
            (import "wasi_snapshot_preview1" "environ_sizes_get" (func $environ_sizes_get (param i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "environ_get" (func $environ_get (param i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "clock_time_get" (func $clock_time_get (param i32 i64 i32) (result i32)))
            (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll_oneoff (param i32 i32 i32 i32) (result i32)))
            (memory (export "memory") 40)
            (global $length i32 (i32.const {length}))
            (data (i32.const 1024) "{data}")
            (func $write (param $fd i32) (param $at i32) (param $length i32)
                (i32.store (i32.const 0) (local.get $at))
                (i32.store (i32.const 4) (local.get $length))
                (drop (call $fd_write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8))))
            (func $read (result i32) (local $end i32)
                (local.set $end (i32.const 65536))
                (loop $more
                    (i32.store (i32.const 0) (local.get $end))
                    (i32.store (i32.const 4) (i32.const 65536))
                    (drop (call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
                    (local.set $end (i32.add (local.get $end) (i32.load (i32.const 8))))
                    (br_if $more (i32.load (i32.const 8))))
                (i32.sub (local.get $end) (i32.const 65536)))
            (func (export "_start") {body}))"#,
        length = text.len(),
    );
    wat::parse_str(wat).unwrap().into()
}

/// An engine in a folder of its own.
struct Bench {
    engine: WasmEngine,
    _folder: TempDir,
}

fn bench() -> Bench {
    let folder = tempfile::tempdir().unwrap();
    let options = EngineOptions { instances: 16, ..EngineOptions::new(folder.path().to_owned(), [7; 32]) };
    Bench { engine: WasmEngine::new(options).unwrap(), _folder: folder }
}

fn spec(module: Digest) -> FunctionSpec {
    FunctionSpec {
        app: AppName::new("tests").unwrap(),
        function: "aggregate.counter".into(),
        trigger: TriggerKind::Http,
        module,
        limits: Limits { cpu: Duration::from_secs(5), ..Limits::COMMAND },
        instances: InstancePolicy::default(),
        capabilities: Arc::default(),
        secrets: Arc::default(),
    }
}

impl Bench {
    async fn commands(&self, wasm: Bytes) -> Arc<dyn CommandModule> {
        let module = self.engine.compile(wasm, ModuleKind::Command).await.unwrap();
        self.engine.commands(spec(module)).unwrap()
    }

    async fn projection(&self, wasm: Bytes) -> Arc<dyn ProjectionModule> {
        let module = self.engine.compile(wasm, ModuleKind::Projection).await.unwrap();
        self.engine.projection(spec(module)).unwrap()
    }
}

async fn open(module: &Arc<dyn CommandModule>) -> Box<dyn Aggregate> {
    module.open(&StreamId::parse("counter-a").unwrap(), None).await.unwrap()
}

fn command() -> GuestCommand {
    GuestCommand {
        id: CommandId::new(Timestamp(1), [1; 10]),
        name: CommandName::new("count").unwrap(),
        data: Bytes::from_static(b"{\"by\":1}"),
        actor: "anonymous".into(),
        time: Timestamp(1_357_023_600_000_001),
        correlation_id: "c".into(),
        trace: None,
    }
}

fn past(revisions: std::ops::Range<u64>) -> Vec<PastEvent> {
    let past = |revision| PastEvent {
        event_type: "Counted".into(),
        schema_version: 1,
        revision: Revision(revision),
        data: Bytes::from_static(b"{}"),
    };
    revisions.map(past).collect()
}

/// What a new aggregate makes of a command, when its program answers like this.
async fn decided(answer: &str) -> Result<Decision, CallError> {
    let bench = bench();
    let module = bench.commands(answers(answer)).await;
    open(&module).await.decide(&command()).await
}

async fn not_decided(answer: &str) -> String {
    match decided(answer).await {
        Err(CallError::BadAnswer(problem)) => problem,
        other => panic!("`{answer}` came to {other:?}"),
    }
}

fn said(result: Result<impl std::fmt::Debug, CallError>) -> String {
    match result {
        Err(CallError::Trapped(reason)) => {
            reason.strip_prefix("the program failed, and said at last: ").unwrap_or(&reason).to_owned()
        }
        other => panic!("did not fail: {other:?}"),
    }
}

#[tokio::test]
async fn one_call_of_the_host_takes_so_much_and_no_more() {
    let bench = bench();
    // A thousand times the same 64 KiB would be 64 MiB; a list of more is refused whole.
    let many = |count: u32| {
        let body = format!(
            r#"(local $at i32) (local $errno i32)
            (local.set $at (i32.const 131072))
            (loop $more
                (i32.store (local.get $at) (i32.const 65536))
                (i32.store (i32.add (local.get $at) (i32.const 4)) (i32.const 65536))
                (local.set $at (i32.add (local.get $at) (i32.const 8)))
                (br_if $more (i32.lt_u (local.get $at) (i32.const {end}))))
            (i32.store (i32.const 8) (i32.const 0))
            (local.set $errno (call $fd_write (i32.const 2) (i32.const 131072) (i32.const {count}) (i32.const 8)))
            (i32.store8 (i32.const 1034) (i32.add (i32.const 65) (local.get $errno)))
            (i32.store8 (i32.const 1035) (i32.add (i32.const 65) (i32.div_u (i32.load (i32.const 8)) (i32.const 1048576))))
            (call $write (i32.const 1) (i32.const 1024) (global.get $length))"#,
            end = 131_072 + count * 8,
        );
        program(r#"{"body": "--"}"#, &body)
    };
    for (count, said) in [(1, "AA"), (1024, "AI"), (1025, "]A")] {
        let function = bench.http(many(count)).await;
        let (_, body) = http::call(&function, Vec::new()).await.unwrap();
        assert_eq!(body, said, "errno and MiB written, of {count}");
    }
}

#[tokio::test]
async fn a_program_decides_events_with_data_as_it_wrote_it() {
    let decision = decided(r#"{"events": [{"type": "Counted", "data": {"by":  1.50}}]}"#).await.unwrap();
    let Decision::Events(events) = decision else { panic!("{decision:?}") };
    assert_eq!((&*events[0].event_type, &events[0].data[..]), ("Counted", &br#"{"by":  1.50}"#[..]));
    assert_eq!(decided(r#" {"events": []} "#).await, Ok(Decision::Events(Vec::new())));
}

#[tokio::test]
async fn a_program_refuses_with_details() {
    let decision =
        decided(r#"{"refusal": {"code": "no", "message": "not now", "details": {"by": 1}}}"#).await.unwrap();
    let Decision::Refused(refusal) = decision else { panic!("{decision:?}") };
    assert_eq!((&*refusal.code, &*refusal.message), ("no", "not now"));
    assert_eq!(refusal.details.unwrap(), r#"{"by": 1}"#);
}

#[tokio::test]
async fn an_answer_that_can_not_be_used_is_quoted_with_what_was_expected() {
    let expected =
        r#"; expected `{"events": [{"type": …, "data": …}]}` or `{"refusal": {"code": …, "message": …}}`"#;
    assert_eq!(
        not_decided("").await,
        format!("the answer to `decide`, 0 bytes, can't be used: it wrote nothing to stdout{expected}")
    );
    assert_eq!(
        not_decided("deciding\n{}").await,
        format!(
            "the answer to `decide`, 11 bytes, can't be used: it is not JSON: expected value at line 1 column 1; logs \
             belong on stderr; it begins `deciding\n{{}}`{expected}"
        )
    );
    let long = format!("{{\"events\": [], \"comment\": \"{}\"}}", "x".repeat(1000));
    for (answer, problem) in [
        ("{\"events\": []} {\"events\": []}", "it wrote more than one document; logs belong on stderr"),
        ("{}", "it has neither of `events` and `refusal`"),
        ("[[]]", "it is an array, not an object"),
        (r#"{"event": []}"#, "unknown field `event`, expected `events` or `refusal`"),
        (r#"{"events": [{"type": "Counted"}]}"#, "missing field `data`"),
        (
            r#"{"events": [], "refusal": {"code": "no", "message": ""}}"#,
            "it has both of `events` and `refusal`",
        ),
        (r#"{"events": "#, "it is not JSON: EOF"),
        (&long, "unknown field `comment`"),
    ] {
        let said = not_decided(answer).await;
        assert!(said.contains(problem) && said.ends_with(expected), "`{answer}` came to: {said}");
        assert!(said.len() < 700, "{said}");
    }
}

#[tokio::test]
async fn a_program_that_fails_is_told_by_its_last_words() {
    let bench = bench();
    let module = bench
        .commands(program(
            "starting\nno such\n",
            "(call $write (i32.const 2) (i32.const 1024) (i32.const 17)) (call $exit (i32.const 3))",
        ))
        .await;
    assert_eq!(said(open(&module).await.decide(&command()).await), "no such");
    let module = bench.commands(program("", "(call $exit (i32.const 1))")).await;
    assert_eq!(
        said(open(&module).await.decide(&command()).await),
        "the program failed, and said nothing on stderr"
    );
    let module = bench.commands(program("", "unreachable")).await;
    assert!(said(open(&module).await.decide(&command()).await).contains("unreachable"));
}

#[tokio::test]
async fn exit_with_0_is_an_end_like_any_other() {
    let wasm = program(
        r#"{"events": []}"#,
        "(call $write (i32.const 1) (i32.const 1024) (global.get $length)) (call $exit (i32.const 0)) unreachable",
    );
    let bench = bench();
    let module = bench.commands(wasm).await;
    let mut aggregate = open(&module).await;
    for _ in 0..3 {
        assert_eq!(
            aggregate.decide(&command()).await,
            Ok(Decision::Events(Vec::new())),
            "each in its own run"
        );
    }
}

#[tokio::test]
async fn limits_hold_for_programs() {
    let bench = bench();
    let forever = program(
        &"x".repeat(60_000),
        "(loop $more (call $write (i32.const 1) (i32.const 1024) (global.get $length)) (br $more))",
    );
    let module = bench.commands(forever).await;
    let too_much = open(&module).await.decide(&command()).await;
    assert_eq!(too_much, Err(CallError::OutputTooLarge("more than 8388608 bytes on stdout".into())));
    let module =
        bench.engine.compile(program("", "(loop $more (br $more))"), ModuleKind::Command).await.unwrap();
    let limits = Limits { cpu: Duration::from_millis(20), ..Limits::COMMAND };
    let module = bench.engine.commands(FunctionSpec { limits, ..spec(module) }).unwrap();
    let too_long = open(&module).await.decide(&command()).await;
    assert_eq!(too_long, Err(CallError::OutOfCpu { limit: limits.cpu }));
}

#[tokio::test]
async fn a_decision_is_given_the_events_the_command_and_its_time() {
    let bench = bench();
    let module = bench.commands(complains()).await;
    let mut aggregate = open(&module).await;
    aggregate.apply(&past(0..1)).await.unwrap();
    assert_eq!(
        said(aggregate.decide(&command()).await),
        format!(
            r#"{{"kind":"decide","stream":"counter-a","key":"a","state":null,"events":[{{"type":"Counted","data":{{}},"revision":0,"schemaversion":1}}],"command":{{"id":"{}","name":"count","data":{{"by":1}},"time":"2013-01-01T07:00:00.000001Z","actor":"anonymous","correlationid":"c"}}}}"#,
            command().id
        )
    );
}

#[tokio::test]
async fn events_are_folded_into_a_state_that_decisions_and_snapshots_have() {
    let bench = bench();
    let folds = bench.commands(answers(r#"{"state": {"count": 64}}"#)).await;
    let mut aggregate = open(&folds).await;
    aggregate.apply(&past(0..63)).await.unwrap();
    aggregate.apply(&past(63..64)).await.unwrap();
    let state = aggregate.snapshot().await.unwrap().unwrap();
    assert_eq!(state, r#"{"count": 64}"#);
    // The same state, in front of a program that shows what it is given.
    let shows = bench.commands(complains()).await;
    let stream = StreamId::parse("counter-a").unwrap();
    let mut restored = shows.open(&stream, Some(state)).await.unwrap();
    restored.apply(&past(64..65)).await.unwrap();
    let given = said(restored.decide(&command()).await);
    assert!(
        given.contains(r#""state":{"count": 64},"events":[{"type":"Counted","data":{},"revision":64,"#),
        "{given}"
    );
    let refused = shows.open(&stream, Some(Bytes::from_static(b"{"))).await.err();
    assert_eq!(refused, Some(CallError::BadSnapshot("it is not JSON".into())));
}

#[tokio::test]
async fn a_program_without_state_is_given_all_events_as_long_as_they_are_few() {
    let bench = bench();
    let module = bench.commands(answers("{}")).await;
    let mut aggregate = open(&module).await;
    aggregate.apply(&past(0..999)).await.unwrap();
    assert_eq!(aggregate.snapshot().await, Ok(None));
    match aggregate.apply(&past(999..1000)).await {
        Err(CallError::BadAnswer(problem)) => assert!(
            problem.contains("`counter-a` has 1000 events")
                && problem.ends_with("answer `fold` with `state`"),
            "{problem}"
        ),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_state_does_not_go_away() {
    let bench = bench();
    let module = bench.commands(answers("{}")).await;
    let stream = StreamId::parse("counter-a").unwrap();
    let mut aggregate = module.open(&stream, Some(Bytes::from_static(b"{}"))).await.unwrap();
    let lost = aggregate.apply(&past(0..64)).await;
    assert!(
        matches!(&lost, Err(CallError::BadAnswer(problem)) if problem.contains("it has no `state`")),
        "{lost:?}"
    );
    let huge = format!(r#"{{"state": "{}"}}"#, "x".repeat(1 << 20));
    let module = bench.commands(answers(&huge)).await;
    let large = open(&module).await.apply(&past(0..64)).await;
    assert!(matches!(&large, Err(CallError::OutputTooLarge(_))), "{large:?}");
}

#[tokio::test]
async fn a_function_holds_no_more_aggregates_of_a_program_than_of_a_component() {
    let bench = bench();
    let module = bench.engine.compile(answers("{}"), ModuleKind::Command).await.unwrap();
    let two = InstancePolicy {
        max: NonZeroU32::new(1).unwrap(),
        aggregates: NonZeroU32::new(2).unwrap(),
        ..InstancePolicy::default()
    };
    let limits = Limits { memory_bytes: 8 << 20, ..Limits::COMMAND };
    let module = bench.engine.commands(FunctionSpec { instances: two, limits, ..spec(module) }).unwrap();
    let mut held = vec![open(&module).await, open(&module).await];
    let third = module.open(&StreamId::parse("counter-c").unwrap(), None).await;
    assert!(matches!(third.err(), Some(CallError::Overloaded { .. })));
    held.pop();
    let large = Bytes::from(format!("\"{}\"", "x".repeat(9 << 20)));
    let too_large = module.open(&StreamId::parse("counter-c").unwrap(), Some(large)).await;
    assert!(matches!(too_large.err(), Some(CallError::Overloaded { .. })));
    let mut aggregate = open(&module).await;
    let large =
        PastEvent { data: Bytes::from(format!("\"{}\"", "x".repeat(9 << 20))), ..past(0..1).remove(0) };
    for _ in 0..2 {
        // Told to come again, it is told so again: nothing of the first time was kept.
        let too_large = aggregate.apply(std::slice::from_ref(&large)).await;
        assert!(matches!(too_large, Err(CallError::Overloaded { .. })), "{too_large:?}");
    }
    aggregate.apply(&past(0..1)).await.unwrap();
}

#[tokio::test]
async fn what_a_program_may_not_import_is_refused_by_name() {
    let core = r#"(module
        (import "wasi_snapshot_preview1" "sock_accept" (func (param i32 i32 i32) (result i32)))
        (memory (export "memory") 1) (func (export "_start")))"#;
    let refused = bench().engine.compile(wat::parse_str(core).unwrap().into(), ModuleKind::Command).await;
    assert_eq!(
        refused,
        Err(CompileError::ForbiddenImport {
            kind: "command",
            import: "wasi_snapshot_preview1::sock_accept".into()
        })
    );
}

/// A program in preview 1 that exits with what `$check` says.
fn checks(imports: &str, check: &str) -> Bytes {
    let wat = format!(
        r#"(module {imports}
            (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
            (import "wasi_snapshot_preview1" "environ_sizes_get" (func $environ_sizes_get (param i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "environ_get" (func $environ_get (param i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "clock_time_get" (func $clock_time_get (param i32 i64 i32) (result i32)))
            (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll_oneoff (param i32 i32 i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
            (memory (export "memory") 1)
            (data (i32.const 64) "{{\22events\22: []}}")
            (func $check (result i32) {check})
            (func (export "_start")
                (call $exit (call $check))))"#
    );
    wat::parse_str(wat).unwrap().into()
}

async fn passes(wasm: Bytes) {
    let bench = bench();
    let module = bench.commands(wasm).await;
    match open(&module).await.decide(&command()).await {
        Err(CallError::BadAnswer(problem)) if problem.contains("it wrote nothing") => {}
        other => panic!("it did not exit with 0: {other:?}"),
    }
}

#[tokio::test]
async fn the_clock_stands_at_the_commands_time_and_chance_is_always_the_same() {
    let time = 1_357_023_600_000_001_u64 * 1000;
    let clock =
        r#"(import "wasi_snapshot_preview1" "clock_time_get" (func $now (param i32 i64 i32) (result i32)))"#;
    passes(checks(
        clock,
        &format!(
            "(drop (call $now (i32.const 0) (i64.const 1) (i32.const 8)))
             (i64.ne (i64.load (i32.const 8)) (i64.const {time}))"
        ),
    ))
    .await;
    // A fold has no time, and Go dies of a clock that says zero.
    let bench = bench();
    let is_zero =
        "(drop (call $now (i32.const 1) (i64.const 1) (i32.const 8))) (i64.eqz (i64.load (i32.const 8)))";
    let module = bench.commands(checks(clock, is_zero)).await;
    let folded = open(&module).await.apply(&past(0..64)).await;
    assert!(
        matches!(&folded, Err(CallError::BadAnswer(problem)) if problem.contains("it wrote nothing")),
        "{folded:?}"
    );
    let random =
        r#"(import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))"#;
    // In the next run the same bytes come again.
    let first = "(drop (call $random (i32.const 8) (i32.const 8))) (i64.eqz (i64.load (i32.const 8)))";
    passes(checks(random, first)).await;
}

#[tokio::test]
async fn a_program_that_sleeps_is_told_that_it_can_not() {
    let poll = r#"(import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))"#;
    let bench = bench();
    let sleeps = checks(poll, "(call $poll (i32.const 1024) (i32.const 2048) (i32.const 1) (i32.const 8))");
    let module = bench.commands(sleeps).await;
    let said = said(open(&module).await.decide(&command()).await);
    assert!(said.contains("`sleep`"), "{said}");
    // Kind 1: stdin, which is always ready.
    passes(checks(
        poll,
        "(i32.store8 (i32.const 1032) (i32.const 1))
         (drop (call $poll (i32.const 1024) (i32.const 2048) (i32.const 1) (i32.const 8)))
         (i32.ne (i32.load (i32.const 8)) (i32.const 1))",
    ))
    .await;
}

#[tokio::test]
async fn pointers_that_lead_nowhere_and_files_that_are_not_there_are_errors_of_the_guest() {
    for (buffers, fd, errno) in [("-8", 1, 21), ("65532", 1, 21), ("16", 7, 8)] {
        passes(checks(
            "",
            &format!(
                "(i32.store (i32.const 16) (i32.const -1)) (i32.store (i32.const 20) (i32.const 100))
                 (i32.ne (i32.const {errno}) (call $fd_write (i32.const {fd}) (i32.const {buffers}) (i32.const 1) (i32.const 8)))"
            ),
        ))
        .await;
    }
    let open = r#"(import "wasi_snapshot_preview1" "path_open"
        (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))"#;
    let zero = "(i32.const 0)";
    passes(checks(
        open,
        &format!(
            "(i32.ne (i32.const 8) (call $open (i32.const 3) {zero} {zero} {zero} {zero} (i64.const 0) (i64.const 0) {zero} {zero}))"
        ),
    ))
    .await;
}

/// The program as a component, as `wasm32-wasip2` makes them.
fn lifted(core: &[u8]) -> Bytes {
    use wasi_preview1_component_adapter_provider as adapter;
    let name = adapter::WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME;
    let encoder = wit_component::ComponentEncoder::default().module(core).unwrap();
    let mut encoder = encoder.adapter(name, adapter::WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER).unwrap();
    encoder.encode().unwrap().into()
}

#[tokio::test]
async fn a_program_may_be_a_component() {
    let bench = bench();
    let module = bench.commands(lifted(&answers(r#"{"events": []}"#))).await;
    assert_eq!(open(&module).await.decide(&command()).await, Ok(Decision::Events(Vec::new())));
    let module = bench.commands(lifted(&complains())).await;
    let given = said(open(&module).await.decide(&command()).await);
    assert!(given.starts_with(r#"{"kind":"decide","stream":"counter-a""#), "{given}");
    let module = bench.commands(lifted(&program("", "(call $exit (i32.const 0)) unreachable"))).await;
    let nothing = open(&module).await.decide(&command()).await;
    assert!(matches!(&nothing, Err(CallError::BadAnswer(_))), "{nothing:?}");
}

#[tokio::test]
async fn sockets_may_be_imported_by_what_has_all_of_libc_in_it_and_trap() {
    let component = |library: &str| {
        let wat = format!(
            r#"(component
                (import "wasi:sockets/tcp-create-socket@0.2.9" (instance $sockets (export "create-tcp-socket" (func))))
                {library}
                (core module $main
                    (import "sockets" "create" (func $create))
                    (func (export "run") (result i32) call $create i32.const 0))
                (core func $create (canon lower (func $sockets "create-tcp-socket")))
                (core instance $main (instantiate $main
                    (with "sockets" (instance (export "create" (func $create))))))
                (func $run (result (result)) (canon lift (core func $main "run")))
                (instance $program (export "run" (func $run)))
                (export "wasi:cli/run@0.2.9" (instance $program)))"#
        );
        Bytes::from(wat::parse_str(wat).unwrap())
    };
    let bench = bench();
    let refused = bench.engine.compile(component(""), ModuleKind::Command).await;
    assert!(
        matches!(&refused, Err(CompileError::ForbiddenImport { import, .. }) if import.starts_with("wasi:sockets/")),
        "{refused:?}"
    );
    let library = r#"(core module (import "env" "__memory_base" (global i32)))"#;
    let module = bench.commands(component(library)).await;
    assert_eq!(
        said(open(&module).await.decide(&command()).await),
        "it called `wasi:sockets/tcp-create-socket@0.2.9#create-tcp-socket`, which no function is granted"
    );
}

/// One model, and what was done to it.
struct Table {
    schema: ModelSchema,
    log: Vec<String>,
}

impl Table {
    fn new() -> Arc<Mutex<Self>> {
        let column = |name: &str| ColumnName::new(name).unwrap();
        let columns = [
            (column("key"), ColumnType::Text),
            (column("count"), ColumnType::Integer),
            (column("note"), ColumnType::Json),
        ];
        let schema = ModelSchema {
            name: ModelName::new("counts").unwrap(),
            key: column("key"),
            columns: columns.into_iter().collect(),
            indexes: Vec::new(),
        };
        Arc::new(Mutex::new(Self { schema, log: Vec::new() }))
    }
}

impl Rows for Table {
    fn model(&self, model: &str) -> Result<&ModelSchema, ModelError> {
        match model {
            "counts" => Ok(&self.schema),
            _ => Err(ModelError::UnknownModel(model.into())),
        }
    }
    fn get(&mut self, model: &str, key: &str) -> Result<Option<Row>, ModelError> {
        self.model(model)?;
        self.log.push(format!("get {key}"));
        Ok((key == "a").then(|| Row::from([(ColumnName::new("count").unwrap(), Value::Integer(2))])))
    }
    fn put(&mut self, _: &str, key: &str, columns: Vec<(Text, Value)>) -> Result<(), ModelError> {
        let columns: Vec<_> = columns.iter().map(|(name, value)| format!(" {name}={value:?}")).collect();
        self.log.push(format!("put {key}{}", columns.concat()));
        Ok(())
    }
    fn delete(&mut self, _: &str, key: &str) -> Result<(), ModelError> {
        self.log.push(format!("delete {key}"));
        Ok(())
    }
    fn add(&mut self, model: &str, key: &str, column: &str, delta: i64) -> Result<(), ModelError> {
        self.model(model)?;
        self.log.push(format!("add {key} {column} {delta}"));
        Ok(())
    }
}

fn events(count: u32) -> Vec<StoredEvent> {
    let header = Arc::new(CommitHeader {
        number: CommitNumber(1),
        epoch: 1,
        recorded_at: Timestamp(5),
        stream: StreamId::parse("counter-a").unwrap(),
        event_count: count,
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
    let event = |index: u64| StoredEvent {
        position: Position(1 + index),
        revision: Revision(index),
        event_type: EventType::new("Counted").unwrap(),
        schema_version: 1,
        data: Bytes::from_static(b"{}"),
        content_type: ebb_domain::event::JSON,
        commit: header.clone(),
    };
    (0..u64::from(count)).map(event).collect()
}

/// What a projection comes to, and what it did to rows.
async fn projected(wasm: Bytes) -> (Result<(), ApplyError>, Vec<String>) {
    let bench = bench();
    let module = bench.projection(wasm).await;
    let table = Table::new();
    let result = module.apply(&events(2), table.clone()).await;
    let log = std::mem::take(&mut table.lock().unwrap().log);
    (result, log)
}

#[tokio::test]
async fn a_program_changes_rows_in_its_order() {
    let (result, log) = projected(answers(
        r#"{"rows": [
            {"model": "counts", "key": "a", "put": {"key": "a", "count": 3.0, "note": {"x": [1]}}},
            {"model": "counts", "key": "a", "add": {"count": -1}},
            {"model": "counts", "key": "b", "delete": true}]}"#,
    ))
    .await;
    assert_eq!(result, Ok(()));
    assert_eq!(
        log,
        ["put a count=Integer(3) note=Json(\"{\\\"x\\\":[1]}\")", "add a count -1", "delete b"],
        "the key's column is filled in"
    );
}

#[tokio::test]
async fn rows_that_a_program_needs_are_there_when_it_is_run_again() {
    let need = r#"{"need": [{"model": "counts", "key": "a"}, {"model": "counts", "key": "z"}]}"#;
    let (result, log) = projected(asks_first(need, r#"{"rows": []}"#)).await;
    assert_eq!((result, log), (Ok(()), vec!["get a".to_owned(), "get z".to_owned()]));
    let (result, _) = projected(asks_first(need, "?")).await;
    assert!(matches!(&result, Err(ApplyError::Call(CallError::BadAnswer(_)))), "{result:?}");
    // One that asks for the same again would do so for ever.
    let (result, log) = projected(answers(need)).await;
    assert!(
        matches!(&result, Err(ApplyError::Call(CallError::BadAnswer(problem))) if problem.contains("was given all")),
        "{result:?}"
    );
    assert_eq!(log.len(), 2);
}

#[tokio::test]
async fn a_projection_is_given_cloud_events_and_the_rows_it_asked_for() {
    let (result, _) = projected(complains()).await;
    let Err(ApplyError::Call(error)) = result else { panic!("{result:?}") };
    let given = said(Err::<(), _>(error));
    for part in [
        r#"{"kind":"project","events":[{"#,
        r#""subject":"counter-a""#,
        r#""type":"Counted""#,
        r#""position":1"#,
    ] {
        assert!(given.contains(part), "{given}");
    }
}

#[tokio::test]
async fn a_program_says_which_event_failed_and_keeps_what_came_before() {
    let row = r#"{"model": "counts", "key": "a", "add": {"count": 1}}"#;
    let failure = |index: u32| {
        answers(&format!(r#"{{"rows": [{row}], "failure": {{"index": {index}, "message": "asked to"}}}}"#))
    };
    let (result, log) = projected(failure(1)).await;
    assert_eq!(result, Err(ApplyError::Event { index: 1, message: "asked to".into() }));
    assert_eq!(log, ["add a count 1"]);
    let (result, _) = projected(failure(2)).await;
    assert!(matches!(&result, Err(ApplyError::Call(CallError::Trapped(_)))), "{result:?}");
}

#[tokio::test]
async fn changes_that_can_not_be_made_are_named() {
    for (answer, problem) in [
        (r#"{"rows": [{"model": "counts", "key": "a"}]}"#, "`rows[0]`: it must have one of `put`, `add`"),
        (
            r#"{"rows": [{"model": "counts", "key": "a", "put": {"count": "3"}}]}"#,
            "column `count` of `counts` holds integer",
        ),
        (
            r#"{"rows": [{"model": "rows", "key": "a", "put": {}}]}"#,
            "`rows` is not a model of this projection",
        ),
        (
            r#"{"rows": [{"model": "counts", "key": "a", "add": {"count": 1.5}}]}"#,
            "invalid type: floating point",
        ),
        (r#"{"need": [{"model": "rows", "key": "a"}]}"#, "`rows` is not a model of this projection"),
        (r#"{"rows": [], "need": []}"#, "it must have `rows`, or `need` and nothing else"),
        ("{}", "it must have `rows`, or `need` and nothing else"),
    ] {
        match projected(answers(answer)).await {
            (Err(ApplyError::Call(CallError::BadAnswer(said))), _) => {
                assert!(said.contains(problem), "`{answer}` came to: {said}");
            }
            other => panic!("`{answer}` came to {other:?}"),
        }
    }
}
