//! Reading entries while the writer appends.
//!
//! A reader takes the index's lock for a look-up of a point, and walks record headers in the map without it. What it
//! walks over does not change: the log is physically append-only, and a superseded entry keeps its bytes.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;
use graven_frame::{Frame, Header, Kind};

use crate::disk::Lease;
use crate::error::{Damage, ReadError, SegmentId};
use crate::index::{Located, LogIndex, SegmentIndex, View};
use crate::scrub::Files;
use crate::types::{Counters, LogBase, ReaderStats, Waypoint};
use crate::walk::{Met, approach, walk};

/// What the writer and its readers share.
pub(crate) struct Shared {
    index: RwLock<LogIndex>,
    /// Removed segments that somebody still read from, as far as nobody looked whether they still do.
    held: Mutex<Vec<Held>>,
    held_limit_bytes: u64,
    /// For reading a segment without its map.
    files: Box<dyn Files>,
}

/// A removed segment.
struct Held {
    lease: Lease,
    bytes: u64,
}

impl Shared {
    pub(crate) fn new(index: LogIndex, held_limit_bytes: u64, files: Box<dyn Files>) -> Shared {
        Shared { index: RwLock::new(index), held: Mutex::default(), held_limit_bytes, files }
    }

    /// Remembers a removed segment as long as somebody can read from it.
    pub(crate) fn hold(&self, lease: Lease, bytes: u64) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).push(Held { lease, bytes });
    }

    /// Forgets removed segments that nobody can read from any more; number and bytes of the others.
    fn held(&self) -> (u64, u64) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.retain(|held| held.lease.strong_count() > 0);
        (held.len() as u64, held.iter().map(|held| held.bytes).sum())
    }

    pub(crate) fn sweep_held(&self, counters: &Counters) {
        counters.held_bytes.store(self.held().1, Ordering::Relaxed);
    }

    // A panic while the lock is held leaves an index that may lack an entry, never one that points at wrong bytes:
    // every read checks the record it lands on.
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, LogIndex> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, LogIndex> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads the log while it is written; clones share it. Returned frames borrow the mapped segments and keep them mapped.
#[derive(Clone)]
pub struct LogReader {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for LogReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LogReader({}..={})", self.first_index(), self.last_index())
    }
}

impl LogReader {
    pub(crate) fn new(shared: Arc<Shared>) -> LogReader {
        LogReader { shared }
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    pub(crate) fn files(&self) -> &dyn Files {
        &*self.shared.files
    }

    /// The first entry held.
    #[must_use]
    pub fn first_index(&self) -> u64 {
        self.shared.read().base.index + 1
    }

    /// The last entry written, synced or not; one below [`LogReader::first_index`] when there is none.
    #[must_use]
    pub fn last_index(&self) -> u64 {
        self.shared.read().last
    }

    /// The segment that holds this entry; `None` when it is not held, or nothing says where.
    #[must_use]
    pub fn segment_of(&self, index: u64) -> Option<SegmentId> {
        self.locate(index).ok().map(|located| SegmentId(located.view.id))
    }

    /// One entry. Its header was checked; its body was not: see [`Frame::verify`].
    ///
    /// # Errors
    /// When the entry is not held, or its record is damaged.
    pub fn frame(&self, index: u64) -> Result<Frame, ReadError> {
        let located = self.locate_near(index)?;
        let met = walk(&located, |met| met.header.index >= index)?;
        frame_of(&located.view, &met)
    }

    /// One entry's header; cheaper than [`LogReader::frame`].
    ///
    /// # Errors
    /// As [`LogReader::frame`].
    pub fn header(&self, index: u64) -> Result<Header, ReadError> {
        let located = self.locate_near(index)?;
        Ok(walk(&located, |met| met.header.index >= index)?.header)
    }

    /// The entries `from..=to_inclusive`, as many as fit into `max_bytes`, and at least the first one.
    ///
    /// Ends early, without an error, at the end of the log and before an entry that cannot be read; asking for that one
    /// gives the error.
    ///
    /// # Errors
    /// When the first entry cannot be read.
    pub fn frames(&self, from: u64, to_inclusive: u64, max_bytes: usize) -> Result<Vec<Frame>, ReadError> {
        let mut frames: Vec<Frame> = Vec::new();
        let (mut next, mut bytes) = (from, 0);
        while next <= to_inclusive {
            let located = match self.locate_near(next) {
                Ok(located) => located,
                Err(error) if frames.is_empty() => return Err(error),
                Err(_) => break,
            };
            let mut failed = None;
            let mut full = false;
            let mut wanted = next;
            let done = walk(&located, |met| {
                if met.header.index < wanted {
                    return false;
                }
                bytes += met.header.frame_len();
                full = bytes > max_bytes && !frames.is_empty();
                if full {
                    return true;
                }
                match frame_of(&located.view, met) {
                    Ok(frame) => frames.push(frame),
                    Err(error) => failed = Some(error),
                }
                wanted += 1;
                failed.is_some() || wanted > to_inclusive || wanted >= located.until
            });
            next = wanted;
            match failed.map_or(done.map(|_| ()), Err) {
                Err(error) if frames.is_empty() => return Err(error),
                Err(_) => break,
                Ok(()) if full => break,
                Ok(()) => {}
            }
        }
        Ok(frames)
    }

    /// The records entry that holds this offset; `None` when it is not written yet.
    ///
    /// # Errors
    /// [`ReadError::Trimmed`] when it is before the first entry held (`index` then names the entry before that one), or damage on
    /// the way.
    pub fn index_of_offset(&self, offset: u64) -> Result<Option<u64>, ReadError> {
        let located = {
            let index = self.shared.read();
            if offset < index.base.next_offset {
                return Err(ReadError::Trimmed { index: index.base.index, first: index.base.index + 1 });
            }
            index.stretch(|point| point.base_offset, offset)
        };
        let Some(stretch) = located else { return Ok(None) };
        let mut located = stretch.resolve(|point| point.base_offset, offset).map_err(ReadError::Damaged)?;
        approach(&mut located, offset, |header| header.base_offset, |point| point.base_offset);
        self.find(located, |header| header.kind == Kind::Records && header.next_offset() > offset)
    }

    /// The first entry whose timestamp is not below this one; `None` when all are.
    ///
    /// # Errors
    /// Damage on the way.
    pub fn index_of_time(&self, timestamp_ms: u64) -> Result<Option<u64>, ReadError> {
        // Entries of the same time as a point may stand before it: start at one that is surely older.
        let older = timestamp_ms.checked_sub(1).and_then(|older| {
            let stretch = self.shared.read().stretch(|point| point.timestamp_ms, older);
            stretch.map(|stretch| stretch.resolve(|point| point.timestamp_ms, older))
        });
        let mut located = match older {
            Some(located) => located.map_err(ReadError::Damaged)?,
            None => {
                let (first, stretch) = {
                    let index = self.shared.read();
                    (index.base.index + 1, index.locate(index.base.index + 1))
                };
                let Some(stretch) = stretch else { return Ok(None) };
                stretch.resolve(|point| point.index, first).map_err(ReadError::Damaged)?
            }
        };
        if let Some(older) = timestamp_ms.checked_sub(1) {
            approach(&mut located, older, |header| header.timestamp_ms, |point| point.timestamp_ms);
        }
        self.find(located, |header| header.timestamp_ms >= timestamp_ms)
    }

    /// Places in the log before `upto`, which is in it, ascending, and that one last: where segments begin, and where the index knows more,
    /// every 128 KiB. Reads nothing but the way to `upto`.
    ///
    /// # Errors
    /// Damage on that way.
    pub fn waypoints(&self, upto: &LogBase) -> Result<Vec<Waypoint>, ReadError> {
        let (mut found, mut starts, mut bytes) = (Vec::new(), Vec::new(), 0);
        {
            let index = self.shared.read();
            for segment in &index.segments {
                let points = segment.points.known();
                let Some(first) = points.first().map(|point| point.position) else { continue };
                starts.push((segment.view.id, first, bytes));
                found.extend(points.iter().filter(|point| point.index <= upto.index).map(|point| Waypoint {
                    index: point.index.saturating_sub(1),
                    next_offset: point.base_offset,
                    bytes: bytes + point.position.saturating_sub(first),
                    timestamp_ms: point.timestamp_ms,
                }));
                bytes += segment.view.written().saturating_sub(first);
            }
        }
        if upto.index < self.last_index() {
            let located = self.locate_near(upto.index + 1)?;
            let at = walk(&located, |met| met.header.index > upto.index)?.frame_at;
            let start = starts.iter().find(|(id, _, _)| *id == located.view.id);
            bytes = start.map_or(0, |(_, first, bytes)| bytes + at.saturating_sub(*first));
        }
        let LogBase { index, next_offset, timestamp_ms, .. } = *upto;
        found.push(Waypoint { index, next_offset, bytes, timestamp_ms });
        Ok(found)
    }

    /// Makes these entries' bytes resident. Waits for the disk: not for a thread that has heartbeats to send.
    pub fn populate(&self, from: u64, to: u64) {
        let holding: Vec<_> = {
            let index = self.shared.read();
            let holds =
                |segment: &&SegmentIndex| segment.range().is_some_and(|(first, last)| first <= to && last >= from);
            index.segments.iter().filter(holds).map(|held| (Arc::clone(&held.view), held.points.clone())).collect()
        };
        for (view, points) in holding {
            let points = points.to_vec(&view);
            let after_start = points.partition_point(|point| point.index <= from);
            let start = points.get(after_start.saturating_sub(1)).map_or(0, |point| point.position);
            let end = points.iter().find(|point| point.index > to).map_or(view.written(), |point| point.position);
            view.map.populate(start, end);
        }
    }

    /// What can be seen.
    #[must_use]
    pub fn stats(&self) -> ReaderStats {
        let index = self.shared.read();
        let bytes = index.segments.iter().map(|segment| segment.view.written()).sum();
        let segments = index.segments.len() as u64;
        drop(index);
        let (held_segments, held_bytes) = self.shared.held();
        ReaderStats { segments, bytes, held_segments, held_bytes, held_limit_bytes: self.shared.held_limit_bytes }
    }

    fn locate(&self, wanted: u64) -> Result<Located, ReadError> {
        let (stretch, last) = {
            let index = self.shared.read();
            if wanted <= index.base.index {
                return Err(ReadError::Trimmed { index: wanted, first: index.base.index + 1 });
            }
            (index.locate(wanted), index.last)
        };
        let stretch = stretch.ok_or(ReadError::NotYet { index: wanted, last })?;
        stretch.resolve(|point| point.index, wanted).map_err(ReadError::Damaged)
    }

    /// As [`LogReader::locate`], as close to the entry as is cheap.
    fn locate_near(&self, wanted: u64) -> Result<Located, ReadError> {
        let mut located = self.locate(wanted)?;
        approach(&mut located, wanted, |header| header.index, |point| point.index);
        Ok(located)
    }

    /// The first entry from a located one on that is what `wanted` says.
    fn find(&self, mut located: Located, wanted: impl Fn(&Header) -> bool) -> Result<Option<u64>, ReadError> {
        loop {
            let met = walk(&located, |met| wanted(&met.header) || met.header.index + 1 >= located.until)?;
            if wanted(&met.header) {
                return Ok(Some(met.header.index));
            }
            located = match self.locate(located.until) {
                Ok(located) => located,
                Err(ReadError::NotYet { .. }) => return Ok(None),
                Err(error) => return Err(error),
            };
        }
    }
}

fn frame_of(view: &View, met: &Met) -> Result<Frame, ReadError> {
    let end = met.frame_at + met.header.frame_len() as u64;
    let bytes: Bytes = view.map.slice(met.frame_at, end, view.written());
    let index = met.header.index;
    Frame::parse(bytes).map(|(frame, _)| frame).map_err(|_| {
        let what = "frame header is damaged";
        ReadError::Damaged(Damage {
            segment: SegmentId(view.id),
            from: met.frame_at,
            to: end,
            first_index: index,
            last_index: index,
            what,
        })
    })
}
