//! What can be written on the command line, and in the environment.

mod quantities;

use crate::failure::EXIT_CODES;
use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use ebb_domain::time::Timestamp;
use std::path::PathBuf;
use std::time::Duration;

/// Event-sourced applications as WebAssembly functions, on one binary.
#[derive(Debug, Parser)]
#[command(name = "ebb", version, after_help = EXIT_CODES, propagate_version = true, max_term_width = 110)]
pub(crate) struct Arguments {
    /// How results look.
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// How results look.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Output")]
pub(crate) struct OutputArgs {
    /// Results for programs: JSON on stdout
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Nothing on stderr but errors
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,
    /// When to use colour; NO_COLOR in the environment turns it off too
    #[arg(long, global = true, value_enum, default_value_t = ColorChoice::Auto, value_name = "WHEN")]
    pub(crate) color: ColorChoice,
}

/// When to use colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ColorChoice {
    /// On a terminal.
    Auto,
    /// Everywhere.
    Always,
    /// Nowhere.
    Never,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make an app from a template, in an empty folder
    New(New),
    /// Build an app's modules with the command in its manifest
    Build(Build),
    /// Check an app: manifest, schemas and modules, without a server
    Check(Check),
    /// Build, run and watch an app: everything in one process
    Dev(Dev),
    /// Run a node
    Serve(Serve),
    /// Deploy an app to a node
    Deploy(Deploy),
    /// Make an earlier deployment the current one again
    Rollback(Rollback),
    /// Send one command
    #[command(name = "command")]
    Send(SendCommand),
    /// Send many commands: one JSON object a line
    Import(Import),
    /// Write an app's events as CloudEvents, one a line
    Export(Export),
    /// Show events, and follow them as they happen
    Events(Events),
    /// Query a read model
    Query(Query),
    /// Show an aggregate's state, now or after an earlier event
    State(State),
    /// Show a node's apps, functions and projections
    Status(Status),
    /// Show what functions used since the node began: calls, errors, time, memory
    Usage(Usage),
    /// Show what a node and its modules log, as it happens
    Logs(Logs),
    /// Build a projection's rows again from the log, beside those that serve
    Rebuild(Rebuild),
    /// Have an event function go on elsewhere: leave events out, or give it events once more
    Seek(Seek),
    /// Look after events and records that could not be dealt with, whatever was to deal with them
    #[command(subcommand, visible_alias = "dead-letters")]
    Parked(Parked),
    /// Look after Kafka topics that an app consumes
    #[command(subcommand)]
    Topics(Topics),
    /// Decide recorded commands again, with the deployed or another module, and show differences
    Replay(Replay),
    /// Measure this machine with a built-in app, or a server with an app of yours
    Bench(Bench),
    /// Look after the log of a node that is not running
    #[command(subcommand)]
    Log(Log),
    /// Print a completion script for a shell
    Completions(Completions),
    /// Print version and build
    Version,
}

/// Where the data plane is, and for which app.
#[derive(Debug, Clone, Args)]
pub(crate) struct DataPlane {
    /// The node's data plane
    #[arg(long, env = "EBB_HTTP", default_value = "http://127.0.0.1:8080", value_name = "URL", value_hint = ValueHint::Url)]
    pub(crate) server: String,
    /// The app; needed where the node has several and the address is not one of an app's hosts
    #[arg(long, env = "EBB_APP", value_name = "NAME")]
    pub(crate) app: Option<String>,
    /// Bearer token
    #[arg(long, env = "EBB_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub(crate) token: Option<String>,
}

/// Where the control plane is.
#[derive(Debug, Clone, Args)]
pub(crate) struct ControlPlane {
    /// The node's control plane
    #[arg(long, env = "EBB_CONTROL", default_value = "http://127.0.0.1:8081", value_name = "URL", value_hint = ValueHint::Url)]
    pub(crate) server: String,
    /// Bearer token
    #[arg(long, env = "EBB_CONTROL_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub(crate) token: Option<String>,
}

/// `ebb new`.
#[derive(Debug, Args)]
pub(crate) struct New {
    /// The app's name; also the folder's, unless --path names another
    pub(crate) name: String,
    /// What to begin with
    #[arg(long, short, value_enum, default_value_t = Template::AggregateProjection)]
    pub(crate) template: Template,
    /// The folder; made if it is not there, and refused if it is not empty
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) path: Option<PathBuf>,
}

/// What a new app begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Template {
    /// One aggregate.
    Aggregate,
    /// An aggregate, and a projection of its events into a read model.
    AggregateProjection,
    /// An HTTP function.
    Http,
}

/// `ebb build`.
#[derive(Debug, Args)]
pub(crate) struct Build {
    /// The folder with ebb.toml
    #[arg(default_value = ".", value_hint = ValueHint::DirPath)]
    pub(crate) dir: PathBuf,
}

/// `ebb check`.
#[derive(Debug, Args)]
pub(crate) struct Check {
    /// The folder with ebb.toml
    #[arg(default_value = ".", value_hint = ValueHint::DirPath)]
    pub(crate) dir: PathBuf,
    /// Build first
    #[arg(long)]
    pub(crate) build: bool,
}

/// `ebb dev`.
#[derive(Debug, Args)]
pub(crate) struct Dev {
    /// The folder with ebb.toml
    #[arg(default_value = ".", value_hint = ValueHint::DirPath)]
    pub(crate) dir: PathBuf,
    /// Where the data is kept [default: DIR/.ebb/data]
    #[arg(long, env = "EBB_DATA", value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) data: Option<PathBuf>,
    /// Address of the data plane; port 0 picks one
    #[arg(long, env = "EBB_HTTP", default_value = "127.0.0.1:8080", value_name = "ADDRESS")]
    pub(crate) http: String,
    /// Address of the control plane; port 0 picks one
    #[arg(long, env = "EBB_CONTROL", default_value = "127.0.0.1:8081", value_name = "ADDRESS")]
    pub(crate) control: String,
    /// Deploy what is there; do not build, neither now nor on changes
    #[arg(long)]
    pub(crate) no_build: bool,
    /// Build and deploy once; do not watch
    #[arg(long)]
    pub(crate) no_watch: bool,
}

/// `ebb serve`.
#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// Operator settings [default: ebbtide.toml, if it is there]
    #[arg(long, env = "EBB_CONFIG", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) config: Option<PathBuf>,
    /// Where the data is kept [env: EBB_DATA] [default: ebb-data]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) data: Option<PathBuf>,
    /// Address of the data plane; port 0 picks one [env: EBB_HTTP] [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) http: Option<String>,
    /// Address of the control plane; port 0 picks one [env: EBB_CONTROL] [default: 127.0.0.1:8081]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) control: Option<String>,
    /// Any other setting of ebbtide.toml, `limits.body=2MiB`; may be given several times
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) settings: Vec<String>,
}

/// `ebb deploy`.
#[derive(Debug, Args)]
pub(crate) struct Deploy {
    /// The folder with ebb.toml
    #[arg(default_value = ".", value_hint = ValueHint::DirPath)]
    pub(crate) dir: PathBuf,
    /// Where to.
    #[command(flatten)]
    pub(crate) plane: ControlPlane,
    /// Only if the current deployment has this number; 0: only if there is none
    #[arg(long, value_name = "NUMBER")]
    pub(crate) if_match: Option<u64>,
    /// Build first
    #[arg(long)]
    pub(crate) build: bool,
}

/// `ebb rollback`.
#[derive(Debug, Args)]
pub(crate) struct Rollback {
    /// The app
    pub(crate) app: String,
    /// The deployment to go back to; without it, deployments are listed
    #[arg(long, value_name = "NUMBER")]
    pub(crate) to: Option<u64>,
    /// Only if the current deployment has this number
    #[arg(long, value_name = "NUMBER")]
    pub(crate) if_match: Option<u64>,
    /// Where.
    #[command(flatten)]
    pub(crate) plane: ControlPlane,
}

/// `ebb command`.
#[derive(Debug, Args)]
pub(crate) struct SendCommand {
    /// The aggregate's name
    pub(crate) aggregate: String,
    /// The aggregate's id: the stream's key
    pub(crate) id: String,
    /// The command's name
    pub(crate) command: String,
    /// Its data: JSON, `@FILE`, or `-` for stdin
    #[arg(value_name = "DATA")]
    pub(crate) data: Option<String>,
    /// Where to.
    #[command(flatten)]
    pub(crate) plane: DataPlane,
    /// Makes a second sending harmless: the same key gets the same answer
    #[arg(long, value_name = "KEY")]
    pub(crate) idempotency_key: Option<String>,
    /// Only if the stream's last event has this revision; `*`: only if it has events
    #[arg(long, value_name = "REVISION")]
    pub(crate) if_match: Option<String>,
    /// Only if the stream has no events
    #[arg(long, conflicts_with = "if_match")]
    pub(crate) if_absent: bool,
}

/// `ebb import`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Each line is {\"id\": \"…\", \"command\": \"…\", \"data\": {…}}. Lines of one id are sent one after another, in the order of
the file; different ids go side by side.

Every line gets an idempotency key: SHA-256 of --id, the line, and its ordinal among equal lines. Run the same import
again after an interruption, and lines that were done are answered from memory; keys are remembered for 24 hours.

A refusal (422 with the module's code) is an answer, remembered like any other, and counts as done. Exit code 0: every
line was answered. 1: some lines failed (bad lines, schema violations, module errors), or --fail-on-refusal was given
and there were refusals. 2: the import stopped before its end; run it again to go on.")]
pub(crate) struct Import {
    /// The aggregate's name
    pub(crate) aggregate: String,
    /// The file; `-` is stdin
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) file: PathBuf,
    /// Where to.
    #[command(flatten)]
    pub(crate) plane: DataPlane,
    /// Name of this import, a part of every line's idempotency key
    #[arg(long, default_value = "default", value_name = "NAME")]
    pub(crate) id: String,
    /// Connections, each with its share of the streams
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=1024), value_name = "N")]
    pub(crate) connections: u16,
    /// Write lines that were refused or failed to this file, one JSON object a line
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) rejects: Option<PathBuf>,
    /// End with exit code 1 if any line was refused
    #[arg(long)]
    pub(crate) fail_on_refusal: bool,
    /// Stop when this many lines have failed
    #[arg(long, default_value_t = 1000, value_name = "N")]
    pub(crate) max_failures: u64,
    /// How long a line is sent again, in seconds, while the server is away or busy
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    pub(crate) retry_for: u64,
}

/// `ebb export`.
#[derive(Debug, Args)]
pub(crate) struct Export {
    /// Where from.
    #[command(flatten)]
    pub(crate) plane: DataPlane,
    /// The file [default: stdout]
    #[arg(long, short, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) output: Option<PathBuf>,
    /// Go on where the file ends
    #[arg(long, requires = "output", conflicts_with = "after")]
    pub(crate) resume: bool,
    /// Only events behind this position
    #[arg(long, default_value_t = 0, value_name = "POSITION")]
    pub(crate) after: u64,
    /// Only these event types
    #[arg(long, value_delimiter = ',', value_name = "TYPE,…")]
    pub(crate) types: Vec<String>,
}

/// `ebb events`.
#[derive(Debug, Args)]
pub(crate) struct Events {
    /// Where from.
    #[command(flatten)]
    pub(crate) plane: DataPlane,
    /// Go on as events happen
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// Only events behind this position [default: the beginning]
    #[arg(long, value_name = "POSITION")]
    pub(crate) after: Option<u64>,
    /// Only these event types
    #[arg(long, value_delimiter = ',', value_name = "TYPE,…")]
    pub(crate) types: Vec<String>,
    /// Only events of this stream
    #[arg(long, value_name = "STREAM", conflicts_with_all = ["follow", "types"])]
    pub(crate) stream: Option<String>,
    /// At most this many; all when following
    #[arg(long, default_value_t = 100, value_name = "N")]
    pub(crate) limit: usize,
}

/// `ebb query`.
#[derive(Debug, Args)]
pub(crate) struct Query {
    /// The model's name
    pub(crate) model: String,
    /// One row: its key
    #[arg(conflicts_with_all = ["conditions", "order", "limit"])]
    pub(crate) key: Option<String>,
    /// Where from.
    #[command(flatten)]
    pub(crate) plane: DataPlane,
    /// Only rows for which this holds: `column=value`, or `!=`, `>`, `>=`, `<`, `<=`; may be given several times
    #[arg(long = "where", value_name = "CONDITION")]
    pub(crate) conditions: Vec<String>,
    /// Columns to order by, most significant first; `-column` is largest first
    #[arg(long, value_delimiter = ',', value_name = "COLUMN,…", allow_hyphen_values = true)]
    pub(crate) order: Vec<String>,
    /// At most this many rows; 0 is all
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<usize>,
    /// Wait until the model has passed this position
    #[arg(long, value_name = "POSITION")]
    pub(crate) after: Option<u64>,
    /// How long to wait for it, in seconds
    #[arg(long, value_name = "SECONDS", requires = "after")]
    pub(crate) wait: Option<u64>,
}

/// `ebb state`.
#[derive(Debug, Args)]
pub(crate) struct State {
    /// The aggregate's stream: its name with the id behind it, `account-42`
    pub(crate) stream: String,
    /// After the event of this revision; the latest where none is given
    #[arg(long, value_name = "REVISION")]
    pub(crate) at: Option<u64>,
    /// The app; needed where the node has several
    #[arg(long, env = "EBB_APP", value_name = "NAME")]
    pub(crate) app: Option<String>,
    /// Where.
    #[command(flatten)]
    pub(crate) plane: ControlPlane,
}

/// `ebb status`.
#[derive(Debug, Args)]
pub(crate) struct Status {
    /// Of which node.
    #[command(flatten)]
    pub(crate) plane: ControlPlane,
}

/// `ebb usage`.
#[derive(Debug, Args)]
pub(crate) struct Usage {
    /// Of which node.
    #[command(flatten)]
    pub(crate) plane: ControlPlane,
    /// Only of this app
    #[arg(long, value_name = "NAME")]
    pub(crate) app: Option<String>,
    /// A line for each of these; --json has both
    #[arg(long, value_enum, default_value_t = UsageBy::Function)]
    pub(crate) by: UsageBy,
}

/// What a line of usage is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum UsageBy {
    /// A function
    Function,
    /// An app, and all of them
    App,
}

/// `ebb logs`.
#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// Of which node.
    #[command(flatten)]
    pub(crate) plane: ControlPlane,
    /// Print what the node remembers, and end
    #[arg(long)]
    pub(crate) no_follow: bool,
    /// Only lines of this level and above
    #[arg(long, value_enum, default_value_t = Level::Info)]
    pub(crate) level: Level,
    /// Only lines of this app's modules
    #[arg(long, value_name = "NAME")]
    pub(crate) app: Option<String>,
}

/// How grave a log line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Level {
    /// Everything.
    Trace,
    /// What helps in finding a fault.
    Debug,
    /// What happens.
    Info,
    /// What wants attention.
    Warn,
    /// What failed.
    Error,
}

/// `ebb rebuild`.
#[derive(Debug, Args)]
pub(crate) struct Rebuild {
    /// The projection
    pub(crate) projection: String,
    /// The app; needed where the node has several
    #[arg(long, env = "EBB_APP", value_name = "NAME")]
    pub(crate) app: Option<String>,
    /// Where.
    #[command(flatten)]
    pub(crate) plane: ControlPlane,
}

/// `ebb seek`.
#[derive(Debug, Args)]
pub(crate) struct Seek {
    /// The function
    pub(crate) function: String,
    /// Where: `now`, with what happens from now on; `start`, with the first event; or behind a position
    #[arg(long, value_name = "now|start|POSITION", value_parser = seek_to)]
    pub(crate) to: serde_json::Value,
    /// The app; needed where the node has several
    #[arg(long, env = "EBB_APP", value_name = "NAME")]
    pub(crate) app: Option<String>,
    /// Where.
    #[command(flatten)]
    pub(crate) plane: ControlPlane,
}

fn seek_to(text: &str) -> Result<serde_json::Value, String> {
    match text {
        "now" | "start" => Ok(text.into()),
        _ => match text.parse::<u64>() {
            Ok(position) => Ok(position.into()),
            Err(_) => Err("write `now`, `start`, or the position behind which it goes on".to_owned()),
        },
    }
}

/// `ebb parked`, or `ebb dead-letters`.
#[derive(Debug, Subcommand)]
pub(crate) enum Parked {
    /// List them: whose they are, what failed, why, and how many events queue behind it
    List(ParkedList),
    /// Show one with its event or record
    Show(ParkedKey),
    /// Deal with it again, under its original identity
    Retry(ParkedKey),
    /// Give up its first event, and go on with those behind it
    #[command(visible_alias = "discard")]
    Skip(ParkedSkip),
}

/// `ebb parked list`.
#[derive(Debug, Args)]
pub(crate) struct ParkedList {
    /// Only those of this projection, event function or consumer of commands
    pub(crate) consumer: Option<String>,
    /// Only those of this app
    #[arg(long, env = "EBB_APP", value_name = "NAME")]
    pub(crate) app: Option<String>,
    /// Where.
    #[command(flatten)]
    pub(crate) plane: ControlPlane,
}

/// `ebb parked skip`.
#[derive(Debug, Args)]
pub(crate) struct ParkedSkip {
    /// Which key.
    #[command(flatten)]
    pub(crate) key: ParkedKey,
    /// Give up everything that queues under the key
    #[arg(long)]
    pub(crate) whole: bool,
}

/// A parked key.
#[derive(Debug, Args)]
pub(crate) struct ParkedKey {
    /// The projection, event function or consumer of commands: `flight-commands`
    pub(crate) consumer: String,
    /// The key, as the list has it; by default a stream, `account-42`
    pub(crate) key: String,
    /// The app; needed where the node has several
    #[arg(long, env = "EBB_APP", value_name = "NAME")]
    pub(crate) app: Option<String>,
    /// Where.
    #[command(flatten)]
    pub(crate) plane: ControlPlane,
}

/// `ebb topics`.
#[derive(Debug, Subcommand)]
pub(crate) enum Topics {
    /// Go on with a topic that was deleted and made again, or, for rows that come straight, has lost records
    Accept(AcceptTopic),
}

/// `ebb topics accept`.
#[derive(Debug, Args)]
pub(crate) struct AcceptTopic {
    /// The topic
    pub(crate) topic: String,
    /// The app; needed where the node has several
    #[arg(long, env = "EBB_APP", value_name = "NAME")]
    pub(crate) app: Option<String>,
    /// Where.
    #[command(flatten)]
    pub(crate) plane: ControlPlane,
}

/// `ebb replay`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Every decision is made twice: in an instance of its own, and in one instance that streams share in a shuffled order. A
module that keeps state across streams is found by that, a candidate's too.

What can be decided again is what was recorded: every command that made events, and refusals and empty decisions that
had an idempotency key.

Exit code 0: every command was decided as it was recorded. 1: there are differences. 2: the replay could not be carried
out, or there was nothing to decide again.")]
pub(crate) struct Replay {
    /// The candidate: a folder with ebb.toml, or one .wasm file that takes the place of an aggregate's module. Without
    /// it, the deployed modules decide again, which shows whether they are deterministic
    #[arg(long, value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub(crate) module: Option<PathBuf>,
    /// For a .wasm file: the folder with the ebb.toml whose aggregate it is a candidate for
    #[arg(long, default_value = ".", value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) dir: PathBuf,
    /// The app; needed where the node has several and no folder says it
    #[arg(long, env = "EBB_APP", value_name = "NAME")]
    pub(crate) app: Option<String>,
    /// Only commands of this aggregate
    #[arg(long, value_name = "NAME")]
    pub(crate) aggregate: Option<String>,
    /// Only commands recorded from this time on: `2026-01-31`, `2026-01-31T12:00:00Z`
    #[arg(long, value_name = "TIME", value_parser = quantities::time)]
    pub(crate) since: Option<Timestamp>,
    /// Only commands recorded before this time
    #[arg(long, value_name = "TIME", value_parser = quantities::time)]
    pub(crate) until: Option<Timestamp>,
    /// Only commands of the last `30d`, `12h`, `90min`
    #[arg(long, value_name = "TIME", conflicts_with = "since", value_parser = quantities::span)]
    pub(crate) last: Option<Duration>,
    /// Only this part of the streams, `10%` or `0.1`: a stream is replayed whole or not at all
    #[arg(long, default_value = "100%", value_name = "PART", value_parser = quantities::part)]
    pub(crate) sample: f64,
    /// What shuffles and samples; the same number, the same order
    #[arg(long, default_value_t = 1, value_name = "NUMBER")]
    pub(crate) seed: u64,
    /// Who shares an instance
    #[arg(long, value_enum, default_value_t = Isolation::Both)]
    pub(crate) isolation: Isolation,
    /// How many differences to show in full
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = clap::value_parser!(u64).range(..=10_000))]
    pub(crate) details: u64,
    /// Where.
    #[command(flatten)]
    pub(crate) plane: ControlPlane,
}

/// Whether decisions share instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Isolation {
    /// Each decision in both ways, which must agree.
    Both,
    /// Streams share one instance in a shuffled order: quicker.
    Shared,
    /// An instance for every decision.
    Fresh,
}

/// `ebb bench`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("asked").args(["command", "query"]).multiple(true), after_long_help = "\
Without --server: starts a node on a folder of its own, which is removed afterwards, and measures the disk, commands,
reads and live events with a built-in app, beside what the same log and HTTP library do in this process without
WebAssembly. Nothing else should be going on.

With --server: measures that server with an app of yours.

    ebb bench --server http://127.0.0.1:8080 --app bank --command account deposit \\
        --id-template 'acct-{n}' --data-template deposit.json --query balances

In templates {n} is a number from 0 to --ids - 1 (in data: the number of the request), {random} a random number and
{uuid} a random UUID. What is not a success is counted as an error, by its code, and as nothing else.

Exit code 0: measured. 1: measured, and there were errors. 2: could not be measured. 130: interrupted; what was measured
until then is printed.")]
pub(crate) struct Bench {
    /// Measure the node with this data plane instead of this machine
    #[arg(long, value_name = "URL", value_hint = ValueHint::Url, requires = "asked")]
    pub(crate) server: Option<String>,
    /// The app; needed where the node has several and the address is not one of an app's hosts
    #[arg(long, env = "EBB_APP", value_name = "NAME")]
    pub(crate) app: Option<String>,
    /// Bearer token
    #[arg(long, env = "EBB_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub(crate) token: Option<String>,
    /// Send this command to this kind of aggregate
    #[arg(long, num_args = 2, value_names = ["AGGREGATE", "COMMAND"], requires = "server")]
    pub(crate) command: Vec<String>,
    /// The commands' data: a file of JSON with holes, `{"amount": {n}, "note": "{uuid}"}` [default: {}]
    #[arg(long, value_name = "FILE", requires = "command", value_hint = ValueHint::FilePath)]
    pub(crate) data_template: Option<PathBuf>,
    /// Read rows of this model by key
    #[arg(long, value_name = "MODEL", requires = "server")]
    pub(crate) query: Option<String>,
    /// The aggregates' ids and the rows' keys
    #[arg(long, default_value = "bench-{n}", value_name = "TEMPLATE")]
    pub(crate) id_template: String,
    /// How many ids take turns
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u64).range(1..=10_000_000), value_name = "N")]
    pub(crate) ids: u64,
    /// Clients at once, each with a connection of its own
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=1024), value_name = "N")]
    pub(crate) clients: u16,
    /// How long each measurement takes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=3600), value_name = "SECONDS")]
    pub(crate) seconds: u64,
    /// Without --server: a folder on the disk to measure
    #[arg(long, default_value = ".", value_name = "DIR", value_hint = ValueHint::DirPath, conflicts_with = "server")]
    pub(crate) dir: PathBuf,
    /// Send commands to another machine, or into an app that has events
    #[arg(long)]
    pub(crate) yes: bool,
}

/// `ebb log`.
#[derive(Debug, Subcommand)]
pub(crate) enum Log {
    /// Read every record and check it
    Verify(LogArgs),
    /// Build the indexes again from the log
    Reindex(LogArgs),
    /// Replace damaged records by those of a backup
    Repair(LogRepair),
}

/// Which log.
#[derive(Debug, Args)]
pub(crate) struct LogArgs {
    /// The node's data folder
    #[arg(long, env = "EBB_DATA", value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) data: PathBuf,
    /// The app; `system` is the node's own log [default: all of them]
    #[arg(long, env = "EBB_APP", value_name = "NAME")]
    pub(crate) app: Option<String>,
}

/// `ebb log repair`.
#[derive(Debug, Args)]
pub(crate) struct LogRepair {
    /// The node's data folder
    #[arg(long, env = "EBB_DATA", value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) data: PathBuf,
    /// The app; `system` is the node's own log
    #[arg(long, env = "EBB_APP", value_name = "NAME")]
    pub(crate) app: String,
    /// A copy of the data folder from before the damage
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) from: PathBuf,
}

/// `ebb completions`.
#[derive(Debug, Args)]
pub(crate) struct Completions {
    /// The shell
    pub(crate) shell: clap_complete::Shell,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn output_options_are_accepted_behind_the_command() {
        let arguments =
            Arguments::try_parse_from(["ebb", "query", "balances", "--json", "--order=-balance"]).unwrap();
        assert!(arguments.output.json);
        let Command::Query(query) = arguments.command else { panic!("not a query") };
        assert_eq!(query.order, ["-balance"]);
    }
}
