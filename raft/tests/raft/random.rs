//! Seeded random runs: crashes, losses, doubles, reordering, partitions, slow disks. First safety, then heal and demand progress.
//!
//! A failing run names its seed; `GRAVEN_RAFT_SEED=<seed> cargo test -p graven-raft random` runs it alone.

use graven_raft::*;
use rand::RngExt;

use crate::harness::*;

const SEEDS: u64 = 300;

#[test]
fn random_runs_are_safe_and_recover() {
    let (mut committed, mut reads, mut terms) = (0, 0, 0);
    for seed in seeds(0, SEEDS) {
        let cluster = run(seed, &mut |_| {});
        committed += cluster.committed.len();
        reads += cluster.reads_done;
        terms += cluster.leaders.len();
    }
    println!("{committed} entries, {reads} reads, {terms} leaders");
}

/// One random run; `observe` looks at the cluster after every disturbance and at the end.
pub(crate) fn run(seed: u64, observe: &mut dyn FnMut(&Cluster)) -> Cluster {
    let size = [1, 2, 3, 3, 3, 4, 5, 5, 5, 7][seed as usize % 10];
    let mut cluster = Cluster::with(size, seed, |config| {
        config.window_bytes = 1_000;
        config.window_messages = 5;
        config.append_timeout_us = 100 * MS;
        config.read_timeout_us = 500 * MS;
    });
    cluster.random_sync = true;
    cluster.latency_us = 100..30_000;
    cluster.drop_percent = cluster.rng.random_range(0..15);
    cluster.double_percent = cluster.rng.random_range(0..15);
    for step in 0..150 {
        disturb(&mut cluster, size);
        let node = cluster.rng.random_range(1..=size);
        if cluster.nodes[&n(node)].core.is_some() {
            let _ = cluster.read(node, step);
        }
        if let Some(leader) = cluster.leader() {
            for _ in 0..cluster.rng.random_range(0..5) {
                let _ = cluster.propose(leader);
            }
        }
        let pause = cluster.rng.random_range(1..60) * MS;
        cluster.run_for(pause);
        observe(&cluster);
    }
    recover(&mut cluster, size);
    observe(&cluster);
    cluster
}

fn disturb(cluster: &mut Cluster, size: u64) {
    let node = cluster.rng.random_range(1..=size);
    let other = cluster.rng.random_range(1..=size);
    match cluster.rng.random_range(0..20) {
        0 | 1 if cluster.nodes[&n(node)].core.is_some() => cluster.crash(n(node)),
        2 => cluster.isolate(node),
        3 if node != other => cluster.cut_link(node, other),
        4 if node != other => {
            cluster.cut.insert((n(node), n(other)));
        }
        5..=7 => cluster.heal(),
        8 if node != other => {
            cluster.input(n(node), |core, now| core.transfer(now, n(other)));
        }
        9 if node != other => {
            cluster.input(n(node), |core, now| core.unreachable(now, n(other)));
        }
        10 if node != other => {
            cluster.input(n(node), |core, now| core.reachable(now, n(other)));
        }
        11..=13 => restart_all(cluster),
        _ => {}
    }
}

fn restart_all(cluster: &mut Cluster) {
    let down: Vec<NodeId> = cluster.nodes.iter().filter(|(_, node)| node.core.is_none()).map(|(id, _)| *id).collect();
    for node in down {
        let known = cluster.rng.random_range(0..=cluster.committed.len() as u64);
        let held = cluster.nodes[&node].disk.entries.iter().zip(&cluster.committed);
        let agreed = held.take_while(|(entry, committed)| entry.id == **committed).count() as u64;
        cluster.start(node, Index(known.min(agreed)));
    }
}

/// The network heals, everybody is up: a leader, a commit that reaches all, and equal logs must follow.
fn recover(cluster: &mut Cluster, size: u64) {
    let seed = cluster.seed;
    cluster.heal();
    cluster.drop_percent = 0;
    restart_all(cluster);
    let mut proposed = None;
    let recovered = cluster
        .run_while(20_000 * MS, |cluster| cluster.leader().is_some_and(|leader| cluster.core(leader).is_established()));
    assert!(recovered, "seed {seed}: no leader");
    cluster.run_for(1_000 * MS);
    for _ in 0..50 {
        let leader = cluster.elect();
        if let Ok(id) = cluster.propose(leader) {
            proposed = Some(id);
            break;
        }
        cluster.run_for(100 * MS);
    }
    let id = proposed.unwrap_or_else(|| panic!("seed {seed}: no proposal is taken"));
    let all = |cluster: &Cluster| (1..=size).all(|node| cluster.core(node).commit() >= id.index);
    assert!(cluster.run_while(10_000 * MS, all), "seed {seed}: {id} does not reach everybody");
    for node in 1..=size {
        let alarms = cluster.alarms(node);
        let grave = alarms.iter().find(|alarm| !matches!(alarm, Alarm::DiskStalled { .. }));
        assert_eq!(grave, None, "seed {seed}: node {node}");
    }
}
