//! `[function.NAME]`: a module that a trigger calls, and what it may reach.

use super::problem::Place;
use super::{Allow, Batch, LaneBy, Retry, Source};
use crate::limits::{InstancePolicy, Limits};
use crate::name::{AggregateName, FunctionName, ModelName, TopicName};
use crate::outbound::Outbound;
use crate::port::guest::Grants;
use crate::route::Route;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

/// `[function.NAME]`.
#[derive(Clone, Debug)]
pub struct FunctionSpec {
    /// Its name.
    pub name: FunctionName,
    /// The module's file, relative to the manifest.
    pub module: PathBuf,
    /// What calls it.
    pub trigger: Trigger,
    /// Who may call it.
    pub allow: Allow,
    /// What it may reach. Shared: each of its instances has it.
    pub capabilities: Capabilities,
    /// Bounds.
    pub limits: Limits,
    /// How its instances live.
    pub instances: InstancePolicy,
}

/// What calls a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// Requests.
    Http(HttpTrigger),
    /// Events of the app's log.
    Events(EventTrigger),
}

/// `trigger = { events = { … } }`: each event is given to the function, once it is durable, at least once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventTrigger {
    /// Which events it wants.
    pub source: Source,
    /// Where it begins when it is deployed for the first time.
    pub from: Beginning,
    /// How much it takes in one call.
    pub batch: Batch,
    /// Calls at the same time, each with the events of other keys.
    pub lanes: NonZeroUsize,
    /// What splits events among calls, and what is parked when an event fails.
    pub lane_by: LaneBy,
    /// How often a failing event is tried before its key is parked.
    pub retry: Retry,
    /// Where an event goes that failed for the last time, besides being parked alone; none: its key is parked.
    pub dead_letter: Option<TopicName>,
    /// Parked keys at which the function halts.
    pub max_parked: u64,
}

impl EventTrigger {
    /// `batch` where the manifest does not say: 10 events a call, and no waiting for more.
    pub const DEFAULT_BATCH: Batch =
        Batch { max_events: NonZeroUsize::new(10).unwrap(), max_wait: Duration::ZERO };
    /// `batch.max-events` times `lanes` at most: what is given again if the node ends in the middle of it.
    pub const MAX_WINDOW: usize = 10_000;
}

/// Where an event function begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Beginning {
    /// With what happens after it is deployed for the first time.
    #[default]
    Now,
    /// With the first event of the log.
    Start,
}

/// `trigger = { http = { … } }`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpTrigger {
    /// The paths it answers.
    pub route: Route,
    /// The methods it answers.
    pub methods: Methods,
    /// A request's body at most, in bytes.
    pub max_body: u64,
    /// A response's body at most, in bytes.
    pub max_response: u64,
}

impl HttpTrigger {
    /// `max-body` where the manifest does not say: 1 MiB.
    pub const DEFAULT_MAX_BODY: u64 = 1 << 20;
    /// `max-response` where the manifest does not say: 10 MiB.
    pub const DEFAULT_MAX_RESPONSE: u64 = 10 << 20;
    /// Either at most: 1 GiB. Bodies are streamed, so that this bounds time and traffic, not memory.
    pub const MAX_BODY: u64 = 1 << 30;
}

/// A request's method that a function may answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "UPPERCASE")]
#[expect(missing_docs, reason = "the methods of RFC 9110 and RFC 5789")]
pub enum HttpMethod {
    Get,
    Head,
    Post,
    Put,
    Patch,
    Delete,
    Options,
}

impl HttpMethod {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Get, Self::Head, Self::Post, Self::Put, Self::Patch, Self::Delete, Self::Options];

    /// As requests write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
            Self::Options => "OPTIONS",
        }
    }

    /// The method of this name.
    #[must_use]
    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|method| method.as_str() == name)
    }
}

/// Methods that a function answers: those it lists, or all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Methods(pub Option<BTreeSet<HttpMethod>>);

/// How a function takes a request's method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// As it is.
    AsSent,
    /// A `HEAD` as the `GET` that it stands for; the body of the answer is dropped.
    AsGet,
}

impl Methods {
    /// Whether, and how, a request with this method is taken. One who answers `GET` answers `HEAD`.
    #[must_use]
    pub fn take(&self, method: &str) -> Option<Taken> {
        let Some(listed) = &self.0 else { return Some(Taken::AsSent) };
        match HttpMethod::of(method) {
            Some(method) if listed.contains(&method) => Some(Taken::AsSent),
            Some(HttpMethod::Head) if listed.contains(&HttpMethod::Get) => Some(Taken::AsGet),
            _ => None,
        }
    }

    /// The methods that are taken, that `HEAD` included.
    pub fn iter(&self) -> impl Iterator<Item = HttpMethod> {
        HttpMethod::ALL.into_iter().filter(|method| self.take(method.as_str()).is_some())
    }

    /// Methods that both list. A `HEAD` that is only implied clashes with nothing.
    #[must_use]
    pub fn common(&self, other: &Self) -> Vec<HttpMethod> {
        HttpMethod::ALL.into_iter().filter(|&method| self.lists(method) && other.lists(method)).collect()
    }

    fn lists(&self, method: HttpMethod) -> bool {
        self.0.as_ref().is_none_or(|listed| listed.contains(&method))
    }
}

/// What a function may reach besides computing. Nothing, unless the manifest says so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Where it may send HTTP requests. With a list of nothing its module may import what sends requests, and each is
    /// denied: some toolchains import all that there is, used or not.
    pub outbound_http: Option<Outbound>,
    /// Aggregates of the same app that it may send commands to. A list of nothing is as above.
    pub commands: Option<BTreeSet<AggregateName>>,
    /// Models of the same app that it may read. A list of nothing is as above.
    pub models: Option<BTreeSet<ModelName>>,
    /// Environment variables.
    pub env: BTreeMap<Variable, String>,
    /// Environment variables whose values the operator keeps, and where the manifest names them.
    pub secrets: BTreeMap<Variable, Place>,
    /// Bytes that it may keep in `/tmp` of each instance.
    pub tmp: Option<u64>,
}

impl Capabilities {
    /// What `tmp` may be, in bytes.
    pub const TMP: RangeInclusive<u64> = (64 << 10)..=(1 << 30);

    /// All of `env` together at most, in bytes.
    pub const MAX_ENV: usize = 64 << 10;

    /// Whether it may send commands to an aggregate.
    #[must_use]
    pub fn may_send_to(&self, aggregate: &str) -> bool {
        self.commands.as_ref().is_some_and(|granted| granted.contains(aggregate.as_bytes()))
    }

    /// Whether it may read a model.
    #[must_use]
    pub fn may_read(&self, model: &str) -> bool {
        self.models.as_ref().is_some_and(|granted| granted.contains(model.as_bytes()))
    }

    /// The interfaces that come with them.
    #[must_use]
    pub fn grants(&self) -> Grants {
        Grants {
            outbound_http: self.outbound_http.is_some(),
            commands: self.commands.is_some(),
            models: self.models.is_some(),
            tmp: self.tmp.is_some(),
        }
    }
}

/// The name of an environment variable.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Variable(String);

impl Variable {
    /// The variable of this name, if it is one: letters, digits and underscores, no digit first, at most 128.
    #[must_use]
    pub fn new(name: &str) -> Option<Self> {
        let first = name.bytes().next()?;
        let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        (!first.is_ascii_digit() && name.len() <= 128 && name.bytes().all(word))
            .then(|| Self(name.to_owned()))
    }

    /// Its name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Variable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn methods(listed: &[HttpMethod]) -> Methods {
        Methods(Some(listed.iter().copied().collect()))
    }

    #[test]
    fn who_answers_get_answers_head_and_sees_a_get() {
        let get = methods(&[HttpMethod::Get]);
        assert_eq!((get.take("GET"), get.take("HEAD")), (Some(Taken::AsSent), Some(Taken::AsGet)));
        assert_eq!((get.take("POST"), get.take("get")), (None, None));
        let both = methods(&[HttpMethod::Get, HttpMethod::Head]);
        assert_eq!(both.take("HEAD"), Some(Taken::AsSent));
        assert_eq!(Methods(None).take("PROPFIND"), Some(Taken::AsSent));
        assert_eq!(get.iter().map(HttpMethod::as_str).collect::<Vec<_>>(), ["GET", "HEAD"]);
    }

    #[test]
    fn a_head_that_is_only_implied_clashes_with_nothing() {
        let (get, head) = (methods(&[HttpMethod::Get]), methods(&[HttpMethod::Head]));
        assert!(get.common(&head).is_empty());
        assert_eq!(Methods(None).common(&head), [HttpMethod::Head]);
    }
}
