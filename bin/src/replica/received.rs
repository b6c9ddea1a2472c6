//! What is checked of frames that another node sent, before the core hears of them.

use graven_frame::Frame;
use graven_raft::{AppendHead, Entry};

use super::Replica;
use super::entry::entry_of;
use super::log::Mark;

/// Why frames were not taken.
pub(super) enum Refused {
    Diverged(u64),
    Malformed(&'static str),
}

impl Replica {
    /// Checks frames against each other and against this node's log, before the core hears of them.
    pub(super) fn check_append(&self, head: &AppendHead, frames: &[Frame]) -> Result<Vec<Entry>, Refused> {
        let mut entries = Vec::with_capacity(frames.len());
        let mut before = self.log.mark(head.prev.index.0).filter(|mark| mark.term == head.prev.term.0);
        if before.is_some_and(|mark| head.prev_chain != 0 && mark.chain.0 != head.prev_chain) {
            return Err(Refused::Diverged(head.prev.index.0));
        }
        let mut index = head.prev.index.0;
        for frame in frames {
            let header = frame.header();
            index += 1;
            if header.index != index || header.term > head.term.0 {
                return Err(Refused::Malformed("indexes or terms do not follow each other"));
            }
            if let Some(before) = &before {
                let follows =
                    header.chain_after(before.chain) == header.chain && header.base_offset == before.next_offset;
                if !follows && before.index == head.prev.index.0 {
                    return Err(Refused::Diverged(before.index));
                }
                if !follows {
                    return Err(Refused::Malformed("frames do not follow each other"));
                }
            }
            let mark = Mark::of(frame);
            // The chain covers the whole log: with equal index and term it must be equal too.
            if let Some(mine) = self.log.mark(index).filter(|mine| mine.term == mark.term)
                && mine.chain != mark.chain
            {
                return Err(Refused::Diverged(index));
            }
            before = Some(mark);
            entries.push(entry_of(frame).map_err(|_| Refused::Malformed("an entry's body does not decode"))?);
        }
        Ok(entries)
    }
}
