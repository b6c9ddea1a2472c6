//! Logs that differ, made equal: how many round trips it takes, and what replies are worth that come doubled, late or out of order.

use graven_raft::*;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

use crate::harness::*;

/// Two logs as Raft can make them: equal up to some entry, then tails that share no term, because the entries of a term come from one
/// log (Raft paper 5.3, Log Matching).
struct Logs {
    leader: Vec<u64>,
    follower: Vec<u64>,
    common: usize,
}

impl Logs {
    fn random(seed: u64) -> Logs {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut term = 1;
        let mut leader = vec![1];
        for _ in 0..rng.random_range(0..6) {
            term += rng.random_range(0..3);
            leader.extend(std::iter::repeat_n(term, rng.random_range(1..5)));
        }
        let common = leader.len();
        let mut follower = leader.clone();
        // Each later term belongs to one of the two, or was lost to both; the last common term may go on in one of them.
        for next in term..term + rng.random_range(1..20) {
            let entries = rng.random_range(1..6);
            match rng.random_range(0..5) {
                0 | 1 => leader.extend(std::iter::repeat_n(next, entries)),
                2 | 3 => follower.extend(std::iter::repeat_n(next, entries)),
                _ => {}
            }
        }
        Logs { leader, follower, common }
    }

    fn tail_terms(log: &[u64], common: usize) -> u64 {
        let mut terms = log[common..].to_vec();
        terms.dedup();
        terms.len() as u64
    }
}

/// Makes a leader of `logs.leader` feed a follower of `logs.follower` until both are equal. The round trips up to the first append
/// that was taken, that one included.
fn repair(seed: u64, logs: &Logs) -> u64 {
    let term = 1 + logs.leader.last().max(logs.follower.last()).unwrap().max(&40);
    let mut leader = core_of(3, &logs.leader, hard(term));
    lead(&mut leader, Tick(400 * MS));
    let mut follower = core_of(3, &logs.follower, hard(term));
    let mut now = Tick(401 * MS);
    let mut trips = 0;
    let mut taken = false;
    let term_of = |leader: &Core, index: u64| leader.term_at(Index(index)).unwrap().0;
    while follower.last_id() != leader.last_id() {
        now = now.after(MS);
        let outputs = drain(&mut leader);
        sync(&mut leader, now, &outputs);
        let asked = outputs.into_iter().find_map(|output| match output {
            Output::Append { to: NodeId(2), prev, first, last, commit, request, epoch, term, .. } => {
                let head = AppendHead { term, prev, prev_chain: 0, commit, request, epoch };
                Some((head, first.0..=last.0))
            }
            _ => None,
        });
        let (head, range) = asked.unwrap_or_else(|| panic!("seed {seed}: the leader asks for no append after {trips}"));
        let entries: Vec<Entry> = range.map(|index| entry(index, term_of(&leader, index))).collect();
        let end = entries.last().map_or(head.prev.index, |entry| entry.id.index);
        leader.sent(now, n(2), head.request, end, 100, head.epoch);
        // Node 2's core is told that node 1 leads; that both cores are "node 1" to themselves harms nothing here.
        follower.receive_append(now, n(2), head, entries);
        let outputs = drain(&mut follower);
        sync(&mut follower, now, &outputs);
        trips += u64::from(!taken);
        for output in outputs {
            let (Output::Send { message, .. } | Output::SendAfterPersist { message, .. }) = output else { continue };
            taken |= matches!(message, Message::AppendReply { success: true, .. });
            leader.receive(now, n(2), message);
        }
        assert!(trips < 200, "seed {seed}: no end");
    }
    for index in 1..=leader.last_id().index.0 {
        assert_eq!(follower.term_at(Index(index)), leader.term_at(Index(index)), "seed {seed}: entry {index}");
    }
    trips
}

/// Raft paper 5.3, end, both ways: a divergent tail of T terms, in the follower's log or in the leader's, whichever has fewer, is
/// repaired in at most T + 1 round trips. Random logs; the seed is in the message.
#[test]
fn a_divergent_tail_of_t_terms_is_repaired_in_t_plus_one_round_trips() {
    let (mut deepest, mut most) = (0, 0);
    for seed in seeds(0, 5_000) {
        let logs = Logs::random(seed);
        // A follower that is merely behind diverges in nothing; where its log ends has to be learnt all the same.
        let theirs = Logs::tail_terms(&logs.follower, logs.common).max(1);
        // The no-op that opens the leadership is a term of the leader's tail too.
        let ours = Logs::tail_terms(&logs.leader, logs.common) + 1;
        let trips = repair(seed, &logs);
        let (leader, follower) = (&logs.leader, &logs.follower);
        assert!(
            trips <= theirs.min(ours) + 1,
            "seed {seed}: {trips} round trips for {theirs} terms of the follower's and {ours} of the leader's own\n{leader:?}\n{follower:?}"
        );
        deepest = deepest.max(theirs.min(ours));
        most = most.max(trips);
    }
    assert!(
        alone().is_some() || (deepest >= 6 && most >= 4),
        "the logs were too easy: {deepest} terms, {most} round trips"
    );
}

/// The follower's log may be much longer, with many more terms: the leader's few terms bound the round trips.
#[test]
fn a_long_tail_of_many_terms_is_stepped_over_by_a_leader_with_few() {
    let mut follower = vec![1];
    (2..30).for_each(|term| follower.extend([term; 5]));
    let logs = Logs { leader: vec![1, 31, 31], follower, common: 1 };
    assert!(repair(0, &logs) <= 3);
}

/// And the other way round.
#[test]
fn a_leader_with_a_tail_of_many_terms_steps_over_it_for_a_follower_with_few() {
    let mut leader = vec![1];
    (2..30).for_each(|term| leader.extend([term; 5]));
    let logs = Logs { leader, follower: vec![1, 1, 1, 1, 1, 1], common: 1 };
    assert!(repair(0, &logs) <= 2);
}

/// A leader with a full pipeline to node 2: entries 3 to 22, each in an append of its own.
fn pipelined() -> (Core, Vec<(u64, u64)>) {
    let mut core = core_of(3, &[1], hard(1));
    lead(&mut core, Tick(400 * MS));
    let outputs = drain(&mut core);
    sync(&mut core, Tick(401 * MS), &outputs);
    core.receive(Tick(401 * MS), n(2), reply(1, 2));
    let _ = drain(&mut core);
    let mut sent = Vec::new();
    for index in 3..=22 {
        core.propose(Tick(402 * MS), records()).unwrap();
        let outputs = drain(&mut core);
        sync(&mut core, Tick(402 * MS), &outputs);
        for output in outputs {
            if let Output::Append { to: NodeId(2), request, epoch, .. } = output {
                core.sent(Tick(402 * MS), n(2), request, Index(index), 100, epoch);
                sent.push((request, index));
            }
        }
    }
    assert_eq!(sent.len(), 20, "each entry left in an append of its own, without waiting for an answer");
    (core, sent)
}

fn reply(request: u64, matched: u64) -> Message {
    let (matched, last) = (Index(matched), Index(matched));
    Message::AppendReply { term: Term(2), request, epoch: 1, success: true, matched, last, hint: None }
}

/// Thesis 10.2.1: acknowledgements of a pipeline come in any order, some twice, some never: what is matched is the highest one seen,
/// it never falls, and in the end nothing is in flight.
#[test]
fn acknowledgements_may_come_doubled_lost_and_in_any_order() {
    for seed in seeds(0, 500) {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let (mut core, sent) = pipelined();
        let mut answers = sent.clone();
        answers.extend(sent.iter().filter(|_| rng.random_range(0..3) == 0));
        for at in (1..answers.len()).rev() {
            answers.swap(at, rng.random_range(0..=at));
        }
        answers.retain(|(_, index)| *index == 22 || rng.random_range(0..4) > 0);
        let mut highest = 2;
        for (request, index) in answers {
            core.receive(Tick(403 * MS), n(2), reply(request, index));
            highest = highest.max(index);
            let follower = core.progress().find(|follower| follower.node == n(2)).unwrap();
            assert_eq!((follower.matched, follower.next), (Index(highest), Index(23)), "seed {seed}");
            assert_eq!(follower.inflight_bytes, 100 * (22 - highest), "seed {seed}");
            assert_eq!(core.commit(), Index(highest), "seed {seed}: node 2 and the leader itself are a majority");
            assert_eq!(invariants::check_state(&core), Ok(()), "seed {seed}");
            let outputs = drain(&mut core);
            sync(&mut core, Tick(403 * MS), &outputs);
        }
    }
}

/// Appends of a pipeline that arrive in the wrong order: the later one is refused and takes nothing away; the leader goes back to
/// where the logs meet, and what it had acknowledged stays acknowledged.
#[test]
fn an_append_that_overtakes_another_costs_a_round_trip_and_nothing_else() {
    let (mut core, sent) = pipelined();
    core.receive(Tick(403 * MS), n(2), reply(sent[0].0, 3));
    let hint = Some(ConflictHint { at: id(3, 2), first: Index(2) });
    let refusal = Message::AppendReply {
        term: Term(2),
        request: sent[5].0,
        epoch: 1,
        success: false,
        matched: Index(0),
        last: Index(3),
        hint,
    };
    let _ = drain(&mut core);
    core.receive(Tick(403 * MS), n(2), refusal.clone());
    let follower = core.progress().find(|follower| follower.node == n(2)).unwrap();
    assert_eq!((follower.matched, follower.next), (Index(3), Index(4)));
    let again = drain(&mut core).into_iter().find_map(|output| match output {
        Output::Append { to: NodeId(2), prev, first, .. } => Some((prev.index, first)),
        _ => None,
    });
    assert_eq!(again, Some((Index(3), Index(4))));
    // The refusals of the other overtakers are answers to what is no longer in flight.
    core.receive(Tick(404 * MS), n(2), refusal);
    assert_eq!(drain(&mut core), []);
}
