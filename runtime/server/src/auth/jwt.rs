//! JWTs (RFC 7519) against the keys that their issuer publishes.

use super::keys::{KeySet, KeySource};
use super::{AuthConfigError, AuthError, is_actor};
use ebb_domain::text::Text;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Validation, decode, decode_header};
use parking_lot::RwLock;
use serde::Deserialize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Keys older than this no longer count: a key that leaked and was withdrawn must not live on because its issuer
/// can't be reached.
const MAX_AGE: Duration = Duration::from_secs(24 * 3600);

/// Between two looks for new keys, at least: tokens with made-up keys must not make us besiege the issuer.
const MIN_INTERVAL: Duration = Duration::from_secs(30);

/// Between two tries as long as there are no keys at all.
const FIRST_RETRY: Duration = Duration::from_secs(5);

/// `[auth.jwt]`. Keys come from a file or from a URL; issuer and audience are always checked.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct JwtConfig {
    /// A file with a JSON Web Key Set (RFC 7517); looked at again every `refresh`.
    #[serde(default)]
    pub jwks_file: Option<PathBuf>,
    /// Where the issuer publishes its key set: `https`, or `http` for a host that is this one.
    #[serde(default)]
    pub jwks_url: Option<String>,
    /// Required `iss`.
    pub issuer: String,
    /// Accepted `aud`: a token must be for one of these.
    pub audience: Vec<String>,
    /// Accepted algorithms.
    #[serde(default = "default_algorithms")]
    pub algorithms: Vec<Algorithm>,
    /// How far clocks may be apart.
    #[serde(default = "default_leeway", deserialize_with = "ebb_domain::quantity::deserialize_duration")]
    pub leeway: Duration,
    /// The claim that names the actor.
    #[serde(default = "default_actor_claim")]
    pub actor_claim: String,
    /// How often to look for new keys, 30 seconds to 24 hours.
    #[serde(default = "default_refresh", deserialize_with = "ebb_domain::quantity::deserialize_duration")]
    pub refresh: Duration,
}

/// Signatures with a public key; a shared secret has no place in a published key set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Algorithm {
    /// RSA PKCS#1 with SHA-256.
    RS256,
    /// ECDSA over P-256 with SHA-256.
    ES256,
    /// Ed25519.
    EdDSA,
}

impl From<Algorithm> for jsonwebtoken::Algorithm {
    fn from(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::RS256 => Self::RS256,
            Algorithm::ES256 => Self::ES256,
            Algorithm::EdDSA => Self::EdDSA,
        }
    }
}

fn default_algorithms() -> Vec<Algorithm> {
    vec![Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA]
}

fn default_leeway() -> Duration {
    Duration::from_secs(30)
}

fn default_actor_claim() -> String {
    "sub".to_owned()
}

fn default_refresh() -> Duration {
    Duration::from_secs(600)
}

/// Keys and when they were read.
struct Fetched {
    keys: Arc<KeySet>,
    at: Instant,
}

pub(super) struct JwtVerifier {
    source: KeySource,
    fetched: RwLock<Option<Fetched>>,
    /// Someone showed a token whose key is not here.
    wanted: Notify,
    refresh: Duration,
    algorithms: Vec<jsonwebtoken::Algorithm>,
    validation: Validation,
    actor_claim: String,
}

impl JwtVerifier {
    pub(super) fn new(config: JwtConfig) -> Result<Self, AuthConfigError> {
        let wrong =
            |setting: &str, problem: &str| AuthConfigError::setting(format!("auth.jwt.{setting}"), problem);
        if config.issuer.is_empty() {
            return Err(wrong("issuer", "is empty; write what tokens have as `iss`"));
        }
        if config.audience.is_empty() || config.audience.iter().any(String::is_empty) {
            return Err(wrong(
                "audience",
                "is empty; without it, a token for any other service would open this one",
            ));
        }
        if config.algorithms.is_empty() {
            return Err(wrong("algorithms", "is empty; leave it out for all of RS256, ES256 and EdDSA"));
        }
        if config.leeway > Duration::from_secs(300) {
            return Err(wrong("leeway", "is more than \"5min\"; set the clocks right instead"));
        }
        if config.actor_claim.is_empty() {
            return Err(wrong("actor-claim", "is empty; leave it out for `sub`"));
        }
        if !(MIN_INTERVAL..=MAX_AGE / 2).contains(&config.refresh) {
            return Err(wrong("refresh", "is not from \"30s\" to \"12h\""));
        }
        let source = match (config.jwks_file, config.jwks_url) {
            (Some(path), None) => KeySource::File(path),
            (None, Some(url)) => KeySource::url(&url).map_err(|problem| wrong("jwks-url", &problem))?,
            _ => return Err(wrong("jwks-file", "write one of `jwks-file` and `jwks-url`")),
        };
        let initial = match &source {
            KeySource::File(path) => Some(
                KeySet::read(path)
                    .map_err(|problem| AuthConfigError::KeyFile { path: path.clone(), problem })?,
            ),
            KeySource::Url { .. } => None,
        };
        let algorithms: Vec<jsonwebtoken::Algorithm> =
            config.algorithms.into_iter().map(Into::into).collect();
        let mut validation = Validation::new(algorithms[0]);
        validation.set_issuer(&[&config.issuer]);
        validation.set_audience(&config.audience);
        validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        validation.validate_nbf = true;
        validation.leeway = config.leeway.as_secs();
        Ok(Self {
            source,
            fetched: RwLock::new(initial.map(|keys| Fetched { keys: Arc::new(keys), at: Instant::now() })),
            wanted: Notify::new(),
            refresh: config.refresh,
            algorithms,
            validation,
            actor_claim: config.actor_claim,
        })
    }

    pub(super) fn verify(&self, token: &str) -> Result<Text, AuthError> {
        let header =
            decode_header(token).map_err(|_| AuthError::BadJwt("its header can't be read".to_owned()))?;
        if !self.algorithms.contains(&header.alg) {
            return Err(AuthError::WrongAlgorithm);
        }
        let keys = self.keys()?;
        let mut validation = self.validation.clone();
        validation.algorithms = vec![header.alg];
        let mut result = Err(AuthError::UnknownKey);
        for key in keys.candidates(header.kid.as_deref(), header.alg) {
            result = decode::<serde_json::Map<String, serde_json::Value>>(token, key, &validation)
                .map(|token| token.claims)
                .map_err(|error| auth_error(error.kind()));
            // Without a key id, a signature that does not fit says only that it was another of the keys.
            if !matches!(result, Err(AuthError::BadSignature)) {
                break;
            }
        }
        if matches!(result, Err(AuthError::UnknownKey)) {
            self.wanted.notify_one();
        }
        let claims = result?;
        match claims.get(&self.actor_claim).and_then(serde_json::Value::as_str) {
            Some(actor) if is_actor(actor) => Ok(Text::from(actor)),
            Some(_) => Err(AuthError::BadJwt(format!("its `{}` can't be an actor", self.actor_claim))),
            None => {
                Err(AuthError::BadJwt(format!("it has no `{}`, which names the actor", self.actor_claim)))
            }
        }
    }

    fn keys(&self) -> Result<Arc<KeySet>, AuthError> {
        let fetched = self.fetched.read();
        let fresh = fetched.as_ref().filter(|fetched| fetched.at.elapsed() < MAX_AGE);
        let Some(fetched) = fresh else {
            self.wanted.notify_one();
            return Err(AuthError::KeysUnavailable);
        };
        Ok(fetched.keys.clone())
    }

    pub(super) async fn keep_fresh(&self) {
        let mut pause = if self.fetched.read().is_some() { self.refresh } else { Duration::ZERO };
        loop {
            let due = tokio::time::sleep(pause);
            if pause > MIN_INTERVAL {
                tokio::time::sleep(MIN_INTERVAL).await;
                tokio::select! {
                    () = due => {}
                    () = self.wanted.notified() => {}
                }
            } else {
                due.await;
            }
            pause = match self.refetch().await {
                Ok(()) => self.refresh,
                Err(problem) => {
                    tracing::warn!(source = %self.source, problem, "the keys for JWTs could not be fetched");
                    if self.fetched.read().is_some() { MIN_INTERVAL } else { FIRST_RETRY }
                }
            };
        }
    }

    /// Replaces the keys; those that are there stay if it fails.
    pub(super) async fn refetch(&self) -> Result<(), String> {
        let keys = self.source.fetch().await?;
        *self.fetched.write() = Some(Fetched { keys: Arc::new(keys), at: Instant::now() });
        Ok(())
    }
}

fn auth_error(error: &ErrorKind) -> AuthError {
    match error {
        ErrorKind::InvalidSignature => AuthError::BadSignature,
        ErrorKind::ExpiredSignature => AuthError::Expired,
        ErrorKind::ImmatureSignature => AuthError::NotYetValid,
        ErrorKind::InvalidAudience => AuthError::WrongAudience,
        ErrorKind::InvalidIssuer => AuthError::WrongIssuer,
        ErrorKind::InvalidAlgorithm | ErrorKind::UnsupportedAlgorithm => AuthError::WrongAlgorithm,
        ErrorKind::MissingRequiredClaim(claim) => AuthError::BadJwt(format!("it has no `{claim}`")),
        ErrorKind::InvalidClaimFormat(claim) => {
            AuthError::BadJwt(format!("its `{claim}` has the wrong type"))
        }
        _ => AuthError::BadJwt("it can't be read".to_owned()),
    }
}
