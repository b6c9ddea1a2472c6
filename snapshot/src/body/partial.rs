//! Receiving a snapshot from another node, over any number of connections and lives.

use std::fmt;
use std::io::IoSlice;

use graven_wal::{Disk, DiskFile, WriteMode};

use super::directory::remove_if_there;
use super::error::{BodyError, BodyFlaw, failed, flawed};
use super::format::{BODY_BYTES_MAX, CHUNK_HEAD_BYTES, Digest, Info, chunk_at, chunk_holds};
use super::read::info_of;
use super::write::{Options, Paced};

/// A snapshot that is being received.
///
/// The file has its whole length, its header and its footer from the beginning; chunks are added in order. There is no note of how far it
/// is: [`Partial::open`] reads what is there, and the first chunk that does not hold is the next one wanted. That costs one pass over
/// what was received, which the digest needs anyway. Dropped, the file stays for the next time; after an error of the disk it is removed,
/// because what a failed sync left cannot be told from what is durable.
pub struct Partial<D: Disk> {
    out: Paced<D>,
    info: Info,
    digest: Digest,
    next: u64,
}

impl<D: Disk> Partial<D> {
    /// Begins to receive this snapshot, or goes on where it stood. What is there under its name and is of another snapshot is removed.
    ///
    /// # Errors
    /// [`BodyError::is_full`] when there is no room for all of it; nothing is left then. [`BodyError::Length`] when it is larger than
    /// any can be; [`BodyError::Io`].
    pub fn open(disk: &D, info: Info, options: Options) -> Result<Partial<D>, BodyError> {
        let name = info.header.partial_name();
        if info.bytes > BODY_BYTES_MAX {
            return Err(BodyError::Length { file: name, have: info.bytes, expected: BODY_BYTES_MAX });
        }
        let there = match disk.open(&name, Some(WriteMode::Buffered)).map_err(failed("open", &name)) {
            Ok(file) => info_of(&file, &name).map(|found| (found == info).then_some(file)),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error),
        };
        match there {
            Ok(Some(file)) => Partial::resume(disk, file, name, info, options),
            Ok(None) | Err(BodyError::Flawed { .. }) => Partial::begin(disk, name, info, options),
            Err(error) => Err(error),
        }
    }

    fn begin(disk: &D, name: String, info: Info, options: Options) -> Result<Partial<D>, BodyError> {
        remove_if_there(disk, &name)?;
        let mut out = Paced::create(disk, name, options, Some(info.file_bytes()))?;
        let header = info.header.encode();
        out.write(0, &mut [IoSlice::new(&header)])?;
        out.write(info.footer_at(), &mut [IoSlice::new(&info.footer(&header))])?;
        out.sync()?;
        // Without this a power failure takes the name, and with it all that was received.
        disk.sync_dir().map_err(failed("sync the directory of", out.name()))?;
        out.keep = true;
        Ok(Partial { out, info, digest: Digest::new(), next: 0 })
    }

    fn resume(disk: &D, file: D::File, name: String, info: Info, options: Options) -> Result<Partial<D>, BodyError> {
        let mut out = Paced::resume(disk, file, name, options);
        out.keep = true;
        let (mut digest, mut next, mut chunk) = (Digest::new(), 0, Vec::new());
        while next < info.chunks() {
            chunk.resize(CHUNK_HEAD_BYTES + info.chunk_bytes(next), 0);
            out.file().read_exact_at(chunk_at(next), &mut chunk).map_err(failed("read", out.name()))?;
            if !chunk_holds(&info, next, &chunk) {
                break;
            }
            digest.update(&chunk[CHUNK_HEAD_BYTES..]);
            next += 1;
        }
        Ok(Partial { out, info, digest, next })
    }

    /// What is received.
    #[must_use]
    pub fn info(&self) -> &Info {
        &self.info
    }

    /// The next chunk wanted; `None` when all are there.
    #[must_use]
    pub fn wanted(&self) -> Option<u64> {
        (self.next < self.info.chunks()).then_some(self.next)
    }

    /// Body bytes received.
    #[must_use]
    pub fn received_bytes(&self) -> u64 {
        self.info.bytes.min(self.next * super::CHUNK_BYTES as u64)
    }

    /// Takes the chunk `number`, as [`super::BodyReader::encoded_chunk`] gives it. It is checked first.
    ///
    /// # Errors
    /// [`BodyError::Refused`]: it is not the one that is due; nothing has changed. Any other is the disk's: it is closed, and what
    /// was received is removed.
    pub fn accept(&mut self, number: u64, chunk: &[u8]) -> Result<(), BodyError> {
        self.out.check_open()?;
        if number != self.next || !chunk_holds(&self.info, number, chunk) {
            return Err(BodyError::Refused { file: self.out.name().to_owned(), number });
        }
        self.out.write(chunk_at(number), &mut [IoSlice::new(chunk)])?;
        self.digest.update(&chunk[CHUNK_HEAD_BYTES..]);
        self.next += 1;
        Ok(())
    }

    /// Makes the snapshot durable under [`super::Header::file_name`], in place of one of that name, if it is whole.
    ///
    /// # Errors
    /// [`BodyError::Incomplete`]: what is there stays. [`BodyError::Flawed`]: the chunks are not of the body that was announced, so whoever
    /// announced it has none such; what was received is removed. Others as [`super::BodyWriter::finish`].
    pub fn finish(mut self) -> Result<Info, BodyError> {
        self.out.check_open()?;
        if let Some(wanted) = self.wanted() {
            return Err(BodyError::Incomplete { file: self.out.name().to_owned(), wanted });
        }
        let (have, expected) = (self.digest.value(), self.info.digest);
        if have != expected {
            let flaw = BodyFlaw::Digest { have, expected };
            return Err(self.out.give_up(|file| flawed(&file)(flaw)));
        }
        self.out.publish(&self.info.header.file_name())?;
        Ok(self.info)
    }

    /// Removes what was received.
    pub fn discard(mut self) {
        self.out.keep = false;
    }
}

impl<D: Disk> fmt::Debug for Partial<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Partial").field("info", &self.info).field("next", &self.next).finish_non_exhaustive()
    }
}
