//! `[aggregate.NAME]`.

use super::{Walk, keys};
use crate::limits::{InstancePolicy, Limits};
use crate::manifest::problem::ProblemKind;
use crate::manifest::reader::{Field, Section};
use crate::manifest::{AggregateSpec, CommandSpec, EventSpec};
use crate::name::{AggregateName, CommandName, EventType};
use crate::port::guest::ModuleKind;
use std::collections::BTreeMap;
use std::num::NonZeroU32;
use toml::de::DeValue;

impl<'a> Walk<'a> {
    pub(super) fn aggregate(
        &mut self,
        name: Option<AggregateName>,
        field: &Field<'a>,
    ) -> Option<(AggregateName, AggregateSpec)> {
        if field.name == "topic" {
            let message = "the name `topic` is reserved: records of Kafka topics are in streams `topic-…`";
            let hint = Some("choose another name".to_owned());
            self.reader.report(ProblemKind::BadValue, field.key_at.clone(), field.key.clone(), message, hint);
        }
        if field.name == "relay" {
            let message =
                "the name `relay` is reserved: how far events were published is kept in the topic `….relay`";
            let hint = Some("choose another name".to_owned());
            self.reader.report(ProblemKind::BadValue, field.key_at.clone(), field.key.clone(), message, hint);
        }
        let section = self.reader.section(field, keys::AGGREGATE)?;
        let module = self.module(&section, ModuleKind::Command);
        let commands = self.commands(&section);
        let events = self.events(&section);
        let snapshot_every = section.get("snapshot-every").and_then(|f| self.reader.count(&f, 1_000_000));
        let state_version = section.get("state-version").and_then(|f| self.reader.number(&f, 0..=u32::MAX));
        let record_commands = section.get("record-commands").and_then(|f| self.reader.boolean(&f));
        let allow = self.allow(&section);
        let limits = self.limits(&section, Limits::COMMAND);
        let instances = self.instances(&section, InstancePolicy::default());
        let source = section.get("source").and_then(|f| self.command_source(&f, limits));
        let name = name?;
        let spec = AggregateSpec {
            name: name.clone(),
            module: module?,
            commands: commands?,
            events: events?,
            snapshot_every: snapshot_every.unwrap_or(AggregateSpec::DEFAULT_SNAPSHOT_EVERY),
            state_version,
            record_commands: record_commands.unwrap_or(true),
            allow,
            limits,
            instances,
            source,
        };
        Some((name, spec))
    }

    fn commands(&mut self, aggregate: &Section<'a>) -> Option<BTreeMap<CommandName, CommandSpec>> {
        let example = "`commands = { open = {}, close = { schema = \"schemas/close.json\" } }`";
        let Some(field) = aggregate.get("commands") else {
            self.reader.missing(aggregate, "commands", example);
            return None;
        };
        let table = self.reader.table(&field)?;
        let mut commands = BTreeMap::new();
        for field in table.fields() {
            let name =
                self.reader.name(&field, field.key_at.clone(), field.name, |text| CommandName::new(text));
            let schema = match field.value {
                DeValue::String(_) => self.schema(&field),
                _ => self
                    .reader
                    .section(&field, keys::COMMAND)
                    .and_then(|command| command.get("schema"))
                    .and_then(|schema| self.schema(&schema)),
            };
            commands.extend(name.map(|name| (name, CommandSpec { schema })));
        }
        if table.fields().next().is_none() {
            let message = format!("`{}` has no commands, so nothing could ever happen to it", aggregate.key);
            self.reader.refuse(&field, message, Some(format!("write {example}")));
        }
        Some(commands)
    }

    fn events(&mut self, aggregate: &Section<'a>) -> Option<BTreeMap<EventType, EventSpec>> {
        let example =
            "`events = { Opened = {}, Closed = { version = 2, schema = \"schemas/closed.json\" } }`";
        let Some(field) = aggregate.get("events") else {
            self.reader.missing(aggregate, "events", example);
            return None;
        };
        let table = self.reader.table(&field)?;
        let mut events = BTreeMap::new();
        for field in table.fields() {
            let name =
                self.reader.name(&field, field.key_at.clone(), field.name, |text| EventType::new(text));
            let (version, schema) = match field.value {
                DeValue::String(_) => (None, self.schema(&field)),
                _ => match self.reader.section(&field, keys::EVENT) {
                    None => (None, None),
                    Some(event) => (
                        event.get("version").and_then(|version| self.reader.count(&version, u32::MAX)),
                        event.get("schema").and_then(|schema| self.schema(&schema)),
                    ),
                },
            };
            let version = version.map_or(1, NonZeroU32::get);
            events.extend(name.map(|name| (name, EventSpec { version, schema })));
        }
        if table.fields().next().is_none() {
            let message = format!("`{}` has no events, so nothing it decides could be kept", aggregate.key);
            self.reader.refuse(&field, message, Some(format!("write {example}")));
        }
        Some(events)
    }
}
