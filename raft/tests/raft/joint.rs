//! Membership changes on whole clusters: thesis chapter 4, and Raft paper 6.

use std::collections::BTreeSet;

use graven_raft::*;

use crate::harness::*;

fn set(ids: &[u64]) -> BTreeSet<NodeId> {
    ids.iter().map(|&id| NodeId(id)).collect()
}

fn change(voters: &[u64], outgoing: &[u64], learners: &[u64]) -> EntryMeta {
    let membership = Some(Membership { voters: set(voters), outgoing: set(outgoing), learners: set(learners) });
    EntryMeta { kind: EntryKind::Membership, bytes: 100, membership }
}

/// Two nodes that belong to nobody yet join three others as learners.
fn with_learners(seed: u64) -> (Cluster, u64, Vec<u64>) {
    let mut cluster = Cluster::new(3, seed);
    let (leader, others) = cluster.elect_and_others();
    cluster.add(n(4), Disk::default());
    cluster.add(n(5), Disk::default());
    cluster.propose_meta(leader, change(&[1, 2, 3], &[], &[4, 5])).unwrap();
    cluster.run_for(200 * MS);
    (cluster, leader, others)
}

/// Thesis 4.2.1: a new server catches up before it has a say, and nothing waits for it meanwhile.
#[test]
fn new_servers_catch_up_without_a_say_and_delay_nobody() {
    let mut cluster = Cluster::new(3, 1);
    let (leader, _) = cluster.elect_and_others();
    for _ in 0..200 {
        cluster.propose(leader).unwrap();
    }
    cluster.run_for(100 * MS);
    cluster.add(n(4), Disk::default());
    // Its disk takes three seconds for anything.
    cluster.set_sync(4, 3_000 * MS);
    cluster.propose_meta(leader, change(&[1, 2, 3], &[], &[4])).unwrap();
    cluster.run_for(10 * MS);
    let last = cluster.propose(leader).unwrap();
    cluster.run_for(10 * MS);
    assert_eq!(cluster.core(leader).commit(), last.index, "a learner counts for nothing");
    assert_eq!(cluster.core(4).durable_index(), Index(0));
    cluster.set_sync(4, 500);
    let caught_up = |cluster: &Cluster| {
        cluster.core(leader).progress().any(|follower| follower.node == n(4) && follower.matched == last.index)
    };
    assert!(cluster.run_while(2_000 * MS, caught_up));
    assert_eq!((cluster.core(4).role(), cluster.core(4).term()), (Role::Follower, cluster.core(leader).term()));
}

/// Thesis 4.2.2: a server that its own newest membership leaves out may be the only one that can win, as long as that entry is
/// not committed.
#[test]
fn a_leader_that_alone_holds_the_entry_that_removes_it_can_be_elected_to_commit_it() {
    let mut cluster = Cluster::new(3, 21);
    let (leader, others) = cluster.elect_and_others();
    // Only one of the two that stay is there to hear of it.
    cluster.crash(n(others[1]));
    cluster.isolate(leader);
    cluster.propose_meta(leader, change(&others, &[], &[])).unwrap();
    cluster.run_for(5 * MS);
    cluster.crash(n(leader));
    cluster.heal();
    cluster.start(n(leader), Index(1));
    // The other one has a shorter log; the removed one is in no majority of its own. Only it can win.
    let stands = |cluster: &Cluster| {
        cluster.core(leader).role() == Role::Candidate || cluster.core(leader).role() == Role::PreCandidate
    };
    assert!(cluster.run_while(2_000 * MS, stands));
    cluster.start(n(others[1]), Index(1));
    let is_over = |cluster: &Cluster| {
        others
            .iter()
            .all(|&node| cluster.core(node).commit() >= Index(3) && cluster.core(node).membership().voters.len() == 2)
    };
    assert!(cluster.run_while(5_000 * MS, is_over));
    assert!(!cluster.core(others[0]).membership().is_voter(n(leader)));
}

/// Thesis 4.2.1: what learners hold commits nothing, however many there are.
#[test]
fn learners_count_for_no_commit() {
    let (mut cluster, leader, others) = with_learners(9);
    for &node in &others {
        cluster.set_sync(node, 100 * MS);
    }
    let last = cluster.propose(leader).unwrap();
    cluster.run_for(50 * MS);
    let stored = cluster.core(leader).progress().filter(|follower| follower.matched >= last.index).count();
    assert_eq!(stored, 2, "both learners have it");
    assert!(cluster.core(leader).commit() < last.index);
    cluster.run_for(60 * MS);
    assert_eq!(cluster.core(leader).commit(), last.index);
}

/// Thesis 4.3: in the joint membership a majority of the outgoing voters is needed as well.
#[test]
fn a_joint_membership_commits_nothing_without_the_old_majority() {
    let (mut cluster, leader, others) = with_learners(2);
    cluster.crash(n(others[0]));
    cluster.crash(n(others[1]));
    let joint = cluster.propose_meta(leader, change(&[leader, 4, 5], &[1, 2, 3], &[])).unwrap();
    cluster.run_for(50 * MS);
    let stored = cluster.core(leader).progress().filter(|follower| follower.matched >= joint.index).count();
    assert_eq!(stored, 2, "all three new voters have it");
    assert!(cluster.core(leader).commit() < joint.index, "one of the old ones is no majority of them");
    cluster.run_for(500 * MS);
    assert_eq!(cluster.leader(), None, "and it may not lead on without them");
}

/// Thesis 4.3: elections in the joint membership need both majorities.
#[test]
fn a_joint_membership_elects_nobody_without_either_majority() {
    for (gone, seed) in [([2, 3], 3), ([4, 5], 4)] {
        let (mut cluster, leader, _) = with_learners(seed);
        // Node 1 is in both halves.
        if leader != 1 {
            cluster.input(n(leader), |core, now| core.transfer(now, n(1))).unwrap().unwrap();
            cluster.run_for(100 * MS);
        }
        let joint = cluster.propose_meta(1, change(&[1, 4, 5], &[1, 2, 3], &[])).unwrap();
        cluster.run_for(50 * MS);
        assert!(cluster.core(1).commit() >= joint.index);
        let terms = cluster.leaders.len();
        for node in gone {
            cluster.crash(n(node));
        }
        cluster.run_for(3_000 * MS);
        assert_eq!((cluster.leader(), cluster.leaders.len()), (None, terms), "without {gone:?}");
        cluster.start(n(gone[0]), Index(0));
        cluster.elect();
    }
}

/// Raft paper 6: plain, joint, plain: three nodes become two of them and two others, and what is proposed meanwhile is kept.
#[test]
fn a_cluster_goes_through_a_joint_membership_to_the_new_one() {
    let (mut cluster, leader, others) = with_learners(5);
    let new = [leader, others[0], 4, 5];
    cluster.propose_meta(leader, change(&new, &[1, 2, 3], &[])).unwrap();
    cluster.propose(leader).unwrap();
    cluster.run_for(20 * MS);
    assert!(cluster.core(4).membership().is_joint(), "in force at the newcomers too");
    cluster.propose_meta(leader, change(&new, &[], &[])).unwrap();
    let last = cluster.propose(leader).unwrap();
    cluster.run_for(20 * MS);
    assert_eq!(*cluster.core(leader).membership(), Membership::of_voters(new.map(NodeId)));
    for node in new {
        assert!(cluster.core(node).commit() >= last.index, "node {node}");
    }
    // The new majority alone decides from here on.
    cluster.crash(n(others[1]));
    cluster.crash(n(4));
    let last = cluster.propose(leader).unwrap();
    cluster.run_for(20 * MS);
    assert_eq!(cluster.core(leader).commit(), last.index, "three of the four");
}

/// Thesis 4.2.2: a leader that is not in C-new counts replicas but not itself, and leads until C-new is committed.
#[test]
fn a_leader_outside_of_c_new_counts_the_others_only() {
    let (mut cluster, leader, others) = with_learners(6);
    let rest = [others[0], others[1], 4];
    cluster.propose_meta(leader, change(&rest, &[1, 2, 3], &[])).unwrap();
    cluster.run_for(20 * MS);
    // Of the three new voters two are slow: the leader's own copy and one other are no majority of C-new.
    cluster.set_sync(others[0], 200 * MS);
    cluster.set_sync(others[1], 200 * MS);
    let last = cluster.propose_meta(leader, change(&rest, &[], &[])).unwrap();
    cluster.run_for(100 * MS);
    assert!(cluster.core(leader).durable_index() >= last.index);
    let stored = cluster.core(leader).progress().filter(|follower| follower.matched >= last.index).count();
    assert_eq!((stored, cluster.core(leader).role()), (1, Role::Leader));
    assert!(cluster.core(leader).commit() < last.index, "it and node 4 would be two of three, were it counted");
    cluster.run_for(150 * MS);
    assert_eq!(cluster.core(leader).commit(), last.index);
    assert_eq!(cluster.core(leader).role(), Role::Follower, "its leadership ends with the commit");
}

/// Thesis 4.2.3: who was removed, does not know it, and hears nobody, stands for election again and again and disturbs nobody.
#[test]
fn a_removed_server_does_not_disturb_those_who_hear_their_leader() {
    for seed in 0..10 {
        let mut cluster = Cluster::new(3, seed);
        let (leader, others) = cluster.elect_and_others();
        let (stays, removed) = (others[0], others[1]);
        // It never gets the entry that removes it.
        cluster.isolate(removed);
        cluster.propose_meta(leader, change(&[leader, stays], &[], &[])).unwrap();
        cluster.run_for(20 * MS);
        assert!(cluster.core(leader).progress().all(|follower| follower.node != n(removed)));
        let term = cluster.core(leader).term();
        cluster.heal();
        cluster.run_for(3_000 * MS);
        assert!(cluster.core(removed).membership().is_voter(n(removed)), "it does not know");
        assert_eq!((cluster.leader(), cluster.core(leader).term()), (Some(leader), term), "seed {seed}");
        assert_eq!(cluster.leaders.len(), 1, "seed {seed}");
        let last = cluster.propose(leader).unwrap();
        cluster.run_for(20 * MS);
        assert_eq!(cluster.core(leader).commit(), last.index, "seed {seed}");
    }
}

/// Even one that skips the pre-vote and raises its term is not listened to while a leader is heard (thesis 4.2.3, last part).
#[test]
fn a_vote_request_of_a_removed_server_raises_no_term() {
    let mut cluster = Cluster::new(3, 7);
    let (leader, others) = cluster.elect_and_others();
    cluster.propose_meta(leader, change(&[leader, others[0]], &[], &[])).unwrap();
    cluster.run_for(20 * MS);
    let term = cluster.core(leader).term();
    for node in [leader, others[0]] {
        cluster.input(n(node), |core, now| {
            let last = LogId { term: Term(99), index: Index(99) };
            core.receive(now, n(others[1]), Message::Vote { term: Term(100), last, transfer: false });
        });
    }
    cluster.run_for(500 * MS);
    assert_eq!((cluster.leader(), cluster.core(leader).term()), (Some(leader), term));
}

/// C-new is refused until the joint entry is committed in this leader's own term: one that inherited the joint entry waits for its
/// no-op, which commits it.
#[test]
fn c_new_waits_until_the_joint_entry_is_committed_in_this_leaders_term() {
    let mut core = core_of(3, &[1], hard(2));
    let joint = Entry { id: id(2, 2), meta: change(&[1, 2, 4], &[1, 2, 3], &[]) };
    core.receive_append(Tick(1), n(2), head(2, id(1, 1), 2), vec![joint]);
    assert_eq!((core.commit(), core.membership().is_joint()), (Index(2), true), "committed, in an earlier term");
    let outputs = drain(&mut core);
    sync(&mut core, Tick(2), &outputs);
    let now = Tick(400 * MS);
    lead(&mut core, now);
    assert_eq!(core.propose(now, change(&[1, 2, 4], &[], &[])), Err(ProposeError::MembershipPending));
    let outputs = drain(&mut core);
    sync(&mut core, now, &outputs);
    assert!(!core.is_established(), "its no-op is on one node");
    assert_eq!(core.propose(now, change(&[1, 2, 4], &[], &[])), Err(ProposeError::MembershipPending));
    let (matched, last) = (Index(3), Index(3));
    let reply = Message::AppendReply { term: Term(3), request: 1, epoch: 1, success: true, matched, last, hint: None };
    core.receive(now, n(2), reply);
    assert!(core.is_established());
    assert!(core.propose(now, change(&[1, 2, 4], &[], &[])).is_ok());
}

/// Thesis 4.1, 4.3: of plain memberships the next differs by one voter at most; a joint one is left only for its own voters.
#[test]
fn memberships_follow_each_other_by_the_rules() {
    let mut cluster = Cluster::new(3, 8);
    let (leader, others) = cluster.elect_and_others();
    let refused = |found: Result<LogId, ProposeError>| matches!(found, Err(ProposeError::MembershipUnsafe { .. }));
    assert!(refused(cluster.propose_meta(leader, change(&[1, 2, 3, 4, 5], &[], &[]))), "two come");
    assert!(refused(cluster.propose_meta(leader, change(&[leader, others[0], 4], &[], &[]))), "one comes, one goes");
    assert!(refused(cluster.propose_meta(leader, change(&[], &[], &[1, 2, 3]))), "nobody is left");
    assert!(refused(cluster.propose_meta(leader, change(&[1, 2, 4], &[1, 2], &[]))), "not those in force");
    assert!(cluster.propose_meta(leader, change(&[1, 2, 3, 4], &[1, 2, 3], &[])).is_ok());
    cluster.run_for(20 * MS);
    assert!(
        refused(cluster.propose_meta(leader, change(&[1, 2, 3], &[], &[]))),
        "a joint membership is not taken back"
    );
    assert!(refused(cluster.propose_meta(leader, change(&[1, 2, 3, 5], &[1, 2, 3, 4], &[]))), "nor replaced");
    assert!(cluster.propose_meta(leader, change(&[1, 2, 3, 4], &[], &[])).is_ok());
    cluster.run_for(20 * MS);
    assert!(cluster.propose_meta(leader, change(&[1, 2, 3], &[], &[])).is_ok(), "one goes");
}

/// Raft paper 6: what a truncation takes out of the log is out of force, through several memberships.
#[test]
fn memberships_come_back_one_by_one_as_entries_are_truncated() {
    let mut core = core_of(3, &[1], hard(2));
    let joint = Entry { id: id(2, 2), meta: change(&[1, 2, 4], &[1, 2, 3], &[]) };
    let new = Entry { id: id(3, 2), meta: change(&[1, 2, 4], &[], &[]) };
    core.receive_append(Tick(1), n(2), head(2, id(1, 1), 0), vec![joint, new]);
    assert_eq!(*core.membership(), Membership::of_voters([n(1), n(2), n(4)]));
    core.receive_append(Tick(2), n(3), head(3, id(2, 2), 0), vec![entry(3, 3)]);
    assert!(core.membership().is_joint());
    core.receive_append(Tick(3), n(2), head(4, id(1, 1), 0), vec![entry(2, 4)]);
    assert_eq!(*core.membership(), Membership::of_voters([n(1), n(2), n(3)]));
    assert_eq!(core.memberships().len(), 1);
}
