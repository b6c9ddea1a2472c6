//! Where bytes go that recovery cuts from the end of the log.
//!
//! They were never acknowledged as far as anybody can prove, but somebody may want to look. Their space is taken when the
//! log is made and when it is opened, so that a full disk neither loses them nor keeps a node from starting: bytes that
//! cannot be kept are not cut.

use std::io;

use crate::disk::{Disk, DiskFile, WriteMode};
use crate::error::{OpenError, SegmentId};
use crate::open::io_at;
use crate::types::RecoveryReport;

/// The file whose space is taken ahead. Once it holds something it gets a name that starts with [`CUT_PREFIX`].
pub(crate) const CUT_AREA: &str = "cut";
/// Cut bytes are kept under names that start like this.
pub(crate) const CUT_PREFIX: &str = "cut-";
/// Space taken ahead: several batches of what a busy node writes between two syncs. What is larger needs more.
pub(crate) const CUT_AREA_BYTES: u64 = 1 << 20;
/// Bytes copied at once.
const STEP_BYTES: u64 = 256 << 10;

/// Takes the space, if that was not done yet. The name is durable after the next sync of the directory.
pub(crate) fn reserve<D: Disk>(disk: &D) -> io::Result<()> {
    let area = match disk.open(CUT_AREA, Some(WriteMode::Buffered)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => disk.create(CUT_AREA, WriteMode::Buffered)?,
        opened => opened?,
    };
    if area.len()? < CUT_AREA_BYTES { area.allocate(CUT_AREA_BYTES) } else { Ok(()) }
}

/// Keeps a copy of the bytes `from..to` of a segment, which are about to be cut; durable when this returns.
pub(crate) fn save<D: Disk>(
    disk: &D,
    file: &D::File,
    id: u64,
    (from, to): (u64, u64),
    report: &mut RecoveryReport,
) -> Result<(), OpenError> {
    let name = format!("{CUT_PREFIX}{id:016x}-{from:x}");
    report.torn_bytes = to - from;
    let saved = match keeps(disk, &name, file, from, to).map_err(io_at("read", id, from))? {
        // Saved by an open that came no further than that.
        true => Ok(()),
        false => write(disk, &name, file, from, to),
    };
    match saved {
        Ok(()) => report.saved_as = Some(name),
        Err(cause) if matches!(cause.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
            return Err(OpenError::NoRoomForCut { segment: SegmentId(id), at: from, bytes: to - from });
        }
        Err(cause) => return Err(io_at("keep the cut bytes of", id, from)(cause)),
    }
    Ok(())
}

fn write<D: Disk>(disk: &D, name: &str, file: &D::File, from: u64, to: u64) -> io::Result<()> {
    reserve(disk)?;
    let area = disk.open(CUT_AREA, Some(WriteMode::Buffered))?;
    if area.len()? < to - from {
        area.allocate(to - from)?;
    }
    let mut buffer = vec![0; STEP_BYTES.min(to - from) as usize];
    let mut next = from;
    while next < to {
        let some = buffer.len().min((to - next) as usize);
        file.read_exact_at(next, &mut buffer[..some])?;
        area.write_at(next - from, &buffer[..some])?;
        next += some as u64;
    }
    area.shorten(to - from)?;
    area.sync_data()?;
    // Power fails before the directory is durable: nothing was cut yet, and the next open saves the same bytes again.
    disk.rename(CUT_AREA, name)?;
    disk.sync_dir()
}

/// Whether the file `name` holds exactly these bytes.
fn keeps<D: Disk>(disk: &D, name: &str, file: &D::File, from: u64, to: u64) -> io::Result<bool> {
    let kept = match disk.open(name, None) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        opened => opened?,
    };
    if kept.len()? != to - from {
        return Ok(false);
    }
    let mut there = vec![0; STEP_BYTES.min(to - from) as usize];
    let mut here = there.clone();
    let mut next = from;
    while next < to {
        let some = there.len().min((to - next) as usize);
        kept.read_exact_at(next - from, &mut there[..some])?;
        file.read_exact_at(next, &mut here[..some])?;
        if there[..some] != here[..some] {
            return Ok(false);
        }
        next += some as u64;
    }
    Ok(true)
}
