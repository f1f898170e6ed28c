//! From text to [`Config`].

use super::{Config, ControlConfig, EdgeLimits, FunctionsConfig, LogConfig, LogFormat, TracesConfig, memory};
use crate::auth::{AuthConfig, Authenticator, Secret, TokenConfig};
use ebb_domain::limits::{Limits, cap};
use ebb_domain::name::AppName;
use ebb_domain::quantity::{parse_bytes, parse_duration};
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use toml::de::{DeTable, DeValue};

/// One setting, as the file and the environment name it.
#[derive(Debug)]
pub struct Setting {
    /// Its key in the file: `http.address`.
    pub key: &'static str,
    /// The variable that overrides it.
    pub variable: &'static str,
    /// What it takes, by example.
    pub takes: &'static str,
    /// What it is where nobody says.
    pub default: &'static str,
}

macro_rules! settings {
    ($($name:ident = $key:literal, $variable:literal, $takes:literal, $default:literal;)*) => {
        $(const $name: Setting = Setting { key: $key, variable: $variable, takes: $takes, default: $default };)*
        /// Every setting but those under `[auth]`.
        pub const SETTINGS: &[Setting] = &[$($name),*];
    };
}

settings! {
    DATA = "data", "EBB_DATA", "a folder", "ebb-data";
    DRAIN = "drain", "EBB_DRAIN", "a duration, as in \"10s\"", "10s";
    HTTP = "http.address", "EBB_HTTP", "an IP address and a port, as in \"127.0.0.1:8080\"", "127.0.0.1:8080";
    CONTROL = "control.address", "EBB_CONTROL", "an IP address and a port, as in \"127.0.0.1:8081\"", "127.0.0.1:8081";
    SCALER = "scaler.address", "EBB_SCALER", "an IP address and a port, as in \"0.0.0.0:8082\"", "";
    TOKEN = "control.token", "EBB_CONTROL_TOKEN", "16 or more letters, digits and -._~+/=", "";
    HOSTS = "control.hosts", "EBB_CONTROL_HOSTS", "host names, as in [\"ebb.internal\"]", "";
    BODY = "limits.body", "EBB_LIMITS_BODY", "a size from 1KiB to 64MiB", "1MiB";
    CONNECTIONS = "limits.connections", "EBB_LIMITS_CONNECTIONS", "a number from 1 to 1000000", "8192";
    LIVE = "limits.live", "EBB_LIMITS_LIVE", "a number from 1 to 1000000", "1024";
    HEADER_TIMEOUT = "limits.header-timeout", "EBB_LIMITS_HEADER_TIMEOUT", "a duration from \"1s\" to \"1h\"", "60s";
    BODY_TIMEOUT = "limits.body-timeout", "EBB_LIMITS_BODY_TIMEOUT", "a duration from \"1s\" to \"1h\"", "30s";
    WAIT = "limits.wait", "EBB_LIMITS_WAIT", "a duration up to \"10min\"", "30s";
    MEMORY = "functions.memory", "EBB_FUNCTIONS_MEMORY", "a size from 16MiB to 4096GiB, or \"auto\": half of what this process may use", "auto";
    CONCURRENCY = "functions.concurrency", "EBB_FUNCTIONS_CONCURRENCY", "a number from 1 to 100000", "512";
    IDLE = "functions.idle", "EBB_FUNCTIONS_IDLE", "a duration from \"1s\" to \"24h\"", "10min";
    COMPILE = "functions.compile", "EBB_FUNCTIONS_COMPILE", "a duration from \"1s\" to \"1h\"", "60s";
    WEIGHTS = "functions.weights", "EBB_FUNCTIONS_WEIGHTS", "apps with weights from 1 to 1000, as in [\"bank=3\"]", "";
    SECRETS = "functions.secrets", "EBB_FUNCTIONS_SECRETS", "a folder", "";
    MAX_MEMORY = "functions.max-memory", "EBB_FUNCTIONS_MAX_MEMORY", "a size from 1MiB to 1GiB", "1GiB";
    MAX_CPU = "functions.max-cpu", "EBB_FUNCTIONS_MAX_CPU", "a duration from \"1s\" to \"15min\"", "15min";
    MAX_WALL = "functions.max-wall", "EBB_FUNCTIONS_MAX_WALL", "a duration from \"1s\" to \"15min\"", "15min";
    FORMAT = "log.format", "EBB_LOG_FORMAT", "\"text\" or \"json\"", "text";
    LEVEL = "log.level", "EBB_LOG", "a level or directives, as in \"info,ebb_store=debug\"", "info";
    APPS_OPEN = "apps.open", "EBB_APPS_OPEN", "a number from 1 to 100000", "256";
    APP_IDLE = "apps.idle", "EBB_APPS_IDLE", "a duration from \"10ms\" to \"24h\"", "10min";
    TRACES = "traces.endpoint", "OTEL_EXPORTER_OTLP_ENDPOINT", "an http or https URL without a password, as in \"http://127.0.0.1:4318\"", "";
    TRACES_HEADERS = "traces.headers", "OTEL_EXPORTER_OTLP_HEADERS", "headers, as in \"authorization=Bearer%20TOKEN,x-team=a\"", "";
    TRACES_SERVICE = "traces.service", "OTEL_SERVICE_NAME", "a name", "ebbtide";
    TRACES_SAMPLE = "traces.sample", "OTEL_TRACES_SAMPLER_ARG", "a part from 0 to 1, as in \"0.01\"", "1";
    KAFKA = "kafka.brokers", "EBB_KAFKA", "brokers, as in \"broker-1:9092,broker-2:9092\"", "";
    KAFKA_TLS = "kafka.tls", "EBB_KAFKA_TLS", "\"on\" or \"off\"", "off";
    KAFKA_CA = "kafka.ca", "EBB_KAFKA_CA", "a file", "";
    KAFKA_CERTIFICATE = "kafka.certificate", "EBB_KAFKA_CERTIFICATE", "a file", "";
    KAFKA_KEY = "kafka.key", "EBB_KAFKA_KEY", "a file", "";
    KAFKA_SASL = "kafka.sasl", "EBB_KAFKA_SASL", "\"PLAIN\", \"SCRAM-SHA-256\" or \"SCRAM-SHA-512\"", "";
    KAFKA_USERNAME = "kafka.username", "EBB_KAFKA_USERNAME", "a name", "";
    KAFKA_PASSWORD = "kafka.password", "EBB_KAFKA_PASSWORD", "a password", "";
    KAFKA_PASSWORD_FILE = "kafka.password-file", "EBB_KAFKA_PASSWORD_FILE", "a file", "";
    KAFKA_OPTIONS = "kafka.options", "EBB_KAFKA_OPTIONS", "librdkafka's own settings, as in [\"socket.keepalive.enable=true\"]", "";
    CACHE = "index.cache", "EBB_INDEX_CACHE", "a size from 1MiB to 64GiB", "64MiB";
}

const TOP_LEVEL: &str = "data, drain, [http], [control], [scaler], [auth], [limits], [functions], [log], [apps], [kafka], [traces] and [index]";

/// One thing that is wrong with the settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigProblem {
    /// Where: `ebbtide.toml`, `EBB_HTTP`, `flag for http.address`.
    pub place: String,
    /// The line, in a file.
    pub line: Option<usize>,
    /// What is wrong, and what to write instead.
    pub message: String,
}

/// Everything that is wrong with the settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigProblems(pub Vec<ConfigProblem>);

impl ConfigProblems {
    pub(super) fn unreadable(path: &Path, error: &std::io::Error) -> Self {
        let message = format!("can't be read: {error}");
        Self(vec![ConfigProblem { place: path.display().to_string(), line: None, message }])
    }
}

impl fmt::Display for ConfigProblems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = self.0.iter().map(|ConfigProblem { place, line, message }| match line {
            Some(line) => format!("{place}:{line}: {message}"),
            None => format!("{place}: {message}"),
        });
        f.write_str(&lines.collect::<Vec<_>>().join("\n"))
    }
}

impl std::error::Error for ConfigProblems {}

/// A file or variable, and the line in a file.
type Place = (String, Option<usize>);

/// What someone wrote for a setting: one text, or a list of them.
struct Given {
    place: Place,
    texts: Vec<String>,
    is_list: bool,
}

struct Reader {
    given: BTreeMap<&'static str, Given>,
    problems: Vec<ConfigProblem>,
}

pub(super) fn parse(
    file: Option<(String, &str)>,
    env: impl Fn(&str) -> Option<String>,
    flags: &[(&str, String)],
) -> Result<Config, ConfigProblems> {
    let mut reader = Reader { given: BTreeMap::new(), problems: Vec::new() };
    let auth = file.map(|(name, text)| reader.file(&name, text));
    for setting in SETTINGS {
        if let Some(text) = env(setting.variable) {
            reader.give(setting, (setting.variable.into(), None), text);
        }
    }
    for (key, text) in flags {
        match SETTINGS.iter().find(|setting| setting.key == *key) {
            Some(setting) => reader.give(setting, (format!("flag for `{key}`"), None), text.clone()),
            None => reader.problem((format!("flag for `{key}`"), None), "is not a setting".into()),
        }
    }
    let config = Config {
        data: reader.text(&DATA).into(),
        http: reader.address(&HTTP),
        control: ControlConfig {
            address: reader.address(&CONTROL),
            auth: reader.token(),
            hosts: reader.list(&HOSTS).into_iter().map(|host| host.to_ascii_lowercase()).collect(),
        },
        scaler: reader.one(&SCALER, |text| match text {
            "" => Some(None),
            _ => address(text).map(Some),
        }),
        auth: auth.unwrap_or_else(|| Arc::new(Authenticator::open_to_all())),
        limits: EdgeLimits {
            body: reader.size(&BODY, (1 << 10)..=(64 << 20)) as usize,
            connections: reader.count(&CONNECTIONS, 1..=1_000_000),
            live: reader.count(&LIVE, 1..=1_000_000),
            header_timeout: reader.duration(&HEADER_TIMEOUT, 1..=3600),
            body_timeout: reader.duration(&BODY_TIMEOUT, 1..=3600),
            wait: reader.duration(&WAIT, 0..=600),
        },
        functions: FunctionsConfig {
            memory: reader.one(&MEMORY, |text| match text {
                "auto" => Some(memory::half()),
                _ => parse_bytes(text).ok().filter(|size| ((16 << 20)..=(4 << 40)).contains(size)),
            }),
            concurrency: reader.count(&CONCURRENCY, 1..=100_000),
            idle: reader.duration(&IDLE, 1..=24 * 3600),
            compile: reader.duration(&COMPILE, 1..=3600),
            secrets: reader.one(&SECRETS, |text| Some((!text.is_empty()).then(|| text.into()))),
            weights: reader.weights(),
            most: Limits {
                memory_bytes: reader.size(&MAX_MEMORY, (1 << 20)..=cap::MEMORY_BYTES),
                cpu: reader.duration(&MAX_CPU, 1..=cap::CPU.as_secs()),
                wall: reader.duration(&MAX_WALL, 1..=cap::WALL.as_secs()),
                concurrency: NonZeroU32::new(cap::CONCURRENCY).unwrap_or(NonZeroU32::MIN),
            },
        },
        log: LogConfig {
            format: reader.one(&FORMAT, |text| match text {
                "text" => Some(LogFormat::Text),
                "json" => Some(LogFormat::Json),
                _ => None,
            }),
            level: reader.one(&LEVEL, |text| {
                text.parse::<tracing_subscriber::filter::targets::Targets>().ok().map(|_| text.to_owned())
            }),
        },
        traces: reader.traces(),
        kafka: reader.kafka(),
        index_cache: reader.size(&CACHE, (1 << 20)..=(64 << 30)),
        apps_open: reader.count(&APPS_OPEN, 1..=100_000),
        app_idle: reader.one(&APP_IDLE, |text| {
            let range = Duration::from_millis(10)..=Duration::from_secs(24 * 3600);
            parse_duration(text).ok().filter(|idle| range.contains(idle))
        }),
        drain: reader.duration(&DRAIN, 0..=3600),
    };
    reader.check(&config);
    // As a reader of the file meets them; variables and flags behind it.
    reader.problems.sort_by_key(|problem| problem.line.unwrap_or(usize::MAX));
    if reader.problems.is_empty() { Ok(config) } else { Err(ConfigProblems(reader.problems)) }
}

/// `name=value,name=value`, values percent-encoded (W3C Baggage, as OpenTelemetry has it).
fn headers(text: &str) -> Option<Vec<(String, String)>> {
    let pairs = text.split(',').map(str::trim).filter(|pair| !pair.is_empty());
    let header = |pair: &str| {
        let (name, value) = pair.split_once('=')?;
        let name: http::HeaderName = name.trim().parse().ok()?;
        let value = crate::http::target::segment(value.trim()).ok()?.into_owned();
        http::HeaderValue::from_str(&value).ok()?;
        Some((name.as_str().to_owned(), value))
    };
    pairs.map(header).collect()
}

impl Reader {
    /// Takes what a file gives, and returns what its `[auth]` makes.
    fn file(&mut self, name: &str, text: &str) -> Arc<Authenticator> {
        let open = Arc::new(Authenticator::open_to_all());
        let line = |at: usize| {
            (
                name.to_owned(),
                Some(text.as_bytes()[..at.min(text.len())].iter().filter(|b| **b == b'\n').count() + 1),
            )
        };
        let root = match DeTable::parse(text) {
            Ok(root) => root.into_inner(),
            Err(error) => {
                let place = line(error.span().map_or(0, |span| span.start));
                self.problem(place, error.message().to_owned());
                return open;
            }
        };
        for (section, value) in &root {
            let key = &**section.get_ref();
            match value.get_ref() {
                DeValue::Table(_) if key == "auth" => {}
                DeValue::Table(table) => {
                    for (name, value) in table {
                        let key = format!("{key}.{}", name.get_ref());
                        self.take(&key, line(name.span().start), value.get_ref());
                    }
                }
                value => self.take(key, line(section.span().start), value),
            }
        }
        #[derive(serde::Deserialize)]
        struct Whole {
            #[serde(default)]
            auth: AuthConfig,
        }
        match toml::from_str::<Whole>(text) {
            Ok(Whole { auth }) => match Authenticator::new(auth) {
                Ok(auth) => return Arc::new(auth),
                Err(error) => self.problem((name.to_owned(), None), error.to_string()),
            },
            // Not the error's full text: it quotes the line, which may have a token.
            Err(error) => {
                let place = line(error.span().map_or(0, |span| span.start));
                self.problem(place, error.message().to_owned());
            }
        }
        open
    }

    fn take(&mut self, key: &str, place: Place, value: &DeValue<'_>) {
        let Some(setting) = SETTINGS.iter().find(|setting| setting.key == key) else {
            let section = key.split_once('.').map(|(section, _)| section);
            let in_section: Vec<_> = SETTINGS
                .iter()
                .map(|setting| setting.key)
                .filter(|known| {
                    section.is_some_and(|section| {
                        known.strip_prefix(section).is_some_and(|k| k.starts_with('.'))
                    })
                })
                .collect();
            let message = if in_section.is_empty() {
                format!("`{key}` is not a setting; there are {TOP_LEVEL}")
            } else {
                format!("`{key}` is not a setting; there are {}", in_section.join(", "))
            };
            return self.problem(place, message);
        };
        let scalar = |value: &DeValue<'_>| match value {
            DeValue::String(text) => Some(text.to_string()),
            DeValue::Integer(integer) if integer.radix() == 10 => Some(integer.as_str().to_owned()),
            _ => None,
        };
        let (texts, is_list) = match value {
            DeValue::Array(values) => (values.iter().map(|value| scalar(value.get_ref())).collect(), true),
            value => (scalar(value).map(|text| vec![text]), false),
        };
        match texts {
            Some(texts) => {
                self.given.insert(setting.key, Given { place, texts, is_list });
            }
            None => self.problem(place, format!("`{key}` takes {}", setting.takes)),
        }
    }

    fn give(&mut self, setting: &Setting, place: Place, text: String) {
        self.given.insert(setting.key, Given { place, texts: vec![text], is_list: false });
    }

    fn problem(&mut self, (place, line): Place, message: String) {
        self.problems.push(ConfigProblem { place, line, message });
    }

    /// A value, or a problem and the default, so that reading goes on.
    fn one<T>(&mut self, setting: &Setting, read: impl Fn(&str) -> Option<T>) -> T {
        if let Some(given) = self.given.get(setting.key) {
            let text = (!given.is_list).then(|| given.texts[0].trim());
            if let Some(value) = text.and_then(&read) {
                return value;
            }
            let shown = text.map_or_else(|| "a list".into(), |text| format!("`{text}`"));
            let message = format!("`{}` is {shown}; it takes {}", setting.key, setting.takes);
            let place = given.place.clone();
            self.problem(place, message);
        }
        read(setting.default).expect("every default is valid")
    }

    /// A value that is not shown where it is wrong: a password may be in it. None then.
    fn untold<T>(&mut self, setting: &Setting, read: impl Fn(&str) -> Option<T>) -> Option<T> {
        let value = self.one(setting, |text| Some(read(text)));
        if value.is_none() {
            let place = self.given.get(setting.key).map(|given| given.place.clone());
            self.problem(place.unwrap_or_default(), format!("`{}` takes {}", setting.key, setting.takes));
        }
        value
    }

    fn text(&mut self, setting: &Setting) -> String {
        self.one(setting, |text| (!text.is_empty()).then(|| text.to_owned()))
    }

    fn address(&mut self, setting: &Setting) -> SocketAddr {
        self.one(setting, address)
    }

    fn count(&mut self, setting: &Setting, range: RangeInclusive<usize>) -> usize {
        self.one(setting, |text| text.parse().ok().filter(|count| range.contains(count)))
    }

    fn size(&mut self, setting: &Setting, range: RangeInclusive<u64>) -> u64 {
        self.one(setting, |text| parse_bytes(text).ok().filter(|size| range.contains(size)))
    }

    fn duration(&mut self, setting: &Setting, seconds: RangeInclusive<u64>) -> Duration {
        let (least, most) = (Duration::from_secs(*seconds.start()), Duration::from_secs(*seconds.end()));
        self.one(setting, |text| {
            parse_duration(text).ok().filter(|duration| (least..=most).contains(duration))
        })
    }

    /// Where spans go; nowhere without an endpoint. An empty variable is one that is not set, as OpenTelemetry has it.
    fn traces(&mut self) -> Option<TracesConfig> {
        let endpoint = self.untold(&TRACES, |text| match text.parse::<http::Uri>() {
            _ if text.is_empty() => Some(None),
            Ok(uri) => {
                let speaks = matches!(uri.scheme_str(), Some("http" | "https"));
                let open = uri.authority().is_some_and(|authority| !authority.as_str().contains('@'));
                (speaks && open).then(|| Some(format!("{}/v1/traces", text.trim_end_matches('/'))))
            }
            Err(_) => None,
        });
        let endpoint = endpoint.flatten();
        let headers = self.untold(&TRACES_HEADERS, headers).unwrap_or_default();
        let service = self.one(&TRACES_SERVICE, |text| {
            Some(if text.is_empty() { TRACES_SERVICE.default } else { text }.to_owned())
        });
        let sample = self.one(&TRACES_SAMPLE, |text| match text {
            "" => Some(1.0),
            text => text.parse().ok().filter(|part| (0.0..=1.0).contains(part)),
        });
        endpoint.map(|endpoint| TracesConfig { endpoint, headers, service, sample })
    }

    /// How brokers are reached; there are none without `kafka.brokers`.
    fn kafka(&mut self) -> Option<ebb_bus::Settings> {
        let given = |reader: &Self, setting: &Setting| {
            reader.given.get(setting.key).map(|given| given.place.clone()).unwrap_or_default()
        };
        let brokers = self.list(&KAFKA).join(",");
        let tls = self.one(&KAFKA_TLS, |text| match text {
            "on" => Some(true),
            "off" => Some(false),
            _ => None,
        });
        let file = |reader: &mut Self, setting: &Setting| {
            reader.one(setting, |text| Some((!text.is_empty()).then(|| std::path::PathBuf::from(text))))
        };
        let [ca, certificate, key] =
            [&KAFKA_CA, &KAFKA_CERTIFICATE, &KAFKA_KEY].map(|setting| file(self, setting));
        if !tls && (ca.is_some() || certificate.is_some() || key.is_some()) {
            let place = given(self, &KAFKA_CA);
            self.problem(
                place,
                "`kafka.ca`, `certificate` and `key` are for `kafka.tls = \"on\"`".to_owned(),
            );
        }
        let mechanism = self.one(&KAFKA_SASL, |text| {
            ["", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"].contains(&text).then(|| text.to_owned())
        });
        let username = self.one(&KAFKA_USERNAME, |text| Some(text.to_owned()));
        let mut password = self.one(&KAFKA_PASSWORD, |text| Some(text.to_owned()));
        if let Some(path) = file(self, &KAFKA_PASSWORD_FILE) {
            match std::fs::read_to_string(&path) {
                Ok(text) => password = text.trim_end_matches(['\r', '\n']).to_owned(),
                Err(error) => {
                    let place = given(self, &KAFKA_PASSWORD_FILE);
                    self.problem(
                        place,
                        format!("`kafka.password-file` can't be read: {}: {error}", path.display()),
                    );
                }
            }
        }
        let sasl = (!mechanism.is_empty()).then_some(ebb_bus::Sasl { mechanism, username, password });
        if let Some(sasl) = &sasl
            && (sasl.username.is_empty() || sasl.password.is_empty())
        {
            let place = given(self, &KAFKA_SASL);
            let message =
                "`kafka.sasl` needs `kafka.username`, and `kafka.password` or `kafka.password-file`";
            self.problem(place, message.to_owned());
        }
        let mut options = Vec::new();
        for text in self.list(&KAFKA_OPTIONS) {
            match text.split_once('=') {
                Some((name, value)) => options.push((name.trim().to_owned(), value.trim().to_owned())),
                None => {
                    // Without its value, which may be a secret.
                    let place = given(self, &KAFKA_OPTIONS);
                    self.problem(place, format!("`{}` takes {}", KAFKA_OPTIONS.key, KAFKA_OPTIONS.takes));
                }
            }
        }
        let tls = tls.then_some(ebb_bus::Tls { ca, certificate, key });
        (!brokers.is_empty()).then(|| ebb_bus::Settings { brokers, node: String::new(), tls, sasl, options })
    }

    fn list(&mut self, setting: &Setting) -> Vec<String> {
        match self.given.get(setting.key) {
            Some(given) if given.is_list => given.texts.clone(),
            Some(given) => given.texts[0]
                .split(',')
                .map(|text| text.trim().to_owned())
                .filter(|t| !t.is_empty())
                .collect(),
            None => Vec::new(),
        }
    }

    fn weights(&mut self) -> BTreeMap<AppName, u32> {
        let mut weights = BTreeMap::new();
        for text in self.list(&WEIGHTS) {
            let weight = text.split_once('=').and_then(|(app, weight)| {
                let weight = weight.trim().parse().ok().filter(|weight| (1..=1000).contains(weight))?;
                Some((AppName::new(app.trim()).ok()?, weight))
            });
            if let Some((app, weight)) = weight {
                weights.insert(app, weight);
                continue;
            }
            let place = self.given.get(WEIGHTS.key).map_or_else(Place::default, |given| given.place.clone());
            self.problem(place, format!("`{}` has `{text}`; it takes {}", WEIGHTS.key, WEIGHTS.takes));
        }
        weights
    }

    fn token(&mut self) -> Arc<Authenticator> {
        let Some(given) = self.given.get(TOKEN.key) else { return Arc::new(Authenticator::open_to_all()) };
        let place = given.place.clone();
        let token = TokenConfig {
            actor: "operator".into(),
            token: Some(Secret::new(
                given.texts.first().filter(|_| !given.is_list).cloned().unwrap_or_default(),
            )),
            sha256: None,
        };
        match Authenticator::new(AuthConfig { tokens: vec![token], ..AuthConfig::default() }) {
            Ok(auth) => return Arc::new(auth),
            // Its value is never part of a message.
            Err(_) => self.problem(place, format!("`{}` takes {}", TOKEN.key, TOKEN.takes)),
        }
        Arc::new(Authenticator::open_to_all())
    }

    /// Rules that concern more than one setting.
    fn check(&mut self, config: &Config) {
        let control = &config.control;
        if !control.address.ip().is_loopback() && !self.given.contains_key(TOKEN.key) {
            let place = self.given.get(CONTROL.key).map_or_else(Place::default, |given| given.place.clone());
            let message = format!(
                "`control.address` is {}, which others can reach: set `control.token` as well, or use a loopback address",
                control.address
            );
            self.problem(place, message);
        }
        if control.address == config.http && control.address.port() != 0 {
            let place = self
                .given
                .get(CONTROL.key)
                .or(self.given.get(HTTP.key))
                .map_or_else(Place::default, |given| given.place.clone());
            self.problem(place, format!("`control.address` and `http.address` are both {}", config.http));
        }
        for (other, address) in [(&HTTP, config.http), (&CONTROL, control.address)] {
            if let Some(scaler) = config.scaler.filter(|scaler| *scaler == address && address.port() != 0) {
                let place =
                    self.given.get(SCALER.key).map_or_else(Place::default, |given| given.place.clone());
                self.problem(place, format!("`{}` and `{}` are both {scaler}", SCALER.key, other.key));
            }
        }
    }
}

fn address(text: &str) -> Option<SocketAddr> {
    // `localhost` by name is what people write; anything else that needs resolving may mean several addresses.
    match text.strip_prefix("localhost:") {
        Some(port) => format!("127.0.0.1:{port}").parse().ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_file(text: &str) -> Result<Config, ConfigProblems> {
        Config::parse(Some(("ebbtide.toml".into(), text)), |_| None, &[])
    }

    #[test]
    fn a_flag_wins_over_a_variable_and_a_variable_over_the_file() {
        let text = "data = 'file'\nhttp.address = '127.0.0.1:1'\n[limits]\nbody = '2MiB'\n";
        let env = |name: &str| match name {
            "EBB_DATA" => Some("variable".into()),
            "EBB_HTTP" => Some("127.0.0.1:2".into()),
            _ => None,
        };
        let flags = [("data", "flag".to_owned())];
        let config = Config::parse(Some(("ebbtide.toml".into(), text)), env, &flags).unwrap();
        assert_eq!(config.data, Path::new("flag"));
        assert_eq!(config.http.port(), 2);
        assert_eq!(config.limits.body, 2 << 20);
    }

    #[test]
    fn spans_go_where_the_variable_says_and_what_may_be_a_token_is_not_shown() {
        let traces = |endpoint: &'static str, headers: &'static str| {
            let env = move |name: &str| match name {
                "OTEL_EXPORTER_OTLP_ENDPOINT" => Some(endpoint.to_owned()),
                "OTEL_EXPORTER_OTLP_HEADERS" => Some(headers.to_owned()),
                "OTEL_SERVICE_NAME" => Some(String::new()),
                _ => None,
            };
            Config::parse(None, env, &[]).map(|config| config.traces)
        };
        assert_eq!(traces("", ""), Ok(None), "an empty variable is one that is not set");
        let config =
            traces("http://127.0.0.1:4318/", "authorization=Bearer%20secret, x-a=b").unwrap().unwrap();
        assert_eq!((&*config.endpoint, &*config.service), ("http://127.0.0.1:4318/v1/traces", "ebbtide"));
        assert_eq!(config.headers[0], ("authorization".to_owned(), "Bearer secret".to_owned()));
        assert!(!format!("{config:?}").contains("secret"));
        for (endpoint, headers) in
            [("ftp://a", ""), ("http://user:secret@a", ""), ("127.0.0.1:4318", ""), ("http://a", "secret")]
        {
            let problems = traces(endpoint, headers).unwrap_err().to_string();
            assert!(!problems.contains("secret"), "{problems}");
        }
    }

    #[test]
    fn every_problem_is_reported_at_once_with_its_line() {
        let problems = from_file(
            "data = 3.5\ncolour = true\n[http]\naddress = 'nowhere'\nport = 80\n[limits]\nbody = '5TiB'\ndrain = 's'\n[log]\nformat = ['text']\n[control]\ntoken = 'short'\n",
        )
        .unwrap_err();
        insta::assert_snapshot!(problems, @r#"
        ebbtide.toml:1: `data` takes a folder
        ebbtide.toml:2: `colour` is not a setting; there are data, drain, [http], [control], [scaler], [auth], [limits], [functions], [log], [apps], [kafka], [traces] and [index]
        ebbtide.toml:4: `http.address` is `nowhere`; it takes an IP address and a port, as in "127.0.0.1:8080"
        ebbtide.toml:5: `http.port` is not a setting; there are http.address
        ebbtide.toml:7: `limits.body` is `5TiB`; it takes a size from 1KiB to 64MiB
        ebbtide.toml:8: `limits.drain` is not a setting; there are limits.body, limits.connections, limits.live, limits.header-timeout, limits.body-timeout, limits.wait
        ebbtide.toml:10: `log.format` is a list; it takes "text" or "json"
        ebbtide.toml:12: `control.token` takes 16 or more letters, digits and -._~+/=
        "#);
    }

    #[test]
    fn a_control_address_that_others_reach_needs_a_token() {
        let problems = from_file("control.address = '0.0.0.0:8081'").unwrap_err();
        assert_eq!(problems.0.len(), 1);
        assert!(problems.to_string().contains("control.token"), "{problems}");
        assert!(from_file("[control]\naddress = '0.0.0.0:8081'\ntoken = '0123456789abcdef'").is_ok());
    }

    #[test]
    fn a_token_is_never_shown() {
        let config = from_file("control.token = 'a-very-secret-token'").unwrap();
        assert!(!format!("{config:?}").contains("a-very-secret-token"));
        let problems = from_file("control.token = 'tooshort'").unwrap_err();
        assert!(!problems.to_string().contains("tooshort"));
    }

    #[test]
    fn what_functions_may_take_is_the_operators_to_say() {
        let config = from_file(
            "[functions]\nmemory = '256MiB'\nweights = ['bank=3', 'shop = 2']\nmax-memory = '32MiB'",
        )
        .unwrap()
        .functions;
        assert_eq!((config.memory, config.concurrency, config.most.memory_bytes), (256 << 20, 512, 32 << 20));
        assert_eq!(config.weights.values().collect::<Vec<_>>(), [&3, &2]);
        let flag = Config::parse(None, |_| None, &[("functions.memory", "1GiB".to_owned())]).unwrap();
        assert_eq!(flag.functions.memory, 1 << 30);
        let problems = from_file("[functions]\nmemory = '1MiB'\nweights = ['bank', 'shop=0']").unwrap_err();
        insta::assert_snapshot!(problems, @r#"
        ebbtide.toml:2: `functions.memory` is `1MiB`; it takes a size from 16MiB to 4096GiB, or "auto": half of what this process may use
        ebbtide.toml:3: `functions.weights` has `bank`; it takes apps with weights from 1 to 1000, as in ["bank=3"]
        ebbtide.toml:3: `functions.weights` has `shop=0`; it takes apps with weights from 1 to 1000, as in ["bank=3"]
        "#);
    }

    #[test]
    fn brokers_are_reached_as_the_settings_say_and_credentials_are_never_shown() {
        let kafka = |text: &str| from_file(&format!("[kafka]\n{text}")).map(|config| config.kafka);
        assert_eq!(kafka("tls = 'off'"), Ok(None), "there are none without brokers");
        let full = "brokers = ['a:9092', 'b:9092']\ntls = 'on'\nsasl = 'SCRAM-SHA-256'\nusername = 'node'\npassword = 'hush hush'";
        let settings = kafka(full).unwrap().unwrap();
        assert_eq!((&*settings.brokers, settings.tls.is_some()), ("a:9092,b:9092", true));
        assert!(!format!("{settings:?}").contains("hush"));
        for wrong in [
            "sasl = 'PLAIN'",
            "sasl = 'KERBEROS'",
            "ca = 'ca.pem'",
            "options = ['hush']",
            "password-file = '/nowhere/x'",
        ] {
            let problems = kafka(&format!("brokers = 'a:9092'\n{wrong}")).unwrap_err().to_string();
            assert!(!problems.contains("hush"), "{problems}");
        }
    }

    #[test]
    fn a_list_is_one_in_the_file_and_commas_elsewhere() {
        let file = from_file("control.hosts = ['Ebb', 'b.internal']").unwrap();
        let env = |name: &str| (name == "EBB_CONTROL_HOSTS").then(|| "ebb, b.internal".into());
        let variable = Config::parse(None, env, &[]).unwrap();
        assert_eq!(file.control.hosts, ["ebb", "b.internal"]);
        assert_eq!(variable.control.hosts, file.control.hosts);
    }
}
