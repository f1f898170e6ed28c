//! Programs as HTTP functions.

use super::{Bench, answers, bench, complains, lifted, program, said, spec};
use bytes::Bytes;
use ebb_domain::event::Position;
use ebb_domain::manifest::Capabilities;
use ebb_domain::manifest::function::Variable;
use ebb_domain::model::AskedQuery;
use ebb_domain::port::Future;
use ebb_domain::port::guest::{
    CallError, CompileError, Engine, Grants, HttpBody, HttpCall, HttpFunction, ModuleKind,
};
use ebb_domain::port::own_app::{Accepted, Found, FoundPage, NotDone, NotDoneKind, OwnApp, OwnCommand};
use http::{Request, StatusCode};
use http_body_util::BodyExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// An app of which nothing can be asked, as no program does.
struct NoApp;

fn nothing<T: Send + 'static>() -> Future<'static, Result<T, NotDone>> {
    Box::pin(async { Err(NotDone::new(NotDoneKind::Denied, "not_granted", "a program has no app")) })
}

impl OwnApp for NoApp {
    fn send(&self, _: OwnCommand) -> Future<'_, Result<Accepted, NotDone>> {
        nothing()
    }
    fn get<'a>(&'a self, _: &'a str, _: &'a str, _: Option<Position>) -> Future<'a, Result<Found, NotDone>> {
        nothing()
    }
    fn query<'a>(
        &'a self,
        _: &'a str,
        _: AskedQuery,
        _: Option<Position>,
    ) -> Future<'a, Result<FoundPage, NotDone>> {
        nothing()
    }
}

const NO_GRANTS: ModuleKind =
    ModuleKind::Http(Grants { outbound_http: false, commands: false, models: false, tmp: false });

impl Bench {
    pub(super) async fn http(&self, wasm: Bytes) -> Arc<dyn HttpFunction> {
        let module = self.engine.compile(wasm, NO_GRANTS).await.unwrap();
        let mut capabilities = Capabilities::default();
        capabilities.env.insert(Variable::new("GREETING").unwrap(), "hi".into());
        capabilities.env.insert(Variable::new("NAME").unwrap(), "Ann".into());
        let mut spec = spec(module);
        spec.capabilities = Arc::new(capabilities);
        self.engine.http(spec, 100).unwrap()
    }
}

pub(super) async fn call(
    function: &Arc<dyn HttpFunction>,
    body: Vec<u8>,
) -> Result<(StatusCode, Bytes), CallError> {
    let body = HttpBody::Whole(body.into());
    let request = Request::post("http://a.example/notes/7?x=1").header("ebb-param-id", "7").body(body);
    let call = HttpCall { request: Box::new(request.unwrap()), app: Arc::new(NoApp) };
    let response = function.call(call).await?;
    let status = response.status();
    Ok((status, response.into_body().collect().await.unwrap().to_bytes()))
}

#[tokio::test]
async fn a_program_is_given_the_request_and_its_answer_is_the_response() {
    let bench = bench();
    for form in [|core: Bytes| core, |core: Bytes| lifted(&core)] {
        let function = bench.http(form(answers(r#"{"status": 201, "body": "made"}"#))).await;
        for _ in 0..2 {
            assert_eq!(call(&function, Vec::new()).await, Ok((StatusCode::CREATED, "made".into())));
        }
        let function = bench.http(form(complains())).await;
        let given = said(call(&function, b"{\"a\":1}".into()).await);
        assert_eq!(
            given,
            r#"{"kind":"request","method":"POST","path":"/notes/7","query":"x=1","headers":{"host":"a.example"},"parameters":{"id":"7"},"body":"{\"a\":1}"}"#
        );
    }
}

#[tokio::test]
async fn what_goes_wrong_with_a_program_is_its_callers_to_know() {
    let bench = bench();
    let function = bench.http(answers("hello")).await;
    let unusable = call(&function, Vec::new()).await;
    assert!(
        matches!(&unusable, Err(CallError::BadAnswer(problem)) if problem.contains("begins `hello`")),
        "{unusable:?}"
    );
    let function = bench.http(answers(&format!(r#"{{"body": "{}"}}"#, "x".repeat(101)))).await;
    let large = call(&function, Vec::new()).await;
    assert!(matches!(&large, Err(CallError::OutputTooLarge(_))), "{large:?}");
    let function = bench.http(program("", "unreachable")).await;
    let trapped = call(&function, Vec::new()).await;
    assert!(matches!(&trapped, Err(CallError::Trapped(_))), "{trapped:?}");
    let function = bench.http(program("", "(loop $on (br $on))")).await;
    assert!(matches!(call(&function, Vec::new()).await, Err(CallError::OutOfCpu { .. })));
}

#[tokio::test]
async fn a_body_that_a_program_could_not_hold_is_not_given_to_it() {
    let bench = bench();
    let function = bench.http(answers("{}")).await;
    let limit = spec(ebb_domain::digest::Digest::of(b"")).limits.memory_bytes;
    // Its code stays.
    call(&function, Vec::new()).await.unwrap();
    let held = bench.engine.memory_bytes();
    let body = vec![b'x'; limit as usize + 1];
    assert_eq!(call(&function, body).await, Err(CallError::OutOfMemory { limit_bytes: limit }));
    assert_eq!(bench.engine.memory_bytes(), held, "what was buffered is given back");
}

#[tokio::test]
async fn what_no_program_can_use_is_not_granted_to_one() {
    let bench = bench();
    for (grants, named) in [
        (Grants { outbound_http: true, ..Grants::default() }, "outbound-http"),
        (Grants { commands: true, ..Grants::default() }, "commands"),
        (Grants { models: true, ..Grants::default() }, "models"),
    ] {
        for wasm in [answers("{}"), lifted(&answers("{}"))] {
            let refused = bench.engine.compile(wasm, ModuleKind::Http(grants)).await;
            assert_eq!(refused, Err(CompileError::NotForPrograms { capability: named }));
        }
    }
    // Files are an interface of components.
    let files = ModuleKind::Http(Grants { tmp: true, ..Grants::default() });
    let refused = bench.engine.compile(answers("{}"), files).await;
    assert_eq!(refused, Err(CompileError::NotForPrograms { capability: "tmp" }));
    bench.engine.compile(lifted(&answers("{}")), files).await.unwrap();
}

/// Sleeps for 50 ms, as long as the clock says by itself as well, and answers.
const SLEEPS: &str = r#"
    (drop (call $clock_time_get (i32.const 1) (i64.const 1) (i32.const 64)))
    (i32.store8 (i32.const 108) (i32.const 0))
    (i32.store (i32.const 116) (i32.const 1))
    (i64.store (i32.const 124) (i64.const 50000000))
    (drop (call $poll_oneoff (i32.const 100) (i32.const 200) (i32.const 1) (i32.const 300)))
    (drop (call $clock_time_get (i32.const 1) (i64.const 1) (i32.const 72)))
    (if (i64.lt_u (i64.sub (i64.load (i32.const 72)) (i64.load (i32.const 64))) (i64.const 50000000))
        (then unreachable))
    (if (i32.ne (i32.load (i32.const 300)) (i32.const 1)) (then unreachable))
    (call $write (i32.const 1) (i32.const 1024) (global.get $length))"#;

#[tokio::test]
async fn time_passes_for_a_program_that_answers_requests() {
    let bench = bench();
    for form in [|core: Bytes| core, |core: Bytes| lifted(&core)] {
        let function = bench.http(form(program("{}", SLEEPS))).await;
        let began = Instant::now();
        assert_eq!(call(&function, Vec::new()).await, Ok((StatusCode::OK, Bytes::new())));
        assert!(began.elapsed() >= Duration::from_millis(50));
    }
}

#[tokio::test]
async fn a_programs_environment_is_what_it_was_granted() {
    // What it has, on stderr: the names and values lie one behind the other, each with a zero behind it.
    let shows = r#"
        (drop (call $environ_sizes_get (i32.const 400) (i32.const 404)))
        (drop (call $environ_get (i32.const 500) (i32.const 600)))
        (if (i32.ne (i32.load (i32.const 400)) (i32.const 2)) (then unreachable))
        (if (i32.ne (i32.load (i32.const 504)) (i32.const 612)) (then unreachable))
        (call $write (i32.const 2) (i32.const 600) (i32.load (i32.const 404)))
        (call $exit (i32.const 1))"#;
    let bench = bench();
    let function = bench.http(program("", shows)).await;
    assert_eq!(said(call(&function, Vec::new()).await), "GREETING=hi\0NAME=Ann\0");
}
