//! `ebb state`: an aggregate's state, now or after an earlier event, folded again by the node.

use super::query::render_row;
use super::status::only_app;
use crate::args::State as Args;
use crate::client::{Path, Server};
use crate::failure::{Exit, Failure};
use crate::output::Output;
use serde_json::Value;

/// Asks, and shows.
pub(crate) async fn run(output: Output, args: Args) -> Result<Exit, Failure> {
    let server = Server::control(&args.plane)?;
    let app = match args.app {
        Some(app) => app,
        None => only_app(&server).await?,
    };
    let path = Path::new().segment("apps").segment(&app).segment("streams").segment(&args.stream);
    let path = path.segment("state");
    let path = match args.at {
        Some(revision) => path.parameter("revision", revision),
        None => path,
    };
    let answer: Value = server.json(server.get(&path)).await?;
    if output.json {
        output.json(&answer)?;
        return Ok(Exit::Done);
    }
    let revision = answer.get("revision").and_then(Value::as_u64).unwrap_or_default();
    let stream = output.note_style().strong(&args.stream);
    output.note(format_args!("{stream} at revision {revision}"));
    output.line(render(&answer, output))?;
    Ok(Exit::Done)
}

fn render(answer: &Value, output: Output) -> String {
    match (answer.get("state"), answer.get("state_base64").and_then(Value::as_str)) {
        (Some(Value::Object(fields)), _) if !fields.is_empty() => render_row(fields, output),
        (Some(state), _) => state.to_string(),
        (None, Some(bytes)) => format!("(not JSON; in Base64) {bytes}"),
        (None, None) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_state_is_a_field_a_line_or_what_else_it_is() {
        let shown = |answer: Value| render(&answer, Output::plain());
        insta::assert_snapshot!(shown(json!({ "state": { "balance": 300, "owner": "Ada", "limits": [1, 2] } })), @r"
        balance  300
        limits   [1,2]
        owner    Ada
        ");
        assert_eq!(shown(json!({ "state": null })), "null");
        assert_eq!(shown(json!({ "state_base64": "/wA=" })), "(not JSON; in Base64) /wA=");
    }
}
