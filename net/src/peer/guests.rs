//! Nodes that are newer than what this node knows of its cluster.
//!
//! A node learns who its peers are from the log, and gets the log from its peers. One that was just made knows nobody, and one
//! that was away may know nobody who leads now: every node it knows may have been replaced. So whoever shows a node's
//! certificate of this cluster, and an id above every id known here, is taken at its word about its address (Raft paper 6:
//! servers accept requests from servers outside of their configuration). It is heard and answered, never asked for a vote, and
//! becomes a member, or not, when the log says so. Ids are given once and in order: one that is not above the newest known
//! id and belongs to no member was removed, and stays outside.

use std::collections::BTreeMap;

use graven_raft::NodeId;

use super::{Roster, RosterEntry};

/// Guests at most: as many as all voters of a full cluster, replaced at once.
pub(super) const GUESTS_MAX: usize = 7;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Guests {
    /// What the driver told.
    members: Roster,
    entries: BTreeMap<NodeId, RosterEntry>,
}

impl Guests {
    /// The roster to follow under new members: they, and the guests that are still newer.
    pub(super) fn under(&mut self, members: Roster) -> Roster {
        self.entries.retain(|node, _| *node > members.newest && !members.members.contains_key(node));
        self.members = members;
        self.roster()
    }

    /// The roster to follow with one more guest, or with one that moved; `None` when there is no room.
    pub(super) fn with(&mut self, node: NodeId, entry: RosterEntry) -> Option<Roster> {
        if node <= self.members.newest || (self.entries.len() >= GUESTS_MAX && !self.entries.contains_key(&node)) {
            return None;
        }
        self.entries.insert(node, entry);
        Some(self.roster())
    }

    /// A guest.
    pub(super) fn get(&self, node: NodeId) -> Option<&RosterEntry> {
        self.entries.get(&node)
    }

    fn roster(&self) -> Roster {
        let mut roster = self.members.clone();
        roster.members.extend(self.entries.iter().map(|(node, entry)| (*node, entry.clone())));
        roster
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str) -> RosterEntry {
        RosterEntry { name: name.into(), address: "h:1".into(), incarnation: 5 }
    }

    #[test]
    fn a_guest_stays_until_the_members_say_who_it_is() {
        let mut guests = Guests::default();
        let roster = guests.with(NodeId(4), entry("n4")).expect("room");
        assert!(roster.members.contains_key(&NodeId(4)));
        let older = Roster { members: [(NodeId(1), entry("n1"))].into(), newest: NodeId(3) };
        assert_eq!(guests.under(older).members.len(), 2, "the log has not come to it yet");
        let removed = Roster { members: [(NodeId(1), entry("n1"))].into(), newest: NodeId(4) };
        assert_eq!(guests.under(removed).members.len(), 1);
        assert!(guests.with(NodeId(4), entry("n4")).is_none(), "was removed");
    }

    #[test]
    fn guests_are_bounded_and_may_move() {
        let mut guests = Guests::default();
        for node in 1..=GUESTS_MAX as u64 {
            assert!(guests.with(NodeId(node), entry("n")).is_some());
        }
        assert!(guests.with(NodeId(99), entry("n")).is_none());
        assert_eq!(guests.with(NodeId(1), entry("m")).expect("known").members[&NodeId(1)].name, "m");
    }
}
