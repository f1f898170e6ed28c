//! Snapshots in sled: shortcuts that may be lost at any time.

use bytes::Bytes;
use ebb_domain::digest::Digest;
use ebb_domain::event::{EventId, Revision};
use ebb_domain::port::storage::{Snapshot, Snapshots};
use ebb_domain::stream::StreamId;
use ebb_faults::{Point, crash_point};
use uuid::Uuid;

/// Bytes before the state: checksum, revision, event, module, whether there is a state version, state version.
const FIXED: usize = 4 + 8 + 16 + 32 + 1 + 4;

/// Snapshots of one app.
pub(crate) struct SledSnapshots(pub(crate) sled::Tree);

impl Snapshots for SledSnapshots {
    fn get(&self, stream: &StreamId) -> Option<Snapshot> {
        let value = self.0.get(stream.as_str()).inspect_err(|error| warn(stream, error)).ok()??;
        let snapshot = decode(&value);
        if snapshot.is_none() {
            tracing::warn!(%stream, "a snapshot was damaged; the stream is folded from its start");
        }
        snapshot
    }

    fn put(&self, stream: &StreamId, snapshot: Snapshot) {
        crash_point(Point::SnapshotBeforePut);
        // Also instead of a newer one: that may be another module's, or of events that are no more.
        if let Err(error) = self.0.insert(stream.as_str(), encode(&snapshot)) {
            warn(stream, &error);
        }
        crash_point(Point::SnapshotAfterPut);
    }
}

fn warn(stream: &StreamId, error: &sled::Error) {
    tracing::warn!(%stream, %error, "a snapshot could not be used; the stream is folded from its start");
}

pub(crate) fn encode(snapshot: &Snapshot) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(FIXED + snapshot.data.len());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&snapshot.revision.0.to_le_bytes());
    bytes.extend_from_slice(snapshot.event.0.as_bytes());
    bytes.extend_from_slice(&snapshot.module.0);
    bytes.push(u8::from(snapshot.state_version.is_some()));
    bytes.extend_from_slice(&snapshot.state_version.unwrap_or_default().to_le_bytes());
    bytes.extend_from_slice(&snapshot.data);
    let crc = crc32c::crc32c(&bytes[4..]);
    bytes[..4].copy_from_slice(&crc.to_le_bytes());
    bytes
}

pub(crate) fn decode(bytes: &[u8]) -> Option<Snapshot> {
    let (fixed, data) = bytes.split_at_checked(FIXED)?;
    if u32::from_le_bytes(fixed[..4].try_into().ok()?) != crc32c::crc32c(&bytes[4..]) {
        return None;
    }
    Some(Snapshot {
        revision: Revision(u64::from_le_bytes(fixed[4..12].try_into().ok()?)),
        event: EventId(Uuid::from_slice(&fixed[12..28]).ok()?),
        module: Digest(fixed[28..60].try_into().ok()?),
        state_version: match fixed[60] {
            0 => None,
            _ => Some(u32::from_le_bytes(fixed[61..65].try_into().ok()?)),
        },
        data: Bytes::copy_from_slice(data),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(revision: u64, state_version: Option<u32>) -> Snapshot {
        let data = Bytes::from_static(b"state");
        let event = EventId(Uuid::from_u128(u128::from(revision)));
        Snapshot { revision: Revision(revision), event, module: Digest::of(b"module"), state_version, data }
    }

    fn snapshots() -> (sled::Db, SledSnapshots, StreamId) {
        let db = sled::Config::new().temporary(true).open().unwrap();
        let tree = db.open_tree("snapshots").unwrap();
        (db, SledSnapshots(tree), StreamId::parse("account-1").unwrap())
    }

    #[test]
    fn the_last_snapshot_is_kept_also_where_there_was_a_newer_one() {
        let (_db, snapshots, stream) = snapshots();
        for kept in [snapshot(5, Some(2)), snapshot(3, None), snapshot(9, None)] {
            snapshots.put(&stream, kept.clone());
            assert_eq!(snapshots.get(&stream), Some(kept));
        }
    }

    #[test]
    fn a_damaged_snapshot_is_as_good_as_none() {
        let (_db, snapshots, stream) = snapshots();
        let mut bytes = encode(&snapshot(5, None));
        *bytes.last_mut().unwrap() ^= 1;
        snapshots.0.insert(stream.as_str(), bytes).unwrap();
        assert_eq!(snapshots.get(&stream), None);
    }
}
