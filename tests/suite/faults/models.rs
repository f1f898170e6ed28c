//! Read models (SQLite) are projections of the log: a file that is lost or damaged is built again, and its rows are exact.

use super::{bank_is_served, deploy_bank, overwrite, write};
use crate::support::notes;
use ebb_tests::{Client, Node, copy_folder, eventually, files_in};
use futures_util::future::join_all;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

/// Enough for some hundred pages.
const NOTES: u64 = 400;
const PAGE: u64 = 4096;

/// The files of the projection's versions that end like this.
fn files(data: &Path, suffix: &str) -> Vec<PathBuf> {
    let mut files = files_in(&data.join("apps/notes/models/notes"));
    files.retain(|file| file.to_str().is_some_and(|name| name.ends_with(suffix)));
    files
}

fn file(data: &Path, suffix: &str) -> PathBuf {
    let mut files = files(data, suffix);
    assert_eq!(files.len(), 1, "{files:?}");
    files.remove(0)
}

fn garbage(path: &Path, from: u64, to: u64) {
    overwrite(path, from, &vec![0x5a; (to - from) as usize]);
}

fn len(path: &Path) -> u64 {
    fs::metadata(path).expect("a file").len()
}

/// A node with many notes, all projected.
async fn filled() -> (Node, u64, Vec<Value>) {
    let node = Node::with(&notes()).await;
    deploy_bank(&node).await;
    let app = node.app("notes");
    let text = "some words ".repeat(30);
    let writes = (0..NOTES).map(|number| {
        let (app, text) = (&app, &text);
        async move { write(app, &format!("k{number}"), &format!("n{number}"), text).await.position() }
    });
    let end = join_all(writes).await.into_iter().max().expect("positions");
    let rows = app.all_rows("notes", end).await;
    assert_eq!(rows.len() as u64, NOTES);
    (node, end, rows)
}

/// All rows, once they can be read.
async fn rows_again(app: &Client, end: u64) -> Vec<Value> {
    eventually("the rows to be built again", async || {
        let look = app.get("/models/notes?limit=1").header("ebb-after", end).header("ebb-wait", "10s").await;
        if look.status != 200 {
            look.problem(503, look.json()["code"].as_str().expect("a code"));
            return None;
        }
        let mut all = Vec::new();
        let mut cursor = String::new();
        loop {
            // Damage may be met only now.
            let page = app.get(&format!("/models/notes?limit=100{cursor}")).header("ebb-after", end).await;
            if page.status != 200 {
                page.problem(503, page.json()["code"].as_str().expect("a code"));
                return None;
            }
            let page = page.json();
            all.extend(page["items"].as_array().expect("items").iter().cloned());
            match page["next"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return Some(all),
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_model_that_is_gone_or_damaged_before_the_start_is_built_again_row_for_row() {
    let (mut node, end, rows) = filled().await;
    node.kill().await;
    let (killed, stopped) = (node.home().join("killed"), node.home().join("stopped"));
    copy_folder(&node.data_folder(), &killed);
    node.start().await;
    assert_eq!(node.stop().await, Some(0));
    copy_folder(&node.data_folder(), &stopped);

    type Damage = fn(&Path);
    let cases: Vec<(&str, &Path, Damage)> = vec![
        ("the file is gone", &stopped, |data| fs::remove_file(file(data, ".sqlite")).expect("a file")),
        ("all files are gone", &killed, |data| {
            fs::remove_dir_all(data.join("apps/notes/models")).expect("a folder");
        }),
        ("the database is gone and its WAL is not", &killed, |data| {
            fs::remove_file(file(data, ".sqlite")).expect("a file");
        }),
        ("the header is garbage", &stopped, |data| garbage(&file(data, ".sqlite"), 0, 100)),
        ("the first page is garbage", &stopped, |data| garbage(&file(data, ".sqlite"), 100, PAGE)),
        ("pages in the middle are garbage", &stopped, |data| {
            let file = file(data, ".sqlite");
            let middle = len(&file) / PAGE / 2 * PAGE;
            garbage(&file, middle, middle + 8 * PAGE);
        }),
        ("cut in the middle", &stopped, |data| {
            let file = file(data, ".sqlite");
            let middle = len(&file) / PAGE / 2 * PAGE;
            fs::OpenOptions::new().write(true).open(&file).expect("a file").set_len(middle).expect("a file");
        }),
        ("empty", &stopped, |data| fs::write(file(data, ".sqlite"), b"").expect("a file")),
        ("the WAL is gone", &killed, |data| fs::remove_file(file(data, "-wal")).expect("a file")),
        ("the WAL is garbage", &killed, |data| {
            let wal = file(data, "-wal");
            garbage(&wal, 0, len(&wal));
        }),
        ("the WAL is garbage from the middle on", &killed, |data| {
            let wal = file(data, "-wal");
            garbage(&wal, len(&wal) / 2, len(&wal));
        }),
        ("the shared memory is garbage", &killed, |data| {
            let shared = file(data, "-shm");
            garbage(&shared, 0, len(&shared));
        }),
        ("the pointer to the serving version is garbage", &stopped, |data| {
            fs::write(file(data, "serving"), b"what?").expect("a file");
        }),
    ];
    for (name, before, damage) in cases {
        copy_folder(before, &node.data_folder());
        damage(&node.data_folder());
        node.start().await;
        assert_eq!(rows_again(&node.app("notes"), end).await, rows, "{name}");
        bank_is_served(&node).await;
        node.kill().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_model_that_is_deleted_while_the_node_runs_is_built_again() {
    let (mut node, end, rows) = filled().await;
    for file in files(&node.data_folder(), "") {
        if !file.ends_with("serving") {
            fs::remove_file(file).expect("a file");
        }
    }
    let app = node.app("notes");
    let end = write(&app, "more", "more", "more").await.position().max(end);
    let again = rows_again(&app, end).await;
    assert_eq!(again.len(), rows.len() + 1);
    assert!(rows.iter().all(|row| again.contains(row)));
    eventually("the file to be there again", async || {
        (!files(&node.data_folder(), ".sqlite").is_empty()).then_some(())
    })
    .await;
    bank_is_served(&node).await;
    node.kill().await;
    node.start().await;
    assert_eq!(node.app("notes").all_rows("notes", end).await, again);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_page_that_a_reader_meets_is_mended_without_anything_being_written() {
    let (mut node, end, rows) = filled().await;
    // Everything in the database itself, and nothing of it in the node's memory.
    assert_eq!(node.stop().await, Some(0));
    node.start().await;
    let database = file(&node.data_folder(), ".sqlite");
    let middle = len(&database) / PAGE / 2 * PAGE;
    garbage(&database, middle, middle + 8 * PAGE);
    assert_eq!(rows_again(&node.app("notes"), end).await, rows);
    let damaged = files(&node.data_folder(), ".damaged");
    assert_eq!(damaged.len(), 1, "what was damaged is kept for whoever wants to look at it");
    bank_is_served(&node).await;
}
