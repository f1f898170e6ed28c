//! What functions there are, and how they do: a part of them where there are many.

use super::ControlPlane;
use super::page::unless_known;
use crate::http::problem::{BAD_QUERY, Problem};
use crate::http::reply::Reply;
use crate::http::target::{parameters, shorten};
use ebb_engine::{FunctionState, FunctionStatus};
use http::request::Parts;
use serde_json::json;
use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};

/// What a list is to have.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted {
    app: Option<String>,
    search: Option<String>,
    order: Order,
    limit: Option<usize>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Order {
    /// By app, then function.
    #[default]
    Name,
    Calls,
    Errors,
    P99,
    Instances,
}

impl Wanted {
    fn of(query: Option<&str>) -> Result<Self, Problem> {
        let mut wanted = Self::default();
        for (name, value) in parameters(query)? {
            let wrong = |takes: &str| {
                BAD_QUERY.detail(format!("`{name}` is `{}`; it takes {takes}", shorten(&value)))
            };
            match &*name {
                "app" => wanted.app = Some(value.into_owned()),
                "search" => wanted.search = Some(value.to_ascii_lowercase()),
                "order" => {
                    wanted.order = match &*value {
                        "name" => Order::Name,
                        "-calls" => Order::Calls,
                        "-errors" => Order::Errors,
                        "-p99" => Order::P99,
                        "-instances" => Order::Instances,
                        _ => return Err(wrong("name, -calls, -errors, -p99 or -instances")),
                    }
                }
                "limit" => {
                    let limit = value.parse().ok().filter(|limit| *limit > 0);
                    wanted.limit = Some(limit.ok_or_else(|| wrong("a whole number from 1"))?);
                }
                _ => {
                    return Err(BAD_QUERY.detail(format!(
                        "there is no parameter `{}` here; there are app, search, order and limit",
                        shorten(&name)
                    )));
                }
            }
        }
        Ok(wanted)
    }

    fn has(&self, function: &FunctionStatus) -> bool {
        let contains = |search: &String| {
            // As people see them: `bank aggregate.account`.
            format!("{} {}", function.app, function.function).to_ascii_lowercase().contains(search.as_str())
        };
        self.app.as_ref().is_none_or(|app| **app == *function.app)
            && self.search.as_ref().is_none_or(contains)
    }

    fn sort(&self, functions: &mut [FunctionStatus]) {
        // Stable: among equals, by name.
        match self.order {
            Order::Name => {}
            Order::Calls => functions.sort_by_key(|function| Reverse(function.calls)),
            Order::Errors => functions.sort_by_key(|function| Reverse(function.errors)),
            Order::P99 => functions.sort_by_key(|function| Reverse(function.p99_micros)),
            Order::Instances => functions.sort_by_key(|function| Reverse(function.instances)),
        }
    }
}

impl ControlPlane {
    /// Every deployed function, by app and name: those that the engine knows, and those that nobody has called since
    /// their app was opened.
    fn function_list(&self) -> Vec<FunctionStatus> {
        let mut functions = (self.functions.status)();
        let usage = (self.functions.usage)();
        let usage: HashMap<_, _> =
            usage.iter().map(|usage| ((&*usage.app, &*usage.function), usage)).collect();
        let known: HashSet<_> =
            functions.iter().map(|function| (function.app.clone(), function.function.clone())).collect();
        for app in self.node.apps() {
            let deployment = app.deployment();
            for offered in deployment.offers.iter().flat_map(|offers| &offers.functions) {
                let name = (app.name().clone(), offered.name.clone());
                if !known.contains(&name) {
                    let used = usage.get(&(&*name.0, &*name.1)).copied();
                    functions.push(FunctionStatus::cold(name.0, name.1, offered.module, used));
                }
            }
        }
        functions.sort_by(|a, b| (&*a.app, &*a.function).cmp(&(&*b.app, &*b.function)));
        functions
    }

    /// `GET /functions?app=&search=&order=&limit=`. `total` and `states` are of all that match.
    pub(super) fn function_status(&self, parts: &Parts) -> Result<Reply, Problem> {
        let wanted = Wanted::of(parts.uri.query())?;
        let mut functions = self.function_list();
        functions.retain(|function| wanted.has(function));
        let total = functions.len();
        let in_state = |state| functions.iter().filter(|function| function.state == state).count();
        let states = json!({
            "cold": in_state(FunctionState::Cold),
            "loaded": in_state(FunctionState::Loaded),
            "warm": in_state(FunctionState::Warm),
        });
        wanted.sort(&mut functions);
        functions.truncate(wanted.limit.unwrap_or(usize::MAX));
        let list = json!({ "functions": functions, "total": total, "states": states });
        Ok(unless_known(&parts.headers, &list))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_narrowed_and_ordered_by_parameters_that_are_checked() {
        let wanted = Wanted::of(Some("app=bank&search=ACC&order=-p99&limit=100")).unwrap();
        assert_eq!(wanted.search.as_deref(), Some("acc"));
        assert_eq!((wanted.order, wanted.limit), (Order::P99, Some(100)));
        for wrong in ["order=p99", "limit=0", "limit=x", "sort=name"] {
            assert_eq!(Wanted::of(Some(wrong)).unwrap_err().kind().code, "bad_query", "{wrong}");
        }
    }
}
