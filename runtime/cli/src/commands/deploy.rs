//! `ebb deploy` and `ebb rollback`: what serves on a node.

use crate::args::{Deploy, Rollback};
use crate::client::{Path, Server};
use crate::failure::{Exit, Failure};
use crate::output::{Align, Output, Table, printable};
use crate::project::{Project, tar};
use ebb_app::bundle::Bundle;
use ebb_app::deploy::{Deployed, Deployment};
use reqwest::{Method, RequestBuilder};
use serde::{Deserialize, Serialize};

/// Sends the bundle.
pub(crate) async fn deploy(output: Output, args: Deploy) -> Result<Exit, Failure> {
    let project = Project::open(&args.dir)?;
    if args.build {
        project.build(output).await?;
    }
    // What can be found here is found here, with the file's lines, before megabytes are sent.
    let manifest = project.inspected()?;
    let server = Server::control(&args.plane)?;
    let deployed = send(&server, &manifest.name, &project, args.if_match).await?;
    warn(output, &deployed);
    if output.json {
        output.json(&deployed)?;
    } else {
        let deployment = deployed.deployment;
        let style = output.style();
        output.line(format_args!(
            "{} {} as deployment {}",
            style.good("deployed"),
            style.strong(&deployment.app),
            deployment.number
        ))?;
    }
    Ok(Exit::Done)
}

/// What serves now may be of no use yet.
fn warn(output: Output, deployed: &Deployed) {
    for warning in &deployed.warnings {
        output.always(format_args!("{} {}", output.note_style().warning("warning:"), printable(warning)));
    }
}

/// Deploys a folder's bundle to a control plane.
///
/// # Errors
/// The node does not take it, and says why.
pub(crate) async fn send(
    server: &Server,
    app: &str,
    project: &Project,
    if_match: Option<u64>,
) -> Result<Deployed, Failure> {
    send_bundle(server, app, &project.bundle(), if_match).await
}

/// Deploys a bundle to a control plane.
///
/// # Errors
/// The node does not take it, and says why.
pub(crate) async fn send_bundle(
    server: &Server,
    app: &str,
    bundle: &Bundle,
    if_match: Option<u64>,
) -> Result<Deployed, Failure> {
    let body = tar(bundle)?;
    let request = server
        .request(Method::PUT, &Path::new().segment("apps").segment(app))
        .header("content-type", "application/x-tar")
        .body(body);
    server.json(guarded(request, if_match)).await
}

fn guarded(request: RequestBuilder, if_match: Option<u64>) -> RequestBuilder {
    match if_match {
        None => request,
        Some(0) => request.header("if-none-match", "*"),
        Some(number) => request.header("if-match", format!("\"{number}\"")),
    }
}

#[derive(Debug, Deserialize, Serialize)]
struct Deployments {
    deployments: Vec<Deployment>,
}

/// Goes back, or shows where to.
pub(crate) async fn rollback(output: Output, args: Rollback) -> Result<Exit, Failure> {
    let server = Server::control(&args.plane)?;
    let app = Path::new().segment("apps").segment(&args.app);
    let Some(to) = args.to else {
        let listed: Deployments = server.json(server.get(&app.segment("deployments"))).await?;
        if output.json {
            output.json(&listed)?;
        } else {
            output.line(render(&listed.deployments, output))?;
            output.note("go back with --to NUMBER");
        }
        return Ok(Exit::Done);
    };
    let request =
        server.request(Method::POST, &app.segment("rollback")).json(&serde_json::json!({ "to": to }));
    let deployed: Deployed = server.json(guarded(request, args.if_match)).await?;
    warn(output, &deployed);
    if output.json {
        output.json(&deployed)?;
    } else {
        let deployment = deployed.deployment;
        let style = output.style();
        output.line(format_args!(
            "{} {} to deployment {to}; that is deployment {} now",
            style.good("rolled back"),
            style.strong(&deployment.app),
            deployment.number
        ))?;
    }
    Ok(Exit::Done)
}

fn render(deployments: &[Deployment], output: Output) -> String {
    let mut table = Table::new([
        ("number", Align::Right),
        ("deployed at", Align::Left),
        ("by", Align::Left),
        ("manifest", Align::Left),
        ("", Align::Left),
    ]);
    let mut newest_first: Vec<_> = deployments.iter().collect();
    newest_first.sort_by_key(|deployment| std::cmp::Reverse(deployment.number));
    for (index, deployment) in newest_first.into_iter().enumerate() {
        let mut notes = Vec::new();
        if index == 0 {
            notes.push("current".to_owned());
        }
        if let Some(to) = deployment.rollback_to {
            notes.push(format!("rollback to {to}"));
        }
        table.row([
            deployment.number.to_string(),
            deployment.deployed_at.to_string().get(..19).unwrap_or_default().replace('T', " "),
            deployment.deployed_by.clone(),
            deployment.manifest.short(),
            notes.join(", "),
        ]);
    }
    table.render(output.style())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebb_domain::digest::Digest;
    use ebb_domain::name::AppName;
    use ebb_domain::time::Timestamp;

    #[test]
    fn deployments_are_listed_newest_first() {
        let deployment = |number, rollback_to| Deployment {
            app: AppName::new("bank").unwrap(),
            number,
            manifest: Digest([number as u8; 32]),
            files: Default::default(),
            deployed_at: Timestamp(1_357_023_600_000_000 + number * 60_000_000),
            deployed_by: "anonymous".into(),
            rollback_to,
            offers: None,
        };
        insta::assert_snapshot!(render(&[deployment(1, None), deployment(2, None), deployment(3, Some(1))], Output::plain()), @r"
        number  deployed at          by         manifest
             3  2013-01-01 07:03:00  anonymous  030303030303  current, rollback to 1
             2  2013-01-01 07:02:00  anonymous  020202020202
             1  2013-01-01 07:01:00  anonymous  010101010101
        ");
    }
}
