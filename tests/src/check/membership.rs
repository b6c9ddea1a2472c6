//! Membership safety: two memberships that can be in force at once never have quorums that do not meet (Raft paper 6; thesis 4.1,
//! 4.3, and the erratum of 2015 on changes one server at a time).
//!
//! Looked at in every log, for every membership entry and the one before it:
//!
//! - each quorum of the one meets each quorum of the other;
//! - when the later one is written, the earlier one is committed: at most one change is under way;
//! - the leader that makes it knows that, and has committed an entry of its own term: a joint membership is left, or another change
//!   begun, only when nothing can take the change before back.

use std::collections::BTreeSet;

use graven::members::{Members, voids_sessions};
use graven_frame::{Frame, Kind};
use graven_raft::{Membership, NodeId};

use super::{Checked, violated};

/// What a leader knows when it makes an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Maker {
    /// Its commit index.
    pub commit: u64,
    /// Whether it has committed an entry of its own term.
    pub established: bool,
}

/// The memberships in each node's log.
#[derive(Debug)]
pub struct Changes {
    logs: Vec<Vec<(u64, Membership)>>,
}

impl Changes {
    /// For nodes 1 to `nodes`.
    #[must_use]
    pub fn new(nodes: u64) -> Changes {
        Changes { logs: vec![Vec::new(); nodes as usize + 1] }
    }

    /// `node` starts with these memberships in its log, by index.
    pub fn restarted(&mut self, node: u64, found: Vec<(u64, Membership)>) {
        self.logs[node as usize] = found;
    }

    /// `node` writes an entry at `index`, in place of whatever it had from there on; it may be a membership. Entries up to
    /// `committed` are committed. `maker` is there when the node itself leads and makes the entry.
    ///
    /// # Errors
    /// The membership must not follow the one before it, or not yet.
    pub fn writing(
        &mut self,
        node: u64,
        index: u64,
        membership: Option<&Membership>,
        committed: u64,
        maker: Option<Maker>,
    ) -> Checked {
        let log = &mut self.logs[node as usize];
        while log.last().is_some_and(|(at, _)| *at >= index) {
            log.pop();
        }
        let Some(next) = membership else { return Ok(()) };
        if let Some((at, before)) = log.last() {
            let fail = |what: &str| {
                let detail = format!("node {node} writes {next:?} at {index} after {before:?} at {at}: {what}");
                violated("membership safety", detail)
            };
            if !meet(before, next) {
                return fail("two quorums do not meet");
            }
            if *at > committed {
                return fail("the one before is not committed");
            }
            if maker.is_some_and(|maker| *at > maker.commit || !maker.established) {
                return fail("its leader does not know that the one before is committed in its term");
            }
        }
        log.push((index, next.clone()));
        Ok(())
    }

    /// The membership in force at `node`, and the one before it: what a leader counted by in a step in which it went from one
    /// to the other.
    #[must_use]
    pub fn in_force(&self, node: u64) -> &[(u64, Membership)] {
        let log = &self.logs[node as usize];
        &log[log.len().saturating_sub(2)..]
    }
}

/// The membership that `frame` puts in force, if it is a membership entry that decodes.
#[must_use]
pub fn membership_in(frame: &Frame) -> Option<Membership> {
    if frame.header().kind != Kind::Membership {
        return None;
    }
    Members::decode(&frame.body().concat()).ok().map(|members| members.membership())
}

/// The memberships in a log, by index: those since its cluster was founded.
#[must_use]
pub fn memberships_in(frames: &[Frame]) -> Vec<(u64, Membership)> {
    let from = frames.iter().rposition(begins_a_cluster).unwrap_or(0);
    frames[from..].iter().filter_map(|frame| Some((frame.header().index, membership_in(frame)?))).collect()
}

/// Whether `frame` makes a survivor the first node of a new cluster.
#[must_use]
pub fn begins_a_cluster(frame: &Frame) -> bool {
    frame.header().kind == Kind::Membership && voids_sessions(&frame.body().concat())
}

/// Whether `nodes` are a quorum: a majority of the voters, and of the outgoing ones while there are any.
#[must_use]
pub fn is_quorum(membership: &Membership, nodes: &BTreeSet<NodeId>) -> bool {
    let majority = |of: &BTreeSet<NodeId>| of.intersection(nodes).count() * 2 > of.len();
    majority(&membership.voters) && (membership.outgoing.is_empty() || majority(&membership.outgoing))
}

/// Whether each quorum of `one` meets each quorum of `other`: tried with every split of all voters in two.
fn meet(one: &Membership, other: &Membership) -> bool {
    let voters = |of: &Membership| of.voters.union(&of.outgoing).copied().collect::<BTreeSet<_>>();
    let all: Vec<NodeId> = voters(one).union(&voters(other)).copied().collect();
    (0_u32..1 << all.len()).all(|split| {
        let side = |inside: bool| {
            let chosen = all.iter().enumerate().filter(move |(at, _)| (split >> at & 1 == 1) == inside);
            chosen.map(|(_, node)| *node).collect::<BTreeSet<_>>()
        };
        !(is_quorum(one, &side(true)) && is_quorum(other, &side(false)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ids: &[u64]) -> BTreeSet<NodeId> {
        ids.iter().map(|id| NodeId(*id)).collect()
    }

    fn membership(voters: &[u64], outgoing: &[u64]) -> Membership {
        Membership { voters: set(voters), outgoing: set(outgoing), learners: BTreeSet::new() }
    }

    const KNOWS: Option<Maker> = Some(Maker { commit: 9, established: true });

    #[test]
    fn memberships_whose_quorums_do_not_meet_are_seen() {
        let (old, joint, new) =
            (membership(&[1, 2, 3], &[]), membership(&[3, 4, 5], &[1, 2, 3]), membership(&[3, 4, 5], &[]));
        assert!(meet(&old, &joint) && meet(&joint, &new) && !meet(&old, &new));
        assert!(meet(&old, &membership(&[1, 2, 3, 4], &[])) && meet(&old, &membership(&[1, 3], &[])));
        assert!(!meet(&membership(&[1, 2, 3, 4], &[]), &membership(&[3, 4, 5], &[])));
        let mut changes = Changes::new(1);
        changes.writing(1, 1, Some(&old), 0, None).expect("the first");
        changes.writing(1, 7, Some(&new), 9, KNOWS).expect_err("not through a joint one");
        changes.writing(1, 7, Some(&joint), 9, KNOWS).expect("through a joint one");
        changes.writing(1, 8, Some(&new), 9, KNOWS).expect("out of it");
    }

    #[test]
    fn a_second_change_before_the_first_is_committed_is_seen() {
        let (old, joint, new) =
            (membership(&[1, 2, 3], &[]), membership(&[2, 3, 4], &[1, 2, 3]), membership(&[2, 3, 4], &[]));
        let mut changes = Changes::new(2);
        for node in [1, 2] {
            changes.writing(node, 1, Some(&old), 0, None).expect("the first");
            changes.writing(node, 7, Some(&joint), 6, None).expect("the joint one");
        }
        changes.writing(1, 8, Some(&new), 6, None).expect_err("7 is not committed anywhere");
        let early = Some(Maker { commit: 6, established: true });
        changes.writing(1, 8, Some(&new), 7, early).expect_err("its leader does not know that it is");
        let earlier_term = Some(Maker { commit: 7, established: false });
        changes.writing(1, 9, Some(&new), 7, earlier_term).expect_err("nothing of its own term is committed");
        changes.writing(1, 8, None, 6, None).expect("an entry of another kind");
        // What a truncation took away does not count any more.
        changes.writing(2, 7, None, 6, None).expect("in its place");
        assert_eq!(changes.in_force(2), [(1, old.clone())]);
        changes.restarted(2, vec![(1, old), (7, joint)]);
        changes.writing(2, 8, Some(&new), 7, KNOWS).expect("7 is committed");
    }
}
