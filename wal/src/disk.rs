//! What the log asks of a disk: a directory of files with positional reads and writes, and honest syncs.
//!
//! [`RealDisk`] is a directory of the operating system; [`crate::sim::SimDisk`] one in memory that can lose power.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Read, Seek, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
#[cfg(target_os = "linux")]
use rustix::fs::FallocateFlags;
use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::map::FileMap;

#[cfg(not(any(target_os = "linux", target_os = "macos")))]
compile_error!(
    "graven-wal knows how to make bytes durable on Linux and macOS only; add this system's way to `RealFile::sync_data`"
);

/// One directory.
pub trait Disk: Clone + Send + Sync + 'static {
    /// Its files.
    type File: DiskFile;
    /// Held as long as the directory is used; dropping it lets the next one in.
    type Lock: Send + 'static;

    /// Names of the files and directories in it; an error of kind `NotFound` when it does not exist.
    ///
    /// # Errors
    /// The disk's.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Creates an empty file for reading and writing; it must not exist. Its name is durable after [`Disk::sync_dir`].
    ///
    /// # Errors
    /// The disk's; `AlreadyExists` when there is such a file.
    fn create(&self, name: &str, mode: WriteMode) -> io::Result<Self::File>;

    /// Opens a file for reading, and for writing if `mode` says so.
    ///
    /// # Errors
    /// The disk's; `NotFound` when there is no such file.
    fn open(&self, name: &str, mode: Option<WriteMode>) -> io::Result<Self::File>;

    /// Gives a file another name, replacing what had it. Durable after [`Disk::sync_dir`].
    ///
    /// # Errors
    /// The disk's.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file. Durable after [`Disk::sync_dir`].
    ///
    /// # Errors
    /// The disk's.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Removes a file that was never finished, if there is one, durably: a new one under its name can then be renamed without that rename ever
    /// meaning the old one. Changes of names that no sync followed may be lost one by one, and of a removal, a creation and a rename the
    /// rename alone may be left.
    ///
    /// # Errors
    /// The disk's.
    fn remove_unfinished(&self, name: &str) -> io::Result<()> {
        match self.remove(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.and_then(|()| self.sync_dir()),
        }
    }

    /// Makes a directory inside this one; files in it are named `directory/file`. It may be there already.
    ///
    /// # Errors
    /// The disk's.
    fn create_dir(&self, name: &str) -> io::Result<()>;

    /// Makes creations, renames and removals in a directory inside this one durable.
    ///
    /// # Errors
    /// The disk's.
    fn sync_subdir(&self, name: &str) -> io::Result<()>;

    /// Makes creations, renames and removals durable.
    ///
    /// # Errors
    /// The disk's.
    fn sync_dir(&self) -> io::Result<()>;

    /// Takes the directory for this process.
    ///
    /// # Errors
    /// [`LockError::Held`] when somebody has it.
    fn lock(&self, name: &str) -> Result<Self::Lock, LockError>;

    /// The process that holds the lock, if any; takes nothing.
    ///
    /// # Errors
    /// The disk's.
    fn lock_holder(&self, name: &str) -> io::Result<Option<u32>>;

    /// Bytes that can still be allocated.
    ///
    /// # Errors
    /// The disk's.
    fn free_bytes(&self) -> io::Result<u64>;

    /// A number nobody can guess; here because simulated disks must draw it from their seed.
    ///
    /// # Errors
    /// The system's.
    fn random(&self) -> io::Result<u64>;
}

/// An open file.
pub trait DiskFile: Send + Sync + 'static {
    /// Its length.
    ///
    /// # Errors
    /// The disk's.
    fn len(&self) -> io::Result<u64>;

    /// Reads up to `into.len()` bytes; fewer only at the end of the file.
    ///
    /// # Errors
    /// The disk's.
    fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<usize>;

    /// Writes all slices one behind the other.
    ///
    /// # Errors
    /// The disk's; some bytes may have been written.
    fn write_vectored_at(&self, at: u64, slices: &mut [IoSlice<'_>]) -> io::Result<()>;

    /// Makes everything written to this file durable.
    ///
    /// # Errors
    /// The disk's. What was not durable before may be lost, and a later success says nothing about it.
    fn sync_data(&self) -> io::Result<()>;

    /// Begins to write these bytes to the medium, without waiting: a later [`DiskFile::sync_data`] has less to do. A hint; promises
    /// nothing, and an error shows with that sync.
    fn write_back(&self, _at: u64, _len: u64) {}

    /// Makes the file at least `len` bytes long with its space taken from the disk; new bytes read as zero.
    ///
    /// # Errors
    /// `StorageFull` when there is no room.
    fn allocate(&self, len: u64) -> io::Result<()>;

    /// A read-only view of the file's first `len` bytes.
    ///
    /// # Errors
    /// The disk's.
    fn map(&self, len: u64) -> io::Result<Arc<dyn DiskMap>>;

    /// Whether the file is empty.
    ///
    /// # Errors
    /// The disk's.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Writes all bytes.
    ///
    /// # Errors
    /// The disk's; some bytes may have been written.
    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_vectored_at(at, &mut [IoSlice::new(bytes)])
    }

    /// Fills `into`.
    ///
    /// # Errors
    /// The disk's; `UnexpectedEof` when the file ends before.
    fn read_exact_at(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        if self.read_at(at, into)? == into.len() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

/// A read-only view of a file that is written behind it.
///
/// Callers ask only for bytes below the written mark of their segment: those never change again.
pub trait DiskMap: Send + Sync + 'static {
    /// The bytes `from..to`, borrowed from the view where that is possible. `written` is the mark below which no byte
    /// changes any more; `to <= written`.
    fn slice(&self, from: u64, to: u64, written: u64) -> Bytes;

    /// Copies bytes from `at`; for the few that are needed of a record's header.
    fn copy(&self, at: u64, into: &mut [u8], written: u64);

    /// Makes the bytes `from..to` resident, so that later reads do not wait for the disk.
    fn populate(&self, from: u64, to: u64);

    /// Alive as long as anybody can still read through this view, be it only through bytes borrowed from it.
    fn lease(&self) -> Lease;

    /// Whether no bytes borrowed from this view are left. The caller is the only one who has the view.
    fn is_unborrowed(&mut self) -> bool;
}

/// Outlived by nothing that can read through a view: no strong reference is left when nobody can any more.
pub type Lease = std::sync::Weak<dyn std::any::Any + Send + Sync>;

/// When a write returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WriteMode {
    /// When the bytes are on their way; durable after a sync.
    #[default]
    Buffered,
    /// When the bytes are durable (`O_DSYNC`).
    Durable,
    /// When the bytes are on their way, past the page cache (`O_DIRECT`); durable after a sync. Place, length and address of
    /// each write must be multiples of [`DIRECT_BYTES`].
    Direct,
}

/// The unit of direct writes. No device in use asks for more, and less would have some of them read what is around it.
pub const DIRECT_BYTES: u64 = 4096;

/// Why the directory could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody has it.
    #[error("locked by process {pid}")]
    Held {
        /// Who; 0 when unknown.
        pid: u32,
    },
    /// The disk said no.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A directory of the operating system.
#[derive(Debug, Clone)]
pub struct RealDisk {
    path: Arc<PathBuf>,
}

impl RealDisk {
    /// The directory at `path`, which need not exist yet. Touches nothing.
    #[must_use]
    pub fn open(path: impl Into<PathBuf>) -> RealDisk {
        RealDisk { path: Arc::new(path.into()) }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn options(mode: WriteMode) -> OpenOptions {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        match mode {
            WriteMode::Buffered => {}
            WriteMode::Durable => {
                options.custom_flags(rustix::fs::OFlags::DSYNC.bits() as i32);
            }
            #[cfg(target_os = "linux")]
            WriteMode::Direct => {
                options.custom_flags(rustix::fs::OFlags::DIRECT.bits() as i32);
            }
            #[cfg(not(target_os = "linux"))]
            WriteMode::Direct => {}
        }
        options
    }

    /// An error of kind `Unsupported` where the directory's file system, or the system, cannot write around its cache.
    fn check_direct(&self, mode: WriteMode) -> io::Result<()> {
        if mode == WriteMode::Direct && !knows_direct(&self.path)? {
            return Err(no_direct());
        }
        Ok(())
    }

    fn holder(file: &File) -> u32 {
        let mut text = String::new();
        let mut from = file;
        // The holder may be about to write it: then we say "unknown" rather than wait.
        let read = from.rewind().and_then(|()| from.take(32).read_to_string(&mut text));
        read.ok().and_then(|_| text.trim().parse().ok()).unwrap_or(0)
    }
}

/// The lock file, held as long as this lives.
#[derive(Debug)]
pub struct RealLock {
    _file: File,
}

impl Disk for RealDisk {
    type File = RealFile;
    type Lock = RealLock;

    fn list(&self) -> io::Result<Vec<String>> {
        let names = std::fs::read_dir(&*self.path)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        names.collect()
    }

    fn create(&self, name: &str, mode: WriteMode) -> io::Result<RealFile> {
        self.check_direct(mode)?;
        Ok(RealFile { file: Self::options(mode).create_new(true).open(self.path.join(name))? })
    }

    fn open(&self, name: &str, mode: Option<WriteMode>) -> io::Result<RealFile> {
        let path = self.path.join(name);
        let file = match mode {
            Some(mode) => {
                self.check_direct(mode)?;
                match Self::options(mode).open(path) {
                    Err(error) if mode == WriteMode::Direct && is_refusal(&error) => return Err(no_direct()),
                    opened => opened?,
                }
            }
            None => File::open(path)?,
        };
        Ok(RealFile { file })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.path.join(name))
    }

    fn create_dir(&self, name: &str) -> io::Result<()> {
        match std::fs::create_dir(self.path.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        }
    }

    fn sync_subdir(&self, name: &str) -> io::Result<()> {
        File::open(self.path.join(name))?.sync_all()
    }

    fn sync_dir(&self) -> io::Result<()> {
        File::open(&*self.path)?.sync_all()
    }

    fn lock(&self, name: &str) -> Result<RealLock, LockError> {
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(self.path.join(name))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(LockError::Held { pid: Self::holder(&file) }),
            Err(error) => return Err(io::Error::from(error).into()),
        }
        let noted = file.set_len(0).and_then(|()| file.write_all(format!("{}\n", std::process::id()).as_bytes()));
        match noted {
            // Who holds it stands nowhere then; it is held all the same, and a full disk keeps no node from starting.
            Err(error) if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {}
            noted => noted?,
        }
        Ok(RealLock { _file: file })
    }

    fn lock_holder(&self, name: &str) -> io::Result<Option<u32>> {
        let file = match File::open(self.path.join(name)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(None),
            Err(Errno::WOULDBLOCK) => Ok(Some(Self::holder(&file))),
            Err(error) => Err(error.into()),
        }
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(&*self.path)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn random(&self) -> io::Result<u64> {
        let mut number = [0; 8];
        File::open("/dev/urandom")?.read_exact(&mut number)?;
        Ok(u64::from_ne_bytes(number))
    }
}

/// What a file system says that does not know `O_DIRECT`.
fn is_refusal(error: &io::Error) -> bool {
    [Errno::INVAL, Errno::OPNOTSUPP].iter().any(|known| error.raw_os_error() == Some(known.raw_os_error()))
}

fn no_direct() -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, "this file system does not write around its cache (O_DIRECT)")
}

/// Some file systems in memory take the flag and have nothing to write around; their bytes go with the power in any case.
#[cfg(target_os = "linux")]
fn knows_direct(dir: &Path) -> io::Result<bool> {
    const TMPFS: i64 = 0x0102_1994;
    const RAMFS: i64 = 0x8584_58f6;
    #[allow(clippy::useless_conversion, reason = "its type differs by architecture")]
    let kind = i64::from(rustix::fs::statfs(dir)?.f_type) & 0xffff_ffff;
    Ok(kind != TMPFS && kind != RAMFS)
}

#[cfg(not(target_os = "linux"))]
fn knows_direct(_: &Path) -> io::Result<bool> {
    Ok(false)
}

/// A file of the operating system.
#[derive(Debug)]
pub struct RealFile {
    file: File,
}

/// What one vectored call takes at most on Linux and macOS (`IOV_MAX`).
const MAX_SLICES: usize = 1024;

impl DiskFile for RealFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < into.len() {
            match FileExt::read_at(&self.file, &mut into[filled..], at + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    fn write_vectored_at(&self, mut at: u64, mut slices: &mut [IoSlice<'_>]) -> io::Result<()> {
        IoSlice::advance_slices(&mut slices, 0);
        while !slices.is_empty() {
            let some = slices.len().min(MAX_SLICES);
            match rustix::io::pwritev(&self.file, &slices[..some], at) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    at += written as u64;
                    IoSlice::advance_slices(&mut slices, written);
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    #[cfg(target_os = "macos")]
    fn sync_data(&self) -> io::Result<()> {
        // A plain fsync leaves the bytes in the drive's cache.
        Ok(rustix::fs::fcntl_fullfsync(&self.file)?)
    }

    #[cfg(not(target_os = "macos"))]
    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    #[cfg(target_os = "linux")]
    fn write_back(&self, at: u64, len: u64) {
        // For bytes that are not written yet, Linux takes "not needed any more" as the wish to begin with it, and keeps them.
        if let Some(len) = std::num::NonZeroU64::new(len) {
            let _ = rustix::fs::fadvise(&self.file, at, Some(len), rustix::fs::Advice::DontNeed);
        }
    }

    #[cfg(target_os = "linux")]
    fn allocate(&self, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, len) {
            // Not every file system can; the zeroes written in preparation take the space then.
            Err(Errno::OPNOTSUPP) if self.len()? < len => self.file.set_len(len),
            Err(Errno::OPNOTSUPP) => Ok(()),
            done => Ok(done?),
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn allocate(&self, len: u64) -> io::Result<()> {
        if self.len()? < len { self.file.set_len(len) } else { Ok(()) }
    }

    fn map(&self, len: u64) -> io::Result<Arc<dyn DiskMap>> {
        Ok(Arc::new(FileMap::new(&self.file, len)?))
    }
}
