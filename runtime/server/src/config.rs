//! The operator's settings: `ebbtide.toml`, overridden by `EBB_*` variables, overridden by flags. Parsed once into
//! types, with every problem reported at once; behind this nobody checks again.

mod memory;
mod read;

use crate::auth::Authenticator;
use ebb_domain::limits::Limits;
use ebb_domain::name::AppName;
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use read::{ConfigProblem, ConfigProblems, SETTINGS, Setting};

/// A node's settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// `data`: the folder that holds everything the node keeps.
    pub data: PathBuf,
    /// `http.address`: the data plane. Port 0 picks a free one.
    pub http: SocketAddr,
    /// `[control]`: the control plane.
    pub control: ControlConfig,
    /// `scaler.address`: KEDA's external scaler, if there is to be one. Port 0 picks a free one.
    pub scaler: Option<SocketAddr>,
    /// `[auth]`: who may call the data plane.
    pub auth: Arc<Authenticator>,
    /// `[limits]`: bounds of the edge.
    pub limits: EdgeLimits,
    /// `[functions]`: what guests may take of the node.
    pub functions: FunctionsConfig,
    /// `[log]`: what the node writes about itself.
    pub log: LogConfig,
    /// `[traces]`: where spans go, if anywhere.
    pub traces: Option<TracesConfig>,
    /// `[kafka]`: how brokers are reached, if there are some.
    pub kafka: Option<ebb_bus::Settings>,
    /// `index.cache`: memory for the indexes of the log, in bytes.
    pub index_cache: u64,
    /// `apps.open`: apps that may be open at the same time.
    pub apps_open: usize,
    /// `apps.idle`: how long an app stays open without being used.
    pub app_idle: Duration,
    /// `drain`: how long requests in flight may take at shutdown.
    pub drain: Duration,
}

/// `[control]`.
#[derive(Clone, Debug)]
pub struct ControlConfig {
    /// `address`. Only with a token may it be another than a loopback address.
    pub address: SocketAddr,
    /// `token`: what every request but the probes must carry, if there is one. Who shows it is `operator`.
    pub auth: Arc<Authenticator>,
    /// `hosts`: host names that requests may be for, besides IP addresses and `localhost`; lower case.
    pub hosts: Vec<String>,
}

/// `[limits]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EdgeLimits {
    /// `body`: bytes of a request's body on the data plane.
    pub body: usize,
    /// `connections`: open connections of the data plane; one more is answered 503.
    pub connections: usize,
    /// `live`: live event streams; one more is answered 503.
    pub live: usize,
    /// `header-timeout`: how long a connection may be idle, a request's head may take, and what was sent may be left unread.
    pub header_timeout: Duration,
    /// `body-timeout`: how long a request's body may take.
    pub body_timeout: Duration,
    /// `wait`: what `Ebb-Wait` may ask for at most.
    pub wait: Duration,
}

/// `[functions]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunctionsConfig {
    /// `memory`: bytes that instances and loaded code may take together.
    pub memory: u64,
    /// `concurrency`: calls at once, of all functions together.
    pub concurrency: usize,
    /// `idle`: how long code that nobody runs stays in memory.
    pub idle: Duration,
    /// `compile`: how long a module may take to compile.
    pub compile: Duration,
    /// `secrets`: the folder that has them, `APP/NAME`.
    pub secrets: Option<PathBuf>,
    /// `weights`: apps whose share, where apps compete, is not 1.
    pub weights: BTreeMap<AppName, u32>,
    /// `max-memory`, `max-cpu`, `max-wall`: what one function's limits may be at most, whatever its manifest says.
    pub most: Limits,
}

/// `[log]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// `format`.
    pub format: LogFormat,
    /// `level`: a level, or directives as `RUST_LOG` takes them: `info,ebb_store=debug`.
    pub level: String,
}

/// `[traces]`.
#[derive(Clone, PartialEq)]
pub struct TracesConfig {
    /// `endpoint`, with the path that spans are sent to.
    pub endpoint: String,
    /// `headers`: sent along, a token for example.
    pub headers: Vec<(String, String)>,
    /// `service`: what the node calls itself.
    pub service: String,
    /// `sample`: the part of the traces that begin here that is recorded, from 0 to 1.
    pub sample: f64,
}

impl TracesConfig {
    /// The endpoint without what may be a secret in it.
    pub(crate) fn endpoint_shown(&self) -> &str {
        self.endpoint.split('?').next().unwrap_or_default()
    }
}

impl fmt::Debug for TracesConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Values of headers are secrets.
        let headers: Vec<_> = self.headers.iter().map(|(name, _)| name).collect();
        f.debug_struct("TracesConfig")
            .field("endpoint", &self.endpoint_shown())
            .field("headers", &headers)
            .field("service", &self.service)
            .field("sample", &self.sample)
            .finish()
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Config {
    /// The file that is read where the caller names none, if it is there.
    pub const FILE: &'static str = "ebbtide.toml";

    /// Settings from a file (or [`Config::FILE`] in the working folder, where there is one), the process's
    /// environment and flags. A flag is a setting's key and its value as text: `("http.address", "127.0.0.1:0")`.
    ///
    /// # Errors
    /// The file can't be read, or everything that is wrong in any of the three.
    pub fn load(file: Option<&Path>, flags: &[(&str, String)]) -> Result<Self, ConfigProblems> {
        let path = file.unwrap_or(Path::new(Self::FILE));
        let text = match std::fs::read_to_string(path) {
            Ok(text) => Some(text),
            Err(error) if file.is_none() && error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(ConfigProblems::unreadable(path, &error)),
        };
        let file = text.as_deref().map(|text| (path.display().to_string(), text));
        Self::parse(file, |name| std::env::var(name).ok(), flags)
    }

    /// Settings from a file's name and text, an environment and flags.
    ///
    /// # Errors
    /// Everything that is wrong in any of the three.
    pub fn parse(
        file: Option<(String, &str)>,
        env: impl Fn(&str) -> Option<String>,
        flags: &[(&str, String)],
    ) -> Result<Self, ConfigProblems> {
        read::parse(file, env, flags)
    }

    /// Settings for an embedded node: everything at its default, free ports on the loopback interface.
    #[must_use]
    pub fn embedded(data: impl Into<PathBuf>) -> Self {
        let mut config = Self::parse(None, |_| None, &[]).expect("the defaults are valid");
        config.data = data.into();
        config.http.set_port(0);
        config.control.address.set_port(0);
        config
    }
}
