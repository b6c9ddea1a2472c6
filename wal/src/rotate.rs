//! From one segment to the next, and away with those at the front.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use crate::disk::{Disk, DiskFile, WriteMode};
use crate::error::AppendError;
use crate::format::{
    Footer, OPENING_BYTES, Opening, POINT_BYTES, PREFIX_BYTES, RecordKind, TRAILER_BYTES, encode_trailer, extent,
    segment_name,
};
use crate::index::{SegmentIndex, View};
use crate::log::{Active, PADDING, Wal};
use crate::map::Mirror;
use crate::plan::Fill;
use crate::planted::{Bug, is_planted};
use crate::pool::{Failure, Prepared};
use crate::types::{Counters, HardState, SyncMethod};

impl<D: Disk> Wal<D> {
    /// Lets go of segments at the front that hold only entries below `index`; returns the first entry still held.
    ///
    /// One that nobody reads or borrows from is kept for reuse, as far as there is use for it; the others are removed. The
    /// bytes of a removed one stay on the disk until its last borrower is gone: [`crate::ReaderStats::held_bytes`].
    ///
    /// # Errors
    /// The first error closes the log for good.
    pub fn release_before(&mut self, index: u64) -> Result<u64, AppendError> {
        self.release_from_now(index);
        while self.release_step()? {}
        Ok(self.shared.read().base.index + 1)
    }

    /// Has the same done by [`Wal::release_step`], one segment at a time: each takes a sync of the directory, and appends need not wait for
    /// a thousand of them. Until the last step the log begins earlier, and so it does after a crash in between.
    pub fn release_from_now(&mut self, index: u64) {
        self.release_to = self.release_to.max(index);
    }

    /// Whether there is a segment to let go of.
    #[must_use]
    pub fn is_releasing(&self) -> bool {
        self.closed.is_none() && self.shared.read().releasable(self.release_to).is_some()
    }

    /// Lets go of one segment, as [`Wal::release_before`] and [`Wal::release_from_now`] were asked to. Returns whether there are more.
    ///
    /// # Errors
    /// The first error closes the log for good.
    pub fn release_step(&mut self) -> Result<bool, AppendError> {
        self.check_open()?;
        let Some((id, capacity)) = self.shared.read().releasable(self.release_to) else {
            self.shared.sweep_held(&self.counters);
            return Ok(false);
        };
        // A segment may be free to go because of a reset or a superseding entry behind it. Power fails after the removal
        // and before those are durable: the log would be without either.
        self.sync()?;
        self.release_first(id, capacity)?;
        Ok(true)
    }

    fn release_first(&mut self, id: u64, capacity: u64) -> Result<(), AppendError> {
        // Out of the index first: from here on nobody new can come to read it.
        let Some(released) = self.shared.write().drop_first() else { return Ok(()) };
        let mut view = released.view;
        let unread = Arc::get_mut(&mut view).and_then(|view| Arc::get_mut(&mut view.map));
        let recycled = match unread.is_some_and(|map| map.is_unborrowed()) || is_planted(Bug::RecycledWhileRead) {
            true => self.pool.recycle(id, capacity, &self.counters),
            false => {
                self.shared.hold(view.map.lease(), capacity);
                Ok(false)
            }
        };
        if recycled.map_err(|failure| self.close_for(failure))? {
            Counters::sub(&self.counters.segments, 1);
            return Ok(());
        }
        let removed = self.disk.remove(&segment_name(id)).map_err(Failure::at("remove", id, 0));
        // Each removal is made durable before the next: a hole between segments would look like a lost one.
        let removed = if is_planted(Bug::RemovalUnsynced) {
            removed
        } else {
            removed.and_then(|()| self.disk.sync_dir().map_err(Failure::at("sync the directory for", id, 0)))
        };
        removed.map_err(|failure| self.close_for(failure))?;
        Counters::sub(&self.counters.segments, 1);
        Counters::sub(&self.counters.bytes_on_disk, capacity);
        Ok(())
    }

    /// Seals the active segment and goes on in the next one, which the pool has.
    pub(crate) fn rotate(&mut self, capacity: u64) -> Result<(), AppendError> {
        if !self.active.sealed {
            self.seal()?;
        }
        // What is in the next segment says that all of this one is durable.
        if !is_planted(Bug::SealWithoutSync) {
            self.sync()?;
        }
        let Some(next) = self.pool.take(&self.counters) else {
            return Err(AppendError::DiskFull { segment_bytes: capacity });
        };
        let begun = self.begin(next);
        begun.map_err(|failure| self.close_for(failure))?;
        Counters::add(&self.counters.rotations, 1);
        Counters::add(&self.counters.segments, 1);
        Ok(())
    }

    fn begin(&mut self, next: Prepared<D::File>) -> Result<(), Failure> {
        let Prepared { id, file, capacity, recycled, filled, .. } = next;
        let salt = self.disk.random().map_err(Failure::at("draw a salt for", id, 0))?;
        let opening = Opening {
            segment: id,
            salt,
            identity: self.identity,
            capacity,
            hard_state: if is_planted(Bug::HardStateTrimmed) { HardState::default() } else { self.hard_state },
            base: self.tail,
            known_commit: self.noted_commit.min(self.durable_index),
        };
        if is_planted(Bug::SyncBeforeWrite) {
            file.sync_data().map_err(Failure::at("sync", id, 0))?;
        }
        let mut block = opening.encode();
        if recycled {
            // The end mark of a segment without records.
            block.resize(block.len() + PREFIX_BYTES, 0);
        }
        let durable = self.options.sync == SyncMethod::Dsync || is_planted(Bug::SyncBeforeWrite);
        let (file, map, mirror) = if self.options.sync == SyncMethod::Direct {
            let mirror = self.take_mirror(capacity).map_err(Failure::at("take memory for", id, 0))?;
            let direct = self.disk.open(&segment_name(id), Some(WriteMode::Direct));
            (direct.map_err(Failure::at("open", id, 0))?, mirror.view(), Some(mirror))
        } else {
            let map = file.map(capacity).map_err(Failure::at("map", id, 0))?;
            (file, map, None)
        };
        let view = Arc::new(View { id, salt, map, written: AtomicU64::new(OPENING_BYTES) });
        let mut active = Active {
            view: Arc::clone(&view),
            file,
            capacity,
            written: OPENING_BYTES,
            synced: if durable { OPENING_BYTES } else { 0 },
            vouched: OPENING_BYTES,
            sealed: false,
            filled,
            recycled,
            mirror,
        };
        active.write_at(0, &mut [IoSlice::new(&block)]).map_err(Failure::at("write", id, 0))?;
        // No sync: the next one makes the opening durable together with the first records. Until then they say that nothing
        // of this segment is durable. Power fails before: the block may be torn and records behind it whole; the segment
        // counts as never begun, which is right, because nothing in it was acknowledged.
        self.shared.write().segments.push(SegmentIndex::new(view, capacity, self.tail));
        // The old file's descriptor closes here, after its seal was synced through it.
        self.active = active;
        Counters::add(&self.counters.bytes_written, OPENING_BYTES);
        Ok(())
    }

    fn seal(&mut self) -> Result<(), AppendError> {
        let (payload, points) = self.footer();
        let at = self.active.written;
        let points_at = at + (PREFIX_BYTES + payload.len() - points * POINT_BYTES) as u64;
        let prefix = self.prefix(RecordKind::Footer, at, payload.len(), crc32fast::hash(&payload)).encode();
        let end = at + extent(payload.len());
        let padding = &PADDING[..(end - at) as usize - PREFIX_BYTES - payload.len()];
        self.write(&mut [IoSlice::new(&prefix), IoSlice::new(&payload), IoSlice::new(padding)], end)?;
        let trailer_at = self.active.capacity - TRAILER_BYTES;
        let trailer = self.trailer(trailer_at, at);
        let written = self.active.write_at(trailer_at, &mut [IoSlice::new(&trailer)]);
        written.map_err(|cause| self.close_for(Failure::at("write", self.active.view.id, trailer_at)(cause)))?;
        self.active.sealed = true;
        if let Some(segment) = self.shared.write().segments.last_mut() {
            segment.leave_points_in_file(points_at);
        }
        self.leave_mirror().map_err(|failure| self.close_for(failure))
    }

    /// Memory for a segment: that of the one before, if nobody borrows from it. What is still borrowed counts as held.
    fn take_mirror(&mut self, capacity: u64) -> io::Result<Mirror> {
        if let Some((mut mirror, view)) = self.retired.take() {
            let (lease, written) = (view.map.lease(), view.written());
            drop(view);
            // A lease keeps nothing alive, but while there is one nobody can tell whether something else does.
            let lease_of_borrowed = (lease.strong_count() > 1).then_some(lease);
            if lease_of_borrowed.is_none() && mirror.capacity() == capacity && mirror.is_unborrowed() {
                return Ok(mirror);
            }
            if let Some(lease) = lease_of_borrowed {
                self.shared.hold(lease, written);
            }
        }
        Mirror::new(capacity)
    }

    /// Has a sealed segment that was written around the page cache read from its file.
    fn leave_mirror(&mut self) -> Result<(), Failure> {
        let Some(mirror) = self.active.mirror.take() else { return Ok(()) };
        let Active { view: before, file, capacity, written, .. } = &self.active;
        let map = file.map(*capacity).map_err(Failure::at("map", before.id, 0))?;
        let view = Arc::new(View { id: before.id, salt: before.salt, map, written: AtomicU64::new(*written) });
        if let Some(segment) = self.shared.write().segments.last_mut() {
            segment.view = Arc::clone(&view);
        }
        let before = std::mem::replace(&mut self.active.view, view);
        self.retired = Some((mirror, before));
        Ok(())
    }

    /// Seals the active segment when what comes next will hardly fit into it: then the sync that is due for the records just
    /// written makes the footer durable as well, and the append that goes on in the next segment waits for one sync as any other.
    ///
    /// `bytes` is what was just written; the next one is taken to be alike. What is left unused is less than that, and at most
    /// a sixteenth of the segment. Not when only the reserve of a full disk would be left: then every byte is used.
    pub(crate) fn maybe_seal_ahead(&mut self, bytes: u64) -> Result<(), AppendError> {
        if self.active.sealed || self.pool.len() < 2 {
            return Ok(());
        }
        let fits = {
            let index = self.shared.read();
            let fill = Fill::of(&index, self.active.written, false, self.active.capacity);
            fill.takes(bytes.min(self.active.capacity / 16))
        };
        if fits {
            return Ok(());
        }
        self.seal()?;
        if is_planted(Bug::SealAheadBelieved) {
            self.active.synced = self.active.written;
        }
        Counters::add(&self.counters.sealed_ahead, 1);
        Ok(())
    }

    pub(crate) fn trailer(&self, at: u64, footer_at: u64) -> Vec<u8> {
        let payload = encode_trailer(footer_at);
        let prefix = self.prefix(RecordKind::Trailer, at, payload.len(), crc32fast::hash(&payload)).encode();
        [prefix.as_slice(), &payload].concat()
    }

    /// The payload of the footer, and how many points are at its end.
    fn footer(&self) -> (Vec<u8>, usize) {
        let index = self.shared.read();
        let mut footer = Footer {
            base: index.base,
            tail: self.tail,
            hard_state: self.hard_state,
            known_commit: self.noted_commit.min(self.durable_index),
            ..Footer::default()
        };
        let mut points = Vec::new();
        if let Some(segment) = index.segments.last() {
            footer.reset = segment.reset;
            footer.runs.clone_from(&segment.runs);
            footer.memberships.clone_from(&segment.memberships);
            points = segment.points.to_vec(&segment.view);
        }
        (footer.encode(&points), points.len())
    }
}
