//! What a Ready does: storage, state machine, messages that leave; at once, or by storage threads.

use graven_raft::{Index, Role, Term};

use super::super::wire::{Body, Item, Payload, Wire};
use super::{AppendWork, Job, Node};

impl Node {
    pub(crate) fn has_ready(&self) -> bool {
        self.printed != self.facts()
            || !self.messages.is_empty()
            || !self.job.writes.is_empty()
            || !self.job.after.is_empty()
            || self.install.is_some()
            || !self.committed().is_empty()
    }

    /// Does all that was staged, or hands it to the storage threads. Returns what leaves now.
    pub(crate) fn process_ready(&mut self) -> Vec<Wire> {
        self.finish_install();
        self.printed = self.facts();
        let mut leaving = std::mem::take(&mut self.messages);
        let job = std::mem::take(&mut self.job);
        let committed = self.committed();
        if let Some(last) = committed.last() {
            self.applying = last.id.index;
        }
        if self.options.async_writes {
            if self.disk_is_idle() && job.after.iter().any(|wire| wire.kind == "MsgVote") {
                // Theirs asks for votes while its own is still being written. Ours does not: its disk is idle, and writes it at once.
                leaving.extend(self.finish_writes(job));
            } else if !job.writes.is_empty() || !job.after.is_empty() {
                self.append_work.push_back(AppendWork(job));
            }
            if !committed.is_empty() {
                self.apply_work.push_back(committed);
            }
            return leaving;
        }
        let reports = self.write(&job);
        self.apply(&committed);
        leaving.extend(job.after);
        self.report(reports);
        if let Some(last) = committed.last() {
            self.on_applied(last.id.index);
        }
        leaving
    }

    fn finish_install(&mut self) {
        let Some((from, term, snapshot)) = self.install.take() else { return };
        let memberships = vec![(snapshot.since, snapshot.membership.clone())];
        let base = snapshot.id;
        self.disk.install(snapshot);
        self.input(|core, now| core.installed(now, base, memberships));
        self.applying = self.applying.max(base.index);
        self.installed = base.index;
        let wire = self.wire(from, "MsgAppResp", Payload::Installed(term));
        self.job.after.push(wire);
    }

    /// What is committed and not yet handed to the state machine. With storage threads it must be durable as well.
    fn committed(&self) -> Vec<Item> {
        let mut end = self.core.commit();
        if self.options.async_writes {
            end = end.min(self.core.durable_index());
        }
        let most = if self.options.one_commit_per_ready { 1 } else { usize::MAX };
        (self.applying.0 + 1..=end.0).filter_map(|index| self.item(Index(index))).take(most).collect()
    }

    fn finish_writes(&mut self, job: Job) -> Vec<Wire> {
        let reports = self.write(&job);
        self.report(reports);
        job.after
    }

    fn disk_is_idle(&self) -> bool {
        self.append_work.is_empty() && self.reports_under_way == 0
    }

    /// What is staged for the disk is written now, before its Ready; what leaves after it waits for the Ready all the same.
    pub(super) fn write_early(&mut self) {
        if !self.disk_is_idle() {
            return;
        }
        let writes = std::mem::take(&mut self.job.writes);
        let job = Job { writes, after: Vec::new() };
        self.finish_writes(job);
    }

    pub(super) fn report(&mut self, durable: Vec<(Term, Index)>) {
        for (term, last) in durable {
            self.input(|core, now| core.durable(now, term, last));
        }
    }

    fn write(&mut self, job: &Job) -> Vec<(Term, Index)> {
        for (_, items) in &job.writes {
            self.disk.write(items);
        }
        job.writes.iter().map(|(write, _)| (write.term, write.last)).collect()
    }

    fn apply(&mut self, items: &[Item]) {
        items.iter().for_each(|item| self.disk.apply(item));
    }

    pub(super) fn on_applied(&mut self, index: Index) {
        self.input(|core, now| core.applied(now, index));
        let newest = self.disk.newest();
        let joint = newest.membership.is_joint() && newest.auto_leave && self.core.membership() == &newest.membership;
        if joint
            && self.core.role() == Role::Leader
            && let Ok(membership) = newest.membership.leave_joint()
        {
            let leave =
                Body::Change { legacy: false, text: String::new(), auto_leave: false, membership: Some(membership) };
            // Refused only while leadership is handed over: then the next leader does it.
            let _ = self.propose(leave);
        }
    }

    /// One job of the storage thread; `None` when there is none. Returns what it answers, to others and to the node itself.
    pub(crate) fn process_append(&mut self) -> Option<Vec<Wire>> {
        let AppendWork(job) = self.append_work.pop_front()?;
        let reports = self.write(&job);
        let entries = job.writes.iter().any(|(write, _)| write.entries.is_some());
        let mut answers = job.after;
        if !entries && self.reports_under_way == 0 {
            // Only entries are reported by a message of their own there.
            self.report(reports);
        } else if !reports.is_empty() {
            self.reports_under_way += 1;
            answers.push(self.wire(self.id, "MsgStorageAppendResp", Payload::Durable(reports)));
        }
        Some(answers)
    }

    /// One job of the state machine's thread; `None` when there is none.
    pub(crate) fn process_apply(&mut self) -> Option<Vec<Wire>> {
        let items = self.apply_work.pop_front()?;
        self.apply(&items);
        let last = items.last().map_or(self.core.applied_index(), |item| item.id.index);
        Some(vec![self.wire(self.id, "MsgStorageApplyResp", Payload::Applied(last))])
    }
}
