//! Feeding followers: windows, lost words, slow disks, and what counts as stored.

use graven_raft::*;

use crate::harness::*;

fn establish(size: u64, seed: u64) -> (Cluster, u64, Vec<u64>) {
    let mut cluster = Cluster::new(size, seed);
    let (leader, others) = cluster.elect_and_others();
    (cluster, leader, others)
}

#[test]
fn an_entry_is_committed_everywhere_within_a_few_hops() {
    let (mut cluster, leader, others) = establish(3, 1);
    let id = cluster.propose(leader).unwrap();
    // Append 1 ms, sync 0.5 ms, acknowledgement 1 ms, commit 1 ms: far below the heartbeat interval.
    cluster.run_for(4 * MS);
    for node in [leader, others[0], others[1]] {
        assert!(cluster.core(node).commit() >= id.index, "node {node}");
    }
}

/// etcd 14370: with one node it is tempting to acknowledge before the sync.
#[test]
fn a_single_node_commits_only_what_is_durable() {
    let (mut cluster, leader, _) = establish(1, 1);
    cluster.set_sync(1, 50 * MS);
    let id = cluster.propose(leader).unwrap();
    cluster.run_for(49 * MS);
    assert!(cluster.core(1).commit() < id.index);
    cluster.run_for(2 * MS);
    assert_eq!(cluster.core(1).commit(), id.index);
}

/// Thesis 10.2.1: the leader's own disk runs beside replication, and a majority without it is enough.
#[test]
fn followers_can_commit_before_the_leaders_own_write_is_durable() {
    let (mut cluster, leader, _) = establish(3, 2);
    cluster.set_sync(leader, 400 * MS);
    let id = cluster.propose(leader).unwrap();
    cluster.run_for(10 * MS);
    assert!(cluster.core(leader).durable_index() < id.index);
    assert_eq!(cluster.core(leader).commit(), id.index);
}

/// One follower alone is no majority of three while the leader's own write is under way.
#[test]
fn the_leader_counts_itself_only_after_its_own_sync() {
    let (mut cluster, leader, others) = establish(3, 2);
    cluster.crash(n(others[1]));
    cluster.set_sync(leader, 100 * MS);
    let id = cluster.propose(leader).unwrap();
    cluster.run_for(90 * MS);
    assert!(cluster.core(leader).commit() < id.index);
    cluster.run_for(20 * MS);
    assert_eq!(cluster.core(leader).commit(), id.index);
}

#[test]
fn many_appends_and_many_writes_are_under_way_at_once() {
    let (mut cluster, leader, others) = establish(3, 3);
    for node in 1..=3 {
        cluster.set_sync(node, 30 * MS);
    }
    let first = cluster.propose(leader).unwrap();
    let mut last = first;
    for _ in 0..20 {
        cluster.run_for(MS);
        last = cluster.propose(leader).unwrap();
    }
    assert!(cluster.unsynced(leader) > 10 && cluster.unsynced(others[0]) > 10);
    assert!(cluster.core(leader).progress().all(|follower| follower.next == last.index.next()));
    assert!(cluster.core(leader).commit() < first.index);
    assert!(cluster.run_while(1_000 * MS, |cluster| cluster.core(leader).commit() == last.index));
}

/// Appends under way to a follower whose disk does not answer: most bytes, most messages seen.
fn in_flight(configure: fn(&mut Config)) -> (u64, usize) {
    let mut cluster = Cluster::with(3, 4, configure);
    let (leader, others) = cluster.elect_and_others();
    cluster.set_sync(others[0], 60_000 * MS);
    let slow = n(others[0]);
    cluster.appends.clear();
    let mut most = 0;
    for _ in 0..100 {
        cluster.propose(leader).unwrap();
        let fed = cluster.core(leader).progress().find(|follower| follower.node == slow).unwrap();
        most = most.max(fed.inflight_bytes);
        cluster.run_for(MS / 10);
    }
    let messages = cluster.appends[&slow];
    cluster.set_sync(others[0], 500);
    let last = cluster.core(leader).last_id().index;
    assert!(cluster.run_while(2_000 * MS, |cluster| cluster.core(others[0]).durable_index() == last));
    (most, messages as usize)
}

#[test]
fn the_window_bounds_bytes_and_messages_in_flight() {
    let by_bytes = in_flight(|config| {
        config.window_bytes = 1_000;
        config.append_timeout_us = 60_000 * MS;
    });
    assert_eq!(by_bytes, (1_000, 10));
    let by_messages = in_flight(|config| {
        config.window_messages = 4;
        config.append_timeout_us = 60_000 * MS;
    });
    assert_eq!(by_messages, (400, 4));
}

/// A pipeline that waits for a lost answer for ever looks healthy by its heartbeats (hashicorp/raft 612).
#[test]
fn lost_acknowledgements_are_found() {
    let (mut cluster, leader, others) = establish(3, 5);
    cluster.crash(n(others[1]));
    let id = cluster.propose(leader).unwrap();
    for _ in 0..100 {
        cluster.run_for(MS / 10);
        cluster.packets.retain(|packet| !matches!(packet.body, Body::Message(Message::AppendReply { .. })));
    }
    assert!(cluster.core(leader).commit() < id.index);
    cluster.run_for(1_000 * MS);
    assert_eq!(cluster.core(leader).commit(), id.index);
    assert_eq!(cluster.core(leader).role(), Role::Leader);
}

#[test]
fn lost_appends_are_found() {
    let (mut cluster, leader, others) = establish(3, 6);
    cluster.crash(n(others[1]));
    for _ in 0..5 {
        cluster.propose(leader).unwrap();
    }
    cluster.packets.retain(|packet| !matches!(packet.body, Body::Append(..)));
    let last = cluster.propose(leader).unwrap();
    cluster.run_for(1_000 * MS);
    assert_eq!(cluster.core(leader).commit(), last.index);
}

/// A disk slower than the deadline must not turn every answer into one that came too late.
#[test]
fn a_follower_whose_sync_outlasts_the_deadline_still_advances() {
    let (mut cluster, leader, others) = establish(3, 7);
    cluster.crash(n(others[1]));
    cluster.set_sync(others[0], 800 * MS);
    let id = cluster.propose(leader).unwrap();
    cluster.run_for(3_000 * MS);
    assert!(cluster.core(leader).commit() >= id.index);
}

/// Raft paper 5.3, end: each refusal steps over a whole term.
#[test]
fn a_divergent_tail_of_many_terms_is_repaired_in_as_many_round_trips() {
    for tail_terms in 1..8u64 {
        let first = EntryMeta {
            kind: EntryKind::Membership,
            bytes: 100,
            membership: Some(Membership::of_voters([n(1), n(2), n(3)])),
        };
        let log = |terms: Vec<u64>| {
            let mut entries = vec![Entry { id: id(1, 1), meta: first.clone() }];
            entries.extend(terms.iter().enumerate().map(|(at, &term)| entry(at as u64 + 2, term)));
            Disk { hard: hard(50), entries, ..Disk::default() }
        };
        // Ten entries of each odd term on the follower, ten of each even one on the others, and the others end higher.
        let theirs = (0..tail_terms).flat_map(|term| [3 + 2 * term; 10]).collect();
        let ours: Vec<u64> = (0..tail_terms).flat_map(|term| [4 + 2 * term; 10]).collect();
        let disks = [(n(1), log(ours.clone())), (n(2), log(theirs)), (n(3), log(ours))];
        let mut cluster = Cluster::from_disks(disks.into(), tail_terms, |_| {});
        cluster.isolate(2);
        let leader = cluster.elect();
        cluster.run_for(1_000 * MS);
        cluster.appends.clear();
        cluster.heal();
        cluster.run_for(2_000 * MS);
        assert_eq!(cluster.terms(2), cluster.terms(leader));
        let trips = cluster.appends[&n(2)];
        assert!(
            trips <= tail_terms + 3,
            "{tail_terms} terms took {trips} appends (two for the deadline and the entries)"
        );
    }
}

/// A late report of a write that was superseded vouches for nothing.
#[test]
fn a_stale_durable_report_is_ignored() {
    let mut core = core_of(3, &[1], hard(2));
    core.receive_append(Tick(1), n(2), head(2, id(1, 1), 0), vec![entry(2, 2), entry(3, 2)]);
    assert_eq!(core.durable_index(), Index(1));
    // The next leader replaces both before they were reported.
    core.receive_append(Tick(2), n(3), head(3, id(1, 1), 0), vec![entry(2, 3), entry(3, 3)]);
    core.durable(Tick(3), Term(2), Index(3));
    assert_eq!(core.durable_index(), Index(1), "of a passed term");
    core.durable(Tick(4), Term(3), Index(3));
    assert_eq!(core.durable_index(), Index(1), "term 3 was written before its entries were");
    core.durable(Tick(5), Term(3), Index(3));
    assert_eq!(core.durable_index(), Index(3));
}

/// The rule is by term alone: what a passed term wrote counts once this term's own persist, behind it, is durable.
#[test]
fn what_a_passed_term_wrote_counts_with_the_next_report() {
    let mut core = core_of(3, &[1], hard(2));
    core.receive_append(Tick(1), n(2), head(2, id(1, 1), 0), vec![entry(2, 2)]);
    core.receive(Tick(2), n(3), Message::Heartbeat { term: Term(3), commit: Index(0), round: 1 });
    core.durable(Tick(3), Term(2), Index(2));
    assert_eq!(core.durable_index(), Index(1));
    core.durable(Tick(4), Term(3), Index(2));
    assert_eq!(core.durable_index(), Index(2));
}

#[test]
fn a_report_that_nobody_awaits_changes_nothing() {
    let mut core = core_of(3, &[1], hard(2));
    core.receive_append(Tick(1), n(2), head(2, id(1, 1), 0), vec![entry(2, 2)]);
    let _ = drain(&mut core);
    core.durable(Tick(2), Term(2), Index(9));
    assert_eq!(core.durable_index(), Index(1));
    assert!(matches!(drain(&mut core)[..], [Output::Alarm(Alarm::Malformed { .. })]));
}

/// An acknowledgement leaves after the persist it rests on, even when another append brought the entries.
#[test]
fn acknowledgements_wait_for_the_persist() {
    let mut core = core_of(3, &[1], hard(2));
    core.receive_append(Tick(1), n(2), head(2, id(1, 1), 0), vec![entry(2, 2)]);
    core.receive_append(Tick(1), n(2), head(2, id(1, 1), 0), vec![entry(2, 2)]);
    let replies = drain(&mut core).into_iter().filter(|output| match output {
        Output::SendAfterPersist { message: Message::AppendReply { success, matched, .. }, .. } => {
            *success && *matched == Index(2)
        }
        _ => false,
    });
    assert_eq!(replies.count(), 2);
}

#[test]
fn answers_of_an_old_epoch_and_doubles_are_dropped() {
    let mut core = core_of(3, &[1], hard(1));
    lead(&mut core, Tick(400 * MS));
    let _ = drain(&mut core);
    core.unreachable(Tick(401 * MS), n(2));
    let reply = |epoch| Message::AppendReply {
        term: Term(2),
        request: 1,
        epoch,
        success: true,
        matched: Index(2),
        last: Index(2),
        hint: None,
    };
    core.receive(Tick(402 * MS), n(2), reply(1));
    let matched = |core: &Core| core.progress().find(|follower| follower.node == n(2)).unwrap().matched;
    assert_eq!(matched(&core), Index(0));
    core.receive(Tick(403 * MS), n(2), reply(2));
    core.receive(Tick(403 * MS), n(2), reply(2));
    assert_eq!(matched(&core), Index(2));
    // A refusal of something that is not in flight walks nothing back (ClickHouse 103406).
    let hint = Some(ConflictHint { at: id(1, 1), first: Index(1) });
    let refusal = Message::AppendReply {
        term: Term(2),
        request: 1,
        epoch: 2,
        success: false,
        matched: Index(0),
        last: Index(1),
        hint,
    };
    core.propose(Tick(404 * MS), records()).unwrap();
    core.receive(Tick(404 * MS), n(2), refusal);
    let follower = core.progress().find(|follower| follower.node == n(2)).unwrap();
    assert_eq!((follower.matched, follower.state), (Index(2), ProgressState::Replicate));
    assert!(!drain(&mut core).iter().any(|output| matches!(output, Output::Alarm(_))));
}

/// tikv 994: a commit index beyond what the follower holds must never reach it.
#[test]
fn heartbeats_carry_no_commit_past_what_the_follower_acknowledged() {
    let (mut cluster, leader, others) = establish(3, 8);
    cluster.set_sync(others[0], 300 * MS);
    cluster.propose(leader).unwrap();
    let beat = |cluster: &Cluster| {
        let mut to = cluster.packets.iter().filter(|packet| packet.to == n(others[0]));
        to.any(|packet| matches!(packet.body, Body::Message(Message::Heartbeat { .. })))
    };
    cluster.run_for(20 * MS);
    assert!(cluster.run_while(60 * MS, beat));
    let matched = cluster.core(leader).progress().find(|follower| follower.node == n(others[0])).unwrap().matched;
    assert!(matched < cluster.core(leader).commit());
    let told =
        cluster.packets.iter().filter(|packet| packet.to == n(others[0])).filter_map(|packet| match packet.body {
            Body::Message(Message::Heartbeat { commit, .. } | Message::Commit { commit, .. }) => Some(commit),
            _ => None,
        });
    assert!(told.into_iter().all(|commit| commit <= matched));
}

#[test]
fn a_follower_that_lost_acknowledged_entries_raises_an_alarm_and_is_not_counted() {
    let (mut cluster, leader, others) = establish(3, 9);
    for _ in 0..5 {
        cluster.propose(leader).unwrap();
    }
    cluster.run_for(100 * MS);
    let victim = n(others[0]);
    cluster.crash(victim);
    cluster.nodes.get_mut(&victim).unwrap().disk.entries.truncate(1);
    cluster.crash(n(others[1]));
    // It also has the slowest disk, so that we see it before it has caught up.
    cluster.set_sync(others[0], 100 * MS);
    cluster.start(victim, Index(0));
    let last = cluster.propose(leader).unwrap();
    assert!(
        cluster
            .run_while(1_000 * MS, |cluster| cluster.core(leader).progress().any(|follower| follower.lost.is_some()))
    );
    assert!(matches!(cluster.alarms(leader)[..], [Alarm::FollowerLostEntries { node, .. }] if node == victim));
    cluster.run_for(2_000 * MS);
    assert!(cluster.core(leader).progress().all(|follower| follower.lost.is_none()), "caught up again");
    assert_eq!(cluster.core(leader).commit(), last.index);
}

/// Drains, reports writes as durable, and answers an append to node 2 with "nothing attached". Its epoch, if there was one.
fn epoch(core: &mut Core, now: Tick, attach: bool) -> Option<u64> {
    let outputs = drain(core);
    sync(core, now, &outputs);
    let mut appends = outputs.into_iter().filter_map(|output| match output {
        Output::Append { to: NodeId(2), prev, request, epoch, .. } => Some((prev, request, epoch)),
        _ => None,
    });
    let (prev, request, epoch) = appends.next_back()?;
    if attach {
        core.sent(now, n(2), request, prev.index, 0, epoch);
    }
    Some(epoch)
}

fn replicating() -> Core {
    let mut core = core_of(3, &[1], hard(1));
    lead(&mut core, Tick(400 * MS));
    let outputs = drain(&mut core);
    sync(&mut core, Tick(401 * MS), &outputs);
    let success = true;
    let (matched, last) = (Index(2), Index(2));
    let reply = Message::AppendReply { term: Term(2), request: 1, epoch: 1, success, matched, last, hint: None };
    core.receive(Tick(401 * MS), n(2), reply);
    core.propose(Tick(402 * MS), records()).unwrap();
    core
}

/// What is sent may be fetched from a disk first; an acknowledgement that comes meanwhile counts.
#[test]
fn bytes_that_come_late_take_back_nothing_that_was_acknowledged() {
    let mut core = replicating();
    let asked = drain(&mut core).into_iter().find_map(|output| match output {
        Output::Append { to, request, epoch, prev, .. } if to == n(2) => Some((request, epoch, prev.index)),
        _ => None,
    });
    let (request, epoch, prev) = asked.unwrap();
    core.propose(Tick(403 * MS), records()).unwrap();
    let matched = core.last_id().index;
    // Of an append that was sent before, and arrived after all.
    let reply =
        Message::AppendReply { term: Term(2), request: 1, epoch, success: true, matched, last: matched, hint: None };
    core.receive(Tick(404 * MS), n(2), reply);
    core.sent(Tick(405 * MS), n(2), request, prev.next(), 100, epoch);
    let follower = core.progress().find(|follower| follower.node == n(2)).unwrap();
    assert_eq!((follower.matched, follower.next), (matched, matched.next()));
    invariants::check_state(&core).unwrap();
}

/// A follower that answers heartbeats looks healthy; when nothing reaches its log all the same, it is probed anew.
#[test]
fn a_follower_that_is_alive_and_does_not_advance_is_probed() {
    let mut core = replicating();
    let mut last_epoch = 1;
    for step in 0..40 {
        let now = Tick(403 * MS + step * 50 * MS);
        core.tick(now);
        core.receive(
            now,
            n(2),
            Message::HeartbeatReply { term: Term(2), round: 1, last: Index(2), verified: Index(2), disk_full: false },
        );
        // The lane is full, each time.
        last_epoch = epoch(&mut core, now, true).unwrap_or(last_epoch);
    }
    assert!(last_epoch > 1);
    assert_eq!(core.progress().find(|follower| follower.node == n(2)).unwrap().state, ProgressState::Probe);
}

/// An append whose `sent` never comes is not waited for.
#[test]
fn an_append_that_is_never_reported_sent_is_asked_for_again() {
    let mut core = replicating();
    assert_eq!(epoch(&mut core, Tick(402 * MS), false), Some(1));
    core.receive(
        Tick(500 * MS),
        n(3),
        Message::HeartbeatReply { term: Term(2), round: 1, last: Index(2), verified: Index(2), disk_full: false },
    );
    core.receive(
        Tick(600 * MS),
        n(2),
        Message::HeartbeatReply { term: Term(2), round: 1, last: Index(2), verified: Index(2), disk_full: false },
    );
    core.receive(
        Tick(700 * MS),
        n(2),
        Message::HeartbeatReply { term: Term(2), round: 1, last: Index(2), verified: Index(2), disk_full: false },
    );
    core.receive(
        Tick(850 * MS),
        n(2),
        Message::HeartbeatReply { term: Term(2), round: 1, last: Index(2), verified: Index(2), disk_full: false },
    );
    core.tick(Tick(903 * MS));
    assert_eq!(epoch(&mut core, Tick(903 * MS), false), Some(2));
}

/// A follower that was started again before any lane was missed remembers nothing of what it compared, so it commits
/// nothing of what heartbeats tell it. With no new entry to carry a comparison, it must be asked for one.
#[test]
fn a_follower_that_forgot_what_it_compared_is_asked_to_compare_again() {
    let mut core = core_of(3, &[1], hard(1));
    lead(&mut core, Tick(400 * MS));
    let outputs = drain(&mut core);
    sync(&mut core, Tick(401 * MS), &outputs);
    let (matched, last) = (Index(2), Index(2));
    let reply = Message::AppendReply { term: Term(2), request: 1, epoch: 1, success: true, matched, last, hint: None };
    core.receive(Tick(401 * MS), n(2), reply);
    let answer =
        |verified| Message::HeartbeatReply { term: Term(2), round: 1, last: Index(2), verified, disk_full: false };
    let _ = drain(&mut core);
    core.receive(Tick(402 * MS), n(2), answer(Index(2)));
    let asked = |output: &Output| matches!(output, Output::Append { to, prev, first, last, .. } if *to == n(2) && prev.index == Index(2) && first > last);
    assert!(!drain(&mut core).iter().any(asked), "it remembers");
    core.receive(Tick(403 * MS), n(2), answer(Index(0)));
    assert!(drain(&mut core).iter().any(asked), "it forgot");
}

/// A committed entry that a leader contradicts is a stop, never a guess.
#[test]
fn a_contradicted_committed_entry_changes_nothing_and_is_named() {
    let mut core = core_of(3, &[1, 1], hard(2));
    core.receive_append(Tick(1), n(2), head(2, id(2, 1), 2), vec![]);
    assert_eq!(core.commit(), Index(2));
    let _ = drain(&mut core);
    core.receive_append(Tick(2), n(3), head(3, id(1, 1), 2), vec![entry(2, 3)]);
    let outputs = drain(&mut core);
    let alarm = Alarm::Diverged { from: n(3), index: Index(2), ours: Some(Term(1)), theirs: Term(3) };
    assert!(outputs.contains(&Output::Alarm(alarm)));
    assert!(!outputs.iter().any(|output| matches!(output, Output::SendAfterPersist { .. } | Output::Truncated { .. })));
    assert_eq!(core.last_id(), id(2, 1));
}

#[test]
fn appends_that_make_no_sense_are_dropped() {
    let bad = [
        vec![entry(3, 2)],
        vec![entry(2, 2), entry(2, 2)],
        vec![entry(2, 2), entry(3, 1)],
        vec![entry(2, 3)],
        vec![Entry { id: id(2, 2), meta: EntryMeta::plain(EntryKind::Membership, 1) }],
        vec![Entry { id: id(u64::MAX, 2), meta: records() }],
    ];
    for entries in bad {
        let mut core = core_of(3, &[1], hard(2));
        core.receive_append(Tick(1), n(2), head(2, id(1, 1), 1), entries.clone());
        assert_eq!(core.last_id(), id(1, 1), "{entries:?}");
        assert!(drain(&mut core).iter().any(|output| matches!(output, Output::Alarm(Alarm::Malformed { .. }))));
    }
}

/// hashicorp/raft 503, 666: a leader whose disk is stuck keeps sending heartbeats, and nobody takes over.
#[test]
fn a_leader_whose_disk_stalls_hands_over() {
    let (mut cluster, leader, _) = establish(3, 10);
    cluster.set_sync(leader, 3_600_000 * MS);
    cluster.propose(leader).unwrap();
    cluster.run_for(1_500 * MS);
    let next = cluster.leader().unwrap();
    assert_ne!(next, leader);
    assert!(matches!(cluster.alarms(leader)[..], [Alarm::DiskStalled { .. }]));
    cluster.propose(next).unwrap();
    cluster.run_for(31_000 * MS);
    assert!(
        matches!(cluster.alarms(leader)[..], [Alarm::DiskDead { .. }]),
        "past the second bound it is for the daemon to end it"
    );
    assert_eq!(cluster.leader(), Some(next));
}

#[test]
fn a_stalled_leader_without_a_fit_heir_steps_down() {
    let (mut cluster, leader, others) = establish(3, 10);
    for &node in &others {
        cluster.set_sync(node, 3_600_000 * MS);
    }
    cluster.set_sync(leader, 3_600_000 * MS);
    cluster.propose(leader).unwrap();
    cluster.run_for(1_400 * MS);
    assert_eq!(cluster.leader(), None);
}
