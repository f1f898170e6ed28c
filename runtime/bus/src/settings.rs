//! How the brokers are reached.

use rdkafka::ClientConfig;
use std::fmt;
use std::path::PathBuf;

/// What an operator says of Kafka.
#[derive(Clone, PartialEq, Eq)]
pub struct Settings {
    /// `host:port`, with commas in between.
    pub brokers: String,
    /// Names this node among others, for static membership.
    pub node: String,
    /// Encryption; none: plain text.
    pub tls: Option<Tls>,
    /// How the node says who it is.
    pub sasl: Option<Sasl>,
    /// What librdkafka is told besides, by its own names.
    pub options: Vec<(String, String)>,
}

/// Encryption.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// Certificates of those who may sign the brokers'; none: the system's.
    pub ca: Option<PathBuf>,
    /// The node's own certificate.
    pub certificate: Option<PathBuf>,
    /// And its key.
    pub key: Option<PathBuf>,
}

/// How the node says who it is.
#[derive(Clone, PartialEq, Eq)]
pub struct Sasl {
    /// `PLAIN`, `SCRAM-SHA-256` or `SCRAM-SHA-512`.
    pub mechanism: String,
    /// The name.
    pub username: String,
    /// A secret.
    pub password: String,
}

impl fmt::Debug for Sasl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sasl")
            .field("mechanism", &self.mechanism)
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Values of options may be secrets.
        let options: Vec<_> = self.options.iter().map(|(name, _)| name).collect();
        f.debug_struct("Settings")
            .field("brokers", &self.brokers)
            .field("node", &self.node)
            .field("tls", &self.tls)
            .field("sasl", &self.sasl)
            .field("options", &options)
            .finish()
    }
}

impl Settings {
    /// Plain text, to these brokers.
    #[must_use]
    pub fn plain(brokers: impl Into<String>, node: impl Into<String>) -> Self {
        Self { brokers: brokers.into(), node: node.into(), tls: None, sasl: None, options: Vec::new() }
    }

    /// What every client is made with.
    pub(crate) fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.brokers)
            .set("client.id", format!("ebbtide-{}", self.node))
            // A broker that was away is to be found again soon, and not asked all the time.
            .set("reconnect.backoff.ms", "100")
            .set("reconnect.backoff.max.ms", "2000")
            .set("topic.metadata.refresh.interval.ms", "30000")
            .set("broker.address.family", "any")
            .set("allow.auto.create.topics", "false");
        let protocol = match (&self.tls, &self.sasl) {
            (None, None) => "PLAINTEXT",
            (Some(_), None) => "SSL",
            (None, Some(_)) => "SASL_PLAINTEXT",
            (Some(_), Some(_)) => "SASL_SSL",
        };
        config.set("security.protocol", protocol);
        if let Some(tls) = &self.tls {
            for (name, path) in [
                ("ssl.ca.location", &tls.ca),
                ("ssl.certificate.location", &tls.certificate),
                ("ssl.key.location", &tls.key),
            ] {
                if let Some(path) = path {
                    config.set(name, path.display().to_string());
                }
            }
        }
        if let Some(sasl) = &self.sasl {
            config
                .set("sasl.mechanism", &sasl.mechanism)
                .set("sasl.username", &sasl.username)
                .set("sasl.password", &sasl.password);
        }
        for (name, value) in &self.options {
            config.set(name, value);
        }
        config
    }
}
