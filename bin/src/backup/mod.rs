//! Backups: a log's checkpoint and frames in a directory, with digests of everything.
//!
//! [`Writer`] makes one of what it is given, and leaves nothing when it is not finished; [`Backup`] opens one, checks every byte, and gives
//! the frames back. What becomes of them is [`crate::init::restore`]'s business. Neither knows where frames come from.
#![doc = "\n\n"]
#![doc = include_str!("FORMAT.md")]

mod manifest;
mod read;
mod write;

use std::io;
use std::path::{Path, PathBuf};

use graven_snapshot::{Checkpoint, CheckpointError};
use graven_wal::Disk;

pub use manifest::{FramesFile, MANIFEST, Manifest, PlainFile};
pub use read::{Backup, Frames};
pub use write::Writer;

/// The version this code writes, and the newest it reads.
pub const FORMAT_VERSION: u32 = 1;
/// The checkpoint's name.
const CHECKPOINT: &str = "checkpoint";
/// A file of frames ends with the one that takes it to so many bytes: few enough files to list, small enough to copy again.
pub const FILE_BYTES: u64 = 64 << 20;

/// The name of the file of frames that begins with this entry.
fn frames_name(first: u64) -> String {
    format!("frames-{first:016x}")
}

/// The checkpoint with which a copy of a log begins whose files begin behind entry `base`, and whose last entry copied is `last`: the oldest one
/// from which on everything is there that is not trimmed. `None` when there is none.
///
/// # Errors
/// [`CheckpointError`]: it is damaged, or cannot be read.
pub fn beginning<D: Disk>(
    disk: &D,
    base: u64,
    first_offset: u64,
    last: u64,
) -> Result<Option<Checkpoint>, CheckpointError> {
    let Some(index) = graven_snapshot::stored(disk)?.into_iter().find(|index| *index >= base) else { return Ok(None) };
    let found = graven_snapshot::load(disk, index)?;
    Ok(Some(found).filter(|found| found.base.next_offset <= first_offset && index < last))
}

/// Bytes that are not what was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file} is damaged from byte {from} to {to}: {what}")]
pub struct Damage {
    /// The file's name.
    pub file: String,
    /// The first byte that cannot be right.
    pub from: u64,
    /// The byte behind the last one.
    pub to: u64,
    /// What is wrong.
    pub what: String,
}

/// Why a backup was not made, or cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// Something is in the way.
    #[error("{} is not empty; a backup gets a directory of its own: name a new one", dir.display())]
    NotEmpty {
        /// The directory.
        dir: PathBuf,
    },
    /// There is no backup.
    #[error("{} holds no backup: it has no {MANIFEST}", dir.display())]
    Missing {
        /// The directory.
        dir: PathBuf,
    },
    /// It was never finished.
    #[error("the backup in {} is unfinished: it was interrupted and cannot be used; remove the directory and make another one", dir.display())]
    Unfinished {
        /// The directory.
        dir: PathBuf,
    },
    /// Newer software made it.
    #[error("the backup in {} has format version {version}, this graven reads {FORMAT_VERSION}; use a newer one", dir.display())]
    Newer {
        /// The directory.
        dir: PathBuf,
        /// Its version.
        version: u64,
    },
    /// Bytes are not what was written.
    #[error("the backup in {} is damaged: {damage}", dir.display())]
    Damaged {
        /// The directory.
        dir: PathBuf,
        /// The first damage.
        damage: Damage,
    },
    /// What came is no log.
    #[error("what the cluster gave is not a log: {0}")]
    Source(String),
    /// The file system.
    #[error("cannot {what} {}: {cause}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
}

impl BackupError {
    fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BackupError {
        move |cause| BackupError::Io { what, path: path.to_owned(), cause }
    }

    /// Whether it is only that the disk has no room.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
        matches!(self, BackupError::Io { cause, .. } if full.contains(&cause.kind()))
    }
}

#[cfg(test)]
mod tests;
