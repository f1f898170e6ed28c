//! Every error that a caller can get: RFC 9457 `application/problem+json` with a stable code.
//!
//! This catalogue is the only place that knows codes and statuses; `docs/errors.md` is printed from it, and a test
//! keeps the page equal. What went wrong inside (paths, traps, causes) goes to the log under a request id, never to
//! the caller.

use super::reply::{Reply, full};
use crate::auth::AuthError;
use ebb_domain::text::Text;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderName, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, StatusCode};
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// One kind of error: what callers may rely on.
#[derive(Debug)]
pub struct Kind {
    /// Stable, for programs.
    pub code: &'static str,
    /// The HTTP status.
    pub status: u16,
    /// The same for every error of this kind, for people.
    pub title: &'static str,
    /// What a caller does about it.
    pub remedy: &'static str,
}

macro_rules! catalogue {
    ($($name:ident = $status:literal $code:literal, $title:literal, $remedy:literal;)*) => {
        $(
            #[doc = concat!("`", $code, "`, ", stringify!($status), ": ", $title, ".")]
            pub static $name: Kind = Kind { code: $code, status: $status, title: $title, remedy: $remedy };
        )*
        /// The whole catalogue, in the order of the page.
        pub static CATALOGUE: &[&Kind] = &[$(&$name),*];
    };
}

catalogue! {
    BAD_PATH = 400 "bad_path", "The path can't be decoded",
        "Percent-encode each path segment once, as UTF-8.";
    BAD_QUERY = 400 "bad_query", "A query parameter is wrong",
        "The detail names the parameter and what it takes.";
    BAD_HEADER = 400 "bad_header", "A header is wrong",
        "The detail names the header and what it takes.";
    BAD_BODY = 400 "bad_body", "The body could not be read",
        "The connection ended, or the body's framing is wrong. Send the request again.";
    NOT_JSON = 400 "not_json", "The body is not JSON",
        "Send one JSON document; the detail says where it stops being one.";
    INVALID_KEY = 400 "invalid_key", "The key can't name a stream",
        "A key is 1 to 256 bytes of UTF-8 without control characters. A slash in it is written `%2F`.";
    UNKNOWN_COLUMN = 400 "unknown_column", "The model has no such column",
        "The detail lists the model's columns.";
    BAD_VALUE = 400 "bad_value", "A value does not fit its column",
        "The detail names the column, its type and how such a value is written.";
    BAD_CURSOR = 400 "bad_cursor", "The cursor is not of this query",
        "Pass `next` of the last page unchanged, with the same model, filters and order; or start without a cursor.";
    BAD_BUNDLE = 400 "bad_bundle", "The bundle can't be read",
        "Send an uncompressed tar of `ebb.toml` and the files it names, as `ebb deploy` does.";
    UNAUTHENTICATED = 401 "unauthenticated", "A token is needed",
        "Send `Authorization: Bearer TOKEN`.";
    TOKEN_INVALID = 401 "token_invalid", "The token is not accepted",
        "Get a new token; the detail says what is wrong with this one where that gives nothing away.";
    TOKEN_NOT_YET_VALID = 401 "token_not_yet_valid", "The token is not valid yet",
        "Wait, and compare the clocks of issuer and node.";
    TOKEN_EXPIRED = 401 "token_expired", "The token has expired",
        "Get a new token.";
    FORBIDDEN = 403 "forbidden", "The actor may not do this",
        "The `allow` list in the manifest says who may.";
    ORIGIN_NOT_ALLOWED = 403 "origin_not_allowed", "This web origin may not call here",
        "Name the origin under `app.cors` in the manifest, or call from the server's own origin.";
    HOST_NOT_ALLOWED = 403 "host_not_allowed", "This host name is not the node's",
        "Call the control address by IP or as `localhost`, or name the host under `control.hosts`.";
    NOT_FOUND = 404 "not_found", "There is nothing at this path",
        "`/openapi.json` lists what the app offers.";
    APP_REQUIRED = 404 "app_required", "The request does not say which app it is for",
        "Put `/apps/{app}` in front of the path, or use one of the app's host names.";
    UNKNOWN_APP = 404 "unknown_app", "No such app is deployed",
        "`ebb status` lists the deployed apps.";
    UNKNOWN_AGGREGATE = 404 "unknown_aggregate", "The app has no such aggregate",
        "Write one of the aggregates that the detail names.";
    UNKNOWN_COMMAND = 404 "unknown_command", "The aggregate has no such command",
        "Write one of the commands that the detail names.";
    UNKNOWN_MODEL = 404 "unknown_model", "The app has no such model",
        "Write one of the models that the detail names.";
    NO_SUCH_ROW = 404 "no_such_row", "The model has no row with this key",
        "If a command has just made it, ask with `Ebb-After: POSITION`, the `Ebb-Position` of the command's answer.";
    NO_SUCH_COMMAND = 404 "no_such_command", "The log has no command with this id",
        "It left no commit: it was never decided, or it was refused without an idempotency key.";
    NO_SUCH_REVISION = 404 "no_such_revision", "The stream does not reach this revision",
        "`last_revision` is its last, if it has any events.";
    UNKNOWN_PROJECTION = 404 "unknown_projection", "The app has no such projection",
        "`ebb status` lists the projections.";
    NOT_PARKED = 404 "not_parked", "This key is not parked",
        "It was retried or skipped already; list what is parked.";
    DEPLOYMENT_NOT_FOUND = 404 "deployment_not_found", "There is no such deployment",
        "`GET /apps/{app}/deployments` lists an app's deployments.";
    METHOD_NOT_ALLOWED = 405 "method_not_allowed", "This path does not take this method",
        "The `Allow` header lists the methods it takes.";
    REQUEST_TIMEOUT = 408 "request_timeout", "The body did not arrive in time",
        "Send the request again.";
    REVISION_CONFLICT = 409 "revision_conflict", "The stream is not at the revision that the request expects",
        "Read the stream, decide again, and send `If-Match` with `actual_revision`.";
    KEY_IN_FLIGHT = 409 "key_in_flight", "A request with this idempotency key is being decided",
        "Send the same request again in a moment.";
    POSITION_UNKNOWN = 409 "position_unknown", "The log has never reached this position",
        "`Ebb-After` takes the `Ebb-Position` of an answer from this app.";
    DEPLOYMENT_CONFLICT = 409 "deployment_conflict", "The app is at another deployment than the request expects",
        "Look at `GET /apps/{app}`, and send `If-Match` with its number.";
    STATE_NOT_SHOWN = 409 "state_not_shown", "The module does not show its state",
        "A state is shown as the module's snapshot. Let it make snapshots: in the Rust SDK, `SNAPSHOTS` is true unless it says otherwise.";
    TOO_MANY_EVENTS = 409 "too_many_events", "More events lead there than are folded for one answer",
        "Look at an earlier revision.";
    HOST_TAKEN = 409 "host_taken", "A host name belongs to another app",
        "Take it from that app's `hosts` first, or use another name.";
    REBUILD_IN_PROGRESS = 409 "rebuild_in_progress", "The projection is being rebuilt already",
        "Wait until `GET /projections` shows that it has caught up.";
    NOT_REBUILT = 409 "not_rebuilt", "An event function is not rebuilt",
        "What it did can't be undone and done anew. `ebb seek` gives it events again.";
    NOT_A_FUNCTION = 409 "not_a_function", "A projection does not go on elsewhere",
        "Its rows are made of all events, from the first on; `ebb rebuild` makes them anew.";
    RECORDS_GONE = 409 "records_gone", "A topic does not hold the records that rows are made of",
        "Rows that come straight from a topic are made anew only while it holds what they began with. Leave the projection as it is, or declare one of another name, which begins with what the topic has.";
    KEYS_PARKED = 409 "keys_parked", "Keys are parked",
        "Retry or skip them first: `ebb parked`.";
    BODY_TOO_LARGE = 413 "body_too_large", "The body is larger than the limit",
        "Send less, or raise `limits.body` in `ebbtide.toml`; for a function, `max-body` of its trigger.";
    UNSUPPORTED_MEDIA_TYPE = 415 "unsupported_media_type", "This path does not take this media type",
        "Commands take `Content-Type: application/json`, bundles `application/x-tar`.";
    REFUSED = 422 "refused", "The command was refused",
        "A domain \"no\". `code` is the module's own, not one of this list; `details` has what it adds. \
         The same command may be accepted once the state has changed.";
    SCHEMA_VIOLATION = 422 "schema_violation", "The body does not fit the command's schema",
        "`violations` lists where and why.";
    KEY_REUSED = 422 "key_reused", "The idempotency key was used for another request",
        "Use a new key for a new request; repeat a request with the same method, path and body.";
    MANIFEST_INVALID = 422 "manifest_invalid", "The manifest, or a file it names, is wrong",
        "`problems` lists everything that is wrong, with lines.";
    MANIFEST_MISSING = 422 "manifest_missing", "The bundle has no readable manifest",
        "Put `ebb.toml`, as UTF-8, at the top of the bundle.";
    APP_NAME_MISMATCH = 422 "app_name_mismatch", "The manifest is of another app than the request",
        "Send it to `/apps/{app}` with the manifest's `app.name`.";
    THROTTLED = 429 "throttled", "Too many commands wait for this stream",
        "Try again after `Retry-After` seconds, and send fewer at once to one stream.";
    LOG_DAMAGED = 500 "log_damaged", "The app's log is damaged at this place",
        "Everything else is served. The operator finds file and offset in the node's log under `request_id`, and what to do.";
    MODULE_TRAPPED = 500 "module_trapped", "The module trapped",
        "A fault in the module. The node's log has the trap under `request_id`.";
    MODULE_OUT_OF_MEMORY = 500 "module_out_of_memory", "The module needed more memory than its limit",
        "Raise `limits.memory` in the manifest, or make the aggregate or the work smaller.";
    MODULE_OUTPUT_TOO_LARGE = 500 "module_output_too_large", "The module returned more than it may",
        "A commit holds 1,000 events and 4 MiB, an event 512 KiB; a function's response `max-response` of its trigger.";
    MODULE_BAD_ANSWER = 500 "module_bad_answer", "What the program wrote to stdout can't be used",
        "A fault in the module. The node's log has the answer's beginning under `request_id`.";
    UNDECLARED_EVENT = 500 "undeclared_event", "The module decided an event that the manifest does not declare",
        "Declare the type under `events` of the aggregate, and deploy again.";
    INVALID_EVENT = 500 "invalid_event", "The module decided an event whose data is not what the manifest declares",
        "A fault in the module or in the event's schema.";
    INTERNAL = 500 "internal", "Something failed inside",
        "The node's log has the cause under `request_id`.";
    KEYS_UNAVAILABLE = 503 "keys_unavailable", "The token can't be checked now",
        "The issuer's keys could not be fetched. Try again later.";
    OVERLOADED = 503 "overloaded", "The node has too much to do",
        "Try again after `Retry-After` seconds.";
    UNAVAILABLE = 503 "unavailable", "The app takes no commands now",
        "Nothing was done. The operator finds the cause, a full disk say, in the node's log.";
    STORAGE_UNAVAILABLE = 503 "storage_unavailable", "The deployment could not be stored",
        "The old one serves as before. The operator finds the cause in the node's log.";
    DEPLOYMENT_NOT_SERVED = 503 "deployment_not_served", "The deployment is recorded, and could not be served",
        "What served before serves on; the next start of the node tries again. The operator finds the cause in the node's log. Deploy again, or roll back.";
    PURGE_INCOMPLETE = 503 "purge_incomplete", "The app is removed, but not all of its data",
        "Ask again; the next start of the node tries again too. The operator finds the cause in the node's log.";
    APP_UNAVAILABLE = 503 "app_unavailable", "The app is deployed, and can't be opened",
        "The operator finds the cause in `ebb status` and the node's log: a damaged log says what to do.";
    OUTCOME_UNKNOWN = 503 "outcome_unknown", "The command may or may not have been recorded",
        "Send it again with the same idempotency key, or look at `/command-log/{command_id}`.";
    SHUTTING_DOWN = 503 "shutting_down", "The node is shutting down",
        "Nothing was done. Try again after `Retry-After` seconds.";
    PROJECTION_BEHIND = 503 "projection_behind", "The read model has not reached the position asked for",
        "Try again after `Retry-After` seconds, or allow more time with `Ebb-Wait`.";
    PROJECTION_PARKED = 503 "projection_parked", "Events at or below the position are parked",
        "Retry or skip what is parked, or read without it: `Ebb-Allow-Parked: true`.";
    PROJECTION_UNAVAILABLE = 503 "projection_unavailable", "The read model can't be read now",
        "It is being built, or has halted; `GET /projections` of the control address says which.";
    MODULE_OUT_OF_CPU = 504 "module_out_of_cpu", "The module computed for longer than its limit",
        "Raise `limits.cpu` in the manifest, or find the loop.";
    OUT_OF_TIME = 504 "out_of_time", "The call took too long",
        "Of a command nothing was done. Try again; under load the wait for the stream, or for an instance, counts too.";
}

/// An error on its way to the caller.
#[derive(Debug)]
pub struct Problem(Box<Inner>);

#[derive(Debug)]
struct Inner {
    kind: &'static Kind,
    code: Option<Text>,
    detail: String,
    hint: Option<Cow<'static, str>>,
    members: Map<String, Value>,
    retry_after: Option<Duration>,
    allow: Option<Cow<'static, str>>,
    headers: Vec<(HeaderName, HeaderValue)>,
    cause: Option<String>,
}

impl Kind {
    /// An error of this kind. The detail says what happened, with the offending value.
    pub fn detail(&'static self, detail: impl Into<String>) -> Problem {
        Problem(Box::new(Inner {
            kind: self,
            code: None,
            detail: detail.into(),
            hint: None,
            members: Map::new(),
            retry_after: None,
            allow: None,
            headers: Vec::new(),
            cause: None,
        }))
    }

    /// The URI that is its `type`.
    #[must_use]
    pub fn uri(&self) -> String {
        format!("urn:ebbtide:error:{}", self.code)
    }

    /// The status as a type.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.status).expect("the catalogue has valid statuses")
    }
}

impl Problem {
    /// What to do, where that is more than the kind's remedy.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<Cow<'static, str>>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// A further member of the document.
    #[must_use]
    pub fn with(mut self, member: &str, value: impl Into<Value>) -> Self {
        self.0.members.insert(member.into(), value.into());
        self
    }

    /// Another code than the kind's: a refusal has the module's.
    #[must_use]
    pub fn code(mut self, code: Text) -> Self {
        self.0.code = Some(code);
        self
    }

    /// When to try again: `Retry-After`, in whole seconds, at least one.
    #[must_use]
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.0.retry_after = Some(delay);
        self
    }

    /// The methods that the path takes.
    #[must_use]
    pub fn allow(mut self, methods: impl Into<Cow<'static, str>>) -> Self {
        self.0.allow = Some(methods.into());
        self
    }

    /// A header of the answer.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.0.headers.push((name, value));
        self
    }

    /// What happened inside: for the log, never for the caller.
    #[must_use]
    pub fn cause(mut self, cause: impl fmt::Display) -> Self {
        self.0.cause = Some(cause.to_string());
        self
    }

    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> &'static Kind {
        self.0.kind
    }

    /// The status of the answer.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.0.kind.status()
    }

    /// The code that the caller sees.
    #[must_use]
    pub fn shown_code(&self) -> &str {
        self.0.code.as_deref().unwrap_or(self.0.kind.code)
    }

    /// The answer. An error with a cause is logged here, under the request id that the caller is told.
    #[must_use]
    pub fn into_reply(mut self) -> Reply {
        let document = self.document();
        let Inner { kind, retry_after, allow, headers, .. } = *self.0;
        let mut body = serde_json::to_vec(&document).expect("JSON values can be written");
        body.push(b'\n');
        let mut reply = full(kind.status(), body);
        let map = reply.headers_mut();
        map.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        map.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(delay) = retry_after {
            map.insert(RETRY_AFTER, HeaderValue::from(whole_seconds(delay)));
        }
        if let Some(methods) = allow {
            map.insert(ALLOW, methods.parse().expect("methods are tokens"));
        }
        map.extend(headers);
        reply
    }

    /// What the caller is told, for an answer that is under way already; logs as [`Problem::into_reply`] does.
    pub(crate) fn document(&mut self) -> Map<String, Value> {
        let Inner { kind, code, detail, hint, members, cause, .. } = &mut *self.0;
        let (status, members) = (kind.status(), std::mem::take(members));
        let mut document = Map::new();
        document.insert("type".into(), kind.uri().into());
        document.insert("title".into(), kind.title.into());
        document.insert("status".into(), kind.status.into());
        document.insert("detail".into(), detail.as_str().into());
        document.insert("code".into(), code.as_deref().unwrap_or(kind.code).into());
        if let Some(hint) = hint.take() {
            document.insert("hint".into(), hint.into());
        } else if code.is_none() {
            document.insert("hint".into(), kind.remedy.into());
        }
        if status.is_server_error() {
            let request_id = request_id();
            let cause = cause.as_deref().unwrap_or("");
            let command_id = members.get("command_id").and_then(Value::as_str).unwrap_or("");
            if kind.status == 500 {
                tracing::error!(request_id, command_id, code = kind.code, cause, "{detail}");
            } else {
                tracing::warn!(request_id, command_id, code = kind.code, cause, "{detail}");
            }
            document.insert("request_id".into(), request_id.into());
        }
        document.extend(members);
        document
    }
}

impl From<AuthError> for Problem {
    fn from(error: AuthError) -> Self {
        let kind = match error.code() {
            "unauthenticated" => &UNAUTHENTICATED,
            "forbidden" => &FORBIDDEN,
            "keys_unavailable" => &KEYS_UNAVAILABLE,
            "token_expired" => &TOKEN_EXPIRED,
            "token_not_yet_valid" => &TOKEN_NOT_YET_VALID,
            _ => &TOKEN_INVALID,
        };
        let mut problem = kind.detail(error.to_string());
        if let Some(hint) = error.hint() {
            problem = problem.hint(hint);
        }
        if let Some(challenge) = error.www_authenticate() {
            problem = problem.header(WWW_AUTHENTICATE, challenge);
        }
        if kind.status == 503 { problem.retry_after(Duration::from_secs(5)) } else { problem }
    }
}

fn whole_seconds(delay: Duration) -> u64 {
    (delay.as_secs() + u64::from(delay.subsec_nanos() > 0)).max(1)
}

/// Unique in this node's log: where this run of it started, and a counter.
fn request_id() -> String {
    static RUN: OnceLock<u32> = OnceLock::new();
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let run = RUN.get_or_init(|| uuid::Uuid::new_v4().as_u128() as u32);
    format!("{run:08x}-{:x}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The catalogue as the page has it.
#[must_use]
pub fn catalogue_page() -> String {
    use fmt::Write as _;
    let mut page = String::new();
    let mut status = 0;
    for kind in CATALOGUE {
        if kind.status != status {
            status = kind.status;
            let reason = kind.status().canonical_reason().unwrap_or_default();
            let _ = write!(
                page,
                "\n### {status} {reason}\n\n| code | what happened | what to do |\n|---|---|---|\n"
            );
        }
        let _ = writeln!(page, "| `{}` | {} | {} |", kind.code, kind.title, kind.remedy);
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt as _;
    use std::collections::BTreeSet;

    const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/errors.md");
    const MARKER: &str = "<!-- From here on printed from the code: EBB_UPDATE_DOCS=1 cargo test -p ebb-server errors_page -->\n";

    #[test]
    fn errors_page_lists_the_whole_catalogue() {
        let page = std::fs::read_to_string(PAGE).unwrap();
        let (head, listed) = page.split_once(MARKER).expect("the page has the marker line");
        let printed = catalogue_page();
        if std::env::var_os("EBB_UPDATE_DOCS").is_some() {
            std::fs::write(PAGE, format!("{head}{MARKER}{printed}")).unwrap();
            return;
        }
        assert!(
            listed == printed,
            "docs/errors.md differs from the code; run: EBB_UPDATE_DOCS=1 cargo test -p ebb-server errors_page"
        );
    }

    #[test]
    fn codes_are_unique_and_in_the_order_of_their_status() {
        let codes: BTreeSet<_> = CATALOGUE.iter().map(|kind| kind.code).collect();
        assert_eq!(codes.len(), CATALOGUE.len());
        assert!(CATALOGUE.is_sorted_by_key(|kind| kind.status));
    }

    #[tokio::test]
    async fn a_cause_goes_to_the_log_and_never_to_the_caller() {
        let reply = INTERNAL.detail("the log could not be read").cause("/var/lib/ebb: EIO").into_reply();
        assert_eq!(reply.headers()[CONTENT_TYPE], "application/problem+json");
        let body = reply.into_body().collect().await.unwrap().to_bytes();
        let document: Value = serde_json::from_slice(&body).unwrap();
        assert!(!String::from_utf8_lossy(&body).contains("EIO"));
        assert_eq!(document["code"], "internal");
        assert_eq!(document["type"], "urn:ebbtide:error:internal");
        assert!(document["request_id"].is_string());
    }

    #[tokio::test]
    async fn a_refusal_has_the_modules_code_and_not_ours() {
        let reply = REFUSED
            .detail("short by 30")
            .code(Text::from("insufficient_funds"))
            .with("details", 30)
            .into_reply();
        let body = reply.into_body().collect().await.unwrap().to_bytes();
        let document: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(
            (&document["code"], &document["type"]),
            (&"insufficient_funds".into(), &"urn:ebbtide:error:refused".into())
        );
        assert_eq!(document.get("hint"), None);
    }

    #[test]
    fn retry_after_is_never_rounded_down() {
        assert_eq!(whole_seconds(Duration::from_millis(1)), 1);
        assert_eq!(whole_seconds(Duration::from_millis(2001)), 3);
        assert_eq!(whole_seconds(Duration::from_secs(2)), 2);
    }
}
