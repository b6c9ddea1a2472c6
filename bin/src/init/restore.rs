//! Makes a new cluster of a backup: what `graven init` makes, with the log in it.
//!
//! The log of every node is the backup's: its checkpoint, as the new cluster's, and its frames as they are, so every record, offset and
//! time is equal. Behind them stand entries of the new cluster, the same on all nodes: a membership that names the new nodes and voids the
//! sessions, and a drop for each snapshot whose body is not in the backup. Then a checkpoint of all that, with which the nodes
//! start: no entry of the backup has to be replayed, and nobody meets a membership of before.
//!
//! The new nodes' ids are above all that the old cluster gave. A node that is added later replays the memberships of before; none of them
//! names one of the new nodes as somebody else.
//!
//! Everything is made in the staging directory of [`NewCluster`], and moved to its place when it is whole and durable. What fails before that
//! leaves nothing; a process that was killed leaves the staging directory, which the next run removes.

use std::fs;
use std::io;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use graven_frame::{Body, Frame, HeaderSpec, Kind};
use graven_net::protocol::FEATURE_LEVEL;
use graven_snapshot::{Checkpoint, CheckpointError};
use graven_wal::{AppendError, HardState, LogBase, OpenError, Options, RealDisk, Wal};

use super::{Created, InitError, NewCluster, STAGING};
use crate::backup::{Backup, BackupError};
use crate::config::NodeConfig;
use crate::members::{Members, MembersError};
use crate::replica::fold::{Fold, drop_snapshot};

/// Why a cluster was not restored. Nothing was made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// A file or certificate could not be made, or something is in the way.
    #[error(transparent)]
    Files(#[from] InitError),
    /// The backup cannot be used.
    #[error(transparent)]
    Backup(#[from] BackupError),
    /// The membership does not fit an entry.
    #[error(transparent)]
    Members(#[from] MembersError),
    /// A node's log that was just made does not open.
    #[error("cannot open the new log of {name}: {cause}")]
    Open {
        /// The node.
        name: String,
        /// Why.
        #[source]
        cause: OpenError,
    },
    /// A node's log could not be written.
    #[error("cannot write the log of {name}: {cause}")]
    Append {
        /// The node.
        name: String,
        /// Why.
        #[source]
        cause: AppendError,
    },
    /// A checkpoint could not be written.
    #[error("cannot write a checkpoint of {name}: {cause}")]
    Checkpoint {
        /// The node.
        name: String,
        /// Why.
        #[source]
        cause: CheckpointError,
    },
    /// The log names nobody.
    #[error("the backup names no members: it is of no cluster's log")]
    NoMembers,
    /// The old cluster was ahead of this software.
    #[error(
        "the backup is of a cluster at feature level {in_force}, this software knows levels up to {FEATURE_LEVEL}; use a newer graven"
    )]
    FeatureLevel {
        /// The level in force.
        in_force: u32,
    },
}

impl RestoreError {
    /// Whether it is only that the disk has no room.
    #[must_use]
    pub fn is_full(&self) -> bool {
        if matches!(self, RestoreError::Append { cause: AppendError::DiskFull { .. }, .. }) {
            return true;
        }
        let full =
            |cause: &io::Error| [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded].contains(&cause.kind());
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(error) = cause {
            let shared = error.downcast_ref::<Arc<io::Error>>().map(|shared| &**shared);
            if error.downcast_ref().or(shared).is_some_and(full) {
                return true;
            }
            cause = error.source();
        }
        false
    }
}

/// A restore into a place that is free.
#[derive(Debug)]
pub struct Restoration {
    cluster: NewCluster,
    /// The place is there already, empty.
    was_there: bool,
}

/// Frames handed to a log at once.
const BATCH_BYTES: usize = 1 << 20;
/// Bytes between two syncs of a log that is made: what the system may have to write at the end.
const SYNC_BYTES: u64 = 64 << 20;

/// What each node's log gets behind the backup's entries.
struct End {
    entries: Vec<Frame>,
    checkpoint: Checkpoint,
    term: u64,
}

impl Restoration {
    /// Looks whether the cluster can be made; changes nothing. What an interrupted run left does not count.
    ///
    /// # Errors
    /// [`RestoreError::Files`]: the nodes make no cluster, or the directory is not empty.
    pub fn prepare(cluster: NewCluster) -> Result<Restoration, RestoreError> {
        let was_there = match fs::read_dir(&cluster.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(InitError::io("list", &cluster.dir)(error).into()),
            Ok(entries) => {
                let mut names = entries.flatten().map(|entry| entry.file_name());
                if names.any(|name| name != STAGING) {
                    return Err(InitError::Exists { path: cluster.dir }.into());
                }
                true
            }
        };
        cluster.check()?;
        Ok(Restoration { cluster, was_there })
    }

    /// Makes the cluster. `fold` is what [`Backup::verify`] returned. `progress` is told how many bytes of frames were written, of all nodes.
    ///
    /// # Errors
    /// [`RestoreError`]; nothing is left then.
    pub fn restore(&self, backup: &Backup, fold: Fold, mut progress: impl FnMut(u64)) -> Result<Created, RestoreError> {
        let before = fold.members().ok_or(RestoreError::NoMembers)?;
        if before.feature_level > FEATURE_LEVEL {
            return Err(RestoreError::FeatureLevel { in_force: before.feature_level });
        }
        let members = self.cluster.members(before.newest_id() + 1, before.feature_level);
        let made = self.cluster.create_with(|staging, cluster| {
            self.cluster.stage_nodes(staging, cluster, &members, &[])?;
            let end = end_of(fold, &members, cluster)?;
            let base = backup.checkpoint()?.map(|found| Checkpoint { cluster, ..found });
            let mut written = 0;
            for node in &self.cluster.nodes {
                let config =
                    NodeConfig::load(staging.join(&node.name).join("graven.toml")).map_err(InitError::Setting)?;
                let log = Log::open(&config)?;
                log.fill(backup, base.as_ref(), &end, |bytes| {
                    written += bytes;
                    progress(written);
                })?;
            }
            Ok(())
        });
        if made.is_err() {
            self.clean();
        }
        made
    }

    /// Removes what was staged. A cluster that was being moved to its place is left: it may be whole.
    fn clean(&self) {
        let staging = self.cluster.dir.join(STAGING);
        if staging.join(super::MOVING).exists() {
            return;
        }
        let _ = fs::remove_dir_all(&staging);
        if !self.was_there {
            // Only when it is empty.
            let _ = fs::remove_dir(&self.cluster.dir);
        }
    }
}

/// The entries behind the backup's, and the checkpoint of everything.
fn end_of(mut fold: Fold, members: &Members, cluster: u128) -> Result<End, RestoreError> {
    let names = fold.snapshots();
    let term = fold.at().term + 1;
    let bodies = std::iter::once((Kind::Membership, members.encode_voiding_sessions()?))
        .chain(names.iter().map(|name| (Kind::Snapshot, drop_snapshot(name))));
    let mut entries = Vec::new();
    for (kind, body) in bodies {
        let frame = next_entry(fold.at(), term, kind, body);
        // It is ours and follows what it was made to follow.
        fold.push(&frame).map_err(|cause| BackupError::Source(cause.to_string()))?;
        entries.push(frame);
    }
    let checkpoint = fold.checkpoint(cluster).ok_or(RestoreError::NoMembers)?;
    Ok(End { entries, checkpoint, term })
}

fn next_entry(before: &LogBase, term: u64, kind: Kind, body: Vec<u8>) -> Frame {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let body = Body::from_chunks(vec![body.into()]);
    let crc = body.crc();
    let spec = HeaderSpec {
        kind,
        term,
        index: before.index + 1,
        base_offset: before.next_offset,
        count: 0,
        timestamp_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX).max(before.timestamp_ms),
    };
    Frame::seal(spec, before.chain, body, crc)
}

/// The log of one new node.
struct Log {
    name: String,
    wal: Wal<RealDisk>,
}

impl Log {
    fn open(config: &NodeConfig) -> Result<Log, RestoreError> {
        let name = config.name.clone();
        let options = Options { segment_bytes: config.wal.segment_bytes, ..Options::default() };
        match Wal::open(RealDisk::open(&config.data_dir), options) {
            Ok((wal, _)) => Ok(Log { name, wal }),
            Err(cause) => Err(RestoreError::Open { name, cause }),
        }
    }

    /// Writes everything, durably. `wrote` is told of bytes as they are written.
    fn fill(
        mut self,
        backup: &Backup,
        base: Option<&Checkpoint>,
        end: &End,
        mut wrote: impl FnMut(u64),
    ) -> Result<(), RestoreError> {
        if let Some(base) = base {
            self.begin_behind(base)?;
        }
        let (mut batch, mut bytes, mut unsynced) = (Vec::new(), 0, 0);
        // Checked once more as they are read: nothing else than what was verified goes into a log.
        for frame in backup.frames() {
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
        let Log { name, wal } = self;
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

    fn log<T>(&mut self, what: impl FnOnce(&mut Wal<RealDisk>) -> Result<T, AppendError>) -> Result<T, RestoreError> {
        what(&mut self.wal).map_err(|cause| RestoreError::Append { name: self.name.clone(), cause })
    }

    fn checkpoint(&mut self, what: impl FnOnce(&RealDisk) -> Result<(), CheckpointError>) -> Result<(), RestoreError> {
        what(self.wal.disk()).map_err(|cause| RestoreError::Checkpoint { name: self.name.clone(), cause })
    }
}
