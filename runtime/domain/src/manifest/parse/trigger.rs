//! `[function.NAME]`: its trigger and its capabilities, and that no two functions answer the same requests, or follow
//! the log by the same name as a projection.

use super::projection::MAX_PARKED;
use super::{Walk, keys};
use crate::limits::{InstancePolicy, Limits};
use crate::manifest::Source;
use crate::manifest::function::{
    Beginning, Capabilities, EventTrigger, FunctionSpec, HttpMethod, HttpTrigger, Methods, Trigger, Variable,
};
use crate::manifest::problem::{Place, ProblemKind, short, suggestion};
use crate::manifest::reader::{Field, Section, list};
use crate::manifest::{LaneBy, ProjectionSpec};
use crate::name::{AggregateName, FunctionName, InvalidName, ModelName, ProjectionName};
use crate::outbound::{Destination, Outbound};
use crate::port::guest::ModuleKind;
use crate::route::Route;
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::ops::Range;
use toml::de::DeValue;

/// A route that a function wants.
pub(super) struct Wanted {
    function: String,
    route: Route,
    methods: Methods,
    key: String,
    at: Range<usize>,
}

impl<'a> Walk<'a> {
    pub(super) fn function(
        &mut self,
        name: Option<FunctionName>,
        field: &Field<'a>,
        wanted: &mut Vec<Wanted>,
    ) -> Option<(FunctionName, FunctionSpec)> {
        let section = self.reader.section(field, keys::FUNCTION)?;
        let capabilities = match section.get("capabilities") {
            Some(capabilities) => self.capabilities(&capabilities),
            None => Capabilities::default(),
        };
        let module = self.module(&section, ModuleKind::Http(capabilities.grants()));
        let trigger = self.trigger(&section, wanted);
        let allow = self.allow(&section);
        let limits = self.limits(&section, Limits::HTTP);
        let instances = self.instances(&section, InstancePolicy::HTTP);
        let name = name?;
        let spec = FunctionSpec {
            name: name.clone(),
            module: module?,
            trigger: trigger?,
            allow,
            capabilities,
            limits,
            instances,
        };
        Some((name, spec))
    }

    fn trigger(&mut self, function: &Section<'a>, wanted: &mut Vec<Wanted>) -> Option<Trigger> {
        let example = "`trigger = { http = { route = \"/hello/{name}\", methods = [\"GET\"] } }`, or \
                       `trigger = { events = { types = [\"…\"] } }`";
        let Some(field) = function.get("trigger") else {
            self.reader.missing(function, "trigger", example);
            return None;
        };
        let section = self.reader.section(&field, keys::TRIGGER)?;
        match (section.get("http"), section.get("events")) {
            (Some(http), None) => self.http(&http, &function.key, wanted).map(Trigger::Http),
            (None, Some(events)) => {
                if let Some(allow) = function.get("allow") {
                    let message =
                        format!("`{}` says who may call, and events call `{}`", allow.key, function.key);
                    self.reader.refuse(&allow, message, Some("leave it out".to_owned()));
                }
                self.event_trigger(&events).map(Trigger::Events)
            }
            (Some(_), Some(events)) => {
                let message = format!("`{}` has two triggers", function.key);
                let hint = "give each a function of its own; they may have the same module".to_owned();
                self.reader.refuse(&events, message, Some(hint));
                None
            }
            (None, None) => {
                self.reader.missing(&section, "http", example);
                None
            }
        }
    }

    fn event_trigger(&mut self, field: &Field<'a>) -> Option<EventTrigger> {
        let section = self.reader.section(field, keys::EVENTS)?;
        let source = self.events_of(&section, None);
        let from = section.get("from").and_then(|f| self.beginning(&f)).unwrap_or_default();
        let batch = match section.get("batch") {
            Some(batch) => self.batch(&batch, EventTrigger::DEFAULT_BATCH),
            None => EventTrigger::DEFAULT_BATCH,
        };
        let lanes = section.get("lanes").and_then(|f| self.reader.size_count(&f, 64));
        let lanes = lanes.unwrap_or(NonZeroUsize::MIN);
        let window = batch.max_events.saturating_mul(lanes).get();
        if window > EventTrigger::MAX_WINDOW {
            let message =
                format!("`{}` takes {window} events at once, `lanes` times `max-events`", field.key);
            let hint = format!("take {} at most", EventTrigger::MAX_WINDOW);
            self.reader.refuse(field, message, Some(hint));
        }
        let lane_by = section.get("lane-by").and_then(|f| self.lane_by(&f));
        let lane_by = lane_by.unwrap_or_else(|| LaneBy::usual(Some(&source)));
        let dead_letter =
            section.get("dead-letter").and_then(|f| self.dead_letter(&f, &Source::consumed(Some(&source))));
        let retry = section.get("retry").map(|retry| self.retry(&retry)).unwrap_or_default();
        let max_parked = section.get("max-parked").and_then(|f| self.reader.count(&f, MAX_PARKED));
        let max_parked = max_parked.map_or(ProjectionSpec::DEFAULT_MAX_PARKED, |most| u64::from(most.get()));
        Some(EventTrigger { source, from, batch, lanes, lane_by, retry, dead_letter, max_parked })
    }

    fn beginning(&mut self, field: &Field<'a>) -> Option<Beginning> {
        match self.reader.text(field, "now")? {
            "now" => Some(Beginning::Now),
            "start" => Some(Beginning::Start),
            other => {
                let message = format!("\"{}\" is no place to begin", short(other));
                let hint = "write \"now\", for what happens from the first deployment on, or \"start\", for all \
                            events of the log";
                self.reader.refuse(field, message, Some(hint.to_owned()));
                None
            }
        }
    }

    /// Both follow the log by their name.
    pub(super) fn one_follower_each(
        &mut self,
        root: &Section<'a>,
        projections: &BTreeMap<ProjectionName, ProjectionSpec>,
        functions: &BTreeMap<FunctionName, FunctionSpec>,
    ) {
        let table = root.get("function").and_then(|field| field.value.as_table());
        for field in table.into_iter().flat_map(|table| Section::root(table).fields().collect::<Vec<_>>()) {
            let follows = functions
                .iter()
                .any(|(name, spec)| &**name == field.name && matches!(spec.trigger, Trigger::Events(_)));
            if !follows || !projections.keys().any(|name| &**name == field.name) {
                continue;
            }
            let message = format!("there is a projection `{}` as well", short(field.name));
            let hint = "give the function another name: both are known by it where they follow the log";
            let key = format!("function.{}", field.key);
            self.reader.report(ProblemKind::Clash, field.key_at, key, message, hint.to_owned());
        }
    }

    fn http(&mut self, field: &Field<'a>, function: &str, wanted: &mut Vec<Wanted>) -> Option<HttpTrigger> {
        let section = self.reader.section(field, keys::HTTP)?;
        let methods = section.get("methods").and_then(|f| self.methods(&f)).unwrap_or_default();
        let bounds = 0..=HttpTrigger::MAX_BODY;
        let max_body = section.get("max-body").and_then(|f| self.reader.bytes(&f, bounds.clone()));
        let max_response = section.get("max-response").and_then(|f| self.reader.bytes(&f, bounds));
        let Some(at) = section.get("route") else {
            self.reader.missing(&section, "route", "`route = \"/hello/{name}\"`");
            return None;
        };
        let text = self.reader.text(&at, "/hello/{name}")?;
        let route = match Route::parse(text) {
            Ok(route) => route,
            Err(invalid) => {
                let message = format!("the route \"{}\" {}", short(text), invalid.problem);
                self.reader.refuse(&at, message, Some(invalid.hint));
                return None;
            }
        };
        wanted.push(Wanted {
            function: function.to_owned(),
            route: route.clone(),
            methods: methods.clone(),
            key: at.key,
            at: at.at,
        });
        Some(HttpTrigger {
            route,
            methods,
            max_body: max_body.unwrap_or(HttpTrigger::DEFAULT_MAX_BODY),
            max_response: max_response.unwrap_or(HttpTrigger::DEFAULT_MAX_RESPONSE),
        })
    }

    fn methods(&mut self, field: &Field<'a>) -> Option<Methods> {
        let listed = self.reader.texts(field)?;
        if listed.is_empty() {
            let hint = "leave `methods` out to answer every method".to_owned();
            self.reader.refuse(field, format!("`{}` is empty", field.key), Some(hint));
        }
        let mut methods = BTreeSet::new();
        for (element, name) in listed {
            if let Some(method) = HttpMethod::of(name) {
                methods.insert(method);
                continue;
            }
            let known = HttpMethod::ALL.map(HttpMethod::as_str);
            let hint = match suggestion(&name.to_ascii_uppercase(), known) {
                Some(meant) => format!("did you mean \"{meant}\"?"),
                None => format!("write some of {}, or leave `methods` out to answer all", list(known)),
            };
            let message = format!("\"{}\" is not a method that a function can list", short(name));
            self.reader.refuse(&element, message, Some(hint));
        }
        Some(Methods(Some(methods)))
    }

    /// Two functions that would answer the same request: neither has a better claim.
    pub(super) fn one_function_each(&mut self, wanted: &[Wanted]) {
        let mut by_shape: BTreeMap<String, Vec<&Wanted>> = BTreeMap::new();
        for later in wanted {
            let earlier = by_shape.entry(later.route.shape()).or_default();
            for first in &*earlier {
                let common = later.methods.common(&first.methods);
                if common.is_empty() {
                    continue;
                }
                let line = self.reader.place(first.at.clone()).line;
                let methods = match (&later.methods.0, &first.methods.0) {
                    (None, None) => String::new(),
                    _ => format!(" with {}", list(common.iter().map(|method| method.as_str()))),
                };
                let message = format!(
                    "the route \"{}\" answers the same requests{methods} as \"{}\" of `{}` (line {line})",
                    later.route, first.route, first.function
                );
                let hint = "give one of them another route, or let each list methods of its own".to_owned();
                self.reader.report(ProblemKind::Clash, later.at.clone(), later.key.clone(), message, hint);
                break;
            }
            earlier.push(later);
        }
    }

    fn capabilities(&mut self, field: &Field<'a>) -> Capabilities {
        let Some(section) = self.reader.section(field, keys::CAPABILITIES) else {
            return Capabilities::default();
        };
        let outbound_http = section.get("outbound-http").map(|f| self.outbound(&f));
        let env = section.get("env").map(|f| self.env(&f)).unwrap_or_default();
        let (aggregates, names) = (self.names.aggregates.clone(), self.names.models.clone());
        let commands = section.get("commands");
        let commands = commands.map(|f| self.granted(&f, "aggregate", &aggregates, AggregateName::new));
        let models = section.get("models");
        let models = models.map(|f| self.granted(&f, "model", &names, ModelName::new));
        let secrets = section.get("secrets").map(|f| self.secrets(&f, &env)).unwrap_or_default();
        let tmp = section.get("tmp").and_then(|f| self.reader.bytes(&f, Capabilities::TMP));
        Capabilities { outbound_http, commands, models, env, secrets, tmp }
    }

    /// Names only: a value in the manifest would be in every bundle.
    fn secrets(&mut self, field: &Field<'a>, env: &BTreeMap<Variable, String>) -> BTreeMap<Variable, Place> {
        let mut secrets = BTreeMap::new();
        for (element, name) in self.reader.texts(field).unwrap_or_default() {
            let Some(variable) = self.variable(&element, element.at.clone(), name) else { continue };
            if env.contains_key(&variable) {
                let message = format!("`{variable}` is in `env` too");
                self.reader.refuse(&element, message, Some("leave one of them out".to_owned()));
            }
            secrets.insert(variable, self.reader.place(element.at));
        }
        secrets
    }

    /// Names of this manifest that a function may use.
    fn granted<N: Ord>(
        &mut self,
        field: &Field<'a>,
        what: &str,
        known: &BTreeSet<&'a str>,
        check: impl Fn(&'a str) -> Result<N, InvalidName>,
    ) -> BTreeSet<N> {
        let mut granted = BTreeSet::new();
        for (element, name) in self.reader.texts(field).unwrap_or_default() {
            if known.contains(name) {
                granted.extend(check(name));
            } else {
                let otherwise = format!("declare it: `[{what}.{}]`", short(name));
                self.reader.unknown_name(&element, what, name, known.iter().copied(), &otherwise);
            }
        }
        granted
    }

    fn outbound(&mut self, field: &Field<'a>) -> Outbound {
        let mut outbound = Outbound::default();
        let Some(listed) = self.reader.texts(field) else { return outbound };
        for (element, entry) in &listed {
            if *entry == "private" {
                outbound.private = true;
                continue;
            }
            match entry.parse::<Destination>() {
                Ok(destination) => {
                    outbound.destinations.insert(destination);
                }
                Err(invalid) => {
                    let message = format!("\"{}\" {}", short(entry), invalid.problem);
                    self.reader.refuse(element, message, Some(invalid.hint));
                }
            }
        }
        if outbound.private && outbound.is_empty() && listed.len() == 1 {
            let message =
                "\"private\" alone grants nothing: it lets the hosts beside it have private addresses";
            let hint = "list the hosts too, like [\"private\", \"db.internal:8080\"]".to_owned();
            self.reader.refuse(field, message.to_owned(), Some(hint));
        }
        outbound
    }

    fn env(&mut self, field: &Field<'a>) -> BTreeMap<Variable, String> {
        let mut env = BTreeMap::new();
        let Some(table) = self.reader.table(field) else { return env };
        let mut bytes = 0;
        for value in table.fields() {
            let name = self.variable(&value, value.key_at.clone(), value.name);
            let text = match value.value {
                DeValue::Integer(_) | DeValue::Float(_) | DeValue::Boolean(_) => {
                    let message = format!("`{}` should be text", value.key);
                    let hint = "put it in quotes: environment variables are text".to_owned();
                    self.reader.refuse(&value, message, Some(hint));
                    None
                }
                _ => self.reader.text(&value, "…"),
            };
            if text.is_some_and(|text| text.contains('\0')) {
                let message = format!("`{}` has a zero character in it", value.key);
                self.reader.refuse(&value, message, Some("take it out".to_owned()));
            }
            if let (Some(name), Some(text)) = (name, text) {
                bytes += name.as_str().len() + text.len();
                env.insert(name, text.to_owned());
            }
        }
        if bytes > Capabilities::MAX_ENV {
            let message = format!("`{}` has {bytes} bytes", field.key);
            let hint =
                format!("{} is the most there may be: put data into the module", Capabilities::MAX_ENV);
            self.reader.refuse(field, message, Some(hint));
        }
        env
    }

    fn variable(&mut self, field: &Field<'a>, at: Range<usize>, name: &str) -> Option<Variable> {
        let variable = Variable::new(name);
        if variable.is_none() {
            let message = format!("`{}` is not the name of an environment variable", short(name));
            let hint = "use 1 to 128 of A-Z, a-z, 0-9 and _, not starting with a digit".to_owned();
            self.reader.report(ProblemKind::BadValue, at, field.key.clone(), message, hint);
        }
        variable
    }
}
