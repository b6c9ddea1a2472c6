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
    // The driver installs it: the files first, then the core is told.
    let state = cluster.nodes.get_mut(&n(others[0])).unwrap();
    state.view.clear();
    state.disk.base = base;
    state.disk.base_membership = voters().pop();
    state.disk.entries.clear();
    cluster.input(n(others[0]), |core, now| core.installed(now, base, voters()));
    cluster.input(n(leader), |core, now| core.snapshot_done(now, n(others[0]), true));
    cluster.run_for(200 * MS);
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
