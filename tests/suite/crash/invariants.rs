//! What must hold after every crash: the invariants of the simulation, of what was seen from outside of a real process.

use super::workload::{Answer, Ask, POISONED, Subscriber, What, Writer, send, understand};
use ebb_sim::invariants::{Event, History, Projection, Recorded, Seen, Told, Try, check as violations};
use ebb_tests::{Client, Dice, Node};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashSet};

/// Commands of each writer that are asked for again after each crash.
const RETRIES: usize = 4;

/// Checks a node that came back against everything that its clients were told.
pub(super) async fn check(node: &Node, writers: &[Writer], subscriber: &Subscriber, dice: &mut Dice) {
    let app = node.app("notes");
    let mut history = History::default();
    for writer in writers {
        history.tries.extend(writer.answered.iter().map(|(ask, answer)| told(ask, answer)));
        history.tries.extend(writer.pending().map(|ask| attempt(ask, Told::Unknown)));
        for (ask, answer) in chosen(writer, dice) {
            ask_again(&app, ask, answer, &mut history).await;
        }
    }
    // Read behind the retries, which must have added nothing.
    let events = app.all_events().await;
    for event in &events {
        history.events.push(self::event(event));
    }
    let seen = |(position, id): &(u64, String)| Seen { position: *position, id: id.clone() };
    history.readers.push(subscriber.seen.iter().map(seen).collect());
    let mut projection = projection(&rows(&app, events.len() as u64).await, &events);
    projection.parked = parked(node, &events).await;
    history.projections.push(projection);
    let wrong = violations(&history);
    assert!(wrong.is_empty(), "{wrong:#?}");
    let mut writes = BTreeMap::<&str, u64>::new();
    for event in events.iter().filter(|event| event["type"] != POISONED) {
        let writes = writes.entry(event["subject"].as_str().expect("a stream")).or_default();
        *writes += 1;
        assert_eq!(event["data"]["writes"], *writes, "it was decided on all events before it: {event}");
    }
}

/// All rows, behind a position, whatever is parked.
async fn rows(app: &Client, position: u64) -> Vec<Value> {
    let page = app.get("/models/notes?limit=1000").header("ebb-after", position).header("ebb-wait", "30s");
    let page = page.header("ebb-allow-parked", "true").await.ok();
    assert_eq!(page["next"], Value::Null, "there are a few notes");
    page["items"].as_array().expect("items").clone()
}

/// What is parked: exactly the poisoned notes, each from its poison on, with all that came behind it.
async fn parked(node: &Node, events: &[Value]) -> BTreeMap<String, u64> {
    let mut due = BTreeMap::<String, (u64, u64)>::new();
    for event in events {
        let (stream, position) = (text(&event["subject"]), event["position"].as_u64().expect("a position"));
        match due.get_mut(&stream) {
            Some((_, queued)) => *queued += 1,
            None if event["type"] == POISONED => {
                due.insert(stream, (position, 1));
            }
            None => {}
        }
    }
    let listed = node.control.get("/apps/notes/projections/notes/parked?limit=1000").await.ok();
    let listed = listed["parked"].as_array().expect("parked").iter();
    let number = |value: &Value| value.as_u64().expect("a number");
    let found: BTreeMap<_, _> = listed
        .map(|parked| (text(&parked["key"]), (number(&parked["position"]), number(&parked["queued"]))))
        .collect();
    assert_eq!(found, due, "keys, their first position, and how many queue");
    found.into_iter().map(|(stream, (position, _))| (stream, position)).collect()
}

/// The last answered command of a writer, and some others, of those whose outcome the node remembers.
fn chosen<'a>(writer: &'a Writer, dice: &mut Dice) -> Vec<&'a (Ask, Answer)> {
    let remembered = writer.answered.iter().filter(|(_, answer)| *answer != Answer::Conflict);
    let remembered: Vec<_> = remembered.collect();
    let mut chosen: Vec<_> = remembered.last().copied().into_iter().collect();
    for _ in 1..RETRIES.min(remembered.len()) {
        chosen.push(dice.pick(&remembered));
    }
    chosen
}

/// A retry gets the answer of the first time, and the command log tells the same.
async fn ask_again(app: &Client, ask: &Ask, before: &Answer, history: &mut History) {
    let reply = send(app, ask).await.expect("the node is up");
    let answer = understand(ask, &reply);
    assert_eq!(reply.header("ebb-replayed"), Some("true"), "{before:?} was the answer before: {reply:?}");
    history.tries.push(told(ask, &answer));
    let (Answer::Accepted { command, .. } | Answer::Refused { command }) = before else { return };
    let entry = app.get(&format!("/command-log/{command}")).await.ok();
    let recorded = match entry["outcome"].as_str() {
        Some("accepted") => {
            let events = entry["events"].as_array().expect("events").iter();
            Recorded::Accepted(events.map(|event| text(&event["id"])).collect())
        }
        _ => Recorded::Refused(text(&entry["code"])),
    };
    history.commands.insert(command.clone(), recorded);
}

fn told(ask: &Ask, answer: &Answer) -> Try {
    attempt(
        ask,
        match answer.clone() {
            Answer::Accepted { command, position, revision, event } => Told::Accepted {
                command_id: command,
                events: vec![(event, position)],
                revision: Some(revision),
            },
            Answer::Refused { command } => Told::Refused { command_id: command, code: "empty".into() },
            Answer::Conflict => Told::Conflict,
        },
    )
}

fn attempt(ask: &Ask, told: Told) -> Try {
    let token = match ask.what {
        What::Write => ask.key.clone(),
        What::Poison => ask.note.clone(),
    };
    Try {
        token,
        stream: format!("note-{}", ask.note),
        key: Some(ask.key.clone()),
        if_revision: ask.if_match.map(Some),
        told,
        premise: None,
    }
}

fn event(event: &Value) -> Event {
    // A poison says nothing; it is the only one of its note.
    let poison = event["subject"].as_str().and_then(|stream| stream.strip_prefix("note-"));
    let said = event["data"]["text"].as_str().or(poison).expect("a text");
    Event {
        position: event["position"].as_u64().expect("a position"),
        stream: text(&event["subject"]),
        revision: event["sequence"].as_u64().expect("a revision"),
        id: text(&event["id"]),
        command_id: text(&event["commandid"]),
        token: said.split(' ').next().unwrap_or_default().to_owned(),
        decided_on: None,
        recorded_at: text(&event["time"]),
    }
}

/// A row has the last text of its note and counts them: these are the events that make such a row.
fn projection(rows: &[Value], events: &[Value]) -> Projection {
    let versions: HashSet<_> = rows.iter().map(|row| row["version"].to_string()).collect();
    assert!(versions.len() <= 1, "all rows are of one module: {versions:?}");
    let mut streams = BTreeMap::<&str, Vec<&Value>>::new();
    for event in events {
        streams.entry(event["subject"].as_str().expect("a stream")).or_default().push(event);
    }
    let mut projection = Projection {
        name: "notes".into(),
        mark: events.len() as u64,
        is_caught_up: true,
        ..Projection::default()
    };
    for row in rows {
        let stream = format!("note-{}", row["note"].as_str().expect("a key"));
        let writes = row["writes"].as_u64().expect("a count") as usize;
        let applied: Vec<&Value> =
            streams.get(stream.as_str()).into_iter().flatten().take(writes).copied().collect();
        let says_the_last = applied.last().is_some_and(|event| event["data"]["text"] == row["text"]);
        let positions = if applied.len() == writes && says_the_last {
            applied.iter().map(|event| event["position"].as_u64().expect("a position")).collect()
        } else {
            panic!("no events of {stream} make the row {row}: {}", json!(streams.get(stream.as_str())))
        };
        projection.rows.insert(stream, positions);
    }
    projection
}

fn text(value: &Value) -> String {
    value.as_str().expect("a text").to_owned()
}
