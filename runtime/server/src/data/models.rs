//! Read models over HTTP: a row by its key, rows by a query, each with how fresh it is.

use super::freshness::Freshness;
use super::query::parse_query;
use super::{Call, DataPlane};
use crate::http::problem::{
    BAD_HEADER, BAD_QUERY, NO_SUCH_ROW, PROJECTION_BEHIND, PROJECTION_PARKED, PROJECTION_UNAVAILABLE,
    Problem, UNKNOWN_MODEL,
};
use crate::http::reply::{EBB_LAG, EBB_PARKED, EBB_POSITION, Reply, json, number};
use crate::http::target::{parameters, segment, shorten};
use ebb_app::projections::{ModelReader, NotFresh};
use ebb_domain::event::Position;
use ebb_domain::model::row_json;
use ebb_domain::name::ModelName;
use ebb_domain::port::models::ModelError;
use http::{HeaderName, HeaderValue, StatusCode};
use serde_json::json;
use std::time::Duration;

impl DataPlane {
    pub(super) async fn row(&self, call: &Call<'_>, model: &str, key: &str) -> Result<Reply, Problem> {
        let (model, key) = (segment(model)?, segment(key)?);
        permit(call, &model)?;
        if let Some((name, _)) = parameters(call.parts.uri.query())?.first() {
            return Err(BAD_QUERY.detail(format!("a row by its key takes no parameter `{}`", shorten(name))));
        }
        let reader = reader(call, &model).await?;
        let end = self.be_fresh(call, &reader).await?;
        let (mark, row) = reader.get_at(&key).map_err(unreadable)?;
        let headers = freshness_headers(&reader, mark, end);
        let Some(row) = row else {
            let problem = NO_SUCH_ROW.detail(format!("model `{model}` has no row `{}`", shorten(&key)));
            return Err(headers
                .into_iter()
                .fold(problem, |problem, (name, value)| problem.header(name, value)));
        };
        let mut reply = json(StatusCode::OK, &row_json(&reader.schema(), &row));
        reply.headers_mut().extend(headers);
        Ok(reply)
    }

    pub(super) async fn rows(&self, call: &Call<'_>, model: &str) -> Result<Reply, Problem> {
        let model = segment(model)?;
        permit(call, &model)?;
        let reader = reader(call, &model).await?;
        // As it is served: the manifest's may be of a version that is still being built.
        let schema = reader.schema();
        let (mut query, cursor) = parse_query(&schema, &parameters(call.parts.uri.query())?)?;
        let app = call.app.name();
        if let Some(cursor) = cursor {
            query.after = Some(self.sealer.open(app, &schema, &query, &cursor)?);
        }
        let end = self.be_fresh(call, &reader).await?;
        let (mark, page) = reader.query_at(query.clone()).await.map_err(unreadable)?;
        let last = page.rows.last().filter(|_| page.more);
        let next = last.map(|row| self.sealer.seal(app, &schema, &query, row));
        let items: Vec<_> = page.rows.iter().map(|row| row_json(&schema, row)).collect();
        let mut reply = json(StatusCode::OK, &json!({ "items": items, "next": next }));
        reply.headers_mut().extend(freshness_headers(&reader, mark, end));
        Ok(reply)
    }

    /// Waits until the model is as fresh as the request wants it; gives the log's end when the request came.
    async fn be_fresh(&self, call: &Call<'_>, reader: &ModelReader) -> Result<Position, Problem> {
        let asked = Freshness::of(&call.parts.headers, self.limits.wait)?;
        let end = reader.end();
        let Some(after) = asked.after else { return Ok(end) };
        let fresh = reader.be_fresh(after, asked.wait, asked.allow_parked).await;
        fresh.map(|()| end).map_err(|stale| match stale {
            NotFresh::Direct { .. } => BAD_HEADER.detail(format!("`Ebb-After`: {stale}")),
            NotFresh::Unknown { wanted, end } => super::events::unknown_position(wanted, end),
            NotFresh::Behind(waited) => {
                let problem = PROJECTION_BEHIND.detail(waited.to_string()).with("position", waited.mark.0);
                problem.retry_after(Duration::from_secs(1))
            }
            NotFresh::Parked { parked, .. } => {
                let problem = PROJECTION_PARKED.detail(stale.to_string()).with("position", parked.0);
                problem.retry_after(Duration::from_secs(5))
            }
        })
    }
}

fn freshness_headers(reader: &ModelReader, mark: Position, end: Position) -> Vec<(HeaderName, HeaderValue)> {
    let parked = (EBB_PARKED, number(reader.parked_count()));
    if reader.is_direct() {
        // Where it stands is no position of the log, and is not to be taken for one.
        return vec![(EBB_LAG, number(reader.lag())), parked];
    }
    // The mark may have passed what was the end when the request came.
    let lag = end.0.saturating_sub(mark.0);
    vec![(EBB_POSITION, number(mark.0)), (EBB_LAG, number(lag)), parked]
}

async fn reader(call: &Call<'_>, model: &str) -> Result<ModelReader, Problem> {
    let not_ready = || {
        let detail = format!("the projection that writes `{model}` is not ready");
        PROJECTION_UNAVAILABLE.detail(detail).retry_after(Duration::from_secs(1))
    };
    let name = ModelName::new(model).map_err(|_| not_ready())?;
    let reader = call.app.model(&name).await.map_err(|error| not_ready().cause(error))?;
    reader.ok_or_else(not_ready)
}

/// Whether the app has the model, and the actor may query it.
fn permit(call: &Call<'_>, model: &str) -> Result<(), Problem> {
    let spec = call.manifest.models.values().find(|spec| *spec.schema.name == *model);
    let spec = spec.ok_or_else(|| {
        let known: Vec<&str> = call.manifest.models.keys().map(|name| &**name).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        UNKNOWN_MODEL.detail(format!("this app has no model `{}`; it has {known}", shorten(model)))
    })?;
    call.authorize(&spec.allow, || format!("model {model}"))
}

/// Rows can always be made again from the log: whatever keeps them from being read passes.
fn unreadable(error: ModelError) -> Problem {
    let problem = PROJECTION_UNAVAILABLE.detail("the read model can't be read now").cause(error);
    problem.retry_after(Duration::from_secs(1))
}
