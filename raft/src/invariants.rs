//! What must hold after every step, in every role. Tests and the simulator run these after each input.
//!
//! [`check_state`] looks at one moment, [`check_step`] at a step from one moment to the next in one life of a node. What
//! spans nodes (election safety, log matching, leader completeness: Raft paper, figure 3) is for the harness that sees them all.

use crate::core::Core;
use crate::types::{Index, Role};

/// Looks for a contradiction in one core.
///
/// # Errors
/// Names the first broken rule with the numbers that break it.
pub fn check_state(core: &Core) -> Result<(), String> {
    core.log.check()?;
    check_pointers(core)?;
    check_role(core)?;
    for follower in &core.progress {
        follower.check(core.log.last(), core.config.window_messages)?;
    }
    Ok(())
}

fn check_pointers(core: &Core) -> Result<(), String> {
    let (base, last) = (core.log.base().index, core.log.last());
    let order = [("base", base), ("applied", core.applied.max(base)), ("commit", core.commit), ("last", last)];
    if let Some(pair) = order.windows(2).find(|pair| pair[0].1 > pair[1].1) {
        return Err(format!("{} {} is above {} {}", pair[0].0, pair[0].1, pair[1].0, pair[1].1));
    }
    if core.durable > last || core.verified > last {
        return Err(format!("durable {} or verified {} is above last {last}", core.durable, core.verified));
    }
    if let Some(pending) = core.pending.iter().find(|pending| pending.vouches > last || pending.term > core.hard.term) {
        return Err(format!("{pending:?} vouches for more than there is (last {last})"));
    }
    if core.log.last_id().term > core.hard.term {
        return Err(format!("the log ends with {}, in term {}", core.log.last_id(), core.hard.term));
    }
    Ok(())
}

fn check_role(core: &Core) -> Result<(), String> {
    let own = core.config.id;
    match core.role {
        Role::Leader if core.leader != Some(own) => Err("a leader does not know itself as leader".to_owned()),
        Role::Leader if core.hard.vote != Some(own) => Err("a leader has not voted for itself".to_owned()),
        Role::Leader
            if core.log.term_at(core.term_start) != Some(core.hard.term) && core.term_start > core.log.base().index =>
        {
            Err("a leader's first entry is not of its term".to_owned())
        }
        Role::Leader if core.progress.iter().any(|follower| follower.node == own) => {
            Err("a leader follows itself".to_owned())
        }
        Role::Leader => Ok(()),
        Role::Candidate if core.hard.vote != Some(own) => Err("a candidate has not voted for itself".to_owned()),
        _ if core.leader == Some(own) => Err("a follower takes itself for the leader".to_owned()),
        _ if !core.progress.is_empty() => Err("only a leader follows progress".to_owned()),
        _ => Ok(()),
    }
}

/// Looks for a step that no input allows, `before` and `after` being the same life of one node.
///
/// # Errors
/// Names the first broken rule with the numbers that break it.
pub fn check_step(before: &Core, after: &Core) -> Result<(), String> {
    if after.hard.term < before.hard.term {
        return Err(format!("term fell from {} to {}", before.hard.term, after.hard.term));
    }
    let same_term = after.hard.term == before.hard.term;
    if same_term && before.hard.vote.is_some() && after.hard.vote != before.hard.vote {
        return Err(format!("vote changed within a term: {:?} to {:?}", before.hard, after.hard));
    }
    if same_term && before.leader.is_some() && after.leader.is_some() && before.leader != after.leader {
        return Err(format!("two leaders in term {}: {:?}, {:?}", after.hard.term, before.leader, after.leader));
    }
    if after.commit < before.commit || after.applied < before.applied {
        return Err(format!("commit or applied fell: {} {}", after.commit, after.applied));
    }
    if same_term && after.verified < before.verified && after.log.base() == before.log.base() {
        return Err(format!("verified fell from {} to {}", before.verified, after.verified));
    }
    let kept = if same_term && before.role == Role::Leader { before.log.last() } else { before.commit };
    check_kept(before, after, kept)
}

/// A leader's log only grows (Leader Append-Only), and what is committed stays, in whatever role.
fn check_kept(before: &Core, after: &Core, upto: Index) -> Result<(), String> {
    if upto <= after.log.base().index {
        return Ok(());
    }
    match (before.log.term_at(upto), after.log.term_at(upto)) {
        (was, is) if was == is => Ok(()),
        (was, is) => Err(format!("entry {upto} must stay: it was of term {was:?} and is {is:?}")),
    }
}
