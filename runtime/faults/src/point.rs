//! The named points.

use std::fmt;

macro_rules! points {
    ($($(#[doc = $doc:literal])+ $point:ident = $name:literal,)+) => {
        /// A moment at which a crash might find something half done.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Point {
            $($(#[doc = $doc])+ $point,)+
        }

        impl Point {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$point),+];

            /// Its name in `EBB_FAULTS`.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$point => $name,)+
                }
            }
        }
    };
}

points! {
    /// A group is about to be written.
    GroupBeforeWrite = "group.before-write",
    /// It is written, and not synced.
    GroupAfterWrite = "group.after-write",
    /// It is synced, and neither indexed nor visible.
    GroupAfterSync = "group.after-sync",
    /// It is in the index's memory, and below no mark.
    GroupAfterIndex = "group.after-index",
    /// The durable mark covers it; nobody was answered.
    GroupAfterMark = "group.after-mark",
    /// Whoever waits for it is being told.
    GroupAfterSettle = "group.after-settle",
    /// A segment is full, and has no footer yet.
    RollBeforeSeal = "roll.before-seal",
    /// Its footer is written, and not synced.
    RollAfterFooter = "roll.after-footer",
    /// It is sealed, and there is no next segment.
    RollAfterSeal = "roll.after-seal",
    /// The next segment is written under its temporary name, and not synced.
    RollAfterCreate = "roll.after-create",
    /// It has its name, which is not durable.
    RollAfterRename = "roll.after-rename",
    /// It is made, and empty.
    RollDone = "roll.done",
    /// A log is being opened: its last group was written again, and not synced.
    OpenAfterRewrite = "open.after-rewrite",
    /// A log was opened, and its writer's epoch is not written.
    OpenBeforeEpoch = "open.before-epoch",
    /// The epoch is durable, the index not opened.
    OpenAfterEpoch = "open.after-epoch",
    /// A log is open, its index up to date.
    OpenDone = "open.done",
    /// A log is being closed, and its note of that not written.
    CloseBeforeNote = "close.before-note",
    /// A log is closed; the index was not flushed.
    CloseAfterNote = "close.after-note",
    /// An app was closed with nothing left to do, and the note of that is not in place.
    RestBeforeNote = "rest.before-note",
    /// The note is in place.
    RestAfterNote = "rest.after-note",
    /// A batch is about to go to the index.
    IndexBeforeBatch = "index.before-batch",
    /// It is in the index, and still in memory too.
    IndexAfterBatch = "index.after-batch",
    /// The index was thrown away, and is being built again.
    IndexRebuild = "index.rebuild",
    /// A snapshot is about to be kept.
    SnapshotBeforePut = "snapshot.before-put",
    /// A snapshot is kept.
    SnapshotAfterPut = "snapshot.after-put",
    /// Rows and mark are written, and not committed.
    RowsBeforeCommit = "rows.before-commit",
    /// Rows and mark are committed; nobody knows.
    RowsAfterCommit = "rows.after-commit",
    /// The pointer to the serving version is written under its temporary name.
    ServingBeforeRename = "serving.before-rename",
    /// The pointer is moved; the version before is still there.
    ServingAfterRename = "serving.after-rename",
    /// A version that served was replaced; its file is about to go.
    VersionBeforeRemoval = "version.before-removal",
    /// A command has come in; nothing was looked at.
    CommandReceived = "command.received",
    /// Its outcome is durable; the answer is about to be given.
    CommandBeforeAnswer = "command.before-answer",
    /// Records of a topic are durable in the log; the broker was not told that they are done.
    IntakeAfterAppend = "intake.after-append",
    /// The consumer was told that they are done; the broker may not know yet.
    IntakeAfterDone = "intake.after-done",
    /// The broker has events; how far the relay has got may not be there.
    RelayAfterPublish = "relay.after-publish",
    /// The broker has a dead letter; its record is not parked.
    DeadLetterAfterSend = "dead-letter.after-send",
    /// The broker has a reply; the command that it answers is not known to be done.
    ReplyAfterSend = "reply.after-send",
    /// An artefact is written under its temporary name.
    ArtefactBeforeRename = "artefact.before-rename",
    /// An artefact has its name.
    ArtefactAfterRename = "artefact.after-rename",
    /// A file of a bundle is written under its temporary name.
    BlobBeforeRename = "blob.before-rename",
    /// A file of a bundle has its name.
    BlobAfterRename = "blob.after-rename",
    /// All files of a bundle are kept; the deployment is not recorded.
    DeployBeforeCommit = "deploy.before-commit",
    /// It is recorded; what served before serves.
    DeployAfterCommit = "deploy.after-commit",
    /// It serves; nobody was told.
    DeployAfterSwap = "deploy.after-swap",
    /// The removal of an app is recorded; it still serves.
    RemoveAfterCommit = "remove.after-commit",
    /// It is closed; all its data is there.
    PurgeBeforeRows = "purge.before-rows",
    /// Its rows are gone, its log is not.
    PurgeAfterRows = "purge.after-rows",
    /// Its indexes are gone, its log is not.
    PurgeAfterIndex = "purge.after-index",
    /// Its log is gone; nobody was told.
    PurgeDone = "purge.done",
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_two_points_have_the_same_name() {
        let names: BTreeSet<_> = Point::ALL.iter().map(|point| point.name()).collect();
        assert_eq!(names.len(), Point::ALL.len());
    }
}
