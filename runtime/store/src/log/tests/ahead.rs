//! Zeros go ahead of the log's end, so that groups are written where something was written before.

use super::*;
use disk::LogFile;
use std::io;
use std::ops::Range;

/// What was written to segments: where, and whether it was nothing but zeros.
type Writes = Arc<Mutex<Vec<(Range<u64>, bool)>>>;

struct Watched(ModelDisk, Writes);
struct WatchedFile(Arc<dyn LogFile>, Writes);

impl LogFile for WatchedFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        let written = self.0.write_at(offset, bytes)?;
        let zeros = bytes.iter().all(|byte| *byte == 0);
        self.1.lock().push((offset..offset + written as u64, zeros));
        Ok(written)
    }
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn read_at(&self, offset: u64, len: usize, into: &mut Vec<u8>) -> io::Result<()> {
        self.0.read_at(offset, len, into)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }
    fn sync_all(&self) -> io::Result<()> {
        self.0.sync_all()
    }
    fn allocate(&self, len: u64) -> io::Result<()> {
        self.0.allocate(len)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
}

impl Disk for Watched {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn LogFile>> {
        Ok(Arc::new(WatchedFile(self.0.open(path)?, Arc::clone(&self.1))))
    }
    fn create(&self, path: &Path) -> io::Result<Arc<dyn LogFile>> {
        Ok(Arc::new(WatchedFile(self.0.create(path)?, Arc::clone(&self.1))))
    }
    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        self.0.list(folder)
    }
    fn create_folder(&self, folder: &Path) -> io::Result<()> {
        self.0.create_folder(folder)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.0.remove(path)
    }
    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        self.0.sync_folder(folder)
    }
}

#[tokio::test]
async fn groups_go_where_zeros_were_written_and_zeros_are_no_more_than_the_groups() {
    let bed = Bed::new();
    let writes = Writes::default();
    let log = DiskLog::open(OpenLog {
        disk: Arc::new(Watched(bed.disk.clone(), Arc::clone(&writes))),
        folder: &Bed::folder(),
        name: "test",
        db: &bed.db,
        clock: Arc::clone(&bed.clock) as Arc<dyn Clock>,
        options: bed.options,
        stepped: false,
    })
    .unwrap();
    append_deposits(&log, &deposits(300)).await;

    let capacity = bed.disk.bytes(&Bed::segment(1)).len() as u64;
    let (mut ahead, mut zeros, mut fills, mut groups, mut inside) = (0, 0, 0, 0_u64, 0);
    let mut written = 0;
    for (range, is_zeros) in writes.lock().drain(..) {
        let len = range.end - range.start;
        if is_zeros {
            assert!(range.start >= ahead && range.end <= capacity, "{range:?} of {capacity}");
            (ahead, zeros, fills) = (range.end, zeros + len, fills + 1);
        } else {
            (groups, written) = (groups + 1, written + len);
            inside += u64::from(range.end <= ahead);
        }
    }
    assert!(inside * 10 >= groups * 9, "{inside} of {groups} groups went where zeros were");
    // Rounded up to a block each time.
    assert!(zeros <= written + fills * 4096, "{zeros} zeros for {written} bytes, {fills} times");
    drop(log);
    assert_eq!(all_data(&bed.open()).await, deposits(300));
}
