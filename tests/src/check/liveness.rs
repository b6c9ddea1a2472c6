//! Progress: once all faults are healed, all clients finish and all nodes show the same log, within [`HEALED_US`].

use super::{Checked, violated};

/// Simulated time a healed cluster gets. Recovery, an election after a split vote or two, a stalled disk of 2.5 s and a
/// client's timeouts take less than a third of it.
pub const HEALED_US: u64 = 30_000_000;

/// What is left to do, as the cluster sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Left {
    /// Clients with appends that are not acknowledged.
    pub clients: Vec<u64>,
    /// Readers that have not got everything.
    pub readers: Vec<u64>,
    /// Nodes that do not show everything, and how far they are.
    pub nodes: Vec<(u64, u64)>,
    /// Whether nobody leads.
    pub leaderless: bool,
    /// Whether a change of voters is under way.
    pub changing: bool,
    /// Nodes that do not have exactly the snapshots that have a name.
    pub pictures: Vec<u64>,
    /// The node whose log is damaged.
    pub damaged: Option<u64>,
}

impl Left {
    /// Whether nothing is left.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        *self == Left::default()
    }
}

/// `left` remains `healed_us` after all faults ended.
///
/// # Errors
/// Something is left and the time is over.
pub fn progress(healed_us: u64, left: &Left) -> Checked {
    if healed_us > HEALED_US && !left.is_nothing() {
        return violated("liveness", format!("{} s after all healed, this is left: {left:?}", healed_us / 1_000_000));
    }
    Ok(())
}

/// A leader that nothing is wrong with led `before` and `now` leads, whoever went and came meanwhile (thesis 9.6 and 4.2.3: a
/// node that was cut off, or hears nobody, deposes no leader).
///
/// # Errors
/// Another one leads, or the same in another term.
pub fn undisturbed(before: Option<(u64, u64)>, now: Option<(u64, u64)>, outsider: u64) -> Checked {
    if before == now {
        return Ok(());
    }
    violated("stability", format!("(leader, term) was {before:?} and is {now:?}; only node {outsider} was cut off"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_deposed_without_a_cause_is_seen() {
        undisturbed(Some((1, 3)), Some((1, 3)), 2).expect("it leads on");
        undisturbed(Some((1, 3)), Some((2, 4)), 2).expect_err("the outsider took over");
        undisturbed(Some((1, 3)), Some((1, 4)), 2).expect_err("it had to be elected again");
        undisturbed(Some((1, 3)), None, 2).expect_err("nobody leads");
    }

    #[test]
    fn work_left_when_the_time_is_over_is_seen() {
        let left = Left { clients: vec![1], ..Left::default() };
        progress(HEALED_US, &left).expect("there is time");
        progress(HEALED_US + 1, &left).expect_err("none left");
        progress(HEALED_US + 1, &Left::default()).expect("all done");
        progress(HEALED_US + 1, &Left { leaderless: true, ..Left::default() }).expect_err("nobody leads");
    }
}
