//! Linearizable reads: fresh, shared, and never left without an answer.

use graven_raft::*;

use crate::harness::*;

fn ready(outputs: &[Output]) -> Vec<u64> {
    outputs
        .iter()
        .filter_map(|output| if let Output::ReadReady { id, .. } = output { Some(*id) } else { None })
        .collect()
}

fn failed(outputs: &[Output]) -> Vec<u64> {
    outputs.iter().filter_map(|output| if let Output::ReadFailed { id } = output { Some(*id) } else { None }).collect()
}

#[test]
fn leader_and_followers_answer_reads_at_every_size() {
    for size in [1, 2, 3, 5] {
        let mut cluster = Cluster::new(size, size);
        cluster.elect_and_others();
        for node in 1..=size {
            cluster.read(node, 100 + node).unwrap();
        }
        cluster.run_for(10 * MS);
        for node in 1..=size {
            assert_eq!(ready(&cluster.told(node)), [100 + node], "node {node} of {size}");
        }
    }
}

/// Thesis 6.4, step 1: before its first own commit a leader does not know what is committed.
#[test]
fn a_new_leader_answers_no_read_before_its_own_term_commits() {
    let mut core = core_of(3, &[1], hard(1));
    lead(&mut core, Tick(400 * MS));
    let _ = drain(&mut core);
    core.read(Tick(401 * MS), 1).unwrap();
    for round in 1..=1 {
        core.receive(
            Tick(402 * MS),
            n(2),
            Message::HeartbeatReply { term: Term(2), round, last: Index(1), verified: Index(1), disk_full: false },
        );
    }
    assert_eq!(ready(&drain(&mut core)), []);
    core.durable(Tick(403 * MS), Term(2), Index(2));
    let reply = Message::AppendReply {
        term: Term(2),
        request: 1,
        epoch: 1,
        success: true,
        matched: Index(2),
        last: Index(2),
        hint: None,
    };
    core.receive(Tick(404 * MS), n(2), reply);
    core.receive(
        Tick(405 * MS),
        n(2),
        Message::HeartbeatReply { term: Term(2), round: 2, last: Index(2), verified: Index(2), disk_full: false },
    );
    assert!(drain(&mut core).contains(&Output::ReadReady { id: 1, index: Index(2) }));
}

/// d-engine 381: an answer to a heartbeat sent before the request proves nothing about the moment of the request.
#[test]
fn only_a_round_that_began_after_the_request_confirms_it() {
    let mut cluster = Cluster::new(3, 3);
    let (leader, others) = cluster.elect_and_others();
    let term = cluster.core(leader).term();
    cluster.isolate(leader);
    cluster.packets.clear();
    cluster.read(leader, 1).unwrap();
    for round in 0..3 {
        cluster.input(n(leader), |core, now| {
            core.receive(
                now,
                n(others[0]),
                Message::HeartbeatReply { term, round, last: Index(2), verified: Index(2), disk_full: false },
            );
        });
    }
    assert_eq!(ready(&cluster.told(leader)), []);
    cluster.run_for(500 * MS);
    assert_eq!(failed(&cluster.told(leader)), [1], "the leadership ended, and with it the wait");
}

#[test]
fn reads_that_arrive_during_a_round_share_the_next() {
    let mut cluster = Cluster::new(3, 4);
    let (leader, _) = cluster.elect_and_others();
    cluster.run_for(100 * MS);
    cluster.packets.clear();
    for read in 0..1_000 {
        cluster.read(leader, read).unwrap();
    }
    let heartbeats = |cluster: &Cluster| {
        let beats =
            cluster.packets.iter().filter(|packet| matches!(packet.body, Body::Message(Message::Heartbeat { .. })));
        beats.count()
    };
    assert_eq!(heartbeats(&cluster), 2, "one round to two followers");
    cluster.run_for(5 * MS);
    assert_eq!(ready(&cluster.told(leader)).len(), 1_000);
}

#[test]
fn a_follower_gives_up_when_its_leader_changes_or_is_silent() {
    let mut cluster = Cluster::new(3, 5);
    let (leader, others) = cluster.elect_and_others();
    cluster.cut.insert((n(others[0]), n(leader)));
    cluster.read(others[0], 1).unwrap();
    cluster.run_for(1_100 * MS);
    assert_eq!(failed(&cluster.told(others[0])), [1], "time ran out");
    cluster.heal();
    cluster.run_for(500 * MS);
    let leader = cluster.leader().unwrap();
    let follower = (1..=3).find(|node| *node != leader).unwrap();
    cluster.crash(n(leader));
    cluster.read(follower, 2).unwrap();
    cluster.run_for(900 * MS);
    assert_eq!(failed(&cluster.told(follower)), [2], "the leader changed");
}

#[test]
fn a_read_without_a_known_leader_is_refused_at_once() {
    let mut core = core_of(3, &[1], hard(1));
    assert_eq!(core.read(Tick(1), 1), Err(ReadError::NoLeader));
}

#[test]
fn answers_are_matched_by_token_and_come_from_the_leader_only() {
    let mut core = core_of(3, &[1], hard(1));
    core.receive(Tick(1), n(2), Message::Heartbeat { term: Term(1), commit: Index(0), round: 1 });
    let _ = drain(&mut core);
    core.read(Tick(2), 40).unwrap();
    core.read(Tick(2), 41).unwrap();
    let tokens: Vec<u64> = drain(&mut core)
        .into_iter()
        .filter_map(|output| match output {
            Output::Send { to: NodeId(2), message: Message::ReadIndex { token, .. } } => Some(token),
            _ => None,
        })
        .collect();
    let answer = |token, index| Message::ReadIndexReply { term: Term(1), token, index };
    core.receive(Tick(3), n(3), answer(tokens[0], Some(Index(1))));
    core.receive(Tick(3), n(2), answer(tokens[1].wrapping_add(1), Some(Index(1))));
    assert_eq!(drain(&mut core), []);
    core.receive(Tick(4), n(2), answer(tokens[1], Some(Index(1))));
    core.receive(Tick(4), n(2), answer(tokens[1], Some(Index(1))));
    core.receive(Tick(4), n(2), answer(tokens[0], None));
    assert_eq!(drain(&mut core), [Output::ReadReady { id: 41, index: Index(1) }, Output::ReadFailed { id: 40 }]);
}

#[test]
fn waiting_reads_are_bounded() {
    let mut core = core_of(3, &[1], hard(1));
    lead(&mut core, Tick(400 * MS));
    let refused = (0..10_000).find_map(|read| core.read(Tick(400 * MS), read).err());
    assert_eq!(refused, Some(ReadError::Busy { waiting: 8_192 }));
}

/// A heartbeat of a passed term is answered with the new term and no round: its sender may lead again by then, and must not take the
/// answer to an old round for one to its own of the same number.
#[test]
fn an_answer_to_a_passed_leadership_confirms_no_round() {
    let mut core = core_of(3, &[1], hard(7));
    core.receive(Tick(MS), n(2), Message::Heartbeat { term: Term(5), commit: Index(0), round: 9 });
    let rounds: Vec<_> = drain(&mut core)
        .into_iter()
        .filter_map(|output| match output {
            Output::Send { to, message: Message::HeartbeatReply { term, round, .. } } => Some((to, term, round)),
            _ => None,
        })
        .collect();
    assert_eq!(rounds, [(n(2), Term(7), 0)]);
}
