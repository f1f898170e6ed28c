//! Projections and event functions: how they do, what is parked, rebuilding, going on elsewhere.

use super::apps::read_json;
use super::page::unless_known;
use super::{ControlPlane, app_parameter};
use crate::http::body::RequestBody;
use crate::http::problem::{
    BAD_QUERY, INTERNAL, KEYS_PARKED, NOT_A_FUNCTION, NOT_PARKED, NOT_REBUILT, POSITION_UNKNOWN,
    PROJECTION_UNAVAILABLE, Problem, REBUILD_IN_PROGRESS, RECORDS_GONE, UNKNOWN_PROJECTION,
};
use crate::http::reply::{Reply, json};
use crate::http::target::{parameters, shorten};
use crate::metrics::Page;
use ebb_app::app::App;
use ebb_app::node::AppStatus;
use ebb_app::projections::{ProjectionError, ProjectionStatus, Projections, Seek};
use ebb_domain::event::Position;
use ebb_domain::manifest::Beginning;
use ebb_domain::name::{AppName, ProjectionName};
use ebb_domain::text::Text;
use http::StatusCode;
use http::request::Parts;
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::Duration;

/// Keys of a page at most, and where nobody says.
const PAGE: usize = 1000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Key {
    key: Text,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Skip {
    key: Text,
    /// The key's whole queue, not only the event that stands first.
    #[serde(default)]
    whole: bool,
}

/// Where an event function goes on: `"now"`, `"start"`, or behind a position.
#[derive(Deserialize)]
#[serde(untagged)]
enum To {
    Beginning(Beginning),
    Behind(u64),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SeekTo {
    to: To,
}

impl ControlPlane {
    /// `GET /projections[?app=]`.
    pub(super) fn projection_status(&self, parts: &Parts) -> Result<Reply, Problem> {
        let only = app_parameter(parts)?;
        let mut projections = Vec::new();
        let apps = self.node.apps();
        for app in apps.iter().filter(|app| only.as_deref().is_none_or(|only| only == &**app.name())) {
            projections.extend(app.status().projections.iter().map(|status| shown(app.name(), status)));
        }
        Ok(unless_known(&parts.headers, &json!({ "projections": projections })))
    }

    pub(super) fn projection_metrics(&self, apps: &[(AppName, AppStatus)], page: &mut Page) {
        let statuses =
            apps.iter().flat_map(|(app, status)| status.projections.iter().map(move |one| (app, one)));
        let statuses: Vec<_> = statuses.collect();
        page.family(
            "ebbtide_projection_position",
            "gauge",
            "The last event that the projection has applied, in the app's log.",
        );
        for (app, status) in statuses.iter().filter(|(_, status)| status.serving.topics.is_none()) {
            page.value(&[("app", &***app), ("projection", &status.name)], status.serving.mark);
        }
        page.family(
            "ebbtide_projection_lag_events",
            "gauge",
            "Durable events, or records of its topics, that the projection has not seen.",
        );
        for (app, status) in &statuses {
            page.value(&[("app", &***app), ("projection", &status.name)], status.serving.lag);
        }
        page.family(
            "ebbtide_projection_parked_keys",
            "gauge",
            "Keys whose events wait for someone to retry or skip them.",
        );
        for (app, status) in &statuses {
            page.value(&[("app", &***app), ("projection", &status.name)], status.serving.parked);
        }
    }

    pub(super) async fn rebuild(&self, app: &str, name: &str) -> Result<Reply, Problem> {
        let app = self.open(app).await?;
        projections(&app).await?.rebuild(&projection(name)?).await.map_err(problem)?;
        Ok(json(StatusCode::ACCEPTED, &json!({ "projection": name, "rebuilding": true })))
    }

    pub(super) async fn seek(
        &self,
        app: &str,
        name: &str,
        parts: &Parts,
        body: RequestBody,
    ) -> Result<Reply, Problem> {
        let app = self.open(app).await?;
        let SeekTo { to } = read_json(parts, body, "{\"to\": \"now\" | \"start\" | POSITION}").await?;
        let to = match to {
            To::Beginning(beginning) => Seek::To(beginning),
            To::Behind(position) => Seek::Behind(Position(position)),
        };
        let seeking = projections(&app).await?.seek(&projection(name)?, to).await;
        let position = seeking.map_err(problem)?;
        Ok(json(StatusCode::OK, &json!({ "function": name, "position": position })))
    }

    pub(super) async fn parked(&self, app: &str, name: &str, parts: &Parts) -> Result<Reply, Problem> {
        let (mut after, mut limit) = (None, PAGE);
        for (name, value) in parameters(parts.uri.query())? {
            match &*name {
                "after" => after = Some(Text::from(value.into_owned())),
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
        let app = self.open(app).await?;
        let keys =
            projections(&app).await?.parked(&projection(name)?, after, limit).await.map_err(problem)?;
        let next = keys.last().filter(|_| keys.len() == limit).map(|parked| parked.key.clone());
        Ok(json(StatusCode::OK, &json!({ "parked": keys, "next": next })))
    }

    /// `GET …/parked/event?key=`: the event that stands first under a key, wherever it is kept.
    pub(super) async fn parked_event(&self, app: &str, name: &str, parts: &Parts) -> Result<Reply, Problem> {
        let given = parameters(parts.uri.query())?;
        let [(parameter, key)] = &*given else {
            return Err(BAD_QUERY.detail("`key` is to say which parked key, and nothing else is taken here"));
        };
        if parameter != "key" {
            let detail = format!("there is no parameter `{}` here; there is key", shorten(parameter));
            return Err(BAD_QUERY.detail(detail));
        }
        let app = self.open(app).await?;
        let key = Text::from(&**key);
        let event = projections(&app).await?.parked_event(&projection(name)?, &key).await.map_err(problem)?;
        Ok(json(StatusCode::OK, &event.cloud_event(app.name())))
    }

    pub(super) async fn retry_parked(
        &self,
        app: &str,
        name: &str,
        parts: &Parts,
        body: RequestBody,
    ) -> Result<Reply, Problem> {
        let app = self.open(app).await?;
        let Key { key } = read_json(parts, body, "{\"key\": KEY}").await?;
        let retried = projections(&app).await?.retry(&projection(name)?, &key).await.map_err(problem)?;
        Ok(json(StatusCode::OK, &json!(retried)))
    }

    pub(super) async fn skip_parked(
        &self,
        app: &str,
        name: &str,
        parts: &Parts,
        body: RequestBody,
    ) -> Result<Reply, Problem> {
        let app = self.open(app).await?;
        let Skip { key, whole } = read_json(parts, body, "{\"key\": KEY, \"whole\": true|false}").await?;
        let projection = projection(name)?;
        let skipped = projections(&app).await?.skip(&projection, &key, whole).await.map_err(problem)?;
        let mut answer = json!(skipped);
        // Who leaves an event out wants those behind it in the rows.
        if skipped.remaining > 0 {
            let retried = projections(&app).await?.retry(&projection, &key).await.map_err(problem)?;
            answer["applied"] = retried.applied.into();
            answer["remaining"] = retried.remaining.into();
            answer["failed"] = json!(retried.failed);
        }
        Ok(json(StatusCode::OK, &answer))
    }
}

async fn projections(app: &App) -> Result<&Projections, Problem> {
    app.projections().await.map_err(problem)
}

fn projection(name: &str) -> Result<ProjectionName, Problem> {
    ProjectionName::new(name)
        .map_err(|_| UNKNOWN_PROJECTION.detail(format!("there is no projection `{}`", shorten(name))))
}

/// What serves, at the top; what is being built to take its place, below `building`.
fn shown(app: &AppName, status: &ProjectionStatus) -> Value {
    let mut shown = serde_json::to_value(&status.serving).unwrap_or_default();
    shown["app"] = json!(app);
    shown["projection"] = json!(status.name);
    shown["kind"] = json!(status.kind);
    shown["models"] = json!(status.models);
    shown["building"] = json!(status.building);
    shown
}

fn problem(error: ProjectionError) -> Problem {
    let detail = error.to_string();
    match error {
        ProjectionError::Unknown(_) => UNKNOWN_PROJECTION.detail(detail),
        ProjectionError::NotParked { .. } => NOT_PARKED.detail(detail),
        ProjectionError::Building(_) => REBUILD_IN_PROGRESS.detail(detail),
        ProjectionError::Function(_) => NOT_REBUILT.detail(detail),
        ProjectionError::NotFunction(_) => NOT_A_FUNCTION.detail(detail),
        ProjectionError::Forgotten { .. } => RECORDS_GONE.detail(detail),
        ProjectionError::Parked { .. } => KEYS_PARKED.detail(detail),
        ProjectionError::NoPosition { end, .. } => POSITION_UNKNOWN.detail(detail).with("position", end.0),
        ProjectionError::NotRunning(_) => {
            PROJECTION_UNAVAILABLE.detail(detail).retry_after(Duration::from_secs(1))
        }
        error => INTERNAL.detail("the projection could not do that").cause(error),
    }
}
