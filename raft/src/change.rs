//! Membership changes as pure functions: which membership comes of the one in force when nodes join, leave, or change their say.
//!
//! Nothing here touches a log: a leader proposes what these functions return, and `membership` judges it once more before it is
//! appended. Rules, by source:
//!
//! - a change of at most one voter needs no joint membership, because any two majorities meet (thesis 4.1);
//! - a larger one goes through a joint membership, in which majorities of both halves decide, and which is left before the next
//!   change begins (Raft paper 6; thesis 4.3);
//! - a membership without voters decides nothing, and is never made.
//!
//! A voter that becomes a learner inside of a joint membership stands among `learners` and `outgoing` at once: it keeps its say
//! in the old half until the joint membership is left, and only then is a mere learner.

use crate::types::{Membership, NodeId};

/// What is to become of one node. In a list the last word about a node counts; what holds already changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Change {
    /// It has a say from now on, whatever it was before.
    Voter(NodeId),
    /// It receives the log and decides nothing, whatever it was before.
    Learner(NodeId),
    /// It leaves the cluster.
    Remove(NodeId),
}

impl Change {
    /// The node it is about.
    #[must_use]
    pub fn node(self) -> NodeId {
        match self {
            Change::Voter(node) | Change::Learner(node) | Change::Remove(node) => node,
        }
    }
}

/// A membership change was refused; the membership in force stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChangeError {
    /// A change is under way: finish it with [`Membership::leave_joint`], then try again.
    #[error("the membership is joint already: leave it before the next change")]
    Joint,
    /// There is nothing to leave: no change is under way.
    #[error("the membership is not joint: there is nothing to leave")]
    NotJoint,
    /// Nobody could decide anything afterwards: keep at least one voter.
    #[error("no voter would be left: keep at least one")]
    NoVoters,
    /// A membership without voters has no old half: add the first voter with [`Membership::simple`].
    #[error("the membership has no voters yet: add the first one by itself")]
    NoVotersYet,
    /// Majorities before and after need not meet: use [`Membership::enter_joint`], or change one voter at a time.
    #[error("{changed} voters come or go at once: go through a joint membership, or change one at a time")]
    SeveralVoters {
        /// How many.
        changed: usize,
    },
    /// Node ids begin at 1: zero names nobody.
    #[error("node id 0 names nobody: ids begin at 1")]
    NodeZero,
}

impl Membership {
    /// The membership after `changes` by which at most one voter comes or goes (thesis 4.1). Learners come and go freely.
    ///
    /// From an empty membership this makes the first voter of a cluster.
    ///
    /// # Errors
    /// Joint already, several voters at once, no voter left, or a node id of zero.
    pub fn simple(&self, changes: &[Change]) -> Result<Membership, ChangeError> {
        if self.is_joint() {
            return Err(ChangeError::Joint);
        }
        let next = self.with(changes)?;
        let changed = self.voters.symmetric_difference(&next.voters).count();
        if changed > 1 { Err(ChangeError::SeveralVoters { changed }) } else { Ok(next) }
    }

    /// The joint membership that leads to `changes`, any number of them (Raft paper 6; thesis 4.3). None at all is allowed.
    ///
    /// # Errors
    /// Joint already, no voters before or after, or a node id of zero.
    pub fn enter_joint(&self, changes: &[Change]) -> Result<Membership, ChangeError> {
        if self.is_joint() {
            return Err(ChangeError::Joint);
        }
        if self.voters.is_empty() {
            return Err(ChangeError::NoVotersYet);
        }
        let mut next = self.with(changes)?;
        next.outgoing.clone_from(&self.voters);
        Ok(next)
    }

    /// The plain membership after a joint one: the old half has no say any more.
    ///
    /// # Errors
    /// Not joint.
    pub fn leave_joint(&self) -> Result<Membership, ChangeError> {
        if !self.is_joint() {
            return Err(ChangeError::NotJoint);
        }
        Ok(Membership { outgoing: std::collections::BTreeSet::new(), ..self.clone() })
    }

    fn with(&self, changes: &[Change]) -> Result<Membership, ChangeError> {
        let mut next = self.clone();
        for &change in changes {
            if change.node() == NodeId(0) {
                return Err(ChangeError::NodeZero);
            }
            next.voters.remove(&change.node());
            next.learners.remove(&change.node());
            match change {
                Change::Voter(node) => next.voters.insert(node),
                Change::Learner(node) => next.learners.insert(node),
                Change::Remove(_) => true,
            };
        }
        if next.voters.is_empty() { Err(ChangeError::NoVoters) } else { Ok(next) }
    }
}

#[cfg(test)]
mod tests {
    use super::Change::{Learner, Remove, Voter};
    use super::*;
    use crate::{membership, quorum};

    const N1: NodeId = NodeId(1);
    const N2: NodeId = NodeId(2);
    const N3: NodeId = NodeId(3);
    const N4: NodeId = NodeId(4);

    fn of(voters: &[NodeId], learners: &[NodeId]) -> Membership {
        let voters = Membership::of_voters(voters.iter().copied());
        Membership { learners: learners.iter().copied().collect(), ..voters }
    }

    #[test]
    fn one_voter_at_a_time_and_learners_freely() {
        let three = of(&[N1, N2, N3], &[]);
        assert_eq!(three.simple(&[Voter(N4)]), Ok(of(&[N1, N2, N3, N4], &[])));
        assert_eq!(three.simple(&[Remove(N3), Learner(N4)]), Ok(of(&[N1, N2], &[N4])));
        assert_eq!(three.simple(&[Learner(N3)]), Ok(of(&[N1, N2], &[N3])), "a voter becomes a learner");
        assert_eq!(of(&[N1], &[N2, N3]).simple(&[Remove(N2), Remove(N3)]), Ok(of(&[N1], &[])));
        assert_eq!(three.simple(&[Remove(N3), Voter(N4)]), Err(ChangeError::SeveralVoters { changed: 2 }));
        assert_eq!(three.simple(&[Remove(N2), Remove(N3)]), Err(ChangeError::SeveralVoters { changed: 2 }));
    }

    #[test]
    fn the_last_word_about_a_node_counts_and_repetition_changes_nothing() {
        let three = of(&[N1, N2, N3], &[]);
        assert_eq!(three.simple(&[Learner(N1), Voter(N1)]), Ok(three.clone()));
        assert_eq!(three.simple(&[Remove(N4), Voter(N1), Voter(N1)]), Ok(three.clone()));
        assert_eq!(three.simple(&[Voter(N4), Learner(N4), Remove(N4)]), Ok(three.clone()));
        assert_eq!(three.simple(&[]), Ok(three));
    }

    #[test]
    fn a_cluster_begins_with_one_voter() {
        let nobody = Membership::default();
        assert_eq!(nobody.simple(&[Voter(N1)]), Ok(of(&[N1], &[])));
        assert_eq!(nobody.simple(&[Learner(N1)]), Err(ChangeError::NoVoters));
        assert_eq!(nobody.simple(&[Voter(N1), Voter(N2)]), Err(ChangeError::SeveralVoters { changed: 2 }));
        assert_eq!(nobody.enter_joint(&[Voter(N1)]), Err(ChangeError::NoVotersYet));
    }

    #[test]
    fn a_membership_keeps_a_voter_and_ids_begin_at_one() {
        let one = of(&[N1], &[N2]);
        for changes in [[Remove(N1)], [Learner(N1)]] {
            assert_eq!(one.simple(&changes), Err(ChangeError::NoVoters));
            assert_eq!(one.enter_joint(&changes), Err(ChangeError::NoVoters));
        }
        assert_eq!(one.simple(&[Voter(NodeId(0))]), Err(ChangeError::NodeZero));
        assert_eq!(one.enter_joint(&[Remove(NodeId(0))]), Err(ChangeError::NodeZero));
    }

    #[test]
    fn a_joint_membership_is_entered_once_and_left_once() {
        let one = of(&[N1], &[]);
        let joint = one.enter_joint(&[Voter(N2), Voter(N3), Learner(N1), Learner(N4)]).unwrap();
        assert_eq!((&joint.outgoing, joint.is_voter(N1)), (&one.voters, true), "the old half keeps its say");
        assert_eq!(joint.learners, of(&[], &[N1, N4]).learners);
        assert_eq!(joint.enter_joint(&[]), Err(ChangeError::Joint));
        assert_eq!(joint.simple(&[Learner(NodeId(9))]), Err(ChangeError::Joint));
        let plain = joint.leave_joint().unwrap();
        assert_eq!(plain, of(&[N2, N3], &[N1, N4]));
        assert_eq!(plain.leave_joint(), Err(ChangeError::NotJoint));
    }

    /// All memberships that `from` may turn into by one step.
    fn steps(from: &Membership, lists: &[Vec<Change>]) -> Vec<Membership> {
        let mut all: Vec<Membership> =
            lists.iter().flat_map(|list| [from.simple(list), from.enter_joint(list)]).filter_map(Result::ok).collect();
        all.extend(from.leave_joint());
        all.sort_by_key(|to| format!("{to:?}"));
        all.dedup();
        all
    }

    /// Sets of `nodes` (bit n is node n + 1) that decide by themselves.
    fn quorums(membership: &Membership, nodes: u64) -> Vec<u64> {
        (0..1 << nodes).filter(|set| quorum::agreed(membership, |node| set >> (node.0 - 1) & 1 == 1)).collect()
    }

    fn check_step(from: &Membership, to: &Membership, nodes: u64) {
        assert!(!to.voters.is_empty(), "{from:?} to {to:?}: no voters");
        assert!(to.voters.is_disjoint(&to.learners), "{from:?} to {to:?}: voter and learner at once");
        assert!(to.outgoing.is_empty() || to.outgoing == from.voters, "{from:?} to {to:?}: a wrong old half");
        assert_eq!(membership::judge(from, to), Ok(()), "{from:?} to {to:?}: a leader would not append it");
        let after = quorums(to, nodes);
        for before in quorums(from, nodes) {
            let apart = after.iter().find(|&&set| set & before == 0);
            assert_eq!(apart, None, "{from:?} to {to:?}: {before:b} decides before, and the other after");
        }
    }

    /// Every membership of four nodes, every list of at most two changes, every joint membership that comes of it.
    #[test]
    fn quorums_of_consecutive_memberships_meet() {
        let nodes = [N1, N2, N3, N4];
        let changes: Vec<Change> = nodes.iter().flat_map(|&node| [Voter(node), Learner(node), Remove(node)]).collect();
        let mut lists: Vec<Vec<Change>> = vec![Vec::new()];
        lists.extend(changes.iter().map(|&change| vec![change]));
        lists.extend(changes.iter().flat_map(|&a| changes.iter().map(move |&b| vec![a, b])));
        let mut seen = 0;
        for code in 0..3usize.pow(4) {
            let says = nodes.iter().enumerate().map(|(at, &node)| (node, code / 3usize.pow(at as u32) % 3));
            let pick = |what| says.clone().filter(move |say| say.1 == what).map(|say| say.0);
            let plain = Membership { learners: pick(2).collect(), ..Membership::of_voters(pick(1)) };
            for next in steps(&plain, &lists) {
                check_step(&plain, &next, 4);
                seen += 1;
                if next.is_joint() {
                    steps(&next, &lists).iter().for_each(|last| check_step(&next, last, 4));
                }
            }
        }
        assert!(seen > 1_000, "{seen} steps looked at");
    }

    proptest::proptest! {
        /// Whatever is asked in whatever order, each step that is allowed keeps the rules.
        #[test]
        fn any_sequence_of_allowed_changes_keeps_the_rules(
            steps in proptest::collection::vec((0u8..3, proptest::collection::vec((0u8..3, 1u64..7), 0..6)), 1..12),
        ) {
            let mut now = of(&[N1], &[]);
            for (kind, changes) in steps {
                let changes: Vec<Change> = changes.into_iter().map(|(what, id)| match what {
                    0 => Voter(NodeId(id)),
                    1 => Learner(NodeId(id)),
                    _ => Remove(NodeId(id)),
                }).collect();
                let next = match kind {
                    0 => now.simple(&changes),
                    1 => now.enter_joint(&changes),
                    _ => now.leave_joint(),
                };
                if let Ok(next) = next {
                    check_step(&now, &next, 6);
                    now = next;
                }
            }
        }
    }
}
