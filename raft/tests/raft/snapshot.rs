//! Logs that no longer begin at the beginning: trims, and installs with their four cases.

use graven_raft::*;

use crate::harness::*;

fn voters() -> Vec<(Index, Membership)> {
    vec![(Index(1), Membership::of_voters([n(1), n(2), n(3)]))]
}

#[test]
fn a_follower_below_the_first_entry_needs_an_install_and_then_goes_on() {
    let mut cluster = Cluster::new(3, 1);
    let (leader, others) = cluster.elect_and_others();
    cluster.crash(n(others[0]));
    for _ in 0..10 {
        cluster.propose(leader).unwrap();
    }
    cluster.run_for(100 * MS);
    let base = cluster.core(leader).last_id();
    cluster.input(n(leader), |core, now| core.trimmed(now, base.index));
    assert_eq!(cluster.core(leader).base(), base);
    cluster.propose(leader).unwrap();
    cluster.start(n(others[0]), Index(0));
    let asked = Output::SnapshotNeeded { to: n(others[0]) };
    assert!(cluster.run_while(2_000 * MS, |cluster| cluster.nodes[&n(leader)].told.contains(&asked)));
    // It is offered until it is answered, and wanted as long as it is not held.
    cluster.input(n(leader), |core, now| assert!(core.offer_install(now, n(others[0]), base)));
    let offered = Output::InstallOffered { from: n(leader), base };
    assert!(cluster.run_while(2_000 * MS, |cluster| cluster.nodes[&n(others[0])].told.contains(&offered)));
    // The driver installs it: the files first, then the core is told.
    let state = cluster.nodes.get_mut(&n(others[0])).unwrap();
    state.view.clear();
    state.disk.base = base;
    state.disk.base_membership = voters().pop();
    state.disk.entries.clear();
    cluster.input(n(others[0]), |core, now| core.installed(now, base, voters()));
    cluster.input(n(others[0]), |core, now| core.answer_install(now, n(leader), base, true));
    cluster.run_for(200 * MS);
    cluster.input(n(leader), |core, now| assert!(!core.offer_install(now, n(others[0]), base), "answered"));
    assert_eq!(cluster.core(others[0]).last_id(), cluster.core(leader).last_id());
    assert_eq!(cluster.core(others[0]).commit(), cluster.core(leader).commit());
}

/// openraft 753, hashicorp/raft 697: one function, four cases.
#[test]
fn an_install_keeps_what_agrees_and_drops_what_does_not() {
    let behind = |core: &mut Core| core.installed(Tick(1), id(9, 2), voters());
    let mut core = core_of(3, &[1, 1, 2], hard(3));
    behind(&mut core);
    assert_eq!((core.last_id(), core.commit(), core.durable_index()), (id(9, 2), Index(9), Index(9)));
    assert!(drain(&mut core).contains(&Output::Truncated { from: Index(1) }));

    let mut matches = core_of(3, &[1, 1, 2, 2], hard(3));
    matches.installed(Tick(1), id(3, 2), voters());
    assert_eq!((matches.base(), matches.last_id(), matches.commit()), (id(3, 2), id(4, 2), Index(3)));

    let mut differs = core_of(3, &[1, 1, 1, 1], hard(3));
    differs.installed(Tick(1), id(3, 2), voters());
    assert_eq!((differs.last_id(), differs.commit()), (id(3, 2), Index(3)));

    let mut older = core_of(3, &[1, 1, 2, 2], hard(3));
    older.installed(Tick(1), id(3, 2), voters());
    let _ = drain(&mut older);
    older.installed(Tick(2), id(2, 1), voters());
    assert_eq!((older.base(), drain(&mut older).len()), (id(3, 2), 0));
}

/// openraft 1808: a later membership that the log provably holds outlives the install.
#[test]
fn a_later_membership_in_the_log_stays_in_force_through_an_install() {
    let mut core = core_of(3, &[1, 1], hard(2));
    let later = Membership::of_voters([n(1), n(2)]);
    let meta = EntryMeta { kind: EntryKind::Membership, bytes: 9, membership: Some(later.clone()) };
    core.receive_append(Tick(1), n(2), head(2, id(2, 1), 0), vec![Entry { id: id(3, 2), meta }]);
    core.installed(Tick(2), id(2, 1), voters());
    assert_eq!(*core.membership(), later);
}

#[test]
fn appends_from_before_the_first_entry_are_taken_from_there_on() {
    let mut core = core_of(3, &[1, 1, 2], hard(3));
    core.installed(Tick(1), id(3, 2), voters());
    let _ = drain(&mut core);
    core.receive_append(Tick(2), n(2), head(3, id(1, 1), 3), vec![entry(2, 1), entry(3, 2), entry(4, 3)]);
    assert_eq!(core.last_id(), id(4, 3));
    let write = Write { hard_state: None, entries: Some(Index(4)..=Index(4)), term: Term(3), last: Index(4) };
    assert!(drain(&mut core).contains(&Output::Persist(write)));
}

#[test]
fn a_node_that_abstains_neither_votes_nor_stands_and_does_both_afterwards() {
    let mut core = core_of(3, &[1, 1], hard(1));
    core.abstain(Tick(1), true);
    core.tick(Tick(10_000_000));
    assert_eq!((core.role(), drain(&mut core).len()), (Role::Follower, 0));
    let campaign = |core: &mut Core, term: u64| {
        let last = id(2, 1);
        core.receive(Tick(10_000_001), n(2), Message::PreVote { term: Term(term - 1), campaign: Term(term), last });
        core.receive(Tick(10_000_001), n(2), Message::Vote { term: Term(term), last, transfer: false });
        let granted = drain(core).into_iter().filter(|output| {
            matches!(
                output,
                Output::Send { message: Message::PreVoteReply { granted: true, .. }, .. }
                    | Output::SendAfterPersist { message: Message::VoteReply { granted: true, .. }, .. }
            )
        });
        granted.count()
    };
    assert_eq!(campaign(&mut core, 5), 0);
    core.abstain(Tick(10_000_002), false);
    assert_eq!(campaign(&mut core, 6), 2);
}

/// Clients ask any node where the leader is.
#[test]
fn a_node_that_cannot_stand_forgets_a_leader_that_it_does_not_hear() {
    let mut core = core_of(3, &[1, 1], hard(1));
    core.abstain(Tick(1), true);
    core.receive(Tick(1), n(2), Message::Heartbeat { term: Term(1), commit: Index(0), round: 1 });
    assert_eq!(core.leader(), Some(n(2)));
    let _ = drain(&mut core);
    let due = core.next_deadline().expect("the end of its patience");
    core.tick(due);
    let told = Output::Role { role: Role::Follower, term: Term(1), leader: None };
    assert_eq!((core.leader(), drain(&mut core)), (None, vec![told]));
    // Nothing is waited for any more.
    assert!(core.next_deadline().is_none_or(|next| next > due));
}

/// An offer that the follower needs not: it answers at once, and its leader goes on with entries.
#[test]
fn an_offer_of_what_is_held_is_answered_without_a_fetch() {
    let mut core = core_of(3, &[1, 1, 2], hard(3));
    core.receive(Tick(1), n(2), Message::Install { term: Term(3), base: id(2, 1) });
    let reply = Message::InstallReply { term: Term(3), base: id(2, 1), ok: true };
    assert!(drain(&mut core).contains(&Output::Send { to: n(2), message: reply }));
    core.receive(Tick(1), n(2), Message::Install { term: Term(3), base: id(9, 2) });
    assert!(drain(&mut core).contains(&Output::InstallOffered { from: n(2), base: id(9, 2) }));
}
