//! What the replica remembers of its log without asking the disk.
//!
//! Two things. A [`Mark`] for each entry above the readable index: enough to check what is appended next and to take a
//! truncation back. And a bounded ring of recent frames, from which followers are fed; older frames are loaded from the
//! log's files by another thread.
//!
//! Invariants, checked by [`LogView::check`]: marks are dense from `readable + 1` to `last`; the ring is dense and ends at
//! `last`; every frame that is not durable yet is in the ring, because the files may not have it.

use std::collections::VecDeque;

use graven_frame::{Chain, Frame};

use super::planted::{Bug, is_planted};

/// What is known of the log's state just after one entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// The entry's index; 0 stands before the log.
    pub index: u64,
    /// Its term.
    pub term: u64,
    /// Its chain value, which covers the whole log up to it.
    pub chain: Chain,
    /// Offset that the next record gets.
    pub next_offset: u64,
    /// Leader's timestamp of the entry, milliseconds since the epoch.
    pub timestamp_ms: u64,
}

impl Mark {
    /// The mark of `frame`.
    #[must_use]
    pub fn of(frame: &Frame) -> Mark {
        let header = frame.header();
        Mark {
            index: header.index,
            term: header.term,
            chain: header.chain,
            next_offset: frame.next_offset(),
            timestamp_ms: header.timestamp_ms,
        }
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub struct LogView {
    /// The newest entry that readers may see: committed and durable here.
    readable: Mark,
    /// Marks of the entries above it, oldest first.
    tail: VecDeque<Mark>,
    ring: VecDeque<Frame>,
    ring_bytes: usize,
    ring_bytes_max: usize,
    tail_bytes: usize,
}

impl LogView {
    /// A view of a log whose newest readable entry is `readable`; the entries above it are pushed next.
    #[must_use]
    pub fn new(readable: Mark, ring_bytes_max: usize) -> LogView {
        LogView { readable, tail: VecDeque::new(), ring: VecDeque::new(), ring_bytes: 0, ring_bytes_max, tail_bytes: 0 }
    }

    /// Mark of the last entry.
    #[must_use]
    pub fn last(&self) -> Mark {
        self.tail.back().copied().unwrap_or(self.readable)
    }

    /// Mark of the newest entry that readers may see.
    #[must_use]
    pub fn readable(&self) -> Mark {
        self.readable
    }

    /// Bytes of the frames above the readable index that are in the ring.
    #[must_use]
    pub fn tail_bytes(&self) -> usize {
        self.tail_bytes
    }

    /// The mark of `index`, when it is still remembered: from the readable index to the last, and in the ring.
    #[must_use]
    pub fn mark(&self, index: u64) -> Option<Mark> {
        if index == self.readable.index {
            return Some(self.readable);
        }
        if index > self.readable.index {
            return self.tail.get(usize::try_from(index - self.readable.index - 1).ok()?).copied();
        }
        self.frame(index).map(Mark::of)
    }

    /// The frame of `index`, when the ring has it.
    #[must_use]
    pub fn frame(&self, index: u64) -> Option<&Frame> {
        let first = self.ring.front()?.header().index;
        self.ring.get(usize::try_from(index.checked_sub(first)?).ok()?)
    }

    /// Appends a frame; it must continue the log.
    ///
    /// # Panics
    /// When it does not: the caller has checked it, and a log with a hole must never reach the disk.
    pub fn push(&mut self, frame: Frame) {
        let last = self.last();
        assert_eq!(frame.header().index, last.index + 1, "an entry that does not continue the log");
        assert_eq!(frame.header().base_offset, last.next_offset, "an entry whose offsets do not continue the log");
        self.tail.push_back(Mark::of(&frame));
        self.tail_bytes += frame.encoded_len();
        self.ring_bytes += frame.encoded_len();
        self.ring.push_back(frame);
    }

    /// Drops everything from `index` on.
    ///
    /// # Panics
    /// When that includes an entry that readers were allowed to see.
    pub fn truncate(&mut self, index: u64) {
        assert!(index > self.readable.index, "truncation at {index} of entries that were committed");
        while self.tail.back().is_some_and(|mark| mark.index >= index) {
            self.tail.pop_back();
        }
        while let Some(frame) = self.ring.pop_back() {
            if frame.header().index < index {
                self.ring.push_back(frame);
                break;
            }
            self.ring_bytes -= frame.encoded_len();
            self.tail_bytes = self.tail_bytes.saturating_sub(frame.encoded_len());
        }
    }

    /// Lets readers see up to `index`; returns whether that is news.
    pub fn advance_readable(&mut self, index: u64) -> bool {
        let before = self.readable.index;
        while let Some(mark) = self.tail.front().copied()
            && mark.index <= index
        {
            if let Some(bytes) = self.frame(mark.index).map(Frame::encoded_len) {
                self.tail_bytes = self.tail_bytes.saturating_sub(bytes);
            }
            self.readable = mark;
            self.tail.pop_front();
        }
        self.readable.index != before
    }

    /// Shrinks the ring to its size; frames above `durable` stay, the files may not have them.
    pub fn shrink(&mut self, durable: u64) {
        while self.ring_bytes > self.ring_bytes_max
            && !is_planted(Bug::RingGrows)
            && let Some(front) = self.ring.front()
            && front.header().index <= durable.min(self.readable.index)
        {
            self.ring_bytes -= front.encoded_len();
            self.ring.pop_front();
        }
    }

    /// Empties the ring as far as the files have it: nobody has asked for recent frames for a while. A frame holds on to the
    /// whole buffers its chunks arrived in, which is several times its size.
    pub fn release(&mut self, durable: u64) {
        let most = std::mem::replace(&mut self.ring_bytes_max, 0);
        self.shrink(durable);
        self.ring_bytes_max = most;
        if self.ring.is_empty() {
            self.ring.shrink_to_fit();
        }
    }

    /// Frames from `first` on, at most up to `last` and about `max_bytes` (always one); empty when the ring no longer has
    /// the first.
    #[must_use]
    pub fn frames(&self, first: u64, last: u64, max_bytes: usize) -> Vec<Frame> {
        let mut found = Vec::new();
        let mut bytes = 0;
        for index in first..=last {
            let Some(frame) = self.frame(index) else { break };
            if !found.is_empty() && bytes + frame.encoded_len() > max_bytes {
                break;
            }
            bytes += frame.encoded_len();
            found.push(frame.clone());
        }
        found
    }

    /// Index of the oldest frame in the ring; above `last` when it is empty.
    #[must_use]
    pub fn ring_first(&self) -> u64 {
        self.ring.front().map_or(self.last().index + 1, |frame| frame.header().index)
    }

    /// Bytes in the ring, those of them above the readable index, and marks.
    pub(super) fn footprint(&self) -> (usize, usize, usize) {
        (self.ring_bytes, self.tail_bytes, self.tail.len())
    }

    /// Asserts the invariants of the module's documentation.
    ///
    /// # Panics
    /// When one does not hold.
    pub fn check(&self, durable: u64) {
        for (index, mark) in (self.readable.index + 1..).zip(&self.tail) {
            assert_eq!(mark.index, index, "marks have a hole");
        }
        let first = self.ring_first();
        for (index, frame) in (first..).zip(&self.ring) {
            assert_eq!(frame.header().index, index, "the ring has a hole");
        }
        assert!(first <= durable.max(self.readable.index) + 1, "an entry that is not durable left the ring");
    }
}

#[cfg(test)]
mod tests {
    use graven_frame::{Body, Chain, HeaderSpec, Kind};

    use super::*;

    fn view_of(entries: u64, ring_bytes_max: usize) -> LogView {
        let start = Mark { index: 0, term: 0, chain: Chain::START, next_offset: 0, timestamp_ms: 0 };
        let mut log = LogView::new(start, ring_bytes_max);
        (1..=entries).for_each(|_| push(&mut log));
        log
    }

    fn push(log: &mut LogView) {
        let last = log.last();
        let (index, base_offset) = (last.index + 1, last.next_offset);
        let spec = HeaderSpec { kind: Kind::Noop, term: 1, index, base_offset, count: 0, timestamp_ms: 0 };
        log.push(Frame::seal(spec, last.chain, Body::default(), 0));
    }

    #[test]
    fn a_released_ring_keeps_what_the_files_may_not_have_and_goes_on() {
        let mut log = view_of(10, 1 << 20);
        log.advance_readable(8);
        log.release(6);
        assert_eq!(log.ring_first(), 7, "7 is not durable, 9 is not committed");
        log.check(6);
        log.release(10);
        assert_eq!(log.ring_first(), 9);
        assert!(log.frames(8, 10, 1 << 20).is_empty(), "older frames are loaded from the files");
        push(&mut log);
        log.check(10);
        assert_eq!(log.frames(9, 11, 1 << 20).len(), 3);
    }

    #[test]
    fn a_truncation_takes_marks_and_frames_and_stops_at_the_readable_index() {
        let mut log = view_of(10, 1 << 20);
        log.advance_readable(4);
        log.truncate(5);
        assert_eq!((log.last().index, log.ring_first()), (4, 1));
        push(&mut log);
        log.check(5);
        let shortened = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| log.truncate(4)));
        assert!(shortened.is_err(), "an entry that readers were allowed to see");
    }
}
