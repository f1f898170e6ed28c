//! What is about Kafka: `[topic.NAME]`, `source = { topics = […] }`, `app.relay`.

use super::projection::MAX_PARKED;
use super::{Walk, keys};
use crate::limits::Limits;
use crate::manifest::problem::{ProblemKind, short};
use crate::manifest::reader::{Field, Section};
use crate::manifest::{AggregateSpec, Batch, FunctionSpec, ProjectionSpec, Relay, Source, Trigger};
use crate::name::{AggregateName, EventType, FunctionName, ProjectionName, TopicName};
use crate::text::Text;
use crate::topic::{
    CommandIdentity, CommandSource, Dedupe, RelayMode, RelaySpec, Selector, Start, TopicSource, TopicSpec,
    Via,
};
use std::collections::{BTreeMap, BTreeSet};
use toml::de::DeValue;

/// Bytes of a consumer group's name at most.
const MAX_GROUP: usize = 255;

/// Parts of a record that a selector may name.
#[derive(Clone, Copy)]
struct Parts {
    /// `"key"`.
    key: bool,
    /// Any other text stands for itself.
    fixed: bool,
}

impl<'a> Walk<'a> {
    /// Remembers that the app needs Kafka, and where it says so first.
    fn uses_kafka(&mut self, field: &Field<'a>) {
        if self.needs_kafka.is_none() {
            self.needs_kafka = Some((field.key.clone(), self.reader.place(field.key_at.clone())));
        }
    }

    pub(super) fn topic_name(&mut self, field: &Field<'a>) -> Option<TopicName> {
        let text = self.reader.text(field, "orders")?;
        self.reader.name(field, field.at.clone(), text, |text| TopicName::new(text))
    }

    pub(super) fn topic(
        &mut self,
        name: Option<TopicName>,
        field: &Field<'a>,
    ) -> Option<(TopicName, TopicSpec)> {
        let section = self.reader.section(field, keys::TOPIC)?;
        if let Some(name) = &name
            && !self.consumed.contains(&**name)
        {
            let message = format!("nothing of this manifest consumes the topic `{}`", short(name));
            let hint =
                "name it in the `source` of a projection, an aggregate or an event function, or leave it out";
            self.reader.report(
                ProblemKind::UnknownName,
                field.key_at.clone(),
                field.key.clone(),
                message,
                hint.to_owned(),
            );
        }
        let start = section.get("start").and_then(|f| self.start(&f)).unwrap_or_default();
        let default = TopicSpec::default();
        let event_type = section
            .get("type")
            .and_then(|f| self.selector(&f, Parts { key: false, fixed: true }))
            .unwrap_or(default.event_type);
        let data = section.get("data").and_then(|f| {
            let section = self.reader.section(&f, keys::FIELD)?;
            let field = section.get("field")?;
            self.reader.text(&field, "data").map(str::to_owned)
        });
        let dedupe = section.get("dedupe").and_then(|f| match self.reader.text(&f, "event-id")? {
            "event-id" => Some(Dedupe::EventId),
            other => {
                let message = format!("\"{}\" says nothing about which records are the same", short(other));
                self.reader.refuse(&f, message, Some("write \"event-id\", or leave it out".to_owned()));
                None
            }
        });
        Some((name?, TopicSpec { start, event_type, data, dedupe }))
    }

    fn start(&mut self, field: &Field<'a>) -> Option<Start> {
        match self.reader.text(field, "earliest")? {
            "earliest" => Some(Start::Earliest),
            "latest" => Some(Start::Latest),
            other => match other.parse() {
                Ok(time) => Some(Start::At(time)),
                Err(_) => {
                    let message = format!("\"{}\" is no place to begin", short(other));
                    let hint = "write \"earliest\", \"latest\" or a time like \"2026-11-21T00:00:00Z\"";
                    self.reader.refuse(field, message, Some(hint.to_owned()));
                    None
                }
            },
        }
    }

    /// `"key"`, `{ header = "…" }`, `{ attribute = "…" }`, `{ field = "…" }`, or what is the same for all.
    fn selector(&mut self, field: &Field<'a>, parts: Parts) -> Option<Selector> {
        let forms =
            "{ header = \"…\" }, { attribute = \"…\" } of a CloudEvent, or { field = \"…\" } of its value";
        match field.value {
            DeValue::String(text) if parts.key && text == "key" => Some(Selector::Key),
            DeValue::String(text) if parts.fixed && !text.is_empty() => {
                Some(Selector::Fixed((&**text).into()))
            }
            DeValue::Table(_) => {
                let section = self.reader.section(field, keys::SELECTOR)?;
                let given: Vec<Field<'a>> = section.fields().collect();
                let [one] = given.as_slice() else {
                    let message = format!("`{}` names {} parts of a record", field.key, given.len());
                    self.reader.refuse(field, message, Some(format!("write one of {forms}")));
                    return None;
                };
                let name = self.reader.text(one, "kind")?;
                if name.is_empty() {
                    self.reader.refuse(one, format!("`{}` is empty", one.key), Some("name one".to_owned()));
                }
                match one.name {
                    "header" => Some(Selector::Header(name.to_owned())),
                    "attribute" => Some(Selector::Attribute(name.to_owned())),
                    "field" => Some(Selector::Field(name.to_owned())),
                    _ => None,
                }
            }
            _ => {
                let message = format!("`{}` is not a part of a record", field.key);
                let key = if parts.key { "\"key\", " } else { "" };
                self.reader.refuse(field, message, Some(format!("write {key}{forms}")));
                None
            }
        }
    }

    /// The topics of a source; noted as consumed.
    fn topics(&mut self, field: &Field<'a>) -> BTreeSet<TopicName> {
        self.uses_kafka(field);
        let Some(listed) = self.reader.texts(field) else { return BTreeSet::new() };
        if listed.is_empty() {
            let hint = "name a topic".to_owned();
            self.reader.refuse(field, format!("`{}` is empty", field.key), Some(hint));
        }
        let mut topics = BTreeSet::new();
        for (element, _) in listed {
            let Some(topic) = self.topic_name(&element) else { continue };
            self.consumed.insert(topic.to_string());
            topics.insert(topic);
        }
        topics
    }

    fn group(&mut self, section: &Section<'a>) -> Text {
        let Some(field) = section.get("group") else { return self.default_group.clone() };
        let Some(text) = self.reader.text(&field, "delays") else { return Text::default() };
        if text.is_empty() || text.len() > MAX_GROUP || text.chars().any(char::is_control) {
            let message = format!("\"{}\" is not the name of a consumer group", short(text));
            let hint = format!("use 1 to {MAX_GROUP} characters");
            self.reader.refuse(&field, message, Some(hint));
        }
        text.into()
    }

    /// `source = { topics = […] }` of what follows events: of this projection, or of a function.
    pub(super) fn topic_source(
        &mut self,
        section: &Section<'a>,
        field: &Field<'a>,
        projection: Option<&str>,
    ) -> TopicSource {
        if let Some(aggregates) = section.get("aggregates") {
            let message = format!("`{}` has both topics and aggregates", section.key);
            let hint = "take one of them out: what follows both is two".to_owned();
            self.reader.refuse(&aggregates, message, Some(hint));
        }
        let topics = self.topics(field);
        let via = section.get("via").and_then(|f| match self.reader.text(&f, "log")? {
            "log" => Some(Via::Log),
            "direct" if projection.is_none() => {
                let message = "an event function takes records by way of the app's log".to_owned();
                let hint = "leave `via` out; only rows can commit with where records came from".to_owned();
                self.reader.refuse(&f, message, Some(hint));
                None
            }
            "direct" => Some(Via::Direct),
            other => {
                let message = format!("\"{}\" is no way for records to come", short(other));
                let hint =
                    "write \"log\", by way of the app's log, or \"direct\", or leave it out".to_owned();
                self.reader.refuse(&f, message, Some(hint));
                None
            }
        });
        let via = via.unwrap_or_default();
        let group = match (via, projection) {
            // How far it has got is its own.
            (Via::Direct, Some(projection)) if section.get("group").is_none() => {
                format!("{}.{projection}", self.default_group).into()
            }
            _ => self.group(section),
        };
        let mut types = BTreeSet::new();
        if let Some(listed) = section.get("types").and_then(|f| self.reader.texts(&f)) {
            for (element, text) in listed {
                types.extend(
                    self.reader.name(&element, element.at.clone(), text, |text| EventType::new(text)),
                );
            }
        }
        TopicSource { topics, types, group, via }
    }

    /// `[aggregate.NAME] source`.
    pub(super) fn command_source(&mut self, field: &Field<'a>, limits: Limits) -> Option<CommandSource> {
        let section = self.reader.section(field, keys::COMMAND_SOURCE)?;
        let Some(topics) = section.get("topics") else {
            self.reader.missing(&section, "topics", "`source = { topics = [\"orders\"] }`");
            return None;
        };
        let topics = self.topics(&topics);
        let group = self.group(&section);
        let key = section.get("key").and_then(|f| self.selector(&f, Parts { key: true, fixed: false }));
        let command =
            section.get("command").and_then(|f| self.selector(&f, Parts { key: false, fixed: true }));
        let identity = section.get("identity").and_then(|f| self.identity(&f));
        let reply_to = section.get("reply-to").and_then(|f| self.topic_name(&f));
        let batch = section.get("batch").map(|f| self.batch(&f, Batch::default())).unwrap_or_default();
        let retry = section.get("retry").map(|f| self.retry(&f)).unwrap_or_default();
        let dead_letter = section.get("dead-letter").and_then(|f| self.dead_letter(&f, &topics));
        let max_parked = section.get("max-parked").and_then(|f| self.reader.count(&f, MAX_PARKED));
        if let Some((topic, at)) = reply_to.as_ref().zip(section.get("reply-to")) {
            self.not_consumed(&at, topic, &topics);
        }
        Some(CommandSource {
            topics,
            group,
            key: key.unwrap_or(Selector::Key),
            command: command.unwrap_or_else(|| Selector::Attribute("type".to_owned())),
            identity: identity.unwrap_or(CommandIdentity::Record),
            reply_to,
            batch,
            retry,
            dead_letter,
            max_parked: max_parked.map_or(ProjectionSpec::DEFAULT_MAX_PARKED, |most| u64::from(most.get())),
            limits,
        })
    }

    fn identity(&mut self, field: &Field<'a>) -> Option<CommandIdentity> {
        match field.value {
            DeValue::String(text) if text == "record" => Some(CommandIdentity::Record),
            DeValue::String(text) if text == "event-id" => Some(CommandIdentity::EventId),
            DeValue::Table(_) => {
                let section = self.reader.section(field, keys::HEADER)?;
                let header = section.get("header")?;
                self.reader
                    .text(&header, "idempotency-key")
                    .map(|name| CommandIdentity::Header(name.to_owned()))
            }
            _ => {
                let message = format!("`{}` does not say what makes a command the same", field.key);
                let hint = "write \"record\", \"event-id\" or { header = \"idempotency-key\" }".to_owned();
                self.reader.refuse(field, message, Some(hint));
                None
            }
        }
    }

    /// Where what can't be dealt with goes, of what comes from these topics.
    pub(super) fn dead_letter(
        &mut self,
        field: &Field<'a>,
        consumed: &BTreeSet<TopicName>,
    ) -> Option<TopicName> {
        self.uses_kafka(field);
        let topic = self.topic_name(field)?;
        self.not_consumed(field, &topic, consumed);
        Some(topic)
    }

    fn not_consumed(&mut self, field: &Field<'a>, topic: &TopicName, consumed: &BTreeSet<TopicName>) {
        if consumed.contains(topic) {
            let message = format!("`{topic}` is consumed here: what goes there would come back");
            self.reader.refuse(field, message, Some("name another topic".to_owned()));
        }
    }

    /// `app.relay`.
    pub(super) fn relay(&mut self, field: &Field<'a>) -> Option<Relay> {
        let mode = |text: &str| match text {
            "at-least-once" => Some(RelayMode::AtLeastOnce),
            "transactional" => Some(RelayMode::Transactional),
            _ => None,
        };
        let hint = "write \"at-least-once\", \"transactional\" or \"off\", or a table with `mode` and more";
        if let DeValue::String(text) = field.value {
            if text == "off" {
                return Some(Relay::Off);
            }
            self.uses_kafka(field);
            let Some(mode) = mode(text) else {
                let message = format!("\"{}\" is no way to publish events", short(text));
                self.reader.refuse(field, message, Some(hint.to_owned()));
                return None;
            };
            return Some(Relay::On(RelaySpec { mode, ..RelaySpec::default() }));
        }
        self.uses_kafka(field);
        let section = self.reader.section(field, keys::RELAY)?;
        let mut spec = RelaySpec::default();
        if let Some(at) = section.get("mode") {
            let text = self.reader.text(&at, "at-least-once")?;
            match mode(text) {
                Some(mode) => spec.mode = mode,
                None => {
                    let message = format!("\"{}\" is no way to publish events", short(text));
                    let hint = "write \"at-least-once\" or \"transactional\"".to_owned();
                    self.reader.refuse(&at, message, Some(hint));
                }
            }
        }
        let known = self.names.aggregates.clone();
        if let Some(listed) = section.get("aggregates") {
            let chosen = self.chosen(&listed, "aggregate", &known);
            spec.aggregates = chosen.into_iter().flat_map(|name| AggregateName::new(name).ok()).collect();
        }
        if let Some(topics) = section.get("topics").and_then(|f| self.reader.table(&f)) {
            for field in topics.fields() {
                if !known.contains(field.name) {
                    let otherwise = format!("declare it: `[aggregate.{}]`", short(field.name));
                    self.reader.unknown_name(
                        &field,
                        "aggregate",
                        field.name,
                        known.iter().copied(),
                        &otherwise,
                    );
                    continue;
                }
                let topic = self.topic_name(&field);
                if topic.as_ref().is_some_and(|topic| topic.ends_with(".relay")) {
                    let message = "how far events were published is kept in topics that end so".to_owned();
                    self.reader.refuse(&field, message, Some("name another topic".to_owned()));
                }
                spec.topics.extend(AggregateName::new(field.name).ok().zip(topic));
            }
        }
        if let Some(partitions) = section.get("partitions").and_then(|f| self.reader.count(&f, 10_000)) {
            spec.partitions = partitions;
        }
        spec.replication = section.get("replication").and_then(|f| self.reader.count(&f, 32));
        if let Some(most) = section.get("max-message").and_then(|f| self.reader.bytes(&f, 1 << 10..=64 << 20))
        {
            spec.max_message_bytes = most as u32;
        }
        Some(Relay::On(spec))
    }

    /// Who takes records straight shares its group with nobody, or what is told of one would be told of the other.
    pub(super) fn one_group_each(
        &mut self,
        root: &Section<'a>,
        aggregates: &BTreeMap<AggregateName, AggregateSpec>,
        projections: &BTreeMap<ProjectionName, ProjectionSpec>,
        functions: &BTreeMap<FunctionName, FunctionSpec>,
    ) {
        let of_source = |source: &Source| match source {
            Source::Topics(source) => Some(source.group.clone()),
            Source::Log { .. } => None,
        };
        let commands = aggregates.values().filter_map(|spec| {
            Some((format!("aggregate.{}", spec.name), spec.source.as_ref()?.group.clone()))
        });
        let rows = projections
            .values()
            .filter_map(|spec| Some((format!("projection.{}", spec.name), of_source(&spec.source)?)));
        let given = functions.values().filter_map(|spec| match &spec.trigger {
            Trigger::Events(trigger) => {
                Some((format!("function.{}", spec.name), of_source(&trigger.source)?))
            }
            Trigger::Http(_) => None,
        });
        let all: Vec<(String, Text)> = commands.chain(rows).chain(given).collect();
        let direct = projections.values().filter(|spec| spec.source.is_direct());
        for spec in direct {
            let own = format!("projection.{}", spec.name);
            let Some((_, group)) = all.iter().find(|(key, _)| *key == own) else { continue };
            let Some((other, _)) = all.iter().find(|(key, other)| *key != own && other == group) else {
                continue;
            };
            let table = root.get("projection").and_then(|field| field.value.as_table());
            let field = table.and_then(|table| Section::root(table).get(&spec.name));
            let Some(field) = field else { continue };
            let message = format!(
                "`{own}` takes records straight, under the group `{}`, which `{other}` consumes under as well",
                short(group)
            );
            let hint = "give one of them another `group`, or leave it out".to_owned();
            self.reader.report(ProblemKind::Clash, field.key_at, own, message, hint);
        }
    }

    /// Commands from topics are consumed under a name that must be theirs alone.
    pub(super) fn one_consumer_each(
        &mut self,
        root: &Section<'a>,
        projections: &BTreeMap<ProjectionName, ProjectionSpec>,
        functions: &BTreeMap<FunctionName, FunctionSpec>,
    ) {
        let table = root.get("aggregate").and_then(|field| field.value.as_table());
        for field in table.into_iter().flat_map(|table| Section::root(table).fields().collect::<Vec<_>>()) {
            let has_source = field.value.as_table().is_some_and(|table| table.contains_key("source"));
            let consumer = format!("{}-commands", field.name);
            let taken = projections.keys().any(|name| **name == *consumer)
                || functions.keys().any(|name| **name == *consumer);
            if has_source && taken {
                let message =
                    format!("`{consumer}` is what consumes its commands, and something else has that name");
                let hint = "give the projection or function another name".to_owned();
                let key = format!("aggregate.{}", field.key);
                self.reader.report(ProblemKind::Clash, field.key_at, key, message, hint);
            }
        }
    }
}
