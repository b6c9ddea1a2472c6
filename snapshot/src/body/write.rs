//! Writing a snapshot of any size.

use std::fmt;
use std::io::{self, IoSlice, Write};

use graven_wal::{DIRECT_BYTES, Disk, DiskFile, WriteMode};

use super::directory::remove_if_there;
use super::error::{BodyError, failed};
use super::format::{BODY_BYTES_MAX, CHUNK_BYTES, Digest, Header, Info, chunk_head};

/// How a big file is written beside a log.
pub struct Options {
    /// Where writes go through the page cache, a sync after so many bytes; 0 for none but the last. What is written there and not synced
    /// stands before the next sync of the log, so this bounds how long an append waits for a snapshot.
    pub sync_bytes: u64,
    /// Bytes of the disk that are not taken: when fewer would stay free, the snapshot is given up and [`BodyError::is_full`].
    pub keep_free_bytes: u64,
    /// The length of the body, if it is known: then its space is taken first, a full disk is known before a byte is written, and a body of
    /// another length is refused. Without effect on [`super::Partial`], which knows it.
    pub expected_bytes: Option<u64>,
    /// Called with a number of bytes before so many are written; it may sleep, to keep a rate.
    pub pace: Option<Pace>,
}

/// Holds up the thread that writes, until so many more bytes may be written.
pub type Pace = Box<dyn FnMut(usize) + Send>;

/// Two chunks are on their way to the disk while the next are made, and at some hundred MiB a second a sync of the log waits tens of
/// milliseconds for them, at most.
pub const SYNC_BYTES: u64 = 4 << 20;

impl Default for Options {
    fn default() -> Options {
        Options { sync_bytes: SYNC_BYTES, keep_free_bytes: 0, expected_bytes: None, pace: None }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("sync_bytes", &self.sync_bytes)
            .field("keep_free_bytes", &self.keep_free_bytes)
            .field("expected_bytes", &self.expected_bytes)
            .field("paced", &self.pace.is_some())
            .finish()
    }
}

/// Writes one snapshot. [`BodyWriter::finish`] makes it durable under its name; dropped before that, or after any error, nothing of it
/// is left.
///
/// It holds one chunk and one block in memory. Its methods wait for the disk.
pub struct BodyWriter<D: Disk> {
    out: Stream<D>,
    header: Header,
    /// Of the chunk that is being filled.
    buffer: Vec<u8>,
    digest: Digest,
    bytes: u64,
    expected: Option<u64>,
    chunks: u64,
}

impl<D: Disk> BodyWriter<D> {
    /// Begins a snapshot under a temporary name; what an earlier one left there is removed. Two of the same file name must not be written
    /// at once, nor two of [`super::Name::OWN`].
    ///
    /// # Errors
    /// [`BodyError::Io`]; [`BodyError::Full`] when the space for a body of known length is not there; [`BodyError::Length`] when it is
    /// larger than any can be.
    ///
    /// # Panics
    /// When the id is 0.
    pub fn create(disk: &D, header: Header, options: Options) -> Result<BodyWriter<D>, BodyError> {
        assert_ne!(header.id, 0, "a snapshot's id is never 0");
        let temporary = header.unfinished_name();
        let expected = options.expected_bytes;
        if let Some(bytes) = expected.filter(|bytes| *bytes > BODY_BYTES_MAX) {
            return Err(BodyError::Length { file: temporary, have: bytes, expected: BODY_BYTES_MAX });
        }
        remove_if_there(disk, &temporary)?;
        let space = expected.map(|bytes| Info { header: header.clone(), bytes, digest: 0 }.file_bytes());
        let mut out = Stream::of(Paced::create(disk, temporary, options, space)?)?;
        out.push(&header.encode())?;
        let buffer = Vec::with_capacity(CHUNK_BYTES);
        Ok(BodyWriter { out, header, buffer, digest: Digest::new(), bytes: 0, expected, chunks: 0 })
    }

    /// What it is of.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Bytes of the body taken so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes the next bytes of the body.
    ///
    /// # Errors
    /// [`BodyError`]; it is closed then, and nothing is left of it.
    pub fn put(&mut self, mut bytes: &[u8]) -> Result<(), BodyError> {
        self.out.file.check_open()?;
        let most = self.expected.unwrap_or(BODY_BYTES_MAX);
        let have = self.bytes.saturating_add(bytes.len() as u64);
        if have > most {
            return Err(self.out.file.give_up(|file| BodyError::Length { file, have, expected: most }));
        }
        self.bytes = have;
        while !bytes.is_empty() {
            if self.buffer.is_empty() && bytes.len() >= CHUNK_BYTES {
                // Nothing is gained by collecting a chunk that is there as a whole.
                let (chunk, rest) = bytes.split_at(CHUNK_BYTES);
                Self::write_chunk(&mut self.out, &mut self.digest, self.header.id, &mut self.chunks, chunk)?;
                bytes = rest;
                continue;
            }
            let (some, rest) = bytes.split_at(bytes.len().min(CHUNK_BYTES - self.buffer.len()));
            self.buffer.extend_from_slice(some);
            bytes = rest;
            if self.buffer.len() == CHUNK_BYTES {
                self.write_buffer()?;
            }
        }
        Ok(())
    }

    /// Ends the body and makes the snapshot durable under [`Header::file_name`], in place of one of that name.
    ///
    /// # Errors
    /// [`BodyError`]. When the last steps fail, the rename and the directory's sync, it may be there or not after a crash, and whole if
    /// it is.
    pub fn finish(mut self) -> Result<Info, BodyError> {
        self.out.file.check_open()?;
        if let Some(expected) = self.expected.filter(|expected| *expected != self.bytes) {
            let have = self.bytes;
            return Err(self.out.file.give_up(|file| BodyError::Length { file, have, expected }));
        }
        if !self.buffer.is_empty() {
            self.write_buffer()?;
        }
        let info = Info { header: self.header.clone(), bytes: self.bytes, digest: self.digest.value() };
        let footer = info.footer(&info.header.encode());
        self.out.push(&footer)?;
        self.out.end()?;
        self.out.file.publish(&info.header.file_name())?;
        Ok(info)
    }

    fn write_buffer(&mut self) -> Result<(), BodyError> {
        Self::write_chunk(&mut self.out, &mut self.digest, self.header.id, &mut self.chunks, &self.buffer)?;
        self.buffer.clear();
        Ok(())
    }

    fn write_chunk(
        out: &mut Stream<D>,
        digest: &mut Digest,
        id: u64,
        chunks: &mut u64,
        bytes: &[u8],
    ) -> Result<(), BodyError> {
        digest.update(bytes);
        let head = chunk_head(id, *chunks, bytes);
        out.push(&head)?;
        out.push(bytes)?;
        *chunks += 1;
        Ok(())
    }
}

impl<D: Disk> Write for BodyWriter<D> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.put(bytes)?;
        Ok(bytes.len())
    }

    /// Does nothing: what counts is [`BodyWriter::finish`].
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<D: Disk> fmt::Debug for BodyWriter<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BodyWriter").field("header", &self.header).field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

/// A file that is written from front to back, in large blocks past the page cache where the file system knows how.
///
/// So no more than one block ever stands before the log's syncs, and the cache keeps what readers of the log need. What a file system does
/// not take that way goes through the cache, synced in steps.
struct Stream<D: Disk> {
    file: Paced<D>,
    direct: Option<D::File>,
    /// One block, and what it takes to begin at an address that direct writes want.
    memory: Vec<u8>,
    begin: usize,
    filled: usize,
    /// Where the block goes.
    at: u64,
}

/// Large enough that a disk is as fast as it can be with one write at a time, little for whoever waits behind it.
const BLOCK_BYTES: usize = 1 << 20;

impl<D: Disk> Stream<D> {
    fn of(mut file: Paced<D>) -> Result<Stream<D>, BodyError> {
        let direct = match file.disk.open(&file.name, Some(WriteMode::Direct)) {
            Err(cause) if cause.kind() == io::ErrorKind::Unsupported => None,
            opened => Some(file.done("open", opened)?),
        };
        let memory = vec![0; BLOCK_BYTES + DIRECT_BYTES as usize];
        let begin = memory.as_ptr().align_offset(DIRECT_BYTES as usize);
        Ok(Stream { file, direct, memory, begin, filled: 0, at: 0 })
    }

    fn push(&mut self, mut bytes: &[u8]) -> Result<(), BodyError> {
        while !bytes.is_empty() {
            let (some, rest) = bytes.split_at(bytes.len().min(BLOCK_BYTES - self.filled));
            let to = self.begin + self.filled;
            self.memory[to..to + some.len()].copy_from_slice(some);
            self.filled += some.len();
            bytes = rest;
            if self.filled == BLOCK_BYTES {
                let block = &self.memory[self.begin..self.begin + BLOCK_BYTES];
                match &self.direct {
                    Some(direct) => self.file.write_direct(direct, self.at, block)?,
                    None => self.file.write(self.at, &mut [IoSlice::new(block)])?,
                }
                self.at += BLOCK_BYTES as u64;
                self.filled = 0;
            }
        }
        Ok(())
    }

    /// Writes what is left. It has no length for a direct write, and touches no page that one has written.
    fn end(&mut self) -> Result<(), BodyError> {
        let rest = &self.memory[self.begin..self.begin + self.filled];
        self.file.write(self.at, &mut [IoSlice::new(rest)])
    }
}

/// A file under a temporary name that is written in steps, and gone when that fails.
pub(super) struct Paced<D: Disk> {
    disk: D,
    file: D::File,
    name: String,
    options: Options,
    unsynced: u64,
    /// Bytes that may be written before the free space is looked at again; all of them when the space was taken ahead.
    granted: u64,
    state: State,
    /// Whether the file stays when this is dropped in the middle.
    pub(super) keep: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// Given up: the file is removed, or it is nobody's business any more.
    Closed,
    /// It has its final name.
    Published,
}

impl<D: Disk> Paced<D> {
    /// Makes the file; with `space`, takes so many bytes for it.
    pub(super) fn create(disk: &D, name: String, options: Options, space: Option<u64>) -> Result<Paced<D>, BodyError> {
        let file = disk.create(&name, WriteMode::Buffered).map_err(failed("make", &name))?;
        let mut made = Paced::of(disk, file, name, options, 0);
        if let Some(space) = space {
            made.grant(space)?;
            let taken = made.file.allocate(space);
            made.done("take space for", taken)?;
            made.granted = u64::MAX;
        }
        Ok(made)
    }

    /// Goes on with a file that has its space.
    pub(super) fn resume(disk: &D, file: D::File, name: String, options: Options) -> Paced<D> {
        Paced::of(disk, file, name, options, u64::MAX)
    }

    fn of(disk: &D, file: D::File, name: String, options: Options, granted: u64) -> Paced<D> {
        Paced { disk: disk.clone(), file, name, options, unsynced: 0, granted, state: State::Open, keep: false }
    }

    pub(super) fn file(&self) -> &D::File {
        &self.file
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn check_open(&self) -> Result<(), BodyError> {
        match self.state {
            State::Open => Ok(()),
            _ => Err(BodyError::Closed { file: self.name.clone() }),
        }
    }

    /// Writes at the pace and in the steps of the options.
    pub(super) fn write(&mut self, at: u64, slices: &mut [IoSlice<'_>]) -> Result<(), BodyError> {
        let bytes = slices.iter().map(|slice| slice.len()).sum();
        self.admit(bytes)?;
        let written = self.file.write_vectored_at(at, slices);
        self.done("write", written)?;
        if self.options.sync_bytes > 0 {
            // The disk is kept busy while the next bytes are made; the sync then has little to wait for.
            self.file.write_back(at, bytes as u64);
            self.unsynced += bytes as u64;
            if self.unsynced >= self.options.sync_bytes {
                self.sync()?;
            }
        }
        Ok(())
    }

    /// Writes past the cache, at the pace of the options: nothing is left for a sync but the file's length and its place.
    fn write_direct(&mut self, file: &D::File, at: u64, block: &[u8]) -> Result<(), BodyError> {
        self.admit(block.len())?;
        let written = file.write_at(at, block);
        self.done("write", written)
    }

    /// Holds `bytes` up until they may be written, and sees to it that there is room.
    fn admit(&mut self, bytes: usize) -> Result<(), BodyError> {
        if let Some(pace) = &mut self.options.pace {
            pace(bytes);
        }
        if self.granted < bytes as u64 {
            self.grant((bytes as u64).max(SYNC_BYTES))?;
        }
        if self.granted != u64::MAX {
            self.granted -= bytes as u64;
        }
        Ok(())
    }

    pub(super) fn sync(&mut self) -> Result<(), BodyError> {
        let synced = self.file.sync_data();
        self.done("sync", synced)?;
        self.unsynced = 0;
        Ok(())
    }

    /// Makes all of it durable under its final name.
    pub(super) fn publish(&mut self, name: &str) -> Result<(), BodyError> {
        self.sync()?;
        let renamed = self.disk.rename(&self.name, name);
        self.done("rename", renamed)?;
        // From here on it is whole under its name, whether or not a crash keeps the name: nothing is removed any more.
        self.state = State::Published;
        self.disk.sync_dir().map_err(failed("sync the directory of", name))
    }

    /// Ends it with this error, and removes the file.
    pub(super) fn give_up(&mut self, error: impl FnOnce(String) -> BodyError) -> BodyError {
        self.state = State::Closed;
        // One that cannot be removed now goes with the sweep of the next start.
        let _ = self.disk.remove(&self.name);
        error(self.name.clone())
    }

    /// Sees to it that so many bytes more leave free what must stay free.
    fn grant(&mut self, bytes: u64) -> Result<(), BodyError> {
        let keep = self.options.keep_free_bytes;
        if keep > 0 {
            let free = self.disk.free_bytes();
            let free = self.done("look for room for", free)?;
            if free < keep.saturating_add(bytes) {
                return Err(self.give_up(|file| BodyError::Full { file, free, keep }));
            }
        }
        self.granted = bytes;
        Ok(())
    }

    fn done<T>(&mut self, operation: &'static str, done: io::Result<T>) -> Result<T, BodyError> {
        done.map_err(|cause| self.give_up(|file| BodyError::Io { operation, file, cause }))
    }
}

impl<D: Disk> Drop for Paced<D> {
    fn drop(&mut self) {
        if self.state == State::Open && !self.keep {
            let _ = self.disk.remove(&self.name);
        }
    }
}
