//! Changing who belongs to the cluster, on the leader's side.
//!
//! One wish becomes one entry, or two: voters change through a joint membership, which this module leaves by itself once it
//! is committed in this leader's term (Raft paper 6; thesis 4.3); so does the next leader, when this one is lost in between.
//! The wish is answered when the last of its entries is committed. What the new members are is decided by
//! [`Members::changed`]; here it is decided whether now is the time: a learner gets a vote when it has caught up, and nothing
//! is begun before a majority of the new voters has answered a heartbeat that was sent after the wish came. Otherwise the
//! cluster could be left with voters that cannot decide, not even to take the change back.

use std::collections::VecDeque;

use graven_frame::Kind;
use graven_raft::{Follower, NodeId, ProposeError, Role, Tick};

use super::Replica;
use super::effect::{Answer, Now, Rejection, RequestId};
use super::planted::{Bug, is_planted};
use crate::members::change::{ChangeRefused, MemberChange};
use crate::members::{MemberRole, Members};

/// A learner gets a vote when no more than this is missing there: one replication window, which is under way anyway.
pub(super) const PROMOTE_LAG_BYTES: u64 = 1 << 20;
/// How often it is noted how far the log was: a tenth of the shortest election timeout anybody should use.
const SAMPLE_EVERY_US: u64 = 10_000;
/// Notes kept: more than a second of a log that grows all the time, many election timeouts.
const SAMPLES_MAX: usize = 128;

/// How far this leader's log was, and when: tells how long and by how many bytes a follower is behind.
#[derive(Debug, Default)]
pub(super) struct Growth {
    /// Bytes of frames taken into the log in this life, truncated ones included.
    bytes: u64,
    notes: VecDeque<Note>,
}

#[derive(Debug, Clone, Copy)]
struct Note {
    at: Tick,
    last: u64,
    bytes: u64,
}

/// How far a follower is behind, at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Lag {
    bytes: u64,
    us: u64,
}

impl Growth {
    pub(super) fn grew(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
    }

    /// A leadership begins: what was noted before may speak of entries that are gone.
    pub(super) fn forget(&mut self) {
        self.notes.clear();
    }

    pub(super) fn note(&mut self, at: Tick, last: u64) {
        let due = self.notes.back().is_none_or(|note| at.since(note.at) >= SAMPLE_EVERY_US && note.last != last);
        if !due {
            return;
        }
        if self.notes.len() == SAMPLES_MAX {
            self.notes.pop_front();
        }
        self.notes.push_back(Note { at, last, bytes: self.bytes });
    }

    /// How far a follower that holds everything up to `matched` is behind a log that ends at `last`; `None`: further than
    /// was noted.
    fn lag(&self, now: Tick, matched: u64, last: u64) -> Option<Lag> {
        if matched >= last {
            return Some(Lag { bytes: 0, us: 0 });
        }
        let note = self.notes.iter().rev().find(|note| note.last <= matched)?;
        Some(Lag { bytes: self.bytes - note.bytes, us: now.since(note.at) })
    }
}

/// The change under way, if any.
#[derive(Debug, Default)]
pub(super) struct Changing {
    /// A change of voters that waits for a majority of the new ones to show that it is alive.
    asking: Option<Asking>,
    /// Who waits for the joint membership to be left.
    waiting: Option<RequestId>,
}

#[derive(Debug)]
struct Asking {
    request: RequestId,
    change: MemberChange,
    /// Only answers to later heartbeat rounds count.
    round: u64,
    until: Tick,
}

impl Changing {
    pub(super) fn deadline(&self) -> Option<Tick> {
        self.asking.as_ref().map(|asking| asking.until)
    }
}

impl Replica {
    /// Takes in a wish to change the members.
    pub fn change_members(&mut self, now: Now, request: RequestId, change: &MemberChange) {
        if self.core.role() != Role::Leader || self.diverged {
            return self.answer(request, Err(Rejection::NotLeader { leader: self.core.leader() }));
        }
        if self.changing.asking.is_some() {
            return self.answer(request, Err(Rejection::MembersChanging));
        }
        match self.judge_change(now, change) {
            Ok(Some(next)) if self.keeps_voters(&next) => self.begin_change(now, request, &next),
            Ok(Some(_)) => self.ask_voters(now, request, change),
            // Done already, or against the rules: both rest on the members that this leader knows, so it must still lead.
            Ok(None) => self.hold(now, self.members_index(), vec![(request, Ok(Answer::MembersChanged))]),
            Err(rejection @ Rejection::MembersChanging) => self.answer(request, Err(rejection)),
            Err(rejection) => self.hold(now, self.members_index(), vec![(request, Err(rejection))]),
        }
        self.settle(now);
    }

    /// The members to go to next; `None` when the wish is granted already.
    fn judge_change(&self, now: Now, change: &MemberChange) -> Result<Option<Members>, Rejection> {
        let Some(members) = self.members() else { return Err(Rejection::MembersChanging) };
        if members.is_joint() || !self.core.may_change_membership() {
            return Err(Rejection::MembersChanging);
        }
        let refused = |why: ChangeRefused| Rejection::Change(Box::new(why));
        let next = members.changed(change).map_err(refused)?;
        if next == *members {
            return Ok(None);
        }
        self.check_caught_up(now, &next).map_err(refused)?;
        Ok(Some(next))
    }

    fn keeps_voters(&self, next: &Members) -> bool {
        self.core.membership().voters == next.membership().voters
    }

    fn ask_voters(&mut self, now: Now, request: RequestId, change: &MemberChange) {
        let until = now.tick.after(self.config.raft.election_us);
        let round = self.core.heartbeat_round();
        self.changing.asking = Some(Asking { request, change: change.clone(), round, until });
        // A read that nobody waits for: it makes a round at once. Without it the next heartbeat does.
        let id = self.fresh_round();
        let _ = self.core.read(now.tick, id);
    }

    /// Begins the change that waits, when enough of its voters have answered, or refuses it when they did not in time.
    pub(super) fn maybe_begin_change(&mut self, now: Now) {
        let Some(asking) = self.changing.asking.take() else { return };
        match self.judge_change(now, &asking.change) {
            Ok(Some(next)) => match self.check_alive(asking.round, &next) {
                Ok(()) => self.begin_change(now, asking.request, &next),
                Err(_) if now.tick < asking.until => self.changing.asking = Some(asking),
                Err(why) => self.answer(asking.request, Err(Rejection::Change(Box::new(why)))),
            },
            // Something changed meanwhile: asked for again, it is judged anew.
            Ok(None) => self.answer(asking.request, Err(Rejection::MembersChanging)),
            Err(rejection) => self.answer(asking.request, Err(rejection)),
        }
    }

    /// A node that is to vote must hold nearly all of the log, or appends would wait for it (thesis 4.2.1).
    fn check_caught_up(&self, now: Now, next: &Members) -> Result<(), ChangeRefused> {
        let last = self.log.last().index;
        for joining in next.nodes.iter().filter(|member| member.role == MemberRole::Joining) {
            let follower = self.follower(joining.id);
            let lag = follower.and_then(|follower| self.growth.lag(now.tick, follower.matched.0, last));
            let patience = self.config.raft.election_us;
            let alive = follower.is_some_and(|follower| now.tick.since(follower.heard) < patience);
            let near = lag.is_some_and(|lag| lag.bytes <= PROMOTE_LAG_BYTES && lag.us <= patience);
            if !(alive && near) {
                let matched = follower.map_or(0, |follower| follower.matched.0);
                return Err(ChangeRefused::Behind {
                    name: joining.name.clone(),
                    entries: last - matched.min(last),
                    alive,
                });
            }
        }
        Ok(())
    }

    /// The new voters must be able to decide without those who go: a change that takes the last spare node out while
    /// another one is dead would stop the cluster.
    fn check_alive(&self, asked_in: u64, next: &Members) -> Result<(), ChangeRefused> {
        let voters = next.membership().voters;
        let is_alive = |node: &NodeId| {
            *node == self.config.raft.id || self.follower(node.0).is_some_and(|follower| follower.round > asked_in)
        };
        let (alive, needed) = (voters.iter().filter(|node| is_alive(node)).count(), voters.len() / 2 + 1);
        if alive < needed {
            return Err(ChangeRefused::NoQuorum { alive, voters: voters.len(), needed });
        }
        Ok(())
    }

    fn follower(&self, id: u64) -> Option<Follower> {
        self.core.progress().find(|follower| follower.node.0 == id)
    }

    fn begin_change(&mut self, now: Now, request: RequestId, next: &Members) {
        match self.propose_members(now, next) {
            Ok(_) if next.is_joint() => self.changing.waiting = Some(request),
            Ok(index) => self.acks.on_commit(index, request, Answer::MembersChanged),
            Err(rejection) => self.answer(request, Err(rejection)),
        }
    }

    /// Puts `next` into the log as the entry at the index it answers.
    fn propose_members(&mut self, now: Now, next: &Members) -> Result<u64, Rejection> {
        let bytes = next
            .encode()
            .map_err(|error| Rejection::Change(Box::new(ChangeRefused::Encoding { reason: error.to_string() })))?;
        self.propose_control(now, Kind::Membership, bytes, Some(next.membership())).map_err(|error| match error {
            ProposeError::Transferring { .. } => Rejection::Transferring,
            ProposeError::NotLeader { leader } => Rejection::NotLeader { leader },
            _ => Rejection::MembersChanging,
        })
    }

    /// Leaves a joint membership that is committed in this leader's term, whoever began it. Returns whether it did.
    pub(super) fn maybe_leave_joint(&mut self, now: Now) -> bool {
        if !self.core.may_change_membership() || is_planted(Bug::JointKept) {
            return false;
        }
        let Some(next) = self.members().filter(|members| members.is_joint()).map(Members::settled) else {
            return false;
        };
        let Ok(index) = self.propose_members(now, &next) else { return false };
        if let Some(request) = self.changing.waiting.take() {
            self.acks.on_commit(index, request, Answer::MembersChanged);
        }
        true
    }

    /// The leadership is lost: what was begun may be ended by the next leader, or undone.
    pub(super) fn give_up_change(&mut self, leader: Option<NodeId>, rejection: &Rejection) {
        if let Some(asking) = self.changing.asking.take() {
            self.ready.push((asking.request, Err(Rejection::NotLeader { leader })));
        }
        if let Some(request) = self.changing.waiting.take() {
            self.ready.push((request, Err(rejection.clone())));
        }
    }

    /// Notes how far the log is, while somebody is catching up.
    pub(super) fn note_growth(&mut self, now: Tick) {
        if self.core.role() == Role::Leader && !self.core.membership().learners.is_empty() {
            self.growth.note(now, self.log.last().index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lag_is_told_from_the_newest_note_that_the_follower_has_reached() {
        let mut growth = Growth::default();
        assert_eq!(growth.lag(Tick(0), 0, 5), None, "nothing was noted");
        growth.note(Tick(0), 5);
        growth.grew(1000);
        growth.note(Tick(SAMPLE_EVERY_US), 6);
        growth.grew(10);
        growth.note(Tick(SAMPLE_EVERY_US + 1), 7);
        assert_eq!(growth.notes.len(), 2, "too soon for another note");
        let now = Tick(3 * SAMPLE_EVERY_US);
        assert_eq!(growth.lag(now, 7, 7), Some(Lag { bytes: 0, us: 0 }));
        assert_eq!(growth.lag(now, 6, 7), Some(Lag { bytes: 10, us: 2 * SAMPLE_EVERY_US }));
        assert_eq!(growth.lag(now, 5, 7), Some(Lag { bytes: 1010, us: 3 * SAMPLE_EVERY_US }));
        assert_eq!(growth.lag(now, 4, 7), None, "further behind than was noted");
    }

    #[test]
    fn notes_are_bounded() {
        let mut growth = Growth::default();
        for at in 0..1000 {
            growth.note(Tick(at * SAMPLE_EVERY_US), at);
        }
        assert_eq!(growth.notes.len(), SAMPLES_MAX);
    }
}
