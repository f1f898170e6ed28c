//! Disks that are full, and disks that fail to sync.

use super::{answers_again, bank_is_served, deploy_bank, said, write};
use crate::support::notes;
use ebb_tests::{Client, Node, eventually};
use serde_json::Value;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;

const BIG: usize = 200 << 10;

/// A file system of its own, gone with this.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// None where mounting is not permitted.
    fn mount(folder: PathBuf, size: &str) -> Option<Self> {
        fs::create_dir_all(&folder).expect("a folder");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "ebb-test"])
            .arg(&folder)
            .output();
        mounted.is_ok_and(|output| output.status.success()).then_some(Self(folder))
    }

    /// Takes all the space that is left.
    fn fill(&self) {
        let mut ballast = File::create(self.0.join("ballast")).expect("a file");
        for size in [1 << 20, 4096, 1] {
            while ballast.write_all(&vec![1; size]).is_ok() {}
        }
    }

    fn free(&self) {
        fs::remove_file(self.0.join("ballast")).expect("a file");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: the node may be on its way out still.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

type Answers = Vec<(String, String, String, Value)>;

/// Writes notes until the node takes no more; gives what it answered, and what it did not take.
async fn write_until_full(app: &Client, text: &str) -> (Answers, String) {
    let mut answers = Vec::new();
    for number in 0..200 {
        let (key, note) = (format!("k{number}"), format!("n{}", number % 5));
        let reply = write(app, &key, &note, text).await;
        if reply.status != 200 {
            let problem = reply.problem(503, "unavailable");
            assert!(reply.header("retry-after").is_some(), "{problem}");
            return (answers, key);
        }
        answers.push((key, note, text.to_owned(), reply.json()));
    }
    panic!("the disk was never full");
}

/// Everything that was acknowledged is there once, and can be had again.
async fn nothing_is_lost_or_doubled(app: &Client, answers: &Answers) {
    let events = app.all_events().await;
    assert_eq!(events.len(), answers.len());
    for (event, (key, .., answer)) in events.iter().zip(answers) {
        assert_eq!(event["id"], answer["events"][0]["id"], "{key}");
    }
    answers_again(app, answers).await;
    let rows = app.all_rows("notes", events.len() as u64).await;
    let writes: u64 = rows.iter().map(|row| row["writes"].as_u64().expect("a number")).sum();
    assert_eq!(writes, events.len() as u64);
}

async fn a_full_disk_is_survived(node: &mut Node, fill: impl Fn(&Node), free: impl Fn(&Node)) {
    let text = "x".repeat(BIG);
    node.deploy(&notes()).await;
    deploy_bank(node).await;
    let app = node.app("notes");
    let early = vec![(
        "early".to_owned(),
        "early".to_owned(),
        text.clone(),
        write(&app, "early", "early", &text).await.ok(),
    )];
    app.all_rows("notes", 1).await;
    fill(node);
    let (more, refused) = write_until_full(&app, &text).await;
    let mut answers = [early, more].concat();
    // Reads go on, and so do answers that were given.
    assert_eq!(app.all_events().await.len(), answers.len());
    answers_again(&app, &answers).await;
    app.get("/models/notes/early").await.ok();
    for _ in 0..3 {
        write(&app, &refused, "refused", &text).await.problem(503, "unavailable");
    }
    free(node);
    let reply = eventually("commands to go on", async || {
        let reply = write(&app, &refused, "refused", &text).await;
        (reply.status == 200).then_some(reply)
    })
    .await;
    answers.push((refused, "refused".to_owned(), text.clone(), reply.json()));
    for number in 0..10 {
        let (key, note) = (format!("later-{number}"), format!("n{}", number % 5));
        let reply = write(&app, &key, &note, &text).await;
        answers.push((key, note, text.clone(), reply.ok()));
    }
    nothing_is_lost_or_doubled(&app, &answers).await;
    bank_is_served(node).await;
    node.kill().await;
    node.start().await;
    nothing_is_lost_or_doubled(&node.app("notes"), &answers).await;
    assert_eq!(node.stop().await, Some(0));
    let data = node.data_folder();
    ebb_tests::run(node.home(), &["log", "verify", "--data", data.to_str().expect("UTF-8")]).await.ended(0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_wait_for_room_on_a_full_disk_while_reads_go_on_and_nothing_is_lost() {
    let mut node = Node::builder().faults().start().await;
    a_full_disk_is_survived(&mut node, |node| node.fault("full\n"), |node| node.fault("")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::print_stderr, reason = "shown by the test harness")]
async fn a_small_file_system_that_is_full_is_survived_by_log_index_and_rows() {
    let home = tempfile::Builder::new().prefix("ebb-disk-").tempdir().expect("a folder");
    let Some(disk) = SmallDisk::mount(home.path().join("disk"), "48m") else {
        eprintln!("NOT TESTED: a full file system. Mounting a tmpfs is not permitted here; root may.");
        return;
    };
    let mut node = Node::builder().data(&disk.0.join("data")).start().await;
    a_full_disk_is_survived(&mut node, |_| disk.fill(), |_| disk.free()).await;
    drop(node);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_failed_sync_the_outcome_is_unknown_until_a_restart_and_a_retry_gets_the_one_answer() {
    let mut node = Node::builder().faults().start().await;
    node.deploy(&notes()).await;
    let app = node.app("notes");
    let first = write(&app, "first", "one", "first").await.ok();
    node.fault("fail-sync\n");
    let unknown = write(&app, "second", "one", "second").await;
    let problem = unknown.problem(503, "outcome_unknown");
    let command = unknown.header("ebb-command-id").expect("a command has an id").to_owned();
    // The disk says that all is well again: what it did to the write, nobody knows.
    node.fault("");
    for _ in 0..3 {
        let refused = write(&app, "third", "two", "third").await;
        refused.problem(503, "unavailable");
        assert_eq!(app.all_events().await.len(), 1, "nothing is shown of what may not be there: {problem}");
    }
    assert!(said(&node).contains("outcome_unknown=true"));
    node.kill().await;
    node.start().await;
    let app = node.app("notes");
    let again = write(&app, "second", "one", "second").await;
    assert_eq!(again.position(), 2);
    let entry = app.get(&format!("/command-log/{command}")).await;
    if again.header("ebb-replayed").is_some() {
        assert_eq!(entry.ok()["position"], 2, "it had been recorded after all");
    } else {
        entry.problem(404, "no_such_command");
    }
    let third = write(&app, "third", "two", "third").await.position();
    assert_eq!(third, 3);
    answers_again(
        &app,
        &[
            ("first".into(), "one".into(), "first".into(), first),
            ("second".into(), "one".into(), "second".into(), again.json()),
        ],
    )
    .await;
    assert_eq!(app.all_events().await.len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_can_not_be_synced_is_not_opened_and_says_so() {
    let mut node = Node::builder().faults().start().await;
    node.deploy(&notes()).await;
    write(&node.app("notes"), "first", "one", "first").await.ok();
    node.kill().await;
    node.fault("fail-sync\n");
    node.try_start().await.expect_err("the node's own log can't be synced");
    assert_eq!(node.ended().await, Some(2));
    assert!(said(&node).contains("the disk reports an error"), "{}", said(&node));
    node.fault("");
    node.start().await;
    assert_eq!(node.app("notes").all_events().await.len(), 1);
}
