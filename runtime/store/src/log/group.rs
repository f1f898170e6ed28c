//! The way of one group, from staged commits to kept promises, one step after another.

use super::Core;
use super::format::{Reached, SparseEntry};
use super::sequencer::Taken;
use super::writer::WriteFailure;
use crate::index::Entry;
use crate::worker::{Next, Worker};
use ebb_domain::port::log::{Durable, GroupFailure, GroupSettler};
use ebb_faults::{Point, crash_point};
use std::time::Instant;

/// How far a group has got. Others may look at the log between any two of these, so a simulation stops there.
pub(crate) enum Stage {
    /// It takes no more commits.
    Taken(Taken),
    /// It is on disk, and nobody knows.
    Written(Taken),
    /// The index has it.
    Indexed(Taken),
    /// The durable mark covers it.
    Marked(Taken),
    /// It is not staged any more.
    Unstaged(GroupSettler),
}

impl Core {
    /// Writes one group, if one is staged.
    pub(super) fn sync_group(&self, indexer: &Worker) -> Next {
        let Some(mut stage) = self.take_group() else { return Next::Idle };
        while let Some(next) = self.advance(stage, indexer) {
            stage = next;
        }
        Next::Now
    }

    /// Takes what is staged, to be written.
    pub(super) fn take_group(&self) -> Option<Stage> {
        let taken = self.sequencer.lock().take()?;
        // The open group is empty again.
        self.room.notify_one();
        Some(Stage::Taken(taken))
    }

    /// The next step; none behind the last, or when the group failed.
    ///
    /// Their order is a promise: whoever hears of the mark finds the commits in the index, and whoever finds nothing
    /// staged any more, and so takes a commit for durable, finds it below the mark.
    pub(super) fn advance(&self, stage: Stage, indexer: &Worker) -> Option<Stage> {
        match stage {
            Stage::Taken(group) => self.write_group(group).map(Stage::Written),
            Stage::Written(mut group) => {
                self.index.merge(std::mem::take(&mut group.entries));
                crash_point(Point::GroupAfterIndex);
                Some(Stage::Indexed(group))
            }
            Stage::Indexed(group) => {
                let Reached { commit, position, .. } = group.to;
                self.durable.send_replace(Durable { commit, position });
                crash_point(Point::GroupAfterMark);
                Some(Stage::Marked(group))
            }
            Stage::Marked(group) => {
                self.sequencer.lock().settled(group.run);
                Some(Stage::Unstaged(group.settler))
            }
            Stage::Unstaged(settler) => {
                settler.durable();
                crash_point(Point::GroupAfterSettle);
                self.wake_indexer(indexer);
                None
            }
        }
    }

    /// Writes and syncs; entries then say where their commits lie.
    fn write_group(&self, mut group: Taken) -> Option<Taken> {
        let Taken { run, entries, to, .. } = &mut group;
        let sparse = entries.iter().zip(first_positions(entries, *to)).map(|(entry, position)| SparseEntry {
            commit: entry.commit,
            position,
            time: entry.recorded_at.0,
            offset: entry.location.offset,
        });
        let written = self.writer.lock().write_group(run, entries.len() as u32, *to, sparse, 0);
        match written {
            Ok(start) => {
                for entry in entries {
                    entry.location.segment = start.segment;
                    entry.location.offset += start.offset;
                }
                crash_point(Point::GroupAfterSync);
                Some(group)
            }
            Err(failure) => {
                self.fail(group.settler, &failure);
                None
            }
        }
    }

    fn fail(&self, settler: GroupSettler, failure: &WriteFailure) {
        let mut sequencer = self.sequencer.lock();
        let open = sequencer.rewind();
        let (why, unknown) = match failure {
            WriteFailure::NotWritten(error) => {
                let why = error.to_string();
                sequencer.block_until(Instant::now() + self.options.retry_after, why.clone());
                (why, false)
            }
            WriteFailure::Poisoned(error) | WriteFailure::Unknown(error) => {
                let why = format!("a sync failed: {error}");
                sequencer.poison(why.clone());
                (why, matches!(failure, WriteFailure::Unknown(_)))
            }
        };
        drop(sequencer);
        tracing::error!(log = self.name, %why, outcome_unknown = unknown, "a group of commits was not written");
        settler.failed(if unknown {
            GroupFailure::OutcomeUnknown(why.clone())
        } else {
            GroupFailure::Rewound(why.clone())
        });
        // Never written, so its outcome is known even where that of the group before it is not.
        open.failed(GroupFailure::Rewound(why));
        self.room.notify_one();
    }

    /// No thread could be started to write what is staged.
    pub(super) fn fail_staged(&self, error: &std::io::Error) {
        let open = self.sequencer.lock().rewind();
        open.failed(GroupFailure::Rewound(format!("no thread could be started: {error}")));
    }
}

/// Position of each entry's first event, given where the log stands behind the last one.
fn first_positions(entries: &[Entry], to: Reached) -> impl Iterator<Item = u64> + '_ {
    let count: u64 = entries.iter().map(|entry| u64::from(entry.count)).sum();
    let mut next = to.position.0 - count + 1;
    entries.iter().map(move |entry| {
        let first = next;
        next += u64::from(entry.count);
        first
    })
}
