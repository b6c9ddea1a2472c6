//! Where entries are: a sparse index in memory, shared by the writer and its readers.
//!
//! One point stands for about 128 KiB of records. Entries that a later one superseded stay in the files, and vanish from
//! here: the first entry behind such a place always has a point of its own, so that a walk from a point up to the next
//! one never meets a superseded entry. Invariants, checked by [`LogIndex::check`] in tests:
//!
//! - the entries of the segments follow each other without a hole, from `base.index + 1` to `last`;
//! - a segment that holds entries has a point for its first one, and points ascend by index and by position.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use graven_frame::{Header, Kind};

use crate::disk::DiskMap;
use crate::format::{Footer, POINT_SPACING, Point};
use crate::types::{LogBase, TermRun};

/// The bytes of one segment as readers see them.
pub(crate) struct View {
    pub(crate) id: u64,
    pub(crate) salt: u64,
    pub(crate) map: Arc<dyn DiskMap>,
    /// No byte below this changes any more.
    pub(crate) written: AtomicU64,
}

impl View {
    pub(crate) fn written(&self) -> u64 {
        self.written.load(Ordering::Acquire)
    }
}

/// One segment's entries, without the superseded ones.
pub(crate) struct SegmentIndex {
    pub(crate) view: Arc<View>,
    pub(crate) capacity: u64,
    /// The place behind which this segment was opened.
    pub(crate) opened_at: LogBase,
    /// Last entry in it; meaningful when there are points.
    pub(crate) last: u64,
    pub(crate) points: Vec<Point>,
    pub(crate) runs: Vec<TermRun>,
    pub(crate) memberships: Vec<u64>,
    /// Whether the log started anew inside it.
    pub(crate) reset: bool,
}

impl SegmentIndex {
    pub(crate) fn new(view: Arc<View>, capacity: u64, opened_at: LogBase) -> SegmentIndex {
        SegmentIndex {
            view,
            capacity,
            opened_at,
            last: 0,
            points: Vec::new(),
            runs: Vec::new(),
            memberships: Vec::new(),
            reset: false,
        }
    }

    /// First and last entry, if it holds any.
    pub(crate) fn range(&self) -> Option<(u64, u64)> {
        self.points.first().map(|point| (point.index, self.last))
    }

    fn cut(&mut self, from: u64) {
        self.points.retain(|point| point.index < from);
        self.runs.retain(|run| run.first_index < from);
        self.memberships.retain(|index| *index < from);
        self.last = self.last.min(from - 1);
    }

    fn push(&mut self, header: &Header, position: u64, fresh_start: bool) {
        let due = self.points.last().is_none_or(|last| position - last.position >= POINT_SPACING);
        if due || fresh_start {
            let (base_offset, timestamp_ms) = (header.base_offset, header.timestamp_ms);
            self.points.push(Point { index: header.index, position, base_offset, timestamp_ms });
        }
        if self.runs.last().is_none_or(|run| run.term != header.term) {
            self.runs.push(TermRun { term: header.term, first_index: header.index });
        }
        if header.kind == Kind::Membership {
            self.memberships.push(header.index);
        }
        self.last = header.index;
    }
}

/// All segments' entries.
pub(crate) struct LogIndex {
    pub(crate) base: LogBase,
    pub(crate) last: u64,
    pub(crate) segments: Vec<SegmentIndex>,
}

/// A place to walk from: the record at `position` is the entry `index`, and the ones behind it follow up to `until`.
pub(crate) struct Located {
    pub(crate) view: Arc<View>,
    pub(crate) position: u64,
    pub(crate) index: u64,
    /// Entry before which to look up again.
    pub(crate) until: u64,
    /// The point there, if it is in the same segment.
    pub(crate) next: Option<Point>,
    /// The point at `position`.
    pub(crate) point: Point,
}

impl LogIndex {
    /// Takes in an entry that was written at `position` of the last segment, superseding whatever has its index or a
    /// higher one.
    pub(crate) fn push(&mut self, header: &Header, position: u64) {
        let supersedes = header.index <= self.last;
        if supersedes {
            for segment in self.segments.iter_mut().rev() {
                let Some((first, last)) = segment.range() else { continue };
                if last < header.index {
                    break;
                }
                segment.cut(header.index);
                if first < header.index {
                    break;
                }
            }
        }
        if let Some(segment) = self.segments.last_mut() {
            segment.push(header, position, supersedes);
        }
        self.last = header.index;
    }

    /// The log starts anew behind `base`.
    pub(crate) fn reset(&mut self, base: LogBase) {
        for segment in &mut self.segments {
            segment.cut(1);
        }
        self.base = base;
        self.last = base.index;
    }

    /// Takes in a whole segment by its footer.
    pub(crate) fn push_sealed(&mut self, mut segment: SegmentIndex, footer: Footer) {
        if footer.reset {
            self.reset(footer.base);
            segment.reset = true;
        }
        if let Some(first) = footer.points.first() {
            for earlier in &mut self.segments {
                earlier.cut(first.index);
            }
            segment.last = footer.tail.index;
        }
        (segment.points, segment.runs, segment.memberships) = (footer.points, footer.runs, footer.memberships);
        self.last = footer.tail.index;
        self.segments.push(segment);
    }

    /// Where to find entry `index`, which is in the log.
    pub(crate) fn locate(&self, index: u64) -> Option<Located> {
        self.stretch(|point| point.index, index).filter(|located| index < located.until)
    }

    /// The stretch from the last point at or below a value that never decreases along the log up to the next point.
    pub(crate) fn stretch(&self, key: impl Fn(&Point) -> u64, at_most: u64) -> Option<Located> {
        let segment = &self.segments[self.last_segment(|point| key(point) <= at_most)?];
        let after = segment.points.partition_point(|point| key(point) <= at_most);
        let point = segment.points[after.checked_sub(1)?];
        let next = segment.points.get(after).copied();
        let until = next.map_or(segment.last + 1, |next| next.index);
        let view = Arc::clone(&segment.view);
        Some(Located { view, position: point.position, index: point.index, until, next, point })
    }

    /// The last segment with entries whose first point passes a test that fails for all behind one where it fails.
    fn last_segment(&self, test: impl Fn(&Point) -> bool) -> Option<usize> {
        let (mut low, mut high, mut found) = (0, self.segments.len(), None);
        while low < high {
            let middle = low + (high - low) / 2;
            let holds = |at: &usize| !self.segments[*at].points.is_empty();
            match (middle..high).find(holds) {
                Some(at) if test(&self.segments[at].points[0]) => (found, low) = (Some(at), at + 1),
                _ => high = middle,
            }
        }
        found
    }

    /// The terms of all entries.
    pub(crate) fn term_runs(&self) -> Vec<TermRun> {
        let mut runs: Vec<TermRun> = Vec::new();
        for run in self.segments.iter().flat_map(|segment| &segment.runs) {
            if runs.last().is_none_or(|last| last.term != run.term) {
                runs.push(*run);
            }
        }
        runs
    }

    /// The first segment, and its length, when it can go: it holds nothing from `index` on, and what is behind it tells
    /// where the log then starts.
    ///
    /// That is so when the next segment was opened right behind the first entry held there, or the log started anew in one
    /// of those behind. A segment that opens with a superseding entry cannot be the first one: its opening names a place
    /// behind it.
    pub(crate) fn releasable(&self, index: u64) -> Option<(u64, u64)> {
        let [first, rest @ ..] = self.segments.as_slice() else { return None };
        let next = rest.first()?;
        if first.range().is_some_and(|(_, last)| last >= index) {
            return None;
        }
        let starts_anew = rest.iter().any(|segment| segment.reset);
        let first_behind = rest.iter().find_map(SegmentIndex::range).map_or(self.last + 1, |(first, _)| first);
        (starts_anew || first_behind == next.opened_at.index + 1).then_some((first.view.id, first.capacity))
    }

    /// Forgets the first segment, which is releasable.
    pub(crate) fn drop_first(&mut self) -> Option<SegmentIndex> {
        if self.segments.is_empty() {
            return None;
        }
        let dropped = self.segments.remove(0);
        if let Some(next) = self.segments.first()
            && !self.segments.iter().any(|segment| segment.reset)
        {
            self.base = next.opened_at;
        }
        Some(dropped)
    }

    /// Whether the invariants hold; the message says which does not.
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        let mut next = self.base.index + 1;
        for segment in &self.segments {
            let Some((first, last)) = segment.range() else { continue };
            if first != next {
                return Err("a hole between two segments");
            }
            if segment
                .points
                .windows(2)
                .any(|pair| pair[0].index >= pair[1].index || pair[0].position >= pair[1].position)
            {
                return Err("points do not ascend");
            }
            if segment.points.iter().any(|point| point.index > last)
                || segment.runs.first().is_none_or(|run| run.first_index != first)
            {
                return Err("a segment's points or runs do not fit its entries");
            }
            next = last + 1;
        }
        if next == self.last + 1 { Ok(()) } else { Err("the last entry is in no segment") }
    }
}
