//! What disks, clocks and operators do to a node: damaged and missing files, full disks, failing syncs, clocks that jump.

mod clock;
mod disk;
mod index;
mod log;
mod models;
mod segment;

use ebb_tests::{Client, Node, Reply, bank};
use serde_json::{Value, json};
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// Writes a note under a key of its own.
async fn write(app: &Client, key: &str, note: &str, text: &str) -> Reply {
    app.command("note", note, "write", &json!({ "text": text })).header("idempotency-key", key).await
}

/// Flips a bit of a file.
fn flip(path: &Path, offset: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).expect("a file");
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).expect("a byte");
    file.write_all_at(&[byte[0] ^ 0x10], offset).expect("a byte");
}

/// Puts other bytes in the place of those that are there.
fn overwrite(path: &Path, offset: u64, bytes: &[u8]) {
    OpenOptions::new().write(true).open(path).expect("a file").write_all_at(bytes, offset).expect("bytes");
}

/// Everything that the node has said in all of its lives.
fn said(node: &Node) -> String {
    std::fs::read_to_string(node.log_path()).expect("the node's log")
}

/// The segments of an app's log, in order.
fn segments(node: &Node, app: &str) -> Vec<PathBuf> {
    let folder = node.data_folder().join("apps").join(app).join("log");
    let mut files = ebb_tests::files_in(&folder);
    files.retain(|file| file.extension().is_some_and(|extension| extension == "seg"));
    files
}

/// Another app of the node is not touched by what happens to the first.
async fn bank_is_served(node: &Node) {
    let bank = node.app("bank");
    bank.command("account", "a", "deposit", &json!({ "amount": 1 })).await.ok();
    bank.get("/models/balances/a").await.ok();
}

/// A node with the bank, in which there is an account.
async fn deploy_bank(node: &Node) {
    node.deploy(&bank()).await;
    crate::support::open_account(&node.app("bank"), "a", 100).await;
}

/// Every command gets the answer that it got before.
async fn answers_again(app: &Client, answers: &[(String, String, String, Value)]) {
    for (key, note, text, before) in answers {
        let again = write(app, key, note, text).await;
        assert_eq!((again.header("ebb-replayed"), &again.json()), (Some("true"), before), "{key}");
    }
}
