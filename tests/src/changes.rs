//! A change of the members, with a crash between every two steps of it; and the one after a data directory was wiped.

use graven::members::MemberRole;
use graven::members::change::MemberChange;

use crate::check::Checked;
use crate::cluster::{Cluster, Event};
use crate::faults::newcomer;
use crate::node::Node;
use crate::profile::Profile;
use crate::trace::{Trace, TraceTo};

/// Members may change, and nothing does so by itself.
const BY_HAND: Profile = Profile { name: "by hand", member_us: 1, ..Profile::CALM };
/// Events of a calm change of voters, and some more: then it is over.
const STEPS: u64 = 120;

/// Whether the members in force have one of this name in this role, and no change of voters is under way.
fn has(cluster: &Cluster, name: &str, role: MemberRole) -> bool {
    let settled = cluster.members().filter(|members| !members.is_joint());
    settled.and_then(|members| members.by_name(name)).is_some_and(|member| member.role == role)
}

/// Asks for a change once, and waits for what comes of it. Refused while the leader's first entry is not committed, or the learner has not
/// caught up: asked for again.
fn ask(cluster: &mut Cluster, change: &MemberChange, name: &str, role: MemberRole) -> Checked {
    cluster.run_while(|cluster| cluster.leader().is_none())?;
    if let Some(leader) = cluster.leader() {
        cluster.ask_change(leader, change.clone());
    }
    let until = cluster.stats.steps + 400;
    cluster.run_while(|cluster| !has(cluster, name, role) && cluster.stats.steps < until)
}

/// Replaces `old` by a learner, lets `steps` events pass, and crashes whoever leads then, or `victim`. Afterwards the change
/// must be made whole or not at all, on all nodes, and may be asked for again.
fn crash_within(seed: u64, old: u64, victim: Option<u64>, steps: u64, power: bool) -> Checked {
    let mut cluster = Cluster::new(seed, 3, BY_HAND, Trace::new(TraceTo::Hash));
    cluster.run_while(|cluster| cluster.leader().is_none() || cluster.committed_records() < 5)?;
    while !has(&cluster, "n4", MemberRole::Learner) {
        ask(&mut cluster, &MemberChange::Add(newcomer(4)), "n4", MemberRole::Learner)?;
    }
    let replace = MemberChange::Replace { old: format!("n{old}"), new: "n4".to_owned() };
    if let Some(leader) = cluster.leader() {
        cluster.ask_change(leader, replace.clone());
    }
    for _ in 0..steps {
        cluster.step()?;
    }
    let victim = victim.or(cluster.leader());
    if let Some(victim) = victim {
        cluster.crash(victim, power);
    }
    while !has(&cluster, "n4", MemberRole::Voter) {
        ask(&mut cluster, &replace, "n4", MemberRole::Voter)?;
    }
    cluster.finish_writers();
    cluster.run_until_done()?;
    let voters = cluster.members().map(|members| members.membership().voters.len());
    assert_eq!(voters, Some(3), "one came, one went");
    cluster.checkers.linearizable()
}

/// After `steps` events the disk of `victim`, or of whoever leads then, is empty. The node is replaced by one with another id, as `graven member replace`
/// does it. With `returns` it starts instead as who it was, which the incarnation in the peers' hello keeps real nodes from.
fn wipe_after(seed: u64, victim: Option<u64>, steps: u64, returns: bool) -> Checked {
    let mut cluster = Cluster::new(seed, 3, BY_HAND, Trace::new(TraceTo::Hash));
    cluster.run_while(|cluster| cluster.leader().is_none() || cluster.committed_records() < 5)?;
    for _ in 0..steps {
        cluster.step()?;
    }
    let Some(victim) = victim.or(cluster.leader()) else { return Ok(()) };
    cluster.stop(victim, true);
    cluster.node_mut(victim).disk = Node::new(victim, seed, None).disk;
    let acknowledged = cluster.committed_records();
    if returns {
        cluster.schedule(cluster.now_us + 1_000, Event::Start { node: victim });
    }
    // Two of three go on meanwhile.
    cluster.run_while(|cluster| cluster.committed_records() < acknowledged + 5)?;
    while !has(&cluster, "n4", MemberRole::Learner) {
        ask(&mut cluster, &MemberChange::Add(newcomer(4)), "n4", MemberRole::Learner)?;
    }
    let replace = MemberChange::Replace { old: format!("n{victim}"), new: "n4".to_owned() };
    while !has(&cluster, "n4", MemberRole::Voter) {
        ask(&mut cluster, &replace, "n4", MemberRole::Voter)?;
    }
    cluster.finish_writers();
    cluster.run_until_done()?;
    assert_eq!(cluster.members().map(|members| members.membership().voters.len()), Some(3), "one came, one went");
    cluster.checkers.linearizable()
}

#[test]
fn a_wiped_node_is_replaced_without_stopping_appends() {
    let stride = if std::env::var_os("GRAVEN_LONG").is_some() { 1 } else { 10 };
    for steps in (0..STEPS).step_by(stride) {
        for victim in [None, Some(1), Some(2)] {
            let seed = steps * 4 + victim.unwrap_or(0);
            if let Err(violation) = wipe_after(seed, victim, steps, false) {
                panic!("seed {seed}, {victim:?} wiped after {steps} steps: {violation:?}");
            }
        }
    }
}

#[test]
fn a_wiped_node_that_comes_back_as_who_it_was_is_seen() {
    for seed in 0..8 {
        let violation = wipe_after(seed, None, 20, true).expect_err("what it had synced is gone");
        assert_eq!(violation.property, "P1", "seed {seed}: {violation:?}");
    }
}

#[test]
fn a_change_survives_a_crash_between_every_two_of_its_steps() {
    let stride = if std::env::var_os("GRAVEN_LONG").is_some() { 1 } else { 3 };
    for steps in (0..STEPS).step_by(stride) {
        for (old, victim) in [(1, None), (2, Some(4)), (3, Some(1))] {
            let (seed, power) = (steps * 8 + old, steps % 2 == 0);
            if let Err(violation) = crash_within(seed, old, victim, steps, power) {
                panic!(
                    "seed {seed}, n{old} replaced, crash of {victim:?} after {steps} steps, power {power}: {violation:?}"
                );
            }
        }
    }
}
