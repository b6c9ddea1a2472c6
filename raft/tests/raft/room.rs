//! Full disks: who leads, and what the leader knows.

use graven_raft::*;

use crate::harness::*;

fn full(cluster: &mut Cluster, node: u64, is_full: bool) {
    cluster.input(n(node), |core, now| core.set_disk_full(now, is_full)).expect("it is up");
}

fn cluster_of_three(seed: u64) -> (Cluster, u64, Vec<u64>) {
    let mut cluster = Cluster::new(3, seed);
    let (leader, others) = cluster.elect_and_others();
    cluster.run_for(100 * MS);
    (cluster, leader, others)
}

#[test]
fn a_leader_without_room_hands_over_to_a_follower_with_room() {
    let (mut cluster, leader, others) = cluster_of_three(1);
    full(&mut cluster, others[0], true);
    cluster.run_for(100 * MS);
    assert_eq!(cluster.core(leader).room(), Room::Here, "it and the other follower are a quorum");
    full(&mut cluster, others[0], false);
    cluster.run_for(100 * MS);
    full(&mut cluster, leader, true);
    cluster.run_for(50 * MS);
    let next = cluster.leader().expect("a leader");
    assert_ne!(next, leader);
    cluster.run_for(200 * MS);
    assert_eq!(cluster.core(next).room(), Room::Here);
    cluster.propose(next).expect("it has room");
}

#[test]
fn the_heir_is_the_one_with_room() {
    for seed in 1..6 {
        let mut cluster = Cluster::new(5, seed);
        let (leader, others) = cluster.elect_and_others();
        full(&mut cluster, others[0], true);
        cluster.run_for(100 * MS);
        full(&mut cluster, leader, true);
        cluster.run_for(400 * MS);
        let next = cluster.leader().expect("a leader");
        assert!(next != leader && next != others[0], "seed {seed}: node {next} leads");
    }
}

#[test]
fn a_leader_stays_when_no_quorum_has_room_and_goes_on_when_one_has_again() {
    let (mut cluster, leader, others) = cluster_of_three(2);
    let term = cluster.core(leader).term();
    full(&mut cluster, leader, true);
    full(&mut cluster, others[0], true);
    cluster.run_for(100 * MS);
    let leader = cluster.leader().expect("a leader");
    full(&mut cluster, others[1], true);
    cluster.run_for(100 * MS);
    assert_eq!(cluster.core(leader).room(), Room::Nowhere);
    let trim = EntryMeta::plain(EntryKind::Trim, 100);
    let last = cluster.propose_meta(leader, trim).expect("control entries go on");
    cluster.run_for(20_000 * MS);
    assert_eq!(cluster.leader(), Some(leader), "nobody would do better");
    assert!(cluster.core(leader).commit() >= last.index);
    assert!(cluster.core(leader).term().0 <= term.0 + 1, "at most one hand-over, before the others were full");
    for node in 1..=3 {
        full(&mut cluster, node, false);
    }
    cluster.run_for(100 * MS);
    assert_eq!(cluster.core(leader).room(), Room::Here);
}

/// One is full, one is down: a refusal is better than a wait without end. A moment of silence is no reason yet.
#[test]
fn a_silent_follower_counts_as_one_without_room_after_a_while() {
    let (mut cluster, leader, others) = cluster_of_three(3);
    full(&mut cluster, others[0], true);
    cluster.run_for(100 * MS);
    cluster.crash(n(others[1]));
    cluster.run_for(900 * MS);
    assert_eq!(cluster.core(leader).room(), Room::Here);
    cluster.run_for(200 * MS);
    assert_eq!(cluster.core(leader).room(), Room::Nowhere);
    full(&mut cluster, others[0], false);
    cluster.run_for(100 * MS);
    assert_eq!(cluster.core(leader).room(), Room::Here, "nobody is full");
}

/// A leader that cannot get rid of the leadership says after a while that there is no room, and goes on trying.
#[test]
fn a_hand_over_that_comes_to_nothing_turns_into_a_refusal() {
    let (mut cluster, leader, others) = cluster_of_three(4);
    for &node in &others {
        // Answers heartbeats, and never has the end of the log.
        cluster.set_sync(node, 3_600_000 * MS);
    }
    cluster.propose(leader).unwrap();
    full(&mut cluster, leader, true);
    cluster.run_for(7_000 * MS);
    assert_eq!(cluster.core(leader).room(), Room::Elsewhere);
    cluster.run_for(2_000 * MS);
    assert_eq!(cluster.core(leader).room(), Room::Nowhere);
    assert_eq!(cluster.leader(), Some(leader));
}

/// A follower without room is offered one append at a time: what it does not take would be sent again and again.
#[test]
fn a_full_follower_is_offered_one_append_at_a_time() {
    let mut core = core_of(3, &[1], hard(1));
    lead(&mut core, Tick(400 * MS));
    let now = Tick(410 * MS);
    // The probe that the leadership begins with.
    offers(&mut core, now);
    let answer =
        |disk_full| Message::HeartbeatReply { term: Term(2), round: 1, last: Index(2), verified: Index(2), disk_full };
    let reply = Message::AppendReply {
        term: Term(2),
        request: 1,
        epoch: 1,
        success: true,
        matched: Index(2),
        last: Index(2),
        hint: None,
    };
    core.receive(now, n(2), reply);
    core.receive(now, n(2), answer(true));
    let mut offered = 0;
    for _ in 0..4 {
        core.propose(now, records()).expect("leads");
        offered += offers(&mut core, now);
    }
    assert_eq!(offered, 1);
    core.receive(now, n(2), answer(false));
    assert_eq!(offers(&mut core, now), 1, "the window is open again");
}

/// Counts the appends for node 2, and reports each as sent with one entry.
fn offers(core: &mut Core, now: Tick) -> usize {
    let mut count = 0;
    for output in drain(core) {
        if let Output::Append { to, first, request, epoch, .. } = output
            && to == n(2)
        {
            count += 1;
            core.sent(now, to, request, first, 100, epoch);
        }
    }
    count
}

/// A disk that says no is no disk that hangs: nobody hands over or dies for it.
#[test]
fn a_write_that_waits_for_room_is_no_stall() {
    let (mut cluster, leader, _) = cluster_of_three(5);
    cluster.set_sync(leader, 3_600_000 * MS);
    cluster.propose(leader).unwrap();
    for _ in 0..200 {
        cluster.run_for(200 * MS);
        cluster.input(n(leader), |core, now| core.disk_has_no_room(now)).expect("it is up");
    }
    assert_eq!((cluster.leader(), cluster.alarms(leader).len()), (Some(leader), 0));
    cluster.run_for(1_500 * MS);
    assert_ne!(cluster.leader(), Some(leader), "no more sign of life");
}

/// What is committed by the help of a full disk alone is not followed by more before the others have it too.
#[test]
fn those_with_room_must_keep_pace() {
    let (mut cluster, leader, others) = cluster_of_three(6);
    cluster.set_sync(others[1], 200 * MS);
    full(&mut cluster, others[0], true);
    cluster.run_for(300 * MS);
    assert!(cluster.core(leader).room_keeps_pace());
    let last = cluster.propose(leader).expect("two have room");
    cluster.run_for(50 * MS);
    assert!(cluster.core(leader).commit() >= last.index, "the full one helped");
    assert!(!cluster.core(leader).room_keeps_pace(), "the one with room is behind");
    cluster.run_for(300 * MS);
    assert!(cluster.core(leader).room_keeps_pace());
    full(&mut cluster, others[0], false);
    cluster.run_for(100 * MS);
    cluster.propose(leader).expect("leads");
    cluster.run_for(50 * MS);
    assert!(cluster.core(leader).room_keeps_pace(), "nobody is full");
}
