//! Where a reader of the stream stands, and what it is owed next.
//!
//! A feed never skips silently (P4): it walks the committed records in order; what was trimmed under it becomes a typed step
//! that names the gap, and nothing above the readable index is ever handed out. The driver asks [`Feed::step`], does what it
//! says, and reports [`Feed::delivered`].

use graven_frame::{Frame, Kind};
use graven_wal::{LogReader, ReadError};

use super::effect::View;
use super::planted::{Bug, is_planted};

/// See the module's documentation.
#[derive(Debug, Clone)]
pub struct Feed {
    /// The next offset owed.
    next: u64,
    /// The entry to read next, once it is known.
    entry: Option<u64>,
    /// The offset at which the reader was last told that it caught up.
    told: Option<u64>,
    /// Everything up to this index was handed out, or holds no record.
    passed: u64,
}

/// What a reader is owed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Read records from the log, with [`Feed::read`].
    Read,
    /// Say that the records from `from` up to, not including, `to` were trimmed. The feed goes on at `to`.
    Trimmed {
        /// The first missing offset.
        from: u64,
        /// The first offset that is still there.
        to: u64,
    },
    /// Say that the reader has everything that is committed.
    CaughtUp {
        /// The next offset.
        next_offset: u64,
    },
    /// Nothing until the view changes.
    Wait,
}

impl Feed {
    /// A feed that owes the record at `next` first. It may lie ahead of the log: the feed then waits for it.
    #[must_use]
    pub fn new(next: u64) -> Feed {
        Feed { next, entry: None, told: None, passed: 0 }
    }

    /// The next offset owed.
    #[must_use]
    pub fn next_offset(&self) -> u64 {
        self.next
    }

    /// Everything up to this index was handed out, or holds no record.
    #[must_use]
    pub fn passed(&self) -> u64 {
        self.passed
    }

    /// What the reader is owed, as `view` has it.
    #[must_use]
    pub fn step(&mut self, view: &View) -> Step {
        if self.next < view.first_offset {
            let from = self.next;
            self.next = view.first_offset;
            self.entry = None;
            return Step::Trimmed { from, to: self.next };
        }
        if self.next < view.next_offset {
            return Step::Read;
        }
        // A state machine that goes on from a snapshot may be ahead of what this node knows to be committed.
        if self.next >= view.next_offset {
            self.passed = self.passed.max(view.readable_index);
        }
        if self.next == view.next_offset && self.told != Some(self.next) {
            self.told = Some(self.next);
            return Step::CaughtUp { next_offset: self.next };
        }
        Step::Wait
    }

    /// Reads the frames owed next: those with records, up to about `max_bytes`, none above the readable index of `view`.
    /// The first may begin below the offset owed; the reader drops what it has.
    ///
    /// # Errors
    /// What the log's files returned.
    pub fn read(&mut self, reader: &LogReader, view: &View, max_bytes: usize) -> Result<Vec<Frame>, ReadError> {
        let mut found = Vec::new();
        while found.is_empty() && self.next < view.next_offset {
            let from = match self.entry {
                Some(index) => index,
                None => match reader.index_of_offset(self.next)? {
                    Some(index) => index,
                    None => return Ok(found),
                },
            };
            if from > view.readable_index {
                return Ok(found);
            }
            let frames = match reader.frames(from, view.readable_index, max_bytes) {
                // What follows the last record that was handed out may be entries without records, gone by now; the record that is owed
                // need not be.
                Err(ReadError::Trimmed { .. }) if self.entry.take().is_some() => continue,
                read => read?,
            };
            let Some(last) = frames.last() else { return Ok(found) };
            self.entry = Some(last.header().index + 1);
            self.passed = last.header().index;
            self.next = self.next.max(last.next_offset());
            found = frames;
            found.retain(|frame| frame.header().kind == Kind::Records);
            found.retain(|frame| !is_planted(Bug::FeedSkips) || frame.header().index % 16 != 0);
        }
        Ok(found)
    }
}
