//! `[app]` and `[build]`.

use super::{HOUR, SECOND, Walk, keys};
use crate::manifest::problem::short;
use crate::manifest::reader::Field;
use crate::manifest::{Build, ChainSpec, Cors, Relay};
use crate::name::AppName;

/// What `[app]` says.
pub(super) struct App {
    pub name: AppName,
    pub hosts: Vec<String>,
    pub cors: Option<Cors>,
    pub relay: Relay,
    pub chains: ChainSpec,
}

impl<'a> Walk<'a> {
    pub(super) fn app(&mut self, field: &Field<'a>) -> Option<App> {
        let app = self.reader.section(field, keys::APP)?;
        let name = match app.get("name") {
            None => {
                self.reader.missing(&app, "name", "`name = \"shop\"`");
                None
            }
            Some(field) => self.reader.text(&field, "shop").and_then(|text| self.app_name(&field, text)),
        };
        let hosts = app.get("hosts").and_then(|hosts| self.hosts(&hosts)).unwrap_or_default();
        let cors = app.get("cors").and_then(|cors| self.cors(&cors));
        let relay = app.get("relay").and_then(|relay| self.relay(&relay)).unwrap_or_default();
        let chains = app.get("chains").and_then(|chains| self.chains(&chains)).unwrap_or_default();
        Some(App { name: name?, hosts, cors, relay, chains })
    }

    fn chains(&mut self, field: &Field<'a>) -> Option<ChainSpec> {
        let chains = self.reader.section(field, keys::CHAINS)?;
        let hops = chains.get("hops").and_then(|hops| self.reader.count(&hops, 1000));
        let per_minute = chains.get("per-minute").and_then(|most| self.reader.count(&most, 1_000_000));
        Some(ChainSpec {
            hops: hops.and_then(|hops| hops.try_into().ok()).unwrap_or(ChainSpec::HOPS),
            per_minute: per_minute.unwrap_or(ChainSpec::PER_MINUTE),
        })
    }

    fn app_name(&mut self, field: &Field<'a>, text: &str) -> Option<AppName> {
        if text == "system" {
            let message = "the name `system` is reserved: the node's own log has it".to_owned();
            self.reader.refuse(field, message, Some("choose another name".to_owned()));
            return None;
        }
        self.reader.name(field, field.at.clone(), text, |text| AppName::new(text))
    }

    fn hosts(&mut self, field: &Field<'a>) -> Option<Vec<String>> {
        let hosts = self.reader.texts(field)?;
        let mut good = Vec::new();
        for (element, host) in hosts {
            let Some(problem) = host_problem(host) else {
                good.push(host.to_owned());
                continue;
            };
            let bare = host.split_once("://").map_or(host, |(_, rest)| rest);
            let bare = bare.split(['/', ':']).next().unwrap_or_default().to_lowercase();
            let hint = match host_problem(&bare) {
                None => format!("write \"{bare}\""),
                Some(_) => "write a host name like \"shop.example.org\"".to_owned(),
            };
            self.reader.refuse(&element, format!("the host \"{}\" {problem}", short(host)), Some(hint));
        }
        Some(good)
    }

    fn cors(&mut self, field: &Field<'a>) -> Option<Cors> {
        let cors = self.reader.section(field, keys::CORS)?;
        let max_age = cors.get("max-age").and_then(|age| self.reader.duration(&age, SECOND..=24 * HOUR));
        let Some(origins) = cors.get("origins") else {
            self.reader.missing(&cors, "origins", "`origins = [\"https://shop.example.org\"]`");
            return None;
        };
        let listed = self.reader.texts(&origins)?;
        if listed.is_empty() {
            let hint = "list origins, or remove `cors`: then browsers may call from the app's own hosts only";
            self.reader.refuse(&origins, "`origins` is empty".to_owned(), Some(hint.to_owned()));
        }
        for (element, origin) in &listed {
            if *origin == "*" {
                if listed.len() > 1 {
                    let hint = Some("write `\"*\"` alone, or leave it out".to_owned());
                    self.reader.refuse(
                        element,
                        "`*` means every origin: others beside it say nothing".to_owned(),
                        hint,
                    );
                }
            } else if !is_origin(origin) {
                let message = format!("\"{}\" is not an origin", short(origin));
                let hint = "write scheme and host, in lower case, with the port if it is not the usual one and \
                            nothing behind it: \"https://shop.example.org\"";
                self.reader.refuse(element, message, Some(hint.to_owned()));
            }
        }
        let origins = listed.into_iter().map(|(_, origin)| origin.to_owned()).collect();
        Some(Cors { origins, max_age: max_age.unwrap_or(Cors::DEFAULT_MAX_AGE) })
    }

    pub(super) fn build(&mut self, field: &Field<'a>) -> Option<Build> {
        let build = self.reader.section(field, keys::BUILD)?;
        let example = "cargo build --release --target wasm32-wasip2";
        let watch = build.get("watch").and_then(|watch| self.reader.texts(&watch)).unwrap_or_default();
        for (element, path) in &watch {
            if path.is_empty() || path.starts_with('/') || path.contains('\\') {
                let message = format!("\"{}\" is not a path below the manifest's folder", short(path));
                self.reader.refuse(element, message, Some("write a relative path, like \"src\"".to_owned()));
            }
        }
        let Some(command) = build.get("command") else {
            self.reader.missing(&build, "command", &format!("`command = \"{example}\"`"));
            return None;
        };
        let text = self.reader.text(&command, example)?;
        if text.trim().is_empty() {
            let hint = "write what builds the modules, or remove `[build]`".to_owned();
            self.reader.refuse(&command, "the build command is empty".to_owned(), Some(hint));
        }
        Some(Build {
            command: text.to_owned(),
            watch: watch.into_iter().map(|(_, path)| path.to_owned()).collect(),
        })
    }
}

/// What is wrong with a host name; none if it is fine.
fn host_problem(host: &str) -> Option<&'static str> {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    if host.contains("://") {
        Some("has a scheme; only the name belongs here")
    } else if host.contains(':') {
        Some("has a port; the name alone decides, on any port")
    } else if host.contains('*') {
        Some("has a `*`, which is not available: list each name")
    } else if host.bytes().any(|b| b.is_ascii_uppercase()) {
        Some("has capital letters")
    } else if host.len() > 253 || !host.split('.').all(label) {
        Some("is not a host name")
    } else {
        None
    }
}

/// Scheme, host, and perhaps a port, as browsers write it (RFC 6454, section 6.2).
fn is_origin(origin: &str) -> bool {
    let Some((scheme, authority)) = origin.split_once("://") else { return false };
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) => (host, port.parse::<u16>().is_ok_and(|port| port > 0)),
        None => (authority, true),
    };
    matches!(scheme, "http" | "https") && port && host_problem(host).is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_a_scheme_and_a_host_and_perhaps_a_port() {
        assert!(is_origin("https://shop.example.org") && is_origin("http://localhost:3000"));
        for wrong in [
            "shop.example.org",
            "https://shop.example.org/",
            "https://Shop.org",
            "http://a:0",
            "null",
            "ftp://a",
        ] {
            assert!(!is_origin(wrong), "{wrong}");
        }
    }
}
