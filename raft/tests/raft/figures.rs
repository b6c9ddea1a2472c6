//! The figures of the Raft paper: 3 (the five properties, each by its own observer over random runs), 4 (roles) and 8 (the whole
//! scenario, both ends). Figure 7 stands in `paper`.
//!
//! The harness has asserts of its own for four of the properties, at the moments when they could break. The observers here share
//! nothing with them: they look at the nodes from outside, after every disturbance.

use std::collections::{BTreeMap, BTreeSet};

use graven_raft::*;

use crate::harness::*;
use crate::random;

/// The first seed of each observer, and how many. `GRAVEN_RAFT_SEED=<seed> cargo test -p graven-raft figure_3` runs one alone.
const FIRST: u64 = 1_000;
const SEEDS: u64 = 60;

/// Enough happened for the observer to mean something. One seed alone need not.
fn at_stake(count: usize, least: usize, what: &str) {
    assert!(alone().is_some() || count >= least, "only {count} {what}");
}

fn running(cluster: &Cluster) -> impl Iterator<Item = (NodeId, &Node, &Core)> {
    cluster.nodes.iter().filter_map(|(id, node)| Some((*id, node, node.core.as_ref()?)))
}

fn ids(node: &Node) -> Vec<LogId> {
    node.view.iter().map(|entry| entry.id).collect()
}

/// Figure 3, Election Safety: at most one leader can be elected in a given term.
#[test]
fn figure_3_election_safety() {
    let mut terms = 0;
    for seed in seeds(FIRST, SEEDS) {
        let mut led = BTreeMap::<Term, BTreeSet<NodeId>>::new();
        random::run(seed, &mut |cluster| {
            for (id, node, _) in running(cluster) {
                for (_, term) in node.roles.iter().filter(|(role, _)| *role == Role::Leader) {
                    led.entry(*term).or_default().insert(id);
                }
            }
        });
        for (term, leaders) in &led {
            assert_eq!(leaders.len(), 1, "seed {seed}: term {term} was led by {leaders:?}");
        }
        terms += led.len();
    }
    at_stake(terms, 200, "terms had a leader");
}

/// Figure 3, Leader Append-Only: a leader never overwrites or deletes entries in its log; it only appends new entries.
#[test]
fn figure_3_leader_append_only() {
    let mut compared = 0;
    for seed in seeds(FIRST, SEEDS) {
        let mut before = BTreeMap::<(NodeId, u64, Term), Vec<LogId>>::new();
        random::run(seed, &mut |cluster| {
            let mut now = BTreeMap::new();
            for (id, node, core) in running(cluster).filter(|(_, _, core)| core.role() == Role::Leader) {
                let (key, log) = ((id, node.lives, core.term()), ids(node));
                if let Some(was) = before.get(&key) {
                    assert!(
                        log.starts_with(was),
                        "seed {seed}: leader {id} of term {} had {was:?}, has {log:?}",
                        key.2
                    );
                    compared += 1;
                }
                now.insert(key, log);
            }
            before = now;
        });
    }
    at_stake(compared, 500, "leaders were seen twice in one leadership");
}

/// Figure 3, Log Matching: if two logs contain an entry with the same index and term, then the logs are identical in all
/// entries up through the given index.
#[test]
fn figure_3_log_matching() {
    let mut differed = 0;
    for seed in seeds(FIRST, SEEDS) {
        random::run(seed, &mut |cluster| {
            let logs: Vec<(NodeId, Vec<LogId>)> = running(cluster).map(|(id, node, _)| (id, ids(node))).collect();
            for (one, ours) in &logs {
                for (other, theirs) in logs.iter().filter(|(other, _)| other > one) {
                    let meet = ours.iter().zip(theirs).rposition(|(a, b)| a == b).map_or(0, |at| at + 1);
                    assert_eq!(ours[..meet], theirs[..meet], "seed {seed}: nodes {one} and {other}");
                    differed += usize::from(meet < ours.len().min(theirs.len()));
                }
            }
        });
    }
    at_stake(differed, 20, "pairs of logs contradicted each other");
}

/// Figure 3, Leader Completeness: if a log entry is committed in a given term, then that entry will be present in the logs of
/// the leaders for all higher-numbered terms.
#[test]
fn figure_3_leader_completeness() {
    let mut looked = 0;
    for seed in seeds(FIRST, SEEDS) {
        // When an index was first seen committed, and the highest term anybody was in then.
        let mut committed = Vec::<(LogId, Term)>::new();
        random::run(seed, &mut |cluster| {
            let highest = running(cluster).map(|(_, _, core)| core.term()).max().unwrap_or_default();
            for (_, node, core) in running(cluster) {
                for index in committed.len() as u64 + 1..=core.commit().0 {
                    committed.push((node.held(Index(index)).unwrap().id, highest));
                }
            }
            for (id, node, core) in running(cluster).filter(|(_, _, core)| core.role() == Role::Leader) {
                for (entry, _) in committed.iter().filter(|(_, term)| core.term() > *term) {
                    let held = node.held(entry.index).map(|held| held.id);
                    assert_eq!(held, Some(*entry), "seed {seed}: leader {id} of term {}", core.term());
                    looked += 1;
                }
            }
        });
    }
    at_stake(looked, 10_000, "entries were looked for in logs of later leaders");
}

/// Figure 3, State Machine Safety: if a server has applied a log entry at a given index to its state machine, no other server
/// will ever apply a different log entry for the same index.
#[test]
fn figure_3_state_machine_safety() {
    let mut applied_in_all = 0;
    for seed in seeds(FIRST, SEEDS) {
        let mut applied = Vec::<LogId>::new();
        random::run(seed, &mut |cluster| {
            for (id, node, core) in running(cluster) {
                for index in 1..=core.applied_index().0 {
                    let ours = node.held(Index(index)).unwrap().id;
                    match applied.get(index as usize - 1) {
                        Some(theirs) => assert_eq!(ours, *theirs, "seed {seed}: node {id}"),
                        None => applied.push(ours),
                    }
                }
            }
        });
        applied_in_all += applied.len();
    }
    at_stake(applied_in_all, 2_000, "entries were applied");
}

/// Figure 4: which role follows which, with the pre-candidate of thesis 9.6 between follower and candidate.
///
/// | from | to | why |
/// |---|---|---|
/// | follower | pre-candidate | its timer ran out |
/// | pre-candidate | candidate | a quorum would vote for it |
/// | candidate | pre-candidate | its timer ran out again |
/// | follower | candidate | its leader asked it to stand (thesis 3.10) |
/// | candidate | leader | a quorum voted for it |
/// | any | follower | a leader or a higher term was heard of, or the quorum was lost |
#[test]
fn figure_4_roles_follow_each_other_as_drawn() {
    let mut seen = BTreeSet::new();
    for seed in seeds(FIRST, SEEDS) {
        let mut looked = BTreeMap::<(NodeId, u64), usize>::new();
        random::run(seed, &mut |cluster| {
            for (id, node, _) in running(cluster) {
                let from = looked.insert((id, node.lives), node.roles.len()).unwrap_or(1);
                for pair in node.roles[from - 1..].windows(2) {
                    let ((was, before), (is, term)) = (pair[0], pair[1]);
                    let step = (format!("{was:?}"), format!("{is:?}"));
                    let drawn = match (was, is) {
                        (_, Role::Follower) | (Role::Follower, Role::PreCandidate) => term >= before,
                        (Role::Candidate, Role::Leader | Role::PreCandidate)
                        | (Role::PreCandidate, Role::PreCandidate) => term == before,
                        // A new election is in a new term (Raft paper 5.2).
                        (Role::PreCandidate | Role::Follower, Role::Candidate) => term == before.next(),
                        _ => false,
                    };
                    assert!(drawn, "seed {seed}: node {id} goes from {was:?} in {before} to {is:?} in {term}");
                    seen.insert(step);
                }
            }
        });
    }
    for (from, to) in [
        ("Follower", "PreCandidate"),
        ("PreCandidate", "Candidate"),
        ("PreCandidate", "Follower"),
        ("Candidate", "Leader"),
        ("Candidate", "Follower"),
        ("Candidate", "PreCandidate"),
        ("Follower", "Candidate"),
        ("Leader", "Follower"),
    ] {
        let found = seen.contains(&(from.to_owned(), to.to_owned()));
        assert!(alone().is_some() || found, "no run went from {from} to {to}: {seen:?}");
    }
}

/// Figure 8 up to (c): S1, leader of term 4, has entry 2 of term 2 on S2 and S3 as well, and knows it. Its own no-op has reached
/// nobody, or S2 and S3, as `noop_arrives` says. S5 holds another entry 2, of term 3.
fn figure_8_c(seed: u64, noop_arrives: bool) -> Cluster {
    let first = EntryMeta {
        kind: EntryKind::Membership,
        bytes: 100,
        membership: Some(Membership::of_voters((1..=5).map(NodeId))),
    };
    let disk = |term: u64, second: Option<u64>| {
        let mut entries = vec![Entry { id: id(1, 1), meta: first.clone() }];
        entries.extend(second.map(|term| entry(2, term)));
        Disk { hard: hard(term), entries, ..Disk::default() }
    };
    let logs = [(1, Some(2)), (2, Some(2)), (3, None), (4, None), (5, Some(3))];
    let disks = logs.map(|(node, second)| (n(node), disk(3, second)));
    // An entry at a time, so that entry 2 travels without the no-op behind it.
    let mut cluster = Cluster::from_disks(disks.into(), seed, |config| config.max_append_bytes = 1);
    cluster.isolate(5);
    // Only S1 is reached by the three others: only S1 can win.
    for (a, b) in [(2, 3), (2, 4), (3, 4)] {
        cluster.cut_link(a, b);
    }
    assert!(cluster.run_while(5_000 * MS, |cluster| cluster.leader() == Some(1)), "seed {seed}");
    let reaches = |packet: &Packet| match &packet.body {
        Body::Append(_, entries) => {
            entries.iter().all(|entry| entry.id.index < Index(3) || (noop_arrives && [n(2), n(3)].contains(&packet.to)))
                && packet.to != n(4)
        }
        Body::Message(_) => true,
    };
    for _ in 0..20_000 {
        cluster.packets.retain(|packet| reaches(packet));
        cluster.run_for(MS / 10);
        let stored = |node: u64| {
            let fed = cluster.core(1).progress().find(|follower| follower.node == n(node));
            fed.is_some_and(|follower| follower.matched >= if noop_arrives { Index(3) } else { Index(2) })
        };
        if stored(2) && stored(3) {
            assert_eq!(cluster.core(1).term(), Term(cluster.leaders.keys().next_back().unwrap().0), "seed {seed}");
            assert!(!cluster.packets.iter().any(|packet| packet.to == n(4) && matches!(packet.body, Body::Append(..))));
            return cluster;
        }
    }
    panic!("seed {seed}: entry 2 does not reach S2 and S3 within two seconds");
}

/// S1 is gone, and S5 is the only one whom all reach.
fn only_s5_is_reached(cluster: &mut Cluster) {
    cluster.crash(n(1));
    cluster.packets.clear();
    cluster.heal();
    for (a, b) in [(2, 3), (2, 4), (3, 4)] {
        cluster.cut_link(a, b);
    }
}

/// Figure 8 (a) to (d): entry 2 of term 2 is on a majority and not committed, because its leader is of term 4; S5 may replace it.
#[test]
fn figure_8_an_entry_of_an_earlier_term_on_a_majority_can_still_be_replaced() {
    for seed in 0..10 {
        let mut cluster = figure_8_c(seed, false);
        assert_eq!(cluster.core(1).commit(), Index(0), "seed {seed}: three of five hold entry 2, of an earlier term");
        only_s5_is_reached(&mut cluster);
        assert!(cluster.run_while(5_000 * MS, |cluster| cluster.leader() == Some(5)), "seed {seed}");
        cluster.run_for(1_500 * MS);
        for node in 2..=5 {
            assert_eq!(cluster.terms(node)[..2], [1, 3], "seed {seed}: node {node}");
            assert!(cluster.core(node).commit() >= Index(3), "seed {seed}: node {node}");
        }
    }
}

/// Figure 8 (e): once an entry of S1's own term is on a majority, entry 2 is committed with it, and S5 cannot win.
#[test]
fn figure_8_an_entry_of_the_leaders_own_term_commits_those_before_it() {
    for seed in 0..10 {
        let mut cluster = figure_8_c(seed, true);
        assert_eq!(cluster.core(1).commit(), Index(3), "seed {seed}");
        only_s5_is_reached(&mut cluster);
        cluster.run_for(3_000 * MS);
        assert_eq!(cluster.leader(), None, "seed {seed}: S2 and S3 do not vote for a log that lacks what is committed");
        cluster.heal();
        let leader = cluster.elect();
        assert!([2, 3].contains(&leader), "seed {seed}: node {leader} leads");
        cluster.run_for(1_500 * MS);
        for node in 2..=5 {
            assert_eq!(cluster.terms(node)[..2], [1, 2], "seed {seed}: node {node}");
        }
    }
}
