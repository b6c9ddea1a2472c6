//! How time passes at a node: ticks, elections, and what a leader does when nobody answers.

use graven_raft::{Core, Follower, Message, Role, Tick};

use super::{ELECTION_TICKS, ELECTION_US, NEVER_US, Node, TICK_US};

impl Node {
    pub(super) fn note_timer(&mut self) {
        let due = self.election_due();
        if due != self.timer.due {
            let drawn = due.map_or(ELECTION_TICKS, |due| due.since(self.clock).div_ceil(TICK_US));
            self.timer.due = due;
            self.timer.elapsed = 0;
            self.timer.patience = drawn;
        }
    }

    /// When this node stands for election; `None` while it may not.
    pub(super) fn election_due(&self) -> Option<Tick> {
        let due = self.core.next_deadline().filter(|_| self.core.role() != Role::Leader)?;
        (due.since(self.clock) < NEVER_US / 2).then_some(due)
    }

    pub(crate) fn pin_timeout(&mut self, ticks: u64) {
        self.timer.pinned = Some(ticks);
    }

    pub(crate) fn tick(&mut self) {
        self.timer.elapsed += 1;
        if self.core.role() == Role::Leader {
            self.tick_leader();
            return;
        }
        let patience = self.timer.pinned.unwrap_or(self.timer.patience);
        match self.timer.due {
            Some(due) if self.timer.elapsed >= patience => self.stand(due),
            // Time passes, but not as far as the core's own timeout: how many ticks that takes, the transcript says.
            Some(due) => self.clock = self.clock.max(Tick((self.clock.0 + TICK_US).min(due.0 - 1))),
            None => self.clock = self.clock.after(TICK_US),
        }
    }

    /// A leader of a transcript looks once in an election timeout who answered since it looked last. Ours looks always: between
    /// two such moments two thirds of an election timeout pass, so that an answer in the last interval is young enough and one
    /// from the interval before it is not.
    fn tick_leader(&mut self) {
        let timeout = self.timer.elapsed.is_multiple_of(ELECTION_TICKS);
        if timeout && self.core.transferring().is_some() {
            self.outwait_transfer();
        } else if timeout && self.options.check_quorum {
            self.clock = self.clock.after(ELECTION_US * 2 / 3);
        }
        self.ticking = true;
        self.input(Core::tick);
        self.ticking = false;
        if timeout && self.options.check_quorum {
            self.active_since = self.clock;
        }
    }

    /// A transfer of leadership is given up after an election timeout, in which those who answer a leader go on doing so.
    fn outwait_transfer(&mut self) {
        let (term, active_since) = (self.core.term(), self.active_since);
        self.clock = self.clock.after(ELECTION_US);
        let followers: Vec<Follower> = self.core.progress().collect();
        let everybody = !self.options.check_quorum;
        for one in followers.iter().filter(|one| everybody || one.heard > active_since) {
            let (from, matched) = (one.node, one.matched);
            let answer = Message::HeartbeatReply { term, round: 0, last: matched, verified: matched, disk_full: false };
            self.input(|core, now| core.receive(now, from, answer));
        }
    }

    /// Stands for election when its timeout runs out, whenever that is. Ours does not while its last word about term and vote is
    /// being written, so that is written first.
    pub(crate) fn campaign(&mut self) {
        if self.election_due().is_none() {
            self.write_early();
        }
        if let Some(due) = self.election_due() {
            self.stand(due);
        }
    }

    fn stand(&mut self, due: Tick) {
        self.clock = self.clock.max(due);
        self.pre_votes.clear();
        let asked = self.messages.len();
        self.input(Core::tick);
        if self.options.pre_vote || self.core.role() != Role::PreCandidate {
            return;
        }
        self.messages.truncate(asked);
        let term = self.core.term();
        for voter in self.core.membership().members() {
            if self.core.role() == Role::PreCandidate && voter != self.id {
                let granted = Message::PreVoteReply { term, campaign: term.next(), granted: true };
                self.input(|core, now| core.receive(now, voter, granted));
            }
        }
    }
}
