//! Mending a sealed segment of a log that is open.
//!
//! The segment is read, and its replacement written beside it, by a [`SealedMender`], which needs nothing of the writer: it goes step
//! by step on whatever thread may wait for the disk. The writer is needed twice, for a moment: to say what is known of the segment
//! ([`Wal::mend_sealed`]), and to put the whole and durable replacement in its place ([`Wal::finish_sealed`]): one rename, one sync
//! of the directory, and a new map in the index. Readers that borrowed from the old map keep it.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use graven_frame::Frame;

use crate::disk::{Disk, DiskFile};
use crate::error::SegmentId;
use crate::format::{OPENING_BYTES, Opening, OpeningFound, segment_name};
use crate::index::{Points, PointsInFile, SegmentIndex, View};
use crate::log::Wal;
use crate::mend::build::{At, Builder, Filling, Unfit};
use crate::mend::error::io_of;
use crate::mend::patient::Patient;
use crate::mend::plan::{Group, plan};
use crate::mend::replacement::{Closed, keep_aside, put_in_place, replacement_name};
use crate::mend::sequence::Sequence;
use crate::mend::survey::{Run, entry_of, read_segment};
use crate::mend::{Filled, MendError};
use crate::open::io_at;
use crate::pool::Failure;
use crate::types::{Counters, Identity, LogBase};

/// Writes the replacement of one sealed segment of an open log. Dropped, it leaves the segment as it is.
pub struct SealedMender<D: Disk> {
    disk: D,
    patient: Patient<D>,
    identity: Identity,
    id: u64,
    salt: u64,
    opened_at: LogBase,
    /// What the segment behind was opened after.
    next: LogBase,
    work: Option<Work<D>>,
    quarantine: Option<String>,
    /// Only one at a time.
    _token: Arc<()>,
}

struct Work<D: Disk> {
    group: Group,
    gaps: Vec<Filling>,
    builder: Builder<D>,
}

/// What a [`SealedMender`] does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SealedStep {
    /// There is more to do: call again.
    More,
    /// Hand over these entries with [`SealedMender::fill`], as many at once as is convenient.
    Wants {
        /// The next entry.
        first: u64,
        /// The last one of the hole.
        last: u64,
    },
    /// Give it to [`Wal::finish_sealed`].
    Ready,
}

impl<D: Disk> Wal<D> {
    /// Begins to mend a sealed segment. Reads and writes nothing yet; the log goes on meanwhile.
    ///
    /// # Errors
    /// [`MendError::Gone`] when there is no such segment any more; [`MendError::NotSealed`] when it is the one that is written to, or another
    /// one is being mended.
    pub fn mend_sealed(&mut self, segment: SegmentId) -> Result<SealedMender<D>, MendError> {
        let refuse = |what| MendError::NotSealed { segment, what };
        if self.mending.upgrade().is_some() {
            return Err(refuse("another segment is being mended"));
        }
        let index = self.shared.read();
        let at = index.segments.iter().position(|there| there.view.id == segment.0);
        let at = at.ok_or(MendError::Gone { segment })?;
        let next = index.segments.get(at + 1).ok_or_else(|| refuse("it is the one that is written to"))?.opened_at;
        let SegmentIndex { view, opened_at, .. } = &index.segments[at];
        let token = Arc::new(());
        self.mending = Arc::downgrade(&token);
        Ok(SealedMender {
            disk: self.disk.clone(),
            patient: Patient::new(self.disk.clone()),
            identity: self.identity,
            id: segment.0,
            salt: view.salt,
            opened_at: *opened_at,
            next,
            work: None,
            quarantine: None,
            _token: token,
        })
    }

    /// Puts a mended segment in its place; returns the directory that keeps the damaged file.
    ///
    /// # Errors
    /// [`MendError::NotSealed`] when it is not ready, [`MendError::Gone`] when the segment was released in the meantime: nothing is changed
    /// then. An error of the disk closes the log for good.
    pub fn finish_sealed(&mut self, mut mender: SealedMender<D>) -> Result<String, MendError> {
        let segment = SegmentId(mender.id);
        let refuse = |what| MendError::NotSealed { segment, what };
        let whole = mender.work.take().and_then(|mut work| work.builder.whole.pop());
        let (Some(whole), Some(quarantine)) = (whole, mender.quarantine.take()) else {
            return Err(refuse("its replacement is not whole"));
        };
        let Some(closed) = whole.closed.clone() else { return Err(refuse("its replacement is not whole")) };
        let is_it = |there: &SegmentIndex| there.view.id == mender.id && there.view.salt == mender.salt;
        if !self.shared.read().segments.iter().any(is_it) {
            // Nobody else will want it.
            self.disk.remove(&replacement_name(mender.id)).map_err(io_of("remove the replacement of", mender.id))?;
            return Err(MendError::Gone { segment });
        }
        let map = whole.map().map_err(io_of("map", mender.id))?;
        if let Err(cause) = put_in_place(&self.disk, mender.id) {
            // Whether the name is durable nobody knows: both files are whole logs, but the next sync proves nothing.
            let kind = cause.kind();
            self.close_for(Failure::at("put in place", mender.id, 0)(cause));
            return Err(io_of("put in place", mender.id)(kind.into()));
        }
        let view = Arc::new(View { id: mender.id, salt: mender.salt, map, written: AtomicU64::new(closed.end) });
        let mut index = self.shared.write();
        let Some(there) = index.segments.iter_mut().find(|there| is_it(there)) else {
            return Err(MendError::Gone { segment });
        };
        let (before, capacity) = (std::mem::replace(&mut there.view, view), there.capacity);
        there.points = points_of(&closed, there.last);
        there.capacity = closed.capacity;
        drop(index);
        self.shared.hold(before.map.lease(), capacity);
        Counters::add(&self.counters.bytes_on_disk, closed.capacity.saturating_sub(capacity));
        Ok(quarantine)
    }
}

/// The points of a mended segment whose entries count up to `last`: the others were superseded since.
fn points_of(closed: &Closed, last: u64) -> Points {
    let mut points = closed.points.clone();
    points.retain(|point| point.index <= last);
    match points.first() {
        Some(first) if points.len() == closed.points.len() && closed.last == last => {
            Points::InFile(PointsInFile { at: closed.points_at, count: points.len(), first: *first })
        }
        _ => Points::Resident(points),
    }
}

impl<D: Disk> SealedMender<D> {
    /// Does the next piece of work: reads the segment, writes what is there of it, keeps a copy of the damaged file. None of it takes
    /// longer than reading and writing one segment; it waits for the disk.
    ///
    /// # Errors
    /// [`MendError::NotSealed`] when the segment can be mended only while the log is closed; the disk's.
    pub fn step(&mut self) -> Result<SealedStep, MendError> {
        let Some(work) = &mut self.work else {
            self.work = Some(self.begin()?);
            return Ok(SealedStep::More);
        };
        match work.builder.advance(&self.patient, &self.disk, self.identity, &work.group, &work.gaps)? {
            At::Gap(gap) => {
                let filling = &work.gaps[gap];
                let last = filling.gap.last.unwrap_or(filling.tail.index);
                Ok(SealedStep::Wants { first: filling.tail.index + 1, last })
            }
            At::Done if self.quarantine.is_none() => {
                let quarantine = crate::repair::quarantine_name(&self.disk)?;
                self.disk.create_dir(&quarantine).map_err(io_of("make a directory for", self.id))?;
                self.disk.sync_dir().map_err(io_of("sync the directory for", self.id))?;
                keep_aside(&self.patient, &quarantine, self.id).map_err(io_of("keep a copy of", self.id))?;
                self.quarantine = Some(quarantine);
                Ok(SealedStep::Ready)
            }
            At::Done => Ok(SealedStep::Ready),
        }
    }

    /// Takes the next entries that [`SealedMender::step`] wants, in order.
    ///
    /// # Errors
    /// [`MendError::Refused`] as [`crate::mend::Mender::fill`]; the disk's.
    pub fn fill(&mut self, frames: &[Frame]) -> Result<Filled, MendError> {
        let unwanted = |frame: &Frame| MendError::Refused { index: frame.header().index, what: "no entry is missing" };
        let Some(work) = &mut self.work else {
            return frames.first().map_or(Ok(Filled { next: 0, done: true }), |frame| Err(unwanted(frame)));
        };
        let at = work.builder.advance(&self.patient, &self.disk, self.identity, &work.group, &work.gaps)?;
        let At::Gap(gap) = at else {
            return frames.first().map_or(Ok(Filled { next: 0, done: true }), |frame| Err(unwanted(frame)));
        };
        for frame in frames {
            let index = frame.header().index;
            match work.gaps[gap].check(frame) {
                Ok(()) => {}
                Err(Unfit::Batch(what)) => return Err(MendError::Refused { index, what }),
                Err(Unfit::Branch(what)) => {
                    work.gaps.iter_mut().for_each(Filling::start_over);
                    work.builder = Builder::new(&work.group);
                    return Err(MendError::Refused { index, what });
                }
            }
            work.builder.push(frame, &self.disk, self.identity, &work.group)?;
            work.gaps[gap].took(frame);
        }
        let filling = &work.gaps[gap];
        Ok(Filled { next: filling.tail.index + 1, done: filling.filled })
    }

    /// Reads the segment and plans what goes into its replacement.
    fn begin(&self) -> Result<Work<D>, MendError> {
        let refuse = |what| MendError::NotSealed { segment: SegmentId(self.id), what };
        let file = self.patient.open(&segment_name(self.id), None).map_err(io_of("open", self.id))?;
        let ours = self.opening_of(self.id)?.filter(|opening| opening.salt == self.salt);
        let ours = ours.filter(|opening| opening.base == self.opened_at);
        let mut segment = read_segment(&file, self.id, ours, true, &|_| false)?;
        segment.salt = Some(self.salt);
        let behind = self.opening_of(self.id + 1)?.filter(|opening| opening.base == self.next);
        let behind = behind.ok_or_else(|| refuse("the opening of the segment behind it is damaged too"))?;
        let next = self.patient.open(&segment_name(self.id + 1), None).map_err(io_of("open", self.id + 1))?;
        let mut stub = crate::mend::survey::lost_segment(self.id + 1, false, "");
        (stub.there, stub.opening, stub.len) = (true, Some(behind), next.len().map_err(io_of("open", self.id + 1))?);
        stub.parts.clear();
        let mut sequence = Sequence::new(self.opened_at);
        let again = |run: &Run, index: u64| {
            let file = self.patient.open(&segment_name(run.segment), None).map_err(io_at("open", run.segment, 0))?;
            entry_of(&file, run, index)
        };
        sequence.segment(&segment, true, &again)?;
        sequence.segment(&stub, false, &again)?;
        sequence.close().map_err(|_| refuse("its first entries replace earlier ones"))?;
        let segments = [segment, stub];
        let plan = plan(&sequence, &segments, self.opened_at, segments[0].len);
        let mut groups = plan.groups.into_iter();
        match (groups.next(), groups.next()) {
            (None, _) => Err(MendError::Whole { segment: SegmentId(self.id) }),
            (Some(group), None) if group.targets.len() == 1 => {
                let gaps = plan.gaps.into_iter().map(Filling::new).collect();
                let builder = Builder::new(&group);
                Ok(Work { group, gaps, builder })
            }
            _ => Err(refuse("the segment behind it was opened after an entry that nobody has any more")),
        }
    }

    fn opening_of(&self, id: u64) -> Result<Option<Opening>, MendError> {
        let file = self.patient.open(&segment_name(id), None).map_err(io_of("open", id))?;
        let mut block = vec![0; OPENING_BYTES as usize];
        let read = file.read_at(0, &mut block).map_err(io_of("read", id))?;
        Ok(match Opening::decode(&block[..read]) {
            OpeningFound::Good(opening) if opening.segment == id => Some(opening),
            _ => None,
        })
    }
}

impl<D: Disk> std::fmt::Debug for SealedMender<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SealedMender").field("segment", &SegmentId(self.id)).finish_non_exhaustive()
    }
}
