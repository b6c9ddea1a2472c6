//! Full disks: who has room for records, and who should lead because of it.
//!
//! Each node knows of its own disk by [`Core::set_disk_full`] and of the others' by their answers to heartbeats. A full disk
//! still takes votes and control entries, from a reserve, so nothing of the protocol stops; what stops is the growth of the log.
//!
//! | disks | who leads |
//! |---|---|
//! | a quorum has room, the leader's among them | the leader |
//! | a quorum has room, the leader's not among them | it hands over to the follower with room that is furthest |
//! | no quorum has room | the leader: records are refused, trims and changes of the members go on |

use crate::core::Core;
use crate::planted::{Bug, is_planted};
use crate::quorum;
use crate::types::{Index, NodeId, Role, Tick};

/// Where the records of a proposal would find room, as the leader knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// On this node and on a quorum.
    Here,
    /// On a quorum, but not on this node: the leadership is being handed over. Try again in a moment.
    Elsewhere,
    /// On no quorum.
    Nowhere,
}

/// What a leader knows and does about full disks.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct RoomWatch {
    /// Whether this node's disk is full.
    pub(crate) full: bool,
    /// Since when this leader would rather have another one lead.
    reluctant_since: Option<Tick>,
    /// When it may next try to hand over.
    next_try: Tick,
}

/// A follower that was not heard of for so long counts as one without room, if disks are what is missing: twenty heartbeats
/// may be late on a busy machine, but waiting for a node that is down would turn a refusal into a timeout.
const SILENT_US: u64 = 1_000_000;
/// Handing over because of a full disk is tried for so long before appends are refused: a follower that is behind catches up
/// meanwhile, and clients that wait have mostly not given up yet.
const RELUCTANT_MAX_US: u64 = 8_000_000;

impl Core {
    /// Reports whether this node's disk has no room for records. A follower tells its leader at once, and in every
    /// answer to a heartbeat.
    pub fn set_disk_full(&mut self, now: Tick, full: bool) {
        self.observe(now);
        let news = std::mem::replace(&mut self.room.full, full) != full;
        if let Some(leader) = self.leader.filter(|leader| news && *leader != self.config.id) {
            // Not with the next heartbeat: at full speed a leader fills in that time what is left for what it has under way.
            let reply = self.heartbeat_reply(0);
            self.send(leader, reply);
        }
        self.tick_room();
    }

    /// Reports that the disk answered that it has no room for what waits. That is no stall: the age of what waits is counted
    /// from here.
    pub fn disk_has_no_room(&mut self, now: Tick) {
        self.observe(now);
        self.restart_disk_watch();
    }

    /// Where records would find room. Of a leader: others know of their own disk only.
    #[must_use]
    pub fn room(&self) -> Room {
        let any_full = self.room.full || self.progress.iter().any(|follower| follower.full);
        if !any_full {
            return Room::Here;
        }
        if !quorum::agreed(self.log.membership(), |node| self.has_room(node)) {
            return Room::Nowhere;
        }
        let gave_up = |since: Tick| self.now.since(since) >= RELUCTANT_MAX_US;
        match self.room.full {
            false => Room::Here,
            true if self.room.reluctant_since.is_some_and(gave_up) => Room::Nowhere,
            true => Room::Elsewhere,
        }
    }

    /// Whether those with room, a quorum, hold all that is committed. While they do not, a leader proposes no more records: what is
    /// committed by the help of a full disk uses up what that disk keeps for the end, and when the others are full as well nobody
    /// could store what is under way then, nor the trim behind it.
    #[must_use]
    pub fn room_keeps_pace(&self) -> bool {
        let any_full = self.room.full || self.progress.iter().any(|follower| follower.full);
        let held = |node: NodeId| match self.progress.iter().find(|follower| follower.node == node) {
            _ if !self.has_room(node) => Index(0),
            Some(follower) => follower.counted(),
            None => self.durable,
        };
        !any_full || quorum::reached(self.log.membership(), held).is_none_or(|held| held >= self.commit)
    }

    fn has_room(&self, node: NodeId) -> bool {
        if node == self.config.id {
            return !self.room.full;
        }
        let follower = self.progress.iter().find(|follower| follower.node == node);
        follower.is_some_and(|follower| !follower.full && self.now.since(follower.heard) < SILENT_US)
    }

    /// A leader without room hands over to the follower with room that is furthest, as long as a quorum has room.
    pub(crate) fn tick_room(&mut self) {
        let elsewhere = self.role == Role::Leader
            && self.room.full
            && quorum::agreed(self.log.membership(), |node| self.has_room(node));
        if !elsewhere || is_planted(Bug::FullLeaderStays) {
            self.room.reluctant_since = None;
            return;
        }
        self.room.reluctant_since.get_or_insert(self.now);
        if self.transfer.is_some() || self.now < self.room.next_try {
            return;
        }
        if let Some(heir) = self.best_follower_with_room() {
            // Nothing can be proposed while it goes on: between two attempts, trims have their turn.
            self.room.next_try = self.now.after(2 * self.config.election_us);
            self.begin_transfer(heir);
        }
    }

    fn best_follower_with_room(&self) -> Option<NodeId> {
        let able = self.progress.iter().filter(|follower| {
            let voter = self.log.membership().is_voter(follower.node);
            voter && follower.lost.is_none() && self.has_room(follower.node)
        });
        able.max_by_key(|follower| follower.matched).map(|follower| follower.node)
    }
}
