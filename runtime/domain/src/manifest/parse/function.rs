//! What aggregates, projections and functions have in common: module, limits, instances, who may use them.

use super::{HOUR, Walk, keys};
use crate::limits::{InstancePolicy, Limits, cap};
use crate::manifest::problem::short;
use crate::manifest::reader::{Field, Section};
use crate::manifest::{Allow, FilePurpose, FileRef};
use crate::port::guest::ModuleKind;
use std::path::PathBuf;
use std::time::Duration;

impl<'a> Walk<'a> {
    pub(super) fn limits(&mut self, function: &Section<'a>, default: Limits) -> Limits {
        let Some(section) = function.get("limits").and_then(|f| self.reader.section(&f, keys::LIMITS)) else {
            return default;
        };
        // One tick of the clock that CPU is measured with: less can't be told apart.
        let least = Duration::from_millis(10);
        let memory = section.get("memory").and_then(|f| self.reader.bytes(&f, 1 << 20..=cap::MEMORY_BYTES));
        let cpu = section.get("cpu").and_then(|f| self.reader.duration(&f, least..=cap::CPU));
        let wall = section.get("wall").and_then(|f| self.reader.duration(&f, least..=cap::WALL));
        let concurrency = section.get("concurrency").and_then(|f| self.reader.count(&f, cap::CONCURRENCY));
        let wall_time = wall.unwrap_or(default.wall);
        if let (Some(cpu), Some(field)) = (cpu, section.get("cpu"))
            && cpu > wall_time
        {
            let whose = if wall.is_some() { "" } else { "the default " };
            let message = format!(
                "`{}` is {cpu:?}, more than {whose}`wall`, {wall_time:?}: it could never be reached",
                field.key
            );
            self.reader.refuse(
                &field,
                message,
                Some("raise `wall` to at least as much, or lower `cpu`".to_owned()),
            );
        }
        Limits {
            memory_bytes: memory.unwrap_or(default.memory_bytes),
            cpu: cpu.unwrap_or(default.cpu.min(wall_time)),
            wall: wall_time,
            concurrency: concurrency.unwrap_or(default.concurrency),
        }
    }

    pub(super) fn instances(&mut self, function: &Section<'a>, default: InstancePolicy) -> InstancePolicy {
        let Some(section) = function.get("instances").and_then(|f| self.reader.section(&f, keys::INSTANCES))
        else {
            return default;
        };
        let reuse = section.get("reuse").and_then(|f| self.reader.count(&f, u32::MAX));
        let max = section.get("max").and_then(|f| self.reader.count(&f, cap::CONCURRENCY));
        let idle =
            section.get("idle").and_then(|f| self.reader.duration(&f, Duration::from_millis(1)..=24 * HOUR));
        let aggregates = section.get("aggregates").and_then(|f| self.reader.count(&f, 65_536));
        // More than there may be could never be ready.
        let most = max.unwrap_or(default.max).get();
        let warm = section.get("warm").and_then(|f| self.reader.number(&f, 0..=most));
        InstancePolicy {
            reuse: reuse.unwrap_or(default.reuse),
            max: max.unwrap_or(default.max),
            idle: idle.unwrap_or(default.idle),
            aggregates: aggregates.unwrap_or(default.aggregates),
            warm: warm.unwrap_or(default.warm),
        }
    }

    pub(super) fn allow(&mut self, section: &Section<'a>) -> Allow {
        let Some(listed) = section.get("allow").and_then(|field| self.reader.texts(&field)) else {
            return Allow(None);
        };
        for (element, entry) in &listed {
            let inner = entry.strip_suffix('*').unwrap_or(entry);
            if entry.is_empty() || inner.contains('*') {
                let message = format!("\"{}\" is not an actor, and not the beginning of one", short(entry));
                let hint = "write an actor, like \"alice\", or how actors begin with a `*` at the end, like \"service:*\"";
                self.reader.refuse(element, message, Some(hint.to_owned()));
            }
        }
        Allow(Some(listed.into_iter().map(|(_, entry)| entry.to_owned()).collect()))
    }

    pub(super) fn module(&mut self, section: &Section<'a>, kind: ModuleKind) -> Option<PathBuf> {
        let name = section.key.rsplit('.').next().unwrap_or_default().trim_matches('"');
        let example = format!("target/wasm32-wasip2/release/{name}.wasm");
        let Some(field) = section.get("module") else {
            self.reader.missing(section, "module", &format!("`module = \"{example}\"`"));
            return None;
        };
        let path = self.reader.path(&field, &example)?;
        Some(self.file(&field, path, FilePurpose::Module(kind)))
    }

    pub(super) fn schema(&mut self, field: &Field<'a>) -> Option<PathBuf> {
        let path = self.reader.path(field, "schemas/name.json")?;
        Some(self.file(field, path, FilePurpose::Schema))
    }

    fn file(&mut self, field: &Field<'a>, path: PathBuf, purpose: FilePurpose) -> PathBuf {
        let place = self.reader.place(field.at.clone());
        self.files.push(FileRef { path: path.clone(), purpose, key: field.key.clone(), place });
        path
    }
}
