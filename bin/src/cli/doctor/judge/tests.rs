use std::collections::BTreeMap;

use graven_net::client::{ClusterStatus, MemberList, MemberRole, NodeHealth, NodeRole, NodeState, NodeStatus};
use graven_net::protocol::{Behind, MemberEntry, PeerHealth, SocketHealth};

use super::super::facts::{ClusterFacts, FileFacts, LogIs, NodeFacts};
use super::*;

/// 2030-01-01.
const NOW_MS: u64 = 1_893_456_000_000;

fn place() -> PlaceHealth {
    PlaceHealth {
        filesystem: "ext4".into(),
        total_bytes: 100 << 30,
        free_bytes: 50 << 30,
        reserve_bytes: 128 << 20,
        sync: "fdatasync".into(),
        ..PlaceHealth::default()
    }
}

fn status(id: u64) -> NodeStatus {
    NodeStatus {
        id: Some(id),
        reachable: true,
        role: if id == 1 { NodeRole::Leader } else { NodeRole::Follower },
        state: Some(NodeState::Ok),
        commit_index: Some(100),
        durable_index: Some(100),
        peer_address: Some(format!("h{id}:5470")),
        version: Some("0.1.0".into()),
        uptime_ms: Some(3_600_000),
        certificate_expires: Some("2031-01-01T00:00:00Z".into()),
        ..NodeStatus::unreachable(format!("n{id}"), Some(format!("h{id}:5471")))
    }
}

fn node(id: u64) -> NodeFacts {
    let peer = |peer| PeerHealth { id: peer, up: true, feature_level: 1, rtt_us: Some(80) };
    let health = NodeHealth {
        clock_ms: NOW_MS + 5,
        feature_level: 1,
        feature_level_known: 1,
        uptime_ms: 3_600_000,
        elections: 1,
        written_bytes: 1 << 20,
        socket: SocketHealth { wanted: 4 << 20, receive: 4 << 20, send: 4 << 20 },
        syncs: SyncHealth { count: 500, p50_us: 300, p99_us: 2000, max_us: 9000 },
        peers: (1..=3).filter(|other| *other != id).map(peer).collect(),
        open_files: Some(Usage { used: 40, limit: 65_536 }),
        place: Some(place()),
        ..NodeHealth::default()
    };
    NodeFacts { health, asked_ms: NOW_MS, answered_ms: NOW_MS + 10 }
}

fn voter(id: u64) -> MemberEntry {
    let (name, incarnation) = (format!("n{id}"), "0".repeat(32));
    let (address, peer_address) = (format!("h{id}:5471"), format!("h{id}:5470"));
    MemberEntry { name, id, role: MemberRole::Voter, address, peer_address, incarnation }
}

/// A cluster of three with which nothing is wrong.
fn well() -> ClusterFacts {
    let status = ClusterStatus {
        cluster_id: Some("c".repeat(32)),
        leader: Some("n1".into()),
        nodes: (1..=3).map(status).collect(),
    };
    let far = Some("2035-01-01T00:00:00Z".to_owned());
    ClusterFacts {
        earlier: status.clone(),
        status,
        nodes: (1..=3).map(|id| (format!("n{id}"), node(id))).collect::<BTreeMap<_, _>>(),
        members: Some(MemberList { members: (1..=3).map(voter).collect(), changing: false }),
        client: Credentials { certificate_expires: far.clone(), ca_expires: far, readable_keys: Vec::new() },
        refused: None,
    }
}

fn found(change: impl FnOnce(&mut ClusterFacts)) -> Vec<Finding> {
    let mut cluster = well();
    change(&mut cluster);
    judge(&Facts { now_ms: NOW_MS, cluster: Some(cluster), files: None })
}

/// The one finding, as level, code and node.
#[track_caller]
fn one(findings: &[Finding]) -> (Level, &'static str, Option<&str>) {
    assert_eq!(findings.len(), 1, "{findings:#?}");
    assert!(!findings[0].what.is_empty() && !findings[0].advice.is_empty());
    (findings[0].level, findings[0].code, findings[0].node.as_deref())
}

#[track_caller]
fn health(change: impl FnOnce(&mut NodeHealth)) -> (Level, &'static str) {
    let findings = found(|cluster| change(&mut cluster.nodes.get_mut("n2").expect("there").health));
    let (level, code, node) = one(&findings);
    assert_eq!(node, Some("n2"));
    (level, code)
}

fn disk(change: impl FnOnce(&mut PlaceHealth)) -> (Level, &'static str) {
    health(|health| change(health.place.as_mut().expect("there")))
}

#[test]
fn nothing_is_found_where_nothing_is_wrong() {
    assert_eq!(found(|_| ()), []);
    assert_eq!(exit_code(&[]), 0);
}

#[test]
fn leaders_and_nodes_that_are_missing_are_errors() {
    let findings = found(|cluster| cluster.status.leader = None);
    assert_eq!(one(&findings), (Level::Error, "no_leader", None));
    assert_eq!(exit_code(&findings), 3);
    let findings = found(|cluster| {
        cluster.status.nodes[1] = NodeStatus::unreachable("n2", Some("h2:5471".into()));
        cluster.nodes.remove("n2");
    });
    assert_eq!(one(&findings), (Level::Error, "unreachable", Some("n2")));
    assert!(findings[0].what.contains("h2:5471"));
}

#[test]
fn states_of_a_node_are_told_and_damage_decides_the_exit_status() {
    let state = |state| found(|cluster| cluster.status.nodes[1].state = Some(state));
    assert_eq!(one(&state(NodeState::Damaged)), (Level::Error, "damaged", Some("n2")));
    assert_eq!(one(&state(NodeState::Recovering)), (Level::Warning, "recovering", Some("n2")));
    assert_eq!(one(&state(NodeState::DiskFull)), (Level::Error, "disk_full", Some("n2")));
    assert_eq!(exit_code(&state(NodeState::Recovering)), 0, "a warning is no error");
    assert_eq!(exit_code(&state(NodeState::DiskFull)), 4);
    let both = found(|cluster| {
        cluster.status.leader = None;
        cluster.status.nodes[1].state = Some(NodeState::Damaged);
    });
    assert_eq!(exit_code(&both), 6);
    let findings = found(|cluster| cluster.status.nodes[2].trouble = Some("node 3 runs already".into()));
    assert_eq!((one(&findings), exit_code(&findings)), ((Level::Error, "disowned", Some("n3")), 5));
}

#[test]
fn lag_is_what_was_committed_before_and_is_still_missing() {
    let grown = |cluster: &mut ClusterFacts, durable| {
        cluster.status.nodes.iter_mut().for_each(|node| node.commit_index = Some(90_000));
        cluster.status.nodes[2].durable_index = Some(durable);
    };
    assert_eq!(found(|cluster| grown(cluster, 100)), [], "it has what was committed at the first look");
    let findings = found(|cluster| grown(cluster, 60));
    assert_eq!(one(&findings), (Level::Warning, "lag", Some("n3")));
    assert!(findings[0].what.contains("40 entries"));
}

#[test]
fn votes_that_are_too_few_or_of_no_use_are_told() {
    let voters = |count: u64| {
        found(|cluster| cluster.members.as_mut().expect("there").members = (1..=count).map(voter).collect())
    };
    assert_eq!(one(&voters(1)), (Level::Warning, "few_voters", None));
    assert_eq!(one(&voters(2)), (Level::Warning, "few_voters", None));
    assert_eq!(voters(3), []);
    assert_eq!(one(&voters(4)), (Level::Note, "even_voters", None));
    let changing = found(|cluster| cluster.members.as_mut().expect("there").changing = true);
    assert_eq!(one(&changing), (Level::Note, "changing", None));
}

#[test]
fn a_clock_is_judged_beyond_what_the_way_there_explains() {
    let clock = |by: i64, took: u64| {
        found(|cluster| {
            let node = cluster.nodes.get_mut("n2").expect("there");
            node.answered_ms = node.asked_ms + took;
            node.health.clock_ms = node.asked_ms.saturating_add_signed(by);
        })
    };
    assert_eq!(clock(400, 10), []);
    assert_eq!(one(&clock(700, 10)), (Level::Warning, "clock", Some("n2")));
    assert_eq!(one(&clock(-6000, 10)), (Level::Error, "clock", Some("n2")));
    assert_eq!(clock(1700, 2500), [], "the answer took two seconds and a half");
    let here = found(|cluster| cluster.nodes.values_mut().for_each(|node| node.health.clock_ms += 9000));
    assert_eq!(one(&here), (Level::Warning, "clock", None), "all nodes agree: it is this host's");
    assert!(here[0].what.contains("behind"), "{}", here[0].what);
}

#[test]
fn certificates_are_told_of_before_they_end() {
    let node = |ends: &str| found(|cluster| cluster.status.nodes[0].certificate_expires = Some(ends.into()));
    assert_eq!(node("2030-02-01T00:00:00Z"), []);
    assert_eq!(one(&node("2030-01-20T00:00:00Z")), (Level::Warning, "certificate", Some("n1")));
    let over = node("2029-12-31T00:00:00Z");
    assert_eq!((one(&over), exit_code(&over)), ((Level::Error, "certificate", Some("n1")), 5));
    let client = found(|cluster| cluster.client.certificate_expires = Some("2030-01-02T00:00:00Z".into()));
    assert_eq!(one(&client), (Level::Warning, "certificate", None));
    let authority = found(|cluster| cluster.client.ca_expires = Some("2030-03-01T00:00:00Z".into()));
    assert_eq!(one(&authority), (Level::Warning, "certificate", None));
    let refused = found(|cluster| cluster.refused = Some("it is of another cluster".into()));
    assert_eq!((one(&refused), exit_code(&refused)), ((Level::Error, "certificate_refused", None), 5));
}

#[test]
fn disks_are_judged_by_kind_room_and_speed() {
    assert_eq!(disk(|place| place.filesystem = "tmpfs".into()), (Level::Error, "memory_disk"));
    assert_eq!(disk(|place| place.filesystem = "nfs".into()), (Level::Warning, "network_disk"));
    assert_eq!(disk(|place| place.sync = "none".into()), (Level::Error, "no_sync"));
    assert_eq!(disk(|place| place.free_bytes = 100 << 20), (Level::Error, "disk_space"));
    assert_eq!(disk(|place| place.free_bytes = 4 << 30), (Level::Warning, "disk_space"));
    assert_eq!(disk(|place| place.quarantined = vec!["quarantine-1".into()]), (Level::Warning, "quarantine"));
    assert_eq!(disk(|place| (place.cut_files, place.cut_bytes) = (2, 4096)), (Level::Note, "cut_files"));
    assert_eq!(disk(|place| place.readable_keys = vec!["node.key".into()]), (Level::Warning, "readable_keys"));
    assert_eq!(health(|health| health.place = None), (Level::Warning, "disk_stalled"));
    assert_eq!(health(|health| health.syncs.p99_us = 80_000), (Level::Warning, "slow_sync"));
    // 50 G free, 10 G written an hour.
    assert_eq!(health(|health| health.written_bytes = 10 << 30), (Level::Warning, "disk_space"));
    let young = found(|cluster| {
        let health = &mut cluster.nodes.get_mut("n2").expect("there").health;
        (health.written_bytes, health.uptime_ms) = (10 << 30, 60_000);
    });
    assert_eq!(young, [], "a minute says little about a day");
}

#[test]
fn sockets_files_elections_and_peers_are_judged() {
    assert_eq!(health(|health| health.socket.receive = 212_992), (Level::Warning, "socket_buffers"));
    let files = |used, limit| health(|health| health.open_files = Some(Usage { used, limit }));
    assert_eq!(files(40, 256), (Level::Warning, "open_files"));
    assert_eq!(files(60_000, 65_536), (Level::Warning, "open_files"));
    assert_eq!(health(|health| health.elections = 5), (Level::Warning, "elections"));
    let calm = found(|cluster| {
        let health = &mut cluster.nodes.get_mut("n2").expect("there").health;
        (health.elections, health.uptime_ms) = (9, 100 * 3_600_000);
    });
    assert_eq!(calm, [], "nine elections in a hundred hours");
    assert_eq!(health(|health| health.peers[1].up = false), (Level::Warning, "peer_down"));
    let starting = found(|cluster| {
        cluster.nodes.get_mut("n2").expect("there").health.peers[1].up = false;
        cluster.status.nodes[2].uptime_ms = Some(1000);
    });
    assert_eq!(starting, [], "n3 has just started");
}

#[test]
fn versions_and_levels_that_differ_are_told() {
    let versions = found(|cluster| cluster.status.nodes[2].version = Some("0.2.0".into()));
    assert_eq!(one(&versions), (Level::Warning, "versions", None));
    assert!(versions[0].what.contains("0.2.0 on n3"));
    let levels = found(|cluster| {
        for name in ["n1", "n3"] {
            cluster.nodes.get_mut(name).expect("there").health.feature_level_known = 2;
        }
    });
    assert_eq!(one(&levels), (Level::Note, "feature_level", None));
    assert!(levels[0].what.contains("n2"));
    let silent = found(|cluster| drop(cluster.nodes.remove("n2")));
    assert_eq!(one(&silent), (Level::Note, "no_health", Some("n2")));
}

fn files(log: LogIs) -> Vec<Finding> {
    let far = Some("2035-01-01T00:00:00Z".to_owned());
    let files = FileFacts {
        name: "n2".into(),
        config: "n2/graven.toml".into(),
        data_dir: "n2/data".into(),
        place: place(),
        syncs: Some(SyncHealth { count: 16, p50_us: 200, p99_us: 900, max_us: 900 }),
        credentials: Credentials { certificate_expires: far.clone(), ca_expires: far, readable_keys: Vec::new() },
        log,
        open_files: None,
    };
    judge(&Facts { now_ms: NOW_MS, cluster: None, files: Some(files) })
}

#[test]
fn logs_on_disk_are_judged_by_what_a_start_would_find() {
    assert_eq!(files(LogIs::Running), []);
    let stopped = files(LogIs::Whole { torn_bytes: 0 });
    assert_eq!((one(&stopped), exit_code(&stopped)), ((Level::Note, "not_running", Some("n2")), 0));
    assert_eq!(files(LogIs::Whole { torn_bytes: 9 }).len(), 2);
    let damaged = files(LogIs::Damaged(vec!["segment 1 bytes 0..512".into()]));
    assert_eq!((one(&damaged), exit_code(&damaged)), ((Level::Error, "damaged", Some("n2")), 6));
    for (log, code) in [
        (LogIs::NotOurs("empty".into()), "data_directory"),
        (LogIs::Newer("version 7".into()), "newer_format"),
        (LogIs::Unreadable("no permission".into()), "unreadable"),
    ] {
        let findings = files(log);
        assert_eq!((one(&findings), exit_code(&findings)), ((Level::Error, code, Some("n2")), 2));
    }
}

#[test]
fn findings_come_worst_first() {
    let findings = found(|cluster| {
        cluster.members.as_mut().expect("there").members.push(voter(4));
        cluster.status.nodes[2].state = Some(NodeState::Damaged);
        cluster.status.nodes[1].state = Some(NodeState::Recovering);
    });
    let levels: Vec<Level> = findings.iter().map(|finding| finding.level).collect();
    assert_eq!(levels, [Level::Error, Level::Warning, Level::Note]);
}

#[test]
fn a_follower_that_keeps_falling_behind_is_found_and_one_that_was_given_one_checkpoint_is_not() {
    let with = |checkpoints, growing_ms| {
        let behind = Behind { lag_entries: 900, checkpoints, growing_ms };
        found(|cluster| cluster.status.nodes[1].behind = Some(behind))
    };
    assert_eq!(with(1, 9_000), []);
    assert_eq!(one(&with(2, 0)), (Level::Warning, "falling_behind", Some("n2")));
    assert_eq!(one(&with(0, 10_000)), (Level::Warning, "falling_behind", Some("n2")));
}
