//! The log on a disk in memory: conformance, crashes, full disks, failing syncs, indexes that lie.

use super::*;
use crate::testing::conformance::{Subject, all_data, append, commit, event, expecting, stream, with_key};
use crate::testing::{Crash, ManualClock, ModelDisk};
use ebb_domain::commit::IdempotencyKey;
use ebb_domain::port::log::{GroupFailure, Settlement};
use futures_util::FutureExt as _;
use proptest::prelude::*;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

mod ahead;

struct Bed {
    disk: ModelDisk,
    db: sled::Db,
    clock: Arc<ManualClock>,
    options: LogOptions,
}

impl Bed {
    fn new() -> Self {
        Self::on(ModelDisk::new())
    }

    fn on(disk: ModelDisk) -> Self {
        let db = sled::Config::new().temporary(true).open().unwrap();
        let options = LogOptions { retry_after: Duration::ZERO, ..LogOptions::default() };
        Self { disk, db, clock: ManualClock::new(), options }
    }

    fn folder() -> PathBuf {
        PathBuf::from("/log")
    }

    fn segment(sequence: u32) -> PathBuf {
        segment::path_of(&Self::folder(), sequence)
    }

    fn try_open(&self) -> Result<DiskLog, StorageError> {
        DiskLog::open(OpenLog {
            disk: Arc::new(self.disk.clone()),
            folder: &Self::folder(),
            name: "test",
            db: &self.db,
            clock: Arc::clone(&self.clock) as Arc<dyn Clock>,
            options: self.options,
            stepped: false,
        })
    }

    fn open(&self) -> DiskLog {
        self.try_open().unwrap()
    }
}

fn deposits(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("deposit {number}")).collect()
}

async fn append_deposits(log: &DiskLog, data: &[String]) {
    for data in data {
        append(log, commit("account-1", vec![event("Deposited", data)])).await;
    }
}

/// As a crash leaves it: no closing marker, and nothing that was not synced.
fn kill(bed: &Bed, log: DiskLog) {
    let before = bed.disk.copy();
    drop(log);
    for path in before.files() {
        let bytes = before.bytes(&path);
        bed.disk.tamper(&path, |now| *now = bytes);
    }
}

crate::event_log_tests!({
    let bed = Bed::new();
    Subject { log: Arc::new(bed.open()), clock: bed.clock, keep: None }
});

/// The same rules where everything is in sled at once, and nothing is found in memory.
mod indexed_at_once {
    use super::*;

    crate::event_log_tests!({
        let mut bed = Bed::new();
        bed.options.index_batch = 1;
        bed.options.index_after = Duration::ZERO;
        Subject { log: Arc::new(bed.open()), clock: bed.clock, keep: None }
    });
}

/// The same rules on the system's files.
mod on_real_files {
    use super::*;
    use crate::storage::{DiskStorage, StorageOptions};
    use ebb_domain::name::AppName;
    use ebb_domain::port::storage::Storage as _;

    crate::event_log_tests!({
        let clock = ManualClock::new();
        let folder = tempfile::tempdir().unwrap();
        let storage = DiskStorage::open(folder.path(), StorageOptions::new(clock.clone())).unwrap();
        let log = storage.open_log(&AppName::new("test").unwrap()).unwrap();
        Subject { log, clock, keep: Some(Box::new(folder)) }
    });
}

mod reopened {
    use super::*;

    // Every rule holds as well for a log that has something in it, was closed, and was opened again.
    #[tokio::test]
    async fn a_reopened_log_goes_on_where_it_stopped() {
        let bed = Bed::new();
        for round in 0..4 {
            let log = bed.open();
            assert_eq!(all_data(&log).await, deposits(round * 10));
            append_deposits(&log, &deposits(round * 10 + 10)[round * 10..]).await;
            assert_eq!(
                log.head(&stream("account-1")).unwrap().revision,
                Some(Revision(round as u64 * 10 + 9))
            );
            if round % 2 == 0 {
                log.close();
            } else {
                kill(&bed, log);
            }
        }
    }

    #[tokio::test]
    async fn each_opening_has_a_higher_epoch_even_if_nothing_is_appended() {
        let bed = Bed::new();
        let mut epochs = Vec::new();
        for round in 0..3 {
            drop(bed.open());
            kill(&bed, bed.open());
            let log = bed.open();
            append(&log, commit("account-1", vec![])).await;
            epochs.push(log.commit(CommitNumber(round + 1)).await.unwrap().unwrap().header.epoch);
        }
        assert_eq!(epochs, [3, 6, 9]);
    }

    #[tokio::test]
    async fn many_segments_are_read_as_one_log() {
        let bed = Bed::new();
        let data: Vec<String> = (0..60).map(|number| format!("{number} {}", "x".repeat(100_000))).collect();
        for half in data.chunks(30) {
            let log = bed.open();
            append_deposits(&log, half).await;
        }
        assert!(bed.disk.files().len() >= 3, "{:?}", bed.disk.files());
        let log = bed.open();
        assert_eq!(all_data(&log).await, data);
        for number in [1_u64, 13, 14, 42, 60] {
            let read = log.commit(CommitNumber(number)).await.unwrap().unwrap();
            assert_eq!(read.events[0].data, data[number as usize - 1]);
            let all = EventFilter::default();
            let batch =
                log.read(Position(number - 1), &all, ReadLimits { items: 1, bytes: 1 }).await.unwrap();
            assert_eq!(batch.events[0].position, Position(number));
        }
        let name = stream("account-1");
        let read =
            log.read_stream(&name, Revision(29), ReadLimits { items: 3, bytes: 1 << 20 }).await.unwrap();
        assert_eq!(read.iter().map(|event| event.revision.0).collect::<Vec<_>>(), [29, 30, 31]);
    }
}

mod recovery_rules {
    use super::*;

    /// A log of three groups, of which the last was torn off at any byte.
    #[tokio::test]
    async fn a_torn_tail_is_cut_at_every_byte() {
        let bed = Bed::new();
        let log = bed.open();
        append_deposits(&log, &deposits(2)).await;
        let whole = bed.disk.copy();
        let start = log.core.segments.get(1).unwrap().end() as usize;
        append_deposits(&log, &["torn".to_owned()]).await;
        let end = log.core.segments.get(1).unwrap().end() as usize;
        let bytes = bed.disk.bytes(&Bed::segment(1));
        drop(log);
        // A marker ends in zeros, and zeros are what is there when they were not written.
        let end = bytes[..end].iter().rposition(|byte| *byte != 0).unwrap();
        for cut in start..=end {
            let bed = Bed::on(whole.copy());
            bed.disk.tamper(&Bed::segment(1), |now| now[start..cut].copy_from_slice(&bytes[start..cut]));
            let log = bed.open();
            assert_eq!(all_data(&log).await, deposits(2), "cut at {cut}");
            let staged = append(&log, commit("account-1", vec![event("Deposited", "next")])).await;
            assert_eq!((staged.commit.0, staged.first_position.0), (3, 3));
        }
    }

    #[tokio::test]
    async fn a_flip_anywhere_in_what_was_acknowledged_keeps_the_log_closed() {
        let bed = Bed::new();
        let log = bed.open();
        append_deposits(&log, &deposits(2)).await;
        let end = log.core.segments.get(1).unwrap().end() as usize;
        // The clean end is what tells a flip in the last group from a torn tail.
        drop(log);
        for at in 0..end {
            let bed = Bed::on(bed.disk.copy());
            bed.disk.tamper(&Bed::segment(1), |bytes| bytes[at] ^= 1);
            let refused =
                bed.try_open().err().unwrap_or_else(|| panic!("opened with a flip at {at}")).to_string();
            assert!(refused.contains("/log/00000001.seg at offset"), "{refused}");
            assert!(refused.contains("ebb log verify") && refused.contains("ebb log repair"), "{refused}");
        }
    }

    #[tokio::test]
    async fn a_flip_in_a_sealed_segment_fails_the_read_that_meets_it() {
        let bed = Bed::new();
        let log = bed.open();
        append_deposits(&log, &(0..12).map(|_| "x".repeat(100_000)).collect::<Vec<_>>()).await;
        drop(log);
        bed.disk.tamper(&Bed::segment(1), |bytes| bytes[500_000] ^= 1);
        let log = bed.open();
        let mut failed = None;
        let mut after = Position::START;
        while failed.is_none() && after < Position(12) {
            match log.read(after, &EventFilter::default(), ReadLimits { items: 1, bytes: 1 }).await {
                Ok(batch) => after = batch.scanned_to,
                Err(error) => failed = Some(error),
            }
        }
        let Some(ReadError::Corrupt(text)) = failed else { panic!("{failed:?}") };
        assert!(text.contains("00000001.seg at offset 4"), "{text}");
    }

    /// The index that points to the damage is not to blame: it is kept, and everyone else is served.
    #[tokio::test]
    async fn a_stream_with_a_damaged_commit_fails_alone() {
        let bed = Bed::new();
        let log = bed.open();
        append_deposits(&log, &(0..12).map(|_| "x".repeat(100_000)).collect::<Vec<_>>()).await;
        let keyed = with_key(commit("account-2", vec![event("Opened", "1")]), "key");
        append(&log, keyed).await;
        drop(log);
        bed.disk.tamper(&Bed::segment(1), |bytes| bytes[500_000] ^= 1);
        let log = bed.open();
        for _ in 0..2 {
            let read = log.read_stream(&stream("account-1"), Revision(0), ReadLimits::PAGE).await;
            let Err(ReadError::Corrupt(text)) = read else { panic!("{read:?}") };
            assert!(text.contains("00000001.seg at offset 4"), "{text}");
        }
        let late = log.read_stream(&stream("account-1"), Revision(11), ReadLimits::PAGE).await.unwrap();
        assert_eq!(late.len(), 1, "what lies behind the damage is read");
        assert!(log.find_key("anonymous", "key").unwrap().is_some());
        for (name, revision) in [("account-1", 12), ("account-2", 1), ("account-3", 0)] {
            let staged = append(&log, commit(name, vec![event("Deposited", "1")])).await;
            assert_eq!(staged.first_revision, Revision(revision));
        }
    }

    #[tokio::test]
    async fn damage_in_a_segment_without_a_footer_is_named_where_it_is() {
        let bed = Bed::new();
        append_deposits(&bed.open(), &(0..12).map(|_| "x".repeat(100_000)).collect::<Vec<_>>()).await;
        bed.disk.tamper(&Bed::segment(1), |bytes| {
            bytes[500_000] ^= 1;
            *bytes.last_mut().unwrap() ^= 1;
        });
        let refused = bed.try_open().err().unwrap().to_string();
        assert!(refused.contains("00000001.seg at offset 4"), "{refused}");
    }

    #[tokio::test]
    async fn a_missing_segment_and_a_strange_one_keep_the_log_closed() {
        let bed = Bed::new();
        append_deposits(&bed.open(), &(0..12).map(|_| "x".repeat(100_000)).collect::<Vec<_>>()).await;
        let other = Bed::new();
        append_deposits(&other.open(), &(0..12).map(|_| "y".repeat(100_000)).collect::<Vec<_>>()).await;

        let without = Bed::on(bed.disk.copy());
        without.disk.remove(&Bed::segment(1)).unwrap();
        assert!(without.try_open().err().unwrap().to_string().contains("is not there"));

        let mixed = Bed::on(bed.disk.copy());
        let strange = other.disk.bytes(&Bed::segment(2));
        mixed.disk.tamper(&Bed::segment(2), |bytes| *bytes = strange);
        assert!(mixed.try_open().err().unwrap().to_string().contains("does not follow"));
    }

    #[tokio::test]
    async fn a_lost_footer_is_made_up_for_by_reading_the_segment() {
        let bed = Bed::new();
        let data: Vec<String> = (0..12).map(|number| format!("{number}{}", "x".repeat(100_000))).collect();
        append_deposits(&bed.open(), &data).await;
        bed.disk.tamper(&Bed::segment(1), |bytes| *bytes.last_mut().unwrap() ^= 1);
        assert_eq!(all_data(&bed.open()).await, data);
    }

    #[tokio::test]
    async fn a_record_with_an_unknown_required_flag_keeps_the_log_closed() {
        let bed = Bed::new();
        let log = bed.open();
        append_deposits(&log, &deposits(1)).await;
        let (start, seed) =
            (log.core.segments.get(1).unwrap().end(), log.core.segments.get(1).unwrap().header.seed());
        kill(&bed, log);
        let mut record = Vec::new();
        let at = format::start_frame(&mut record, format::Kind::Commit, 0x0100);
        format::finish_frame(&mut record, at);
        format::seal(&mut record, seed, start);
        bed.disk.tamper(&Bed::segment(1), |bytes| {
            bytes[start as usize..start as usize + record.len()].copy_from_slice(&record);
        });
        let refused = bed.try_open().err().unwrap().to_string();
        assert!(refused.contains("newer version of ebb"), "{refused}");
    }

    /// The process ended between making a segment's name and making it durable; the power goes later.
    #[tokio::test]
    async fn opening_makes_the_name_of_a_segment_durable() {
        let bed = Bed::new();
        append_deposits(&bed.open(), &deposits(3)).await;
        let bytes = bed.disk.bytes(&Bed::segment(1));
        let bed = Bed::new();
        bed.disk.create_folder(&Bed::folder()).unwrap();
        let file = bed.disk.create(&Bed::segment(1)).unwrap();
        disk::write_all(&*file, 0, &bytes).unwrap();
        file.sync_all().unwrap();
        append_deposits(&bed.open(), &deposits(4)[3..]).await;
        bed.disk.crash(|_, _, _| Crash::Lose);
        assert_eq!(all_data(&bed.open()).await, deposits(4));
    }

    /// Else the groups behind it would lie behind a hole after a power cut, and prove that something is missing.
    #[tokio::test]
    async fn a_closing_note_that_could_not_be_synced_is_written_again() {
        let bed = Bed::new();
        let log = bed.open();
        append_deposits(&log, &deposits(3)).await;
        bed.disk.fail_syncs(1);
        log.close();
        drop(log);
        append_deposits(&bed.open(), &deposits(4)[3..]).await;
        bed.disk.crash(|_, _, _| Crash::Lose);
        assert_eq!(all_data(&bed.open()).await, deposits(4));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Whatever of the unsynced writes a power cut keeps: nothing acknowledged is lost, nothing is half there.
        #[test]
        fn a_power_cut_loses_nothing_that_was_acknowledged(
            acknowledged in 0_usize..20, fates in proptest::collection::vec(0_usize..4000, 1..8)
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let bed = Bed::new();
                let log = bed.open();
                append_deposits(&log, &deposits(acknowledged)).await;
                // A group that is written and whose sync does not come back.
                bed.disk.fail_syncs(1);
                let mut staged = log.append(commit("account-1", vec![event("Deposited", "unknown")])).await.unwrap();
                assert!(matches!(staged.settlement.wait().await, Err(GroupFailure::OutcomeUnknown(_))));
                drop(log);
                let mut fates = fates.into_iter().cycle();
                bed.disk.crash(|_, _, _| match fates.next().unwrap() {
                    0 => Crash::Lose,
                    fate if fate % 5 == 0 => Crash::Keep,
                    fate => Crash::Tear(fate),
                });
                let found = all_data(&bed.open()).await;
                assert_eq!(found[..acknowledged], deposits(acknowledged));
                assert!(found.len() == acknowledged || found[acknowledged..] == ["unknown"]);
                // Opening made it durable, one way or the other.
                bed.disk.crash(|_, _, _| Crash::Lose);
                assert_eq!(all_data(&bed.open()).await, found);
            });
        }
    }
}

mod failures {
    use super::*;

    async fn rewound(settlement: &mut Settlement) {
        let failure = settlement.wait().await;
        assert!(matches!(failure, Err(GroupFailure::Rewound(_))), "{failure:?}");
    }

    #[tokio::test]
    async fn a_full_disk_rewinds_and_later_appends_are_dense() {
        let bed = Bed::new();
        let log = bed.open();
        append_deposits(&log, &deposits(2)).await;
        bed.disk.limit_space(Some(0));
        // The first segment has room for some; the second can't be made.
        let large = "x".repeat(300_000);
        let mut written = 2;
        loop {
            let new = with_key(
                expecting(commit("account-1", vec![event("Deposited", &large)]), Some(written - 1)),
                "full",
            );
            let keyed = NewCommit {
                idempotency: new
                    .idempotency
                    .map(|k| IdempotencyKey { key: format!("{written}").into(), ..k }),
                ..new
            };
            match log.append(keyed).await.unwrap().settlement.wait().await {
                Ok(()) => written += 1,
                Err(failure) => {
                    assert!(matches!(failure, GroupFailure::Rewound(_)), "{failure:?}");
                    break;
                }
            }
        }
        let head = log.head(&stream("account-1")).unwrap();
        assert_eq!(head.revision, Some(Revision(written - 1)), "staged state is gone");
        assert!(log.find_key("anonymous", &written.to_string()).unwrap().is_none(), "and so is its key");
        assert_eq!(all_data(&log).await.len() as u64, written);

        bed.disk.limit_space(None);
        let staged = append(&log, commit("account-1", vec![event("Deposited", &large)])).await;
        assert_eq!((staged.commit.0, staged.first_position.0), (written + 1, written + 1));
        kill(&bed, log);
        assert_eq!(all_data(&bed.open()).await.len() as u64, written + 1);
    }

    #[tokio::test]
    async fn a_full_disk_can_be_opened_and_read() {
        let bed = Bed::new();
        append_deposits(&bed.open(), &deposits(3)).await;
        bed.disk.limit_space(Some(0));
        assert_eq!(all_data(&bed.open()).await, deposits(3));
    }

    #[tokio::test]
    async fn while_the_disk_is_full_appends_are_refused_at_once() {
        let mut bed = Bed::new();
        bed.options.retry_after = Duration::from_secs(3600);
        bed.disk.limit_space(Some(0));
        let log = bed.open();
        let mut staged = log.append(commit("account-1", vec![event("Opened", "1")])).await.unwrap();
        rewound(&mut staged.settlement).await;
        let refused = log.append(commit("account-1", vec![event("Opened", "1")])).await;
        assert!(matches!(refused, Err(AppendError::Unavailable(_))), "{refused:?}");
    }

    #[tokio::test]
    async fn short_writes_are_completed() {
        let bed = Bed::new();
        bed.disk.shorten_writes(Some(7));
        append_deposits(&bed.open(), &deposits(5)).await;
        assert_eq!(all_data(&bed.open()).await, deposits(5));
    }

    #[tokio::test]
    async fn a_failed_sync_poisons_the_log_until_it_is_opened_again() {
        let bed = Bed::new();
        let log = bed.open();
        append_deposits(&log, &deposits(2)).await;
        bed.disk.fail_syncs(1);
        let mut staged = log.append(commit("account-1", vec![event("Deposited", "unknown")])).await.unwrap();
        let failure = staged.settlement.wait().await;
        assert!(matches!(failure, Err(GroupFailure::OutcomeUnknown(_))), "{failure:?}");
        let refused = log.append(commit("account-1", vec![])).await;
        assert!(matches!(refused, Err(AppendError::Poisoned(_))), "{refused:?}");
        assert_eq!(all_data(&log).await, deposits(2), "what is durable can be read");
        let syncs = bed.disk.syncs();
        log.close();
        assert_eq!(bed.disk.syncs(), syncs, "no sync is tried again");
        drop(log);
        append(&bed.open(), commit("account-1", vec![])).await;
    }
}

mod staging {
    use super::*;

    #[tokio::test]
    async fn pipelined_appends_share_syncs() {
        let bed = Bed::new();
        let log = bed.open();
        // Holding the writer keeps the first group from being written while the others are staged.
        let writer = log.core.writer.lock();
        let before = bed.disk.syncs();
        let mut staged = Vec::new();
        for (number, data) in deposits(100).iter().enumerate() {
            let new = expecting(
                commit("account-1", vec![event("Deposited", data)]),
                (number as u64).checked_sub(1),
            );
            staged.push(log.append(new).now_or_never().unwrap().unwrap());
        }
        drop(writer);
        for staged in &mut staged {
            staged.settlement.wait().await.unwrap();
        }
        assert!(bed.disk.syncs() - before <= 2, "{} syncs", bed.disk.syncs() - before);
        assert_eq!(all_data(&log).await, deposits(100));
    }

    #[tokio::test]
    async fn a_full_group_makes_appends_wait_their_turn() {
        let mut bed = Bed::new();
        bed.options.group_commits = 4;
        let log = Arc::new(bed.open());
        let writer = log.core.writer.lock();
        let appends: Vec<_> = deposits(40)
            .iter()
            .map(|data| log.append(commit("account-1", vec![event("Deposited", data)])))
            .collect();
        drop(writer);
        // Polled in the other order: the order of calls counts.
        for append in futures_util::future::join_all(appends.into_iter().rev()).await {
            append.unwrap().settlement.wait().await.unwrap();
        }
        assert_eq!(all_data(&*log).await, deposits(40));
    }

    #[tokio::test]
    async fn an_append_that_was_given_up_while_it_waited_leaves_nothing_behind() {
        let mut bed = Bed::new();
        bed.options.group_commits = 1;
        let log = bed.open();
        let writer = log.core.writer.lock();
        let kept =
            log.append(commit("account-1", vec![event("Deposited", "a")])).now_or_never().unwrap().unwrap();
        let given_up: Vec<_> =
            (0..5).map(|_| log.append(commit("account-1", vec![event("Deposited", "b")]))).collect();
        let waits = log.append(commit("account-1", vec![event("Deposited", "c")]));
        drop(given_up);
        drop(writer);
        waits.await.unwrap().settlement.wait().await.unwrap();
        assert!(kept.settlement.is_durable());
        let data = all_data(&log).await;
        assert_eq!((data.first().unwrap().as_str(), data.last().unwrap().as_str()), ("a", "c"));
        assert_eq!(log.core.sequencer.lock().waiting, 0);
    }

    #[tokio::test]
    async fn an_idle_log_has_no_thread() {
        let mut bed = Bed::new();
        bed.options.idle = Duration::ZERO;
        bed.options.index_after = Duration::ZERO;
        let log = bed.open();
        for _ in 0..2 {
            append(&log, commit("account-1", vec![event("Deposited", "1")])).await;
            log.workers().into_iter().for_each(Worker::join);
        }
        assert_eq!(log.index().indexed(), 2, "the index is up to date");
    }

    #[tokio::test]
    async fn closing_writes_what_is_staged_and_refuses_more() {
        let bed = Bed::new();
        let log = bed.open();
        let staged = log.append(commit("account-1", vec![event("Deposited", "1")])).await.unwrap();
        log.close();
        assert!(staged.settlement.is_durable());
        let refused = log.append(commit("account-1", vec![])).await;
        assert!(matches!(refused, Err(AppendError::Unavailable(_))), "{refused:?}");
        assert_eq!(all_data(&log).await, ["1"]);
    }
}

mod indexes {
    use super::*;

    async fn filled(bed: &Bed) {
        let log = bed.open();
        for number in 0..600 {
            let name = format!("account-{}", number % 7);
            let new =
                with_key(commit(&name, vec![event("Deposited", &number.to_string())]), &number.to_string());
            log.append(new).await.unwrap();
        }
    }

    async fn check(log: &DiskLog) {
        for account in 0..7_u64 {
            let name = stream(&format!("account-{account}"));
            let count = (600 - account).div_ceil(7);
            assert_eq!(log.head(&name).unwrap().revision, Some(Revision(count - 1)));
            let events = log.read_stream(&name, Revision(0), ReadLimits::PAGE).await.unwrap();
            let expected: Vec<String> = (0..count).map(|number| (number * 7 + account).to_string()).collect();
            assert_eq!(events.iter().map(|event| event.data.clone()).collect::<Vec<_>>(), expected);
        }
        for number in [0_u64, 300, 599] {
            let found = log.find_key("anonymous", &number.to_string()).unwrap().unwrap();
            assert_eq!(found.commit.0, number + 1);
        }
    }

    #[tokio::test]
    async fn what_is_not_in_the_index_yet_is_found_in_memory() {
        let mut bed = Bed::new();
        bed.options.index_after = Duration::from_secs(3600);
        filled(&bed).await;
        let log = bed.open();
        check(&log).await;
        while log.index().flush_batch().unwrap() {
            check(&log).await;
        }
    }

    /// A log with 600 commits of which the index has a part, in no order that follows theirs.
    async fn half_indexed(bed: &mut Bed) -> DiskLog {
        bed.options.index_after = Duration::from_secs(3600);
        let log = bed.open();
        for number in 0..600 {
            let name = format!("account-{}", number % 7);
            let new =
                with_key(commit(&name, vec![event("Deposited", &number.to_string())]), &number.to_string());
            append(&log, new).await;
        }
        assert!(log.index().flush_batch().unwrap());
        assert_eq!(log.index().indexed(), 0, "there is more to come");
        log
    }

    /// What a crash leaves of the index.
    fn crash_index(bed: &Bed, log: DiskLog) {
        let tree = || bed.db.open_tree(index_tree("test")).unwrap();
        let before: Vec<_> = tree().iter().map(Result::unwrap).collect();
        kill(bed, log);
        tree().clear().unwrap();
        before.into_iter().for_each(|(key, value)| drop(tree().insert(key, value).unwrap()));
    }

    #[tokio::test]
    async fn a_generation_that_a_crash_cut_short_goes_in_again() {
        let mut bed = Bed::new();
        let log = half_indexed(&mut bed).await;
        crash_index(&bed, log);
        let log = bed.open();
        assert_eq!(log.index().indexed(), 0, "caught up with, not built again");
        check(&log).await;
        while log.index().flush_batch().unwrap() {}
        check(&log).await;
    }

    #[tokio::test]
    async fn a_generation_that_was_cut_short_is_noticed_on_a_log_that_was_set_back() {
        let mut bed = Bed::new();
        append_deposits(&bed.open(), &deposits(3)).await;
        let backup = bed.disk.copy();
        bed.options.index_after = Duration::from_secs(3600);
        let log = bed.open();
        let later = |number: u64| format!("account-later{number}");
        for number in 0..600 {
            append(&log, commit(&later(number), vec![event("Opened", "1")])).await;
        }
        assert!(log.index().flush_batch().unwrap());
        assert_eq!(log.index().indexed(), 3, "the mark alone fits the backup");
        crash_index(&bed, log);
        for path in backup.files() {
            let bytes = backup.bytes(&path);
            bed.disk.tamper(&path, |now| *now = bytes);
        }
        let log = bed.open();
        for number in 0..600 {
            assert_eq!(log.head(&stream(&later(number))).unwrap().revision, None);
        }
        assert_eq!(log.head(&stream("account-1")).unwrap().revision, Some(Revision(2)));
    }

    #[tokio::test]
    async fn a_rebuild_in_the_middle_of_a_generation_loses_nothing() {
        let mut bed = Bed::new();
        let log = half_indexed(&mut bed).await;
        rebuild(log.index(), &log.core.segments, None, &mut |_| ()).unwrap();
        check(&log).await;
        while log.index().flush_batch().unwrap() {}
        check(&log).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_rebuild_while_commits_move_to_the_index_loses_none() {
        let mut bed = Bed::new();
        bed.options.index_batch = 1;
        let log = Arc::new(bed.open());
        for round in 0..40_u64 {
            append(&*log, commit("account-1", vec![event("Deposited", "1")])).await;
            let flushing = {
                let log = Arc::clone(&log);
                tokio::task::spawn_blocking(move || while log.index().flush_batch().unwrap() {})
            };
            rebuild(log.index(), &log.core.segments, None, &mut |_| ()).unwrap();
            flushing.await.unwrap();
            log.core.index.forget_recent();
            assert_eq!(log.head(&stream("account-1")).unwrap().revision, Some(Revision(round)));
        }
    }

    #[tokio::test]
    async fn a_remembered_key_comes_with_its_commit() {
        let bed = Bed::new();
        filled(&bed).await;
        let found = bed.open().find_key("anonymous", "300").unwrap().unwrap();
        assert_eq!(&*found.decided.unwrap().events[0].data, b"300");
    }

    #[tokio::test]
    async fn a_deleted_index_is_built_again() {
        let bed = Bed::new();
        filled(&bed).await;
        bed.db.drop_tree(index_tree("test")).unwrap();
        check(&bed.open()).await;
    }

    #[tokio::test]
    async fn an_index_that_is_behind_catches_up() {
        let bed = Bed::new();
        let log = bed.open();
        append_deposits(&log, &deposits(3)).await;
        drop(log);
        let old: Vec<_> = bed.db.open_tree(index_tree("test")).unwrap().iter().map(Result::unwrap).collect();
        let log = bed.open();
        append_deposits(&log, &deposits(6)[3..]).await;
        drop(log);
        let tree = bed.db.open_tree(index_tree("test")).unwrap();
        tree.clear().unwrap();
        old.into_iter().for_each(|(key, value)| drop(tree.insert(key, value).unwrap()));
        let log = bed.open();
        assert_eq!(log.head(&stream("account-1")).unwrap().revision, Some(Revision(5)));
        let read = log.read_stream(&stream("account-1"), Revision(0), ReadLimits::PAGE).await.unwrap();
        assert_eq!(read.len(), 6);
    }

    #[tokio::test]
    async fn an_index_that_is_ahead_of_the_log_or_of_another_log_is_built_again() {
        let bed = Bed::new();
        let log = bed.open();
        append_deposits(&log, &deposits(3)).await;
        drop(log);
        let backup = bed.disk.copy();
        append_deposits(&bed.open(), &deposits(6)[3..]).await;
        // The log is set back, and goes on in another way.
        for path in backup.files() {
            let bytes = backup.bytes(&path);
            bed.disk.tamper(&path, |now| *now = bytes);
        }
        let log = bed.open();
        assert_eq!(log.head(&stream("account-1")).unwrap().revision, Some(Revision(2)));
        append(&log, commit("account-2", vec![event("Opened", "1")])).await;
        drop(log);

        let other = Bed { db: bed.db.clone(), ..Bed::new() };
        let log = other.open();
        assert_eq!(log.head(&stream("account-1")).unwrap().revision, None);
    }

    /// The same number of the same length at the same place, and yet another commit.
    #[tokio::test]
    async fn an_index_of_a_log_that_was_set_back_and_went_on_in_another_way_is_built_again() {
        let bed = Bed::new();
        append_deposits(&bed.open(), &deposits(3)).await;
        let went_on = Bed { clock: Arc::clone(&bed.clock), ..Bed::on(bed.disk.copy()) };
        append_deposits(&bed.open(), &deposits(5)[3..]).await;
        went_on.clock.advance(Duration::from_secs(1));
        let log = went_on.open();
        for data in &deposits(5)[3..] {
            append(&log, commit("account-2", vec![event("Deposited", data)])).await;
        }
        drop(log);
        // The index of the one, and the log of the other.
        let log = Bed { db: bed.db.clone(), ..went_on }.open();
        for (name, revision) in [("account-1", 2), ("account-2", 1)] {
            assert_eq!(log.head(&stream(name)).unwrap().revision, Some(Revision(revision)), "{name}");
        }
    }

    #[tokio::test]
    async fn entries_that_lie_are_noticed_and_the_index_is_built_again() {
        let bed = Bed::new();
        filled(&bed).await;
        let tree = bed.db.open_tree(index_tree("test")).unwrap();
        // Every value is swapped with that of another key of the same kind.
        let all: Vec<_> = tree.iter().map(Result::unwrap).filter(|(key, _)| key[0] != 0).collect();
        for kind in [2, b'a'] {
            let kind: Vec<_> = all.iter().filter(|(key, _)| key[0] == kind).collect();
            for (index, (key, _)) in kind.iter().enumerate() {
                tree.insert(key, kind[(index + 1) % kind.len()].1.clone()).unwrap();
            }
        }
        let log = bed.open();
        assert_eq!(log.find_key("anonymous", "300").unwrap().unwrap().commit.0, 301);
        check(&log).await;
    }

    #[tokio::test]
    async fn reindexing_on_demand_tells_how_far_it_is() {
        let bed = Bed::new();
        filled(&bed).await;
        let log = bed.open();
        let mut last = CommitNumber(0);
        log.reindex(&mut |commit| last = commit).unwrap();
        assert_eq!(last.0, 600);
        check(&log).await;
    }

    #[tokio::test]
    async fn keys_of_days_gone_by_are_swept_out() {
        let bed = Bed::new();
        filled(&bed).await;
        let log = bed.open();
        let keys = || bed.db.open_tree(index_tree("test")).unwrap().scan_prefix([2]).count();
        assert_eq!(keys(), 600);
        for day in 0..4 {
            bed.clock.advance(Duration::from_secs(24 * 3600));
            append(&log, with_key(commit("account-1", vec![]), &format!("day {day}"))).await;
            while log.index().flush_batch().unwrap() {}
        }
        assert_eq!(keys(), 2, "of today and of yesterday");
    }
}

mod tools {
    use super::*;
    use crate::log::repair::repair;
    use crate::log::verify::{Progress, verify};

    async fn filled() -> (Bed, Vec<String>) {
        let bed = Bed::new();
        let data: Vec<String> = (0..40).map(|number| format!("{number} {}", "x".repeat(90_000))).collect();
        append_deposits(&bed.open(), &data).await;
        (bed, data)
    }

    fn disk(bed: &Bed) -> Arc<dyn Disk> {
        Arc::new(bed.disk.clone())
    }

    #[tokio::test]
    async fn verifying_reports_what_there_is_and_what_is_damaged() {
        let (bed, _) = filled().await;
        let mut progress = Vec::new();
        let report = verify(&disk(&bed), &Bed::folder(), &mut |at: Progress| progress.push(at)).unwrap();
        assert_eq!((report.segments, report.commits, report.position), (3, 40, 40));
        assert_eq!((report.damage.len(), report.torn_bytes), (0, 0));
        assert!(progress.is_sorted_by_key(|at| at.done) && progress.last().unwrap().done == report.bytes);

        bed.disk.tamper(&Bed::segment(1), |bytes| bytes[400_000] ^= 1);
        bed.disk.tamper(&Bed::segment(2), |bytes| bytes[300] ^= 1);
        let report = verify(&disk(&bed), &Bed::folder(), &mut |_| ()).unwrap();
        let files: Vec<_> = report.damage.iter().map(|damage| damage.file.clone()).collect();
        assert_eq!(files, [Bed::segment(1), Bed::segment(2)]);
    }

    #[tokio::test]
    async fn repairing_takes_the_damaged_bytes_from_a_backup_and_keeps_the_rest() {
        let (bed, mut data) = filled().await;
        let backup = bed.disk.copy();
        {
            // The log has gone on since the backup.
            let log = bed.open();
            append_deposits(&log, &["since the backup".to_owned()]).await;
            data.push("since the backup".to_owned());
        }
        for path in backup.files() {
            let name = PathBuf::from("/backup").join(path.file_name().unwrap());
            let bytes = backup.bytes(&path);
            bed.disk.create(&name).unwrap();
            bed.disk.tamper(&name, |now| *now = bytes);
        }
        bed.disk.create_folder(Path::new("/backup")).unwrap();
        bed.disk.tamper(&Bed::segment(1), |bytes| bytes[400_000..600_000].fill(0xaa));
        bed.disk.tamper(&Bed::segment(3), |bytes| bytes[20] ^= 1);
        bed.disk.remove(&Bed::segment(2)).unwrap();
        assert!(bed.try_open().is_err());

        let report = repair(&disk(&bed), &Bed::folder(), Path::new("/backup"), &mut |_| ()).unwrap();
        assert_eq!((report.mended.len(), report.commits), (3, 41));
        assert!(report.mended[0].bytes > 0 && report.mended[0].bytes < 500_000);
        let kept = report.mended[0].kept_as.clone().unwrap();
        assert_eq!(bed.disk.bytes(&kept)[500_000], 0xaa, "what was damaged is kept aside");
        assert_eq!(all_data(&bed.open()).await, data);
    }

    /// Takes so many renames, and then the process is gone.
    struct CutShort(ModelDisk, std::sync::atomic::AtomicU32);

    impl Disk for CutShort {
        fn rename(&self, from: &Path, to: &Path) -> std::io::Result<()> {
            let before =
                self.1.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
            before.map_err(|_| std::io::Error::other("the process was killed"))?;
            self.0.rename(from, to)
        }
        fn open(&self, path: &Path) -> std::io::Result<Arc<dyn disk::LogFile>> {
            self.0.open(path)
        }
        fn create(&self, path: &Path) -> std::io::Result<Arc<dyn disk::LogFile>> {
            self.0.create(path)
        }
        fn list(&self, folder: &Path) -> std::io::Result<Vec<String>> {
            self.0.list(folder)
        }
        fn create_folder(&self, folder: &Path) -> std::io::Result<()> {
            self.0.create_folder(folder)
        }
        fn remove(&self, path: &Path) -> std::io::Result<()> {
            self.0.remove(path)
        }
        fn sync_folder(&self, folder: &Path) -> std::io::Result<()> {
            self.0.sync_folder(folder)
        }
    }

    /// A copy of the log, in a folder of its own on the same disk.
    fn back_up(bed: &Bed) {
        bed.disk.create_folder(Path::new("/backup")).unwrap();
        for path in bed.disk.copy().files() {
            let name = PathBuf::from("/backup").join(path.file_name().unwrap());
            let bytes = bed.disk.bytes(&path);
            bed.disk.create(&name).unwrap();
            bed.disk.tamper(&name, |now| *now = bytes);
        }
    }

    #[tokio::test]
    async fn a_repair_that_is_cut_short_anywhere_is_done_again_and_loses_nothing_since_the_backup() {
        let (bed, mut data) = filled().await;
        back_up(&bed);
        append_deposits(&bed.open(), &["since the backup".to_owned()]).await;
        data.push("since the backup".to_owned());
        for segment in [1, 3] {
            bed.disk.tamper(&Bed::segment(segment), |bytes| bytes[400_000] ^= 1);
        }
        for renames in 0..2 {
            let bed = Bed::on(bed.disk.copy());
            let cut_short: Arc<dyn Disk> = Arc::new(CutShort(bed.disk.clone(), renames.into()));
            repair(&cut_short, &Bed::folder(), Path::new("/backup"), &mut |_| ()).unwrap_err();
            repair(&disk(&bed), &Bed::folder(), Path::new("/backup"), &mut |_| ()).unwrap();
            assert_eq!(all_data(&bed.open()).await, data, "cut short after {renames} segments");
        }
    }

    #[tokio::test]
    async fn a_lost_footer_is_made_again_also_where_the_backup_has_none() {
        let (bed, data) = filled().await;
        bed.disk.create_folder(Path::new("/backup")).unwrap();
        let whole = bed.disk.bytes(&Bed::segment(1));
        bed.disk.tamper(&Bed::segment(1), |bytes| *bytes.last_mut().unwrap() ^= 1);
        repair(&disk(&bed), &Bed::folder(), Path::new("/backup"), &mut |_| ()).unwrap();
        assert!(bed.disk.bytes(&Bed::segment(1)) == whole, "it only says again what the groups say");
        assert_eq!(all_data(&bed.open()).await, data);
    }

    /// The file may end with the last group, without any space behind it: after a repair, say.
    #[tokio::test]
    async fn what_lies_behind_the_damage_is_never_cut_by_a_repair() {
        let bed = Bed::new();
        let log = bed.open();
        append_deposits(&log, &deposits(3)).await;
        let end = log.core.segments.get(1).unwrap().end() as usize;
        kill(&bed, log);
        bed.disk.create_folder(Path::new("/backup")).unwrap();
        bed.disk.tamper(&Bed::segment(1), |bytes| {
            bytes.truncate(end);
            // In the last group but one.
            let at = bytes.windows(9).position(|window| window == b"deposit 1").unwrap();
            bytes[at] ^= 1;
        });
        let refused = repair(&disk(&bed), &Bed::folder(), Path::new("/backup"), &mut |_| ()).unwrap_err();
        assert!(refused.to_string().contains("the backup lacks it"), "{refused}");
    }

    #[tokio::test]
    async fn what_the_backup_lacks_is_not_invented() {
        let (bed, _) = filled().await;
        bed.disk.create_folder(Path::new("/backup")).unwrap();
        bed.disk.tamper(&Bed::segment(1), |bytes| bytes[400_000] ^= 1);
        let before = bed.disk.bytes(&Bed::segment(1));
        let refused = repair(&disk(&bed), &Bed::folder(), Path::new("/backup"), &mut |_| ()).unwrap_err();
        assert!(refused.to_string().contains("the backup lacks it"), "{refused}");
        assert_eq!(bed.disk.bytes(&Bed::segment(1)), before);
    }
}
