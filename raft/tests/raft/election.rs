//! Who leads, who may, and who keeps quiet.

use graven_raft::*;

use crate::harness::*;

#[test]
fn one_leader_is_elected_at_every_size() {
    for size in 1..=7 {
        let mut cluster = Cluster::new(size, 11 + size);
        let leader = cluster.elect();
        cluster.run_for(1_000 * MS);
        assert_eq!(cluster.leader(), Some(leader), "{size} nodes: leadership is stable");
        assert_eq!(cluster.leaders.len(), 1, "{size} nodes: one election was enough");
    }
}

/// Raft paper 5.2: timeouts are drawn from `[e, 2e)`, and nodes with other seeds draw otherwise.
#[test]
fn election_timeouts_are_spread_over_their_range() {
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..64 {
        let mut config = Config::new(n(1), seed);
        config.election_us = 150 * MS;
        let memberships = vec![(Index(1), Membership::of_voters([n(1), n(2)]))];
        let restored =
            Restored { last: Index(1), term_runs: vec![(Term(1), Index(1))], memberships, ..Restored::default() };
        let due = Core::new(config, restored, Tick(0)).next_deadline().unwrap();
        assert!((150 * MS..300 * MS).contains(&due.0));
        seen.insert(due.0 / (10 * MS));
    }
    assert!(seen.len() > 10, "of 15 slots of 10 ms, {} were hit", seen.len());
}

/// etcd 7.x, Ratis 130: a vote that is heard of before it is durable can be given twice.
#[test]
fn vote_and_term_are_durable_before_they_leave() {
    let mut core = core_of(3, &[1], hard(1));
    core.receive(Tick(1), n(2), Message::Vote { term: Term(2), last: id(1, 1), transfer: false });
    let outputs = drain(&mut core);
    let vote = Some(HardState { term: Term(2), vote: Some(n(2)) });
    let persist =
        outputs.iter().position(|output| matches!(output, Output::Persist(write) if write.hard_state == vote));
    let reply = outputs.iter().position(|output| {
        matches!(output, Output::SendAfterPersist { message: Message::VoteReply { granted: true, .. }, .. })
    });
    assert!(persist.unwrap() < reply.unwrap());
    assert_eq!(
        outputs.iter().filter(|output| matches!(output, Output::Persist(_))).count(),
        1,
        "term and vote in one write"
    );
}

#[test]
fn a_candidate_asks_and_counts_itself_only_after_its_own_vote_is_durable() {
    let mut core = core_of(3, &[1], hard(1));
    core.tick(Tick(400 * MS));
    let _ = drain(&mut core);
    core.receive(Tick(400 * MS), n(2), Message::PreVoteReply { term: Term(1), campaign: Term(2), granted: true });
    let outputs = drain(&mut core);
    assert!(outputs.iter().all(|output| !matches!(output, Output::Send { message: Message::Vote { .. }, .. })));
    assert!(
        outputs.iter().any(|output| matches!(output, Output::SendAfterPersist { message: Message::Vote { .. }, .. }))
    );
    // A reply that came by some impossible shortcut does not make it leader while its own vote may yet be lost.
    core.receive(Tick(401 * MS), n(2), Message::VoteReply { term: Term(2), granted: true });
    assert_eq!(core.role(), Role::Candidate);
    core.durable(Tick(402 * MS), Term(2), Index(1));
    assert_eq!(core.role(), Role::Leader);
}

/// Ratis 130: with a timer that runs during the sync, a slow disk starts the next election before the first one's requests leave.
#[test]
fn the_election_timer_starts_over_when_the_vote_is_durable() {
    let mut core = core_of(3, &[1], hard(1));
    core.receive(Tick(1), n(2), Message::Vote { term: Term(2), last: id(1, 1), transfer: false });
    core.tick(Tick(900 * MS));
    assert_eq!(core.role(), Role::Follower);
    core.durable(Tick(900 * MS), Term(2), Index(1));
    core.tick(Tick(900 * MS));
    assert_eq!(core.role(), Role::Follower);
    let due = core.next_deadline().unwrap();
    assert!(due >= Tick(1_050 * MS) && due < Tick(1_200 * MS), "due at {due:?}");
}

/// openraft 1220: a node that merely saw a higher term has not voted in it.
#[test]
fn a_higher_term_is_not_a_vote() {
    let mut core = core_of(3, &[1], hard(1));
    core.receive(
        Tick(1),
        n(3),
        Message::HeartbeatReply { term: Term(5), round: 1, last: Index(1), verified: Index(1), disk_full: false },
    );
    assert_eq!(core.hard_state(), HardState { term: Term(5), vote: None });
    core.receive(Tick(2), n(2), Message::Vote { term: Term(5), last: id(1, 1), transfer: false });
    assert_eq!(core.hard_state().vote, Some(n(2)));
    core.receive(Tick(3), n(3), Message::Vote { term: Term(5), last: id(9, 4), transfer: false });
    assert_eq!(core.hard_state().vote, Some(n(2)), "one vote a term");
}

/// Raft paper 5.4.1.
#[test]
fn a_vote_goes_only_to_a_log_that_is_not_behind() {
    for (last, granted) in [(id(3, 1), false), (id(2, 2), false), (id(3, 2), true), (id(4, 2), true), (id(2, 3), true)]
    {
        let mut core = core_of(3, &[1, 2, 2], hard(3));
        core.receive(Tick(1), n(2), Message::Vote { term: Term(4), last, transfer: false });
        assert_eq!(core.hard_state().vote.is_some(), granted, "last {last}");
        assert_eq!(core.term(), Term(4));
    }
}

/// Thesis 4.2.3: whoever hears its leader is not disturbed, and its term stays.
#[test]
fn a_voter_stands_by_its_leader() {
    let mut core = core_of(3, &[1], hard(1));
    core.receive(Tick(MS), n(2), Message::Heartbeat { term: Term(1), commit: Index(0), round: 1 });
    core.receive(Tick(150 * MS), n(3), Message::Vote { term: Term(9), last: id(9, 9), transfer: false });
    core.receive(Tick(150 * MS), n(3), Message::PreVote { term: Term(1), campaign: Term(2), last: id(9, 9) });
    assert_eq!((core.term(), core.leader()), (Term(1), Some(n(2))));
    let outputs = drain(&mut core);
    assert!(
        outputs.contains(&Output::Send { to: n(3), message: Message::VoteReply { term: Term(1), granted: false } })
    );
    assert!(outputs.contains(&Output::Send {
        to: n(3),
        message: Message::PreVoteReply { term: Term(1), campaign: Term(2), granted: false }
    }));
    core.receive(Tick(151 * MS), n(3), Message::Vote { term: Term(9), last: id(9, 9), transfer: true });
    assert_eq!(core.hard_state(), HardState { term: Term(9), vote: Some(n(3)) }, "the leader's own wish is heard");
}

/// Loyalty is to the leader of the current term: one that is known to be deposed holds no vote back.
#[test]
fn loyalty_ends_with_the_term() {
    let mut core = core_of(3, &[1], hard(1));
    core.receive(Tick(MS), n(2), Message::Heartbeat { term: Term(1), commit: Index(0), round: 1 });
    core.receive(
        Tick(2 * MS),
        n(3),
        Message::HeartbeatReply { term: Term(4), round: 0, last: Index(1), verified: Index(1), disk_full: false },
    );
    core.receive(Tick(3 * MS), n(3), Message::Vote { term: Term(5), last: id(1, 1), transfer: false });
    assert_eq!(core.hard_state(), HardState { term: Term(5), vote: Some(n(3)) });
}

/// redpanda 30817: a recovering follower that counts only appends it could take starts elections for ever.
#[test]
fn any_word_of_the_leader_keeps_a_follower_calm_even_a_refused_append() {
    let mut core = core_of(3, &[1], hard(2));
    for step in 1..20 {
        let now = Tick(step * 100 * MS);
        core.receive_append(now, n(2), head(2, id(50, 2), 0), vec![]);
        core.tick(now);
        assert_eq!(core.role(), Role::Follower);
    }
    let refused = drain(&mut core)
        .into_iter()
        .filter(|output| matches!(output, Output::Send { message: Message::AppendReply { success: false, .. }, .. }));
    assert_eq!(refused.count(), 19);
}

/// Thesis 9.6: a node that was cut off comes back without raising anybody's term.
#[test]
fn a_node_that_was_cut_off_disturbs_nobody() {
    let mut cluster = Cluster::new(3, 5);
    let (leader, others) = cluster.elect_and_others();
    let term = cluster.core(leader).term();
    cluster.isolate(others[0]);
    cluster.run_for(3_000 * MS);
    cluster.heal();
    cluster.run_for(1_000 * MS);
    assert_eq!((cluster.leader(), cluster.core(leader).term()), (Some(leader), term));
    assert_eq!(cluster.core(others[0]).leader(), Some(n(leader)));
}

/// Thesis 6.2: a leader without a quorum says nothing more, not even to those who hear it.
#[test]
fn a_leader_without_a_quorum_falls_silent_and_steps_down() {
    let mut cluster = Cluster::new(5, 3);
    let (leader, others) = cluster.elect_and_others();
    for &gone in &others[..3] {
        cluster.cut_link(leader, gone);
    }
    cluster.run_for(400 * MS);
    assert_ne!(cluster.core(leader).role(), Role::Leader);
    cluster.packets.clear();
    cluster.run_for(30 * MS);
    let leads = |packet: &Packet| {
        matches!(packet.body, Body::Append(..) | Body::Message(Message::Heartbeat { .. } | Message::Commit { .. }))
    };
    assert!(!cluster.packets.iter().any(|packet| packet.from == n(leader) && leads(packet)));
}

/// openraft 2080: an old leader without a quorum keeps one bridge node loyal, so that the connected majority cannot elect.
#[test]
fn a_connected_majority_elects_although_the_old_leader_keeps_a_bridge_node() {
    for seed in 0..20 {
        let mut cluster = Cluster::new(5, seed);
        let (old, others) = cluster.elect_and_others();
        let (bridge, apart) = (others[0], [others[1], others[2], others[3]]);
        // The old leader talks to the bridge only; two of the rest talk to each other and to the bridge, one is gone.
        for node in apart {
            cluster.cut_link(old, node);
        }
        cluster.isolate(apart[2]);
        let elected = cluster.run_while(5_000 * MS, |cluster| {
            cluster.leader().is_some_and(|leader| leader != old && cluster.core(leader).is_established())
        });
        assert!(elected, "seed {seed}: bridge {bridge}");
        let leader = cluster.leader().unwrap();
        assert!(cluster.propose(leader).is_ok());
    }
}

/// raft-rs 84, canonical/raft 279: a node in a lower or higher term than the rest is neither stuck nor in the way.
#[test]
fn pre_vote_does_not_deadlock_on_terms_that_differ() {
    for (a, b, c) in [(1, 5, 9), (9, 5, 1), (5, 5, 1), (1, 1, 9)] {
        let first = |term: u64| {
            let membership = Some(Membership::of_voters([n(1), n(2), n(3)]));
            let meta = EntryMeta { kind: EntryKind::Membership, bytes: 9, membership };
            Disk { hard: hard(term), entries: vec![Entry { id: id(1, 1), meta }], ..Disk::default() }
        };
        let disks = [(n(1), first(a)), (n(2), first(b)), (n(3), first(c))];
        let mut cluster = Cluster::from_disks(disks.into(), a * 100 + b * 10 + c, |_| {});
        cluster.elect();
        cluster.run_for(500 * MS);
        let leader = cluster.leader().unwrap();
        for node in 1..=3 {
            assert_eq!(cluster.core(node).leader(), Some(n(leader)), "terms {a} {b} {c}");
        }
    }
}

/// redpanda 13614: a node does not take over before it has done again what it knew to be committed.
#[test]
fn no_candidacy_before_what_was_committed_is_applied() {
    let memberships = vec![(Index(1), Membership::of_voters([n(1)]))];
    let restored = Restored {
        hard_state: hard(1),
        first: Index(1),
        term_runs: vec![(Term(1), Index(1))],
        last: Index(9),
        memberships,
        commit: Index(7),
        ..Restored::default()
    };
    let mut core = Core::new(Config::new(n(1), 1), restored, Tick(0));
    assert_eq!(drain(&mut core), [Output::Commit { up_to: Index(7) }]);
    core.tick(Tick(5_000 * MS));
    assert_eq!((core.role(), core.next_deadline()), (Role::Follower, None));
    core.applied(Tick(5_000 * MS), Index(7));
    core.tick(Tick(5_300 * MS));
    assert_eq!(core.role(), Role::Candidate);
}

/// Raft paper 5.2: a voter answers once in a term, so a candidate that a majority refused waits like everybody else.
#[test]
fn a_candidate_that_cannot_win_any_more_is_a_follower_again() {
    let mut core = core_of(5, &[1], hard(1));
    core.tick(Tick(400 * MS));
    let granted = |node| (n(node), Message::PreVoteReply { term: Term(1), campaign: Term(2), granted: true });
    for (from, reply) in [granted(2), granted(3)] {
        core.receive(Tick(400 * MS), from, reply);
    }
    let outputs = drain(&mut core);
    sync(&mut core, Tick(401 * MS), &outputs);
    let reply = |granted| Message::VoteReply { term: Term(2), granted };
    for (from, granted) in [(2, false), (2, false), (3, true), (3, false), (4, false)] {
        core.receive(Tick(402 * MS), n(from), reply(granted));
        assert_eq!(core.role(), Role::Candidate, "repeated refusals count once, and a yes stands");
    }
    core.receive(Tick(402 * MS), n(5), reply(false));
    assert_eq!((core.role(), core.leader()), (Role::Follower, None));
    assert_eq!(core.hard_state(), HardState { term: Term(2), vote: Some(n(1)) });
    core.receive(Tick(403 * MS), n(4), reply(true));
    assert_eq!(core.role(), Role::Follower, "it is over");
}

/// An answer to an earlier question about the same term may come late: it must not drown the answers to this one.
#[test]
fn late_refusals_do_not_end_a_pre_vote() {
    let mut core = core_of(3, &[1], hard(1));
    core.tick(Tick(400 * MS));
    let reply = |granted| Message::PreVoteReply { term: Term(1), campaign: Term(2), granted };
    for (from, granted) in [(2, false), (3, false), (2, true)] {
        assert_eq!(core.role(), Role::PreCandidate);
        core.receive(Tick(401 * MS), n(from), reply(granted));
    }
    assert_eq!(core.role(), Role::Candidate);
}

/// A damaged node says neither yes nor "me".
#[test]
fn a_pre_vote_of_a_voter_in_an_earlier_term_counts() {
    // It does not stand by itself, as one whose log does not show yet that it votes: nothing else would bring it to this term.
    let mut core = core_of(3, &[1], hard(6));
    core.tick(Tick(1_000_000));
    assert_eq!(core.role(), Role::PreCandidate);
    let granted = |term| Message::PreVoteReply { term: Term(term), campaign: Term(7), granted: true };
    core.receive(Tick(1_000_001), n(2), Message::PreVoteReply { term: Term(5), campaign: Term(6), granted: true });
    assert_eq!(core.role(), Role::PreCandidate, "an answer to an earlier question");
    core.receive(Tick(1_000_002), n(2), granted(5));
    assert_eq!((core.role(), core.term()), (Role::Candidate, Term(7)));
}

#[test]
fn a_node_that_may_not_vote_does_not() {
    let memberships = vec![(Index(1), Membership::of_voters([n(1), n(2)]))];
    let restored =
        Restored { last: Index(1), term_runs: vec![(Term(1), Index(1))], memberships, ..Restored::default() };
    let config = Config { may_vote: false, ..Config::new(n(1), 1) };
    let mut core = Core::new(config, restored, Tick(0));
    core.tick(Tick(5_000 * MS));
    core.receive(Tick(5_000 * MS), n(2), Message::Vote { term: Term(3), last: id(9, 2), transfer: false });
    core.receive(Tick(5_000 * MS), n(2), Message::PreVote { term: Term(3), campaign: Term(4), last: id(9, 2) });
    assert_eq!((core.role(), core.hard_state().vote), (Role::Follower, None));
    assert!(!drain(&mut core).iter().any(|output| matches!(
        output,
        Output::Send {
            message: Message::PreVoteReply { granted: true, .. } | Message::VoteReply { granted: true, .. },
            ..
        }
    )));
}

/// raft-rs 84: a node that comes back in an earlier term than the rest learns the term with the first word it hears, and neither
/// stays apart nor raises anybody's.
#[test]
fn a_node_that_comes_back_in_an_earlier_term_follows() {
    for seed in 0..10 {
        let mut cluster = Cluster::new(3, seed);
        let (_, others) = cluster.elect_and_others();
        cluster.isolate(others[0]);
        // The others go through some elections without it.
        for _ in 0..3 {
            let leader = cluster.elect();
            let heir = (1..=3).find(|node| *node != leader && *node != others[0]).unwrap();
            cluster.input(n(leader), |core, now| core.transfer(now, n(heir))).unwrap().unwrap();
            cluster.run_for(200 * MS);
        }
        let leader = cluster.elect();
        let term = cluster.core(leader).term();
        assert!(cluster.core(others[0]).term() < term, "seed {seed}");
        cluster.heal();
        cluster.run_for(500 * MS);
        assert_eq!((cluster.leader(), cluster.core(leader).term()), (Some(leader), term), "seed {seed}");
        assert_eq!((cluster.core(others[0]).leader(), cluster.core(others[0]).term()), (Some(n(leader)), term));
    }
}

/// canonical/raft 279: a node in a higher term than its leader's takes nothing from it and cannot win alone. The leader learns of the
/// term, gives way, and all go on together: pre-vote keeps no stale leader in place.
#[test]
fn a_leader_gives_way_to_the_higher_term_of_one_that_comes_back() {
    for seed in 0..10 {
        let mut cluster = Cluster::new(3, seed);
        let (leader, others) = cluster.elect_and_others();
        cluster.crash(n(others[0]));
        cluster.run_for(20 * MS);
        let term = cluster.core(leader).term();
        // It had raised its term before it went down, and nobody heard of it.
        cluster.nodes.get_mut(&n(others[0])).unwrap().disk.hard = hard(term.0 + 5);
        cluster.start(n(others[0]), Index(0));
        cluster.run_for(1_000 * MS);
        let leader = cluster.elect();
        assert!(cluster.core(leader).term() > Term(term.0 + 5), "seed {seed}");
        let last = cluster.propose(leader).unwrap();
        cluster.run_for(50 * MS);
        for node in 1..=3 {
            assert!(cluster.core(node).commit() >= last.index, "seed {seed}: node {node}");
        }
    }
}

/// Thesis 6.2: whoever does not lead names the leader.
#[test]
fn a_refused_proposal_names_the_leader() {
    let mut cluster = Cluster::new(3, 1);
    let (leader, others) = cluster.elect_and_others();
    let before = cluster.core(others[0]).last_id();
    assert_eq!(cluster.propose(others[0]), Err(ProposeError::NotLeader { leader: Some(n(leader)) }));
    assert_eq!(cluster.core(others[0]).last_id(), before, "nothing was changed");
}

/// A leader with nothing to do says one word an interval to each follower, and nothing else.
#[test]
fn an_idle_leader_sends_one_heartbeat_an_interval() {
    let mut cluster = Cluster::new(3, 2);
    let (leader, _) = cluster.elect_and_others();
    cluster.latency_us = 300..301;
    cluster.run_for(100 * MS);
    cluster.appends.clear();
    let mut rounds = std::collections::BTreeSet::new();
    for _ in 0..5_000 {
        cluster.run_for(MS / 5);
        for packet in cluster.packets.iter().filter(|packet| packet.from == n(leader)) {
            match packet.body {
                Body::Message(Message::Heartbeat { round, .. }) => rounds.insert((packet.to, round)),
                _ => panic!("{packet:?}"),
            };
        }
    }
    assert!(
        (38..=42).contains(&rounds.len()),
        "{} heartbeats in a second, to two followers, every 50 ms",
        rounds.len()
    );
    assert!(cluster.appends.is_empty());
}

/// A commit notice is lost: the next heartbeat carries the same.
#[test]
fn a_lost_commit_notice_is_made_up_for_by_the_next_heartbeat() {
    let mut cluster = Cluster::new(3, 3);
    let (leader, others) = cluster.elect_and_others();
    let last = cluster.propose(leader).unwrap();
    for _ in 0..700 {
        cluster.run_for(MS / 10);
        cluster.packets.retain(|packet| !matches!(packet.body, Body::Message(Message::Commit { .. })));
    }
    for node in others {
        assert_eq!(cluster.core(node).commit(), last.index, "node {node}, after 70 ms");
    }
}

#[test]
fn a_term_that_no_cluster_reaches_is_a_lie() {
    let mut core = core_of(3, &[1, 1], hard(1));
    let lie = Term(Term::MAX.0 + 1);
    core.receive(Tick(1), n(2), Message::Heartbeat { term: lie, commit: Index(0), round: 1 });
    core.receive(Tick(1), n(2), Message::Vote { term: lie, last: id(2, 1), transfer: false });
    core.receive_append(Tick(1), n(2), head(lie.0, id(2, 1), 0), Vec::new());
    assert_eq!(core.term(), Term(1));
    let told = drain(&mut core);
    assert_eq!(told.len(), 3);
    assert!(told.iter().all(|output| matches!(output, Output::Alarm(Alarm::Malformed { .. }))), "{told:?}");
    core.receive(Tick(1), n(2), Message::Heartbeat { term: Term::MAX, commit: Index(0), round: 1 });
    assert_eq!(core.term(), Term::MAX);
}
