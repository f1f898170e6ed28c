//! `ebb bench`: what a machine does with a built-in app, beside what it does without WebAssembly; or what a server does
//! with an app of its user's.

mod example;
mod load;
mod native;
mod report;
mod template;

use crate::args::Bench;
use crate::client::{Path, Server, base_url, bearer};
use crate::embedded::Signals;
use crate::failure::{Exit, Failure};
use crate::output::{Grouped, Output};
use crate::sse::Parser;
use bytes::Bytes;
use futures_util::StreamExt as _;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method};
use load::{Ask, Measured, Single, Stop, Target, load};
use report::{Machine, Report, load_average};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use template::Template;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// What the built-in app's commands say.
const BODY: &str = "{\"amount\":1}";
/// Before a measurement, so that connections, instances and caches are there.
const WARM_UP: Duration = Duration::from_millis(500);
/// Commands whose way to a live subscriber is timed.
const DELIVERIES: u64 = 500;
/// How long an event may take to a live subscriber.
const DELIVERY: Duration = Duration::from_secs(5);

/// Measures.
pub(crate) async fn run(output: Output, args: Bench) -> Result<Exit, Failure> {
    let mut signals = Signals::take()?;
    let (stopper, stop) = Stop::new();
    tokio::spawn(async move {
        signals.next().await;
        stopper.send_replace(true);
        // The second one means it.
        signals.next().await;
        std::process::exit(130);
    });
    let mut report = match &args.server {
        None => machine(output, &args, &stop).await?,
        Some(server) => own_app(output, &args, server, &stop).await?,
    };
    report.interrupted = stop.is_asked();
    if output.json {
        output.json(&report)?;
    } else {
        output.line(report.render(output.style()))?;
    }
    Ok(match (report.interrupted, report.has_errors()) {
        (true, _) => Exit::Interrupted,
        (false, true) => Exit::No,
        (false, false) => Exit::Done,
    })
}

fn new_report(args: &Bench, place: String) -> Report {
    Report::new(Machine {
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        load: load_average(),
        profile: if cfg!(debug_assertions) { "debug" } else { "release" },
        version: env!("CARGO_PKG_VERSION"),
        place,
        clients: args.clients.into(),
        seconds: args.seconds,
    })
}

/// One measurement after another, until the user has had enough.
struct Run<'a> {
    output: Output,
    args: &'a Bench,
    stop: &'a Stop,
    report: Report,
}

impl Run<'_> {
    /// What was measured goes into the report, also where it was cut short.
    async fn row(
        &mut self,
        name: &'static str,
        against: Option<&'static str>,
        measure: impl Future<Output = Measured>,
    ) {
        if self.stop.is_asked() {
            return;
        }
        self.output.note(format_args!("measuring: {name}"));
        let measured = measure.await;
        if measured.ok > 0 || !measured.errors.is_empty() {
            self.report.add(name, &measured, against);
        }
    }

    async fn requests(
        &mut self,
        name: &'static str,
        against: Option<&'static str>,
        target: Target,
        clients: usize,
    ) {
        let (stop, span) = (self.stop, Duration::from_secs(self.args.seconds));
        let target = Arc::new(target);
        let numbers = Arc::new(AtomicU64::new(0));
        let measure = async {
            load(&target, &numbers, clients, WARM_UP, stop).await;
            load(&target, &numbers, clients, span, stop).await
        };
        self.row(name, against, measure).await;
    }
}

/// What this machine does with the built-in app.
async fn machine(output: Output, args: &Bench, stop: &Stop) -> Result<Report, Failure> {
    let dir = &args.dir;
    let folder = tempfile::Builder::new().prefix(".ebb-bench-").tempdir_in(dir).map_err(|error| {
        Failure::new(format!("a folder can't be made in {}: {error}", dir.display()))
            .hint("--dir names a folder on the disk to measure")
    })?;
    let shown = std::fs::canonicalize(dir).unwrap_or_else(|_| dir.clone());
    let report = new_report(args, format!("this machine, data in {}", shown.display()));
    let mut run = Run { output, args, stop, report };
    let clients = usize::from(args.clients);
    let (ids, span) = (args.ids, Duration::from_secs(args.seconds));

    let synced = native::fdatasync(folder.path(), stop)?;
    run.row("disk: fdatasync of 4 KiB", None, async { synced }).await;
    let log = native::Log::open(&folder.path().join("native"))?;
    run.row("native: appends to the same log", None, async {
        native::append(&log, clients, ids, WARM_UP, stop).await;
        native::append(&log, clients, ids, span, stop).await
    })
    .await;
    let numbered = move |number: u64| Ask {
        method: Method::POST,
        path: format!("/{}", number % ids),
        body: Bytes::from_static(BODY.as_bytes()),
    };
    let echo = native::HttpServer::start(None).await?;
    let target = Target::new(&echo.base, HeaderMap::new(), numbered)?;
    run.requests("native: HTTP that just answers", None, target, clients).await;
    drop(echo);
    let appending = native::HttpServer::start(Some(log.log.clone())).await?;
    let target = || Target::new(&appending.base, HeaderMap::new(), numbered);
    run.requests("native: HTTP and the same log", None, target()?, clients).await;
    run.requests("native: the same, one client", None, target()?, 1).await;
    drop((appending, log));

    if !stop.is_asked() {
        let node = example::Node::start(folder.path()).await?;
        example_app(&mut run, &node.http, clients, ids).await?;
        node.end().await;
    }
    Ok(run.report)
}

async fn example_app(run: &mut Run<'_>, base: &str, clients: usize, ids: u64) -> Result<(), Failure> {
    let app = Path::of_app(Some(example::APP));
    let commands = app.clone().segment("commands").segment("counter").as_str().to_owned();
    let count = move |number: u64| Ask {
        method: Method::POST,
        path: format!("{commands}/{}/count", number % ids),
        body: Bytes::from_static(BODY.as_bytes()),
    };
    let command = || Target::new(base, json(), count.clone());
    // One command for each: what is measured is streams that have a history, and rows that are there.
    run.output.note(format_args!("preparing {} streams", Grouped(ids)));
    once_each(Arc::new(command()?), clients, ids, run.stop).await?;
    run.requests("commands, durable", Some("native: HTTP and the same log"), command()?, clients).await;
    run.requests("commands, one client", Some("native: the same, one client"), command()?, 1).await;
    let models = app.clone().segment("models").segment("counts").as_str().to_owned();
    let read = move |number: u64| Ask {
        method: Method::GET,
        path: format!("{models}/counter-{}", number % ids),
        body: Bytes::new(),
    };
    let plane = crate::args::DataPlane { server: base.to_owned(), app: None, token: None };
    let server = Server::data(&plane)?;
    catch_up(&server, &app, run.stop).await?;
    let target = Target::new(base, HeaderMap::new(), read)?;
    run.requests("reads by key", Some("native: HTTP that just answers"), target, clients).await;
    let target = Arc::new(command()?);
    let stop = run.stop;
    let span = Duration::from_secs(run.args.seconds);
    run.row("live: from sending a command to its event", None, async {
        deliveries(&server, &app, target, span, stop).await
    })
    .await;
    Ok(())
}

/// Sends one request for each number, from several clients.
async fn once_each(target: Arc<Target>, clients: usize, ids: u64, stop: &Stop) -> Result<(), Failure> {
    let numbers = Arc::new(AtomicU64::new(0));
    let mut running = JoinSet::new();
    for _ in 0..clients {
        let (mut client, numbers, stop) = (Single::new(target.clone()), numbers.clone(), stop.clone());
        running.spawn(async move {
            while !stop.is_asked() {
                let number = numbers.fetch_add(1, Ordering::Relaxed);
                if number >= ids {
                    break;
                }
                client.send(number).await?;
            }
            Ok::<_, String>(())
        });
    }
    while let Some(done) = running.join_next().await {
        let done = done.map_err(Failure::new)?;
        done.map_err(|code| Failure::new(format!("the built-in app could not be prepared: {code}")))?;
    }
    Ok(())
}

fn json() -> HeaderMap {
    HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/json"))])
}

/// The log's last position.
async fn position(server: &Server, app: &Path) -> Result<u64, Failure> {
    let path = app.clone().segment("events").parameter("limit", 1);
    let answer = server.send(server.get(&path)).await?;
    let position = answer.headers().get("ebb-position").and_then(|value| value.to_str().ok()?.parse().ok());
    Ok(position.unwrap_or(0))
}

/// Waits until the read model has all that happened.
async fn catch_up(server: &Server, app: &Path, stop: &Stop) -> Result<(), Failure> {
    let end = position(server, app).await?;
    let path = app.clone().segment("models").segment("counts").parameter("limit", 1);
    let request = server.get(&path).header("ebb-after", end).header("ebb-wait", "30s");
    tokio::select! {
        answer = server.send(request) => answer.map(drop),
        () = stop.asked() => Ok(()),
    }
}

/// Sends commands one after another, and waits for each one's event on a live stream.
async fn deliveries(
    server: &Server,
    app: &Path,
    target: Arc<Target>,
    span: Duration,
    stop: &Stop,
) -> Measured {
    let mut measured = Measured::new();
    let live = async {
        let after = position(server, app).await?;
        let path = app.clone().segment("events").parameter("after", after);
        server.send(server.get(&path).header("accept", "text/event-stream")).await
    };
    let mut events = match live.await {
        Ok(response) => Box::pin(response.bytes_stream()),
        Err(failure) => {
            measured.bad(failure.message);
            return measured;
        }
    };
    let mut parser = Parser::default();
    let mut client = Single::new(target);
    let started = Instant::now();
    for number in 0..DELIVERIES {
        if stop.is_asked() || started.elapsed() > span {
            break;
        }
        let sent = Instant::now();
        let arrives = async {
            while let Some(Ok(chunk)) = events.next().await {
                if !parser.feed(&chunk).is_empty() {
                    return Ok(sent.elapsed());
                }
            }
            Err("stream_ended".to_owned())
        };
        let both = async { tokio::join!(client.send(number), tokio::time::timeout(DELIVERY, arrives)) };
        let (answered, arrived) = tokio::select! {
            both = both => both,
            () = stop.asked() => break,
        };
        match (answered, arrived.unwrap_or_else(|_| Err("not_delivered".into()))) {
            (Ok(()), Ok(time)) => measured.good(time),
            (Err(code), _) | (_, Err(code)) => {
                measured.bad(code);
                break;
            }
        }
    }
    measured.took = started.elapsed();
    measured
}

/// What a server does with an app of its user's.
async fn own_app(output: Output, args: &Bench, server: &str, stop: &Stop) -> Result<Report, Failure> {
    let base = base_url(server)?;
    let plane =
        crate::args::DataPlane { server: base.clone(), app: args.app.clone(), token: args.token.clone() };
    let app = Path::of_app(args.app.as_deref());
    let id = Template::new(&args.id_template);
    let mut headers = json();
    if let Some(bearer) = bearer(args.token.as_deref())? {
        headers.insert(AUTHORIZATION, bearer);
    }
    let mut targets = Vec::new();
    let ids = args.ids;
    if let [aggregate, command] = &args.command[..] {
        let data = match &args.data_template {
            Some(path) => Template::of_data(path)?,
            None => Template::new("{}"),
        };
        let (aggregate, command, id) = (aggregate.clone(), command.clone(), id.clone());
        let prefix = app.clone().segment("commands").segment(&aggregate);
        let ask = move |number: u64| Ask {
            method: Method::POST,
            path: prefix.clone().segment(&id.fill(number % ids)).segment(&command).as_str().to_owned(),
            body: data.fill(number).into(),
        };
        let client = Server::data(&plane)?;
        may_write(args, &base, position(&client, &app).await?)?;
        targets.push(("commands, durable", ask_target(&base, &headers, ask)?));
    }
    if let Some(model) = &args.query {
        let prefix = app.clone().segment("models").segment(model);
        let ask = move |number: u64| Ask {
            method: Method::GET,
            path: prefix.clone().segment(&id.fill(number % ids)).as_str().to_owned(),
            body: Bytes::new(),
        };
        // A server that is not there is told as that, and not as many failed reads.
        position(&Server::data(&plane)?, &app).await?;
        targets.push(("reads by key", ask_target(&base, &headers, ask)?));
    }
    let mut run = Run { output, args, stop, report: new_report(args, base.clone()) };
    // The least that HTTP costs between here and there can't be known from here: what it costs on this machine can.
    let echo = native::HttpServer::start(None).await?;
    let target = Target::new(&echo.base, HeaderMap::new(), |_| Ask {
        method: Method::POST,
        path: "/0".into(),
        body: Bytes::from_static(BODY.as_bytes()),
    })?;
    const ECHO: &str = "native, here: HTTP that just answers";
    run.requests(ECHO, None, target, args.clients.into()).await;
    drop(echo);
    for (name, target) in targets {
        run.requests(name, Some(ECHO), target, args.clients.into()).await;
    }
    Ok(run.report)
}

fn ask_target(
    base: &str,
    headers: &HeaderMap,
    ask: impl Fn(u64) -> Ask + Send + Sync + 'static,
) -> Result<Target, Failure> {
    Target::new(base, headers.clone(), ask)
}

/// Events are for ever: a machine other than this one, and an app that has a history, are written into only by someone
/// who says that it is meant.
fn may_write(args: &Bench, base: &str, events: u64) -> Result<(), Failure> {
    let host = reqwest::Url::parse(base).ok().and_then(|url| {
        let host = url.host_str()?.trim_matches(['[', ']']).to_owned();
        Some(host)
    });
    let is_here = host.is_some_and(|host| {
        host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    });
    let why = match (is_here, events) {
        _ if args.yes => return Ok(()),
        (false, _) => format!("{base} is another machine"),
        (true, 0) => return Ok(()),
        (true, events) => format!("the app at {base} has {} events already", Grouped(events)),
    };
    Err(Failure::new(format!("{why}, and what is sent stays in its log for ever"))
        .hint("measure a copy, or an app that was just deployed; --yes sends all the same"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Arguments, Command};
    use clap::Parser as _;

    fn bench(arguments: &[&str]) -> Bench {
        let all = ["ebb", "bench"].iter().chain(arguments);
        match Arguments::try_parse_from(all).unwrap().command {
            Command::Bench(bench) => bench,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn nothing_is_written_to_other_machines_or_into_a_history_without_a_yes() {
        let server = ["--server", "x", "--command", "account", "open"];
        let (asked, meant) = (bench(&server), bench(&[&server[..], &["--yes"]].concat()));
        for here in ["http://127.0.0.1:8080", "http://localhost:8080", "http://[::1]:8080"] {
            assert!(may_write(&asked, here, 0).is_ok(), "{here}");
            assert!(may_write(&asked, here, 1).is_err(), "{here}");
            assert!(may_write(&meant, here, 1).is_ok(), "{here}");
        }
        for there in ["http://10.0.0.7:8080", "http://example.org", "http://127.0.0.1.example.org"] {
            assert!(may_write(&asked, there, 0).is_err(), "{there}");
            assert!(may_write(&meant, there, 0).is_ok(), "{there}");
        }
    }

    #[test]
    fn an_app_of_ones_own_needs_something_to_be_asked() {
        let parse = |arguments: &[&str]| {
            Arguments::try_parse_from(["ebb", "bench"].iter().chain(arguments)).map(drop)
        };
        assert!(parse(&["--server", "x"]).is_err());
        assert!(parse(&["--command", "account", "open"]).is_err());
        assert!(parse(&["--server", "x", "--query", "balances"]).is_ok());
        assert!(parse(&["--server", "x", "--command", "account"]).is_err());
        assert!(parse(&["--clients", "0"]).is_err());
    }
}
