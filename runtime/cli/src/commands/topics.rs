//! `ebb topics`: Kafka topics that an app consumes.

use super::status::only_app;
use crate::args::{AcceptTopic, Topics};
use crate::client::{Path, Server};
use crate::failure::{Exit, Failure};
use crate::output::{Output, printable};
use reqwest::Method;
use serde_json::Value;

/// `ebb topics accept`.
pub(crate) async fn run(output: Output, args: Topics) -> Result<Exit, Failure> {
    let Topics::Accept(AcceptTopic { topic, app, plane }) = args;
    let server = Server::control(&plane)?;
    let app = match app {
        Some(app) => app,
        None => only_app(&server).await?,
    };
    let path = Path::new().segment("apps").segment(&app).segment("topics").segment(&topic).segment("accept");
    let answer: Value = server.json(server.request(Method::POST, &path)).await?;
    if output.json {
        output.json(&answer)?;
    } else {
        output.line(format_args!(
            "{} {app} goes on with `{}` as it is now",
            output.style().good("done"),
            printable(&topic)
        ))?;
    }
    Ok(Exit::Done)
}
