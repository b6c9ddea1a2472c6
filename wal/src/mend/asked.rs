//! The wish that a log is mended as a whole when it is opened next: an empty file `mend-at-start` in the data directory.
//!
//! A segment of an open log can be mended where what stands behind it stays what it is. Entries that a leader superseded may be the last ones of
//! a segment, and nobody else has them any more: the segments behind must be written anew then too, which needs the log closed. The file
//! decides nothing else. Lost, the damage is found again.

use std::io;

use crate::disk::{Disk, WriteMode};

/// Its name.
pub(crate) const ASKED: &str = "mend-at-start";

/// Leaves the wish.
///
/// # Errors
/// The disk's.
pub fn ask_at_start<D: Disk>(disk: &D) -> io::Result<()> {
    if is_asked(disk) {
        return Ok(());
    }
    disk.create(ASKED, WriteMode::Buffered)?;
    disk.sync_dir()
}

/// Whether it is there.
#[must_use]
pub fn is_asked<D: Disk>(disk: &D) -> bool {
    disk.open(ASKED, None).is_ok()
}

/// Takes it back.
///
/// # Errors
/// The disk's; it may be there still.
pub fn unask<D: Disk>(disk: &D) -> io::Result<()> {
    match disk.remove(ASKED) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => disk.sync_dir(),
    }
}
