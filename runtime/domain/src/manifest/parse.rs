//! From text to [`Manifest`]: one walk over the sections, which goes on after each problem.

use super::problem::{Place, Problem, ProblemKind, Problems, short};
use super::reader::{Field, Reader, Section, list};
use super::{
    AggregateSpec, Allow, Batch, Build, CommandSpec, Cors, EventSpec, FilePurpose, FileRef, LaneBy, Manifest,
    ModelSpec, ProjectionSpec, Retry, Source,
};
use crate::limits::{InstancePolicy, Limits, cap};
use crate::model::{ColumnType, ModelSchema};
use crate::name::{AggregateName, AppName, ColumnName, CommandName, EventType, ModelName, ProjectionName};
use crate::port::guest::ModuleKind;
use std::collections::{BTreeMap, BTreeSet};
use std::num::{NonZeroU32, NonZeroUsize};
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;
use toml::de::{DeTable, DeValue};

/// The keys of each section; the published schema for editors has the same ones, which a test checks.
pub(super) mod keys {
    pub(in super::super) const ROOT: &[&str] = &["app", "build", "aggregate", "model", "projection"];
    pub(in super::super) const APP: &[&str] = &["name", "hosts", "cors"];
    pub(in super::super) const CORS: &[&str] = &["origins", "max-age"];
    pub(in super::super) const BUILD: &[&str] = &["command", "watch"];
    pub(in super::super) const AGGREGATE: &[&str] = &[
        "module",
        "commands",
        "events",
        "snapshot-every",
        "state-version",
        "record-commands",
        "allow",
        "limits",
        "instances",
    ];
    pub(in super::super) const COMMAND: &[&str] = &["schema"];
    pub(in super::super) const EVENT: &[&str] = &["version", "schema"];
    pub(in super::super) const MODEL: &[&str] = &["key", "columns", "indexes", "allow"];
    pub(in super::super) const PROJECTION: &[&str] = &[
        "module",
        "models",
        "source",
        "batch",
        "lanes",
        "lane-by",
        "retry",
        "max-parked",
        "limits",
        "instances",
    ];
    pub(in super::super) const SOURCE: &[&str] = &["aggregates", "types"];
    pub(in super::super) const BATCH: &[&str] = &["max-events", "max-wait"];
    pub(in super::super) const LANE_BY: &[&str] = &["field"];
    pub(in super::super) const RETRY: &[&str] = &["attempts", "backoff", "max-backoff"];
    pub(in super::super) const LIMITS: &[&str] = &["memory", "cpu", "wall", "concurrency"];
    pub(in super::super) const INSTANCES: &[&str] = &["reuse", "max", "idle", "aggregates"];
    /// Of a projection's source: known, and not available yet.
    pub(super) const TOPIC_SOURCE: &[&str] = &["topics", "group", "via"];
}

/// A manifest larger than this is a mistake, or an attack.
const MAX_BYTES: usize = 1 << 20;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

pub(super) fn parse(
    text: &str,
    inspect: &mut dyn FnMut(&FileRef) -> Option<Problem>,
) -> Result<Manifest, Problems> {
    if text.len() > MAX_BYTES {
        let mut reader = Reader::new("");
        let message = format!("the manifest has {} bytes, more than the limit of {MAX_BYTES}", text.len());
        reader.report(ProblemKind::BadValue, 0..0, "", message, "keep data in files of its own".to_owned());
        return Err(problems(reader.problems));
    }
    let (table, errors) = DeTable::parse_recoverable(text);
    let mut walk = Walk { reader: Reader::new(text), files: Vec::new(), names: Names::default() };
    let mut readable = true;
    for error in &errors {
        readable &= walk.syntax(text, error);
    }
    if !readable {
        // What could be recovered would only lead to problems that are none.
        return Err(problems(walk.reader.problems));
    }
    let manifest = walk.manifest(&Section::root(table.get_ref()));
    let mut found = walk.reader.problems;
    found.extend(walk.files.iter().filter_map(inspect));
    match (manifest, Problems::of(found)) {
        (Some(manifest), None) => Ok(Manifest { files: walk.files, ..manifest }),
        (_, Some(problems)) => Err(problems),
        (None, None) => Err(problems(Vec::new())),
    }
}

/// Problems that are known to be some.
fn problems(found: Vec<Problem>) -> Problems {
    Problems::of(found).unwrap_or_else(|| {
        Problems::from(Problem {
            kind: ProblemKind::Syntax,
            place: Place::default(),
            key: String::new(),
            message: "the manifest could not be read".to_owned(),
            hint: None,
        })
    })
}

/// The names that sections declare, valid or not: a reference to a name that is misspelt at its declaration is not
/// reported a second time.
#[derive(Default)]
struct Names<'a> {
    aggregates: BTreeSet<&'a str>,
    /// Event types by aggregate.
    events: BTreeMap<&'a str, BTreeSet<&'a str>>,
    models: BTreeSet<&'a str>,
}

struct Walk<'a> {
    reader: Reader<'a>,
    files: Vec<FileRef>,
    names: Names<'a>,
}

/// A model that a projection says it writes.
struct Claim {
    model: String,
    projection: String,
    key: String,
    at: Range<usize>,
}

impl<'a> Walk<'a> {
    /// Reports an error of the TOML parser. True if the rest can be read all the same.
    fn syntax(&mut self, text: &str, error: &toml::de::Error) -> bool {
        let at = error.span().unwrap_or(0..0);
        let duplicate = error.message() == "duplicate key";
        let (kind, message, hint) = if duplicate {
            let name = text.get(at.clone()).unwrap_or_default();
            let message = format!("`{}` is here a second time", short(name));
            (ProblemKind::Clash, message, Some("remove one of them, or join them".to_owned()))
        } else {
            (ProblemKind::Syntax, format!("this is not TOML: {}", error.message()), None)
        };
        self.reader.report(kind, at, "", message, hint);
        duplicate
    }

    fn manifest(&mut self, root: &Section<'a>) -> Option<Manifest> {
        if let Some(functions) = root.get("function") {
            self.later_functions(&functions);
        }
        let known: Vec<&str> = keys::ROOT.iter().copied().chain(["function"]).collect();
        self.reader.check_keys(root, &known);
        self.names = self.declared(root);

        let app = match root.get("app") {
            Some(app) => self.app(&app),
            None => {
                self.reader.missing(root, "app", "`[app]` with `name = \"…\"` under it");
                None
            }
        };
        let build = root.get("build").and_then(|build| self.build(&build));
        let aggregates = self.each(root, "aggregate", AggregateName::new, Self::aggregate);
        let models = self.each(root, "model", ModelName::new, Self::model);
        let mut claims = Vec::new();
        let projections = self.each(root, "projection", ProjectionName::new, |walk, name, field| {
            walk.projection(name, field, &mut claims)
        });
        self.one_writer_each(root, &claims);
        let (name, hosts, cors) = app?;
        Some(Manifest { name, hosts, build, cors, aggregates, models, projections, files: Vec::new() })
    }

    /// The tables of `[KIND.NAME]`, those that could be read.
    fn each<N: Ord, S>(
        &mut self,
        root: &Section<'a>,
        kind: &str,
        check: impl Fn(&'a str) -> Result<N, crate::name::InvalidName>,
        mut read: impl FnMut(&mut Self, Option<N>, &Field<'a>) -> Option<(N, S)>,
    ) -> BTreeMap<N, S> {
        let Some(section) = root.get(kind).and_then(|field| self.reader.table(&field)) else {
            return BTreeMap::new();
        };
        let mut specs = BTreeMap::new();
        for field in section.fields() {
            let name = self.reader.name(&field, field.key_at.clone(), field.name, |_| check(field.name));
            // Read even under a bad name, for the problems inside.
            specs.extend(read(self, name, &field));
        }
        specs
    }

    fn declared(&self, root: &Section<'a>) -> Names<'a> {
        let fields = |kind: &str| {
            let table = root.get(kind).and_then(|field| field.value.as_table());
            table.into_iter().flatten().map(|(name, value)| (&**name.get_ref(), value.get_ref()))
        };
        let events = |aggregate: &'a DeValue<'a>| {
            let events = aggregate.get("events").and_then(|events| events.get_ref().as_table());
            events.into_iter().flatten().map(|(name, _)| &**name.get_ref()).collect()
        };
        Names {
            aggregates: fields("aggregate").map(|(name, _)| name).collect(),
            events: fields("aggregate").map(|(name, value)| (name, events(value))).collect(),
            models: fields("model").map(|(name, _)| name).collect(),
        }
    }

    fn later_functions(&mut self, functions: &Field<'a>) {
        let each: Vec<(String, Range<usize>)> = match functions.value.as_table() {
            Some(table) if !table.is_empty() => {
                let section = Section::root(table);
                section.fields().map(|field| (format!("function.{}", field.key), field.key_at)).collect()
            }
            _ => vec![("function".to_owned(), functions.key_at.clone())],
        };
        for (key, at) in each {
            let message = format!("`{key}`: functions are not available in this version of Ebbtide");
            let hint = "remove the section; aggregates and projections are what there is".to_owned();
            self.reader.report(ProblemKind::Unavailable, at, key, message, hint);
        }
    }

    fn app(&mut self, field: &Field<'a>) -> Option<(AppName, Vec<String>, Option<Cors>)> {
        let app = self.reader.section(field, keys::APP)?;
        let name = match app.get("name") {
            None => {
                self.reader.missing(&app, "name", "`name = \"shop\"`");
                None
            }
            Some(field) => self.reader.text(&field, "shop").and_then(|text| self.app_name(&field, text)),
        };
        let hosts = app.get("hosts").and_then(|hosts| self.hosts(&hosts)).unwrap_or_default();
        let cors = app.get("cors").and_then(|cors| self.cors(&cors));
        Some((name?, hosts, cors))
    }

    fn app_name(&mut self, field: &Field<'a>, text: &str) -> Option<AppName> {
        if text == "system" {
            let message = "the name `system` is reserved: the node's own log has it".to_owned();
            self.reader.refuse(field, message, Some("choose another name".to_owned()));
            return None;
        }
        self.reader.name(field, field.at.clone(), text, |text| AppName::new(text))
    }

    fn hosts(&mut self, field: &Field<'a>) -> Option<Vec<String>> {
        let hosts = self.reader.texts(field)?;
        let mut good = Vec::new();
        for (element, host) in hosts {
            let Some(problem) = host_problem(host) else {
                good.push(host.to_owned());
                continue;
            };
            let bare = host.split_once("://").map_or(host, |(_, rest)| rest);
            let bare = bare.split(['/', ':']).next().unwrap_or_default().to_lowercase();
            let hint = match host_problem(&bare) {
                None => format!("write \"{bare}\""),
                Some(_) => "write a host name like \"shop.example.org\"".to_owned(),
            };
            self.reader.refuse(&element, format!("the host \"{}\" {problem}", short(host)), Some(hint));
        }
        Some(good)
    }

    fn cors(&mut self, field: &Field<'a>) -> Option<Cors> {
        let cors = self.reader.section(field, keys::CORS)?;
        let max_age = cors.get("max-age").and_then(|age| self.reader.duration(&age, SECOND..=24 * HOUR));
        let Some(origins) = cors.get("origins") else {
            self.reader.missing(&cors, "origins", "`origins = [\"https://shop.example.org\"]`");
            return None;
        };
        let listed = self.reader.texts(&origins)?;
        if listed.is_empty() {
            let hint = "list origins, or remove `cors`: then browsers may call from the app's own hosts only";
            self.reader.refuse(&origins, "`origins` is empty".to_owned(), Some(hint.to_owned()));
        }
        for (element, origin) in &listed {
            if *origin == "*" {
                if listed.len() > 1 {
                    let hint = Some("write `\"*\"` alone, or leave it out".to_owned());
                    self.reader.refuse(
                        element,
                        "`*` means every origin: others beside it say nothing".to_owned(),
                        hint,
                    );
                }
            } else if !is_origin(origin) {
                let message = format!("\"{}\" is not an origin", short(origin));
                let hint = "write scheme and host, in lower case, with the port if it is not the usual one and \
                            nothing behind it: \"https://shop.example.org\"";
                self.reader.refuse(element, message, Some(hint.to_owned()));
            }
        }
        let origins = listed.into_iter().map(|(_, origin)| origin.to_owned()).collect();
        Some(Cors { origins, max_age: max_age.unwrap_or(Cors::DEFAULT_MAX_AGE) })
    }

    fn build(&mut self, field: &Field<'a>) -> Option<Build> {
        let build = self.reader.section(field, keys::BUILD)?;
        let example = "cargo build --release --target wasm32-wasip2";
        let watch = build.get("watch").and_then(|watch| self.reader.texts(&watch)).unwrap_or_default();
        for (element, path) in &watch {
            if path.is_empty() || path.starts_with('/') || path.contains('\\') {
                let message = format!("\"{}\" is not a path below the manifest's folder", short(path));
                self.reader.refuse(element, message, Some("write a relative path, like \"src\"".to_owned()));
            }
        }
        let Some(command) = build.get("command") else {
            self.reader.missing(&build, "command", &format!("`command = \"{example}\"`"));
            return None;
        };
        let text = self.reader.text(&command, example)?;
        if text.trim().is_empty() {
            let hint = "write what builds the modules, or remove `[build]`".to_owned();
            self.reader.refuse(&command, "the build command is empty".to_owned(), Some(hint));
        }
        Some(Build {
            command: text.to_owned(),
            watch: watch.into_iter().map(|(_, path)| path.to_owned()).collect(),
        })
    }

    fn aggregate(
        &mut self,
        name: Option<AggregateName>,
        field: &Field<'a>,
    ) -> Option<(AggregateName, AggregateSpec)> {
        if field.name == "topic" {
            let message = "the name `topic` is reserved: records of Kafka topics are in streams `topic-…`";
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
        let instances = self.instances(&section);
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

    fn model(&mut self, name: Option<ModelName>, field: &Field<'a>) -> Option<(ModelName, ModelSpec)> {
        let section = self.reader.section(field, keys::MODEL)?;
        let declared = self.columns(&section);
        let key = match section.get("key") {
            None => {
                self.reader.missing(
                    &section,
                    "key",
                    "`key = \"id\"`, with `id = \"text\"` among the columns",
                );
                None
            }
            Some(key) => self.model_key(&key, declared.as_ref()),
        };
        let indexes = match (section.get("indexes"), &declared) {
            (Some(indexes), Some(declared)) => self.indexes(&indexes, declared),
            _ => Vec::new(),
        };
        let allow = self.allow(&section);
        let columns = declared?.into_iter().map(|(name, kind)| Some((ColumnName::new(name).ok()?, kind?)));
        let schema =
            ModelSchema { name: name?, key: key?, columns: columns.collect::<Option<_>>()?, indexes };
        Some((schema.name.clone(), ModelSpec { schema, allow }))
    }

    /// Columns by the names they were given, good or not; none where the type is not one.
    fn columns(&mut self, model: &Section<'a>) -> Option<BTreeMap<&'a str, Option<ColumnType>>> {
        let example = "`columns = { id = \"text\", count = \"integer\" }`";
        let Some(field) = model.get("columns") else {
            self.reader.missing(model, "columns", example);
            return None;
        };
        let mut columns = BTreeMap::new();
        for column in self.reader.table(&field)?.fields() {
            self.reader.name(&column, column.key_at.clone(), column.name, |text| ColumnName::new(text));
            columns.insert(column.name, self.column_type(&column));
        }
        if columns.is_empty() {
            self.reader.refuse(
                &field,
                format!("`{}` has no columns", model.key),
                Some(format!("write {example}")),
            );
            return None;
        }
        if columns.len() > ModelSpec::MAX_COLUMNS {
            let message = format!("`{}` has {} columns", model.key, columns.len());
            let hint = format!(
                "a model has at most {}; put what is rarely asked for into a json column",
                ModelSpec::MAX_COLUMNS
            );
            self.reader.refuse(&field, message, Some(hint));
        }
        Some(columns)
    }

    fn column_type(&mut self, column: &Field<'a>) -> Option<ColumnType> {
        let text = self.reader.text(column, "text")?;
        let types =
            [ColumnType::Text, ColumnType::Integer, ColumnType::Real, ColumnType::Boolean, ColumnType::Json];
        if let Some(kind) = types.into_iter().find(|kind| kind.to_string() == text) {
            return Some(kind);
        }
        let names: Vec<String> = types.iter().map(ToString::to_string).collect();
        let meant = match &*text.to_ascii_lowercase() {
            "string" | "str" | "varchar" | "uuid" | "timestamp" | "datetime" | "date" => Some("text"),
            "int" | "i64" | "i32" | "u64" | "u32" | "bigint" | "number" | "long" => Some("integer"),
            "float" | "double" | "f64" | "f32" | "decimal" => Some("real"),
            "bool" => Some("boolean"),
            "object" | "array" | "jsonb" | "any" => Some("json"),
            _ => super::problem::suggestion(text, names.iter().map(String::as_str)),
        };
        let message = format!("\"{}\" is not a column type", short(text));
        let hint = match meant {
            Some(meant) => format!("did you mean \"{meant}\"?"),
            None => format!("write one of {}", list(names.iter().map(String::as_str))),
        };
        self.reader.refuse(column, message, Some(hint));
        None
    }

    fn model_key(
        &mut self,
        field: &Field<'a>,
        columns: Option<&BTreeMap<&'a str, Option<ColumnType>>>,
    ) -> Option<ColumnName> {
        let text = self.reader.text(field, "id")?;
        match columns?.get(text) {
            Some(Some(ColumnType::Text) | None) => ColumnName::new(text).ok(),
            Some(Some(other)) => {
                let message = format!("the key column `{text}` is of type {other}; keys are text");
                let hint = format!(
                    "write `{text} = \"text\"` among the columns; numbers are written as text in keys"
                );
                self.reader.refuse(field, message, Some(hint));
                None
            }
            None => {
                let columns = columns?.keys().copied();
                self.reader.unknown_name(field, "column", text, columns, "the key is one of the columns");
                None
            }
        }
    }

    fn indexes(
        &mut self,
        field: &Field<'a>,
        columns: &BTreeMap<&'a str, Option<ColumnType>>,
    ) -> Vec<Vec<ColumnName>> {
        let example = "a list of columns for each index: `indexes = [[\"origin\", \"hour\"], [\"flights\"]]`";
        let listed = self.reader.list(field, "a list of lists of columns", example).unwrap_or_default();
        let mut indexes: Vec<Vec<ColumnName>> = Vec::new();
        for index in listed {
            if index.value.as_str().is_some() {
                let hint = Some(format!("write {example}"));
                self.reader.refuse(&index, "an index is a list of columns, even of one".to_owned(), hint);
                continue;
            }
            let Some(names) = self.reader.texts(&index) else { continue };
            if names.is_empty() {
                let hint = Some("name its columns, or remove it".to_owned());
                self.reader.refuse(&index, "this index has no columns".to_owned(), hint);
            }
            let mut good = Vec::new();
            for (element, name) in names {
                match columns.get(name) {
                    Some(Some(ColumnType::Json)) => {
                        let message = format!("column `{name}` is json, which can't be indexed");
                        let hint = "give what you search for a column of its own".to_owned();
                        self.reader.refuse(&element, message, Some(hint));
                    }
                    Some(_) => good.extend(ColumnName::new(name)),
                    None => {
                        let known = columns.keys().copied();
                        self.reader.unknown_name(&element, "column", name, known, "index a column");
                    }
                }
            }
            if !good.is_empty() && indexes.contains(&good) {
                let hint = Some("remove one of them".to_owned());
                self.reader.report(
                    ProblemKind::Clash,
                    index.at,
                    index.key,
                    "this index is there twice",
                    hint,
                );
                continue;
            }
            indexes.push(good);
        }
        if indexes.len() > ModelSpec::MAX_INDEXES {
            let message = format!("`{}` has {} entries", field.key, indexes.len());
            let hint =
                format!("a model has at most {} indexes: each slows its projection", ModelSpec::MAX_INDEXES);
            self.reader.refuse(field, message, Some(hint));
        }
        indexes
    }

    fn projection(
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
            Some(source) => self.source(&source),
            None => Some(everything),
        };
        let batch = section.get("batch").map(|batch| self.batch(&batch)).unwrap_or_default();
        let lanes = section.get("lanes").and_then(|f| self.reader.size_count(&f, 64));
        let lane_by = section.get("lane-by").and_then(|f| self.lane_by(&f)).unwrap_or(LaneBy::Stream);
        let retry = section.get("retry").map(|retry| self.retry(&retry)).unwrap_or_default();
        let max_parked = section.get("max-parked").and_then(|f| self.reader.count(&f, 1_000_000));
        let limits = self.limits(&section, Limits::PROJECTION);
        let instances = self.instances(&section);
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
    fn one_writer_each(&mut self, root: &Section<'a>, claims: &[Claim]) {
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

    fn source(&mut self, field: &Field<'a>) -> Option<Source> {
        let section = self.reader.table(field)?;
        let later = section.fields().find(|field| keys::TOPIC_SOURCE.contains(&field.name));
        if let Some(later) = later {
            let message = format!(
                "`{}`: projections from Kafka topics are not available in this version of Ebbtide",
                field.key
            );
            let hint = "read the app's log: `source = { aggregates = [\"…\"] }`".to_owned();
            self.reader.report(ProblemKind::Unavailable, later.key_at, later.key, message, hint);
        }
        let known: Vec<&str> = keys::SOURCE.iter().chain(keys::TOPIC_SOURCE).copied().collect();
        self.reader.check_keys(&section, &known);
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
        Some(Source::Log {
            aggregates: chosen.into_iter().flat_map(|name| AggregateName::new(name).ok()).collect(),
            types: types.into_iter().flat_map(|name| EventType::new(name).ok()).collect(),
        })
    }

    fn chosen(&mut self, field: &Field<'a>, what: &str, known: &BTreeSet<&'a str>) -> Vec<&'a str> {
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

    fn batch(&mut self, field: &Field<'a>) -> Batch {
        let default = Batch::default();
        let Some(section) = self.reader.section(field, keys::BATCH) else { return default };
        let max_events = section.get("max-events").and_then(|f| self.reader.size_count(&f, 10_000));
        let max_wait =
            section.get("max-wait").and_then(|f| self.reader.duration(&f, Duration::ZERO..=60 * SECOND));
        Batch {
            max_events: max_events.unwrap_or(default.max_events),
            max_wait: max_wait.unwrap_or(default.max_wait),
        }
    }

    fn lane_by(&mut self, field: &Field<'a>) -> Option<LaneBy> {
        let hint = "write \"stream\", \"correlation\" or { field = \"…\" } with a field of the events' data";
        match field.value {
            DeValue::String(text) if text == "stream" => Some(LaneBy::Stream),
            DeValue::String(text) if text == "correlation" => Some(LaneBy::Correlation),
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

    fn retry(&mut self, field: &Field<'a>) -> Retry {
        let default = Retry::default();
        let Some(section) = self.reader.section(field, keys::RETRY) else { return default };
        let millisecond = Duration::from_millis(1);
        let attempts = section.get("attempts").and_then(|f| self.reader.count(&f, 100));
        let backoff = section.get("backoff").and_then(|f| self.reader.duration(&f, millisecond..=HOUR));
        let max_backoff =
            section.get("max-backoff").and_then(|f| self.reader.duration(&f, millisecond..=HOUR));
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
        }
    }

    fn limits(&mut self, function: &Section<'a>, default: Limits) -> Limits {
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

    fn instances(&mut self, function: &Section<'a>) -> InstancePolicy {
        let default = InstancePolicy::default();
        let Some(section) = function.get("instances").and_then(|f| self.reader.section(&f, keys::INSTANCES))
        else {
            return default;
        };
        let reuse = section.get("reuse").and_then(|f| self.reader.count(&f, u32::MAX));
        let max = section.get("max").and_then(|f| self.reader.count(&f, cap::CONCURRENCY));
        let idle =
            section.get("idle").and_then(|f| self.reader.duration(&f, Duration::from_millis(1)..=24 * HOUR));
        let aggregates = section.get("aggregates").and_then(|f| self.reader.count(&f, 65_536));
        InstancePolicy {
            reuse: reuse.unwrap_or(default.reuse),
            max: max.unwrap_or(default.max),
            idle: idle.unwrap_or(default.idle),
            aggregates: aggregates.unwrap_or(default.aggregates),
        }
    }

    fn allow(&mut self, section: &Section<'a>) -> Allow {
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

    fn module(&mut self, section: &Section<'a>, kind: ModuleKind) -> Option<PathBuf> {
        let name = section.key.rsplit('.').next().unwrap_or_default().trim_matches('"');
        let example = format!("target/wasm32-wasip2/release/{name}.wasm");
        let Some(field) = section.get("module") else {
            self.reader.missing(section, "module", &format!("`module = \"{example}\"`"));
            return None;
        };
        let path = self.reader.path(&field, &example)?;
        Some(self.file(&field, path, FilePurpose::Module(kind)))
    }

    fn schema(&mut self, field: &Field<'a>) -> Option<PathBuf> {
        let path = self.reader.path(field, "schemas/name.json")?;
        Some(self.file(field, path, FilePurpose::Schema))
    }

    fn file(&mut self, field: &Field<'a>, path: PathBuf, purpose: FilePurpose) -> PathBuf {
        let place = self.reader.place(field.at.clone());
        self.files.push(FileRef { path: path.clone(), purpose, key: field.key.clone(), place });
        path
    }
}

/// What is wrong with a host name; none if it is fine.
fn host_problem(host: &str) -> Option<&'static str> {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    if host.contains("://") {
        Some("has a scheme; only the name belongs here")
    } else if host.contains(':') {
        Some("has a port; the name alone decides, on any port")
    } else if host.contains('*') {
        Some("has a `*`, which is not available: list each name")
    } else if host.bytes().any(|b| b.is_ascii_uppercase()) {
        Some("has capital letters")
    } else if host.len() > 253 || !host.split('.').all(label) {
        Some("is not a host name")
    } else {
        None
    }
}

/// Scheme, host, and perhaps a port, as browsers write it (RFC 6454, section 6.2).
fn is_origin(origin: &str) -> bool {
    let Some((scheme, authority)) = origin.split_once("://") else { return false };
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) => (host, port.parse::<u16>().is_ok_and(|port| port > 0)),
        None => (authority, true),
    };
    matches!(scheme, "http" | "https") && port && host_problem(host).is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_a_scheme_and_a_host_and_perhaps_a_port() {
        assert!(is_origin("https://shop.example.org") && is_origin("http://localhost:3000"));
        for wrong in [
            "shop.example.org",
            "https://shop.example.org/",
            "https://Shop.org",
            "http://a:0",
            "null",
            "ftp://a",
        ] {
            assert!(!is_origin(wrong), "{wrong}");
        }
    }
}
