//! Reading a snapshot: nothing leaves unverified.

use std::fmt;
use std::io::{self, Read};

use bytes::Bytes;
use graven_wal::{Disk, DiskFile};

use super::error::{BodyError, BodyFlaw, failed, flawed};
use super::format::{CHUNK_HEAD_BYTES, Digest, FOOTER_BYTES, HEADER_BYTES, INFO_BYTES, Info, chunk_at, chunk_holds};

/// An open snapshot. The file stays what it is while this lives, whatever becomes of its name.
///
/// In order, by [`BodyReader::next_chunk`] or [`Read`]: the last bytes leave only when the digest of the whole body holds. By number,
/// by [`BodyReader::read_chunk`] and [`BodyReader::encoded_chunk`]: each chunk is checked for itself. Holds one chunk in memory.
pub struct BodyReader<D: Disk> {
    file: D::File,
    name: String,
    info: Info,
    /// Of what was read in order.
    digest: Digest,
    next: u64,
    /// The chunk before `next` with its head, and how much of it was taken.
    buffer: Vec<u8>,
    taken: usize,
}

impl<D: Disk> BodyReader<D> {
    /// Opens the snapshot with this file name. Header and footer are checked, chunks when they are read.
    ///
    /// # Errors
    /// [`BodyError::Io`], also when there is none ([`BodyError::is_missing`]); [`BodyError::Flawed`].
    pub fn open(disk: &D, file_name: &str) -> Result<BodyReader<D>, BodyError> {
        let file = disk.open(file_name, None).map_err(failed("open", file_name))?;
        let info = info_of(&file, file_name)?;
        if info.header.file_name() != file_name {
            return Err(flawed(file_name)(BodyFlaw::Other));
        }
        if info.bytes == 0 && info.digest != Digest::new().value() {
            let (have, expected) = (Digest::new().value(), info.digest);
            return Err(flawed(file_name)(BodyFlaw::Digest { have, expected }));
        }
        let (name, digest, buffer) = (file_name.to_owned(), Digest::new(), Vec::new());
        Ok(BodyReader { file, name, info, digest, next: 0, buffer, taken: 0 })
    }

    /// What it is, by header and footer.
    #[must_use]
    pub fn info(&self) -> &Info {
        &self.info
    }

    /// The body bytes of the chunk `number`, from 0, verified; none behind the last one. Does not move what is read in order.
    ///
    /// # Errors
    /// [`BodyError`].
    pub fn read_chunk(&self, number: u64) -> Result<Bytes, BodyError> {
        let chunk = self.encoded_chunk(number)?;
        Ok(chunk.slice(CHUNK_HEAD_BYTES.min(chunk.len())..))
    }

    /// The chunk `number` as it stands in the file, with its head, verified: what [`super::Partial::accept`] takes. None behind the
    /// last one.
    ///
    /// # Errors
    /// [`BodyError`].
    pub fn encoded_chunk(&self, number: u64) -> Result<Bytes, BodyError> {
        let mut chunk = Vec::new();
        self.load(number, &mut chunk)?;
        Ok(chunk.into())
    }

    /// The next body bytes in order, about a chunk; `None` when all were given, and with the last ones the whole body is verified.
    ///
    /// # Errors
    /// [`BodyError`]. What came before it is what was written.
    pub fn next_chunk(&mut self) -> Result<Option<Bytes>, BodyError> {
        if self.taken == self.buffer.len() && !self.advance()? {
            return Ok(None);
        }
        let chunk = Bytes::from(std::mem::take(&mut self.buffer));
        Ok(Some(chunk.slice(std::mem::take(&mut self.taken)..)))
    }

    /// Loads the chunk that is next in order; false when there is none.
    fn advance(&mut self) -> Result<bool, BodyError> {
        if self.next == self.info.chunks() {
            return Ok(false);
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        self.taken = 0;
        self.load(self.next, &mut buffer)?;
        self.digest.update(&buffer[CHUNK_HEAD_BYTES..]);
        if self.next + 1 == self.info.chunks() {
            let (have, expected) = (self.digest.value(), self.info.digest);
            if have != expected {
                // What is left in the buffer must not be read: it is not put back.
                return Err(flawed(&self.name)(BodyFlaw::Digest { have, expected }));
            }
        }
        self.next += 1;
        (self.buffer, self.taken) = (buffer, CHUNK_HEAD_BYTES);
        Ok(true)
    }

    fn load(&self, number: u64, into: &mut Vec<u8>) -> Result<(), BodyError> {
        if number >= self.info.chunks() {
            into.clear();
            return Ok(());
        }
        let len = CHUNK_HEAD_BYTES + self.info.chunk_bytes(number);
        if into.capacity() < len {
            // Zeroed by the system where it is new, and not once more here.
            *into = vec![0; len];
        }
        into.resize(len, 0);
        self.file.read_exact_at(chunk_at(number), into).map_err(failed("read", &self.name))?;
        match chunk_holds(&self.info, number, into) {
            true => Ok(()),
            false => Err(flawed(&self.name)(BodyFlaw::Chunk { number })),
        }
    }
}

impl<D: Disk> Read for BodyReader<D> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() || (self.taken == self.buffer.len() && !self.advance()?) {
            return Ok(0);
        }
        let len = into.len().min(self.buffer.len() - self.taken);
        into[..len].copy_from_slice(&self.buffer[self.taken..self.taken + len]);
        self.taken += len;
        Ok(len)
    }
}

impl<D: Disk> fmt::Debug for BodyReader<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BodyReader").field("info", &self.info).field("next", &self.next).finish_non_exhaustive()
    }
}

/// Reads all of a snapshot: every byte of the file is checked.
///
/// # Errors
/// [`BodyError`].
pub fn verify<D: Disk>(disk: &D, file_name: &str) -> Result<Info, BodyError> {
    let mut reader = BodyReader::open(disk, file_name)?;
    while reader.advance()? {}
    Ok(reader.info)
}

/// What a snapshot's file is by its header and footer; its chunks are not looked at.
///
/// # Errors
/// As [`BodyReader::open`].
pub fn info<D: Disk>(disk: &D, file_name: &str) -> Result<Info, BodyError> {
    BodyReader::open(disk, file_name).map(|reader| reader.info)
}

/// Header and footer of a file.
pub(super) fn info_of<F: DiskFile>(file: &F, name: &str) -> Result<Info, BodyError> {
    let len = file.len().map_err(failed("look at", name))?;
    let mut bytes = [0; INFO_BYTES];
    if len < INFO_BYTES as u64 {
        // It may all the same say of itself that newer software made it.
        let have = file.read_at(0, &mut bytes).map_err(failed("read", name))?;
        let flaw = super::Header::decode(&bytes[..have]).err();
        return Err(flawed(name)(flaw.unwrap_or(BodyFlaw::Short { have: len })));
    }
    let (header, footer) = bytes.split_at_mut(HEADER_BYTES);
    file.read_exact_at(0, header).map_err(failed("read", name))?;
    super::Header::decode(header).map_err(flawed(name))?;
    file.read_exact_at(len - FOOTER_BYTES as u64, footer).map_err(failed("read", name))?;
    let info = Info::decode(&bytes).map_err(flawed(name))?;
    if info.file_bytes() != len {
        let flaw =
            if info.file_bytes() > len { BodyFlaw::Short { have: len } } else { BodyFlaw::Length { part: "file" } };
        return Err(flawed(name)(flaw));
    }
    Ok(info)
}
