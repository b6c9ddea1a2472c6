//! A node that is back before anybody missed it.

use graven_raft::*;

use crate::harness::*;

/// What a follower verified ends with its life. Started again within an election timeout, on an idle log, it would hear
/// heartbeats and commit nothing until the next append, were it not asked to compare once more.
#[test]
fn a_follower_restarted_under_the_same_leader_learns_the_commit_index_without_new_appends() {
    for seed in 0..10 {
        let mut cluster = Cluster::new(3, seed);
        let (leader, others) = cluster.elect_and_others();
        let last = cluster.propose(leader).unwrap();
        cluster.run_for(100 * MS);
        cluster.crash(n(others[0]));
        cluster.run_for(5 * MS);
        cluster.start(n(others[0]), Index(0));
        assert_eq!(cluster.core(others[0]).commit(), Index(0));
        cluster.run_for(300 * MS);
        assert_eq!(cluster.leader(), Some(leader), "seed {seed}");
        assert_eq!(cluster.core(others[0]).commit(), last.index, "seed {seed}");
        // Once is enough: an idle cluster sends heartbeats only.
        cluster.appends.clear();
        cluster.run_for(1_000 * MS);
        assert!(cluster.appends.is_empty(), "seed {seed}: {:?}", cluster.appends);
    }
}
