//! Ebbtide's storage: the append-only log, its indexes in sled, snapshots, files by digest, and read models in SQLite.
//!
//! The log is the truth; everything else here can be built again from it. The byte format is in `docs/log-format.md`.

pub(crate) mod blobs;
pub(crate) mod index;
pub mod lock;
pub mod log;
pub mod models;
pub mod storage;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub(crate) mod worker;
