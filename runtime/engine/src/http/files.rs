//! `wasi:filesystem` 0.2 over an instance's [`Tmp`]: what standard libraries see as files. There is one folder, `/tmp`,
//! and there are no links.
//!
//! wasmtime's bindings have a type of their own for what is open. Only its number is shown to guests; behind the number
//! is a [`Handle`] of ours.

use super::state::State;
use super::tmp::{Handle, Opening, Stat, Tmp};
use bytes::Bytes;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use wasmtime::component::{HasData, Linker, Resource, ResourceTable};
use wasmtime_wasi::p2::bindings::clocks::wall_clock::Datetime;
use wasmtime_wasi::p2::bindings::filesystem::preopens;
use wasmtime_wasi::p2::bindings::filesystem::types::{
    self, Advice, Descriptor, DescriptorFlags, DescriptorStat, DescriptorType, DirectoryEntry,
    DirectoryEntryStream, ErrorCode, Filesize, MetadataHashValue, NewTimestamp, OpenFlags, PathFlags,
};
use wasmtime_wasi::p2::{
    DynInputStream, DynOutputStream, FsError, FsResult, InputStream, OutputStream, Pollable, StreamError,
    StreamResult,
};

/// Most bytes of one read.
const READ_BYTES: usize = 64 << 10;
/// Most bytes of one write to a stream.
const WRITE_BYTES: usize = 64 << 10;

/// The files of an instance, for as long as a call of the host takes.
pub(super) struct Files<'a> {
    pub(super) table: &'a mut ResourceTable,
    pub(super) tmp: Option<&'a Tmp>,
}

struct HasFiles;

impl HasData for HasFiles {
    type Data<'a> = Files<'a>;
}

/// Links files to what [`State`] has of them, in place of the files of wasmtime.
pub(super) fn add_to_linker(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    types::add_to_linker::<_, HasFiles>(linker, State::files)?;
    preopens::add_to_linker::<_, HasFiles>(linker, State::files)?;
    linker.allow_shadowing(false);
    Ok(())
}

/// A folder that is being listed, and the name that was read last: a copy of all of them would be memory that nobody
/// counts.
struct Entries {
    folder: Handle,
    last: Option<String>,
}

impl Files<'_> {
    fn push(&mut self, handle: Handle) -> FsResult<Resource<Descriptor>> {
        let ours = self.table.push(handle).map_err(FsError::trap)?;
        Ok(Resource::new_own(ours.rep()))
    }

    fn handle(&self, theirs: &Resource<Descriptor>) -> FsResult<&Handle> {
        self.table.get(&Resource::new_borrow(theirs.rep())).map_err(FsError::trap)
    }
}

impl preopens::Host for Files<'_> {
    fn get_directories(&mut self) -> wasmtime::Result<Vec<(Resource<Descriptor>, String)>> {
        let Some(tmp) = self.tmp else { return Ok(Vec::new()) };
        let root = self.table.push(tmp.root())?;
        Ok(vec![(Resource::new_own(root.rep()), "/tmp".to_owned())])
    }
}

impl types::Host for Files<'_> {
    fn convert_error_code(&mut self, error: FsError) -> wasmtime::Result<ErrorCode> {
        error.downcast()
    }

    fn filesystem_error_code(
        &mut self,
        error: Resource<wasmtime::Error>,
    ) -> wasmtime::Result<Option<ErrorCode>> {
        Ok(self.table.get(&error)?.downcast_ref::<NotDone>().map(|NotDone(code)| *code))
    }
}

impl types::HostDescriptor for Files<'_> {
    async fn advise(
        &mut self,
        file: Resource<Descriptor>,
        _: Filesize,
        _: Filesize,
        _: Advice,
    ) -> FsResult<()> {
        self.handle(&file).map(drop)
    }

    async fn sync_data(&mut self, file: Resource<Descriptor>) -> FsResult<()> {
        self.handle(&file).map(drop)
    }

    async fn sync(&mut self, file: Resource<Descriptor>) -> FsResult<()> {
        self.handle(&file).map(drop)
    }

    async fn get_flags(&mut self, file: Resource<Descriptor>) -> FsResult<DescriptorFlags> {
        let handle = self.handle(&file)?;
        let write = match (handle.may_write(), handle.stat()?.is_folder) {
            (false, _) => DescriptorFlags::empty(),
            (true, false) => DescriptorFlags::WRITE,
            (true, true) => DescriptorFlags::MUTATE_DIRECTORY,
        };
        Ok(DescriptorFlags::READ | write)
    }

    async fn get_type(&mut self, file: Resource<Descriptor>) -> FsResult<DescriptorType> {
        Ok(kind(self.handle(&file)?.stat()?.is_folder))
    }

    async fn set_size(&mut self, file: Resource<Descriptor>, size: Filesize) -> FsResult<()> {
        Ok(self.handle(&file)?.set_size(size)?)
    }

    async fn set_times(
        &mut self,
        file: Resource<Descriptor>,
        read: NewTimestamp,
        written: NewTimestamp,
    ) -> FsResult<()> {
        let (read, written) = (time(read)?, time(written)?);
        Ok(self.handle(&file)?.set_times(read, written)?)
    }

    async fn set_times_at(
        &mut self,
        folder: Resource<Descriptor>,
        _: PathFlags,
        path: String,
        read: NewTimestamp,
        written: NewTimestamp,
    ) -> FsResult<()> {
        let (read, written) = (time(read)?, time(written)?);
        Ok(self.handle(&folder)?.set_times_at(&path, read, written)?)
    }

    async fn read(
        &mut self,
        file: Resource<Descriptor>,
        length: Filesize,
        at: Filesize,
    ) -> FsResult<(Vec<u8>, bool)> {
        let most = usize::try_from(length).unwrap_or(READ_BYTES).min(READ_BYTES);
        let bytes = self.handle(&file)?.read(at, most)?;
        let is_end = bytes.is_empty();
        Ok((bytes, is_end))
    }

    async fn write(
        &mut self,
        file: Resource<Descriptor>,
        bytes: Vec<u8>,
        at: Filesize,
    ) -> FsResult<Filesize> {
        self.handle(&file)?.write(Some(at), &bytes)?;
        Ok(bytes.len() as Filesize)
    }

    async fn read_directory(
        &mut self,
        folder: Resource<Descriptor>,
    ) -> FsResult<Resource<DirectoryEntryStream>> {
        let folder = self.handle(&folder)?.clone();
        if !folder.stat()?.is_folder {
            return Err(ErrorCode::NotDirectory.into());
        }
        let ours = self.table.push(Entries { folder, last: None }).map_err(FsError::trap)?;
        Ok(Resource::new_own(ours.rep()))
    }

    async fn create_directory_at(&mut self, folder: Resource<Descriptor>, path: String) -> FsResult<()> {
        Ok(self.handle(&folder)?.make_folder(&path)?)
    }

    async fn stat(&mut self, file: Resource<Descriptor>) -> FsResult<DescriptorStat> {
        Ok(stat(&self.handle(&file)?.stat()?))
    }

    async fn stat_at(
        &mut self,
        folder: Resource<Descriptor>,
        _: PathFlags,
        path: String,
    ) -> FsResult<DescriptorStat> {
        Ok(stat(&self.handle(&folder)?.stat_at(&path)?))
    }

    async fn link_at(
        &mut self,
        _: Resource<Descriptor>,
        _: PathFlags,
        _: String,
        _: Resource<Descriptor>,
        _: String,
    ) -> FsResult<()> {
        Err(ErrorCode::Unsupported.into())
    }

    async fn symlink_at(&mut self, _: Resource<Descriptor>, _: String, _: String) -> FsResult<()> {
        Err(ErrorCode::Unsupported.into())
    }

    async fn readlink_at(&mut self, folder: Resource<Descriptor>, path: String) -> FsResult<String> {
        self.handle(&folder)?.stat_at(&path)?;
        // It is there, and no link.
        Err(ErrorCode::Invalid.into())
    }

    async fn open_at(
        &mut self,
        folder: Resource<Descriptor>,
        _: PathFlags,
        path: String,
        how: OpenFlags,
        flags: DescriptorFlags,
    ) -> FsResult<Resource<Descriptor>> {
        let opening = Opening {
            create: how.contains(OpenFlags::CREATE),
            exclusive: how.contains(OpenFlags::EXCLUSIVE),
            truncate: how.contains(OpenFlags::TRUNCATE),
            folder: how.contains(OpenFlags::DIRECTORY),
            write: flags.contains(DescriptorFlags::WRITE),
        };
        let opened = self.handle(&folder)?.open(&path, opening)?;
        self.push(opened)
    }

    fn drop(&mut self, file: Resource<Descriptor>) -> wasmtime::Result<()> {
        self.table.delete(Resource::<Handle>::new_own(file.rep()))?;
        Ok(())
    }

    async fn remove_directory_at(&mut self, folder: Resource<Descriptor>, path: String) -> FsResult<()> {
        Ok(self.handle(&folder)?.remove_folder(&path)?)
    }

    async fn unlink_file_at(&mut self, folder: Resource<Descriptor>, path: String) -> FsResult<()> {
        Ok(self.handle(&folder)?.remove_file(&path)?)
    }

    async fn rename_at(
        &mut self,
        folder: Resource<Descriptor>,
        old: String,
        to: Resource<Descriptor>,
        new: String,
    ) -> FsResult<()> {
        Ok(self.handle(&folder)?.rename(&old, self.handle(&to)?, &new)?)
    }

    fn read_via_stream(
        &mut self,
        file: Resource<Descriptor>,
        at: Filesize,
    ) -> FsResult<Resource<DynInputStream>> {
        let file = self.handle(&file)?.clone();
        if file.stat()?.is_folder {
            return Err(ErrorCode::IsDirectory.into());
        }
        let stream: DynInputStream = Box::new(Reader { file, at });
        self.table.push(stream).map_err(FsError::trap)
    }

    fn write_via_stream(
        &mut self,
        file: Resource<Descriptor>,
        at: Filesize,
    ) -> FsResult<Resource<DynOutputStream>> {
        self.writer(&file, Some(at))
    }

    fn append_via_stream(&mut self, file: Resource<Descriptor>) -> FsResult<Resource<DynOutputStream>> {
        self.writer(&file, None)
    }

    async fn is_same_object(
        &mut self,
        one: Resource<Descriptor>,
        other: Resource<Descriptor>,
    ) -> wasmtime::Result<bool> {
        let handle =
            |theirs: &Resource<Descriptor>| self.table.get::<Handle>(&Resource::new_borrow(theirs.rep()));
        Ok(handle(&one)?.is(handle(&other)?))
    }

    async fn metadata_hash(&mut self, file: Resource<Descriptor>) -> FsResult<MetadataHashValue> {
        Ok(hash(&self.handle(&file)?.stat()?))
    }

    async fn metadata_hash_at(
        &mut self,
        folder: Resource<Descriptor>,
        _: PathFlags,
        path: String,
    ) -> FsResult<MetadataHashValue> {
        Ok(hash(&self.handle(&folder)?.stat_at(&path)?))
    }
}

impl types::HostDirectoryEntryStream for Files<'_> {
    async fn read_directory_entry(
        &mut self,
        stream: Resource<DirectoryEntryStream>,
    ) -> FsResult<Option<DirectoryEntry>> {
        let ours = Resource::<Entries>::new_borrow(stream.rep());
        let entries = self.table.get_mut(&ours).map_err(FsError::trap)?;
        let Some((name, is_folder)) = entries.folder.next_name(entries.last.as_deref())? else {
            return Ok(None);
        };
        entries.last = Some(name.clone());
        Ok(Some(DirectoryEntry { type_: kind(is_folder), name }))
    }

    fn drop(&mut self, stream: Resource<DirectoryEntryStream>) -> wasmtime::Result<()> {
        self.table.delete(Resource::<Entries>::new_own(stream.rep()))?;
        Ok(())
    }
}

impl Files<'_> {
    fn writer(
        &mut self,
        file: &Resource<Descriptor>,
        at: Option<u64>,
    ) -> FsResult<Resource<DynOutputStream>> {
        let file = self.handle(file)?.clone();
        if file.stat()?.is_folder {
            return Err(ErrorCode::IsDirectory.into());
        }
        if !file.may_write() {
            return Err(ErrorCode::NotPermitted.into());
        }
        let stream: DynOutputStream = Box::new(Writer { file, at });
        self.table.push(stream).map_err(FsError::trap)
    }
}

/// Why a stream of a file ended, for `filesystem-error-code`.
#[derive(Debug, thiserror::Error)]
#[error("{0:?}")]
struct NotDone(ErrorCode);

fn not_done(code: ErrorCode) -> StreamError {
    StreamError::LastOperationFailed(NotDone(code).into())
}

/// A file, read from a place on.
struct Reader {
    file: Handle,
    at: u64,
}

#[wasmtime_wasi::async_trait]
impl Pollable for Reader {
    async fn ready(&mut self) {}
}

#[wasmtime_wasi::async_trait]
impl InputStream for Reader {
    fn read(&mut self, most: usize) -> StreamResult<Bytes> {
        let bytes = self.file.read(self.at, most.min(READ_BYTES)).map_err(not_done)?;
        if bytes.is_empty() && most > 0 {
            return Err(StreamError::Closed);
        }
        self.at += bytes.len() as u64;
        Ok(bytes.into())
    }
}

/// A file, written from a place on, or behind its end.
struct Writer {
    file: Handle,
    at: Option<u64>,
}

#[wasmtime_wasi::async_trait]
impl Pollable for Writer {
    async fn ready(&mut self) {}
}

#[wasmtime_wasi::async_trait]
impl OutputStream for Writer {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.file.write(self.at, &bytes).map_err(not_done)?;
        if let Some(at) = &mut self.at {
            *at += bytes.len() as u64;
        }
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(WRITE_BYTES)
    }
}

fn kind(is_folder: bool) -> DescriptorType {
    if is_folder { DescriptorType::Directory } else { DescriptorType::RegularFile }
}

fn stat(stat: &Stat) -> DescriptorStat {
    DescriptorStat {
        type_: kind(stat.is_folder),
        link_count: 1,
        size: stat.size,
        data_access_timestamp: Some(datetime(stat.times.read)),
        data_modification_timestamp: Some(datetime(stat.times.written)),
        status_change_timestamp: Some(datetime(stat.times.changed)),
    }
}

fn hash(stat: &Stat) -> MetadataHashValue {
    MetadataHashValue { lower: stat.id, upper: 0 }
}

fn datetime(time: SystemTime) -> Datetime {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    Datetime { seconds: since.as_secs(), nanoseconds: since.subsec_nanos() }
}

fn time(new: NewTimestamp) -> Result<Option<SystemTime>, ErrorCode> {
    Ok(match new {
        NewTimestamp::NoChange => None,
        NewTimestamp::Now => Some(SystemTime::now()),
        NewTimestamp::Timestamp(Datetime { seconds, nanoseconds }) => {
            let since = Duration::new(seconds, nanoseconds.min(999_999_999));
            Some(UNIX_EPOCH.checked_add(since).ok_or(ErrorCode::Overflow)?)
        }
    })
}
