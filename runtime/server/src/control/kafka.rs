//! Kafka: how relays and consumer groups do.

use super::page::unless_known;
use super::{ControlPlane, app_parameter};
use crate::http::problem::{NOT_FOUND, Problem};
use crate::http::reply::{Reply, json};
use crate::http::target::shorten;
use crate::metrics::Page;
use ebb_app::app::App;
use ebb_domain::name::TopicName;
use http::StatusCode;
use http::request::Parts;
use serde_json::json as value;
use std::sync::Arc;

impl ControlPlane {
    pub(super) fn open_apps(&self) -> Vec<Arc<App>> {
        self.node.apps().iter().filter_map(|app| app.if_open()).collect()
    }

    /// `GET /kafka[?app=]`: of apps that are open. One that consumes topics always is.
    pub(super) fn kafka_status(&self, parts: &Parts) -> Result<Reply, Problem> {
        let only = app_parameter(parts)?;
        let mut kafka = Vec::new();
        for app in self.open_apps() {
            if only.as_deref().is_some_and(|only| only != &**app.name()) {
                continue;
            }
            let (relay, groups) = (app.relay_status(), app.intake_status());
            if relay.is_some() || !groups.is_empty() {
                kafka.push(value!({ "app": app.name(), "relay": relay, "groups": groups }));
            }
        }
        Ok(unless_known(&parts.headers, &value!({ "kafka": kafka })))
    }

    /// `POST /apps/{app}/topics/{topic}/accept`: goes on with a topic that was deleted and made again.
    pub(super) async fn accept_topic(&self, app: &str, topic: &str) -> Result<Reply, Problem> {
        let app = self.open(app).await?;
        let accepted = TopicName::new(topic).is_ok_and(|topic| app.accept_topic(&topic));
        if !accepted {
            let detail = format!("app `{}` consumes no topic `{}`", app.name(), shorten(topic));
            return Err(NOT_FOUND.detail(detail));
        }
        Ok(json(StatusCode::OK, &value!({ "topic": topic, "accepted": true })))
    }

    pub(super) fn kafka_metrics(&self, page: &mut Page) {
        let apps = self.open_apps();
        let relays: Vec<_> = apps.iter().filter_map(|app| Some((app.name(), app.relay_status()?))).collect();
        page.family("ebbtide_relay_position", "gauge", "The last event that is known to be in Kafka.");
        for (app, relay) in &relays {
            if let Some(mark) = relay.mark {
                page.value(&[("app", &***app)], mark);
            }
        }
        page.family("ebbtide_relay_lag_events", "gauge", "Durable events that are not known to be in Kafka.");
        for (app, relay) in &relays {
            if let Some(lag) = relay.lag {
                page.value(&[("app", &***app)], lag);
            }
        }
        page.family("ebbtide_relay_events_total", "counter", "Events that the relay has published.");
        for (app, relay) in &relays {
            page.value(&[("app", &***app)], relay.events);
        }
        let groups: Vec<_> = apps
            .iter()
            .flat_map(|app| app.intake_status().into_iter().map(move |group| (app.name(), group)))
            .collect();
        page.family("ebbtide_topic_records_total", "counter", "Records of topics that came into the log.");
        for (app, group) in &groups {
            page.value(&[("app", &***app), ("group", &*group.group)], group.records);
        }
        page.family(
            "ebbtide_topic_duplicates_total",
            "counter",
            "Records of topics that were in the log already.",
        );
        for (app, group) in &groups {
            page.value(&[("app", &***app), ("group", &*group.group)], group.duplicates);
        }
        page.family("ebbtide_topic_lag_records", "gauge", "Records that a group has still to consume.");
        for (app, group) in &groups {
            for partition in &group.partitions {
                let number = partition.partition.to_string();
                let labels = [
                    ("app", &***app),
                    ("group", &*group.group),
                    ("topic", &*partition.topic),
                    ("partition", &*number),
                ];
                page.value(&labels, partition.lag);
            }
        }
    }
}
