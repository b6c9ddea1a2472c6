//! What a node starts from: the newest checkpoint that can be used, and the log behind it.

use graven_raft::{HardState, Index, NodeId, Term};
use graven_snapshot::body::{self, BodyError};
use graven_snapshot::{Checkpoint, CheckpointError, Flaw};
use graven_wal::{Disk, LogReader, ReadError, Recovered};

use super::Restored;
use super::checkpoint::{Kept, State, StateError};
use super::snapshots::StatesKept;
use crate::members::Members;

/// Why a log that opened is nothing to start from. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// A checkpoint cannot be read, or a newer version wrote it.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// What stands in one makes no sense.
    #[error("checkpoint at entry {index}: {cause}")]
    State {
        /// The last entry it covers.
        index: u64,
        /// Why.
        cause: StateError,
    },
    /// A membership entry cannot be read.
    #[error("the membership in entry {index} cannot be read: a newer version wrote it; upgrade first")]
    Members {
        /// The entry.
        index: u64,
    },
    /// The log begins later than at its first entry, and no checkpoint says what was before.
    #[error(
        "the log begins at entry {first} and no checkpoint for what was before it can be used: files are missing or damaged"
    )]
    Headless {
        /// The first entry there.
        first: u64,
    },
    /// The log begins later than where it was let go of.
    #[error(
        "the log begins at entry {first}, and it was let go of up to entry {released} only: files are missing; put them back"
    )]
    FilesMissing {
        /// The first entry there.
        first: u64,
        /// The last entry that may be gone.
        released: u64,
    },
    /// A checkpoint covers entries that were durable here and are not in the log.
    #[error(
        "the log ends at entry {last}, and a checkpoint says that it once reached entry {index}: its end was lost, and perhaps a vote; put the files back, or replace this node with `graven member replace`"
    )]
    Shortened {
        /// The last entry there.
        last: u64,
        /// What the checkpoint covers.
        index: u64,
    },
    /// The log and a checkpoint of it contradict each other.
    #[error("entry {index} of the log is not the one that the checkpoint of entry {index} was made of")]
    Contradicted {
        /// That entry.
        index: u64,
    },
    /// A checkpoint of another cluster.
    #[error("the checkpoint at entry {index} is of another cluster; it was copied here")]
    Foreign {
        /// The last entry it covers.
        index: u64,
    },
    /// The snapshots of applications cannot be looked at.
    #[error(transparent)]
    Snapshots(#[from] BodyError),
    /// The log cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// Checkpoints and snapshots found flawed, and the names they are kept under.
pub type SetAside = Vec<String>;

/// Looks at the checkpoints beside a log that was just opened: ends an install that a crash interrupted, sets flawed ones aside,
/// and says what to start from.
///
/// # Errors
/// [`RestoreError`].
pub fn restore<D: Disk>(
    disk: &D,
    recovered: &Recovered,
    reader: &LogReader,
) -> Result<(Restored, SetAside), RestoreError> {
    let released = graven_snapshot::released(disk)?.index;
    if recovered.base.index > released {
        return Err(RestoreError::FilesMissing { first: recovered.first_index, released });
    }
    graven_snapshot::settle(disk, recovered.base.index)?;
    graven_snapshot::reserve(disk)?;
    graven_snapshot::renew_released(disk, &recovered.base)?;
    let (mut checkpoint, mut kept, mut aside) = (None, Vec::new(), Vec::new());
    for index in graven_snapshot::stored(disk)?.into_iter().rev() {
        if index < recovered.base.index {
            break;
        }
        let found = match checkpoint {
            None => graven_snapshot::load(disk, index).map(Some),
            Some(_) => graven_snapshot::read_base(disk, index).map(|base| {
                kept.push(Kept::of(&base));
                None
            }),
        };
        match found {
            Ok(None) => {}
            Ok(Some(found)) => {
                check(&found, recovered, reader)?;
                kept.push(Kept::of(&found.base));
                checkpoint = Some(found);
            }
            Err(CheckpointError::Flawed { flaw, .. }) if !matches!(flaw, Flaw::Newer { .. }) => {
                aside.push(graven_snapshot::set_aside(disk, index)?);
            }
            Err(error) => return Err(error.into()),
        }
    }
    if checkpoint.is_none() && recovered.base.index > 0 {
        return Err(RestoreError::Headless { first: recovered.first_index });
    }
    kept.reverse();
    let mut restored = Restored::of(recovered, checkpoint, kept);
    let start = restored.checkpoint.as_ref().map_or(recovered.base, |checkpoint| checkpoint.base);
    restored.waypoints = reader.waypoints(&start)?;
    restored.pictures = pictures(disk, recovered, &mut aside)?;
    Ok((restored, aside))
}

/// The entry behind which the log once began, as far as what stands beside it tells: the beginning, if nothing was ever let go of, else
/// what was noted when it was, or the checkpoint that was made of that entry. `None` when neither can be read.
pub fn origin<D: Disk>(disk: &D) -> Option<graven_wal::LogBase> {
    let released = graven_snapshot::released(disk).ok()?;
    match released.index {
        0 => Some(graven_wal::LogBase::default()),
        index => released.base.or_else(|| graven_snapshot::load(disk, index).ok().map(|found| found.base)),
    }
}

/// Where checkpoints go that speak of entries which the log lost with its end.
pub const CUT_CHECKPOINTS: &str = "quarantine-checkpoints";

/// Up to which entry the checkpoints beside a log, as far as they can be read, say that it is committed. 0 when there is none.
#[must_use]
pub fn committed_by_checkpoints<D: Disk>(disk: &D) -> u64 {
    let stored = graven_snapshot::stored(disk).unwrap_or_default();
    stored.into_iter().rev().find(|index| graven_snapshot::load(disk, *index).is_ok()).unwrap_or(0)
}

/// The pictures of applications whose files are here. Damaged ones are set aside: they are fetched again.
fn pictures<D: Disk>(disk: &D, recovered: &Recovered, aside: &mut SetAside) -> Result<Vec<u64>, BodyError> {
    let mut ids = Vec::new();
    for stored in body::stored(disk)? {
        let Some(id) = body::id_of(&stored.file) else { continue };
        match stored.info {
            // A file of another cluster was copied here. It is nobody's, and nothing touches it.
            Ok(info) if info.header.cluster != recovered.identity.cluster => {}
            Ok(_) => ids.push(id),
            Err(error) if error.is_damage() => aside.push(body::set_aside(disk, &stored.file)?),
            // Newer software wrote it: it is not held, and not lost.
            Err(BodyError::Flawed { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(ids)
}

/// The members that the log names last, or else its checkpoint, committed or not.
///
/// # Errors
/// The entry cannot be read, or what stands in it or in the checkpoint makes no sense.
pub fn newest_members(
    recovered: &Recovered,
    reader: &LogReader,
    restored: &Restored,
) -> Result<Option<Members>, RestoreError> {
    if let Some(index) = recovered.memberships.last().copied() {
        let frame = reader.frame(index)?;
        let malformed = |_| RestoreError::Members { index };
        return Members::decode(&frame.body().concat()).map(Some).map_err(malformed);
    }
    let Some(checkpoint) = &restored.checkpoint else { return Ok(None) };
    let index = checkpoint.base.index;
    let state = State::decode(&checkpoint.state).map_err(|cause| RestoreError::State { index, cause })?;
    Ok(Some(state.members))
}

/// Whether a checkpoint is one of this log.
fn check(found: &Checkpoint, recovered: &Recovered, reader: &LogReader) -> Result<(), RestoreError> {
    let index = found.base.index;
    if found.cluster != recovered.identity.cluster {
        return Err(RestoreError::Foreign { index });
    }
    if index > recovered.last_index {
        return Err(RestoreError::Shortened { last: recovered.last_index, index });
    }
    let chain = if index == recovered.base.index { recovered.base.chain } else { reader.header(index)?.chain };
    if chain != found.base.chain {
        return Err(RestoreError::Contradicted { index });
    }
    Ok(())
}

impl Restored {
    /// What was recovered, with the checkpoint to begin with and all that are durable, oldest first.
    #[must_use]
    pub fn of(recovered: &Recovered, checkpoint: Option<Checkpoint>, kept: Vec<Kept>) -> Restored {
        Restored {
            hard_state: HardState {
                term: Term(recovered.hard_state.term),
                vote: recovered.hard_state.vote.map(NodeId),
            },
            base: recovered.base.into(),
            term_runs: recovered.term_runs.iter().map(|run| (Term(run.term), Index(run.first_index))).collect(),
            known_commit: recovered.known_commit,
            last_index: recovered.last_index,
            checkpoint,
            kept,
            waypoints: Vec::new(),
            pictures: Vec::new(),
            states: StatesKept::default(),
        }
    }

    /// The first entry that a replica is to be given: the one behind the checkpoint.
    #[must_use]
    pub fn next_index(&self) -> u64 {
        self.checkpoint.as_ref().map_or(self.base.index, |checkpoint| checkpoint.base.index) + 1
    }
}
