//! Runs written by hand: what must happen, and not only what must not.

use graven_tests::check::Checked;
use graven_tests::cluster::Cluster;
use graven_tests::profile::Profile;
use graven_tests::trace::{Trace, TraceTo};

fn cluster(seed: u64, nodes: u64) -> Cluster {
    Cluster::new(seed, nodes, Profile::CALM, Trace::new(TraceTo::Hash))
}

fn run_until_committed(cluster: &mut Cluster, records: u64) -> Checked {
    let goal = cluster.committed_records() + records;
    cluster.run_while(|cluster| cluster.committed_records() < goal)
}

fn is_led_by_another(cluster: &Cluster, than: u64) -> bool {
    cluster.leader().is_some_and(|leader| leader != than)
}

fn holds(checked: Checked, seed: u64) {
    if let Err(violation) = checked {
        panic!("seed {seed}: {violation:?}");
    }
}

/// The leader is cut off with appends in its log that nobody else has, loses power in that state, and comes back into a
/// cluster that went on without it: its tail must give way, and every append must have landed once.
#[test]
fn a_leader_that_crashes_with_an_uncommitted_tail_gives_way() {
    for seed in 0..20 {
        let mut cluster = cluster(seed, 3);
        holds(run_until_committed(&mut cluster, 20), seed);
        let old = cluster.leader().expect("records were committed");
        cluster.network().isolate(old);
        holds(cluster.run_while(|cluster| !is_led_by_another(cluster, old)), seed);
        let replica = cluster.replica(old).expect("it is up");
        assert!(replica.view().last_index >= replica.view().commit_index, "seed {seed}");
        holds(run_until_committed(&mut cluster, 20), seed);
        cluster.crash(old, true);
        cluster.heal();
        holds(cluster.run_until_done(), seed);
    }
}

/// Everybody reaches the hub and nobody else reaches anybody: only the hub can have a quorum.
#[test]
fn five_nodes_that_reach_only_a_hub_elect_the_hub() {
    for seed in 0..10 {
        let mut cluster = cluster(seed, 5);
        holds(run_until_committed(&mut cluster, 5), seed);
        let hub = cluster.leader().expect("records were committed") % 5 + 1;
        for from in (1..=5).filter(|node| *node != hub) {
            for to in (1..=5).filter(|node| *node != hub && *node != from) {
                cluster.network().cut(from, to);
            }
        }
        holds(cluster.run_while(|cluster| cluster.leader() != Some(hub)), seed);
        holds(run_until_committed(&mut cluster, 10), seed);
        cluster.heal();
        holds(cluster.run_until_done(), seed);
    }
}

/// A leader that is heard but hears nobody must step down, or nothing is ever committed again.
#[test]
fn a_leader_that_hears_nobody_gives_up() {
    for seed in 0..10 {
        let mut cluster = cluster(seed, 3);
        holds(run_until_committed(&mut cluster, 5), seed);
        let deaf = cluster.leader().expect("records were committed");
        for peer in (1..=3).filter(|peer| *peer != deaf) {
            cluster.network().cut(peer, deaf);
        }
        holds(cluster.run_while(|cluster| !is_led_by_another(cluster, deaf)), seed);
        holds(run_until_committed(&mut cluster, 10), seed);
        cluster.heal();
        holds(cluster.run_until_done(), seed);
    }
}

/// All nodes lose power at once, in the middle of whatever they were writing, again and again.
#[test]
fn a_site_that_loses_power_keeps_what_it_acknowledged() {
    for seed in 0..10 {
        let mut cluster = cluster(seed, 3);
        for _ in 0..5 {
            holds(run_until_committed(&mut cluster, 10), seed);
            (1..=3).for_each(|node| cluster.crash(node, true));
        }
        cluster.heal();
        holds(cluster.run_until_done(), seed);
    }
}

/// One node alone is a cluster like any other.
#[test]
fn a_single_node_that_crashes_keeps_what_it_acknowledged() {
    for seed in 0..10 {
        let mut cluster = cluster(seed, 1);
        for round in 0..5 {
            holds(run_until_committed(&mut cluster, 10), seed);
            cluster.crash(1, round % 2 == 0);
        }
        cluster.heal();
        holds(cluster.run_until_done(), seed);
    }
}

/// One disk is full, of whatever role its node is: the cluster goes on, and the node has everything once there is room.
#[test]
fn one_full_disk_stops_nobody() {
    for seed in 0..20 {
        let mut cluster = cluster(seed, 3);
        holds(run_until_committed(&mut cluster, 5), seed);
        let leader = cluster.leader().expect("records were committed");
        let full = if seed % 2 == 0 { leader } else { leader % 3 + 1 };
        cluster.fill_disk(full, 0);
        holds(cluster.run_until_full(full), seed);
        holds(run_until_committed(&mut cluster, 50), seed);
        assert_ne!(cluster.leader(), Some(full), "seed {seed}: a full node leads though others have room");
        let crashes = cluster.stats.crashes;
        cluster.free_disks();
        cluster.heal();
        holds(cluster.run_until_done(), seed);
        assert_eq!(cluster.stats.crashes, crashes, "seed {seed}: without a restart");
        assert!(!cluster.replica(full).expect("it is up").view().disk_full, "seed {seed}");
    }
}

/// A disk hangs under a leader: for five seconds, after which it is a follower like any other, and for more than the half minute
/// after which its process ends.
#[test]
fn a_leader_whose_disk_hangs_is_followed_by_another() {
    for (seed, hangs, ends) in (0..3).flat_map(|seed| [(seed, 5_000_000, false), (seed, 33_000_000, true)]) {
        let mut cluster = cluster(seed, 3);
        holds(run_until_committed(&mut cluster, 20), seed);
        let leader = cluster.leader().expect("records were committed");
        cluster.hang_disk(leader, hangs);
        holds(cluster.leadership_leaves(leader), seed);
        holds(run_until_committed(&mut cluster, 20), seed);
        let before = cluster.stats.crashes;
        // Writers finish, so that half a minute costs few steps.
        cluster.heal();
        holds(cluster.run_for(hangs), seed);
        assert_eq!(cluster.stats.crashes > before, ends, "seed {seed}: hung for {hangs} us");
        holds(cluster.run_until_done(), seed);
    }
}
