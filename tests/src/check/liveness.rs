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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_left_when_the_time_is_over_is_seen() {
        let left = Left { clients: vec![1], ..Left::default() };
        progress(HEALED_US, &left).expect("there is time");
        progress(HEALED_US + 1, &left).expect_err("none left");
        progress(HEALED_US + 1, &Left::default()).expect("all done");
        progress(HEALED_US + 1, &Left { leaderless: true, ..Left::default() }).expect_err("nobody leads");
    }
}
