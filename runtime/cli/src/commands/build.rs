//! `ebb build`.

use crate::args::Build;
use crate::failure::{Exit, Failure};
use crate::output::Output;
use crate::project::Project;

/// Runs the manifest's build.
pub(crate) async fn run(output: Output, args: Build) -> Result<Exit, Failure> {
    let project = Project::open(&args.dir)?;
    if !project.build(output).await? {
        output.note("nothing to build: the manifest has no [build]");
    }
    Ok(Exit::Done)
}
