//! Probes, and how the node does.

use super::ControlPlane;
use crate::http::problem::SHUTTING_DOWN;
use crate::http::reply::{Reply, full, json};
use crate::metrics::Page;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, StatusCode};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// The process answers. Nothing else: a node that waits for its disk must not be killed for it.
pub(super) fn live() -> Reply {
    json(StatusCode::OK, &serde_json::json!({ "status": "live" }))
}

impl ControlPlane {
    /// Whether requests should be sent here. The node opened every app before this port was bound.
    pub(super) fn ready(&self) -> Reply {
        if *self.stopping.borrow() {
            let detail = "the node is shutting down";
            return SHUTTING_DOWN.detail(detail).retry_after(Duration::from_secs(1)).into_reply();
        }
        json(StatusCode::OK, &serde_json::json!({ "status": "ready" }))
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
        let apps = self.node.apps();
        page.family(
            "ebbtide_events_appended_total",
            "counter",
            "Durable events of the app: its last position.",
        );
        for app in &apps {
            page.value(&[("app", app.name())], app.log().durable().borrow().position);
        }
        page.family(
            "ebbtide_commits_appended_total",
            "counter",
            "Durable commits of the app, remembered refusals included.",
        );
        for app in &apps {
            page.value(&[("app", app.name())], app.log().durable().borrow().commit);
        }
        self.projection_metrics(&mut page);
        page.census(&(self.functions.census)());
        page.functions((self.functions.usage)());
        page.process();
        let mut reply = full(StatusCode::OK, page.finish());
        reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4"));
        reply
    }
}
