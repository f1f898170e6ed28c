//! Kills at every named point, with and without a power loss.

use super::workload::{Life, Subscriber, Writer};
use super::{damage, invariants};
use crate::support::{notes, notes_changed};
use ebb_faults::Point;
use ebb_tests::{App, Dice, Node, copy_folder, eventually, remove_folder};
use http::Method;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

/// Crashes of one data folder; then comes a fresh one.
const CRASHES_PER_FOLDER: usize = 14;
const WRITERS: u64 = 3;
/// How long a point may take to be reached.
const PATIENCE: Duration = Duration::from_secs(20);
const SIGKILL: i32 = 9;

/// What makes a node pass a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stimulus {
    /// Commands, and what follows from them.
    Commands,
    /// Commands that fill segments.
    BigCommands,
    /// A deployment with modules that the node does not know.
    Deploy,
    /// Such a deployment, or a step back to an earlier one.
    DeployOrRollback,
    /// A rebuild of the projection.
    Rebuild,
    /// An app is removed with all its data.
    Purge,
    /// The operator stops the node.
    Stop,
    /// The same, with an app open that has nothing left to do.
    StopAtRest,
    /// A start.
    Start,
    /// A start after the index was lost.
    StartWithoutIndex,
}

/// What makes a node pass this point, and how often it does so at least. None: it takes a broker, and `kafka/crashes.rs`.
fn stimulus(point: Point) -> Option<(Stimulus, u64)> {
    use Point as P;
    use Stimulus as S;
    Some(match point {
        P::GroupBeforeWrite
        | P::GroupAfterWrite
        | P::GroupAfterSync
        | P::GroupAfterIndex
        | P::GroupAfterMark
        | P::GroupAfterSettle => (S::Commands, 30),
        P::CommandReceived | P::CommandBeforeAnswer => (S::Commands, 60),
        P::SnapshotBeforePut | P::SnapshotAfterPut => (S::Commands, 10),
        P::RowsBeforeCommit | P::RowsAfterCommit => (S::Commands, 3),
        P::IndexBeforeBatch | P::IndexAfterBatch => (S::Commands, 1),
        P::RollBeforeSeal
        | P::RollAfterFooter
        | P::RollAfterSeal
        | P::RollAfterCreate
        | P::RollAfterRename
        | P::RollDone => (S::BigCommands, 1),
        P::ArtefactBeforeRename | P::ArtefactAfterRename => (S::Deploy, 2),
        P::BlobBeforeRename | P::BlobAfterRename => (S::Deploy, 2),
        P::DeployBeforeCommit | P::DeployAfterCommit | P::DeployAfterSwap => (S::DeployOrRollback, 1),
        P::ServingBeforeRename | P::ServingAfterRename | P::VersionBeforeRemoval => (S::Rebuild, 1),
        P::RemoveAfterCommit | P::PurgeBeforeRows | P::PurgeAfterRows | P::PurgeAfterIndex | P::PurgeDone => {
            (S::Purge, 1)
        }
        P::CloseBeforeNote | P::CloseAfterNote => (S::Stop, 2),
        P::RestBeforeNote | P::RestAfterNote => (S::StopAtRest, 1),
        P::OpenAfterRewrite | P::OpenBeforeEpoch | P::OpenAfterEpoch | P::OpenDone => (S::Start, 2),
        P::IndexRebuild => (S::StartWithoutIndex, 1),
        P::IntakeAfterAppend
        | P::IntakeAfterDone
        | P::RelayAfterPublish
        | P::DeadLetterAfterSend
        | P::ReplyAfterSend => return None,
    })
}

/// The points that are crashed here.
fn points() -> Vec<Point> {
    Point::ALL.iter().copied().filter(|point| stimulus(*point).is_some()).collect()
}

/// One crash that is to be.
#[derive(Clone, Copy, Debug)]
struct Plan {
    run: usize,
    point: Point,
    nth: u64,
    power_loss: Option<u64>,
    stimulus: Stimulus,
}

impl Plan {
    /// Every point in turn, in an order of its own each time round.
    fn all(runs: usize, dice: &mut Dice) -> Vec<Self> {
        let mut points = Vec::new();
        let mut plans = Vec::new();
        for run in 0..runs {
            if points.is_empty() {
                points = self::points();
                dice.shuffle(&mut points);
            }
            let point = points.pop().expect("there are points");
            let (stimulus, often) = stimulus(point).expect("it is crashed here");
            let nth = dice.roll(1..often + 1);
            let power_loss = (!dice.once_in(3)).then(|| dice.roll(0..u64::MAX));
            plans.push(Self { run, point, nth, power_loss, stimulus });
        }
        plans
    }

    fn fault(&self) -> String {
        let loss = self.power_loss.map(|seed| format!(" power-loss {seed}")).unwrap_or_default();
        format!("crash {} {}{loss}\n", self.point, self.nth)
    }
}

/// What came of a crash.
struct Crash {
    plan: Plan,
    hit: bool,
    restart: Duration,
    left: Vec<String>,
}

/// A node and everyone who has to do with it.
struct World {
    node: Node,
    writers: Vec<Writer>,
    subscriber: Arc<Mutex<Subscriber>>,
    dice: Dice,
    /// Modules that were made; each is another one for the node.
    modules: u64,
    /// The number of the last deployment that was acknowledged.
    deployed: u64,
    older_index: PathBuf,
}

impl World {
    async fn new(mut dice: Dice) -> Self {
        let node = Node::builder().faults().start().await;
        let deployed = node.deploy(&app(0)).await;
        node.deploy(&scratch()).await;
        let writers = (0..WRITERS).map(|id| Writer::new(id, Dice::new(dice.roll(0..u64::MAX)))).collect();
        let older_index = node.home().join("older-index");
        Self { node, writers, subscriber: Arc::default(), dice, modules: 0, deployed, older_index }
    }

    async fn crash(&mut self, plan: Plan) -> Crash {
        if self.dice.once_in(4) {
            // Only then is the index on the disk for sure, to be found older or half written after the crash.
            assert_eq!(self.node.stop().await, Some(0));
            self.node.start().await;
        }
        let hit = match plan.stimulus {
            Stimulus::Start => self.crash_while_starting(&plan, false).await,
            Stimulus::StartWithoutIndex => self.crash_while_starting(&plan, true).await,
            stimulus => self.crash_while_running(&plan, stimulus).await,
        };
        self.node.fault("");
        let mut left = Vec::new();
        if plan.power_loss.is_some() {
            left = damage::after_power_loss(&self.node.data_folder(), &self.older_index, &mut self.dice);
        }
        if self.dice.once_in(3) {
            copy_folder(&self.node.data_folder().join("index"), &self.older_index);
        }
        let restart = self.node.start().await;
        self.check().await;
        Crash { plan, hit, restart, left }
    }

    /// The node is running, and is killed to be started.
    async fn crash_while_starting(&mut self, plan: &Plan, without_index: bool) -> bool {
        let life = self.life(false);
        self.some_commands(&life).await;
        self.node.kill().await;
        self.writers = life.end().await;
        if without_index {
            remove_folder(&self.node.data_folder().join("index"));
        }
        self.node.fault(&plan.fault());
        match self.node.try_start().await {
            Err(_) => self.node.died(PATIENCE).await == Some(SIGKILL),
            // Behind the start comes the app, which the last end left with something to do.
            Ok(_) => match self.node.app("notes").get("/events?limit=1").send().await {
                Err(_) => self.node.died(PATIENCE).await == Some(SIGKILL),
                Ok(_) => {
                    self.node.kill().await;
                    false
                }
            },
        }
    }

    async fn crash_while_running(&mut self, plan: &Plan, stimulus: Stimulus) -> bool {
        let mut life = self.life(stimulus == Stimulus::BigCommands);
        self.some_commands(&life).await;
        if stimulus == Stimulus::StopAtRest {
            self.open_at_rest().await;
        }
        self.node.fault(&plan.fault());
        match stimulus {
            Stimulus::DeployOrRollback if self.dice.once_in(2) => self.roll_back().await,
            Stimulus::Deploy | Stimulus::DeployOrRollback => self.deploy().await,
            Stimulus::Rebuild => self.rebuild().await,
            Stimulus::Purge => self.purge().await,
            Stimulus::Stop | Stimulus::StopAtRest => self.node.ask_to_stop(),
            _ => life.over().await,
        }
        let died = self.node.died(PATIENCE).await;
        if died.is_none() {
            self.node.kill().await;
        }
        self.writers = life.end().await;
        died == Some(SIGKILL)
    }

    /// Rebuilds the projection. A version that a life before this one has begun is built first.
    async fn rebuild(&mut self) {
        eventually("the rebuild to be taken, or the end", async || {
            let request = self.node.control.post("/apps/notes/projections/notes/rebuild", &json!({}));
            request.send().await.map_or(true, |reply| reply.status == 202).then_some(())
        })
        .await;
    }

    /// An app is open and has nothing left to do, which is what its note will say.
    async fn open_at_rest(&mut self) {
        let scratch = self.node.app("scratch");
        scratch.get("/events?limit=1").await.ok();
        eventually("the app to have read all there is", async || {
            let all = self.node.control.get("/projections?app=scratch").await.ok();
            all["projections"].as_array()?.iter().all(|one| one["lag"] == 0).then_some(())
        })
        .await;
    }

    fn life(&mut self, big: bool) -> Life {
        Life::start(&self.node.app("notes"), std::mem::take(&mut self.writers), &self.subscriber, big)
    }

    /// Until everything is under way.
    async fn some_commands(&mut self, life: &Life) {
        eventually("commands to be answered", async || (life.done() >= WRITERS * 2).then_some(())).await;
    }

    /// Goes back to any deployment that there was.
    async fn roll_back(&mut self) {
        let to = self.dice.roll(1..self.deployed + 1);
        let request = self.node.control.post("/apps/notes/rollback", &json!({ "to": to }));
        if let Ok(reply) = request.send().await {
            self.deployed = reply.ok()["number"].as_u64().expect("a number");
        }
    }

    /// Deploys modules that the node does not know.
    async fn deploy(&mut self) {
        self.modules += 1;
        let put = app(self.modules);
        let path = format!("/apps/{}", put.name());
        let request = self.node.control.request(Method::PUT, &path).body("application/x-tar", put.tar());
        if let Ok(reply) = request.send().await {
            self.deployed = reply.ok()["number"].as_u64().expect("a number");
        }
    }

    async fn purge(&mut self) {
        let command = json!({ "text": "scratch" });
        let scratch = self.node.app("scratch");
        let _ = scratch.command("note", "one", "write", &command).send().await;
        let _ = self.node.control.request(Method::DELETE, "/apps/scratch?purge=true").send().await;
    }

    async fn check(&mut self) {
        invariants::check(&self.node, &self.writers, &*self.subscriber.lock().await, &mut self.dice).await;
        let served = self.node.control.get("/apps/notes").await.ok();
        let number = deployment(&served);
        // One more if the crash came behind the commit and before the answer.
        assert!(
            number == self.deployed || number == self.deployed + 1,
            "deployment {} was acknowledged: {served}",
            self.deployed
        );
        self.deployed = number;
        self.check_scratch().await;
    }

    /// An app that was being removed is there as a whole, or gone as a whole.
    async fn check_scratch(&mut self) {
        let found = self.node.control.get("/apps/scratch").await;
        if found.status == 200 {
            let events = self.node.app("scratch").all_events().await;
            let rows = self.node.app("scratch").all_rows("notes", events.len() as u64).await;
            assert_eq!(events.len(), rows.len(), "one note, written once, or none: {events:?} {rows:?}");
            return;
        }
        assert_eq!(found.status, 404, "{found:?}");
        self.node.deploy(&scratch()).await;
        let scratch = self.node.app("scratch");
        assert_eq!(scratch.all_events().await, [] as [Value; 0], "a purged app leaves nothing");
        assert_eq!(scratch.all_rows("notes", 0).await, [] as [Value; 0], "a purged app leaves nothing");
    }

    /// The last look, once everything that was asked has been answered.
    async fn end(mut self) {
        for _ in 0..2 {
            let mut life = self.life(false);
            life.over().await;
            self.writers = life.end().await;
        }
        assert!(
            self.writers.iter().all(|writer| writer.pending().is_none()),
            "a node that is up answers everything"
        );
        self.check().await;
        assert_eq!(self.node.stop().await, Some(0));
        let data = self.node.data_folder();
        ebb_tests::run(self.node.home(), &["log", "verify", "--data", data.to_str().unwrap()]).await.ended(0);
    }
}

fn deployment(app: &Value) -> u64 {
    app["deployment"]["number"]
        .as_u64()
        .or(app["number"].as_u64())
        .unwrap_or_else(|| panic!("no number in {app}"))
}

/// The notes, with modules that are others for every number, and do the same.
fn app(number: u64) -> App {
    let app = if number.is_multiple_of(2) { notes() } else { notes_changed() };
    app.edit("[model.notes]", "snapshot-every = 3\n\n[model.notes]")
        .each_module(|module| marked(module, number))
}

fn scratch() -> App {
    notes()
        .edit("name = \"notes\"", "name = \"scratch\"")
        .edit("[model.notes]", "snapshot-every = 1\n\n[model.notes]")
}

/// A module with a section that nobody looks at.
fn marked(module: &[u8], number: u64) -> Vec<u8> {
    let name = b"crash";
    let mut marked = module.to_vec();
    marked.extend([0, 1 + name.len() as u8 + 8, name.len() as u8]);
    marked.extend(name);
    marked.extend(number.to_le_bytes());
    marked
}

/// Runs as many crashes as `EBB_CRASH_RUNS` says; else each point is crashed at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_at_any_named_point_loses_nothing_doubles_nothing_and_leaves_nothing_half_done() {
    let runs = std::env::var("EBB_CRASH_RUNS").map_or(points().len(), |runs| runs.parse().expect("a number"));
    let mut dice = Dice::seeded();
    let started = Instant::now();
    let plans = Plan::all(runs, &mut dice);
    let mut crashes = Vec::new();
    for plans in plans.chunks(CRASHES_PER_FOLDER) {
        let mut world = World::new(Dice::new(dice.roll(0..u64::MAX))).await;
        for plan in plans {
            crashes.push(world.crash(*plan).await);
            show(crashes.last().expect("one was pushed"));
        }
        world.end().await;
    }
    report(&crashes, started.elapsed());
    for point in points() {
        let mut of_point = crashes.iter().filter(|crash| crash.plan.point == point).peekable();
        let reached = of_point.peek().is_none() || of_point.any(|crash| crash.hit);
        assert!(reached, "the point {point} was never passed: is it still in the code?");
    }
}

#[expect(clippy::print_stderr, reason = "shown by the test harness, for a test that fails")]
fn show(crash: &Crash) {
    let Crash { plan, hit, restart, left } = crash;
    let loss = if plan.power_loss.is_some() { "power loss" } else { "kill" };
    let hit = if *hit { "" } else { " (not reached)" };
    eprintln!("{:4} {} {} {loss}{hit}, back in {restart:?} {left:?}", plan.run, plan.point, plan.nth);
}

/// The run as a table, into the file that `EBB_CRASH_REPORT` names.
fn report(crashes: &[Crash], took: Duration) {
    let Some(path) = std::env::var_os("EBB_CRASH_REPORT") else { return };
    let mut points = BTreeMap::<Point, (u32, u32, u32)>::new();
    for crash in crashes {
        let (hits, losses, missed) = points.entry(crash.plan.point).or_default();
        *hits += u32::from(crash.hit);
        *losses += u32::from(crash.hit && crash.plan.power_loss.is_some());
        *missed += u32::from(!crash.hit);
    }
    let mut restarts: Vec<Duration> = crashes.iter().map(|crash| crash.restart).collect();
    restarts.sort_unstable();
    let at = |percent: usize| restarts[(restarts.len() - 1) * percent / 100].as_millis();
    let mut text = format!(
        "{} crashes in {} s. From the start of the process to ready: p50 {} ms, p90 {} ms, p99 {} ms, most {} ms.\n\n",
        crashes.len(),
        took.as_secs(),
        at(50),
        at(90),
        at(99),
        at(100)
    );
    text += "| point | crashes | of these with power loss | not reached |\n|---|---|---|---|\n";
    for (point, (hits, losses, missed)) in points {
        writeln!(text, "| {point} | {hits} | {losses} | {missed} |").expect("text");
    }
    let mut kinds = BTreeMap::<&str, u32>::new();
    for left in crashes.iter().flat_map(|crash| &crash.left) {
        let kind = ["an older index", "no index", "the index without", "read models cut"];
        let kind = kind.into_iter().find(|kind| left.starts_with(kind)).expect("a kind of damage");
        *kinds.entry(kind).or_default() += 1;
    }
    writeln!(text, "\nOf the other files, a power loss left: {kinds:?}.").expect("text");
    std::fs::write(path, text).expect("a file");
}
