//! The word that a log lost its end: a file `recovering` in the data directory.
//!
//! It is written, and durable, before the end is cut. As long as it is there the node may have acknowledged entries, or given a
//! vote, of which its log knows nothing. So whoever decides about votes reads it first, and removes it only when a leader has
//! brought the log past everything that may have been acknowledged here.

use std::io;

use crate::disk::{Disk, DiskFile, WriteMode};

/// Its name.
pub(crate) const MARKER: &str = "recovering";
/// Its name until it is whole.
pub(crate) const UNFINISHED_MARKER: &str = "recovering.new";
const MAGIC: [u8; 8] = *b"GRVNMRK\0";
const VERSION: u32 = 1;
/// Magic 8, version 4, flags 4, last kept 8, highest index 8, possible index 8, highest term 8, reserved 12, CRC 4.
const MARKER_BYTES: usize = 64;
/// The flag of [`Marker::hard_state_certain`].
const CERTAIN: u32 = 1;

/// What a log that lost something was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marker {
    /// The last entry that was kept.
    pub last_kept: u64,
    /// The highest index that was seen anywhere behind it.
    pub highest_index: u64,
    /// No entry above this index can have been acknowledged here: more would not have fitted into the damaged bytes. `u64::MAX`
    /// when nobody knows how many bytes those were.
    pub possible_index: u64,
    /// The highest term that was seen anywhere.
    pub highest_term: u64,
    /// Whether it is proven that no term or vote was lost. If not, this node must never vote again under its identity: it is
    /// to be replaced.
    pub hard_state_certain: bool,
}

/// Why the marker could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MarkerError {
    /// It is there, and not what was written: take it for one that says that a vote may be lost.
    #[error(
        "the file {MARKER} in the data directory is damaged: this node lost the end of its log and must not vote; replace it with `graven member replace`"
    )]
    Damaged,
    /// Newer software wrote it.
    #[error(
        "the file {MARKER} in the data directory has version {seen}, the newest this version reads is {VERSION}; upgrade first"
    )]
    Newer {
        /// The version found.
        seen: u32,
    },
    /// The disk said no.
    #[error("cannot {operation} the file {MARKER} in the data directory")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The disk's answer.
        #[source]
        cause: io::Error,
    },
}

fn io_in(operation: &'static str) -> impl FnOnce(io::Error) -> MarkerError {
    move |cause| MarkerError::Io { operation, cause }
}

impl Marker {
    /// Reads it; `None` when there is none. Takes no lock.
    ///
    /// # Errors
    /// When it is there and cannot be read: then nobody knows what was lost, and the node must not vote.
    pub fn read<D: Disk>(disk: &D) -> Result<Option<Marker>, MarkerError> {
        let file = match disk.open(MARKER, None) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(io_in("open"))?,
        };
        let mut bytes = [0; MARKER_BYTES];
        match file.read_exact_at(0, &mut bytes) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(MarkerError::Damaged),
            Err(error) => Err(io_in("read")(error)),
            Ok(()) => Marker::decode(&bytes).map(Some),
        }
    }

    /// Removes it, durably: a leader has brought the log past everything that may have been acknowledged. One that is not there
    /// is removed already. Holds for a log that is open, by whoever opened it.
    ///
    /// # Errors
    /// The disk's; it may be there still.
    pub fn remove<D: Disk>(disk: &D) -> Result<(), MarkerError> {
        match disk.remove(MARKER) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_in("remove")(error)),
            _ => {}
        }
        disk.sync_dir().map_err(io_in("sync the directory of"))
    }

    /// Writes it, durably; one that is there already goes on to hold.
    pub(crate) fn write<D: Disk>(mut self, disk: &D) -> Result<Marker, MarkerError> {
        match Marker::read(disk) {
            Ok(None) => {}
            Ok(Some(there)) => {
                self.last_kept = self.last_kept.min(there.last_kept);
                self.highest_index = self.highest_index.max(there.highest_index);
                self.possible_index = self.possible_index.max(there.possible_index);
                self.highest_term = self.highest_term.max(there.highest_term);
                self.hard_state_certain &= there.hard_state_certain;
            }
            Err(MarkerError::Damaged) => self.hard_state_certain = false,
            Err(error) => return Err(error),
        }
        disk.remove_unfinished(UNFINISHED_MARKER).map_err(io_in("write"))?;
        let file = disk.create(UNFINISHED_MARKER, WriteMode::Buffered).map_err(io_in("create"))?;
        file.write_at(0, &self.encode()).map_err(io_in("write"))?;
        file.sync_data().map_err(io_in("sync"))?;
        disk.rename(UNFINISHED_MARKER, MARKER).map_err(io_in("name"))?;
        disk.sync_dir().map_err(io_in("sync the directory of"))?;
        Ok(self)
    }

    fn encode(&self) -> [u8; MARKER_BYTES] {
        let mut out = [0; MARKER_BYTES];
        out[..8].copy_from_slice(&MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[12..16].copy_from_slice(&(if self.hard_state_certain { CERTAIN } else { 0 }).to_le_bytes());
        let numbers = [self.last_kept, self.highest_index, self.possible_index, self.highest_term];
        for (slot, number) in out[16..48].chunks_exact_mut(8).zip(numbers) {
            slot.copy_from_slice(&number.to_le_bytes());
        }
        let crc = crc32fast::hash(&out[..MARKER_BYTES - 4]);
        out[MARKER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8; MARKER_BYTES]) -> Result<Marker, MarkerError> {
        let (content, crc) = bytes.split_at(MARKER_BYTES - 4);
        if content[..8] != MAGIC || crc32fast::hash(content).to_le_bytes() != *crc {
            return Err(MarkerError::Damaged);
        }
        let u32_at = |at: usize| content[at..at + 4].first_chunk().copied().map_or(0, u32::from_le_bytes);
        let u64_at = |at: usize| content[at..at + 8].first_chunk().copied().map_or(0, u64::from_le_bytes);
        let seen = u32_at(8);
        if seen > VERSION {
            return Err(MarkerError::Newer { seen });
        }
        Ok(Marker {
            last_kept: u64_at(16),
            highest_index: u64_at(24),
            possible_index: u64_at(32),
            highest_term: u64_at(40),
            hard_state_certain: u32_at(12) & CERTAIN != 0,
        })
    }
}
