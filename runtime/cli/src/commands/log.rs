//! `ebb log`: looking after the logs of a node that is not running.

use crate::args::{Log, LogArgs, LogRepair};
use crate::failure::{Exit, Failure};
use crate::output::{Grouped, Output, Size};
use ebb_domain::name::AppName;
use ebb_domain::port::storage::StorageError;
use ebb_server::SystemClock;
use ebb_store::storage::{DiskStorage, StorageOptions};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::path::Path;
use std::sync::Arc;

/// Runs on its own thread: all of it is reading and writing files.
pub(crate) async fn run(output: Output, command: Log) -> Result<Exit, Failure> {
    let work = move || match command {
        Log::Verify(args) => verify(output, &args),
        Log::Reindex(args) => reindex(output, &args),
        Log::Repair(args) => repair(output, &args),
    };
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|panic| Err(Failure::new(format!("the tool broke: {panic}"))))
}

fn open(data: &Path) -> Result<Arc<DiskStorage>, Failure> {
    if !data.is_dir() {
        // Opening would make it, and say that an empty log is well.
        return Err(Failure::new(format!("{} is not a folder", data.display()))
            .hint("--data (or EBB_DATA) names the folder that the node keeps its data in"));
    }
    DiskStorage::open(data, StorageOptions::new(Arc::new(SystemClock))).map_err(|error| {
        Failure::new(error).hint("these tools work on the data of a node that is not running; stop it first")
    })
}

/// The logs that are meant.
fn apps(storage: &DiskStorage, app: Option<&str>) -> Result<Vec<AppName>, Failure> {
    let all = storage.apps().map_err(failed)?;
    let Some(app) = app else { return Ok(all) };
    let app = AppName::new(app).map_err(Failure::new)?;
    if !all.contains(&app) {
        let known: Vec<_> = all.iter().map(|app| &**app).collect();
        return Err(Failure::new(format!("there is no log of `{app}` here; there is {}", known.join(", "))));
    }
    Ok(vec![app])
}

fn verify(output: Output, args: &LogArgs) -> Result<Exit, Failure> {
    let storage = open(&args.data)?;
    let mut exit = Exit::Done;
    for app in apps(&storage, args.app.as_deref())? {
        let bar = bar(output, &app);
        let report = storage.verify(&app, &mut |progress| {
            bar.set_length(progress.total);
            bar.set_position(progress.done);
        });
        bar.finish_and_clear();
        let report = report.map_err(failed)?;
        if !report.damage.is_empty() {
            exit = Exit::No;
        }
        if output.json {
            output.json(&serde_json::json!({ "app": app, "report": report }))?;
            continue;
        }
        let style = output.style();
        let verdict = if report.damage.is_empty() { style.good("ok") } else { style.error("damaged") };
        output.line(format_args!(
            "{verdict}  {}  {} commits, {} events, {} in {} segments",
            style.strong(&app),
            Grouped(report.commits),
            Grouped(report.position),
            Size(report.bytes),
            report.segments
        ))?;
        if report.torn_bytes > 0 {
            output.line(format_args!(
                "    {} of a group that was never acknowledged at the end; opening the log cuts them",
                Size(report.torn_bytes)
            ))?;
        }
        for damage in &report.damage {
            output.line(format_args!(
                "    {} at offset {}: {}",
                damage.file.display(),
                damage.offset,
                damage.problem
            ))?;
        }
        if !report.damage.is_empty() {
            output.note(format_args!(
                "{} mend it from a backup: ebb log repair --data {} --app {app} --from BACKUP",
                output.note_style().hint("hint:"),
                args.data.display()
            ));
        }
    }
    Ok(exit)
}

fn reindex(output: Output, args: &LogArgs) -> Result<Exit, Failure> {
    let storage = open(&args.data)?;
    for app in apps(&storage, args.app.as_deref())? {
        let bar = bar(output, &app).with_style(style("{spinner} {prefix}  {pos} commits  ({elapsed})"));
        let mut last = 0;
        let done = storage.reindex(&app, &mut |commit| {
            last = commit.0;
            bar.set_position(last);
        });
        bar.finish_and_clear();
        done.map_err(failed)?;
        if output.json {
            output.json(&serde_json::json!({ "app": app, "commits": last }))?;
        } else {
            output.line(format_args!(
                "{}  {}  {} commits",
                output.style().good("reindexed"),
                app,
                Grouped(last)
            ))?;
        }
    }
    storage.close();
    Ok(Exit::Done)
}

fn repair(output: Output, args: &LogRepair) -> Result<Exit, Failure> {
    if !args.from.is_dir() {
        return Err(Failure::new(format!("{} is not a folder", args.from.display()))
            .hint("--from names a copy of the data folder from before the damage"));
    }
    let storage = open(&args.data)?;
    for app in apps(&storage, Some(&args.app))? {
        let bar = bar(output, &app);
        let report = storage.repair(&app, &args.from, &mut |progress| {
            bar.set_length(progress.total);
            bar.set_position(progress.done);
        });
        bar.finish_and_clear();
        let report = report.map_err(failed)?;
        if output.json {
            output.json(&serde_json::json!({ "app": app, "report": report }))?;
            continue;
        }
        if report.mended.is_empty() {
            output.line(format_args!("{app}: nothing to mend"))?;
        }
        for mended in &report.mended {
            output.line(format_args!(
                "{}  {}: {} from the backup",
                output.style().good("mended"),
                mended.file.display(),
                Size(mended.bytes)
            ))?;
            if let Some(kept) = &mended.kept_as {
                output.line(format_args!("    the damaged file is kept as {}", kept.display()))?;
            }
        }
        output.note(format_args!("{} commits, {} events", Grouped(report.commits), Grouped(report.position)));
    }
    Ok(Exit::Done)
}

fn failed(error: StorageError) -> Failure {
    Failure::new(error.0)
}

fn bar(output: Output, app: &AppName) -> ProgressBar {
    if !output.shows_bars() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(10));
    bar.with_prefix(app.to_string())
        .with_style(style("{prefix} {bar:32.cyan/blue} {bytes} of {total_bytes}  ({eta} left)"))
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
