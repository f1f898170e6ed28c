//! Snapshots in sled: shortcuts that may be lost at any time.

use bytes::Bytes;
use ebb_domain::digest::Digest;
use ebb_domain::event::Revision;
use ebb_domain::port::storage::{Snapshot, Snapshots};
use ebb_domain::stream::StreamId;
use ebb_faults::{Point, crash_point};

/// Bytes before the state: checksum, revision, module, whether there is a state version, state version.
const FIXED: usize = 4 + 8 + 32 + 1 + 4;

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
        let older = self.get(stream).is_none_or(|kept| {
            // Another module's snapshot is of no use to the one that writes now, however new it is.
            kept.revision <= snapshot.revision || kept.module != snapshot.module
        });
        if older && let Err(error) = self.0.insert(stream.as_str(), encode(&snapshot)) {
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
        module: Digest(fixed[12..44].try_into().ok()?),
        state_version: match fixed[44] {
            0 => None,
            _ => Some(u32::from_le_bytes(fixed[45..49].try_into().ok()?)),
        },
        data: Bytes::copy_from_slice(data),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(revision: u64, state_version: Option<u32>) -> Snapshot {
        let data = Bytes::from_static(b"state");
        Snapshot { revision: Revision(revision), module: Digest::of(b"module"), state_version, data }
    }

    fn snapshots() -> (sled::Db, SledSnapshots, StreamId) {
        let db = sled::Config::new().temporary(true).open().unwrap();
        let tree = db.open_tree("snapshots").unwrap();
        (db, SledSnapshots(tree), StreamId::parse("account-1").unwrap())
    }

    #[test]
    fn the_newest_snapshot_is_kept() {
        let (_db, snapshots, stream) = snapshots();
        snapshots.put(&stream, snapshot(5, Some(2)));
        snapshots.put(&stream, snapshot(3, None));
        assert_eq!(snapshots.get(&stream), Some(snapshot(5, Some(2))));
        snapshots.put(&stream, snapshot(9, None));
        assert_eq!(snapshots.get(&stream), Some(snapshot(9, None)));
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
