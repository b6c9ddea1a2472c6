//! Trims: the first offset moves, on all nodes at the same entry.
//!
//! A trim is an entry. It takes effect where it is committed and durable; what the records in front of it took on the disk is
//! freed later, by [`super::checkpoint`]. It needs no room to speak of, so it is taken by a leader whose disk is full: it is
//! how room is made.
//!
//! The entry's body, 16 bytes: version (4: 1), zero (4), first offset (8), little-endian.

use std::collections::VecDeque;

use graven_frame::{Frame, FrameError, Kind};
use graven_raft::{ProposeError, Role};

use super::Replica;
use super::effect::{Answer, Now, Rejection, RequestId};
use super::planted::{Bug, is_planted};

const TRIM_VERSION: u32 = 1;

/// Trims in the log that readers are not to see yet: index of the entry, and the first offset behind it.
#[derive(Debug, Default)]
pub(super) struct Trims(VecDeque<(u64, u64)>);

impl Trims {
    /// Takes in a frame that is in the log now.
    pub(super) fn note(&mut self, frame: &Frame) -> Result<(), FrameError> {
        if let Some(offset) = trim_of(frame)? {
            self.0.push_back((frame.header().index, offset));
        }
        Ok(())
    }

    /// Everything from `index` on is gone from the log.
    pub(super) fn truncate(&mut self, index: u64) {
        while self.0.back().is_some_and(|(at, _)| *at >= index) {
            self.0.pop_back();
        }
    }

    /// The first offset that trims up to `index` ask for, if there is news.
    pub(super) fn pass(&mut self, index: u64) -> Option<u64> {
        let mut first = None;
        while let Some((_, offset)) = self.0.front().filter(|(at, _)| *at <= index || is_planted(Bug::TrimBeforeCommit))
        {
            first = first.max(Some(*offset));
            self.0.pop_front();
        }
        first
    }

    /// The highest first offset that is on its way.
    pub(super) fn highest(&self) -> u64 {
        self.0.iter().map(|(_, offset)| *offset).max().unwrap_or(0)
    }
}

/// The first offset that an entry asks for, when it is a trim.
pub(super) fn trim_of(frame: &Frame) -> Result<Option<u64>, FrameError> {
    if frame.header().kind != Kind::Trim {
        return Ok(None);
    }
    let body = frame.body().concat();
    let (head, offset) = body.split_at_checked(8).unwrap_or_default();
    let offset = offset.try_into().map(u64::from_le_bytes);
    let known = head[..] == u64::from(TRIM_VERSION).to_le_bytes()[..];
    offset.ok().filter(|_| known).map(Some).ok_or(FrameError::Malformed { what: "trim", at: 0 })
}

fn body_of(before: u64) -> Vec<u8> {
    [u64::from(TRIM_VERSION).to_le_bytes(), before.to_le_bytes()].concat()
}

impl Replica {
    /// Takes in the wish that everything before the offset `before` is gone. Answered with the first offset once that is committed.
    pub fn trim(&mut self, now: Now, request: RequestId, before: u64) {
        if self.core.role() != Role::Leader || self.diverged {
            return self.answer(request, Err(Rejection::NotLeader { leader: self.core.leader() }));
        }
        let last = self.log.last();
        let first_offset = self.first_offset.max(self.tables.trims.highest());
        if before > last.next_offset {
            let rejection = Rejection::TrimBeyond { next_offset: last.next_offset };
            self.hold(now, last.index, vec![(request, Err(rejection))]);
        } else if let Some((name, offset)) = self.needed_by_snapshot().filter(|(_, offset)| before > *offset) {
            let rejection = Rejection::NeededBySnapshot { name, offset };
            self.hold(now, last.index, vec![(request, Err(rejection))]);
        } else if before <= first_offset {
            self.hold(now, last.index, vec![(request, Ok(Answer::Trimmed { first_offset }))]);
        } else {
            match self.propose_trim(now, before) {
                Ok(index) => self.acks.on_commit(index, request, Answer::Trimmed { first_offset: before }),
                Err(error) => self.answer(request, Err(self.not_proposed(&error))),
            }
        }
        self.settle(now);
    }

    /// Puts a trim into the log. Whether it may be is the caller's to say.
    pub(super) fn propose_trim(&mut self, now: Now, before: u64) -> Result<u64, ProposeError> {
        self.propose_control(now, Kind::Trim, body_of(before), None)
    }

    /// Moves the first offset behind what trims that readers may see by now took away.
    pub(super) fn advance_first_offset(&mut self) {
        if let Some(offset) = self.tables.trims.pass(self.log.readable().index) {
            self.first_offset = self.first_offset.max(offset);
        }
    }
}

#[cfg(test)]
mod tests {
    use graven_frame::{Body, Chain, HeaderSpec};

    use super::*;

    fn trim(index: u64, body: Vec<u8>) -> Frame {
        let spec = HeaderSpec { kind: Kind::Trim, term: 1, index, base_offset: 0, count: 0, timestamp_ms: 0 };
        let body = Body::from_chunks(vec![body.into()]);
        let crc = body.crc();
        Frame::seal(spec, Chain::START, body, crc)
    }

    #[test]
    fn trims_take_effect_in_order_where_they_may_be_seen_and_a_truncation_takes_them_back() {
        let mut trims = Trims::default();
        for (index, offset) in [(3, 10), (5, 30), (8, 40)] {
            trims.note(&trim(index, body_of(offset))).expect("well formed");
        }
        assert_eq!(trims.highest(), 40);
        trims.truncate(8);
        assert_eq!((trims.pass(2), trims.pass(4), trims.pass(4)), (None, Some(10), None));
        assert_eq!((trims.pass(9), trims.highest()), (Some(30), 0));
    }

    #[test]
    fn a_body_that_is_no_trim_is_refused() {
        assert_eq!(trim_of(&trim(1, body_of(7))), Ok(Some(7)));
        for bad in [vec![], vec![1], body_of(7)[..15].to_vec(), [body_of(7), vec![0]].concat(), vec![0; 16]] {
            assert!(trim_of(&trim(1, bad.clone())).is_err(), "{bad:?}");
        }
    }
}
