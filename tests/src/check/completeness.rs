//! Leader completeness: what was committed in a term is in the log of every leader of a later one (Raft paper, figure 3).

use graven_frame::{Chain, Frame};

use super::{Checked, violated};

/// What was committed, and in which term; the chain of the last entry stands for the log up to it.
#[derive(Debug, Default)]
pub struct Completeness {
    committed: Vec<(u64, u64, Chain)>,
}

impl Completeness {
    /// Everything up to `last` was first seen committed in `term`.
    pub fn committed(&mut self, term: u64, last: &Frame) {
        self.committed.push((term, last.header().index, last.header().chain));
    }

    /// `node` was elected in `term` with this log.
    ///
    /// # Errors
    /// It lacks something that was committed in an earlier term.
    pub fn elected(&mut self, node: u64, term: u64, log: &[Frame]) -> Checked {
        let earlier = self.committed.iter().rev().find(|(in_term, _, _)| *in_term < term);
        let Some((in_term, index, chain)) = earlier else { return Ok(()) };
        match log.get(*index as usize - 1) {
            Some(frame) if frame.header().chain == *chain => Ok(()),
            _ => violated(
                "leader completeness",
                format!("node {node} leads term {term} without entry {index}, committed in term {in_term}"),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{frame, group};
    use super::*;

    #[test]
    fn a_leader_without_a_committed_entry_is_seen() {
        let mut completeness = Completeness::default();
        let first = frame(None, 1, &[]);
        let second = frame(Some(&first), 1, &[group(0, 0, &["a"])]);
        let other = frame(Some(&first), 2, &[]);
        completeness.committed(1, &second);
        completeness.elected(1, 2, &[first.clone(), second]).expect("has it");
        completeness.elected(2, 2, std::slice::from_ref(&first)).expect_err("too short");
        completeness.elected(2, 3, &[first.clone(), other]).expect_err("has another");
        completeness.elected(2, 1, &[first]).expect("elected before");
    }
}
