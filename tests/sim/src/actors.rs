//! Who uses a node: clients, readers, and an operator on whose watch everything goes wrong.

use crate::dice::Dice;
use crate::guest::MODEL;
use crate::invariants::Told;
use crate::power::Power;
use crate::world::{Intent, World};
use ebb_app::commands::{
    CommandError, CommandErrorKind, CommandReply, CommandRequest, CommandService, Precondition,
};
use ebb_app::projections::{ProjectionDeployment, Projections, State};
use ebb_domain::commit::IdempotencyKey;
use ebb_domain::digest::Digest;
use ebb_domain::event::{Position, Revision};
use ebb_domain::name::{ModelName, ProjectionName};
use ebb_domain::port::log::{EventFilter, EventLog, ReadLimits};
use ebb_domain::time::Timestamp;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A running node, as those who use it see it.
#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) world: Arc<World>,
    pub(crate) power: Power,
    pub(crate) log: Arc<dyn EventLog>,
    pub(crate) commands: Arc<CommandService>,
    pub(crate) projections: Arc<Projections>,
    pub(crate) deployment: Arc<dyn Fn(&str) -> ProjectionDeployment + Send + Sync>,
    pub(crate) stopping: Arc<AtomicBool>,
}

async fn pause(dice: &Dice, most: u64) {
    tokio::time::sleep(Duration::from_millis(dice.roll(0..most))).await;
}

impl Node {
    pub(crate) fn is_over(&self) -> bool {
        self.power.is_off() || self.stopping.load(Ordering::SeqCst)
    }

    /// Sends commands until the node ends.
    pub(crate) async fn client(self, number: usize, dice: Dice) {
        while !self.is_over() {
            pause(&dice, 20).await;
            let intent = self.next_intent(number, &dice);
            let patience = if dice.chance(5) { dice.roll(0..6) } else { 60_000 };
            self.send(number, intent, Duration::from_millis(patience)).await;
        }
    }

    /// Tries everything again whose outcome this client does not know, until it does.
    pub(crate) async fn settle(&self, number: usize) {
        for _ in 0..200 {
            let next = self.world.clients[number].lock().open.pop();
            let Some(intent) = next else { return };
            self.send(number, intent, Duration::from_secs(600)).await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        self.world.violation(format!("client {number} never learnt the outcome of its commands"));
    }

    fn next_intent(&self, number: usize, dice: &Dice) -> Intent {
        let mut client = self.world.clients[number].lock();
        if !client.open.is_empty() && dice.chance(60) {
            let at = dice.index(client.open.len());
            self.world.count("tries again");
            return client.open.swap_remove(at);
        }
        if !client.answered.is_empty() && dice.chance(10) {
            let at = dice.index(client.answered.len());
            let mut again = client.answered[at].clone();
            if dice.chance(30) {
                // The same key for something else.
                client.commands += 1;
                again.token = format!("{number}.{}", client.commands);
                again.data = json!({ "token": again.token, "pad": 1, "bad": false }).to_string();
            }
            return again;
        }
        client.commands += 1;
        let token = format!("{number}.{}", client.commands);
        let stream = if dice.chance(40) { 0 } else { dice.roll(0..self.world.streams) };
        let command = match dice.roll(0..24) {
            0..=3 => "refuse",
            4 => "least",
            5..=6 => "nothing",
            7 => "trap",
            8..=10 => "pair",
            _ => "put",
        };
        let revision = || match dice.roll(0..3) {
            0 => dice.chance(50).then(|| dice.roll(0..10)),
            _ => client.revisions.get(&stream).copied(),
        };
        Intent {
            stream,
            key: dice.chance(70).then(|| format!("key-{token}")),
            if_revision: dice.chance(20).then(revision),
            command,
            data: json!({ "token": token, "pad": dice.roll(0..self.world.padding), "bad": dice.chance(4) })
                .to_string(),
            token,
        }
    }

    async fn send(&self, number: usize, intent: Intent, patience: Duration) {
        let world = &self.world;
        if intent.key.is_some() {
            // Until there is an answer. Without a key nobody would dare to try again.
            world.clients[number].lock().open.push(intent.clone());
        }
        let attempt = world.asks(&intent);
        let answer = tokio::time::timeout(patience, self.commands.execute(request(&intent))).await;
        if self.power.is_off() {
            // Whatever it was, it did not reach the client.
            return;
        }
        let Ok(answer) = answer else {
            world.count("clients that did not wait");
            return;
        };
        if let Err(error) = &answer {
            world.count(kind(&error.kind));
        }
        let premise = premise(&answer);
        let told = told(answer);
        world.trace((&intent.token, std::mem::discriminant(&told)));
        world.told(attempt, &told, premise);
        let mut client = world.clients[number].lock();
        if let Told::Accepted { revision: Some(revision), .. } = &told {
            client.revisions.insert(intent.stream, *revision);
        }
        match told {
            Told::Unknown => {}
            // In flight, throttled, no room: later.
            Told::NothingDone if intent.command != "trap" => {}
            _ => {
                client.open.retain(|open| open.token != intent.token);
                if intent.key.is_some() && !matches!(told, Told::KeyReused) {
                    client.answered.push(intent);
                }
            }
        }
    }

    /// Reads the log as it grows, from where it was before.
    pub(crate) async fn reader(self, number: usize, dice: Dice) {
        let mut durable = self.log.durable();
        let mut at = Position(self.world.readers[number].lock().last().map_or(0, |seen| seen.position));
        while !self.is_over() {
            let mark = durable.borrow_and_update().position;
            if at > mark {
                self.world.violation(format!("reader {number} was given {at}, and the log is at {mark}"));
                return;
            }
            if at == mark {
                if durable.changed().await.is_err() {
                    return;
                }
                continue;
            }
            pause(&dice, 10).await;
            let limits = ReadLimits { items: dice.roll(1..20) as usize, bytes: 1 << 20 };
            match self.log.read(at, &EventFilter::default(), limits).await {
                Ok(batch) => {
                    let mark = self.log.durable().borrow().position;
                    for event in &batch.events {
                        if event.position > mark {
                            let position = event.position;
                            self.world.violation(format!("{position} was read, and only {mark} is durable"));
                        }
                        self.world.seen(number, event.position, event.id().to_string());
                    }
                    at = batch.scanned_to;
                }
                Err(_) if self.is_over() => return,
                Err(error) => return self.world.violation(format!("a reader could not read: {error}")),
            }
        }
    }

    /// Reads the model: as long as the node lives, its mark never goes back, whatever is swapped.
    pub(crate) async fn model_reader(self, dice: Dice) {
        let mut last = Position::START;
        while !self.is_over() {
            pause(&dice, 30).await;
            let Some(reader) = self.projections.model(&model_name()) else { continue };
            let Ok((mark, _)) = reader.get_at("0") else { continue };
            if mark < last {
                self.world.violation(format!("a read model went back from {last} to {mark}"));
            }
            last = mark;
        }
    }

    /// Counts what the projection goes through.
    pub(crate) async fn watch(self) {
        let Some(mut before) = self.projections.status().pop().map(|status| status.serving) else { return };
        while !self.is_over() {
            tokio::time::sleep(Duration::from_millis(2)).await;
            let Some(now) = self.projections.status().pop().map(|status| status.serving) else { return };
            if now.version != before.version {
                self.world.count("swaps");
            }
            if now.parked > before.parked {
                self.world.count("keys parked");
            }
            if now.state.name() != before.state.name() {
                match now.state {
                    State::Retrying { position: Some(_), .. } => self.world.count("events tried again"),
                    State::Retrying { .. } => self.world.count("projections that waited for our side"),
                    State::Halted { .. } => self.world.count("projections halted"),
                    _ => {}
                }
            }
            before = now;
        }
    }

    /// Breaks things, and mends them.
    pub(crate) async fn operator(self, dice: Dice) {
        let (world, name) = (&self.world, projection_name());
        while !self.is_over() {
            pause(&dice, 60).await;
            match dice.roll(0..14) {
                0 => world.broken.store(dice.chance(50), Ordering::SeqCst),
                1 => world.shaky.store(dice.chance(50), Ordering::SeqCst),
                2 => {
                    if self.projections.rebuild(&name).await.is_ok() {
                        world.count("rebuilds");
                    }
                }
                3 => {
                    let version = if dice.chance(50) { "one" } else { "two" };
                    if self.projections.deploy(vec![(self.deployment)(version)]).await.is_ok() {
                        world.count("projection deployments");
                    }
                }
                4 | 5 => self.mend(&dice).await,
                6 => {
                    world.count("row commits that failed");
                    world.models.fail_commits(dice.roll(1..4) as u32);
                }
                7 if dice.chance(50) => {
                    world.count("writes that found the disk full");
                    self.power.fill_up(dice.roll(1..4) as u32);
                }
                7 => {
                    world.count("disks that took no new segment");
                    world.disk.limit_space(Some(dice.roll(0..3000)));
                    pause(&dice, 100).await;
                    world.disk.limit_space(None);
                }
                8 => world.disk.shorten_writes(dice.chance(70).then(|| dice.roll(1..2000) as usize)),
                9 if dice.chance(20) => {
                    world.count("fsync failures");
                    world.disk.fail_syncs(1);
                    pause(&dice, 60).await;
                    // Its log is of no use any more.
                    self.stopping.store(true, Ordering::SeqCst);
                }
                10 => {
                    world.count("clock set back");
                    let now = ebb_domain::port::Clock::now(&*world.clock);
                    world.clock.set(Timestamp(now.0 - dice.roll(0..5_000_000)));
                }
                _ => world.clock.advance(Duration::from_millis(dice.roll(0..2000))),
            }
        }
    }

    /// Has a parked key tried again, or its first event given up.
    pub(crate) async fn mend(&self, dice: &Dice) {
        let name = projection_name();
        let Ok(parked) = self.projections.parked(&name, None, 10).await else { return };
        let Some(parked) = parked.first() else { return };
        if dice.chance(70) {
            self.world.count("parked keys tried again");
            let _ = self.projections.retry(&name, &parked.key).await;
        } else {
            self.world.count("parked events skipped");
            self.world.skipped.lock().insert(parked.position.0);
            let _ = self.projections.skip(&name, &parked.key, false).await;
        }
    }
}

pub(crate) fn projection_name() -> ProjectionName {
    ProjectionName::new("rows").expect("a name")
}

pub(crate) fn model_name() -> ModelName {
    ModelName::new(MODEL).expect("a name")
}

fn request(intent: &Intent) -> CommandRequest {
    let idempotency = intent.key.as_ref().map(|key| IdempotencyKey {
        key: key.as_str().into(),
        request: Digest::of(format!("{} {} {}", intent.stream, intent.command, intent.data).as_bytes()),
    });
    CommandRequest {
        aggregate: "account".into(),
        key: intent.stream.to_string(),
        command: intent.command.into(),
        data: intent.data.clone().into(),
        actor: "ann".into(),
        precondition: intent.if_revision.map(|revision| match revision {
            Some(revision) => Precondition::Revision(Revision(revision)),
            None => Precondition::Absent,
        }),
        idempotency,
        correlation_id: None,
        causation_id: None,
        hops: 0,
        trace: None,
        origin: None,
    }
}

fn told(answer: Result<CommandReply, CommandError>) -> Told {
    match answer {
        Ok(reply) => Told::Accepted {
            command_id: reply.command_id.to_string(),
            events: reply.events.iter().map(|event| (event.id.to_string(), event.position.0)).collect(),
            revision: reply.revision.map(|revision| revision.0),
        },
        Err(CommandError { command_id, kind, .. }) => match kind {
            CommandErrorKind::Refused(refusal) => Told::Refused {
                command_id: command_id.map(|id| id.to_string()).unwrap_or_default(),
                code: refusal.code.to_string(),
            },
            CommandErrorKind::Conflict { .. } => Told::Conflict,
            CommandErrorKind::KeyReused => Told::KeyReused,
            CommandErrorKind::OutcomeUnknown(_) | CommandErrorKind::Internal(_) => Told::Unknown,
            _ => Told::NothingDone,
        },
    }
}

/// How many events of its stream an answer says that there were.
fn premise(answer: &Result<CommandReply, CommandError>) -> Option<u64> {
    let length = |revision: Option<Revision>| revision.map_or(0, |revision| revision.0 + 1);
    match answer {
        Ok(reply) => reply.events.is_empty().then(|| length(reply.revision)),
        Err(CommandError { kind: CommandErrorKind::Conflict { actual }, .. }) => Some(length(*actual)),
        Err(CommandError { kind: CommandErrorKind::Refused(refusal), .. }) => {
            refusal.details.as_ref().and_then(|details| serde_json::from_slice(details).ok())
        }
        Err(_) => None,
    }
}

fn kind(kind: &CommandErrorKind) -> &'static str {
    match kind {
        CommandErrorKind::Unavailable(_) => "commands refused: the log takes no writes",
        CommandErrorKind::KeyInFlight => "commands refused: key in flight",
        CommandErrorKind::Throttled { .. } => "commands refused: mailbox full",
        CommandErrorKind::ShuttingDown => "commands refused: shutting down",
        CommandErrorKind::OutcomeUnknown(_) => "commands whose sync failed",
        CommandErrorKind::Module(_) => "commands whose module failed",
        CommandErrorKind::Internal(_) => "commands that failed on our side",
        _ => "commands refused: by a rule",
    }
}
