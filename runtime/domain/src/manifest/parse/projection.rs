//! `[projection.NAME]`, and that each model has one writer.

use super::{HOUR, SECOND, Walk, keys};
use crate::limits::{InstancePolicy, Limits};
use crate::manifest::problem::{ProblemKind, short};
use crate::manifest::reader::{Field, Section};
use crate::manifest::{Batch, LaneBy, ProjectionSpec, Retry, Source};
use crate::name::{AggregateName, EventType, ModelName, ProjectionName};
use crate::port::guest::ModuleKind;
use crate::topic::Selector;
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::ops::Range;
use std::time::Duration;
use toml::de::DeValue;

/// `max-parked` at most.
pub(super) const MAX_PARKED: u32 = 1_000_000;

/// A model that a projection says it writes.
pub(super) struct Claim {
    model: String,
    projection: String,
    key: String,
    at: Range<usize>,
}

impl<'a> Walk<'a> {
    pub(super) fn projection(
        &mut self,
        name: Option<ProjectionName>,
        field: &Field<'a>,
        claims: &mut Vec<Claim>,
    ) -> Option<(ProjectionName, ProjectionSpec)> {
        let section = self.reader.section(field, keys::PROJECTION)?;
        let module = self.module(&section, ModuleKind::Projection);
        let models = self.written_models(&section, claims);
        let everything = Source::Log { aggregates: BTreeSet::new(), types: BTreeSet::new() };
        let source = match section.get("source") {
            Some(source) => self.source(&source, name.as_deref().unwrap_or_default()),
            None => Some(everything),
        };
        let batch =
            section.get("batch").map(|batch| self.batch(&batch, Batch::default())).unwrap_or_default();
        let lanes = section.get("lanes").and_then(|f| self.reader.size_count(&f, 64));
        let lane_by = section.get("lane-by").and_then(|f| self.lane_by(&f));
        let lane_by = lane_by.unwrap_or_else(|| LaneBy::usual(source.as_ref()));
        let dead_letter =
            section.get("dead-letter").and_then(|f| self.dead_letter(&f, &Source::consumed(source.as_ref())));
        let retry = section.get("retry").map(|retry| self.retry(&retry)).unwrap_or_default();
        let max_parked = section.get("max-parked").and_then(|f| self.reader.count(&f, MAX_PARKED));
        let limits = self.limits(&section, Limits::PROJECTION);
        let instances = self.instances(&section, InstancePolicy::default());
        let name = name?;
        let spec = ProjectionSpec {
            name: name.clone(),
            module: module?,
            models: models?,
            source: source?,
            batch,
            lanes: lanes.unwrap_or(NonZeroUsize::MIN),
            lane_by,
            retry,
            dead_letter,
            max_parked: max_parked.map_or(ProjectionSpec::DEFAULT_MAX_PARKED, |most| u64::from(most.get())),
            limits,
            instances,
        };
        Some((name, spec))
    }

    fn written_models(
        &mut self,
        projection: &Section<'a>,
        claims: &mut Vec<Claim>,
    ) -> Option<BTreeSet<ModelName>> {
        let Some(field) = projection.get("models") else {
            self.reader.missing(projection, "models", "`models = [\"…\"]`, with a `[model.…]` for each");
            return None;
        };
        let listed = self.reader.texts(&field)?;
        if listed.is_empty() {
            let message = format!("`{}` writes no model, so nothing would come of it", projection.key);
            self.reader.refuse(&field, message, Some("list at least one model".to_owned()));
        }
        let mut models = BTreeSet::new();
        for (element, name) in listed {
            if self.names.models.contains(name) {
                claims.push(Claim {
                    model: name.to_owned(),
                    projection: projection.key.clone(),
                    key: element.key,
                    at: element.at,
                });
                models.extend(ModelName::new(name));
            } else {
                let known = self.names.models.clone();
                self.reader.unknown_name(
                    &element,
                    "model",
                    name,
                    known,
                    &format!("declare it: `[model.{}]`", short(name)),
                );
            }
        }
        Some(models)
    }

    /// A model is written by exactly one projection.
    pub(super) fn one_writer_each(&mut self, root: &Section<'a>, claims: &[Claim]) {
        let mut writers: BTreeMap<&str, &Claim> = BTreeMap::new();
        for claim in claims {
            let Some(first) = writers.get(&*claim.model) else {
                writers.insert(&claim.model, claim);
                continue;
            };
            let line = self.reader.place(first.at.clone()).line;
            let message = format!(
                "model `{}` is written by `{}` already (line {line})",
                short(&claim.model),
                first.projection
            );
            let hint = "a model has one writer: take it out of one of them, or give each a model of its own";
            self.reader.report(
                ProblemKind::Clash,
                claim.at.clone(),
                claim.key.clone(),
                message,
                hint.to_owned(),
            );
        }
        let models = root.get("model").and_then(|field| match field.value {
            DeValue::Table(table) => Some(table),
            _ => None,
        });
        // A reference that is misspelt was reported where it stands, and what it names may be this very model.
        let misspelt = self.reader.problems.iter().any(|problem| {
            problem.key.starts_with("projection.") && problem.key.ends_with(".models")
                || problem.key == "projection"
        });
        for field in models.into_iter().flat_map(|table| Section::root(table).fields().collect::<Vec<_>>()) {
            if writers.contains_key(field.name) || misspelt {
                continue;
            }
            let message = format!("no projection writes model `{}`", short(field.name));
            let hint =
                format!("add it to the `models` of a projection, or remove `[model.{}]`", short(field.name));
            self.reader.report(
                ProblemKind::Missing,
                field.key_at,
                format!("model.{}", field.key),
                message,
                hint,
            );
        }
    }

    fn source(&mut self, field: &Field<'a>, projection: &str) -> Option<Source> {
        let section = self.reader.section(field, keys::SOURCE)?;
        Some(self.events_of(&section, Some(projection)))
    }

    /// Events of the log, or records of topics, for this projection, or for a function.
    pub(super) fn events_of(&mut self, section: &Section<'a>, projection: Option<&str>) -> Source {
        if let Some(topics) = section.get("topics") {
            return Source::Topics(self.topic_source(section, &topics, projection));
        }
        for alone in ["group", "via"].iter().filter_map(|name| section.get(name)) {
            let message = format!("`{}` is about topics, and there are none", alone.key);
            self.reader.refuse(&alone, message, Some("name `topics`, or leave it out".to_owned()));
        }
        self.log_source(section)
    }

    /// `aggregates` and `types`: which events of the log.
    fn log_source(&mut self, section: &Section<'a>) -> Source {
        let chosen = match section.get("aggregates") {
            Some(aggregates) => self.chosen(&aggregates, "aggregate", &self.names.aggregates.clone()),
            None => Vec::new(),
        };
        // Types of the aggregates that were chosen; of all, if none were.
        let offered: BTreeSet<&str> = (self.names.events.iter())
            .filter(|(aggregate, _)| chosen.is_empty() || chosen.contains(aggregate))
            .flat_map(|(_, types)| types.iter().copied())
            .collect();
        let types = match section.get("types") {
            Some(types) => self.chosen(&types, "event type", &offered),
            None => Vec::new(),
        };
        Source::Log {
            aggregates: chosen.into_iter().flat_map(|name| AggregateName::new(name).ok()).collect(),
            types: types.into_iter().flat_map(|name| EventType::new(name).ok()).collect(),
        }
    }

    pub(super) fn chosen(
        &mut self,
        field: &Field<'a>,
        what: &str,
        known: &BTreeSet<&'a str>,
    ) -> Vec<&'a str> {
        let Some(listed) = self.reader.texts(field) else { return Vec::new() };
        if listed.is_empty() {
            let hint = format!("leave `{}` out to take every {what}", field.name);
            self.reader.refuse(field, format!("`{}` is empty", field.key), Some(hint));
        }
        let mut chosen = Vec::new();
        for (element, name) in listed {
            if known.contains(name) {
                chosen.push(name);
            } else {
                let otherwise = format!("name an {what} of this manifest");
                self.reader.unknown_name(&element, what, name, known.iter().copied(), &otherwise);
            }
        }
        chosen
    }

    pub(super) fn batch(&mut self, field: &Field<'a>, default: Batch) -> Batch {
        let Some(section) = self.reader.section(field, keys::BATCH) else { return default };
        let max_events = section.get("max-events").and_then(|f| self.reader.size_count(&f, 10_000));
        let max_wait =
            section.get("max-wait").and_then(|f| self.reader.duration(&f, Duration::ZERO..=60 * SECOND));
        Batch {
            max_events: max_events.unwrap_or(default.max_events),
            max_wait: max_wait.unwrap_or(default.max_wait),
        }
    }

    pub(super) fn lane_by(&mut self, field: &Field<'a>) -> Option<LaneBy> {
        let hint = "write \"stream\", \"correlation\", \"key\" for that of a record, or { field = \"…\" } with a field of the events' data";
        match field.value {
            DeValue::String(text) if text == "stream" => Some(LaneBy::Stream),
            DeValue::String(text) if text == "correlation" => Some(LaneBy::Correlation),
            DeValue::String(text) if text == "key" => Some(LaneBy::Record(Selector::Key)),
            DeValue::Table(_) => {
                let section = self.reader.section(field, keys::LANE_BY)?;
                let Some(name) = section.get("field") else {
                    self.reader.missing(&section, "field", "`lane-by = { field = \"account\" }`");
                    return None;
                };
                let text = self.reader.text(&name, "account")?;
                if text.is_empty() {
                    self.reader.refuse(&name, "the field's name is empty".to_owned(), Some(hint.to_owned()));
                }
                Some(LaneBy::Field(text.to_owned()))
            }
            _ => {
                let message = format!("`{}` is not something that events can be split by", field.key);
                self.reader.refuse(field, message, Some(hint.to_owned()));
                None
            }
        }
    }

    pub(super) fn retry(&mut self, field: &Field<'a>) -> Retry {
        let default = Retry::default();
        let Some(section) = self.reader.section(field, keys::RETRY) else { return default };
        let millisecond = Duration::from_millis(1);
        let attempts = section.get("attempts").and_then(|f| self.reader.count(&f, 100));
        let backoff = section.get("backoff").and_then(|f| self.reader.duration(&f, millisecond..=HOUR));
        let max_backoff =
            section.get("max-backoff").and_then(|f| self.reader.duration(&f, millisecond..=HOUR));
        let max_age = section.get("max-age").and_then(|f| self.reader.duration(&f, SECOND..=24 * 365 * HOUR));
        let backoff = backoff.unwrap_or(default.backoff);
        if let (Some(most), Some(at)) = (max_backoff, section.get("max-backoff"))
            && most < backoff
        {
            let message =
                format!("`max-backoff` is {most:?}, shorter than the first wait, `backoff`, of {backoff:?}");
            self.reader.refuse(&at, message, Some("raise `max-backoff`, or lower `backoff`".to_owned()));
        }
        Retry {
            attempts: attempts.unwrap_or(default.attempts),
            backoff,
            max_backoff: max_backoff.unwrap_or(default.max_backoff.max(backoff)),
            max_age,
        }
    }
}
