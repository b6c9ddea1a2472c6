//! The leader: orders the entries of its term, and decides what is committed.
//!
//! Its own disk runs beside replication: an append leaves for the followers while the leader's write is still in flight,
//! and the leader counts itself only once that write is durable (thesis 10.2.1). With one voter or seven it is the same path.

use crate::core::Core;
use crate::errors::ProposeError;
use crate::membership;
use crate::message::Message;
use crate::output::{Alarm, Output};
use crate::planted::{Bug, is_planted};
use crate::progress::Progress;
use crate::quorum;
use crate::types::{EntryKind, EntryMeta, Index, LogId, NodeId, Role, Tick};

impl Core {
    /// Appends an entry to the log of this leader. Its [`Output::Persist`] and the appends to followers come as outputs.
    ///
    /// # Errors
    /// Refused, nothing was changed: see [`ProposeError`].
    pub fn propose(&mut self, now: Tick, meta: EntryMeta) -> Result<LogId, ProposeError> {
        self.observe(now);
        if self.role != Role::Leader {
            return Err(ProposeError::NotLeader { leader: self.leader });
        }
        if let Some(transfer) = &self.transfer {
            return Err(ProposeError::Transferring { to: transfer.to });
        }
        self.judge_membership(&meta)?;
        let id = self.append_own(meta);
        self.persist_entries(id.index);
        self.replicate_all();
        Ok(id)
    }

    fn judge_membership(&self, meta: &EntryMeta) -> Result<(), ProposeError> {
        match (&meta.membership, meta.kind) {
            (None, EntryKind::Membership) => {
                Err(ProposeError::MembershipUnsafe { reason: "the entry has no membership" })
            }
            (None, _) => Ok(()),
            (Some(next), EntryKind::Membership) => {
                // Committed, and in this leader's term: otherwise the membership in force could still vanish under the next.
                if !self.may_change_membership() {
                    return Err(ProposeError::MembershipPending);
                }
                membership::judge(self.log.membership(), next)
            }
            (Some(_), _) => Err(ProposeError::MembershipUnsafe { reason: "the entry is not a membership entry" }),
        }
    }

    fn append_own(&mut self, meta: EntryMeta) -> LogId {
        let changes = meta.membership.is_some();
        let index = self.log.append(self.hard.term, meta.membership);
        if changes {
            self.sync_progress();
        }
        LogId { term: self.hard.term, index }
    }

    /// Wins its term: opens it with a no-op, which is what earlier entries commit by (Raft paper 5.4.2, 8).
    pub(crate) fn become_leader(&mut self) {
        self.role = Role::Leader;
        self.leader = Some(self.config.id);
        self.round = 0;
        self.progress.clear();
        self.sync_progress();
        self.tell_role();
        if is_planted(Bug::NoopSkipped) {
            self.term_start = self.log.base().index;
            return self.broadcast_heartbeat();
        }
        let id = self.append_own(EntryMeta::plain(EntryKind::Noop, 0));
        self.term_start = id.index;
        self.outputs.push_back(Output::Noop { id });
        self.persist_entries(id.index);
        self.broadcast_heartbeat();
        self.replicate_all();
    }

    /// Follows exactly the members of the membership in force. A newcomer's log is hoped to end where ours ended before.
    fn sync_progress(&mut self) {
        let (id, last, now) = (self.config.id, self.log.last(), self.now);
        let members = self.log.membership().members();
        self.progress.retain(|follower| members.contains(&follower.node));
        for node in members {
            if node != id && !self.progress.iter().any(|follower| follower.node == node) {
                self.progress.push(Progress::new(node, last, now));
            }
        }
    }

    /// A commit by counting: only an entry of this leader's own term (Raft paper 5.4.2, figure 8).
    pub(crate) fn maybe_commit(&mut self) {
        let id = self.config.id;
        let durable = if is_planted(Bug::LeaderCountsUnsynced) { self.log.last() } else { self.durable };
        let counted = |node: NodeId| {
            if node == id {
                return durable;
            }
            let follower = self.progress.iter().find(|follower| follower.node == node);
            follower.map_or(Index(0), Progress::counted)
        };
        let Some(reached) = quorum::reached(self.log.membership(), counted) else {
            return;
        };
        let own = self.log.term_at(reached) == Some(self.hard.term) || is_planted(Bug::OldTermCommit);
        if reached <= self.commit || !own {
            return;
        }
        self.set_commit(reached);
        let outside = !self.log.membership().is_voter(id) && self.log.membership_index() <= self.commit;
        if outside {
            // C-new without this node is committed: it has led long enough (Raft paper 6). Its followers heard it just now and
            // would wait for it, so the one that has everything is told to stand (thesis 4.2.2), before it hears of the commit
            // and stops listening to this node.
            self.name_heir();
        }
        for at in 0..self.progress.len() {
            self.maybe_append(at);
            self.maybe_tell_commit(at);
        }
        self.maybe_start_round();
        if outside {
            self.become_follower(self.hard.term, None, None);
        }
    }

    /// The latest moment at which a quorum was heard of, lies an election timeout back (thesis 6.2).
    pub(crate) fn quorum_lost(&self) -> bool {
        self.now >= self.quorum_deadline() && !is_planted(Bug::CheckQuorumOff)
    }

    fn quorum_deadline(&self) -> Tick {
        let (id, now) = (self.config.id, self.now);
        let heard = |node: NodeId| {
            if node == id {
                return now;
            }
            let follower = self.progress.iter().find(|follower| follower.node == node);
            follower.map_or(Tick(0), |follower| follower.heard)
        };
        let heard = quorum::reached(self.log.membership(), heard).unwrap_or(now);
        heard.after(self.config.election_us)
    }

    pub(crate) fn tick_leader(&mut self) {
        if self.quorum_lost() {
            // Not one more word as a leader: a bridge node that still hears us would keep refusing those who can be elected.
            return self.become_follower(self.hard.term, None, None);
        }
        for at in 0..self.progress.len() {
            self.tick_follower(at);
        }
        if self.now >= self.heartbeat_due {
            self.broadcast_heartbeat();
        }
    }

    pub(crate) fn leader_deadline(&self) -> Tick {
        let followers = self.progress.iter().filter_map(Progress::deadline).min();
        let alone = self.progress.is_empty();
        let quorum = if alone { Tick(u64::MAX) } else { self.quorum_deadline() };
        self.heartbeat_due.min(quorum).min(followers.unwrap_or(Tick(u64::MAX)))
    }

    /// Starts a heartbeat round. The commit index in it is held down to what the follower acknowledged: one that lost its
    /// disk must not be told that it holds committed entries it does not hold.
    pub(crate) fn broadcast_heartbeat(&mut self) {
        self.round += 1;
        self.heartbeat_due = self.now.after(self.config.heartbeat_us.max(1));
        for at in 0..self.progress.len() {
            let follower = &mut self.progress[at];
            let commit = self.commit.min(follower.matched);
            follower.commit_told = follower.commit_told.max(commit);
            let to = follower.node;
            self.send(to, Message::Heartbeat { term: self.hard.term, commit, round: self.round });
        }
    }

    /// Any word of this term from a follower.
    pub(crate) fn on_heard(&mut self, from: NodeId) {
        let now = self.now;
        if let Some(follower) = self.progress.iter_mut().find(|follower| follower.node == from) {
            follower.heard = now;
        }
    }

    pub(crate) fn on_heartbeat_reply(&mut self, from: NodeId, round: u64, verified: Index, disk_full: bool) {
        let Some(at) = self.follower_at(from) else {
            return;
        };
        if round > self.round {
            return self.malformed(from, "an answer to a heartbeat that was never sent");
        }
        self.progress[at].round = self.progress[at].round.max(round);
        self.progress[at].full = disk_full;
        self.watch_progress(at, verified);
        self.maybe_confirm_round();
    }

    /// Where a follower's progress stands; `None` when not leading or not a member.
    pub(crate) fn follower_at(&self, node: NodeId) -> Option<usize> {
        self.progress.iter().position(|follower| follower.node == node)
    }

    pub(crate) fn lost_entries(&mut self, at: usize, last: Index) {
        let follower = &mut self.progress[at];
        let (node, matched) = (follower.node, follower.matched);
        follower.lost = Some(follower.lost.unwrap_or_default().max(matched));
        follower.matched = Index(0);
        self.alarm(Alarm::FollowerLostEntries { node, matched, last });
    }
}
