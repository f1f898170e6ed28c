//! The bank in every language: the same commands, the same answers, the same rows, told by the cases of the one in
//! Rust. Go and C are programs, Python is a component of the worlds that Rust's are.

use ebb_tests::{App, Node, bank, language};
use serde::Deserialize;
use serde_json::{Value, json};
use std::fs;

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
    let node = Node::with(&app).await;
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
async fn the_programs_of_the_guide_count() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    ebb_tests::counters(folder.path());
    let languages = ["c", "go", "javascript", "python", "rust"];
    let aggregates = languages.map(|language| {
        format!(
            "[aggregate.{language}]\nmodule = \"{language}.wasm\"\ncommands = {{ count = {{}} }}\nevents = {{ Counted = {{}} }}\n"
        )
    });
    let mut app = App::new(&format!("[app]\nname = \"counters\"\n{}", aggregates.concat()));
    for language in languages {
        let module = format!("{language}.wasm");
        let contents = fs::read(folder.path().join(&module)).expect("a module");
        app = app.file(&module, contents);
    }
    let node = Node::with(&app).await;
    let counters = node.app("counters");
    for language in languages {
        let count = async |by: u64| counters.command(language, "a", "count", &json!({ "by": by })).await;
        // As many as are folded, and a few.
        for _ in 0..70 {
            assert_eq!(count(1).await.ok()["events"][0]["data"], json!({ "by": 1 }), "{language}");
        }
        count(31).await.refused("full");
        count(30).await.ok();
    }
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
