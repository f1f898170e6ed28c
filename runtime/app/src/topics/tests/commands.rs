//! Records that are commands: carried out once, in their order, and answered.

use crate::app::App;
use crate::bundle::Bundle;
use crate::node::{Node, NodeDeps, NodeOptions};
use crate::projections::{ProjectionStatus, State};
use crate::testing::{ManualClock, MemoryBus, MemoryLog, MemoryModels, MemoryStorage, NoSecrets, Step};
use bytes::Bytes;
use ebb_domain::commit::Refusal;
use ebb_domain::digest::Digest;
use ebb_domain::name::{AppName, ProjectionName, TopicName};
use ebb_domain::port::Future;
use ebb_domain::port::bus::BusErrorKind;
use ebb_domain::port::guest::{
    Aggregate, CallError, CommandModule, CompileError, DecidedEvent, Decision, Engine, FunctionSpec,
    GuestCommand, HttpFunction, Lack, ModuleKind, PastEvent, ProjectionModule,
};
use ebb_domain::stream::StreamId;
use ebb_domain::topic::Record;
use serde_json::Value;
use std::future::ready;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// A desk where notes are written down: those that say nothing are refused, and some break the module while it is broken.
struct Desk {
    storage: Arc<MemoryStorage>,
    models: Arc<MemoryModels>,
    bus: MemoryBus,
    broken: Arc<AtomicBool>,
    node: Arc<Node>,
    topic: TopicName,
}

fn name() -> AppName {
    AppName::new("desk").unwrap()
}

fn consumer() -> ProjectionName {
    ProjectionName::new("note-commands").unwrap()
}

impl Desk {
    /// With this in the source.
    async fn open(source: &str) -> Self {
        let (storage, models) = (MemoryStorage::new(Arc::new(ManualClock::default())), Arc::default());
        let (bus, broken) = (MemoryBus::default(), Arc::new(AtomicBool::new(true)));
        let topic = bus.make("notes", 1);
        bus.make("replies", 1);
        bus.make("dead", 1);
        let node = node(&storage, &models, &bus, &broken).await;
        let manifest = format!(
            r#"
            [app]
            name = "desk"
            relay = "off"
            [aggregate.note]
            module = "note.wasm"
            commands = {{ write = {{}} }}
            events = {{ Written = {{}} }}
            allow = ["kafka:notes"]
            [aggregate.note.source]
            topics = ["notes"]
            command = {{ header = "command" }}
            retry = {{ attempts = 3, backoff = "100ms" }}
            {source}
            "#
        );
        let mut bundle = Bundle::default();
        bundle.files.insert("ebb.toml".into(), Bytes::from(manifest));
        bundle.files.insert("note.wasm".into(), Bytes::from_static(b"\0asm\x0d\0\x01\0"));
        node.deploy(&name(), bundle, None, "ann").await.unwrap();
        Self { storage, models, bus, broken, node, topic }
    }

    async fn restart(&mut self) {
        self.node.shutdown().await;
        self.node = node(&self.storage, &self.models, &self.bus, &self.broken).await;
    }

    fn asks(&self, key: &str, text: &str) -> u64 {
        self.asks_with(&[("command", "write")], key, text)
    }

    fn asks_with(&self, headers: &[(&str, &str)], key: &str, text: &str) -> u64 {
        self.bus.given(&self.topic, 0, key, headers, format!("\"{text}\""))
    }

    fn log(&self) -> Arc<MemoryLog> {
        self.storage.log(&name()).unwrap()
    }

    /// What was written, by whom, in order.
    fn written(&self) -> Vec<(String, String)> {
        let events = self.log().events().into_iter().filter(|event| &*event.event_type == "Written");
        let written = events.map(|event| {
            let text: String = serde_json::from_slice(&event.data).unwrap();
            (event.stream().key().to_owned(), text)
        });
        written.collect()
    }

    async fn app(&self) -> Arc<App> {
        self.node.deployed_app("desk").unwrap().app().await.unwrap()
    }

    async fn status(&self) -> ProjectionStatus {
        self.app().await.projections().await.unwrap().status().remove(0)
    }

    /// Waits until every record was dealt with.
    async fn done(&self) {
        for _ in 0..1_000_000 {
            let taken = self.bus.committed("desk", &self.topic, 0).unwrap_or_default();
            let status = self.status().await.serving;
            if taken == self.bus.records("notes").len() as u64 && status.lag == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("never done: {:?}", self.status().await);
    }

    async fn parked(&self) -> Vec<(String, u64, String)> {
        let app = self.app().await;
        let parked = app.projections().await.unwrap().parked(&consumer(), None, 100).await.unwrap();
        parked.into_iter().map(|parked| (parked.key.to_string(), parked.queued, parked.reason)).collect()
    }

    fn replies(&self) -> Vec<Record> {
        self.bus.records("replies")
    }
}

async fn node(
    storage: &Arc<MemoryStorage>,
    models: &Arc<MemoryModels>,
    bus: &MemoryBus,
    broken: &Arc<AtomicBool>,
) -> Arc<Node> {
    let deps = NodeDeps {
        bus: Some(Arc::new(bus.clone())),
        storage: storage.clone(),
        models: models.clone(),
        engine: Arc::new(Notes(broken.clone())),
        secrets: Arc::new(NoSecrets),
        clock: Arc::new(ManualClock::default()),
    };
    Node::open(deps, NodeOptions::default()).await.unwrap()
}

#[derive(Clone)]
struct Notes(Arc<AtomicBool>);

impl Engine for Notes {
    fn compile(&self, wasm: Bytes, _: ModuleKind) -> Future<'_, Result<Digest, CompileError>> {
        Box::pin(ready(Ok(Digest::of(&wasm))))
    }

    fn commands(&self, _: FunctionSpec) -> Result<Arc<dyn CommandModule>, CallError> {
        Ok(Arc::new(self.clone()))
    }

    fn projection(&self, spec: FunctionSpec) -> Result<Arc<dyn ProjectionModule>, CallError> {
        Err(CallError::Failed(format!("`{}` is not there", spec.function)))
    }

    fn http(&self, spec: FunctionSpec, _: u64) -> Result<Arc<dyn HttpFunction>, CallError> {
        Err(CallError::Failed(format!("`{}` is not there", spec.function)))
    }
}

impl CommandModule for Notes {
    fn open<'a>(
        &'a self,
        _: &'a StreamId,
        _: Option<Bytes>,
    ) -> Future<'a, Result<Box<dyn Aggregate>, CallError>> {
        Box::pin(ready(Ok(Box::new(self.clone()) as Box<dyn Aggregate>)))
    }
}

impl Aggregate for Notes {
    fn apply<'a>(&'a mut self, _: &'a [PastEvent]) -> Future<'a, Result<(), CallError>> {
        Box::pin(ready(Ok(())))
    }

    fn decide<'a>(&'a mut self, command: &'a GuestCommand) -> Future<'a, Result<Decision, CallError>> {
        let text: Value = serde_json::from_slice(&command.data).unwrap();
        let broken = self.0.load(Ordering::SeqCst);
        Box::pin(ready(match text.as_str().unwrap() {
            "" => Ok(Decision::Refused(Refusal {
                code: "empty".into(),
                message: "a note says something".into(),
                details: None,
            })),
            "trap" if broken => Err(CallError::Trapped("unreachable".into())),
            "busy" if broken => {
                Err(CallError::Overloaded { lack: Lack::Slots(1), retry_after: Duration::from_secs(1) })
            }
            _ => {
                let written = DecidedEvent { event_type: "Written".into(), data: command.data.clone() };
                Ok(Decision::Events(vec![written]))
            }
        }))
    }

    fn snapshot(&mut self) -> Future<'_, Result<Option<Bytes>, CallError>> {
        Box::pin(ready(Ok(None)))
    }
}

fn note(key: &str, text: &str) -> (String, String) {
    (key.to_owned(), text.to_owned())
}

#[tokio::test(start_paused = true)]
async fn a_record_is_a_command_of_its_key_and_is_carried_out_once_however_often_it_comes() {
    let mut desk = Desk::open("").await;
    for (key, text) in [("a", "1"), ("b", "2"), ("a", "3")] {
        desk.asks(key, text);
    }
    desk.done().await;
    let wanted = [note("a", "1"), note("b", "2"), note("a", "3")];
    let mut written = desk.written();
    // Streams do not wait for each other.
    written.sort_by_key(|(_, text)| text.clone());
    assert_eq!(written, wanted);
    // Delivered again; and the mark of what was carried out is lost with the power.
    desk.bus.commit("desk", &desk.topic, 0, 0);
    desk.node.shutdown().await;
    desk.models.cut_power(|commits| commits);
    desk.restart().await;
    desk.done().await;
    assert_eq!(desk.written().len(), 3);
    let causes: Vec<_> = desk.log().events().iter().map(|event| event.commit.causation_id.clone()).collect();
    let records: Vec<_> = desk.log().events().iter().map(|event| event.id().to_string()).collect();
    assert_eq!(causes[3].as_deref(), Some(&*records[0]), "what an event follows from is its record");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_recorded_counted_and_answered_and_never_tried_again() {
    let desk = Desk::open("reply-to = \"replies\"").await;
    desk.asks_with(&[("command", "write"), ("correlation-id", "one")], "a", "x");
    desk.asks_with(&[("command", "write"), ("correlation-id", "two")], "a", "");
    desk.done().await;
    let told = |reply: &Record| {
        let header = |name: &str| reply.header(name).unwrap().to_owned();
        let data: Value = serde_json::from_slice(reply.value.as_ref().unwrap()).unwrap();
        (header("ce_type"), header("ce_correlationid"), header("in-reply-to"), data["code"].clone())
    };
    let replies: Vec<_> = desk.replies().iter().map(told).collect();
    let wanted = [
        ("ebbtide.command.accepted".into(), "one".into(), "notes-0@0".into(), Value::Null),
        ("ebbtide.command.refused".into(), "two".into(), "notes-0@1".into(), "empty".into()),
    ];
    assert_eq!(replies, wanted);
    let status = desk.status().await.serving;
    assert_eq!((status.counters.refused, status.counters.failures, status.parked), (1, 0, 0));
    assert_eq!(desk.log().commits().iter().filter(|commit| commit.header.refusal.is_some()).count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_reply_that_may_not_have_come_is_sent_again_under_the_same_id_and_the_command_is_not_repeated() {
    let desk = Desk::open("reply-to = \"replies\"").await;
    desk.bus.fail_having_taken(Step::Send, 1, BusErrorKind::Unavailable);
    desk.asks("a", "x");
    desk.done().await;
    let ids: Vec<_> = desk.replies().iter().map(|reply| reply.header("ce_id").unwrap().to_owned()).collect();
    assert_eq!((ids.len(), &ids[0]), (2, &ids[1]));
    assert_eq!(desk.written().len(), 1);
    assert_eq!(desk.status().await.serving.parked, 0, "nothing is wrong with the record");
}

#[tokio::test(start_paused = true)]
async fn what_can_not_be_a_command_is_parked_at_once_with_the_reason() {
    let desk = Desk::open("").await;
    desk.asks_with(&[("command", "rite")], "a", "x");
    desk.asks_with(&[], "b", "x");
    desk.asks_with(&[("command", "write"), ("content-type", "application/json")], "c", "a \" b");
    desk.asks("d", "x");
    desk.done().await;
    let parked = desk.parked().await;
    let reasons = ["`rite`", "the header `command` is to be the command's name", "can't be read"];
    assert_eq!(parked.len(), 3, "{parked:?}");
    for (reason, (.., why)) in reasons.iter().zip(&parked) {
        assert!(why.contains(reason), "{why}");
    }
    assert_eq!(desk.written(), [note("d", "x")]);
    assert!(desk.bus.records("dead").is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_fails_is_tried_again_and_then_its_key_is_parked_in_order_until_it_is_retried() {
    let desk = Desk::open("").await;
    for (key, text) in [("a", "trap"), ("b", "1"), ("a", "2")] {
        desk.asks(key, text);
    }
    desk.done().await;
    assert_eq!(desk.written(), [note("b", "1")]);
    let parked = desk.parked().await;
    let [(key, queued, reason)] = &parked[..] else { panic!("{parked:?}") };
    assert!(*queued == 2 && reason.contains("unreachable"), "{parked:?}");
    assert_eq!(desk.status().await.serving.counters.failures, 3, "as often as `attempts` says");
    desk.broken.store(false, Ordering::SeqCst);
    let app = desk.app().await;
    app.projections().await.unwrap().retry(&consumer(), &key.as_str().into()).await.unwrap();
    assert_eq!(desk.written(), [note("b", "1"), note("a", "trap"), note("a", "2")]);
}

#[tokio::test(start_paused = true)]
async fn what_fails_on_our_side_is_tried_for_as_long_as_it_takes_and_holds_back_what_comes_behind_it() {
    let desk = Desk::open("").await;
    desk.asks("a", "busy");
    desk.asks("a", "2");
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!((desk.written().len(), desk.parked().await.len()), (0, 0));
    desk.broken.store(false, Ordering::SeqCst);
    desk.done().await;
    assert_eq!(desk.written(), [note("a", "busy"), note("a", "2")]);
}

#[tokio::test(start_paused = true)]
async fn the_broker_has_a_dead_letter_before_anything_goes_on_and_its_key_is_not_held_up() {
    let desk = Desk::open("dead-letter = \"dead\"").await;
    desk.bus.hold(Step::Send);
    desk.asks_with(&[("command", "rite"), ("other", "kept")], "a", "x");
    desk.asks("a", "2");
    desk.bus.called(Step::Send, 1).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!((desk.written().len(), desk.parked().await.len()), (0, 0));
    // The broker takes it, and is not heard: it is sent again.
    desk.bus.fail_having_taken(Step::Send, 1, BusErrorKind::Unavailable);
    desk.bus.release(Step::Send);
    desk.done().await;
    assert_eq!(desk.written(), [note("a", "2")]);
    let letters = desk.bus.records("dead");
    let header = |name: &str| letters[1].header(name).unwrap().to_owned();
    assert_eq!(letters.len(), 2);
    assert_eq!(letters[0].header("ebb-dead-letter-event-id"), letters[1].header("ebb-dead-letter-event-id"));
    let place = ["topic", "partition", "offset"].map(|name| header(&format!("ebb-dead-letter-{name}")));
    assert_eq!(place, ["notes", "0", "0"]);
    assert_eq!((header("other"), letters[1].key.as_deref()), ("kept".to_owned(), Some(&b"a"[..])));
    let parked = desk.parked().await;
    assert_eq!(parked.len(), 1);
    assert!(parked[0].0.starts_with("a@"), "alone: {parked:?}");
}

#[tokio::test(start_paused = true)]
async fn what_makes_two_records_the_same_command_is_the_manifests_to_say() {
    let event = |id: &'static str| {
        [
            ("ce_specversion", "1.0"),
            ("ce_id", id),
            ("ce_source", "urn:s"),
            ("ce_type", "T"),
            ("command", "write"),
        ]
    };
    let by_record = Desk::open("").await;
    let by_event = Desk::open("identity = \"event-id\"\nreply-to = \"replies\"").await;
    for desk in [&by_record, &by_event] {
        for id in ["1", "1", "2"] {
            desk.asks_with(&event(id), "a", "x");
        }
        desk.done().await;
    }
    assert_eq!(by_record.written().len(), 3);
    assert_eq!(by_event.written().len(), 2);
    assert_eq!(by_event.replies().len(), 3, "each is answered, the second as the first was");
    let by_header = Desk::open("identity = { header = \"once\" }").await;
    for once in ["1", "1", "not ASCII: ä"] {
        by_header.asks_with(&[("command", "write"), ("once", once)], "a", "x");
    }
    by_header.asks("b", "x");
    by_header.done().await;
    assert_eq!(by_header.written().len(), 1);
    let reasons: Vec<_> = by_header.parked().await.into_iter().map(|(.., reason)| reason).collect();
    assert!(reasons[0].contains("visible ASCII") && reasons[1].contains("`once`"), "{reasons:?}");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_stops_waits_for_no_broker_longer_than_for_a_function() {
    for (source, patience) in [("reply-to = \"replies\"", 5), ("dead-letter = \"dead\"", 0)] {
        let mut desk = Desk::open(source).await;
        desk.bus.hold(Step::Send);
        let asked = if patience > 0 { "write" } else { "rite" };
        desk.asks_with(&[("command", asked)], "a", "");
        desk.bus.called(Step::Send, 1).await;
        let before = Instant::now();
        tokio::time::timeout(Duration::from_secs(60), desk.node.shutdown()).await.expect("it stops");
        assert_eq!(before.elapsed().as_secs(), patience, "{source}");
        desk.bus.release(Step::Send);
        desk.restart().await;
        desk.done().await;
        assert_eq!(desk.replies().len() + desk.bus.records("dead").len(), 1, "{source}");
        assert_eq!(desk.status().await.serving.state, State::Live);
    }
}
