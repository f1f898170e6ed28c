//! `ebb import`: a file of commands, sent fast, and safely sent again.
//!
//! A reader deals the lines out to workers by a hash of their id; a worker has one connection, a bounded queue, and
//! sends one command after another. So lines of one id keep their order, different ids go side by side, and memory
//! stays bounded: when a queue is full the reader waits.

mod lines;
mod sender;
mod tally;

use crate::args::Import;
use crate::client::{base_url, bearer};
use crate::failure::{Exit, Failure};
use crate::output::Output;
use lines::{BadLine, Job, Lines};
use sender::{Connection, Deliver, Outcome, Policy, Target};
use std::fs::File;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tally::Tally;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Lines that wait for one worker. Enough that a worker never waits for the reader, small enough that 64 workers
/// hold little.
const QUEUE: usize = 64;

/// Runs the import.
pub(crate) async fn run(output: Output, args: Import) -> Result<Exit, Failure> {
    let policy = Policy {
        first_pause: Duration::from_millis(50),
        longest_pause: Duration::from_secs(5),
        give_up_after: Duration::from_secs(args.retry_for),
    };
    let base = base_url(&args.plane.server)?;
    let token = bearer(args.plane.token.as_deref())?;
    let target = Arc::new(Target::new(&base, args.plane.app.as_deref(), &args.aggregate, token, policy)?);
    let (reader, size) = open(&args.file)?;
    let tally = Arc::new(Tally::new(output, size, args.rejects.as_deref())?);
    let workers = (0..args.connections).map(|_| Connection::new(target.clone())).collect();
    let lines = Lines::new(reader, &args.id);

    let ended = tokio::select! {
        ended = pipeline(lines, workers, tally.clone(), args.max_failures) => ended,
        never = tally.watch() => match never {},
        _ = tokio::signal::ctrl_c() => Err(Failure {
            exit: Exit::Interrupted,
            ..Failure::new("interrupted").hint("run the same import again to go on: lines that are done are answered from memory")
        }),
    };
    let counts = tally.finish()?;
    ended?;
    let refusals_count = args.fail_on_refusal && counts.refused > 0;
    Ok(if counts.failed > 0 || refusals_count { Exit::No } else { Exit::Done })
}

fn open(file: &Path) -> Result<(Box<dyn BufRead + Send>, Option<u64>), Failure> {
    const BUFFER: usize = 1 << 18;
    if file.as_os_str() == "-" {
        return Ok((Box::new(BufReader::with_capacity(BUFFER, io::stdin())), None));
    }
    let unreadable = |error: io::Error| Failure::new(format!("{} can't be read: {error}", file.display()));
    let opened = File::open(file).map_err(unreadable)?;
    let metadata = opened.metadata().map_err(unreadable)?;
    if metadata.is_dir() {
        return Err(Failure::new(format!("{} is a folder, not a file of commands", file.display())));
    }
    // A pipe has no length.
    let size = metadata.is_file().then_some(metadata.len());
    Ok((Box::new(BufReader::with_capacity(BUFFER, opened)), size))
}

/// Reads, deals out and sends, until the file ends or going on makes no sense.
async fn pipeline<R, D>(
    lines: Lines<R>,
    workers: Vec<D>,
    tally: Arc<Tally>,
    max_failures: u64,
) -> Result<(), Failure>
where
    R: BufRead + Send + 'static,
    D: Deliver,
{
    // Set by whoever finds that going on makes no sense: the others finish the command they are at, and no more.
    let stop = Arc::new(AtomicBool::new(false));
    let mut queues = Vec::with_capacity(workers.len());
    let mut tasks = JoinSet::new();
    for worker in workers {
        let (queue, jobs) = mpsc::channel(QUEUE);
        queues.push(queue);
        tasks.spawn(work(worker, jobs, tally.clone(), stop.clone(), max_failures));
    }
    let reader = {
        let (tally, stop) = (tally.clone(), stop.clone());
        // Reading a file blocks, and so does reading stdin: a thread of its own.
        tokio::task::spawn_blocking(move || deal(lines, &queues, &tally, &stop, max_failures))
    };
    let mut first_failure = None;
    while let Some(ended) = tasks.join_next().await {
        let ended = ended.unwrap_or_else(|panic| Err(Failure::new(format!("a worker broke: {panic}"))));
        if let Err(failure) = ended {
            stop.store(true, Ordering::Relaxed);
            first_failure.get_or_insert(failure);
        }
    }
    if let Some(failure) = first_failure {
        // Not waiting for the reader: it may wait for stdin, which nobody needs any more.
        return Err(failure);
    }
    reader.await.unwrap_or_else(|panic| Err(Failure::new(format!("the reader broke: {panic}"))))
}

/// The reader's thread. Ends when the file does, or when nobody takes its lines any more.
fn deal<R: BufRead>(
    mut lines: Lines<R>,
    queues: &[mpsc::Sender<Job>],
    tally: &Tally,
    stop: &AtomicBool,
    max_failures: u64,
) -> Result<(), Failure> {
    while !stop.load(Ordering::Relaxed) {
        let line = lines
            .next()
            .map_err(|error| Failure::new(format!("the file can't be read any further: {error}")))?;
        match line {
            None => break,
            Some(Ok(job)) => {
                let queue = &queues[worker_of(&job.id, queues.len())];
                if queue.blocking_send(job).is_err() {
                    break;
                }
            }
            Some(Err(bad)) => bad_line(&bad, tally, max_failures)?,
        }
    }
    Ok(())
}

fn bad_line(bad: &BadLine, tally: &Tally, max_failures: u64) -> Result<(), Failure> {
    if tally.bad_line(bad)? >= max_failures {
        return Err(too_many(max_failures));
    }
    Ok(())
}

fn too_many(max_failures: u64) -> Failure {
    Failure { exit: Exit::No, ..Failure::new(format!("stopped: {max_failures} lines have failed")) }
        .hint("mend what fails and run the same import again, or allow more with --max-failures")
}

/// Which worker takes an id's lines.
fn worker_of(id: &str, workers: usize) -> usize {
    let mut hasher = DefaultHasher::new();
    id.hash(&mut hasher);
    (hasher.finish() % workers as u64) as usize
}

async fn work<D: Deliver>(
    mut worker: D,
    mut jobs: mpsc::Receiver<Job>,
    tally: Arc<Tally>,
    stop: Arc<AtomicBool>,
    max_failures: u64,
) -> Result<(), Failure> {
    while let Some(job) = jobs.recv().await {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let delivered = worker.deliver(&job, &|| tally.retried()).await;
        let settled = delivered.and_then(|outcome| match outcome {
            Outcome::Accepted { replayed, position } => {
                tally.accepted(&job, replayed, position);
                Ok(())
            }
            Outcome::Refused { replayed, problem } => tally.refused(&job, replayed, &problem),
            Outcome::Failed(problem) if tally.failed(&job, &problem)? >= max_failures => {
                Err(too_many(max_failures))
            }
            Outcome::Failed(_) => Ok(()),
        });
        if let Err(failure) = settled {
            stop.store(true, Ordering::Relaxed);
            return Err(failure);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Problem;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::sync::Mutex;

    type Sent = Arc<Mutex<Vec<(String, u64)>>>;

    /// Keeps what it is given, giving way to other workers as often as the command's number says.
    struct Recorder {
        sent: Sent,
        fail_from: u64,
    }

    impl Deliver for Recorder {
        async fn deliver(&mut self, job: &Job, _: &(dyn Fn() + Sync)) -> Result<Outcome, Failure> {
            for _ in 0..job.number % 5 {
                tokio::task::yield_now().await;
            }
            if job.number >= self.fail_from {
                return Ok(Outcome::Failed(Problem::read(500, b"")));
            }
            self.sent.lock().unwrap().push((job.id.clone(), job.number));
            Ok(Outcome::Accepted { replayed: false, position: Some(job.number) })
        }
    }

    fn file(ids: &[u8]) -> String {
        ids.iter().map(|id| format!("{{\"id\":\"s{id}\",\"command\":\"c\",\"data\":{{}}}}\n")).collect()
    }

    type Imported = (Result<(), Failure>, Vec<(String, u64)>, Arc<Tally>);

    fn import(ids: &[u8], workers: usize, fail_from: u64, max_failures: u64) -> Imported {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
        let sent = Sent::default();
        let tally = Arc::new(Tally::new(Output::plain(), None, None).unwrap());
        let workers = (0..workers).map(|_| Recorder { sent: sent.clone(), fail_from }).collect();
        let lines = Lines::new(io::Cursor::new(file(ids)), "default");
        let ended = runtime.block_on(pipeline(lines, workers, tally.clone(), max_failures));
        let sent = sent.lock().unwrap().clone();
        (ended, sent, tally)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn every_line_is_sent_once_and_a_streams_lines_in_their_order(
            ids in prop::collection::vec(0_u8..8, 0..200),
            workers in 1_usize..9,
        ) {
            let (ended, sent, tally) = import(&ids, workers, u64::MAX, 1);
            prop_assert!(ended.is_ok());
            prop_assert_eq!(tally.counts().accepted, ids.len() as u64);

            let mut expected: BTreeMap<String, Vec<u64>> = BTreeMap::new();
            for (line, id) in (1..).zip(&ids) {
                expected.entry(format!("s{id}")).or_default().push(line);
            }
            let mut actual: BTreeMap<String, Vec<u64>> = BTreeMap::new();
            for (id, line) in sent {
                actual.entry(id).or_default().push(line);
            }
            prop_assert_eq!(actual, expected);
        }
    }

    #[test]
    fn an_import_that_only_fails_stops_early() {
        let ids = [7; 1000];
        let (ended, _, tally) = import(&ids, 1, 11, 5);
        let failure = ended.unwrap_err();
        assert_eq!((failure.exit, tally.counts().accepted, tally.counts().failed), (Exit::No, 10, 5));
    }
}
