//! Where bytes go that recovery cuts from the end of the log.
//!
//! They were never acknowledged as far as anybody can prove, but somebody may want to look. The first cuts get a file of their
//! own each. When there are [`CUT_FILES`] of those, and on a full disk, they are put one behind the other into an area whose
//! space is taken when the log is made and when it is opened. It grows as it is used, so that a node that crashes for years
//! has no more names in its directory, and loses nothing. So a full disk neither loses them nor keeps a node from starting; what
//! finds no room even there is not cut.

use std::io;

use crate::disk::{Disk, DiskFile, WriteMode};
use crate::error::{OpenError, SegmentId};
use crate::open::io_at;
use crate::types::RecoveryReport;

/// The file whose space is taken ahead. In it, on boundaries of 512 bytes: a header (`GRVC`, CRC of the bytes, then segment, place
/// and length, 8 bytes each, CRC of these 32 bytes) in a block of its own, and the bytes. It ends where no header stands.
pub(crate) const CUT_AREA: &str = "cut";
/// Cut bytes are kept under names that start like this.
pub(crate) const CUT_PREFIX: &str = "cut-";
/// Cuts that get a file of their own; whoever has looked at them may remove them, and then there is room for others.
pub(crate) const CUT_FILES: usize = 32;
/// Space taken ahead, behind what is in the area: several batches of what a busy node writes between two syncs. What is larger needs more.
pub(crate) const CUT_AREA_BYTES: u64 = 1 << 20;
/// Bytes copied at once.
const STEP_BYTES: u64 = 256 << 10;

/// Takes the space, if that was not done yet. The name is durable after the next sync of the directory.
pub(crate) fn reserve<D: Disk>(disk: &D) -> io::Result<()> {
    let area = match disk.open(CUT_AREA, Some(WriteMode::Buffered)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => disk.create(CUT_AREA, WriteMode::Buffered)?,
        opened => opened?,
    };
    let (len, wanted) = (area.len()?, used(&area)? + CUT_AREA_BYTES);
    if len < wanted {
        area.allocate(wanted)?;
        // Without this the name may survive a power cut and the space not.
        area.sync_data()?;
    }
    Ok(())
}

/// Keeps a copy of the bytes `from..to` of a segment, which are about to be cut; durable when this returns.
pub(crate) fn save<D: Disk>(
    disk: &D,
    file: &D::File,
    id: u64,
    (from, to): (u64, u64),
    report: &mut RecoveryReport,
) -> Result<(), OpenError> {
    report.torn_bytes += to - from;
    let read = |cause| io_at("read", id, from)(cause);
    let files = disk.list().map_err(read)?.iter().filter(|name| name.starts_with(CUT_PREFIX)).count();
    let mut name = format!("{CUT_PREFIX}{id:016x}-{from:x}");
    let mut number = 1;
    let saved = loop {
        match keeps(disk, &name, file, from, to).map_err(read)? {
            // Saved by an open that came no further than that.
            Some(true) => break Ok(()),
            None if files >= CUT_FILES => break Err(io::ErrorKind::StorageFull.into()),
            None => break write(disk, &name, file, from, to),
            Some(false) => number += 1,
        }
        name = format!("{CUT_PREFIX}{id:016x}-{from:x}-{number}");
    };
    let saved = match saved {
        Err(cause) if is_full(&cause) => {
            let _ = disk.remove(&name);
            name = CUT_AREA.to_owned();
            append(disk, file, (id, from, to))
        }
        saved => saved,
    };
    match saved {
        Ok(()) => report.saved_as = Some(name),
        Err(cause) if is_full(&cause) => {
            return Err(OpenError::NoRoomForCut { segment: SegmentId(id), at: from, bytes: to - from });
        }
        Err(cause) => return Err(io_at("keep the cut bytes of", id, from)(cause)),
    }
    Ok(())
}

fn is_full(cause: &io::Error) -> bool {
    matches!(cause.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn write<D: Disk>(disk: &D, name: &str, file: &D::File, from: u64, to: u64) -> io::Result<()> {
    let kept = disk.create(name, WriteMode::Buffered)?;
    kept.allocate(to - from)?;
    copy(file, &kept, (from, to), 0)?;
    kept.sync_data()?;
    // Power fails before the directory is durable: nothing was cut yet, and the next open saves the same bytes again.
    disk.sync_dir()
}

/// Puts the bytes behind those that are in the area, which grows where that is possible.
fn append<D: Disk>(disk: &D, file: &D::File, (id, from, to): (u64, u64, u64)) -> io::Result<()> {
    let taken = reserve(disk);
    let area = disk.open(CUT_AREA, Some(WriteMode::Buffered))?;
    let mut header = [0; HEADER_BYTES];
    header[..4].copy_from_slice(b"GRVC");
    header[4..8].copy_from_slice(&crc_of(file, from, to)?.to_le_bytes());
    for (slot, number) in header[8..32].chunks_exact_mut(8).zip([id, from, to - from]) {
        slot.copy_from_slice(&number.to_le_bytes());
    }
    let crc = crc32fast::hash(&header[..32]);
    header[32..].copy_from_slice(&crc.to_le_bytes());
    let mut at = 0;
    while let Some((there, end)) = kept_at(&area, at)? {
        if there == header {
            // Saved by an open that came no further than that.
            return area.sync_data();
        }
        at = end;
    }
    let end = at + BLOCK_BYTES + (to - from).next_multiple_of(BLOCK_BYTES);
    if end > area.len()? {
        taken?;
        area.allocate(end)?;
        area.sync_data()?;
    }
    // The header last: with it the bytes are there.
    copy(file, &area, (from, to), at + BLOCK_BYTES)?;
    area.sync_data()?;
    area.write_at(at, &header)?;
    area.sync_data()
}

/// Byte behind what is in the area.
fn used<F: DiskFile>(area: &F) -> io::Result<u64> {
    let mut at = 0;
    while let Some((_, end)) = kept_at(area, at)? {
        at = end;
    }
    Ok(at)
}

/// The header at `at` and the byte behind what it stands for; `None` where no header stands.
fn kept_at<F: DiskFile>(area: &F, at: u64) -> io::Result<Option<([u8; HEADER_BYTES], u64)>> {
    let len = area.len()?;
    if at + BLOCK_BYTES > len {
        return Ok(None);
    }
    let mut there = [0; HEADER_BYTES];
    area.read_exact_at(at, &mut there)?;
    if !there.starts_with(b"GRVC") || crc32fast::hash(&there[..32]).to_le_bytes() != there[32..] {
        return Ok(None);
    }
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&there[24..32]);
    let end = at + BLOCK_BYTES + u64::from_le_bytes(bytes).min(len).next_multiple_of(BLOCK_BYTES);
    Ok(Some((there, end)))
}

/// Bytes of a header in the area.
const HEADER_BYTES: usize = 36;
/// What is in the area starts on this boundary.
const BLOCK_BYTES: u64 = 512;

fn crc_of<F: DiskFile>(file: &F, from: u64, to: u64) -> io::Result<u32> {
    let mut hasher = crc32fast::Hasher::new();
    pieces(file, from, to, |_, piece| {
        hasher.update(piece);
        Ok(())
    })?;
    Ok(hasher.finalize())
}

fn copy<F: DiskFile>(file: &F, kept: &F, (from, to): (u64, u64), at: u64) -> io::Result<()> {
    pieces(file, from, to, |next, piece| kept.write_at(at + (next - from), piece))
}

/// Goes through the bytes `from..to` piece by piece.
fn pieces<F: DiskFile>(
    file: &F,
    from: u64,
    to: u64,
    mut take: impl FnMut(u64, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut buffer = vec![0; STEP_BYTES.min(to - from) as usize];
    let mut next = from;
    while next < to {
        let some = buffer.len().min((to - next) as usize);
        file.read_exact_at(next, &mut buffer[..some])?;
        take(next, &buffer[..some])?;
        next += some as u64;
    }
    Ok(())
}

/// Whether the file `name` holds exactly these bytes; `None` when there is none.
fn keeps<D: Disk>(disk: &D, name: &str, file: &D::File, from: u64, to: u64) -> io::Result<Option<bool>> {
    let kept = match disk.open(name, None) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    if kept.len()? != to - from {
        return Ok(Some(false));
    }
    let mut same = true;
    let mut there = vec![0; STEP_BYTES.min(to - from) as usize];
    pieces(file, from, to, |next, piece| {
        kept.read_exact_at(next - from, &mut there[..piece.len()])?;
        same &= there[..piece.len()] == *piece;
        Ok(())
    })?;
    Ok(Some(same))
}
