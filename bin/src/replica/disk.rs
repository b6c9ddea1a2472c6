//! How disk jobs are run: the same code on the daemon's log thread and in the simulator.

use std::collections::VecDeque;

use graven_wal::{AppendError, Disk, HardState, Room, Wal};

use super::effect::DiskJob;
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
}

/// What became of a queue of jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ran {
    /// Sequence of the last job that is durable now, when any is.
    pub done: Option<u64>,
    /// Whether the rest of the queue waits for room on the disk.
    pub disk_full: bool,
}

/// Writes the jobs at the front of `queue` in order and makes them durable with one sync; what is done leaves the queue.
/// When the disk has no room for a frame, the jobs before it are made durable and the rest stays.
///
/// # Errors
/// The log's first error. The log is closed from then on; none of these jobs may be reported as done.
pub fn run<D: Disk>(wal: &mut Wal<D>, queue: &mut VecDeque<DiskJob>) -> Result<Ran, AppendError> {
    let mut ran = Ran { done: None, disk_full: false };
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
                Err(error) => return Err(error),
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
                Err(error) => return Err(error),
            }
        }
        // Only now: before this job's frames stand in the log, the index may name entries that they replace.
        wal.note_commit(job.commit);
        written = true;
        ran.done = Some(job.sequence);
        queue.pop_front();
    }
    if written && !is_planted(Bug::SyncSkipped) {
        wal.sync()?;
    }
    Ok(ran)
}
