//! The log of a restored node: the part of [`super::restore`] that knows a log and no files beside it.

use graven_frame::{Body, Frame, HeaderSpec, Kind};
use graven_snapshot::{Checkpoint, CheckpointError};
use graven_wal::{AppendError, Disk, HardState, LogBase, Options, Wal};

use super::restore::RestoreError;
use crate::backup::BackupError;
use crate::members::Members;
use crate::replica::fold::{Fold, drop_snapshot};

/// Frames handed to a log at once.
const BATCH_BYTES: usize = 1 << 20;
/// Bytes between two syncs of a log that is made: what the system may have to write at the end.
const SYNC_BYTES: u64 = 64 << 20;

/// What each node's log gets behind the backup's entries.
#[derive(Debug)]
pub struct End {
    /// The entries.
    pub entries: Vec<Frame>,
    checkpoint: Checkpoint,
    term: u64,
}

impl End {
    /// The entries behind those that `fold` has seen, of the cluster `cluster` of `members`, and the checkpoint of everything. `now_ms` is the time of day, in
    /// milliseconds since 1970.
    ///
    /// # Errors
    /// [`RestoreError`]: the backup's last state and the new members make no checkpoint.
    pub fn of(mut fold: Fold, members: &Members, cluster: u128, now_ms: u64) -> Result<End, RestoreError> {
        let names = fold.snapshots();
        let term = fold.at().term + 1;
        let bodies = std::iter::once((Kind::Membership, members.encode_voiding_sessions()?))
            .chain(names.iter().map(|name| (Kind::Snapshot, drop_snapshot(name))));
        let mut entries = Vec::new();
        for (kind, body) in bodies {
            let frame = next_entry(fold.at(), term, kind, body, now_ms);
            // It is ours and follows what it was made to follow.
            fold.push(&frame).map_err(|cause| BackupError::Source(cause.to_string()))?;
            entries.push(frame);
        }
        let checkpoint = fold.checkpoint(cluster).ok_or(RestoreError::NoMembers)?;
        Ok(End { entries, checkpoint, term })
    }
}

fn next_entry(before: &LogBase, term: u64, kind: Kind, body: Vec<u8>, now_ms: u64) -> Frame {
    let body = Body::from_chunks(vec![body.into()]);
    let crc = body.crc();
    let spec = HeaderSpec {
        kind,
        term,
        index: before.index + 1,
        base_offset: before.next_offset,
        count: 0,
        timestamp_ms: now_ms.max(before.timestamp_ms),
    };
    Frame::seal(spec, before.chain, body, crc)
}

/// The log of one new node.
#[derive(Debug)]
pub struct RestoredLog<D: Disk> {
    name: String,
    wal: Wal<D>,
}

impl<D: Disk> RestoredLog<D> {
    /// The new, empty log of the node called `name`.
    ///
    /// # Errors
    /// [`RestoreError::Open`].
    pub fn open(name: &str, disk: D, options: Options) -> Result<RestoredLog<D>, RestoreError> {
        let name = name.to_owned();
        match Wal::open(disk, options) {
            Ok((wal, _)) => Ok(RestoredLog { name, wal }),
            Err(cause) => Err(RestoreError::Open { name, cause }),
        }
    }

    /// Writes everything, durably: the log begins behind `base`, if there is one, and has `frames` and `end`. `wrote` is told of bytes as they are
    /// written.
    ///
    /// # Errors
    /// [`RestoreError`]; the log is of no use then.
    pub fn fill(
        mut self,
        frames: impl Iterator<Item = Result<Frame, BackupError>>,
        base: Option<&Checkpoint>,
        end: &End,
        mut wrote: impl FnMut(u64),
    ) -> Result<(), RestoreError> {
        if let Some(base) = base {
            self.begin_behind(base)?;
        }
        let (mut batch, mut bytes, mut unsynced) = (Vec::new(), 0, 0);
        // Checked once more as they are read: nothing else than what was verified goes into a log.
        for frame in frames {
            let frame = frame?;
            bytes += frame.encoded_len();
            batch.push(frame);
            if bytes >= BATCH_BYTES {
                self.append(&batch)?;
                unsynced += bytes as u64;
                wrote(bytes as u64);
                batch.clear();
                bytes = 0;
            }
            if unsynced >= SYNC_BYTES {
                unsynced = 0;
                self.log(|wal| wal.sync())?;
            }
        }
        self.append(&batch)?;
        wrote(bytes as u64);
        self.log(|wal| wal.set_hard_state(HardState { term: end.term, vote: None }))?;
        self.append(&end.entries)?;
        // Every node has all of it, durably, before any of them starts: all of it is committed.
        self.log(|wal| wal.sync())?;
        self.wal.note_commit(end.checkpoint.base.index);
        self.checkpoint(|disk| graven_snapshot::save(disk, &end.checkpoint))?;
        let RestoredLog { name, wal } = self;
        wal.close().map_err(|cause| RestoreError::Append { name, cause })
    }

    /// Makes the empty log one that begins behind a checkpoint, in the order in which a node installs one.
    fn begin_behind(&mut self, base: &Checkpoint) -> Result<(), RestoreError> {
        self.checkpoint(|disk| graven_snapshot::stage(disk, base))?;
        self.checkpoint(|disk| graven_snapshot::note_released(disk, base.base.index, Some(base.base)))?;
        self.log(|wal| wal.reset(base.base))?;
        self.log(|wal| wal.sync())?;
        self.checkpoint(|disk| graven_snapshot::settle(disk, base.base.index))
    }

    fn append(&mut self, frames: &[Frame]) -> Result<(), RestoreError> {
        self.log(|wal| wal.append(frames))
    }

    fn log<T>(&mut self, what: impl FnOnce(&mut Wal<D>) -> Result<T, AppendError>) -> Result<T, RestoreError> {
        what(&mut self.wal).map_err(|cause| RestoreError::Append { name: self.name.clone(), cause })
    }

    fn checkpoint(&mut self, what: impl FnOnce(&D) -> Result<(), CheckpointError>) -> Result<(), RestoreError> {
        what(self.wal.disk()).map_err(|cause| RestoreError::Checkpoint { name: self.name.clone(), cause })
    }
}
