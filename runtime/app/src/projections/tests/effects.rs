//! Event functions: what they are given, how often, and what becomes of what fails.

use super::*;
use crate::projections::effects::{Effect, Effects};
use crate::testing::ScriptedFunction;
use ebb_domain::manifest::Beginning;
use http::Response;
use parking_lot::Mutex;
use serde_json::Value as Json;

/// An office that sends a letter for each event.
struct Office {
    log: Arc<MemoryLog>,
    models: Arc<MemoryModels>,
    engine: Arc<ProjectionEngine>,
    /// The positions in each call.
    calls: Arc<Mutex<Vec<Vec<u64>>>>,
    /// Positions that fail, and how: see `answer`.
    faults: Arc<Mutex<BTreeSet<(u64, &'static str)>>>,
    letters: Arc<ScriptedFunction>,
    spec: ProjectionSpec,
    from: Beginning,
    functions: Projections,
}

fn letters() -> ProjectionName {
    ProjectionName::new("letters").unwrap()
}

/// What the function makes of a call.
fn answer(events: &[Json], faults: &BTreeSet<(u64, &'static str)>) -> Result<Response<String>, CallError> {
    let fault = |event: &Json| {
        let position = event["position"].as_u64().unwrap();
        faults.iter().find(|fault| fault.0 == position).map(|fault| fault.1)
    };
    let faulty: Vec<(&Json, &str)> = events.iter().filter_map(|event| Some((event, fault(event)?))).collect();
    let status = |status: u16| Ok(Response::builder().status(status).body("no ink".to_owned()).unwrap());
    if faulty.iter().any(|(_, how)| *how == "traps") {
        return Err(CallError::Trapped("unreachable".into()));
    }
    if faulty.iter().any(|(_, how)| *how == "busy") {
        return status(503);
    }
    if faulty.iter().any(|(_, how)| *how == "answers 500") {
        return status(500);
    }
    let failed: Vec<Json> =
        faulty.iter().map(|(event, how)| json!({ "id": event["id"], "message": how })).collect();
    let response = Response::builder().header("content-type", "application/json");
    Ok(response.body(json!({ "failed": failed }).to_string()).unwrap())
}

impl Office {
    fn open() -> Self {
        Self::open_with(|_| {})
    }

    fn open_with(change: impl FnOnce(&mut ProjectionSpec)) -> Self {
        let (calls, faults) = (Arc::<Mutex<Vec<_>>>::default(), Arc::<Mutex<BTreeSet<_>>>::default());
        let (seen, failing) = (calls.clone(), faults.clone());
        let letters = ScriptedFunction::new(move |events| {
            let positions = events.iter().map(|event| event["position"].as_u64().unwrap()).collect();
            seen.lock().push(positions);
            answer(&events, &failing.lock())
        });
        let (log, models, engine) = (
            Arc::new(MemoryLog::default()),
            Arc::<MemoryModels>::default(),
            Arc::<ProjectionEngine>::default(),
        );
        engine.provide_function("letters", letters.clone());
        engine.provide_function("letters 2", letters.clone());
        let mut spec = ProjectionSpec { name: self::letters(), models: BTreeSet::new(), ..spec() };
        change(&mut spec);
        let functions = projections(&log, &models, &engine);
        Self { log, models, engine, calls, faults, letters, spec, from: Beginning::Now, functions }
    }

    async fn deploy(&self, module: &str) {
        let effects = Effects {
            from: self.from,
            effect: Effect::Function { capabilities: Arc::default(), secrets: Arc::default() },
        };
        let deployment = ProjectionDeployment {
            spec: self.spec.clone(),
            module: ebb_domain::digest::Digest::of(module.as_bytes()),
            models: Vec::new(),
            topics: Default::default(),
            effects: Some(effects),
        };
        self.functions.deploy(vec![deployment]).await.unwrap();
    }

    async fn deployed(self) -> Self {
        self.deploy("letters").await;
        self
    }

    async fn restarted(mut self) -> Self {
        self.functions.shutdown().await;
        self.functions = projections(&self.log, &self.models, &self.engine);
        self.deployed().await
    }

    fn happens(&self, account: &str) -> Position {
        self.log.given(&format!("account-{account}"), "Opened", &json!({}))
    }

    fn fails(&self, position: u64, how: &'static str) {
        self.faults.lock().insert((position, how));
    }

    fn is_mended(&self) {
        self.faults.lock().clear();
    }

    fn calls(&self) -> Vec<Vec<u64>> {
        self.calls.lock().clone()
    }

    fn status(&self) -> VersionStatus {
        self.functions.status().remove(0).serving
    }

    async fn until(&self, what: &str, so: impl Fn(&Self) -> bool) {
        for _ in 0..10_000 {
            if so(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("never happened: {what}; {:#?}; {:?}", self.functions.status(), self.calls());
    }

    async fn passed(&self, position: u64) {
        self.until("it has passed", |office| office.status().mark.0 >= position).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_function_begins_with_what_happens_after_its_first_deployment() {
    let office = Office::open();
    office.happens("a");
    let office = office.deployed().await;
    assert_eq!(office.status().mark, Position(1));
    office.happens("b");
    office.passed(2).await;
    assert_eq!(office.calls(), [[2]]);
    assert_eq!(office.functions.status()[0].kind, Kind::Function);
}

#[tokio::test(start_paused = true)]
async fn a_call_says_who_calls_and_what_it_belongs_to() {
    let office = Office::open().deployed().await;
    office.happens("a");
    office.passed(1).await;
    let headers = office.letters.headers();
    let correlation = office.log.events()[0].commit.correlation_id.to_string();
    let said = |name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
    assert_eq!(said("ebb-actor").as_deref(), Some("function:letters"));
    assert_eq!(said("ebb-correlation-id"), Some(correlation));
    assert_eq!(said("content-type").as_deref(), Some("application/cloudevents-batch+json; charset=utf-8"));

    // Any text may correlate; one that is no header stands in the event, and holds nothing up.
    office.log.given_for("first\nsecond", "account-a", "Opened", &json!({}));
    office.passed(2).await;
    assert!(office.letters.headers().get("ebb-correlation-id").is_none());
}

#[tokio::test(start_paused = true)]
async fn or_with_the_first_event_of_the_log_if_its_manifest_says_so() {
    let office = Office { from: Beginning::Start, ..Office::open() };
    office.happens("a");
    office.happens("b");
    let office = office.deployed().await;
    office.passed(2).await;
    assert_eq!(office.calls(), [[1, 2]]);
}

#[tokio::test(start_paused = true)]
async fn a_changed_module_a_restart_and_new_settings_go_on_where_it_was() {
    let mut office = Office::open().deployed().await;
    office.happens("a");
    office.passed(1).await;
    office.deploy("letters 2").await;
    office.happens("b");
    office.passed(2).await;
    office.spec.lanes = NonZeroUsize::new(4).unwrap();
    let office = office.restarted().await;
    office.happens("c");
    office.passed(3).await;
    assert_eq!(office.calls(), [[1], [2], [3]]);
}

#[tokio::test(start_paused = true)]
async fn what_stands_before_a_failed_event_is_not_given_again() {
    let office = Office::open().deployed().await;
    office.fails(3, "no such address");
    for account in ["a", "b", "c", "d", "e"] {
        office.happens(account);
    }
    office.passed(5).await;
    // The third is tried alone, three times in all, and what came behind it in its call comes again.
    assert_eq!(office.calls(), [vec![1, 2, 3, 4, 5], vec![3], vec![3], vec![4, 5]]);
    let parked = office.functions.parked(&letters(), None, 10).await.unwrap();
    assert_eq!((parked.len(), &*parked[0].key, &*parked[0].reason), (1, "account-c", "no such address"));
}

#[tokio::test(start_paused = true)]
async fn later_events_of_a_parked_key_queue_until_it_is_retried() {
    let office = Office::open().deployed().await;
    office.fails(1, "no such address");
    office.happens("a");
    office.passed(1).await;
    office.happens("a");
    office.happens("b");
    office.passed(3).await;
    assert_eq!(office.calls().last(), Some(&vec![3]));
    office.is_mended();
    let retried = office.functions.retry(&letters(), &"account-a".into()).await.unwrap();
    assert_eq!((retried.applied, retried.remaining), (2, 0));
    assert_eq!(office.calls().last(), Some(&vec![1, 2]));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_fails_as_a_whole_is_halved_until_one_event_stands_alone() {
    for how in ["traps", "answers 500"] {
        let office = Office::open().deployed().await;
        office.fails(2, how);
        for account in ["a", "b", "c", "d"] {
            office.happens(account);
        }
        office.passed(4).await;
        let calls = office.calls();
        assert_eq!(calls[..5], [vec![1, 2, 3, 4], vec![1, 2], vec![1], vec![2, 3], vec![2]], "{how}");
        assert_eq!(calls.iter().flatten().filter(|position| **position == 1).count(), 3, "{how}: not again");
        let parked = office.functions.parked(&letters(), None, 10).await.unwrap();
        assert_eq!((parked.len(), &*parked[0].key), (1, "account-b"), "{how}: {}", parked[0].reason);
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_is_busy_is_asked_again_for_ever_and_nothing_is_parked() {
    let office = Office::open().deployed().await;
    office.fails(1, "busy");
    office.happens("a");
    office.until("it was asked often", |office| office.calls().len() > 10).await;
    let status = office.status();
    assert_eq!(status.parked, 0);
    assert!(status.last_error.unwrap().contains("503 Service Unavailable: no ink"));
    office.is_mended();
    office.passed(1).await;
}

#[tokio::test(start_paused = true)]
async fn lanes_are_calls_at_the_same_time_and_what_one_did_stays_done() {
    let office = Office::open_with(|spec| {
        spec.lanes = NonZeroUsize::new(2).unwrap();
        spec.batch.max_events = NonZeroUsize::new(2).unwrap();
    });
    office.letters.gate().set_open(false);
    let office = office.deployed().await;
    office.happens("a");
    office.until("the first is under way", |office| office.calls().len() == 1).await;
    for account in ["a", "b", "a", "b"] {
        office.happens(account);
    }
    office.letters.gate().set_open(true);
    office.passed(5).await;
    assert_eq!(office.calls(), [vec![1], vec![2, 4], vec![3, 5]]);

    // 6 to 9: the second lane ends with 7, so that all before it is done, and 8 comes again.
    office.fails(7, "no such address");
    office.letters.gate().set_open(false);
    office.happens("x");
    office.until("a call is under way", |office| office.calls().len() == 4).await;
    for account in ["b", "a", "b"] {
        office.happens(account);
    }
    office.letters.gate().set_open(true);
    office.passed(9).await;
    assert!(office.calls()[4..].contains(&vec![8]));
    assert_eq!(office.status().parked, 1);
}

#[tokio::test(start_paused = true)]
async fn a_call_under_way_is_finished_before_a_stop_and_one_that_takes_too_long_is_given_again() {
    let office = Office::open().deployed().await;
    let gate = office.letters.gate();
    gate.set_open(false);
    office.happens("a");
    office.until("it is under way", |office| office.calls().len() == 1).await;
    let opens = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(2)).await;
        gate.set_open(true);
    });
    let office = office.restarted().await;
    opens.await.unwrap();
    office.passed(1).await;
    assert_eq!(office.calls(), [[1]], "it was done");

    office.letters.gate().set_open(false);
    office.happens("b");
    office.until("it is under way", |office| office.calls().len() == 2).await;
    let office = office.restarted().await;
    office.letters.gate().set_open(true);
    office.passed(2).await;
    assert_eq!(office.calls(), [[1], [2], [2]], "nobody knows whether it was done");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_makes_no_sense_is_a_failure() {
    let office = Office::open();
    let nonsense = ScriptedFunction::new(|_| {
        let response = Response::builder().header("content-type", "application/json");
        Ok(response.body("[1]".to_owned()).unwrap())
    });
    office.engine.provide_function("letters", nonsense);
    let office = office.deployed().await;
    office.happens("a");
    office.passed(1).await;
    let parked = office.functions.parked(&letters(), None, 10).await.unwrap();
    assert!(parked[0].reason.contains("it answered [1], and not {\"failed\""), "{}", parked[0].reason);
}

#[tokio::test(start_paused = true)]
async fn it_goes_on_elsewhere_when_told_to() {
    let office = Office::open().deployed().await;
    for account in ["a", "b", "c"] {
        office.happens(account);
    }
    office.passed(3).await;
    let before = office.calls().len();
    assert_eq!(office.functions.seek(&letters(), Seek::Behind(Position(1))).await, Ok(Position(1)));
    office.passed(3).await;
    assert_eq!(office.calls()[before..], [vec![2, 3]], "once more");
    assert_eq!(office.functions.seek(&letters(), Seek::To(Beginning::Now)).await, Ok(Position(3)));
    assert_eq!(
        office.functions.seek(&letters(), Seek::Behind(Position(4))).await,
        Err(ProjectionError::NoPosition { wanted: Position(4), end: Position(3) })
    );
    office.fails(4, "no such address");
    office.happens("d");
    office.passed(4).await;
    let refused = office.functions.seek(&letters(), Seek::To(Beginning::Start)).await;
    assert_eq!(refused, Err(ProjectionError::Parked { name: letters(), count: 1 }));
    assert_eq!(office.functions.rebuild(&letters()).await, Err(ProjectionError::Function(letters())));
}

#[tokio::test(start_paused = true)]
async fn where_how_far_it_had_got_is_lost_it_halts_until_it_is_told_where_to_go_on() {
    let office = Office::open().deployed().await;
    office.happens("a");
    office.happens("b");
    office.passed(2).await;
    let done = office.calls().len();
    office.functions.shutdown().await;
    office.models.damage();

    let office = office.restarted().await;
    office.happens("c");
    office.until("it halts", |office| matches!(office.status().state, State::Halted { .. })).await;
    let office = office.restarted().await;
    office.until("it halts again", |office| matches!(office.status().state, State::Halted { .. })).await;
    assert_eq!(office.calls().len(), done, "and did nothing meanwhile");
    assert_eq!(office.functions.seek(&letters(), Seek::Behind(Position(2))).await, Ok(Position(2)));
    office.passed(3).await;
    let office = office.restarted().await;
    office.happens("d");
    office.passed(4).await;
    assert_eq!(office.calls()[done..], [[3], [4]]);
}
