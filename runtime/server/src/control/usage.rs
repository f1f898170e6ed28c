//! What functions used since the node began.

use super::{ControlPlane, app_parameter};
use crate::http::problem::Problem;
use crate::http::reply::{Reply, json};
use ebb_engine::FunctionUsage;
use http::StatusCode;
use http::header::{CACHE_CONTROL, HeaderValue};
use http::request::Parts;
use serde::Serialize;

/// A document of usage.
#[derive(Serialize)]
struct Usage<'a> {
    /// Since when it is counted.
    since: String,
    /// Sums by app, and of everything.
    apps: Vec<Sum<'a>>,
    total: Sum<'a>,
    functions: &'a [FunctionUsage],
}

/// What several functions used together.
#[derive(Serialize)]
struct Sum<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    app: Option<&'a str>,
    functions: usize,
    invocations: u64,
    refused: u64,
    canceled: u64,
    throttled: u64,
    failed: u64,
    cold_starts: u64,
    billed_millis: u64,
    cpu_micros: u64,
    gib_seconds: f64,
}

impl<'a> Sum<'a> {
    fn of(app: Option<&'a str>, functions: &[FunctionUsage]) -> Self {
        let sum = |of: fn(&FunctionUsage) -> u64| functions.iter().map(of).sum();
        Self {
            app,
            functions: functions.len(),
            invocations: sum(|usage| usage.invocations),
            refused: sum(|usage| usage.refused),
            canceled: sum(|usage| usage.canceled),
            throttled: sum(|usage| usage.throttled),
            failed: sum(FunctionUsage::failed),
            cold_starts: sum(|usage| usage.starts.loaded + usage.starts.cold),
            billed_millis: sum(|usage| usage.billed_millis),
            cpu_micros: sum(|usage| usage.cpu_micros),
            gib_seconds: functions.iter().map(|usage| usage.gib_seconds).sum(),
        }
    }
}

impl ControlPlane {
    /// `GET /usage[?app=]`.
    pub(super) fn usage(&self, parts: &Parts) -> Result<Reply, Problem> {
        let only = app_parameter(parts)?;
        // By app, then function.
        let mut functions = (self.functions.usage)();
        functions.retain(|usage| only.as_deref().is_none_or(|only| only == &*usage.app));
        let usage = Usage {
            since: self.functions.since.to_string(),
            apps: functions
                .chunk_by(|a, b| a.app == b.app)
                .map(|of_app| Sum::of(Some(&*of_app[0].app), of_app))
                .collect(),
            total: Sum::of(None, &functions),
            functions: &functions,
        };
        let mut reply = json(StatusCode::OK, &usage);
        reply.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        Ok(reply)
    }
}
