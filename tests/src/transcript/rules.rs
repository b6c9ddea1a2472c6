//! Where our protocol differs by intent: rules that excuse a line, each with the reason why the protocols differ.
//!
//! A rule looks at what happened in our cluster, never at which transcript it is, and excuses only the one way in which such a thing may
//! show. Whatever else stands in the same step must match.
//!
//! | rule | ours | theirs |
//! |---|---|---|
//! | `in-force-on-append` | a membership decides from the moment it stands in the log (Raft paper 6) | from the moment it is applied, so the old voters commit the change |
//! | `removed-leader` | a leader outside of the membership stops when that is committed (Raft paper 6) | goes on leading, or stops when it has applied the change and told everybody |
//! | `removed-node` | a leader says nothing more to a node from the entry on that removes it | until it has applied that entry, so the node learns that it is committed |
//! | `compared-after-install` | after an install a follower counts for what it was compared with, from the leader's first entry on | it counts for the snapshot it says it has |

use graven_raft::{Follower, Index, Membership, NodeId, Role, quorum};

use super::cluster::Cluster;
use super::facts::Told;
use super::node::Node;

/// A rule that applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Excuse {
    pub(crate) name: &'static str,
}

const IN_FORCE_ON_APPEND: Excuse = Excuse { name: "in-force-on-append" };
const REMOVED_LEADER: Excuse = Excuse { name: "removed-leader" };
const REMOVED_NODE: Excuse = Excuse { name: "removed-node" };
const COMPARED_AFTER_INSTALL: Excuse = Excuse { name: "compared-after-install" };

/// Whether a line that differs may.
pub(crate) fn excuse_line(command: &str, expected: &str, got: &str, cluster: &Cluster) -> Option<Excuse> {
    match command {
        "raft-state" => excuse_state(&State::parse(expected)?, &State::parse(got)?, cluster),
        "status" => excuse_progress(expected, got, cluster),
        _ => None,
    }
}

/// Whether what was printed about a node may differ, at the moment it was printed. `told_of` is the commit index last told of another.
pub(crate) fn excuse_told(
    node: NodeId,
    expected: &Told,
    got: &Told,
    cluster: &Cluster,
    told_of: impl Fn(NodeId) -> Option<u64>,
) -> Option<Excuse> {
    let ([term, vote, commit], [our_term, our_vote, our_commit]) = (expected.hard?, got.hard?);
    if (term, vote) != (our_term, our_vote) {
        return None;
    }
    let (behind, same_role) = (our_commit < commit, expected.role == got.role);
    if let Some(leader) = leader(cluster).filter(|_| our_commit != commit) {
        let removed = learned_nothing_since_removal(node, Index(our_commit), cluster);
        if removed && same_role && behind && Index(commit) <= leader.core.commit() {
            return Some(REMOVED_NODE);
        }
        let theirs = commit_there(leader);
        let follows = if leader.id == node { commit == theirs.0 } else { commit <= theirs.0 };
        // One of the two has committed the last change and the other has not.
        let at = membership_index(leader);
        let between = at > theirs.min(leader.core.commit()) && at <= theirs.max(leader.core.commit());
        if between && follows && (same_role || stops_leading(expected, got, node, leader)) {
            return Some(IN_FORCE_ON_APPEND);
        }
    }
    if our_commit > commit {
        return None;
    }
    let ended = cluster.nodes.iter().find(|one| led_outside_last(one, cluster))?;
    let went_on = ended.id == node && expected.role.as_deref() == Some("StateLeader");
    let led = told_of(ended.id).filter(|_| ended.id != node).unwrap_or(u64::MAX);
    let known = commit <= led.min(ended.core.last_id().index.0);
    let differs = (behind || !same_role) && (same_role || went_on);
    (term == ended.led_outside?.0 && differs && known).then_some(REMOVED_LEADER)
}

/// A line of `raft-state`.
struct State<'a> {
    node: u64,
    role: &'a str,
    voter: bool,
    term: &'a str,
    leader: u64,
}

impl State<'_> {
    fn parse(line: &str) -> Option<State<'_>> {
        let (node, rest) = line.split_once(": ")?;
        let [role, voter, term, leader] = rest.split(' ').collect::<Vec<_>>()[..] else { return None };
        let leader = leader.strip_prefix("Lead:")?.parse().ok()?;
        let voter = match voter {
            "(Voter)" => true,
            "(Non-Voter)" => false,
            _ => return None,
        };
        Some(State { node: node.parse().ok()?, role, voter, term, leader })
    }
}

fn excuse_state(expected: &State<'_>, got: &State<'_>, cluster: &Cluster) -> Option<Excuse> {
    if (expected.node, expected.term) != (got.node, got.term) {
        return None;
    }
    let id = NodeId(got.node);
    let node = cluster.node(got.node).ok()?;
    let same_role = (expected.role, expected.leader) == (got.role, got.leader);
    let in_force = node.core.membership();
    let at = membership_index(node);
    let applied_here = at <= node.core.applied_index();
    if let Some(applied_there) =
        leader(cluster).map(|leader| at <= commit_there(leader)).filter(|&there| there != applied_here)
    {
        let stops = expected.role == "StateFollower" && expected.leader == 0 && got.role == "StateLeader";
        let before = node.memberships().into_values().rev().nth(1);
        let there = if applied_there { Some(in_force) } else { before };
        let voter = there.is_some_and(|there| there.is_voter(id));
        let stops = applied_there && stops && !in_force.contains(id);
        return (expected.voter == voter && (same_role || stops)).then_some(IN_FORCE_ON_APPEND);
    }
    if same_role && !expected.voter && got.voter && learned_nothing_since_removal(id, node.core.commit(), cluster) {
        return Some(REMOVED_NODE);
    }
    let led = expected.role == "StateLeader" && expected.leader == expected.node;
    let went_on = led && got.role == "StateFollower" && got.leader == 0;
    (went_on && expected.voter == got.voter && led_outside_last(node, cluster)).then_some(REMOVED_LEADER)
}

fn excuse_progress(expected: &str, got: &str, cluster: &Cluster) -> Option<Excuse> {
    let matched = |line: &str| -> Option<(String, u64)> {
        let (head, rest) = line.split_once(" match=")?;
        let (matched, tail) = rest.split_once(' ')?;
        Some((format!("{head} {tail}"), matched.parse().ok()?))
    };
    let ((rest, theirs), (our_rest, ours)) = (matched(expected)?, matched(got)?);
    let follower = NodeId(got.split_once(':')?.0.parse().ok()?);
    let leader = leader(cluster)?;
    let installed =
        leader.sent_snapshots.contains_key(&follower) && cluster.node(follower.0).ok()?.installed == Index(theirs);
    let from_first = leader.core.base().index == Index(ours) && ours < theirs;
    (rest == our_rest && installed && from_first).then_some(COMPARED_AFTER_INSTALL)
}

/// The leader of the highest term.
fn leader(cluster: &Cluster) -> Option<&Node> {
    cluster.nodes.iter().filter(|node| node.core.role() == Role::Leader).max_by_key(|node| node.core.term())
}

fn membership_index(node: &Node) -> Index {
    node.core.memberships().last().map_or(Index(0), |entry| entry.0)
}

/// Whether a leader's log removed `node` by an entry that theirs has committed and the node does not know to be committed.
fn learned_nothing_since_removal(node: NodeId, commit: Index, cluster: &Cluster) -> bool {
    let Some(leader) = leader(cluster).filter(|leader| leader.id != node) else { return false };
    let theirs = commit_there(leader);
    let removes = |(&at, membership): (&Index, &&Membership)| at > commit && at <= theirs && !membership.contains(node);
    leader.memberships().iter().any(removes)
}

/// What theirs has committed of this leader's log, as far as the leader knows who holds what: a membership decides once it is
/// committed by the one before it.
fn commit_there(leader: &Node) -> Index {
    let followers: Vec<Follower> = leader.core.progress().collect();
    let held = |node: NodeId| {
        let matched = followers.iter().find(|one| one.node == node).map(|one| one.matched);
        matched.unwrap_or(if node == leader.id { leader.core.durable_index() } else { Index(0) })
    };
    let mut commit = Index(0);
    for (at, membership) in leader.memberships() {
        if commit > Index(0) && commit < at {
            break;
        }
        commit = commit.max(quorum::reached(membership, held).unwrap_or_default());
    }
    commit
}

/// There a leader has applied its own removal and stopped; here that entry is not committed yet.
fn stops_leading(expected: &Told, got: &Told, node: NodeId, leader: &Node) -> bool {
    let (theirs, ours) = (expected.role.as_deref(), got.role.as_deref());
    let outside = leader.id == node && !leader.core.membership().contains(node);
    theirs == Some("StateFollower") && ours == Some("StateLeader") && outside
}

/// Whether this node stopped leading because it was outside, and nobody led a later term since.
fn led_outside_last(node: &Node, cluster: &Cluster) -> bool {
    let ended = node.led_outside.filter(|&term| term == node.core.term());
    ended.is_some_and(|term| cluster.nodes.iter().all(|other| other.core.term() <= term))
}
