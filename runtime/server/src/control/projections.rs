//! Projections: how they do, what is parked, rebuilding.

use super::ControlPlane;
use super::apps::read_json;
use crate::http::problem::{
    BAD_QUERY, INTERNAL, NOT_PARKED, Problem, REBUILD_IN_PROGRESS, UNKNOWN_PROJECTION,
};
use crate::http::reply::{Reply, json};
use crate::http::target::{parameters, shorten};
use crate::metrics::Page;
use ebb_app::projections::ProjectionError;
use http::StatusCode;
use http::request::Parts;
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::json;

/// Keys of a page at most, and where nobody says.
const PAGE: usize = 1000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Key {
    key: String,
}

impl ControlPlane {
    pub(super) async fn projection_status(&self) -> Result<Reply, Problem> {
        let mut projections = Vec::new();
        for app in self.node.apps() {
            for status in app.projections().status().await {
                let mut status = serde_json::to_value(&status).unwrap_or_default();
                status["app"] = (&**app.name()).into();
                projections.push(status);
            }
        }
        Ok(json(StatusCode::OK, &json!({ "projections": projections })))
    }

    pub(super) async fn projection_metrics(&self, page: &mut Page) -> Result<(), Problem> {
        let mut statuses = Vec::new();
        for app in self.node.apps() {
            for status in app.projections().status().await {
                statuses.push((app.name().clone(), status));
            }
        }
        page.family(
            "ebbtide_projection_position",
            "gauge",
            "The last event that the projection has applied.",
        );
        for (app, status) in &statuses {
            page.value(&[("app", app), ("projection", &status.name)], status.serving.mark);
        }
        page.family(
            "ebbtide_projection_lag_events",
            "gauge",
            "Durable events that the projection has not seen.",
        );
        for (app, status) in &statuses {
            page.value(&[("app", app), ("projection", &status.name)], status.serving.lag);
        }
        page.family(
            "ebbtide_projection_parked_keys",
            "gauge",
            "Keys whose events wait for someone to retry or skip them.",
        );
        for (app, status) in &statuses {
            page.value(&[("app", app), ("projection", &status.name)], status.serving.parked);
        }
        Ok(())
    }

    pub(super) async fn rebuild(&self, app: &str, name: &str) -> Result<Reply, Problem> {
        let app = self.find(app)?;
        app.projections().rebuild(name).await.map_err(problem)?;
        Ok(json(StatusCode::ACCEPTED, &json!({ "projection": name, "rebuilding": true })))
    }

    pub(super) async fn parked(&self, app: &str, name: &str, parts: &Parts) -> Result<Reply, Problem> {
        let (mut after, mut limit) = (None, PAGE);
        for (name, value) in parameters(parts.uri.query())? {
            match &*name {
                "after" => after = Some(value.into_owned()),
                "limit" => {
                    let read = value.parse().ok().filter(|limit| (1..=PAGE).contains(limit));
                    limit = read.ok_or_else(|| {
                        BAD_QUERY.detail(format!(
                            "`limit` is `{}`; it takes a number from 1 to {PAGE}",
                            shorten(&value)
                        ))
                    })?;
                }
                _ => {
                    return Err(BAD_QUERY.detail(format!(
                        "there is no parameter `{}` here; there are after and limit",
                        shorten(&name)
                    )));
                }
            }
        }
        let app = self.find(app)?;
        let keys = app.projections().parked(name, after.as_deref(), limit).await.map_err(problem)?;
        let next = keys.last().filter(|_| keys.len() == limit).map(|parked| parked.key.clone());
        Ok(json(StatusCode::OK, &json!({ "parked": keys, "next": next })))
    }

    pub(super) async fn retry_parked(
        &self,
        app: &str,
        name: &str,
        parts: &Parts,
        body: Incoming,
    ) -> Result<Reply, Problem> {
        let app = self.find(app)?;
        let Key { key } = read_json(parts, body, "{\"key\": KEY}").await?;
        let left = app.projections().retry(name, &key).await.map_err(problem)?;
        Ok(json(StatusCode::OK, &json!({ "key": key, "parked": left })))
    }

    pub(super) async fn skip_parked(
        &self,
        app: &str,
        name: &str,
        parts: &Parts,
        body: Incoming,
    ) -> Result<Reply, Problem> {
        let app = self.find(app)?;
        let Key { key } = read_json(parts, body, "{\"key\": KEY}").await?;
        let left = app.projections().skip(name, &key).await.map_err(problem)?;
        Ok(json(StatusCode::OK, &json!({ "key": key, "parked": left })))
    }
}

fn problem(error: ProjectionError) -> Problem {
    let detail = error.to_string();
    match error {
        ProjectionError::Unknown(_) => UNKNOWN_PROJECTION.detail(detail),
        ProjectionError::NotParked(_) => NOT_PARKED.detail(detail),
        ProjectionError::Rebuilding(_) => REBUILD_IN_PROGRESS.detail(detail),
        error => INTERNAL.detail("the projection could not do that").cause(error),
    }
}
