//! The test vectors of `docs/log-format.md`: what is written there is what this version writes and reads.

use super::commit_record::{self, Numbers};
use super::format::{self, Footer, Marker, Reached, SegmentHeader, SparseEntry};
use super::reader;
use crate::testing::conformance::{commit, event};
use bytes::Bytes;
use ebb_domain::commit::{
    CommandId, CommitNumber, IdempotencyKey, KafkaOrigin, NewCommit, Outcome, RecordedCommand, Refusal,
};
use ebb_domain::digest::Digest;
use ebb_domain::event::{NewEvent, Position, Revision};
use ebb_domain::time::Timestamp;
use uuid::Uuid;

const DOCUMENT: &str = include_str!("../../../../docs/log-format.md");

/// The bytes in the document's block of this name.
fn documented(name: &str) -> Vec<u8> {
    let (_, block) = DOCUMENT.split_once(&format!("```hex {name}\n")).unwrap_or_default();
    let (block, _) = block.split_once("```").unwrap_or_default();
    let digits: String = block.chars().filter(|c| !c.is_whitespace()).collect();
    hex::decode(digits).unwrap()
}

fn check(name: &str, bytes: &[u8]) {
    let lines: Vec<String> = bytes.chunks(32).map(hex::encode).collect();
    assert_eq!(documented(name), bytes, "the block `hex {name}` should be\n{}", lines.join("\n"));
}

fn header() -> SegmentHeader {
    let base = Reached {
        group: 3,
        commit: CommitNumber(5),
        position: Position(8),
        time: Timestamp(1_357_023_600_000_000),
        epoch: 2,
    };
    let (id, log) = (Uuid::from_u128(0x1111_1111_1111_4111_8111_1111_1111_1111), Uuid::from_u128(0x2222));
    SegmentHeader { id, log, sequence: 2, base }
}

fn numbers(number: u64, position: u64) -> Numbers {
    Numbers {
        number: CommitNumber(number),
        first_position: Position(position),
        first_revision: Revision(1),
        recorded_at: Timestamp(1_357_023_600_000_001),
        epoch: 2,
    }
}

fn decided() -> NewCommit {
    let photo = NewEvent {
        schema_version: 2,
        data: Bytes::from_static(&[0xff]),
        content_type: "image/x".into(),
        ..event("Photographed", "")
    };
    NewCommit {
        command_id: CommandId(Uuid::from_u128(0x3333)),
        module: Digest([0x44; 32]),
        command: Some(RecordedCommand {
            name: "depart".into(),
            time: Timestamp(1_357_023_600_000_000),
            data: Some(Bytes::from_static(b"{\"delay\":2}")),
        }),
        origin: Some(KafkaOrigin {
            cluster: "k".into(),
            topic: Uuid::from_u128(0x5555),
            partition: 1,
            offset: 9,
        }),
        ..commit("flight-1", vec![event("Departed", "{\"delay\":2}"), photo])
    }
}

fn refused() -> NewCommit {
    let refusal = Refusal {
        code: "departed".into(),
        message: "it has left".into(),
        details: Some(Bytes::from_static(b"{}")),
    };
    NewCommit {
        command_id: CommandId(Uuid::from_u128(0x6666)),
        causation_id: Some("cause".into()),
        hops: 0,
        traceparent: Some("00-0-0-00".into()),
        idempotency: Some(IdempotencyKey { key: "key".into(), request: Digest([0x77; 32]) }),
        outcome: Outcome::Refused(refusal),
        ..commit("flight-1", vec![])
    }
}

/// A group of two commits behind the header, and a footer behind it.
fn group() -> (Vec<u8>, Vec<usize>) {
    let mut run = Vec::new();
    let mut starts = vec![0];
    commit_record::encode(&mut run, &decided(), &numbers(6, 9));
    starts.push(run.len());
    commit_record::encode(&mut run, &refused(), &numbers(7, 11));
    starts.push(run.len());
    let reached = Reached {
        group: 4,
        commit: CommitNumber(7),
        position: Position(10),
        time: Timestamp(1_357_023_600_000_001),
        epoch: 2,
    };
    Marker { reached, commits: 2, bytes: run.len() as u32 }.encode(&mut run, 0);
    starts.push(run.len());
    let sparse = vec![SparseEntry { commit: 6, position: 9, time: 1_357_023_600_000_001, offset: 128 }];
    Footer { reached, sparse }.encode(&mut run);
    format::seal(&mut run, header().seed(), format::HEADER as u64);
    (run, starts)
}

#[test]
fn the_documented_bytes_are_what_is_written() {
    check("header", &header().encode());
    let (run, starts) = group();
    check("commit", &run[starts[0]..starts[1]]);
    check("refusal", &run[starts[1]..starts[2]]);
    check("marker", &run[starts[2]..starts[3]]);
    check("footer", &run[starts[3]..]);
}

#[test]
fn the_documented_bytes_are_read_back() {
    assert_eq!(SegmentHeader::decode(&documented("header")), Ok(header()));
    let record = Bytes::from(documented("commit"));
    format::check(&record, header().seed(), format::HEADER as u64).unwrap();
    let read = reader::commit(&record).unwrap();
    assert_eq!((&read.header.command, &read.header.origin), (&decided().command, &decided().origin));
    assert_eq!((read.events[0].data.as_ref(), read.events[1].schema_version), (&b"{\"delay\":2}"[..], 2));
    let refusal = reader::commit(&Bytes::from(documented("refusal"))).unwrap();
    let Outcome::Refused(expected) = refused().outcome else { unreachable!() };
    assert_eq!(
        (&refusal.header.refusal, &refusal.header.idempotency),
        (&Some(expected), &refused().idempotency)
    );
    assert_eq!(Marker::decode(&documented("marker")).unwrap().commits, 2);
    assert_eq!(Footer::decode(&documented("footer")).unwrap().sparse.len(), 1);
}
