//! Read models over HTTP: a row by its key, rows by a query, each with how fresh it is.

use super::freshness::Freshness;
use super::query::parse_query;
use super::{Call, DataPlane};
use crate::auth::authorize;
use crate::http::problem::{
    BAD_QUERY, INTERNAL, NO_SUCH_ROW, PROJECTION_BEHIND, PROJECTION_PARKED, PROJECTION_UNAVAILABLE, Problem,
    UNKNOWN_MODEL,
};
use crate::http::reply::{EBB_LAG, EBB_PARKED, EBB_POSITION, Reply, json, number};
use crate::http::target::{parameters, segment, shorten};
use ebb_app::projections::ModelView;
use ebb_domain::event::Position;
use ebb_domain::manifest::ModelSpec;
use ebb_domain::model::row_json;
use ebb_domain::port::models::ModelError;
use http::StatusCode;
use serde_json::json;
use std::time::Duration;

impl DataPlane {
    pub(super) async fn row(&self, call: &Call<'_>, model: &str, key: &str) -> Result<Reply, Problem> {
        let (model, key) = (segment(model)?, segment(key)?);
        let spec = permitted_model(call, &model)?;
        if let Some((name, _)) = parameters(call.parts.uri.query())?.first() {
            return Err(BAD_QUERY.detail(format!("a row by its key takes no parameter `{}`", shorten(name))));
        }
        let fresh = self.fresh_view(call, &model).await?;
        let store = fresh.view.store.clone();
        let (name, wanted) = (model.clone().into_owned(), key.clone().into_owned());
        let (mark, row) = read(move || store.get_at(&name, &wanted)).await?;
        let Some(row) = row else {
            let detail = format!("model `{model}` has no row `{}`", shorten(&key));
            return Err(fresh.on_problem(mark, NO_SUCH_ROW.detail(detail)));
        };
        Ok(fresh.on_reply(mark, json(StatusCode::OK, &row_json(&spec.schema, &row))))
    }

    pub(super) async fn rows(&self, call: &Call<'_>, model: &str) -> Result<Reply, Problem> {
        let model = segment(model)?;
        let spec = permitted_model(call, &model)?;
        let (mut query, cursor) = parse_query(&spec.schema, &parameters(call.parts.uri.query())?)?;
        let app = call.app.name();
        if let Some(cursor) = cursor {
            query.after = Some(self.sealer.open(app, &spec.schema, &query, &cursor)?);
        }
        let fresh = self.fresh_view(call, &model).await?;
        let store = fresh.view.store.clone();
        let (name, asked) = (model.into_owned(), query.clone());
        let (mark, page) = read(move || store.query_at(&name, &asked)).await?;
        let last = page.rows.last().filter(|_| page.more);
        let next = last.map(|row| self.sealer.seal(app, &spec.schema, &query, row));
        let items: Vec<_> = page.rows.iter().map(|row| row_json(&spec.schema, row)).collect();
        Ok(fresh.on_reply(mark, json(StatusCode::OK, &json!({ "items": items, "next": next }))))
    }

    /// The view of a model, once it is as fresh as the request wants it.
    async fn fresh_view(&self, call: &Call<'_>, model: &str) -> Result<Fresh, Problem> {
        let asked = Freshness::of(&call.parts.headers, self.limits.wait)?;
        let mut durable = call.app.log().durable();
        let end = durable.borrow_and_update().position;
        if let Some(after) = asked.after.filter(|after| *after > end) {
            return Err(super::events::unknown_position(after, end));
        }
        let view = call.app.projections().model(model);
        let view = view.ok_or_else(|| {
            PROJECTION_UNAVAILABLE
                .detail(format!("the projection that writes `{model}` is not ready"))
                .retry_after(Duration::from_secs(1))
        })?;
        if let Some(after) = asked.after {
            self.wait_for(&view, after, asked).await?;
        }
        let store = view.store.clone();
        let parked = read(move || store.parked_count()).await?;
        Ok(Fresh { view, end, parked })
    }

    async fn wait_for(&self, view: &ModelView, after: Position, asked: Freshness) -> Result<(), Problem> {
        let mut mark = view.mark.clone();
        let reached = tokio::time::timeout(asked.wait, mark.wait_for(|mark| *mark >= after)).await;
        match reached.map(|reached| reached.is_ok()) {
            Ok(true) => {}
            Ok(false) => {
                let detail = "the projection was stopped while the read waited for it";
                return Err(PROJECTION_UNAVAILABLE.detail(detail).retry_after(Duration::from_secs(1)));
            }
            Err(_) => {
                let at = *view.mark.borrow();
                let detail = format!("position {after} was asked for; the read model has reached {at}");
                let problem = PROJECTION_BEHIND.detail(detail).with("position", at.0);
                return Err(problem.retry_after(Duration::from_secs(1)));
            }
        }
        if asked.allow_parked {
            return Ok(());
        }
        let store = view.store.clone();
        match read(move || store.first_parked()).await? {
            Some(parked) if parked <= after => {
                let detail = format!("position {after} was asked for; an event at {parked} is parked");
                let problem = PROJECTION_PARKED.detail(detail).with("position", parked.0);
                Err(problem.retry_after(Duration::from_secs(5)))
            }
            _ => Ok(()),
        }
    }
}

/// A view that is as fresh as was asked for.
struct Fresh {
    view: ModelView,
    /// The log's durable end when the request came.
    end: Position,
    parked: u64,
}

impl Fresh {
    fn headers(&self, mark: Position) -> [(http::HeaderName, http::HeaderValue); 3] {
        // The mark may have passed what was the end when the request came.
        let lag = self.end.0.saturating_sub(mark.0);
        [(EBB_POSITION, number(mark.0)), (EBB_LAG, number(lag)), (EBB_PARKED, number(self.parked))]
    }

    fn on_reply(&self, mark: Position, mut reply: Reply) -> Reply {
        reply.headers_mut().extend(self.headers(mark));
        reply
    }

    fn on_problem(&self, mark: Position, problem: Problem) -> Problem {
        self.headers(mark).into_iter().fold(problem, |problem, (name, value)| problem.header(name, value))
    }
}

fn permitted_model<'m>(call: &Call<'m>, model: &str) -> Result<&'m ModelSpec, Problem> {
    let spec = call.manifest.models.values().find(|spec| *spec.schema.name == *model);
    let spec = spec.ok_or_else(|| {
        let known: Vec<&str> = call.manifest.models.keys().map(|name| &**name).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        UNKNOWN_MODEL.detail(format!("this app has no model `{}`; it has {known}", shorten(model)))
    })?;
    authorize(&spec.allow, &call.actor, || format!("model {model}"))?;
    Ok(spec)
}

/// Reads of a store may touch the disk: not on a worker that serves sockets.
async fn read<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ModelError> + Send + 'static,
) -> Result<T, Problem> {
    let read = tokio::task::spawn_blocking(work).await;
    let failed = |cause: String| INTERNAL.detail("the read model could not be read").cause(cause);
    match read {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(error) => Err(failed(error.to_string())),
    }
}
