//! Probes, and how the node does.

use super::ControlPlane;
use crate::http::problem::SHUTTING_DOWN;
use crate::http::reply::{Reply, full, json};
use crate::metrics::Page;
use ebb_app::deploy::Deployment;
use ebb_app::node::{AppState, AppStatus};
use ebb_domain::name::AppName;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, StatusCode};
use serde_json::json as value;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// The process answers. Nothing else: a node that waits for its disk must not be killed for it.
pub(super) fn live() -> Reply {
    json(StatusCode::OK, &value!({ "status": "live" }))
}

impl ControlPlane {
    /// Whether requests should be sent here. Apps are opened by their first use.
    pub(super) fn ready(&self) -> Reply {
        if *self.stopping.borrow() {
            let detail = "the node is shutting down";
            return SHUTTING_DOWN.detail(detail).retry_after(Duration::from_secs(1)).into_reply();
        }
        json(StatusCode::OK, &value!({ "status": "ready" }))
    }

    fn chain_metrics(&self, page: &mut Page) {
        let apps = self.open_apps();
        let chains: Vec<_> = apps.iter().map(|app| (app.name(), app.chain_status())).collect();
        page.family(
            "ebbtide_chains_held_back",
            "gauge",
            "Chains of events whose events are held back: they led to too many commands.",
        );
        for (app, chains) in &chains {
            page.value(&[("app", app)], chains.held.len());
        }
        page.family(
            "ebbtide_chains_tripped_total",
            "counter",
            "How often a chain of events had led to as many commands as it may within a minute.",
        );
        for (app, chains) in &chains {
            page.value(&[("app", app)], chains.tripped);
        }
        page.family(
            "ebbtide_chains_too_long_total",
            "counter",
            "Commands refused since too many functions and topics lay between them and what began their chain.",
        );
        for (app, chains) in &chains {
            page.value(&[("app", app)], chains.too_long);
        }
    }

    pub(super) fn metrics_page(&self) -> Reply {
        let mut page = Page::default();
        self.metrics.write(&mut page);
        page.family("http_server_active_connections", "gauge", "Open connections of the data plane.");
        page.value(&[], self.counts.open.load(Ordering::Relaxed));
        page.family(
            "http_server_refused_connections_total",
            "counter",
            "Connections answered 503: there were too many.",
        );
        page.value(&[], self.counts.refused.load(Ordering::Relaxed));
        let apps: Vec<(AppName, AppStatus)> =
            self.node.apps().iter().map(|app| (app.name().clone(), app.status())).collect();
        page.family("ebbtide_apps", "gauge", "Deployed apps by how much of them is there.");
        for state in [AppState::Idle, AppState::Busy, AppState::Open, AppState::Unavailable] {
            let count = apps.iter().filter(|(_, status)| status.state == state).count();
            page.value(&[("state", state.name())], count);
        }
        // Where the log of an app ends that nobody has opened since a crash, nobody knows.
        let ends = || apps.iter().filter_map(|(app, status)| Some((app, status.end?)));
        page.family(
            "ebbtide_events_appended_total",
            "counter",
            "Durable events of the app: its last position.",
        );
        for (app, end) in ends() {
            page.value(&[("app", app)], end.position);
        }
        page.family(
            "ebbtide_commits_appended_total",
            "counter",
            "Durable commits of the app, remembered refusals included.",
        );
        for (app, end) in ends() {
            page.value(&[("app", app)], end.commit);
        }
        self.projection_metrics(&apps, &mut page);
        self.kafka_metrics(&mut page);
        self.chain_metrics(&mut page);
        let mut census = (self.functions.census)();
        let offered =
            |deployment: &Deployment| deployment.offers.as_ref().map_or(0, |offers| offers.functions.len());
        let deployed: usize = self.node.apps().iter().map(|app| offered(&app.deployment())).sum();
        // Most are unknown to the engine: nobody has called them.
        census.cold = deployed.saturating_sub(census.loaded + census.warm);
        page.census(&census);
        page.functions((self.functions.usage)());
        for (name, help, count) in [
            (
                "ebbtide_trace_spans_exported_total",
                "Spans that the collector took.",
                &self.functions.traces.exported,
            ),
            (
                "ebbtide_trace_spans_dropped_total",
                "Spans that it did not take in time.",
                &self.functions.traces.dropped,
            ),
        ] {
            page.family(name, "counter", help);
            page.value(&[], count.load(Ordering::Relaxed));
        }
        page.process();
        let mut reply = full(StatusCode::OK, page.finish());
        reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4"));
        reply
    }
}
