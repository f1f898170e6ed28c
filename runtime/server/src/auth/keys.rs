//! An issuer's public keys (RFC 7517), from a file or from where it publishes them.

use http::header::ACCEPT;
use http::{Request, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A key set at most, in bytes and in keys.
const MAX_BYTES: usize = 256 << 10;
const MAX_KEYS: usize = 100;

const TIMEOUT: Duration = Duration::from_secs(10);

type HttpsClient = Client<HttpsConnector<HttpConnector>, Empty<bytes::Bytes>>;

/// Where keys come from.
pub(super) enum KeySource {
    File(PathBuf),
    Url { url: Uri, client: Box<HttpsClient> },
}

impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Url { url, .. } => url.fmt(f),
        }
    }
}

impl KeySource {
    /// Keys at a URL: who can change the answer can make tokens, so it is `https`, or a host that is this one.
    pub(super) fn url(text: &str) -> Result<Self, String> {
        let url: Uri = text.parse().map_err(|_| format!("\"{text}\" is not a URL"))?;
        let local = matches!(url.host(), Some("localhost" | "127.0.0.1" | "[::1]"));
        match url.scheme_str() {
            Some("https") => {}
            Some("http") if local => {}
            _ => return Err(format!("\"{text}\" is not an https URL; http is for this machine only")),
        }
        if url.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err("a URL with a password in it would be logged; publish the keys openly".to_owned());
        }
        let connector = HttpsConnectorBuilder::new()
            .with_provider_and_native_roots(rustls::crypto::ring::default_provider())
            .map_err(|error| format!("the machine's certificates could not be read: {error}"))?
            .https_or_http()
            .enable_http1()
            .build();
        Ok(Self::Url { url, client: Box::new(Client::builder(TokioExecutor::new()).build(connector)) })
    }

    pub(super) async fn fetch(&self) -> Result<KeySet, String> {
        match self {
            Self::File(path) => {
                let path = path.clone();
                let read = tokio::task::spawn_blocking(move || KeySet::read(&path)).await;
                read.map_err(|error| error.to_string())?
            }
            Self::Url { url, client } => {
                let fetch = tokio::time::timeout(TIMEOUT, download(client, url.clone()));
                let body = fetch.await.map_err(|_| format!("no answer within {TIMEOUT:?}"))??;
                KeySet::parse(&body)
            }
        }
    }
}

async fn download(client: &HttpsClient, url: Uri) -> Result<bytes::Bytes, String> {
    let request = Request::get(url)
        .header(ACCEPT, "application/jwk-set+json, application/json")
        .body(Empty::new())
        .map_err(|error| error.to_string())?;
    let answer = client.request(request).await.map_err(|error| error.to_string())?;
    if !answer.status().is_success() {
        return Err(format!("the answer was {}", answer.status()));
    }
    let body = Limited::new(answer.into_body(), MAX_BYTES).collect().await;
    Ok(body.map_err(|error| error.to_string())?.to_bytes())
}

/// A key that signatures can be checked with.
struct Key {
    id: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
}

/// The keys of a set that are of use here.
pub(super) struct KeySet(Vec<Key>);

impl KeySet {
    pub(super) fn read(path: &Path) -> Result<Self, String> {
        let size = std::fs::metadata(path).map_err(|error| error.to_string())?.len();
        if size > MAX_BYTES as u64 {
            return Err(format!("it has {size} bytes, more than the limit of {MAX_BYTES}"));
        }
        Self::parse(&std::fs::read(path).map_err(|error| error.to_string())?)
    }

    /// Keys of other kinds or for other uses are left out: issuers publish those as well.
    pub(super) fn parse(text: &[u8]) -> Result<Self, String> {
        let set: JwkSet =
            serde_json::from_slice(text).map_err(|error| format!("it is not a key set: {error}"))?;
        if set.keys.len() > MAX_KEYS {
            return Err(format!("it has {} keys, more than the limit of {MAX_KEYS}", set.keys.len()));
        }
        let keys: Vec<Key> = set.keys.iter().filter_map(usable).collect();
        if keys.is_empty() {
            return Err("it has no key for signatures with RS256, ES256 or EdDSA".to_owned());
        }
        Ok(Self(keys))
    }

    /// The keys that a token with this header may be signed with.
    pub(super) fn candidates(
        &self,
        id: Option<&str>,
        algorithm: Algorithm,
    ) -> impl Iterator<Item = &DecodingKey> {
        self.0
            .iter()
            .filter(move |key| key.algorithm == algorithm && (id.is_none() || key.id.as_deref() == id))
            .map(|key| &key.key)
    }
}

fn usable(jwk: &Jwk) -> Option<Key> {
    if !matches!(jwk.common.public_key_use, None | Some(PublicKeyUse::Signature)) {
        return None;
    }
    let algorithm = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => Algorithm::RS256,
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => Algorithm::ES256,
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => Algorithm::EdDSA,
        _ => return None,
    };
    let declared = jwk.common.key_algorithm.map(|declared| declared.to_string());
    if declared.is_some_and(|declared| declared != format!("{algorithm:?}")) {
        return None;
    }
    let key = DecodingKey::from_jwk(jwk).ok()?;
    Some(Key { id: jwk.common.key_id.clone(), algorithm, key })
}
