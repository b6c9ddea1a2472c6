//! P7 and P10: an append of a session lands at most once and in order, every answer to it names the same offsets, and one
//! that was refused never lands.

use std::collections::{BTreeMap, BTreeSet};

use graven_frame::{Frame, GroupHeader, Kind};

use super::linearizability::History;
use super::{Checked, violated};

/// What landed where.
#[derive(Debug, Default)]
pub struct Once {
    /// First offset by session and sequence number.
    landed: BTreeMap<(u64, u64), u64>,
    last_sequence: BTreeMap<u64, u64>,
    refused: BTreeSet<(u64, u64)>,
    /// The highest sequence number that was acknowledged, by session.
    acknowledged: BTreeMap<u64, u64>,
}

impl Once {
    /// `frame` is committed, after all before it; `history` is told where its appends landed.
    ///
    /// # Errors
    /// It holds an append that landed before, comes too early, or was refused.
    pub fn committed(&mut self, frame: &Frame, history: &mut History) -> Checked {
        if frame.header().kind != Kind::Records {
            return Ok(());
        }
        let mut first = frame.header().base_offset;
        for group in frame.groups() {
            let Ok(group) = group else {
                return violated("P7", format!("entry {} does not decode: {group:?}", frame.header().index));
            };
            let header = group.header();
            if let (Some(session), Some(sequence)) = (header.session, header.sequence) {
                let last = self.last_sequence.entry(session).or_insert(0);
                if sequence != *last + 1 {
                    return violated(
                        "P7",
                        format!("session {session}: append {sequence} lands at offset {first} after {last}"),
                    );
                }
                if self.refused.contains(&(session, sequence)) {
                    return violated(
                        "P10",
                        format!("session {session}: append {sequence} was refused and lands at offset {first}"),
                    );
                }
                *last = sequence;
                self.landed.insert((session, sequence), first);
                history.append_landed((session, sequence), first);
            }
            first += u64::from(header.count);
        }
        Ok(())
    }

    /// The append with this header was acknowledged at offset `first`.
    ///
    /// # Errors
    /// It landed elsewhere or not at all.
    pub fn acknowledged(&mut self, header: &GroupHeader, first: u64) -> Checked {
        let (Some(session), Some(sequence)) = (header.session, header.sequence) else { return Ok(()) };
        let landed = self.landed.get(&(session, sequence));
        if landed != Some(&first) {
            return violated(
                "P7",
                format!("session {session}: append {sequence} acknowledged at offset {first}, landed at {landed:?}"),
            );
        }
        let highest = self.acknowledged.entry(session).or_insert(0);
        *highest = sequence.max(*highest);
        Ok(())
    }

    /// The highest sequence number of `session` that was acknowledged.
    #[must_use]
    pub fn last_acknowledged(&self, session: u64) -> u64 {
        self.acknowledged.get(&session).copied().unwrap_or(0)
    }

    /// The append with this header was refused.
    ///
    /// # Errors
    /// It has landed.
    pub fn refused(&mut self, header: &GroupHeader) -> Checked {
        let (Some(session), Some(sequence)) = (header.session, header.sequence) else { return Ok(()) };
        self.refused.insert((session, sequence));
        match self.landed.get(&(session, sequence)) {
            None => Ok(()),
            Some(first) => violated(
                "P10",
                format!("session {session}: append {sequence} is refused, but landed at offset {first}"),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{frame, group};
    use super::*;

    #[test]
    fn an_append_that_lands_twice_or_too_early_is_seen() {
        let mut once = Once::default();
        once.committed(&frame(None, 1, &[group(9, 1, &["a"])]), &mut History::default()).expect("the first");
        once.committed(&frame(None, 1, &[group(9, 1, &["a"])]), &mut History::default()).expect_err("again");
        once.committed(&frame(None, 1, &[group(9, 3, &["c"])]), &mut History::default()).expect_err("too early");
        once.committed(&frame(None, 1, &[group(9, 2, &["b"])]), &mut History::default()).expect("the second");
    }

    #[test]
    fn an_answer_with_other_offsets_is_seen() {
        let mut once = Once::default();
        once.committed(&frame(None, 1, &[group(9, 1, &["a"])]), &mut History::default()).expect("the first");
        once.acknowledged(group(9, 1, &["a"]).header(), 0).expect("right");
        once.acknowledged(group(9, 1, &["a"]).header(), 1).expect_err("elsewhere");
        once.acknowledged(group(9, 2, &["b"]).header(), 1).expect_err("not landed");
    }

    #[test]
    fn a_refused_append_that_lands_is_seen() {
        let mut once = Once::default();
        once.refused(group(9, 1, &["a"]).header()).expect("not landed");
        once.committed(&frame(None, 1, &[group(9, 1, &["a"])]), &mut History::default())
            .expect_err("lands all the same");
        let mut once = Once::default();
        once.committed(&frame(None, 1, &[group(9, 1, &["a"])]), &mut History::default()).expect("lands");
        once.refused(group(9, 1, &["a"]).header()).expect_err("refused all the same");
    }
}
