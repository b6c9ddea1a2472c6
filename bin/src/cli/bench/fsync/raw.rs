//! One file, written and made durable in the ways an operating system offers.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use graven_wal::raw::MappedFile;
use graven_wal::{Disk, DiskFile, DiskMap, RealDisk, WriteMode};

use super::measure::{Stop, Target};
use crate::cli::error::{CliResult, ErrorCode, Failure};

/// How bytes get to stable storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    Fdatasync,
    Dsync,
    DirectDsync,
    Msync,
}

impl Method {
    pub(super) const ALL: [Method; 4] = [Method::Fdatasync, Method::Dsync, Method::DirectDsync, Method::Msync];

    pub(super) fn name(self) -> &'static str {
        match self {
            Method::Fdatasync => "pwrite+fdatasync",
            Method::Dsync => "dsync",
            Method::DirectDsync => "direct+dsync",
            Method::Msync => "msync",
        }
    }
}

/// What was done to the file before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Prepared {
    /// It is empty and grows (with msync: all of it is a hole, because a map needs a length).
    Nothing,
    /// Its blocks are allocated and unwritten.
    Fallocate,
    /// Its blocks hold zeroes.
    ZeroFill,
    /// Its blocks hold other data.
    Recycled,
}

impl Prepared {
    pub(super) const ALL: [Prepared; 4] =
        [Prepared::Nothing, Prepared::Fallocate, Prepared::ZeroFill, Prepared::Recycled];

    pub(super) fn name(self) -> &'static str {
        match self {
            Prepared::Nothing => "nothing",
            Prepared::Fallocate => "fallocate",
            Prepared::ZeroFill => "zero-fill",
            Prepared::Recycled => "recycled",
        }
    }

    /// Whether a second pass over the file would meet something else than the first one.
    fn wears_off(self) -> bool {
        matches!(self, Prepared::Nothing | Prepared::Fallocate)
    }
}

/// A prepared file that takes batches.
pub(super) struct RawFile {
    disk: RealDisk,
    method: Method,
    prepared: Prepared,
    size: u64,
    at: u64,
    buffer: Aligned,
    /// What is written of the buffer: the batch, rounded up where the method needs it.
    len: usize,
    unit: usize,
    open: Option<Open>,
    stop: Stop,
}

/// The way in.
enum Open {
    /// A map is held open, as the log holds one of its segment.
    Plain(File, Option<Arc<dyn DiskMap>>),
    Mapped(MappedFile),
}

/// The only file in its directory.
const NAME: &str = "raw";
/// Filling goes in pieces of this size, each of them a moment to stop at.
const FILL_BYTES: usize = 1 << 20;

impl RawFile {
    /// Makes the file in `dir`; `None` when the file system does not know the method.
    pub(super) fn make(
        dir: PathBuf,
        method: Method,
        prepared: Prepared,
        size: u64,
        stop: &Stop,
    ) -> CliResult<Option<RawFile>> {
        let mut file = RawFile {
            disk: RealDisk::open(dir),
            method,
            prepared,
            size,
            at: 0,
            buffer: Aligned::filled(super::LARGEST_BATCH),
            len: 0,
            unit: 1,
            open: None,
            stop: stop.clone(),
        };
        file.fill()?;
        match file.open() {
            Ok(()) => Ok(Some(file)),
            Err(error) if method == Method::DirectDsync && error.raw_os_error().is_some_and(is_refusal) => Ok(None),
            Err(error) => Err(file.failure("open", &error)),
        }
    }

    /// From now on batches of this size, from the start of the file.
    pub(super) fn begin(&mut self, batch_bytes: usize) -> CliResult {
        self.len = batch_bytes.next_multiple_of(self.unit);
        if self.prepared.wears_off() {
            self.renew()?;
        }
        self.at = 0;
        Ok(())
    }

    /// Bytes written for a batch.
    pub(super) fn written_bytes(&self) -> usize {
        self.len
    }

    fn renew(&mut self) -> CliResult {
        self.open = None;
        self.fill()?;
        self.open().map_err(|error| self.failure("open", &error))?;
        self.at = 0;
        Ok(())
    }

    fn fill(&mut self) -> CliResult {
        let made = self.fill_file();
        made.map_err(|error| self.failure("prepare", &error))?;
        self.stop.check()
    }

    fn fill_file(&self) -> io::Result<()> {
        match self.disk.remove(NAME) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = self.disk.create(NAME, WriteMode::Buffered)?;
        match self.prepared {
            Prepared::Nothing => {}
            Prepared::Fallocate => file.allocate(self.size)?,
            Prepared::ZeroFill | Prepared::Recycled => {
                let filler = vec![if self.prepared == Prepared::ZeroFill { 0 } else { 0x5a }; FILL_BYTES];
                let mut at = 0;
                while at < self.size && !self.stop.is_set() {
                    let some = filler.len().min((self.size - at) as usize);
                    file.write_at(at, &filler[..some])?;
                    at += some as u64;
                }
            }
        }
        file.sync_data()?;
        self.disk.sync_dir()
    }

    fn open(&mut self) -> io::Result<()> {
        let path = self.disk.path().join(NAME);
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        let file = match self.method {
            Method::Fdatasync | Method::Msync => options.open(path)?,
            Method::Dsync => flagged(&mut options, rustix::fs::OFlags::DSYNC).open(path)?,
            Method::DirectDsync => {
                let file = open_direct(&mut options, path)?;
                self.unit = unit_of(&file);
                file
            }
        };
        self.open = Some(match self.method {
            Method::Msync => {
                if self.prepared == Prepared::Nothing {
                    file.set_len(self.size)?;
                    file.sync_all()?;
                }
                Open::Mapped(MappedFile::map(&file, self.size)?)
            }
            // An unbuffered write would have to throw out what is mapped.
            Method::DirectDsync => Open::Plain(file, None),
            _ if self.prepared == Prepared::Nothing => Open::Plain(file, None),
            _ => Open::Plain(file, Some(self.disk.open(NAME, None)?.map(self.size)?)),
        });
        Ok(())
    }

    fn failure(&self, operation: &str, error: &io::Error) -> Failure {
        io_failure(&format!("{operation} {}", self.disk.path().join(NAME).display()), error)
    }
}

impl Target for RawFile {
    fn ready(&mut self) -> CliResult<bool> {
        if self.at + self.len as u64 <= self.size {
            return Ok(true);
        }
        if self.prepared.wears_off() {
            self.renew()?;
        }
        self.at = 0;
        Ok(false)
    }

    fn write_synced(&mut self) -> CliResult {
        let bytes = &self.buffer.bytes()[..self.len];
        let done = match &mut self.open {
            Some(Open::Plain(file, _map)) => {
                let written = file.write_all_at(bytes, self.at);
                // The other methods are durable when the write returns.
                if self.method == Method::Fdatasync { written.and_then(|()| file.sync_data()) } else { written }
            }
            Some(Open::Mapped(map)) => {
                map.store(self.at, bytes);
                map.sync(self.at, bytes.len())
            }
            None => Err(io::ErrorKind::NotConnected.into()),
        };
        done.map_err(|error| self.failure("write", &error))?;
        self.at += self.len as u64;
        Ok(())
    }

    fn rest(&mut self) -> CliResult {
        Ok(())
    }
}

/// A failed call as the command tells it.
pub(super) fn io_failure(operation: &str, error: &io::Error) -> Failure {
    let code = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorCode::DiskFull,
        io::ErrorKind::PermissionDenied | io::ErrorKind::NotFound | io::ErrorKind::ReadOnlyFilesystem => {
            ErrorCode::Usage
        }
        _ => ErrorCode::Internal,
    };
    Failure::new(code, format!("cannot {operation}: {error}"))
}

fn flagged(options: &mut OpenOptions, flags: rustix::fs::OFlags) -> &mut OpenOptions {
    use std::os::unix::fs::OpenOptionsExt;
    options.custom_flags(flags.bits() as i32)
}

#[cfg(target_os = "linux")]
fn open_direct(options: &mut OpenOptions, path: PathBuf) -> io::Result<File> {
    flagged(options, rustix::fs::OFlags::DSYNC | rustix::fs::OFlags::DIRECT).open(path)
}

#[cfg(not(target_os = "linux"))]
fn open_direct(_: &mut OpenOptions, _: PathBuf) -> io::Result<File> {
    Err(rustix::io::Errno::INVAL.into())
}

#[cfg(target_os = "linux")]
fn unit_of(file: &File) -> usize {
    super::place::direct_unit(file)
}

#[cfg(not(target_os = "linux"))]
fn unit_of(_: &File) -> usize {
    1
}

/// What a file system says that does not know `O_DIRECT`.
fn is_refusal(errno: i32) -> bool {
    [rustix::io::Errno::INVAL, rustix::io::Errno::OPNOTSUPP].iter().any(|known| known.raw_os_error() == errno)
}

/// Bytes whose first one is at a multiple of a page, as unbuffered writes need it.
struct Aligned {
    bytes: Vec<u8>,
    from: usize,
}

/// At least the memory alignment that any device asks for.
const PAGE: usize = 4096;

impl Aligned {
    /// `len` bytes that do not compress well.
    fn filled(len: usize) -> Aligned {
        let mut bytes = vec![0; len + PAGE];
        // Only an address can tell; should it not, a write says so, and nothing worse.
        let from = bytes.as_ptr().align_offset(PAGE).min(PAGE);
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        for byte in &mut bytes {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *byte = state as u8;
        }
        Aligned { bytes, from }
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[self.from..]
    }
}
