//! Checkpoints in a data directory.

use std::io;

use graven_wal::{Disk, DiskFile, LogBase, WriteMode};

use crate::format::{Checkpoint, Flaw, HEADER_BYTES, Head, file_bytes_max};

const PREFIX: &str = "checkpoint-";
const DAMAGED: &str = ".damaged";
/// The file that is being written.
const UNFINISHED: &str = "checkpoint.new";
/// A checkpoint that the log is about to begin with.
const STAGED: &str = "checkpoint.install";

/// Why a checkpoint was not saved or not loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The disk failed.
    #[error("cannot {operation} {name}: {cause}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// With which file.
        name: String,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// The file is not what was saved.
    #[error("{name} is not usable: {flaw}")]
    Flawed {
        /// The file.
        name: String,
        /// What is wrong with it.
        flaw: Flaw,
    },
}

impl CheckpointError {
    /// Whether it is only that the disk has no room.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
        matches!(self, CheckpointError::Io { cause, .. } if full.contains(&cause.kind()))
    }
}

pub(crate) fn failed(operation: &'static str, name: &str) -> impl FnOnce(io::Error) -> CheckpointError {
    let name = name.to_owned();
    move |cause| CheckpointError::Io { operation, name, cause }
}

/// The file name of the checkpoint of this index.
#[must_use]
pub fn name_of(index: u64) -> String {
    format!("{PREFIX}{index:016x}")
}

fn index_of(name: &str) -> Option<u64> {
    let index = u64::from_str_radix(name.strip_prefix(PREFIX)?, 16).ok()?;
    (name_of(index) == name).then_some(index)
}

/// Makes a checkpoint durable under its name, in place of one of the same index.
///
/// On a full disk nothing is left of it. After any other error it may be there or not; the disk is not to be trusted any
/// more, and the log beside it should be closed.
///
/// # Errors
/// [`CheckpointError::Io`].
pub fn save<D: Disk>(disk: &D, checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
    save_as(disk, checkpoint, &name_of(checkpoint.base.index))
}

/// Makes a checkpoint durable that a log is about to begin with. It counts for nothing until the log was reset to it, durably, and
/// [`settle`] gave it its name.
///
/// # Errors
/// As [`save`].
pub fn stage<D: Disk>(disk: &D, checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
    save_as(disk, checkpoint, STAGED)
}

/// Ends what a crash, or [`stage`], left: a staged checkpoint gets its name if the log begins behind it, and is removed if the log
/// does not; what was being written is removed. Call it with the entry before the log's first one.
///
/// # Errors
/// [`CheckpointError`]: a log that begins behind a checkpoint which is damaged.
pub fn settle<D: Disk>(disk: &D, base: u64) -> Result<(), CheckpointError> {
    remove_if_there(disk, UNFINISHED)?;
    match head(disk, STAGED) {
        Err(CheckpointError::Io { cause, .. }) if cause.kind() == io::ErrorKind::NotFound => return Ok(()),
        Ok(found) if found.index == base => {
            disk.rename(STAGED, &name_of(base)).map_err(failed("rename", STAGED))?;
        }
        // The log was not reset to it; whoever offered it offers it again.
        Ok(_) | Err(CheckpointError::Flawed { .. }) => remove_if_there(disk, STAGED)?,
        Err(error) => return Err(error),
    }
    disk.sync_dir().map_err(failed("sync the directory of", STAGED))
}

fn save_as<D: Disk>(disk: &D, checkpoint: &Checkpoint, name: &str) -> Result<(), CheckpointError> {
    let written = write(disk, &checkpoint.encode()).and_then(|()| {
        disk.rename(UNFINISHED, name).map_err(failed("rename", UNFINISHED))?;
        disk.sync_dir().map_err(failed("sync the directory of", name))
    });
    if written.as_ref().is_err_and(CheckpointError::is_full) {
        remove_if_there(disk, UNFINISHED)?;
    }
    written
}

fn write<D: Disk>(disk: &D, bytes: &[u8]) -> Result<(), CheckpointError> {
    disk.remove_unfinished(UNFINISHED).map_err(failed("remove", UNFINISHED))?;
    let file = disk.create(UNFINISHED, WriteMode::Buffered).map_err(failed("make", UNFINISHED))?;
    // Its space first: a full disk is known before a byte is written.
    file.allocate(bytes.len() as u64).map_err(failed("take space for", UNFINISHED))?;
    file.write_at(0, bytes).map_err(failed("write", UNFINISHED))?;
    file.sync_data().map_err(failed("sync", UNFINISHED))
}

fn remove_if_there<D: Disk>(disk: &D, name: &str) -> Result<(), CheckpointError> {
    match disk.remove(name) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(failed("remove", name)(cause)),
        _ => Ok(()),
    }
}

/// The indexes of the checkpoints in the directory, ascending. Says nothing about whether they can be used.
///
/// # Errors
/// [`CheckpointError::Io`].
pub fn stored<D: Disk>(disk: &D) -> Result<Vec<u64>, CheckpointError> {
    let names = disk.list().map_err(failed("list the directory of", PREFIX))?;
    let mut indexes: Vec<u64> = names.iter().filter_map(|name| index_of(name)).collect();
    indexes.sort_unstable();
    Ok(indexes)
}

/// Loads the checkpoint of this index, every byte checked.
///
/// # Errors
/// [`CheckpointError`].
pub fn load<D: Disk>(disk: &D, index: u64) -> Result<Checkpoint, CheckpointError> {
    let name = name_of(index);
    let bytes = read(disk, &name, file_bytes_max())?;
    let flawed = |flaw| CheckpointError::Flawed { name: name.clone(), flaw };
    let checkpoint = Checkpoint::decode(&bytes).map_err(flawed)?;
    match checkpoint.base.index == index {
        true => Ok(checkpoint),
        false => Err(flawed(Flaw::Length { part: "name" })),
    }
}

/// The place of the checkpoint of this index; its state is not looked at.
///
/// # Errors
/// [`CheckpointError`].
pub fn read_base<D: Disk>(disk: &D, index: u64) -> Result<LogBase, CheckpointError> {
    head(disk, &name_of(index))
}

fn head<D: Disk>(disk: &D, name: &str) -> Result<LogBase, CheckpointError> {
    let file = disk.open(name, None).map_err(failed("open", name))?;
    let mut head = [0; HEADER_BYTES];
    let have = file.read_at(0, &mut head).map_err(failed("read", name))?;
    let flawed = |flaw| CheckpointError::Flawed { name: name.to_owned(), flaw };
    Head::decode(&head[..have]).map(|head| head.base).map_err(flawed)
}

fn read<D: Disk>(disk: &D, name: &str, most: usize) -> Result<Vec<u8>, CheckpointError> {
    let file = disk.open(name, None).map_err(failed("open", name))?;
    let len = file.len().map_err(failed("look at", name))?;
    // One byte more than the most there can be is enough to see that it is too long.
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(usize::MAX).min(most + 1)];
    file.read_exact_at(0, &mut bytes).map_err(failed("read", name))?;
    Ok(bytes)
}

/// Removes checkpoints below `index`, oldest first, `most` at most; the removals are durable when this returns. Returns whether there are more.
///
/// # Errors
/// [`CheckpointError::Io`].
pub fn forget<D: Disk>(disk: &D, index: u64, most: usize) -> Result<bool, CheckpointError> {
    let below: Vec<u64> = stored(disk)?.into_iter().filter(|stored| *stored < index).collect();
    if below.is_empty() {
        return Ok(false);
    }
    for old in below.iter().take(most) {
        remove_if_there(disk, &name_of(*old))?;
    }
    disk.sync_dir().map_err(failed("sync the directory of", PREFIX))?;
    Ok(below.len() > most)
}

/// Keeps a damaged checkpoint under another name, so that nothing takes it for a good one and somebody may look at it.
/// Returns that name.
///
/// # Errors
/// [`CheckpointError::Io`].
pub fn set_aside<D: Disk>(disk: &D, index: u64) -> Result<String, CheckpointError> {
    let name = name_of(index);
    let aside = format!("{name}{DAMAGED}");
    disk.rename(&name, &aside).map_err(failed("rename", &name))?;
    disk.sync_dir().map_err(failed("sync the directory of", &name))?;
    Ok(aside)
}

/// Moves the checkpoints of entries above `last` into a directory in the data directory, which keeps them: the log is cut before them.
/// Returns how many.
///
/// # Errors
/// [`CheckpointError::Io`].
pub fn move_above<D: Disk>(disk: &D, last: u64, into: &str) -> Result<usize, CheckpointError> {
    let above: Vec<u64> = stored(disk)?.into_iter().filter(|index| *index > last).collect();
    if above.is_empty() {
        return Ok(0);
    }
    disk.create_dir(into).map_err(failed("make the directory", into))?;
    for index in &above {
        let name = name_of(*index);
        disk.rename(&name, &format!("{into}/{name}")).map_err(failed("move", &name))?;
    }
    disk.sync_subdir(into).map_err(failed("sync the directory", into))?;
    disk.sync_dir().map_err(failed("sync the directory of", into))?;
    Ok(above.len())
}

#[cfg(test)]
mod tests {
    use graven_wal::sim::SimDisk;

    use super::*;

    fn checkpoint(index: u64) -> Checkpoint {
        let base = LogBase { index, term: 1, ..LogBase::default() };
        Checkpoint { cluster: 5, base, state: vec![index as u8; 5000] }
    }

    #[test]
    fn power_cut_at_every_call_leaves_the_old_one_or_both() {
        for cut in 0.. {
            let disk = SimDisk::new(cut);
            save(&disk, &checkpoint(1)).expect("an empty disk");
            disk.power_off_after(cut);
            let saved = save(&disk, &checkpoint(2));
            let disk = disk.crash(cut);
            let found = stored(&disk).expect("a list");
            assert_eq!(load(&disk, 1).expect("the first"), checkpoint(1), "call {cut}");
            assert!(saved.is_err() || found == [1, 2], "call {cut}: it was durable");
            if found.contains(&2) {
                assert_eq!(load(&disk, 2).expect("whole or not there"), checkpoint(2), "call {cut}");
            }
            settle(&disk, 0).expect("a sweep");
            save(&disk, &checkpoint(2)).expect("once more");
            if saved.is_ok() {
                assert!(cut >= 5, "every step of it was cut");
                return;
            }
        }
    }

    #[test]
    fn a_staged_one_gets_its_name_when_the_log_begins_behind_it() {
        let disk = SimDisk::new(4);
        stage(&disk, &checkpoint(9)).expect("room");
        assert_eq!(stored(&disk).expect("a list"), [0; 0]);
        let other = disk.copy();
        settle(&other, 3).expect("settled");
        assert_eq!((stored(&other).expect("a list"), other.names().len()), (vec![], 0), "the log was not reset");
        settle(&disk, 9).expect("settled");
        assert_eq!(load(&disk, 9).expect("there"), checkpoint(9));
        settle(&disk, 9).expect("nothing to do");
    }

    #[test]
    fn a_full_disk_refuses_it_and_nothing_is_left() {
        let disk = SimDisk::new(3);
        save(&disk, &checkpoint(1)).expect("room");
        disk.full(Some(disk.used_bytes()));
        assert!(save(&disk, &checkpoint(2)).is_err_and(|error| error.is_full()));
        assert_eq!(disk.names().len(), 1);
        disk.full(None);
        save(&disk, &checkpoint(2)).expect("room again");
    }

    #[test]
    fn older_ones_are_forgotten_and_a_damaged_one_is_kept_aside() {
        let disk = SimDisk::new(1);
        for index in [2, 3, 5, 0x1234] {
            save(&disk, &checkpoint(index)).expect("room");
        }
        assert!(forget(&disk, 5, 1).expect("removed"), "there is another one");
        assert_eq!(stored(&disk).expect("a list"), [3, 5, 0x1234]);
        assert!(!forget(&disk, 5, 1).expect("removed"));
        assert_eq!(stored(&disk).expect("a list"), [5, 0x1234]);
        assert_eq!(read_base(&disk, 5).expect("a header"), checkpoint(5).base);
        let aside = set_aside(&disk, 5).expect("renamed");
        assert_eq!(stored(&disk).expect("a list"), [0x1234]);
        assert!(disk.list().expect("a list").contains(&aside));
    }
}
