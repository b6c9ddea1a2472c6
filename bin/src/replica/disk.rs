//! How disk jobs are run: the same code on the daemon's log thread and in the simulator.

use std::collections::VecDeque;

use graven_snapshot::{Checkpoint, CheckpointError};
use graven_wal::mend::{Marker, MarkerError};
use graven_wal::{AppendError, Disk, HardState, Room, Wal};

use super::checkpoint::SAVING_MAX;
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
    /// The checkpoints that these jobs made durable.
    pub saved: Saved,
}

/// What became of a queue of jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ran {
    /// Sequence of the last job that is durable now, when any is.
    pub done: Option<u64>,
    /// Whether the rest of the queue waits for room on the disk.
    pub disk_full: bool,
    /// The checkpoints that were saved or installed.
    pub saved: Saved,
    /// Up to which entry the log is let go of now: [`let_go_step`] takes the files away.
    pub released: Option<u64>,
}

/// Which checkpoints are durable now, by the last entry of each. One may have found no room, and one behind or before it some: each is told for
/// itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Saved([u64; SAVED_MAX]);

/// A replica has so many on their way at most, the one that is installed included.
const SAVED_MAX: usize = SAVING_MAX + 1;

impl Saved {
    fn note(&mut self, index: u64) {
        // No checkpoint ends with entry 0.
        if let Some(place) = self.0.iter_mut().find(|place| **place == 0) {
            *place = index;
        }
    }

    /// Whether the one that ends with entry `index` is among them.
    #[must_use]
    pub fn has(&self, index: u64) -> bool {
        self.0.contains(&index)
    }
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
    let mut ran = Ran { done: None, disk_full: false, saved: Saved::default(), released: None };
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
            match do_chore(wal, &chore, &mut ran) {
                Ok(()) => {}
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

/// Takes away one segment of those that were let go of, or some checkpoints of `released` when all of them are gone; `released` is `None` when
/// nothing is left. For idle moments and between two batches: a trim may free a thousand of each, and appends do not wait for them.
///
/// # Errors
/// As [`run`].
pub fn let_go_step<D: Disk>(wal: &mut Wal<D>, released: &mut Option<u64>) -> Result<(), DiskError> {
    let Some(index) = *released else { return Ok(()) };
    if !wal.is_releasing() && !graven_snapshot::forget(wal.disk(), index, FORGOTTEN_AT_ONCE)? {
        *released = None;
        return Ok(());
    }
    wal.release_step()?;
    Ok(())
}

/// Removed in about the time of a sync.
const FORGOTTEN_AT_ONCE: usize = 8;

/// Does what is no append, and notes in `ran` which checkpoint is durable now, or up to where the log is let go of.
fn do_chore<D: Disk>(wal: &mut Wal<D>, chore: &Chore, ran: &mut Ran) -> Result<(), DiskError> {
    // A checkpoint speaks of entries that must be durable before it is.
    if !is_planted(Bug::SyncSkipped) {
        wal.sync()?;
    }
    match chore {
        Chore::Save(checkpoint) => {
            let saved = save(checkpoint, |it| graven_snapshot::save(wal.disk(), it))?;
            saved.into_iter().for_each(|index| ran.saved.note(index));
        }
        Chore::Install(checkpoint) => {
            let saved = match is_planted(Bug::InstallUnsaved) {
                true => Some(checkpoint.base.index),
                false => save(checkpoint, |it| graven_snapshot::stage(wal.disk(), it))?,
            };
            let Some(index) = saved else { return Ok(()) };
            match graven_snapshot::note_released(wal.disk(), index, Some(checkpoint.base)) {
                // As for the checkpoint itself: the log stays as it is, and what is staged counts for nothing.
                Err(error) if error.is_full() => return Ok(()),
                noted => noted?,
            }
            if !is_planted(Bug::InstallKeepsLog) {
                wal.reset(checkpoint.base)?;
            }
            wal.sync()?;
            graven_snapshot::settle(wal.disk(), index)?;
            wal.release_before(index + 1)?;
            graven_snapshot::forget(wal.disk(), index, usize::MAX)?;
            ran.saved.note(index);
        }
        Chore::Recovered => Marker::remove(wal.disk())?,
        Chore::Release(index) => {
            // A damaged checkpoint is the scrubber's business: what it says of the place is a help, and not needed here.
            let base = graven_snapshot::read_base(wal.disk(), *index).ok();
            match graven_snapshot::note_released(wal.disk(), *index, base) {
                // Its space could never be taken: segments and checkpoints stay.
                Err(error) if error.is_full() => return Ok(()),
                noted => noted?,
            }
            wal.release_from_now(index + 1);
            ran.released = Some(*index);
        }
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use graven_frame::{Body, Chain, Frame, HeaderSpec, Kind};
    use graven_wal::sim::SimDisk;
    use graven_wal::{Identity, LogBase, Options};

    use super::*;

    fn new_log(disk: &SimDisk) -> Wal<SimDisk> {
        let spec = HeaderSpec { kind: Kind::Noop, term: 1, index: 1, base_offset: 0, count: 0, timestamp_ms: 0 };
        let first = Frame::seal(spec, Chain::START, Body::default(), 0);
        let options = Options { segment_bytes: 64 << 10, ..Options::default() };
        let identity = Identity { cluster: 7, node: 1, incarnation: 1 };
        Wal::create(disk.clone(), identity, options.clone(), &[first]).expect("new");
        Wal::open(disk.clone(), options).expect("opens").0
    }

    fn checkpoint(index: u64, state: usize) -> Arc<Checkpoint> {
        let base = LogBase { index, term: 1, ..LogBase::default() };
        Arc::new(Checkpoint { cluster: 7, base, state: vec![1; state] })
    }

    fn jobs(chores: impl IntoIterator<Item = Chore>) -> VecDeque<DiskJob> {
        let job = |(sequence, chore)| {
            let chore = Some(chore);
            DiskJob { sequence, commit: 1, hard_state: None, frames: Vec::new(), chore }
        };
        (1..).zip(chores).map(job).collect()
    }

    /// What cannot be noted as let go of keeps its checkpoints: the next start needs the one with which its log begins.
    #[test]
    fn checkpoints_go_only_when_it_is_noted_that_the_log_before_them_may() {
        for room in [0, 1 << 20] {
            let disk = SimDisk::new(1);
            let mut wal = new_log(&disk);
            for index in 2..=20 {
                graven_snapshot::save(&disk, &checkpoint(index, 100)).expect("room");
            }
            disk.full(Some(disk.used_bytes() + room));
            let ran = run(&mut wal, &mut jobs([Chore::Release(20)])).expect("a full disk is no failure");
            let (mut released, mut steps) = (ran.released, 0);
            while released.is_some() {
                let_go_step(&mut wal, &mut released).expect("no fault");
                steps += 1;
            }
            let left = graven_snapshot::stored(&disk).expect("a list").len();
            assert_eq!((steps, left), if room == 0 { (0, 19) } else { (3, 1) });
        }
    }

    /// A large checkpoint finds no room on a nearly full disk, a small one beside it does.
    #[test]
    fn checkpoints_that_find_no_room_are_not_told_as_saved_because_others_did() {
        let disk = SimDisk::new(1);
        let mut wal = new_log(&disk);
        graven_snapshot::reserve(&disk).expect("room");
        disk.full(Some(disk.used_bytes() + (64 << 10)));
        let chores = [
            Chore::Save(checkpoint(2, 1 << 20)),
            Chore::Save(checkpoint(3, 100)),
            Chore::Install(checkpoint(9, 1 << 20)),
        ];
        let mut queue = jobs(chores);
        let ran = run(&mut wal, &mut queue).expect("a full disk is no failure");
        assert_eq!((ran.done, queue.len()), (Some(3), 0));
        assert_eq!([2, 3, 9].map(|index| ran.saved.has(index)), [false, true, false]);
        assert_eq!((wal.last_index(), graven_snapshot::stored(&disk).expect("a list")), (1, vec![3]));
    }
}
