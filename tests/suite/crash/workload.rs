//! What goes on while a node is killed: clients that trust nobody, a live subscriber, an operator.

use ebb_tests::{Client, Dice, LiveEvents, Reply};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::{Mutex, watch};

/// Notes of one client's own, beside the one that all share.
const NOTES: u64 = 4;
/// Commands of one client in one life: what was done is checked after it, so it should not be too much.
const COMMANDS_PER_LIFE: u32 = 80;
/// Bytes of a note that fills a segment soon.
const BIG: usize = 400 << 10;

/// What the projection does not take, and everything after it in the same note: they are parked.
pub(super) const POISONED: &str = "Poisoned";

/// What is asked of a note.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// It is written.
    Write,
    /// Its projection fails from then on.
    Poison,
}

/// A command that is asked for until it is answered.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    pub(super) what: What,
    pub(super) key: String,
    pub(super) note: String,
    pub(super) text: String,
    pub(super) if_match: Option<u64>,
}

/// What the answer was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Accepted {
        command: String,
        event: String,
        position: u64,
        revision: u64,
    },
    Refused {
        command: String,
    },
    /// `If-Match` did not hold. Not remembered by the node.
    Conflict,
}

/// One client, through all lives of its node.
pub(super) struct Writer {
    id: u64,
    dice: Dice,
    next: u64,
    pending: Option<Ask>,
    /// The revision of its own notes, as far as it was told.
    revisions: BTreeMap<String, u64>,
    /// One note of its own is poisoned at some time, and written before and after.
    poisoned: bool,
    pub(super) answered: Vec<(Ask, Answer)>,
}

impl Writer {
    pub(super) fn new(id: u64, dice: Dice) -> Self {
        let (revisions, answered) = (BTreeMap::new(), Vec::new());
        Self { id, dice, next: 0, pending: None, revisions, poisoned: false, answered }
    }

    /// Sends commands, one after another, until there is no node any more, or enough was done.
    pub(super) async fn run(&mut self, app: &Client, big: bool, done: &AtomicU64) {
        for _ in 0..COMMANDS_PER_LIFE {
            let ask = match self.pending.clone() {
                Some(ask) => ask,
                None => self.think_of_one(big),
            };
            self.pending = Some(ask.clone());
            let Some(answer) = send_until_answered(app, &ask).await else { return };
            self.pending = None;
            let answer = understand(&ask, &answer);
            if let Answer::Accepted { position, revision, .. } = &answer {
                let own = ask.note != "shared" && !ask.note.ends_with("poisoned");
                if own {
                    self.revisions.insert(ask.note.clone(), *revision);
                }
                if own && self.dice.once_in(4) && !read_own_write(app, &ask, *position).await {
                    self.answered.push((ask, answer));
                    return;
                }
            }
            self.answered.push((ask, answer));
            done.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn think_of_one(&mut self, big: bool) -> Ask {
        self.next += 1;
        let key = format!("{}-{}", self.id, self.next);
        let own = format!("{}-{}", self.id, self.dice.roll(0..NOTES));
        let text = if big { format!("{key} {}", "x".repeat(BIG)) } else { format!("{key} says so") };
        let revision = self.revisions.get(&own).copied();
        let write = |note: String, if_match| Ask { what: What::Write, key, note, text, if_match };
        match (self.dice.roll(0..9), revision) {
            (0, _) => write("shared".into(), None),
            (1, _) => Ask { text: String::new(), ..write(own, None) },
            (2, Some(_)) => write(own, Some(1_000_000)),
            (3 | 4, Some(_)) => write(own, revision),
            (5, _) => {
                let ask = write(format!("{}-poisoned", self.id), None);
                // Once, and seldom at first: rows from before it are to be there as well.
                let poison = !self.poisoned && self.dice.once_in(4);
                self.poisoned |= poison;
                // What the projection makes of it does not say which command it was: the note does.
                let text = if poison { format!("{} poison", ask.note) } else { ask.text };
                let what = if poison { What::Poison } else { What::Write };
                Ask { what, text, ..ask }
            }
            _ => write(own, None),
        }
    }

    /// What it has no answer to yet.
    pub(super) fn pending(&self) -> Option<&Ask> {
        self.pending.as_ref()
    }
}

/// Sends a command; none if there was no answer.
pub(super) async fn send(app: &Client, ask: &Ask) -> Option<Reply> {
    let request = match ask.what {
        What::Write => app.command("note", &ask.note, "write", &json!({ "text": ask.text })),
        What::Poison => app.command("note", &ask.note, "poison", &json!({})),
    };
    let request = request.header("idempotency-key", &ask.key);
    let request = match ask.if_match {
        Some(revision) => request.header("if-match", revision),
        None => request,
    };
    request.send().await.ok()
}

/// None if there is no node any more. A node that is stopping says so with 503.
async fn send_until_answered(app: &Client, ask: &Ask) -> Option<Reply> {
    loop {
        let reply = send(app, ask).await?;
        if reply.status != 503 {
            return Some(reply);
        }
        let problem = reply.json();
        assert_eq!(problem["code"], "shutting_down", "{problem}");
        // Until its port is closed.
        tokio::task::yield_now().await;
    }
}

/// What an answer says, once it is known that it is one that this command may get.
pub(super) fn understand(ask: &Ask, reply: &Reply) -> Answer {
    let stale = ask.if_match == Some(1_000_000);
    match reply.status {
        200 if !ask.text.is_empty() && !stale => {
            let body = reply.json();
            let event = &body["events"][0];
            match ask.what {
                What::Write => assert_eq!(event["data"]["text"], ask.text.as_str(), "{ask:?}: {body}"),
                What::Poison => assert_eq!(event["type"], POISONED, "{ask:?}: {body}"),
            }
            Answer::Accepted {
                command: command_id(reply),
                event: body["events"][0]["id"].as_str().expect("an id").to_owned(),
                position: reply.position(),
                revision: body["revision"].as_u64().expect("a revision"),
            }
        }
        422 if ask.text.is_empty() => {
            reply.refused("empty");
            Answer::Refused { command: command_id(reply) }
        }
        409 if stale => {
            reply.problem(409, "revision_conflict");
            Answer::Conflict
        }
        _ => panic!("{ask:?} got {reply:?}"),
    }
}

fn command_id(reply: &Reply) -> String {
    reply.header("ebb-command-id").expect("a command has an id").to_owned()
}

/// Reads what was just written, and which nobody else writes. False: there is no node any more.
async fn read_own_write(app: &Client, ask: &Ask, position: u64) -> bool {
    let request = app.get(&format!("/models/notes/{}", ask.note));
    // Other notes are parked.
    let request = request.header("ebb-allow-parked", "true");
    let Ok(reply) = request.header("ebb-after", position).header("ebb-wait", "20s").send().await else {
        return false;
    };
    if reply.status == 503 {
        // It is stopping; anything else would have waited.
        return false;
    }
    assert_eq!(
        reply.ok()["text"],
        ask.text.as_str(),
        "a row is behind the position that was asked for: {ask:?}"
    );
    true
}

/// What a live subscriber has seen, through all lives of its node.
#[derive(Default)]
pub(super) struct Subscriber {
    /// Position and event id, in order.
    pub(super) seen: Vec<(u64, String)>,
    pub(super) reconnects: u64,
}

impl Subscriber {
    fn last(&self) -> u64 {
        self.seen.last().map_or(0, |(position, _)| *position)
    }

    /// Follows until there is no node any more.
    pub(super) async fn follow(this: Arc<Mutex<Self>>, app: Client) {
        let last = {
            let mut this = this.lock().await;
            this.reconnects += 1;
            this.last()
        };
        let request = app.get("/events").header("last-event-id", last);
        let Ok(mut live) = LiveEvents::try_open(request).await else { return };
        while let Some(message) = live.message().await {
            let (Some(id), Some(data)) = (message.id, message.data) else { continue };
            let event: Value = serde_json::from_str(&data).expect("an event is JSON");
            let mut this = this.lock().await;
            assert_eq!(id, this.last() + 1, "a live subscriber sees every event once, in order");
            this.seen.push((id, event["id"].as_str().expect("an id").to_owned()));
        }
    }
}

/// Everything that talks to a node in one life of it.
pub(super) struct Life {
    writers: Vec<tokio::task::JoinHandle<Writer>>,
    subscriber: tokio::task::JoinHandle<()>,
    done: Arc<AtomicU64>,
    over: watch::Receiver<bool>,
}

impl Life {
    pub(super) fn start(
        app: &Client,
        writers: Vec<Writer>,
        subscriber: &Arc<Mutex<Subscriber>>,
        big: bool,
    ) -> Self {
        let done = Arc::new(AtomicU64::new(0));
        let (over, is_over) = watch::channel(false);
        let over = Arc::new(over);
        let writers = writers.into_iter().map(|mut writer| {
            let (app, done, over) = (app.clone(), done.clone(), over.clone());
            tokio::spawn(async move {
                writer.run(&app, big, &done).await;
                // The last sender that goes tells that all have.
                drop(over);
                writer
            })
        });
        let writers = writers.collect();
        let subscriber = tokio::spawn(Subscriber::follow(subscriber.clone(), app.clone()));
        Self { writers, subscriber, done, over: is_over }
    }

    /// Commands that were answered.
    pub(super) fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Waits until the writers have no more to do, or no node.
    pub(super) async fn over(&mut self) {
        let _ = self.over.wait_for(|over| *over).await;
    }

    /// The writers, as this life leaves them.
    pub(super) async fn end(self) -> Vec<Writer> {
        let mut writers = Vec::new();
        for writer in self.writers {
            writers.push(writer.await.expect("a writer found everything as it should be"));
        }
        if self.subscriber.is_finished() {
            self.subscriber.await.expect("the subscriber found everything as it should be");
        } else {
            self.subscriber.abort();
        }
        writers
    }
}
