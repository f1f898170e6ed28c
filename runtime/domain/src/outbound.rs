//! Where a function may send HTTP requests: hosts and ports by name, and, once a name is resolved, which addresses.
//!
//! Names say what the author means; addresses are what is reached. Whoever controls a name's DNS records could point
//! it at the node's own network, so an address that is not public is refused unless the manifest grants it too.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use thiserror::Error;

/// Why an entry of `outbound-http` was not accepted; goes on from the entry: "has no port".
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{problem}")]
pub struct InvalidDestination {
    /// What is wrong.
    pub problem: &'static str,
    /// What to write instead.
    pub hint: String,
}

/// The hosts of an entry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Hosts {
    /// `*`
    Any,
    /// `*.example.org`: names below it. Kept as `.example.org`.
    Below(String),
    /// This name, lower case.
    Name(String),
    /// This address.
    Address(IpAddr),
}

/// A host and port that requests may go to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Destination {
    hosts: Hosts,
    port: u16,
}

impl FromStr for Destination {
    type Err = InvalidDestination;

    fn from_str(text: &str) -> Result<Self, InvalidDestination> {
        let invalid = |problem, hint: &str| Err(InvalidDestination { problem, hint: hint.to_owned() });
        if let Some((scheme, rest)) = text.split_once("://") {
            let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
            let port = if scheme == "http" { 80 } else { 443 };
            let hint = match host.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok()) {
                Some(_) => format!("write \"{host}\""),
                None => format!("write \"{host}:{port}\""),
            };
            return Err(InvalidDestination { problem: "has a scheme; a host and a port belong here", hint });
        }
        let split = text.rsplit_once(':').filter(|(host, _)| !host.contains(':') || host.ends_with(']'));
        let Some((host, port)) = split else {
            let host = if text.parse::<Ipv6Addr>().is_ok() { format!("[{text}]") } else { text.to_owned() };
            return invalid("has no port", &format!("write \"{host}:443\""));
        };
        let Some(port) = port.parse::<u16>().ok().filter(|port| *port > 0) else {
            return invalid("has a port that is none", &format!("write \"{host}:443\""));
        };
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let hosts = if let Some(inner) = bracketed {
            match inner.parse::<Ipv6Addr>() {
                Ok(address) => Hosts::Address(address.to_canonical()),
                Err(_) => {
                    return invalid(
                        "has brackets around what is not an IPv6 address",
                        "write \"[::1]:8080\"",
                    );
                }
            }
        } else if let Ok(address) = host.parse::<IpAddr>() {
            Hosts::Address(address.to_canonical())
        } else if host == "*" {
            Hosts::Any
        } else if let Some(below) = host.strip_prefix("*.") {
            if !is_name(below) {
                return invalid("is not a host and a port", "write \"*.example.org:443\"");
            }
            Hosts::Below(format!(".{below}").to_ascii_lowercase())
        } else if is_name(host) {
            Hosts::Name(host.to_ascii_lowercase())
        } else {
            return invalid("is not a host and a port", "write \"api.example.org:443\"");
        };
        Ok(Self { hosts, port })
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.hosts {
            Hosts::Any => write!(f, "*:{}", self.port),
            Hosts::Below(suffix) => write!(f, "*{suffix}:{}", self.port),
            Hosts::Name(name) => write!(f, "{name}:{}", self.port),
            Hosts::Address(address) => SocketAddr::new(*address, self.port).fmt(f),
        }
    }
}

fn is_name(host: &str) -> bool {
    !host.is_empty()
        && host.len() <= 253
        && host.split('.').all(|label| {
            !label.is_empty()
                && label.len() <= 63
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        })
}

/// What a function's `outbound-http` grants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outbound {
    /// Hosts and ports that requests may name.
    pub destinations: BTreeSet<Destination>,
    /// Whether the names may lead to addresses that are not public.
    pub private: bool,
}

impl Outbound {
    /// Whether it grants anything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.destinations.is_empty()
    }

    /// Whether a request may name this host (without brackets, if it is an address) and port.
    #[must_use]
    pub fn names(&self, host: &str, port: u16) -> bool {
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        let address = host.parse::<IpAddr>().ok().map(|address| address.to_canonical());
        self.destinations.iter().filter(|destination| destination.port == port).any(|destination| {
            match (&destination.hosts, address) {
                (Hosts::Any, _) => true,
                (Hosts::Address(granted), Some(address)) => *granted == address,
                (Hosts::Name(name), None) => *name == host,
                (Hosts::Below(suffix), None) => host.len() > suffix.len() && host.ends_with(&**suffix),
                _ => false,
            }
        })
    }

    /// Whether a request whose host led to this address may be sent there.
    #[must_use]
    pub fn reaches(&self, address: SocketAddr) -> bool {
        let ip = address.ip().to_canonical();
        self.private
            || is_public(ip)
            || self
                .destinations
                .iter()
                .any(|granted| granted.port == address.port() && granted.hosts == Hosts::Address(ip))
    }
}

/// Whether an address is one of the public internet: not of this machine, not of its networks, not reserved. An IPv6
/// address that carries an IPv4 address is as public as that one.
#[must_use]
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    !(address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_multicast()
        || address.is_documentation()
        || a == 0
        || a >= 240
        // Shared by carriers (RFC 6598), protocol assignments, benchmarks (RFC 2544), 6to4 relays.
        || (a == 100 && (b & 0b1100_0000) == 64)
        || (a == 192 && b == 0 && c == 0)
        || (a == 198 && (b & 0xfe) == 18)
        || (a == 192 && b == 88 && c == 99))
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        is_public_v4(Ipv4Addr::new(a, b, c, d))
    };
    match segments {
        [0, 0, 0, 0, 0, 0xffff, high, low] => v4(high, low),
        // NAT64 and 6to4.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => v4(high, low),
        [0x2002, high, low, ..] => v4(high, low),
        // Teredo and other protocol assignments, documentation.
        [0x2001, second, ..] if second < 0x200 || second == 0xdb8 => false,
        [0x3fff, second, ..] if second < 0x1000 => false,
        // All of global unicast; loopback, link-local, unique local and multicast lie outside.
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outbound(entries: &[&str]) -> Outbound {
        Outbound {
            destinations: entries.iter().map(|entry| entry.parse().unwrap()).collect(),
            private: false,
        }
    }

    #[test]
    fn a_name_is_granted_with_its_port() {
        let granted = outbound(&["api.example.org:443", "*.shop.example:8443"]);
        assert!(granted.names("api.example.org", 443) && granted.names("API.Example.org.", 443));
        assert!(granted.names("eu.shop.example", 8443) && granted.names("a.b.shop.example", 8443));
        for (host, port) in [
            ("api.example.org", 80),
            ("example.org", 443),
            ("evil-api.example.org", 443),
            ("api.example.org.evil.com", 443),
            ("shop.example", 8443),
            (".shop.example", 8443),
            ("evilshop.example", 8443),
        ] {
            assert!(!granted.names(host, port), "{host}:{port}");
        }
    }

    #[test]
    fn everything_on_a_port_is_granted_by_a_star_but_not_what_is_private() {
        let granted = outbound(&["*:443"]);
        assert!(granted.names("anything.example", 443) && granted.names("93.184.216.34", 443));
        assert!(!granted.reaches("127.0.0.1:443".parse().unwrap()));
    }

    #[test]
    fn addresses_that_are_not_public_are_refused_however_they_are_written() {
        for address in [
            "127.0.0.1",
            "127.8.9.1",
            "10.1.2.3",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "0.0.0.0",
            "0.1.2.3",
            "100.64.0.1",
            "100.127.1.1",
            "192.0.0.8",
            "198.18.0.1",
            "198.19.1.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "192.0.2.1",
            "203.0.113.7",
            "::",
            "::1",
            "fe80::1",
            "fd00::1",
            "fc00::1",
            "fec0::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "64:ff9b::a00:1",
            "64:ff9b:1::1",
            "2002:7f00:1::",
            "2001::1",
            "2001:db8::1",
            "3fff::1",
            "100::1",
        ] {
            assert!(!is_public(address.parse().unwrap()), "{address}");
        }
        for address in [
            "93.184.216.34",
            "1.1.1.1",
            "172.32.0.1",
            "100.128.0.1",
            "2606:4700::1111",
            "::ffff:1.1.1.1",
            "64:ff9b::101:101",
            "2002:101:101::",
        ] {
            assert!(is_public(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn an_address_that_is_granted_by_itself_is_reached_on_its_port() {
        let granted = outbound(&["127.0.0.1:9000", "[::1]:9000", "db.internal:9000"]);
        assert!(granted.reaches("127.0.0.1:9000".parse().unwrap()));
        assert!(granted.reaches("[::ffff:127.0.0.1]:9000".parse().unwrap()));
        assert!(granted.reaches("[::1]:9000".parse().unwrap()));
        assert!(!granted.reaches("127.0.0.1:9001".parse().unwrap()));
        assert!(!granted.reaches("127.0.0.2:9000".parse().unwrap()));
        let private = Outbound { private: true, ..granted };
        assert!(private.reaches("10.0.0.9:9000".parse().unwrap()));
    }

    #[test]
    fn an_address_in_disguise_is_not_the_address() {
        let granted = outbound(&["127.0.0.1:80"]);
        assert!(granted.names("127.0.0.1", 80) && granted.names("::ffff:127.0.0.1", 80));
        assert!(!granted.names("2130706433", 80) && !granted.names("127.1", 80));
    }

    #[test]
    fn what_is_not_a_host_and_a_port_is_refused_with_what_to_write() {
        for (wrong, hint) in [
            ("https://api.example.org/v1", "\"api.example.org:443\""),
            ("http://api.example.org", "\"api.example.org:80\""),
            ("https://api.example.org:8443/", "\"api.example.org:8443\""),
            ("api.example.org", "\"api.example.org:443\""),
            ("api.example.org:0", "\"api.example.org:443\""),
            ("api.example.org:http", "\"api.example.org:443\""),
            ("::1", "\"[::1]:443\""),
            ("[nonsense]:80", "\"[::1]:8080\""),
            ("api.*.org:443", "\"api.example.org:443\""),
            ("a b:80", "\"api.example.org:443\""),
            ("*.:80", "\"*.example.org:443\""),
        ] {
            assert!(wrong.parse::<Destination>().unwrap_err().hint.contains(hint), "{wrong}");
        }
        assert_eq!("[::1]:80".parse::<Destination>().unwrap().to_string(), "[::1]:80");
        assert_eq!("*.A.example:80".parse::<Destination>().unwrap().to_string(), "*.a.example:80");
    }
}
