//! `ebb dev`: an app under one's hands. Builds, runs everything in this process, watches, and swaps what has changed;
//! what serves goes on serving until its successor does.

mod activity;
mod watch;

use crate::args::Dev;
use crate::embedded::{Signals, ready_line, shut_down};
use crate::failure::{Exit, Failure};
use crate::output::{Elapsed, Output};
use crate::project::Project;
use ebb_app::app::App;
use ebb_app::bundle::{Bundle, normalise};
use ebb_app::deploy::{DeployError, Deployment};
use ebb_domain::digest::Digest;
use ebb_domain::manifest::FILE_NAME;
use ebb_domain::name::AppName;
use ebb_server::{Config, Server, telemetry};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;
use tokio::task::JoinHandle;
use watch::Watch;

/// Who deploys, in the node's log.
const ACTOR: &str = "ebb dev";

/// Runs until a signal.
pub(crate) async fn run(output: Output, mut args: Dev) -> Result<Exit, Failure> {
    // A typing mistake in the path is better found now than after a node has started.
    Project::open(&args.dir)?;
    // As the watcher reports paths.
    args.dir =
        args.dir.canonicalize().map_err(|error| Failure::new(format!("{}: {error}", args.dir.display())))?;
    let config = config(&args)?;
    telemetry::init(&config.log)
        .map_err(|error| Failure::new(format!("logging can't be started: {error}")))?;
    let mut signals = Signals::take()?;
    // Watching begins before the first build, so that an edit during the build is not missed.
    let mut watch = if args.no_watch { None } else { Some(Watch::start(&args.dir)?) };
    let server = tokio::select! {
        server = Server::start(config.clone()) => server.map_err(Failure::new)?,
        () = signals.next() => return Ok(Exit::Interrupted),
    };
    let mut session =
        Session { output, dir: args.dir, build: !args.no_build, server, serving: None, activity: None };
    let first = tokio::select! {
        done = session.round(true) => done,
        () = signals.next() => return Ok(shut_down(output, session.end(), signals).await),
    };
    match (&first, &watch) {
        (Err(failure), None) => {
            output.failure(failure);
            let exit = failure.exit;
            shut_down(output, session.end(), signals).await;
            return Ok(exit);
        }
        (Err(failure), Some(_)) => output.failure(failure),
        (Ok(()), _) => {}
    }
    if let Some(watch) = &mut watch {
        watch.after_build();
    }
    output.line(ready_line(&session.server, &config))?;
    if let Ok(()) = first {
        session.show_urls().await;
    }
    let what_next = if watch.is_some() { "watching for changes; Ctrl-C ends" } else { "Ctrl-C ends" };
    output.note(output.note_style().faint(what_next));
    loop {
        if let (Some(watch), Ok(project)) = (&mut watch, Project::open(&session.dir)) {
            watch.follow(&project, session.build);
        }
        tokio::select! {
            changed = Watch::next(&mut watch) => output.note(format_args!("\n{}", describe(&changed, &session.dir))),
            () = signals.next() => break,
        }
        let was_deployed = session.serving.is_some();
        tokio::select! {
            done = session.round(false) => match done {
                Ok(()) if !was_deployed => session.show_urls().await,
                Ok(()) => {}
                Err(failure) => {
                    output.failure(&failure);
                    if was_deployed {
                        output.note("the version before goes on serving");
                    }
                }
            },
            () = signals.next() => break,
        }
        if let Some(watch) = &mut watch {
            watch.after_build();
        }
    }
    Ok(shut_down(output, session.end(), signals).await)
}

/// Settings of the embedded node: flags, then the environment; an `ebbtide.toml` is for nodes in service.
fn config(args: &Dev) -> Result<Config, Failure> {
    let data = args.data.clone().unwrap_or_else(|| args.dir.join(".ebb/data"));
    let mut flags = vec![
        ("data", data.display().to_string()),
        ("http.address", args.http.clone()),
        ("control.address", args.control.clone()),
    ];
    if std::env::var_os("EBB_LOG").is_none() {
        // What the app's own modules say is of interest here; what the node says only if something is wrong.
        flags.push(("log.level", "warn,guest=debug".to_owned()));
    }
    let config = Config::parse(None, |name| std::env::var(name).ok(), &flags);
    config.map_err(|problems| Failure::new("the settings are wrong").details(problems))
}

/// A node and the app on it.
struct Session {
    output: Output,
    dir: PathBuf,
    build: bool,
    server: Server,
    /// The name of the app, once it serves.
    serving: Option<AppName>,
    /// Shows what happens in the app.
    activity: Option<JoinHandle<()>>,
}

impl Session {
    /// Builds, checks and swaps. What serves is left alone by whatever goes wrong.
    async fn round(&mut self, is_first: bool) -> Result<(), Failure> {
        let started = Instant::now();
        let project = Project::open(&self.dir)?;
        if self.build {
            project.build(self.output).await?;
        }
        let manifest = project.inspected()?;
        let bundle = project.bundle();
        let style = self.output.note_style();
        let node = self.server.node();
        if node.deployed_app(&manifest.name).is_some_and(|app| is_of(&app.deployment(), &bundle)) {
            let name = style.strong(&manifest.name);
            self.output.note(format_args!("{} {name}: nothing has changed", style.good("serving")));
            self.follow_activity(&manifest.name).await;
            return Ok(());
        }
        let deployed = node.deploy(&manifest.name, bundle, None, ACTOR).await;
        let deployment = deployed.map_err(|error| match error {
            DeployError::Invalid(problems) => project.problems(&problems),
            other => Failure::no(other),
        })?;
        self.output.note(format_args!(
            "{} {} as deployment {} in {}",
            style.good(if is_first { "serving" } else { "swapped in" }),
            style.strong(&manifest.name),
            deployment.number,
            Elapsed(started.elapsed())
        ));
        self.follow_activity(&manifest.name).await;
        Ok(())
    }

    /// The app serves: shows its commits from now on. Once, and again if the app has another name now.
    async fn follow_activity(&mut self, name: &AppName) {
        if self.serving.as_ref() == Some(name) {
            return;
        }
        self.serving = Some(name.clone());
        if let Some(app) = self.open(name).await {
            let task = tokio::spawn(activity::show(self.output, app));
            if let Some(before) = self.activity.replace(task) {
                before.abort();
            }
        }
    }

    async fn open(&self, name: &AppName) -> Option<Arc<App>> {
        self.server.node().deployed_app(name)?.app().await.ok()
    }

    async fn show_urls(&self) {
        let Some(name) = &self.serving else { return };
        let Some(app) = self.open(name).await else { return };
        let manifest = app.manifest();
        // An app under an earlier name may still be there.
        let prefix =
            if self.server.node().only_app().is_some() { String::new() } else { format!("/apps/{name}") };
        let http = self.server.http_address();
        let style = self.output.note_style();
        let row = |method: &str, path: String| {
            self.output.note(format_args!(
                "  {}  http://{http}{prefix}{path}",
                style.faint(format_args!("{method:4}"))
            ));
        };
        for (aggregate, spec) in &manifest.aggregates {
            for command in spec.commands.keys() {
                row("POST", format!("/commands/{aggregate}/{{id}}/{command}"));
            }
        }
        for model in manifest.models.keys() {
            row("GET", format!("/models/{model}"));
        }
        row("GET", "/events".to_owned());
        row("GET", "/openapi.json".to_owned());
        row("GET", "/asyncapi.json".to_owned());
        let page = format!("http://{}/", self.server.control_address());
        self.output.note(format_args!("  {}  {page}", style.faint("page")));
    }

    fn end(self) -> Server {
        if let Some(activity) = &self.activity {
            activity.abort();
        }
        self.server
    }
}

/// Whether a deployment was made of this bundle.
fn is_of(deployment: &Deployment, bundle: &Bundle) -> bool {
    let deployed =
        deployment.files.iter().filter_map(|(path, digest)| Some((normalise(Path::new(path))?, *digest)));
    let mut deployed: BTreeMap<String, Digest> = deployed.collect();
    deployed.insert(FILE_NAME.to_owned(), deployment.manifest);
    deployed.len() == bundle.files.len()
        && bundle.files.iter().all(|(path, contents)| deployed.get(path) == Some(&Digest::of(contents)))
}

/// What has changed, short.
fn describe(changed: &[PathBuf], dir: &Path) -> String {
    let shown = |path: &PathBuf| path.strip_prefix(dir).unwrap_or(path).display().to_string();
    match changed {
        [] => "changed".to_owned(),
        [one] => format!("{} changed", shown(one)),
        [first, rest @ ..] => format!("{} and {} more changed", shown(first), rest.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use ebb_domain::time::Timestamp;

    #[test]
    fn a_deployment_is_made_of_a_bundle_if_every_file_is_the_same() {
        let bundle = |module: &'static str| Bundle {
            files: [(FILE_NAME, "[app]"), ("../target/a.wasm", module)]
                .map(|(path, contents)| (path.to_owned(), Bytes::from(contents)))
                .into(),
        };
        let deployment = Deployment {
            app: AppName::new("bank").unwrap(),
            number: 1,
            manifest: Digest::of(b"[app]"),
            files: [("./../target/a.wasm".to_owned(), Digest::of(b"one"))].into(),
            deployed_at: Timestamp::default(),
            deployed_by: ACTOR.to_owned(),
            rollback_to: None,
            offers: None,
        };
        assert!(is_of(&deployment, &bundle("one")), "however the manifest writes the path");
        assert!(!is_of(&deployment, &bundle("two")));
        assert!(!is_of(&deployment, &Bundle { files: BTreeMap::new() }));
    }

    #[test]
    fn a_change_is_told_by_its_path_in_the_folder() {
        let dir = Path::new("/app");
        let paths = |names: &[&str]| names.iter().map(|name| dir.join(name)).collect::<Vec<_>>();
        assert_eq!(describe(&paths(&["src/lib.rs"]), dir), "src/lib.rs changed");
        assert_eq!(describe(&paths(&["src/lib.rs", "ebb.toml", "a"]), dir), "src/lib.rs and 2 more changed");
    }
}
