//! Who is calling: bearer tokens, static or JWTs, become the actor that commands and events carry.
//!
//! Without any way configured everyone is `anonymous`. With one, a caller without a token is turned away unless
//! `anonymous = true`; a caller with a bad token always is. Checking never waits: keys are fetched beside the
//! requests, by [`Authenticator::keep_fresh`]. No token, and no part of one, is ever logged or put into an error.

mod jwt;
mod keys;
#[cfg(test)]
mod tests;

pub use jwt::{Algorithm, JwtConfig};

use ebb_domain::digest::Digest;
use ebb_domain::manifest::Allow;
use ebb_domain::text::Text;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue, StatusCode};
use jwt::JwtVerifier;
use serde::Deserialize;
use std::fmt;
use std::path::PathBuf;
use thiserror::Error;

/// The actor of a caller who shows no token.
pub const ANONYMOUS: Text = Text::from_static("anonymous");

/// A header with more is not looked at: tokens are short, and hashing is not free.
const MAX_TOKEN_BYTES: usize = 16 << 10;

/// A shorter secret can be guessed.
const MIN_SECRET_BYTES: usize = 16;

/// Actors are recorded with every commit.
const MAX_ACTOR_BYTES: usize = 256;

/// `[auth]` of the operator's settings.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct AuthConfig {
    /// Whether a caller without a token is `anonymous` although tokens are configured.
    pub anonymous: bool,
    /// `[[auth.tokens]]`: static bearer tokens.
    pub tokens: Vec<TokenConfig>,
    /// `[auth.jwt]`: tokens of an issuer.
    pub jwt: Option<JwtConfig>,
}

/// One static token: `{ actor = "importer", token = "…" }`, or with `sha256` instead of `token`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct TokenConfig {
    /// Who shows it.
    pub actor: String,
    /// The token, at least 16 characters.
    #[serde(default)]
    pub token: Option<Secret>,
    /// Its SHA-256 in hexadecimal, so that the file holds no secret: `printf %s "$TOKEN" | sha256sum`.
    #[serde(default)]
    pub sha256: Option<String>,
}

/// Text that is never shown.
#[derive(Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

impl Secret {
    /// Wraps a secret from elsewhere: a flag, a variable.
    #[must_use]
    pub fn new(secret: String) -> Self {
        Self(secret)
    }
}

/// Why `[auth]` can't be used.
#[derive(Debug, Error)]
pub enum AuthConfigError {
    /// A setting's value is not allowed.
    #[error("setting `{setting}`: {problem}")]
    Setting {
        /// `auth.jwt.audience`.
        setting: String,
        /// What is wrong, and what to write.
        problem: String,
    },
    /// The key file can't be used.
    #[error("setting `auth.jwt.jwks-file`: {path}: {problem}", path = path.display())]
    KeyFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

impl AuthConfigError {
    fn setting(setting: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Setting { setting: setting.into(), problem: problem.into() }
    }
}

/// Why a caller is turned away. The texts say nothing of what is configured, and quote no token.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AuthError {
    /// No token, and `anonymous` is not allowed.
    #[error("a bearer token is needed")]
    Missing,
    /// The header is not `Bearer TOKEN`, or is there twice.
    #[error("the Authorization header is not one `Bearer TOKEN`: {0}")]
    Malformed(&'static str),
    /// Nobody's token.
    #[error("the token is not known")]
    Unknown,
    /// A JWT that can't be read, or lacks what it must say.
    #[error("the token is not a usable JWT: {0}")]
    BadJwt(String),
    /// The signature is not by the key that the token names.
    #[error("the token's signature is not valid")]
    BadSignature,
    /// The token's key is not among the issuer's. New keys are looked for at once; a token that was just issued under
    /// one is good a moment later.
    #[error("the token is signed with a key that its issuer does not publish")]
    UnknownKey,
    /// The algorithm is not one that is allowed.
    #[error("the token is signed with an algorithm that is not allowed")]
    WrongAlgorithm,
    /// Its time is over.
    #[error("the token has expired")]
    Expired,
    /// Its time has not come.
    #[error("the token is not valid yet")]
    NotYetValid,
    /// It is meant for someone else.
    #[error("the token is for another audience")]
    WrongAudience,
    /// Someone else issued it.
    #[error("the token is of another issuer")]
    WrongIssuer,
    /// The issuer's keys could not be fetched so far, or not for a day.
    #[error("the token can't be checked now: the issuer's keys could not be fetched")]
    KeysUnavailable,
    /// The actor is known, and not on the `allow` list.
    #[error("{actor} may not use {what}")]
    Forbidden {
        /// The actor.
        actor: Text,
        /// `aggregate account`.
        what: String,
    },
}

impl AuthError {
    /// 401; 403 for an actor who is known; 503 if keys are missing.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Forbidden { .. } => StatusCode::FORBIDDEN,
            Self::KeysUnavailable => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::UNAUTHORIZED,
        }
    }

    /// Stable, for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Missing => "unauthenticated",
            Self::Forbidden { .. } => "forbidden",
            Self::KeysUnavailable => "keys_unavailable",
            Self::Expired => "token_expired",
            Self::NotYetValid => "token_not_yet_valid",
            _ => "token_invalid",
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::Missing | Self::Malformed(_) => "send `Authorization: Bearer TOKEN`",
            Self::Expired => "get a new token",
            Self::NotYetValid => "wait, and compare the clocks of issuer and server",
            Self::UnknownKey => "try again in a moment, or get a new token",
            Self::KeysUnavailable => "try again later",
            Self::Forbidden { .. } => "add the actor to the `allow` list in the manifest",
            _ => return None,
        })
    }

    /// The `WWW-Authenticate` header that every 401 has (RFC 6750, section 3).
    #[must_use]
    pub fn www_authenticate(&self) -> Option<HeaderValue> {
        if self.status() != StatusCode::UNAUTHORIZED {
            return None;
        }
        if *self == Self::Missing {
            return Some(HeaderValue::from_static("Bearer realm=\"ebbtide\""));
        }
        // Quotes and what no header may carry can only come from a JWT's text.
        let described: String = self
            .to_string()
            .chars()
            .filter(|c| (' '..='~').contains(c) && !matches!(c, '"' | '\\'))
            .collect();
        let value =
            format!("Bearer realm=\"ebbtide\", error=\"invalid_token\", error_description=\"{described}\"");
        HeaderValue::try_from(value).ok()
    }
}

/// Tells who is calling.
pub struct Authenticator {
    anonymous: bool,
    /// SHA-256 of each static token, and whose it is.
    tokens: Vec<([u8; 32], Text)>,
    jwt: Option<JwtVerifier>,
}

impl fmt::Debug for Authenticator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authenticator")
            .field("anonymous", &self.anonymous)
            .field("tokens", &self.tokens.len())
            .field("jwt", &self.jwt.is_some())
            .finish()
    }
}

impl Authenticator {
    /// Everyone is `anonymous`.
    #[must_use]
    pub fn open_to_all() -> Self {
        Self { anonymous: true, tokens: Vec::new(), jwt: None }
    }

    /// Checks the settings, and reads the key file if there is one. Keys at a URL are fetched by
    /// [`Authenticator::keep_fresh`], so that an issuer that is down keeps no node from starting.
    ///
    /// # Errors
    /// A setting is wrong, or the key file can't be used.
    pub fn new(config: AuthConfig) -> Result<Self, AuthConfigError> {
        let mut tokens: Vec<([u8; 32], Text)> = Vec::new();
        for (index, token) in config.tokens.into_iter().enumerate() {
            let setting = format!("auth.tokens[{index}]");
            if !is_actor(&token.actor) {
                let problem = format!("`actor` is 1 to {MAX_ACTOR_BYTES} bytes without control characters");
                return Err(AuthConfigError::setting(setting, problem));
            }
            let digest = digest_of(&token).map_err(|problem| AuthConfigError::setting(&setting, problem))?;
            if tokens.iter().any(|(known, _)| *known == digest) {
                let problem = "the same token stands there twice; each actor needs one of its own";
                return Err(AuthConfigError::setting(setting, problem));
            }
            tokens.push((digest, Text::from(token.actor)));
        }
        let jwt = config.jwt.map(JwtVerifier::new).transpose()?;
        let open = tokens.is_empty() && jwt.is_none();
        Ok(Self { anonymous: config.anonymous || open, tokens, jwt })
    }

    /// Whether any token is configured; if not, everyone is `anonymous`.
    #[must_use]
    pub fn is_configured(&self) -> bool {
        !self.tokens.is_empty() || self.jwt.is_some()
    }

    /// The actor of a request. Takes microseconds for a static token, tens of them for a JWT.
    ///
    /// # Errors
    /// There is no token and one is needed, or the token is no good: a bad token never counts as none.
    pub fn authenticate(&self, headers: &HeaderMap) -> Result<Text, AuthError> {
        if !self.is_configured() {
            return Ok(ANONYMOUS);
        }
        let Some(token) = bearer(headers)? else {
            return if self.anonymous { Ok(ANONYMOUS) } else { Err(AuthError::Missing) };
        };
        if let Some(actor) = self.static_actor(token) {
            return Ok(actor);
        }
        match &self.jwt {
            Some(jwt) if token.bytes().filter(|b| *b == b'.').count() == 2 => jwt.verify(token),
            _ => Err(AuthError::Unknown),
        }
    }

    /// Every token is compared, and every byte of it, so that time tells nothing.
    fn static_actor(&self, token: &str) -> Option<Text> {
        let shown = Digest::of(token.as_bytes()).0;
        let mut found = None;
        for (digest, actor) in &self.tokens {
            let difference = digest.iter().zip(&shown).fold(0, |acc, (a, b)| acc | (a ^ b));
            if std::hint::black_box(difference) == 0 {
                found = Some(actor);
            }
        }
        found.cloned()
    }

    /// Fetches the issuer's keys now and again, for as long as it is polled; at once if there is nothing to fetch.
    /// Its owner runs it as a task, and drops it at shutdown.
    pub async fn keep_fresh(&self) {
        if let Some(jwt) = &self.jwt {
            jwt.keep_fresh().await;
        }
    }
}

/// Whether an `allow` list permits the actor.
///
/// # Errors
/// It does not. `what` is what was asked for, for people: `aggregate account`.
pub fn authorize(allow: &Allow, actor: &Text, what: impl FnOnce() -> String) -> Result<(), AuthError> {
    if allow.permits(actor) {
        return Ok(());
    }
    Err(AuthError::Forbidden { actor: actor.clone(), what: what() })
}

fn digest_of(config: &TokenConfig) -> Result<[u8; 32], String> {
    match (&config.token, &config.sha256) {
        (Some(Secret(token)), None) if !is_token(token) => {
            Err("`token` may have letters, digits and -._~+/= only: others can't stand in a header"
                .to_owned())
        }
        (Some(Secret(token)), None) if token.len() < MIN_SECRET_BYTES => Err(format!(
            "`token` has {} characters, and could be guessed; use at least {MIN_SECRET_BYTES}, as from `openssl rand -hex 32`",
            token.len()
        )),
        (Some(Secret(token)), None) => Ok(Digest::of(token.as_bytes()).0),
        (None, Some(digest)) => match digest.parse::<Digest>() {
            Ok(digest) => Ok(digest.0),
            Err(_) => Err("`sha256` is not 64 hexadecimal digits".to_owned()),
        },
        (Some(_), Some(_)) => Err("`token` and `sha256` are both there; keep one".to_owned()),
        (None, None) => Err("neither `token` nor `sha256` is there".to_owned()),
    }
}

/// The token of a request, if it has one.
fn bearer(headers: &HeaderMap) -> Result<Option<&str>, AuthError> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(AuthError::Malformed("it is there twice"));
    }
    let value = value.to_str().map_err(|_| AuthError::Malformed("it is not plain ASCII"))?;
    let (scheme, token) = value.split_once(' ').unwrap_or((value, ""));
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(AuthError::Malformed("the scheme is not Bearer"));
    }
    let token = token.trim_matches(' ');
    if token.len() > MAX_TOKEN_BYTES {
        return Err(AuthError::Malformed("the token is too long"));
    }
    if !is_token(token) {
        return Err(AuthError::Malformed("the token has characters that no token has, or is empty"));
    }
    Ok(Some(token))
}

/// What may stand behind `Bearer` (RFC 6750, section 2.1).
fn is_token(token: &str) -> bool {
    !token.is_empty()
        && token
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~' | b'+' | b'/' | b'='))
}

fn is_actor(actor: &str) -> bool {
    !actor.is_empty() && actor.len() <= MAX_ACTOR_BYTES && !actor.chars().any(char::is_control)
}
