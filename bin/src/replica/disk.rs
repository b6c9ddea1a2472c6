//! How disk jobs are run: the same code on the daemon's log thread and in the simulator.

use std::collections::VecDeque;

use graven_snapshot::{Checkpoint, CheckpointError};
use graven_wal::mend::{Marker, MarkerError};
use graven_wal::{AppendError, Disk, HardState, Room, Wal};

use super::effect::{Chore, DiskJob};
use super::planted::{Bug, is_planted};

/// What the log thread reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskReport {
    /// Every job up to this one is durable.
    pub sequence: u64,
    /// What there is room for behind the jobs that were run.
    pub room: Room,
    /// Whether the next job was refused for lack of room, and waits.
    pub waits: bool,
    /// The last entry of the newest checkpoint that these jobs made durable.
    pub saved: Option<u64>,
}

/// What became of a queue of jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ran {
    /// Sequence of the last job that is durable now, when any is.
    pub done: Option<u64>,
    /// Whether the rest of the queue waits for room on the disk.
    pub disk_full: bool,
    /// The last entry of the newest checkpoint that was saved or installed, if any was.
    pub saved: Option<u64>,
}

/// Why a job could not be done. Nothing is written any more after it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DiskError {
    /// The log's.
    #[error(transparent)]
    Log(#[from] AppendError),
    /// A checkpoint's.
    #[error("{0}; what was not acknowledged by now is not: look at the disk, then start this node again")]
    Checkpoint(std::sync::Arc<CheckpointError>),
    /// The word that the log lost its end could not be removed.
    #[error("{0}; look at the disk, then start this node again")]
    Marker(std::sync::Arc<MarkerError>),
}

impl From<MarkerError> for DiskError {
    fn from(error: MarkerError) -> DiskError {
        DiskError::Marker(std::sync::Arc::new(error))
    }
}

impl From<CheckpointError> for DiskError {
    fn from(error: CheckpointError) -> DiskError {
        DiskError::Checkpoint(std::sync::Arc::new(error))
    }
}

/// Writes the jobs at the front of `queue` in order and makes them durable with one sync; what is done leaves the queue.
/// When the disk has no room for a frame, the jobs before it are made durable and the rest stays.
///
/// # Errors
/// The log's first error. The log is closed from then on; none of these jobs may be reported as done.
pub fn run<D: Disk>(wal: &mut Wal<D>, queue: &mut VecDeque<DiskJob>) -> Result<Ran, DiskError> {
    let mut ran = Ran { done: None, disk_full: false, saved: None };
    let mut written = false;
    while let Some(job) = queue.front_mut() {
        if let Some(hard_state) = job.hard_state {
            let vote = hard_state.vote.map(|node| node.0);
            match wal.set_hard_state(HardState { term: hard_state.term.0, vote }) {
                Ok(()) => {}
                // Not even the reserve is left, as after a crash on a full disk: the vote waits, and what rests on it too.
                Err(AppendError::DiskFull { .. }) => {
                    ran.disk_full = true;
                    break;
                }
                Err(error) => return Err(error.into()),
            }
            job.hard_state = None;
            written = true;
        }
        if !job.frames.is_empty() {
            match wal.append(&job.frames) {
                Ok(()) => {}
                // Refused, not failed: nothing of this job's frames was written, and nobody is told that it is done.
                Err(AppendError::DiskFull { .. }) => {
                    ran.disk_full = true;
                    break;
                }
                Err(error) => return Err(error.into()),
            }
        }
        // Only now: before this job's frames stand in the log, the index may name entries that they replace.
        wal.note_commit(job.commit);
        if let Some(chore) = job.chore.take() {
            match do_chore(wal, &chore) {
                Ok(saved) => ran.saved = saved.or(ran.saved),
                // Only an install needs room in the log itself: not even the reserve is left. It begins again.
                Err(DiskError::Log(AppendError::DiskFull { .. })) => {
                    job.chore = Some(chore);
                    ran.disk_full = true;
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        written = true;
        ran.done = Some(job.sequence);
        queue.pop_front();
    }
    if written && !is_planted(Bug::SyncSkipped) {
        wal.sync()?;
    }
    Ok(ran)
}

/// Does what is no append. Returns the last entry of the checkpoint that is durable now, if it was about one.
fn do_chore<D: Disk>(wal: &mut Wal<D>, chore: &Chore) -> Result<Option<u64>, DiskError> {
    // A checkpoint speaks of entries that must be durable before it is.
    if !is_planted(Bug::SyncSkipped) {
        wal.sync()?;
    }
    match chore {
        Chore::Save(checkpoint) => save(checkpoint, |it| graven_snapshot::save(wal.disk(), it)),
        Chore::Install(checkpoint) => {
            let saved = match is_planted(Bug::InstallUnsaved) {
                true => Some(checkpoint.base.index),
                false => save(checkpoint, |it| graven_snapshot::stage(wal.disk(), it))?,
            };
            if saved.is_some() {
                graven_snapshot::note_released(wal.disk(), checkpoint.base.index)?;
                wal.reset(checkpoint.base)?;
                wal.sync()?;
                graven_snapshot::settle(wal.disk(), checkpoint.base.index)?;
                wal.release_before(checkpoint.base.index + 1)?;
                graven_snapshot::forget(wal.disk(), checkpoint.base.index)?;
            }
            Ok(saved)
        }
        Chore::Recovered => {
            Marker::remove(wal.disk())?;
            Ok(None)
        }
        Chore::Release(index) => {
            match graven_snapshot::note_released(wal.disk(), *index) {
                // Its space could never be taken: the files stay.
                Err(error) if error.is_full() => return Ok(None),
                noted => noted?,
            }
            wal.release_before(index + 1)?;
            graven_snapshot::forget(wal.disk(), *index)?;
            Ok(None)
        }
    }
}

fn save(
    checkpoint: &Checkpoint,
    with: impl FnOnce(&Checkpoint) -> Result<(), CheckpointError>,
) -> Result<Option<u64>, DiskError> {
    match with(checkpoint) {
        Ok(()) => Ok(Some(checkpoint.base.index)),
        // Nothing is left of it, and nothing was promised.
        Err(error) if error.is_full() => Ok(None),
        Err(error) => Err(error.into()),
    }
}
