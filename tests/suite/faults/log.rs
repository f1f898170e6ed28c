//! Damage to the log, which is the truth: refused, found or made up for, and never passed over.

use super::segment::{COMMIT_FIXED, Kind, inner, records};
use super::{bank_is_served, deploy_bank, flip, said, segments, write};
use crate::support::notes;
use ebb_tests::{Dice, Node, copy_folder, run};
use http::Method;
use serde_json::{Value, json};
use std::path::PathBuf;

/// Fills a first segment of 1 MiB soon.
const BIG: usize = 150 << 10;

/// What must come of damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    /// The app stays closed.
    Refused,
    /// The app is served but for what is damaged.
    Found,
    /// Everything is served; the damage is in what only repeats other bytes.
    MadeUpFor,
    /// Everything is served: those bytes were never acknowledged.
    Cut,
}

/// Damage to one place of one segment.
struct Case {
    name: String,
    file: PathBuf,
    /// The byte that is flipped.
    at: u64,
    /// The offset that messages must name.
    named: u64,
    expected: Expected,
}

/// A node that has been filled, and was stopped cleanly: three segments and more of `notes`, and the bank.
struct Filled {
    node: Node,
    backup: PathBuf,
    events: Vec<Value>,
    rows: Vec<Value>,
    segments: Vec<PathBuf>,
}

impl Filled {
    async fn new() -> Self {
        let mut node = Node::with(&notes()).await;
        deploy_bank(&node).await;
        let app = node.app("notes");
        let mut number = 0;
        // In the last segment there are to be some groups as well.
        while segments(&node, "notes").len() < 3 {
            number += 1;
            write(&app, &format!("big-{number}"), "big", &"x".repeat(BIG)).await.ok();
        }
        for number in 0..6 {
            write(&app, &format!("small-{number}"), "small", &format!("text {number}")).await.ok();
        }
        let events = app.all_events().await;
        let rows = app.all_rows("notes", events.len() as u64).await;
        assert_eq!(node.stop().await, Some(0));
        let backup = node.home().join("backup");
        copy_folder(&node.data_folder(), &backup);
        let segments = segments(&node, "notes");
        Self { node, backup, events, rows, segments }
    }

    /// As it was before any damage.
    fn restore(&self) {
        copy_folder(&self.backup, &self.node.data_folder());
    }

    async fn tool(&self, arguments: &[&str]) -> ebb_tests::Finished {
        let data = self.node.data_folder();
        let all = ["log"].iter().chain(arguments).copied().chain(["--data", data.to_str().expect("UTF-8")]);
        run(self.node.home(), &all.collect::<Vec<_>>()).await
    }

    /// What `ebb log verify` says of the notes.
    async fn verify(&self, code: i32) -> Value {
        let found = self.tool(&["verify", "--app", "notes", "--json"]).await;
        serde_json::from_str::<Value>(found.ended(code)).expect("one document")["report"].clone()
    }

    async fn repair(&self) {
        self.tool(&["repair", "--app", "notes", "--from", self.backup.to_str().expect("UTF-8")]).await.ok();
        assert_eq!(self.verify(0).await["damage"], json!([]));
    }

    /// Everything is there, and goes on.
    async fn is_whole(&self) {
        let app = self.node.app("notes");
        assert_eq!(app.all_events().await, self.events);
        let end = self.events.len() as u64;
        assert_eq!(app.all_rows("notes", end).await, self.rows);
        let again = write(&app, "small-5", "small", "text 5").await;
        assert_eq!((again.position(), again.header("ebb-replayed")), (end, Some("true")));
        assert_eq!(write(&app, "more", "small", "more").await.position(), end + 1);
    }

    fn cases(&self) -> Vec<Case> {
        let last = self.segments.len() - 1;
        let mut cases = Vec::new();
        for (place, number) in [("first", 0), ("middle", 1), ("last", last)] {
            let file = &self.segments[number];
            let records = records(file);
            let mut case = |what: &str, at: u64, named: u64, expected: Expected| {
                let name = format!("{what} of the {place} segment");
                cases.push(Case { name, file: file.clone(), at, named, expected });
            };
            let behind = if number == last { Expected::Refused } else { Expected::Found };
            let (commit, marker) = (inner(&records, Kind::Commit), inner(&records, Kind::Group));
            let event = commit.offset + COMMIT_FIXED + (commit.len - COMMIT_FIXED) / 2;
            let end = records.last().expect("a segment has records");
            match place {
                "first" => {
                    case("magic", 0, 0, Expected::Refused);
                    case("commit's length", commit.offset + 5, commit.offset, behind);
                    case("group's number", marker.offset + 16, marker.offset, behind);
                    case("footer", end.offset + 30, end.offset, Expected::MadeUpFor);
                }
                "middle" => {
                    case("id", 20, 0, Expected::Refused);
                    case("event", event, commit.offset, behind);
                    case("footer's length", end.end() - 3, end.offset, Expected::MadeUpFor);
                }
                _ => {
                    case("reached", 50, 0, Expected::Refused);
                    case("commit's checksum", commit.offset, commit.offset, behind);
                    case("event", event, commit.offset, behind);
                    case("group's checksum", marker.offset, marker.offset, behind);
                    assert_eq!(end.kind, Kind::Group, "the note that the log was closed");
                    case("closing note", end.offset + 20, end.offset, Expected::Cut);
                    case("first free byte", end.end(), end.end(), Expected::Cut);
                    case("free space", end.end() + 40_000, end.end(), Expected::Cut);
                }
            }
        }
        cases
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_bit_anywhere_in_the_log_is_refused_found_or_made_up_for_and_mended_from_a_backup() {
    let mut filled = Filled::new().await;
    for case in filled.cases() {
        filled.restore();
        flip(&case.file, case.at);
        filled.check(&case).await;
    }
}

impl Filled {
    async fn check(&mut self, case: &Case) {
        let Case { name, file, at, named, expected } = case;
        eprintln_case(name, *at, *expected);
        let before = said(&self.node).len();
        if *expected != Expected::Cut {
            let report = self.verify(1).await;
            let found = &report["damage"][0];
            let place = (found["file"].as_str(), found["offset"].as_u64());
            assert_eq!(place, (file.to_str(), Some(*named)), "{name}: {report}");
        }
        self.node.start().await;
        bank_is_served(&self.node).await;
        let app = self.node.app("notes");
        let (file_name, offset) = (file.to_str().expect("UTF-8"), format!("at offset {named}"));
        let names_the_place = |text: &str| {
            for wanted in [file_name, &offset, "ebb log verify", "ebb log repair --from BACKUP"] {
                assert!(text.contains(wanted), "{name}: no `{wanted}` in {text}");
            }
        };
        match expected {
            Expected::Refused => {
                app.get("/events").await.problem(503, "app_unavailable");
                write(&app, "more", "small", "more").await.problem(503, "app_unavailable");
                names_the_place(&self.node.control.get("/apps").await.ok().to_string());
                names_the_place(&said(&self.node)[before..]);
            }
            Expected::Found => {
                // Whoever comes to the place is told; everything else is served.
                self.read_all(&app).await.problem(500, "log_damaged");
                names_the_place(&said(&self.node)[before..]);
                let end = self.events.len() as u64;
                assert_eq!(app.all_rows("notes", end).await, self.rows, "{name}");
                assert_eq!(write(&app, "more", "small", "more").await.position(), end + 1, "{name}");
                let late = app.get(&format!("/events?after={}", end - 3)).await.ok();
                assert_eq!(late["events"].as_array().map(Vec::len), Some(4), "{name}");
                app.get("/streams/note-small").await.ok();
            }
            Expected::MadeUpFor => self.is_whole().await,
            Expected::Cut => {
                self.is_whole().await;
                assert!(said(&self.node)[before..].contains("cut a torn tail"), "{name}");
            }
        }
        self.node.kill().await;
        if *expected == Expected::Cut {
            return;
        }
        self.repair().await;
        self.node.start().await;
        let events = self.node.app("notes").all_events().await;
        // What was written beside the damage stays.
        let more = usize::from(*expected != Expected::Refused);
        assert_eq!(&events[..self.events.len()], &self.events[..], "{name}");
        assert_eq!(events.len(), self.events.len() + more, "{name}");
        self.node.kill().await;
    }

    /// The first answer on the way through the log that is not a success. In pages: who reads one event alone steps over a
    /// damaged marker that is not of it.
    async fn read_all(&self, app: &ebb_tests::Client) -> ebb_tests::Reply {
        let mut after = Some(0);
        while let Some(from) = after {
            let reply = app.request(Method::GET, &format!("/events?limit=1000&after={from}")).await;
            if reply.status != 200 {
                return reply;
            }
            after = reply.json()["next"].as_u64();
        }
        panic!("the damage was read over");
    }
}

#[expect(clippy::print_stderr, reason = "shown by the test harness, for a test that fails")]
fn eprintln_case(name: &str, at: u64, expected: Expected) {
    eprintln!("byte {at}, {name}: {expected:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_segment_that_is_gone_keeps_the_app_closed_until_it_is_back() {
    let mut filled = Filled::new().await;
    for number in [0, 1] {
        filled.restore();
        let gone = filled.segments[number].clone();
        std::fs::remove_file(&gone).expect("a segment");
        filled.verify(1).await;
        filled.node.start().await;
        filled.node.app("notes").get("/events").await.problem(503, "app_unavailable");
        assert!(said(&filled.node).contains(gone.to_str().expect("UTF-8")));
        bank_is_served(&filled.node).await;
        filled.node.kill().await;
        filled.repair().await;
        filled.node.start().await;
        filled.is_whole().await;
        filled.node.kill().await;
    }
}

/// What a power cut leaves of the group that was being written when it came: a beginning, whatever its length.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_torn_tail_is_cut_and_said_so_and_nothing_that_was_acknowledged_before_is_lost() {
    let mut node = Node::with(&notes()).await;
    deploy_bank(&node).await;
    for number in 0..3 {
        write(&node.app("notes"), &format!("k{number}"), "one", &format!("text {number}")).await.ok();
    }
    let events = node.app("notes").all_events().await;
    assert_eq!(node.stop().await, Some(0));
    let (before, after) = (node.home().join("before"), node.home().join("after.seg"));
    copy_folder(&node.data_folder(), &before);
    let segment = segments(&node, "notes").remove(0);
    let acknowledged = records(&segment).last().expect("records").end();

    // One more command, of which the disk then holds only a part.
    node.start().await;
    write(&node.app("notes"), "k3", "one", &"torn ".repeat(300)).await.ok();
    node.kill().await;
    std::fs::copy(&segment, &after).expect("a copy");
    let written = records(&after);
    let [.., commit, marker] = written[..] else { panic!("{written:?}") };
    assert_eq!((commit.kind, marker.kind), (Kind::Commit, Kind::Group));
    assert!(commit.offset > acknowledged, "the mark of the next opening is between them");
    let whole = std::fs::read(&after).expect("a segment");
    // A record begins with a checksum, which may begin with a zero: of that nobody can tell that it was written.
    let begun = (commit.offset..).find(|at| whole[*at as usize] != 0).expect("it was written") + 1;
    let mut dice = Dice::seeded();
    for cut in [
        begun,
        commit.offset + 10,
        commit.offset + 16,
        dice.roll(commit.offset + COMMIT_FIXED..commit.end()),
        marker.offset,
        marker.offset + 40,
        // Behind that the marker is zeros anyway.
        marker.offset + 60,
    ] {
        copy_folder(&before, &node.data_folder());
        let mut torn = whole.clone();
        torn[cut as usize..marker.end() as usize].fill(0);
        std::fs::write(&segment, torn).expect("a segment");
        let said_before = said(&node).len();
        node.start().await;
        let app = node.app("notes");
        assert_eq!(app.all_events().await, events, "cut at {cut}");
        let news = said(&node)[said_before..].to_owned();
        let offset = format!("offset={}", commit.offset);
        assert!(news.contains("cut a torn tail") && news.contains(&offset), "no {offset} in {news}");
        // Decided anew: nobody had been told of it.
        let reply = write(&app, "k3", "one", "again").await;
        assert_eq!((reply.position(), reply.header("ebb-replayed")), (events.len() as u64 + 1, None));
        assert_eq!(app.all_rows("notes", reply.position()).await[0]["writes"], 4);
        bank_is_served(&node).await;
        node.kill().await;
    }
}
