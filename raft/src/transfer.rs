//! Handing leadership over (thesis 3.10).
//!
//! The leader stops taking proposals, brings the target up to its own end *durably*, tells it to stand at once, and waits for
//! at most one election timeout. That one deadline clears everything; until then nothing else ends it but a known new leader.

use crate::candidate::Cause;
use crate::core::Core;
use crate::errors::TransferError;
use crate::message::Message;
use crate::output::Output;
use crate::types::{LogId, NodeId, Role, Term, Tick};

/// A transfer under way. Outlives the leadership that began it, to tell how it ended.
#[derive(Debug, Clone)]
pub(crate) struct Transfer {
    pub(crate) to: NodeId,
    pub(crate) deadline: Tick,
    began_in: Term,
    told: bool,
}

impl Core {
    /// Hands leadership to `to`. Ends with [`Output::TransferDone`] within an election timeout; proposals are refused meanwhile.
    ///
    /// # Errors
    /// This node does not lead, a transfer is under way, or `to` is not another voter. Nothing was changed.
    pub fn transfer(&mut self, now: Tick, to: NodeId) -> Result<(), TransferError> {
        self.observe(now);
        if self.role != Role::Leader {
            return Err(TransferError::NotLeader { leader: self.leader });
        }
        if let Some(transfer) = &self.transfer {
            return Err(TransferError::Transferring { to: transfer.to });
        }
        if to == self.config.id || !self.log.membership().is_voter(to) {
            return Err(TransferError::NotAVoter { to });
        }
        self.begin_transfer(to);
        Ok(())
    }

    pub(crate) fn begin_transfer(&mut self, to: NodeId) {
        let deadline = self.now.after(self.config.election_us);
        self.transfer = Some(Transfer { to, deadline, began_in: self.hard.term, told: false });
        self.maybe_send_timeout_now();
    }

    /// Tells the target to stand, once it holds everything durably.
    pub(crate) fn maybe_send_timeout_now(&mut self) {
        let (term, last) = (self.hard.term, self.log.last_id());
        let Some(transfer) = self.transfer.as_mut().filter(|transfer| !transfer.told) else {
            return;
        };
        let target = self.progress.iter().find(|follower| follower.node == transfer.to);
        if target.is_some_and(|target| target.counted() == last.index) {
            transfer.told = true;
            let to = transfer.to;
            self.send(to, Message::TimeoutNow { term, last });
        }
    }

    /// The target's side: stands at once, without a pre-vote, if its durable log ends where the leader's does. An order
    /// that was overtaken by more entries, or by a crash, is ignored.
    pub(crate) fn on_timeout_now(&mut self, from: NodeId, last: LogId) {
        if !self.follow(from) {
            return;
        }
        let complete = self.log.last_id() == last && self.durable == last.index;
        if complete && self.may_stand() {
            self.become_candidate(Cause::Transfer);
        }
    }

    /// The follower to hand over to: a voter heard of lately, with the longest durable log; of those, one with room on
    /// its disk.
    pub(crate) fn best_follower(&self) -> Option<NodeId> {
        let alive = self.progress.iter().filter(|follower| {
            self.log.membership().is_voter(follower.node)
                && follower.lost.is_none()
                && self.now.since(follower.heard) < self.config.election_us
        });
        alive.max_by_key(|follower| (follower.matched, !follower.full)).map(|follower| follower.node)
    }

    /// Tells the voter that holds everything durably to stand, if there is one: this leader steps down now.
    pub(crate) fn name_heir(&mut self) {
        let (term, last) = (self.hard.term, self.log.last_id());
        let complete = |heir: &NodeId| {
            self.progress.iter().any(|follower| follower.node == *heir && follower.counted() == last.index)
        };
        if let Some(to) = self.best_follower().filter(complete) {
            self.send(to, Message::TimeoutNow { term, last });
        }
    }

    pub(crate) fn tick_transfer(&mut self) {
        if self.transfer.as_ref().is_some_and(|transfer| self.now >= transfer.deadline) {
            self.end_transfer(false);
        }
    }

    /// Called when role, term or leader changed.
    pub(crate) fn settle_transfer(&mut self) {
        let Some(transfer) = &self.transfer else {
            return;
        };
        if self.hard.term > transfer.began_in && self.leader.is_some() {
            let ok = self.leader == Some(transfer.to);
            self.end_transfer(ok);
        }
    }

    fn end_transfer(&mut self, ok: bool) {
        if let Some(transfer) = self.transfer.take() {
            self.outputs.push_back(Output::TransferDone { to: transfer.to, ok });
        }
    }
}
