//! Election safety: at most one leader a term, because nobody votes twice in one (Raft paper, figure 3).

use std::collections::BTreeMap;

use super::{Checked, violated};

/// Who led which term, and who voted for whom.
#[derive(Debug, Default)]
pub struct Elections {
    leaders: BTreeMap<u64, u64>,
    /// By voter and term.
    votes: BTreeMap<(u64, u64), u64>,
}

impl Elections {
    /// `node` leads `term`.
    ///
    /// # Errors
    /// Another node led it, or leads it.
    pub fn elected(&mut self, node: u64, term: u64) -> Checked {
        match self.leaders.insert(term, node) {
            Some(other) if other != node => {
                violated("election safety", format!("nodes {other} and {node} both lead term {term}"))
            }
            _ => Ok(()),
        }
    }

    /// `voter` says that its vote in `term` is for `candidate`; in this life or an earlier one, that must stay so.
    ///
    /// # Errors
    /// It voted for another.
    pub fn voted(&mut self, voter: u64, term: u64, candidate: u64) -> Checked {
        match self.votes.insert((voter, term), candidate) {
            Some(other) if other != candidate => violated(
                "election safety",
                format!("node {voter} votes for {other} and for {candidate} in term {term}"),
            ),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_leaders_of_one_term_are_seen() {
        let mut elections = Elections::default();
        elections.elected(1, 2).expect("the first");
        elections.elected(2, 3).expect("another term");
        elections.elected(2, 2).expect_err("the second of term 2");
    }

    #[test]
    fn two_votes_in_one_term_are_seen() {
        let mut elections = Elections::default();
        elections.voted(1, 2, 3).expect("the first");
        elections.voted(1, 2, 3).expect("said again");
        elections.voted(1, 3, 2).expect("another term");
        elections.voted(1, 2, 1).expect_err("the second of term 2");
    }
}
