//! How disk jobs are run: the same code on the daemon's log thread and in the simulator.

use std::collections::VecDeque;

use graven_wal::{AppendError, Disk, HardState, Wal};

use super::effect::DiskJob;

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
        wal.note_commit(job.commit);
        if let Some(hard_state) = job.hard_state.take() {
            wal.set_hard_state(HardState { term: hard_state.term.0, vote: hard_state.vote.map(|node| node.0) })?;
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
        written = true;
        ran.done = Some(job.sequence);
        queue.pop_front();
    }
    if written {
        wal.sync()?;
    }
    Ok(ran)
}
