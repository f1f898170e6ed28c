//! Commands over HTTP, and what became of them. `POST` to durable reply is the hot path: headers are looked at once,
//! and the reply is written straight into its buffer.

use super::{Call, DataPlane};
use crate::http::body::RequestBody;
use crate::http::problem::{
    BAD_HEADER, FORBIDDEN, INTERNAL, INVALID_EVENT, INVALID_KEY, KEY_IN_FLIGHT, KEY_REUSED,
    MODULE_BAD_ANSWER, MODULE_OUT_OF_CPU, MODULE_OUT_OF_MEMORY, MODULE_OUTPUT_TOO_LARGE, MODULE_TRAPPED,
    NO_SUCH_COMMAND, NOT_JSON, OUT_OF_TIME, OUTCOME_UNKNOWN, OVERLOADED, Problem, REFUSED, REVISION_CONFLICT,
    SCHEMA_VIOLATION, SHUTTING_DOWN, THROTTLED, UNAVAILABLE, UNDECLARED_EVENT, UNKNOWN_AGGREGATE,
    UNKNOWN_COMMAND, UNSUPPORTED_MEDIA_TYPE,
};
use crate::http::reply::{
    EBB_COMMAND_ID, EBB_POSITION, EBB_REPLAYED, JsonWriter, Reply, json_bytes, number, uuid_value,
};
use crate::http::target::{segment, shorten};
use crate::metrics::CommandOutcome;
use bytes::Bytes;
use ebb_app::commands::{CommandError, CommandErrorKind, CommandReply, CommandRequest, Precondition};
use ebb_domain::commit::{CommandId, Commit, IdempotencyKey, Refusal};
use ebb_domain::event::{Revision, is_json};
use ebb_domain::port::guest::CallError;
use ebb_domain::text::Text;
use ebb_domain::trace::Trace;
use ebb_engine::Observer as _;
use ebb_faults::{Point, crash_point};
use http::header::{CONTENT_TYPE, IF_MATCH, IF_NONE_MATCH};
use http::{HeaderMap, HeaderValue, StatusCode};
use serde_json::Value;

/// A correlation or causation id, or a trace context: recorded with every event, so not long.
const MAX_ID_BYTES: usize = 256;

impl DataPlane {
    /// The span that a command will be, or its caller's where nobody observes.
    fn begin_span(&self, headers: &HeaderMap) -> Option<Trace> {
        let caller = caller(headers);
        match &self.traces {
            Some(traces) => Some(traces.begin(caller.as_ref())),
            None => caller,
        }
    }

    pub(super) async fn command(
        &self,
        call: &Call<'_>,
        aggregate: &str,
        key: &str,
        command: &str,
        body: RequestBody,
    ) -> Result<Reply, Problem> {
        let headers = &call.parts.headers;
        let (aggregate, key, command) = (segment(aggregate)?, segment(key)?, segment(command)?);
        if let Some(media_type) = headers.get(CONTENT_TYPE)
            && !media_type.to_str().is_ok_and(is_json)
        {
            let shown = shorten(&String::from_utf8_lossy(media_type.as_bytes()));
            return Err(UNSUPPORTED_MEDIA_TYPE
                .detail(format!("the body is `{shown}`; a command takes `application/json`")));
        }
        let key_header = idempotency_key(headers)?;
        let data = body.read(self.limits.body, self.limits.body_timeout).await?;
        let idempotency = key_header.map(|text| IdempotencyKey::new(text, &aggregate, &key, &command, &data));
        let request = CommandRequest {
            aggregate: aggregate.into_owned(),
            key: key.into_owned(),
            command: command.into_owned(),
            data,
            actor: call.actor.clone(),
            precondition: precondition(headers)?,
            idempotency,
            correlation_id: correlation_id(headers)?,
            causation_id: id(headers, "ebb-causation-id")?,
            hops: 0,
            trace: self.begin_span(headers),
            origin: None,
        };
        // Only an aggregate that the manifest has becomes a label.
        let counted = call.manifest.aggregates.keys().find(|name| ***name == *request.aggregate);
        let _entered = counted
            .and_then(|aggregate| self.metrics.enter(call.app.name(), || format!("aggregate.{aggregate}")));
        crash_point(Point::CommandReceived);
        let result = call.app.command(request).await;
        crash_point(Point::CommandBeforeAnswer);
        if let Some(aggregate) = counted {
            self.metrics.command(call.app.name(), aggregate, outcome(&result), call.started.elapsed());
        }
        match result {
            Ok(reply) => Ok(command_reply(&reply)),
            Err(error) => Err(command_problem(error)),
        }
    }

    pub(super) async fn command_log(&self, call: &Call<'_>, id: &str) -> Result<Reply, Problem> {
        let text = segment(id)?;
        let unknown = || NO_SUCH_COMMAND.detail(format!("the log has no command `{}`", shorten(&text)));
        let id = text.parse().map(CommandId).map_err(|_| unknown())?;
        let commit = call.app.log().find_command(id).await.map_err(super::events::unreadable)?;
        let commit = commit.ok_or_else(unknown)?;
        super::events::authorize_category(call, commit.header.stream.category())?;
        Ok(log_entry(&commit))
    }
}

fn outcome(result: &Result<CommandReply, CommandError>) -> CommandOutcome {
    use CommandErrorKind as Kind;
    match result {
        Ok(reply) if reply.replayed => CommandOutcome::Replayed,
        Ok(_) => CommandOutcome::Accepted,
        Err(error) => match &error.kind {
            Kind::Refused(_) => CommandOutcome::Refused,
            Kind::Conflict { .. } | Kind::KeyInFlight => CommandOutcome::Conflict,
            Kind::UnknownAggregate { .. }
            | Kind::UnknownCommand { .. }
            | Kind::InvalidKey(_)
            | Kind::Forbidden { .. }
            | Kind::NotJson(_)
            | Kind::SchemaViolation(_)
            | Kind::KeyReused => CommandOutcome::Invalid,
            Kind::Throttled { .. }
            | Kind::ChainHeldBack { .. }
            | Kind::Module(CallError::Overloaded { .. }) => CommandOutcome::Throttled,
            _ => CommandOutcome::Failed,
        },
    }
}

fn command_reply(reply: &CommandReply) -> Reply {
    let data: usize = reply.events.iter().map(|event| event.data.len() + 160).sum();
    let mut json = JsonWriter::with_capacity(96 + reply.stream.as_str().len() + data);
    json.raw("{");
    write_accepted(&mut json, reply);
    json.raw("}\n");
    let mut answer = json_bytes(StatusCode::OK, json.finish());
    let headers = answer.headers_mut();
    headers.insert(EBB_COMMAND_ID, uuid_value(reply.command_id.0));
    if let Some(position) = reply.position {
        headers.insert(EBB_POSITION, number(position.0));
    }
    if reply.replayed {
        headers.insert(EBB_REPLAYED, HeaderValue::from_static("true"));
    }
    answer
}

/// `"stream":…,"revision":…,"position":…,"events":[…]`. Event data is JSON that was checked when it was decided, and
/// goes out as it is.
fn write_accepted(json: &mut JsonWriter, reply: &CommandReply) {
    json.raw("\"stream\":").text(reply.stream.as_str());
    json.raw(",\"revision\":").integer(reply.revision.map(|revision| revision.0));
    json.raw(",\"position\":").integer(reply.position.map(|position| position.0));
    json.raw(",\"events\":[");
    for (at, event) in reply.events.iter().enumerate() {
        json.raw(if at == 0 { "{\"id\":" } else { ",{\"id\":" }).uuid(event.id.0);
        json.raw(",\"type\":").text(&event.event_type);
        json.raw(",\"revision\":").integer(Some(event.revision.0));
        json.raw(",\"position\":").integer(Some(event.position.0));
        json.raw(",\"data\":").raw(&event.data).raw("}");
    }
    json.raw("]");
}

/// What `command-log` says of a commit.
fn log_entry(commit: &Commit) -> Reply {
    let header = &commit.header;
    let mut json = JsonWriter::with_capacity(512);
    json.raw("{\"command_id\":").uuid(header.command_id.0);
    json.raw(",\"command\":");
    match &header.command {
        Some(command) => json.text(&command.name),
        None => json.raw("null"),
    };
    json.raw(",\"actor\":").text(&header.actor);
    json.raw(",\"correlation_id\":").text(&header.correlation_id);
    json.raw(",\"recorded_at\":").text(&header.recorded_at.to_string());
    match CommandReply::from_commit(commit, true) {
        Ok(reply) => {
            json.raw(",\"outcome\":\"accepted\",");
            write_accepted(&mut json, &reply);
        }
        Err(Refusal { code, message, details }) => {
            json.raw(",\"outcome\":\"refused\",\"stream\":").text(header.stream.as_str());
            json.raw(",\"code\":").text(&code).raw(",\"message\":").text(&message);
            json.raw(",\"details\":").raw(details_json(details.as_ref()).to_string());
        }
    }
    json.raw("}\n");
    let mut answer = json_bytes(StatusCode::OK, json.finish());
    answer.headers_mut().insert(EBB_COMMAND_ID, uuid_value(header.command_id.0));
    answer
}

fn details_json(details: Option<&Bytes>) -> Value {
    details.and_then(|details| serde_json::from_slice(details).ok()).unwrap_or(Value::Null)
}

/// `Idempotency-Key`: 1 to 255 visible ASCII characters. The draft standard's quotes are not part of the key.
fn idempotency_key(headers: &HeaderMap) -> Result<Option<Text>, Problem> {
    let Some(value) = one(headers, "idempotency-key")? else { return Ok(None) };
    let bytes = value.as_bytes();
    let key = match bytes {
        [b'"', inner @ .., b'"'] if !inner.is_empty() => inner,
        _ => bytes,
    };
    if !IdempotencyKey::is_valid(key) {
        return Err(BAD_HEADER.detail("`Idempotency-Key` takes 1 to 255 visible ASCII characters"));
    }
    Ok(Some(Text::from_utf8(Bytes::copy_from_slice(key)).expect("ASCII is UTF-8")))
}

/// `If-Match: 3`, `If-Match: "3"`, `If-Match: *`, `If-None-Match: *`.
fn precondition(headers: &HeaderMap) -> Result<Option<Precondition>, Problem> {
    let (exists, absent) = (one(headers, IF_MATCH.as_str())?, one(headers, IF_NONE_MATCH.as_str())?);
    match (exists, absent) {
        (None, None) => Ok(None),
        (Some(_), Some(_)) => Err(BAD_HEADER.detail("`If-Match` and `If-None-Match` exclude each other")),
        (None, Some(value)) if value == "*" => Ok(Some(Precondition::Absent)),
        (None, Some(_)) => Err(BAD_HEADER.detail("`If-None-Match` takes `*` only: the stream has no events")),
        (Some(value), None) if value == "*" => Ok(Some(Precondition::Exists)),
        (Some(value), None) => {
            let text = value.to_str().unwrap_or_default();
            let revision = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
            let digits = !revision.is_empty() && revision.bytes().all(|byte| byte.is_ascii_digit());
            let revision = digits.then(|| revision.parse().ok()).flatten().map(Revision);
            let revision = revision.ok_or_else(|| {
                let detail = format!(
                    "`If-Match` is `{}`; it takes the revision of the stream's last event, from 0, or `*`",
                    shorten(text)
                );
                BAD_HEADER.detail(detail)
            })?;
            Ok(Some(Precondition::Revision(revision)))
        }
    }
}

/// A header that may stand there once.
pub(super) fn one<'h>(headers: &'h HeaderMap, name: &str) -> Result<Option<&'h HeaderValue>, Problem> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    match values.next() {
        None => Ok(first),
        Some(_) => Err(BAD_HEADER.detail(format!("`{name}` is there twice"))),
    }
}

/// What the caller says that its request belongs to.
pub(super) fn correlation_id(headers: &HeaderMap) -> Result<Option<Text>, Problem> {
    match id(headers, "ebb-correlation-id")? {
        Some(correlation) => Ok(Some(correlation)),
        None => id(headers, "x-correlation-id"),
    }
}

fn id(headers: &HeaderMap, name: &str) -> Result<Option<Text>, Problem> {
    let Some(value) = one(headers, name)? else { return Ok(None) };
    let bytes = value.as_bytes();
    if bytes.is_empty() || bytes.len() > MAX_ID_BYTES || !bytes.iter().all(u8::is_ascii_graphic) {
        return Err(BAD_HEADER.detail(format!("`{name}` takes 1 to {MAX_ID_BYTES} visible ASCII characters")));
    }
    Ok(Some(Text::from_utf8(Bytes::copy_from_slice(bytes)).expect("ASCII is UTF-8")))
}

/// The caller's span, if it tells a well-formed one.
fn caller(headers: &HeaderMap) -> Option<Trace> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    text("traceparent").and_then(|parent| Trace::parse(parent, text("tracestate")))
}

/// What a caller is told about a command that was not accepted.
fn command_problem(error: CommandError) -> Problem {
    let CommandError { command_id, kind, replayed } = error;
    let retry_after = kind.retry_after();
    let mut problem = kind_problem(kind);
    if let Some(id) = command_id {
        problem = problem.with("command_id", id.to_string()).header(EBB_COMMAND_ID, uuid_value(id.0));
    }
    if replayed {
        problem = problem.header(EBB_REPLAYED, HeaderValue::from_static("true"));
    }
    if let Some(delay) = retry_after {
        problem = problem.retry_after(delay);
    }
    problem
}

fn kind_problem(kind: CommandErrorKind) -> Problem {
    use CommandErrorKind as Kind;
    let detail = kind.to_string();
    match kind {
        Kind::UnknownAggregate { .. } => UNKNOWN_AGGREGATE.detail(detail),
        Kind::UnknownCommand { .. } => UNKNOWN_COMMAND.detail(detail),
        Kind::InvalidKey(_) => INVALID_KEY.detail(detail),
        Kind::Forbidden { .. } => FORBIDDEN.detail(detail),
        Kind::NotJson(_) => NOT_JSON.detail(detail),
        Kind::SchemaViolation(violations) => {
            let violations = serde_json::to_value(&violations).unwrap_or_default();
            SCHEMA_VIOLATION.detail(detail).with("violations", violations)
        }
        Kind::Conflict { actual } => REVISION_CONFLICT
            .detail(detail)
            .with("actual_revision", actual.map_or(Value::Null, |actual| actual.0.into())),
        Kind::KeyInFlight => KEY_IN_FLIGHT.detail(detail),
        Kind::KeyReused => KEY_REUSED.detail(detail),
        Kind::Refused(Refusal { code, message, details }) => {
            let problem = REFUSED.detail(&*message).code(code);
            match details {
                Some(details) => problem.with("details", details_json(Some(&details))),
                None => problem,
            }
        }
        // Events lead to commands by way of functions; no caller sees these two.
        Kind::ChainTooLong { .. } => FORBIDDEN.detail(detail),
        Kind::Throttled { .. } | Kind::ChainHeldBack { .. } => THROTTLED.detail(detail),
        Kind::Module(error) => module_problem(error, "command"),
        Kind::UndeclaredEvent { .. } => UNDECLARED_EVENT.detail(detail),
        Kind::InvalidEvent { .. } => INVALID_EVENT.detail(detail),
        Kind::OutputTooLarge(_) => MODULE_OUTPUT_TOO_LARGE.detail(detail),
        Kind::OutOfTime(_) => OUT_OF_TIME.detail(detail),
        Kind::Unavailable(cause) => UNAVAILABLE.detail("the log takes no writes now").cause(cause),
        Kind::OutcomeUnknown(cause) => {
            OUTCOME_UNKNOWN.detail("the log failed while the command was being recorded").cause(cause)
        }
        Kind::ShuttingDown => SHUTTING_DOWN.detail(detail),
        Kind::Internal(cause) => INTERNAL.detail("the command could not be decided").cause(cause),
    }
}

/// A module's failure. What it said when it trapped is for its author, who reads the log, and not for its callers.
pub(crate) fn module_problem(error: CallError, what: &str) -> Problem {
    let detail = error.to_string();
    match error {
        CallError::Trapped(trap) => {
            MODULE_TRAPPED.detail(format!("the module trapped while it worked on the {what}")).cause(trap)
        }
        CallError::BadAnswer(problem) => {
            MODULE_BAD_ANSWER.detail("what the program answered can't be used").cause(problem)
        }
        CallError::OutOfMemory { .. } => MODULE_OUT_OF_MEMORY.detail(detail),
        CallError::OutOfCpu { .. } => MODULE_OUT_OF_CPU.detail(detail),
        CallError::OutOfTime { .. } => OUT_OF_TIME.detail(detail),
        CallError::OutputTooLarge(_) => MODULE_OUTPUT_TOO_LARGE.detail(detail),
        CallError::Overloaded { .. } => OVERLOADED.detail(detail),
        CallError::InstanceLost | CallError::BadSnapshot(_) | CallError::Failed(_) => {
            INTERNAL.detail("the module could not be run").cause(detail)
        }
    }
}

/// Reads what a command reads of its headers.
#[cfg(feature = "testing")]
pub(crate) fn fuzz_headers(headers: &HeaderMap) {
    if let Ok(Some(key)) = idempotency_key(headers) {
        assert!((1..=255).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic()));
    }
    if let Err(problem) = precondition(headers) {
        assert_eq!(problem.status(), StatusCode::BAD_REQUEST);
    }
    if let Ok(Some(id)) = id(headers, "ebb-correlation-id") {
        assert!((1..=MAX_ID_BYTES).contains(&id.len()));
    }
    if let Some(caller) = caller(headers) {
        assert_eq!(Trace::parse(&caller.to_string(), caller.state.as_deref()), Some(caller));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebb_app::commands::ReplyEvent;
    use ebb_domain::event::{EventId, Position};
    use ebb_domain::name::EventType;
    use ebb_domain::stream::StreamId;
    use http::HeaderName;
    use http_body_util::BodyExt as _;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    #[test]
    fn if_match_takes_a_revision_bare_or_quoted_or_a_star() {
        let read = |value| precondition(&headers(&[("if-match", value)]));
        assert_eq!(read("3").unwrap(), Some(Precondition::Revision(Revision(3))));
        assert_eq!(read("\"3\"").unwrap(), Some(Precondition::Revision(Revision(3))));
        assert_eq!(read("*").unwrap(), Some(Precondition::Exists));
        for wrong in ["-1", "+1", "", "W/\"3\"", "1, 2", "\"3", "99999999999999999999", "0x3"] {
            assert_eq!(read(wrong).unwrap_err().kind().code, "bad_header", "{wrong}");
        }
    }

    #[test]
    fn if_none_match_takes_a_star_and_excludes_if_match() {
        assert_eq!(precondition(&headers(&[("if-none-match", "*")])).unwrap(), Some(Precondition::Absent));
        assert!(precondition(&headers(&[("if-none-match", "3")])).is_err());
        assert!(precondition(&headers(&[("if-match", "3"), ("if-none-match", "*")])).is_err());
        assert!(precondition(&headers(&[("if-match", "3"), ("if-match", "4")])).is_err());
    }

    #[test]
    fn an_idempotency_key_is_visible_ascii_and_not_long() {
        let read = |value: &str| idempotency_key(&headers(&[("idempotency-key", value)]));
        assert_eq!(read("a-1").unwrap().as_deref(), Some("a-1"));
        assert_eq!(read("\"a-1\"").unwrap().as_deref(), Some("a-1"));
        assert!(read(&"x".repeat(255)).is_ok());
        for wrong in ["", "a b", &"x".repeat(256)] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_function_that_sends_a_command_gets_the_code_that_an_http_caller_gets() {
        use CommandErrorKind as Kind;
        let text = String::new;
        let limit = std::time::Duration::ZERO;
        let lack = ebb_domain::port::guest::Lack::Queue(1);
        for kind in [
            Kind::UnknownAggregate { aggregate: text(), known: text() },
            Kind::UnknownCommand { aggregate: text(), command: text(), known: text() },
            Kind::InvalidKey(ebb_domain::stream::StreamKey::new("").unwrap_err()),
            Kind::Forbidden { actor: Text::from_static("a"), aggregate: text() },
            Kind::NotJson(text()),
            Kind::SchemaViolation(Vec::new()),
            Kind::Conflict { actual: None },
            Kind::KeyInFlight,
            Kind::KeyReused,
            Kind::Throttled { retry_after: limit },
            Kind::Module(CallError::Trapped(text())),
            Kind::Module(CallError::BadAnswer(text())),
            Kind::Module(CallError::OutOfMemory { limit_bytes: 1 }),
            Kind::Module(CallError::OutOfCpu { limit }),
            Kind::Module(CallError::OutOfTime { limit }),
            Kind::Module(CallError::OutputTooLarge(text())),
            Kind::Module(CallError::Overloaded { lack, retry_after: limit }),
            Kind::Module(CallError::Failed(text())),
            Kind::UndeclaredEvent { event_type: text(), aggregate: text() },
            Kind::InvalidEvent { event_type: text(), problem: text() },
            Kind::OutputTooLarge(text()),
            Kind::OutOfTime(limit),
            Kind::Unavailable(text()),
            Kind::OutcomeUnknown(text()),
            Kind::ShuttingDown,
            Kind::Internal(text()),
        ] {
            assert_eq!(kind.code(), kind_problem(kind.clone()).kind().code, "{kind:?}");
        }
    }

    #[tokio::test]
    async fn a_reply_has_the_contracts_shape_and_headers() {
        let command_id = CommandId(uuid::Uuid::from_u128(7));
        let reply = CommandReply {
            command_id,
            stream: StreamId::parse("account-a\"b").unwrap(),
            revision: Some(Revision(4)),
            position: Some(Position(9)),
            events: vec![ReplyEvent {
                id: EventId::derive(command_id, 0),
                event_type: EventType::new("Deposited").unwrap(),
                revision: Revision(4),
                position: Position(9),
                data: Bytes::from_static(b"{ \"amount\": 5 }"),
            }],
            replayed: true,
        };
        let answer = command_reply(&reply);
        assert_eq!(answer.headers()["ebb-position"], "9");
        assert_eq!(answer.headers()["ebb-command-id"], command_id.to_string().as_str());
        assert_eq!(answer.headers()["ebb-replayed"], "true");
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        let document: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(
            document,
            serde_json::json!({
                "stream": "account-a\"b", "revision": 4, "position": 9,
                "events": [{ "id": EventId::derive(command_id, 0).to_string(), "type": "Deposited", "revision": 4, "position": 9, "data": { "amount": 5 } }],
            })
        );
    }

    #[test]
    fn a_trap_is_not_told_to_the_caller() {
        let problem = kind_problem(CommandErrorKind::Module(CallError::Trapped(
            "panicked at /home/dev/src/lib.rs".into(),
        )));
        assert_eq!(
            (problem.kind().code, problem.status()),
            ("module_trapped", StatusCode::INTERNAL_SERVER_ERROR)
        );
        let shown = format!("{:?}", problem.into_reply().body());
        assert!(!shown.contains("/home/dev"), "{shown}");
    }
}
