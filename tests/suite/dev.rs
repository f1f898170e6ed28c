//! From an empty folder to an app under one's hands.

use ebb_tests::{Client, Node, command, run};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt as _, BufReader};

/// An empty folder.
fn empty() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("ebb-test-").tempdir().expect("a temporary folder")
}

/// What cargo makes of the templates' dependencies is kept between runs. Each test has a folder of its own, because the
/// modules of the templates have the names of modules that other tests deploy.
fn keep_target(app: &Path, test: &str) {
    let shared = ebb_tests::repository().join("guest-examples/target/new").join(test);
    std::fs::create_dir_all(&shared).expect("a folder");
    std::os::unix::fs::symlink(shared, app.join("target")).expect("a link");
}

async fn new(home: &Path, template: &str, test: &str) -> PathBuf {
    let made = run(home, &["new", "tally", "--template", template]).await;
    assert!(made.ok().contains("ebb dev"), "it says how to go on: {}", made.stdout);
    let app = home.join("tally");
    keep_target(&app, test);
    app
}

/// The templates' own tests, natively.
async fn cargo_test(app: &Path) {
    let mut cargo = tokio::process::Command::new("cargo");
    cargo.args(["test", "--quiet"]).current_dir(app).env_remove("CARGO_TARGET_DIR").env_remove("RUSTFLAGS");
    let output = cargo.output().await.expect("cargo can be run");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(
        said.contains("test result: ok. ")
            && said.lines().any(|line| line.starts_with("running ") && line != "running 0 tests"),
        "{said}"
    );
}

#[tokio::test]
async fn a_new_app_builds_tests_and_runs_in_any_empty_folder() {
    for template in ["aggregate", "aggregate-projection", "http"] {
        let home = empty();
        let app = new(home.path(), template, "each").await;
        let path = app.to_str().unwrap();
        run(home.path(), &["build", path]).await.ok();
        run(home.path(), &["check", path]).await.ok();
        cargo_test(&app).await;
        let node = Node::start_fresh().await;
        node.ebb_control(&["deploy", path]).await.ok();
        if template == "http" {
            assert_eq!(node.data.get("/hello/Ann").await.body, "Hello, Ann!\n");
            continue;
        }
        let reply =
            node.ebb(&["command", "counter", "a", "increment", r#"{"by": 2}"#, "--json"]).await.json();
        if template == "aggregate-projection" {
            let position = reply["position"].to_string();
            let row = ["query", "totals", "--where", "counter=a", "--after", &position, "--json"];
            assert_eq!(node.ebb(&row).await.json()["count"], 2);
        }
        let again = run(home.path(), &["new", "tally", "--template", template]).await;
        again.ended(2);
        assert!(again.stderr.contains("is not empty"), "{}", again.stderr);
    }
    let home = empty();
    run(home.path(), &["new", "No Name"]).await.ended(2);
}

async fn nothing(counter: &Client) -> String {
    let reply = counter.command("counter", "a", "increment", &json!({ "by": 0 })).await;
    assert_eq!(reply.status, 422, "{reply:?}");
    reply.json()["code"].as_str().expect("a code").to_owned()
}

#[tokio::test]
#[expect(clippy::print_stderr, reason = "the figure is part of what this test is for")]
async fn an_edit_is_served_in_a_moment_without_losing_a_request_and_a_mistake_leaves_the_old_one_serving() {
    let home = empty();
    let app = new(home.path(), "aggregate", "edited").await;
    let dev = ["dev", app.to_str().unwrap(), "--http", "127.0.0.1:0", "--control", "127.0.0.1:0"];
    let log = std::fs::File::create(home.path().join("dev.log")).expect("a file");
    let mut child =
        command(home.path(), &dev).stdout(Stdio::piped()).stderr(log).spawn().expect("ebb can be run");
    let mut stdout = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut ready = String::new();
    let said = || std::fs::read_to_string(home.path().join("dev.log")).unwrap_or_default();
    tokio::time::timeout(Duration::from_secs(180), stdout.read_line(&mut ready))
        .await
        .expect("ready")
        .expect("a line");
    let base = ready.split_whitespace().find_map(|word| word.strip_prefix("http="));
    let counter = Client::new(base.unwrap_or_else(|| panic!("no address in `{ready}`\n{}", said())));
    assert_eq!(nothing(&counter).await, "nothing_to_add");

    let source = app.join("src/lib.rs");
    let original = std::fs::read_to_string(&source).expect("the source");
    let mut slowest = Duration::ZERO;
    for code in ["one", "two", "three"] {
        let edited = original.replace("\"nothing_to_add\"", &format!("\"{code}\""));
        let started = Instant::now();
        std::fs::write(&source, edited).expect("the source");
        while nothing(&counter).await != code {
            assert!(started.elapsed() < Duration::from_secs(60), "not served:\n{}", said());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        slowest = slowest.max(started.elapsed());
    }
    eprintln!("edit to served, slowest of three: {slowest:?}");
    assert!(slowest < Duration::from_secs(10), "{slowest:?}");

    std::fs::write(&source, original.replace("fn decide", "fn decide decide")).expect("the source");
    let started = Instant::now();
    while !said().contains("goes on serving") {
        assert_eq!(nothing(&counter).await, "three");
        assert!(
            started.elapsed() < Duration::from_secs(60),
            "nothing was said about the mistake:\n{}",
            said()
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    std::fs::write(&source, original.replace("\"nothing_to_add\"", "\"four\"")).expect("the source");
    let started = Instant::now();
    while nothing(&counter).await != "four" {
        assert!(started.elapsed() < Duration::from_secs(60), "not served:\n{}", said());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let id = child.id().expect("a process").to_string();
    std::process::Command::new("kill").args(["-INT", &id]).status().expect("a signal");
    let ended = tokio::time::timeout(Duration::from_secs(30), child.wait()).await.expect("an end in time");
    assert_eq!(ended.expect("an end").code(), Some(0), "{}", said());
}
