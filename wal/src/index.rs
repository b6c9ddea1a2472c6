//! Where entries are: a sparse index in memory, shared by the writer and its readers.
//!
//! One point stands for about 128 KiB of records. Entries that a later one superseded stay in the files, and vanish from
//! here: the first entry behind such a place always has a point of its own, so that a walk from a point up to the next
//! one never meets a superseded entry. Invariants, checked by [`LogIndex::check`] in tests:
//!
//! - the entries of the segments follow each other without a hole, from `base.index + 1` to `last`;
//! - a segment that holds entries has a point for its first one, and points ascend by index and by position.
//!
//! The points of a sealed segment are not kept in memory: they stand in its footer, whose sum was checked when the log was
//! opened or which this process wrote, and are read there through the map ([`Points`]). So memory does not grow with the
//! log by more than some hundred bytes a segment, and opening a segment costs the same whatever is in it. Rot that comes to a
//! footer later is found when a look-up lands in it: what it says is checked against what memory knows of the segment.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use graven_frame::{Header, Kind};

use crate::disk::DiskMap;
use crate::error::{Damage, SegmentId};
use crate::format::{Footer, OPENING_BYTES, POINT_BYTES, POINT_SPACING, Point};
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
    pub(crate) points: Points,
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
            points: Points::default(),
            runs: Vec::new(),
            memberships: Vec::new(),
            reset: false,
        }
    }

    /// First and last entry, if it holds any.
    pub(crate) fn range(&self) -> Option<(u64, u64)> {
        self.points.first().map(|point| (point.index, self.last))
    }

    /// From now on the points are read where the footer has them; `at` is the place of the first one.
    pub(crate) fn leave_points_in_file(&mut self, at: u64) {
        if let Points::Resident(points) = &self.points
            && let Some(first) = points.first().copied()
        {
            self.points = Points::InFile(PointsInFile { at, count: points.len(), first });
        }
    }

    fn cut(&mut self, from: u64) {
        if self.points.first().is_some_and(|first| first.index >= from) {
            self.points = Points::default();
        } else if self.last >= from {
            // A part of a sealed segment was superseded: its footer says too much from now on.
            let mut points = self.points.to_vec(&self.view);
            points.retain(|point| point.index < from);
            self.points = Points::Resident(points);
        }
        self.runs.retain(|run| run.first_index < from);
        self.memberships.retain(|index| *index < from);
        self.last = self.last.min(from - 1);
    }

    fn push(&mut self, header: &Header, position: u64, fresh_start: bool) {
        let points = self.points.resident();
        let due = points.last().is_none_or(|last| position - last.position >= POINT_SPACING);
        if due || fresh_start {
            let (base_offset, timestamp_ms) = (header.base_offset, header.timestamp_ms);
            points.push(Point { index: header.index, position, base_offset, timestamp_ms });
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

/// The sparse index of one segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Points {
    /// Of the segment that is written to, and of those of which a part was superseded.
    Resident(Vec<Point>),
    /// Of a sealed segment.
    InFile(PointsInFile),
}

/// Points that stand in a footer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PointsInFile {
    /// Place of the first one in the segment's file.
    pub(crate) at: u64,
    /// How many there are; not 0.
    pub(crate) count: usize,
    pub(crate) first: Point,
}

impl Default for Points {
    fn default() -> Points {
        Points::Resident(Vec::new())
    }
}

impl Points {
    pub(crate) fn len(&self) -> usize {
        match self {
            Points::Resident(points) => points.len(),
            Points::InFile(there) => there.count,
        }
    }

    pub(crate) fn first(&self) -> Option<&Point> {
        match self {
            Points::Resident(points) => points.first(),
            Points::InFile(there) => Some(&there.first),
        }
    }

    /// The last one of a segment that is written to.
    pub(crate) fn last_resident(&self) -> Option<&Point> {
        match self {
            Points::Resident(points) => points.last(),
            Points::InFile(_) => None,
        }
    }

    /// All of them; reads them from the file where they stand there.
    /// Those that are in memory: all, or the first one.
    pub(crate) fn known(&self) -> &[Point] {
        match self {
            Points::Resident(points) => points,
            Points::InFile(there) => std::slice::from_ref(&there.first),
        }
    }

    pub(crate) fn to_vec(&self, view: &View) -> Vec<Point> {
        match self {
            Points::Resident(points) => points.clone(),
            Points::InFile(there) => (0..there.count).map(|nth| there.point(view, nth)).collect(),
        }
    }

    /// Those in memory, for adding one: the segment is written to, so it has no footer.
    fn resident(&mut self) -> &mut Vec<Point> {
        if let Points::InFile(_) = self {
            *self = Points::default();
        }
        match self {
            Points::Resident(points) => points,
            Points::InFile(_) => unreachable!("replaced above"),
        }
    }
}

impl PointsInFile {
    /// May wait for the disk: not under the lock of the index, but for a superseding entry, which is rare. While a log is opened the
    /// bytes were just read with `pread`.
    fn point(&self, view: &View, nth: usize) -> Point {
        let mut bytes = [0; POINT_BYTES];
        view.map.copy(self.at + (nth * POINT_BYTES) as u64, &mut bytes, view.written());
        Point::decode(&bytes)
    }

    fn partition_point(&self, view: &View, test: impl Fn(&Point) -> bool) -> usize {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            if test(&self.point(view, middle)) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }
}

/// Where a look-up goes on when the index's lock is released.
pub(crate) enum Stretch {
    /// Found in memory.
    Found(Located),
    /// In a sealed segment; its footer knows.
    InFile {
        view: Arc<View>,
        /// Last entry of the segment.
        last: u64,
        points: PointsInFile,
    },
}

impl Stretch {
    /// The last point whose key is at most `at_most`, by the same key as before.
    ///
    /// # Errors
    /// The footer does not say what it said when it was checked.
    pub(crate) fn resolve(self, key: impl Fn(&Point) -> u64, at_most: u64) -> Result<Located, Damage> {
        let (view, last, points) = match self {
            Stretch::Found(located) => return Ok(located),
            Stretch::InFile { view, last, points } => (view, last, points),
        };
        let after = points.partition_point(&view, |point| key(point) <= at_most);
        let point = if after > 1 { points.point(&view, after - 1) } else { points.first };
        let next = (after > 0 && after < points.count).then(|| points.point(&view, after));
        let until = next.map_or(last + 1, |next| next.index);
        let inside = |point: &Point| {
            (points.first.index..=last).contains(&point.index) && (OPENING_BYTES..points.at).contains(&point.position)
        };
        let ordered = next.is_none_or(|next| next.index > point.index && next.position > point.position);
        if after == 0 || !inside(&point) || !next.as_ref().is_none_or(inside) || !ordered || key(&point) > at_most {
            return Err(Damage {
                segment: SegmentId(view.id),
                from: points.at,
                to: points.at + (points.count * POINT_BYTES) as u64,
                first_index: points.first.index,
                last_index: last,
                what: "the index in the footer has changed since it was checked; the entries may be whole",
            });
        }
        Ok(Located { view, position: point.position, index: point.index, until, next, point })
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
            self.cut(header.index);
        }
        if let Some(segment) = self.segments.last_mut() {
            segment.push(header, position, supersedes);
        }
        self.last = header.index;
    }

    /// Entries from `from` on are superseded.
    fn cut(&mut self, from: u64) {
        for segment in self.segments.iter_mut().rev() {
            let Some((first, last)) = segment.range() else { continue };
            if last < from {
                break;
            }
            segment.cut(from);
            if first < from {
                break;
            }
        }
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
        if let Some(first) = footer.points.first().copied() {
            self.cut(first.index);
            segment.last = footer.tail.index;
        }
        (segment.points, segment.runs, segment.memberships) = (footer.points, footer.runs, footer.memberships);
        self.last = footer.tail.index;
        self.segments.push(segment);
    }

    /// Where to look for entry `index`, by the index of points. Takes no time for the disk: [`Stretch::resolve`] may.
    pub(crate) fn locate(&self, index: u64) -> Option<Stretch> {
        self.stretch(|point| point.index, index).filter(|stretch| match stretch {
            Stretch::Found(located) => index < located.until,
            Stretch::InFile { last, .. } => index <= *last,
        })
    }

    /// The stretch from the last point at or below a value that never decreases along the log up to the next point.
    pub(crate) fn stretch(&self, key: impl Fn(&Point) -> u64, at_most: u64) -> Option<Stretch> {
        let segment = &self.segments[self.last_segment(|point| key(point) <= at_most)?];
        let view = Arc::clone(&segment.view);
        let points = match &segment.points {
            Points::Resident(points) => points,
            Points::InFile(points) => return Some(Stretch::InFile { view, last: segment.last, points: *points }),
        };
        let after = points.partition_point(|point| key(point) <= at_most);
        let point = points[after.checked_sub(1)?];
        let next = points.get(after).copied();
        let until = next.map_or(segment.last + 1, |next| next.index);
        Some(Stretch::Found(Located { view, position: point.position, index: point.index, until, next, point }))
    }

    /// The last segment with entries whose first point passes a test that fails for all behind one where it fails.
    fn last_segment(&self, test: impl Fn(&Point) -> bool) -> Option<usize> {
        let (mut low, mut high, mut found) = (0, self.segments.len(), None);
        while low < high {
            let middle = low + (high - low) / 2;
            let first = |at: usize| self.segments[at].points.first().map(|first| (at, first));
            match (middle..high).find_map(first) {
                Some((at, first)) if test(first) => (found, low) = (Some(at), at + 1),
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
            // Those in a footer were looked at when its sum was checked.
            let resident = match &segment.points {
                Points::Resident(points) => points.as_slice(),
                Points::InFile(_) => &[],
            };
            if !ascend(resident.iter().copied()) {
                return Err("points do not ascend");
            }
            if resident.iter().any(|point| point.index > last)
                || segment.runs.first().is_none_or(|run| run.first_index != first)
            {
                return Err("a segment's points or runs do not fit its entries");
            }
            next = last + 1;
        }
        if next == self.last + 1 { Ok(()) } else { Err("the last entry is in no segment") }
    }
}

/// Whether each point is behind the one before it.
pub(crate) fn ascend(points: impl Iterator<Item = Point>) -> bool {
    let mut before: Option<Point> = None;
    for point in points {
        if before.is_some_and(|before| before.index >= point.index || before.position >= point.position) {
            return false;
        }
        before = Some(point);
    }
    true
}
