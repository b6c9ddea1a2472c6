//! What is on its way to the disk, and what is known to have arrived.
//!
//! Every [`Output::Persist`] waits here for its report. A report vouches for the log as it is now only if nothing it
//! covers was truncated since, and only if its term is still the current one: after a truncation "up to 10 is durable" may
//! speak of an entry 10 that is no more (the ABA of asynchronous storage). Each term change puts out a persist of its own, so
//! that nothing stays unknown for long.

use crate::core::Core;
use crate::output::{Alarm, Output, Write};
use crate::planted::{Bug, is_planted};
use crate::types::{Index, Role, Term, Tick};

/// A persist that was put out and not reported.
#[derive(Debug, Clone)]
pub(crate) struct Pending {
    pub(crate) term: Term,
    pub(crate) last: Index,
    /// The end of what its report vouches for; falls when the log is truncated.
    pub(crate) vouches: Index,
    pub(crate) hard_state: bool,
    pub(crate) started: Tick,
}

/// What was said and done about a slow disk. Forgotten when the oldest persist is young again.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct DiskWatch {
    stalled: bool,
    dead: bool,
    handed_over: bool,
}

impl Core {
    /// Reports that the oldest unreported [`Output::Persist`], whose `term` and `last` these are, is on stable storage.
    ///
    /// A report of a term that has passed is ignored: the entries it vouches for may have been overwritten since. A
    /// report that is not the one awaited is dropped with [`Alarm::Malformed`].
    pub fn durable(&mut self, now: Tick, term: Term, last: Index) {
        self.observe(now);
        if self.pending.front().is_none_or(|front| front.term != term || front.last != last) {
            return self.malformed(self.config.id, "a durable report that is not the oldest persist's");
        }
        let Some(done) = self.pending.pop_front() else {
            return;
        };
        if !self.disk_stalled() {
            self.disk = DiskWatch::default();
        }
        if done.term == self.hard.term {
            self.durable = self.durable.max(done.vouches);
        }
        if self.role != Role::Leader && (done.hard_state || self.now >= self.election_due) {
            self.restart_election_timer();
        }
        if done.hard_state && !self.hard_state_pending() {
            self.on_own_vote_durable();
        }
        if self.role == Role::Leader && done.term == self.hard.term {
            self.maybe_commit();
        }
    }

    pub(crate) fn persist_hard_state(&mut self) {
        self.persist(Write { hard_state: Some(self.hard), entries: None, term: self.hard.term, last: self.log.last() });
    }

    pub(crate) fn persist_entries(&mut self, from: Index) {
        self.persist(Write {
            hard_state: None,
            entries: Some(from..=self.log.last()),
            term: self.hard.term,
            last: self.log.last(),
        });
    }

    fn persist(&mut self, write: Write) {
        self.pending.push_back(Pending {
            term: write.term,
            last: write.last,
            vouches: write.last,
            hard_state: write.hard_state.is_some(),
            started: self.now,
        });
        self.outputs.push_back(Output::Persist(write));
    }

    /// Drops the log's end; what is under way to the disk vouches for no more than what stays.
    pub(crate) fn truncate(&mut self, from: Index) {
        self.log.truncate(from);
        self.durable = self.durable.min(from.previous());
        for pending in &mut self.pending {
            pending.vouches = pending.vouches.min(from.previous());
        }
        self.outputs.push_back(Output::Truncated { from });
    }

    pub(crate) fn hard_state_pending(&self) -> bool {
        self.pending.iter().any(|pending| pending.hard_state)
    }

    pub(crate) fn disk_stalled(&self) -> bool {
        let oldest = self.pending.front();
        let stalled = oldest.is_some_and(|oldest| self.now.since(oldest.started) >= self.config.disk_stall_us);
        stalled && !is_planted(Bug::StallUnnoticed)
    }

    /// The disk gave a sign of life: what waits for it is as young as if it had been put out now.
    pub(crate) fn restart_disk_watch(&mut self) {
        for pending in &mut self.pending {
            pending.started = self.now;
        }
        self.disk = DiskWatch::default();
    }

    /// Watches the age of the oldest unsynced write. A leader whose disk is stuck still sends heartbeats: without this nobody
    /// would take over.
    pub(crate) fn tick_disk(&mut self) {
        let Some(since) = self.pending.front().map(|oldest| oldest.started) else {
            return;
        };
        if self.now.since(since) >= self.config.disk_dead_us && !self.disk.dead {
            self.disk.dead = true;
            self.alarm(Alarm::DiskDead { since });
        }
        if !self.disk_stalled() {
            return;
        }
        if !self.disk.stalled {
            self.disk.stalled = true;
            self.alarm(Alarm::DiskStalled { since });
            if is_planted(Bug::StallCountsAsDone) {
                self.durable = self.log.last();
                self.maybe_commit();
            }
        }
        if self.role == Role::Leader && self.transfer.is_none() {
            self.give_up_for_disk();
        }
    }

    /// Hands over to the follower that is furthest; when that came to nothing, or there is none, just stops leading.
    fn give_up_for_disk(&mut self) {
        if self.progress.iter().all(|follower| !self.log.membership().is_voter(follower.node)) {
            // Alone: nobody could take over, and stopping would only make the outage longer.
            return;
        }
        let heir = if self.disk.handed_over { None } else { self.best_follower() };
        match heir {
            Some(to) => {
                self.disk.handed_over = true;
                self.begin_transfer(to);
            }
            None => self.become_follower(self.hard.term, None, None),
        }
    }

    pub(crate) fn disk_deadline(&self) -> Option<Tick> {
        let oldest = self.pending.front()?;
        let stall = (!self.disk.stalled).then(|| oldest.started.after(self.config.disk_stall_us));
        let dead = (!self.disk.dead).then(|| oldest.started.after(self.config.disk_dead_us));
        [stall, dead].into_iter().flatten().min()
    }
}
