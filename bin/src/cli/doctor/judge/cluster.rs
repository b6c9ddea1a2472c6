//! What is wrong with a cluster as a whole, and with each node as it tells.

use std::collections::BTreeSet;

use graven_net::client::{MemberRole, NodeState, NodeStatus};

use super::super::facts::{ClusterFacts, NodeFacts};
use super::node::judge_node;
use super::{Found, Level};
use crate::cli::status::falling_words;

pub(super) fn judge(cluster: &ClusterFacts, now_ms: u64, found: &mut Found) {
    if let Some(refused) = &cluster.refused {
        let advice = "`graven certs check` shows whose certificate is what; make a new one with `graven certs`";
        found.add(Level::Error, "certificate_refused", None, refused.clone(), advice);
    }
    found.credentials(None, "this client", &cluster.client, now_ms, "make a new one with `graven certs client`");
    let silent = cluster.status.nodes.iter().filter(|node| !node.reachable).count();
    if cluster.status.leader.is_none() && cluster.refused.is_none() {
        let (all, up) = (cluster.status.nodes.len(), cluster.status.nodes.len() - silent);
        let advice = "start nodes with their own data until a majority is up; if their disks are gone for good, see \"Majority lost\" in docs/operations.md";
        found.add(Level::Error, "no_leader", None, format!("nobody leads; {up} of {all} nodes answer"), advice);
    }
    members(cluster, found);
    for node in &cluster.status.nodes {
        judge_status(cluster, node, now_ms, found);
        match cluster.nodes.get(&node.name) {
            Some(facts) => judge_node(&node.name, facts, found),
            None if node.reachable => {
                let what = "it does not say how its disk, clock and peers are";
                found.add(
                    Level::Note,
                    "no_health",
                    Some(&node.name),
                    what,
                    "upgrade it, or look again when it is less busy",
                );
            }
            None => {}
        }
    }
    clocks(cluster, found);
    differences(cluster, found);
    peers(cluster, found);
}

fn judge_status(cluster: &ClusterFacts, node: &NodeStatus, now_ms: u64, found: &mut Found) {
    let who = Some(node.name.as_str());
    if !node.reachable {
        let at = node.address.as_deref().unwrap_or("an unknown address");
        let advice = "start it, or look at its last log line and at the UDP ports between it and here";
        found.add(Level::Error, "unreachable", who, format!("it does not answer at {at}"), advice);
        return;
    }
    match node.state {
        Some(NodeState::Damaged) => found.add(
            Level::Error,
            "damaged",
            who,
            "its log is damaged, and no peer has had the missing entries so far",
            "keep its directory, bring the other nodes back, and see \"Rot\" in docs/operations.md",
        ),
        Some(NodeState::Recovering) => found.add(
            Level::Warning,
            "recovering",
            who,
            "it fetches what its log lacks from its peers, and has no vote until then",
            "wait, and do not stop another node; if it does not end, read its log",
        ),
        Some(NodeState::DiskFull) => found.add(
            Level::Error,
            "disk_full",
            who,
            "only the reserve of its disk is left: it takes no records",
            "enlarge the file system, remove other things from it, or `graven trim`; it goes on by itself",
        ),
        Some(NodeState::Ok) | None => {}
    }
    if let Some(trouble) = &node.trouble {
        found.add(Level::Error, "disowned", who, trouble.clone(), "stop whichever of the two is the copy");
    }
    let renew = format!("make a new one with `graven certs node {}`", node.name);
    let whose = format!("the certificate of {}", node.name);
    found.certificate(who, &whose, node.certificate_expires.as_deref(), super::NEAR_DAYS, now_ms, &renew);
    lag(cluster, node, found);
    if let Some(words) = node.behind.as_ref().and_then(falling_words) {
        let advice = "make its disk and the network to it as fast as those of the others, append more slowly, or keep more of the log ([retention]) if it is away for long";
        found.add(Level::Warning, "falling_behind", Some(&node.name), words, advice);
    }
}

/// Not how many entries are missing at one moment, which under load says nothing: what was committed at the first look is not
/// there at the second.
fn lag(cluster: &ClusterFacts, node: &NodeStatus, found: &mut Found) {
    let committed = cluster.earlier.nodes.iter().filter_map(|node| node.commit_index).max();
    let (Some(committed), Some(durable)) = (committed, node.durable_index) else { return };
    if durable < committed {
        let seconds = super::super::LOOK_AGAIN.as_secs_f32();
        let what = format!("it lacks {} entries that were committed {seconds} s ago", committed - durable);
        let advice = "wait if it has just started; else look at its disk, and at the network between it and the leader";
        found.add(Level::Warning, "lag", Some(&node.name), what, advice);
    }
}

fn members(cluster: &ClusterFacts, found: &mut Found) {
    let Some(members) = &cluster.members else { return };
    if members.changing {
        let advice =
            "it takes a moment; if it does not end, a majority of the old or of the new voters is down: start them";
        found.add(Level::Note, "changing", None, "a change of voters is under way", advice);
        return;
    }
    let voters = members.members.iter().filter(|member| member.role == MemberRole::Voter).count();
    if voters < VOTERS_MIN {
        let what = format!("{voters} of the members vote: the loss of one node stops the cluster");
        found.add(
            Level::Warning,
            "few_voters",
            None,
            what,
            "add nodes with `graven member add` and `promote`, to three at least",
        );
    } else if voters.is_multiple_of(2) {
        let what = format!("{voters} members vote: no more of them may be lost than of {}", voters - 1);
        found.add(
            Level::Note,
            "even_voters",
            None,
            what,
            "add or remove one; each append waits for one voter more than it must",
        );
    }
}

fn clocks(cluster: &ClusterFacts, found: &mut Found) {
    let off: Vec<(&String, i64, i64)> = cluster
        .nodes
        .iter()
        .map(|(name, node)| (name, node.clock()))
        .map(|(name, (by, error))| (name, by, error))
        .collect();
    let beyond = |by: i64, error: i64| by.abs() - error;
    let is_off = |(_, by, error): &&(&String, i64, i64)| beyond(*by, *error) >= CLOCK_WARNING_MS;
    let (low, high) = (off.iter().map(|it| it.1).min().unwrap_or(0), off.iter().map(|it| it.1).max().unwrap_or(0));
    let level = |by: i64| if by.abs() >= CLOCK_ERROR_MS { Level::Error } else { Level::Warning };
    let advice =
        "set up time synchronisation (chrony, systemd-timesyncd): certificates and the records' timestamps go by it";
    // All nodes agree and this host does not: then it is this host. An error of its clock is no error of the cluster.
    if off.len() > 1 && off.iter().filter(is_off).count() == off.len() && high - low < CLOCK_WARNING_MS {
        let what = format!("this host's clock is {} the nodes' clocks", apart(-low));
        found.add(Level::Warning, "clock", None, what, advice);
        return;
    }
    for (name, by, _) in off.iter().filter(is_off) {
        let what = format!("its clock is {} this host's", apart(*by));
        found.add(level(*by), "clock", Some(name), what, advice);
    }
}

fn apart(by_ms: i64) -> String {
    let seconds = by_ms.unsigned_abs() as f64 / 1000.0;
    format!("{seconds:.1} s {}", if by_ms < 0 { "behind" } else { "ahead of" })
}

fn differences(cluster: &ClusterFacts, found: &mut Found) {
    let told = |node: &NodeStatus| Some(format!("{} on {}", node.version.as_ref()?, node.name));
    let versions: BTreeSet<&String> = cluster.status.nodes.iter().filter_map(|node| node.version.as_ref()).collect();
    if versions.len() > 1 {
        let each: Vec<String> = cluster.status.nodes.iter().filter_map(told).collect();
        let what = format!("the nodes run different versions: {}", each.join(", "));
        found.add(
            Level::Warning,
            "versions",
            None,
            what,
            "go on with the upgrade: one node after another, the leader last",
        );
    }
    let known = |node: &NodeFacts| node.health.feature_level_known;
    let highest = cluster.nodes.values().map(known).max().unwrap_or(0);
    let in_force = cluster.nodes.values().map(|node| node.health.feature_level).max().unwrap_or(0);
    let older: Vec<&str> =
        cluster.nodes.iter().filter(|(_, node)| known(node) < highest).map(|(name, _)| name.as_str()).collect();
    if !older.is_empty() {
        let what = format!(
            "the feature level stays at {in_force}, though level {highest} is known: not to {}",
            older.join(", ")
        );
        found.add(Level::Note, "feature_level", None, what, "upgrade them; the level goes up by itself");
    }
}

/// Members that answer here and do not reach each other.
fn peers(cluster: &ClusterFacts, found: &mut Found) {
    let by_id = |id: u64| cluster.status.nodes.iter().find(|node| node.id == Some(id) && node.reachable);
    for (name, node) in &cluster.nodes {
        // What just started has not dialled everybody yet.
        let settled = node.health.uptime_ms >= SETTLED_MS;
        for other in node.health.peers.iter().filter(|peer| settled && !peer.up).filter_map(|peer| by_id(peer.id)) {
            // Whoever just started is dialled again within seconds.
            if other.uptime_ms.is_some_and(|ms| ms < SETTLED_MS) {
                continue;
            }
            let at = other.peer_address.as_deref().unwrap_or("its address");
            let what = format!("it does not reach {} at {at}, which answers here", other.name);
            let advice = format!("let UDP pass from {name} to {at}; the log of {name} says why it fails");
            found.add(Level::Warning, "peer_down", Some(name), what, advice);
        }
    }
}

/// With fewer, one loss stops the cluster.
const VOTERS_MIN: usize = 3;
/// Far beyond what time synchronisation leaves, far below what a certificate's dates mind.
const CLOCK_WARNING_MS: i64 = 500;
/// Trims by age are refused beyond this.
const CLOCK_ERROR_MS: i64 = 5000;
/// Longer than any connection takes to be made again.
const SETTLED_MS: u64 = 10_000;
