//! What must hold after any number of crashes, faults and retries: the promises of the platform, as checks of plain data.
//! The simulation fills a [`History`] from inside one process, the crash harness from outside of a real one; what is
//! checked is the same.

use std::collections::{BTreeMap, BTreeSet};

/// Everything that the outside world knows at the end.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// What callers asked, and what they were told: one entry a try, in any order.
    pub tries: Vec<Try>,
    /// The whole log as it is read at the end.
    pub events: Vec<Event>,
    /// What the log says at the end of single commands, by command id. May be a part of them.
    pub commands: BTreeMap<String, Recorded>,
    /// What live readers were given: one list a reader, over all of its reconnections.
    pub readers: Vec<Vec<Seen>>,
    /// Read models at the end.
    pub projections: Vec<Projection>,
}

/// One try of a command.
#[derive(Clone, Debug)]
pub struct Try {
    /// What the workload calls this command: the same for every try of it, and in the data of the events that it leads to.
    pub token: String,
    /// Its stream.
    pub stream: String,
    /// Its idempotency key, if it has one.
    pub key: Option<String>,
    /// The revision that it was to be decided on: none if it did not say; the inner none is "no events yet".
    pub if_revision: Option<Option<u64>>,
    /// What the caller was told.
    pub told: Told,
    /// How many events its stream had, by what the caller was told: of a refusal, a conflict, a command that led to
    /// nothing. They were what it was decided on, so they must stay.
    pub premise: Option<u64>,
}

/// What a caller was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// The command was accepted.
    Accepted {
        /// Its id.
        command_id: String,
        /// The events, in order: id and position.
        events: Vec<(String, u64)>,
        /// Revision of the last event, or of the stream if there are none.
        revision: Option<u64>,
    },
    /// The module refused it.
    Refused {
        /// Its id.
        command_id: String,
        /// The refusal's code.
        code: String,
    },
    /// The stream was elsewhere.
    Conflict,
    /// The key had been used for something else.
    KeyReused,
    /// Nothing was done, it was said: throttled, shutting down, no room.
    NothingDone,
    /// Nothing, or that the outcome is not known.
    Unknown,
}

/// An event as the log has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its position.
    pub position: u64,
    /// Its stream.
    pub stream: String,
    /// Its revision.
    pub revision: u64,
    /// Its id.
    pub id: String,
    /// The command that led to it.
    pub command_id: String,
    /// The token in its data.
    pub token: String,
    /// Events of its stream that the module had folded, those before it in its commit included, when it decided on this
    /// one; none if its data does not say.
    pub decided_on: Option<u64>,
    /// When it was recorded, in any unit, or any text that sorts by time.
    pub recorded_at: String,
}

/// What the log says of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// It was accepted, with these events.
    Accepted(Vec<String>),
    /// It was refused with this code.
    Refused(String),
}

/// An event that a live reader was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its position.
    pub position: u64,
    /// Its id.
    pub id: String,
}

/// One projection's read model: a row a stream, which lists the positions of the events that made it.
#[derive(Clone, Debug, Default)]
pub struct Projection {
    /// Its name, for messages.
    pub name: String,
    /// How far it says it has got.
    pub mark: u64,
    /// Positions applied, in the order of application, by stream.
    pub rows: BTreeMap<String, Vec<u64>>,
    /// Streams whose events wait, and the first position that does.
    pub parked: BTreeMap<String, u64>,
    /// Positions that were given up by command, or may have been.
    pub may_be_skipped: BTreeSet<u64>,
    /// Whether the mark must be the end of the log: everybody has had the time to catch up.
    pub is_caught_up: bool,
}

/// Something that must never happen, in words.
pub type Violation = String;

/// Checks everything, and gives what is wrong.
#[must_use]
pub fn check(history: &History) -> Vec<Violation> {
    let mut wrong = Vec::new();
    the_log_is_dense(&history.events, &mut wrong);
    nothing_acknowledged_is_lost(history, &mut wrong);
    what_answers_stand_on_is_there(history, &mut wrong);
    no_key_is_decided_twice(history, &mut wrong);
    conditions_were_kept(history, &mut wrong);
    readers_saw_the_log_once_each(history, &mut wrong);
    history
        .projections
        .iter()
        .for_each(|projection| rows_are_the_fold(projection, &history.events, &mut wrong));
    wrong
}

fn the_log_is_dense(events: &[Event], wrong: &mut Vec<Violation>) {
    let mut revisions = BTreeMap::<&str, u64>::new();
    let mut ids = BTreeSet::new();
    let mut time = "";
    for (event, expected) in events.iter().zip(1..) {
        if event.position != expected {
            wrong.push(format!("position {} where {expected} should be", event.position));
            return;
        }
        let next = revisions.entry(&event.stream).or_default();
        if event.revision != *next {
            let (position, stream, revision) = (event.position, &event.stream, event.revision);
            wrong.push(format!("{stream} has revision {revision} at position {position}, not {next}"));
        }
        if event.decided_on.is_some_and(|folded| folded != event.revision) {
            let (position, folded, revision) = (event.position, event.decided_on, event.revision);
            wrong.push(format!(
                "position {position} was decided on {folded:?} events, and has revision {revision}"
            ));
        }
        *next = event.revision + 1;
        if !ids.insert(&event.id) {
            wrong.push(format!("event {} is there twice", event.id));
        }
        if event.recorded_at.as_str() < time {
            wrong.push(format!("position {} was recorded before its predecessor", event.position));
        }
        time = &event.recorded_at;
    }
}

fn nothing_acknowledged_is_lost(history: &History, wrong: &mut Vec<Violation>) {
    for attempt in &history.tries {
        match &attempt.told {
            Told::Accepted { command_id, events, revision } => {
                for (id, position) in events {
                    let found = position.checked_sub(1).and_then(|at| history.events.get(at as usize));
                    let is_there = found.is_some_and(|event| {
                        event.id == *id
                            && event.command_id == *command_id
                            && event.stream == attempt.stream
                            && event.token == attempt.token
                    });
                    if !is_there {
                        wrong.push(format!(
                            "`{}` was acknowledged with event {id} at position {position}; the log has {found:?}",
                            attempt.token
                        ));
                    }
                }
                let last = events.last().and_then(|(_, position)| history.events.get(*position as usize - 1));
                if last.is_some_and(|event| Some(event.revision) != *revision) {
                    wrong.push(format!(
                        "`{}` was told revision {revision:?}; the log has {last:?}",
                        attempt.token
                    ));
                }
                let all = events.iter().map(|(id, _)| id.clone()).collect();
                agrees(history, attempt, command_id, &Recorded::Accepted(all), wrong);
            }
            Told::Refused { command_id, code } => {
                agrees(history, attempt, command_id, &Recorded::Refused(code.clone()), wrong);
            }
            _ => {}
        }
    }
    // The other way round: nothing is there that nobody can have meant.
    let mut may_be_there = BTreeSet::new();
    for attempt in &history.tries {
        if matches!(attempt.told, Told::Accepted { .. } | Told::Unknown) {
            may_be_there.insert(&attempt.token);
        }
    }
    for event in &history.events {
        if !may_be_there.contains(&event.token) {
            let (token, position) = (&event.token, event.position);
            wrong.push(format!(
                "position {position} is of `{token}`, whose every try was told that nothing was done"
            ));
        }
    }
}

fn what_answers_stand_on_is_there(history: &History, wrong: &mut Vec<Violation>) {
    let mut lengths = BTreeMap::<&str, u64>::new();
    for event in &history.events {
        *lengths.entry(&event.stream).or_default() += 1;
    }
    for Try { token, stream, told, premise, .. } in &history.tries {
        let length = lengths.get(stream.as_str()).copied().unwrap_or_default();
        if premise.is_some_and(|premise| premise > length) {
            wrong.push(format!(
                "`{token}` was told {told:?} on {premise:?} events of {stream}, which has {length}"
            ));
        }
    }
}

fn agrees(history: &History, attempt: &Try, command_id: &str, told: &Recorded, wrong: &mut Vec<Violation>) {
    if let Some(recorded) = history.commands.get(command_id)
        && recorded != told
    {
        wrong.push(format!("`{}` was told {told:?}, and the log says {recorded:?}", attempt.token));
    }
}

fn no_key_is_decided_twice(history: &History, wrong: &mut Vec<Violation>) {
    let mut commands = BTreeMap::<&str, BTreeSet<&str>>::new();
    for event in &history.events {
        commands.entry(&event.token).or_default().insert(&event.command_id);
    }
    let mut answers = BTreeMap::<(&str, &str), &Told>::new();
    for attempt in &history.tries {
        let Some(key) = &attempt.key else { continue };
        if let Some(ids) = commands.get(attempt.token.as_str())
            && ids.len() > 1
        {
            wrong.push(format!("`{}` was decided {} times under key `{key}`", attempt.token, ids.len()));
        }
        if !matches!(attempt.told, Told::Accepted { .. } | Told::Refused { .. }) {
            continue;
        }
        let first = answers.entry((key, &attempt.token)).or_insert(&attempt.told);
        if **first != attempt.told {
            let token = &attempt.token;
            wrong.push(format!("`{token}` was told {first:?} and, under the same key, {:?}", attempt.told));
        }
    }
    // A key stands for one request.
    let mut owners = BTreeMap::<&str, &str>::new();
    for (key, token) in answers.keys() {
        if let Some(other) = owners.insert(key, token)
            && other != *token
        {
            wrong.push(format!("key `{key}` was taken for `{other}` and for `{token}`"));
        }
    }
}

fn conditions_were_kept(history: &History, wrong: &mut Vec<Violation>) {
    for attempt in &history.tries {
        let (Some(expected), Told::Accepted { events, .. }) = (attempt.if_revision, &attempt.told) else {
            continue;
        };
        let Some((_, position)) = events.first() else { continue };
        let Some(event) = history.events.get(*position as usize - 1) else { continue };
        if event.revision.checked_sub(1) != expected {
            let (token, revision) = (&attempt.token, event.revision);
            wrong.push(format!("`{token}` was to follow revision {expected:?}, and has revision {revision}"));
        }
    }
}

fn readers_saw_the_log_once_each(history: &History, wrong: &mut Vec<Violation>) {
    for (number, seen) in history.readers.iter().enumerate() {
        for pair in seen.windows(2) {
            if pair[1].position != pair[0].position + 1 {
                let (one, next) = (pair[0].position, pair[1].position);
                wrong.push(format!("reader {number} was given position {next} behind {one}"));
            }
        }
        for Seen { position, id } in seen {
            let found = position.checked_sub(1).and_then(|at| history.events.get(at as usize));
            if found.is_none_or(|event| event.id != *id) {
                wrong.push(format!(
                    "reader {number} was given {id} at position {position}; the log has {found:?}"
                ));
            }
        }
    }
}

fn rows_are_the_fold(projection: &Projection, events: &[Event], wrong: &mut Vec<Violation>) {
    let Projection { name, mark, rows, parked, may_be_skipped, is_caught_up } = projection;
    let end = events.len() as u64;
    if *mark > end || (*is_caught_up && *mark < end) {
        wrong.push(format!("{name} is at {mark}, and the log ends at {end}"));
    }
    let none = Vec::new();
    let mut streams = BTreeMap::<&str, Vec<u64>>::new();
    for event in events.iter().filter(|event| event.position <= *mark) {
        streams.entry(&event.stream).or_default().push(event.position);
    }
    for stream in rows.keys().filter(|stream| !streams.contains_key(stream.as_str())) {
        wrong.push(format!("{name} has a row of {stream}, which has no events up to {mark}"));
    }
    for (stream, due) in streams {
        let applied = rows.get(stream).unwrap_or(&none);
        let waits_from = parked.get(stream).copied().unwrap_or(u64::MAX);
        let expected =
            due.iter().filter(|position| **position < waits_from && !may_be_skipped.contains(position));
        let counted = applied.iter().filter(|position| !may_be_skipped.contains(position));
        if !expected.eq(counted) || !applied.is_sorted_by(|one, next| one < next) {
            wrong.push(format!(
                "{name} has applied {applied:?} of {stream}, whose events up to {mark} are {due:?} (parked from \
                 {waits_from}, skipped {may_be_skipped:?})"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(position: u64, stream: &str, revision: u64, token: &str) -> Event {
        Event {
            position,
            stream: stream.into(),
            revision,
            id: format!("e{position}"),
            command_id: format!("c-{token}"),
            token: token.into(),
            decided_on: Some(revision),
            recorded_at: format!("{position:03}"),
        }
    }

    fn accepted(token: &str, stream: &str, position: u64, revision: u64) -> Try {
        Try {
            token: token.into(),
            stream: stream.into(),
            key: Some(format!("k-{token}")),
            if_revision: Some(revision.checked_sub(1)),
            told: Told::Accepted {
                command_id: format!("c-{token}"),
                events: vec![(format!("e{position}"), position)],
                revision: Some(revision),
            },
            premise: None,
        }
    }

    fn good() -> History {
        let seen = |position: u64| Seen { position, id: format!("e{position}") };
        History {
            tries: vec![accepted("a", "s-1", 1, 0), accepted("b", "s-2", 2, 0), accepted("c", "s-1", 3, 1)],
            events: vec![event(1, "s-1", 0, "a"), event(2, "s-2", 0, "b"), event(3, "s-1", 1, "c")],
            commands: BTreeMap::from([("c-a".into(), Recorded::Accepted(vec!["e1".into()]))]),
            readers: vec![vec![seen(2), seen(3)]],
            projections: vec![Projection {
                name: "p".into(),
                mark: 3,
                rows: BTreeMap::from([("s-1".into(), vec![1, 3]), ("s-2".into(), vec![2])]),
                is_caught_up: true,
                ..Projection::default()
            }],
        }
    }

    #[test]
    fn a_history_in_which_all_promises_were_kept_passes() {
        assert_eq!(check(&good()), Vec::<String>::new());
    }

    /// Each of these is a promise broken, and each is seen.
    #[test]
    fn every_broken_promise_is_seen() {
        type Break = fn(&mut History);
        let breaks: [(&str, Break); 16] = [
            ("what a conflict was told of is gone", |h| {
                h.tries.push(Try { told: Told::Conflict, premise: Some(9), ..h.tries[0].clone() });
            }),
            ("a decision was made on old state", |h| h.events[2].decided_on = Some(0)),
            ("an acknowledged event is gone", |h| drop(h.events.pop())),
            ("a position is missing", |h| drop(h.events.remove(1))),
            ("a revision is missing", |h| h.events[2].revision = 2),
            ("time goes back", |h| h.events[2].recorded_at = "000".into()),
            ("a command was decided twice", |h| {
                h.events.push(Event { command_id: "c-again".into(), ..event(4, "s-1", 2, "a") });
            }),
            ("an answer changed", |h| {
                let code = "no".into();
                h.tries.push(Try {
                    told: Told::Refused { command_id: "c-a".into(), code },
                    ..h.tries[0].clone()
                });
            }),
            ("a key was taken for two requests", |h| h.tries[1].key = Some("k-a".into())),
            ("a condition was ignored", |h| h.tries[2].if_revision = Some(Some(7))),
            ("what was told as not done is there", |h| h.tries[0].told = Told::NothingDone),
            ("a reader missed one", |h| h.readers[0].insert(0, Seen { position: 9, id: "e9".into() })),
            ("a reader was given what is not there", |h| h.readers[0][1].id = "other".into()),
            ("an event was applied twice", |h| h.projections[0].rows.get_mut("s-1").unwrap().push(3)),
            ("an event was not applied", |h| drop(h.projections[0].rows.remove("s-2"))),
            ("the log says another outcome", |h| {
                h.commands.insert("c-b".into(), Recorded::Refused("no".into()));
            }),
        ];
        for (what, break_it) in breaks {
            let mut history = good();
            break_it(&mut history);
            assert_ne!(check(&history), Vec::<String>::new(), "{what}");
        }
    }

    #[test]
    fn parked_and_skipped_events_are_not_missed_and_others_are() {
        let mut history = good();
        history.projections[0].rows.insert("s-1".into(), vec![1]);
        assert_ne!(check(&history), Vec::<String>::new());
        history.projections[0].parked.insert("s-1".into(), 3);
        assert_eq!(check(&history), Vec::<String>::new());
        history.projections[0].parked.clear();
        history.projections[0].may_be_skipped.insert(3);
        assert_eq!(check(&history), Vec::<String>::new());
    }
}
