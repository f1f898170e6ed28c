//! `ebb check`: everything that a deploy would find wrong, in one report, without a server.

use crate::args::Check;
use crate::failure::{Exit, Failure};
use crate::output::Output;
use crate::project::Project;
use ebb_domain::manifest::Manifest;
use ebb_domain::port::guest::Engine;

/// Builds if asked, compiles the modules as a node would, and reports.
pub(crate) async fn run(output: Output, args: Check) -> Result<Exit, Failure> {
    let project = Project::open(&args.dir)?;
    if args.build {
        project.build(output).await?;
    }
    // Compiled modules are of no use behind this: the folder goes with the report.
    let artefacts =
        tempfile::tempdir().map_err(|error| Failure::new(format!("no temporary folder: {error}")))?;
    let engine = crate::embedded::engine(artefacts.path())?;
    let manifest = check(&project, &*engine).await?;
    if output.json {
        output.json(&serde_json::json!({ "app": manifest.name, "valid": true }))?;
    } else {
        let style = output.style();
        output.line(format_args!(
            "{} {}: {}",
            style.good("ok"),
            style.strong(&manifest.name),
            describe(&manifest)
        ))?;
    }
    Ok(Exit::Done)
}

/// Manifest, files and modules at once.
///
/// # Errors
/// Everything that is wrong.
pub(crate) async fn check(project: &Project, engine: &dyn Engine) -> Result<Manifest, Failure> {
    let refusals = project.compile(engine).await;
    project.inspected_with(&refusals)
}

fn describe(manifest: &Manifest) -> String {
    let count = |number: usize, what: &str| match number {
        1 => format!("1 {what}"),
        number => format!("{number} {what}s"),
    };
    [
        count(manifest.aggregates.len(), "aggregate"),
        count(manifest.projections.len(), "projection"),
        count(manifest.models.len(), "model"),
    ]
    .join(", ")
}
