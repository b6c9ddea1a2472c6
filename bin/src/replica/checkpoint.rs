//! What a checkpoint says of a node, when one is made, and what it is good for.
//!
//! A checkpoint is made of what is committed and durable here, once so many bytes of log came since the last one. The session table
//! can be taken back to there: how to undo an entry is forgotten when it is readable, not before. It is saved by
//! a disk job like everything else. When a trim moved the first offset past one, the log in front of it is let go of: not
//! before the checkpoint is durable, and never past what is trimmed, because the records of a log are its data.
//!
//! The state's bytes, little-endian: version (4: 1, or 2 with tables behind it), first offset (8), index of the membership entry in force (8), its length (4) and
//! its bytes; then the session table: highest fence (8), number of sessions (4), and for each, ascending: id (8), last sequence (8), index of its
//! last append (8), number of results (4), and for each sequence, index, first offset, count, term, timestamp (8 each); then [`Tables`].

use graven_snapshot::Checkpoint;
use graven_wal::LogBase;
use std::sync::Arc;

use super::effect::{Chore, DiskJob, Effect};
use super::log::Mark;
use super::planted::{Bug, is_planted};
use super::sessions::Sessions;
use super::tables::Tables;
use super::{After, Job, Replica};
use crate::members::Members;

/// A state without tables, as software of feature level 1 reads it.
const STATE_WITHOUT_TABLES: u32 = 1;
const STATE_VERSION: u32 = 2;
/// Checkpoints on their way to the disk at most. Under load one is due before the one before it is durable; each holds a session table.
pub(super) const SAVING_MAX: usize = 4;

/// A checkpoint that is durable here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// The last entry it covers.
    pub index: u64,
    /// Its term.
    pub term: u64,
    /// Offset of the record after it.
    pub next_offset: u64,
}

/// What a checkpoint says of the node that made it.
#[derive(Debug)]
pub(super) struct State {
    pub(super) first_offset: u64,
    /// Where the members in force stand in the log.
    pub(super) members_index: u64,
    pub(super) members: Members,
    pub(super) sessions: Sessions,
    pub(super) tables: Tables,
}

/// The bytes of a checkpoint's state are not what this version writes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the state in a checkpoint cannot be read: {0}")]
pub struct StateError(&'static str);

/// The bytes of a state, of its parts.
pub(super) fn encode_state(
    first_offset: u64,
    (members_index, members): (u64, &Members),
    sessions: &Sessions,
    tables: &Tables,
) -> Option<Vec<u8>> {
    let members = members.encode().ok()?;
    let mut out = Vec::new();
    out.extend(STATE_WITHOUT_TABLES.to_le_bytes());
    out.extend(first_offset.to_le_bytes());
    out.extend(members_index.to_le_bytes());
    out.extend((members.len() as u32).to_le_bytes());
    out.extend(members);
    sessions.encode(&mut out);
    if tables.encode(&mut out) {
        out[..4].copy_from_slice(&STATE_VERSION.to_le_bytes());
    }
    Some(out)
}

impl State {
    pub(super) fn decode(bytes: &[u8]) -> Result<State, StateError> {
        let mut from = Fields(bytes);
        let version = match from.u32() {
            Some(version @ (STATE_WITHOUT_TABLES | STATE_VERSION)) => version,
            Some(_) => return Err(StateError("a newer version wrote it; upgrade first")),
            None => return Err(StateError("it is empty")),
        };
        let wrong = StateError("it contradicts itself");
        let mut rest = || {
            let (first_offset, members_index) = (from.u64()?, from.u64()?);
            let len = from.u32()? as usize;
            let members = Members::decode(from.bytes(len)?).ok()?;
            let sessions = Sessions::decode(&mut from)?;
            let tables = if version == STATE_WITHOUT_TABLES { Tables::default() } else { Tables::decode(&mut from)? };
            Some(State { first_offset, members_index, members, sessions, tables })
        };
        let state = rest().ok_or(wrong.clone())?;
        if from.0.is_empty() { Ok(state) } else { Err(wrong) }
    }
}

/// Numbers one behind the other.
pub(super) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Fields<'a> {
        Fields(bytes)
    }

    /// All that is left.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.0
    }

    pub(super) fn u128(&mut self) -> Option<u128> {
        self.bytes(16)?.try_into().ok().map(u128::from_le_bytes)
    }

    pub(super) fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.bytes(4)?.try_into().ok().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.bytes(8)?.try_into().ok().map(u64::from_le_bytes)
    }
}

impl From<Mark> for LogBase {
    fn from(mark: Mark) -> LogBase {
        let Mark { index, term, chain, next_offset, timestamp_ms } = mark;
        LogBase { index, term, chain, next_offset, timestamp_ms }
    }
}

impl From<LogBase> for Mark {
    fn from(base: LogBase) -> Mark {
        let LogBase { index, term, chain, next_offset, timestamp_ms } = base;
        Mark { index, term, chain, next_offset, timestamp_ms }
    }
}

impl Kept {
    /// What is to be remembered of a checkpoint that ends there.
    #[must_use]
    pub fn of(base: &LogBase) -> Kept {
        Kept { index: base.index, term: base.term, next_offset: base.next_offset }
    }
}

/// The checkpoints of a replica.
#[derive(Debug, Default)]
pub(super) struct Checkpoints {
    /// Durable ones, oldest first. The first one is where a follower begins whose entries are gone.
    pub(super) kept: Vec<Kept>,
    /// Bytes of log since the last one was made.
    pub(super) grown: u64,
    /// How many are on their way to the disk.
    saving: usize,
    /// Where the log was let go of up to.
    released: u64,
}

impl Checkpoints {
    /// What a start found: checkpoints, bytes of log behind the newest, and where the log begins.
    pub(super) fn found(kept: Vec<Kept>, grown: u64, base: u64) -> Checkpoints {
        Checkpoints { kept, grown, saving: 0, released: base }
    }

    /// The log begins anew behind this one.
    pub(super) fn installed(&mut self, kept: Kept) {
        *self = Checkpoints { kept: vec![kept], grown: 0, saving: self.saving, released: kept.index };
    }
}

impl Replica {
    /// Makes a checkpoint of what is readable here, when it is time for one.
    pub(super) fn maybe_checkpoint(&mut self) {
        let at = self.log.readable();
        let due = self.checkpoints.grown >= self.config.checkpoint_bytes && self.checkpoints.saving < SAVING_MAX;
        if !due || self.installs.is_installing() {
            return;
        }
        let Some((members_index, members)) = self.members.first().filter(|(index, _)| *index <= at.index) else {
            return;
        };
        let sessions = self.sessions.as_of(at.index);
        let state = encode_state(self.first_offset, (*members_index, members), &sessions, &self.tables);
        let Some(state) = state else { return };
        let checkpoint = Arc::new(Checkpoint { cluster: self.config.cluster, base: at.into(), state });
        self.checkpoints.grown = 0;
        self.checkpoints.saving += 1;
        self.chore(Chore::Save(Arc::clone(&checkpoint)), After::Saved(Kept::of(&checkpoint.base)));
    }

    /// Puts out a disk job that writes no entry.
    pub(super) fn chore(&mut self, chore: Chore, after: After) {
        self.job_sequence += 1;
        let sequence = self.job_sequence;
        self.jobs.push_back(Job { sequence, persist: None, first: None, bytes: 0, after });
        let commit = self.committed.min(self.log.last().index);
        let job = DiskJob { sequence, commit, hard_state: None, frames: Vec::new(), chore: Some(chore) };
        self.effects.push_back(Effect::Disk(job));
    }

    /// A checkpoint is durable, or the disk had no room for it: then the next one comes when the log has grown again.
    pub(super) fn on_saved(&mut self, kept: Kept, saved: bool) {
        self.checkpoints.saving -= 1;
        if saved {
            self.checkpoints.kept.push(kept);
        }
    }

    /// Takes in that the checkpoint of entry `index` turned out to be damaged, and is gone: another one is made at once, so that a
    /// follower that needs one, and this node's next start, find one.
    pub fn checkpoint_lost(&mut self, now: super::Now, index: u64) {
        self.checkpoints.kept.retain(|kept| kept.index != index);
        self.checkpoints.grown = self.checkpoints.grown.max(self.config.checkpoint_bytes);
        self.settle(now);
    }

    /// Lets go of the log in front of the last checkpoint before which everything is trimmed.
    pub(super) fn maybe_release(&mut self, now: graven_raft::Tick) {
        if self.installs.is_installing() {
            return;
        }
        // The core keeps what is not applied, and would offer followers from there what the files do not have any more: a state may have been
        // saved, or fetched, of which it was not told yet.
        let most = self.log.readable().index.min(self.applied);
        // A state machine needs what is not in a snapshot that it can fall back on.
        let own = if self.config.state_machine { self.pictures.state_needs } else { u64::MAX };
        let limit = self.first_offset.min(if is_planted(Bug::ReleasePastState) { u64::MAX } else { own });
        let trimmed = |kept: &&Kept| kept.next_offset <= limit || is_planted(Bug::ReleasePastTrim);
        let released = self.checkpoints.released;
        let last = |kept: &[Kept], upto: u64| {
            let found = kept.iter().rev().find(|kept| trimmed(kept) && kept.index <= upto);
            found.copied().filter(|kept| kept.index > released)
        };
        let Some(at) = last(&self.checkpoints.kept, most) else { return };
        let unpinned = self.unpinned(now, at.index);
        let Some(at) = last(&self.checkpoints.kept, unpinned) else { return };
        self.checkpoints.released = at.index;
        self.checkpoints.kept.retain(|kept| kept.index >= at.index);
        // From here on no follower is sent anything from before it.
        self.core.trimmed(now, graven_raft::Index(at.index));
        self.chore(Chore::Release(at.index), After::Nothing);
    }
}

#[cfg(test)]
mod tests {
    use graven_frame::GroupHeader;

    use super::*;
    use crate::replica::sessions::{Placed, Verdict};

    fn group(session: u64, sequence: u64, fence: Option<u64>) -> GroupHeader {
        let (session, sequence) = (Some(session), Some(sequence));
        GroupHeader { len: 64, count: 1, session, sequence, expected_offset: None, fence }
    }

    fn placed(sequence: u64, index: u64) -> Placed {
        Placed { sequence, index, first: index * 10, count: 3, term: 2, timestamp_ms: 77 }
    }

    fn sessions() -> Sessions {
        let mut sessions = Sessions::default();
        sessions.open(5);
        sessions.append(&group(5, 1, Some(4)), placed(1, 6));
        sessions.open(7);
        sessions
    }

    #[test]
    fn a_state_comes_back_as_it_was_without_what_is_not_committed() {
        let mut sessions = sessions();
        sessions.commit(7);
        sessions.append(&group(5, 2, Some(9)), placed(2, 8));
        sessions.open(9);
        let members = Members::default();
        let as_of = sessions.as_of(7);
        let bytes = encode_state(3, (1, &members), &as_of, &Tables::default()).expect("small");
        let back = State::decode(&bytes).expect("whole");
        assert_eq!((back.first_offset, back.members_index), (3, 1));
        assert_eq!(back.sessions.judge(&group(5, 1, None), 0), Verdict::Duplicate(placed(1, 6)));
        assert_eq!(back.sessions.judge(&group(5, 2, None), 0), Verdict::Accept, "8 was not committed");
        assert_eq!(back.sessions.judge(&group(9, 1, None), 0), Verdict::Expired, "nor was 9");
        assert_eq!(back.sessions.judge(&group(7, 1, Some(3)), 0), Verdict::Fenced { fence: 4 });
        let again = encode_state(3, (1, &members), &back.sessions, &back.tables);
        assert_eq!(again, Some(bytes), "equal states, equal bytes");
    }

    #[test]
    fn cut_or_extended_states_are_refused() {
        let members = Members::default();
        let mut bytes = encode_state(3, (1, &members), &sessions(), &Tables::default()).expect("small");
        for end in 0..bytes.len() {
            assert!(State::decode(&bytes[..end]).is_err(), "cut at {end}");
        }
        bytes.push(0);
        assert!(State::decode(&bytes).is_err());
        bytes.pop();
        bytes[0] = 3;
        assert!(State::decode(&bytes).expect_err("version 3").to_string().contains("newer"));
    }
}
