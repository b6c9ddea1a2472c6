//! Making a backup.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use graven_frame::Frame;
use graven_snapshot::Checkpoint;
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use super::manifest::UNFINISHED;
use super::{BackupError, CHECKPOINT, FORMAT_VERSION, FramesFile, MANIFEST, Manifest, PlainFile, frames_name};
use crate::replica::fold::Fold;

/// Writes a backup into an empty directory. Whatever it wrote is removed again unless [`Writer::finish`] succeeds; only a process that is
/// killed leaves a directory without a manifest.
#[derive(Debug)]
pub struct Writer {
    dir: PathBuf,
    /// It was made by this one, and goes with it.
    made_dir: bool,
    file_bytes: u64,
    cluster: u128,
    fold: Fold,
    first_index: u64,
    base_chain: u64,
    checkpoint: Option<PlainFile>,
    frames: Vec<FramesFile>,
    open: Option<OpenFile>,
    bytes: u64,
    /// Names of the files that are there.
    written: Vec<String>,
}

#[derive(Debug)]
struct OpenFile {
    path: PathBuf,
    out: BufWriter<File>,
    digest: Hasher,
    entry: FramesFile,
}

/// A digest as it grows.
struct Hasher(Xxh3);

impl std::fmt::Debug for Hasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hasher")
    }
}

/// What is handed to the system at once.
const BUFFER_BYTES: usize = 1 << 20;

impl Writer {
    /// Begins a backup of a log of `cluster` in `dir`, which is empty or not there. `checkpoint` is the file of what stands before the
    /// first entry, empty when that is entry 1. A file of frames is ended when it has `file_bytes`.
    ///
    /// # Errors
    /// [`BackupError::NotEmpty`]; [`BackupError::Source`] when the checkpoint is none of that cluster; the file system's.
    pub fn create(dir: &Path, cluster: u128, checkpoint: &[u8], file_bytes: u64) -> Result<Writer, BackupError> {
        let source = |what: String| BackupError::Source(what);
        let found = match checkpoint {
            [] => None,
            bytes => Some(Checkpoint::decode(bytes).map_err(|flaw| source(format!("its checkpoint: {flaw}")))?),
        };
        if found.as_ref().is_some_and(|found| found.cluster != cluster) {
            return Err(source("its checkpoint is of another cluster".to_owned()));
        }
        let fold = Fold::new(found.as_ref()).map_err(|cause| source(cause.to_string()))?;
        let made_dir = claim(dir)?;
        let mut writer = Writer {
            dir: dir.to_owned(),
            made_dir,
            file_bytes,
            cluster,
            first_index: fold.at().index + 1,
            base_chain: fold.at().chain.0,
            fold,
            checkpoint: None,
            frames: Vec::new(),
            open: None,
            bytes: 0,
            written: Vec::new(),
        };
        if found.is_some() {
            writer.write_whole(CHECKPOINT, checkpoint)?;
            let bytes = checkpoint.len() as u64;
            writer.checkpoint = Some(PlainFile { name: CHECKPOINT.to_owned(), bytes, digest: xxh3_128(checkpoint) });
            writer.bytes = bytes;
        }
        Ok(writer)
    }

    /// Takes the next entry, whose body was verified.
    ///
    /// # Errors
    /// [`BackupError::Source`] when it does not continue what is there; the file system's.
    pub fn push(&mut self, frame: &Frame) -> Result<(), BackupError> {
        self.fold.push(frame).map_err(|cause| BackupError::Source(cause.to_string()))?;
        let index = frame.header().index;
        if self.open.is_none() {
            let name = frames_name(index);
            let path = self.dir.join(&name);
            let file = new_file(&path).map_err(BackupError::io("make", &path))?;
            self.written.push(name.clone());
            let entry = FramesFile { name, bytes: 0, digest: 0, first_index: index, last_index: index };
            let out = BufWriter::with_capacity(BUFFER_BYTES, file);
            self.open = Some(OpenFile { path, out, digest: Hasher(Xxh3::new()), entry });
        }
        let Some(open) = &mut self.open else { return Ok(()) };
        for piece in std::iter::once(frame.head()).chain(frame.body().chunks()) {
            open.digest.0.update(piece);
            open.out.write_all(piece).map_err(BackupError::io("write", &open.path))?;
        }
        open.entry.bytes += frame.encoded_len() as u64;
        open.entry.last_index = index;
        self.bytes += frame.encoded_len() as u64;
        if open.entry.bytes >= self.file_bytes { self.end_file() } else { Ok(()) }
    }

    /// Bytes taken so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Makes the backup whole, durably. It must have every entry up to `last`, and the records from `first_offset` to before
    /// `next_offset` must be what readers see then.
    ///
    /// # Errors
    /// [`BackupError::Source`] when that is not so; the file system's.
    pub fn finish(mut self, last: u64, first_offset: u64, next_offset: u64) -> Result<Manifest, BackupError> {
        self.end_file()?;
        let at = *self.fold.at();
        let says = (last, first_offset, next_offset);
        let has = (at.index, self.fold.first_offset(), at.next_offset);
        if says != has || self.frames.is_empty() {
            return Err(BackupError::Source(format!(
                "it was said to end at entry {} with the records {}..{}, and ended at entry {} with {}..{}",
                says.0, says.1, says.2, has.0, has.1, has.2
            )));
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let manifest = Manifest {
            version: FORMAT_VERSION,
            software: env!("CARGO_PKG_VERSION").to_owned(),
            created_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
            cluster_id: self.cluster,
            first_index: self.first_index,
            last_index: at.index,
            last_term: at.term,
            base_chain: self.base_chain,
            last_chain: at.chain.0,
            first_offset,
            next_offset,
            bytes: self.bytes,
            skipped_snapshots: self.fold.snapshots(),
            snapshots: Vec::new(),
            checkpoint: self.checkpoint.take(),
            frames: std::mem::take(&mut self.frames),
        };
        let text = manifest.encode().map_err(BackupError::Source)?;
        // Every name is durable before the manifest can be.
        sync_dir(&self.dir)?;
        self.write_whole(UNFINISHED, &text)?;
        let (from, to) = (self.dir.join(UNFINISHED), self.dir.join(MANIFEST));
        fs::rename(&from, &to).map_err(BackupError::io("name", &to))?;
        self.written.push(MANIFEST.to_owned());
        sync_dir(&self.dir)?;
        if let Some(parent) = parent_of(&self.dir).filter(|_| self.made_dir) {
            sync_dir(parent)?;
        }
        // From here on it is a backup, and stays.
        self.written.clear();
        self.made_dir = false;
        Ok(manifest)
    }

    fn end_file(&mut self) -> Result<(), BackupError> {
        let Some(open) = self.open.take() else { return Ok(()) };
        let OpenFile { path, out, digest, mut entry } = open;
        let file = out.into_inner().map_err(|error| BackupError::io("write", &path)(error.into_error()))?;
        file.sync_all().map_err(BackupError::io("sync", &path))?;
        entry.digest = digest.0.digest128();
        self.frames.push(entry);
        Ok(())
    }

    fn write_whole(&mut self, name: &str, bytes: &[u8]) -> Result<(), BackupError> {
        let path = self.dir.join(name);
        let mut file = new_file(&path).map_err(BackupError::io("make", &path))?;
        self.written.push(name.to_owned());
        file.write_all(bytes).map_err(BackupError::io("write", &path))?;
        file.sync_all().map_err(BackupError::io("sync", &path))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        drop(self.open.take());
        // The manifest first: without it the rest is no backup. What cannot be removed is told apart by that.
        for name in self.written.drain(..).rev() {
            let _ = fs::remove_file(self.dir.join(name));
        }
        if self.made_dir {
            let _ = fs::remove_dir(&self.dir);
        }
    }
}

/// Makes sure of an empty directory, readable for its owner only: a backup holds everything. Returns whether it was made.
fn claim(dir: &Path) -> Result<bool, BackupError> {
    match fs::read_dir(dir) {
        Ok(mut entries) => match entries.next() {
            None => Ok(false),
            Some(_) => Err(BackupError::NotEmpty { dir: dir.to_owned() }),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if let Some(parent) = parent_of(dir) {
                fs::create_dir_all(parent).map_err(BackupError::io("make", parent))?;
            }
            fs::DirBuilder::new().mode(0o700).create(dir).map_err(BackupError::io("make", dir))?;
            Ok(true)
        }
        Err(error) => Err(BackupError::io("list", dir)(error)),
    }
}

fn parent_of(dir: &Path) -> Option<&Path> {
    dir.parent().map(|parent| if parent.as_os_str().is_empty() { Path::new(".") } else { parent })
}

fn new_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

fn sync_dir(dir: &Path) -> Result<(), BackupError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(BackupError::io("sync", dir))
}
