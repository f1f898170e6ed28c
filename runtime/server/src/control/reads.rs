//! What an app has, for its operator: the data plane's own reads under the control address, and states of the past.

use super::ControlPlane;
use crate::data::commands::module_problem;
use crate::http::problem::{
    BAD_QUERY, INTERNAL, INVALID_KEY, MODULE_TRAPPED, NO_SUCH_REVISION, NOT_FOUND, OUT_OF_TIME, OVERLOADED,
    Problem, STATE_NOT_SHOWN, TOO_MANY_EVENTS, UNKNOWN_AGGREGATE,
};
use crate::http::reply::{Reply, json};
use crate::http::target::{parameters, shorten};
use ebb_app::commands::{PastState, StateError};
use ebb_domain::event::Revision;
use ebb_domain::port::guest::CallError;
use ebb_domain::stream::StreamId;
use ebb_domain::text::{Text, base64};
use http::StatusCode;
use http::header::{CACHE_CONTROL, HeaderValue};
use http::request::Parts;
use serde_json::{Value, json};
use std::time::Duration;

impl ControlPlane {
    /// `GET /apps/{app}/events`, `…/streams/{stream}`, `…/models/…`, `…/command-log/{id}`: as on the data plane.
    pub(super) async fn read(&self, app: &str, parts: &Parts, operator: Text) -> Result<Reply, Problem> {
        let path = parts.uri.path();
        // The data plane takes the rest of the path apart itself, undecoded.
        let rest = path.match_indices('/').nth(2).map_or("", |(at, _)| &path[at..]);
        let app = self.open(app).await?;
        match self.data.read_as_operator(&app, rest, parts, operator).await {
            Some(answer) => answer,
            None => Err(NOT_FOUND.detail(format!("there is nothing at `{}`", shorten(path)))),
        }
    }

    /// `GET /apps/{app}/streams/{stream}/state[?revision=N]`.
    pub(super) async fn state(&self, app: &str, stream: &str, parts: &Parts) -> Result<Reply, Problem> {
        let mut revision = None;
        for (name, value) in parameters(parts.uri.query())? {
            if name != "revision" {
                let detail = format!("there is no parameter `{}` here; there is revision", shorten(&name));
                return Err(BAD_QUERY.detail(detail));
            }
            revision = Some(Revision(value.parse().map_err(|_| {
                let value = shorten(&value);
                BAD_QUERY.detail(format!("`revision` is `{value}`; it takes a whole number from 0"))
            })?));
        }
        let app = self.open(app).await?;
        let stream = StreamId::parse(stream).map_err(|error| INVALID_KEY.detail(error.to_string()))?;
        let state = app.state_at(&stream, revision).await.map_err(problem)?;
        let mut reply = json(StatusCode::OK, &shown(&stream, &state));
        reply.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        Ok(reply)
    }
}

/// The state as JSON, if its snapshot is JSON; else its bytes in Base64, as events have theirs.
fn shown(stream: &StreamId, state: &PastState) -> Value {
    let mut shown = json!({
        "stream": stream.as_str(),
        "revision": state.revision.0,
        "module": state.module.to_string(),
    });
    match serde_json::from_slice::<Value>(&state.data) {
        Ok(value) => shown["state"] = value,
        Err(_) => shown["state_base64"] = base64(&state.data).into(),
    }
    shown
}

fn problem(error: StateError) -> Problem {
    let detail = error.to_string();
    match error {
        StateError::UnknownAggregate { .. } => UNKNOWN_AGGREGATE.detail(detail),
        StateError::NoSuchRevision { last, .. } => {
            NO_SUCH_REVISION.detail(detail).with("last_revision", last.map(|last| last.0))
        }
        StateError::TooManyEvents { last, .. } => {
            TOO_MANY_EVENTS.detail(detail).with("last_revision", last.0)
        }
        StateError::NotShown(_) => STATE_NOT_SHOWN.detail(detail),
        StateError::OutOfTime => OUT_OF_TIME.detail(detail),
        StateError::Busy => OVERLOADED.detail(detail).retry_after(Duration::from_secs(1)),
        // The operator reads the node's log: no secret is told.
        StateError::Module(error @ CallError::Trapped(_)) => MODULE_TRAPPED.detail(error.to_string()),
        StateError::Module(error) => module_problem(error, "request"),
        StateError::Log(error) => INTERNAL.detail("the log could not be read").cause(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use ebb_domain::digest::Digest;

    #[test]
    fn a_snapshot_that_is_not_json_is_shown_as_base64() {
        let stream = StreamId::parse("account-1").unwrap();
        let state = |data: &'static [u8]| PastState {
            revision: Revision(3),
            module: Digest::default(),
            data: Bytes::from_static(data),
        };
        assert_eq!(shown(&stream, &state(b"{\"balance\":1}"))["state"], json!({ "balance": 1 }));
        assert_eq!(shown(&stream, &state(b"\xff\x00"))["state_base64"], "/wA=");
    }
}
