//! What a replay found: a summary first, then differences one by one. All of it is bounded, whatever modules decide.

use super::decider::{Other, Verdict};
use super::{Isolation, ReplayOptions};
use ebb_domain::commit::{CommandId, Commit, Outcome, Refusal};
use ebb_domain::digest::Digest;
use ebb_domain::event::{NewEvent, StoredEvent};
use ebb_domain::time::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::hash_map::{DefaultHasher, Entry};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::time::Duration;

/// Bytes of one value in a report: an event's data, a command's body.
const VALUE_BYTES: usize = 16 << 10;
/// Bytes of all differences that are reported one by one, about.
const DIFFERENCES_BYTES: usize = 32 << 20;
/// Events of one outcome in a report.
const EVENTS: usize = 100;
/// Fields of one difference in a report.
const FIELDS: usize = 100;
/// Groups of the summary.
const GROUPS: usize = 500;

/// What a replay found.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ReplayReport {
    /// Decisions made again.
    pub commands: u64,
    /// Decisions that came out the same, byte for byte.
    pub identical: u64,
    /// Decisions that did not.
    pub different: u64,
    /// Streams with at least one difference.
    pub streams_affected: u64,
    /// Commits that were not decided again, and why.
    pub skipped: Skipped,
    /// How decisions were isolated from each other.
    pub isolation: Isolation,
    /// What shuffled and sampled.
    pub seed: u64,
    /// The part of the streams that was replayed, 1 for all of them.
    pub sample: f64,
    /// By `aggregate/command`.
    pub by_command: BTreeMap<String, CommandSummary>,
    /// Differences of a kind together, most frequent first.
    pub summary: Vec<DifferenceGroup>,
    /// Differences that found no room in `summary`.
    pub not_summarised: u64,
    /// The first differences, in order of commit.
    pub differences: Vec<Difference>,
    /// How long it took, in milliseconds.
    pub elapsed_ms: u64,
}

/// Commits that were not decided again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// Recorded by the platform, not decided by a module.
    pub without_command: u64,
    /// Recorded without the command's body, as `record-commands = false` asks for.
    pub without_body: u64,
    /// Of other aggregates than the one that was asked for.
    pub other_aggregates: u64,
    /// Of streams that are not in the sample.
    pub not_sampled: u64,
}

/// Decisions of one command.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandSummary {
    /// Made again.
    pub commands: u64,
    /// Came out differently.
    pub different: u64,
}

/// In what a decision differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DifferenceKind {
    /// The same module decides otherwise, or it depends on who shares the instance: it is not deterministic.
    NotDeterministic,
    /// The module fails, or decides what the manifest does not allow.
    Failed,
    /// The platform would not take the command: the manifest has no such command, or its body fits no schema.
    Rejected,
    /// It was accepted, and is refused.
    NowRefused,
    /// It was refused, and is accepted.
    NowAccepted,
    /// Refused in another way.
    OtherRefusal,
    /// Other types of events, or another number of them.
    OtherEvents,
    /// The same types, other data.
    OtherData,
    /// The same data as JSON, in other bytes: other white space, another order.
    OtherBytes,
}

/// Differences of one command and kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DifferenceGroup {
    /// The aggregate.
    pub aggregate: String,
    /// The command.
    pub command: String,
    /// In what they differ.
    pub kind: DifferenceKind,
    /// More exactly, for people: which events, which fields.
    pub what: String,
    /// How many.
    pub count: u64,
    /// The first.
    pub first: Place,
    /// The last.
    pub last: Place,
}

/// Where a difference is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Place {
    /// The stream.
    pub stream: String,
    /// The commit.
    pub commit: u64,
    /// When it was recorded.
    pub recorded_at: Timestamp,
}

/// One decision that came out differently.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// In what it differs.
    pub kind: DifferenceKind,
    /// Where it is.
    #[serde(flatten)]
    pub place: Place,
    /// Where the stream was; none before its first event.
    pub revision: Option<u64>,
    /// The command's name.
    pub command: String,
    /// The command's id.
    pub command_id: CommandId,
    /// The command's body.
    pub data: Value,
    /// What was decided then.
    pub recorded: OutcomeView,
    /// What is decided now.
    pub replayed: OutcomeView,
    /// What is decided now in an instance of its own, where that is yet something else than `replayed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replayed_alone: Option<OutcomeView>,
    /// What changed within events or a refusal, field by field.
    pub changes: Vec<FieldChange>,
}

/// A value that differs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FieldChange {
    /// The event's index; none for a refusal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<usize>,
    /// A JSON pointer into its data, or a field of the refusal.
    pub path: String,
    /// Then; none where there was no such field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recorded: Option<Value>,
    /// Now; none where there is no such field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replayed: Option<Value>,
}

/// An outcome, for a report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutcomeView {
    /// These events.
    Events(Vec<EventView>),
    /// A domain "no".
    Refused {
        /// Its code.
        code: String,
        /// For people.
        message: String,
        /// More for programs.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        details: Option<Value>,
    },
    /// The platform would not take the command.
    Rejected(String),
    /// The module failed, or decided what the manifest does not allow.
    Failed(String),
}

/// An event, for a report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EventView {
    /// Its type.
    #[serde(rename = "type")]
    pub event_type: String,
    /// Its data; text that is not JSON, or too long for a report, as a string.
    pub data: Value,
}

impl DifferenceKind {
    pub(super) fn of_events(recorded: &[StoredEvent], decided: &[NewEvent]) -> Self {
        let types_differ = recorded.len() != decided.len()
            || recorded.iter().zip(decided).any(|(then, now)| then.event_type != now.event_type);
        let json = |data: &[u8]| serde_json::from_slice::<Value>(data).ok();
        let is_json_equal = || {
            recorded.iter().zip(decided).all(|(then, now)| {
                then.data == now.data || json(&then.data).is_some_and(|then| json(&now.data) == Some(then))
            })
        };
        match types_differ {
            true => Self::OtherEvents,
            false if is_json_equal() => Self::OtherBytes,
            false => Self::OtherData,
        }
    }
}

impl OutcomeView {
    /// `Departed, Delayed`, `refused crew_went_home`: what a summary calls it.
    fn name(&self) -> String {
        match self {
            Self::Events(events) if events.is_empty() => "no events".into(),
            Self::Events(events) => {
                let types: Vec<&str> = events.iter().map(|event| &*event.event_type).collect();
                types.join(", ")
            }
            Self::Refused { code, .. } => format!("refused {code}"),
            Self::Rejected(why) => format!("rejected: {why}"),
            Self::Failed(why) => why.clone(),
        }
    }
}

pub(super) fn view_of_commit(commit: &Commit) -> OutcomeView {
    match &commit.header.refusal {
        Some(refusal) => refused(refusal),
        None => events(commit.events.iter().map(|event| (&*event.event_type, &*event.data))),
    }
}

pub(super) fn bounded_view(outcome: &Outcome) -> OutcomeView {
    match outcome {
        Outcome::Refused(refusal) => refused(refusal),
        Outcome::Events(decided) => events(decided.iter().map(|event| (&*event.event_type, &*event.data))),
    }
}

/// Equal for equal outcomes, to the byte.
pub(super) fn digest_of(outcome: &Outcome) -> Digest {
    match outcome {
        Outcome::Refused(Refusal { code, message, details }) => {
            let details = details.as_ref().map_or([&b""[..], b""], |details| [b"details", details]);
            Digest::of_parts(
                [&b"refused"[..], code.as_bytes(), message.as_bytes()].into_iter().chain(details),
            )
        }
        Outcome::Events(events) => Digest::of_parts(
            std::iter::once(&b"events"[..])
                .chain(events.iter().flat_map(|event| [event.event_type.as_bytes(), &*event.data])),
        ),
    }
}

fn refused(refusal: &Refusal) -> OutcomeView {
    OutcomeView::Refused {
        code: refusal.code.to_string(),
        message: refusal.message.to_string(),
        details: refusal.details.as_deref().map(value),
    }
}

/// The first events within the bounds of a report; what was left out is said in the place of the last.
fn events<'a>(all: impl ExactSizeIterator<Item = (&'a str, &'a [u8])>) -> OutcomeView {
    let count = all.len();
    let mut shown = Vec::new();
    let mut bytes = 0;
    for (event_type, data) in all {
        if shown.len() == EVENTS || bytes > VALUE_BYTES {
            let left = count - shown.len();
            shown.push(EventView { event_type: format!("… and {left} more"), data: Value::Null });
            break;
        }
        bytes += data.len().min(VALUE_BYTES);
        shown.push(EventView { event_type: event_type.to_owned(), data: value(data) });
    }
    OutcomeView::Events(shown)
}

/// JSON as it is, everything else as text, what is too long cut.
fn value(data: &[u8]) -> Value {
    if data.len() > VALUE_BYTES {
        let start = String::from_utf8_lossy(&data[..VALUE_BYTES]);
        return format!("{start}… ({} bytes)", data.len()).into();
    }
    serde_json::from_slice(data).unwrap_or_else(|_| String::from_utf8_lossy(data).into())
}

/// What differs between two outcomes of the same shape.
fn changes(recorded: &OutcomeView, replayed: &OutcomeView) -> Vec<FieldChange> {
    let mut changes = Vec::new();
    match (recorded, replayed) {
        (OutcomeView::Events(then), OutcomeView::Events(now)) => {
            for (index, (then, now)) in then.iter().zip(now).enumerate() {
                if then.event_type == now.event_type {
                    compare(Some(index), String::new(), Some(&then.data), Some(&now.data), &mut changes);
                }
            }
        }
        (OutcomeView::Refused { .. }, OutcomeView::Refused { .. }) => {
            let field = |view| serde_json::to_value(view).ok().and_then(|view| view.get("refused").cloned());
            compare(None, String::new(), field(recorded).as_ref(), field(replayed).as_ref(), &mut changes);
        }
        _ => {}
    }
    changes
}

fn compare(
    event: Option<usize>,
    path: String,
    then: Option<&Value>,
    now: Option<&Value>,
    changes: &mut Vec<FieldChange>,
) {
    if then == now || changes.len() >= FIELDS {
        return;
    }
    let below = |key: &str| format!("{path}/{}", key.replace('~', "~0").replace('/', "~1"));
    match (then, now) {
        (Some(Value::Object(then)), Some(Value::Object(now))) => {
            let keys: BTreeSet<&String> = then.keys().chain(now.keys()).collect();
            for key in keys {
                compare(event, below(key), then.get(key), now.get(key), changes);
            }
        }
        (Some(Value::Array(then)), Some(Value::Array(now))) => {
            for index in 0..then.len().max(now.len()) {
                compare(event, below(&index.to_string()), then.get(index), now.get(index), changes);
            }
        }
        _ => changes.push(FieldChange { event, path, recorded: then.cloned(), replayed: now.cloned() }),
    }
}

/// What a group of the summary is called.
fn what(other: &Other, alone: Option<&OutcomeView>, changes: &[FieldChange]) -> String {
    let (then, now) = (other.recorded.name(), other.replayed.name());
    let fields = || {
        let name = |change: &FieldChange| match (&other.recorded, change.event) {
            (OutcomeView::Events(events), Some(event)) => {
                let data = events.get(event).map_or("?", |event| &event.event_type);
                format!("{data}{}", without_indexes(&change.path))
            }
            _ => change.path.trim_start_matches('/').to_owned(),
        };
        let names: BTreeSet<String> = changes.iter().map(name).collect();
        names.into_iter().collect::<Vec<_>>().join(", ")
    };
    let text = match other.kind {
        _ if alone.is_some() => {
            format!("in company: {now}; alone: {}", alone.map_or_else(String::new, OutcomeView::name))
        }
        DifferenceKind::Failed | DifferenceKind::Rejected => now,
        DifferenceKind::OtherBytes => then,
        DifferenceKind::NotDeterministic | DifferenceKind::OtherRefusal | DifferenceKind::OtherData
            if then == now && !changes.is_empty() =>
        {
            fields()
        }
        _ => format!("{then} -> {now}"),
    };
    cut(text, 160)
}

/// `/legs/3/delay` is `/legs/*/delay`: one group for a list, however long.
fn without_indexes(path: &str) -> String {
    let parts = path.split('/').map(|part| {
        if !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()) { "*" } else { part }
    });
    parts.collect::<Vec<_>>().join("/")
}

fn cut(text: String, limit: usize) -> String {
    match text.char_indices().nth(limit) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// Puts a report together.
pub(super) struct Collector {
    report: ReplayReport,
    max_differences: usize,
    bytes: usize,
    /// Digests of the streams with differences: eight bytes each, however many there are.
    affected: HashSet<u64>,
    groups: HashMap<(String, String, DifferenceKind, String), DifferenceGroup>,
}

impl Collector {
    pub(super) fn new(options: &ReplayOptions) -> Self {
        let ReplayOptions { isolation, seed, sample, .. } = *options;
        Self {
            report: ReplayReport { isolation, seed, sample, ..ReplayReport::default() },
            max_differences: options.max_differences,
            bytes: 0,
            affected: HashSet::new(),
            groups: HashMap::new(),
        }
    }

    pub(super) fn different(&self) -> u64 {
        self.report.different
    }

    /// Whether a commit is to be decided again; counts those that are not.
    pub(super) fn takes(&mut self, commit: &Commit, options: &ReplayOptions) -> bool {
        let header = &commit.header;
        let skipped = &mut self.report.skipped;
        let counter = match &header.command {
            None => &mut skipped.without_command,
            Some(_)
                if options.aggregate.as_ref().is_some_and(|wanted| **wanted != *header.stream.category()) =>
            {
                &mut skipped.other_aggregates
            }
            Some(command) if command.data.is_none() => &mut skipped.without_body,
            Some(_) if !options.wants(&header.stream) => &mut skipped.not_sampled,
            Some(_) => return true,
        };
        *counter += 1;
        false
    }

    /// Takes what became of a commit's command in each isolation that was asked for.
    pub(super) fn add(&mut self, commit: &Commit, shared: Option<Verdict>, fresh: Option<Verdict>) {
        let command = commit.header.command.as_ref().map_or("", |command| &*command.name);
        let aggregate = commit.header.stream.category();
        let summary = self.report.by_command.entry(format!("{aggregate}/{command}")).or_default();
        summary.commands += 1;
        self.report.commands += 1;
        let Some((other, alone)) = merge(commit, shared, fresh) else {
            self.report.identical += 1;
            return;
        };
        summary.different += 1;
        self.report.different += 1;
        let mut hasher = DefaultHasher::new();
        commit.header.stream.hash(&mut hasher);
        self.affected.insert(hasher.finish());
        let changes = changes(&other.recorded, &other.replayed);
        let place = Place {
            stream: commit.header.stream.to_string(),
            commit: commit.header.number.0,
            recorded_at: commit.header.recorded_at,
        };
        self.group(aggregate, command, other.kind, what(&other, alone.as_ref(), &changes), &place);
        self.detail(commit, command, other, alone, changes, place);
    }

    fn group(&mut self, aggregate: &str, command: &str, kind: DifferenceKind, what: String, place: &Place) {
        let is_full = self.groups.len() >= GROUPS;
        match self.groups.entry((aggregate.to_owned(), command.to_owned(), kind, what)) {
            Entry::Occupied(mut group) => {
                let group = group.get_mut();
                group.count += 1;
                group.last = place.clone();
            }
            Entry::Vacant(_) if is_full => self.report.not_summarised += 1,
            Entry::Vacant(entry) => {
                let (aggregate, command, kind, what) = entry.key().clone();
                let (first, last) = (place.clone(), place.clone());
                entry.insert(DifferenceGroup { aggregate, command, kind, what, count: 1, first, last });
            }
        }
    }

    fn detail(
        &mut self,
        commit: &Commit,
        command: &str,
        other: Other,
        alone: Option<OutcomeView>,
        changes: Vec<FieldChange>,
        place: Place,
    ) {
        if self.report.differences.len() >= self.max_differences || self.bytes > DIFFERENCES_BYTES {
            return;
        }
        let data = commit.header.command.as_ref().and_then(|command| command.data.as_deref());
        let difference = Difference {
            kind: other.kind,
            place,
            revision: commit.header.first_revision.0.checked_sub(1),
            command: command.to_owned(),
            command_id: commit.header.command_id,
            data: data.map_or(Value::Null, value),
            recorded: other.recorded,
            replayed: other.replayed,
            replayed_alone: alone,
            changes,
        };
        self.bytes += serde_json::to_vec(&difference).map_or(0, |text| text.len());
        self.report.differences.push(difference);
    }

    pub(super) fn finish(self, elapsed: Duration) -> ReplayReport {
        let mut report = self.report;
        report.summary = self.groups.into_values().collect();
        report.summary.sort_by(|a, b| b.count.cmp(&a.count).then(a.first.commit.cmp(&b.first.commit)));
        report.streams_affected = self.affected.len() as u64;
        report.elapsed_ms = elapsed.as_millis() as u64;
        report
    }
}

/// What two isolations come to together: a difference from history, or from each other. With a difference between
/// them comes what was decided alone.
fn merge(
    commit: &Commit,
    shared: Option<Verdict>,
    fresh: Option<Verdict>,
) -> Option<(Other, Option<OutcomeView>)> {
    let split = |other: Box<Other>, alone: OutcomeView| {
        Some((Other { kind: DifferenceKind::NotDeterministic, ..*other }, Some(alone)))
    };
    match (shared, fresh) {
        (None | Some(Verdict::Same), None) | (None, Some(Verdict::Same)) => None,
        (Some(Verdict::Same), Some(Verdict::Same)) => None,
        (Some(Verdict::Other(other)), None) | (None, Some(Verdict::Other(other))) => Some((*other, None)),
        (Some(Verdict::Other(shared)), Some(Verdict::Other(fresh))) if shared.digest == fresh.digest => {
            Some((*shared, None))
        }
        (Some(Verdict::Other(shared)), Some(Verdict::Other(fresh))) => split(shared, fresh.replayed),
        (Some(Verdict::Other(shared)), Some(Verdict::Same)) => split(shared, view_of_commit(commit)),
        (Some(Verdict::Same), Some(Verdict::Other(fresh))) => {
            let alone = fresh.replayed.clone();
            let replayed = view_of_commit(commit);
            split(Box::new(Other { replayed, ..*fresh }), alone)
        }
    }
}
