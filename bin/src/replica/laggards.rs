//! Followers that keep falling behind, as their leader sees it.
//!
//! How many entries somebody lacks at one moment says nothing under load. What says something is that the number goes on growing, and that
//! checkpoints had to be given because the entries themselves were gone.

use std::collections::BTreeMap;

use graven_raft::{NodeId, Tick};

use super::Replica;

/// How often the followers are looked at.
const LOOK_US: u64 = 500_000;

/// How one follower keeps up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lag {
    /// Entries of the leader's log that it is not known to have on stable storage.
    pub entries: u64,
    /// Checkpoints that it had to be offered in this leadership, because the entries it needed were gone.
    pub checkpoints: u64,
    /// For how long what it lacks has been growing, in microseconds; 0 when it does not.
    pub growing_us: u64,
}

/// What is remembered of the followers, in this leadership; one for each.
#[derive(Debug, Default)]
pub(super) struct Laggards {
    followers: BTreeMap<NodeId, Watched>,
    looked: Option<Tick>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Watched {
    lag: Lag,
    /// Since when it has lacked more than `low` entries; `None` before the first look.
    since: Option<Tick>,
    low: u64,
    /// The most since then.
    peak: u64,
}

impl Watched {
    fn look(&mut self, now: Tick, entries: u64) {
        self.lag.entries = entries;
        self.peak = self.peak.max(entries);
        // It has caught up with where the growing began, or with a quarter of what it lacked.
        let since = match self.since {
            Some(since) if entries > self.low && entries >= self.peak - self.peak / 4 => since,
            _ => {
                (self.low, self.peak) = (entries, entries);
                now
            }
        };
        self.since = Some(since);
        self.lag.growing_us = now.since(since);
    }
}

impl Laggards {
    /// The leadership is over.
    pub(super) fn forget(&mut self) {
        *self = Laggards::default();
    }

    /// A follower is offered another checkpoint.
    pub(super) fn offered(&mut self, to: NodeId) {
        self.followers.entry(to).or_default().lag.checkpoints += 1;
    }
}

impl Replica {
    /// How the followers keep up, when leading.
    pub fn lags(&self) -> impl Iterator<Item = (NodeId, Lag)> + '_ {
        self.laggards.followers.iter().map(|(node, watched)| (*node, watched.lag))
    }

    /// Looks at the followers now and then.
    pub(super) fn look_at_followers(&mut self, now: Tick) {
        if !self.leads() || self.laggards.looked.is_some_and(|at| now.since(at) < LOOK_US) {
            return;
        }
        self.laggards.looked = Some(now);
        let last = self.log.last().index;
        let seen: BTreeMap<NodeId, u64> = self.core.progress().map(|it| (it.node, it.matched.0)).collect();
        self.laggards.followers.retain(|node, _| seen.contains_key(node));
        let own = self.id();
        for (node, matched) in seen.into_iter().filter(|(node, _)| *node != own) {
            let entries = last.saturating_sub(matched);
            self.laggards.followers.entry(node).or_default().look(now, entries);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn growing(lags: &[u64]) -> Vec<u64> {
        let mut watched = Watched::default();
        let look = |(second, lag): (u64, &u64)| {
            watched.look(Tick(second), *lag);
            watched.lag.growing_us
        };
        (0..).zip(lags).map(look).collect()
    }

    #[test]
    fn one_that_is_offered_a_checkpoint_before_the_first_look_has_not_grown_since_the_start() {
        let mut laggards = Laggards::default();
        laggards.offered(NodeId(2));
        let watched = laggards.followers.get_mut(&NodeId(2)).expect("noted");
        watched.look(Tick(3_600_000_000), 70_000);
        assert_eq!(watched.lag, Lag { entries: 70_000, checkpoints: 1, growing_us: 0 });
        watched.look(Tick(3_600_500_000), 80_000);
        assert_eq!(watched.lag.growing_us, 500_000);
    }

    #[test]
    fn what_grows_on_is_told_and_what_comes_and_goes_is_not() {
        assert_eq!(growing(&[5, 10, 20, 19, 40, 80]), [0, 1, 2, 3, 4, 5], "a moment of less is no end of it");
        assert_eq!(growing(&[5, 90, 4, 70, 0, 60]), [0, 1, 0, 1, 0, 1], "load that comes and goes");
        assert_eq!(growing(&[100, 100, 100]), [0, 0, 0], "one that is down while nothing is written");
        assert_eq!(growing(&[0, 1_000, 900, 700, 650, 500]), [0, 1, 2, 0, 0, 0], "it catches up");
    }
}
