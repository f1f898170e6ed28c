//! The command line: what it does, what it prints for people and for programs, and how it ends.

use crate::support::{bank_named, open_account};
use ebb_tests::{App, Node, bank, command, copy_folder, eventually, examples, guest, run};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt as _, BufReader};

fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("ebb-test-").tempdir().expect("a temporary folder")
}

fn lines(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line}")))
        .collect()
}

#[tokio::test]
async fn commands_queries_and_events_from_the_command_line() {
    let node = Node::with(&bank()).await;
    let shown = node.ebb(&["command", "account", "a/b", "open", r#"{"owner": "Ada"}"#]).await;
    assert!(shown.ok().contains("account-a/b") && shown.stdout.contains("Opened"), "{}", shown.stdout);
    let reply =
        node.ebb(&["command", "account", "a/b", "deposit", r#"{"amount": 500}"#, "--json"]).await.json();
    assert_eq!((&reply["revision"], &reply["position"]), (&json!(1), &json!(2)));

    let query = node.ebb(&["query", "balances", "--after", "2"]).await;
    let shown = query.ok();
    assert!(shown.contains("account") && shown.contains("Ada") && shown.contains("500"), "{shown}");
    let row = node.ebb(&["query", "balances", "a/b", "--json"]).await.json();
    assert_eq!(row, json!({ "account": "a/b", "owner": "Ada", "balance": 500 }));
    node.ebb(&["query", "balances", "nobody"]).await.ended(1);
    let none = node.ebb(&["query", "balances", "--where", "balance>500", "--json"]).await;
    assert_eq!(none.ok(), "");
    let ordered =
        node.ebb(&["query", "balances", "--where", "owner=Ada", "--order=-balance", "--json"]).await;
    assert_eq!(lines(ordered.ok()).len(), 1);

    let events = lines(node.ebb(&["events", "--json"]).await.ok());
    assert_eq!(events.iter().map(|event| &event["type"]).collect::<Vec<_>>(), ["Opened", "Deposited"]);
    let stream = node.ebb(&["events", "--stream", "account-a/b", "--types", "Opened", "--json"]).await;
    assert_eq!(stream.code, Some(2), "these exclude each other");
    let stream = lines(node.ebb(&["events", "--stream", "account-a/b", "--after", "1", "--json"]).await.ok());
    assert_eq!(stream.len(), 1);
}

#[tokio::test]
async fn exit_codes_tell_a_no_from_a_failure() {
    let node = Node::with(&bank()).await;
    open_account(&node.app("bank"), "a", 1).await;
    let refused = node.ebb(&["command", "account", "a", "withdraw", r#"{"amount": 5}"#]).await;
    refused.ended(1);
    assert!(refused.stderr.contains("4 cents short of 5"), "{}", refused.stderr);
    node.ebb(&["command", "account", "a", "withdraw", r#"{"amount": -5}"#]).await.ended(1);
    node.ebb(&["command", "account", "a", "deposit", r#"{"amount": 5}"#, "--if-match", "7"]).await.ended(1);
    let not_json = node.ebb(&["command", "account", "a", "withdraw", "{amount: 5}"]).await;
    not_json.ended(2);
    assert!(not_json.stderr.contains("hint:"), "{}", not_json.stderr);
    node.ebb(&["no-such-command"]).await.ended(2);
    let nobody = run(node.home(), &["status", "--server", "http://127.0.0.1:1"]).await;
    nobody.ended(2);
    assert!(nobody.stderr.contains("127.0.0.1:1"), "it says who did not answer: {}", nobody.stderr);
    let key = ["command", "account", "a", "deposit", r#"{"amount": 5}"#, "--idempotency-key", "k"];
    node.ebb(&key).await.ended(0);
    assert!(node.ebb(&key).await.ok().contains("remembered"));
}

#[tokio::test]
async fn an_import_is_resumable_and_tells_what_was_refused_and_what_failed() {
    let node = Node::with(&bank()).await;
    let file = node.home().join("lines.ndjson");
    let text = "\
        {\"id\":\"a\",\"command\":\"open\",\"data\":{\"owner\":\"Ada\"}}\n\
        {\"id\":\"a\",\"command\":\"deposit\",\"data\":{\"amount\":10}}\n\
        {\"id\":\"a\",\"command\":\"deposit\",\"data\":{\"amount\":10}}\n\
        {\"id\":\"a\",\"command\":\"withdraw\",\"data\":{\"amount\":50}}\n\
        {\"id\":\"a\",\"command\":\"deposit\",\"data\":{\"amount\":0}}\n\
        not json\n";
    std::fs::write(&file, text).expect("a file");
    let rejects = node.home().join("rejects.ndjson");
    let import =
        ["import", "account", file.to_str().unwrap(), "--json", "--rejects", rejects.to_str().unwrap()];
    for already in [0, 4] {
        let report: Value = serde_json::from_str(node.ebb(&import).await.ended(1)).expect("a report");
        assert_eq!(
            (&report["accepted"], &report["refused"], &report["failed"], &report["already_done"]),
            (&json!(3), &json!(1), &json!(2), &json!(already)),
            "{report}"
        );
        let mut rejected: Vec<u64> = lines(&std::fs::read_to_string(&rejects).expect("rejects"))
            .iter()
            .map(|reject| reject["line"].as_u64().expect("a line"))
            .collect();
        rejected.sort_unstable();
        assert_eq!(rejected, [4, 5, 6]);
    }
    let row = node.app("bank").get("/models/balances/a").header("ebb-after", 3).await.ok();
    assert_eq!(row["balance"], 20, "equal lines are different commands, and each happened once");

    // Under another name it is another import, and stdin is a file too.
    let mut again = command(
        node.home(),
        &["import", "account", "-", "--id", "second", "--json", "--server", node.data.base()],
    );
    let mut child = again.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("ebb can be run");
    let mut stdin = child.stdin.take().expect("a pipe");
    let first_three: String = text.split_inclusive('\n').take(3).collect();
    tokio::io::AsyncWriteExt::write_all(&mut stdin, first_three.as_bytes()).await.expect("stdin");
    drop(stdin);
    let output = child.wait_with_output().await.expect("an end");
    let report: Value = serde_json::from_slice(&output.stdout).expect("a report");
    assert_eq!(
        (output.status.code(), &report["accepted"], &report["refused"]),
        (Some(0), &json!(2), &json!(1))
    );
    let strict = ["import", "account", file.to_str().unwrap(), "--fail-on-refusal", "--max-failures", "1"];
    node.ebb(&strict).await.ended(1);
}

#[tokio::test]
async fn an_export_has_every_event_and_goes_on_where_it_ended() {
    let node = Node::with(&bank()).await;
    let bank = node.app("bank");
    open_account(&bank, "a", 1).await;
    let file = node.home().join("events.ndjson");
    let export = ["export", "--output", file.to_str().unwrap()];
    node.ebb(&export).await.ok();
    open_account(&bank, "b", 1).await;
    // As a crash in the middle of a line leaves it.
    let half = format!("{}{}", std::fs::read_to_string(&file).expect("the file"), "{\"specversion\":");
    std::fs::write(&file, half).expect("the file");
    node.ebb(&["export", "--output", file.to_str().unwrap(), "--resume"]).await.ok();
    assert_eq!(lines(&std::fs::read_to_string(&file).expect("the file")), bank.all_events().await);
    let piped = node.ebb(&["export", "--types", "Opened", "--after", "1"]).await;
    assert_eq!(
        lines(piped.ok()).iter().map(|event| event["position"].as_u64().unwrap()).collect::<Vec<_>>(),
        [3]
    );
}

#[tokio::test]
async fn following_shows_events_as_they_happen() {
    let node = Node::with(&bank()).await;
    let follow = ["events", "--follow", "--json", "--server", node.data.base()];
    let mut child = command(node.home(), &follow).stdout(Stdio::piped()).spawn().expect("ebb can be run");
    let mut shown = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    for number in 0..3_u64 {
        node.app("bank")
            .command("account", &format!("a{number}"), "open", &json!({ "owner": "x" }))
            .await
            .ok();
        let line = tokio::time::timeout(std::time::Duration::from_secs(20), shown.next_line()).await;
        let line = line.expect("an event in time").expect("a pipe").expect("an event");
        let event: Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(event["position"], number + 1);
    }
}

#[tokio::test]
async fn status_shows_apps_projections_and_functions() {
    let node = Node::with(&bank()).await;
    let end = open_account(&node.app("bank"), "a", 1).await;
    crate::support::row_after(&node.app("bank"), "balances", "a", end).await;
    let status = node.ebb_control(&["status", "--json"]).await.json();
    assert_eq!((&status["apps"][0]["app"], &status["apps"][0]["position"]), (&json!("bank"), &json!(2)));
    assert_eq!(
        (&status["projections"][0]["projection"], &status["projections"][0]["mark"]),
        (&json!("balances"), &json!(2))
    );
    let functions = status["functions"].as_array().expect("functions");
    assert!(functions.iter().any(|function| function["function"] == "aggregate.account"), "{status}");
    let shown = node.ebb_control(&["status"]).await;
    for text in ["bank", "balances", "aggregate.account"] {
        assert!(shown.ok().contains(text), "no {text} in {}", shown.stdout);
    }
    let projection = shown.stdout.lines().find(|line| line.starts_with("balances"));
    assert!(projection.is_some_and(|line| line.contains("bank") && line.contains("0")), "{}", shown.stdout);
    let metrics = String::from_utf8(node.control.get("/metrics").await.body.to_vec()).expect("text");
    for sample in [
        "ebbtide_events_appended_total{app=\"bank\"} 2",
        "ebbtide_projection_lag_events{app=\"bank\",projection=\"balances\"} 0",
    ] {
        assert!(metrics.contains(sample), "no `{sample}` in\n{metrics}");
    }
    let logs = node.ebb_control(&["logs", "--no-follow"]).await;
    assert!(!logs.ok().is_empty(), "the node remembers what it said");
}

#[tokio::test]
async fn deploying_checks_first_and_rolling_back_goes_back() {
    let node = Node::start_fresh().await;
    let app = examples("bank");
    let app = app.to_str().unwrap();
    let first = node.ebb_control(&["deploy", app, "--json", "--if-match", "0"]).await.json();
    assert_eq!(first["number"], 1);
    node.ebb_control(&["deploy", app, "--if-match", "0"]).await.ended(1);
    node.ebb_control(&["deploy", app, "--if-match", "1"]).await.ok();
    let listed = node.ebb_control(&["rollback", "bank"]).await;
    assert!(listed.ok().contains("current"), "{}", listed.stdout);
    assert_eq!(node.ebb_control(&["rollback", "bank", "--to", "1", "--json"]).await.json()["number"], 3);
    node.ebb_control(&["deploy", node.home().to_str().unwrap()]).await.ended(2);
}

#[tokio::test]
async fn a_check_finds_every_mistake_at_once_without_a_server() {
    let home = folder();
    let good = bank().write_to(home.path());
    assert!(run(home.path(), &["check", good.to_str().unwrap()]).await.ok().contains("ok bank"));

    let bad = bank_named("bad")
        .edit("snapshot-every = 100", "snapshot-evry = 100")
        .edit("key = \"account\"", "key = \"acount\"")
        .edit("aggregates = [\"account\"]", "aggregates = [\"acount\"]")
        .file("../target/wasm32-wasip2/release/balances.wasm", "no module")
        .write_to(&home.path().join("bad"));
    let checked = run(home.path(), &["check", bad.to_str().unwrap()]).await;
    checked.ended(1);
    for mistake in ["snapshot-every", "acount", "no aggregate", "balances.wasm", "ebb.toml:"] {
        assert!(checked.stderr.contains(mistake), "no {mistake} in\n{}", checked.stderr);
    }
    let wrong_world = bank_named("wrong")
        .file("../target/wasm32-wasip2/release/account.wasm", guest("dialler"))
        .file("../target/wasm32-wasip2/release/balances.wasm", guest("account"))
        .write_to(&home.path().join("wrong"));
    let checked = run(home.path(), &["check", wrong_world.to_str().unwrap()]).await;
    checked.ended(1);
    for mistake in ["wasi:sockets/", "ebbtide:functions/projections"] {
        assert!(checked.stderr.contains(mistake), "no {mistake} in\n{}", checked.stderr);
    }
}

#[tokio::test]
async fn a_second_node_on_a_folder_is_refused_and_told_who_has_it() {
    let mut node = Node::with(&bank()).await;
    let data = node.data_folder();
    let serve =
        ["serve", "--data", data.to_str().unwrap(), "--http", "127.0.0.1:0", "--control", "127.0.0.1:0"];
    for tool in [&serve[..], &["log", "verify", "--data", data.to_str().unwrap()]] {
        let refused = run(node.home(), tool).await;
        refused.ended(2);
        let holder = format!("in use by process {}", node.process_id());
        assert!(refused.stderr.contains(&holder), "no `{holder}` in {}", refused.stderr);
    }
    let taken = node.data.base().strip_prefix("http://").unwrap().to_owned();
    let other = folder();
    let refused = run(other.path(), &["serve", "--data", "data", "--http", &taken]).await;
    refused.ended(2);
    assert!(refused.stderr.contains(&taken), "{}", refused.stderr);
    assert_eq!(node.stop().await, Some(0));
}

#[tokio::test]
async fn settings_that_are_wrong_are_all_named() {
    let home = folder();
    std::fs::write(home.path().join("ebbtide.toml"), "[http]\naddres = 'x'\n[limits]\nbody = '1 potato'\n")
        .expect("a file");
    let refused = run(home.path(), &["serve", "--set", "drain=soon"]).await;
    refused.ended(2);
    for text in ["addres", "limits.body", "drain"] {
        assert!(refused.stderr.contains(text), "no {text} in {}", refused.stderr);
    }
}

/// The file of the bank's log that holds this text, and where.
fn find_in_log(data: &Path, text: &str) -> (PathBuf, usize) {
    let files = std::fs::read_dir(data.join("apps/bank/log")).expect("the log's folder");
    for file in files {
        let path = file.expect("a file").path();
        let bytes = std::fs::read(&path).expect("a file");
        if let Some(at) = bytes.windows(text.len()).position(|window| window == text.as_bytes()) {
            return (path, at);
        }
    }
    panic!("{text} is in no file of the log");
}

#[tokio::test]
async fn damage_is_found_refused_and_mended_from_a_backup_and_indexes_are_rebuilt() {
    let mut node = Node::with(&bank()).await;
    for id in ["first", "second", "third"] {
        open_account(&node.app("bank"), id, 7).await;
    }
    let events = node.app("bank").all_events().await;
    assert_eq!(node.stop().await, Some(0));
    let data = node.data_folder();
    let data = data.to_str().unwrap();
    let log = async |arguments: &[&str]| {
        let all: Vec<&str> = ["log"].iter().chain(arguments).copied().chain(["--data", data]).collect();
        run(Path::new("/"), &all).await
    };
    let verified = lines(log(&["verify", "--json"]).await.ok());
    let bank = verified.iter().find(|one| one["app"] == "bank").expect("the bank's log");
    assert_eq!((&bank["report"]["position"], &bank["report"]["damage"]), (&json!(6), &json!([])), "{bank}");
    log(&["reindex"]).await.ok();
    let backup = node.home().join("backup");
    copy_folder(Path::new(data), &backup);

    let (file, at) = find_in_log(Path::new(data), "owner of first");
    let mut bytes = std::fs::read(&file).expect("the segment");
    bytes[at] ^= 1;
    std::fs::write(&file, bytes).expect("the segment");
    let found = log(&["verify"]).await;
    assert!(found.ended(1).contains(file.file_name().unwrap().to_str().unwrap()), "{}", found.stdout);
    // The node serves what it can, and says what it can't and why.
    node.start().await;
    node.app("bank").get("/events").await.problem(503, "app_unavailable");
    node.data.get("/events").await.problem(503, "app_unavailable");
    let said = std::fs::read_to_string(node.log_path()).expect("the node's log");
    let shown = node.ebb_control(&["status"]).await;
    for text in [file.file_name().unwrap().to_str().unwrap(), "at offset", "ebb log repair"] {
        assert!(said.contains(text) && shown.ok().contains(text), "no {text} in {said}\n{}", shown.stdout);
    }
    assert_eq!(node.stop().await, Some(0));
    log(&["repair", "--app", "bank", "--from", backup.to_str().unwrap()]).await.ok();
    log(&["verify"]).await.ended(0);
    node.start().await;
    assert_eq!(node.app("bank").all_events().await, events);
    node.app("bank").command("account", "first", "withdraw", &json!({ "amount": 7 })).await.ok();
}

#[tokio::test]
async fn what_the_log_can_rebuild_may_be_thrown_away() {
    let mut node = Node::with(&bank()).await;
    let end = open_account(&node.app("bank"), "a", 7).await;
    let keyed = |node: &Node| {
        let deposit = node.app("bank").command("account", "a", "deposit", &json!({ "amount": 1 }));
        deposit.header("idempotency-key", "k")
    };
    let first = keyed(&node).await;
    node.kill().await;
    for folder in ["index", "artefacts", "apps/bank/models"] {
        std::fs::remove_dir_all(node.data_folder().join(folder))
            .unwrap_or_else(|error| panic!("{folder}: {error}"));
    }
    node.start().await;
    let again = keyed(&node).await;
    assert_eq!((again.json(), again.header("ebb-replayed")), (first.json(), Some("true")));
    let row = crate::support::row_after(&node.app("bank"), "balances", "a", end + 1).await;
    assert_eq!(row["balance"], 8);
    let stream = node.app("bank").get("/streams/account-a").await.ok();
    assert_eq!(stream["events"].as_array().map(Vec::len), Some(3));
}

#[tokio::test]
async fn help_version_and_completions_are_there() {
    let home = folder();
    let help = run(home.path(), &["--help"]).await;
    assert!(help.ok().contains("Exit codes:"), "{}", help.stdout);
    let version = run(home.path(), &["version", "--json"]).await.json();
    assert!(version["version"].is_string());
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(run(home.path(), &["completions", shell]).await.ok().contains("rollback"), "{shell}");
    }
    assert!(!help.stdout.contains('\u{1b}'), "no colours but on a terminal");
}

#[tokio::test]
async fn a_node_that_is_asked_to_stop_finishes_what_it_has_begun() {
    let mut node = Node::with(&bank()).await;
    let bank_app = node.app("bank");
    open_account(&bank_app, "a", 1).await;
    let deposits: Vec<_> = (0..200)
        .map(|number| {
            let deposit =
                bank_app.command("account", &format!("b{number}"), "open", &json!({ "owner": "x" }));
            tokio::spawn(deposit.send())
        })
        .collect();
    eventually("some to be done", async || {
        let events = bank_app.get("/events?limit=1").await;
        (events.number("ebb-position") > 10).then_some(())
    })
    .await;
    assert_eq!(node.stop().await, Some(0));
    let mut accepted = 2;
    for deposit in deposits {
        match deposit.await.expect("a task") {
            Ok(reply) if reply.status == 200 => accepted += 1,
            Ok(reply) => drop(reply.problem(503, "shutting_down")),
            Err(_) => {}
        }
    }
    node.start().await;
    let events = node.app("bank").all_events().await.len();
    assert!(events >= accepted, "{accepted} were accepted, {events} are there");
}

#[tokio::test]
async fn an_app_needs_no_build_section_and_no_projection() {
    let home = folder();
    let app = App::new(
        "[app]\nname = \"tiny\"\n[aggregate.note]\nmodule = \"notes.wasm\"\ncommands = { write = {} }\nevents = { Written = {} }\n",
    );
    let app = app.file("notes.wasm", guest("notes")).write_to(home.path());
    let app = app.to_str().unwrap();
    run(home.path(), &["build", app]).await.ok();
    run(home.path(), &["check", app]).await.ok();
    let node = Node::start_fresh().await;
    node.ebb_control(&["deploy", app]).await.ok();
    node.ebb(&["command", "note", "a", "write", r#"{"text": "x"}"#]).await.ok();
}
