//! P10: a refusal that rests on the log tells the truth about what is committed.
//!
//! Conflict, fenced and gap are judged against the end of the leader's log, committed or not. They may leave only when that has
//! become certain, so what they name must be found in the committed log at that moment.

use std::collections::BTreeMap;

use graven_frame::{Frame, GroupHeader, Kind};

use super::{Checked, violated};

/// What refusals may name.
#[derive(Debug, Default)]
pub struct Refusals {
    highest_fence: u64,
    last_sequence: BTreeMap<u64, u64>,
    length: u64,
}

impl Refusals {
    /// `frame` is committed, after all before it.
    pub fn committed(&mut self, frame: &Frame) {
        self.length = frame.next_offset();
        if frame.header().kind != Kind::Records {
            return;
        }
        for header in frame.groups().flatten().map(|group| *group.header()) {
            self.highest_fence = self.highest_fence.max(header.fence.unwrap_or(0));
            if let (Some(session), Some(sequence)) = (header.session, header.sequence) {
                self.last_sequence.insert(session, sequence);
            }
        }
    }

    /// The append with this header was refused: the log would have placed it at `next_offset`.
    ///
    /// # Errors
    /// It would have landed where it was expected, or nothing that is committed ends there.
    pub fn conflict(&self, header: &GroupHeader, next_offset: u64) -> Checked {
        if header.expected_offset.is_none_or(|expected| expected == next_offset) || next_offset > self.length {
            return violated(
                "P10",
                format!(
                    "{header:?} is refused, the next offset being {next_offset}; {} records are committed",
                    self.length
                ),
            );
        }
        Ok(())
    }

    /// The append with this header was refused: `fence` had been used.
    ///
    /// # Errors
    /// It had not, as far as is committed, or it is not above the append's own.
    pub fn fenced(&self, header: &GroupHeader, fence: u64) -> Checked {
        if header.fence.is_none_or(|own| own >= fence) || fence > self.highest_fence {
            return violated(
                "P10",
                format!("{header:?} is fenced by {fence}; the highest that is committed is {}", self.highest_fence),
            );
        }
        Ok(())
    }

    /// The append with this header was refused: its session must go on with `expected`. When it came, everything up to
    /// `acknowledged` had been acknowledged in the session.
    ///
    /// # Errors
    /// What comes before `expected` is not committed, `expected` is the append's own number or a later one, or one that was
    /// acknowledged.
    pub fn gap(&self, header: &GroupHeader, expected: u64, acknowledged: u64) -> Checked {
        let last = header.session.and_then(|session| self.last_sequence.get(&session)).copied().unwrap_or(0);
        if header.sequence.is_none_or(|sequence| sequence <= expected)
            || expected > last + 1
            || expected <= acknowledged
        {
            return violated(
                "P10",
                format!(
                    "{header:?} is told to go on with {expected}; {last} is committed, {acknowledged} was acknowledged before"
                ),
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use graven_frame::{GroupBuilder, GroupHeaderSpec};

    use super::super::testing::{frame, group};
    use super::*;

    fn header(expected_offset: Option<u64>, fence: Option<u64>) -> GroupHeader {
        let mut builder = GroupBuilder::new();
        builder.push(&[], b"a").expect("small");
        let spec = GroupHeaderSpec { session: Some(9), sequence: Some(5), expected_offset, fence };
        *builder.finish(spec).header()
    }

    #[test]
    fn refusals_that_name_what_is_not_committed_are_seen() {
        let mut refusals = Refusals::default();
        refusals.committed(&frame(None, 1, &[group(9, 1, &["a", "b"])]));
        refusals.conflict(&header(Some(1), None), 2).expect("the log ends at 2");
        refusals.conflict(&header(Some(1), None), 3).expect_err("beyond what is committed");
        refusals.conflict(&header(Some(2), None), 2).expect_err("that is where it was expected");
        refusals.conflict(&header(None, None), 2).expect_err("nothing was expected");
        refusals.fenced(&header(None, Some(1)), 2).expect_err("no such fence");
        refusals.gap(&header(None, None), 2, 1).expect("1 is committed, 5 was sent");
        refusals.gap(&header(None, None), 1, 1).expect_err("1 was acknowledged before");
        refusals.gap(&header(None, None), 3, 0).expect_err("2 is not committed");
        refusals.gap(&header(None, None), 5, 0).expect_err("5 is what was sent");
    }

    #[test]
    fn a_fence_must_be_committed_and_above_the_appends_own() {
        let mut builder = GroupBuilder::new();
        builder.push(&[], b"a").expect("small");
        let fencing = builder.finish(GroupHeaderSpec {
            session: Some(9),
            sequence: Some(1),
            expected_offset: None,
            fence: Some(4),
        });
        let mut refusals = Refusals::default();
        refusals.committed(&frame(None, 1, &[fencing]));
        refusals.fenced(&header(None, Some(3)), 4).expect("4 is committed");
        refusals.fenced(&header(None, Some(3)), 5).expect_err("5 is not");
        refusals.fenced(&header(None, Some(4)), 4).expect_err("its own is as high");
        refusals.fenced(&header(None, None), 4).expect_err("it has none");
    }
}
