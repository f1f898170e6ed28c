//! `ebb rebuild` and `ebb seek`: where what follows the log goes on.

use super::status::only_app;
use crate::args::{Rebuild, Seek};
use crate::client::{Path, Server};
use crate::failure::{Exit, Failure};
use crate::output::Output;
use reqwest::Method;
use serde_json::{Value, json};

pub(super) async fn projection(
    server: &Server,
    app: Option<&str>,
    projection: &str,
) -> Result<Path, Failure> {
    let app = match app {
        Some(app) => app.to_owned(),
        None => only_app(server).await?,
    };
    Ok(Path::new().segment("apps").segment(&app).segment("projections").segment(projection))
}

/// Asks the node to build a projection's rows again.
pub(crate) async fn rebuild(output: Output, args: Rebuild) -> Result<Exit, Failure> {
    let server = Server::control(&args.plane)?;
    let path = projection(&server, args.app.as_deref(), &args.projection).await?.segment("rebuild");
    let answer: Value = server.json(server.request(Method::POST, &path)).await?;
    if output.json {
        output.json(&answer)?;
    } else {
        output.line(format_args!("{} {}", output.style().good("rebuilding"), args.projection))?;
        output.note("the rows that serve are swapped when the new ones have caught up; see `ebb status`");
    }
    Ok(Exit::Done)
}

/// Has an event function go on elsewhere.
pub(crate) async fn seek(output: Output, args: Seek) -> Result<Exit, Failure> {
    let server = Server::control(&args.plane)?;
    let path = projection(&server, args.app.as_deref(), &args.function).await?.segment("seek");
    let request = server.request(Method::POST, &path).json(&json!({ "to": args.to }));
    let answer: Value = server.json(request).await?;
    if output.json {
        output.json(&answer)?;
    } else {
        let style = output.style();
        output.line(format_args!(
            "{} {} goes on behind position {}",
            style.good("done"),
            args.function,
            answer["position"]
        ))?;
    }
    Ok(Exit::Done)
}
