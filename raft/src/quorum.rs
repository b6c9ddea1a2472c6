//! Majorities, joint ones too.
//!
//! While a membership change is under way every decision needs a majority of the new voters and one of the outgoing
//! voters (Raft paper 6; thesis 4.3). Sets are small: counting is cheaper than sorting, and allocates nothing.
//!
//! Everything a core decides by majority goes through [`reached`]: commits, elections, leases, read rounds.

use std::collections::BTreeSet;

use crate::planted::{Bug, is_planted};
use crate::types::{Membership, NodeId};

/// What the votes given so far make of an election.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// A quorum said yes.
    Won,
    /// Those who have not answered decide.
    Pending,
    /// Whatever the others answer, no quorum can say yes any more.
    Lost,
}

/// The verdict on an election in which `vote` tells each node's answer, `None` for one that has not answered.
///
/// `None` when nobody may vote: such an election is neither won nor lost, and nobody leads by it.
#[must_use]
pub fn verdict(membership: &Membership, vote: impl Fn(NodeId) -> Option<bool>) -> Option<Verdict> {
    let won = reached(membership, |node| vote(node) == Some(true))?;
    let open = reached(membership, |node| vote(node) != Some(false))?;
    Some(match (won, open) {
        (true, _) => Verdict::Won,
        (false, true) => Verdict::Pending,
        (false, false) => Verdict::Lost,
    })
}

/// The highest value that a quorum has reached; `None` when nobody may vote.
#[must_use]
pub fn reached<T: Ord + Copy>(membership: &Membership, value: impl Fn(NodeId) -> T) -> Option<T> {
    let incoming = majority_reached(&membership.voters, &value)?;
    if membership.outgoing.is_empty() {
        return Some(incoming);
    }
    majority_reached(&membership.outgoing, &value).map(|outgoing| outgoing.min(incoming))
}

/// Whether those for whom `agrees` holds are a quorum.
#[must_use]
pub fn agreed(membership: &Membership, agrees: impl Fn(NodeId) -> bool) -> bool {
    reached(membership, agrees) == Some(true)
}

fn majority_reached<T: Ord + Copy>(voters: &BTreeSet<NodeId>, value: &impl Fn(NodeId) -> T) -> Option<T> {
    let majority = voters.len() / 2 + usize::from(!is_planted(Bug::HalfIsEnough));
    let at_least = |floor: T| voters.iter().filter(|&&voter| value(voter) >= floor).count();
    voters.iter().map(|&voter| value(voter)).filter(|&candidate| at_least(candidate) >= majority).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ids: &[u64]) -> BTreeSet<NodeId> {
        ids.iter().map(|&id| NodeId(id)).collect()
    }

    #[test]
    fn a_majority_is_more_than_half() {
        for (voters, want) in [(1, 10), (2, 10), (3, 20), (4, 20), (5, 30)] {
            let membership = Membership { voters: (1..=voters).map(NodeId).collect(), ..Membership::default() };
            assert_eq!(reached(&membership, |node| node.0 * 10), Some(want), "{voters} voters");
        }
    }

    #[test]
    fn a_joint_quorum_needs_both_majorities() {
        let joint = Membership { voters: set(&[1, 2, 3]), outgoing: set(&[3, 4, 5]), learners: set(&[]) };
        assert!(!agreed(&joint, |node| node.0 <= 3), "all incoming voters, one outgoing");
        assert!(!agreed(&joint, |node| node.0 >= 3), "all outgoing voters, one incoming");
        assert!(agreed(&joint, |node| (2..=4).contains(&node.0)));
    }

    #[test]
    fn nobody_agrees_to_nothing() {
        assert!(!agreed(&Membership::default(), |_| true));
        assert_eq!(verdict(&Membership::default(), |_| Some(true)), None);
    }

    /// Every way in which three incoming and three outgoing voters, one of them both, can answer or not.
    #[test]
    fn an_election_is_lost_when_no_answer_can_win_it_any_more() {
        let joint = Membership { voters: set(&[1, 2, 3]), outgoing: set(&[3, 4, 5]), learners: set(&[6]) };
        let answers = |code: u32| {
            move |node: NodeId| [None, Some(true), Some(false)][(code / 3u32.pow(node.0 as u32 - 1) % 3) as usize]
        };
        for code in 0..3u32.pow(6) {
            let vote = answers(code);
            let extends = |whole: u32| {
                (1..=6).all(|id| vote(NodeId(id)).is_none() || vote(NodeId(id)) == answers(whole)(NodeId(id)))
            };
            let ends = (0..3u32.pow(6)).filter(|&whole| extends(whole));
            let winnable = ends.clone().any(|whole| agreed(&joint, |node| answers(whole)(node) == Some(true)));
            let won = agreed(&joint, |node| vote(node) == Some(true));
            let want = if won {
                Verdict::Won
            } else if winnable {
                Verdict::Pending
            } else {
                Verdict::Lost
            };
            assert_eq!(verdict(&joint, vote), Some(want), "answers {code}");
        }
    }

    proptest::proptest! {
        /// The rule by counting equals the rule by sorting.
        #[test]
        fn counting_equals_sorting(values in proptest::collection::vec(0u64..9, 1..8)) {
            let membership = Membership { voters: (0..values.len() as u64).map(NodeId).collect(), ..Membership::default() };
            let mut sorted = values.clone();
            sorted.sort_unstable();
            let want = sorted[(sorted.len() - 1) / 2];
            proptest::prop_assert_eq!(reached(&membership, |node| values[node.0 as usize]), Some(want));
        }
    }
}
