//! Handing leadership over.

use graven_raft::*;

use crate::harness::*;

#[test]
fn leadership_moves_to_the_named_node_within_a_few_hops() {
    let mut cluster = Cluster::new(3, 1);
    let (leader, others) = cluster.elect_and_others();
    cluster.input(n(leader), |core, now| core.transfer(now, n(others[1]))).unwrap().unwrap();
    cluster.run_for(10 * MS);
    assert_eq!(cluster.leader(), Some(others[1]));
    cluster.run_for(10 * MS);
    assert!(cluster.told(leader).contains(&Output::TransferDone { to: n(others[1]), ok: true }));
}

/// Thesis 3.10: the target stands only when it holds everything, durably.
#[test]
fn the_target_is_caught_up_before_it_is_told_to_stand() {
    let mut cluster = Cluster::new(3, 2);
    let (leader, others) = cluster.elect_and_others();
    cluster.set_sync(others[0], 40 * MS);
    let last = cluster.propose(leader).unwrap();
    cluster.input(n(leader), |core, now| core.transfer(now, n(others[0]))).unwrap().unwrap();
    cluster.run_for(30 * MS);
    assert_eq!(cluster.leader(), Some(leader), "its write is still under way");
    assert_eq!(cluster.propose(leader), Err(ProposeError::Transferring { to: n(others[0]) }));
    cluster.run_for(300 * MS);
    assert_eq!(cluster.leader(), Some(others[0]));
    assert_eq!(cluster.core(others[0]).term_at(last.index), Some(last.term));
}

/// hashicorp/raft 493: a flag that stays set refuses proposals for ever.
#[test]
fn one_deadline_ends_a_transfer_that_comes_to_nothing() {
    let mut cluster = Cluster::new(3, 3);
    let (leader, others) = cluster.elect_and_others();
    cluster.crash(n(others[0]));
    cluster.propose(leader).unwrap();
    cluster.input(n(leader), |core, now| core.transfer(now, n(others[0]))).unwrap().unwrap();
    cluster.run_for(149 * MS);
    assert!(cluster.propose(leader).is_err());
    cluster.run_for(2 * MS);
    assert!(cluster.propose(leader).is_ok());
    assert!(cluster.told(leader).contains(&Output::TransferDone { to: n(others[0]), ok: false }));
}

/// openraft 1806: an order that was overtaken is ignored.
#[test]
fn a_target_that_is_not_at_the_leaders_end_does_not_stand() {
    let mut core = core_of(3, &[1, 1], hard(1));
    for last in [id(3, 1), id(1, 1), id(2, 0)] {
        core.receive(Tick(1), n(2), Message::TimeoutNow { term: Term(1), last });
        assert_eq!((core.role(), core.term()), (Role::Follower, Term(1)));
    }
    core.receive_append(Tick(2), n(2), head(1, id(2, 1), 0), vec![entry(3, 1)]);
    core.receive(Tick(3), n(2), Message::TimeoutNow { term: Term(1), last: id(3, 1) });
    assert_eq!(core.role(), Role::Follower, "not durable yet");
    core.durable(Tick(4), Term(1), Index(3));
    core.receive(Tick(4), n(2), Message::TimeoutNow { term: Term(1), last: id(3, 1) });
    assert_eq!((core.role(), core.term()), (Role::Candidate, Term(2)));
}

#[test]
fn transfers_are_refused_where_they_make_no_sense() {
    let mut core = core_of(3, &[1], hard(1));
    assert_eq!(core.transfer(Tick(1), n(2)), Err(TransferError::NotLeader { leader: None }));
    lead(&mut core, Tick(400 * MS));
    let now = Tick(400 * MS);
    assert_eq!(core.transfer(now, n(1)), Err(TransferError::NotAVoter { to: n(1) }));
    assert_eq!(core.transfer(now, n(9)), Err(TransferError::NotAVoter { to: n(9) }));
    assert_eq!(core.transfer(now, n(2)), Ok(()));
    assert_eq!(core.transfer(now, n(3)), Err(TransferError::Transferring { to: n(2) }));
}
