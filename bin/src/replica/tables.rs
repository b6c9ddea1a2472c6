//! What control entries say, beside the members and the sessions: trims and everything that has a name.
//!
//! Each table has two parts: what readers may see, which changes where an entry is committed and durable, and what is in the
//! log behind that. A leader judges by both; a checkpoint holds the first. A truncation takes entries from the second only.
//!
//! In a checkpoint the tables stand behind the sessions as sections: their number (4), and for each, in the order of their tags, its tag (4), its length (4)
//! and its bytes. A checkpoint without a section is of version 1, which software of feature level 1 reads.

use graven_frame::{Frame, FrameError};

use super::checkpoint::Fields;
use super::cursors::{Cursors, moves_of};
use super::names::{Names, Word};
use super::planted::{Bug, is_planted};
use super::trim::{Trims, trim_of};

/// A table's bytes in a checkpoint, under its tag.
type Section = (u32, Vec<u8>);

/// Named cursors.
const CURSORS: u32 = 1;
/// Snapshots with names.
const NAMES: u32 = 2;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Tables {
    pub(super) trims: Trims,
    pub(super) names: Names,
    pub(super) cursors: Cursors,
}

impl Tables {
    /// Whether the frame is a control entry that these tables can read: what they cannot is never stored.
    pub(super) fn check(frame: &Frame) -> Result<(), FrameError> {
        trim_of(frame)?;
        Word::of(frame)?;
        moves_of(frame)?;
        Ok(())
    }

    /// Takes in a frame that is in the log now.
    pub(super) fn note(&mut self, frame: &Frame) -> Result<(), FrameError> {
        self.trims.note(frame)?;
        self.names.note(frame)?;
        self.cursors.note(frame)
    }

    /// Everything from `index` on is gone from the log.
    pub(super) fn truncate(&mut self, index: u64) {
        self.trims.truncate(index);
        self.names.truncate(index);
        self.cursors.truncate(index);
    }

    /// Entries up to `index` may be seen. Trims are passed by whoever moves the first offset.
    pub(super) fn pass(&mut self, index: u64) {
        self.names.pass(index);
        self.cursors.pass(index);
    }

    /// A checkpoint takes the place of everything before it.
    pub(super) fn replace(&mut self, by: Tables) {
        let names = self.names.replaced(by.names);
        let cursors = self.cursors.replaced(by.cursors);
        *self = Tables { names, cursors, ..by };
    }

    fn sections(&self) -> Vec<Section> {
        let names = self.names.encode().filter(|_| !is_planted(Bug::NamesForgotten)).map(|bytes| (NAMES, bytes));
        self.cursors.encode().map(|bytes| (CURSORS, bytes)).into_iter().chain(names).collect()
    }

    /// Puts what readers may see behind the other state of a checkpoint. Returns whether there was any.
    pub(super) fn encode(&self, out: &mut Vec<u8>) -> bool {
        let sections = self.sections();
        if sections.is_empty() {
            return false;
        }
        out.extend((sections.len() as u32).to_le_bytes());
        for (tag, bytes) in &sections {
            out.extend(tag.to_le_bytes());
            out.extend((bytes.len() as u32).to_le_bytes());
            out.extend(bytes);
        }
        true
    }

    /// Reads what [`Tables::encode`] wrote; `None` when it contradicts itself or has a table that this version does not know.
    pub(super) fn decode(from: &mut Fields<'_>) -> Option<Tables> {
        let mut tables = Tables::default();
        let mut before = 0;
        for _ in 0..from.u32()? {
            let (tag, len) = (from.u32()?, from.u32()?);
            let mut table = Fields::new(from.bytes(usize::try_from(len).ok()?)?);
            if tag <= before {
                return None;
            }
            before = tag;
            match tag {
                CURSORS => tables.cursors = Cursors::decode(&mut table)?,
                NAMES => tables.names = Names::decode(&mut table)?,
                _ => return None,
            }
            if !table.rest().is_empty() {
                return None;
            }
        }
        Some(tables)
    }
}
