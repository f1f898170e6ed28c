//! The command path's rules, on a log in memory and a bank account written in Rust.

use super::*;
use crate::testing::MemoryLog;
use bytes::Bytes;
use ebb_domain::commit::{IdempotencyKey, Refusal};
use ebb_domain::digest::Digest;
use ebb_domain::event::Revision;
use ebb_domain::manifest::Manifest;
use ebb_domain::port::Future;
use ebb_domain::port::guest::{
    Aggregate, CallError, CommandModule, DecidedEvent, Decision, GuestCommand, PastEvent,
};
use ebb_domain::port::log::{EventLog, GroupFailure};
use ebb_domain::port::storage::{Snapshot, Snapshots};
use ebb_domain::stream::StreamId;
use ebb_domain::text::Text;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tokio::sync::Semaphore;

const MANIFEST: &str = r#"
[app]
name = "bank"

[aggregate.account]
module = "account.wasm"
commands = { deposit = {}, withdraw = {}, noop = {}, rogue = {}, trap = {}, panic = {} }
events = { Deposited = { version = 3 }, Withdrawn = {} }
snapshot-every = 3
"#;

/// A bank account as a guest would be: balance in memory, decisions from it.
#[derive(Default)]
struct Bank {
    opened: AtomicU64,
    folded: AtomicU64,
    restored: AtomicU64,
    /// Calls after which the instance is lost, once.
    lose_instance: AtomicBool,
    /// Decisions wait for a permit, if there is a gate.
    gate: Mutex<Option<Arc<Semaphore>>>,
}

struct Account {
    bank: Arc<Bank>,
    balance: i64,
}

struct BankModule(Arc<Bank>);

impl CommandModule for BankModule {
    fn open<'a>(
        &'a self,
        _stream: &'a StreamId,
        snapshot: Option<Bytes>,
    ) -> Future<'a, Result<Box<dyn Aggregate>, CallError>> {
        Box::pin(async move {
            self.0.opened.fetch_add(1, Ordering::Relaxed);
            let balance = match snapshot {
                Some(data) => {
                    self.0.restored.fetch_add(1, Ordering::Relaxed);
                    serde_json::from_slice(&data)
                        .map_err(|error| CallError::BadSnapshot(error.to_string()))?
                }
                None => 0,
            };
            Ok(Box::new(Account { bank: self.0.clone(), balance }) as Box<dyn Aggregate>)
        })
    }
}

impl Aggregate for Account {
    fn apply<'a>(&'a mut self, events: &'a [PastEvent]) -> Future<'a, Result<(), CallError>> {
        for event in events {
            self.bank.folded.fetch_add(1, Ordering::Relaxed);
            let amount: i64 = serde_json::from_slice(&event.data).unwrap();
            self.balance += if &*event.event_type == "Deposited" { amount } else { -amount };
        }
        Box::pin(async { Ok(()) })
    }

    fn decide<'a>(&'a mut self, command: &'a GuestCommand) -> Future<'a, Result<Decision, CallError>> {
        Box::pin(async move {
            let gate = self.bank.gate.lock().clone();
            if let Some(gate) = gate {
                gate.acquire().await.unwrap().forget();
            }
            if self.bank.lose_instance.swap(false, Ordering::Relaxed) {
                return Err(CallError::InstanceLost);
            }
            let event = |event_type: &str| {
                Ok(Decision::Events(vec![DecidedEvent {
                    event_type: event_type.into(),
                    data: command.data.clone(),
                }]))
            };
            match &*command.name {
                "deposit" => event("Deposited"),
                "withdraw" => {
                    let amount: i64 = serde_json::from_slice(&command.data).unwrap();
                    if amount > self.balance {
                        return Ok(Decision::Refused(Refusal {
                            code: "insufficient_funds".into(),
                            message: format!("short by {}", amount - self.balance).into(),
                            details: None,
                        }));
                    }
                    event("Withdrawn")
                }
                "rogue" => event("Undeclared"),
                "panic" => panic!("the host broke"),
                "trap" => Err(CallError::Trapped("boom".into())),
                _ => Ok(Decision::Events(vec![])),
            }
        })
    }

    fn snapshot(&mut self) -> Future<'_, Result<Option<Bytes>, CallError>> {
        let state = serde_json::to_vec(&self.balance).unwrap();
        Box::pin(async move { Ok(Some(state.into())) })
    }
}

#[derive(Default)]
struct MemorySnapshots(Mutex<HashMap<StreamId, Snapshot>>);

impl Snapshots for MemorySnapshots {
    fn get(&self, stream: &StreamId) -> Option<Snapshot> {
        self.0.lock().get(stream).cloned()
    }
    fn put(&self, stream: &StreamId, snapshot: Snapshot) {
        self.0.lock().insert(stream.clone(), snapshot);
    }
}

struct Fixture {
    log: Arc<MemoryLog>,
    bank: Arc<Bank>,
    snapshots: Arc<MemorySnapshots>,
    commands: Arc<CommandService>,
}

impl Fixture {
    fn new() -> Self {
        Self::over(Arc::default(), Arc::default())
    }

    /// A node that starts on a log that is there.
    fn over(log: Arc<MemoryLog>, snapshots: Arc<MemorySnapshots>) -> Self {
        let bank = Arc::new(Bank::default());
        let commands = CommandService::new(log.clone(), snapshots.clone());
        commands.deploy(vec![function(&bank, b"v1", MANIFEST)]);
        Self { log, bank, snapshots, commands: Arc::new(commands) }
    }

    async fn send(&self, command: &str, data: &str) -> Result<CommandReply, CommandError> {
        self.commands.execute(request(command, data)).await
    }

    /// Sends a command in a task of its own.
    fn send_aside(
        &self,
        request: CommandRequest,
    ) -> tokio::task::JoinHandle<Result<CommandReply, CommandError>> {
        let commands = self.commands.clone();
        tokio::spawn(async move { commands.execute(request).await })
    }

    /// Waits until this many commits are staged or durable.
    async fn staged(&self, commits: usize) {
        while self.log.staged() < commits {
            tokio::task::yield_now().await;
        }
    }
}

fn function(bank: &Arc<Bank>, module: &[u8], manifest: &str) -> AggregateFunction {
    let manifest = Manifest::parse(manifest).unwrap();
    AggregateFunction {
        spec: manifest.aggregates.values().next().unwrap().clone(),
        digest: Digest::of(module),
        module: Arc::new(BankModule(bank.clone())),
        command_schemas: HashMap::new(),
        event_schemas: HashMap::new(),
    }
}

fn request(command: &str, data: &str) -> CommandRequest {
    CommandRequest {
        aggregate: "account".into(),
        key: "1".into(),
        command: command.into(),
        data: Bytes::copy_from_slice(data.as_bytes()),
        actor: Text::from_static("alice"),
        precondition: None,
        idempotency: None,
        correlation_id: None,
        causation_id: None,
        hops: 0,
        trace: None,
        origin: None,
    }
}

fn keyed(command: &str, data: &str, key: &str) -> CommandRequest {
    let idempotency =
        IdempotencyKey { key: key.into(), request: Digest::of(format!("{command} {data}").as_bytes()) };
    CommandRequest { idempotency: Some(idempotency), ..request(command, data) }
}

fn refusal_of(answer: Result<CommandReply, CommandError>) -> String {
    match answer.unwrap_err().kind {
        CommandErrorKind::Refused(refusal) => format!("{}: {}", refusal.code, refusal.message),
        other => panic!("not a refusal: {other}"),
    }
}

#[tokio::test]
async fn an_accepted_command_answers_with_its_events_and_their_places() {
    let fixture = Fixture::new();
    fixture.send("deposit", "50").await.unwrap();
    let reply = fixture.send("withdraw", "20").await.unwrap();
    assert_eq!((reply.revision.unwrap().0, reply.position.unwrap().0), (1, 2));
    assert_eq!((&*reply.events[0].event_type, &*reply.events[0].data), ("Withdrawn", &b"20"[..]));
    let stored = &fixture.log.events()[1];
    assert_eq!(stored.id(), reply.events[0].id, "the log has the event under the id that was answered");
    assert_eq!(
        fixture.log.events()[0].schema_version,
        3,
        "events carry the manifest's version of their type"
    );
}

#[tokio::test]
async fn a_refusal_without_a_key_leaves_nothing_behind() {
    let fixture = Fixture::new();
    assert_eq!(refusal_of(fixture.send("withdraw", "20").await), "insufficient_funds: short by 20");
    assert!(fixture.log.commits().is_empty());
}

#[tokio::test]
async fn a_retry_gets_the_same_answer_refusals_included() {
    let fixture = Fixture::new();
    let first = fixture.commands.execute(keyed("deposit", "50", "a")).await.unwrap();
    let again = fixture.commands.execute(keyed("deposit", "50", "a")).await.unwrap();
    assert!(again.replayed);
    assert_eq!(CommandReply { replayed: false, ..again }, first);
    let refused = refusal_of(fixture.commands.execute(keyed("withdraw", "80", "b")).await);
    fixture.send("deposit", "500").await.unwrap();
    assert_eq!(refusal_of(fixture.commands.execute(keyed("withdraw", "80", "b")).await), refused);
}

#[tokio::test]
async fn a_key_used_for_another_request_is_refused() {
    let fixture = Fixture::new();
    fixture.commands.execute(keyed("deposit", "50", "a")).await.unwrap();
    let error = fixture.commands.execute(keyed("deposit", "51", "a")).await.unwrap_err();
    assert!(matches!(error.kind, CommandErrorKind::KeyReused));
    assert_eq!(fixture.log.events().len(), 1);
}

#[tokio::test]
async fn a_key_in_flight_is_refused_and_another_actors_is_not() {
    let fixture = Fixture::new();
    let gate = Arc::new(Semaphore::new(0));
    *fixture.bank.gate.lock() = Some(gate.clone());
    let first = fixture.send_aside(keyed("deposit", "50", "a"));
    while fixture.bank.opened.load(Ordering::Relaxed) == 0 {
        tokio::task::yield_now().await;
    }
    let second = fixture.commands.execute(keyed("deposit", "50", "a")).await.unwrap_err();
    assert!(matches!(second.kind, CommandErrorKind::KeyInFlight));
    gate.add_permits(2);
    first.await.unwrap().unwrap();
    let bobs = CommandRequest { actor: "bob".into(), ..keyed("deposit", "50", "a") };
    assert!(!fixture.commands.execute(bobs).await.unwrap().replayed, "a key's scope is its actor");
}

#[tokio::test]
async fn commands_of_one_stream_pipeline_and_no_answer_runs_ahead_of_the_disk() {
    let fixture = Fixture::new();
    fixture.log.hold();
    let deposit = fixture.send_aside(request("deposit", "50"));
    fixture.staged(1).await;
    let withdraw = fixture.send_aside(request("withdraw", "50"));
    fixture.staged(2).await;
    let refused = fixture.send_aside(request("withdraw", "1"));
    let conflict =
        CommandRequest { precondition: Some(Precondition::Revision(Revision(7))), ..request("deposit", "1") };
    let conflict = fixture.send_aside(conflict);
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    let answered = [&deposit, &withdraw, &refused, &conflict].map(tokio::task::JoinHandle::is_finished);
    assert_eq!(answered, [false; 4], "refusals and conflicts wait for what they were decided on, too");
    fixture.log.release();
    deposit.await.unwrap().unwrap();
    withdraw.await.unwrap().unwrap();
    assert_eq!(refusal_of(refused.await.unwrap()), "insufficient_funds: short by 1");
    let conflict = conflict.await.unwrap().unwrap_err();
    assert!(matches!(conflict.kind, CommandErrorKind::Conflict { actual: Some(Revision(1)) }));
}

#[tokio::test]
async fn what_was_decided_on_a_rewound_commit_is_decided_again() {
    let fixture = Fixture::new();
    fixture.log.hold();
    let deposit = fixture.send_aside(request("deposit", "50"));
    fixture.staged(1).await;
    let withdraw = fixture.send_aside(request("withdraw", "20"));
    fixture.staged(2).await;
    fixture.log.fail_next_group(GroupFailure::Rewound("disk full".into()));
    fixture.log.release();
    let (deposit, withdraw) = (deposit.await.unwrap(), withdraw.await.unwrap());
    // Both are decided again from durable state; the withdrawal may come first now, and is refused then.
    deposit.unwrap();
    let balance: i64 = 50 - if withdraw.is_ok() { 20 } else { 0 };
    assert_eq!(
        refusal_of(fixture.send("withdraw", "1000").await),
        format!("insufficient_funds: short by {}", 1000 - balance)
    );
}

#[tokio::test]
async fn after_a_failed_sync_the_outcome_is_unknown() {
    let fixture = Fixture::new();
    fixture.log.fail_next_group(GroupFailure::OutcomeUnknown("EIO".into()));
    let error = fixture.send("deposit", "50").await.unwrap_err();
    assert!(matches!(error.kind, CommandErrorKind::OutcomeUnknown(_)), "{error}");
    assert!(error.command_id.is_some(), "the caller can look it up later");
    let error = fixture.send("deposit", "50").await.unwrap_err();
    assert!(matches!(error.kind, CommandErrorKind::Unavailable(_)), "{error}");
}

#[tokio::test]
async fn a_full_disk_refuses_and_changes_nothing() {
    let fixture = Fixture::new();
    fixture.send("deposit", "50").await.unwrap();
    fixture.log.set_unavailable(Some("no space left on device"));
    let error = fixture.send("withdraw", "50").await.unwrap_err();
    assert!(matches!(error.kind, CommandErrorKind::Unavailable(_)));
    fixture.log.set_unavailable(None);
    fixture.send("withdraw", "50").await.unwrap();
}

#[tokio::test]
async fn a_warm_aggregate_is_not_folded_again() {
    let fixture = Fixture::new();
    for _ in 0..5 {
        fixture.send("deposit", "1").await.unwrap();
    }
    assert_eq!(fixture.bank.opened.load(Ordering::Relaxed), 1);
    assert_eq!(fixture.bank.folded.load(Ordering::Relaxed), 5);
    assert_eq!(fixture.commands.warm_aggregates("account"), 1);
}

#[tokio::test]
async fn a_lost_instance_is_loaded_again_without_the_caller_noticing() {
    let fixture = Fixture::new();
    fixture.send("deposit", "50").await.unwrap();
    fixture.bank.lose_instance.store(true, Ordering::Relaxed);
    fixture.send("withdraw", "50").await.unwrap();
    assert_eq!(fixture.bank.opened.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn a_trap_is_told_and_the_stream_goes_on_from_the_log() {
    let fixture = Fixture::new();
    fixture.send("deposit", "50").await.unwrap();
    let error = fixture.send("trap", "{}").await.unwrap_err();
    assert!(matches!(error.kind, CommandErrorKind::Module(CallError::Trapped(_))));
    fixture.send("withdraw", "50").await.unwrap();
}

#[tokio::test]
async fn a_runner_that_panics_does_not_take_its_stream_along() {
    let fixture = Fixture::new();
    let error = fixture.send("panic", "{}").await.unwrap_err();
    assert!(matches!(error.kind, CommandErrorKind::Internal(_)), "{error}");
    fixture.send("deposit", "1").await.unwrap();
}

#[tokio::test]
async fn retries_of_a_finished_command_at_once_all_get_its_answer() {
    let fixture = Fixture::new();
    let first = fixture.commands.execute(keyed("deposit", "50", "a")).await.unwrap();
    fixture.log.hold();
    let other = fixture.send_aside(request("deposit", "1"));
    fixture.staged(2).await;
    let retries =
        [fixture.send_aside(keyed("deposit", "50", "a")), fixture.send_aside(keyed("deposit", "50", "a"))];
    fixture.log.release();
    other.await.unwrap().unwrap();
    for retry in retries {
        assert_eq!(retry.await.unwrap().unwrap().events, first.events);
    }
}

#[tokio::test]
async fn a_cold_stream_starts_from_its_snapshot() {
    let fixture = Fixture::new();
    for _ in 0..4 {
        fixture.send("deposit", "10").await.unwrap();
    }
    while fixture.snapshots.0.lock().is_empty() {
        tokio::task::yield_now().await;
    }
    let restarted = Fixture::over(fixture.log.clone(), fixture.snapshots.clone());
    restarted.send("withdraw", "40").await.unwrap();
    assert_eq!(restarted.bank.restored.load(Ordering::Relaxed), 1);
    assert_eq!(
        restarted.bank.folded.load(Ordering::Relaxed),
        2,
        "one event behind the snapshot, and the new one"
    );
}

#[tokio::test]
async fn a_snapshot_of_another_module_is_used_only_if_both_declare_the_same_state_version() {
    let fixture = Fixture::new();
    let stream = StreamId::parse("account-1").unwrap();
    fixture.send("deposit", "10").await.unwrap();
    let foreign = Snapshot {
        revision: Revision(0),
        event: fixture.log.events()[0].id(),
        module: Digest::of(b"another"),
        state_version: Some(7),
        data: Bytes::from_static(b"10"),
    };
    fixture.snapshots.put(&stream, foreign.clone());
    let restarted = Fixture::over(fixture.log.clone(), fixture.snapshots.clone());
    restarted.send("noop", "{}").await.unwrap();
    assert_eq!(restarted.bank.restored.load(Ordering::Relaxed), 0);

    let agreeing = Fixture::over(fixture.log.clone(), fixture.snapshots.clone());
    let manifest = format!("{MANIFEST}state-version = 7\n");
    agreeing.commands.deploy(vec![function(&agreeing.bank, b"v1", &manifest)]);
    agreeing.send("withdraw", "10").await.unwrap();
    assert_eq!(agreeing.bank.restored.load(Ordering::Relaxed), 1);
}

/// After a purge and a new deployment, or after an older copy of the log was put in place, a power cut may bring back
/// snapshots of streams that have these names and other events.
#[tokio::test]
async fn a_snapshot_of_events_that_the_log_does_not_have_is_not_used() {
    let before = Fixture::new();
    for _ in 0..3 {
        before.send("deposit", "1000").await.unwrap();
    }
    while before.snapshots.0.lock().is_empty() {
        tokio::task::yield_now().await;
    }
    let purged = Fixture::over(Arc::default(), before.snapshots.clone());
    for _ in 0..3 {
        purged.log.given("account-1", "Deposited", &serde_json::json!(1));
    }
    let refused = purged.send("withdraw", "4").await.unwrap_err();
    assert!(matches!(refused.kind, CommandErrorKind::Refused(_)), "{refused:?}");
    purged.send("withdraw", "3").await.unwrap();
}

#[tokio::test]
async fn a_snapshot_that_the_module_does_not_accept_is_refolded() {
    let fixture = Fixture::new();
    fixture.send("deposit", "10").await.unwrap();
    let broken = Snapshot {
        revision: Revision(0),
        event: fixture.log.events()[0].id(),
        module: Digest::of(b"v1"),
        state_version: None,
        data: Bytes::from_static(b"not json"),
    };
    fixture.snapshots.put(&StreamId::parse("account-1").unwrap(), broken);
    let restarted = Fixture::over(fixture.log.clone(), fixture.snapshots.clone());
    restarted.send("withdraw", "10").await.unwrap();
}

#[tokio::test]
async fn a_deployment_decides_the_next_command_on_state_of_its_own() {
    let fixture = Fixture::new();
    fixture.send("deposit", "10").await.unwrap();
    fixture.commands.deploy(vec![function(&fixture.bank, b"v2", MANIFEST)]);
    fixture.send("withdraw", "10").await.unwrap();
    assert_eq!(fixture.bank.opened.load(Ordering::Relaxed), 2, "warm state is the module's that made it");
    assert_eq!(fixture.log.events()[1].commit.module, Digest::of(b"v2"));
}

#[tokio::test]
async fn preconditions_are_the_callers() {
    let fixture = Fixture::new();
    let with = |precondition, data: &str| CommandRequest {
        precondition: Some(precondition),
        ..request("deposit", data)
    };
    let refused = fixture.commands.execute(with(Precondition::Exists, "1")).await.unwrap_err();
    assert!(matches!(refused.kind, CommandErrorKind::Conflict { actual: None }));
    fixture.commands.execute(with(Precondition::Absent, "1")).await.unwrap();
    fixture.commands.execute(with(Precondition::Revision(Revision(0)), "1")).await.unwrap();
    fixture.commands.execute(with(Precondition::Exists, "1")).await.unwrap();
    let refused = fixture.commands.execute(with(Precondition::Absent, "1")).await.unwrap_err();
    assert!(matches!(refused.kind, CommandErrorKind::Conflict { actual: Some(Revision(2)) }));
}

#[tokio::test]
async fn the_key_is_looked_up_before_the_precondition() {
    let fixture = Fixture::new();
    let request =
        || CommandRequest { precondition: Some(Precondition::Absent), ..keyed("deposit", "1", "a") };
    fixture.commands.execute(request()).await.unwrap();
    assert!(fixture.commands.execute(request()).await.unwrap().replayed);
}

#[tokio::test]
async fn an_undeclared_event_is_the_modules_error_and_is_not_appended() {
    let fixture = Fixture::new();
    let error = fixture.send("rogue", "{}").await.unwrap_err();
    assert!(matches!(error.kind, CommandErrorKind::UndeclaredEvent { .. }));
    assert!(fixture.log.commits().is_empty());
}

#[tokio::test]
async fn bad_requests_name_what_is_wrong_and_change_nothing() {
    let fixture = Fixture::new();
    let told = |answer: Result<CommandReply, CommandError>| answer.unwrap_err().to_string();
    let unknown = CommandRequest { aggregate: "acount".into(), ..request("deposit", "1") };
    assert_eq!(
        told(fixture.commands.execute(unknown).await),
        "this app has no aggregate `acount`; it has account"
    );
    assert!(told(fixture.send("deposid", "1").await).contains("no command `deposid`; it has deposit"));
    assert!(told(fixture.send("deposit", "{").await).starts_with("the body is not JSON"));
    let control = CommandRequest { key: "a\0b".into(), ..request("deposit", "1") };
    assert!(told(fixture.commands.execute(control).await).contains("control characters"));
    assert!(fixture.log.commits().is_empty());
}

#[tokio::test]
async fn a_full_mailbox_is_told_to_come_back() {
    let fixture = Fixture::new();
    let gate = Arc::new(Semaphore::new(0));
    *fixture.bank.gate.lock() = Some(gate.clone());
    let first = fixture.send_aside(request("deposit", "1"));
    while fixture.bank.opened.load(Ordering::Relaxed) == 0 {
        tokio::task::yield_now().await;
    }
    let waiting: Vec<_> =
        (0..MAILBOX_CAPACITY).map(|_| fixture.send_aside(request("deposit", "1"))).collect();
    // One more than fits: whichever comes last is turned away.
    let over = fixture.send_aside(request("deposit", "1"));
    while !over.is_finished() && !waiting.iter().any(tokio::task::JoinHandle::is_finished) {
        tokio::task::yield_now().await;
    }
    gate.add_permits(MAILBOX_CAPACITY + 2);
    let mut throttled = 0;
    for task in waiting.into_iter().chain([first, over]) {
        if let Err(error) = task.await.unwrap() {
            assert!(matches!(error.kind, CommandErrorKind::Throttled { .. }), "{error}");
            assert!(error.kind.retry_after().is_some());
            throttled += 1;
        }
    }
    assert_eq!(throttled, 1);
}

#[tokio::test]
async fn a_caller_who_left_before_the_decision_is_not_decided_for() {
    let fixture = Fixture::new();
    let gate = Arc::new(Semaphore::new(0));
    *fixture.bank.gate.lock() = Some(gate.clone());
    let first = fixture.send_aside(request("deposit", "1"));
    while fixture.bank.opened.load(Ordering::Relaxed) == 0 {
        tokio::task::yield_now().await;
    }
    let gone = fixture.send_aside(request("deposit", "100"));
    tokio::task::yield_now().await;
    gone.abort();
    assert!(gone.await.unwrap_err().is_cancelled());
    gate.add_permits(10);
    first.await.unwrap().unwrap();
    assert_eq!(refusal_of(fixture.send("withdraw", "2").await), "insufficient_funds: short by 1");
}

#[tokio::test(start_paused = true)]
async fn warm_aggregates_that_nobody_uses_are_dropped() {
    let fixture = Fixture::new();
    fixture.send("deposit", "1").await.unwrap();
    while fixture.commands.warm_aggregates("account") == 0 {
        tokio::task::yield_now().await;
    }
    tokio::time::sleep(std::time::Duration::from_secs(120)).await;
    assert_eq!(fixture.commands.warm_aggregates("account"), 0);
}

#[tokio::test]
async fn closing_waits_for_commands_under_way_and_takes_no_more() {
    let fixture = Fixture::new();
    let gate = Arc::new(Semaphore::new(0));
    *fixture.bank.gate.lock() = Some(gate.clone());
    let under_way = fixture.send_aside(request("deposit", "1"));
    while fixture.bank.opened.load(Ordering::Relaxed) == 0 {
        tokio::task::yield_now().await;
    }
    let commands = fixture.commands.clone();
    let closing = tokio::spawn(async move { commands.close().await });
    tokio::task::yield_now().await;
    let refused = fixture.send("deposit", "1").await.unwrap_err();
    assert!(matches!(refused.kind, CommandErrorKind::ShuttingDown));
    gate.add_permits(1);
    under_way.await.unwrap().unwrap();
    closing.await.unwrap();
    assert_eq!(fixture.log.durable().borrow().position.0, 1);
}

async fn state_at(node: &Fixture, revision: Option<u64>) -> Result<(u64, String), StateError> {
    let stream = StreamId::parse("account-1").unwrap();
    let function = function(&node.bank, b"v1", MANIFEST);
    let module = BankModule(node.bank.clone());
    let shown = state::state_at(&*node.log, &function, &module, &stream, revision.map(Revision)).await?;
    assert_eq!(shown.module, function.digest);
    Ok((shown.revision.0, String::from_utf8(shown.data.to_vec()).unwrap()))
}

#[tokio::test]
async fn a_state_of_the_past_is_folded_from_the_first_event_whatever_is_warm_or_in_a_snapshot() {
    let node = Fixture::new();
    for amount in ["10", "20", "30", "40"] {
        node.send("deposit", amount).await.unwrap();
    }
    let stream = StreamId::parse("account-1").unwrap();
    let wrong = Snapshot {
        revision: Revision(0),
        event: node.log.events()[0].id(),
        module: Digest::of(b"v1"),
        state_version: None,
        data: Bytes::from_static(b"999"),
    };
    node.snapshots.put(&stream, wrong);
    let warm = node.commands.warm_aggregates("account");
    for (revision, balance) in [(0, "10"), (1, "30"), (2, "60"), (3, "100")] {
        assert_eq!(state_at(&node, Some(revision)).await.unwrap(), (revision, balance.to_owned()));
    }
    assert_eq!(state_at(&node, None).await.unwrap(), (3, "100".to_owned()));
    assert_eq!(node.commands.warm_aggregates("account"), warm);
    assert_eq!(node.bank.restored.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_revision_that_the_stream_has_not_reached_is_told_with_where_it_ends() {
    let node = Fixture::new();
    let error = state_at(&node, None).await.unwrap_err();
    assert_eq!(error.to_string(), "stream `account-1` has no events");
    node.send("deposit", "10").await.unwrap();
    let error = state_at(&node, Some(7)).await.unwrap_err();
    assert_eq!(error.to_string(), "stream `account-1` ends at revision 0");
}
