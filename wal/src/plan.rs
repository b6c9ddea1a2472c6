//! Where segments end: how much of a segment is taken, and which entries still fit.
//!
//! A record fits when behind it there is room for one sync point, the footer as it would then be, and the trailer. So a
//! segment can always be vouched for and sealed.

use graven_frame::{Frame, Header, Kind};

use crate::format::{Footer, OPENING_BYTES, POINT_SPACING, PREFIX_BYTES, TRAILER_BYTES, TWIN_BLOCK, extent};
use crate::index::LogIndex;

/// The opening, a hard state across a block border, a few entries and the closing records.
pub(crate) const MIN_SEGMENT_BYTES: u64 = 16 << 10;

/// How full a segment is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fill {
    position: u64,
    capacity: u64,
    sealed: bool,
    runs: usize,
    memberships: usize,
    points: usize,
    last_point: Option<u64>,
    last_term: Option<u64>,
    last_index: u64,
}

impl Fill {
    /// The active segment now.
    pub(crate) fn of(index: &LogIndex, position: u64, sealed: bool, capacity: u64) -> Fill {
        let segment = index.segments.last();
        Fill {
            position,
            capacity,
            sealed,
            runs: segment.map_or(0, |segment| segment.runs.len()),
            memberships: segment.map_or(0, |segment| segment.memberships.len()),
            points: segment.map_or(0, |segment| segment.points.len()),
            last_point: segment.and_then(|segment| segment.points.last_resident()).map(|point| point.position),
            last_term: segment.and_then(|segment| segment.runs.last()).map(|run| run.term),
            last_index: index.last,
        }
    }

    fn fresh(capacity: u64, last_index: u64) -> Fill {
        Fill {
            position: OPENING_BYTES,
            capacity,
            sealed: false,
            runs: 0,
            memberships: 0,
            points: 0,
            last_point: None,
            last_term: None,
            last_index,
        }
    }

    /// Bytes left for records, closing records not counted.
    pub(crate) fn left(&self) -> u64 {
        let footer = extent(Footer::payload_len(self.runs, self.memberships, self.points));
        let taken = self.position + PREFIX_BYTES as u64 + footer + TRAILER_BYTES;
        if self.sealed { 0 } else { self.capacity.saturating_sub(taken) }
    }

    /// Whether a record of this many bytes that adds nothing to the footer fits.
    pub(crate) fn takes(&self, bytes: u64) -> bool {
        let footer = extent(Footer::payload_len(self.runs, self.memberships, self.points));
        !self.sealed && self.position + bytes + PREFIX_BYTES as u64 + footer + TRAILER_BYTES <= self.capacity
    }

    /// Where to go on in a new segment: positions in `frames`, and the least capacity of the segment that starts there.
    pub(crate) fn plan(mut self, frames: &[Frame], segment_bytes: u64) -> Vec<(usize, u64)> {
        let mut cuts = Vec::new();
        for (at, frame) in frames.iter().enumerate() {
            let with = self.with(frame.header());
            self = if with.takes(0) {
                with
            } else {
                let capacity = segment_bytes.max(least_capacity(frame.header()));
                cuts.push((at, capacity));
                Fill::fresh(capacity, self.last_index).with(frame.header())
            };
        }
        cuts
    }

    /// After this entry, whether it fits or not.
    fn with(mut self, header: &Header) -> Fill {
        let supersedes = header.index <= self.last_index;
        if supersedes || self.last_point.is_none_or(|point| self.position - point >= POINT_SPACING) {
            self.points += 1;
            self.last_point = Some(self.position);
        }
        if supersedes || self.last_term != Some(header.term) {
            self.runs += 1;
            self.last_term = Some(header.term);
        }
        self.memberships += usize::from(header.kind == Kind::Membership);
        self.position += extent(header.frame_len());
        self.last_index = header.index;
        self
    }
}

/// Bytes of a segment that holds this one entry.
fn least_capacity(header: &Header) -> u64 {
    let closing = PREFIX_BYTES as u64 + extent(Footer::payload_len(1, 1, 1)) + TRAILER_BYTES;
    // Two blocks more, so that a hard state behind the entry does not at once need the next segment.
    (OPENING_BYTES + extent(header.frame_len()) + closing + 2 * TWIN_BLOCK).next_multiple_of(4096)
}
