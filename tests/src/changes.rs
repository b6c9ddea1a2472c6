//! A change of the members, with a crash between every two steps of it.

use graven::members::MemberRole;
use graven::members::change::MemberChange;

use crate::check::Checked;
use crate::cluster::Cluster;
use crate::faults::newcomer;
use crate::profile::Profile;
use crate::trace::{Trace, TraceTo};

/// Members may change, and nothing does so by itself.
const BY_HAND: Profile = Profile { name: "by hand", member_us: 1, ..Profile::CALM };
/// Events of a calm change of voters, and some more: then it is over.
const STEPS: u64 = 120;

/// Replaces `old` by a learner, lets `steps` events pass, and crashes whoever leads then, or `victim`. Afterwards the change
/// must be made whole or not at all, on all nodes, and may be asked for again.
fn crash_within(seed: u64, old: u64, victim: Option<u64>, steps: u64, power: bool) -> Checked {
    let mut cluster = Cluster::new(seed, 3, BY_HAND, Trace::new(TraceTo::Hash));
    cluster.run_while(|cluster| cluster.leader().is_none() || cluster.committed_records() < 5)?;
    let has = |cluster: &Cluster, name: &str, role: MemberRole| {
        let settled = cluster.members().filter(|members| !members.is_joint());
        settled.and_then(|members| members.by_name(name)).is_some_and(|member| member.role == role)
    };
    let ask = |cluster: &mut Cluster, change: &MemberChange, name: &str, role| {
        cluster.run_while(|cluster| cluster.leader().is_none())?;
        if let Some(leader) = cluster.leader() {
            cluster.ask_change(leader, change.clone());
        }
        // Refused while the leader's first entry is not committed, or the learner has not caught up: asked for again.
        let until = cluster.stats.steps + 400;
        cluster.run_while(|cluster| !has(cluster, name, role) && cluster.stats.steps < until)
    };
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
