//! One test for each claim of the Raft paper that a single scenario can show (section numbers in each).

use graven_raft::*;

use crate::harness::*;

fn disk(voters: u64, terms: &[u64], term: u64) -> Disk {
    let meta = |at: usize| match at {
        0 => EntryMeta {
            kind: EntryKind::Membership,
            bytes: 100,
            membership: Some(Membership::of_voters((1..=voters).map(NodeId))),
        },
        _ => records(),
    };
    let entries = terms.iter().enumerate().map(|(at, &term)| Entry { id: id(at as u64 + 1, term), meta: meta(at) });
    Disk { hard: hard(term), entries: entries.collect(), ..Disk::default() }
}

/// 5.2: a server votes once a term, so two candidates cannot both win (the harness compares leaders of each term).
#[test]
fn at_most_one_leader_in_a_term() {
    for seed in 0..50 {
        let mut cluster = Cluster::new(5, seed);
        cluster.latency_us = 100..90_000;
        cluster.run_for(3_000 * MS);
        assert!(!cluster.leaders.is_empty(), "seed {seed}");
    }
}

/// 5.1: a leader that hears of a higher term becomes a follower.
#[test]
fn a_higher_term_ends_a_leadership() {
    let mut core = core_of(3, &[1], hard(1));
    lead(&mut core, Tick(400 * MS));
    let higher = core.term().next();
    core.receive(
        Tick(401 * MS),
        n(3),
        Message::HeartbeatReply { term: higher, round: 0, last: Index(1), verified: Index(1), disk_full: false },
    );
    assert_eq!((core.role(), core.term(), core.leader()), (Role::Follower, higher, None));
}

/// 5.1: a leader of a passed term is told.
#[test]
fn a_stale_leader_is_answered_with_the_newer_term() {
    let mut core = core_of(3, &[1, 1], hard(7));
    core.receive_append(Tick(1), n(2), head(3, id(1, 1), 2), vec![entry(2, 3)]);
    core.receive(Tick(1), n(2), Message::Heartbeat { term: Term(3), commit: Index(2), round: 1 });
    let terms: Vec<Term> = drain(&mut core)
        .iter()
        .filter_map(|output| if let Output::Send { message, .. } = output { Some(message.term()) } else { None })
        .collect();
    assert_eq!(terms, [Term(7), Term(7)]);
    assert_eq!((core.last_id(), core.commit()), (id(2, 1), Index(0)));
}

/// 5.3: an append is taken only after the entry it follows.
#[test]
fn an_append_is_refused_unless_the_entry_before_it_is_held() {
    let mut core = core_of(3, &[1, 1, 2], hard(3));
    for (prev, success) in [(id(4, 2), false), (id(3, 1), false), (id(3, 2), true), (id(2, 1), true), (id(0, 0), true)]
    {
        core.receive_append(Tick(1), n(2), head(3, prev, 0), vec![]);
        let answered = drain(&mut core).into_iter().find_map(|output| match output {
            Output::Send { message: Message::AppendReply { success, .. }, .. }
            | Output::SendAfterPersist { message: Message::AppendReply { success, .. }, .. } => Some(success),
            _ => None,
        });
        assert_eq!(answered, Some(success), "after {prev}");
    }
}

/// 5.3: what contradicts the leader goes, what agrees stays, also when an old append comes late.
#[test]
fn only_a_contradiction_truncates() {
    let mut core = core_of(3, &[1, 1, 2, 2], hard(3));
    core.receive_append(Tick(1), n(2), head(3, id(1, 1), 0), vec![entry(2, 1)]);
    assert_eq!(core.last_id(), id(4, 2), "a shorter append takes nothing away");
    let _ = drain(&mut core);
    core.receive_append(Tick(2), n(2), head(3, id(2, 1), 0), vec![entry(3, 2), entry(4, 3), entry(5, 3)]);
    assert_eq!(core.last_id(), id(5, 3));
    let outputs = drain(&mut core);
    let write = Write { hard_state: None, entries: Some(Index(4)..=Index(5)), term: Term(3), last: Index(5) };
    assert_eq!(outputs[..2], [Output::Truncated { from: Index(4) }, Output::Persist(write)]);
}

/// Figure 2, AppendEntries 5: the commit index goes no further than what was verified, in this term.
#[test]
fn a_follower_commits_only_what_it_verified_against_this_leader() {
    let mut core = core_of(3, &[1, 1, 2, 2, 2], hard(3));
    core.receive(Tick(1), n(2), Message::Heartbeat { term: Term(3), commit: Index(5), round: 1 });
    assert_eq!(core.commit(), Index(0), "its own tail may yet be replaced");
    core.receive_append(Tick(2), n(2), head(3, id(2, 1), 5), vec![entry(3, 2)]);
    assert_eq!(core.commit(), Index(3));
    core.receive(Tick(3), n(2), Message::Heartbeat { term: Term(3), commit: Index(5), round: 2 });
    assert_eq!(core.commit(), Index(3));
    // The next leader starts from nothing again.
    core.receive(Tick(4), n(3), Message::Heartbeat { term: Term(4), commit: Index(5), round: 1 });
    assert_eq!(core.commit(), Index(3));
}

/// Figure 7: whatever the followers' logs look like, the leader makes them its own.
#[test]
fn figure_7_logs_are_repaired() {
    let leader: &[u64] = &[1, 1, 1, 4, 4, 5, 5, 6, 6, 6];
    let followers: [&[u64]; 6] = [
        &[1, 1, 1, 4, 4, 5, 5, 6, 6],
        &[1, 1, 1, 4],
        &[1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6],
        &[1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7],
        &[1, 1, 1, 4, 4, 4, 4],
        &[1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3],
    ];
    for (case, follower) in followers.iter().enumerate() {
        let disks = [(n(1), disk(3, leader, 8)), (n(2), disk(3, follower, 7)), (n(3), disk(3, leader, 8))];
        let mut cluster = Cluster::from_disks(disks.into(), case as u64, |_| {});
        // The follower joins late, so that one of the others leads.
        cluster.isolate(2);
        let elected = cluster.elect();
        cluster.heal();
        cluster.run_for(1_000 * MS);
        assert_eq!(cluster.terms(2), cluster.terms(elected), "case {case}");
        assert!(cluster.core(2).commit() >= Index(11), "case {case}");
    }
}

/// Figure 8, 5.4.2: an entry of an earlier term is not committed by counting replicas.
#[test]
fn figure_8_old_term_entry_is_not_committed_by_replica_count() {
    let mut core = core_of(5, &[1, 2], hard(3));
    core.tick(Tick(400 * MS));
    core.receive(Tick(400 * MS), n(2), Message::PreVoteReply { term: Term(3), campaign: Term(4), granted: true });
    core.receive(Tick(400 * MS), n(3), Message::PreVoteReply { term: Term(3), campaign: Term(4), granted: true });
    let outputs = drain(&mut core);
    sync(&mut core, Tick(400 * MS), &outputs);
    core.receive(Tick(400 * MS), n(2), Message::VoteReply { term: Term(4), granted: true });
    core.receive(Tick(400 * MS), n(3), Message::VoteReply { term: Term(4), granted: true });
    assert_eq!(core.role(), Role::Leader);
    let outputs = drain(&mut core);
    sync(&mut core, Tick(401 * MS), &outputs);
    let reply = |matched: u64| Message::AppendReply {
        term: Term(4),
        request: 1,
        epoch: 1,
        success: true,
        matched: Index(matched),
        last: Index(matched),
        hint: None,
    };
    for node in 2..=5 {
        core.receive(Tick(402 * MS), n(node), reply(2));
    }
    assert_eq!(core.commit(), Index(0), "entry 2 of term 2 is on all five nodes");
    core.receive(Tick(403 * MS), n(2), reply(3));
    assert_eq!(core.commit(), Index(0));
    core.receive(Tick(403 * MS), n(3), reply(3));
    assert_eq!(core.commit(), Index(3), "an entry of its own term takes the earlier ones along");
}

/// 8: a leader opens its term with a no-op, written before anything is said about it.
#[test]
fn a_leader_opens_its_term_with_a_no_op() {
    let mut core = core_of(3, &[1, 1], hard(1));
    lead(&mut core, Tick(400 * MS));
    let outputs = drain(&mut core);
    let noop = outputs.iter().position(|output| *output == Output::Noop { id: id(3, 2) }).unwrap();
    let persist =
        outputs.iter().position(|output| matches!(output, Output::Persist(write) if write.last == Index(3))).unwrap();
    assert_eq!(noop + 1, persist);
}

/// 5.4: leader completeness through ten leaders that each crash with entries under way.
#[test]
fn committed_entries_survive_a_row_of_crashing_leaders() {
    let mut cluster = Cluster::new(5, 77);
    for _ in 0..10 {
        let leader = cluster.elect();
        for _ in 0..5 {
            cluster.propose(leader).unwrap();
            cluster.run_for(MS);
        }
        cluster.crash(n(leader));
        let next = cluster.elect();
        assert_ne!(next, leader);
        cluster.start(n(leader), Index(0));
    }
    cluster.run_for(1_000 * MS);
    assert!(cluster.committed.len() > 30, "{} committed", cluster.committed.len());
}
