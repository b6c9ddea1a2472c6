//! Memberships as log entries: in force on append, gone on truncation, one at a time.

use std::collections::BTreeSet;

use graven_raft::*;

use crate::harness::*;

fn change(voters: &[u64], outgoing: &[u64], learners: &[u64]) -> EntryMeta {
    let set = |ids: &[u64]| ids.iter().map(|&id| NodeId(id)).collect::<BTreeSet<_>>();
    let membership = Some(Membership { voters: set(voters), outgoing: set(outgoing), learners: set(learners) });
    EntryMeta { kind: EntryKind::Membership, bytes: 100, membership }
}

/// Raft paper 6: a membership is in force as soon as it is appended, and the one before comes back with a truncation.
#[test]
fn a_membership_is_active_on_append_and_rolled_back_on_truncation() {
    let mut core = core_of(3, &[1], hard(2));
    let joint = Entry { id: id(2, 2), meta: change(&[1, 2, 4], &[1, 2, 3], &[]) };
    core.receive_append(Tick(1), n(2), head(2, id(1, 1), 0), vec![joint]);
    assert!(core.membership().is_joint());
    core.receive_append(Tick(2), n(3), head(3, id(1, 1), 0), vec![entry(2, 3)]);
    assert_eq!(*core.membership(), Membership::of_voters([n(1), n(2), n(3)]));
}

/// camunda 60086: C-new must not follow a joint membership that is not committed in this leader's term.
#[test]
fn one_change_at_a_time_and_only_after_the_one_before_is_committed() {
    let mut cluster = Cluster::new(3, 1);
    let (leader, _) = cluster.elect_and_others();
    cluster.propose_meta(leader, change(&[1, 2, 3], &[], &[4])).unwrap();
    let joint = change(&[1, 2, 4], &[1, 2, 3], &[]);
    assert_eq!(cluster.propose_meta(leader, joint.clone()), Err(ProposeError::MembershipPending));
    cluster.run_for(20 * MS);
    cluster.propose_meta(leader, joint).unwrap();
    assert_eq!(cluster.propose_meta(leader, change(&[1, 2, 4], &[], &[])), Err(ProposeError::MembershipPending));
}

#[test]
fn a_joint_membership_commits_only_with_both_majorities() {
    let mut cluster = Cluster::new(3, 2);
    let (leader, others) = cluster.elect_and_others();
    // Nodes 4 and 5 do not exist: the incoming majority cannot be had.
    let joint = change(&[leader, 4, 5], &[1, 2, 3], &[]);
    let id = cluster.propose_meta(leader, joint).unwrap();
    cluster.run_for(100 * MS);
    assert!(cluster.core(leader).commit() < id.index);
    assert!(cluster.core(others[0]).durable_index() >= id.index);
}

/// The whole way from three nodes to two others, the leader leaving itself.
#[test]
fn a_leader_outside_of_the_new_membership_steps_down_after_its_commit() {
    let mut cluster = Cluster::new(3, 3);
    let (leader, others) = cluster.elect_and_others();
    let rest = [others[0], others[1]];
    cluster.propose_meta(leader, change(&rest, &[1, 2, 3], &[])).unwrap();
    cluster.run_for(20 * MS);
    cluster.propose_meta(leader, change(&rest, &[], &[])).unwrap();
    cluster.run_for(20 * MS);
    assert_eq!(cluster.core(leader).role(), Role::Follower);
    cluster.run_for(1_000 * MS);
    let next = cluster.elect();
    assert_ne!(next, leader);
    cluster.propose(next).unwrap();
}

#[test]
fn a_learner_is_fed_and_has_no_say() {
    let mut cluster = Cluster::new(3, 4);
    let (leader, others) = cluster.elect_and_others();
    cluster.add(n(4), Disk::default());
    cluster.propose_meta(leader, change(&[1, 2, 3], &[], &[4])).unwrap();
    cluster.run_for(100 * MS);
    let last = cluster.core(leader).last_id();
    assert_eq!(cluster.core(4).last_id(), last);
    cluster.crash(n(others[0]));
    cluster.crash(n(others[1]));
    cluster.run_for(1_000 * MS);
    assert_eq!(cluster.leader(), None, "a leader and a learner are no quorum");
    assert_eq!(cluster.core(4).role(), Role::Follower);
}
