//! Giving up entries that nobody has and nobody is known to have committed, and what is known of that.

use crate::disk::Disk;
use crate::error::OpenError;
use crate::format::segment_name;
use crate::mend::error::MendError;
use crate::mend::survey::{Run, entry_of};
use crate::mend::{Mender, examine, lay_out};
use crate::open::io_at;

impl<D: Disk> Mender<D> {
    /// Takes in that entries up to `index` were committed, as a checkpoint beside the log says: they are not given up, and when they are lost
    /// with the end of the log, the marker says so.
    pub fn note_committed(&mut self, index: u64) {
        self.known_commit = self.known_commit.max(index);
        self.highest.0 = self.highest.0.max(index);
    }

    /// Takes the hole that [`Mender::wanted`] names for a lost end of the log: it, and everything behind it, is to be cut by
    /// [`Mender::cut_tail`], when the holes before it are closed. Nothing on the disk is changed by this; holes have new numbers
    /// behind it, and those before it may be wanted again.
    ///
    /// Only where no entry of it is known to be committed, and where every other node has said that it does not have them. Then no
    /// majority has them: they were never committed, and a leader would replace them. The marker that the cut leaves keeps this node
    /// from voting until a leader has brought it further, so a node that was wrong about the others does no harm.
    ///
    /// # Errors
    /// [`MendError::NoTail`] when the hole is not that one, or lies at or below what the log knows to be committed; the disk's.
    pub fn give_up(&mut self, hole: usize) -> Result<(), MendError> {
        let Some(wanted) = self.wanted().filter(|wanted| wanted.hole == hole) else { return Err(MendError::NoTail) };
        let first = self.holes[wanted.hole].first;
        if first <= self.known_commit || first <= self.base.index {
            return Err(MendError::NoTail);
        }
        let patient = &self.patient;
        let mut found = examine(patient, &self.options, self.origin)?;
        let again = |run: &Run, index: u64| -> Result<_, OpenError> {
            let file = patient.open(&segment_name(run.segment), None).map_err(io_at("open", run.segment, 0))?;
            entry_of(&file, run, index)
        };
        if !found.sequence.end_before(first, &again)? {
            return Err(MendError::NoTail);
        }
        let laid = lay_out(found, self.options.segment_bytes);
        self.highest = (self.highest.0.max(laid.highest.0), self.highest.1.max(laid.highest.1));
        self.builders = laid.groups.iter().map(|_| None).collect();
        self.in_place = vec![false; laid.groups.len()];
        (self.holes, self.gap_of, self.gaps) = (laid.holes, laid.gap_of, laid.gaps);
        (self.groups, self.hidden, self.sound) = (laid.groups, laid.hidden, laid.sound);
        Ok(())
    }
}
