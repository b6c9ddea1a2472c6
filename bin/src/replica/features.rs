//! The feature level: what all nodes of the cluster understand.
//!
//! Each node announces the highest level that its software knows. The level in force stands in the membership, so it is the same
//! for all at the same index, survives every leader, and is never taken back. The leader raises it by a membership entry of its own
//! when every member, learners too, has announced a higher one: whoever holds the log must be able to read it. A member that was not heard of
//! since this node started has announced nothing. Nothing is lowered: software that does not know the level in force refuses to run.

use std::collections::BTreeMap;

use graven_net::protocol::FEATURE_LEVEL;
use graven_raft::NodeId;

use super::Replica;
use super::effect::Now;

/// What is known of who understands what.
#[derive(Debug)]
pub(super) struct Features {
    /// What this node's software knows.
    known: u32,
    announced: BTreeMap<NodeId, u32>,
}

impl Default for Features {
    fn default() -> Features {
        Features { known: FEATURE_LEVEL, announced: BTreeMap::new() }
    }
}

impl Replica {
    /// Takes in the highest level that this node's software knows, when it is not [`FEATURE_LEVEL`].
    pub fn knows_level(&mut self, known: u32) {
        self.features.known = known;
    }

    /// Takes in that `peer` announced `level`.
    pub fn announced(&mut self, now: Now, peer: NodeId, level: u32) {
        self.features.announced.insert(peer, level);
        self.settle(now);
    }

    /// The level in force, as the newest membership has it.
    #[must_use]
    pub fn feature_level(&self) -> u32 {
        self.members().map_or(1, |members| members.feature_level)
    }

    /// The level in force and the one that is known, when the cluster has gone on to what this software does not know: it must stop.
    #[must_use]
    pub fn outgrown(&self) -> Option<(u32, u32)> {
        let (in_force, known) = (self.feature_level(), self.features.known);
        (in_force > known).then_some((in_force, known))
    }

    /// The level that all members understand; `None` while one of them has not said.
    fn common_level(&self) -> Option<u32> {
        let announced = |id: u64| match NodeId(id) {
            id if id == self.id() => Some(self.features.known),
            id => self.features.announced.get(&id).copied(),
        };
        let levels = self.members()?.present().map(|member| announced(member.id));
        levels.min().flatten()
    }

    /// Raises the level in force to what all members understand. Returns whether an entry was proposed.
    pub(super) fn maybe_raise_level(&mut self, now: Now) -> bool {
        let Some(level) = self.common_level().filter(|level| *level > self.feature_level()) else { return false };
        if !self.core.may_change_membership() || self.changing.is_asking() {
            return false;
        }
        let Some(mut next) = self.members().filter(|members| !members.is_joint()).cloned() else { return false };
        next.feature_level = level;
        self.propose_members(now, &next).is_ok()
    }
}
