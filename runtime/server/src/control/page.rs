//! The page for people, at `/`: static files out of the binary, and what its polling needs.
//!
//! The files tell nothing about the node, so that they need no token: the page asks for it, and sends it with every
//! request for data. `Host` and `Origin` are checked all the same. The policy that goes with the document allows nothing
//! but these files: no inline scripts or styles, no other origin, no frame around it.

use crate::http::problem::{NOT_FOUND, Problem};
use crate::http::reply::{Reply, empty, full, json};
use crate::http::target::shorten;
use bytes::Bytes;
use ebb_domain::digest::Digest;
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH, REFERRER_POLICY,
};
use http::header::{X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::Serialize;
use std::sync::LazyLock;

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
                      require-trusted-types-for 'script'; trusted-types 'none'";

/// A file of the page.
struct Asset {
    path: &'static str,
    media_type: &'static str,
    contents: &'static [u8],
    etag: HeaderValue,
}

macro_rules! assets {
    ($($path:literal $media_type:literal),* $(,)?) => {
        vec![$(Asset::new($path, $media_type, include_bytes!(concat!("../../ui/", $path)))),*]
    };
}

const SCRIPT: &str = "text/javascript; charset=utf-8";

static ASSETS: LazyLock<Vec<Asset>> = LazyLock::new(|| {
    let mut assets = assets![
        "index.html" "text/html; charset=utf-8",
        "style.css" "text/css; charset=utf-8",
        "icon.svg" "image/svg+xml",
        "vendor/LICENSES.txt" "text/plain; charset=utf-8",
    ];
    macro_rules! scripts {
        ($($path:literal),* $(,)?) => {
            $(assets.push(Asset::new($path, SCRIPT, include_bytes!(concat!("../../ui/", $path))));)*
        };
    }
    scripts!["main.js", "client.js", "parts.js", "apps.js", "functions.js", "events.js", "streams.js"];
    scripts!["projections.js", "models.js", "vendor/preact.js", "vendor/hooks.js", "vendor/htm.js"];
    assets
});

impl Asset {
    fn new(path: &'static str, media_type: &'static str, contents: &'static [u8]) -> Self {
        Self { path, media_type, contents, etag: etag(contents) }
    }
}

/// `GET /` and `GET /ui/{path}`.
pub(super) fn file(path: &[&str], headers: &HeaderMap) -> Result<Reply, Problem> {
    let path = if path.is_empty() { "index.html".to_owned() } else { path.join("/") };
    let asset = ASSETS
        .iter()
        .find(|asset| asset.path == path)
        .ok_or_else(|| NOT_FOUND.detail(format!("the page has no file `{}`", shorten(&path))))?;
    let mut reply = if is_known(headers, &asset.etag) {
        empty(StatusCode::NOT_MODIFIED)
    } else {
        full(StatusCode::OK, Bytes::from_static(asset.contents))
    };
    let fixed: [(HeaderName, &'static str); 7] = [
        (CONTENT_TYPE, asset.media_type),
        // Asked again each time, and answered 304: a node that was updated shows its own page at once.
        (CACHE_CONTROL, "no-cache"),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        (REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ];
    let map = reply.headers_mut();
    map.extend(fixed.map(|(name, value)| (name, HeaderValue::from_static(value))));
    map.insert(ETAG, asset.etag.clone());
    Ok(reply)
}

/// JSON, or 304 for a poller who has exactly this already. It is never kept by caches: it needs a token.
pub(super) fn unless_known(headers: &HeaderMap, value: &impl Serialize) -> Reply {
    let body = serde_json::to_vec(value).expect("answers are made of maps with text keys");
    let etag = etag(&body);
    let mut reply =
        if is_known(headers, &etag) { empty(StatusCode::NOT_MODIFIED) } else { json(StatusCode::OK, value) };
    reply.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    reply.headers_mut().insert(ETAG, etag);
    reply
}

fn etag(contents: &[u8]) -> HeaderValue {
    let digest = Digest::of(contents).to_string();
    HeaderValue::try_from(format!("\"{}\"", &digest[..32]))
        .expect("hexadecimal digits in quotes are a header value")
}

fn is_known(headers: &HeaderMap, etag: &HeaderValue) -> bool {
    let own = etag.as_bytes();
    let known =
        headers.get_all(IF_NONE_MATCH).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    known.into_iter().any(|known| {
        let known = known.trim_ascii();
        known.strip_prefix(b"W/").unwrap_or(known) == own
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_that_the_page_names_is_there() {
        for asset in ASSETS.iter().filter(|asset| !asset.path.starts_with("vendor/LICENSES")) {
            let text = std::str::from_utf8(asset.contents).unwrap();
            let quoted = text.split('"').filter(|text| text.starts_with("./") || text.starts_with("ui/"));
            for named in quoted {
                let name = match (named.strip_prefix("ui/"), asset.path.rsplit_once('/')) {
                    (Some(name), _) => name.to_owned(),
                    (None, Some((folder, _))) => format!("{folder}/{}", &named[2..]),
                    (None, None) => named[2..].to_owned(),
                };
                assert!(ASSETS.iter().any(|other| other.path == name), "{} names {named}", asset.path);
            }
        }
    }

    #[test]
    fn what_is_known_is_not_sent_again() {
        let first = file(&[], &HeaderMap::new()).unwrap();
        let etag = first.headers()[ETAG].clone();
        for value in [etag.to_str().unwrap().to_owned(), format!("\"x\", W/{}", etag.to_str().unwrap())] {
            let headers = HeaderMap::from_iter([(IF_NONE_MATCH, value.parse().unwrap())]);
            assert_eq!(file(&[], &headers).unwrap().status(), StatusCode::NOT_MODIFIED);
        }
        assert!(!is_known(&HeaderMap::from_iter([(IF_NONE_MATCH, "\"x\"".parse().unwrap())]), &etag));
    }

    #[test]
    fn the_policy_allows_nothing_inline() {
        let page = std::str::from_utf8(include_bytes!("../../ui/index.html")).unwrap();
        assert!(!page.contains("<script>") && !page.contains("style=") && !page.contains("<style"));
        assert!(!POLICY.contains("unsafe"));
    }
}
