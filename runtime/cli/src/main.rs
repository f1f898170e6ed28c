//! The binary `ebb`: a node, and everything around it.

mod args;
mod bench;
mod client;
mod commands;
mod embedded;
mod failure;
mod import;
mod output;
mod project;
mod sse;

use args::{Arguments, Command};
use clap::{CommandFactory as _, Parser as _};
use commands as run;
use failure::{Exit, Failure};
use output::Output;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let output = Output::new(&arguments.output);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            output.failure(&Failure::new(format!("threads can't be started: {error}")));
            return Exit::Failed.into();
        }
    };
    let ended = runtime.block_on(Box::pin(dispatch(output, arguments.command)));
    // Not waiting for threads that block: one may be reading a stdin that nobody needs any more.
    runtime.shutdown_background();
    match ended {
        Ok(exit) => exit.into(),
        Err(failure) => {
            output.failure(&failure);
            failure.exit.into()
        }
    }
}

async fn dispatch(output: Output, command: Command) -> Result<Exit, Failure> {
    match command {
        Command::New(args) => run::new::run(output, args),
        Command::Build(args) => run::build::run(output, args).await,
        Command::Check(args) => run::check::run(output, args).await,
        Command::Dev(args) => run::dev::run(output, args).await,
        Command::Serve(args) => run::serve::run(output, args).await,
        Command::Deploy(args) => run::deploy::deploy(output, args).await,
        Command::Rollback(args) => run::deploy::rollback(output, args).await,
        Command::Send(args) => run::command::run(output, args).await,
        Command::Import(args) => import::run(output, args).await,
        Command::Export(args) => run::export::run(output, args).await,
        Command::Events(args) => run::events::run(output, args).await,
        Command::Query(args) => run::query::run(output, args).await,
        Command::State(args) => run::state::run(output, args).await,
        Command::Status(args) => run::status::run(output, args).await,
        Command::Usage(args) => run::usage::run(output, args).await,
        Command::Logs(args) => run::logs::run(output, args).await,
        Command::Rebuild(args) => run::projections::rebuild(output, args).await,
        Command::Seek(args) => run::projections::seek(output, args).await,
        Command::Parked(args) => run::parked::run(output, args).await,
        Command::Topics(args) => run::topics::run(output, args).await,
        Command::Replay(args) => run::replay::run(output, args).await,
        Command::Bench(args) => bench::run(output, args).await,
        Command::Log(command) => run::log::run(output, command).await,
        Command::Completions(args) => completions(output, args.shell),
        Command::Version => version(output),
    }
}

fn completions(output: Output, shell: clap_complete::Shell) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "ebb", &mut script);
    output.raw(&script)?;
    Ok(Exit::Done)
}

fn version(output: Output) -> Result<Exit, Failure> {
    let version = env!("CARGO_PKG_VERSION");
    let profile = if cfg!(debug_assertions) { "debug" } else { "release" };
    let target = format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS);
    if output.json {
        output.json(&serde_json::json!({ "version": version, "profile": profile, "target": target }))?;
    } else {
        output.line(format_args!("ebb {version} ({target}, {profile})"))?;
    }
    Ok(Exit::Done)
}
