//! Up to where a log was let go of: what tells a log that was trimmed from one whose first files were lost.
//!
//! A file of two blocks whose space is taken ahead, so that it can be written on a full disk: that is when logs are trimmed. Each block
//! holds the same record, written and synced one after the other: power fails in the middle of a write, and the other one is whole.

use std::cmp::Ordering;
use std::io;

use graven_frame::Chain;
use graven_wal::{Disk, DiskFile, LogBase, WriteMode};

use crate::store::{CheckpointError, failed};

const NAME: &str = "released";
const UNFINISHED: &str = "released.new";
const MAGIC: &[u8; 8] = b"GRVNRLSD";
const VERSION: u32 = 2;
/// Two blocks apart: no write touches both.
const BLOCK_BYTES: u64 = 4096;
/// Magic 8, version 4, zero 4, index 8, term 8, chain 8, next offset 8, timestamp 8, zero 4, CRC 4.
const RECORD_BYTES: usize = 64;
/// Of version 1: magic 8, version 4, zero 4, index 8, zero 4, CRC 4.
const OLD_BYTES: usize = 32;

/// How far a log was let go of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Released {
    /// The last entry that was let go of; 0 when none was, or nothing is on record.
    pub index: u64,
    /// That entry as the place where the log goes on, if it was known: with it the log's first file may be damaged, and the
    /// checkpoint of that entry too.
    pub base: Option<LogBase>,
    /// Blocks of the two that hold neither a record nor nothing.
    pub damaged: usize,
    /// The two blocks say the same.
    alike: bool,
}

/// What is on record.
///
/// # Errors
/// The disk's, and [`CheckpointError::Flawed`] never: a record that is not whole counts for nothing.
pub fn released<D: Disk>(disk: &D) -> Result<Released, CheckpointError> {
    let file = match disk.open(NAME, None) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(Released::default()),
        opened => opened.map_err(failed("open", NAME))?,
    };
    let mut blocks = [Block::Nothing; 2];
    for (at, block) in (0..).zip(&mut blocks) {
        let mut bytes = [0; RECORD_BYTES];
        let have = file.read_at(at * BLOCK_BYTES, &mut bytes).map_err(failed("read", NAME))?;
        *block = Block::decode(&bytes[..have]);
    }
    let found = blocks.iter().map(|block| block.record()).max_by_key(|found| (found.index, found.base.is_some()));
    let damaged = blocks.iter().filter(|block| **block == Block::Damaged).count();
    Ok(Released { damaged, alike: blocks[0] == blocks[1], ..found.unwrap_or_default() })
}

/// Writes both records again when one of them is damaged, or when `base` tells more than they do: what is left is whole only as long as it
/// is not damaged too. `base` is where the log that was opened begins.
///
/// # Errors
/// The disk's.
pub fn renew_released<D: Disk>(disk: &D, base: &LogBase) -> Result<(), CheckpointError> {
    let found = released(disk)?;
    let untold = found.index == base.index && found.base.is_none();
    match found.index > 0 && (untold || !found.alike || found.damaged > 0) {
        true => note_released(disk, found.index, untold.then_some(*base)),
        false => Ok(()),
    }
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
    disk.remove_unfinished(UNFINISHED).map_err(failed("remove", UNFINISHED))?;
    let file = disk.create(UNFINISHED, WriteMode::Buffered).map_err(failed("make", UNFINISHED))?;
    file.allocate(2 * BLOCK_BYTES).map_err(failed("take space for", UNFINISHED))?;
    file.write_at(0, &[0; 2 * BLOCK_BYTES as usize]).map_err(failed("write", UNFINISHED))?;
    file.sync_data().map_err(failed("sync", UNFINISHED))?;
    disk.rename(UNFINISHED, NAME).map_err(failed("rename", UNFINISHED))?;
    disk.sync_dir().map_err(failed("sync the directory of", NAME))
}

/// Puts on record, durably, that the log is about to be let go of up to `index`, and what stands there, if that is known. Call it before
/// any file goes.
///
/// # Errors
/// The disk's. After a full one nothing may be let go of.
pub fn note_released<D: Disk>(disk: &D, index: u64, base: Option<LogBase>) -> Result<(), CheckpointError> {
    // Written even if it reads like this already: after a failed sync a start sees bytes that the disk never got, and only writing them
    // again makes the sync below mean something.
    let found = released(disk)?;
    let (index, base) = match index.cmp(&found.index) {
        Ordering::Less => (found.index, found.base),
        Ordering::Equal => (index, base.or(found.base)),
        Ordering::Greater => (index, base),
    };
    let file = match disk.open(NAME, Some(WriteMode::Buffered)) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
            make(disk)?;
            disk.open(NAME, Some(WriteMode::Buffered))
        }
        opened => opened,
    };
    let file = file.map_err(failed("open", NAME))?;
    for block in 0..2 {
        file.write_at(block * BLOCK_BYTES, &encode(index, base)).map_err(failed("write", NAME))?;
        file.sync_data().map_err(failed("sync", NAME))?;
    }
    Ok(())
}

/// What a block holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Block {
    Nothing,
    Damaged,
    Record { index: u64, base: Option<LogBase> },
}

impl Block {
    fn decode(bytes: &[u8]) -> Block {
        if bytes.iter().all(|byte| *byte == 0) {
            return Block::Nothing;
        }
        decode(bytes).or_else(|| decode_old(bytes)).unwrap_or(Block::Damaged)
    }

    fn record(&self) -> Released {
        match *self {
            Block::Record { index, base } => Released { index, base, ..Released::default() },
            Block::Nothing | Block::Damaged => Released::default(),
        }
    }
}

/// A base of which only the index is known is written as zeros: no entry has term 0.
fn encode(index: u64, base: Option<LogBase>) -> Vec<u8> {
    let base = base.unwrap_or_default();
    let mut bytes = Vec::with_capacity(RECORD_BYTES);
    bytes.extend(MAGIC);
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(0u32.to_le_bytes());
    for word in [index, base.term, base.chain.0, base.next_offset, base.timestamp_ms] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(0u32.to_le_bytes());
    let crc = crc32fast::hash(&bytes);
    bytes.extend(crc.to_le_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> Option<Block> {
    let word = |at: usize| bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
    let (index, term, chain) = (word(16)?, word(24)?, Chain(word(32)?));
    let base = LogBase { index, term, chain, next_offset: word(40)?, timestamp_ms: word(48)? };
    let base = (term > 0).then_some(base);
    (bytes == encode(index, base)).then_some(Block::Record { index, base })
}

fn decode_old(bytes: &[u8]) -> Option<Block> {
    let record = bytes.get(..OLD_BYTES)?;
    let (said, sum) = record.split_at(OLD_BYTES - 4);
    let index = u64::from_le_bytes(record.get(16..24)?.try_into().ok()?);
    let is_whole = said.starts_with(MAGIC)
        && said.get(8..12)? == 1u32.to_le_bytes()
        && crc32fast::hash(said).to_le_bytes() == *sum;
    is_whole.then_some(Block::Record { index, base: None })
}

#[cfg(test)]
mod tests {
    use graven_wal::sim::SimDisk;

    use super::*;

    fn base(index: u64) -> Option<LogBase> {
        Some(LogBase { index, term: 3, chain: Chain(index * 77), next_offset: index * 10, timestamp_ms: 5 })
    }

    #[test]
    fn power_cut_at_every_call_leaves_the_old_record_or_the_new_one() {
        for cut in 0.. {
            let disk = SimDisk::new(cut);
            reserve(&disk).expect("room");
            note_released(&disk, 5, base(5)).expect("written");
            disk.power_off_after(cut);
            let noted = note_released(&disk, 9, base(9));
            let found = released(&disk.crash(cut)).expect("read");
            assert!(found.index == 9 || (found.index == 5 && noted.is_err()), "call {cut}: {found:?}, {noted:?}");
            assert_eq!(found.base, base(found.index));
            if noted.is_ok() {
                assert!(cut >= 4, "every step of it was cut");
                return;
            }
        }
    }

    #[test]
    fn it_is_written_on_a_full_disk_and_one_rotten_block_costs_nothing() {
        let disk = SimDisk::new(1);
        assert_eq!(released(&disk).expect("nothing"), Released::default());
        reserve(&disk).expect("room");
        disk.full(Some(disk.used_bytes()));
        note_released(&disk, 7, base(7)).expect("its space is there");
        disk.rot(NAME, 17, |byte| *byte ^= 1);
        let found = released(&disk).expect("the other block");
        assert_eq!((found.index, found.base, found.damaged), (7, base(7), 1));
        disk.rot(NAME, BLOCK_BYTES + 3, |byte| *byte ^= 1);
        let found = released(&disk).expect("none is whole");
        assert_eq!((found.index, found.damaged), (0, 2));
        let full = SimDisk::new(2);
        full.full(Some(0));
        reserve(&full).expect("later, then");
        assert!(note_released(&full, 3, None).is_err_and(|error| error.is_full()));
    }

    #[test]
    fn a_rotten_block_is_written_again_and_a_place_that_was_not_known_is_noted() {
        let disk = SimDisk::new(3);
        renew_released(&disk, &LogBase::default()).expect("nothing to do");
        assert_eq!(released(&disk).expect("nothing"), Released::default());
        note_released(&disk, 7, base(7)).expect("written");
        // One block after the other, and the other one is there for each.
        for block in 0..2 {
            disk.rot(NAME, block * BLOCK_BYTES + 40, |byte| *byte ^= 4);
            renew_released(&disk, &base(5).unwrap_or_default()).expect("written");
            let found = released(&disk).expect("read");
            assert_eq!((found.index, found.base, found.damaged, found.alike), (7, base(7), 0, true));
        }
        note_released(&disk, 8, None).expect("written");
        assert_eq!(released(&disk).expect("read").base, None);
        renew_released(&disk, &base(8).unwrap_or_default()).expect("written");
        assert_eq!(released(&disk).expect("read").base, base(8));
        note_released(&disk, 6, base(6)).expect("not backwards");
        assert_eq!(released(&disk).expect("read").base, base(8));
    }

    /// Written by an earlier version: only the index.
    #[test]
    fn a_record_of_version_1_is_read() {
        let disk = SimDisk::new(4);
        reserve(&disk).expect("room");
        let mut record = Vec::from(*MAGIC);
        record.extend(1u64.to_le_bytes());
        record.extend(42u64.to_le_bytes());
        record.extend(0u32.to_le_bytes());
        record.extend(crc32fast::hash(&record).to_le_bytes());
        let file = disk.open(NAME, Some(WriteMode::Buffered)).expect("there");
        (0..2).for_each(|block| file.write_at(block * BLOCK_BYTES, &record).expect("written"));
        let found = released(&disk).expect("read");
        assert_eq!((found.index, found.base, found.damaged), (42, None, 0));
    }
}
