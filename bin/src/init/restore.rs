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

use graven_net::protocol::FEATURE_LEVEL;
use graven_snapshot::{Checkpoint, CheckpointError};
use graven_wal::{AppendError, OpenError, Options, RealDisk};

use super::restored::{End, RestoredLog};
use super::{Created, InitError, NewCluster, STAGING, now_ms};
use crate::backup::{Backup, BackupError};
use crate::config::NodeConfig;
use crate::members::MembersError;
use crate::replica::fold::Fold;

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
            let end = End::of(fold, &members, cluster, now_ms())?;
            let base = backup.checkpoint()?.map(|found| Checkpoint { cluster, ..found });
            let mut written = 0;
            for node in &self.cluster.nodes {
                let config =
                    NodeConfig::load(staging.join(&node.name).join("graven.toml")).map_err(InitError::Setting)?;
                let options = Options { segment_bytes: config.wal.segment_bytes, ..Options::default() };
                let log = RestoredLog::open(&config.name, RealDisk::open(&config.data_dir), options)?;
                log.fill(backup.frames(), base.as_ref(), &end, |bytes| {
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
