//! Routes of HTTP functions: which paths a function answers, and which of several routes answers a path.
//!
//! A route is a path whose segments are literal (`hello`), take anything (`{name}`), or, at its end, take the whole
//! rest of the path (`{path...}`). At each segment a literal goes before a parameter and a parameter before a rest, so
//! that the longest and most exact route answers.

use percent_encoding::percent_decode_str;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use thiserror::Error;

/// First segments of paths that the platform answers itself.
pub const RESERVED: [&str; 9] = [
    "apps",
    "commands",
    "command-log",
    "streams",
    "events",
    "models",
    "graphql",
    "openapi.json",
    "asyncapi.json",
];

/// Why a route was not accepted.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{problem}")]
pub struct InvalidRoute {
    /// What is wrong with it; goes on from the route: "does not begin with a `/`".
    pub problem: String,
    /// What to write instead.
    pub hint: String,
}

/// One part of a route, between slashes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Segment {
    /// This text, once the request's segment is percent-decoded.
    Literal(String),
    /// Any segment that is not empty.
    Parameter(String),
    /// All that is left, slashes and nothing included.
    Rest(String),
}

/// The path of an HTTP function: `/hello/{name}`.
#[derive(Clone, PartialEq, Eq)]
pub struct Route {
    text: String,
    segments: Vec<Segment>,
}

impl Route {
    /// A route at most, in bytes.
    pub const MAX_BYTES: usize = 1024;
    /// Segments of a route at most.
    pub const MAX_SEGMENTS: usize = 32;

    /// Reads a route.
    ///
    /// # Errors
    /// It is not one, or begins with what the platform answers itself.
    pub fn parse(text: &str) -> Result<Self, InvalidRoute> {
        let invalid = |problem: &str, hint: String| Err(InvalidRoute { problem: problem.to_owned(), hint });
        let Some(path) = text.strip_prefix('/') else {
            return invalid("does not begin with a `/`", format!("write \"/{text}\""));
        };
        if text.len() > Self::MAX_BYTES || path.split('/').count() > Self::MAX_SEGMENTS {
            let hint = format!("use at most {} bytes in {} segments", Self::MAX_BYTES, Self::MAX_SEGMENTS);
            return invalid("is too long", hint);
        }
        if let Some(at) = text.find(['?', '#']) {
            let hint = format!("write \"{}\": the function reads the query itself", &text[..at]);
            return invalid("has a query or a fragment, which take no part in routing", hint);
        }
        let count = path.split('/').count();
        let mut segments = Vec::with_capacity(count);
        let mut names = BTreeSet::new();
        for (index, raw) in path.split('/').enumerate() {
            let last = index + 1 == count;
            let segment = segment(raw, last)?;
            if let Segment::Parameter(name) | Segment::Rest(name) = &segment
                && !names.insert(name.clone())
            {
                return invalid(
                    &format!("has the parameter `{name}` twice"),
                    "give each parameter a name of its own".to_owned(),
                );
            }
            segments.push(segment);
        }
        if let Some(Segment::Literal(first)) = segments.first()
            && RESERVED.contains(&&**first)
        {
            return invalid(
                &format!("begins with `/{first}`, which the platform answers itself"),
                format!("write another beginning, like \"/api{text}\""),
            );
        }
        Ok(Self { text: text.to_owned(), segments })
    }

    /// As the manifest writes it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The names of its parameters, in their order, that of the rest included.
    pub fn parameters(&self) -> impl Iterator<Item = &str> {
        self.segments.iter().filter_map(|segment| match segment {
            Segment::Literal(_) => None,
            Segment::Parameter(name) | Segment::Rest(name) => Some(&**name),
        })
    }

    /// The route without its parameters' names: routes of the same shape answer the same paths.
    #[must_use]
    pub fn shape(&self) -> String {
        let mut shape = String::with_capacity(self.text.len());
        for segment in &self.segments {
            shape.push('/');
            shape.push_str(match segment {
                Segment::Literal(text) => text,
                Segment::Parameter(_) => "{}",
                Segment::Rest(_) => "{...}",
            });
        }
        shape
    }

    /// As OpenAPI writes it: without the dots of a rest.
    #[must_use]
    pub fn template(&self) -> String {
        self.text.replace("...}", "}")
    }
}

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn segment(raw: &str, last: bool) -> Result<Segment, InvalidRoute> {
    let invalid = |problem: String, hint: String| Err(InvalidRoute { problem, hint });
    if let Some(name) = raw.strip_prefix('{').and_then(|inner| inner.strip_suffix('}')) {
        let (name, rest) = match name.strip_suffix("...") {
            Some(name) => (name, true),
            None => (name, false),
        };
        if !is_parameter(name) {
            let hint = "name parameters with a-z, 0-9 and -, starting with a letter, like {name}".to_owned();
            return invalid(format!("has the parameter `{raw}`, whose name is not one"), hint);
        }
        if rest && !last {
            let hint = format!("write {{{name}}} for one segment, or end the route with {raw}");
            return invalid(format!("goes on after `{raw}`, which takes the whole rest of the path"), hint);
        }
        return Ok(if rest { Segment::Rest(name.to_owned()) } else { Segment::Parameter(name.to_owned()) });
    }
    let named = raw.strip_prefix(':').or_else(|| raw.strip_prefix('<')?.strip_suffix('>'));
    if let Some(name) = named {
        return invalid(
            format!("has `{raw}` in it, which would be taken literally"),
            format!("write {{{name}}}"),
        );
    }
    if raw.contains(['{', '}']) {
        let hint = "give a parameter a segment of its own, like /{name}/".to_owned();
        return invalid(format!("has `{raw}` in it, which is a parameter in part only"), hint);
    }
    if raw.contains('*') {
        return invalid(format!("has `{raw}` in it"), "write {rest...} for the rest of a path".to_owned());
    }
    if raw.contains('%') {
        let hint = "write the character itself: requests are decoded before they are compared".to_owned();
        return invalid(format!("has the percent-encoded segment `{raw}`"), hint);
    }
    if raw.chars().any(|c| c.is_control() || c.is_whitespace() || c == '\\') {
        return invalid(
            "has spaces, backslashes or control characters".to_owned(),
            "write a path like \"/hello/{name}\"".to_owned(),
        );
    }
    if raw.is_empty() && !last {
        return invalid("has an empty segment".to_owned(), "write single slashes".to_owned());
    }
    if raw == "." || raw == ".." {
        return invalid(format!("has a segment `{raw}`"), "write the path that is meant".to_owned());
    }
    Ok(Segment::Literal(raw.to_owned()))
}

/// Parameters' names are parts of header names, hence no underscore: proxies drop headers that have one.
fn is_parameter(name: &str) -> bool {
    name.len() <= 64
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// Values by route, found by path.
#[derive(Clone, Debug)]
pub struct Routes<T> {
    root: Branch<T>,
}

#[derive(Clone, Debug)]
struct Branch<T> {
    /// Of a route that ends here.
    value: Option<T>,
    literals: BTreeMap<String, Branch<T>>,
    parameter: Option<Box<Branch<T>>>,
    rest: Option<T>,
}

// Not derived: a value need not have a default for there to be none.
impl<T> Default for Branch<T> {
    fn default() -> Self {
        Self { value: None, literals: BTreeMap::new(), parameter: None, rest: None }
    }
}

impl<T> Default for Routes<T> {
    fn default() -> Self {
        Self { root: Branch::default() }
    }
}

impl<T> Routes<T> {
    /// The value of routes of this shape, made now if there is none.
    pub fn entry(&mut self, route: &Route) -> &mut T
    where
        T: Default,
    {
        let mut branch = &mut self.root;
        for segment in &route.segments {
            branch = match segment {
                Segment::Literal(text) => branch.literals.entry(text.clone()).or_default(),
                Segment::Parameter(_) => branch.parameter.get_or_insert_default(),
                Segment::Rest(_) => return branch.rest.get_or_insert_default(),
            };
        }
        branch.value.get_or_insert_default()
    }

    /// The value of the route that answers a path, and what the path has for its parameters, in their order and as it
    /// was sent: not decoded.
    #[must_use]
    pub fn find<'p>(&self, path: &'p str) -> Option<(&T, Vec<&'p str>)> {
        let mut parameters = Vec::new();
        let value = self.root.find(Some(path.strip_prefix('/').unwrap_or(path)), &mut parameters)?;
        Some((value, parameters))
    }
}

impl<T> Branch<T> {
    /// `path` is what is left of the path; nothing once its last segment is taken. Every branch is looked at once at
    /// most, since it stands at one depth only: no path takes longer than there are routes.
    fn find<'p>(&self, path: Option<&'p str>, parameters: &mut Vec<&'p str>) -> Option<&T> {
        let Some(path) = path else { return self.value.as_ref() };
        let (segment, behind) = match path.split_once('/') {
            Some((segment, behind)) => (segment, Some(behind)),
            None => (path, None),
        };
        let literal = decoded(segment).and_then(|text| self.literals.get(&*text));
        if let Some(found) = literal.and_then(|branch| branch.find(behind, parameters)) {
            return Some(found);
        }
        if let Some(branch) = self.parameter.as_ref().filter(|_| !segment.is_empty()) {
            let before = parameters.len();
            parameters.push(segment);
            if let Some(found) = branch.find(behind, parameters) {
                return Some(found);
            }
            parameters.truncate(before);
        }
        self.rest.as_ref().inspect(|_| parameters.push(path))
    }
}

/// A segment as literals are compared with it; none if it is not UTF-8.
fn decoded(raw: &str) -> Option<Cow<'_, str>> {
    percent_decode_str(raw).decode_utf8().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn routes(texts: &[&str]) -> Routes<String> {
        let mut routes = Routes::<String>::default();
        for text in texts {
            *routes.entry(&Route::parse(text).unwrap()) = (*text).to_owned();
        }
        routes
    }

    #[track_caller]
    fn finds(routes: &Routes<String>, path: &str, expected: &str) {
        let found = routes.find(path);
        let shown = found.map(|(route, parameters)| match &*parameters {
            [] => route.clone(),
            some => format!("{route} {}", some.join(" ")),
        });
        assert_eq!(shown.as_deref().unwrap_or("nothing"), expected, "{path}");
    }

    #[test]
    fn a_literal_goes_before_a_parameter_and_a_parameter_before_a_rest() {
        let routes = routes(&["/a/{x}", "/a/b", "/a/{rest...}", "/{all...}", "/a/{x}/c"]);
        finds(&routes, "/a/b", "/a/b");
        finds(&routes, "/a/z", "/a/{x} z");
        finds(&routes, "/a/z/c", "/a/{x}/c z");
        finds(&routes, "/a/z/d", "/a/{rest...} z/d");
        finds(&routes, "/a/b/c", "/a/{x}/c b");
        finds(&routes, "/a/", "/a/{rest...} ");
        finds(&routes, "/", "/{all...} ");
        finds(&routes, "/q", "/{all...} q");
    }

    #[test]
    fn a_parameter_takes_one_segment_that_is_not_empty() {
        let routes = routes(&["/hello/{name}"]);
        for path in ["/hello", "/hello/", "/hello/a/", "/hello/a/b", "/Hello/a", "//hello/a"] {
            finds(&routes, path, "nothing");
        }
        finds(&routes, "/hello/a%2Fb", "/hello/{name} a%2Fb");
        finds(&routes, "/hello/%ff", "/hello/{name} %ff");
    }

    #[test]
    fn a_slash_at_the_end_makes_another_route() {
        let routes = routes(&["/a", "/b/"]);
        finds(&routes, "/a", "/a");
        finds(&routes, "/a/", "nothing");
        finds(&routes, "/b", "nothing");
        finds(&routes, "/b/", "/b/");
    }

    #[test]
    fn literals_are_compared_with_what_is_decoded_once() {
        let routes = routes(&["/über/a.b"]);
        finds(&routes, "/%C3%BCber/a%2Eb", "/über/a.b");
        finds(&routes, "/%25C3%25BCber/a.b", "nothing");
        finds(&routes, "/%zz/a.b", "nothing");
    }

    #[test]
    fn the_root_is_a_route() {
        finds(&routes(&["/"]), "/", "/");
        finds(&routes(&["/"]), "", "/");
    }

    #[test]
    fn what_is_not_a_route_is_refused_with_what_to_write() {
        for (wrong, hint) in [
            ("hello", "\"/hello\""),
            ("/hello?x=1", "\"/hello\""),
            ("/a/:id", "{id}"),
            ("/a/<id>", "{id}"),
            ("/a/*", "{rest...}"),
            ("/a{b}", "a segment of its own"),
            ("/{rest...}/b", "{rest}"),
            ("/{a}/{a}", "a name of its own"),
            ("/{a_b}", "a-z, 0-9 and -"),
            ("/a//b", "single slashes"),
            ("/a/../b", "the path that is meant"),
            ("/a%20b", "the character itself"),
            ("/a b", "\"/hello/{name}\""),
            ("/events/{id}", "\"/api/events/{id}\""),
            ("/openapi.json", "\"/api/openapi.json\""),
            ("", "\"/\""),
        ] {
            let refused = Route::parse(wrong).unwrap_err();
            assert!(refused.hint.contains(hint), "{wrong}: {refused:?}");
        }
        assert!(Route::parse(&"/a".repeat(33)).is_err());
    }

    #[test]
    fn routes_of_one_shape_answer_the_same_paths() {
        let shape = |text: &str| Route::parse(text).unwrap().shape();
        assert_eq!(shape("/a/{x}/{y...}"), shape("/a/{name}/{rest...}"));
        assert_ne!(shape("/a/{x}"), shape("/a/x"));
    }

    proptest! {
        #[test]
        fn what_is_found_is_what_reading_the_routes_one_by_one_finds(
            texts in prop::collection::vec("(/(a|b|\\{p\\})){0,3}(/a|/\\{r\\.\\.\\.\\}|/)", 1..8),
            path in "(/(a|b|c|)){0,4}",
        ) {
            let parsed: Vec<Route> = texts.iter().filter_map(|text| {
                // The same name twice is the generator's business, not the rule's.
                let mut count = 0;
                let text: String = text.split_inclusive('}').map(|part| { count += 1; part.replace("{p}", &format!("{{p{count}}}")) }).collect();
                Route::parse(&text).ok()
            }).collect();
            let mut routes = Routes::<String>::default();
            for route in &parsed {
                *routes.entry(route) = route.shape();
            }
            let segments: Vec<&str> = path.strip_prefix('/').unwrap_or(&path).split('/').collect();
            let best = parsed.iter().filter(|route| matches(&route.segments, &segments)).min_by_key(|route| {
                route.segments.iter().map(rank).collect::<Vec<_>>()
            });
            prop_assert_eq!(routes.find(&path).map(|(found, _)| found.clone()), best.map(Route::shape));
        }

        #[test]
        fn no_text_makes_reading_or_finding_panic(text in "\\PC{0,40}", path in "\\PC{0,40}") {
            if let Ok(route) = Route::parse(&text) {
                let mut routes = Routes::<()>::default();
                routes.entry(&route);
                let _ = routes.find(&path);
            }
        }
    }

    fn rank(segment: &Segment) -> u8 {
        match segment {
            Segment::Literal(_) => 0,
            Segment::Parameter(_) => 1,
            Segment::Rest(_) => 2,
        }
    }

    fn matches(route: &[Segment], path: &[&str]) -> bool {
        match (route, path) {
            ([], []) => true,
            ([Segment::Rest(_)], [_, ..]) => true,
            ([Segment::Literal(text), route @ ..], [segment, path @ ..]) => {
                text == segment && matches(route, path)
            }
            ([Segment::Parameter(_), route @ ..], [segment, path @ ..]) => {
                !segment.is_empty() && matches(route, path)
            }
            _ => false,
        }
    }
}
