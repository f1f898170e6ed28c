//! Compiled modules on disk: one file for each module, kind and fingerprint of the engine, with a MAC over all of it.
//! Loading one runs machine code from it, so that nothing is loaded whose MAC does not fit.
//!
//! A file is the code as wasmtime serialises it (an ELF image, which says itself where it ends), a byte that says which of
//! the engines it is for (1 for the concurrent one, 0 for the other), then 32 bytes of keyed BLAKE3 over fingerprint,
//! digest, kind, code and that byte.

use crate::engines::{Engines, Tasks};
use crate::world::KindExt;
use ebb_domain::digest::Digest;
use ebb_domain::port::guest::ModuleKind;
use ebb_faults::{Point, crash_point};
use parking_lot::Mutex;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use wasmtime::component::Component;
use wasmtime::{Engine, Module, Precompiled};

const MAC_BYTES: usize = 32;

/// The largest buffer that is kept.
const BUFFER: usize = 2 << 20;
/// The largest artefact that is loaded at once: what takes a millisecond or so.
const AT_ONCE: u64 = 1 << 20;

/// Machine code in memory.
pub(crate) enum Artefact {
    Component(Component),
    /// A core module with a `_start`.
    Program(Module),
}

impl Artefact {
    /// The engine that it runs on.
    pub(crate) fn engine(&self) -> &Engine {
        match self {
            Self::Component(component) => component.engine(),
            Self::Program(module) => module.engine(),
        }
    }

    /// What it takes of memory.
    pub(crate) fn image_bytes(&self) -> u64 {
        let image = match self {
            Self::Component(component) => component.image_range(),
            Self::Program(module) => module.image_range(),
        };
        (image.end.addr() - image.start.addr()) as u64
    }
}

/// The folder of artefacts that this engine can load.
pub(crate) struct Artefacts {
    folder: PathBuf,
    fingerprint: String,
    key: [u8; 32],
    next_temporary: AtomicU64,
    /// What artefacts are read into: pages that are there cost a cold call less than fresh ones.
    buffer: Mutex<Vec<u8>>,
}

impl Artefacts {
    /// Makes the folder, and throws away what other versions of the engine left in it: it can be compiled again.
    pub(crate) fn open(root: &Path, fingerprint: String, key: [u8; 32]) -> io::Result<Self> {
        let folder = root.join(&fingerprint);
        fs::create_dir_all(&folder)?;
        for entry in fs::read_dir(root)? {
            let entry = entry?;
            let name = entry.file_name();
            let ours = name.to_str().is_some_and(|name| {
                name.len() == fingerprint.len() && name.bytes().all(|byte| byte.is_ascii_hexdigit())
            });
            let foreign = ours && name.to_str() != Some(&fingerprint) && entry.file_type()?.is_dir();
            if foreign && let Err(error) = fs::remove_dir_all(entry.path()) {
                tracing::warn!(folder = %entry.path().display(), %error, "artefacts of another engine can't be removed");
            }
        }
        Ok(Self { folder, fingerprint, key, next_temporary: AtomicU64::new(0), buffer: Mutex::default() })
    }

    fn path(&self, digest: &Digest, kind: ModuleKind) -> PathBuf {
        self.folder.join(format!("{digest}.{}", kind.name()))
    }

    /// Whether there is one; whether it can be trusted is told when it is loaded.
    pub(crate) fn contains(&self, digest: &Digest, kind: ModuleKind) -> bool {
        self.path(digest, kind).is_file()
    }

    fn mac(&self, digest: &Digest, kind: ModuleKind, code: &[u8]) -> blake3::Hash {
        let mut mac = blake3::Hasher::new_keyed(&self.key);
        mac.update(self.fingerprint.as_bytes());
        mac.update(&digest.0);
        mac.update(kind.name().as_bytes());
        mac.update(&[0]);
        mac.update(code);
        mac.finalize()
    }

    /// Keeps an artefact; it is there whole or not at all, also after a crash.
    pub(crate) fn save(
        &self,
        digest: &Digest,
        kind: ModuleKind,
        mut code: Vec<u8>,
        tasks: Tasks,
    ) -> io::Result<()> {
        code.push(match tasks {
            Tasks::Without => 0,
            Tasks::With => 1,
        });
        let number = self.next_temporary.fetch_add(1, Ordering::Relaxed);
        let temporary = self.folder.join(format!("{}-{number}.tmp", std::process::id()));
        let written = (|| {
            let mut file = File::create(&temporary)?;
            file.write_all(&code)?;
            file.write_all(self.mac(digest, kind, &code).as_bytes())?;
            file.sync_all()?;
            crash_point(Point::ArtefactBeforeRename);
            fs::rename(&temporary, self.path(digest, kind))?;
            crash_point(Point::ArtefactAfterRename);
            File::open(&self.folder)?.sync_all()
        })();
        if written.is_err() {
            // What is left of it is removed if that is possible; its name is never read.
            drop(fs::remove_file(&temporary));
        }
        written
    }

    /// Throws an artefact away; one that stays is found out again when it is loaded.
    pub(crate) fn remove(&self, digest: &Digest, kind: ModuleKind) {
        drop(fs::remove_file(self.path(digest, kind)));
    }

    /// The artefact with its MAC checked, in memory for running; none if there is none that can be trusted.
    pub(crate) fn load(&self, engines: &Engines, digest: &Digest, kind: ModuleKind) -> Option<Artefact> {
        self.load_by(engines, digest, kind, |mut file, bytes| {
            bytes.clear();
            file.read_to_end(bytes).map(drop)
        })
        .ok()?
    }

    /// The same without waiting for the disk, or for anything that takes much longer than a millisecond.
    ///
    /// # Errors
    /// It is large, not there, or the system has not all of it in memory.
    pub(crate) fn load_at_once(
        &self,
        engines: &Engines,
        digest: &Digest,
        kind: ModuleKind,
    ) -> io::Result<Option<Artefact>> {
        self.load_by(engines, digest, kind, |file, bytes| {
            let length = file.metadata()?.len();
            if length > AT_ONCE {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            bytes.resize(length as usize, 0);
            read_cached(&file, bytes)
        })
    }

    fn load_by(
        &self,
        engines: &Engines,
        digest: &Digest,
        kind: ModuleKind,
        read: impl FnOnce(File, &mut Vec<u8>) -> io::Result<()>,
    ) -> io::Result<Option<Artefact>> {
        let path = self.path(digest, kind);
        let file = File::open(&path)?;
        let mut bytes =
            self.buffer.try_lock().map(|mut buffer| std::mem::take(&mut *buffer)).unwrap_or_default();
        let artefact = read(file, &mut bytes).map(|()| self.code(&bytes, &path, engines, digest, kind));
        if bytes.capacity() <= BUFFER
            && let Some(mut buffer) = self.buffer.try_lock()
        {
            *buffer = bytes;
        }
        artefact
    }

    fn code(
        &self,
        bytes: &[u8],
        path: &Path,
        engines: &Engines,
        digest: &Digest,
        kind: ModuleKind,
    ) -> Option<Artefact> {
        let (code, mac) = bytes.split_last_chunk::<MAC_BYTES>()?;
        // In constant time.
        if self.mac(digest, kind, code) != *mac {
            tracing::warn!(artefact = %path.display(), "the artefact is damaged or not ours: it is compiled again");
            return None;
        }
        let (tasks, code) = code.split_last()?;
        let engine = engines.get(if *tasks == 0 { Tasks::Without } else { Tasks::With });
        match engine.and_then(|engine| deserialize(&engine, code)) {
            Ok(code) => Some(code),
            Err(error) => {
                tracing::warn!(artefact = %path.display(), error = %format!("{error:#}"), "the artefact can't be loaded");
                None
            }
        }
    }
}

/// Reads all that there is room for, as long as none of it has to come from the disk.
#[cfg(target_os = "linux")]
fn read_cached(file: &File, bytes: &mut [u8]) -> io::Result<()> {
    use rustix::io::{ReadWriteFlags, preadv2};
    let mut read = 0;
    while read < bytes.len() {
        let rest = &mut [io::IoSliceMut::new(&mut bytes[read..])];
        match preadv2(file, rest, read as u64, ReadWriteFlags::NOWAIT)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            more => read += more,
        }
    }
    Ok(())
}

/// Elsewhere nobody can say.
#[cfg(not(target_os = "linux"))]
fn read_cached(_: &File, _: &mut [u8]) -> io::Result<()> {
    Err(io::ErrorKind::WouldBlock.into())
}

/// Machine code, ready to run. It is copied into memory of its own and not mapped from the file, so that nobody can
/// change it after its MAC was checked.
#[expect(unsafe_code, reason = "code can't be loaded without trusting it; the MAC is why it can be trusted")]
fn deserialize(engine: &Engine, code: &[u8]) -> wasmtime::Result<Artefact> {
    let is_module = Engine::detect_precompiled(code) == Some(Precompiled::Module);
    // SAFETY: `load` has checked the MAC of these very bytes under a key that only this node has, and `save` makes
    // one only for what `Engine::precompile_component` or `Engine::precompile_module` returned for this fingerprint.
    unsafe {
        if is_module {
            Module::deserialize(engine, code).map(Artefact::Program)
        } else {
            Component::deserialize(engine, code).map(Artefact::Component)
        }
    }
}
