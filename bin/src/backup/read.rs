//! Opening a backup, checking all of it, and reading its entries.

use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use graven_frame::{Body, Chain, Frame, FrameError, HEADER_BYTES, decode_header};
use graven_snapshot::{Checkpoint, file_bytes_max};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use super::manifest::{BYTES_MAX, UNFINISHED};
use super::{BackupError, CHECKPOINT, Damage, FramesFile, MANIFEST, Manifest};
use crate::replica::fold::Fold;

/// A backup whose manifest was read.
#[derive(Debug, Clone)]
pub struct Backup {
    dir: PathBuf,
    manifest: Manifest,
}

impl Backup {
    /// Opens a backup. Only its manifest is looked at.
    ///
    /// # Errors
    /// [`BackupError::Missing`], [`BackupError::Unfinished`], [`BackupError::Newer`], [`BackupError::Damaged`]; the file system's.
    pub fn open(dir: &Path) -> Result<Backup, BackupError> {
        let path = dir.join(MANIFEST);
        let bytes = match read_up_to(&path, BYTES_MAX) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(without_manifest(dir)),
            read => read.map_err(BackupError::io("read", &path))?,
        };
        let manifest = Manifest::decode(&bytes, dir)?;
        Ok(Backup { dir: dir.to_owned(), manifest })
    }

    /// What it is.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Where it is.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The checkpoint before the first entry, if that is not entry 1; every byte checked.
    ///
    /// # Errors
    /// [`BackupError::Damaged`]; the file system's.
    pub fn checkpoint(&self) -> Result<Option<Checkpoint>, BackupError> {
        let Some(file) = &self.manifest.checkpoint else { return Ok(None) };
        let path = self.dir.join(CHECKPOINT);
        let damaged = |what: String| self.damaged(CHECKPOINT, 0, file.bytes, what);
        let bytes = match read_up_to(&path, file_bytes_max() as u64) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(damaged("it is missing".to_owned())),
            read => read.map_err(BackupError::io("read", &path))?,
        };
        self.check_len(CHECKPOINT, bytes.len() as u64, file.bytes)?;
        if xxh3_128(&bytes) != file.digest {
            return Err(damaged("its digest does not hold".to_owned()));
        }
        let found = Checkpoint::decode(&bytes).map_err(|flaw| damaged(flaw.to_string()))?;
        let (manifest, base) = (&self.manifest, &found.base);
        let fits = (found.cluster, base.index.saturating_add(1), base.chain.0)
            == (manifest.cluster_id, manifest.first_index, manifest.base_chain);
        if fits { Ok(Some(found)) } else { Err(damaged("it is not what the first entry continues".to_owned())) }
    }

    /// All entries in order, each checked before it is given. Ends after the first error.
    #[must_use]
    pub fn frames(&self) -> Frames<'_> {
        Frames { backup: self, file: 0, open: None, prev: Chain(self.manifest.base_chain), failed: false }
    }

    /// Reads every byte of it. `progress` is told how many bytes were read, now and then. Returns the state after the last entry.
    ///
    /// # Errors
    /// [`BackupError::Damaged`] with the first damage of the first file that has any; the file system's.
    pub fn verify(&self, mut progress: impl FnMut(u64)) -> Result<Fold, BackupError> {
        let checkpoint = self.checkpoint()?;
        let senseless = |what: String| {
            self.damaged(CHECKPOINT, 0, self.manifest.checkpoint.as_ref().map_or(0, |it| it.bytes), what)
        };
        let mut fold = Fold::new(checkpoint.as_ref()).map_err(|cause| senseless(cause.to_string()))?;
        let (mut read, mut told) = (self.manifest.checkpoint.as_ref().map_or(0, |it| it.bytes), 0);
        let mut frames = self.frames();
        while let Some(frame) = frames.next() {
            let frame = frame?;
            fold.push(&frame).map_err(|cause| {
                let (file, from, to) = frames.place(&frame);
                self.damaged(&file, from, to, cause.to_string())
            })?;
            read += frame.encoded_len() as u64;
            if read - told >= TELL_BYTES {
                told = read;
                progress(read);
            }
        }
        progress(read);
        self.check_end(&fold)?;
        Ok(fold)
    }

    /// Whether the entries lead to what the manifest says.
    fn check_end(&self, fold: &Fold) -> Result<(), BackupError> {
        let (manifest, at) = (&self.manifest, fold.at());
        let says =
            (manifest.last_index, manifest.last_term, manifest.last_chain, manifest.first_offset, manifest.next_offset);
        let is = (at.index, at.term, at.chain.0, fold.first_offset(), at.next_offset);
        if says == is && manifest.skipped_snapshots == fold.snapshots() {
            return Ok(());
        }
        Err(self.damaged(MANIFEST, 0, 0, "it says something else than its files".to_owned()))
    }

    fn damaged(&self, file: &str, from: u64, to: u64, what: String) -> BackupError {
        BackupError::Damaged { dir: self.dir.clone(), damage: Damage { file: file.to_owned(), from, to, what } }
    }

    fn check_len(&self, file: &str, have: u64, need: u64) -> Result<(), BackupError> {
        match have.cmp(&need) {
            std::cmp::Ordering::Equal => Ok(()),
            std::cmp::Ordering::Less => Err(self.damaged(file, have, need, format!("it has {have} of {need} bytes"))),
            std::cmp::Ordering::Greater => {
                Err(self.damaged(file, need, have, format!("it has {have} bytes, {need} were written")))
            }
        }
    }
}

/// Bytes between two words about progress.
const TELL_BYTES: u64 = 4 << 20;
/// What is read of a file at once.
const BUFFER_BYTES: usize = 1 << 20;

/// See [`Backup::frames`].
#[derive(Debug)]
pub struct Frames<'a> {
    backup: &'a Backup,
    /// The file that is read, or comes next.
    file: usize,
    open: Option<OpenFile>,
    prev: Chain,
    failed: bool,
}

struct OpenFile {
    from: BufReader<File>,
    digest: Xxh3,
    at: u64,
    next: u64,
}

impl std::fmt::Debug for OpenFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "OpenFile(byte {}, entry {})", self.at, self.next)
    }
}

impl Frames<'_> {
    /// The file and the bytes of the frame that was given last.
    fn place(&self, frame: &Frame) -> (String, u64, u64) {
        let len = frame.encoded_len() as u64;
        let files = &self.backup.manifest.frames;
        match &self.open {
            Some(open) => (files[self.file].name.clone(), open.at - len, open.at),
            // It was the last one of its file.
            None => {
                let file = &files[self.file - 1];
                (file.name.clone(), file.bytes.saturating_sub(len), file.bytes)
            }
        }
    }

    fn step(&mut self) -> Result<Option<Frame>, BackupError> {
        let Some(entry) = self.backup.manifest.frames.get(self.file) else { return Ok(None) };
        let mut open = match self.open.take() {
            Some(open) => open,
            None => self.begin(entry)?,
        };
        let frame = self.read(&mut open, entry)?;
        if open.at < entry.bytes {
            self.open = Some(open);
            return Ok(Some(frame));
        }
        let whole = |from, what: &str| self.backup.damaged(&entry.name, from, entry.bytes, what.to_owned());
        if open.next != entry.last_index + 1 {
            return Err(whole(0, "it does not have the entries that the manifest says"));
        }
        if open.digest.digest128() != entry.digest {
            return Err(whole(0, "its digest does not hold"));
        }
        self.file += 1;
        Ok(Some(frame))
    }

    fn begin(&self, entry: &FramesFile) -> Result<OpenFile, BackupError> {
        let path = self.backup.dir.join(&entry.name);
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(self.backup.damaged(&entry.name, 0, entry.bytes, "it is missing".to_owned()));
            }
            opened => opened.map_err(BackupError::io("open", &path))?,
        };
        let len = file.metadata().map_err(BackupError::io("look at", &path))?.len();
        // What is there of a file that is cut off may be right: the frames say where it ends.
        if len > entry.bytes {
            self.backup.check_len(&entry.name, len, entry.bytes)?;
        }
        let from = BufReader::with_capacity(BUFFER_BYTES, file);
        Ok(OpenFile { from, digest: Xxh3::new(), at: 0, next: entry.first_index })
    }

    /// The next frame of a file.
    fn read(&self, open: &mut OpenFile, entry: &FramesFile) -> Result<Frame, BackupError> {
        let at = open.at;
        let damaged = |to: u64, what: String| self.backup.damaged(&entry.name, at, to.min(entry.bytes), what);
        let head_end = at + HEADER_BYTES as u64;
        let mut head = [0; HEADER_BYTES];
        self.fill(open, entry, &mut head)?;
        let header = decode_header(&head).map_err(|cause| damaged(head_end, cause.to_string()))?;
        let end = at + header.frame_len() as u64;
        if header.index != open.next || end > entry.bytes {
            return Err(damaged(
                head_end,
                format!("entry {} of {} bytes does not belong here", header.index, header.frame_len()),
            ));
        }
        // Bounded by the header's check.
        let mut body = vec![0; header.body_len as usize];
        self.fill(open, entry, &mut body)?;
        let whole = |cause: FrameError| damaged(end, cause.to_string());
        let frame = Frame::from_parts(&head, Body::from(Bytes::from(body))).map_err(whole)?;
        frame.verify(Some(self.prev)).map_err(whole)?;
        (open.at, open.next) = (end, open.next + 1);
        Ok(frame)
    }

    fn fill(&self, open: &mut OpenFile, entry: &FramesFile, into: &mut [u8]) -> Result<(), BackupError> {
        let path = self.backup.dir.join(&entry.name);
        match open.from.read_exact(into) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                let have = fs::metadata(&path).map_or(open.at, |found| found.len());
                Err(self.backup.damaged(&entry.name, have.min(entry.bytes), entry.bytes, "it is cut off".to_owned()))
            }
            read => {
                read.map_err(BackupError::io("read", &path))?;
                open.digest.update(into);
                Ok(())
            }
        }
    }
}

impl Iterator for Frames<'_> {
    type Item = Result<Frame, BackupError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let step = self.step();
        match &step {
            Ok(Some(frame)) => self.prev = frame.header().chain,
            Ok(None) => {}
            Err(_) => self.failed = true,
        }
        step.transpose()
    }
}

/// A directory without a manifest: begun and not finished, or something else.
fn without_manifest(dir: &Path) -> BackupError {
    let names = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let ours = |name: &str| name == CHECKPOINT || name == UNFINISHED || name.starts_with("frames-");
    let begun = names.into_iter().any(|name| name.to_str().is_some_and(ours));
    let dir = dir.to_owned();
    if begun { BackupError::Unfinished { dir } } else { BackupError::Missing { dir } }
}

/// A file's bytes; one more than `most` is enough to see that it is too long.
fn read_up_to(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(most + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}
