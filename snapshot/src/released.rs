//! Up to where a log was let go of: what tells a log that was trimmed from one whose first files were lost.
//!
//! A file of two blocks whose space is taken ahead, so that it can be written on a full disk: that is when logs are trimmed. Each block
//! holds the same record, written and synced one after the other: power fails in the middle of a write, and the other one is whole.

use std::io;

use graven_wal::{Disk, DiskFile, WriteMode};

use crate::store::{CheckpointError, failed};

const NAME: &str = "released";
const UNFINISHED: &str = "released.new";
const MAGIC: &[u8; 8] = b"GRVNRLSD";
const VERSION: u32 = 1;
/// Two blocks apart: no write touches both.
const BLOCK_BYTES: u64 = 4096;
/// Magic 8, version 4, zero 4, index 8, zero 4, CRC 4.
const RECORD_BYTES: usize = 32;

/// The last entry that was let go of; 0 when none was, or nothing is on record.
///
/// # Errors
/// The disk's, and [`CheckpointError::Flawed`] never: a record that is not whole counts for nothing.
pub fn released<D: Disk>(disk: &D) -> Result<u64, CheckpointError> {
    let file = match disk.open(NAME, None) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(0),
        opened => opened.map_err(failed("open", NAME))?,
    };
    let mut highest = 0;
    for block in 0..2 {
        let mut bytes = [0; RECORD_BYTES];
        let have = file.read_at(block * BLOCK_BYTES, &mut bytes).map_err(failed("read", NAME))?;
        highest = highest.max(decode(&bytes[..have]).unwrap_or(0));
    }
    Ok(highest)
}

/// Takes the space for the record, if that was not done. On a full disk it is not, and tried again with the next call.
///
/// # Errors
/// The disk's, a full one excepted.
pub fn reserve<D: Disk>(disk: &D) -> Result<(), CheckpointError> {
    match disk.open(NAME, None) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => {}
        opened => return opened.map(drop).map_err(failed("open", NAME)),
    }
    match make(disk) {
        Err(error) if error.is_full() => match disk.remove(UNFINISHED) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(failed("remove", UNFINISHED)(cause)),
            _ => Ok(()),
        },
        made => made,
    }
}

fn make<D: Disk>(disk: &D) -> Result<(), CheckpointError> {
    match disk.remove(UNFINISHED) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(failed("remove", UNFINISHED)(cause)),
        _ => {}
    }
    let file = disk.create(UNFINISHED, WriteMode::Buffered).map_err(failed("make", UNFINISHED))?;
    file.allocate(2 * BLOCK_BYTES).map_err(failed("take space for", UNFINISHED))?;
    file.write_at(0, &[0; 2 * BLOCK_BYTES as usize]).map_err(failed("write", UNFINISHED))?;
    file.sync_data().map_err(failed("sync", UNFINISHED))?;
    disk.rename(UNFINISHED, NAME).map_err(failed("rename", UNFINISHED))?;
    disk.sync_dir().map_err(failed("sync the directory of", NAME))
}

/// Puts on record, durably, that the log is about to be let go of up to `index`. Call it before any file goes.
///
/// # Errors
/// The disk's. After a full one nothing may be let go of.
pub fn note_released<D: Disk>(disk: &D, index: u64) -> Result<(), CheckpointError> {
    // Written even if it reads like this already: after a failed sync a start sees bytes that the disk never got, and only writing them
    // again makes the sync below mean something.
    let index = index.max(released(disk)?);
    let file = match disk.open(NAME, Some(WriteMode::Buffered)) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
            make(disk)?;
            disk.open(NAME, Some(WriteMode::Buffered))
        }
        opened => opened,
    };
    let file = file.map_err(failed("open", NAME))?;
    for block in 0..2 {
        file.write_at(block * BLOCK_BYTES, &encode(index)).map_err(failed("write", NAME))?;
        file.sync_data().map_err(failed("sync", NAME))?;
    }
    Ok(())
}

fn encode(index: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(RECORD_BYTES);
    bytes.extend(MAGIC);
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(0u32.to_le_bytes());
    bytes.extend(index.to_le_bytes());
    bytes.extend(0u32.to_le_bytes());
    let crc = crc32fast::hash(&bytes);
    bytes.extend(crc.to_le_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> Option<u64> {
    let index = u64::from_le_bytes(bytes.get(16..24)?.try_into().ok()?);
    (bytes == encode(index)).then_some(index)
}

#[cfg(test)]
mod tests {
    use graven_wal::sim::SimDisk;

    use super::*;

    #[test]
    fn power_cut_at_every_call_leaves_the_old_record_or_the_new_one() {
        for cut in 0.. {
            let disk = SimDisk::new(cut);
            reserve(&disk).expect("room");
            note_released(&disk, 5).expect("written");
            disk.power_off_after(cut);
            let noted = note_released(&disk, 9);
            let found = released(&disk.crash(cut)).expect("read");
            assert!(found == 9 || (found == 5 && noted.is_err()), "call {cut}: {found}, {noted:?}");
            if noted.is_ok() {
                assert!(cut >= 4, "every step of it was cut");
                return;
            }
        }
    }

    #[test]
    fn it_is_written_on_a_full_disk_and_one_rotten_block_costs_nothing() {
        let disk = SimDisk::new(1);
        assert_eq!(released(&disk).expect("nothing"), 0);
        reserve(&disk).expect("room");
        disk.full(Some(disk.used_bytes()));
        note_released(&disk, 7).expect("its space is there");
        disk.rot(NAME, 17, |byte| *byte ^= 1);
        assert_eq!(released(&disk).expect("the other block"), 7);
        disk.rot(NAME, BLOCK_BYTES + 3, |byte| *byte ^= 1);
        assert_eq!(released(&disk).expect("none is whole"), 0);
        let full = SimDisk::new(2);
        full.full(Some(0));
        reserve(&full).expect("later, then");
        assert!(note_released(&full, 3).is_err_and(|error| error.is_full()));
    }
}
