//! The index (sled) is never the truth: whatever becomes of its files, the answers stay the same.

use super::{answers_again, bank_is_served, deploy_bank, flip, overwrite, write};
use crate::support::notes;
use ebb_tests::{Dice, Node, copy_folder, files_in, remove_folder};
use serde_json::Value;
use std::fs;
use std::path::Path;

const NOTES: u64 = 12;
const WRITES: u64 = 8;

/// Does something to the folder `index` while the node is down.
type Damage = fn(&Path, &mut Dice);

fn damages() -> Vec<(&'static str, Damage)> {
    vec![
        ("gone", |index, _| remove_folder(index)),
        ("a file in its place", |index, _| {
            remove_folder(index);
            fs::write(index, b"what?").expect("a file");
        }),
        ("flipped bits", |index, dice| {
            for _ in 0..40 {
                let len = fs::metadata(index.join("db")).expect("sled's file").len();
                flip(&index.join("db"), dice.roll(0..len));
            }
        }),
        ("flipped bits where something is", |index, dice| {
            let bytes = fs::read(index.join("db")).expect("sled's file");
            let used: Vec<u64> = (0..bytes.len()).filter(|at| bytes[*at] != 0).map(|at| at as u64).collect();
            for _ in 0..8 {
                flip(&index.join("db"), dice.pick(&used));
            }
        }),
        ("cut in half", |index, _| {
            let file = fs::OpenOptions::new().write(true).open(index.join("db")).expect("sled's file");
            let len = file.metadata().expect("a file").len();
            file.set_len(len / 2).expect("a file");
        }),
        ("empty", |index, _| fs::write(index.join("db"), b"").expect("sled's file")),
        ("garbage", |index, dice| {
            for file in files_in(index) {
                let len = fs::metadata(&file).expect("a file").len();
                let garbage: Vec<u8> = (0..len).map(|_| dice.roll(0..256) as u8).collect();
                overwrite(&file, 0, &garbage);
            }
        }),
        ("without its files but one", |index, _| {
            for file in files_in(index).iter().filter(|file| !file.ends_with("db")) {
                fs::remove_file(file).expect("a file");
            }
        }),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_that_is_gone_or_damaged_is_built_again_and_every_answer_is_the_same() {
    let mut dice = Dice::seeded();
    let mut node = Node::with(&notes().edit("[model.notes]", "snapshot-every = 3\n\n[model.notes]")).await;
    deploy_bank(&node).await;
    let app = node.app("notes");
    let mut answers = Vec::new();
    for number in 0..NOTES * WRITES {
        let (key, note, text) =
            (format!("k{number}"), format!("n{}", number % NOTES), format!("text {number}"));
        answers.push((key.clone(), note.clone(), text.clone(), write(&app, &key, &note, &text).await.ok()));
    }
    let events = app.all_events().await;
    let rows = app.all_rows("notes", events.len() as u64).await;
    let mut streams = Vec::new();
    for note in 0..NOTES {
        streams.push(app.get(&format!("/streams/note-n{note}")).await.ok());
    }
    assert_eq!(node.stop().await, Some(0));
    let before = node.home().join("before");
    copy_folder(&node.data_folder(), &before);

    for (name, damage) in damages() {
        copy_folder(&before, &node.data_folder());
        damage(&node.data_folder().join("index"), &mut dice);
        node.start().await;
        let app = node.app("notes");
        answers_again(&app, &answers).await;
        assert_eq!(app.all_events().await, events, "{name}");
        for (note, stream) in streams.iter().enumerate() {
            assert_eq!(app.get(&format!("/streams/note-n{note}")).await.ok(), *stream, "{name}");
            // Decided on what the stream holds, whatever became of the snapshot.
            let reply = write(&app, &format!("more-{note}"), &format!("n{note}"), "more").await.ok();
            let (writes, revision) = (&reply["events"][0]["data"]["writes"], &reply["revision"]);
            assert_eq!((writes, revision), (&Value::from(WRITES + 1), &Value::from(WRITES)), "{name}");
        }
        assert_eq!(app.all_rows("notes", events.len() as u64).await.len(), rows.len(), "{name}");
        bank_is_served(&node).await;
        node.kill().await;
    }
}
