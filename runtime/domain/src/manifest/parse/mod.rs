//! From text to [`Manifest`]: one walk over the sections, which goes on after each problem.

mod aggregate;
mod app;
mod function;
pub(super) mod keys;
mod model;
mod projection;
mod topic;
mod trigger;

use super::problem::{Place, Problem, ProblemKind, Problems, short};
use super::reader::{Field, Reader, Section};
use super::{FileRef, Manifest};
use crate::name::{AggregateName, FunctionName, InvalidName, ModelName, ProjectionName, TopicName};
use crate::text::Text;
use app::App;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use toml::de::{DeTable, DeValue};

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
    let mut walk = Walk {
        reader: Reader::new(text),
        files: Vec::new(),
        names: Names::default(),
        default_group: Text::default(),
        consumed: BTreeSet::new(),
        needs_kafka: None,
    };
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
    /// The consumer group of those that name none: the app.
    default_group: Text,
    /// Topics that something consumes.
    consumed: BTreeSet<String>,
    /// What needs Kafka, first.
    needs_kafka: Option<(String, Place)>,
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
        self.reader.check_keys(root, keys::ROOT);
        self.names = self.declared(root);

        let app = match root.get("app") {
            Some(app) => self.app(&app),
            None => {
                self.reader.missing(root, "app", "`[app]` with `name = \"…\"` under it");
                None
            }
        };
        if let Some(App { name, .. }) = &app {
            self.default_group = name.text().clone();
        }
        let build = root.get("build").and_then(|build| self.build(&build));
        let aggregates = self.each(root, "aggregate", |text| AggregateName::new(text), Self::aggregate);
        let models = self.each(root, "model", |text| ModelName::new(text), Self::model);
        let mut claims = Vec::new();
        let projections = self.each(
            root,
            "projection",
            |text| ProjectionName::new(text),
            |walk, name, field| walk.projection(name, field, &mut claims),
        );
        self.one_writer_each(root, &claims);
        let mut wanted = Vec::new();
        let functions = self.each(
            root,
            "function",
            |text| FunctionName::new(text),
            |walk, name, field| walk.function(name, field, &mut wanted),
        );
        self.one_function_each(&wanted);
        self.one_follower_each(root, &projections, &functions);
        self.one_consumer_each(root, &projections, &functions);
        self.one_group_each(root, &aggregates, &projections, &functions);
        let topics = self.each(root, "topic", |text| TopicName::new(text), Self::topic);
        let App { name, hosts, cors, relay, chains } = app?;
        Some(Manifest {
            name,
            hosts,
            build,
            cors,
            aggregates,
            models,
            projections,
            functions,
            topics,
            relay,
            chains,
            needs_kafka: self.needs_kafka.take(),
            files: Vec::new(),
        })
    }

    /// The tables of `[KIND.NAME]`, those that could be read.
    fn each<N: Ord, S>(
        &mut self,
        root: &Section<'a>,
        kind: &str,
        check: impl Fn(&str) -> Result<N, InvalidName>,
        mut read: impl FnMut(&mut Self, Option<N>, &Field<'a>) -> Option<(N, S)>,
    ) -> BTreeMap<N, S> {
        let Some(section) = root.get(kind).and_then(|field| self.reader.table(&field)) else {
            return BTreeMap::new();
        };
        let mut specs = BTreeMap::new();
        for field in section.fields() {
            let name = self.reader.name(&field, field.key_at.clone(), field.name, &check);
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
}
