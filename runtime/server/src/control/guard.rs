//! Who may talk to the control plane.
//!
//! A loopback address alone keeps nobody out: any web page can make the operator's browser call it, under a name of
//! its own that it has resolved to 127.0.0.1 (DNS rebinding). So the `Host` must be an address or a name that is the
//! node's, and an `Origin` must be the control plane's own; also where a token is needed.

use crate::auth::Authenticator;
use crate::http::cors::{authority, host_of, is_same_origin};
use crate::http::problem::{HOST_NOT_ALLOWED, ORIGIN_NOT_ALLOWED, Problem};
use crate::http::target::shorten;
use ebb_domain::text::Text;
use http::header::ORIGIN;
use http::request::Parts;
use std::net::IpAddr;
use std::sync::Arc;

pub(super) struct Guard {
    auth: Arc<Authenticator>,
    hosts: Vec<String>,
}

impl Guard {
    pub(super) fn new(auth: Arc<Authenticator>, hosts: Vec<String>) -> Self {
        Self { auth, hosts }
    }

    /// Whether a request is for this node, and not from a page of another origin.
    pub(super) fn check_source(&self, parts: &Parts) -> Result<(), Problem> {
        let host = authority(&parts.headers, &parts.uri).map(host_of).unwrap_or_default();
        if !self.is_ours(host) {
            let detail = format!("the request is for host `{}`", shorten(host));
            return Err(HOST_NOT_ALLOWED.detail(detail));
        }
        if let Some(origin) = parts.headers.get(ORIGIN)
            && !is_same_origin(origin, &parts.headers, &parts.uri)
        {
            return Err(ORIGIN_NOT_ALLOWED
                .detail("the control plane takes no requests from pages of other origins")
                .hint("Use `ebb`, or another client that is not a browser."));
        }
        Ok(())
    }

    /// Who sends a request.
    pub(super) fn authenticate(&self, parts: &Parts) -> Result<Text, Problem> {
        Ok(self.auth.authenticate(&parts.headers)?)
    }

    /// An IP address can't be rebound, and nobody else can own `localhost`.
    fn is_ours(&self, host: &str) -> bool {
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        host.parse::<IpAddr>().is_ok()
            || host == "localhost"
            || host.ends_with(".localhost")
            || self.hosts.contains(&host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    fn admit(host: &str, origin: Option<&str>) -> Result<(), &'static str> {
        let guard = Guard::new(Arc::new(Authenticator::open_to_all()), vec!["ebb.internal".into()]);
        let mut request = Request::builder().uri("/apps").header("host", host);
        if let Some(origin) = origin {
            request = request.header("origin", origin);
        }
        guard.check_source(&request.body(()).unwrap().into_parts().0).map_err(|problem| problem.kind().code)
    }

    #[test]
    fn only_addresses_and_the_nodes_own_names_are_hosts() {
        for host in
            ["127.0.0.1:8081", "[::1]:8081", "localhost:1", "LOCALHOST.", "ebb.internal:8081", "10.1.2.3"]
        {
            assert!(admit(host, None).is_ok(), "{host}");
        }
        for host in ["evil.example:8081", "localhost.evil.example", "127.0.0.1.evil.example", ""] {
            assert_eq!(admit(host, None), Err("host_not_allowed"), "{host}");
        }
    }

    #[test]
    fn a_page_of_another_origin_is_turned_away() {
        assert!(admit("127.0.0.1:8081", Some("http://127.0.0.1:8081")).is_ok());
        for origin in ["https://evil.example", "null", "http://127.0.0.1:8080"] {
            assert_eq!(admit("127.0.0.1:8081", Some(origin)), Err("origin_not_allowed"), "{origin}");
        }
    }
}
