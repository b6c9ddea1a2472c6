//! Feeding followers: what to send to whom, and what their answers mean.
//!
//! The core says which entries may go; the driver attaches bytes and tells what it attached. Nothing is waited for without
//! end: an append that is not answered by its deadline turns its follower back into `Probe`, which is how lost
//! acknowledgements are found, and a follower that answers heartbeats but acknowledges nothing is probed as well.
//! Source: Raft paper 5.3; thesis 10.2.1.

use crate::core::Core;
use crate::message::{ConflictHint, Message};
use crate::output::Output;
use crate::planted::{Bug, is_planted};
use crate::progress::{Asked, Inflight, ProgressState};
use crate::types::{Index, LogId, NodeId, Tick};

/// How long after a full lane the next append is offered: a lane drains 256 KiB in less.
const FULL_LANE_RETRY_US: u64 = 2_000;

impl Core {
    /// Reports what was attached to the [`Output::Append`] with this `request` and `epoch`: entries up to `last`, of
    /// `bytes` bytes; `last` is `prev.index` when the head went alone, or nothing went.
    pub fn sent(&mut self, now: Tick, to: NodeId, request: u64, last: Index, bytes: u64, epoch: u64) {
        self.observe(now);
        let Some(at) = self.follower_at(to) else {
            return;
        };
        let deadline = self.now.after(self.config.append_timeout_us);
        let follower = &mut self.progress[at];
        let ours = |asked: &Asked| asked.request == request;
        let Some(asked) = follower.asked.filter(ours).filter(|_| follower.epoch == epoch) else {
            return;
        };
        follower.asked = None;
        let last = last.clamp(asked.prev, self.log.last());
        if last == asked.prev && !asked.empty && follower.state == ProgressState::Replicate {
            follower.paused_until = Some(self.now.after(FULL_LANE_RETRY_US));
            return;
        }
        follower.commit_told = follower.commit_told.max(asked.commit.min(last));
        let matched = follower.matched;
        follower.push_inflight(Inflight { request, last, bytes, deadline, matched });
        if follower.state == ProgressState::Replicate {
            // While the bytes were fetched an acknowledgement of earlier appends may have come in that covers more.
            follower.next = last.next().max(matched.next());
        }
        self.maybe_append(at);
        self.maybe_tell_commit(at);
    }

    /// Reports that the lane to `to` is lost, and with it what was on its way.
    pub fn unreachable(&mut self, now: Tick, to: NodeId) {
        self.observe(now);
        let pause = self.now.after(self.config.append_timeout_us);
        if let Some(at) = self.follower_at(to)
            && self.progress[at].state != ProgressState::Snapshot
        {
            let follower = &mut self.progress[at];
            follower.become_probe(follower.next);
            follower.hopeful = false;
            follower.paused_until = Some(pause);
        }
    }

    /// Reports that a lane to `to` stands. Optional: without it the follower is probed within
    /// [`crate::Config::append_timeout_us`], or at its next answer to a heartbeat.
    pub fn reachable(&mut self, now: Tick, to: NodeId) {
        self.observe(now);
        if let Some(at) = self.follower_at(to) {
            let follower = &mut self.progress[at];
            if follower.state == ProgressState::Probe {
                follower.forget_inflight();
            }
            follower.paused_until = None;
            self.maybe_append(at);
        }
    }

    /// Offers the checkpoint that ends with `base` to a follower that asked for entries which are gone
    /// ([`Output::SnapshotNeeded`]). Returns whether it still waits for one: then offer it again, a lost offer is not noticed here.
    pub fn offer_install(&mut self, now: Tick, to: NodeId, base: LogId) -> bool {
        self.observe(now);
        let waits = self.follower_at(to).is_some_and(|at| self.progress[at].state == ProgressState::Snapshot);
        if waits {
            self.send(to, Message::Install { term: self.hard.term, base });
        }
        waits
    }

    /// The follower's log holds `base`, or could not be made to: go on behind it, or ask again a little later.
    pub(crate) fn on_install_reply(&mut self, from: NodeId, base: LogId, ok: bool) {
        let pause = self.now.after(self.config.append_timeout_us);
        if let Some(at) = self.follower_at(from)
            && self.progress[at].state == ProgressState::Snapshot
        {
            let follower = &mut self.progress[at];
            follower.become_probe(base.index.next());
            follower.hopeful = false;
            follower.paused_until = (!ok).then_some(pause);
            self.maybe_append(at);
        }
    }

    pub(crate) fn replicate_all(&mut self) {
        for at in 0..self.progress.len() {
            self.maybe_append(at);
        }
    }

    /// Asks the driver for an append to this follower, if it may have one.
    pub(crate) fn maybe_append(&mut self, at: usize) {
        let (window_bytes, window_messages) = (self.config.window_bytes, self.config.window_messages);
        let last = self.log.last();
        let follower = &mut self.progress[at];
        if !follower.may_ask(self.now, last, window_bytes, window_messages) {
            return;
        }
        let to = follower.node;
        let prev = follower.next.previous();
        let Some(term) = self.log.term_at(prev) else {
            follower.become_snapshot();
            self.outputs.push_back(Output::SnapshotNeeded { to });
            return;
        };
        // Something to wait for begins here, unless this is one more try on a lane that was full.
        if follower.inflight.is_empty() && follower.paused_until.take().is_none() {
            follower.moved = self.now;
        }
        let probing = follower.state == ProgressState::Probe;
        let empty = prev == last || (probing && !follower.hopeful);
        let room = window_bytes.saturating_sub(follower.inflight_bytes);
        let request = self.next_request;
        self.next_request += 1;
        follower.asked = Some(Asked {
            request,
            prev,
            empty,
            commit: self.commit,
            deadline: self.now.after(self.config.append_timeout_us),
        });
        let epoch = follower.epoch;
        self.outputs.push_back(Output::Append {
            to,
            prev: LogId { term, index: prev },
            first: prev.next(),
            last: if empty { prev } else { last },
            max_bytes: room.min(u64::from(self.config.max_append_bytes)),
            commit: self.commit,
            request,
            epoch,
            term: self.hard.term,
        });
    }

    /// Tells a follower at once that more is committed, when no append is about to. One way, no answer, no disk: cheaper
    /// than an empty append.
    pub(crate) fn maybe_tell_commit(&mut self, at: usize) {
        let follower = &mut self.progress[at];
        if follower.state != ProgressState::Replicate || follower.asked.is_some() {
            return;
        }
        let commit = self.commit.min(follower.matched);
        if commit > follower.commit_told {
            follower.commit_told = commit;
            let to = follower.node;
            self.send(to, Message::Commit { term: self.hard.term, commit });
        }
    }

    /// Everything up to `matched` is durable on `from`. One answer vouches for all before it, so a lost one costs nothing
    /// once the next arrives.
    pub(crate) fn on_append_success(&mut self, from: NodeId, epoch: u64, matched: Index) {
        let Some(at) = self.follower_at(from) else {
            return;
        };
        if matched > self.log.last() {
            return self.malformed(from, "an acknowledgement past the end of the leader's log");
        }
        let now = self.now;
        let follower = &mut self.progress[at];
        if follower.epoch != epoch {
            return;
        }
        let grew = follower.on_matched(now, matched);
        follower.paused_until = None;
        if follower.state == ProgressState::Probe && (matched.next() >= follower.next || grew) {
            follower.become_replicate();
        }
        if grew {
            self.maybe_commit();
        }
        // A commit may have ended this leadership: a leader outside of C-new.
        let Some(at) = self.follower_at(from) else {
            return;
        };
        self.maybe_append(at);
        self.maybe_tell_commit(at);
        self.maybe_send_timeout_now();
    }

    /// The follower does not hold the entry before that append. Only an answer to what is still in flight counts: a late one
    /// would walk back over ground already won.
    pub(crate) fn on_append_refused(
        &mut self,
        from: NodeId,
        request: u64,
        epoch: u64,
        last: Index,
        hint: ConflictHint,
    ) {
        let Some(at) = self.follower_at(from) else {
            return;
        };
        let follower = &self.progress[at];
        let sent = follower.inflight.iter().find(|sent| sent.request == request);
        let Some(sent) = sent.filter(|_| follower.epoch == epoch) else {
            return;
        };
        // It had acknowledged this much before the append left, and now holds less.
        if last < sent.matched {
            self.lost_entries(at, last);
        }
        let back = self.progress[at].next.previous().previous();
        let meet = if is_planted(Bug::HintIgnored) { back } else { self.log.meet(hint) };
        let follower = &mut self.progress[at];
        follower.become_probe(meet.next());
        follower.hopeful = true;
        self.maybe_append(at);
    }

    /// Falls back to probing when an answer is overdue.
    pub(crate) fn tick_follower(&mut self, at: usize) {
        let now = self.now;
        let follower = &mut self.progress[at];
        let asked = follower.asked.is_some_and(|asked| now >= asked.deadline);
        if asked || follower.inflight.front().is_some_and(|sent| now >= sent.deadline) {
            if follower.state == ProgressState::Probe {
                // The same epoch: with a disk slower than the deadline each answer would come too late for its own.
                follower.forget_inflight();
            } else {
                follower.become_probe(follower.next);
            }
            follower.hopeful = false;
        }
        self.maybe_append(at);
        let follower = &mut self.progress[at];
        follower.paused_until = follower.paused_until.filter(|until| now < *until);
    }

    /// A follower answered a heartbeat. It is alive: when it nevertheless acknowledges nothing of what is outstanding, whatever
    /// the reason, start over with it. The same when it has forgotten what it found equal to this log: it was started again
    /// so fast that no lane was missed, and commits nothing before it is asked to compare once more.
    pub(crate) fn watch_progress(&mut self, at: usize, verified: Index) {
        let (now, last) = (self.now, self.log.last());
        let patience = 2 * self.config.append_timeout_us;
        let follower = &mut self.progress[at];
        let stuck = follower.matched < last && now.since(follower.moved) >= patience;
        let forgot = verified < follower.matched && follower.inflight.is_empty() && follower.asked.is_none();
        if follower.state == ProgressState::Replicate && (stuck || forgot) && !is_planted(Bug::WatchdogOff) {
            follower.become_probe(follower.matched.next());
            follower.moved = now;
            follower.hopeful = false;
        }
        follower.paused_until = None;
        self.maybe_append(at);
    }

    pub(crate) fn read_round_reached(&self, node: NodeId) -> u64 {
        if node == self.config.id {
            return u64::MAX;
        }
        self.follower_at(node).map_or(0, |at| self.progress[at].round)
    }
}
