//! Leader append-only: a leader never overwrites or deletes entries of its log, it only adds new ones (Raft paper, figure 3).

use super::{Checked, violated};

/// The end of each node's log while it leads.
#[derive(Debug)]
pub struct AppendOnly {
    /// Term and last index, of nodes that lead.
    leading: Vec<Option<(u64, u64)>>,
}

impl AppendOnly {
    /// For nodes 1 to `nodes`.
    #[must_use]
    pub fn new(nodes: u64) -> AppendOnly {
        AppendOnly { leading: vec![None; nodes as usize + 1] }
    }

    /// `node` leads `term` from now on, its log ends at `last`.
    pub fn elected(&mut self, node: u64, term: u64, last: u64) {
        self.leading[node as usize] = Some((term, last));
    }

    /// `node` does not lead any more.
    pub fn deposed(&mut self, node: u64) {
        self.leading[node as usize] = None;
    }

    /// `node` writes the entry at `index`, made in `term`.
    ///
    /// # Errors
    /// It leads, and that is not a new entry of its own behind its log.
    pub fn writing(&mut self, node: u64, index: u64, term: u64) -> Checked {
        let Some((leads, last)) = &mut self.leading[node as usize] else { return Ok(()) };
        if index != *last + 1 || term != *leads {
            return violated(
                "leader append-only",
                format!("node {node} leads term {leads} with a log to {last} and writes entry {index} of term {term}"),
            );
        }
        *last = index;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_that_writes_over_its_log_or_leaves_a_hole_is_seen() {
        let mut checker = AppendOnly::new(2);
        checker.writing(1, 3, 1).expect("a follower may");
        checker.elected(1, 2, 7);
        checker.writing(1, 8, 2).expect("behind its log");
        checker.writing(1, 8, 2).expect_err("over its log");
        checker.writing(1, 10, 2).expect_err("a hole");
        checker.writing(1, 9, 1).expect_err("somebody else's entry");
        checker.deposed(1);
        checker.writing(1, 4, 3).expect("a follower again");
    }
}
