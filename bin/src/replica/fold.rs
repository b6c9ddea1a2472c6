//! What a prefix of a log says, without a node: for whoever copies one, or makes a cluster of a copy.

use graven_frame::{Frame, FrameError};
use graven_snapshot::Checkpoint;
use graven_wal::LogBase;

use super::checkpoint::{State, StateError, encode_state};
use super::entry::{apply_to_sessions, members_of};
use super::names::Word;
use super::sessions::Sessions;
use super::tables::Tables;
use crate::members::Members;

/// The state after some entry, all of which are taken for committed.
#[derive(Debug, Default)]
pub struct Fold {
    at: LogBase,
    first_offset: u64,
    members: Option<(u64, Members)>,
    sessions: Sessions,
    tables: Tables,
}

impl Fold {
    /// The state that a log begins with: that of its checkpoint, or none.
    ///
    /// # Errors
    /// The checkpoint's state is not what this version reads.
    pub fn new(checkpoint: Option<&Checkpoint>) -> Result<Fold, StateError> {
        let Some(checkpoint) = checkpoint else { return Ok(Fold::default()) };
        let State { first_offset, members_index, members, sessions, tables } = State::decode(&checkpoint.state)?;
        let members = Some((members_index, members));
        Ok(Fold { at: checkpoint.base, first_offset, members, sessions, tables })
    }

    /// Takes in the next entry, whose bytes were verified.
    ///
    /// # Errors
    /// It does not continue the one before it, or says nothing that this version understands. Nothing is to be folded after that.
    pub fn push(&mut self, frame: &Frame) -> Result<(), FrameError> {
        let header = frame.header();
        let at = &self.at;
        if header.chain_after(at.chain) != header.chain {
            return Err(FrameError::Chain { index: header.index });
        }
        let follows = header.index == at.index + 1 && header.base_offset == at.next_offset && header.term >= at.term;
        if !follows {
            return Err(FrameError::Malformed { what: "it does not follow the entry before it", at: 0 });
        }
        let index = header.index;
        frame.check_groups()?;
        apply_to_sessions(&mut self.sessions, frame)?;
        self.sessions.commit(index);
        if let Some(members) = members_of(frame)? {
            self.members = Some((index, members));
        }
        self.tables.note(frame)?;
        self.first_offset = self.first_offset.max(self.tables.trims.pass(index).unwrap_or(0));
        self.tables.pass(index);
        self.at = LogBase::after(header);
        Ok(())
    }

    /// The last entry.
    #[must_use]
    pub fn at(&self) -> &LogBase {
        &self.at
    }

    /// The first offset that is not trimmed.
    #[must_use]
    pub fn first_offset(&self) -> u64 {
        self.first_offset
    }

    /// The members that were named last.
    #[must_use]
    pub fn members(&self) -> Option<&Members> {
        self.members.as_ref().map(|(_, members)| members)
    }

    /// The names of snapshots whose bodies lie beside the log.
    #[must_use]
    pub fn snapshots(&self) -> Vec<String> {
        self.tables.names.visible().iter().map(|(name, _)| name.to_owned()).collect()
    }

    /// A checkpoint of this state; `None` when nobody was ever named as a member, or there are more than an entry holds.
    #[must_use]
    pub fn checkpoint(&self, cluster: u128) -> Option<Checkpoint> {
        let (index, members) = self.members.as_ref()?;
        let sessions = self.sessions.as_of(self.at.index);
        let state = encode_state(self.first_offset, (*index, members), &sessions, &self.tables)?;
        Some(Checkpoint { cluster, base: self.at, state })
    }
}

/// The body of an entry that ends a snapshot's name.
#[must_use]
pub fn drop_snapshot(name: &str) -> Vec<u8> {
    Word::Drop(name.to_owned()).encode()
}
