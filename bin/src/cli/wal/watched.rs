//! A data directory that is only looked at: every attempt to change it fails, and reading it moves a progress bar.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use graven_wal::{Disk, DiskFile, DiskMap, LockError, RealDisk, RealFile, RealLock, WriteMode};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::cli::Global;

/// The directory.
#[derive(Debug, Clone)]
pub(super) struct Watched {
    disk: RealDisk,
    progress: Arc<Progress>,
}

/// A file in it.
#[derive(Debug)]
pub(super) struct WatchedFile {
    file: RealFile,
    progress: Arc<Progress>,
}

/// How much was read.
#[derive(Debug)]
struct Progress {
    bar: ProgressBar,
    wanted: bool,
    shown: AtomicBool,
    started: Instant,
}

/// Work shorter than this needs no bar.
const LONG: Duration = Duration::from_secs(1);

impl Progress {
    fn read(&self, bytes: usize) {
        self.bar.inc(bytes as u64);
        if self.wanted && self.started.elapsed() > LONG && !self.shown.swap(true, Ordering::Relaxed) {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
    }
}

impl Watched {
    /// The directory behind `disk`, with a bar on a terminal when reading takes long.
    pub(super) fn new(disk: RealDisk, global: &Global) -> Watched {
        use std::io::IsTerminal;
        let sizes = std::fs::read_dir(disk.path()).into_iter().flatten().flatten();
        let total = sizes.filter_map(|entry| entry.metadata().ok()).map(|found| found.len()).sum();
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden());
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {bytes_per_sec}") {
            bar.set_style(style);
        }
        let wanted = !global.quiet && !global.json && io::stderr().is_terminal();
        let progress = Progress { bar, wanted, shown: AtomicBool::new(false), started: Instant::now() };
        Watched { disk, progress: Arc::new(progress) }
    }

    /// Takes the bar away.
    pub(super) fn done(&self) {
        self.progress.bar.finish_and_clear();
    }
}

fn refused<T>() -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::PermissionDenied, "this command only reads"))
}

impl Disk for Watched {
    type File = WatchedFile;
    type Lock = RealLock;

    fn list(&self) -> io::Result<Vec<String>> {
        self.disk.list()
    }

    fn create(&self, _: &str, _: WriteMode) -> io::Result<WatchedFile> {
        refused()
    }

    fn open(&self, name: &str, mode: Option<WriteMode>) -> io::Result<WatchedFile> {
        if mode.is_some() {
            return refused();
        }
        Ok(WatchedFile { file: self.disk.open(name, None)?, progress: Arc::clone(&self.progress) })
    }

    fn rename(&self, _: &str, _: &str) -> io::Result<()> {
        refused()
    }

    fn remove(&self, _: &str) -> io::Result<()> {
        refused()
    }

    fn sync_dir(&self) -> io::Result<()> {
        refused()
    }

    fn create_dir(&self, _: &str) -> io::Result<()> {
        refused()
    }

    fn sync_subdir(&self, _: &str) -> io::Result<()> {
        refused()
    }

    fn lock(&self, _: &str) -> Result<RealLock, LockError> {
        Ok(refused()?)
    }

    fn lock_holder(&self, name: &str) -> io::Result<Option<u32>> {
        self.disk.lock_holder(name)
    }

    fn free_bytes(&self) -> io::Result<u64> {
        self.disk.free_bytes()
    }

    fn random(&self) -> io::Result<u64> {
        self.disk.random()
    }
}

impl DiskFile for WatchedFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(at, into)?;
        self.progress.read(read);
        Ok(read)
    }

    fn write_vectored_at(&self, _: u64, _: &mut [IoSlice<'_>]) -> io::Result<()> {
        refused()
    }

    fn sync_data(&self) -> io::Result<()> {
        refused()
    }

    fn allocate(&self, _: u64) -> io::Result<()> {
        refused()
    }

    fn map(&self, len: u64) -> io::Result<Arc<dyn DiskMap>> {
        self.file.map(len)
    }
}
