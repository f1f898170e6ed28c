//! Sending one command until it is answered. A bare HTTP/1.1 connection per worker: a general client's pool, timers
//! and redirects cost more than the request itself at this rate.

use super::lines::Job;
use crate::client::{Path, Problem};
use crate::failure::Failure;
use crate::output::Elapsed;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

/// How long one answer may take: longer than a command's own limits, so that only a server that hangs meets it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// How often a 504 is sent again: the wait may have been the load's fault, or the module may loop.
const SLOW_ATTEMPTS: u32 = 3;

/// Where commands go.
#[derive(Debug)]
pub(super) struct Target {
    host: String,
    port: u16,
    /// What stands before `/{id}/{command}`: `/apps/bank/commands/account`.
    prefix: String,
    headers: HeaderMap,
    policy: Policy,
}

/// How long to try.
#[derive(Clone, Copy, Debug)]
pub(super) struct Policy {
    /// The first pause; each is twice the one before.
    pub(super) first_pause: Duration,
    /// Pauses at most, where the server names none.
    pub(super) longest_pause: Duration,
    /// From a line's first attempt to giving up.
    pub(super) give_up_after: Duration,
}

/// What became of a command.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It is in the log.
    Accepted {
        /// It was there already: an earlier run of this import sent it.
        replayed: bool,
        /// Position of its last event, if it has any.
        position: Option<u64>,
    },
    /// The module said no, now or in an earlier run.
    Refused {
        /// An earlier run got this answer.
        replayed: bool,
        /// The answer.
        problem: Problem,
    },
    /// It was not carried out, and sending it again would not help.
    Failed(Problem),
}

/// Sends commands, in whatever way. A trait, so that order and counting are tested without sockets.
pub(super) trait Deliver: Send + 'static {
    /// Sends until there is an answer. `retried` is called before each further attempt.
    ///
    /// # Errors
    /// Going on makes no sense, for this line and all others: no server, no such app, no permission.
    fn deliver(
        &mut self,
        job: &Job,
        retried: &(dyn Fn() + Sync),
    ) -> impl Future<Output = Result<Outcome, Failure>> + Send;
}

impl Target {
    /// The commands of an aggregate at `base` (`http://host:port`).
    ///
    /// # Errors
    /// The address can't be taken apart.
    pub(super) fn new(
        base: &str,
        app: Option<&str>,
        aggregate: &str,
        bearer: Option<HeaderValue>,
        policy: Policy,
    ) -> Result<Self, Failure> {
        let bad = || Failure::new(format!("`{base}` is not the address of a server"));
        let url = reqwest::Url::parse(base).map_err(|_| bad())?;
        let host = url.host_str().ok_or_else(bad)?.trim_matches(['[', ']']).to_owned();
        let port = url.port_or_known_default().ok_or_else(bad)?;
        let authority = base.trim_start_matches("http://").split('/').next().unwrap_or_default();
        let mut headers = HeaderMap::new();
        headers.insert(HOST, HeaderValue::from_str(authority).map_err(|_| bad())?);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("ebb/", env!("CARGO_PKG_VERSION"))));
        if let Some(bearer) = bearer {
            headers.insert(AUTHORIZATION, bearer);
        }
        let path = Path::of_app(app).segment("commands").segment(aggregate);
        let prefix = format!("{}{}", url.path().trim_end_matches('/'), path.as_str());
        Ok(Self { host, port, prefix, headers, policy })
    }

    fn request(&self, job: &Job) -> Result<Request<Full<Bytes>>, String> {
        let path = Path::new().segment(&job.id).segment(&job.command);
        let mut request = Request::post(format!("{}{}", self.prefix, path.as_str()))
            .body(Full::new(job.data.clone()))
            .map_err(|error| error.to_string())?;
        self.headers.clone_into(request.headers_mut());
        let key = HeaderValue::from_str(&job.key).map_err(|error| error.to_string())?;
        request.headers_mut().insert("idempotency-key", key);
        Ok(request)
    }
}

/// One worker's connection, opened when it is needed.
pub(super) struct Connection {
    target: Arc<Target>,
    open: Option<SendRequest<Full<Bytes>>>,
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

/// What to do about an answer.
enum Verdict {
    Settled(Outcome),
    /// Again, not before the pause if the server named one.
    Again {
        pause: Option<Duration>,
        why: String,
    },
    /// All other lines would get the same.
    Hopeless(Failure),
}

impl Connection {
    pub(super) const fn new(target: Arc<Target>) -> Self {
        Self { target, open: None }
    }

    async fn attempt(&mut self, job: &Job) -> Result<Answer, String> {
        let answered = timeout(ANSWER_TIMEOUT, self.exchange(job)).await;
        let answer =
            answered.unwrap_or_else(|_| Err(format!("no answer within {} s", ANSWER_TIMEOUT.as_secs())));
        if answer.is_err() {
            self.open = None;
        }
        answer
    }

    async fn exchange(&mut self, job: &Job) -> Result<Answer, String> {
        let request = self.target.request(job)?;
        let mut open = match self.open.take() {
            Some(open) => open,
            None => self.connect().await?,
        };
        if open.ready().await.is_err() {
            // The server closed it between two commands, as it may: not worth a pause.
            open = self.connect().await?;
        }
        let response = open.send_request(request).await.map_err(|error| error.to_string())?;
        let (head, body) = response.into_parts();
        let body = body.collect().await.map_err(|error| error.to_string())?.to_bytes();
        self.open = Some(open);
        Ok(Answer { status: head.status, headers: head.headers, body })
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, String> {
        let stream = TcpStream::connect((self.target.host.as_str(), self.target.port)).await;
        let stream = stream.map_err(|error| error.to_string())?;
        // A command is one small write; Nagle's algorithm would hold it back for a delayed acknowledgement.
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        let (open, connection) = handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
        // Ends when `open` is dropped or the server hangs up; the error reaches whoever waits for an answer.
        tokio::spawn(async move { connection.await.ok() });
        Ok(open)
    }
}

impl Deliver for Connection {
    async fn deliver(&mut self, job: &Job, retried: &(dyn Fn() + Sync)) -> Result<Outcome, Failure> {
        let policy = self.target.policy;
        let started = Instant::now();
        let mut pause = policy.first_pause;
        let mut attempts = 0;
        loop {
            attempts += 1;
            let (named, why) = match self.attempt(job).await {
                Ok(answer) => match judge(&answer, attempts) {
                    Verdict::Settled(outcome) => return Ok(outcome),
                    Verdict::Hopeless(failure) => return Err(failure),
                    Verdict::Again { pause, why } => (pause, why),
                },
                Err(why) => (None, why),
            };
            let next = named.unwrap_or(pause);
            if started.elapsed() + next > policy.give_up_after {
                let Target { host, port, .. } = &*self.target;
                let waited = Elapsed(started.elapsed());
                return Err(Failure::new(format!("http://{host}:{port} did not take line {} within {waited}: {why}", job.number))
                    .hint("run the same import again when the server is back: lines that are done are answered from memory"));
            }
            sleep(jittered(next)).await;
            pause = (pause * 2).min(policy.longest_pause);
            retried();
        }
    }
}

/// Between one and one and a half times as long: workers that were turned away together come back one by one.
fn jittered(pause: Duration) -> Duration {
    let random = RandomState::new().build_hasher().finish();
    pause + pause.mul_f64((random % 1000) as f64 / 2000.0)
}

fn judge(answer: &Answer, attempts: u32) -> Verdict {
    let replayed = answer.headers.get("ebb-replayed").is_some_and(|value| value.as_bytes() == b"true");
    if answer.status.is_success() {
        let position = answer.headers.get("ebb-position").and_then(|value| value.to_str().ok()?.parse().ok());
        return Verdict::Settled(Outcome::Accepted { replayed, position });
    }
    let problem = Problem::read(answer.status.as_u16(), &answer.body);
    let code = problem.code.as_deref().unwrap_or_default();
    match answer.status.as_u16() {
        429 | 503 => Verdict::Again { pause: retry_after(&answer.headers), why: problem.message() },
        // The answer to the first attempt was lost, and the command is still being decided.
        409 if code == "key_in_flight" => {
            Verdict::Again { pause: retry_after(&answer.headers), why: problem.message() }
        }
        504 if attempts < SLOW_ATTEMPTS => Verdict::Again { pause: None, why: problem.message() },
        401 | 403 | 405 | 415 => Verdict::Hopeless(problem.into_failure()),
        404 if code != "unknown_command" => Verdict::Hopeless(problem.into_failure()),
        422 if problem.is_refusal() => Verdict::Settled(Outcome::Refused { replayed, problem }),
        _ => Verdict::Settled(Outcome::Failed(problem)),
    }
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    const QUICK: Policy = Policy {
        first_pause: Duration::from_millis(1),
        longest_pause: Duration::from_millis(2),
        give_up_after: Duration::from_secs(20),
    };

    fn job() -> Job {
        let line = Bytes::from_static(br#"{"id":"a/b","command":"deposit","data":{}}"#);
        Job {
            number: 7,
            width: 0,
            data: line.slice(39..41),
            line,
            id: "a/b".into(),
            command: "deposit".into(),
            key: "k".into(),
        }
    }

    fn answer(status: &str, headers: &str, body: &str) -> Option<String> {
        Some(format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n{headers}\r\n{body}", body.len()))
    }

    /// Answers requests one after another with these texts; none hangs up without an answer. Gives back the
    /// requests' heads.
    async fn script(answers: Vec<Option<String>>) -> (String, tokio::task::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let task = tokio::spawn(async move {
            let mut heads = Vec::new();
            let mut open: Option<TcpStream> = None;
            for answer in answers {
                let mut stream = match open.take() {
                    Some(stream) => stream,
                    None => listener.accept().await.unwrap().0,
                };
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n{}") {
                    let mut byte = [0];
                    stream.read_exact(&mut byte).await.unwrap();
                    request.push(byte[0]);
                }
                heads.push(String::from_utf8(request).unwrap());
                if let Some(answer) = answer {
                    stream.write_all(answer.as_bytes()).await.unwrap();
                    open = Some(stream);
                }
            }
            heads
        });
        (base, task)
    }

    async fn deliver(answers: Vec<Option<String>>) -> (Result<Outcome, Failure>, u32, Vec<String>) {
        let (base, server) = script(answers).await;
        let target = Target::new(&base, Some("bank"), "account", None, QUICK).unwrap();
        let retries = AtomicU32::new(0);
        let mut connection = Connection::new(Arc::new(target));
        let outcome = connection
            .deliver(&job(), &|| {
                retries.fetch_add(1, Ordering::Relaxed);
            })
            .await;
        (outcome, retries.into_inner(), server.await.unwrap())
    }

    #[tokio::test]
    async fn a_command_goes_to_its_stream_with_its_key() {
        let (outcome, _, heads) = deliver(vec![answer("200 OK", "ebb-position: 12\r\n", "{}")]).await;
        assert!(matches!(outcome, Ok(Outcome::Accepted { replayed: false, position: Some(12) })));
        assert!(
            heads[0].starts_with("POST /apps/bank/commands/account/a%2Fb/deposit HTTP/1.1\r\n"),
            "{}",
            heads[0]
        );
        assert!(heads[0].contains("idempotency-key: k\r\n"));
    }

    #[tokio::test]
    async fn a_busy_or_vanished_server_gets_the_same_command_again() {
        let busy = answer("503 Service Unavailable", "retry-after: 0\r\n", r#"{"code":"overloaded"}"#);
        let in_flight = answer("409 Conflict", "", r#"{"code":"key_in_flight"}"#);
        let done = answer("200 OK", "ebb-replayed: true\r\n", "{}");
        let (outcome, retries, heads) = deliver(vec![busy, None, in_flight, done]).await;
        assert!(matches!(outcome, Ok(Outcome::Accepted { replayed: true, .. })));
        assert_eq!((retries, heads.len()), (3, 4));
        assert!(heads.iter().all(|head| head.contains("idempotency-key: k\r\n")));
    }

    #[tokio::test]
    async fn a_refusal_is_an_answer_and_a_violation_is_a_failure() {
        let refused =
            r#"{"type":"urn:ebbtide:error:refused","code":"insufficient_funds","detail":"short by 30"}"#;
        let (outcome, ..) = deliver(vec![answer("422 Unprocessable Content", "", refused)]).await;
        assert!(matches!(outcome, Ok(Outcome::Refused { replayed: false, .. })));

        let violation =
            r#"{"type":"urn:ebbtide:error:schema_violation","code":"schema_violation","detail":"no"}"#;
        let (outcome, ..) = deliver(vec![answer("422 Unprocessable Content", "", violation)]).await;
        assert!(matches!(outcome, Ok(Outcome::Failed(_))));
    }

    #[tokio::test]
    async fn what_all_lines_would_meet_ends_the_import() {
        let (outcome, ..) =
            deliver(vec![answer("401 Unauthorized", "", r#"{"code":"unauthenticated"}"#)]).await;
        assert!(outcome.is_err());
        let (outcome, ..) =
            deliver(vec![answer("404 Not Found", "", r#"{"code":"unknown_aggregate"}"#)]).await;
        assert!(outcome.is_err());
        let (outcome, ..) = deliver(vec![answer("404 Not Found", "", r#"{"code":"unknown_command"}"#)]).await;
        assert!(matches!(outcome, Ok(Outcome::Failed(_))), "another line may have a command that exists");
    }

    #[tokio::test]
    async fn a_server_that_stays_away_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let policy = Policy { give_up_after: Duration::from_millis(10), ..QUICK };
        let target = Target::new(&base, None, "account", None, policy).unwrap();
        let failure = Connection::new(Arc::new(target)).deliver(&job(), &|| ()).await.unwrap_err();
        assert!(failure.message.contains("did not take line 7"), "{failure}");
    }
}
