//! Full disks and slow ones: what is taken, what is refused.
//!
//! A follower takes no entry into its log for which the log thread has no room: a job that waits for room would hold up the
//! votes and trims behind it. It leaves out of an append what finds no room, and all behind that; the leader offers it again. Control
//! entries are taken all the same, from the reserve, but for the moves of cursors, which may be as many as appends. A leader proposes records as long as a quorum has room, and hands over when it
//! has none itself ([`graven_raft::Room`]).
//!
//! A disk that hangs is bounded too: with [`JOBS_MAX`] jobs unreported no entries are taken or proposed.

use graven_frame::{Frame, Kind};
use graven_raft::{Role, Room as Where};

use super::disk::DiskReport;
use super::effect::{Now, Rejection};
use super::planted::{Bug, is_planted};
use super::{Job, Replica};

/// Jobs with entries that may be unreported: two windows of messages of a leader. What comes beyond that are votes, of which there
/// is one in an election timeout at most.
pub(super) const JOBS_MAX: usize = 256;

impl Replica {
    /// Takes in that every disk job up to the reported one is done, and what the disk has room for.
    pub fn disk_done(&mut self, now: Now, report: DiskReport) {
        let full = report.room.is_full() || report.waits || (self.disk_full && is_planted(Bug::FullNotCleared));
        self.disk_full = full;
        self.durable_up_to(now, report.sequence, report.saved);
        if report.waits {
            self.core.disk_has_no_room(now.tick);
        }
        self.core.set_disk_full(now.tick, full);
        self.room = report.room;
        for job in &self.jobs {
            self.room.takes(job.bytes);
        }
        self.settle(now);
    }

    /// Why an append is refused at once, if it is.
    pub(super) fn no_room(&self) -> Option<Rejection> {
        match self.core.room() {
            Where::Here => None,
            // Another node takes it in a moment.
            Where::Elsewhere => Some(Rejection::Transferring),
            Where::Nowhere => Some(Rejection::DiskFull),
        }
    }

    /// Whether so much waits for the disk that nothing more is taken.
    pub(super) fn is_backed_up(&self) -> bool {
        self.jobs.len() >= JOBS_MAX
    }

    /// How many of these frames of a leader are taken: up to the first one that is new and finds no room.
    pub(super) fn frames_with_room(&self, frames: &[Frame]) -> usize {
        let mut room = self.room;
        let is_held = |frame: &Frame| {
            let header = frame.header();
            let held = self.log.mark(header.index).is_none_or(|mark| mark.term == header.term);
            header.index <= self.log.last().index && held
        };
        let backed_up = self.is_backed_up();
        let refused = |frame: &Frame| {
            let fits = room.takes(frame.encoded_len()) || !matches!(frame.header().kind, Kind::Records | Kind::Cursor);
            backed_up || !fits
        };
        let new = frames.iter().position(|frame| !is_held(frame)).unwrap_or(frames.len());
        frames[new..].iter().position(refused).map_or(frames.len(), |at| new + at)
    }

    /// Reckons with what `job` will take.
    pub(super) fn reckon(&mut self, job: &Job) {
        self.room.takes(job.bytes);
    }

    /// Refuses what waits for the log, when there is no room for it.
    pub(super) fn maybe_refuse_waiting(&mut self, now: Now) {
        if self.core.role() != Role::Leader || self.intake.len() + self.moves.len() == 0 {
            return;
        }
        match self.no_room() {
            None => {}
            Some(Rejection::DiskFull) => self.refuse_waiting(now),
            Some(rejection) => {
                let requests: Vec<_> = self.intake.drain_requests().chain(self.moves.drain_requests()).collect();
                self.ready.extend(requests.into_iter().map(|request| (request, Err(rejection.clone()))));
            }
        }
    }
}
