//! The bank in every language: the same commands, the same answers, the same rows, told by the cases of the one in
//! Rust. Go and C are programs, Python is a component of the worlds that Rust's are. And the same requests to HTTP
//! functions.

use crate::raw;
use ebb_tests::{App, Node, bank, examples, language};
use http::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use std::fs;

/// Large modules are compiled while the machine does everything else that tests do.
async fn patient_node(app: &App) -> Node {
    let node = Node::builder().settings("[functions]\ncompile = '20min'\n").start().await;
    node.deploy(app).await;
    node
}

/// One rule, on an account of its own.
#[derive(Deserialize)]
struct Case {
    rule: String,
    given: Vec<(String, Value)>,
    when: (String, Value),
    then: Then,
    row: Value,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Then {
    Happened {
        events: Vec<Value>,
    },
    Refused {
        refused: String,
        message: String,
        #[serde(default)]
        details: Value,
    },
}

fn cases() -> Vec<Case> {
    let path = ebb_tests::repository().join("guest-examples/bank/cases.json");
    serde_json::from_str(&fs::read_to_string(path).expect("a file")).expect("cases")
}

/// More events than the host keeps for a program without folding them, and than go without a snapshot.
const MANY: u64 = 130;

async fn does_what_the_bank_does(app: App) {
    let node = patient_node(&app).await;
    let bank = node.app(app.name());
    let mut position = 0;
    let cases = cases();
    for (case, id) in cases.iter().zip(0..) {
        let send = async |(command, data): &(String, Value)| {
            bank.command("account", &format!("case-{id}"), command, data).await
        };
        for command in &case.given {
            position = send(command).await.position();
        }
        let reply = send(&case.when).await;
        match &case.then {
            Then::Happened { events } => {
                let body = reply.ok();
                let decided = body["events"].as_array().expect("events").iter();
                let decided: Vec<_> =
                    decided.map(|event| json!({ "type": event["type"], "data": event["data"] })).collect();
                assert_eq!(&decided, events, "{}", case.rule);
                position = reply.position();
            }
            Then::Refused { refused, message, details } => {
                let problem = reply.refused(refused);
                assert_eq!(
                    (&problem["detail"], &problem["details"]),
                    (&json!(message), details),
                    "{}",
                    case.rule
                );
            }
        }
    }
    for (case, id) in cases.iter().zip(0..) {
        let reply = bank.get(&format!("/models/balances/case-{id}"));
        let reply = reply.header("ebb-after", position).header("ebb-wait", "30s").await;
        match &case.row {
            Value::Null => drop(reply.problem(404, "no_such_row")),
            row => {
                let found = reply.ok();
                assert_eq!(
                    (&found["owner"], &found["balance"]),
                    (&row["owner"], &row["balance"]),
                    "{}",
                    case.rule
                );
            }
        }
    }
    an_account_that_is_used_often_is_folded_and_restored(node, &app).await;
}

async fn an_account_that_is_used_often_is_folded_and_restored(mut node: Node, app: &App) {
    let bank = node.app(app.name());
    bank.command("account", "often", "open", &json!({ "owner": "Ann" })).await.ok();
    for amount in 1..=MANY {
        bank.command("account", "often", "deposit", &json!({ "amount": amount })).await.ok();
    }
    let balance = MANY * (MANY + 1) / 2;
    for restart in [false, true] {
        if restart {
            node.kill().await;
            node.start().await;
        }
        let too_much = json!({ "amount": balance + 1 });
        let problem = node.app(app.name()).command("account", "often", "withdraw", &too_much).await;
        assert_eq!(problem.refused("insufficient_funds")["details"]["balance"], json!(balance));
    }
}

#[tokio::test]
async fn the_programs_of_the_guide_count_and_greet() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    ebb_tests::counters(folder.path());
    let languages = ["c", "go", "javascript", "python", "rust"];
    let functions = languages.map(|language| {
        format!(
            r#"[aggregate.{language}]
module = "{language}.wasm"
commands = {{ count = {{}} }}
events = {{ Counted = {{}} }}

[function.{language}]
module = "{language}.wasm"
trigger = {{ http = {{ route = "/{language}/{{name}}" }} }}
capabilities = {{ env = {{ GREETING = "Hello" }} }}
"#
        )
    });
    let mut app = App::new(&format!("[app]\nname = \"counters\"\n{}", functions.concat()));
    for language in languages {
        let module = format!("{language}.wasm");
        let contents = fs::read(folder.path().join(&module)).expect("a module");
        app = app.file(&module, contents);
    }
    let node = patient_node(&app).await;
    let counters = node.app("counters");
    for language in languages {
        let count = async |by: u64| counters.command(language, "a", "count", &json!({ "by": by })).await;
        // As many as are folded, and a few.
        for _ in 0..70 {
            assert_eq!(count(1).await.ok()["events"][0]["data"], json!({ "by": 1 }), "{language}");
        }
        count(31).await.refused("full");
        count(30).await.ok();
        let greeted = counters.get(&format!("/{language}/J%C3%BCrgen%20%22Q%22")).await;
        assert_eq!(
            (greeted.status, &*greeted.body),
            (200, "Hello, Jürgen \"Q\"!\n".as_bytes()),
            "{language}"
        );
        assert_eq!(greeted.header("content-type"), Some("text/plain; charset=utf-8"), "{language}");
    }
}

/// Greets by the route and by a body, counts down in a stream, and says what is wrong.
async fn greets(app: App) {
    let node = patient_node(&app).await;
    let hello = node.app(app.name());
    // More often than an instance is used once.
    for name in ["world", "J%C3%BCrgen", "a%2Fb%20%25"] {
        let greeted = hello.get(&format!("/hello/{name}")).await;
        let expected = match name {
            "J%C3%BCrgen" => "Hello, Jürgen!\n",
            "a%2Fb%20%25" => "Hello, a/b %!\n",
            _ => "Hello, world!\n",
        };
        assert_eq!((greeted.status, &*greeted.body), (200, expected.as_bytes()));
        assert_eq!(greeted.header("content-type"), Some("text/plain; charset=utf-8"));
    }
    let greet =
        async |body: Vec<u8>| hello.request(Method::POST, "/greetings").body("application/json", body).await;
    let both = greet(br#"{"names": ["Ann", "J\u00fcrgen"]}"#.into()).await;
    assert_eq!(both.header("content-type"), Some("application/json"));
    assert_eq!(both.ok(), json!({ "greetings": ["Hello, Ann!", "Hello, Jürgen!"] }));
    // A body of several pieces, on both ways.
    let many: Vec<String> = (0..20_000).map(|guest| format!("guest {guest}")).collect();
    let all = greet(serde_json::to_vec(&json!({ "names": many })).expect("JSON")).await.ok();
    assert_eq!(all["greetings"].as_array().map(Vec::len), Some(20_000));
    assert_eq!(all["greetings"][19_999], "Hello, guest 19999!");
    for nonsense in ["Ann and Bob", "{\"names\": 7}", ""] {
        let refused = greet(nonsense.into()).await;
        assert_eq!((refused.status, refused.header("content-type")), (400, Some("application/problem+json")));
    }
    assert_eq!(hello.get("/countdown/soon").await.status, 400);
    let mut call = raw::Call::open(&node).await;
    call.send(&format!("GET /apps/{}/countdown/3 HTTP/1.1\r\nhost: a\r\n\r\n", app.name())).await;
    for number in [3, 2, 1, 0] {
        call.until(&format!("data: {number}\n\n")).await;
        assert!(number == 0 || !call.seen().contains("data: 0\n"), "each is sent when it is its time");
    }
    call.until("\r\n0\r\n\r\n").await;
}

#[tokio::test]
async fn hello_in_rust_greets_over_0_2() {
    let all = App::in_folder(&examples("hello-http"));
    greets(all.edit("release/hello3.wasm", "release/hello.wasm")).await;
}

#[tokio::test]
async fn hello_in_rust_greets_over_0_3() {
    let all = App::in_folder(&examples("hello-http"));
    let newer = |app: App| app.edit("release/hello.wasm", "release/hello3.wasm");
    greets(newer(newer(all))).await;
}

#[tokio::test]
async fn hello_in_javascript_greets_the_same() {
    greets(language("javascript", "hello-js")).await;
}

#[tokio::test]
async fn hello_in_python_greets_the_same() {
    greets(language("python", "hello-python")).await;
}

#[tokio::test]
async fn the_bank_in_rust_does_what_its_cases_say() {
    does_what_the_bank_does(bank()).await;
}

#[tokio::test]
async fn the_bank_in_go_does_the_same() {
    does_what_the_bank_does(language("go", "bank-go")).await;
}

#[tokio::test]
async fn the_bank_in_c_does_the_same() {
    does_what_the_bank_does(language("c", "bank-c")).await;
}

#[tokio::test]
async fn the_bank_in_python_does_the_same() {
    does_what_the_bank_does(language("python", "bank-python")).await;
}
