//! What others may see of a replica.

use graven_raft::{Core, NodeId, Role};

use super::effect::View;
use super::{Alarm, Replica};
use crate::members::Members;

/// How much a replica holds of everything that could grow.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Requests that wait for the disk.
    pub intake: usize,
    /// Requests that wait for a commit, a round or an index.
    pub waiting: usize,
    /// Disk jobs that are not reported.
    pub jobs: usize,
    /// Messages that wait for a disk job.
    pub held: usize,
    /// Loads under way.
    pub loads: usize,
    /// Wishes to hand leadership over.
    pub transfers: usize,
    /// Effects and answers not fetched.
    pub undrained: usize,
    /// Frames of the input.
    pub stash: usize,
    /// Bytes of recent frames.
    pub ring_bytes: usize,
    /// Those of them above the readable index.
    pub tail_bytes: usize,
    /// Marks of entries above the readable index.
    pub marks: usize,
    /// Sessions.
    pub sessions: usize,
    /// Results remembered in all of them.
    pub results: usize,
    /// Entries that the session table knows how to take back.
    pub undo: usize,
    /// Followers that are offered a checkpoint.
    pub offers: usize,
    /// Words about named snapshots that readers do not see yet, uploads that wait, and files to be fetched.
    pub names: usize,
}

impl Replica {
    /// What others may know, now.
    #[must_use]
    pub fn view(&self) -> View {
        let readable = self.log.readable();
        View {
            term: self.core.term(),
            role: self.core.role(),
            leader: self.core.leader(),
            commit_index: self.core.commit().0,
            last_index: self.log.last().index,
            durable_index: self.durable,
            readable_index: readable.index,
            applied_index: self.applied,
            first_offset: self.first_offset,
            next_offset: readable.next_offset,
            diverged: self.diverged,
            disk_full: self.disk_full,
            recovering: self.recovering.is_some() || self.installs.is_installing(),
            unsynced_since: self.core.oldest_unsynced(),
        }
    }

    /// This node's id.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.config.raft.id
    }

    /// The members as the newest membership entry has them.
    #[must_use]
    pub fn members(&self) -> Option<&Members> {
        self.members.last().map(|(_, members)| members)
    }

    /// Everybody to talk to: the members, and those whose removal is not committed yet. A leader that takes itself out must
    /// be heard until the others have that entry and it has their word for it.
    #[must_use]
    pub fn company(&self) -> Members {
        let mut company = self.members().cloned().unwrap_or_default();
        for member in self.members.iter().rev().skip(1).flat_map(|(_, members)| members.present()) {
            if company.by_id(member.id).is_none() {
                company.nodes.retain(|gone| gone.id != member.id);
                company.nodes.push(member.clone());
            }
        }
        company
    }

    /// Counts the changes of the members and of [`Replica::company`], those taken back included.
    #[must_use]
    pub fn members_version(&self) -> u64 {
        self.members_version
    }

    /// Index of the newest membership entry; 0 when there is none.
    #[must_use]
    pub fn members_index(&self) -> u64 {
        self.members.last().map_or(0, |(index, _)| *index)
    }

    /// The core, to look at.
    #[must_use]
    pub fn core(&self) -> &Core {
        &self.core
    }

    /// Requests that wait: in the intake, and for an answer.
    #[must_use]
    pub fn waiting(&self) -> (usize, usize) {
        (self.intake.len(), self.acks.waiting())
    }

    /// Whether this node may take appends.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.core.role() == Role::Leader
    }

    /// The chain value and offset after the newest readable entry, for comparing nodes.
    #[must_use]
    pub fn readable_mark(&self) -> super::log::Mark {
        self.log.readable()
    }

    /// Asserts the replica's invariants; for tests and the simulator, after every step.
    ///
    /// # Panics
    /// When one does not hold.
    pub fn check(&self) {
        self.log.check(self.durable);
        if let Err(broken) = graven_raft::invariants::check_state(&self.core) {
            panic!("{broken}");
        }
        assert!(self.log.readable().index <= self.core.commit().0, "readable above commit");
        assert!(self.log.readable().index <= self.durable, "readable above durable");
        assert_eq!(self.log.last().index, self.core.last_id().index.0, "the core's log and the replica's differ");
    }

    /// What it holds in memory; for tests and the simulator, which compare it with the bounds.
    #[doc(hidden)]
    #[must_use]
    pub fn footprint(&self) -> Footprint {
        let (ring_bytes, tail_bytes, marks) = self.log.footprint();
        let (sessions, results, undo) = self.sessions.footprint();
        Footprint {
            intake: self.intake.len() + self.moves.len(),
            waiting: self.acks.waiting(),
            jobs: self.jobs.len(),
            held: self.held.len(),
            loads: self.loads.len(),
            transfers: self.transfers.len(),
            undrained: self.effects.len() + self.ready.len(),
            stash: self.stash.len(),
            ring_bytes,
            tail_bytes,
            marks,
            sessions,
            results,
            undo,
            offers: self.installs.offers(),
            names: self.tables.names.ahead() + self.pictures.waiting(),
        }
    }

    /// Whether an alarm means that the node must stop.
    #[must_use]
    pub fn must_stop(alarm: &Alarm) -> bool {
        matches!(alarm, Alarm::Diverged { .. } | Alarm::DiskStalled)
    }
}
